//! Signed requests (RFC 7515, flattened JSON): read, and checked for real. Accounts sign with ES256, external
//! accounts with HS256; nothing else is accepted.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde::Deserialize;

use super::problem::Problem;

/// A signed request as it came: nothing in it is proved yet.
pub(crate) struct Envelope {
    pub(crate) head: Head,
    pub(crate) payload: Vec<u8>,
    signed: String,
    signature: Vec<u8>,
}

/// The protected header.
#[derive(Deserialize)]
pub(crate) struct Head {
    pub(crate) alg: String,
    pub(crate) nonce: Option<String>,
    pub(crate) url: Option<String>,
    pub(crate) jwk: Option<Jwk>,
    pub(crate) kid: Option<String>,
}

/// A public key of P-256 (RFC 7517).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

#[derive(Deserialize)]
struct Flattened {
    protected: String,
    payload: String,
    signature: String,
}

impl Envelope {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let parts: Flattened =
            serde_json::from_slice(body).map_err(|error| Problem::malformed(format!("not a JWS: {error}")))?;
        Self::from_parts(parts)
    }

    /// One inside another: an external account binding, a change of keys.
    pub(crate) fn from_value(value: serde_json::Value) -> Result<Self, Problem> {
        let parts = serde_json::from_value(value).map_err(|error| Problem::malformed(format!("not a JWS: {error}")))?;
        Self::from_parts(parts)
    }

    fn from_parts(parts: Flattened) -> Result<Self, Problem> {
        let head = serde_json::from_slice(&decode(&parts.protected)?)
            .map_err(|error| Problem::malformed(format!("not a protected header: {error}")))?;
        let signed = format!("{}.{}", parts.protected, parts.payload);
        Ok(Self { head, payload: decode(&parts.payload)?, signed, signature: decode(&parts.signature)? })
    }

    /// Proves that the owner of an account key signed this.
    pub(crate) fn verify(&self, key: &Jwk) -> Result<(), Problem> {
        if self.head.alg != "ES256" {
            let why = format!("algorithm \"{}\" is not accepted, only ES256", self.head.alg);
            return Err(Problem::new(400, "badSignatureAlgorithm", why));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point()?)
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| Problem::malformed("the signature does not fit the key"))
    }

    /// Proves that the owner of an external account signed this.
    pub(crate) fn verify_mac(&self, key: &[u8]) -> Result<(), Problem> {
        if self.head.alg != "HS256" {
            let why = format!("algorithm \"{}\" is not accepted for external accounts", self.head.alg);
            return Err(Problem::new(400, "badSignatureAlgorithm", why));
        }
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), self.signed.as_bytes(), &self.signature)
            .map_err(|_| Problem::unauthorized("the MAC of the external account does not fit its key"))
    }
}

impl Jwk {
    /// The uncompressed point.
    pub(crate) fn point(&self) -> Result<Vec<u8>, Problem> {
        let (x, y) = (decode(&self.x)?, decode(&self.y)?);
        if self.kty != "EC" || self.crv != "P-256" || x.len() != 32 || y.len() != 32 {
            return Err(Problem::new(400, "badPublicKey", "only keys of P-256 are accepted"));
        }
        Ok([&[4], &x[..], &y[..]].concat())
    }

    /// RFC 7638 3: the members in the order of their names, nothing between them.
    pub(crate) fn thumbprint(&self) -> String {
        let text = format!(r#"{{"crv":"{}","kty":"{}","x":"{}","y":"{}"}}"#, self.crv, self.kty, self.x, self.y);
        encode(digest(&SHA256, text.as_bytes()).as_ref())
    }
}

/// From base64url without padding (RFC 7515 2).
pub(crate) fn decode(text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Problem::malformed("not base64url without padding"))
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
