//! The attackers of `tests/bench/attack`, one kind at a time, and the honest client that measures meanwhile.
//!
//! `flood` attacks until stdin ends, then prints what became of it. `probe` sends one unit after the other on one
//! connection and prints how many were taken. `honest` asks at a steady pace and prints, for each line of stdin, what
//! it saw since the last one. It talks to the one address that it is given, which the harness makes on loopback.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;

#[allow(dead_code, reason = "shared with the load generator")]
mod bodies;
#[path = "attacker/flood.rs"]
mod flood;
#[path = "attacker/frames.rs"]
mod frames;
#[path = "attacker/honest.rs"]
mod honest;
#[allow(dead_code, reason = "shared with the load generator")]
#[path = "load/http1.rs"]
mod http1;
#[allow(dead_code, reason = "shared with the load generator")]
#[path = "load/http2.rs"]
mod http2;
#[allow(dead_code, reason = "shared with the load generator")]
#[path = "load/meter.rs"]
mod meter;
#[path = "attacker/probe.rs"]
mod probe;
#[path = "attacker/slow.rs"]
mod slow;
#[allow(dead_code, reason = "shared with the load generator")]
#[path = "load/tls.rs"]
mod tls;

use frames::Kind;
use meter::Fault;
use tls::{Dialer, Target};

/// Attacks on a TLS edge on this machine
#[derive(Parser)]
struct Arguments {
    /// Where the edge listens
    #[arg(long)]
    target: SocketAddr,
    /// The name that is asked for
    #[arg(long)]
    host: String,
    /// The one certificate that is accepted (PEM)
    #[arg(long)]
    certificate: PathBuf,
    /// Our addresses, taken in turn
    #[arg(long, value_delimiter = ',')]
    from: Vec<IpAddr>,
    #[command(subcommand)]
    work: Work,
}

/// What to do
#[derive(Subcommand)]
enum Work {
    /// Frames over HTTP/2, as fast as they are taken, on connections that are opened again when they are cut
    Flood {
        kind: Kind,
        #[arg(long, default_value_t = 16)]
        connections: usize,
    },
    /// The same frames on one connection, counted until it is cut
    Probe { kind: Kind },
    /// Connections that do as little as they can
    Slow {
        kind: slow::Kind,
        #[arg(long)]
        connections: usize,
    },
    /// A steady pace of small requests
    Honest,
}

/// How much of this is needed by `load/`.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "shared with the load generator")]
struct Amount {
    connections: u64,
    count: u64,
}

/// Whom we attack, and where from.
struct Enemy {
    target: Target,
    address: SocketAddr,
    from: Vec<IpAddr>,
}

impl Enemy {
    /// A TCP connection from the address whose turn it is.
    async fn tcp(&self, turn: usize, receive_buffer: Option<u32>) -> Result<TcpStream, Fault> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if !self.from.is_empty() {
            socket.bind((self.from[turn % self.from.len()], 0).into())?;
        }
        Ok(socket.connect(self.address).await?)
    }

    /// The same with TLS on it.
    async fn open(&self, dialer: &Dialer, turn: usize) -> Result<tls::Stream, Fault> {
        dialer.open_on(self.tcp(turn, None).await?).await
    }
}

/// A failure bound for one run.
const BOUND: Duration = Duration::from_secs(300);

/// After a connection that was refused or cut: long enough not to spin, short enough to be an attack.
const AGAIN: Duration = Duration::from_millis(5);

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stderr, reason = "a program's last words")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match LocalSet::new().run_until(tokio::time::timeout(BOUND, run(arguments))).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(fault)) => {
            eprintln!("error: {fault}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("error: not done within {} s", BOUND.as_secs());
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Fault> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let target = Target::new(arguments.target, &arguments.host, &arguments.certificate)?;
    let enemy = Rc::new(Enemy { target, address: arguments.target, from: arguments.from });
    match arguments.work {
        Work::Flood { kind, connections } => flood::run(enemy, kind, connections).await,
        Work::Probe { kind } => probe::run(&enemy, kind).await,
        Work::Slow { kind, connections } => slow::run(enemy, kind, connections).await,
        Work::Honest => honest::run(enemy).await,
    }
}
