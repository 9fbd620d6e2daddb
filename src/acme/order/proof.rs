//! The proofs of control that an order needs: chosen, put up, taken down.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use instant_acme::{AuthorizationStatus, ChallengeType, KeyAuthorization, Order};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::{Means, Wanted, alternative_name, ours};
use crate::acme::ca::Ca;
use crate::acme::dns::{Dns, DnsError, Record};
use crate::acme::fault::{AcmeFault, Blame};
use crate::addr::HostPattern;
use crate::site::acme::{Challenge, DnsProvider, DnsRule, reverse_name};
use crate::tls::proofs::Posted;
use crate::tls::provider;

/// What is up for the CA to see.
#[derive(Default)]
pub(super) struct Up<'a> {
    records: Vec<(&'a DnsRule, Record)>,
    posted: Vec<Posted>,
}

impl Up<'_> {
    /// Takes it all down. What stays in DNS is harmless and is only told.
    pub(super) async fn take_down(self, dns: &Dns) {
        drop(self.posted);
        for (rule, record) in self.records {
            if let Err(error) = dns.remove(rule, record).await {
                tracing::warn!(event = "dns", "{error}: a record of a past order may stay in the zone");
            }
        }
    }
}

/// One proof that the CA is told to look for.
pub(super) struct Chosen {
    pub(super) kind: ChallengeType,
    pub(super) word: &'static str,
    pub(super) name: HostPattern,
}

/// Puts up a proof for each name that the CA does not take our word for already.
pub(super) async fn prove<'a>(
    ca: &Ca,
    order: &mut Order,
    wanted: &Wanted<'a>,
    means: &Means<'_>,
    up: &mut Up<'a>,
) -> Result<Vec<Chosen>, AcmeFault> {
    let mut chosen = Vec::new();
    let mut for_dns = Vec::new();
    let mut all = order.authorizations();
    while let Some(next) = all.next().await {
        let mut handle = next.map_err(|error| ca.fault(&error))?;
        if handle.status == AuthorizationStatus::Valid {
            continue;
        }
        let shown = handle.identifier().to_string();
        let name = HostPattern::from_config(&shown).map_err(|error| {
            AcmeFault::new(Blame::Ca, "malformed-answer", format!("the CA speaks of \"{shown}\": {error}"), "")
        })?;
        if !wanted.names.contains(&name) {
            let text = format!("the CA wants \"{name}\" to be proved, which was not ordered");
            return Err(AcmeFault::new(Blame::Ca, "malformed-answer", text, ""));
        }
        let rule = wanted.policy.dns_rule(&name);
        let offered: Vec<ChallengeType> = handle.challenges.iter().map(|challenge| challenge.r#type.clone()).collect();
        let Some((kind, word)) = choose(&offered, rule, &wanted.challenges) else {
            return Err(no_common_challenge(&name, &offered, rule));
        };
        let Some(challenge) = handle.challenge(kind.clone()) else { continue };
        // RFC 8555 8.1: base64url. A token of anybody else's making ends in paths, records and logs.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if challenge.token.len() > 256 || !challenge.token.bytes().all(is_plain) {
            return Err(AcmeFault::new(Blame::Ca, "malformed-answer", "the token of a challenge is malformed", ""));
        }
        let authorization = challenge.key_authorization();
        let board = means.board;
        match (&kind, rule) {
            (ChallengeType::Http01, _) => {
                up.posted.push(board.post_http(
                    name.name().clone(),
                    &challenge.token,
                    authorization.as_str().to_owned(),
                ));
            }
            (ChallengeType::TlsAlpn01, _) => {
                let key =
                    proof_certificate(&name, &authorization).map_err(|error| ours("the proof for a name", &*error))?;
                let sni = name.name().ip().map_or_else(|| name.name().to_string(), reverse_name);
                up.posted.push(board.post_tls(&sni, key));
            }
            (ChallengeType::Dns01, Some(rule)) => for_dns.push((rule, name.clone(), authorization.dns_value())),
            // dns-persist-01: the record is there already.
            _ => {}
        }
        chosen.push(Chosen { kind, word, name });
    }
    put_into_dns(for_dns, means, up).await?;
    Ok(chosen)
}

/// Puts TXT records up, where each belongs, all of them first, then waits until each is seen.
async fn put_into_dns<'a>(
    values: Vec<(&'a DnsRule, HostPattern, String)>,
    means: &Means<'_>,
    up: &mut Up<'a>,
) -> Result<(), AcmeFault> {
    let fault = |error: DnsError| AcmeFault::new(Blame::Setup, "dns-provider", error.to_string(), error.help());
    for (rule, name, value) in values {
        let record = means.dns.locate(rule, name.name(), &value).await.map_err(fault)?;
        up.records.push((rule, record));
    }
    // All of them are known before the first is written: a provider that fails, or is given up, may have written it
    // all the same.
    for (rule, record) in &up.records {
        (means.stage)(format!("writing the DNS record {} ({})", record.text(), rule.provider.as_str()));
        means.dns.put(rule, record).await.map_err(fault)?;
    }
    if !up.records.is_empty() {
        (means.stage)("waiting until the DNS records are on all servers of the zone".into());
    }
    for (rule, record) in &up.records {
        means.dns.propagated(rule, record).await.map_err(fault)?;
    }
    Ok(())
}

/// The kind of proof: what the operator set up for the name, among what the CA offers.
fn choose(
    offered: &[ChallengeType],
    rule: Option<&DnsRule>,
    wanted: &[Challenge],
) -> Option<(ChallengeType, &'static str)> {
    let persist = ChallengeType::Unknown("dns-persist-01".into());
    let candidates: Vec<(ChallengeType, &'static str)> = match rule.map(|rule| &rule.provider) {
        Some(DnsProvider::Persist) => vec![(persist, "dns-persist-01")],
        Some(_) => vec![(ChallengeType::Dns01, "dns-01")],
        None => wanted
            .iter()
            .map(|challenge| match challenge {
                Challenge::Http01 => (ChallengeType::Http01, challenge.as_str()),
                Challenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, challenge.as_str()),
            })
            .collect(),
    };
    candidates.into_iter().find(|(kind, _)| offered.contains(kind))
}

fn no_common_challenge(name: &HostPattern, offered: &[ChallengeType], rule: Option<&DnsRule>) -> AcmeFault {
    let offered: Vec<String> = offered.iter().map(kind_text).collect();
    let text = format!("the CA offers no proof for \"{name}\" that is set up here (it offers: {})", offered.join(", "));
    let help = match rule {
        None => "add a `dns` entry for the zone in [acme], or more `challenges`",
        Some(_) => "choose another provider for the zone in [acme]",
    };
    AcmeFault::new(Blame::Setup, "no-common-challenge", text, help)
}

/// The name of a kind of proof.
pub(super) fn kind_text(kind: &ChallengeType) -> String {
    match kind {
        ChallengeType::Http01 => "http-01".into(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".into(),
        ChallengeType::Dns01 => "dns-01".into(),
        ChallengeType::Unknown(name) => name.clone(),
        other => format!("{other:?}"),
    }
}

/// The kinds that were chosen, each once.
pub(super) fn kinds(chosen: &[Chosen]) -> String {
    let mut words: Vec<&str> = chosen.iter().map(|one| one.word).collect();
    words.dedup();
    words.join(", ")
}

/// The certificate of a TLS-ALPN-01 proof (RFC 8737 3).
fn proof_certificate(
    name: &HostPattern,
    authorization: &KeyAuthorization,
) -> Result<Arc<CertifiedKey>, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![alternative_name(name)?];
    params.custom_extensions.push(CustomExtension::new_acme_identifier(authorization.digest().as_ref()));
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::DAY, now + time::Duration::DAY);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateDer::from(params.self_signed(&key)?);
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Arc::new(CertifiedKey::new(vec![certificate], provider().key_provider.load_private_key(secret)?)))
}
