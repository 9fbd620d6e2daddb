//! Who may enter: `allow`, `deny`, `deny_with`, `maintenance` (M-11, N-26, N-33), over every way in.

use std::path::{Path, PathBuf};

use crate::harness::{
    Edge, Outcome, RawH2, Upstream, WebSocketUpstream, Wire, connect_request, field, site, site_with, upgrade_request,
    within,
};

/// A hop that the edge believes: the tests themselves.
const TRUST: &str = "[trust]\nproxies = [\"127.0.0.0/8\"]\n";

/// A request in the name of a client, as a hop writes it.
fn from(client: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {client}\r\n\r\n")
}

/// The fields of a request over HTTP/2 in the name of a client.
fn fields<'a>(client: &'a str, target: &'a str) -> [(&'a str, &'a str); 5] {
    [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", target), ("x-forwarded-for", client)]
}

/// M-11, N-48: who is not in `allow` gets 403 in every protocol, says the record by which rule, and reaches nothing.
/// What it says of itself does not help (SECURITY.md 1).
#[tokio::test]
async fn who_may_not_enter_is_refused_in_every_protocol() {
    let upstream = Upstream::saying("inside").await;
    let lines = "allow = [\"office\", \"tailscale\"]\nlimits = { body = \"10B\" }";
    let config = format!("[networks]\noffice = [\"10.1.0.0/16\"]\n{}", site_with("a.test", &upstream, lines));
    let edge = Edge::start(&config).await;
    for forged in ["", "X-Forwarded-For: 10.1.1.1\r\n", "Forwarded: for=10.1.1.1\r\n", "X-Real-IP: 10.1.1.1\r\n"] {
        let reply = edge.get_with("a.test", "/", &format!("Accept: application/json\r\n{forged}")).await;
        assert_eq!(reply.status, 403, "{forged:?}");
        assert_eq!(reply.json()["error"]["code"], "E403-denied");
        let status = "tidegate;error=http_request_denied;details=\"E403-denied\"";
        assert_eq!(reply.headers.get("proxy-status"), Some(status));
        assert!(!reply.text().contains("allow") && !reply.text().contains("office"), "{}", reply.text());
        assert_eq!(edge.upgrade("a.test", "/", forged).await.0.status, 403, "{forged:?}");
    }
    let html = edge.get_with("a.test", "/", "Accept: text/html\r\n").await;
    assert!(html.text().contains("<title>403</title>") && html.text().contains("E403-denied"), "{}", html.text());
    let mut h2 = edge.h2("a.test").await;
    assert_eq!(h2.get("a.test", "/").await.status, 403);
    let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 403);
    // N-26: not a byte of a body is asked for, and its size is not judged.
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 403);
    assert!(wire.rest().await.is_empty(), "the connection ends with a body that nobody reads");
    let record = edge.record_where("a refusal", |record| record["code"] == "E403-denied").await;
    assert_eq!((&record["by"], &record["client"]), (&"edge".into(), &"127.0.0.1".into()), "{record}");
    assert_eq!(record["cause"], "the client is not in \"allow\"", "{record}");
    assert_eq!((upstream.seen().len(), upstream.connections()), (0, 0));
}

/// M-11: the lists are judged on the client that a trusted hop names, `deny` before `allow`; a route replaces lists.
#[tokio::test]
async fn the_lists_are_judged_on_the_client_behind_a_hop() {
    let upstream = Upstream::saying("inside").await;
    let lines = "allow = [\"198.51.100.0/24\", \"2001:db8:7::/48\"]\ndeny = [\"198.51.100.66\"]\n\
        [[sites.\"a.test\".routes]]\npath = \"/public\"\nallow = [\"0.0.0.0/0\", \"::/0\"]\n\
        [[sites.\"a.test\".routes]]\npath = \"/staff\"\nallow = [\"192.0.2.0/24\"]\ndeny = []\n";
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await;
    let mut wire = edge.h1("a.test").await;
    let mut h2: RawH2 = edge.raw_h2("a.test").await;
    let mut served = 0;
    for (index, (client, target, status)) in [
        ("198.51.100.7", "/", 200),
        ("::ffff:198.51.100.7", "/", 200),
        ("198.51.100.7:4711", "/", 200),
        ("2001:db8:7::1", "/", 200),
        ("198.51.100.66", "/", 403),
        ("::ffff:198.51.100.66", "/", 403),
        ("203.0.113.9", "/", 403),
        ("2001:db8:8::1", "/", 403),
        // What a client claims stands further left.
        ("198.51.100.7, 203.0.113.9", "/", 403),
        ("203.0.113.9, 198.51.100.7", "/", 200),
        // Then the hop itself is the client.
        ("garbage", "/", 403),
        ("203.0.113.9", "/public", 200),
        ("198.51.100.66", "/public/x", 403),
        ("198.51.100.7", "/staff", 403),
        ("192.0.2.1", "/staff/x", 200),
        ("203.0.113.9", "/publicity", 403),
    ]
    .into_iter()
    .enumerate()
    {
        // One connection for all: behind a hop each request may be another client's.
        wire.send(from(client, target)).await;
        assert_eq!(wire.reply().await.status, status, "{client} {target}");
        let stream = u32::try_from(2 * index + 1).unwrap();
        assert_eq!(h2.request(stream, &fields(client, target)).await, Outcome::Status(status), "{client} {target}");
        served += if status == 200 { 2 } else { 0 };
        assert_eq!(upstream.seen().len(), served, "{client} {target}");
    }
    let record = edge.record_where("denied", |record| record["client"] == "198.51.100.66").await;
    assert_eq!(record["cause"], "the client is in \"deny\", by \"198.51.100.66\"", "{record}");
}

/// M-11: `"drop"` answers nothing: the connection is closed without a byte, over HTTP/2 the one stream is reset.
#[tokio::test]
async fn a_dropped_request_gets_not_a_byte() {
    let upstream = WebSocketUpstream::start().await;
    let lines = "deny = [\"203.0.113.0/24\"]\ndeny_with = \"drop\"";
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await;
    for request in [
        from("203.0.113.9", "/"),
        upgrade_request("a.test", "/", "X-Forwarded-For: 203.0.113.9\r\n"),
        "POST / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.9\r\nContent-Length: 3\r\n\r\n".to_owned(),
        // What came after it is not served either.
        from("203.0.113.9", "/") + &from("198.51.100.7", "/"),
    ] {
        let mut wire = edge.h1("a.test").await;
        wire.send(&request).await;
        assert!(wire.rest().await.is_empty(), "{request}");
    }
    // What was answered before stays answered.
    let mut wire = edge.h1("a.test").await;
    wire.send(from("198.51.100.7", "/") + &from("203.0.113.9", "/")).await;
    assert_eq!(wire.reply().await.status, 200);
    assert!(wire.rest().await.is_empty());
    let record = edge.record_where("a drop", |record| record["code"] == "E444-denied").await;
    assert_eq!((&record["status"], &record["by"]), (&444.into(), &"edge".into()), "{record}");
    assert_eq!(record["cause"], "the client is in \"deny\", by \"203.0.113.0/24\"", "{record}");
    assert!(record["aborted"].is_null(), "the client did not go away: {record}");
    assert_eq!(upstream.seen().len(), 1);
}

/// The same over HTTP/2, where one connection carries the clients of a whole hop: none of them is hit by another's
/// resets, however many there are.
#[tokio::test]
async fn a_dropped_stream_leaves_its_connection_alone() {
    let upstream = WebSocketUpstream::start().await;
    let lines = "deny = [\"203.0.113.0/24\"]\ndeny_with = \"drop\"";
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await;
    const CANCEL: u32 = 8;
    let mut raw = edge.raw_h2("a.test").await;
    // More than the HTTP/2 library bears of resets that are its peer's fault.
    for index in 0..1_200 {
        assert_eq!(raw.request(2 * index + 1, &fields("203.0.113.9", "/")).await, Outcome::Reset(CANCEL), "{index}");
    }
    assert_eq!(raw.request(2_401, &fields("198.51.100.7", "/")).await, Outcome::Status(200));
    // With a body on the way, and for a tunnel.
    raw.headers(2_403, &fields("203.0.113.9", "/"), false).await;
    raw.data(2_403, b"body", true).await;
    assert_eq!(raw.outcome(2_403).await, Outcome::Reset(CANCEL));
    let mut block = Vec::new();
    for (name, value) in [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/")] {
        block.extend(field(name.as_bytes(), value.as_bytes()));
    }
    for (name, value) in [(":authority", "a.test"), ("x-forwarded-for", "203.0.113.9"), ("sec-websocket-version", "13")]
    {
        block.extend(field(name.as_bytes(), value.as_bytes()));
    }
    raw.frame(1, 0x4, 2_405, &block).await;
    assert_eq!(raw.outcome(2_405).await, Outcome::Reset(CANCEL));
    assert_eq!(raw.request(2_407, &fields("198.51.100.7", "/")).await, Outcome::Status(200));
    assert_eq!(upstream.seen().len(), 2);
    let count = std::cell::Cell::new(0);
    let is_last = |record: &serde_json::Value| {
        count.set(count.get() + usize::from(record["code"] == "E444-denied" && record["http"] == "2"));
        count.get() == 1_202
    };
    edge.record_where("one for each", is_last).await;
}

/// The bytes of an answer over HTTP/1.1, without what differs from request to request: its ID and the date.
async fn bytes_of(edge: &Edge, request: &str) -> String {
    let mut wire = edge.h1("a.test").await;
    wire.send(request).await;
    let text = String::from_utf8(wire.rest().await).unwrap();
    let id = text.split("x-request-id: ").nth(1).and_then(|rest| rest.split("\r\n").next()).expect("an id").to_owned();
    let date = text.split("date: ").nth(1).and_then(|rest| rest.split("\r\n").next()).expect("a date").to_owned();
    text.replace(&id, "ID").replace(&date, "DATE")
}

/// M-11: `deny_with = 404` gives, byte for byte, the answer of a path that no route takes. The record tells the truth.
#[tokio::test]
async fn a_hidden_route_looks_as_if_it_were_not_there() {
    let dir = tempfile::TempDir::new().unwrap();
    let page = dir.path().join("404.html");
    std::fs::write(&page, "<h1>staff only</h1>").unwrap();
    let upstream = Upstream::saying("inside").await;
    let route = format!(
        "[[sites.\"a.test\".routes]]\npath = \"/staff\"\nupstream = \"{upstream}\"\nallow = [\"10.0.0.0/8\"]\n\
         deny_with = 404\nhsts = \"365d\"\nerrors = {{ 404 = {page:?} }}\nheaders.response.set = {{ x-staff = \"1\" }}\n"
    );
    let edge = Edge::start(&format!("[sites.\"a.test\"]\n{route}")).await;
    for lines in ["", "Accept: text/html\r\n", "Accept: application/json\r\n", "Content-Length: 3\r\n\r\nabc"] {
        for method in ["GET", "HEAD", "POST"] {
            let request =
                |path: &str| format!("{method} {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{lines}\r\n");
            let (hidden, ordinary) = (bytes_of(&edge, &request("/staff")).await, bytes_of(&edge, &request("/x")).await);
            assert_eq!(hidden, ordinary, "{method} {lines:?}");
            assert!(hidden.starts_with("HTTP/1.1 404 ") && hidden.contains("E404-route"), "{hidden}");
        }
    }
    let upgrade =
        |path: &str| upgrade_request("a.test", path, "").replace("Connection: Upgrade", "Connection: close, Upgrade");
    assert_eq!(bytes_of(&edge, &upgrade("/staff")).await, bytes_of(&edge, &upgrade("/x")).await);
    let mut h2 = edge.h2("a.test").await;
    let (hidden, ordinary) = (h2.get("a.test", "/staff").await, h2.get("a.test", "/x").await);
    let plain = |reply: &crate::harness::H2Reply| {
        let id = reply.header("x-request-id").expect("an id").to_owned();
        let fields = reply.headers.iter().filter(|(name, _)| *name != "date");
        let fields: Vec<_> =
            fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap().replace(&id, "ID"))).collect();
        (reply.status, fields, String::from_utf8_lossy(&reply.body).replace(&id, "ID"))
    };
    assert_eq!(plain(&hidden), plain(&ordinary));
    let record = edge.record_where("a hidden route", |record| record["code"] == "E404-denied").await;
    assert_eq!((&record["status"], &record["route"]), (&404.into(), &"/staff".into()), "{record}");
    assert_eq!(record["cause"], "the client is not in \"allow\"", "{record}");
    assert_eq!(upstream.connections(), 0);
}

/// A process at a unix listener has no address: it is in no network, and `unix` alone lets it in. Behind a hop that does
/// not say who asks, nobody is let in.
#[tokio::test]
async fn who_has_no_address_enters_by_name_only() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("http.sock");
    for (trust, allow, chain, status) in [
        ("", "allow = [\"unix\"]", "", 200),
        ("", "allow = [\"unix\"]", "X-Forwarded-For: 203.0.113.9\r\n", 200),
        ("", "allow = [\"0.0.0.0/0\", \"::/0\"]", "", 403),
        ("", "deny = [\"203.0.113.0/24\"]", "", 403),
        ("", "", "", 200),
        ("[trust]\nproxies = [\"unix\"]\n", "allow = [\"unix\"]", "", 403),
        ("[trust]\nproxies = [\"unix\"]\n", "allow = [\"unix\"]", "X-Forwarded-For: 203.0.113.9\r\n", 403),
        ("[trust]\nproxies = [\"unix\"]\n", "allow = [\"203.0.113.9\"]", "X-Forwarded-For: 203.0.113.9\r\n", 200),
        ("[trust]\nproxies = [\"unix\"]\n", "allow = [\"203.0.113.9\"]", "X-Forwarded-For: unknown\r\n", 403),
    ] {
        std::fs::remove_file(&path).ok();
        let _edge = Edge::start(&format!(
            "{trust}[listen]\nhttp = [\"unix:{}\"]\n[sites.\"localhost\"]\ntls = \"off\"\nrespond = {{ body = \"ok\" }}\n{allow}\n",
            path.display()
        ))
        .await;
        let stream =
            within("the edge accepts", tokio::net::UnixStream::connect(&path)).await.expect("the edge accepts");
        let mut wire = Wire::new(stream);
        wire.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{chain}\r\n")).await;
        assert_eq!(wire.reply().await.status, status, "{trust}{allow} {chain}");
    }
}

/// HOUSE.md A5: a reload changes who may enter, from the next request on, and says so.
#[tokio::test]
async fn a_reload_changes_who_may_enter() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut socket = edge.websocket("a.test", "/").await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    let lines = "allow = [\"loopback\"]\ndeny = [\"127.0.0.1\"]\ndeny_with = 404\nmaintenance = { file = \"switch\" }";
    assert!(edge.reload_with(&site_with("a.test", &upstream, lines)).await);
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 404);
    let said = edge.event("reloaded").await.to_string();
    assert!(said.contains("~1 site (a.test: allow, deny, deny_with, maintenance)"), "{said}");
    assert_eq!(socket.echo("still here").await, "still here", "a tunnel that stands stays");
}

/// The file of a switch, beside the configuration.
fn switch(edge: &Edge) -> PathBuf {
    edge.dir().join("switch")
}

/// Throws a switch and waits until the edge has said that it saw it.
async fn throw(edge: &Edge, file: &Path, is_on: bool, times: usize) {
    let event = if is_on { "maintenance_on" } else { "maintenance_off" };
    if is_on {
        std::fs::write(file, "").unwrap();
    } else {
        std::fs::remove_file(file).unwrap();
    }
    let count = std::cell::Cell::new(0);
    let is_that = |line: &serde_json::Value| {
        count.set(count.get() + usize::from(line["event"] == event));
        line["event"] == event && count.get() == times
    };
    let line = edge.log_where(event, is_that).await;
    assert!(line.to_string().contains("a.test"), "{line}");
}

/// N-33: while the file is there, everybody but `allow` gets 503, without a reload; tunnels that stand stay.
#[tokio::test]
async fn a_file_switches_maintenance_on_and_off() {
    let dir = tempfile::TempDir::new().unwrap();
    let page = dir.path().join("503.html");
    std::fs::write(&page, "<h1>back at noon</h1>").unwrap();
    let upstream = WebSocketUpstream::start().await;
    let lines = format!(
        "maintenance = {{ file = \"switch\", allow = [\"192.0.2.0/24\"] }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/v1\"\nmaintenance = {{ retry_after = \"90s\", allow = [] }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/page\"\nerrors = {{ 503 = {page:?} }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/health\"\nmaintenance = {{ file = \"other\" }}\n"
    );
    let config = format!("{TRUST}{}{}", site_with("a.test", &upstream, &lines), site("b.test", &upstream));
    let edge = Edge::start(&config).await;
    let mut socket = edge.websocket("a.test", "/").await;
    let get = async |client: &str, target: &str| edge.exchange("a.test", from(client, target)).await;
    assert_eq!(get("198.51.100.7", "/").await.status, 200);
    for round in 1..=2 {
        throw(&edge, &switch(&edge), true, round).await;
        let served = upstream.seen().len();
        let reply = get("198.51.100.7", "/").await;
        assert_eq!((reply.status, reply.headers.get("retry-after")), (503, Some("120")));
        assert!(reply.is_by_edge() && reply.text().contains("E503-maintenance"), "{}", reply.text());
        assert_eq!(get("192.0.2.7", "/v1").await.headers.get("retry-after"), Some("90"), "a route has its own");
        let reply = get("198.51.100.7", "/page").await;
        assert_eq!((reply.status, reply.text().as_str()), (503, "<h1>back at noon</h1>"));
        assert_eq!(edge.upgrade("a.test", "/", "").await.0.status, 503);
        let mut h2 = edge.h2("a.test").await;
        assert_eq!(h2.get("a.test", "/").await.status, 503);
        let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
        assert_eq!(within("a response", response).await.unwrap().status(), 503);
        assert_eq!(upstream.seen().len(), served);
        assert_eq!(socket.echo("still here").await, "still here");
        assert_eq!(get("192.0.2.7", "/").await.status, 200);
        assert_eq!(get("198.51.100.7", "/health").await.status, 200, "its switch is another one");
        assert_eq!(edge.get("b.test", "/").await.status, 200);
        throw(&edge, &switch(&edge), false, round).await;
        assert_eq!(get("198.51.100.7", "/v1").await.status, 200);
    }
    let record = edge.record_where("maintenance", |record| record["code"] == "E503-maintenance").await;
    assert_eq!((&record["status"], &record["by"]), (&503.into(), &"edge".into()), "{record}");
    let said = edge.stderr().matches("maintenance_on").count();
    assert_eq!(said, 2, "once each time:\n{}", edge.stderr());
}

/// A site under maintenance is so from its first request on, after a start as after a reload.
#[tokio::test]
async fn maintenance_outlives_starts_and_reloads() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("switch");
    std::fs::write(&file, "").unwrap();
    let upstream = Upstream::saying("inside").await;
    let config = |more: &str| site_with("a.test", &upstream, &format!("maintenance = {{ file = {file:?} }}\n{more}"));
    let edge = Edge::start(&config("")).await;
    assert_eq!(edge.get("a.test", "/").await.status, 503);
    // Requests all the time: none slips in between a new table and the first look for its switch.
    let mut wires = Vec::new();
    for _ in 0..8 {
        wires.push(edge.h1("a.test").await);
    }
    let reloads = async {
        for days in 1..=20 {
            assert!(edge.reload_with(&config(&format!("hsts = \"{days}d\""))).await);
        }
    };
    let requests = futures_util::future::join_all(wires.iter_mut().map(async |wire| {
        loop {
            wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            assert_eq!(wire.reply().await.status, 503);
        }
    }));
    tokio::select! {
        () = reloads => {}
        _ = requests => {}
    }
    edge.event("maintenance_on").await;
    assert_eq!(upstream.connections(), 0);
    assert!(edge.reload_with(&site("a.test", &upstream)).await);
    assert_eq!(edge.get("a.test", "/").await.text(), "inside");
    edge.event("maintenance_off").await;
    assert_eq!(edge.stderr().matches("maintenance_on").count(), 1, "{}", edge.stderr());
}
