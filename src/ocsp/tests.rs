//! Answers good and bad, and what the actor does with them.

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::alg_id;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::answer::{Fault, Response};
use super::der::{self, ENUMERATED, SEQUENCE, tagged_plain};
use super::testing::{Answer, Authority, features, responders, response};
use super::*;
use crate::addr::HostPattern;
use crate::tls::certs::CertFacts;

const URL: &str = "http://ocsp.example.com/a";

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc().replace_nanosecond(0).expect("a time")
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::from_config(text).expect("a pattern")
}

/// An authority, a leaf of it, and what to ask about the leaf.
fn scene() -> (Authority, Certificate, Question) {
    let ca = Authority::new();
    let leaf = ca.leaf(vec![responders(&[URL])]);
    let question = Question::read(&leaf.key.cert).expect("it names a responder");
    (ca, leaf, question)
}

#[test]
fn a_certificate_says_whom_to_ask() {
    let ca = Authority::new();
    let read = |extensions| {
        let leaf = ca.leaf(extensions);
        Question::read(&leaf.key.cert).map(|found| found.urls.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(read(vec![]), Err(Unaskable::NoResponder));
    assert_eq!(
        read(vec![responders(&["ldap://ocsp.example.com/", "not a url", "http://"])]),
        Err(Unaskable::NoResponder)
    );
    assert_eq!(
        read(vec![responders(&["https://b.example.com/", URL])]),
        Ok(vec!["https://b.example.com/".into(), URL.into()])
    );
    let leaf = ca.leaf(vec![responders(&[URL])]);
    assert_eq!(Question::read(&leaf.key.cert[..1]), Err(Unaskable::NoIssuer));
    assert_eq!(Question::read(&[]), Err(Unaskable::Unreadable));
    for (extensions, expected) in [
        (vec![], false),
        (vec![features(&[17])], false),
        (vec![features(&[5])], true),
        (vec![features(&[17, 5])], true),
    ] {
        assert_eq!(must_staple(&ca.leaf(extensions).key.cert[0]), expected);
    }
}

#[test]
fn only_what_the_issuer_stands_for_is_believed() {
    let (ca, _, question) = scene();
    let (now, key, root) = (now(), ca.issuer.key(), ca.der.clone());
    let good = || Answer::good(&question, now);
    let until = now + Duration::HOUR;
    let stranger = Authority::new();
    let signed = |answer: Answer| answer.sign(key, &root);
    let by = |edit: fn(&mut CertificateParams), by_key: bool| {
        let (certificate, key) = ca.delegate(edit);
        Answer { certificates: vec![certificate.clone()], by_key, ..good() }.sign(&key, &certificate)
    };
    let of_other = |edit: fn(&mut Question)| {
        let mut answer = good();
        edit(&mut answer.question);
        signed(answer)
    };
    let mut forged = signed(good());
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let by_stranger = {
        let (certificate, key) = stranger.delegate(|_| {});
        Answer { certificates: vec![certificate.clone()], ..good() }.sign(&key, &certificate)
    };
    let said = |status| Ok(Verdict { status, until });
    for (what, der, expected) in [
        ("the issuer's", signed(good()), said(Status::Good)),
        ("the issuer's, by key", signed(Answer { by_key: true, ..good() }), said(Status::Good)),
        ("a delegate's", by(|_| {}, false), said(Status::Good)),
        ("a delegate's, by key", by(|_| {}, true), said(Status::Good)),
        ("revoked", signed(Answer::revoked(&question, now)), said(Status::Revoked { since: now - Duration::HOUR })),
        ("unknown", signed(Answer { status: (tagged_plain(2), vec![]), ..good() }), Err(Fault::Unknown)),
        ("made soon", signed(Answer { this_update: now + Duration::minutes(5), ..good() }), said(Status::Good)),
        ("made too soon", signed(Answer { this_update: now + Duration::minutes(6), ..good() }), Err(Fault::Early)),
        ("over", signed(Answer { next_update: Some(now), ..good() }), Err(Fault::Late)),
        (
            "over before it begins",
            signed(Answer {
                this_update: now + Duration::minutes(4),
                next_update: Some(now + Duration::minutes(3)),
                ..good()
            }),
            Err(Fault::Late),
        ),
        ("endless", signed(Answer { next_update: None, ..good() }), Err(Fault::Endless)),
        ("of another serial", of_other(|question| question.serial = vec![1]), Err(Fault::Other)),
        ("of another issuer", of_other(|question| question.name_hash = vec![0; 20]), Err(Fault::Other)),
        ("of another key", of_other(|question| question.key_hash = vec![0; 20]), Err(Fault::Other)),
        ("of another hash", signed(Answer { algorithm: b"\x2b\x0e\x03\x02\x1b", ..good() }), Err(Fault::Other)),
        ("forged", forged, Err(Fault::Signature)),
        ("a stranger's in the issuer's name", good().sign(stranger.issuer.key(), &root), Err(Fault::Signature)),
        ("a stranger's delegate's", by_stranger, Err(Fault::Signer)),
        (
            "that of who may sign for servers",
            { by(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], false) },
            Err(Fault::Signer),
        ),
        ("that of who may sign for all", by(|params| params.extended_key_usages = vec![], false), Err(Fault::Signer)),
        (
            "that of a delegate of old",
            { by(|params| params.not_after = OffsetDateTime::now_utc() - Duration::MINUTE, false) },
            Err(Fault::Signer),
        ),
        (
            "that of a delegate to come",
            { by(|params| params.not_before = OffsetDateTime::now_utc() + Duration::HOUR, false) },
            Err(Fault::Signer),
        ),
        (
            "of another algorithm than it says",
            signed(Answer { signature: alg_id::ECDSA_SHA512, ..good() }),
            Err(Fault::Algorithm),
        ),
        (
            "with another hash than it says",
            signed(Answer { signature: alg_id::ECDSA_SHA384, ..good() }),
            Err(Fault::Signature),
        ),
        ("a refusal", der::write(SEQUENCE, &[&der::write(ENUMERATED, &[&[3]])]), Err(Fault::Refused("tryLater"))),
        ("without an answer", der::write(SEQUENCE, &[&der::write(ENUMERATED, &[&[0]])]), Err(Fault::Malformed)),
        ("of nothing", response(&[0], b""), Err(Fault::Malformed)),
        ("an error page", b"<html>busy</html>".to_vec(), Err(Fault::Malformed)),
        ("empty", Vec::new(), Err(Fault::Malformed)),
        ("huge", vec![0x30; 20_000], Err(Fault::Large)),
    ] {
        assert_eq!(judge(&der, &question, now), expected, "an answer that is {what}");
    }
}

#[test]
fn answers_are_checked_with_the_algorithms_of_public_cas() {
    use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA384, PKCS_RSA_SHA512};
    let good = Ok(Status::Good);
    for (algorithm, name, expected) in [
        (&PKCS_ECDSA_P384_SHA384, alg_id::ECDSA_SHA384, good),
        (&PKCS_RSA_SHA256, alg_id::RSA_PKCS1_SHA256, good),
        (&PKCS_RSA_SHA384, alg_id::RSA_PKCS1_SHA384, good),
        (&PKCS_RSA_SHA512, alg_id::RSA_PKCS1_SHA512, good),
        (&PKCS_ED25519, alg_id::ED25519, Err(Fault::Algorithm)),
    ] {
        let ca = Authority::with(KeyPair::generate_for(algorithm).expect("a key"));
        let question = Question::read(&ca.leaf(vec![responders(&[URL])]).key.cert).expect("a question");
        let answer = Answer { signature: name, ..Answer::good(&question, now()) };
        let verdict = judge(&answer.sign(ca.issuer.key(), &ca.der), &question, now());
        assert_eq!(verdict.map(|verdict| verdict.status), expected, "{algorithm:?}");
    }
}

#[test]
fn a_byte_less_or_more_is_no_response_and_no_flipped_bit_is_believed() {
    let (ca, _, question) = scene();
    let (certificate, key) = ca.delegate(|_| {});
    let answer = Answer { certificates: vec![certificate.clone()], ..Answer::good(&question, now()) };
    let whole = answer.sign(&key, &certificate);
    assert!(Response::parse(&whole).is_ok());
    for end in 0..whole.len() {
        assert!(Response::parse(&whole[..end]).is_err(), "{end}");
    }
    assert!(Response::parse(&[&whole[..], b"\0"].concat()).is_err());
    for at in 0..whole.len() {
        let mut bent = whole.clone();
        bent[at] ^= 0x40;
        if let Ok(verdict) = judge(&bent, &question, now()) {
            // What no signature covers may change, what is said may not.
            assert_eq!(verdict.status, Status::Good, "{at}");
            assert_eq!(verdict.until, answer.next_update.expect("set"), "{at}");
        }
    }
}

#[test]
fn a_staple_is_put_back_after_a_reload_renewed_in_time_and_gone_when_it_is_over() {
    let (ca, leaf, question) = scene();
    let (start, certs, mut board) = (now(), CertStore::new(), Board::default());
    let names = [pattern("a.test"), pattern("b.test")];
    let (leaf, print) = (Arc::new(leaf), |certs: &CertStore| certs.all()[0].1.facts.fingerprint);
    let publish = || certs.publish_many(names.iter().map(|name| (name.clone(), Arc::clone(&leaf))).collect());
    let stapled = || {
        let all: Vec<_> = names.iter().filter_map(|name| certs.of(name)?.key.ocsp.clone()).collect();
        assert!(all.is_empty() || all.len() == names.len(), "every name or none");
        all.first().cloned()
    };
    publish();
    board.look(&certs, start);
    let due = board.take_due(start, 4);
    assert_eq!(due, [(print(&certs), Arc::new(question.clone()))], "one leaf is one question");
    assert_eq!(board.take_due(start, 4), [], "it is being asked");
    assert_eq!(stapled(), None);

    let der = Bytes::from(Answer::good(&question, start).sign(ca.issuer.key(), &ca.der));
    let verdict = judge(&der, &question, start).expect("good");
    board.hear(&due[0].0, Ok((verdict, der.clone())), start);
    board.look(&certs, start);
    assert_eq!(stapled().as_deref(), Some(&der[..]));
    assert_eq!(board.next(start), start + Duration::minutes(30), "half of what is left");

    let changes = certs.changes();
    let before = *changes.borrow();
    board.look(&certs, start);
    assert_eq!(*changes.borrow(), before, "a look that finds nothing to do does nothing");
    publish();
    assert_eq!(stapled(), None, "a reload publishes what is in the files");
    board.look(&certs, start);
    assert_eq!(stapled().as_deref(), Some(&der[..]));
    assert_eq!(board.take_due(start, 4), [], "without asking again");
    let mut again = Board::default();
    again.look(&certs, start);
    assert_eq!(stapled().as_deref(), Some(&der[..]), "an actor that begins anew takes over what is there");

    // The responder is away: pauses grow, the staple stays while it counts.
    let mut at = start + Duration::minutes(30);
    for pause in [1, 2, 4, 8, 16] {
        let due = board.take_due(at, 4);
        assert_eq!(due.len(), 1, "{at}");
        board.hear(&due[0].0, Err("away".into()), at);
        board.look(&certs, at);
        if at < verdict.until {
            assert!(stapled().is_some(), "{at}");
        }
        assert_eq!(board.next(at), (at + Duration::minutes(pause)).min(verdict.until));
        at += Duration::minutes(pause);
    }
    board.look(&certs, verdict.until - Duration::SECOND);
    assert!(stapled().is_some());
    board.look(&certs, verdict.until);
    assert_eq!(stapled(), None);
    for failures in 6..40 {
        board.hear(&print(&certs), Err("away".into()), verdict.until);
        assert_eq!(board.next(verdict.until) - verdict.until, Duration::minutes(if failures == 6 { 32 } else { 60 }));
    }
}

#[test]
fn a_revoked_certificate_is_not_stapled_and_an_old_one_not_asked_about() {
    let (ca, leaf, question) = scene();
    let (start, certs, mut board) = (now(), CertStore::new(), Board::default());
    certs.publish(pattern("a.test"), Arc::clone(&leaf.key), leaf.facts.clone());
    board.look(&certs, start);
    let print = board.take_due(start, 4)[0].0;
    for (answer, is_stapled) in [
        (Answer::good(&question, start), true),
        (Answer::revoked(&question, start), false),
        (Answer::good(&question, start), true),
    ] {
        let der = Bytes::from(answer.sign(ca.issuer.key(), &ca.der));
        let verdict = judge(&der, &question, start).expect("signed");
        board.hear(&print, Ok((verdict, der)), start);
        board.look(&certs, start);
        assert_eq!(certs.of(&pattern("a.test")).expect("there").key.ocsp.is_some(), is_stapled);
        assert_eq!(board.0[&print].is_revoked, !is_stapled);
    }
    let facts = CertFacts { not_after: start + Duration::MINUTE, ..leaf.facts.clone() };
    let (certs, mut board) = (CertStore::new(), Board::default());
    certs.publish(pattern("a.test"), Arc::clone(&leaf.key), facts);
    board.look(&certs, start);
    assert_eq!(board.take_due(start + Duration::MINUTE, 4), []);
    assert_eq!(board.take_due(start, 4).len(), 1);
    certs.withdraw_except(&std::collections::HashSet::new());
    board.look(&certs, start);
    assert!(board.0.is_empty(), "what is not in force is forgotten");
}

#[test]
fn a_certificate_that_demands_a_staple_is_warned_of_once_a_day() {
    let ca = Authority::new();
    let start = now();
    for (extensions, troubles, expected) in [
        // No responder: known at once.
        (vec![features(&[5])], 0, [true, false, true]),
        (vec![features(&[5]), responders(&[URL])], 0, [false, false, false]),
        (vec![features(&[5]), responders(&[URL])], 1, [true, false, true]),
        (vec![responders(&[URL])], 1, [false, false, false]),
    ] {
        let leaf = ca.leaf(extensions);
        let mut entry = Entry::new("a.test", &leaf, start);
        for _ in 0..troubles {
            entry.fail("away".into(), start);
        }
        let days = [Duration::ZERO, Duration::hours(23), Duration::hours(24)];
        let warned = days.map(|later| {
            let before = entry.warned_at;
            entry.tell(start + later);
            before != entry.warned_at
        });
        assert_eq!(warned, expected);
    }
}

#[test]
fn at_most_so_many_are_asked_at_once() {
    let ca = Authority::new();
    let (certs, mut board, start) = (CertStore::new(), Board::default(), now());
    for number in 0..6 {
        let leaf = ca.leaf(vec![responders(&[URL])]);
        certs.publish(pattern(&format!("n{number}.test")), Arc::clone(&leaf.key), leaf.facts.clone());
    }
    board.look(&certs, start);
    let first = board.take_due(start, AT_ONCE);
    assert_eq!(first.len(), AT_ONCE);
    assert_eq!(board.take_due(start, 0), []);
    assert!(board.next(start) > start, "those who wait make no loop that spins");
    assert_eq!(board.take_due(start, AT_ONCE).len(), 2);
}

/// A responder that says what it is told to, and hands out the requests that it got.
async fn responder(mut answers: mpsc::UnboundedReceiver<Vec<u8>>) -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/ocsp", listener.local_addr().expect("bound"));
    let (heard, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(answer) = answers.recv().await {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = Vec::new();
            loop {
                let text = String::from_utf8_lossy(&request).into_owned();
                let length = text
                    .to_ascii_lowercase()
                    .split_once("content-length: ")
                    .and_then(|(_, rest)| rest.split("\r\n").next().and_then(|number| number.parse::<usize>().ok()));
                let head = request.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
                if let (Some(length), Some(head)) = (length, head)
                    && request.len() >= head + length
                {
                    break;
                }
                assert!(stream.read_buf(&mut request).await.expect("a request") > 0);
            }
            heard.send(String::from_utf8_lossy(&request).into_owned()).expect("somebody listens");
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
            stream.write_all(&[head.as_bytes(), &answer].concat()).await.expect("a client");
        }
    });
    (url, requests)
}

#[tokio::test]
async fn the_actor_asks_staples_and_puts_back() {
    let (answers, told) = mpsc::unbounded_channel();
    let (url, mut requests) = responder(told).await;
    let ca = Authority::new();
    let leaf = ca.leaf(vec![responders(&[&url])]);
    let question = Question::read(&leaf.key.cert).expect("a question");
    let der = Answer::good(&question, now()).sign(ca.issuer.key(), &ca.der);
    let certs = Arc::new(CertStore::new());
    let publish = || certs.publish(pattern("a.test"), Arc::clone(&leaf.key), leaf.facts.clone());
    let mut changes = certs.changes();
    let actor = tokio::spawn(watch(Arc::clone(&certs)));
    let bound = std::time::Duration::from_secs(20);
    let mut staple = async || {
        let found = || certs.of(&pattern("a.test")).and_then(|found| found.key.ocsp.clone());
        let stapled = changes.wait_for(|_| found().is_some());
        drop(tokio::time::timeout(bound, stapled).await.expect("in time").expect("the store lives"));
        found()
    };
    publish();
    answers.send(der.clone()).expect("the responder lives");
    assert_eq!(staple().await.as_ref(), Some(&der));
    let request = requests.recv().await.expect("it was asked");
    assert!(request.starts_with("POST /ocsp HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains("content-type: application/ocsp-request"), "{request}");
    // Should it ask again, it hears something else.
    let newer = Answer { by_key: true, ..Answer::good(&question, now()) };
    answers.send(newer.sign(ca.issuer.key(), &ca.der)).expect("the responder lives");
    publish();
    assert_eq!(staple().await.as_ref(), Some(&der), "what counts is put back without asking");
    actor.abort();
}
