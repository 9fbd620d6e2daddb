//! What the tests of `ocsp` share: an authority whose leaves name a responder, and answers made to order.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SerialNumber, SigningKey as _,
};
use rustls::pki_types::{AlgorithmIdentifier, CertificateDer, PrivateKeyDer, alg_id};
use rustls::sign::CertifiedKey;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

use super::der::{self, BITS, ENUMERATED, INTEGER, NULL, OCTETS, OID, SEQUENCE, TIME, tagged, tagged_plain};
use super::question::{Question, SHA1, key_of, sha1};
use crate::site::policy::CertificateSource;
use crate::tls::certs::{CertFacts, Certificate};
use crate::tls::provider;

/// An authority.
pub(super) struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) der: CertificateDer<'static>,
}

impl Authority {
    /// One with an ECDSA key.
    pub(super) fn new() -> Self {
        Self::with(KeyPair::generate().expect("a key"))
    }

    /// One with this key.
    pub(super) fn with(key: KeyPair) -> Self {
        let mut params = named("an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).expect("a certificate").der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// A chain of two and its key, as a handshake uses them.
    pub(super) fn leaf(&self, extensions: Vec<CustomExtension>) -> Certificate {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from_slice(&[0x5e, 1, 2, 3]));
        params.custom_extensions = extensions;
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let facts = CertFacts::read(&leaf, CertificateSource::Acme).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let key = provider().key_provider.load_private_key(key).expect("a key");
        Certificate { key: Arc::new(CertifiedKey::new(vec![leaf, self.der.clone()], key)), facts }
    }

    /// Whoever answers in its name: their certificate and key.
    pub(super) fn delegate(&self, edit: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
        let mut params = named("a responder");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        edit(&mut params);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate").der().clone(), key)
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// The extension that names responders.
pub(super) fn responders(urls: &[&str]) -> CustomExtension {
    const OCSP: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01";
    let one = |url: &&str| {
        der::write(SEQUENCE, &[&der::write(OID, &[OCSP]), &der::write(tagged_plain(6), &[url.as_bytes()])])
    };
    let all: Vec<Vec<u8>> = urls.iter().map(one).collect();
    let content = der::write(SEQUENCE, &all.iter().map(Vec::as_slice).collect::<Vec<_>>());
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content)
}

/// The TLS feature extension with these features.
pub(super) fn features(list: &[u8]) -> CustomExtension {
    let all: Vec<Vec<u8>> = list.iter().map(|feature| der::write(INTEGER, &[&[*feature]])).collect();
    let content = der::write(SEQUENCE, &all.iter().map(Vec::as_slice).collect::<Vec<_>>());
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], content)
}

/// An answer, as it will be made.
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) algorithm: &'static [u8],
    /// The identifier octet of the status, and its content.
    pub(super) status: (u8, Vec<u8>),
    pub(super) this_update: OffsetDateTime,
    pub(super) next_update: Option<OffsetDateTime>,
    pub(super) signature: AlgorithmIdentifier,
    pub(super) by_key: bool,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

impl Answer {
    /// A good one, for two hours of which one has passed.
    pub(super) fn good(question: &Question, now: OffsetDateTime) -> Self {
        Self {
            question: question.clone(),
            algorithm: SHA1,
            status: (tagged_plain(0), Vec::new()),
            this_update: now - Duration::HOUR,
            next_update: Some(now + Duration::HOUR),
            signature: alg_id::ECDSA_SHA256,
            by_key: false,
            certificates: Vec::new(),
        }
    }

    /// A revocation, an hour ago.
    pub(super) fn revoked(question: &Question, now: OffsetDateTime) -> Self {
        let since = time(now - Duration::HOUR);
        let reason = der::write(tagged(0), &[&der::write(ENUMERATED, &[&[1]])]);
        Self { status: (tagged(1), [since, reason].concat()), ..Self::good(question, now) }
    }

    /// Signed by this key, whose holder has this certificate.
    pub(super) fn sign(&self, key: &KeyPair, certificate: &[u8]) -> Vec<u8> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
        let (_, bits) = key_of(parsed.public_key().raw).expect("a key");
        let responder = match self.by_key {
            true => der::write(tagged(2), &[&der::write(OCTETS, &[&sha1(bits)])]),
            false => der::write(tagged(1), &[parsed.subject().as_raw()]),
        };
        let id = [
            der::write(SEQUENCE, &[&der::write(OID, &[self.algorithm]), &der::write(NULL, &[])]),
            der::write(OCTETS, &[&self.question.name_hash]),
            der::write(OCTETS, &[&self.question.key_hash]),
            der::write(INTEGER, &[&self.question.serial]),
        ];
        let next = self.next_update.map(|next| der::write(tagged(0), &[&time(next)])).unwrap_or_default();
        let single = [
            der::write(SEQUENCE, &id.each_ref().map(Vec::as_slice)),
            der::write(self.status.0, &[&self.status.1]),
            time(self.this_update),
            next,
        ];
        let single = der::write(SEQUENCE, &single.each_ref().map(Vec::as_slice));
        let data = der::write(SEQUENCE, &[&responder, &time(self.this_update), &der::write(SEQUENCE, &[&single])]);
        let signature = key.sign(&data).expect("a signature");
        let certificates: Vec<&[u8]> = self.certificates.iter().map(|one| &**one).collect();
        let certificates = match certificates.is_empty() {
            true => Vec::new(),
            false => der::write(tagged(0), &[&der::write(SEQUENCE, &certificates)]),
        };
        let basic = [
            data,
            der::write(SEQUENCE, &[self.signature.as_ref()]),
            der::write(BITS, &[&[0], &signature]),
            certificates,
        ];
        response(&[0], &der::write(SEQUENCE, &basic.each_ref().map(Vec::as_slice)))
    }
}

/// A response with this status and these octets of the basic kind.
pub(super) fn response(status: &[u8], basic: &[u8]) -> Vec<u8> {
    const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";
    let typed = der::write(SEQUENCE, &[&der::write(OID, &[BASIC]), &der::write(OCTETS, &[basic])]);
    der::write(SEQUENCE, &[&der::write(ENUMERATED, &[status]), &der::write(tagged(0), &[&typed])])
}

fn time(time: OffsetDateTime) -> Vec<u8> {
    let form = format_description!("[year][month][day][hour][minute][second]Z");
    der::write(TIME, &[time.format(form).expect("a time").as_bytes()])
}
