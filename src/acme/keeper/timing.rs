//! When the certificate of a site is renewed: by the CA's suggestion, or by its lifetime.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::Keeper;
use crate::acme::ca::Suggestion;
use crate::acme::event::timestamp;
use crate::acme::fault::Blame;
use crate::acme::store::{KeptSuggestion, Store};
use crate::acme::{Shared, plan};
use crate::site::acme::{AcmePolicy, Directory};
use crate::tls::certs::Certificate;

impl Keeper {
    /// When the certificate is renewed: as the CA suggests, or at two thirds of its lifetime; but not right after it was
    /// issued, and one that a stand-in CA issued not later than the first one may be back.
    pub(super) async fn renewal(
        &mut self,
        policy: &AcmePolicy,
        current: &Arc<Certificate>,
        store: &Store,
        now: OffsetDateTime,
    ) -> OffsetDateTime {
        let facts = &current.facts;
        let fingerprint = facts.fingerprint_text();
        let is_same = self.ledger.suggestion.as_ref().is_some_and(|known| known.sha256 == fingerprint);
        if !is_same {
            self.ledger.suggestion =
                Some(KeptSuggestion { sha256: fingerprint, window: None, renewal: None, ask_at: now });
        }
        // Nobody is asked less often than daily: a later time is from before the clock was set.
        let is_due = |known: &KeptSuggestion| known.ask_at <= now || known.ask_at - now > time::Duration::DAY;
        if self.ledger.suggestion.as_ref().is_some_and(is_due) {
            self.ask_ca(policy, current, now).await;
            self.keep_plan(store).await;
        }
        // The share of a certificate is always the same, so that a restart does not move its renewal.
        let share = f64::from(facts.fingerprint[0]) / 255.0;
        let own = plan::renewal(facts.not_before, facts.not_after, share);
        let planned = self.ledger.suggestion.as_ref().and_then(|known| known.renewal).unwrap_or(own);
        let Some(issued) = self.ledger.issued.filter(|issued| *issued <= now) else { return planned };
        let is_from_first = policy
            .directories
            .first()
            .is_none_or(|first| self.ledger.directory.as_deref().is_none_or(|url| *first.url == *url));
        let planned = if is_from_first { planned } else { planned.min(issued + time::Duration::DAY) };
        planned.max(plan::earliest(issued, facts.not_after))
    }

    /// Asks the CA that issued a certificate when to renew it (RFC 9773). One that says nothing, or is away, changes
    /// nothing.
    async fn ask_ca(&mut self, policy: &AcmePolicy, current: &Arc<Certificate>, now: OffsetDateTime) {
        let facts = &current.facts;
        let issuer = self.ledger.directory.as_deref();
        let directory = policy.directories.iter().find(|directory| issuer.is_none_or(|url| *directory.url == *url));
        let answer = match (directory, current.key.cert.first()) {
            (Some(directory), Some(leaf)) if self.shared.health.may_ask(&directory.url, now).is_ok() => {
                match self.shared.slots.acquire().await {
                    Err(_) => None,
                    Ok(_slot) => ask(directory, leaf, &self.shared).await,
                }
            }
            _ => None,
        };
        let Some(known) = &mut self.ledger.suggestion else { return };
        match answer {
            Some(Some(suggestion)) => {
                known.ask_at = now + suggestion.again;
                let window = suggestion.window;
                if known.window != Some(window) {
                    let renewal = plan::suggested(window, facts.not_before, facts.not_after, plan::chance());
                    known.renewal = Some(renewal);
                    let page = suggestion.explanation.as_deref().map(|url| format!(" (see {url})")).unwrap_or_default();
                    tracing::info!(event = "certificate_planned", site = %self.host, renewal = timestamp(renewal),
                        "the CA suggests to renew the certificate of {} from {} to {}{page}: planned for {}",
                        self.host, timestamp(window.start), timestamp(window.end), timestamp(renewal));
                }
                known.window = Some(window);
            }
            // No opinion now; it may learn to have one.
            Some(None) => known.ask_at = now + time::Duration::DAY,
            // Not more often than a tenth of the lifetime, not less often than hourly.
            None => {
                let lifetime: time::Duration = facts.not_after - facts.not_before;
                known.ask_at = now + (lifetime / 10_i32).clamp(time::Duration::minutes(1), time::Duration::HOUR);
            }
        }
    }
}

/// One question about a renewal; `None` when there was no answer.
async fn ask(directory: &Directory, leaf: &CertificateDer<'_>, shared: &Shared) -> Option<Option<Suggestion>> {
    let asked = async {
        let ca = shared.health.reach(directory).await?;
        ca.suggestion(leaf).await
    };
    match asked.await {
        Ok(suggestion) => {
            shared.health.worked(&directory.url);
            Some(suggestion)
        }
        Err(fault) => {
            if fault.blame == Blame::Ca {
                shared.health.failed(&directory.url, fault.not_before, OffsetDateTime::now_utc());
            }
            tracing::debug!(event = "renewal_info", "{fault}");
            None
        }
    }
}
