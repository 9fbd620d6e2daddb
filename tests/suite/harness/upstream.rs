//! Upstream doubles: they read what the edge sends as strictly as RFC 9112 allows, and record it.
//!
//! A request that breaks the grammar, carries two framings, or lacks what the edge must write is
//! recorded with its fault, so that each test is also a test of what reaches the gateway.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::wire::{Headers, Wire, is_token, split_lines, text};
use super::within;

/// One request as an upstream read it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Every byte of the head.
    pub(crate) head: Vec<u8>,
    /// The method.
    pub(crate) method: String,
    /// The request target as it stood.
    pub(crate) target: String,
    /// The header fields.
    pub(crate) headers: Headers,
    /// The content, taken out of its chunks.
    pub(crate) body: Vec<u8>,
    /// The trailer fields.
    pub(crate) trailers: Headers,
    /// The port it came from.
    pub(crate) port: u16,
    /// What is wrong with it, if anything.
    pub(crate) fault: Option<String>,
    /// False when the connection ended before its framing did.
    pub(crate) is_complete: bool,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }
}

/// One connection from the edge.
pub(crate) struct UpstreamWire {
    /// The bytes.
    pub(crate) wire: Wire,
    /// The edge's port.
    pub(crate) port: u16,
}

impl UpstreamWire {
    /// The next request with its whole body; `None` when the edge closed.
    pub(crate) async fn request(&mut self) -> Option<Seen> {
        let mut seen = self.head().await?;
        self.body(&mut seen).await;
        Some(seen)
    }

    /// The head of the next request.
    pub(crate) async fn head(&mut self) -> Option<Seen> {
        let head = self.wire.head().await?;
        let mut seen = Seen {
            method: String::new(),
            target: String::new(),
            headers: Headers::default(),
            body: Vec::new(),
            trailers: Headers::default(),
            port: self.port,
            fault: None,
            is_complete: false,
            head,
        };
        if let Err(fault) = read_head(&mut seen) {
            seen.fault = Some(fault);
        }
        Some(seen)
    }

    /// The body of a request whose head was read.
    pub(crate) async fn body(&mut self, seen: &mut Seen) {
        if seen.fault.is_some() {
            return;
        }
        if seen.headers.has("transfer-encoding") {
            loop {
                match self.wire.chunk().await {
                    Some(chunk) if chunk.is_empty() => break,
                    Some(chunk) => seen.body.extend_from_slice(&chunk),
                    None => return,
                }
            }
            let Some(trailers) = self.wire.trailers().await else { return };
            seen.trailers = trailers;
        } else if let Some(length) = seen.headers.get("content-length") {
            let length: usize = length.parse().expect("judged with the head");
            while self.wire.buffered().len() < length && self.wire.fill().await {}
            let have = self.wire.buffered().len().min(length);
            seen.body = self.wire.exact(have).await;
            if have < length {
                return;
            }
        }
        seen.is_complete = true;
    }

    /// Writes bytes to the edge.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes).await;
    }
}

/// Judges a head as strictly as the RFCs allow, and for what the edge promises to write.
fn read_head(seen: &mut Seen) -> Result<(), String> {
    let head = seen.head.clone();
    let lines = split_lines(&head[..head.len() - 2])?;
    let Some((line, _)) = lines.split_first() else { return Err("an empty head".into()) };
    let line = text(line);
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = parts[..] else { return Err(format!("not a request line: {line:?}")) };
    seen.method = method.to_owned();
    seen.target = target.to_owned();
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(format!("the method is no token: {line:?}"));
    }
    if !(target.starts_with('/') || target == "*")
        || target.chars().any(|c| !('\u{21}'..'\u{7f}').contains(&c) && c < '\u{80}')
    {
        return Err(format!("not an origin-form target: {target:?}"));
    }
    if version != "HTTP/1.1" {
        return Err(format!("the version is {version:?}"));
    }
    let after_line = head.windows(2).position(|pair| pair == b"\r\n").expect("a head has a line") + 2;
    seen.headers = Headers::parse(&head[after_line..head.len() - 2])?;
    let headers = &seen.headers;
    for single in
        ["host", "content-length", "transfer-encoding", "upgrade", "x-forwarded-for", "x-real-ip", "x-request-id"]
    {
        if headers.all(single).len() > 1 {
            return Err(format!("{single} stands {} times", headers.all(single).len()));
        }
    }
    if !headers.has("host") {
        return Err("no Host".into());
    }
    if let Some(name) = headers.0.iter().map(|(name, _)| name).find(|name| name.contains('_')) {
        return Err(format!("a name with an underscore: {name:?}"));
    }
    match (headers.get("transfer-encoding"), headers.get("content-length")) {
        (Some(_), Some(_)) => return Err("both Transfer-Encoding and Content-Length".into()),
        (Some(coding), None) if coding != "chunked" => return Err(format!("Transfer-Encoding: {coding:?}")),
        (None, Some(length)) if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) => {
            return Err(format!("Content-Length: {length:?}"));
        }
        _ => {}
    }
    if headers.get("upgrade").is_some_and(|value| value != "websocket") {
        return Err(format!("Upgrade: {:?}", headers.get("upgrade")));
    }
    for never in ["keep-alive", "proxy-connection", "proxy-authorization", "http2-settings", "expect"] {
        if headers.has(never) {
            return Err(format!("{never} reached the upstream"));
        }
    }
    Ok(())
}

/// Everything that an upstream has seen so far.
#[derive(Clone)]
struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    changed: Arc<watch::Sender<usize>>,
}

impl Recorder {
    fn new() -> Self {
        Self { seen: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }

    fn push(&self, seen: Seen) {
        let mut list = self.seen.lock().expect("no test panics while it holds this");
        list.push(seen);
        self.changed.send_replace(list.len());
    }
}

/// What an answering upstream does with a request.
pub(crate) enum Answer {
    /// Writes these bytes and keeps the connection.
    Bytes(Vec<u8>),
    /// Writes these bytes and closes.
    Close(Vec<u8>),
}

impl Answer {
    /// `200 OK` with a body and further header lines.
    pub(crate) fn ok(headers: &str, body: impl AsRef<[u8]>) -> Self {
        Self::status("200 OK", headers, body)
    }

    /// Any status with a body and further header lines, each ended by CRLF.
    pub(crate) fn status(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        Self::Bytes(bytes)
    }
}

/// An upstream that answers by itself and records what it saw.
pub(crate) struct Upstream {
    address: SocketAddr,
    recorder: Recorder,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    /// Answers each request by `answer`.
    pub(crate) async fn answering(answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::answering_on(listener, answer)
    }

    /// As `answering`, on a listener that stands already.
    pub(crate) fn answering_on(
        listener: TcpListener,
        answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("a bound listener");
        let (recorder, connections) = (Recorder::new(), Arc::new(AtomicUsize::new(0)));
        let (answer, record, count) = (Arc::new(answer), recorder.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                serving.spawn(serve(upstream_wire(stream, peer), answer.clone(), record.clone()));
            }
        });
        Self { address, recorder, connections, task }
    }

    /// Answers `200` with the request's own body and `Content-Type: application/octet-stream`.
    pub(crate) async fn echo() -> Self {
        Self::answering(|seen| Answer::ok("Content-Type: application/octet-stream\r\n", &seen.body)).await
    }

    /// Answers `200` with these bytes, whatever is asked.
    pub(crate) async fn saying(body: &'static str) -> Self {
        Self::answering(move |_| Answer::ok("Content-Type: text/plain\r\n", body)).await
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.recorder.seen.lock().expect("no test panics while it holds this").clone()
    }

    /// The request number `index`, as soon as it is there; it must be well formed.
    pub(crate) async fn request(&self, index: usize) -> Seen {
        let mut changed = self.recorder.changed.subscribe();
        within(&format!("request {index} reaches the upstream"), changed.wait_for(|count| *count > index))
            .await
            .expect("the recorder lives as long as the upstream");
        let seen = self.seen().swap_remove(index);
        assert_eq!(seen.fault, None, "{:?}", text(&seen.head));
        seen
    }

    /// The only request so far, well formed.
    pub(crate) async fn only(&self) -> Seen {
        let seen = self.request(0).await;
        assert_eq!(self.seen().len(), 1, "exactly one request reaches the upstream");
        seen
    }

    /// How many connections the edge opened.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn upstream_wire(stream: TcpStream, peer: SocketAddr) -> UpstreamWire {
    stream.set_nodelay(true).ok();
    UpstreamWire { wire: Wire::new(stream), port: peer.port() }
}

async fn serve(mut wire: UpstreamWire, answer: Arc<impl Fn(&Seen) -> Answer>, record: Recorder) {
    // An idle connection may wait longer than a test's bound: only a close ends this loop.
    while wait_for_bytes(&mut wire).await {
        let Some(seen) = wire.request().await else { return };
        let fault = seen.fault.is_some() || !seen.is_complete;
        let bytes = answer(&seen);
        record.push(seen);
        if fault {
            return;
        }
        let (bytes, close) = match bytes {
            Answer::Bytes(bytes) => (bytes, false),
            Answer::Close(bytes) => (bytes, true),
        };
        if wire.wire.try_send(bytes).await.is_err() || close {
            wire.wire.shutdown().await;
            return;
        }
    }
}

async fn wait_for_bytes(wire: &mut UpstreamWire) -> bool {
    !wire.wire.buffered().is_empty() || wire.wire.fill_patiently().await
}

/// An upstream whose every byte the test itself writes.
pub(crate) struct Scripted {
    listener: TcpListener,
    address: SocketAddr,
}

impl Scripted {
    /// Listens on a free port.
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        Self { listener, address }
    }

    /// The edge's next connection.
    pub(crate) async fn accept(&self) -> UpstreamWire {
        let (stream, peer) = within("the edge connects upstream", self.listener.accept()).await.expect("accept works");
        upstream_wire(stream, peer)
    }

    /// The edge's next connection and the first request on it, well formed.
    pub(crate) async fn request(&self) -> (UpstreamWire, Seen) {
        let mut wire = self.accept().await;
        let seen = wire.request().await.expect("a request on the new connection");
        assert_eq!(seen.fault, None, "{:?}", text(&seen.head));
        (wire, seen)
    }

    /// The edge's next connection and the head of the first request on it, well formed.
    pub(crate) async fn head(&self) -> (UpstreamWire, Seen) {
        let mut wire = self.accept().await;
        let seen = wire.head().await.expect("a request on the new connection");
        assert_eq!(seen.fault, None, "{:?}", text(&seen.head));
        (wire, seen)
    }

    /// True when a connection waits that nobody accepted. Looks for a moment: the kernel has it before
    /// the edge can have answered, but this process may hear of it a little later.
    pub(crate) async fn has_waiting(&self) -> bool {
        tokio::time::timeout(std::time::Duration::from_millis(50), self.listener.accept()).await.is_ok()
    }
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
