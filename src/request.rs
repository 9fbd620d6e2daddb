//! The story of one request: head → site → route → policy → forward → response.
//!
//! Steps run in this order because each may only rely on those above it. Whatever happens, the
//! client gets one answer and the log gets one record (`request/exchange.rs`). No path sends
//! anything upstream without the edge's own forwarding headers, written last.

pub mod auth;
pub mod exchange;
mod hook;
mod host;
mod judge;
mod limit;
mod outgoing;
pub mod reply;
mod service;
pub mod upgrade;

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body as _;

use crate::access_log::AccessLog;
use crate::addr::{HostBuffer, ListenAddr, PeerAddr};
use crate::body::collect::{CollectError, collect};
use crate::body::{Body, BodyError, Bounds, Inbound, Meter, Stream};
use crate::drain::{Drain, Phase};
use crate::forward::tunnel::{Duplex, End};
use crate::forward::upload::Upload;
use crate::forward::{Plan, Upstreams};
use crate::metrics::Meters;
use crate::policy::limits::Limits;
use crate::policy::password::Passwords;
use crate::policy::{self, headers};
use crate::refusal::Refusal;
use crate::site::route::{Action, Forward, NoRoute, Route};
use crate::site::{Role, Site, SiteTable};
use crate::snapshot::Snapshot;
use crate::tls::TlsFacts;
use crate::tls::proofs::{ProofBoard, WELL_KNOWN};
use exchange::Exchange;
use host::RequestHost;
pub use limit::Places;
use outgoing::outgoing_head;
use reply::{Reply, ReplyBody};
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
    /// What a CA may ask for.
    pub proofs: Arc<ProofBoard>,
    /// Who has logged in.
    pub auth: Arc<Passwords>,
    /// This worker's connections to endpoints.
    pub upstreams: Upstreams,
    /// What this worker counts with.
    pub metrics: Meters,
    /// The live state of limits, of all workers.
    pub limits: Arc<Limits>,
}

/// What a request knows of the connection that it came on.
#[derive(Debug)]
pub struct Connection {
    /// Who opened it; in the words of its preface where it had one.
    pub peer: PeerAddr,
    /// Who sent the preface of the PROXY protocol, where one came.
    pub via: Option<PeerAddr>,
    /// Where it was accepted; where its client connected to, in the words of its preface.
    pub local: Option<SocketAddr>,
    /// On which listener.
    pub role: Arc<Role>,
    /// Its handshake; `None` for cleartext.
    pub tls: Option<Rc<TlsFacts>>,
    /// Requests that began on it.
    pub requests: Cell<u64>,
    /// What it takes of what is counted.
    pub places: Rc<Places>,
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
    fn tunnel(&self) -> ClientSide;
}

/// The client's side of a tunnel, as soon as it has switched; `None` when it went away before.
pub type ClientSide = Pin<Box<dyn Future<Output = Option<End<Box<dyn Duplex>>>>>>;

/// Answers one request. The record is written when the response body has gone.
// No async function: it would keep its arguments beside what it makes of them.
pub fn serve(
    parts: Rc<Parts>,
    connection: Rc<Connection>,
    carrier: Rc<dyn Carrier>,
    request: Request<Option<Inbound>>,
) -> impl Future<Output = Response<ReplyBody>> {
    connection.requests.set(connection.requests.get() + 1);
    let (mut head, incoming) = request.into_parts();
    let mut exchange = Exchange::begin(parts, connection, carrier, &head);
    async move {
        match answer(&mut exchange, &mut head, incoming).await {
            Ok(reply) => exchange.finish(reply),
            Err(refusal) => exchange.refuse(refusal),
        }
    }
}

/// Decides one request.
async fn answer(
    exchange: &mut Exchange,
    head: &mut request::Parts,
    incoming: Option<Inbound>,
) -> Result<Reply, Refusal> {
    let generation = Arc::clone(&exchange.generation);
    let table = &generation.table;

    if let Some(path) = &table.edge.admin.health
        && let Some(health) = health(exchange, head, path)
    {
        return Ok(Reply::own(health)); // before the host: who asks by address must find it (N-09)
    }
    let upgrade = Upgrade::wanted(head)?;
    let host = RequestHost::of(head)?;
    if let Some(proof) = proof(exchange, head, &host) {
        return Ok(Reply::own(proof)); // before routing: no rule of a site may hide it
    }
    let found = host.place(&exchange.connection, table)?;
    let site = Arc::clone(found.site);
    exchange.site = Some(Arc::clone(&site));
    exchange.resolve_client(table, &head.headers);
    // In cleartext only now: a handshake has told before.
    exchange.connection.places.enter_site(&exchange.parts.limits, table, &site, exchange.connection.peer)?;
    if !exchange.connection.role.is_tls && site.tls.is_some() {
        return Ok(Reply::own(to_https(exchange, table, &site, &host, &head.uri)));
    }
    if found.is_redirected_alias {
        let location =
            format!("{}://{}{}", exchange.scheme(), with_port(site.host.name().as_str(), host.port), target(&head.uri));
        return Ok(Reply::own(redirect(StatusCode::PERMANENT_REDIRECT, &location)));
    }

    // Before the rules of routes, which must not be passed by.
    judge::check_http2(head)?;
    let is_tunnel = upgrade.is_some();
    let route = Arc::clone(site.routes.find(head, is_tunnel).map_err(|none| match none {
        NoRoute::NotFound => Refusal::NoRoute,
        NoRoute::AmbiguousPath => Refusal::AmbiguousPath,
    })?);
    exchange.route = Some(Arc::clone(&route));
    if let Some(access) = &route.access {
        // N-26: who may not enter is not served by another rule either.
        policy::access::admit(access, exchange.guest())?;
    }
    if let Some(limiters) = &route.limiters {
        limit::admit(exchange, limiters, &head.headers, is_tunnel)?;
    }
    exchange.carrier.limit_send(route.timeouts.send);

    // Everything that can be judged by the head is judged before a byte of the body is read.
    policy::check_head(head, &route.limits).map_err(|_| Refusal::HeadTooLarge)?;
    judge::check_length(head, incoming.as_ref(), &route.limits)?;
    if let Some(origins) = &route.origins
        && !policy::origin_allowed(origins, head, is_tunnel)
    {
        return Err(Refusal::Origin);
    }
    // Boxed, as what is rare: every request would have to have room for it.
    if !route.auth.is_empty()
        && let Some(answer) = Box::pin(auth::admit(exchange, head, &host, &route, is_tunnel)).await?
    {
        return Ok(answer);
    }
    if !route.hooks.is_empty() {
        Box::pin(hook::ask_all(exchange, head, &route, is_tunnel)).await?;
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

/// The answer to a load balancer that asks whether the edge serves. It says nothing of upstreams.
fn health(exchange: &Exchange, head: &request::Parts, path: &str) -> Option<Response<Body>> {
    if head.uri.path() != path || !matches!(head.method, Method::GET | Method::HEAD) {
        return None;
    }
    let (status, text) = match exchange.parts.drain.phase() {
        Phase::Serving => (StatusCode::OK, "ok\n"),
        Phase::Draining | Phase::CutTunnels | Phase::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

/// The answer to a CA that looks for a proof of an order that runs (RFC 8555 8.3).
fn proof(exchange: &Exchange, head: &request::Parts, host: &RequestHost) -> Option<Response<Body>> {
    let path = head.uri.path();
    if !path.starts_with(WELL_KNOWN) || !matches!(head.method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut buffer = HostBuffer::new();
    let name = buffer.normalise(host.name()).ok()?;
    let mut response = Response::new(Body::full(exchange.parts.proofs.http01(name, path)?));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Some(response)
}

/// Sends the request upstream and makes the endpoint's response ready for the client.
async fn pass_on(
    exchange: &mut Exchange,
    head: &mut request::Parts,
    incoming: Option<Inbound>,
    host: &RequestHost,
    route: &Arc<Route>,
    forward: &Forward,
    upgrade: Option<Upgrade>,
) -> Result<Reply, Refusal> {
    // Where it is not known for whom we ask, nothing is forwarded, and no body read.
    let client = exchange.client.ok_or(Refusal::ClientUnknown)?;
    let body = request_body(exchange, incoming, route, forward).await?;
    let outgoing = outgoing_head(exchange, head, host, client, route, forward, upgrade.as_ref())?;
    exchange.sent_upstream();
    let plan = Plan {
        upstream: &forward.upstream,
        timeouts: &route.timeouts,
        host: &forward.host,
        client: Some(client),
        is_tunnel: upgrade.is_some(),
        meter: exchange.request_meter.as_ref().filter(|_| !body.is_end_stream()),
    };
    let mut upload = Some(Upload::new(outgoing, body));
    let answered = exchange.parts.upstreams.send(&mut upload, &plan).await;
    let answer = match answered {
        // The protocol saw more of a broken body than its error tells.
        Err(Refusal::BadBody) => return Err(exchange.carrier.body_fault().unwrap_or(Refusal::BadBody)),
        answered => answered?,
    };
    exchange.answered(&answer);
    match upgrade {
        Some(upgrade) => upgrade::conclude(exchange, answer, upgrade, forward),
        None => Ok(reply::from_endpoint(exchange, answer, forward)),
    }
}

/// A request on the plain listener for a site with TLS is sent to its https address.
fn to_https(exchange: &Exchange, table: &SiteTable, site: &Site, host: &RequestHost, uri: &Uri) -> Response<Body> {
    let listener = table.listener(site.listener);
    let port = listener.https.iter().find_map(|address| match address {
        ListenAddr::Tcp(address) => Some(address.port()),
        _ => None,
    });
    // Behind a mapping of ports (container, load balancer) a client that named no port means the standard ones.
    let connection = &exchange.connection;
    let is_behind = connection.via.is_some() || connection.local.is_some_and(|local| local.port() != 80);
    let is_mapped = host.port.is_none() && is_behind;
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

/// The body as it goes upstream: streamed, or collected first where the route says so.
async fn request_body(
    exchange: &mut Exchange,
    incoming: Option<Inbound>,
    route: &Route,
    forward: &Forward,
) -> Result<Body, Refusal> {
    let Some(incoming) = incoming.filter(|incoming| !incoming.is_end_stream()) else { return Ok(Body::Empty) };
    // A body that is announced as empty and goes on (HTTP/2) may yet turn out to be none: nothing is complete before its end
    // has come (RFC 9113 8.1.1).
    let is_open_end = incoming.size_hint().exact() == Some(0);
    let meter = Meter::new();
    exchange.request_meter = Some(Rc::clone(&meter));
    let says_who = !exchange.generation.table.identity_headers.is_empty();
    let clean = if says_who { headers::drop_trailers } else { headers::clean_trailers };
    // Who streams without a length may rightly have long little to say.
    let is_rated = forward.collect_request || incoming.size_hint().exact().is_some();
    let rate = if is_rated { route.limits.body_rate } else { 0 };
    let bounds = Bounds { bytes: route.limits.body, silence: route.timeouts.request_body, rate };
    let stream = Stream::new(incoming, bounds, clean, meter);
    let body = Body::Stream(Box::new(stream));
    if !forward.collect_request && !is_open_end {
        return Ok(body);
    }
    // Boxed, as what is rare: every request would have to have room for it.
    match Box::pin(collect(body)).await {
        Ok(collected) => Ok(Body::Collected(Box::new(collected))),
        Err(CollectError::Body(BodyError::TooLarge)) => Err(Refusal::BodyTooLarge),
        Err(CollectError::Body(BodyError::Stalled)) => Err(Refusal::BodyTimeout),
        Err(CollectError::Body(BodyError::TooSlow)) => Err(Refusal::BodyTooSlow),
        Err(CollectError::Body(_)) => Err(exchange.carrier.body_fault().unwrap_or(Refusal::BadBody)),
        Err(CollectError::Full) => Err(Refusal::Busy),
        Err(CollectError::Storage(error)) => {
            tracing::error!(%error, "cannot keep a request body: is the temporary directory full or read-only?");
            Err(Refusal::Busy)
        }
    }
}
