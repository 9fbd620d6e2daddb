//! One order (RFC 8555 7.1.3), from the first request to a certificate that has been looked at.
//!
//! Proofs are up only while the order needs them, however it ends. What the CA issues is judged before
//! it is handed on: it must be for our key and our names, valid now, and have its issuers with it.

mod proof;

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, AuthorizationStatus, CertificateIdentifier, Identifier, NewOrder, Order, OrderStatus};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use super::ca::Ca;
use super::dns::Dns;
use super::fault::{AcmeFault, Blame, full_text, is_bad_nonce};
use crate::addr::HostPattern;
use crate::drain::{Drain, Phase, Work};
use crate::site::acme::{AcmePolicy, Challenge, Profile};
use crate::tls::certs::Certificate;
use crate::tls::kept;
use crate::tls::proofs::ProofBoard;
use proof::{Chosen, Up, kind_text, kinds, prove};

/// What is ordered.
pub struct Wanted<'a> {
    /// For these names; the first one is the site's.
    pub names: &'a [HostPattern],
    /// By these rules.
    pub policy: &'a AcmePolicy,
    /// Whether the CA is the one that is meant first: a profile is named for that one.
    pub is_first: bool,
    /// With this key (PEM), when it is to stay.
    pub key: Option<String>,
    /// In place of this certificate of the same CA (RFC 9773 5).
    pub replaces: Option<CertificateDer<'static>>,
    /// Proofs that need no DNS, best first.
    pub challenges: Vec<Challenge>,
}

/// What an order brought.
#[derive(Debug)]
pub struct Issued {
    /// Key and chain, as they are kept.
    pub pem: String,
    /// The same, ready for handshakes.
    pub certificate: Arc<Certificate>,
}

/// Where proofs go, and who is told how far the order is.
pub struct Means<'a> {
    /// HTTP-01 and TLS-ALPN-01.
    pub board: &'a Arc<ProofBoard>,
    /// DNS-01.
    pub dns: &'a Dns,
    /// Told of each step.
    pub stage: &'a (dyn Fn(String) + Sync),
    /// The end of the process: an order is given up then, and what it put up is taken down.
    pub drain: &'a Drain,
}

/// The kind of a fault that is none: the process stops.
pub const STOPPED: &str = "stopped";
/// How long a CA may take to look for proofs. Our choice: CAs look from several places, some of which are slow, and give up
/// after about a minute themselves.
const PROVING: Duration = Duration::from_secs(180);
/// How long a CA may take to issue. Our choice: longer than a bad minute; whoever gives up here orders once more.
const ISSUING: Duration = Duration::from_secs(600);
/// To take proofs down: a DNS provider that hangs must not hold up the next order.
const TIDYING: Duration = Duration::from_secs(90);
/// A whole order, whatever happens: DNS may take some minutes before it.
const LONGEST: Duration = Duration::from_secs(1200);

/// Places an order and follows it to its end.
///
/// # Errors
/// When there is no certificate, or one that cannot be used.
pub async fn place(ca: &Ca, account: &Account, wanted: &Wanted<'_>, means: &Means<'_>) -> Result<Issued, AcmeFault> {
    let _counted = means.drain.guard(Work::Order);
    let mut up = Up::default();
    let outcome = tokio::select! {
        outcome = timeout(LONGEST, follow(ca, account, wanted, means, &mut up)) => outcome.unwrap_or_else(|_| {
            Err(AcmeFault::new(Blame::Ca, "timeout", "the order was given up after 20 minutes", ""))
        }),
        () = means.drain.reached(Phase::Draining) => {
            Err(AcmeFault::new(Blame::Setup, STOPPED, "tidegate is stopping", ""))
        }
    };
    if timeout(TIDYING, up.take_down(means.dns)).await.is_err() {
        tracing::warn!(event = "dns", "the records of an order were not all taken down in time: some stay in the zone");
    }
    outcome
}

async fn follow<'a>(
    ca: &Ca,
    account: &Account,
    wanted: &Wanted<'a>,
    means: &Means<'_>,
    up: &mut Up<'a>,
) -> Result<Issued, AcmeFault> {
    (means.stage)(format!("ordering from {}", ca.directory.name));
    let identifiers: Vec<Identifier> = wanted.names.iter().map(identifier).collect();
    // Nothing was proved yet: a refusal here is about the account.
    let mut order = begin(ca, account, wanted, &identifiers).await.map_err(|fault| match fault.blame {
        Blame::Validation => AcmeFault { blame: Blame::Setup, help: String::new(), ..fault },
        Blame::Ca | Blame::Limit | Blame::Certificate | Blame::Names | Blame::Setup | Blame::Storage => fault,
    })?;
    if order.state().authorizations.len() > wanted.names.len() {
        let text = "the CA wants more to be proved than was ordered";
        return Err(AcmeFault::new(Blame::Ca, "malformed-answer", text, ""));
    }
    fetch_authorizations(ca, &mut order).await?;
    let chosen = prove(ca, &mut order, wanted, means, up).await?;
    if !chosen.is_empty() {
        (means.stage)(format!("the CA looks for the proof ({})", kinds(&chosen)));
    }
    tell_ready(ca, &mut order, &chosen).await?;
    wait_until_ready(ca, &mut order, wanted.names, &chosen).await?;
    (means.stage)("the CA issues the certificate".into());
    let key = match &wanted.key {
        Some(pem) => KeyPair::from_pem(pem),
        // P-256: every client takes it, and a handshake with it costs a fraction of one with RSA.
        None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    };
    let key = key.map_err(|error| ours("the key of the certificate", &error))?;
    let csr = request(&key, wanted.names).map_err(|error| ours("the certificate request", &error))?;
    again!(order.finalize_csr(&csr)).map_err(|error| ca.fault(&error))?;
    let chain = fetch_certificate(ca, &mut order).await?;
    judge(ca, key.serialize_pem() + &chain, wanted.names, OffsetDateTime::now_utc())
}

/// What an order asks for.
struct Wish<'a> {
    identifiers: &'a [Identifier],
    profile: Option<&'a str>,
}

impl Wish<'_> {
    async fn send(
        &self,
        account: &Account,
        replaces: Option<CertificateIdentifier<'static>>,
    ) -> Result<Order, instant_acme::Error> {
        let mut order = NewOrder::new(self.identifiers);
        if let Some(profile) = self.profile {
            order = order.profile(profile);
        }
        if let Some(replaces) = replaces {
            order = order.replaces(replaces);
        }
        again!(account.new_order(&order))
    }
}

/// Sends the order. A CA that does not want to hear of the certificate that it replaces is asked without it: that field
/// only helps the CA.
async fn begin(
    ca: &Ca,
    account: &Account,
    wanted: &Wanted<'_>,
    identifiers: &[Identifier],
) -> Result<Order, AcmeFault> {
    let profile = profile(ca, wanted)?;
    let wish = Wish { identifiers, profile: profile.as_deref() };
    let replaces = wanted.replaces.as_ref().filter(|_| ca.has_renewal_info());
    let replaces =
        replaces.and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()).map(CertificateIdentifier::into_owned);
    let has_replaces = replaces.is_some();
    match wish.send(account, replaces).await {
        Ok(order) => Ok(order),
        Err(error) => {
            let fault = ca.fault(&error);
            // A refusal of the field itself, or an answer that does not repeat it; limits and outages would only be met again.
            let is_about_field = !matches!(fault.blame, Blame::Ca | Blame::Limit) || &*fault.kind == "malformed-answer";
            if !has_replaces || !is_about_field {
                return Err(fault);
            }
            tracing::debug!(event = "order", "the CA does not take `replaces`: {fault}");
            wish.send(account, None).await.map_err(|error| ca.fault(&error))
        }
    }
}

/// The profile of the order, if one is to be named.
fn profile(ca: &Ca, wanted: &Wanted<'_>) -> Result<Option<String>, AcmeFault> {
    let has = |name: &str| ca.meta.profiles.contains_key(name);
    match &wanted.policy.profile {
        Profile::Default => Ok(None),
        // Public CAs issue for addresses with this profile only (CA/Browser Forum ballot SC-081 and their own rules).
        Profile::Auto => {
            let has_address = wanted.names.iter().any(|name| name.name().ip().is_some());
            Ok((has_address && has("shortlived")).then(|| "shortlived".to_owned()))
        }
        Profile::Named(name) if has(name) => Ok(Some(name.to_string())),
        // A name of the first CA: those that stand in have their own.
        Profile::Named(_) if !wanted.is_first => Ok(None),
        Profile::Named(name) => {
            let known: Vec<&str> = ca.meta.profiles.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "it has none".to_owned() } else { format!("it has: {}", known.join(", ")) };
            let text = format!("\"{}\" has no profile \"{name}\" ({known})", ca.directory.name);
            Err(AcmeFault::new(Blame::Setup, "invalidProfile", text, "correct `profile` in [acme]"))
        }
    }
}

async fn fetch_authorizations(ca: &Ca, order: &mut Order) -> Result<(), AcmeFault> {
    let mut tries = 0;
    loop {
        let mut failed = None;
        let mut all = order.authorizations();
        while let Some(next) = all.next().await {
            if let Err(error) = next {
                failed = Some(error);
                break;
            }
        }
        match failed {
            None => return Ok(()),
            Some(error) if is_bad_nonce(&error) && tries < 10 => tries += 1,
            Some(error) => return Err(ca.fault(&error)),
        }
    }
}

/// Tells the CA to look.
async fn tell_ready(ca: &Ca, order: &mut Order, chosen: &[Chosen]) -> Result<(), AcmeFault> {
    let mut rest = chosen.iter();
    let mut all = order.authorizations();
    while let Some(next) = all.next().await {
        let mut handle = next.map_err(|error| ca.fault(&error))?;
        if handle.status == AuthorizationStatus::Valid {
            continue;
        }
        let Some(one) = rest.next() else { break };
        let Some(mut challenge) = handle.challenge(one.kind.clone()) else { continue };
        // A challenge that has failed already says so here; the reasons are gathered below.
        if let Err(error) = again!(challenge.set_ready()) {
            let mut fault = ca.fault(&error);
            if fault.blame == Blame::Validation {
                fault.text = format!("\"{}\" by {}: {}", one.name, one.word, fault.text);
            }
            return Err(fault);
        }
    }
    Ok(())
}

async fn wait_until_ready(
    ca: &Ca,
    order: &mut Order,
    names: &[HostPattern],
    chosen: &[Chosen],
) -> Result<(), AcmeFault> {
    match poll(ca, order, PROVING, |status| status != OrderStatus::Pending).await? {
        OrderStatus::Invalid => Err(reasons(ca, order, names, chosen).await),
        OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing | OrderStatus::Pending => Ok(()),
    }
}

async fn fetch_certificate(ca: &Ca, order: &mut Order) -> Result<String, AcmeFault> {
    let done = |status| matches!(status, OrderStatus::Valid | OrderStatus::Invalid);
    if poll(ca, order, ISSUING, done).await? == OrderStatus::Invalid {
        return Err(AcmeFault::new(Blame::Ca, "order-invalid", "the CA gave the order up without a reason", ""));
    }
    let chain = again!(order.certificate()).map_err(|error| ca.fault(&error))?;
    chain.ok_or_else(|| {
        AcmeFault::new(Blame::Ca, "malformed-answer", "the order is valid, but there is no certificate", "")
    })
}

/// Asks for the state of the order until it is as wanted, at the pace that the CA asks for.
async fn poll(
    ca: &Ca,
    order: &mut Order,
    patience: Duration,
    is_wanted: impl Fn(OrderStatus) -> bool,
) -> Result<OrderStatus, AcmeFault> {
    let until = Instant::now() + patience;
    let mut pause = Duration::from_millis(250);
    loop {
        let state = order.state();
        let (status, error) = (state.status, state.error.clone());
        if let Some(problem) = error.filter(|_| status != OrderStatus::Invalid) {
            return Err(AcmeFault::of_problem(&problem, None));
        }
        if is_wanted(status) || status == OrderStatus::Invalid {
            return Ok(status);
        }
        if Instant::now() > until {
            let text = format!("the CA has not come to an end within {} s", patience.as_secs());
            return Err(AcmeFault::new(Blame::Ca, "timeout", text, ""));
        }
        let asked = ca.wanted_pause().unwrap_or_default().min(Duration::from_secs(30));
        sleep(pause.max(asked)).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(5));
        again!(async { order.refresh().await.map(drop) }).map_err(|error| ca.fault(&error))?;
    }
}

/// Why the CA did not take the proofs: for each name what it saw.
async fn reasons(ca: &Ca, order: &mut Order, names: &[HostPattern], chosen: &[Chosen]) -> AcmeFault {
    let of_order = order.state().error.clone();
    let mut found: Option<AcmeFault> = None;
    let mut texts = Vec::new();
    let mut all = order.authorizations();
    while let Some(next) = all.next().await {
        let Ok(mut handle) = next else { continue };
        if again!(async { handle.refresh().await.map(drop) }).is_err() {
            continue;
        }
        let name = handle.identifier().to_string();
        for challenge in &handle.challenges {
            let Some(problem) = &challenge.error else { continue };
            texts.push(format!("\"{name}\" by {}: {}", kind_text(&challenge.r#type), full_text(problem)));
            found.get_or_insert_with(|| AcmeFault::of_problem(problem, None));
        }
    }
    if let Some(problem) = of_order {
        let fault = AcmeFault::of_problem(&problem, None);
        texts.push(fault.text.clone());
        found.get_or_insert(fault);
    }
    let mut fault = found.unwrap_or_else(|| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        texts.push(format!("no reason was given for {} ({})", names.join(", "), kinds(chosen)));
        AcmeFault::new(Blame::Validation, "order-invalid", "", "")
    });
    // Whatever its type, it is about the proofs: another kind of proof may do.
    fault.blame = Blame::Validation;
    fault.text = format!("the CA did not find the proof: {}", texts.join("; "));
    fault.not_before = ca
        .wanted_pause()
        .map(|pause| OffsetDateTime::now_utc() + pause)
        .filter(|_| ca.wanted_pause().is_some_and(|pause| !pause.is_zero()));
    fault
}

/// The request for a certificate: names and key; the CA writes everything else.
fn request(key: &KeyPair, names: &[HostPattern]) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.iter().map(alternative_name).collect::<Result<_, _>>()?;
    Ok(params.serialize_request(key)?.der().to_vec())
}

fn alternative_name(name: &HostPattern) -> Result<SanType, rcgen::Error> {
    Ok(match name.name().ip() {
        Some(ip) => SanType::IpAddress(ip),
        None => SanType::DnsName(name.to_string().as_str().try_into()?),
    })
}

fn identifier(name: &HostPattern) -> Identifier {
    match name.name().ip() {
        Some(ip) => Identifier::Ip(ip),
        None => Identifier::Dns(name.to_string()),
    }
}

/// Looks at what the CA issued before anything old is replaced by it.
fn judge(ca: &Ca, pem: String, names: &[HostPattern], now: OffsetDateTime) -> Result<Issued, AcmeFault> {
    let bad = |why: String| {
        let text = format!("the certificate that the CA issued cannot be used: {why}");
        AcmeFault::new(Blame::Certificate, "bad-certificate", text, "report this to the CA if it stays")
    };
    let certificate = kept::parse(pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
    let facts = &certificate.facts;
    if let Some(missing) = names.iter().find(|name| !facts.covers(name)) {
        return Err(bad(format!("it is not for \"{missing}\" but for: {}", facts.names.join(", "))));
    }
    // One that begins later by our clock is good for everybody whose clock is right; that is told when it is served.
    if facts.not_after <= now {
        return Err(bad(format!("it ended on {}: check the clock of this machine", facts.not_after)));
    }
    if !kept::is_whole_chain(&certificate) && !is_issued_by_root(ca, &certificate) {
        return Err(bad("its issuer is not with it, and many clients would refuse it".into()));
    }
    Ok(Issued { pem, certificate })
}

/// True when the leaf is issued by a root itself: a small private CA has no intermediate to send. By name only; clients
/// check the signature.
fn is_issued_by_root(ca: &Ca, certificate: &Certificate) -> bool {
    let [leaf] = &certificate.key.cert[..] else { return false };
    let Ok((_, leaf)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    let roots = ca.directory.root.iter().flat_map(|root| root.certificates.iter());
    roots
        .filter_map(|root| x509_parser::parse_x509_certificate(root).ok())
        .any(|(_, root)| root.subject().as_raw() == leaf.issuer().as_raw())
}

fn ours(what: &str, error: &(dyn std::error::Error + 'static)) -> AcmeFault {
    AcmeFault::new(Blame::Setup, "internal", format!("{what} could not be made: {error}"), "check the site's names")
}
