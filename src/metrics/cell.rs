//! Numbers that one worker counts and any thread reads: counters, histograms, tallies by name.
//!
//! Each has one writer, its worker. So counting is a load and a store, never a locked instruction,
//! and a reader sees a number that was true a moment ago.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts so many more. Only the worker that owns it may.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// How many there were.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many durations were at most so long. Bounds are in microseconds and ascend.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [Counter; N],
    above: Counter,
    /// Microseconds.
    sum: Counter,
}

impl<const N: usize> Histogram<N> {
    /// Nothing observed yet.
    pub fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| Counter::default()),
            above: Counter::default(),
            sum: Counter::default(),
        }
    }

    /// Observes one duration.
    pub fn observe(&self, duration: Duration) {
        // Not `as_micros`: that divides 128 bits.
        let micros = duration.as_secs().saturating_mul(1_000_000).saturating_add(duration.subsec_micros().into());
        let at = self.bounds.partition_point(|bound| *bound < micros);
        self.counts.get(at).unwrap_or(&self.above).add(1);
        self.sum.add(micros);
    }

    /// What was observed so far.
    pub fn spread(&self) -> Spread {
        let counts = self.counts.iter().chain([&self.above]).map(Counter::value).collect();
        Spread { bounds: self.bounds, counts, sum: self.sum.value() }
    }
}

/// What a histogram observed: plain values, which can be added and compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Microseconds.
    bounds: &'static [u64],
    /// One for each bound, and one for what is above the last.
    counts: Vec<u64>,
    /// Microseconds.
    sum: u64,
}

impl Spread {
    /// Adds what another one observed.
    pub fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.clone_from(other);
            return;
        }
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// What was observed since an earlier time.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |at: usize| earlier.counts.get(at).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate().map(|(at, count)| count.saturating_sub(before(at))).collect();
        Self { bounds: self.bounds, counts, sum: self.sum.wrapping_sub(earlier.sum) }
    }

    /// How many were observed.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum in seconds.
    pub fn seconds(&self) -> f64 {
        self.sum as f64 / 1e6
    }

    /// Bounds in seconds, each with how many were between it and the bound before; the last one has no end.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied()).collect()
    }

    /// The duration that this share of all stays below: within its bucket as if they were spread evenly.
    /// `None` when nothing was observed.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = share * count as f64;
        let (mut below, mut from) = (0.0, 0);
        for (at, inside) in self.counts.iter().enumerate() {
            // Above the last bound nothing more is known than that.
            let Some(to) = self.bounds.get(at) else { break };
            if *inside > 0 && below + *inside as f64 >= rank {
                let part = (rank - below) / *inside as f64;
                return Some(Duration::from_secs_f64((from as f64 + part * (to - from) as f64) / 1e6));
            }
            below += *inside as f64;
            from = *to;
        }
        Some(Duration::from_micros(from))
    }
}

/// Values by keys from a small set that is found as it occurs: codes, kinds, names of the configuration.
///
/// A list that only grows, so that readers need no lock. It is walked from its beginning, where the
/// keys stand that occurred first. Never for anything that a client chooses.
#[derive(Debug)]
pub struct Tally<K, V = Counter> {
    first: Next<K, V>,
}

/// The next entry, once there is one.
type Next<K, V> = OnceLock<Box<Entry<K, V>>>;

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    next: Next<K, V>,
}

impl<K, V> Default for Tally<K, V> {
    fn default() -> Self {
        Self { first: OnceLock::new() }
    }
}

impl<K: Clone + PartialEq, V: Default> Tally<K, V> {
    /// The value of a key; a new one when it occurs for the first time.
    pub fn of(&self, key: &K) -> &V {
        let mut slot = &self.first;
        loop {
            let entry =
                slot.get_or_init(|| Box::new(Entry { key: key.clone(), value: V::default(), next: OnceLock::new() }));
            if entry.key == *key {
                return &entry.value;
            }
            slot = &entry.next;
        }
    }
}

impl<K, V> Tally<K, V> {
    /// All keys that occurred, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let entries = std::iter::successors(self.first.get(), |entry| entry.next.get());
        entries.map(|entry| (&entry.key, &entry.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 ms, 10 ms, 100 ms.
    const BOUNDS: [u64; 3] = [1_000, 10_000, 100_000];

    #[test]
    fn a_duration_falls_into_the_bucket_of_its_bound() {
        let histogram = Histogram::new(&BOUNDS);
        for micros in [1, 1_000, 1_001, 100_000, 100_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let spread = histogram.spread();
        assert_eq!(spread.buckets(), [(0.001, 2), (0.01, 1), (0.1, 1), (f64::INFINITY, 1)]);
        assert_eq!(spread.count(), 5);
        assert!((spread.seconds() - 0.202_003).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let histogram = Histogram::new(&BOUNDS);
        assert_eq!(histogram.spread().quantile(0.99), None);
        for _ in 0..100 {
            histogram.observe(Duration::from_millis(5));
        }
        assert_eq!(histogram.spread().quantile(0.5), Some(Duration::from_micros(5_500)));
        let earlier = histogram.spread();
        histogram.observe(Duration::from_secs(9));
        assert_eq!(histogram.spread().since(&earlier).quantile(0.99), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_tally_keeps_one_value_a_key() {
        let tally: Tally<&'static str> = Tally::default();
        for key in ["b", "a", "b"] {
            tally.of(&key).add(1);
        }
        let all: Vec<_> = tally.iter().map(|(key, count)| (*key, count.value())).collect();
        assert_eq!(all, [("b", 2), ("a", 1)]);
    }
}
