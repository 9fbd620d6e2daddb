//! What the tests of DNS share: a server on loopback that is a resolver and the server of its zones at once, and
//! an HTTP server that plays an API.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CAA, CNAME, NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigResponseContext, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::addr::HostName;
use crate::site::acme::{DnsProvider, DnsRule, Secret};

/// A name with a final dot.
pub(crate) fn name(text: &str) -> Name {
    // By its labels: what is on the wire need not be text that could be read as a name.
    Name::from_labels(text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).expect("a name")
}

/// A host name.
pub(crate) fn host(text: &str) -> HostName {
    HostName::parse(text).expect("a name")
}

/// A rule of `example.test`.
pub(crate) fn rule(provider: DnsProvider, servers: &[SocketAddr], propagation: Duration) -> DnsRule {
    DnsRule { zones: vec![host("example.test")], provider, servers: servers.to_vec(), propagation }
}

pub(crate) fn secret(text: &str) -> Secret {
    Secret(text.as_bytes().into())
}

/// A record that may be there.
pub(crate) fn record(at: &str, value: &str) -> super::Record {
    let (tried, handle) = (AtomicBool::new(true), OnceLock::new());
    super::Record { start: name(at), name: name(at), value: value.into(), tried, handle }
}

/// Puts a record up, as an order does.
pub(crate) async fn present(
    dns: &super::Dns,
    rule: &DnsRule,
    name: &str,
    value: &str,
) -> Result<super::Record, super::DnsError> {
    let record = dns.locate(rule, &host(name), value).await?;
    dns.put(rule, &record).await.map(|()| record)
}

/// For a record to be everywhere. A bound of failure.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A server; it ends with this value.
pub(crate) struct FakeDns {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

/// What it knows and how it behaves.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) zones: Vec<Name>,
    pub(crate) records: Vec<Record>,
    /// Names below which another server is said to answer, when recursion is not desired.
    pub(crate) cuts: Vec<Name>,
    /// Names that it fails for.
    pub(crate) broken: Vec<(Name, ResponseCode)>,
    /// Names that it says nothing about.
    pub(crate) silent: Vec<Name>,
    /// A record that it shows after it was asked for TXT so many times.
    pub(crate) late: Option<(usize, Record)>,
    /// The key of updates.
    pub(crate) key: Option<TSigner>,
    /// Answers are signed with this one instead, or not at all.
    pub(crate) signs_with: Option<Option<TSigner>>,
    /// All questions: name, type, whether recursion was desired, whether it came over TCP.
    pub(crate) asked: Vec<(Name, RecordType, bool, bool)>,
}

impl FakeDns {
    /// Starts one on a port of its own, for UDP and TCP.
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            // The same number may be taken for UDP.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let address = tcp.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&state)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    /// What it knows, to be changed.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a zone that it serves itself.
    pub(crate) fn zone(&self, zone: &str) -> &Self {
        let (apex, server) = (name(zone), name(&format!("ns1.{zone}")));
        self.state().zones.push(apex.clone());
        let soa = SOA::new(server.clone(), name("hostmaster.example.test"), 1, 3600, 600, 86400, 60);
        self.add(zone, RData::SOA(soa)).add(zone, RData::NS(NS(server)));
        self.add(&format!("ns1.{zone}"), RData::A(A(Ipv4Addr::LOCALHOST)))
    }

    pub(crate) fn add(&self, at: &str, data: RData) -> &Self {
        self.state().records.push(Record::from_rdata(name(at), 60, data));
        self
    }

    pub(crate) fn ip(&self, at: &str, ip: &str) -> &Self {
        match ip.parse().expect("an address") {
            std::net::IpAddr::V4(ip) => self.add(at, RData::A(A(ip))),
            std::net::IpAddr::V6(ip) => self.add(at, RData::AAAA(AAAA(ip))),
        }
    }

    pub(crate) fn cname(&self, at: &str, target: &str) -> &Self {
        self.add(at, RData::CNAME(CNAME(name(target))))
    }

    pub(crate) fn txt(&self, at: &str, value: &str) -> &Self {
        self.add(at, txt(value))
    }

    pub(crate) fn caa(&self, at: &str, tag: &str, value: &str) -> &Self {
        let mut caa = CAA::new_issue(false, None, Vec::new());
        caa.tag = tag.into();
        caa.value = value.into();
        self.add(at, RData::CAA(caa))
    }

    /// The TXT values at a name, sorted.
    pub(crate) fn values(&self, at: &str) -> Vec<String> {
        let at = name(at);
        let state = self.state();
        let mut values: Vec<String> = state
            .records
            .iter()
            .filter(|record| record.name == at)
            .filter_map(|record| match &record.data {
                RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
                _ => None,
            })
            .collect();
        values.sort();
        values
    }
}

/// TXT data of one string.
pub(crate) fn txt(value: &str) -> RData {
    RData::TXT(TXT::new(vec![value.to_owned()]))
}

async fn serve_udp(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut room = vec![0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut room).await {
        if let Some(mut answer) = reply(&state, &room[..length], false) {
            if answer.len() > 512 {
                // RFC 1035 4.2.1: cut, and said so.
                let mut message = Message::from_vec(&answer).expect("our own").truncate();
                message.metadata.truncation = true;
                answer = message.to_vec().expect("our own");
            }
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut bytes = vec![0; stream.read_u16().await.unwrap_or_default().into()];
        if stream.read_exact(&mut bytes).await.is_ok()
            && let Some(answer) = reply(&state, &bytes, true)
        {
            let length = u16::try_from(answer.len()).expect("short").to_be_bytes();
            let _ = stream.write_all(&[&length, &*answer].concat()).await;
        }
    }
}

fn reply(state: &Mutex<State>, bytes: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let request = Message::from_vec(bytes).expect("a message");
    let query = request.queries.first().expect("a question").clone();
    state.asked.push((query.name().clone(), query.query_type(), request.recursion_desired, is_tcp));
    if state.silent.contains(query.name()) {
        return None;
    }
    let mut answer = Message::new(request.id, MessageType::Response, request.op_code);
    answer.add_query(query.clone());
    let Some(key) = state.key.clone().filter(|_| request.signature.is_some()) else {
        state.answer(&request, &mut answer);
        return Some(answer.to_vec().expect("an answer"));
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let sent_with = request.signature().expect("just seen").name.clone();
    let context = match key.verify_message_byte(bytes, None, true) {
        Ok((mac, ..)) => {
            state.answer(&request, &mut answer);
            match &state.signs_with {
                None => TSigResponseContext::new(request.id, now, key, mac, None),
                Some(Some(other)) => TSigResponseContext::new(request.id, now, other.clone(), mac, None),
                Some(None) => return Some(answer.to_vec().expect("an answer")),
            }
        }
        // RFC 8945 5.2.1 and 5.2.2.
        Err(_) => {
            answer.metadata.response_code = ResponseCode::NotAuth;
            if sent_with == *key.signer_name() {
                TSigResponseContext::bad_signature(request.id, now, key)
            } else {
                TSigResponseContext::unknown_key(request.id, now, sent_with)
            }
        }
    };
    let unsigned = answer.to_vec().expect("an answer");
    answer.set_signature(context.sign(&unsigned).expect("a signature"));
    Some(answer.to_vec().expect("an answer"))
}

impl State {
    fn answer(&mut self, request: &Message, answer: &mut Message) {
        let query = request.queries.first().expect("a question");
        let Some(zone) = self.zone_of(query.name()) else {
            answer.metadata.response_code = ResponseCode::Refused;
            return;
        };
        if let Some((_, code)) = self.broken.iter().find(|(name, _)| name == query.name()) {
            answer.metadata.response_code = *code;
        } else if request.op_code == OpCode::Update {
            self.update(request);
        } else {
            self.look_up(request, answer, &zone);
        }
    }

    fn zone_of(&self, name: &Name) -> Option<Name> {
        self.zones.iter().filter(|zone| zone.zone_of(name)).max_by_key(|zone| zone.num_labels()).cloned()
    }

    fn update(&mut self, request: &Message) {
        for change in &request.authorities {
            let is_same = |record: &Record| record.name == change.name && record.data == change.data;
            match change.dns_class {
                DNSClass::IN if !self.records.iter().any(is_same) => self.records.push(change.clone()),
                DNSClass::NONE => self.records.retain(|record| !is_same(record)),
                _ => {}
            }
        }
    }

    fn look_up(&mut self, request: &Message, answer: &mut Message, zone: &Name) {
        let query = request.queries.first().expect("a question");
        let kind = query.query_type();
        if kind == RecordType::TXT
            && let Some((left, record)) = self.late.take()
        {
            match left {
                0 => self.records.push(record),
                _ => self.late = Some((left - 1, record)),
            }
        }
        let cut = self.cuts.iter().find(|cut| cut.zone_of(query.name()) && !request.recursion_desired);
        if let Some(cut) = cut {
            let is_ns = |record: &&Record| record.name == *cut && record.record_type() == RecordType::NS;
            answer.add_authorities(self.records.iter().filter(is_ns).cloned());
            return;
        }
        answer.metadata.authoritative = true;
        let mut at = query.name().clone();
        // An alias is followed as far as it is known here.
        for _ in 0..20 {
            let of = |kind: RecordType| -> Vec<Record> {
                self.records.iter().filter(|r| r.name == at && r.record_type() == kind).cloned().collect()
            };
            let found = of(kind);
            match of(RecordType::CNAME).pop() {
                Some(alias) if found.is_empty() => {
                    let RData::CNAME(target) = &alias.data else { return };
                    at = target.0.clone();
                    answer.add_answer(alias);
                }
                _ => {
                    answer.add_answers(found);
                    break;
                }
            }
        }
        if !self.records.iter().any(|record| at.zone_of(&record.name)) {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        if answer.answers.is_empty() {
            let is_soa = |record: &&Record| record.name == *zone && record.record_type() == RecordType::SOA;
            answer.add_authorities(self.records.iter().filter(is_soa).cloned());
        }
    }
}

/// A request to an API: method and target, headers as they came, body.
pub(crate) struct Call {
    pub(crate) line: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// An HTTP server that answers with a status and a body, and keeps all calls.
pub(crate) struct FakeApi {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    _tasks: JoinSet<()>,
}

impl FakeApi {
    pub(crate) async fn start(answer: impl Fn(&Call) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let calls = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&calls);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Some((mut stream, call)) = receive(stream).await {
                    let (status, body) = answer(&call);
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(call);
                    let head = format!(
                        "HTTP/1.1 {status} X\r\nserver: fake\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all((head + &body).as_bytes()).await;
                }
            }
        });
        Self { url: format!("http://{address}"), address, calls, _tasks: tasks }
    }

    /// The request lines so far, without the version.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.calls().iter().map(|call| call.line.clone()).collect()
    }

    pub(crate) fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn receive(mut stream: TcpStream) -> Option<(TcpStream, Call)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let whole = end + length.unwrap_or(0_usize);
    while bytes.len() < whole {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let line = head.lines().next()?.trim_end_matches(" HTTP/1.1").to_owned();
    let body = String::from_utf8_lossy(&bytes[end..whole]).into_owned();
    Some((stream, Call { line, head, body }))
}
