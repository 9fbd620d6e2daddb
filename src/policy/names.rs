//! What a header name means to an edge: hop-by-hop, forwarding, identity, or the client's own.
//!
//! One table for removal and for the question whether a request passed a proxy before, so that
//! the two cannot disagree. Names compare with `_` read as `-`: servers behind CGI-like interfaces
//! fold the two, which is how a forged copy slips past a list of exact names.

/// What a request header is to the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The client's own affair: it passes.
    EndToEnd,
    /// It speaks about one connection only (RFC 9110 7.6.1).
    HopByHop,
    /// It says who asks, or how they came here: the edge writes its own.
    Forwarding,
    /// It says who a proxy has authenticated: nobody's word is taken.
    Identity,
}

/// The meaning of a request header. `name` is lower case.
pub fn meaning(name: &str) -> Meaning {
    if memchr::memchr(b'_', name.as_bytes()).is_none() {
        return meaning_of_dashed(name);
    }
    let mut room = [0; LONGEST];
    // A longer name can only match by a prefix, and every prefix of the table is shorter.
    let kept = name.len().min(LONGEST);
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = if from == b'_' { b'-' } else { from };
    }
    // Header names are ASCII tokens; anything else has no meaning to us.
    std::str::from_utf8(&room[..kept]).map_or(Meaning::EndToEnd, meaning_of_dashed)
}

/// No name or prefix of the table is longer.
const LONGEST: usize = 64;

/// The table, for a lower-case name without `_`. The first byte decides for the names that browsers send.
pub(super) fn meaning_of_dashed(name: &str) -> Meaning {
    use Meaning::{EndToEnd, Forwarding, HopByHop, Identity};
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match name.as_bytes().first() {
        Some(b'x') => match name {
            "x-forwarded" | "x-real-ip" | "x-client-ip" | "x-cluster-client-ip" => Forwarding,
            "x-rewrite-url" => Forwarding,
            // It narrows what an authenticated user may do; the gateway reads it beside an identity.
            "x-openclaw-scopes" => Identity,
            _ if begins(&["x-forwarded-", "x-original-"]) => Forwarding,
            _ if begins(&X_IDENTITY) => Identity,
            _ => EndToEnd,
        },
        Some(b'c') => match name {
            "connection" => HopByHop,
            "client-ip" => Forwarding,
            // RFC 9440 4: whoever terminates TLS removes what a client claims about its certificate.
            "client-cert" | "client-cert-chain" => Identity,
            _ if name.starts_with("cf-connecting-ip") => Forwarding,
            _ if name.starts_with("cf-access-") => Identity,
            _ => EndToEnd,
        },
        Some(b't') => match name {
            "te" | "transfer-encoding" => HopByHop,
            "true-client-ip" => Forwarding,
            _ if name.starts_with("tailscale-") => Identity,
            _ => EndToEnd,
        },
        Some(b'f') if name == "forwarded" || name == "fastly-client-ip" => Forwarding,
        Some(b'k') if name == "keep-alive" => HopByHop,
        // `proxy` becomes HTTP_PROXY in CGI-like servers (CVE-2016-5385).
        Some(b'p') if name == "proxy" || name.starts_with("proxy-") => HopByHop,
        Some(b'u') if name == "upgrade" => HopByHop,
        // RFC 9113 3.1 keeps it only as history; h2c is never spoken here.
        Some(b'h') if name == "http2-settings" => HopByHop,
        // The edge answers 100-continue itself; a second hop that waits too is a known desync.
        Some(b'e') if name == "expect" => HopByHop,
        Some(b'r') if name.starts_with("remote-") => Identity,
        Some(b's') if name.starts_with("ssl-client-") => Identity,
        _ => EndToEnd,
    }
}

/// Prefixes of names that authenticating proxies write and nobody else has a use for.
const X_IDENTITY: [&str; 11] = [
    "x-auth-request-",
    "x-authentik-",
    "x-pomerium-",
    "x-remote-",
    "x-tailscale-",
    "x-ssl-client-",
    "x-client-cert",
    "x-goog-iap-",
    "x-goog-authenticated-user-",
    "x-ms-client-principal",
    "x-amzn-oidc-",
];

/// True for fields that are meant for the last recipient, which `Connection` may never name
/// (RFC 9110 7.6.1): a client that lists them wants a hop to remove what another hop wrote or checked.
pub fn is_end_to_end(name: &str) -> bool {
    const PREFIXES: [&str; 7] = ["content-", "sec-", "access-control-", "if-", "accept", "x-openclaw-", "www-auth"];
    const NAMES: [&str; 25] = [
        "host",
        "cookie",
        "set-cookie",
        "authorization",
        "origin",
        "referer",
        "user-agent",
        "cache-control",
        "pragma",
        "range",
        "trailer",
        "date",
        "age",
        "etag",
        "expires",
        "last-modified",
        "location",
        "vary",
        "allow",
        "retry-after",
        "server",
        "via",
        "x-frame-options",
        "strict-transport-security",
        "x-request-id",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// True for fields that may stand in a trailer section: no framing, routing, authentication or
/// request modifier (RFC 9110 6.5.1), and nothing that the edge writes or refuses in a head.
pub fn may_trail(name: &str) -> bool {
    // Fields whose meaning is given to a trailer by their definition.
    const EXPECTED: [&str; 4] = ["etag", "server-timing", "content-digest", "repr-digest"];
    let is_refused = name.contains('_') || is_end_to_end(name) || meaning(name) != Meaning::EndToEnd;
    EXPECTED.contains(&name) || !is_refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_meaning_with_either_separator() {
        use Meaning::{EndToEnd, Forwarding, HopByHop, Identity};
        for (name, expected) in [
            ("accept", EndToEnd),
            ("cookie", EndToEnd),
            ("authorization", EndToEnd),
            ("x-openclaw-token", EndToEnd),
            ("x-forwardedx", EndToEnd),
            ("x", EndToEnd),
            ("", EndToEnd),
            ("via", EndToEnd),
            ("trailer", EndToEnd),
            ("upgrade-insecure-requests", EndToEnd),
            ("connection", HopByHop),
            ("te", HopByHop),
            ("expect", HopByHop),
            ("proxy", HopByHop),
            ("proxy-authorization", HopByHop),
            ("http2-settings", HopByHop),
            ("keep_alive", HopByHop),
            ("forwarded", Forwarding),
            ("x-forwarded", Forwarding),
            ("x-forwarded-for", Forwarding),
            ("x_forwarded-for", Forwarding),
            ("x_forwarded_prefix", Forwarding),
            ("x-original-url", Forwarding),
            ("true-client-ip", Forwarding),
            ("cf-connecting-ipv6", Forwarding),
            ("tailscale-user-login", Identity),
            ("tailscale_user_login", Identity),
            ("x-tailscale-user-login", Identity),
            ("remote-user", Identity),
            ("x-remote_user", Identity),
            ("x-auth-request-email", Identity),
            ("x-authentik-username", Identity),
            ("cf-access-jwt-assertion", Identity),
            ("client-cert", Identity),
            ("x-openclaw-scopes", Identity),
        ] {
            assert_eq!(meaning(name), expected, "{name}");
        }
        let long = format!("x_forwarded_{}", "y".repeat(300));
        assert_eq!(meaning(&long), Forwarding);
        assert!(X_IDENTITY.iter().all(|prefix| prefix.len() < LONGEST));
    }

    #[test]
    fn a_trailer_changes_neither_framing_nor_identity() {
        for name in ["content-length", "transfer-encoding", "host", "authorization", "x-forwarded-for", "cookie"] {
            assert!(!may_trail(name), "{name}");
        }
        for name in ["grpc-status", "x-checksum", "etag", "server-timing", "content-digest"] {
            assert!(may_trail(name), "{name}");
        }
    }
}
