//! The stream between TLS and h2: what passes is counted, and how much is read at a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Excess, Meter};
use crate::alarm::Alarm;

/// A connection's stream with its counts; shared by h2, which reads and writes through it, and by `http2`, which has the
/// last word.
#[derive(Debug)]
pub struct Wire<S> {
    stream: RefCell<S>,
    meter: RefCell<Meter>,
    excess: Cell<Option<Excess>>,
    has_reset: Cell<bool>,
    /// A stream was reset for a fault of the client, at any time.
    is_suspect: Cell<bool>,
    /// Requests that have begun in this turn.
    begun: Cell<u32>,
    /// Responses and trailers that h2 was given. What goes out beyond them is its own word: 431 for a head that is too
    /// large after HPACK, of which nobody else hears.
    given: Rc<Cell<u64>>,
    /// Nothing is read before.
    rests_until: Cell<Option<tokio::time::Instant>>,
    alarm: RefCell<Alarm>,
}

/// What a head with too many fields costs its connection. HPACK makes a thousand fields of a kilobyte, at our cost
/// (CVE-2026-47774). Our choice: a page of a site with too many cookies is refused part by part all the same; whoever
/// sends nothing else takes a hundredth of a core. Not cut, for then the next handshake costs more than the heads did.
const REST: Duration = Duration::from_millis(100);

/// Our choice: far below every deadline of whoever else is on the connection, behind a hop.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Requests of one turn that begin at once. Our choice: what a page asks for at first; floods come in hundreds.
const AT_ONCE: u32 = 8;

/// How many bytes of frames other than DATA are read of one connection before all others have had their turn. Our choice:
/// some dozens of requests, or hundreds of small frames, are less than a millisecond of work; h2 would read on for as
/// long as more comes.
const TURN: usize = 8 << 10;

impl<S> Wire<S> {
    /// Counts what passes on `stream`.
    pub fn new(stream: S, head_bytes: usize) -> Rc<Self> {
        let meter = RefCell::new(Meter::new(head_bytes, Instant::now()));
        Rc::new(Self {
            stream: RefCell::new(stream),
            meter,
            excess: Cell::new(None),
            has_reset: Cell::new(false),
            is_suspect: Cell::new(false),
            begun: Cell::new(0),
            given: Rc::default(),
            rests_until: Cell::new(None),
            alarm: RefCell::default(),
        })
    }

    /// Where each response and each section of trailers is counted before h2 has it.
    pub fn given(&self) -> &Rc<Cell<u64>> {
        &self.given
    }

    /// The stream, for the last word.
    pub fn stream(&self) -> &RefCell<S> {
        &self.stream
    }

    /// Why the connection must be given up.
    pub fn excess(&self) -> Option<Excess> {
        self.excess.get()
    }

    /// See `Meter::goodbye`.
    pub fn goodbye(&self, excess: Excess) -> Bytes {
        self.meter.borrow().goodbye(excess)
    }

    /// When the client is late with the rest of a frame or block of fields, if it owes one.
    pub fn due(&self, limit: Duration) -> Option<Instant> {
        self.meter.borrow().waits_since().map(|since| since + limit)
    }

    /// Another turn of the connection's task begins.
    pub fn begin_turn(&self) {
        self.has_reset.set(false);
        self.meter.borrow_mut().work = 0;
        self.begun.set(0);
    }

    /// A head had more fields than any route takes, or was too large: nothing more is read for a while.
    pub fn overfull(&self) {
        let now = tokio::time::Instant::now();
        let rested = self.rests_until.get().map_or(now, |until| until.max(now));
        self.rests_until.set(Some((rested + REST).min(now + LONGEST_REST)));
    }

    /// Rests for the heads that h2 has refused by itself. A response of ours that is lost with its stream makes up for one
    /// of them; streams that are reset have budgets of their own.
    fn rest_for_refused(&self) {
        let sent = self.meter.borrow().sent;
        for _ in self.given.get()..sent {
            self.overfull();
        }
        self.given.set(self.given.get().max(sent));
    }

    /// A request begins. True when it may be over already: what would end it may have come with it.
    pub fn is_doubtful(&self) -> bool {
        let begun = self.begun.get();
        self.begun.set(begun + 1);
        begun >= AT_ONCE || self.has_reset.get() || self.is_suspect.get()
    }
}

/// The stream as h2 has it.
#[derive(Debug)]
pub struct Metered<S>(Rc<Wire<S>>);

impl<S> Metered<S> {
    /// Reads and writes on this wire.
    pub fn new(wire: &Rc<Wire<S>>) -> Self {
        Self(Rc::clone(wire))
    }

    /// After a write of `slices`, of which so much went out.
    fn wrote(&self, cx: &Context<'_>, slices: &[io::IoSlice<'_>], mut length: usize) {
        let now = Instant::now();
        for slice in slices {
            let taken = length.min(slice.len());
            length -= taken;
            match self.0.meter.borrow_mut().went(&slice[..taken], now) {
                Ok(has_fault) => self.0.is_suspect.set(self.0.is_suspect.get() | has_fault),
                Err(excess) => {
                    self.0.excess.set(Some(excess));
                    // The next read tells.
                    cx.waker().wake_by_ref();
                }
            }
        }
        self.0.rest_for_refused();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = &*self.0;
        if let Some(excess) = wire.excess.get() {
            return Poll::Ready(Err(io::Error::other(excess)));
        }
        if let Some(until) = wire.rests_until.get() {
            if !wire.alarm.borrow_mut().is_late(cx, until) {
                return Poll::Pending;
            }
            wire.rests_until.set(None);
        }
        if wire.meter.borrow().work >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *wire.stream.borrow_mut()).poll_read(cx, buffer))?;
        let judged = wire.meter.borrow_mut().came(&buffer.filled()[before..], Instant::now());
        Poll::Ready(match judged {
            Ok(has_reset) => {
                wire.has_reset.set(wire.has_reset.get() | has_reset);
                Ok(())
            }
            Err(excess) => {
                wire.excess.set(Some(excess));
                buffer.set_filled(before);
                Err(io::Error::other(excess))
            }
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, bytes))?;
        self.wrote(cx, &[io::IoSlice::new(bytes)], written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, slices))?;
        self.wrote(cx, slices, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::HEADERS;
    use super::*;

    /// A head with too many fields holds up what comes next on its connection, and no longer than it may.
    #[tokio::test(start_paused = true)]
    async fn a_wire_rests_after_heads_with_too_many_fields() {
        for (heads, expected) in [(0, Duration::ZERO), (4, 4 * REST), (1000, LONGEST_REST)] {
            let (mut far, near) = tokio::io::duplex(64);
            let wire = Wire::new(near, 8 << 10);
            (0..heads).for_each(|_| wire.overfull());
            far.write_all(b"PRI").await.expect("room");
            let begun = tokio::time::Instant::now();
            Metered::new(&wire).read_exact(&mut [0; 3]).await.expect("three bytes");
            assert_eq!(begun.elapsed(), expected, "{heads}");
        }
    }

    /// Heads that go out and are not ours are h2's own refusals of heads that were too large.
    #[tokio::test(start_paused = true)]
    async fn a_wire_rests_for_what_h2_has_refused() {
        for (given, rests) in [(0, 2), (1, 1), (2, 0), (3, 0)] {
            let (mut far, near) = tokio::io::duplex(64);
            let wire = Wire::new(near, 8 << 10);
            wire.given().set(given);
            let mut metered = Metered::new(&wire);
            metered
                .write_all(&[0, 0, 1, HEADERS, 5, 0, 0, 0, 1, 0x8d, 0, 0, 1, HEADERS, 5, 0, 0, 0, 3, 0x8d])
                .await
                .expect("room");
            far.write_all(b"PRI").await.expect("room");
            let begun = tokio::time::Instant::now();
            metered.read_exact(&mut [0; 3]).await.expect("three bytes");
            assert_eq!(begun.elapsed(), rests * REST, "{given}");
        }
    }
}
