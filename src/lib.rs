//! tidegate: a TLS-terminating edge proxy.
pub mod addr;
pub mod cli;
pub mod config;
pub mod site;
pub mod snapshot;
