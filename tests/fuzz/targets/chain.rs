//! The forwarded chain: what a client can write is never believed, and what a trusted hop wrote is,
//! whatever stands to its left.
//!
//! The first byte chooses the peer; each line after it is a header, `name:value`.
#![no_main]

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tidegate::addr::{ClientAddr, PeerAddr};
use tidegate::policy::headers::{Edge, clean_request, write_edge};
use tidegate::policy::trust::{Client, MAX_HOPS, chain_text, has_forwarding_header, resolve};
use tidegate::site::policy::{Networks, Trust};

const CHAIN: HeaderName = HeaderName::from_static("x-forwarded-for");

fuzz_target!(|data: &[u8]| {
    let Some((&choice, lines)) = data.split_first() else { return };
    let headers = parse(lines);
    let nets = ["10.0.0.0/8", "2001:db8:7::/48"].map(|net| net.parse().expect("a network"));
    let trust = Trust { proxies: Networks { nets: nets.to_vec(), unix: choice & 4 == 0 }, ..Trust::default() };
    let peer = match choice & 3 {
        0 => PeerAddr::Unix,
        1 => ip("192.0.2.9:4711"),
        2 => ip("10.1.2.3:4711"),
        _ => ip("[2001:db8:7::1]:4711"),
    };
    let found = resolve(&trust, peer, &headers);
    let own = peer.ip().map(ClientAddr::new);
    match found {
        None => assert_eq!(own, None, "a peer with an address is somebody"),
        Some(client) if !trust.proxies.has_peer(peer) => {
            assert_eq!((Some(client.addr), client.hops, client.proto), (own, 0, None), "a client was believed");
        }
        Some(client) => {
            assert!(client.hops <= MAX_HOPS && client.peer_is_trusted);
            assert!(client.hops > 0 || Some(client.addr) == own);
        }
    }
    if let Some(text) = chain_text(&headers) {
        let is_shown = |hop: &str| hop == "?" || hop.parse::<std::net::IpAddr>().is_ok();
        assert!(text.split(", ").all(is_shown), "{text:?} shows a client's text");
    }
    if trust.proxies.has_peer(peer) {
        let name = if headers.contains_key(CHAIN) { CHAIN } else { FORWARDED };
        believe_the_right_end(&trust, peer, &headers, &name, found);
    }
    cleaned_looks_like_ours(&trust, peer, headers, found);
});

/// Adds a last element, as the peer would: it decides, and nothing to its left can undo it.
fn believe_the_right_end(trust: &Trust, peer: PeerAddr, headers: &HeaderMap, name: &HeaderName, before: Option<Client>) {
    let with = |element: &str| {
        let mut headers = headers.clone();
        let element = if *name == FORWARDED { format!("for=\"{element}\"") } else { element.to_owned() };
        headers.append(name, HeaderValue::from_str(&element).expect("plain text"));
        resolve(trust, peer, &headers)
    };
    let stranger = with("198.51.100.7").expect("known");
    assert_eq!((stranger.addr.to_string().as_str(), stranger.hops), ("198.51.100.7", 1), "the left was asked");
    for garbage in ["unknown", "_hidden", "198.51.100.7 198.51.100.8", "localhost", "127.1", "0x7f.0.0.1"] {
        match with(garbage) {
            None => assert_eq!(peer, PeerAddr::Unix),
            Some(client) => assert_eq!((Some(client.addr), client.hops), (peer.ip().map(ClientAddr::new), 0), "{garbage}"),
        }
    }
    let hop = with("10.9.9.9").expect("known");
    match before {
        Some(before) if before.hops > 0 && before.hops < MAX_HOPS => {
            assert_eq!((hop.addr, hop.hops), (before.addr, before.hops + 1), "one more hop shifts the chain");
        }
        Some(before) if before.hops > 0 => assert_eq!(hop.hops, MAX_HOPS),
        Some(_) | None => assert_eq!((hop.addr.to_string().as_str(), hop.hops), ("10.9.9.9", 1)),
    }
}

/// After cleaning nothing says that a request was forwarded; after writing exactly one address does.
fn cleaned_looks_like_ours(trust: &Trust, peer: PeerAddr, mut headers: HeaderMap, client: Option<Client>) {
    clean_request(&mut headers, trust, trust.proxies.has_peer(peer), &[]);
    for name in headers.keys().map(|name| name.as_str().replace('_', "-")) {
        let is_whole = ["forwarded", "x-real-ip"].contains(&name.as_str());
        assert!(!is_whole && !name.starts_with("x-forwarded-") && !name.starts_with("tailscale-"), "{name} passed");
    }
    let had_via = headers.contains_key("via");
    assert!(had_via || !has_forwarding_header(&headers), "it still looks forwarded: {headers:?}");
    let Some(client) = client else { return };
    let text = HeaderValue::from_static("claw.example.com");
    let edge = Edge { client: Some(client.addr), proto: "https", host: &text, port: 443, request_id: &text, prefix: None };
    write_edge(&mut headers, &edge);
    let chain: Vec<_> = headers.get_all(CHAIN).iter().collect();
    assert_eq!(chain, [client.addr.to_string().as_str()]);
}

fn parse(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(90) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[colon + 1..])) {
            headers.append(name, value);
        }
    }
    headers
}

fn ip(text: &str) -> PeerAddr {
    PeerAddr::from_socket(text.parse().expect("an address"))
}
