//! Configuration.
mod read;
mod file;
mod kinds;
pub mod report;
pub mod units;
