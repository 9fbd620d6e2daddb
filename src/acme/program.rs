//! Runs a program of the operator: DNS hooks, and whoever wants to hear of events.
//!
//! It gets its arguments and what stands on its standard input; it has a deadline, after which it and all that it started
//! are killed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStderr, Command};
use tokio::time::timeout;

use crate::site::acme::Program;

/// Why it did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be started.
    #[error("cannot start \"{program}\": {source}")]
    Start {
        /// Which.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It said no.
    #[error("\"{program}\" {status}{}", said(.words))]
    Failed {
        /// Which.
        program: String,
        /// How it ended.
        status: String,
        /// What it wrote on standard error.
        words: String,
    },
    /// It took too long.
    #[error("\"{program}\" did not end within {} s and was killed{}", deadline.as_secs(), said(.words))]
    Timeout {
        /// Which.
        program: String,
        /// How long it had.
        deadline: Duration,
        /// What it wrote on standard error.
        words: String,
    },
}

/// How long a program may take. Our choice: APIs of DNS providers have been seen to take half a minute.
const DEADLINE: Duration = Duration::from_secs(60);
/// As much of its complaints as a log line can bear.
const WORDS: usize = 1024;
/// For the words of a program that has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, does not end in time, or ends with a status other than 0.
pub async fn run(program: &Program, args: &[&str], input: &[u8]) -> Result<(), ProgramError> {
    run_within(DEADLINE, program, args, input).await
}

async fn run_within(deadline: Duration, program: &Program, args: &[&str], input: &[u8]) -> Result<(), ProgramError> {
    let name = program.program.display().to_string();
    let start = |source| ProgramError::Start { program: name.clone(), source };
    let mut command = Command::new(&program.program);
    command
        .args(program.args.iter().map(|arg| OsStr::new(&**arg)))
        .args(args)
        // What systemd told us is not for others.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(start)?;
    // The group has the number of its first process.
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let speak = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input is free to do so.
            let _ = stdin.write_all(input).await;
        }
    };
    let mut words = Vec::new();
    let ended = {
        // Beside the wait, or a talkative program would wait for us.
        let mut listening = pin!(listen(stderr, &mut words));
        let mut speaking = pin!(speak);
        let ended = async {
            let (mut is_said, mut is_heard) = (false, false);
            loop {
                tokio::select! {
                    status = child.wait() => break (status, is_heard),
                    () = &mut speaking, if !is_said => is_said = true,
                    () = &mut listening, if !is_heard => is_heard = true,
                }
            }
        };
        let ended = timeout(deadline, ended).await;
        if let Ok((_, false)) = ended {
            // What it left behind may hold the other end for ever; that is its own business.
            let _ = timeout(LAST_WORDS, listening).await;
        }
        ended
    };
    let words = String::from_utf8_lossy(&words);
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let words = lines.join(" | ").replace(char::is_control, " ");
    let Ok((status, _)) = ended else { return Err(ProgramError::Timeout { program: name, deadline, words }) };
    group.0 = None;
    let status = status.map_err(start)?;
    if status.success() { Ok(()) } else { Err(ProgramError::Failed { program: name, status: outcome(status), words }) }
}

/// Reads to the end, keeps the beginning.
async fn listen(stderr: Option<ChildStderr>, words: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut room = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut room).await {
        let free = WORDS.saturating_sub(words.len());
        words.extend_from_slice(&room[..length.min(free)]);
    }
}

/// A program and all that it started: killed when it is given up.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It is gone already in most cases.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn shell(script: &str) -> Program {
        Program { program: "sh".into(), args: vec!["-c".into(), script.into(), "sh".into()] }
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_and_its_input() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("seen");
        let program = shell("{ echo \"$1 $2\"; cat; } > \"$3\"");
        let path = file.to_str().expect("a path");
        run(&program, &["one", "two", path], b"three").await.expect("it ends well");
        assert_eq!(std::fs::read_to_string(&file).expect("written"), "one two\nthree");
    }

    #[tokio::test]
    async fn complaints_are_passed_on_in_one_bounded_line() {
        let error = run(&shell("echo not; echo today >&2; echo ever >&2; exit 3"), &[], b"").await.expect_err("no");
        assert_eq!(error.to_string(), "\"sh\" ended with status 3: today | ever");
        let error = run(&shell("yes | head -c 100000 >&2; exit 1"), &[], b"").await.expect_err("no");
        assert!(error.to_string().len() < 2200, "{}", error.to_string().len());
        let none = Program { program: "/nonexistent/hook".into(), args: Vec::new() };
        let error = run(&none, &[], b"").await.expect_err("no");
        assert!(error.to_string().starts_with("cannot start \"/nonexistent/hook\""), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_stopped_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        // The pipe ends when the last process that holds it does: the shell, and the `sleep` that it started.
        let script = format!("exec 3>'{}'; echo waiting >&2; sleep 1000 & sleep 1000", pipe.display());
        let program = Program { program: "sh".into(), args: vec!["-c".into(), script.into()] };
        let held = tokio::task::spawn_blocking(move || {
            let mut rest = Vec::new();
            std::fs::File::open(pipe).and_then(|mut pipe| pipe.read_to_end(&mut rest))
        });
        let error = run_within(Duration::from_secs(2), &program, &["present"], b"").await.expect_err("it hangs");
        assert_eq!(error.to_string(), "\"sh\" did not end within 2 s and was killed: waiting");
        timeout(Duration::from_secs(20), held).await.expect("nobody holds the pipe").expect("read").expect("read");
    }
}
