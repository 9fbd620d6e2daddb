//! `client_cert.crl`: certificates that were revoked (N-09), also after the edge has started, and in sessions that resume.

use std::path::Path;
use std::sync::Arc;

use crate::harness::{ClientTls, Edge, TestCa, Upstream, Wire, run_in, site};

/// One request on a connection of its own: its status, or 0 when there was no answer.
async fn ask(edge: &Edge, config: &Arc<rustls::ClientConfig>) -> u16 {
    ask_how(edge, config).await.0
}

/// The same, and whether the session was resumed.
async fn ask_how(edge: &Edge, config: &Arc<rustls::ClientConfig>) -> (u16, bool) {
    let Ok(stream) = edge.handshake("a.test", Arc::clone(config)).await else { return (0, false) };
    let is_resumed = stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let mut wire = Wire::new(stream);
    if wire.try_send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.is_err() {
        return (0, is_resumed);
    }
    let status = wire.try_reply_to("GET").await.map_or(0, |reply| reply.status);
    wire.rest().await;
    (status, is_resumed)
}

/// Puts a list there whole.
fn write(file: &Path, pem: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, pem).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Who is on the list is refused with the reason in the record; a new list is taken without a reload, and ends what could
/// be resumed; a broken one changes nothing.
#[tokio::test]
async fn a_revoked_certificate_is_refused_from_the_moment_of_its_list() {
    let upstream = Upstream::saying("in").await;
    let dir = tempfile::TempDir::new().unwrap();
    let (ca_path, crl_path) = (dir.path().join("ca.pem"), dir.path().join("crl.pem"));
    let ca = TestCa::new("clients");
    ca.write(&ca_path);
    let (alice, bob) = (ca.issue("alice.example.com"), ca.issue("bob.example.com"));
    let (alice_leaf, bob_leaf) = (alice.0[0].clone(), bob.0[0].clone());
    write(&crl_path, &ca.revoke(&[&bob_leaf], 7));
    let rule = format!("client_cert = {{ ca = {ca_path:?}, crl = {crl_path:?} }}\n");
    let edge = Edge::start(&format!("{}{rule}", site("a.test", &upstream))).await;
    let with = |identity| ClientTls { identity: Some(identity), ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let (alice, bob) = (with(alice), with(bob));
    assert_eq!(ask(&edge, &bob).await, 0);
    let record = edge.record_where("the revoked one", |record| record["ended"] == "tls").await;
    assert!(record["why"].as_str().unwrap().contains("it was revoked"), "{record}");
    assert_eq!((ask_how(&edge, &alice).await, ask_how(&edge, &alice).await), ((200, false), (200, true)));
    std::fs::write(&crl_path, "half a list").unwrap();
    edge.event("crl_broken").await;
    assert_eq!((ask(&edge, &alice).await, ask(&edge, &bob).await), (200, 0), "the old list stays");
    write(&crl_path, &ca.revoke(&[&alice_leaf], 7));
    edge.event("crl_replaced").await;
    assert_eq!((ask(&edge, &alice).await, ask(&edge, &bob).await), (0, 200), "no session outlives its certificate");
    assert!(edge.reload().await);
    assert_eq!((ask(&edge, &alice).await, ask(&edge, &bob).await), (0, 200));
}

/// A list that is old still holds. An authority without a list lets nobody in, and the record says why.
#[tokio::test]
async fn an_old_list_holds_and_a_missing_one_admits_nobody() {
    let upstream = Upstream::saying("in").await;
    let dir = tempfile::TempDir::new().unwrap();
    let (ca_path, crl_path) = (dir.path().join("ca.pem"), dir.path().join("crl.pem"));
    let (listed, unlisted) = (TestCa::new("listed"), TestCa::new("unlisted"));
    std::fs::write(&ca_path, format!("{}{}", listed.pem, unlisted.pem)).unwrap();
    let (alice, bob, carol) = (listed.issue("alice.test"), listed.issue("bob.test"), unlisted.issue("carol.test"));
    let bob_leaf = bob.0[0].clone();
    write(&crl_path, &listed.revoke(&[&bob_leaf], -1));
    let rule = format!("client_cert = {{ ca = {ca_path:?}, crl = {crl_path:?} }}\n");
    let edge = Edge::start(&format!("{}{rule}", site("a.test", &upstream))).await;
    let with = |identity| ClientTls { identity: Some(identity), ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let (alice, bob, carol) = (with(alice), with(bob), with(carol));
    assert_eq!((ask(&edge, &alice).await, ask(&edge, &bob).await, ask(&edge, &carol).await), (200, 0, 0));
    edge.record_where("the one whose authority has no list", |record| {
        record["why"].as_str().is_some_and(|why| why.contains("no list in \"client_cert.crl\""))
    })
    .await;
    let said = edge.stderr();
    assert!(said.contains("C142") && said.contains("C143"), "{said}");
}

/// A file without a list is a fault of the configuration.
#[test]
fn a_file_without_a_list_is_reported() {
    let dir = tempfile::TempDir::new().unwrap();
    let ca = TestCa::new("clients");
    ca.write(&dir.path().join("ca.pem"));
    std::fs::write(dir.path().join("crl.pem"), ca.revoke(&[], 7)).unwrap();
    for (crl, code, words) in [
        ("crl.pem", 0, "0 errors, 0 warnings"),
        ("ca.pem", 2, "it holds no \"BEGIN X509 CRL\""),
        ("none.pem", 2, "there is no such file"),
    ] {
        let config = format!(
            "[sites.\"a.internal\"]\nupstream = \"127.0.0.1:1\"\nclient_cert = {{ ca = \"ca.pem\", crl = \"{crl}\" }}\n"
        );
        std::fs::write(dir.path().join("tidegate.toml"), config).unwrap();
        let run = run_in(dir.path(), &["check"]);
        let all = format!("{}{}", run.stdout, run.stderr);
        assert!(run.code == Some(code) && all.contains(words), "{crl}: {all}");
    }
}
