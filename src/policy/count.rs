//! Counts of what is open now: of each client and in all. A place is held until it is dropped.
//!
//! There is an entry for each client with something open and for nobody else, so a count is bounded by what it counts,
//! and by the bound of the process on connections and tunnels. Nothing is evicted: that would forget what is open.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::store::Key;

/// How much is open.
#[derive(Debug, Default)]
pub struct Tally {
    clients: Mutex<HashMap<Key, u32>>,
    total: AtomicUsize,
    refused: AtomicU64,
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of one client.
    Client(NonZeroU32),
    /// That of all together.
    Total(NonZeroU32),
}

/// One place. Dropped, it is free again.
#[derive(Debug)]
#[must_use = "the place is taken only as long as this lives"]
pub struct Hold {
    tally: Arc<Tally>,
    key: Option<Key>,
}

impl Tally {
    /// Takes a place. Without a key nobody's own count grows.
    ///
    /// # Errors
    /// When a bound is reached.
    pub fn enter(
        self: &Arc<Self>,
        key: Option<Key>,
        per_client: Option<NonZeroU32>,
        total: Option<NonZeroU32>,
    ) -> Result<Hold, Full> {
        // Counted first: two that come at once must not both see the last place.
        let before = self.total.fetch_add(1, Ordering::Relaxed);
        if let Some(most) = total.filter(|most| before >= most.get() as usize) {
            return Err(self.turn_away(Full::Total(most)));
        }
        if let Some(key) = key {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            let open = clients.entry(key).or_insert(0);
            if let Some(most) = per_client.filter(|most| *open >= most.get()) {
                drop(clients);
                return Err(self.turn_away(Full::Client(most)));
            }
            *open += 1;
        }
        Ok(Hold { tally: Arc::clone(self), key })
    }

    fn turn_away(&self, full: Full) -> Full {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
        full
    }

    /// How much is open in all.
    pub fn open(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// How often somebody was turned away.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many clients have something open.
    pub fn held(&self) -> usize {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.tally.total.fetch_sub(1, Ordering::Relaxed);
        let Some(key) = self.key else { return };
        let mut clients = self.tally.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = clients.get_mut(&key) {
            *open -= 1;
            if *open == 0 {
                clients.remove(&key);
                // What a flood of clients took comes back, but not the little that comes and goes.
                if clients.capacity() > 256 && clients.len() < clients.capacity() / 8 {
                    let wanted = clients.len() * 2;
                    clients.shrink_to(wanted);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::access::Guest;

    #[test]
    fn places_are_counted_until_they_are_dropped() {
        let tally = Arc::new(Tally::default());
        let (two, three) = (NonZeroU32::new(2), NonZeroU32::new(3));
        let enter = |key| tally.enter(Some(key), two, three);
        let (a, b) = (Key::of_guest(Guest::Local), Key::of_guest(Guest::Unknown));
        let first = enter(a).expect("a place");
        let _second = enter(a).expect("a place");
        assert_eq!(enter(a).err(), two.map(Full::Client));
        let _third = enter(b).expect("another client's");
        assert_eq!(enter(b).err(), three.map(Full::Total));
        drop(first);
        let again = enter(a).expect("free again");
        assert_eq!((tally.open(), tally.held(), tally.refused()), (3, 2, 2));
        drop(again);
        drop(tally.enter(None, two, three).expect("nobody's"));
        assert_eq!((tally.open(), tally.held()), (2, 2));
    }

    #[test]
    fn a_count_gives_its_memory_back() {
        let tally = Arc::new(Tally::default());
        let key = |number: u32| {
            let address = std::net::Ipv4Addr::from(number);
            Key::of_guest(Guest::Client(crate::addr::ClientAddr::new(address.into())))
        };
        let holds: Vec<_> = (0..10_000).map(|number| tally.enter(Some(key(number)), None, None)).collect();
        assert_eq!(tally.held(), 10_000);
        drop(holds);
        assert_eq!((tally.open(), tally.held()), (0, 0));
        assert!(tally.clients.lock().expect("no panic").capacity() <= 512);
    }
}
