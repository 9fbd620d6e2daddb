//! Settings whose promise no other file proves: networks from files, what `trust.strip` leaves to a hop,
//! names re-resolved, least-conn, the idle pool, unknown SNI, error pages, HSTS, the watchdog, log levels.

use tokio::net::{TcpListener, UnixDatagram};

use crate::harness::{
    Answer, ClientTls, Edge, Scripted, Upstream, WebSocketUpstream, Wire, run_in, site, site_with, upgrade_request,
    within,
};

/// CONFIG.md 3: a list of networks may stand in a file of its own, with comments.
#[tokio::test]
async fn networks_may_stand_in_a_file() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("hops.txt");
    std::fs::write(&file, "# the balancers\n198.51.100.0/24\n\n127.0.0.1   # this one\n").unwrap();
    let config = format!(
        "[networks]\nhops = {{ file = {file:?} }}\n[trust]\nproxies = [\"hops\"]\n{}",
        site("a.test", &upstream)
    );
    let edge = Edge::start(&config).await;
    edge.get_with("a.test", "/", "X-Forwarded-For: 203.0.113.77, 198.51.100.4\r\n").await;
    assert_eq!(upstream.request(0).await.header("x-forwarded-for"), Some("203.0.113.77"));
    // M-10: the chain as it came in, beside the client that was made of it.
    let record = edge.record("request").await;
    assert_eq!((&record["client"], &record["hops"]), (&"203.0.113.77".into(), &2.into()), "{record}");
    assert_eq!(record["forwarded_in"], "203.0.113.77, 198.51.100.4", "{record}");
    std::fs::write(&file, "198.51.100.0/33\n").unwrap();
    assert!(!edge.reload().await, "a line that is no network is a fault");
    assert!(edge.stderr().contains("hops.txt"), "{}", edge.stderr());
}

/// CONFIG.md 3: what `trust.strip` names is taken from a trusted hop, and from nobody else; with `-` at its end, all of a family.
#[tokio::test]
async fn a_stripped_header_passes_from_a_trusted_hop_only() {
    let upstream = Upstream::echo().await;
    let lines = "X-Company-User: alice\r\nX-Company-Groups: ops\r\nX-Companyname: 1\r\n";
    for (proxies, passes) in [("10.0.0.0/8", false), ("loopback", true)] {
        let before = upstream.seen().len();
        let trust = format!("[trust]\nproxies = [\"{proxies}\"]\nstrip = [\"x-company-\"]\n");
        let edge = Edge::start(&(trust + &site("a.test", &upstream))).await;
        edge.get_with("a.test", "/", &format!("{lines}X-Forwarded-For: 203.0.113.77\r\n")).await;
        let seen = &upstream.seen()[before];
        assert_eq!(seen.headers.has("x-company-user"), passes, "{:?}", seen.headers);
        assert_eq!(seen.headers.has("x-company-groups"), passes, "{:?}", seen.headers);
        assert!(seen.headers.has("x-companyname"), "{:?}", seen.headers);
    }
}

/// Runs the edge with this hosts file in place of the machine's, in a mount namespace of its own; `None` where the
/// machine does not let one have that.
async fn start_with_hosts(hosts: &std::path::Path, config: &str) -> Option<Edge> {
    let mount = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", hosts.display());
    let launch = ["-r", "-m", "sh", "-c", &mount, "sh"];
    let trial = std::process::Command::new("unshare").args(launch).arg("true").output();
    if !trial.is_ok_and(|output| output.status.success()) {
        return None;
    }
    Edge::start_under("unshare", &launch, config).await
}

/// M-13: the name of an upstream is resolved again for a new connection, without a reload.
#[tokio::test]
async fn a_name_with_a_new_address_is_found() {
    let dir = tempfile::TempDir::new().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 gateway.internal\n").unwrap();
    let closing = |body: &'static str| move |_: &_| Answer::ok("Connection: close\r\n", body);
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let _old = Upstream::answering_on(first, closing("old"));
    let _new = Upstream::answering_on(second, closing("new"));
    let config = site("a.test", format!("http://gateway.internal:{port}"));
    let Some(edge) = start_with_hosts(&hosts, &config).await else { return };
    assert_eq!(edge.get("a.test", "/").await.text(), "old");
    // In place: the mount follows the file, not its name.
    std::fs::write(&hosts, "127.0.0.2 gateway.internal\n").unwrap();
    assert_eq!(edge.get("a.test", "/").await.text(), "new");
    std::fs::write(&hosts, "").unwrap();
    let reply = edge.get("a.test", "/").await;
    assert!(reply.status == 502 && reply.headers.get("proxy-status").unwrap().contains("dns_error"), "{reply:?}");
}

/// M-13: an address of a name that says nothing does not take the time of the next one.
#[tokio::test]
async fn a_silent_address_of_a_name_is_passed_over() {
    let dir = tempfile::TempDir::new().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 gateway.internal\n127.0.0.3 gateway.internal\n").unwrap();
    // The resolver puts 127.0.0.1 first. A queue for one connection, which is full: the kernel drops every further SYN.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let silent = silent.listen(0).unwrap();
    let port = silent.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let _upstream = Upstream::answering_on(second, |_| Answer::ok("", "second"));
    let _fills = tokio::net::TcpStream::connect(silent.local_addr().unwrap()).await.unwrap();
    let config = site_with("a.test", format!("http://gateway.internal:{port}"), "timeouts = { connect = \"2s\" }");
    let Some(edge) = start_with_hosts(&hosts, &config).await else { return };
    let reply = edge.get("a.test", "/").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "second"));
}

/// CONFIG.md 3: `least-conn` counts tunnels: the server with fewer of them gets the next one.
#[tokio::test]
async fn the_server_with_fewer_tunnels_gets_the_next() {
    let (one, two) = (WebSocketUpstream::start().await, WebSocketUpstream::start().await);
    let config = format!(
        "[process]\nworkers = 1\n[upstreams.pair]\nservers = [\"{one}\", \"{two}\"]\n{}",
        site("a.test", "pair")
    );
    let edge = Edge::start(&config).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let ones = one.seen().len();
        let socket = edge.websocket("a.test", "/").await;
        open.push((one.seen().len() > ones, socket));
    }
    assert_eq!((one.seen().len(), two.seen().len()), (2, 2));
    let (of_one, of_two): (Vec<_>, Vec<_>) = open.into_iter().partition(|(is_one, _)| *is_one);
    for (_, socket) in of_one {
        socket.close(1000, "").await;
    }
    edge.record_where("both ends", |_| edge.records().iter().filter(|record| record["kind"] == "tunnel").count() == 2)
        .await;
    let _next = [edge.websocket("a.test", "/").await, edge.websocket("a.test", "/").await];
    assert_eq!((one.seen().len(), two.seen().len()), (4, 2), "the two that are left are the other server's");
    drop(of_two);
}

/// CONFIG.md 3: no more than `max_idle` connections are kept for later.
#[tokio::test]
async fn idle_connections_are_bounded() {
    let upstream = Scripted::bind().await;
    let config = format!(
        "[process]\nworkers = 1\n[upstreams.u]\nservers = [\"{upstream}\"]\nmax_idle = 1\nkeep_alive = \"1h\"\n{}",
        site("a.test", "u")
    );
    let edge = Edge::start(&config).await;
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut client = edge.h1("a.test").await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        servers.push(upstream.request().await.0);
        clients.push(client);
    }
    for (client, server) in clients.iter_mut().zip(&mut servers) {
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.reply().await.text(), "ok");
    }
    let mut idle: tokio::task::JoinSet<bool> = tokio::task::JoinSet::new();
    for mut server in servers {
        idle.spawn(async move {
            let more = server.wire.fill_patiently().await;
            if more {
                server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nkept").await;
                server.wire.fill_patiently().await;
            }
            more
        });
    }
    for _ in 0..2 {
        let more = within("two of three are closed", idle.join_next()).await.unwrap().unwrap();
        assert!(!more, "closed, and nothing was sent on them");
    }
    assert_eq!(edge.get("a.test", "/").await.text(), "kept", "the third is used again");
}

/// CONFIG.md 3: `unknown_sni` may name a site: its certificate is shown, and its Host is still judged.
#[tokio::test]
async fn an_unknown_name_may_see_a_sites_certificate() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&format!("[tls]\nunknown_sni = \"a.test\"\n{}", site("a.test", &upstream))).await;
    // A client that looks at the certificate as if it had asked for the site.
    let config = ClientTls { roots: Vec::new(), ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let refused = edge.handshake("old.example.com", config).await.expect_err("the certificate is for another name");
    assert!(refused.to_string().contains("a.test") || refused.to_string().contains("NotValidForName"), "{refused}");
    let without = ClientTls { without_sni: true, ..ClientTls::alpn(&["http/1.1"]) };
    let stream = edge.handshake("a.test", without.config(&edge)).await.expect("the site's certificate");
    let mut wire = Wire::new(stream);
    wire.send("GET / HTTP/1.1\r\nHost: old.example.com\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 421);
    assert!(upstream.seen().is_empty());
}

/// CONFIG.md 3: pages by status are of the route, and JSON and text are pages too.
#[tokio::test]
async fn error_pages_are_of_the_route() {
    let dir = tempfile::TempDir::new().unwrap();
    let (json, text) = (dir.path().join("502.json"), dir.path().join("413.txt"));
    std::fs::write(&json, "{\"down\":true}").unwrap();
    std::fs::write(&text, "too much").unwrap();
    let closed = Scripted::bind().await.to_string();
    let lines = format!(
        "limits = {{ body = \"1B\" }}\n[[sites.\"a.test\".routes]]\npath = \"/v1\"\nerrors = {{ 502 = {json:?}, 413 = {text:?} }}\n"
    );
    let edge = Edge::start(&site_with("a.test", &closed, &lines)).await;
    let reply = edge.get("a.test", "/v1/models").await;
    assert_eq!((reply.status, reply.text().as_str()), (502, "{\"down\":true}"));
    assert_eq!(reply.headers.get("content-type"), Some("application/json"));
    assert!(reply.is_by_edge() && reply.headers.has("x-request-id"), "{reply:?}");
    let post = "POST /v1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\n";
    let reply = edge.exchange("a.test", post).await;
    assert_eq!((reply.status, reply.text().as_str()), (413, "too much"));
    assert!(reply.headers.get("content-type").unwrap().starts_with("text/plain"), "{reply:?}");
    assert!(edge.get("a.test", "/").await.text().contains("E502-refused"), "elsewhere our own words");
}

/// N-04: HSTS in stages: a duration, or a table with what it covers; never over cleartext.
#[tokio::test]
async fn hsts_says_what_it_covers() {
    let upstream = Upstream::echo().await;
    let config = site_with("a.test", &upstream, "hsts = \"1h\"")
        + &site_with("b.test", &upstream, "hsts = { max_age = \"365d\", include_subdomains = true, preload = true }")
        + &site_with(
            "localhost",
            &upstream,
            "tls = \"off\"\n[sites.localhost.headers]\nresponse.set = { x-seen = \"1\" }",
        );
    let edge = Edge::start(&config).await;
    for (host, expected) in [("a.test", "max-age=3600"), ("b.test", "max-age=31536000; includeSubDomains; preload")] {
        let reply = edge.get(host, "/").await;
        assert_eq!(reply.headers.all("strict-transport-security"), [expected]);
    }
    // RFC 6797 7.2: neither the redirect nor a cleartext site carries it.
    for host in ["a.test", "localhost"] {
        let mut plain = edge.plain().await;
        plain.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let reply = plain.reply().await;
        assert!(!reply.headers.has("strict-transport-security"), "{reply:?}");
    }
}

/// Issue 2, 10: the service manager's watchdog hears of us while we serve, and STATUS says what we do.
#[tokio::test]
async fn the_watchdog_is_fed() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    let upstream = Upstream::echo().await;
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let _edge = Edge::start_with(&site("a.test", &upstream), &env).await;
    let (mut fed, mut status) = (0, String::new());
    within("three signs of life and a status", async {
        let mut buffer = [0; 4096];
        while fed < 3 || status.is_empty() {
            let length = socket.recv(&mut buffer).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            fed += text.lines().filter(|line| *line == "WATCHDOG=1").count();
            status.extend(text.lines().filter_map(|line| line.strip_prefix("STATUS=")));
        }
    })
    .await;
    assert!(status.contains("1 site"), "{status}");
}

/// CONFIG.md 3: `level` is the least severe one that is written; a client's mistake is never above `debug`.
#[tokio::test]
async fn the_log_has_a_level() {
    let upstream = Upstream::echo().await;
    let mut edge = Edge::start(&site("a.test", &upstream)).await;
    assert!(edge.reload_with(&format!("[log]\nlevel = \"debug\"\n{}", site("a.test", &upstream))).await);
    edge.rewrite(&format!("[log]\nlevel = \"error\"\n{}", site("a.test", &upstream)));
    edge.signal(nix::sys::signal::Signal::SIGHUP);
    within("the new generation", async {
        while edge.get("a.test", "/").await.status != 200
            || edge.records().last().is_none_or(|record| record["gen"] != 3)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let before = edge.stderr();
    edge.exchange("a.test", "GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: x\r\n\r\n").await;
    edge.exchange("a.test", "GET / HTTP/1.1\r\nHost: nowhere.test\r\n\r\n").await;
    assert!(edge.stop().await.success());
    let after = edge.stderr();
    assert!(!after[before.len()..].contains("\"level\":\"info\""), "{after}");
    assert!(!after.contains("\"level\":\"warn\"") && !after.contains("\"level\":\"error\""), "{after}");
}

/// HOUSE.md B4: what the machine refuses is named once, with its path and what to do, and the status is 1.
#[test]
fn what_cannot_be_written_is_named() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let listen = "[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\n[sites.\"a.test\"]\nupstream = \"127.0.0.1:1\"\n";
    for (storage, access, wanted) in
        [("storage", "file/access.log", "file/access.log"), ("file/storage", "off", "file/storage")]
    {
        let text = format!("storage = {storage:?}\n{listen}[log]\naccess = {access:?}\n");
        std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
        let run = run_in(dir.path(), &["run"]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.stderr.contains(wanted) && run.stderr.contains("help: "), "{run:?}");
        assert_eq!(run.stderr.matches("os error").count(), 1, "{run:?}");
    }
}

/// O-20: webhooks come without `Origin` and pass where the edge judges origins; a browser's foreign one does not.
#[tokio::test]
async fn webhooks_pass_without_an_origin() {
    let upstream = Upstream::saying("ok").await;
    let lines = "origins = { allow = [\"https://a.test\"] }\n[[sites.\"a.test\".routes]]\npath = \"/hooks\"\nlimits = { body = \"4B\" }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    let post = |path: &str, origin: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a.test\r\n{origin}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    assert_eq!(edge.exchange("a.test", post("/hooks/slack", "", "{}")).await.status, 200);
    assert_eq!(edge.exchange("a.test", post("/hooks/slack", "", "too long")).await.status, 413, "limits of their own");
    let foreign = "Origin: https://evil.example.com\r\n";
    assert_eq!(edge.exchange("a.test", post("/hooks/slack", foreign, "{}")).await.status, 403);
    assert_eq!(upstream.seen().len(), 1);
}

/// M-06: an `Origin` may be given to clients that have none and are named by a header; off by default, and the record tells the truth.
#[tokio::test]
async fn an_origin_may_be_given_to_named_clients() {
    let upstream = WebSocketUpstream::start().await;
    let lines = "[[sites.\"a.test\".routes]]\npath = \"/\"\nheaders = { x-agent = \"mission-control\", request.set = { origin = \"https://a.test\" } }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    for (headers, origin) in [("X-Agent: mission-control\r\n", Some("https://a.test")), ("", None)] {
        let before = upstream.seen().len();
        assert_eq!(edge.upgrade("a.test", "/", headers).await.0.status, 101);
        assert_eq!(upstream.seen()[before].header("origin"), origin);
    }
    edge.record_where("both", |_| edge.records().iter().filter(|record| record["upgrade"] == true).count() == 2).await;
    assert!(edge.records().iter().all(|record| record["origin"].is_null()), "what the client said");
}

/// N-05: a record tells which WebSocket headers came, so that one that a proxy before us took is missed; their values stay out.
#[tokio::test]
async fn a_record_names_the_websocket_headers() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let lines = "Sec-WebSocket-Protocol: secret-in-a-subprotocol\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    edge.upgrade("a.test", "/all", lines).await;
    edge.upgrade("a.test", "/few", "").await;
    // A proxy that takes `Upgrade` leaves a request that still shows what it was.
    edge.exchange("a.test", upgrade_request("a.test", "/lost", "").replace("Upgrade: websocket\r\n", "")).await;
    edge.get("a.test", "/none").await;
    for (path, expected) in [
        ("/all", serde_json::json!(["extensions", "key", "protocol", "version"])),
        ("/few", serde_json::json!(["key", "version"])),
        ("/lost", serde_json::json!(["key", "version"])),
        ("/none", serde_json::Value::Null),
    ] {
        let is_mine = |record: &serde_json::Value| record["kind"] == "request" && record["path"] == path;
        let record = edge.record_where(path, is_mine).await;
        assert_eq!(record["websocket"], expected, "{record}");
    }
    assert!(!edge.stdout().contains("secret-in-a-subprotocol"));
}

/// O-19: two servers behind preset `openclaw` are two gateways under one name: refused, unless a client keeps its own.
#[test]
fn two_gateways_under_one_name_are_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = |balance: &str| {
        format!(
            "[upstreams.pair]\nservers = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n{balance}\n\
             [sites.\"a.test\"]\npreset = \"openclaw\"\nupstream = \"pair\"\n"
        )
    };
    for (balance, code) in
        [("", 2), ("balance = \"round-robin\"", 2), ("balance = \"least-conn\"", 2), ("balance = \"hash:client\"", 0)]
    {
        std::fs::write(dir.path().join("tidegate.toml"), config(balance)).unwrap();
        let run = run_in(dir.path(), &["check"]);
        assert_eq!(run.code, Some(code), "{balance}: {run:?}");
    }
}
