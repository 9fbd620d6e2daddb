//! Names and addresses: host names, host patterns, who connected and who asks.
//!
//! One normalisation serves SNI, `Host`, `:authority` and the configuration, so that no two parts
//! of the edge can disagree about what a name means (RFC 9110 4.2.3, RFC 5890 for A-labels).
//! No name resolution happens here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
        match self.write_name(name) {
            Ok(()) => std::str::from_utf8(&self.0[..name.len()]).map_err(|_| HostError::BadCharacter),
            // No name has a colon: looked for only in what is none.
            Err(_) if name.contains(':') => self.write_ip(name),
            Err(error) => Err(error),
        }
    }

    /// Writes a name that is not empty and not too long, in lower case and at the same length.
    fn write_name(&mut self, name: &str) -> Result<(), HostError> {
        let mut label = 0;
        let mut before = b'.';
        for (at, (to, byte)) in self.0.iter_mut().zip(name.bytes()).enumerate() {
            let lower = HOST_BYTE[usize::from(byte)];
            *to = lower;
            match lower {
                b'.' if at == label || before == b'-' => return Err(HostError::BadLabel),
                b'.' => label = at + 1,
                b'-' if at == label => return Err(HostError::BadLabel),
                0 => return Err(HostError::BadCharacter),
                _ if at - label >= 63 => return Err(HostError::TooLong),
                _ => {}
            }
            before = lower;
        }
        let last = &name[label..];
        if last.is_empty() || before == b'-' {
            return Err(HostError::BadLabel);
        }
        // 127.1, 0x7f.1 and the like are addresses to some resolvers and names to others: refused.
        let is_number =
            last.bytes().all(|byte| byte.is_ascii_digit()) || matches!(last.as_bytes(), [b'0', b'x' | b'X', ..]);
        if is_number && name.parse::<Ipv4Addr>().is_err() {
            return Err(HostError::BadLabel);
        }
        Ok(())
    }

    /// Writes the canonical text of an IP address: IPv4-mapped IPv6 becomes IPv4.
    fn write_ip(&mut self, text: &str) -> Result<&str, HostError> {
        use std::io::Write as _;
        let ip: Ipv6Addr = text.parse().map_err(|_| HostError::BadCharacter)?;
        let mut rest = &mut self.0[..];
        write!(rest, "{}", IpAddr::V6(ip).to_canonical()).map_err(|_| HostError::TooLong)?;
        let unused = rest.len();
        std::str::from_utf8(&self.0[..MAX_HOST - unused]).map_err(|_| HostError::BadCharacter)
    }
}

/// Each byte of a host name in lower case; 0 for those that no name has.
const HOST_BYTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        // `_` is none by RFC 952, but internal names (Docker Compose) have it.
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

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
        None => memchr::memchr(b':', text.as_bytes()).unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(end);
    let Some(port) = rest.strip_prefix(':') else {
        return if rest.is_empty() { Ok((host, None)) } else { Err(HostError::BadCharacter) };
    };
    if port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::BadPort);
    }
    // Five digits always fit 32 bits; no digits are 0.
    let number = port.bytes().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    match u16::try_from(number) {
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

    /// `198.51.100.7:50122`, `[2001:db8::7]:50122` or `unix`.
    pub fn text(self) -> AddrText {
        match self {
            Self::Ip(SocketAddr::V4(address)) => {
                let mut text = AddrText::new();
                text.octets(*address.ip());
                text.push(b':');
                text.decimal(address.port());
                text
            }
            Self::Ip(address) => AddrText::of(format_args!("{address}")),
            Self::Unix => AddrText::of(format_args!("unix")),
        }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
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

    /// `198.51.100.7` or `2001:db8::7`.
    pub fn text(self) -> AddrText {
        match self.0 {
            IpAddr::V4(address) => {
                let mut text = AddrText::new();
                text.octets(address);
                text
            }
            IpAddr::V6(address) => AddrText::of(format_args!("{address}")),
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

/// An address as text. Every request and every record needs one or two: no allocation, and for IPv4 none of the
/// formatting machinery, which costs ten times as much.
#[derive(Clone, Copy)]
pub struct AddrText {
    room: [u8; LONGEST_ADDR],
    length: usize,
}

/// `[`, an IPv6 address of 45 bytes (RFC 4291 2.2), `%` and a zone of 10 digits, `]:`, and a port.
const LONGEST_ADDR: usize = 64;

impl AddrText {
    fn new() -> Self {
        Self { room: [0; LONGEST_ADDR], length: 0 }
    }

    fn of(address: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        let written = fmt::Write::write_fmt(&mut text, address);
        debug_assert!(written.is_ok(), "there is room for every address");
        text
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("addresses are ASCII")
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.room[..self.length]
    }

    fn octets(&mut self, address: Ipv4Addr) {
        let [first, rest @ ..] = address.octets();
        self.decimal(first.into());
        for octet in rest {
            self.push(b'.');
            self.decimal(octet.into());
        }
    }

    fn decimal(&mut self, number: u16) {
        for unit in [10_000, 1_000, 100, 10] {
            if number >= unit {
                self.push(b'0' + (number / unit % 10) as u8);
            }
        }
        self.push(b'0' + (number % 10) as u8);
    }

    fn push(&mut self, byte: u8) {
        self.room[self.length] = byte;
        self.length += 1;
    }
}

impl fmt::Write for AddrText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.room[self.length..].get_mut(..text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
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
    use proptest::prelude::*;

    use super::*;

    /// The rules of `HostBuffer::normalise` for names, one after another, as a sentence would say them.
    fn name_by_the_book(name: &str) -> Option<String> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let last = name.rsplit('.').next()?;
        let is_number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
        let is_name = name.len() <= MAX_HOST && name.split('.').all(is_label);
        (is_name && (!is_number || name.parse::<Ipv4Addr>().is_ok())).then_some(name)
    }

    proptest! {
        #[test]
        fn a_name_is_what_the_rules_say(
            text in prop_oneof![
                "[a-zA-Z0-9.-]{0,12}",
                "([a-z0-9_-]{0,3}\\.){0,3}(0x)?[0-9a-z]{0,3}\\.?",
                "[a-z]{60,66}(\\.[A-Z]{60,64}){0,4}",
                "[0-9]{1,3}(\\.[0-9]{1,3}){3}",
                "[ -9;-Z^-~\u{e4}]{0,8}",
            ],
        ) {
            let mut buffer = HostBuffer::new();
            let name = buffer.normalise(&text).ok();
            let expected = name_by_the_book(&text);
            prop_assert_eq!(name, expected.as_deref());
        }

        #[test]
        fn an_address_reads_as_the_library_writes_it(
            v4 in any::<u32>(), v6 in any::<u128>(), zone in any::<u32>(), port in any::<u16>(), small in 0..1_u32 << 14,
        ) {
            for ip in [Ipv4Addr::from(v4), Ipv4Addr::from(small * 0x0101)].map(IpAddr::V4) {
                prop_assert_eq!(ClientAddr::new(ip).to_string(), ip.to_string());
                let socket = SocketAddr::new(ip, port);
                prop_assert_eq!(PeerAddr::Ip(socket).to_string(), socket.to_string());
            }
            let ip = Ipv6Addr::from(v6);
            prop_assert_eq!(ClientAddr::new(ip.into()).to_string(), ip.to_canonical().to_string());
            let socket = SocketAddr::V6(std::net::SocketAddrV6::new(ip, port, 0, zone));
            prop_assert_eq!(PeerAddr::Ip(socket).to_string(), socket.to_string());
        }
    }

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
