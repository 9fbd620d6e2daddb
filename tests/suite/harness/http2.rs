//! HTTP/2 clients: one on the `h2` crate for what is well formed, one that writes frames by itself
//! for what is not (RFC 9113, RFC 7541).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::edge::Edge;
use super::wire::{Io, Wire};
use super::within;

/// An HTTP/2 connection whose SETTINGS were exchanged.
pub(crate) struct H2 {
    /// The sender of requests.
    pub(crate) send: SendRequest<Bytes>,
    task: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A response over HTTP/2.
#[derive(Debug)]
pub(crate) struct H2Reply {
    /// The status code.
    pub(crate) status: u16,
    /// The header fields.
    pub(crate) headers: HeaderMap,
    /// The content, as far as it came.
    pub(crate) body: Vec<u8>,
    /// The trailer fields.
    pub(crate) trailers: Option<HeaderMap>,
    /// The error that ended the stream, if it did not end cleanly.
    pub(crate) error: Option<h2::Error>,
}

impl H2Reply {
    /// The text of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }
}

impl Edge {
    /// An HTTP/2 connection over TLS for this site.
    pub(crate) async fn h2(&self, host: &str) -> H2 {
        let stream = self.tls(host, &["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the edge speaks HTTP/2");
        H2::over(stream).await
    }

    /// An HTTP/2 connection on which the test writes the frames.
    pub(crate) async fn raw_h2(&self, host: &str) -> RawH2 {
        RawH2::over(self.tls(host, &["h2"]).await).await
    }
}

impl H2 {
    /// Starts HTTP/2 on a stream and waits until the peer's SETTINGS are known.
    pub(crate) async fn over(stream: impl Io + 'static) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
        // The crate ends the connection itself when too much still comes for streams that were given up: on a fast
        // machine, many answers given up in a second are enough. It is the edge's judgement that is tested.
        builder.max_local_error_reset_streams(None);
        let started = within("HTTP/2 starts", builder.handshake(stream)).await;
        let (send, mut connection) = started.expect("HTTP/2 starts");
        let mut ping = connection.ping_pong().expect("nobody took it before");
        let task = tokio::spawn(connection);
        // A pong comes after the peer's SETTINGS: only then is it known whether CONNECT may be extended.
        within("a pong", ping.ping(h2::Ping::opaque())).await.expect("a pong");
        Self { send, task }
    }

    /// Sends a request with a whole body and reads the whole response.
    pub(crate) async fn exchange(&mut self, request: Request<()>, body: Option<Vec<u8>>) -> Result<H2Reply, h2::Error> {
        let (response, mut stream) = self.open(request, body.is_none()).await?;
        if let Some(body) = body {
            stream.send_data(body.into(), true)?;
        }
        let response = within("a response over HTTP/2", response).await?;
        Ok(read(response).await)
    }

    /// A GET with this authority and target.
    pub(crate) async fn get(&mut self, host: &str, target: &str) -> H2Reply {
        let request = Request::get(format!("https://{host}{target}")).body(()).expect("a request");
        self.exchange(request, None).await.expect("a response")
    }

    /// Opens a stream.
    pub(crate) async fn open(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.send = within("the connection takes a stream", self.send.clone().ready()).await?;
        self.send.send_request(request, end)
    }

    /// Waits until the peer has closed the connection, and says how.
    pub(crate) async fn closed(self) -> Result<(), h2::Error> {
        let Self { send, task } = self;
        drop(send);
        within("the connection ends", task).await.expect("the connection's task does not panic")
    }
}

/// Reads a response to its end.
pub(crate) async fn read(response: Response<RecvStream>) -> H2Reply {
    let (head, mut stream) = response.into_parts();
    let mut reply =
        H2Reply { status: head.status.as_u16(), headers: head.headers, body: Vec::new(), trailers: None, error: None };
    while let Some(piece) = within("more of the body", stream.data()).await {
        match piece {
            Ok(piece) => {
                stream.flow_control().release_capacity(piece.len()).expect("what we were given");
                reply.body.extend_from_slice(&piece);
            }
            Err(error) => {
                reply.error = Some(error);
                return reply;
            }
        }
    }
    match within("the trailers", stream.trailers()).await {
        Ok(trailers) => reply.trailers = trailers,
        Err(error) => reply.error = Some(error),
    }
    reply
}

/// A stream of an extended CONNECT as a byte stream.
pub(crate) struct H2Io {
    send: SendStream<Bytes>,
    recv: RecvStream,
    left: Bytes,
}

impl H2Io {
    /// Joins both halves.
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, left: Bytes::new() }
    }
}

impl AsyncRead for H2Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.left.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    self.recv.flow_control().release_capacity(bytes.len()).map_err(io::Error::other)?;
                    self.left = bytes;
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let take = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(bytes.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let take = self.send.capacity().min(bytes.len());
        self.send.send_data(Bytes::copy_from_slice(&bytes[..take]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// RFC 9113 6: 0 DATA, 1 HEADERS, 3 RST_STREAM, 4 SETTINGS, 6 PING, 7 GOAWAY, 8 WINDOW_UPDATE.
    pub(crate) kind: u8,
    /// Its flags.
    pub(crate) flags: u8,
    /// Its stream.
    pub(crate) stream: u32,
    /// Its payload.
    pub(crate) payload: Vec<u8>,
}

/// How the edge dealt with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A response with this status.
    Status(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// The connection was closed without a word.
    Closed,
}

impl Outcome {
    /// True when the request was not served: an error of the stream or connection, or a 4xx answer.
    pub(crate) fn is_refused(self) -> bool {
        match self {
            Self::Status(status) => (400..500).contains(&status),
            Self::Reset(_) | Self::GoAway(_) | Self::Closed => true,
        }
    }
}

/// An HTTP/2 connection on which the test writes the frames.
pub(crate) struct RawH2 {
    wire: Wire,
}

impl RawH2 {
    /// Sends the preface and SETTINGS (no dynamic table, so that a status can be read without state).
    pub(crate) async fn over(stream: impl Io + 'static) -> Self {
        let mut raw = Self { wire: Wire::new(stream) };
        raw.wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.frame(4, 0, 0, &[0, 1, 0, 0, 0, 0]).await;
        raw
    }

    /// Writes one frame; a peer that has closed already is not a failure.
    pub(crate) async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        within("the edge takes a frame", self.wire.try_send(bytes)).await.is_ok()
    }

    /// Writes bytes as they stand, and says whether the edge took them.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        within("the edge takes frames", self.wire.try_send(bytes)).await.is_ok()
    }

    /// Writes HEADERS with these fields as they stand.
    pub(crate) async fn headers(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) -> bool {
        let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect();
        self.frame(1, 0x4 | u8::from(end), stream, &block).await
    }

    /// Writes DATA.
    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], end: bool) -> bool {
        self.frame(0, u8::from(end), stream, bytes).await
    }

    /// The next frame; `None` when the connection ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        while self.wire.buffered().len() < 9 {
            if !self.wire.fill().await {
                return None;
            }
        }
        let head = self.wire.buffered()[..9].to_vec();
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).expect("24 bits");
        while self.wire.buffered().len() < 9 + length {
            if !self.wire.fill().await {
                return None;
            }
        }
        let mut bytes = self.wire.exact(9 + length).await;
        let payload = bytes.split_off(9);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        // RFC 9113 6.5.3, 6.7: SETTINGS and PING want an acknowledgement.
        match (frame.kind, frame.flags & 1) {
            (4, 0) => drop(self.frame(4, 1, 0, &[]).await),
            (6, 0) => drop(self.frame(6, 1, 0, &frame.payload.clone()).await),
            _ => {}
        }
        Some(frame)
    }

    /// Reads on until it is clear what became of a stream.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.next().await {
            let word = |at: usize| frame.payload.get(at..at + 4).map_or(0, |mut word| word.get_u32());
            match frame.kind {
                1 if frame.stream == stream => return Outcome::Status(status(&frame.payload)),
                3 if frame.stream == stream => return Outcome::Reset(word(0)),
                7 => return Outcome::GoAway(word(4)),
                _ => {}
            }
        }
        Outcome::Closed
    }

    /// Sends one request made of HEADERS alone and says what became of it.
    pub(crate) async fn request(&mut self, stream: u32, fields: &[(&str, &str)]) -> Outcome {
        self.headers(stream, fields, true).await;
        self.outcome(stream).await
    }
}

/// A field as a literal without indexing and without Huffman coding (RFC 7541 6.2.2), lengths below 2^14.
pub(crate) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for part in [name, value] {
        let length = part.len();
        if length < 127 {
            bytes.push(u8::try_from(length).expect("below 127"));
        } else {
            // RFC 7541 5.1: the rest in groups of seven bits.
            let mut rest = length - 127;
            bytes.push(127);
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).expect("below 128") | 0x80);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).expect("below 128"));
        }
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The status that a response block begins with, as an encoder without a dynamic table writes it.
fn status(block: &[u8]) -> u16 {
    let mut block = block;
    // RFC 7541 6.3: a size update comes first.
    while block.first().is_some_and(|byte| byte & 0xe0 == 0x20) {
        block = &block[1..];
    }
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8a, ..] => 206,
        [0x8b, ..] => 304,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        // A literal whose name is `:status`, entry 8 of the static table.
        [0x48 | 0x08 | 0x18, length, rest @ ..] => {
            let value = &rest[..usize::from(length & 0x7f)];
            let digits = if length & 0x80 == 0 { value.to_vec() } else { huffman_digits(value) };
            String::from_utf8(digits).ok().and_then(|text| text.parse().ok()).expect("a status is a number")
        }
        other => panic!("not a block that begins with a status: {other:02x?}"),
    }
}

/// Digits in HPACK's Huffman code (RFC 7541 appendix B): `0` to `2` have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u8, |sum, bit| sum << 1 | bit);
    let mut rest = &bits[..];
    let mut digits = Vec::new();
    while rest.len() >= 5 {
        match number(&rest[..5]) {
            short @ 0..=2 => {
                digits.push(b'0' + short);
                rest = &rest[5..];
            }
            _ if rest.len() >= 6 && (0x19..=0x1f).contains(&number(&rest[..6])) => {
                digits.push(b'3' + number(&rest[..6]) - 0x19);
                rest = &rest[6..];
            }
            _ => break,
        }
    }
    digits
}
