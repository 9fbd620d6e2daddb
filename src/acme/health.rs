//! What is known of each CA, so that a hundred names do not all find out for themselves.
//!
//! While a CA is away, one order at a time may look for it, at most about once a minute. When it is back, all that waited
//! are told at once. One that is there is asked for its directory once a minute at most, by whomever.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::ca::{Ca, Meta};
use super::fault::{AcmeFault, Blame};
use super::plan;
use crate::site::acme::Directory;

/// What is known of all CAs, by the URL of their directory.
pub struct Health {
    away: Mutex<HashMap<Box<str>, Away>>,
    reached: Mutex<HashMap<Box<str>, (Instant, Ca)>>,
    returns: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    failures: u32,
    until: OffsetDateTime,
}

/// How long a directory is believed to be as it was.
const FRESH: Duration = Duration::from_secs(60);

impl Health {
    /// All are well.
    pub fn new() -> Self {
        Self { away: Mutex::default(), reached: Mutex::default(), returns: watch::Sender::new(0) }
    }

    /// Whether a CA may be asked now. Whoever may, looks for all the others: they wait for a while.
    ///
    /// # Errors
    /// When it is away: not before this time.
    pub fn may_ask(&self, url: &str, now: OffsetDateTime) -> Result<(), OffsetDateTime> {
        let mut all = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(away) = all.get_mut(url) else { return Ok(()) };
        // A time that no pause reaches is from before the clock was set.
        if now < away.until && away.until - now <= time::Duration::DAY {
            return Err(away.until);
        }
        away.until = now + plan::pause(Blame::Ca, u32::MAX, plan::chance());
        Ok(())
    }

    /// A CA did not answer, or not as a CA does. Says when it is looked for again.
    pub fn failed(&self, url: &str, not_before: Option<OffsetDateTime>, now: OffsetDateTime) -> OffsetDateTime {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).remove(url);
        let mut all = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let away = all.entry(url.into()).or_insert(Away { failures: 0, until: now });
        away.failures = away.failures.saturating_add(1);
        let own = now + plan::pause(Blame::Ca, away.failures, plan::chance());
        away.until = not_before.map_or(own, |time| time.max(own));
        away.until
    }

    /// A CA did what it is there for.
    pub fn worked(&self, url: &str) {
        let was_away = self.away.lock().unwrap_or_else(PoisonError::into_inner).remove(url).is_some();
        if was_away {
            self.returns.send_modify(|count| *count += 1);
        }
    }

    /// A CA: its directory is asked for, unless that has just been done.
    ///
    /// # Errors
    /// When there is no answer, or it is no directory.
    pub async fn reach(&self, directory: &Directory) -> Result<Ca, AcmeFault> {
        if let Some(ca) = self.known(directory).filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(ca.1.afresh());
        }
        let ca = Ca::reach(directory).await?;
        let mut all = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(directory.url.clone(), (Instant::now(), ca.clone()));
        Ok(ca)
    }

    /// What a CA once said of itself.
    pub fn meta(&self, directory: &Directory) -> Option<Meta> {
        self.known(directory).map(|(_, ca)| ca.meta)
    }

    fn known(&self, directory: &Directory) -> Option<(Instant, Ca)> {
        let all = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&directory.url).filter(|(_, ca)| ca.directory == *directory).cloned()
    }

    /// Counts the returns of CAs, for whoever waits for one.
    pub fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
    }
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("away", &self.away).finish_non_exhaustive()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_ca_that_is_away_is_looked_for_by_one_at_a_time() {
        let (health, url) = (Health::new(), "https://ca.example.com/dir");
        let now = datetime!(2026-11-20 12:00 UTC);
        let returns = health.returns();
        assert!(health.may_ask(url, now).is_ok());
        let until = health.failed(url, None, now);
        assert_eq!(health.may_ask(url, now), Err(until));
        assert!(health.may_ask(url, until).is_ok(), "somebody has to look");
        assert!(health.may_ask(url, until).is_err(), "but not all at once");
        assert!(health.may_ask("https://other.example.com/dir", now).is_ok());
        let hour = now + time::Duration::HOUR;
        assert_eq!(health.failed(url, Some(hour), now), hour, "Retry-After is respected");
        assert!(!returns.has_changed().expect("alive"));
        health.worked(url);
        assert!(returns.has_changed().expect("alive"), "those who wait are told");
        assert!(health.may_ask(url, now).is_ok());
    }
}
