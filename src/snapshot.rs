//! The snapshot: the site table in force and its generation. Replace it, wait for a change.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::site::SiteTable;

/// A site table and the number of the load that brought it.
#[derive(Debug)]
pub struct Generation {
    /// 1 at start, one more with each reload that succeeded.
    pub number: u64,
    /// What is in force.
    pub table: SiteTable,
}

/// The current generation, shared by everything that reads configuration.
#[derive(Debug)]
pub struct Snapshot {
    current: ArcSwap<Generation>,
    changed: watch::Sender<u64>,
}

impl Snapshot {
    /// The first generation.
    pub fn new(table: SiteTable) -> Self {
        Self { current: ArcSwap::from_pointee(Generation { number: 1, table }), changed: watch::Sender::new(1) }
    }

    /// What is in force now: a cheap guard for short use.
    pub fn current(&self) -> Guard<Arc<Generation>> {
        self.current.load()
    }

    /// What is in force now, to keep.
    pub fn keep(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Puts a table in force and returns its number. Called by one task only (`server`).
    pub fn replace(&self, table: SiteTable) -> u64 {
        let number = self.current.load().number + 1;
        self.current.store(Arc::new(Generation { number, table }));
        self.changed.send_replace(number);
        number
    }

    /// Tells the number of each new generation.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
