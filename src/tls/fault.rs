//! What can go wrong: `TlsError` for the operator, `HandshakeError` for one connection.
//!
//! A `TlsError` says site, file, cause and remedy. A `HandshakeError` is shown as the `why` of the
//! connection's record: plain words, with nothing in it that a client could use to forge a line.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::addr::HostPattern;

/// A certificate, key or authority that cannot be used, and what to do about it.
#[derive(Debug)]
pub struct TlsError {
    site: Option<Arc<str>>,
    file: Option<PathBuf>,
    what: String,
    help: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl TlsError {
    /// What happened, and what to do.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { site: None, file: None, what: what.into(), help: help.into(), source: None }
    }

    /// Names the file.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }

    /// Names the site.
    #[must_use]
    pub fn for_site(mut self, site: &Arc<str>) -> Self {
        self.site = Some(Arc::clone(site));
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The site that needs it.
    pub fn site(&self) -> Option<&str> {
        self.site.as_deref()
    }

    /// The file that is meant.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What to do.
    pub fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(site) = &self.site {
            write!(f, "site \"{site}\": ")?;
        }
        f.write_str(&self.what)?;
        if let Some(file) = &self.file {
            write!(f, " \"{}\"", file.display())?;
        }
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Why a connection ended before its handshake was finished.
#[derive(Debug)]
pub enum HandshakeError {
    /// The deadline passed.
    Timeout {
        /// The name that was asked for, when it was known already.
        sni: Option<Box<str>>,
        /// How many bytes had come.
        bytes: usize,
    },
    /// The client went away.
    Closed {
        /// The name that was asked for, when it was known already.
        sni: Option<Box<str>>,
    },
    /// The first bytes are not TLS.
    NotTls {
        /// What they seem to be.
        spoke: Spoke,
    },
    /// No site of this listener has the name.
    UnknownName {
        /// The name; `None` when none was sent.
        sni: Option<Box<str>>,
        /// The local address, which stands for the name when none was sent.
        local: Option<IpAddr>,
        /// Some of the names there are.
        sites: Box<str>,
    },
    /// The site is known, its certificate is not there.
    NoCertificate {
        /// The name that was asked for.
        sni: Option<Box<str>>,
        /// The site.
        site: HostPattern,
    },
    /// No version in common.
    Version {
        /// The name that was asked for.
        sni: Option<Box<str>>,
        /// What the client offers.
        offered: Box<str>,
        /// What the site takes; `None` before a site was chosen.
        taken: &'static str,
    },
    /// No protocol in common (RFC 7301).
    Alpn {
        /// The name that was asked for.
        sni: Option<Box<str>>,
        /// What the client offers, printable.
        offered: Box<str>,
        /// What the site offers.
        ours: Box<str>,
    },
    /// The client's certificate is missing or not accepted.
    ClientCert {
        /// The name that was asked for.
        sni: Option<Box<str>>,
        /// Why not.
        why: Box<str>,
    },
    /// A CA looked for a proof (RFC 8737): such a connection ends with its handshake.
    Validation {
        /// The name that it asked for.
        sni: Option<Box<str>>,
        /// Whether it got the proof.
        is_answered: bool,
    },
    /// Anything else that breaks TLS.
    Protocol {
        /// The name that was asked for.
        sni: Option<Box<str>>,
        /// What it was.
        why: Box<str>,
    },
}

/// What a client spoke in place of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoke {
    /// A request in cleartext.
    Http,
    /// The preface of the PROXY protocol.
    ProxyProtocol,
    /// Something else that begins with this byte.
    Other(u8),
}

impl HandshakeError {
    /// The name that was asked for, when it was known already.
    pub fn sni(&self) -> Option<&str> {
        match self {
            Self::NotTls { .. } => None,
            Self::Timeout { sni, .. }
            | Self::Closed { sni }
            | Self::UnknownName { sni, .. }
            | Self::NoCertificate { sni, .. }
            | Self::Version { sni, .. }
            | Self::Alpn { sni, .. }
            | Self::ClientCert { sni, .. }
            | Self::Validation { sni, .. }
            | Self::Protocol { sni, .. } => sni.as_deref(),
        }
    }

    /// A short word that never changes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Closed { .. } => "closed",
            Self::NotTls { .. } => "not-tls",
            Self::UnknownName { .. } => "unknown-name",
            Self::NoCertificate { .. } => "no-certificate",
            Self::Version { .. } => "version",
            Self::Alpn { .. } => "alpn",
            Self::ClientCert { .. } => "client-cert",
            Self::Validation { .. } => "validation",
            Self::Protocol { .. } => "protocol",
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { bytes: 0, .. } => f.write_str("the client sent nothing within the handshake timeout"),
            Self::Timeout { .. } => f.write_str("the handshake was not finished within its timeout"),
            Self::Closed { .. } => f.write_str("the client closed before the handshake was finished"),
            Self::NotTls { spoke: Spoke::Http } => f.write_str("the client spoke plain HTTP to a TLS listener"),
            Self::NotTls { spoke: Spoke::ProxyProtocol } => {
                f.write_str("the client sent a PROXY protocol preface, and is not in trust.proxy_protocol")
            }
            Self::NotTls { spoke: Spoke::Other(byte) } => {
                write!(f, "the client did not speak TLS (first byte 0x{byte:02x})")
            }
            Self::UnknownName { sni: Some(name), sites, .. } => {
                write!(f, "no certificate for \"{name}\" (sites: {sites})")
            }
            Self::UnknownName { sni: None, local: Some(ip), sites } => {
                write!(f, "the client named no site, and none is named {ip} (sites: {sites})")
            }
            Self::UnknownName { sni: None, local: None, sites } => {
                write!(f, "the client named no site (sites: {sites})")
            }
            Self::NoCertificate { site, .. } => write!(f, "site \"{site}\" has no certificate yet"),
            Self::Version { offered, taken, .. } => {
                write!(f, "no common protocol (client offers {offered}, {taken} is needed)")
            }
            Self::Alpn { offered, ours, .. } => {
                write!(f, "no common ALPN protocol (client offers {offered}; the site {ours})")
            }
            Self::ClientCert { why, .. } => write!(f, "client certificate: {why}"),
            Self::Validation { is_answered: true, .. } => {
                f.write_str("a CA was shown the proof that it asked for (tls-alpn-01)")
            }
            Self::Validation { is_answered: false, .. } => {
                f.write_str("somebody asked for a proof (tls-alpn-01) that no order of ours needs")
            }
            Self::Protocol { why, .. } => f.write_str(why),
        }
    }
}

impl Error for HandshakeError {}
