//! A worker: one core's thread with a single-threaded runtime, its own listeners and its own
//! upstream pool, so that the request path takes no lock and wakes no other core.
//!
//! It does what it is told over a bounded channel; it decides nothing. What one worker's
//! connections share is built here, once.

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::access_log::AccessLog;
use crate::connection::Shared;
use crate::drain::{Drain, Work};
use crate::forward::Upstreams;
use crate::forward::board::Board;
use crate::forward::pool::EndpointFacts;
use crate::listen::bind::Bound;
use crate::listen::{Door, Gate, panic_text};
use crate::metrics::Metrics;
use crate::metrics::tunnels::TunnelFacts;
use crate::policy::limits::Limits;
use crate::policy::password::Passwords;
use crate::request;
use crate::site::Role;
use crate::snapshot::Snapshot;
use crate::tls::Policies;

/// The number of an open listener, equal in all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DoorId(pub u64);

/// What every worker is given.
#[derive(Clone)]
pub struct Parts {
    /// The configuration in force.
    pub snapshot: Arc<Snapshot>,
    /// TLS of all sites.
    pub policies: Arc<Policies>,
    /// The way to the end.
    pub drain: Drain,
    /// Records.
    pub log: AccessLog,
    /// Who has logged in.
    pub auth: Arc<Passwords>,
    /// How many connections may be open.
    pub gate: Gate,
    /// What is counted.
    pub metrics: Metrics,
    /// The live state of limits.
    pub limits: Arc<Limits>,
    /// What is known of endpoints.
    pub board: Arc<Board>,
}

/// What a worker is told. Dropping the channel's other end stops it.
pub enum Command {
    /// Accept on a further socket; `done` says whether the runtime took it.
    Listen {
        /// Its number.
        id: DoorId,
        /// The socket.
        socket: Bound,
        /// What it is for.
        role: Arc<Role>,
        /// True when the service manager keeps it open beside us.
        is_adopted: bool,
        /// The outcome.
        done: oneshot::Sender<io::Result<()>>,
    },
    /// A socket serves something else from now on.
    ChangeRole {
        /// Which.
        id: DoorId,
        /// What.
        role: Arc<Role>,
        /// Told when it is so.
        done: oneshot::Sender<()>,
    },
    /// Empty the queue of a socket and close it.
    Close {
        /// Which.
        id: DoorId,
        /// Told when it is closed.
        done: oneshot::Sender<()>,
    },
    /// Say what is open, and how endpoints stand.
    Report {
        /// Whether tunnels are wanted too.
        has_tunnels: bool,
        /// The answer.
        done: oneshot::Sender<Facts>,
    },
    /// Answer, to show that the worker is not stuck.
    Ping {
        /// The answer.
        done: oneshot::Sender<()>,
    },
}

/// What one worker knows at the moment.
#[derive(Debug, Default)]
pub struct Facts {
    /// Tunnels that are open, the oldest first; none unless they were asked for.
    pub tunnels: Vec<TunnelFacts>,
    /// Endpoints that it has used.
    pub endpoints: Vec<EndpointFacts>,
}

/// A running worker, seen from control.
#[derive(Debug)]
pub struct Worker {
    /// Its number, from 0.
    pub index: usize,
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
}

/// A worker has ended. That is right only after it was told to stop.
#[derive(Debug)]
pub struct Ended {
    /// Its number.
    pub index: usize,
    /// What it died of; `None` when it was stopped.
    pub panic: Option<String>,
}

impl Worker {
    /// Starts a worker. `ended` hears of its end, whatever the cause.
    ///
    /// # Errors
    /// When the system has no thread or no event queue for it.
    pub fn start(index: usize, parts: Parts, ended: mpsc::UnboundedSender<Ended>) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let run = || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => {
                    // Whoever waits for the outcome exists: `start` does not return before.
                    let _ = started.send(Ok(()));
                    run(runtime, parts, inbox);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            };
            let panic = std::panic::catch_unwind(AssertUnwindSafe(run)).err().map(|panic| panic_text(&*panic));
            // Nobody listens any more when the whole process is on its way out.
            let _ = ended.send(Ended { index, panic });
        })?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("the worker ended before it began")))?;
        Ok(Self { index, commands, thread })
    }

    /// Tells the worker to do something. An error means that it is gone, which `ended` reports.
    pub async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// A way to ask the worker that does not keep it running.
    pub fn ear(&self) -> Ear {
        Ear(self.commands.downgrade())
    }

    /// Stops the worker, dropping what it still has open. Its thread is handed back to be joined.
    pub fn stop(self) -> JoinHandle<()> {
        self.thread
    }
}

/// A way to ask a worker that does not keep it running.
#[derive(Clone, Debug)]
pub struct Ear(mpsc::WeakSender<Command>);

impl Ear {
    /// What the worker knows; `None` when it does not say so in time.
    pub async fn report(&self, has_tunnels: bool, within: Duration) -> Option<Facts> {
        let asked = async {
            let (done, answer) = oneshot::channel();
            self.0.upgrade()?.send(Command::Report { has_tunnels, done }).await.ok()?;
            answer.await.ok()
        };
        timeout(within, asked).await.ok().flatten()
    }
}

/// Commands are rare and answered at once; the channel only has to be bounded.
const COMMANDS: usize = 64;

/// The life of the thread.
fn run(runtime: LocalRuntime, parts: Parts, mut inbox: mpsc::Receiver<Command>) {
    runtime.block_on(async {
        let gate = parts.gate.clone();
        let shared = share(parts);
        let mut doors = HashMap::new();
        spawn_local(sweep(shared.clone()));
        while let Some(command) = inbox.recv().await {
            obey(command, &shared, &gate, &mut doors);
        }
        // Tunnels that are cut at once end by themselves, so that each has its record.
        let _ = timeout(LAST_RECORDS, shared.parts.drain.none_left(Work::Tunnel)).await;
    });
    // Not a plain drop: a name look-up that hangs in the blocking pool must not delay the exit.
    runtime.shutdown_background();
}

/// How long tunnels may take to notice a stop at once. Our choice: they only have to be polled.
const LAST_RECORDS: Duration = Duration::from_millis(250);

/// What all connections of this worker share.
fn share(parts: Parts) -> Rc<Shared> {
    let Parts { snapshot, policies, drain, log, auth, gate: _, limits, metrics, board } = parts;
    let proofs = Arc::clone(policies.proofs());
    let metrics = metrics.worker();
    metrics.follow(&snapshot.current().table);
    let parts =
        request::Parts { snapshot, drain, log, proofs, auth, upstreams: Upstreams::new(board), limits, metrics };
    Rc::new(Shared { parts: Rc::new(parts), policies })
}

/// Closes idle upstream connections in time and forgets what a reload made useless.
async fn sweep(shared: Rc<Shared>) {
    // 1 s, our choice: well below the shortest useful keep-alive, and nothing for an idle core.
    const EVERY: Duration = Duration::from_secs(1);
    let mut changes = shared.parts.snapshot.changes();
    loop {
        // The snapshot lives as long as the worker.
        let is_changed = timeout(EVERY, changes.changed()).await.is_ok();
        let current = shared.parts.snapshot.current();
        shared.parts.upstreams.sweep(&current.table);
        if is_changed {
            shared.parts.metrics.follow(&current.table);
        }
    }
}

/// A door and the task that accepts on it.
struct OpenDoor {
    door: Rc<Door>,
    accepting: tokio::task::JoinHandle<()>,
}

/// Carries out one command without waiting for anything.
fn obey(command: Command, shared: &Rc<Shared>, gate: &Gate, doors: &mut HashMap<DoorId, OpenDoor>) {
    match command {
        Command::Listen { id, socket, role, is_adopted, done } => {
            let opened = Door::new(socket, role, is_adopted, gate.clone()).map(|door| {
                let door = Rc::new(door);
                let accepting = spawn_local(door.clone().serve(shared.clone()));
                doors.insert(id, OpenDoor { door, accepting });
            });
            let _ = done.send(opened);
        }
        Command::ChangeRole { id, role, done } => {
            if let Some(open) = doors.get(&id) {
                open.door.set_role(role);
            }
            let _ = done.send(());
        }
        Command::Close { id, done } => {
            let Some(open) = doors.remove(&id) else {
                let _ = done.send(());
                return;
            };
            open.door.close();
            spawn_local(async move {
                // The loop has no panic of its own to report: it catches them.
                let _ = open.accepting.await;
                let _ = done.send(());
            });
        }
        Command::Report { has_tunnels, done } => {
            let parts = &shared.parts;
            let tunnels = if has_tunnels { parts.metrics.tunnels.facts() } else { Vec::new() };
            let _ = done.send(Facts { tunnels, endpoints: parts.upstreams.facts() });
        }
        Command::Ping { done } => {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::addr::ListenAddr;
    use crate::drain::Phase;
    use crate::listen::bind::{self, Adopted, Opened};
    use crate::server::tests::table;
    use crate::tls::certs::CertStore;

    /// A worker, what it was given, and the news of its end.
    struct Bench {
        worker: Worker,
        parts: Parts,
        ended: mpsc::UnboundedReceiver<Ended>,
    }

    impl Bench {
        fn new(limit: usize) -> Self {
            let table = table(&["127.0.0.1:0"], &[]);
            let (log, _writer) = AccessLog::start(&table.edge.log).expect("nothing is opened");
            let parts = Parts {
                snapshot: Arc::new(Snapshot::new(table)),
                policies: Arc::new(Policies::new(Arc::new(CertStore::new()), Arc::default())),
                drain: Drain::new(),
                log,
                auth: Arc::new(Passwords::new().expect("random numbers")),
                gate: Gate::new(limit),
                metrics: Metrics::new(),
                limits: Arc::default(),
                board: Arc::default(),
            };
            let (ends, ended) = mpsc::unbounded_channel();
            let worker = Worker::start(0, parts.clone(), ends).expect("a thread and an event queue");
            Self { worker, parts, ended }
        }

        /// Tells the worker to accept on a socket.
        async fn listen(&self, id: DoorId, opened: Opened) {
            let role = Arc::new(Role { address: opened.address, listener: None, is_tls: false });
            for socket in opened.sockets {
                let (done, outcome) = oneshot::channel();
                let role = role.clone();
                self.worker.tell(Command::Listen { id, socket, role, is_adopted: false, done }).await;
                outcome.await.expect("the worker answers").expect("the runtime takes the socket");
            }
        }

        /// Closes a door and waits for it.
        async fn close(&self, id: DoorId) {
            let (done, closed) = oneshot::channel();
            self.worker.tell(Command::Close { id, done }).await;
            closed.await.expect("the worker answers");
        }
    }

    /// A fresh address with one socket, which listens already.
    fn open() -> (Opened, SocketAddr) {
        let any = ListenAddr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let opened = bind::open(&any, 1, &Adopted::default(), &[]).expect("loopback can be bound").remove(0);
        let ListenAddr::Tcp(address) = opened.address else { unreachable!("a TCP address") };
        (opened, address)
    }

    /// Connects and asks something that any answer is good for.
    fn ask(address: SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(address).expect("it listens");
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("an open connection");
        client
    }

    /// True when something comes back.
    fn is_answered(client: &mut TcpStream) -> bool {
        client.read(&mut [0; 16]).is_ok_and(|read| read > 0)
    }

    #[tokio::test]
    async fn a_closed_listener_serves_its_queue_first() {
        let bench = Bench::new(100);
        let (opened, address) = open();
        let mut clients: Vec<TcpStream> = (0..20).map(|_| ask(address)).collect();
        bench.listen(DoorId(1), opened).await;
        bench.close(DoorId(1)).await;
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
        for client in &mut clients {
            assert!(is_answered(client), "a client that was connected is served");
        }
    }

    #[tokio::test]
    async fn a_drain_serves_its_queue_too() {
        let bench = Bench::new(100);
        let (opened, address) = open();
        let mut client = ask(address);
        bench.listen(DoorId(1), opened).await;
        bench.parts.drain.advance(Phase::Draining);
        bench.close(DoorId(1)).await;
        assert!(is_answered(&mut client));
    }

    #[tokio::test]
    async fn connections_above_the_limit_are_reset_at_once() {
        let bench = Bench::new(1);
        let (opened, address) = open();
        bench.listen(DoorId(1), opened).await;
        let mut first = ask(address);
        assert!(is_answered(&mut first));
        let mut second = TcpStream::connect(address).expect("it listens");
        let error = second.read(&mut [0]).expect_err("there is no room");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(bench.parts.gate.refused(), 1);
        bench.parts.gate.set_limit(2);
        assert!(is_answered(&mut ask(address)), "a higher limit holds from the next connection on");
    }

    #[tokio::test]
    async fn a_worker_answers_and_ends_when_it_is_stopped() {
        let mut bench = Bench::new(1);
        let (done, answer) = oneshot::channel();
        bench.worker.tell(Command::Ping { done }).await;
        answer.await.expect("the worker answers");
        bench.worker.stop().join().expect("no panic");
        let ended = bench.ended.recv().await.expect("its end is told");
        assert!(ended.index == 0 && ended.panic.is_none());
    }
}
