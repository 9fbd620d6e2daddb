//! tidegate: a TLS-terminating edge proxy in front of a gateway that speaks HTTP and long-lived
//! WebSockets. `ARCHITECTURE.md` has the picture; `connection` and `request` are the two stories.

pub mod access_log;
pub mod acme;
pub mod addr;
pub mod admin;
pub mod alarm;
pub mod body;
pub mod cli;
pub mod config;
pub mod connection;
pub mod control;
pub mod drain;
pub mod forward;
pub mod framing;
pub mod https;
pub mod listen;
pub mod metrics;
pub mod ocsp;
pub mod policy;
pub mod refusal;
pub mod request;
pub mod scratch;
pub mod server;
pub mod site;
pub mod snapshot;
pub mod storage;
pub mod tls;
pub mod worker;
