//! WebSocket clients over HTTP/1.1 and HTTP/2, and an upstream that echoes messages (RFC 6455, RFC 8441).

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::edge::Edge;
use super::http2::{H2, H2Io};
use super::upstream::{Seen, UpstreamWire};
use super::wire::{Io, Reply, Wire};
use super::within;

/// The key that every upgrade of the tests carries (RFC 6455 1.3).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The answer to a `Sec-WebSocket-Key`.
pub(crate) fn accept_key(seen: &Seen) -> String {
    derive_accept_key(seen.header("sec-websocket-key").expect("an upgrade has a key").as_bytes())
}

/// A client's end of a WebSocket.
pub(crate) struct Socket {
    stream: WebSocketStream<Box<dyn Io>>,
    /// Keeps the HTTP/2 connection, where there is one.
    _connection: Option<H2>,
}

impl Socket {
    async fn new(io: Box<dyn Io>, early: Vec<u8>, connection: Option<H2>) -> Self {
        let stream = WebSocketStream::from_partially_read(io, early, Role::Client, Some(config())).await;
        Self { stream, _connection: connection }
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: impl Into<Message>) {
        within("the edge takes a message", self.stream.send(message.into())).await.expect("the edge takes a message");
    }

    /// The next message; a broken connection fails the test.
    pub(crate) async fn next(&mut self) -> Message {
        let message = within("a message", self.stream.next()).await;
        message.expect("the socket is open").expect("a well-formed frame")
    }

    /// As `send`, without a bound of its own.
    pub(crate) async fn send_patiently(&mut self, message: Message) {
        self.stream.send(message).await.expect("the edge takes a message");
    }

    /// As `next`, without a bound of its own.
    pub(crate) async fn next_patiently(&mut self) -> Message {
        self.stream.next().await.expect("the socket is open").expect("a well-formed frame")
    }

    /// Sends a text and returns the next text.
    pub(crate) async fn echo(&mut self, text: &str) -> String {
        self.send(text).await;
        self.next().await.into_text().expect("a text").to_string()
    }

    /// Reads until the close frame, and returns its code and reason.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            match within("a close frame", self.stream.next()).await {
                Some(Ok(Message::Close(Some(close)))) => return (close.code.into(), close.reason.to_string()),
                Some(Ok(_)) => {}
                other => panic!("no close frame, but {other:?}"),
            }
        }
    }

    /// Sends a close frame and waits for the end.
    pub(crate) async fn close(mut self, code: u16, reason: &str) {
        use tokio_tungstenite::tungstenite::protocol::CloseFrame;
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.send(Message::Close(Some(frame))).await;
        within("the other side closes too", async { while let Some(Ok(_)) = self.stream.next().await {} }).await;
    }
}

impl Edge {
    /// A WebSocket over HTTP/1.1.
    pub(crate) async fn websocket(&self, host: &str, target: &str) -> Socket {
        let (reply, wire) = self.upgrade(host, target, "").await;
        assert_eq!(reply.status, 101, "{} {:?}", reply.text(), reply.headers);
        // The sample key's answer, RFC 6455 1.3.
        assert_eq!(reply.headers.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let (io, early) = wire.into_parts();
        Socket::new(io, early.to_vec(), None).await
    }

    /// Asks for a WebSocket over HTTP/1.1, with further header lines, and returns what was answered.
    pub(crate) async fn upgrade(&self, host: &str, target: &str, headers: &str) -> (Reply, Wire) {
        let mut wire = self.h1(host).await;
        wire.send(upgrade_request(host, target, headers)).await;
        let reply = wire.reply().await;
        (reply, wire)
    }

    /// A WebSocket over HTTP/2 on a connection of its own.
    pub(crate) async fn websocket_h2(&self, host: &str, target: &str) -> Socket {
        let mut connection = self.h2(host).await;
        let io = connection.connect(host, target).await;
        Socket::new(Box::new(io), Vec::new(), Some(connection)).await
    }
}

/// The head of an upgrade over HTTP/1.1.
pub(crate) fn upgrade_request(host: &str, target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{headers}\r\n"
    )
}

/// The head of an extended CONNECT for a WebSocket (RFC 8441 5).
pub(crate) fn connect_request(host: &str, target: &str) -> Request<()> {
    Request::builder()
        .method("CONNECT")
        .uri(format!("https://{host}{target}"))
        .version(http::Version::HTTP_2)
        .header("sec-websocket-version", "13")
        .extension(h2::ext::Protocol::from_static("websocket"))
        .body(())
        .expect("a request")
}

impl H2 {
    /// Opens a WebSocket on this connection and returns its bytes.
    pub(crate) async fn connect(&mut self, host: &str, target: &str) -> H2Io {
        assert!(self.send.is_extended_connect_protocol_enabled(), "the edge offers RFC 8441");
        let (response, send) = self.open(connect_request(host, target), false).await.expect("a stream");
        let response = within("an answer to CONNECT", response).await.expect("an answer to CONNECT");
        assert_eq!(response.status(), 200, "RFC 8441 5: the tunnel begins with a 2xx: {response:?}");
        H2Io::new(send, response.into_body())
    }
}

/// No limits of the client's own: those of the edge are what is tested.
fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

/// An upstream that accepts every upgrade and echoes messages; it answers other requests with 200.
pub(crate) struct WebSocketUpstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl WebSocketUpstream {
    /// Listens on a free port.
    pub(crate) async fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"))
    }

    /// As `start`, on a listener that stands already.
    pub(crate) fn start_on(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a bound listener");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let record = seen.clone();
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let wire = UpstreamWire { wire: Wire::new(stream), port: peer.port() };
                serving.spawn(serve(wire, record.clone()));
            }
        });
        Self { address, seen, task }
    }

    /// All requests and upgrades so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test panics while it holds this").clone()
    }
}

impl fmt::Display for WebSocketUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Drop for WebSocketUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut wire: UpstreamWire, record: Arc<Mutex<Vec<Seen>>>) {
    while !wire.wire.buffered().is_empty() || wire.wire.fill_patiently().await {
        let Some(seen) = wire.request().await else { return };
        let is_upgrade = seen.header("upgrade") == Some("websocket") && seen.fault.is_none();
        record.lock().expect("no test panics while it holds this").push(seen.clone());
        if !is_upgrade {
            if wire.wire.try_send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain").await.is_err() {
                return;
            }
            continue;
        }
        let accept = accept_key(&seen);
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        if wire.wire.try_send(answer).await.is_err() {
            return;
        }
        let (io, early) = wire.wire.into_parts();
        let mut socket = WebSocketStream::from_partially_read(io, early.to_vec(), Role::Server, Some(config())).await;
        while let Some(Ok(message)) = socket.next().await {
            let echoed = match message {
                Message::Text(_) | Message::Binary(_) => socket.send(message).await,
                // The library answers pings and closes by itself when it is flushed.
                _ => socket.flush().await,
            };
            if echoed.is_err() {
                return;
            }
        }
        return;
    }
}

/// An unmasked frame (RFC 6455 5.2), as a server sends it.
pub(crate) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    push_length(&mut bytes, payload.len(), 0);
    bytes.extend_from_slice(payload);
    bytes
}

/// A masked frame, as a client sends it.
pub(crate) fn masked_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![0x80 | opcode];
    push_length(&mut bytes, payload.len(), 0x80);
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

fn push_length(bytes: &mut Vec<u8>, length: usize, masked: u8) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => bytes.push(masked | short),
        (_, Ok(middle)) => {
            bytes.push(masked | 126);
            bytes.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend_from_slice(&u64::try_from(length).expect("64 bits").to_be_bytes());
        }
    }
}
