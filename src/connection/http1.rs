//! HTTP/1.1 (RFC 9112) on one connection: the head gate below, hyper above it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::head_gate::{self, Deadlines, Fault, GateHandle, HeadGate, Limits, RequestId};
use super::socket::SocketHandle;
use super::{Answered, Bounds, Ending};
use crate::drain::Phase;
use crate::forward::tunnel::{Duplex, End};
use crate::policy::headers;
use crate::refusal::{self, Refusal};
use crate::request::{self, Carrier, ClientSide, Connection, Parts};

/// Our choice: bulk moves in large pieces, and a slow reader holds no more than this.
const READ_BUFFER: usize = 64 << 10;

/// Serves one connection to its end.
pub async fn serve<S>(
    parts: Rc<Parts>,
    connection: Rc<Connection>,
    stream: S,
    bounds: Bounds,
    accepted: Instant,
    socket: SocketHandle,
) -> Ending
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let drain = parts.drain.clone();
    let deadlines =
        Deadlines { head: bounds.head, keep_alive: bounds.keep_alive, first: (accepted + bounds.head).into() };
    let limits = Limits { bytes: bounds.head_bytes, fields: bounds.head_fields };
    let (gate, handle) = HeadGate::new(stream, deadlines, limits, raw_answer);
    let switch = Rc::new(Switch::default());
    let carrier: Rc<dyn Carrier> =
        Rc::new(Http1 { handle: handle.clone(), exchange: RefCell::default(), socket, switch: Rc::downgrade(&switch) });
    let is_upgrade_open = Rc::new(Cell::new(false));
    let asked = Rc::clone(&is_upgrade_open);
    let service = service_fn(move |request: Request<Incoming>| {
        if request.extensions().get::<OnUpgrade>().is_some() {
            asked.set(true);
        }
        let served = request::serve(Rc::clone(&parts), Rc::clone(&connection), Rc::clone(&carrier), request);
        async move { Ok::<_, Infallible>(served.await) }
    });
    let mut builder = http1::Builder::new();
    // The gate holds the deadlines of heads; hyper's own would be one for head and keep-alive together.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_header_size(bounds.head_bytes.max(MIN_HEAD_BUFFER))
        .max_buf_size(READ_BUFFER.max(bounds.head_bytes));
    if bounds.head_fields > DEFAULT_FIELDS {
        builder.max_headers(bounds.head_fields);
    }
    let mut serving = builder.serve_connection(TokioIo::new(gate), service);
    let mut draining = pin!(drain.reached(Phase::Draining));
    let (mut is_draining, mut is_told) = (false, false);
    let mut patience: Option<Pin<Box<Sleep>>> = None;
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut serving).poll(cx) {
                // Once a request has asked for an upgrade, granted or not, hyper ends without closing the
                // stream. Asked again, it closes: with close_notify, and with the gate's patience.
                if ended.is_ok() && is_upgrade_open.take() && !handle.is_upgraded() {
                    continue;
                }
                return Poll::Ready(ended);
            }
            is_draining = is_draining || draining.as_mut().poll(cx).is_ready();
            if is_told || !is_draining {
                return Poll::Pending;
            }
            // hyper closes a connection on which it has read nothing. This one was accepted, so its
            // first request may be on the way: it is told once that has come, or after a moment.
            if handle.bytes_read() == 0 {
                ready!(patience.get_or_insert_with(|| Box::pin(sleep(FIRST_REQUEST))).as_mut().poll(cx));
            }
            is_told = true;
            Pin::new(&mut serving).graceful_shutdown();
        }
    })
    .await;
    if ended.is_ok()
        && let Some(tunnel) = switch.take()
    {
        let parts = serving.into_parts();
        // A tunnel that was given up meanwhile closes the stream.
        let _ = tunnel.send(client_end(parts.io.into_inner(), parts.read_buf));
    }
    ending(ended, &handle)
}

/// How long a drain waits for the first bytes of an open connection. As `server` does, our choice:
/// longer than an honest round trip, shorter than a browser's silent preconnect.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// hyper keeps this many fields without an allocation.
const DEFAULT_FIELDS: usize = 100;

/// hyper refuses a smaller buffer.
const MIN_HEAD_BUFFER: usize = 8 << 10;

fn ending(ended: hyper::Result<()>, handle: &GateHandle) -> Ending {
    if let Some(fault) = handle.fault() {
        let kind = match fault {
            Fault::HeadTimeout | Fault::Silent => "timeout",
            Fault::Idle => "idle",
            _ => "http",
        };
        let answered = |id: &str| Answered { id: id.into(), status: fault.status(), code: fault.code() };
        let answer = handle.answer_id().map(answered);
        return Ending { kind, why: fault.to_string(), answer, is_fault: kind == "http" };
    }
    match ended {
        Ok(()) => Ending::quiet("closed", "the client closed it before a request"),
        Err(error) => Ending::quiet("closed", error.to_string()),
    }
}

/// The answer to a head that never became a request, under an ID that the record names too.
fn raw_answer(fault: Fault) -> (RequestId, Bytes) {
    let id = headers::request_id(&HeaderMap::new(), false);
    let id = id.to_str().unwrap_or_default();
    (id.into(), refusal::raw_answer(fault.status(), fault.code(), fault.words(), id))
}

/// The client's side of a tunnel. hyper's and the gate's buffers are dropped; what they had read goes first.
fn client_end<S>(gate: HeadGate<S>, read: Bytes) -> End<Box<dyn Duplex>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream, held) = gate.into_parts();
    // Copied, because a view of hyper's buffer, even an empty one, keeps all of it in memory.
    let early = Bytes::from_iter(read.into_iter().chain(held));
    End { io: Box::new(stream), early }
}

/// Where the stream goes when the connection becomes a tunnel.
type Switch = RefCell<Option<oneshot::Sender<End<Box<dyn Duplex>>>>>;

/// HTTP/1.1 as the carrier of requests: one at a time.
struct Http1 {
    handle: GateHandle,
    /// While it is there, the gate holds the next message back.
    exchange: RefCell<Option<head_gate::Exchange>>,
    socket: SocketHandle,
    /// Owned by the connection, so that a tunnel which waits hears of its end.
    switch: Weak<Switch>,
}

impl Carrier for Http1 {
    fn version(&self) -> Version {
        Version::HTTP_11
    }

    fn head_time(&self) -> Duration {
        self.handle.head().took
    }

    fn begun(&self) {
        *self.exchange.borrow_mut() = Some(self.handle.exchange());
    }

    fn ended(&self) {
        *self.exchange.borrow_mut() = None;
    }

    fn body_fault(&self) -> Option<Refusal> {
        let fault = self.handle.body_fault()?;
        Some(Refusal::Malformed { status: fault.status(), code: fault.code(), why: fault.words() })
    }

    fn limit_send(&self, limit: Duration) {
        self.socket.limit_send(limit);
    }

    fn tunnel(&self, _: OnUpgrade) -> ClientSide {
        self.handle.upgraded();
        let (sender, switched) = oneshot::channel();
        if let Some(switch) = self.switch.upgrade() {
            *switch.borrow_mut() = Some(sender);
        }
        Box::pin(async { switched.await.ok() })
    }
}
