//! What is known about the certificate of one site, from outside the process that serves it.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::served;
use crate::acme::store::{Ledger, Store};
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};
use crate::tls::certs::{CertFacts, Certificate, public_key_fingerprint};
use crate::tls::files;

/// All of it.
pub(super) struct Facts {
    /// The certificate that is served; if nothing answers, the one that would be.
    pub(super) certificate: Option<Shown>,
    /// Whether it was seen in a handshake.
    pub(super) is_served: bool,
    /// Whether the local authority stands in for a CA that has not issued yet.
    pub(super) is_pending: bool,
    /// `acme`, `local`, or the file.
    pub(super) source: String,
    /// What the store says beside it.
    pub(super) ledger: Ledger,
    /// What does not fit together.
    pub(super) remarks: Vec<String>,
}

/// A certificate without its key.
pub(super) struct Shown {
    pub(super) facts: CertFacts,
    leaf: CertificateDer<'static>,
}

impl Shown {
    fn of_chain(chain: &[CertificateDer<'static>], source: &CertificateSource) -> Option<Self> {
        let leaf = chain.first()?.clone();
        Some(Self { facts: CertFacts::read(&leaf, source.clone())?, leaf })
    }

    fn of(certificate: &Arc<Certificate>) -> Option<Self> {
        Some(Self { facts: certificate.facts.clone(), leaf: certificate.key.cert.first()?.clone() })
    }

    /// SHA-256 of its public key, as clients pin it.
    pub(super) fn key_fingerprint(&self) -> String {
        public_key_fingerprint(&self.leaf)
    }
}

impl Facts {
    /// Looks everywhere.
    pub(super) fn gather(table: &SiteTable, store: &Store, site: &Site) -> Self {
        let mut remarks = Vec::new();
        let Some(tls) = &site.tls else {
            let source = "cleartext".to_owned();
            return Self {
                certificate: None,
                is_served: false,
                is_pending: false,
                source,
                ledger: Ledger::default(),
                remarks,
            };
        };
        let (source, kept, ledger) = match &tls.certificate {
            CertificateSource::Acme => ("acme".to_owned(), store.certificate(&site.host), store.ledger(&site.host)),
            CertificateSource::Local => ("local".to_owned(), Ok(None), Ledger::default()),
            CertificateSource::Files { cert, key } => {
                (cert.display().to_string(), files::load(cert, key).map(Some), Ledger::default())
            }
        };
        let kept = kept.unwrap_or_else(|error| {
            remarks.push(format!("{error} (help: {})", error.help()));
            None
        });
        let kept = kept.as_ref().and_then(Shown::of);
        let served = served::chain(&site.host, &table.listener(site.listener).https);
        let served = served.and_then(|chain| Shown::of_chain(&chain, &tls.certificate));
        let is_served = served.is_some();
        // A CA's certificate is there, or else the local authority stands in.
        let is_pending = tls.certificate == CertificateSource::Acme && kept.is_none();
        if let (Some(served), Some(kept)) = (&served, &kept)
            && served.facts.fingerprint != kept.facts.fingerprint
        {
            remarks.push(format!(
                "another certificate is kept than is served: it ends on {}",
                kept.facts.not_after.date()
            ));
        }
        Self { certificate: served.or(kept), is_served, is_pending, source, ledger, remarks }
    }
}
