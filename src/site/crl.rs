//! Lists of revoked client certificates as data (RFC 5280 5): what is in a file, and what is doubtful about it.
//!
//! Whether a certificate is on a list is judged in the handshake, signature and all. A list whose time is over goes on to
//! hold: what it revokes stays revoked, and a CA that is late with the next one must not lock everybody out.

use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// A file of lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Crl {
    /// The file, which is watched.
    pub file: PathBuf,
    /// What was in it when the configuration was loaded.
    pub lists: Lists,
}

/// Lists (DER).
pub type Lists = Arc<[Vec<u8>]>;

/// The lists in a file: PEM, one or more.
///
/// # Errors
/// When there is none, or one is malformed: in words.
pub fn parse(pem: &[u8]) -> Result<Lists, &'static str> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let lists: Vec<Vec<u8>> =
        lists.map_err(|_| "it is no PEM file, or not a whole one")?.iter().map(|der| der.to_vec()).collect();
    if lists.is_empty() {
        return Err("it holds no \"BEGIN X509 CRL\"");
    }
    if lists.iter().any(|der| CertificateRevocationList::from_der(der).is_err()) {
        return Err("a list in it is malformed");
    }
    Ok(Arc::from(lists))
}

/// Something that is doubtful about lists that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The time of a list is over.
    Old {
        /// Whose it is.
        issuer: String,
        /// Since when.
        since: String,
    },
    /// An authority has no list: none of its clients can be judged, and so none is let in.
    Missing {
        /// Which.
        authority: String,
    },
}

/// What is doubtful about lists, beside the certificates (DER) of the authorities that clients may come from.
pub fn doubts(lists: &[Vec<u8>], authorities: &[Vec<u8>]) -> Vec<Doubt> {
    let parsed: Vec<_> =
        lists.iter().filter_map(|der| Some(CertificateRevocationList::from_der(der).ok()?.1)).collect();
    let now = ASN1Time::now();
    let old = parsed.iter().filter_map(|list| {
        let end = list.next_update().filter(|end| *end < now)?;
        Some(Doubt::Old { issuer: list.issuer().to_string(), since: end.to_datetime().date().to_string() })
    });
    let missing = authorities.iter().filter_map(|der| {
        let (_, authority) = x509_parser::parse_x509_certificate(der).ok()?;
        let has_list = parsed.iter().any(|list| list.issuer().as_raw() == authority.subject().as_raw());
        (!has_list).then(|| Doubt::Missing { authority: authority.subject().to_string() })
    });
    old.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_list_is_said() {
        for (pem, why) in [
            (&b""[..], "it holds no \"BEGIN X509 CRL\""),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "it holds no \"BEGIN X509 CRL\""),
            (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "a list in it is malformed"),
            (b"-----BEGIN X509 CRL-----\nAAAA\n", "it is no PEM file, or not a whole one"),
        ] {
            assert_eq!(parse(pem), Err(why), "{}", String::from_utf8_lossy(pem));
        }
    }
}
