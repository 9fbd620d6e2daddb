//! A store of fixed capacity for what is remembered of clients: when it is full, the key used longest ago goes.
//!
//! What goes is forgiven, never held against anybody: a flood of new keys cannot make an honest client's limit
//! tighter, only forget what was counted of others. Keys are numbers: addresses, and keyed hashes of whatever else, so
//! that no header value stays in memory. Shards are locked for some hundred nanoseconds each.

use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use crate::addr::PeerAddr;
use crate::site::access::Guest;

/// Whose value it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u128);

impl Key {
    /// All whose address is not known: they share what one client has. Safe, for nobody can choose to be among them
    /// but by a hop of the operator's own that does not say who asks.
    pub const UNKNOWN: Self = Self(1);
    /// All processes at unix sockets that are no hops. They have no address.
    pub const LOCAL: Self = Self(2);

    /// A client's: its IPv4 address or its IPv6 network of 64 bits, for one customer chooses freely within that (RFC 6177).
    pub fn of_guest(guest: Guest) -> Self {
        match guest {
            Guest::Client(client) => Self::of_ip(client.ip()),
            Guest::Local => Self::LOCAL,
            Guest::Unknown => Self::UNKNOWN,
        }
    }

    /// A peer's; `None` for unix sockets.
    pub fn of_peer(peer: PeerAddr) -> Option<Self> {
        peer.ip().map(Self::of_ip)
    }

    fn of_ip(ip: IpAddr) -> Self {
        // An IPv6 network ends in 64 zero bits, an IPv4 address begins with 95 of them, and the words are below both.
        match ip.to_canonical() {
            IpAddr::V4(address) => Self(1 << 32 | u128::from(u32::from(address))),
            IpAddr::V6(address) => Self(u128::from(address) & (u128::MAX << 64)),
        }
    }
}

/// Makes keys of texts, with a secret of this process: nobody can aim at another one's key.
#[derive(Clone, Debug, Default)]
pub struct TextKeys(RandomState, RandomState);

impl TextKeys {
    /// The key of some texts, in their order.
    pub fn key<'a>(&self, texts: impl Iterator<Item = &'a [u8]>) -> Key {
        let (mut high, mut low) = (self.0.build_hasher(), self.1.build_hasher());
        for text in texts {
            text.hash(&mut high);
            text.hash(&mut low);
        }
        // The lowest bits tell it from every address.
        Key(u128::from(high.finish()) << 64 | u128::from(low.finish()) | 1 << 63)
    }
}

/// How many keys a store holds at least. SECURITY.md 5 of the design notes: 100,000 in at most 16 MiB.
pub const KEYS: usize = 100_000;

/// So that two workers seldom want the same one.
const SHARDS: usize = 16;

/// 16 of these hold 114,688 keys: with 100,000 in all, the fullest shard has some 6,600.
const MOST_IN_SHARD: usize = 7168;

/// Values by key, at most so many, the latest used first.
pub struct Store<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    hasher: RandomState,
    most_in_shard: usize,
    /// So that a request need not look where nothing is.
    held: AtomicUsize,
    evicted: AtomicUsize,
}

impl<V: Copy> Store<V> {
    /// An empty store of the usual capacity. It takes memory as it fills.
    pub fn new() -> Self {
        Self::with_capacity(SHARDS, MOST_IN_SHARD)
    }

    fn with_capacity(shards: usize, most_in_shard: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::default())).collect(),
            hasher: RandomState::new(),
            most_in_shard,
            held: AtomicUsize::new(0),
            evicted: AtomicUsize::new(0),
        }
    }

    /// Shows the value of a key, if it has one, to `change`, and keeps what that leaves there. Either way the key was used.
    pub fn update<T>(&self, key: Key, change: impl FnOnce(&mut Option<V>) -> T) -> T {
        let hash = self.hash(key);
        let mut shard = self.shard(hash);
        let Some(at) = shard.find(hash, key) else {
            let mut value = None;
            let outcome = change(&mut value);
            if let Some(value) = value {
                if shard.entries.len() >= self.most_in_shard {
                    let oldest = shard.oldest;
                    shard.remove(oldest, |key| self.hash(key));
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.held.fetch_add(1, Ordering::Relaxed);
                }
                shard.insert(key, value, |key| self.hash(key));
            }
            return outcome;
        };
        let mut value = Some(shard.entries[at as usize].value);
        let outcome = change(&mut value);
        match value {
            Some(value) => {
                shard.entries[at as usize].value = value;
                shard.use_now(at);
            }
            None => {
                shard.remove(at, |key| self.hash(key));
                self.held.fetch_sub(1, Ordering::Relaxed);
            }
        }
        outcome
    }

    /// Forgets what is over, from the key used longest ago on to the first that is not, and gives memory back.
    pub fn forget(&self, is_over: impl Fn(&V) -> bool) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            while shard.entries.get(shard.oldest as usize).is_some_and(|entry| is_over(&entry.value)) {
                let oldest = shard.oldest;
                shard.remove(oldest, |key| self.hash(key));
                self.held.fetch_sub(1, Ordering::Relaxed);
            }
            shard.shrink(|key| self.hash(key));
        }
    }

    /// Keys that are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Keys that had to go for others.
    pub fn evicted(&self) -> usize {
        self.evicted.load(Ordering::Relaxed)
    }

    fn hash(&self, key: Key) -> u64 {
        self.hasher.hash_one(key.0)
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<V>> {
        // By bits that the index of a shard does not look at. The remainder is below the number of shards.
        lock(&self.shards[((hash >> 32) % self.shards.len() as u64) as usize])
    }
}

impl<V: Copy> Default for Store<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> fmt::Debug for Store<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("held", &self.held).field("evicted", &self.evicted).finish_non_exhaustive()
    }
}

/// A panic while it was locked leaves it whole: each change is made of steps that cannot fail.
fn lock<V>(shard: &Mutex<Shard<V>>) -> MutexGuard<'_, Shard<V>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One part of a store: values in one dense list, linked in the order of their last use.
struct Shard<V> {
    /// Where in the list a key is.
    index: HashTable<u32>,
    entries: Vec<Entry<V>>,
    newest: u32,
    oldest: u32,
}

struct Entry<V> {
    key: Key,
    value: V,
    /// Towards the newest.
    newer: u32,
    /// Towards the oldest.
    older: u32,
}

/// No entry.
const NONE: u32 = u32::MAX;

impl<V> Default for Shard<V> {
    fn default() -> Self {
        Self { index: HashTable::new(), entries: Vec::new(), newest: NONE, oldest: NONE }
    }
}

impl<V> Shard<V> {
    fn find(&self, hash: u64, key: Key) -> Option<u32> {
        self.index.find(hash, |at| self.entries[*at as usize].key == key).copied()
    }

    /// Puts a new key before all others.
    fn insert(&mut self, key: Key, value: V, hash: impl Fn(Key) -> u64) {
        // Shards are far smaller.
        let at = u32::try_from(self.entries.len()).unwrap_or(NONE);
        self.entries.push(Entry { key, value, newer: NONE, older: NONE });
        let entries = &self.entries;
        self.index.insert_unique(hash(key), at, |at| hash(entries[*at as usize].key));
        self.link(at);
    }

    /// Takes a key out; the last of the list takes its place.
    fn remove(&mut self, at: u32, hash: impl Fn(Key) -> u64) {
        self.unlink(at);
        if let Ok(place) = self.index.find_entry(hash(self.entries[at as usize].key), |other| *other == at) {
            place.remove();
        }
        self.entries.swap_remove(at as usize);
        let Some(&Entry { key, newer, older, .. }) = self.entries.get(at as usize) else { return };
        let last = u32::try_from(self.entries.len()).unwrap_or(NONE);
        if let Some(place) = self.index.find_mut(hash(key), |other| *other == last) {
            *place = at;
        }
        self.set_older_of(newer, at);
        self.set_newer_of(older, at);
    }

    /// Puts a key before all others.
    fn use_now(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.link(at);
        }
    }

    fn link(&mut self, at: u32) {
        let before = self.newest;
        let entry = &mut self.entries[at as usize];
        (entry.newer, entry.older) = (NONE, before);
        self.set_newer_of(before, at);
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { newer, older, .. } = self.entries[at as usize];
        self.set_older_of(newer, older);
        self.set_newer_of(older, newer);
    }

    /// `NONE` stands for the place before the newest.
    fn set_older_of(&mut self, at: u32, older: u32) {
        match self.entries.get_mut(at as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    /// `NONE` stands for the place after the oldest.
    fn set_newer_of(&mut self, at: u32, newer: u32) {
        match self.entries.get_mut(at as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Gives memory back that an attack has left, but not the little that comes and goes.
    fn shrink(&mut self, hash: impl Fn(Key) -> u64) {
        let wanted = (self.entries.len() * 2).max(64);
        if self.entries.capacity() > wanted * 2 {
            self.entries.shrink_to(wanted);
            let entries = &self.entries;
            self.index.shrink_to(wanted, |at| hash(entries[*at as usize].key));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::ClientAddr;

    fn key(text: &str) -> Key {
        Key::of_guest(Guest::Client(ClientAddr::new(text.parse().expect("an address"))))
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        assert_eq!(key("2001:db8:7:1::1"), key("2001:db8:7:1:ffff:ffff:ffff:ffff"), "one /64");
        assert_ne!(key("2001:db8:7:1::1"), key("2001:db8:7:2::1"), "another");
        assert_eq!(key("::ffff:198.51.100.7"), key("198.51.100.7"), "mapped addresses are IPv4");
        assert_ne!(key("198.51.100.7"), key("198.51.100.8"));
        let all = [key("::1"), key("0.0.0.0"), key("0.0.0.1"), key("0.0.0.2"), Key::UNKNOWN, Key::LOCAL];
        assert!((0..all.len()).all(|a| (0..a).all(|b| all[a] != all[b])), "{all:?}");
    }

    #[test]
    fn a_text_has_one_key_in_one_process() {
        let (keys, others) = (TextKeys::default(), TextKeys::default());
        let of = |keys: &TextKeys, texts: &[&str]| keys.key(texts.iter().map(|text| text.as_bytes()));
        assert_eq!(of(&keys, &["a"]), of(&keys, &["a"]));
        assert_ne!(of(&keys, &["a"]), of(&others, &["a"]), "a secret of its own");
        assert_ne!(of(&keys, &["ab"]), of(&keys, &["a", "b"]), "two fields are not one");
    }

    #[test]
    fn the_key_used_longest_ago_goes() {
        let store = Store::with_capacity(1, 3);
        let has = |number: u128| store.update(Key(number), |value: &mut Option<u32>| value.is_some());
        let put = |number: u128| store.update(Key(number), |value| *value = Some(0));
        [1, 2, 3].into_iter().for_each(put);
        put(1); // used again
        put(4);
        assert!(has(1) && !has(2) && has(3) && has(4), "2 was used longest ago");
        assert_eq!((store.held(), store.evicted()), (3, 1));
        has(3);
        put(5); // 1 is the oldest now: it was only looked at before 3 and 4
        assert!(!has(1));
    }

    #[test]
    fn what_is_over_is_forgotten_and_its_memory_given_back() {
        let store = Store::new();
        for number in 0..50_000_u128 {
            store.update(Key(number), |value| *value = Some(number));
        }
        store.forget(|value| *value < 49_990);
        assert_eq!(store.held(), 10);
        let capacity: usize = store.shards.iter().map(|shard| lock(shard).entries.capacity()).sum();
        assert!(capacity <= SHARDS * 128, "{capacity}");
        store.update(Key(49_995), |value| *value = None);
        assert_eq!((store.held(), store.evicted()), (9, 0));
    }

    /// SECURITY.md 5: 100,000 keys, none evicted, and never more than the fixed number.
    #[test]
    fn a_store_holds_what_it_promises_and_no_more() {
        let store = Store::new();
        for number in 0..KEYS as u128 {
            store.update(Key(number << 64), |value| *value = Some(0_u64));
        }
        assert_eq!((store.held(), store.evicted()), (KEYS, 0));
        for number in KEYS as u128..4 * KEYS as u128 {
            store.update(Key(number << 64), |value| *value = Some(0));
        }
        assert_eq!(store.held(), SHARDS * MOST_IN_SHARD);
        // All that is in memory: lists that have doubled, and an index with its tags.
        let bytes = |shard: &Mutex<Shard<u64>>| {
            let shard = lock(shard);
            shard.entries.capacity() * size_of::<Entry<u64>>() + shard.index.allocation_size()
        };
        let bytes: usize = store.shards.iter().map(bytes).sum();
        assert!(bytes <= 8 << 20, "{bytes}");
    }

    proptest! {
        #[test]
        fn it_is_a_list_in_the_order_of_use(steps in prop::collection::vec((0_u8..4, 0_u128..12), 0..200)) {
            let store = Store::with_capacity(1, 5);
            let mut model: Vec<(u128, u8)> = Vec::new();
            for (what, number) in steps {
                let before = model.iter().position(|(other, _)| *other == number).map(|at| model.remove(at).1);
                let seen = store.update(Key(number), |value| {
                    let seen = *value;
                    if what < 3 { *value = Some(what) } else { *value = None }
                    seen
                });
                prop_assert_eq!(seen, before);
                if what < 3 {
                    if before.is_none() && model.len() == 5 {
                        model.remove(0);
                    }
                    model.push((number, what));
                }
                prop_assert_eq!(store.held(), model.len());
            }
            let shard = lock(&store.shards[0]);
            let (mut at, mut order) = (shard.oldest, Vec::new());
            while let Some(entry) = shard.entries.get(at as usize) {
                order.push((entry.key.0, entry.value));
                at = entry.newer;
            }
            prop_assert_eq!(order, model);
            prop_assert_eq!(shard.index.len(), shard.entries.len());
            for (at, entry) in (0..).zip(&shard.entries) {
                prop_assert_eq!(shard.find(store.hash(entry.key), entry.key), Some(at));
            }
        }
    }
}
