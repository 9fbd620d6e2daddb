//! From the first byte of a connection to a finished handshake, under one deadline.
//!
//! The site is chosen by SNI (RFC 6066 3); its policy says versions, ALPN and client certificates,
//! the store has its certificate. Every way to fail is a `HandshakeError` that says why in words.
//! No HTTP here, and no decision about requests.

pub mod certs;
pub mod client;
pub mod fault;
pub mod files;
mod hello;
pub mod holding;
pub mod kept;
mod load;
pub mod local_ca;
mod policies;
pub mod proofs;
pub mod revocation;
pub mod subject;

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::server::ClientHello;
use rustls::{CertificateError, CipherSuite, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use crate::addr::{HostName, HostPattern};
use crate::site::policy::{Alpn, TlsPolicy};
use crate::site::{ListenerId, Site, SiteTable, UnknownSni};
use hello::{Alert, Hello, Progress, Refused};
use holding::Holding;
use proofs::ProofBoard;

pub use client::{client_config, service_config};
pub use fault::{HandshakeError, Spoke, TlsError};
pub use load::{Loaded, OfAcmeSite, TlsWarning, load_all, of_acme_site, patterns, publish_all, withdraw_unused};
pub use policies::{Policies, provider};

/// A finished handshake.
#[derive(Debug)]
pub struct Handshake<S> {
    /// The stream, ready for HTTP.
    pub stream: TlsStream<Holding<S>>,
    /// What was agreed.
    pub facts: Rc<TlsFacts>,
}

/// What a handshake agreed on.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// The name that the client asked for.
    pub sni: Option<HostName>,
    /// The site whose policy and certificate were used.
    pub site_host: HostPattern,
    /// That policy.
    pub policy: Arc<TlsPolicy>,
    /// The protocol; HTTP/1.1 when the client did not negotiate one.
    pub alpn: Alpn,
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The cipher without its hash: `AES_128_GCM`.
    pub cipher: &'static str,
    /// The key exchange; `None` for a session of TLS 1.2 that was resumed.
    pub group: Option<&'static str>,
    /// Whether an earlier session went on.
    pub is_resumed: bool,
    /// Subject of a verified client certificate (RFC 4514, printable ASCII).
    pub client_subject: Option<Box<str>>,
}

/// Runs the handshake of one connection.
///
/// `local` is the address that the client connected to; it stands for the name when the client sends
/// none (RFC 6066 3 has no SNI for addresses). `deadline` is absolute and bounds everything here.
///
/// # Errors
/// When no handshake comes about. The client has got the fitting alert then.
pub async fn accept<S>(
    stream: S,
    policies: &Policies,
    table: &SiteTable,
    listener: ListenerId,
    local: Option<IpAddr>,
    deadline: Instant,
) -> Result<Handshake<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut progress = Progress::default();
    // Boxed: the handshake's state is given back with its end, and does not stay in the task of a
    // connection that then lives for days.
    let handshake = Box::pin(handshake(stream, policies, table, listener, local, &mut progress));
    match timeout_at(deadline, handshake).await {
        Ok(Ok(handshake)) => Ok(handshake),
        Ok(Err((stream, Refused { error, goodbye }))) => {
            // After the verdict and under a bound of its own, so that the deadline cannot take its place.
            if let Some(mut stream) = stream.filter(|_| !goodbye.is_empty()) {
                hello::farewell(&mut stream, &goodbye).await;
            }
            Err(error)
        }
        Err(_) => Err(HandshakeError::Timeout { sni: progress.sni, bytes: progress.bytes }),
    }
}

async fn handshake<S>(
    mut stream: S,
    policies: &Policies,
    table: &SiteTable,
    listener: ListenerId,
    local: Option<IpAddr>,
    progress: &mut Progress,
) -> Result<Handshake<S>, (Option<S>, Refused)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Hello { accepted, raw } = match hello::read(&mut stream, progress).await {
        Ok(hello) => hello,
        Err(refused) => return Err((Some(stream), refused)),
    };
    let client_hello = accepted.client_hello();
    let sni: Option<Box<str>> = client_hello.server_name().map(Into::into);
    progress.sni.clone_from(&sni);

    if is_validation(&client_hello) {
        return Err(show_proof(accepted, stream, sni, policies.proofs()).await);
    }
    let Some(choice) = Choice::make(table, listener, sni.as_deref(), local) else {
        let error = HandshakeError::UnknownName { sni, local, sites: some_names(table, listener) };
        return Err((Some(stream), Refused::with_alert(error, Alert::UnrecognizedName)));
    };
    // By the site's own pattern, not by SNI: a name whose certificate is missing must not fall to
    // the wildcard of another site.
    let Some(certificate) = policies.certs().of(choice.pattern) else {
        let error = HandshakeError::NoCertificate { sni, site: choice.pattern.clone() };
        return Err((Some(stream), Refused::with_alert(error, Alert::InternalError)));
    };
    if let Some(offered) = alpn_without_overlap(&client_hello, choice.policy) {
        let ours = list(choice.policy.alpn.iter().map(|protocol| policies::alpn_id(*protocol)));
        let error = HandshakeError::Alpn { sni, offered, ours };
        return Err((Some(stream), Refused::with_alert(error, Alert::NoApplicationProtocol)));
    }
    let config = match policies.config(choice.policy, &certificate.key) {
        Ok(config) => config,
        Err(error) => {
            let error = HandshakeError::Protocol { sni, why: error.to_string().into() };
            return Err((Some(stream), Refused::with_alert(error, Alert::InternalError)));
        }
    };
    match StartHandshake::from_parts(accepted, Holding::new(stream)).into_stream(config).await {
        Ok(mut stream) => {
            stream.get_mut().0.settle();
            stream.get_mut().1.set_buffer_limit(Some(UNSENT));
            let facts = TlsFacts::of(stream.get_ref().1, sni, &choice).map_err(|error| (None, error.into()))?;
            Ok(Handshake { stream, facts: Rc::new(facts) })
        }
        Err(error) => Err((None, explain(&error, sni, &raw, choice.policy).into())),
    }
}

/// True when a CA asks for a proof: such a client offers this protocol and no other (RFC 8737 3).
fn is_validation(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(proofs::ACME_TLS) && offered.next().is_none())
}

/// Shows a CA the proof for a name, if one is up. The deadline of all handshakes bounds this one too.
async fn show_proof<S>(
    accepted: rustls::server::Accepted,
    stream: S,
    sni: Option<Box<str>>,
    board: &ProofBoard,
) -> (Option<S>, Refused)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(key) = sni.as_deref().and_then(|name| board.tls_alpn01(name)) else {
        let error = HandshakeError::Validation { sni, is_answered: false };
        return (Some(stream), Refused::with_alert(error, Alert::UnrecognizedName));
    };
    let config = match policies::proof_config(key) {
        Ok(config) => config,
        Err(error) => return (None, HandshakeError::Protocol { sni, why: error.to_string().into() }.into()),
    };
    match StartHandshake::from_parts(accepted, stream).into_stream(config).await {
        Ok(mut stream) => {
            // RFC 8737 3: nothing is said after the handshake. Whoever looked may be gone already.
            let _ = stream.shutdown().await;
            (None, HandshakeError::Validation { sni, is_answered: true }.into())
        }
        Err(error) => (None, HandshakeError::Protocol { sni, why: error.to_string().into() }.into()),
    }
}

/// The site of a handshake.
struct Choice<'t> {
    site: &'t Site,
    /// Which of its names was meant.
    pattern: &'t HostPattern,
    policy: &'t Arc<TlsPolicy>,
}

impl<'t> Choice<'t> {
    /// By SNI; without one by the local address; else as `unknown_sni` says.
    fn make(table: &'t SiteTable, listener: ListenerId, sni: Option<&str>, local: Option<IpAddr>) -> Option<Self> {
        let named = match sni {
            Some(name) => HostName::parse(name).ok(),
            None => local.and_then(|ip| HostName::parse(&ip.to_canonical().to_string()).ok()),
        };
        let found = named.and_then(|name| Self::of(table, listener, name.as_str()));
        found.or_else(|| match &table.edge.unknown_sni {
            UnknownSni::Reject => None,
            UnknownSni::Site(name) => Self::of(table, listener, name.as_str()),
        })
    }

    /// A site of another listener, or one without TLS, is not there.
    fn of(table: &'t SiteTable, listener: ListenerId, name: &str) -> Option<Self> {
        let site: &Site = table.find(name)?.site;
        let tls = site.tls.as_ref().filter(|_| site.listener == listener)?;
        let patterns = || std::iter::once(&site.host).chain(&site.aliases).filter(|pattern| pattern.matches(name));
        let exact = patterns().find(|pattern| matches!(pattern, HostPattern::Exact(_)));
        let pattern = exact.or_else(|| patterns().next())?;
        Some(Self { site, pattern, policy: &tls.policy })
    }
}

impl TlsFacts {
    fn of(session: &ServerConnection, sni: Option<Box<str>>, choice: &Choice<'_>) -> Result<Self, HandshakeError> {
        let client_subject = match session.peer_certificates().and_then(<[_]>::first) {
            None => None,
            Some(certificate) => match subject::of_certificate(certificate) {
                Some(text) if text.len() <= subject::MAX_SUBJECT => Some(text.into()),
                Some(_) => return Err(HandshakeError::ClientCert { sni, why: "its subject is too long".into() }),
                None => return Err(HandshakeError::ClientCert { sni, why: "its subject cannot be read".into() }),
            },
        };
        Ok(Self {
            sni: sni.and_then(|name| HostName::parse(&name).ok()),
            site_host: choice.site.host.clone(),
            policy: Arc::clone(choice.policy),
            alpn: match session.alpn_protocol() {
                Some(b"h2") => Alpn::Http2,
                Some(_) | None => Alpn::Http11,
            },
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "1.3",
                // Nothing below is compiled in.
                Some(_) | None => "1.2",
            },
            cipher: session.negotiated_cipher_suite().map_or("", |suite| cipher_name(suite.suite())),
            group: session.negotiated_key_exchange_group().and_then(|group| group.name().as_str()),
            is_resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            client_subject,
        })
    }
}

/// The cipher; the record has the version beside it, and the hash says nothing to a reader.
fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "AES_128_GCM",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "AES_256_GCM",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE_ECDSA_AES_128_GCM",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE_ECDSA_AES_256_GCM",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE_ECDSA_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE_RSA_AES_128_GCM",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE_RSA_AES_256_GCM",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE_RSA_CHACHA20_POLY1305",
        other => other.as_str().unwrap_or(""),
    }
}

/// What the client offers by ALPN, when it offers something and the site has none of it.
fn alpn_without_overlap(hello: &ClientHello<'_>, policy: &TlsPolicy) -> Option<Box<str>> {
    let is_ours = |theirs: &[u8]| policy.alpn.iter().any(|ours| policies::alpn_id(*ours) == theirs);
    if policy.alpn.is_empty() || hello.alpn()?.any(is_ours) {
        return None;
    }
    hello.alpn().map(list)
}

/// Protocol names, printable and bounded: the client chose them.
fn list<'a>(names: impl Iterator<Item = &'a [u8]>) -> Box<str> {
    let texts: Vec<String> = names.take(8).map(|name| name.escape_ascii().take(32).map(char::from).collect()).collect();
    texts.join(", ").into()
}

/// Encrypted bytes that wait for a client which takes none. Our choice: two records, which is the largest piece that is
/// written at once; a third only makes a slow client dearer.
const UNSENT: usize = 36 << 10;

/// Some of the names that this listener serves, for the log.
fn some_names(table: &SiteTable, listener: ListenerId) -> Box<str> {
    // Five are enough to see a typing error; every scanner writes such a line.
    const SHOWN: usize = 5;
    let of_listener = || table.sites().iter().filter(|site| site.listener == listener && site.tls.is_some());
    let shown: Vec<&str> = of_listener().take(SHOWN).map(|site| &*site.label).collect();
    match of_listener().count() {
        0 => "none here".into(),
        count if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN).into(),
        _ => shown.join(", ").into(),
    }
}

/// Words for what ended a handshake that had a site.
fn explain(error: &io::Error, sni: Option<Box<str>>, raw: &[u8], policy: &TlsPolicy) -> HandshakeError {
    let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => HandshakeError::Closed { sni },
            _ => HandshakeError::Protocol { sni, why: error.to_string().into() },
        };
    };
    let why: Box<str> = match fault {
        rustls::Error::NoCertificatesPresented => {
            return HandshakeError::ClientCert { sni, why: "none was sent, and the site requires one".into() };
        }
        rustls::Error::InvalidCertificate(reason) => {
            return HandshakeError::ClientCert { sni, why: certificate_fault(reason) };
        }
        rustls::Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => {
            let offered = hello::versions_text(&hello::offered_versions(raw).unwrap_or_default());
            return HandshakeError::Version { sni, offered, taken: policies::versions_text(policy.profile) };
        }
        rustls::Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => "no common cipher suite".into(),
        rustls::Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => "no common key exchange group".into(),
        rustls::Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => {
            "the client accepts no signature that our key can make".into()
        }
        rustls::Error::AlertReceived(alert) => {
            use rustls::AlertDescription as A;
            let name = alert.as_str().unwrap_or("unknown");
            match alert {
                A::UnknownCA | A::BadCertificate | A::CertificateUnknown | A::CertificateExpired => {
                    format!("the client does not accept our certificate (alert {name})").into()
                }
                _ => format!("the client ended the handshake (alert {name})").into(),
            }
        }
        other => other.to_string().into(),
    };
    HandshakeError::Protocol { sni, why }
}

/// Words for what is wrong with a client certificate.
fn certificate_fault(reason: &CertificateError) -> Box<str> {
    match reason {
        CertificateError::UnknownIssuer => "it is not issued by an accepted authority".into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".into(),
        CertificateError::BadSignature => "its signature is wrong".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not meant for clients (extended key usage)".into()
        }
        CertificateError::Revoked => "it was revoked".into(),
        CertificateError::UnknownRevocationStatus => {
            "no list in \"client_cert.crl\" says whether it, or an authority in its chain, was revoked".into()
        }
        other => format!("it was not accepted: {other}").into(),
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
