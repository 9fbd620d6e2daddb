//! Keeps the certificate of one site: looks when it is due, orders, publishes, and plans the next time.
//!
//! What is in force stays in force whatever happens here. Two processes on one store have a keeper for the same site:
//! the lock decides which one orders, and the other serves what it finds.

mod outcome;
mod pursuit;
mod stages;
mod timing;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;

use super::event::{Event, timestamp};
use super::fault::AcmeFault;
use super::order::Issued;
use super::store::{Answer, Ledger, Request, Store, StoreError};
use super::{Shared, off_thread, plan};
use crate::addr::HostPattern;
use crate::site::acme::AcmePolicy;
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};
use crate::tls;
use crate::tls::certs::{Certificate, Standing};

/// The keeper of one site.
pub struct Keeper {
    shared: Arc<Shared>,
    host: HostPattern,
    touched: Arc<Notify>,
    /// What the last look was about: another policy or other names are a new beginning.
    subject: Option<(Arc<AcmePolicy>, Vec<HostPattern>)>,
    ledger: Ledger,
    /// A certificate that the disk did not take.
    unsaved: Option<Issued>,
    /// What was wrong with the files at the last look, so that it is told once.
    doubts: Vec<String>,
    /// What was doubtful about the names at the last attempt, so that it is told once.
    name_doubts: Vec<String>,
    /// Those who pin this fingerprint have been warned.
    pins_told: Option<[u8; 32]>,
}

/// What a look found.
enum Next {
    /// An attempt is due.
    Order(Due),
    /// Nothing before this time.
    Wait(OffsetDateTime),
}

/// An attempt that is due.
#[derive(Clone, Copy, Debug)]
struct Due {
    why: Why,
    request: Option<Request>,
}

/// Why it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Somebody insists.
    Asked,
    /// There is no certificate, or not for all names.
    Missing,
    /// The CA that issued it is not configured any more.
    Stranger,
    /// Its time has come.
    Time,
}

/// Look at least so often: clocks are set, machines sleep, network file systems tell nothing.
const LOOK: Duration = Duration::from_secs(60);
/// While another process orders: its certificate may be there any moment, and a file system may not tell.
const BUSY: Duration = Duration::from_secs(2);
/// Shorter than this no pause is, however little is left of a certificate.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);
/// Longer than any pause between attempts, and than any `Retry-After` that is believed.
const LONGEST_PAUSE: time::Duration = time::Duration::hours(25);
/// The kind of a fault that was not found out by asking.
const AWAY: &str = "away";
/// How long before a renewal those who pin are warned, at most; a tenth of the lifetime where that is shorter.
const PINS: time::Duration = time::Duration::days(7);
/// After a start an attempt that failed before is not put off for longer than this, unless the CA asked for it.
const FRESH_START: time::Duration = time::Duration::seconds(60);

impl Keeper {
    /// A keeper. `touched` tells that files of its site have changed.
    pub fn new(shared: Arc<Shared>, host: HostPattern, touched: Arc<Notify>) -> Self {
        Self {
            shared,
            host,
            touched,
            subject: None,
            ledger: Ledger::default(),
            unsaved: None,
            doubts: Vec::new(),
            name_doubts: Vec::new(),
            pins_told: None,
        }
    }

    /// Works until the site is gone, or gets its certificate from elsewhere.
    pub async fn keep(mut self) {
        let (mut reloaded, mut returns) = (self.shared.snapshot.changes(), self.shared.health.returns());
        loop {
            let generation = self.shared.snapshot.keep();
            let Some(site) = find(&generation.table, &self.host) else { return };
            let next = match self.look(&generation.table, &site).await {
                Next::Order(due) => self.attempt(&generation.table, &site, due).await,
                Next::Wait(until) => until,
            };
            let wait = Duration::try_from(next - OffsetDateTime::now_utc()).unwrap_or_default().min(LOOK);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.touched.notified() => {}
                Ok(()) = reloaded.changed() => {}
                Ok(()) = returns.changed() => self.forgive_ca(),
            }
        }
    }

    /// A CA is back: what failed because it was away may be tried now.
    fn forgive_ca(&mut self) {
        if self.ledger.trouble.as_ref().is_some_and(|trouble| trouble.is_of_ca) {
            self.ledger.next_attempt = None;
        }
    }

    /// Puts in force what is there, and says what is due.
    async fn look(&mut self, table: &SiteTable, site: &Arc<Site>) -> Next {
        let now = OffsetDateTime::now_utc();
        let store = Store::new(&table.edge.storage);
        self.save_unsaved(&store).await;
        let is_kept = self.publish_kept(table, site, now).await;
        self.begin_anew(table, site, &store).await;
        let names = tls::patterns(site);
        let request = self.on_disk(&store, |store, host| Ok(store.asked(host))).await.unwrap_or_default();
        let current = self.current(&names);
        let policy = &table.edge.acme;
        let due = |why| Due { why, request };
        if request.is_some_and(|request| request.force) {
            return Next::Order(due(Why::Asked));
        }
        // A time that no pause reaches is from before the clock was set: it says nothing.
        let is_ahead = |next: &OffsetDateTime| *next > now && *next - now <= LONGEST_PAUSE;
        let waits = self.ledger.next_attempt.filter(|next| request.is_none() && is_ahead(next));
        let order = |why| waits.map_or(Next::Order(due(why)), Next::Wait);
        // One that is neither on disk nor waiting for it was revoked, or is of another `storage`: a restart would lose it.
        let Some(current) = current.filter(|_| is_kept || self.unsaved.is_some()) else { return order(Why::Missing) };
        if !is_known(policy, &self.ledger) {
            return order(Why::Stranger);
        }
        let renewal = self.renewal(policy, &current, &store, now).await;
        if renewal <= now {
            return order(Why::Time);
        }
        self.plan_renewal(&store, renewal).await;
        if let Some(request) = request {
            // Not due, and nobody insists.
            let text = format!("nothing is due before {}; --force orders a new certificate now", timestamp(renewal));
            self.answer(&store, request, true, text, String::new()).await;
        }
        self.warn_of_pins(site, &current, renewal, now);
        let ask_at = self.ledger.suggestion.as_ref().map_or(renewal, |suggestion| suggestion.ask_at);
        // Both lie ahead; a moment is added so that rounding never makes this a busy loop.
        Next::Wait(renewal.min(ask_at).max(now + time::Duration::SECOND))
    }

    /// Another configuration, or the first look: what failed before says little now.
    async fn begin_anew(&mut self, table: &SiteTable, site: &Arc<Site>, store: &Store) {
        let subject = (Arc::clone(&table.edge.acme), tls::patterns(site));
        let is_first = self.subject.is_none();
        if self.subject.as_ref().is_some_and(|old| old.0 == subject.0 && old.1 == subject.1) {
            return;
        }
        self.subject = Some(subject);
        self.ledger = self.on_disk(store, |store, host| Ok(store.ledger(host))).await.unwrap_or_default();
        self.ledger.stage = None;
        let is_limited = self.ledger.trouble.as_ref().is_some_and(|trouble| trouble.kind == "rateLimited");
        if is_first && !is_limited {
            // A process that is started again and again must not hammer the CA; a person who starts it once more after
            // mending something should not wait.
            let soon = self.ledger.last_attempt.map(|last| last + FRESH_START);
            self.ledger.next_attempt = self.ledger.next_attempt.zip(soon).map(|(next, soon)| next.min(soon));
        } else if !is_limited {
            self.ledger.next_attempt = None;
            self.ledger.failures = 0;
        }
    }

    /// The certificate that has all names, if there is one.
    fn current(&self, names: &[HostPattern]) -> Option<Arc<Certificate>> {
        let first = self.shared.certs.of(names.first()?)?;
        let is_whole = |name: &HostPattern| first.facts.covers(name);
        let is_own = first.facts.source == CertificateSource::Acme && first.facts.standing == Standing::Own;
        (is_own && names.iter().all(is_whole)).then_some(first)
    }

    /// Puts in force what the store has, where it is newer; and what stands in, where nothing is there.
    /// Says whether the store has a certificate of the site.
    async fn publish_kept(&mut self, table: &SiteTable, site: &Arc<Site>, now: OffsetDateTime) -> bool {
        let (table, site, certs) = (table.clone(), Arc::clone(site), Arc::clone(&self.shared.certs));
        let found = off_thread(move || Ok::<_, AcmeFault>(tls::of_acme_site(&table, &site, &certs, &mut None, now)));
        // What cannot be looked at is taken for there: nothing is ordered for that.
        let Ok(found) = found.await else { return true };
        let mut is_from_elsewhere = false;
        for (pattern, certificate) in found.certificates {
            let old = self.shared.certs.of(&pattern);
            let is_same = |old: &Arc<Certificate>| {
                old.facts.fingerprint == certificate.facts.fingerprint
                    && old.facts.standing == certificate.facts.standing
            };
            if old.as_ref().is_some_and(is_same) {
                continue;
            }
            let is_taken = self.shared.certs.renew(std::slice::from_ref(&pattern), &certificate);
            if is_taken && certificate.facts.standing == Standing::Own {
                is_from_elsewhere = true;
                let facts = &certificate.facts;
                tracing::info!(
                    event = "certificate_loaded",
                    site = %self.host,
                    not_after = timestamp(facts.not_after),
                    sha256 = facts.fingerprint_text(),
                    "the certificate of {pattern} was taken from the store: it is valid until {}", timestamp(facts.not_after)
                );
            }
        }
        if is_from_elsewhere {
            // What another process wrote beside it: which CA it is from.
            self.subject = None;
        }
        for doubt in found.doubts.iter().filter(|doubt| !self.doubts.contains(doubt)) {
            tracing::warn!(event = "certificate", site = %self.host, "{doubt}");
        }
        self.doubts = found.doubts;
        found.is_kept
    }

    /// Keeps the plan for those who list certificates, and warns those who pin.
    async fn plan_renewal(&mut self, store: &Store, renewal: OffsetDateTime) {
        // Whole seconds are what is kept.
        let renewal = renewal.replace_nanosecond(0).unwrap_or(renewal);
        // The last failure stays written down until a success: somebody may not have read it yet.
        if self.ledger.next_renewal != Some(renewal) || self.ledger.next_attempt.is_some() {
            (self.ledger.next_renewal, self.ledger.next_attempt, self.ledger.failures) = (Some(renewal), None, 0);
            self.keep_plan(store).await;
        }
    }

    /// Writes the plan down, and only that: without the lock another process may have written the rest meanwhile.
    async fn keep_plan(&mut self, store: &Store) {
        let Ledger { suggestion, next_renewal, next_attempt, failures, .. } = self.ledger.clone();
        let kept = self.on_disk(store, move |store, host| {
            let ledger = Ledger { suggestion, next_renewal, next_attempt, failures, ..store.ledger(host) };
            store.keep_ledger(host, &ledger).map(|()| ledger)
        });
        match kept.await {
            Ok(ledger) => self.ledger = ledger,
            Err(fault) => tracing::debug!(event = "storage", "{fault}"),
        }
    }

    /// Says in time when pinned fingerprints break: `reuse_key` tells that somebody pins. The key stays, the rest changes.
    fn warn_of_pins(&mut self, site: &Site, current: &Certificate, renewal: OffsetDateTime, now: OffsetDateTime) {
        let facts = &current.facts;
        let is_pinned = site.tls.as_ref().is_some_and(|tls| tls.reuse_key);
        let is_far = renewal - now > ((facts.not_after - facts.not_before) / 10_i32).min(PINS);
        if !is_pinned || is_far || self.pins_told == Some(facts.fingerprint) {
            return;
        }
        self.pins_told = Some(facts.fingerprint);
        let date = timestamp(renewal);
        tracing::warn!(
            event = "pins_break",
            site = %self.host,
            renewal = date,
            sha256 = facts.fingerprint_text(),
            "the certificate of {} is renewed on {date}: pins of its fingerprint break then, pins of its public key do not", self.host
        );
        self.shared.events.tell(Event::new("pins_break", &site.label).of(current).with("renewal", date));
    }

    /// One attempt, whatever its outcome. Says when to look again.
    async fn attempt(&mut self, table: &SiteTable, site: &Arc<Site>, due: Due) -> OffsetDateTime {
        let store = Store::new(&table.edge.storage);
        let lock = match self.on_disk(&store, Store::lock).await {
            Ok(Some(lock)) => lock,
            Ok(None) => return OffsetDateTime::now_utc() + BUSY,
            Err(fault) => return self.failed(table, site, &store, fault).await,
        };
        let found = self.on_disk(&store, |store, host| {
            Ok((store.asked(host), store.certificate(host).ok().flatten(), store.ledger(host)))
        });
        let (asked, kept, ledger) = found.await.unwrap_or_default();
        if due.request.is_some() && asked.is_none() {
            // Another process has just done what we were asked for.
            return OffsetDateTime::now_utc();
        }
        if let Some(kept) = kept
            && is_known(&table.edge.acme, &ledger)
            && self.was_faster(site, &kept, due)
        {
            self.ledger = ledger;
            // If the names are another source's by now, the next look says so.
            let is_taken = self.put_in_force(site, &kept);
            return OffsetDateTime::now_utc() + if is_taken { time::Duration::ZERO } else { time::Duration::SECOND };
        }
        (self.ledger.directory, self.ledger.issued) = (ledger.directory, ledger.issued);
        if due.why == Why::Stranger && due.request.is_none() && is_known(&table.edge.acme, &self.ledger) {
            // Another process has just replaced it.
            return OffsetDateTime::now_utc();
        }
        tracing::debug!(event = "certificate_due", site = %self.host, "ordering a certificate: {:?}", due.why);
        // Before anything is asked: a process that ends in the middle, again and again, must not order each time.
        let now = OffsetDateTime::now_utc();
        (self.ledger.last_attempt, self.ledger.next_attempt) = (Some(now), Some(now + FRESH_START));
        self.keep_ledger(&store).await;
        let outcome = self.order(table, site, &store, due.request.is_some()).await;
        let answer = match &outcome {
            Ok(won) => {
                let end = timestamp(won.issued.certificate.facts.not_after);
                (true, format!("a new certificate is served, valid until {end}"), String::new())
            }
            Err(fault) => (false, fault.text.clone(), fault.help.clone()),
        };
        let next = match outcome {
            Ok(won) => self.issued(table, site, &store, won).await,
            Err(fault) => self.failed(table, site, &store, fault).await,
        };
        // After the outcome is in force: whoever asked reads it then.
        if let Some(request) = due.request {
            self.answer(&store, request, answer.0, answer.1, answer.2).await;
        }
        drop(lock);
        next
    }

    /// True when another process has just got what we were about to order.
    fn was_faster(&self, site: &Arc<Site>, kept: &Certificate, due: Due) -> bool {
        let names = tls::patterns(site);
        let is_in_force =
            self.current(&names).is_some_and(|current| current.facts.fingerprint == kept.facts.fingerprint);
        let facts = &kept.facts;
        !is_in_force
            && names.iter().all(|name| facts.covers(name))
            && OffsetDateTime::now_utc() < plan::renewal(facts.not_before, facts.not_after, 1.0)
            // Whoever asked for a new one is served by one that is younger than the question.
            && due.request.is_none_or(|request| !request.force)
    }

    /// What was asked for has been done, or tried: tells whoever asked.
    async fn answer(&self, store: &Store, request: Request, is_fine: bool, text: String, help: String) {
        let answer = Answer { id: request.id, is_fine, text, help };
        let answered = self.on_disk(store, move |store, host| {
            let kept = store.keep_answer(host, &answer);
            // In any case, or it would be done again and again.
            store.answered(host);
            kept
        });
        if let Err(fault) = answered.await {
            tracing::debug!(event = "storage", "{fault}");
        }
    }

    /// Does something with the files of this site, away from the threads that drive sockets.
    async fn on_disk<T: Send + 'static>(
        &self,
        store: &Store,
        work: impl FnOnce(&Store, &HostPattern) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, AcmeFault> {
        let (store, host) = (store.clone(), self.host.clone());
        off_thread(move || work(&store, &host)).await
    }

    async fn keep_ledger(&self, store: &Store) {
        let ledger = self.ledger.clone();
        if let Err(fault) = self.on_disk(store, move |store, host| store.keep_ledger(host, &ledger)).await {
            tracing::debug!(event = "storage", "{fault}");
        }
    }
}

/// True when the certificate is from a CA that is configured, or nobody knows.
fn is_known(policy: &AcmePolicy, ledger: &Ledger) -> bool {
    let issuer = ledger.directory.as_deref();
    issuer.is_none_or(|url| policy.directories.iter().any(|directory| *directory.url == *url))
}

/// A site whose certificate comes from a CA.
pub fn find(table: &SiteTable, host: &HostPattern) -> Option<Arc<Site>> {
    table.sites().iter().find(|site| site.host == *host && is_from_ca(site)).cloned()
}

/// True when a site's certificate comes from a CA.
pub fn is_from_ca(site: &Site) -> bool {
    site.tls.as_ref().is_some_and(|tls| tls.certificate == CertificateSource::Acme)
}
