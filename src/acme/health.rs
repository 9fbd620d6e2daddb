//! Which CAs are away, so that a hundred names do not all find out for themselves.
//!
//! While a CA is away, one order at a time may look for it, at most about once a minute. When it is back, all that waited
//! are told at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::fault::Blame;
use super::plan;

/// What is known of all CAs, by the URL of their directory.
#[derive(Debug)]
pub struct Health {
    away: Mutex<HashMap<Box<str>, Away>>,
    returns: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    failures: u32,
    until: OffsetDateTime,
}

impl Health {
    /// All are well.
    pub fn new() -> Self {
        Self { away: Mutex::default(), returns: watch::Sender::new(0) }
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

    /// Counts the returns of CAs, for whoever waits for one.
    pub fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
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
