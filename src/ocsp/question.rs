//! What there is to ask about a certificate, and the words of the request (RFC 6960 4.1, profile RFC 5019 2.1).

use aws_lc_rs::digest;
use bytes::Bytes;
use http::Uri;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_PKIX_ACCESS_DESCRIPTOR_OCSP, OID_PKIX_AUTHORITY_INFO_ACCESS};

use super::der::{self, INTEGER, NULL, OCTETS, OID, Reader, SEQUENCE};

/// A certificate whose CA can be asked, and what identifies it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whom to ask, best first.
    pub urls: Vec<Uri>,
    /// The issuer's name (DER).
    pub(super) issuer_name: Vec<u8>,
    /// The issuer's public key with its algorithm (`SubjectPublicKeyInfo`, DER).
    pub(super) issuer_key: Vec<u8>,
    /// SHA-1 of the issuer's name.
    pub(super) name_hash: Vec<u8>,
    /// SHA-1 of the issuer's key.
    pub(super) key_hash: Vec<u8>,
    /// The content of the serial number.
    pub(super) serial: Vec<u8>,
}

/// Why nobody can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unaskable {
    /// Most certificates, today.
    #[error("it names no OCSP responder")]
    NoResponder,
    /// The operator gave the leaf alone.
    #[error("its chain does not hold its issuer")]
    NoIssuer,
    /// It was published, so a handshake can use it; this cannot.
    #[error("it cannot be read")]
    Unreadable,
}

/// `1.3.14.3.2.26`. Broken for signatures, but what responders know (RFC 5019 2.1.1): here it is only a name.
pub(super) const SHA1: &[u8] = b"\x2b\x0e\x03\x02\x1a";
/// `1.3.6.1.5.5.7.1.24` (RFC 7633).
const TLS_FEATURE: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x01\x18";
/// The TLS extension `status_request` (RFC 6066 8), as that extension lists it.
const STATUS_REQUEST: &[u8] = &[5];
/// Further ones are not tried: an attempt is to end, and CAs name one.
const MOST_URLS: usize = 2;

impl Question {
    /// What to ask about the first certificate of a chain.
    ///
    /// # Errors
    /// When there is nobody to ask.
    pub fn read(chain: &[CertificateDer<'_>]) -> Result<Self, Unaskable> {
        let (leaf, others) = chain.split_first().ok_or(Unaskable::Unreadable)?;
        let leaf = parse(leaf).ok_or(Unaskable::Unreadable)?;
        let urls = responders(&leaf);
        if urls.is_empty() {
            return Err(Unaskable::NoResponder);
        }
        let issuer_name = leaf.issuer().as_raw();
        let mut parsed = others.iter().filter_map(|der| parse(der));
        let issuer = parsed.find(|one| one.subject().as_raw() == issuer_name).ok_or(Unaskable::NoIssuer)?;
        let issuer_key = issuer.public_key().raw;
        Ok(Self {
            urls,
            issuer_name: issuer_name.to_vec(),
            name_hash: sha1(issuer_name),
            key_hash: key_of(issuer_key).map(|(_, key)| sha1(key)).ok_or(Unaskable::NoIssuer)?,
            issuer_key: issuer_key.to_vec(),
            serial: leaf.raw_serial().to_vec(),
        })
    }

    /// The request (RFC 6960 4.1.1). No nonce: responders answer from a cache (RFC 5019 2.1.1).
    pub fn request(&self) -> Bytes {
        let algorithm = der::write(SEQUENCE, &[&der::write(OID, &[SHA1]), &der::write(NULL, &[])]);
        let id = [
            algorithm,
            der::write(OCTETS, &[&self.name_hash]),
            der::write(OCTETS, &[&self.key_hash]),
            der::write(INTEGER, &[&self.serial]),
        ];
        // CertID, Request, requestList, TBSRequest, OCSPRequest.
        let id = der::write(SEQUENCE, &id.each_ref().map(Vec::as_slice));
        (0..4).fold(id, |inner, _| der::write(SEQUENCE, &[&inner])).into()
    }
}

/// True when clients that know the TLS feature extension refuse the certificate without a staple (RFC 7633).
pub fn must_staple(leaf: &[u8]) -> bool {
    let asks = |leaf: &X509Certificate<'_>| {
        let extension = leaf.extensions().iter().find(|one| one.oid.as_bytes() == TLS_FEATURE)?;
        let mut features = Reader::new(extension.value).inside(SEQUENCE)?;
        while let Some(feature) = features.content(INTEGER) {
            if feature == STATUS_REQUEST {
                return Some(());
            }
        }
        None
    };
    parse(leaf).is_some_and(|leaf| asks(&leaf).is_some())
}

/// Algorithm and key of a `SubjectPublicKeyInfo`.
pub(super) fn key_of(info: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = Reader::new(info).inside(SEQUENCE)?;
    Some((parts.content(SEQUENCE)?, parts.bits()?))
}

/// SHA-1, as an identifier.
pub(super) fn sha1(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    x509_parser::parse_x509_certificate(der).ok().map(|(_, parsed)| parsed)
}

/// The responders that a certificate names (RFC 5280 4.2.2.1).
fn responders(leaf: &X509Certificate<'_>) -> Vec<Uri> {
    let Ok(Some(extension)) = leaf.get_extension_unique(&OID_PKIX_AUTHORITY_INFO_ACCESS) else { return Vec::new() };
    let ParsedExtension::AuthorityInfoAccess(access) = extension.parsed_extension() else { return Vec::new() };
    let urls = access.iter().filter(|one| one.access_method == OID_PKIX_ACCESS_DESCRIPTOR_OCSP).filter_map(|one| {
        let GeneralName::URI(text) = &one.access_location else { return None };
        let url: Uri = text.parse().ok()?;
        let is_web =
            matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty());
        is_web.then_some(url)
    });
    urls.take(MOST_URLS).collect()
}
