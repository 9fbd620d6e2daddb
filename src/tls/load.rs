//! Certificates of a whole site table, at start and at reload: all faults at once, nothing changed
//! before all is loaded.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;

use super::certs::{CertStore, Certificate};
use super::fault::TlsError;
use super::files;
use super::local_ca::{self, LocalCa};
use crate::addr::HostPattern;
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};

/// The certificates of one table, not yet in force.
#[derive(Debug)]
pub struct Loaded {
    certificates: Vec<(HostPattern, Arc<Certificate>)>,
    /// What works but should be looked at.
    pub warnings: Vec<TlsWarning>,
}

/// A certificate that is served although something about it is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsWarning {
    /// The site.
    pub site: Arc<str>,
    /// What is wrong, and what to do.
    pub text: String,
}

/// Loads the files and issues the local leaves of every site. `certs` is only read: a local leaf in
/// force is taken over when it still fits, so that a reload does not change certificates.
///
/// # Errors
/// One for every site whose certificate cannot be used.
pub fn load_all(table: &SiteTable, certs: &CertStore) -> Result<Loaded, Vec<TlsError>> {
    let now = OffsetDateTime::now_utc();
    let mut loaded = Loaded { certificates: Vec::new(), warnings: Vec::new() };
    let mut faults = Vec::new();
    let mut pairs: HashMap<(&Path, &Path), Arc<Certificate>> = HashMap::new();
    let mut authority: Option<LocalCa> = None;
    let mut is_authority_broken = false;
    for (site, source) in with_certificate(table) {
        let found = match source {
            CertificateSource::Files { cert, key } => match pairs.get(&(&**cert, &**key)) {
                Some(known) => Ok(Arc::clone(known)),
                None => files::load(cert, key).inspect(|certificate| {
                    pairs.insert((cert, key), Arc::clone(certificate));
                }),
            },
            // One broken authority is one fault, however many sites use it.
            CertificateSource::Local | CertificateSource::Acme if is_authority_broken => continue,
            CertificateSource::Local | CertificateSource::Acme => opened(&mut authority, &table.edge.storage)
                .inspect_err(|_| is_authority_broken = true)
                .and_then(|ca| local_ca::leaf_for(ca, site, certs, now)),
        };
        match found {
            Ok(certificate) => {
                let doubts = files::doubts(&certificate, &patterns(site), now);
                loaded
                    .warnings
                    .extend(doubts.into_iter().map(|text| TlsWarning { site: Arc::clone(&site.label), text }));
                loaded
                    .certificates
                    .extend(patterns(site).into_iter().map(|pattern| (pattern, Arc::clone(&certificate))));
            }
            Err(fault) => faults.push(fault.for_site(&site.label)),
        }
    }
    if faults.is_empty() { Ok(loaded) } else { Err(faults) }
}

impl Loaded {
    /// Puts the certificates in force with one swap. Before the table is; what the old table alone
    /// needs stays until `withdraw_unused`.
    pub fn publish(self, certs: &CertStore) {
        certs.publish_many(self.certificates);
    }
}

/// Loads and puts in force: for the start, when there is nothing that could be disturbed.
///
/// # Errors
/// As `load_all`; nothing is put in force then.
pub fn publish_all(table: &SiteTable, certs: &CertStore) -> Result<Vec<TlsWarning>, Vec<TlsError>> {
    let mut loaded = load_all(table, certs)?;
    let warnings = std::mem::take(&mut loaded.warnings);
    loaded.publish(certs);
    Ok(warnings)
}

/// Takes back the certificates that a table does not name. After the table is in force.
pub fn withdraw_unused(table: &SiteTable, certs: &CertStore) {
    let keep: HashSet<HostPattern> = with_certificate(table).flat_map(|(site, _)| patterns(site)).collect();
    certs.withdraw_except(&keep);
}

/// Every site with TLS, and where its certificate comes from.
pub(super) fn with_certificate(table: &SiteTable) -> impl Iterator<Item = (&Arc<Site>, &CertificateSource)> {
    table.sites().iter().filter_map(|site| Some((site, &site.tls.as_ref()?.certificate)))
}

/// All names of a site.
pub(super) fn patterns(site: &Site) -> Vec<HostPattern> {
    std::iter::once(&site.host).chain(&site.aliases).cloned().collect()
}

fn opened<'a>(authority: &'a mut Option<LocalCa>, storage: &Path) -> Result<&'a LocalCa, TlsError> {
    match authority {
        Some(ca) => Ok(ca),
        None => Ok(authority.insert(LocalCa::open(storage)?)),
    }
}
