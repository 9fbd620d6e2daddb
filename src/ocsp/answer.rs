//! What a responder answered, and whether a client would believe it (RFC 6960 3.2 and 4.2, profile RFC 5019 2.2).
//!
//! An answer comes over plain HTTP from whoever stands on the path: it counts for what its signature covers.

use rustls::pki_types::{AlgorithmIdentifier, alg_id};
use time::{Duration, OffsetDateTime};
use x509_parser::asn1_rs::GeneralizedTime;

use super::der::{ENUMERATED, INTEGER, OCTETS, OID, Reader, SEQUENCE, TIME, tagged, tagged_plain};
use super::question::{Question, SHA1, key_of, sha1};
use crate::tls::provider;

/// What an answer says that can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// About the certificate.
    pub status: Status,
    /// Until when it counts.
    pub until: OffsetDateTime,
}

/// What the CA says about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is valid.
    Good,
    /// Clients must not accept it any more.
    Revoked {
        /// From this time on.
        since: OffsetDateTime,
    },
}

/// Why an answer says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no OCSP response, or none of the basic kind.
    #[error("the answer is no OCSP response")]
    Malformed,
    /// A client would have to read it in each handshake.
    #[error("the answer is larger than {LARGEST} bytes")]
    Large,
    /// The responder has no answer.
    #[error("the responder refused: {0}")]
    Refused(&'static str),
    /// It is not about our certificate.
    #[error("the answer is about another certificate")]
    Other,
    /// Nobody who may has signed it.
    #[error("the answer is signed by nobody whom the issuer has put in charge")]
    Signer,
    /// The signature is wrong.
    #[error("the signature of the answer is wrong")]
    Signature,
    /// Not one that all clients can check.
    #[error("the answer is signed with an algorithm that is not used here")]
    Algorithm,
    /// The responder does not know the certificate.
    #[error("the responder does not know the certificate")]
    Unknown,
    /// It does not count yet.
    #[error("the answer does not count yet: is the clock right?")]
    Early,
    /// It does not count any more.
    #[error("the answer does not count any more")]
    Late,
    /// RFC 5019 2.2.4: without an end it would be served for ever.
    #[error("the answer has no end (nextUpdate)")]
    Endless,
}

/// Our choice: it travels in each full handshake; answers have 0.3 to 2.5 KiB.
const LARGEST: usize = 16 * 1024;
/// How far a responder's clock may be ahead of ours.
const SKEW: Duration = Duration::minutes(5);
/// `1.3.6.1.5.5.7.48.1.1`: the basic kind, the only one there is.
const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";

/// Reads an answer and says what can be believed of it.
///
/// # Errors
/// When that is nothing.
pub fn judge(der: &[u8], question: &Question, now: OffsetDateTime) -> Result<Verdict, Fault> {
    if der.len() > LARGEST {
        return Err(Fault::Large);
    }
    let response = Response::parse(der)?;
    let single = response.singles.iter().find(|single| single.is_about(question)).ok_or(Fault::Other)?;
    // Before anything that it says is used.
    response.check_signature(question, now)?;
    let until = single.next_update.ok_or(Fault::Endless)?;
    if single.this_update > now + SKEW {
        return Err(Fault::Early);
    }
    if until <= now || until <= single.this_update {
        return Err(Fault::Late);
    }
    let status = match single.said {
        Said::Good => Status::Good,
        Said::Revoked(since) => Status::Revoked { since },
        Said::Unknown => return Err(Fault::Unknown),
    };
    Ok(Verdict { status, until })
}

/// A response of the basic kind, read but not yet believed.
#[derive(Clone, Debug)]
pub struct Response<'a> {
    signed: Signed<'a>,
    responder: Responder<'a>,
    singles: Vec<Single<'a>>,
    certificates: Vec<&'a [u8]>,
}

/// Who says to have signed.
#[derive(Clone, Copy, Debug)]
enum Responder<'a> {
    /// Whoever has this name (DER).
    Name(&'a [u8]),
    /// Whoever has the key with this SHA-1.
    KeyHash(&'a [u8]),
}

/// What is said of one certificate.
#[derive(Clone, Copy, Debug)]
struct Single<'a> {
    algorithm: &'a [u8],
    name_hash: &'a [u8],
    key_hash: &'a [u8],
    serial: &'a [u8],
    said: Said,
    this_update: OffsetDateTime,
    next_update: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug)]
enum Said {
    Good,
    Revoked(OffsetDateTime),
    Unknown,
}

impl<'a> Response<'a> {
    /// Reads a response; nothing may follow it.
    ///
    /// # Errors
    /// When it is none, or it is the responder's refusal.
    pub fn parse(der: &'a [u8]) -> Result<Self, Fault> {
        let mut top = Reader::new(der);
        let mut response = top.inside(SEQUENCE).ok_or(Fault::Malformed)?;
        top.end().ok_or(Fault::Malformed)?;
        // RFC 6960 4.2.1: a refusal is not signed and has nothing else in it.
        match response.content(ENUMERATED).ok_or(Fault::Malformed)? {
            [0] => Self::basic(response).ok_or(Fault::Malformed),
            [1] => Err(Fault::Refused("malformedRequest")),
            [2] => Err(Fault::Refused("internalError")),
            [3] => Err(Fault::Refused("tryLater")),
            [5] => Err(Fault::Refused("sigRequired")),
            [6] => Err(Fault::Refused("unauthorized")),
            _ => Err(Fault::Malformed),
        }
    }

    /// `responseBytes`, and in them `BasicOCSPResponse`.
    fn basic(mut response: Reader<'a>) -> Option<Self> {
        let mut typed = response.inside(tagged(0))?.inside(SEQUENCE)?;
        response.end()?;
        if typed.content(OID)? != BASIC {
            return None;
        }
        let mut octets = typed.inside(OCTETS)?;
        typed.end()?;
        let mut basic = octets.inside(SEQUENCE)?;
        octets.end()?;
        let signed = Signed::read(&mut basic)?;
        let mut certificates = Vec::new();
        if basic.has(tagged(0)) {
            let mut list = basic.inside(tagged(0))?.inside(SEQUENCE)?;
            while list.has(SEQUENCE) {
                certificates.push(list.element(SEQUENCE)?.whole);
            }
            list.end()?;
        }
        basic.end()?;
        let (responder, singles) = data(signed.body)?;
        Some(Self { signed, responder, singles, certificates })
    }

    /// RFC 6960 4.2.2.2: by the issuer itself, or by whom the issuer has put in charge of its answers.
    fn check_signature(&self, question: &Question, now: OffsetDateTime) -> Result<(), Fault> {
        if self.responder.is(&question.issuer_name, &question.issuer_key) {
            return self.signed.check(&question.issuer_key);
        }
        for certificate in &self.certificates {
            let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { continue };
            let key = parsed.public_key().raw;
            let is_in_charge = || {
                let mut whole = Reader::new(certificate).inside(SEQUENCE)?;
                let usage = parsed.extended_key_usage().ok()??;
                let validity = parsed.validity();
                let is_now = validity.not_before.to_datetime() <= now && now <= validity.not_after.to_datetime();
                let is_issued = parsed.issuer().as_raw() == question.issuer_name;
                // Last, because it costs most.
                (is_issued && is_now && usage.value.ocsp_signing)
                    .then(|| Signed::read(&mut whole)?.check(&question.issuer_key).ok())?
            };
            if self.responder.is(parsed.subject().as_raw(), key) && is_in_charge().is_some() {
                return self.signed.check(key);
            }
        }
        Err(Fault::Signer)
    }
}

impl Responder<'_> {
    fn is(&self, name: &[u8], key: &[u8]) -> bool {
        match self {
            Self::Name(theirs) => *theirs == name,
            Self::KeyHash(theirs) => key_of(key).is_some_and(|(_, key)| sha1(key) == *theirs),
        }
    }
}

impl Single<'_> {
    fn is_about(&self, question: &Question) -> bool {
        self.algorithm == SHA1
            && self.name_hash == question.name_hash
            && self.key_hash == question.key_hash
            && self.serial == question.serial
    }
}

/// What a certificate and a basic response have in common: a body, an algorithm, a signature.
#[derive(Clone, Copy, Debug)]
struct Signed<'a> {
    body: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn read(from: &mut Reader<'a>) -> Option<Self> {
        let body = from.element(SEQUENCE)?.whole;
        Some(Self { body, algorithm: from.content(SEQUENCE)?, signature: from.bits()? })
    }

    fn check(&self, key: &[u8]) -> Result<(), Fault> {
        // Those that every client of the last ten years can check; without SHA-1.
        const KEYS: [AlgorithmIdentifier; 3] = [alg_id::ECDSA_P256, alg_id::ECDSA_P384, alg_id::RSA_ENCRYPTION];
        const SIGNATURES: [AlgorithmIdentifier; 5] = [
            alg_id::ECDSA_SHA256,
            alg_id::ECDSA_SHA384,
            alg_id::RSA_PKCS1_SHA256,
            alg_id::RSA_PKCS1_SHA384,
            alg_id::RSA_PKCS1_SHA512,
        ];
        let (kind, key) = key_of(key).ok_or(Fault::Malformed)?;
        let is_used =
            KEYS.iter().any(|one| one.as_ref() == kind) && SIGNATURES.iter().any(|one| one.as_ref() == self.algorithm);
        let mut known = provider().signature_verification_algorithms.all.iter().filter(|_| is_used);
        let algorithm = known
            .find(|one| one.public_key_alg_id().as_ref() == kind && one.signature_alg_id().as_ref() == self.algorithm);
        let algorithm = algorithm.ok_or(Fault::Algorithm)?;
        algorithm.verify_signature(key, self.body, self.signature).map_err(|_| Fault::Signature)
    }
}

/// `ResponseData` (RFC 6960 4.2.1).
fn data(body: &[u8]) -> Option<(Responder<'_>, Vec<Single<'_>>)> {
    let mut data = Reader::new(body).inside(SEQUENCE)?;
    if data.has(tagged(0)) {
        // Version 1 is the only one.
        (data.inside(tagged(0))?.content(INTEGER)? == [0]).then_some(())?;
    }
    let responder = match data.content(tagged(1)) {
        Some(name) => Responder::Name(name),
        None => Responder::KeyHash(data.inside(tagged(2))?.content(OCTETS)?),
    };
    time(&mut data)?;
    let mut list = data.inside(SEQUENCE)?;
    let mut singles = Vec::new();
    while let Some(single) = list.inside(SEQUENCE) {
        singles.push(self::single(single)?);
    }
    list.end()?;
    extensions(&mut data)?;
    Some((responder, singles))
}

/// `SingleResponse` (RFC 6960 4.2.1).
fn single(mut from: Reader<'_>) -> Option<Single<'_>> {
    let mut id = from.inside(SEQUENCE)?;
    let algorithm = id.inside(SEQUENCE)?.content(OID)?;
    let (name_hash, key_hash, serial) = (id.content(OCTETS)?, id.content(OCTETS)?, id.content(INTEGER)?);
    id.end()?;
    let said = if from.content(tagged_plain(0)).is_some() {
        Said::Good
    } else if let Some(mut revoked) = from.inside(tagged(1)) {
        Said::Revoked(time(&mut revoked)?)
    } else {
        from.content(tagged_plain(2))?;
        Said::Unknown
    };
    let this_update = time(&mut from)?;
    let next_update = match from.inside(tagged(0)) {
        Some(mut next) => Some(time(&mut next)?),
        None => None,
    };
    extensions(&mut from)?;
    Some(Single { algorithm, name_hash, key_hash, serial, said, this_update, next_update })
}

/// Skips extensions: none changes what is asked here. Nothing may follow them.
fn extensions(from: &mut Reader<'_>) -> Option<()> {
    if from.has(tagged(1)) {
        from.content(tagged(1))?;
    }
    from.end()
}

/// RFC 5280 4.1.2.5.2: `YYYYMMDDHHMMSSZ`, nothing else.
fn time(from: &mut Reader<'_>) -> Option<OffsetDateTime> {
    let text = from.content(TIME).filter(|text| text.len() == 15 && text.ends_with(b"Z"))?;
    GeneralizedTime::from_bytes(text).ok()?.utc_datetime().ok()
}
