//! Distinguished names as text (RFC 4514), safe in a header field and in a log line.
//!
//! The text is printable ASCII only: what is not becomes `\XX` pairs, which RFC 4514 2.4 allows for
//! every octet. So no byte of a certificate can end a header line, and two different subjects never
//! have one text.

use std::fmt::Write as _;

use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::x509::X509Name;

/// Longest subject that is passed on, in bytes. Our choice: far above real subjects, and small
/// beside the 16 KiB that servers take for a whole head.
pub const MAX_SUBJECT: usize = 2048;

/// The subject of a certificate (DER); `None` when it is no certificate.
pub fn of_certificate(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(text(certificate.subject()))
}

/// A name as RFC 4514 writes it: the last RDN first.
pub fn text(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (index, rdn) in parts.into_iter().rev().enumerate() {
        if index > 0 {
            out.push(',');
        }
        for (at, attribute) in rdn.iter().enumerate() {
            if at > 0 {
                out.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            out.push_str(short_name(&oid).unwrap_or(&oid));
            out.push('=');
            match attribute.as_str() {
                Ok(value) if short_name(&oid).is_some() => escape(value, &mut out),
                // RFC 4514 2.4: a type without a short name, or a value that is no string, is
                // written as the hex form of its BER encoding.
                Ok(_) | Err(_) => hex_of(attribute.attr_value(), &mut out),
            }
        }
    }
    out
}

/// RFC 4514 3, and the address that certificates of people often have (RFC 2985).
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.6" => "C",
        "2.5.4.9" => "STREET",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn escape(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' | b' ' if at == 0 => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' ' if at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => push_hex(byte, Some('\\'), out),
        }
    }
}

/// `#` and the BER encoding. Only the low-tag form occurs in names; its length is rebuilt.
fn hex_of(value: &Any<'_>, out: &mut String) {
    let Tag(tag) = value.tag();
    let constructed = if value.header.is_constructed() { 0x20 } else { 0 };
    out.push('#');
    push_hex((tag & 0x1f) as u8 | constructed, None, out);
    let length = value.data.len();
    if length < 0x80 {
        push_hex(length as u8, None, out);
    } else {
        let bytes = length.to_be_bytes();
        let used = bytes.iter().skip_while(|byte| **byte == 0);
        push_hex(0x80 | used.clone().count() as u8, None, out);
        used.for_each(|byte| push_hex(*byte, None, out));
    }
    value.data.iter().for_each(|byte| push_hex(*byte, None, out));
}

fn push_hex(byte: u8, before: Option<char>, out: &mut String) {
    out.extend(before);
    // Writing to a String cannot fail.
    let _ = write!(out, "{byte:02X}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    fn subject(parts: &[(DnType, DnValue)]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = KeyPair::generate().expect("a key");
        of_certificate(params.self_signed(&key).expect("a certificate").der()).expect("parses")
    }

    #[test]
    fn a_subject_is_printable_ascii_and_unambiguous() {
        let utf8 = |text: &str| DnValue::Utf8String(text.into());
        for (parts, expected) in [
            (vec![(DnType::CountryName, utf8("DE")), (DnType::CommonName, utf8("ops"))], "CN=ops,C=DE"),
            (vec![(DnType::CommonName, utf8("a,O=admin"))], "CN=a\\,O=admin"),
            (vec![(DnType::CommonName, utf8("a\r\nX-User: root"))], "CN=a\\0D\\0AX-User: root"),
            (vec![(DnType::CommonName, utf8(" #é\u{0} "))], "CN=\\ #\\C3\\A9\\00\\ "),
            (vec![(DnType::CommonName, utf8("#1"))], "CN=\\#1"),
            (vec![(DnType::CustomDnType(vec![1, 2, 3]), utf8("x"))], "1.2.3=#0C0178"),
            (vec![], ""),
        ] {
            let found = subject(&parts);
            assert_eq!(found, expected, "{parts:?}");
            assert!(found.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
