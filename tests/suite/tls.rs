//! TLS: names, certificates, profiles, sessions, client certificates, the local CA, TLS upstreams.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    BOUND, ClientTls, Edge, SelfSigned, TestCa, Upstream, Wire, handshake_at, run_in, site, site_with, within,
};

/// M-09, N-29: a name that no site has gets no handshake, and the attempt leaves a record with the name.
#[tokio::test]
async fn an_unknown_name_is_refused_and_recorded() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let config = ClientTls::alpn(&["h2", "http/1.1"]).config(&edge);
    assert!(edge.handshake("old.example.com", config).await.is_err());
    let record = edge.record("connection").await;
    assert_eq!((&record["ended"], &record["sni"]), (&"tls".into(), &"old.example.com".into()), "{record}");
    assert!(record["why"].as_str().unwrap().contains("old.example.com"), "{record}");
    assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:") && record["ms"].is_number(), "{record}");
}

/// CONFIG.md 3: without SNI the site named by the local address is meant, if there is one.
#[tokio::test]
async fn without_sni_the_local_address_decides() {
    let upstream = Upstream::saying("by address").await;
    let without = ClientTls { without_sni: true, ..ClientTls::alpn(&["http/1.1"]) };
    let edge = Edge::start(&site("a.test", &upstream)).await;
    assert!(edge.handshake("a.test", without.config(&edge)).await.is_err());
    edge.record_where("a refused handshake", |record| record["ended"] == "tls").await;
    let edge = Edge::start(&(site("a.test", &upstream) + &site("127.0.0.1", &upstream))).await;
    let stream = edge.handshake("127.0.0.1", without.config(&edge)).await.expect("a certificate for the address");
    let mut wire = Wire::new(stream);
    wire.send("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert_eq!(wire.reply().await.text(), "by address");
}

/// Issue 2, 3: a Host that is not the SNI's site is 421, over HTTP/1.1 and HTTP/2, and never forwarded.
#[tokio::test]
async fn a_host_that_is_not_the_handshakes_is_421() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&(site("a.test", &upstream) + &site("b.test", &upstream))).await;
    for host in ["b.test", "c.test", "localhost", "127.0.0.1"] {
        let reply = edge.exchange("a.test", format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(reply.status, 421, "{host}");
        assert!(reply.is_by_edge());
        let reply = edge.h2("a.test").await.get(host, "/").await;
        assert_eq!(reply.status, 421, "{host} over HTTP/2");
    }
    let record = edge.record_where("the refusal", |record| record["status"] == 421).await;
    assert_eq!(record["by"], "edge");
    assert!(record["code"].as_str().unwrap().starts_with("E421"), "{record}");
    assert!(upstream.seen().is_empty());
}

/// RFC 9525 6.3: `*.name` matches one label; a wildcard site serves each of them with a certificate of its own.
#[tokio::test]
async fn a_wildcard_site_serves_one_label() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("*.w.test", &upstream)).await;
    for host in ["x.w.test", "y.w.test"] {
        assert_eq!(edge.get(host, "/").await.status, 200);
    }
    for host in ["w.test", "a.b.w.test"] {
        let config = ClientTls::alpn(&["http/1.1"]).config(&edge);
        assert!(edge.handshake(host, config).await.is_err(), "{host}");
    }
}

/// Issue 2, 3: the hybrid group is preferred, TLS 1.2 is served, and nothing below it exists.
#[tokio::test]
async fn the_intermediate_profile_is_modern_first() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let stream = edge.tls("a.test", &["http/1.1"]).await;
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    let mut wire = Wire::new(stream);
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    wire.reply().await;
    let record = edge.record("request").await;
    let tls = record["tls"].as_str().unwrap_or_default().to_owned();
    assert!(tls.starts_with("1.3 ") && tls.contains("X25519MLKEM768"), "N-22: {record}");
    let old = ClientTls { version: Some(&rustls::version::TLS12), ..ClientTls::alpn(&["h2"]) };
    let stream = edge.handshake("a.test", old.config(&edge)).await.expect("TLS 1.2");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

/// CONFIG.md 3: `modern` is TLS 1.3 only, `nist-800-52r2` has AES-GCM and NIST curves only (N-36).
#[tokio::test]
async fn profiles_restrict_what_is_negotiated() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&format!("[tls]\nprofile = \"modern\"\n{}", site("a.test", &upstream))).await;
    let old = ClientTls { version: Some(&rustls::version::TLS12), ..ClientTls::alpn(&["http/1.1"]) };
    assert!(edge.handshake("a.test", old.config(&edge)).await.is_err());
    edge.tls("a.test", &["http/1.1"]).await;
    let edge = Edge::start(&format!("[tls]\nprofile = \"nist-800-52r2\"\n{}", site("a.test", &upstream))).await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let client = ClientTls { version: Some(version), ..ClientTls::alpn(&["http/1.1"]) };
        let stream = edge.handshake("a.test", client.config(&edge)).await.expect("a common group");
        let session = stream.get_ref().1;
        let group = format!("{:?}", session.negotiated_key_exchange_group().unwrap().name());
        assert!(group.starts_with("secp"), "{group}");
        let suite = format!("{:?}", session.negotiated_cipher_suite().unwrap().suite());
        assert!(suite.contains("AES") && suite.contains("GCM"), "{suite}");
    }
}

/// ALPN without overlap fails the handshake (RFC 7301 3.2); without ALPN it is HTTP/1.1.
#[tokio::test]
async fn alpn_decides_the_protocol() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let config = ClientTls::alpn(&["ftp"]).config(&edge);
    assert!(edge.handshake("a.test", config).await.is_err());
    edge.record_where("the refused handshake", |record| record["ended"] == "tls").await;
    let mut wire = Wire::new(edge.tls("a.test", &[]).await);
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    let stream = edge.tls("a.test", &["http/1.1", "h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "our order of preference");
}

/// One exchange, after which TLS 1.3 tickets have arrived.
async fn use_once(stream: impl crate::harness::Io + 'static, host: &str) -> u16 {
    let mut wire = Wire::new(stream);
    if wire.try_send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await.is_err() {
        return 0;
    }
    wire.try_reply_to("GET").await.map_or(0, |reply| reply.status)
}

/// Issue 2, 3: sessions are resumed, also after a reload.
#[tokio::test]
async fn tickets_survive_a_reload() {
    let upstream = Upstream::echo().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let fragment = site("a.test", &upstream);
        let edge = Edge::start(&fragment).await;
        let config = ClientTls { version: Some(version), ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
        let first = edge.handshake("a.test", config.clone()).await.unwrap();
        assert_eq!(first.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        use_once(first, "a.test").await;
        assert!(edge.reload_with(&format!("{fragment}[sites.\"b.test\"]\nupstream = \"{upstream}\"\n")).await);
        // A ticket is used once: the connections may reach different workers, which share the keys.
        for _ in 0..4 {
            let again = edge.handshake("a.test", config.clone()).await.unwrap();
            assert_eq!(again.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
            assert!(again.get_ref().1.alpn_protocol() == Some(b"http/1.1"));
            assert_eq!(use_once(again, "a.test").await, 200);
        }
    }
}

/// A session store that offers any server the sessions of any other, as an attacker would.
#[derive(Debug)]
struct Promiscuous(ClientSessionMemoryCache);

impl Promiscuous {
    fn name() -> ServerName<'static> {
        ServerName::try_from("one.for.all").expect("a name")
    }
}

impl ClientSessionStore for Promiscuous {
    fn set_kx_hint(&self, _: ServerName<'static>, group: rustls::NamedGroup) {
        self.0.set_kx_hint(Self::name(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&Self::name())
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(Self::name(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::name())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&Self::name());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(Self::name(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::name())
    }
}

/// CVE-2025-23419: a session of an open site does not open one that asks for a certificate.
#[tokio::test]
async fn a_session_is_never_resumed_under_another_client_certificate_policy() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let ca = TestCa::new("clients");
    ca.write(&dir.path().join("ca.pem"));
    let ca_path = dir.path().join("ca.pem");
    let fragment = format!(
        "{}{}client_cert = {{ ca = {ca_path:?} }}\n",
        site("open.test", &upstream),
        site("mtls.test", &upstream)
    );
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let edge = Edge::start(&fragment).await;
        let client = ClientTls { version: Some(version), ..ClientTls::alpn(&["http/1.1"]) };
        let mut config = (*client.config(&edge)).clone();
        let store = Arc::new(Promiscuous(ClientSessionMemoryCache::new(32)));
        config.resumption = Resumption::store(store);
        let config = Arc::new(config);
        let open = edge.handshake("open.test", config.clone()).await.unwrap();
        assert_eq!(use_once(open, "open.test").await, 200);
        match edge.handshake("mtls.test", config.clone()).await {
            // TLS 1.3: the client is done before the server has judged its certificate.
            Ok(stream) => {
                assert_ne!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
                assert_eq!(use_once(stream, "mtls.test").await, 0, "{version:?}: no request without a certificate");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        // And a connection to the open site does not carry requests to the other.
        let reply = edge.exchange("open.test", "GET / HTTP/1.1\r\nHost: mtls.test\r\n\r\n").await;
        assert_eq!(reply.status, 421);
    }
    assert!(upstream.seen().iter().all(|seen| seen.header("host") == Some("open.test")));
}

/// CONFIG.md 3: `client_cert`: required, optional, and the subject passed upstream in a header of ours only.
#[tokio::test]
async fn client_certificates_are_asked_for_and_passed_on() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let (ca, stranger) = (TestCa::new("clients"), TestCa::new("strangers"));
    let ca_path = dir.path().join("ca.pem");
    ca.write(&ca_path);
    let fragment = format!(
        "{}client_cert = {{ ca = {ca_path:?}, header = \"X-Client-Subject\" }}\n{}client_cert = {{ ca = {ca_path:?}, required = false, header = \"X-Client-Subject\" }}\n{}",
        site("must.test", &upstream),
        site("may.test", &upstream),
        site("open.test", &upstream)
    );
    let edge = Edge::start(&fragment).await;
    let with = |identity| ClientTls { identity, ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let known = with(Some(ca.issue("alice.example.com")));
    for host in ["must.test", "may.test"] {
        let stream = edge.handshake(host, known.clone()).await.unwrap();
        let mut wire = Wire::new(stream);
        wire.send(format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nX-Client-Subject: CN=root\r\nX_Client_Subject: CN=root\r\n\r\n"
        ))
        .await;
        assert_eq!(wire.reply().await.status, 200);
    }
    for index in 0..2 {
        let seen = upstream.request(index).await;
        let subject = seen.header("x-client-subject").expect("the subject");
        assert!(subject.contains("alice.example.com") && !subject.contains("root"), "{subject}");
    }
    for refused in [with(None), with(Some(stranger.issue("mallory.example.com")))] {
        if let Ok(stream) = edge.handshake("must.test", refused).await {
            assert_eq!(use_once(stream, "must.test").await, 0);
        }
    }
    edge.record_where("a refused client", |record| record["ended"] == "tls" && record["sni"] == "must.test").await;
    // Without a certificate, and on a site that asks for none, a client's own copy of the header is removed.
    for host in ["may.test", "open.test"] {
        let before = upstream.seen().len();
        let stream = edge.handshake(host, with(None)).await.unwrap();
        let mut wire = Wire::new(stream);
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Client-Subject: CN=root\r\n\r\n")).await;
        assert_eq!(wire.reply().await.status, 200);
        assert!(!upstream.seen()[before].headers.has("x-client-subject"), "{host}");
    }
}

/// CONFIG.md 3: an extra listener serves only the sites that name it, and may ask for certificates for all of them.
#[tokio::test]
async fn an_extra_listener_serves_only_its_sites() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let ca = TestCa::new("clients");
    let ca_path = dir.path().join("ca.pem");
    ca.write(&ca_path);
    let fragment = format!(
        "[listen]\nextra = [{{ name = \"inner\", https = [\"127.0.0.1:0\"], client_cert = {{ ca = {ca_path:?} }} }}]\n{}listen = \"inner\"\n{}",
        site("inner.test", &upstream),
        site("outer.test", &upstream)
    );
    let edge = Edge::start(&fragment).await;
    let listeners = edge.listeners("https");
    assert_eq!(listeners.len(), 2, "{}", edge.stderr());
    let config = ClientTls { identity: Some(ca.issue("bob")), ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let mut served = Vec::new();
    for address in listeners {
        for host in ["inner.test", "outer.test"] {
            if let Ok(stream) = handshake_at(address, host, config.clone()).await
                && use_once(stream, host).await == 200
            {
                served.push((address, host));
            }
        }
    }
    assert_eq!(served.len(), 2, "{served:?}");
    assert_ne!(served[0].0, served[1].0, "each on its own listener");
    let without = ClientTls::alpn(&["http/1.1"]).config(&edge);
    let inner = served.iter().find(|(_, host)| *host == "inner.test").unwrap().0;
    if let Ok(stream) = handshake_at(inner, "inner.test", without).await {
        assert_eq!(use_once(stream, "inner.test").await, 0);
    }
}

/// The certificate that a new connection to the site gets.
async fn served(edge: &Edge, host: &str, roots: &[&SelfSigned]) -> Option<Vec<u8>> {
    let roots = roots.iter().map(|pair| pair.der.clone()).collect();
    let config = ClientTls { roots, ..ClientTls::alpn(&["http/1.1"]) }.config(edge);
    let stream = edge.handshake(host, config).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

/// Issue 2, 3: new certificate files are served without a reload, and open connections are not touched.
#[tokio::test]
async fn certificate_files_are_swapped_without_a_reload() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let (old, new) = (SelfSigned::new(&["a.test"]), SelfSigned::new(&["a.test"]));
    let certificate = old.write_pair(dir.path(), "site");
    let edge = Edge::start(&site_with("a.test", &upstream, &format!("certificate = {certificate}"))).await;
    let roots = [&old, &new];
    assert_eq!(served(&edge, "a.test", &roots).await.as_deref(), Some(&*old.der));
    let config = ClientTls { roots: vec![old.der.clone()], ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let mut open = Wire::new(edge.handshake("a.test", config).await.unwrap());
    // Written one after the other, as most tools do.
    new.write_cert(&dir.path().join("site.crt"));
    assert!(served(&edge, "a.test", &roots).await.is_some(), "half written: the old pair is still served");
    new.write_key(&dir.path().join("site.key"));
    within("the new certificate is served", async {
        while served(&edge, "a.test", &roots).await.as_deref() != Some(&*new.der) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    open.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(open.reply().await.status, 200);
}

/// Issue 2, 3: a file that is broken or does not match keeps the last good pair, across a reload that says so.
#[tokio::test]
async fn a_broken_certificate_file_keeps_the_last_good_pair() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::TempDir::new().unwrap();
    let (old, other) = (SelfSigned::new(&["a.test"]), SelfSigned::new(&["a.test"]));
    let certificate = old.write_pair(dir.path(), "site");
    let fragment = site_with("a.test", &upstream, &format!("certificate = {certificate}"));
    let edge = Edge::start(&fragment).await;
    other.write_key(&dir.path().join("site.key"));
    assert!(!edge.reload().await, "a pair that does not match is a fault of the new configuration");
    assert_eq!(served(&edge, "a.test", &[&old]).await.as_deref(), Some(&*old.der));
    std::fs::write(dir.path().join("site.crt"), "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    assert!(!edge.reload().await);
    assert_eq!(served(&edge, "a.test", &[&old]).await.as_deref(), Some(&*old.der));
}

/// Issue 2, 3; F-03: the local CA is made at first use, kept private, and used again after a restart.
#[tokio::test]
async fn the_local_ca_is_private_and_stays() {
    use std::os::unix::fs::PermissionsExt as _;
    let upstream = Upstream::echo().await;
    let storage = tempfile::TempDir::new().unwrap();
    let fragment = format!("storage = {:?}\n{}", storage.path().to_str().unwrap(), site("a.test", &upstream));
    let edge = Edge::start(&fragment).await;
    let leaf = |path: &Path| {
        let mut all = Vec::new();
        walk(path, &mut all);
        all
    };
    // The admin socket stands there too.
    let files: Vec<_> = leaf(storage.path()).into_iter().filter(|path| path.is_file()).collect();
    assert!(!files.is_empty());
    for file in &files {
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
        if text.contains("PRIVATE KEY") {
            assert_eq!(mode & 0o077, 0, "{file:?} is readable by others: {mode:o}");
        }
    }
    drop(edge);
    let before: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let edge = Edge::start(&fragment).await;
    for (file, bytes) in files.iter().zip(before) {
        if file.to_string_lossy().contains("root") || file.to_string_lossy().contains("ca.") {
            assert_eq!(std::fs::read(file).unwrap(), bytes, "{file:?} changed at a restart");
        }
    }
    drop(edge);
}

fn walk(path: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path(), into),
            false => into.push(entry.path()),
        }
    }
}

/// F-03: `tidegate trust --export` writes the root that clients need, and a client that has it connects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_root_can_be_exported() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let out = edge.dir().join("exported.pem");
    let run = run_in(edge.dir(), &["trust", "--export", out.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE"));
    let Some(curl) = program("curl") else { return };
    let port = edge.https_addr().port();
    for protocol in ["--http1.1", "--http2"] {
        let got = Command::new(&curl)
            .args(["-sS", protocol, "--max-time", "10", "--cacert", out.to_str().unwrap(), "-o", "/dev/null"])
            .args(["--resolve", &format!("a.test:{port}:127.0.0.1"), "-w", "%{http_version} %{http_code}"])
            .arg(format!("https://a.test:{port}/x"))
            .output()
            .unwrap();
        let version = if protocol == "--http2" { "2" } else { "1.1" };
        assert_eq!(
            String::from_utf8_lossy(&got.stdout),
            format!("{version} 200"),
            "{}",
            String::from_utf8_lossy(&got.stderr)
        );
    }
}

/// Issue 2, "must show": `openssl s_client` gets the whole chain, a ticket, and no renegotiation or compression.
#[tokio::test]
async fn openssl_connects() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let Some(openssl) = program("openssl") else { return };
    let root = edge.local_root_path().expect("the local CA");
    let address = edge.https_addr().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let output = Command::new(&openssl)
            .args([
                "s_client",
                "-connect",
                &address,
                "-servername",
                "a.test",
                "-verify_return_error",
                version,
                "-CAfile",
            ])
            .arg(&root)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("Verify return code: 0 (ok)") || text.contains("Verification: OK"), "{text}");
        assert!(text.contains("Compression: NONE"), "{text}");
    }
    for version in ["-tls1", "-tls1_1"] {
        let output = Command::new(&openssl)
            .args(["s_client", "-connect", &address, "-servername", "a.test", version, "-cipher", "ALL:@SECLEVEL=0"])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&output.stdout).contains("BEGIN CERTIFICATE"), "{version} is refused");
    }
}

/// An outside program, or `None` when it is missing; in CI it must be there (HOUSE.md B6).
fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{name} is missing; run tests/setup.sh");
    found
}

/// N-28: an upstream may be reached by TLS, verified by its own CA and name, with a certificate of ours.
#[tokio::test]
async fn a_tls_upstream_is_verified_and_sees_our_certificate() {
    let dir = tempfile::TempDir::new().unwrap();
    let (ca, clients) = (TestCa::new("upstreams"), TestCa::new("edges"));
    let path = |name: &str| dir.path().join(name);
    ca.write(&path("ca.pem"));
    clients.issue_files("edge.example.com", &path("edge.crt"), &path("edge.key"));
    let (chain, key) = ca.issue("inner.example.com");
    let mut roots = rustls::RootCertStore::empty();
    let client_root = rustls::pki_types::CertificateDer::from(pem_der(&clients.pem));
    roots.add(client_root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key.clone_key())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let mut buffer = vec![0; 4096];
            let length = tls.read(&mut buffer).await.unwrap_or(0);
            let name = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            if length > 0 && tls.write_all(answer.as_bytes()).await.is_ok() {
                tls.shutdown().await.ok();
            }
        }
    });
    let upstream = |name: &str| {
        format!(
            "[upstreams.u]\nservers = [\"https://{address}\"]\ntls = {{ ca = {:?}, cert = {:?}, key = {{ file = {:?} }}, server_name = {name:?} }}\n{}",
            path("ca.pem"),
            path("edge.crt"),
            path("edge.key"),
            site("a.test", "u")
        )
    };
    let edge = Edge::start(&upstream("inner.example.com")).await;
    let reply = edge.get("a.test", "/").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "inner.example.com"));
    let edge = Edge::start(&upstream("other.example.com")).await;
    let reply = edge.get("a.test", "/").await;
    assert_eq!(reply.status, 502, "a certificate for another name is no proof");
    assert!(reply.headers.get("proxy-status").unwrap().contains("tls"), "{:?}", reply.headers);
    serving.abort();
}

fn pem_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

/// M-09: every accepted connection that never got to a request leaves a record with its reason.
#[tokio::test]
async fn connections_without_a_request_are_recorded() {
    let upstream = Upstream::echo().await;
    let fragment = format!("[listen]\nhandshake_timeout = \"300ms\"\n{}", site("a.test", &upstream));
    let edge = Edge::start(&fragment).await;
    // Plain HTTP on the TLS port, and noise.
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"[..], b"\x00\x01\x02\x03 noise noise noise", b"SSH-2.0-x\r\n"]
    {
        let mut tcp = edge.tcp().await;
        let port = tcp.local_addr().unwrap().port();
        tcp.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        within("the edge closes", tcp.read_to_end(&mut answer)).await.ok();
        let mine = format!("127.0.0.1:{port}");
        let record = edge.record_where("this connection's", |record| record["peer"] == *mine).await;
        assert_eq!((&record["kind"], &record["ended"]), (&"connection".into(), &"tls".into()), "{record}");
        let why = record["why"].as_str().unwrap_or_default();
        assert!(!why.contains("timeout"), "what came was judged, not waited for: {record}");
        assert!(record["bytes_in"].as_u64().is_some_and(|bytes| bytes > 0), "{record}");
        assert!(record["why"].as_str().is_some_and(|why| !why.is_empty()), "{record}");
    }
    // Nothing at all until the deadline, and nothing at all before the client leaves.
    let mut silent = edge.tcp().await;
    let mine = silent.local_addr().unwrap().to_string();
    let mut answer = Vec::new();
    within("the edge closes a silent connection", silent.read_to_end(&mut answer)).await.ok();
    let record = edge.record_where("the silent connection's", |record| record["peer"] == *mine).await;
    assert!(record["why"].as_str().unwrap().contains("timeout"), "{record}");
    let leaving = edge.tcp().await;
    let mine = leaving.local_addr().unwrap().to_string();
    drop(leaving);
    edge.record_where("the record of one that left", |record| {
        record["peer"] == *mine && record["kind"] == "connection"
    })
    .await;
    // A handshake and then nothing.
    let stream = edge.tls("a.test", &["http/1.1"]).await;
    let mine = stream.get_ref().0.local_addr().unwrap().to_string();
    drop(stream);
    let record = edge.record_where("one without a request", |record| record["peer"] == *mine).await;
    assert_eq!((&record["kind"], &record["sni"]), (&"connection".into(), &"a.test".into()), "{record}");
    assert!(upstream.seen().is_empty());
}

/// SECURITY.md 2, "handshake stalls": the deadline is absolute, byte after byte.
#[tokio::test]
async fn a_slow_handshake_is_cut_at_its_deadline() {
    let upstream = Upstream::echo().await;
    let fragment = format!("[listen]\nhandshake_timeout = \"400ms\"\n{}", site("a.test", &upstream));
    let edge = Edge::start(&fragment).await;
    let mut tcp = edge.tcp().await;
    let started = std::time::Instant::now();
    // The head of a ClientHello of 512 bytes, then one byte at a time.
    tcp.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await.unwrap();
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(50));
    let mut byte = [0];
    loop {
        tokio::select! {
            _ = ticks.tick() => if tcp.write_all(&[0]).await.is_err() { break },
            read = tcp.read(&mut byte) => match read { Ok(0) | Err(_) => break, Ok(_) => {} },
        }
        assert!(started.elapsed() < BOUND, "the deadline moved with each byte");
    }
}

/// Issue 2, 3: an h2 client that lies about its age: 0-RTT is never offered.
#[tokio::test]
async fn early_data_is_never_offered() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut config = (*ClientTls::alpn(&["http/1.1"]).config(&edge)).clone();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let first = edge.handshake("a.test", config.clone()).await.unwrap();
    use_once(first, "a.test").await;
    let mut again = edge.handshake("a.test", config).await.unwrap();
    assert_eq!(again.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert!(again.get_mut().1.early_data().is_none());
}
