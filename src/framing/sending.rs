//! A message of HTTP/1.1 on its way out, request or response: its head as bytes, then its body under a
//! length, in chunks (RFC 9112 7.1), or as long as the connection.
//!
//! Head and first piece go out in one write. Nothing is held back: a piece is written before the next
//! one is asked for, so that a slow reader slows its sender down.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use tokio::io::AsyncWrite;

use crate::body::BodyError;

/// A message that is being written.
#[derive(Debug)]
pub struct Sending<B> {
    /// The head, kept for a second attempt.
    head: Vec<u8>,
    /// So many bytes of it are out.
    sent: usize,
    body: B,
    framing: Framing,
    /// Framing that goes before `data`.
    frame: BytesMut,
    /// The present piece of the body.
    data: Bytes,
    /// Framing that goes after `data`.
    tail: &'static [u8],
    /// Something was handed to a stream.
    has_begun: bool,
}

/// How the reader knows where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes are still to be read from the body.
    Length(u64),
    /// In chunks; `true` with the trailer section.
    Chunked(bool),
    /// With the connection.
    Close,
    /// All of the body was read, or there is none.
    Over,
}

/// Why a message was not written to its end.
#[derive(Debug)]
pub enum SendError {
    /// Its body broke off.
    Body(BodyError),
    /// The reader takes no more.
    Wire(io::Error),
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Sending<B> {
    /// A message that nothing was written of.
    pub fn new(head: Vec<u8>, body: B, framing: Framing) -> Self {
        let (frame, data) = (BytesMut::new(), Bytes::new());
        Self { head, sent: 0, body, framing, frame, data, tail: &[], has_begun: false }
    }

    /// Another head for the same body, before anything was written.
    pub fn set_head(&mut self, head: Vec<u8>) {
        self.head = head;
    }

    /// The body.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// True while no byte was handed to a stream.
    pub fn is_unsent(&self) -> bool {
        !self.has_begun
    }

    /// True when nothing more is asked of the body: the rest waits for the stream alone.
    pub fn is_body_read(&self) -> bool {
        self.framing == Framing::Over
    }

    /// Begins again with the head. Only where nothing of a body was written.
    pub fn rewind(&mut self) {
        self.sent = 0;
        self.has_begun = false;
    }

    /// Writes on. Ready when all of it is out.
    ///
    /// # Errors
    /// What broke: the body, or the stream.
    pub fn poll_send<W>(&mut self, cx: &mut Context<'_>, wire: &RefCell<W>) -> Poll<Result<(), SendError>>
    where
        W: AsyncWrite + Unpin,
    {
        loop {
            let is_body_waiting = self.poll_body(cx).map_err(SendError::Body)?.is_pending();
            let wire = &mut *wire.borrow_mut();
            let head = &self.head[self.sent..];
            let is_piece_out = self.is_piece_out();
            if head.is_empty() && is_piece_out {
                // What TLS reports as written may still sit in the session.
                ready!(Pin::new(wire).poll_flush(cx)).map_err(SendError::Wire)?;
                return if is_body_waiting { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            let written = if is_piece_out {
                ready!(Pin::new(wire).poll_write(cx, head))
            } else if head.is_empty() && self.frame.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(wire).poll_write(cx, &self.data))
            } else {
                let slices = [head, &self.frame, &self.data, self.tail].map(IoSlice::new);
                ready!(Pin::new(wire).poll_write_vectored(cx, &slices))
            };
            let written = written.map_err(SendError::Wire)?;
            if written == 0 {
                return Poll::Ready(Err(SendError::Wire(io::ErrorKind::WriteZero.into())));
            }
            self.has_begun = true;
            self.advance(written);
        }
    }

    /// Takes off what was written.
    fn advance(&mut self, mut written: usize) {
        let head = written.min(self.head.len() - self.sent);
        self.sent += head;
        written -= head;
        let frame = written.min(self.frame.len());
        self.frame.advance(frame);
        written -= frame;
        let data = written.min(self.data.len());
        self.data.advance(data);
        if self.data.is_empty() {
            // Even an empty view keeps its memory from whoever reads into it next.
            self.data = Bytes::new();
        }
        self.tail = &self.tail[written - data..];
    }

    /// True when nothing of the present piece is left to write.
    fn is_piece_out(&self) -> bool {
        self.frame.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Reads the next piece of the body, if the last one is out.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        // Before the head has gone the first piece is taken too: both then need one write.
        while self.is_piece_out() && self.framing != Framing::Over {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()? {
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.take_data(data)?,
                    Err(other) => self.end(&other.into_trailers().unwrap_or_default())?,
                },
                None => self.end(&HeaderMap::new())?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take_data(&mut self, data: Bytes) -> Result<(), BodyError> {
        match &mut self.framing {
            // An empty chunk would be the last one.
            _ if data.is_empty() => return Ok(()),
            Framing::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or_else(BodyError::wrong_length)?,
            Framing::Chunked(_) => {
                // A size in hexadecimal digits; a vector in memory cannot fail.
                let mut size = [0; 18];
                let mut rest = &mut size[..];
                let _ = write!(rest, "{:x}\r\n", data.len());
                let unused = rest.len();
                self.frame.extend_from_slice(&size[..18 - unused]);
                self.tail = b"\r\n";
            }
            Framing::Close | Framing::Over => {}
        }
        self.data = data;
        if self.framing == Framing::Length(0) {
            self.framing = Framing::Over;
        }
        Ok(())
    }

    fn end(&mut self, trailers: &HeaderMap) -> Result<(), BodyError> {
        match self.framing {
            Framing::Length(left) if left > 0 => return Err(BodyError::wrong_length()),
            Framing::Length(_) | Framing::Close | Framing::Over => {}
            Framing::Chunked(may_trail) => {
                self.frame.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().filter(|_| may_trail) {
                    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                        self.frame.extend_from_slice(part);
                    }
                }
                self.frame.extend_from_slice(b"\r\n");
            }
        }
        self.framing = Framing::Over;
        Ok(())
    }
}
