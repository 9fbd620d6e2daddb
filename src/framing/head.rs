//! The head of a request: reads it line by line as it arrives, refuses what is not plain, and says
//! how the body is framed (RFC 9112 2 to 6, RFC 9110 5 to 10). It never repairs and copies nothing.
//!
//! The verdict depends on the bytes alone, never on how reads cut them: each line is judged once it
//! is complete, and only within the first `Limits::bytes` bytes.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, Version};

use super::fault::Fault;
use crate::addr::{HostBuffer, split_authority};

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the head with its last empty line. Default 32 KiB, our choice: a browser with full
    /// cookie jars stays below.
    pub bytes: usize,
    /// Number of fields. Default 100, our choice: browsers send some twenty.
    pub fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 32 << 10, fields: 100 }
    }
}

/// How the body of a message ends (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

/// A head without fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes from the first to the last empty line.
    pub bytes: usize,
    /// How many fields it has.
    pub fields: usize,
    /// How the body ends.
    pub body: Body,
    /// True for a GET that asks for WebSocket: what follows may be no HTTP any more.
    pub is_upgrade: bool,
    /// A HEAD: the response has no body.
    pub is_head: bool,
    /// HTTP/1.0: no chunks, no interim responses, and the connection ends with the response.
    pub is_old: bool,
    /// The client asks to close the connection after the response (RFC 9112 9.6).
    pub says_close: bool,
    /// The client waits for a 100 before it sends the body (RFC 9110 10.1.1).
    pub expects_continue: bool,
    /// The client takes trailers (RFC 9110 10.1.4).
    pub takes_trailers: bool,
}

/// The request of a head without fault, with its fields as they came.
///
/// # Errors
/// When the target is none that the URI type can hold.
pub fn to_request(head: &Head, text: &Bytes) -> Result<Request<()>, Fault> {
    let mut request = Request::new(());
    let mut lines = Lines::default();
    // An empty line may stand first (RFC 9112 2.2).
    let mut line = lines.next(text)?.unwrap_or_default();
    if line.is_empty() {
        line = lines.next(text)?.unwrap_or_default();
    }
    let method = memchr::memchr(b' ', line).unwrap_or(line.len());
    let target = memchr::memrchr(b' ', line).unwrap_or(line.len());
    *request.method_mut() = http::Method::from_bytes(&line[..method]).map_err(|_| Fault::Method)?;
    let target = text.slice_ref(&line[(method + 1).min(target)..target]);
    *request.uri_mut() = Uri::from_maybe_shared(target).map_err(|_| Fault::TargetByte)?;
    *request.version_mut() = if head.is_old { Version::HTTP_10 } else { Version::HTTP_11 };
    let fields = request.headers_mut();
    fields.reserve(head.fields + ROOM);
    while let Some(line @ [_, ..]) = lines.next(text)? {
        let colon = memchr::memchr(b':', line).ok_or(Fault::FieldName)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        let value = HeaderValue::from_maybe_shared(text.slice_ref(value));
        fields.append(field_name(name)?, value.map_err(|_| Fault::FieldValue)?);
    }
    Ok(request)
}

/// The name of a field, without an allocation where browsers send it with each request.
fn field_name(name: &[u8]) -> Result<HeaderName, Fault> {
    if let [b's' | b'S', b'e' | b'E', ..] = name {
        let mut room = [0; 18];
        if let Some(lower) = room.get_mut(..name.len()) {
            lower.copy_from_slice(name);
            room.make_ascii_lowercase();
            let lower = &room[..name.len()];
            if let Some(known) = SEC_FIELDS.iter().find(|known| known.as_str().as_bytes() == lower) {
                return Ok(known.clone());
            }
        }
    }
    HeaderName::from_bytes(name).map_err(|_| Fault::FieldName)
}

/// Fields of each request of a browser that the HTTP library has no constants for.
static SEC_FIELDS: [HeaderName; 7] = [
    HeaderName::from_static("sec-ch-ua"),
    HeaderName::from_static("sec-ch-ua-mobile"),
    HeaderName::from_static("sec-ch-ua-platform"),
    HeaderName::from_static("sec-fetch-dest"),
    HeaderName::from_static("sec-fetch-mode"),
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-user"),
];

/// What the edge adds to a request, so that the map does not grow.
const ROOM: usize = 8;

/// The complete lines of a growing text, each handed out once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    start: usize,
    searched: usize,
}

impl Lines {
    /// The next complete line without its CRLF. `text` begins with the same byte at each call.
    pub(super) fn next<'t>(&mut self, text: &'t [u8]) -> Result<Option<&'t [u8]>, Fault> {
        let Some(at) = memchr::memchr(b'\n', &text[self.searched..]) else {
            self.searched = text.len();
            return Ok(None);
        };
        let end = self.searched + at;
        let Some(line) = text[self.start..end].strip_suffix(b"\r") else {
            // RFC 9112 2.2 lets a server take a bare LF; hops that differ in this can be played
            // against each other, so nobody who needs it is worth it.
            return Err(Fault::BareLf);
        };
        self.start = end + 1;
        self.searched = self.start;
        Ok(Some(line))
    }

    /// Where the next line begins.
    pub(super) fn position(&self) -> usize {
        self.start
    }
}

/// The methods that decide how a target or an upgrade is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Get,
    Head,
    Options,
    Connect,
    Other,
}

/// What an absolute target says about the host: where it stands in the head, and the scheme's port.
#[derive(Clone, Debug)]
struct Authority {
    range: Range<usize>,
    default_port: u16,
}

/// The facts of the request line.
#[derive(Clone, Debug)]
struct RequestLine {
    method: Method,
    is_old: bool,
    authority: Option<Authority>,
}

/// The reading of one head.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    lines: Lines,
    request: Option<RequestLine>,
    has_empty_line: bool,
    fields: usize,
    host: Option<Range<usize>>,
    length: Option<u64>,
    is_chunked: bool,
    is_websocket: bool,
    has_expectation: bool,
    says_close: bool,
    takes_trailers: bool,
}

impl Scan {
    /// Reads on. `bytes` begins with the first byte of the head at each call; what follows the head
    /// is not looked at.
    pub(super) fn advance(&mut self, bytes: &[u8], limits: Limits) -> Result<Option<Head>, Fault> {
        match bytes.first() {
            // A TLS handshake record (RFC 8446 5.1): said in words, because it is a common mistake.
            Some(0x16) => return Err(Fault::TlsOnPlaintext),
            Some(&byte) if byte != b'\r' && byte != b'\n' && !is_token(byte) => return Err(Fault::NotHttp),
            _ => {}
        }
        let window = &bytes[..bytes.len().min(limits.bytes)];
        loop {
            let start = self.lines.position();
            let Some(line) = self.lines.next(window)? else { break };
            if self.request.is_none() {
                if !line.is_empty() {
                    self.request = Some(request_line(line, start)?);
                } else if std::mem::replace(&mut self.has_empty_line, true) {
                    // RFC 9112 2.2 asks to ignore "at least one" empty line, which old clients send
                    // after a body; a second one has no such excuse.
                    return Err(Fault::EmptyLine);
                }
            } else if !line.is_empty() {
                self.fields += 1;
                if self.fields > limits.fields {
                    return Err(Fault::TooManyFields);
                }
                self.field(line, start)?;
            } else {
                return self.finish(window).map(Some);
            }
        }
        match self.request {
            _ if bytes.len() < limits.bytes => Ok(None),
            None => Err(Fault::TargetTooLong),
            Some(_) => Err(Fault::HeadTooLarge),
        }
    }

    /// Reads one field line that begins at `start` of the head.
    fn field(&mut self, line: &[u8], start: usize) -> Result<(), Fault> {
        let (name, value) = split_field(line)?;
        match name.len() {
            2 if name.eq_ignore_ascii_case(b"te") => self.takes_trailers |= has_option(value, b"trailers"),
            4 if name.eq_ignore_ascii_case(b"host") => {
                // RFC 9112 3.2: more than one Host is answered with 400.
                if self.host.is_some() {
                    return Err(Fault::HostRepeated);
                }
                let at = start + line.len() - line[name.len() + 1..].trim_ascii_start().len();
                self.host = Some(at..at + value.len());
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                // RFC 9110 10.1.1: 417 is the answer to an expectation that cannot be met.
                let is_first = !std::mem::replace(&mut self.has_expectation, true);
                if !(is_first && value.eq_ignore_ascii_case(b"100-continue")) {
                    return Err(Fault::Expectation);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.is_websocket |= has_option(value, b"websocket");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.says_close |= has_option(value, b"close"),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                // RFC 9110 8.6 allows to fold equal lengths into one; we refuse instead of repair.
                if self.length.is_some() {
                    return Err(Fault::ContentLengthRepeated);
                }
                self.length = Some(content_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if std::mem::replace(&mut self.is_chunked, true) {
                    return Err(Fault::TransferEncodingRepeated);
                }
                transfer_encoding(value)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The rules that need the whole head.
    fn finish(&self, head: &[u8]) -> Result<Head, Fault> {
        let request = self.request.as_ref().expect("only called after the request line");
        match (&self.host, &request.authority) {
            (Some(host), authority) => check_host(head, host.clone(), authority.as_ref())?,
            (None, _) if !request.is_old => return Err(Fault::HostMissing),
            (None, Some(authority)) => {
                normalised(&head[authority.range.clone()], &mut HostBuffer::new())?;
            }
            // HTTP/1.0 may name no host at all: the request story decides.
            (None, None) => {}
        }
        let body = match (self.is_chunked, self.length) {
            // RFC 9112 6.3: a message with both is an attack or a bug; never forward it.
            (true, Some(_)) => return Err(Fault::BothLengths),
            (true, None) if request.is_old => return Err(Fault::TransferEncodingOld),
            (true, None) => Body::Chunked,
            (false, None | Some(0)) => Body::None,
            (false, Some(length)) => Body::Length(length),
        };
        // RFC 9110 9.3.6: content of CONNECT has no meaning, so two hops may read it differently.
        if request.method == Method::Connect && (self.is_chunked || self.length.is_some()) {
            return Err(Fault::ConnectBody);
        }
        if self.is_websocket {
            if request.is_old {
                return Err(Fault::UpgradeOld);
            }
            // Bytes after the head would be body to one hop and frames to another.
            if body != Body::None {
                return Err(Fault::UpgradeBody);
            }
        }
        let is_upgrade = self.is_websocket && request.method == Method::Get;
        Ok(Head {
            bytes: self.lines.position(),
            fields: self.fields,
            body,
            is_upgrade,
            is_head: request.method == Method::Head,
            is_old: request.is_old,
            says_close: self.says_close,
            expects_continue: self.has_expectation && !request.is_old,
            takes_trailers: self.takes_trailers,
        })
    }
}

/// RFC 9112 3: `method SP request-target SP HTTP-version`, with single spaces. The line begins at `start` of the head.
fn request_line(line: &[u8], start: usize) -> Result<RequestLine, Fault> {
    if line.contains(&b'\r') {
        return Err(Fault::BareCr);
    }
    let mut parts = line.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::RequestLine);
    };
    let is_old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        b"HTTP/2.0" if line.starts_with(b"PRI * ") => return Err(Fault::Http2Preface),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(Fault::VersionUnsupported);
        }
        _ => return Err(Fault::Version),
    };
    let method = read_method(method)?;
    let at = start + line.len() - target.len() - 1 - version.len();
    let authority = check_target(target, at, method)?;
    Ok(RequestLine { method, is_old, authority })
}

/// RFC 9110 9.1: a token, compared with case.
fn read_method(method: &[u8]) -> Result<Method, Fault> {
    // IANA's longest registered method has 17 letters.
    const LONGEST: usize = 32;
    const STANDARD: [&[u8]; 9] =
        [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
    if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return Err(Fault::Method);
    }
    if method.len() > LONGEST {
        return Err(Fault::MethodTooLong);
    }
    match method {
        b"GET" => Ok(Method::Get),
        b"HEAD" => Ok(Method::Head),
        b"OPTIONS" => Ok(Method::Options),
        b"CONNECT" => Ok(Method::Connect),
        // `get` is another method than GET here and the same to lax servers, so rules could be dodged.
        _ if STANDARD.iter().any(|known| method != *known && method.eq_ignore_ascii_case(known)) => Err(Fault::Method),
        _ => Ok(Method::Other),
    }
}

/// RFC 9112 3.2: the four forms of a target. Returns the authority of an absolute one.
fn check_target(target: &[u8], at: usize, method: Method) -> Result<Option<Authority>, Fault> {
    // What the URI type can hold.
    const LONGEST: usize = 65_534;
    if target.len() > LONGEST {
        return Err(Fault::TargetTooLong);
    }
    check_target_bytes(target)?;
    if method == Method::Connect {
        return match text(target).map(split_authority) {
            Some(Ok((host, Some(_)))) if HostBuffer::new().normalise(host).is_ok() => Ok(None),
            _ => Err(Fault::TargetForm),
        };
    }
    match target {
        [b'/', ..] => Ok(None),
        b"*" if method == Method::Options => Ok(None),
        _ => absolute_form(target, at).map(Some),
    }
}

/// Where the authority of `http://…` or `https://…` stands.
fn absolute_form(target: &[u8], at: usize) -> Result<Authority, Fault> {
    let (scheme, default_port) = match target {
        _ if starts_with(target, b"http://") => (7, 80),
        _ if starts_with(target, b"https://") => (8, 443),
        _ => return Err(Fault::TargetForm),
    };
    let rest = &target[scheme..];
    let length = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
    Ok(Authority { range: at + scheme..at + scheme + length, default_port })
}

/// Our choice of target bytes, narrower than what clients send and wider than RFC 3986.
///
/// Refused: control and non-ASCII bytes, `"` `<` `>` (no client sends them raw), `#` (a fragment is never sent,
/// and some parsers cut there), and before the query also `\` (WHATWG URL parsers, the gateway's
/// among them, read it as `/`) and `` ` ``. `^` `{` `|` `}` pass: browsers send them and no parser folds them.
fn check_target_bytes(target: &[u8]) -> Result<(), Fault> {
    let mut is_query = false;
    for &byte in target {
        match byte {
            b'"' | b'<' | b'>' | b'#' | 0..=b' ' | 0x7f.. => return Err(Fault::TargetByte),
            b'\\' | b'`' if !is_query => return Err(Fault::TargetByte),
            b'?' => is_query = true,
            _ => {}
        }
    }
    Ok(())
}

/// RFC 9112 3.2: `Host` is `host[:port]`, and an absolute target says the same.
fn check_host(head: &[u8], host: Range<usize>, authority: Option<&Authority>) -> Result<(), Fault> {
    let mut buffer = HostBuffer::new();
    let (name, port) = normalised(&head[host], &mut buffer)?;
    let Some(authority) = authority else { return Ok(()) };
    let mut buffer = HostBuffer::new();
    let (target_name, target_port) = normalised(&head[authority.range.clone()], &mut buffer)?;
    let default = authority.default_port;
    if name == target_name && port.unwrap_or(default) == target_port.unwrap_or(default) {
        return Ok(());
    }
    // RFC 9112 3.2.2 lets the target win; what sits between us and the client may have used the other.
    Err(Fault::HostMismatch)
}

/// The one form of a `host[:port]`.
fn normalised<'b>(value: &[u8], buffer: &'b mut HostBuffer) -> Result<(&'b str, Option<u16>), Fault> {
    let (host, port) =
        text(value).ok_or(Fault::HostInvalid).and_then(|text| split_authority(text).map_err(|_| Fault::HostInvalid))?;
    Ok((buffer.normalise(host).map_err(|_| Fault::HostInvalid)?, port))
}

/// RFC 9110 8.6: `1*DIGIT`. 19 digits always fit 64 bits, so that nothing can overflow.
fn content_length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::ContentLength);
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// RFC 9112 6.1: exactly `chunked`. A well-formed list that ends with it has codings we do not
/// implement (501); any other value leaves the end of the body open (400).
fn transfer_encoding(value: &[u8]) -> Result<(), Fault> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.split(|&b| b == b',').map(trim).rev();
    let is_last_chunked = codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    let is_well_formed = codings.all(|coding| {
        let name = coding.split(|&b| b == b';').next().map_or(coding, trim);
        !name.is_empty() && name.iter().all(|&b| is_token(b)) && !name.eq_ignore_ascii_case(b"chunked")
    });
    if is_last_chunked && is_well_formed { Err(Fault::TransferCoding) } else { Err(Fault::TransferEncoding) }
}

/// True when a comma-separated field has the option, in any case.
fn has_option(value: &[u8], option: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|item| trim(item).eq_ignore_ascii_case(option))
}

/// RFC 9112 5: `name ":" OWS value OWS`. Shared by head and trailers.
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let (name, rest) = line.split_at(line.iter().position(|&b| !is_token(b)).unwrap_or(line.len()));
    let value = match rest {
        [b':', value @ ..] if !name.is_empty() => value,
        [b' ' | b'\t', ..] if name.is_empty() => return Err(Fault::Fold),
        [b'\r', ..] => return Err(Fault::BareCr),
        _ => return Err(Fault::FieldName),
    };
    if !is_field_value(value) {
        return Err(if value.contains(&b'\r') { Fault::BareCr } else { Fault::FieldValue });
    }
    Ok((name, trim(value)))
}

/// RFC 9110 5.5: VCHAR, SP, HTAB and obs-text.
fn is_field_value(value: &[u8]) -> bool {
    // No early exit inside a block, so that the compiler makes a few vector instructions of it.
    let is_fine = |block: &[u8; 16]| {
        block.iter().fold(true, |fine, &byte| fine & ((byte >= b' ') | (byte == b'\t')) & (byte != 0x7f))
    };
    match value.last_chunk() {
        // It may begin inside the block before.
        Some(last) => is_fine(last) && value.as_chunks().0.iter().all(is_fine),
        None => {
            let mut block = [b' '; 16];
            block[..value.len()].copy_from_slice(value);
            is_fine(&block)
        }
    }
}

/// RFC 9110 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// The bytes of a token.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    table
};

/// Without optional white space (RFC 9110 5.6.3) at both ends: space and tab, nothing else.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// True when `text` begins with `prefix` in any case.
pub(super) fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The bytes as text, when they are ASCII.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii())
}
