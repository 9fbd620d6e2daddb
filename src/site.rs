//! The site table: everything that one configuration says, compiled; find a site by host.
//!
//! Immutable. A request or tunnel keeps the table that it began with; `snapshot` replaces it.

pub mod access;
pub mod acme;
pub mod auth;
pub mod crl;
pub mod geo;
pub mod limit;
pub mod policy;
pub mod route;
pub mod upstream;
pub mod users;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

use crate::addr::{HostName, HostPattern, ListenAddr};
use acme::AcmePolicy;
use limit::CountRule;
use policy::{AdminPolicy, Attribution, CertificateSource, Networks, TlsPolicy, Trust};
use route::RouteTable;

/// One compiled configuration.
#[derive(Clone, Debug)]
pub struct SiteTable {
    /// What is said of the edge itself.
    pub edge: EdgeSettings,
    /// Request headers by which the edge tells some upstream who asks: no client may send one, on any site.
    pub identity_headers: Vec<HeaderName>,
    /// The largest head that any route takes: the bound before the route is known.
    pub largest_head: HeadLimits,
    sites: Vec<Arc<Site>>,
    hosts: HashMap<HostName, usize>,
    wildcards: HashMap<HostName, usize>,
}

/// Bounds of a request head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes in all.
    pub bytes: usize,
    /// Fields.
    pub fields: usize,
}

/// A virtual host.
#[derive(Clone, Debug)]
pub struct Site {
    /// What it answers to.
    pub host: HostPattern,
    /// The name as text, for the log.
    pub label: Arc<str>,
    /// Its other names.
    pub aliases: Vec<HostPattern>,
    /// Whether those are served; otherwise they are redirected to `host`.
    pub serve_aliases: bool,
    /// The listener that serves it.
    pub listener: ListenerId,
    /// TLS of its handshakes; `None` when it is served in cleartext.
    pub tls: Option<SiteTls>,
    /// The preset that its settings began with, for people.
    pub preset: Option<&'static str>,
    /// Whether a person at this machine may count as local.
    pub attribution: Attribution,
    /// How many connections may be open; `None` leaves it to the bound of the process.
    pub connections: Option<Arc<CountRule>>,
    /// What is done with its requests.
    pub routes: RouteTable,
    /// The operator's reason for an unusual setting.
    pub why: Option<Box<str>>,
}

/// TLS of one site.
#[derive(Clone, Debug)]
pub struct SiteTls {
    /// Versions, ALPN, client certificates.
    pub policy: Arc<TlsPolicy>,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// Whether a renewal keeps the key, for clients that pin it. Only for certificates from a CA.
    pub reuse_key: bool,
}

/// Which listener: an index into `SiteTable::listeners`; 0 is the default one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerId(pub usize);

/// What a bound address is for. A connection keeps the role under which it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// The address.
    pub address: ListenAddr,
    /// The name of an extra listener; `None` for the default one.
    pub listener: Option<Box<str>>,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

/// A set of addresses that serve the same sites, and the deadlines of their connections.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The name of an extra listener; `None` for the default one.
    pub name: Option<Box<str>>,
    /// Addresses that speak cleartext HTTP/1.1.
    pub http: Vec<ListenAddr>,
    /// Addresses that speak TLS.
    pub https: Vec<ListenAddr>,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request head to its last.
    pub request_head_timeout: Duration,
    /// From the end of a response to the first byte of the next request.
    pub keep_alive_timeout: Duration,
}

/// What to do with a handshake for a name that no site has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UnknownSni {
    /// Refuse it.
    #[default]
    Reject,
    /// Use this site's certificate and policy; the request's Host is still judged.
    Site(HostName),
}

/// Logging as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// `None` chooses by the output: text on a terminal, JSON otherwise.
    pub format: Option<LogFormat>,
    /// Where records go.
    pub access: AccessOutput,
    /// Names of query parameters that are masked beside the built-in ones. Lower case.
    pub redact_query: Vec<Box<str>>,
    /// Names of request headers that are masked beside the built-in ones. Lower case.
    pub redact_headers: Vec<Box<str>>,
}

/// Severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// A human must act.
    Error,
    /// Will need a human.
    Warn,
    /// Lifecycle.
    #[default]
    Info,
    /// One line per connection.
    Debug,
}

/// The form of log lines and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessOutput {
    /// Standard output.
    Stdout,
    /// A file, reopened on SIGUSR1.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// Limits of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessPolicy {
    /// How long requests may take to finish at a stop.
    pub grace: Duration,
    /// How long tunnels may take after that.
    pub tunnel_grace: Duration,
    /// How many good configurations are kept.
    pub history: usize,
    /// Most connections at once; `None` follows the file limit.
    pub max_connections: Option<usize>,
    /// Worker threads; `None` is one a core. Read at start only.
    pub workers: Option<usize>,
}

/// A site and the name by which it was found.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// The site.
    pub site: &'a Arc<Site>,
    /// True when the name is an alias that must be redirected.
    pub is_redirected_alias: bool,
}

/// Two sites claim one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateHost {
    /// The name.
    pub host: HostPattern,
}

/// What a configuration says of the edge itself, apart from its sites.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// Listeners: the default one first, then the extra ones.
    pub listeners: Vec<Listener>,
    /// Whose word is taken.
    pub trust: Trust,
    /// What to do with a handshake for a name that no site has.
    pub unknown_sni: UnknownSni,
    /// Logging.
    pub log: LogPolicy,
    /// What may be asked about the edge itself, and where.
    pub admin: AdminPolicy,
    /// Limits of the process.
    pub process: ProcessPolicy,
    /// Certificates from a CA.
    pub acme: Arc<AcmePolicy>,
    /// Directory of certificates, the local CA and kept configurations.
    pub storage: PathBuf,
    /// The identity headers of `[auth]`, whether a site uses them or not: an upstream may still believe them.
    pub identity_headers: Vec<HeaderName>,
}

impl SiteTable {
    /// Builds the table and its index.
    ///
    /// # Errors
    /// When two sites claim one name.
    pub fn new(edge: EdgeSettings, sites: Vec<Arc<Site>>) -> Result<Self, DuplicateHost> {
        let mut hosts = HashMap::new();
        let mut wildcards = HashMap::new();
        for (index, site) in sites.iter().enumerate() {
            for pattern in std::iter::once(&site.host).chain(&site.aliases) {
                let previous = match pattern {
                    HostPattern::Exact(name) => hosts.insert(name.clone(), index),
                    HostPattern::Wildcard(name) => wildcards.insert(name.clone(), index),
                };
                if previous.is_some() {
                    return Err(DuplicateHost { host: pattern.clone() });
                }
            }
        }
        let of_certificates =
            sites.iter().filter_map(|site| site.tls.as_ref()?.policy.client_cert.as_ref()?.header.clone());
        let mut identity_headers: Vec<HeaderName> =
            of_certificates.chain(edge.identity_headers.iter().cloned()).collect();
        identity_headers.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        identity_headers.dedup();
        let limits = || sites.iter().flat_map(|site| site.routes.iter()).map(|route| &route.limits);
        let largest_head = HeadLimits {
            bytes: limits().map(|limits| limits.header_bytes).max().unwrap_or_default(),
            fields: limits().map(|limits| limits.headers).max().unwrap_or_default(),
        };
        Ok(Self { edge, identity_headers, largest_head, sites, hosts, wildcards })
    }

    /// All sites, in the order of the file.
    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// The site of a normalised host name. An exact name wins over a wildcard.
    pub fn find(&self, host: &str) -> Option<Found<'_>> {
        let index = self.hosts.get(host).or_else(|| {
            let dot = memchr::memchr(b'.', host.as_bytes())?;
            self.wildcards.get(&host[dot + 1..])
        })?;
        let site = &self.sites[*index];
        let is_redirected_alias = !site.serve_aliases && !site.host.matches(host);
        Some(Found { site, is_redirected_alias })
    }

    /// The site with this very name.
    pub fn site_of(&self, host: &HostPattern) -> Option<&Arc<Site>> {
        let index = match host {
            HostPattern::Exact(name) => self.hosts.get(name),
            HostPattern::Wildcard(name) => self.wildcards.get(name),
        };
        Some(&self.sites[*index?])
    }

    /// The listener that a bound address belongs to, if it is still configured.
    pub fn listener_of(&self, role: &Role) -> Option<ListenerId> {
        self.edge.listeners.iter().position(|listener| listener.name == role.listener).map(ListenerId)
    }

    /// The listener of a site.
    pub fn listener(&self, id: ListenerId) -> &Listener {
        &self.edge.listeners[id.0]
    }
}

/// The networks that every file may name without defining them.
pub fn built_in_networks() -> BTreeMap<&'static str, Networks> {
    let list = |texts: &[&str]| Networks {
        nets: texts.iter().filter_map(|text| text.parse::<IpNet>().ok()).collect(),
        unix: false,
    };
    BTreeMap::from([
        ("loopback", list(&["127.0.0.0/8", "::1/128"])),
        ("private", list(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"])),
        ("tailscale", list(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"])),
        ("unix", Networks { nets: Vec::new(), unix: true }),
    ])
}
