//! One rustls configuration for each distinct TLS policy, with its own tickets and session store.
//!
//! A session that was made under one policy can only be resumed under an equal one: rustls does not
//! ask for the client's certificate again when it resumes, so shared ticket keys would let a session
//! of an open site into one that demands a certificate. Equal policies may share, because rustls
//! itself refuses to resume under another SNI (RFC 6066 3).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group as group};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerSessionMemoryCache, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use super::certs::CertStore;
use super::fault::TlsError;
use super::proofs::{ACME_TLS, ProofBoard};
use crate::site::crl::Lists;
use crate::site::policy::{Alpn, ClientCert, TlsPolicy, TlsProfile};
use crate::site::{Site, SiteTable};

/// The configurations of all policies in use. Lives as long as the process: ticket keys and session
/// stores survive reloads, so that clients resume across them.
#[derive(Debug)]
pub struct Policies {
    certs: Arc<CertStore>,
    proofs: Arc<ProofBoard>,
    entries: ArcSwap<Vec<Entry>>,
    writing: Mutex<()>,
}

#[derive(Clone, Debug)]
struct Entry {
    policy: Arc<TlsPolicy>,
    config: Arc<ServerConfig>,
    /// The lists of revoked certificates in it: those of the policy, or newer ones of the same file.
    lists: Lists,
    /// What the last handshake ran on: mostly the next one's certificate is the same.
    latest: Arc<ArcSwapOption<(Arc<CertifiedKey>, Arc<ServerConfig>)>>,
}

/// Sessions that are kept for clients of TLS 1.2 that resume by session ID (RFC 5246 7.4.1.2). All
/// others have tickets, which cost no memory here.
const SESSIONS: usize = 256;

impl Policies {
    /// No policies yet; certificates come from `certs`, proofs for a CA from `proofs`.
    pub fn new(certs: Arc<CertStore>, proofs: Arc<ProofBoard>) -> Self {
        Self { certs, proofs, entries: ArcSwap::default(), writing: Mutex::new(()) }
    }

    /// The certificates that handshakes use.
    pub fn certs(&self) -> &Arc<CertStore> {
        &self.certs
    }

    /// The proofs that a CA may ask for in a handshake.
    pub fn proofs(&self) -> &Arc<ProofBoard> {
        &self.proofs
    }

    /// Builds what a table needs and is not there yet. Before the table is put in force.
    ///
    /// # Errors
    /// When the authorities of a client-certificate policy cannot be used; nothing is lost then.
    pub fn prepare(&self, table: &SiteTable) -> Result<(), TlsError> {
        for (site, policy) in policies_of(table) {
            self.entry(policy).map_err(|error| error.for_site(&site.label))?;
        }
        Ok(())
    }

    /// Drops what a table does not use. After the table is in force: before, handshakes of the old
    /// one would lose their ticket keys, and a reload that fails must change nothing.
    pub fn retain(&self, table: &SiteTable) {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        entries.retain(|entry| policies_of(table).any(|(_, policy)| *policy == entry.policy));
        self.entries.store(Arc::new(entries));
    }

    /// What a single handshake runs on: the configuration of its policy, built now if a reload has just dropped or
    /// not yet made it, with the certificate of the site whose policy was chosen, whatever is published meanwhile.
    pub(super) fn config(
        &self,
        policy: &Arc<TlsPolicy>,
        key: &Arc<CertifiedKey>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let entry = self.entry(policy)?;
        if let Some(latest) = &*entry.latest.load()
            && Arc::ptr_eq(&latest.0, key)
        {
            return Ok(Arc::clone(&latest.1));
        }
        let config = with_certificate(&entry.config, Arc::clone(key));
        entry.latest.store(Some(Arc::new((Arc::clone(key), Arc::clone(&config)))));
        Ok(config)
    }

    fn entry(&self, policy: &Arc<TlsPolicy>) -> Result<Entry, TlsError> {
        if let Some(entry) = self.find(policy) {
            return Ok(entry);
        }
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.find(policy) {
            return Ok(entry);
        }
        let entry = Entry::new(policy, lists_of(policy))?;
        let mut entries = Vec::clone(&self.entries.load());
        entries.push(entry.clone());
        self.entries.store(Arc::new(entries));
        Ok(entry)
    }

    /// Puts other lists of revoked certificates in force for a policy, with new ticket keys. False when they are already,
    /// or the policy is not in use.
    ///
    /// # Errors
    /// When they cannot be used; those in force stay then.
    pub(super) fn renew_lists(&self, policy: &Arc<TlsPolicy>, lists: &Lists) -> Result<bool, TlsError> {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        let Some(entry) = entries.iter_mut().find(|entry| entry.policy == *policy && entry.lists != *lists) else {
            return Ok(false);
        };
        *entry = Entry::new(policy, Arc::clone(lists))?;
        self.entries.store(Arc::new(entries));
        Ok(true)
    }

    /// A linear search: an edge has a handful of policies, however many sites it has.
    fn find(&self, policy: &Arc<TlsPolicy>) -> Option<Entry> {
        let entries = self.entries.load();
        let same = |entry: &&Entry| Arc::ptr_eq(&entry.policy, policy) || entry.policy == *policy;
        entries.iter().find(same).cloned()
    }

    /// How many distinct policies there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.entries.load().len()
    }
}

impl Entry {
    fn new(policy: &Arc<TlsPolicy>, lists: Lists) -> Result<Self, TlsError> {
        let config = Arc::new(build(policy, &lists)?);
        Ok(Self { policy: Arc::clone(policy), config, lists, latest: Arc::default() })
    }
}

/// The lists of revoked certificates that a policy was loaded with.
fn lists_of(policy: &TlsPolicy) -> Lists {
    let crl = policy.client_cert.as_ref().and_then(|rule| rule.crl.as_ref());
    crl.map_or_else(|| Arc::from([]), |crl| Arc::clone(&crl.lists))
}

/// Every site with TLS, and its policy.
fn policies_of(table: &SiteTable) -> impl Iterator<Item = (&Arc<Site>, &Arc<TlsPolicy>)> {
    table.sites().iter().filter_map(|site| Some((site, &site.tls.as_ref()?.policy)))
}

/// `base` with one certificate chosen. It shares tickets and sessions with `base`.
fn with_certificate(base: &ServerConfig, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let mut config = base.clone();
    config.cert_resolver = Arc::new(Chosen(Some(key)));
    Arc::new(config)
}

/// The certificate of one handshake.
#[derive(Debug)]
struct Chosen(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Chosen {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

/// The crypto provider, with everything that it has by default. No provider is installed for the
/// process: each user names the one that it means.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What the handshake of a TLS-ALPN-01 validation runs on (RFC 8737 3).
///
/// # Errors
/// When rustls does not take its own versions.
pub(super) fn proof_config(key: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions_of(TlsProfile::Intermediate))?
        .with_no_client_auth();
    // Not by its own check of the pair: rustls refuses a critical extension that it does not know, and this one must be.
    let mut config = builder.with_cert_resolver(Arc::new(Chosen(Some(key))));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn build(policy: &TlsPolicy, lists: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
    let unusable = |error: rustls::Error| {
        TlsError::new("the TLS policy cannot be used", "report this with the output of `tidegate show`").because(error)
    };
    let provider = Arc::new(provider_of(policy.profile));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions_of(policy.profile))
        .map_err(unusable)?;
    let builder = match &policy.client_cert {
        Some(rule) => builder.with_client_cert_verifier(verifier(rule, lists, provider)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Chosen(None)));
    config.alpn_protocols = policy.alpn.iter().map(|protocol| alpn_id(*protocol).to_vec()).collect();
    config.ignore_client_order = true;
    // RFC 8446 8: early data can be replayed, and the requests behind this edge act on the world.
    config.max_early_data_size = 0;
    // Keys change every 6 h and are taken for 12 h: so long may a client certificate that has expired
    // live on in a resumed session. Another list of authorities is another policy, with other keys.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
    // Our choice: one connection is what HTTP/2 clients open, and each that resumes gets the next ticket (RFC 8446 C.4).
    config.send_tls13_tickets = 1;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Ok(config)
}

fn verifier(
    rule: &ClientCert,
    lists: &[Vec<u8>],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let fault = |error: Box<dyn std::error::Error + Send + Sync>| {
        TlsError::new("cannot accept clients by the authorities in", "put CA certificates in PEM form there")
            .in_file(&rule.ca_file)
            .because(error)
    };
    let mut roots = RootCertStore::empty();
    for der in rule.ca.iter() {
        roots.add(der.as_slice().into()).map_err(|error| fault(error.into()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if rule.required { builder } else { builder.allow_unauthenticated() };
    // Without lists nothing is asked. With them the whole chain is judged, and what no list speaks of is refused: an
    // authority whose list is missing would otherwise let its revoked clients in. A list that is old still holds.
    let builder = builder.with_crls(lists.iter().map(|der| CertificateRevocationListDer::from(der.clone())));
    builder.build().map_err(|error| match error {
        VerifierBuilderError::InvalidCrl(error) => {
            TlsError::new("cannot use the revocation lists", "put the lists of the authorities there in PEM form")
                .in_file(rule.crl.as_ref().map_or(Path::new(""), |crl| &crl.file))
                .because(rustls::Error::from(error))
        }
        error => fault(error.into()),
    })
}

/// The identifier of RFC 7301 6.
pub(super) fn alpn_id(protocol: Alpn) -> &'static [u8] {
    match protocol {
        Alpn::Http2 => b"h2",
        Alpn::Http11 => b"http/1.1",
    }
}

fn versions_of(profile: TlsProfile) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match profile {
        TlsProfile::Intermediate | TlsProfile::Nist80052r2 => &BOTH,
        TlsProfile::Modern => &BOTH[..1],
    }
}

/// The versions of a profile in words.
pub(super) fn versions_text(profile: TlsProfile) -> &'static str {
    match profile {
        TlsProfile::Intermediate | TlsProfile::Nist80052r2 => "TLS 1.2 or 1.3",
        TlsProfile::Modern => "TLS 1.3",
    }
}

/// Suites and groups of a profile, best first.
fn provider_of(profile: TlsProfile) -> CryptoProvider {
    // AES-128 before AES-256, as Mozilla's guideline has it: no attack tells them apart, and the
    // shorter key is faster. All have forward secrecy and authenticated encryption.
    const GCM: [SupportedCipherSuite; 6] = [
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    const CHACHA: [SupportedCipherSuite; 3] = [
        suite::TLS13_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let base = aws_lc_rs::default_provider();
    match profile {
        TlsProfile::Intermediate | TlsProfile::Modern => CryptoProvider {
            cipher_suites: [GCM.as_slice(), &CHACHA].concat(),
            // The hybrid first: what is recorded today stays closed to a later quantum computer.
            kx_groups: vec![group::X25519MLKEM768, group::X25519, group::SECP256R1, group::SECP384R1],
            ..base
        },
        // NIST SP 800-52 Rev. 2, 3.3.1 and 3.4.2: AES-GCM and curves of FIPS 186 only.
        TlsProfile::Nist80052r2 => CryptoProvider {
            cipher_suites: GCM.to_vec(),
            kx_groups: vec![group::SECP256R1MLKEM768, group::SECP256R1, group::SECP384R1],
            ..base
        },
    }
}
