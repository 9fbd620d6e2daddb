//! Sizes and deadlines: each is absolute, answered with its own status, and recorded (CONFIG.md 3).

use std::time::{Duration, Instant};

use crate::harness::{Edge, Scripted, Upstream, WebSocketUpstream, noise, site, site_with, upgrade_request, within};

/// N-14: a body over the limit is 413 by its announced length, before anything of it is read or forwarded.
#[tokio::test]
async fn an_announced_body_over_the_limit_is_413_at_once() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { body = \"1KiB\" }")).await;
    let reply = edge.exchange("a.test", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1025\r\n\r\n").await;
    assert!(reply.status == 413 && reply.is_by_edge());
    assert!(upstream.seen().is_empty());
    let body = "x".repeat(1024);
    let fits = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1024\r\n\r\n{body}");
    assert_eq!(edge.exchange("a.test", fits).await.status, 200);
    let record = edge.record_where("the refusal", |record| record["status"] == 413).await;
    assert_eq!(record["by"], "edge");
    assert!(record["code"].as_str().unwrap().starts_with("E413"), "{record}");
}

/// N-14: chunked bodies are counted; the upstream never gets a complete request out of one that is too long.
#[tokio::test]
async fn a_chunked_body_over_the_limit_is_413() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { body = \"1KiB\" }")).await;
    let chunk = format!("200\r\n{}\r\n", "x".repeat(512));
    let payload =
        format!("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3));
    let reply = edge.exchange("a.test", payload).await;
    assert_eq!(reply.status, 413);
    assert!(upstream.seen().iter().all(|seen| !seen.is_complete));
    let payload =
        format!("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(2));
    assert_eq!(edge.exchange("a.test", payload).await.status, 200);
}

/// CONFIG.md 3: too many header fields, or too many bytes of them, are 431.
#[tokio::test]
async fn a_head_over_the_limit_is_431() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let many: String = (0..120).map(|n| format!("X-{n}: 1\r\n")).collect();
    let reply = edge.get_with("a.test", "/", &many).await;
    assert!(reply.status == 431 && reply.is_by_edge(), "{}", reply.status);
    let large = format!("X: {}\r\n", "v".repeat(40_000));
    assert_eq!(edge.get_with("a.test", "/", &large).await.status, 431);
    let target = format!("/{}", "t".repeat(40_000));
    assert!(matches!(edge.get("a.test", &target).await.status, 431 | 414));
    assert!(upstream.seen().is_empty());
    let some: String = (0..90).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(edge.get_with("a.test", "/", &some).await.status, 200);
}

/// CONFIG.md 3: a site may allow less, by count and by bytes, over both protocols.
#[tokio::test]
async fn a_site_may_allow_smaller_heads() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { headers = 5, header_bytes = \"8KiB\" }")).await;
    let many: String = (0..6).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(edge.get_with("a.test", "/", &many).await.status, 431);
    assert_eq!(edge.get_with("a.test", "/", &format!("X: {}\r\n", "v".repeat(9000))).await.status, 431);
    let mut h2 = edge.h2("a.test").await;
    let request = http::Request::get("https://a.test/").header("x", "v".repeat(9000)).body(()).unwrap();
    assert_eq!(h2.exchange(request, None).await.unwrap().status, 431);
    assert_eq!(h2.get("a.test", "/").await.status, 200, "the connection goes on");
}

/// CONFIG.md 3: `request_head_timeout` is absolute from the first byte: a byte now and then does not move it.
#[tokio::test]
async fn a_slow_head_is_408_at_its_deadline() {
    let upstream = Upstream::echo().await;
    let fragment = format!("[listen]\nrequest_head_timeout = \"500ms\"\n{}", site("a.test", &upstream));
    let edge = Edge::start(&fragment).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\nX: ").await;
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let (io, _) = wire.into_parts();
    let (mut reader, mut writer) = tokio::io::split(io);
    let dripping = async {
        use tokio::io::AsyncWriteExt as _;
        loop {
            ticks.tick().await;
            if writer.write_all(b"x").await.is_err() || writer.flush().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut answer);
    tokio::select! {
        _ = within("the edge closes", reading) => {}
        () = dripping => {}
    }
    assert!(started.elapsed() < Duration::from_secs(5), "the deadline moved");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer));
    let record =
        edge.record_where("a slow head", |record| record["status"] == 408 || record["ended"] == "timeout").await;
    assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(upstream.seen().is_empty());
}

/// CONFIG.md 3: an idle connection is closed after `keep_alive_timeout`, without a word.
#[tokio::test]
async fn an_idle_connection_is_closed_quietly() {
    let upstream = Upstream::echo().await;
    let fragment = format!("[listen]\nkeep_alive_timeout = \"300ms\"\n{}", site("a.test", &upstream));
    let edge = Edge::start(&fragment).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    wire.reply().await;
    assert!(wire.rest().await.is_empty(), "no answer to a question that was not asked");
    let h2 = edge.h2("a.test").await;
    h2.closed().await.ok();
}

/// The head's deadline and the keep-alive one are apart: a long pause between requests is no slow head.
#[tokio::test]
async fn a_pause_between_requests_is_no_slow_head() {
    let upstream = Upstream::echo().await;
    let fragment = format!(
        "[listen]\nrequest_head_timeout = \"300ms\"\nkeep_alive_timeout = \"20s\"\n{}",
        site("a.test", &upstream)
    );
    let edge = Edge::start(&fragment).await;
    let mut idle = edge.h1("a.test").await;
    idle.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    idle.reply().await;
    // Another connection's slow head is the clock: when it was cut, twice the limit has passed for the first.
    for _ in 0..2 {
        let mut slow = edge.h1("a.test").await;
        slow.send("GET / HT").await;
        slow.rest().await;
    }
    idle.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(idle.reply().await.status, 200);
}

/// CONFIG.md 3: `request_body` bounds the pause between two pieces, and not the whole.
#[tokio::test]
async fn a_body_without_progress_is_408() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "timeouts = { request_body = \"400ms\" }")).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\npart").await;
    let (mut far, mut seen) = upstream.head().await;
    let reply = wire.reply().await;
    assert!(reply.status == 408 && reply.is_by_edge(), "{}", reply.status);
    far.body(&mut seen).await;
    assert!(!seen.is_complete, "the upstream sees that the request broke off");
}

/// SECURITY.md 5 (slow bodies): a byte now and then does not keep a place for ever, over both protocols, collected or
/// streamed; the refusal says which limit it was.
#[tokio::test]
async fn a_body_that_trickles_is_408() {
    let upstream = Upstream::echo().await;
    for line in ["", "collect_request = true\n"] {
        let lines = format!("{line}timeouts = {{ request_body = \"600ms\" }}");
        let edge = Edge::start(&site_with("a.test", &upstream, &lines)).await;
        let started = Instant::now();
        let mut wire = edge.h1("a.test").await;
        wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\n").await;
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        let mut count = 0;
        while wire.try_send("x").await.is_ok() && count < 50 && wire.buffered().is_empty() {
            tokio::select! {
                _ = ticks.tick() => count += 1,
                _ = wire.fill() => {}
            }
        }
        let reply = wire.reply().await;
        assert!(reply.status == 408 && reply.is_by_edge(), "{}", reply.status);
        assert!(started.elapsed() < Duration::from_secs(5), "the limit moved");
        let record = edge.record_where("a slow body", |record| record["status"] == 408).await;
        assert_eq!(record["code"], "E408-body-rate");
        let mut h2 = edge.h2("a.test").await;
        let request = http::Request::post("https://a.test/").header("content-length", 100).body(()).unwrap();
        let (response, mut body) = h2.open(request, false).await.expect("a stream");
        let trickle = async {
            loop {
                ticks.tick().await;
                if body.send_data("x".into(), false).is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            answer = within("an answer", response) => assert_eq!(answer.expect("an answer").status(), 408),
            () = trickle => {}
        }
    }
}

/// N-13: what streams without a length may have little to say for long; what is slow and honest arrives.
#[tokio::test]
async fn a_slow_stream_without_a_length_is_no_slow_body() {
    let upstream = Upstream::echo().await;
    let lines = "timeouts = { request_body = \"600ms\" }\nlimits = { body_rate = \"100B/s\" }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    let mut chunked = edge.h1("a.test").await;
    chunked.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut announced = edge.h1("a.test").await;
    announced.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 400\r\n\r\n").await;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    for _ in 0..10 {
        ticks.tick().await;
        chunked.send("1\r\nx\r\n").await;
        announced.send([b'y'; 40]).await;
    }
    chunked.send("0\r\n\r\n").await;
    assert_eq!(chunked.reply().await.text(), "x".repeat(10));
    assert_eq!(announced.reply().await.body.len(), 400);
}

/// F-19: nothing listens: 502 with the reason, at once.
#[tokio::test]
async fn nothing_listening_is_502() {
    let closed = Scripted::bind().await.to_string();
    let edge = Edge::start(&site("a.test", &closed)).await;
    let started = Instant::now();
    let reply = edge.get("a.test", "/").await;
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(reply.status, 502);
    assert!(reply.headers.get("proxy-status").unwrap().contains("error=connection_refused"), "{:?}", reply.headers);
    let (reply, _) = edge.upgrade("a.test", "/", "").await;
    assert_eq!(reply.status, 502, "for a WebSocket too");
    let record = edge.record("request").await;
    assert!(record["code"].as_str().unwrap().starts_with("E502") && record["cause"].is_string(), "{record}");
}

/// N-12: `response_head` bounds the wait for the first byte, for upgrades too: 504.
#[tokio::test]
async fn a_silent_upstream_is_504() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "timeouts = { response_head = \"300ms\" }")).await;
    for request in ["GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), upgrade_request("a.test", "/", "")] {
        let mut wire = edge.h1("a.test").await;
        wire.send(request).await;
        let (mut far, _) = upstream.request().await;
        let reply = wire.reply().await;
        assert!(reply.status == 504 && reply.is_by_edge(), "{}", reply.status);
        assert!(!far.wire.fill().await, "the upstream is told");
    }
}

/// F-10, N-12: once a response streams, only silence ends it; slow progress does not.
#[tokio::test]
async fn a_streaming_response_is_bounded_by_silence_only() {
    let upstream = Scripted::bind().await;
    let lines = "timeouts = { response_head = \"300ms\", idle = \"600ms\" }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    wire.reply_head().await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(150));
    for _ in 0..6 {
        ticks.tick().await;
        far.send("1\r\nx\r\n").await;
        assert_eq!(wire.chunk().await.unwrap(), b"x");
    }
    assert_eq!(wire.chunk().await, None, "silence ends it, as a truncation");
}

/// CONFIG.md 3: `send` ends a response that the client does not take.
#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "timeouts = { send = \"500ms\" }")).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
    let piece = noise(1 << 20);
    within("the edge gives up", async { while far.wire.try_send(&piece).await.is_ok() {} }).await;
    drop(wire);
}

/// GATEWAY.md 7 and 12: a collected body goes upstream whole, with its length, in memory or from a file.
#[tokio::test]
async fn a_collected_body_goes_upstream_whole_with_its_length() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "collect_request = true")).await;
    for length in [10, 64 << 10, 1 << 20] {
        let body = noise(length);
        let mut wire = edge.h1("a.test").await;
        wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let (first, last) = body.split_at(length / 2);
        wire.send([format!("{:x}\r\n", first.len()).as_bytes(), first, b"\r\n"].concat()).await;
        assert!(!upstream.has_waiting().await, "the upstream is asked when the body is whole");
        let sending = async {
            wire.send([format!("{:x}\r\n", last.len()).as_bytes(), last, b"\r\n0\r\n\r\n"].concat()).await;
            wire
        };
        let (mut wire, (mut far, seen)) = tokio::join!(sending, upstream.request());
        assert_eq!(seen.header("content-length"), Some(&*length.to_string()));
        assert!(!seen.headers.has("transfer-encoding") && seen.body == body);
        far.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, 200);
    }
    let left: Vec<_> = std::fs::read_dir(edge.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "storage" || name == "tidegate.toml"), "no file is left behind: {left:?}");
}

/// A collected body over the limit, or one that breaks off, is never shown to the upstream at all.
#[tokio::test]
async fn a_collected_body_over_the_limit_never_reaches_the_upstream() {
    let upstream = Upstream::echo().await;
    let edge =
        Edge::start(&site_with("a.test", &upstream, "collect_request = true\nlimits = { body = \"100KiB\" }")).await;
    let mut wire = edge.h1("a.test").await;
    let mut payload = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n".to_vec();
    payload.extend(noise(0x20000));
    wire.try_send(&payload).await.ok();
    assert_eq!(wire.reply().await.status, 413);
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\npart").await;
    drop(wire);
    let broken = |record: &serde_json::Value| record["aborted"] == "client" || record["code"] == "E400-body";
    edge.record_where("the one that broke off", broken).await;
    assert!(upstream.seen().is_empty() && upstream.connections() == 0);
}

/// GATEWAY.md 8, G-17: requests without a body, and upgrades, wait while nothing answers; others are told at once.
#[tokio::test]
async fn held_requests_ride_out_a_restart() {
    let place = Scripted::bind().await;
    let address = place.to_string();
    drop(place);
    let config = format!("[upstreams.u]\nservers = [\"{address}\"]\nhold = \"8s\"\n{}", site("a.test", "u"));
    let edge = Edge::start(&config).await;
    let mut get = edge.h1("a.test").await;
    get.send("GET /held HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut socket = edge.h1("a.test").await;
    socket.send(upgrade_request("a.test", "/", "")).await;
    let post = edge.exchange("a.test", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
    assert!(matches!(post.status, 502 | 503), "a request with a body is not held: {}", post.status);
    let listener = tokio::net::TcpListener::bind(&address).await.expect("the port is still free");
    let upstream = WebSocketUpstream::start_on(listener);
    assert_eq!(get.reply().await.text(), "plain");
    assert_eq!(socket.reply().await.status, 101);
    assert!(upstream.seen().iter().all(|seen| seen.method == "GET"));
}

/// O-08, N-06: what was held for too long is 503 with `Retry-After`, or 502, and says so.
#[tokio::test]
async fn a_request_held_too_long_is_told_to_retry() {
    let closed = Scripted::bind().await.to_string();
    let config = format!("[upstreams.u]\nservers = [\"{closed}\"]\nhold = \"300ms\"\n{}", site("a.test", "u"));
    let edge = Edge::start(&config).await;
    let reply = edge.get("a.test", "/").await;
    assert!(matches!(reply.status, 502 | 503) && reply.is_by_edge(), "{}", reply.status);
    assert!(reply.status == 502 || reply.headers.has("retry-after"), "503 carries Retry-After: {:?}", reply.headers);
}
