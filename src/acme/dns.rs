//! Proofs by DNS (DNS-01, RFC 8555 8.4): put a TXT record up, wait until the zone shows it, take it down.
//!
//! Two values may stand at one name at the same time (a name and its wildcard in one order), so records are added
//! and removed by value, never replaced. One file for each way to write a zone; `persist` writes nothing.

pub mod acme_dns;
pub mod ask;
pub mod cloudflare;
pub mod exec;
pub mod issue;
pub mod persist;
pub mod resolver;
pub mod rfc2136;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hickory_proto::rr::Name;
use tokio::time::{Instant, sleep};

use crate::acme::dns::resolver::{LookupError, Resolver, ZoneServer, a_few_at_once};
use crate::addr::HostName;
use crate::https::HttpsClient;
use crate::site::acme::{AcmePolicy, DnsProvider, DnsRule};

/// Writes TXT records; cheap to clone.
#[derive(Clone, Debug)]
pub struct Dns {
    /// For APIs; made when one is asked, because a machine may have no authorities and need none.
    https: Arc<OnceLock<HttpsClient>>,
    resolver: Resolver,
}

/// A TXT record that has its place, and may be up.
#[derive(Debug)]
pub struct Record {
    /// The name that a CA asks for.
    start: Name,
    /// Where the chain of aliases from there ends.
    name: Name,
    value: Box<str>,
    /// Set before anything is written: from then on it may be there, whatever the provider says.
    tried: AtomicBool,
    /// What the API of the provider calls it.
    handle: OnceLock<cloudflare::Handle>,
}

/// Why a record is not where it should be, in words for the operator.
#[derive(Debug)]
pub struct DnsError {
    provider: Option<&'static str>,
    record: Option<String>,
    what: String,
    help: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The label of DNS-01 (RFC 8555 8.4).
const LABEL: &str = "_acme-challenge";
/// Between two looks at the servers: soon at first, because a server of one's own shows a record at once.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Our choice: a dozen looks at a secondary that takes a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Dns {
    /// Prepares the resolver.
    pub fn new(policy: &AcmePolicy) -> Self {
        Self { https: Arc::default(), resolver: Resolver::new(&policy.resolvers) }
    }

    /// As `new`, with this resolver.
    #[cfg(test)]
    pub(crate) fn for_test(resolver: Resolver) -> Self {
        // An authority of its own: the machine of a test may have none.
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertificateParams::default().self_signed(&key).expect("a root");
        let https = HttpsClient::new(&[root.der().to_vec()]).expect("a client");
        Self { https: Arc::new(OnceLock::from(https)), resolver }
    }

    /// The resolver, for checks before an order.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Finds out where a TXT record for a name belongs: at `_acme-challenge.NAME`, or where a chain of CNAMEs from
    /// there ends. Nothing is written.
    ///
    /// # Errors
    /// When that cannot be told, or is no name that a provider can take.
    pub async fn locate(&self, rule: &DnsRule, name: &HostName, value: &str) -> Result<Record, DnsError> {
        let at = |error: DnsError, record: String| error.at(rule.provider.as_str(), record);
        let start = resolver::below(LABEL, name).map_err(|error| at(no_place(error), format!("{LABEL}.{name}")))?;
        let fault = |error| at(error, resolver::text(&start));
        let found = self.resolver.end_of_chain(&start, &rule.servers).await;
        let (name, _) = found.map_err(|error| fault(no_place(error)))?;
        if !is_plain(&name) {
            let what = format!("its CNAME points to {:?}, which is no host name", resolver::text(&name));
            let help = "correct the CNAME record: labels of letters, digits, `-` and `_` that do not begin with `-`";
            return Err(fault(DnsError::new(what, help)));
        }
        Ok(Record { start, name, value: value.into(), tried: AtomicBool::new(false), handle: OnceLock::new() })
    }

    /// Adds a record beside those that are there. The caller keeps it and removes it, also when this fails or is given
    /// up: it may have been written all the same.
    ///
    /// # Errors
    /// When the provider refuses.
    pub async fn put(&self, rule: &DnsRule, record: &Record) -> Result<(), DnsError> {
        let done = async {
            match &rule.provider {
                DnsProvider::Exec(program) => exec::present(program, record).await,
                DnsProvider::Rfc2136(server) => rfc2136::add(server, record).await,
                DnsProvider::AcmeDns(account) => acme_dns::update(self.https()?, account, record).await,
                DnsProvider::Cloudflare(api) => cloudflare::add(self.https()?, api, record).await,
                DnsProvider::Persist => Err(DnsError::new(
                    "a record of dns-persist-01 is put there once, by hand",
                    "use challenges of type dns-persist-01 for this name",
                )),
            }
        };
        done.await.map_err(|error| error.at(rule.provider.as_str(), record.text()))
    }

    /// The client of APIs.
    fn https(&self) -> Result<&HttpsClient, DnsError> {
        if let Some(client) = self.https.get() {
            return Ok(client);
        }
        let client = HttpsClient::new(&[]).map_err(|error| {
            let help = error.help().to_owned();
            DnsError::new("the client of DNS providers cannot start", help).because(error)
        })?;
        Ok(self.https.get_or_init(|| client))
    }

    /// Waits until every server of the zone shows a record. A server that is silent to the end does not count
    /// against it, if another one shows the record: a CA cannot get an old answer from it either.
    ///
    /// # Errors
    /// When a server does not show it in time; names all that do not, and what they show.
    pub async fn propagated(&self, rule: &DnsRule, record: &Record) -> Result<(), DnsError> {
        let deadline = Instant::now() + rule.propagation;
        let mut pause = FIRST_PAUSE;
        let mut servers = None;
        loop {
            let found = match servers.take() {
                Some(servers) => Ok(servers),
                None => self.servers(rule, record).await,
            };
            let views = match found {
                Ok(found) => {
                    let views = views(&found, record).await;
                    servers = Some(found);
                    Ok(views)
                }
                Err(error) => Err(error),
            };
            if views.as_ref().is_ok_and(|views| views.iter().all(|view| matches!(view, View::Shows))) {
                return Ok(());
            }
            if Instant::now() + pause < deadline {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            let error = match views {
                Err(error) => no_place(error),
                Ok(views) => match late(&views, rule.propagation) {
                    Some(what) => DnsError::new(what, LATE),
                    None => return Ok(()),
                },
            };
            return Err(error.at(rule.provider.as_str(), record.text()));
        }
    }

    /// Removes a record by its value. One that was never there is no error.
    ///
    /// # Errors
    /// When the provider refuses; the record may stay then.
    pub async fn remove(&self, rule: &DnsRule, record: Record) -> Result<(), DnsError> {
        if !record.tried.load(Ordering::Relaxed) {
            return Ok(());
        }
        let done = async {
            match &rule.provider {
                DnsProvider::Exec(program) => exec::cleanup(program, &record).await,
                DnsProvider::Rfc2136(server) => rfc2136::delete(server, &record).await,
                DnsProvider::Cloudflare(api) => cloudflare::delete(self.https()?, api, &record).await,
                // acme-dns keeps the last two values by itself; persist has put nothing there.
                DnsProvider::AcmeDns(_) | DnsProvider::Persist => Ok(()),
            }
        };
        done.await.map_err(|error| error.at(rule.provider.as_str(), record.text()))
    }

    /// The servers that have to show a record.
    async fn servers(&self, rule: &DnsRule, record: &Record) -> Result<Vec<ZoneServer>, LookupError> {
        if rule.servers.is_empty() {
            return self.resolver.authority(&record.name).await.map(|authority| authority.servers);
        }
        Ok(rule.servers.iter().copied().map(ZoneServer::given).collect())
    }
}

impl Record {
    /// Its name with a final dot, in lower case.
    pub fn fqdn(&self) -> String {
        format!("{}.", self.text())
    }

    /// Its name without a final dot.
    pub fn text(&self) -> String {
        resolver::text(&self.name)
    }

    /// Its value.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Says whether it may be there.
    fn mark(&self, may_be_there: bool) {
        self.tried.store(may_be_there, Ordering::Relaxed);
    }
}

impl DnsError {
    /// What happened, and what to do.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { provider: None, record: None, what: what.into(), help: help.into(), source: None }
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says whose fault it is, and for which record.
    fn at(mut self, provider: &'static str, record: String) -> Self {
        self.provider = Some(provider);
        self.record = Some(record);
        self
    }

    /// What to do.
    pub fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(provider) = self.provider {
            write!(f, "dns provider \"{provider}\": ")?;
        }
        if let Some(record) = &self.record {
            write!(f, "record \"{record}\": ")?;
        }
        f.write_str(&self.what)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error for DnsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// What one server shows.
enum View {
    /// The record.
    Shows,
    /// Something else, in words.
    Other(String),
    /// It does not answer; in words.
    Silent(String),
}

/// For a record that a server does not show.
const LATE: &str = "a longer `propagation` gives slow servers time; a server that never gets the record is no \
                    secondary of the zone any more, or its transfers fail";

/// What all servers show.
async fn views(servers: &[ZoneServer], record: &Record) -> Vec<View> {
    let all = servers.iter().flat_map(|server| server.addresses.iter().map(|address| (*address, server.is_given)));
    let looks = a_few_at_once(all.map(|(address, recurse)| look(address, recurse, record)).collect()).await;
    let mut looks = looks.into_iter();
    let of_one = |server: &ZoneServer| view(server, looks.by_ref().take(server.addresses.len()).collect());
    servers.iter().map(of_one).collect()
}

/// What one server shows, by the word of each of its addresses.
fn view(server: &ZoneServer, looks: Vec<View>) -> View {
    let mut silent = Vec::new();
    let mut shows = false;
    for look in looks {
        match look {
            View::Shows => shows = true,
            View::Other(what) => return View::Other(format!("{} {what}", server.name)),
            View::Silent(why) => silent.push(why),
        }
    }
    // One family may have no route from here: another address of the same server speaks for it.
    match (shows, silent.is_empty()) {
        (true, _) => View::Shows,
        (false, true) => View::Silent(format!("{} has no address", server.name)),
        (false, false) => View::Silent(format!("{} gives no answer ({})", server.name, silent.join(", "))),
    }
}

async fn look(address: SocketAddr, recurse: bool, record: &Record) -> View {
    match resolver::shown(address, &record.name, recurse).await {
        Ok(values) if values.iter().any(|value| **value == *record.value) => View::Shows,
        Ok(values) if values.is_empty() => View::Other("shows no TXT record".into()),
        Ok(values) => View::Other(format!("shows only {}", list(&values))),
        Err(ask::Fault::Code(code)) => View::Other(format!("answers {}", ask::code_name(code))),
        Err(fault) => View::Silent(format!("{address}: {fault}")),
    }
}

/// Who stands in the way at the end; `None` when those who answer all show the record.
fn late(views: &[View], patience: Duration) -> Option<String> {
    let mut others = Vec::new();
    let mut silent = Vec::new();
    let mut is_shown = false;
    for view in views {
        match view {
            View::Shows => is_shown = true,
            View::Other(what) => others.push(what.as_str()),
            View::Silent(why) => silent.push(why.as_str()),
        }
    }
    if others.is_empty() && is_shown {
        let servers = silent.join(", ");
        tracing::warn!(event = "dns_silent", servers, "servers of a zone do not answer; the others show the record");
        return None;
    }
    let who = [others, silent].concat().join("; ");
    Some(format!("not on all servers of the zone after {} s: {who}", patience.as_secs()))
}

/// Values in quotes, shortened: what a stranger wrote must not fill the log.
fn list(values: &[String]) -> String {
    let short = |value: &String| format!("{:?}", value.chars().take(64).collect::<String>());
    let mut text = values.iter().take(4).map(short).collect::<Vec<_>>().join(", ");
    if values.len() > 4 {
        text.push_str(", …");
    }
    text
}

/// True for a name that programs and APIs can take as text: letters, digits, hyphens and underscores. It may come from
/// the DNS of somebody else, and must not look like an option of a program.
fn is_plain(name: &Name) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !name.is_root() && name.iter().all(|label| !label.starts_with(b"-") && label.iter().all(is_plain))
}

/// For a record whose zone or servers cannot be found.
fn no_place(error: LookupError) -> DnsError {
    let help = "the resolver and the zone's servers must be reachable from here: see `resolvers`, and `servers` of \
                the DNS provider";
    DnsError::new("it cannot be told where the record belongs", help).because(error)
}
