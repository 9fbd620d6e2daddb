//! Whether a client takes what a stream has for it, and how much of it we hold until then.
//!
//! RFC 9113 5.2: the window is the client's to open. A stream whose window stays closed costs its client nothing,
//! and us a response, a connection to an endpoint and the work behind it; the socket's own patience never
//! notices, because the other streams go on. So each stream has a deadline of its own, and all streams of a
//! connection share a bound on what they hold.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::body::BodyError;
use crate::request::reply::ReplyBody;
use crate::site::policy::Timeouts;

/// Bytes of responses that the streams of one connection hold before each may only hold one small piece. Our
/// choice: a fast client on a long line never waits for it, and a thousand clients that read nothing hold 256 MiB.
pub(super) const HELD: usize = 256 << 10;

/// The largest piece: a frame of HTTP/2 (RFC 9113 6.5.2), so that within the limit some hundred bytes a second suffice.
const PIECE: usize = 16 << 10;

/// The largest piece, and the most that is read at once, while the streams of the connection hold too much. Our choice.
const SMALL: usize = 4 << 10;

/// The progress of one stream, and what it holds.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) limit: Cell<Duration>,
    step: Cell<Step>,
    /// Bytes that this stream has handed over and that are not written yet.
    held: Cell<usize>,
    held_by_all: Rc<Cell<usize>>,
    /// Heads and trailers that h2 was given, of all streams.
    given: Rc<Cell<u64>>,
    /// Woken when a piece has been written.
    waiting: RefCell<Option<Waker>>,
}

/// The last piece that was handed to a stream.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It was taken, or there is none.
    Taken,
    /// It may have to wait. The clock is only read if it does.
    Fresh,
    /// It waits to be taken.
    Waits(Instant),
}

impl Pace {
    /// A stream of a connection whose streams hold `held_by_all`, and whose heads and trailers are counted in `given`.
    pub(super) fn new(held_by_all: &Rc<Cell<usize>>, given: &Rc<Cell<u64>>) -> Self {
        Self {
            limit: Cell::new(Timeouts::default().send),
            step: Cell::new(Step::Taken),
            held: Cell::new(0),
            held_by_all: Rc::clone(held_by_all),
            given: Rc::clone(given),
            waiting: RefCell::new(None),
        }
    }

    /// True when a piece has waited too long; else the task is woken then.
    fn is_late(&self, cx: &mut Context<'_>, alarm: &mut Alarm) -> bool {
        let since = match self.step.get() {
            Step::Taken => return false,
            Step::Fresh => Instant::now(),
            Step::Waits(since) => since,
        };
        self.step.set(Step::Waits(since));
        alarm.is_late(cx, since + self.limit.get())
    }

    /// A response's head, or its trailers, are about to be h2's.
    pub(super) fn gives_head(&self) {
        self.given.set(self.given.get() + 1);
    }

    fn is_crowded(&self) -> bool {
        self.held_by_all.get() >= HELD
    }

    fn hold(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        self.held_by_all.set(self.held_by_all.get() + bytes);
    }

    fn let_go(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
        self.held_by_all.set(self.held_by_all.get().saturating_sub(bytes));
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// A piece of a response on its way to h2, which drops it when it is written or the stream is reset.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    length: usize,
    pace: Rc<Pace>,
}

impl Piece {
    fn new(bytes: Bytes, pace: &Rc<Pace>) -> Self {
        pace.hold(bytes.len());
        Self { length: bytes.len(), bytes, pace: Rc::clone(pace) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.pace.let_go(self.length);
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// A response body, in pieces that a slow client can take in time.
pub(super) struct Paced {
    body: ReplyBody,
    /// What is left of a larger piece.
    rest: Bytes,
    pace: Rc<Pace>,
}

impl Paced {
    /// Hands `body` over at this pace.
    pub(super) fn new(body: ReplyBody, pace: Rc<Pace>) -> Self {
        Self { body, rest: Bytes::new(), pace }
    }
}

impl http_body::Body for Paced {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let this = &mut *self;
        let is_crowded = this.pace.is_crowded();
        if is_crowded && this.pace.held.get() > 0 {
            // Until its own piece is written. No stream waits for another one, which may wait for ever.
            if this.pace.waiting.replace(Some(cx.waker().clone())).is_none() {
                this.pace.step.set(Step::Fresh);
            }
            return Poll::Pending;
        }
        // hyper asks for more when the piece before was taken.
        this.pace.step.set(Step::Taken);
        if this.rest.is_empty() {
            this.body.limit_read(is_crowded.then_some(SMALL));
            match ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => this.rest = data,
                Some(Err(other)) => {
                    this.pace.gives_head();
                    return Poll::Ready(other.into_trailers().ok().map(|fields| Ok(Frame::trailers(fields))));
                }
                None => return Poll::Ready(None),
            }
        }
        this.pace.step.set(Step::Fresh);
        let length = this.rest.len().min(if is_crowded { SMALL } else { PIECE });
        let piece = Piece::new(this.rest.split_to(length), &this.pace);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let left = self.rest.len() as u64;
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + left),
            None => hint.set_lower(hint.lower() + left),
        }
        hint
    }
}

/// Runs streams on the worker's own thread, and ends each whose client takes nothing: hyper resets it then.
#[derive(Clone, Default)]
pub(super) struct Streams(
    /// The pace of the stream that the service was just called for: hyper runs it next.
    pub(super) Rc<Cell<Option<Rc<Pace>>>>,
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
