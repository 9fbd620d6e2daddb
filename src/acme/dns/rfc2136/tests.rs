//! Tests of signed updates: against a server of our own with the verification of hickory, and against BIND where it
//! is installed.

use std::net::SocketAddr;
use std::path::Path;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::TSigner;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm as Algorithm;

use crate::acme::dns::Dns;
use crate::acme::dns::resolver::{self, Resolver};
use crate::acme::dns::testing::{FakeDns, SOON, name, present, record, rule, secret};
use crate::site::acme::{DnsProvider, Rfc2136, TsigAlgorithm};

fn rfc2136(server: &FakeDns, key: &str, secret_text: &str) -> DnsProvider {
    DnsProvider::Rfc2136(Box::new(Rfc2136 {
        server: server.address,
        key_name: key.into(),
        algorithm: TsigAlgorithm::Sha384,
        secret: secret(secret_text),
    }))
}

fn signer(key: &str, secret_text: &str) -> TSigner {
    TSigner::new(secret_text.into(), Algorithm::HmacSha384, name(key), 300).expect("a key")
}

#[tokio::test]
async fn an_update_adds_and_removes_one_value() {
    let server = FakeDns::start().await;
    server.zone("example.test").zone("sub.example.test").txt("_acme-challenge.a.sub.example.test", "mine");
    server.state().key = Some(signer("tidegate", "a secret"));
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let rule = rule(rfc2136(&server, "tidegate", "a secret"), &[], SOON);
    let at = "_acme-challenge.a.sub.example.test";
    let one = present(&dns, &rule, "a.sub.example.test", "one").await.expect("added");
    let two = present(&dns, &rule, "a.sub.example.test", "two").await.expect("added");
    assert_eq!(server.values(at), ["mine", "one", "two"]);
    dns.propagated(&rule, &two).await.expect("it is there");
    dns.remove(&rule, one).await.expect("removed");
    assert_eq!(server.values(at), ["mine", "two"]);
    let zones: Vec<_> = server.state().asked.iter().filter(|asked| asked.3).map(|asked| asked.0.clone()).collect();
    assert!(zones.contains(&name("sub.example.test")), "the update is for the zone that holds the name: {zones:?}");
}

#[tokio::test]
async fn an_update_that_is_refused_says_by_what() {
    let server = FakeDns::start().await;
    server.zone("example.test");
    server.state().key = Some(signer("tidegate", "a secret"));
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let mut told = Vec::new();
    for (key, secret) in [("other", "a secret"), ("tidegate", "another")] {
        let rule = rule(rfc2136(&server, key, secret), &[], SOON);
        told.push(present(&dns, &rule, "example.test", "v").await.expect_err("refused").to_string());
    }
    let rule = rule(rfc2136(&server, "tidegate", "a secret"), &[], SOON);
    // Whoever says yes must prove to know the key.
    for other in [None, Some(signer("tidegate", "another"))] {
        server.state().signs_with = Some(other);
        told.push(present(&dns, &rule, "example.test", "v").await.expect_err("not believed").to_string());
    }
    server.state().signs_with = None;
    for code in [ResponseCode::Refused, ResponseCode::NotAuth, ResponseCode::ServFail] {
        // The zone is the question of an update, so that this fails for updates and for questions about it.
        server.state().broken = vec![(name("_acme-challenge.example.test"), code)];
        let record = record("_acme-challenge.example.test", "v");
        told.push(dns.remove(&rule, record).await.expect_err("refused").to_string());
    }
    server.state().broken = vec![(name("example.test"), ResponseCode::Refused)];
    told.push(dns.remove(&rule, record("_acme-challenge.example.test", "v")).await.expect_err("no").to_string());
    let at = server.address;
    let expected = [
        format!(
            "server {at} refuses a question about the zone (BADKEY): it does not know key \"other\" with this algorithm"
        ),
        format!(
            "server {at} refuses a question about the zone (BADSIG): its secret of key \"tidegate\" is another one"
        ),
        format!("server {at} says yes without a valid signature of the key, which is not believed"),
        format!("server {at} says yes without a valid signature of the key, which is not believed"),
        format!(
            "server {at} refuses a question about the zone (REFUSED): it has no zone for the name, or does not answer questions about it"
        ),
        format!(
            "server {at} refuses a question about the zone (NOTAUTH): it is not the primary of the zone, or does not take this key"
        ),
        format!("server {at} refuses a question about the zone (SERVFAIL): it gives no reason"),
        format!("server {at} refuses the update (REFUSED): it does not let key \"tidegate\" change this name"),
    ];
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!(*told, format!("dns provider \"rfc2136\": record \"_acme-challenge.example.test\": {expected}"));
        assert!(!told.contains("a secret"), "{told}");
    }
    assert_eq!(told.len(), expected.len());
    assert_eq!(server.values("_acme-challenge.example.test"), [""; 0]);
}

/// A real server with a zone and a key, where one is installed.
async fn named(folder: &Path, secret: &str) -> Option<(tokio::process::Child, SocketAddr)> {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let address = {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        port.local_addr().expect("bound")
    };
    let (folder_name, port) = (folder.display(), address.port());
    let zone = "$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n";
    std::fs::write(folder.join("zone"), zone).expect("written");
    let config = format!(
        "options {{ directory \"{folder_name}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
         pid-file none; session-keyfile none; recursion no; dnssec-validation no; }};\n\
         controls {{ }};\n\
         key \"tidegate\" {{ algorithm hmac-sha384; secret \"{secret}\"; }};\n\
         key \"reader\" {{ algorithm hmac-sha384; secret \"{secret}\"; }};\n\
         zone \"example.test\" {{ type primary; file \"zone\"; update-policy {{ grant tidegate zonesub TXT; }}; }};\n"
    );
    std::fs::write(folder.join("named.conf"), config).expect("written");
    let mut command = tokio::process::Command::new("named");
    // Debian installs it where only root looks.
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
    command.arg("-g").arg("-c").arg(folder.join("named.conf")).kill_on_drop(true);
    let mut child = command.stderr(std::process::Stdio::piped()).stdin(std::process::Stdio::null()).spawn().ok()?;
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut log = String::new();
    loop {
        match tokio::time::timeout(SOON, lines.next_line()).await.expect("named says something").expect("text") {
            Some(line) if line.ends_with(" running") => break,
            Some(line) => log.extend([line.as_str(), "\n"]),
            // The system's rules may keep it from a folder of a test.
            None if log.contains("permission denied") => return None,
            None => unreachable!("named ended:\n{log}"),
        }
    }
    // What it says later must not fill the pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Some((child, address))
}

#[tokio::test]
async fn bind_takes_our_updates_and_we_take_its_signatures() {
    let folder = tempfile::tempdir().expect("a folder");
    // "a secret of the test" in base64.
    let Some((_named, address)) = named(folder.path(), "YSBzZWNyZXQgb2YgdGhlIHRlc3Q=").await else { return };
    let provider = |key: &str, algorithm, text: &str| {
        let server = Rfc2136 { server: address, key_name: key.into(), algorithm, secret: secret(text) };
        rule(DnsProvider::Rfc2136(Box::new(server)), &[address], SOON)
    };
    let good = provider("tidegate", TsigAlgorithm::Sha384, "a secret of the test");
    let dns = Dns::for_test(Resolver::for_test(address));
    let one = present(&dns, &good, "a.example.test", "one").await.expect("added");
    let two = present(&dns, &good, "a.example.test", "two").await.expect("added");
    dns.propagated(&good, &one).await.expect("it is there");
    dns.propagated(&good, &two).await.expect("it is there");
    dns.remove(&good, one).await.expect("removed");
    let shown = resolver::shown(address, &name("_acme-challenge.a.example.test"), false).await;
    assert_eq!(shown.expect("an answer"), ["two"]);
    for (key, algorithm, secret, host_name, word) in [
        ("nobody", TsigAlgorithm::Sha384, "a secret of the test", "example.test", "BADKEY"),
        ("tidegate", TsigAlgorithm::Sha256, "a secret of the test", "example.test", "BADKEY"),
        ("tidegate", TsigAlgorithm::Sha384, "another secret", "example.test", "BADSIG"),
        ("reader", TsigAlgorithm::Sha384, "a secret of the test", "example.test", "the update (REFUSED)"),
    ] {
        let rule = provider(key, algorithm, secret);
        let error = present(&dns, &rule, host_name, "v").await.expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
    let record = record("_acme-challenge.example.org", "v");
    let error = dns.remove(&good, record).await.expect_err("another zone").to_string();
    assert!(error.contains("a question about the zone (REFUSED)"), "{error}");
}
