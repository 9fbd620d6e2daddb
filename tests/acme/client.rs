//! The authority of the tests, judged by a client that knows nothing of it: instant-acme, through every way of
//! proof, renewal information, external accounts, new keys, revocation, and each fault.
//!
//! No edge takes part here. A test that trusts the authority is worth what this file shows.

#[allow(dead_code, reason = "its main is the example's")]
#[path = "authority.rs"]
mod authority;

use std::collections::HashMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use clap::Parser;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::TXT;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, AccountBuilder, BodyWrapper, BytesResponse, CertificateIdentifier, ChallengeType, Error,
    ExternalAccountKey, HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
    RevocationRequest,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tidegate::https::HttpsClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;

use authority::service::{self, Authority};
use authority::settings::Options;

/// What servers read and tests change.
type Shared<T> = Arc<Mutex<T>>;
/// A certificate and its key.
type Pair = (CertificateDer<'static>, Vec<u8>);

/// A failure bound for one answer.
const BOUND: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// An authority with an HTTP server, a TLS server and a DNS server to look at.
struct World {
    authority: Authority,
    https: HttpsClient,
    root: CertificateDer<'static>,
    /// What `GET` finds, by path.
    pages: Shared<HashMap<String, String>>,
    /// TXT records, by name without the last dot.
    texts: Shared<Vec<(String, String)>>,
    /// The certificate of `acme-tls/1`.
    proof: Shared<Option<Pair>>,
}

impl World {
    async fn new(arguments: &[&str]) -> Self {
        let pages = Arc::new(Mutex::new(HashMap::new()));
        let texts = Arc::new(Mutex::new(Vec::new()));
        let proof = Arc::new(Mutex::new(None));
        let http = serve_pages(Arc::clone(&pages)).await;
        let dns = serve_texts(Arc::clone(&texts)).await;
        let tls = serve_proofs(Arc::clone(&proof)).await;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("root.pem");
        let ports = [http.to_string(), tls.to_string(), dns.to_string()];
        let mut line = vec!["authority", "--resolve-all", "--http-port", &ports[0], "--tls-port", &ports[1]];
        line.extend(["--dns-server", &ports[2], "--root-out", file.to_str().expect("UTF-8")]);
        line.extend(arguments);
        let authority = service::start(Line::parse_from(line).options).await.expect("an authority");
        let root = CertificateDer::from_pem_file(&file).expect("the root");
        let https = HttpsClient::new(&[root.to_vec()]).expect("a client");
        Self { authority, https, root, pages, texts, proof }
    }

    fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(Adapter(self.https.clone())))
    }

    async fn account(&self) -> Account {
        self.try_account(None).await.expect("an account")
    }

    async fn try_account(&self, external: Option<&ExternalAccountKey>) -> Result<Account, Error> {
        let new = NewAccount {
            contact: &["mailto:ops@example.com"],
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let account = self.builder().create(&new, self.authority.directory.clone(), external);
        bounded(account).await.map(|(account, _)| account)
    }

    /// Puts up the proof that a challenge asks for; `wrong` puts up another one.
    fn prove(&self, name: &str, kind: &ChallengeType, token: &str, key: &instant_acme::KeyAuthorization, wrong: bool) {
        let digest: Vec<u8> = if wrong { vec![7; 32] } else { key.digest().as_ref().to_vec() };
        match kind {
            ChallengeType::Http01 => {
                let text = if wrong { "another" } else { key.as_str() };
                let path = format!("/.well-known/acme-challenge/{token}");
                self.pages.lock().expect("lives").insert(path, text.to_owned());
            }
            ChallengeType::Dns01 => {
                let value = BASE64_URL_SAFE_NO_PAD.encode(digest);
                self.texts.lock().expect("lives").push((format!("_acme-challenge.{name}"), value));
            }
            ChallengeType::TlsAlpn01 => {
                let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
                params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
                let key = KeyPair::generate().expect("a key");
                let certificate = params.self_signed(&key).expect("a certificate");
                *self.proof.lock().expect("lives") = Some((certificate.der().clone(), key.serialize_der()));
            }
            // A record that is there or is not; no test of this file puts up a wrong one by token.
            other => assert_eq!(*other, ChallengeType::Unknown("dns-persist-01".to_owned())),
        }
    }

    /// Proves all names of an order in one way and waits until it is ready, or not.
    async fn work(&self, order: &mut Order, kind: &ChallengeType, wrong: bool) -> OrderStatus {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = bounded(authorizations.next()).await {
            let mut authorization = authorization.expect("an authorization");
            let name = match authorization.identifier().identifier {
                Identifier::Dns(name) => name.clone(),
                Identifier::Ip(ip) => ip.to_string(),
                other => unreachable!("{other:?} was not ordered"),
            };
            let mut challenge = authorization.challenge(kind.clone()).expect("a challenge of this kind");
            let token = challenge.token.clone();
            self.prove(&name, kind, &token, &challenge.key_authorization(), wrong);
            bounded(challenge.set_ready()).await.expect("taken");
        }
        match bounded(order.poll_ready(&patience())).await {
            Ok(status) => status,
            // The order has the reason, and the client gives it as an error.
            Err(Error::Api(_)) => order.state().status,
            Err(other) => unreachable!("no end: {other}"),
        }
    }

    /// The chain of an order that is ready, and its key.
    async fn finish(&self, order: &mut Order) -> Result<Vec<CertificateDer<'static>>, Error> {
        let mut names = Vec::new();
        let mut identifiers = order.identifiers();
        while let Some(name) = bounded(identifiers.next()).await {
            names.push(name?.to_string());
        }
        bounded(order.finalize_csr(&request(&names))).await?;
        let chain = bounded(order.poll_certificate(&patience())).await?;
        Ok(CertificateDer::pem_slice_iter(chain.as_bytes()).map(|one| one.expect("PEM")).collect())
    }

    /// A chain for these names, proved in this way.
    async fn issue(&self, account: &Account, names: &[&str], kind: ChallengeType) -> Vec<CertificateDer<'static>> {
        let identifiers = dns(names);
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        assert_eq!(self.work(&mut order, &kind, false).await, OrderStatus::Ready, "{kind:?}");
        self.finish(&mut order).await.expect("a chain")
    }

    /// What a client that trusts the root thinks of a chain.
    fn judge(&self, chain: &[CertificateDer<'_>], name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a judge");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
    }

    async fn control(&self, method: Method, path: &str, body: Value) -> String {
        let uri = format!("http://{}{path}", self.authority.control);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(uri).body(Bytes::from(body)).expect("a request");
        let response = bounded(self.https.send(request)).await.expect("an answer");
        let text = String::from_utf8(response.body().to_vec()).expect("UTF-8");
        assert_eq!(response.status(), 200, "{path}: {text}");
        text
    }

    async fn fault(&self, fault: Value) {
        self.control(Method::PUT, "/fault", fault).await;
    }

    async fn lines(&self, path: &str) -> Vec<Value> {
        let text = self.control(Method::GET, path, Value::Null).await;
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    async fn directory(&self) -> Result<Response<Bytes>, tidegate::https::FetchError> {
        let request = Request::get(&self.authority.directory).body(Bytes::new()).expect("a request");
        bounded(self.https.send(request)).await
    }
}

/// instant-acme on the edge's own client.
struct Adapter(HttpsClient);

impl HttpClient for Adapter {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("held in memory").to_bytes();
            let response = client.send(Request::from_parts(head, body)).await;
            let response = response.map_err(|error| Error::Other(Box::new(error)))?;
            Ok(BytesResponse::from(response.map(Full::new)))
        })
    }
}

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, work).await.expect("within the bound")
}

fn patience() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(20)).timeout(BOUND)
}

fn dns(names: &[&str]) -> Vec<Identifier> {
    names.iter().map(|name| Identifier::Dns((*name).to_owned())).collect()
}

fn request(names: &[String]) -> Vec<u8> {
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate().expect("a key");
    params.serialize_request(&key).expect("a request").der().to_vec()
}

/// The kind of the problem that the authority answered with.
fn problem<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no problem".to_owned(),
        Err(Error::Api(problem)) => {
            let kind = problem.r#type.unwrap_or_default();
            kind.rsplit(':').next().unwrap_or_default().to_owned()
        }
        Err(other) => format!("{other}"),
    }
}

/// rustls does not look into this one: it would refuse the critical extension that it does not know.
fn pair(certificate: CertificateDer<'static>, key: Vec<u8>) -> CertifiedKey {
    let key = any_supported_type(&PrivatePkcs8KeyDer::from(key).into()).expect("a key");
    CertifiedKey::new(vec![certificate], key)
}

async fn serve_pages(pages: Shared<HashMap<String, String>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|count| count > 0) {}
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let page = pages.lock().expect("lives").get(path).cloned();
            let (status, page) = page.map_or(("404 Not Found", String::new()), |page| ("200 OK", page));
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len());
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    });
    port
}

async fn serve_texts(texts: Shared<Vec<(String, String)>>) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).expect("a question");
            let query = question.queries.first().expect("one query").clone();
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            answer.add_query(query.clone());
            let name = query.name().to_ascii();
            if query.query_type() == RecordType::TXT {
                for (_, text) in texts.lock().expect("lives").iter().filter(|(at, _)| *at == name.trim_end_matches('.'))
                {
                    let data = RData::TXT(TXT::new(vec![text.clone()]));
                    answer.add_answer(Record::from_rdata(query.name().clone(), 1, data));
                }
            }
            if answer.answers.is_empty() {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&answer.to_vec().expect("an answer"), from).await.expect("sent");
        }
    });
    address
}

async fn serve_proofs(proof: Shared<Option<Pair>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Some((certificate, key)) = proof.lock().expect("lives").clone() else { continue };
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair(certificate, key))));
            config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
            let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            // The authority leaves as soon as it has seen the certificate.
            if let Ok(mut stream) = stream {
                let _ = stream.read(&mut [0; 1]).await;
            }
        }
    });
    port
}

#[tokio::test]
async fn each_way_of_proof_leads_to_a_chain_that_verifies() {
    let world = World::new(&["--lifetime", "60s"]).await;
    let account = world.account().await;
    for kind in [ChallengeType::Http01, ChallengeType::TlsAlpn01, ChallengeType::Dns01] {
        let chain = world.issue(&account, &["a.example.test"], kind).await;
        assert_eq!(chain.len(), 2, "leaf and intermediate");
        world.judge(&chain, "a.example.test").expect("a good chain");
        assert!(world.judge(&chain, "b.example.test").is_err(), "for this name only");
    }
    let chain = world.issue(&account, &["*.example.test", "example.test"], ChallengeType::Dns01).await;
    world.judge(&chain, "any.example.test").expect("a wildcard");
    world.judge(&chain, "example.test").expect("and its parent");
    let issued = world.lines("/issued").await;
    let lived = issued[0]["not_after_unix"].as_i64().expect("a time") - issued[0]["time"].as_i64().expect("ms") / 1000;
    assert!((57..=60).contains(&lived), "{lived} s of 60 s are left");
}

#[tokio::test]
async fn addresses_are_proved_by_http_and_tls() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = [Identifier::Ip(Ipv4Addr::new(198, 51, 100, 20).into())];
    for kind in [ChallengeType::Http01, ChallengeType::TlsAlpn01] {
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        assert_eq!(world.work(&mut order, &kind, false).await, OrderStatus::Ready, "{kind:?}");
        let chain = world.finish(&mut order).await.expect("a chain");
        world.judge(&chain, "198.51.100.20").expect("a good chain");
    }
}

#[tokio::test]
async fn a_wrong_proof_leads_nowhere() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    for kind in [ChallengeType::Http01, ChallengeType::TlsAlpn01, ChallengeType::Dns01] {
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        assert_eq!(world.work(&mut order, &kind, true).await, OrderStatus::Invalid, "{kind:?}");
        let error = order.state().error.as_ref().expect("a reason");
        assert!(
            error.subproblems[0].detail.as_ref().is_some_and(|detail| detail.contains("a.example.test")),
            "{error}"
        );
    }
    let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
    assert_eq!(problem(bounded(order.finalize_csr(&request(&["a.example.test".to_owned()]))).await), "orderNotReady");
    assert!(world.lines("/issued").await.is_empty());
}

#[tokio::test]
async fn one_record_proves_for_ever_but_only_its_account_and_what_it_allows() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let stranger = world.account().await;
    let kind = ChallengeType::Unknown("dns-persist-01".to_owned());
    let status = async |account: &Account, names: &[&str]| {
        let identifiers = dns(names);
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        world.work(&mut order, &kind, false).await
    };
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Invalid, "no record");
    let place = "_validation-persist.a.example.test".to_owned();
    let record = format!("ca.example.test; accounturi={}", account.id());
    world.texts.lock().expect("lives").push((place.clone(), record.clone()));
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Ready);
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Ready, "again");
    assert_eq!(status(&account, &["*.a.example.test"]).await, OrderStatus::Invalid, "not for wildcards");
    assert_eq!(status(&stranger, &["a.example.test"]).await, OrderStatus::Invalid, "not for another account");
    world.texts.lock().expect("lives").push((place.clone(), format!("{record}; policy=wildcard")));
    assert_eq!(status(&account, &["*.a.example.test", "b.a.example.test"]).await, OrderStatus::Ready);
    *world.texts.lock().expect("lives") = vec![(place, format!("{record}; persistUntil=1700000000"))];
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Invalid, "past its end");
}

#[tokio::test]
async fn requests_for_other_names_and_other_accounts_are_refused() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
    world.work(&mut order, &ChallengeType::Http01, false).await;
    assert_eq!(problem(bounded(order.finalize_csr(&request(&["b.example.test".to_owned()]))).await), "badCSR");
    let url = order.url().to_owned();
    assert_eq!(problem(bounded(world.account().await.order(url)).await), "unauthorized");
    for bad in ["under_score.example.test", "localhost", "Upper.example.test", "198.51.100.20"] {
        let identifiers = dns(&[bad]);
        let result = bounded(account.new_order(&NewOrder::new(&identifiers))).await;
        assert_eq!(problem(result), "rejectedIdentifier", "{bad}");
    }
}

#[tokio::test]
async fn an_external_account_is_checked_by_its_key() {
    let world = World::new(&["--eab", "kid-1:c2VjcmV0LXNlY3JldC1zZWNyZXQ"]).await;
    assert_eq!(problem(world.try_account(None).await), "externalAccountRequired");
    for (kid, key, expected) in [
        ("kid-1", &b"secret-secret-secret"[..], "no problem"),
        ("kid-1", b"another-key", "unauthorized"),
        ("kid-2", b"secret-secret-secret", "unauthorized"),
    ] {
        let external = ExternalAccountKey::new(kid.to_owned(), key);
        assert_eq!(problem(world.try_account(Some(&external)).await), expected, "{kid}");
    }
}

#[tokio::test]
async fn an_account_keeps_its_orders_when_its_key_changes() {
    let world = World::new(&[]).await;
    let mut account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    let order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
    let url = order.url().to_owned();
    let old = account.clone();
    let credentials = bounded(account.update_key()).await.expect("a new key");
    assert!(!credentials.private_key().secret_pkcs8_der().is_empty());
    assert_eq!(problem(bounded(old.order(url.clone())).await), "malformed", "the old key signs nothing any more");
    bounded(account.order(url.clone())).await.expect("the same account");
    let copy = account.clone();
    bounded(account.deactivate()).await.expect("an end");
    assert_eq!(problem(bounded(copy.order(url)).await), "unauthorized");
}

#[tokio::test]
async fn a_certificate_is_revoked_once_and_is_then_to_be_renewed() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    let id = CertificateIdentifier::try_from(&chain[0]).expect("an identifier");
    let (before, wait) = bounded(account.renewal_info(&id)).await.expect("information");
    assert!(before.suggested_window.start > time::OffsetDateTime::now_utc());
    assert!(wait > Duration::from_secs(6 * 3600 - 60), "{wait:?}");
    let revocation = RevocationRequest { certificate: &chain[0], reason: None };
    let stranger = world.account().await;
    assert_eq!(problem(bounded(stranger.revoke(&revocation)).await), "unauthorized");
    bounded(account.revoke(&revocation)).await.expect("revoked");
    assert_eq!(problem(bounded(account.revoke(&revocation)).await), "alreadyRevoked");
    let (after, _) = bounded(account.renewal_info(&id)).await.expect("information");
    assert!(after.suggested_window.end < time::OffsetDateTime::now_utc());
    assert_eq!(world.lines("/issued").await[0]["revoked"], 0);
}

#[tokio::test]
async fn an_order_replaces_a_certificate_once_and_windows_move() {
    let world = World::new(&["--profile", "shortlived=6d"]).await;
    let account = world.account().await;
    let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    let id = CertificateIdentifier::try_from(&chain[0]).expect("an identifier");
    let serial = world.lines("/issued").await[0]["serial"].clone();
    world.control(Method::PUT, "/ari", json!({"serial": serial, "start": 1_700_000_000, "end": 1_700_000_600})).await;
    let (info, _) = bounded(account.renewal_info(&id)).await.expect("information");
    assert_eq!(info.suggested_window.start.unix_timestamp(), 1_700_000_000);
    let identifiers = dns(&["a.example.test"]);
    let new = || NewOrder::new(&identifiers).replaces(id.clone()).profile("shortlived");
    let mut order = bounded(account.new_order(&new())).await.expect("an order");
    world.work(&mut order, &ChallengeType::Http01, false).await;
    world.finish(&mut order).await.expect("a chain");
    assert_eq!(problem(bounded(account.new_order(&new())).await), "alreadyReplaced");
    let unknown = NewOrder::new(&identifiers).profile("longlived");
    assert_eq!(problem(bounded(account.new_order(&unknown)).await), "invalidProfile");
    let issued = world.lines("/issued").await;
    assert_eq!((&issued[1]["profile"], &issued[1]["replaces"]), (&json!("shortlived"), &json!(id.to_string())));
    let lived = issued[1]["not_after_unix"].as_i64().expect("a time") - issued[1]["time"].as_i64().expect("ms") / 1000;
    assert!((6 * 86400 - 3..=6 * 86400).contains(&lived), "{lived} s of six days");
}

#[tokio::test]
async fn a_nonce_is_good_once_and_may_be_rejected_all_the_same() {
    let world = World::new(&["--nonce-reject", "100"]).await;
    assert_eq!(problem(world.try_account(None).await), "badNonce");
    let log = world.lines("/log").await;
    let tries = log.iter().filter(|entry| entry["kind"] == "newAccount").count();
    assert!(tries > 1, "the client tried again with a new nonce: {tries}");
    assert!(log.iter().all(|entry| entry["time"].as_u64().is_some_and(|time| time > 1_700_000_000_000)));
}

#[tokio::test]
async fn each_fault_is_seen_by_the_client_and_ends() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    let order = async || bounded(account.new_order(&NewOrder::new(&identifiers))).await;

    world.fault(json!({"fault": "429", "retry_after": 7})).await;
    assert_eq!(problem(order().await), "rateLimited");
    assert_eq!(world.directory().await.expect("an answer").status(), 200, "only new orders");
    world.fault(json!({"fault": "503", "retry_after": 9})).await;
    let answer = world.directory().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"9".parse().expect("a value")));
    world.fault(json!({"fault": "malformed"})).await;
    let answer = world.directory().await.expect("an answer");
    assert!(serde_json::from_slice::<Value>(answer.body()).is_err(), "{:?}", answer.body());
    world.fault(json!({"fault": "html"})).await;
    assert_eq!(world.directory().await.expect("an answer").headers()["content-type"], "text/html; charset=utf-8");
    for closed in [false, true] {
        world.fault(json!({"fault": "down", "closed": closed})).await;
        assert!(world.directory().await.is_err(), "closed: {closed}");
    }
    let began = SystemTime::now();
    world.fault(json!({"fault": "slow", "seconds": 1, "at": ["directory"]})).await;
    assert_eq!(world.directory().await.expect("an answer").status(), 200);
    assert!(began.elapsed().is_ok_and(|time| time >= Duration::from_secs(1)));
    world.fault(json!({"fault": "hang"})).await;
    // A lower bound is all that can be shown of "never".
    assert!(tokio::time::timeout(Duration::from_secs(2), order()).await.is_err());

    world.fault(json!({"fault": "refuse-validation"})).await;
    let mut refused = order().await.expect("an order");
    assert_eq!(world.work(&mut refused, &ChallengeType::Http01, false).await, OrderStatus::Invalid);
    for (fault, name, length) in [
        (json!({"fault": "wrong-certificate"}), "wrong.example.test", 2),
        (json!({"fault": "wrong-certificate", "wrong": "key"}), "a.example.test", 2),
        (json!({"fault": "no-issuer"}), "a.example.test", 1),
    ] {
        world.fault(fault).await;
        let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
        assert_eq!(chain.len(), length);
        assert_eq!(world.judge(&chain, name).is_ok(), length == 2, "{name}");
    }

    world.control(Method::DELETE, "/fault", Value::Null).await;
    let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    world.judge(&chain, "a.example.test").expect("all is well again");
    let log = world.lines("/log").await;
    for fault in ["429", "503", "malformed", "html", "down", "slow", "hang"] {
        assert!(log.iter().any(|entry| entry["fault"] == fault), "{fault} is in the log");
    }
    let limited = log.iter().find(|entry| entry["fault"] == "429").expect("above");
    assert_eq!(limited["names"], json!(["a.example.test"]));
}

#[tokio::test]
async fn the_clock_and_the_lifetime_can_be_moved() {
    let world = World::new(&["--lifetime", "24h"]).await;
    let account = world.account().await;
    world.control(Method::PUT, "/clock", json!({"ahead": "10d"})).await;
    world.control(Method::PUT, "/lifetime", json!({"lifetime": "2h"})).await;
    world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    let issued = &world.lines("/issued").await[0];
    let left = issued["not_after_unix"].as_i64().expect("a time") - issued["time"].as_i64().expect("ms") / 1000;
    let expected = 10 * 86400 + 2 * 3600;
    assert!((expected - 3..=expected).contains(&left), "{left} s from the machine's now");
}
