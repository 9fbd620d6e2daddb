//! The PROXY protocol (haproxy.org, proxy-protocol.txt): from whom a preface is taken, what it changes, and what it
//! can never make of anybody.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::harness::{
    ClientTls, Edge, H2, Io, Upstream, WebSocketUpstream, Wire, frame, masked_frame, site, site_with, upgrade_request,
    within,
};

/// The client of most prefaces, and where it connected to.
const CLIENT: &str = "203.0.113.9:4660";
const FRONT: &str = "192.0.2.1:443";

/// A preface of version 1.
fn v1(source: &str, destination: &str) -> Vec<u8> {
    let [source, destination]: [SocketAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
    let family = if source.is_ipv4() { 4 } else { 6 };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY TCP{family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// A preface of version 2.
fn v2(source: &str, destination: &str) -> Vec<u8> {
    let [source, destination]: [SocketAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let ends = [octets(source.ip()), octets(destination.ip())].concat();
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    binary(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, &[ends, ports].concat())
}

/// A preface of version 2 from its parts.
fn binary(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, payload].concat()
}

/// The version 2 of "I am the proxy myself".
fn local() -> Vec<u8> {
    binary(0x20, 0x00, &[])
}

/// A configuration in which these must send a preface.
fn listing(networks: &str, rest: impl std::fmt::Display) -> String {
    format!("[trust]\nproxy_protocol = [{networks}]\n{rest}")
}

/// Connects from an address of loopback, and sends these bytes first.
async fn dial(from: &str, to: SocketAddr, first: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let mut stream = within("the edge accepts", socket.connect(to)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(first).await.unwrap();
    stream
}

/// A handshake on a connection on which a preface was sent.
async fn secure(edge: &Edge, tcp: TcpStream, host: &str, alpn: &str) -> TlsStream<TcpStream> {
    let config = ClientTls::alpn(&[alpn]).config(edge);
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    within("the handshake ends", tokio_rustls::TlsConnector::from(config).connect(name, tcp)).await.unwrap()
}

/// A TLS connection from 127.0.0.1 that begins with a preface.
async fn tls(edge: &Edge, preface: &[u8], host: &str, alpn: &str) -> TlsStream<TcpStream> {
    secure(edge, dial("127.0.0.1", edge.https_addr(), preface).await, host, alpn).await
}

/// One GET with further lines, and its status.
async fn get(stream: impl Io + 'static, host: &str, lines: &str) -> u16 {
    let mut wire = Wire::new(stream);
    wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")).await;
    wire.reply().await.status
}

/// The record of the request with this number.
async fn nth_request(edge: &Edge, index: usize) -> Value {
    edge.record_where("so many requests", |_| {
        edge.records().iter().filter(|record| record["kind"] == "request").count() > index
    })
    .await;
    edge.records().into_iter().filter(|record| record["kind"] == "request").nth(index).unwrap()
}

/// True when a record says that the socket's own peer is this address of loopback.
fn is_via(record: &Value, address: &str) -> bool {
    record["via"].as_str().is_some_and(|via| via.starts_with(&format!("{address}:")))
}

/// Issue 5, 4: both versions, both families, before TLS and in cleartext, over HTTP/1.1 and HTTP/2.
#[tokio::test]
async fn the_preface_says_who_asks() {
    let upstream = Upstream::echo().await;
    let sites = site("a.test", &upstream) + &site_with("p.test", &upstream, "tls = \"off\"");
    let edge = Edge::start(&listing("\"loopback\"", sites)).await;
    let cases = [
        (v1(CLIENT, FRONT), "203.0.113.9", CLIENT),
        (v2(CLIENT, FRONT), "203.0.113.9", CLIENT),
        (v1("[2001:db8::9]:4660", "[2001:db8::1]:443"), "2001:db8::9", "[2001:db8::9]:4660"),
        (v2("[2001:db8::9]:4660", "[2001:db8::1]:443"), "2001:db8::9", "[2001:db8::9]:4660"),
        (v2("[::ffff:203.0.113.9]:4660", "[2001:db8::1]:443"), "203.0.113.9", CLIENT),
    ];
    let mut index = 0;
    for (preface, client, peer) in cases {
        for way in ["h1", "h2", "plain"] {
            // A client's own word is worth nothing here either.
            let forged = "X-Forwarded-For: 198.51.100.1\r\n";
            match way {
                "h1" => assert_eq!(get(tls(&edge, &preface, "a.test", "http/1.1").await, "a.test", forged).await, 200),
                "h2" => {
                    let mut h2 = H2::over(tls(&edge, &preface, "a.test", "h2").await).await;
                    assert_eq!(h2.get("a.test", "/").await.status, 200);
                }
                _ => {
                    let tcp = dial("127.0.0.1", edge.http_addr(), &preface).await;
                    assert_eq!(get(tcp, "p.test", forged).await, 200);
                }
            }
            let seen = upstream.request(index).await;
            assert_eq!(seen.headers.all("x-forwarded-for"), [client], "{way} {peer}");
            assert_eq!(seen.header("x-real-ip"), Some(client));
            let record = nth_request(&edge, index).await;
            assert_eq!((&record["client"], &record["peer"]), (&client.into(), &peer.into()), "{record}");
            assert!(is_via(&record, "127.0.0.1"), "{record}");
            index += 1;
        }
    }
}

/// Bytes after the preface belong to what follows, in one packet or in many.
#[tokio::test]
async fn preface_and_request_may_come_in_any_pieces() {
    let upstream = Upstream::echo().await;
    let site = site_with("p.test", &upstream, "tls = \"off\"");
    let edge = Edge::start(&listing("\"loopback\"", site)).await;
    let request = b"GET / HTTP/1.1\r\nHost: p.test\r\n\r\n";
    for (index, preface) in [v1(CLIENT, FRONT), v2(CLIENT, FRONT)].into_iter().enumerate() {
        let whole = [&preface[..], request].concat();
        let mut wire = Wire::new(dial("127.0.0.1", edge.http_addr(), &whole).await);
        assert_eq!(wire.reply().await.status, 200);
        let mut wire = Wire::new(dial("127.0.0.1", edge.http_addr(), b"").await);
        for byte in &whole {
            wire.send([*byte]).await;
        }
        assert_eq!(wire.reply().await.status, 200);
        for seen in &upstream.seen()[2 * index..] {
            assert_eq!((seen.fault.as_ref(), seen.header("x-forwarded-for")), (None, Some("203.0.113.9")));
        }
    }
}

/// Tunnels, over HTTP/1.1 and HTTP/2: the gateway is told the true client, and so is the record.
#[tokio::test]
async fn a_websocket_has_the_address_of_the_preface() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&listing("\"127.0.0.1\"", site("a.test", &upstream))).await;
    let mut wire = Wire::new(tls(&edge, &v1(CLIENT, FRONT), "a.test", "http/1.1").await);
    wire.send(upgrade_request("a.test", "/", "X-Forwarded-For: 127.0.0.1\r\n")).await;
    assert_eq!(wire.reply().await.status, 101);
    let mut h2 = H2::over(tls(&edge, &v2(CLIENT, FRONT), "a.test", "h2").await).await;
    let second = Wire::new(h2.connect("a.test", "/").await);
    for mut socket in [wire, second] {
        socket.send(masked_frame(1, b"hello")).await;
        assert_eq!(socket.exact(7).await, frame(1, b"hello"));
    }
    drop(h2);
    for over in ["h1", "h2"] {
        let record = edge.record_where(over, |record| record["kind"] == "tunnel" && record["over"] == over).await;
        assert_eq!((&record["peer"], &record["client"]), (&CLIENT.into(), &"203.0.113.9".into()), "{record}");
        assert!(is_via(&record, "127.0.0.1"), "{record}");
    }
    for seen in upstream.seen() {
        assert_eq!(seen.headers.all("x-forwarded-for"), ["203.0.113.9"]);
    }
}

/// SECURITY.md 1: who is not listed cannot say a word by a preface; and needs none.
#[tokio::test]
async fn a_preface_from_anybody_else_is_refused() {
    let upstream = Upstream::echo().await;
    let sites = site("a.test", &upstream) + &site_with("p.test", &upstream, "tls = \"off\"");
    let edge = Edge::start(&listing("\"127.0.0.2\", \"unix\"", sites)).await;
    for preface in [v1(CLIENT, FRONT), v2(CLIENT, FRONT), local(), b"PROXY UNKNOWN\r\n".to_vec()] {
        let seen = edge.records().len();
        let tcp = dial("127.0.0.1", edge.https_addr(), &preface).await;
        let from = tcp.local_addr().unwrap().to_string();
        assert!(Wire::new(tcp).rest().await.is_empty(), "nothing is answered");
        let record = edge.record_after(seen, "the forged preface", |record| record["peer"] == *from).await;
        assert!(record["ended"] == "tls" && record["why"].as_str().unwrap().contains("PROXY protocol"), "{record}");
        assert!(record["via"].is_null());

        let request = [&preface[..], b"GET / HTTP/1.1\r\nHost: p.test\r\n\r\n"].concat();
        let answer = Wire::new(dial("127.0.0.1", edge.http_addr(), &request).await).rest().await;
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(upstream.seen().is_empty(), "none of it went further");

    assert_eq!(edge.get("a.test", "/").await.status, 200);
    assert_eq!(upstream.request(0).await.headers.all("x-forwarded-for"), ["127.0.0.1"]);
    let record = nth_request(&edge, 0).await;
    assert!(record["via"].is_null() && record["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");

    let tcp = dial("127.0.0.2", edge.https_addr(), &v2(CLIENT, FRONT)).await;
    assert_eq!(get(secure(&edge, tcp, "a.test", "http/1.1").await, "a.test", "").await, 200);
    assert_eq!(upstream.request(1).await.headers.all("x-forwarded-for"), ["203.0.113.9"]);
}

/// Issue 5, 4: required there. Whatever else comes is closed without a byte of answer, and leaves exactly one record.
#[tokio::test]
async fn a_listed_peer_that_sends_none_is_closed() {
    let upstream = Upstream::echo().await;
    let sites = site("a.test", &upstream) + &site_with("p.test", &upstream, "tls = \"off\"");
    let mut edge = Edge::start(&listing("\"loopback\"", sites)).await;
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let announced = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", &[7; 300][..]].concat();
    let whole = v2(CLIENT, FRONT);
    let cases: [(&[u8], &str); 11] = [
        (&hello, "began with TLS"),
        (b"GET / HTTP/1.1\r\nHost: p.test\r\n\r\n", "first byte 0x47"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "first byte 0x50"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 4660 443\nGET / HTTP/1.1\r\n\r\n", "does not end in CR LF"),
        (b"PROXY TCP4 203.0.113.9\r\n192.0.2.1 4660 443\r\n", "two addresses and two ports"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 4660 99999\r\n", "no addresses that could be read"),
        (&[b"PROXY TCP4 ", &[b'1'; 200][..]].concat(), "longer than 107 bytes"),
        (&announced, "announces 65551 bytes"),
        (&whole[..20], "broke off after 20 bytes"),
        (b"PROXY TCP4 203.0.113.9 192", "broke off after 26 bytes"),
        (b"", "broke off after 0 bytes"),
    ];
    for address in [edge.https_addr(), edge.http_addr()] {
        for (bytes, words) in cases {
            let seen = edge.records().len();
            let mut tcp = dial("127.0.0.1", address, bytes).await;
            let from = tcp.local_addr().unwrap().to_string();
            if words.starts_with("broke off") {
                tcp.shutdown().await.unwrap();
            }
            assert!(Wire::new(tcp).rest().await.is_empty(), "{words}: nothing is answered");
            let record = edge.record_after(seen, words, |record| record["peer"] == *from).await;
            assert!(record["kind"] == "connection" && record["ended"] == "proxy", "{record}");
            assert!(record["why"].as_str().unwrap().contains(words), "{record}");
            assert!(record["via"].is_null(), "{record}");
        }
    }
    edge.stop().await;
    let records = edge.records();
    assert_eq!(records.len(), 2 * cases.len(), "one for each: {records:?}");
    assert!(upstream.seen().is_empty());
}

/// SECURITY.md 2: one absolute deadline from accept, for the preface and the handshake together.
#[tokio::test]
async fn a_late_preface_is_cut_by_the_deadline_of_the_handshake() {
    let upstream = Upstream::echo().await;
    let sites = site("a.test", &upstream);
    let listen = "[listen]\nhandshake_timeout = \"400ms\"\n";
    let edge = Edge::start(&format!("{listen}{}", listing("\"loopback\"", sites))).await;
    let whole = v1(CLIENT, FRONT);
    for (address, bytes, ended, words) in [
        (edge.https_addr(), &b""[..], "proxy", "(0 bytes"),
        (edge.https_addr(), &whole[..9], "proxy", "(9 bytes"),
        (edge.http_addr(), &local()[..13], "proxy", "(13 bytes"),
        (edge.https_addr(), &whole, "tls", "within the handshake timeout"),
    ] {
        let seen = edge.records().len();
        let tcp = dial("127.0.0.1", address, bytes).await;
        let from = tcp.local_addr().unwrap().to_string();
        assert!(Wire::new(tcp).rest().await.is_empty(), "{words}: nothing is answered");
        let of_it = |record: &Value| record["peer"] == *from || record["via"] == *from;
        let record = edge.record_after(seen, words, of_it).await;
        assert!(record["ended"] == ended && record["why"].as_str().unwrap().contains(words), "{record}");
        assert!(record["ms"].as_u64().is_some_and(|ms| (400..5000).contains(&ms)), "{record}");
    }
}

/// LOCAL and UNKNOWN mean the sender itself: a check that closes leaves one quiet record, a request is its own.
#[tokio::test]
async fn a_health_check_is_understood() {
    let upstream = Upstream::echo().await;
    let sites = site("a.test", &upstream) + &site_with("p.test", &upstream, "tls = \"off\"");
    let mut edge = Edge::start(&listing("\"loopback\"", sites)).await;
    let own = [local(), b"PROXY UNKNOWN\r\n".to_vec(), binary(0x21, 0x31, &[b'x'; 216]), binary(0x20, 0x11, &[9; 12])];
    for preface in &own {
        for address in [edge.https_addr(), edge.http_addr()] {
            let seen = edge.records().len();
            let mut tcp = dial("127.0.0.1", address, preface).await;
            let from = tcp.local_addr().unwrap().to_string();
            tcp.shutdown().await.unwrap();
            assert!(Wire::new(tcp).rest().await.is_empty());
            let record = edge.record_after(seen, "the check", |record| record["peer"] == *from).await;
            assert!(record["kind"] == "connection" && record["ended"] == "closed", "{record}");
            assert!(record["via"] == *from && record["why"].as_str().unwrap().contains("health check"), "{record}");
        }
        let seen = edge.records().len();
        assert_eq!(get(tls(&edge, preface, "a.test", "http/1.1").await, "a.test", "").await, 200);
        edge.record_after(seen, "the request", |record| record["kind"] == "request").await;
    }
    for seen in upstream.seen() {
        assert_eq!(seen.headers.all("x-forwarded-for"), ["127.0.0.1"], "the socket's own address is meant");
    }
    edge.stop().await;
    let records = edge.records();
    assert_eq!(records.len(), 3 * own.len(), "two checks and a request for each: {records:?}");
}

/// SECURITY.md 1: a preface makes nobody local, whatever it says; without one the same site counts the same person so.
#[tokio::test]
async fn no_preface_makes_anybody_local() {
    let upstream = WebSocketUpstream::start().await;
    let site = site_with("localhost", &upstream, "attribution = \"local\"");
    let edge = Edge::start(&listing("\"127.0.0.2\"", site)).await;
    assert_eq!(edge.get("localhost", "/").await.status, 200);
    assert!(!upstream.seen()[0].headers.has("x-forwarded-for"), "a person at this machine, as configured");
    let at_home = edge.https_addr().to_string();
    for (preface, client) in [
        (v1("127.0.0.1:4660", &at_home), "127.0.0.1"),
        (v2("127.0.0.1:4660", &at_home), "127.0.0.1"),
        (v2("127.0.0.2:4660", "127.0.0.2:443"), "127.0.0.2"),
        (v1("[::1]:4660", "[::1]:443"), "::1"),
        (v2("[::1]:4660", "[::1]:443"), "::1"),
        (v2("[::ffff:127.0.0.1]:4660", "[::1]:443"), "127.0.0.1"),
        (local(), "127.0.0.2"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.2"),
        (binary(0x21, 0x00, &[]), "127.0.0.2"),
        (binary(0x21, 0x31, &[0; 216]), "127.0.0.2"),
    ] {
        let before = upstream.seen().len();
        let dialled = async || dial("127.0.0.2", edge.https_addr(), &preface).await;
        assert_eq!(get(secure(&edge, dialled().await, "localhost", "http/1.1").await, "localhost", "").await, 200);
        let mut wire = Wire::new(secure(&edge, dialled().await, "localhost", "http/1.1").await);
        wire.send(upgrade_request("localhost", "/", "")).await;
        assert_eq!(wire.reply().await.status, 101);
        let mut h2 = H2::over(secure(&edge, dialled().await, "localhost", "h2").await).await;
        assert_eq!(h2.get("localhost", "/").await.status, 200);
        let seen = upstream.seen();
        assert_eq!(seen.len(), before + 3);
        for seen in &seen[before..] {
            assert_eq!(seen.headers.all("x-forwarded-for"), [client], "{:?}", seen.headers);
        }
    }
}

/// The sender of a preface is no hop: `trust.proxies` judges the address in it.
#[tokio::test]
async fn only_the_address_of_the_preface_may_be_a_trusted_hop() {
    let upstream = Upstream::echo().await;
    let trust = "[trust]\nproxy_protocol = [\"127.0.0.1\"]\nproxies = [\"127.0.0.0/8\", \"198.51.100.7\"]\n";
    let edge = Edge::start(&format!("{trust}{}", site("a.test", &upstream))).await;
    let forwarded = "X-Forwarded-For: 203.0.113.77\r\nX-Request-Id: of-the-hop\r\n";
    for (index, (source, client, hops)) in
        [("203.0.113.9:1", "203.0.113.9", 0), ("198.51.100.7:1", "203.0.113.77", 1)].into_iter().enumerate()
    {
        let stream = tls(&edge, &v2(source, FRONT), "a.test", "http/1.1").await;
        assert_eq!(get(stream, "a.test", forwarded).await, 200);
        let seen = upstream.request(index).await;
        assert_eq!(seen.headers.all("x-forwarded-for"), [client]);
        assert_eq!(seen.header("x-request-id") == Some("of-the-hop"), hops > 0);
        let record = nth_request(&edge, index).await;
        assert_eq!((&record["hops"], &record["peer"]), (&hops.into(), &source.into()), "{record}");
    }
}

/// Who may enter is judged by the address of the preface, not by the balancer's.
#[tokio::test]
async fn access_is_judged_by_the_address_of_the_preface() {
    let upstream = Upstream::echo().await;
    let site = site_with("a.test", &upstream, "allow = [\"203.0.113.0/24\"]");
    let edge = Edge::start(&listing("\"loopback\"", site)).await;
    for (preface, status) in [(v2(CLIENT, FRONT), 200), (v2("198.51.100.1:1", FRONT), 403), (local(), 403)] {
        assert_eq!(get(tls(&edge, &preface, "a.test", "http/1.1").await, "a.test", "").await, status);
    }
    assert_eq!(upstream.seen().len(), 1);
}

/// Without SNI the site is named by the local address: the one that the client connected to, as the preface says.
#[tokio::test]
async fn the_destination_stands_for_a_name_that_is_missing() {
    let (first, second) = (Upstream::saying("first").await, Upstream::saying("second").await);
    let own = "certificate = \"local\"";
    let sites = site_with("192.0.2.1", &first, own) + &site_with("2001:db8::1", &second, own);
    let edge = Edge::start(&listing("\"loopback\"", sites)).await;
    for (preface, host, body) in [
        (v1(CLIENT, FRONT), "192.0.2.1", "first"),
        (v2(CLIENT, FRONT), "192.0.2.1", "first"),
        (v2("[2001:db8::9]:1", "[2001:db8::1]:443"), "2001:db8::1", "second"),
        (v2("[2001:db8::9]:1", "[::ffff:192.0.2.1]:443"), "192.0.2.1", "first"),
    ] {
        // A client that wants an address sends no SNI, and checks the certificate for it.
        let mut wire = Wire::new(tls(&edge, &preface, host, "http/1.1").await);
        let authority = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        wire.send(format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
        assert_eq!(wire.reply().await.text(), body);
    }
}

/// Behind a balancer our own port is nobody's business: the redirect names the standard one.
#[tokio::test]
async fn a_redirect_behind_a_proxy_names_no_port_of_ours() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&listing("\"loopback\"", site("a.test", &upstream))).await;
    for preface in [v2(CLIENT, "192.0.2.1:80"), local()] {
        let mut wire = Wire::new(dial("127.0.0.1", edge.http_addr(), &preface).await);
        wire.send("GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.headers.get("location")), (308, Some("https://a.test/x")));
    }
}

/// The list in force at accept counts; a reload says that it changed.
#[tokio::test]
async fn a_reload_changes_what_is_accepted_from_then_on() {
    let upstream = Upstream::echo().await;
    let sites = site_with("p.test", &upstream, "tls = \"off\"");
    // One worker, one queue: what was accepted later shows that the earlier one is.
    let rest = format!("{sites}[process]\nworkers = 1\n");
    let edge = Edge::start(&listing("\"loopback\"", &rest)).await;
    let preface = v1(CLIENT, FRONT);
    let mut early = dial("127.0.0.1", edge.http_addr(), b"").await;
    assert_eq!(get(dial("127.0.0.1", edge.http_addr(), &preface).await, "p.test", "").await, 200);

    assert!(edge.reload_with(&rest).await);
    let reloaded = edge.event("reloaded").await;
    assert!(reloaded.to_string().contains("~ trust"), "{reloaded}");
    assert_eq!(get(dial("127.0.0.1", edge.http_addr(), b"").await, "p.test", "").await, 200);
    let mut late = dial("127.0.0.1", edge.http_addr(), b"").await;
    early.write_all(&preface).await.unwrap();
    assert_eq!(get(early, "p.test", "").await, 200);
    // The second way: accepted without the list, and with it in force since.
    assert_eq!(get(dial("127.0.0.1", edge.http_addr(), b"").await, "p.test", "").await, 200);
    assert!(edge.reload_with(&listing("\"loopback\"", &rest)).await);
    late.write_all(b"GET / HTTP/1.1\r\nHost: p.test\r\n\r\n").await.unwrap();
    assert_eq!(Wire::new(late).reply().await.status, 200);
    assert!(Wire::new(dial("127.0.0.1", edge.http_addr(), b"GET / HTTP/1.1\r\n\r\n").await).rest().await.is_empty());

    let clients: Vec<_> =
        upstream.seen().iter().map(|seen| seen.header("x-forwarded-for").map(str::to_owned)).collect();
    let (there, here) = (Some("203.0.113.9".to_owned()), Some("127.0.0.1".to_owned()));
    assert_eq!(clients, [there.clone(), here.clone(), there, here.clone(), here]);
}

/// Peers of a unix socket have no address; a preface gives them one.
#[tokio::test]
async fn a_peer_on_a_unix_socket_may_send_one() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("edge.sock");
    let listen = format!("[listen]\nhttp = [\"127.0.0.1:0\", \"unix:{}\"]\n", path.display());
    let sites = site_with("p.test", &upstream, "tls = \"off\"");
    let edge = Edge::start(&format!("{listen}{}", listing("\"unix\"", sites))).await;
    for (preface, status) in [(v2(CLIENT, FRONT), 200), (v1(CLIENT, FRONT), 200), (local(), 502)] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&preface).await.unwrap();
        assert_eq!(get(stream, "p.test", "").await, status);
    }
    for seen in upstream.seen() {
        assert_eq!(seen.headers.all("x-forwarded-for"), ["203.0.113.9"]);
    }
    let record = nth_request(&edge, 0).await;
    assert_eq!((&record["peer"], &record["via"]), (&CLIENT.into(), &"unix".into()), "{record}");
    assert_eq!(get(dial("127.0.0.1", edge.http_addr(), b"").await, "p.test", "").await, 200, "others are not listed");
}

/// Issue 5, "Must show": HAProxy in front, as it is installed: the record shows the true client, and its checks are known.
#[tokio::test]
async fn haproxy_in_front_tells_the_true_client() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&listing("\"127.0.0.1\"", site("a.test", &upstream))).await;
    for (version, visitor, talker) in
        [("send-proxy", "127.0.0.5", "127.0.0.6"), ("send-proxy-v2", "127.0.0.7", "127.0.0.8")]
    {
        let Some((_haproxy, front)) = haproxy(edge.https_addr(), version).await else { return };
        let tcp = dial(visitor, front, b"").await;
        let client = tcp.local_addr().unwrap().to_string();
        assert_eq!(get(secure(&edge, tcp, "a.test", "http/1.1").await, "a.test", "").await, 200, "{version}");
        let record = edge.record_where("the visit", |record| record["client"] == visitor).await;
        assert_eq!((&record["kind"], &record["peer"]), (&"request".into(), &(*client).into()), "{record}");
        assert!(is_via(&record, "127.0.0.1"), "{record}");

        let tcp = dial(talker, front, b"").await;
        let mut wire = Wire::new(secure(&edge, tcp, "a.test", "http/1.1").await);
        wire.send(upgrade_request("a.test", "/", "")).await;
        assert_eq!(wire.reply().await.status, 101);
        drop(wire);
        let is_tunnel = |record: &Value| record["kind"] == "tunnel" && record["client"] == talker;
        assert!(is_via(&edge.record_where("the tunnel", is_tunnel).await, "127.0.0.1"));
        let seen = upstream.seen();
        let told: Vec<_> = seen[seen.len() - 2..].iter().map(|seen| seen.headers.all("x-forwarded-for")).collect();
        assert_eq!(told, [[visitor], [talker]]);
        let is_check = |record: &Value| record["why"].as_str().is_some_and(|why| why.contains("health check"));
        let check = edge.record_where("a health check", is_check).await;
        assert_eq!(check["via"], check["peer"]);
        let refused: Vec<_> = edge.records().into_iter().filter(|record| record["ended"] == "proxy").collect();
        assert!(refused.is_empty(), "{refused:?}");
    }
}

/// HAProxy on a free port before the edge; `None` where it is not installed, which in CI is a failure.
async fn haproxy(edge: SocketAddr, version: &str) -> Option<(tokio::process::Child, SocketAddr)> {
    const LAUNCHER: &str = r#"
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
listener.set_inheritable(True)
os.environ["FRONT"] = str(listener.fileno())
print(listener.getsockname()[1], flush=True)
os.execvp("haproxy", ["haproxy", "-db", "-f", sys.argv[1]])
"#;
    // Where Debian puts it, which is not on every user's path.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let is_there = |program: &str| {
        let command = ["-c", "command -v \"$0\"", program];
        std::process::Command::new("sh").args(command).env("PATH", &path).output().is_ok_and(|run| run.status.success())
    };
    if !is_there("haproxy") || !is_there("python3") {
        assert!(std::env::var_os("CI").is_none(), "haproxy or python3 is missing; run tests/setup.sh");
        return None;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let config = dir.path().join("haproxy.cfg");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n\
         listen front\n bind \"fd@${{FRONT}}\"\n server edge {edge} {version} check inter 200ms\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = tokio::process::Command::new("python3");
    command.args(["-c", LAUNCHER]).arg(&config).env("PATH", &path).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = within("the port is known", lines.next_line()).await.unwrap().expect("a port");
    let front = SocketAddr::new([127, 0, 0, 1].into(), port.parse().unwrap());
    // The configuration is read by the time that something is served.
    within("HAProxy serves", async {
        let tcp = dial("127.0.0.1", front, b"x").await;
        Wire::new(tcp).rest().await;
    })
    .await;
    Some((child, front))
}
