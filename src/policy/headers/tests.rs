//! Tables for each step, and the product's boundary as a property: whatever a client sends, the
//! gateway sees the client that we resolved, and never a local one.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::addr::PeerAddr;
use crate::policy::trust;
use crate::site::policy::Networks;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    headers
}

/// All fields as text, sorted, so that maps compare.
fn list(headers: &HeaderMap) -> Vec<String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut list: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
    list.sort();
    list
}

#[test]
fn an_ordinary_request_passes_unchanged() {
    let fields = [
        ("host", "claw.example.com"),
        ("user-agent", "Mozilla/5.0"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip, br"),
        ("authorization", "Bearer t"),
        ("x-openclaw-token", "t"),
        ("cookie", "a=1"),
        ("origin", "https://claw.example.com"),
        ("sec-websocket-key", "k"),
        ("content-length", "3"),
        ("via", "1.1 a"),
    ];
    let mut headers = map(&fields);
    clean_request(&mut headers, &Trust::default(), false, &[]);
    assert_eq!(list(&headers), list(&map(&fields)));
}

#[test]
fn what_a_client_may_not_say_is_removed() {
    let strip = Trust { strip: vec!["x-internal".into(), "x-corp-".into()], ..Trust::default() };
    let also = [HeaderName::from_static("x-client-subject")];
    for (name, from_client, from_hop) in [
        ("Connection", false, false),
        ("Keep-Alive", false, false),
        ("Proxy-Connection", false, false),
        ("Proxy-Authorization", false, false),
        ("Proxy", false, false),
        ("TE", false, false),
        ("Transfer-Encoding", false, false),
        ("Upgrade", false, false),
        ("HTTP2-Settings", false, false),
        ("Expect", false, false),
        ("Forwarded", false, false),
        ("X-Forwarded-For", false, false),
        ("X-Forwarded-User", false, false),
        ("X_Forwarded_For", false, false),
        ("X-Real-IP", false, false),
        ("CF-Connecting-IP", false, false),
        ("Tailscale-User-Login", false, false),
        ("X-Auth-Request-Email", false, false),
        ("X-Pomerium-Claim-Email", false, false),
        ("CF-Access-Jwt-Assertion", false, false),
        ("Remote-User", false, false),
        ("X-Original-URL", false, false),
        ("X-OpenClaw-Scopes", false, false),
        ("X-Client-Subject", false, false),
        ("X_Client_Subject", false, false),
        ("Any_Thing", false, false),
        ("X-Internal", false, true),
        ("X-Corp-User", false, true),
        ("X-Corps", true, true),
        ("X-Internal-Too", true, true),
        ("Trailer", true, true),
    ] {
        for (is_trusted, expected) in [(false, from_client), (true, from_hop)] {
            let mut headers = map(&[(name, "v"), (name, "w"), ("accept", "*/*")]);
            clean_request(&mut headers, &strip, is_trusted, &also);
            assert_eq!(headers.contains_key(name), expected, "{name} trusted: {is_trusted}");
            assert!(headers.contains_key("accept"));
        }
    }
}

#[test]
fn connection_takes_away_what_it_names_but_nothing_that_matters() {
    let mut headers = map(&[
        ("connection", "close, X-Hop , host,content-length"),
        ("connection", "Cookie, authorization, origin, x-openclaw-token, sec-websocket-key, accept, x y, ,"),
        ("x-hop", "1"),
        ("x-hop", "2"),
        ("host", "a.test"),
        ("content-length", "3"),
        ("cookie", "a=1"),
        ("authorization", "Bearer t"),
        ("origin", "https://a.test"),
        ("x-openclaw-token", "t"),
        ("sec-websocket-key", "k"),
        ("accept", "*/*"),
    ]);
    clean_request(&mut headers, &Trust::default(), false, &[]);
    assert!(!headers.contains_key("x-hop") && !headers.contains_key("connection"));
    assert_eq!(headers.len(), 8, "{headers:?}");
}

#[test]
fn te_passes_as_trailers_only() {
    for (value, expected) in [("trailers", true), ("Trailers", true), ("trailers, deflate", false), ("gzip", false)] {
        let mut headers = map(&[("te", value), ("connection", "te")]);
        clean_request(&mut headers, &Trust::default(), false, &[]);
        let wanted = if expected { vec!["connection: te".to_owned(), "te: trailers".to_owned()] } else { Vec::new() };
        assert_eq!(list(&headers), wanted, "{value}");
    }
}

#[test]
fn the_edge_writes_each_field_once() {
    let (host, id) = (HeaderValue::from_static("a.test:9443"), HeaderValue::from_static("id-1"));
    let client = ClientAddr::new("::ffff:203.0.113.9".parse().expect("an address"));
    let edge =
        Edge { client: Some(client), proto: "https", host: &host, port: 9443, request_id: &id, prefix: Some("/api") };
    let mut headers =
        map(&[("x-request-id", "a"), ("x-request-id", "b"), ("x-forwarded-for", "::1"), ("accept", "*/*")]);
    write_edge(&mut headers, &edge);
    let expected = [
        "accept: */*",
        "x-forwarded-for: 203.0.113.9",
        "x-forwarded-host: a.test:9443",
        "x-forwarded-port: 9443",
        "x-forwarded-prefix: /api",
        "x-forwarded-proto: https",
        "x-real-ip: 203.0.113.9",
        "x-request-id: id-1",
    ];
    assert_eq!(list(&headers), expected);
    // Local attribution: nothing that the gateway counts as forwarding.
    write_edge(&mut headers, &Edge { client: None, ..edge });
    assert_eq!(list(&headers), ["accept: */*", "x-request-id: id-1"]);
    for text in ["255.255.255.255", "2001:db8:1111:2222:3333:4444:5555:6666", "::1"] {
        let client = ClientAddr::new(text.parse().expect("an address"));
        assert_eq!(client_value(client), text);
    }
    for port in [80, 443, 8443, 1, 65535] {
        assert_eq!(port_value(port), port.to_string().as_str());
    }
}

#[test]
fn a_response_loses_its_hop_and_keeps_its_content() {
    let mut headers = map(&[
        ("connection", "keep-alive, x-hop, set-cookie, content-length"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("proxy-authenticate", "Basic"),
        ("alt-svc", "h3=\":18789\""),
        ("x-hop", "1"),
        ("content-length", "3"),
        ("content-encoding", "br"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("trailer", "x-checksum"),
        ("x_any", "1"),
    ]);
    clean_response(&mut headers);
    let expected = [
        "content-encoding: br",
        "content-length: 3",
        "set-cookie: a=1",
        "set-cookie: b=2",
        "trailer: x-checksum",
        "x_any: 1",
    ];
    assert_eq!(list(&headers), expected);
}

#[test]
fn trailers_hold_nothing_that_belongs_into_a_head() {
    let mut trailers = map(&[
        ("x-checksum", "1"),
        ("grpc-status", "0"),
        ("content-length", "1"),
        ("host", "b"),
        ("x-forwarded-for", "::1"),
    ]);
    clean_trailers(&mut trailers);
    assert_eq!(list(&trailers), ["grpc-status: 0", "x-checksum: 1"]);
}

#[test]
fn cookie_crumbs_become_one_field() {
    for (crumbs, expected) in [
        (&[][..], &[][..]),
        (&["a=1; b=2"], &["cookie: a=1; b=2"]),
        (&["a=1", "b=2", "c=\"3\""], &["cookie: a=1; b=2; c=\"3\""]),
        (&["", "a=1", "", "b=2"], &["cookie: a=1; b=2"]),
        (&["", ""], &["cookie: "]),
    ] {
        let mut headers = HeaderMap::new();
        for crumb in crumbs {
            headers.append(COOKIE, HeaderValue::from_str(crumb).expect("a value"));
        }
        join_cookies(&mut headers);
        assert_eq!(list(&headers), expected);
    }
}

#[test]
fn edits_remove_set_and_add_in_this_order() {
    let (host, id) = (HeaderValue::from_static("a.test:9443"), HeaderValue::from_static("id-1"));
    let client = ClientAddr::new("203.0.113.9".parse().expect("an address"));
    let values = Values {
        client: Some(client),
        host: &host,
        request_id: &id,
        tls_version: "1.3",
        tls_cipher: "AES_128_GCM_SHA256",
        uri: "/a?b=c",
    };
    let text = |text: &str| TemplatePart::Text(text.into());
    let all = Template::Parts(vec![
        TemplatePart::Client,
        text(" "),
        TemplatePart::Host,
        text(" "),
        TemplatePart::RequestId,
        text(" "),
        TemplatePart::TlsVersion,
        text(" "),
        TemplatePart::TlsCipher,
        text(" "),
        TemplatePart::Uri,
    ]);
    assert_eq!(fill(&all, &values).expect("a value"), "203.0.113.9 a.test:9443 id-1 1.3 AES_128_GCM_SHA256 /a?b=c");
    let name = |name: &'static str| HeaderName::from_static(name);
    let literal = |text: &'static str| Template::Literal(HeaderValue::from_static(text));
    let edits = HeaderEdits {
        remove: vec![name("x-gone"), name("x-back")],
        set: vec![
            (name("x-set"), literal("new")),
            (name("x-back"), literal("back")),
            (name("x-uri"), Template::Parts(vec![TemplatePart::Uri])),
        ],
        add: vec![(name("x-add"), literal("two"))],
    };
    let before =
        [("x-gone", "1"), ("x-back", "1"), ("x-set", "1"), ("x-set", "2"), ("x-add", "one"), ("x-uri", "forged")];
    let mut headers = map(&before);
    edit(&mut headers, &edits, &values);
    assert_eq!(list(&headers), ["x-add: one", "x-add: two", "x-back: back", "x-set: new", "x-uri: /a?b=c"]);
    // A value that cannot be one is left out, and the client's copy does not stand in for it.
    let mut headers = map(&before);
    edit(&mut headers, &edits, &Values { uri: "/a\r\nevil: 1", ..values });
    assert_eq!(list(&headers), ["x-add: one", "x-add: two", "x-back: back", "x-set: new"]);
}

#[test]
fn a_request_id_is_a_trusted_hops_or_fresh() {
    let long = "x".repeat(128);
    for value in ["abc", "0193-A_b.c", long.as_str()] {
        assert_eq!(request_id(&map(&[("x-request-id", value)]), true), value);
        assert_ne!(request_id(&map(&[("x-request-id", value)]), false), value);
    }
    let too_long = "x".repeat(129);
    for fields in [
        &[][..],
        &[("x-request-id", "")],
        &[("x-request-id", "a b")],
        &[("x-request-id", "a\"b")],
        &[("x-request-id", too_long.as_str())],
        &[("x-request-id", "a"), ("x-request-id", "a")],
    ] {
        let id = request_id(&map(fields), true);
        let parsed = Uuid::parse_str(id.to_str().expect("text")).expect("a UUID");
        assert_eq!(parsed.get_version_num(), 7, "{fields:?}");
    }
    assert_ne!(request_id(&HeaderMap::new(), false), request_id(&HeaderMap::new(), false));
}

/// How the gateway sees a request that comes over loopback, by its own rule: any forwarding header
/// makes it proxied, then the chain is read from the right over loopback (which it trusts).
#[derive(Debug, PartialEq)]
enum View {
    DirectLocal,
    Client(IpAddr),
    Refused,
}

fn gateway_view(headers: &HeaderMap) -> View {
    let mut names = headers.keys().map(HeaderName::as_str);
    let is_proxied = names.any(|name| {
        name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-") || name.starts_with("tailscale-")
    });
    if !is_proxied {
        return View::DirectLocal;
    }
    let lines: Vec<_> =
        headers.get_all("x-forwarded-for").iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    let chain = lines.join(", ");
    let hops = chain.rsplit(',').filter_map(|hop| {
        let hop = hop.trim();
        let address = hop.parse::<IpAddr>().ok();
        address.or_else(|| hop.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
    });
    hops.map(|ip| ip.to_canonical()).find(|ip| !ip.is_loopback()).map_or(View::Refused, View::Client)
}

/// Names that a client might try: each meaning, with `_`, in capitals, and harmless ones.
fn any_name() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-user",
        "x-forwarded-prefix",
        "x-forwarded-",
        "x-forwarded",
        "forwarded",
        "x-real-ip",
        "tailscale-user-login",
        "tailscale-funnel-request",
        "connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "expect",
        "proxy-authorization",
        "x-auth-request-email",
        "x-pomerium-jwt-assertion",
        "cf-access-jwt-assertion",
        "cf-connecting-ip",
        "remote-user",
        "x-remote-user",
        "x-original-url",
        "x-request-id",
        "host",
        "cookie",
        "authorization",
        "origin",
        "user-agent",
        "accept",
        "via",
        "x-a",
    ]);
    (known, any::<u32>()).prop_map(|(name, noise)| {
        let spell = |(at, byte): (usize, char)| match byte {
            '-' if noise >> (at % 32) & 3 == 3 => '_',
            other if noise >> (at % 31) & 1 == 1 => other.to_ascii_uppercase(),
            other => other,
        };
        name.chars().enumerate().map(spell).collect()
    })
}

/// Values that a client might try.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "",
            "127.0.0.1",
            "::1",
            "[::1]:80",
            "::ffff:127.0.0.1",
            "127.0.0.1, 127.0.0.1",
            "203.0.113.9",
            "10.0.0.7",
            "203.0.113.9, 10.0.0.7",
            "unknown",
            "for=127.0.0.1",
            "for=203.0.113.9;proto=https",
            "for=\"[::1]\"",
            "https",
            "trailers",
            "close",
            "upgrade",
            "admin@example.com",
            ",",
            "x-forwarded-for, x-real-ip",
            "x-forwarded-proto, x-forwarded-host, x-forwarded-port, x-request-id, host, te, connection",
            "forwarded, tailscale-user-login, cookie, authorization, origin, user-agent, accept",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,30}",
        any_name(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_a_client_sends_looks_local_or_is_an_identity(
        fields in proptest::collection::vec((any_name(), any_value()), 0..12),
        peer in prop::sample::select(vec!["127.0.0.1:1", "[::1]:1", "10.0.0.4:1", "203.0.113.9:1", "[::ffff:127.0.0.1]:1", "unix"]),
        trusted in any::<[bool; 4]>(),
    ) {
        let nets = ["127.0.0.0/8", "::1/128", "10.0.0.0/8"];
        let nets = nets.iter().zip(trusted).filter(|(_, is_trusted)| *is_trusted);
        let nets = nets.map(|(net, _)| net.parse().expect("a network")).collect();
        let trust = Trust { proxies: Networks { nets, unix: trusted[3] }, strip: vec!["x-a".into()], ..Trust::default() };
        let peer = match peer {
            "unix" => PeerAddr::Unix,
            text => PeerAddr::from_socket(text.parse().expect("an address")),
        };
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut headers = map(&fields);
        let kept = ["host", "cookie", "authorization", "origin", "user-agent", "accept", "via"];
        let before: Vec<_> = kept.map(|name| headers.get_all(name).iter().count()).into();

        let Some(client) = trust::resolve(&trust, peer, &headers) else {
            // Unknown: the request is refused, nothing reaches the gateway.
            prop_assert_eq!(peer, PeerAddr::Unix);
            return Ok(());
        };
        let id = request_id(&headers, client.peer_is_trusted);
        clean_request(&mut headers, &trust, client.peer_is_trusted, &[]);
        let after: Vec<_> = kept.map(|name| headers.get_all(name).iter().count()).into();
        prop_assert_eq!(before, after, "a client's Connection took away what matters");
        // Whatever is written later, nothing that says who asks is left.
        prop_assert!(!headers.keys().any(|name| name.as_str().contains('_')));
        let host = HeaderValue::from_static("claw.example.com");
        let edge = Edge { client: Some(client.addr), proto: "https", host: &host, port: 443, request_id: &id, prefix: None };
        write_edge(&mut headers, &edge);

        let expected = if client.addr.ip().is_loopback() { View::Refused } else { View::Client(client.addr.ip()) };
        prop_assert_eq!(gateway_view(&headers), expected);
        let ours = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip", "x-request-id"];
        for name in ours {
            prop_assert_eq!(headers.get_all(name).iter().count(), 1, "{}", name);
        }
        for name in headers.keys().map(HeaderName::as_str).filter(|name| !ours.contains(name)) {
            let is_foreign = ["forwarded", "tailscale", "x-forwarded", "x-real", "x-auth", "x-pomerium", "cf-", "remote-", "x-remote", "x-original"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            prop_assert!(!is_foreign, "{}", name);
            let is_hop = ["transfer-encoding", "upgrade", "keep-alive", "expect", "proxy-authorization"].contains(&name);
            prop_assert!(!is_hop, "{}", name);
        }
        if let Some(connection) = headers.get("connection") {
            prop_assert_eq!((connection, headers.get("te")), (&"te".parse().expect("a value"), Some(&HeaderValue::from_static("trailers"))));
        }
    }
}
