//! HTTP/2 (RFC 9113) on one connection, with extended CONNECT for WebSockets (RFC 8441).
//!
//! hyper and h2 own the protocol; here are its limits, those that they lack (an idle connection, a stream that its client
//! does not read, a burst of requests), and the drain.

mod pace;
mod starts;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::frame_meter::{Excess, Metered, Wire};
use super::socket::SocketHandle;
use super::{Bounds, Ending, farewell};
use crate::alarm::Alarm;
use crate::body::{BodyError, Inbound};
use crate::drain::Phase;
use crate::forward::tunnel::{Duplex, End};
use crate::refusal::{Refusal, Unanswered, X_REQUEST_ID};
use crate::request::reply::ReplyBody;
use crate::request::{self, Carrier, ClientSide, Connection, Parts};
use pace::{Pace, Paced, Streams};
use starts::{Start, Starts};

/// RFC 9113 6.5.2 recommends at least 100; what browsers and nginx's default expect.
const MAX_STREAMS: u32 = 100;

/// Our choice: detects a dead peer within a minute, and keeps middleboxes awake.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Our choice: enough for a fast upload on a long line, bounded for a hundred streams.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Our choice: an idle peer that does not answer our GOAWAY is closed after this.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves one connection to its end.
// No async function: it would keep its arguments beside what it makes of them.
pub fn serve<S>(
    parts: Rc<Parts>,
    connection: Rc<Connection>,
    stream: S,
    bounds: Bounds,
    socket: SocketHandle,
) -> impl Future<Output = Ending>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let drain = parts.drain.clone();
    let activity = Rc::new(Activity::default());
    let wire = Wire::new(stream, bounds.head_bytes);
    let held = Rc::new(Cell::new(0));
    let streams = Streams::default();
    let (for_requests, of_requests, opened) = (Rc::clone(&connection), Rc::clone(&activity), streams.clone());
    let (of_streams, frames) = (socket.clone(), Rc::clone(&wire));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let pace = Rc::new(Pace::new(&held, frames.given()));
        opened.0.set(Some(Rc::clone(&pace)));
        if bound_fields(request.headers_mut(), bounds.head_fields) {
            frames.overfull();
        }
        let carrier = Rc::new(Http2 {
            activity: Rc::clone(&of_requests),
            socket: of_streams.clone(),
            pace: Rc::clone(&pace),
            switch: Cell::new(request.extensions_mut().remove::<OnUpgrade>()),
            has_place: Cell::new(false),
            start: Start::default(),
        });
        let request = request.map(|body| {
            let body = (!body.is_end_stream()).then_some(body)?;
            Some(Box::pin(body.map_err(|error| BodyError::Broken(error.into()))) as Inbound)
        });
        // Boxed: hyper moves it about, from one state of the stream to the next.
        let carried = Rc::clone(&carrier) as Rc<dyn Carrier>;
        let served = Box::pin(request::serve(Rc::clone(&parts), Rc::clone(&for_requests), carried, request));
        // The usual request begins at once. One that waits is asked first whether its stream was reset.
        let waits = frames.is_doubtful() || !carrier.begins_at_once();
        async move {
            if waits {
                Box::pin(carrier.begins()).await;
            }
            let response = served.await;
            carrier.start.answered(&carrier.activity.starts);
            respond(response, pace)
        }
    });
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(bounds.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(64 << 10)
        // Resets are counted over time by `frame_meter`. As many as may be open may also be cancelled in one go, as
        // a browser does whose line was stuck.
        .max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .max_local_error_reset_streams(None)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let serving = Box::pin(builder.serve_connection(TokioIo::new(Metered::new(&wire)), service));
    async move {
        let mut serving = serving;
        let mut draining = pin!(drain.reached(Phase::Draining));
        let mut patience = Patience::new(&activity, bounds);
        let ended = poll_fn(|cx| {
            loop {
                wire.begin_turn();
                // What is still to be written goes before any verdict.
                if let Poll::Ready(ended) = serving.as_mut().poll(cx) {
                    return Poll::Ready(wire.excess().map_or_else(|| Over::of(ended), Over::Excess));
                }
                if let Some(excess) = wire.excess() {
                    return Poll::Ready(Over::Excess(excess));
                }
                if !patience.is_told && draining.as_mut().poll(cx).is_ready() {
                    patience.is_told = true;
                    serving.as_mut().graceful_shutdown();
                    continue;
                }
                match patience.verdict(cx, connection.requests.get(), wire.due(bounds.head)) {
                    Verdict::Waits => return Poll::Pending,
                    Verdict::Looks => {}
                    Verdict::Leaves => serving.as_mut().graceful_shutdown(),
                    Verdict::Over(over) => return Poll::Ready(over),
                }
            }
        })
        .await;
        match ended {
            Over::Quietly(ending) => ending,
            Over::Excess(excess) => {
                // All work for it ends here, before anything else is said.
                drop(serving);
                Box::pin(farewell::close(wire.stream(), &socket, wire.goodbye(excess), true)).await;
                Ending { kind: excess.kind(), why: format!("HTTP/2: {excess}"), answer: None, is_fault: true }
            }
        }
    }
}

/// Forgets most of what is far too much, before the request waits for its turn: HPACK makes a kilobyte into a hundred
/// (CVE-2026-47774). What is left is still refused for its number. True when there was too much.
fn bound_fields(fields: &mut HeaderMap, most: usize) -> bool {
    if fields.len() <= most {
        return false;
    }
    let mut name = None;
    for (next, value) in std::mem::take(fields).into_iter().take(most + 1) {
        // Only the first one of a name comes with it.
        name = next.or(name);
        if let Some(name) = &name {
            fields.append(name.clone(), value);
        }
    }
    true
}

/// Makes a response ready for hyper.
fn respond(mut response: Response<ReplyBody>, pace: Rc<Pace>) -> Result<Response<Paced>, h2::Error> {
    if response.extensions().get::<Unanswered>().is_some() {
        // The stream alone: other streams of a hop are other clients'. Not a code that asks to try again.
        return Err(h2::Error::from(h2::Reason::CANCEL));
    }
    if let Some(id) = response.headers_mut().get_mut(X_REQUEST_ID) {
        // Not for the table of HPACK (RFC 7541 7.1.3): each is new, and would drive out what repeats.
        id.set_sensitive(true);
    }
    pace.gives_head();
    Ok(response.map(|body| Paced::new(body, pace)))
}

/// How a connection is over.
enum Over {
    /// As its ending says; there is nothing to add.
    Quietly(Ending),
    /// The client has too much of something, and is told so.
    Excess(Excess),
}

impl Over {
    fn of(ended: hyper::Result<()>) -> Self {
        Self::Quietly(ending(ended))
    }
}

/// The waits for a client, on one alarm.
struct Patience<'a> {
    activity: &'a Activity,
    bounds: Bounds,
    /// It was told that no more requests are taken, because the edge stops.
    is_told: bool,
    /// When it was told so, because it was idle.
    goodbye: Option<Instant>,
    /// While streams are open, when that was last seen: the alarm stands all the time, and needs no word from them.
    seen_open: Instant,
    alarm: Alarm,
}

/// What follows from the time that has passed.
enum Verdict {
    /// Nothing yet.
    Waits,
    /// The deadline has moved.
    Looks,
    /// It is idle, and is told that no more requests are taken.
    Leaves,
    Over(Over),
}

impl<'a> Patience<'a> {
    fn new(activity: &'a Activity, bounds: Bounds) -> Self {
        let now = Instant::now();
        Self { activity, bounds, is_told: false, goodbye: None, seen_open: now, alarm: Alarm::default() }
    }

    /// `owed`: when the rest of a frame is due that has begun.
    fn verdict(&mut self, cx: &mut Context<'_>, requests: u64, owed: Option<std::time::Instant>) -> Verdict {
        let (activity, bounds) = (self.activity, &self.bounds);
        let limit = match self.goodbye {
            // A request that crossed our GOAWAY: its answer may still be on the way to a slow client.
            Some(said) if activity.last.get() > said => bounds.keep_alive.max(GOODBYE),
            Some(_) => GOODBYE,
            None if requests == 0 => bounds.head,
            None => bounds.keep_alive,
        };
        let is_open = activity.open.get() > 0;
        let last = if is_open { self.seen_open } else { activity.last.get() };
        let idle = self.goodbye.map_or(last, |said| said.max(last)) + limit;
        let owed = owed.map(Instant::from_std);
        if !self.alarm.is_late(cx, owed.map_or(idle, |owed| owed.min(idle))) {
            return Verdict::Waits;
        }
        if owed.is_some_and(|owed| owed <= Instant::now()) {
            return Verdict::Over(Over::Excess(Excess::Late));
        }
        if is_open {
            self.seen_open = Instant::now();
            Verdict::Looks
        } else if self.goodbye.is_some() {
            Verdict::Over(Over::Quietly(Ending::quiet("idle", "no request for too long")))
        } else {
            self.goodbye = Some(Instant::now());
            Verdict::Leaves
        }
    }
}

fn ending(ended: hyper::Result<()>) -> Ending {
    let Err(error) = ended else { return Ending::quiet("closed", "the client closed it before a request") };
    if error.is_timeout() {
        return Ending::quiet("timeout", "the client did not answer a ping");
    }
    let cause = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
    if cause.is_none_or(h2::Error::is_io) {
        // Browsers open connections ahead of need and leave them: nothing was wrong with their HTTP.
        return Ending::quiet("closed", format!("the client closed it before a request: {error}"));
    }
    // A reset by the client is everyday; a broken protocol is worth a record.
    let is_fault = cause.is_some_and(|error| error.is_go_away() && error.is_library());
    // h2 has budgets of its own, in other units than ours.
    let is_flood = is_fault && cause.and_then(h2::Error::reason) == Some(h2::Reason::ENHANCE_YOUR_CALM);
    let why = cause.map_or(error.to_string(), ToString::to_string);
    Ending { kind: if is_flood { "flood" } else { "http" }, why: format!("HTTP/2: {why}"), answer: None, is_fault }
}

/// Open streams and tunnels, when the last one ended, and which requests may begin.
#[derive(Debug)]
struct Activity {
    open: Cell<usize>,
    last: Cell<Instant>,
    /// For requests that are worked on.
    ///
    /// h2 counts streams until they are reset. What counts for us and for endpoints is the work, which goes on until
    /// its task has noticed (CVE-2023-44487).
    places: Semaphore,
    starts: Starts,
}

impl Default for Activity {
    fn default() -> Self {
        let most = MAX_STREAMS as usize;
        Self {
            open: Cell::new(0),
            last: Cell::new(Instant::now()),
            places: Semaphore::new(most),
            starts: Starts::new(most),
        }
    }
}

impl Activity {
    fn leave(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        if self.open.get() == 0 {
            self.last.set(Instant::now());
        }
    }

    fn enter(&self) {
        self.open.set(self.open.get() + 1);
    }
}

/// HTTP/2 as the carrier of requests.
struct Http2 {
    activity: Rc<Activity>,
    socket: SocketHandle,
    pace: Rc<Pace>,
    /// Present on an extended CONNECT.
    switch: Cell<Option<OnUpgrade>>,
    has_place: Cell<bool>,
    start: Start,
}

impl Http2 {
    /// True when the request has a place and may begin.
    fn begins_at_once(&self) -> bool {
        if let Ok(permit) = self.activity.places.try_acquire() {
            permit.forget();
            self.has_place.set(true);
        }
        self.has_place.get() && self.start.is_free(&self.activity.starts)
    }

    /// Waits until it has and may. First for the next turn: a request that came together with its own reset ends there,
    /// before anything was done for it.
    async fn begins(&self) {
        yield_now().await;
        if !self.has_place.get()
            // Never closed.
            && let Ok(permit) = self.activity.places.acquire().await
        {
            permit.forget();
            self.has_place.set(true);
        }
        self.start.wait(&self.activity.starts).await;
    }
}

impl Carrier for Http2 {
    fn version(&self) -> Version {
        Version::HTTP_2
    }

    fn head_time(&self) -> Duration {
        // h2 hands out whole header blocks and does not say when the first byte came.
        Duration::ZERO
    }

    fn begun(&self) {
        self.activity.enter();
    }

    fn ended(&self) {
        self.activity.leave();
        self.start.ended(&self.activity.starts);
        if self.has_place.take() {
            self.activity.places.add_permits(1);
        }
    }

    fn body_fault(&self) -> Option<Refusal> {
        None
    }

    fn limit_send(&self, limit: Duration) {
        self.socket.limit_send(limit);
        self.pace.limit.set(limit);
    }

    fn tunnel(&self) -> ClientSide {
        let (activity, switch) = (Rc::clone(&self.activity), self.switch.take());
        Box::pin(async move {
            let io = TokioIo::new(switch?.await.ok()?);
            activity.enter();
            let io: Box<dyn Duplex> = Box::new(OpenStream { io, activity });
            Some(End { io, early: Bytes::new() })
        })
    }
}

/// A tunnel's stream: while it is open, the connection is not idle.
struct OpenStream {
    io: TokioIo<Upgraded>,
    activity: Rc<Activity>,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.activity.leave();
    }
}

impl AsyncRead for OpenStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for OpenStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
