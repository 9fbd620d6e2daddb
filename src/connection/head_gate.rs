//! HTTP/1.1 before hyper: a stream wrapper that lets only unambiguous messages through.
//!
//! hyper parses, but it repairs and hides (RFC 9112 2.2, 6.3) and has no deadline of its own for a
//! head. The gate reads first, follows the framing (`framing`), and hands on the bytes of one message
//! at a time; the next one waits until the exchange has ended. It owns the deadlines of head and
//! keep-alive, answers a bad head itself, and notices at once when the client goes away. It knows
//! nothing of sites or requests.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::alarm::Alarm;
pub use crate::framing::{Fault, Limits};
use crate::framing::{Follower, Step};

/// The absolute limits of waiting for a client.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the first byte of a head to its last, whatever trickles in between.
    pub head: Duration,
    /// From the end of an exchange to the first byte of the next head.
    pub keep_alive: Duration,
    /// When the first byte of the first head must be there.
    pub first: Instant,
}

/// Makes the complete HTTP/1.1 response to a bad head: status line, fields with `Connection: close`, body.
pub type Answer = fn(Fault) -> (RequestId, Bytes);

/// The ID that an answer of the gate names, for the record.
pub type RequestId = Box<str>;

/// Stands between the stream of a connection and hyper's HTTP/1 server.
///
/// The server on top must run without a header timeout of its own, must take heads of
/// `Limits::bytes` and `Limits::fields`, must not aggregate flushes (`pipeline_flush`), and its `max_buf_size`
/// bounds what one read may bring.
pub struct HeadGate<S> {
    stream: S,
    follower: Follower,
    /// Bytes read and not handed on. Empty, without memory, on all but odd occasions: a head or trailer
    /// section that came in pieces, and what a client sent ahead.
    held: BytesMut,
    /// So many of the held bytes, from the first, may be handed on.
    released: usize,
    fault: Option<Fault>,
    is_eof: bool,
    /// The response was written and flushed: the next message may pass.
    is_settled: bool,
    /// hyper's last read is waiting to be woken.
    is_read_waiting: bool,
    /// When the first byte of the present head arrived.
    began: Option<Instant>,
    deadlines: Deadlines,
    deadline: Instant,
    alarm: Alarm,
    closing: Closing,
    answer: Answer,
    state: Arc<State>,
}

/// The steps of a close.
enum Closing {
    Open,
    Answer(Bytes),
    Flush,
    HalfClose,
    Linger(usize),
    Closed,
}

/// Bytes that a client may send ahead of its turn; then it is not read any more until its turn
/// comes. Our choice: many pipelined requests, and far more than the first frames of a WebSocket.
const MAX_HELD: usize = 64 << 10;
/// A client that takes no bytes may delay the close for so long. Then we read on for as long again,
/// and discard, so that the client gets the answer and not a reset (RFC 9112 9.6). Our choice: some
/// round trips.
const LINGER: Duration = Duration::from_secs(2);
/// At most so many bytes are discarded; a client that sends more gets the reset.
const LINGER_BYTES: usize = 1 << 20;

/// What gate and service tell each other. All on one thread; atomics because hyper's upgrades
/// need a stream that is `Send`.
struct State {
    is_open: AtomicBool,
    is_upgraded: AtomicBool,
    fault: OnceLock<Fault>,
    body_fault: OnceLock<Fault>,
    answer_id: OnceLock<RequestId>,
    created: Instant,
    heads: AtomicU64,
    head_bytes: AtomicU64,
    head_began: AtomicU64,
    head_ended: AtomicU64,
    body_bytes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// The service's end of the gate.
#[derive(Clone)]
pub struct GateHandle(Arc<State>);

/// Held while a request is in the service or its response body is not yet dropped. When it is
/// dropped and hyper has flushed, the gate lets the next message pass.
///
/// It belongs into the response body: dropped earlier, a fault of the next message could cut the response.
#[must_use]
pub struct Exchange(Arc<State>);

/// What the record says about the present head.
#[derive(Clone, Copy, Debug)]
pub struct HeadFacts {
    /// Its length in bytes.
    pub bytes: u64,
    /// When its first byte arrived.
    pub began: Instant,
    /// From its first byte to its last.
    pub took: Duration,
}

impl GateHandle {
    /// Marks the exchange that the service was just called for. Without it the next message never passes.
    pub fn exchange(&self) -> Exchange {
        Exchange(Arc::clone(&self.0))
    }

    /// Says that the present request became a tunnel; from now on the gate is transparent. Called
    /// after the upstream's 101 was verified and before ours is returned. Without effect unless the
    /// head was a GET with `Upgrade: websocket`.
    pub fn upgraded(&self) {
        self.0.is_upgraded.store(true, Relaxed);
    }

    /// Whether the present request became a tunnel.
    pub fn is_upgraded(&self) -> bool {
        self.0.is_upgraded.load(Relaxed)
    }

    /// Why the gate ended the connection.
    pub fn fault(&self) -> Option<Fault> {
        self.0.fault.get().copied()
    }

    /// The request ID in the gate's own answer, if it gave one.
    pub fn answer_id(&self) -> Option<&str> {
        self.0.answer_id.get().map(|id| &**id)
    }

    /// What is wrong with the framing of the present body. The body then ends with an error whose
    /// innermost source is the fault; the service may still answer.
    pub fn body_fault(&self) -> Option<Fault> {
        self.0.body_fault.get().copied()
    }

    /// How many heads were handed on.
    pub fn heads(&self) -> u64 {
        self.0.heads.load(Relaxed)
    }

    /// The head handed on last.
    pub fn head(&self) -> HeadFacts {
        let began = self.0.head_began.load(Relaxed);
        let took = self.0.head_ended.load(Relaxed).saturating_sub(began);
        HeadFacts {
            bytes: self.0.head_bytes.load(Relaxed),
            began: self.0.created + Duration::from_micros(began),
            took: Duration::from_micros(took),
        }
    }

    /// Bytes of the present body that were handed on, with their chunk framing.
    pub fn body_bytes(&self) -> u64 {
        self.0.body_bytes.load(Relaxed)
    }

    /// Bytes read from the connection.
    pub fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Relaxed)
    }

    /// Bytes written to the connection.
    pub fn bytes_written(&self) -> u64 {
        self.0.bytes_written.load(Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.is_open.store(false, Relaxed);
    }
}

impl State {
    fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// Microseconds since the connection began.
    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.created).as_micros()).unwrap_or(u64::MAX)
    }
}

/// Adds to a count that only this thread writes.
fn add(count: &AtomicU64, more: usize) {
    count.store(count.load(Relaxed).wrapping_add(more as u64), Relaxed);
}

/// The instant so much later; a limit beyond what an instant can hold is no limit.
fn after(now: Instant, limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(86_400 * 365);
    now + limit.min(FAR)
}

impl<S> HeadGate<S> {
    /// Wraps a stream at the first byte of a first head.
    pub fn new(stream: S, deadlines: Deadlines, limits: Limits, answer: Answer) -> (Self, GateHandle) {
        let state = Arc::new(State {
            is_open: AtomicBool::new(false),
            is_upgraded: AtomicBool::new(false),
            fault: OnceLock::new(),
            body_fault: OnceLock::new(),
            answer_id: OnceLock::new(),
            created: Instant::now(),
            heads: AtomicU64::new(0),
            head_bytes: AtomicU64::new(0),
            head_began: AtomicU64::new(0),
            head_ended: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        });
        let gate = Self {
            stream,
            follower: Follower::new(limits),
            held: BytesMut::new(),
            released: 0,
            fault: None,
            is_eof: false,
            is_settled: true,
            is_read_waiting: false,
            began: None,
            deadlines,
            deadline: deadlines.first,
            alarm: Alarm::default(),
            closing: Closing::Open,
            answer,
            state: Arc::clone(&state),
        };
        (gate, GateHandle(state))
    }

    /// The stream, and the bytes read from it that were not handed on. After an upgrade they follow
    /// hyper's own `read_buf`.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.held.freeze())
    }

    /// The stream below.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// True when the present head asked for a tunnel and the service made one.
    fn is_tunnel(&self) -> bool {
        self.state.is_upgraded.load(Relaxed) && self.follower.head().is_some_and(|head| head.is_upgrade)
    }

    /// Hands on what was released from the held bytes.
    fn deliver(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.released.min(buf.remaining());
        buf.put_slice(&self.held[..length]);
        self.held.advance(length);
        self.released -= length;
        if self.held.is_empty() {
            self.held = BytesMut::new(); // an idle connection holds no memory here
        }
    }

    /// Begins to wait for the next head, or to read it when it was sent ahead.
    fn begin_next(&mut self) {
        self.follower.next_message();
        self.began = None;
        self.deadline = after(Instant::now(), self.deadlines.keep_alive);
        if self.is_eof {
            self.held = BytesMut::new();
        } else if !self.held.is_empty() {
            self.follow_held();
        }
    }

    /// Follows the framing of the held bytes.
    fn follow_held(&mut self) {
        self.begin_head();
        let is_in_head = self.follower.head().is_none();
        let step = self.follower.feed(&self.held);
        self.released = step.released;
        self.take_note(step, is_in_head);
        if step.fault.is_some() {
            self.held.truncate(step.released);
        }
    }

    /// Starts the clock of a head with its first byte. A head sent ahead starts when its turn comes,
    /// because until then we did not read all that was there.
    fn begin_head(&mut self) {
        if self.began.is_none() {
            let now = Instant::now();
            self.began = Some(now);
            self.deadline = after(now, self.deadlines.head);
        }
    }

    /// Writes down what a step found that began in a head or in a body.
    fn take_note(&mut self, step: Step, was_in_head: bool) {
        let state = &self.state;
        if let Some(head) = self.follower.head() {
            if was_in_head {
                self.is_settled = false;
                state.is_open.store(true, Relaxed);
                state.head_bytes.store(head.bytes as u64, Relaxed);
                add(&state.heads, 1);
                let now = Instant::now();
                state.head_began.store(state.micros(self.began.unwrap_or(now)), Relaxed);
                state.head_ended.store(state.micros(now), Relaxed);
            }
            state.body_bytes.store(self.follower.body_bytes(), Relaxed);
            if let Some(fault) = step.fault {
                state.body_fault.get_or_init(|| fault);
            }
        }
        self.fault = step.fault;
    }

    /// True when the deadline has passed; else the task is woken then.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.alarm.is_late(cx, self.deadline)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HeadGate<S> {
    /// Reads until something may be handed on.
    fn poll_next(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.is_tunnel() {
                self.released = self.held.len();
            }
            if self.released > 0 {
                self.deliver(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = self.fault {
                self.state.fault.get_or_init(|| fault);
                if self.follower.head().is_some() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
                }
                // We answer and close before hyper hears of the end, because hyper drops a stream
                // without closing it when an earlier request on it had asked for an upgrade.
                return self.poll_close(cx).map(|_| Ok(()));
            }
            if self.follower.is_complete() && self.is_settled {
                self.begin_next();
                continue;
            }
            let is_waiting = self.follower.is_complete() && !self.is_tunnel();
            // A client that goes away while the service works is told at once, even when it had sent
            // more: its work must stop. One that went away while the last bytes are written is
            // told afterwards, because hyper would throw them away.
            if self.is_eof && (!is_waiting || self.state.is_open()) {
                return Poll::Ready(Ok(()));
            }
            if is_waiting && (self.is_eof || self.held.len() >= MAX_HELD) {
                return Poll::Pending; // woken by `settle`
            }
            let before = buf.filled().len();
            // Straight into hyper's buffer: what may not be handed on is taken back below.
            let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buf) else {
                if self.follower.head().is_none() && self.is_late(cx) {
                    self.fault = Some(match (self.began, self.heads()) {
                        (Some(_), _) => Fault::HeadTimeout,
                        (None, 0) => Fault::Silent,
                        (None, _) => Fault::Idle,
                    });
                    self.held = BytesMut::new();
                    continue;
                }
                return Poll::Pending;
            };
            result?;
            let length = buf.filled().len() - before;
            add(&self.state.bytes_read, length);
            if length == 0 {
                self.is_eof = true;
                if self.follower.head().is_none() && !self.held.is_empty() {
                    self.fault = Some(Fault::Incomplete);
                    self.held = BytesMut::new();
                }
                continue;
            }
            if self.is_tunnel() {
                return Poll::Ready(Ok(()));
            }
            if is_waiting || !self.held.is_empty() {
                self.held.extend_from_slice(&buf.filled()[before..]);
                buf.set_filled(before);
                if !is_waiting {
                    self.follow_held();
                }
                continue;
            }
            self.begin_head();
            let is_in_head = self.follower.head().is_none();
            let step = self.follower.feed(&buf.filled()[before..]);
            if step.fault.is_none() {
                self.held.extend_from_slice(&buf.filled()[before + step.released..]);
            }
            buf.set_filled(before + step.released);
            self.take_note(step, is_in_head);
            if step.released > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// How many heads were handed on.
    fn heads(&self) -> u64 {
        self.state.heads.load(Relaxed)
    }

    /// The response is out. Only a flush tells: until then hyper may hold its end.
    fn settle(&mut self, cx: &mut Context<'_>) {
        self.is_settled = true;
        if !self.is_read_waiting || !self.follower.is_complete() {
            return; // hyper reads on by itself, or a body is still to come
        }
        if self.held.is_empty() && !self.is_eof {
            self.begin_next();
            if !self.is_late(cx) {
                return;
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Closes: answers a bad head, ends our side of the stream, and lingers.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.closing, Closing::Closed) {
                Closing::Open if self.is_tunnel() => self.closing = Closing::HalfClose,
                Closing::Open => {
                    self.deadline = after(Instant::now(), LINGER);
                    self.closing = match self.fault {
                        Some(fault) if fault.is_answered() && self.follower.head().is_none() => {
                            let (id, bytes) = (self.answer)(fault);
                            self.state.answer_id.get_or_init(|| id);
                            Closing::Answer(bytes)
                        }
                        _ => Closing::Flush,
                    }
                }
                Closing::Answer(bytes) if bytes.is_empty() => self.closing = Closing::Flush,
                Closing::Answer(mut bytes) => match Pin::new(&mut self.stream).poll_write(cx, &bytes) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        add(&self.state.bytes_written, written);
                        bytes.advance(written);
                        self.closing = Closing::Answer(bytes);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return self.close_later(cx, Closing::Answer(bytes)),
                },
                Closing::Flush => {
                    if Pin::new(&mut self.stream).poll_flush(cx)?.is_pending() {
                        return self.close_later(cx, Closing::Flush);
                    }
                    self.closing = Closing::HalfClose;
                }
                Closing::HalfClose => {
                    if Pin::new(&mut self.stream).poll_shutdown(cx)?.is_pending() {
                        return self.close_later(cx, Closing::HalfClose);
                    }
                    if self.should_linger() && !self.is_tunnel() {
                        self.deadline = after(Instant::now(), LINGER);
                        self.closing = Closing::Linger(LINGER_BYTES);
                    }
                }
                Closing::Linger(mut budget) => {
                    if self.linger(cx, &mut budget).is_pending() {
                        self.closing = Closing::Linger(budget);
                        return Poll::Pending;
                    }
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Goes on with a step of the close when the client takes bytes again, but not beyond the deadline.
    fn close_later(&mut self, cx: &mut Context<'_>, step: Closing) -> Poll<io::Result<()>> {
        if !self.is_tunnel() && self.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.closing = step;
        Poll::Pending
    }

    /// Reads and discards, until the client closes or a bound is reached.
    fn linger(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> Poll<()> {
        let mut scratch = [0; 4096];
        while *budget > 0 && !self.is_late(cx) {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => *budget = budget.saturating_sub(buf.filled().len()),
                _ => break,
            }
        }
        Poll::Ready(())
    }

    /// True when the client may still be sending: closing at once would reset the connection and
    /// could take the answer with it.
    fn should_linger(&self) -> bool {
        let is_cut = self.follower.head().is_some() && !self.follower.is_complete();
        !self.is_eof && (is_cut || !self.held.is_empty() || self.fault.is_some_and(Fault::is_answered))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for HeadGate<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = self.poll_next(cx, buf);
        self.is_read_waiting = result.is_pending();
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeadGate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        add(&self.state.bytes_written, written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        add(&self.state.bytes_written, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if !self.is_settled && !self.state.is_open() && !self.is_tunnel() {
            self.settle(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
