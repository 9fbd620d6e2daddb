//! Forwarding: choose an endpoint, send the request, and get a response head or a refusal.
//!
//! The retry rule (RFC 9110 9.2.2): a request is repeated once, only when it has no body and an
//! idempotent method, and only when it was lost on a reused connection before the first response
//! byte. A request of which nothing was written is not repeated, it is sent: that is always allowed.

pub mod answer;
pub mod balance;
pub mod connect;
pub mod link;
pub mod pool;
pub mod tunnel;
pub mod upload;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout};

use crate::addr::ClientAddr;
use crate::body::{BodyError, Meter, MeterState};
use crate::framing::sending::SendError;
use crate::refusal::{Failure, Refusal};
use crate::site::SiteTable;
use crate::site::policy::{HostPolicy, Timeouts};
use crate::site::upstream::{Endpoint, EndpointAddr, Upstream};
pub use answer::Answer;
use answer::{AnswerBody, NoHead};
use balance::Load;
use connect::DialError;
use link::Link;
use pool::{EndpointFacts, InFlight, Live, Pool};
use upload::Upload;

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

/// A connection in use. Dropped, it closes; completed, it serves again.
#[derive(Debug)]
pub struct Lease {
    link: Link,
    live: Rc<Live>,
    endpoint: Arc<Endpoint>,
    /// Present when the endpoint has answered before all of the request was written.
    rest: Option<Rest>,
    in_flight: InFlight,
}

/// The rest of a request, written by a task of its own. Dropped, it is cut off.
#[derive(Debug)]
struct Rest {
    writing: Option<JoinHandle<bool>>,
    abort: AbortHandle,
    meter: Option<Rc<Meter>>,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl Lease {
    /// The connection, and the place in the endpoint's count.
    fn into_parts(self) -> (Link, InFlight) {
        (self.link, self.in_flight)
    }

    /// The response has been read to its end. The connection is kept only if the request was sent
    /// to its end too: otherwise the endpoint would take the rest for the next request.
    fn complete(self) {
        let Self { link, live, endpoint, rest, in_flight } = self;
        let Some(mut rest) = rest else { return live.give_back(link, endpoint.max_idle) };
        let is_all_here = rest.meter.as_ref().is_none_or(|meter| meter.state() == MeterState::Ended);
        let Some(writing) = rest.writing.take().filter(|_| is_all_here) else { return };
        // All of the request is here, but not all of it is sent. An endpoint that answers early mostly reads
        // the rest; whoever came next would have to wait until it has.
        tokio::task::spawn_local(async move {
            let _rest = rest;
            let _in_flight = in_flight;
            if matches!(timeout(UNREAD, writing).await, Ok(Ok(true))) {
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
    /// The connection ended, with the endpoint's answer not begun.
    Closed(Box<str>),
    /// It was seen, or is at fault itself.
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
        let DialError { failure, detail } = match self.send_to_any(upload, plan).await? {
            Sent::Answered(answer) => return Ok(answer),
            Sent::Nowhere(failure) => failure,
        };
        // A certificate that is not accepted will not be so by waiting.
        if hold.is_zero() || failure == Failure::Tls {
            return Err(Refusal::Unreachable { failure, detail });
        }
        // Boxed, as what is rare: every request would have to have room for it.
        Box::pin(self.hold(upload, plan, hold, detail)).await
    }

    /// Waits until the upstream is back, and sends the request then.
    async fn hold(
        &self,
        upload: &mut Option<Upload>,
        plan: &Plan<'_>,
        hold: Duration,
        mut detail: Box<str>,
    ) -> Result<Answer, Refusal> {
        let begun = Instant::now();
        let live = self.pool.live(&plan.upstream.endpoints[0]);
        let _held = live.hold();
        loop {
            self.tell_held(&detail, hold);
            if !live.queue.wait(begun + hold).await {
                return Err(Refusal::Held { detail });
            }
            let held = Some(begun.elapsed());
            match self.send_to_any(upload, plan).await? {
                Sent::Answered(answer) => {
                    live.queue.let_all_go();
                    return Ok(Answer { held, ..answer });
                }
                Sent::Nowhere(DialError { failure: failure @ Failure::Tls, detail }) => {
                    return Err(Refusal::Unreachable { failure, detail });
                }
                Sent::Nowhere(failure) => detail = failure.detail,
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
    async fn send_to_any(&self, upload: &mut Option<Upload>, plan: &Plan<'_>) -> Result<Sent, Refusal> {
        let endpoints = &plan.upstream.endpoints;
        let mut last = None;
        for (turn, at) in self.order(plan).enumerate() {
            let endpoint = &endpoints[at];
            let live = self.pool.live(endpoint);
            if let Some(upload) = upload.as_mut().filter(|_| turn == 0 || *plan.host == HostPolicy::Upstream) {
                upload.write_head(host(plan.host, endpoint).as_ref());
            }
            let now = Instant::now();
            if !plan.is_tunnel
                && let Some(link) = live.take(endpoint, now)
            {
                match attempt(link, upload, &live, endpoint, plan, now).await {
                    Ok(answer) => return Ok(Sent::Answered(answer)),
                    // The endpoint gave up an idle connection while we took it for a good one.
                    Err(Lost::Closed(detail)) => match upload {
                        Some(upload) if upload.is_unsent() || upload.is_repeatable() => upload.rewind(),
                        _ => return Err(counted(&live, Refusal::Failed { failure: Failure::Closed, detail })),
                    },
                    Err(Lost::Failed(refusal)) => return Err(counted(&live, refusal)),
                }
            }
            let tls = tls_of(endpoint, &live).map_err(|refusal| counted(&live, refusal))?;
            // Boxed, as what is rare: every request would have to have room for it.
            match Box::pin(connect::dial(endpoint, tls, plan.timeouts.connect)).await {
                Ok(link) => match attempt(link, upload, &live, endpoint, plan, Instant::now()).await {
                    Ok(answer) => return Ok(Sent::Answered(answer)),
                    Err(Lost::Failed(refusal)) => return Err(counted(&live, refusal)),
                    Err(Lost::Closed(detail)) => match upload {
                        Some(upload) if upload.is_unsent() => {
                            upload.rewind();
                            let detail: Box<str> = format!("{} closed a new connection at once", endpoint.label).into();
                            live.failed(Failure::Closed, &detail);
                            last = Some(DialError { failure: Failure::Closed, detail });
                        }
                        _ => return Err(counted(&live, Refusal::Failed { failure: Failure::Closed, detail })),
                    },
                },
                Err(error) => {
                    live.avoid();
                    live.failed(error.failure, &error.detail);
                    last = Some(error);
                }
            }
        }
        Ok(Sent::Nowhere(last.unwrap_or(DialError { failure: Failure::Unroutable, detail: "no endpoint".into() })))
    }

    fn order(&self, plan: &Plan<'_>) -> impl Iterator<Item = usize> + use<> {
        let endpoints = &plan.upstream.endpoints;
        let mut several = Vec::new();
        if endpoints.len() > 1 {
            let loads: Vec<Load> = endpoints
                .iter()
                .map(|endpoint| {
                    let live = self.pool.live(endpoint);
                    Load { in_flight: live.in_flight(), is_avoided: live.is_avoided() }
                })
                .collect();
            let turn = self.turn.get();
            self.turn.set(turn.wrapping_add(1));
            several = balance::order(plan.upstream.balance, &loads, turn % endpoints.len(), plan.client);
        }
        // The usual one endpoint needs no list.
        let one = 0..usize::from(endpoints.len() == 1);
        one.chain(several)
    }
}

#[allow(clippy::large_enum_variant, reason = "short-lived, and almost always the large one")]
enum Sent {
    Answered(Answer),
    Nowhere(DialError),
}

/// Counts what the endpoint is to blame for, and passes it on.
fn counted(live: &Live, refusal: Refusal) -> Refusal {
    if let Refusal::Failed { failure, detail } | Refusal::Unreachable { failure, detail } = &refusal {
        live.failed(*failure, detail);
    }
    refusal
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
                let detail = match error {
                    Some(error) => format!("{label} closed the connection: {error}").into(),
                    None => format!("{label} closed the connection before it had answered").into(),
                };
                // An interim response says that it was seen.
                let lost = if link.intake.read.is_empty() && interim == 0 {
                    Lost::Closed(detail)
                } else {
                    Lost::Failed(Refusal::Failed { failure: Failure::Closed, detail })
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
    let via_port = link.via_port;
    live.succeeded(now);
    let lease = Lease { link, live: Rc::clone(live), endpoint: Arc::clone(endpoint), rest, in_flight };
    let response = AnswerBody::new(head, lease, plan.timeouts.idle);
    Ok(Answer { held: None, response, endpoint: Arc::clone(endpoint), via_port })
}

/// The endpoint has answered already: the request goes on beside the response, so that neither waits for the other.
fn write_on(mut upload: Upload, link: &Link, plan: &Plan<'_>) -> Rest {
    let wire = Rc::clone(link.wire());
    let writing = tokio::task::spawn_local(async move { poll_fn(|cx| upload.poll_send(cx, &wire)).await.is_ok() });
    Rest { abort: writing.abort_handle(), writing: Some(writing), meter: plan.meter.map(Rc::clone) }
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
