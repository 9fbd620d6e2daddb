//! Provider `exec`: a program of the operator writes the zone (`PROGRAM ARGS… present FQDN VALUE`, and `cleanup`).

use crate::acme::dns::{DnsError, Record};
use crate::acme::program::{self, ProgramError};
use crate::site::acme::Program;

/// Calls the program for a record.
///
/// # Errors
/// When it cannot be started, fails, or takes too long.
pub(super) async fn call(program: &Program, action: &str, record: &Record) -> Result<(), DnsError> {
    program::run(program, &[action, &record.fqdn(), record.value()], b"").await.map_err(|error| {
        let help = match &error {
            ProgramError::Start { .. } => "`exec` needs the path of a program that the user of this service may run",
            ProgramError::Failed { .. } => "run it by hand with the arguments `present FQDN VALUE` to see what it does",
            ProgramError::Timeout { .. } => "it must end within this time and must not wait for propagation itself",
        };
        DnsError::new(error.to_string(), help)
    })
}
