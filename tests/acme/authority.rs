//! A small ACME authority for the tests: RFC 8555 in part, and what Debian's Pebble 2.4 lacks: renewal information
//! (RFC 9773), profiles, dns-persist-01, lifetimes of seconds, a clock that can be moved, and faults on demand.
//!
//! Signatures, nonces, proofs of control and certificate requests are really checked. Left out: redirects of HTTP-01,
//! CAA, pre-authorization, reuse of authorizations, keys of accounts other than P-256, CRLs and OCSP. Not a CA for
//! anything but tests: its keys live in memory, and whoever reaches the control port can have any fault.
//!
//! It prints one line of JSON when it listens, and runs until it is killed. A fault of its own ends it with status 70.

use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

#[path = "authority/accounts.rs"]
mod accounts;
#[path = "authority/book.rs"]
mod book;
#[path = "authority/checks.rs"]
mod checks;
#[path = "authority/control.rs"]
mod control;
#[path = "authority/fault.rs"]
mod fault;
#[path = "authority/front.rs"]
mod front;
#[path = "authority/jws.rs"]
mod jws;
#[path = "authority/orders.rs"]
mod orders;
#[path = "authority/pki.rs"]
mod pki;
#[path = "authority/problem.rs"]
mod problem;
#[path = "authority/renewal.rs"]
mod renewal;
#[path = "authority/service.rs"]
pub(crate) mod service;
#[path = "authority/settings.rs"]
pub(crate) mod settings;

/// An ACME authority for tests
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: settings::Options,
}

#[tokio::main]
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "whoever starts it waits for the line")]
async fn main() -> ExitCode {
    // A test that goes on with a broken authority proves nothing.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(70);
    }));
    let authority = match service::start(Arguments::parse().options).await {
        Ok(authority) => authority,
        Err(fault) => {
            eprintln!("error: {fault}");
            return ExitCode::FAILURE;
        }
    };
    let (acme, control) = (authority.acme, authority.control);
    println!("{}", json!({"directory": authority.directory, "acme": acme, "control": control}));
    authority.ended().await;
    eprintln!("error: a part of the authority ended");
    ExitCode::from(70)
}
