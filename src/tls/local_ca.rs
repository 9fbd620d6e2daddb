//! A private certificate authority for localhost and internal names.
//!
//! Created at first use under `storage/local-ca`: `root.pem` and `root.key`, readable by the owner
//! only. Leaves are issued when they are needed and live in memory: a key that never touches a disk
//! cannot leak from one, a new one takes less than a millisecond, and clients trust the root, not the
//! leaf. Nothing here speaks to the network.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{digest, rand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::certs::{CertFacts, CertStore, Certificate, Standing, fingerprint_text};
use super::fault::TlsError;
use super::load::{patterns, with_certificate};
use super::policies::provider;
use super::subject;
use crate::addr::HostPattern;
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};
use crate::snapshot::Snapshot;
use crate::storage::{private_file, write_whole};

/// The authority. Its key is in memory while this value lives; open it when a leaf is due.
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    /// The root's subject as text: what its leaves name as their issuer.
    subject: String,
    name: String,
    pem: String,
    der: CertificateDer<'static>,
    path: PathBuf,
    not_after: OffsetDateTime,
}

/// What the name of each root begins with.
pub const NAME: &str = "tidegate local CA";
/// Ten years: the root is installed by hand on each client, so it should outlive them.
const ROOT_LIFETIME: time::Duration = time::Duration::days(3650);
/// 90 days, as public authorities do: a stolen leaf is of no use for long, every client accepts it
/// (Apple's limit for private roots is 825 days), and renewal is so frequent that it is known to work.
pub(super) const LEAF_LIFETIME: time::Duration = time::Duration::days(90);
/// Clients whose clock is behind accept a new certificate all the same.
const SKEW: time::Duration = time::Duration::hours(1);
/// How often renewal is looked at. A leaf has 30 days left then, so an hour does not matter; it is
/// short because a timer does not run while a laptop sleeps.
const LOOK: Duration = Duration::from_secs(3600);

/// Where it is kept below `storage`.
const DIRECTORY: &str = "local-ca";
/// Its certificate there.
const ROOT: &str = "root.pem";

impl LocalCa {
    /// Opens the authority under `storage`, and creates it if there is none.
    ///
    /// # Errors
    /// When its files cannot be read, written or used; the remedy is in the error.
    pub fn open(storage: &Path) -> Result<Self, TlsError> {
        let directory = storage.join(DIRECTORY);
        // The root is written last and at once, so where it is, the key is whole too.
        if let Some(found) = Self::read(&directory)? {
            return Ok(found);
        }
        Self::create(storage, &directory).map_err(|error| {
            TlsError::new(
                "cannot create the local certificate authority in",
                "make `storage` writable, or set another one",
            )
            .in_file(&directory)
            .because(error)
        })?;
        Self::read(&directory)?.ok_or_else(|| {
            TlsError::new("the local certificate authority vanished from", "start again").in_file(&directory)
        })
    }

    /// An authority that is kept nowhere: for a disk that takes nothing. Nobody trusts it, and nobody has to: what it
    /// issues only stands in.
    pub(super) fn in_memory() -> Result<Self, TlsError> {
        let made = || -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
            let (root, key) = new_root()?;
            Self::parse(root.pem(), &key.serialize_pem(), PathBuf::new())
        };
        made().map_err(|error| TlsError::new("cannot make a certificate authority", "report this").because(error))
    }

    /// The root certificate in PEM form.
    pub fn root_pem(&self) -> &str {
        &self.pem
    }

    /// The file that holds it.
    pub fn root_path(&self) -> &Path {
        &self.path
    }

    /// The name that trust stores show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the root as people compare it.
    pub fn fingerprint_text(&self) -> String {
        fingerprint_text(digest::digest(&digest::SHA256, &self.der).as_ref())
    }

    /// Issues a leaf for names, with a fresh key. Its chain is the leaf alone: it is issued by the
    /// root itself, which clients have or do not have, but never learn from us.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn leaf(&self, names: &[HostPattern]) -> Result<Arc<Certificate>, TlsError> {
        self.leaf_at(names, OffsetDateTime::now_utc())
    }

    /// As `leaf`, at a given time.
    pub(super) fn leaf_at(&self, names: &[HostPattern], now: OffsetDateTime) -> Result<Arc<Certificate>, TlsError> {
        let issue = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::default();
            params.subject_alt_names = alternative_names(names)?;
            params.distinguished_name = DistinguishedName::new();
            // X.520: a common name has at most 64 characters. Clients only read the other names.
            if let Some(first) = names.iter().map(ToString::to_string).find(|name| name.len() <= 64) {
                params.distinguished_name.push(DnType::CommonName, first);
            }
            params.not_before = now - SKEW;
            params.not_after = (now + LEAF_LIFETIME).min(self.not_after);
            params.serial_number = Some(serial()?);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            let der = CertificateDer::from(params.signed_by(&key, &self.issuer)?);
            let facts = CertFacts::read(&der, CertificateSource::Local).ok_or("the issued certificate is malformed")?;
            let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let key = provider().key_provider.load_private_key(secret)?;
            Ok(Certificate { key: Arc::new(CertifiedKey::new(vec![der], key)), facts })
        };
        issue().map(Arc::new).map_err(|error| {
            TlsError::new("the local authority cannot issue a certificate", "check the site's names").because(error)
        })
    }

    /// The authority in a directory, when there is one.
    fn read(directory: &Path) -> Result<Option<Self>, TlsError> {
        let (cert, key) = (directory.join(ROOT), directory.join("root.key"));
        let unreadable = |file: &Path, error: io::Error| {
            let help = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as the user that tidegate runs as, or as root",
                _ => "move the directory away to get a new authority; clients must then trust the new root",
            };
            TlsError::new("cannot read the local certificate authority", help).in_file(file).because(error)
        };
        let pem = match fs::read_to_string(&cert) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&cert, error)),
        };
        let secret = fs::read_to_string(&key).map_err(|error| unreadable(&key, error))?;
        keep_private(&key).map_err(|error| unreadable(&key, error))?;
        let broken = |error: Box<dyn std::error::Error + Send + Sync>| {
            let help = "move the directory away to get a new authority; clients must then trust the new root";
            TlsError::new("cannot use the local certificate authority", help).in_file(directory).because(error)
        };
        Self::parse(pem, &secret, cert).map(Some).map_err(broken)
    }

    fn parse(pem: String, secret: &str, path: PathBuf) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let key = KeyPair::from_pem(secret)?;
        let (_, root) = x509_parser::parse_x509_certificate(&der)?;
        if root.public_key().subject_public_key.data != key.public_key_raw() {
            return Err("the certificate does not belong to the key".into());
        }
        let not_after = root.validity().not_after.to_datetime();
        if not_after <= OffsetDateTime::now_utc() {
            return Err(format!("it expired on {}", not_after.date()).into());
        }
        let name = root.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let name = name.unwrap_or(NAME).to_owned();
        let subject = subject::text(root.subject());
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { issuer, subject, name, pem, der, path, not_after })
    }

    fn create(storage: &Path, directory: &Path) -> io::Result<()> {
        // Two processes that start together must not make two authorities. The lock ends with the file.
        let lock = private_file(storage, directory, "lock")?;
        lock.lock()?;
        if directory.join(ROOT).exists() {
            return Ok(());
        }
        let (root, key) = new_root()?;
        write_whole(storage, directory, "root.key", key.serialize_pem().as_bytes())?;
        write_whole(storage, directory, ROOT, root.pem().as_bytes())
    }
}

/// The subject of the authority under `storage`, as its leaves name it; `None` where it is not there or not readable.
/// Nothing is made.
pub fn subject_in(storage: &Path) -> Option<String> {
    let pem = fs::read(storage.join(DIRECTORY).join(ROOT)).ok()?;
    subject::of_certificate(&CertificateDer::from_pem_slice(&pem).ok()?)
}

/// A root and its key.
fn new_root() -> io::Result<(rcgen::Certificate, KeyPair)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // A name of its own: with two roots of one name, clients may try the wrong key and give up.
    let mut mark = [0; 4];
    rand::fill(&mut mark).map_err(io::Error::other)?;
    let name = format!("{NAME} {:08x}", u32::from_be_bytes(mark));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + ROOT_LIFETIME;
    params.serial_number = Some(serial().map_err(io::Error::other)?);
    let root = params.self_signed(&key).map_err(io::Error::other)?;
    Ok((root, key))
}

impl std::fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Key material never reaches a log.
        f.debug_struct("LocalCa").field("name", &self.name).field("path", &self.path).finish_non_exhaustive()
    }
}

/// The leaf that stands in for names until a CA has issued: the one in force while it fits and is young, else a new one.
/// An authority that cannot be opened is a fault, and is done without: handshakes go on.
pub(super) fn stand_in(
    ca: Result<&LocalCa, TlsError>,
    names: &[HostPattern],
    certs: &CertStore,
    now: OffsetDateTime,
) -> (Result<Arc<Certificate>, TlsError>, Option<TlsError>) {
    let fits = |found: &Arc<Certificate>| {
        found.facts.standing == Standing::StandIn
            && ca.as_ref().map_or(true, |ca| *found.facts.issuer == *ca.subject)
            && now < renewal(&found.facts)
            && names.iter().all(|pattern| found.facts.covers(pattern))
    };
    let found = names.first().and_then(|name| certs.of(name)).filter(fits);
    let (leaf, fault) = match (found, ca) {
        (Some(found), ca) => (Ok(found), ca.err()),
        (None, Ok(ca)) => (pending_leaf(ca, names, now), None),
        (None, Err(fault)) => (LocalCa::in_memory().and_then(|ca| pending_leaf(&ca, names, now)), Some(fault)),
    };
    (leaf, fault)
}

fn pending_leaf(ca: &LocalCa, names: &[HostPattern], now: OffsetDateTime) -> Result<Arc<Certificate>, TlsError> {
    let leaf = ca.leaf_at(names, now)?;
    let facts = CertFacts { source: CertificateSource::Acme, standing: Standing::StandIn, ..leaf.facts.clone() };
    Ok(Arc::new(Certificate { key: Arc::clone(&leaf.key), facts }))
}

/// The leaf of a site: the one in force while it fits and is young, else a new one.
pub(super) fn leaf_for(
    ca: &LocalCa,
    site: &Site,
    certs: &CertStore,
    now: OffsetDateTime,
) -> Result<Arc<Certificate>, TlsError> {
    let patterns = patterns(site);
    let fits = |found: &Arc<Certificate>| {
        found.facts.source == CertificateSource::Local
            && *found.facts.issuer == *ca.subject
            && now < renewal(&found.facts)
            && patterns.iter().all(|pattern| found.facts.covers(pattern))
    };
    match certs.of(&site.host).filter(fits) {
        Some(found) => Ok(found),
        None => ca.leaf_at(&patterns, now),
    }
}

/// Renews the leaves of the local authority. Never returns: whoever spawned it aborts it.
pub async fn watch(certs: Arc<CertStore>, snapshot: Arc<Snapshot>) {
    let mut changes = snapshot.changes();
    loop {
        let (generation, store) = (snapshot.keep(), Arc::clone(&certs));
        let work = move || renew_due(&generation.table, &store, OffsetDateTime::now_utc());
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => tracing::info!(count, "local certificates renewed"),
            Ok(Err(error)) => {
                tracing::error!(
                    help = error.help(),
                    "{error}: local certificates are not renewed; next attempt in 1 h"
                );
            }
            Err(error) => tracing::error!(%error, "renewal of local certificates failed; next attempt in 1 h"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// Renews what is due, and says how many sites that were.
fn renew_due(table: &SiteTable, certs: &CertStore, now: OffsetDateTime) -> Result<usize, TlsError> {
    let is_due = |site: &Site| certs.of(&site.host).is_some_and(|found| now >= renewal(&found.facts));
    let local = with_certificate(table).filter(|(_, source)| **source == CertificateSource::Local);
    let due: Vec<&Arc<Site>> = local.map(|(site, _)| site).filter(|site| is_due(site)).collect();
    if due.is_empty() {
        return Ok(0);
    }
    let ca = LocalCa::open(&table.edge.storage)?;
    for site in &due {
        let patterns = patterns(site);
        certs.renew(&patterns, &ca.leaf_at(&patterns, now).map_err(|error| error.for_site(&site.label))?);
    }
    Ok(due.len())
}

/// When a leaf is renewed: after two thirds of its lifetime, so that a month is left to notice.
pub fn renewal(facts: &CertFacts) -> OffsetDateTime {
    facts.not_before + (facts.not_after - facts.not_before) * 2 / 3
}

fn alternative_names(names: &[HostPattern]) -> Result<Vec<SanType>, rcgen::Error> {
    let mut all = Vec::new();
    for pattern in names {
        let name = match pattern.name().ip() {
            Some(ip) => SanType::IpAddress(ip),
            None => SanType::DnsName(pattern.to_string().as_str().try_into()?),
        };
        all.push(name);
        // Whoever names this machine by a name also types its address.
        if pattern.name().is_loopback() {
            all.push(SanType::IpAddress([127, 0, 0, 1].into()));
            all.push(SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()));
        }
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|name| seen.insert(name.clone()));
    Ok(all)
}

/// RFC 5280 4.1.2.2: positive, at most 20 octets; random, so that two authorities never repeat one.
fn serial() -> Result<SerialNumber, aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Takes the key away from everybody else, should a copy or a backup have opened it.
fn keep_private(key: &Path) -> io::Result<()> {
    // Not through a link: root could be led to close a file of the system by it.
    let opened = match File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(key) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Ok(()),
        opened => opened?,
    };
    let mode = opened.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        opened.set_permissions(Permissions::from_mode(0o600))?;
        tracing::warn!(file = %key.display(), "the key of the local authority was readable by others: now it is not");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::UnknownSni;
    use crate::tls::testing::{pattern, policy, site, table};
    use crate::tls::{load_all, publish_all, withdraw_unused};

    #[test]
    fn an_authority_is_made_once_and_is_private() {
        let storage = tempfile::tempdir().expect("a directory");
        let path = storage.path().join("new");
        let names: Vec<String> = std::thread::scope(|scope| {
            let open = || LocalCa::open(&path).expect("an authority").fingerprint_text();
            let all: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            all.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        let mode = |file: &str| fs::metadata(path.join(file)).expect("a file").permissions().mode() & 0o777;
        assert_eq!((mode("local-ca"), mode("local-ca/root.key"), mode("local-ca/root.pem")), (0o700, 0o600, 0o600));
        fs::set_permissions(path.join("local-ca/root.key"), Permissions::from_mode(0o644)).expect("a file");
        LocalCa::open(&path).expect("an authority");
        assert_eq!(mode("local-ca/root.key"), 0o600);
    }

    #[test]
    fn a_broken_authority_is_a_fault_and_never_replaced() {
        let storage = tempfile::tempdir().expect("a directory");
        LocalCa::open(storage.path()).expect("an authority");
        let key = storage.path().join("local-ca/root.key");
        let good = fs::read(&key).expect("a key");
        let other = KeyPair::generate().expect("a key").serialize_pem();
        for bad in [&b""[..], other.as_bytes()] {
            fs::write(&key, bad).expect("written");
            let error = LocalCa::open(storage.path()).expect_err("a fault");
            assert!(error.to_string().contains("local-ca"), "{error}");
            assert!(!error.help().is_empty());
            assert_eq!(fs::read(&key).expect("a key"), bad);
        }
        fs::write(&key, good).expect("written");
        LocalCa::open(storage.path()).expect("as before");
    }

    #[test]
    fn a_leaf_has_what_clients_ask_for() {
        let storage = tempfile::tempdir().expect("a directory");
        let ca = LocalCa::open(storage.path()).expect("an authority");
        let names = [pattern("localhost"), pattern("*.gate.internal"), pattern("10.0.0.1")];
        let leaf = ca.leaf(&names).expect("a leaf");
        let texts: Vec<&str> = leaf.facts.names.iter().map(|name| &**name).collect();
        assert_eq!(texts, ["localhost", "127.0.0.1", "::1", "*.gate.internal", "10.0.0.1"]);
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.key.cert[0]).expect("a certificate");
        let (_, root) = x509_parser::parse_x509_certificate(&ca.der).expect("a certificate");
        let extension = |oid| parsed.get_extension_unique(&oid).expect("unique").is_some();
        assert!(extension(x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER));
        assert!(!parsed.is_ca() && root.is_ca());
        assert_eq!(parsed.issuer(), root.subject());
        assert!(parsed.verify_signature(Some(root.public_key())).is_ok());
        let days = (leaf.facts.not_after - leaf.facts.not_before).whole_days();
        assert_eq!(days, 90);
        let second = ca.leaf(&names).expect("a leaf");
        let serial = |leaf: &Certificate| {
            x509_parser::parse_x509_certificate(&leaf.key.cert[0]).expect("a certificate").1.raw_serial().to_vec()
        };
        assert_ne!(serial(&leaf), serial(&second));
        assert_ne!(leaf.key.key.public_key(), second.key.key.public_key());
    }

    #[test]
    fn a_reload_keeps_the_leaf_and_age_renews_it() {
        let storage = tempfile::tempdir().expect("a directory");
        let sites = |hosts: &[&str]| hosts.iter().map(|host| site(host, &policy(), CertificateSource::Local)).collect();
        let first = table(storage.path(), UnknownSni::Reject, sites(&["a.test", "b.test"]));
        let certs = CertStore::new();
        assert_eq!(publish_all(&first, &certs).expect("certificates"), []);
        let print = |host: &str| certs.of(&pattern(host)).map(|found| found.facts.fingerprint);
        let before = print("a.test");

        let second = table(storage.path(), UnknownSni::Reject, sites(&["a.test", "c.test"]));
        load_all(&second, &certs).expect("certificates").publish(&certs);
        assert!(print("b.test").is_some(), "the old table is in force until the swap");
        withdraw_unused(&second, &certs);
        assert_eq!((print("a.test"), print("b.test").is_some(), print("c.test").is_some()), (before, false, true));

        let now = OffsetDateTime::now_utc();
        assert_eq!(renew_due(&second, &certs, now + time::Duration::days(59)).expect("renewed"), 0);
        assert_eq!(renew_due(&second, &certs, now + time::Duration::days(61)).expect("renewed"), 2);
        assert_ne!(print("a.test"), before);
    }
}
