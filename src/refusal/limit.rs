//! The refusal of a limiter: which one it was, and what a client is told of it (N-06).
//!
//! `RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-10; an upstream's own 429 carries
//! neither the name nor our `Proxy-Status`, so that nobody takes one for the other.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Words;

/// `RateLimit`.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A limit that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// What of it.
    pub what: Excess,
    /// The limiter's name, from the configuration.
    pub name: Arc<str>,
    /// Its terms and its place, for the log.
    pub cause: Box<str>,
    /// When to come back, in seconds; at least 1.
    pub retry_after: u32,
    /// The terms of a rate.
    pub quota: Option<Quota>,
}

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Requests.
    Requests,
    /// New tunnels.
    Handshakes,
    /// Open tunnels of one client.
    Tunnels,
    /// Open tunnels in all.
    AllTunnels,
    /// Open connections of one client.
    Connections,
    /// Open connections in all.
    AllConnections,
    /// Failed logins.
    Failures,
}

/// So many in so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// How many.
    pub count: u32,
    /// In how many seconds.
    pub seconds: u64,
}

impl Excess {
    pub(super) fn words(self) -> Words {
        const DENIED: &str = super::DENIED;
        const FULL: &str = "connection_limit_reached";
        let many = StatusCode::TOO_MANY_REQUESTS;
        let busy = StatusCode::SERVICE_UNAVAILABLE;
        let (status, code, proxy_error, message) = match self {
            Self::Requests => (many, "E429-rate", DENIED, "too many requests in a short time"),
            Self::Handshakes => (many, "E429-handshakes", DENIED, "too many new WebSockets in a short time"),
            Self::Tunnels => (many, "E429-tunnels", DENIED, "too many open WebSockets from your address"),
            Self::AllTunnels => (busy, "E503-tunnels", FULL, "too many open WebSockets at this address"),
            Self::Connections => (many, "E429-connections", DENIED, "too many open connections from your address"),
            Self::AllConnections => (busy, "E503-connections", FULL, "too many open connections at this address"),
            Self::Failures => (many, "E429-lockout", DENIED, "too many failed logins from your address"),
        };
        Words { status, code, proxy_error, message }
    }

    /// Whether the connection is what there is too much of.
    pub(super) fn is_of_connections(self) -> bool {
        matches!(self, Self::Connections | Self::AllConnections)
    }
}

impl Limited {
    /// What `Proxy-Status` says beside the kind.
    pub(super) fn details(&self) -> String {
        format!("limit {}", self.name)
    }

    /// The two fields of the draft, for a rate.
    pub(super) fn write(&self, fields: &mut HeaderMap) {
        let Some(quota) = self.quota else { return };
        let now = [("r", 0), ("t", i64::from(self.retry_after))];
        let terms = [("q", i64::from(quota.count)), ("w", i64::try_from(quota.seconds).unwrap_or(i64::MAX))];
        for (field, parameters) in [(RATE_LIMIT, now), (RATE_LIMIT_POLICY, terms)] {
            if let Some(value) = item(&self.name, parameters) {
                fields.insert(field, value);
            }
        }
    }
}

/// A list of one named item (RFC 9651).
fn item(name: &str, parameters: [(&str, i64); 2]) -> Option<HeaderValue> {
    let mut list = sfv::ListSerializer::new();
    let mut item = list.bare_item(sfv::StringRef::from_str(name).ok()?);
    for (key, number) in parameters {
        item = item.parameter(sfv::KeyRef::from_str(key).ok()?, sfv::Integer::try_from(number).ok()?);
    }
    let _ = item.finish(); // the list goes on
    HeaderValue::from_str(&list.finish()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_name_the_limiter() {
        let quota = Some(Quota { count: 20, seconds: 60 });
        let limited = Limited { what: Excess::Requests, name: "api".into(), cause: "".into(), retry_after: 3, quota };
        let mut fields = HeaderMap::new();
        limited.write(&mut fields);
        assert_eq!(fields[RATE_LIMIT], "\"api\";r=0;t=3");
        assert_eq!(fields[RATE_LIMIT_POLICY], "\"api\";q=20;w=60");
        let mut none = HeaderMap::new();
        Limited { quota: None, ..limited }.write(&mut none);
        assert!(none.is_empty());
    }
}
