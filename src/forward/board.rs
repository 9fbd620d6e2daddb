//! What the whole process knows of each endpoint: whether it is kept out for a while because it failed, whether it is
//! about to restart, and what its probes say; and the places of bounded upstreams.
//!
//! Workers write as requests end, `health` as probes do, and whoever shows the state reads. All of it is atomic; the
//! locks here are for finding an endpoint, never on the path of a request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::gate::{Gate, GateReading};
use crate::refusal::Failure;
use crate::site::SiteTable;
use crate::site::route::Action;
use crate::site::upstream::{Bound, Endpoint, EndpointId, Probe, Upstream};

/// All endpoints that were ever asked, all probes that run, all bounds on requests in flight.
#[derive(Debug)]
pub struct Board {
    clock: Clock,
    vitals: Mutex<BTreeMap<EndpointId, Arc<Vitals>>>,
    pulses: Mutex<HashMap<Check, Arc<Pulse>>>,
    gates: Mutex<HashMap<Arc<str>, Arc<Gate>>>,
}

/// An endpoint, and the probe that looks at it: two sites may ask one server for two things.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// Whom.
    pub endpoint: EndpointId,
    /// How.
    pub probe: Arc<Probe>,
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self {
            clock: Clock(Instant::now()),
            vitals: Mutex::default(),
            pulses: Mutex::default(),
            gates: Mutex::default(),
        }
    }

    /// What is known of an endpoint. Takes a lock: to be kept by whoever asks often.
    pub fn vitals(&self, endpoint: &Endpoint) -> Arc<Vitals> {
        let mut vitals = lock(&self.vitals);
        let new = || Arc::new(Vitals::new(Arc::clone(&endpoint.label), self.clock));
        Arc::clone(vitals.entry(endpoint.identity).or_insert_with(new))
    }

    /// What a probe says of an endpoint. Takes a lock, as `vitals`.
    pub fn pulse(&self, endpoint: &Endpoint, probe: &Arc<Probe>) -> Arc<Pulse> {
        let check = Check { endpoint: endpoint.identity, probe: Arc::clone(probe) };
        Arc::clone(lock(&self.pulses).entry(check).or_default())
    }

    /// The gate of an upstream. Takes a lock, as `vitals`.
    pub fn gate(&self, upstream: &Upstream, bound: &Bound) -> Arc<Gate> {
        let new = || Arc::new(Gate::new(bound.in_flight));
        Arc::clone(lock(&self.gates).entry(Arc::clone(&upstream.name)).or_insert_with(new))
    }

    /// A table is in force: bounds are its own from now on, and what it does not name is forgotten when nobody uses it.
    pub fn settle(&self, table: &SiteTable) {
        let (mut endpoints, mut checks, mut bounds) = (HashSet::new(), HashSet::new(), HashMap::new());
        for upstream in upstreams(table) {
            endpoints.extend(upstream.endpoints.iter().map(|endpoint| endpoint.identity));
            for (endpoint, probe) in probed(upstream) {
                checks.insert(Check { endpoint: endpoint.identity, probe: Arc::clone(probe) });
            }
            bounds.extend(upstream.bound.map(|bound| (Arc::clone(&upstream.name), bound.in_flight)));
        }
        lock(&self.vitals).retain(|identity, vitals| endpoints.contains(identity) || Arc::strong_count(vitals) > 1);
        lock(&self.pulses).retain(|check, _| checks.contains(check));
        lock(&self.gates).retain(|name, gate| match bounds.get(name) {
            Some(size) => {
                gate.resize(*size);
                true
            }
            None => Arc::strong_count(gate) > 1,
        });
    }

    /// How full each bounded upstream is, by its name.
    pub fn read_gates(&self) -> Vec<(Arc<str>, GateReading)> {
        let gates = lock(&self.gates);
        let mut all: Vec<_> = gates.iter().map(|(name, gate)| (Arc::clone(name), gate.read())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

/// All upstreams that a table sends to, services that it asks about requests included; one stands as often as routes
/// name it.
pub fn upstreams(table: &SiteTable) -> impl Iterator<Item = &Arc<Upstream>> {
    let routes = || table.sites().iter().flat_map(|site| site.routes.iter());
    let forwards = routes().filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(&forward.upstream),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    forwards.chain(routes().flat_map(|route| route.services()).map(|service| &service.upstream))
}

/// The endpoints of an upstream, each with its probe, if it has one.
pub fn probed(upstream: &Upstream) -> impl Iterator<Item = (&Arc<Endpoint>, &Arc<Probe>)> {
    let probe = upstream.probe.as_ref();
    upstream.endpoints.iter().filter_map(move |endpoint| Some((endpoint, probe?)))
}

/// What the failures of one endpoint have come to.
#[derive(Debug)]
pub struct Vitals {
    label: Arc<str>,
    clock: Clock,
    /// Failures in a row.
    strikes: AtomicU32,
    /// How often in a row it was ejected.
    ejections: AtomicU32,
    /// When the present ejection ends, or the last one has ended; 0 before the first.
    ejected_until: AtomicU64,
    /// When it last said that it goes away; 0 for never.
    went_away: AtomicU64,
}

/// How much of an endpoint is left to choose it by: the better comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// As good as any.
    Usable,
    /// Back a moment ago: this request is not of its share yet.
    Reserve,
    /// This worker could not reach it a moment ago.
    Avoided,
    /// It failed again and again.
    Ejected,
    /// Its probes find it unhealthy.
    Unhealthy,
    /// It says itself that it is not ready.
    NotReady,
}

/// So many failures in a row eject an endpoint that has others beside it. Our choice: one may be chance, and an
/// endpoint that is down gets three within moments.
const STRIKES: u32 = 3;
/// The first ejection. Each further one is twice as long, up to the longest. Our choice: a restart is over by then.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Our choice: one request in a minute is what an endpoint costs that is down for days.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After this long without another one, an ejection is the first again.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// How long an endpoint that is back takes to its whole share. Our choice: caches and pools fill in seconds.
const RETURN: Duration = Duration::from_secs(10);
/// How long after its word that it goes away a refused connection means a restart. The gateway was measured to need
/// 9 to 13 s; twice that is no restart any more.
const RESTART: Duration = Duration::from_secs(30);

impl Vitals {
    fn new(label: Arc<str>, clock: Clock) -> Self {
        Self {
            label,
            clock,
            strikes: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            went_away: AtomicU64::new(0),
        }
    }

    /// A request failed by the endpoint's fault. Ejects it when it was one too many and others can do its work.
    pub fn failed(&self, failure: Failure, has_others: bool) {
        let strikes = self.strikes.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if has_others && strikes >= STRIKES {
            self.eject(failure);
        }
    }

    /// Prefers others for a while.
    fn eject(&self, failure: Failure) {
        let (now, until) = (self.clock.now(), self.ejected_until.load(Ordering::Relaxed));
        if now < until {
            return; // ejected already, and tried because the others are no better
        }
        let is_again = until != 0 && now - until < millis(FORGOTTEN);
        let times = if is_again { self.ejections.load(Ordering::Relaxed) } else { 0 };
        let pause = jittered(FIRST_PAUSE.saturating_mul(1 << times.min(8)).min(LONGEST_PAUSE));
        let ends = now + millis(pause);
        // Of several workers that see it at once, one ejects.
        if self.ejected_until.compare_exchange(until, ends, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        self.ejections.store(times + 1, Ordering::Relaxed);
        let (label, code, seconds) = (&self.label, failure.code(), pause.as_secs());
        tracing::warn!(
            event = "ejected",
            endpoint = %label,
            code,
            seconds,
            "{label} failed {STRIKES} times in a row ({code}): others are preferred for {seconds} s"
        );
    }

    /// The endpoint has answered a request. `is_refusal`: with 503, as a server that shuts down does.
    pub fn answered(&self, is_refusal: bool) {
        // The usual case reads one number that nobody writes.
        if self.strikes.load(Ordering::Relaxed) != 0
            && self.strikes.swap(0, Ordering::Relaxed) >= STRIKES
            && self.ejected_until.load(Ordering::Relaxed) != 0
        {
            tracing::info!(event = "returned", endpoint = %self.label, "{} answers again", self.label);
        }
        if is_refusal {
            self.goes_away();
        }
    }

    /// A probe finds it well again: whatever kept it out is over, and its share grows from now on.
    pub(super) fn recovered(&self) {
        self.strikes.store(0, Ordering::Relaxed);
        self.ejections.store(0, Ordering::Relaxed);
        self.ejected_until.store(self.clock.now(), Ordering::Relaxed);
    }

    /// The endpoint says that it goes away: with 503, or with close 1012 on a tunnel.
    pub fn goes_away(&self) {
        self.went_away.store(self.clock.now(), Ordering::Relaxed);
    }

    /// Whether a connection that is refused now is a restart, by the endpoint's own word.
    pub fn is_restarting(&self) -> bool {
        let since = self.went_away.load(Ordering::Relaxed);
        since != 0 && self.clock.now() - since < millis(RESTART)
    }

    /// Where it stands for the request number `turn`. After an ejection its share of the requests grows.
    pub fn standing(&self, turn: usize) -> Standing {
        let until = self.ejected_until.load(Ordering::Relaxed);
        if until == 0 {
            return Standing::Usable;
        }
        let now = self.clock.now();
        if now < until {
            return Standing::Ejected;
        }
        let percent = ((now - until) * 100 / millis(RETURN)).max(LEAST_SHARE);
        // 61 and 100 have no common factor: a hundred requests in a row meet each place once, well mixed.
        let place = (turn % 100 * 61 % 100) as u64;
        if place < percent { Standing::Usable } else { Standing::Reserve }
    }
}

/// The share of an endpoint that has just come back, of a hundred. It must be asked at all, or nobody learns of it.
const LEAST_SHARE: u64 = 5;

/// What the probes of one endpoint say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// None has ended yet: taken for healthy, so that a start waits for nobody.
    #[default]
    Untested,
    /// They succeed.
    Healthy,
    /// They get no answer, or one that says nothing of requests. It may be the probe that is wrong.
    Silent,
    /// It answers them, and says that it does not want requests now: 5xx, or a close frame.
    NotReady,
}

impl Health {
    /// Whether it is passed over while another one is better.
    pub fn is_unhealthy(self) -> bool {
        matches!(self, Self::Silent | Self::NotReady)
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Healthy => "healthy",
            Self::Silent => "silent",
            Self::NotReady => "not ready",
        }
    }
}

/// The outcome of the probes of one endpoint, as they publish it.
#[derive(Debug, Default)]
pub struct Pulse {
    health: AtomicU8,
    why: Mutex<Arc<str>>,
    /// Told when it is well again.
    pub recovered: Notify,
}

impl Pulse {
    /// What they say.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            1 => Health::Healthy,
            2 => Health::Silent,
            3 => Health::NotReady,
            _ => Health::Untested,
        }
    }

    /// Why it is unhealthy, in words.
    pub fn why(&self) -> Arc<str> {
        Arc::clone(&lock(&self.why))
    }

    /// What they say from now on.
    pub(super) fn publish(&self, health: Health, why: &str) {
        *lock(&self.why) = Arc::from(why);
        self.health.store(health as u8, Ordering::Relaxed);
        if !health.is_unhealthy() {
            self.recovered.notify_waiters();
        }
    }
}

/// Times as whole milliseconds, so that they fit an atomic. 0 is never now.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> u64 {
        millis(self.0.elapsed()) + 1
    }
}

fn millis(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}

/// A period, longer or shorter by up to a fifth: what fails together shall not come back together.
pub(super) fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.8 + 0.4 * chance())
}

/// A number from 0 to 1. Without randomness it is the middle.
pub(super) fn chance() -> f64 {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).map_or(0.5, |()| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

/// A lock that a panic elsewhere does not break: what it guards is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn vitals() -> Vitals {
        Vitals::new("127.0.0.1:1".into(), Clock(Instant::now()))
    }

    /// How many of a hundred requests it is usable for.
    fn share(vitals: &Vitals) -> usize {
        (0..100).filter(|turn| vitals.standing(*turn) == Standing::Usable).count()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject_and_the_share_grows_back() {
        let vitals = vitals();
        for failure in [Failure::Refused, Failure::ResponseTimeout] {
            vitals.failed(failure, true);
        }
        vitals.answered(false);
        for _ in 0..2 {
            vitals.failed(Failure::Protocol, true);
        }
        assert_eq!(share(&vitals), 100, "an answer between them forgives");
        vitals.failed(Failure::Protocol, true);
        assert_eq!((vitals.standing(0), share(&vitals)), (Standing::Ejected, 0));
        advance(FIRST_PAUSE.mul_f64(1.2)).await;
        let first = share(&vitals);
        assert!((5..=25).contains(&first), "a small share at first: {first}");
        advance(RETURN / 2).await;
        let half = share(&vitals);
        assert!((50..=75).contains(&half), "{half}");
        advance(RETURN / 2).await;
        assert_eq!(share(&vitals), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn each_ejection_is_longer_up_to_a_bound() {
        let vitals = vitals();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            while vitals.standing(0) != Standing::Ejected {
                vitals.failed(Failure::Refused, true);
            }
            let begun = Instant::now();
            while vitals.standing(0) == Standing::Ejected {
                advance(Duration::from_millis(100)).await;
            }
            pauses.push(begun.elapsed().as_secs_f64());
        }
        for (pause, expected) in pauses.iter().zip([5.0, 10.0, 20.0, 40.0, 60.0, 60.0]) {
            assert!((expected * 0.79..expected * 1.23).contains(pause), "{pauses:?}");
        }
        advance(FORGOTTEN * 2).await;
        vitals.failed(Failure::Refused, true);
        advance(FIRST_PAUSE.mul_f64(1.3)).await;
        assert_ne!(vitals.standing(0), Standing::Ejected, "long ago is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_without_others_is_never_ejected() {
        let vitals = vitals();
        for _ in 0..100 {
            vitals.failed(Failure::Refused, false);
        }
        assert_eq!(share(&vitals), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_is_one_for_half_a_minute() {
        let vitals = vitals();
        assert!(!vitals.is_restarting());
        vitals.answered(true);
        assert!(vitals.is_restarting());
        advance(RESTART - Duration::from_millis(1)).await;
        assert!(vitals.is_restarting());
        advance(Duration::from_millis(1)).await;
        assert!(!vitals.is_restarting());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_probe_finds_well_comes_back_at_once_and_slowly() {
        let vitals = vitals();
        for _ in 0..3 {
            vitals.failed(Failure::Refused, true);
        }
        assert_eq!(share(&vitals), 0);
        vitals.recovered();
        assert!((1..=10).contains(&share(&vitals)), "{}", share(&vitals));
    }
}
