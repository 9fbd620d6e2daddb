//! The little DER that OCSP needs (X.690): elements taken off the front of a message, elements written.
//!
//! The library that reads certificates reads the lengths. Tags are whole identifier octets, because OCSP has none above 30.

use x509_parser::asn1_rs::{Any, FromDer};

/// `INTEGER`.
pub const INTEGER: u8 = 0x02;
/// `BIT STRING`.
pub const BITS: u8 = 0x03;
/// `OCTET STRING`.
pub const OCTETS: u8 = 0x04;
/// `NULL`.
pub const NULL: u8 = 0x05;
/// `OBJECT IDENTIFIER`.
pub const OID: u8 = 0x06;
/// `ENUMERATED`.
pub const ENUMERATED: u8 = 0x0a;
/// `GeneralizedTime`.
pub const TIME: u8 = 0x18;
/// `SEQUENCE`, `SEQUENCE OF`.
pub const SEQUENCE: u8 = 0x30;

/// The tag of `[number]` around another element, or in place of the tag of a structure.
pub const fn tagged(number: u8) -> u8 {
    0xa0 | number
}

/// The tag of `[number]` in place of that of a plain value.
pub const fn tagged_plain(number: u8) -> u8 {
    0x80 | number
}

/// Takes elements off the front.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

/// One element.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// With tag and length, as signatures cover it.
    pub whole: &'a [u8],
    /// Without them.
    pub content: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// True when the next element has this tag.
    pub fn has(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The next element, if it has this tag.
    pub fn element(&mut self, tag: u8) -> Option<Element<'a>> {
        if !self.has(tag) {
            return None;
        }
        let (rest, any) = Any::from_der(self.0).ok()?;
        let (whole, _) = self.0.split_at_checked(self.0.len().checked_sub(rest.len())?)?;
        self.0 = rest;
        Some(Element { whole, content: any.data })
    }

    /// The content of the next element, if it has this tag.
    pub fn content(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element(tag).map(|element| element.content)
    }

    /// Reads in the next element, if it has this tag.
    pub fn inside(&mut self, tag: u8) -> Option<Self> {
        self.content(tag).map(Self)
    }

    /// The whole octets of the next element, a BIT STRING.
    pub fn bits(&mut self) -> Option<&'a [u8]> {
        // X.690 8.6.2: the first octet counts the bits that are left over; keys and signatures have none.
        self.content(BITS)?.strip_prefix(&[0])
    }

    /// Nothing may follow.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// An element of these parts.
pub fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..0x80) => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let used = bytes.iter().skip_while(|byte| **byte == 0);
            // At most eight octets of length.
            out.push(0x80 | used.clone().count() as u8);
            out.extend(used);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_cut_it_is_not() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let content = vec![7; length];
            let (front, back) = content.split_at(length / 2);
            let whole = write(OCTETS, &[front, back]);
            let mut reader = Reader::new(&whole);
            assert!(reader.element(SEQUENCE).is_none(), "another tag");
            let element = reader.element(OCTETS).expect("written above");
            assert_eq!((element.whole, element.content), (&whole[..], &content[..]), "{length}");
            assert!(reader.end().is_some() && reader.element(OCTETS).is_none());
            assert!(Reader::new(&whole[..whole.len() - 1]).element(OCTETS).is_none(), "{length}");
        }
    }

    #[test]
    fn a_length_that_ends_nowhere_is_no_element() {
        for bytes in
            [&b"\x30"[..], b"\x30\x80", b"\x30\x80\0\0", b"\x30\x88\xff\xff\xff\xff\xff\xff\xff\xff", b"\x30\xff"]
        {
            assert!(Reader::new(bytes).element(SEQUENCE).is_none(), "{bytes:?}");
        }
        assert!(Reader::new(b"\x03\x02\x01\x80").bits().is_none(), "seven bits are no octet");
    }
}
