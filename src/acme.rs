//! Certificates from a CA (RFC 8555): which site needs one, who keeps it.
//!
//! An actor that only publishes certificates: each site has a keeper (`acme/keeper.rs`), which learns of changes from the
//! snapshot. No request and no handshake ever waits for anything here.

/// Does the same again while the CA only says that the nonce was too old (RFC 8555 6.5). The library tries a few times
/// itself; a CA that rejects many wants more. A macro, because a closure that borrows cannot promise to be `Send`.
macro_rules! again {
    ($call:expr) => {{
        let mut tries = 0;
        loop {
            match $call.await {
                Err(error) if $crate::acme::fault::is_bad_nonce(&error) && tries < 10 => tries += 1,
                outcome => break outcome,
            }
        }
    }};
}

pub mod account;
pub mod alert;
pub mod ca;
pub mod check;
pub mod dns;
pub mod event;
pub mod fault;
pub mod health;
pub mod keeper;
pub mod order;
pub mod plan;
pub mod program;
pub mod store;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::addr::HostPattern;
use crate::drain::Drain;
use crate::snapshot::Snapshot;
use crate::storage::private_directory;
use crate::tls::certs::CertStore;
use crate::tls::proofs::ProofBoard;
use event::Events;
use fault::{AcmeFault, Blame};
use health::Health;
use keeper::Keeper;
use store::{CERTIFICATE, Lock, Store, WANTED};

/// What all keepers share.
#[derive(Debug)]
pub struct Shared {
    /// Certificates in force.
    pub certs: Arc<CertStore>,
    /// Proofs that a CA may ask for.
    pub proofs: Arc<ProofBoard>,
    /// The configuration in force.
    pub snapshot: Arc<Snapshot>,
    /// Who hears of what happens.
    pub events: Events,
    /// Which CAs are away.
    pub health: Health,
    /// How many orders may run at once.
    pub slots: Semaphore,
    /// The way to the end of the process.
    pub drain: Drain,
}

/// Orders at once. Our choice: a start with a hundred names takes minutes then, and no CA minds.
const ORDERS: usize = 4;
/// Before a keeper that failed by a fault of ours is started again.
const PAUSE: Duration = Duration::from_secs(10);

impl Shared {
    /// For one process.
    pub fn new(
        certs: Arc<CertStore>,
        proofs: Arc<ProofBoard>,
        snapshot: Arc<Snapshot>,
        events: Events,
        drain: Drain,
    ) -> Self {
        Self { certs, proofs, snapshot, events, health: Health::new(), slots: Semaphore::new(ORDERS), drain }
    }
}

/// Has a keeper for each site that wants a certificate from a CA. Never returns.
pub async fn keep_all(shared: Arc<Shared>) {
    let mut reloaded = shared.snapshot.changes();
    let mut keepers: JoinSet<HostPattern> = JoinSet::new();
    let mut running: HashMap<HostPattern, Arc<Notify>> = HashMap::new();
    let eyes = Eyes::default();
    let (mut presence, mut watcher) = (None, None);
    loop {
        let table = shared.snapshot.keep();
        let storage = &table.table.edge.storage;
        let wanted: Vec<HostPattern> =
            table.table.sites().iter().filter(|site| keeper::is_from_ca(site)).map(|site| site.host.clone()).collect();
        for host in wanted.iter().filter(|host| !running.contains_key(*host)).cloned().collect::<Vec<_>>() {
            let touched = Arc::new(Notify::new());
            running.insert(host.clone(), Arc::clone(&touched));
            let keeper = Keeper::new(Arc::clone(&shared), host.clone(), touched);
            keepers.spawn(async move {
                // A panic ends this keeper's work, not the others': the set reports it with its name.
                let work = std::panic::AssertUnwindSafe(keeper.keep());
                if futures_util::FutureExt::catch_unwind(work).await.is_err() {
                    tracing::error!(event = "actor_failed", actor = "certificates", site = %host, "the keeper of a certificate failed and starts again in 10 s");
                    tokio::time::sleep(PAUSE).await;
                }
                host
            });
        }
        eyes.set(Store::new(storage), &running);
        if !wanted.is_empty() {
            settle(storage, &mut presence, &mut watcher, &eyes).await;
        }
        tokio::select! {
            Ok(()) = reloaded.changed() => {}
            Some(Ok(ended)) = keepers.join_next() => {
                running.remove(&ended);
            }
        }
    }
}

/// Marks this process as one that serves from the store, and listens to the store's files. A store that cannot be written
/// is reported by those who need it.
async fn settle(
    storage: &Path,
    presence: &mut Option<(PathBuf, Lock)>,
    watcher: &mut Option<(PathBuf, RecommendedWatcher)>,
    eyes: &Eyes,
) {
    let store = Store::new(storage);
    if presence.as_ref().is_none_or(|(of, _)| of != storage) {
        *presence = mark(&store).await.map(|lock| (storage.to_owned(), lock));
    }
    if watcher.as_ref().is_none_or(|(of, _)| of != storage) {
        let (place, directory, eyes) = (storage.to_owned(), store.certificates(), eyes.clone());
        // Without events the keepers look once a minute.
        let armed = off_thread(move || {
            let armed = private_directory(&place, &directory).ok().and_then(|()| {
                let mut watcher = notify::recommended_watcher(move |event| eyes.see(event)).ok()?;
                watcher.watch(&directory, RecursiveMode::Recursive).ok()?;
                Some(watcher)
            });
            Ok::<_, AcmeFault>(armed)
        });
        *watcher = armed.await.ok().flatten().map(|watcher| (storage.to_owned(), watcher));
    }
}

/// Whoever looks whether somebody serves has the lock for a moment: then once more.
async fn mark(store: &Store) -> Option<Lock> {
    for _ in 0..50 {
        let marker = store.clone();
        if let Some(lock) = off_thread(move || marker.mark_running()).await.ok()? {
            return Some(lock);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// Wakes the keeper whose files have changed.
#[derive(Clone, Default)]
struct Eyes(Arc<Mutex<HashMap<OsString, Arc<Notify>>>>);

impl Eyes {
    fn set(&self, store: Store, running: &HashMap<HostPattern, Arc<Notify>>) {
        let by_directory = running
            .iter()
            .filter_map(|(host, touched)| Some((store.of_site(host).file_name()?.to_owned(), Arc::clone(touched))));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = by_directory.collect();
    }

    fn see(&self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else { return };
        if event.kind.is_access() {
            return;
        }
        let keepers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &event.paths {
            // Our own ledgers, locks and half-written files wake nobody.
            if path.file_name().is_some_and(|name| name == CERTIFICATE || name == WANTED)
                && let Some(touched) = path.parent().and_then(Path::file_name).and_then(|name| keepers.get(name))
            {
                touched.notify_one();
            }
        }
    }
}

/// Runs what blocks away from the threads that drive sockets and signals.
pub(crate) async fn off_thread<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, AcmeFault>
where
    T: Send + 'static,
    E: Into<AcmeFault> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(error) => {
            Err(AcmeFault::new(Blame::Storage, "internal", format!("blocking work failed: {error}"), "report this"))
        }
    }
}
