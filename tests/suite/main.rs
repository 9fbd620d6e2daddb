//! The black-box suite: the real program, real sockets, real clients.
//!
//! One file per theme; a test's name is the promise it proves, and its doc names the requirement
//! (F-, N-, G-, O-, M-) or the RFC that the promise comes from. Helpers are in `harness`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation of a test is a panic by design")]

mod harness;

mod access;
mod admin;
mod answers;
mod attack;
mod auth;
mod auth_forward;
mod auth_hooks;
mod certs;
mod config_cli;
mod counts;
mod docs;
mod drain;
mod examples;
mod framing;
mod geo;
mod health;
mod http1;
mod http2;
mod http2_floods;
mod layers;
mod limiters;
mod limits_timeouts;
mod log;
mod ocsp;
mod process;
mod proxy_protocol;
mod reload;
mod revocation;
mod routes;
mod settings;
mod terminal;
mod tls;
mod trust;
mod upstream_bytes;
mod upstream_faults;
mod websocket;
