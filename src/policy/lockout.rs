//! The lockout after failed logins: of each client, and tighter for all while somebody guesses from many addresses.
//!
//! Only failures leave anything here, so that a client which does not fail costs one look at a number. A success erases
//! nothing: between guesses, an attacker could log in to an account of its own. The store is of fixed capacity; to be
//! forgotten by it, an attacker has to fail from a hundred thousand other addresses, at which `global_max` has long held.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::store::{Key, Store};
use crate::site::limit::{LockoutRule, RuleName};

/// The live state of one rule.
#[derive(Debug)]
pub struct Lockout {
    rule: LockoutRule,
    begun: Instant,
    clients: Store<Failures>,
    all: Mutex<All>,
    refused: AtomicU64,
}

/// What is known of one client. Times are milliseconds since the rule came into force.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    /// When the first of them was.
    since: u64,
    count: u32,
    /// Until when it is locked out; 0 while it is not.
    until: u64,
}

/// The failures of all clients together.
#[derive(Clone, Copy, Debug, Default)]
struct All {
    since: u64,
    count: u32,
    /// Until when one failure is enough.
    alarmed_until: u64,
}

impl Lockout {
    /// Nobody has failed.
    pub fn new(rule: &LockoutRule) -> Self {
        Self {
            rule: rule.clone(),
            begun: Instant::now(),
            clients: Store::new(),
            all: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// Lets a client in.
    ///
    /// # Errors
    /// When it is locked out: for how long still.
    pub fn admit(&self, key: Key) -> Result<(), Duration> {
        if self.clients.held() == 0 {
            return Ok(());
        }
        let now = self.now();
        let until = self.clients.update(key, |failures| failures.map_or(0, |failures| failures.until));
        if until <= now {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(Duration::from_millis(until - now))
    }

    /// A client has failed to log in. Says whether it is locked out from now on.
    pub fn failed(&self, key: Key) -> bool {
        let now = self.now();
        let most = if self.is_alarmed(now) { 1 } else { self.rule.max.get() };
        let window = millis(self.rule.window);
        self.clients.update(key, |failures| {
            let known = failures.get_or_insert_default();
            if known.until > now {
                return true; // what was on its way when it was locked out
            }
            if known.count == 0 || known.until > 0 || now - known.since >= window {
                *known = Failures { since: now, count: 0, until: 0 };
            }
            known.count += 1;
            if known.count >= most {
                known.until = now + millis(self.rule.lockout).max(1);
            }
            known.until > now
        })
    }

    /// What a client did was no failure after all.
    pub fn absolve(&self, key: Key) {
        self.clients.update(key, |failures| *failures = None);
    }

    /// Counts one failure among those of all, and says whether there are too many.
    fn is_alarmed(&self, now: u64) -> bool {
        let Some(most) = self.rule.global_max else { return false };
        let window = millis(self.rule.window);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if now - all.since >= window {
            all.since = now;
            all.count = 0;
        }
        all.count = all.count.saturating_add(1);
        if all.count > most.get() {
            let is_new = all.alarmed_until <= now;
            // It calms when a whole window has passed that had not too many.
            all.alarmed_until = now + window;
            drop(all);
            if is_new {
                let name = &self.rule.name;
                tracing::warn!(
                    event = "failed_auth",
                    limit = &*name.name,
                    place = &*name.place,
                    most = most.get(),
                    "more than {most} failed logins ({}): until it calms, one failure locks a client out",
                    name.place
                );
            }
            return true;
        }
        all.alarmed_until > now
    }

    /// What it is called.
    pub fn name(&self) -> &RuleName {
        &self.rule.name
    }

    /// How often somebody was turned away.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Clients whose failures are remembered.
    pub fn held(&self) -> usize {
        self.clients.held()
    }

    /// Clients that were forgotten because others failed.
    pub fn evicted(&self) -> usize {
        self.clients.evicted()
    }

    /// Forgets whoever has nothing left to wait for.
    pub fn forget(&self) {
        let (now, window) = (self.now(), millis(self.rule.window));
        self.clients.forget(|known| known.until <= now && (known.until > 0 || now - known.since >= window));
    }

    fn now(&self) -> u64 {
        // From 1, so that 0 can mean never.
        millis(self.begun.elapsed()) + 1
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use tokio::time::advance;

    use super::*;
    use crate::addr::ClientAddr;
    use crate::site::access::Guest;
    use crate::site::limit::RuleId;

    fn lockout(max: u32, global_max: Option<u32>) -> Lockout {
        let name = RuleName {
            name: "failed_auth".into(),
            place: "site \"a.test\"".into(),
            kind: "failed_auth",
            terms: "".into(),
            id: RuleId::new("failed_auth", "", ""),
        };
        Lockout::new(&LockoutRule {
            name,
            max: NonZeroU32::new(max).expect("above zero"),
            window: Duration::from_secs(60),
            lockout: Duration::from_secs(300),
            global_max: global_max.and_then(NonZeroU32::new),
        })
    }

    fn client(number: u32) -> Key {
        Key::of_guest(Guest::Client(ClientAddr::new(std::net::Ipv4Addr::from(number).into())))
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_failures_in_the_window_lock_a_client_out() {
        let lockout = lockout(3, None);
        assert!(!lockout.failed(client(1)) && !lockout.failed(client(1)));
        assert_eq!(lockout.admit(client(1)), Ok(()));
        assert!(lockout.failed(client(1)), "the third");
        assert_eq!(lockout.admit(client(1)), Err(Duration::from_secs(300)));
        assert_eq!(lockout.admit(client(2)), Ok(()), "another client");
        advance(Duration::from_secs(200)).await;
        // Asking, and failures that were on their way, do not make it longer.
        assert!(lockout.failed(client(1)));
        assert_eq!(lockout.admit(client(1)), Err(Duration::from_secs(100)));
        advance(Duration::from_secs(100)).await;
        assert_eq!(lockout.admit(client(1)), Ok(()));
        assert!(!lockout.failed(client(1)), "the count begins anew");
        assert_eq!(lockout.refused(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_are_far_apart_lock_nobody_out() {
        let lockout = lockout(3, None);
        for _ in 0..19 {
            assert!(!lockout.failed(client(1)));
            advance(Duration::from_secs(31)).await;
        }
        lockout.forget();
        assert_eq!(lockout.held(), 1);
        advance(Duration::from_secs(60)).await;
        lockout.forget();
        assert_eq!(lockout.held(), 0, "and are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_from_many_addresses_makes_one_failure_enough() {
        let lockout = lockout(3, Some(10));
        for number in 0..10 {
            assert!(!lockout.failed(client(number)));
        }
        assert!(lockout.failed(client(100)), "the eleventh in all");
        assert!(lockout.failed(client(101)), "and from then on each");
        assert_eq!(lockout.admit(client(5)), Ok(()), "who failed before is not touched");
        assert_eq!(lockout.admit(client(500)), Ok(()), "nor who does not fail");
        advance(Duration::from_secs(61)).await;
        assert!(!lockout.failed(client(102)), "it has calmed");
    }

    #[tokio::test(start_paused = true)]
    async fn who_did_not_fail_is_absolved() {
        let lockout = lockout(2, None);
        lockout.failed(client(1));
        lockout.absolve(client(1));
        assert_eq!(lockout.held(), 0);
        assert!(!lockout.failed(client(1)));
    }
}
