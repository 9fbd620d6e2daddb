//! A small upstream that behaves like an OpenClaw gateway: who counts as local, the WebSocket
//! handshake (challenge, connect, hello), ticks, a few methods, and Node's short keep-alive.
//!
//! `cargo run --example gateway`, then `tidegate run -c examples/gateway.toml`. It keeps nothing
//! and guards nothing: an upstream to try the edge with. Tests include this file as a module.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Parser as _;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// How the gateway behaves.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Milliseconds between two `tick` events
    #[arg(long, default_value_t = 30_000)]
    pub(crate) tick_ms: u64,
    /// Milliseconds that an idle connection is kept, as Node does
    #[arg(long, default_value_t = 5_000)]
    pub(crate) keep_alive_ms: u64,
    /// An address whose X-Forwarded-For is believed; may be repeated
    #[arg(long = "trusted-proxy", default_values = ["127.0.0.1", "::1"])]
    pub(crate) trusted_proxies: Vec<IpAddr>,
    /// An Origin that may connect; may be repeated; any may when none is given
    #[arg(long = "allowed-origin")]
    pub(crate) allowed_origins: Vec<String>,
    /// The token that `connect` must bring; none is asked for when none is given
    #[arg(long)]
    pub(crate) token: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Arguments::parse_from(["gateway"]).options
    }
}

/// A small upstream that behaves like an OpenClaw gateway
#[derive(clap::Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:18789")]
    listen: SocketAddr,
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "a test that includes this file has its own main; others wait for the line"
)]
async fn main() -> io::Result<()> {
    let Arguments { listen, options } = Arguments::parse();
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, options).await
}

/// Serves until accepting fails. Dropping it stops accepting; open connections go on.
pub(crate) async fn serve(listener: TcpListener, options: Options) -> io::Result<()> {
    let gateway = Arc::new(Gateway { options, started: Instant::now() });
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let keep_alive = Duration::from_millis(gateway.options.keep_alive_ms);
            let answer = service_fn(move |request| {
                let gateway = Arc::clone(&gateway);
                async move { Ok::<_, Infallible>(gateway.answer(peer, request)) }
            });
            // hyper has one timer for an idle connection and for a slow head: here it is the former.
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(keep_alive)
                .max_header_size(16 << 10)
                .serve_connection(TokioIo::new(stream), answer)
                .with_upgrades()
                .await;
            drop(served); // how a connection ends is the peer's business
        });
    }
}

/// Whom the gateway takes a request for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attribution {
    /// A process on this machine: what an edge must never let a client look like.
    DirectLocal,
    /// Somebody else, without a proxy between.
    DirectRemote(IpAddr),
    /// The client that a trusted proxy tells of.
    Proxied(IpAddr),
}

/// The gateway's own rule; `None` is its 403.
pub(crate) fn attribute(peer: IpAddr, headers: &HeaderMap, trusted: &[IpAddr]) -> Option<Attribution> {
    let peer = peer.to_canonical();
    let is_told_of_a_client = headers.keys().any(|name| {
        let name = name.as_str();
        matches!(name, "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-") || name.starts_with("tailscale-")
    });
    if !is_told_of_a_client {
        return match peer.is_loopback() {
            true => Some(Attribution::DirectLocal),
            false if trusted.contains(&peer) => None,
            false => Some(Attribution::DirectRemote(peer)),
        };
    }
    if !trusted.contains(&peer) {
        return None;
    }
    // From the right: the last hop that is neither loopback nor trusted is the client.
    let lines: Vec<_> =
        headers.get_all("x-forwarded-for").iter().map(|line| line.to_str().unwrap_or_default()).collect();
    let mut hops = lines.iter().rev().flat_map(|line| line.rsplit(',')).map(parse_hop);
    hops.find(|hop| hop.is_none_or(|hop| !hop.is_loopback() && !trusted.contains(&hop)))
        .flatten()
        .map(Attribution::Proxied)
}

/// An address as it may stand in X-Forwarded-For: with a port, in brackets, or bare.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(address.to_canonical())
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// What all connections share.
struct Gateway {
    options: Options,
    started: Instant,
}

impl Gateway {
    /// Answers one request, or begins a socket.
    fn answer(self: Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if matches!(path, "/health" | "/healthz") {
            return reply(StatusCode::OK, &json!({"ok": true, "status": "live"})); // before attribution
        }
        let Some(attribution) = attribute(peer.ip(), request.headers(), &self.options.trusted_proxies) else {
            return refuse(
                StatusCode::FORBIDDEN,
                "proxy_attribution_required",
                "the client behind the proxy is not known: list the proxy in gateway.trustedProxies",
            );
        };
        if request.headers().contains_key(header::UPGRADE) {
            return self.upgrade(request);
        }
        match (request.method(), path) {
            (&Method::GET | &Method::HEAD, "/ready" | "/readyz") => reply(StatusCode::OK, &self.readiness(attribution)),
            (&Method::GET | &Method::HEAD, "/startup" | "/startupz") => reply(StatusCode::OK, &json!({"ready": true})),
            (&Method::POST, "/echo") => {
                let mut answer = Response::new(());
                if let Some(kind) = request.headers().get(header::CONTENT_TYPE) {
                    answer.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
                }
                node_headers(answer.map(|()| request.into_body().boxed()))
            }
            (&Method::GET | &Method::HEAD, "/") => page(),
            _ => refuse(StatusCode::NOT_FOUND, "not_found", "no such path"),
        }
    }

    /// Details are for this machine only: the same oracle that the real gateway offers to tests.
    fn readiness(&self, attribution: Attribution) -> Value {
        match attribution {
            Attribution::DirectLocal => {
                json!({"ready": true, "failing": [], "uptimeMs": self.started.elapsed().as_millis() as u64})
            }
            Attribution::DirectRemote(_) | Attribution::Proxied(_) => json!({"ready": true}),
        }
    }

    /// Answers an upgrade on any path; the socket lives on a task of its own.
    fn upgrade(self: Arc<Self>, mut request: Request<Incoming>) -> Answer {
        let headers = request.headers();
        let is = |name, value: &str| {
            headers
                .get(name)
                .and_then(|found: &HeaderValue| found.to_str().ok())
                .is_some_and(|found| found.eq_ignore_ascii_case(value))
        };
        let key = headers.get(header::SEC_WEBSOCKET_KEY);
        let (true, true, Some(key)) = (is(header::UPGRADE, "websocket"), is(header::SEC_WEBSOCKET_VERSION, "13"), key)
        else {
            return refuse(StatusCode::BAD_REQUEST, "bad_upgrade", "only WebSocket version 13 is spoken here");
        };
        let accept = derive_accept_key(key.as_bytes());
        let origin =
            headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()).to_lowercase());
        let upgrading = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(stream) = upgrading.await {
                Session::new(self, stream, origin).await.run().await;
            }
        });
        let mut answer = Response::new(Full::default().map_err(|never| match never {}).boxed());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        answer
    }
}

/// The largest message, as the real gateway's `maxPayload`.
const MAX_PAYLOAD: usize = 25 << 20;

/// From the upgrade to `connect`.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Between two pings, and for the answer to one.
const PING: Duration = Duration::from_secs(25);

/// One client's socket.
struct Session {
    gateway: Arc<Gateway>,
    socket: WebSocketStream<TokioIo<Upgraded>>,
    origin: Option<String>,
    events: u64,
}

/// A socket goes on, or ends with this close frame.
type Next = ControlFlow<Option<CloseFrame>>;

impl Session {
    async fn new(gateway: Arc<Gateway>, stream: Upgraded, origin: Option<String>) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_PAYLOAD))
            .max_frame_size(Some(MAX_PAYLOAD))
            .read_buffer_size(8 << 10);
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, Some(config)).await;
        Self { gateway, socket, origin, events: 0 }
    }

    /// Speaks first, hears `connect`, then serves until one side closes.
    async fn run(mut self) {
        let nonce = uuid::Uuid::now_v7().to_string();
        let mut next = self.event("connect.challenge", json!({"nonce": nonce, "ts": now_ms()})).await;
        if next.is_continue() {
            next = match timeout(HANDSHAKE, self.connect()).await {
                Ok(next) => next,
                Err(_) => close(1008, "connect timeout"),
            };
        }
        if next.is_continue() {
            next = ControlFlow::Break(self.converse().await);
        }
        if let ControlFlow::Break(Some(frame)) = next {
            // The client's answer is read, so that our last frame is not lost to a reset.
            if self.socket.close(Some(frame)).await.is_ok() {
                let _ = timeout(HANDSHAKE, async { while let Some(Ok(_)) = self.socket.next().await {} }).await;
            }
        }
    }

    /// The first frame must be a `connect` request.
    async fn connect(&mut self) -> Next {
        let Some(Ok(Message::Text(text))) = self.socket.next().await else {
            return close(1008, "invalid request frame");
        };
        let request: Value = serde_json::from_str(&text).unwrap_or_default();
        if request["type"] != "req" || request["method"] != "connect" {
            return close(1008, "invalid request frame");
        }
        let options = &self.gateway.options;
        let is_foreign =
            |origin: &String| !options.allowed_origins.is_empty() && !options.allowed_origins.contains(origin);
        if self.origin.as_ref().is_some_and(is_foreign) {
            self.respond(&request["id"], Err(("CONTROL_UI_ORIGIN_NOT_ALLOWED", "origin not allowed"))).await?;
            return close(1008, "origin not allowed");
        }
        if options.token.as_ref().is_some_and(|token| request["params"]["auth"]["token"] != token.as_str()) {
            self.respond(&request["id"], Err(("AUTH_TOKEN_MISMATCH", "unauthorized"))).await?;
            return close(1008, "unauthorized");
        }
        let hello = json!({
            "type": "hello-ok",
            "protocol": 4,
            "server": {"version": "example", "connId": uuid::Uuid::now_v7().to_string()},
            "features": {"methods": ["health", "echo", "close", "restart"], "events": ["tick", "shutdown"]},
            "policy": {
                "maxPayload": MAX_PAYLOAD,
                "maxBufferedBytes": 50 << 20,
                "tickIntervalMs": options.tick_ms,
            },
        });
        self.respond(&request["id"], Ok(hello)).await
    }

    /// Ticks, pings and answers. Returns the close frame to send, if one is still to be sent.
    async fn converse(&mut self) -> Option<CloseFrame> {
        let every = |period| interval_at(tokio::time::Instant::now() + period, period);
        let mut tick = every(Duration::from_millis(self.gateway.options.tick_ms.max(1)));
        let mut ping = every(PING);
        let mut is_answered = true;
        loop {
            let next = tokio::select! {
                _ = tick.tick() => self.event("tick", json!({"ts": now_ms()})).await,
                _ = ping.tick() => {
                    if !is_answered {
                        return None; // gone without a word
                    }
                    is_answered = false;
                    self.send(Message::Ping(Bytes::new())).await
                }
                message = self.socket.next() => match message {
                    Some(Ok(Message::Text(text))) => self.handle(&text).await,
                    Some(Ok(Message::Binary(_))) => close(1008, "invalid request frame"),
                    Some(Ok(Message::Pong(_))) => { is_answered = true; Next::Continue(()) }
                    Some(Ok(Message::Ping(_) | Message::Frame(_))) => Next::Continue(()), // answered by the library
                    // The library answers a close; the stream then ends.
                    Some(Ok(Message::Close(_))) => Next::Continue(()),
                    Some(Err(tokio_tungstenite::tungstenite::Error::Capacity(_))) => close(1009, "message too big"),
                    Some(Err(_)) | None => return None,
                },
            };
            if let ControlFlow::Break(frame) = next {
                return frame;
            }
        }
    }

    /// One request after the handshake.
    async fn handle(&mut self, text: &str) -> Next {
        let Ok(mut request) = serde_json::from_str::<Value>(text) else {
            return close(1008, "invalid request frame");
        };
        let params = request["params"].take();
        let id = &request["id"];
        match request["method"].as_str() {
            Some("health") => self.respond(id, Ok(json!({"ok": true, "ts": now_ms()}))).await,
            Some("echo") => self.respond(id, Ok(params)).await,
            Some("close") => {
                let code = params["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(1000);
                close(code, params["reason"].as_str().unwrap_or_default())
            }
            Some("restart") => {
                self.event("shutdown", json!({"reason": "restart", "restartExpectedMs": 10_000})).await?;
                close(1012, "service restart")
            }
            Some(_) | None => self.respond(id, Err(("INVALID_REQUEST", "unknown method"))).await,
        }
    }

    async fn event(&mut self, name: &str, payload: Value) -> Next {
        self.events += 1;
        let event = json!({"type": "event", "event": name, "payload": payload, "seq": self.events});
        self.send(Message::text(event.to_string())).await
    }

    async fn respond(&mut self, id: &Value, result: Result<Value, (&str, &str)>) -> Next {
        let response = match result {
            Ok(payload) => json!({"type": "res", "id": id, "ok": true, "payload": payload}),
            Err((code, message)) => {
                json!({"type": "res", "id": id, "ok": false, "error": {"code": code, "message": message}})
            }
        };
        self.send(Message::text(response.to_string())).await
    }

    async fn send(&mut self, message: Message) -> Next {
        match self.socket.send(message).await {
            Ok(()) => Next::Continue(()),
            Err(_) => Next::Break(None),
        }
    }
}

/// Ends a socket with this close frame.
fn close(code: u16, reason: &str) -> Next {
    Next::Break(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

fn reply(status: StatusCode, body: &Value) -> Answer {
    let body = Full::from(body.to_string()).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    node_headers(answer)
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Answer {
    reply(status, &json!({"error": {"type": code, "code": code, "message": message}}))
}

/// A page with the headers that forbid framing, as the Control UI's.
fn page() -> Answer {
    let body = Full::from(include_str!("gateway.html")).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; frame-ancestors 'none'",
        ),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    node_headers(answer)
}

/// Says how long an idle connection is kept, as Node does.
fn node_headers(mut answer: Answer) -> Answer {
    answer.headers_mut().insert("keep-alive", HeaderValue::from_static("timeout=5"));
    answer
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
