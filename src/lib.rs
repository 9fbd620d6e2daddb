//! tidegate: a TLS-terminating edge proxy.
pub mod access_log;
pub mod addr;
pub mod body;
pub mod cli;
pub mod connection;
pub mod drain;
pub mod forward;
pub mod policy;
pub mod refusal;
pub mod request;
pub mod site;
pub mod snapshot;
pub mod tls;
