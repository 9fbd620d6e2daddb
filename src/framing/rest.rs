//! The rest of a body: takes its pieces off what was read, of requests and of responses alike
//! (RFC 9112 6.3, 7.1).

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Chunks, Fault, Trailers};

/// What is still to come of a body.
#[derive(Clone, Debug)]
pub enum Rest {
    /// Nothing.
    Over,
    /// So many bytes.
    Length(u64),
    /// Chunks, the trailer section too.
    Chunked(Chunks),
    /// The trailer section.
    Trailers(Trailers),
    /// As long as the connection; responses only.
    Close,
}

/// A piece of a body.
#[derive(Debug)]
pub enum Piece {
    /// Content.
    Data(Bytes),
    /// The trailer section.
    Trailers(Bytes),
}

impl Rest {
    /// True when all of the body was taken.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// The length of what is still to come, if it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Over => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Trailers(_) | Self::Close => None,
        }
    }

    /// Takes the next piece off `read`. `None`: more must be read, or the body is over.
    ///
    /// # Errors
    /// When the framing is broken, or a field that `may_trail` refuses stands in the trailer section.
    pub fn take(&mut self, read: &mut BytesMut, may_trail: fn(&[u8]) -> bool) -> Result<Option<Piece>, Fault> {
        if read.is_empty() {
            return Ok(None);
        }
        loop {
            match self {
                Self::Over => return Ok(None),
                Self::Close => return Ok(Some(Piece::Data(read.split().freeze()))),
                Self::Length(left) => {
                    let length = super::at_most(*left, read.len());
                    *left -= length as u64;
                    if *left == 0 {
                        *self = Self::Over;
                    }
                    return Ok(Some(Piece::Data(read.split_to(length).freeze())));
                }
                Self::Chunked(chunks) => {
                    let (framing, data) = match chunks.next_data(read) {
                        Ok(passed) => passed,
                        Err((sound, fault)) => {
                            read.advance(sound);
                            return Err(fault);
                        }
                    };
                    read.advance(framing);
                    if data > 0 {
                        return Ok(Some(Piece::Data(read.split_to(data).freeze())));
                    }
                    if !chunks.is_last() {
                        return Ok(None);
                    }
                    *self = Self::Trailers(Trailers::default());
                }
                Self::Trailers(trailers) => {
                    let length = trailers.advance(read, may_trail)?;
                    if length == 0 {
                        return Ok(None);
                    }
                    *self = Self::Over;
                    return Ok(Some(Piece::Trailers(read.split_to(length).freeze())));
                }
            }
        }
    }
}

/// The fields of a trailer section that was judged.
pub fn trailer_fields(section: &Bytes) -> HeaderMap {
    let mut room = [httparse::EMPTY_HEADER; Trailers::MAX_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut room) else {
        return HeaderMap::new();
    };
    let pairs = fields.iter().filter_map(|field| {
        Some((HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?))
    });
    pairs.collect()
}
