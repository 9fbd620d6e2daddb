//! Our account at a CA: opened from disk, made at first use, its key changed on request.

use std::time::Duration;

use instant_acme::{Account, ExternalAccountKey, Key, NewAccount};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::{Instant, sleep};

use super::ca::Ca;
use super::dns::persist::Identity;
use super::fault::{AcmeFault, Blame, is_bad_nonce};
use super::off_thread;
use super::store::{KeptAccount, Lock, Store};
use crate::site::acme::AcmePolicy;

/// An open account.
#[derive(Clone)]
pub struct Opened {
    /// What orders are made with.
    pub account: Account,
    /// Its URL, which CAA records and DNS records may name.
    pub url: String,
}

impl Opened {
    /// Who we are at this CA.
    pub fn identity<'a>(&'a self, ca: &'a Ca) -> Identity<'a> {
        let hash_prefix = ca.meta.account_hash_prefix.as_deref();
        Identity { url: &self.url, thumbprint: self.account.key_thumbprint(), hash_prefix }
    }
}

/// How long another process may take to make the account that we both need.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens the account at a CA, and makes it if there is none.
///
/// # Errors
/// When the disk or the CA refuses it.
pub async fn open(ca: &Ca, policy: &AcmePolicy, store: &Store) -> Result<Opened, AcmeFault> {
    let _lock = lock(ca, store).await?;
    let contact = policy.email.as_deref().map(|email| format!("mailto:{email}"));
    let (directory, reader) = (ca.directory.clone(), store.clone());
    let kept = off_thread(move || reader.account(&directory)).await?;
    match kept {
        Some(kept) => restore(ca, store, kept, contact).await,
        None => create(ca, store, contact).await,
    }
}

/// Moves an account aside that the CA does not know, so that the next `open` makes a new one.
///
/// # Errors
/// When the disk refuses it.
pub async fn forget(ca: &Ca, store: &Store) -> Result<(), AcmeFault> {
    let (directory, store) = (ca.directory.clone(), store.clone());
    off_thread(move || store.forget_account(&directory)).await
}

/// Whether the CA does not know the account of our key any more, or has closed it: its key was changed by somebody who
/// could not keep the new one, or it was closed by hand.
pub async fn is_lost(ca: &Ca, store: &Store) -> bool {
    let (directory, reader) = (ca.directory.clone(), store.clone());
    let Ok(Some(kept)) = off_thread(move || reader.account(&directory)).await else { return false };
    let secret = kept.credentials.private_key().secret_pkcs8_der().to_vec();
    let Ok(key) = Key::from_pkcs8_der(PrivatePkcs8KeyDer::from(secret.clone())) else { return true };
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(secret));
    // RFC 8555 7.3.1: asked for by key, and never made.
    let mut tries = 0;
    let mut key = Some(key);
    loop {
        let Some(one) = key.take() else { return false };
        let builder = Account::builder_with_http(ca.http());
        match builder.from_key((one, secret.clone_key()), ca.directory.url.to_string()).await {
            Ok(_) => return false,
            Err(error) if is_bad_nonce(&error) && tries < 10 => {
                tries += 1;
                key = Key::from_pkcs8_der(PrivatePkcs8KeyDer::from(secret.secret_der().to_vec())).ok();
            }
            Err(error) => return matches!(&*ca.fault(&error).kind, "accountDoesNotExist" | "unauthorized"),
        }
    }
}

/// Gives the account a new key (RFC 8555 7.3.5).
///
/// # Errors
/// When there is no account, or the disk or the CA refuses it. Where the CA has taken the new key and the disk has not,
/// the account is lost; the next order finds that out and makes a new one.
pub async fn change_key(ca: &Ca, store: &Store) -> Result<Opened, AcmeFault> {
    let _lock = lock(ca, store).await?;
    let (directory, reader) = (ca.directory.clone(), store.clone());
    let kept = off_thread(move || reader.account(&directory)).await?;
    let Some(kept) = kept else {
        return Err(AcmeFault::new(
            Blame::Setup,
            "no-account",
            "there is no account yet",
            "it is made with the first order",
        ));
    };
    // Before the CA is asked: what it has taken cannot be taken back.
    let (directory, prober) = (ca.directory.clone(), store.clone());
    off_thread(move || prober.probe_account(&directory)).await?;
    let (url, contact) = (kept.url.clone(), kept.contact.clone());
    let mut account = from_kept(ca, kept).await?;
    let mut tries = 0;
    let credentials = loop {
        match account.update_key().await {
            Ok(credentials) => break credentials,
            Err(error) if is_bad_nonce(&error) && tries < 10 => tries += 1,
            Err(error) => return Err(ca.fault(&error)),
        }
    };
    keep(ca, store, KeptAccount { directory: ca.directory.url.to_string(), url: url.clone(), contact, credentials })
        .await?;
    Ok(Opened { account, url })
}

async fn restore(ca: &Ca, store: &Store, kept: KeptAccount, contact: Option<String>) -> Result<Opened, AcmeFault> {
    let url = kept.url.clone();
    let is_same_contact = kept.contact == contact;
    let account = from_kept(ca, kept).await?;
    if !is_same_contact {
        let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
        // A contact that cannot be changed is no reason to go without a certificate.
        match again!(account.update_contacts(&contacts)) {
            Ok(()) => {
                let (directory, reader) = (ca.directory.clone(), store.clone());
                if let Some(kept) = off_thread(move || reader.account(&directory)).await? {
                    keep(ca, store, KeptAccount { contact, ..kept }).await?;
                }
            }
            Err(error) => tracing::warn!(
                event = "account",
                directory = &*ca.directory.name,
                "the contact was not changed: {}",
                ca.fault(&error)
            ),
        }
    }
    Ok(Opened { account, url })
}

async fn create(ca: &Ca, store: &Store, contact: Option<String>) -> Result<Opened, AcmeFault> {
    let eab = ca.directory.eab.as_ref();
    if ca.meta.external_account_required && eab.is_none() {
        let text = format!("\"{}\" only takes accounts that are bound to an account of its own", ca.directory.name);
        return Err(AcmeFault::new(
            Blame::Setup,
            "externalAccountRequired",
            text,
            "set eab = { kid = \"…\", hmac = { file = \"…\" } } in [acme]",
        ));
    }
    let eab = eab.map(|eab| ExternalAccountKey::new(eab.kid.to_string(), &eab.hmac.0));
    let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
    // Whoever orders agrees to the CA's terms; the doc of `[acme]` says so.
    let wanted = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
    let made =
        again!(Account::builder_with_http(ca.http()).create(&wanted, ca.directory.url.to_string(), eab.as_ref()));
    let (account, credentials) = made.map_err(|error| ca.fault(&error))?;
    let url = account.id().to_owned();
    keep(ca, store, KeptAccount { directory: ca.directory.url.to_string(), url: url.clone(), contact, credentials })
        .await?;
    tracing::info!(event = "account", directory = &*ca.directory.name, account = url, "an account was made at the CA");
    Ok(Opened { account, url })
}

async fn from_kept(ca: &Ca, kept: KeptAccount) -> Result<Account, AcmeFault> {
    let restored = Account::builder_with_http(ca.http()).from_credentials(kept.credentials).await;
    restored.map_err(|error| ca.fault(&error))
}

async fn keep(ca: &Ca, store: &Store, account: KeptAccount) -> Result<(), AcmeFault> {
    let (directory, store) = (ca.directory.clone(), store.clone());
    off_thread(move || store.keep_account(&directory, &account)).await
}

/// The lock of the account, when no other process makes or changes it.
async fn lock(ca: &Ca, store: &Store) -> Result<Lock, AcmeFault> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (directory, store) = (ca.directory.clone(), store.clone());
        if let Some(lock) = off_thread(move || store.lock_account(&directory)).await? {
            return Ok(lock);
        }
        if Instant::now() > until {
            let text = "another process has held the lock of the account for a minute";
            return Err(AcmeFault::new(Blame::Storage, "account-lock", text, "see which processes use this storage"));
        }
        sleep(Duration::from_millis(200)).await;
    }
}
