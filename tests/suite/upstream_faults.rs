//! How an endpoint fails, told apart (F-19, N-10); failures that eject it; restarts (O-08); and the bound on requests in
//! flight with its queue.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness::{
    Answer, Edge, H2Reply, Reply, Scripted, Socket, Upstream, WebSocketUpstream, accept_key, frame, site,
    upgrade_request, within,
};

/// What an endpoint does with a connection that it has accepted and read a request from.
#[derive(Clone, Copy)]
enum Manners {
    /// Ends the stream without a word.
    Close,
    /// Breaks it off.
    Reset,
    /// Says nothing.
    Wait,
    /// Says this, and ends the stream.
    Say(&'static str),
}

/// An endpoint with such manners. It reads a head before it shows them, or the beginning of a handshake.
async fn endpoint(manners: Manners) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            // A ClientHello has no empty line at its end.
            let is_whole = |head: &[u8]| head.ends_with(b"\r\n\r\n") || head.first() == Some(&0x16);
            while !is_whole(&head) && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
            match manners {
                Manners::Close => {}
                Manners::Reset => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
                Manners::Wait => kept.push(stream),
                Manners::Say(words) => stream.write_all(words.as_bytes()).await.unwrap(),
            }
        }
    });
    (address, task)
}

/// A listener whose queue is full: the kernel takes no further connection. The streams keep it so.
async fn full() -> (SocketAddr, socket2::Socket, Vec<tokio::net::TcpStream>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut streams = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        streams.push(stream);
    }
    (address, listener, streams)
}

fn h2_code(reply: &H2Reply) -> String {
    String::from_utf8_lossy(&reply.body).rsplit("Code ").next().unwrap().trim_end().trim_end_matches('.').to_owned()
}

fn code(reply: &Reply) -> String {
    reply.text().rsplit("Code ").next().unwrap().trim_end().trim_end_matches('.').to_owned()
}

/// F-19, N-10: each way to fail has its own code, RFC 9209 error and cause, over both protocols; the record has all of it.
#[tokio::test]
async fn each_cause_is_told_apart() {
    let nobody = Scripted::bind().await.to_string();
    let (full, _listener, _streams) = full().await;
    let (closes, _a) = endpoint(Manners::Close).await;
    let (resets, _b) = endpoint(Manners::Reset).await;
    let (waits, _c) = endpoint(Manners::Wait).await;
    let (garbles, _d) = endpoint(Manners::Say("hello\r\n\r\n")).await;
    let (no_upgrade, _e) = endpoint(Manners::Say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).await;
    let cases = [
        (nobody, 502, "E502-refused", "connection_refused", "nothing listens on"),
        (full.to_string(), 504, "E504-connect", "connection_timeout", "did not accept a connection within 0.4 s"),
        // Broadcast, to which TCP does not connect.
        ("255.255.255.255:9".into(), 502, "E502-unreachable", "destination_ip_unroutable", "cannot be reached"),
        ("http://nothing.invalid:80".into(), 502, "E502-dns", "dns_error", "has no address"),
        (format!("https://localhost:{}", closes.port()), 502, "E502-tls", "tls_certificate_error", "TLS with"),
        (closes.to_string(), 502, "E502-closed", "connection_terminated", "closed the connection before"),
        (resets.to_string(), 502, "E502-reset", "connection_terminated", "reset the connection before"),
        (waits.to_string(), 504, "E504-response", "http_response_timeout", "did not answer within 0.4 s"),
        (garbles.to_string(), 502, "E502-protocol", "http_protocol_error", "malformed answer"),
    ];
    // The resolver of a machine without a network may take its time.
    let lines = |connect: &str| format!("timeouts = {{ connect = \"{connect}\", response_head = \"400ms\" }}\n");
    for (upstream, status, expected, error, cause) in cases {
        let connect = if expected == "E502-dns" { "9s" } else { "400ms" };
        let edge = Edge::start(&format!("{}{}", site("a.test", &upstream), lines(connect))).await;
        let reply = edge.get("a.test", "/").await;
        let told = reply.headers.get("proxy-status").unwrap_or_default().to_owned();
        if expected == "E502-dns" && reply.status == 504 {
            continue; // it asks somebody who is not there
        }
        assert_eq!((reply.status, code(&reply).as_str()), (status, expected), "{upstream}: {}", reply.text());
        assert!(told.contains(&format!("error={error};")), "{upstream}: {told}");
        let reply = edge.h2("a.test").await.get("a.test", "/").await;
        assert_eq!((reply.status, h2_code(&reply).as_str()), (status, expected), "{upstream} over HTTP/2");
        let (reply, _) = edge.upgrade("a.test", "/", "").await;
        assert_eq!((reply.status, code(&reply).as_str()), (status, expected), "{upstream}: an upgrade");
        let record = edge.record("request").await;
        assert_eq!((&record["status"], &record["code"]), (&status.into(), &expected.into()), "{record}");
        assert!(record["cause"].as_str().unwrap().contains(cause), "{record}");
    }
    let edge = Edge::start(&site("a.test", no_upgrade)).await;
    let (reply, _) = edge.upgrade("a.test", "/", "").await;
    assert_eq!((reply.status, code(&reply).as_str()), (502, "E502-upgrade"));
}

/// O-08: a port that is refused within half a minute of close 1012 "service restart", or of a 503, is a restart: 503 with
/// `Retry-After`, in words, also for a POST. Without such a word it stays 502.
#[tokio::test]
async fn a_restart_is_told_as_one() {
    for by_tunnel in [true, false] {
        let place = Scripted::bind().await;
        let edge = Edge::start(&site("a.test", &place)).await;
        let mut client = edge.h1("a.test").await;
        if by_tunnel {
            client.send(upgrade_request("a.test", "/", "")).await;
            let (mut far, seen) = place.request().await;
            let proof = accept_key(&seen);
            far.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {proof}\r\n\r\n"
            ))
            .await;
            assert_eq!(client.reply().await.status, 101);
            far.send(frame(8, b"\x03\xf4service restart")).await;
            client.exact(19).await;
            drop((client, far));
            let record = edge.record("tunnel").await;
            assert_eq!(
                (&record["ended_by"], &record["how"]),
                (&"upstream".into(), &"close 1012 \"service restart\"".into())
            );
        } else {
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            let (mut far, _) = place.request().await;
            far.send("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
            let reply = client.reply().await;
            assert!(reply.status == 503 && !reply.is_by_edge(), "its own answer is its own");
        }
        drop(place);
        let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi".to_owned();
        for request in ["GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), post, upgrade_request("a.test", "/", "")] {
            let reply = edge.exchange("a.test", &request).await;
            assert_eq!((reply.status, code(&reply).as_str()), (503, "E503-restarting"), "{request}");
            assert!(reply.text().contains("the gateway is restarting") && reply.headers.has("retry-after"));
        }
    }
    let closed = Scripted::bind().await.to_string();
    let edge = Edge::start(&site("a.test", &closed)).await;
    assert_eq!(code(&edge.get("a.test", "/").await), "E502-refused");
}

/// Failures in a row eject a server that has others beside it; 5xx of the application do not.
#[tokio::test]
async fn a_server_that_fails_again_and_again_is_passed_over() {
    let (resets, _task) = endpoint(Manners::Reset).await;
    let well = Upstream::saying("well").await;
    let lines = "balance = \"round-robin\"";
    let config = format!("[process]\nworkers = 1\n[upstreams.u]\nservers = [\"{resets}\", \"{well}\"]\n{lines}\n");
    let edge = Edge::start(&format!("{config}{}", site("a.test", "u"))).await;
    let mut failures = 0;
    for _ in 0..20 {
        failures += usize::from(edge.get("a.test", "/").await.status != 200);
    }
    assert_eq!(failures, 3, "three in a row, and then the other one alone");
    let told = edge.event("ejected").await;
    assert_eq!((&told["endpoint"], &told["code"]), (&resets.to_string().into(), &"E502-reset".into()));
    let angry = Upstream::answering(|_| Answer::status("500 Internal Server Error", "", "no")).await;
    let config = format!("[upstreams.u]\nservers = [\"{angry}\", \"{well}\"]\n{lines}\n{}", site("a.test", "u"));
    assert!(edge.reload_with(&format!("[process]\nworkers = 1\n{config}")).await);
    let answers = futures_util::future::join_all((0..20).map(|_| edge.get("a.test", "/"))).await;
    assert_eq!(answers.iter().filter(|reply| reply.status == 500).count(), 10, "its answers are its own");
}

/// A bound on requests in flight: those above it wait their turn, those above the queue get 503 with `Retry-After`, and
/// a WebSocket that stands takes no place.
#[tokio::test]
async fn requests_above_the_bound_wait_or_are_told() {
    let server = Scripted::bind().await;
    let bound = "max_in_flight = 1\nqueue = { size = 1, timeout = \"8s\" }";
    // One worker, so that the next request finds the connection of the one before it.
    let config =
        format!("[process]\nworkers = 1\n[upstreams.u]\nservers = [\"{server}\"]\n{bound}\n{}", site("a.test", "u"));
    let edge = Edge::start(&config).await;
    // A tunnel stands, on either protocol, and counts no more.
    let mut socket = edge.h1("a.test").await;
    socket.send(upgrade_request("a.test", "/", "")).await;
    let (mut tunnel, seen) = server.request().await;
    let proof = accept_key(&seen);
    tunnel
        .send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {proof}\r\n\r\n"
        ))
        .await;
    assert_eq!(socket.reply().await.status, 101);
    let mut first = edge.h1("a.test").await;
    first.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, seen) = server.request().await;
    assert_eq!(seen.target, "/1");
    let mut second = edge.h2("a.test").await;
    let request = http::Request::get("https://a.test/2").body(()).unwrap();
    let (answer, _) = second.open(request, true).await.unwrap();
    // On one connection they begin in order: the one before it waits, and there is no room.
    let refused = second.get("a.test", "/3").await;
    assert_eq!((refused.status, h2_code(&refused).as_str()), (503, "E503-overload"));
    let refused = edge.get("a.test", "/4").await;
    assert_eq!((refused.status, code(&refused).as_str()), (503, "E503-overload"));
    assert!(refused.headers.has("retry-after") && refused.is_by_edge());
    assert!(!server.has_waiting().await, "none of them has reached the server");
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n").await;
    assert_eq!(first.reply_head().await.unwrap().status, 200);
    assert!(!server.has_waiting().await, "a response that is under way still has its place");
    far.send("one").await;
    assert_eq!(first.exact(3).await, b"one");
    let next = far.request().await.expect("the next in the queue, on the same connection");
    assert_eq!(next.target, "/2");
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!(within("an answer", answer).await.unwrap().status(), 200);
}

/// A wait in the queue has its bound.
#[tokio::test]
async fn a_wait_in_the_queue_ends() {
    let server = Scripted::bind().await;
    let bound = "max_in_flight = 1\nqueue = { timeout = \"300ms\" }";
    let edge = Edge::start(&format!("[upstreams.u]\nservers = [\"{server}\"]\n{bound}\n{}", site("a.test", "u"))).await;
    let mut first = edge.h1("a.test").await;
    first.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let _held = server.request().await;
    let begun = Instant::now();
    let reply = edge.get("a.test", "/2").await;
    assert_eq!((reply.status, code(&reply).as_str()), (503, "E503-overload"));
    assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let record = edge.record("request").await;
    assert!(
        record["cause"].as_str().unwrap().contains("none of 1 requests in flight has ended within 0.3 s"),
        "{record}"
    );
    // Who goes away gives its place back.
    drop(first);
    edge.record_where("the first", |record| record["path"] == "/1").await;
    let mut third = edge.h1("a.test").await;
    third.send("GET /3 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = server.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(third.reply().await.status, 200);
}

/// A tunnel on a bounded upstream goes on while requests are refused.
#[tokio::test]
async fn tunnels_outnumber_the_bound() {
    let sockets = WebSocketUpstream::start().await;
    let config = format!(
        "[upstreams.u]\nservers = [\"{sockets}\"]\nmax_in_flight = 1\nqueue = {{ size = 0 }}\n{}",
        site("a.test", "u")
    );
    let edge = Edge::start(&config).await;
    let mut open: Vec<Socket> = Vec::new();
    for _ in 0..4 {
        open.push(edge.websocket("a.test", "/").await);
    }
    assert_eq!(edge.get("a.test", "/").await.status, 200);
    for socket in &mut open {
        assert_eq!(socket.echo("x").await, "x");
    }
}
