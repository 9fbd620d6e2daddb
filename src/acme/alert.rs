//! Watches the certificates that are served, whatever their source, and speaks up long before one ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::event::{Event, Events, timestamp};
use super::plan;
use crate::addr::HostPattern;
use crate::snapshot::Snapshot;
use crate::tls::certs::{CertFacts, CertStore, Certificate};

/// Watches for ever.
pub async fn watch(certs: Arc<CertStore>, snapshot: Arc<Snapshot>, events: Events) {
    let (mut changed, mut reloaded) = (certs.changes(), snapshot.changes());
    let mut told = HashMap::new();
    loop {
        let before = snapshot.keep().table.edge.acme.alert_before;
        let next = pass(&certs, before, &events, &mut told, OffsetDateTime::now_utc());
        let wait = Duration::try_from(next - OffsetDateTime::now_utc()).unwrap_or_default();
        tokio::select! {
            // A timer does not run while the machine sleeps, and clocks are set: look at least once a minute.
            () = tokio::time::sleep(wait.clamp(Duration::from_secs(1), LOOK)) => {}
            Ok(()) = changed.changed() => {}
            Ok(()) = reloaded.changed() => {}
        }
    }
}

const LOOK: Duration = Duration::from_secs(60);
/// How often the same thing is said again: a reminder, not a noise.
const AGAIN: time::Duration = time::Duration::DAY;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Expiring,
    Expired,
}

/// What was said of which certificate, and when.
type Told = HashMap<([u8; 32], Stage), OffsetDateTime>;

/// Looks once, and says when the next look is due.
fn pass(certs: &CertStore, before: Duration, events: &Events, told: &mut Told, now: OffsetDateTime) -> OffsetDateTime {
    let all = certs.all();
    told.retain(|(fingerprint, _), _| all.iter().any(|(_, one)| one.facts.fingerprint == *fingerprint));
    let mut next = now + time::Duration::HOUR;
    let mut seen = std::collections::HashSet::new();
    for (pattern, certificate) in &all {
        let facts = &certificate.facts;
        let alert = plan::alert(facts.not_before, facts.not_after, before);
        let stage = match now {
            now if now >= facts.not_after => Stage::Expired,
            now if now >= alert => Stage::Expiring,
            _ => {
                next = next.min(alert);
                continue;
            }
        };
        if stage == Stage::Expiring {
            next = next.min(facts.not_after);
        }
        // One certificate may have many names; it is one matter.
        if !seen.insert(facts.fingerprint) {
            continue;
        }
        let last = told.get(&(facts.fingerprint, stage));
        if last.is_none_or(|last| now - *last >= AGAIN) {
            told.insert((facts.fingerprint, stage), now);
            say(stage, pattern, certificate, now, events);
        }
    }
    next
}

/// Whether a person should look at a certificate.
pub fn is_alarming(facts: &CertFacts, before: Duration, now: OffsetDateTime) -> bool {
    now >= plan::alert(facts.not_before, facts.not_after, before)
}

/// The certificates that a person should look at, in a few words; `None` when all is well.
pub fn ending(certs: &CertStore, before: Duration, now: OffsetDateTime) -> Option<String> {
    let all = certs.all();
    let first = all.iter().min_by_key(|(_, one)| one.facts.not_after)?;
    let facts = &first.1.facts;
    let end = facts.not_after;
    match now {
        now if now >= end => Some(format!("the certificate of {} has expired", first.0)),
        now if now >= plan::alert(facts.not_before, end, before) => {
            Some(format!("the certificate of {} ends in {}", first.0, remaining(end - now)))
        }
        _ => None,
    }
}

fn say(stage: Stage, pattern: &HostPattern, certificate: &Certificate, now: OffsetDateTime, events: &Events) {
    let facts = &certificate.facts;
    let (site, end) = (pattern.to_string(), timestamp(facts.not_after));
    let left = remaining(facts.not_after - now);
    match stage {
        Stage::Expired => {
            tracing::error!(
                event = "certificate_expired",
                site,
                not_after = end,
                "the certificate that is served for {site} expired on {end}: clients refuse it"
            );
            events.tell(Event::new("expired", &site).of(certificate));
        }
        Stage::Expiring => {
            tracing::warn!(
                event = "certificate_expiring",
                site,
                not_after = end,
                "the certificate that is served for {site} ends in {left} ({end}) and has not been renewed: see `tidegate certs list`"
            );
            events.tell(
                Event::new("expiring", &site)
                    .of(certificate)
                    .with("seconds_left", (facts.not_after - now).whole_seconds()),
            );
        }
    }
}

/// `13 days`, `5 h`, `40 s`.
pub fn remaining(left: time::Duration) -> String {
    match left {
        left if left >= time::Duration::days(2) => format!("{} days", left.whole_days()),
        left if left >= time::Duration::hours(2) => format!("{} h", left.whole_hours()),
        left if left >= time::Duration::minutes(2) => format!("{} min", left.whole_minutes()),
        left => format!("{} s", left.whole_seconds().max(0)),
    }
}
