//! Stopping: finish requests, then tell each tunnel, and leave with status 0 in time (issue 2, 10).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Edge, Scripted, Upstream, WebSocketUpstream, frame, masked_frame, site, upgrade_request, within};

/// O-07: each tunnel's client sees close code 1001, over HTTP/1.1 and HTTP/2, and the exit status is 0.
#[tokio::test]
async fn tunnels_are_closed_with_1001_and_the_exit_is_clean() {
    let upstream = WebSocketUpstream::start().await;
    let fragment = format!("[process]\ntunnel_grace = \"200ms\"\n{}", site("a.test", &upstream));
    let mut edge = Edge::start(&fragment).await;
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(edge.websocket("a.test", "/").await);
        sockets.push(edge.websocket_h2("a.test", "/").await);
    }
    for socket in &mut sockets {
        assert_eq!(socket.echo("x").await, "x");
    }
    let started = Instant::now();
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    for socket in &mut sockets {
        assert_eq!(socket.closed().await.0, 1001);
    }
    assert_eq!(edge.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    edge.event("drained").await;
    let tunnels: Vec<_> = edge.records().into_iter().filter(|record| record["kind"] == "tunnel").collect();
    assert_eq!(tunnels.len(), 10, "each tunnel leaves its record");
    for record in tunnels {
        assert_eq!(record["ended_by"], "edge", "{record}");
        assert!(
            record["how"].as_str().unwrap().contains("1001") || record["how"].as_str().unwrap().contains("drain"),
            "{record}"
        );
    }
}

/// SECURITY.md 5: 1001 is written on a frame boundary: the rest of a frame that is on its way comes first.
#[tokio::test]
async fn the_close_frame_stands_on_a_frame_boundary() {
    let upstream = Scripted::bind().await;
    let fragment = format!("[process]\ntunnel_grace = \"400ms\"\n{}", site("a.test", &upstream));
    let mut edge = Edge::start(&fragment).await;
    let mut near = edge.h1("a.test").await;
    near.send(upgrade_request("a.test", "/", "")).await;
    let (mut far, seen) = upstream.request().await;
    let accept = crate::harness::accept_key(&seen);
    far.send(format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")).await;
    assert_eq!(near.reply().await.status, 101);
    let whole = frame(2, &[7; 1000]);
    far.send(&whole[..500]).await;
    assert_eq!(near.exact(500).await, &whole[..500]);
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    far.send(&whole[500..]).await;
    let rest = near.rest().await;
    assert_eq!(&rest[..whole.len() - 500], &whole[500..], "the frame is whole");
    let close = &rest[whole.len() - 500..];
    assert!(close.len() >= 4 && close[0] == 0x88 && close[2..4] == 1001_u16.to_be_bytes(), "{close:02x?}");
    near.try_send(masked_frame(8, &1001_u16.to_be_bytes())).await.ok();
    assert_eq!(edge.exit().await.code(), Some(0));
}

/// Issue 2, 10: a request that is on its way is finished, and its connection then closed.
#[tokio::test]
async fn requests_in_flight_are_finished() {
    let upstream = Scripted::bind().await;
    let mut edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    let mut h2 = edge.h2("a.test").await;
    let (response, _send) = h2.open(http::Request::get("https://a.test/2").body(()).unwrap(), true).await.unwrap();
    let (mut other, _) = upstream.request().await;
    let mut idle = edge.h1("a.test").await;
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    assert!(idle.rest().await.is_empty(), "an idle connection is closed at once");
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    assert_eq!(reply.headers.get("connection").map(str::to_ascii_lowercase).as_deref(), Some("close"));
    assert!(wire.rest().await.is_empty());
    other.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let reply = crate::harness::read_h2(within("a response", response).await.unwrap()).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"ok"[..]));
    let closed = h2.closed().await;
    assert!(closed.is_ok(), "GOAWAY without an error: {closed:?}");
    assert_eq!(edge.exit().await.code(), Some(0));
}

/// HOUSE.md A5: while it drains, nothing new is accepted.
#[tokio::test]
async fn nothing_new_is_accepted_while_draining() {
    let upstream = Scripted::bind().await;
    let mut edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    let address = edge.https_addr();
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    within("the port refuses", async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    assert_eq!(edge.exit().await.code(), Some(0));
}

/// CONFIG.md 3: `grace` bounds what requests may take; then they are cut, and the exit is still clean.
#[tokio::test]
async fn a_request_that_never_ends_is_cut_after_its_grace() {
    let upstream = Scripted::bind().await;
    let fragment = format!("[process]\ngrace = \"300ms\"\ntunnel_grace = \"100ms\"\n{}", site("a.test", &upstream));
    let mut edge = Edge::start(&fragment).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (_far, _) = upstream.request().await;
    let started = Instant::now();
    assert_eq!(edge.stop().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    wire.rest().await;
}

/// CONFIG.md 4: a second signal stops at once.
#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let upstream = Scripted::bind().await;
    let mut edge = Edge::start(&format!("[process]\ngrace = \"60s\"\n{}", site("a.test", &upstream))).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (_far, _) = upstream.request().await;
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    let started = Instant::now();
    edge.signal(Signal::SIGTERM);
    edge.exit().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// SIGINT is SIGTERM for a person at a terminal.
#[tokio::test]
async fn int_drains_too() {
    let upstream = Upstream::echo().await;
    let mut edge = Edge::start(&site("a.test", &upstream)).await;
    edge.get("a.test", "/").await;
    edge.signal(Signal::SIGINT);
    assert_eq!(edge.exit().await.code(), Some(0));
    assert_eq!(edge.records().len(), 1, "the last record is written before the end");
}

/// A tunnel that the client ends within the grace leaves by itself: nothing is cut that need not be.
#[tokio::test]
async fn a_tunnel_may_end_by_itself_within_the_grace() {
    let upstream = WebSocketUpstream::start().await;
    let mut edge = Edge::start(&format!("[process]\ntunnel_grace = \"8s\"\n{}", site("a.test", &upstream))).await;
    let mut socket = edge.websocket("a.test", "/").await;
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    assert_eq!(socket.echo("still here").await, "still here");
    let started = Instant::now();
    socket.close(1000, "done").await;
    assert_eq!(edge.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    let record = edge.records().into_iter().find(|record| record["kind"] == "tunnel").unwrap();
    assert_eq!(record["ended_by"], "client", "{record}");
}
