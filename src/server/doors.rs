//! The open addresses and the workers that accept on them: open, change, close, ask.
//!
//! Which addresses are wanted is decided by `addresses`; how a socket is made by `listen::bind`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::addresses::{self, Key, Wanted};
use super::fault::StartError;
use crate::addr::ListenAddr;
use crate::listen::bind::{self, Adopted, BindError, Opened};
use crate::site::{Role, SiteTable};
use crate::worker::{Command, DoorId, Ear, Worker};

/// All workers, and the addresses on which each of them accepts.
#[derive(Debug, Default)]
pub(super) struct Doors {
    workers: Vec<Worker>,
    open: BTreeMap<Key, Vec<OpenAddress>>,
    next: u64,
}

/// An address on which every worker accepts.
#[derive(Debug)]
struct OpenAddress {
    id: DoorId,
    role: Role,
    /// Removes the unix socket's file when the address is given up.
    file: Option<bind::SocketFile>,
}

impl Doors {
    /// Nothing is open yet.
    pub(super) fn new(workers: Vec<Worker>) -> Self {
        Self { workers, ..Self::default() }
    }

    /// What each open address is for.
    pub(super) fn roles(&self) -> impl Iterator<Item = (&Key, &Role)> {
        self.open.iter().filter_map(|(key, open)| Some((key, &open.first()?.role)))
    }

    /// The open addresses as the configuration names them.
    pub(super) fn configured(&self) -> Vec<ListenAddr> {
        self.open.keys().map(|key| key.address.clone()).collect()
    }

    /// Opens further addresses, or none; nobody accepts on them yet.
    ///
    /// # Errors
    /// Every address that the system refuses.
    pub(super) fn open(&self, wanted: Vec<Wanted>, adopted: &Adopted) -> Result<Vec<(Wanted, Opened)>, StartError> {
        open(wanted, self.workers.len(), adopted, &self.own_ports())
    }

    /// Writes the real addresses of open and newly opened listeners into a table.
    pub(super) fn settle(&self, table: &mut SiteTable, opened: &[(Wanted, Opened)]) {
        addresses::settle(table, |key| match self.open.get(key) {
            Some(known) => known.iter().map(|open| open.role.address.clone()).collect(),
            None => {
                let new = opened.iter().filter(|(want, _)| want.key == *key);
                new.map(|(_, opened)| opened.address.clone()).collect()
            }
        });
    }

    /// Lets every worker accept on a new address.
    ///
    /// # Errors
    /// When a runtime cannot watch the socket.
    pub(super) async fn add(&mut self, want: Wanted, opened: Opened, is_quiet: bool) -> Result<(), StartError> {
        let Wanted { key, mut role } = want;
        let Opened { address, sockets, is_adopted, file } = opened;
        role.address = address;
        let id = DoorId(self.next);
        self.next += 1;
        let shared_role = Arc::new(role.clone());
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let (done, outcome) = oneshot::channel();
            worker.tell(Command::Listen { id, socket, role: shared_role.clone(), is_adopted, done }).await;
            // No answer: the worker is gone, and `worker_ended` says so.
            if let Ok(Err(source)) = outcome.await {
                return Err(StartError::System { what: "to watch a socket", source });
            }
        }
        if !is_quiet {
            let listener = role.listener.as_deref();
            tracing::info!(event = "listening", address = %role.address, role = used_for(&role), listener, "listening");
        }
        self.open.entry(key).or_default().push(OpenAddress { id, role, file });
        Ok(())
    }

    /// An address stays open for another use.
    pub(super) async fn change_role(&mut self, want: &Wanted) {
        let Some(all) = self.open.get_mut(&want.key) else { return };
        let mut changes = Vec::with_capacity(all.len());
        for open in all {
            open.role = Role { address: open.role.address.clone(), ..want.role.clone() };
            changes.push((open.id, Arc::new(open.role.clone())));
        }
        for (id, role) in changes {
            let listener = role.listener.as_deref();
            tracing::info!(event = "listening", address = %role.address, role = used_for(&role), listener, "listening");
            self.tell_all(|done| Command::ChangeRole { id, role: role.clone(), done }).await;
        }
    }

    /// Empties the queues of an address and gives it up. Its connections live on.
    pub(super) async fn close(&mut self, key: &Key) -> Vec<ListenAddr> {
        let mut closed = Vec::new();
        for OpenAddress { id, role, file } in self.open.remove(key).unwrap_or_default() {
            self.tell_all(|done| Command::Close { id, done }).await;
            drop(file);
            closed.push(role.address);
        }
        closed
    }

    /// As `close`, for all of them.
    pub(super) async fn close_all(&mut self) {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        for key in &keys {
            self.close(key).await;
        }
    }

    /// Tells all workers the same, then waits until all have done it.
    async fn tell_all(&self, command: impl Fn(oneshot::Sender<()>) -> Command) {
        let mut answers = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            worker.tell(command(done)).await;
            answers.push(answer);
        }
        for answer in answers {
            // No answer: the worker is gone, and `worker_ended` says so.
            let _ = answer.await;
        }
    }

    /// True when every worker answers before the deadline.
    pub(super) async fn is_answered(&self, deadline: Instant) -> bool {
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            let asked = async {
                worker.tell(Command::Ping { done }).await;
                answer.await.is_ok()
            };
            if !timeout_at(deadline, asked).await.unwrap_or(false) {
                tracing::error!(event = "stuck", worker = worker.index, "a worker does not answer");
                return false;
            }
        }
        true
    }

    /// Ways to ask the workers.
    pub(super) fn ears(&self) -> Vec<Ear> {
        self.workers.iter().map(Worker::ear).collect()
    }

    /// Stops all workers; their threads are handed back to be joined.
    pub(super) fn stop(self) -> Vec<JoinHandle<()>> {
        self.workers.into_iter().map(Worker::stop).collect()
    }

    /// Ports on which we listen already.
    fn own_ports(&self) -> Vec<u16> {
        let ports = self.open.values().flatten().filter_map(|open| match &open.role.address {
            ListenAddr::Tcp(address) => Some(address.port()),
            ListenAddr::Unix(_) | ListenAddr::Systemd(_) => None,
        });
        ports.collect()
    }
}

/// Opens all addresses, or none.
pub(super) fn open(
    wanted: Vec<Wanted>,
    workers: usize,
    adopted: &Adopted,
    own_ports: &[u16],
) -> Result<Vec<(Wanted, Opened)>, StartError> {
    let mut opened = Vec::new();
    let mut faults: Vec<BindError> = Vec::new();
    let count = wanted.len();
    for want in wanted {
        match bind::open(&want.key.address, workers, adopted, own_ports) {
            Ok(all) => opened.extend(all.into_iter().map(|sockets| (want.clone(), sockets))),
            // `[::]` stands in the default: a machine without IPv6 loses nothing by its absence.
            Err(error) if count + own_ports.len() > 1 && bind::is_for_lack_of_ipv6(&error) => {
                tracing::warn!(event = "no_ipv6", address = %error.address, "not listening there: this machine has no IPv6");
            }
            Err(error) => faults.push(error),
        }
    }
    if faults.is_empty() { Ok(opened) } else { Err(StartError::Listen(faults)) }
}

/// The word for a role in events.
fn used_for(role: &Role) -> &'static str {
    if role.is_tls { "https" } else { "http" }
}
