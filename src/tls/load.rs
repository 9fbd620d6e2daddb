//! Certificates of a whole site table, at start and at reload: all faults at once, nothing changed
//! before all is loaded.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;

use super::certs::{CertFacts, CertStore, Certificate, Standing};
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
    refused: Vec<HostPattern>,
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
    let mut loaded = Loaded { certificates: Vec::new(), refused: Vec::new(), warnings: Vec::new() };
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
                let found = of_acme_site(table, site, certs, &mut authority, now);
                loaded.warn(site, found.doubts);
                loaded.certificates.extend(found.certificates);
                loaded.refused.extend(found.refused);
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

/// What there is for the names of a site whose certificate comes from a CA.
#[derive(Debug, Default)]
pub struct OfAcmeSite {
    /// What to put in force.
    pub certificates: Vec<(HostPattern, Arc<Certificate>)>,
    /// Names for which nothing may be in force.
    pub refused: Vec<HostPattern>,
    /// What is wrong with all that.
    pub doubts: Vec<String>,
    /// Whether the store has a certificate of the site, be it one that cannot be read.
    pub is_kept: bool,
}

/// The certificate for each name of a site whose certificate comes from a CA.
///
/// The kept one, or the one in force if that is newer: a full disk may have kept it from being kept. For names that
/// neither has, whatever clients accept for them now; else a leaf of the local authority, unless `pending` says otherwise.
pub fn of_acme_site(
    table: &SiteTable,
    site: &Site,
    certs: &CertStore,
    authority: &mut Option<LocalCa>,
    now: OffsetDateTime,
) -> OfAcmeSite {
    let storage = &table.edge.storage;
    let mut found = OfAcmeSite { is_kept: true, ..OfAcmeSite::default() };
    let kept = match kept::load(storage, &site.host) {
        Ok(kept) => {
            found.is_kept = kept.is_some();
            kept
        }
        Err(error) => {
            found.doubts.push(format!("{error} ({})", error.help()));
            None
        }
    };
    let mut missing = Vec::new();
    let mut own = Vec::new();
    for pattern in patterns(site) {
        let kept = kept.iter().filter(|kept| kept.facts.covers(&pattern)).cloned();
        let in_force = certs.of(&pattern).filter(|old| is_own(&old.facts) && old.facts.covers(&pattern));
        match kept.chain(in_force).max_by_key(|one| (one.facts.not_before, one.facts.not_after)) {
            Some(certificate) => {
                own.push(pattern.clone());
                found.certificates.push((pattern, certificate));
            }
            None => match certs.acceptable(&pattern, now) {
                Some(other) => found.certificates.push((pattern, borrowed(&other))),
                None => missing.push(pattern),
            },
        }
    }
    if let Some((_, certificate)) = found.certificates.iter().find(|(_, one)| is_own(&one.facts)) {
        found.doubts.extend(files::doubts(certificate, &own, now));
    }
    if missing.is_empty() {
        return found;
    }
    if table.edge.acme.pending == Pending::Refuse {
        found.refused = missing;
        return found;
    }
    let (leaf, fault) = local_ca::stand_in(opened(authority, storage), &missing, certs, now);
    found.doubts.extend(fault.map(|fault| format!("{fault} ({})", fault.help())));
    match leaf {
        Ok(leaf) => found.certificates.extend(missing.into_iter().map(|pattern| (pattern, Arc::clone(&leaf)))),
        Err(error) => {
            found.doubts.push(format!("{error} ({}); handshakes are refused until the CA has issued", error.help()));
            found.refused = missing;
        }
    }
    found
}

/// True for a certificate that a CA issued for its site.
fn is_own(facts: &CertFacts) -> bool {
    facts.source == CertificateSource::Acme && facts.standing == Standing::Own
}

/// The same certificate, as one that only helps out.
fn borrowed(other: &Arc<Certificate>) -> Arc<Certificate> {
    if other.facts.standing == Standing::Borrowed {
        return Arc::clone(other);
    }
    let facts = CertFacts { source: CertificateSource::Acme, standing: Standing::Borrowed, ..other.facts.clone() };
    Arc::new(Certificate { key: Arc::clone(&other.key), facts })
}

impl Loaded {
    fn warn(&mut self, site: &Site, doubts: Vec<String>) {
        self.warnings.extend(doubts.into_iter().map(|text| TlsWarning { site: Arc::clone(&site.label), text }));
    }

    /// Puts the certificates in force with one swap. Before the table is; what the old table alone
    /// needs stays until `withdraw_unused`.
    pub fn publish(self, certs: &CertStore) {
        certs.publish_many(self.certificates);
        certs.withdraw(&self.refused);
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

    fn standing(certs: &CertStore, name: &str) -> Option<Standing> {
        certs.of(&pattern(name)).map(|found| found.facts.standing)
    }

    #[test]
    fn a_name_without_a_certificate_has_a_stand_in_or_none() {
        let storage = tempfile::tempdir().expect("a directory");
        let (table, certs, warnings) = start(storage.path(), Pending::Local);
        assert_eq!(
            (standing(&certs, "a.example.com"), standing(&certs, "b.example.com")),
            (Some(Standing::StandIn), Some(Standing::StandIn))
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        // A reload keeps the stand-in: clients that went on all the same are not asked again.
        let before = certs.of(&pattern("a.example.com")).expect("there").facts.fingerprint;
        publish_all(&table, &certs).expect("certificates");
        assert_eq!(certs.of(&pattern("a.example.com")).expect("there").facts.fingerprint, before);

        let (_, certs, _) = start(storage.path(), Pending::Refuse);
        assert_eq!(standing(&certs, "a.example.com"), None);
    }

    #[test]
    fn a_disk_that_takes_nothing_keeps_no_handshake_from_being_answered() {
        let storage = tempfile::tempdir().expect("a directory");
        fs::write(storage.path().join("local-ca"), "no directory").expect("written");
        let (table, certs, warnings) = start(storage.path(), Pending::Local);
        assert_eq!(standing(&certs, "a.example.com"), Some(Standing::StandIn));
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
            (standing(&certs, "a.example.com"), standing(&certs, "b.example.com")),
            (Some(Standing::Own), Some(Standing::StandIn))
        );
        // What a full disk did not take is still in force after a reload.
        fs::remove_file(kept::file(storage.path(), &pattern("a.example.com"))).expect("removed");
        publish_all(&table, &certs).expect("certificates");
        assert_eq!(standing(&certs, "a.example.com"), Some(Standing::Own));
    }

    #[test]
    fn a_broken_file_is_told_and_keeps_nothing_from_starting() {
        let storage = tempfile::tempdir().expect("a directory");
        keep(storage.path(), &["a.example.com"]);
        let file = kept::file(storage.path(), &pattern("a.example.com"));
        fs::write(&file, &fs::read(&file).expect("there")[..200]).expect("written");
        let (_, certs, warnings) = start(storage.path(), Pending::Local);
        assert_eq!(standing(&certs, "a.example.com"), Some(Standing::StandIn));
        assert!(
            warnings.iter().any(|warning| warning.text.contains("cannot use the kept certificate")),
            "{warnings:?}"
        );
    }

    #[test]
    fn what_clients_accept_is_kept_until_the_ca_has_issued() {
        let storage = tempfile::tempdir().expect("a directory");
        let certs = CertStore::new();
        let now = OffsetDateTime::now_utc();
        let ca = crate::tls::testing::authority();
        let put = |name: &str, source: CertificateSource| {
            let leaf = ca.leaf(&[pattern(name)]).expect("a leaf");
            certs.publish(pattern(name), Arc::clone(&leaf.key), CertFacts { source, ..leaf.facts.clone() });
        };
        // From before the file was changed, and a wildcard beside it.
        put("a.example.com", CertificateSource::Files { cert: "a.pem".into(), key: "a.key".into() });
        put("*.example.com", CertificateSource::Files { cert: "w.pem".into(), key: "w.key".into() });
        for pending in [Pending::Local, Pending::Refuse] {
            let (table, _, _) = start(storage.path(), pending);
            let found = of_acme_site(&table, &table.sites()[0], &certs, &mut None, now);
            let standings: Vec<Standing> = found.certificates.iter().map(|(_, one)| one.facts.standing).collect();
            assert_eq!(standings, [Standing::Borrowed, Standing::Borrowed], "{pending:?}");
            assert!(!found.is_kept && found.refused.is_empty());
        }
        // One of the local authority is nothing that clients accept.
        put("a.example.com", CertificateSource::Local);
        certs.withdraw(&[pattern("*.example.com")]);
        let (table, _, _) = start(storage.path(), Pending::Refuse);
        let found = of_acme_site(&table, &table.sites()[0], &certs, &mut None, now);
        assert_eq!(found.refused.len(), 2);
        assert!(found.certificates.is_empty());
    }
}
