//! The admin endpoint's sockets: few connections, one request each, all of it under deadlines.
//!
//! Small on purpose. Only GET and HEAD, no body, no keep-alive; nothing that is asked changes anything, so that no
//! page of a browser can do harm (CSRF). On loopback the Host must be an address or `localhost`: a name that a page
//! has had resolved to this machine (DNS rebinding) gets nothing.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::facts::Facts;
use super::page::{self, Page};
use crate::addr::{ListenAddr, split_authority};
use crate::listen::bind::Bound;

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything.
    All,
    /// `/metrics`.
    Metrics,
}

impl Scope {
    /// The word in events.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::All => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// Connections at once. Our choice: a Prometheus or two, and a few people.
const CONNECTIONS: usize = 32;
/// From the first byte to the end of the answer. Our choice: a scrape of a thousand sites over a slow line.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for the head.
const HEAD: Duration = Duration::from_secs(5);
/// Largest head. Ours are some hundred bytes.
const HEAD_BYTES: usize = 8 << 10;
/// After an error of accept.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket in the runtime.
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Who may ask what.
#[derive(Clone, Copy, Debug)]
struct Rules {
    scope: Scope,
    /// Whether a browser on this machine could be made to ask.
    is_loopback: bool,
}

/// Serves a socket until the task is dropped.
///
/// # Errors
/// When the runtime cannot watch it.
pub(super) fn start(
    socket: Bound,
    scope: Scope,
    address: &ListenAddr,
    facts: Arc<Facts>,
) -> io::Result<JoinHandle<()>> {
    let listening = match socket {
        Bound::Tcp(listener) => Listening::Tcp(TcpListener::from_std(listener)?),
        Bound::Unix(listener) => Listening::Unix(UnixListener::from_std(listener)?),
    };
    let is_loopback = matches!(address, ListenAddr::Tcp(_)) && address.is_loopback();
    Ok(tokio::spawn(accept(listening, Rules { scope, is_loopback }, facts)))
}

async fn accept(listening: Listening, rules: Rules, facts: Arc<Facts>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = match &listening {
            Listening::Tcp(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>),
            Listening::Unix(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>),
        };
        let Ok(stream) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        // Above the limit it is closed at once.
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let facts = Arc::clone(&facts);
        tokio::spawn(async move {
            // Whoever went away, or was too slow, has no answer.
            let _ = timeout(PATIENCE, converse(stream, rules, &facts)).await;
            drop(permit);
        });
    }
}

/// A connection, whatever carries it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One request and its answer.
async fn converse(mut stream: Box<dyn Stream>, rules: Rules, facts: &Facts) -> io::Result<()> {
    let (asked, is_head) = match timeout(HEAD, read_head(&mut stream)).await {
        Err(_) => return Ok(()),
        Ok(read) => {
            let Some(head) = read? else { return Ok(()) };
            let asked = judge(&head, rules);
            (asked, head.starts_with(b"HEAD "))
        }
    };
    let page = match asked {
        Ok(path) => page::answer(&path, rules.scope == Scope::Metrics, facts).await,
        Err(page) => page,
    };
    let body = page.body;
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n{}\r\n",
        page.status,
        page.content_type,
        body.len(),
        if page.status == StatusCode::METHOD_NOT_ALLOWED { "Allow: GET, HEAD\r\n" } else { "" },
    );
    stream.write_all(head.as_bytes()).await?;
    if !is_head {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Reads up to the empty line. `None` when there is none, or what comes is too long.
async fn read_head(stream: &mut Box<dyn Stream>) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
        if head.len() >= HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// The path that is asked for, or why nothing is said.
fn judge(head: &[u8], rules: Rules) -> Result<String, Page> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    if !request.parse(head).is_ok_and(|parsed| parsed.is_complete()) {
        return Err(Page::refusal(StatusCode::BAD_REQUEST, "this is no request"));
    }
    if !matches!(request.method, Some("GET" | "HEAD")) {
        return Err(Page::refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD: nothing can be changed here"));
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let is_ours = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_this_machine(host.value),
        (None, _) => request.version == Some(0),
        (Some(_), Some(_)) => false,
    };
    if rules.is_loopback && !is_ours {
        return Err(Page::refusal(StatusCode::MISDIRECTED_REQUEST, "ask by address, or by localhost"));
    }
    let target = request.path.unwrap_or_default();
    Ok(target.split('?').next().unwrap_or(target).to_owned())
}

/// True for an address, and for `localhost`: no page can have a name of its own that reads so.
fn is_this_machine(host: &[u8]) -> bool {
    let Some((name, _)) = std::str::from_utf8(host).ok().and_then(|host| split_authority(host.trim()).ok()) else {
        return false;
    };
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_this_machine() {
        for (host, expected) in [
            ("127.0.0.1:9465", true),
            ("[::1]:9465", true),
            ("::1", false),
            ("localhost", true),
            ("LOCALHOST:80", true),
            ("rebound.example.com:9465", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
            ("", false),
        ] {
            assert_eq!(is_this_machine(host.as_bytes()), expected, "{host}");
        }
    }

    #[test]
    fn what_changes_something_is_not_taken() {
        let rules = Rules { scope: Scope::All, is_loopback: true };
        let asked = |text: &str| judge(text.as_bytes(), rules).map_err(|page| page.status.as_u16());
        assert_eq!(asked("GET /status?x=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_deref(), Ok("/status"));
        assert_eq!(asked("GET /status HTTP/1.0\r\n\r\n").as_deref(), Ok("/status"));
        assert_eq!(asked("POST /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), Err(405));
        assert_eq!(asked("GET /status HTTP/1.1\r\nHost: a.example.com\r\n\r\n"), Err(421));
        assert_eq!(asked("GET /status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"), Err(421));
        assert_eq!(asked("GET /status HTTP/1.1\r\n\r\n"), Err(421));
        assert_eq!(asked("\x16\x03\x01\r\n\r\n"), Err(400));
    }
}
