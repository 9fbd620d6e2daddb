//! The actor that checks endpoints (GATEWAY.md of the design notes, 8 and 12): one task for each pair of endpoint and
//! probe that the table in force names. It speaks only by the board; no request ever waits for a probe.
//!
//! What it finds decides whom new requests go to, and nothing else: tunnels and answers that are under way stay as they
//! are, because a gateway that is busy for some seconds answers no probe and yet loses nothing.

mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::board::{Board, Check, Health, Pulse, Vitals, chance, jittered, probed, upstreams};
use crate::site::SiteTable;
use crate::site::upstream::{Endpoint, Probe};
use crate::snapshot::Snapshot;
use probe::{Prober, Verdict};

/// Follows the snapshot: probes what it names, forgets what it does not. Returns only when a probe's task has panicked.
pub async fn watch(snapshot: Arc<Snapshot>, board: Arc<Board>) {
    let mut changes = snapshot.changes();
    // Dropped with this future, and all its tasks with it.
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Check, AbortHandle> = HashMap::new();
    loop {
        let wanted = {
            let generation = snapshot.keep();
            board.settle(&generation.table);
            checks(&generation.table)
        };
        running.retain(|check, task| {
            let is_wanted = wanted.contains_key(check);
            if !is_wanted {
                task.abort();
            }
            is_wanted
        });
        for (check, endpoint) in wanted {
            let (probe, board) = (Arc::clone(&check.probe), &board);
            running.entry(check).or_insert_with(|| tasks.spawn(Patient::new(endpoint, probe, board).follow()));
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(ended) = tasks.join_next() => {
                // Those that are no longer wanted end quietly.
                if ended.is_err_and(|error| error.is_panic()) {
                    return;
                }
            }
        }
    }
}

/// Everything that is to be probed.
fn checks(table: &SiteTable) -> HashMap<Check, Arc<Endpoint>> {
    let all = upstreams(table).flat_map(|upstream| probed(upstream));
    all.map(|(endpoint, probe)| (Check { endpoint: endpoint.identity, probe: Arc::clone(probe) }, Arc::clone(endpoint)))
        .collect()
}

/// One endpoint under one probe.
struct Patient {
    endpoint: Arc<Endpoint>,
    probe: Arc<Probe>,
    vitals: Arc<Vitals>,
    pulse: Arc<Pulse>,
    tally: Tally,
}

/// Outcomes in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    failures: usize,
    successes: usize,
    /// When the first of the failures was seen.
    since: Option<Instant>,
}

/// An endpoint that says itself that it is not ready gets no requests, so it is asked this often. Our choice: its return is
/// seen within a quarter of a second, the answer included, and so is its end. One that is silent is found by requests.
const NOT_READY: Duration = Duration::from_millis(200);

/// Between the end of a probe and the next: one that takes longer than its interval is not sent without a pause.
const LEAST: Duration = Duration::from_millis(100);

/// All probes of a start or a reload do not go out in one moment.
const SPREAD: Duration = Duration::from_secs(1);

impl Patient {
    fn new(endpoint: Arc<Endpoint>, probe: Arc<Probe>, board: &Board) -> Self {
        let (vitals, pulse) = (board.vitals(&endpoint), board.pulse(&endpoint, &probe));
        Self { endpoint, probe, vitals, pulse, tally: Tally::default() }
    }

    /// Probes until it is aborted.
    async fn follow(mut self) {
        let mut prober = Prober::default();
        sleep(self.probe.every.min(SPREAD).mul_f64(chance())).await;
        loop {
            let begun = Instant::now();
            let verdict = prober.ask(&self.endpoint, &self.probe).await;
            self.judge(verdict);
            let pause = match self.pulse.health() {
                Health::NotReady => NOT_READY.min(self.probe.every),
                Health::Untested | Health::Healthy | Health::Silent => jittered(self.probe.every),
            };
            sleep_until((begun + pause).max(Instant::now() + LEAST)).await;
        }
    }

    /// Publishes what follows from one more outcome.
    fn judge(&mut self, verdict: Verdict) {
        let before = self.pulse.health();
        let (found, why) = match verdict {
            Verdict::Well => (Health::Healthy, String::new()),
            Verdict::Silent(why) => (Health::Silent, why),
            Verdict::NotReady(why) => (Health::NotReady, why),
        };
        if !found.is_unhealthy() {
            let begun = self.tally.since;
            self.tally = Tally { successes: self.tally.successes + 1, ..Tally::default() };
            if before == Health::Healthy || (before.is_unhealthy() && self.tally.successes < self.probe.successes) {
                self.tally.since = begun.filter(|_| before.is_unhealthy());
                return;
            }
            if before.is_unhealthy() {
                self.vitals.recovered();
                self.tell_recovery(begun);
            }
            return self.pulse.publish(Health::Healthy, "");
        }
        self.tally.successes = 0;
        self.tally.failures += 1;
        self.tally.since.get_or_insert_with(Instant::now);
        let is_late = self.tally.failures >= self.probe.failures;
        if !before.is_unhealthy() && is_late {
            self.tell_illness(&why);
        }
        // How it is unhealthy may change from probe to probe: a port that opens says 503 first.
        if before.is_unhealthy() || is_late {
            self.pulse.publish(found, &why);
        }
    }

    fn tell_illness(&self, why: &str) {
        let (label, times) = (&self.endpoint.label, self.tally.failures);
        tracing::warn!(
            event = "unhealthy",
            endpoint = %label,
            why,
            times,
            "{label} is unhealthy: {why} ({times} times in a row); tunnels that stand are not touched"
        );
    }

    fn tell_recovery(&self, begun: Option<Instant>) {
        let (label, seconds) = (&self.endpoint.label, begun.map_or(0, |begun| begun.elapsed().as_secs()));
        tracing::info!(event = "healthy", endpoint = %label, seconds, "{label} is healthy again, after {seconds} s");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::upstream::EndpointAddr;

    fn patient(failures: usize, successes: usize) -> Patient {
        let address = EndpointAddr::Ip(([127, 0, 0, 1], 1).into());
        let endpoint = Arc::new(Endpoint::new(address, None, Duration::ZERO, 0));
        let probe = Probe {
            target: "/startupz".into(),
            host: None,
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            failures,
            successes,
            is_websocket: false,
        };
        Patient::new(endpoint, Arc::new(probe), &Board::new())
    }

    #[test]
    fn only_so_many_in_a_row_change_anything() {
        let (well, silent, not_ready) = (
            || Verdict::Well,
            || Verdict::Silent("no answer within 5 s".into()),
            || Verdict::NotReady("it answers 503".into()),
        );
        type Say<'a> = &'a dyn Fn() -> Verdict;
        let mut patient = patient(3, 2);
        let steps: [(Say<'_>, Health); 15] = [
            (&silent, Health::Untested),
            (&silent, Health::Untested),
            // One success at the start is enough: nothing was known.
            (&well, Health::Healthy),
            (&silent, Health::Healthy),
            (&not_ready, Health::Healthy),
            (&well, Health::Healthy),
            (&silent, Health::Healthy),
            (&silent, Health::Healthy),
            (&silent, Health::Silent),
            // What it says itself is newer than its silence.
            (&not_ready, Health::NotReady),
            (&well, Health::NotReady),
            (&silent, Health::Silent),
            (&well, Health::Silent),
            (&well, Health::Healthy),
            (&silent, Health::Healthy),
        ];
        for (step, (say, expected)) in steps.into_iter().enumerate() {
            patient.judge(say());
            assert_eq!(patient.pulse.health(), expected, "step {step}");
        }
    }
}
