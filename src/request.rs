//! The story of one request: head → site → route → policy → forward → response.
//!
//! Steps run in this order because each may only rely on those above it. Whatever happens, the
//! client gets one answer and the log gets one record (`request/exchange.rs`). No path sends
//! anything upstream without the edge's own forwarding headers, written last.

pub mod exchange;
pub mod reply;
pub mod upgrade;

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, LOCATION, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;

use crate::access_log::AccessLog;
use crate::addr::{ClientAddr, HostBuffer, ListenAddr, PeerAddr, split_authority};
use crate::body::collect::{CollectError, collect};
use crate::body::{Body, BodyError, Meter, Stream};
use crate::drain::Drain;
use crate::forward::tunnel::{Duplex, End};
use crate::forward::{Plan, Upstreams};
use crate::policy::{self, headers, trust};
use crate::refusal::Refusal;
use crate::site::policy::{Attribution, Limits};
use crate::site::route::{Action, Forward, NoRoute, Route, Strip};
use crate::site::{Found, Role, Site, SiteTable};
use crate::snapshot::Snapshot;
use crate::tls::TlsFacts;
use exchange::Exchange;
use reply::Reply;
use upgrade::Upgrade;

/// The parts that a request uses: shared by all connections of a worker.
#[derive(Debug)]
pub struct Parts {
    /// The configuration in force.
    pub snapshot: Arc<Snapshot>,
    /// What is in flight, and whether to stop.
    pub drain: Drain,
    /// Where records go.
    pub log: AccessLog,
    /// This worker's connections to endpoints.
    pub upstreams: Upstreams,
}

/// What a request knows of the connection that it came on.
#[derive(Debug)]
pub struct Connection {
    /// Who opened it.
    pub peer: PeerAddr,
    /// Where it was accepted.
    pub local: Option<SocketAddr>,
    /// On which listener.
    pub role: Arc<Role>,
    /// Its handshake; `None` for cleartext.
    pub tls: Option<Rc<TlsFacts>>,
    /// Requests that began on it.
    pub requests: Cell<u64>,
}

/// The protocol that carries requests: what HTTP/1.1 and HTTP/2 do in different ways.
pub trait Carrier {
    /// The version of HTTP.
    fn version(&self) -> Version;
    /// How long the head took from its first byte to its last.
    fn head_time(&self) -> Duration;
    /// A request has begun.
    fn begun(&self);
    /// Its response has been handed over whole, or was given up.
    fn ended(&self);
    /// The framing fault of the body, if that is why it broke off.
    fn body_fault(&self) -> Option<Refusal>;
    /// The longest time in which the client may take no byte that is ready for it.
    fn limit_send(&self, limit: Duration);
    /// The request becomes a tunnel: after our answer nothing is HTTP. Called once, before that is returned.
    fn tunnel(&self, switched: OnUpgrade) -> ClientSide;
}

/// The client's side of a tunnel, as soon as it has switched; `None` when it went away before.
pub type ClientSide = Pin<Box<dyn Future<Output = Option<End<Box<dyn Duplex>>>>>>;

/// Answers one request. The record is written when the response body has gone.
pub async fn serve(
    parts: Rc<Parts>,
    connection: Rc<Connection>,
    carrier: Rc<dyn Carrier>,
    request: Request<Incoming>,
) -> Response<Body> {
    connection.requests.set(connection.requests.get() + 1);
    let (mut head, incoming) = request.into_parts();
    let mut exchange = Exchange::begin(parts, connection, carrier, &head);
    let decided = answer(&mut exchange, &mut head, incoming).await;
    match decided {
        Ok(reply) => exchange.finish(reply),
        Err(refusal) => exchange.refuse(refusal, &head.headers),
    }
}

/// Decides one request.
async fn answer(exchange: &mut Exchange, head: &mut request::Parts, incoming: Incoming) -> Result<Reply, Refusal> {
    let generation = Arc::clone(&exchange.generation);
    let table = &generation.table;

    let upgrade = Upgrade::wanted(head)?;
    let host = host_of(head)?;
    let found = place(exchange, table, &host)?;
    let site = Arc::clone(found.site);
    exchange.site = Some(Arc::clone(&site));
    exchange.resolve_client(table, &head.headers);
    if !exchange.connection.role.is_tls && site.tls.is_some() {
        return Ok(Reply::own(to_https(exchange, table, &site, &host, &head.uri)));
    }
    if found.is_redirected_alias {
        let location =
            format!("{}://{}{}", exchange.scheme(), with_port(site.host.name().as_str(), host.port), target(&head.uri));
        return Ok(Reply::own(redirect(StatusCode::PERMANENT_REDIRECT, &location)));
    }

    if head.version == Version::HTTP_2 {
        // No gate stands before HTTP/2. Before the rules of routes, which must not be passed by.
        check_method(&head.method)?;
        check_target(head)?;
        check_values(&head.headers)?;
    }
    let is_tunnel = upgrade.is_some();
    let route = Arc::clone(site.routes.find(head, is_tunnel).map_err(|none| match none {
        NoRoute::NotFound => Refusal::NoRoute,
        NoRoute::AmbiguousPath => Refusal::AmbiguousPath,
    })?);
    exchange.route = Some(Arc::clone(&route));
    exchange.carrier.limit_send(route.timeouts.send);

    // Everything that can be judged by the head is judged before a byte of the body is read.
    policy::check_head(head, &route.limits).map_err(|_| Refusal::HeadTooLarge)?;
    check_length(head, &incoming, &route.limits)?;
    if let Some(origins) = &route.origins
        && !policy::origin_allowed(origins, head, is_tunnel)
    {
        return Err(Refusal::Origin);
    }

    match &route.action {
        Action::Redirect(to) => {
            let location = headers::fill(&to.to, &exchange.values()).ok_or(Refusal::NoRoute)?;
            Ok(Reply::own(redirect(to.status, &String::from_utf8_lossy(location.as_bytes()))))
        }
        Action::Respond(respond) => {
            let mut response = Response::new(Body::full(respond.body.clone()));
            *response.status_mut() = respond.status;
            response.headers_mut().extend(respond.headers.iter().cloned());
            Ok(Reply::own(response))
        }
        Action::Forward(forward) if !is_tunnel && is_mount_without_slash(head, forward) => {
            let query = head.uri.query().map_or(String::new(), |query| format!("?{query}"));
            let location = format!("{}/{query}", head.uri.path());
            Ok(Reply::own(redirect(StatusCode::PERMANENT_REDIRECT, &location)))
        }
        Action::Forward(forward) => pass_on(exchange, head, incoming, &host, &route, forward, upgrade).await,
    }
}

/// Sends the request upstream and makes the endpoint's response ready for the client.
async fn pass_on(
    exchange: &mut Exchange,
    head: &mut request::Parts,
    incoming: Incoming,
    host: &RequestHost,
    route: &Arc<Route>,
    forward: &Forward,
    upgrade: Option<Upgrade>,
) -> Result<Reply, Refusal> {
    let body = request_body(exchange, incoming, route, forward).await?;
    let (outgoing, client) = outgoing_head(exchange, head, host, &body, route, forward, upgrade.as_ref())?;
    exchange.sent_upstream();
    let plan = Plan {
        upstream: &forward.upstream,
        timeouts: &route.timeouts,
        host: &forward.host,
        client,
        is_tunnel: upgrade.is_some(),
        meter: exchange.request_meter.as_ref().filter(|_| !body.is_end_stream()),
    };
    let answered = exchange.parts.upstreams.send(Request::from_parts(outgoing, body), &plan).await;
    let answer = match answered {
        // The gate saw more of a broken body than hyper tells.
        Err(Refusal::BadBody) => return Err(exchange.carrier.body_fault().unwrap_or(Refusal::BadBody)),
        answered => answered?,
    };
    exchange.answered(&answer);
    match upgrade {
        Some(upgrade) => upgrade::conclude(exchange, answer, upgrade, forward),
        None => Ok(reply::from_endpoint(exchange, answer, forward)),
    }
}

/// The host that a request is for.
struct RequestHost {
    /// `Host` as the upstream will see it, port included.
    value: HeaderValue,
    /// The name alone, as sent.
    name_length: usize,
    /// The port, if it was named.
    port: Option<u16>,
}

impl RequestHost {
    fn name(&self) -> &str {
        self.value.to_str().map_or("", |text| &text[..self.name_length])
    }
}

/// The one host of a request: `:authority`, an absolute target and `Host` must agree (RFC 9110 7.2,
/// RFC 9112 3.2.2, RFC 9113 8.3.1), and there must be exactly one.
fn host_of(head: &request::Parts) -> Result<RequestHost, Refusal> {
    let mut values = head.headers.get_all(HOST).iter();
    let header = values.next();
    if values.next().is_some() {
        return Err(Refusal::BadHost);
    }
    let value = match (head.uri.authority(), header) {
        (Some(authority), Some(header)) => {
            let header_text = header.to_str().map_err(|_| Refusal::BadHost)?;
            if !is_same_authority(authority.as_str(), header_text, head.uri.scheme()) {
                return Err(Refusal::BadHost);
            }
            header.clone()
        }
        (Some(authority), None) => HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::BadHost)?,
        (None, Some(header)) => header.clone(),
        (None, None) => return Err(Refusal::BadHost),
    };
    let text = value.to_str().map_err(|_| Refusal::BadHost)?;
    let (name, port) = split_authority(text).map_err(|_| Refusal::BadHost)?;
    let name_length = name.len();
    Ok(RequestHost { value, name_length, port })
}

/// True when two authorities name one host and port; a port left out is the scheme's (RFC 9110 4.2.3).
fn is_same_authority(one: &str, other: &str, scheme: Option<&Scheme>) -> bool {
    if one.eq_ignore_ascii_case(other) {
        return true;
    }
    let default = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    match (split_authority(one), split_authority(other)) {
        (Ok((one, one_port)), Ok((other, other_port))) => {
            one.eq_ignore_ascii_case(other) && one_port.unwrap_or(default) == other_port.unwrap_or(default)
        }
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// The site of a host, if it may be reached on this connection.
fn place<'t>(exchange: &Exchange, table: &'t SiteTable, host: &RequestHost) -> Result<Found<'t>, Refusal> {
    let mut buffer = HostBuffer::new();
    let name = buffer.normalise(host.name()).map_err(|_| Refusal::BadHost)?;
    let connection = &exchange.connection;
    let found = table.find(name).ok_or(Refusal::UnknownHost)?;
    if table.listener_of(&connection.role) != Some(found.site.listener) {
        return Err(Refusal::UnknownHost);
    }
    if let Some(facts) = &connection.tls {
        // RFC 9110 15.5.20. The handshake proved one site's certificate and asked for one site's
        // client certificates; a request for another site must not profit from either.
        let is_same =
            found.site.host == facts.site_host && found.site.tls.as_ref().is_some_and(|tls| tls.policy == facts.policy);
        if !is_same {
            return Err(Refusal::WrongConnection);
        }
    }
    Ok(found)
}

/// A request on the plain listener for a site with TLS is sent to its https address.
fn to_https(exchange: &Exchange, table: &SiteTable, site: &Site, host: &RequestHost, uri: &Uri) -> Response<Body> {
    let listener = table.listener(site.listener);
    let port = listener.https.iter().find_map(|address| match address {
        ListenAddr::Tcp(address) => Some(address.port()),
        _ => None,
    });
    // Behind a mapping of ports (container, load balancer) a client that named no port means the standard ones.
    let is_mapped = host.port.is_none() && exchange.connection.local.is_some_and(|local| local.port() != 80);
    let port = port.filter(|port| *port != 443 && !is_mapped);
    redirect(StatusCode::PERMANENT_REDIRECT, &format!("https://{}{}", with_port(host.name(), port), target(uri)))
}

fn with_port(name: &str, port: Option<u16>) -> String {
    let name = if name.contains(':') && !name.starts_with('[') { format!("[{name}]") } else { name.to_owned() };
    port.map_or(name.clone(), |port| format!("{name}:{port}"))
}

/// Path and query as they were sent.
fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

fn redirect(status: StatusCode, location: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// `/mount` is sent to `/mount/`, or relative links of the page there would leave the mount.
fn is_mount_without_slash(head: &request::Parts, forward: &Forward) -> bool {
    forward.strip.as_ref().is_some_and(|strip| head.uri.path() == &*strip.prefix)
        && (head.method == Method::GET || head.method == Method::HEAD)
}

/// As over HTTP/1.1 (`connection/framing`): `get` is another method than GET here, and the same to lax endpoints.
fn check_method(method: &Method) -> Result<(), Refusal> {
    const STANDARD: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let is_lax = |known: &Method| method != known && method.as_str().eq_ignore_ascii_case(known.as_str());
    if STANDARD.iter().any(is_lax) {
        let why = "the method is not a token, or has the wrong case";
        return Err(Refusal::Malformed { status: StatusCode::BAD_REQUEST, code: "E400-method", why });
    }
    Ok(())
}

/// As over HTTP/1.1 (`connection/framing`): a target that endpoints read differently is refused, and `*` is
/// a target of OPTIONS alone (RFC 9112 3.2.4).
fn check_target(head: &request::Parts) -> Result<(), Refusal> {
    let target = target(&head.uri);
    let path = head.uri.path();
    if target == "*" && head.method != Method::OPTIONS {
        let why = "the request target has a form that is not allowed here";
        return Err(Refusal::Malformed { status: StatusCode::BAD_REQUEST, code: "E400-target-form", why });
    }
    let is_odd = |byte: u8| matches!(byte, b'"' | b'<' | b'>' | b'#' | 0..=b' ' | 0x7f..);
    if target.bytes().any(is_odd) || path.bytes().any(|byte| matches!(byte, b'\\' | b'`')) {
        let why = "the request target has a byte that is not allowed";
        return Err(Refusal::Malformed { status: StatusCode::BAD_REQUEST, code: "E400-target-byte", why });
    }
    Ok(())
}

/// RFC 9113 8.2.1: a value with blanks around it is malformed. In HTTP/1.1 they are no part of it.
fn check_values(fields: &HeaderMap) -> Result<(), Refusal> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if fields.values().any(|value| is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last())) {
        return Err(Refusal::Malformed {
            status: StatusCode::BAD_REQUEST,
            code: "E400-field-value",
            why: "a field value begins or ends with a blank",
        });
    }
    Ok(())
}

/// RFC 9110 15.5.14: a body that is announced too large is refused before it is read.
fn check_length(head: &request::Parts, incoming: &Incoming, limits: &Limits) -> Result<(), Refusal> {
    let announced =
        incoming.size_hint().exact().or_else(|| head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| length > limits.body) { Err(Refusal::BodyTooLarge) } else { Ok(()) }
}

/// The body as it goes upstream: streamed, or collected first where the route says so.
async fn request_body(
    exchange: &mut Exchange,
    incoming: Incoming,
    route: &Route,
    forward: &Forward,
) -> Result<Body, Refusal> {
    if incoming.is_end_stream() {
        return Ok(Body::Empty);
    }
    let meter = Meter::new();
    exchange.request_meter = Some(Rc::clone(&meter));
    let stream = Stream::new(incoming, route.limits.body, route.timeouts.request_body, headers::clean_trailers, meter);
    let body = Body::Stream(Box::new(stream));
    if !forward.collect_request {
        return Ok(body);
    }
    match collect(body).await {
        Ok(collected) => Ok(Body::Collected(Box::new(collected))),
        Err(CollectError::Body(BodyError::TooLarge)) => Err(Refusal::BodyTooLarge),
        Err(CollectError::Body(BodyError::Stalled)) => Err(Refusal::BodyTimeout),
        Err(CollectError::Body(_)) => Err(exchange.carrier.body_fault().unwrap_or(Refusal::BadBody)),
        Err(CollectError::Full) => Err(Refusal::Busy),
        Err(CollectError::Storage(error)) => {
            tracing::error!(%error, "cannot keep a request body: is the temporary directory full or read-only?");
            Err(Refusal::Busy)
        }
    }
}

/// The head as it goes upstream, and the client that it names.
///
/// Order matters: what the client's `Connection` lists goes first, then what only the edge may
/// say, then the operator's edits, and the edge's own headers last, so that nothing replaces them.
fn outgoing_head(
    exchange: &mut Exchange,
    head: &request::Parts,
    host: &RequestHost,
    body: &Body,
    route: &Route,
    forward: &Forward,
    upgrade: Option<&Upgrade>,
) -> Result<(request::Parts, Option<ClientAddr>), Refusal> {
    let generation = Arc::clone(&exchange.generation);
    let table = &generation.table;
    let client = exchange.client.ok_or(Refusal::ClientUnknown)?;
    let is_local = is_local_person(exchange, head);

    let mut outgoing = Request::new(()).into_parts().0;
    outgoing.method = head.method.clone();
    outgoing.uri = upstream_uri(&head.uri, forward.strip.as_ref())?;
    outgoing.headers.clone_from(&head.headers);
    let fields = &mut outgoing.headers;
    headers::clean_request(fields, &table.trust, exchange.is_peer_trusted(), &table.identity_headers);
    fields.remove(CONTENT_LENGTH);
    if exchange.request_meter.is_some() && body.size_hint().exact().is_none() {
        // Said aloud, because hyper takes a GET for bodiless otherwise, and drops what it has.
        fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers::join_cookies(fields);
    fields.insert(HOST, host.value.clone());
    headers::edit(fields, &route.headers.request, &exchange.values());
    if let Some(upgrade) = upgrade {
        outgoing.method = Method::GET;
        upgrade.write(fields);
    }
    exchange.write_client_certificate(fields);
    let edge = headers::Edge {
        client: (!is_local).then_some(client),
        proto: exchange.scheme(),
        host: &host.value,
        port: host.port.unwrap_or_else(|| exchange.default_port()),
        request_id: &exchange.id,
        prefix: forward.strip.as_ref().map(|strip| &*strip.prefix),
    };
    headers::write_edge(fields, &edge);
    Ok((outgoing, Some(client)))
}

/// The one exception (`attribution = "local"`): a person at this machine, on a local name, who
/// sends no forwarding header. Anything else is told to the gateway as it is.
fn is_local_person(exchange: &Exchange, head: &request::Parts) -> bool {
    exchange.site.as_ref().is_some_and(|site| site.attribution == Attribution::Local)
        && exchange.connection.peer.ip().is_some_and(|ip| ip.is_loopback())
        && exchange.connection.role.address.is_loopback()
        && !trust::has_forwarding_header(&head.headers)
}

/// The target in origin-form, byte for byte; with `strip`, the mount in place of the prefix.
fn upstream_uri(uri: &Uri, strip: Option<&Strip>) -> Result<Uri, Refusal> {
    let target = target(uri);
    let Some(strip) = strip else {
        let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        return Ok(Uri::from(target));
    };
    let rest = target.strip_prefix(&*strip.prefix).unwrap_or(target);
    let slash = if rest.starts_with('/') { "" } else { "/" };
    format!("{}{slash}{rest}", strip.mount).parse().map_err(|_| Refusal::AmbiguousPath)
}
