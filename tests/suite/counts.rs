//! Counts of tunnels and connections, and the lockout after failed logins (G-14, N-21): of each client and in all.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{
    Answer, ClientTls, Edge, Scripted, Upstream, WebSocketUpstream, Wire, accept_key, frame, site, site_with, within,
};

/// A hop that the edge believes: the tests themselves.
const TRUST: &str = "[trust]\nproxies = [\"127.0.0.0/8\"]\n";

/// Load balancers that say who connected: the tests themselves.
const PREFACE: &str = "[trust]\nproxy_protocol = [\"127.0.0.0/8\"]\n";

/// The header line of a client behind a hop.
fn of(client: &str) -> String {
    format!("X-Forwarded-For: {client}\r\n")
}

/// A connection in the name of a client, as a load balancer opens it.
async fn dial(address: SocketAddr, client: &str) -> TcpStream {
    let mut stream = within("the edge accepts", TcpStream::connect(address)).await.unwrap();
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    let front = if client.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
    stream.write_all(format!("PROXY {family} {client} {front} 4711 443\r\n").as_bytes()).await.unwrap();
    stream
}

/// As `dial`, with a handshake.
async fn secure(edge: &Edge, client: &str, host: &str) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = ClientTls::alpn(&["http/1.1"]).config(edge);
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let tcp = dial(edge.https_addr(), client).await;
    within("the handshake ends", tokio_rustls::TlsConnector::from(config).connect(name, tcp)).await
}

/// The status of one request on a stream; `None` when it was reset.
async fn ask(stream: &mut Wire, host: &str) -> Option<u16> {
    stream.try_send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.ok()?;
    stream.try_reply_to("GET").await.map(|reply| reply.status)
}

/// True when the connection is reset without a byte.
async fn is_reset(mut stream: TcpStream) -> bool {
    let error = within("the edge closes it", stream.read(&mut [0; 16])).await.err();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// G-14: open tunnels are counted of each client and in all, until they have ended, and the gateway is not asked for more.
#[tokio::test]
async fn open_tunnels_are_counted() {
    let upstream = WebSocketUpstream::start().await;
    let lines = "limits.tunnels = { per_client = 2, total = 3 }";
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await;
    let open = async |client: &str| {
        let (reply, wire) = edge.upgrade("a.test", "/", &format!("{}Accept: application/json\r\n", of(client))).await;
        (reply, wire)
    };
    let (first, one) = open("198.51.100.7").await;
    let (second, _two) = open("198.51.100.7").await;
    assert_eq!((first.status, second.status), (101, 101));
    let (refused, _) = open("198.51.100.7").await;
    assert_eq!(refused.status, 429);
    assert_eq!(
        (&refused.json()["error"]["code"], &refused.json()["error"]["limit"]),
        (&"E429-tunnels".into(), &"tunnels".into())
    );
    assert_eq!(
        refused.headers.get("proxy-status"),
        Some("tidegate;error=http_request_denied;details=\"limit tunnels\"")
    );
    assert!(refused.headers.has("retry-after") && !refused.headers.has("ratelimit"));
    let (third, _three) = open("198.51.100.8").await;
    assert_eq!(third.status, 101);
    let (full, _) = open("198.51.100.9").await;
    assert_eq!(full.status, 503);
    assert_eq!(full.json()["error"]["code"], "E503-tunnels");
    assert!(full.headers.has("retry-after"));
    assert_eq!(upstream.seen().len(), 3);
    // Other requests do not count, and one that ends makes room.
    assert_eq!(edge.get_with("a.test", "/", &of("198.51.100.7")).await.status, 200);
    drop(one);
    edge.record("tunnel").await;
    let (again, _four) = open("198.51.100.7").await;
    assert_eq!(again.status, 101, "{}", again.text());
    // A reload that changes the numbers goes on counting.
    let lines = "limits.tunnels = { per_client = 2, total = 4 }";
    assert!(edge.reload_with(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await);
    assert_eq!(open("198.51.100.7").await.0.status, 429);
    let (fifth, _five) = open("198.51.100.9").await;
    assert_eq!(fifth.status, 101);
    assert_eq!(open("198.51.100.9").await.0.status, 503);
}

/// A place is taken before the gateway is asked, and given back when it refuses.
#[tokio::test]
async fn a_tunnel_that_is_refused_gives_its_place_back() {
    let upstream = Upstream::answering(|_| Answer::status("404 Not Found", "", "no")).await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits.tunnels = { total = 1 }")).await;
    for _ in 0..5 {
        assert_eq!(edge.upgrade("a.test", "/", "").await.0.status, 404);
        // The exchange, and with it the place, ends with its record.
        let before = upstream.seen().len();
        edge.record_where("its record", |_| edge.records().len() >= before).await;
    }
}

/// G-14: one address holds a quarter of all connections at most, whatever it does with them: stalled handshakes count too.
/// Others are served meanwhile; what is closed makes room.
#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let upstream = Upstream::saying("inside").await;
    let config = format!("{PREFACE}[process]\nmax_connections = 20\n{}", site("a.test", &upstream));
    let edge = Edge::start(&config).await;
    let capacity = edge.event("capacity").await;
    assert_eq!((&capacity["connections"], &capacity["of_one"]), (&20.into(), &5.into()), "{capacity}");
    assert!(capacity.to_string().contains("LimitNOFILE="), "{capacity}");
    // Four that never say hello, one that became a request.
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = dial(edge.https_addr(), "2001:db8:7::1").await;
        stream.write_all(b"\x16").await.unwrap();
        held.push(stream);
    }
    let mut fifth = Wire::new(secure(&edge, "2001:db8:7::2", "a.test").await.expect("the fifth"));
    assert_eq!(ask(&mut fifth, "a.test").await, Some(200));
    // One network of 64 bits is one client.
    assert!(is_reset(dial(edge.https_addr(), "2001:db8:7::3").await).await, "the sixth");
    let record = edge.record_where("its record", |record| record["ended"] == "refused").await;
    assert!(record["peer"].as_str().unwrap().starts_with("[2001:db8:7::3]:"), "{record}");
    assert_eq!(record["why"], "more than 5 connections of one client (limit \"process\")", "{record}");
    let mut other = Wire::new(secure(&edge, "2001:db8:8::1", "a.test").await.expect("another client"));
    assert_eq!(ask(&mut other, "a.test").await, Some(200));
    drop(held.pop());
    edge.record_where("an end", |record| record["kind"] == "connection" && record["ended"] == "tls").await;
    let mut again = Wire::new(secure(&edge, "2001:db8:7::1", "a.test").await.expect("there is room again"));
    assert_eq!(ask(&mut again, "a.test").await, Some(200));
}

/// Hops bring many clients, and this machine may: neither is a client.
#[tokio::test]
async fn hops_and_loopback_are_not_counted_as_clients() {
    let upstream = Upstream::saying("inside").await;
    for trust in ["", "[trust]\nproxies = [\"203.0.113.9\"]\nproxy_protocol = [\"127.0.0.0/8\"]\n"] {
        let config = format!("{trust}[process]\nmax_connections = 12\n{}", site("a.test", &upstream));
        let edge = Edge::start(&config).await;
        let mut open = Vec::new();
        for _ in 0..10 {
            let mut wire = if trust.is_empty() {
                edge.h1("a.test").await
            } else {
                Wire::new(secure(&edge, "203.0.113.9", "a.test").await.expect("a connection of the hop"))
            };
            assert_eq!(ask(&mut wire, "a.test").await, Some(200));
            open.push(wire);
        }
    }
}

/// `limits.connections` holds from when the site is known: after the handshake, and in cleartext with the first request.
#[tokio::test]
async fn a_site_has_a_bound_of_its_own() {
    let upstream = Upstream::saying("inside").await;
    let plain = format!(
        "[sites.\"plain.test\"]\ntls = \"off\"\nupstream = \"{upstream}\"\nlimits.connections = {{ per_client = 1 }}\n"
    );
    let lines = "limits.connections = { per_client = 2, total = 3 }";
    let edge =
        Edge::start(&format!("{PREFACE}{}{plain}{}", site_with("a.test", &upstream, lines), site("b.test", &upstream)))
            .await;
    let connect = async |client: &str, host: &str| match secure(&edge, client, host).await {
        Ok(stream) => {
            let mut wire = Wire::new(stream);
            ask(&mut wire, host).await.map(|status| (status, wire))
        }
        Err(_) => None,
    };
    let (_, first) = connect("198.51.100.7", "a.test").await.expect("a place");
    let _second = connect("198.51.100.7", "a.test").await.expect("a place");
    assert!(connect("198.51.100.7", "a.test").await.is_none());
    let record = edge.record_where("its record", |record| record["ended"] == "refused").await;
    assert_eq!(record["why"], "limit \"connections\" (site \"a.test\"): 2 of one client, 3 in all", "{record}");
    assert_eq!(record["sni"], "a.test", "{record}");
    assert!(connect("198.51.100.7", "b.test").await.is_some(), "another site");
    let _third = connect("198.51.100.8", "a.test").await.expect("another client");
    assert!(connect("198.51.100.9", "a.test").await.is_none(), "three in all");
    drop(first);
    // Its place is free as soon as the edge has noticed; a refused one leaves nothing behind.
    within("a place is free", async { while connect("198.51.100.7", "a.test").await.is_none() {} }).await;

    let mut one = Wire::new(dial(edge.http_addr(), "198.51.100.7").await);
    assert_eq!(ask(&mut one, "plain.test").await, Some(200));
    assert_eq!(ask(&mut one, "plain.test").await, Some(200), "counted once");
    let mut two = Wire::new(dial(edge.http_addr(), "198.51.100.7").await);
    two.send("GET / HTTP/1.1\r\nHost: plain.test\r\n\r\n").await;
    let reply = two.reply().await;
    assert_eq!((reply.status, reply.headers.get("connection")), (429, Some("close")));
    let record = edge.record_where("a refusal", |record| record["code"] == "E429-connections").await;
    assert_eq!(record["limit"], "connections", "{record}");
}

/// G-14: as many failed logins of a client lock it out, and nobody else; a success in between does not help.
#[tokio::test]
async fn failed_logins_lock_a_client_out() {
    let upstream = Upstream::answering(|seen| match seen.target.as_str() {
        "/401" => Answer::status("401 Unauthorized", "WWW-Authenticate: Basic\r\n", "who?"),
        "/403" => Answer::status("403 Forbidden", "Content-Type: application/json\r\n", "{\"error\":\"no\"}"),
        _ => Answer::ok("", "fine"),
    })
    .await;
    let limits = "[limits.logins]\nfailed_auth = { max = 3, window = \"1h\", lockout = \"2h\" }\n";
    let route = "[[sites.\"a.test\".routes]]\npath = \"/open\"\nlimits = \"other\"\n[limits.other]\nfailed_auth = {}\n";
    let lines = format!("limits = \"logins\"\n{route}");
    let edge = Edge::start(&format!("{TRUST}{limits}{}", site_with("a.test", &upstream, &lines))).await;
    let get = async |client: &str, target: &str| {
        let lines = format!("{}Authorization: Bearer x\r\nAccept: application/json\r\n", of(client));
        edge.get_with("a.test", target, &lines).await
    };
    for _ in 0..4 {
        let reply = edge.get_with("a.test", "/401", &of("198.51.100.8")).await;
        assert_eq!(reply.status, 401, "who shows no credential guesses none");
    }
    for (target, status) in [("/401", 401), ("/", 200), ("/403", 403), ("/", 200), ("/401", 401)] {
        assert_eq!(get("198.51.100.7", target).await.status, status, "{target}");
    }
    let refused = get("198.51.100.7", "/").await;
    assert_eq!(refused.status, 429);
    let json = refused.json();
    assert_eq!((&json["error"]["code"], &json["error"]["limit"]), (&"E429-lockout".into(), &"logins".into()), "{json}");
    let wait: u32 = refused.headers.get("retry-after").unwrap().parse().unwrap();
    assert!((7100..=7200).contains(&wait), "{wait}");
    assert_eq!(get("198.51.100.8", "/").await.status, 200, "another client");
    assert_eq!(get("198.51.100.7", "/open").await.status, 200, "another rule");
    let mut h2 = edge.raw_h2("a.test").await;
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "a.test"),
        (":path", "/"),
        ("x-forwarded-for", "198.51.100.7"),
    ];
    assert_eq!(h2.request(1, &fields).await, crate::harness::Outcome::Status(429));
    let record = edge.record_where("a lockout", |record| record["code"] == "E429-lockout").await;
    assert_eq!(record["cause"], "limit \"logins\" ([limits.logins]): 3 failures in 1h lock out for 2h", "{record}");
    assert_eq!(upstream.seen().len(), 11);
}

/// The gateway's refusal of this edge is our own misconfiguration: it locks nobody out.
#[tokio::test]
async fn a_refusal_of_the_edge_is_no_failed_login() {
    const BODY: &str = r#"{"ok":false,"error":{"type":"forbidden","code":"proxy_attribution_required"}}"#;
    let upstream =
        Upstream::answering(|_| Answer::status("403 Forbidden", "Content-Type: application/json\r\n", BODY)).await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits.failed_auth = { max = 2 }")).await;
    for _ in 0..5 {
        assert_eq!(edge.get_with("a.test", "/", "Authorization: Bearer x\r\n").await.status, 403);
        assert_eq!(edge.upgrade("a.test", "/", "Authorization: Bearer x\r\n").await.0.status, 403);
    }
    assert_eq!(upstream.seen().len(), 10);
}

/// Opens a tunnel that the upstream closes at once with these words.
async fn closed_with(edge: &Edge, upstream: &Scripted, code: u16, reason: &str) {
    let upgrading = edge.upgrade("a.test", "/", "");
    let accepting = async {
        let (mut far, seen) = upstream.request().await;
        let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            accept_key(&seen)
        );
        far.send([head.as_bytes(), &frame(8, &payload)].concat()).await;
        far
    };
    let ((reply, mut wire), far) = tokio::join!(upgrading, accepting);
    assert_eq!(reply.status, 101);
    drop(far);
    wire.rest().await;
}

/// Close 1008 soon after the upgrade is a failed login; a device that waits to be paired, and an origin that is not
/// allowed, are none.
#[tokio::test]
async fn a_tunnel_closed_with_1008_is_a_failed_login() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "limits.failed_auth = { max = 2 }")).await;
    for (code, reason) in [
        (1000, ""),
        (1008, "pairing required"),
        (1008, "origin not allowed"),
        (1012, "service restart"),
        (1008, "pairing required: x"),
    ] {
        closed_with(&edge, &upstream, code, reason).await;
    }
    for tunnels in [6, 7] {
        closed_with(&edge, &upstream, 1008, "unauthorized: token mismatch").await;
        let is_last = |_: &serde_json::Value| {
            edge.records().iter().filter(|record| record["kind"] == "tunnel").count() >= tunnels
        };
        edge.record_where("its record, after it was counted", is_last).await;
    }
    let (reply, _) = edge.upgrade("a.test", "/", "").await;
    assert_eq!(reply.status, 429);
    assert_eq!(edge.get("a.test", "/").await.status, 429, "all of the rule's routes");
}

/// Guessing from many addresses: after `global_max` failures in all, the first one of a client is enough; who does not
/// fail notices nothing.
#[tokio::test]
async fn guessing_from_many_addresses_raises_an_alarm() {
    let upstream = Upstream::answering(|seen| match seen.target.as_str() {
        "/login" => Answer::status("401 Unauthorized", "", "no"),
        _ => Answer::ok("", "fine"),
    })
    .await;
    let lines = "limits.failed_auth = { max = 3, window = \"1h\", global_max = 5 }";
    let edge = Edge::start(&format!("{TRUST}{}", site_with("a.test", &upstream, lines))).await;
    let get = async |number: usize, target: &str| {
        let lines = format!("{}Cookie: login=x\r\n", of(&format!("198.51.100.{number}")));
        edge.get_with("a.test", target, &lines).await.status
    };
    for number in 1..=5 {
        assert_eq!(get(number, "/login").await, 401);
        assert_eq!(get(number, "/").await, 200, "one failure is no lockout yet");
    }
    assert_eq!(get(6, "/login").await, 401);
    assert_eq!(get(6, "/").await, 429, "now it is");
    assert_eq!((get(1, "/").await, get(7, "/").await), (200, 200));
    let said = edge.event("failed_auth").await;
    assert_eq!((&said["level"], &said["limit"]), (&"warn".into(), &"failed_auth".into()), "{said}");
}
