//! When the certificate of a site is renewed: by the CA's suggestion, or by its lifetime.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::Keeper;
use crate::acme::ca::{Ca, Suggestion};
use crate::acme::event::timestamp;
use crate::acme::fault::Blame;
use crate::acme::{Shared, plan};
use crate::site::acme::{AcmePolicy, Directory};
use crate::tls::certs::Certificate;

/// What the CA suggests for the certificate with this fingerprint.
pub(super) struct Suggested {
    fingerprint: [u8; 32],
    suggestion: Option<Suggestion>,
    renewal: Option<OffsetDateTime>,
    pub(super) ask_at: OffsetDateTime,
}

impl Keeper {
    /// When the certificate is renewed: as the CA suggests, or at two thirds of its lifetime.
    pub(super) async fn renewal(
        &mut self,
        policy: &AcmePolicy,
        current: &Arc<Certificate>,
        now: OffsetDateTime,
    ) -> OffsetDateTime {
        let facts = &current.facts;
        let is_same = self.suggestion.as_ref().is_some_and(|known| known.fingerprint == facts.fingerprint);
        if !is_same {
            self.suggestion =
                Some(Suggested { fingerprint: facts.fingerprint, suggestion: None, renewal: None, ask_at: now });
        }
        // Nobody is asked less often than daily: a later time is from before the clock was set.
        let is_due = |known: &Suggested| known.ask_at <= now || known.ask_at - now > time::Duration::DAY;
        if self.suggestion.as_ref().is_some_and(is_due) {
            self.ask_ca(policy, current, now).await;
        }
        // The share of a name is always the same, so that a restart does not move its renewal.
        let share = f64::from(facts.fingerprint[0]) / 255.0;
        let own = plan::renewal(facts.not_before, facts.not_after, share);
        self.suggestion.as_ref().and_then(|known| known.renewal).unwrap_or(own)
    }

    /// Asks the CA that issued a certificate when to renew it (RFC 9773). One that says nothing, or is away, changes
    /// nothing.
    async fn ask_ca(&mut self, policy: &AcmePolicy, current: &Arc<Certificate>, now: OffsetDateTime) {
        let facts = &current.facts;
        let issuer = self.ledger.directory.as_deref();
        let directory = policy.directories.iter().find(|directory| issuer.is_none_or(|url| *directory.url == *url));
        let (Some(directory), Some(leaf)) = (directory, current.key.cert.first()) else {
            if let Some(known) = &mut self.suggestion {
                known.ask_at = now + time::Duration::DAY;
            }
            return;
        };
        let answer = match self.shared.health.may_ask(&directory.url, now) {
            Err(_) => None,
            Ok(()) => match self.shared.slots.acquire().await {
                Err(_) => None,
                Ok(_slot) => ask(directory, leaf, &self.shared).await,
            },
        };
        let Some(known) = &mut self.suggestion else { return };
        match answer {
            Some(Some(suggestion)) => {
                known.ask_at = now + suggestion.again;
                let window = suggestion.window;
                if known.suggestion.as_ref().is_none_or(|old| old.window != window) {
                    let renewal = plan::suggested(window, facts.not_before, facts.not_after, plan::chance());
                    known.renewal = Some(renewal);
                    let page = suggestion.explanation.as_deref().map(|url| format!(" (see {url})")).unwrap_or_default();
                    tracing::info!(event = "certificate_planned", site = %self.host, renewal = timestamp(renewal),
                        "the CA suggests to renew the certificate of {} from {} to {}{page}: planned for {}",
                        self.host, timestamp(window.start), timestamp(window.end), timestamp(renewal));
                }
                known.suggestion = Some(suggestion);
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
        let ca = Ca::reach(directory).await?;
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
