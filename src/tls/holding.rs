//! Session tickets travel with the first answer, not alone.
//!
//! RFC 8446 4.6.1 lets a server send tickets at any time after the client's Finished; rustls writes them at
//! once, which costs a packet and two wake-ups a connection before anything was asked. Here they wait
//! for what the server says next. A client that never asks needs no ticket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream below a TLS server session.
#[derive(Debug)]
pub struct Holding<S> {
    stream: S,
    turn: Turn,
    /// Tickets that are not written yet.
    held: Vec<u8>,
}

/// Whose turn it is in a handshake (RFC 8446 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The client's, with its first flight.
    Hello,
    /// Ours.
    Flight,
    /// The client's, with its Finished; what we write next may be tickets.
    Finished,
    /// Nobody's: all passes as it comes.
    Over,
}

/// The type of an encrypted record (RFC 8446 5.2). In TLS 1.2 the server's second flight begins with another one.
const APPLICATION_DATA: u8 = 23;

/// The type of a record of the handshake.
const HANDSHAKE: u8 = 22;

/// More than any tickets take.
const MOST: usize = 2 << 10;

/// What an encrypted alert takes (RFC 8446 5.2, 6): header, two bytes, type and tag. It is the last word before
/// the stream is dropped, and must not wait.
const ALERT: usize = 5 + 2 + 1 + 16;

impl<S> Holding<S> {
    /// A stream on which the client has sent its ClientHello, or is about to.
    pub fn new(stream: S) -> Self {
        Self { stream, turn: Turn::Hello, held: Vec::new() }
    }

    /// The handshake is over. What is written from now on is no ticket: a client that takes none gets none, nor
    /// does one that resumed with TLS 1.2, and their first answers must not wait.
    pub fn settle(&mut self) {
        self.turn = Turn::Over;
    }

    /// Whether to hold what is to be written.
    fn holds(&self, first: Option<u8>, length: usize) -> bool {
        self.turn == Turn::Finished && first == Some(APPLICATION_DATA) && (ALERT + 1..=MOST).contains(&length)
    }

    /// After a write: whose turn it is then. A flight that was cut is not followed any further.
    fn wrote(&mut self, first: Option<u8>, is_whole: bool) {
        self.turn = match self.turn {
            Turn::Hello if first == Some(HANDSHAKE) && is_whole => Turn::Flight,
            Turn::Flight if is_whole => Turn::Flight,
            Turn::Hello | Turn::Flight | Turn::Finished | Turn::Over => Turn::Over,
        };
    }
}

impl<S: AsyncWrite + Unpin> Holding<S> {
    /// Writes what is held, and `more` behind it. Ready with how much of `more` is out.
    fn poll_held(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let slices = [IoSlice::new(&self.held), IoSlice::new(more)];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let held = written.min(self.held.len());
            self.held.drain(..held);
            if written > held {
                self.held = Vec::new();
                return Poll::Ready(Ok(written - held));
            }
        }
        self.held = Vec::new();
        if more.is_empty() { Poll::Ready(Ok(0)) } else { Pin::new(&mut self.stream).poll_write(cx, more) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Holding<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if self.turn == Turn::Flight && buffer.filled().len() > before {
            self.turn = Turn::Finished;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Holding<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.turn == Turn::Over {
            if this.held.is_empty() {
                return Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
            }
            let first = slices.iter().find(|slice| !slice.is_empty());
            return this.poll_held(cx, first.map_or(&[], |slice| slice));
        }
        let length = slices.iter().map(|slice| slice.len()).sum();
        let first = slices.iter().find_map(|slice| slice.first()).copied();
        if this.holds(first, length) {
            slices.iter().for_each(|slice| this.held.extend_from_slice(slice));
            this.turn = Turn::Over;
            return Poll::Ready(Ok(length));
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        this.wrote(first, written == length);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Flushes what is on its way; what is held is not.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Before the end of the stream everything goes out that was said.
        ready!(self.poll_held(cx, &[]))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const FLIGHT: &[u8] = &[HANDSHAKE, 3, 3, 0, 1, 0];
    const TICKETS: &[u8] = &[APPLICATION_DATA; 200];
    const ENCRYPTED_ALERT: &[u8] = &[APPLICATION_DATA; ALERT];

    /// A handshake up to the client's Finished, then `second` from the server; returns what the client sees at once.
    async fn seen_of(second: &[u8]) -> (Vec<u8>, Holding<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (mut client, server) = duplex(1 << 10);
        let mut server = Holding::new(server);
        server.write_all(FLIGHT).await.expect("room");
        client.write_all(b"finished").await.expect("room");
        server.read_exact(&mut [0; 8]).await.expect("it was sent");
        server.write_all(second).await.expect("room");
        server.flush().await.expect("an open stream");
        let mut seen = vec![0; 1 << 10];
        let length = client.read(&mut seen).await.expect("the flight");
        seen.truncate(length);
        (seen, server, client)
    }

    #[tokio::test]
    async fn tickets_wait_for_the_first_answer() {
        let (seen, mut server, mut client) = seen_of(TICKETS).await;
        assert_eq!(seen, FLIGHT);
        server.write_all(b"answer").await.expect("room");
        server.write_all(b", more").await.expect("room");
        let mut rest = [0; TICKETS.len() + 12];
        client.read_exact(&mut rest).await.expect("tickets and answer");
        assert_eq!(rest.as_slice(), [TICKETS, b"answer, more"].concat());
    }

    #[tokio::test]
    async fn tickets_go_out_before_the_end() {
        let (_, mut server, mut client) = seen_of(TICKETS).await;
        server.shutdown().await.expect("an open stream");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("tickets");
        assert_eq!(rest, TICKETS);
    }

    #[tokio::test]
    async fn an_alert_does_not_wait() {
        let (seen, ..) = seen_of(ENCRYPTED_ALERT).await;
        assert_eq!(seen, [FLIGHT, ENCRYPTED_ALERT].concat());
    }

    #[tokio::test]
    async fn a_second_flight_of_tls_1_2_is_not_held() {
        let (seen, ..) = seen_of(FLIGHT).await;
        assert_eq!(seen, [FLIGHT, FLIGHT].concat());
    }
}
