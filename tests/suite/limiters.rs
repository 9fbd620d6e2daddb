//! Rates of requests and of new tunnels (N-06, N-21, N-31, N-33, G-19, O-20): who is counted, what the refused are told,
//! and what a reload keeps.

use crate::harness::{
    Answer, Edge, Outcome, Upstream, WebSocketUpstream, Wire, connect_request, site_with, upgrade_request, within,
};

/// A hop that the edge believes: the tests themselves.
const TRUST: &str = "[trust]\nproxies = [\"127.0.0.0/8\"]\n";

/// A request in the name of a client, as a hop writes it.
fn from(client: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {client}\r\n\r\n")
}

/// The status of one request on a connection.
async fn status(wire: &mut Wire, request: &str) -> u16 {
    wire.send(request).await;
    wire.reply().await.status
}

/// N-06: a limiter's 429 says that the edge answers, which limiter it was, and when to come back, in header, body and
/// record; the gateway's own 429 passes as it is, and looks different in each.
#[tokio::test]
async fn a_refusal_of_ours_and_a_429_of_the_upstream_are_told_apart() {
    let upstream = Upstream::answering(|seen| match seen.target.as_str() {
        "/theirs" => {
            Answer::status("429 Too Many Requests", "Retry-After: 7\r\nContent-Type: application/json\r\n", "{\"a\":1}")
        }
        _ => Answer::ok("", "fine"),
    })
    .await;
    let limits = "[limits.api]\nrequests = { rate = \"2/m\" }\n";
    let edge = Edge::start(&format!("{limits}{}", site_with("a.test", &upstream, "limits = \"api\""))).await;
    let theirs = edge.get("a.test", "/theirs").await;
    assert_eq!((theirs.status, theirs.text().as_str()), (429, "{\"a\":1}"));
    assert_eq!(theirs.headers.all("proxy-status"), ["tidegate;received-status=429"]);
    assert_eq!(theirs.headers.get("retry-after"), Some("7"));
    assert!(!theirs.headers.has("ratelimit") && !theirs.headers.has("ratelimit-policy"));
    assert_eq!(edge.get("a.test", "/").await.status, 200);

    let ours = edge.get_with("a.test", "/", "Accept: application/json\r\n").await;
    assert!(ours.status == 429 && ours.is_by_edge(), "{}", ours.text());
    let status = "tidegate;error=http_request_denied;details=\"limit api\"";
    assert_eq!(ours.headers.all("proxy-status"), [status]);
    let wait: u32 = ours.headers.get("retry-after").unwrap().parse().unwrap();
    assert!((25..=30).contains(&wait), "one of two a minute comes back in 30 s: {wait}");
    assert_eq!(ours.headers.get("ratelimit"), Some(format!("\"api\";r=0;t={wait}").as_str()));
    assert_eq!(ours.headers.get("ratelimit-policy"), Some("\"api\";q=2;w=60"));
    let json = ours.json();
    assert_eq!((&json["error"]["code"], &json["error"]["limit"]), (&"E429-rate".into(), &"api".into()), "{json}");
    assert_eq!(
        (&json["error"]["by"], &json["error"]["request_id"]),
        (&"edge".into(), &ours.headers.get("x-request-id").unwrap().into())
    );
    let page = edge.get_with("a.test", "/", "Accept: text/html\r\n").await.text();
    assert!(page.contains("<title>429</title>") && page.contains("Limit api.") && page.contains("E429-rate"), "{page}");
    let text = edge.get("a.test", "/").await.text();
    assert!(
        text.starts_with("429: too many requests")
            && text.contains("Limit api.")
            && text.contains("not from the gateway"),
        "{text}"
    );

    let record = edge.record_where("ours", |record| record["code"] == "E429-rate").await;
    assert_eq!(
        (&record["by"], &record["limit"], &record["status"]),
        (&"edge".into(), &"api".into(), &429.into()),
        "{record}"
    );
    assert_eq!(record["cause"], "limit \"api\" ([limits.api]): 2/m per client, at most 2 at once", "{record}");
    let record = edge.record_where("theirs", |record| record["path"] == "/theirs").await;
    assert!(record["by"] == "upstream" && record["status"] == 429 && record["limit"].is_null(), "{record}");
    assert_eq!(upstream.seen().len(), 2, "what is refused never reaches the gateway");
}

/// N-21, N-26: the head alone decides, over every protocol: no body is asked for, and what else is wrong does not matter.
#[tokio::test]
async fn a_limit_is_judged_before_a_byte_of_the_body() {
    let upstream = Upstream::echo().await;
    let lines =
        "limits = { body = \"10B\", requests = { rate = \"1/h\" } }\norigins = { allow = [\"https://a.test\"] }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    assert_eq!(edge.get("a.test", "/").await.status, 200);
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nOrigin: https://x.test\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
        .await;
    let reply = wire.reply().await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.headers.get("retry-after"), Some("3600"));
    let mut h2 = edge.h2("a.test").await;
    assert_eq!(h2.get("a.test", "/").await.status, 429);
    let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 429);
    assert_eq!(edge.upgrade("a.test", "/", "").await.0.status, 429);
    assert_eq!(upstream.seen().len(), 1);
    // Only a connection with an unread body ends.
    let mut wire = edge.h1("a.test").await;
    for _ in 0..3 {
        assert_eq!(status(&mut wire, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await, 429);
    }
}

/// N-31: the client that is counted is the one that a trusted hop names, an IPv6 client by its network of 64 bits; what
/// a client says of itself does not give it another budget.
#[tokio::test]
async fn the_client_is_counted_and_never_the_hop() {
    let upstream = Upstream::saying("inside").await;
    let lines = "limits.requests = { rate = \"2/h\" }";
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await;
    let mut wire = edge.h1("a.test").await;
    for (client, expected) in [
        ("198.51.100.7", 200),
        ("198.51.100.7", 200),
        ("198.51.100.7", 429),
        ("::ffff:198.51.100.7", 429),
        // Only what stands right of it was written by a hop.
        ("203.0.113.1, 198.51.100.7", 429),
        ("198.51.100.8", 200),
        ("2001:db8:7:1::1", 200),
        ("2001:db8:7:1:ffff::2", 200),
        ("2001:db8:7:1::3", 429),
        ("2001:db8:7:2::1", 200),
    ] {
        assert_eq!(status(&mut wire, &from(client, "/")).await, expected, "{client}");
    }
    let mut raw = edge.raw_h2("a.test").await;
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "a.test"),
        (":path", "/"),
        ("x-forwarded-for", "198.51.100.7"),
    ];
    assert_eq!(raw.request(1, &fields).await, Outcome::Status(429));
    drop(edge);
    // Without a hop the peer is the client, whatever it says.
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    for (forged, expected) in [("203.0.113.1", 200), ("203.0.113.2", 200), ("203.0.113.3", 429)] {
        assert_eq!(edge.get_with("a.test", "/", &format!("X-Forwarded-For: {forged}\r\n")).await.status, expected);
    }
}

/// Issue 5, 1: a set is shared by all who name it; what is written in place belongs to its table, and what stands in
/// `[defaults]` to each site that inherits it.
#[tokio::test]
async fn a_named_limit_is_shared_and_others_are_not() {
    let upstream = Upstream::saying("inside").await;
    let config = format!(
        "[limits.shared]\nrequests = {{ rate = \"2/h\" }}\n\
         [defaults]\nlimits.requests = {{ rate = \"1/h\" }}\n\
         [sites.\"a.test\"]\nupstream = \"{upstream}\"\n\
         [[sites.\"a.test\".routes]]\npath = \"/own\"\nlimits.requests = {{ rate = \"1/h\" }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/own\"\nmethods = [\"POST\"]\nlimits.requests = {{ rate = \"1/h\" }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/inherits\"\n\
         [[sites.\"a.test\".routes]]\npath = \"/shared\"\nlimits = \"shared\"\n\
         [sites.\"b.test\"]\nupstream = \"{upstream}\"\n\
         [[sites.\"b.test\".routes]]\npath = \"/shared\"\nlimits = \"shared\"\n"
    );
    let edge = Edge::start(&config).await;
    for (host, path, expected) in [
        ("a.test", "/", 200),
        ("a.test", "/inherits", 429),
        ("b.test", "/", 200),
        ("b.test", "/", 429),
        ("a.test", "/own", 200),
        ("a.test", "/own", 429),
        ("a.test", "/shared", 200),
        ("b.test", "/shared", 200),
        ("a.test", "/shared", 429),
        ("b.test", "/shared", 429),
    ] {
        let reply = edge.get(host, path).await;
        assert_eq!(reply.status, expected, "{host}{path} {}", reply.text());
    }
    let post = "POST /own HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(edge.exchange("a.test", post).await.status, 200, "another route");
    assert_eq!(edge.exchange("a.test", post).await.status, 429);
}

/// `per`: each value of a header has a budget of its own, a request without it counts as its client, and `site` is one for
/// all.
#[tokio::test]
async fn a_budget_is_per_header_or_per_site() {
    let upstream = Upstream::saying("inside").await;
    let route = "[[sites.\"a.test\".routes]]\npath = \"/all\"\nlimits.requests = { rate = \"2/h\", per = \"site\" }\n";
    let lines = format!("limits.requests = {{ rate = \"1/h\", per = \"header:X-Key\" }}\n{route}");
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, &lines))).await;
    let mut wire = edge.h1("a.test").await;
    for (client, lines, expected) in [
        ("198.51.100.7", "X-Key: key-one\r\n", 200),
        ("198.51.100.8", "X-Key: key-one\r\n", 429),
        ("198.51.100.8", "X-Key: key-two\r\n", 200),
        ("198.51.100.8", "x-key: key-two\r\n", 429),
        // A second field does not hide behind the first.
        ("198.51.100.8", "X-Key: key-two\r\nX-Key: key-three\r\n", 200),
        ("198.51.100.8", "X-Key: key-two\r\nX-Key: key-three\r\n", 429),
        ("198.51.100.7", "", 200),
        ("198.51.100.7", "X-Key:\r\n", 429),
        ("198.51.100.9", "", 200),
    ] {
        let request = from(client, "/").replace("\r\n\r\n", &format!("\r\n{lines}\r\n"));
        assert_eq!(status(&mut wire, &request).await, expected, "{client} {lines:?}");
    }
    assert_eq!(status(&mut wire, &from("198.51.100.7", "/all")).await, 200);
    assert_eq!(status(&mut wire, &from("198.51.100.8", "/all")).await, 200);
    assert_eq!(status(&mut wire, &from("198.51.100.9", "/all")).await, 429);
    assert!(!edge.stdout().contains("key-"), "no value of a header reaches the log");
}

/// G-19: new tunnels have a rate of their own, before the gateway is asked; a set may hold both, under one name.
#[tokio::test]
async fn new_tunnels_have_a_rate_of_their_own() {
    let upstream = WebSocketUpstream::start().await;
    let limits = "[limits.chat]\nrequests = { rate = \"50/h\" }\nhandshakes = { rate = \"2/h\" }\n";
    let edge = Edge::start(&format!("{limits}{}", site_with("a.test", &upstream, "limits = \"chat\""))).await;
    let mut one = edge.websocket("a.test", "/").await;
    let mut two = edge.websocket_h2("a.test", "/").await;
    let (reply, _) = edge.upgrade("a.test", "/", "Accept: application/json\r\n").await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.json()["error"]["code"], "E429-handshakes");
    assert_eq!(reply.headers.get("ratelimit-policy"), Some("\"chat\";q=2;w=3600"));
    let mut h2 = edge.h2("a.test").await;
    let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 429);
    assert_eq!(edge.get("a.test", "/").await.status, 200, "other requests pass");
    assert_eq!((one.echo("a").await, two.echo("b").await), ("a".to_owned(), "b".to_owned()));
    assert_eq!(upstream.seen().len(), 3);
}

/// Issue 5, 1: a reload keeps what was counted as long as place and terms stay, and forgets the rest.
#[tokio::test]
async fn a_reload_keeps_what_was_counted() {
    let upstream = Upstream::saying("inside").await;
    let config = |rate: &str, more: &str| {
        let limits = format!("[limits.api]\nrequests = {{ rate = \"{rate}\" }}\n");
        format!("{limits}{}{more}", site_with("a.test", &upstream, "limits = \"api\""))
    };
    let edge = Edge::start(&config("1/h", "")).await;
    assert_eq!(edge.get("a.test", "/").await.status, 200);
    assert_eq!(edge.get("a.test", "/").await.status, 429);
    let other = format!("[sites.\"b.test\"]\nupstream = \"{upstream}\"\nlimits = \"api\"\n");
    assert!(edge.reload_with(&config("1/h", &other)).await);
    assert_eq!(edge.get("a.test", "/").await.status, 429, "the same rule");
    assert_eq!(edge.get("b.test", "/").await.status, 429, "and shared from the beginning");
    assert!(edge.reload_with(&config("2/h", "")).await);
    assert_eq!(edge.get("a.test", "/").await.status, 200, "other terms are another rule");
    let said = edge.log_where("what changed", |line| line.to_string().contains("generation 3")).await.to_string();
    assert!(said.contains("a.test: limits"), "{said}");
}

/// Where no address is known nobody gets more than one client has: behind a hop that does not say who asks, and at a
/// unix socket.
#[tokio::test]
async fn who_has_no_address_shares_one_budget() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("http.sock");
    for trust in ["", "[trust]\nproxies = [\"unix\"]\n"] {
        std::fs::remove_file(&path).ok();
        let _edge = Edge::start(&format!(
            "{trust}[listen]\nhttp = [\"unix:{}\"]\n[sites.\"localhost\"]\ntls = \"off\"\nrespond = {{ body = \"ok\" }}\n\
             limits.requests = {{ rate = \"2/h\" }}\n",
            path.display()
        ))
        .await;
        for expected in [200, 200, 429] {
            let stream = within("the edge accepts", tokio::net::UnixStream::connect(&path)).await.unwrap();
            let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
            assert_eq!(status(&mut Wire::new(stream), request).await, expected, "{trust}");
        }
    }
}

/// N-33, O-20: the operator's page for 429 stands in place of ours, and a limit goes for answers of the edge itself too.
#[tokio::test]
async fn an_own_page_keeps_the_fields() {
    let dir = tempfile::TempDir::new().unwrap();
    let page = dir.path().join("429.html");
    std::fs::write(&page, "<h1>slow down</h1>").unwrap();
    let edge = Edge::start(&format!(
        "[sites.\"a.test\"]\nrespond = {{ body = \"pong\" }}\nlimits.requests = {{ rate = \"1/m\" }}\nerrors = {{ 429 = {page:?} }}\n"
    ))
    .await;
    assert_eq!(edge.get("a.test", "/").await.status, 200);
    let reply = edge.get("a.test", "/").await;
    assert_eq!((reply.status, reply.text().as_str()), (429, "<h1>slow down</h1>"));
    assert_eq!(reply.headers.get("ratelimit-policy"), Some("\"requests\";q=1;w=60"));
    assert!(reply.headers.has("retry-after") && reply.is_by_edge());
    // A request that is no tunnel uses up nothing of what is for tunnels, and the other way about.
    let record = edge.record_where("ours", |record| record["code"] == "E429-rate").await;
    assert_eq!(record["limit"], "requests", "{record}");
    assert_eq!(record["cause"], "limit \"requests\" (site \"a.test\"): 1/m per client, at most 1 at once", "{record}");
    let upgrade = edge.exchange("a.test", upgrade_request("a.test", "/", "")).await;
    assert_eq!(upgrade.status, 429);
}
