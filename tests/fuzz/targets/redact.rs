//! The masks of the log: a planted secret never survives, whatever stands around it.
//!
//! The first two bytes choose where it is planted and how its name is written; the rest, cut at the
//! first line feed, stands before and after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::access_log::redact::{Extra, Redactor};

const SECRET: &str = "S3cr3tOfTheClient";

const NAMES: [&str; 12] = [
    "token", "password", "auth", "code", "key", "secret", "ticket", "mediaTicket", "access_token", "apiKey", "sessionId",
    "invite",
];

thread_local! {
    static REDACTOR: Redactor =
        Redactor::new(Extra { query: vec!["invite".into()], headers: Vec::new() }).expect("random numbers");
}

fuzz_target!(|data: &[u8]| {
    let [place, style, rest @ ..] = data else { return };
    // A target of hyper is visible ASCII or UTF-8 without blanks; so are these.
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (before, after) = text.split_once('\n').unwrap_or((text, ""));
    if [before, after].iter().any(|part| part.contains(|c: char| c.is_whitespace() || c.is_control())) {
        return;
    }
    let name = written(NAMES[usize::from(place / 8) % NAMES.len()], *style);
    // What is promised: up to three encodings, and a percent sign in the name is one.
    let times = style % if name.contains('%') { 2 } else { 3 } + 1;
    let target = match place % 8 {
        0 => format!("/a?{before}&{name}={SECRET}&{after}"),
        1 => format!("/a?{name}={SECRET}{after}"),
        2 => format!("/{before}?{name}={SECRET}&{after}"),
        3 => format!("/a?{before}&next={}&{after}", hidden(&format!("/b?{name}={SECRET}"), times)),
        4 => format!("/a?next={}{after}", hidden(&format!("https://b.example/?x=y&{name}={SECRET}"), times)),
        5 if !before.contains(['?', '#']) => format!("/{before}/__openclaw__/cap/{SECRET}/{after}"),
        6 => format!("/a?{before}#{name}={SECRET}{after}"),
        7 if !before.contains(['/', '?', '#']) => format!("https://{before}:{SECRET}@b.example/{after}"),
        _ => return,
    };
    REDACTOR.with(|redactor| {
        for masked in [redactor.target(&target), redactor.referer(&target)] {
            assert!(!masked.contains(SECRET), "{target:?} became {masked:?}");
        }
    });
});

/// A name in one of the ways a client may write it.
fn written(name: &str, style: u8) -> String {
    let letters = name.chars().enumerate().map(|(at, letter)| match style >> (at % 4 * 2) & 3 {
        0 => letter.to_string(),
        1 => letter.to_ascii_uppercase().to_string(),
        2 => format!("%{:02x}", u32::from(letter)),
        _ => format!("%{:02X}", u32::from(letter.to_ascii_uppercase())),
    });
    letters.collect()
}

/// A text as the value of a parameter, encoded this many times.
fn hidden(text: &str, times: u8) -> String {
    (0..times).fold(text.to_owned(), |text, _| {
        text.bytes()
            .map(|byte| match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect()
    })
}
