//! Bad bytes from an upstream, over HTTP/1.1 and HTTP/2 (SECURITY.md 2, response-side confusion): each form is 502, or a
//! response that is seen to be cut. None is ever a clean end.

use crate::harness::{Edge, Scripted, UpstreamWire, read_h2, site_with};

/// What the client must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// 502 of ours with this code.
    Refused(&'static str),
    /// The upstream's head, and a body that breaks off.
    Cut,
    /// The whole response, and nothing of what came after it.
    Whole(&'static str),
}

use Fate::{Cut, Refused, Whole};

const PROTOCOL: Fate = Refused("E502-protocol");
const CLOSED: Fate = Refused("E502-closed");

/// Every form: what it is, the bytes before the upstream closes, what follows.
fn forms() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let bytes = |text: &str| text.as_bytes().to_vec();
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}").into_bytes();
    vec![
        // Status lines.
        ("no status line", bytes("hello world\r\n\r\n"), PROTOCOL),
        ("an old version", bytes("HTTP/0.9 200 OK\r\n\r\n"), PROTOCOL),
        ("a new version", bytes("HTTP/2.0 200 OK\r\n\r\n"), PROTOCOL),
        ("a status of two digits", bytes("HTTP/1.1 20 OK\r\n\r\n"), PROTOCOL),
        ("a status of four digits", bytes("HTTP/1.1 2000 OK\r\n\r\n"), PROTOCOL),
        ("a status that is no number", bytes("HTTP/1.1 OK\r\n\r\n"), PROTOCOL),
        ("a status below 100", bytes("HTTP/1.1 042 x\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("bytes before the status line", bytes("xHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("TLS", bytes("\x16\x03\x01\x02\x00\x01\x00"), PROTOCOL),
        // Framing (RFC 9112 6.3).
        ("both length headers", ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), PROTOCOL),
        ("two lengths", ok("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), PROTOCOL),
        ("one length twice", ok("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), PROTOCOL),
        ("a list of lengths", ok("Content-Length: 5, 5\r\n\r\nhello"), PROTOCOL),
        ("a signed length", ok("Content-Length: +5\r\n\r\nhello"), PROTOCOL),
        ("a length beyond all bounds", ok("Content-Length: 99999999999999999999\r\n\r\nhello"), PROTOCOL),
        ("an empty length", ok("Content-Length:\r\n\r\nhello"), PROTOCOL),
        ("another coding", ok("Transfer-Encoding: gzip\r\n\r\nhello"), PROTOCOL),
        ("two codings", ok("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), PROTOCOL),
        ("chunked twice", ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), PROTOCOL),
        ("chunks in HTTP/1.0", bytes("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), PROTOCOL),
        // Fields.
        ("NUL in a value", ok("X: a\0b\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("CR in a value", ok("X: a\rb\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("a bare LF", ok("X: a\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("a folded line", ok("X: a\r\n b\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("a space before the colon", ok("X : a\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("a name that is no token", ok("X(: a\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("no name", ok(": a\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("no colon", ok("nonsense\r\nContent-Length: 0\r\n\r\n"), PROTOCOL),
        ("too many fields", ok(&format!("{}Content-Length: 0\r\n\r\n", "X: 1\r\n".repeat(120))), PROTOCOL),
        ("an endless head", ok(&"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(90)).repeat(20), PROTOCOL),
        ("an endless field", ok(&format!("X: {}", "y".repeat(200_000))), PROTOCOL),
        ("an endless reason", format!("HTTP/1.1 200 {}", "y".repeat(200_000)).into_bytes(), PROTOCOL),
        // Answers that nobody asked for.
        (
            "101 unasked",
            bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            PROTOCOL,
        ),
        ("endless interim answers", "HTTP/1.1 103 Early\r\nLink: x\r\n\r\n".repeat(4000).into_bytes(), PROTOCOL),
        ("interim answers and no other", bytes("HTTP/1.1 103 Early\r\n\r\n"), CLOSED),
        // Ends that come too early.
        ("nothing at all", Vec::new(), CLOSED),
        ("half a status line", bytes("HTTP/1.1 2"), CLOSED),
        ("half a head", ok("Content-Le"), CLOSED),
        ("less than the length", ok("Content-Length: 10\r\n\r\nhello"), Cut),
        ("none of the length", ok("Content-Length: 10\r\n\r\n"), Cut),
        ("a cut chunk", ok("Transfer-Encoding: chunked\r\n\r\na\r\nhello"), Cut),
        ("no last chunk", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), Cut),
        ("no end after the last chunk", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"), Cut),
        ("half a chunk line", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1"), Cut),
        // Chunks.
        ("a chunk size that is no number", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n"), Cut),
        ("a negative chunk size", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n-1\r\n"), Cut),
        (
            "a chunk size with a sign",
            ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n+5\r\nhello\r\n0\r\n\r\n"),
            Cut,
        ),
        (
            "a chunk size beyond all bounds",
            ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nfffffffffffffffff\r\n"),
            Cut,
        ),
        ("no size", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\r\n"), Cut),
        ("a chunk without its end", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"), Cut),
        ("a chunk line that ends in LF", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\nx\r\n0\r\n\r\n"), Cut),
        (
            "an endless chunk extension",
            ok(&format!("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(100_000))),
            Cut,
        ),
        (
            "a trailer that is no field",
            ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
            Cut,
        ),
        (
            "endless trailers",
            ok(&format!("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{}", "X: y\r\n".repeat(40_000))),
            Cut,
        ),
        // What follows a response is nobody's.
        (
            "garbage after a response",
            ok("Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
            Whole("hello"),
        ),
        ("garbage after chunks", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nevil"), Whole("hello")),
        ("a body where there is none", bytes("HTTP/1.1 204 No Content\r\n\r\nevil"), Whole("")),
    ]
}

/// Writes as much of it as the edge takes, and closes.
async fn say(mut wire: UpstreamWire, bytes: &[u8]) {
    // The edge may have seen enough.
    wire.wire.try_send(bytes).await.ok();
    wire.wire.shutdown().await;
}

#[tokio::test]
async fn no_bad_bytes_of_an_upstream_become_a_clean_end() {
    let server = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &server, "timeouts = { idle = \"5s\" }")).await;
    let mut wrong = Vec::new();
    for (name, bytes, fate) in forms() {
        let mut client = edge.h1("a.test").await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let (far, _) = server.request().await;
        let (reply, ()) = tokio::join!(client.reply(), say(far, &bytes));
        let is_right = match fate {
            Refused(code) => reply.status == 502 && reply.is_by_edge() && reply.text().contains(code),
            Cut => reply.status == 200 && !reply.is_complete,
            Whole(body) => reply.status < 300 && reply.is_complete && reply.text() == body,
        };
        if !is_right {
            wrong.push(format!(
                "{name} over HTTP/1.1: {} complete={} {:?}",
                reply.status,
                reply.is_complete,
                reply.text()
            ));
        }
        let mut client = edge.h2("a.test").await;
        let request = http::Request::get("https://a.test/").body(()).expect("a request");
        let (answer, _) = client.open(request, true).await.expect("a stream");
        let (far, _) = server.request().await;
        let reading = async {
            let head = crate::harness::within("a response over HTTP/2", answer).await.expect("a response head");
            read_h2(head).await
        };
        let (reply, ()) = tokio::join!(reading, say(far, &bytes));
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let is_right = match fate {
            Refused(code) => reply.status == 502 && text.contains(code) && reply.error.is_none(),
            Cut => reply.status == 200 && reply.error.as_ref().is_some_and(h2::Error::is_reset),
            Whole(body) => reply.status < 300 && reply.error.is_none() && text == body,
        };
        if !is_right {
            wrong.push(format!("{name} over HTTP/2: {} {:?} {text:?}", reply.status, reply.error));
        }
    }
    assert!(wrong.is_empty(), "{} forms:\n{}", wrong.len(), wrong.join("\n"));
    assert!(!server.has_waiting().await, "a GET whose answer had begun is not repeated");
}
