//! What HTTP/1.1 requests and responses look like on the other side: methods, targets, headers, bodies.

use crate::harness::{Answer, Edge, Reply, Scripted, Upstream, noise, site, site_with, within};

/// F-11: no method but CONNECT and TRACE is special to the edge.
#[tokio::test]
async fn every_method_passes() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    let methods =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "M-SEARCH", "PURGE"];
    for (index, method) in methods.into_iter().enumerate() {
        wire.send(format!("{method} /m HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(wire.reply_to(method).await.status, 200, "{method}");
        assert_eq!(upstream.request(index).await.method, method);
    }
}

/// SECURITY.md 1: CONNECT opens tunnels and TRACE shows headers: neither is forwarded.
#[tokio::test]
async fn connect_and_trace_are_refused_with_405() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for request in [
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ] {
        let reply = edge.exchange("a.test", request).await;
        // A CONNECT for a host that is no site may as well be misdirected.
        assert!(matches!(reply.status, 405 | 421 | 400), "{request:?} -> {}", reply.status);
        assert!(reply.is_by_edge(), "{:?}", reply.headers);
    }
    let trace = edge.exchange("a.test", "TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(trace.status, 405);
    // RFC 9110 15.5.6: a 405 says what is allowed.
    assert!(
        trace.headers.get("allow").is_some_and(|list| list.contains("GET") && !list.contains("TRACE")),
        "{trace:?}"
    );
    assert!(upstream.seen().is_empty());
}

/// F-12, GATEWAY.md 7: session keys are in the path, percent-encoded.
#[tokio::test]
async fn path_and_query_arrive_byte_for_byte() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    for (index, target) in [
        "/sessions/agent%3Amain%3Ax/history?limit=5",
        "/?",
        "/a?a=1&a=2&&b=%20+%2B&c",
        "/a%2fb/%2E%2e/c",
        "//double//slash/",
        "/a/./b/../c",
        "/?q=/../../x?y#".trim_end_matches('#'),
        "/a;b=c,d:e@f!$&'()*+=~",
    ]
    .into_iter()
    .enumerate()
    {
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        assert_eq!(wire.reply().await.status, 200, "{target}");
        assert_eq!(upstream.request(index).await.target, target);
    }
}

/// F-13, GATEWAY.md 4: the gateway compares Origin with Host, port included.
#[tokio::test]
async fn host_arrives_with_its_port() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let host = format!("a.test:{}", edge.https_addr().port());
    edge.exchange("a.test", format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let seen = upstream.only().await;
    assert_eq!(seen.header("host"), Some(&*host));
    assert_eq!(seen.header("x-forwarded-host"), Some(&*host));
    assert_eq!(seen.header("x-forwarded-port"), Some(&*edge.https_addr().port().to_string()));
}

/// CONFIG.md 3: `host` chooses what the upstream sees; the client's own stays in X-Forwarded-Host.
#[tokio::test]
async fn the_upstream_host_can_be_chosen() {
    for (setting, expected) in [("\"upstream\"", None), ("\"inner.example.com\"", Some("inner.example.com"))] {
        let upstream = Upstream::echo().await;
        let edge = Edge::start(&site_with("a.test", &upstream, &format!("host = {setting}"))).await;
        edge.get("a.test", "/").await;
        let seen = upstream.only().await;
        let own = upstream.to_string();
        assert_eq!(seen.header("host"), Some(expected.unwrap_or(&own)));
        assert_eq!(seen.header("x-forwarded-host"), Some("a.test"));
    }
}

/// F-14: cookies with commas in dates cannot be joined (RFC 6265 3).
#[tokio::test]
async fn set_cookie_lines_stay_apart() {
    let upstream = Upstream::answering(|_| {
        Answer::ok("Set-Cookie: a=1; Expires=Wed, 01 Jan 2031 00:00:00 GMT\r\nSet-Cookie: b=2; Path=/\r\n", "x")
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let expected = ["a=1; Expires=Wed, 01 Jan 2031 00:00:00 GMT", "b=2; Path=/"];
    assert_eq!(edge.get("a.test", "/").await.headers.all("set-cookie"), expected);
    let reply = edge.h2("a.test").await.get("a.test", "/").await;
    let cookies: Vec<_> = reply.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(cookies, expected);
}

/// F-14, F-18, G-13: what describes the content, and the gateway's own policy headers, pass once and unchanged.
#[tokio::test]
async fn response_headers_pass_unchanged() {
    const LINES: &str = "Content-Type: application/javascript\r\nContent-Encoding: gzip\r\nX-Frame-Options: DENY\r\n\
        Content-Security-Policy: default-src 'self'; frame-ancestors 'none'\r\nVary: Accept-Encoding\r\n\
        X-Content-Type-Options: nosniff\r\nETag: \"x\"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n\
        Cache-Control: no-cache\r\nServer: gateway\r\nDate: Wed, 01 Jan 2025 00:00:00 GMT\r\n";
    let upstream = Upstream::answering(|_| Answer::ok(LINES, b"\x1f\x8bnot really")).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge.get("a.test", "/assets/index.js").await;
    for line in LINES.lines() {
        let (name, value) = line.trim().split_once(": ").unwrap();
        assert_eq!(reply.headers.all(&name.to_ascii_lowercase()), [value], "{name}");
    }
    assert_eq!(reply.headers.get("content-length"), Some("12"));
    assert_eq!(reply.body, b"\x1f\x8bnot really");
    assert!(!reply.headers.has("proxy-status"), "a good answer needs no explanation");
}

/// N-40: `curl -I` works, and the response to HEAD has the length of the content but none of it.
#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let upstream = Upstream::answering(|seen| match seen.method.as_str() {
        "HEAD" => {
            Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nContent-Type: text/html\r\n\r\n".to_vec())
        }
        _ => Answer::ok("", "next"),
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("HEAD /health HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let reply = wire.reply_to("HEAD").await;
    assert_eq!((reply.status, reply.headers.get("content-length")), (200, Some("12345")));
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.text(), "next", "nothing of a body lies between the responses");
    let request = http::Request::head("https://a.test/health").body(()).unwrap();
    let reply = edge.h2("a.test").await.exchange(request, None).await.unwrap();
    assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, Some("12345"), 0));
}

/// F-14, RFC 9110 7.6.1: connection headers end here, in both directions, with the names in `Connection`.
#[tokio::test]
async fn hop_by_hop_headers_end_at_the_edge() {
    let upstream = Upstream::answering(|_| {
        Answer::ok(
            "Connection: X-Private, keep-alive\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\
             Upgrade: h2c\r\nX-Public: 2\r\n",
            "ok",
        )
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge
        .get_with(
            "a.test",
            "/",
            "Connection: X-Hop, keep-alive\r\nConnection: x-other\r\nX-Hop: 1\r\nX-Other: 2\r\nKeep-Alive: 300\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: gzip, deflate\r\nX-End: 3\r\n\
             Proxy-Authenticate: x\r\n",
        )
        .await;
    let seen = upstream.only().await;
    for gone in ["x-hop", "x-other", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate"] {
        assert!(!seen.headers.has(gone), "{gone} reached the upstream");
    }
    assert!(seen.header("te").is_none_or(|te| te == "trailers"), "{:?}", seen.header("te"));
    assert_eq!(seen.header("x-end"), Some("3"));
    for gone in ["x-private", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(!reply.headers.has(gone), "{gone} reached the client");
    }
    assert_eq!(reply.headers.get("x-public"), Some("2"));
}

/// SECURITY.md 2 (CVE-2024-45410, CVE-2022-31813): a client cannot have our own headers taken off.
#[tokio::test]
async fn connection_cannot_name_what_the_edge_writes() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let names = [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Real-IP",
        "X-Request-Id",
        "Host",
        "Content-Length",
        "Cookie",
        "Authorization",
    ];
    let lines: String = names.iter().map(|name| format!("Connection: {name}\r\n")).collect();
    let request = format!("POST / HTTP/1.1\r\nHost: a.test\r\n{lines}Content-Length: 2\r\n\r\nhi");
    let reply = edge.exchange("a.test", request).await;
    assert_eq!(reply.status, 200);
    let seen = upstream.only().await;
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("host"), Some("a.test"));
    assert!(
        seen.headers.has("x-forwarded-host")
            && seen.headers.has("x-forwarded-port")
            && seen.headers.has("x-request-id")
    );
    assert_eq!(seen.body, b"hi");
}

/// RFC 9110 6.5.1: a trailer that decides framing, routing or trust is an attack: refused, never merged or passed.
#[tokio::test]
async fn dangerous_trailers_never_pass() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for line in [
        "Content-Length: 9",
        "Host: evil.test",
        "X-Forwarded-For: 203.0.113.9",
        "Authorization: Bearer x",
        "Transfer-Encoding: gzip",
    ] {
        let (name, _) = line.split_once(':').unwrap();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nTrailer: {name}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{line}\r\n\r\n"
        );
        let reply = edge.exchange("a.test", request).await;
        assert!(matches!(reply.status, 200 | 400), "{line}: {}", reply.status);
    }
    for seen in upstream.seen() {
        assert!(seen.trailers.0.is_empty(), "{:?}", seen.trailers);
        assert_eq!((seen.header("host"), seen.headers.has("authorization")), (Some("a.test"), false));
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    }
}

/// Issue 2, 4: announced trailers pass both ways; those of a response that are dangerous are taken out.
#[tokio::test]
async fn trailers_pass_both_ways() {
    let upstream = Upstream::answering(|_| {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Content-Length, Transfer-Encoding\r\n\r\n2\r\nok\r\n0\r\n\
            X-Sum: 42\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\nSet-Cookie: a=1\r\n\r\n";
        Answer::Bytes(text.into())
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let request = "POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nTrailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n\
        2\r\nhi\r\n0\r\nX-Check: 7\r\n\r\n";
    let reply = edge.exchange("a.test", request).await;
    let seen = upstream.only().await;
    assert_eq!(seen.body, b"hi");
    assert_eq!(seen.trailers.get("x-check"), Some("7"));
    assert!(!seen.headers.has("x-check"), "a trailer is never merged into the headers");
    assert_eq!(reply.body, b"ok");
    assert_eq!(reply.trailers.get("x-sum"), Some("42"));
    assert!(!reply.trailers.has("content-length") && !reply.trailers.has("transfer-encoding"));
}

/// Issue 2, 4: `100 Continue` is sent when the upstream will read, and the upstream is never asked for it.
#[tokio::test]
async fn expect_100_is_answered_by_the_edge_when_the_body_is_wanted() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let (mut far, mut seen) = upstream.head().await;
    assert!(!seen.headers.has("expect"));
    let interim = wire.head().await.expect("an interim response");
    assert_eq!(interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    wire.send("body").await;
    far.body(&mut seen).await;
    assert_eq!(seen.body, b"body");
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
}

/// N-26: what is refused by its head is refused before the client sends its body.
#[tokio::test]
async fn a_refused_request_is_never_told_to_continue() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { body = \"1KiB\" }")).await;
    let request = "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n";
    assert_eq!(edge.exchange("a.test", request).await.status, 413, "the first response is the final one");
    assert!(upstream.seen().is_empty());
}

/// RFC 9110 10.1.1: an expectation that nobody knows is refused.
#[tokio::test]
async fn an_unknown_expectation_is_417() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge.get_with("a.test", "/", "Expect: foo\r\n").await;
    assert_eq!(reply.status, 417);
    assert!(reply.is_by_edge() && upstream.seen().is_empty());
}

/// F-16: the first piece of an upload is upstream before the client has the second.
#[tokio::test]
async fn a_request_body_streams() {
    for (head, one, two, end) in [
        ("Content-Length: 10", "first", "later", ""),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n", "5\r\nlater\r\n", "0\r\n\r\n"),
    ] {
        let upstream = Scripted::bind().await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let mut wire = edge.h1("a.test").await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{head}\r\n\r\n{one}")).await;
        let (mut far, mut seen) = upstream.head().await;
        if head.starts_with("Content") {
            assert_eq!(far.wire.exact(5).await, b"first");
        } else {
            assert_eq!(far.wire.chunk().await.unwrap(), b"first");
        }
        wire.send(format!("{two}{end}")).await;
        if head.starts_with("Content") {
            assert_eq!(far.wire.exact(5).await, b"later");
        } else {
            far.body(&mut seen).await;
            assert_eq!(seen.body, b"later");
        }
        far.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, 204);
    }
}

/// F-16: the first piece of a download is at the client before the upstream has the second.
#[tokio::test]
async fn a_response_body_streams() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await;
    assert_eq!(wire.reply_head().await.unwrap().status, 200);
    assert_eq!(wire.exact(5).await, b"first");
    far.send("later").await;
    assert_eq!(wire.exact(5).await, b"later");
}

/// Bodies of many megabytes arrive whole in both directions (F-16, N-14).
#[tokio::test]
async fn large_bodies_arrive_whole() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let body = noise(8 << 20);
    let wire = edge.h1("a.test").await;
    let (io, _) = wire.into_parts();
    let (reader, mut writer) = tokio::io::split(io);
    let (head, sent) =
        (format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len()), body.clone());
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        writer.write_all(head.as_bytes()).await.unwrap();
        writer.write_all(&sent).await.unwrap();
        writer.flush().await.unwrap();
        writer
    });
    let reply = read_from(reader).await;
    within("the upload ends", sending).await.unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.is_complete && reply.body == body, "{} of {} bytes", reply.body.len(), body.len());
}

/// Reads one response from the reading half of a connection.
async fn read_from(reader: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> Reply {
    crate::harness::Wire::new(tokio::io::join(reader, tokio::io::sink())).reply().await
}

/// N-49: an event stream delivers its first event at once, over HTTP/1.1.
#[tokio::test]
async fn the_first_event_of_a_stream_arrives_at_once() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /events HTTP/1.1\r\nHost: a.test\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip\r\n\r\n")
        .await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let head = wire.reply_head().await.expect("the head comes before the first event");
    assert_eq!(head.headers.get("x-accel-buffering"), Some("no"));
    assert!(!head.headers.has("content-encoding"));
    for number in 0..3 {
        let event = format!("data: {number}\n\n");
        far.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        assert_eq!(wire.chunk().await.unwrap(), event.as_bytes(), "one event, one chunk");
    }
}

/// GATEWAY.md 7: a model run is aborted when the client goes; the edge passes that on.
#[tokio::test]
async fn a_client_that_leaves_is_noticed_upstream() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    // Before the response head.
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    drop(wire);
    assert!(!far.wire.fill().await, "the upstream connection closes");
    // In the middle of a stream.
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /stream HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await;
    wire.reply_head().await.unwrap();
    drop(wire);
    assert!(!far.wire.fill().await, "the upstream connection closes");
    let record = edge.record_where("an aborted request", |record| record["aborted"] == "client").await;
    assert_eq!(record["site"], "a.test");
}

/// SECURITY.md 2: a response cut short is passed on as cut short, never completed.
#[tokio::test]
async fn truncation_stays_truncation() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\npart",
    ] {
        let upstream = Upstream::answering(move |_| Answer::Close(response.into())).await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let reply = edge.get("a.test", "/").await;
        assert_eq!((reply.status, reply.is_complete), (200, false), "{response:?}");
        let reply = edge.h2("a.test").await.get("a.test", "/").await;
        assert!(reply.error.is_some(), "over HTTP/2 the stream is reset: {response:?}");
        let aborted = |record: &serde_json::Value| record["http"] == "1.1" && record["aborted"] == "upstream";
        edge.record_where("a response that the upstream cut", aborted).await;
    }
}

/// RFC 9112 9.3: one connection serves many requests, and pipelined ones are answered in order.
#[tokio::test]
async fn requests_on_one_connection_are_answered_in_order() {
    let upstream = Upstream::answering(|seen| Answer::ok("", &seen.target)).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a.test\r\n\r\n")).collect();
    wire.send(requests).await;
    for n in 0..5 {
        assert_eq!(wire.reply().await.text(), format!("/{n}"));
    }
    assert_eq!(upstream.connections(), 1, "the upstream connection is used again");
}

/// RFC 9112 9.3: a client of HTTP/1.0 gets a response that it can read, and the connection ends.
#[tokio::test]
async fn a_client_of_http_1_0_is_served_and_closed() {
    let upstream = Upstream::answering(|_| {
        Answer::Bytes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec())
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    let all = String::from_utf8(wire.rest().await).unwrap();
    assert!(all.starts_with("HTTP/1.0 200") || all.starts_with("HTTP/1.1 200"), "{all}");
    assert!(!all.to_ascii_lowercase().contains("transfer-encoding"), "{all}");
    assert!(all.ends_with("\r\n\r\nok"), "{all}");
    assert_eq!(upstream.only().await.header("host"), Some("a.test"));
}

/// F-15: redirects are the client's to follow.
#[tokio::test]
async fn redirects_pass_unfollowed() {
    let upstream = Upstream::answering(|_| Answer::status("302 Found", "Location: /login?next=%2F\r\n", "")).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge.get("a.test", "/").await;
    assert_eq!((reply.status, reply.headers.get("location")), (302, Some("/login?next=%2F")));
    upstream.only().await;
}

/// An upstream may answer before it has read the body; the client still gets the answer (GATEWAY.md 7: 413 as JSON).
#[tokio::test]
async fn an_early_response_reaches_the_client() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\nstart").await;
    let (mut far, _) = upstream.head().await;
    far.send("HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (413, "{}"));
    assert!(reply.headers.get("proxy-status").is_some_and(|status| status.contains("received-status=413")));
}

/// RFC 9110 15.2: interim responses of the upstream are not the answer.
#[tokio::test]
async fn interim_responses_of_the_upstream_are_not_the_answer() {
    let upstream = Upstream::answering(|_| {
        let text = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        Answer::Bytes(text.into())
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge.get("a.test", "/").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
}

/// SECURITY.md 2, response side: what cannot be framed with certainty is 502, and nothing of it passes.
#[tokio::test]
async fn a_malformed_response_is_502() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let upstream = Upstream::answering(move |_| Answer::Close(response.into())).await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let reply = edge.get("a.test", "/").await;
        assert_eq!(reply.status, 502, "{response:?}");
        assert!(reply.is_by_edge(), "{response:?}");
    }
}

/// SECURITY.md 2: bytes that an upstream sends unasked are never the answer to the next request.
#[tokio::test]
async fn unsolicited_bytes_are_never_a_response() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
    assert_eq!(wire.reply().await.text(), "ok");
    wire.send("GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut second, seen) = upstream.request().await;
    assert_eq!(seen.target, "/2", "on a new connection");
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
    assert_eq!(wire.reply().await.text(), "good");
}

/// GATEWAY.md 7: an idle connection is given up before the gateway's own 5 s: after `keep_alive` a new one is used.
#[tokio::test]
async fn an_idle_upstream_connection_is_closed_in_time() {
    let upstream = Scripted::bind().await;
    let config = format!("[upstreams.u]\nservers = [\"{upstream}\"]\nkeep_alive = \"200ms\"\n{}", site("a.test", "u"));
    let edge = Edge::start(&config).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    wire.reply().await;
    assert!(!far.wire.fill().await, "the edge closes it, unused");
}

/// SECURITY.md 4, 7: a reused connection that dies before the first byte is replaced once, for a GET.
#[tokio::test]
async fn an_idempotent_request_on_a_stale_connection_is_sent_again_once() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    wire.reply().await;
    wire.send("GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(far.request().await.unwrap().target, "/2");
    drop(far);
    let (second, seen) = upstream.request().await;
    assert_eq!(seen.target, "/2");
    drop(second);
    let reply = wire.reply().await;
    assert_eq!(reply.status, 502, "a fresh connection that fails is no reason for a third attempt");
    assert!(!upstream.has_waiting().await);
}

/// O-06: a POST is never sent twice, and what the client gets says so honestly.
#[tokio::test]
async fn a_post_on_a_stale_connection_is_not_sent_again() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for post in [
        "POST /2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n",
        "POST /2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi",
        "PUT /2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut wire = edge.h1("a.test").await;
        wire.send("GET /1 HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
        let (mut far, _) = upstream.request().await;
        far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        wire.reply().await;
        wire.send(post).await;
        assert_eq!(far.request().await.unwrap().target, "/2");
        drop(far);
        assert_eq!(wire.reply().await.status, 502, "{post:?}");
        assert!(!upstream.has_waiting().await, "{post:?}");
    }
}

/// A response without length, ended by the close, is whole when the upstream closed cleanly (RFC 9112 6.3, 8).
#[tokio::test]
async fn a_response_ended_by_close_arrives() {
    let upstream = Upstream::answering(|_| Answer::Close(b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec())).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge.get("a.test", "/").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "until the end"));
    let reply = edge.h2("a.test").await.get("a.test", "/").await;
    assert_eq!((reply.body.as_slice(), reply.error.is_none()), (&b"until the end"[..], true));
}

/// CONFIG.md 3, N-27: an upstream may be a unix socket.
#[tokio::test]
async fn an_upstream_may_be_a_unix_socket() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("gateway.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = crate::harness::Wire::new(stream);
        let head = wire.head().await.unwrap();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix").await;
        head
    });
    let edge = Edge::start(&site("a.test", format!("unix:{}", path.display()))).await;
    assert_eq!(edge.get("a.test", "/").await.text(), "unix");
    let head = String::from_utf8(within("the head", serving).await.unwrap()).unwrap();
    assert!(head.to_ascii_lowercase().contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
}

/// GATEWAY.md 10, R7: a 15 kB header passes.
#[tokio::test]
async fn a_header_of_15_kb_passes() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let value = "v".repeat(15_000);
    assert_eq!(edge.get_with("a.test", "/", &format!("X-Large: {value}\r\n")).await.status, 200);
    assert_eq!(upstream.only().await.header("x-large"), Some(&*value));
}

/// CONFIG.md 3: header edits, their order and their placeholders.
#[tokio::test]
async fn headers_are_edited_as_configured() {
    let upstream = Upstream::answering(|_| Answer::ok("Server: gateway\r\nX-Powered-By: x\r\n", "ok")).await;
    let config = format!(
        "{}[sites.\"a.test\".headers]\nrequest = {{ set = {{ X-Client = \"{{client}} via {{host}}\", X-Tls = \"{{tls.version}}\" }}, remove = [\"X-Drop\"] }}\n\
         response = {{ set = {{ X-Request = \"{{request_id}}\" }}, add = {{ X-Powered-By = \"edge\" }}, remove = [\"Server\"] }}\n",
        site("a.test", &upstream)
    );
    let edge = Edge::start(&config).await;
    let reply = edge.get_with("a.test", "/", "X-Client: forged\r\nX-Drop: 1\r\n").await;
    let seen = upstream.only().await;
    assert_eq!(seen.header("x-client"), Some("127.0.0.1 via a.test"));
    assert_eq!(seen.header("x-tls"), Some("1.3"));
    assert!(!seen.headers.has("x-drop"));
    assert_eq!(reply.headers.get("x-request"), seen.header("x-request-id"));
    assert_eq!(reply.headers.all("x-powered-by"), ["x", "edge"]);
    assert!(!reply.headers.has("server"));
}
