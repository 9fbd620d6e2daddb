//! Records as they stand in the file: shape, order, masking, escaping, and what a reload changes.

use std::path::Path;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, StatusCode, Version};

use super::*;
use crate::addr::{ClientAddr, PeerAddr};
use crate::site::LogLevel;

fn policy(path: &Path, format: Option<LogFormat>) -> LogPolicy {
    LogPolicy {
        level: LogLevel::Info,
        format,
        access: AccessOutput::File(path.into()),
        redact_query: vec!["invite".into()],
        redact_headers: Vec::new(),
    }
}

/// What was written by the time that the writer has finished.
fn written(format: Option<LogFormat>, record: impl FnOnce(&AccessLog)) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.log");
    let (log, writer) = AccessLog::start(&policy(&path, format)).expect("a log");
    record(&log);
    writer.finish();
    std::fs::read_to_string(&path).expect("the log")
}

fn peer() -> PeerAddr {
    PeerAddr::from_socket("10.10.0.4:51112".parse().expect("an address"))
}

fn request<'a>(method: &'a Method, target: &'a str) -> RequestRecord<'a> {
    RequestRecord {
        id: "01936d2e-0000",
        site: Some("claw.example.com"),
        route: None,
        client: Some(ClientAddr::new("198.51.100.7".parse().expect("an address"))),
        peer: peer(),
        via: None,
        hops: 1,
        forwarded_in: Some("198.51.100.7"),
        method,
        target,
        host: None,
        ua: None,
        origin: None,
        referer: None,
        http: Version::HTTP_2,
        alpn: Some("h2"),
        tls: Some(TlsRecord { version: "1.3", cipher: "AES_128_GCM_SHA256", group: Some("X25519MLKEM768") }),
        sni: Some("claw.example.com"),
        status: StatusCode::OK,
        by: Responder::Upstream,
        auth: None,
        user: None,
        hooks: &[],
        code: None,
        cause: None,
        limit: None,
        upstream: Some("127.0.0.1:18789"),
        via_port: Some(40122),
        upgrade: false,
        websocket: &[],
        ms: Timings {
            held: None,
            head: Duration::from_micros(420),
            upstream: Some(Duration::from_micros(3_149)),
            total: Duration::from_secs(12),
        },
        bytes: Amounts { inbound: 0, outbound: 48_213 },
        aborted: None,
        generation: 7,
    }
}

#[test]
fn a_request_is_one_line_of_json_with_stable_names() {
    let text = written(None, |log| log.request(&request(&Method::GET, "/a?token=s3cret")));
    let (before, after) = text.split_once("~").expect("a masked token");
    let line = format!("{before}~{}", &after[6..]);
    let (time, rest) = line.split_once("\",").expect("a time first");
    assert!(time.starts_with("{\"t\":\"2") && time.ends_with('Z'), "{time}");
    let expected = concat!(
        "\"kind\":\"request\",\"id\":\"01936d2e-0000\",\"site\":\"claw.example.com\",\"client\":\"198.51.100.7\",",
        "\"peer\":\"10.10.0.4:51112\",\"hops\":1,\"forwarded_in\":\"198.51.100.7\",\"method\":\"GET\",\"path\":\"/a?token=~\",",
        "\"host\":null,\"ua\":null,\"origin\":null,\"http\":\"2\",\"alpn\":\"h2\",",
        "\"tls\":\"1.3 AES_128_GCM_SHA256 X25519MLKEM768\",\"sni\":\"claw.example.com\",\"status\":200,\"by\":\"upstream\",",
        "\"upstream\":\"127.0.0.1:18789\",\"via_port\":40122,\"ms\":{\"head\":0.4,\"upstream\":3.1,\"total\":12000.0},",
        "\"bytes\":{\"in\":0,\"out\":48213},\"gen\":7}\n",
    );
    assert_eq!(rest, expected);
}

#[test]
fn our_own_answer_says_who_and_why() {
    let text = written(None, |log| {
        log.request(&RequestRecord {
            client: None,
            tls: None,
            status: StatusCode::MISDIRECTED_REQUEST,
            by: Responder::Edge,
            auth: None,
            user: None,
            hooks: &[],
            code: Some("E421-unknown-host"),
            cause: Some("no site has this name"),
            upstream: None,
            via_port: None,
            upgrade: true,
            aborted: Some("client"),
            ms: Timings::default(),
            ..request(&Method::GET, "/")
        });
    });
    for part in [
        "\"client\":null,",
        "\"status\":421,\"by\":\"edge\",\"code\":\"E421-unknown-host\",\"cause\":\"no site has this name\",\"upgrade\":true,",
        "\"ms\":{\"head\":0.0,\"total\":0.0},",
        "\"aborted\":\"client\",\"gen\":7}",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("\"tls\"") && !text.contains("via_port"), "{text}");
}

fn tunnel(target: &str) -> TunnelRecord<'_> {
    TunnelRecord {
        id: "01936d2e-0001",
        site: Some("claw.example.com"),
        client: Some(ClientAddr::new("198.51.100.7".parse().expect("an address"))),
        peer: peer(),
        via: None,
        over: "h2",
        host: None,
        target,
        ua: None,
        origin: None,
        upstream: Some("127.0.0.1:18789"),
        via_port: Some(40122),
        opened: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_179_751_114),
        lasted: Duration::from_millis(86_211_432),
        frames: Amounts { inbound: 9120, outbound: 30_411 },
        bytes: Amounts { inbound: 812_331, outbound: 40_211_922 },
        ended_by: "upstream",
        how: "close 1012 \"service restart\"",
        idle: Duration::from_millis(12),
        generation: 5,
    }
}

#[test]
fn a_tunnel_and_a_connection_have_their_own_shape() {
    let text = written(None, |log| {
        log.tunnel(&tunnel("/ws?token=s3cret"));
        log.connection(&ConnectionRecord {
            peer: PeerAddr::Unix,
            via: None,
            answer: None,
            listener: "0.0.0.0:443",
            ended: "tls",
            why: "no certificate for \"old.example.com\"",
            sni: Some("old.example.com"),
            alpn: None,
            lasted: Duration::from_millis(8),
            bytes_in: 0,
        });
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    for part in [
        "\"kind\":\"tunnel\",\"id\":\"01936d2e-0001\",\"site\":\"claw.example.com\",\"client\":\"198.51.100.7\",",
        "\"over\":\"h2\",\"host\":null,\"path\":\"/ws?token=~",
        "\"opened\":\"2026-11-20T13:02:31.114Z\",\"secs\":86211.4,\"frames\":{\"in\":9120,\"out\":30411},",
        "\"ended_by\":\"upstream\",\"how\":\"close 1012 \\\"service restart\\\"\",\"idle_ms\":12,\"gen\":5}",
    ] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
    let (_, rest) = lines[1].split_once("\",").expect("a time first");
    assert_eq!(
        rest,
        concat!(
            "\"kind\":\"connection\",\"peer\":\"unix\",\"listener\":\"0.0.0.0:443\",\"ended\":\"tls\",",
            "\"why\":\"no certificate for \\\"old.example.com\\\"\",\"sni\":\"old.example.com\",\"ms\":8,\"bytes_in\":0}"
        )
    );
}

#[test]
fn each_record_names_both_ends_of_a_proxy() {
    let via = Some(PeerAddr::from_socket("10.10.0.9:40001".parse().expect("an address")));
    let text = written(None, |log| {
        log.request(&RequestRecord { via, ..request(&Method::GET, "/") });
        log.tunnel(&TunnelRecord { via: Some(PeerAddr::Unix), ..tunnel("/") });
        log.connection(&ConnectionRecord {
            peer: peer(),
            via,
            answer: None,
            listener: "0.0.0.0:443",
            ended: "closed",
            why: "",
            sni: None,
            alpn: None,
            lasted: Duration::ZERO,
            bytes_in: 28,
        });
    });
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("\"peer\":\"10.10.0.4:51112\",\"via\":\"10.10.0.9:40001\",\"hops\":1,"), "{text}");
    assert!(lines[1].contains("\"peer\":\"10.10.0.4:51112\",\"via\":\"unix\",\"over\":"), "{text}");
    assert!(lines[2].contains("\"peer\":\"10.10.0.4:51112\",\"via\":\"10.10.0.9:40001\",\"listener\":"), "{text}");
}

#[test]
fn a_clients_text_is_masked_bounded_and_harmless() {
    let nasty = "/\u{1b}[31m\u{9b}2J\u{202e}\u{7f}?x=1\n{\"kind\":\"request\"}";
    let ua = HeaderValue::from_bytes(&[b"a\"b\xff".to_vec(), vec![b'u'; 400]].concat()).expect("a value");
    let url = HeaderValue::from_static("https://u:s3cret@a.test/__openclaw__/cap/s3cret/x?y=s3cret");
    let long = format!("/{}", "p".repeat(5000));
    let record = |log: &AccessLog| {
        let base = request(&Method::GET, nasty);
        log.request(&RequestRecord { ua: Some(&ua), origin: Some(&url), referer: Some(&url), host: Some(&ua), ..base });
        log.request(&RequestRecord { target: &long, ..base });
        log.tunnel(&TunnelRecord { how: "close 1000 \"\u{1b}[0m\n\"", ..tunnel(nasty) });
        log.connection(&ConnectionRecord {
            peer: peer(),
            via: None,
            answer: None,
            listener: "l",
            ended: "http",
            why: "no target: \u{1b}\"/a?token=s3cret\"",
            sni: None,
            alpn: None,
            lasted: Duration::ZERO,
            bytes_in: 1,
        });
    };
    for format in [LogFormat::Json, LogFormat::Text] {
        let text = written(Some(format), record);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        let is_harmless = |c: char| c == '\n' || !redact::is_unsafe(c);
        assert!(text.chars().all(is_harmless), "{text:?}");
        assert!(text.lines().all(|line| line.len() < 8 << 10));
        if format == LogFormat::Json {
            for line in text.lines() {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON");
            }
            let path = serde_json::from_str::<serde_json::Value>(text.lines().next().expect("a line"));
            assert_eq!(path.expect("JSON")["path"], nasty, "escaped, not lost");
        }
    }
}

#[test]
fn a_line_for_people_is_short() {
    let text = written(Some(LogFormat::Text), |log| {
        log.request(&request(&Method::GET, "/a?token=s3cret"));
        log.request(&RequestRecord {
            by: Responder::Edge,
            auth: None,
            user: None,
            hooks: &[],
            code: Some("E502-refused"),
            cause: Some("nothing listens"),
            ..request(&Method::POST, "/b")
        });
    });
    let lines: Vec<&str> = text.lines().map(|line| &line[13..]).collect();
    assert!(lines[0].starts_with("200 GET -/a?token=~"), "{text}");
    assert!(lines[0].ends_with("  upstream 127.0.0.1:18789  12000 ms  48213 B  h2  198.51.100.7"), "{text}");
    assert_eq!(lines[1], "200 POST -/b  edge E502-refused  12000 ms  48213 B  h2  198.51.100.7  nothing listens");
}

#[test]
fn a_reload_changes_output_format_and_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let (first, second) = (directory.path().join("a.log"), directory.path().join("b.log"));
    let (log, writer) = AccessLog::start(&policy(&first, None)).expect("a log");
    log.request(&request(&Method::GET, "/one?invite=s3cret"));
    // A new output that cannot be opened changes nothing.
    assert!(log.reconfigure(&policy(&directory.path().join("no/such/place"), None)).is_err());
    assert!(log.mask_target("/?invite=x").contains('~'));
    let changed = LogPolicy { redact_query: Vec::new(), ..policy(&second, Some(LogFormat::Text)) };
    log.reconfigure(&changed).expect("a new output");
    log.request(&request(&Method::GET, "/two?invite=shown"));
    let off = LogPolicy { access: AccessOutput::Off, ..changed };
    log.reconfigure(&off).expect("nothing to open");
    assert!(!log.is_on());
    log.request(&request(&Method::GET, "/three"));
    writer.finish();
    let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
    assert!(read(&first).contains("/one?invite=~") && !read(&first).contains("two"), "{}", read(&first));
    assert!(read(&second).contains("/two?invite=shown") && !read(&second).contains('{'), "{}", read(&second));
    assert!(!read(&second).contains("three"));
    assert_eq!(log.dropped(), 0);
}
