//! `tidegate status`: asks the running edge, and shows what it says to a person or a script.
//!
//! Everything comes from `/status` of the admin endpoint; nothing is read beside it but the configuration,
//! which says where the edge can be asked. How it looks is `status/text.rs`'s business.

mod text;

use std::io::{self, IsTerminal as _, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Exit, FileArg};
use crate::addr::ListenAddr;
use crate::admin;
use crate::config;
use crate::site::policy::AdminPolicy;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// As JSON, with all open tunnels
    #[arg(long)]
    json: bool,
    /// Again each two seconds
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    file: FileArg,
    /// Where the edge is asked: unix:/PATH, or a loopback address and port [default: as the configuration says]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    admin: Option<String>,
}

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(2);
/// The edge asks its workers for a second at most, and reads what is on disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer. A hundred thousand tunnels take some 30 MiB.
const LONGEST: u64 = 256 << 20;

/// Does what the command says.
pub(super) fn status(args: &StatusArgs) -> io::Result<Exit> {
    let places = match places(args) {
        Ok(places) => places,
        Err(fault) => {
            writeln!(anstream::stderr(), "error: {}\nhelp: {}", fault.what, fault.help)?;
            return Ok(fault.exit);
        }
    };
    let is_terminal = io::stdout().is_terminal();
    loop {
        let answer = ask(&places);
        let mut out = anstream::stdout();
        if args.watch && is_terminal {
            // To the upper left, and everything below is cleared.
            write!(out, "\u{1b}[H\u{1b}[2J")?;
        }
        match &answer {
            Ok(status) if args.json && args.watch => writeln!(out, "{status}")?,
            Ok(status) if args.json => writeln!(out, "{status:#}")?,
            Ok(status) => write!(out, "{}", text::page(status))?,
            Err(fault) => writeln!(anstream::stderr(), "error: {}\nhelp: {}", fault.what, fault.help)?,
        }
        if !args.watch {
            return Ok(answer.err().map_or(Exit::Fine, |fault| fault.exit));
        }
        out.flush()?;
        thread::sleep(EVERY);
        if !is_terminal && !args.json {
            writeln!(out)?;
        }
    }
}

/// Why there is no status.
struct Fault {
    what: String,
    help: String,
    exit: Exit,
}

/// Where the edge may be asked, best first.
fn places(args: &StatusArgs) -> Result<Vec<ListenAddr>, Fault> {
    if let Some(address) = &args.admin {
        return parse(address).map(|address| vec![address]).ok_or_else(|| Fault {
            what: format!("\"{address}\" is no address of an admin endpoint"),
            help: "write unix:/PATH, or an address such as 127.0.0.1:9465".into(),
            exit: Exit::WrongInput,
        });
    }
    let usual = AdminPolicy::default();
    let (policy, storage) = match super::path(&args.file) {
        Ok(path) => match config::load(&path) {
            Ok(loaded) => (loaded.table.edge.admin, loaded.table.edge.storage),
            Err(_) if !path.exists() => {
                return Err(Fault {
                    what: format!("there is no {}", path.display()),
                    help: "name the configuration that the edge runs with, or its address with --admin".into(),
                    exit: Exit::WrongInput,
                });
            }
            // The edge runs on with the file of before; its fault is no reason not to look.
            Err(_) => (usual, config::storage_named_in(&path).unwrap_or_else(config::default_storage)),
        },
        // `run --host localhost` needs no file.
        Err(_) => (usual, config::default_storage()),
    };
    let places = admin::places(&policy, &storage);
    if places.is_empty() {
        return Err(Fault {
            what: "the configuration says admin.listen = \"off\"".into(),
            help: "remove the line, and reload: then there is a socket to ask".into(),
            exit: Exit::CouldNotRun,
        });
    }
    Ok(places)
}

/// `unix:/path`, `/path`, or an address and a port.
fn parse(text: &str) -> Option<ListenAddr> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    if path.starts_with('/') {
        return Some(ListenAddr::Unix(PathBuf::from(path)));
    }
    text.parse::<SocketAddr>().ok().map(ListenAddr::Tcp)
}

/// Asks at each place in turn.
fn ask(places: &[ListenAddr]) -> Result<Value, Fault> {
    let mut last = None;
    for place in places {
        match fetch(place) {
            Ok(status) => return Ok(status),
            // What is there and refuses says more than what is not there.
            Err(error) if last.is_none() || error.kind() != io::ErrorKind::NotFound => last = Some((place, error)),
            Err(_) => {}
        }
    }
    let all: Vec<String> = places.iter().map(ToString::to_string).collect();
    let (what, help) = match last {
        Some((place, error)) if error.kind() == io::ErrorKind::PermissionDenied => (
            format!("{place}: permission denied"),
            "run it as root, as the user that tidegate runs as, or as a member of its group".to_owned(),
        ),
        Some((place, error)) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            (format!("{place}: {error}"), "is that the admin endpoint of tidegate?".to_owned())
        }
        _ => (
            format!("no tidegate answers at {}", all.join(" or ")),
            "is it running? Name its configuration with -c FILE, or its address with --admin ADDRESS".to_owned(),
        ),
    };
    Err(Fault { what, help, exit: Exit::CouldNotRun })
}

/// Asks at one place.
fn fetch(place: &ListenAddr) -> io::Result<Value> {
    let mut stream: Box<dyn Stream> = match place {
        ListenAddr::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
        ListenAddr::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
        ListenAddr::Systemd(_) => return Err(io::ErrorKind::NotFound.into()),
    };
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    let other = || io::Error::other("what answers there is something else");
    let end = memchr::memmem::find(&answer, b"\r\n\r\n").ok_or_else(other)?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(other());
    }
    serde_json::from_slice(&answer[end + 4..]).map_err(|_| other())
}

/// A connection, whatever carries it.
trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_a_path_or_a_socket() {
        for (text, expected) in [
            ("unix:/run/tidegate/admin.sock", Some("unix:/run/tidegate/admin.sock")),
            ("/run/tidegate/admin.sock", Some("unix:/run/tidegate/admin.sock")),
            ("127.0.0.1:9465", Some("127.0.0.1:9465")),
            ("admin.sock", None),
            ("localhost", None),
        ] {
            assert_eq!(parse(text).map(|address| address.to_string()).as_deref(), expected, "{text}");
        }
    }
}
