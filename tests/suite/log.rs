//! Records: one a request, one a tunnel, one for every connection without either; and no secrets anywhere.

use nix::sys::signal::Signal;

use crate::harness::{Answer, Edge, Upstream, WebSocketUpstream, site, site_with, within};

/// M-10, N-22, N-24: a request's record has all its fields, with the port by which it went upstream.
#[tokio::test]
async fn a_request_leaves_one_whole_record() {
    let upstream = Upstream::saying("hello").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send(
        "POST /p/a%3Ab?x=1 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: node\r\nOrigin: https://o.example.com\r\n\
         Referer: https://r.example.com/p?token=abc\r\nContent-Length: 3\r\n\r\nabc",
    )
    .await;
    let reply = wire.reply().await;
    let record = edge.record("request").await;
    let seen = upstream.only().await;
    let expected = [
        ("site", "a.test"),
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("http", "1.1"),
        ("by", "upstream"),
        ("ua", "node"),
        ("origin", "https://o.example.com"),
        ("sni", "a.test"),
        ("alpn", "http/1.1"),
    ];
    for (field, value) in expected {
        assert_eq!(record[field], value, "{field} in {record}");
    }
    assert_eq!(record["id"], reply.headers.get("x-request-id").unwrap());
    assert_eq!(record["upstream"], upstream.to_string());
    assert_eq!(record["via_port"], seen.port, "the gateway's log names this port");
    assert_eq!((&record["status"], &record["hops"], &record["gen"]), (&200.into(), &0.into(), &1.into()));
    assert_eq!((&record["bytes"]["in"], &record["bytes"]["out"]), (&3.into(), &5.into()));
    for part in ["head", "upstream", "total"] {
        assert!(record["ms"][part].as_f64().is_some_and(|ms| ms >= 0.0), "ms.{part} in {record}");
    }
    assert!(path_of(&record).starts_with("/p/a%3Ab"), "{record}");
    assert!(record["t"].as_str().unwrap().ends_with('Z'), "{record}");
    assert!(!record.to_string().contains("token=abc"), "the Referer's query is masked: {record}");
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    wire.reply().await;
    edge.record_where("the second", |record| record["method"] == "GET").await;
    assert_eq!(edge.records().len(), 2, "one record a request, and none for the connection");
}

/// The path of a record, query included.
fn path_of(record: &serde_json::Value) -> String {
    record["path"].as_str().expect("a path").to_owned()
}

/// Issue 2, 9: secrets in queries, paths and headers reach no output, by default.
#[tokio::test]
async fn secrets_reach_no_output() {
    const SECRET: &str = "hunter2hunter2";
    let upstream = WebSocketUpstream::start().await;
    let mut edge = Edge::start(&format!(
        "[log]\nlevel = \"debug\"\nredact = {{ query = [\"pin\"], headers = [\"x-pin\"] }}\n{}",
        site("a.test", &upstream)
    ))
    .await;
    let names = [
        "token",
        "password",
        "auth",
        "code",
        "key",
        "secret",
        "ticket",
        "mediaTicket",
        "access_token",
        "api_key",
        "apikey",
        "id_token",
        "signature",
        "TOKEN",
        "pin",
    ];
    for name in names {
        edge.get("a.test", &format!("/x?a=1&{name}={SECRET}&b=2")).await;
    }
    edge.get("a.test", &format!("/x?%74oken={SECRET}")).await;
    edge.get("a.test", &format!("/__openclaw__/cap/{SECRET}/index.html")).await;
    edge.get("a.test", &format!("/share/session?token={SECRET}")).await;
    let headers = format!(
        "Authorization: Bearer {SECRET}\r\nCookie: s={SECRET}\r\nX-OpenClaw-Token: {SECRET}\r\nX-Pin: {SECRET}\r\n\
         Referer: https://a.test/?token={SECRET}\r\nProxy-Authorization: Basic {SECRET}\r\n"
    );
    edge.get_with("a.test", "/y", &headers).await;
    edge.websocket("a.test", &format!("/?token={SECRET}")).await.close(1000, "").await;
    let mut plain = edge.plain().await;
    plain.send(format!("GET /?token={SECRET} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
    plain.reply().await;
    // Refused requests are recorded too, and their targets masked as well.
    edge.exchange("a.test", format!("GET /?token={SECRET} HTTP/1.1\r\nHost: unknown.test\r\n\r\n")).await;
    edge.exchange("a.test", format!("GET /?token={SECRET} HTTP/1.1\r\nHost: a.test\r\nContent-Length: x\r\n\r\n"))
        .await;
    edge.record("tunnel").await;
    assert!(edge.stop().await.success());
    let all = edge.stdout() + &edge.stderr();
    let leak = all.lines().find(|line| line.contains(SECRET));
    assert_eq!(leak, None);
    let masked: Vec<String> = edge.records().iter().filter(|record| record["kind"] == "request").map(path_of).collect();
    assert!(masked[0].contains("a=1") && masked[0].contains("token=~") && masked[0].contains("b=2"), "{}", masked[0]);
    assert_eq!(upstream.seen()[0].target, format!("/x?a=1&token={SECRET}&b=2"), "the upstream gets it unchanged");
    assert_eq!(
        upstream.seen().iter().find(|seen| seen.target == "/y").unwrap().header("authorization"),
        Some(&*format!("Bearer {SECRET}"))
    );
}

/// Issue 2, 9: masking is by a keyed hash: equal secrets look equal, within one process.
#[tokio::test]
async fn equal_secrets_look_equal() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for (target, method) in [("/?token=same", "GET"), ("/?token=same", "PUT"), ("/?token=other", "POST")] {
        edge.exchange("a.test", format!("{method} {target} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n"))
            .await;
    }
    let mut paths = Vec::new();
    for method in ["GET", "PUT", "POST"] {
        paths.push(path_of(&edge.record_where("this method's", |record| record["method"] == method).await));
    }
    assert_eq!(paths[0], paths[1]);
    assert_ne!(paths[0], paths[2]);
}

/// A client cannot break a record or forge one: what it writes stays one JSON string.
#[tokio::test]
async fn a_record_cannot_be_forged() {
    let upstream = Upstream::echo().await;
    let mut edge = Edge::start(&site("a.test", &upstream)).await;
    edge.get_with("a.test", "/x", "User-Agent: a\"}{\"kind\":\"request\",\"status\":200,\t\r\nOrigin: \\\\n\"\r\n")
        .await;
    edge.get_with("a.test", "/y", &format!("User-Agent: {}\r\n", "u".repeat(20_000))).await;
    edge.record_where("the second", |record| record["path"] == "/y").await;
    assert!(edge.stop().await.success());
    for line in edge.stdout().lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("each line is one JSON object");
        assert_eq!(value["kind"], "request");
        assert!(value["site"] == "a.test" || value["status"] == 400, "{line}");
        assert!(!line.contains('\u{1b}') && line.len() < 16_000, "long values are cut");
    }
}

/// CONFIG.md 3: the access log may be a file; SIGUSR1 reopens it, and no record is lost.
#[tokio::test]
async fn the_log_file_is_reopened_on_usr1() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let (file, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let edge = Edge::start(&format!("[log]\naccess = {file:?}\n{}", site("a.test", &upstream))).await;
    edge.get("a.test", "/before").await;
    wait_for(&file, "/before").await;
    std::fs::rename(&file, &moved).unwrap();
    edge.signal(Signal::SIGUSR1);
    within("the file is made anew", async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    edge.get("a.test", "/after").await;
    wait_for(&file, "/after").await;
    let (old, new) = (std::fs::read_to_string(&moved).unwrap(), std::fs::read_to_string(&file).unwrap());
    assert!(old.contains("/before") && !old.contains("/after") && !new.contains("/before"));
    assert!(edge.stdout().is_empty(), "nothing goes to stdout");
}

async fn wait_for(file: &std::path::Path, text: &str) {
    within(&format!("{text} is in {}", file.display()), async {
        while !std::fs::read_to_string(file).unwrap_or_default().contains(text) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// CONFIG.md 3: `access = "off"` writes none, and text is for people.
#[tokio::test]
async fn records_may_be_off_or_text() {
    let upstream = Upstream::echo().await;
    let mut edge = Edge::start(&format!("[log]\naccess = \"off\"\n{}", site("a.test", &upstream))).await;
    edge.get("a.test", "/").await;
    assert!(edge.stop().await.success());
    assert_eq!(edge.stdout(), "");
}

/// Issue 2, 9: a full pipe never slows a request: records are dropped and counted.
#[tokio::test]
async fn a_reader_that_does_not_read_slows_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let pipe = dir.path().join("access.fifo");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Held open for reading and writing, and never read: it fills after 64 KiB.
    let held = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&format!("[log]\naccess = {pipe:?}\n{}", site("a.test", &upstream))).await;
    let mut wire = edge.h1("a.test").await;
    let headers = format!("User-Agent: {}\r\n", "u".repeat(1000));
    for _ in 0..500 {
        wire.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n")).await;
        assert_eq!(wire.reply().await.status, 200);
    }
    drop(held);
}

/// N-09, N-23: a record names its site and its route, so that logs can be filtered by family.
#[tokio::test]
async fn a_record_names_site_and_route() {
    let upstream = Upstream::answering(|_| Answer::ok("", "x")).await;
    let edge = Edge::start(
        &(site_with("a.test", &upstream, "[[sites.\"a.test\".routes]]\npath = \"/v1\"\nlimits = { body = \"1MiB\" }")
            + &site("b.test", &upstream)),
    )
    .await;
    edge.get("a.test", "/v1/models").await;
    edge.get("b.test", "/").await;
    let record = edge.record_where("of the route", |record| record["site"] == "a.test").await;
    assert_eq!(record["route"], "/v1", "{record}");
    edge.record_where("of the other site", |record| record["site"] == "b.test").await;
}
