//! What was read from a stream and not yet used, in pieces that grow with what comes.

use std::future::Future as _;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::scratch;

/// Bytes read ahead.
#[derive(Debug)]
pub struct Intake {
    /// Read and not yet used.
    pub read: BytesMut,
    /// How much the next read asks for.
    step: usize,
    /// The most that it may ask for.
    most: usize,
}

/// The first read: most answers of an API fit whole, and an idle connection may keep it.
const FIRST_STEP: usize = 8 << 10;

/// The largest read: two TLS records. Measured: larger ones leave the cache before they are encrypted.
const LAST_STEP: usize = 32 << 10;

impl Intake {
    /// Nothing was read.
    pub fn new() -> Self {
        Self { read: BytesMut::new(), step: FIRST_STEP, most: LAST_STEP }
    }

    /// Reads more, straight to where it is used. 0 is the end of the stream.
    pub fn poll_fill<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<usize>> {
        let step = self.step.min(self.most);
        if self.read.capacity() - self.read.len() < step / 2 {
            // Memory that was handed on and is free again is taken back.
            self.read.reserve(step);
        }
        let asked = self.read.capacity() - self.read.len();
        let filled = pin!(stream.read_buf(&mut self.read)).poll(cx);
        if matches!(filled, Poll::Ready(Ok(length)) if length == asked) {
            self.step = (self.step * 2).min(LAST_STEP);
        }
        filled
    }

    /// Reads more where mostly nothing comes: no memory is held while it waits.
    pub fn poll_wait<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<usize>> {
        scratch::with(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(pin!(stream).poll_read(cx, &mut buffer))?;
            self.read.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Limits what is read at once, or no more: what is read for somebody who does not take it stays in memory.
    pub fn limit(&mut self, most: Option<usize>) {
        self.most = most.unwrap_or(LAST_STEP);
    }

    /// A large exchange is over: its memory is given back.
    pub fn shrink(&mut self) {
        if (self.step > FIRST_STEP || self.most < LAST_STEP) && self.read.is_empty() {
            *self = Self::new();
        }
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self::new()
    }
}
