//! Reload: build the new state whole, swap once, touch nothing that is open (HOUSE.md A5; issue 2, 10).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;

use crate::harness::{Edge, Upstream, WebSocketUpstream, run_in, site, site_with, within};

/// HOUSE.md B6, O-07: a tunnel survives reloads, also one that removes its site, and keeps its generation.
#[tokio::test]
async fn tunnels_survive_a_reload() {
    let upstream = WebSocketUpstream::start().await;
    let fragment = site("a.test", &upstream);
    let edge = Edge::start(&fragment).await;
    let mut sockets = vec![edge.websocket("a.test", "/").await, edge.websocket_h2("a.test", "/").await];
    assert!(edge.reload_with(&(fragment.clone() + &site("b.test", &upstream))).await);
    assert!(edge.reload_with(&site("b.test", &upstream)).await, "without the tunnels' site");
    for socket in &mut sockets {
        assert_eq!(socket.echo("still here").await, "still here");
    }
    sockets.remove(0).close(1000, "").await;
    let record = edge.record("tunnel").await;
    assert_eq!((&record["gen"], &record["site"]), (&1.into(), &"a.test".into()), "{record}");
}

/// HOUSE.md A5: an open connection takes the new snapshot at its next request.
#[tokio::test]
async fn an_open_connection_sees_the_new_configuration() {
    let (old, new) = (Upstream::saying("old").await, Upstream::saying("new").await);
    let edge = Edge::start(&site("a.test", &old)).await;
    let mut wire = edge.h1("a.test").await;
    let mut h2 = edge.h2("a.test").await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    wire.send(request).await;
    assert_eq!(wire.reply().await.text(), "old");
    assert_eq!(h2.get("a.test", "/").await.body, b"old");
    assert!(edge.reload_with(&site("a.test", &new)).await);
    wire.send(request).await;
    assert_eq!(wire.reply().await.text(), "new");
    assert_eq!(h2.get("a.test", "/").await.body, b"new");
    let record = edge.record_where("of the second generation", |record| record["gen"] == 2).await;
    assert_eq!(record["upstream"], new.to_string());
}

/// A request that is on its way when the reload comes is finished by the rules it began with.
#[tokio::test]
async fn a_request_in_flight_is_finished() {
    let old = crate::harness::Scripted::bind().await;
    let new = Upstream::saying("new").await;
    let edge = Edge::start(&site("a.test", &old)).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut far, _) = old.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await;
    assert!(edge.reload_with(&site("a.test", &new)).await);
    far.send("later").await;
    let reply = wire.reply().await;
    assert_eq!((reply.text().as_str(), reply.is_complete), ("firstlater", true));
}

/// Issue 2, 10; N-41: any fault prints the report and changes nothing else.
#[tokio::test]
async fn a_failed_reload_leaves_all_as_it_is() {
    let upstream = WebSocketUpstream::start().await;
    let fragment = site("a.test", &upstream);
    let edge = Edge::start(&fragment).await;
    let mut socket = edge.websocket("a.test", "/").await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap();
    let held = std::net::TcpListener::bind(busy).ok();
    let bad = [
        "this is not TOML".to_owned(),
        String::new(),
        "version = 1\n".to_owned(),
        format!("{fragment}presett = \"openclaw\"\n"),
        "[sites.\"a.test\"]\nupstream = \"nowhere\"\n".to_owned(),
        "[sites.\"a.test\"]\nupstream = \"127.0.0.1:1\"\ncertificate = { cert = \"/missing.crt\", key = { file = \"/missing.key\" } }\n".to_owned(),
        fragment[..fragment.len() / 2].to_owned(),
    ];
    for text in bad {
        edge.rewrite_raw(&text);
        assert!(!edge.reload().await, "{text:?}");
        assert_eq!(edge.get("a.test", "/").await.text(), "plain", "{text:?}");
        assert_eq!(socket.echo("still here").await, "still here");
    }
    std::fs::remove_file(edge.config_path()).unwrap();
    assert!(!edge.reload().await, "a missing file");
    assert!(edge.stderr().contains("presett"), "the report is printed: {}", edge.stderr());
    assert!(edge.records().iter().all(|record| record["gen"] == 1 || record["kind"] != "request"));
    assert!(edge.reload_with(&fragment).await, "and a good file is taken again");
    assert_eq!(edge.get("a.test", "/").await.status, 200);
    drop(held);
}

/// An address that cannot be bound is a fault, and no listener that stays is ever closed.
#[tokio::test]
async fn listeners_that_stay_are_never_closed() {
    let upstream = Upstream::echo().await;
    let fragment = site("a.test", &upstream);
    let edge = Edge::start(&fragment).await;
    let before = (edge.https_addr(), edge.http_addr());
    // Accepted by the kernel, not yet by the edge, or already: it must be served after the reload.
    let waiting = edge.tcp().await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap();
    let both = format!("[listen]\nhttps = [\"127.0.0.1:0\", \"{taken}\"]\n{fragment}");
    assert!(!edge.reload_with(&both).await, "the address is in use");
    assert_eq!(edge.get("a.test", "/").await.status, 200);
    drop(busy);
    assert!(edge.reload_with(&both).await, "{}", edge.stderr());
    within("the new address accepts", tokio::net::TcpStream::connect(taken)).await.unwrap();
    assert!(edge.reload_with(&fragment).await);
    within("the removed address refuses", async {
        while tokio::net::TcpStream::connect(taken).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((edge.https_addr(), edge.http_addr()), before);
    let config = crate::harness::ClientTls::alpn(&["http/1.1"]).config(&edge);
    let name = rustls::pki_types::ServerName::try_from("a.test").unwrap();
    let stream =
        within("the waiting connection", tokio_rustls::TlsConnector::from(config).connect(name, waiting)).await;
    let mut wire = crate::harness::Wire::new(stream.expect("it is served"));
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
}

/// Issue 2, "must show", in small: reloads, good and bad, under load with open tunnels harm nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_reloads_under_load_harm_nobody() {
    let upstream = WebSocketUpstream::start().await;
    let good = [site("a.test", &upstream), site("a.test", &upstream) + &site("b.test", &upstream)];
    let edge = Arc::new(Edge::start(&good[0]).await);
    let mut sockets = Vec::new();
    for index in 0..50 {
        sockets.push(match index % 2 {
            0 => edge.websocket("a.test", "/").await,
            _ => edge.websocket_h2("a.test", "/").await,
        });
    }
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for kind in 0..3 {
        let (edge, stop, served) = (edge.clone(), stop.clone(), served.clone());
        load.spawn(async move {
            let mut wire = edge.h1("a.test").await;
            let mut h2 = edge.h2("a.test").await;
            while !stop.load(Ordering::Relaxed) {
                let status = match kind {
                    0 => edge.get("a.test", "/").await.status,
                    1 => h2.get("a.test", "/").await.status,
                    _ => {
                        wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
                        wire.reply().await.status
                    }
                };
                assert_eq!(status, 200);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 0..50 {
        match round % 5 {
            4 => {
                edge.rewrite_raw("[sites.\"a.test\"]\nupstream = ");
                assert!(!edge.reload().await);
            }
            _ => assert!(edge.reload_with(&good[round % 2]).await),
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = within("the load ends", load.join_next()).await {
        ended.expect("no request failed");
    }
    for socket in &mut sockets {
        assert_eq!(socket.echo("still here").await, "still here");
    }
    assert!(served.load(Ordering::Relaxed) > 50, "{} requests", served.load(Ordering::Relaxed));
    let failed = edge
        .records()
        .into_iter()
        .find(|record| record["kind"] == "request" && record["status"] != 200 && record["status"] != 101);
    assert_eq!(failed, None);
    assert!(!edge.records().iter().any(|record| record["kind"] == "tunnel"), "no tunnel ended");
}

/// Issue 2, 10: sd_notify tells systemd of each step.
#[tokio::test]
async fn systemd_is_told_of_each_step() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("notify.sock");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let upstream = Upstream::echo().await;
    let fragment = site("a.test", &upstream);
    let mut edge = Edge::start_with(&fragment, &[("NOTIFY_SOCKET", path.to_str().unwrap())]).await;
    let next = async |wanted: &str| {
        within(wanted, async {
            let mut buffer = [0; 4096];
            loop {
                let length = socket.recv(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.lines().any(|line| line.starts_with(wanted)) {
                    return text;
                }
            }
        })
        .await
    };
    next("READY=1").await;
    assert!(edge.reload().await);
    let reloading = next("RELOADING=1").await;
    assert!(reloading.contains("MONOTONIC_USEC="), "Type=notify-reload needs it: {reloading}");
    next("READY=1").await;
    assert!(edge.stop().await.success());
    next("STOPPING=1").await;
}

/// Issue 2, 10; N-41: good configurations are kept with their dates, and one can be restored.
#[tokio::test]
async fn a_kept_configuration_can_be_restored() {
    let (old, new) = (Upstream::saying("old").await, Upstream::saying("new").await);
    let edge = Edge::start(&site("a.test", &old)).await;
    let original = std::fs::read_to_string(edge.config_path()).unwrap();
    assert!(edge.reload_with(&site("a.test", &new)).await);
    let config = edge.config_path();
    let run = run_in(edge.dir(), &["rollback", "-c", config.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let restored = std::fs::read_to_string(edge.config_path()).unwrap();
    assert_eq!(restored, original);
    assert!(edge.reload().await);
    assert_eq!(edge.get("a.test", "/").await.text(), "old");
}

/// A rollback is wanted when the file is broken: its `storage` is found whatever else is wrong, and when it is not, the help says how.
#[tokio::test]
async fn a_broken_file_is_rolled_back() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let original = std::fs::read_to_string(edge.config_path()).unwrap();
    let config = edge.config_path();
    let rollback = ["rollback", "-c", config.to_str().unwrap()];
    for broken in [format!("{original}presett = 1\n"), format!("{original}[[[\n"), format!("{original}x = \n")] {
        edge.rewrite_raw(&broken);
        let run = run_in(edge.dir(), &rollback);
        assert_eq!(run.code, Some(0), "{broken}: {run:?}");
        assert_eq!(std::fs::read_to_string(edge.config_path()).unwrap(), original);
    }
    let run = run_in(edge.dir(), &[&rollback[..], &["1"]].concat());
    assert!(
        run.code == Some(1) && run.stderr.contains("--> "),
        "what a rollback replaced was broken, and says how: {run:?}"
    );
    assert_eq!(std::fs::read_to_string(edge.config_path()).unwrap(), original);
    std::fs::remove_file(edge.config_path()).unwrap();
    let run = run_in(edge.dir(), &rollback);
    assert!(run.code == Some(1) && run.stderr.contains("--storage"), "{run:?}");
    let storage = edge.dir().join("storage");
    let run = run_in(edge.dir(), &[&rollback[..], &["--storage", storage.to_str().unwrap()]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(std::fs::read_to_string(edge.config_path()).unwrap(), original);
}

/// A file that serves nothing is a fault at the start, too.
#[tokio::test]
async fn a_file_that_serves_nothing_does_not_start() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("tidegate.toml"), "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"127.0.0.1:0\"]\n")
        .unwrap();
    let run = run_in(dir.path(), &["run"]);
    assert_eq!(run.code, Some(2), "{run:?}");
}

/// `[defaults]` and presets are taken anew with each reload.
#[tokio::test]
async fn limits_change_with_a_reload() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits = { body = \"10B\" }")).await;
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 20\r\n\r\n01234567890123456789";
    assert_eq!(edge.exchange("a.test", post).await.status, 413);
    assert!(edge.reload_with(&site_with("a.test", &upstream, "limits = { body = \"20B\" }")).await);
    assert_eq!(edge.exchange("a.test", post).await.status, 200);
}

/// A connection that is in the middle of a head when the reload comes is served by the new rules.
#[tokio::test]
async fn a_head_in_the_making_is_served_by_the_new_rules() {
    let (old, new) = (Upstream::saying("old").await, Upstream::saying("new").await);
    let edge = Edge::start(&site("a.test", &old)).await;
    let stream = edge.tls("a.test", &["http/1.1"]).await;
    let mut wire = crate::harness::Wire::new(stream);
    wire.send("GET / HTTP/1.1\r\nHost: a.t").await;
    assert!(edge.reload_with(&site("a.test", &new)).await);
    wire.send("est\r\n\r\n").await;
    assert_eq!(wire.reply().await.text(), "new");
    let (mut io, _) = wire.into_parts();
    let read = tokio::time::timeout(std::time::Duration::from_millis(1), io.read_u8()).await;
    assert!(read.is_err(), "and it stays open");
}
