//! Forward auth: what the service is asked, what its answers come to, and that nothing passes without one (G-12).

use http::Request;
use tokio::net::TcpListener;

use crate::auth::basic;
use crate::harness::{
    Answer, Edge, Reply, Scripted, Seen, Upstream, WebSocketUpstream, connect_request, site, site_with, within,
};

/// `[auth.sso]` at this service, and further lines of its table.
fn sso(service: impl std::fmt::Display, lines: &str) -> String {
    format!(
        "[auth.sso]\ntype = \"forward\"\nurl = \"http://{service}/verify?x=1\"\n\
         copy_headers = [\"Remote-User\", \"X-Team\"]\n{lines}\n"
    )
}

/// A service that lets pass whose cookie is `s=NAME`, and sends others to log in.
async fn service() -> Upstream {
    Upstream::answering(|seen: &Seen| match seen.header("cookie").and_then(|cookie| cookie.strip_prefix("s=")) {
        Some("down") => Answer::Close(Vec::new()),
        Some("forbidden") => Answer::status("403 Forbidden", "Content-Type: text/html\r\nX-Why: team\r\n", "not you"),
        Some(name) => {
            let fields =
                format!("Remote-User: {name}\r\nSet-Cookie: s={name}; Path=/\r\nSet-Cookie: t=1\r\nX-Other: y\r\n");
            Answer::status("202 Accepted", &fields, "welcome")
        }
        None if seen.header("accept").is_some_and(|accept| accept.contains("text/html")) => {
            let fields =
                "Location: https://sso.example.com/?rd=x\r\nSet-Cookie: csrf=1\r\nConnection: X-Hop\r\nX-Hop: z\r\n";
            Answer::status("302 Found", fields, "elsewhere")
        }
        None => Answer::status("401 Unauthorized", "WWW-Authenticate: Sso\r\n", "log in"),
    })
    .await
}

/// G-12: with 2xx the listed headers of the answer go upstream in place of the client's; its cookies go to the client.
#[tokio::test]
async fn the_service_says_who_asks() {
    let (upstream, service) = (Upstream::saying("inside").await, service().await);
    let edge =
        Edge::start(&format!("{}{}", sso(&service, ""), site_with("a.test", &upstream, "auth = [\"sso\"]"))).await;
    let lines = "Cookie: s=alice\r\nRemote-User: root\r\nremote_user: root\r\nX-Team: root\r\nX_Team: root\r\nX-Other: mine\r\n";
    let reply = edge.get_with("a.test", "/a%20b?c=d&token=t", lines).await;
    assert_eq!((reply.status, reply.text()), (200, "inside".to_owned()));
    assert_eq!(reply.headers.all("set-cookie"), ["s=alice; Path=/", "t=1"]);
    let seen = upstream.only().await;
    assert_eq!(seen.headers.all("remote-user"), ["alice"]);
    assert!(!seen.headers.0.iter().any(|(_, value)| value == "root"), "{:?}", seen.headers);
    assert!(!seen.headers.has("x-team"), "what the answer lacks is absent");
    assert_eq!(seen.header("x-other"), Some("mine"), "what is not listed stays the client's");
    assert_eq!(seen.header("cookie"), Some("s=alice"));
    let asked = service.only().await;
    assert_eq!((&*asked.method, &*asked.target), ("GET", "/verify?x=1"));
    for (name, value) in [
        ("host", service.address().to_string().as_str()),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a.test"),
        ("x-forwarded-uri", "/a%20b?c=d&token=t"),
        ("x-forwarded-for", "127.0.0.1"),
        ("cookie", "s=alice"),
    ] {
        assert_eq!(asked.headers.all(name), [value], "{name}");
    }
    assert!(!asked.headers.has("remote-user") && !asked.headers.has("x-team"));
    let record = edge.record("request").await;
    assert_eq!((&record["auth"], &record["user"], &record["by"]), (&"sso".into(), &"alice".into(), &"upstream".into()));
}

/// The service never gets a body, nor what speaks of one or of the client's connection, nor a forged field of ours.
#[tokio::test]
async fn the_question_holds_nothing_that_only_the_edge_may_say() {
    let (upstream, service) = (Upstream::echo().await, service().await);
    let config = format!("{}{}", sso(&service, ""), site_with("a.test", &upstream, "auth = [\"sso\"]"));
    let edge = Edge::start(&config).await;
    let lines = "Cookie: s=alice\r\nContent-Type: text/plain\r\nContent-Length: 4\r\nTE: trailers\r\nIf-None-Match: *\r\nRange: bytes=0-1\r\n\
        X-Forwarded-Uri: /open\r\nX-Forwarded-Method: GET\r\nX_Forwarded_Uri: /open\r\nX-Forwarded-For: 203.0.113.1\r\n\
        X-Original-URL: /open\r\nX-Forwarded-Host: evil.test\r\nRemote-User: root\r\nConnection: X-Forwarded-Uri, keep-alive\r\n";
    let reply = edge.exchange("a.test", format!("POST /x HTTP/1.1\r\nHost: a.test\r\n{lines}\r\nbody")).await;
    assert_eq!((reply.status, reply.text()), (200, "body".to_owned()));
    let asked = service.only().await;
    assert_eq!((asked.body.len(), &*asked.method), (0, "GET"));
    assert_eq!(asked.headers.all("x-forwarded-uri"), ["/x"]);
    assert_eq!(asked.headers.all("x-forwarded-method"), ["POST"]);
    assert_eq!(asked.headers.all("x-forwarded-for"), ["127.0.0.1"]);
    for name in [
        "content-type",
        "content-length",
        "te",
        "if-none-match",
        "range",
        "x-original-url",
        "connection",
        "remote-user",
    ] {
        assert!(!asked.headers.has(name), "{name}");
    }
    assert!(!asked.headers.0.iter().any(|(name, value)| name.contains('_') || value.contains("evil")));
}

/// What it says to a browser goes to the browser, marked as its own; a WebSocket gets a plain status.
#[tokio::test]
async fn a_denial_is_the_service_s_own_answer_but_for_websockets() {
    let (upstream, service) = (WebSocketUpstream::start().await, service().await);
    let edge =
        Edge::start(&format!("{}{}", sso(&service, ""), site_with("a.test", &upstream, "auth = [\"sso\"]"))).await;
    let html = "Accept: text/html\r\n";
    let redirect = edge.get_with("a.test", "/", html).await;
    assert_eq!((redirect.status, redirect.text()), (302, "elsewhere".to_owned()));
    assert_eq!(redirect.headers.get("location"), Some("https://sso.example.com/?rd=x"));
    assert_eq!(redirect.headers.all("set-cookie"), ["csrf=1"]);
    assert_eq!(redirect.headers.get("proxy-status"), Some("tidegate;received-status=302;details=\"auth sso\""));
    assert!(!redirect.headers.has("x-hop") && redirect.headers.has("x-request-id"));
    let unknown = edge.get("a.test", "/").await;
    assert_eq!((unknown.status, unknown.headers.get("www-authenticate")), (401, Some("Sso")));
    let forbidden = edge.get_with("a.test", "/", "Cookie: s=forbidden\r\n").await;
    assert_eq!(
        (forbidden.status, forbidden.text(), forbidden.headers.get("x-why")),
        (403, "not you".to_owned(), Some("team"))
    );
    let head = edge.exchange("a.test", "HEAD / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(head.status, 401);
    let record = edge.record_where("a redirect", |record| record["status"] == 302).await;
    assert_eq!((&record["by"], &record["auth"]), (&"auth".into(), &"sso".into()), "{record}");

    for (lines, status, code) in
        [(html, 401, "E401-forward"), ("", 401, "E401-forward"), ("Cookie: s=forbidden\r\n", 403, "E403-forward")]
    {
        let socket: Reply = edge.upgrade("a.test", "/", lines).await.0;
        assert_eq!(socket.status, status, "{lines}");
        assert!(!socket.headers.has("location") && socket.headers.all("set-cookie").is_empty(), "{lines}");
        edge.record_where(code, |record| record["code"] == code).await;
    }
    let mut h2 = edge.h2("a.test").await;
    let mut connect = connect_request("a.test", "/");
    connect.headers_mut().insert("accept", "text/html".parse().unwrap());
    let (response, _send) = h2.open(connect, false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 401);
    assert_eq!(upstream.seen().len(), 0);
    // Checked at the handshake alone: then the socket is the upstream's.
    let asked = service.seen().len();
    let (opened, _wire) = edge.upgrade("a.test", "/", "Cookie: s=alice\r\n").await;
    assert_eq!((opened.status, opened.headers.all("set-cookie").len()), (101, 2));
    assert_eq!(service.seen().len(), asked + 1);
    let question = &service.seen()[asked];
    assert!(!question.headers.has("upgrade") && !question.headers.has("sec-websocket-key"));
    assert_eq!(question.header("x-forwarded-method"), Some("GET"));
    assert_eq!(upstream.seen()[0].headers.all("remote-user"), ["alice"]);
}

/// A service that is down, slow, or says anything else keeps every request out, and the record says why.
#[tokio::test]
async fn without_an_answer_nothing_passes() {
    let upstream = WebSocketUpstream::start().await;
    let garbage = Upstream::answering(|seen| {
        let large = "x".repeat(70_000);
        match seen.header("x-case").unwrap_or_default() {
            "500" => Answer::status("500 Internal Server Error", "Remote-User: root\r\n", ""),
            "304" => Answer::Bytes(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
            "302" => Answer::status("302 Found", "", "no location"),
            "404" => Answer::status("404 Not Found", "", ""),
            "101" => {
                Answer::Close(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec())
            }
            "cut" => Answer::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec()),
            "both" => Answer::Close(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            ),
            "large" => Answer::ok("", large),
            "noise" => Answer::Close(b"\x16\x03\x01\x02\x00".to_vec()),
            _ => Answer::Close(Vec::new()),
        }
    })
    .await;
    let (slow, gone) = (Scripted::bind().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let gone_address = gone.local_addr().unwrap();
    drop(gone);
    let config = |address: &dyn std::fmt::Display, host: &str| {
        let auth = sso(address, "timeout = \"300ms\"").replace("auth.sso", &format!("auth.{host}"));
        format!("{auth}{}", site_with(&format!("{host}.test"), &upstream, &format!("auth = [\"{host}\"]")))
    };
    let text = [config(&garbage, "garbage"), config(&slow, "slow"), config(&gone_address, "gone")].concat();
    let edge = Edge::start(&text).await;
    for case in ["500", "304", "302", "404", "101", "cut", "both", "large", "noise", "empty"] {
        let lines = format!("X-Case: {case}\r\nRemote-User: root\r\n");
        assert_eq!(edge.get_with("garbage.test", "/", &lines).await.status, 502, "{case}");
        assert_eq!(edge.upgrade("garbage.test", "/", &lines).await.0.status, 502, "{case}");
    }
    assert_eq!(edge.get("gone.test", "/").await.status, 502);
    let late = edge.get("slow.test", "/").await;
    assert_eq!(late.status, 504, "{}", late.text());
    assert_eq!(upstream.seen().len(), 0, "nothing reaches the upstream");
    let record = edge.record_where("a service that is gone", |record| record["site"] == "gone.test").await;
    assert_eq!(record["code"], "E502-auth", "{record}");
    let record = edge.record_where("a service that is slow", |record| record["site"] == "slow.test").await;
    assert_eq!(record["code"], "E504-auth", "{record}");
    assert!(record["cause"].as_str().is_some_and(|cause| cause.contains("0.3 s")), "{record}");
}

/// `skip_if`: a bearer token is the upstream's to judge; without one the service is asked.
#[tokio::test]
async fn a_bearer_passes_where_it_is_skipped() {
    let (upstream, service) = (Upstream::echo().await, service().await);
    let auth = sso(&service, "skip_if = [\"bearer\"]");
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, "auth = [\"sso\"]"))).await;
    let lines = "Authorization: Bearer t0ken\r\nRemote-User: root\r\n";
    assert_eq!(edge.get_with("a.test", "/", lines).await.status, 200);
    let seen = upstream.only().await;
    assert_eq!((seen.header("authorization"), seen.headers.has("remote-user")), (Some("Bearer t0ken"), false));
    assert_eq!(service.seen().len(), 0);
    for lines in ["Authorization: Bearer\r\n", "Authorization: Basic eDp5\r\n", "X-OpenClaw-Token: t\r\n"] {
        assert_eq!(edge.get_with("a.test", "/", lines).await.status, 401, "{lines}");
    }
    assert_eq!(service.seen().len(), 3);
}

/// Any one way suffices: a password is tried before the service is asked, and a 401 of the service says so.
#[tokio::test]
async fn a_password_or_the_service_suffices() {
    let (upstream, service) = (Upstream::echo().await, service().await);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    std::fs::write(&file, format!("bob:{}\n", tidegate::policy::password::new_argon2("pw").unwrap())).unwrap();
    let config = format!(
        "{}[auth.staff]\ntype = \"basic\"\nusers = {file:?}\n{}{}",
        sso(&service, ""),
        site_with("a.test", &upstream, "auth = [\"sso\", \"staff\"]"),
        site("b.test", &upstream),
    );
    let edge = Edge::start(&config).await;
    assert_eq!(edge.get_with("a.test", "/", &basic("bob", "pw")).await.status, 200);
    assert_eq!(service.seen().len(), 0, "those that ask nobody come first");
    let denied = edge.get("a.test", "/").await;
    assert_eq!(denied.headers.all("www-authenticate"), ["Sso", "Basic realm=\"tidegate\", charset=\"UTF-8\""]);
    assert_eq!(edge.get_with("a.test", "/", "Cookie: s=alice\r\n").await.status, 200);
    let mut h2 = edge.h2("a.test").await;
    let request = Request::get("https://a.test/").header("cookie", "s=alice").header("cookie", "u=1").body(()).unwrap();
    assert_eq!(h2.exchange(request, None).await.unwrap().status, 200);
    assert_eq!(service.seen().last().unwrap().headers.all("cookie"), ["s=alice; u=1"]);
}
