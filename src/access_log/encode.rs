//! Lines as bytes: JSON (RFC 8259) or text, neither able to steer a terminal or to forge a line.
//!
//! JSON is written by hand, because a record is made for each request: a library looks at each byte of each text
//! and name on its own (measured: 17,600 instructions for a record that takes 4,900 here).

use std::fmt;

use super::redact::is_unsafe;

/// What can be written in both forms.
pub(super) trait Line {
    /// Its members, in their order.
    fn json(&self, line: &mut Object<'_>);

    /// One short line for people, without its end; control characters are escaped by the caller.
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// Appends one record and its end. True when it could be made.
pub(super) fn line(out: &mut Vec<u8>, record: &impl Line, is_text: bool) -> bool {
    let begin = out.len();
    if !is_text {
        let mut object = Object::begin(out);
        record.json(&mut object);
        object.end();
    } else if record.text(&mut Plain(out)).is_err() {
        out.truncate(begin);
        return false;
    }
    out.push(b'\n');
    true
}

/// An object while it is written. It has at least one member.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    /// What stands before the next member.
    before: u8,
}

impl<'a> Object<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        Self { out, before: b'{' }
    }

    /// A member. Its name needs no escapes.
    #[inline]
    pub(super) fn add(&mut self, name: &'static str, value: impl Json) {
        self.out.extend_from_slice(&[self.before, b'"']);
        self.before = b',';
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        value.write(self.out);
    }

    /// A member that is left out when it has no value.
    #[inline]
    pub(super) fn add_some(&mut self, name: &'static str, value: Option<impl Json>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    pub(super) fn end(self) {
        self.out.push(b'}');
    }
}

/// A value of JSON.
pub(super) trait Json {
    /// Appends it.
    fn write(self, out: &mut Vec<u8>);
}

impl Json for &str {
    fn write(self, out: &mut Vec<u8>) {
        string(out, &[self]);
    }
}

impl Json for u64 {
    fn write(self, out: &mut Vec<u8>) {
        // 20 digits: the longest number of 64 bits.
        let mut room = [0; 20];
        let mut at = room.len();
        let mut rest = self;
        loop {
            at -= 1;
            room[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.extend_from_slice(&room[at..]);
    }
}

impl Json for bool {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self { b"true" } else { b"false" });
    }
}

impl<T: Json> Json for Option<T> {
    #[inline]
    fn write(self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(out),
            None => out.extend_from_slice(b"null"),
        }
    }
}

impl Json for &[&str] {
    fn write(self, out: &mut Vec<u8>) {
        let mut before = b'[';
        for text in self {
            out.push(before);
            before = b',';
            text.write(out);
        }
        if self.is_empty() {
            out.push(b'[');
        }
        out.push(b']');
    }
}

/// Appends a string that is known to need no escapes.
pub(super) fn plain_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Appends one string, given in parts.
pub(super) fn string(out: &mut Vec<u8>, parts: &[&str]) {
    out.push(b'"');
    parts.iter().for_each(|part| push_text(out, part));
    out.push(b'"');
}

/// Appends a text inside a string.
fn push_text(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
    } else {
        text.chars().for_each(|character| push_escaped(out, character));
    }
}

/// True for a text that needs no escapes, as nearly all.
fn is_plain(text: &[u8]) -> bool {
    // No early exit inside a block, so that the compiler makes a few vector instructions of it.
    let is_plain = |block: &[u8; 16]| {
        block.iter().fold(true, |plain, byte| plain & (b' '..=b'~').contains(byte) & (*byte != b'"') & (*byte != b'\\'))
    };
    match text.last_chunk() {
        // It may begin inside the block before.
        Some(last) => is_plain(last) && text.as_chunks().0.iter().all(is_plain),
        None => {
            let mut block = [b' '; 16];
            block[..text.len()].copy_from_slice(text);
            is_plain(&block)
        }
    }
}

/// Appends a character of a string: escaped where JSON asks for it (RFC 8259 7), and where it is legal
/// but acts on a terminal: DEL, C1, bidi.
fn push_escaped(out: &mut Vec<u8>, character: char) {
    let short = match character {
        '"' | '\\' => character,
        '\u{8}' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\u{c}' => 'f',
        '\r' => 'r',
        _ if is_unsafe(character) => {
            // All unsafe characters are in the basic plane: one unit.
            let unit = u32::from(character);
            let digit = |shift: u32| b"0123456789abcdef"[(unit >> shift & 0xf) as usize];
            out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
            return;
        }
        _ => {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short as u8]);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_library_reads_what_was_written(
            texts in prop::collection::vec("[ -~]{0,40}|\\PC{0,8}|[\u{0}-\u{2f}\\\\\u{7f}-\u{a0}\u{200e}\u{2028}\u{feff}]{0,8}", 0..3),
            number: u64,
        ) {
            let parts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let mut line = Vec::new();
            let mut object = Object::begin(&mut line);
            object.add("text", &*texts.concat());
            object.add("number", number);
            object.add_some("left out", None::<bool>);
            object.add("none", None::<&str>);
            object.add("list", &*parts);
            object.end();
            let mut whole = Vec::new();
            string(&mut whole, &parts);
            let line = String::from_utf8(line).expect("text");
            prop_assert!(!line.contains(is_unsafe), "{}", line);
            prop_assert_eq!(
                serde_json::from_str::<serde_json::Value>(&line).expect("JSON"),
                serde_json::json!({ "text": texts.concat(), "number": number, "none": null, "list": texts })
            );
            prop_assert_eq!(serde_json::from_slice::<String>(&whole).expect("JSON"), texts.concat());
        }
    }
}
