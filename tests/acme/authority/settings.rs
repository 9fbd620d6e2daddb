//! What the authority is told at start, and what all its parts share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::book::Book;
use super::fault::Fault;
use super::pki::Pki;

/// Options of the command line.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Where ACME is spoken, over HTTPS
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Where faults are set and the log is read, over plain HTTP
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) control: SocketAddr,
    /// A file for the root certificate (PEM): it signs the authority's own certificate and all chains
    #[arg(long)]
    pub(crate) root_out: Option<PathBuf>,
    /// How long certificates live
    #[arg(long, default_value = "90d", value_parser = duration)]
    pub(crate) lifetime: Duration,
    /// The port of HTTP-01
    #[arg(long, default_value_t = 80)]
    pub(crate) http_port: u16,
    /// The port of TLS-ALPN-01
    #[arg(long, default_value_t = 443)]
    pub(crate) tls_port: u16,
    /// The resolver of all checks; without it there are no DNS challenges
    #[arg(long)]
    pub(crate) dns_server: Option<SocketAddr>,
    /// Take 127.0.0.1 for the address of every name
    #[arg(long)]
    pub(crate) resolve_all: bool,
    /// How many of a hundred good nonces are rejected
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) nonce_reject: u8,
    /// Accounts need this external account, written KID:KEY with the key in base64url
    #[arg(long)]
    pub(crate) eab: Option<String>,
    /// Names that the authority is known by in CAA and dns-persist-01
    #[arg(long, default_value = "ca.example.test")]
    pub(crate) caa_identity: Vec<String>,
    /// A profile and the lifetime of its certificates, written NAME=LIFETIME
    #[arg(long, value_parser = profile)]
    pub(crate) profile: Vec<(String, Duration)>,
    /// The one challenge that is offered for a name, written NAME=TYPE
    #[arg(long, value_parser = offer)]
    pub(crate) offer: Vec<(String, String)>,
    /// Offer no renewal information
    #[arg(long)]
    pub(crate) no_ari: bool,
    /// Begin and end of the suggested window, as shares of the lifetime
    #[arg(long, default_value = "0.66,0.7", value_parser = window)]
    pub(crate) window: (f64, f64),
    /// When renewal information is to be asked again
    #[arg(long, default_value = "6h", value_parser = duration)]
    pub(crate) ari_retry_after: Duration,
}

/// What all parts share.
pub(crate) struct World {
    pub(crate) options: Options,
    /// The beginning of every URL, without a slash at the end.
    pub(crate) base: String,
    pub(crate) pki: Pki,
    pub(crate) resolver: Option<TokioResolver>,
    pub(crate) fault: watch::Sender<Option<Fault>>,
    /// How many entries the log has.
    pub(crate) entries: watch::Sender<usize>,
    book: Mutex<Book>,
}

impl World {
    pub(crate) fn new(options: Options, base: String, pki: Pki, resolver: Option<TokioResolver>) -> Self {
        let book = Mutex::new(Book::new(options.lifetime));
        Self { options, base, pki, resolver, fault: watch::Sender::new(None), entries: watch::Sender::new(0), book }
    }

    /// All that is remembered; never held across a wait.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("a part that panicked ended the program")
    }

    /// One more entry of the log.
    pub(crate) fn note(&self, entry: Value) {
        let mut book = self.book();
        book.log.push(entry);
        self.entries.send_replace(book.log.len());
    }

    /// The authority's own clock: it may be ahead of the machine's.
    pub(crate) fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.book().ahead
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The fault in force.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.borrow().clone()
    }
}

/// `90d`, `24h`, `5m`, `60s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.chars().next_back().unwrap_or(' ');
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(format!("\"{text}\" has no unit: write 60s, 5m, 24h or 90d")),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| format!("\"{text}\" is not a whole number"))?;
    count.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("\"{text}\" is too long"))
}

fn profile(text: &str) -> Result<(String, Duration), String> {
    let (name, lifetime) = text.split_once('=').ok_or("write NAME=LIFETIME")?;
    Ok((name.to_owned(), duration(lifetime)?))
}

fn offer(text: &str) -> Result<(String, String), String> {
    let (name, kind) = text.split_once('=').ok_or("write NAME=TYPE")?;
    Ok((name.to_owned(), kind.to_owned()))
}

fn window(text: &str) -> Result<(f64, f64), String> {
    let (start, end) = text.split_once(',').ok_or("write START,END")?;
    let share = |part: &str| part.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    match (share(start), share(end)) {
        (Some(start), Some(end)) if start < end => Ok((start, end)),
        _ => Err(format!("\"{text}\" is not two shares of a lifetime, the first below the second")),
    }
}
