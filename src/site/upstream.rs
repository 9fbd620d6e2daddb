//! Upstreams as data: where requests go and how an endpoint is reached.
//!
//! Health, load and idle connections are live state and stand in `forward/`; they are keyed by
//! `Endpoint::identity`, so that they outlive a reload that did not touch the endpoint.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A named group of endpoints.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The name in the configuration, or the address of a single unnamed endpoint.
    pub name: Arc<str>,
    /// At least one.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How one is chosen.
    pub balance: Balance,
    /// How long requests without a body wait while nothing answers; zero to refuse at once.
    pub hold: Duration,
    /// How its endpoints are checked; `None` for not at all.
    pub probe: Option<Arc<Probe>>,
    /// How many requests may be in flight; `None` for any number.
    pub bound: Option<Bound>,
}

/// A check of an endpoint that the edge makes by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// What is asked for: path and query.
    pub target: Arc<str>,
    /// The `Host` that is sent; the endpoint's own address without one.
    pub host: Option<Arc<str>>,
    /// From the beginning of one to the beginning of the next.
    pub every: Duration,
    /// From the first packet to the answer, TLS included.
    pub timeout: Duration,
    /// So many in a row that fail make an endpoint unhealthy.
    pub failures: usize,
    /// So many in a row that succeed make it healthy again.
    pub successes: usize,
    /// A WebSocket is opened, up to the endpoint's first frame.
    pub is_websocket: bool,
}

/// How many requests an upstream gets at once, from all workers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// In flight, from the request's first byte to the response's last. A tunnel leaves its place when it opens.
    pub in_flight: usize,
    /// How many more may wait.
    pub queue: usize,
    /// How long they may.
    pub patience: Duration,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests and tunnels in flight.
    #[default]
    LeastConn,
    /// In turn.
    RoundRobin,
    /// By the client's address, so that one client keeps its endpoint.
    HashClient,
}

/// One upstream address and how it is spoken to.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: EndpointAddr,
    /// TLS towards it; `None` is cleartext.
    pub tls: Option<EndpointTls>,
    /// How long an idle connection is kept. Below the endpoint's own limit, or requests race it.
    pub keep_alive: Duration,
    /// How many idle connections each worker keeps.
    pub max_idle: usize,
    /// The text for `Host` and for logs: `127.0.0.1:18789`, `unix:/run/x.sock`.
    pub label: Arc<str>,
    /// Equal for endpoints with equal address and TLS identity, also across reloads.
    pub identity: EndpointId,
}

/// The key of an endpoint's live state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

impl Endpoint {
    /// An endpoint; its identity follows from address and TLS.
    pub fn new(address: EndpointAddr, tls: Option<EndpointTls>, keep_alive: Duration, max_idle: usize) -> Self {
        let mut hasher = DefaultHasher::new();
        (&address, &tls).hash(&mut hasher);
        let label = Arc::from(address.to_string());
        Self { identity: EndpointId(hasher.finish()), address, tls, keep_alive, max_idle, label }
    }
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddr {
    /// An address that needs no look-up.
    Ip(SocketAddr),
    /// A name, resolved again when a connection is opened.
    Name(Arc<str>, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl EndpointAddr {
    /// True when the bytes do not leave this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ip(address) => address.ip().to_canonical().is_loopback(),
            Self::Name(name, _) => &**name == "localhost",
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for EndpointAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// TLS towards an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointTls {
    /// The name that its certificate must have, and the SNI.
    pub server_name: Arc<str>,
    /// Authorities (DER) that are accepted in place of the system's.
    pub ca: Option<Arc<[Vec<u8>]>>,
    /// Our own certificate chain and key (DER, PKCS#8/PKCS#1/SEC1), for mutual TLS.
    pub client: Option<Arc<ClientIdentity>>,
}

/// The certificate that we show an endpoint.
#[derive(PartialEq, Eq, Hash)]
pub struct ClientIdentity {
    /// The chain (DER), leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The key (PEM text).
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Key material never reaches a log.
        f.debug_struct("ClientIdentity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}
