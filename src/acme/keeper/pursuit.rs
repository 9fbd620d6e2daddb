//! One attempt to get a certificate: from one CA after the other, by one kind of proof after the other.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::stages::Stages;
use super::{AWAY, Keeper};
use crate::acme::account;
use crate::acme::ca::Meta;
use crate::acme::check::{self, Finding};
use crate::acme::dns::Dns;
use crate::acme::dns::persist::Identity;
use crate::acme::fault::{AcmeFault, Blame, is_unknown_account};
use crate::acme::order::{self, Issued, Means, Wanted};
use crate::acme::store::Store;
use crate::addr::HostPattern;
use crate::site::acme::{AcmePolicy, Challenge, Directory, DnsProvider};
use crate::site::{Site, SiteTable};
use crate::tls;

/// Each such attempt asks the CA although what this machine sees of the DNS and the network is against it.
const INSIST: u32 = 6;

/// What an attempt brought.
pub(super) struct Won {
    /// The certificate.
    pub(super) issued: Issued,
    /// Who issued it.
    pub(super) directory: Directory,
    /// Why some names of the site are not in it.
    pub(super) left_out: Option<AcmeFault>,
}

/// One attempt at one CA.
struct Pursuit<'a> {
    directory: &'a Directory,
    policy: &'a AcmePolicy,
    site: &'a Arc<Site>,
    store: &'a Store,
    /// Whether there is no certificate, or little left of it.
    is_urgent: bool,
    /// Whether somebody asked for it: then nobody waits for a CA to come back.
    is_asked: bool,
}

impl Keeper {
    /// Orders, from one CA after the other.
    pub(super) async fn order(
        &mut self,
        table: &SiteTable,
        site: &Arc<Site>,
        store: &Store,
        is_asked: bool,
    ) -> Result<Won, AcmeFault> {
        let policy = &table.edge.acme;
        let is_urgent = self.is_urgent(site);
        match self.on_disk(store, Store::probe).await {
            Ok(()) => {}
            // A certificate that is only in memory is better than one that ends.
            Err(fault) if is_urgent && self.current(&tls::patterns(site)).is_some() => {
                tracing::warn!(event = "storage", site = %self.host, help = fault.help, "{fault}: the next certificate will be served, but not kept");
            }
            Err(fault) => return Err(fault),
        }
        let mut all: Option<AcmeFault> = None;
        for directory in &policy.directories {
            // The others are for emergencies: a certificate from elsewhere is a change that somebody may notice.
            if all.is_some() && !is_urgent {
                break;
            }
            let pursuit = Pursuit { directory, policy, site, store, is_urgent, is_asked };
            let fault = match self.order_from(&pursuit).await {
                Ok((issued, left_out)) => return Ok(Won { issued, directory: directory.clone(), left_out }),
                Err(fault) => AcmeFault { text: format!("{}: {}", directory.name, fault.text), ..fault },
            };
            // Elsewhere these would be no better, and a failed validation costs there too.
            let is_over = matches!(fault.blame, Blame::Validation | Blame::Storage) || &*fault.kind == order::STOPPED;
            all = Some(match all {
                None => fault,
                Some(first) => together(first, fault),
            });
            if is_over {
                break;
            }
        }
        Err(all.unwrap_or_else(|| {
            AcmeFault::new(Blame::Setup, "no-directory", "no directory is configured", "set `directory` in [acme]")
        }))
    }

    /// True when no name of the site has a certificate that clients accept, or so little is left of it that it matters
    /// where the next one comes from.
    fn is_urgent(&self, site: &Site) -> bool {
        let now = OffsetDateTime::now_utc();
        let names = tls::patterns(site);
        let accepted = names.iter().filter_map(|name| self.shared.certs.acceptable(name, now));
        let most = accepted.max_by_key(|one| one.facts.not_after);
        most.is_none_or(|one| one.facts.not_after - now < (one.facts.not_after - one.facts.not_before) / 6)
    }

    async fn order_from(&mut self, pursuit: &Pursuit<'_>) -> Result<(Issued, Option<AcmeFault>), AcmeFault> {
        let shared = Arc::clone(&self.shared);
        let url = &pursuit.directory.url;
        let stages = Stages::new(pursuit.store, &self.host, &self.ledger);
        let outcome = self.follow(pursuit, &stages).await;
        stages.end().await;
        match &outcome {
            Ok(_) => shared.health.worked(url),
            // Whoever says no in the protocol is there. What we found out by ourselves says nothing of the CA.
            Err(fault) if fault.is_said => shared.health.worked(url),
            Err(fault) if fault.blame == Blame::Ca && &*fault.kind != AWAY => {
                shared.health.failed(url, fault.not_before, OffsetDateTime::now_utc());
            }
            Err(_) => {}
        }
        outcome
    }

    async fn follow(
        &mut self,
        pursuit: &Pursuit<'_>,
        stages: &Stages,
    ) -> Result<(Issued, Option<AcmeFault>), AcmeFault> {
        let Pursuit { directory, policy, site, store, .. } = *pursuit;
        let dns = Dns::new(policy);
        let mut names = tls::patterns(site);
        let mut left_out = None;
        // What is known of the CA is enough to look at the names: one that cannot work does not even ask for the directory.
        let known = self.shared.health.meta(directory);
        if let Some(meta) = &known {
            stages.tell("looking at the names".into());
            left_out = self.check_names(pursuit, &dns, meta, None, &mut names).await?;
        }
        if !pursuit.is_asked
            && let Err(until) = self.shared.health.may_ask(&directory.url, OffsetDateTime::now_utc())
        {
            let text = "the CA is still away, and looked for by another order";
            return Err(AcmeFault { not_before: Some(until), ..AcmeFault::new(Blame::Ca, AWAY, text, "") });
        }
        stages.tell(format!("asking {}", directory.name));
        let ca = self.shared.health.reach(directory).await?;
        let mut opened = account::open(&ca, policy, store).await?;
        if known.is_none() || has_account_records(policy, &names) {
            stages.tell("looking at the names".into());
            let found = self.check_names(pursuit, &dns, &ca.meta, Some(opened.identity(&ca)), &mut names).await?;
            left_out = left_out.or(found);
        }

        let mut challenges = self.challenges(policy);
        let drain = self.shared.drain.clone();
        let means = Means { board: &self.shared.proofs, dns: &dns, stage: &|text| stages.tell(text), drain: &drain };
        let mut is_new_account = false;
        let outcome = loop {
            let wanted = Wanted {
                names: &names,
                policy,
                is_first: policy.directories.first() == Some(directory),
                key: self.kept_key(site, store).await,
                replaces: self.replaced(directory, &names),
                challenges: challenges.clone(),
            };
            let fault = match order::place(&ca, &opened.account, &wanted, &means).await {
                Ok(issued) => break Ok(issued),
                Err(fault) => fault,
            };
            // The CA has lost our account, or we its key: a new one is made, once.
            let may_be_account = fault.is_said && fault.blame == Blame::Setup && !is_new_account;
            if may_be_account && (is_unknown_account(&fault) || account::is_lost(&ca, store).await) {
                tracing::warn!(
                    event = "account",
                    directory = &*directory.name,
                    "the CA does not take our account any more; a new one is made: {fault}"
                );
                account::forget(&ca, store).await?;
                opened = account::open(&ca, policy, store).await?;
                is_new_account = true;
                continue;
            }
            // Another kind of proof at once, but only the first time: CAs allow few failures an hour.
            let may_differ = self.ledger.failures == 0 && challenges.len() > 1 && !is_dns_only(policy, &names);
            if fault.is_validation() && may_differ {
                let next = challenges[1].as_str();
                tracing::warn!(event = "certificate_proof", site = %self.host, "{fault}; trying {next} next");
                challenges.remove(0);
                continue;
            }
            break Err(fault);
        };
        if outcome.is_ok() {
            self.ledger.proof = challenges.first().map(|challenge| challenge.as_str().to_owned());
        }
        outcome.map(|issued| (issued, left_out))
    }

    /// What can be known about the names before the CA is asked. Where it is urgent, the names that cannot work are left
    /// out, and the reason is returned: the others shall not end with them.
    async fn check_names(
        &mut self,
        pursuit: &Pursuit<'_>,
        dns: &Dns,
        meta: &Meta,
        account: Option<Identity<'_>>,
        names: &mut Vec<HostPattern>,
    ) -> Result<Option<AcmeFault>, AcmeFault> {
        let Pursuit { directory, policy, .. } = *pursuit;
        let (proofs, issuers) = (&self.shared.proofs, &meta.caa_identities);
        let found = check::look(dns.resolver(), policy, directory, names, proofs, issuers, account).await;
        // What answers a machine inside may differ from what answers the world: the CA has the last word now and then.
        let insists = self.ledger.failures % INSIST == INSIST - 1;
        let holds = |finding: &Finding| finding.is_certain && !(insists && finding.is_world);
        let (certain, doubts): (Vec<_>, Vec<_>) = found.into_iter().partition(holds);
        let mut told = Vec::new();
        for doubt in doubts {
            let text = format!("{}: {}", doubt.name, doubt.why);
            if !self.name_doubts.contains(&text) {
                tracing::warn!(event = "certificate_doubt", site = %self.host, code = doubt.code, help = doubt.help, "{text}");
            }
            told.push(text);
        }
        self.name_doubts = told;
        let Some(first) = certain.first() else { return Ok(None) };
        let texts: Vec<String> =
            certain.iter().map(|finding| format!("\"{}\": {}", finding.name, finding.why)).collect();
        let rest: Vec<HostPattern> =
            names.iter().filter(|name| certain.iter().all(|finding| finding.name != **name)).cloned().collect();
        let fault = |text| AcmeFault::new(Blame::Names, first.code, text, first.help.clone());
        if pursuit.is_urgent && !rest.is_empty() {
            *names = rest;
            return Ok(Some(fault(format!("ordered without names that cannot work: {}", texts.join("; ")))));
        }
        Err(fault(format!("the CA was not asked, because it could not issue: {}", texts.join("; "))))
    }

    /// The kinds of proof, the one that worked last first; after failures the next one in turn.
    fn challenges(&self, policy: &AcmePolicy) -> Vec<Challenge> {
        let mut all = policy.challenges.clone();
        if let Some(at) = all.iter().position(|challenge| Some(challenge.as_str()) == self.ledger.proof.as_deref()) {
            all.rotate_left(at);
        }
        let turns = usize::try_from(self.ledger.failures).unwrap_or(0) % all.len().max(1);
        all.rotate_left(turns);
        all
    }

    /// The key that a renewal keeps, when the site wants that.
    async fn kept_key(&self, site: &Arc<Site>, store: &Store) -> Option<String> {
        if !site.tls.as_ref()?.reuse_key {
            return None;
        }
        self.on_disk(store, |store, host| Ok(store.key(host))).await.ok().flatten()
    }

    /// The certificate that an order replaces: only the CA that issued it knows it.
    fn replaced(&self, directory: &Directory, names: &[HostPattern]) -> Option<CertificateDer<'static>> {
        let current = self.current(names).filter(|_| self.ledger.directory.as_deref() == Some(&*directory.url))?;
        current.key.cert.first().cloned()
    }
}

/// Two failures of one attempt: the first that was really asked gives its word, and whichever may be asked earlier the time.
fn together(first: AcmeFault, next: AcmeFault) -> AcmeFault {
    let text = format!("{}; {}", first.text, next.text);
    let not_before = first.not_before.zip(next.not_before).map(|(one, other)| one.min(other));
    let base = if &*first.kind == AWAY { next } else { first };
    AcmeFault { text, not_before, ..base }
}

/// True when no name of the order is proved in any other way than by DNS.
fn is_dns_only(policy: &AcmePolicy, names: &[HostPattern]) -> bool {
    names.iter().all(|name| policy.dns_rule(name).is_some())
}

/// True when a record in the DNS names our account, so that it can only be judged once the account is open.
fn has_account_records(policy: &AcmePolicy, names: &[HostPattern]) -> bool {
    let is_persist =
        |name: &HostPattern| policy.dns_rule(name).is_some_and(|rule| rule.provider == DnsProvider::Persist);
    names.iter().any(is_persist)
}
