//! The responses of an endpoint: cuts change nothing, and a head that is accepted `httparse` reads in the same way.
//!
//! The first byte says whether a HEAD was asked (its top bit), and the number of cuts, up to 7; so many bytes follow
//! that say where; the rest is the stream.
#![no_main]

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use tidegate::forward::answer::judge;
use tidegate::framing::rest::{Piece, Rest};

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(first % 8)) else { return };
    let is_head = first >= 128;
    let mut cuts: Vec<_> = cuts.iter().map(|&cut| usize::from(cut) * stream.len() / 255).collect();
    cuts.sort_unstable();
    let whole = read_all(stream, &[], is_head);
    assert_eq!(whole, read_all(stream, &cuts, is_head), "cuts changed the verdict");
    compare(stream, is_head);
});

/// What came of a stream.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    heads: Vec<String>,
    content: Vec<u8>,
    trailers: Vec<u8>,
    is_bad: bool,
    left: usize,
}

/// Takes one response after another off a stream that comes in pieces.
fn read_all(stream: &[u8], cuts: &[usize], is_head: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut read, mut rest, mut begin) = (BytesMut::new(), Rest::Over, 0);
    for end in cuts.iter().copied().chain([stream.len()]) {
        read.extend_from_slice(&stream[begin..end.max(begin)]);
        begin = end.max(begin);
        loop {
            if rest.is_over() {
                match judge(&mut read, is_head) {
                    Ok(Some((response, body))) => {
                        outcome.heads.push(format!("{response:?}"));
                        rest = body;
                    }
                    Ok(None) => break,
                    Err(_) => return Outcome { is_bad: true, ..outcome },
                }
            }
            match rest.take(&mut read, |_| true) {
                Ok(Some(Piece::Data(data))) => outcome.content.extend_from_slice(&data),
                Ok(Some(Piece::Trailers(section))) => outcome.trailers.extend_from_slice(&section),
                Ok(None) if rest.is_over() => {}
                Ok(None) => break,
                Err(_) => return Outcome { is_bad: true, ..outcome },
            }
        }
    }
    Outcome { left: read.len(), ..outcome }
}

/// A first head that is accepted has exactly the bytes, the fields and the framing that another reading finds.
fn compare(stream: &[u8], is_head: bool) {
    let mut read = BytesMut::from(stream);
    let Ok(Some((response, rest))) = judge(&mut read, is_head) else { return };
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = stream.len() - read.len();
    assert_eq!(parsed.parse(stream), Ok(httparse::Status::Complete(length)), "the two disagree about the head's end");
    assert_eq!(parsed.code, Some(response.status().as_u16()));
    assert_eq!(parsed.headers.len(), response.headers().len());
    for field in &*parsed.headers {
        let mut values = response.headers().get_all(field.name).iter();
        assert!(values.any(|value| value.as_bytes() == field.value), "{:?}", field.name);
    }
    assert!(stream[..length].split(|&byte| byte == b'\n').all(|line| line.is_empty() || line.ends_with(b"\r")));
    check_framing(&response, &rest, is_head, parsed.version == Some(0));
}

/// RFC 9112 6.3, said a second time.
fn check_framing(response: &Response<()>, rest: &Rest, is_head: bool, is_old: bool) {
    let all = |name| response.headers().get_all(name).iter().collect::<Vec<_>>();
    let (lengths, codings) = (all(CONTENT_LENGTH), all(TRANSFER_ENCODING));
    assert!(lengths.len() + codings.len() <= 1, "two framings passed");
    assert!(!is_old || codings.is_empty(), "a transfer coding in HTTP/1.0");
    let status = response.status();
    if is_head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return assert!(rest.is_over());
    }
    match (lengths.first(), codings.first()) {
        (Some(length), _) => {
            let length: u64 = length.to_str().expect("digits").parse().expect("a number");
            assert_eq!(rest.length(), Some(length));
        }
        (None, Some(coding)) => {
            assert!(coding.as_bytes().eq_ignore_ascii_case(b"chunked") && matches!(rest, Rest::Chunked(_)));
        }
        (None, None) => assert!(matches!(rest, Rest::Close)),
    }
}
