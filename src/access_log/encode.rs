//! Lines as bytes: JSON (RFC 8259) or text, neither able to steer a terminal or to forge a line.

use std::fmt;
use std::io;

use serde_json::ser::Formatter;

use super::record::Line;
use super::redact::is_unsafe;

/// Appends one record and its end. True when it could be made.
pub(super) fn line(out: &mut Vec<u8>, record: &impl Line, is_text: bool) -> bool {
    let begin = out.len();
    let made = if is_text {
        record.text(&mut Plain(out)).is_ok()
    } else {
        let mut serializer = serde_json::Serializer::with_formatter(&mut *out, Safe);
        record.serialize(&mut serializer).is_ok()
    };
    if !made {
        out.truncate(begin);
        return false;
    }
    out.push(b'\n');
    true
}

/// Writes text with every unsafe character as `\u{…}`.
struct Plain<'a>(&'a mut Vec<u8>);

impl fmt::Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            self.0.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        for character in text.chars() {
            if is_unsafe(character) {
                self.0.extend(character.escape_unicode().map(|c| c as u8));
            } else {
                self.0.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }
}

/// Compact JSON that also escapes what is legal in a string but acts on a terminal: DEL, C1, bidi.
struct Safe;

impl Formatter for Safe {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some(at) = rest.find(is_unsafe) {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let character = from.chars().next().expect("found above");
            // All unsafe characters are in the basic plane: one unit (RFC 8259 7).
            write!(writer, "\\u{:04x}", u32::from(character))?;
            rest = &from[character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
