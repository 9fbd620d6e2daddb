//! OCSP stapling: the edge asks a responder that openssl answers for, and `openssl s_client` sees what is stapled.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::harness::{Edge, Upstream, site_with, within};

const SERIAL: [u8; 4] = [0x5e, 1, 2, 3];

/// N-35: what a responder says of a certificate from files is stapled, asked for once, and survives a reload; TLS 1.2 too.
#[tokio::test]
async fn the_answer_of_a_responder_is_stapled() {
    let Some(ca) = Ca::start("V\t491231235959Z\t\t5E010203\tunknown\t/CN=a.test\n").await else { return };
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, &format!("certificate = {}", ca.certificate()))).await;
    let told = edge.event("stapled").await;
    assert_eq!((&told["site"], told["until"].is_string()), (&"a.test".into(), true), "{told}");
    for version in ["-tls1_3", "-tls1_2"] {
        let seen = ca.look(&edge, version).await;
        assert!(seen.contains("OCSP Response Status: successful (0x0)"), "{seen}");
        assert!(seen.contains("Cert Status: good"), "{seen}");
        assert!(seen.contains("Verify return code: 0 (ok)") || seen.contains("Verification: OK"), "{seen}");
    }
    assert!(edge.reload().await);
    within("the staple is put back", async { while !ca.look(&edge, "-tls1_3").await.contains("Cert Status: good") {} })
        .await;
    assert_eq!(ca.asked.load(Ordering::SeqCst), 1, "an answer that counts is not asked for again");
}

/// N-35: a certificate that its CA has revoked is said to be so, loudly, and goes without a staple.
#[tokio::test]
async fn a_revocation_is_told_and_not_stapled() {
    let line = "R\t491231235959Z\t250101000000Z,keyCompromise\t5E010203\tunknown\t/CN=a.test\n";
    let Some(ca) = Ca::start(line).await else { return };
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, &format!("certificate = {}", ca.certificate()))).await;
    let told = edge.event("certificate_revoked").await;
    assert_eq!((&told["level"], &told["since"]), (&"error".into(), &"2025-01-01T00:00:00Z".into()), "{told}");
    assert!(told["help"].as_str().unwrap().contains("tidegate certs renew"), "{told}");
    let seen = ca.look(&edge, "-tls1_3").await;
    assert!(seen.contains("OCSP response: no response sent"), "{seen}");
}

/// An authority, a leaf of it for `a.test`, and a responder at the address that the leaf names.
struct Ca {
    dir: TempDir,
    openssl: PathBuf,
    asked: Arc<AtomicUsize>,
}

impl Ca {
    /// `index` is openssl's list of what was issued. `None` without openssl.
    async fn start(index: &str) -> Option<Self> {
        let openssl = program("openssl")?;
        let dir = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        make_files(dir.path(), &format!("http://{}/ocsp", listener.local_addr().unwrap()));
        std::fs::write(dir.path().join("index.txt"), index).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        tokio::spawn(serve(listener, openssl.clone(), dir.path().to_owned(), asked.clone()));
        Some(Self { dir, openssl, asked })
    }

    /// The value of `certificate`.
    fn certificate(&self) -> String {
        let path = |name: &str| self.dir.path().join(name);
        format!("{{ cert = {:?}, key = {{ file = {:?} }} }}", path("chain.pem"), path("leaf.key"))
    }

    /// What a client that asks for a staple sees.
    async fn look(&self, edge: &Edge, version: &str) -> String {
        let mut command = Command::new(&self.openssl);
        command.args([
            "s_client",
            "-connect",
            &edge.https_addr().to_string(),
            "-servername",
            "a.test",
            "-status",
            version,
        ]);
        command.arg("-CAfile").arg(self.dir.path().join("ca.pem")).stdin(Stdio::null());
        let run = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = within("openssl has looked", run).await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Answers requests with what openssl makes of them.
async fn serve(listener: TcpListener, openssl: PathBuf, dir: PathBuf, asked: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(async |request: Request<Incoming>| {
            assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/ocsp"));
            assert_eq!(request.headers()["content-type"], "application/ocsp-request");
            let number = asked.fetch_add(1, Ordering::SeqCst);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let (question, answer) = (dir.join(format!("{number}.req")), dir.join(format!("{number}.resp")));
            std::fs::write(&question, &body).unwrap();
            let mut command = Command::new(&openssl);
            command.current_dir(&dir).args(["ocsp", "-index", "index.txt", "-CA", "ca.pem", "-ndays", "1"]);
            command.args(["-rsigner", "responder.pem", "-rkey", "responder.key"]);
            command.arg("-reqin").arg(&question).arg("-respout").arg(&answer);
            let output = tokio::process::Command::from(command).output().await.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let body = Full::new(Bytes::from(std::fs::read(answer).unwrap()));
            Ok::<_, Infallible>(
                Response::builder().header("content-type", "application/ocsp-response").body(body).unwrap(),
            )
        });
        // A client that goes away is its own business.
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
    }
}

/// The authority, whom it has put in charge of its answers, and the leaf that names where they are.
fn make_files(dir: &Path, url: &str) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let named = |names: &[&str], name: &str| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let key = KeyPair::generate().unwrap();
    let mut params = named(&[], "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    write("ca.pem", &root.pem());

    let key = KeyPair::generate().unwrap();
    let mut params = named(&[], "a responder");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    write("responder.pem", &params.signed_by(&key, &issuer).unwrap().pem());
    write("responder.key", &key.serialize_pem());

    let key = KeyPair::generate().unwrap();
    let mut params = named(&["a.test"], "a.test");
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&SERIAL));
    params.custom_extensions = vec![names_responder(url)];
    let leaf = params.signed_by(&key, &issuer).unwrap();
    write("chain.pem", &(leaf.pem() + &root.pem()));
    write("leaf.key", &key.serialize_pem());
}

/// Authority information access (RFC 5280 4.2.2.1): one responder.
fn names_responder(url: &str) -> rcgen::CustomExtension {
    let element = |tag: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).ok().filter(|length| *length < 0x80).expect("a short URL");
        [&[tag, length][..], content].concat()
    };
    let method = element(0x06, b"\x2b\x06\x01\x05\x05\x07\x30\x01");
    let access = element(0x30, &[method, element(0x86, url.as_bytes())].concat());
    rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], element(0x30, &access))
}

/// An outside program, or `None` when it is missing; in CI it must be there (HOUSE.md B6).
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{name} is missing; run tests/setup.sh");
    found
}
