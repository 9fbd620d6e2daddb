//! The examples behind the edge, with the files that front them (issue 2, 12).

#[path = "../../examples/auth.rs"]
#[allow(dead_code, reason = "its `main` and its arguments are for people")]
mod auth;
#[path = "../../examples/events.rs"]
#[allow(dead_code, reason = "its `main` and its arguments are for people")]
mod events;
#[path = "../../examples/gateway.rs"]
#[allow(dead_code, reason = "its `main` and its arguments are for people")]
mod gateway;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Edge, Socket, Upstream, site, within};

/// An example's file with free ports in place of its own, and its upstream at this address.
fn shipped(name: &str, own: &str, upstream: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(text.contains(own), "{name} does not name {own}");
    let text = text.replace(own, upstream);
    text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8443", "127.0.0.1:0")
}

/// Starts the example gateway and returns its address.
async fn start_gateway(options: gateway::Options) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(gateway::serve(listener, options));
    address
}

/// The next message as JSON.
async fn next(socket: &mut Socket) -> Value {
    let text = socket.next().await.into_text().expect("a text");
    serde_json::from_str(&text).expect("JSON")
}

/// A call, and its answer; events in between are passed over.
async fn call(socket: &mut Socket, id: &str, method: &str, params: Value) -> Value {
    let request = json!({ "type": "req", "id": id, "method": method, "params": params });
    socket.send(Message::text(request.to_string())).await;
    loop {
        let answer = next(socket).await;
        if answer["type"] == "res" && answer["id"] == id {
            return answer;
        }
    }
}

/// M-07, O-15: challenge, connect and a call, through the shipped file, over HTTP/1.1 and HTTP/2.
#[tokio::test]
async fn the_gateway_example_works_through_its_file() {
    let address = start_gateway(gateway::Options::default()).await;
    let edge = Edge::start(&shipped("gateway.toml", "127.0.0.1:18789", &address)).await;
    for mut socket in [edge.websocket("localhost", "/").await, edge.websocket_h2("localhost", "/").await] {
        let challenge = next(&mut socket).await;
        assert_eq!(challenge["event"], "connect.challenge", "{challenge}");
        let hello = call(&mut socket, "1", "connect", json!({ "minProtocol": 4, "maxProtocol": 4 })).await;
        assert_eq!(hello["ok"], true, "{hello}");
        let health = call(&mut socket, "2", "health", json!({})).await;
        assert_eq!(health["ok"], true, "{health}");
    }
    let ready = edge.get("localhost", "/readyz").await;
    assert!(ready.json()["uptimeMs"].is_number(), "a person at this machine counts as local: {}", ready.text());
}

/// GATEWAY.md 2: behind an ordinary site the gateway sees a client that is not local, or says why it cannot.
#[tokio::test]
async fn the_gateway_example_attributes_clients_behind_the_edge() {
    let address = start_gateway(gateway::Options::default()).await;
    let edge = Edge::start(&format!("[trust]\nproxies = [\"loopback\"]\n{}", site("a.test", &address))).await;
    let remote = edge.get_with("a.test", "/readyz", "X-Forwarded-For: 203.0.113.77\r\n").await;
    assert_eq!((remote.status, remote.json()), (200, json!({ "ready": true })));
    let local = edge.get("a.test", "/readyz").await;
    assert_eq!(local.status, 403, "a reported loopback client cannot be attributed: {}", local.text());
    edge.log_where("the explanation", |line| line.to_string().contains("proxy_attribution_required")).await;
}

/// N-49: the events example streams through its file, and notices a client that leaves.
#[tokio::test]
async fn the_events_example_streams_through_its_file() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (told, mut notices) = tokio::sync::mpsc::unbounded_channel();
    let notice = Arc::new(move |notice| drop(told.send(notice)));
    tokio::spawn(events::serve(listener, events::Options { every: Duration::from_millis(20), notice }));
    let edge = Edge::start(&shipped("events.toml", "127.0.0.1:3000", &address)).await;
    let mut wire = edge.h1("localhost").await;
    wire.send("GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n").await;
    let head = wire.reply_head().await.expect("a head");
    assert_eq!((head.status, head.headers.get("x-accel-buffering")), (200, Some("no")));
    for _ in 0..3 {
        assert!(!wire.chunk().await.expect("an event").is_empty());
    }
    drop(wire);
    let notice = within("the example notices that the client left", notices.recv()).await.expect("a notice");
    assert!(matches!(notice, events::Notice::ClientGone(_)), "{notice:?}");
}

/// G-12: the auth example behind the edge, through the shipped file: a page to log in, a cookie, and then the identity.
#[tokio::test]
async fn the_auth_example_says_who_asks_through_its_file() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = auth::Options { password: "wonderland".into(), domain: "example.com".into() };
    tokio::spawn(auth::serve(listener, options));
    let upstream = Upstream::saying("inside").await;
    let text = shipped("auth.toml", "127.0.0.1:4180", &address).replace("127.0.0.1:3000", &upstream.to_string());
    let edge = Edge::start(&text).await;
    let page = edge.get_with("localhost", "/a?b=c", "Accept: text/html\r\n").await;
    assert_eq!((page.status, page.headers.get("location")), (302, Some("/login?rd=/a%3Fb%3Dc")));
    assert_eq!(edge.get("localhost", "/a").await.status, 401);
    assert_eq!(edge.upgrade("localhost", "/a", "").await.0.status, 401);
    let form = edge.get("localhost", "/login?rd=/a%3Fb%3Dc").await;
    assert!(form.text().contains("value=\"/a?b=c\""), "{}", form.text());
    let post = async |form: &str| {
        let head = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n";
        edge.exchange("localhost", format!("{head}Content-Length: {}\r\n\r\n{form}", form.len())).await
    };
    assert_eq!(post("user=alice&password=wrong").await.status, 401);
    assert_eq!(post("user=alice&password=wonderland&rd=//evil.test/").await.headers.get("location"), Some("/"));
    let welcome = post("user=alice&password=wonderland&rd=%2Fa%3Fb%3Dc").await;
    assert_eq!((welcome.status, welcome.headers.get("location")), (303, Some("/a?b=c")));
    let cookie = welcome.headers.get("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie");
    let lines = format!("Cookie: {cookie}\r\nX-Auth-Request-User: root\r\nX-Auth-Request-Email: root@example.com\r\n");
    assert_eq!(edge.get_with("localhost", "/a?b=c", &lines).await.text(), "inside");
    let seen = upstream.only().await;
    assert_eq!(seen.headers.all("x-auth-request-user"), ["alice"]);
    assert_eq!(seen.headers.all("x-auth-request-email"), ["alice@example.com"]);
    // A webhook needs no login, and says nothing of who it is.
    assert_eq!(edge.get_with("localhost", "/hooks/x", "X-Auth-Request-User: root\r\n").await.status, 200);
    assert!(!upstream.request(1).await.headers.has("x-auth-request-user"));
    assert_eq!(edge.get_with("localhost", "/logout", &lines).await.status, 303);
    assert_eq!(edge.get_with("localhost", "/a", &lines).await.status, 401);
}
