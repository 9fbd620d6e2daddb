//! What the admin endpoint knows: handles to the parts that count and publish, and how they are put together.
//!
//! It reads; nothing here changes the edge. Workers are asked for what only they know, with a bound:
//! a stuck worker makes a status poorer, not late.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit};
use time::OffsetDateTime;

use super::reloads::Reloads;
use crate::access_log::AccessLog;
use crate::acme::alert;
use crate::drain::{Drain, Phase, Work};
use crate::forward::board::{Board, Health};
use crate::forward::pool::EndpointFacts;
use crate::listen::Gate;
use crate::metrics::Metrics;
use crate::metrics::sums::{LimitSums, Limiter, Sums};
use crate::metrics::text::{Certificate, Endpoint, Queue, Scrape, State};
use crate::metrics::window::{self, Window};
use crate::policy::limits::{LimitFacts, Limits};
use crate::site::policy::CertificateSource;
use crate::site::route::Action;
use crate::site::upstream::{EndpointId, Upstream};
use crate::site::{Site, SiteTable};
use crate::snapshot::Snapshot;
use crate::tls::certs::{CertFacts, CertStore, Standing};
use crate::worker::{self, Ear};

/// Handles to everything that is shown.
pub struct Facts {
    /// What is counted.
    pub metrics: Metrics,
    /// What limiters count.
    pub limits: Arc<Limits>,
    /// What is known of endpoints beside what the workers know.
    pub board: Arc<Board>,
    /// The last minutes of both.
    pub window: Window,
    /// The configuration in force.
    pub snapshot: Arc<Snapshot>,
    /// Certificates in force.
    pub certs: Arc<CertStore>,
    /// Open work.
    pub drain: Drain,
    /// Records.
    pub log: AccessLog,
    /// Connections that found no room.
    pub gate: Gate,
    /// The last reloads.
    pub reloads: Reloads,
    /// Ways to ask the workers.
    pub workers: Vec<Ear>,
    /// Faults of ours.
    pub panics: Arc<AtomicU64>,
    /// Lines that the process's log lost.
    pub lost_lines: Box<dyn Fn() -> u64 + Send + Sync>,
    /// The configuration's file, or how else it came.
    pub source: String,
    /// When the process began.
    pub started: OffsetDateTime,
    /// The same by a clock that nobody sets.
    pub began: Instant,
}

/// The state of one endpoint over all workers.
#[derive(Clone, Debug)]
pub struct EndpointState {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The endpoint's label.
    pub endpoint: Arc<str>,
    /// Whether anything was sent there since the start.
    pub is_known: bool,
    /// What was seen when it last failed; `None` once it has answered since.
    pub error: Option<Box<str>>,
    /// Requests and tunnels there.
    pub in_flight: usize,
    /// Connections kept for the next request.
    pub idle: usize,
    /// Requests that wait for its return.
    pub held: usize,
    /// Failures by how, in the order of their words.
    pub failures: Vec<(&'static str, u64)>,
}

impl EndpointState {
    /// Whether it took what was last sent there. One that nothing was sent to counts as up.
    pub fn is_up(&self) -> bool {
        self.error.is_none()
    }

    /// Takes the word of its probes, which requests do not have to wait for.
    fn judge(&mut self, health: Health, why: impl FnOnce() -> Arc<str>) {
        self.is_known |= health != Health::Untested;
        if health.is_unhealthy() {
            self.error = Some((&*why()).into());
        }
    }
}

impl Facts {
    /// Begins now.
    pub fn new(
        parts: &worker::Parts,
        certs: &Arc<CertStore>,
        workers: Vec<Ear>,
        source: String,
        panics: Arc<AtomicU64>,
        lost_lines: Box<dyn Fn() -> u64 + Send + Sync>,
    ) -> Self {
        Self {
            metrics: parts.metrics.clone(),
            limits: Arc::clone(&parts.limits),
            board: Arc::clone(&parts.board),
            window: Window::new(),
            snapshot: Arc::clone(&parts.snapshot),
            certs: Arc::clone(certs),
            drain: parts.drain.clone(),
            log: parts.log.clone(),
            gate: parts.gate.clone(),
            reloads: Reloads::default(),
            workers,
            panics,
            lost_lines,
            source,
            started: OffsetDateTime::now_utc(),
            began: Instant::now(),
        }
    }
}

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

impl Facts {
    /// Everything that was counted until now.
    pub fn sums(&self) -> Sums {
        let of = |facts: LimitFacts| {
            let sums = LimitSums { refused: facts.refused, held: facts.held as u64, evicted: facts.evicted as u64 };
            (Limiter { name: facts.name, kind: facts.kind, place: facts.place }, sums)
        };
        Sums { limits: self.limits.facts().into_iter().map(of).collect(), ..self.metrics.sums() }
    }

    /// What all workers know that answer in time.
    pub async fn ask_workers(&self, has_tunnels: bool) -> Vec<worker::Facts> {
        let asked = self.workers.iter().map(|worker| worker.report(has_tunnels, PATIENCE));
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The endpoints of the configuration in force, with what the workers know of them.
    pub fn endpoints(&self, workers: &[worker::Facts]) -> Vec<EndpointState> {
        let mut known: HashMap<EndpointId, Vec<&EndpointFacts>> = HashMap::new();
        for facts in workers.iter().flat_map(|worker| &worker.endpoints) {
            known.entry(facts.identity).or_default().push(facts);
        }
        let current = self.snapshot.keep();
        let mut states = Vec::new();
        for upstream in upstreams(&current.table) {
            for endpoint in &upstream.endpoints {
                let facts = known.get(&endpoint.identity).map_or(&[][..], Vec::as_slice);
                let mut state = merge(&upstream.name, &endpoint.label, facts);
                if let Some(probe) = &upstream.probe {
                    let pulse = self.board.pulse(endpoint, probe);
                    state.judge(pulse.health(), || pulse.why());
                }
                states.push(state);
            }
        }
        states
    }

    /// Everything for Prometheus.
    pub async fn scrape(&self) -> Scrape {
        let endpoints = self.endpoints(&self.ask_workers(false).await);
        let endpoints = endpoints.into_iter().map(|one| Endpoint {
            is_up: one.is_up(),
            upstream: one.upstream,
            endpoint: one.endpoint,
            in_flight: one.in_flight as u64,
            idle: one.idle as u64,
            held: one.held as u64,
            failures: one.failures,
        });
        Scrape {
            sums: self.sums(),
            state: self.state(),
            endpoints: endpoints.collect(),
            queues: self.queues(),
            certificates: self.certificates(OffsetDateTime::now_utc()),
        }
    }

    /// The queues before upstreams that have a bound.
    pub fn queues(&self) -> Vec<Queue> {
        let gates = self.board.read_gates().into_iter();
        let queues = gates.map(|(upstream, reading)| Queue {
            upstream,
            in_flight: reading.in_flight as u64,
            size: reading.size as u64,
            waiting: reading.waiting as u64,
            refused: reading.refused,
        });
        queues.collect()
    }

    /// For how long the process has run.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// How the process stands.
    pub fn state(&self) -> State {
        let count = |work| self.drain.count(work) as u64;
        State {
            connections: count(Work::Connection),
            requests: count(Work::Request),
            refused_connections: self.gate.refused(),
            panics: self.panics.load(Ordering::Relaxed),
            lost_records: self.log.dropped(),
            lost_lines: (self.lost_lines)(),
            reloads: self.metrics.reloads(),
            is_last_reload_fine: self.reloads.last_failure().is_none(),
            generation: self.snapshot.current().number,
            is_draining: self.drain.phase() != Phase::Serving,
            started: self.started.unix_timestamp_nanos() as f64 / 1e9,
            memory: resident_memory(),
            descriptors: open_descriptors(),
            most_descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            workers: self.workers.len() as u64,
        }
    }

    fn certificates(&self, now: OffsetDateTime) -> Vec<Certificate> {
        let current = self.snapshot.keep();
        let before = current.table.edge.acme.alert_before;
        let of_site = |site: &Arc<Site>| {
            let source = source_word(&site.tls.as_ref()?.certificate);
            let found = self.certs.of(&site.host);
            let facts = found.as_ref().map(|one| &one.facts);
            let is_sound =
                |facts: &&CertFacts| facts.standing != Standing::StandIn && !alert::is_alarming(facts, before, now);
            Some(Certificate {
                site: Arc::clone(&site.label),
                source,
                not_after: facts.map(|facts| facts.not_after.unix_timestamp() as f64),
                is_alarming: facts.as_ref().filter(|facts| is_sound(facts)).is_none(),
            })
        };
        current.table.sites().iter().filter_map(of_site).collect()
    }
}

/// Keeps what was counted from time to time, for ever.
pub async fn watch(facts: Arc<Facts>) {
    window::watch(facts.window.clone(), || facts.sums()).await;
}

/// The word for a source, in metrics and status.
pub(super) fn source_word(source: &CertificateSource) -> &'static str {
    match source {
        CertificateSource::Acme => "acme",
        CertificateSource::Local => "local",
        CertificateSource::Files { .. } => "files",
    }
}

/// The upstreams of a table, each once, in the order of the sites.
fn upstreams(table: &SiteTable) -> Vec<Arc<Upstream>> {
    let mut all: Vec<Arc<Upstream>> = Vec::new();
    for upstream in table.sites().iter().flat_map(|site| upstreams_of(site)) {
        if all.iter().all(|known| known.name != upstream.name) {
            all.push(upstream);
        }
    }
    all
}

/// The upstreams of a site, each once.
pub(super) fn upstreams_of(site: &Site) -> Vec<Arc<Upstream>> {
    let mut all: Vec<Arc<Upstream>> = Vec::new();
    for route in site.routes.iter() {
        match &route.action {
            Action::Forward(forward) if all.iter().all(|known| known.name != forward.upstream.name) => {
                all.push(Arc::clone(&forward.upstream));
            }
            Action::Forward(_) | Action::Redirect(_) | Action::Respond(_) => {}
        }
    }
    all
}

/// What all workers know of one endpoint. The latest word counts.
fn merge(upstream: &Arc<str>, endpoint: &Arc<str>, facts: &[&EndpointFacts]) -> EndpointState {
    let answered = facts.iter().filter_map(|facts| facts.answered).max();
    let failed = facts.iter().filter_map(|facts| facts.last_failure.as_ref()).max_by_key(|(at, _)| *at);
    let error = failed.filter(|(at, _)| answered.is_none_or(|answered| answered < *at));
    let mut failures: Vec<(&'static str, u64)> = Vec::new();
    for (failure, count) in facts.iter().flat_map(|facts| &facts.failures) {
        match failures.iter_mut().find(|(known, _)| *known == failure.kind()) {
            Some((_, sum)) => *sum += count,
            None => failures.push((failure.kind(), *count)),
        }
    }
    failures.sort_unstable();
    EndpointState {
        upstream: Arc::clone(upstream),
        endpoint: Arc::clone(endpoint),
        is_known: answered.is_some() || failed.is_some(),
        error: error.map(|(_, detail)| detail.clone()),
        in_flight: facts.iter().map(|facts| facts.in_flight).sum(),
        idle: facts.iter().map(|facts| facts.idle).sum(),
        held: facts.iter().map(|facts| facts.held).sum(),
        failures,
    }
}

/// proc(5): `VmRSS:` in KiB. Not there on other systems.
fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// Not the one by which the list is read.
fn open_descriptors() -> Option<u64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Failure;
    use crate::site::upstream::{Endpoint as SiteEndpoint, EndpointAddr};
    use tokio::time::Instant as Moment;

    #[test]
    fn the_latest_word_of_any_worker_says_whether_an_endpoint_is_up() {
        let endpoint = SiteEndpoint::new(EndpointAddr::Unix("/run/x".into()), None, Duration::ZERO, 0);
        let now = Moment::now();
        let facts = |answered: Option<u64>, failed: Option<u64>| EndpointFacts {
            identity: endpoint.identity,
            in_flight: 1,
            idle: 2,
            held: 0,
            answered: answered.map(|seconds| now + Duration::from_secs(seconds)),
            last_failure: failed.map(|seconds| (now + Duration::from_secs(seconds), "refused".into())),
            failures: failed.map(|_| (Failure::Refused, 3)).into_iter().collect(),
        };
        for (one, other, expected) in [
            ((None, None), (None, None), true),
            ((Some(1), None), (None, Some(2)), false),
            ((Some(3), None), (None, Some(2)), true),
            ((Some(1), Some(2)), (Some(5), Some(4)), true),
        ] {
            let (one, other) = (facts(one.0, one.1), facts(other.0, other.1));
            let state = merge(&"u".into(), &endpoint.label, &[&one, &other]);
            assert_eq!(state.is_up(), expected);
            assert_eq!((state.in_flight, state.idle), (2, 4));
        }
        let state = merge(&"u".into(), &endpoint.label, &[&facts(None, Some(1)), &facts(None, Some(2))]);
        assert_eq!(state.failures, [("refused", 6)]);
    }
}
