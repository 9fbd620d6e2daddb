//! Trusted hops: from the peer and the forwarded chain to the client that we believe is asking.
//!
//! The peer is the address of the PROXY preface, where there was one: its sender is not thereby a hop.
//! The chain is read from the right, over hops in `trust.proxies` only, from `X-Forwarded-For` or
//! else from `Forwarded` (RFC 7239). What is not an address ends the walk: nothing to its left was
//! written by somebody we believe. No name resolution, no allocation on the request path.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};

use super::names::{self, Meaning};
use crate::addr::{ClientAddr, PeerAddr};
use crate::site::policy::Trust;

/// Whom we believe is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The address that `X-Forwarded-For` will carry.
    pub addr: ClientAddr,
    /// How many addresses of the chain were believed; 0 when the client is the peer.
    pub hops: u32,
    /// Whether the peer is in `trust.proxies`.
    pub peer_is_trusted: bool,
    /// How the client reached the first hop, in the words of a trusted hop.
    pub proto: Option<Scheme>,
}

/// How a client came to the first hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In cleartext.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The text for `X-Forwarded-Proto`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// One scheme, in any case (RFC 3986 3.1), and nothing else.
    fn parse(text: &[u8]) -> Option<Self> {
        if text.eq_ignore_ascii_case(b"https") {
            return Some(Self::Https);
        }
        text.eq_ignore_ascii_case(b"http").then_some(Self::Http)
    }
}

/// How many elements of a chain are looked at. Our choice: no honest path has half as many hops.
pub const MAX_HOPS: u32 = 32;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Finds the client. `None` when it is unknown: a unix peer without a believable header. Such a
/// request must be refused, because the gateway would take it for a local one.
///
/// Read this before `headers::clean_request`, which removes what is read here.
pub fn resolve(trust: &Trust, peer: PeerAddr, headers: &HeaderMap) -> Option<Client> {
    let peer_addr = peer.ip().map(ClientAddr::new);
    if !trust.proxies.has_peer(peer) {
        return Some(Client { addr: peer_addr?, hops: 0, peer_is_trusted: false, proto: None });
    }
    // `X-Forwarded-For` decides alone where it is present. Practically every proxy writes or extends
    // it, while many pass a client's own `Forwarded` on untouched, so that the two together mean that
    // one of them may be forged, and that one is hardly ever this. A hop that writes `Forwarded` only
    // must drop the other.
    if headers.contains_key(&X_FORWARDED_FOR) {
        let lines = headers.get_all(&X_FORWARDED_FOR).iter().rev();
        let chain = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        let (walked, hops, _) = walk(trust, chain.map(|text| parse_address(text).map(|addr| (addr, None))));
        let proto = reported_proto(headers);
        return Some(Client { addr: walked.or(peer_addr)?, hops, peer_is_trusted: true, proto });
    }
    let lines = headers.get_all(FORWARDED).iter().rev();
    let chain = lines.flat_map(|line| parse_forwarded(line.as_bytes()));
    let (walked, hops, proto) =
        walk(trust, chain.map(|element| element.and_then(|element| Some((parse_node(element.node?)?, element.proto)))));
    let proto = if headers.contains_key(&X_FORWARDED_PROTO) { reported_proto(headers) } else { proto };
    Some(Client { addr: walked.or(peer_addr)?, hops, peer_is_trusted: true, proto })
}

/// Walks a chain from the right: each address was written by the hop before, so that it is believed
/// only while those hops are trusted. Returns the last believed one and how many were.
fn walk(
    trust: &Trust,
    chain: impl Iterator<Item = Option<(ClientAddr, Option<Scheme>)>>,
) -> (Option<ClientAddr>, u32, Option<Scheme>) {
    let mut believed = (None, 0, None);
    for hop in chain.take(MAX_HOPS as usize) {
        let Some((addr, proto)) = hop else { break };
        believed = (Some(addr), believed.1 + 1, proto);
        if !trust.proxies.contains(addr.ip()) {
            break;
        }
    }
    believed
}

/// `X-Forwarded-Proto`, when it is exactly one scheme: a list has no agreed order.
fn reported_proto(headers: &HeaderMap) -> Option<Scheme> {
    let mut values = headers.get_all(&X_FORWARDED_PROTO).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { Scheme::parse(value.as_bytes().trim_ascii()) }
}

/// True when anything says that the request passed a proxy before: the gateway's own rule
/// (`Forwarded`, `X-Real-IP`, `X-Forwarded-*`, `Tailscale-*`), and in any spelling with `_`. Our
/// choice is to count every other header that only proxies write too, `Via` among them: who is taken
/// for local by mistake becomes an administrator, who is not is told what to do.
pub fn has_forwarding_header(headers: &HeaderMap) -> bool {
    headers.keys().map(HeaderName::as_str).any(|name| match names::meaning(name) {
        Meaning::Forwarding => true,
        Meaning::Identity => !name.starts_with("x-openclaw"),
        Meaning::EndToEnd => name == "via",
        Meaning::HopByHop => false,
    })
}

/// The forwarded chain as it was received, for the record: what is no address becomes `?`, so that
/// no client's text reaches the log by this way. `None` when there is no chain.
pub fn chain_text(headers: &HeaderMap) -> Option<String> {
    let mut hops: Vec<Option<ClientAddr>> = Vec::new();
    let limit = MAX_HOPS as usize;
    if headers.contains_key(&X_FORWARDED_FOR) {
        let lines = headers.get_all(&X_FORWARDED_FOR).iter().rev();
        let texts = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        hops.extend(texts.map(parse_address).take(limit));
    } else {
        let lines = headers.get_all(FORWARDED).iter().rev();
        let elements = lines.flat_map(|line| parse_forwarded(line.as_bytes()));
        hops.extend(elements.map(|element| parse_node(element?.node?)).take(limit));
    }
    if hops.is_empty() {
        return None;
    }
    let mut text = String::new();
    for (at, hop) in hops.iter().rev().enumerate() {
        text.push_str(if at == 0 { "" } else { ", " });
        let Some(addr) = hop else {
            text.push('?');
            continue;
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{addr}");
    }
    Some(text)
}

/// One element of `Forwarded` (RFC 7239 4), its values as they stand between the quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Element<'a> {
    /// `for`: who asked this hop.
    pub node: Option<&'a [u8]>,
    /// `proto`, when it is a scheme that we know.
    pub proto: Option<Scheme>,
}

/// The elements of one `Forwarded` line, the last one first; `None` for one that is malformed.
///
/// Commas are cut without regard to quotes. That is safe, where reading from the left is not: an
/// element that holds a quoted comma falls apart into pieces with an odd number of quotes, which are
/// malformed, and a quote that a client left open on the left cannot swallow what a hop wrote after it.
pub fn parse_forwarded(line: &[u8]) -> impl Iterator<Item = Option<Element<'_>>> {
    line.rsplit(|byte| *byte == b',').map(|text| parse_element(text.trim_ascii()))
}

/// One element: `name=value` pairs between semicolons, any of them empty, no name twice.
fn parse_element(text: &[u8]) -> Option<Element<'_>> {
    let mut element = Element::default();
    let (mut has_proto, mut rest) = (false, text);
    loop {
        match rest.split_first() {
            None => return Some(element),
            Some((b';', next)) => {
                rest = next.trim_ascii_start();
                continue;
            }
            Some(_) => {}
        }
        let (name, after) = rest.split_at(token_length(rest));
        let (value, after) = parse_value(after.strip_prefix(b"=")?)?;
        if name.is_empty() {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") {
            if element.node.replace(value).is_some() {
                return None;
            }
        } else if name.eq_ignore_ascii_case(b"proto") {
            if std::mem::replace(&mut has_proto, true) {
                return None;
            }
            element.proto = Scheme::parse(value);
        }
        let after = after.trim_ascii_start();
        match after.split_first() {
            None => return Some(element),
            // Blanks around `;` are not in the grammar, but hops write them and they hide nothing.
            Some((b';', next)) => rest = next.trim_ascii_start(),
            Some(_) => return None,
        }
    }
}

/// A token or a quoted string (RFC 9110 5.6.4) and what follows it. Escapes stay as they are: no
/// address and no scheme has one.
fn parse_value(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let length = token_length(text);
        return (length > 0).then(|| text.split_at(length));
    };
    let mut at = 0;
    loop {
        match *quoted.get(at)? {
            b'"' => return Some((&quoted[..at], &quoted[at + 1..])),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// How many bytes at the beginning are a token (RFC 9110 5.6.2).
fn token_length(text: &[u8]) -> usize {
    let is_token = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
    };
    text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len())
}

/// A node of `Forwarded` (RFC 7239 6) that is an address: IPv6 only in brackets. `unknown` and
/// obfuscated identifiers are no addresses.
fn parse_node(text: &[u8]) -> Option<ClientAddr> {
    let is_bare_v6 = !text.starts_with(b"[") && text.iter().filter(|byte| **byte == b':').count() > 1;
    if is_bare_v6 { None } else { parse_address(text) }
}

/// An address as proxies write it: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`. No zone: it means nothing on another machine. No address that cannot be
/// somebody's: unspecified, broadcast or multicast.
pub fn parse_address(text: &[u8]) -> Option<ClientAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let is_port = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let ip: IpAddr = if let Some(rest) = text.strip_prefix('[') {
        let (inner, after) = rest.split_once(']')?;
        if !after.is_empty() && !after.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        inner.parse::<Ipv6Addr>().ok()?.into()
    } else {
        match text.split_once(':') {
            None => text.parse::<Ipv4Addr>().ok()?.into(),
            Some((v4, port)) if is_port(port) && v4.contains('.') => v4.parse::<Ipv4Addr>().ok()?.into(),
            Some(_) => text.parse::<Ipv6Addr>().ok()?.into(),
        }
    };
    let addr = ClientAddr::new(ip);
    let is_nobody = match addr.ip() {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    };
    (!is_nobody).then_some(addr)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::site::policy::Networks;

    fn trust(nets: &[&str], unix: bool) -> Trust {
        let nets = nets.iter().map(|net| net.parse().expect("a network")).collect();
        Trust { proxies: Networks { nets, unix }, ..Trust::default() }
    }

    fn peer(text: &str) -> PeerAddr {
        if text == "unix" { PeerAddr::Unix } else { PeerAddr::from_socket(text.parse().expect("an address")) }
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    const XFF: &str = "x-forwarded-for";
    const HOP: &str = "10.0.0.4:5000";

    #[test]
    fn the_client_is_the_first_hop_that_is_not_trusted() {
        let trust = trust(&["10.0.0.0/8", "2001:db8:7::/48"], false);
        for (from, fields, expected) in [
            // The peer is not trusted: its headers are nothing.
            ("192.0.2.1:1", &[(XFF, "203.0.113.9")][..], ("192.0.2.1", 0)),
            ("[::ffff:192.0.2.1]:1", &[], ("192.0.2.1", 0)),
            // A trusted peer, and nothing that could be believed.
            (HOP, &[], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "")], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "unknown")], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "203.0.113.9, ")], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "203.0.113.9, x")], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "fe80::1%eth0")], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "[::1%lo]")], ("10.0.0.4", 0)),
            (HOP, &[(XFF, "0.0.0.0")], ("10.0.0.4", 0)),
            // One hop, in each spelling.
            (HOP, &[(XFF, "203.0.113.9")], ("203.0.113.9", 1)),
            (HOP, &[(XFF, "203.0.113.9:4711")], ("203.0.113.9", 1)),
            (HOP, &[(XFF, "[2001:db8::9]:4711")], ("2001:db8::9", 1)),
            (HOP, &[(XFF, "2001:DB8::9")], ("2001:db8::9", 1)),
            (HOP, &[(XFF, "::ffff:203.0.113.9")], ("203.0.113.9", 1)),
            // What the client sent itself stands further left.
            (HOP, &[(XFF, "127.0.0.1, 203.0.113.9")], ("203.0.113.9", 1)),
            (HOP, &[(XFF, "10.0.0.1, 203.0.113.9")], ("203.0.113.9", 1)),
            (HOP, &[(XFF, "198.51.100.1"), (XFF, "203.0.113.9")], ("203.0.113.9", 1)),
            // Two trusted hops, then the client; and over two lines.
            (HOP, &[(XFF, "203.0.113.9, 10.0.0.7")], ("203.0.113.9", 2)),
            (HOP, &[(XFF, "203.0.113.9"), (XFF, "2001:db8:7::1 , 10.0.0.7")], ("203.0.113.9", 3)),
            (HOP, &[(XFF, "203.0.113.9, junk, 10.0.0.7")], ("10.0.0.7", 1)),
            (HOP, &[(XFF, "10.0.0.9, 10.0.0.7")], ("10.0.0.9", 2)),
            // The other header, and both.
            (HOP, &[("forwarded", "for=203.0.113.9")], ("203.0.113.9", 1)),
            (HOP, &[("forwarded", "for=\"[2001:db8::9]:4711\";proto=https, For=10.0.0.7")], ("2001:db8::9", 2)),
            (HOP, &[("forwarded", "for=_hidden, for=10.0.0.7")], ("10.0.0.7", 1)),
            (HOP, &[("forwarded", "for=unknown")], ("10.0.0.4", 0)),
            (HOP, &[("forwarded", "for=\"x, for=203.0.113.9")], ("203.0.113.9", 1)),
            (HOP, &[("forwarded", "for=198.51.100.1"), (XFF, "203.0.113.9")], ("203.0.113.9", 1)),
            (HOP, &[("forwarded", "for=198.51.100.1"), (XFF, "junk")], ("10.0.0.4", 0)),
        ] {
            let client = resolve(&trust, peer(from), &map(fields)).expect("a TCP peer is always known");
            assert_eq!((client.addr.to_string().as_str(), client.hops), expected, "{from} {fields:?}");
            assert_eq!(client.peer_is_trusted, from == HOP);
        }
    }

    #[test]
    fn a_unix_peer_is_somebody_only_by_a_believed_header() {
        let chain = map(&[(XFF, "203.0.113.9")]);
        assert_eq!(resolve(&trust(&[], false), PeerAddr::Unix, &chain), None);
        assert_eq!(resolve(&trust(&[], true), PeerAddr::Unix, &map(&[])), None);
        assert_eq!(resolve(&trust(&[], true), PeerAddr::Unix, &map(&[(XFF, "junk")])), None);
        let client = resolve(&trust(&[], true), PeerAddr::Unix, &chain).expect("believed");
        assert_eq!((client.addr.to_string().as_str(), client.hops), ("203.0.113.9", 1));
    }

    #[test]
    fn a_long_chain_is_cut() {
        let chain = vec!["10.0.0.7"; 1000].join(", ");
        let client = resolve(&trust(&["10.0.0.0/8"], false), peer(HOP), &map(&[(XFF, &chain)])).expect("known");
        assert_eq!(client.hops, MAX_HOPS);
    }

    #[test]
    fn a_scheme_is_believed_from_a_trusted_hop_only() {
        let (trusting, proto) = (trust(&["10.0.0.0/8"], false), "x-forwarded-proto");
        for (from, fields, expected) in [
            (HOP, &[(proto, "https")][..], Some(Scheme::Https)),
            (HOP, &[(proto, "http")], Some(Scheme::Http)),
            (HOP, &[(proto, "https, http")], None),
            (HOP, &[(proto, "https"), (proto, "https")], None),
            (HOP, &[(proto, "wss")], None),
            (HOP, &[("forwarded", "for=203.0.113.9;proto=https")], Some(Scheme::Https)),
            (HOP, &[("forwarded", "for=203.0.113.9;proto=https, for=10.0.0.7;proto=http")], Some(Scheme::Https)),
            (HOP, &[("forwarded", "for=198.51.100.1;proto=https, for=203.0.113.9;proto=http")], Some(Scheme::Http)),
            (HOP, &[("forwarded", "proto=https")], None),
            (HOP, &[("forwarded", "for=203.0.113.9;proto=https"), (proto, "ftp")], None),
            (HOP, &[("forwarded", "for=203.0.113.9;proto=https"), (XFF, "203.0.113.9")], None),
            ("192.0.2.1:1", &[(proto, "https")], None),
        ] {
            let client = resolve(&trusting, peer(from), &map(fields)).expect("known");
            assert_eq!(client.proto, expected, "{from} {fields:?}");
        }
    }

    #[test]
    fn forwarded_elements_follow_the_grammar() {
        let node = |text: &'static str| Some(Element { node: Some(text.as_bytes()), proto: None });
        for (line, expected) in [
            ("for=192.0.2.43, for=\"[2001:db8:cafe::17]\"", vec![node("[2001:db8:cafe::17]"), node("192.0.2.43")]),
            ("For=\"_gazonk\"", vec![node("_gazonk")]),
            ("by=a;for=b;secret=c", vec![node("b")]),
            ("for=a ; by=b", vec![node("a")]),
            ("for=a;for=b", vec![None]),
            ("for=a;proto=http;proto=https", vec![None]),
            ("for", vec![None]),
            ("for=", vec![None]),
            ("=a", vec![None]),
            ("for=a;", vec![node("a")]),
            (";;for=a", vec![node("a")]),
            ("for = a", vec![None]),
            ("for=192.0.2.1:80", vec![None]),
            ("for=\"a", vec![None]),
            ("for=\"a\\", vec![None]),
            ("for=\"a\"b", vec![None]),
            ("for=\"a\\\"b\"", vec![node("a\\\"b")]),
            // What a client puts into a quoted Host never becomes an element of its own.
            ("for=a;host=\"x, for=6.6.6.6;b=\"", vec![None, None]),
            ("host=\"x, for=6.6.6.6;b=\";for=a;by=\"\"", vec![None, None]),
            ("", vec![Some(Element::default())]),
        ] {
            assert_eq!(parse_forwarded(line.as_bytes()).collect::<Vec<_>>(), expected, "{line}");
        }
        assert_eq!(parse_node(b"2001:db8::1"), None, "IPv6 needs brackets in Forwarded");
    }

    #[test]
    fn a_proxy_before_us_leaves_a_trace() {
        for name in ["forwarded", "x-real-ip", "x-forwarded-x", "x_forwarded_for", "tailscale-funnel-request", "via"] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(""));
            assert!(has_forwarding_header(&headers), "{name}");
        }
        let browser = map(&[("host", "localhost:8443"), ("cookie", "a=1"), ("x-openclaw-token", "t")]);
        assert!(!has_forwarding_header(&browser));
    }

    #[test]
    fn the_chain_in_the_record_holds_addresses_only() {
        assert_eq!(chain_text(&map(&[])), None);
        let chain = map(&[(XFF, "secret, 203.0.113.9:80"), (XFF, "10.0.0.7")]);
        assert_eq!(chain_text(&chain).as_deref(), Some("?, 203.0.113.9, 10.0.0.7"));
        let forwarded = map(&[("forwarded", "for=_s3cret, for=\"[2001:db8::1]\"")]);
        assert_eq!(chain_text(&forwarded).as_deref(), Some("?, 2001:db8::1"));
    }

    proptest! {
        #[test]
        fn parsing_bytes_never_fails_and_stays_bounded(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let elements = parse_forwarded(&line).count();
            prop_assert_eq!(elements, line.iter().filter(|byte| **byte == b',').count() + 1);
            prop_assert!(parse_address(&line).is_none_or(|addr| addr == ClientAddr::new(addr.ip())));
        }

        #[test]
        fn what_a_client_sends_never_names_another_client(
            forged in "[ -~]{0,60}",
            real in any::<[u8; 4]>().prop_filter("a client of its own", |ip| ip[0] < 224 && ip[0] > 10),
        ) {
            // The trusted hop appends what it saw; whatever stands before it is the client's.
            let real = ClientAddr::new(IpAddr::from(real));
            let trust = trust(&["10.0.0.0/8"], false);
            for (name, line) in [(XFF, format!("{forged}, {real}")), ("forwarded", format!("{forged}, for={real}"))] {
                let client = resolve(&trust, peer(HOP), &map(&[(name, &line)]));
                prop_assert_eq!(client.map(|client| (client.addr, client.hops)), Some((real, 1)));
            }
        }
    }
}
