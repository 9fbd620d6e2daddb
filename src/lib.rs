//! tidegate: a TLS-terminating edge proxy.
pub mod addr;
pub mod site;
pub mod snapshot;
pub mod config;
