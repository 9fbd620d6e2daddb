//! What the authority remembers: nonces, accounts, orders, authorizations, certificates, and a log of all requests.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::rand;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::jws::{Jwk, encode};
use super::problem::Problem;

/// All of it. Numbers in URLs are indices.
pub(crate) struct Book {
    nonces: HashSet<String>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) orders: Vec<Order>,
    pub(crate) authorizations: Vec<Authorization>,
    pub(crate) issued: Vec<Issued>,
    /// One entry a request, in the order of their arrival.
    pub(crate) log: Vec<Value>,
    /// The lifetime of certificates without a profile.
    pub(crate) lifetime: Duration,
    /// How far the authority's clock is ahead of the machine's.
    pub(crate) ahead: Duration,
    /// Windows that were moved, by serial.
    pub(crate) windows: HashMap<String, (OffsetDateTime, OffsetDateTime)>,
}

pub(crate) struct Account {
    pub(crate) key: Jwk,
    pub(crate) thumbprint: String,
    pub(crate) contact: Vec<String>,
    pub(crate) is_active: bool,
}

pub(crate) struct Order {
    pub(crate) account: usize,
    pub(crate) identifiers: Vec<Identifier>,
    pub(crate) authorizations: Vec<usize>,
    pub(crate) status: Status,
    pub(crate) error: Option<Problem>,
    pub(crate) profile: Option<String>,
    /// The certificate identifier as the client wrote it (RFC 9773 4.1).
    pub(crate) replaces: Option<String>,
    pub(crate) certificate: Option<usize>,
}

pub(crate) struct Authorization {
    pub(crate) order: usize,
    pub(crate) account: usize,
    /// Without the `*.` of a wildcard.
    pub(crate) identifier: Identifier,
    pub(crate) is_wildcard: bool,
    pub(crate) status: Status,
    pub(crate) challenges: Vec<Challenge>,
}

pub(crate) struct Challenge {
    pub(crate) kind: &'static str,
    /// Empty for dns-persist-01.
    pub(crate) token: String,
    pub(crate) status: Status,
    pub(crate) error: Option<Problem>,
}

pub(crate) struct Issued {
    pub(crate) account: usize,
    pub(crate) serial: String,
    pub(crate) names: Vec<String>,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) profile: Option<String>,
    pub(crate) replaces: Option<String>,
    pub(crate) leaf: Vec<u8>,
    pub(crate) chain: String,
    pub(crate) sha256: String,
    /// The machine's time, as in the log.
    pub(crate) at: u64,
    /// The reason code, once revoked.
    pub(crate) revoked: Option<u64>,
}

/// RFC 8555 7.1.6, for orders, authorizations and challenges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Ready,
    Processing,
    Valid,
    Invalid,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Identifier {
    /// In lower case; may begin with `*.`.
    Dns(String),
    Ip(IpAddr),
}

impl Book {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self {
            nonces: HashSet::new(),
            accounts: Vec::new(),
            orders: Vec::new(),
            authorizations: Vec::new(),
            issued: Vec::new(),
            log: Vec::new(),
            lifetime,
            ahead: Duration::ZERO,
            windows: HashMap::new(),
        }
    }

    pub(crate) fn new_nonce(&mut self) -> String {
        let nonce = encode(&random::<16>());
        self.nonces.insert(nonce.clone());
        nonce
    }

    /// True once for each nonce that was given out.
    pub(crate) fn spend_nonce(&mut self, nonce: &str) -> bool {
        self.nonces.remove(nonce)
    }

    pub(crate) fn account_of(&self, key: &Jwk) -> Option<usize> {
        let thumbprint = key.thumbprint();
        self.accounts.iter().position(|account| account.thumbprint == thumbprint)
    }
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Processing => "processing",
            Self::Valid => "valid",
            Self::Invalid => "invalid",
        }
    }
}

impl Identifier {
    pub(crate) fn json(&self) -> Value {
        match self {
            Self::Dns(name) => json!({"type": "dns", "value": name}),
            Self::Ip(ip) => json!({"type": "ip", "value": ip}),
        }
    }

    /// The name or address as it is spoken of.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Dns(name) => name.clone(),
            Self::Ip(ip) => ip.to_string(),
        }
    }
}

impl Issued {
    pub(crate) fn json(&self) -> Value {
        json!({
            "names": self.names,
            "serial": self.serial,
            "not_before": rfc3339(self.not_before),
            "not_after": rfc3339(self.not_after),
            "not_after_unix": self.not_after.unix_timestamp(),
            "profile": self.profile,
            "replaces": self.replaces,
            "sha256": self.sha256,
            "account": self.account,
            "time": self.at,
            "revoked": self.revoked,
        })
    }
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has random bytes");
    bytes
}

pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("years have four digits here")
}

/// The machine's time in milliseconds.
pub(crate) fn unix_millis() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("for a long while")
}
