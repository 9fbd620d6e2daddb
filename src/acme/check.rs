//! What can be known before a CA is asked: does the name exist, does it lead here, may the CA issue for it.
//!
//! A CA counts failed attempts and answers them with pauses, and its words come from far away. A finding is certain
//! when no attempt can succeed; it is a doubt when this machine may simply see less than a CA does.

pub mod caa;
pub mod probe;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::acme::check::probe::{Seen, SeenTls};
use crate::acme::dns::persist::{self, Identity, Standing};
use crate::acme::dns::resolver::{self, Answer, Family, LookupError, Resolver};
use crate::addr::{HostName, HostPattern, is_private};
use crate::site::acme::{AcmePolicy, Challenge, Directory, DnsProvider, DnsRule};
use crate::tls::proofs::ProofBoard;

/// Something about a name that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The name.
    pub name: HostPattern,
    /// No attempt can succeed.
    pub is_certain: bool,
    /// Another view of the DNS, or another place in the world, may show something else than this machine sees.
    pub is_world: bool,
    /// Its kind, for machines.
    pub code: &'static str,
    /// What was found.
    pub why: String,
    /// What to do.
    pub help: String,
}

/// For all names together: an order must not wait long for what its CA would find out anyway.
const DEADLINE: Duration = Duration::from_secs(14);
/// Names at once. Each has a handful of questions.
const AT_ONCE: usize = 8;
/// Addresses of a name that are asked. A CA asks one or two.
const MOST_ADDRESSES: usize = 8;

/// Looks at all names; takes at most 15 s.
pub async fn look(
    resolver: &Resolver,
    policy: &AcmePolicy,
    directory: &Directory,
    names: &[HostPattern],
    board: &Arc<ProofBoard>,
    caa_issuers: &[String],
    account: Option<Identity<'_>>,
) -> Vec<Finding> {
    let world = World { http: 80, https: 443, is_near: is_private };
    Look { resolver, policy, directory, board, issuers: caa_issuers, account, world }.at(names).await
}

/// One look, and what it knows.
struct Look<'a> {
    resolver: &'a Resolver,
    policy: &'a AcmePolicy,
    directory: &'a Directory,
    board: &'a Arc<ProofBoard>,
    issuers: &'a [String],
    account: Option<Identity<'a>>,
    world: World,
}

/// Where a CA asks, and which addresses it cannot reach. Tests have only loopback, and no port 80.
#[derive(Clone, Copy)]
struct World {
    http: u16,
    https: u16,
    is_near: fn(IpAddr) -> bool,
}

/// An address that was asked, and what came.
struct Probed {
    family: Family,
    ip: IpAddr,
    seen: Seen,
    tls: Option<SeenTls>,
}

impl Look<'_> {
    async fn at(&self, names: &[HostPattern]) -> Vec<Finding> {
        let deadline = Instant::now() + DEADLINE;
        let turns = Semaphore::new(AT_ONCE);
        let each = names.iter().map(|name| async {
            let wait = timeout_at(deadline, turns.acquire()).await;
            let (reach, caa) =
                futures_util::join!(timeout_at(deadline, self.reach(name)), timeout_at(deadline, self.caa(name)));
            drop(wait);
            let late = || vec![self.doubt(name, "slow", "the checks took too long", "see that the resolver is fast")];
            let mut found = reach.unwrap_or_else(|_| late());
            found.extend(caa.unwrap_or_else(|_| if found.is_empty() { late() } else { Vec::new() }));
            found
        });
        join_all(each).await.concat()
    }

    /// Can the proof of control succeed?
    async fn reach(&self, name: &HostPattern) -> Vec<Finding> {
        match (self.policy.dns_rule(name), name) {
            (Some(rule), _) if rule.provider == DnsProvider::Persist => self.persist(rule, name).await,
            (Some(_), _) => Vec::new(),
            (None, HostPattern::Wildcard(zone)) => {
                let why = format!("control of \"{name}\" can be proved by DNS only");
                let help = format!("add a DNS provider for zone \"{zone}\" to `acme.dns`");
                vec![written(self.sure(name, "wildcard", why, help))]
            }
            (None, HostPattern::Exact(host)) => match host.ip() {
                Some(ip) if ip.is_ipv4() => self.addresses(name, &[(Family::V4, ip)], true).await,
                Some(ip) => self.addresses(name, &[(Family::V6, ip)], true).await,
                None => self.lookup(name, host).await,
            },
        }
    }

    /// The addresses of a name, and what is wrong with them.
    async fn lookup(&self, name: &HostPattern, host: &HostName) -> Vec<Finding> {
        let dns = match resolver::below("", host) {
            Ok(dns) => dns,
            Err(error) => return vec![self.unknown(name, &error)],
        };
        let (v4, v6) =
            futures_util::join!(self.resolver.addresses(&dns, Family::V4), self.resolver.addresses(&dns, Family::V6));
        let mut findings = Vec::new();
        let mut addresses = Vec::new();
        let mut is_name = true;
        let mut is_whole = true;
        for (family, answer) in [(Family::V4, v4), (Family::V6, v6)] {
            match answer {
                Ok(Answer::Records(ips)) => addresses.extend(ips.into_iter().map(|ip| (family, ip))),
                Ok(Answer::NoRecord) => {}
                Ok(Answer::NoName) => is_name = false,
                Err(error) => {
                    is_whole = false;
                    findings.push(self.unknown(name, &error));
                }
            }
        }
        if addresses.is_empty() && is_whole {
            let why = match is_name {
                true => format!("\"{name}\" has no address record, neither A nor AAAA"),
                false => format!("\"{name}\" does not exist in the DNS (NXDOMAIN)"),
            };
            findings.push(self.sure(name, "no-address", why, "add an A or AAAA record with the address of this edge"));
        }
        // Where some are left out, nothing is known of all.
        is_whole &= addresses.len() <= MOST_ADDRESSES;
        addresses.truncate(MOST_ADDRESSES);
        findings.extend(self.addresses(name, &addresses, is_whole).await);
        findings
    }

    /// Judges addresses. `is_whole`: there are no others.
    async fn addresses(&self, name: &HostPattern, all: &[(Family, IpAddr)], is_whole: bool) -> Vec<Finding> {
        let all = all.iter().map(|(family, ip)| (*family, ip.to_canonical()));
        let (usable, dead): (Vec<_>, Vec<_>) = all.partition(|(_, ip)| resolver::is_usable(*ip));
        let (near, far): (Vec<_>, Vec<_>) = usable.iter().copied().partition(|(_, ip)| (self.world.is_near)(*ip));
        let mut findings = Vec::new();
        if !dead.is_empty() {
            findings.push(self.dead(name, &dead, usable.is_empty() && is_whole));
        }
        if self.directory.is_public && !near.is_empty() {
            findings.push(self.private(name, &near, far.is_empty() && is_whole));
        }
        let probed = join_all(far.into_iter().map(|(family, ip)| self.probe(name.name(), family, ip))).await;
        findings.extend(self.probed(name, &probed));
        findings
    }

    /// Addresses that lead to no machine. They are not asked: this machine would answer itself at some of them.
    fn dead(&self, name: &HostPattern, dead: &[(Family, IpAddr)], are_all: bool) -> Finding {
        let list = list(dead);
        let help = "add an A or AAAA record with the address of this edge, and remove the others";
        if name.name().ip().is_some() {
            let why = format!("{list} leads to no machine");
            return written(self.sure(name, "no-address", why, "name the site by the address of this edge"));
        }
        if are_all {
            let why = format!("\"{name}\" has no address that leads to a machine, only {list}");
            return self.sure(name, "no-address", why, help);
        }
        self.doubt(name, "no-address", format!("\"{name}\" has an address that leads to no machine: {list}"), help)
    }

    /// Addresses that no public CA can reach (loopback, RFC 1918, RFC 4193, link-local, RFC 6598).
    fn private(&self, name: &HostPattern, near: &[(Family, IpAddr)], are_all: bool) -> Finding {
        let list = list(near);
        let what = if near.len() == 1 { "a private address" } else { "private addresses" };
        if name.name().ip().is_some() {
            let why = format!("{list} is {what}: no public CA issues for it");
            let help = "take certificates for it from the local authority";
            return written(self.sure(name, "private-address", why, help));
        }
        let why =
            format!("\"{name}\" has {what}, {list}, which no public CA can reach: HTTP-01 and TLS-ALPN-01 cannot work");
        if are_all {
            let help = format!(
                "prove the name by DNS: add a provider for its zone to `acme.dns`, or `provider = \"persist\"` with one \
                 fixed record at \"{}\"; or give the site certificate files; if the name has another address \
                 outside, set `resolvers` in [acme] to resolvers that see it",
                persist::record_name(name.name())
            );
            return self.sure(name, "private-address", why, help);
        }
        let why = format!("\"{name}\" has {what} beside others, {list}, which no public CA can reach");
        self.doubt(name, "private-address", why, "remove the private address from the public DNS")
    }

    async fn probe(&self, host: &HostName, family: Family, ip: IpAddr) -> Probed {
        let seen = probe::http(self.board, host, SocketAddr::new(ip, self.world.http)).await;
        // Somebody else may have port 80 of this machine, while we have 443.
        let tls = match seen {
            Seen::Foreign { .. } if self.policy.challenges.contains(&Challenge::TlsAlpn01) => {
                Some(probe::tls(self.board, host, SocketAddr::new(ip, self.world.https)).await)
            }
            Seen::Foreign { .. } | Seen::Ours | Seen::Unclear { .. } | Seen::Silent { .. } => None,
        };
        Probed { family, ip, seen, tls }
    }

    /// What the answers of all addresses mean together.
    fn probed(&self, name: &HostPattern, all: &[Probed]) -> Vec<Finding> {
        let is_ours = |probed: &Probed| probed.seen == Seen::Ours || probed.tls == Some(SeenTls::Ours);
        let ours = |family| all.iter().any(|probed| probed.family == family && is_ours(probed));
        let mut findings = Vec::new();
        for probed in all.iter().filter(|probed| !is_ours(probed)) {
            let (family, ip) = (probed.family.as_str(), probed.ip);
            match &probed.seen {
                Seen::Ours => {}
                Seen::Foreign { what } => {
                    // A CA takes one address of a family, and IPv6 first where there is both (RFC 6724).
                    let may_be_spared = ours(probed.family) || (probed.family == Family::V4 && ours(Family::V6));
                    let is_certain = !may_be_spared
                        && self.policy.challenges.contains(&Challenge::Http01)
                        && probed.tls != Some(SeenTls::Silent);
                    let record = if name.name().ip().is_some() { "" } else { " record" };
                    let why = format!("{ip} ({family}{record}) {what}");
                    let help = match (name.name().ip().is_some(), probed.family) {
                        (true, _) => "only the machine that has this address can prove control of it".to_owned(),
                        (false, Family::V4) => format!("correct the A record of \"{name}\", or open port 80 here"),
                        (false, Family::V6) => format!(
                            "correct or remove the AAAA record of \"{name}\": public CAs ask over IPv6 where there is one"
                        ),
                    };
                    findings.push(Finding { is_certain, ..self.doubt(name, "foreign-answer", why, help) });
                }
                Seen::Unclear { what } => {
                    let why = format!("{ip} ({family}) {what}");
                    let help = "whatever stands before this edge must pass /.well-known/acme-challenge/ on to it";
                    findings.push(self.doubt(name, "unclear-answer", why, help));
                }
                Seen::Silent { why } => {
                    let why = format!("port 80 of {ip} ({family}) gives no answer here: {why}");
                    let help = "open and forward ports 80 and 443; behind a router this machine may be the only one \
                                that cannot see it";
                    findings.push(self.doubt(name, "no-answer", why, help));
                }
            }
        }
        findings
    }

    /// Is the fixed record there (dns-persist-01)?
    async fn persist(&self, rule: &DnsRule, name: &HostPattern) -> Vec<Finding> {
        let at = persist::record_name(name.name());
        let (Some(account), Some(issuer)) = (self.account, self.issuers.first()) else {
            let why = format!("it is not known yet which record must stand at \"{at}\"");
            let help = "`tidegate certs account` prints it, once there is an account with the CA";
            return vec![self.doubt(name, "persist-record", why, help)];
        };
        let wildcard = matches!(name, HostPattern::Wildcard(_));
        let uri = account.uri(name.name());
        let help =
            format!("create this record, once and for all: {at}. TXT \"{}\"", persist::record(issuer, &uri, wildcard));
        let wanted = persist::Wanted { name: name.name(), wildcard, issuers: self.issuers, account_uri: &uri };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match persist::is_there(self.resolver, rule, wanted, now).await {
            Ok(Standing::There) => Vec::new(),
            Ok(Standing::Unclear) => {
                let why = format!("\"{at}\" has a record of {issuer} with a hash that may be of another account");
                vec![self.doubt(name, "persist-record", why, help)]
            }
            Ok(Standing::Missing(faults)) if faults.is_empty() => {
                let why = format!("\"{at}\" has no record of {issuer}");
                vec![self.sure(name, "persist-record", why, help)]
            }
            Ok(Standing::Missing(faults)) => {
                let why = format!("no record at \"{at}\" does: {}", faults.join("; "));
                vec![self.sure(name, "persist-record", why, help)]
            }
            Err(error) => vec![self.unknown(name, &error)],
        }
    }

    /// May the CA issue (RFC 8659)?
    async fn caa(&self, name: &HostPattern) -> Vec<Finding> {
        let host = name.name();
        if host.ip().is_some() {
            return Vec::new();
        }
        let found = match resolver::below("", host) {
            Ok(dns) => self.resolver.caa(&dns).await,
            Err(error) => Err(error),
        };
        let caa = match found {
            Ok(Some(caa)) => caa,
            Ok(None) => return Vec::new(),
            Err(error) => return vec![self.unknown(name, &error)],
        };
        let methods: Vec<&str> = match self.policy.dns_rule(name).map(|rule| &rule.provider) {
            Some(DnsProvider::Persist) => vec!["dns-persist-01"],
            Some(_) => vec!["dns-01"],
            None => self.policy.challenges.iter().map(|challenge| challenge.as_str()).collect(),
        };
        let is_wildcard = matches!(name, HostPattern::Wildcard(_));
        let wanted = caa::Wanted {
            is_wildcard,
            issuers: self.issuers,
            account: self.account.map(|account| account.url),
            methods: &methods,
        };
        let at = resolver::text(&caa.at);
        let issuer = self.issuers.first().map_or("the name of the CA", String::as_str);
        let tag = if is_wildcard { "issuewild" } else { "issue" };
        let help = format!("add this record, or remove those that forbid it: {at}. CAA 0 {tag} \"{issuer}\"");
        match caa::judge(&caa.records, wanted) {
            caa::Verdict::Allowed => Vec::new(),
            caa::Verdict::Unsure(why) => {
                vec![self.doubt(name, "caa", format!("the CAA record of \"{at}\" decides: {why}"), help)]
            }
            caa::Verdict::Forbidden(why) => {
                vec![self.sure(name, "caa", format!("the CAA records of \"{at}\" forbid it: {why}"), help)]
            }
        }
    }

    /// What is certain if the CA sees the same DNS as we do. A private one may not, unless the file says whom to ask.
    fn sure(&self, name: &HostPattern, code: &'static str, why: impl Into<String>, help: impl Into<String>) -> Finding {
        let is_certain = self.directory.is_public || !self.policy.resolvers.is_empty();
        Finding { is_certain, ..self.doubt(name, code, why, help) }
    }

    fn doubt(
        &self,
        name: &HostPattern,
        code: &'static str,
        why: impl Into<String>,
        help: impl Into<String>,
    ) -> Finding {
        Finding { name: name.clone(), is_certain: false, is_world: true, code, why: why.into(), help: help.into() }
    }

    fn unknown(&self, name: &HostPattern, error: &LookupError) -> Finding {
        let help = "see that the resolver is reachable (`acme.resolvers`) and that the zone's servers answer";
        self.doubt(name, "lookup", error.to_string(), help)
    }
}

/// A finding about what the file says: it is the same for everybody.
fn written(finding: Finding) -> Finding {
    Finding { is_world: false, ..finding }
}

/// Addresses, each once.
fn list(all: &[(Family, IpAddr)]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in all.iter().map(|(_, ip)| ip.to_string()) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join(", ")
}
