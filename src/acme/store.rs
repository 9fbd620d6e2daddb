//! Accounts and certificates on disk: what several processes share, and what survives a restart.
//!
//! Below `storage/acme`, for the owner only:
//! `accounts/DIRECTORY/account.json`; `certificates/NAME/` with `certificate.pem` (key and chain in one file, replaced
//! whole), `ledger.json` (attempts, errors, times), `lock`, and `wanted` while somebody asks for a renewal; `running`,
//! locked by each process that serves. Locks end with their process. Every function here blocks.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use instant_acme::AccountCredentials;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::fault::{AcmeFault, Blame};
use super::plan;
use crate::addr::HostPattern;
use crate::site::acme::Directory;
use crate::storage::{self, private_file, write_whole};
use crate::tls::TlsError;
use crate::tls::certs::Certificate;
use crate::tls::kept;

/// The store under one `storage`. Nothing is touched before it is asked.
#[derive(Clone, Debug)]
pub struct Store {
    storage: PathBuf,
}

/// Something on disk that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {}", file.display(), storage::words(source).0)]
pub struct StoreError {
    /// What was tried.
    pub what: &'static str,
    /// Where.
    pub file: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What is known about the certificate of one site beside the certificate itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// The directory (URL) that issued the kept certificate.
    pub directory: Option<String>,
    /// The kind of proof that worked last.
    pub proof: Option<String>,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// The last attempt.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_attempt: Option<OffsetDateTime>,
    /// The next attempt, while there are failures.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_attempt: Option<OffsetDateTime>,
    /// The next renewal as planned.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_renewal: Option<OffsetDateTime>,
    /// Why the last attempt failed.
    pub trouble: Option<Trouble>,
    /// What an attempt that runs is doing.
    pub stage: Option<String>,
    /// When the kept certificate was issued.
    #[serde(with = "time::serde::rfc3339::option")]
    pub issued: Option<OffsetDateTime>,
    /// What the CA suggested for the kept certificate.
    pub suggestion: Option<KeptSuggestion>,
}

/// A suggestion of the CA (RFC 9773), as it is kept: a restart asks nobody anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptSuggestion {
    /// Of the certificate with this fingerprint.
    pub sha256: String,
    /// The window, where the CA has an opinion.
    pub window: Option<plan::Window>,
    /// When the certificate is renewed for that.
    #[serde(with = "time::serde::rfc3339::option")]
    pub renewal: Option<OffsetDateTime>,
    /// When the CA is asked again.
    #[serde(with = "time::serde::rfc3339")]
    pub ask_at: OffsetDateTime,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the request with this number.
    pub id: u64,
    /// Whether a new certificate is in force, or none is due.
    pub is_fine: bool,
    /// In words.
    pub text: String,
    /// What to do.
    pub help: String,
}

/// A failure, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// The short word.
    pub kind: String,
    /// What happened.
    pub text: String,
    /// What to do.
    pub help: String,
    /// Whether the CA was away: then its return is reason enough to try again.
    #[serde(default)]
    pub is_of_ca: bool,
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
pub struct KeptAccount {
    /// The directory (URL) that it is at.
    pub directory: String,
    /// Its URL there.
    pub url: String,
    /// Its contact.
    pub contact: Option<String>,
    /// Its key.
    pub credentials: AccountCredentials,
}

/// Somebody asks for a renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its number, by chance: the answer has it too.
    pub id: u64,
    /// Also when the certificate is not due.
    pub force: bool,
}

/// A lock that ends when it is dropped, or with the process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Whether others may have the same lock.
#[derive(Clone, Copy)]
enum LockKind {
    Exclusive,
    Shared,
}

/// The file of the ledger.
pub const LEDGER: &str = "ledger.json";
const ANSWER: &str = "answer.json";
const ACCOUNT: &str = "account.json";
/// The file by which somebody asks for a renewal.
pub const WANTED: &str = "wanted";
/// The file of key and chain.
pub const CERTIFICATE: &str = "certificate.pem";

impl Store {
    /// The store under `storage`.
    pub fn new(storage: &Path) -> Self {
        Self { storage: storage.to_owned() }
    }

    /// The directory of all certificates, for whoever watches it.
    pub fn certificates(&self) -> PathBuf {
        self.storage.join("acme").join("certificates")
    }

    /// The directory of one site's certificate.
    pub fn of_site(&self, site: &HostPattern) -> PathBuf {
        kept::directory(&self.storage, site)
    }

    /// The certificate of a site, if one is kept.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn certificate(&self, site: &HostPattern) -> Result<Option<Arc<Certificate>>, TlsError> {
        kept::load(&self.storage, site)
    }

    /// Keeps a certificate in place of the one before.
    ///
    /// # Errors
    /// When the disk refuses it; the one before is still there.
    pub fn keep_certificate(&self, site: &HostPattern, pem: &str) -> Result<(), StoreError> {
        self.write(&self.of_site(site), CERTIFICATE, pem.as_bytes())
    }

    /// The key of the kept certificate (PEM).
    pub fn key(&self, site: &HostPattern) -> Option<String> {
        let pem = fs::read(kept::file(&self.storage, site)).ok()?;
        let key = rcgen::KeyPair::try_from(&PrivateKeyDer::from_pem_slice(&pem).ok()?).ok()?;
        Some(key.serialize_pem())
    }

    /// Moves the certificate of a site aside: it was revoked, and must not come back at a start.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn set_aside(&self, site: &HostPattern) -> Result<(), StoreError> {
        let file = kept::file(&self.storage, site);
        let aside = file.with_file_name("revoked.pem");
        fs::rename(&file, &aside).map_err(|source| StoreError { what: "move aside", file, source })
    }

    /// The ledger of a site. One that is not there or cannot be read is an empty one: it only holds what can be found
    /// out again.
    pub fn ledger(&self, site: &HostPattern) -> Ledger {
        read_json(&self.of_site(site).join(LEDGER)).unwrap_or_default()
    }

    /// Keeps the ledger of a site.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn keep_ledger(&self, site: &HostPattern, ledger: &Ledger) -> Result<(), StoreError> {
        self.write_json(&self.of_site(site), LEDGER, ledger)
    }

    /// Takes the lock of a site's certificate: whoever has it orders. `None` when another process does.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn lock(&self, site: &HostPattern) -> Result<Option<Lock>, StoreError> {
        self.try_lock(&self.of_site(site), "lock", LockKind::Exclusive)
    }

    /// Writes and removes as much as a certificate needs. An order whose certificate cannot be kept is not made, because
    /// CAs count them.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn probe(&self, site: &HostPattern) -> Result<(), StoreError> {
        let file = self.of_site(site);
        storage::probe(&self.storage, &file).map_err(|source| StoreError { what: "write in", file, source })
    }

    /// Asks for a renewal.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn ask(&self, site: &HostPattern, request: Request) -> Result<(), StoreError> {
        self.write_json(&self.of_site(site), WANTED, &request)
    }

    /// What was asked for, if anything was.
    pub fn asked(&self, site: &HostPattern) -> Option<Request> {
        read_json(&self.of_site(site).join(WANTED))
    }

    /// Writes down what came of a request: apart from the ledger, which every process writes.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn keep_answer(&self, site: &HostPattern, answer: &Answer) -> Result<(), StoreError> {
        self.write_json(&self.of_site(site), ANSWER, answer)
    }

    /// What came of a request, once somebody has done it.
    pub fn answer(&self, site: &HostPattern, id: u64) -> Option<Answer> {
        read_json(&self.of_site(site).join(ANSWER)).filter(|answer: &Answer| answer.id == id)
    }

    /// What was asked for has been done, or tried.
    pub fn answered(&self, site: &HostPattern) {
        // Another process may have been faster.
        let _ = fs::remove_file(self.of_site(site).join(WANTED));
    }

    /// Marks this process as one that serves from this store, for as long as the lock is held.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn mark_running(&self) -> Result<Option<Lock>, StoreError> {
        self.try_lock(&self.storage.join("acme"), "running", LockKind::Shared)
    }

    /// True when a process serves from this store.
    pub fn is_served(&self) -> bool {
        let Ok(file) = File::options().read(true).open(self.storage.join("acme").join("running")) else { return false };
        matches!(file.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// The account at a directory, if there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be used: a new account must not take its place unseen.
    pub fn account(&self, directory: &Directory) -> Result<Option<KeptAccount>, StoreError> {
        let file = self.of_directory(directory).join(ACCOUNT);
        let fault = |source| StoreError { what: "use the account in", file: file.clone(), source };
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| fault(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }

    /// Keeps the account at a directory.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn keep_account(&self, directory: &Directory, account: &KeptAccount) -> Result<(), StoreError> {
        self.write_json(&self.of_directory(directory), ACCOUNT, account)
    }

    /// Whether the account at a directory could be written now.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn probe_account(&self, directory: &Directory) -> Result<(), StoreError> {
        let file = self.of_directory(directory);
        storage::probe(&self.storage, &file).map_err(|source| StoreError { what: "write in", file, source })
    }

    /// Moves an account aside that its CA does not know any more.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn forget_account(&self, directory: &Directory) -> Result<(), StoreError> {
        let file = self.of_directory(directory).join(ACCOUNT);
        let aside = file.with_file_name("account-unknown-to-the-ca.json");
        fs::rename(&file, aside).map_err(|source| StoreError { what: "move aside", file, source })
    }

    /// Takes the lock of an account. `None` when another process is at it.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn lock_account(&self, directory: &Directory) -> Result<Option<Lock>, StoreError> {
        self.try_lock(&self.of_directory(directory), "lock", LockKind::Exclusive)
    }

    /// By name for people, by a digest of the URL so that two of one name stay apart.
    fn of_directory(&self, directory: &Directory) -> PathBuf {
        let digest = digest::digest(&digest::SHA256, directory.url.as_bytes());
        let mark: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let name: String = directory.name.chars().filter(is_plain).take(60).collect();
        self.storage.join("acme").join("accounts").join(format!("{name}-{mark}"))
    }

    fn write_json(&self, directory: &Path, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(value).map_err(|error| StoreError {
            what: "write",
            file: directory.join(name),
            source: error.into(),
        })?;
        self.write(directory, name, &bytes)
    }

    fn write(&self, directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let written = write_whole(&self.storage, directory, name, bytes);
        written.map_err(|source| StoreError { what: "write", file: directory.join(name), source })
    }

    fn try_lock(&self, directory: &Path, name: &str, kind: LockKind) -> Result<Option<Lock>, StoreError> {
        let file = directory.join(name);
        let fault = |source| StoreError { what: "lock", file: file.clone(), source };
        // For writing: an exclusive lock over NFS wants it. A shared one is held for days, and must not keep the file system
        // from being made read-only.
        let opened = private_file(&self.storage, directory, name);
        let opened = match kind {
            LockKind::Exclusive => opened,
            LockKind::Shared => opened.and_then(|_| File::open(&file)),
        };
        let opened = opened.map_err(fault)?;
        let taken = match kind {
            LockKind::Exclusive => opened.try_lock(),
            LockKind::Shared => opened.try_lock_shared(),
        };
        match taken {
            Ok(()) => Ok(Some(Lock(opened))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(fault(error)),
        }
    }
}

impl From<StoreError> for AcmeFault {
    fn from(error: StoreError) -> Self {
        let (_, remedy) = storage::words(&error.source);
        Self::new(Blame::Storage, "storage", error.to_string(), format!("{remedy}; what is in force is served on"))
    }
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn site(text: &str) -> HostPattern {
        HostPattern::from_config(text).expect("a name")
    }

    #[test]
    fn what_is_kept_is_private_and_comes_back() {
        let storage = tempfile::tempdir().expect("a directory");
        let store = Store::new(&storage.path().join("new"));
        let host = site("*.example.com");
        assert!(store.certificate(&host).expect("none").is_none());
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["*.example.com".to_owned()]).expect("a name");
        let pem = key.serialize_pem() + &params.self_signed(&key).expect("a certificate").pem();
        store.probe(&host).expect("writable");
        store.keep_certificate(&host, &pem).expect("kept");
        let found = store.certificate(&host).expect("whole").expect("there");
        assert_eq!(found.facts.names, ["*.example.com".into()]);
        let ledger = Ledger { failures: 3, next_attempt: Some(OffsetDateTime::UNIX_EPOCH), ..Ledger::default() };
        store.keep_ledger(&host, &ledger).expect("kept");
        assert_eq!(store.ledger(&host), ledger);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let directory = store.of_site(&host);
        assert_eq!((mode(&directory), mode(&directory.join(CERTIFICATE))), (0o700, 0o600));
        assert!(directory.ends_with("acme/certificates/+.example.com"), "{}", directory.display());
        store.set_aside(&host).expect("moved");
        assert!(store.certificate(&host).expect("none").is_none());
    }

    #[test]
    fn a_name_is_ordered_by_one_at_a_time() {
        let storage = tempfile::tempdir().expect("a directory");
        let (one, other) = (Store::new(storage.path()), Store::new(storage.path()));
        let held = one.lock(&site("a.example.com")).expect("a lock").expect("free");
        assert!(other.lock(&site("a.example.com")).expect("a lock").is_none());
        assert!(other.lock(&site("b.example.com")).expect("a lock").is_some());
        drop(held);
        assert!(other.lock(&site("a.example.com")).expect("a lock").is_some());
    }

    #[test]
    fn an_answer_is_for_the_request_of_its_number() {
        let storage = tempfile::tempdir().expect("a directory");
        let (store, host) = (Store::new(storage.path()), site("a.example.com"));
        store.ask(&host, Request { id: 7, force: true }).expect("asked");
        assert_eq!(store.asked(&host), Some(Request { id: 7, force: true }));
        let answer = Answer { id: 7, is_fine: true, text: "done".into(), help: String::new() };
        store.keep_answer(&host, &answer).expect("kept");
        store.answered(&host);
        // Whoever writes the ledger takes nothing away from it.
        store.keep_ledger(&host, &Ledger::default()).expect("kept");
        assert_eq!((store.asked(&host), store.answer(&host, 7)), (None, Some(answer)));
        assert_eq!(store.answer(&host, 8), None, "that of an earlier one says nothing");
    }

    #[test]
    fn it_is_known_whether_somebody_serves() {
        let storage = tempfile::tempdir().expect("a directory");
        let store = Store::new(storage.path());
        assert!(!store.is_served());
        let first = store.mark_running().expect("writable").expect("shared");
        let second = store.mark_running().expect("writable").expect("shared");
        assert!(store.is_served());
        drop((first, second));
        assert!(!store.is_served());
    }

    #[test]
    fn a_broken_account_is_a_fault_and_not_a_reason_for_a_new_one() {
        let storage = tempfile::tempdir().expect("a directory");
        let store = Store::new(storage.path());
        let directory = Directory::letsencrypt();
        assert!(store.account(&directory).expect("none").is_none());
        store.write(&store.of_directory(&directory), ACCOUNT, b"{").expect("written");
        assert!(store.account(&directory).is_err());
    }
}
