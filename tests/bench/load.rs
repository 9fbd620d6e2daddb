//! The load generator of the speed comparison: one kind of work, a fixed amount of it, in a closed loop.
//!
//! It opens its connections, prints `ready` and waits for a line on stdin, so that whoever started it can read
//! clocks between opening and work. Then it works, prints one line of JSON, and leaves at the end of stdin;
//! until then its connections stay open. Every answer is checked; one error makes the run invalid.
//!
//! One thread: it shares the machine with what it loads. What it offers in TLS is narrow on purpose
//! (`load/tls.rs`), so that all subjects do the same work.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::LocalSet;

mod bodies;
#[path = "load/hold.rs"]
mod hold;
#[path = "load/http1.rs"]
mod http1;
#[path = "load/http2.rs"]
mod http2;
#[path = "load/meter.rs"]
mod meter;
#[path = "load/steady.rs"]
mod steady;
#[path = "load/tls.rs"]
mod tls;
#[path = "load/websocket.rs"]
mod websocket;

use meter::Fault;
use tls::Target;

/// One kind of load against a TLS edge
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
    #[command(subcommand)]
    work: Work,
}

/// What to do
#[derive(Subcommand)]
enum Work {
    /// Small requests over HTTP/1.1 keep-alive
    Http1(Amount),
    /// Small requests over HTTP/2
    Http2 {
        #[command(flatten)]
        amount: Amount,
        /// Requests at once on each connection
        #[arg(long, default_value_t = 1)]
        streams: u64,
    },
    /// A connection, a handshake, one request and the close, again and again
    Handshake {
        #[command(flatten)]
        amount: Amount,
        /// Resume with a ticket of the last connection; an error where that is refused
        #[arg(long)]
        resume: bool,
    },
    /// Large response bodies
    Download {
        #[command(flatten)]
        amount: Amount,
        /// Bytes of each
        #[arg(long)]
        bytes: u64,
        /// Over HTTP/2, one at a time on each connection
        #[arg(long)]
        http2: bool,
    },
    /// Large request bodies over HTTP/1.1
    Upload {
        #[command(flatten)]
        amount: Amount,
        /// Bytes of each
        #[arg(long)]
        bytes: u64,
    },
    /// WebSocket messages that come back, one at a time on each socket
    Echo {
        #[command(flatten)]
        amount: Amount,
        /// Bytes of each
        #[arg(long)]
        bytes: usize,
    },
    /// Idle connections; stdin says `open N` and `check`
    Hold {
        /// WebSockets, not HTTP/1.1 connections
        #[arg(long)]
        websocket: bool,
    },
    /// A steady pace of requests and echoes until the end of stdin, counting what fails
    Steady(steady::Options),
}

/// How much
#[derive(Clone, Copy, clap::Args)]
struct Amount {
    /// Connections
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Units of work on all of them together
    #[arg(long)]
    count: u64,
}

/// A failure bound for one run.
const BOUND: Duration = Duration::from_secs(300);

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
    match arguments.work {
        Work::Http1(amount) => http1::small(target, amount).await,
        Work::Http2 { amount, streams } => http2::small(target, amount, streams).await,
        Work::Handshake { amount, resume } => http1::handshakes(target, amount, resume).await,
        Work::Download { amount, bytes, http2: false } => http1::download(target, amount, bytes).await,
        Work::Download { amount, bytes, http2: true } => http2::download(target, amount, bytes).await,
        Work::Upload { amount, bytes } => http1::upload(target, amount, bytes).await,
        Work::Echo { amount, bytes } => websocket::echo(target, amount, bytes).await,
        Work::Hold { websocket } => hold::hold(target, websocket).await,
        Work::Steady(options) => steady::run(target, options).await,
    }
}
