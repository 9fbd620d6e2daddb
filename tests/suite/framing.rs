//! Framing and request heads that readers disagree about (RFC 9112; SECURITY.md 2; issue 2, "Bad input").
//!
//! The promise is one sentence: the upstream sees nothing, or exactly one well-formed request of ours.

use std::future::Future;
use std::path::{Path, PathBuf};

use crate::harness::{Answer, Edge, Seen, Upstream, Wire, WireHeaders, site, split_lines, wire_text};

#[path = "../corpus/h1.rs"]
mod h1_corpus;

/// An edge with cleartext sites for these hosts, so that a payload of raw bytes can name them.
async fn cleartext_edge(upstream: &Upstream, hosts: &[&str]) -> Edge {
    let sites: String =
        hosts.iter().map(|host| format!("[sites.{host:?}]\nupstream = \"{upstream}\"\ntls = \"off\"\n")).collect();
    // Short limits, so that the edge itself ends what a payload leaves open.
    let limits = "[listen]\nrequest_head_timeout = \"600ms\"\nkeep_alive_timeout = \"150ms\"\n\
        [defaults]\ntimeouts = { request_body = \"600ms\" }\n";
    Edge::start(&format!("{limits}{sites}")).await
}

/// Sends raw bytes on a connection of their own and returns all that came back until the edge closed it.
async fn throw(edge: &Edge, payload: &[u8]) -> String {
    throw_from(edge, payload).await.0
}

/// As `throw`, with the address that the bytes came from.
async fn throw_from(edge: &Edge, payload: &[u8]) -> (String, String) {
    let stream = edge.plain_tcp().await;
    let from = stream.local_addr().expect("a connected socket").to_string();
    let mut wire = Wire::new(stream);
    // The edge may refuse and close before it has taken everything.
    wire.try_send(payload).await.ok();
    (wire_text(&wire.rest().await), from)
}

/// Sends raw bytes and ends our side at once, as a client that leaves.
async fn throw_and_leave(edge: &Edge, payload: &[u8]) -> String {
    let mut wire = edge.plain().await;
    wire.try_send(payload).await.ok();
    wire.shutdown().await;
    wire_text(&wire.rest().await)
}

/// The final statuses in a run of responses.
fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.split("HTTP/1.1 ").skip(1);
    lines.filter_map(|rest| rest.get(..3)?.parse().ok()).filter(|status| *status >= 200).collect()
}

/// Every row of the table "accepted by hyper, so ours to judge" that is refused, and what hyper refuses.
#[tokio::test]
async fn ambiguous_heads_are_refused_and_the_connection_closed() {
    let upstream = Upstream::echo().await;
    let edge = cleartext_edge(&upstream, &["a.test", "b.test"]).await;
    let ok = "Host: a.test\r\n";
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("no Host", "GET / HTTP/1.1\r\n\r\n".into(), &[400]),
        ("Host twice, same", format!("GET / HTTP/1.1\r\n{ok}{ok}\r\n"), &[400]),
        ("Host twice, different", format!("GET / HTTP/1.1\r\n{ok}Host: b.test\r\n\r\n"), &[400]),
        ("a Host with blanks", "GET / HTTP/1.1\r\nHost: a b/<>@c\r\n\r\n".into(), &[400]),
        ("a list in Host", "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n".into(), &[400]),
        ("user information in Host", "GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n".into(), &[400]),
        ("an empty Host", "GET / HTTP/1.1\r\nHost: \r\n\r\n".into(), &[400]),
        ("a port that is none", "GET / HTTP/1.1\r\nHost: a.test:99999\r\n\r\n".into(), &[400]),
        ("a port that is a name", "GET / HTTP/1.1\r\nHost: a.test:http\r\n\r\n".into(), &[400]),
        ("an unknown Host", "GET / HTTP/1.1\r\nHost: c.test\r\n\r\n".into(), &[421]),
        ("localhost, which is no site", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), &[421]),
        ("127.0.0.1, which is no site", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".into(), &[421]),
        ("another absolute target", format!("GET http://evil.test/x HTTP/1.1\r\n{ok}\r\n"), &[400, 421]),
        ("a site's absolute target, another Host", format!("GET http://b.test/x HTTP/1.1\r\n{ok}\r\n"), &[400, 421]),
        ("user information in the target", format!("GET http://u:p@a.test/x HTTP/1.1\r\n{ok}\r\n"), &[400]),
        (
            "CL and TE",
            format!("POST / HTTP/1.1\r\n{ok}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            &[400],
        ),
        (
            "TE and CL",
            format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
            &[400],
        ),
        (
            "gzip, chunked",
            format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            &[501, 400],
        ),
        (
            "chunked, gzip",
            format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
            &[501, 400],
        ),
        ("identity", format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: identity\r\n\r\n"), &[501, 400]),
        (
            "chunked twice in one",
            format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "an empty coding",
            format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "Transfer-Encoding twice",
            format!("POST / HTTP/1.1\r\n{ok}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            &[400],
        ),
        ("TE in 1.0", format!("POST / HTTP/1.0\r\n{ok}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), &[400]),
        (
            "CL twice, different",
            format!("POST / HTTP/1.1\r\n{ok}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            &[400],
        ),
        ("CL twice, same", format!("POST / HTTP/1.1\r\n{ok}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"), &[400]),
        ("a CL list", format!("POST / HTTP/1.1\r\n{ok}Content-Length: 1, 1\r\n\r\na"), &[400]),
        ("CL with a sign", format!("POST / HTTP/1.1\r\n{ok}Content-Length: +1\r\n\r\na"), &[400]),
        ("CL in hex", format!("POST / HTTP/1.1\r\n{ok}Content-Length: 0x1\r\n\r\na"), &[400]),
        ("an empty CL", format!("POST / HTTP/1.1\r\n{ok}Content-Length:\r\n\r\n"), &[400]),
        ("CL too large", format!("POST / HTTP/1.1\r\n{ok}Content-Length: 99999999999999999999\r\n\r\n"), &[400, 413]),
        ("bare LF as every line end", "GET / HTTP/1.1\nHost: a.test\n\n".into(), &[400]),
        ("bare LF after one header", "GET / HTTP/1.1\r\nX: 1\nHost: a.test\r\n\r\n".into(), &[400]),
        ("bare LF after the request line", format!("GET / HTTP/1.1\n{ok}\r\n"), &[400]),
        ("bare CR in a value", format!("GET / HTTP/1.1\r\n{ok}X: a\rb\r\n\r\n"), &[400]),
        ("NUL in a value", format!("GET / HTTP/1.1\r\n{ok}X: a\0b\r\n\r\n"), &[400]),
        ("a folded line", format!("GET / HTTP/1.1\r\n{ok}X: a\r\n b\r\n\r\n"), &[400]),
        ("a blank before the first header", format!("GET / HTTP/1.1\r\n X: a\r\n{ok}\r\n"), &[400]),
        ("a blank before the colon", format!("GET / HTTP/1.1\r\n{ok}X : a\r\n\r\n"), &[400]),
        ("no colon", format!("GET / HTTP/1.1\r\n{ok}X\r\n\r\n"), &[400]),
        ("an empty name", format!("GET / HTTP/1.1\r\n{ok}: a\r\n\r\n"), &[400]),
        ("two blanks in the request line", format!("GET  / HTTP/1.1\r\n{ok}\r\n"), &[400]),
        ("a tab in the request line", format!("GET\t/ HTTP/1.1\r\n{ok}\r\n"), &[400]),
        ("HTTP/1.2", format!("GET / HTTP/1.2\r\n{ok}\r\n"), &[400, 505]),
        ("HTTP/2.0", format!("GET / HTTP/2.0\r\n{ok}\r\n"), &[400, 505]),
        ("no version", format!("GET /\r\n{ok}\r\n"), &[400, 505]),
        ("an asterisk for GET", format!("GET * HTTP/1.1\r\n{ok}\r\n"), &[400]),
        ("a target without a slash", format!("GET foo HTTP/1.1\r\n{ok}\r\n"), &[400]),
        ("quotes in the target", format!("GET /\"x\" HTTP/1.1\r\n{ok}\r\n"), &[400]),
        (
            "a Host with underscore twin",
            format!("GET / HTTP/1.1\r\n{ok}Content_Length: 5\r\nTransfer_Encoding: chunked\r\n\r\n"),
            &[200, 400],
        ),
    ];
    for (what, payload, expected) in cases {
        let answer = throw(&edge, payload.as_bytes()).await;
        let got = statuses(&answer);
        assert!(got.len() == 1 && expected.contains(&got[0]), "{what}: {got:?} instead of {expected:?}\n{answer}");
    }
    for seen in upstream.seen() {
        assert!(seen.fault.is_none() && !wire_text(&seen.head).contains('_'), "{:?}", wire_text(&seen.head));
    }
    assert!(upstream.seen().len() <= 1, "only the last of them may be served, without the names");
}

/// After a refusal nothing that follows is read as a request (SECURITY.md 4, 2).
#[tokio::test]
async fn nothing_after_a_refusal_is_a_request() {
    let upstream = Upstream::echo().await;
    let edge = cleartext_edge(&upstream, &["a.test"]).await;
    for refused in [
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: a.test\n\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nX\r\n0\r\n\r\n",
    ] {
        let payload = format!("{refused}GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let answer = throw(&edge, payload.as_bytes()).await;
        assert!(statuses(&answer).iter().all(|status| *status >= 400), "{refused:?}: {answer}");
    }
    assert!(upstream.seen().iter().all(|seen| !seen.target.contains("smuggled")));
}

/// A refusal that has not read the body closes, or reads it: its bytes are never the next request (CVE-2025-4366).
#[tokio::test]
async fn an_unread_body_is_never_the_next_request() {
    let upstream = Upstream::echo().await;
    let fragment = format!(
        "{}limits = {{ body = \"16B\" }}\ntls = \"off\"\n[[sites.\"a.test\".routes]]\npath = \"/fixed\"\nrespond = {{ status = 200, body = \"fixed\" }}\n",
        site("a.test", &upstream)
    );
    let edge = Edge::start(&fragment).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for target in ["/", "/fixed"] {
        let length = smuggled.len();
        let honest = "GET /honest HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        let payload =
            format!("POST {target} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{smuggled}{honest}");
        let answer = throw(&edge, payload.as_bytes()).await;
        // The refusal says that the connection closes: not even an honest request that follows is served.
        assert_eq!(statuses(&answer).len(), 1, "{answer}");
    }
    assert!(upstream.seen().is_empty());
}

/// SECURITY.md 2, chunk lines: each of these ends as an error, and never as a complete request upstream.
#[tokio::test]
async fn odd_chunk_lines_never_complete_a_request() {
    let upstream = Upstream::echo().await;
    let edge = cleartext_edge(&upstream, &["a.test"]).await;
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhelloXX0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r;a\r\nhello\r\n0\r\n\r\n",
        "5;a=\"x\n\"\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: 1\nY: 2\r\n\r\n",
        "5\r\nhello\r\n0\r\nX : 1\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: 1\r\n\r\n",
    ] {
        let payload = format!("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let answer = throw(&edge, payload.as_bytes()).await;
        assert!(statuses(&answer).iter().all(|status| *status >= 400), "{body:?}: {answer}");
    }
    // 4 KiB of extensions are an attack, a few are dropped.
    let many = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000));
    let payload = format!("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{many}");
    assert!(statuses(&throw(&edge, payload.as_bytes()).await).iter().all(|status| *status >= 400));
    assert!(upstream.seen().iter().all(|seen| !seen.is_complete), "one was completed");
    let payload = "POST /good HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d e\"\r\nhello\r\n0\r\n\r\n";
    assert_eq!(statuses(&throw(&edge, payload.as_bytes()).await), [200]);
    let seen = upstream.seen().into_iter().find(|seen| seen.target == "/good").expect("it was served");
    assert_eq!((seen.body.as_slice(), seen.fault, seen.is_complete), (&b"hello"[..], None, true));
}

/// RFC 9112 3.2.2: an absolute target that agrees with Host is served, in origin form.
#[tokio::test]
async fn an_absolute_target_becomes_origin_form() {
    let upstream = Upstream::echo().await;
    let edge = cleartext_edge(&upstream, &["a.test"]).await;
    let payload = "GET http://A.test/x?y HTTP/1.1\r\nHost: a.test\r\n\r\n";
    assert_eq!(statuses(&throw(&edge, payload.as_bytes()).await), [200]);
    let seen = upstream.only().await;
    assert_eq!(
        (seen.target.as_str(), seen.header("host").map(str::to_ascii_lowercase).as_deref()),
        ("/x?y", Some("a.test"))
    );
}

/// RFC 9110 4.2.3: the host is compared without regard to case, final dot or port.
#[tokio::test]
async fn a_host_is_found_in_every_spelling() {
    let upstream = Upstream::echo().await;
    let edge = cleartext_edge(&upstream, &["a.test"]).await;
    for host in ["A.TEST", "a.test.", "a.test:80", "a.Test:8443"] {
        let payload = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(statuses(&throw(&edge, payload.as_bytes()).await), [200], "{host}");
    }
}

/// Bytes above ASCII, and characters that some parsers dislike, pass byte for byte or not at all.
#[tokio::test]
async fn odd_targets_pass_unchanged_or_not_at_all() {
    let upstream = Upstream::echo().await;
    let edge = cleartext_edge(&upstream, &["a.test"]).await;
    for target in [
        "/|",
        "/^",
        "/{x}",
        "/[x]",
        "/%",
        "/%zz",
        "/\\x",
        "/caf\u{e9}",
        "//evil.test/x",
        "/a/../%2e%2e",
        "/#f",
        "/x\u{7f}",
    ] {
        let before = upstream.seen().len();
        let mut payload = b"GET ".to_vec();
        payload.extend(target.chars().map(|c| u8::try_from(u32::from(c)).unwrap()));
        payload.extend_from_slice(b" HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let status = statuses(&throw(&edge, &payload).await);
        let after = upstream.seen();
        match status[..] {
            [200] => {
                assert_eq!(after.len(), before + 1);
                let expected = target.split('#').next().unwrap();
                assert_eq!(after[before].target, expected, "changed on the way");
            }
            [400] => assert_eq!(after.len(), before, "{target}"),
            _ => panic!("{target}: {status:?}"),
        }
    }
}

/// Runs a judgement over many cases, some at a time, each group with an edge and an upstream of its own.
async fn in_groups<T: Send + 'static>(cases: Vec<T>, hosts: &'static [&'static str], judge: impl Judge<T>) {
    const GROUPS: usize = 6;
    let mut groups: Vec<Vec<T>> = (0..GROUPS).map(|_| Vec::new()).collect();
    for (index, case) in cases.into_iter().enumerate() {
        groups[index % GROUPS].push(case);
    }
    let mut running = tokio::task::JoinSet::new();
    for group in groups {
        let judge = judge.clone();
        running.spawn(async move {
            let upstream = Upstream::echo().await;
            let mut edge = cleartext_edge(&upstream, hosts).await;
            for case in group {
                judge.judge(&edge, &upstream, case).await;
            }
            // Everything that it had begun has reached the upstream when it has ended.
            assert!(edge.stop().await.success());
            check(&upstream.seen(), "after all");
        });
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// What `in_groups` does with one case.
trait Judge<T>: Clone + Send + Sync + 'static {
    fn judge(&self, edge: &Edge, upstream: &Upstream, case: T) -> impl Future<Output = ()> + Send;
}

/// Judges a case of our own corpus by what it expects.
#[derive(Clone)]
struct ByExpectation;

impl Judge<h1_corpus::Case> for ByExpectation {
    async fn judge(&self, edge: &Edge, upstream: &Upstream, case: h1_corpus::Case) {
        let before = upstream.seen().len();
        let (answer, from) = throw_from(edge, &case.raw).await;
        let (seen, got) = (&upstream.seen()[before..], statuses(&answer));
        check(seen, case.name);
        let whole = seen.iter().filter(|seen| seen.is_complete).count();
        assert_eq!(whole, case.requests, "{}: requests at the upstream; answered {got:?}", case.name);
        match case.refusal {
            Some((status, code)) => {
                assert_eq!(got.last(), Some(&status), "{}: {answer}", case.name);
                // Of the request, where one was read; else of the connection, whose reason names the code.
                let says = |text: &serde_json::Value| text.as_str().is_some_and(|text| text.contains(code));
                let wanted = |r: &serde_json::Value| r["peer"] == *from && (says(&r["code"]) || says(&r["why"]));
                edge.record_where(&format!("{} with {code}", case.name), wanted).await;
            }
            None => {
                assert!(got.len() == case.requests && got.iter().all(|status| *status < 400), "{}: {got:?}", case.name)
            }
        }
    }
}

/// The project's own corpus, through the real program.
#[tokio::test]
async fn the_corpus_of_the_head_gate_holds_for_the_program() {
    let cases = h1_corpus::cases();
    assert!(cases.len() >= 100, "only {} cases", cases.len());
    in_groups(cases, &["a.test"], ByExpectation).await;
}

/// Judges a payload of which only its bytes are known.
#[derive(Clone)]
struct ByStrictReading;

impl Judge<(String, Vec<u8>)> for ByStrictReading {
    async fn judge(&self, edge: &Edge, upstream: &Upstream, (name, payload): (String, Vec<u8>)) {
        let before = upstream.seen().len();
        let answer = throw(edge, &payload).await;
        let seen = &upstream.seen()[before..];
        // One that broke off may be seen late, while the next payload is thrown: only whole ones count.
        let whole = seen.iter().filter(|seen| seen.is_complete).count();
        let allowed = strict_requests(&payload).max(1);
        assert!(whole <= allowed, "{name}: {whole} requests, of {allowed} that a strict reader finds\n{answer}");
        check(seen, &name);
    }
}

/// Public findings about disagreeing servers and proxies, where they are present.
#[tokio::test]
async fn public_framing_discrepancies_do_not_pass() {
    let folder = std::env::var_os("TIDEGATE_CORPORA").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora"));
    let Ok(text) = std::fs::read_to_string(folder.join("framing-discrepancies.json")) else { return };
    let findings: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list of findings");
    let mut cases = Vec::new();
    for (index, finding) in findings.iter().enumerate() {
        let name = format!("{index}: {}", finding["title"].as_str().unwrap_or_default());
        let payload = unhex(finding["payload_hex"].as_str().expect("hexadecimal"));
        // Many name no host, which alone would refuse them: once more with one, so that the finding itself is judged.
        let end = payload.windows(2).position(|pair| pair == b"\r\n");
        if let Some(end) = end.filter(|_| !wire_text(&payload).to_ascii_lowercase().contains("host:")) {
            let with_host = [&payload[..end], b"\r\nHost: a", &payload[end..]].concat();
            cases.push((format!("{name} (with a host)"), with_host));
        }
        cases.push((name, payload));
    }
    const HOSTS: &[&str] = &[
        "a.test",
        "a",
        "whatever",
        "localhost",
        "fanout",
        "akamai.my-domain.cool",
        "server.my-domain.cool",
        "h2o.http-garden.us",
    ];
    in_groups(cases, HOSTS, ByStrictReading).await;
}

/// Whatever reached the upstream is ours: well formed, attributed, and not the attacker's second request.
fn check(seen: &[Seen], name: &str) {
    for request in seen {
        assert_eq!(request.fault, None, "{name}: {:?}", wire_text(&request.head));
        assert_eq!(request.headers.all("x-forwarded-for"), ["127.0.0.1"], "{name}");
        let bad = ["evil", "pwned", "bad_path", "smuggled"].iter().any(|word| request.target.contains(word));
        assert!(!bad, "{name}: {}", request.target);
    }
}

/// How many requests a reader finds that keeps to every rule of RFC 9112 and stops at the first fault.
fn strict_requests(payload: &[u8]) -> usize {
    let mut rest = payload;
    let mut count = 0;
    while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = &rest[..end + 2];
        let Ok(lines) = split_lines(head) else { break };
        let Ok(headers) = WireHeaders::parse(&head[lines[0].len() + 2..]) else { break };
        if wire_text(lines[0]).split(' ').count() != 3 {
            break;
        }
        count += 1;
        rest = &rest[end + 4..];
        match (headers.all("content-length")[..].first(), headers.has("transfer-encoding")) {
            (None, false) => {}
            (Some(length), false) => match length.parse::<usize>() {
                Ok(length) if length <= rest.len() => rest = &rest[length..],
                _ => break,
            },
            // Chunked: up to the end of the payload; what is behind the last chunk is found by its marker.
            (None, true) => match rest.windows(5).position(|window| window == b"0\r\n\r\n") {
                Some(at) => rest = &rest[at + 5..],
                None => break,
            },
            (Some(_), true) => break,
        }
    }
    count
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A payload that is cut at any byte never becomes a request that it was not.
#[tokio::test]
async fn a_request_cut_at_any_byte_is_no_request() {
    let upstream = Upstream::answering(|_| Answer::ok("", "ok")).await;
    let edge = Edge::start(&(site("a.test", &upstream) + "tls = \"off\"\n")).await;
    let whole = "POST /cut HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello";
    for end in 0..whole.len() {
        let answer = throw_and_leave(&edge, &whole.as_bytes()[..end]).await;
        assert!(!statuses(&answer).contains(&200), "cut at {end}: {answer}");
    }
    let mut slow: Wire = edge.plain().await;
    for byte in whole.bytes() {
        slow.send([byte]).await;
    }
    assert_eq!(slow.reply().await.status, 200, "and one byte at a time it is the same request");
    assert_eq!(upstream.seen().iter().filter(|seen| seen.is_complete).count(), 1);
}
