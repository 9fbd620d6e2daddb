//! Proofs of control, looked at for real: HTTP-01 (RFC 8555 8.3), TLS-ALPN-01 (RFC 8737, RFC 8738), DNS-01 (RFC 8555
//! 8.4), dns-persist-01 (draft-ietf-acme-dns-persist-01; the account by its URL).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::book::Identifier;
use super::fault::Kind;
use super::jws::encode;
use super::orders;
use super::problem::Problem;
use super::settings::World;

pub(crate) const HTTP_01: &str = "http-01";
pub(crate) const TLS_ALPN_01: &str = "tls-alpn-01";
pub(crate) const DNS_01: &str = "dns-01";
pub(crate) const DNS_PERSIST_01: &str = "dns-persist-01";

/// For one proof, from the first lookup to its last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// 1.3.6.1.5.5.7.1.31, as it stands in DER (RFC 8737 3).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// What is to be proved.
struct Proof {
    identifier: Identifier,
    is_wildcard: bool,
    token: String,
    /// RFC 8555 8.1.
    key_authorization: String,
    account: String,
}

/// Looks at one proof and concludes.
pub(crate) async fn run(world: Arc<World>, authorization: usize, challenge: usize) {
    let (kind, proof) = {
        let book = world.book();
        let it = &book.authorizations[authorization];
        let one = &it.challenges[challenge];
        let key_authorization = format!("{}.{}", one.token, book.accounts[it.account].thumbprint);
        let proof = Proof {
            identifier: it.identifier.clone(),
            is_wildcard: it.is_wildcard,
            token: one.token.clone(),
            key_authorization,
            account: world.url(&format!("/account/{}", it.account)),
        };
        (one.kind, proof)
    };
    let look = async {
        match kind {
            HTTP_01 => http(&world, &proof).await,
            TLS_ALPN_01 => tls(&world, &proof).await,
            DNS_01 => dns(&world, &proof).await,
            DNS_PERSIST_01 => persist(&world, &proof).await,
            other => Err(Problem::new(500, "serverInternal", format!("\"{other}\" is not looked at"))),
        }
    };
    let result = if world.fault().is_some_and(|fault| fault.fault == Kind::RefuseValidation) {
        let mut problem = Problem::unauthorized("no proof is good enough today");
        let detail = format!("the proof for {} was refused by the test", proof.identifier.text());
        problem.subproblems = vec![(proof.identifier.clone(), Problem::new(403, "caa", detail))];
        Err(problem)
    } else {
        let late = || Err(Problem::new(400, "connection", format!("no proof within {} s", DEADLINE.as_secs())));
        tokio::time::timeout(DEADLINE, look).await.unwrap_or_else(|_| late())
    };
    orders::conclude(&world, authorization, challenge, result);
}

async fn http(world: &World, proof: &Proof) -> Result<(), Problem> {
    let port = world.options.http_port;
    let stream = connect(world, &proof.identifier, port).await?;
    let text = match &proof.identifier {
        Identifier::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
        other => other.text(),
    };
    let host = if port == 80 { text } else { format!("{text}:{port}") };
    let path = format!("/.well-known/acme-challenge/{}", proof.token);
    let failed = |what: String| Problem::new(400, "connection", format!("http://{host}{path}: {what}"));
    let request = Request::get(&path).header("Host", &host).header("User-Agent", "acme-authority-of-the-tests");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 64 << 10).collect().await;
    let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
    driver.abort();
    let body = String::from_utf8_lossy(&body);
    let unauthorized = |what: String| Problem::unauthorized(format!("http://{host}{path}: {what}"));
    if status != 200 {
        return Err(unauthorized(format!("status {}", status.as_u16())));
    }
    if body.trim_end() != proof.key_authorization {
        return Err(unauthorized(format!("\"{body}\" is not the key authorization")));
    }
    Ok(())
}

async fn tls(world: &World, proof: &Proof) -> Result<(), Problem> {
    let stream = connect(world, &proof.identifier, world.options.tls_port).await?;
    let sni = match &proof.identifier {
        Identifier::Dns(name) => name.clone(),
        Identifier::Ip(ip) => reverse(*ip),
    };
    let failed = |what: String| Problem::new(400, "tls", format!("{sni}: {what}"));
    let name = ServerName::try_from(sni.clone()).map_err(|error| failed(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(proving_client()));
    let stream = connector.connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(b"acme-tls/1") {
        return Err(failed("acme-tls/1 was not agreed on".to_owned()));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| failed("no certificate".to_owned()))?;
    let digest = digest(&SHA256, proof.key_authorization.as_bytes());
    check_proof(leaf, &proof.identifier, digest.as_ref())
        .map_err(|what| Problem::unauthorized(format!("{sni}: the certificate of acme-tls/1 {what}")))
}

/// RFC 8737 3: one name, and the digest in a critical extension.
fn check_proof(der: &[u8], identifier: &Identifier, digest: &[u8]) -> Result<(), String> {
    let (_, leaf) = x509_parser::parse_x509_certificate(der).map_err(|error| format!("cannot be read: {error}"))?;
    let san = leaf.subject_alternative_name().map_err(|error| error.to_string())?.ok_or("has no names")?;
    let is_right = match (&san.value.general_names[..], identifier) {
        ([GeneralName::DNSName(name)], Identifier::Dns(wanted)) => name.eq_ignore_ascii_case(wanted),
        ([GeneralName::IPAddress(bytes)], Identifier::Ip(IpAddr::V4(ip))) => *bytes == ip.octets(),
        ([GeneralName::IPAddress(bytes)], Identifier::Ip(IpAddr::V6(ip))) => *bytes == ip.octets(),
        _ => false,
    };
    if !is_right {
        return Err(format!("is for {:?}", san.value.general_names));
    }
    let mut found = leaf.extensions().iter().filter(|one| one.oid.to_id_string() == ACME_IDENTIFIER);
    let extension = found.next().ok_or("has no acmeIdentifier")?;
    if !extension.critical || !matches!(extension.parsed_extension(), ParsedExtension::UnsupportedExtension { .. }) {
        return Err("has an acmeIdentifier that is not critical".to_owned());
    }
    // An OCTET STRING of 32 bytes.
    if extension.value.strip_prefix(&[0x04, 0x20]) != Some(digest) {
        return Err("has the digest of another key authorization".to_owned());
    }
    Ok(())
}

async fn dns(world: &World, proof: &Proof) -> Result<(), Problem> {
    let name = format!("_acme-challenge.{}.", proof.identifier.text());
    let wanted = encode(digest(&SHA256, proof.key_authorization.as_bytes()).as_ref());
    let found = texts(resolver(world)?, &name).await?;
    if found.contains(&wanted) {
        return Ok(());
    }
    Err(Problem::unauthorized(format!("TXT of {name} is {found:?}, without \"{wanted}\"")))
}

async fn persist(world: &World, proof: &Proof) -> Result<(), Problem> {
    let name = proof.identifier.text();
    let resolver = resolver(world)?;
    let now = world.now().unix_timestamp();
    let mut seen = Vec::new();
    let mut at = name.as_str();
    // The name itself, then the names above it: a record there counts if it says so (policy=wildcard).
    loop {
        let is_own = at == name;
        let place = format!("_validation-persist.{at}.");
        for text in texts(resolver, &place).await? {
            let is_wide = !is_own || proof.is_wildcard;
            match judge(&text, &world.options.caa_identity, &proof.account, is_wide, now) {
                Ok(()) => return Ok(()),
                Err(why) => seen.push(format!("{place} \"{text}\" {why}")),
            }
        }
        match at.split_once('.') {
            Some((_, parent)) if parent.contains('.') => at = parent,
            _ => break,
        }
    }
    let detail = format!("no record of dns-persist-01 for {name} and {}: {seen:?}", proof.account);
    Err(Problem::unauthorized(detail))
}

/// One record: `ISSUER; accounturi=URL; policy=wildcard; persistUntil=UNIX`, in the grammar of RFC 8659 4.2.
fn judge(text: &str, issuers: &[String], account: &str, is_wide: bool, now: i64) -> Result<(), String> {
    let mut parts = text.split(';').map(str::trim);
    let issuer = parts.next().unwrap_or_default().to_ascii_lowercase();
    if !issuers.contains(&issuer) {
        return Err("names another issuer".to_owned());
    }
    let mut parameters = std::collections::BTreeMap::new();
    for part in parts.filter(|part| !part.is_empty()) {
        let (tag, value) = part.split_once('=').ok_or_else(|| format!("has \"{part}\", which is no TAG=VALUE"))?;
        if parameters.insert(tag.trim().to_ascii_lowercase(), value.trim()).is_some() {
            return Err(format!("has {tag} twice"));
        }
    }
    if parameters.get("accounturi") != Some(&account) {
        return Err("names another account".to_owned());
    }
    if is_wide && !parameters.get("policy").is_some_and(|policy| policy.eq_ignore_ascii_case("wildcard")) {
        return Err("is not for wildcards and names below".to_owned());
    }
    match parameters.get("persistuntil").map(|until| until.parse::<i64>()) {
        None => Ok(()),
        Some(Ok(until)) if until >= now => Ok(()),
        Some(Ok(_)) => Err("is past its persistUntil".to_owned()),
        Some(Err(_)) => Err("has a persistUntil that is no number".to_owned()),
    }
}

fn resolver(world: &World) -> Result<&TokioResolver, Problem> {
    world.resolver.as_ref().ok_or_else(|| Problem::new(400, "dns", "the authority has no resolver"))
}

/// All TXT records of a name; none when there is no such name.
async fn texts(resolver: &TokioResolver, name: &str) -> Result<Vec<String>, Problem> {
    let lookup = match resolver.lookup(name, RecordType::TXT).await {
        Ok(lookup) => lookup,
        Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
        Err(error) => return Err(Problem::new(400, "dns", format!("TXT of {name}: {error}"))),
    };
    let mut found = Vec::new();
    for record in lookup.answers() {
        if let RData::TXT(text) = &record.data {
            found.push(String::from_utf8_lossy(&text.txt_data.concat()).into_owned());
        }
    }
    Ok(found)
}

/// A connection to a name's first address that takes one.
async fn connect(world: &World, identifier: &Identifier, port: u16) -> Result<TcpStream, Problem> {
    let addresses: Vec<IpAddr> = match identifier {
        _ if world.options.resolve_all => vec![Ipv4Addr::LOCALHOST.into()],
        Identifier::Ip(ip) => vec![*ip],
        Identifier::Dns(name) => match resolver(world)?.lookup_ip(format!("{name}.")).await {
            Ok(found) => found.iter().collect(),
            Err(error) => return Err(Problem::new(400, "dns", format!("address of {name}: {error}"))),
        },
    };
    let mut failures = Vec::new();
    for ip in addresses {
        match TcpStream::connect(SocketAddr::new(ip, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("{ip} port {port}: {error}")),
        }
    }
    Err(Problem::new(400, "connection", format!("{}: {failures:?}", identifier.text())))
}

/// The name under which an address is asked for (RFC 8738 6).
fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let nibbles = ip.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

fn proving_client() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has it")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    config
}

/// Proofs sign themselves: the chain says nothing, but the handshake's signature still counts.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // By its key alone: rustls refuses certificates with a critical extension that it does not know.
        let bad = || rustls::Error::from(rustls::CertificateError::BadEncoding);
        let (_, leaf) = x509_parser::parse_x509_certificate(certificate).map_err(|_| bad())?;
        let key = SubjectPublicKeyInfoDer::from(leaf.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
