//! Certificates from a CA as they are kept under `storage`: one file for each site, key and chain in
//! it, so that nobody ever sees half of a renewal.
//!
//! Here is what reading needs; `acme/store.rs` writes. A site's file is named after its first name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::certs::{CertFacts, Certificate};
use super::fault::TlsError;
use super::files::content;
use super::policies::provider;
use crate::addr::HostPattern;
use crate::site::policy::CertificateSource;

/// The directory of everything about one site's certificate.
pub fn directory(storage: &Path, site: &HostPattern) -> PathBuf {
    // A normalised name has no slash and no `+`; `*` would only annoy people in a shell.
    let name = match site {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Wildcard(name) => format!("+.{name}"),
    };
    storage.join("acme").join("certificates").join(name)
}

/// The file with the key and the chain.
pub fn file(storage: &Path, site: &HostPattern) -> PathBuf {
    directory(storage, site).join("certificate.pem")
}

/// The certificate of a site, if one is kept.
///
/// # Errors
/// When the file is there and cannot be used.
pub fn load(storage: &Path, site: &HostPattern) -> Result<Option<Arc<Certificate>>, TlsError> {
    let path = file(storage, site);
    if let Err(error) = path.symlink_metadata()
        && error.kind() == std::io::ErrorKind::NotFound
    {
        return Ok(None);
    }
    let pem = content(&path, "cannot read the kept certificate")?;
    parse(&pem).map(Some).map_err(|error| {
        TlsError::new(
            "cannot use the kept certificate",
            "move the file away: a new certificate is ordered then (`tidegate certs renew`)",
        )
        .in_file(&path)
        .because(error)
    })
}

/// Reads a key and its chain, leaf first.
///
/// # Errors
/// When there is no key, no chain, or they do not belong together.
pub fn parse(pem: &[u8]) -> Result<Arc<Certificate>, Box<dyn std::error::Error + Send + Sync>> {
    let key = provider().key_provider.load_private_key(PrivateKeyDer::from_pem_slice(pem)?)?;
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    let leaf = chain.first().ok_or("it holds no certificate")?;
    let facts = CertFacts::read(leaf, CertificateSource::Acme).ok_or("its first certificate cannot be read")?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|_| "its certificate does not belong to its key")?;
    Ok(Arc::new(Certificate { key: Arc::new(key), facts }))
}

/// True when each certificate is issued by the next one and the leaf does not stand alone: what clients need without
/// fetching anything (RFC 8446 4.4.2).
pub fn is_whole_chain(certificate: &Certificate) -> bool {
    super::files::is_chain(&certificate.key.cert)
}
