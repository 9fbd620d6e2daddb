//! TLS towards the subject: TLS 1.3, one cipher suite and one key exchange for all, so that no subject pays
//! for an algorithm that another one would not have chosen (a post-quantum exchange, a 256-bit suite).
//!
//! One certificate is accepted, byte by byte; its signature in the handshake is verified.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::meter::Fault;

/// An encrypted connection.
pub(crate) type Stream = TlsStream<TcpStream>;

/// Who is loaded, and as whom it is asked.
pub(crate) struct Target {
    address: SocketAddr,
    name: ServerName<'static>,
    /// Name and port, as a client writes them in `Host`.
    pub(crate) host: String,
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Target {
    /// Reads the certificate.
    pub(crate) fn new(address: SocketAddr, host: &str, certificate: &Path) -> Result<Self, Fault> {
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        Ok(Self {
            address,
            name: ServerName::try_from(host.to_owned())?,
            host: format!("{host}:{}", address.port()),
            certificate: CertificateDer::from_pem_file(certificate)?,
            provider: Arc::new(provider),
        })
    }

    /// A way to connect with one protocol. What it remembers for resumption is its own.
    pub(crate) fn dialer(&self, alpn: &str, is_resuming: bool) -> Result<Dialer, Fault> {
        let pinned = Pinned { certificate: self.certificate.clone(), provider: Arc::clone(&self.provider) };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = if is_resuming { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Ok(Dialer { address: self.address, name: self.name.clone(), connector: Arc::new(config).into() })
    }
}

/// Opens connections.
#[derive(Clone)]
pub(crate) struct Dialer {
    address: SocketAddr,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Dialer {
    /// TCP and TLS. The protocol that was offered must have been chosen.
    pub(crate) async fn open(&self) -> Result<Stream, Fault> {
        self.open_on(TcpStream::connect(self.address).await?).await
    }

    /// As `open`, on a connection that stands.
    pub(crate) async fn open_on(&self, tcp: TcpStream) -> Result<Stream, Fault> {
        tcp.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), tcp).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        if chosen != self.connector.config().alpn_protocols.first().map(Vec::as_slice) {
            return Err(format!("ALPN chose {chosen:?}").into());
        }
        Ok(stream)
    }

    /// As `open`; an error when the handshake was not of this kind.
    pub(crate) async fn open_as(&self, kind: HandshakeKind) -> Result<Stream, Fault> {
        let stream = self.open().await?;
        match stream.get_ref().1.handshake_kind() {
            Some(found) if found == kind => Ok(stream),
            found => Err(format!("the handshake was {found:?}, not {kind:?}").into()),
        }
    }
}

/// Accepts one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
