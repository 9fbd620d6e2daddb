//! Root, intermediate, and what they sign. Both live for decades, so that a clock that was moved finds them valid.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::book::{Identifier, random};
use super::fault::Wrong;
use super::problem::Problem;

/// The keys of the authority.
pub(crate) struct Pki {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A request for a certificate that was checked: signed by the key it names, and for these names.
pub(crate) struct Request {
    names: Vec<Identifier>,
    inner: CertificateSigningRequestParams,
}

/// A certificate that was made.
pub(crate) struct Leaf {
    pub(crate) serial: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
    pub(crate) sha256: String,
}

/// How far certificates begin in the past: clocks of clients differ by a second, and tests show that no more is needed.
const BACKDATED: Duration = Duration::from_secs(1);

impl Pki {
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let root = CertifiedIssuer::self_signed(authority("Test Root"), KeyPair::generate()?)?;
        let intermediate = CertifiedIssuer::signed_by(authority("Test Intermediate"), KeyPair::generate()?, &root)?;
        Ok(Self { root, intermediate })
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn intermediate_pem(&self) -> String {
        self.intermediate.pem()
    }

    /// The key identifier that leaves name their issuer by, for RFC 9773 4.1.
    pub(crate) fn intermediate_key_id(&self) -> Vec<u8> {
        authority("").key_identifier(self.intermediate.key())
    }

    /// The certificate of the authority's own HTTPS.
    pub(crate) fn server(&self, ip: IpAddr) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["localhost".to_owned(), ip.to_string()])?;
        params.distinguished_name = common_name("acme.example.test");
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(86400);
        params.not_after = params.not_before + DECADES;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.root)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok((certificate.der().clone(), key))
    }

    /// A leaf for a request, or one that is wrong in the way that was asked for.
    pub(crate) fn sign(
        &self,
        request: &Request,
        now: OffsetDateTime,
        lifetime: Duration,
        wrong: Option<Wrong>,
    ) -> Leaf {
        self.try_sign(request, now, lifetime, wrong).expect("names and key were checked with the order")
    }

    fn try_sign(
        &self,
        request: &Request,
        now: OffsetDateTime,
        lifetime: Duration,
        wrong: Option<Wrong>,
    ) -> Result<Leaf, rcgen::Error> {
        let other = [Identifier::Dns("wrong.example.test".to_owned())];
        let names = if wrong == Some(Wrong::Name) { &other[..] } else { &request.names };
        let mut serial = random::<16>();
        // Positive, and of this length in DER.
        serial[0] = serial[0] & 0x7f | 0x40;
        let not_before = now.replace_nanosecond(0).expect("zero is in range") - BACKDATED;
        let mut params = CertificateParams::default();
        params.not_before = not_before;
        params.not_after = not_before + lifetime;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = names.iter().map(general_name).collect::<Result<_, _>>()?;
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = if wrong == Some(Wrong::Key) {
            params.signed_by(&KeyPair::generate()?, &self.intermediate)?
        } else {
            params.signed_by(&request.inner.public_key, &self.intermediate)?
        };
        Ok(Leaf {
            serial: hex(&serial),
            not_before,
            not_after: not_before + lifetime,
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            sha256: hex(digest(&SHA256, certificate.der()).as_ref()),
        })
    }
}

impl Request {
    /// Reads a request and checks its signature, and that it asks for exactly these names (RFC 8555 7.4).
    pub(crate) fn parse(der: Vec<u8>, names: &[Identifier], account_key: &[u8]) -> Result<Self, Problem> {
        let bad = |why: String| Problem::new(400, "badCSR", why);
        let inner = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| bad(format!("not a good certificate request: {error}")))?;
        let mut asked = Vec::new();
        for name in &inner.params.subject_alt_names {
            asked.push(match name {
                SanType::DnsName(name) => Identifier::Dns(name.as_str().to_ascii_lowercase()),
                SanType::IpAddress(ip) => Identifier::Ip(*ip),
                other => return Err(bad(format!("a name of a kind that was not ordered: {other:?}"))),
            });
        }
        asked.sort();
        let mut ordered = names.to_vec();
        ordered.sort();
        if asked != ordered {
            return Err(bad(format!("the order is for {ordered:?}, the request for {asked:?}")));
        }
        if inner.public_key.der_bytes() == account_key {
            return Err(bad("the key of the account cannot be the key of a certificate".to_owned()));
        }
        Ok(Self { names: names.to_vec(), inner })
    }
}

const DECADES: Duration = Duration::from_secs(20 * 365 * 86400);

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(86400);
    params.not_after = params.not_before + DECADES;
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn general_name(identifier: &Identifier) -> Result<SanType, rcgen::Error> {
    Ok(match identifier {
        Identifier::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        Identifier::Ip(ip) => SanType::IpAddress(*ip),
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
