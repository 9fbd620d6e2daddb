//! How many requests of one connection are begun before answers come: few at first, more with each that was taken.
//!
//! A client may send a hundred requests in one packet. If all of them went out at once, everybody else's next request
//! would stand behind them at the endpoint, whether or not the client ever reads what it asked for. So a connection
//! begins like TCP does (RFC 5681 3.1): with a few, and one more for each response that has ended. Who takes what it
//! asks for has the full number after a moment; who takes nothing stays where it began.

use std::cell::Cell;

use tokio::sync::Semaphore;
use tokio::time::{Duration, timeout};

/// Our choice: more than the six connections that browsers open over HTTP/1.1, and few enough that an endpoint has
/// answered them soon.
const FIRST: usize = 8;

/// How long so many that wait let those before them have. Our choice: an endpoint that has not answered by then is not
/// busy but slow, as one that thinks for minutes is, and waits for nobody.
const PATIENCE: Duration = Duration::from_millis(250);

/// The requests of one connection that may be without an answer.
#[derive(Debug)]
pub(super) struct Starts {
    free: Semaphore,
    /// How many there may be now, and ever.
    room: Cell<usize>,
    most: usize,
    waiting: Cell<usize>,
}

/// One request among them.
#[derive(Debug, Default)]
pub(super) struct Start {
    has_room: Cell<bool>,
    is_half_over: Cell<bool>,
}

impl Starts {
    /// Of a connection that never has more than `most` requests at once.
    pub(super) fn new(most: usize) -> Self {
        let room = FIRST.min(most);
        Self { free: Semaphore::new(room), room: Cell::new(room), most, waiting: Cell::new(0) }
    }
}

impl Start {
    /// True when the request may begin at once.
    pub(super) fn is_free(&self, starts: &Starts) -> bool {
        if self.has_room.get() || starts.room.get() >= starts.most {
            return true;
        }
        let Ok(permit) = starts.free.try_acquire() else { return false };
        permit.forget();
        self.has_room.set(true);
        true
    }

    /// Waits until it may begin: behind those before it, and no longer than they may take.
    pub(super) async fn wait(&self, starts: &Starts) {
        if self.is_free(starts) {
            return;
        }
        let waiter = Waiter::new(&starts.waiting);
        let rounds = u32::try_from(1 + waiter.before / FIRST).unwrap_or(u32::MAX);
        // The semaphore is never closed. Who has waited long enough goes without.
        if let Ok(Ok(permit)) = timeout(PATIENCE.saturating_mul(rounds), starts.free.acquire()).await {
            permit.forget();
            self.has_room.set(true);
        }
    }

    /// Its response has begun.
    pub(super) fn answered(&self, starts: &Starts) {
        self.step(starts);
    }

    /// Its response has been handed over whole, or was given up: perhaps before it had begun.
    pub(super) fn ended(&self, starts: &Starts) {
        self.step(starts);
    }

    /// The first one of the two gives its room back, the second one makes room for another request.
    fn step(&self, starts: &Starts) {
        if self.has_room.take() {
            starts.free.add_permits(1);
        }
        if self.is_half_over.replace(true) && starts.room.get() < starts.most {
            starts.room.set(starts.room.get() + 1);
            starts.free.add_permits(1);
        }
    }
}

/// Counts one that waits, also when it is dropped in between.
struct Waiter<'a> {
    waiting: &'a Cell<usize>,
    before: usize,
}

impl<'a> Waiter<'a> {
    fn new(waiting: &'a Cell<usize>) -> Self {
        Self { waiting, before: waiting.replace(waiting.get() + 1) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.set(self.waiting.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;

    /// As many as may begin at once.
    fn begun(starts: &Starts) -> Vec<Start> {
        std::iter::repeat_with(Start::default).take_while(|start| start.is_free(starts)).take(1000).collect()
    }

    #[test]
    fn each_response_that_was_taken_makes_room_for_one_more() {
        let starts = Starts::new(20);
        let mut first = begun(&starts);
        assert_eq!(first.len(), FIRST);
        let [one, two, three] = [0; 3].map(|at| first.swap_remove(at));
        one.answered(&starts);
        let again = begun(&starts);
        assert_eq!(again.len(), 1, "answered, and not taken");
        one.ended(&starts);
        assert_eq!(begun(&starts).len(), 1, "taken");
        two.ended(&starts);
        assert_eq!(begun(&starts).len(), 1, "given up before it was answered");
        three.ended(&starts);
        three.answered(&starts);
        assert_eq!(begun(&starts).len(), 2, "a response without a body ends first");
        for start in std::iter::repeat_with(Start::default).take(10) {
            start.answered(&starts);
            start.ended(&starts);
        }
        assert_eq!(begun(&starts).len(), 1000, "as many as there may ever be: counted elsewhere");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_slow_holds_up_none_for_long() {
        let starts = Starts::new(100);
        let held = begun(&starts);
        let began = Instant::now();
        let waiting: Vec<Start> = std::iter::repeat_with(Start::default).take(40).collect();
        let waits = join_all(waiting.iter().map(|start| async {
            start.wait(&starts).await;
            began.elapsed().as_millis()
        }));
        let waits = waits.await;
        let steps = (0..40).map(|at| 250 * (1 + at / FIRST as u128));
        assert!(waits.iter().zip(steps).all(|(wait, step)| wait.abs_diff(step) <= 1), "{waits:?}");
        assert_eq!(held.len(), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn they_begin_in_order_and_those_that_leave_are_forgotten() {
        let starts = Starts::new(100);
        let held = begun(&starts);
        let [first, second, third] = [Start::default(), Start::default(), Start::default()];
        let mut one = Box::pin(first.wait(&starts));
        let mut two = Box::pin(second.wait(&starts));
        let mut three = Box::pin(third.wait(&starts));
        assert!((&mut one).now_or_never().is_none() && (&mut two).now_or_never().is_none());
        assert!((&mut three).now_or_never().is_none());
        drop(one);
        assert_eq!(starts.waiting.get(), 2);
        held[0].answered(&starts);
        assert!((&mut three).now_or_never().is_none() && (&mut two).now_or_never().is_some());
        held[1].answered(&starts);
        assert!(three.now_or_never().is_some());
    }
}
