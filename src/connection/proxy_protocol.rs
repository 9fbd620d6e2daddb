//! The preface of the PROXY protocol, versions 1 and 2: for whom a load balancer has connected.
//!
//! It stands before TLS and HTTP, and comes from peers in `trust.proxy_protocol` only, who must send one.
//! The rules are those of the protocol's specification (haproxy.org, proxy-protocol.txt). `ppp` knows the
//! grammar; length, deadline and what is stricter are ours. Bytes after the preface are never read.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

/// What a preface says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// For this client. Both addresses are canonical: no IPv4-mapped IPv6.
    Client {
        /// Where the client connected from.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
    /// In the sender's own name (`LOCAL`), or for somebody whose address is not said (`UNKNOWN`, a family
    /// other than IPv4 and IPv6): the addresses of the socket are meant.
    Sender,
}

/// Why there is no preface. The text is the `why` of the connection's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It closed after so many bytes of one.
    #[error(
        "the PROXY preface broke off after {0} bytes: this peer stands in trust.proxy_protocol, and must send a whole one"
    )]
    Closed(usize),
    /// The deadline passed after so many bytes of one.
    #[error("the PROXY preface was not there within handshake_timeout ({0} bytes of it came)")]
    Late(usize),
    /// TLS came first.
    #[error(
        "the peer began with TLS: it stands in trust.proxy_protocol, and must send a PROXY preface first; switch that on there"
    )]
    Tls,
    /// Something else came first.
    #[error("no PROXY preface came first, which trust.proxy_protocol asks of this peer (first byte 0x{0:02x})")]
    Other(u8),
    /// Its head announces so many bytes.
    #[error("the PROXY preface announces {0} bytes, more than {MOST_V2}")]
    TooLong(usize),
    /// It breaks the grammar.
    #[error("malformed PROXY preface: {0}")]
    Malformed(&'static str),
}

/// How far a preface has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At least so many further bytes belong to it.
    Missing(usize),
    /// It is complete.
    Whole {
        /// What it says.
        preface: Preface,
        /// How many bytes it has.
        length: usize,
    },
}

/// The longest line of version 1, CRLF included (specification, 2.1).
pub const MOST_V1: usize = 107;

/// The longest preface of version 2. Our choice: addresses take 216 bytes at most; the rest is for fields that
/// we do not use, a client certificate's names among them. The length field could announce 64 KiB.
pub const MOST_V2: usize = 4 << 10;

/// `PROXY UNKNOWN` and CRLF: no line is shorter, and no head of version 2.
const LEAST: usize = 15;

/// How every line of version 1 begins.
const BEGINNING_V1: &[u8] = b"PROXY ";

/// The part of version 2 before the addresses: signature, command, family, length.
const HEAD_V2: usize = 16;

/// Reads a preface and nothing after it.
///
/// # Errors
/// When none has come by the deadline, or what came is none. Nothing is to be answered then.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, deadline: Instant) -> Result<Preface, Fault> {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            let missing = match parse(&bytes)? {
                Progress::Whole { preface, .. } => return Ok(preface),
                Progress::Missing(missing) => missing,
            };
            // No more than is missing for certain: what follows is for TLS or HTTP.
            let mut part = (&mut *stream).take(u64::try_from(missing).unwrap_or(u64::MAX));
            match part.read_buf(&mut bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(Fault::Closed(bytes.len())),
            }
        }
    };
    match timeout_at(deadline, reading).await {
        Ok(read) => read,
        Err(_) => Err(Fault::Late(bytes.len())),
    }
}

/// Judges the first bytes of a connection.
///
/// # Errors
/// When they can no more become a preface.
pub fn parse(bytes: &[u8]) -> Result<Progress, Fault> {
    match bytes.first() {
        None => Ok(Progress::Missing(LEAST)),
        Some(b'P') => version1(bytes),
        Some(b'\r') => version2(bytes),
        // RFC 8446 5.1: the record of a ClientHello.
        Some(22) => Err(Fault::Tls),
        Some(other) => Err(Fault::Other(*other)),
    }
}

/// A line of text (specification, 2.1).
fn version1(bytes: &[u8]) -> Result<Progress, Fault> {
    let known = BEGINNING_V1.len().min(bytes.len());
    if bytes[..known] != BEGINNING_V1[..known] {
        return Err(Fault::Other(bytes[0]));
    }
    // Here and not by `ppp`: it takes a line that ends in LF alone, and one that ends with its input.
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        // CR and LF at least must still fit.
        let Some(room @ 2..) = MOST_V1.checked_sub(bytes.len()) else { return Err(LONG_LINE) };
        return Ok(Progress::Missing(missing_of_line(bytes).min(room)));
    };
    match bytes[end..] {
        _ if end + 2 > MOST_V1 => Err(LONG_LINE),
        [b'\r'] => Ok(Progress::Missing(1)),
        [b'\r', b'\n', ..] => {
            let preface = line(&bytes[..end + 2])?;
            Ok(Progress::Whole { preface, length: end + 2 })
        }
        _ => Err(Fault::Malformed("the line does not end in CR LF")),
    }
}

/// A line without an end, or with one too late.
const LONG_LINE: Fault = Fault::Malformed("its line is longer than 107 bytes");

/// How many bytes a line without its end needs at least: two for the end, and two for each field that has
/// not begun, since a blank stands before it.
fn missing_of_line(bytes: &[u8]) -> usize {
    const BLANKS: usize = 5;
    if bytes.len() < LEAST {
        return LEAST - bytes.len();
    }
    let is_addressed = bytes[BEGINNING_V1.len()..].starts_with(b"TCP");
    let blanks = bytes.iter().filter(|byte| **byte == b' ').count();
    let fields = if is_addressed { BLANKS.saturating_sub(blanks) } else { 0 };
    2 + 2 * fields
}

/// A whole line, CRLF included.
fn line(line: &[u8]) -> Result<Preface, Fault> {
    let rest = &line[BEGINNING_V1.len()..];
    // Whatever follows is ignored, as the specification wants it (2.1).
    if rest.starts_with(b"UNKNOWN ") || rest == b"UNKNOWN\r\n" {
        return Ok(Preface::Sender);
    }
    // `ppp` takes a sign before a port.
    let is_plain = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b' ' | b'.' | b':');
    let Some(fields) = rest.get(4..rest.len() - 2).filter(|fields| fields.iter().all(is_plain)) else {
        return Err(Fault::Malformed("no addresses that could be read"));
    };
    // Fields are divided by exactly one blank (2.1), and there are four.
    if fields.split(|byte| *byte == b' ').count() != 5 {
        return Err(Fault::Malformed("it does not have two addresses and two ports"));
    }
    let header = v1::Header::try_from(line).map_err(|_| Fault::Malformed("no addresses that could be read"))?;
    match header.addresses {
        v1::Addresses::Tcp4(ends) => client(
            (ends.source_address.into(), ends.source_port),
            (ends.destination_address.into(), ends.destination_port),
        ),
        v1::Addresses::Tcp6(ends) => client(
            (ends.source_address.into(), ends.source_port),
            (ends.destination_address.into(), ends.destination_port),
        ),
        v1::Addresses::Unknown => Ok(Preface::Sender),
    }
}

/// A binary head of fixed size, which says how much follows (specification, 2.2).
fn version2(bytes: &[u8]) -> Result<Progress, Fault> {
    let known = v2::PROTOCOL_PREFIX.len().min(bytes.len());
    if bytes[..known] != v2::PROTOCOL_PREFIX[..known] {
        return Err(Fault::Other(bytes[0]));
    }
    let Some(head) = bytes.first_chunk::<HEAD_V2>() else {
        return Ok(Progress::Missing(HEAD_V2 - bytes.len()));
    };
    let is_local = match head[12] {
        0x20 => true,
        0x21 => false,
        command if command >> 4 != 2 => return Err(Fault::Malformed("its version is not 2")),
        _ => return Err(Fault::Malformed("neither LOCAL nor PROXY")),
    };
    // Before anything is read into memory.
    let length = HEAD_V2 + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > MOST_V2 {
        return Err(Fault::TooLong(length));
    }
    let Some(whole) = bytes.get(..length) else { return Ok(Progress::Missing(length - bytes.len())) };
    // Everything else of such a preface is to be ignored, its family among it (2.2).
    let preface = if is_local { Preface::Sender } else { addressed(whole)? };
    Ok(Progress::Whole { preface, length })
}

/// A whole preface of version 2 for somebody else.
fn addressed(whole: &[u8]) -> Result<Preface, Fault> {
    let header = v2::Header::try_from(whole).map_err(|error| match error {
        v2::ParseError::AddressFamily(_) | v2::ParseError::Protocol(_) => Fault::Malformed("an unknown family"),
        v2::ParseError::InvalidAddresses(..) => Fault::Malformed("it is too short for the addresses of its family"),
        _ => Fault::Malformed("no head that could be read"),
    })?;
    // No value of ours, but a length that is wrong here is one that another reader takes otherwise.
    if header.tlvs().any(|field| field.is_err()) {
        return Err(Fault::Malformed("its fields do not add up to its length"));
    }
    match (header.protocol, header.addresses) {
        (v2::Protocol::Datagram, _) => Err(Fault::Malformed("it speaks of datagrams")),
        (v2::Protocol::Stream, v2::Addresses::IPv4(ends)) => client(
            (ends.source_address.into(), ends.source_port),
            (ends.destination_address.into(), ends.destination_port),
        ),
        (v2::Protocol::Stream, v2::Addresses::IPv6(ends)) => client(
            (ends.source_address.into(), ends.source_port),
            (ends.destination_address.into(), ends.destination_port),
        ),
        (v2::Protocol::Unspecified, _)
        | (v2::Protocol::Stream, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => Ok(Preface::Sender),
    }
}

/// The two ends, canonical, the source one that can be somebody's.
fn client(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Result<Preface, Fault> {
    let canonical = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
    let source = canonical(source);
    let is_nobody = match source.ip() {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    };
    if is_nobody {
        return Err(Fault::Malformed("its source is an address that nobody has"));
    }
    Ok(Preface::Client { source, destination: canonical(destination) })
}

#[cfg(test)]
mod tests;
