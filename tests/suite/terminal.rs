//! What a person at a terminal sees: the first minute, short lines, colours; and none of that in a pipe (EXPERIENCE.md).

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use crate::harness::{Upstream, Wire, run_in, within};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// A command with a terminal of its own; `None` when util-linux's `script` is missing.
pub(crate) fn on_a_terminal(dir: &Path, arguments: &str) -> Option<Child> {
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &format!("exec '{PROGRAM}' {arguments}"), "/dev/null"]);
    command.current_dir(dir).env_remove("NO_COLOR").env("TERM", "xterm").env("HOME", dir).env("XDG_DATA_HOME", dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.spawn();
    assert!(child.is_ok() || std::env::var_os("CI").is_none(), "script is missing; run tests/setup.sh");
    child.ok()
}

/// EXPERIENCE.md, first minute: where to click, the preset, the local CA; then one short line a request; Ctrl-C drains.
#[tokio::test]
async fn the_first_minute_on_a_terminal() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let config = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\n\
         [sites.\"localhost\"]\npreset = \"openclaw\"\nupstream = \"{upstream}\"\n"
    );
    std::fs::write(dir.path().join("tidegate.toml"), config).unwrap();
    let Some(mut child) = on_a_terminal(dir.path(), "run") else { return };
    let (lines, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let out = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            lines.send(line).ok();
        }
    });
    let mut until = async |wanted: &str| {
        let mut text = String::new();
        within(wanted, async {
            while let Some(line) = seen.recv().await {
                text += line.trim_end_matches('\r');
                text.push('\n');
                if line.contains(wanted) {
                    return text;
                }
            }
            panic!("it ended before {wanted:?}:\n{text}");
        })
        .await
    };
    let banner = until("ready in ").await;
    assert!(banner.starts_with("tidegate ") && banner.contains("tidegate.toml  1 site"), "{banner}");
    let row = banner.lines().find(|line| line.contains("https://localhost:")).unwrap();
    let facts = format!("preset openclaw   -> {upstream}   certificate: local CA");
    assert!(row.ends_with(&facts), "{row:?}");
    assert!(banner.contains("tidegate trust"), "{banner}");
    let (_, http) = banner.split_once("http://localhost:").expect("the redirecting port");
    let (port, _) = http.split_once(' ').unwrap();
    let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", port.parse().unwrap())).await.unwrap());
    wire.send("GET /x?token=hunter2 HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 308);
    let record = until(" 308 GET ").await;
    assert!(record.contains("localhost/x?token=~") && !record.contains("hunter2") && !record.contains('{'), "{record}");
    // Ctrl-C, as the terminal passes it on.
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let farewell = until("stopped").await;
    assert!(farewell.contains("panics=0"), "{farewell}");
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

/// HOUSE.md: colours only where a terminal is, and none where NO_COLOR is set.
#[test]
fn colours_are_for_terminals_only() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("tidegate.toml"), "[sites.\"a.test\"]\npresett = \"openclaw\"\n").unwrap();
    let piped = run_in(dir.path(), &["check"]);
    assert!(piped.stdout.contains("error[C021]") && !piped.stdout.contains('\u{1b}'), "{piped:?}");
    let Some(child) = on_a_terminal(dir.path(), "check") else { return };
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains('\u{1b}') && text.contains("C021"), "{text}");
    assert_eq!(output.status.code(), Some(2));
}

/// A password that is asked for is asked for twice and not shown.
#[test]
fn a_password_is_asked_for_and_not_shown() {
    let dir = tempfile::TempDir::new().unwrap();
    for (again, code) in [("hunter2", 0), ("hunter3", 2)] {
        let Some(mut child) = on_a_terminal(dir.path(), "hash-password --user alice") else { return };
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut seen = Vec::new();
        for (prompt, answer) in [("Password: ", "hunter2"), ("Again: ", again)] {
            while !seen.ends_with(prompt.as_bytes()) {
                let mut byte = [0];
                output.read_exact(&mut byte).unwrap();
                seen.extend(byte);
            }
            writeln!(input, "{answer}").unwrap();
        }
        output.read_to_end(&mut seen).unwrap();
        let text = String::from_utf8_lossy(&seen);
        assert!(!text.contains("hunter"), "{text}");
        assert_eq!(text.contains("alice:$argon2id$"), code == 0, "{text}");
        assert_eq!(child.wait().unwrap().code(), Some(code), "{text}");
    }
}

/// Whoever closes the pipe has read enough: no command panics, and the exit is clean.
#[test]
fn a_closed_pipe_is_no_fault() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("tidegate.toml"), "[sites.\"a.test\"]\nupstream = \"127.0.0.1:1\"\n").unwrap();
    for arguments in [&["completions", "bash"][..], &["man"], &["schema"], &["show"], &["check"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(dir.path()).env("HOME", dir.path());
        let output = command.stdin(Stdio::null()).stdout(writer).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(0) && told.is_empty(), "{arguments:?}: {:?} {told}", output.status);
    }
}
