//! Handshakes of real rustls clients over streams in memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::HandshakeKind;
use rustls::client::ClientConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::testing::{Edge, by_session_id, host, old_hello, pattern, policy, site, table};
use super::*;
use crate::site::policy::{CertificateSource, ClientCert, TlsProfile};

/// An authority for clients, and a way to make clients of it.
struct Clients {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Clients {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let der = params.self_signed(&key).expect("a root").der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// The rule that accepts them.
    fn rule(&self, required: bool) -> TlsPolicy {
        let rule = ClientCert {
            ca_file: "clients.pem".into(),
            ca: Arc::new([self.der.clone()]),
            crl: None,
            required,
            header: None,
        };
        TlsPolicy { client_cert: Some(rule), ..policy() }
    }

    /// A client of the edge with a certificate.
    fn client(&self, edge: &Edge, name: &str) -> ClientConfig {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(edge.root()).expect("a root");
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![leaf.der().clone()], key)
            .expect("an identity")
    }
}

#[tokio::test]
async fn facts_say_what_was_agreed() {
    let edge = Edge::plain(&["a.test", "*.b.test"]);
    let mut client = edge.client(&[&TLS13, &TLS12]);
    client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let (server, _) = edge.meet(&client, "x.b.test").await;
    let facts = server.expect("a handshake").facts;
    assert_eq!((facts.version, facts.cipher, facts.group), ("1.3", "AES_128_GCM", Some("X25519MLKEM768")));
    assert_eq!((facts.alpn, facts.client_subject), (Alpn::Http2, None));
    assert_eq!((facts.sni, facts.site_host), (Some(host("x.b.test")), pattern("*.b.test")));

    let (server, _) = edge.meet(&edge.client(&[&TLS12]), "a.test").await;
    let facts = server.expect("a handshake").facts;
    assert_eq!((facts.version, facts.cipher, facts.alpn), ("1.2", "ECDHE_ECDSA_AES_128_GCM", Alpn::Http11));
}

#[tokio::test]
async fn profiles_hold() {
    let of = |profile| site("a.test", &TlsPolicy { profile, ..policy() }, CertificateSource::Local);
    let modern = Edge::new(UnknownSni::Reject, vec![of(TlsProfile::Modern)]);
    let (server, client) = modern.meet(&modern.client(&[&TLS12]), "a.test").await;
    assert!(client.is_err());
    let why = server.expect_err("refused").to_string();
    assert_eq!(why, "no common protocol (client offers TLS 1.2, TLS 1.3 is needed)");

    let nist = Edge::new(UnknownSni::Reject, vec![of(TlsProfile::Nist80052r2)]);
    let mut client = nist.client(&[&TLS13]);
    let facts = nist.meet(&client, "a.test").await.0.expect("a handshake").facts;
    assert_eq!(facts.group, Some("secp256r1"));
    let mut own = rustls::crypto::aws_lc_rs::default_provider();
    own.kx_groups.retain(|group| group.name() == rustls::NamedGroup::X25519);
    client = ClientConfig::builder_with_provider(Arc::new(own))
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let why = nist.meet(&client, "a.test").await.0.expect_err("refused").to_string();
    assert_eq!(why, "no common key exchange group");
}

#[tokio::test]
async fn sessions_resume_within_a_site_and_across_a_reload() {
    for versions in [[&TLS13], [&TLS12]] {
        let edge = Edge::plain(&["a.test", "b.test"]);
        for client in [edge.client(&versions), by_session_id(edge.client(&versions))] {
            let kind = async |name| edge.meet(&client, name).await.0.expect("a handshake").kind;
            assert_eq!(kind("a.test").await, HandshakeKind::Full);
            assert_eq!(kind("a.test").await, HandshakeKind::Resumed);
            // The same file read again: equal policies, other values.
            let again = table(
                edge.storage.path(),
                UnknownSni::Reject,
                vec![site("a.test", &policy(), CertificateSource::Local)],
            );
            edge.policies.prepare(&again).expect("policies");
            edge.policies.retain(&again);
            assert_eq!(kind("a.test").await, HandshakeKind::Resumed);
            assert_eq!(kind("b.test").await, HandshakeKind::Full);
        }
        assert_eq!(edge.policies.count(), 1);
    }
}

/// A client that stores and offers every session under one name, whatever site it is for: what an
/// attacker does who wants into another site with a session of this one.
fn confused(mut client: ClientConfig, sessions: &Arc<OneDrawer>) -> ClientConfig {
    client.resumption = rustls::client::Resumption::store(Arc::<OneDrawer>::clone(sessions));
    client
}

#[derive(Debug)]
struct OneDrawer(rustls::client::ClientSessionMemoryCache);

impl OneDrawer {
    fn key() -> rustls::pki_types::ServerName<'static> {
        rustls::pki_types::ServerName::try_from("drawer.test").expect("a name")
    }
}

impl rustls::client::ClientSessionStore for OneDrawer {
    fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, group: rustls::NamedGroup) {
        self.0.set_kx_hint(Self::key(), group);
    }
    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&Self::key())
    }
    fn set_tls12_session(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        value: rustls::client::Tls12ClientSessionValue,
    ) {
        self.0.set_tls12_session(Self::key(), value);
    }
    fn tls12_session(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::key())
    }
    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {
        self.0.remove_tls12_session(&Self::key());
    }
    fn insert_tls13_ticket(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        value: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.insert_tls13_ticket(Self::key(), value);
    }
    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::key())
    }
}

#[tokio::test]
async fn a_session_of_one_client_certificate_policy_is_worthless_under_another() {
    let clients = Clients::new("ours");
    for versions in [[&TLS13], [&TLS12]] {
        for is_by_id in [false, true] {
            // The same name first open, then closed by a reload: SNI is equal, so that only the
            // separation of policies can keep the session out.
            let mut edge = Edge::plain(&["a.test"]);
            let closed = table(
                edge.storage.path(),
                UnknownSni::Reject,
                vec![site("a.test", &clients.rule(true), CertificateSource::Local)],
            );
            edge.policies.prepare(&closed).expect("policies");
            let client = edge.client(&versions);
            let client = if is_by_id { by_session_id(client) } else { client };
            assert_eq!(edge.meet(&client, "a.test").await.0.expect("open").kind, HandshakeKind::Full);
            assert_eq!(edge.meet(&client, "a.test").await.0.expect("open").kind, HandshakeKind::Resumed);

            edge.table = closed;
            let (server, client) = edge.meet(&client, "a.test").await;
            assert!(client.is_err(), "no request can be made");
            let error = server.expect_err("no certificate");
            assert_eq!((error.kind(), error.sni()), ("client-cert", Some("a.test")));
            assert_eq!(error.to_string(), "client certificate: none was sent, and the site requires one");
        }
    }
}

#[tokio::test]
async fn a_session_of_one_site_is_not_resumed_under_the_name_of_another() {
    for versions in [[&TLS13], [&TLS12]] {
        let edge = Edge::plain(&["a.test", "b.test"]);
        let drawer = Arc::new(OneDrawer(rustls::client::ClientSessionMemoryCache::new(16)));
        let client = confused(edge.client(&versions), &drawer);
        assert_eq!(edge.meet(&client, "a.test").await.0.expect("a").kind, HandshakeKind::Full);
        assert_eq!(edge.meet(&client, "b.test").await.0.expect("b").kind, HandshakeKind::Full);
        // The drawer works: the same client resumes where it may.
        assert_eq!(edge.meet(&client, "b.test").await.0.expect("b").kind, HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn a_client_certificate_is_known_also_when_its_session_is_resumed() {
    let clients = Clients::new("ours");
    let edge = Edge::new(UnknownSni::Reject, vec![site("a.test", &clients.rule(true), CertificateSource::Local)]);
    let client = clients.client(&edge, "Ärger, Inc");
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let met = edge.meet(&client, "a.test").await.0.expect("a handshake");
        assert_eq!((met.kind, met.facts.client_subject.as_deref()), (kind, Some("CN=\\C3\\84rger\\, Inc")));
    }
    let stranger = Clients::new("theirs").client(&edge, "x");
    let error = edge.meet(&stranger, "a.test").await.0.expect_err("refused");
    assert_eq!(error.to_string(), "client certificate: it is not issued by an accepted authority");
    // Optional: no certificate is fine, a wrong one is not.
    let edge = Edge::new(UnknownSni::Reject, vec![site("a.test", &clients.rule(false), CertificateSource::Local)]);
    assert_eq!(edge.meet(&edge.client(&[&TLS13]), "a.test").await.0.expect("none is fine").facts.client_subject, None);
    assert!(edge.meet(&Clients::new("theirs").client(&edge, "x"), "a.test").await.0.is_err());
}

#[tokio::test]
async fn an_unknown_name_is_refused_with_its_alert_and_a_reason() {
    let edge = Edge::plain(&["claw.example.com"]);
    let (server, client) = edge.meet(&edge.client(&[&TLS13]), "old.example.com").await;
    let error = server.expect_err("refused");
    assert_eq!(error.to_string(), "no certificate for \"old.example.com\" (sites: claw.example.com)");
    assert_eq!((error.kind(), error.sni()), ("unknown-name", Some("old.example.com")));
    let alert = client.expect_err("refused").to_string();
    assert!(alert.contains("UnrecognisedName"), "{alert}");

    let many = Edge::plain(&["1.test", "2.test", "3.test", "4.test", "5.test", "6.test", "7.test"]);
    let why = many.meet(&many.client(&[&TLS13]), "8.test").await.0.expect_err("refused").to_string();
    assert_eq!(why, "no certificate for \"8.test\" (sites: 1.test, 2.test, 3.test, 4.test, 5.test and 2 more)");
}

#[tokio::test]
async fn a_site_of_another_listener_is_unknown() {
    let mut edge = Edge::plain(&["a.test"]);
    edge.listener = ListenerId(1);
    let why = edge.meet(&edge.client(&[&TLS13]), "a.test").await.0.expect_err("refused").to_string();
    assert_eq!(why, "no certificate for \"a.test\" (sites: none here)");
}

#[tokio::test]
async fn without_sni_the_local_address_names_the_site() {
    let sites = || ["a.test", "10.0.0.1"].iter().map(|host| site(host, &policy(), CertificateSource::Local)).collect();
    let mut edge = Edge::new(UnknownSni::Reject, sites());
    edge.local = Some("::ffff:10.0.0.1".parse().expect("an address"));
    let facts = edge.meet(&edge.client(&[&TLS13]), "10.0.0.1").await.0.expect("a handshake").facts;
    assert_eq!((facts.sni, facts.site_host), (None, pattern("10.0.0.1")));
    edge.local = Some("10.0.0.2".parse().expect("an address"));
    let why = edge.meet(&edge.client(&[&TLS13]), "10.0.0.2").await.0.expect_err("refused").to_string();
    assert_eq!(why, "the client named no site, and none is named 10.0.0.2 (sites: a.test, 10.0.0.1)");

    let edge = Edge::new(UnknownSni::Site(host("a.test")), sites());
    let mut client = edge.client(&[&TLS13]);
    client.enable_sni = false;
    let facts = edge.meet(&client, "a.test").await.0.expect("a handshake").facts;
    assert_eq!((facts.sni, facts.site_host), (None, pattern("a.test")));
}

#[tokio::test]
async fn a_missing_certificate_does_not_fall_to_a_wildcard() {
    let edge = Edge::plain(&["a.b.test", "*.b.test"]);
    edge.policies.certs().withdraw_except(&HashSet::from([pattern("*.b.test")]));
    let error = edge.meet(&edge.client(&[&TLS13]), "a.b.test").await.0.expect_err("refused");
    assert_eq!(error.to_string(), "site \"a.b.test\" has no certificate yet");
}

#[tokio::test]
async fn alpn_without_overlap_is_refused_in_words() {
    let edge = Edge::plain(&["a.test"]);
    let mut client = edge.client(&[&TLS13]);
    client.alpn_protocols = vec![b"acme-tls/1".to_vec(), b"\r\nx".to_vec()];
    let (server, client) = edge.meet(&client, "a.test").await;
    let why = server.expect_err("refused").to_string();
    assert_eq!(why, "no common ALPN protocol (client offers acme-tls/1, \\r\\nx; the site h2, http/1.1)");
    let alert = client.expect_err("refused").to_string();
    assert!(alert.contains("NoApplicationProtocol"), "{alert}");
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_is_named() {
    let edge = Edge::plain(&["a.test"]);
    let stranger = Edge::plain(&["a.test"]).client(&[&TLS13]);
    let why = edge.meet(&stranger, "a.test").await.0.expect_err("refused").to_string();
    assert_eq!(why, "the client does not accept our certificate (alert UnknownCA)");
}

/// What the edge says to raw bytes, and why it ended.
async fn say(edge: &Edge, bytes: &[u8]) -> (Vec<u8>, HandshakeError) {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let client = async {
        // The edge may end in the middle of it: that is what some tests are about.
        let _ = near.write_all(bytes).await;
        let _ = near.shutdown().await;
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.expect("the edge answers");
        answer
    };
    let (server, answer) = tokio::join!(edge.accept(far), client);
    (answer, server.map(|_| ()).expect_err("no handshake"))
}

#[tokio::test]
async fn bytes_that_are_not_tls_get_a_fitting_answer() {
    let edge = Edge::plain(&["a.test"]);
    let (answer, error) = say(&edge, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(error.to_string(), "the client spoke plain HTTP to a TLS listener");
    let answer = String::from_utf8(answer).expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains("this port speaks HTTPS"),
        "{answer}"
    );

    let (answer, error) = say(&edge, b"SSH-2.0-x\r\n").await;
    assert_eq!(error.to_string(), "the client did not speak TLS (first byte 0x53)");
    assert!(answer.is_empty());

    let (answer, error) = say(&edge, &old_hello()).await;
    assert_eq!(error.to_string(), "no common protocol (client offers TLS 1.0, TLS 1.2 or 1.3 is needed)");
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "protocol_version");

    for cut in [0, 1, 8] {
        let (_, error) = say(&edge, &old_hello()[..cut]).await;
        assert_eq!(error.to_string(), "the client closed before the handshake was finished");
    }
    let (_, error) = say(&edge, &[22, 3, 1, 0, 4, 9, 0, 0, 0]).await;
    assert_eq!(error.kind(), "protocol", "{error}");
    // A hello that says it has 64 KiB - 1 and never ends: cut off before it is all in memory.
    let mut endless = vec![22, 3, 1, 4, 4, 1, 0, 0xff, 0xff];
    endless.extend([0; 1024]);
    for _ in 0..99 {
        endless.extend([22, 3, 1, 4, 0]);
        endless.extend([0; 1024]);
    }
    let (_, error) = say(&edge, &endless).await;
    assert_eq!(error.kind(), "protocol", "{error}");
}

#[tokio::test]
async fn one_deadline_bounds_every_stage() {
    let edge = Edge::plain(&["a.test"]);
    for (sent, why) in [
        (&[][..], "the client sent nothing within the handshake timeout"),
        (&old_hello()[..8], "the handshake was not finished within its timeout"),
    ] {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(sent).await.expect("room");
        let deadline = Instant::now() + Duration::from_millis(20);
        let result = accept(far, &edge.policies, &edge.table, edge.listener, None, deadline).await;
        assert_eq!(result.map(|_| ()).expect_err("too slow").to_string(), why);
        assert!(Instant::now() >= deadline);
    }
    // After the hello: the same deadline, and the name is known.
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let name = rustls::pki_types::ServerName::try_from("a.test").expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(edge.client(&[&TLS13])), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    near.write_all(&hello).await.expect("room");
    // The deadline has passed already: what is there is read, then the wait ends.
    let result = accept(far, &edge.policies, &edge.table, edge.listener, None, Instant::now()).await;
    let error = result.map(|_| ()).expect_err("too slow");
    assert_eq!((error.kind(), error.sni()), ("timeout", Some("a.test")));
}

#[test]
fn a_broken_client_authority_is_a_fault_that_names_site_and_file() {
    let edge = Edge::plain(&["a.test"]);
    let rule = ClientCert {
        ca_file: "clients.pem".into(),
        ca: Arc::new([vec![1, 2, 3]]),
        crl: None,
        required: true,
        header: None,
    };
    let broken = TlsPolicy { client_cert: Some(rule), ..policy() };
    let sites = vec![site("b.test", &broken, CertificateSource::Local)];
    let error = edge.policies.prepare(&table(edge.storage.path(), UnknownSni::Reject, sites)).expect_err("a fault");
    assert!(
        error.to_string().starts_with("site \"b.test\": cannot accept clients by the authorities in \"clients.pem\"")
    );
    assert!(!error.help().is_empty());
    assert_eq!(edge.policies.count(), 1, "what was there stays");
}

/// A client as CAs are one: TLS-ALPN-01 (RFC 8737 3).
fn validator(edge: &Edge, protocols: &[&[u8]]) -> ClientConfig {
    let mut client = edge.client(&[&TLS13, &TLS12]);
    client.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    client
}

#[tokio::test]
async fn a_ca_is_shown_the_proof_and_nothing_else() {
    let edge = Edge::plain(&["a.test"]);
    let ca = crate::tls::testing::authority();
    let leaf = ca.leaf(&[pattern("a.test")]).expect("a leaf");
    let acme: [&[u8]; 1] = [proofs::ACME_TLS];

    let refused = edge.meet(&validator(&edge, &acme), "a.test").await;
    assert!(refused.1.is_err(), "no order runs");
    let error = refused.0.expect_err("ended");
    assert!(matches!(&error, HandshakeError::Validation { is_answered: false, .. }), "{error:?}");

    let posted = edge.policies.proofs().post_tls("a.test", Arc::clone(&leaf.key));
    // The proof is from another authority than the site's certificate: a client that takes it has seen it.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(crate::tls::testing::root_of(&ca)).expect("a root");
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![proofs::ACME_TLS.to_vec()];
    let (server, client) = edge.meet(&client, "a.test").await;
    let error = server.expect_err("such a connection ends with its handshake");
    assert!(matches!(&error, HandshakeError::Validation { is_answered: true, .. }), "{error:?}");
    // The certificate was believed; what failed is the byte that never came.
    assert_eq!(client.expect_err("closed").kind(), std::io::ErrorKind::UnexpectedEof);

    // Whoever offers anything else beside it is no CA, and gets the site.
    let both = edge.meet(&validator(&edge, &[proofs::ACME_TLS, b"h2"]), "a.test").await;
    assert_eq!(both.0.expect("a handshake").facts.alpn, Alpn::Http2);
    drop(posted);
}
