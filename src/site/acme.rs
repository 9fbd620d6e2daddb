//! Data: what the file says of certificates from a CA (`[acme]`): directories, challenges, DNS
//! providers, what holds until a certificate is there, who is told.
//!
//! Every value here is already valid: `config::compile` is the only place that makes one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::{HostName, HostPattern};

/// All of `[acme]`, and the `email` of the top level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmePolicy {
    /// The contact of accounts.
    pub email: Option<Box<str>>,
    /// Where certificates are ordered: the first one, then those that stand in for it. Never empty.
    pub directories: Vec<Directory>,
    /// How control of a name is proved where no DNS provider is configured, best first. Never empty.
    pub challenges: Vec<Challenge>,
    /// The kind of certificate that is asked for.
    pub profile: Profile,
    /// DNS providers and the zones that they write.
    pub dns: Vec<DnsRule>,
    /// Resolvers of the checks before an order; empty means the system's.
    pub resolvers: Vec<SocketAddr>,
    /// What handshakes get until the first certificate is there.
    pub pending: Pending,
    /// How long before its end a certificate is reported; never more than a third of its lifetime.
    pub alert_before: Duration,
    /// The program that is told of events.
    pub on_event: Option<Program>,
}

/// One ACME server (RFC 8555 7.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// What the operator calls it: `letsencrypt`, or the URL's host, with its port if it says one.
    pub name: Box<str>,
    /// Its URL: `https`, or `http` on loopback.
    pub url: Box<str>,
    /// True for the CAs that browsers know: they issue for public names only, and only for what the internet reaches.
    pub is_public: bool,
    /// The external account that ours is bound to (RFC 8555 7.3.4).
    pub eab: Option<Eab>,
    /// Authorities that are accepted for the directory itself, beside the system's.
    pub root: Option<AcmeRoot>,
}

/// An external account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eab {
    /// Its key identifier.
    pub kid: Box<str>,
    /// Its MAC key, decoded.
    pub hmac: Secret,
}

/// A file of authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeRoot {
    /// For messages.
    pub file: PathBuf,
    /// Its certificates (DER), read when the configuration was loaded.
    pub certificates: Arc<[Vec<u8>]>,
}

/// A way to prove control of a name without touching DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// RFC 8737: inside a TLS handshake on port 443.
    TlsAlpn01,
    /// RFC 8555 8.3: a cleartext answer on port 80.
    Http01,
}

impl Challenge {
    /// Its name in RFCs and in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
        }
    }
}

/// The certificate profile of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `shortlived` for IP addresses, because public CAs issue no other for them; else the CA's default.
    Auto,
    /// The CA's default.
    Default,
    /// This one.
    Named(Box<str>),
}

/// What handshakes get until the first certificate is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// A certificate of the local authority.
    #[default]
    Local,
    /// An alert.
    Refuse,
}

/// A DNS provider and the zones that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRule {
    /// Names at or below these are proved by DNS.
    pub zones: Vec<HostName>,
    /// How records get there.
    pub provider: DnsProvider,
    /// Servers that are asked whether a record is there, in place of those that the zone names.
    pub servers: Vec<SocketAddr>,
    /// How long a record may take to be on all of them.
    pub propagation: Duration,
}

/// How a TXT record gets into a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsProvider {
    /// A program of the operator.
    Exec(Program),
    /// RFC 2136 with TSIG (RFC 8945).
    Rfc2136(Box<Rfc2136>),
    /// An acme-dns server that a CNAME points to.
    AcmeDns(Box<AcmeDns>),
    /// The API of Cloudflare.
    Cloudflare(Box<Cloudflare>),
    /// dns-persist-01: a record that the operator puts there once.
    Persist,
}

impl DnsProvider {
    /// Its name in the file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Rfc2136(_) => "rfc2136",
            Self::AcmeDns(_) => "acme-dns",
            Self::Cloudflare(_) => "cloudflare",
            Self::Persist => "persist",
        }
    }
}

/// A program and the arguments that it always gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file; found on `PATH` when it has no slash.
    pub program: PathBuf,
    /// Its first arguments.
    pub args: Vec<Box<str>>,
}

/// A primary server that takes dynamic updates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rfc2136 {
    /// Its address.
    pub server: SocketAddr,
    /// The name of the key.
    pub key_name: Box<str>,
    /// Its algorithm.
    pub algorithm: TsigAlgorithm,
    /// The key, decoded.
    pub secret: Secret,
}

/// RFC 8945 6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TsigAlgorithm {
    /// `hmac-sha256`.
    #[default]
    Sha256,
    /// `hmac-sha384`.
    Sha384,
    /// `hmac-sha512`.
    Sha512,
}

/// An account of an acme-dns server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeDns {
    /// The server's base URL.
    pub url: Box<str>,
    /// The account's user.
    pub username: Box<str>,
    /// The account's password.
    pub password: Secret,
    /// The account's subdomain.
    pub subdomain: Box<str>,
}

/// An API token of Cloudflare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloudflare {
    /// The API's base URL.
    pub url: Box<str>,
    /// The token: may read zones and edit DNS.
    pub token: Secret,
}

/// Bytes that never reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Arc<[u8]>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Default for AcmePolicy {
    /// What holds when the file says nothing.
    fn default() -> Self {
        Self {
            email: None,
            directories: vec![Directory::letsencrypt()],
            challenges: vec![Challenge::TlsAlpn01, Challenge::Http01],
            profile: Profile::Auto,
            dns: Vec::new(),
            resolvers: Vec::new(),
            pending: Pending::Local,
            alert_before: Duration::from_secs(14 * 24 * 3600),
            on_event: None,
        }
    }
}

impl Directory {
    /// Let's Encrypt.
    pub fn letsencrypt() -> Self {
        let url = "https://acme-v02.api.letsencrypt.org/directory".into();
        Self { name: "letsencrypt".into(), url, is_public: true, eab: None, root: None }
    }
}

impl AcmePolicy {
    /// The provider that writes the zone of a name: the one of the longest zone.
    pub fn dns_rule(&self, name: &HostPattern) -> Option<&DnsRule> {
        self.longest_zone(name).map(|(rule, _)| rule)
    }

    /// The zone by which that provider has the name.
    pub fn dns_zone(&self, name: &HostPattern) -> Option<&HostName> {
        self.longest_zone(name).map(|(_, zone)| zone)
    }

    fn longest_zone(&self, name: &HostPattern) -> Option<(&DnsRule, &HostName)> {
        if name.name().ip().is_some() {
            return None;
        }
        self.dns
            .iter()
            .flat_map(|rule| rule.zones.iter().map(move |zone| (rule, zone)))
            .filter(|(_, zone)| is_within(name.name(), zone))
            .max_by_key(|(_, zone)| zone.as_str().len())
    }
}

/// True for the zone itself and for every name below it.
fn is_within(name: &HostName, zone: &HostName) -> bool {
    let rest = name.as_str().strip_suffix(zone.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The name under which the RFCs ask for an address: for TLS-ALPN-01 (RFC 8738 6) and in DNS (RFC 1035 3.5, RFC 3596 2.5).
pub fn reverse_name(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let mut text = String::with_capacity(72);
            for byte in ip.octets().iter().rev() {
                use fmt::Write as _;
                // A String takes everything.
                let _ = write!(text, "{:x}.{:x}.", byte & 15, byte >> 4);
            }
            text.push_str("ip6.arpa");
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(zones: &[&str]) -> DnsRule {
        let zones = zones.iter().map(|zone| HostName::parse(zone).expect("a name")).collect();
        DnsRule { zones, provider: DnsProvider::Persist, servers: Vec::new(), propagation: Duration::from_secs(120) }
    }

    #[test]
    fn the_longest_zone_has_the_name() {
        let dns = vec![rule(&["example.com"]), rule(&["vpn.example.com", "example.net"])];
        let policy = AcmePolicy { dns, ..AcmePolicy::default() };
        for (name, expected) in [
            ("example.com", Some(0)),
            ("*.example.com", Some(0)),
            ("a.vpn.example.com", Some(1)),
            ("*.example.net", Some(1)),
            ("badexample.com", None),
            ("198.51.100.7", None),
        ] {
            let pattern = HostPattern::from_config(name).expect("a pattern");
            let expected = expected.map(|index: usize| &policy.dns[index]);
            assert_eq!(policy.dns_rule(&pattern), expected, "{name}");
        }
    }

    #[test]
    fn addresses_are_asked_for_backwards() {
        assert_eq!(reverse_name([198, 51, 100, 7].into()), "7.100.51.198.in-addr.arpa");
        let text = reverse_name("2001:db8::7".parse().expect("an address"));
        assert_eq!(text, "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa");
    }
}
