//! The reader of prefaces: every cut, both versions, what is stricter than the grammar, what is left unread.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

use super::*;

/// A preface of version 2.
fn binary(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a length of 16 bits");
    [v2::PROTOCOL_PREFIX, &[command, family], &length.to_be_bytes(), payload].concat()
}

/// Two IPv4 ends.
const FOUR: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0x12, 0x34, 1, 187];

/// Two IPv6 ends.
fn six(source: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("an address").octets();
    [&octets(source)[..], &octets("2001:db8::1"), &[0x12, 0x34, 1, 187]].concat()
}

fn client_of(source: &str, destination: &str) -> Preface {
    let parse = |text: &str| text.parse().expect("an address");
    Preface::Client { source: parse(source), destination: parse(destination) }
}

/// Prefaces that are taken, and what they say.
fn taken() -> Vec<(Vec<u8>, Preface)> {
    let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", "2001:0db8:ffff:ffff:ffff:ffff:ffff:ffff");
    let longest_name = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff";
    let field = |kind: u8, length: u16| [&[kind][..], &length.to_be_bytes(), &vec![0x55; usize::from(length)]].concat();
    let v4 = client_of("203.0.113.9:4660", "192.0.2.1:443");
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (text("PROXY TCP4 203.0.113.9 192.0.2.1 4660 443\r\n"), v4),
        (text("PROXY TCP4 203.0.113.9 192.0.2.1 0 0\r\n"), client_of("203.0.113.9:0", "192.0.2.1:0")),
        (text("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"), client_of("127.0.0.1:1", "127.0.0.1:2")),
        (text("PROXY TCP6 2001:db8::9 2001:db8::1 1 443\r\n"), client_of("[2001:db8::9]:1", "[2001:db8::1]:443")),
        (text("PROXY TCP6 ::1 :: 1 1\r\n"), client_of("[::1]:1", "[::]:1")),
        (text(&longest), client_of(&format!("[{longest_name}]:65535"), &format!("[{longest_name}]:65535"))),
        // Canonical, as every address is.
        (text("PROXY TCP6 ::ffff:203.0.113.9 ::ffff:c000:201 4660 443\r\n"), v4),
        (text("PROXY UNKNOWN\r\n"), Preface::Sender),
        (text("PROXY UNKNOWN \r\n"), Preface::Sender),
        (text("PROXY UNKNOWN 203.0.113.9 192.0.2.1 4660 443\r\n"), Preface::Sender),
        (text("PROXY UNKNOWN one two three four five six seven \u{e4}\r\n"), Preface::Sender),
        (text(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(MOST_V1 - 16))), Preface::Sender),
        (binary(0x21, 0x11, &FOUR), v4),
        (binary(0x21, 0x21, &six("2001:db8::9")), client_of("[2001:db8::9]:4660", "[2001:db8::1]:443")),
        (binary(0x21, 0x21, &six("::ffff:203.0.113.9")), client_of("203.0.113.9:4660", "[2001:db8::1]:443")),
        // Further fields: none of them means anything here.
        (binary(0x21, 0x11, &[&FOUR[..], &field(0x04, 0)].concat()), v4),
        (binary(0x21, 0x11, &[&FOUR[..], &field(0x20, 300), &field(0xee, 7)].concat()), v4),
        (binary(0x21, 0x11, &[&FOUR[..], &field(0x04, 4096 - 16 - 12 - 3)].concat()), v4),
        // In its own name: all else is ignored, even what could not be read.
        (binary(0x20, 0x00, &[]), Preface::Sender),
        (binary(0x20, 0x11, &FOUR), Preface::Sender),
        (binary(0x20, 0x11, &[1, 2, 3]), Preface::Sender),
        (binary(0x20, 0xff, &[9; 40]), Preface::Sender),
        // Families without addresses of ours.
        (binary(0x21, 0x00, &[]), Preface::Sender),
        (binary(0x21, 0x00, &[7; 30]), Preface::Sender),
        (binary(0x21, 0x01, &[7; 30]), Preface::Sender),
        (binary(0x21, 0x10, &FOUR), Preface::Sender),
        (binary(0x21, 0x31, &[b'/'; 216]), Preface::Sender),
    ]
}

/// What is refused, and the beginning of the words for it.
fn refused() -> Vec<(Vec<u8>, &'static str)> {
    let line = |text: &str| format!("PROXY {text}").into_bytes();
    let field = |bytes: &[u8]| binary(0x21, 0x11, &[&FOUR[..], bytes].concat());
    let wrong_signature = [&v2::PROTOCOL_PREFIX[..11], b"\r", &[0x21, 0x11, 0, 12], &FOUR].concat();
    let mut announced = binary(0x21, 0x11, &FOUR);
    announced[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    vec![
        // Version 1: ends of lines.
        (line("TCP4 203.0.113.9 192.0.2.1 1 2\n"), "malformed PROXY preface: the line"),
        (line("TCP4 203.0.113.9 192.0.2.1 1 2 \n"), "malformed PROXY preface: the line"),
        (line("TCP4 203.0.113.9 192.0.2.1 1 2\r\r\n"), "malformed PROXY preface: the line"),
        (line("TCP4 203.0.113.9\r192.0.2.1 1 2\r\n"), "malformed PROXY preface: the line"),
        (line("TCP4 203.0.113.9 192.0.2.1 1\n2\r\n"), "malformed PROXY preface: the line"),
        (line("UNKNOWN\n"), "malformed PROXY preface: the line"),
        (line("UNKNOWN \r x\r\n"), "malformed PROXY preface: the line"),
        // The reason is the same wherever it was cut: the rest of the fields had no room.
        (line(&format!("TCP4 200.0{}.\r\n", "\0".repeat(88))), "malformed PROXY preface: no addresses"),
        // A second line is what follows, and not part of the first.
        (line("TCP4 203.0.113.9\r\nPROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n"), "malformed PROXY preface: it does"),
        (line("\r\nGET / HTTP/1.1\r\n"), "malformed PROXY preface: no addresses"),
        // Version 1: fields.
        (line("tcp4 203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP5 203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP45 203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("UDP4 203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("UNKNOWNS\r\n        "), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 1\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 1 2 3\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 1 2 \r\n"), "malformed"),
        (line("TCP4  203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1  2\r\n"), "malformed"),
        (line("TCP4\t203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 +1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 01 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 1 65536\r\n"), "malformed"),
        (line("TCP4 203.0.113.9 192.0.2.1 -1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.09 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP4 2001:db8::9 2001:db8::1 1 2\r\n"), "malformed"),
        (line("TCP6 203.0.113.9 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP6 fe80::1%lo 2001:db8::1 1 2\r\n"), "malformed"),
        (line("TCP6 [2001:db8::9] 2001:db8::1 1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.9, 192.0.2.1 1 2\r\n"), "malformed"),
        (line("TCP4 203.0.113.9\0 192.0.2.1 1 2\r\n"), "malformed"),
        // Addresses of nobody.
        (line("TCP4 0.0.0.0 192.0.2.1 1 2\r\n"), "malformed PROXY preface: its source"),
        (line("TCP4 255.255.255.255 192.0.2.1 1 2\r\n"), "malformed PROXY preface: its source"),
        (line("TCP6 ff02::1 2001:db8::1 1 2\r\n"), "malformed PROXY preface: its source"),
        (line("TCP6 ::ffff:0.0.0.0 2001:db8::1 1 2\r\n"), "malformed PROXY preface: its source"),
        (binary(0x21, 0x11, &[0, 0, 0, 0, 192, 0, 2, 1, 0, 1, 0, 2]), "malformed PROXY preface: its source"),
        (binary(0x21, 0x21, &six("ff02::1")), "malformed PROXY preface: its source"),
        // Too long, known at once.
        (line(&"x".repeat(MOST_V1 - 7)), "malformed PROXY preface: its line is longer"),
        (line(&format!("UNKNOWN {}\r\n", "x".repeat(MOST_V1 - 15))), "malformed PROXY preface: its line is longer"),
        (announced[..16].to_vec(), "the PROXY preface announces 65551 bytes"),
        (binary(0x20, 0x00, &[0; MOST_V2 - 15])[..16].to_vec(), "the PROXY preface announces 4097 bytes"),
        // Version 2.
        (binary(0x11, 0x11, &FOUR), "malformed PROXY preface: its version"),
        (binary(0x31, 0x11, &FOUR), "malformed PROXY preface: its version"),
        (binary(0x22, 0x11, &FOUR), "malformed PROXY preface: neither"),
        (binary(0x21, 0x41, &FOUR), "malformed PROXY preface: an unknown"),
        (binary(0x21, 0x13, &FOUR), "malformed PROXY preface: an unknown"),
        (binary(0x21, 0x12, &FOUR), "malformed PROXY preface: it speaks"),
        (binary(0x21, 0x11, &FOUR[..11]), "malformed PROXY preface: it is too short"),
        (binary(0x21, 0x21, &FOUR), "malformed PROXY preface: it is too short"),
        (binary(0x21, 0x31, &[b'/'; 215]), "malformed PROXY preface: it is too short"),
        (field(&[0x04]), "malformed PROXY preface: its fields"),
        (field(&[0x04, 0, 2, 0]), "malformed PROXY preface: its fields"),
        (field(&[0x04, 0, 1, 0, 0x04, 0]), "malformed PROXY preface: its fields"),
        // Something else.
        (wrong_signature, "no PROXY preface came first"),
        (b"GET / HTTP/1.1\r\n".to_vec(), "no PROXY preface came first"),
        (b"PUT / HTTP/1.1\r\n".to_vec(), "no PROXY preface came first"),
        (b"PROXYTCP4".to_vec(), "no PROXY preface came first"),
        (b"\r\n\r\nGET / HTTP/1.1\r\n".to_vec(), "no PROXY preface came first"),
        (b"\x16\x03\x01\x02\x00\x01".to_vec(), "the peer began with TLS"),
    ]
}

#[test]
fn a_preface_says_who_connected() {
    for (bytes, expected) in taken() {
        let whole = Ok(Progress::Whole { preface: expected, length: bytes.len() });
        assert_eq!(parse(&bytes), whole, "{:?}", String::from_utf8_lossy(&bytes));
        // What follows changes nothing, whatever it looks like.
        for after in [&b"GET / HTTP/1.1\r\n\r\n"[..], &bytes, b"\r\n", b"\x16\x03\x01"] {
            assert_eq!(parse(&[&bytes[..], after].concat()), whole, "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn every_cut_asks_for_more_and_for_no_more_than_there_is() {
    for (bytes, _) in taken() {
        for cut in 0..bytes.len() {
            let progress = parse(&bytes[..cut]);
            let Ok(Progress::Missing(missing)) = progress else {
                unreachable!("{cut} of {:?}: {progress:?}", String::from_utf8_lossy(&bytes));
            };
            assert!((1..=bytes.len() - cut).contains(&missing), "{missing} after {cut} of {}", bytes.len());
        }
    }
}

#[test]
fn what_breaks_the_rules_is_refused_with_its_reason() {
    for (bytes, words) in refused() {
        let shown = String::from_utf8_lossy(&bytes);
        let fault = parse(&bytes).expect_err(&shown);
        assert!(fault.to_string().starts_with(words), "{shown:?}: {fault}");
        // No cut of it is a preface either, and none is refused for another reason.
        for cut in 0..bytes.len() {
            match parse(&bytes[..cut]) {
                Ok(Progress::Missing(missing)) => assert!(missing > 0),
                decided => assert_eq!(decided, Err(fault), "{cut} of {shown:?}"),
            }
        }
    }
}

/// Far away: nothing in a test takes so long.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[tokio::test]
async fn nothing_is_read_after_the_preface() {
    for (bytes, expected) in taken() {
        let after = b"\x16\x03\x01PROXY TCP4\r\n";
        let mut stream = io::Cursor::new([&bytes[..], after].concat());
        assert_eq!(read(&mut stream, later()).await, Ok(expected));
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("memory");
        assert_eq!(rest, after, "{:?}", String::from_utf8_lossy(&bytes));
    }
}

/// Gives one byte a read.
struct Drip<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Drip<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        let read = Pin::new(&mut self.0).poll_read(cx, &mut one);
        buffer.put_slice(one.filled());
        read
    }
}

#[tokio::test]
async fn pieces_of_any_size_are_one_preface() {
    for (bytes, expected) in taken() {
        assert_eq!(read(&mut Drip(&bytes[..]), later()).await, Ok(expected));
        for cut in 0..bytes.len() {
            let fault = read(&mut Drip(&bytes[..cut]), later()).await.expect_err("it is cut");
            assert_eq!(fault, Fault::Closed(cut));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_whatever_trickles_in() {
    let (mut client, mut server) = tokio::io::duplex(64);
    let trickling = tokio::spawn(async move {
        for byte in b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n" {
            if client.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let began = Instant::now();
    let fault = read(&mut server, began + Duration::from_millis(9_500)).await.expect_err("it is late");
    assert_eq!((fault, began.elapsed()), (Fault::Late(10), Duration::from_millis(9_500)));
    drop(server);
    trickling.await.expect("no panic");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_the_same_in_any_pieces(
        version in 0..3_u8,
        command in prop::sample::select(vec![0x20_u8, 0x21, 0x11]),
        family in prop::sample::select(vec![0x00_u8, 0x11, 0x21, 0x31, 0x12, 0x41]),
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        text in "(TCP4|TCP6|UNKNOWN)[ 0-9a-f:.\r\n]{0,120}",
    ) {
        let bytes = match version {
            0 => binary(command, family, &noise),
            1 => [b"PROXY ", text.as_bytes(), b"\r\n"].concat(),
            _ => noise,
        };
        let verdict = parse(&bytes);
        for cut in 0..bytes.len() {
            match parse(&bytes[..cut]) {
                Ok(Progress::Missing(missing)) => {
                    prop_assert!(missing > 0);
                    if let Ok(Progress::Whole { length, .. }) = verdict {
                        prop_assert!(cut + missing <= length);
                    }
                }
                // A verdict stands, whatever follows.
                decided => prop_assert_eq!(decided, verdict),
            }
        }
    }
}
