//! The answers that the edge makes itself, and the gateway's that it explains (CONFIG.md 5, EXPERIENCE.md).

use crate::harness::{Answer, Edge, Scripted, Upstream, site};

/// CONFIG.md 5: by `Accept` a page, JSON or text; each says who answers, and carries the request's ID.
#[tokio::test]
async fn our_answers_come_as_page_json_or_text() {
    let closed = Scripted::bind().await.to_string();
    let edge = Edge::start(&site("a.test", &closed)).await;
    let cases = [
        ("Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n", "text/html"),
        ("Accept: application/json\r\n", "application/json"),
        ("Accept: */*\r\n", "text/plain"),
        ("", "text/plain"),
        ("Accept: text/html;q=0.1, application/json\r\n", "application/json"),
    ];
    for (accept, expected) in cases {
        let reply = edge.get_with("a.test", "/", accept).await;
        assert_eq!(reply.status, 502);
        let kind = reply.headers.get("content-type").expect("a type");
        assert!(kind.starts_with(expected), "{accept:?}: {kind}");
        let id = reply.headers.get("x-request-id").expect("a request ID").to_owned();
        assert!(reply.text().contains(&id), "the ID is in the words that a user can pass on: {}", reply.text());
        assert!(reply.text().contains("tidegate") || reply.text().contains("edge"), "{}", reply.text());
        assert!(reply.is_by_edge(), "{:?}", reply.headers);
        assert!(
            reply.headers.get("cache-control").is_some_and(|value| value.contains("no-store")),
            "{:?}",
            reply.headers
        );
        if expected == "application/json" {
            let error = &reply.json()["error"];
            assert!(error["code"].as_str().unwrap().starts_with("E502"), "{error}");
            assert_eq!((&error["by"], &error["request_id"]), (&"edge".into(), &id.clone().into()));
            assert!(error["message"].is_string());
        }
        let record = edge.record_where("this request's", |record| record["id"] == *id).await;
        assert_eq!((&record["by"], &record["status"]), (&"edge".into(), &502.into()));
    }
}

/// Issue 2, 8: a client on loopback is also told which address refused.
#[tokio::test]
async fn a_client_near_by_learns_which_address_refused() {
    let closed = Scripted::bind().await.to_string();
    let edge = Edge::start(&site("a.test", &closed)).await;
    let reply = edge.get("a.test", "/").await;
    assert!(reply.headers.get("proxy-status").unwrap().contains(&closed), "{:?}", reply.headers);
    assert!(reply.text().contains(&closed), "{}", reply.text());
    assert!(reply.text().contains("openclaw gateway run"), "and what to start: {}", reply.text());
    let page = edge.get_with("a.test", "/", "Accept: text/html\r\n").await.text();
    assert!(page.contains(&closed) && page.contains("openclaw gateway run"), "{page}");
    // The same for a client from the internet, whom a trusted hop names: the inner address is none of its business.
    let edge = Edge::start(&format!("[trust]\nproxies = [\"loopback\"]\n{}", site("a.test", &closed))).await;
    let reply = edge.get_with("a.test", "/", "X-Forwarded-For: 203.0.113.77\r\n").await;
    assert_eq!(reply.status, 502);
    let all = format!("{:?} {}", reply.headers, reply.text());
    assert!(!all.contains(&closed) && !all.contains("127.0.0.1") && !all.contains("openclaw"), "{all}");
    let reply = edge.get_with("a.test", "/", "X-Forwarded-For: 192.168.7.9\r\n").await;
    assert!(reply.text().contains(&closed), "a private network is near too: {}", reply.text());
}

/// CONFIG.md 5: a page cannot be made to carry what a client wrote.
#[tokio::test]
async fn our_pages_never_echo_a_client() {
    let closed = Scripted::bind().await.to_string();
    let edge = Edge::start(&site("a.test", &closed)).await;
    let reply = edge
        .get_with("a.test", "/<script>alert(1)</script>?<b>", "Accept: text/html\r\nUser-Agent: <i>x</i>\r\n")
        .await;
    assert!(matches!(reply.status, 400 | 502));
    assert!(!reply.text().contains("alert(1)") && !reply.text().contains("<i>x"), "{}", reply.text());
    let reply = edge.get_with("a.test", "/x?y=%3Cscript%3E", "Accept: text/html\r\n").await;
    assert!(!reply.text().to_ascii_lowercase().contains("%3cscript"));
    assert!(
        reply.headers.get("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")),
        "{:?}",
        reply.headers
    );
}

/// CONFIG.md 5: what the upstream answered is never rewritten; its errors are marked as its own.
#[tokio::test]
async fn the_upstreams_errors_are_its_own() {
    for status in [
        "400 Bad Request",
        "404 Not Found",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ] {
        let upstream = Upstream::answering(move |_| {
            Answer::status(status, "Content-Type: application/json\r\nRetry-After: 9\r\n", "{\"gateway\":true}")
        })
        .await;
        let edge = Edge::start(&site("a.test", &upstream)).await;
        let reply = edge.get_with("a.test", "/", "Accept: text/html\r\n").await;
        let code: u16 = status[..3].parse().unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (code, "{\"gateway\":true}"));
        assert_eq!(reply.headers.get("retry-after"), Some("9"));
        let told = reply.headers.get("proxy-status").expect("whose answer it is");
        assert!(told.contains(&format!("received-status={code}")), "{told}");
        assert!(reply.headers.has("x-request-id"), "N-10: the response carries the ID too");
        let record = edge.record("request").await;
        assert_eq!(record["by"], "upstream");
        assert!(record["code"].is_null(), "{record}");
    }
}

/// Issue 2, 8: the gateway's `proxy_attribution_required` is passed on untouched, and explained in the log every time.
#[tokio::test]
async fn a_refused_attribution_is_explained_each_time() {
    const BODY: &str = r#"{"ok":false,"error":{"type":"forbidden","code":"proxy_attribution_required"}}"#;
    let upstream =
        Upstream::answering(|_| Answer::status("403 Forbidden", "Content-Type: application/json\r\n", BODY)).await;
    let edge = Edge::start(&format!("[trust]\nproxies = [\"loopback\"]\n{}", site("a.test", &upstream))).await;
    const FROM: &str = "X-Forwarded-For: 203.0.113.77\r\n";
    for _ in 0..3 {
        let reply = edge.get_with("a.test", "/", FROM).await;
        assert_eq!((reply.status, reply.text().as_str()), (403, BODY));
        let id = reply.headers.get("x-request-id").unwrap().to_owned();
        edge.log_where("the explanation of this request", |line| {
            let text = line.to_string();
            text.contains(&id)
                && text.contains("openclaw config set gateway.trustedProxies")
                && text.contains("127.0.0.1")
        })
        .await;
    }
    let (reply, _) = edge.upgrade("a.test", "/", FROM).await;
    assert_eq!((reply.status, reply.text().as_str()), (403, BODY));
    let id = reply.headers.get("x-request-id").unwrap().to_owned();
    edge.log_where("the explanation of the upgrade", |line| {
        line.to_string().contains(&id) && line.to_string().contains("trustedProxies")
    })
    .await;
    // A client on this machine is refused for another reason, and told another remedy.
    let reply = edge.get("a.test", "/").await;
    let id = reply.headers.get("x-request-id").unwrap().to_owned();
    let local = edge.log_where("the explanation for a local client", |line| line.to_string().contains(&id)).await;
    assert!(local.to_string().contains("localhost") && !local.to_string().contains("trustedProxies"), "{local}");
    let other = Upstream::answering(|_| Answer::status("403 Forbidden", "", "no")).await;
    let edge = Edge::start(&site("a.test", &other)).await;
    edge.get("a.test", "/").await;
    edge.record("request").await;
    assert!(!edge.stderr().contains("trustedProxies"), "another 403 is another matter");
}
