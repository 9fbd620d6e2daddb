//! WebSockets over HTTP/1.1 and HTTP/2, relayed byte for byte (RFC 6455, RFC 8441).

use std::io;

use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{
    Answer, BOUND, Edge, Reply, Scripted, Seen, Upstream, UpstreamWire, WebSocketUpstream, Wire, accept_key,
    connect_request, frame, masked_frame, noise, site, site_with, upgrade_request, within,
};

/// The 101 of a well-behaved upstream.
fn accepted(seen: &Seen, headers: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n{headers}\r\n",
        accept_key(seen)
    )
}

/// A tunnel between a client over HTTP/1.1 and a scripted upstream.
async fn tunnel(edge: &Edge, upstream: &Scripted) -> (Wire, UpstreamWire) {
    let mut near = edge.h1("a.test").await;
    near.send(upgrade_request("a.test", "/", "")).await;
    let (mut far, seen) = upstream.request().await;
    far.send(accepted(&seen, "")).await;
    assert_eq!(near.reply().await.status, 101);
    (near, far)
}

/// A tunnel between a client over HTTP/2 and a scripted upstream.
async fn tunnel_h2(edge: &Edge, upstream: &Scripted) -> (crate::harness::H2, Wire, UpstreamWire) {
    let mut connection = edge.h2("a.test").await;
    let opening = connection.connect("a.test", "/");
    let answering = async {
        let (mut far, seen) = upstream.request().await;
        far.send(accepted(&seen, "")).await;
        far
    };
    let (io, far) = tokio::join!(opening, answering);
    (connection, Wire::new(io), far)
}

/// M-01, M-02, G-01: a socket opens and carries messages over HTTP/1.1, with no setting at all.
#[tokio::test]
async fn a_websocket_works_over_http_1_1() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut socket = edge.websocket("a.test", "/any/path?x=1").await;
    assert_eq!(socket.echo("hello").await, "hello");
    let seen = upstream.seen().remove(0);
    assert_eq!(seen.fault, None);
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/any/path?x=1"));
    assert_eq!(seen.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="), "passed untouched");
}

/// RFC 8441: over HTTP/2 the upstream sees a fresh HTTP/1.1 upgrade, equal in all else.
#[tokio::test]
async fn a_websocket_works_over_http2() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut socket = edge.websocket_h2("a.test", "/any/path?x=1").await;
    assert_eq!(socket.echo("hello").await, "hello");
    let seen = upstream.seen().remove(0);
    assert_eq!(seen.fault, None);
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/any/path?x=1"));
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(seen.header("sec-websocket-version"), Some("13"));
    assert_eq!(seen.header("sec-websocket-key").map(str::len), Some(24), "16 bytes in Base64, made by the edge");
    assert_eq!((seen.header("host"), seen.header("x-forwarded-for")), (Some("a.test"), Some("127.0.0.1")));
    socket.close(1000, "done").await;
    let record = edge.record("tunnel").await;
    assert_eq!(record["over"], "h2");
}

/// N-05, G-20, O-11: what the client says of itself passes untouched, and so does what the upstream chooses.
#[tokio::test]
async fn negotiation_headers_pass_untouched() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let lines = "Origin: https://Other.example.com\r\nUser-Agent: node (linux; x)\r\nSec-WebSocket-Protocol: chat, super\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nAuthorization: Bearer t\r\nCookie: a=1\r\n";
    let mut near = edge.h1("a.test").await;
    near.send(upgrade_request("a.test", "/", lines)).await;
    let (mut far, seen) = upstream.request().await;
    for line in lines.lines() {
        let (name, value) = line.trim().split_once(": ").unwrap();
        assert_eq!(seen.header(&name.to_ascii_lowercase()), Some(value), "{name}");
    }
    far.send(accepted(&seen, "Sec-WebSocket-Protocol: chat\r\nX-Gateway: 1\r\n")).await;
    let reply = near.reply().await;
    assert_eq!(reply.headers.get("sec-websocket-protocol"), Some("chat"));
    assert_eq!(reply.headers.get("x-gateway"), Some("1"));
    assert!(!reply.headers.has("sec-websocket-extensions"), "nothing is negotiated by the edge");
}

/// M-05, GATEWAY.md 4: a client without Origin passes; none is invented.
#[tokio::test]
async fn a_client_without_origin_passes_without_one() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    edge.websocket("a.test", "/").await;
    assert!(!upstream.seen().remove(0).headers.has("origin"));
}

/// F-09: frames of every kind pass byte for byte, in fragments and in one piece, in both directions.
#[tokio::test]
async fn frames_pass_byte_for_byte() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut client = masked_frame(1, b"text");
    client.extend(masked_frame(2, &noise(70_000)));
    client.extend([0x01, 0x82, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2]); // a first fragment
    client.extend(masked_frame(9, b"ping between fragments"));
    client.extend([0x80, 0x80, 1, 2, 3, 4]); // an empty last fragment
    client.extend([0xf3, 0x80, 9, 9, 9, 9]); // reserved bits and opcode: not ours to judge
    let mut server = frame(1, b"challenge");
    server.extend(frame(2, &noise(200_000)));
    server.extend(frame(10, b"pong"));
    for over in ["h1", "h2"] {
        let (_connection, mut near, mut far) = match over {
            "h1" => {
                let (near, far) = tunnel(&edge, &upstream).await;
                (None, near, far)
            }
            _ => {
                let (connection, near, far) = tunnel_h2(&edge, &upstream).await;
                (Some(connection), near, far)
            }
        };
        near.send(&client).await;
        assert!(far.wire.exact(client.len()).await == client, "client to upstream over {over}");
        let sending = far.wire.try_send(&server);
        let reading = near.exact(server.len());
        let (sent, got) = tokio::join!(within("the edge takes the frames", sending), reading);
        sent.unwrap();
        assert!(got == server, "upstream to client over {over}");
    }
}

/// G-04, O-04: nothing is sent upstream before the client's first frame; G-05: the challenge comes at once.
#[tokio::test]
async fn bytes_sent_with_the_handshake_are_not_lost() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let (early_up, early_down) = (masked_frame(1, b"early from the client"), frame(1, b"challenge"));
    let mut near = edge.h1("a.test").await;
    let mut opening = upgrade_request("a.test", "/", "").into_bytes();
    opening.extend_from_slice(&early_up);
    near.send(&opening).await;
    let (mut far, seen) = upstream.request().await;
    assert!(far.wire.buffered().is_empty(), "SECURITY.md 1: no bytes of a tunnel before a verified 101");
    let mut answer = accepted(&seen, "").into_bytes();
    answer.extend_from_slice(&early_down);
    far.send(&answer).await;
    assert_eq!(near.reply().await.status, 101);
    assert_eq!(near.exact(early_down.len()).await, early_down);
    assert_eq!(far.wire.exact(early_up.len()).await, early_up);
}

/// N-15, G-02: a frame of 25 MiB passes in both directions, whatever the limit of bodies.
#[tokio::test]
async fn a_frame_of_25_mib_passes_both_ways() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { body = \"1KiB\" }")).await;
    let message = Message::binary(noise(26_214_400));
    for mut socket in [edge.websocket("a.test", "/").await, edge.websocket_h2("a.test", "/").await] {
        let echoed = tokio::time::timeout(BOUND * 6, async {
            socket.send_patiently(message.clone()).await;
            socket.next_patiently().await
        });
        assert!(echoed.await.expect("within a minute") == message);
    }
}

/// G-06: a client that does not read holds its upstream back; nothing piles up without bound, nothing is lost.
#[tokio::test]
async fn backpressure_reaches_the_upstream() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let (mut near, far) = tunnel(&edge, &upstream).await;
    let (mut io, _) = far.wire.into_parts();
    let piece = noise(1 << 20);
    let mut sent = 0_usize;
    // No read on the client: the writes must stop being taken. Loopback buffers hold some megabytes.
    let stalled = loop {
        let Ok(written) = tokio::time::timeout(std::time::Duration::from_millis(500), io.write(&piece)).await else {
            break true;
        };
        sent += written.unwrap();
        if sent > 256 << 20 {
            break false;
        }
    };
    assert!(stalled, "the edge took {sent} bytes that nobody read");
    drop(io);
    let mut got = 0;
    while near.fill().await {
        got += near.take_all();
    }
    assert_eq!(got, sent, "what was taken is delivered");
}

/// Issue 2, 5: one side may end its direction and still receive (half-close), over HTTP/1.1.
#[tokio::test]
async fn half_close_passes() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let (mut near, mut far) = tunnel(&edge, &upstream).await;
    far.send(frame(1, b"last words")).await;
    far.wire.shutdown().await;
    assert_eq!(near.exact(12).await, frame(1, b"last words"));
    near.send(masked_frame(1, b"reply")).await;
    assert_eq!(far.wire.exact(11).await, masked_frame(1, b"reply"));
    near.shutdown().await;
    assert!(far.wire.rest().await.is_empty());
    let (connection, mut near, mut far) = tunnel_h2(&edge, &upstream).await;
    near.send(masked_frame(8, &[3, 232])).await;
    near.shutdown().await;
    assert_eq!(far.wire.rest().await, masked_frame(8, &[3, 232]), "END_STREAM becomes FIN");
    far.send(frame(8, &[3, 232])).await;
    drop(far);
    assert_eq!(near.rest().await, frame(8, &[3, 232]));
    drop(connection);
}

/// F-17, O-05: close codes and reasons pass untouched, and the record tells who closed and how.
#[tokio::test]
async fn close_codes_pass_and_are_recorded() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let close = [&1012_u16.to_be_bytes()[..], b"service restart"].concat();
    let (mut near, mut far) = tunnel(&edge, &upstream).await;
    far.send(frame(8, &close)).await;
    assert_eq!(near.exact(2 + close.len()).await, frame(8, &close));
    drop(far);
    near.rest().await;
    drop(near);
    let record = edge.record("tunnel").await;
    assert_eq!(
        (record["ended_by"].as_str(), record["how"].as_str()),
        (Some("upstream"), Some("close 1012 \"service restart\""))
    );
    assert_eq!((&record["site"], &record["over"]), (&"a.test".into(), &"h1".into()));
    let (mut near, mut far) = tunnel(&edge, &upstream).await;
    near.send(masked_frame(8, &4001_u16.to_be_bytes())).await;
    assert_eq!(far.wire.exact(8).await, masked_frame(8, &4001_u16.to_be_bytes()));
    drop(near);
    far.wire.rest().await;
    drop(far);
    let record = edge
        .record_where("a tunnel closed by the client", |r| r["kind"] == "tunnel" && r["ended_by"] == "client")
        .await;
    assert!(record["how"].as_str().unwrap().starts_with("close 4001"), "{record}");
}

/// M-10: the record of a tunnel counts what passed, and tells an end without a close frame apart.
#[tokio::test]
async fn a_tunnel_that_ends_without_a_close_is_recorded_as_such() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let (mut near, mut far) = tunnel(&edge, &upstream).await;
    near.send(masked_frame(1, b"12345")).await;
    far.wire.exact(11).await;
    far.send(frame(1, b"abc")).await;
    near.exact(5).await;
    drop(far);
    near.rest().await;
    drop(near);
    let record = edge.record("tunnel").await;
    assert_eq!((record["ended_by"].as_str(), record["how"].as_str()), (Some("upstream"), Some("fin")));
    assert_eq!((&record["bytes"]["in"], &record["bytes"]["out"]), (&11.into(), &5.into()));
    assert_eq!((&record["frames"]["in"], &record["frames"]["out"]), (&1.into(), &1.into()));
    assert!(record["secs"].is_number() && record["opened"].is_string() && record["idle_ms"].is_number(), "{record}");
    assert_eq!(record["gen"], 1);
}

/// G-16: a refused upgrade passes the upstream's answer, with its headers and its body, over HTTP/1.1 and HTTP/2.
#[tokio::test]
async fn a_refused_upgrade_passes_the_answer() {
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "429 Too Many Requests",
        "503 Service Unavailable",
    ] {
        let upstream = Upstream::answering(move |_| {
            Answer::status(
                status,
                "Content-Type: application/json\r\nRetry-After: 7\r\nWWW-Authenticate: Bearer\r\n",
                "{\"error\":1}",
            )
        })
        .await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let code: u16 = status[..3].parse().unwrap();
        let (reply, mut wire) = edge.upgrade("a.test", "/", "").await;
        assert_eq!((reply.status, reply.text().as_str()), (code, "{\"error\":1}"));
        assert_eq!(reply.headers.get("retry-after"), Some("7"));
        let told = reply.headers.get("proxy-status").unwrap_or_default().to_owned();
        assert!(told.contains(&format!("received-status={code}")), "{told}");
        wire.send("GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, code, "the connection goes on as HTTP");
        let mut h2 = edge.h2("a.test").await;
        let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
        let reply = crate::harness::read_h2(within("a response", response).await.unwrap()).await;
        assert_eq!(
            (reply.status, reply.body.as_slice(), reply.header("retry-after")),
            (code, &b"{\"error\":1}"[..], Some("7"))
        );
    }
}

/// N-02, CVE-2024-23326: a 200 to an upgrade is never a tunnel, and no client may take it for one.
#[tokio::test]
async fn a_200_is_no_tunnel() {
    let upstream = Upstream::saying("hello").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let (reply, mut wire) = edge.upgrade("a.test", "/", "").await;
    assert!(reply.status == 502 && reply.is_by_edge(), "{}", reply.status);
    assert!(!reply.headers.has("upgrade"));
    wire.send("GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    assert_eq!(upstream.request(1).await.target, "/next");
    let mut h2 = edge.h2("a.test").await;
    let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
    let response = within("a response", response).await.unwrap();
    assert!(!response.status().is_success(), "RFC 8441 5: a 2xx would begin a tunnel; got {}", response.status());
}

/// Issue 2, 5: a tunnel begins only after a 101 that proves that the upstream speaks WebSocket.
#[tokio::test]
async fn an_unproven_101_is_502() {
    let wrong: [fn(&Seen) -> String; 5] = [
        |_| {
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n".into()
        },
        |_| "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".into(),
        |seen| accepted(seen, "").replace("Upgrade: websocket\r\n", ""),
        |seen| accepted(seen, "").replace("Upgrade: websocket\r\n", "Upgrade: h2c\r\n"),
        |seen| accepted(seen, "").replace("Connection: Upgrade\r\n", ""),
    ];
    for answer in wrong {
        let upstream = Upstream::answering(move |seen| Answer::Close(answer(seen).into_bytes())).await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let (reply, _) = edge.upgrade("a.test", "/", "").await;
        assert_eq!(reply.status, 502);
        assert!(reply.is_by_edge());
        let mut h2 = edge.h2("a.test").await;
        let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
        assert_eq!(within("a response", response).await.unwrap().status(), 502);
    }
}

/// GATEWAY.md 6: every `Upgrade` but websocket is dropped, and the request served as an ordinary one.
#[tokio::test]
async fn other_upgrades_are_served_as_ordinary_requests() {
    let upstream = Upstream::saying("plain").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for (index, lines) in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\nUpgrade: foo, bar\r\n",
        "Upgrade: websocket\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let reply = edge.get_with("a.test", "/", lines).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "plain"), "{lines:?}");
        let seen = upstream.request(index).await;
        assert!(!seen.headers.has("upgrade") && !seen.headers.has("http2-settings"), "{:?}", seen.headers);
    }
}

/// SECURITY.md 2, "upgrade before 101": HTTP/1.0, a body, or a wrong method never open a tunnel.
#[tokio::test]
async fn upgrades_that_could_smuggle_are_refused() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let good = upgrade_request("a.test", "/", "");
    for request in [
        good.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"),
        good.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        good.replace("HTTP/1.1", "HTTP/1.0"),
        good.replace("GET ", "POST "),
        good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        good.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"),
        good.replace("Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Key"),
    ] {
        let mut wire = edge.h1("a.test").await;
        wire.send(&request).await;
        let reply: Reply = wire.reply().await;
        assert_ne!(reply.status, 101, "{request:?}");
    }
    for seen in upstream.seen() {
        assert!(!seen.headers.has("upgrade"), "{:?}", seen.headers);
    }
}

/// RFC 6455 4.4: another version than 13 is refused with the one that is spoken, and the code of the refusal.
#[tokio::test]
async fn another_websocket_version_is_told_ours() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let good = upgrade_request("a.test", "/", "");
    for request in [good.replace("Version: 13", "Version: 8"), good.replace("Sec-WebSocket-Version: 13\r\n", "")] {
        let reply = edge.exchange("a.test", &request).await;
        assert_eq!((reply.status, reply.headers.get("sec-websocket-version")), (400, Some("13")), "{request:?}");
        assert!(reply.text().contains("E400-websocket-version"), "{}", reply.text());
    }
    assert!(upstream.seen().is_empty());
}

/// CONFIG.md 3: silence on a tunnel ends it after `idle`, and the record says so; traffic keeps it.
#[tokio::test]
async fn an_idle_tunnel_ends_after_its_limit() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "timeouts = { idle = \"300ms\" }")).await;
    let (mut near, mut far) = tunnel(&edge, &upstream).await;
    let quiet = tokio::join!(near.rest(), far.wire.rest());
    assert!(quiet.0.len() <= 64 && quiet.1.len() <= 64, "at most a close frame");
    let record = edge.record("tunnel").await;
    assert_eq!(record["ended_by"], "edge", "{record}");
    assert!(record["how"].as_str().unwrap().contains("idle"), "{record}");
    assert!(record["idle_ms"].as_u64().unwrap() >= 300, "{record}");
}

/// N-11: response limits do not bound a tunnel: one that lives longer than `response_head` goes on.
#[tokio::test]
async fn a_tunnel_outlives_the_limits_of_responses() {
    let upstream = WebSocketUpstream::start().await;
    let lines = "timeouts = { response_head = \"300ms\", request_body = \"300ms\", send = \"300ms\" }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    let mut socket = edge.websocket("a.test", "/").await;
    // Another socket opened and closed by its idle limit would be a sleep: measure by the edge's own clock instead.
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_millis(700) {
        assert_eq!(socket.echo("still here").await, "still here");
    }
}

/// M-08: a token in the URL is in no output, but the upstream gets it.
#[tokio::test]
async fn a_token_in_the_url_reaches_only_the_upstream() {
    let upstream = WebSocketUpstream::start().await;
    let mut edge = Edge::start(&site("a.test", &upstream)).await;
    let socket = edge.websocket("a.test", "/?token=s3cr3tvalue&x=1").await;
    socket.close(1000, "").await;
    let record = edge.record("tunnel").await;
    assert!(record.to_string().contains("token=~"), "{record}");
    // M-08: it works, and the operator is warned.
    edge.websocket("a.test", "/?x=1").await.close(1000, "").await;
    for (path, is_warned) in [("token=~", true), ("/?x=1", false)] {
        let is_mine = |record: &serde_json::Value| {
            record["kind"] == "request"
                && record["path"].as_str().is_some_and(|shown| shown.contains(path))
                && record["path"].as_str().is_some_and(|shown| shown.contains("token") == is_warned)
        };
        let record = edge.record_where(path, is_mine).await;
        assert_eq!(record["note"].as_str().is_some_and(|note| note.contains("URL")), is_warned, "{record}");
    }
    edge.stop().await;
    assert_eq!(upstream.seen()[0].target, "/?token=s3cr3tvalue&x=1");
    assert!(!edge.stdout().contains("s3cr3tvalue") && !edge.stderr().contains("s3cr3tvalue"));
}

/// F-06, F-08: an upgrade on any path is accepted without a redirect.
#[tokio::test]
async fn upgrades_are_accepted_under_a_stripping_mount() {
    let upstream = WebSocketUpstream::start().await;
    let config = format!(
        "[sites.\"a.test\"]\nupstream = \"{upstream}\"\n[[sites.\"a.test\".routes]]\npath = \"/mount\"\nstrip = true\n"
    );
    let edge = Edge::start(&config).await;
    for (index, (asked, seen)) in [("/mount", "/"), ("/mount/ws?x=1", "/ws?x=1"), ("/", "/")].into_iter().enumerate() {
        edge.websocket("a.test", asked).await;
        assert_eq!(upstream.seen()[index].target, seen);
    }
}

/// SECURITY.md 2: a client that vanishes ends the upstream side too, and the other way round.
#[tokio::test]
async fn both_sides_end_together() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let (near, mut far) = tunnel(&edge, &upstream).await;
    drop(near);
    assert!(far.wire.rest().await.is_empty());
    drop(far);
    edge.record_where("the tunnel's record", |r| r["kind"] == "tunnel" && r["ended_by"] == "client").await;
    let (_connection, near, mut far) = tunnel_h2(&edge, &upstream).await;
    drop(near);
    assert!(far.wire.rest().await.is_empty(), "RST_STREAM ends the upstream side");
}

/// A write to a closed upstream is an error of the tunnel, never of the process.
#[tokio::test]
async fn the_edge_lives_on_after_a_reset() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for _ in 0..5 {
        let (mut near, far) = tunnel(&edge, &upstream).await;
        drop(far);
        let written: io::Result<()> = near.try_send(masked_frame(1, &noise(100_000))).await;
        drop(written);
    }
    let (mut near, mut far) = tunnel(&edge, &upstream).await;
    near.send(masked_frame(1, b"ok")).await;
    assert_eq!(far.wire.exact(8).await, masked_frame(1, b"ok"));
}
