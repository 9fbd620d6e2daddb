//! The accepted socket, and the patience that we have with a client that takes no bytes.
//!
//! Below TLS and HTTP, so that neither can forget it: while a write waits, a deadline runs, and a few bytes do not stop it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::alarm::Alarm;

/// What `accept` returned.
#[derive(Debug)]
pub enum Socket {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection on a unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Holds what is written until the shutdown that follows. Where that is not possible it goes out as ever.
    fn cork(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(socket) = self {
            let _ = socket2::SockRef::from(socket).set_tcp_cork(true);
        }
    }
}

/// A socket whose writes may not wait for ever.
#[derive(Debug)]
pub struct Patient {
    socket: Socket,
    state: Arc<State>,
    /// Since when the client is behind, and what it has taken meanwhile.
    behind: Option<(Instant, usize)>,
    alarm: Alarm,
}

/// The connection's end of the socket: what it may steer and read, while others own the stream.
#[derive(Clone, Debug, Default)]
pub struct SocketHandle(Arc<State>);

/// Atomics because streams must be `Send`; only one thread uses them.
#[derive(Debug, Default)]
struct State {
    send_limit: AtomicU64,
    bytes_read: AtomicU64,
    is_ending: AtomicBool,
    is_reset: AtomicBool,
}

impl SocketHandle {
    /// Sets the longest time in which the client may take no byte, for writes that begin to wait from now on.
    pub fn limit_send(&self, limit: Duration) {
        self.0.send_limit.store(millis(limit), Ordering::Relaxed);
    }

    /// Says that the stream is shut down after the next write: both then travel in one packet.
    pub fn ends(&self) {
        self.0.is_ending.store(true, Ordering::Relaxed);
    }

    /// Says that the connection ends by a reset when the stream is dropped: nothing of it stays here, not even TIME_WAIT.
    pub fn resets(&self) {
        self.0.is_reset.store(true, Ordering::Relaxed);
    }

    /// Bytes that came, before decryption.
    pub fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Ordering::Relaxed)
    }
}

/// What a client that is behind must take within the limit, as bytes. Our choice: what request bodies must come at by
/// default, and no more than a frame of HTTP/2.
fn enough(limit: Duration) -> usize {
    usize::try_from(limit.as_secs() * 256).map_or(16 << 10, |enough| enough.clamp(1, 16 << 10))
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

impl Patient {
    /// Wraps a socket; the limit holds until a request sets another.
    pub fn new(socket: Socket, limit: Duration) -> (Self, SocketHandle) {
        let state = Arc::new(State { send_limit: AtomicU64::new(millis(limit)), ..State::default() });
        (Self { socket, state: Arc::clone(&state), behind: None, alarm: Alarm::default() }, SocketHandle(state))
    }

    /// A write waits: it fails when it has waited too long.
    fn poll_patience<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let (since, _) = *self.behind.get_or_insert_with(|| (Instant::now(), 0));
        if !self.alarm.is_late(cx, since + self.limit()) {
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")))
    }

    /// After a write of `length` bytes.
    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(written) = written else { return self.poll_patience(cx) };
        if let (Some((since, taken)), Ok(count)) = (self.behind, &written) {
            let taken = taken + count;
            // A byte now and then is no progress: what waits would be held for as long as that goes on.
            let is_enough = *count == length || taken >= enough(self.limit());
            self.behind = (!is_enough).then_some((since, taken));
        }
        Poll::Ready(written)
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.state.send_limit.load(Ordering::Relaxed))
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        if let Socket::Tcp(socket) = &self.socket
            && self.state.is_reset.load(Ordering::Relaxed)
        {
            // A socket that is already gone needs no reset.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = match &mut this.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Socket::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        };
        let length = buffer.filled().len() - before;
        // No other thread writes.
        let count = &this.state.bytes_read;
        count.store(count.load(Ordering::Relaxed) + length as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.state.is_ending.load(Ordering::Relaxed) {
            this.socket.cork();
        }
        let written = match &mut this.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Socket::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
        };
        this.judge(cx, bytes.len(), written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // One slice is the usual case, and a plain write the cheaper call.
        if let [bytes] = slices {
            return Pin::new(this).poll_write(cx, bytes);
        }
        let written = match &mut this.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
        };
        let length = slices.iter().map(|slice| slice.len()).sum();
        this.judge(cx, length, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have no buffer of their own.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::sleep;

    use super::*;

    /// How writing ends for a client that takes so many bytes each five seconds, at a limit of ten.
    async fn taken_by(bytes: usize) -> io::Result<()> {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let (mut patient, _handle) = Patient::new(Socket::Unix(ours), Duration::from_secs(10));
        let writing = async {
            for _ in 0..100 {
                patient.write_all(&[0; 16 << 10]).await?;
            }
            Ok(())
        };
        let reading = async {
            let mut buffer = vec![0; bytes];
            loop {
                sleep(Duration::from_secs(5)).await;
                theirs.read_exact(&mut buffer).await.expect("more");
            }
        };
        tokio::select! {
            ended = writing => ended,
            () = reading => Ok(()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_next_to_nothing_is_given_up() {
        assert_eq!(taken_by(1).await.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(taken_by(100).await.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        // The system reports room when most of its own buffer is free.
        assert!(taken_by(200 << 10).await.is_ok(), "slow, and still there");
    }
}
