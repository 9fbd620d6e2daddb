//! The bound on requests in flight at an upstream, and the queue before it: first come, first served, for the whole
//! process.
//!
//! A place is taken before the upstream is asked and given back with the last byte of its response. Tunnels are not
//! counted once they stand: they live for days, and would leave no place for requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::site::upstream::Bound;

/// The places of one upstream.
#[derive(Debug)]
pub struct Gate {
    places: Semaphore,
    size: AtomicUsize,
    /// Places to be taken away when they come free: the bound was lowered while they were in use.
    debt: AtomicUsize,
    waiting: AtomicUsize,
    refused: AtomicU64,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Gate>);

/// How full a gate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateReading {
    /// Requests in flight.
    pub in_flight: usize,
    /// How many may be.
    pub size: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that found no place since the start.
    pub refused: u64,
}

impl Gate {
    /// A gate with so many places.
    pub fn new(size: usize) -> Self {
        Self {
            places: Semaphore::new(size),
            size: AtomicUsize::new(size),
            debt: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes a place, at once or after a while in the queue.
    ///
    /// # Errors
    /// When the queue is full, or the wait too long: in words.
    pub async fn enter(self: &Arc<Self>, bound: &Bound) -> Result<Place, Box<str>> {
        // The semaphore is fair: while somebody waits, nothing is free here.
        if let Ok(permit) = self.places.try_acquire() {
            permit.forget();
            return Ok(Place(Arc::clone(self)));
        }
        let entered = self.wait(bound).await;
        if entered.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    async fn wait(self: &Arc<Self>, bound: &Bound) -> Result<Place, Box<str>> {
        let Bound { in_flight, queue, patience } = *bound;
        let waiter = Waiter::new(self);
        if waiter.before >= queue {
            return Err(format!("{in_flight} requests are in flight and {} wait", waiter.before).into());
        }
        match timeout(patience, self.places.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(Place(Arc::clone(self)))
            }
            // Nobody closes it.
            Ok(Err(_)) | Err(_) => {
                let seconds = patience.as_secs_f32();
                Err(format!("none of {in_flight} requests in flight has ended within {seconds} s").into())
            }
        }
    }

    /// Another number of places from now on. What is in flight stays.
    pub fn resize(&self, size: usize) {
        let before = self.size.swap(size, Ordering::Relaxed);
        if size > before {
            // What was still to be taken away need not be.
            let more = size - before;
            let owed =
                self.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |debt| Some(debt.saturating_sub(more)));
            self.places.add_permits(more - owed.unwrap_or(0).min(more));
        } else if size < before {
            let less = before - size;
            let taken = self.places.forget_permits(less);
            self.debt.fetch_add(less - taken, Ordering::Relaxed);
        }
    }

    /// How full it is.
    pub fn read(&self) -> GateReading {
        let size = self.size.load(Ordering::Relaxed);
        let debt = self.debt.load(Ordering::Relaxed);
        GateReading {
            in_flight: (size + debt).saturating_sub(self.places.available_permits()),
            size,
            waiting: self.waiting.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self(gate) = self;
        let is_owed = gate.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |debt| debt.checked_sub(1)).is_ok();
        if !is_owed {
            gate.places.add_permits(1);
        }
    }
}

/// Counts one that waits, also when it is dropped in between.
struct Waiter<'a> {
    gate: &'a Gate,
    /// How many waited before it.
    before: usize,
}

impl<'a> Waiter<'a> {
    fn new(gate: &'a Gate) -> Self {
        Self { gate, before: gate.waiting.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.gate.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const BOUND: Bound = Bound { in_flight: 2, queue: 2, patience: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn those_beyond_the_bound_wait_in_order_and_those_beyond_the_queue_do_not() {
        let gate = Arc::new(Gate::new(2));
        let (first, second) = (gate.enter(&BOUND).await.expect("free"), gate.enter(&BOUND).await.expect("free"));
        let (mut third, mut fourth) = (Box::pin(gate.enter(&BOUND)), Box::pin(gate.enter(&BOUND)));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        let refused = gate.enter(&BOUND).await.expect_err("the queue is full");
        assert_eq!(&*refused, "2 requests are in flight and 2 wait");
        assert_eq!(gate.read(), GateReading { in_flight: 2, size: 2, waiting: 2, refused: 1 });
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "it is not its turn");
        let third = third.as_mut().now_or_never().expect("its turn").expect("a place");
        drop(fourth);
        drop((second, third));
        assert_eq!(gate.read(), GateReading { in_flight: 0, size: 2, waiting: 0, refused: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_patience() {
        let gate = Arc::new(Gate::new(1));
        let _place = gate.enter(&BOUND).await.expect("free");
        let why = gate.enter(&BOUND).await.expect_err("nobody leaves");
        assert!(why.ends_with("within 5 s"), "{why}");
        let at_once = gate.enter(&Bound { queue: 0, ..BOUND }).await.expect_err("no queue");
        assert!(at_once.ends_with("and 0 wait"), "{at_once}");
    }

    #[tokio::test(start_paused = true)]
    async fn another_bound_holds_as_places_come_free() {
        let gate = Arc::new(Gate::new(3));
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(gate.enter(&BOUND).await.expect("free"));
        }
        gate.resize(1);
        assert_eq!((gate.read().in_flight, gate.read().size), (3, 1));
        drop(places.pop());
        drop(places.pop());
        assert!(gate.enter(&Bound { queue: 0, ..BOUND }).await.is_err(), "one is in flight, and may be");
        gate.resize(2);
        let another = gate.enter(&BOUND).await.expect("room for two");
        drop((places, another));
        assert_eq!(gate.read(), GateReading { in_flight: 0, size: 2, waiting: 0, refused: 1 });
        // Lowered and raised again before anything came free.
        let two = (gate.enter(&BOUND).await.expect("free"), gate.enter(&BOUND).await.expect("free"));
        gate.resize(1);
        gate.resize(2);
        drop(two);
        assert_eq!(gate.places.available_permits(), 2);
    }
}
