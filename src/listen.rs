//! Listening: accept connections on one worker, and hand each to `connection` as a task of its own.
//!
//! The accept loop never ends by itself. What it cannot serve it closes at once, with a record: a
//! client that is refused quickly can try again or elsewhere, one that hangs in a queue cannot.

pub mod bind;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use nix::errno::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::{coop, spawn_local};

use crate::access_log::ConnectionRecord;
use crate::addr::{ListenAddr, PeerAddr};
use crate::connection::socket::Socket;
use crate::connection::{self, Accepted, Shared, more_than};
use crate::drain::Work;
use crate::policy::count::Hold;
use crate::site::Role;
use bind::Bound;

/// What all accept loops of the process share.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<GateState>);

/// See `Gate`.
#[derive(Debug, Default)]
struct GateState {
    limit: AtomicUsize,
    refused: AtomicU64,
    reserve: Mutex<Vec<File>>,
    is_reserve_short: AtomicBool,
}

impl Gate {
    /// A gate that lets this many connections and tunnels be open at once.
    pub fn new(limit: usize) -> Self {
        let gate = Self::default();
        gate.set_limit(limit);
        gate.refill();
        gate
    }

    /// Changes the limit; what is open stays.
    pub fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// The limit.
    pub fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Connections closed here because of the limit or for lack of descriptors.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Brings the reserve back to its size and says whether that worked.
    fn refill(&self) -> bool {
        let mut reserve = self.0.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(&mut reserve)
    }

    /// See `refill`.
    fn fill(&self, reserve: &mut Vec<File>) -> bool {
        while reserve.len() < RESERVE {
            let Ok(file) = File::open("/dev/null") else { break };
            reserve.push(file);
        }
        let is_short = reserve.len() < RESERVE;
        self.0.is_reserve_short.store(is_short, Ordering::Relaxed);
        !is_short
    }

    /// True unless the process has run out of descriptors and nothing has become free since. One
    /// atomic load as long as nothing is missing.
    fn has_descriptors(&self) -> bool {
        !self.0.is_reserve_short.load(Ordering::Relaxed) || self.refill()
    }
}

/// Descriptors that are held to be given up when there are no others. More than one, because
/// another thread may take one that was given up before it is back.
const RESERVE: usize = 4;

/// One listening socket of one worker, and what it is for.
pub struct Door {
    socket: RefCell<Option<Listening>>,
    role: RefCell<Arc<Role>>,
    is_adopted: bool,
    close: Notify,
    gate: Gate,
    complained: Cell<Option<Instant>>,
}

/// A listening socket that the runtime watches.
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket just accepted, with the peer that the system names.
type Arrival = (Socket, PeerAddr);

impl Door {
    /// Puts a socket into the present runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(socket: Bound, role: Arc<Role>, is_adopted: bool, gate: Gate) -> io::Result<Self> {
        let socket = match socket {
            Bound::Tcp(listener) => Listening::Tcp(TcpListener::from_std(listener)?),
            Bound::Unix(listener) => Listening::Unix(UnixListener::from_std(listener)?),
        };
        Ok(Self {
            socket: RefCell::new(Some(socket)),
            role: RefCell::new(role),
            is_adopted,
            close: Notify::new(),
            gate,
            complained: Cell::new(None),
        })
    }

    /// Changes what the door is for: connections accepted from now on have the new role.
    pub fn set_role(&self, role: Arc<Role>) {
        *self.role.borrow_mut() = role;
    }

    /// Makes `serve` accept what waits in the queue, close the socket and return.
    pub fn close(&self) {
        self.close.notify_one();
    }

    /// Accepts until `close` is called.
    pub async fn serve(self: Rc<Self>, shared: Rc<Shared>) {
        let Some(socket) = self.socket.take() else { return };
        loop {
            let accepting = AssertUnwindSafe(self.accept(&socket, &shared)).catch_unwind();
            let failed = tokio::select! {
                biased;
                () = self.close.notified() => break,
                failed = accepting => failed,
            };
            // A fault of ours in one admission must not leave a socket that nobody accepts on.
            let Err(panic) = failed;
            tracing::error!(event = "panic", why = panic_text(&*panic), "the accept loop failed and goes on");
        }
        self.empty(socket, &shared);
    }

    /// Accepts for ever.
    async fn accept(&self, socket: &Listening, shared: &Rc<Shared>) -> std::convert::Infallible {
        loop {
            match socket.accept().await {
                Ok(arrival) => self.admit(arrival, shared),
                Err(error) => {
                    if let Some(pause) = self.after(&error, socket, shared) {
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }

    /// What to do after an error of accept: how long to wait, if at all.
    fn after(&self, error: &io::Error, socket: &Listening, shared: &Rc<Shared>) -> Option<Duration> {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                self.complain(error, "cannot accept connections: raise LimitNOFILE, or lower process.max_connections");
                let has_shed = self.shed(socket, shared);
                (!has_shed).then_some(EXHAUSTED_PAUSE)
            }
            // accept(2): errors of the connection itself are handed over by accept; the next one
            // may be fine. A firewall's refusal is EPERM.
            Some(
                Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EINTR
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ENOPROTOOPT
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ETIMEDOUT,
            ) => None,
            _ => {
                self.complain(error, "cannot accept connections");
                Some(EXHAUSTED_PAUSE)
            }
        }
    }

    /// Without descriptors a client would hang in the queue and the loop would spin on the error.
    /// One of the reserve is given up, so that the next client can be accepted and reset at once.
    fn shed(&self, socket: &Listening, shared: &Rc<Shared>) -> bool {
        // Held over accept and close: workers that shed at once would take each other's descriptor.
        let mut reserve = self.gate.0.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        drop(reserve.pop());
        let has_accepted = match coop::unconstrained(socket.accept()).now_or_never() {
            Some(Ok(arrival)) => {
                self.refuse(arrival, NO_DESCRIPTOR, shared);
                true
            }
            // Without a free descriptor Linux reports EMFILE even when nobody waits. With one it
            // said that the queue is empty: the next accept sleeps until somebody comes.
            None => true,
            Some(Err(_)) => false,
        };
        self.gate.fill(&mut reserve);
        has_accepted
    }

    /// Serves a connection, or closes it when too many are open.
    fn admit(&self, arrival: Arrival, shared: &Rc<Shared>) {
        if !self.gate.has_descriptors() {
            // It was accepted with a descriptor of the reserve, and could not get one for the endpoint.
            self.refuse(arrival, NO_DESCRIPTOR, shared);
            self.gate.refill();
            return;
        }
        // A connection that became a tunnel counts as a tunnel only; both hold descriptors.
        let open = shared.parts.drain.count(Work::Connection) + shared.parts.drain.count(Work::Tunnel);
        if open >= self.gate.limit() {
            let limit = self.gate.limit();
            self.complain(
                &format_args!("{open} are open"),
                "connections are refused: process.max_connections is reached",
            );
            return self.refuse(arrival, &format!("more than {limit} connections"), shared);
        }
        let client = match self.client(arrival.1, shared) {
            Ok(client) => client,
            Err(most) => {
                let peer = arrival.1;
                self.complain(
                    &format_args!("{peer} has {most} open"),
                    "connections of one client are refused: if it is a proxy of yours, name it in trust.proxies; if not, \
                     and it needs more, allow them in limits.connections.per_client of a site",
                );
                return self.refuse(arrival, &more_than(most), shared);
            }
        };
        let (socket, peer) = arrival;
        let role = self.role.borrow().clone();
        let local = local_address(&socket, &role);
        let at = Instant::now();
        let guard = shared.parts.drain.guard(Work::Connection);
        let accepted = Accepted { socket, peer, local, role: role.clone(), at, guard, client };
        let shared = shared.clone();
        spawn_local(async move {
            let serving = AssertUnwindSafe(connection::serve(shared.clone(), accepted)).catch_unwind();
            if let Err(panic) = serving.await {
                record(&shared, &role, peer, "panic", &panic_text(&*panic), at);
            }
        });
    }

    /// The place of a client's connection, where one address may have only so many (G-14). Who comes with a preface is known
    /// after it.
    fn client(&self, peer: PeerAddr, shared: &Shared) -> Result<Option<Hold>, NonZeroU32> {
        let generation = shared.parts.snapshot.current();
        if generation.table.edge.trust.proxy_protocol.has_peer(peer) {
            return Ok(None);
        }
        connection::client_place(&shared.parts, &generation.table, peer)
    }

    /// Closes a connection at once, by a reset: nothing of it stays here, not even TIME_WAIT.
    fn refuse(&self, (socket, peer): Arrival, why: &str, shared: &Rc<Shared>) {
        if let Socket::Tcp(stream) = &socket {
            // A socket that is already gone needs no reset.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        self.gate.0.refused.fetch_add(1, Ordering::Relaxed);
        drop(socket);
        record(shared, &self.role.borrow(), peer, "refused", why, Instant::now());
    }

    /// Accepts what the system has queued, then closes the socket: those clients were told that
    /// they are connected.
    fn empty(&self, socket: Listening, shared: &Rc<Shared>) {
        if self.is_adopted {
            // The queue lives on with the service manager; whoever takes the socket next serves it.
            return;
        }
        // Straight from the system: the runtime may not have noticed the latest ones yet.
        match socket {
            Listening::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                while let Ok((stream, peer)) = listener.accept() {
                    let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
                    if let Ok(stream) = stream {
                        self.admit((Socket::Tcp(stream), PeerAddr::from_socket(peer)), shared);
                    }
                }
            }
            Listening::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                while let Ok((stream, _)) = listener.accept() {
                    let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
                    if let Ok(stream) = stream {
                        self.admit((Socket::Unix(stream), PeerAddr::Unix), shared);
                    }
                }
            }
        }
    }

    /// Says what is wrong, at most once in ten seconds.
    fn complain(&self, detail: &dyn std::fmt::Display, what: &str) {
        let now = Instant::now();
        if self.complained.get().is_some_and(|at| now - at < COMPLAINT_INTERVAL) {
            return;
        }
        self.complained.set(Some(now));
        let address = &self.role.borrow().address;
        let refused = self.gate.refused();
        tracing::warn!(event = "accept", %address, %detail, refused, "{what}");
    }
}

/// Long enough not to spin, short enough that service is back within a second.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// See `Door::complain`.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

impl Listening {
    /// The next connection.
    async fn accept(&self) -> io::Result<Arrival> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::Tcp(stream), PeerAddr::from_socket(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), PeerAddr::Unix))
            }
        }
    }
}

/// Why a connection is refused for lack of descriptors.
const NO_DESCRIPTOR: &str = "no file descriptor is free";

/// Where the client connected to. A listener on one address knows it; a wildcard one must ask.
fn local_address(socket: &Socket, role: &Role) -> Option<SocketAddr> {
    match (socket, &role.address) {
        (Socket::Tcp(_), ListenAddr::Tcp(address)) if !address.ip().is_unspecified() => Some(*address),
        (Socket::Tcp(stream), _) => stream.local_addr().ok(),
        (Socket::Unix(_), _) => None,
    }
}

/// Leaves the record of a connection that was never a request.
fn record(shared: &Shared, role: &Arc<Role>, peer: PeerAddr, ended: &'static str, why: &str, at: Instant) {
    shared.parts.metrics.connection(role, ended);
    shared.parts.log.connection(&ConnectionRecord {
        peer,
        via: None,
        answer: None,
        listener: &role.address.to_string(),
        ended,
        why,
        sni: None,
        alpn: None,
        lasted: at.elapsed(),
        bytes_in: 0,
    });
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_and_comes_back() {
        let gate = Gate::new(1);
        let held = || gate.0.reserve.lock().map_or(0, |reserve| reserve.len());
        assert_eq!(held(), RESERVE);
        // Another thread took one that was given up.
        drop(gate.0.reserve.lock().expect("no panic").pop());
        gate.0.is_reserve_short.store(true, Ordering::Relaxed);
        assert!(gate.has_descriptors(), "there are descriptors again");
        assert_eq!(held(), RESERVE);
    }

    #[test]
    fn a_panic_says_what_it_said() {
        let text = |payload: Box<dyn Any + Send>| panic_text(&*payload);
        assert_eq!(text(Box::new("a")), "a");
        assert_eq!(text(Box::new(String::from("b"))), "b");
        assert_eq!(text(Box::new(1)), "no message");
    }
}
