//! The client's side of a connection over HTTP/1.1: the stream, what was read from it, where in a message
//! it stands, and the deadline of the present wait. Shared with the body of the present request, which
//! reads on where the head ended.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::super::socket::SocketHandle;
use super::{Answer, Talk, Terms};
use crate::alarm::Alarm;
use crate::body::BodyError;
use crate::framing::intake::Intake;
use crate::framing::rest::{Piece, trailer_fields};
use crate::framing::{Fault, Follower, Head};

/// A connection's stream, and what is known of what it brings.
pub(super) struct Line<S> {
    stream: RefCell<S>,
    inbound: RefCell<Inbound>,
    talk: Rc<Talk>,
    answer: Answer,
    socket: SocketHandle,
    /// The interim response that the client waits for (RFC 9110 15.2.1), as far as it is not written.
    interim: Cell<&'static [u8]>,
    /// Somebody may still read the present body.
    is_body_held: Cell<bool>,
    /// Woken when the present body has ended or was given up.
    waits_for_body: RefCell<Option<Waker>>,
}

/// What came from the client.
struct Inbound {
    intake: Intake,
    follower: Follower,
    is_eof: bool,
    has_read: bool,
    /// When the first byte of the present head arrived.
    began: Option<Instant>,
    /// Whether no request has come yet.
    is_first: bool,
    head: Duration,
    keep_alive: Duration,
    deadline: Instant,
    alarm: Alarm,
}

/// What comes next on a connection.
pub(super) enum Next {
    /// A head, as facts and as text.
    Head(Head, Bytes),
    /// What came is no request, or none came in time.
    Fault(Fault),
    /// The client closed it.
    Closed,
}

/// Bytes that a client may send ahead of its turn; then it is not read any more until its turn
/// comes. Our choice: many pipelined requests, and far more than the first frames of a WebSocket.
pub(super) const MAX_AHEAD: usize = 64 << 10;

/// RFC 9110 15.2.1.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl<S> Line<S> {
    /// A stream at the first byte of a first head.
    pub(super) fn new(stream: S, terms: Terms, talk: Rc<Talk>) -> Self {
        let inbound = Inbound {
            intake: Intake::new(),
            follower: Follower::new(terms.limits),
            is_eof: false,
            has_read: false,
            began: None,
            is_first: true,
            head: terms.head,
            keep_alive: terms.keep_alive,
            deadline: terms.first,
            alarm: Alarm::default(),
        };
        Self {
            stream: RefCell::new(stream),
            inbound: RefCell::new(inbound),
            talk,
            answer: terms.answer,
            socket: terms.socket,
            interim: Cell::new(b""),
            is_body_held: Cell::new(false),
            waits_for_body: RefCell::new(None),
        }
    }

    /// The accepted socket.
    pub(super) fn socket(&self) -> &SocketHandle {
        &self.socket
    }

    /// The complete response to a bad head, and the request ID that it names.
    pub(super) fn answer(&self, fault: Fault) -> (Box<str>, Bytes) {
        (self.answer)(fault)
    }

    /// The stream, for whoever writes.
    pub(super) fn stream(&self) -> &RefCell<S> {
        &self.stream
    }

    /// The stream, and what was read from it and is no HTTP any more.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        // Copied, because a view of the buffer keeps all of it in memory for days.
        (self.stream.into_inner(), Bytes::copy_from_slice(&self.inbound.into_inner().intake.read))
    }

    /// True when a head has begun and is not complete.
    pub(super) fn is_in_head(&self) -> bool {
        self.inbound.borrow().began.is_some()
    }

    /// True when the client has sent anything.
    pub(super) fn has_read(&self) -> bool {
        self.inbound.borrow().has_read
    }

    /// True when the client closed its side.
    pub(super) fn is_eof(&self) -> bool {
        self.inbound.borrow().is_eof
    }

    /// True when nobody reads the present body any more, and it is not here whole.
    pub(super) fn leaves_body(&self) -> bool {
        !self.is_body_held.get() && !self.inbound.borrow_mut().skip_body()
    }

    /// What of an interim response must still be written: its rest when it has begun, else nothing.
    pub(super) fn take_interim(&self) -> &'static [u8] {
        let interim = self.interim.take();
        if interim.len() < CONTINUE.len() { interim } else { b"" }
    }

    fn tell_waiting(&self) {
        if let Some(waiting) = self.waits_for_body.take() {
            waiting.wake();
        }
    }

    /// Begins to wait for the next head.
    pub(super) fn next_message(&self) {
        let inbound = &mut *self.inbound.borrow_mut();
        inbound.follower.next_message();
        inbound.began = None;
        inbound.is_first = false;
        inbound.deadline = after(Instant::now(), inbound.keep_alive);
        if inbound.intake.read.is_empty() {
            inbound.intake = Intake::new(); // an idle connection holds no memory here
        }
        self.interim.set(b"");
        self.talk.body_fault.set(None);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Reads until a head is complete, or can no more become one.
    pub(super) fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let inbound = &mut *self.inbound.borrow_mut();
        loop {
            if !inbound.intake.read.is_empty() {
                inbound.begin_head();
                match inbound.follower.head(&mut inbound.intake.read) {
                    Ok(Some((head, text))) => {
                        let took = inbound.began.take().map_or(Duration::ZERO, |began| began.elapsed());
                        self.talk.head_took.set(took);
                        return Poll::Ready(Next::Head(head, text));
                    }
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Next::Fault(fault)),
                }
            }
            if inbound.is_eof {
                let is_cut = !inbound.intake.read.is_empty();
                return Poll::Ready(if is_cut { Next::Fault(Fault::Incomplete) } else { Next::Closed });
            }
            if inbound.poll_more(cx, &self.stream).is_pending() {
                if !inbound.alarm.is_late(cx, inbound.deadline) {
                    return Poll::Pending;
                }
                return Poll::Ready(Next::Fault(match (inbound.began, inbound.is_first) {
                    (Some(_), _) => Fault::HeadTimeout,
                    (None, true) => Fault::Silent,
                    (None, false) => Fault::Idle,
                }));
            }
        }
    }

    /// Ready when the client has gone away while we work for it. What it sends ahead is kept, up to a bound.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let inbound = &mut *self.inbound.borrow_mut();
        // While the body is not here whole, who reads it sees the end.
        while inbound.follower.is_complete() && inbound.intake.read.len() < MAX_AHEAD {
            if inbound.is_eof || !ready!(inbound.poll_more(cx, &self.stream)) {
                return Poll::Ready(());
            }
        }
        if !inbound.follower.is_complete() {
            // Who read it may have been a task beside ours, and have nobody to tell.
            if inbound.is_eof && !self.is_body_held.get() {
                return Poll::Ready(());
            }
            self.wait_for_body(cx);
        }
        Poll::Pending
    }

    /// Waits until the present body is over or given up. True when it was here whole: the connection may go on.
    pub(super) fn poll_body_over(&self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.is_body_held.get() && !self.inbound.borrow().follower.is_complete() {
            self.wait_for_body(cx);
            return Poll::Pending;
        }
        Poll::Ready(self.inbound.borrow_mut().skip_body())
    }

    /// Wakes this task when the present body is over or given up.
    fn wait_for_body(&self, cx: &Context<'_>) {
        let waiting = &mut *self.waits_for_body.borrow_mut();
        if !waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
    }

    /// Reads the next piece of the present body.
    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.poll_interim(cx));
        let inbound = &mut *self.inbound.borrow_mut();
        loop {
            match inbound.follower.body(&mut inbound.intake.read) {
                Ok(Some(Piece::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some(Piece::Trailers(section))) => {
                    let fields = trailer_fields(&section);
                    if !fields.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::trailers(fields))));
                    }
                }
                Ok(None) if inbound.follower.is_complete() => return Poll::Ready(None),
                Ok(None) => {
                    let filled = inbound.intake.poll_fill(cx, &mut *self.stream.borrow_mut());
                    match ready!(filled) {
                        Ok(1..) => {}
                        Ok(0) => {
                            inbound.is_eof = true;
                            return Poll::Ready(Some(Err(BodyError::Broken(
                                "the client closed the connection".into(),
                            ))));
                        }
                        Err(error) => {
                            inbound.is_eof = true;
                            return Poll::Ready(Some(Err(BodyError::Broken(error.into()))));
                        }
                    }
                }
                Err(fault) => {
                    self.talk.body_fault.set(Some(fault));
                    return Poll::Ready(Some(Err(BodyError::Broken(fault.into()))));
                }
            }
        }
    }

    /// Asks the client for the body, once, when it waits to be asked.
    fn poll_interim(&self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.interim.get().is_empty() {
            let stream = &mut *self.stream.borrow_mut();
            match ready!(Pin::new(&mut *stream).poll_write(cx, self.interim.get())) {
                Ok(written @ 1..) => self.interim.set(&self.interim.get()[written..]),
                // Reading will tell.
                Ok(0) | Err(_) => self.interim.set(b""),
            }
            if self.interim.get().is_empty() {
                // What cannot be flushed now goes out with the response.
                let _ = Pin::new(stream).poll_flush(cx);
            }
        }
        Poll::Ready(())
    }
}

impl Inbound {
    /// Reads more, holding no memory while nothing comes. False at the end of the stream.
    fn poll_more<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, stream: &RefCell<S>) -> Poll<bool> {
        // A stream that broke is one that ended: who reads on learns no more from it.
        let read = ready!(self.intake.poll_wait(cx, &mut *stream.borrow_mut())).unwrap_or(0);
        self.is_eof = read == 0;
        self.has_read |= read > 0;
        Poll::Ready(read > 0)
    }

    /// Passes over what is here of a body that nobody reads. True when that was all; the rest is not waited for.
    fn skip_body(&mut self) -> bool {
        while let Ok(Some(_)) = self.follower.body(&mut self.intake.read) {}
        self.follower.is_complete()
    }

    /// Starts the clock of a head with its first byte. A head sent ahead starts when its turn comes,
    /// because until then we did not read all that was there.
    fn begin_head(&mut self) {
        if self.began.is_none() {
            let now = Instant::now();
            self.began = Some(now);
            self.deadline = after(now, self.head);
        }
    }
}

/// The instant so much later; a limit beyond what an instant can hold is no limit.
fn after(now: Instant, limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(86_400 * 365);
    now + limit.min(FAR)
}

/// The body of the present request. When it has ended it lets go of the line: who still holds it then, as a
/// task does that writes the last piece to an endpoint, must not touch what comes after it.
pub(super) struct RequestBody<S>(Option<Rc<Line<S>>>);

impl<S> RequestBody<S> {
    /// The body after a head that says there is one.
    pub(super) fn new(line: &Rc<Line<S>>, head: &Head) -> Self {
        line.is_body_held.set(true);
        let is_here = !line.inbound.borrow().intake.read.is_empty();
        // RFC 9110 10.1.1: who sees the body already need not ask for it.
        line.interim.set(if head.expects_continue && !is_here { CONTINUE } else { b"" });
        Self(Some(Rc::clone(line)))
    }

    fn let_go(&mut self) {
        if let Some(line) = self.0.take() {
            line.is_body_held.set(false);
            line.tell_waiting();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HttpBody for RequestBody<S> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(line) = &self.0 else { return Poll::Ready(None) };
        let frame = ready!(line.poll_body(cx));
        if line.inbound.borrow().follower.is_complete() {
            self.let_go();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.0.as_ref().map_or(Some(0), |line| line.inbound.borrow().follower.left());
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl<S> Drop for RequestBody<S> {
    fn drop(&mut self) {
        self.let_go();
    }
}
