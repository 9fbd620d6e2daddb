//! The drain: how far the process has gone on its way to the end, and how much work is still open.
//!
//! One value for the whole process, cloned into every worker. Open work is counted by guards; each
//! phase can be awaited. Which phase comes when, and every deadline, is `server`'s business.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use tokio::sync::Notify;

/// The way to the end, shared by all who do work. A clone is the same drain.
#[derive(Clone)]
pub struct Drain(Arc<State>);

/// How far the process has gone on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// New work is welcome.
    Serving,
    /// No new connection; open ones end after the present response (`Connection: close`, GOAWAY).
    Draining,
    /// Every tunnel writes WebSocket close 1001 (RFC 6455 7.4.1) and ends.
    CutTunnels,
    /// Whatever is still open is dropped.
    Stopped,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// An accepted connection, from accept to close; one that became a tunnel no longer counts.
    Connection,
    /// A request, from its head to the last byte of the response.
    Request,
    /// A tunnel, from before its 101 or 200 to the end of both directions.
    Tunnel,
    /// An order of a certificate, from its first proof to its last one taken down.
    Order,
}

/// Counts one piece of work until it is dropped.
#[must_use = "the work counts only as long as its guard lives"]
pub struct Guard {
    drain: Drain,
    work: Work,
}

/// What all clones share.
struct State {
    phase: AtomicU8,
    reached: [Notify; Phase::ALL.len()],
    counts: [Count; 4],
}

/// Open work of one kind. Aligned, so that workers that count different kinds share no cache line.
#[repr(align(128))]
#[derive(Default)]
struct Count {
    open: AtomicUsize,
    none_left: Notify,
}

impl Drain {
    /// A drain in phase `Serving` with no open work.
    pub fn new() -> Self {
        Self(Arc::new(State {
            phase: AtomicU8::new(Phase::Serving as u8),
            reached: Default::default(),
            counts: Default::default(),
        }))
    }

    /// The present phase: one atomic load, cheap enough for every request.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.0.phase.load(Ordering::Acquire))]
    }

    /// Goes on to `to` and wakes who waits for it or for a phase before it. Never goes back.
    pub fn advance(&self, to: Phase) {
        let before = self.0.phase.fetch_max(to as u8, Ordering::AcqRel);
        for phase in Phase::ALL.into_iter().filter(|phase| *phase as u8 > before && *phase <= to) {
            self.0.reached[phase as usize].notify_waiters();
        }
    }

    /// Resolves once the phase is `phase` or a later one. Cancel safe.
    pub async fn reached(&self, phase: Phase) {
        let mut notified = pin!(self.0.reached[phase as usize].notified());
        let mut registered: Option<Waker> = None;
        poll_fn(|cx| {
            if self.phase() >= phase {
                return Poll::Ready(());
            }
            // Polling `notified` takes a lock that all workers share. A connection polls this with
            // every byte that arrives, so it is asked again only when another task waits now.
            if registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            let polled = notified.as_mut().poll(cx);
            registered = Some(cx.waker().clone());
            polled
        })
        .await;
    }

    /// Counts one piece of work until the guard is dropped.
    pub fn guard(&self, work: Work) -> Guard {
        self.0.counts[work as usize].open.fetch_add(1, Ordering::Relaxed);
        Guard { drain: self.clone(), work }
    }

    /// How much work of a kind is open.
    pub fn count(&self, work: Work) -> usize {
        self.0.counts[work as usize].open.load(Ordering::Acquire)
    }

    /// Resolves once no work of a kind is open. More may begin afterwards. Cancel safe.
    pub async fn none_left(&self, work: Work) {
        loop {
            // Made before the count is read, so that a guard dropped in between is not missed.
            let notified = self.0.counts[work as usize].none_left.notified();
            if self.count(work) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("phase", &self.phase())
            .field("connections", &self.count(Work::Connection))
            .field("requests", &self.count(Work::Request))
            .field("tunnels", &self.count(Work::Tunnel))
            .finish()
    }
}

impl Phase {
    /// All phases in order; the index of each is its number.
    const ALL: [Self; 4] = [Self::Serving, Self::Draining, Self::CutTunnels, Self::Stopped];
}

impl Drop for Guard {
    fn drop(&mut self) {
        let count = &self.drain.0.counts[self.work as usize];
        if count.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            count.none_left.notify_waiters();
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.work).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::time::timeout;

    /// A failure bound, never waited for in a test that passes.
    const BOUND: Duration = Duration::from_secs(10);

    #[test]
    fn a_phase_never_goes_back() {
        let drain = Drain::new();
        assert_eq!(drain.phase(), Phase::Serving);
        drain.advance(Phase::CutTunnels);
        drain.advance(Phase::Draining);
        assert_eq!(drain.phase(), Phase::CutTunnels);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_waiter_wakes_at_its_phase_and_at_any_later_one() {
        let drain = Drain::new();
        let wait = |phase| {
            let drain = drain.clone();
            tokio::spawn(async move { drain.reached(phase).await })
        };
        let (first, second, last) = (wait(Phase::Draining), wait(Phase::CutTunnels), wait(Phase::Stopped));
        timeout(BOUND, drain.reached(Phase::Serving)).await.expect("already there");
        drain.advance(Phase::CutTunnels); // skips Draining
        timeout(BOUND, async { (first.await, second.await) }).await.expect("both woken").0.expect("no panic");
        assert!(!last.is_finished());
        drain.advance(Phase::Stopped);
        timeout(BOUND, last).await.expect("woken").expect("no panic");
    }

    #[tokio::test]
    async fn a_waiter_follows_when_it_is_moved_to_another_task() {
        let drain = Drain::new();
        let moved = drain.clone();
        let mut waiting = Box::pin(async move { moved.reached(Phase::Draining).await });
        assert!((&mut waiting).now_or_never().is_none());
        let task = tokio::spawn(waiting);
        tokio::task::yield_now().await; // the task has polled it: another waker than the first
        drain.advance(Phase::Draining);
        timeout(BOUND, task).await.expect("woken").expect("no panic");
    }

    #[tokio::test]
    async fn guards_count_until_they_are_dropped() {
        let drain = Drain::new();
        timeout(BOUND, drain.none_left(Work::Tunnel)).await.expect("none yet");
        let (a, b) = (drain.guard(Work::Tunnel), drain.clone().guard(Work::Tunnel));
        let _other = drain.guard(Work::Request);
        assert_eq!((drain.count(Work::Tunnel), drain.count(Work::Request), drain.count(Work::Connection)), (2, 1, 0));
        let mut none = Box::pin(drain.none_left(Work::Tunnel));
        assert!((&mut none).now_or_never().is_none());
        drop(a);
        assert!((&mut none).now_or_never().is_none());
        drop(b);
        timeout(BOUND, none).await.expect("the last one woke it");
    }
}
