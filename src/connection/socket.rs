//! The accepted socket, and the patience that we have with a client that takes no bytes.
//!
//! Below TLS and HTTP, so that neither can forget it: while a write waits, a deadline runs.

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
    /// Until when a write that waits may wait.
    until: Option<Instant>,
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

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

impl Patient {
    /// Wraps a socket; the limit holds until a request sets another.
    pub fn new(socket: Socket, limit: Duration) -> (Self, SocketHandle) {
        let state = Arc::new(State { send_limit: AtomicU64::new(millis(limit)), ..State::default() });
        (Self { socket, state: Arc::clone(&state), until: None, alarm: Alarm::default() }, SocketHandle(state))
    }

    /// A write waits: it fails when it has waited too long.
    fn poll_patience<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let limit = || Duration::from_millis(self.state.send_limit.load(Ordering::Relaxed));
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit());
        if !self.alarm.is_late(cx, until) {
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")))
    }

    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.poll_patience(cx),
            Poll::Ready(written) => {
                self.until = None;
                Poll::Ready(written)
            }
        }
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
        this.judge(cx, written)
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
        this.judge(cx, written)
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
