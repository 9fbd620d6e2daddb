//! Forwarding: choose an endpoint, send the request, and get a response head or a refusal.
//!
//! The retry rule (RFC 9110 9.2.2): a request is repeated once, only when it has no body and an
//! idempotent method, and only when it was lost on a reused connection before the first response
//! byte. A request of which nothing was written is not repeated, it is sent: that is always allowed.

pub mod answer;
pub mod balance;
pub mod board;
pub mod connect;
pub mod gate;
pub mod handshake;
pub mod health;
mod lease;
pub mod link;
pub mod pool;
pub mod tunnel;
pub mod upload;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use crate::addr::ClientAddr;
use crate::body::{BodyError, Meter};
use crate::framing::sending::SendError;
use crate::refusal::{Failure, Refusal};
use crate::site::SiteTable;
use crate::site::policy::{HostPolicy, Timeouts};
use crate::site::upstream::{Bound, Endpoint, EndpointAddr, Probe, Upstream};
pub use answer::Answer;
use answer::{AnswerBody, NoHead};
use balance::Load;
use board::{Board, Health, Standing};
use connect::DialError;
use gate::{Gate, Place};
use lease::{Lease, Rest};
use link::Link;
use pool::{EndpointFacts, Live, Pool};
use upload::Upload;

/// All upstreams, as one worker sees them.
#[derive(Debug)]
pub struct Upstreams {
    pool: Pool,
    /// The bounds that this worker has met, found once a second, and not for each request.
    gates: RefCell<HashMap<Arc<str>, Arc<Gate>>>,
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

/// How one attempt on one connection failed.
enum Lost {
    /// The connection ended in one of two ways, with the endpoint's answer not begun.
    Closed(Failure, Box<str>),
    /// It was seen, or is at fault itself.
    Failed(Refusal),
}

impl Upstreams {
    /// Nothing known yet.
    pub fn new(board: Arc<Board>) -> Self {
        Self { pool: Pool::new(board), gates: RefCell::default(), turn: Cell::new(0), told_held: Cell::new(None) }
    }

    /// Forgets what no site needs any more, and idle connections that are too old.
    pub fn sweep(&self, table: &SiteTable) {
        self.pool.sweep(table);
        self.gates.borrow_mut().clear();
    }

    /// What is known of all endpoints that were used.
    pub fn facts(&self) -> Vec<EndpointFacts> {
        self.pool.facts()
    }

    /// Sends a request, which is taken, and waits for the head of its response.
    ///
    /// # Errors
    /// A refusal that says which endpoint failed, and how.
    pub async fn send(&self, upload: &mut Option<Upload>, plan: &Plan<'_>) -> Result<Answer, Refusal> {
        let hold = if plan.meter.is_none() { plan.upstream.hold } else { Duration::ZERO };
        let mut place = match &plan.upstream.bound {
            // Boxed, as what is rare: every request would have to have room for it.
            Some(bound) => Some(Box::pin(self.enter(plan.upstream, bound)).await?),
            None => None,
        };
        let DialError { failure, detail } = match self.send_to_any(upload, plan, &mut place).await? {
            Sent::Answered(answer) => return Ok(answer),
            Sent::Nowhere(failure) => failure,
        };
        drop(place);
        // A certificate that is not accepted will not be so by waiting.
        if hold.is_zero() || failure == Failure::Tls {
            return Err(Refusal::Unreachable { failure, detail });
        }
        // Boxed, as what is rare: every request would have to have room for it.
        Box::pin(self.hold(upload, plan, hold, DialError { failure, detail })).await
    }

    /// Takes a place among the upstream's requests.
    async fn enter(&self, upstream: &Upstream, bound: &Bound) -> Result<Place, Refusal> {
        let known = self.gates.borrow().get(&upstream.name).map(Arc::clone);
        let gate = known.unwrap_or_else(|| {
            let gate = self.pool.board().gate(upstream, bound);
            self.gates.borrow_mut().insert(Arc::clone(&upstream.name), Arc::clone(&gate));
            gate
        });
        gate.enter(bound).await.map_err(|why| Refusal::Overload { detail: format!("{}: {why}", upstream.name).into() })
    }

    /// Waits until the upstream is back, and sends the request then.
    async fn hold(
        &self,
        upload: &mut Option<Upload>,
        plan: &Plan<'_>,
        hold: Duration,
        mut last: DialError,
    ) -> Result<Answer, Refusal> {
        let begun = Instant::now();
        let upstream = plan.upstream;
        let live = self.pool.live(&upstream.endpoints[0]);
        let pulse = upstream.probe.as_ref().map(|probe| self.pool.board().pulse(&upstream.endpoints[0], probe));
        let _held = live.hold();
        loop {
            self.tell_held(&last.detail, hold);
            let recovered = async {
                match &pulse {
                    Some(pulse) => pulse.recovered.notified().await,
                    None => std::future::pending().await,
                }
            };
            let is_worth_it = tokio::select! {
                is_worth_it = live.queue.wait(begun + hold) => is_worth_it,
                () = recovered => true,
            };
            if !is_worth_it {
                return Err(match last.failure {
                    failure @ (Failure::NotReady | Failure::Restarting) => {
                        Refusal::Unreachable { failure, detail: last.detail }
                    }
                    _ => Refusal::Held { detail: last.detail },
                });
            }
            let held = Some(begun.elapsed());
            let mut place = match &upstream.bound {
                Some(bound) => match self.enter(upstream, bound).await {
                    Ok(place) => Some(place),
                    // Many are let go at once: those that find no place wait on, as long as they may.
                    Err(_) if begun.elapsed() < hold => continue,
                    Err(refusal) => return Err(refusal),
                },
                None => None,
            };
            match self.send_to_any(upload, plan, &mut place).await? {
                Sent::Answered(answer) => {
                    live.queue.let_all_go();
                    return Ok(Answer { held, ..answer });
                }
                Sent::Nowhere(DialError { failure: failure @ Failure::Tls, detail }) => {
                    return Err(Refusal::Unreachable { failure, detail });
                }
                Sent::Nowhere(error) => last = error,
            }
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
    async fn send_to_any(
        &self,
        upload: &mut Option<Upload>,
        plan: &Plan<'_>,
        place: &mut Option<Place>,
    ) -> Result<Sent, Refusal> {
        let endpoints = &plan.upstream.endpoints;
        let has_others = endpoints.len() > 1;
        let mut last = None;
        for (turn, at) in self.order(plan).enumerate() {
            let endpoint = &endpoints[at];
            let live = self.pool.live(endpoint);
            if let Some(probe) = &plan.upstream.probe
                && live.health(endpoint, probe, self.pool.board()) == Health::NotReady
            {
                // Those after it are no better.
                last.get_or_insert_with(|| self.shut(plan.upstream, probe));
                break;
            }
            if let Some(upload) = upload.as_mut().filter(|_| turn == 0 || *plan.host == HostPolicy::Upstream) {
                upload.write_head(host(plan.host, endpoint).as_ref());
            }
            let now = Instant::now();
            if !plan.is_tunnel
                && let Some(link) = live.take(endpoint, now)
            {
                match attempt(link, upload, &live, endpoint, plan, now, place).await {
                    Ok(answer) => return Ok(Sent::Answered(answer)),
                    // The endpoint gave up an idle connection while we took it for a good one.
                    Err(Lost::Closed(failure, detail)) => match upload {
                        Some(upload) if upload.is_unsent() || upload.is_repeatable() => upload.rewind(),
                        _ => return Err(failed(&live, has_others, Refusal::Failed { failure, detail })),
                    },
                    Err(Lost::Failed(refusal)) => return Err(failed(&live, has_others, refusal)),
                }
            }
            let tls = tls_of(endpoint, &live).map_err(|refusal| failed(&live, has_others, refusal))?;
            // Boxed, as what is rare: every request would have to have room for it.
            match Box::pin(connect::dial(endpoint, tls, plan.timeouts.connect)).await {
                Ok(link) => match attempt(link, upload, &live, endpoint, plan, Instant::now(), place).await {
                    Ok(answer) => return Ok(Sent::Answered(answer)),
                    Err(Lost::Failed(refusal)) => return Err(failed(&live, has_others, refusal)),
                    Err(Lost::Closed(failure, detail)) => match upload {
                        Some(upload) if upload.is_unsent() => {
                            upload.rewind();
                            let detail = format!("{} closed a new connection at once", endpoint.label).into();
                            last = Some(unreached(&live, has_others, DialError { failure, detail }));
                        }
                        _ => return Err(failed(&live, has_others, Refusal::Failed { failure, detail })),
                    },
                },
                Err(error) => {
                    live.avoid();
                    last = Some(unreached(&live, has_others, error));
                }
            }
        }
        Ok(Sent::Nowhere(last.unwrap_or(DialError { failure: Failure::Unroutable, detail: "no endpoint".into() })))
    }

    /// Why nobody is asked at all: every endpoint says itself, by 5xx to its probes, that it takes no requests now.
    ///
    /// Silence does not shut an upstream. With another endpoint the healthy one is asked; without one the probe may be what
    /// is wrong, or the gateway only busy, and a request that is tried has the outcome that it would have without probes:
    /// a check may never be worse than none. The endpoint's own word is another matter: whoever is not ready answers
    /// requests wrongly, or is overrun by them while it starts.
    fn shut(&self, upstream: &Upstream, probe: &Arc<Probe>) -> DialError {
        let mut why = String::new();
        for endpoint in &upstream.endpoints {
            let pulse = self.pool.board().pulse(endpoint, probe);
            why = format!("{}: {}", endpoint.label, pulse.why());
        }
        DialError { failure: Failure::NotReady, detail: why.into() }
    }

    fn order(&self, plan: &Plan<'_>) -> impl Iterator<Item = usize> + use<> {
        let endpoints = &plan.upstream.endpoints;
        let mut several = Vec::new();
        if endpoints.len() > 1 {
            let turn = self.turn.get();
            self.turn.set(turn.wrapping_add(1));
            let loads: Vec<Load> = endpoints.iter().map(|endpoint| self.load(endpoint, plan.upstream, turn)).collect();
            several = balance::order(plan.upstream.balance, &loads, turn % endpoints.len(), plan.client);
        }
        // The usual one endpoint needs no list.
        let one = 0..usize::from(endpoints.len() == 1);
        one.chain(several)
    }

    /// What there is to choose an endpoint by.
    fn load(&self, endpoint: &Endpoint, upstream: &Upstream, turn: usize) -> Load {
        let live = self.pool.live(endpoint);
        let health = upstream.probe.as_ref().map(|probe| live.health(endpoint, probe, self.pool.board()));
        let standing = match health {
            Some(Health::NotReady) => Standing::NotReady,
            Some(Health::Silent) => Standing::Unhealthy,
            Some(Health::Healthy | Health::Untested) | None if live.is_avoided() => Standing::Avoided,
            Some(Health::Healthy | Health::Untested) | None => live.vitals.standing(turn),
        };
        Load { in_flight: live.in_flight(), standing }
    }
}

/// Notes a failure that a request was lost by. What the client did is no fault of the endpoint's.
fn failed(live: &Live, has_others: bool, refusal: Refusal) -> Refusal {
    if let Refusal::Failed { failure, detail } | Refusal::Unreachable { failure, detail } = &refusal {
        live.failed(*failure, detail, has_others);
    }
    refusal
}

/// Notes that an endpoint did not take a connection, and says so. O-08: a moment after it has said that it goes away,
/// that is a restart.
fn unreached(live: &Live, has_others: bool, error: DialError) -> DialError {
    live.failed(error.failure, &error.detail, has_others);
    match error.failure {
        Failure::Refused | Failure::Closed | Failure::Reset if live.vitals.is_restarting() => {
            let detail = format!("{}; it said a moment ago that it goes away", error.detail).into();
            DialError { failure: Failure::Restarting, detail }
        }
        _ => error,
    }
}

#[allow(clippy::large_enum_variant, reason = "short-lived, and almost always the large one")]
enum Sent {
    Answered(Answer),
    Nowhere(DialError),
}

/// The `Host` that the endpoint gets in place of the client's.
fn host(policy: &HostPolicy, endpoint: &Endpoint) -> Option<HeaderValue> {
    match policy {
        HostPolicy::Preserve => None,
        HostPolicy::Literal(value) => Some(value.clone()),
        HostPolicy::Upstream => {
            // A path is no authority; `localhost` is what servers on unix sockets expect.
            let name = if matches!(endpoint.address, EndpointAddr::Unix(_)) { "localhost" } else { &endpoint.label };
            HeaderValue::from_str(name).ok()
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

/// Sends on one connection and waits for the response head.
async fn attempt(
    mut link: Link,
    upload: &mut Option<Upload>,
    live: &Rc<Live>,
    endpoint: &Arc<Endpoint>,
    plan: &Plan<'_>,
    now: Instant,
    place: &mut Option<Place>,
) -> Result<Answer, Lost> {
    let in_flight = live.enter();
    let label = &endpoint.label;
    let is_head = upload.as_ref().is_some_and(Upload::is_head);
    let mut deadline = now + plan.timeouts.response_head;
    let mut is_writing = true;
    let mut is_cut = false;
    let mut interim = 0;
    let mut head = poll_fn(|cx| {
        if let Some(upload) = upload.as_mut().filter(|_| is_writing) {
            match upload.poll_send(cx, link.wire()) {
                Poll::Ready(Err(SendError::Body(error))) => {
                    return Poll::Ready(Err(Lost::Failed(body_refusal(&error))));
                }
                // The endpoint takes no more. It may have said why, so its answer is still read.
                Poll::Ready(sent) => {
                    is_writing = false;
                    is_cut = sent.is_err();
                }
                Poll::Pending => {}
            }
        }
        match answer::poll_head(&mut link, cx, is_head, &mut interim) {
            Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
            Poll::Ready(Err(NoHead::Malformed(why))) => {
                let detail = format!("{label} sent a malformed answer: {why}").into();
                return Poll::Ready(Err(Lost::Failed(Refusal::Failed { failure: Failure::Protocol, detail })));
            }
            Poll::Ready(Err(NoHead::Lost(error))) => {
                let (failure, detail) = match error {
                    Some(error) if is_reset(&error) => {
                        (Failure::Reset, format!("{label} reset the connection before it had answered"))
                    }
                    Some(error) => (Failure::Closed, format!("{label} closed the connection: {error}")),
                    None => (Failure::Closed, format!("{label} closed the connection before it had answered")),
                };
                let detail = detail.into();
                // An interim response says that it was seen.
                let lost = if link.intake.read.is_empty() && interim == 0 {
                    Lost::Closed(failure, detail)
                } else {
                    Lost::Failed(Refusal::Failed { failure, detail })
                };
                return Poll::Ready(Err(lost));
            }
            Poll::Pending => {}
        }
        // The wait for the response begins when the last piece of the request has come.
        while link.is_late(cx, deadline) {
            let begun = plan.meter.map_or(deadline, |meter| meter.progress() + plan.timeouts.response_head);
            if begun <= deadline {
                let seconds = plan.timeouts.response_head.as_secs_f32();
                let detail = format!("{label} did not answer within {seconds} s").into();
                let failure = Failure::ResponseTimeout;
                return Poll::Ready(Err(Lost::Failed(Refusal::Failed { failure, detail })));
            }
            deadline = begun;
        }
        Poll::Pending
    })
    .await?;
    if head.status() == StatusCode::SWITCHING_PROTOCOLS && !plan.is_tunnel {
        let detail = format!("{label} sent a malformed answer: it switches protocols without being asked").into();
        return Err(Lost::Failed(Refusal::Failed { failure: Failure::Protocol, detail }));
    }
    if is_cut {
        // To the endpoint, what comes next would be the rest of this request.
        head.close();
    }
    let rest = upload.take().filter(|_| is_writing).map(|upload| write_on(upload, &link, plan));
    live.vitals.answered(head.status() == StatusCode::SERVICE_UNAVAILABLE);
    let via_port = link.via_port;
    live.succeeded(now);
    let (live, place) = (Rc::clone(live), place.take());
    let lease = Lease { link, live, endpoint: Arc::clone(endpoint), rest, in_flight, place };
    let response = AnswerBody::new(head, lease, plan.timeouts.idle);
    Ok(Answer { held: None, response, endpoint: Arc::clone(endpoint), via_port })
}

/// A process that died, or one that closed without having read what we sent.
fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// The endpoint has answered already: the request goes on beside the response, so that neither waits for the other.
fn write_on(mut upload: Upload, link: &Link, plan: &Plan<'_>) -> Rest {
    let wire = Rc::clone(link.wire());
    let writing = tokio::task::spawn_local(async move { poll_fn(|cx| upload.poll_send(cx, &wire)).await.is_ok() });
    Rest::new(writing, plan.meter.map(Rc::clone))
}

/// What the client is told when its request body broke off.
fn body_refusal(error: &BodyError) -> Refusal {
    match error {
        BodyError::TooLarge => Refusal::BodyTooLarge,
        BodyError::Stalled => Refusal::BodyTimeout,
        BodyError::TooSlow => Refusal::BodyTooSlow,
        BodyError::Broken(_) | BodyError::Storage(_) => Refusal::BadBody,
    }
}
