//! The records: what is said about a request, a tunnel and a connection, as JSON and as text.
//!
//! The public structs borrow what the stories have at hand. Everything that a client chose is
//! masked, bounded and escaped here, on its way out, so that no caller can forget it. Field names
//! and their order are a promise to whoever parses the log.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, StatusCode, Version};

use super::clock::Stamp;
use super::encode::{self, Json, Line, Object};
use super::redact::{Redactor, clip, clip_text};
use crate::addr::{ClientAddr, PeerAddr};

/// One request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    /// The request ID.
    pub id: &'a str,
    /// The site's label.
    pub site: Option<&'a str>,
    /// The route's prefix; `None` for all paths.
    pub route: Option<&'a str>,
    /// Whom we believe is asking.
    pub client: Option<ClientAddr>,
    /// Who opened the connection.
    pub peer: PeerAddr,
    /// The socket's own peer, when `peer` is what its PROXY preface says.
    pub via: Option<PeerAddr>,
    /// How many hops were believed.
    pub hops: u32,
    /// The chain as received from a trusted hop (`trust::chain_text`).
    pub forwarded_in: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// Path and query as sent; masked on output.
    pub target: &'a str,
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a HeaderValue>,
    /// `User-Agent`.
    pub ua: Option<&'a HeaderValue>,
    /// `Origin`.
    pub origin: Option<&'a HeaderValue>,
    /// `Referer`; its query is masked on output.
    pub referer: Option<&'a HeaderValue>,
    /// The version that the client spoke.
    pub http: Version,
    /// What ALPN chose; `None` without TLS or ALPN.
    pub alpn: Option<&'a str>,
    /// TLS of the connection.
    pub tls: Option<TlsRecord<'a>>,
    /// The name in the ClientHello.
    pub sni: Option<&'a str>,
    /// The status that the client saw.
    pub status: StatusCode,
    /// Who answered.
    pub by: Responder,
    /// The way of `[auth]` by which it passed, or whose service answered.
    pub auth: Option<&'a str>,
    /// Who asks, as that way knows them.
    pub user: Option<&'a str>,
    /// What decision services said.
    pub hooks: &'a [HookRecord],
    /// Our stable code, when we answered.
    pub code: Option<&'a str>,
    /// The cause in words, when we answered.
    pub cause: Option<&'a str>,
    /// The name of the limiter that refused it.
    pub limit: Option<&'a str>,
    /// The endpoint's label.
    pub upstream: Option<&'a str>,
    /// Our port on the connection to the endpoint: the gateway's log names it.
    pub via_port: Option<u16>,
    /// Whether a tunnel was opened.
    pub upgrade: bool,
    /// Which `Sec-WebSocket-` headers the client sent; their values stay out.
    pub websocket: &'a [&'static str],
    /// Where the time went.
    pub ms: Timings,
    /// Body bytes.
    pub bytes: Amounts,
    /// Who ended it before its end: `client`, `upstream`.
    pub aborted: Option<&'a str>,
    /// The generation of the configuration.
    pub generation: u64,
}

/// TLS of a connection: `1.3 AES_128_GCM X25519MLKEM768`.
#[derive(Clone, Copy, Debug)]
pub struct TlsRecord<'a> {
    /// `1.3`.
    pub version: &'a str,
    /// The cipher suite.
    pub cipher: &'a str,
    /// The key exchange group.
    pub group: Option<&'a str>,
}

/// What a decision service said about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRecord {
    /// Its name in `[hooks]`.
    pub name: Arc<str>,
    /// Whether its word counts.
    pub is_enforced: bool,
    /// Its word.
    pub verdict: HookVerdict,
    /// The rule that it names.
    pub rule: Option<Box<str>>,
    /// Its own ID of the decision.
    pub id: Option<Box<str>>,
    /// How long it took.
    pub took: Duration,
}

/// What a decision service can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookVerdict {
    /// The request may pass.
    Allow,
    /// It may not.
    Deny,
    /// Nothing that could be used.
    Error,
}

/// Who answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Responder {
    /// We did.
    Edge,
    /// A service of `[auth]` did.
    Auth,
    /// The endpoint did.
    Upstream,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// From the first byte of the head to its last.
    pub head: Duration,
    /// How long it was held because nothing answered.
    pub held: Option<Duration>,
    /// From sending upstream to the endpoint's response head.
    pub upstream: Option<Duration>,
    /// From the first byte of the head to the end of the response.
    pub total: Duration,
}

/// A number for each direction, seen from the edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// From the client.
    pub inbound: u64,
    /// To the client.
    pub outbound: u64,
}

/// One tunnel, when it has ended.
#[derive(Clone, Copy, Debug)]
pub struct TunnelRecord<'a> {
    /// The ID of the request that opened it.
    pub id: &'a str,
    /// The site's label.
    pub site: Option<&'a str>,
    /// Whom we believe is asking.
    pub client: Option<ClientAddr>,
    /// Who opened the connection.
    pub peer: PeerAddr,
    /// The socket's own peer, when `peer` is what its PROXY preface says.
    pub via: Option<PeerAddr>,
    /// `h1` or `h2`.
    pub over: &'a str,
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a HeaderValue>,
    /// Path and query as sent; masked on output.
    pub target: &'a str,
    /// `User-Agent`.
    pub ua: Option<&'a HeaderValue>,
    /// `Origin`.
    pub origin: Option<&'a HeaderValue>,
    /// The endpoint's label.
    pub upstream: Option<&'a str>,
    /// Our port on the connection to the endpoint.
    pub via_port: Option<u16>,
    /// When the 101 or 200 was sent.
    pub opened: SystemTime,
    /// How long it lasted.
    pub lasted: Duration,
    /// WebSocket frames.
    pub frames: Amounts,
    /// Bytes, frame headers included.
    pub bytes: Amounts,
    /// `client`, `upstream` or `edge`.
    pub ended_by: &'a str,
    /// `close 1012 "service restart"`, `fin`, `reset`, `idle`, `drain`.
    pub how: &'a str,
    /// From the last byte to the end.
    pub idle: Duration,
    /// The generation of the configuration that it began with.
    pub generation: u64,
}

/// One connection that ended before a request, or because of what it sent.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRecord<'a> {
    /// Who opened it.
    pub peer: PeerAddr,
    /// The socket's own peer, when `peer` is what its PROXY preface says.
    pub via: Option<PeerAddr>,
    /// The address that accepted it.
    pub listener: &'a str,
    /// Our answer to what never became a request: its ID, status and code.
    pub answer: Option<(&'a str, StatusCode, &'a str)>,
    /// In which part it ended: `proxy`, `tls`, `http`, `flood`, `timeout`, `idle`, `closed`, `panic`.
    pub ended: &'a str,
    /// Why, in words.
    pub why: &'a str,
    /// The name in the ClientHello.
    pub sni: Option<&'a str>,
    /// What ALPN chose.
    pub alpn: Option<&'a str>,
    /// How long it lasted.
    pub lasted: Duration,
    /// Bytes that were read from the socket.
    pub bytes_in: u64,
}

/// Longest texts in a record, in bytes. Our choice: enough to recognise what a client sent, and one
/// record stays below 8 KiB whatever it sends.
const MAX_TARGET: usize = 2048;
const MAX_FIELD: usize = 256;
const MAX_REFERER: usize = 512;
const MAX_WORDS: usize = 512;

/// Said of a WebSocket with a secret in its query: it works, and every other log on the way has the secret.
const SECRET_IN_URL: &str = "a secret stands in the URL of this WebSocket: other logs on its way may keep it";

/// A request as it is written.
pub(super) struct RequestLine<'a> {
    t: Stamp,
    id: Cow<'a, str>,
    site: Option<&'a str>,
    route: Option<&'a str>,
    client: Option<ClientAddr>,
    peer: PeerAddr,
    via: Option<PeerAddr>,
    hops: u32,
    forwarded_in: Option<Cow<'a, str>>,
    method: Cow<'a, str>,
    path: Cow<'a, str>,
    host: Option<Cow<'a, str>>,
    ua: Option<Cow<'a, str>>,
    origin: Option<Cow<'a, str>>,
    referer: Option<Cow<'a, str>>,
    http: &'static str,
    alpn: Option<&'a str>,
    tls: Option<TlsRecord<'a>>,
    sni: Option<Cow<'a, str>>,
    status: u16,
    by: Responder,
    auth: Option<&'a str>,
    user: Option<Cow<'a, str>>,
    hooks: &'a [HookRecord],
    code: Option<&'a str>,
    cause: Option<Cow<'a, str>>,
    limit: Option<&'a str>,
    upstream: Option<&'a str>,
    via_port: Option<u16>,
    upgrade: bool,
    websocket: &'a [&'static str],
    note: Option<&'static str>,
    ms: Timings,
    bytes: Amounts,
    aborted: Option<&'a str>,
    r#gen: u64,
}

/// A tunnel as it is written.
pub(super) struct TunnelLine<'a> {
    t: Stamp,
    id: Cow<'a, str>,
    site: Option<&'a str>,
    client: Option<ClientAddr>,
    peer: PeerAddr,
    via: Option<PeerAddr>,
    over: &'a str,
    host: Option<Cow<'a, str>>,
    path: Cow<'a, str>,
    ua: Option<Cow<'a, str>>,
    origin: Option<Cow<'a, str>>,
    upstream: Option<&'a str>,
    via_port: Option<u16>,
    opened: Stamp,
    lasted: Duration,
    frames: Amounts,
    bytes: Amounts,
    ended_by: &'a str,
    how: Cow<'a, str>,
    idle_ms: u64,
    r#gen: u64,
}

/// A connection as it is written.
pub(super) struct ConnectionLine<'a> {
    t: Stamp,
    peer: PeerAddr,
    via: Option<PeerAddr>,
    listener: &'a str,
    id: Option<Cow<'a, str>>,
    status: Option<u16>,
    code: Option<&'a str>,
    ended: &'a str,
    why: Cow<'a, str>,
    sni: Option<Cow<'a, str>>,
    alpn: Option<&'a str>,
    ms: u64,
    bytes_in: u64,
}

impl<'a> RequestLine<'a> {
    /// Masks and bounds a record.
    pub(super) fn new(t: Stamp, record: &RequestRecord<'a>, redactor: &Redactor) -> Self {
        let r = record;
        let target = redactor.target(r.target);
        // What was masked begins with `~`.
        let has_secret =
            !r.websocket.is_empty() && target.split_once('?').is_some_and(|(_, query)| query.contains("=~"));
        Self {
            t,
            id: clip_text(r.id.into(), MAX_FIELD),
            site: r.site,
            route: r.route,
            client: r.client,
            peer: r.peer,
            via: r.via,
            hops: r.hops,
            forwarded_in: r.forwarded_in.map(|chain| clip_text(chain.into(), MAX_TARGET)),
            method: clip_text(r.method.as_str().into(), MAX_FIELD),
            path: clip_text(target, MAX_TARGET),
            host: field(redactor, "host", r.host),
            ua: field(redactor, "user-agent", r.ua),
            origin: url_field(redactor, "origin", r.origin),
            referer: url_field(redactor, "referer", r.referer),
            http: version(r.http),
            alpn: r.alpn,
            tls: r.tls,
            sni: r.sni.map(|name| clip_text(name.into(), MAX_FIELD)),
            status: r.status.as_u16(),
            by: r.by,
            auth: r.auth,
            user: r.user.map(|name| clip_text(name.into(), MAX_FIELD)),
            hooks: r.hooks,
            code: r.code,
            cause: r.cause.map(|words| clip_text(redactor.target(words), MAX_WORDS)),
            limit: r.limit,
            upstream: r.upstream,
            via_port: r.via_port,
            upgrade: r.upgrade,
            websocket: r.websocket,
            note: has_secret.then_some(SECRET_IN_URL),
            ms: r.ms,
            bytes: r.bytes,
            aborted: r.aborted,
            r#gen: r.generation,
        }
    }
}

impl<'a> TunnelLine<'a> {
    /// Masks and bounds a record.
    pub(super) fn new(t: Stamp, opened: Stamp, record: &TunnelRecord<'a>, redactor: &Redactor) -> Self {
        let r = record;
        Self {
            t,
            id: clip_text(r.id.into(), MAX_FIELD),
            site: r.site,
            client: r.client,
            peer: r.peer,
            via: r.via,
            over: r.over,
            host: field(redactor, "host", r.host),
            path: clip_text(redactor.target(r.target), MAX_TARGET),
            ua: field(redactor, "user-agent", r.ua),
            origin: url_field(redactor, "origin", r.origin),
            upstream: r.upstream,
            via_port: r.via_port,
            opened,
            lasted: r.lasted,
            frames: r.frames,
            bytes: r.bytes,
            ended_by: r.ended_by,
            how: clip_text(r.how.into(), MAX_WORDS),
            idle_ms: whole_millis(r.idle),
            r#gen: r.generation,
        }
    }
}

impl<'a> ConnectionLine<'a> {
    /// Masks and bounds a record.
    pub(super) fn new(t: Stamp, record: &ConnectionRecord<'a>, redactor: &Redactor) -> Self {
        let r = record;
        Self {
            t,
            peer: r.peer,
            via: r.via,
            listener: r.listener,
            id: r.answer.map(|(id, ..)| clip_text(id.into(), MAX_FIELD)),
            status: r.answer.map(|(_, status, _)| status.as_u16()),
            code: r.answer.map(|(.., code)| code),
            ended: r.ended,
            // Words of ours, which may quote a target that could not be parsed.
            why: clip_text(redactor.target(r.why), MAX_WORDS),
            sni: r.sni.map(|name| clip_text(name.into(), MAX_FIELD)),
            alpn: r.alpn,
            ms: whole_millis(r.lasted),
            bytes_in: r.bytes_in,
        }
    }
}

impl Line for RequestLine<'_> {
    fn json(&self, line: &mut Object<'_>) {
        line.add("t", self.t);
        line.add("kind", "request");
        line.add("id", &*self.id);
        line.add_some("site", self.site);
        line.add_some("route", self.route);
        line.add("client", self.client);
        line.add("peer", self.peer);
        line.add_some("via", self.via);
        line.add("hops", u64::from(self.hops));
        line.add_some("forwarded_in", self.forwarded_in.as_deref());
        line.add("method", &*self.method);
        line.add("path", &*self.path);
        line.add("host", self.host.as_deref());
        line.add("ua", self.ua.as_deref());
        line.add("origin", self.origin.as_deref());
        line.add_some("referer", self.referer.as_deref());
        line.add("http", self.http);
        line.add_some("alpn", self.alpn);
        line.add_some("tls", self.tls);
        line.add_some("sni", self.sni.as_deref());
        line.add("status", u64::from(self.status));
        line.add("by", self.by);
        line.add_some("auth", self.auth);
        line.add_some("user", self.user.as_deref());
        line.add_some("hook", Some(self.hooks).filter(|hooks| !hooks.is_empty()));
        line.add_some("code", self.code);
        line.add_some("cause", self.cause.as_deref());
        line.add_some("limit", self.limit);
        line.add_some("upstream", self.upstream);
        line.add_some("via_port", self.via_port.map(u64::from));
        line.add_some("upgrade", self.upgrade.then_some(true));
        line.add_some("websocket", Some(self.websocket).filter(|names| !names.is_empty()));
        line.add_some("note", self.note);
        line.add("ms", self.ms);
        line.add("bytes", self.bytes);
        line.add_some("aborted", self.aborted);
        line.add("gen", self.r#gen);
    }

    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or("-");
        write!(out, "{} {} {} {host}{}", self.t.time_of_day(), self.status, self.method, self.path)?;
        match (self.by, self.upstream) {
            (Responder::Upstream, upstream) => write!(out, "  upstream {}", upstream.unwrap_or("-"))?,
            (Responder::Edge, _) => write!(out, "  edge {}", self.code.unwrap_or("-"))?,
            (Responder::Auth, _) => write!(out, "  auth {}", self.auth.unwrap_or("-"))?,
        }
        write!(out, "  {} ms  {} B  h{}", millis(self.ms.total), self.bytes.outbound, self.http)?;
        match &self.client {
            Some(client) => write!(out, "  {}", client)?,
            None => write!(out, "  {}", self.peer)?,
        }
        if let Some(user) = &self.user {
            write!(out, "  as {user}")?;
        }
        for hook in self.hooks {
            write!(out, "  hook {} {}", hook.name, hook.verdict.as_str())?;
        }
        if let Some(cause) = &self.cause {
            write!(out, "  {cause}")?;
        }
        if let Some(side) = self.aborted {
            write!(out, "  aborted by {side}")?;
        }
        if let Some(note) = self.note {
            write!(out, "  {note}")?;
        }
        Ok(())
    }
}

impl Line for TunnelLine<'_> {
    fn json(&self, line: &mut Object<'_>) {
        line.add("t", self.t);
        line.add("kind", "tunnel");
        line.add("id", &*self.id);
        line.add_some("site", self.site);
        line.add("client", self.client);
        line.add("peer", self.peer);
        line.add_some("via", self.via);
        line.add("over", self.over);
        line.add("host", self.host.as_deref());
        line.add("path", &*self.path);
        line.add("ua", self.ua.as_deref());
        line.add("origin", self.origin.as_deref());
        line.add_some("upstream", self.upstream);
        line.add_some("via_port", self.via_port.map(u64::from));
        line.add("opened", self.opened);
        line.add("secs", seconds(self.lasted));
        line.add("frames", self.frames);
        line.add("bytes", self.bytes);
        line.add("ended_by", self.ended_by);
        line.add("how", &*self.how);
        line.add("idle_ms", self.idle_ms);
        line.add("gen", self.r#gen);
    }

    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or("-");
        write!(out, "{} tunnel {host}{}  ended by {}: {}", self.t.time_of_day(), self.path, self.ended_by, self.how)?;
        write!(out, "  {} s  {} B in, {} B out", seconds(self.lasted), self.bytes.inbound, self.bytes.outbound)?;
        match &self.client {
            Some(client) => write!(out, "  {}", client),
            None => write!(out, "  {}", self.peer),
        }
    }
}

impl Line for ConnectionLine<'_> {
    fn json(&self, line: &mut Object<'_>) {
        line.add("t", self.t);
        line.add("kind", "connection");
        line.add("peer", self.peer);
        line.add_some("via", self.via);
        line.add("listener", self.listener);
        line.add_some("id", self.id.as_deref());
        line.add_some("status", self.status.map(u64::from));
        line.add_some("code", self.code);
        line.add("ended", self.ended);
        line.add("why", &*self.why);
        line.add_some("sni", self.sni.as_deref());
        line.add_some("alpn", self.alpn);
        line.add("ms", self.ms);
        line.add("bytes_in", self.bytes_in);
    }

    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{} connection {} ended: {}: {}", self.t.time_of_day(), self.peer, self.ended, self.why)
    }
}

/// Records that were lost, told when there is room again.
pub(super) struct LossLine {
    t: Stamp,
    dropped: u64,
}

impl LossLine {
    /// So many since the last time.
    pub(super) fn new(t: Stamp, dropped: u64) -> Self {
        Self { t, dropped }
    }
}

impl Line for LossLine {
    fn json(&self, line: &mut Object<'_>) {
        line.add("t", self.t);
        line.add("kind", "log");
        line.add("dropped", self.dropped);
    }

    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{} log: {} records dropped", self.t.time_of_day(), self.dropped)
    }
}

impl Json for Stamp {
    fn write(self, out: &mut Vec<u8>) {
        encode::plain_string(out, self.as_bytes());
    }
}

impl Json for ClientAddr {
    fn write(self, out: &mut Vec<u8>) {
        encode::plain_string(out, self.text().as_bytes());
    }
}

impl Json for PeerAddr {
    fn write(self, out: &mut Vec<u8>) {
        encode::plain_string(out, self.text().as_bytes());
    }
}

impl Json for TlsRecord<'_> {
    fn write(self, out: &mut Vec<u8>) {
        let (before, group) = self.group.map_or(("", ""), |group| (" ", group));
        encode::string(out, &[self.version, " ", self.cipher, before, group]);
    }
}

impl Json for Responder {
    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Edge => encode::plain_string(out, b"edge"),
            Self::Auth => encode::plain_string(out, b"auth"),
            Self::Upstream => encode::plain_string(out, b"upstream"),
        }
    }
}

impl HookVerdict {
    /// The word for records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Error => "error",
        }
    }
}

impl Json for &[HookRecord] {
    fn write(self, out: &mut Vec<u8>) {
        for (index, hook) in self.iter().enumerate() {
            out.push(if index == 0 { b'[' } else { b',' });
            let mut object = Object::begin(out);
            object.add("name", &*hook.name);
            object.add("mode", if hook.is_enforced { "enforce" } else { "monitor" });
            object.add("verdict", hook.verdict.as_str());
            object.add_some("rule", hook.rule.as_deref());
            object.add_some("id", hook.id.as_deref());
            object.add("ms", millis(hook.took));
            object.end();
        }
        // Never empty: it is left out then.
        out.push(b']');
    }
}

impl Json for Timings {
    fn write(self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.add("head", millis(self.head));
        object.add_some("held", self.held.map(millis));
        object.add_some("upstream", self.upstream.map(millis));
        object.add("total", millis(self.total));
        object.end();
    }
}

impl Json for Amounts {
    fn write(self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.add("in", self.inbound);
        object.add("out", self.outbound);
        object.end();
    }
}

/// A number with one decimal: as JSON always, for people unless it is 0.
struct Tenths(u64);

impl Json for Tenths {
    fn write(self, out: &mut Vec<u8>) {
        (self.0 / 10).write(out);
        out.extend_from_slice(&[b'.', b'0' + (self.0 % 10) as u8]);
    }
}

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, tenth) => write!(f, "{whole}.{tenth}"),
        }
    }
}

/// A header of the client, bounded.
fn field<'a>(redactor: &Redactor, name: &str, value: Option<&'a HeaderValue>) -> Option<Cow<'a, str>> {
    let bytes = value?.as_bytes();
    Some(redactor.header(name, bytes).map_or_else(|| clip(bytes, MAX_FIELD), Cow::Owned))
}

/// A header of the client that is a URL, masked and bounded.
fn url_field<'a>(redactor: &Redactor, name: &str, value: Option<&'a HeaderValue>) -> Option<Cow<'a, str>> {
    let bytes = value?.as_bytes();
    if let Some(hash) = redactor.header(name, bytes) {
        return Some(Cow::Owned(hash));
    }
    Some(match std::str::from_utf8(bytes) {
        Ok(text) => clip_text(redactor.referer(text), MAX_REFERER),
        Err(_) => clip_text(redactor.referer(&String::from_utf8_lossy(bytes)).into_owned().into(), MAX_REFERER),
    })
}

/// `1.1`, `2`.
fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        // The type is not closed; hyper makes no other.
        _ => "?",
    }
}

/// Milliseconds with one decimal.
fn millis(duration: Duration) -> Tenths {
    Tenths(duration.as_secs().saturating_mul(10_000).saturating_add(rounded(duration.subsec_nanos(), 100_000)))
}

/// Seconds with one decimal.
fn seconds(duration: Duration) -> Tenths {
    Tenths(duration.as_secs().saturating_mul(10).saturating_add(rounded(duration.subsec_nanos(), 100_000_000)))
}

/// How many units, to the nearest one.
fn rounded(nanos: u32, unit: u32) -> u64 {
    u64::from((nanos + unit / 2) / unit)
}

/// Milliseconds without decimals.
fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
