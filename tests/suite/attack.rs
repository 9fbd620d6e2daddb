//! Attacks on the seams between two connections: what one peer withholds, leaves behind or says too
//! early must not harm anybody else (SECURITY.md 2 and 4).

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    Answer, ClientTls, Edge, Scripted, TestCa, Upstream, Wire, accept_key, noise, site, site_with, upgrade_request,
    within,
};

/// Reads to the end of a TLS stream; an error when it ended without close_notify, or with a reset.
async fn read_out(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut got = Vec::new();
    within("the edge closes", stream.read_to_end(&mut got)).await?;
    Ok(got)
}

/// RFC 8446 6.1: a connection that carried an upgrade nobody granted ends like any other, with close_notify.
#[tokio::test]
async fn a_refused_upgrade_leaves_the_close_in_order() {
    let upstream = Upstream::answering(|_| Answer::status("403 Forbidden", "", "no")).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for first in [
        upgrade_request("a.test", "/", ""),
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_owned(),
    ] {
        let mut stream = edge.tls("a.test", &["http/1.1"]).await;
        let last = b"GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        stream.write_all(&[first.as_bytes(), last].concat()).await.unwrap();
        let got = read_out(&mut stream).await.expect("close_notify comes");
        let got = String::from_utf8_lossy(&got).into_owned();
        assert_eq!(got.matches("HTTP/1.1 403").count(), 2, "{got}");
    }
}

/// Pingora's CVE-2025-4366 the other way round: an upstream that answers before it has read a collected
/// body keeps that connection to itself; the next request does not wait behind the rest.
#[tokio::test]
async fn an_upstream_that_leaves_a_collected_body_unread_holds_up_nobody() {
    let upstream = Scripted::bind().await;
    let config = format!("process = {{ workers = 1 }}\n{}", site_with("a.test", &upstream, "collect_request = true"));
    let edge = Edge::start(&config).await;
    let body = noise(16 << 20);
    let mut wire = edge.h1("a.test").await;
    let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send([head.as_bytes(), &body].concat()).await;
    let (mut far, _) = upstream.head().await;
    far.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 413);
    for _ in 0..2 {
        let mut next = edge.h1("a.test").await;
        next.send("GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let (mut fresh, seen) = upstream.request().await;
        assert_eq!(seen.target, "/next");
        fresh.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(next.reply().await.text(), "ok");
    }
}

/// An upstream that has answered and reads no more of the request does not keep connection and body for ever.
#[tokio::test]
async fn a_request_body_that_nobody_reads_ends_with_the_answer() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 20000000\r\n\r\n").await;
    let (mut far, _) = upstream.head().await;
    let piece = noise(1 << 20);
    // Until every buffer on the way is full.
    let full = std::time::Duration::from_millis(500);
    while tokio::time::timeout(full, wire.try_send(&piece)).await.is_ok() {}
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(wire.reply().await.text(), "ok");
    within("the edge closes its connection", async { while far.wire.try_send(&piece).await.is_ok() {} }).await;
}

/// CVE-2026-47774 and its like: a stream whose client never opens the window is given up after `send`,
/// and the upstream's work with it, while the connection lives on.
#[tokio::test]
async fn a_stream_that_takes_nothing_is_reset() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "timeouts = { send = \"500ms\" }")).await;
    let mut raw = edge.raw_h2("a.test").await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0 (RFC 9113 6.5.2).
    raw.frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
    raw.headers(1, &get, true).await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
    let piece = noise(1 << 20);
    within("the edge gives up", async { while far.wire.try_send(&piece).await.is_ok() {} }).await;
    loop {
        let frame = raw.next().await.expect("the connection lives on");
        if frame.kind == 3 {
            assert_eq!(frame.stream, 1);
            break;
        }
        assert_ne!(frame.kind, 7, "no GOAWAY");
    }
    assert!(edge.record("request").await["aborted"].is_string());
}

/// RFC 9110 6.4.1, 8.6: a status without content carries none, whatever its head claims.
#[tokio::test]
async fn a_status_without_content_never_carries_any() {
    for head in ["204 No Content\r\nContent-Length: 5", "204 No Content\r\nTransfer-Encoding: chunked"] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\nhello");
        let upstream = Upstream::answering(move |_| Answer::Close(answer.clone().into_bytes())).await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let mut wire = edge.h1("a.test").await;
        wire.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
        let reply = wire.reply().await;
        let forbidden = reply.headers.has("content-length") || reply.headers.has("transfer-encoding");
        assert!(reply.status == 502 || (reply.status == 204 && !forbidden), "{head}: {reply:?}");
        if reply.status == 204 {
            assert!(wire.rest().await.is_empty(), "{head}");
        }
        let mut h2 = edge.h2("a.test").await;
        let reply = h2.get("a.test", "/").await;
        assert!(reply.error.is_none() && reply.body.len() < 600, "{head}: {reply:?}");
        assert!(reply.status == 502 || reply.header("content-length").is_none(), "{head}: {reply:?}");
    }
}

/// RFC 9110 8.6: a 101 has no length; what follows it are frames.
#[tokio::test]
async fn a_101_carries_no_framing() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let accepted = |seen: &crate::harness::Seen| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\
            Sec-WebSocket-Accept: {}\r\n\r\n",
            accept_key(seen)
        )
    };
    let mut near = edge.h1("a.test").await;
    near.send(upgrade_request("a.test", "/", "")).await;
    let (mut far, seen) = upstream.request().await;
    far.send(accepted(&seen)).await;
    let reply = near.reply().await;
    assert!(reply.status == 502 || (reply.status == 101 && !reply.headers.has("content-length")), "{reply:?}");
    let mut h2 = edge.h2("a.test").await;
    let opening = h2.connect("a.test", "/");
    let answering = async {
        let (mut far, seen) = upstream.request().await;
        far.send(accepted(&seen)).await;
        far
    };
    let (_io, _far) = tokio::join!(opening, answering);
}

/// RFC 9113 6.8: a request that crosses our GOAWAY is still answered, however long that takes.
#[tokio::test]
async fn a_request_that_crosses_the_goodbye_is_answered() {
    let upstream = Scripted::bind().await;
    let config = format!("listen = {{ keep_alive_timeout = \"200ms\" }}\n{}", site("a.test", &upstream));
    let edge = Edge::start(&config).await;
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut raw = edge.raw_h2("a.test").await;
        raw.headers(1, &get, true).await;
        let (mut far, _) = upstream.request().await;
        far.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        while raw.next().await.expect("the connection is open").kind != 7 {}
        raw.headers(3, &get, true).await;
        open.push((raw, upstream.request().await.0));
    }
    // Longer than the edge waits for an idle client's own end.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    for (mut raw, mut far) in open {
        far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        loop {
            let frame = raw.next().await.expect("the whole answer comes");
            if (frame.stream, frame.kind, frame.flags & 1) == (3, 0, 1) {
                break;
            }
        }
    }
}

/// A connection that was busy when its idle limit passed is closed when it has been idle for so long.
#[tokio::test]
async fn an_idle_limit_that_passes_unused_begins_anew() {
    let upstream = Scripted::bind().await;
    let limits = "listen = { request_head_timeout = \"200ms\", keep_alive_timeout = \"300ms\" }\n";
    let edge = Edge::start(&format!("{limits}{}", site("a.test", &upstream))).await;
    let mut raw = edge.raw_h2("a.test").await;
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
    raw.headers(1, &get, true).await;
    let (mut far, _) = upstream.request().await;
    // Both limits pass while the upstream works.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut has_answer = false;
    loop {
        let frame = raw.next().await.expect("GOAWAY comes before the end");
        has_answer |= frame.stream == 1 && frame.kind == 0;
        if frame.kind == 7 {
            break;
        }
    }
    assert!(has_answer, "the answer first");
}

/// A connection whose request and answer are both whole serves the next request.
#[tokio::test]
async fn a_whole_exchange_leaves_the_connection_to_the_next() {
    let upstream = Upstream::echo().await;
    for collect in [false, true] {
        let before = upstream.connections();
        let line = format!("collect_request = {collect}");
        let config = format!("process = {{ workers = 1 }}\n{}", site_with("a.test", &upstream, &line));
        let edge = Edge::start(&config).await;
        let mut wire = edge.h1("a.test").await;
        for length in [0, 1, 100, 70_000, 1 << 20, 5] {
            let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
            wire.send([head.as_bytes(), &noise(length)].concat()).await;
            assert_eq!(wire.reply().await.body, noise(length));
        }
        assert_eq!(upstream.connections() - before, 1, "collect: {collect}");
    }
}

/// RFC 8446 4.6.1: tickets are optional. Who resumes with TLS 1.2 gets none after the handshake, and its first
/// answer must not be held back for one.
#[tokio::test]
async fn a_first_answer_does_not_wait_for_tickets_that_never_come() {
    let upstream = Upstream::answering(|_| Answer::ok("", "ok")).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = ClientTls { version: Some(version), ..ClientTls::alpn(&["http/1.1"]) };
        let config = client.config(&edge);
        for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let stream = edge.handshake("a.test", Arc::clone(&config)).await.expect("a handshake");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
            let mut wire = Wire::new(stream);
            wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            assert_eq!(wire.reply().await.text(), "ok", "{version:?} {kind:?}");
        }
    }
}

/// RFC 8446 6.2: a client whose certificate is refused is told why, although its side of the handshake is over.
#[tokio::test]
async fn a_refused_certificate_is_answered_with_an_alert() {
    let upstream = Upstream::answering(|_| Answer::ok("", "ok")).await;
    let authority = TestCa::new("clients");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ca.pem");
    authority.write(&path);
    let edge = Edge::start(&site_with("a.test", &upstream, &format!("client_cert = {{ ca = {path:?} }}"))).await;
    let mut stream = edge.tls("a.test", &["http/1.1"]).await;
    let error = read_out(&mut stream).await.expect_err("no certificate was shown");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

/// SECURITY.md 4, rule 2: after a refusal that casts doubt on the client, nothing is taken for a request.
#[tokio::test]
async fn after_a_refusal_the_connection_closes_as_it_says() {
    let upstream = Upstream::answering(|_| Answer::ok("", "ok")).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    let next = "GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n";
    wire.send(format!("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n{next}")).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.headers.all("connection")), (421, vec!["close"]));
    assert_eq!(wire.rest().await, b"", "nothing follows");
}

/// Interim responses are no sign of life: an endpoint that sends nothing else is given up.
#[tokio::test]
async fn a_flood_of_interim_responses_ends() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1 << 10);
    within("the edge gives up", async { while far.wire.try_send(&flood).await.is_ok() {} }).await;
    assert_eq!(wire.reply().await.status, 502);
}

/// SECURITY.md 4, rule 7: an interim response is a response byte. The request was seen and is not repeated.
#[tokio::test]
async fn a_request_that_got_an_interim_response_is_not_repeated() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&format!("process = {{ workers = 1 }}\n{}", site("a.test", &upstream))).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(wire.reply().await.text(), "ok");
    wire.send("GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(far.request().await.expect("the same connection").target, "/2");
    far.send("HTTP/1.1 102 Processing\r\n\r\n").await;
    drop(far);
    let reply = within("an answer", wire.reply()).await;
    assert_eq!(reply.status, 502);
    assert!(!upstream.has_waiting().await);
}

/// An endpoint that took only a part of a request gets no other one on the same connection, even if it says
/// nothing about closing it.
#[tokio::test]
async fn a_connection_that_took_half_a_request_serves_no_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let listener = tokio::net::UnixListener::from_std(listener).expect("a socket");
    let config = format!("process = {{ workers = 1 }}\n{}", site("a.test", format!("unix:{}", path.display())));
    let edge = Edge::start(&config).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n12345").await;
    let (far, _) = within("the edge connects", listener.accept()).await.expect("a connection");
    let far = far.into_std().expect("a socket");
    let mut far = {
        far.shutdown(std::net::Shutdown::Read).expect("an open socket");
        tokio::net::UnixStream::from_std(far).expect("a socket")
    };
    // All of the body is here, and the endpoint does not take it.
    wire.send("67890").await;
    far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("the edge reads");
    assert_eq!(wire.reply().await.text(), "ok");
    let mut next = edge.h1("a.test").await;
    next.send("GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    within("a connection of its own", listener.accept()).await.expect("a connection");
}

/// A client that leaves in the middle of its body ends the work for it, although the endpoint answers already.
#[tokio::test]
async fn a_client_that_leaves_its_body_behind_ends_the_response() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\n12345").await;
    let (mut far, _) = upstream.head().await;
    far.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await;
    assert_eq!(wire.reply_head().await.expect("a head").status, 200);
    drop(wire);
    within("the edge lets go", async { while far.wire.fill().await {} }).await;
    assert_eq!(edge.record("request").await["aborted"], "client");
}

/// A HEAD that the edge answers is a whole exchange: its record does not say that the client left.
#[tokio::test]
async fn a_head_without_content_is_no_abort() {
    let upstream = Upstream::answering(|_| Answer::ok("", "")).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("HEAD / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    assert_eq!(wire.reply_to("HEAD").await.status, 421);
    let record = edge.record("request").await;
    assert!(record["aborted"].is_null(), "{record}");
    let mut h2 = edge.raw_h2("a.test").await;
    let head = [(":method", "HEAD"), (":scheme", "https"), (":authority", "other.test"), (":path", "/2")];
    h2.headers(1, &head, true).await;
    let record = edge.record_where("over HTTP/2", |record| record["path"] == "/2").await;
    assert!(record["aborted"].is_null(), "{record}");
}

/// RFC 9110 10.1.1: an expectation is met in every order: the body is here already, it is asked for, or an early
/// answer makes it needless; what follows then is never taken for a request.
#[tokio::test]
async fn an_expectation_is_met_in_every_order() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut wire = edge.h1("a.test").await;
    wire.send(head).await;
    assert_eq!(wire.until(b"\r\n\r\n").await.expect("an interim response"), b"HTTP/1.1 100 Continue\r\n\r\n");
    wire.send("ab").await;
    wire.send("cd").await;
    assert_eq!(wire.reply().await.text(), "abcd");
    wire.send(format!("{head}efgh")).await;
    assert_eq!(wire.reply().await.text(), "efgh", "no 100 for a body that is here");
    wire.send(head.replace("Host: a.test", "Host: other.test")).await;
    assert_eq!(wire.reply().await.status, 421, "no 100 for a body that nobody reads");
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.rest().await, b"");
}

/// RFC 9112 9.3.2 with bodies of every length: what is left over of an endpoint's answer goes to nobody.
#[tokio::test]
async fn what_an_endpoint_sends_too_much_goes_to_nobody() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&format!("process = {{ workers = 1 }}\n{}", site("a.test", &upstream))).await;
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for (method, answer) in [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ] {
        let mut wire = edge.h1("a.test").await;
        wire.send(format!("{method} /1 HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        let (mut far, _) = upstream.request().await;
        far.send(format!("{answer}{poison}")).await;
        wire.reply_to(method).await;
        wire.send("GET /2 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
        let (mut fresh, seen) = upstream.request().await;
        assert_eq!(seen.target, "/2");
        fresh.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nsound").await;
        assert_eq!(wire.reply().await.text(), "sound", "{method} {answer:?}");
    }
}
