//! One direction of a tunnel: reads from one side, writes to the other, keeps only what the writing
//! side did not take. It knows nothing of time and causes; `tunnel` does.

use std::io::ErrorKind;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{Follower, Sender};
use crate::scratch;

/// One direction.
pub(super) struct Lane {
    /// Read and not yet taken by the other side. While there is some, nothing more is read.
    rest: Bytes,
    /// Looks on.
    pub(super) follower: Follower,
    /// What was read so far.
    pub(super) bytes: u64,
    /// How far it has come.
    pub(super) flow: Flow,
    /// Something was written since the last flush: a TLS session may still hold it.
    needs_flush: bool,
    /// Something was read or written since `Tunnel::has_moved` asked.
    pub(super) has_moved: bool,
}

/// How far a direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Bytes pass.
    Open,
    /// The reading side ended; the writing side is not told yet.
    Ended,
    /// The writing side was told.
    Shut,
    /// The reading side broke; what it said before still passes.
    Cut,
    /// The writing side broke, nothing passes.
    Dead,
}

/// Which side of a direction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It could not be read.
    Reading,
    /// It could not be written.
    Writing,
}

/// Most reads in one poll of one direction: with the scratch buffer 512 KiB, so that a busy tunnel
/// does not hold its worker. Sockets stop earlier by tokio's own budget; other streams need not.
const ROUNDS: usize = 16;

impl Lane {
    pub(super) fn new(sender: Sender, early: Bytes) -> Self {
        let mut follower = Follower::new(sender);
        follower.follow(&early);
        let bytes = early.len() as u64;
        Self { rest: early, follower, bytes, flow: Flow::Open, needs_flush: false, has_moved: false }
    }

    /// Moves bytes until reading or writing has to wait. Ready when the direction has ended and the
    /// writing side was told. After a fault it is called again only for what is left to do.
    pub(super) fn poll_pump<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            ready!(self.poll_rest(cx, to))?;
            match self.flow {
                Flow::Open => ready!(self.poll_step(cx, from, to, scratch::SIZE))?,
                Flow::Ended => {
                    ready!(self.poll_shut(cx, to));
                    return Poll::Ready(Ok(()));
                }
                Flow::Cut => return self.poll_flush(cx, to),
                Flow::Shut | Flow::Dead => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Finishes the frame in flight, then writes `frame` behind it and reads no more. A sender that
    /// has said its own close, or does not speak in frames, or has ended, gets no word put in its mouth.
    pub(super) fn poll_last<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        frame: &mut Bytes,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            ready!(self.poll_rest(cx, to))?;
            let is_over = self.flow != Flow::Open || self.follower.close().is_some();
            match self.follower.missing() {
                Some(0) if !is_over && !frame.is_empty() => self.rest = mem::take(frame),
                Some(missing @ 1..) if self.flow == Flow::Open => {
                    let limit = usize::try_from(missing).unwrap_or(scratch::SIZE);
                    ready!(self.poll_step(cx, from, to, limit))?;
                }
                Some(_) | None => return self.poll_flush(cx, to),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// True when a close frame has passed to its last byte.
    pub(super) fn has_said_close(&self) -> bool {
        self.follower.close().is_some() && self.rest.is_empty() && !self.needs_flush
    }

    /// Tells the writing side that nothing more comes. A side that cannot be told is gone: no fault.
    pub(super) fn poll_shut(&mut self, cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin)) -> Poll<()> {
        if !matches!(self.flow, Flow::Shut | Flow::Dead) {
            self.flow = match ready!(Pin::new(to).poll_shutdown(cx)) {
                Ok(()) => Flow::Shut,
                Err(_) => Flow::Dead,
            };
        }
        Poll::Ready(())
    }

    /// Reads once, at most `limit` bytes, and writes as much of it as the other side takes.
    fn poll_step<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        limit: usize,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        scratch::with(|scratch| {
            let limit = limit.min(scratch.len());
            let mut buffer = ReadBuf::new(&mut scratch[..limit]);
            let Poll::Ready(read) = Pin::new(from).poll_read(cx, &mut buffer) else {
                // Nothing to read now, so nothing would carry along what was written before.
                ready!(self.poll_flush(cx, to))?;
                return Poll::Pending;
            };
            match read {
                Ok(()) if buffer.filled().is_empty() => self.flow = Flow::Ended,
                Ok(()) => return self.write_on(cx, to, buffer.filled()),
                // A TLS peer that closed without close_notify: common, and no more than a FIN. A
                // message that was cut shows in its own framing.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.flow = Flow::Ended,
                Err(_) => {
                    self.flow = Flow::Cut;
                    return Poll::Ready(Err(Fault::Reading));
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Writes what was just read, and keeps what the other side does not take.
    fn write_on<W>(&mut self, cx: &mut Context<'_>, to: &mut W, mut read: &[u8]) -> Poll<Result<(), Fault>>
    where
        W: AsyncWrite + Unpin,
    {
        self.bytes += read.len() as u64;
        self.has_moved = true;
        self.follower.follow(read);
        while !read.is_empty() {
            let Poll::Ready(count) = self.poll_write(cx, to, read)? else {
                self.rest = Bytes::copy_from_slice(read);
                break;
            };
            read = &read[count..];
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was kept.
    fn poll_rest(&mut self, cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin)) -> Poll<Result<(), Fault>> {
        while !self.rest.is_empty() {
            let mut rest = mem::take(&mut self.rest);
            // What a fault leaves is dropped, and what is empty gives its memory back.
            let Poll::Ready(count) = self.poll_write(cx, to, &rest)? else {
                self.rest = rest;
                return Poll::Pending;
            };
            rest.advance(count);
            if !rest.is_empty() {
                self.rest = rest;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes once. After a fault nothing is kept for this side.
    fn poll_write<W>(&mut self, cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> Poll<Result<usize, Fault>>
    where
        W: AsyncWrite + Unpin,
    {
        match ready!(Pin::new(to).poll_write(cx, bytes)) {
            Ok(count @ 1..) => {
                self.needs_flush = true;
                self.has_moved = true;
                Poll::Ready(Ok(count))
            }
            Ok(0) | Err(_) => Poll::Ready(Err(self.fault_in_writing())),
        }
    }

    /// Sends what a layer below may still hold: a TLS write that is done may not be sent.
    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin)) -> Poll<Result<(), Fault>> {
        if self.needs_flush {
            if ready!(Pin::new(to).poll_flush(cx)).is_err() {
                return Poll::Ready(Err(self.fault_in_writing()));
            }
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the writing side up.
    fn fault_in_writing(&mut self) -> Fault {
        self.flow = Flow::Dead;
        self.needs_flush = false;
        Fault::Writing
    }
}

/// Reads what nobody wants any more. Ready at the end of the stream.
pub(super) fn poll_discard(cx: &mut Context<'_>, from: &mut (impl AsyncRead + Unpin)) -> Poll<()> {
    scratch::with(|scratch| {
        for _ in 0..ROUNDS {
            let mut buffer = ReadBuf::new(scratch);
            let read = ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
