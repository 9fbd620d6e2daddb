//! The checks of a request head: what passes must be read in the same way by hyper's parser.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::framing::{Body, Follower, Limits};

fuzz_target!(|data: &[u8]| {
    let mut follower = Follower::new(Limits::default());
    let step = follower.feed(data);
    assert!(step.released <= data.len());
    if let Some(fault) = step.fault {
        assert!(fault.status().is_client_error() || fault.status().is_server_error());
    }
    let Some(head) = follower.head() else {
        assert_eq!(step.released, 0, "a part of a head passed");
        return;
    };
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(
        request.parse(data),
        Ok(httparse::Status::Complete(head.bytes)),
        "the two disagree about the head's end"
    );
    let target = request.path.expect("complete");
    assert!(target.parse::<http::Uri>().is_ok(), "hyper would refuse {target:?}");
    let values = |name: &str| {
        let named = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect::<Vec<_>>()
    };
    assert!(values("host").len() == 1 || (values("host").is_empty() && request.version == Some(0)));
    match (&values("content-length")[..], &values("transfer-encoding")[..]) {
        ([], []) => assert_eq!(head.body, Body::None),
        ([length], []) => {
            let length: u64 = std::str::from_utf8(length).expect("digits").parse().expect("a number");
            assert_eq!(head.body, if length == 0 { Body::None } else { Body::Length(length) });
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1));
            assert_eq!(head.body, Body::Chunked);
        }
        lengths => panic!("two framings passed: {lengths:?}"),
    }
});
