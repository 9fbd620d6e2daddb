//! Attacks on the seams between two connections: what one peer withholds, leaves behind or says too
//! early must not harm anybody else (SECURITY.md 2 and 4).

use crate::harness::{Edge, Scripted, Upstream, accept_key, site, upgrade_request};

/// RFC 9110 6.4.1, 8.6: a status without content carries none, whatever its head claims.
#[tokio::test]
async fn a_status_without_content_never_carries_any() {
    for head in ["204 No Content\r\nContent-Length: 5", "204 No Content\r\nTransfer-Encoding: chunked"] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\nhello");
        let upstream = Upstream::answering(move |_| crate::harness::Answer::Close(answer.clone().into_bytes())).await;
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
