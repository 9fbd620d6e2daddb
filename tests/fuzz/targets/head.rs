//! The checks of a request head: what passes must be read in the same way by `httparse`, and make a request.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tidegate::framing::{Body, Follower, Limits, to_request};

fuzz_target!(|data: &[u8]| {
    let mut read = BytesMut::from(data);
    let (head, text) = match Follower::new(Limits::default()).head(&mut read) {
        Ok(Some(passed)) => passed,
        Ok(None) => return assert_eq!(read, data, "a part of a head passed"),
        Err(fault) => {
            assert!(fault.status().is_client_error() || fault.status().is_server_error());
            return assert_eq!(read, data, "a part of a head passed");
        }
    };
    assert_eq!((&text[..], &read[..]), data.split_at(head.bytes));
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut fields);
    assert_eq!(
        parsed.parse(data),
        Ok(httparse::Status::Complete(head.bytes)),
        "the two disagree about the head's end"
    );
    let request = to_request(&head, &text).expect("a head without fault is a request");
    assert_eq!(parsed.method, Some(request.method().as_str()));
    assert_eq!(parsed.path.expect("complete").parse::<http::Uri>().expect("a target"), *request.uri());
    assert_eq!(parsed.version == Some(0), head.is_old);
    assert_eq!(parsed.headers.len(), request.headers().len());
    let values = |name: &str| {
        let named = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii()).collect::<Vec<_>>()
    };
    for name in request.headers().keys() {
        let ours: Vec<_> = request.headers().get_all(name).iter().map(|value| value.as_bytes()).collect();
        assert_eq!(ours, values(name.as_str()), "{name}");
    }
    assert!(values("host").len() == 1 || (values("host").is_empty() && head.is_old));
    match (&values("content-length")[..], &values("transfer-encoding")[..]) {
        ([], []) => assert_eq!(head.body, Body::None),
        ([length], []) => {
            let length: u64 = std::str::from_utf8(length).expect("digits").parse().expect("a number");
            assert_eq!(head.body, if length == 0 { Body::None } else { Body::Length(length) });
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && !head.is_old);
            assert_eq!(head.body, Body::Chunked);
        }
        lengths => panic!("two framings passed: {lengths:?}"),
    }
});
