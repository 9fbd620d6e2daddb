//! Verdicts over the corpus, over cuts, and against another parser.

use proptest::prelude::*;

use super::*;

#[path = "../../tests/corpus/h1.rs"]
pub(crate) mod corpus;

/// What came of a stream: how much of it passed, how many messages were complete, and the fault.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    passed: usize,
    messages: usize,
    fault: Option<Fault>,
}

/// Reads a stream in pieces that end at `cuts`, as a connection does.
fn follow(stream: &[u8], cuts: impl Iterator<Item = usize>) -> Outcome {
    let mut follower = Follower::new(Limits::default());
    let mut outcome = Outcome::default();
    let mut read = BytesMut::new();
    let mut begin = 0;
    for end in cuts.chain([stream.len()]) {
        read.extend_from_slice(&stream[begin..end.max(begin)]);
        begin = end.max(begin);
        outcome.fault = follow_on(&mut follower, &mut read, &mut outcome.messages).err();
        outcome.passed = begin - read.len();
        if outcome.fault.is_some() {
            // What was not read yet did not pass either.
            return outcome;
        }
    }
    outcome
}

/// Takes all messages that are there.
fn follow_on(follower: &mut Follower, read: &mut BytesMut, messages: &mut usize) -> Result<(), Fault> {
    loop {
        let took_head = follower.head(read)?.is_some();
        let took_body = follower.body(read)?.is_some();
        if follower.is_complete() {
            *messages += 1;
            follower.next_message();
        } else if !took_head && !took_body {
            return Ok(());
        }
    }
}

#[test]
fn each_case_of_the_corpus_has_its_verdict() {
    let cases = corpus::cases();
    assert!(cases.len() >= 120);
    for case in cases {
        let outcome = follow(&case.raw, std::iter::empty());
        let refusal = outcome.fault.map(|fault| (fault.status().as_u16(), fault.code()));
        assert_eq!((outcome.messages, refusal), (case.requests, case.refusal), "{}", case.name);
        if case.refusal.is_none() {
            assert_eq!(outcome.passed, case.raw.len(), "{}: bytes are left over", case.name);
        }
    }
}

#[test]
fn the_verdict_is_the_same_byte_by_byte() {
    for case in corpus::cases() {
        // Long cases are cut more coarsely: each byte of a growing line is looked at once only,
        // but the cuts themselves would take their time.
        let step = case.raw.len() / 2000 + 1;
        let whole = follow(&case.raw, std::iter::empty());
        assert_eq!(follow(&case.raw, (0..case.raw.len()).step_by(step)), whole, "{}", case.name);
    }
}

/// A head that passes here is read in the same way by a parser that knows nothing of it.
fn check_against_httparse(bytes: &[u8]) {
    let Ok(Some((head, text))) = Follower::new(Limits::default()).head(&mut BytesMut::from(bytes)) else { return };
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut fields);
    assert_eq!(parsed.parse(bytes), Ok(httparse::Status::Complete(head.bytes)));
    let request = to_request(&head, &text).expect("a head without fault is a request");
    assert_eq!(parsed.method, Some(request.method().as_str()));
    assert_eq!(parsed.path.expect("complete").parse::<http::Uri>().expect("a target"), *request.uri());
    assert_eq!((parsed.version == Some(0), parsed.headers.len()), (head.is_old, request.headers().len()));
    for field in &*parsed.headers {
        let values = request.headers().get_all(field.name);
        assert!(values.iter().any(|value| value.as_bytes() == field.value.trim_ascii()), "{:?}", field.name);
    }
    assert!(request.uri().path_and_query().is_some() || request.method() == http::Method::CONNECT);
    let all = |name: &str| parsed.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).count();
    assert!(all("host") <= 1 && all("content-length") + all("transfer-encoding") <= 1);
}

/// Pieces of requests, good and bad, so that random streams get beyond the first line.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&'static [u8]> = vec![
        b"GET / HTTP/1.1\r\nHost: a.test\r\n",
        b"POST /x?y HTTP/1.1\r\nHost: a.test\r\n",
        b"GET http://a.test/ HTTP/1.0\r\nHost: a.test\r\n",
        b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Upgrade: websocket\r\n",
        b"X-A: b\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b"hello",
        b"5\r\nhello\r\n",
        b"5;a=\"b\"\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nX-A: b\r\n\r\n",
        b"0\r\nHost: b\r\n\r\n",
        b"\x00",
    ];
    let word = prop_oneof![
        9 => proptest::sample::select(words).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(word, 0..12).prop_map(|words| words.concat())
}

/// A case of the corpus with one byte changed.
fn mutants() -> impl Strategy<Value = Vec<u8>> {
    let raws: Vec<_> = corpus::cases().into_iter().map(|case| case.raw).filter(|raw| raw.len() < 2000).collect();
    (proptest::sample::select(raws), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut raw, at, byte)| {
        let at = at.index(raw.len());
        raw[at] = byte;
        raw
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn cuts_change_nothing(
        stream in prop_oneof![pieces(), mutants()],
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(follow(&stream, cuts.into_iter()), follow(&stream, std::iter::empty()));
    }

    #[test]
    fn what_passes_is_what_another_parser_reads(stream in prop_oneof![pieces(), mutants()]) {
        check_against_httparse(&stream);
    }
}
