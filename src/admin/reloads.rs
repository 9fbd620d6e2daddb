//! The last reloads, with what each said: a reload that failed is seen by whoever looks later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

/// The last reloads. A clone is the same list.
#[derive(Clone, Debug, Default)]
pub struct Reloads(Arc<Mutex<VecDeque<Reload>>>);

/// One reload.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When it ended.
    pub at: OffsetDateTime,
    /// Whether the new configuration is in force.
    pub is_fine: bool,
    /// The generation that is in force since then.
    pub generation: u64,
    /// What changed, or the report of every fault.
    pub report: String,
}

/// So many are kept.
const KEPT: usize = 10;
/// Longest report that is kept, in bytes. Our choice: some hundred faults.
const LONGEST: usize = 64 << 10;

impl Reloads {
    /// Keeps one, and forgets the oldest.
    pub fn keep(&self, is_fine: bool, generation: u64, mut report: String) {
        if report.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|at| report.is_char_boundary(*at)).unwrap_or(0);
            report.truncate(end);
            report.push_str("\n…");
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front(Reload { at: OffsetDateTime::now_utc(), is_fine, generation, report });
    }

    /// All that are kept, the last one first.
    pub fn all(&self) -> Vec<Reload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The last one, unless it succeeded.
    pub fn last_failure(&self) -> Option<Reload> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.front().filter(|reload| !reload.is_fine).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reloads_are_kept() {
        let reloads = Reloads::default();
        assert!(reloads.last_failure().is_none());
        for generation in 1..=20 {
            reloads.keep(generation != 20, generation, "é".repeat(LONGEST));
        }
        let all = reloads.all();
        assert_eq!((all.len(), all[0].generation, all[9].generation), (10, 20, 11));
        assert!(all[0].report.len() < LONGEST + 8);
        assert!(reloads.last_failure().is_some());
        reloads.keep(true, 21, String::new());
        assert!(reloads.last_failure().is_none());
    }
}
