//! The server: start, reload, stop. The only file that knows all parts.
//!
//! What can fail is done first and changes nothing: read, compile, load certificates, bind. Then
//! everything is put in force in steps that cannot fail. Signals and the service manager are
//! `control`'s business.

mod addresses;
mod banner;
mod capacity;
mod diff;
mod doors;
mod fault;
pub mod history;
mod log;

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::access_log::{self, AccessLog};
use crate::acme;
use crate::acme::event::timestamp;
use crate::admin::Admin;
use crate::admin::facts::{self, Facts};
use crate::config::report::Report;
use crate::config::{Input, Loaded};
use crate::drain::{Drain, Phase, Work};
use crate::forward::board::Board;
use crate::forward::health;
use crate::listen::bind::Adopted;
use crate::listen::{Gate, panic_text};
use crate::metrics::Metrics;
use crate::ocsp;
use crate::policy::password::Passwords;
use crate::policy::{geo, limits, switch, user_files};
use crate::site::{ProcessPolicy, SiteTable};
use crate::snapshot::Snapshot;
use crate::storage;
use crate::tls::certs::CertStore;
use crate::tls::{self, Policies};
use crate::worker::{Ended, Parts, Worker};
use capacity::Capacity;
use doors::Doors;

pub use fault::StartError;
pub use log::Log;
pub(crate) use log::printable;

/// What the machine gives the process.
#[derive(Debug)]
pub struct Machine {
    /// Sockets of the service manager.
    pub adopted: Adopted,
    /// How many descriptors the process may have.
    pub descriptors: usize,
}

/// A running edge.
pub struct Server {
    source: Input,
    machine: Machine,
    log: Log,
    certs: Arc<CertStore>,
    parts: Parts,
    writer: access_log::Writer,
    ended: mpsc::UnboundedReceiver<Ended>,
    doors: Doors,
    loaded_at: String,
    admin: Admin,
    facts: Arc<Facts>,
}

/// What was still open when the process stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Requests without an end.
    pub requests: usize,
    /// Tunnels that were told 1001, or worse.
    pub tunnels: usize,
}

impl Server {
    /// Starts everything. When this returns, every address is open and served.
    ///
    /// # Errors
    /// When the configuration has faults, or the machine refuses something.
    pub async fn start(source: Input, machine: Machine, log: Log) -> Result<Self, StartError> {
        let began = Instant::now();
        let mut loaded = load(source.clone()).await?;
        log.configure(&loaded.table.edge.log);
        warn_of(&loaded, &log);
        let certs = Arc::new(CertStore::new());
        let policies = Arc::new(Policies::new(certs.clone(), Arc::default()));
        let certificates = prepare(&loaded.table, &certs, &policies).await?;
        let capacity = Capacity::of(&loaded.table, machine.descriptors);
        let workers = worker_count(&loaded.table.edge.process);
        let opened = doors::open(addresses::wanted(&loaded.table), workers, &machine.adopted, &[])?;
        let prepared = Admin::default().prepare(&loaded.table).map_err(StartError::Listen)?;
        let (access_log, writer) = AccessLog::start(&loaded.table.edge.log).map_err(StartError::AccessLog)?;
        let passwords = Passwords::new().map_err(|source| StartError::System { what: "random numbers", source })?;

        certificates.publish(&certs);
        Doors::default().settle(&mut loaded.table, &opened);
        let parts = Parts {
            snapshot: Arc::new(Snapshot::new(loaded.table)),
            policies,
            drain: Drain::new(),
            log: access_log,
            auth: Arc::new(passwords),
            gate: Gate::new(capacity.connections),
            limits: Arc::default(),
            metrics: Metrics::new(),
            board: Arc::new(Board::new()),
        };
        parts.limits.bound_crowd(capacity.of_one);

        let (ends, ended) = mpsc::unbounded_channel();
        let started = (0..workers).map(|index| Worker::start(index, parts.clone(), ends.clone()));
        let workers = started.collect::<io::Result<_>>();
        let workers = workers.map_err(|source| StartError::System { what: "a worker thread", source })?;
        let doors = Doors::new(workers);
        let (panics, lost_lines) = (log.panic_count(), Box::new(log.lost_lines()));
        let facts = Arc::new(Facts::new(&parts, &certs, doors.ears(), source.to_string(), panics, lost_lines));
        let admin = Admin::default();
        let mut server =
            Self { source, machine, log, certs, parts, writer, ended, doors, loaded_at: date(), admin, facts };
        // A person has the banner in place of these lines.
        let is_quiet = server.log.is_for_people();
        server.admin.put_in_force(prepared, &server.facts, is_quiet);
        for (want, opened) in opened {
            server.doors.add(want, opened, is_quiet).await?;
        }
        if !is_quiet {
            capacity.announce(server.machine.descriptors);
        }
        server.start_actors();
        server.keep_history(&loaded.sources);
        server.announce(began);
        Ok(server)
    }

    /// Takes the configuration anew. On an error nothing has changed.
    ///
    /// # Errors
    /// When the configuration has faults, or the machine refuses something.
    pub async fn reload(&mut self) -> Result<(), StartError> {
        let outcome = self.replace().await;
        self.parts.metrics.reloaded(outcome.is_ok());
        if let Err(fault) = &outcome {
            let generation = self.parts.snapshot.current().number;
            self.facts.reloads.keep(false, generation, format!("{fault}\n{}", fault.to_text(false)));
            let unchanged =
                format!("the running configuration (generation {generation}, loaded {}) is unchanged", self.loaded_at);
            tracing::error!(
                event = "reload_failed",
                generation,
                report = fault.to_text(self.log.is_for_people()),
                "{fault}; {unchanged}"
            );
        }
        outcome
    }

    /// See `reload`.
    async fn replace(&mut self) -> Result<(), StartError> {
        let mut loaded = load(self.source.clone()).await?;
        let old = self.parts.snapshot.keep();
        let certificates = prepare(&loaded.table, &self.certs, &self.parts.policies).await?;
        let plan = addresses::plan(self.doors.roles(), addresses::wanted(&loaded.table));
        let opened = self.doors.open(plan.open, &self.machine.adopted)?;
        let prepared = self.admin.prepare(&loaded.table).map_err(StartError::Listen)?;
        if old.table.edge.log != loaded.table.edge.log {
            self.parts.log.reconfigure(&loaded.table.edge.log).map_err(StartError::AccessLog)?;
        }

        // From here nothing fails.
        self.log.configure(&loaded.table.edge.log);
        warn_of(&loaded, &self.log);
        self.doors.settle(&mut loaded.table, &opened);
        let capacity = Capacity::of(&loaded.table, self.machine.descriptors);
        self.parts.gate.set_limit(capacity.connections);
        self.parts.limits.bound_crowd(capacity.of_one);
        let kept = plan.keep.len() + plan.change.len();
        let (connections, tunnels) = self.open_work();
        let changes = diff::summary(&old.table, &loaded.table);
        if old.table.edge.process.workers != loaded.table.edge.process.workers {
            tracing::warn!(
                event = "restart_needed",
                key = "process.workers",
                "process.workers is read at start only: restart to change it"
            );
        }
        certificates.publish(&self.certs);
        let generation = self.parts.snapshot.replace(loaded.table);
        let current = self.parts.snapshot.keep();
        self.parts.policies.retain(&current.table);
        tls::withdraw_unused(&current.table, &self.certs);
        for want in plan.change {
            self.doors.change_role(&want).await;
        }
        for (want, opened) in opened {
            if let Err(fault) = self.doors.add(want, opened, false).await {
                tracing::error!(event = "listen_failed", "{}", fault.to_text(false).trim_end());
            }
        }
        for key in plan.close {
            for address in self.doors.close(&key).await {
                tracing::info!(event = "closed", %address, "no longer listening");
            }
        }
        self.admin.put_in_force(prepared, &self.facts, false);
        self.loaded_at = date();
        self.keep_history(&loaded.sources);
        let kept_text = kept_text(kept, connections, tunnels);
        self.facts.reloads.keep(true, generation, format!("{changes}\n{kept_text}"));
        tracing::info!(
            event = "reloaded",
            generation,
            listeners = kept,
            connections,
            tunnels,
            "generation {generation}: {changes}\n{kept_text}"
        );
        Ok(())
    }

    /// Opens the log files anew: they were moved away.
    pub fn reopen_logs(&self) {
        self.parts.log.reopen();
        tracing::info!(event = "reopened", dropped = self.parts.log.dropped(), "log files reopened");
    }

    /// One sentence about the process, for the service manager.
    pub fn status(&self) -> String {
        let current = self.parts.snapshot.current();
        let (connections, tunnels) = self.open_work();
        let sites = counted(current.table.sites().len(), "site");
        let (connections, tunnels) = (counted(connections, "connection"), counted(tunnels, "tunnel"));
        let ending = acme::alert::ending(&self.certs, current.table.edge.acme.alert_before, OffsetDateTime::now_utc());
        let ending = ending.map(|text| format!(", {text}")).unwrap_or_default();
        // First, and until one succeeds: what is in the file is not what runs.
        let failed = self.facts.reloads.last_failure().map(|reload| {
            let fault = reload.report.lines().next().unwrap_or_default();
            format!("reload failed ({}), nothing changed: {fault}; ", timestamp(reload.at))
        });
        let failed = failed.unwrap_or_default();
        format!("{failed}generation {}, {sites}, {connections}, {tunnels}{ending}", current.number)
    }

    /// True when every worker answers within this time.
    pub async fn is_alive(&self, within: Duration) -> bool {
        self.doors.is_answered(Instant::now() + within).await
    }

    /// Resolves when a worker has ended, which none may do by itself. Cancel safe.
    pub async fn worker_ended(&mut self) -> StartError {
        match self.ended.recv().await {
            Some(Ended { index, panic }) => {
                StartError::Worker { index, why: panic.unwrap_or_else(|| "it was not told to".into()) }
            }
            None => StartError::Worker { index: 0, why: "all workers are gone".into() },
        }
    }

    /// Stops accepting and lets work end: requests within `grace`, then tunnels within
    /// `tunnel_grace`, then tunnels are told 1001. Says what was cut.
    pub async fn drain(&mut self) -> Cut {
        let process = self.parts.snapshot.current().table.edge.process.clone();
        let drain = self.parts.drain.clone();
        let requests_until = Instant::now() + process.grace;
        // The phase first: what the emptied queues bring is answered with `Connection: close`.
        drain.advance(Phase::Draining);
        // A worker that is stuck must not hold up the end of the others.
        if timeout(GOODBYE, self.doors.close_all()).await.is_err() {
            tracing::error!(event = "stuck", "a worker did not close its listeners in time");
        }
        // Said when it is true: whoever reads it can rely on both.
        let (connections, tunnels) = self.open_work();
        let requests = drain.count(Work::Request);
        tracing::info!(
            event = "draining",
            connections,
            requests,
            tunnels,
            "no new connections; finishing what is open"
        );
        requests_ended(&drain, requests_until).await;
        // An elapsed time is an answer too: what is left is told, then cut.
        let _ = timeout(process.tunnel_grace, drain.none_left(Work::Tunnel)).await;
        let mut cut = Cut { requests: 0, tunnels: drain.count(Work::Tunnel) };
        drain.advance(Phase::CutTunnels);
        let _ = timeout(GOODBYE, drain.none_left(Work::Tunnel)).await;
        // Requests that began after the tunnels were looked at have their time too.
        let _ = timeout_at(requests_until, drain.none_left(Work::Request)).await;
        cut.requests = drain.count(Work::Request);
        // Orders were given up when the drain began: they only take their proofs down.
        let _ = timeout(TIDYING, drain.none_left(Work::Order)).await;
        cut
    }

    /// The longest time that `drain` and `stop` may take together.
    pub fn patience(&self) -> Duration {
        let process = &self.parts.snapshot.current().table.edge.process;
        process.grace + process.tunnel_grace + 3 * GOODBYE + TIDYING
    }

    /// What is open now, as it is cut by a stop at once.
    pub fn unfinished(&self) -> Cut {
        let drain = &self.parts.drain;
        Cut { requests: drain.count(Work::Request), tunnels: drain.count(Work::Tunnel) }
    }

    /// Ends the workers and writes what the logs still hold.
    pub async fn stop(self, cut: Cut) {
        self.parts.drain.advance(Phase::Stopped);
        let threads = self.doors.stop();
        // The records of what is dropped now must be written, so the threads are waited for; one
        // that is stuck loses its own and holds up nobody.
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        if timeout(GOODBYE, joined).await.is_err() {
            tracing::error!(event = "stuck", "a worker did not stop in time");
        }
        let Cut { requests, tunnels } = cut;
        let gate = &self.parts.gate;
        let (refused, panics, dropped) = (gate.refused(), self.log.panics(), self.parts.log.dropped());
        tracing::info!(
            event = "drained",
            requests,
            tunnels,
            refused,
            panics,
            dropped,
            "stopped; {} and {} were cut",
            counted(requests, "request"),
            counted(tunnels, "tunnel")
        );
        let writer = self.writer;
        let finished = tokio::task::spawn_blocking(|| writer.finish());
        // A disk that does not answer must not keep the process.
        let _ = timeout(GOODBYE, finished).await;
        self.log.finish();
    }

    /// Connections and tunnels that are open.
    fn open_work(&self) -> (usize, usize) {
        (self.parts.drain.count(Work::Connection), self.parts.drain.count(Work::Tunnel))
    }

    /// Starts what works in the background and speaks only by publishing.
    fn start_actors(&self) {
        let (certs, snapshot) = (self.certs.clone(), self.parts.snapshot.clone());
        supervise("certificate files", move || tls::files::watch(certs.clone(), snapshot.clone()));
        let (certs, snapshot) = (self.certs.clone(), self.parts.snapshot.clone());
        supervise("local certificates", move || tls::local_ca::watch(certs.clone(), snapshot.clone()));
        let facts = self.facts.clone();
        supervise("metrics", move || facts::watch(facts.clone()));
        let snapshot = self.parts.snapshot.clone();
        supervise("maintenance", move || switch::watch(snapshot.clone()));
        let (policies, snapshot) = (self.parts.policies.clone(), self.parts.snapshot.clone());
        supervise("revocation lists", move || tls::revocation::watch(policies.clone(), snapshot.clone()));
        let snapshot = self.parts.snapshot.clone();
        supervise("countries", move || geo::watch(snapshot.clone()));
        let (snapshot, board) = (self.parts.snapshot.clone(), self.parts.board.clone());
        supervise("health", move || health::watch(snapshot.clone(), board.clone()));
        let (limits, snapshot) = (self.parts.limits.clone(), self.parts.snapshot.clone());
        supervise("limits", move || limits::tidy(limits.clone(), snapshot.clone()));
        let snapshot = self.parts.snapshot.clone();
        supervise("users files", move || user_files::watch(snapshot.clone()));
        let certs = self.certs.clone();
        supervise("OCSP", move || ocsp::watch(certs.clone()));
        let (events, inbox) = acme::event::queue();
        let snapshot = self.parts.snapshot.clone();
        supervise("events", move || acme::event::tell_all(inbox.clone(), snapshot.clone()));
        let (certs, snapshot, alerts) = (self.certs.clone(), self.parts.snapshot.clone(), events.clone());
        supervise("alerts", move || acme::alert::watch(certs.clone(), snapshot.clone(), alerts.clone()));
        let proofs = self.parts.policies.proofs().clone();
        let shared = acme::Shared::new(
            self.certs.clone(),
            proofs,
            self.parts.snapshot.clone(),
            events,
            self.parts.drain.clone(),
        );
        let shared = Arc::new(shared);
        supervise("certificates", move || acme::keep_all(shared.clone()));
    }

    /// Keeps the configuration in force. A storage that cannot be written is no reason to stop.
    fn keep_history(&self, sources: &[history::Source]) {
        let current = self.parts.snapshot.current();
        let table = &current.table;
        if let Err(error) = history::keep(&table.edge.storage, sources, table.edge.process.history) {
            tracing::warn!(event = "history", "{error}: `tidegate rollback` will not know this configuration");
        }
    }

    /// Says that the edge serves.
    fn announce(&self, began: Instant) {
        let current = self.parts.snapshot.current();
        let took = began.elapsed();
        for address in self.machine.adopted.unused(&self.doors.configured()) {
            tracing::warn!(
                event = "unused_socket",
                address,
                "the service manager handed over a socket that [listen] does not name"
            );
        }
        if self.log.is_for_people() {
            log::say(&banner::text(&self.source, &current.table, took));
        } else {
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            let sites = current.table.sites().len();
            tracing::info!(event = "ready", generation = current.number, sites, ms, "ready");
        }
    }
}

/// How long orders have to take their records out of the DNS. Our choice: one slow call to a provider.
const TIDYING: Duration = Duration::from_secs(15);
/// How long tunnels have to say goodbye, and threads to end: a close frame needs one round trip.
const GOODBYE: Duration = Duration::from_secs(3);

/// Resolves when no request is open and none is about to come, or at the deadline.
///
/// A connection without a request may be in its handshake, and was told that it is welcome; so it
/// gets a moment. One that carries tunnels stays, so connections are not waited for to the end.
async fn requests_ended(drain: &Drain, until: Instant) {
    // 1 s, our choice: longer than an honest handshake and head, shorter than a silent preconnect.
    const MOMENT: Duration = Duration::from_secs(1);
    let ended = async {
        loop {
            drain.none_left(Work::Request).await;
            let quiet = timeout(MOMENT, drain.none_left(Work::Connection)).await;
            if drain.count(Work::Request) == 0 || quiet.is_ok() {
                return;
            }
        }
    };
    // At the deadline what is left is cut.
    let _ = timeout_at(until, ended).await;
}

/// Reads and compiles the configuration, away from the threads that drive sockets and signals.
async fn load(source: Input) -> Result<Loaded, StartError> {
    let loading = tokio::task::spawn_blocking(move || {
        let loaded = source.load()?;
        // Before anything is served by it: a site under maintenance is under maintenance from its first request on.
        switch::look(&loaded.table);
        Ok(loaded)
    });
    off_thread(loading).await?.map_err(StartError::Config)
}

/// Loads the certificates of a table and builds its TLS policies. Nothing is in force yet.
async fn prepare(table: &SiteTable, certs: &Arc<CertStore>, policies: &Policies) -> Result<tls::Loaded, StartError> {
    let loading = {
        let (table, certs) = (table.clone(), certs.clone());
        tokio::task::spawn_blocking(move || tls::load_all(&table, &certs))
    };
    let loaded = off_thread(loading).await?.map_err(StartError::Tls)?;
    for warning in &loaded.warnings {
        tracing::warn!(event = "certificate", site = %warning.site, "{}", warning.text);
    }
    policies.prepare(table).map_err(|fault| StartError::Tls(vec![fault]))?;
    if table.sites().iter().any(|site| acme::keeper::is_from_ca(site)) {
        let directory = table.edge.storage.clone();
        off_thread(tokio::task::spawn_blocking(move || warn_of_storage(&directory))).await?;
    }
    Ok(loaded)
}

/// Says loudly that certificates cannot be kept. What is there is served all the same, so this is no reason to stop.
fn warn_of_storage(directory: &Path) {
    let Err(error) = storage::probe(directory, directory) else { return };
    let (why, help) = storage::words(&error);
    let place = directory.display();
    tracing::error!(
        event = "storage",
        directory = %place,
        help,
        "cannot write in {place}: {why}: no certificate is ordered or renewed until that is mended; what is there is served"
    );
}

/// The result of blocking work; a panic there is a fault of ours and fails only what asked for it.
async fn off_thread<T>(work: tokio::task::JoinHandle<T>) -> Result<T, StartError> {
    let failed = |error: tokio::task::JoinError| StartError::System { what: "blocking work", source: error.into() };
    work.await.map_err(failed)
}

/// Shows what works but should be looked at.
fn warn_of(loaded: &Loaded, log: &Log) {
    if loaded.warnings.is_empty() {
        return;
    }
    let count = loaded.warnings.len();
    let report = Report::from(loaded.warnings.clone()).to_text(log.is_for_people());
    tracing::warn!(event = "config_warnings", count, report, "the configuration has {count} warnings");
}

/// One worker a core, unless the file says otherwise.
fn worker_count(process: &ProcessPolicy) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    process.workers.unwrap_or_else(cores).max(1)
}

/// Runs an actor for ever: when it fails, it is logged and started again after a pause.
fn supervise<F>(name: &'static str, start: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send,
{
    // Long enough that a fault that stays does not fill the log.
    const PAUSE: Duration = Duration::from_secs(10);
    tokio::spawn(async move {
        loop {
            let ended = AssertUnwindSafe(async { start().await }).catch_unwind().await;
            let why = ended.err().map_or_else(|| "it ended".into(), |panic| panic_text(&*panic));
            let seconds = PAUSE.as_secs();
            tracing::error!(
                event = "actor_failed",
                actor = name,
                why,
                seconds,
                "an actor failed and starts again in {seconds} s"
            );
            tokio::time::sleep(PAUSE).await;
        }
    });
}

/// What a reload left open.
fn kept_text(listeners: usize, connections: usize, tunnels: usize) -> String {
    let (connections, tunnels) = (counted(connections, "connection"), counted(tunnels, "tunnel"));
    format!("kept: {}, {connections}, {tunnels}", counted(listeners, "listener"))
}

/// `1 site`, `3 sites`.
fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Now, as a person reads it.
fn date() -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    OffsetDateTime::now_utc().format(form).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests;
