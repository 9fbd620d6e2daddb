//! What follows from an attempt: a certificate in force, or a reason and the time of the next attempt.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::pursuit::Won;
use super::{AWAY, Keeper, LOOK, SHORTEST_PAUSE, find};
use crate::acme::event::{Event, timestamp};
use crate::acme::fault::{AcmeFault, Blame};
use crate::acme::store::{Store, Trouble};
use crate::acme::{order, plan};
use crate::addr::HostPattern;
use crate::site::acme::Pending;
use crate::site::{Site, SiteTable};
use crate::tls;
use crate::tls::certs::Certificate;

impl Keeper {
    /// Puts a certificate in force for the names of a site that it has, unless a reload has taken the site away.
    pub(super) fn put_in_force(&self, site: &Arc<Site>, certificate: &Arc<Certificate>) -> bool {
        if find(&self.shared.snapshot.keep().table, &self.host).is_none() {
            return false;
        }
        let names: Vec<HostPattern> =
            tls::patterns(site).into_iter().filter(|name| certificate.facts.covers(name)).collect();
        self.shared.certs.renew(&names, certificate)
    }

    /// A certificate was issued: puts it in force, keeps it, tells of it.
    pub(super) async fn issued(
        &mut self,
        table: &SiteTable,
        site: &Arc<Site>,
        store: &Store,
        won: Won,
    ) -> OffsetDateTime {
        let Won { issued, directory, left_out } = won;
        let certificate = Arc::clone(&issued.certificate);
        let old = self.current(&tls::patterns(site));
        self.put_in_force(site, &certificate);
        let began = self.ledger.last_attempt.unwrap_or_else(OffsetDateTime::now_utc);
        self.ledger.directory = Some(directory.url.to_string());
        (self.ledger.issued, self.ledger.suggestion) = (Some(OffsetDateTime::now_utc()), None);
        (self.ledger.failures, self.ledger.trouble, self.ledger.next_attempt) = (0, None, None);
        self.unsaved = Some(issued);
        // In this order: whoever sees the certificate finds beside it which CA it is from.
        self.keep_ledger(store).await;
        self.save_unsaved(store).await;
        let facts = &certificate.facts;
        let is_key_new = old.is_some_and(|old| old.key_fingerprint() != certificate.key_fingerprint());
        let seconds = (OffsetDateTime::now_utc() - began).as_seconds_f64();
        tracing::info!(
            event = "certificate_issued",
            site = %self.host,
            names = facts.names.join(", "),
            directory = &*directory.name,
            not_after = timestamp(facts.not_after),
            sha256 = facts.fingerprint_text(),
            seconds = (seconds * 10.0).round() / 10.0,
            "a certificate for {} was issued by {}: valid until {}", facts.names.join(", "), directory.name, timestamp(facts.not_after)
        );
        let event = Event::new("issued", &site.label).of(&certificate).with("directory", &*directory.name);
        self.shared.events.tell(event.with("key_changed", is_key_new));
        match left_out {
            None => OffsetDateTime::now_utc(),
            // The rest is served; what was left out is looked at again.
            Some(fault) => self.failed(table, site, store, fault).await,
        }
    }

    /// An attempt failed: plans the next one, tells why.
    pub(super) async fn failed(
        &mut self,
        table: &SiteTable,
        site: &Arc<Site>,
        store: &Store,
        fault: AcmeFault,
    ) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        if &*fault.kind == order::STOPPED {
            // Nobody's failure: the next process begins where this one was.
            self.ledger.next_attempt = None;
            self.keep_ledger(store).await;
            return now + LOOK;
        }
        // Nothing was tried while another name looks for the CA.
        let is_away = &*fault.kind == AWAY;
        if !is_away {
            self.ledger.failures = self.ledger.failures.saturating_add(1);
        }
        let mut pause = plan::pause(fault.blame, self.ledger.failures, plan::chance());
        let current = self.current(&tls::patterns(site));
        if let Some(current) = current.as_ref().filter(|current| current.facts.not_after > now) {
            // A short life has no room for long pauses.
            let quarter = Duration::try_from((current.facts.not_after - now) / 4).unwrap_or_default();
            pause = pause.min(quarter.max(SHORTEST_PAUSE));
        }
        let next = match fault.not_before {
            Some(time) if is_away => time,
            Some(time) => time.max(now + pause),
            None => now + pause,
        };
        self.ledger.next_attempt = Some(next);
        self.ledger.trouble = Some(Trouble {
            kind: fault.kind.to_string(),
            text: fault.text.clone(),
            help: fault.help.clone(),
            is_of_ca: fault.blame == Blame::Ca,
        });
        self.keep_ledger(store).await;
        if is_away {
            tracing::debug!(event = "certificate_waits", site = %self.host, "{fault}");
            return next;
        }
        let held = match &current {
            Some(current) if current.facts.not_after > now => {
                format!("the certificate in force is valid until {}", timestamp(current.facts.not_after))
            }
            Some(current) => format!("the certificate in force expired on {}", timestamp(current.facts.not_after)),
            None => match self.shared.certs.acceptable(&self.host, now) {
                Some(other) => format!(
                    "another certificate that clients accept is served until {}",
                    timestamp(other.facts.not_after)
                ),
                None if table.edge.acme.pending == Pending::Refuse => "handshakes are refused until then".to_owned(),
                None => "a certificate of the local authority stands in".to_owned(),
            },
        };
        let directory = table.edge.acme.directories.first().map_or("", |directory| &*directory.name);
        let seconds = (next - now).whole_seconds().max(0);
        // A CA that is away for a minute is no matter for a person while there is time.
        let is_early = current.as_ref().is_some_and(|current| {
            let facts = &current.facts;
            now < plan::alert(facts.not_before, facts.not_after, table.edge.acme.alert_before)
        });
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    event = "certificate_failed",
                    site = %self.host,
                    directory,
                    kind = &*fault.kind,
                    attempt = self.ledger.failures,
                    next = timestamp(next),
                    seconds,
                    help = fault.help,
                    "no certificate for {}: {fault}; {held}; next attempt {} (in {seconds} s)", self.host, timestamp(next)
                )
            };
        }
        if is_early && fault.blame == Blame::Ca {
            say!(info)
        } else {
            say!(warn)
        }
        let event = Event::new("failed", &site.label).because(&fault).with("attempt", self.ledger.failures);
        let event = event.with("directory", directory).with("next_attempt", timestamp(next));
        self.shared.events.tell(match &current {
            Some(current) => event.of(current),
            None => event,
        });
        next
    }

    /// Keeps a certificate that the disk has not taken yet.
    pub(super) async fn save_unsaved(&mut self, store: &Store) {
        let Some(issued) = &self.unsaved else { return };
        let pem = issued.pem.clone();
        match self.on_disk(store, move |store, host| store.keep_certificate(host, &pem)).await {
            Ok(()) => {
                self.unsaved = None;
                // The disk may have refused that too.
                self.keep_ledger(store).await;
            }
            Err(fault) => tracing::error!(event = "storage", site = %self.host, help = fault.help,
                "the new certificate of {} is served, but not kept: {fault}; tried again every minute", self.host),
        }
    }
}
