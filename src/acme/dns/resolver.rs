//! Questions to the DNS (RFC 1034, RFC 1035): the addresses and CAA records of names from the resolvers of the
//! system or of the file; what a zone says at this moment from the servers of the zone itself.
//!
//! Nothing is cached here, and what is about to be written is never asked of a resolver: it would remember for
//! minutes that the record is not there. `/etc/hosts` and search lists do not count, because no CA sees them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::CAA;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

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

/// One question to one server. Our choice: a server on the other side of the world that has to ask others first.
const DEADLINE: Duration = Duration::from_secs(3);
/// A datagram may be lost: it is sent again after this while.
const RESEND: Duration = Duration::from_secs(1);
/// Resolvers that are tried; more would outlast whoever waits.
const MOST_RESOLVERS: usize = 3;
/// Servers of a zone; the root has 13.
const MOST_SERVERS: usize = 13;
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
        // All at once: one after another would take a second for each label.
        let answers = join_all(climb.iter().map(|name| self.lookup(name, RecordType::CAA))).await;
        for (at, answer) in climb.into_iter().zip(answers) {
            let found = records(&answer?, |data| match data {
                RData::CAA(caa) => Some(caa.clone()),
                _ => None,
            });
            if let Answer::Records(records) = found {
                return Ok(Some(Caa { at, records }));
            }
        }
        Ok(None)
    }

    /// The name at the end of the chain of aliases that begins at `name`, as the zones' own servers have it now.
    /// With it comes who answers for it. `given` are asked in place of the zones' servers, as long as they can tell.
    ///
    /// # Errors
    /// When nobody can tell, or the chain does not end.
    pub async fn end_of_chain(&self, name: &Name, given: &[SocketAddr]) -> Result<(Name, Authority), LookupError> {
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
        match self.authority(name).await {
            Ok(authority) => Ok(authority),
            Err(error) => self.told_by(name, given, true).await.ok_or(error),
        }
    }

    /// The servers of the zone of a name, by the resolver's word for the zone of its parent, and from there by
    /// their own.
    ///
    /// # Errors
    /// When there is no zone, or none of its servers answers.
    pub async fn authority(&self, name: &Name) -> Result<Authority, LookupError> {
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
        let servers = join_all(names.iter().map(|name| async move {
            let (v4, v6) = futures_util::join!(self.addresses(name, Family::V4), self.addresses(name, Family::V6));
            let both = [v4, v6].into_iter().filter_map(Result::ok).flat_map(Answer::into_records);
            let addresses = both.map(|ip| SocketAddr::new(ip, self.port)).collect();
            ZoneServer { name: text(name), addresses, is_given: false }
        }))
        .await;
        if servers.iter().all(|server| server.addresses.is_empty()) {
            return Err(LookupError::new(zone, "NS", "none of its servers has an address"));
        }
        Ok(servers)
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

/// Why one server is of no use for one question.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It does not answer.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Silent,
    /// It cannot be reached, or breaks off.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// It answers with an error.
    #[error("it answers {}", code_name(*.0))]
    Code(ResponseCode),
    /// The question cannot be written.
    #[error("{0}")]
    Unspeakable(#[from] hickory_proto::ProtoError),
    /// What it says is not DNS.
    #[error("its answer cannot be read: {0}")]
    Garbled(#[from] hickory_proto::serialize::binary::DecodeError),
}

/// Asks one server one question. That there is no such name or record is an answer.
///
/// # Errors
/// When there is no answer within 3 s, or one that is an error.
pub async fn ask(server: SocketAddr, name: &Name, kind: RecordType, recurse: bool) -> Result<Message, Fault> {
    let mut query = Message::query();
    query.metadata.recursion_desired = recurse;
    query.add_query(Query::query(name.clone(), kind));
    let exchange = async {
        let bytes = query.to_vec()?;
        let answer = by_udp(server, &bytes, &query).await?;
        // Without EDNS, our choice: what we ask for is small, old servers stumble over it, and what is cut off
        // comes whole over TCP.
        if answer.truncation { Ok(Message::from_vec(&by_tcp(server, &bytes).await?)?) } else { Ok(answer) }
    };
    let answer = timeout(DEADLINE, exchange).await.unwrap_or(Err(Fault::Silent))?;
    match answer.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
        code => Err(Fault::Code(code)),
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

async fn by_udp(server: SocketAddr, bytes: &[u8], query: &Message) -> Result<Message, Fault> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port of its own for each question, chosen by the system: a forger would have to guess it (RFC 5452 9.2).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut room = vec![0; 4096];
    loop {
        socket.send(bytes).await?;
        let again = Instant::now() + RESEND;
        while let Ok(length) = timeout_at(again, socket.recv(&mut room)).await {
            match Message::from_vec(&room[..length?]) {
                Ok(answer) if is_answer(&answer, query) => return Ok(answer),
                // RFC 5452 9.1: not to our question. The true answer may still come.
                _ => {}
            }
        }
    }
}

/// One message there and one back over TCP (RFC 7766).
pub(super) async fn by_tcp(server: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // RFC 7766 8: length and message in one segment.
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// RFC 5452 9.1: the same number and the same question.
fn is_answer(answer: &Message, query: &Message) -> bool {
    answer.id == query.id && answer.message_type == MessageType::Response && answer.queries == query.queries
}

/// The first answer of any server about aliases at a name. All are asked at once: some may be out of reach.
async fn first_answer(servers: &[ZoneServer], name: &Name, recurse: bool) -> Result<Message, LookupError> {
    let all = servers.iter().flat_map(|server| server.addresses.iter().copied());
    let mut asked: FuturesUnordered<_> =
        all.map(|address| async move { (address, ask(address, name, RecordType::CNAME, recurse).await) }).collect();
    let mut faults = Vec::new();
    while let Some((address, answer)) = asked.next().await {
        match answer {
            Ok(message) => return Ok(message),
            Err(fault) => faults.push(format!("{address}: {fault}")),
        }
    }
    Err(LookupError::new(name, "CNAME", faults.join(", ")))
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

/// The mnemonic of a response code, as `dig` prints it (RFC 6895 2.3).
pub fn code_name(code: ResponseCode) -> String {
    match code {
        ResponseCode::Unknown(number) => format!("RCODE{number}"),
        code => format!("{code:?}").to_uppercase(),
    }
}
