//! Names and addresses: host names, host patterns, who connected and who asks.
//!
//! One normalisation serves SNI, `Host`, `:authority` and the configuration, so that no two parts
//! of the edge can disagree about what a name means (RFC 9110 4.2.3, RFC 5890 for A-labels).
//! No name resolution happens here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// A host name in A-label lower case without a final dot, or an IP address without brackets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why a text is no host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No text at all.
    #[error("the host name is empty")]
    Empty,
    /// RFC 1035 2.3.4: 253 octets for the whole name, 63 for one label.
    #[error("the host name is too long")]
    TooLong,
    /// A character that no host name has.
    #[error("the host name has a character that is not allowed")]
    BadCharacter,
    /// Two dots in a row, or a hyphen at an end of a label.
    #[error("the host name has an empty or malformed label")]
    BadLabel,
    /// The port is not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
}

impl HostName {
    /// Parses what a client sent: ASCII only, any case, brackets around IPv6.
    ///
    /// # Errors
    /// When the text is not a host name or an IP address.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let mut buffer = HostBuffer::new();
        buffer.normalise(text).map(|name| Self(Arc::from(name)))
    }

    /// Parses what an operator wrote: as `parse`, and U-labels become A-labels (UTS #46).
    ///
    /// # Errors
    /// When the text is not a host name or an IP address.
    pub fn from_config(text: &str) -> Result<Self, HostError> {
        if text.is_ascii() {
            return Self::parse(text);
        }
        let ascii = idna::domain_to_ascii(text).map_err(|_| HostError::BadCharacter)?;
        Self::parse(&ascii)
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, when the name is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// True for names that only mean this machine: `localhost`, `*.localhost`, loopback addresses.
    pub fn is_loopback(&self) -> bool {
        &*self.0 == "localhost" || self.0.ends_with(".localhost") || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// True for names that no public CA can issue for, so that the local CA is the default.
    pub fn is_internal(&self) -> bool {
        const SUFFIXES: [&str; 4] = [".local", ".internal", ".home.arpa", ".test"];
        if self.is_loopback() || SUFFIXES.iter().any(|suffix| self.0.ends_with(suffix)) {
            return true;
        }
        self.ip().is_some_and(is_private)
    }
}

impl std::borrow::Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Room for one normalised name, so that the request path looks a host up without allocating.
pub struct HostBuffer([u8; MAX_HOST]);

/// RFC 1035 2.3.4, as text without the final dot.
const MAX_HOST: usize = 253;

impl HostBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self([0; MAX_HOST])
    }

    /// Writes the normalised form of `text` here and returns it.
    ///
    /// # Errors
    /// When the text is not a host name or an IP address.
    pub fn normalise(&mut self, text: &str) -> Result<&str, HostError> {
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            return self.write_ip(inner);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > MAX_HOST {
            return Err(HostError::TooLong);
        }
        if name.contains(':') {
            return self.write_ip(name);
        }
        let mut label = 0;
        for (at, byte) in name.bytes().enumerate() {
            label = match byte {
                b'.' if label == 0 || self.0[at - 1] == b'-' => return Err(HostError::BadLabel),
                b'.' => 0,
                b'-' if label == 0 => return Err(HostError::BadLabel),
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'A'..=b'Z' => label + 1,
                // Not a host name by RFC 952, but internal names (Docker Compose) have it.
                b'_' => label + 1,
                _ => return Err(HostError::BadCharacter),
            };
            if label > 63 {
                return Err(HostError::TooLong);
            }
            self.0[at] = byte.to_ascii_lowercase();
        }
        if label == 0 || self.0[name.len() - 1] == b'-' {
            return Err(HostError::BadLabel);
        }
        let text = std::str::from_utf8(&self.0[..name.len()]).map_err(|_| HostError::BadCharacter)?;
        // 127.1, 0x7f.1 and the like are addresses to some resolvers and names to others: refused.
        let last = text.rsplit('.').next().unwrap_or(text);
        let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
        if numeric && text.parse::<std::net::Ipv4Addr>().is_err() {
            return Err(HostError::BadLabel);
        }
        Ok(text)
    }

    /// Writes the canonical text of an IP address: IPv4-mapped IPv6 becomes IPv4.
    fn write_ip(&mut self, text: &str) -> Result<&str, HostError> {
        use std::io::Write as _;
        let ip: std::net::Ipv6Addr = text.parse().map_err(|_| HostError::BadCharacter)?;
        let mut rest = &mut self.0[..];
        write!(rest, "{}", IpAddr::V6(ip).to_canonical()).map_err(|_| HostError::TooLong)?;
        let unused = rest.len();
        std::str::from_utf8(&self.0[..MAX_HOST - unused]).map_err(|_| HostError::BadCharacter)
    }
}

impl Default for HostBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// Splits `host[:port]` (RFC 9110 4.2.1; no user information: RFC 9110 4.2.4) without normalising.
///
/// # Errors
/// When the port is not a number, or a bracket is not closed.
pub fn split_authority(text: &str) -> Result<(&str, Option<u16>), HostError> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']').ok_or(HostError::BadCharacter)? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(end);
    let Some(port) = rest.strip_prefix(':') else {
        return if rest.is_empty() { Ok((host, None)) } else { Err(HostError::BadCharacter) };
    };
    if port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::BadPort);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(HostError::BadPort),
        Ok(port) => Ok((host, Some(port))),
    }
}

/// What a site answers to: one name, or every name one label below another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name only.
    Exact(HostName),
    /// `*.name`: exactly one further label (RFC 9525 6.3, as certificates match).
    Wildcard(HostName),
}

impl HostPattern {
    /// Parses `name`, `address` or `*.name` as an operator writes it.
    ///
    /// # Errors
    /// When the text, or what follows `*.`, is not a host name.
    pub fn from_config(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            Some(rest) => match HostName::from_config(rest)? {
                name if name.ip().is_some() => Err(HostError::BadLabel),
                name => Ok(Self::Wildcard(name)),
            },
            None => HostName::from_config(text).map(Self::Exact),
        }
    }

    /// The name, or the name below which the wildcard stands.
    pub fn name(&self) -> &HostName {
        match self {
            Self::Exact(name) | Self::Wildcard(name) => name,
        }
    }

    /// True when a normalised name matches.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name.as_str() == host,
            Self::Wildcard(name) => host.split_once('.').is_some_and(|(_, rest)| rest == name.as_str()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(name) => write!(f, "*.{name}"),
        }
    }
}

/// Who opened the connection. IPv4-mapped IPv6 addresses are already IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerAddr {
    /// A TCP peer.
    Ip(SocketAddr),
    /// A process at the other end of a unix socket; it has no address.
    Unix,
}

impl PeerAddr {
    /// The canonical form of what `accept` returned.
    pub fn from_socket(address: SocketAddr) -> Self {
        Self::Ip(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The IP address, when there is one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Whom we believe is asking: the address that `X-Forwarded-For` will carry. Always canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(IpAddr);

impl ClientAddr {
    /// The canonical form of an address.
    pub fn new(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// True when the client may be shown details of this machine: loopback or a private network.
    pub fn is_near(self) -> bool {
        is_private(self.0)
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// True for loopback, RFC 1918, RFC 4193, link-local and shared (RFC 6598, VPN) addresses.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// An address that we accept on: `127.0.0.1:8443`, `[::]:443`, `unix:/path` or `systemd:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
    /// Activated sockets with this `FileDescriptorName=`.
    Systemd(Box<str>),
}

impl ListenAddr {
    /// True when only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
            // Only the socket unit knows where it is bound; what is not known to be near is far.
            Self::Systemd(_) => false,
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_normal_form() {
        for (text, expected) in [
            ("Claw.Example.COM", Ok("claw.example.com")),
            ("claw.example.com.", Ok("claw.example.com")),
            ("127.0.0.1", Ok("127.0.0.1")),
            ("[::FFFF:127.0.0.1]", Ok("127.0.0.1")),
            ("[2001:DB8::1]", Ok("2001:db8::1")),
            ("2001:db8:0:0::1", Ok("2001:db8::1")),
            ("a_b.internal", Ok("a_b.internal")),
            ("", Err(HostError::Empty)),
            (".", Err(HostError::Empty)),
            ("a..b", Err(HostError::BadLabel)),
            ("-a.b", Err(HostError::BadLabel)),
            ("a-.b", Err(HostError::BadLabel)),
            ("a.b-", Err(HostError::BadLabel)),
            ("a b", Err(HostError::BadCharacter)),
            ("a@b", Err(HostError::BadCharacter)),
            ("a/b", Err(HostError::BadCharacter)),
            ("a,b", Err(HostError::BadCharacter)),
            ("127.1", Err(HostError::BadLabel)),
            ("0x7f000001", Err(HostError::BadLabel)),
            ("2130706433", Err(HostError::BadLabel)),
        ] {
            let mut buffer = HostBuffer::new();
            assert_eq!(buffer.normalise(text), expected, "{text:?}");
        }
        assert_eq!(HostName::from_config("bücher.example").map(|n| n.to_string()), Ok("xn--bcher-kva.example".into()));
        assert!(HostName::parse(&"a".repeat(64)).is_err());
        assert!(HostName::parse(&"a.".repeat(127)).is_ok_and(|n| n.as_str().len() == 253));
        assert!(HostName::parse(&"a.".repeat(128)).is_err());
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        for (text, expected) in [
            ("a.test", Ok(("a.test", None))),
            ("a.test:8443", Ok(("a.test", Some(8443)))),
            ("[::1]:443", Ok(("[::1]", Some(443)))),
            ("[::1]", Ok(("[::1]", None))),
            ("a.test:", Err(HostError::BadPort)),
            ("a.test:0", Err(HostError::BadPort)),
            ("a.test:65536", Err(HostError::BadPort)),
            ("a.test:+1", Err(HostError::BadPort)),
            ("a.test:1:2", Err(HostError::BadPort)),
            ("[::1", Err(HostError::BadCharacter)),
            ("[::1]x", Err(HostError::BadCharacter)),
        ] {
            assert_eq!(split_authority(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_wildcard_takes_one_label() {
        let pattern = HostPattern::from_config("*.example.test").expect("a wildcard");
        assert!(pattern.matches("a.example.test"));
        assert!(!pattern.matches("example.test"));
        assert!(!pattern.matches("a.b.example.test"));
        assert!(HostPattern::from_config("*.127.0.0.1").is_err());
    }
}
