//! Control: the process from outside. Signals come in; the service manager is told (sd_notify(3)).
//!
//! HUP reload, TERM and INT drain, a second one stops at once, USR1 reopen log files. What is done
//! about each is `server`'s business. All of this runs on a small runtime of its own, so that a
//! reload never waits for a worker and no request for a reload.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::config::Input;
use crate::listen::bind::Adopted;
use crate::server::{Cut, Log, Machine, Server, StartError};

/// Runs the edge until it is told to stop. Call it before any thread exists.
///
/// `Ok` means that everything ended as it should, even if tunnels were told to go (exit 0). A second
/// signal that cut open work is an error (exit 1): whoever asked for it should see that it happened.
///
/// # Errors
/// When the edge cannot start, when a worker dies, or when a second signal cut open work.
pub fn run(source: Input) -> Result<(), StartError> {
    // First of all: descriptors 3 and up are the service manager's, and the environment that names
    // them can be changed only while there is one thread.
    let adopted = Adopted::from_env().map_err(StartError::Adopt)?;
    let machine = Machine { adopted, descriptors: raise_file_limit() };
    let log = Log::start();
    let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build();
    let runtime = runtime.map_err(|source| StartError::System { what: "a runtime", source })?;
    let outcome = runtime.block_on(live(source, machine, log));
    // Not a plain drop: a file that does not answer must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// From start to end.
async fn live(source: Input, machine: Machine, log: Log) -> Result<(), StartError> {
    let signals = Signals::new().map_err(|source| StartError::System { what: "signal handlers", source });
    let mut signals = signals?;
    let manager = Manager::new();
    let mut server = tokio::select! {
        started = Server::start(source, machine, log) => started?,
        // Nothing serves yet, so there is nothing to end.
        _ = signals.terminate.recv() => return Ok(()),
        _ = signals.interrupt.recv() => return Ok(()),
    };
    manager.tell(&[NotifyState::Ready, NotifyState::Status(&server.status())]);
    let mut watchdog = Watchdog::new();
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => break,
                Asked::Reload => reload(&mut server, &manager).await,
                Asked::Reopen => server.reopen_logs(),
                Asked::Handover => {
                    tracing::warn!(event = "signal", "SIGUSR2 means nothing here: sockets are handed over by the service manager");
                }
            },
            () = watchdog.due() => watchdog.feed(&server, &manager).await,
            fault = server.worker_ended() => {
                tracing::error!(event = "worker_died", "{fault}");
                let cut = server.unfinished();
                server.stop(cut).await;
                return Err(fault);
            }
        }
    }
    end(server, &mut signals, &manager).await
}

/// A reload, as the service manager wants to see it (`Type=notify-reload`): it waits for READY, and
/// a reload that failed is over, too. Only the status says that it failed.
async fn reload(server: &mut Server, manager: &Manager) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => manager.tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock"),
    }
    // A failure is in the status from now on, and its report in the log.
    let _ = server.reload().await;
    manager.tell(&[NotifyState::Ready, NotifyState::Status(&server.status())]);
}

/// The way to the end: in order, or at once after a second signal.
async fn end(mut server: Server, signals: &mut Signals, manager: &Manager) -> Result<(), StartError> {
    let patience = server.patience();
    let usec = u32::try_from(patience.as_micros()).unwrap_or(u32::MAX);
    manager.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(usec), NotifyState::Status("draining")]);
    let mut watchdog = Watchdog::new();
    let drained = async {
        tokio::select! {
            cut = server.drain() => Some(cut),
            () = signals.stop() => None,
            // The workers were alive when the drain began, and the drain has its own end.
            () = watchdog.feed_blindly(manager) => None,
        }
    };
    let drained = drained.await;
    let Cut { requests, tunnels } = drained.unwrap_or_else(|| server.unfinished());
    server.stop(Cut { requests, tunnels }).await;
    match drained {
        None if requests + tunnels > 0 => Err(StartError::Cut { requests, tunnels }),
        None | Some(_) => Ok(()),
    }
}

/// The way to the service manager. Opened once: a process without free descriptors must still be
/// able to say that it is alive.
struct Manager(Option<UnixDatagram>);

impl Manager {
    /// Follows `NOTIFY_SOCKET`; without it nobody listens.
    fn new() -> Self {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let socket = path.map(|path| connect(&path)).transpose();
        let socket = socket.inspect_err(|error| {
            tracing::warn!(event = "notify", %error, "cannot reach the service manager");
        });
        Self(socket.ok().flatten())
    }

    /// Tells it.
    fn tell(&self, state: &[NotifyState<'_>]) {
        let Some(socket) = &self.0 else { return };
        let message: String = state.iter().map(|part| format!("{part}\n")).collect();
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(event = "notify", %error, "cannot tell the service manager");
        }
    }
}

/// A socket that is connected to where `NOTIFY_SOCKET` points (sd_notify(3)).
fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the signals.
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        socket.connect_addr(&address)?;
        return Ok(socket);
    }
    socket.connect(path)?;
    Ok(socket)
}

/// The signals that mean something.
struct Signals {
    reload: Signal,
    reopen: Signal,
    handover: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    fn new() -> io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            // Unhandled, it would end the process.
            handover: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one. Cancel safe.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.reload.recv() => Asked::Reload,
            _ = self.reopen.recv() => Asked::Reopen,
            _ = self.handover.recv() => Asked::Handover,
        }
    }

    /// The next one that asks for an end; the others mean nothing on the way there.
    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Stop,
    Reload,
    Reopen,
    Handover,
}

/// Keeps the service manager's watchdog content, as long as every worker answers.
struct Watchdog(Option<Interval>);

impl Watchdog {
    /// Follows `WatchdogSec=`, if the service manager has set it.
    fn new() -> Self {
        let period = sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|period| !period.is_zero());
        Self(period.map(|period| {
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    /// Resolves each half of the watchdog's limit; never without one.
    async fn due(&mut self) {
        match &mut self.0 {
            Some(ticks) => drop(ticks.tick().await),
            None => std::future::pending().await,
        }
    }

    /// Says that we are alive if that is so. A worker that is stuck is thus seen by the service
    /// manager, which starts us anew.
    async fn feed(&self, server: &Server, manager: &Manager) {
        let within = self.0.as_ref().map_or(Duration::from_secs(1), |ticks| ticks.period() / 2);
        if server.is_alive(within).await {
            manager.tell(&[NotifyState::Watchdog, NotifyState::Status(&server.status())]);
        }
    }

    /// Says that we are alive, for ever.
    async fn feed_blindly(&mut self, manager: &Manager) {
        loop {
            self.due().await;
            manager.tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Raises the limit of open files as far as it may go, and says where it is then.
fn raise_file_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return USUAL_FILE_LIMIT };
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX)
}

/// What systems give a process that did not ask.
const USUAL_FILE_LIMIT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_is_told_line_by_line() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a new path");
        let us = Manager(Some(connect(path.as_os_str()).expect("somebody listens")));
        us.tell(&[NotifyState::Ready, NotifyState::Status("generation 1")]);
        let mut message = [0; 64];
        let length = manager.recv(&mut message).expect("a datagram");
        assert_eq!(&message[..length], b"READY=1\nSTATUS=generation 1\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_service_manager_may_have_an_abstract_name() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("tidegate-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a short name");
        let manager = UnixDatagram::bind_addr(&address).expect("a new name");
        Manager(Some(connect(format!("@{name}").as_ref()).expect("somebody listens"))).tell(&[NotifyState::Watchdog]);
        let mut message = [0; 64];
        let length = manager.recv(&mut message).expect("a datagram");
        assert_eq!(&message[..length], b"WATCHDOG=1\n");
    }
}
