//! Tests of the resolver, of propagation and of providers, against servers on loopback. Those of `rfc2136` are
//! beside it.

use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::NS;
use hickory_proto::rr::{RData, Record as Rr, RecordType};
use tokio::net::UdpSocket;

use super::Dns;
use super::resolver::{self, Answer, Family, Resolver, ZoneServer};
use super::testing::{Call, FakeApi, FakeDns, SOON, host, name, present, record, rule, secret, txt};
use crate::site::acme::{AcmeDns, Cloudflare, DnsProvider, Program};

/// No program: for tests that write nothing.
fn nothing() -> DnsProvider {
    DnsProvider::Exec(Program { program: "/nonexistent/hook".into(), args: Vec::new() })
}

#[tokio::test]
async fn no_record_no_name_and_no_answer_are_told_apart() {
    let dns = FakeDns::start().await;
    dns.zone("example.test").ip("a.example.test", "192.0.2.1").cname("alias.example.test", "a.example.test");
    dns.state().broken.push((name("broken.example.test"), ResponseCode::ServFail));
    dns.state().silent.push(name("silent.example.test"));
    let resolver = Resolver::for_test(dns.address);
    let ip = Answer::Records(vec!["192.0.2.1".parse().expect("an address")]);
    for (at, family, expected) in [
        ("a.example.test", Family::V4, Ok(ip.clone())),
        ("alias.example.test", Family::V4, Ok(ip)),
        ("a.example.test", Family::V6, Ok(Answer::NoRecord)),
        ("b.example.test", Family::V4, Ok(Answer::NoName)),
        ("broken.example.test", Family::V4, Err("it answers SERVFAIL")),
        ("a.example.org", Family::V6, Err("it answers REFUSED")),
        ("silent.example.test", Family::V4, Err("no answer within 3 s")),
    ] {
        let found = resolver.addresses(&name(at), family).await.map_err(|error| error.to_string());
        let expected = expected
            .map_err(|why| format!("cannot look up {} of \"{at}\": {}: {why}", family.record_type(), dns.address));
        assert_eq!(found, expected, "{at}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_comes_over_tcp() {
    let dns = FakeDns::start().await;
    dns.zone("example.test");
    for number in 0..40 {
        dns.ip("many.example.test", &format!("192.0.2.{number}"));
    }
    let found = Resolver::for_test(dns.address).addresses(&name("many.example.test"), Family::V4).await;
    assert_eq!(found.expect("an answer").into_records().len(), 40);
    assert!(dns.state().asked.iter().any(|(.., is_tcp)| *is_tcp));
}

#[tokio::test]
async fn an_answer_to_another_question_is_not_taken() {
    let forger = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = forger.local_addr().expect("bound");
    let answers = async {
        let mut room = [0; 512];
        let (length, from) = forger.recv_from(&mut room).await.expect("a question");
        let mut message = Message::from_vec(&room[..length]).expect("a message");
        message.metadata.message_type = MessageType::Response;
        let mut forged = message.clone();
        forged.metadata.id = message.id.wrapping_add(1);
        forged.add_answer(Rr::from_rdata(name("a.example.test"), 60, txt("forged")));
        message.add_answer(Rr::from_rdata(name("a.example.test"), 60, txt("true")));
        for answer in [forged, message] {
            forger.send_to(&answer.to_vec().expect("an answer"), from).await.expect("sent");
        }
    };
    let a = name("a.example.test");
    let (found, ()) = futures_util::join!(resolver::shown(address, &a, false), answers);
    assert_eq!(found.expect("an answer"), ["true"]);
}

#[tokio::test]
async fn caa_records_are_those_of_the_nearest_name() {
    let dns = FakeDns::start().await;
    dns.zone("example.test").zone("test").ip("a.b.example.test", "192.0.2.1");
    dns.caa("test", "issue", "top.example").caa("example.test", "issue", "ca.example");
    dns.cname("alias.example.test", "other.example.test").caa("other.example.test", "issue", "alias.example");
    let resolver = Resolver::for_test(dns.address);
    for (at, expected) in [
        ("a.b.example.test", Some(("example.test", "ca.example"))),
        ("b.test", Some(("test", "top.example"))),
        ("alias.example.test", Some(("alias.example.test", "alias.example"))),
    ] {
        let found = resolver.caa(&name(at)).await.expect("an answer");
        let found = found.map(|caa| (caa.at, caa.records[0].value.clone()));
        assert_eq!(found, expected.map(|(at, value)| (name(at), value.into())), "{at}");
    }
    // A name above the deciding one does not matter; one below it does.
    dns.state().broken.push((name("test"), ResponseCode::ServFail));
    assert!(resolver.caa(&name("a.example.test")).await.is_ok());
    dns.state().broken.push((name("b.example.test"), ResponseCode::ServFail));
    let error = resolver.caa(&name("a.b.example.test")).await.expect_err("it decides").to_string();
    assert!(error.contains("CAA of \"b.example.test\"") && error.contains("SERVFAIL"), "{error}");
}

#[tokio::test]
async fn a_chain_of_aliases_is_followed_to_its_end_and_no_resolver_is_asked_for_it() {
    let dns = FakeDns::start().await;
    dns.zone("example.test").zone("proofs.test");
    dns.cname("_acme-challenge.a.example.test", "one.example.test").cname("one.example.test", "b.proofs.test");
    dns.cname("loop.example.test", "pool.example.test").cname("pool.example.test", "loop.example.test");
    let resolver = Resolver::for_test(dns.address);
    for given in [Vec::new(), vec![dns.address]] {
        dns.state().asked.clear();
        let (end, _) = resolver.end_of_chain(&name("_acme-challenge.a.example.test"), &given).await.expect("an end");
        assert_eq!(end, name("b.proofs.test"));
        // With recursion, a resolver would remember that the record is not there yet.
        let about = name("_acme-challenge.a.example.test");
        let is_recursive = |(at, _, recurse, _): &&(_, _, bool, _)| *at == about && *recurse;
        assert_eq!(dns.state().asked.iter().filter(is_recursive).count(), 0);
    }
    let error = resolver.end_of_chain(&name("loop.example.test"), &[]).await.expect_err("a loop").to_string();
    assert!(error.contains("the chain of aliases is longer than 10"), "{error}");
}

#[tokio::test]
async fn a_name_that_is_delegated_belongs_to_its_own_servers() {
    let dns = FakeDns::start().await;
    let cut = "_acme-challenge.example.test";
    dns.zone("example.test").ip("ns.example.test", "127.0.0.1").add(cut, RData::NS(NS(name("ns.example.test"))));
    dns.state().cuts.push(name(cut));
    let authority = Resolver::for_test(dns.address).authority(&name(cut)).await.expect("a zone");
    assert_eq!(authority.zone, Some(name(cut)));
    let server = ZoneServer { name: "ns.example.test".into(), addresses: vec![dns.address], is_given: false };
    assert_eq!(authority.servers, [server]);
}

#[tokio::test]
async fn a_record_has_propagated_when_the_last_server_shows_it() {
    let first = FakeDns::start().await;
    let second = FakeDns::start().await;
    let at = "_acme-challenge.example.test";
    first.zone("example.test").txt(at, "value").txt(at, "other");
    second.zone("example.test").txt(at, "other");
    second.state().late = Some((2, Rr::from_rdata(name(at), 60, txt("value"))));
    let dns = Dns::for_test(Resolver::for_test(first.address));
    let rule = rule(nothing(), &[first.address, second.address], SOON);
    dns.propagated(&rule, &record(at, "value")).await.expect("it is there in the end");
    assert!(second.state().asked.len() >= 3, "it was asked twice in vain");
}

#[tokio::test]
async fn a_server_that_does_not_show_a_record_is_named_with_what_it_shows() {
    let first = FakeDns::start().await;
    let second = FakeDns::start().await;
    let third = FakeDns::start().await;
    let at = "_acme-challenge.example.test";
    first.zone("example.test").txt(at, "value");
    second.zone("example.test").txt(at, "old");
    third.zone("example.org");
    let dns = Dns::for_test(Resolver::for_test(first.address));
    let servers = [first.address, second.address, third.address];
    let short = Duration::from_millis(400);
    let error = dns.propagated(&rule(nothing(), &servers, short), &record(at, "value")).await.expect_err("not there");
    assert_eq!(
        error.to_string(),
        format!(
            "dns provider \"exec\": record \"{at}\": not on all servers of the zone after 0 s: {} shows only \"old\"; \
             {} answers REFUSED",
            second.address, third.address
        )
    );
    assert!(error.help().contains("propagation"));
    // The zone's own servers, found by its NS records; one of them says nothing.
    first.ip("ns2.example.test", "127.0.0.1").add("example.test", RData::NS(NS(name("ns2.example.test"))));
    dns.propagated(&rule(nothing(), &[], SOON), &record(at, "value")).await.expect("by the zone's word");
    let error = dns.propagated(&rule(nothing(), &[], short), &record(at, "new")).await.expect_err("not there");
    let (one, two) = ("ns1.example.test shows only \"value\"", "ns2.example.test shows only \"value\"");
    assert!(error.to_string().ends_with(&format!("{one}; {two}")), "{error}");
}

#[tokio::test]
async fn a_silent_server_holds_nothing_up_for_ever() {
    let shows = FakeDns::start().await;
    let silent = FakeDns::start().await;
    let at = "_acme-challenge.example.test";
    shows.zone("example.test").txt(at, "value");
    silent.state().silent.push(name(at));
    let dns = Dns::for_test(Resolver::for_test(shows.address));
    let short = Duration::from_millis(300);
    let both = rule(nothing(), &[shows.address, silent.address], short);
    dns.propagated(&both, &record(at, "value")).await.expect("everybody who answers shows it");
    let alone = rule(nothing(), &[silent.address], short);
    let error = dns.propagated(&alone, &record(at, "value")).await.expect_err("nobody answers");
    assert!(error.to_string().contains("gives no answer"), "{error}");
}

/// A hook that keeps a list of values in a file, by value, as the documentation asks.
const HOOK: &str = r#"#!/bin/sh
set -e
log=$1
case $2 in
present) echo "$3 $4" >>"$log" ;;
cleanup) grep -vx -e "$3 $4" "$log" >"$log.new" || :; mv "$log.new" "$log" ;;
esac
"#;

fn script(folder: &Path, text: &str) -> Program {
    let path = folder.join("hook.sh");
    std::fs::write(&path, text).expect("written");
    // Through `sh`: a file that was just written may still be open in a sibling test's child ("text file busy").
    let args = [path.to_string_lossy(), folder.join("log").to_string_lossy()].map(|text| text.as_ref().into());
    Program { program: "sh".into(), args: args.to_vec() }
}

#[tokio::test]
async fn a_program_adds_and_removes_by_value_where_the_alias_ends() {
    let server = FakeDns::start().await;
    server.zone("example.test").zone("proofs.test").cname("_acme-challenge.example.test", "x.Proofs.test");
    let folder = tempfile::tempdir().expect("a folder");
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let rule = rule(DnsProvider::Exec(script(folder.path(), HOOK)), &[], SOON);
    let log = || std::fs::read_to_string(folder.path().join("log")).expect("a log");
    let one = present(&dns, &rule, "example.test", "one").await.expect("added");
    let two = present(&dns, &rule, "example.test", "two").await.expect("added");
    assert_eq!(one.fqdn(), "x.proofs.test.");
    assert_eq!(log(), "x.proofs.test. one\nx.proofs.test. two\n");
    dns.remove(&rule, one).await.expect("removed");
    assert_eq!(log(), "x.proofs.test. two\n");
    dns.remove(&rule, two).await.expect("removed");
    assert_eq!(log(), "");
}

#[tokio::test]
async fn a_record_that_may_be_there_is_removed_and_no_other() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let folder = tempfile::tempdir().expect("a folder");
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let log = || std::fs::read_to_string(folder.path().join("log")).expect("a log");
    let text = r#"echo "$2" >>"$1"; test "$2" = cleanup"#;
    let failing = rule(DnsProvider::Exec(script(folder.path(), text)), &[], SOON);
    let written = dns.locate(&failing, &host("example.test"), "one").await.expect("a place");
    let untouched = dns.locate(&failing, &host("example.test"), "two").await.expect("a place");
    dns.put(&failing, &written).await.expect_err("it fails after it wrote");
    dns.remove(&failing, untouched).await.expect("it was never there");
    assert_eq!(log(), "present\n");
    dns.remove(&failing, written).await.expect("removed");
    assert_eq!(log(), "present\ncleanup\n");
    // A program that does not start has written nothing.
    let absent = rule(nothing(), &[], SOON);
    let record = dns.locate(&absent, &host("example.test"), "one").await.expect("a place");
    dns.put(&absent, &record).await.expect_err("no program");
    dns.remove(&absent, record).await.expect("nothing to do");
}

#[tokio::test]
async fn an_alias_that_a_program_could_mistake_is_no_place_for_a_record() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let rule = rule(nothing(), &[], SOON);
    for (number, target) in
        ["-rf.example.test", "a.-b.example.test", "a$b.example.test", "a b.example.test"].into_iter().enumerate()
    {
        let at = format!("n{number}.example.test");
        server.cname(&format!("_acme-challenge.{at}"), target);
        let error = dns.locate(&rule, &host(&at), "v").await.expect_err(target);
        assert!(error.to_string().contains("which is no host name"), "{target}: {error}");
        assert!(error.help().contains("do not begin with `-`"), "{}", error.help());
    }
    server.cname("_acme-challenge.good.example.test", "_a-b-.example.test");
    let record = dns.locate(&rule, &host("good.example.test"), "v").await.expect("a place");
    assert_eq!(record.fqdn(), "_a-b-.example.test.");
}

/// Says to this test program that it was started by itself, without authorities.
#[cfg(target_os = "linux")]
const BARE: &str = "TIDEGATE_TEST_WITHOUT_AUTHORITIES";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_machine_without_authorities_needs_none_until_an_api_is_asked() {
    if std::env::var_os(BARE).is_none() {
        // What the system trusts is told by its environment, and that of a process cannot be changed safely.
        let folder = tempfile::tempdir().expect("a folder");
        let child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "acme::dns::tests::a_machine_without_authorities_needs_none_until_an_api_is_asked"])
            .env(BARE, "1")
            .env("SSL_CERT_FILE", folder.path().join("none"))
            .env("SSL_CERT_DIR", folder.path())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(SOON, child).await.expect("it ends").expect("started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let server = FakeDns::start().await;
    server.zone("example.test");
    let folder = tempfile::tempdir().expect("a folder");
    let dns =
        Dns { resolver: Resolver::for_test(server.address), ..Dns::new(&crate::site::acme::AcmePolicy::default()) };
    let by_program = rule(DnsProvider::Exec(script(folder.path(), HOOK)), &[], SOON);
    present(&dns, &by_program, "example.test", "one").await.expect("added");
    let by_api = rule(cloudflare("https://127.0.0.1:1"), &[], SOON);
    let error = present(&dns, &by_api, "example.test", "one").await.expect_err("nobody is trusted").to_string();
    assert!(error.contains("the client of DNS providers cannot start"), "{error}");
}

#[tokio::test]
async fn a_program_that_fails_says_why() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let folder = tempfile::tempdir().expect("a folder");
    let mut told = Vec::new();
    for text in ["echo no such zone >&2; echo try another >&2; exit 3", "yes >&2", "kill -9 $$"] {
        // `yes` ends by SIGPIPE when nobody reads: what it says is read to the end and kept up to 1 KiB.
        let text = text.replace("yes >&2", "yes | head -c 300000 >&2; exit 1");
        let rule = rule(DnsProvider::Exec(script(folder.path(), &text)), &[], SOON);
        told.push(present(&dns, &rule, "example.test", "v").await.expect_err("it fails").to_string());
    }
    let start = "dns provider \"exec\": record \"_acme-challenge.example.test\": \"sh\" ";
    assert_eq!(told[0], format!("{start}ended with status 3: no such zone | try another"));
    assert_eq!(told[1], format!("{start}ended with status 1: {}", ["y"; 512].join(" | ")));
    assert_eq!(told[2], format!("{start}was ended by signal 9"));
    let error = present(&dns, &rule(nothing(), &[], SOON), "example.test", "v").await.expect_err("no program");
    assert!(error.to_string().contains("cannot start \"/nonexistent/hook\": No such file"), "{error}");
}

#[tokio::test]
async fn acme_dns_needs_a_cname_and_gets_the_value() {
    let server = FakeDns::start().await;
    server.zone("example.test").zone("auth.test");
    let api = FakeApi::start(|call| match call.body.contains("\"bad\"") {
        true => (401, r#"{"error":"forbidden"}"#.into()),
        false => (200, r#"{"txt":"x"}"#.into()),
    })
    .await;
    let account = AcmeDns {
        url: format!("{}/", api.url).into(),
        username: "user".into(),
        password: secret("hidden"),
        subdomain: "d420c923".into(),
    };
    let rule = rule(DnsProvider::AcmeDns(Box::new(account)), &[], SOON);
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let error = present(&dns, &rule, "a.example.test", "value").await.expect_err("no CNAME");
    assert!(error.to_string().contains("it is no CNAME"), "{error}");
    assert!(error.help().ends_with("_acme-challenge.a.example.test. CNAME d420c923.127.0.0.1."), "{}", error.help());
    server.cname("_acme-challenge.b.example.test", "other.auth.test");
    let error = present(&dns, &rule, "b.example.test", "value").await.expect_err("another account's");
    assert!(error.to_string().contains("a CNAME to \"other.auth.test\", which is not of this account"), "{error}");
    assert_eq!(api.lines(), [""; 0]);

    server.cname("_acme-challenge.c.example.test", "d420c923.auth.test");
    let record = present(&dns, &rule, "c.example.test", "value").await.expect("set");
    assert_eq!(record.text(), "d420c923.auth.test");
    assert_eq!(api.lines(), ["POST /update"]);
    {
        let calls = api.calls();
        assert!(calls[0].head.contains("x-api-user: user\r\n") && calls[0].head.contains("x-api-key: hidden\r\n"));
        assert_eq!(calls[0].body, r#"{"subdomain":"d420c923","txt":"value"}"#);
    }
    let error = present(&dns, &rule, "c.example.test", "bad").await.expect_err("refused").to_string();
    assert!(error.ends_with("the acme-dns server answers 401 Unauthorized: \"forbidden\""), "{error}");
    dns.remove(&rule, record).await.expect("nothing to do");
    assert_eq!(api.lines().len(), 2);
}

fn cloudflare(url: &str) -> DnsProvider {
    DnsProvider::Cloudflare(Box::new(Cloudflare { url: format!("{url}/v4").into(), token: secret("hidden") }))
}

#[tokio::test]
async fn cloudflare_adds_a_record_and_removes_it_by_its_identifier() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let api = FakeApi::start(|call: &Call| match call.line.as_str() {
        "GET /v4/zones?name=example.test" => (200, r#"{"success":true,"errors":[],"result":[{"id":"z1"}]}"#.into()),
        "POST /v4/zones/z1/dns_records" if call.body.contains("again") => {
            (400, r#"{"success":false,"errors":[{"code":81058,"message":"identical"}],"result":null}"#.into())
        }
        "POST /v4/zones/z1/dns_records" => (200, r#"{"success":true,"result":{"id":"r1"}}"#.into()),
        "GET /v4/zones/z1/dns_records?type=TXT&name=_acme-challenge.a.example.test" => (
            200,
            r#"{"success":true,"result":[{"id":"r0","content":"\"x\""},{"id":"r2","content":"\"again\""}]}"#.into(),
        ),
        "DELETE /v4/zones/z1/dns_records/r1" => (200, r#"{"success":true,"result":{"id":"r1"}}"#.into()),
        "DELETE /v4/zones/z1/dns_records/r2" => {
            (404, r#"{"success":false,"errors":[{"code":81044,"message":"gone"}]}"#.into())
        }
        _ => (200, r#"{"success":true,"errors":[],"result":[]}"#.into()),
    })
    .await;
    let rule = rule(cloudflare(&api.url), &[], SOON);
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let record = present(&dns, &rule, "a.example.test", "value").await.expect("added");
    {
        let calls = api.calls();
        let add = calls.last().expect("calls");
        assert_eq!(
            add.body,
            r#"{"type":"TXT","name":"_acme-challenge.a.example.test","content":"\"value\"","ttl":60}"#
        );
        assert!(calls.iter().all(|call| call.head.contains("authorization: Bearer hidden\r\n")));
    }
    dns.remove(&rule, record).await.expect("removed");
    // One that a run left behind is taken over, and one that is gone is removed.
    let record = present(&dns, &rule, "a.example.test", "again").await.expect("taken over");
    dns.remove(&rule, record).await.expect("removed");
    assert_eq!(
        api.lines(),
        [
            "GET /v4/zones?name=_acme-challenge.a.example.test",
            "GET /v4/zones?name=a.example.test",
            "GET /v4/zones?name=example.test",
            "POST /v4/zones/z1/dns_records",
            "DELETE /v4/zones/z1/dns_records/r1",
            "GET /v4/zones?name=_acme-challenge.a.example.test",
            "GET /v4/zones?name=a.example.test",
            "GET /v4/zones?name=example.test",
            "POST /v4/zones/z1/dns_records",
            "GET /v4/zones/z1/dns_records?type=TXT&name=_acme-challenge.a.example.test",
            "DELETE /v4/zones/z1/dns_records/r2",
        ]
    );
}

#[tokio::test]
async fn cloudflare_is_searched_for_a_record_whose_addition_brought_no_answer() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let api = FakeApi::start(|call: &Call| match call.line.split_once('?').map_or(&*call.line, |(line, _)| line) {
        "GET /v4/zones" => (200, r#"{"success":true,"result":[{"id":"z1"}]}"#.into()),
        "GET /v4/zones/z1/dns_records" if call.line.contains("=_acme-challenge.a.") => {
            (200, r#"{"success":true,"result":[{"id":"r0","content":"x"},{"id":"r1","content":"\"value\""}]}"#.into())
        }
        "GET /v4/zones/z1/dns_records" => (200, r#"{"success":true,"result":[]}"#.into()),
        "DELETE /v4/zones/z1/dns_records/r1" => (200, r#"{"success":true,"result":{"id":"r1"}}"#.into()),
        _ => (502, "<html>".into()),
    })
    .await;
    let rule = rule(cloudflare(&api.url), &[], SOON);
    let dns = Dns::for_test(Resolver::for_test(server.address));
    for (at, last) in
        [("a.example.test", "DELETE /v4/zones/z1/dns_records/r1"), ("b.example.test", "GET /v4/zones/z1/")]
    {
        let record = dns.locate(&rule, &host(at), "value").await.expect("a place");
        dns.put(&rule, &record).await.expect_err("nobody knows");
        dns.remove(&rule, record).await.expect("it is not there any more");
        assert!(api.lines().last().is_some_and(|line| line.starts_with(last)), "{:?}", api.lines());
    }
}

#[tokio::test]
async fn what_cloudflare_has_against_it_is_said_without_the_token() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let dns = Dns::for_test(Resolver::for_test(server.address));
    for (status, body, expected) in [
        (
            403,
            r#"{"success":false,"errors":[{"code":9109,"message":"Invalid access token"}]}"#,
            "the API refuses the list of zones with status 403: \"Invalid access token\" (code 9109)",
        ),
        (502, "<html>", "the API refuses the list of zones with status 502: no reason"),
        (200, "<html>", "the answer of the API cannot be read"),
        (200, r#"{"success":true,"result":[]}"#, "the token sees no zone that holds the name"),
    ] {
        let api = FakeApi::start(move |_| (status, body.to_owned())).await;
        let rule = rule(cloudflare(&api.url), &[], SOON);
        let error = present(&dns, &rule, "example.test", "value").await.expect_err("refused");
        let text = error.to_string();
        assert!(text.ends_with(expected), "{text}");
        assert!(!format!("{text} {error:?} {rule:?} {}", error.help()).contains("hidden"), "{error:?}");
    }
}

#[tokio::test]
async fn a_record_type_other_than_txt_is_never_asked_for_with_recursion_where_a_proof_belongs() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    let folder = tempfile::tempdir().expect("a folder");
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let rule = rule(DnsProvider::Exec(script(folder.path(), HOOK)), &[], Duration::from_millis(100));
    let record = present(&dns, &rule, "example.test", "one").await.expect("added");
    dns.propagated(&rule, &record).await.expect_err("the hook only writes a file");
    let at = name("_acme-challenge.example.test");
    let asked: Vec<(RecordType, bool)> =
        server.state().asked.iter().filter(|asked| asked.0 == at).map(|asked| (asked.1, asked.2)).collect();
    assert!(asked.contains(&(RecordType::TXT, false)), "{asked:?}");
    assert!(asked.iter().all(|(_, recurse)| !recurse), "{asked:?}");
}
