//! Policy as data: what a site or a route allows, limits, waits for and writes.
//!
//! No behaviour beyond small claims about the data itself; `policy/`, `forward` and `request` act
//! on it. Every value here is already valid: `config::compile` is the only place that makes one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

use super::crl::Crl;
use crate::addr::{ListenAddr, PeerAddr};

/// A list of networks. Linear search: measured faster than a trie below some fifty entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// The networks, canonical (no IPv4-mapped IPv6).
    pub nets: Vec<IpNet>,
    /// True when the peers of unix sockets belong to the list (the built-in name `unix`).
    pub unix: bool,
}

impl Networks {
    /// True when a canonical address is in one of the networks.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.nets.iter().any(|net| net.contains(&ip))
    }

    /// True when a peer is in the list.
    pub fn has_peer(&self, peer: PeerAddr) -> bool {
        match peer {
            PeerAddr::Ip(address) => self.contains(address.ip()),
            PeerAddr::Unix => self.unix,
        }
    }
}

/// Which hops are believed, and what is never taken from anybody else.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Networks whose forwarded headers and request IDs are believed.
    pub proxies: Networks,
    /// Networks whose connections begin with a preface of the PROXY protocol, and must.
    pub proxy_protocol: Networks,
    /// Further request headers that are removed unless the peer is a trusted hop. Lower case,
    /// `_` written as `-`; an entry that ends in `-` means every header that begins so.
    pub strip: Vec<Box<str>>,
    /// Identity headers that a trusted hop may send, and nobody else.
    pub identity: Vec<HeaderName>,
}

/// Time limits of one request, tunnel or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest pause between two pieces of a request body.
    pub request_body: Duration,
    /// Longest wait for a connection to the endpoint, TLS included.
    pub connect: Duration,
    /// Longest wait for the response head, the answer to an upgrade included.
    pub response_head: Duration,
    /// Longest silence in a tunnel or in a streaming response.
    pub idle: Duration,
    /// Longest time in which the client takes no byte that is ready for it.
    pub send: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request_body: Duration::from_secs(30),
            connect: Duration::from_secs(5),
            response_head: Duration::from_secs(120),
            idle: Duration::from_secs(3600),
            send: Duration::from_secs(60),
        }
    }
}

/// Size limits of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body in bytes.
    pub body: u64,
    /// Bytes a second that a request body must come at in the long run; 0 for any.
    pub body_rate: u64,
    /// Largest request head in bytes: target, names and values.
    pub header_bytes: usize,
    /// Largest number of request header fields, each cookie crumb counted.
    pub headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 20 << 20, body_rate: 256, header_bytes: 32 << 10, headers: 100 }
    }
}

/// What is done to the headers of a request and of its response, in the order remove, set, add.
#[derive(Clone, Debug, Default)]
pub struct HeaderOps {
    /// On the request that goes upstream.
    pub request: HeaderEdits,
    /// On the response that goes downstream.
    pub response: HeaderEdits,
}

/// Edits of one header map.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    /// Names to remove.
    pub remove: Vec<HeaderName>,
    /// Fields that replace all fields of their name.
    pub set: Vec<(HeaderName, Template)>,
    /// Fields that stand beside what is there.
    pub add: Vec<(HeaderName, Template)>,
}

impl HeaderEdits {
    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// A value with placeholders, parsed when the configuration was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Template {
    /// No placeholder: used as it is.
    Literal(HeaderValue),
    /// Text and placeholders in turn.
    Parts(Vec<TemplatePart>),
}

/// One part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text as it stands.
    Text(Box<str>),
    /// `{client}`: the resolved client address.
    Client,
    /// `{host}`: the host that was asked for, with its port.
    Host,
    /// `{request_id}`.
    RequestId,
    /// `{tls.version}`: `1.3`, `1.2`, or empty without TLS.
    TlsVersion,
    /// `{tls.cipher}`: the cipher suite, or empty without TLS.
    TlsCipher,
    /// `{uri}`: path and query as the client sent them.
    Uri,
}

/// Which `Host` the upstream sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// The client's, port included.
    Preserve,
    /// The endpoint's own address.
    Upstream,
    /// This value.
    Literal(HeaderValue),
}

/// Which `Origin` may open a tunnel or send an unsafe method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// Serialised origins, lower case: `https://app.example.com`.
    pub allow: Vec<Box<str>>,
    /// Whether a request without `Origin` passes.
    pub missing_allowed: bool,
}

/// Whether a person at this machine may count as local to the gateway (GATEWAY.md 12 of the design notes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attribution {
    /// Every request carries the client's address.
    #[default]
    Client,
    /// A request from a loopback peer, for this name, without forwarding headers, carries none.
    Local,
}

/// `Strict-Transport-Security` (RFC 6797), as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hsts(pub HeaderValue);

/// Who may frame the site: the value of `frame-ancestors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embed {
    /// `frame-ancestors` and the sources, ready to stand in a policy.
    pub directive: Box<str>,
}

/// A page of the operator's own, in place of our answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    /// The status it replaces the body of.
    pub status: StatusCode,
    /// `Content-Type`, by the file's name.
    pub content_type: HeaderValue,
    /// The page, read when the configuration was loaded.
    pub body: Bytes,
}

/// An answer given here by configuration: `respond`.
#[derive(Clone, Debug)]
pub struct Respond {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

/// An answer given here by configuration: `redirect`.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `Location`; `{host}` and `{uri}` are filled in.
    pub to: Template,
}

/// TLS policy of a site. Two sites with equal policies share sessions; others never do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsPolicy {
    /// Versions, suites and groups.
    pub profile: TlsProfile,
    /// What we offer by ALPN, in our order of preference.
    pub alpn: Vec<Alpn>,
    /// Client certificates.
    pub client_cert: Option<ClientCert>,
}

/// A named set of versions, suites and groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsProfile {
    /// TLS 1.2 with forward secrecy and TLS 1.3.
    #[default]
    Intermediate,
    /// TLS 1.3 only.
    Modern,
    /// AES-GCM and NIST curves only (NIST SP 800-52 Rev. 2).
    Nist80052r2,
}

/// A protocol offered by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `h2`.
    Http2,
    /// `http/1.1`.
    Http11,
}

impl Alpn {
    /// The identifier on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http2 => "h2",
            Self::Http11 => "http/1.1",
        }
    }
}

/// Mutual TLS with clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientCert {
    /// The file with the certificates of the accepted authorities, for messages.
    pub ca_file: PathBuf,
    /// Those certificates (DER), read when the configuration was loaded.
    pub ca: Arc<[Vec<u8>]>,
    /// Which certificates are revoked; `None` when that is not asked.
    pub crl: Option<Crl>,
    /// Whether a handshake without a certificate fails.
    pub required: bool,
    /// The request header that carries the subject upstream; a client's own copy never passes.
    pub header: Option<HeaderName>,
}

/// Where a site's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// Ordered from a CA by ACME, kept under `storage`.
    Acme,
    /// The local certificate authority under `storage`.
    Local,
    /// PEM files, watched.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// What may be asked about the edge itself, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminPolicy {
    /// Where status, metrics and health are served.
    pub listen: AdminListen,
    /// Where metrics alone are served.
    pub metrics: Vec<SocketAddr>,
    /// The path that load balancers may ask for on every listener.
    pub health: Option<Box<str>>,
}

/// Where status, metrics and health are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdminListen {
    /// In the runtime directory, or in `storage`.
    #[default]
    Usual,
    /// There: a unix socket or a loopback address.
    At(ListenAddr),
    /// Nowhere.
    Off,
}
