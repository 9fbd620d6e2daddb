//! The command line.

pub mod trust;
