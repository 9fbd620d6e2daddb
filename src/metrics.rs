//! Metrics: what the edge counts. Written to by the stories and never asked by them.
//!
//! Each worker has a sheet of its own for each site, route and listener, found by a pointer: counting
//! takes no lock, allocates nothing and makes no text. A scrape adds the sheets up (`sums`) and
//! writes them as OpenMetrics (`text`). Which series exist is up to the configuration and our own
//! tables; nothing that a client sends makes a new one.

pub mod cell;
pub mod sheet;
pub mod sums;
pub mod text;
pub mod tunnels;
pub mod window;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::site::route::Route;
use crate::site::{Role, Site, SiteTable};
use sheet::{Agreed, ListenerSheet, RouteSheet, SiteSheet, TlsSheet};
use tunnels::Tunnels;

/// What the whole process counts. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Shared>);

/// See `Metrics`.
#[derive(Debug, Default)]
struct Shared {
    workers: Mutex<Vec<Arc<Sheets>>>,
    is_timed: AtomicBool,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

/// All sheets of one worker. The lists change with the configuration only.
#[derive(Debug, Default)]
struct Sheets {
    routes: Mutex<Vec<Arc<RouteSheet>>>,
    sites: Mutex<Vec<Arc<SiteSheet>>>,
    listeners: Mutex<Vec<Arc<ListenerSheet>>>,
    tls: TlsSheet,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a worker counts with.
    pub fn worker(&self) -> Meters {
        let sheets = Arc::new(Sheets::default());
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&sheets));
        Meters::new(self.clone(), sheets)
    }

    /// Says whether somebody can read the metrics: clocks are looked at only then.
    pub fn set_timed(&self, is_timed: bool) {
        self.0.is_timed.store(is_timed, Ordering::Relaxed);
    }

    /// Counts a reload.
    pub fn reloaded(&self, is_fine: bool) {
        let count = if is_fine { &self.0.reloads } else { &self.0.failed_reloads };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Reloads that succeeded, and those that failed.
    pub fn reloads(&self) -> (u64, u64) {
        (self.0.reloads.load(Ordering::Relaxed), self.0.failed_reloads.load(Ordering::Relaxed))
    }

    /// The sheets of all workers.
    fn sheets(&self) -> Vec<Arc<Sheets>> {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The status that the client saw.
    pub status: u16,
    /// Whether an endpoint answered.
    pub is_by_upstream: bool,
    /// Our stable code, when we refused.
    pub code: Option<&'static str>,
    /// Who ended the response before its end.
    pub aborted: Option<&'static str>,
    /// How long the head took.
    pub head: Duration,
    /// From sending upstream to the response head.
    pub upstream: Option<Duration>,
    /// In all; `None` when nobody looked at the clock.
    pub total: Option<Duration>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
}

/// One tunnel that has ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedTunnel {
    /// `client`, `upstream` or `edge`.
    pub ended_by: &'static str,
    /// `close`, `fin`, `reset`, `idle` or `drain`.
    pub how: &'static str,
    /// From the beginning to the end.
    pub lasted: Duration,
    /// From the last byte to the end.
    pub idle: Duration,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
}

/// What one worker counts with. Sheets are found by the address of what they are for, which is
/// held as long as the sheet is, so that no other thing can take that address.
#[derive(Debug)]
pub struct Meters {
    metrics: Metrics,
    sheets: Arc<Sheets>,
    /// Tunnels that are open now.
    pub tunnels: Tunnels,
    routes: RefCell<Found<Route, RouteSheet>>,
    sites: RefCell<Found<Site, RouteSheet>>,
    listeners: RefCell<Found<Role, ListenerSheet>>,
    nowhere: Arc<RouteSheet>,
}

impl Meters {
    fn new(metrics: Metrics, sheets: Arc<Sheets>) -> Self {
        let site = Arc::new(SiteSheet::new("".into()));
        let nowhere = Arc::new(RouteSheet::new(Arc::clone(&site), ""));
        lock(&sheets.sites).push(site);
        lock(&sheets.routes).push(Arc::clone(&nowhere));
        Self {
            metrics,
            sheets,
            tunnels: Tunnels::default(),
            routes: RefCell::default(),
            sites: RefCell::default(),
            listeners: RefCell::default(),
            nowhere,
        }
    }

    /// Whether times are wanted.
    pub fn is_timed(&self) -> bool {
        self.metrics.0.is_timed.load(Ordering::Relaxed)
    }

    /// Counts a request.
    pub fn request(&self, site: Option<&Arc<Site>>, route: Option<&Arc<Route>>, ended: &Ended) {
        match (site, route) {
            (Some(site), Some(route)) => {
                let make = || self.make_route(site, &route.condition.prefix);
                self.routes.borrow_mut().with(route, make, |sheet| count(sheet, ended));
            }
            (Some(site), None) => {
                self.sites.borrow_mut().with(site, || self.make_route(site, ""), |sheet| count(sheet, ended));
            }
            (None, _) => count(&self.nowhere, ended),
        }
    }

    /// Counts an answer to what never became a request.
    pub fn refused_early(&self, code: &'static str) {
        self.nowhere.site.refusals.of(&code).add(1);
    }

    /// The sheet of a site, for what outlives its configuration.
    pub fn site(&self, site: Option<&Arc<Site>>) -> Arc<SiteSheet> {
        let Some(site) = site else { return Arc::clone(&self.nowhere.site) };
        self.sites.borrow_mut().with(site, || self.make_route(site, ""), |sheet| Arc::clone(&sheet.site))
    }

    /// Counts the end of a connection.
    pub fn connection(&self, role: &Arc<Role>, ended: &'static str) {
        let make = || {
            let address: Box<str> = role.address.to_string().into();
            find_or_push(
                &self.sheets.listeners,
                |known| known.address == address,
                || ListenerSheet { address: address.clone(), ended: Default::default() },
            )
        };
        self.listeners.borrow_mut().with(role, make, |sheet| sheet.ended.of(&ended).add(1));
    }

    /// Counts a finished handshake.
    pub fn handshake(&self, agreed: &Agreed, took: Duration) {
        self.sheets.tls.agreed.of(agreed).add(1);
        self.sheets.tls.took.observe(took);
    }

    /// Counts a handshake that failed.
    pub fn handshake_failed(&self, kind: &'static str) {
        self.sheets.tls.failed.of(&kind).add(1);
    }

    /// Follows a change of the configuration: its series are there before anything is counted in
    /// them, and those of what is gone are gone.
    pub fn follow(&self, table: &SiteTable) {
        self.routes.borrow_mut().clear();
        self.sites.borrow_mut().clear();
        self.listeners.borrow_mut().clear();
        let site_of = |label: &str| table.sites().iter().find(|site| *site.label == *label);
        lock(&self.sheets.sites).retain(|sheet| sheet.label.is_empty() || site_of(&sheet.label).is_some());
        lock(&self.sheets.routes).retain(|sheet| {
            let has = |site: &Arc<Site>| site.routes.iter().any(|route| route.condition.prefix == sheet.prefix);
            sheet.prefix.is_empty() && sheet.site.label.is_empty() || site_of(&sheet.site.label).is_some_and(has)
        });
        for site in table.sites() {
            self.sites.borrow_mut().with(site, || self.make_route(site, ""), |_| ());
            for route in site.routes.iter() {
                let make = || self.make_route(site, &route.condition.prefix);
                self.routes.borrow_mut().with(route, make, |_| ());
            }
        }
    }

    /// Finds or makes the sheet of a site and a prefix: routes that differ only in their conditions share it.
    fn make_route(&self, site: &Site, prefix: &str) -> Arc<RouteSheet> {
        let of_site = find_or_push(
            &self.sheets.sites,
            |known| known.label == site.label,
            || SiteSheet::new(Arc::clone(&site.label)),
        );
        find_or_push(
            &self.sheets.routes,
            |known| *known.prefix == *prefix && Arc::ptr_eq(&known.site, &of_site),
            || RouteSheet::new(Arc::clone(&of_site), prefix),
        )
    }
}

/// Counts a request in the sheet of its route and of its site.
fn count(sheet: &RouteSheet, ended: &Ended) {
    let by = usize::from(ended.is_by_upstream);
    let class = usize::from((ended.status / 100).clamp(1, 5)) - 1;
    sheet.requests[class][by].add(1);
    sheet.bytes[0].add(ended.bytes_in);
    sheet.bytes[1].add(ended.bytes_out);
    let site = &*sheet.site;
    if let Some(code) = ended.code {
        site.refusals.of(&code).add(1);
    }
    if ended.status == 429 {
        site.too_many[by].add(1);
    }
    if let Some(by) = ended.aborted {
        site.aborted.of(&by).add(1);
    }
    if let Some(total) = ended.total {
        site.head.observe(ended.head);
        site.total.observe(total);
    }
    if let Some(upstream) = ended.upstream {
        site.upstream.observe(upstream);
    }
}

impl SiteSheet {
    /// Counts the end of a tunnel.
    pub fn tunnel(&self, ended: &EndedTunnel) {
        self.tunnel_ends.of(&(ended.ended_by, ended.how)).add(1);
        let lives = self.tunnel_lives.of(&ended.ended_by);
        lives.lasted.observe(ended.lasted);
        lives.idle.observe(ended.idle);
        self.tunnel_bytes[0].add(ended.bytes_in);
        self.tunnel_bytes[1].add(ended.bytes_out);
    }
}

/// Sheets by the address of what they are for, in the order of those addresses.
#[derive(Debug)]
struct Found<K, S>(Vec<(Arc<K>, Arc<S>)>);

impl<K, S> Default for Found<K, S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, S> Found<K, S> {
    /// Works with the sheet of a key, which is made when there is none.
    fn with<R>(&mut self, key: &Arc<K>, make: impl FnOnce() -> Arc<S>, work: impl FnOnce(&S) -> R) -> R {
        let address = |key: &Arc<K>| Arc::as_ptr(key).addr();
        match self.0.binary_search_by_key(&address(key), |(known, _)| address(known)) {
            Ok(at) => work(&self.0[at].1),
            Err(at) => {
                let sheet = make();
                let done = work(&sheet);
                self.0.insert(at, (Arc::clone(key), sheet));
                done
            }
        }
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// What is in a list, or a new one that is put there.
fn find_or_push<T>(list: &Mutex<Vec<Arc<T>>>, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<T> {
    let mut list = lock(list);
    if let Some(known) = list.iter().find(|known| is(known)) {
        return Arc::clone(known);
    }
    let new = Arc::new(make());
    list.push(Arc::clone(&new));
    new
}

fn lock<T>(list: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
