//! The certificate that an edge on this machine serves for a name: one handshake, nothing believed.

use std::fmt;
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
/// So many addresses that do not answer are enough to wait for.
const MOST: usize = 4;

/// Why it cannot be said what is served.
#[derive(Debug)]
pub(super) enum Silence {
    /// No connection to any of these.
    NothingAnswers(Vec<SocketAddr>),
    /// Something is there, and makes no handshake for the name: a site without a certificate, or another program.
    Refused(SocketAddr, io::Error),
    /// Only its own configuration says where such a listener is, or no TCP leads to it.
    CannotAsk(&'static str),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingAnswers(addresses) => {
                let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "nothing answers at {}", all.join(", "))
            }
            Self::Refused(address, error) => write!(f, "no handshake at {address}: {error}"),
            Self::CannotAsk(kind) => write!(f, "it cannot be asked from here ({kind})"),
        }
    }
}

/// The chain that is served for a name at one of these addresses.
///
/// # Errors
/// When no handshake shows it.
pub(super) fn chain(host: &HostPattern, addresses: &[ListenAddr]) -> Result<Vec<CertificateDer<'static>>, Silence> {
    let name = match host {
        HostPattern::Exact(name) => name.to_string(),
        // Any name below it will do; this one says who asks.
        HostPattern::Wildcard(name) => format!("tidegate-certs.{name}"),
    };
    let own = host.name().ip();
    let (mut silent, mut refused, mut unasked) = (Vec::new(), None, None);
    // The first that answers: all serve the same.
    for address in addresses {
        let address = match address {
            ListenAddr::Tcp(address) => reachable(*address, own),
            ListenAddr::Unix(_) => {
                unasked = Some("unix socket");
                continue;
            }
            ListenAddr::Systemd(_) => {
                unasked = Some("systemd socket");
                continue;
            }
        };
        if silent.len() == MOST {
            break;
        }
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Err(_) => silent.push(address),
            Ok(stream) => match handshake(&name, stream) {
                Ok(chain) => return Ok(chain),
                Err(error) => refused = Some(Silence::Refused(address, error)),
            },
        }
    }
    Err(refused.or(unasked.map(Silence::CannotAsk)).unwrap_or(Silence::NothingAnswers(silent)))
}

/// An address that everything listens on is reached by loopback. A site that is an address has no other name: clients send
/// none (RFC 6066 3), so that the address that they came to selects it.
fn reachable(address: SocketAddr, site: Option<IpAddr>) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let own = site.filter(|ip| ip.is_ipv4() == address.is_ipv4());
    let ip = own.unwrap_or(match address.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    });
    SocketAddr::new(ip, address.port())
}

fn handshake(name: &str, mut stream: TcpStream) -> io::Result<Vec<CertificateDer<'static>>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_is_an_address_is_asked_there() {
        let table = [
            ("0.0.0.0:443", None, "127.0.0.1:443"),
            ("[::]:443", None, "[::1]:443"),
            ("0.0.0.0:443", Some("198.51.100.20"), "198.51.100.20:443"),
            ("[::]:443", Some("198.51.100.20"), "[::1]:443"),
            ("[::]:443", Some("2001:db8::1"), "[2001:db8::1]:443"),
            ("192.0.2.1:443", Some("198.51.100.20"), "192.0.2.1:443"),
        ];
        for (listener, site, asked) in table {
            let address: SocketAddr = listener.parse().expect("an address");
            let site = site.map(|ip: &str| ip.parse().expect("an address"));
            assert_eq!(reachable(address, site).to_string(), asked, "{listener} {site:?}");
        }
    }

    #[test]
    fn what_is_no_tcp_address_cannot_be_asked() {
        let host = HostPattern::from_config("a.example.com").expect("a name");
        let said = |addresses: &[ListenAddr]| chain(&host, addresses).expect_err("nothing is there").to_string();
        let systemd = ListenAddr::Systemd("https".into());
        assert_eq!(said(&[systemd]), "it cannot be asked from here (systemd socket)");
        assert_eq!(said(&[ListenAddr::Unix("a.sock".into())]), "it cannot be asked from here (unix socket)");
        // Port 0 is nobody's.
        let nobody = "127.0.0.1:0".parse().expect("an address");
        assert_eq!(said(&[ListenAddr::Tcp(nobody)]), "nothing answers at 127.0.0.1:0");
    }
}
