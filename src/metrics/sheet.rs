//! What one worker counts: for each site, each route and each listener, and of its handshakes.
//!
//! Labels come from the configuration or from our own tables (codes, kinds), never from a client.

use std::sync::Arc;

use super::cell::{Counter, Histogram, Tally};

/// Bounds of times that people wait, in microseconds: from what a page on this machine takes to
/// what a long answer of a model takes.
pub const WAITS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];
/// Bounds of a handshake. 300 ms is among them: N-17 asks for a p95 below it.
pub const HANDSHAKES: [u64; 12] =
    [1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 200_000, 300_000, 500_000, 1_000_000, 5_000_000];
/// Bounds of the life of a tunnel. 30 min is among them: N-16 asks that 95 % live longer.
pub const LIVES: [u64; 10] = [
    1_000_000,
    10_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    1_800_000_000,
    3_600_000_000,
    14_400_000_000,
    86_400_000_000,
    604_800_000_000,
];
/// Bounds of the silence before the end of a tunnel: just above the idle limits that are common, of load
/// balancers (60 s, 350 s), carriers' NAT, proxies (100 s) and our own (1 h), so that each shows as a step (N-37).
pub const SILENCES: [u64; 10] = [
    1_000_000,
    10_000_000,
    31_000_000,
    61_000_000,
    101_000_000,
    301_000_000,
    351_000_000,
    601_000_000,
    901_000_000,
    3_601_000_000,
];

/// Everything about one site; the one without a name is for what belongs to no site.
#[derive(Debug)]
pub struct SiteSheet {
    /// The site's name as text.
    pub label: Arc<str>,
    /// Answers of the edge that refuse, by code.
    pub refusals: Tally<&'static str>,
    /// Responses that did not end as they should, by who ended them.
    pub aborted: Tally<&'static str>,
    /// 429: of the edge, of the endpoint.
    pub too_many: [Counter; 2],
    /// From the first byte of a request's head to its last.
    pub head: Histogram<16>,
    /// From sending upstream to the response head.
    pub upstream: Histogram<16>,
    /// From the first byte of the head to the end of the response.
    pub total: Histogram<16>,
    /// Tunnels that were opened.
    pub tunnels: Counter,
    /// Tunnels that have ended, by who ended them and how.
    pub tunnel_ends: Tally<(&'static str, &'static str)>,
    /// What those were, by who ended them.
    pub tunnel_lives: Tally<&'static str, Lives>,
    /// Bytes of ended tunnels: in, out.
    pub tunnel_bytes: [Counter; 2],
}

/// What ended tunnels were.
#[derive(Debug)]
pub struct Lives {
    /// From the beginning to the end.
    pub lasted: Histogram<10>,
    /// From the last byte to the end.
    pub idle: Histogram<10>,
}

impl Default for Lives {
    fn default() -> Self {
        Self { lasted: Histogram::new(&LIVES), idle: Histogram::new(&SILENCES) }
    }
}

impl SiteSheet {
    /// Nothing counted yet.
    pub fn new(label: Arc<str>) -> Self {
        Self {
            label,
            refusals: Tally::default(),
            aborted: Tally::default(),
            too_many: Default::default(),
            head: Histogram::new(&WAITS),
            upstream: Histogram::new(&WAITS),
            total: Histogram::new(&WAITS),
            tunnels: Counter::default(),
            tunnel_ends: Tally::default(),
            tunnel_lives: Tally::default(),
            tunnel_bytes: Default::default(),
        }
    }
}

/// Requests of one route.
#[derive(Debug)]
pub struct RouteSheet {
    /// Its site.
    pub site: Arc<SiteSheet>,
    /// Its prefix; empty for all paths, and for requests that got no route.
    pub prefix: Box<str>,
    /// By class of the status (1xx to 5xx), each by the edge and by the endpoint.
    pub requests: [[Counter; 2]; 5],
    /// Body bytes: in, out.
    pub bytes: [Counter; 2],
}

impl RouteSheet {
    /// Nothing counted yet.
    pub fn new(site: Arc<SiteSheet>, prefix: &str) -> Self {
        Self { site, prefix: prefix.into(), requests: Default::default(), bytes: Default::default() }
    }
}

/// Connections of one address.
#[derive(Debug)]
pub struct ListenerSheet {
    /// The address that accepted them.
    pub address: Box<str>,
    /// Connections that have ended, by how.
    pub ended: Tally<&'static str>,
}

/// What handshakes agreed on: of rustls's own lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Agreed {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The cipher without its hash.
    pub cipher: &'static str,
    /// The key exchange; empty where none was made.
    pub group: &'static str,
    /// Whether an earlier session went on.
    pub is_resumed: bool,
}

/// Handshakes.
#[derive(Debug)]
pub struct TlsSheet {
    /// Those that were finished.
    pub agreed: Tally<Agreed>,
    /// Those that failed, by kind.
    pub failed: Tally<&'static str>,
    /// How long the finished ones took.
    pub took: Histogram<12>,
}

impl Default for TlsSheet {
    fn default() -> Self {
        Self { agreed: Tally::default(), failed: Tally::default(), took: Histogram::new(&HANDSHAKES) }
    }
}
