//! Questions to the DNS (RFC 1034, RFC 1035): the addresses and CAA records of names from the resolvers of the
//! system or of the file; what a zone says at this moment from the servers of the zone itself.
//!
//! Nothing is cached here, and what is about to be written is never asked of a resolver: it would remember for
//! minutes that the record is not there. `/etc/hosts` and search lists do not count, because no CA sees them.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::CAA;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::acme::dns::ask::{Fault, MOST_RECORDS, ask};
use crate::addr::HostName;

/// Asks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Empty: those of the system, read anew for each question, because networks change.
    servers: Arc<[SocketAddr]>,
    /// Where the servers of zones listen: 53, but in tests.
    port: u16,
}

/// What is known of one type of record of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// These, at least one.
    Records(Vec<T>),
    /// The name exists without such a record.
    NoRecord,
    /// The name does not exist (NXDOMAIN).
    NoName,
}

/// The kind of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// A server of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneServer {
    /// Its name, or its address.
    pub name: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// True for a server that the file names: it may be a resolver, which has to be asked to look further.
    pub is_given: bool,
}

/// Who answers for a name, and what stands there.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The zone; `None` when the servers are given.
    pub zone: Option<Name>,
    /// Its servers.
    pub servers: Vec<ZoneServer>,
    /// The target, when the name is a CNAME.
    pub cname: Option<Name>,
}

/// The CAA records that count for a name (RFC 8659 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caa {
    /// The name at which they stand: the one that was asked for, or the nearest above it that has any.
    pub at: Name,
    /// All of them.
    pub records: Vec<CAA>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up {kind} of \"{name}\": {why}")]
pub struct LookupError {
    name: String,
    kind: String,
    why: String,
}

/// Resolvers that are tried; more would outlast whoever waits.
const MOST_RESOLVERS: usize = 3;
/// Servers of a zone; the root has 13.
const MOST_SERVERS: usize = 13;
/// Addresses of one server: two of each family, as the root's servers have one of each.
const MOST_ADDRESSES: usize = 4;
/// Questions about one zone at once. Our choice: a quarter of all sockets, so that a zone whose servers are silent
/// does not hold up the others.
const AT_ONCE: usize = 4;
/// For finding out where a name belongs. Our choice: a chain of aliases over slow servers; without an end, a stranger
/// could lead us around for hours.
const SEARCH: Duration = Duration::from_secs(60);
/// A chain of aliases that is longer than this one is a loop (BIND and Unbound give up at 11 to 16).
const LONGEST_CHAIN: usize = 10;
/// Delegations below the zone of the parent name; one is usual, for a name that is given to another server.
const MOST_REFERRALS: usize = 4;

impl Resolver {
    /// Asks these, or those of the system when there are none.
    pub fn new(resolvers: &[SocketAddr]) -> Self {
        Self { servers: resolvers.into(), port: 53 }
    }

    /// As `new`, with servers of zones that listen elsewhere.
    #[cfg(test)]
    pub(crate) fn for_test(resolver: SocketAddr) -> Self {
        Self { servers: [resolver].into(), port: resolver.port() }
    }

    /// The addresses of one family.
    ///
    /// # Errors
    /// When no resolver answers.
    pub async fn addresses(&self, name: &Name, family: Family) -> Result<Answer<IpAddr>, LookupError> {
        let message = self.lookup(name, family.record_type()).await?;
        Ok(records(&message, |data| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        }))
    }

    /// The CAA records that count for a name: its own, else those of the nearest name above it (RFC 8659 3).
    ///
    /// # Errors
    /// When a name that decides cannot be looked up. A CA refuses then, too.
    pub async fn caa(&self, name: &Name) -> Result<Option<Caa>, LookupError> {
        let mut climb = Vec::new();
        let mut next = name.clone();
        while !next.is_root() {
            climb.push(next.clone());
            next = next.base_name();
        }
        // Some at once: one after another would take a second for each label.
        let answers = a_few_at_once(climb.iter().map(|name| self.lookup(name, RecordType::CAA)).collect()).await;
        for (at, answer) in climb.into_iter().zip(answers) {
            let found = records(&answer?, |data| match data {
                RData::CAA(caa) => Some(caa.clone()),
                _ => None,
            });
            if let Answer::Records(records) = found {
                // What was left out might be the one that allows us, or forbids.
                if records.len() >= MOST_RECORDS {
                    let why = format!("it has more than {} records", MOST_RECORDS - 1);
                    return Err(LookupError::new(&at, RecordType::CAA, why));
                }
                return Ok(Some(Caa { at, records }));
            }
        }
        Ok(None)
    }

    /// The name at the end of the chain of aliases that begins at `name`, as the zones' own servers have it now.
    /// With it comes who answers for it. `given` are asked in place of the zones' servers, as long as they can tell.
    ///
    /// # Errors
    /// When nobody can tell, the chain does not end, or it takes longer than a minute.
    pub async fn end_of_chain(&self, name: &Name, given: &[SocketAddr]) -> Result<(Name, Authority), LookupError> {
        in_time(name, self.follow(name, given)).await
    }

    async fn follow(&self, name: &Name, given: &[SocketAddr]) -> Result<(Name, Authority), LookupError> {
        let mut current = name.clone();
        for _ in 0..LONGEST_CHAIN {
            let authority = self.holder(&current, given).await?;
            match &authority.cname {
                Some(target) => current = target.clone(),
                None => return Ok((current, authority)),
            }
        }
        Err(LookupError::new(name, "CNAME", format!("the chain of aliases is longer than {LONGEST_CHAIN}")))
    }

    /// Who answers for a name: the given servers if they know it, else those of its zone; at last the given ones
    /// once more, with recursion, for a machine that reaches nobody but a resolver.
    async fn holder(&self, name: &Name, given: &[SocketAddr]) -> Result<Authority, LookupError> {
        if let Some(authority) = self.told_by(name, given, false).await {
            return Ok(authority);
        }
        match self.delegated(name).await {
            Ok(authority) => Ok(authority),
            Err(error) => self.told_by(name, given, true).await.ok_or(error),
        }
    }

    /// The servers of the zone of a name, by the resolver's word for the zone of its parent, and from there by
    /// their own.
    ///
    /// # Errors
    /// When there is no zone, none of its servers answers, or it takes longer than a minute.
    pub async fn authority(&self, name: &Name) -> Result<Authority, LookupError> {
        in_time(name, self.delegated(name)).await
    }

    async fn delegated(&self, name: &Name) -> Result<Authority, LookupError> {
        let mut zone = self.zone_of(&name.base_name()).await?;
        let mut servers = self.servers_of(&zone).await?;
        for _ in 0..MOST_REFERRALS {
            let message = first_answer(&servers, name, false).await?;
            let referral = message.authorities.iter().find(|record| {
                record.record_type() == RecordType::NS && zone.zone_of(&record.name) && record.name != zone
            });
            match referral.filter(|record| record.name.zone_of(name)) {
                Some(cut) if message.answers.is_empty() => {
                    zone = cut.name.clone();
                    let names = message.authorities.iter().filter(|record| record.name == zone);
                    servers = self.located(names.filter_map(|record| as_ns(&record.data)).collect(), &zone).await?;
                }
                _ => {
                    let cname = alias(&message, name);
                    return Ok(Authority { zone: Some(zone), servers, cname });
                }
            }
        }
        Err(LookupError::new(name, "NS", "its zone is delegated over and over"))
    }

    /// What the given servers know of a name, if any of them knows. Without recursion at first even for resolvers:
    /// they would remember that the name is not there yet.
    async fn told_by(&self, name: &Name, given: &[SocketAddr], recurse: bool) -> Option<Authority> {
        let servers: Vec<ZoneServer> = given.iter().copied().map(ZoneServer::given).collect();
        let message = first_answer(&servers, name, recurse).await.ok()?;
        let cname = alias(&message, name);
        let is_referral = message.authorities.iter().any(|record| record.record_type() == RecordType::NS);
        let knows = cname.is_some() || message.authoritative || !is_referral;
        knows.then_some(Authority { zone: None, servers, cname })
    }

    /// The zone that holds a name: the nearest name at or above it that has an SOA record.
    async fn zone_of(&self, name: &Name) -> Result<Name, LookupError> {
        let mut current = name.clone();
        while !current.is_root() {
            let message = self.lookup(&current, RecordType::SOA).await?;
            // The zone of an alias is above it: what else the answer says is of the target's zone.
            if alias(&message, &current).is_none() {
                let all = message.answers.iter().chain(&message.authorities);
                let soa = all.filter(|record| record.record_type() == RecordType::SOA);
                if let Some(zone) = soa.map(|record| &record.name).find(|zone| zone.zone_of(&current)) {
                    return Ok(zone.clone());
                }
            }
            current = current.base_name();
        }
        Err(LookupError::new(name, "SOA", "no name above it is a zone"))
    }

    /// The servers of a zone by the resolver's word.
    async fn servers_of(&self, zone: &Name) -> Result<Vec<ZoneServer>, LookupError> {
        let message = self.lookup(zone, RecordType::NS).await?;
        self.located(message.answers.iter().filter_map(|record| as_ns(&record.data)).collect(), zone).await
    }

    /// The addresses of servers.
    async fn located(&self, mut names: Vec<Name>, zone: &Name) -> Result<Vec<ZoneServer>, LookupError> {
        names.truncate(MOST_SERVERS);
        let both = names.iter().flat_map(|name| [(name, Family::V4), (name, Family::V6)]);
        let found = a_few_at_once(both.map(|(name, family)| self.addresses(name, family)).collect()).await;
        let mut found = found.into_iter().map(|answer| answer.map(Answer::into_records).unwrap_or_default());
        let mut servers = Vec::new();
        for name in &names {
            let (v4, v6) = (found.next().unwrap_or_default(), found.next().unwrap_or_default());
            servers.push(ZoneServer { name: text(name), addresses: self.some_of(&v4, &v6), is_given: false });
        }
        if servers.iter().all(|server| server.addresses.is_empty()) {
            return Err(LookupError::new(zone, "NS", "none of its servers has an address"));
        }
        Ok(servers)
    }

    /// A few addresses of a server, of both families in turn.
    fn some_of(&self, v4: &[IpAddr], v6: &[IpAddr]) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for at in 0..v4.len().max(v6.len()) {
            for ip in [v4.get(at), v6.get(at)].into_iter().flatten().filter(|ip| is_usable(**ip)) {
                let address = SocketAddr::new(ip.to_canonical(), self.port);
                if addresses.len() < MOST_ADDRESSES && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses
    }

    /// Asks the resolvers, one after another until one answers.
    async fn lookup(&self, name: &Name, kind: RecordType) -> Result<Message, LookupError> {
        let mut faults = Vec::new();
        for server in self.resolvers().map_err(|why| LookupError::new(name, kind, why))? {
            match ask(server, name, kind, true).await {
                Ok(message) => return Ok(message),
                Err(fault) => faults.push(format!("{server}: {fault}")),
            }
        }
        Err(LookupError::new(name, kind, faults.join(", ")))
    }

    fn resolvers(&self) -> Result<Vec<SocketAddr>, String> {
        if !self.servers.is_empty() {
            return Ok(self.servers.iter().copied().take(MOST_RESOLVERS).collect());
        }
        let (config, _) = hickory_resolver::system_conf::read_system_conf()
            .map_err(|error| format!("this system names no resolver: {error}"))?;
        let mut servers = Vec::new();
        for server in &config.name_servers {
            let port = server.connections.first().map_or(53, |connection| connection.port);
            let address = SocketAddr::new(server.ip, port);
            if !servers.contains(&address) {
                servers.push(address);
            }
        }
        servers.truncate(MOST_RESOLVERS);
        Ok(servers)
    }
}

impl<T> Answer<T> {
    /// The records; none in the other cases.
    pub fn into_records(self) -> Vec<T> {
        match self {
            Self::Records(records) => records,
            Self::NoRecord | Self::NoName => Vec::new(),
        }
    }
}

impl Family {
    /// How people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The record that has it.
    pub fn record_type(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

impl ZoneServer {
    /// A server that the file names.
    pub fn given(address: SocketAddr) -> Self {
        Self { name: address.to_string(), addresses: vec![address], is_given: true }
    }
}

impl LookupError {
    fn new(name: &Name, kind: impl fmt::Display, why: impl Into<String>) -> Self {
        Self { name: text(name), kind: kind.to_string(), why: why.into() }
    }

    /// For a name whose TXT records no server tells.
    pub(super) fn silent(name: &Name) -> Self {
        Self::new(name, RecordType::TXT, "none of its servers answers")
    }
}

/// The TXT values that a server shows for a name; an alias is not followed.
///
/// # Errors
/// When it does not answer.
pub async fn shown(server: SocketAddr, name: &Name, recurse: bool) -> Result<Vec<String>, Fault> {
    let message = ask(server, name, RecordType::TXT, recurse).await?;
    Ok(records(&message, |data| match data {
        // RFC 8555 8.4 and RFC 7208 3.3: the strings of one record are one text.
        RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
        _ => None,
    })
    .into_records())
}

/// The first answer of any server about aliases at a name. Some are asked at once: some may be out of reach. The first
/// address of each comes first, for the same reason.
async fn first_answer(servers: &[ZoneServer], name: &Name, recurse: bool) -> Result<Message, LookupError> {
    let most = servers.iter().map(|server| server.addresses.len()).max().unwrap_or(0);
    let all = (0..most).flat_map(|at| servers.iter().filter_map(move |server| server.addresses.get(at).copied()));
    let turns = &Semaphore::new(AT_ONCE);
    let mut asked: FuturesUnordered<_> = all
        .map(|address| async move {
            let _turn = turns.acquire().await;
            (address, ask(address, name, RecordType::CNAME, recurse).await)
        })
        .collect();
    let mut faults = Vec::new();
    while let Some((address, answer)) = asked.next().await {
        match answer {
            Ok(message) => return Ok(message),
            Err(fault) => faults.push(format!("{address}: {fault}")),
        }
    }
    Err(LookupError::new(name, "CNAME", faults.join(", ")))
}

/// Does all of it, not all at once; the outcomes come in the order of the tasks.
pub(super) async fn a_few_at_once<F: Future>(all: Vec<F>) -> Vec<F::Output> {
    let turns = Semaphore::new(AT_ONCE);
    join_all(all.into_iter().map(|task| async {
        let _turn = turns.acquire().await;
        task.await
    }))
    .await
}

/// A search, as long as it may take.
async fn in_time<T>(name: &Name, search: impl Future<Output = Result<T, LookupError>>) -> Result<T, LookupError> {
    let late = || LookupError::new(name, "CNAME", format!("it takes longer than {} s", SEARCH.as_secs()));
    timeout(SEARCH, search).await.unwrap_or_else(|_| Err(late()))
}

/// False for an address that leads to no other machine: unspecified, multicast, broadcast. To connect to an unspecified
/// one is to connect to oneself.
pub fn is_usable(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
    }
}

/// The records of a message whose data `pick` takes. Aliases before them were followed by whoever answered.
fn records<T>(message: &Message, pick: impl FnMut(&RData) -> Option<T>) -> Answer<T> {
    let found: Vec<T> = message.answers.iter().map(|record| &record.data).filter_map(pick).collect();
    match message.response_code {
        _ if !found.is_empty() => Answer::Records(found),
        ResponseCode::NXDomain => Answer::NoName,
        _ => Answer::NoRecord,
    }
}

/// The target, when a message says that a name is an alias.
fn alias(message: &Message, name: &Name) -> Option<Name> {
    message.answers.iter().filter(|record| record.name == *name).find_map(|record| match &record.data {
        RData::CNAME(cname) => Some(cname.0.clone()),
        _ => None,
    })
}

fn as_ns(data: &RData) -> Option<Name> {
    match data {
        RData::NS(ns) => Some(ns.0.clone()),
        _ => None,
    }
}

/// A host name below some labels, for questions.
///
/// # Errors
/// When it gets longer than 255 octets.
pub fn below(labels: &str, host: &HostName) -> Result<Name, LookupError> {
    let text = if labels.is_empty() { format!("{host}.") } else { format!("{labels}.{host}.") };
    Name::from_ascii(&text).map_err(|error| LookupError { name: text, kind: "records".into(), why: error.to_string() })
}

/// A name as operators write it: lower case, no final dot.
pub fn text(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').filter(|rest| !rest.is_empty()).map(str::to_owned).unwrap_or(text)
}
