//! The preface of the PROXY protocol: no cut changes a verdict, and what was understood is what was said.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use tidegate::connection::proxy_protocol::{MOST_V1, MOST_V2, Preface, Progress, parse};

fuzz_target!(|data: &[u8]| {
    let verdict = parse(data);
    for cut in 0..data.len() {
        match parse(&data[..cut]) {
            Ok(Progress::Missing(missing)) => {
                assert!(missing > 0, "nothing would be read");
                if let Ok(Progress::Whole { length, .. }) = verdict {
                    assert!(cut + missing <= length, "bytes after the preface would be read");
                }
            }
            decided => assert_eq!(decided, verdict, "bytes after the verdict changed it"),
        }
    }
    let Ok(Progress::Whole { preface, length }) = verdict else { return };
    let is_text = data[0] == b'P';
    assert!(length <= if is_text { MOST_V1 } else { MOST_V2 });
    assert_eq!(is_text, data[..length].ends_with(b"\r\n") && data.starts_with(b"PROXY "));
    let Preface::Client { source, destination } = preface else { return };
    for end in [source, destination] {
        assert_eq!(end.ip(), end.ip().to_canonical());
    }
    assert!(!source.ip().is_unspecified() && !source.ip().is_multicast());
    let again = written(source, destination);
    assert_eq!(parse(&again), Ok(Progress::Whole { preface, length: again.len() }), "it says something else now");
});

/// A preface of version 2, with both ends as IPv6 where one of them is.
fn written(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let is_v4 = source.is_ipv4() && destination.is_ipv4();
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if is_v4 => v4.octets().to_vec(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let payload = [octets(source.ip()), octets(destination.ip()), ports].concat();
    let length = u8::try_from(payload.len()).expect("36 at most");
    [b"\r\n\r\n\0\r\nQUIT\n\x21", &[if is_v4 { 0x11 } else { 0x21 }, 0, length][..], &payload].concat()
}
