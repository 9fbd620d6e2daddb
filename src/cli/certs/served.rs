//! The certificate that an edge on this machine serves for a name: one handshake, nothing believed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use crate::addr::{HostPattern, ListenAddr};
use crate::tls::provider;

/// Longer than a handshake on this machine takes.
const PATIENCE: Duration = Duration::from_secs(2);

/// The chain that is served for a name at one of these addresses; `None` when nothing answers.
pub(super) fn chain(host: &HostPattern, addresses: &[ListenAddr]) -> Option<Vec<CertificateDer<'static>>> {
    let tcp = addresses.iter().filter_map(|address| match address {
        ListenAddr::Tcp(address) => Some(reachable(*address)),
        ListenAddr::Unix(_) | ListenAddr::Systemd(_) => None,
    });
    let name = match host {
        HostPattern::Exact(name) => name.to_string(),
        // Any name below it will do; this one says who asks.
        HostPattern::Wildcard(name) => format!("tidegate-certs.{name}"),
    };
    // The first that answers: all serve the same.
    tcp.take(4).find_map(|address| handshake(&name, address).ok())
}

/// An address that everything listens on is reached by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn handshake(name: &str, address: SocketAddr) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Onlooker(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    let chain = session.peer_certificates().map(<[_]>::to_vec);
    session.send_close_notify();
    // The edge may have closed already: a site may want a client certificate, and what we came for we have.
    let _ = session.complete_io(&mut stream);
    chain.ok_or_else(|| io::Error::other("no certificate"))
}

/// Believes everything, because nothing is sent and nothing that is read is acted upon: the question is what is served.
#[derive(Debug)]
struct Onlooker(Arc<CryptoProvider>);

impl ServerCertVerifier for Onlooker {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
