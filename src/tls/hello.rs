//! The first bytes of a connection: read the ClientHello, say what came when it was none.
//!
//! rustls parses and judges the hello. What is read here beside it (the offered versions) only
//! words the reason for the log; nothing is decided by it but the alert of a hopeless client.

use std::io;
use std::time::Duration;

use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::fault::{HandshakeError, Spoke};

/// How far a handshake has come, for whoever ends it from outside.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes of the client hello that have come.
    pub(super) bytes: usize,
    /// The name that was asked for.
    pub(super) sni: Option<Box<str>>,
}

/// A refused handshake, and the last bytes that the client gets.
pub(super) struct Refused {
    /// Why.
    pub(super) error: HandshakeError,
    /// An alert or an answer; empty when rustls has sent it, or nobody is there.
    pub(super) goodbye: Vec<u8>,
}

impl Refused {
    /// Refuses with a fatal alert in a record of its own: no keys exist yet, so it is in cleartext.
    pub(super) fn with_alert(error: HandshakeError, alert: Alert) -> Self {
        // RFC 8446 5.1 and 6: type 21, legacy version 3.3, two bytes: fatal and the description.
        Self { error, goodbye: vec![21, 3, 3, 0, 2, 2, alert as u8] }
    }
}

impl From<HandshakeError> for Refused {
    fn from(error: HandshakeError) -> Self {
        Self { error, goodbye: Vec::new() }
    }
}

/// A hello that rustls accepted, and its bytes.
pub(super) struct Hello {
    /// What rustls goes on with.
    pub(super) accepted: Accepted,
    /// The bytes, for `offered_versions`.
    pub(super) raw: Vec<u8>,
}

/// Fatal alerts that we write ourselves because rustls would send a less exact one (RFC 8446 6).
#[derive(Clone, Copy, Debug)]
pub(super) enum Alert {
    /// RFC 8446 6.2: no version in common.
    ProtocolVersion = 70,
    /// A fault of ours: the site has no certificate.
    InternalError = 80,
    /// RFC 6066 3: no server has the name.
    UnrecognizedName = 112,
    /// RFC 7301 3.2.
    NoApplicationProtocol = 120,
}

/// One read. A hello with a post-quantum key share has some 1.8 kB; rustls takes 4 KiB at once.
const READ: usize = 2048;

/// How long a client that gets a farewell may take to read it. Our choice: one slow round trip.
const FAREWELL: Duration = Duration::from_secs(1);

/// The answer to a request in cleartext.
const SPEAKS_HTTPS: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 120\r\n\
    connection: close\r\n\r\n\
    400: this port speaks HTTPS: use https:// in the address.\n\
    This answer comes from the edge, not from the gateway behind.\n";

/// Reads until rustls has a whole ClientHello.
pub(super) async fn read<S>(stream: &mut S, progress: &mut Progress) -> Result<Hello, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut raw = Vec::with_capacity(READ);
    loop {
        let before = raw.len();
        if raw.capacity() == before {
            raw.reserve_exact(READ);
        }
        let count = stream.read_buf(&mut raw).await.map_err(|_| HandshakeError::Closed { sni: None })?;
        if count == 0 {
            return Err(HandshakeError::Closed { sni: None }.into());
        }
        progress.bytes = raw.len();
        // RFC 8446 5.1: a TLS connection begins with a handshake record, type 22.
        if raw.first() != Some(&22) {
            match spoken(&raw) {
                Some(spoke) => return Err(refuse_cleartext(spoke)),
                None => continue,
            }
        }
        let mut rest = &raw[before..];
        while !rest.is_empty() {
            // `Ok(0)` would turn this into an endless loop, so it is a fault like any other.
            match acceptor.read_tls(&mut rest) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(protocol("the client hello is too long").into()),
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Hello { accepted, raw }),
            Ok(None) => {}
            Err((error, mut alert)) => {
                if let Some(error) = too_old(&raw) {
                    return Err(Refused::with_alert(error, Alert::ProtocolVersion));
                }
                let mut goodbye = Vec::new();
                // Writing into memory does not fail.
                let _ = alert.write_all(&mut goodbye);
                return Err(Refused { error: protocol(format!("broken client hello: {error}")), goodbye });
            }
        }
    }
}

/// What the client offers, as `TLS 1.0, TLS 1.1`, when none of it is TLS 1.2 or later.
fn too_old(raw: &[u8]) -> Option<HandshakeError> {
    let versions = offered_versions(raw)?;
    if versions.iter().any(|version| (0x0303..=0x0304).contains(version)) {
        return None;
    }
    Some(HandshakeError::Version { sni: None, offered: versions_text(&versions), taken: "TLS 1.2 or 1.3" })
}

/// Versions in words; unknown ones (GREASE, RFC 8701) are left out.
pub(super) fn versions_text(versions: &[u16]) -> Box<str> {
    let known = versions.iter().filter_map(|version| match version {
        0x0300 => Some("SSL 3.0"),
        0x0301 => Some("TLS 1.0"),
        0x0302 => Some("TLS 1.1"),
        0x0303 => Some("TLS 1.2"),
        0x0304 => Some("TLS 1.3"),
        _ => None,
    });
    let text = known.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "no version that we know".into() } else { text.into() }
}

/// The versions of a ClientHello (RFC 8446 4.2.1), the legacy field when there is no list.
pub(super) fn offered_versions(raw: &[u8]) -> Option<Vec<u16>> {
    let message = unwrap_records(raw)?;
    let mut rest = Reader(&message);
    let (1, _length) = (rest.byte()?, rest.take(3)?) else { return None };
    let legacy = rest.short()?;
    rest.take(32)?;
    let session = rest.byte()?;
    rest.take(session.into())?;
    let suites = rest.short()?;
    rest.take(suites.into())?;
    let compressions = rest.byte()?;
    rest.take(compressions.into())?;
    let Some(_extensions) = rest.short() else { return Some(vec![legacy]) };
    while let (Some(kind), Some(length)) = (rest.short(), rest.short()) {
        let data = rest.take(length.into())?;
        if kind == 43 {
            let list = data.get(1..)?;
            return Some(list.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect());
        }
    }
    Some(vec![legacy])
}

/// The payloads of the handshake records, one after the other.
fn unwrap_records(raw: &[u8]) -> Option<Vec<u8>> {
    let mut rest = Reader(raw);
    let mut message = Vec::with_capacity(raw.len());
    while !rest.0.is_empty() {
        let (22, _version) = (rest.byte()?, rest.short()?) else { break };
        let length = usize::from(rest.short()?);
        message.extend_from_slice(rest.take(length.min(rest.0.len()))?);
    }
    Some(message)
}

/// Takes big-endian fields off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2).map(|taken| u16::from_be_bytes([taken[0], taken[1]]))
    }
}

/// What bytes that are not TLS seem to be; `None` while more are needed.
fn spoken(raw: &[u8]) -> Option<Spoke> {
    const PROXY_V1: &[u8] = b"PROXY ";
    const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    for preface in [PROXY_V1, PROXY_V2] {
        if raw.starts_with(preface) {
            return Some(Spoke::ProxyProtocol);
        }
    }
    if PROXY_V1.starts_with(raw) || PROXY_V2.starts_with(raw) {
        return None;
    }
    // RFC 9110 9.1: a method is a token; those in use are upper-case words of up to 17 letters.
    let letters = raw.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match raw.get(letters) {
        Some(b' ') if (3..=17).contains(&letters) => Some(Spoke::Http),
        None if (1..=17).contains(&letters) => None,
        _ => Some(Spoke::Other(raw.first().copied().unwrap_or(0))),
    }
}

/// Tells a client in cleartext what this port speaks.
fn refuse_cleartext(spoke: Spoke) -> Refused {
    let goodbye = if spoke == Spoke::Http { SPEAKS_HTTPS.to_vec() } else { Vec::new() };
    Refused { error: HandshakeError::NotTls { spoke }, goodbye }
}

/// Writes last bytes, then reads what still comes for a moment: closing with unread bytes would
/// reset the connection, and a reset can overtake the answer (RFC 9112 9.6).
pub(super) async fn farewell<S>(stream: &mut S, bytes: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut sink = [0; 512];
        let mut budget = 64 * 1024_usize;
        while budget > 0 {
            match stream.read(&mut sink).await? {
                0 => break,
                count => budget = budget.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    // A client that is gone or slow changes nothing: the connection ends here either way.
    let _ = tokio::time::timeout(FAREWELL, said).await;
}

fn protocol(why: impl Into<Box<str>>) -> HandshakeError {
    HandshakeError::Protocol { sni: None, why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::old_hello;

    #[test]
    fn first_bytes_that_are_not_tls_are_named() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Spoke::Http)),
            (b"PRI * HTTP/2.0\r\n", Some(Spoke::Http)),
            (b"G", None),
            (b"GET", None),
            (b"PROXY TCP4", Some(Spoke::ProxyProtocol)),
            (b"PRO", None),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", Some(Spoke::ProxyProtocol)),
            (b"SSH-2.0-x", Some(Spoke::Other(b'S'))),
            (b"\x80\x2e\x01", Some(Spoke::Other(0x80))),
            (b"AAAAAAAAAAAAAAAAAAAAAAAA", Some(Spoke::Other(b'A'))),
        ] {
            assert_eq!(spoken(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn the_cleartext_answer_has_the_length_that_it_says() {
        let text = std::str::from_utf8(SPEAKS_HTTPS).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }

    #[test]
    fn truncated_hellos_are_read_without_harm() {
        let hello = old_hello();
        assert_eq!(offered_versions(&hello), Some(vec![0x0301]));
        for end in 0..hello.len() {
            let _ = offered_versions(&hello[..end]);
        }
        assert_eq!(&*versions_text(&[0x0301, 0x7a7a, 0x0302]), "TLS 1.0, TLS 1.1");
    }
}
