//! The head of a response as it goes to the client (RFC 9112 4), and the framing of its body (RFC 9112 6).

use std::cell::Cell;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{StatusCode, response};
use http_body::Body;

use crate::framing::sending::Framing;
use crate::framing::{Head, Phrase};

/// The head as bytes, after what is left of an interim response, and how the body will end.
pub(super) fn head(
    parts: &response::Parts,
    body: &impl Body,
    request: &Head,
    closes: bool,
    interim: &[u8],
) -> (Vec<u8>, Framing) {
    let status = parts.status;
    let says_close = closes && status != StatusCode::SWITCHING_PROTOCOLS;
    let is_bodiless = request.is_head || has_no_body(status);
    let framing = match body.size_hint().exact() {
        _ if is_bodiless => Framing::Over,
        Some(0) => Framing::Over,
        Some(length) => Framing::Length(length),
        None if request.is_old => Framing::Close,
        None => Framing::Chunked(request.takes_trailers),
    };
    let length: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut text = Vec::with_capacity(interim.len() + length + 160);
    text.extend_from_slice(interim);
    text.extend_from_slice(b"HTTP/1.1 ");
    text.extend_from_slice(status.as_str().as_bytes());
    text.push(b' ');
    let phrase = parts.extensions.get::<Phrase>().map(|phrase| &*phrase.0);
    text.extend_from_slice(phrase.or(status.canonical_reason()).unwrap_or_default().as_bytes());
    text.extend_from_slice(b"\r\n");
    let mut has_date = false;
    let mut has_length = false;
    for (name, value) in &parts.headers {
        // Only this file says how a body ends. Where there is none, a length tells of the one that a GET would get.
        if *name == TRANSFER_ENCODING
            || (*name == CONTENT_LENGTH && !is_bodiless)
            || (*name == CONNECTION && says_close)
        {
            continue;
        }
        has_date |= *name == DATE;
        has_length |= *name == CONTENT_LENGTH;
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    match framing {
        // A vector in memory cannot fail.
        Framing::Length(length) => drop(write!(text, "content-length: {length}\r\n")),
        Framing::Chunked(_) => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Over if request.is_head && !has_length => {
            // RFC 9110 8.6: the length that a GET would get, where it is known; an endpoint's is among the fields.
            if let Some(length @ 1..) = body.size_hint().exact() {
                let _ = write!(text, "content-length: {length}\r\n");
            }
        }
        Framing::Over if !is_bodiless => text.extend_from_slice(b"content-length: 0\r\n"),
        Framing::Over | Framing::Close => {}
    }
    if says_close {
        text.extend_from_slice(b"connection: close\r\n");
    }
    if !has_date {
        write_date(&mut text);
    }
    text.extend_from_slice(b"\r\n");
    (text, framing)
}

/// RFC 9112 6.3.
fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// RFC 9110 6.6.1: a response without a date gets ours. Made once a second.
fn write_date(text: &mut Vec<u8>) {
    const LENGTH: usize = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len();
    thread_local! {
        static LINE: Cell<Option<(Instant, [u8; LENGTH])>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    let line = match LINE.get() {
        Some((made, line)) if now.duration_since(made) < Duration::from_secs(1) => line,
        _ => {
            let mut line = [b' '; LENGTH];
            // The form has a fixed length up to the year 9999.
            let _ = write!(&mut line[..], "date: {}\r\n", httpdate::HttpDate::from(SystemTime::now()));
            LINE.set(Some((now, line)));
            line
        }
    };
    text.extend_from_slice(&line);
}
