//! Why the edge cannot start, reload or go on: the machine's faults, each with what to do about it.

use std::io;

use super::counted;
use crate::config::report::Report;
use crate::listen::bind::BindError;
use crate::tls::TlsError;

/// Why the edge cannot start, cannot take a new configuration, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operator's file; the report lists every fault.
    #[error("the configuration cannot be used: {}", .0.summary().trim_end_matches('.'))]
    Config(Report),
    /// Certificates and keys; every one that failed.
    #[error("{}", joined(.0))]
    Tls(Vec<TlsError>),
    /// Addresses; every one that failed.
    #[error("{}", joined(.0))]
    Listen(Vec<BindError>),
    /// The output of records.
    #[error("cannot write the access log")]
    AccessLog(#[source] io::Error),
    /// Sockets handed over by the service manager.
    #[error("cannot use the sockets that the service manager handed over")]
    Adopt(#[source] io::Error),
    /// Threads, event queues, signals.
    #[error("the system refuses {what}")]
    System {
        /// What it refuses.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A worker ended by a fault of ours.
    #[error("worker {index} ended: {why}")]
    Worker {
        /// Which.
        index: usize,
        /// What it said.
        why: String,
    },
    /// A second signal came while work was still open.
    #[error("stopped at once by a second signal: {} and {} were cut", counted(*requests, "request"), counted(*tunnels, "tunnel"))]
    Cut {
        /// Requests without an end.
        requests: usize,
        /// Tunnels without a close.
        tunnels: usize,
    },
}

impl StartError {
    /// The exit status: 2 for a wrong file, 1 for all else.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Tls(_)
            | Self::Listen(_)
            | Self::AccessLog(_)
            | Self::Adopt(_)
            | Self::System { .. }
            | Self::Worker { .. }
            | Self::Cut { .. } => 1,
        }
    }

    /// Everything for the operator: each fault as `error: …` with its cause and `help: …` below.
    pub fn to_text(&self, colours: bool) -> String {
        match self {
            Self::Config(report) => report.to_text(colours),
            Self::Tls(faults) => faults.iter().map(|fault| one(fault, Some(fault.help()))).collect(),
            Self::Listen(faults) => {
                let lines = faults.iter().map(|fault| format!("error: {fault}\nhelp: {}\n", fault.help()));
                lines.collect()
            }
            Self::AccessLog(_) => one(self, Some("check the path and its directory in log.access")),
            Self::Adopt(_) => one(self, Some("a socket unit for the edge needs ListenStream= lines only")),
            Self::System { .. } => one(self, Some("check the limits of this user: `ulimit -a`")),
            Self::Worker { .. } => {
                one(self, Some("this is a fault of ours: please report it with the log lines above"))
            }
            Self::Cut { .. } => one(self, None),
        }
    }
}

/// One fault with its causes and its remedy.
fn one(fault: &(dyn std::error::Error + 'static), help: Option<&str>) -> String {
    let mut text = format!("error: {fault}");
    let mut cause = fault.source();
    while let Some(because) = cause {
        let words = because.to_string();
        // Some faults already end in the words of their cause.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = because.source();
    }
    text.push('\n');
    if let Some(help) = help {
        text.push_str("help: ");
        text.push_str(help);
        text.push('\n');
    }
    text
}

/// All faults in one sentence.
fn joined(faults: &[impl ToString]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
