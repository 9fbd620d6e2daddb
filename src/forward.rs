//! Forwarding: choose an endpoint, send the request, and get a response head or a refusal.
//!
//! The retry rule (RFC 9110 9.2.2): a request is repeated once, only when it has no body and an
//! idempotent method, and only when it was lost on a reused connection before the first response
//! byte. A request of which nothing was written is not repeated, it is sent: that is always allowed.

pub mod balance;
pub mod connect;
pub mod pool;
pub mod tunnel;

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until, timeout};

use crate::addr::ClientAddr;
use crate::body::{Body, Meter, MeterState};
use crate::refusal::{Failure, Refusal};
use crate::site::SiteTable;
use crate::site::policy::{HostPolicy, Timeouts};
use crate::site::upstream::{Endpoint, EndpointAddr, Upstream};
use balance::Load;
use connect::{Busy, DialError, Link};
use pool::{InFlight, Live, Pool};

/// All upstreams, as one worker sees them.
#[derive(Debug, Default)]
pub struct Upstreams {
    pool: Pool,
    turn: Cell<usize>,
    told_held: Cell<Option<Instant>>,
}

/// What is sent and under which rules.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where to.
    pub upstream: &'a Upstream,
    /// How long to wait.
    pub timeouts: &'a Timeouts,
    /// Which `Host` it carries.
    pub host: &'a HostPolicy,
    /// Who asks, for `hash:client`.
    pub client: Option<ClientAddr>,
    /// Whether it asks for a tunnel: those get a connection of their own.
    pub is_tunnel: bool,
    /// The request body's meter; `None` without a body.
    pub meter: Option<&'a Rc<Meter>>,
}

/// A response head, and the connection that its body comes from.
#[derive(Debug)]
pub struct Answer {
    /// How long the request was held before anything took it.
    pub held: Option<Duration>,
    /// The response; its framing is sound.
    pub response: Response<Incoming>,
    /// Keeps or closes the connection.
    pub lease: Lease,
}

/// A connection in use. Dropped, it closes; completed, it serves again.
#[derive(Debug)]
pub struct Lease {
    link: Link,
    busy: Busy,
    live: Rc<Live>,
    endpoint: Arc<Endpoint>,
    request: Option<Rc<Meter>>,
    in_flight: InFlight,
}

impl Lease {
    /// The endpoint that answered.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Our source port.
    pub fn via_port(&self) -> Option<u16> {
        self.link.via_port
    }

    /// The connection has become a tunnel: only its place in the count stays.
    pub fn into_in_flight(self) -> InFlight {
        self.busy.release();
        self.in_flight
    }

    /// The response has been read to its end. The connection is kept only if the request was sent
    /// to its end too: otherwise the endpoint would take the rest for the next request.
    pub fn complete(self) {
        let Self { mut link, busy, live, endpoint, request, in_flight } = self;
        if request.as_ref().is_some_and(|meter| meter.state() != MeterState::Ended) {
            return;
        }
        if request.is_none() || link.sender.is_ready() {
            busy.release();
            return live.give_back(link, endpoint.max_idle);
        }
        // All of the request is here, but not all of it is sent. An endpoint that answers early mostly reads
        // the rest; whoever came next would have to wait until it has.
        tokio::task::spawn_local(async move {
            let _in_flight = in_flight;
            if matches!(timeout(UNREAD, link.sender.ready()).await, Ok(Ok(()))) {
                busy.release();
                live.give_back(link, endpoint.max_idle);
            }
        });
    }
}

/// How long an endpoint that has answered may take to read the rest of a request. Our choice: what is read
/// later than that costs more than a new connection.
const UNREAD: Duration = Duration::from_secs(1);

/// How one attempt on one connection failed.
enum Lost {
    /// Nothing was written: here is the request again.
    Unsent(Box<Request<Body>>),
    /// It may have been seen.
    Failed(Refusal),
}

impl Upstreams {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what no site needs any more, and idle connections that are too old.
    pub fn sweep(&self, table: &SiteTable) {
        self.pool.sweep(table);
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// A refusal that says which endpoint failed, and how.
    pub async fn send(&self, mut request: Request<Body>, plan: &Plan<'_>) -> Result<Answer, Refusal> {
        let hold = if plan.meter.is_none() { plan.upstream.hold } else { Duration::ZERO };
        let begun = Instant::now();
        let mut held = None;
        loop {
            let (lost, failure) = match self.send_to_any(request, plan).await? {
                Sent::Answered(answer) => {
                    if held.is_some() {
                        self.pool.live(&plan.upstream.endpoints[0]).queue.let_all_go();
                    }
                    return Ok(Answer { held, ..*answer });
                }
                Sent::Nowhere(request, failure) => (request, failure),
            };
            let DialError { failure, detail } = failure;
            // A certificate that is not accepted will not be so by waiting.
            if hold.is_zero() || failure == Failure::Tls {
                return Err(Refusal::Unreachable { failure, detail });
            }
            self.tell_held(&detail, hold);
            if !self.pool.live(&plan.upstream.endpoints[0]).queue.wait(begun + hold).await {
                return Err(Refusal::Held { detail });
            }
            held = Some(begun.elapsed());
            request = *lost;
        }
    }

    /// One line for an outage, not one a request.
    fn tell_held(&self, detail: &str, hold: Duration) {
        const AGAIN: Duration = Duration::from_secs(30);
        if self.told_held.get().is_none_or(|told| told.elapsed() > AGAIN) {
            self.told_held.set(Some(Instant::now()));
            tracing::warn!(
                event = "holding",
                "{detail}: requests without a body are held for up to {} s",
                hold.as_secs()
            );
        }
    }

    /// Tries the endpoints in order until one takes the connection.
    async fn send_to_any(&self, request: Request<Body>, plan: &Plan<'_>) -> Result<Sent, Refusal> {
        let endpoints = &plan.upstream.endpoints;
        let mut request = Box::new(request);
        let mut last = None;
        for at in self.order(plan) {
            let endpoint = &endpoints[at];
            let live = self.pool.live(endpoint);
            set_host(request.headers_mut(), plan.host, endpoint);
            if !plan.is_tunnel
                && let Some(link) = live.take(endpoint)
            {
                let copy = copy_for_retry(&request, plan);
                match attempt(link, *request, &live, endpoint, plan).await {
                    Ok(answer) => return Ok(Sent::Answered(Box::new(answer))),
                    Err(Lost::Unsent(back)) => request = back,
                    Err(Lost::Failed(Refusal::Failed { failure: Failure::Closed, detail })) => match copy {
                        Some(copy) => request = Box::new(copy),
                        None => return Err(Refusal::Failed { failure: Failure::Closed, detail }),
                    },
                    Err(Lost::Failed(refusal)) => return Err(refusal),
                }
            }
            let tls = tls_of(endpoint, &live)?;
            // Boxed, as what is rare: every request would have to have room for it.
            match Box::pin(connect::dial(endpoint, tls, plan.timeouts.connect)).await {
                Ok(link) => match attempt(link, *request, &live, endpoint, plan).await {
                    Ok(answer) => return Ok(Sent::Answered(Box::new(answer))),
                    Err(Lost::Failed(refusal)) => return Err(refusal),
                    Err(Lost::Unsent(back)) => {
                        request = back;
                        let detail = format!("{} closed a new connection at once", endpoint.label).into();
                        last = Some(DialError { failure: Failure::Closed, detail });
                    }
                },
                Err(error) => {
                    live.avoid();
                    last = Some(error);
                }
            }
        }
        let failure = last.unwrap_or(DialError { failure: Failure::Unroutable, detail: "no endpoint".into() });
        Ok(Sent::Nowhere(request, failure))
    }

    fn order(&self, plan: &Plan<'_>) -> Vec<usize> {
        let endpoints = &plan.upstream.endpoints;
        if endpoints.len() == 1 {
            return vec![0];
        }
        let loads: Vec<Load> = endpoints
            .iter()
            .map(|endpoint| {
                let live = self.pool.live(endpoint);
                Load { in_flight: live.in_flight(), is_avoided: live.is_avoided() }
            })
            .collect();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        balance::order(plan.upstream.balance, &loads, turn % endpoints.len(), plan.client)
    }
}

enum Sent {
    Answered(Box<Answer>),
    Nowhere(Box<Request<Body>>, DialError),
}

fn set_host(headers: &mut HeaderMap, policy: &HostPolicy, endpoint: &Endpoint) {
    match policy {
        HostPolicy::Preserve => {}
        HostPolicy::Literal(value) => {
            headers.insert(HOST, value.clone());
        }
        HostPolicy::Upstream => {
            // A path is no authority; `localhost` is what servers on unix sockets expect.
            let name = if matches!(endpoint.address, EndpointAddr::Unix(_)) { "localhost" } else { &endpoint.label };
            if let Ok(value) = HeaderValue::from_str(name) {
                headers.insert(HOST, value);
            }
        }
    }
}

fn tls_of(endpoint: &Endpoint, live: &Live) -> Result<Option<Arc<rustls::ClientConfig>>, Refusal> {
    let Some(policy) = &endpoint.tls else { return Ok(None) };
    if let Some(config) = live.tls.get() {
        return Ok(Some(Arc::clone(config)));
    }
    match crate::tls::client::client_config(policy) {
        Ok(config) => Ok(Some(Arc::clone(live.tls.get_or_init(|| config)))),
        Err(error) => Err(Refusal::Unreachable { failure: Failure::Tls, detail: error.to_string().into() }),
    }
}

/// The same request again, if it may be repeated. Extensions (upgrades) stay with the first.
fn copy_for_retry(request: &Request<Body>, plan: &Plan<'_>) -> Option<Request<Body>> {
    if plan.meter.is_some() || !is_idempotent(request.method()) {
        return None;
    }
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// RFC 9110 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE].contains(method)
}

/// Sends on one connection and waits for the response head.
async fn attempt(
    mut link: Link,
    request: Request<Body>,
    live: &Rc<Live>,
    endpoint: &Arc<Endpoint>,
    plan: &Plan<'_>,
) -> Result<Answer, Lost> {
    let in_flight = live.enter();
    let failed = |failure, detail: String| Lost::Failed(Refusal::Failed { failure, detail: detail.into() });
    let label = &endpoint.label;
    let busy = link.busy();
    // Idle connections are ready. Should one not be, the request goes elsewhere.
    if !matches!(timeout(plan.timeouts.connect, link.sender.ready()).await, Ok(Ok(()))) {
        return Err(Lost::Unsent(Box::new(request)));
    }
    let mut sending = pin!(link.sender.try_send_request(request));
    let mut deadline = Instant::now() + plan.timeouts.response_head;
    let sent = loop {
        tokio::select! {
            sent = &mut sending => break sent,
            () = sleep_until(deadline) => {
                // The wait for the response begins when the last piece of the request has come.
                let begun = plan.meter.map_or(deadline, |meter| meter.progress() + plan.timeouts.response_head);
                if begun <= deadline {
                    let seconds = plan.timeouts.response_head.as_secs_f32();
                    return Err(failed(Failure::ResponseTimeout, format!("{label} did not answer within {seconds} s")));
                }
                deadline = begun;
            }
        }
    };
    let response = match sent {
        Ok(response) => response,
        Err(mut error) => {
            if let Some(request) = error.take_message() {
                return Err(Lost::Unsent(Box::new(request)));
            }
            let error = error.into_error();
            return Err(match plan.meter.map(|meter| meter.state()) {
                Some(MeterState::TooLarge) => Lost::Failed(Refusal::BodyTooLarge),
                Some(MeterState::Stalled) => Lost::Failed(Refusal::BodyTimeout),
                Some(MeterState::Broken) => Lost::Failed(Refusal::BadBody),
                Some(MeterState::Open | MeterState::Ended) | None if error.is_parse() => {
                    failed(Failure::Protocol, format!("{label} sent a malformed answer: {error}"))
                }
                Some(MeterState::Open | MeterState::Ended) | None => {
                    failed(Failure::Closed, format!("{label} closed the connection: {error}"))
                }
            });
        }
    };
    if let Some(why) = framing_fault(&response, plan.is_tunnel) {
        return Err(failed(Failure::Protocol, format!("{label} sent a malformed answer: {why}")));
    }
    let request = plan.meter.map(Rc::clone);
    let lease = Lease { link, busy, live: Rc::clone(live), endpoint: Arc::clone(endpoint), request, in_flight };
    Ok(Answer { held: None, response, lease })
}

/// What hyper would repair or overlook in a response (RFC 9112 6.3): refused, never passed on.
fn framing_fault(response: &Response<Incoming>, is_tunnel: bool) -> Option<&'static str> {
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Some("its transfer coding is not chunked");
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Some("it has a length and a transfer coding");
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        if lengths.next().is_some() || !digits {
            return Some("its length is repeated or not a number");
        }
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !is_tunnel {
        return Some("it switches protocols without being asked");
    }
    None
}
