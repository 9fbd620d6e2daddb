//! The framing of HTTP/1.1, followed byte by byte: where each head, chunk, trailer section and
//! message ends, and what of it may pass (RFC 9112). No clock, and no copies.
//!
//! `Follower` takes requests off a stream; `rest` takes the bodies of requests and responses, `sending`
//! writes messages of either kind. The verdict depends on the stream alone, never on how reads cut it.

mod fault;
mod head;
pub mod intake;
pub mod rest;
pub mod sending;

pub use fault::Fault;
pub use head::{Body, Head, Limits, to_request};

use bytes::{Bytes, BytesMut};

use head::{Lines, Scan, is_token, split_field};
use rest::{Piece, Rest};

/// The reason phrase of a response (RFC 9112 4), an extension of it where it is not the usual one.
#[derive(Clone, Debug)]
pub struct Phrase(pub Box<str>);

/// Follows one request after another.
#[derive(Clone, Debug)]
pub struct Follower {
    limits: Limits,
    phase: Phase,
}

/// Where in a message the next byte stands.
#[derive(Clone, Debug)]
enum Phase {
    Head(Scan),
    Body(Rest),
    /// Nothing passes any more.
    Broken(Fault),
}

impl Follower {
    /// At the first byte of a first head.
    pub fn new(limits: Limits) -> Self {
        Self { limits, phase: Phase::Head(Scan::default()) }
    }

    /// Takes the next head off what was read, when all of it is there. What follows it is not looked at.
    ///
    /// # Errors
    /// What is wrong with it. Nothing passes after that.
    pub fn head(&mut self, read: &mut BytesMut) -> Result<Option<(Head, Bytes)>, Fault> {
        let scan = match &mut self.phase {
            Phase::Head(scan) if !read.is_empty() => scan,
            Phase::Head(_) | Phase::Body(_) => return Ok(None),
            Phase::Broken(fault) => return Err(*fault),
        };
        let head = match scan.advance(read, self.limits) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(fault) => return self.refuse(fault),
        };
        self.phase = Phase::Body(match head.body {
            Body::None => Rest::Over,
            Body::Length(length) => Rest::Length(length),
            Body::Chunked => Rest::Chunked(Chunks::default()),
        });
        // What is all there is becomes the head's own memory; a view would keep the rest alive beside it.
        let text = if read.len() == head.bytes { std::mem::take(read) } else { read.split_to(head.bytes) };
        Ok(Some((head, text.freeze())))
    }

    /// Takes the next piece of the body off what was read. `None`: more must be read, or it is over.
    ///
    /// # Errors
    /// What is wrong with its framing. Nothing passes after that.
    pub fn body(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, Fault> {
        match &mut self.phase {
            Phase::Head(_) => Ok(None),
            Phase::Body(rest) => rest.take(read, may_be_trailer).or_else(|fault| self.refuse(fault)),
            Phase::Broken(fault) => Err(*fault),
        }
    }

    fn refuse<T>(&mut self, fault: Fault) -> Result<T, Fault> {
        self.phase = Phase::Broken(fault);
        Err(fault)
    }

    /// The length of what is still to come of the body, if it is known.
    pub fn left(&self) -> Option<u64> {
        match &self.phase {
            Phase::Head(_) => Some(0),
            Phase::Body(rest) => rest.length(),
            Phase::Broken(_) => None,
        }
    }

    /// True when the whole message was taken.
    pub fn is_complete(&self) -> bool {
        matches!(&self.phase, Phase::Body(rest) if rest.is_over())
    }

    /// Begins the next message. Called when the present one is complete.
    pub fn next_message(&mut self) {
        self.phase = Phase::Head(Scan::default());
    }
}

/// The smaller of a rest and what is there.
fn at_most(left: u64, here: usize) -> usize {
    usize::try_from(left).map_or(here, |left| left.min(here))
}

/// The chunks of one body (RFC 9112 7.1), without the trailer section.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    state: ChunkState,
    left: u64,
    digits: u8,
    extensions: usize,
}

/// The next byte of a chunked body is ...
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChunkState {
    /// ... of the size.
    #[default]
    Size,
    /// ... the first of an extension's name.
    NameStart,
    /// ... of an extension's name.
    Name,
    /// ... the first of an extension's value.
    ValueStart,
    /// ... of a value that is a token.
    Value,
    /// ... inside a quoted value.
    Quoted,
    /// ... after a backslash in a quoted value.
    Escaped,
    /// ... after a quoted value.
    QuotedEnd,
    /// ... the line feed of a size line.
    SizeLf,
    /// ... data.
    Data,
    /// ... the carriage return after data.
    DataCr,
    /// ... the line feed after data.
    DataLf,
    /// ... of the trailer section: the last chunk was read.
    Last,
}

impl Chunks {
    /// Bytes of chunk extensions that one message may have, our choice: only attacks use many.
    const MAX_EXTENSIONS: usize = 4 << 10;

    /// Reads on to the next data: how many bytes of framing come first, and how many of data follow them.
    ///
    /// # Errors
    /// What is wrong, and how many bytes are sound before it.
    pub fn next_data(&mut self, bytes: &[u8]) -> Result<(usize, usize), (usize, Fault)> {
        let mut at = 0;
        while at < bytes.len() && !self.is_last() {
            if self.state == ChunkState::Data {
                let data = at_most(self.left, bytes.len() - at);
                self.left -= data as u64;
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                return Ok((at, data));
            }
            if let Some(line) = self.plain_line(&bytes[at..]) {
                at += line;
                continue;
            }
            self.state = self.next(bytes[at]).map_err(|fault| (at, fault))?;
            at += 1;
        }
        Ok((at, 0))
    }

    /// True when the last chunk's line was read: what follows is the trailer section.
    pub fn is_last(&self) -> bool {
        self.state == ChunkState::Last
    }

    /// Reads the end of a chunk and the size of the next one, when both are here whole and the size stands
    /// alone, as nearly all senders write it. Returns their length; everything else goes byte by byte.
    fn plain_line(&mut self, bytes: &[u8]) -> Option<usize> {
        let line = match self.state {
            ChunkState::Size if self.digits == 0 => bytes,
            ChunkState::DataCr => bytes.strip_prefix(b"\r\n")?,
            _ => return None,
        };
        let mut size = 0;
        // 16 digits, as in `size_digit`; a 17th is no end.
        for (digits, pair) in line.windows(2).take(17).enumerate() {
            if pair == b"\r\n" && digits > 0 {
                self.left = size;
                self.state = if size == 0 { ChunkState::Last } else { ChunkState::Data };
                return Some(bytes.len() - line.len() + digits + 2);
            }
            size = size << 4 | u64::from(char::from(pair[0]).to_digit(16)?);
        }
        None
    }

    /// Reads one byte that is not data.
    fn next(&mut self, byte: u8) -> Result<ChunkState, Fault> {
        use ChunkState::{
            Data, DataCr, DataLf, Escaped, Last, Name, NameStart, Quoted, QuotedEnd, Size, SizeLf, Value, ValueStart,
        };
        let next = match (self.state, byte) {
            (Size, b'\r') if self.digits > 0 => SizeLf,
            (Size, b';') if self.digits > 0 => NameStart,
            (Size, b'\n') => return Err(Fault::BareLf),
            (Size, _) => return self.size_digit(byte),
            (SizeLf, b'\n') => {
                self.digits = 0;
                if self.left == 0 { Last } else { Data }
            }
            (SizeLf, _) => return Err(Fault::BareCr),
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => Size,
            // `advance` passes no byte in the states Data and Last.
            (DataCr | DataLf | Data | Last, _) => return Err(Fault::ChunkEnd),
            // From here on extensions: *( ";" name [ "=" ( token / quoted-string ) ] ), and no white
            // space between, which RFC 9112 7.1.1 allows only for the sake of old recipients.
            (_, b'\n') => return Err(Fault::BareLf),
            (Name | Value | QuotedEnd, b'\r') => SizeLf,
            (Name | Value | QuotedEnd, b';') => NameStart,
            (Name, b'=') => ValueStart,
            (ValueStart, b'"') => Quoted,
            (NameStart | Name, _) if is_token(byte) => Name,
            (ValueStart | Value, _) if is_token(byte) => Value,
            (Quoted, b'"') => QuotedEnd,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, b'\t' | b' '..=b'~' | 0x80..) => Quoted,
            (NameStart | Name | ValueStart | Value | Quoted | Escaped | QuotedEnd, _) => {
                return Err(Fault::ChunkExtension);
            }
        };
        let is_extension = self.state != Size && !matches!(self.state, SizeLf | DataCr | DataLf);
        if is_extension || next == NameStart {
            self.extensions += 1;
            if self.extensions > Self::MAX_EXTENSIONS {
                return Err(Fault::ChunkExtensionsTooLong);
            }
        }
        Ok(next)
    }

    /// RFC 9112 7.1: `1*HEXDIG`; 16 digits always fit 64 bits, so that nothing can overflow.
    fn size_digit(&mut self, byte: u8) -> Result<ChunkState, Fault> {
        let digit = char::from(byte).to_digit(16).filter(|_| self.digits < 16).ok_or(Fault::ChunkSize)?;
        self.digits += 1;
        self.left = self.left << 4 | u64::from(digit);
        Ok(ChunkState::Size)
    }
}

/// The trailer section of one body (RFC 9112 7.1.2), with the last empty line.
#[derive(Clone, Debug, Default)]
pub struct Trailers {
    lines: Lines,
    fields: usize,
}

impl Trailers {
    /// Bytes with the last empty line, our choice.
    const MAX_BYTES: usize = 8 << 10;
    /// Fields, our choice.
    pub const MAX_FIELDS: usize = 32;

    /// Reads on. `bytes` begins with the first byte of the section at each call. Returns the length of
    /// the section when it is complete, else 0.
    ///
    /// # Errors
    /// When it is no section of fields, is too large, or has a name that may not be there.
    pub fn advance(&mut self, bytes: &[u8], may_trail: fn(&[u8]) -> bool) -> Result<usize, Fault> {
        let window = &bytes[..bytes.len().min(Self::MAX_BYTES)];
        while let Some(line) = self.lines.next(window)? {
            if line.is_empty() {
                return Ok(self.lines.position());
            }
            self.fields += 1;
            if self.fields > Self::MAX_FIELDS {
                return Err(Fault::TrailersTooLarge);
            }
            let (name, _) = split_field(line)?;
            if !may_trail(name) {
                return Err(Fault::TrailerName);
            }
        }
        if bytes.len() < Self::MAX_BYTES { Ok(0) } else { Err(Fault::TrailersTooLarge) }
    }
}

/// RFC 9110 6.5.1: no field of framing, routing, request control, authentication or content form; and,
/// our choice, no name by which proxies tell each other whom they serve.
fn may_be_trailer(name: &[u8]) -> bool {
    const NEVER: [&[u8]; 23] = [
        b"authorization",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"keep-alive",
        b"max-forwards",
        b"origin",
        b"pragma",
        b"range",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"x-real-ip",
    ];
    const NEVER_BEGINS: [&[u8]; 4] = [b"if-", b"proxy-", b"sec-", b"x-forwarded-"];
    !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
        && !NEVER_BEGINS.iter().any(|never| head::starts_with(name, never))
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a test fails by panicking")]
pub(crate) mod tests;
