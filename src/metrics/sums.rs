//! The sheets of all workers added up: plain values, sorted by their labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cell::{Counter, Histogram, Spread, Tally};
use super::sheet::{Agreed, RouteSheet, SiteSheet};
use super::{Metrics, Sheets, lock};

/// Everything that was counted until now.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// By site; the one without a name is for what belongs to no site.
    pub sites: BTreeMap<Arc<str>, SiteSums>,
    /// By site and prefix.
    pub routes: BTreeMap<(Arc<str>, Box<str>), RouteSums>,
    /// Connections that have ended, by address and how.
    pub connections: BTreeMap<(Box<str>, &'static str), u64>,
    /// Handshakes that were finished.
    pub agreed: BTreeMap<Agreed, u64>,
    /// Handshakes that failed, by kind.
    pub handshakes_failed: BTreeMap<&'static str, u64>,
    /// How long handshakes took.
    pub handshakes: Spread,
    /// Limiters, whose counts are their own.
    pub limits: BTreeMap<Limiter, LimitSums>,
}

/// What names a limiter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limiter {
    /// Its name.
    pub name: Arc<str>,
    /// What it limits: `requests`, `tunnels` and so on.
    pub kind: &'static str,
    /// Where it was written.
    pub place: Arc<str>,
}

/// What is known of a limiter.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitSums {
    /// How often it refused.
    pub refused: u64,
    /// How many clients it knows.
    pub held: u64,
    /// How many it has forgotten because others came.
    pub evicted: u64,
}

/// One site.
#[derive(Clone, Debug, Default)]
pub struct SiteSums {
    /// By code.
    pub refusals: BTreeMap<&'static str, u64>,
    /// By who ended the response.
    pub aborted: BTreeMap<&'static str, u64>,
    /// 429: of the edge, of the endpoint.
    pub too_many: [u64; 2],
    /// Times of heads.
    pub head: Spread,
    /// Times of endpoints.
    pub upstream: Spread,
    /// Times of whole requests.
    pub total: Spread,
    /// Tunnels that were opened.
    pub tunnels: u64,
    /// Tunnels that have ended, by who and how.
    pub tunnel_ends: BTreeMap<(&'static str, &'static str), u64>,
    /// How long those lasted and were silent at last, by who ended them.
    pub tunnel_lives: BTreeMap<&'static str, (Spread, Spread)>,
    /// Bytes of ended tunnels.
    pub tunnel_bytes: [u64; 2],
}

/// One route.
#[derive(Clone, Debug, Default)]
pub struct RouteSums {
    /// By class, each by the edge and by the endpoint.
    pub requests: [[u64; 2]; 5],
    /// Body bytes: in, out.
    pub bytes: [u64; 2],
}

impl Metrics {
    /// Adds up what all workers have counted.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for sheets in self.sheets() {
            sums.add(&sheets);
        }
        sums
    }
}

impl Sums {
    fn add(&mut self, sheets: &Sheets) {
        for sheet in lock(&sheets.sites).iter() {
            self.sites.entry(Arc::clone(&sheet.label)).or_default().add(sheet);
        }
        for sheet in lock(&sheets.routes).iter() {
            let key = (Arc::clone(&sheet.site.label), sheet.prefix.clone());
            self.routes.entry(key).or_default().add(sheet);
        }
        for sheet in lock(&sheets.listeners).iter() {
            for (how, count) in sheet.ended.iter() {
                *self.connections.entry((sheet.address.clone(), how)).or_default() += count.value();
            }
        }
        add_tally(&mut self.agreed, &sheets.tls.agreed);
        add_tally(&mut self.handshakes_failed, &sheets.tls.failed);
        add_spread(&mut self.handshakes, &sheets.tls.took);
    }

    /// Requests of a site in all, by class.
    pub fn requests_of(&self, site: &str) -> [u64; 5] {
        let mut classes = [0; 5];
        let first = (Arc::from(site), Box::from(""));
        for (_, route) in self.routes.range(first..).take_while(|((label, _), _)| **label == *site) {
            for (sum, by) in classes.iter_mut().zip(&route.requests) {
                *sum += by.iter().sum::<u64>();
            }
        }
        classes
    }
}

impl SiteSums {
    fn add(&mut self, sheet: &SiteSheet) {
        add_tally(&mut self.refusals, &sheet.refusals);
        add_tally(&mut self.aborted, &sheet.aborted);
        add_counters(&mut self.too_many, &sheet.too_many);
        add_spread(&mut self.head, &sheet.head);
        add_spread(&mut self.upstream, &sheet.upstream);
        add_spread(&mut self.total, &sheet.total);
        self.tunnels += sheet.tunnels.value();
        add_tally(&mut self.tunnel_ends, &sheet.tunnel_ends);
        for (by, lives) in sheet.tunnel_lives.iter() {
            let (lasted, idle) = self.tunnel_lives.entry(by).or_default();
            add_spread(lasted, &lives.lasted);
            add_spread(idle, &lives.idle);
        }
        add_counters(&mut self.tunnel_bytes, &sheet.tunnel_bytes);
    }

    /// Tunnels that are open.
    pub fn open_tunnels(&self) -> u64 {
        self.tunnels.saturating_sub(self.tunnel_ends.values().sum())
    }
}

impl RouteSums {
    fn add(&mut self, sheet: &RouteSheet) {
        for (sum, counters) in self.requests.iter_mut().zip(&sheet.requests) {
            add_counters(sum, counters);
        }
        add_counters(&mut self.bytes, &sheet.bytes);
    }
}

fn add_counters<const N: usize>(sums: &mut [u64; N], counters: &[Counter; N]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.value();
    }
}

fn add_tally<K: Clone + Ord>(sums: &mut BTreeMap<K, u64>, tally: &Tally<K>) {
    for (key, count) in tally.iter() {
        *sums.entry(key.clone()).or_default() += count.value();
    }
}

fn add_spread<const N: usize>(sum: &mut Spread, histogram: &Histogram<N>) {
    sum.add(&histogram.spread());
}
