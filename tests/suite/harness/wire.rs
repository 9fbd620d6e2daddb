//! One connection seen as bytes, with a strict HTTP/1.1 response reader on top (RFC 9112).
//!
//! It is not a client library: it hides nothing, follows nothing and repairs nothing, so that a test
//! sees where a message ended and how.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::within;

/// Any byte stream.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Header fields in order of arrival, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The value of a field that stands at most once; fails the test when it stands twice.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} stands {} times: {all:?}", all.len());
        all.first().copied()
    }

    /// The values of all fields of a name, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// True when a field of this name is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    /// Reads the lines of a head after its first one. Bytes above ASCII are read as Latin-1.
    pub(crate) fn parse(lines: &[u8]) -> Result<Self, String> {
        let mut headers = Vec::new();
        for line in split_lines(lines)? {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                return Err(format!("a header line without a colon: {:?}", text(line)));
            };
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
                return Err(format!("a header name that is no token: {:?}", text(name)));
            }
            if value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
                return Err(format!("a control byte in a value: {:?}", text(line)));
            }
            headers.push((text(name).to_ascii_lowercase(), text(value).trim_matches([' ', '\t']).to_owned()));
        }
        Ok(Self(headers))
    }
}

/// The lines of `bytes`, each ended by CRLF and without a CR or LF of its own.
pub(crate) fn split_lines(bytes: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut rest = bytes;
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return Err(format!("a line without its end: {:?}", text(rest)));
        };
        if rest[..end].iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return Err(format!("a bare CR or LF: {:?}", text(&rest[..end])));
        }
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    Ok(lines)
}

/// RFC 9110 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Bytes as Latin-1 text, so that nothing is lost.
pub(crate) fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// A response as it came over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The status code.
    pub(crate) status: u16,
    /// The header fields.
    pub(crate) headers: Headers,
    /// The content, as far as it came.
    pub(crate) body: Vec<u8>,
    /// The trailer fields.
    pub(crate) trailers: Headers,
    /// False when the message ended before its framing said so.
    pub(crate) is_complete: bool,
}

impl Reply {
    /// The content as text.
    pub(crate) fn text(&self) -> String {
        text(&self.body)
    }

    /// The content as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }

    /// True when the edge made this answer and says so (RFC 9209).
    pub(crate) fn is_by_edge(&self) -> bool {
        self.headers.get("proxy-status").is_some_and(|s| s.starts_with("tidegate") && !s.contains("received-status"))
    }
}

/// A connection and what was read from it ahead of need.
pub(crate) struct Wire {
    io: Box<dyn Io>,
    buffer: BytesMut,
}

impl Wire {
    /// A wire over any stream.
    pub(crate) fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), buffer: BytesMut::new() }
    }

    /// The stream and the bytes read ahead.
    pub(crate) fn into_parts(self) -> (Box<dyn Io>, BytesMut) {
        (self.io, self.buffer)
    }

    /// Writes and flushes all bytes; fails the test when the peer does not take them.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the peer takes our bytes", self.try_send(bytes)).await.expect("the peer takes our bytes");
    }

    /// Writes and flushes; a peer that has closed is not a failure.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Ends our direction (FIN, and close_notify under TLS).
    pub(crate) async fn shutdown(&mut self) {
        within("our direction is closed", self.io.shutdown()).await.ok();
    }

    /// Reads what comes next into the buffer; false at the end or after a reset.
    pub(crate) async fn fill(&mut self) -> bool {
        let read = within("the peer sends or closes", self.io.read_buf(&mut self.buffer)).await;
        matches!(read, Ok(n) if n > 0)
    }

    /// As `fill`, without a bound: for a connection that may rightly be idle.
    pub(crate) async fn fill_patiently(&mut self) -> bool {
        matches!(self.io.read_buf(&mut self.buffer).await, Ok(n) if n > 0)
    }

    /// Bytes that were read and not yet taken.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Throws away what was read, and returns how much it was.
    pub(crate) fn take_all(&mut self) -> usize {
        let length = self.buffer.len();
        self.buffer.clear();
        length
    }

    /// The next `length` bytes.
    pub(crate) async fn exact(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.fill().await, "the peer closed after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.split_to(length).to_vec()
    }

    /// Everything until the peer closes or resets.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        self.buffer.split().to_vec()
    }

    /// Reads until the buffer holds `needle`, and takes everything up to its end.
    pub(crate) async fn until(&mut self, needle: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(needle.len()).position(|window| window == needle) {
                return Some(self.buffer.split_to(at + needle.len()).to_vec());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// A head, up to and with its empty line; `None` when the peer closed before it was whole.
    pub(crate) async fn head(&mut self) -> Option<Vec<u8>> {
        self.until(b"\r\n\r\n").await
    }

    /// The response to a request that was not HEAD.
    pub(crate) async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    /// The response to a request with this method; interim responses but 101 are an error.
    pub(crate) async fn reply_to(&mut self, method: &str) -> Reply {
        let got = self.try_reply_to(method).await;
        got.unwrap_or_else(|| panic!("closed without a response; left: {:?}", text(&self.buffer)))
    }

    /// As `reply_to`; `None` when the peer closed without one.
    pub(crate) async fn try_reply_to(&mut self, method: &str) -> Option<Reply> {
        let mut reply = self.reply_head().await?;
        let no_body = method == "HEAD" || matches!(reply.status, 101 | 204 | 304);
        if no_body {
            reply.is_complete = true;
            return Some(reply);
        }
        match (reply.headers.get("transfer-encoding"), reply.headers.get("content-length")) {
            (Some("chunked"), None) => loop {
                match self.chunk().await {
                    Some(chunk) if chunk.is_empty() => {
                        let Some(trailers) = self.trailers().await else { return Some(reply) };
                        reply.trailers = trailers;
                        reply.is_complete = true;
                        return Some(reply);
                    }
                    Some(chunk) => reply.body.extend_from_slice(&chunk),
                    None => return Some(reply),
                }
            },
            (None, Some(length)) => {
                let length: usize = length.parse().expect("Content-Length is a number");
                while self.buffer.len() < length && self.fill().await {}
                reply.is_complete = self.buffer.len() >= length;
                let have = self.buffer.len().min(length);
                reply.body = self.buffer.split_to(have).to_vec();
                Some(reply)
            }
            (None, None) => {
                reply.body = self.rest().await;
                reply.is_complete = true;
                Some(reply)
            }
            (coding, length) => panic!("ambiguous framing from the edge: {coding:?} with {length:?}"),
        }
    }

    /// The head of a response alone; its body is left on the wire.
    pub(crate) async fn reply_head(&mut self) -> Option<Reply> {
        let head = self.head().await?;
        let end = head.windows(2).position(|pair| pair == b"\r\n").expect("a head has a line");
        let line = text(&head[..end]);
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let Some(status) = status else { panic!("not a status line of HTTP/1.1: {line:?}") };
        let headers = Headers::parse(&head[end + 2..head.len() - 2]).expect("a well-formed response head");
        Some(Reply { status, headers, body: Vec::new(), trailers: Headers::default(), is_complete: false })
    }

    /// The next chunk (RFC 9112 7.1); empty for the last one, `None` when the peer closed in between.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.until(b"\r\n").await?;
        let digits = text(&line[..line.len() - 2]);
        let length = usize::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("a bad chunk line: {digits:?}"));
        if length == 0 {
            return Some(Vec::new());
        }
        while self.buffer.len() < length + 2 {
            if !self.fill().await {
                return None;
            }
        }
        let chunk = self.buffer.split_to(length).to_vec();
        assert_eq!(&self.buffer[..2], b"\r\n", "a chunk ends with CRLF");
        self.buffer.advance(2);
        Some(chunk)
    }

    /// The trailer section after the last chunk.
    pub(crate) async fn trailers(&mut self) -> Option<Headers> {
        let mut lines = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            if line == b"\r\n" {
                return Some(Headers::parse(&lines).expect("well-formed trailers"));
            }
            lines.extend_from_slice(&line);
        }
    }
}
