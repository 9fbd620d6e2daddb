//! A request on its way to an endpoint, in the form of HTTP/1.1 (RFC 9112 2.1, 3).
//!
//! The head arrives here judged and complete; what is written is exactly its fields, and the framing
//! that this file chooses.

use std::io::Write as _;
use std::task::{Context, Poll};

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, request};
use http_body::Body as _;

use super::link::Wire;
use crate::body::Body;
use crate::framing::sending::{Framing, SendError, Sending};

/// A request that is being written.
#[derive(Debug)]
pub struct Upload {
    head: request::Parts,
    /// How the whole body is framed. What `sending` says of it counts down as the body is read.
    framing: Framing,
    sending: Sending<Body>,
}

impl Upload {
    /// A request that nothing was written of.
    pub fn new(head: request::Parts, body: Body) -> Self {
        let framing = match body.size_hint().exact() {
            _ if body.is_end_stream() => Framing::Over,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked(true),
        };
        Self { head, framing, sending: Sending::new(Vec::new(), body, framing) }
    }

    /// Writes the head as bytes, with another `Host` if one is given. Before the first attempt, and
    /// before each that goes to another endpoint.
    pub fn write_head(&mut self, host: Option<&HeaderValue>) {
        let fields = &self.head.headers;
        let target = self.head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let length: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let mut text = Vec::with_capacity(length + target.len() + 96);
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
            Framing::Chunked(_) => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // RFC 9110 8.6: where a method gives content a meaning, its absence is said.
            Framing::Close | Framing::Over if has_content(&self.head.method) => {
                text.extend_from_slice(b"content-length: 0\r\n");
            }
            Framing::Close | Framing::Over => {}
        }
        text.extend_from_slice(b"\r\n");
        self.sending.set_head(text);
    }

    /// True for a HEAD: the response has no body then, whatever its head says (RFC 9112 6.3).
    pub fn is_head(&self) -> bool {
        self.head.method == Method::HEAD
    }

    /// True while an endpoint cannot have seen any of it.
    pub fn is_unsent(&self) -> bool {
        self.sending.is_unsent()
    }

    /// True when it may be sent a second time although it may have been seen (RFC 9110 9.2.2).
    pub fn is_repeatable(&self) -> bool {
        const IDEMPOTENT: [Method; 6] =
            [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE];
        matches!(self.sending.body(), Body::Empty) && IDEMPOTENT.contains(&self.head.method)
    }

    /// Begins again. Only for what is unsent or repeatable.
    pub fn rewind(&mut self) {
        self.sending.rewind();
    }

    /// Writes on. Ready when all of it is out.
    ///
    /// # Errors
    /// What broke: the request's body, or the connection.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, wire: &Wire) -> Poll<Result<(), SendError>> {
        self.sending.poll_send(cx, wire)
    }
}

/// Methods whose requests have content as a rule (RFC 9110 9.3).
fn has_content(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use crate::forward::connect::EndpointStream;

    /// What did not go to one endpoint goes whole to the next, under a head of its own: a length that had been
    /// counted down meanwhile would leave the body to be taken for another request.
    #[tokio::test]
    async fn a_second_head_announces_all_of_the_body() {
        for (body, framing) in
            [(Body::full("GET /hidden HTTP/1.1\r\n\r\n"), "content-length: 24"), (Body::Empty, "content-length: 0")]
        {
            let request = http::Request::post("/").header(HOST, "a.test").body(()).expect("a request");
            let mut upload = Upload::new(request.into_parts().0, body);
            upload.write_head(None);
            let (gone, peer) = UnixStream::pair().expect("sockets");
            drop(peer);
            let gone: Wire = Rc::new(RefCell::new(EndpointStream::Unix(gone)));
            let sent = poll_fn(|cx| upload.poll_send(cx, &gone)).await;
            assert!(matches!(sent, Err(SendError::Wire(_))) && upload.is_unsent());
            upload.rewind();
            upload.write_head(Some(&HeaderValue::from_static("b.test")));
            let (there, mut peer) = UnixStream::pair().expect("sockets");
            let there: Wire = Rc::new(RefCell::new(EndpointStream::Unix(there)));
            poll_fn(|cx| upload.poll_send(cx, &there)).await.expect("an open socket");
            drop((there, gone));
            let mut seen = String::new();
            peer.read_to_string(&mut seen).await.expect("a request");
            assert!(seen.contains(framing) && seen.contains("host: b.test"), "{seen}");
        }
    }
}
