//! Certificate files: load a PEM chain and its key, and swap them without a reload when they change.
//!
//! Only a whole pair whose key belongs to its leaf is taken. A writer that has replaced one of two
//! files, or half of one, changes nothing: the last good pair stays until both are there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::certs::{CertFacts, CertStore, Certificate};
use super::fault::TlsError;
use super::load::{patterns, with_certificate};
use super::local_ca::LEAF_LIFETIME;
use super::policies::provider;
use crate::addr::HostPattern;
use crate::site::SiteTable;
use crate::site::policy::CertificateSource;
use crate::snapshot::Snapshot;

/// Loads a chain (leaf first) and its key: PKCS#8, PKCS#1 or SEC1, all in PEM form.
///
/// # Errors
/// When a file cannot be read, is not whole, or the two do not belong together.
pub fn load(cert: &Path, key: &Path) -> Result<Arc<Certificate>, TlsError> {
    Pair::read(cert, key)?.parse()
}

/// What is wrong with a certificate that can be served all the same, for people.
pub fn doubts(certificate: &Certificate, patterns: &[HostPattern], now: OffsetDateTime) -> Vec<String> {
    let facts = &certificate.facts;
    let mut doubts = Vec::new();
    if facts.not_after <= now {
        doubts.push(format!("the certificate expired on {}: renew it", facts.not_after.date()));
    }
    if facts.not_before > now {
        doubts.push(format!("the certificate is not valid before {}: check the clock", facts.not_before));
    }
    for pattern in patterns.iter().filter(|pattern| !facts.covers(pattern)) {
        let names = facts.names.join(", ");
        doubts.push(format!("the certificate is not for \"{pattern}\" but for: {names}"));
    }
    let is_file = matches!(facts.source, CertificateSource::Files { .. });
    if is_file && !is_chain(&certificate.key.cert) {
        // Browsers fetch or know what is missing; Node, curl and phones refuse.
        doubts.push("the chain is incomplete or out of order: the file needs the leaf, then each issuer".into());
    }
    if facts.source == CertificateSource::Local && facts.not_after - facts.not_before < LEAF_LIFETIME {
        let end = facts.not_after.date();
        doubts.push(format!(
            "the local authority ends on {end}: move \"local-ca\" in `storage` away, start again, run `tidegate trust`"
        ));
    }
    doubts
}

/// Follows the certificate files of the snapshot. Never returns: whoever spawned it aborts it.
pub async fn watch(certs: Arc<CertStore>, snapshot: Arc<Snapshot>) {
    let touched = Arc::new(Notify::new());
    let mut changes = snapshot.changes();
    let mut watcher = Watcher::new(Arc::clone(&certs), Some(&touched));
    loop {
        let generation = snapshot.keep();
        let pass = tokio::task::spawn_blocking(move || {
            watcher.pass(&generation.table);
            watcher
        });
        watcher = match pass.await {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::error!(%error, "the watch of certificate files failed and begins anew");
                Watcher::new(Arc::clone(&certs), Some(&touched))
            }
        };
        tokio::select! {
            () = settled(&touched) => {}
            // Network file systems and replaced directories send no events.
            () = sleep(POLL) => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// Also look without an event. Our choice: a renewal has days, and two small reads cost nothing.
const POLL: Duration = Duration::from_secs(60);
/// A pair is two writes: wait until nothing has happened for this long …
const QUIET: Duration = Duration::from_millis(200);
/// … but not longer than this while a busy directory never rests.
const LATEST: Duration = Duration::from_secs(2);
/// Larger than any chain; a wrong path (a log, a device) must not fill the memory.
const MAX_FILE: u64 = 1 << 20;

/// Resolves some time after the last of a burst of events. `Notify` keeps one permit, so an event
/// during a pass starts another pass: the last one is never lost.
async fn settled(touched: &Notify) {
    touched.notified().await;
    let latest = Instant::now() + LATEST;
    loop {
        let until = (Instant::now() + QUIET).min(latest);
        if timeout_at(until, touched.notified()).await.is_err() || Instant::now() >= latest {
            return;
        }
    }
}

/// The two files of one certificate.
type Paths = (PathBuf, PathBuf);

/// What the actor knows: what it saw last of each pair, and which directories it listens to.
struct Watcher {
    certs: Arc<CertStore>,
    seen: HashMap<Paths, Seen>,
    eyes: Option<RecommendedWatcher>,
    armed: BTreeSet<PathBuf>,
}

/// What was there at the last pass: so that each change is judged, and logged, once.
#[derive(PartialEq, Eq)]
enum Seen {
    Content([u8; 32]),
    Fault(String),
}

impl Watcher {
    fn new(certs: Arc<CertStore>, touched: Option<&Arc<Notify>>) -> Self {
        let eyes = touched.and_then(|touched| {
            let touched = Arc::clone(touched);
            let on_event = move |event: notify::Result<notify::Event>| {
                // Our own reading makes access events; acting on them would never end.
                let is_reading = |kind: EventKind| match kind {
                    EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
                    _ => false,
                };
                if !event.is_ok_and(|event| is_reading(event.kind)) {
                    touched.notify_one();
                }
            };
            notify::recommended_watcher(on_event)
                .inspect_err(|error| tracing::warn!(%error, "no file events: certificate files are read every 60 s"))
                .ok()
        });
        Self { certs, seen: HashMap::new(), eyes, armed: BTreeSet::new() }
    }

    /// Looks at every pair of a table once.
    fn pass(&mut self, table: &SiteTable) {
        let mut pairs: BTreeMap<Paths, Vec<HostPattern>> = BTreeMap::new();
        for (site, source) in with_certificate(table) {
            if let CertificateSource::Files { cert, key } = source {
                pairs.entry((cert.clone(), key.clone())).or_default().extend(patterns(site));
            }
        }
        self.seen.retain(|paths, _| pairs.contains_key(paths));
        // Before reading: what is written after it makes an event.
        self.arm(pairs.keys());
        for (paths, patterns) in pairs {
            self.look(paths, &patterns);
        }
    }

    /// Takes over a pair when it has changed and is whole.
    fn look(&mut self, paths: Paths, patterns: &[HostPattern]) {
        let (cert, key) = &paths;
        let pair = Pair::read(cert, key);
        let seen = match &pair {
            Ok(pair) => Seen::Content(pair.digest()),
            Err(fault) => Seen::Fault(fault.to_string()),
        };
        if self.seen.get(&paths) == Some(&seen) {
            return;
        }
        match pair.and_then(|pair| pair.parse()) {
            Ok(certificate) => self.take(&certificate, patterns),
            Err(fault) => tracing::warn!(
                certificate = %cert.display(),
                help = fault.help(),
                "{fault}: the certificate in force stays"
            ),
        }
        self.seen.insert(paths, seen);
    }

    fn take(&self, certificate: &Arc<Certificate>, patterns: &[HostPattern]) {
        let is_in_force = |pattern| self.certs.of(pattern).is_some_and(|old| old.key.cert == certificate.key.cert);
        if patterns.iter().all(is_in_force) || !self.certs.renew(patterns, certificate) {
            return;
        }
        let facts = &certificate.facts;
        let names = facts.names.join(", ");
        tracing::info!(names, not_after = %facts.not_after, sha256 = facts.fingerprint_text(), "certificate replaced");
        for doubt in doubts(certificate, patterns, OffsetDateTime::now_utc()) {
            tracing::warn!(names, "{doubt}");
        }
    }

    /// Listens to the directories of the files, and to those where their links lead: certbot and
    /// Kubernetes replace links, an editor replaces files. A directory's own event covers all.
    fn arm<'a>(&mut self, pairs: impl Iterator<Item = &'a Paths>) {
        let Some(eyes) = &mut self.eyes else { return };
        let mut wanted = BTreeSet::new();
        for file in pairs.flat_map(|(cert, key)| [cert, key]) {
            let real = file.canonicalize().ok();
            wanted.extend([Some(file), real.as_ref()].into_iter().flatten().filter_map(|path| directory(path)));
        }
        for gone in self.armed.difference(&wanted) {
            // It may be gone from the disk as well, which is no fault.
            let _ = eyes.unwatch(gone);
        }
        // All of them again: a directory that was replaced has a new inode under its old name.
        self.armed = wanted
            .into_iter()
            .filter(|path| match eyes.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(directory = %path.display(), %error, "not watched, read every 60 s");
                    false
                }
            })
            .collect();
    }
}

fn directory(file: &Path) -> Option<PathBuf> {
    match file.parent()? {
        parent if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        parent => Some(parent.to_owned()),
    }
}

/// The bytes of both files, read one after the other; `parse` says whether they belong together.
struct Pair<'a> {
    cert: &'a Path,
    key: &'a Path,
    chain_pem: Vec<u8>,
    key_pem: Vec<u8>,
}

impl<'a> Pair<'a> {
    fn read(cert: &'a Path, key: &'a Path) -> Result<Self, TlsError> {
        Ok(Self {
            cert,
            key,
            chain_pem: content(cert, "cannot read the certificate file")?,
            key_pem: content(key, "cannot read the key file")?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(self.chain_pem.len() as u64).to_be_bytes());
        context.update(&self.chain_pem);
        context.update(&self.key_pem);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        bytes
    }

    fn parse(&self) -> Result<Arc<Certificate>, TlsError> {
        const CHAIN_HELP: &str = "the file must hold the whole chain in PEM form, leaf first";
        const KEY_HELP: &str = "the file must hold the unencrypted key of the certificate in PEM form";
        let chain =
            CertificateDer::pem_slice_iter(&self.chain_pem).collect::<Result<Vec<_>, _>>().map_err(|error| {
                TlsError::new("cannot use the certificate file", CHAIN_HELP).in_file(self.cert).because(error)
            })?;
        let Some(leaf) = chain.first() else {
            return Err(TlsError::new("no certificate in", CHAIN_HELP).in_file(self.cert));
        };
        let source = CertificateSource::Files { cert: self.cert.to_owned(), key: self.key.to_owned() };
        let facts = CertFacts::read(leaf, source)
            .ok_or_else(|| TlsError::new("the first certificate cannot be read in", CHAIN_HELP).in_file(self.cert))?;
        let unusable = |error: Box<dyn std::error::Error + Send + Sync>| {
            TlsError::new("cannot use the key file", KEY_HELP).in_file(self.key).because(error)
        };
        let key = PrivateKeyDer::from_pem_slice(&self.key_pem).map_err(|error| unusable(error.into()))?;
        let key = provider().key_provider.load_private_key(key).map_err(|error| unusable(error.into()))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| {
            TlsError::new("the certificate does not belong to the key", "write both files of one renewal")
                .in_file(self.key)
        })?;
        Ok(Arc::new(Certificate { key: Arc::new(key), facts }))
    }
}

pub(super) fn content(file: &Path, what: &str) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let fault = |help: &str| TlsError::new(what, help).in_file(file);
    let bytes = read().map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => fault("let the user that tidegate runs as read it").because(error),
        _ => fault("check the path in `certificate`").because(error),
    })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fault("check the path in `certificate`").because("larger than 1 MiB"));
    }
    Ok(bytes)
}

/// True when each certificate is issued by the next one, and the last is no lone leaf: what clients
/// need without fetching anything (RFC 8446 4.4.2). By names only; clients check the signatures.
pub(super) fn is_chain(chain: &[CertificateDer<'_>]) -> bool {
    let parsed: Option<Vec<_>> =
        chain.iter().map(|der| x509_parser::parse_x509_certificate(der).ok().map(|(_, parsed)| parsed)).collect();
    let Some(parsed) = parsed else { return false };
    let is_linked = parsed.windows(2).all(|pair| pair[0].issuer().as_raw() == pair[1].subject().as_raw());
    let is_lone_leaf = match parsed.as_slice() {
        [leaf] => !leaf.is_ca() && leaf.issuer().as_raw() != leaf.subject().as_raw(),
        _ => false,
    };
    is_linked && !is_lone_leaf
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::UnknownSni;
    use crate::tls::testing::{pattern, policy, site, table};
    use crate::tls::{load_all, publish_all};
    use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
    use std::fs;

    /// A chain of two and its key, as text.
    struct Fresh {
        chain: String,
        key: String,
    }

    impl Fresh {
        fn new(name: &str) -> Self {
            let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
            Self::with(params)
        }

        fn with(params: CertificateParams) -> Self {
            let root_key = KeyPair::generate().expect("a key");
            let mut root = CertificateParams::default();
            root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            root.distinguished_name.push(rcgen::DnType::CommonName, "a root");
            let root_pem = root.self_signed(&root_key).expect("a root").pem();
            let key = KeyPair::generate().expect("a key");
            let leaf = params.signed_by(&key, &Issuer::new(root, root_key)).expect("a leaf");
            Self { chain: leaf.pem() + &root_pem, key: key.serialize_pem() }
        }
    }

    struct Disk {
        directory: tempfile::TempDir,
    }

    impl Disk {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().expect("a directory") }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, fresh: &Fresh) {
            fs::write(self.path("cert.pem"), &fresh.chain).expect("written");
            fs::write(self.path("key.pem"), &fresh.key).expect("written");
        }

        fn source(&self) -> CertificateSource {
            CertificateSource::Files { cert: self.path("cert.pem"), key: self.path("key.pem") }
        }

        fn table(&self) -> SiteTable {
            let sites = vec![site("a.test", &policy(), self.source())];
            table(self.directory.path(), UnknownSni::Reject, sites)
        }
    }

    fn print(certs: &CertStore) -> [u8; 32] {
        certs.of(&pattern("a.test")).expect("in force").facts.fingerprint
    }

    #[test]
    fn half_written_key_keeps_old_certificate() {
        let disk = Disk::new();
        disk.write(&Fresh::new("a.test"));
        let (table, certs) = (disk.table(), Arc::new(CertStore::new()));
        publish_all(&table, &certs).expect("certificates");
        let old = print(&certs);
        let mut watcher = Watcher::new(Arc::clone(&certs), None);
        watcher.pass(&table);

        let next = Fresh::new("a.test");
        let (half_chain, half_key) = (&next.chain[..next.chain.len() - 40], &next.key[..next.key.len() / 2]);
        for (chain, key) in [
            (next.chain.as_str(), None),
            (&next.chain, Some(half_key)),
            (half_chain, Some(&next.key)),
            ("", Some(&next.key)),
        ] {
            fs::write(disk.path("cert.pem"), chain).expect("written");
            if let Some(key) = key {
                fs::write(disk.path("key.pem"), key).expect("written");
            }
            watcher.pass(&table);
            assert_eq!(print(&certs), old, "the last good pair stays");
        }
        fs::remove_file(disk.path("key.pem")).expect("removed");
        watcher.pass(&table);
        assert_eq!(print(&certs), old);
        disk.write(&next);
        watcher.pass(&table);
        assert_ne!(print(&certs), old);
    }

    #[tokio::test]
    async fn a_replaced_pair_is_in_force_without_a_reload() {
        // As Kubernetes has it: files are links through a link to a directory, which is replaced.
        let disk = Disk::new();
        let volume = |name: &str, fresh: &Fresh| {
            fs::create_dir(disk.path(name)).expect("made");
            fs::write(disk.path(name).join("cert.pem"), &fresh.chain).expect("written");
            fs::write(disk.path(name).join("key.pem"), &fresh.key).expect("written");
        };
        let point_to = |name: &str| {
            std::os::unix::fs::symlink(name, disk.path("..next")).expect("linked");
            fs::rename(disk.path("..next"), disk.path("..data")).expect("renamed");
        };
        volume("..one", &Fresh::new("a.test"));
        point_to("..one");
        for file in ["cert.pem", "key.pem"] {
            std::os::unix::fs::symlink(format!("..data/{file}"), disk.path(file)).expect("linked");
        }
        let (table, certs) = (disk.table(), Arc::new(CertStore::new()));
        publish_all(&table, &certs).expect("certificates");
        let mut changes = certs.changes();
        changes.mark_unchanged();
        let watch = tokio::spawn(watch(Arc::clone(&certs), Arc::new(Snapshot::new(table))));
        for (name, fresh) in [("..two", Fresh::new("a.test")), ("..three", Fresh::new("a.test"))] {
            let old = print(&certs);
            volume(name, &fresh);
            point_to(name);
            // Far below the 60 s of the poll: an event did it.
            tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.expect("in time").expect("alive");
            assert_ne!(print(&certs), old);
        }
        watch.abort();
    }

    #[test]
    fn all_faults_are_told_and_nothing_is_published() {
        let disk = Disk::new();
        disk.write(&Fresh::new("a.test"));
        let missing = CertificateSource::Files { cert: disk.path("none.pem"), key: disk.path("key.pem") };
        fs::write(disk.path("other.key"), Fresh::new("a.test").key).expect("written");
        let foreign = CertificateSource::Files { cert: disk.path("cert.pem"), key: disk.path("other.key") };
        let swapped = CertificateSource::Files { cert: disk.path("key.pem"), key: disk.path("cert.pem") };
        let sites = [("a.test", disk.source()), ("b.test", missing), ("c.test", foreign), ("d.test", swapped)];
        let sites = sites.into_iter().map(|(host, source)| site(host, &policy(), source)).collect();
        let table = table(disk.directory.path(), UnknownSni::Reject, sites);
        let certs = CertStore::new();
        let faults = load_all(&table, &certs).map(|_| ()).expect_err("faults");
        assert!(certs.all().is_empty());
        let expected = [
            ("b.test", "none.pem", "cannot read the certificate file"),
            ("c.test", "other.key", "does not belong to the key"),
            ("d.test", "key.pem", "no certificate in"),
        ];
        assert_eq!(faults.len(), expected.len());
        for (fault, (site, file, text)) in faults.iter().zip(expected) {
            let shown = fault.to_string();
            assert!(shown.contains(site) && shown.contains(file) && shown.contains(text), "{shown}");
            assert!(!fault.help().is_empty());
        }
    }

    #[test]
    fn sec1_keys_are_taken_and_nonsense_is_not() {
        let disk = Disk::new();
        let fresh = Fresh::new("a.test");
        disk.write(&fresh);
        load(&disk.path("cert.pem"), &disk.path("key.pem")).expect("PKCS#8");
        // RFC 5208: SEC1 is the octet string inside PKCS#8, behind version and algorithm.
        let pkcs8 = KeyPair::from_pem(&fresh.key).expect("a key").serialize_der();
        let inner = &pkcs8[pkcs8.iter().skip(2).position(|byte| *byte == 4).expect("an octet string") + 4..];
        assert_eq!(inner[0], 0x30, "a sequence");
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, inner);
        let sec1 = format!("-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n");
        fs::write(disk.path("key.pem"), sec1).expect("written");
        load(&disk.path("cert.pem"), &disk.path("key.pem")).expect("SEC1");
        fs::write(disk.path("key.pem"), "-----BEGIN RSA PRIVATE KEY-----\nMAMC\nAQA=\n-----END RSA PRIVATE KEY-----\n")
            .expect("written");
        let error = load(&disk.path("cert.pem"), &disk.path("key.pem")).map(|_| ()).expect_err("no key");
        assert!(error.to_string().contains("cannot use the key file"), "{error}");
    }

    #[test]
    fn what_is_wrong_but_usable_is_told() {
        let disk = Disk::new();
        let mut params = CertificateParams::new(vec!["other.test".to_owned()]).expect("a name");
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - time::Duration::days(9), now - time::Duration::days(1));
        let mut fresh = Fresh::with(params);
        let end = fresh.chain.find("-----END CERTIFICATE-----").expect("a leaf") + "-----END CERTIFICATE-----\n".len();
        fresh.chain.truncate(end);
        disk.write(&fresh);
        let certs = CertStore::new();
        let warnings = publish_all(&disk.table(), &certs).expect("served all the same");
        let texts: Vec<&str> = warnings.iter().map(|warning| warning.text.as_str()).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].starts_with("the certificate expired on"), "{texts:?}");
        assert_eq!(texts[1], "the certificate is not for \"a.test\" but for: other.test");
        assert!(texts[2].starts_with("the chain is incomplete"), "{texts:?}");
    }
}
