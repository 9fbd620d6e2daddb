//! Certificates of a whole site table, at start and at reload: all faults at once, nothing changed
//! before all is loaded.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;

use super::certs::{CertStore, Certificate};
use super::fault::TlsError;
use super::files;
use super::kept;
use super::local_ca::{self, LocalCa};
use crate::addr::HostPattern;
use crate::site::acme::Pending;
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
            // Nothing that a CA or the disk does may keep the edge from starting.
            CertificateSource::Acme => {
                let (found, doubts) = of_acme_site(table, site, certs, &mut authority, now);
                loaded.warn(site, doubts);
                loaded.certificates.extend(found);
                continue;
            }
            // One broken authority is one fault, however many sites use it.
            CertificateSource::Local if is_authority_broken => continue,
            CertificateSource::Local => opened(&mut authority, &table.edge.storage)
                .inspect_err(|_| is_authority_broken = true)
                .and_then(|ca| local_ca::leaf_for(ca, site, certs, now)),
        };
        match found {
            Ok(certificate) => {
                loaded.warn(site, files::doubts(&certificate, &patterns(site), now));
                loaded
                    .certificates
                    .extend(patterns(site).into_iter().map(|pattern| (pattern, Arc::clone(&certificate))));
            }
            Err(fault) => faults.push(fault.for_site(&site.label)),
        }
    }
    if faults.is_empty() { Ok(loaded) } else { Err(faults) }
}

/// The certificate for each name of a site whose certificate comes from a CA, and what is wrong with them.
///
/// The kept one, or the one in force if that is newer: a full disk may have kept it from being kept. For names that
/// neither has, a leaf of the local authority stands in, unless `pending` says otherwise.
pub fn of_acme_site(
    table: &SiteTable,
    site: &Site,
    certs: &CertStore,
    authority: &mut Option<LocalCa>,
    now: OffsetDateTime,
) -> (Vec<(HostPattern, Arc<Certificate>)>, Vec<String>) {
    let storage = &table.edge.storage;
    let mut doubts = Vec::new();
    let kept = kept::load(storage, &site.host).unwrap_or_else(|error| {
        doubts.push(format!("{error} ({})", error.help()));
        None
    });
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for pattern in patterns(site) {
        let kept = kept.iter().filter(|kept| kept.facts.covers(&pattern)).cloned();
        let in_force = certs.of(&pattern).filter(|old| {
            old.facts.source == CertificateSource::Acme && !old.facts.is_pending && old.facts.covers(&pattern)
        });
        match kept.chain(in_force).max_by_key(|one| (one.facts.not_before, one.facts.not_after)) {
            Some(certificate) => found.push((pattern, certificate)),
            None => missing.push(pattern),
        }
    }
    if let Some((_, certificate)) = found.first() {
        let names: Vec<HostPattern> = found.iter().map(|(pattern, _)| pattern.clone()).collect();
        doubts.extend(files::doubts(certificate, &names, now));
    }
    if !missing.is_empty() && table.edge.acme.pending == Pending::Local {
        let (leaf, fault) = local_ca::stand_in(opened(authority, storage), &missing, certs, now);
        doubts.extend(fault.map(|fault| format!("{fault} ({})", fault.help())));
        match leaf {
            Ok(leaf) => found.extend(missing.into_iter().map(|pattern| (pattern, Arc::clone(&leaf)))),
            Err(error) => {
                doubts.push(format!("{error} ({}); handshakes are refused until the CA has issued", error.help()))
            }
        }
    }
    (found, doubts)
}

impl Loaded {
    fn warn(&mut self, site: &Site, doubts: Vec<String>) {
        self.warnings.extend(doubts.into_iter().map(|text| TlsWarning { site: Arc::clone(&site.label), text }));
    }

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
pub fn patterns(site: &Site) -> Vec<HostPattern> {
    std::iter::once(&site.host).chain(&site.aliases).cloned().collect()
}

fn opened<'a>(authority: &'a mut Option<LocalCa>, storage: &Path) -> Result<&'a LocalCa, TlsError> {
    match authority {
        Some(ca) => Ok(ca),
        None => Ok(authority.insert(LocalCa::open(storage)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::UnknownSni;
    use crate::tls::testing::{pattern, policy, site, table};
    use std::fs;

    /// A table with one site from a CA, two names, and what is in force after a start.
    fn start(storage: &Path, pending: Pending) -> (SiteTable, CertStore, Vec<TlsWarning>) {
        let mut one = site("a.example.com", &policy(), CertificateSource::Acme);
        one.aliases = vec![pattern("b.example.com")];
        let mut table = table(storage, UnknownSni::Reject, vec![one]);
        table.edge.acme = Arc::new(crate::site::acme::AcmePolicy { pending, ..Default::default() });
        let certs = CertStore::new();
        let warnings = publish_all(&table, &certs).expect("nothing keeps it from starting");
        (table, certs, warnings)
    }

    /// Keeps a certificate for the site, as the CA's would be kept.
    fn keep(storage: &Path, names: &[&str]) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let params = rcgen::CertificateParams::new(names).expect("names");
        let file = kept::file(storage, &pattern("a.example.com"));
        fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        fs::write(file, key.serialize_pem() + &params.self_signed(&key).expect("a certificate").pem())
            .expect("written");
    }

    fn is_pending(certs: &CertStore, name: &str) -> Option<bool> {
        certs.of(&pattern(name)).map(|found| found.facts.is_pending)
    }

    #[test]
    fn a_name_without_a_certificate_has_a_stand_in_or_none() {
        let storage = tempfile::tempdir().expect("a directory");
        let (table, certs, warnings) = start(storage.path(), Pending::Local);
        assert_eq!(
            (is_pending(&certs, "a.example.com"), is_pending(&certs, "b.example.com")),
            (Some(true), Some(true))
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        // A reload keeps the stand-in: clients that went on all the same are not asked again.
        let before = certs.of(&pattern("a.example.com")).expect("there").facts.fingerprint;
        publish_all(&table, &certs).expect("certificates");
        assert_eq!(certs.of(&pattern("a.example.com")).expect("there").facts.fingerprint, before);

        let (_, certs, _) = start(storage.path(), Pending::Refuse);
        assert_eq!(is_pending(&certs, "a.example.com"), None);
    }

    #[test]
    fn a_disk_that_takes_nothing_keeps_no_handshake_from_being_answered() {
        let storage = tempfile::tempdir().expect("a directory");
        fs::write(storage.path().join("local-ca"), "no directory").expect("written");
        let (table, certs, warnings) = start(storage.path(), Pending::Local);
        assert_eq!(is_pending(&certs, "a.example.com"), Some(true));
        assert!(warnings.iter().any(|warning| warning.text.contains("local certificate authority")), "{warnings:?}");
        let before = certs.of(&pattern("a.example.com")).expect("there").facts.fingerprint;
        publish_all(&table, &certs).expect("certificates");
        assert_eq!(
            certs.of(&pattern("a.example.com")).expect("there").facts.fingerprint,
            before,
            "not a new one each time"
        );
    }

    #[test]
    fn a_kept_certificate_serves_the_names_that_it_has() {
        let storage = tempfile::tempdir().expect("a directory");
        keep(storage.path(), &["a.example.com"]);
        let (table, certs, _) = start(storage.path(), Pending::Local);
        assert_eq!(
            (is_pending(&certs, "a.example.com"), is_pending(&certs, "b.example.com")),
            (Some(false), Some(true))
        );
        // What a full disk did not take is still in force after a reload.
        fs::remove_file(kept::file(storage.path(), &pattern("a.example.com"))).expect("removed");
        publish_all(&table, &certs).expect("certificates");
        assert_eq!(is_pending(&certs, "a.example.com"), Some(false));
    }

    #[test]
    fn a_broken_file_is_told_and_keeps_nothing_from_starting() {
        let storage = tempfile::tempdir().expect("a directory");
        keep(storage.path(), &["a.example.com"]);
        let file = kept::file(storage.path(), &pattern("a.example.com"));
        fs::write(&file, &fs::read(&file).expect("there")[..200]).expect("written");
        let (_, certs, warnings) = start(storage.path(), Pending::Local);
        assert_eq!(is_pending(&certs, "a.example.com"), Some(true));
        assert!(
            warnings.iter().any(|warning| warning.text.contains("cannot use the kept certificate")),
            "{warnings:?}"
        );
    }
}
