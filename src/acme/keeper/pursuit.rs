//! One attempt to get a certificate: from one CA after the other, by one kind of proof after the other.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::stages::Stages;
use super::{AWAY, Keeper};
use crate::acme::account;
use crate::acme::ca::Ca;
use crate::acme::check::{self, Finding};
use crate::acme::dns::Dns;
use crate::acme::dns::persist::Identity;
use crate::acme::fault::{AcmeFault, Blame, is_unknown_account};
use crate::acme::order::{self, Issued, Means, Wanted};
use crate::acme::store::Store;
use crate::addr::HostPattern;
use crate::site::acme::{AcmePolicy, Challenge, Directory};
use crate::site::{Site, SiteTable};
use crate::tls;

/// Each such attempt asks the CA although what this machine sees of the DNS and the network is against it.
const INSIST: u32 = 6;

impl Keeper {
    /// Orders, from one CA after the other.
    pub(super) async fn order(
        &mut self,
        table: &SiteTable,
        site: &Arc<Site>,
        store: &Store,
    ) -> Result<(Issued, Directory), AcmeFault> {
        let policy = &table.edge.acme;
        let is_urgent = self.is_urgent(&tls::patterns(site));
        match self.on_disk(store, Store::probe).await {
            Ok(()) => {}
            // A certificate that is only in memory is better than one that ends.
            Err(fault) if is_urgent && self.current(&tls::patterns(site)).is_some() => {
                tracing::warn!(event = "storage", site = %self.host, help = fault.help, "{fault}: the next certificate will be served, but not kept");
            }
            Err(fault) => return Err(fault),
        }
        let mut first: Option<AcmeFault> = None;
        for directory in &policy.directories {
            // The others are for emergencies: a certificate from elsewhere is a change that somebody may notice.
            if first.is_some() && !is_urgent {
                break;
            }
            let outcome = self.order_from(directory, policy, site, store).await;
            let mut fault = match outcome {
                Ok(issued) => return Ok((issued, directory.clone())),
                Err(fault) => fault,
            };
            // Elsewhere these would be no better, and a failed validation costs there too.
            let is_over = matches!(fault.blame, Blame::Validation | Blame::Storage);
            match &mut first {
                None => first = Some(fault),
                // The first that was really asked says when to try again.
                Some(first) if &*first.kind == AWAY => {
                    fault.text = format!("{}; {}: {}", first.text, directory.name, fault.text);
                    *first = fault;
                }
                Some(first) => first.text = format!("{}; {}: {}", first.text, directory.name, fault.text),
            }
            if is_over {
                break;
            }
        }
        Err(first.unwrap_or_else(|| {
            AcmeFault::new(Blame::Setup, "no-directory", "no directory is configured", "set `directory` in [acme]")
        }))
    }

    /// No certificate, or so little left of it that it matters where the next one comes from.
    fn is_urgent(&self, names: &[HostPattern]) -> bool {
        self.current(names).is_none_or(|current| {
            let facts = &current.facts;
            facts.not_after - OffsetDateTime::now_utc() < (facts.not_after - facts.not_before) / 6
        })
    }

    async fn order_from(
        &mut self,
        directory: &Directory,
        policy: &AcmePolicy,
        site: &Arc<Site>,
        store: &Store,
    ) -> Result<Issued, AcmeFault> {
        let shared = Arc::clone(&self.shared);
        if let Err(until) = shared.health.may_ask(&directory.url, OffsetDateTime::now_utc()) {
            let text = format!("the CA \"{}\" is still away", directory.name);
            return Err(AcmeFault { not_before: Some(until), ..AcmeFault::new(Blame::Ca, AWAY, text, "") });
        }
        let stages = Stages::new(store, &self.host, &self.ledger);
        let outcome = self.follow(directory, policy, site, store, &stages).await;
        stages.end().await;
        match &outcome {
            // A CA that looked for proofs, or refused us by name, is there.
            Ok(_) => shared.health.worked(&directory.url),
            Err(fault) if fault.blame == Blame::Ca => {
                shared.health.failed(&directory.url, fault.not_before, OffsetDateTime::now_utc());
            }
            Err(_) => shared.health.worked(&directory.url),
        }
        outcome
    }

    async fn follow(
        &mut self,
        directory: &Directory,
        policy: &AcmePolicy,
        site: &Arc<Site>,
        store: &Store,
        stages: &Stages,
    ) -> Result<Issued, AcmeFault> {
        stages.tell(format!("asking {}", directory.name));
        let names = tls::patterns(site);
        let ca = Ca::reach(directory).await?;
        let mut opened = account::open(&ca, policy, store).await?;
        let dns = Dns::new(policy);
        stages.tell("looking at the names".into());
        self.check_names(&ca, &dns, policy, &names, opened.identity(&ca)).await?;

        let mut challenges = self.challenges(policy);
        let means = Means { board: &self.shared.proofs, dns: &dns, stage: &|text| stages.tell(text) };
        let mut is_new_account = false;
        let outcome = loop {
            let wanted = Wanted {
                names: &names,
                policy,
                key: self.kept_key(site, store).await,
                replaces: self.replaced(directory, &names),
                challenges: challenges.clone(),
            };
            match order::place(&ca, &opened.account, &wanted, &means).await {
                // The CA has lost our account: its tests do that, and so does a new database.
                Err(fault) if is_unknown_account(&fault) && !is_new_account => {
                    tracing::warn!(
                        event = "account",
                        directory = &*directory.name,
                        "the CA does not know our account any more; a new one is made: {fault}"
                    );
                    account::forget(&ca, store).await?;
                    opened = account::open(&ca, policy, store).await?;
                    is_new_account = true;
                }
                // Another kind of proof at once, but only the first time: CAs allow few failures an hour.
                Err(fault)
                    if fault.is_validation()
                        && self.ledger.failures == 0
                        && challenges.len() > 1
                        && !is_dns_only(policy, &names) =>
                {
                    tracing::warn!(event = "certificate_proof", site = %self.host, "{fault}; trying {} next", challenges[1].as_str());
                    challenges.remove(0);
                }
                outcome => break outcome,
            }
        };
        if outcome.is_ok() {
            self.ledger.proof = challenges.first().map(|challenge| challenge.as_str().to_owned());
        }
        outcome
    }

    /// What can be known about the names before the CA is asked.
    async fn check_names(
        &mut self,
        ca: &Ca,
        dns: &Dns,
        policy: &AcmePolicy,
        names: &[HostPattern],
        account: Identity<'_>,
    ) -> Result<(), AcmeFault> {
        let found = check::look(
            dns.resolver(),
            policy,
            &ca.directory,
            names,
            &self.shared.proofs,
            &ca.meta.caa_identities,
            Some(account),
        )
        .await;
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
        let Some(first) = certain.first() else { return Ok(()) };
        let texts: Vec<String> =
            certain.iter().map(|finding| format!("\"{}\": {}", finding.name, finding.why)).collect();
        let text = format!("the CA was not asked, because it could not issue: {}", texts.join("; "));
        Err(AcmeFault::new(Blame::Names, first.code, text, first.help.clone()))
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

/// True when no name of the order is proved in any other way than by DNS.
fn is_dns_only(policy: &AcmePolicy, names: &[HostPattern]) -> bool {
    names.iter().all(|name| policy.dns_rule(name).is_some())
}
