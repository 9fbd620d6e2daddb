//! What is known about the certificate of one site, from outside the process that serves it.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::served::{self, Silence};
use crate::acme::store::{LEDGER, Ledger, Store};
use crate::addr::HostPattern;
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};
use crate::tls::certs::{CertFacts, Certificate, public_key_fingerprint};
use crate::tls::{TlsError, files, local_ca};

/// All of it.
pub(super) struct Facts {
    /// The certificate that is served; if nothing answers, the one that would be.
    pub(super) certificate: Option<Shown>,
    /// Why it was not seen in a handshake; `None` when it was.
    pub(super) unseen: Option<Silence>,
    /// Whether the local authority stands in for a CA that has not issued yet; `None` when that cannot be said.
    pub(super) is_pending: Option<bool>,
    /// `acme`, `local`, or the file.
    pub(super) source: String,
    /// What the store says beside it.
    pub(super) ledger: Ledger,
    /// What an order does just now.
    pub(super) stage: Option<String>,
    /// What cannot be read, or does not fit together.
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
    /// Looks everywhere. `None` for a site without TLS.
    pub(super) fn gather(table: &SiteTable, store: &Store, site: &Site) -> Option<Self> {
        let tls = site.tls.as_ref()?;
        let mut remarks = Vec::new();
        let mut is_denied = false;
        let is_acme = tls.certificate == CertificateSource::Acme;
        let (source, kept) = match &tls.certificate {
            CertificateSource::Acme => ("acme".to_owned(), store.certificate(&site.host)),
            CertificateSource::Local => ("local".to_owned(), Ok(None)),
            CertificateSource::Files { cert, key } => (cert.display().to_string(), files::load(cert, key).map(Some)),
        };
        let kept = kept.unwrap_or_else(|error| {
            is_denied = is_permission(&error);
            remarks.push(fault(&error));
            None
        });
        let kept = kept.as_ref().and_then(Shown::of);
        let ledger = if is_acme { ledger(store, &site.host) } else { Ok(Ledger::default()) };
        let ledger = ledger.unwrap_or_else(|(error, text)| {
            // Once is enough for one reason.
            if !(is_denied && error == io::ErrorKind::PermissionDenied) {
                remarks.push(text);
            }
            Ledger::default()
        });
        let served = served::chain(&site.host, &table.listener(site.listener).https);
        let (served, unseen) = match served {
            Ok(chain) => (Shown::of_chain(&chain, &tls.certificate), None),
            Err(silence) => (None, Some(silence)),
        };
        let is_other =
            |served: &Shown| kept.as_ref().is_none_or(|kept| kept.facts.fingerprint != served.facts.fingerprint);
        let is_pending = match &served {
            _ if !is_acme => Some(false),
            Some(served) => Some(is_other(served) && is_local(&served.facts.issuer, &table.edge.storage)),
            None if is_denied => None,
            None => Some(kept.is_none()),
        };
        if let (Some(served), Some(kept)) = (&served, &kept)
            && is_other(served)
        {
            let end = kept.facts.not_after.date();
            remarks.push(format!("another certificate is kept than is served: it ends on {end}"));
        }
        // Where the kept one cannot be read, that has been said.
        if is_acme && is_pending == Some(false) && served.is_some() && kept.is_none() && remarks.is_empty() {
            remarks
                .push("what is served is not kept here: it was revoked, helps out, or the disk did not take it".into());
        }
        let stage = ledger.stage.clone().filter(|_| is_busy(store, &site.host));
        let certificate = served.or(kept);
        Some(Self { certificate, unseen, is_pending, source, ledger, stage, remarks })
    }
}

/// True while somebody orders for a site. Of a process that was killed in an order the last stage is left for ever.
fn is_busy(store: &Store, host: &HostPattern) -> bool {
    // A lock that we get ends here.
    matches!(store.lock(host), Ok(None))
}

/// True when the local authority issued it: the one that is kept, or one that was made in memory for want of a disk.
fn is_local(issuer: &str, storage: &Path) -> bool {
    super::common_name(issuer).starts_with(local_ca::NAME)
        || local_ca::subject_in(storage).is_some_and(|subject| subject == issuer)
}

/// The ledger of a site, for whoever asks about it: a keeper does without one that cannot be read, people are told.
fn ledger(store: &Store, host: &HostPattern) -> Result<Ledger, (io::ErrorKind, String)> {
    let file = store.of_site(host).join(LEDGER);
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err((error.kind(), denied(&file))),
        Err(error) => return Err((error.kind(), format!("cannot read {}: {error}", file.display()))),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let text = format!("cannot use {}: {error} (help: it is written anew by the next order)", file.display());
        (io::ErrorKind::InvalidData, text)
    })
}

/// A fault of a certificate's file, in one line.
fn fault(error: &TlsError) -> String {
    match error.file() {
        Some(file) if is_permission(error) => denied(file),
        _ => format!("{error} (help: {})", error.help()),
    }
}

fn denied(file: &Path) -> String {
    format!("cannot read {}: permission denied: run it as the user that tidegate runs as", file.display())
}

fn is_permission(error: &TlsError) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}
