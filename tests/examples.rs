//! The examples do what their files say: a gateway to put the edge in front of, and event streams.
//! No edge takes part here; the suite puts it between.

#[path = "../examples/events.rs"]
mod events;
#[path = "../examples/gateway.rs"]
mod gateway;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use gateway::Attribution::{DirectLocal, DirectRemote, Proxied};

/// A gateway on a free port.
async fn gateway(options: gateway::Options) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(gateway::serve(listener, options));
    address
}

/// Sends one HTTP/1.1 request and returns all that comes until the server closes.
async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("a clean end");
    answer
}

/// Opens a socket with one more header.
async fn open(
    address: std::net::SocketAddr,
    name: &'static str,
    value: &str,
) -> Result<WebSocketStream<TcpStream>, Error> {
    let mut request = format!("ws://{address}/any/path").into_client_request().expect("a URL");
    request.headers_mut().insert(name, value.parse().expect("a value"));
    let stream = TcpStream::connect(address).await.expect("listening");
    // The library's own limit on a frame is below the gateway's.
    let config = WebSocketConfig::default().max_frame_size(None);
    tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await.map(|(socket, _)| socket)
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Value {
    match socket.next().await {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).expect("JSON"),
        Some(Ok(Message::Close(Some(frame)))) => {
            json!({"close": u16::from(frame.code), "reason": frame.reason.as_str()})
        }
        other => json!({"unexpected": format!("{other:?}")}),
    }
}

async fn send(socket: &mut WebSocketStream<TcpStream>, id: u64, method: &str, params: Value) {
    let request = json!({"type": "req", "id": id, "method": method, "params": params});
    socket.send(Message::text(request.to_string())).await.expect("open");
}

/// A socket past its handshake.
async fn connected(address: std::net::SocketAddr, params: Value) -> WebSocketStream<TcpStream> {
    let mut socket = open(address, "x-forwarded-for", "203.0.113.10").await.expect("upgraded");
    assert_eq!(next(&mut socket).await["event"], "connect.challenge");
    send(&mut socket, 1, "connect", params).await;
    socket
}

#[test]
fn the_gateway_tells_local_from_remote_as_the_real_one() {
    let ip = |text: &str| text.parse().expect("an address");
    let trusted = [ip("127.0.0.1"), ip("10.0.0.1")];
    for (peer, headers, expected) in [
        ("127.0.0.1", &[][..], Some(DirectLocal)),
        ("::1", &[], Some(DirectLocal)),
        ("127.0.0.1", &[("via", "1.1 x")], Some(DirectLocal)),
        ("127.0.0.1", &[("x-forwarded-for", "203.0.113.9")], Some(Proxied(ip("203.0.113.9")))),
        ("127.0.0.1", &[("x-forwarded-for", "203.0.113.9, 127.0.0.1")], Some(Proxied(ip("203.0.113.9")))),
        (
            "127.0.0.1",
            &[("x-forwarded-for", "198.51.100.1, 203.0.113.9:443, 10.0.0.1")],
            Some(Proxied(ip("203.0.113.9"))),
        ),
        ("127.0.0.1", &[("x-forwarded-for", "[2001:db8::7]")], Some(Proxied(ip("2001:db8::7")))),
        (
            "127.0.0.1",
            &[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "127.0.0.1")],
            Some(Proxied(ip("198.51.100.1"))),
        ),
        ("127.0.0.1", &[("x-forwarded-for", "127.0.0.1")], None),
        ("127.0.0.1", &[("x-forwarded-for", "::ffff:127.0.0.1")], None),
        ("127.0.0.1", &[("x-forwarded-for", "203.0.113.9, garbage")], None),
        ("127.0.0.1", &[("x-real-ip", "203.0.113.9")], None),
        ("127.0.0.1", &[("forwarded", "for=203.0.113.9")], None),
        ("127.0.0.1", &[("x-forwarded-proto", "https")], None),
        ("127.0.0.1", &[("tailscale-user-login", "a@example.com")], None),
        ("::1", &[("x-forwarded-for", "203.0.113.9")], None),
        ("10.0.0.1", &[], None),
        ("192.0.2.4", &[], Some(DirectRemote(ip("192.0.2.4")))),
        ("192.0.2.4", &[("x-forwarded-for", "203.0.113.9")], None),
    ] {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        assert_eq!(gateway::attribute(ip(peer), &map, &trusted), expected, "{peer} {headers:?}");
    }
}

#[tokio::test]
async fn the_gateway_answers_http_by_attribution() {
    let address = gateway(gateway::Options::default()).await;
    let get = async |path: &str, header: &str| {
        exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{header}\r\n")).await
    };
    let (remote, looped) = ("X-Forwarded-For: 203.0.113.10\r\n", "X-Forwarded-For: 127.0.0.1\r\n");
    assert!(get("/health", looped).await.starts_with("HTTP/1.1 200 "));
    assert!(get("/readyz", remote).await.ends_with("{\"ready\":true}"));
    assert!(get("/readyz", "").await.contains("uptimeMs"));
    let refused = get("/readyz", looped).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("proxy_attribution_required"), "{refused}");
    assert!(get("/", remote).await.contains("frame-ancestors 'none'"));
    assert!(get("/none", remote).await.starts_with("HTTP/1.1 404 "));
    let upgrade = format!("{remote}Connection: Upgrade\r\nUpgrade: h2c\r\n");
    assert!(get("/", &upgrade).await.starts_with("HTTP/1.1 400 "));
    assert!(
        matches!(open(address, "x-forwarded-for", "127.0.0.1").await, Err(Error::Http(answer)) if answer.status() == 403)
    );
}

#[tokio::test]
async fn the_gateway_echoes_a_body_and_closes_an_idle_connection() {
    let address = gateway(gateway::Options { keep_alive_ms: 20, ..Default::default() }).await;
    // Not asked to close, it closes by itself: or this would never end.
    let request = "POST /echo HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.10\r\nContent-Type: text/x\r\nContent-Length: 5\r\n\r\nhello";
    let answer = exchange(address, request).await.to_lowercase();
    assert!(answer.contains("content-type: text/x") && answer.contains("keep-alive: timeout=5"), "{answer}");
    assert!(answer.ends_with("\r\nhello\r\n0\r\n\r\n") || answer.ends_with("\r\n\r\nhello"), "{answer}");
}

#[tokio::test]
async fn the_gateway_speaks_the_handshake_and_its_methods() {
    let address = gateway(gateway::Options::default()).await;
    let mut socket = connected(address, json!({})).await;
    let hello = next(&mut socket).await;
    assert_eq!((&hello["id"], &hello["payload"]["type"]), (&json!(1), &json!("hello-ok")));
    send(&mut socket, 2, "health", Value::Null).await;
    assert_eq!(next(&mut socket).await["payload"]["ok"], true);
    let large = "x".repeat(20 << 20);
    send(&mut socket, 3, "echo", json!({"large": large})).await;
    assert!(next(&mut socket).await["payload"]["large"] == large);
    send(&mut socket, 4, "none", Value::Null).await;
    assert_eq!(next(&mut socket).await["ok"], false);
    send(&mut socket, 5, "close", json!({"code": 4001, "reason": "policy changed"})).await;
    assert_eq!(next(&mut socket).await, json!({"close": 4001, "reason": "policy changed"}));

    let mut socket = connected(address, json!({})).await;
    next(&mut socket).await;
    send(&mut socket, 2, "restart", Value::Null).await;
    assert_eq!(next(&mut socket).await["event"], "shutdown");
    assert_eq!(next(&mut socket).await, json!({"close": 1012, "reason": "service restart"}));
}

#[tokio::test]
async fn the_gateway_ticks() {
    let address = gateway(gateway::Options { tick_ms: 5, ..Default::default() }).await;
    let mut socket = connected(address, json!({})).await;
    next(&mut socket).await;
    let (one, two) = (next(&mut socket).await, next(&mut socket).await);
    assert_eq!((&one["event"], &two["event"]), (&json!("tick"), &json!("tick")));
    assert_ne!(one["seq"], two["seq"]);
}

#[tokio::test]
async fn the_gateway_refuses_who_does_not_connect_as_it_wants() {
    let options = gateway::Options {
        token: Some("right".into()),
        allowed_origins: vec!["https://a.test".into()],
        ..Default::default()
    };
    let address = gateway(options).await;
    let mut socket = connected(address, json!({"auth": {"token": "wrong"}})).await;
    assert_eq!(next(&mut socket).await["error"]["code"], "AUTH_TOKEN_MISMATCH");
    assert_eq!(next(&mut socket).await, json!({"close": 1008, "reason": "unauthorized"}));
    let mut socket = connected(address, json!({"auth": {"token": "right"}})).await;
    assert_eq!(next(&mut socket).await["ok"], true);

    let mut socket = open(address, "x-forwarded-for", "203.0.113.10").await.expect("upgraded");
    next(&mut socket).await;
    send(&mut socket, 1, "health", Value::Null).await;
    assert_eq!(next(&mut socket).await, json!({"close": 1008, "reason": "invalid request frame"}));

    let mut socket = open(address, "origin", "https://evil.test").await.expect("upgraded");
    next(&mut socket).await;
    send(&mut socket, 1, "connect", json!({"auth": {"token": "right"}})).await;
    next(&mut socket).await;
    assert_eq!(next(&mut socket).await, json!({"close": 1008, "reason": "origin not allowed"}));
}

/// An event server, and what it notices.
async fn events(every: Duration) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<events::Notice>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, notices) = mpsc::unbounded_channel();
    let notice = Arc::new(move |notice| drop(sender.send(notice)));
    tokio::spawn(events::serve(listener, events::Options { every, notice }));
    (address, notices)
}

#[tokio::test]
async fn the_first_event_comes_at_once_and_a_client_that_leaves_is_noticed() {
    let (address, mut notices) = events(Duration::from_secs(3600)).await;
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: a.test\r\n\r\n").await.expect("sent");
    let mut seen = String::new();
    while !seen.contains("data: 1\n\n") {
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).await.expect("open");
        assert_ne!(count, 0, "closed after {seen}");
        seen.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
    }
    drop(stream);
    assert_eq!(notices.recv().await, Some(events::Notice::ClientGone(1)));
}

#[tokio::test]
async fn a_bounded_stream_and_a_model_answer_end() {
    let (address, mut notices) = events(Duration::from_millis(1)).await;
    let seen = exchange(address, "GET /events?count=3 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert!(seen.contains("data: 3\n\n") && !seen.contains("data: 4") && seen.ends_with("0\r\n\r\n"), "{seen}");
    assert_eq!(notices.recv().await, Some(events::Notice::Finished(3)));

    for (stream, expected) in [(true, "data: [DONE]\n\n"), (false, "\"content\":\"two words\"")] {
        let body = json!({"stream": stream, "messages": [{"role": "user", "content": "two words"}]}).to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let seen = exchange(address, &request).await;
        assert!(seen.contains(expected), "{seen}");
        assert_eq!(seen.matches("chat.completion.chunk").count(), if stream { 3 } else { 0 });
    }
}
