//! The last minutes: sums as they were, so that `tidegate status` can say what happens now and not
//! only what happened since the start.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::sums::Sums;

/// How far back it is remembered. Our choice: what a person who looks at a problem calls "now".
pub const SPAN: Duration = Duration::from_secs(300);
/// How often the sums are kept.
const EVERY: Duration = Duration::from_secs(30);

/// Sums of the last minutes. A clone is the same.
#[derive(Clone, Debug)]
pub struct Window(Arc<Mutex<VecDeque<Kept>>>);

/// Sums, and when they were taken.
type Kept = (Instant, Arc<Sums>);

impl Window {
    /// Begins now, with nothing counted.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(VecDeque::from([(Instant::now(), Arc::default())]))))
    }

    /// Keeps the sums as they are now, and forgets the oldest.
    fn keep(&self, sums: Sums) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((Instant::now(), Arc::new(sums)));
        // The one that is just older than the span stays: it is where the span begins.
        while kept.get(1).is_some_and(|(at, _)| at.elapsed() >= SPAN) {
            kept.pop_front();
        }
    }

    /// The sums of about so long ago, and how long ago that is; the oldest there are, if that is later.
    pub fn ago(&self, ago: Duration) -> (Duration, Arc<Sums>) {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().rev().find(|(at, _)| at.elapsed() >= ago).or_else(|| kept.front());
        found.map_or_else(Default::default, |(at, sums)| (at.elapsed(), Arc::clone(sums)))
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

/// Keeps the sums from time to time, for ever.
pub async fn watch(window: Window, sums: impl Fn() -> Sums) {
    loop {
        tokio::time::sleep(EVERY).await;
        window.keep(sums());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_younger_than_asked_for_is_the_oldest_there_is() {
        let window = Window::new();
        window.keep(Sums::default());
        let (ago, _) = window.ago(SPAN);
        assert!(ago < SPAN);
        let (latest, _) = window.ago(Duration::ZERO);
        assert!(latest <= ago);
    }
}
