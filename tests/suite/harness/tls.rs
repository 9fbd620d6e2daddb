//! TLS clients that trust the edge's local CA, and certificates for tests that bring their own.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::edge::Edge;
use super::within;

/// What a TLS client says and trusts.
#[derive(Clone, Default)]
pub(crate) struct ClientTls {
    /// ALPN names, preferred first; empty to send none.
    pub(crate) alpn: Vec<Vec<u8>>,
    /// A certificate and key to show.
    pub(crate) identity: Option<(Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>)>,
    /// Roots beside the edge's local CA.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Only this protocol version.
    pub(crate) version: Option<&'static rustls::SupportedProtocolVersion>,
    /// Send no server name.
    pub(crate) without_sni: bool,
}

impl ClientTls {
    /// A client that offers these protocols.
    pub(crate) fn alpn(names: &[&str]) -> Self {
        Self { alpn: names.iter().map(|name| name.as_bytes().to_vec()).collect(), ..Self::default() }
    }

    /// The rustls configuration of it, for this edge.
    pub(crate) fn config(&self, edge: &Edge) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.roots.iter().cloned());
        roots.add_parsable_certificates(edge.local_roots());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let all = [&rustls::version::TLS13, &rustls::version::TLS12];
        let versions = self.version.as_ref().map_or(&all[..], std::slice::from_ref);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("the provider has these versions")
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).expect("a matching pair")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_sni = !self.without_sni;
        Arc::new(config)
    }
}

impl Edge {
    /// A TLS connection to the first https listener; a failed handshake fails the test.
    pub(crate) async fn tls(&self, host: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
        let config = ClientTls::alpn(alpn).config(self);
        self.handshake(host, config).await.unwrap_or_else(|e| panic!("no TLS for {host}: {e}"))
    }

    /// A handshake with the first https listener.
    pub(crate) async fn handshake(&self, host: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        handshake_at(self.https_addr(), host, config).await
    }

    /// The certificates of the edge's local CA, as far as it made them already.
    pub(crate) fn local_roots(&self) -> Vec<CertificateDer<'static>> {
        let root = self.local_root_path();
        root.map(|path| read_certificates(&path)).unwrap_or_default()
    }

    /// The file of the local CA's root certificate.
    pub(crate) fn local_root_path(&self) -> Option<PathBuf> {
        let folder = self.dir().join("storage").join("local-ca");
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
        files.sort();
        files.into_iter().find(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.contains("BEGIN CERTIFICATE") && !path.to_string_lossy().contains("leaf")
        })
    }
}

/// A handshake with any listener.
pub(crate) async fn handshake_at(
    address: SocketAddr,
    host: &str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = within("the edge accepts", TcpStream::connect(address)).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(host.to_owned()).expect("a host name");
    within("the handshake ends", tokio_rustls::TlsConnector::from(config).connect(name, tcp)).await
}

/// The certificates of a PEM file.
pub(crate) fn read_certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let text = std::fs::read(path).expect("a readable file");
    CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().expect("a PEM file")
}

/// A certificate that signed itself, for a site with `certificate = { cert, key }`.
pub(crate) struct SelfSigned {
    /// The certificate.
    pub(crate) der: CertificateDer<'static>,
    cert: String,
    key: String,
}

impl SelfSigned {
    /// A new key and a certificate for these names.
    pub(crate) fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Self { der: made.cert.der().clone(), cert: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    /// Writes the certificate to a file.
    pub(crate) fn write_cert(&self, path: &Path) {
        std::fs::write(path, &self.cert).expect("a writable file");
    }

    /// Writes the key to a file that only its owner may read.
    pub(crate) fn write_key(&self, path: &Path) {
        write_private(path, &self.key);
    }

    /// Writes `NAME.crt` and `NAME.key` and returns the value of `certificate`.
    pub(crate) fn write_pair(&self, dir: &Path, name: &str) -> String {
        let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        self.write_cert(&cert);
        self.write_key(&key);
        format!("{{ cert = {:?}, key = {{ file = {:?} }} }}", cert.to_string_lossy(), key.to_string_lossy())
    }
}

/// An authority for client certificates and TLS upstreams.
pub(crate) struct TestCa {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    /// Its certificate.
    pub(crate) pem: String,
}

impl TestCa {
    /// A new authority.
    pub(crate) fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { issuer: rcgen::Issuer::new(params, key), pem: certificate.pem() }
    }

    /// Writes the root to `path`.
    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, &self.pem).expect("a writable file");
    }

    /// A leaf with this common name and DNS name: chain and key.
    pub(crate) fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>) {
        let (certificate, key) = self.leaf(name);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key of ours");
        (vec![certificate.der().clone()], Arc::new(key))
    }

    /// Writes a leaf and its key as PEM.
    pub(crate) fn issue_files(&self, name: &str, cert: &Path, key: &Path) {
        let (certificate, pair) = self.leaf(name);
        std::fs::write(cert, certificate.pem()).expect("a writable file");
        write_private(key, &pair.serialize_pem());
    }

    /// A list (PEM) of revoked certificates, whose time is over in so many days.
    pub(crate) fn revoke(&self, leaves: &[&CertificateDer<'_>], days: i64) -> String {
        let now = time::OffsetDateTime::now_utc();
        let revoked = |leaf: &&CertificateDer<'_>| {
            let (_, leaf) = x509_parser::parse_x509_certificate(leaf).expect("a certificate of ours");
            rcgen::RevokedCertParams {
                serial_number: rcgen::SerialNumber::from(leaf.raw_serial().to_vec()),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: now - time::Duration::days(30),
            next_update: now + time::Duration::days(days),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: leaves.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("as text")
    }

    fn leaf(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        (params.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("a writable file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
}
