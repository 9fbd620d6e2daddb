//! What the edge says about itself: metrics, status, health (issue 5, 8; N-09, N-17, N-23, F-22, M-26).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::{TcpStream, UnixDatagram, UnixStream};

use crate::harness::{
    Answer, Edge, Reply, Scripted, Upstream, WebSocketUpstream, Wire, run_in, site, site_with, within,
};

/// Where this edge can be asked.
async fn socket(edge: &Edge) -> PathBuf {
    let line = edge.log_where("an admin address", |line| line["event"] == "listening" && line["role"] == "admin").await;
    PathBuf::from(line["address"].as_str().unwrap().strip_prefix("unix:").expect("a unix socket"))
}

/// Asks the admin endpoint at its unix socket.
async fn ask(edge: &Edge, path: &str) -> Reply {
    let stream = UnixStream::connect(socket(edge).await).await.expect("it listens");
    let mut wire = Wire::new(stream);
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    wire.reply().await
}

/// The metrics of this moment, each line judged.
async fn scrape(edge: &Edge) -> Metrics {
    let reply = ask(edge, "/metrics").await;
    assert_eq!(reply.status, 200);
    let kind = reply.headers.get("content-type").unwrap();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    Metrics::parse(&reply.text())
}

/// Samples by their series, as written: `name{a="b"}`.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads OpenMetrics text and accepts nothing else.
    fn parse(text: &str) -> Self {
        let mut samples = BTreeMap::new();
        let (mut family, mut kind) = (String::new(), String::new());
        let mut families = Vec::new();
        let body = text.strip_suffix("# EOF\n").expect("it ends as it must");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (what, name, value) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                assert!(!value.is_empty(), "{line}");
                match what {
                    "HELP" => {
                        assert!(!families.contains(&name.to_owned()), "{name} stands twice");
                        families.push(name.to_owned());
                        name.clone_into(&mut family);
                    }
                    "TYPE" => {
                        assert!(["counter", "gauge", "histogram"].contains(&value), "{line}");
                        value.clone_into(&mut kind);
                    }
                    "UNIT" => assert!(name.ends_with(&format!("_{value}")), "a name ends in its unit: {line}"),
                    _ => panic!("{line}"),
                }
                assert_eq!(name, family, "{line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let name = series.split('{').next().unwrap();
            assert!(name.starts_with("tidegate_"), "{line}");
            let suffix = name.strip_prefix(&*family).unwrap_or_else(|| panic!("{line} is not of {family}"));
            let allowed: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                _ => &["_sum", "_count", "_bucket"],
            };
            assert!(allowed.contains(&suffix), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                judge_labels(labels, line);
            }
            let value: f64 = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} stands twice");
        }
        Self(samples)
    }

    /// One sample; absent is zero, because tallies begin with their first count.
    fn of(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }
}

/// `{a="b",c="d"}`, escaped as it must be.
fn judge_labels(labels: &str, line: &str) {
    let mut rest = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_else(|| panic!("{line}"));
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
        let end = value.find('"').unwrap_or_else(|| panic!("{line}"));
        assert!(!value[..end].contains('\\'), "no label of these tests needs an escape: {line}");
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// The records of requests, as soon as there are so many.
async fn after_requests(edge: &Edge, path: &str) {
    edge.record_where(path, |record| record["kind"] == "request" && record["path"] == path).await;
}

/// Issue 5, 8: every request is counted once, by who answered it; the upstream's own 429 is no refusal of ours.
#[tokio::test]
async fn counters_move_by_exactly_what_was_done() {
    let upstream = Upstream::answering(|seen| match seen.target.as_str() {
        "/busy" => Answer::status("429 Too Many Requests", "", "slow down"),
        _ => Answer::ok("", "12345"),
    })
    .await;
    let routes = "[[sites.\"a.test\".routes]]\npath = \"/api\"\n[[sites.\"a.test\".routes]]\npath = \"/shut\"\n\
                  deny = [\"0.0.0.0/0\", \"::/0\"]\n";
    let edge = Edge::start(&(site("a.test", &upstream) + routes)).await;
    let before = scrape(&edge).await;
    for target in ["/", "/api/1", "/api/2", "/busy", "/shut"] {
        edge.get("a.test", target).await;
        after_requests(&edge, target).await;
    }
    // Of no site: the name is unknown, after a handshake for another.
    edge.get_with("a.test", "/strange", "").await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET /lost HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 421);
    after_requests(&edge, "/lost").await;
    after_requests(&edge, "/strange").await;
    let after = scrape(&edge).await;
    let moved = |series: &str| after.of(series) - before.of(series);
    let requests = |route: &str, class: &str, by: &str| {
        moved(&format!("tidegate_requests_total{{site=\"a.test\",route=\"{route}\",class=\"{class}\",by=\"{by}\"}}"))
    };
    assert!((requests("", "2xx", "upstream") - 2.0).abs() < 1e-9);
    assert!((requests("/api", "2xx", "upstream") - 2.0).abs() < 1e-9, "N-23: by route");
    assert!((requests("", "4xx", "upstream") - 1.0).abs() < 1e-9);
    assert!((requests("/shut", "4xx", "edge") - 1.0).abs() < 1e-9);
    let exactly = [
        ("tidegate_requests_total{site=\"\",route=\"\",class=\"4xx\",by=\"edge\"}", 1.0),
        ("tidegate_refusals_total{site=\"a.test\",code=\"E403-denied\"}", 1.0),
        ("tidegate_refusals_total{site=\"\",code=\"E421-host\"}", 1.0),
        ("tidegate_too_many_requests_total{site=\"a.test\",by=\"upstream\"}", 1.0),
        ("tidegate_too_many_requests_total{site=\"a.test\",by=\"edge\"}", 0.0),
        ("tidegate_response_body_bytes_total{site=\"a.test\",route=\"/api\"}", 10.0),
        ("tidegate_request_duration_seconds_count{site=\"a.test\",phase=\"total\"}", 6.0),
        ("tidegate_request_duration_seconds_count{site=\"a.test\",phase=\"upstream\"}", 5.0),
        ("tidegate_request_duration_seconds_bucket{le=\"+Inf\",site=\"a.test\",phase=\"total\"}", 6.0),
        ("tidegate_tls_handshake_duration_seconds_count", 7.0),
    ];
    for (series, expected) in exactly {
        assert!((moved(series) - expected).abs() < 1e-9, "{series} moved by {}", moved(series));
    }
    let https = edge.https_addr();
    let closed = format!("tidegate_connections_total{{listener=\"{https}\",ended=\"closed\"}}");
    assert!(after.of(&closed) >= 5.0, "{closed}");
    assert!((after.of("tidegate_config_generation") - 1.0).abs() < 1e-9);
    assert!(after.0.keys().any(|series| series.starts_with("tidegate_tls_handshakes_total{version=\"1.3\"")), "N-22");
    let end = "tidegate_certificate_not_after_seconds{site=\"a.test\",source=\"local\"}";
    assert!(after.of(end) > after.of("tidegate_process_start_time_seconds"), "N-18");
}

/// N-16: what a tunnel was is counted when it has ended; while it is open it is shown with its bytes.
#[tokio::test]
async fn a_tunnel_is_counted_when_it_opens_and_when_it_ends() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut socket = edge.websocket("a.test", "/").await;
    socket.echo("hello").await;
    let open = scrape(&edge).await;
    assert!((open.of("tidegate_tunnels_open{site=\"a.test\"}") - 1.0).abs() < 1e-9);
    let status = ask(&edge, "/status").await.json();
    let tunnel = &status["open_tunnels"][0];
    assert_eq!((&tunnel["client"], &tunnel["site"]), (&"127.0.0.1".into(), &"a.test".into()), "{tunnel}");
    assert_eq!((&tunnel["generation"], &tunnel["bytes_in"], &tunnel["bytes_out"]), (&1.into(), &11.into(), &7.into()));
    let shown = run_in(edge.dir(), &["status", "-c", edge.config_path().to_str().unwrap()]);
    assert!(shown.stdout.contains("tunnels (oldest first)\n  127.0.0.1  a.test  "), "{}", shown.stdout);
    socket.close(1000, "done").await;
    edge.record("tunnel").await;
    let ended = scrape(&edge).await;
    for (series, expected) in [
        ("tidegate_tunnels_open{site=\"a.test\"}", 0.0),
        ("tidegate_tunnels_opened_total{site=\"a.test\"}", 1.0),
        ("tidegate_tunnels_ended_total{site=\"a.test\",ended_by=\"client\",how=\"close\"}", 1.0),
        ("tidegate_tunnel_duration_seconds_bucket{le=\"1800.0\",site=\"a.test\",ended_by=\"client\"}", 1.0),
        ("tidegate_tunnel_silence_seconds_count{site=\"a.test\",ended_by=\"client\"}", 1.0),
    ] {
        assert!((ended.of(series) - expected).abs() < 1e-9, "{series} is {}", ended.of(series));
    }
    assert!(ask(&edge, "/status").await.json()["open_tunnels"].as_array().unwrap().is_empty());
}

/// Issue 5, 8: label values come from the configuration only. Whatever clients send, no series is added.
#[tokio::test]
async fn clients_cannot_add_a_series() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    // Once of each kind, so that every tally has begun.
    let mut wire = edge.h1("a.test").await;
    for at in 0..20 {
        one_of_each(&edge, &mut wire, at).await;
    }
    let before: Vec<String> = scrape(&edge).await.0.into_keys().collect();
    for at in 20..1020 {
        one_of_each(&edge, &mut wire, at).await;
    }
    let after: Vec<String> = scrape(&edge).await.0.into_keys().collect();
    assert_eq!(before, after);
    assert!(!after.iter().any(|series| series.contains("example.com")), "no name of a client's");
}

/// A random method, path and host on one connection, and now and then a handshake for a random name.
async fn one_of_each(edge: &Edge, wire: &mut Wire, at: usize) {
    wire.send(format!("M{at} /p{at} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
    assert_eq!(wire.reply().await.status, 200);
    if at.is_multiple_of(10) {
        let mut plain = edge.plain().await;
        plain.send(format!("GET /p{at} HTTP/1.1\r\nHost: host{at}.example.com\r\n\r\n")).await;
        assert_eq!(plain.reply().await.status, 421);
        plain.rest().await;
        let config = crate::harness::ClientTls::alpn(&["http/1.1"]).config(edge);
        edge.handshake(&format!("host{at}.example.com"), config).await.expect_err("no site has this name");
    }
}

/// How full an upstream with a bound is, and who found no place.
#[tokio::test]
async fn the_queue_before_an_upstream_is_seen() {
    let server = Scripted::bind().await;
    let bound = "max_in_flight = 1\nqueue = { size = 1 }";
    let edge = Edge::start(&format!("[upstreams.u]\nservers = [\"{server}\"]\n{bound}\n{}", site("a.test", "u"))).await;
    let mut first = edge.h1("a.test").await;
    first.send("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = server.request().await;
    let mut second = edge.h2("a.test").await;
    let request = http::Request::get("https://a.test/2").body(()).unwrap();
    let (answer, _) = second.open(request, true).await.unwrap();
    // On one connection they begin in order: the one before it waits.
    assert_eq!(second.get("a.test", "/3").await.status, 503);
    let upstream = |metrics: &Metrics| {
        let names = ["max_in_flight", "requests_in_flight", "queue_length", "queue_refusals_total"];
        names.map(|name| metrics.of(&format!("tidegate_upstream_{name}{{upstream=\"u\"}}")))
    };
    assert_eq!(upstream(&scrape(&edge).await), [1.0, 1.0, 1.0, 1.0]);
    let told = serde_json::json!([{ "upstream": "u", "in_flight": 1, "max_in_flight": 1, "waiting": 1, "refused": 1 }]);
    assert_eq!(ask(&edge, "/status").await.json()["queues"], told);
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let (mut far, _) = server.request().await;
    assert_eq!(upstream(&scrape(&edge).await), [1.0, 1.0, 0.0, 1.0]);
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(within("an answer", answer).await.unwrap().status(), 200);
}

/// Issue 5, 8: the socket is the service's user's and group's, and says nothing to others.
#[tokio::test]
async fn the_admin_socket_is_for_user_and_group() {
    let edge = Edge::start(&site("a.test", "127.0.0.1:1")).await;
    let path = socket(&edge).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(ask(&edge, "/nothing").await.status, 404);
    let mut wire = Wire::new(UnixStream::connect(&path).await.unwrap());
    wire.send("POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.headers.get("allow")), (405, Some("GET, HEAD")));
    let mut wire = Wire::new(UnixStream::connect(&path).await.unwrap());
    wire.send("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(wire.reply_to("HEAD").await.status, 200);
    let mut edge = edge;
    assert_eq!(edge.stop().await.code(), Some(0));
    assert!(!path.exists(), "the socket goes with the process");
}

/// Asks at a TCP address, under a Host of its own.
async fn ask_tcp(address: &str, path: &str, host: &str) -> u16 {
    let mut wire = Wire::new(TcpStream::connect(address).await.expect("it listens"));
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    wire.reply().await.status
}

/// Issue 5, 8: on loopback a page of a browser gets nothing by a name of its own (DNS rebinding), and an address for
/// Prometheus serves metrics alone.
#[tokio::test]
async fn a_rebound_name_gets_nothing_and_prometheus_gets_metrics_alone() {
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\nmetrics = [\"127.0.0.1:0\"]\n";
    let edge = Edge::start(&(admin.to_owned() + &site("a.test", "127.0.0.1:1"))).await;
    let address = |role: &'static str| {
        let edge = &edge;
        async move {
            let line = edge.log_where(role, |line| line["event"] == "listening" && line["role"] == role).await;
            line["address"].as_str().unwrap().to_owned()
        }
    };
    let (admin, metrics) = (address("admin").await, address("metrics").await);
    assert_eq!(ask_tcp(&admin, "/status", &admin).await, 200);
    assert_eq!(ask_tcp(&admin, "/status", "localhost").await, 200);
    assert_eq!(ask_tcp(&admin, "/status", "rebound.example.com").await, 421);
    assert_eq!(ask_tcp(&metrics, "/metrics", &metrics).await, 200);
    assert_eq!(ask_tcp(&metrics, "/status", &metrics).await, 404);
    let shown = run_in(edge.dir(), &["status", "--admin", &admin, "--json"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let status: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(status["generation"], 1);
}

/// N-09: a load balancer asks by any name, on any listener, and gets the edge's own word; sites have the path no more.
#[tokio::test]
async fn the_health_path_answers_whatever_the_host() {
    let upstream = Upstream::saying("from the gateway").await;
    let fragment = format!(
        "[listen]\nhealth = \"/.well-known/tidegate/health\"\n[process]\ngrace = \"5s\"\n{}",
        site("a.test", &upstream)
    );
    let edge = Edge::start(&fragment).await;
    for host in ["a.test", "127.0.0.1", "[::1]:80", "anything.example.com"] {
        let mut wire = edge.plain().await;
        wire.send(format!("GET /.well-known/tidegate/health HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok\n"), "{host}");
        assert_eq!(reply.headers.get("cache-control"), Some("no-store"));
        assert!(reply.is_by_edge());
        let record = edge.record_where("a health check", |record| record["host"] == host).await;
        assert_eq!((&record["by"], &record["status"]), (&"edge".into(), &200.into()), "{record}");
    }
    let mut wire = edge.plain().await;
    wire.send("GET /.well-known/tidegate/health HTTP/1.0\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200, "no name at all");
    assert_eq!(edge.get("a.test", "/.well-known/tidegate/health").await.text(), "ok\n");
    assert_eq!(edge.get("a.test", "/.well-known/tidegate/health/x").await.text(), "from the gateway");
    assert_eq!(edge.get("a.test", "/healthz").await.text(), "from the gateway", "the gateway's own stays its own");
}

/// N-09: while the edge drains, the load balancer is told so, and so is whoever asks the admin endpoint.
#[tokio::test]
async fn health_is_503_while_the_edge_drains() {
    let upstream = Scripted::bind().await;
    let fragment = format!("[listen]\nhealth = \"/up\"\n{}", site("a.test", &upstream));
    let mut edge = Edge::start(&fragment).await;
    assert_eq!(ask(&edge, "/healthz").await.status, 200);
    assert_eq!(ask(&edge, "/readyz").await.status, 200);
    // A request in flight keeps the process; a stream beside it on the same connection asks.
    let mut h2 = edge.h2("a.test").await;
    let (response, _send) = h2.open(http::Request::get("https://a.test/slow").body(()).unwrap(), true).await.unwrap();
    let (mut far, _) = upstream.request().await;
    let mut early = edge.plain().await;
    early.send("GET /up HTTP/1.1\r\nHost: 127.0.0.1\r\n").await;
    edge.signal(Signal::SIGTERM);
    edge.event("draining").await;
    assert_eq!(ask(&edge, "/healthz").await.status, 503);
    assert_eq!(ask(&edge, "/readyz").await.status, 503);
    early.send("\r\n").await;
    let reply = early.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (503, "draining\n"));
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(response.await.unwrap().status(), 200);
    drop(h2);
    assert_eq!(edge.exit().await.code(), Some(0));
}

/// What health checks find is in the status before any request has met it.
#[tokio::test]
async fn what_a_health_check_finds_is_in_the_status() {
    let upstream = Upstream::answering(|_| Answer::status("503 Service Unavailable", "", "")).await;
    let health = "health = { path = \"/startupz\", every = \"50ms\", failures = 1 }";
    let edge = Edge::start(&site_with("a.test", &upstream, health)).await;
    edge.event("unhealthy").await;
    let status = ask(&edge, "/status").await.json();
    let found = &status["upstreams"][0];
    assert_eq!(found["connected"], false, "{found}");
    assert!(found["error"].as_str().unwrap().contains("GET /startupz is answered with 503"), "{found}");
    assert_eq!(ask(&edge, "/readyz").await.status, 503);
}

/// F-22, M-26: named checks, and for a gateway that does not answer an error that says so.
#[tokio::test]
async fn the_status_says_what_is_wrong_with_an_upstream() {
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let edge = Edge::start(&site("a.test", dead)).await;
    let status = ask(&edge, "/status").await.json();
    assert_eq!(status["upstreams"][0]["connected"], Value::Null, "nothing is known yet");
    assert_eq!(edge.get("a.test", "/").await.status, 502);
    let status = ask(&edge, "/status").await.json();
    let upstream = &status["upstreams"][0];
    assert_eq!(upstream["connected"], false);
    assert!(upstream["error"].as_str().unwrap().contains(&dead.to_string()), "{upstream}");
    assert_eq!(upstream["failures"]["refused"], 1);
    assert_eq!(status["checks"]["serving"], true);
    assert_eq!(status["checks"][format!("upstream {dead}")], false);
    assert_eq!((&status["is_fine"], &status["sites"][0]["is_up"]), (&false.into(), &false.into()));
    assert_eq!(ask(&edge, "/readyz").await.status, 503, "apart from liveness");
    assert_eq!(ask(&edge, "/healthz").await.status, 200);
    let metrics = scrape(&edge).await;
    let labels = format!("upstream=\"{dead}\",endpoint=\"{dead}\"");
    assert!(metrics.of(&format!("tidegate_upstream_up{{{labels}}}")).abs() < 1e-9);
    let refused = format!("tidegate_upstream_failures_total{{{labels},failure=\"refused\"}}");
    assert!((metrics.of(&refused) - 1.0).abs() < 1e-9);
    let shown = run_in(edge.dir(), &["status", "-c", edge.config_path().to_str().unwrap()]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(lines[0].starts_with("tidegate 0.1.0   up ") && lines[0].contains("   generation 1   "), "{}", lines[0]);
    assert!(lines[1].starts_with("site    certificate"), "{}", lines[1]);
    assert!(
        lines[2].starts_with("a.test  ") && lines[2].contains("(local)") && lines[2].contains("DOWN"),
        "{}",
        lines[2]
    );
    assert!(shown.stdout.contains("last reload") || shown.stdout.contains("no reload since the start"));
    assert!(shown.stdout.contains(&format!("warn  upstream {dead}: ")), "{}", shown.stdout);
}

/// CONFIG.md 4: a failed reload is visible in status and metric, with its report, until one succeeds.
#[tokio::test]
async fn a_failed_reload_stays_visible() {
    let runtime = tempfile::tempdir().unwrap();
    let notify = runtime.path().join("notify.sock");
    let manager = UnixDatagram::bind(&notify).unwrap();
    let env = [("NOTIFY_SOCKET", notify.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let edge = Edge::start_with(&site("a.test", "127.0.0.1:1"), &env).await;
    edge.rewrite_raw("[listen]\nhtpp = []\n");
    assert!(!edge.reload().await);
    // Not only in the answer to the reload, but with each sign of life that follows.
    let is_told = |text: &str| text.contains("WATCHDOG=1") && text.contains("STATUS=reload failed (");
    told(&manager, "the status of a failed reload", is_told).await;
    let metrics = scrape(&edge).await;
    assert!(metrics.of("tidegate_config_last_reload_ok").abs() < 1e-9);
    assert!((metrics.of("tidegate_config_reloads_total{result=\"failed\"}") - 1.0).abs() < 1e-9);
    let status = ask(&edge, "/status").await.json();
    assert_eq!((&status["checks"]["configuration"], &status["generation"]), (&false.into(), &1.into()));
    let report = status["reloads"][0]["report"].as_str().unwrap();
    assert!(report.contains("C021") && report.contains("htpp"), "{report}");
    // The file is broken: the edge is found all the same.
    let shown = run_in(edge.dir(), &["status", "--admin", socket(&edge).await.to_str().unwrap()]);
    assert!(shown.stdout.contains("last reload FAILED") && shown.stdout.contains("C021"), "{}", shown.stdout);
    assert!(edge.reload_with(&site("a.test", "127.0.0.1:2")).await);
    let is_told = |text: &str| text.contains("WATCHDOG=1") && text.contains("STATUS=generation 2, ");
    told(&manager, "the status of a reload that succeeded", is_told).await;
    let status = ask(&edge, "/status").await.json();
    assert_eq!((&status["checks"]["configuration"], &status["generation"]), (&true.into(), &2.into()));
    assert_eq!(status["reloads"].as_array().unwrap().len(), 2);
    assert!((scrape(&edge).await.of("tidegate_config_last_reload_ok") - 1.0).abs() < 1e-9);
}

/// Waits until the service manager has heard this.
async fn told(manager: &UnixDatagram, what: &str, is_it: impl Fn(&str) -> bool) {
    let heard = async {
        let mut buffer = [0; 4096];
        loop {
            let length = manager.recv(&mut buffer).await.unwrap();
            if is_it(&String::from_utf8_lossy(&buffer[..length])) {
                return;
            }
        }
    };
    within(what, heard).await;
}

/// CONFIG.md 4: an address that is said and cannot be opened is a reason not to start, with its name and status 1.
#[test]
fn an_admin_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "storage = {:?}\n[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = []\n[admin]\nmetrics = [\"{address}\"]\n{}",
        dir.path().join("storage").to_str().unwrap(),
        site_with("a.test", "127.0.0.1:1", "tls = \"off\"")
    );
    std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    let run = run_in(dir.path(), &["run"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains(&address.to_string()), "{run:?}");
}

/// Issue 5, 8: a reload moves the endpoint; what cannot be opened is a fault of the reload and changes nothing.
#[tokio::test]
async fn a_reload_moves_the_admin_endpoint() {
    let edge = Edge::start(&site("a.test", "127.0.0.1:1")).await;
    let first = socket(&edge).await;
    let moved = edge.dir().join("moved.sock");
    let admin =
        |path: &Path| format!("[admin]\nlisten = \"unix:{}\"\n{}", path.display(), site("a.test", "127.0.0.1:1"));
    assert!(!edge.reload_with(&admin(Path::new("/nowhere/at/all.sock"))).await);
    UnixStream::connect(&first).await.expect("nothing has changed");
    assert!(edge.reload_with(&admin(&moved)).await);
    UnixStream::connect(&moved).await.expect("it moved");
    UnixStream::connect(&first).await.expect_err("and is not where it was");
    assert!(edge.reload_with(&("[admin]\nlisten = \"off\"\n".to_owned() + &site("a.test", "127.0.0.1:1"))).await);
    assert!(!moved.exists());
    let shown = run_in(edge.dir(), &["status", "-c", edge.config_path().to_str().unwrap()]);
    assert_eq!(shown.code, Some(1));
    assert!(shown.stderr.contains("admin.listen = \"off\""), "{}", shown.stderr);
}

/// Issue 5, 8: without a place for the socket the edge serves, and says that nobody can ask it.
#[tokio::test]
async fn the_usual_place_is_no_reason_not_to_start() {
    let upstream = Upstream::saying("ok").await;
    let fragment = format!("storage = \"/proc/nowhere\"\n{}", site_with("a.test", &upstream, "tls = \"off\""));
    let edge = Edge::start_with(&fragment, &[("RUNTIME_DIRECTORY", "/proc/nowhere")]).await;
    edge.event("admin").await;
    let mut wire = edge.plain().await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    let shown = run_in(edge.dir(), &["status", "-c", edge.config_path().to_str().unwrap()]);
    assert_eq!(shown.code, Some(1));
    assert!(shown.stderr.contains("no tidegate answers at"), "{}", shown.stderr);
}

/// Issue 5, 8: the service manager's directory is the usual place where there is one.
#[tokio::test]
async fn a_service_has_its_socket_in_its_runtime_directory() {
    let runtime = tempfile::tempdir().unwrap();
    let directory = runtime.path().to_str().unwrap();
    let edge = Edge::start_with(&site("a.test", "127.0.0.1:1"), &[("RUNTIME_DIRECTORY", directory)]).await;
    assert_eq!(socket(&edge).await, runtime.path().join("admin.sock"));
    assert_eq!(ask(&edge, "/healthz").await.status, 200);
}
