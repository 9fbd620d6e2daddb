//! Provider `exec`: a program of the operator writes the zone (`PROGRAM ARGS… present FQDN VALUE`, and `cleanup`).

use crate::acme::dns::{DnsError, Record};
use crate::acme::program::{self, ProgramError};
use crate::site::acme::Program;

/// Has the program add a record. It may have done so even if it fails, unless it was not started.
///
/// # Errors
/// When it cannot be started, fails, or takes too long.
pub(super) async fn present(program: &Program, record: &Record) -> Result<(), DnsError> {
    record.mark(true);
    let outcome = call(program, "present", record).await;
    if let Err(ProgramError::Start { .. }) = outcome {
        record.mark(false);
    }
    outcome.map_err(in_words)
}

/// Has the program remove a record.
///
/// # Errors
/// As `present`.
pub(super) async fn cleanup(program: &Program, record: &Record) -> Result<(), DnsError> {
    call(program, "cleanup", record).await.map_err(in_words)
}

async fn call(program: &Program, action: &str, record: &Record) -> Result<(), ProgramError> {
    program::run(program, &[action, &record.fqdn(), record.value()], b"").await
}

fn in_words(error: ProgramError) -> DnsError {
    let help = match &error {
        ProgramError::Start { .. } => "`exec` needs the path of a program that the user of this service may run",
        ProgramError::Failed { .. } => "run it by hand with the arguments `present FQDN VALUE` to see what it does",
        ProgramError::Timeout { .. } => "it must end within this time and must not wait for propagation itself",
    };
    DnsError::new(error.to_string(), help)
}
