//! Idle connections to endpoints, and how much is in flight at each. One pool a worker: no lock.
//!
//! Keyed by the endpoint's identity (address *and* TLS), so that connections outlive a reload that
//! did not touch the endpoint, and never serve another identity.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::board::{Board, Health, Pulse, Vitals, upstreams};
use super::link::Link;
use crate::refusal::Failure;
use crate::site::SiteTable;
use crate::site::upstream::{Endpoint, EndpointId, Probe};

/// The live state of every endpoint that this worker has used.
#[derive(Debug)]
pub struct Pool {
    board: Arc<Board>,
    endpoints: RefCell<HashMap<EndpointId, Rc<Live>>>,
}

/// The live state of one endpoint, as one worker has it.
#[derive(Debug)]
pub struct Live {
    /// What all workers know of it together.
    pub vitals: Arc<Vitals>,
    idle: RefCell<Vec<Idle>>,
    in_flight: Cell<usize>,
    /// Probes that were asked about, with what they say: found once a second, and not for each request.
    pulses: RefCell<Vec<(Arc<Probe>, Arc<Pulse>)>>,
    /// Set after a connection failed: others are preferred until then.
    avoided_until: Cell<Option<Instant>>,
    /// When it last answered.
    answered: Cell<Option<Instant>>,
    /// The last failure: when, and what was seen.
    last_failure: RefCell<Option<(Instant, Box<str>)>>,
    failures: RefCell<Vec<(Failure, u64)>>,
    /// Requests that are held for an upstream wait at its first endpoint.
    pub queue: Queue,
    /// TLS towards it, built at the first connection.
    pub tls: OnceCell<Arc<rustls::ClientConfig>>,
}

/// What one worker knows of one endpoint, as plain values for another thread.
#[derive(Clone, Debug)]
pub struct EndpointFacts {
    /// Which.
    pub identity: EndpointId,
    /// Requests and tunnels there.
    pub in_flight: usize,
    /// Connections kept for the next request.
    pub idle: usize,
    /// Requests that wait for its return.
    pub held: usize,
    /// When it last answered.
    pub answered: Option<Instant>,
    /// The last failure: when, and what was seen.
    pub last_failure: Option<(Instant, Box<str>)>,
    /// Failures by how.
    pub failures: Vec<(Failure, u64)>,
}

#[derive(Debug)]
struct Idle {
    link: Link,
    since: Instant,
}

/// Where held requests wait. One of them at a time asks whether the endpoint is back, for all: a
/// thousand must not storm a gateway that is about to start.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Cell<usize>,
    next_turn: Cell<Option<Instant>>,
    is_back: Notify,
}

/// Counts one request that is held until it is dropped.
#[derive(Debug)]
pub struct Held(Rc<Live>);

impl Drop for Held {
    fn drop(&mut self) {
        let waiting = &self.0.queue.waiting;
        waiting.set(waiting.get().saturating_sub(1));
    }
}

impl Queue {
    /// Waits until it is our turn to ask, or somebody has asked with success. False when `until` comes first.
    pub async fn wait(&self, until: Instant) -> bool {
        loop {
            // Registered before anything is awaited, so that no word is missed.
            let is_back = self.is_back.notified();
            if Instant::now() + TURN > until {
                return false;
            }
            tokio::select! {
                () = is_back => return true,
                () = sleep(TURN) => {}
            }
            let now = Instant::now();
            if self.next_turn.get().is_none_or(|turn| turn <= now) {
                self.next_turn.set(Some(now + TURN));
                return true;
            }
        }
    }

    /// The endpoint answers again.
    pub fn let_all_go(&self) {
        self.is_back.notify_waiters();
    }
}

/// Our choice: an endpoint that came back is found within a quarter of a second, by a busy machine too, the connection to
/// it included.
const TURN: Duration = Duration::from_millis(100);

/// Counts one request or tunnel at an endpoint until it is dropped.
#[derive(Debug)]
pub struct InFlight(Rc<Live>);

impl Pool {
    /// Nothing known yet.
    pub fn new(board: Arc<Board>) -> Self {
        Self { board, endpoints: RefCell::default() }
    }

    /// What all workers know together.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The live state of an endpoint.
    pub fn live(&self, endpoint: &Endpoint) -> Rc<Live> {
        if let Some(live) = self.endpoints.borrow().get(&endpoint.identity) {
            return Rc::clone(live);
        }
        let live = Rc::new(Live::new(self.board.vitals(endpoint)));
        self.endpoints.borrow_mut().insert(endpoint.identity, Rc::clone(&live));
        live
    }

    /// What is known of all endpoints that were used.
    pub fn facts(&self) -> Vec<EndpointFacts> {
        self.endpoints.borrow().iter().map(|(identity, live)| live.facts(*identity)).collect()
    }

    /// Drops the idle connections of endpoints that no site names any more, and those too old.
    pub fn sweep(&self, table: &SiteTable) {
        let used: HashMap<_, _> = upstreams(table)
            .flat_map(|upstream| &upstream.endpoints)
            .map(|endpoint| (endpoint.identity, endpoint.keep_alive))
            .collect();
        self.endpoints.borrow_mut().retain(|identity, live| match used.get(identity) {
            Some(keep_alive) => {
                live.pulses.borrow_mut().clear();
                live.idle.borrow_mut().retain(|idle| idle.since.elapsed() < *keep_alive && idle.link.is_alive());
                true
            }
            None => {
                live.idle.borrow_mut().clear();
                live.in_flight() > 0
            }
        });
    }
}

impl Live {
    fn new(vitals: Arc<Vitals>) -> Self {
        Self {
            vitals,
            idle: RefCell::default(),
            in_flight: Cell::default(),
            answered: Cell::default(),
            last_failure: RefCell::default(),
            failures: RefCell::default(),
            pulses: RefCell::default(),
            avoided_until: Cell::default(),
            queue: Queue::default(),
            tls: OnceCell::new(),
        }
    }

    /// What a probe says of the endpoint.
    pub fn health(&self, endpoint: &Endpoint, probe: &Arc<Probe>, board: &Board) -> Health {
        let mut pulses = self.pulses.borrow_mut();
        if let Some((_, pulse)) = pulses.iter().find(|(known, _)| Arc::ptr_eq(known, probe)) {
            return pulse.health();
        }
        let pulse = board.pulse(endpoint, probe);
        let health = pulse.health();
        pulses.push((Arc::clone(probe), pulse));
        health
    }

    /// An idle connection that is young enough and still open: the youngest, so that the rest can age out.
    pub fn take(&self, endpoint: &Endpoint, now: Instant) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { link, since }) = idle.pop() {
            if now.saturating_duration_since(since) >= endpoint.keep_alive {
                // All others are older still.
                idle.clear();
                return None;
            }
            if link.is_alive() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection whose request and response are both complete.
    pub fn give_back(&self, mut link: Link, max_idle: usize) {
        let mut idle = self.idle.borrow_mut();
        // What came beyond a response is nobody's answer: such a connection would never be taken again.
        if max_idle == 0 || !link.intake.read.is_empty() {
            return;
        }
        if idle.len() >= max_idle {
            idle.remove(0);
        }
        link.rest();
        idle.push(Idle { link, since: Instant::now() });
    }

    /// Requests and tunnels of this worker at the endpoint.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Counts one more.
    pub fn enter(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }

    /// Counts one more that is held for its return.
    pub fn hold(self: &Rc<Self>) -> Held {
        self.queue.waiting.set(self.queue.waiting.get() + 1);
        Held(Rc::clone(self))
    }

    /// Notes that it has answered.
    pub fn succeeded(&self, now: Instant) {
        self.answered.set(Some(now));
    }

    /// Counts a failure. `has_others`: whether others can do its work.
    pub fn failed(&self, failure: Failure, detail: &str, has_others: bool) {
        self.vitals.failed(failure, has_others);
        self.last_failure.replace(Some((Instant::now(), detail.into())));
        let mut failures = self.failures.borrow_mut();
        match failures.iter_mut().find(|(known, _)| *known == failure) {
            Some((_, count)) => *count += 1,
            None => failures.push((failure, 1)),
        }
    }

    fn facts(&self, identity: EndpointId) -> EndpointFacts {
        EndpointFacts {
            identity,
            in_flight: self.in_flight(),
            idle: self.idle.borrow().len(),
            held: self.queue.waiting.get(),
            answered: self.answered.get(),
            last_failure: self.last_failure.borrow().clone(),
            failures: self.failures.borrow().clone(),
        }
    }

    /// Notes that the endpoint could not be reached.
    pub fn avoid(&self) {
        self.avoided_until.set(Some(Instant::now() + AVOIDED));
    }

    /// Whether the endpoint could not be reached a moment ago.
    pub fn is_avoided(&self) -> bool {
        self.avoided_until.get().is_some_and(|until| until > Instant::now())
    }
}

/// Our choice: long enough that a dead endpoint does not cost each request a connection attempt,
/// short enough that its return is used at once.
const AVOIDED: Duration = Duration::from_secs(1);

impl InFlight {
    /// The endpoint has said that it goes away.
    pub fn note_departure(&self) {
        self.0.vitals.goes_away();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_of_many_held_requests_asks_at_a_time() {
        let queue = Queue::default();
        let asked = Cell::new(0);
        let until = Instant::now() + 10 * TURN;
        let waiting = (0..100).map(|_| async {
            while queue.wait(until).await {
                asked.set(asked.get() + 1);
            }
        });
        futures_util::future::join_all(waiting).await;
        assert!((4..=10).contains(&asked.get()), "{} attempts in ten turns", asked.get());
    }

    #[tokio::test(start_paused = true)]
    async fn all_held_requests_go_when_one_has_got_through() {
        let queue = Queue::default();
        let begun = Instant::now();
        let until = begun + Duration::from_secs(15);
        let asks = async {
            assert!(queue.wait(until).await, "its turn");
            // What asking costs; the clock is paused.
            sleep(Duration::from_millis(1)).await;
            queue.let_all_go();
        };
        let follow = futures_util::future::join_all((0..100).map(|_| queue.wait(until)));
        let ((), went) = tokio::join!(asks, follow);
        assert!(went.into_iter().all(|goes| goes));
        assert!(begun.elapsed() < 2 * TURN, "{:?}", begun.elapsed());
    }
}
