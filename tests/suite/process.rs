//! The process itself: adopted sockets, unix listeners, the cap on connections.

use tokio::net::{TcpSocket, UnixStream};

use crate::harness::{Edge, Upstream, Wire, site, site_with, within};

/// SECURITY.md 4, 11: connections above the cap are closed at once and recorded, and service goes on below it.
#[tokio::test]
async fn connections_above_the_cap_are_refused_and_recorded() {
    let upstream = Upstream::echo().await;
    let fragment = format!("[process]\nmax_connections = 2\n{}", site("a.test", &upstream));
    let edge = Edge::start(&fragment).await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut wire = edge.h1("a.test").await;
        wire.send(request).await;
        assert_eq!(wire.reply().await.status, 200);
        kept.push(wire);
    }
    // Bound first: the reset may be there before the connect has returned.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let from = socket.local_addr().unwrap().to_string();
    if let Ok(above) = within("the edge answers", socket.connect(edge.https_addr())).await {
        assert!(Wire::new(above).rest().await.is_empty());
    }
    let record = edge.record_where("the refused connection", |record| record["peer"] == *from).await;
    assert!(record["kind"] == "connection" && record["why"].as_str().unwrap().contains('2'), "{record}");
    for wire in &mut kept {
        wire.send(request).await;
        assert_eq!(wire.reply().await.status, 200, "those that were there are served");
    }
}

/// SECURITY.md 1 and GATEWAY.md R3: a peer on a unix socket has no address: nothing is forwarded until a trusted hop tells one.
#[tokio::test]
async fn a_client_without_an_address_is_never_forwarded() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("edge.sock");
    let listen = format!("[listen]\nhttp = [\"127.0.0.1:0\", \"unix:{}\"]\n", path.display());
    let ask = async |lines: &str| {
        let mut wire = Wire::new(UnixStream::connect(&path).await.expect("the edge listens there"));
        wire.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")).await;
        wire.reply().await
    };
    let local = site_with("localhost", &upstream, "tls = \"off\"");
    let edge = Edge::start(&format!("{listen}{local}")).await;
    for lines in ["", "X-Forwarded-For: 203.0.113.77\r\n"] {
        let reply = ask(lines).await;
        assert!(reply.status >= 400 && reply.is_by_edge(), "{lines:?}: {}", reply.status);
    }
    assert!(upstream.seen().is_empty());
    drop(edge);
    let _edge = Edge::start(&format!("{listen}[trust]\nproxies = [\"unix\"]\n{local}")).await;
    assert!(ask("").await.status >= 400, "a trusted hop that tells nothing tells nothing");
    assert!(upstream.seen().is_empty());
    assert_eq!(ask("X-Forwarded-For: 203.0.113.77\r\n").await.status, 200);
    assert_eq!(upstream.only().await.header("x-forwarded-for"), Some("203.0.113.77"));
}

/// Issue 2, 11: sockets that systemd opened are adopted by name; the edge needs no right to bind them.
#[tokio::test]
async fn activated_sockets_are_adopted_by_name() {
    let upstream = Upstream::saying("activated").await;
    let fragment =
        format!("[listen]\nhttp = [\"systemd:plain\"]\nhttps = [\"systemd:secure\"]\n{}", site("a.test", &upstream));
    // What systemd does (sd_listen_fds(3)): descriptors from 3 on, with their names, for this process.
    const LAUNCHER: &str = r#"
import os, socket, sys
listeners = []
for number in (3, 4):
    listener = socket.create_server(("127.0.0.1", 0))
    os.dup2(listener.fileno(), number + 10)
    listeners.append(listener)
for number in (3, 4):
    os.dup2(number + 10, number)
    os.set_inheritable(number, True)
    os.close(number + 10)
os.environ.update(LISTEN_FDS="2", LISTEN_FDNAMES="plain:secure", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"#;
    let Some(edge) = Edge::start_under("python3", &["-c", LAUNCHER], &fragment).await else { return };
    assert_eq!(edge.get("a.test", "/").await.text(), "activated");
    let mut plain = edge.plain().await;
    plain.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(plain.reply().await.status, 308);
    assert!(edge.reload_with(&fragment).await);
    assert_eq!(edge.get("a.test", "/").await.text(), "activated");
}
