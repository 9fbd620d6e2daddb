//! Collecting a request body before the upstream is asked.
//!
//! The OpenClaw gateway gives a JSON body 30 s in all, which a phone's uplink cannot keep. So the
//! edge takes the body first, at the client's pace: 64 KiB of each in memory, the rest in an
//! unlinked temporary file, under the route's limit and under one bound for the whole process.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::fs::File;
use tokio::io::{AsyncRead as _, AsyncSeekExt as _, AsyncWriteExt as _, ReadBuf};

use super::{Body, BodyError};

/// Our choice: holds most JSON calls, small enough for thousands at once.
const IN_MEMORY: usize = 64 << 10;

/// Our choice: bounds disk and memory of all collected bodies of the process together.
const IN_ALL: u64 = 1 << 30;

/// Our choice: kept for bodies that stay in memory, so that a few clients who trickle large ones do not
/// close the gateway's own calls to everybody.
const FOR_SMALL: u64 = 128 << 20;

/// One piece read back from a file.
const PIECE: usize = 64 << 10;

static HELD: AtomicU64 = AtomicU64::new(0);

/// A body that is here whole.
#[derive(Debug)]
pub struct Collected {
    memory: Bytes,
    file: Option<File>,
    remaining: u64,
    piece: BytesMut,
    _held: Held,
}

/// Why a body could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The body itself broke off.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// All bodies together need more than the process may hold.
    #[error("too many request bodies are being collected")]
    Full,
    /// The temporary file failed.
    #[error("the temporary file for a request body failed")]
    Storage(#[source] io::Error),
}

/// A share of the process's bound, given back when the body is dropped.
#[derive(Debug, Default)]
struct Held(u64);

impl Held {
    fn take(&mut self, bytes: u64) -> Result<(), CollectError> {
        let before = HELD.fetch_add(bytes, Ordering::Relaxed);
        self.0 += bytes;
        if fits(before + bytes, self.0) { Ok(()) } else { Err(CollectError::Full) }
    }
}

/// Whether all bodies together may hold so much, for one that holds `own` of it.
fn fits(in_all: u64, own: u64) -> bool {
    in_all <= if own > IN_MEMORY as u64 { IN_ALL - FOR_SMALL } else { IN_ALL }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Reads `body` to its end.
///
/// # Errors
/// When the body breaks off, or when there is no room for it.
pub async fn collect(mut body: Body) -> Result<Collected, CollectError> {
    let mut held = Held::default();
    let mut memory = BytesMut::new();
    let mut file: Option<File> = None;
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await {
        // Trailers of a request that is sent on with a length have no place; RFC 9110 6.5.1 allows to drop them.
        let Ok(data) = frame?.into_data() else { continue };
        held.take(data.len() as u64)?;
        length += data.len() as u64;
        if file.is_none() && memory.len() + data.len() <= IN_MEMORY {
            memory.extend_from_slice(&data);
            continue;
        }
        let file = match &mut file {
            Some(file) => file,
            none => none.insert(File::from_std(tempfile::tempfile().map_err(CollectError::Storage)?)),
        };
        file.write_all(&data).await.map_err(CollectError::Storage)?;
    }
    if let Some(file) = &mut file {
        file.flush().await.map_err(CollectError::Storage)?;
        file.rewind().await.map_err(CollectError::Storage)?;
    }
    Ok(Collected { memory: memory.freeze(), file, remaining: length, piece: BytesMut::new(), _held: held })
}

impl Collected {
    /// Bytes not yet read back.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next piece.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.memory.is_empty() {
            let memory = std::mem::take(&mut self.memory);
            self.remaining -= memory.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(memory))));
        }
        let Some(file) = self.file.as_mut().filter(|_| self.remaining > 0) else { return Poll::Ready(None) };
        self.piece.resize(PIECE, 0);
        let mut buffer = ReadBuf::new(&mut self.piece);
        if let Err(error) = ready!(Pin::new(file).poll_read(cx, &mut buffer)) {
            return Poll::Ready(Some(Err(BodyError::Storage(error))));
        }
        let filled = buffer.filled().len();
        if filled == 0 {
            let error = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Poll::Ready(Some(Err(BodyError::Storage(error))));
        }
        self.remaining = self.remaining.saturating_sub(filled as u64);
        Poll::Ready(Some(Ok(Frame::data(self.piece.split_to(filled).freeze()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let small = IN_MEMORY as u64;
        for (in_all, own, expected) in [
            (1, 1, true),
            (IN_ALL - FOR_SMALL, small + 1, true),
            (IN_ALL - FOR_SMALL + 1, small + 1, false),
            (IN_ALL - FOR_SMALL + 1, small, true),
            (IN_ALL, 1, true),
            (IN_ALL + 1, 1, false),
        ] {
            assert_eq!(fits(in_all, own), expected, "{in_all} {own}");
        }
    }
}
