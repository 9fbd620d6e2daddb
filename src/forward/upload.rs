//! A request on its way to an endpoint: the head in the form of HTTP/1.1 (RFC 9112 2.1, 3), then the body
//! under its length or in chunks (RFC 9112 7.1).
//!
//! The head arrives here judged and complete; what is written is exactly its fields, and the framing
//! that this file chooses. Both go out in as few writes as the stream takes.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, request};
use http_body::Body as _;
use tokio::io::AsyncWrite;

use super::link::Wire;
use crate::body::{Body, BodyError};

/// A request that is being written.
#[derive(Debug)]
pub struct Upload {
    head: request::Parts,
    /// The head as bytes, kept for a second attempt.
    text: Bytes,
    /// So many bytes of it are out.
    sent: usize,
    body: Body,
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

/// How the endpoint knows where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// So many bytes are still to be read from the body.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All of the body was read.
    Over,
}

/// Why a request was not written to its end.
#[derive(Debug)]
pub enum UploadError {
    /// Its body broke off.
    Body(BodyError),
    /// The endpoint takes no more. It may have answered all the same.
    Wire(io::Error),
}

impl Upload {
    /// A request that nothing was written of.
    pub fn new(head: request::Parts, body: Body) -> Self {
        let framing = match body.size_hint().exact() {
            _ if body.is_end_stream() => Framing::Over,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        let (text, frame, data) = (Bytes::new(), BytesMut::new(), Bytes::new());
        Self { head, text, sent: 0, body, framing, frame, data, tail: &[], has_begun: false }
    }

    /// Writes the head as bytes, with another `Host` if one is given. Before the first attempt, and
    /// before each that goes to another endpoint.
    pub fn write_head(&mut self, host: Option<&HeaderValue>) {
        let fields = &self.head.headers;
        let target = self.head.uri.path_and_query().map_or("/", |target| target.as_str());
        let length: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let mut text = Vec::with_capacity(length + target.len() + 128);
        for part in [self.head.method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            text.extend_from_slice(part.as_bytes());
        }
        // Nobody but this file has a word in the framing.
        for (name, value) in fields.iter().filter(|(name, _)| **name != CONTENT_LENGTH && **name != TRANSFER_ENCODING) {
            let value = if *name == HOST { host.unwrap_or(value) } else { value };
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        match self.framing {
            Framing::Length(length) => drop(write!(text, "content-length: {length}\r\n")),
            Framing::Chunked => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // RFC 9110 8.6: where a method gives content a meaning, its absence is said.
            Framing::Over if has_content(&self.head.method) => text.extend_from_slice(b"content-length: 0\r\n"),
            Framing::Over => {}
        }
        text.extend_from_slice(b"\r\n");
        self.text = text.into();
    }

    /// True for a HEAD: the response has no body then, whatever its head says (RFC 9112 6.3).
    pub fn is_head(&self) -> bool {
        self.head.method == Method::HEAD
    }

    /// True while an endpoint cannot have seen any of it.
    pub fn is_unsent(&self) -> bool {
        !self.has_begun
    }

    /// True when it may be sent a second time although it may have been seen (RFC 9110 9.2.2).
    pub fn is_repeatable(&self) -> bool {
        const IDEMPOTENT: [Method; 6] =
            [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE];
        matches!(self.body, Body::Empty) && IDEMPOTENT.contains(&self.head.method)
    }

    /// Begins again. Only for what is unsent or repeatable.
    pub fn rewind(&mut self) {
        self.sent = 0;
        self.has_begun = false;
    }

    /// Writes on. Ready when all of it is out.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, wire: &Wire) -> Poll<Result<(), UploadError>> {
        loop {
            let is_body_waiting = self.poll_body(cx).map_err(UploadError::Body)?.is_pending();
            let wire = &mut *wire.borrow_mut();
            let head = &self.text[self.sent..];
            let is_piece_out = self.is_piece_out();
            if head.is_empty() && is_piece_out {
                // What TLS reports as written may still sit in the session.
                ready!(Pin::new(wire).poll_flush(cx)).map_err(UploadError::Wire)?;
                return if is_body_waiting { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            let written = if is_piece_out {
                ready!(Pin::new(wire).poll_write(cx, head))
            } else {
                let slices = [head, &self.frame, &self.data, self.tail].map(IoSlice::new);
                ready!(Pin::new(wire).poll_write_vectored(cx, &slices))
            };
            let written = written.map_err(UploadError::Wire)?;
            if written == 0 {
                return Poll::Ready(Err(UploadError::Wire(io::ErrorKind::WriteZero.into())));
            }
            self.has_begun = true;
            self.advance(written);
        }
    }

    /// Takes off what was written.
    fn advance(&mut self, mut written: usize) {
        let head = written.min(self.text.len() - self.sent);
        self.sent += head;
        written -= head;
        let frame = written.min(self.frame.len());
        self.frame.advance(frame);
        written -= frame;
        let data = written.min(self.data.len());
        self.data.advance(data);
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
            Framing::Chunked => {
                // A size in hexadecimal digits; a vector in memory cannot fail.
                let mut size = [0; 18];
                let mut rest = &mut size[..];
                let _ = write!(rest, "{:x}\r\n", data.len());
                let unused = rest.len();
                self.frame.extend_from_slice(&size[..18 - unused]);
                self.tail = b"\r\n";
            }
            Framing::Over => {}
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
            Framing::Length(_) | Framing::Over => {}
            Framing::Chunked => {
                self.frame.extend_from_slice(b"0\r\n");
                for (name, value) in trailers {
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

/// Methods whose requests have content as a rule (RFC 9110 9.3).
fn has_content(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}
