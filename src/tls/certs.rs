//! Certificates in force: publish, find by host, say what is known about them.
//!
//! Handshakes read, actors and reloads write. A reader takes no lock: it loads one pointer to a
//! whole map. A writer builds the next map and swaps it, so nobody sees half of a change.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::watch;
use x509_parser::extensions::GeneralName;

use crate::addr::{HostName, HostPattern};
use crate::site::policy::CertificateSource;
use crate::tls::subject;

/// All certificates that handshakes may use. Lives as long as the process.
#[derive(Debug)]
pub struct CertStore {
    current: ArcSwap<Map>,
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// A chain, its key, and what is known about the leaf.
#[derive(Debug)]
pub struct Certificate {
    /// What the handshake needs.
    pub key: Arc<CertifiedKey>,
    /// What people and actors need.
    pub facts: CertFacts,
}

/// What is known about a leaf certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFacts {
    /// DNS names and IP addresses of the leaf, lower case, in its order.
    pub names: Vec<Box<str>>,
    /// Valid from.
    pub not_before: OffsetDateTime,
    /// Valid until.
    pub not_after: OffsetDateTime,
    /// Who issued it (RFC 4514 text).
    pub issuer: Box<str>,
    /// SHA-256 of the leaf.
    pub fingerprint: [u8; 32],
    /// Where it comes from.
    pub source: CertificateSource,
    /// How firmly it is in force.
    pub standing: Standing,
}

/// How firmly a certificate is in force for a site that gets its own from a CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the site's own.
    Own,
    /// It is another one that clients accept for the name: from before a change of the file, or a wildcard's.
    Borrowed,
    /// The local authority made it, because there is nothing else.
    StandIn,
}

#[derive(Clone, Debug, Default)]
struct Map {
    exact: HashMap<HostName, Arc<Certificate>>,
    wildcards: HashMap<HostName, Arc<Certificate>>,
}

impl CertStore {
    /// An empty store.
    pub fn new() -> Self {
        Self { current: ArcSwap::default(), writing: Mutex::new(()), changed: watch::Sender::new(0) }
    }

    /// Puts one certificate in force for a pattern, in place of the one before.
    pub fn publish(&self, pattern: HostPattern, key: Arc<CertifiedKey>, facts: CertFacts) {
        self.publish_many(vec![(pattern, Arc::new(Certificate { key, facts }))]);
    }

    /// Puts many in force with one swap.
    pub fn publish_many(&self, certificates: Vec<(HostPattern, Arc<Certificate>)>) {
        self.change(|map| {
            for (pattern, certificate) in certificates {
                map.insert(pattern, certificate);
            }
            true
        });
    }

    /// Puts a newer certificate in force where the one in force has the same source, and says
    /// whether there was such a one.
    ///
    /// For actors: they may still act on an older site table than the one that a reload just
    /// published for, and must not undo it.
    pub fn renew(&self, patterns: &[HostPattern], certificate: &Arc<Certificate>) -> bool {
        self.change(|map| {
            let mut any = false;
            // What a CA issues may be the first that a name gets; everything else was there before its actor was.
            let is_from_ca = certificate.facts.source == CertificateSource::Acme;
            for pattern in patterns {
                let old = map.of(pattern);
                if old.map_or(is_from_ca, |old| old.facts.source == certificate.facts.source) {
                    map.insert(pattern.clone(), Arc::clone(certificate));
                    any = true;
                }
            }
            any
        })
    }

    /// Staples an OCSP response to the certificate with this leaf, for every name that has it, or takes the response away.
    /// Says whether that changed anything.
    pub fn staple(&self, fingerprint: &[u8; 32], response: Option<&[u8]>) -> bool {
        self.change(|map| {
            // Names that share a certificate go on sharing it: what a handshake runs on is kept for the next one.
            let mut made: Vec<(Arc<Certificate>, Arc<Certificate>)> = Vec::new();
            for found in map.exact.values_mut().chain(map.wildcards.values_mut()) {
                if found.facts.fingerprint != *fingerprint || found.key.ocsp.as_deref() == response {
                    continue;
                }
                let known = made.iter().find(|(old, _)| Arc::ptr_eq(old, found)).map(|(_, new)| Arc::clone(new));
                let new = known.unwrap_or_else(|| {
                    let key = CertifiedKey { ocsp: response.map(<[u8]>::to_vec), ..CertifiedKey::clone(&found.key) };
                    let new = Arc::new(Certificate { key: Arc::new(key), facts: found.facts.clone() });
                    made.push((Arc::clone(found), Arc::clone(&new)));
                    new
                });
                *found = new;
            }
            !made.is_empty()
        })
    }

    /// A certificate that clients accept for a pattern now, whatever it was made for: its own, or its wildcard's. None of
    /// the local authority.
    pub fn acceptable(&self, pattern: &HostPattern, now: OffsetDateTime) -> Option<Arc<Certificate>> {
        let map = self.current.load();
        let wildcard = match pattern {
            HostPattern::Exact(name) => name.as_str().split_once('.').and_then(|(_, parent)| map.wildcards.get(parent)),
            HostPattern::Wildcard(_) => None,
        };
        let is_acceptable = |one: &&Arc<Certificate>| {
            let facts = &one.facts;
            facts.source != CertificateSource::Local
                && facts.standing != Standing::StandIn
                && facts.covers(pattern)
                && facts.not_before <= now
                && now < facts.not_after
        };
        // The own one first: it changes least.
        map.of(pattern).into_iter().chain(wildcard).find(is_acceptable).cloned()
    }

    /// Takes back what is in force for these patterns.
    pub fn withdraw(&self, patterns: &[HostPattern]) {
        self.change(|map| {
            let before = map.exact.len() + map.wildcards.len();
            for pattern in patterns {
                match pattern {
                    HostPattern::Exact(name) => map.exact.remove(name),
                    HostPattern::Wildcard(name) => map.wildcards.remove(name),
                };
            }
            before != map.exact.len() + map.wildcards.len()
        });
    }

    /// Takes back everything that no pattern in `keep` names.
    pub fn withdraw_except(&self, keep: &HashSet<HostPattern>) {
        self.change(|map| {
            let before = map.exact.len() + map.wildcards.len();
            map.exact.retain(|name, _| keep.contains(&HostPattern::Exact(name.clone())));
            map.wildcards.retain(|name, _| keep.contains(&HostPattern::Wildcard(name.clone())));
            before != map.exact.len() + map.wildcards.len()
        });
    }

    /// The key for a normalised host name: the exact name's, else the wildcard's.
    pub fn find(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        let map = self.current.load();
        let found = map.exact.get(host).or_else(|| {
            let (_, rest) = host.split_once('.')?;
            map.wildcards.get(rest)
        })?;
        Some(Arc::clone(&found.key))
    }

    /// The certificate of exactly this pattern.
    pub fn of(&self, pattern: &HostPattern) -> Option<Arc<Certificate>> {
        self.current.load().of(pattern).cloned()
    }

    /// All patterns and their certificates, sorted by name.
    pub fn all(&self) -> Vec<(HostPattern, Arc<Certificate>)> {
        let map = self.current.load();
        let exact = map.exact.iter().map(|(name, found)| (HostPattern::Exact(name.clone()), found));
        let wildcards = map.wildcards.iter().map(|(name, found)| (HostPattern::Wildcard(name.clone()), found));
        let mut all: Vec<_> = exact.chain(wildcards).map(|(pattern, found)| (pattern, Arc::clone(found))).collect();
        all.sort_by(|(a, _), (b, _)| (a.name(), a.to_string()).cmp(&(b.name(), b.to_string())));
        all
    }

    /// Counts the changes, for whoever waits for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Builds the next map and swaps it, if `edit` changed anything.
    fn change(&self, edit: impl FnOnce(&mut Map) -> bool) -> bool {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Map::clone(&self.current.load());
        let is_changed = edit(&mut next);
        if is_changed {
            self.current.store(Arc::new(next));
            self.changed.send_modify(|count| *count += 1);
        }
        is_changed
    }
}

impl Default for CertStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Map {
    fn of(&self, pattern: &HostPattern) -> Option<&Arc<Certificate>> {
        match pattern {
            HostPattern::Exact(name) => self.exact.get(name),
            HostPattern::Wildcard(name) => self.wildcards.get(name),
        }
    }

    fn insert(&mut self, pattern: HostPattern, certificate: Arc<Certificate>) {
        match pattern {
            HostPattern::Exact(name) => self.exact.insert(name, certificate),
            HostPattern::Wildcard(name) => self.wildcards.insert(name, certificate),
        };
    }
}

impl Certificate {
    /// SHA-256 of the leaf's public key (RFC 7469 2.4) in Base64, as clients pin it; empty when it cannot be read.
    pub fn key_fingerprint(&self) -> String {
        self.key.cert.first().map_or_else(String::new, |leaf| public_key_fingerprint(leaf))
    }
}

impl CertFacts {
    /// Reads a leaf certificate (DER); `None` when it is no certificate.
    pub fn read(leaf: &[u8], source: CertificateSource) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let names = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name_text).collect(),
            // RFC 9525 6.3: without that extension a certificate has no names; CN does not count.
            Ok(None) | Err(_) => Vec::new(),
        };
        let fingerprint = digest::digest(&digest::SHA256, leaf).as_ref().try_into().ok()?;
        Some(Self {
            names,
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            issuer: subject::text(certificate.issuer()).into(),
            fingerprint,
            source,
            standing: Standing::Own,
        })
    }

    /// True when clients that ask for a name of the pattern accept the certificate's names.
    pub fn covers(&self, pattern: &HostPattern) -> bool {
        self.names.iter().any(|name| match (pattern, name.strip_prefix("*.")) {
            (HostPattern::Exact(host), Some(parent)) => {
                host.as_str().split_once('.').is_some_and(|(_, rest)| rest == parent)
            }
            (HostPattern::Exact(host), None) => host.as_str() == &**name,
            (HostPattern::Wildcard(host), Some(parent)) => host.as_str() == parent,
            (HostPattern::Wildcard(_), None) => false,
        })
    }

    /// The fingerprint as people compare it: `AB:CD:…`.
    pub fn fingerprint_text(&self) -> String {
        fingerprint_text(&self.fingerprint)
    }
}

/// Bytes as upper-case hex pairs with colons.
pub fn fingerprint_text(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// SHA-256 of a certificate's public key (RFC 7469 2.4) in Base64; empty when it is no certificate.
pub fn public_key_fingerprint(certificate: &[u8]) -> String {
    x509_parser::parse_x509_certificate(certificate).map_or_else(
        |_| String::new(),
        |(_, parsed)| STANDARD.encode(digest::digest(&digest::SHA256, parsed.public_key().raw)),
    )
}

fn name_text(name: &GeneralName<'_>) -> Option<Box<str>> {
    match name {
        GeneralName::DNSName(text) => Some(text.to_ascii_lowercase().into()),
        GeneralName::IPAddress(bytes) => {
            let ip = match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                16 => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
                _ => return None,
            };
            Some(ip.to_canonical().to_string().into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{authority, pattern};

    #[test]
    fn an_exact_name_wins_over_a_wildcard_and_a_wildcard_takes_one_label() {
        let ca = authority();
        let certs = CertStore::new();
        for text in ["a.example.test", "*.example.test"] {
            let leaf = ca.leaf(&[pattern(text)]).expect("a leaf");
            certs.publish(pattern(text), Arc::clone(&leaf.key), leaf.facts.clone());
        }
        let key_of = |text: &str| certs.of(&pattern(text)).map(|found| found.facts.names.clone());
        assert!(
            certs
                .find("a.example.test")
                .is_some_and(|key| Arc::ptr_eq(&key, &certs.of(&pattern("a.example.test")).expect("published").key))
        );
        assert!(
            certs
                .find("b.example.test")
                .is_some_and(|key| Arc::ptr_eq(&key, &certs.of(&pattern("*.example.test")).expect("published").key))
        );
        assert!(certs.find("b.a.example.test").is_none());
        assert!(certs.find("example.test").is_none());
        assert_eq!(key_of("*.example.test"), Some(vec!["*.example.test".into()]));

        certs.withdraw_except(&HashSet::from([pattern("*.example.test")]));
        assert!(certs.of(&pattern("a.example.test")).is_none());
        assert_eq!(certs.all().len(), 1);
    }

    #[test]
    fn an_actor_does_not_replace_a_certificate_of_another_source() {
        let ca = authority();
        let certs = CertStore::new();
        let host = pattern("a.example.test");
        let leaf = ca.leaf(std::slice::from_ref(&host)).expect("a leaf");
        assert!(!certs.renew(std::slice::from_ref(&host), &leaf), "nothing is in force yet");
        let source = CertificateSource::Files { cert: "a.pem".into(), key: "a.key".into() };
        certs.publish(host.clone(), Arc::clone(&leaf.key), CertFacts { source, ..leaf.facts.clone() });
        assert!(!certs.renew(std::slice::from_ref(&host), &leaf), "files are in force, not the local CA");
        certs.publish(host.clone(), Arc::clone(&leaf.key), leaf.facts.clone());
        assert!(certs.renew(&[host], &leaf));
    }

    #[test]
    fn a_staple_is_put_on_every_name_of_a_leaf_and_changes_nothing_else() {
        let ca = authority();
        let certs = CertStore::new();
        let shared = [pattern("a.test"), pattern("*.a.test")];
        let (leaf, other) = (ca.leaf(&shared).expect("a leaf"), ca.leaf(&[pattern("b.test")]).expect("a leaf"));
        certs.publish_many(shared.iter().map(|name| (name.clone(), Arc::clone(&leaf))).collect());
        certs.publish(pattern("b.test"), Arc::clone(&other.key), other.facts.clone());
        let of = |text: &str| certs.of(&pattern(text)).expect("published");
        let changes = certs.changes();
        assert!(certs.staple(&leaf.facts.fingerprint, Some(b"good")));
        assert!(!certs.staple(&leaf.facts.fingerprint, Some(b"good")), "it is there");
        assert_eq!(*changes.borrow(), 3, "two publications and one staple");
        assert_eq!(of("a.test").key.ocsp.as_deref(), Some(&b"good"[..]));
        assert!(Arc::ptr_eq(&of("a.test"), &of("*.a.test")));
        assert_eq!((&of("a.test").facts, &of("a.test").key.cert), (&leaf.facts, &leaf.key.cert));
        assert!(Arc::ptr_eq(&of("b.test").key, &other.key));
        assert!(certs.staple(&leaf.facts.fingerprint, None));
        assert_eq!(of("*.a.test").key.ocsp, None);
        assert!(!certs.staple(&[0; 32], Some(b"good")), "nobody has it");
    }

    #[test]
    fn names_cover_patterns_as_clients_match_them() {
        let ca = authority();
        let leaf = ca.leaf(&[pattern("a.test"), pattern("*.b.test"), pattern("10.0.0.1")]).expect("a leaf");
        for (text, expected) in [
            ("a.test", true),
            ("x.b.test", true),
            ("b.test", false),
            ("*.b.test", true),
            ("*.a.test", false),
            ("y.x.b.test", false),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
        ] {
            assert_eq!(leaf.facts.covers(&pattern(text)), expected, "{text}");
        }
    }
}
