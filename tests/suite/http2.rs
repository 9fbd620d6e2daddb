//! HTTP/2 downstream, and what of it may reach an HTTP/1.1 upstream (RFC 9113 8.2, 8.3; SECURITY.md 2).

use http::{HeaderMap, HeaderValue, Request};

use crate::harness::{Answer, Edge, H2, Outcome, Scripted, Upstream, field, noise, site, site_with, within};

/// The pseudo-header fields of a well-formed GET.
const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];

/// A GET with other or further fields: a pseudo-field replaces its namesake, all else is appended.
fn with<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields: Vec<(&str, &str)> = GET.to_vec();
    for (name, value) in changes {
        match fields.iter_mut().find(|(found, _)| found == name && name.starts_with(':')) {
            Some(found) => found.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

/// RFC 9113: an ordinary exchange, with bodies both ways.
#[tokio::test]
async fn a_request_is_translated_to_http_1_1() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2 = edge.h2("a.test").await;
    let request = Request::post("https://a.test/p%2Fq?x=%20").header("x-one", "1").body(()).unwrap();
    let reply = h2.exchange(request, Some(b"hello".to_vec())).await.unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"hello"[..]));
    let seen = upstream.only().await;
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/p%2Fq?x=%20"));
    assert_eq!((seen.header("host"), seen.header("x-one")), (Some("a.test"), Some("1")));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    let record = edge.record("request").await;
    assert_eq!(record["http"], "2");
}

/// SECURITY.md 2, "H2 -> H1 downgrade injection": each of these is refused, and the upstream sees nothing.
#[tokio::test]
async fn malformed_requests_are_refused_before_the_upstream() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("an upper-case name", with(&[("X-Upper", "1")])),
        ("a space in a name", with(&[("x y", "1")])),
        ("a colon in a name", with(&[("x:y", "1")])),
        ("CRLF in a name", with(&[("x\r\ny", "1")])),
        ("a name above ASCII", with(&[("x\u{e9}", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("CRLF in a value", with(&[("x", "a\r\nevil: 1")])),
        ("LF in a value", with(&[("x", "a\nb")])),
        ("CR in a value", with(&[("x", "a\rb")])),
        ("NUL in a value", with(&[("x", "a\0b")])),
        ("a request in a value", with(&[("x", "a\r\n\r\nGET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "x")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        ("a path without a slash", with(&[(":path", "evil")])),
        ("an empty path", with(&[(":path", "")])),
        ("an absolute path", with(&[(":path", "http://evil.test/")])),
        ("a space in the path", with(&[(":path", "/a b")])),
        ("a request line in the path", with(&[(":path", "/ HTTP/1.1\r\nHost: evil.test\r\n\r\n")])),
        ("a tab in the path", with(&[(":path", "/a\tb")])),
        ("a backslash in the path", with(&[(":path", "/a\\b")])),
        ("a backtick in the path", with(&[(":path", "/a`b")])),
        ("a quotation mark in the path", with(&[(":path", "/a\"b")])),
        ("a path above ASCII", with(&[(":path", "/\u{e9}")])),
        ("a query above ASCII", with(&[(":path", "/?\u{e9}")])),
        ("an asterisk for GET", with(&[(":path", "*")])),
        ("a method in lower case", with(&[(":method", "get")])),
        ("a method in mixed case", with(&[(":method", "Post")])),
        ("a space in the method", with(&[(":method", "GET /evil")])),
        ("CRLF in the method", with(&[(":method", "GET\r\n")])),
        ("an empty method", with(&[(":method", "")])),
        ("CRLF in the authority", with(&[(":authority", "a.test\r\nx: y")])),
        ("user information", with(&[(":authority", "u:p@a.test")])),
        ("an unknown pseudo-field", with(&[(":evil", "1")])),
        ("a pseudo-field of responses", with(&[(":status", "200")])),
        ("two paths", [&GET[..], &[(":path", "/2")]].concat()),
        ("two authorities", [&GET[..], &[(":authority", "b.test")]].concat()),
        ("a pseudo-field after a field", vec![GET[0], GET[1], GET[2], ("x", "1"), GET[3]]),
        ("no method", GET[1..].to_vec()),
        ("no path", GET[..3].to_vec()),
        ("no scheme", vec![GET[0], GET[2], GET[3]]),
        ("no authority and no host", vec![GET[0], GET[1], GET[3]]),
        ("authority differs from host", with(&[("host", "b.test")])),
        ("two hosts", with(&[("host", "a.test"), ("host", "a.test")])),
        ("a host that is a list", with(&[(":authority", "a.test, b.test")])),
        ("two content-lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        ("a content-length with a sign", with(&[("content-length", "+0")])),
        ("a content-length without content", with(&[("content-length", "5")])),
    ];
    for (what, fields) in cases {
        let mut raw = edge.raw_h2("a.test").await;
        let outcome = raw.request(1, &fields).await;
        assert!(outcome.is_refused(), "{what}: {outcome:?}");
        assert!(upstream.seen().is_empty(), "{what} reached the upstream");
    }
    let mut raw = edge.raw_h2("a.test").await;
    assert_eq!(raw.request(1, &GET).await, Outcome::Status(200), "the same frames without a fault are served");
}

/// SECURITY.md 2: blanks around a value do not survive, or the request does not.
#[tokio::test]
async fn outer_blanks_of_a_value_never_pass() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for value in [" a", "a ", "\ta", " "] {
        let mut raw = edge.raw_h2("a.test").await;
        let outcome = raw.request(1, &with(&[("x", value)])).await;
        assert!(outcome.is_refused() || outcome == Outcome::Status(200), "{value:?}: {outcome:?}");
    }
    for seen in upstream.seen() {
        assert_eq!(seen.fault, None);
        assert!(!crate::harness::wire_text(&seen.head).contains("x:  "), "{:?}", seen.headers);
    }
}

/// RFC 9113 8.1.1: an empty body that goes on is not complete before its end has come.
#[tokio::test]
async fn an_announced_empty_body_is_waited_for() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    raw.headers(1, &with(&[(":method", "POST"), ("content-length", "0")]), false).await;
    assert_eq!(raw.request(3, &GET).await, Outcome::Status(200));
    assert_eq!(upstream.seen().len(), 1, "only the request that was whole");
    raw.data(1, b"", true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Status(200));
    assert_eq!(upstream.seen().len(), 2);
}

/// RFC 9113 8.1.1: DATA that does not add up to content-length is malformed, and never becomes a whole request.
#[tokio::test]
async fn a_wrong_content_length_never_becomes_a_whole_request() {
    for (length, data) in [("3", "hello"), ("10", "hello"), ("0", "hello")] {
        let upstream = Scripted::bind().await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let mut raw = edge.raw_h2("a.test").await;
        raw.headers(1, &with(&[(":method", "POST"), ("content-length", length)]), false).await;
        raw.data(1, data.as_bytes(), true).await;
        let edge_side = raw.outcome(1);
        let far_side = async {
            let mut far = upstream.accept().await;
            let seen = far.request().await;
            assert!(seen.is_none_or(|seen| !seen.is_complete), "content-length {length} with {data:?} was completed");
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = edge_side => outcome,
            () = far_side => unreachable!("the far side waits for ever"),
        };
        assert!(outcome.is_refused(), "content-length {length} with {data:?}: {outcome:?}");
    }
}

/// RFC 9113 8.2.3: cookie crumbs become one line for HTTP/1.1.
#[tokio::test]
async fn several_cookie_fields_become_one() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    let fields = with(&[("cookie", "a=1"), ("x", "between"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
    assert_eq!(raw.request(1, &fields).await, Outcome::Status(200));
    assert_eq!(upstream.only().await.headers.all("cookie"), ["a=1; b=2; c=3; d=4"]);
}

/// RFC 9113 8.3.1: `host` alone, or `host` that agrees, is the authority.
#[tokio::test]
async fn host_may_stand_for_the_authority_when_they_agree() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    assert_eq!(raw.request(1, &with(&[("host", "a.test")])).await, Outcome::Status(200));
    assert_eq!(upstream.only().await.headers.all("host"), ["a.test"]);
}

/// SECURITY.md 2: headers with `_`, identity headers and forwarding headers do not pass over HTTP/2 either.
#[tokio::test]
async fn forged_headers_do_not_pass_over_http2() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    let fields = with(&[
        ("x-forwarded-for", "203.0.113.9"),
        ("x_forwarded_for", "203.0.113.9"),
        ("x-real-ip", "203.0.113.9"),
        ("forwarded", "for=203.0.113.9"),
        ("tailscale-user-login", "root"),
        ("x-forwarded-user", "root"),
        ("remote_user", "root"),
    ]);
    assert_eq!(raw.request(1, &fields).await, Outcome::Status(200));
    let seen = upstream.only().await;
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-real-ip"), Some("127.0.0.1"));
    for gone in ["forwarded", "tailscale-user-login", "x-forwarded-user", "remote_user", "remote-user"] {
        assert!(!seen.headers.has(gone), "{gone}");
    }
}

/// HOUSE.md A5: CONNECT without a protocol, and with any protocol but websocket, is refused.
#[tokio::test]
async fn connect_is_for_websockets_only() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let plain = [(":method", "CONNECT"), (":authority", "a.test:443")];
    let other = |protocol| [&[(":method", "CONNECT"), (":protocol", protocol)], &GET[1..]].concat();
    for fields in [plain.to_vec(), other("connect-udp"), other("webtransport"), other("h2c"), other("websocket, x")] {
        let mut raw = edge.raw_h2("a.test").await;
        raw.headers(1, &fields, false).await;
        let outcome = raw.outcome(1).await;
        assert!(outcome.is_refused() || outcome == Outcome::Status(501), "{fields:?}: {outcome:?}");
    }
    let with_protocol = with(&[(":protocol", "websocket")]);
    let mut raw = edge.raw_h2("a.test").await;
    assert!(raw.request(1, &with_protocol).await.is_refused(), ":protocol belongs to CONNECT only (RFC 8441 4)");
    assert!(upstream.seen().is_empty());
}

/// SECURITY.md 2: trailers over HTTP/2 are judged as those over HTTP/1.1 are.
#[tokio::test]
async fn trailers_pass_over_http2() {
    let upstream = Upstream::answering(|_| {
        Answer::Bytes(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n"
                .to_vec(),
        )
    })
    .await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2 = edge.h2("a.test").await;
    let request =
        Request::post("https://a.test/").header("te", "trailers").header("trailer", "x-check").body(()).unwrap();
    let (response, mut send) = h2.open(request, false).await.unwrap();
    send.send_data("hi".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-check", HeaderValue::from_static("7"));
    trailers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9"));
    send.send_trailers(trailers).unwrap();
    let reply = crate::harness::read_h2(within("a response", response).await.unwrap()).await;
    let seen = upstream.only().await;
    assert_eq!((seen.body.as_slice(), seen.trailers.get("x-check")), (&b"hi"[..], Some("7")));
    assert!(!seen.trailers.has("x-forwarded-for"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(reply.trailers.expect("trailers").get("x-sum").unwrap(), "42");
}

/// N-49 over HTTP/2: the first event is there before the second is sent.
#[tokio::test]
async fn the_first_event_arrives_at_once_over_http2() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2 = edge.h2("a.test").await;
    let request = Request::get("https://a.test/events").header("accept", "text/event-stream").body(()).unwrap();
    let (response, _send) = h2.open(request, true).await.unwrap();
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let response = within("the head comes before the first event", response).await.unwrap();
    assert_eq!(response.headers().get("x-accel-buffering").unwrap(), "no");
    let mut body = response.into_body();
    for number in 0..3 {
        let event = format!("data: {number}\n\n");
        far.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        assert_eq!(within("an event", body.data()).await.unwrap().unwrap(), event);
    }
}

/// GATEWAY.md 7: a stream that the client resets ends the request upstream, and the others go on.
#[tokio::test]
async fn a_reset_stream_is_noticed_upstream() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2 = edge.h2("a.test").await;
    let request = || Request::get("https://a.test/slow").body(()).unwrap();
    let (dropped, mut send) = h2.open(request(), true).await.unwrap();
    let (mut far, _) = upstream.request().await;
    let (kept, _send) = h2.open(request(), true).await.unwrap();
    let (mut other, _) = upstream.request().await;
    send.send_reset(h2::Reason::CANCEL);
    drop(dropped);
    assert!(!far.wire.fill().await, "the upstream connection closes");
    other.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(within("the other response", kept).await.unwrap().status(), 200);
}

/// Many requests at once share one connection and do not wait for one another.
#[tokio::test]
async fn a_slow_response_holds_up_no_other() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2 = edge.h2("a.test").await;
    let (slow, _s) = h2.open(Request::get("https://a.test/slow").body(()).unwrap(), true).await.unwrap();
    let (mut far, _) = upstream.request().await;
    for _ in 0..3 {
        let (quick, _q) = h2.open(Request::get("https://a.test/quick").body(()).unwrap(), true).await.unwrap();
        let (mut near, seen) = upstream.request().await;
        assert_eq!(seen.target, "/quick");
        near.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(within("a quick response", quick).await.unwrap().status(), 200);
    }
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(within("the slow response", slow).await.unwrap().status(), 200);
}

/// F-16: large bodies pass in both directions under flow control.
#[tokio::test]
async fn large_bodies_arrive_whole_over_http2() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let body = noise(4 << 20);
    let mut h2 = edge.h2("a.test").await;
    let request = Request::post("https://a.test/").body(()).unwrap();
    let reply = h2.exchange(request, Some(body.clone())).await.unwrap();
    assert!(reply.error.is_none());
    assert!(reply.body == body, "{} of {} bytes", reply.body.len(), body.len());
}

/// SECURITY.md 2 and 5: an oversized or over-numerous header block is refused by count and by size.
#[tokio::test]
async fn header_blocks_are_bounded_by_count_and_size() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let names: Vec<String> = (0..150).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = GET.into_iter().chain(names.iter().map(|name| (name.as_str(), "1"))).collect();
    let crumbs: Vec<(&str, &str)> = GET.into_iter().chain((0..150).map(|_| ("cookie", "a=1"))).collect();
    for fields in [many, crumbs] {
        let mut raw = edge.raw_h2("a.test").await;
        let outcome = raw.request(1, &fields).await;
        assert!(
            outcome == Outcome::Status(431) || matches!(outcome, Outcome::Reset(_) | Outcome::GoAway(_)),
            "{outcome:?}"
        );
    }
    let mut raw = edge.raw_h2("a.test").await;
    let large = "v".repeat(12_000);
    let fields = with(&[("x-1", &large), ("x-2", &large), ("x-3", &large)]);
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect();
    let pieces: Vec<&[u8]> = block.chunks(16_000).collect();
    raw.frame(1, 1, 1, pieces[0]).await;
    for (index, piece) in pieces[1..].iter().enumerate() {
        let flags = if index + 2 == pieces.len() { 4 } else { 0 };
        raw.frame(9, flags, 1, piece).await;
    }
    let outcome = raw.outcome(1).await;
    assert!(
        outcome == Outcome::Status(431) || matches!(outcome, Outcome::Reset(_) | Outcome::GoAway(_)),
        "{outcome:?}"
    );
    assert!(upstream.seen().is_empty());
    // CVE-2024-27316: CONTINUATION without end is cut.
    let mut raw = edge.raw_h2("a.test").await;
    raw.frame(1, 1, 1, &[]).await;
    let mut sent = 0_usize;
    while sent < 4 << 20 && raw.frame(9, 0, 1, &field(b"x-flood", &[b'v'; 8_000])).await {
        sent += 8_000;
    }
    let outcome = raw.outcome(1).await;
    assert!(outcome.is_refused(), "{outcome:?}");
}

/// CVE-2023-44487: resets in rapid succession end the connection long before they cost anything.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    let mut sent = 0;
    for index in 0..2_000_u32 {
        let stream = index * 2 + 1;
        if !raw.headers(stream, &GET, true).await || !raw.frame(3, 0, stream, &[0, 0, 0, 8]).await {
            break;
        }
        sent += 1;
    }
    let end = loop {
        match raw.next().await {
            Some(frame) if frame.kind == 7 => break Some(frame.payload[7]),
            Some(_) => {}
            None => break None,
        }
    };
    assert!(end.is_none_or(|code| code == 11), "GOAWAY with ENHANCE_YOUR_CALM, not {end:?} after {sent}");
    assert_eq!(edge.get("a.test", "/").await.status, 200, "others are served");
}

/// M-03: a site may offer HTTP/1.1 only.
#[tokio::test]
async fn a_site_may_offer_http_1_1_only() {
    let upstream = Upstream::echo().await;
    let config = site_with("a.test", &upstream, "alpn = [\"http/1.1\"]") + &site("b.test", &upstream);
    let edge = Edge::start(&config).await;
    let stream = edge.tls("a.test", &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let stream = edge.tls("b.test", &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

/// h2spec-like: errors of the connection are answered with GOAWAY and its code, then the connection ends.
#[tokio::test]
async fn connection_errors_are_answered_with_goaway() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    // RFC 9113 4.2 wants FRAME_SIZE_ERROR; the library that we build on may say PROTOCOL_ERROR.
    const SIZE: u32 = 6;
    // (what, kind, flags, stream, payload, code of RFC 9113 7)
    type Case = (&'static str, u8, u8, u32, &'static [u8], u32);
    let cases: [Case; 10] = [
        ("DATA on stream 0", 0, 0, 0, b"x", 1),
        ("HEADERS on stream 0", 1, 5, 0, &[0x82], 1),
        ("an even stream", 1, 5, 2, &[0x82], 1),
        ("RST_STREAM of an idle stream", 3, 0, 1, &[0, 0, 0, 8], 1),
        ("SETTINGS of a wrong size", 4, 0, 0, &[0, 1, 0], SIZE),
        ("SETTINGS on a stream", 4, 0, 1, &[], 1),
        ("ENABLE_PUSH of 2", 4, 0, 0, &[0, 2, 0, 0, 0, 2], 1),
        ("a PING of a wrong size", 6, 0, 0, &[0], SIZE),
        ("WINDOW_UPDATE of 0", 8, 0, 0, &[0, 0, 0, 0], 1),
        ("CONTINUATION without HEADERS", 9, 4, 1, &[0x82], 1),
    ];
    for (what, kind, flags, stream, payload, code) in cases {
        let mut raw = edge.raw_h2("a.test").await;
        raw.frame(kind, flags, stream, payload).await;
        let outcome = loop {
            match raw.next().await {
                Some(frame) if frame.kind == 7 => break Outcome::GoAway(u32::from(frame.payload[7])),
                Some(_) => {}
                None => break Outcome::Closed,
            }
        };
        let is_size = code == SIZE && outcome == Outcome::GoAway(1);
        assert!(outcome == Outcome::GoAway(code) || is_size, "{what}: {outcome:?} instead of {code}");
    }
    // RFC 7541 2.3.3: an index beyond the tables.
    let mut raw = edge.raw_h2("a.test").await;
    raw.frame(1, 5, 1, &[0xff, 0x80, 0x01]).await;
    let outcome = raw.outcome(1).await;
    assert!(matches!(outcome, Outcome::GoAway(9 | 1)), "COMPRESSION_ERROR, or what the library says: {outcome:?}");
    // RFC 9113 4.2: a frame larger than SETTINGS_MAX_FRAME_SIZE.
    let mut raw = edge.raw_h2("a.test").await;
    raw.frame(0, 0, 1, &vec![0; 20_000]).await;
    assert!(matches!(raw.outcome(1).await, Outcome::GoAway(_) | Outcome::Reset(_)));
    // RFC 9113 3.4: something else than the preface.
    let mut wire = crate::harness::Wire::new(edge.tls("a.test", &["h2"]).await);
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let answer = wire.rest().await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "no sniffing: ALPN decides");
    assert!(upstream.seen().is_empty());
}

/// What the edge tells a client at the start: no push, extended CONNECT, a bounded number of streams.
#[tokio::test]
async fn settings_offer_what_is_served() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    let settings = loop {
        let frame = raw.next().await.expect("SETTINGS come first");
        if frame.kind == 4 && frame.flags == 0 {
            break frame.payload;
        }
    };
    let value = |id: u16| {
        settings
            .chunks(6)
            .find(|entry| u16::from_be_bytes([entry[0], entry[1]]) == id)
            .map(|entry| u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
    };
    assert_eq!(value(8), Some(1), "SETTINGS_ENABLE_CONNECT_PROTOCOL, RFC 8441 3");
    assert!(value(3).is_some_and(|streams| (1..=250).contains(&streams)), "{:?}", value(3));
    assert!(value(6).is_some_and(|size| size <= 64 << 10), "{:?}", value(6));
}

/// A cleartext listener speaks HTTP/1.1 only: prior knowledge of HTTP/2 gets no HTTP/2 (HOUSE.md A5).
#[tokio::test]
async fn cleartext_listeners_do_not_speak_http2() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.plain().await;
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let answer = wire.rest().await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.1 5"), "{answer:?}");
    assert!(upstream.seen().is_empty());
}

/// RFC 9110 10.1.1 over HTTP/2: the body is asked for only when it is wanted, and the limit comes first.
#[tokio::test]
async fn a_body_over_the_limit_is_413_over_http2() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { body = \"1KiB\" }")).await;
    let mut h2: H2 = edge.h2("a.test").await;
    let request = Request::post("https://a.test/").header("content-length", "5000").body(()).unwrap();
    let (response, mut send) = h2.open(request, false).await.unwrap();
    send.send_data(vec![b'x'; 500].into(), false).unwrap();
    assert_eq!(within("a response before the body is whole", response).await.unwrap().status(), 413);
    assert!(upstream.seen().is_empty());
}
