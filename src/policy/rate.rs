//! One rate: a budget for each key, which fills up evenly (GCRA), in a store of fixed capacity.
//!
//! It is asked before anything costs; a refusal says when the next request would pass. What is not asked again is
//! forgotten as soon as its budget is whole, for then it is as if it had never been.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter, clock};
use tokio::time::Instant;

use super::store::{Key, Store};
use crate::site::limit::{RateRule, RuleName};

/// The live state of one rate.
#[derive(Debug)]
pub struct Limiter {
    name: RuleName,
    gauge: RateLimiter<Key, Budgets, Clock, NoOpMiddleware<Nanos>>,
    budgets: Budgets,
    clock: Clock,
    refused: AtomicU64,
}

impl Limiter {
    /// Full budgets for everybody.
    pub fn new(rule: &RateRule) -> Self {
        let (budgets, clock) = (Budgets::default(), Clock(Instant::now()));
        // The shortest period of one is that of a million a second; the compiler has bounded both.
        let each = rule.period / rule.count.get();
        let quota = Quota::with_period(each.max(Duration::from_nanos(1))).unwrap_or(Quota::per_second(rule.count));
        let gauge = RateLimiter::new(quota.allow_burst(rule.burst), budgets.clone(), clock.clone());
        Self { name: rule.name.clone(), gauge, budgets, clock, refused: AtomicU64::new(0) }
    }

    /// Takes one from a budget.
    ///
    /// # Errors
    /// When there is none left: the time until there is.
    pub fn take(&self, key: Key) -> Result<(), Duration> {
        self.gauge.check_key(&key).map_err(|until| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            until.wait_time_from(self.clock.now())
        })
    }

    /// What it is called.
    pub fn name(&self) -> &RuleName {
        &self.name
    }

    /// How often it refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Keys that are held.
    pub fn held(&self) -> usize {
        self.budgets.0.held()
    }

    /// Keys that were forgotten because others came.
    pub fn evicted(&self) -> usize {
        self.budgets.0.evicted()
    }

    /// Forgets whoever has a whole budget again.
    pub fn forget(&self) {
        let now = self.clock.now();
        self.budgets.0.forget(|whole| *whole <= now);
    }
}

/// When each key's budget will be whole again.
#[derive(Clone, Debug, Default)]
struct Budgets(Arc<Store<Nanos>>);

impl StateStore for Budgets {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.update(*key, |whole| {
            let (verdict, next) = judge(*whole)?;
            *whole = Some(next);
            Ok(verdict)
        })
    }
}

/// Time since the limiter was made.
#[derive(Clone, Debug)]
struct Clock(Instant);

impl clock::Clock for Clock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use tokio::time::advance;

    use super::*;
    use crate::addr::ClientAddr;
    use crate::site::access::Guest;
    use crate::site::limit::{Per, RuleId};

    fn limiter(count: u32, seconds: u64, burst: u32) -> Limiter {
        let name = RuleName {
            name: "requests".into(),
            place: "site \"a.test\"".into(),
            kind: "requests",
            terms: "".into(),
            id: RuleId::new("requests", "", ""),
        };
        let number = |number| NonZeroU32::new(number).expect("above zero");
        let period = Duration::from_secs(seconds);
        Limiter::new(&RateRule { name, count: number(count), period, burst: number(burst), per: Per::Client })
    }

    fn client(number: u32) -> Key {
        Key::of_guest(Guest::Client(ClientAddr::new(std::net::Ipv4Addr::from(number).into())))
    }

    /// N-21: a burst passes at once, and what is refused is told exactly when it will not be.
    #[tokio::test(start_paused = true)]
    async fn a_budget_is_used_up_and_fills_evenly() {
        let limiter = limiter(10, 60, 3);
        for _ in 0..3 {
            assert_eq!(limiter.take(client(1)), Ok(()));
        }
        let wait = limiter.take(client(1)).expect_err("used up");
        assert!(wait > Duration::from_secs(5) && wait <= Duration::from_secs(6), "{wait:?}");
        assert_eq!(limiter.take(client(2)), Ok(()), "another client");
        advance(wait).await;
        assert_eq!(limiter.take(client(1)), Ok(()));
        assert!(limiter.take(client(1)).is_err());
        advance(Duration::from_secs(3600)).await;
        for _ in 0..3 {
            assert_eq!(limiter.take(client(1)), Ok(()), "not more than a burst is saved up");
        }
        assert!(limiter.take(client(1)).is_err());
        assert_eq!((limiter.refused(), limiter.held()), (3, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_is_not_punished_for_asking() {
        let limiter = limiter(1, 1, 1);
        assert_eq!(limiter.take(client(1)), Ok(()));
        for _ in 0..100 {
            assert!(limiter.take(client(1)).is_err());
        }
        advance(Duration::from_secs(1)).await;
        assert_eq!(limiter.take(client(1)), Ok(()));
    }

    /// SECURITY.md 5: a flood of new keys takes nothing from an honest client, whether it is forgotten or not.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_keys_does_not_touch_an_honest_client() {
        let limiter = limiter(10, 60, 10);
        for number in 0..300_000 {
            limiter.take(client(number + 10)).ok();
            if number % 60_000 == 0 {
                advance(Duration::from_secs(6)).await;
                assert_eq!(limiter.take(client(1)), Ok(()));
            }
        }
        assert!(limiter.held() < 115_000 && limiter.evicted() > 150_000, "{limiter:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_budget_needs_no_memory() {
        let limiter = limiter(10, 60, 10);
        for number in 0..1000 {
            assert_eq!(limiter.take(client(number)), Ok(()));
        }
        limiter.forget();
        assert_eq!(limiter.held(), 1000, "each has used one");
        advance(Duration::from_secs(7)).await;
        limiter.forget();
        assert_eq!(limiter.held(), 0);
    }
}
