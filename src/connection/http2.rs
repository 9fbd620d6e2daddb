//! HTTP/2 (RFC 9113) on one connection, with extended CONNECT for WebSockets (RFC 8441).
//!
//! hyper and h2 own the protocol; here are its limits, the two that they lack (an idle connection, a stream
//! that its client does not read), and the drain.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::socket::SocketHandle;
use super::{Bounds, Ending};
use crate::alarm::Alarm;
use crate::body::{BodyError, Inbound};
use crate::drain::Phase;
use crate::forward::tunnel::{Duplex, End};
use crate::refusal::{Refusal, Unanswered, X_REQUEST_ID};
use crate::request::reply::ReplyBody;
use crate::request::{self, Carrier, ClientSide, Connection, Parts};
use crate::site::policy::Timeouts;

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
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let drain = parts.drain.clone();
    let activity = Rc::new(Activity { open: Cell::new(0), last: Cell::new(Instant::now()) });
    let streams = Streams::default();
    let (for_requests, of_requests, opened) = (Rc::clone(&connection), Rc::clone(&activity), streams.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let pace = Rc::new(Pace::new());
        opened.0.set(Some(Rc::clone(&pace)));
        let carrier = Http2 {
            activity: Rc::clone(&of_requests),
            socket: socket.clone(),
            pace: Rc::clone(&pace),
            switch: Cell::new(request.extensions_mut().remove::<OnUpgrade>()),
        };
        let request = request.map(|body| {
            let body = (!body.is_end_stream()).then_some(body)?;
            Some(Box::pin(body.map_err(|error| BodyError::Broken(error.into()))) as Inbound)
        });
        // Boxed: hyper moves it about, from one state of the stream to the next.
        let served = Box::pin(request::serve(Rc::clone(&parts), Rc::clone(&for_requests), Rc::new(carrier), request));
        async move {
            let mut response = served.await;
            if response.extensions().get::<Unanswered>().is_some() {
                // The stream alone: other streams of a hop are other clients'. Not a code that asks to try again.
                return Err(h2::Error::from(h2::Reason::CANCEL));
            }
            if let Some(id) = response.headers_mut().get_mut(X_REQUEST_ID) {
                // Not for the table of HPACK (RFC 7541 7.1.3): each is new, and would drive out what repeats.
                id.set_sensitive(true);
            }
            Ok(response.map(|body| Paced { body, piece: Bytes::new(), pace }))
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
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut serving = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
    async move {
        let mut draining = pin!(drain.reached(Phase::Draining));
        let mut is_told = false;
        let mut goodbye: Option<Instant> = None;
        // While streams are open, when that was last seen: the alarm stands all the time, and needs no word from them.
        let mut seen_open = Instant::now();
        let mut alarm = Alarm::default();
        poll_fn(|cx| {
            loop {
                // What is still to be written goes before any verdict.
                if let Poll::Ready(ended) = serving.as_mut().poll(cx) {
                    return Poll::Ready(ending(ended));
                }
                if !is_told && draining.as_mut().poll(cx).is_ready() {
                    is_told = true;
                    serving.as_mut().graceful_shutdown();
                    continue;
                }
                let limit = match goodbye {
                    // A request that crossed our GOAWAY: its answer may still be on the way to a slow client.
                    Some(said) if activity.last.get() > said => bounds.keep_alive.max(GOODBYE),
                    Some(_) => GOODBYE,
                    None if connection.requests.get() == 0 => bounds.head,
                    None => bounds.keep_alive,
                };
                let is_open = activity.open.get() > 0;
                let last = if is_open { seen_open } else { activity.last.get() };
                if !alarm.is_late(cx, goodbye.map_or(last, |said| said.max(last)) + limit) {
                    return Poll::Pending;
                }
                if is_open {
                    seen_open = Instant::now();
                } else if goodbye.is_some() {
                    return Poll::Ready(Ending::quiet("idle", "no request for too long"));
                } else {
                    goodbye = Some(Instant::now());
                    serving.as_mut().graceful_shutdown();
                }
            }
        })
        .await
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
    let why = cause.map_or(error.to_string(), ToString::to_string);
    Ending { kind: "http", why: format!("HTTP/2: {why}"), answer: None, is_fault }
}

/// Open streams and tunnels, and when the last one ended.
#[derive(Debug)]
struct Activity {
    open: Cell<usize>,
    last: Cell<Instant>,
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

/// Whether the client takes what one stream has for it.
///
/// RFC 9113 5.2: the window is the client's to open. A stream whose window stays closed costs its client nothing,
/// and us a response, a connection to an endpoint and the work behind it; the socket's own patience never
/// notices, because the other streams go on.
#[derive(Debug)]
struct Pace {
    limit: Cell<Duration>,
    piece: Cell<Piece>,
}

/// The last piece that was handed to a stream.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// It was taken, or there is none.
    Taken,
    /// It may have to wait. The clock is only read if it does.
    Fresh,
    /// It waits to be taken.
    Waits(Instant),
}

impl Pace {
    fn new() -> Self {
        Self { limit: Cell::new(Timeouts::default().send), piece: Cell::new(Piece::Taken) }
    }

    /// True when a piece has waited too long; else the task is woken then.
    fn is_late(&self, cx: &mut Context<'_>, alarm: &mut Alarm) -> bool {
        let since = match self.piece.get() {
            Piece::Taken => return false,
            Piece::Fresh => Instant::now(),
            Piece::Waits(since) => since,
        };
        self.piece.set(Piece::Waits(since));
        alarm.is_late(cx, since + self.limit.get())
    }
}

/// A response body, in pieces that a slow client can take in time.
struct Paced {
    body: ReplyBody,
    /// What is left of a larger piece.
    piece: Bytes,
    pace: Rc<Pace>,
}

/// The largest piece: a frame of HTTP/2 (RFC 9113 6.5.2), so that within the limit some hundred bytes a second suffice.
const PIECE: usize = 16 << 10;

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // hyper asks for more when the piece before was taken.
        self.pace.piece.set(Piece::Taken);
        if self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.piece = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        self.pace.piece.set(Piece::Fresh);
        let length = self.piece.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.piece.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let left = self.piece.len() as u64;
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + left),
            None => hint.set_lower(hint.lower() + left),
        }
        hint
    }
}

/// Runs streams on the worker's own thread, and ends each whose client takes nothing: hyper resets it then.
#[derive(Clone, Default)]
struct Streams(
    /// The pace of the stream that the service was just called for: hyper runs it next.
    Rc<Cell<Option<Rc<Pace>>>>,
);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        let Some(pace) = self.0.take() else {
            // The writing half of a tunnel, which has limits of its own.
            tokio::task::spawn_local(future);
            return;
        };
        tokio::task::spawn_local(PacedStream { stream: future, pace, alarm: Alarm::default() });
    }
}

pin_project! {
    /// The work on a stream, as long as its client keeps pace.
    struct PacedStream<F> {
        #[pin]
        stream: F,
        pace: Rc<Pace>,
        alarm: Alarm,
    }
}

impl<F: Future> Future for PacedStream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() || this.pace.is_late(cx, this.alarm) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
