//! One exchange: what is known of a request, and its one record.
//!
//! The record is written when the exchange is dropped: after the last byte of the response, or
//! when the client went away before. So no path can forget it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{
    ACCEPT, HOST, ORIGIN, REFERER, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, SET_COOKIE, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, request};

use super::auth::Admission;
use super::reply::{self, Reply, ReplyBody};
use super::{Carrier, Connection, Parts, target};
use crate::access_log::{Amounts, HookRecord, RequestRecord, Responder, Timings, TlsRecord};
use crate::addr::ClientAddr;
use crate::body::{BodyError, Meter};
use crate::drain::{Guard, Work};
use crate::forward::Answer;
use crate::metrics::Ended;
use crate::policy::count::Hold;
use crate::policy::headers::{self, Values};
use crate::policy::trust;
use crate::refusal::{self, Asker, Refusal};
use crate::site::access::Guest;
use crate::site::limit::LockoutRule;
use crate::site::route::Route;
use crate::site::{Site, SiteTable};
use crate::snapshot::Generation;

/// One request on its way.
pub struct Exchange {
    /// The worker's parts.
    pub parts: Rc<Parts>,
    /// The connection it came on.
    pub connection: Rc<Connection>,
    /// The protocol that carries it.
    pub carrier: Rc<dyn Carrier>,
    /// The configuration that it began with.
    pub generation: Arc<Generation>,
    /// The request ID.
    pub id: HeaderValue,
    /// The site, once found.
    pub site: Option<Arc<Site>>,
    /// The route, once found.
    pub route: Option<Arc<Route>>,
    /// Who asks; the peer until the hops have been judged.
    pub client: Option<ClientAddr>,
    /// Whether it shows a credential that could be a guess. Known where the route has a rule on failed logins.
    pub may_guess: bool,
    /// Its place among the tunnels that are counted, until the tunnel takes it over.
    pub tunnel_place: Option<Hold>,
    /// What is known of who asks, where the edge has found it out.
    pub admission: Option<Box<Admission>>,
    /// The request body's meter, if it has a body.
    pub request_meter: Option<Rc<Meter>>,
    /// What only the record needs.
    pub notes: Notes,
    _guard: Guard,
}

/// What only the record needs.
#[derive(Debug)]
pub struct Notes {
    /// Looked at only for a record or a metric, as the other times here.
    begun: Option<Instant>,
    /// The method, as sent.
    pub method: Method,
    /// The target, as sent.
    pub uri: Uri,
    /// `Host` or `:authority`.
    pub host: Option<HeaderValue>,
    /// `User-Agent`.
    pub agent: Option<HeaderValue>,
    /// `Origin`.
    pub origin: Option<HeaderValue>,
    /// The endpoint that answered, and our port.
    pub endpoint: Option<(Arc<str>, Option<u16>)>,
    /// `Accept`, for an answer of ours.
    accept: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    /// The forwarded chain as a trusted hop sent it.
    chain: Option<String>,
    hops: u32,
    proto: Option<trust::Scheme>,
    is_peer_trusted: bool,
    head_time: Duration,
    sent: Option<Instant>,
    held: Option<Duration>,
    upstream_time: Option<Duration>,
    status: Option<StatusCode>,
    refusal: Option<Refusal>,
    is_by_endpoint: bool,
    /// The way of `[auth]` whose service gave the answer.
    answered_by: Option<Arc<str>>,
    /// What decision services said.
    pub hooks: Vec<HookRecord>,
    is_upgrade: bool,
    /// Which WebSocket headers came: a proxy before us may have taken some.
    websocket: Vec<&'static str>,
    bytes_out: u64,
    end: End,
}

/// How the response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is under way; dropped so, the client went away.
    Open,
    Complete,
    Aborted(&'static str),
}

impl Exchange {
    /// Begins with a head.
    pub fn begin(
        parts: Rc<Parts>,
        connection: Rc<Connection>,
        carrier: Rc<dyn Carrier>,
        head: &request::Parts,
    ) -> Box<Self> {
        let generation = parts.snapshot.keep();
        let is_peer_trusted = generation.table.edge.trust.proxies.has_peer(connection.peer);
        carrier.begun();
        let fields = &head.headers;
        // What only a record needs is kept only for one.
        let is_on = parts.log.is_on();
        let keep = |name| fields.get(name).filter(|_| is_on).cloned();
        let authority = || head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let notes = Notes {
            begun: (is_on || parts.metrics.is_timed()).then(Instant::now),
            method: head.method.clone(),
            uri: head.uri.clone(),
            host: fields.get(HOST).cloned().or_else(authority),
            agent: keep(USER_AGENT),
            origin: keep(ORIGIN),
            endpoint: None,
            accept: fields.get(ACCEPT).cloned(),
            referer: keep(REFERER),
            chain: (is_on && is_peer_trusted).then(|| trust::chain_text(fields)).flatten(),
            hops: 0,
            proto: None,
            is_peer_trusted,
            head_time: carrier.head_time(),
            sent: None,
            held: None,
            upstream_time: None,
            status: None,
            refusal: None,
            is_by_endpoint: false,
            answered_by: None,
            hooks: Vec::new(),
            is_upgrade: false,
            websocket: websocket_headers(fields),
            bytes_out: 0,
            end: End::Open,
        };
        // Boxed from the start: it goes from hand to hand until the response body is dropped.
        Box::new(Self {
            id: headers::request_id(fields, is_peer_trusted),
            _guard: parts.drain.guard(Work::Request),
            client: connection.peer.ip().map(ClientAddr::new),
            parts,
            connection,
            carrier,
            generation,
            site: None,
            route: None,
            may_guess: false,
            tunnel_place: None,
            admission: None,
            request_meter: None,
            notes,
        })
    }

    /// Finds out who asks.
    pub fn resolve_client(&mut self, table: &SiteTable, fields: &HeaderMap) {
        let resolved = trust::resolve(&table.edge.trust, self.connection.peer, fields);
        self.client = resolved.as_ref().map(|client| client.addr);
        if let Some(client) = resolved {
            self.notes.hops = client.hops;
            self.notes.proto = client.proto;
        }
    }

    /// Who asks, for the rules on who may enter.
    pub fn guest(&self) -> Guest {
        match self.client {
            Some(client) => Guest::Client(client),
            // A peer without an address: a unix socket, and behind a hop that could be anybody.
            None if self.notes.is_peer_trusted => Guest::Unknown,
            None => Guest::Local,
        }
    }

    /// The rule on failed logins, where the route has one.
    pub fn lockout(&self) -> Option<&Arc<LockoutRule>> {
        self.route.as_ref()?.limiters.as_ref()?.failed_auth.as_ref()
    }

    /// The client has failed to log in: upstream, or here.
    pub fn auth_failed(&self) {
        if let Some(rule) = self.lockout().filter(|_| self.may_guess) {
            self.parts.limits.failed(rule, self.guest());
        }
    }

    /// Whether the peer is a hop whose word is taken.
    pub fn is_peer_trusted(&self) -> bool {
        self.notes.is_peer_trusted
    }

    /// `https` or `http`, as the client sees it.
    pub fn scheme(&self) -> &'static str {
        match self.notes.proto {
            Some(trust::Scheme::Https) => "https",
            Some(trust::Scheme::Http) => "http",
            None if self.connection.tls.is_some() => "https",
            None => "http",
        }
    }

    /// The port that is meant when `Host` names none.
    pub fn default_port(&self) -> u16 {
        if self.scheme() == "https" { 443 } else { 80 }
    }

    /// What placeholders stand for.
    pub fn values(&self) -> Values<'_> {
        Values {
            client: self.client,
            host: self.notes.host.as_ref().unwrap_or(&NO_HOST),
            request_id: &self.id,
            tls_version: self.connection.tls.as_ref().map_or("", |tls| tls.version),
            tls_cipher: self.connection.tls.as_ref().map_or("", |tls| tls.cipher),
            uri: target(&self.notes.uri),
        }
    }

    /// Writes the subject of the client's certificate where the site wants it.
    pub fn write_client_certificate(&self, fields: &mut HeaderMap) {
        let Some(tls) = &self.connection.tls else { return };
        let Some(name) = tls.policy.client_cert.as_ref().and_then(|policy| policy.header.as_ref()) else { return };
        fields.remove(name);
        // A certificate may have an empty subject; that is no identity.
        let subject = tls.client_subject.as_deref().filter(|subject| !subject.is_empty());
        if let Some(value) = subject.and_then(|subject| HeaderValue::from_str(subject).ok()) {
            fields.insert(name, value);
        }
    }

    /// The request goes upstream now.
    pub fn sent_upstream(&mut self) {
        self.notes.sent = self.notes.begun.map(|_| Instant::now());
    }

    /// The endpoint has answered.
    pub fn answered(&mut self, answer: &Answer) {
        self.notes.held = answer.held;
        let waited = self.notes.sent.map(|sent| sent.elapsed());
        self.notes.upstream_time = waited.map(|waited| waited.saturating_sub(answer.held.unwrap_or_default()));
        self.notes.endpoint = Some((Arc::clone(&answer.endpoint.label), answer.via_port));
    }

    /// The request's upgrade was granted.
    pub fn upgraded(&mut self) {
        self.notes.is_upgrade = true;
        self.notes.is_by_endpoint = true;
    }

    /// A service of `[auth]` gives the answer.
    pub fn answered_by_auth(&mut self, name: Arc<str>) {
        self.notes.answered_by = Some(name);
    }

    /// The response to a refused request.
    pub fn refuse(mut self: Box<Self>, refusal: Refusal) -> Response<ReplyBody> {
        let is_near = self.client.is_some_and(ClientAddr::is_near);
        let version = self.carrier.version();
        let asker = Asker { accept: self.notes.accept.as_ref(), version, request_id: &self.id, is_near };
        let mut response = refusal::respond(&refusal, &asker);
        if let Some(route) = self.route.as_ref().filter(|_| !refusal.hides_route()) {
            reply::replace_page(&mut response, route);
        }
        self.notes.refusal = Some(refusal);
        self.finish(Reply::own(response))
    }

    /// Writes what every response carries, and follows its body to the end.
    pub fn finish(mut self: Box<Self>, reply: Reply) -> Response<ReplyBody> {
        let Reply { mut response, clue } = reply;
        let hides_route = self.notes.refusal.as_ref().is_some_and(Refusal::hides_route);
        if let Some(route) = self.route.as_ref().filter(|_| !hides_route) {
            reply::write_policy(response.headers_mut(), route, &self);
        }
        self.notes.is_by_endpoint |= response.body().is_from_endpoint();
        if !self.notes.is_by_endpoint {
            let ours = || HeaderValue::from_static("tidegate");
            response.headers_mut().entry(refusal::PROXY_STATUS).or_insert_with(ours);
        }
        if let Some(admission) = &self.admission {
            for cookie in &admission.cookies {
                response.headers_mut().append(SET_COOKIE, cookie.clone());
            }
        }
        response.headers_mut().entry(refusal::X_REQUEST_ID).or_insert_with(|| self.id.clone());
        self.notes.status = Some(response.status());
        response.map(|source| ReplyBody::new(source, self, clue))
    }

    /// Bytes of the response body have passed.
    pub fn passed(&mut self, bytes: usize) {
        self.notes.bytes_out += bytes as u64;
    }

    /// The response body has ended as it should.
    pub fn completed(&mut self) {
        self.notes.end = End::Complete;
    }

    /// The response body broke off.
    pub fn aborted(&mut self, error: &BodyError) {
        self.notes.end = End::Aborted(match error {
            BodyError::Stalled | BodyError::TooSlow => "idle",
            BodyError::TooLarge | BodyError::Broken(_) | BodyError::Storage(_) => "upstream",
        });
    }

    /// The request body broke off although its framing was sound: there is nobody to read our answer.
    fn has_client_left(&self) -> bool {
        self.notes.refusal == Some(Refusal::BadBody)
    }

    /// Counts it. No lock, no memory: every request pays for this.
    fn count(&self, total: Option<Duration>) {
        let notes = &self.notes;
        let ended = Ended {
            status: notes.status.unwrap_or(client_left()).as_u16(),
            is_by_upstream: notes.is_by_endpoint,
            code: notes.refusal.as_ref().map(Refusal::code),
            aborted: self.aborted_by(),
            head: notes.head_time,
            upstream: notes.upstream_time,
            total,
            bytes_in: self.request_meter.as_ref().map_or(0, |meter| meter.bytes()),
            bytes_out: notes.bytes_out,
        };
        self.parts.metrics.request(self.site.as_ref(), self.route.as_ref(), &ended);
    }

    /// Who ended it before its end.
    fn aborted_by(&self) -> Option<&'static str> {
        match self.notes.end {
            _ if self.has_client_left() => Some("client"),
            End::Open => Some("client"),
            End::Complete => None,
            End::Aborted(by) => Some(by),
        }
    }

    fn write_record(&self, total: Option<Duration>) {
        let log = &self.parts.log;
        if !log.is_on() {
            return;
        }
        let notes = &self.notes;
        let tls = self.connection.tls.as_deref();
        log.request(&RequestRecord {
            id: self.id.to_str().unwrap_or_default(),
            site: self.site.as_ref().map(|site| &*site.label),
            route: self.route.as_ref().map(|route| &*route.condition.prefix).filter(|prefix| !prefix.is_empty()),
            client: self.client,
            peer: self.connection.peer,
            via: self.connection.via,
            hops: notes.hops,
            forwarded_in: notes.chain.as_deref(),
            method: &notes.method,
            target: target(&notes.uri),
            host: notes.host.as_ref(),
            ua: notes.agent.as_ref(),
            origin: notes.origin.as_ref(),
            referer: notes.referer.as_ref(),
            http: self.carrier.version(),
            alpn: tls.map(|tls| tls.alpn.as_str()),
            tls: tls.map(|tls| TlsRecord { version: tls.version, cipher: tls.cipher, group: tls.group }),
            sni: tls.and_then(|tls| tls.sni.as_ref()).map(|name| name.as_str()),
            status: notes.status.unwrap_or(client_left()),
            by: match &notes.answered_by {
                _ if notes.is_by_endpoint => Responder::Upstream,
                Some(_) => Responder::Auth,
                None => Responder::Edge,
            },
            auth: notes.answered_by.as_deref().or(self.admission.as_ref().map(|admission| &*admission.auth.name)),
            user: self.admission.as_ref().and_then(|admission| admission.user.as_deref()),
            hooks: &notes.hooks,
            code: notes.refusal.as_ref().map(Refusal::code),
            cause: notes.refusal.as_ref().map(Refusal::cause),
            limit: notes.refusal.as_ref().and_then(Refusal::limit),
            upstream: notes.endpoint.as_ref().map(|(label, _)| &**label),
            via_port: notes.endpoint.as_ref().and_then(|(_, port)| *port),
            upgrade: notes.is_upgrade,
            websocket: &notes.websocket,
            ms: Timings {
                head: notes.head_time,
                held: notes.held,
                upstream: notes.upstream_time,
                total: total.unwrap_or_default(),
            },
            bytes: Amounts {
                inbound: self.request_meter.as_ref().map_or(0, |meter| meter.bytes()),
                outbound: notes.bytes_out,
            },
            aborted: self.aborted_by(),
            generation: self.generation.number,
        });
    }
}

/// Placeholders are filled in only after a host was found.
static NO_HOST: HeaderValue = HeaderValue::from_static("");

/// The names of the WebSocket headers that came, without what they have in common. No memory is
/// taken where there are none.
fn websocket_headers(fields: &HeaderMap) -> Vec<&'static str> {
    let known = [
        (SEC_WEBSOCKET_EXTENSIONS, "extensions"),
        (SEC_WEBSOCKET_KEY, "key"),
        (SEC_WEBSOCKET_PROTOCOL, "protocol"),
        (SEC_WEBSOCKET_VERSION, "version"),
    ];
    known.into_iter().filter(|(name, _)| fields.contains_key(name)).map(|(_, short)| short).collect()
}

/// 499, as nginx has it.
fn client_left() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.carrier.ended();
        // Whoever reads the record may rely on it.
        self.tunnel_place = None;
        let total = self.notes.begun.map(|begun| begun.elapsed() + self.notes.head_time);
        self.count(total);
        self.write_record(total);
    }
}

/// The first bytes of a 403, kept to recognise the gateway's refusal of this edge.
#[derive(Debug, Default)]
pub struct Clue(Vec<u8>);

impl Clue {
    /// The gateway's answer is some 200 bytes.
    const ENOUGH: usize = 1024;

    /// Keeps the first bytes.
    pub fn saw(&mut self, data: &[u8]) {
        let room = Self::ENOUGH.saturating_sub(self.0.len()).min(data.len());
        self.0.extend_from_slice(&data[..room]);
    }

    /// Tells the operator what to do, each time it happens. Any other refusal is a login that failed.
    pub fn judge(self, exchange: &Exchange) {
        if memchr::memmem::find(&self.0, b"proxy_attribution_required").is_none() {
            return exchange.auth_failed();
        }
        // What was counted of answers without a body, which could not be told apart, was no failure either.
        if let Some(rule) = exchange.lockout() {
            exchange.parts.limits.absolve(rule, exchange.guest());
        }
        let id = exchange.id.to_str().unwrap_or_default();
        let client = exchange.client.map(|client| client.to_string()).unwrap_or_default();
        let upstream = exchange.notes.endpoint.as_ref().map_or("the gateway", |(label, _)| label);
        if exchange.client.is_some_and(|client| client.ip().is_loopback()) {
            tracing::warn!(
                code = "G403-loopback", request = id, %client, upstream,
                "gateway refused {client}: proxy_attribution_required (request {id})\n      \
                 the client is on this machine, and the gateway takes no loopback address for a client\n      \
                 use a site named localhost with attribution = \"local\", or open the public name from another machine"
            );
        } else {
            tracing::warn!(
                code = "G403-attribution", request = id, %client, upstream,
                "gateway refused {client}: proxy_attribution_required (request {id})\n      \
                 it does not trust this edge. On the gateway's machine run\n        \
                 openclaw config set gateway.trustedProxies '[\"127.0.0.1\"]'"
            );
        }
    }
}
