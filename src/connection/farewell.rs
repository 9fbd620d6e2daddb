//! The end of a connection: the last answer, our side closed, and a while in which what the client still
//! sends is read and thrown away, so that it gets the answer and not a reset (RFC 9112 9.6).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::socket::SocketHandle;
use crate::scratch;

/// A client that takes no bytes may delay the close for so long. Then we read on for as long again.
/// Our choice: some round trips.
pub const LINGER: Duration = Duration::from_secs(2);

/// At most so many bytes are discarded; a client that sends more gets the reset.
pub const LINGER_BYTES: usize = 1 << 20;

/// Writes `answer`, closes our side, and lingers if the client may still be sending.
pub async fn close<S>(stream: &RefCell<S>, socket: &SocketHandle, mut answer: Bytes, lingers: bool)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if answer.is_empty() {
        // What TLS still says is the last write.
        socket.ends();
    }
    let closing = async {
        while !answer.is_empty() {
            match on(stream, |stream, cx| stream.poll_write(cx, &answer)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => answer.advance(written),
            }
        }
        on(stream, AsyncWrite::poll_flush).await?;
        on(stream, AsyncWrite::poll_shutdown).await
    };
    if matches!(timeout(LINGER, closing).await, Ok(Ok(()))) && lingers {
        let mut budget = LINGER_BYTES;
        let discarding = async {
            while budget > 0 {
                let read = on(stream, |stream, cx| scratch::with(|scratch| poll_discard(stream, cx, scratch))).await?;
                budget = budget.saturating_sub(read);
            }
            io::Result::Ok(())
        };
        // However it ends, the connection is over.
        let _ = timeout(LINGER, discarding).await;
    }
}

/// Does one thing with the stream, which is borrowed for each step alone.
async fn on<S: Unpin, T>(
    stream: &RefCell<S>,
    mut step: impl FnMut(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
) -> io::Result<T> {
    poll_fn(|cx| step(Pin::new(&mut *stream.borrow_mut()), cx)).await
}

/// Reads once and throws it away; the end of the stream is an error here.
fn poll_discard<S: AsyncRead>(
    stream: Pin<&mut S>,
    cx: &mut Context<'_>,
    scratch: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(scratch);
    ready!(stream.poll_read(cx, &mut buffer))?;
    let read = buffer.filled().len();
    Poll::Ready(if read > 0 { Ok(read) } else { Err(io::ErrorKind::UnexpectedEof.into()) })
}
