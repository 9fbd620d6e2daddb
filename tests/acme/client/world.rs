//! An authority with servers to look at, and a client of it: what the tests of `client.rs` share.

use std::collections::HashMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use clap::Parser;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::TXT;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, AccountBuilder, BodyWrapper, BytesResponse, ChallengeType, Error, ExternalAccountKey, HttpClient,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;
use tidegate::https::HttpsClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;

use super::authority::service::{self, Authority};
use super::authority::settings::Options;

/// What servers read and tests change.
type Shared<T> = Arc<Mutex<T>>;
/// A certificate and its key.
type Pair = (CertificateDer<'static>, Vec<u8>);

/// A failure bound for one answer.
pub(super) const BOUND: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// An authority with an HTTP server, a TLS server and a DNS server to look at.
pub(super) struct World {
    pub(super) authority: Authority,
    pub(super) https: HttpsClient,
    pub(super) root: CertificateDer<'static>,
    /// What `GET` finds, by path.
    pub(super) pages: Shared<HashMap<String, String>>,
    /// TXT records, by name without the last dot.
    pub(super) texts: Shared<Vec<(String, String)>>,
    /// The certificate of `acme-tls/1`.
    pub(super) proof: Shared<Option<Pair>>,
}

impl World {
    pub(super) async fn new(arguments: &[&str]) -> Self {
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

    pub(super) fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(Adapter(self.https.clone())))
    }

    pub(super) async fn account(&self) -> Account {
        self.try_account(None).await.expect("an account")
    }

    pub(super) async fn try_account(&self, external: Option<&ExternalAccountKey>) -> Result<Account, Error> {
        let new = NewAccount {
            contact: &["mailto:ops@example.com"],
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let account = self.builder().create(&new, self.authority.directory.clone(), external);
        bounded(account).await.map(|(account, _)| account)
    }

    /// Puts up the proof that a challenge asks for; `wrong` puts up another one.
    pub(super) fn prove(
        &self,
        name: &str,
        kind: &ChallengeType,
        token: &str,
        key: &instant_acme::KeyAuthorization,
        wrong: bool,
    ) {
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
    pub(super) async fn work(&self, order: &mut Order, kind: &ChallengeType, wrong: bool) -> OrderStatus {
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
    pub(super) async fn finish(&self, order: &mut Order) -> Result<Vec<CertificateDer<'static>>, Error> {
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
    pub(super) async fn issue(
        &self,
        account: &Account,
        names: &[&str],
        kind: ChallengeType,
    ) -> Vec<CertificateDer<'static>> {
        let identifiers = dns(names);
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        assert_eq!(self.work(&mut order, &kind, false).await, OrderStatus::Ready, "{kind:?}");
        self.finish(&mut order).await.expect("a chain")
    }

    /// What a client that trusts the root thinks of a chain.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a judge");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
    }

    pub(super) async fn control(&self, method: Method, path: &str, body: Value) -> String {
        let uri = format!("http://{}{path}", self.authority.control);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(uri).body(Bytes::from(body)).expect("a request");
        let response = bounded(self.https.send(request)).await.expect("an answer");
        let text = String::from_utf8(response.body().to_vec()).expect("UTF-8");
        assert_eq!(response.status(), 200, "{path}: {text}");
        text
    }

    pub(super) async fn fault(&self, fault: Value) {
        self.control(Method::PUT, "/fault", fault).await;
    }

    pub(super) async fn lines(&self, path: &str) -> Vec<Value> {
        let text = self.control(Method::GET, path, Value::Null).await;
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    pub(super) async fn directory(&self) -> Result<Response<Bytes>, tidegate::https::FetchError> {
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

pub(super) async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, work).await.expect("within the bound")
}

pub(super) fn patience() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(20)).timeout(BOUND)
}

pub(super) fn dns(names: &[&str]) -> Vec<Identifier> {
    names.iter().map(|name| Identifier::Dns((*name).to_owned())).collect()
}

pub(super) fn request(names: &[String]) -> Vec<u8> {
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate().expect("a key");
    params.serialize_request(&key).expect("a request").der().to_vec()
}

/// The kind of the problem that the authority answered with.
pub(super) fn problem<T>(result: Result<T, Error>) -> String {
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
