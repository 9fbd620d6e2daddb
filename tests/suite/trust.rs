//! Who is asking: forwarded chains, identity headers, and the gateway's own idea of "local" (GATEWAY.md 2 and 3).

use std::net::IpAddr;

use crate::harness::{Edge, H2, RawH2, Seen, Upstream, WebSocketUpstream, site, site_with};

/// What the gateway makes of a request that arrives from loopback (GATEWAY.md 2).
#[derive(Debug, PartialEq, Eq)]
enum Attribution {
    /// No forwarding header: a local client, with all its rights.
    DirectLocal,
    /// A client behind the edge.
    Client(IpAddr),
    /// Refused with 403.
    Unattributable,
}

/// The gateway's rule, with the edge in `trustedProxies`.
fn gateway_rule(seen: &Seen) -> Attribution {
    let names = || seen.headers.0.iter().map(|(name, _)| name.replace('_', "-"));
    let forwards = |name: &str| {
        name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-") || name.starts_with("tailscale-")
    };
    if !names().any(|name| forwards(&name)) {
        return Attribution::DirectLocal;
    }
    // Node joins the lines of a header; the chain is walked from the right over loopback hops.
    let chain = seen.headers.all("x-forwarded-for").join(",");
    let hops = chain.split(',').rev().filter_map(|hop| hop.trim().parse::<IpAddr>().ok());
    hops.filter(|ip| !ip.is_loopback()).map(Attribution::Client).next().unwrap_or(Attribution::Unattributable)
}

/// The headers that a client forges in these tests.
const FORGED: [(&str, &str); 24] = [
    ("X-Forwarded-For", "203.0.113.9"),
    ("x-forwarded-for", "127.0.0.1, 203.0.113.9"),
    ("X-Forwarded-For", "garbage"),
    ("X-Forwarded-For", ""),
    ("X_Forwarded_For", "203.0.113.9"),
    ("X-Forwarded_For", "203.0.113.9"),
    ("Forwarded", "for=203.0.113.9;proto=http;host=evil.test"),
    ("X-Real-IP", "203.0.113.9"),
    ("X_Real_IP", "203.0.113.9"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Proto", "http"),
    ("X-Forwarded-Port", "1"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Forwarded-User", "root"),
    ("Tailscale-User-Login", "root@example.com"),
    ("tailscale-funnel-request", "?1"),
    ("X-Auth-Request-Email", "root@example.com"),
    ("X-Pomerium-Claim-Email", "root@example.com"),
    ("Cf-Access-Authenticated-User-Email", "root@example.com"),
    ("Remote-User", "root"),
    ("X-Remote-User", "root"),
    ("REMOTE_USER", "root"),
    ("X-Original-URL", "/admin"),
    ("X-Rewrite-URL", "/admin"),
];

/// What must not be left of them.
fn assert_clean(seen: &Seen, client: &str) {
    assert_eq!(seen.fault, None, "{:?}", seen.headers);
    assert_eq!(seen.headers.all("x-forwarded-for"), [client]);
    assert_eq!(seen.headers.all("x-real-ip"), [client]);
    assert_eq!(seen.headers.all("x-forwarded-host"), ["a.test"]);
    assert_eq!(seen.headers.all("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.headers.all("x-forwarded-port").len(), 1);
    assert_eq!(seen.headers.all("x-request-id").len(), 1);
    for (name, value) in &seen.headers.0 {
        assert!(!value.contains("root") && !value.contains("evil") && !value.contains("/admin"), "{name}: {value}");
    }
    assert!(!seen.headers.has("forwarded"), "RFC 7239 is read, never written beside X-Forwarded-For");
    assert_ne!(gateway_rule(seen), Attribution::DirectLocal);
}

/// N-25, G-07, G-08: whatever an untrusted peer says of itself is gone, over HTTP/1.1, HTTP/2 and in upgrades.
#[tokio::test]
async fn forged_headers_change_nothing() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let lines: String = FORGED.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    edge.get_with("a.test", "/", &lines).await;
    edge.upgrade("a.test", "/", &lines).await;
    for (index, (name, value)) in FORGED.iter().enumerate() {
        edge.get_with("a.test", "/", &format!("{name}: {value}\r\nConnection: {name}\r\n")).await;
        assert_clean(&upstream.seen()[index + 2], "127.0.0.1");
    }
    let seen = upstream.seen();
    assert_clean(&seen[0], "127.0.0.1");
    assert_eq!(seen[1].header("upgrade"), Some("websocket"));
    assert_clean(&seen[1], "127.0.0.1");
    let mut h2: H2 = edge.h2("a.test").await;
    let mut request = http::Request::get("https://a.test/");
    for (name, value) in FORGED {
        request = request.header(name, value);
    }
    h2.exchange(request.body(()).unwrap(), None).await.unwrap();
    assert_clean(upstream.seen().last().unwrap(), "127.0.0.1");
}

/// Issue 2, 6: a property over thousands of mixtures: no bytes of a client make its request look local.
#[tokio::test]
async fn no_mixture_of_headers_looks_local_to_the_gateway() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut wire = edge.h1("a.test").await;
    let mut raw: RawH2 = edge.raw_h2("a.test").await;
    let mut stream = 1;
    for round in 0..600_usize {
        let mut chosen: Vec<(String, String)> = Vec::new();
        for _ in 0..dice.below(6) {
            let (name, value) = FORGED[dice.below(FORGED.len())];
            let value = if dice.below(4) == 0 {
                ["::1", "127.0.0.1", "unknown", "[::ffff:127.0.0.1]:80"][dice.below(4)]
            } else {
                value
            };
            chosen.push((dice.disguise(name), value.to_owned()));
            if dice.below(3) == 0 {
                chosen.push(("Connection".into(), dice.disguise(name)));
            }
        }
        let before = upstream.seen().len();
        if round % 4 == 3 {
            let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
            let chosen: Vec<_> =
                chosen.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
            let own = chosen
                .iter()
                .filter(|(name, _)| name != "connection")
                .map(|(name, value)| (name.as_str(), value.as_str()));
            let all: Vec<(&str, &str)> = fields.into_iter().chain(own).collect();
            let outcome = raw.request(stream, &all).await;
            stream += 2;
            assert!(outcome == crate::harness::Outcome::Status(200) || outcome.is_refused(), "{outcome:?} {all:?}");
            if matches!(outcome, crate::harness::Outcome::GoAway(_) | crate::harness::Outcome::Closed) {
                (raw, stream) = (edge.raw_h2("a.test").await, 1);
            }
        } else {
            let lines: String = chosen.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            wire.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")).await;
            let reply = wire.reply().await;
            assert!(matches!(reply.status, 200 | 400), "{} for {lines}", reply.status);
            if reply.status != 200 || reply.headers.get("connection").is_some_and(|value| value.contains("close")) {
                wire = edge.h1("a.test").await;
            }
        }
        for seen in &upstream.seen()[before..] {
            assert_clean(seen, "127.0.0.1");
        }
    }
    assert!(upstream.seen().len() > 300, "most of them are served, without what they forged");
}

/// A small source of chance, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }

    /// Another spelling of a name: case, `_` for `-`.
    fn disguise(&mut self, name: &str) -> String {
        let mode = self.below(4);
        name.chars()
            .map(|c| match mode {
                0 => c.to_ascii_uppercase(),
                1 => c.to_ascii_lowercase(),
                2 if c == '-' => '_',
                _ if self.below(2) == 0 => c.to_ascii_uppercase(),
                _ => c,
            })
            .collect()
    }
}

/// A configuration that trusts the loopback peer of the tests.
fn trusting(upstream: impl std::fmt::Display) -> String {
    format!("[trust]\nproxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n{}", site("a.test", upstream))
}

/// Issue 2, 6: the chain is walked from the right over trusted hops; one address goes on.
#[tokio::test]
async fn a_trusted_hop_tells_the_client() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&trusting(&upstream)).await;
    let cases = [
        ("X-Forwarded-For: 203.0.113.77\r\n", "203.0.113.77"),
        ("X-Forwarded-For: 198.51.100.1, 203.0.113.77\r\n", "203.0.113.77"),
        ("X-Forwarded-For: 203.0.113.77, 10.0.0.5\r\n", "203.0.113.77"),
        ("X-Forwarded-For: 203.0.113.77\r\nX-Forwarded-For: 10.0.0.5\r\n", "203.0.113.77"),
        ("X-Forwarded-For: 203.0.113.77:4711\r\n", "203.0.113.77"),
        ("X-Forwarded-For: [2001:db8::7]:4711\r\n", "2001:db8::7"),
        ("X-Forwarded-For: ::ffff:203.0.113.77\r\n", "203.0.113.77"),
        ("Forwarded: for=203.0.113.77;proto=https\r\n", "203.0.113.77"),
        ("Forwarded: for=\"[2001:db8::7]:4711\", for=10.1.1.1\r\n", "2001:db8::7"),
    ];
    for (index, (line, client)) in cases.into_iter().enumerate() {
        assert_eq!(edge.get_with("a.test", "/", line).await.status, 200, "{line:?}");
        let seen = upstream.request(index).await;
        assert_eq!(seen.headers.all("x-forwarded-for"), [client], "{line:?}");
        assert_eq!(seen.header("x-real-ip"), Some(client));
        assert_eq!(gateway_rule(&seen), Attribution::Client(client.parse().unwrap()));
        let record = edge.record_where("this request's", |record| record["client"] == client).await;
        assert!(record["hops"].as_u64().is_some_and(|hops| hops >= 1), "{record}");
        assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
    }
}

/// Issue 2, 6: garbage in a trusted hop's chain is never believed, and never makes a client up.
#[tokio::test]
async fn garbage_from_a_trusted_hop_is_never_believed() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&trusting(&upstream)).await;
    for line in [
        "X-Forwarded-For: garbage\r\n",
        "X-Forwarded-For: 203.0.113.77, garbage\r\n",
        "X-Forwarded-For: unknown\r\n",
        "X-Forwarded-For: 203.0.113.77; evil\r\n",
        "X-Forwarded-For: 203.0.113.999\r\n",
        "X-Forwarded-For: \r\n",
        "Forwarded: for=unknown\r\n",
        "Forwarded: for=_hidden\r\n",
        "Forwarded: for=203.0.113.77\" evil\r\n",
    ] {
        let before = upstream.seen().len();
        let reply = edge.get_with("a.test", "/", line).await;
        let seen = upstream.seen();
        match reply.status {
            200 => {
                let client = seen[before].header("x-forwarded-for").expect("one address");
                assert!(client.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()), "{line:?} became {client}");
            }
            400 | 502 => assert_eq!(seen.len(), before, "{line:?}"),
            other => panic!("{line:?}: {other}"),
        }
    }
}

/// M-10, N-24: the request ID of a trusted hop is kept when it is one, and the same in every place.
#[tokio::test]
async fn the_request_id_is_the_same_everywhere() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let reply = edge.get_with("a.test", "/", "X-Request-Id: forged\r\n").await;
    let id = reply.headers.get("x-request-id").expect("an id").to_owned();
    assert_ne!(id, "forged");
    assert_eq!(upstream.only().await.header("x-request-id"), Some(&*id));
    assert_eq!(edge.record("request").await["id"], *id);
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&trusting(&upstream)).await;
    let reply = edge.get_with("a.test", "/", "X-Request-Id: hop-4711.A_b\r\n").await;
    assert_eq!(reply.headers.get("x-request-id"), Some("hop-4711.A_b"));
    let reply = edge.get_with("a.test", "/", "X-Request-Id: two words\r\n").await;
    assert_ne!(reply.headers.get("x-request-id"), Some("two words"));
    let long = "x".repeat(300);
    let reply = edge.get_with("a.test", "/", &format!("X-Request-Id: {long}\r\n")).await;
    assert!(reply.headers.get("x-request-id").unwrap().len() <= 128);
}

/// CONFIG.md 3: `trust.strip` names further headers that no client may send.
#[tokio::test]
async fn further_headers_are_never_taken_from_a_client() {
    let upstream = Upstream::echo().await;
    let config = format!("[trust]\nstrip = [\"X-Openclaw-Scopes\"]\n{}", site("a.test", &upstream));
    let edge = Edge::start(&config).await;
    edge.get_with("a.test", "/", "X-OpenClaw-Scopes: admin\r\nX_OpenClaw_Scopes: admin\r\nX-Other: 1\r\n").await;
    let seen = upstream.only().await;
    assert!(!seen.headers.has("x-openclaw-scopes") && seen.headers.has("x-other"), "{:?}", seen.headers);
}

/// GATEWAY.md 12: the one exception: a person at this machine, by a local name, counts as local where it is asked for.
#[tokio::test]
async fn a_local_person_counts_as_local_only_where_configured() {
    let upstream = WebSocketUpstream::start().await;
    let edge = Edge::start(&site_with("localhost", &upstream, "attribution = \"local\"")).await;
    edge.get("localhost", "/").await;
    edge.websocket("localhost", "/").await;
    for seen in upstream.seen() {
        assert_eq!(gateway_rule(&seen), Attribution::DirectLocal, "{:?}", seen.headers);
    }
    // Any forwarding header means a proxy in between: then the address is told, as everywhere.
    for (index, (name, value)) in FORGED.iter().take(15).enumerate() {
        edge.get_with("localhost", "/", &format!("{name}: {value}\r\n")).await;
        let seen = &upstream.seen()[index + 2];
        assert_ne!(gateway_rule(seen), Attribution::DirectLocal, "{name}: {value}");
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    }
}

/// GATEWAY.md 12: `check` refuses the exception anywhere but on local names and loopback listeners.
#[tokio::test]
async fn local_attribution_is_refused_elsewhere() {
    for config in [
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"127.0.0.1:0\"]\n[sites.\"claw.example.test\"]\nupstream = \"127.0.0.1:1\"\nattribution = \"local\"\n",
        "[listen]\nhttps = [\"0.0.0.0:0\"]\nhttp = [\"127.0.0.1:0\"]\n[sites.\"localhost\"]\nupstream = \"127.0.0.1:1\"\nattribution = \"local\"\n",
    ] {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::write(dir.path().join("tidegate.toml"), config).unwrap();
        let run = crate::harness::run_in(dir.path(), &["check"]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!((run.stdout + &run.stderr).contains("attribution"), "{config}");
    }
}
