//! TLS towards endpoints: which authorities are believed, which certificate we show.
//!
//! The caller keeps what it gets here: one configuration for each TLS identity of an endpoint, so
//! that sessions are resumed and files are not read again.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, SupportedProtocolVersion};
use rustls_platform_verifier::Verifier;

use super::fault::TlsError;
use super::policies::provider;
use crate::site::upstream::EndpointTls;

/// The configuration of connections to an endpoint: TLS 1.2 or 1.3, ALPN `http/1.1` only, because
/// that is what is spoken upstream.
///
/// # Errors
/// When an authority, the client certificate or its key cannot be used, or the system has no trust
/// store.
pub fn client_config(tls: &EndpointTls) -> Result<Arc<ClientConfig>, TlsError> {
    const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    let named = |what: &str| format!("cannot use {what} for the endpoint \"{}\"", tls.server_name);
    let fault = |what: &str, help: &str, error: rustls::Error| TlsError::new(named(what), help).because(error);
    let verifier = match &tls.ca {
        Some(list) => {
            own_authorities(list).map_err(|error| error_in_ca(&named("the authorities (`tls.ca`)"), error))?
        }
        None => platform()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&VERSIONS)
        .map_err(|error| fault("TLS", "report this", error))?
        // "dangerous" because any verifier could be put here; both of ours check chain and name.
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            const HELP: &str = "`tls.cert` and `tls.key` must be a PEM chain, leaf first, and the key of its leaf";
            let key = PrivateKeyDer::from_pem_slice(&identity.key_pem)
                .map_err(|error| TlsError::new(named("the key of the client certificate"), HELP).because(error))?;
            let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
            builder.with_client_auth_cert(chain, key).map_err(|error| fault("the client certificate", HELP, error))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The configuration of the edge's own requests (`https.rs`): the system's authorities and further ones (DER). ALPN is
/// the caller's.
///
/// # Errors
/// When one of them cannot be used, or the system has no trust store and there are no further ones.
pub fn service_config(further: &[Vec<u8>]) -> Result<ClientConfig, TlsError> {
    const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    let fault = |error: Box<dyn std::error::Error + Send + Sync>| {
        TlsError::new("cannot use the authorities of `acme.root`", "put CA certificates in PEM form there")
            .because(error)
    };
    let verifier: Arc<dyn ServerCertVerifier> = if further.is_empty() {
        platform()?
    } else {
        let roots = further.iter().map(|der| CertificateDer::from(der.clone()));
        match Verifier::new_with_extra_roots(roots, provider()) {
            Ok(verifier) => Arc::new(verifier),
            // A machine without a trust store: the further ones are all there is.
            Err(_) => own_authorities(further).map_err(fault)?,
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&VERSIONS)
        .map_err(|error| fault(error.into()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(builder.with_no_client_auth())
}

fn own_authorities(list: &[Vec<u8>]) -> Result<Arc<dyn ServerCertVerifier>, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for der in list {
        roots.add(der.as_slice().into())?;
    }
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}

fn error_in_ca(what: &str, error: Box<dyn std::error::Error + Send + Sync>) -> TlsError {
    TlsError::new(what, "`tls.ca` must hold CA certificates in PEM form").because(error)
}

/// The system's authorities. Read once: it takes milliseconds and some hundred kilobytes, and every
/// endpoint uses the same ones. Not state: the same machine gives the same value.
fn platform() -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    static SHARED: OnceLock<Arc<Verifier>> = OnceLock::new();
    if let Some(verifier) = SHARED.get() {
        return Ok(Arc::<Verifier>::clone(verifier));
    }
    let verifier = Verifier::new(provider()).map_err(|error| {
        TlsError::new(
            "cannot read the system's certificate authorities",
            "install the package ca-certificates, or name the endpoint's authority with `tls.ca`",
        )
        .because(error)
    })?;
    Ok(Arc::<Verifier>::clone(SHARED.get_or_init(|| Arc::new(verifier))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::UnknownSni;
    use crate::site::policy::{CertificateSource, ClientCert, TlsPolicy};
    use crate::site::upstream::ClientIdentity;
    use crate::tls::testing::{Edge, policy, site};
    use rcgen::{CertificateParams, IsCa, KeyPair};

    /// An edge in the place of the endpoint: it accepts one client certificate, issued by itself.
    fn endpoint() -> (Edge, ClientIdentity) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root");
        let issuer = rcgen::Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "edge");
        let leaf = params.signed_by(&key, &issuer).expect("a certificate");
        let rule = ClientCert {
            ca_file: "ca.pem".into(),
            ca: Arc::new([root.der().to_vec()]),
            crl: None,
            required: true,
            header: None,
        };
        let policy = TlsPolicy { client_cert: Some(rule), ..policy() };
        let edge = Edge::new(UnknownSni::Reject, vec![site("a.test", &policy, CertificateSource::Local)]);
        let identity = ClientIdentity { chain: vec![leaf.der().to_vec()], key_pem: key.serialize_pem().into_bytes() };
        (edge, identity)
    }

    #[tokio::test]
    async fn an_endpoint_is_verified_and_sees_our_certificate() {
        let (edge, identity) = endpoint();
        let tls = EndpointTls {
            server_name: "a.test".into(),
            ca: Some(Arc::new([edge.root().to_vec()])),
            client: Some(Arc::new(identity)),
        };
        let config = client_config(&tls).expect("a configuration");
        let facts = edge.meet(&config, "a.test").await.0.expect("a handshake").facts;
        assert_eq!(facts.client_subject.as_deref(), Some("CN=edge"));
        assert_eq!(facts.alpn, crate::site::policy::Alpn::Http11);

        // Another authority than the endpoint's: we refuse it.
        let tls = EndpointTls { ca: Some(Arc::new([endpoint().0.root().to_vec()])), ..tls };
        let config = client_config(&tls).expect("a configuration");
        assert!(edge.meet(&config, "a.test").await.1.is_err());
    }

    #[test]
    fn faults_name_the_endpoint_and_the_key() {
        let (edge, identity) = endpoint();
        let ca: Option<Arc<[Vec<u8>]>> = Some(Arc::new([edge.root().to_vec()]));
        let foreign = KeyPair::generate().expect("a key").serialize_pem().into_bytes();
        let with_key = |key_pem: &[u8]| {
            Some(Arc::new(ClientIdentity { chain: identity.chain.clone(), key_pem: key_pem.to_vec() }))
        };
        for (ca, client, expected) in [
            (Some(Arc::from([vec![1]])), None, "`tls.ca`"),
            (ca.clone(), with_key(b"nothing"), "the key of the client certificate"),
            (ca, with_key(&foreign), "the client certificate"),
        ] {
            let tls = EndpointTls { server_name: "up.test".into(), ca, client };
            let error = client_config(&tls).expect_err("a fault");
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains("\"up.test\"") && !error.help().is_empty(), "{text}");
        }
    }
}
