//! OCSP responses, which come over plain HTTP: what is read is read whole, and what nobody has signed is not believed.
//!
//! The first byte says where the response is cut.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tidegate::ocsp::answer::{Fault, Response, judge};
use tidegate::ocsp::question::Question;
use time::macros::datetime;

/// A leaf with a responder, and its issuer. Nobody has their keys any more.
const CHAIN: &[u8] = include_bytes!("ocsp.pem");

fuzz_target!(|data: &[u8]| {
    static QUESTION: OnceLock<Question> = OnceLock::new();
    let question = QUESTION.get_or_init(|| {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(CHAIN).collect::<Result<_, _>>().expect("a chain");
        Question::read(&chain).expect("it names a responder")
    });
    let Some((&cut, der)) = data.split_first() else { return };
    let verdict = judge(der, question, datetime!(2026-01-01 00:00 UTC));
    // The seeds are signed, but for days long after this one.
    assert!(verdict.is_err(), "believed: {verdict:?}");
    if Response::parse(der).is_ok() {
        let end = usize::from(cut) % der.len();
        assert!(Response::parse(&der[..end]).is_err(), "read without its end");
        assert!(Response::parse(&[der, b"\0"].concat()).is_err(), "read with more after it");
    } else {
        assert!(matches!(verdict, Err(Fault::Malformed | Fault::Refused(_) | Fault::Large)), "{verdict:?}");
    }
});
