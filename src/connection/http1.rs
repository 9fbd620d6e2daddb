//! HTTP/1.1 (RFC 9112) on one connection: head → request → response → the next head.
//!
//! Heads come from `framing`, which lets only unambiguous messages through, one at a time: the next one waits
//! until the exchange has ended. What is no request is answered here. Deadlines bound each wait for the
//! client, and one that goes away is noticed at once, because the work for it must stop.

mod line;
mod outbound;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::socket::SocketHandle;
use super::{Answered, Bounds, Ending, farewell};
use crate::body::{BodyError, Inbound};
use crate::drain::{Drain, Phase};
use crate::forward::tunnel::{Duplex, End};
use crate::framing::sending::{SendError, Sending};
use crate::framing::{Body, Fault, Head, Limits, to_request};
use crate::policy::headers;
use crate::refusal::{self, Refusal, Unanswered};
use crate::request::{self, Carrier, ClientSide, Connection, Parts};
use line::{Line, Next, RequestBody};

/// Serves one connection to its end.
// No async function: it would keep its arguments beside what it makes of them.
pub fn serve<S>(
    parts: Rc<Parts>,
    connection: Rc<Connection>,
    stream: S,
    bounds: Bounds,
    accepted: std::time::Instant,
    socket: SocketHandle,
) -> impl Future<Output = Ending>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let drain = parts.drain.clone();
    let terms = Terms {
        limits: Limits { bytes: bounds.head_bytes, fields: bounds.head_fields },
        head: bounds.head,
        keep_alive: bounds.keep_alive,
        first: (accepted + bounds.head).into(),
        answer: raw_answer,
        socket: socket.clone(),
    };
    let talk = Rc::new(Talk::default());
    let carrier: Rc<dyn Carrier> = Rc::new(Http1 { talk: Rc::clone(&talk), socket });
    let work = move |request| request::serve(Rc::clone(&parts), Rc::clone(&connection), Rc::clone(&carrier), request);
    let conversation = converse(Rc::new(Line::new(stream, terms, Rc::clone(&talk))), drain, work);
    async move {
        match conversation.await {
            Over::Tunnel(stream, early) => {
                if let Some(tunnel) = talk.tunnel.take() {
                    // A tunnel that was given up meanwhile closes the stream.
                    let _ = tunnel.send(End { io: Box::new(stream), early });
                }
                Ending::quiet("closed", "it became a tunnel")
            }
            Over::Gone(why) => Ending::quiet("closed", why),
            Over::Fault(fault, id) => {
                let kind = match fault {
                    Fault::HeadTimeout | Fault::Silent => "timeout",
                    Fault::Idle => "idle",
                    _ => "http",
                };
                let answer = id.map(|id| Answered { id, status: fault.status(), code: fault.code() });
                Ending { kind, why: fault.to_string(), answer, is_fault: kind == "http" }
            }
        }
    }
}

/// Under which terms a connection is served.
struct Terms {
    limits: Limits,
    /// From the first byte of a head to its last, whatever trickles in between.
    head: Duration,
    /// From the end of an exchange to the first byte of the next head.
    keep_alive: Duration,
    /// When the first byte of the first head must be there.
    first: Instant,
    answer: Answer,
    /// The accepted socket.
    socket: SocketHandle,
}

/// Makes the complete response to a bad head, and says the request ID that it names.
type Answer = fn(Fault) -> (Box<str>, Bytes);

/// What the conversation and the request tell each other.
#[derive(Default)]
struct Talk {
    /// From the first byte of the present head to its last.
    head_took: Cell<Duration>,
    /// What is wrong with the framing of the present body.
    body_fault: Cell<Option<Fault>>,
    /// Where the stream goes when the present request becomes a tunnel.
    tunnel: Cell<Option<Switch>>,
}

/// Takes the stream of a connection that became a tunnel.
type Switch = oneshot::Sender<End<Box<dyn Duplex>>>;

/// How a conversation ended.
enum Over<S> {
    /// What follows is no HTTP: the stream, and what came early on it.
    Tunnel(S, Bytes),
    /// One side closed it.
    Gone(&'static str),
    /// The client broke a rule or a deadline; with the ID in our answer, if it got one.
    Fault(Fault, Option<Box<str>>),
}

/// Serves one request after another.
async fn converse<S, W, B>(
    line: Rc<Line<S>>,
    drain: Drain,
    mut work: impl FnMut(Request<Option<Inbound>>) -> W,
) -> Over<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    W: Future<Output = Response<B>>,
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    // Once for the connection: to begin to wait takes a lock that all workers share.
    let mut draining = pin!(drain.reached(Phase::Draining));
    loop {
        let (head, text) = match next(&line, &drain, draining.as_mut()).await {
            Some(Next::Head(head, text)) => (head, text),
            Some(Next::Fault(fault)) => return refuse(line, fault).await,
            Some(Next::Closed) | None => {
                Box::pin(close(&line, Bytes::new(), false)).await;
                return Over::Gone("the client closed it before a request");
            }
        };
        let request = match to_request(&head, &text) {
            Ok(request) => request,
            Err(fault) => return refuse(line, fault).await,
        };
        drop(text);
        let body = (head.body != Body::None).then(|| Box::pin(RequestBody::new(&line, &head)) as Inbound);
        // Boxed, so that an idle connection has no room for a request.
        let then = Box::pin(exchange(&line, head, &drain, work(request.map(|()| body)))).await;
        match then {
            Then::Next => line.next_message(),
            Then::Tunnel => {
                return match Rc::into_inner(line).map(Line::into_parts) {
                    Some((stream, early)) => Over::Tunnel(stream, early),
                    None => Over::Gone("somebody still reads from the stream of a tunnel"),
                };
            }
            Then::Close { lingers } => {
                Box::pin(close(&line, Bytes::new(), lingers)).await;
                return Over::Gone("it was closed after a response");
            }
            Then::Gone(why) => return Over::Gone(why),
        }
    }
}

/// What follows an exchange.
enum Then {
    /// The next message.
    Next,
    /// Nothing of HTTP any more.
    Tunnel,
    /// The end, after a while of patience with a client that may still be sending.
    Close { lingers: bool },
    /// Nothing: the client is not there any more, or must not take what it got for whole.
    Gone(&'static str),
}

/// One request and its response.
async fn exchange<S, B>(line: &Line<S>, head: Head, drain: &Drain, work: impl Future<Output = Response<B>>) -> Then
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    let response = {
        let mut work = pin!(work);
        let answered = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => line.poll_gone(cx).map(|()| None),
        });
        let Some(response) = answered.await else { return Then::Gone("the client went away") };
        response
    };
    if response.extensions().get::<Unanswered>().is_some() {
        return Then::Gone("it was closed without an answer");
    }
    let is_tunnel = head.is_upgrade && response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // Of responses only ours say so: an endpoint's `Connection` is about its own connection, and was taken out.
    let is_refused = response.headers().get(CONNECTION).is_some_and(|option| option == "close");
    let closes = is_refused || head.is_old || head.says_close || drain.phase() >= Phase::Draining || line.leaves_body();
    let (parts, body) = response.into_parts();
    let (text, framing) = outbound::head(&parts, &body, &head, closes, line.take_interim());
    drop(parts);
    let mut sending = Sending::new(text, body, framing);
    let sent = poll_fn(|cx| match sending.poll_send(cx, line.stream()) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
        Poll::Ready(Err(SendError::Body(_))) => Poll::Ready(Err("a response broke off")),
        Poll::Ready(Err(SendError::Wire(_))) => Poll::Ready(Err("the client went away")),
        // A client that closed its side while the last bytes are on their way still gets them.
        Poll::Pending if sending.is_body_read() => Poll::Pending,
        Poll::Pending => line.poll_gone(cx).map(|()| Err("the client went away")),
    });
    if let Err(why) = sent.await {
        return Then::Gone(why);
    }
    // With the response ends the exchange, and its record is written.
    drop(sending);
    if is_tunnel {
        return Then::Tunnel;
    }
    let is_whole = poll_fn(|cx| line.poll_body_over(cx)).await;
    if closes || !is_whole { Then::Close { lingers: is_refused || !is_whole } } else { Then::Next }
}

/// Waits for the next head. `None` when the edge stops before one has begun.
async fn next<S>(line: &Line<S>, drain: &Drain, mut draining: Pin<&mut impl Future<Output = ()>>) -> Option<Next>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut patience: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(next) = line.poll_head(cx) {
            return Poll::Ready(Some(next));
        }
        let is_draining = drain.phase() >= Phase::Draining || draining.as_mut().poll(cx).is_ready();
        if !is_draining || line.is_in_head() {
            return Poll::Pending;
        }
        // This connection was accepted, so its first request may be on the way.
        if !line.has_read() {
            ready!(patience.get_or_insert_with(|| Box::pin(sleep(FIRST_REQUEST))).as_mut().poll(cx));
        }
        Poll::Ready(None)
    })
    .await
}

/// How long a drain waits for the first bytes of an open connection. As `server` does, our choice:
/// longer than an honest round trip, shorter than a browser's silent preconnect.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Ends a connection whose next message is no request, with the answer that it gets.
async fn refuse<S>(line: Rc<Line<S>>, fault: Fault) -> Over<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (id, answer) = if fault.is_answered() {
        let (id, answer) = line.answer(fault);
        (Some(id), answer)
    } else {
        (None, Bytes::new())
    };
    let lingers = id.is_some();
    Box::pin(close(&line, answer, lingers)).await;
    Over::Fault(fault, id)
}

/// Closes a connection, with these last words.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(line: &Line<S>, answer: Bytes, lingers: bool) {
    farewell::close(line.stream(), line.socket(), answer, lingers && !line.is_eof()).await;
}

/// The answer to a head that never became a request, under an ID that the record names too.
fn raw_answer(fault: Fault) -> (Box<str>, Bytes) {
    let id = headers::request_id(&HeaderMap::new(), false);
    let id = id.to_str().unwrap_or_default();
    (id.into(), refusal::raw_answer(fault.status(), fault.code(), fault.words(), id))
}

/// HTTP/1.1 as the carrier of requests: one at a time.
struct Http1 {
    talk: Rc<Talk>,
    socket: SocketHandle,
}

impl Carrier for Http1 {
    fn version(&self) -> Version {
        Version::HTTP_11
    }

    fn head_time(&self) -> Duration {
        self.talk.head_took.get()
    }

    fn begun(&self) {}

    fn ended(&self) {}

    fn body_fault(&self) -> Option<Refusal> {
        let fault = self.talk.body_fault.get()?;
        Some(Refusal::Malformed { status: fault.status(), code: fault.code(), why: fault.words() })
    }

    fn limit_send(&self, limit: Duration) {
        self.socket.limit_send(limit);
    }

    fn tunnel(&self) -> ClientSide {
        let (sender, switched) = oneshot::channel();
        self.talk.tunnel.set(Some(sender));
        Box::pin(async { switched.await.ok() })
    }
}

#[cfg(test)]
mod tests;
