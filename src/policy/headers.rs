//! Headers between two connections: what is removed, what the edge writes, what operators edit.
//!
//! The order on a request is `trust::resolve`, `clean_request`, `edit`, `write_edge`: the client's
//! own `Connection` is obeyed first, so that it can never take away what we write (RFC 9110 7.6.1),
//! and our fields come last, so that nothing else can stand in them. Bodies are not looked at.

use bytes::{Bytes, BytesMut};
use http::header::{ALT_SVC, CONNECTION, COOKIE, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::{ContextV7, Timestamp, Uuid};

use super::names::{self, Meaning};
use crate::addr::ClientAddr;
use crate::site::policy::{HeaderEdits, Template, TemplatePart, Trust};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The name of the request ID, on requests and on responses.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the edge says about a request.
#[derive(Clone, Copy, Debug)]
pub struct Edge<'a> {
    /// Whom we believe is asking; `None` only for `attribution = "local"`: no forwarding header then.
    pub client: Option<ClientAddr>,
    /// `https` or `http`, as the client used it.
    pub proto: &'a str,
    /// The host that was asked for, port included.
    pub host: &'a HeaderValue,
    /// The port that was asked for.
    pub port: u16,
    /// See `request_id`.
    pub request_id: &'a HeaderValue,
    /// The prefix that was taken off the path.
    pub prefix: Option<&'a str>,
}

/// Removes from a request what a client may not say to an upstream: hop-by-hop fields and those that
/// its `Connection` lists, forwarding and identity headers, every name with `_`, and the names in
/// `also` (such as `client_cert.header` of any site). `trust.strip` and `trust.identity` are kept from a trusted peer.
///
/// One walk over the names; a request with nothing to remove costs no allocation.
pub fn clean_request(headers: &mut HeaderMap, trust: &Trust, peer_is_trusted: bool, also: &[HeaderName]) {
    let wants_trailers = is_only_trailers(headers);
    remove_connection(headers);
    remove_all(headers, |name| {
        let text = name.as_str();
        // No early exit, so that the compiler vectorises it: names are too short for a search to pay.
        let has_underscore = text.bytes().fold(false, |found, byte| found | (byte == b'_'));
        let is_refused = match names::meaning_of_dashed(text) {
            Meaning::EndToEnd => !peer_is_trusted && trust.identity.contains(name),
            Meaning::HopByHop => true,
            Meaning::Forwarding | Meaning::Identity => !(peer_is_trusted && trust.identity.contains(name)),
        };
        has_underscore || is_refused || also.contains(name) || (!peer_is_trusted && is_stripped(text, &trust.strip))
    });
    if wants_trailers {
        // RFC 9110 10.1.4: a sender of TE also lists it in Connection.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Writes the edge's own fields, each exactly once. The last step before a request is sent.
pub fn write_edge(headers: &mut HeaderMap, edge: &Edge<'_>) {
    headers.insert(&X_REQUEST_ID, edge.request_id.clone());
    let Some(client) = edge.client else {
        // The gateway takes any one of these for traffic that was proxied.
        remove_all(headers, |name| names::meaning(name.as_str()) == Meaning::Forwarding);
        return;
    };
    let client = client_value(client);
    headers.insert(&X_REAL_IP, client.clone());
    headers.insert(&X_FORWARDED_FOR, client);
    headers.insert(&X_FORWARDED_PROTO, proto_value(edge.proto));
    headers.insert(&X_FORWARDED_HOST, edge.host.clone());
    headers.insert(&X_FORWARDED_PORT, port_value(edge.port));
    match edge.prefix.and_then(|prefix| HeaderValue::from_str(prefix).ok()) {
        Some(prefix) => drop(headers.insert(&X_FORWARDED_PREFIX, prefix)),
        None => drop(headers.remove(&X_FORWARDED_PREFIX)),
    }
}

/// Removes from a response what speaks about the upstream's connection only, and `Alt-Svc`, which
/// would send clients past the edge to the upstream's own ports (RFC 7838; our choice). Framing and
/// content fields stay as they are; several `Set-Cookie` stay several (RFC 6265 3).
pub fn clean_response(headers: &mut HeaderMap) {
    remove_connection(headers);
    for name in [TRANSFER_ENCODING, UPGRADE, TE, ALT_SVC] {
        headers.remove(name);
    }
    remove_all(headers, |name| {
        matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authentication-info" | "http2-settings"
        )
    });
}

/// Removes from a trailer section what may not stand there, of a request or of a response.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| !names::may_trail(name.as_str()));
}

/// Removes a trailer section of a request whole (RFC 9110 6.5.1 allows it): where the edge says who asks, no reader
/// behind it shall find a second word on that, wherever it looks.
pub fn drop_trailers(trailers: &mut HeaderMap) {
    trailers.clear();
}

/// Joins cookie crumbs into one field, as HTTP/1.1 needs it (RFC 9113 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let length = headers.get_all(COOKIE).iter().map(|crumb| crumb.len() + 2).sum();
    let mut joined = BytesMut::with_capacity(length);
    for crumb in headers.get_all(COOKIE).iter().filter(|crumb| !crumb.is_empty()) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::from_maybe_shared(joined.freeze()).expect("values and a separator make a value");
    headers.insert(COOKIE, joined);
}

/// What placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// `{client}`; empty when it is unknown.
    pub client: Option<ClientAddr>,
    /// `{host}`, with its port.
    pub host: &'a HeaderValue,
    /// `{request_id}`.
    pub request_id: &'a HeaderValue,
    /// `{tls.version}`; empty without TLS.
    pub tls_version: &'a str,
    /// `{tls.cipher}`; empty without TLS.
    pub tls_cipher: &'a str,
    /// `{uri}`: path and query as they were sent.
    pub uri: &'a str,
}

/// Applies an operator's edits, in the order remove, set, add. A value that cannot be a header value
/// is left out; `set` then removes all the same, so that no client's copy stands in for it.
pub fn edit(headers: &mut HeaderMap, edits: &HeaderEdits, values: &Values<'_>) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (name, template) in &edits.set {
        match fill(template, values) {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    }
    for (name, template) in &edits.add {
        if let Some(value) = fill(template, values) {
            headers.append(name, value);
        }
    }
}

/// Fills in a template. `None` when the result would not be a header value (RFC 9110 5.5), which only
/// a client's bytes can cause; they are never repaired.
pub fn fill(template: &Template, values: &Values<'_>) -> Option<HeaderValue> {
    let parts = match template {
        Template::Literal(value) => return Some(value.clone()),
        Template::Parts(parts) => parts,
    };
    let mut text = Vec::with_capacity(64);
    for part in parts {
        match part {
            TemplatePart::Text(literal) => text.extend_from_slice(literal.as_bytes()),
            TemplatePart::Client => {
                if let Some(client) = values.client {
                    text.extend_from_slice(client.text().as_bytes());
                }
            }
            TemplatePart::Host => text.extend_from_slice(values.host.as_bytes()),
            TemplatePart::RequestId => text.extend_from_slice(values.request_id.as_bytes()),
            TemplatePart::TlsVersion => text.extend_from_slice(values.tls_version.as_bytes()),
            TemplatePart::TlsCipher => text.extend_from_slice(values.tls_cipher.as_bytes()),
            TemplatePart::Uri => text.extend_from_slice(values.uri.as_bytes()),
        }
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// The ID of a request: a trusted hop's own, so that one ID runs through all logs, or a fresh UUIDv7
/// (RFC 9562 5.7), which sorts by time.
pub fn request_id(headers: &HeaderMap, peer_is_trusted: bool) -> HeaderValue {
    if peer_is_trusted {
        let mut values = headers.get_all(&X_REQUEST_ID).iter();
        if let (Some(value), None) = (values.next(), values.next())
            && is_request_id(value.as_bytes())
        {
            return value.clone();
        }
    }
    thread_local! {
        // The library's shared clock takes a process-wide lock for each ID.
        static CLOCK: ContextV7 = const { ContextV7::new() };
    }
    let id = CLOCK.with(|clock| Uuid::new_v7(Timestamp::now(clock)));
    let mut room = [0; uuid::fmt::Hyphenated::LENGTH];
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut room)).expect("hexadecimal digits and hyphens")
}

/// True for what may go into logs and headers unchanged.
fn is_request_id(text: &[u8]) -> bool {
    // 128: twice the longest ID in common use (trace identifiers of cloud balancers).
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=128).contains(&text.len()) && text.iter().all(is_plain)
}

/// Removes `Connection` and each field that it lists, but for end-to-end ones.
fn remove_connection(headers: &mut HeaderMap) {
    let mut values = headers.get_all(CONNECTION).iter().peekable();
    if values.peek().is_none() {
        return;
    }
    let mut listed = Vec::new();
    for value in values {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            // The usual ones are removed in any case.
            let is_usual = [&b"keep-alive"[..], b"close", b"upgrade", b"te", b"http2-settings", b""]
                .iter()
                .any(|usual| option.eq_ignore_ascii_case(usual));
            if is_usual {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(option)
                && headers.contains_key(&name)
                && !names::is_end_to_end(name.as_str())
            {
                listed.push(name);
            }
        }
    }
    for name in listed {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
}

/// Removes every field whose name is refused. A vector that stays empty does not allocate.
fn remove_all(headers: &mut HeaderMap, is_refused: impl Fn(&HeaderName) -> bool) {
    let refused: Vec<HeaderName> = headers.keys().filter(|name| is_refused(name)).cloned().collect();
    for name in refused {
        headers.remove(name);
    }
}

/// True when an operator's list has the name, or a prefix of it that ends in `-`.
fn is_stripped(name: &str, strip: &[Box<str>]) -> bool {
    strip.iter().any(|entry| if entry.ends_with('-') { name.starts_with(&**entry) } else { name == &**entry })
}

/// True for `TE: trailers` and nothing else: other codings are between two hops (RFC 9110 10.1.4).
fn is_only_trailers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TE).iter();
    let first = values.next().is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"trailers"));
    first && values.next().is_none()
}

/// The address as a field value.
fn client_value(client: ClientAddr) -> HeaderValue {
    HeaderValue::from_bytes(client.text().as_bytes()).expect("an address is plain ASCII")
}

/// The scheme as a field value.
fn proto_value(proto: &str) -> HeaderValue {
    // Anything but these two would be a mistake of ours; cleartext is the safe reading.
    HeaderValue::from_static(if proto == "https" { "https" } else { "http" })
}

/// The port as a field value, the usual ones without an allocation.
fn port_value(port: u16) -> HeaderValue {
    match port {
        443 => HeaderValue::from_static("443"),
        80 => HeaderValue::from_static("80"),
        8443 => HeaderValue::from_static("8443"),
        other => HeaderValue::from(other),
    }
}

#[cfg(test)]
mod tests;
