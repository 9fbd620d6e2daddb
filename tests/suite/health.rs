//! Checks of endpoints, and what follows from them (GATEWAY.md 8 and 12, G-17, O-08, O-15): whom new requests go to,
//! who waits, who is told to come back, and that nothing which stands is touched.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{
    Answer, Edge, Reply, Scripted, Seen, TestCa, Upstream, accept_key, frame, site, upgrade_request, within,
};

/// A path that only probes ask for.
const CHECK: &str = "/startupz";

/// Checks often, so that tests need not wait: one that fails is enough.
const EAGER: &str = "health = { path = \"/startupz\", every = \"50ms\", timeout = \"2s\", failures = 1 }";

/// An upstream whose answer to probes the test sets. Its other answers are its name.
async fn moody(name: &'static str, mood: &Arc<AtomicU16>) -> Upstream {
    let mood = Arc::clone(mood);
    Upstream::answering(move |seen| {
        if seen.target == CHECK {
            return Answer::status(&format!("{} x", mood.load(Ordering::SeqCst)), "", "secret details");
        }
        Answer::ok("", name)
    })
    .await
}

fn requests(upstream: &Upstream) -> Vec<Seen> {
    upstream.seen().into_iter().filter(|seen| seen.target != CHECK).collect()
}

/// A configuration of a named upstream and a site that sends to it.
fn config(servers: &[&dyn std::fmt::Display], lines: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    format!("[upstreams.u]\nservers = [{}]\n{lines}\n{}", servers.join(", "), site("a.test", "u"))
}

fn is_unhealthy(reply: &Reply) -> bool {
    reply.status == 503
        && reply.is_by_edge()
        && reply.text().contains("E503-unhealthy")
        && reply.headers.has("retry-after")
}

/// One that says it is not ready gets no requests while another one is; when it is ready again, it does.
#[tokio::test]
async fn an_unhealthy_server_is_passed_over_until_it_is_well() {
    let (ill, well) = (Arc::new(AtomicU16::new(503)), Arc::new(AtomicU16::new(200)));
    let (first, second) = (moody("first", &ill).await, moody("second", &well).await);
    let lines = format!("balance = \"round-robin\"\n{EAGER}");
    let edge = Edge::start(&config(&[&first, &second], &lines)).await;
    let told = edge.event("unhealthy").await;
    assert_eq!(told["endpoint"], first.to_string());
    assert!(told["why"].as_str().unwrap().contains("GET /startupz is answered with 503"), "{told}");
    for _ in 0..8 {
        assert_eq!(edge.get("a.test", "/").await.text(), "second");
    }
    assert!(requests(&first).is_empty());
    ill.store(204, Ordering::SeqCst);
    edge.event("healthy").await;
    within("the one that is back gets its share", async {
        while requests(&first).is_empty() {
            edge.get("a.test", "/").await;
        }
    })
    .await;
}

/// One that was not ready is found well again soon, though probes are rare and nobody asks for it.
#[tokio::test]
async fn a_server_that_is_not_ready_is_asked_until_it_is() {
    let mood = Arc::new(AtomicU16::new(503));
    let upstream = moody("app", &mood).await;
    let lines = "health = { path = \"/startupz\", every = \"1h\", timeout = \"2s\", failures = 1 }";
    let edge = Edge::start(&config(&[&upstream], lines)).await;
    edge.event("unhealthy").await;
    mood.store(200, Ordering::SeqCst);
    edge.event("healthy").await;
    let body = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi";
    let mut wire = edge.h1("a.test").await;
    wire.send(body).await;
    assert_eq!(wire.reply().await.status, 200, "the first request that has a body, too");
}

/// GATEWAY.md 8: a probe carries nothing of a client, and nothing of its answer reaches one.
#[tokio::test]
async fn a_probe_carries_nothing_and_its_answer_goes_nowhere() {
    let mood = Arc::new(AtomicU16::new(503));
    let upstream = moody("app", &mood).await;
    let edge = Edge::start(&config(&[&upstream], EAGER)).await;
    edge.event("unhealthy").await;
    let probe = upstream.request(0).await;
    assert_eq!((probe.method.as_str(), probe.target.as_str()), ("GET", CHECK));
    let names: Vec<&str> = probe.headers.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["host", "user-agent", "accept", "connection"]);
    assert_eq!(probe.header("host"), Some(upstream.to_string().as_str()));
    let reply = edge.get("a.test", "/").await;
    assert!(is_unhealthy(&reply), "{} {}", reply.status, reply.text());
    let all = format!("{:?}{}", reply.headers, reply.text());
    assert!(!all.contains("secret details") && !edge.stderr().contains("secret details"), "{all}");
}

/// G-17, O-08: a gateway that says it is not ready gets no requests: 503 with `Retry-After`, for a GET, a POST and an upgrade;
/// what stands goes on; and with its return requests go through within a quarter of a second.
#[tokio::test]
async fn a_gateway_that_is_not_ready_is_503_and_its_tunnels_stand() {
    let server = Scripted::bind().await;
    let lines = "health = { path = \"/startupz\", every = \"100ms\", timeout = \"5s\", failures = 1 }";
    let edge = Edge::start(&config(&[&server], lines)).await;
    let probed = async |status: &str| {
        let (mut wire, seen) = server.request().await;
        assert_eq!(seen.target, CHECK);
        wire.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await;
    };
    probed("200 OK").await;
    // The tunnel opens between two probes, whichever comes first.
    let mut socket = edge.h1("a.test").await;
    socket.send(upgrade_request("a.test", "/ws", "")).await;
    let mut tunnel = loop {
        let (mut wire, seen) = server.request().await;
        if seen.target == CHECK {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            continue;
        }
        let proof = accept_key(&seen);
        wire.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {proof}\r\n\r\n"
        ))
        .await;
        break wire;
    };
    assert_eq!(socket.reply().await.status, 101);
    probed("503 Service Unavailable").await;
    edge.event("unhealthy").await;
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi".to_owned();
    for request in ["GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), post, upgrade_request("a.test", "/", "")] {
        let reply = edge.exchange("a.test", &request).await;
        assert!(is_unhealthy(&reply), "{request}: {} {}", reply.status, reply.text());
    }
    let record = edge.record_where("a refusal", |record| record["code"] == "E503-unhealthy").await;
    assert!(record["cause"].as_str().unwrap().contains("GET /startupz is answered with 503"), "{record}");
    // Nobody touched the tunnel.
    tunnel.send(frame(1, b"still here")).await;
    assert_eq!(socket.exact(12).await, frame(1, b"still here"));
    probed("200 OK").await;
    edge.event("healthy").await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /after HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    loop {
        let (mut far, seen) = server.request().await;
        far.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback").await;
        if seen.target == "/after" {
            break;
        }
    }
    assert_eq!(wire.reply().await.text(), "back");
}

/// SECURITY.md 5: requests that wait are let through within 250 ms of the moment from which the gateway says that it is
/// ready, however seldom it is checked.
#[tokio::test]
async fn held_requests_go_when_the_gateway_says_that_it_is_ready() {
    let mood = Arc::new(AtomicU16::new(503));
    let upstream = moody("app", &mood).await;
    let health =
        "health = { path = \"/startupz\", every = \"300s\", timeout = \"2s\", failures = 1, why = \"the test asks\" }";
    let edge = Edge::start(&config(&[&upstream], &format!("hold = \"8s\"\n{health}"))).await;
    edge.event("unhealthy").await;
    let mut get = edge.h1("a.test").await;
    get.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    edge.event("holding").await;
    let post = edge.exchange("a.test", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
    assert!(is_unhealthy(&post), "a request with a body is not held: {}", post.status);
    assert!(requests(&upstream).is_empty());
    mood.store(200, Ordering::SeqCst);
    let back = Instant::now();
    assert_eq!(get.reply().await.text(), "app");
    // Twice the promise: this machine is shared.
    assert!(back.elapsed() < Duration::from_millis(500), "{:?}", back.elapsed());
    let record = edge.record_where("the held one", |record| record["method"] == "GET").await;
    assert!(record["ms"]["held"].as_f64().unwrap() > 0.0, "{record}");
}

/// A check may never be worse than none: where there is no other server, one that is silent to probes, or answers them with
/// what says nothing of requests, is asked all the same.
#[tokio::test]
async fn a_check_that_is_wrong_shuts_nobody_out() {
    for status in [404, 401] {
        let mood = Arc::new(AtomicU16::new(status));
        let upstream = moody("app", &mood).await;
        let edge = Edge::start(&config(&[&upstream], EAGER)).await;
        edge.event("unhealthy").await;
        assert_eq!(edge.get("a.test", "/").await.text(), "app", "{status}");
        let post = edge.exchange("a.test", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(post.text(), "app", "{status}");
    }
    let server = Scripted::bind().await;
    let lines = "health = { path = \"/startupz\", every = \"5s\", timeout = \"200ms\", failures = 1 }";
    let edge = Edge::start(&config(&[&server], lines)).await;
    let (_silent, seen) = server.request().await;
    assert_eq!(seen.target, CHECK);
    let told = edge.event("unhealthy").await;
    assert!(told["why"].as_str().unwrap().contains("no answer to GET /startupz within 0.2 s"), "{told}");
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /real HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, seen) = server.request().await;
    assert_eq!(seen.target, "/real");
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbusy").await;
    assert_eq!(wire.reply().await.text(), "busy");
}

/// O-15: with `ws = true` a probe opens a WebSocket, waits for the gateway's first frame, says goodbye, and sends no credential.
#[tokio::test]
async fn a_probe_of_a_websocket_goes_up_to_the_first_frame() {
    let server = Scripted::bind().await;
    let lines = "health = { path = \"/live\", every = \"50ms\", timeout = \"2s\", failures = 1, ws = true }";
    let edge = Edge::start(&config(&[&server], lines)).await;
    let opened = async || {
        let (mut wire, seen) = server.request().await;
        assert_eq!((seen.target.as_str(), seen.header("upgrade")), ("/live", Some("websocket")));
        for name in ["authorization", "cookie", "origin", "x-forwarded-for"] {
            assert!(!seen.headers.has(name), "{name}");
        }
        let proof = accept_key(&seen);
        wire.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {proof}\r\n\r\n"
        ))
        .await;
        wire
    };
    // Without a frame it is no gateway.
    drop(opened().await);
    let told = edge.event("unhealthy").await;
    assert!(told["why"].as_str().unwrap().contains("before its first frame"), "{told}");
    let mut wire = opened().await;
    wire.send(frame(1, br#"{"type":"event","event":"connect.challenge"}"#)).await;
    edge.event("healthy").await;
    let said = wire.wire.rest().await;
    assert!(said.len() == 18 && said[0] == 0x88, "one close frame, and nothing else: {said:02x?}");
    // One that has no room says so.
    let mut wire = opened().await;
    wire.send(frame(8, b"\x03\xf5try again later")).await;
    edge.log_where("the second illness", |line| {
        line["event"] == "unhealthy" && line["why"].as_str().is_some_and(|why| why.contains("close 1013"))
    })
    .await;
}

/// A reload that no longer names a check ends it; one that changes nothing keeps what was found.
#[tokio::test]
async fn a_reload_ends_checks_that_are_not_wanted_and_keeps_what_was_found() {
    let mood = Arc::new(AtomicU16::new(503));
    let upstream = moody("app", &mood).await;
    let with = config(&[&upstream], EAGER);
    let edge = Edge::start(&with).await;
    edge.event("unhealthy").await;
    assert!(edge.reload_with(&format!("{with}aliases = [\"b.test\"]\n")).await);
    assert!(is_unhealthy(&edge.get("a.test", "/").await), "nothing is forgotten");
    assert!(edge.reload_with(&config(&[&upstream], "")).await);
    assert_eq!(edge.get("a.test", "/").await.text(), "app");
    // The one that was under way may still come; none follows it.
    let mut seen = upstream.seen().len();
    within("the checks end", async {
        loop {
            tokio::time::timeout(Duration::from_millis(300), upstream.request(seen))
                .await
                .map_or_else(|_| (), |_| seen += 1);
            if upstream.seen().len() == seen {
                return;
            }
        }
    })
    .await;
}

/// Preset `openclaw` checks `/startupz` (GATEWAY.md 12); `every = "0s"` switches that off.
#[tokio::test]
async fn the_preset_of_the_gateway_checks_its_startup() {
    let mood = Arc::new(AtomicU16::new(200));
    let upstream = moody("app", &mood).await;
    let edge = Edge::start(&format!("{}preset = \"openclaw\"\n", site("a.test", &upstream))).await;
    assert_eq!(upstream.request(0).await.target, CHECK);
    drop(edge);
    let other = moody("app", &mood).await;
    let off = format!("{}preset = \"openclaw\"\nhealth.every = \"0s\"\n", site("a.test", &other));
    let edge = Edge::start(&off).await;
    assert!(edge.reload_with(&off).await && edge.get("a.test", "/").await.status == 200);
    assert!(other.seen().iter().all(|seen| seen.target != CHECK));
}

/// N-28: an endpoint that is reached by TLS is checked by TLS, verified as for requests.
#[tokio::test]
async fn an_endpoint_is_checked_by_the_tls_that_requests_use() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::TempDir::new().unwrap();
    let ca = TestCa::new("upstreams");
    ca.write(&dir.path().join("ca.pem"));
    let (chain, key) = ca.issue("inner.example.com");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key.clone_key())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let is_asked = tls.read(&mut [0; 4096]).await.is_ok_and(|length| length > 0);
            if is_asked && tls.write_all(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n").await.is_ok() {
                tls.shutdown().await.ok();
            }
        }
    });
    for (name, why) in [("inner.example.com", "is answered with 503"), ("other.example.com", "TLS with")] {
        let tls = format!("tls = {{ ca = {:?}, server_name = {name:?} }}", dir.path().join("ca.pem"));
        let edge = Edge::start(&config(&[&format!("https://{address}")], &format!("{tls}\n{EAGER}"))).await;
        let told = edge.event("unhealthy").await;
        assert!(told["why"].as_str().unwrap().contains(why), "{told}");
    }
    serving.abort();
}

/// N-27: an endpoint at a unix socket is checked there.
#[tokio::test]
async fn a_unix_socket_is_checked_too() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let edge = Edge::start(&config(&[&format!("unix:{}", path.display())], EAGER)).await;
    let (stream, _) = within("a probe", listener.accept()).await.unwrap();
    let mut wire = crate::harness::Wire::new(stream);
    let head = String::from_utf8(wire.head().await.unwrap()).unwrap();
    assert!(head.starts_with("GET /startupz HTTP/1.1\r\nhost: localhost\r\n"), "{head}");
    wire.send("HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n").await;
    edge.event("unhealthy").await;
    assert!(is_unhealthy(&edge.get("a.test", "/").await));
}
