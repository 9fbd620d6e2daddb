//! Limits that remember who came before, as data: rates, counts, and the lockout after failed logins.
//!
//! `policy/limits.rs` has the live state of each rule and finds it by the rule's identity, so that it outlives reloads.
//! A route without any has none of it, and its requests pay one look at a pointer.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// The rules of one route. At least one is there.
#[derive(Clone, Debug, Default)]
pub struct Limiters {
    /// How often it may be asked.
    pub requests: Option<Arc<RateRule>>,
    /// How often a tunnel may be opened.
    pub handshakes: Option<Arc<RateRule>>,
    /// How many tunnels may be open.
    pub tunnels: Option<Arc<CountRule>>,
    /// Who fails to log in too often is locked out for a while.
    pub failed_auth: Option<Arc<LockoutRule>>,
}

/// What a rule is called and which one it is.
#[derive(Clone, Debug)]
pub struct RuleName {
    /// For clients, records and metrics: the name of a set in `[limits]`, or the key alone for a rule written elsewhere.
    pub name: Arc<str>,
    /// Where it was written: `[limits.api]`, `site "a.test"`, `route "/v1" of site "a.test"`.
    pub place: Arc<str>,
    /// The key: `requests`, `handshakes`, `tunnels`, `connections`, `failed_auth`.
    pub kind: &'static str,
    /// Its terms in words, for the record.
    pub terms: Box<str>,
    /// Two rules with the same live state have the same.
    pub id: RuleId,
}

/// The identity of a rule: equal for equal places and, where these are part of it, equal terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(u64);

impl RuleId {
    /// The identity of what is written there. The same in every process.
    pub fn new(kind: &str, place: &str, terms: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (kind, place, terms).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A rate: `requests` or `handshakes`.
#[derive(Clone, Debug)]
pub struct RateRule {
    /// Which one it is.
    pub name: RuleName,
    /// How many in each period.
    pub count: NonZeroU32,
    /// The period, in whole seconds.
    pub period: Duration,
    /// How many at once.
    pub burst: NonZeroU32,
    /// Who has a budget of its own.
    pub per: Per,
}

/// Who has a budget of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each client: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer has.
    Client,
    /// Each value of a header; without the header, each client.
    Header(HeaderName),
    /// Each site.
    Site,
}

/// How many may be open at once: `tunnels` or `connections`.
#[derive(Clone, Debug)]
pub struct CountRule {
    /// Which one it is.
    pub name: RuleName,
    /// Of one client.
    pub per_client: Option<NonZeroU32>,
    /// In all.
    pub total: Option<NonZeroU32>,
}

/// `failed_auth`.
#[derive(Clone, Debug)]
pub struct LockoutRule {
    /// Which one it is.
    pub name: RuleName,
    /// As many failures of one client lock it out.
    pub max: NonZeroU32,
    /// Within this time from the first of them.
    pub window: Duration,
    /// For so long.
    pub lockout: Duration,
    /// After more failures than these in all, the first one of a client is enough.
    pub global_max: Option<NonZeroU32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_by_its_place_and_terms() {
        let id = RuleId::new("requests", "[limits.api]", "20/s");
        assert_eq!(id, RuleId::new("requests", "[limits.api]", "20/s"));
        for other in [
            RuleId::new("handshakes", "[limits.api]", "20/s"),
            RuleId::new("requests", "[limits.web]", "20/s"),
            RuleId::new("requests", "[limits.api]", "21/s"),
            RuleId::new("requests", "[limits.api]20/s", ""),
        ] {
            assert_ne!(id, other);
        }
    }
}
