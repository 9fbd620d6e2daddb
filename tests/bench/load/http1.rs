//! HTTP/1.1 by hand: the request is bytes that were made once, the answer is read to its last byte.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf as _, BytesMut};
use rustls::HandshakeKind;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

use crate::Amount;
use crate::bodies::{self, Follower, SMALL};
use crate::meter::{self, Fault};
use crate::tls::{Stream, Target};

/// The fields of a browser's request beside `Host`.
pub(crate) const BROWSER: [(&str, &str); 9] = [
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    ),
    ("accept", "application/json, text/plain, */*"),
    ("accept-language", "en-US,en;q=0.9,de;q=0.8"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("referer", "https://bench.example.test/app/conversations"),
    ("cookie", "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; sidebar=open"),
    ("sec-fetch-dest", "empty"),
    ("sec-fetch-mode", "cors"),
    ("sec-fetch-site", "same-origin"),
];
/// What small requests ask for.
pub(crate) const PATH: &str = "/api/v1/items?page=2&sort=newest";
/// How much of a large body is written or read at once: a whole period, so that each piece that is written
/// begins where the last one ended.
const PIECE: usize = bodies::PERIOD;

/// A browser's request head. `extra` are whole lines.
pub(crate) fn head(host: &str, method: &str, path: &str, extra: &str) -> Vec<u8> {
    let fields: String = BROWSER.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{extra}\r\n").into_bytes()
}

/// One connection.
pub(crate) struct Http1 {
    pub(crate) stream: Stream,
    /// What came and was not used yet.
    pub(crate) buffer: BytesMut,
}

/// The parts of an answer's head that matter here.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) length: u64,
    pub(crate) is_last: bool,
    pub(crate) accept: Option<String>,
}

impl Http1 {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(4096) }
    }

    /// Sends bytes, the last of them included: a write may end in the TLS session.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// A small request and its whole answer, which is checked; true when it was the connection's last.
    pub(crate) async fn small(&mut self, request: &[u8]) -> Result<bool, Fault> {
        self.send(request).await?;
        let answer = self.answer().await?;
        let length = expect_ok(&answer)?;
        while self.buffer.len() < length {
            self.more().await?;
        }
        if &self.buffer[..length] != SMALL.as_bytes() {
            return Err("another body".into());
        }
        self.buffer.advance(length);
        if self.buffer.is_empty() { Ok(answer.is_last) } else { Err("bytes after the answer".into()) }
    }

    /// Reads a head.
    pub(crate) async fn answer(&mut self) -> Result<Answer, Fault> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 48];
            let mut response = httparse::Response::new(&mut fields);
            if let httparse::Status::Complete(length) = response.parse(&self.buffer)? {
                let field = |name: &str| {
                    let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
                    found.and_then(|field| std::str::from_utf8(field.value).ok())
                };
                let status = response.code.unwrap_or(0);
                let answer = Answer {
                    status,
                    // RFC 9110 15.2: no content with 1xx.
                    length: if status == 101 { 0 } else { field("content-length").ok_or("no length")?.parse()? },
                    is_last: field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
                    accept: field("sec-websocket-accept").map(str::to_owned),
                };
                self.buffer.advance(length);
                return Ok(answer);
            }
            self.more().await?;
        }
    }

    /// Reads on; the end of the connection is an error here.
    pub(crate) async fn more(&mut self) -> Result<(), Fault> {
        self.buffer.reserve(1024);
        if self.stream.read_buf(&mut self.buffer).await? == 0 { Err("closed before the answer".into()) } else { Ok(()) }
    }

    /// True when the peer has closed, or sent what nobody asked for, as far as is known by now.
    pub(crate) async fn is_over(&mut self) -> bool {
        let mut byte = [0];
        poll_fn(|context| {
            let mut room = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut self.stream).poll_read(context, &mut room).is_ready())
        })
        .await
    }

    /// Closes and waits until the peer has closed too, so that all its work for this connection is done.
    async fn close(mut self) {
        // The answer was whole: how the peer takes its leave does not count.
        if self.stream.shutdown().await.is_ok() {
            let mut rest = [0; 256];
            while matches!(self.stream.read(&mut rest).await, Ok(size) if size > 0) {}
        }
    }
}

/// An answer that must be a 200.
fn expect_ok(answer: &Answer) -> Result<usize, Fault> {
    if answer.status == 200 {
        Ok(usize::try_from(answer.length)?)
    } else {
        Err(format!("status {}", answer.status).into())
    }
}

/// Small requests, one at a time on each connection.
pub(crate) async fn small(target: Target, amount: Amount) -> Result<(), Fault> {
    let dialer = target.dialer("http/1.1", false)?;
    let request = head(&target.host, "GET", PATH, "");
    let workers = meter::many(amount.connections, async |_| {
        let mut http = Http1::new(dialer.open().await?);
        http.small(&request).await?;
        Ok(http)
    })
    .await?;
    meter::work(amount.count, workers, |mut http, meter| {
        let request = request.clone();
        async move {
            while meter.take() {
                let began = Instant::now();
                if http.small(&request).await? {
                    return Err("the connection was closed".into());
                }
                meter.done(began);
            }
            Ok(http)
        }
    })
    .await
}

/// Connection, handshake, one request, close.
pub(crate) async fn handshakes(target: Target, amount: Amount, is_resuming: bool) -> Result<(), Fault> {
    let request = head(&target.host, "GET", PATH, "");
    let workers = meter::many(amount.connections, async |_| {
        // Tickets are used once each (RFC 8446 C.4), so each worker has its own.
        let dialer = target.dialer("http/1.1", is_resuming)?;
        let mut http = Http1::new(dialer.open_as(HandshakeKind::Full).await?);
        // Tickets come with the answer.
        http.small(&request).await?;
        http.close().await;
        Ok(dialer)
    })
    .await?;
    let kind = if is_resuming { HandshakeKind::Resumed } else { HandshakeKind::Full };
    meter::work(amount.count, workers, |dialer, meter| {
        let request = request.clone();
        async move {
            while meter.take() {
                let began = Instant::now();
                let mut http = Http1::new(dialer.open_as(kind).await?);
                http.small(&request).await?;
                meter.done(began);
                http.close().await;
            }
            Ok(())
        }
    })
    .await
}

/// Large response bodies.
pub(crate) async fn download(target: Target, amount: Amount, bytes: u64) -> Result<(), Fault> {
    let dialer = target.dialer("http/1.1", false)?;
    let request = head(&target.host, "GET", &format!("/bytes/{bytes}"), "");
    let workers = meter::many(amount.connections, async |_| Ok(Http1::new(dialer.open().await?))).await?;
    meter::work(amount.count, workers, |mut http, meter| {
        let request = request.clone();
        async move {
            let pattern = bodies::periods(2);
            let mut piece = vec![0; PIECE];
            while meter.take() {
                let began = Instant::now();
                http.send(&request).await?;
                let answer = http.answer().await?;
                expect_ok(&answer)?;
                let mut follower = Follower::new(&pattern);
                let mut is_whole = follower.take(&http.buffer.split());
                while is_whole && follower.offset() < answer.length {
                    let size = http.stream.read(&mut piece).await?;
                    is_whole = size > 0 && follower.take(&piece[..size]);
                }
                if !is_whole || answer.length != bytes || follower.offset() != bytes {
                    return Err("another body".into());
                }
                meter.done(began);
            }
            Ok(http)
        }
    })
    .await
}

/// Large request bodies.
pub(crate) async fn upload(target: Target, amount: Amount, bytes: u64) -> Result<(), Fault> {
    let dialer = target.dialer("http/1.1", false)?;
    let fields = format!("Content-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n");
    let request = head(&target.host, "POST", "/upload", &fields);
    let receipt = format!(r#"{{"bytes":{bytes},"is_pattern":true}}"#);
    let workers = meter::many(amount.connections, async |_| Ok(Http1::new(dialer.open().await?))).await?;
    meter::work(amount.count, workers, |mut http, meter| {
        let (request, receipt) = (request.clone(), receipt.clone());
        async move {
            let body = bodies::periods(1);
            while meter.take() {
                let began = Instant::now();
                http.stream.write_all(&request).await?;
                let mut left = bytes;
                while left > 0 {
                    let size = usize::try_from(left)?.min(PIECE);
                    http.stream.write_all(&body[..size]).await?;
                    left -= size as u64;
                }
                http.stream.flush().await?;
                let answer = http.answer().await?;
                let length = expect_ok(&answer)?;
                while http.buffer.len() < length {
                    http.more().await?;
                }
                if http.buffer.split_to(length) != receipt.as_bytes() {
                    return Err("another receipt".into());
                }
                meter.done(began);
            }
            Ok(http)
        }
    })
    .await
}
