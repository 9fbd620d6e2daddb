//! The live state of all limits: each rule of the site table finds its own by its identity, so that it outlives reloads.
//!
//! Made at the first use, dropped when no table needs it any more. Shared by all workers: one lock-free look-up for each
//! rule that a request meets, and one short lock of a shard. `tidegate status` and metrics read from here.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use tokio::time::timeout;

use super::count::{Full, Hold, Tally};
use super::lockout::Lockout;
use super::rate::Limiter;
use super::store::{Key, TextKeys};
use crate::addr::PeerAddr;
use crate::refusal::{Excess, Limited, Quota, Refusal};
use crate::site::SiteTable;
use crate::site::access::Guest;
use crate::site::limit::{CountRule, LockoutRule, Per, RateRule, RuleId, RuleName};
use crate::snapshot::Snapshot;

/// All of it. One for the process.
#[derive(Debug, Default)]
pub struct Limits {
    limiters: Shelf<Limiter>,
    lockouts: Shelf<Lockout>,
    tallies: Shelf<Named>,
    texts: TextKeys,
    /// Connections of each client, whatever they are for.
    crowd: Arc<Tally>,
    /// Most of one client there; 0 for no bound.
    most_of_one: AtomicU32,
    sites: Mutex<HashMap<Arc<str>, Arc<Open>>>,
}

/// A count, and what it is called.
#[derive(Debug)]
struct Named {
    name: RuleName,
    tally: Arc<Tally>,
}

/// What is open of one site.
#[derive(Debug, Default)]
pub struct Open {
    tunnels: Arc<Tally>,
    connections: Arc<Tally>,
}

/// What is known of one limiter, for metrics and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Where it was written.
    pub place: Arc<str>,
    /// The key: `requests`, `handshakes`, `tunnels`, `connections`, `failed_auth`.
    pub kind: &'static str,
    /// How often it refused.
    pub refused: u64,
    /// How many keys it holds.
    pub held: usize,
    /// How many it has forgotten because others came.
    pub evicted: usize,
}

/// What is open of one site, for metrics and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFacts {
    /// The site.
    pub site: Arc<str>,
    /// Its connections, as far as they are known to be its own: by SNI, or by their first request.
    pub connections: usize,
    /// Its tunnels.
    pub tunnels: usize,
}

/// Who asks, for the budgets.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    /// The client.
    pub guest: Guest,
    /// The site's label.
    pub site: &'a str,
    /// The request's fields.
    pub fields: &'a HeaderMap,
}

/// Live state by the identity of its rule. Read by all workers, changed by hardly anybody.
#[derive(Debug)]
struct Shelf<T>(ArcSwap<HashMap<RuleId, Arc<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<T> Shelf<T> {
    /// Asks the state of a rule; `make` makes it at the first use.
    fn ask<R>(&self, id: RuleId, make: impl Fn() -> T, question: impl FnOnce(&T) -> R) -> R {
        if let Some(found) = self.0.load().get(&id) {
            return question(found);
        }
        let made = Arc::new(make());
        self.0.rcu(|map| {
            let mut map = HashMap::clone(map);
            // Another worker's may have come in between: there is one.
            map.entry(id).or_insert_with(|| Arc::clone(&made));
            map
        });
        let map = self.0.load();
        question(map.get(&id).unwrap_or(&made))
    }

    /// Drops what no rule needs.
    fn retain(&self, is_needed: impl Fn(RuleId, &T) -> bool) {
        self.0.rcu(|map| {
            let kept = map.iter().filter(|(id, state)| is_needed(**id, state));
            kept.map(|(id, state)| (*id, Arc::clone(state))).collect::<HashMap<_, _>>()
        });
    }

    fn all(&self) -> Vec<Arc<T>> {
        self.0.load().values().cloned().collect()
    }
}

impl Limits {
    /// Takes one from a budget of a rate.
    ///
    /// # Errors
    /// When it is used up.
    pub fn take(&self, rule: &RateRule, what: Excess, asks: &Asks<'_>) -> Result<(), Refusal> {
        let key = self.key(&rule.per, asks);
        self.limiters.ask(rule.name.id, || Limiter::new(rule), |limiter| limiter.take(key)).map_err(|wait| {
            let quota = Quota { count: rule.count.get(), seconds: rule.period.as_secs() };
            limited(&rule.name, what, seconds(wait), Some(quota))
        })
    }

    fn key(&self, per: &Per, asks: &Asks<'_>) -> Key {
        match per {
            Per::Client => Key::of_guest(asks.guest),
            Per::Site => self.texts.key(std::iter::once(asks.site.as_bytes())),
            Per::Header(name) => {
                // All fields of the name, so that a second one does not hide the first from what comes behind.
                let mut values = asks.fields.get_all(name).iter().map(|value| value.as_bytes()).peekable();
                if values.peek().is_none_or(|value| value.is_empty()) {
                    return Key::of_guest(asks.guest);
                }
                self.texts.key(values)
            }
        }
    }

    /// Lets a client in that is not locked out.
    ///
    /// # Errors
    /// When it is.
    pub fn admit(&self, rule: &LockoutRule, guest: Guest) -> Result<(), Refusal> {
        let key = Key::of_guest(guest);
        let admitted = self.lockouts.ask(rule.name.id, || Lockout::new(rule), |lockout| lockout.admit(key));
        admitted.map_err(|wait| limited(&rule.name, Excess::Failures, seconds(wait), None))
    }

    /// A client has failed to log in.
    pub fn failed(&self, rule: &LockoutRule, guest: Guest) {
        let key = Key::of_guest(guest);
        let is_out = self.lockouts.ask(rule.name.id, || Lockout::new(rule), |lockout| lockout.failed(key));
        tracing::debug!(event = "failed_auth", ?guest, limit = &*rule.name.name, is_out, "a login failed");
    }

    /// What a client did was no failure after all.
    pub fn absolve(&self, rule: &LockoutRule, guest: Guest) {
        let key = Key::of_guest(guest);
        self.lockouts.ask(rule.name.id, || Lockout::new(rule), |lockout| lockout.absolve(key));
    }

    /// Takes a place among the tunnels of a rule.
    ///
    /// # Errors
    /// When there is none.
    pub fn enter_tunnel(&self, rule: &CountRule, guest: Guest) -> Result<Hold, Refusal> {
        self.enter(rule, Some(Key::of_guest(guest))).map_err(|full| match full {
            Full::Client(_) => limited(&rule.name, Excess::Tunnels, RETRY_TUNNEL, None),
            Full::Total(_) => limited(&rule.name, Excess::AllTunnels, RETRY_TUNNEL, None),
        })
    }

    /// Takes a place among the connections of a rule. `key` is the client's, if its peer is one.
    ///
    /// # Errors
    /// When there is none.
    pub fn enter_connection(&self, rule: &CountRule, key: Option<Key>) -> Result<Hold, Refusal> {
        self.enter(rule, key).map_err(|full| match full {
            Full::Client(_) => limited(&rule.name, Excess::Connections, RETRY_TUNNEL, None),
            Full::Total(_) => limited(&rule.name, Excess::AllConnections, RETRY_TUNNEL, None),
        })
    }

    fn enter(&self, rule: &CountRule, key: Option<Key>) -> Result<Hold, Full> {
        let make = || Named { name: rule.name.clone(), tally: Arc::default() };
        self.tallies.ask(rule.name.id, make, |named| named.tally.enter(key, rule.per_client, rule.total))
    }

    /// Takes a place for a client's connection, before anything is known of what it is for.
    ///
    /// # Errors
    /// When the client has as many as one may have: how many that are.
    pub fn enter_crowd(&self, key: Key) -> Result<Hold, NonZeroU32> {
        let most = NonZeroU32::new(self.most_of_one.load(Ordering::Relaxed));
        self.crowd.enter(Some(key), most, None).map_err(|full| match full {
            Full::Client(most) | Full::Total(most) => most,
        })
    }

    /// Sets how many connections one client may have, whatever they are for. What is open stays.
    pub fn bound_crowd(&self, most: usize) {
        self.most_of_one.store(u32::try_from(most).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
    }

    /// How many connections one client may have; 0 for any number.
    pub fn most_of_one(&self) -> u32 {
        self.most_of_one.load(Ordering::Relaxed)
    }

    /// Counts a tunnel of a site until it is dropped.
    pub fn count_tunnel(&self, site: &Arc<str>) -> Option<Hold> {
        self.open(site).tunnels.enter(None, None, None).ok()
    }

    /// Counts a connection of a site until it is dropped.
    pub fn count_connection(&self, site: &Arc<str>) -> Option<Hold> {
        self.open(site).connections.enter(None, None, None).ok()
    }

    fn open(&self, site: &Arc<str>) -> Arc<Open> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = sites.get(site) {
            return Arc::clone(open);
        }
        Arc::clone(sites.entry(Arc::clone(site)).or_default())
    }

    /// Drops what a table has no rule for. What is open is counted to its end all the same.
    pub fn retain(&self, table: &SiteTable) {
        let routes = || table.sites().iter().flat_map(|site| site.routes.iter());
        let rules = || routes().filter_map(|route| route.limiters.as_deref());
        let rates = rules().flat_map(|rules| rules.requests.iter().chain(&rules.handshakes));
        let rates: HashSet<_> = rates.map(|rule| rule.name.id).collect();
        let lockouts: HashSet<_> = rules().filter_map(|rules| Some(rules.failed_auth.as_ref()?.name.id)).collect();
        let tunnels = rules().filter_map(|rules| rules.tunnels.as_ref());
        let counts = tunnels.chain(table.sites().iter().filter_map(|site| site.connections.as_ref()));
        let counts: HashSet<_> = counts.map(|rule| rule.name.id).collect();
        self.limiters.retain(|id, _| rates.contains(&id));
        self.lockouts.retain(|id, _| lockouts.contains(&id));
        // One that comes back with the next reload would otherwise begin at 0, beside what is open.
        self.tallies.retain(|id, named| counts.contains(&id) || named.tally.open() > 0);
        let labels: HashSet<&str> = table.sites().iter().map(|site| &*site.label).collect();
        let is_open = |open: &Open| open.tunnels.open() + open.connections.open() > 0;
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        sites.retain(|label, open| labels.contains(&**label) || is_open(open));
    }

    /// Forgets what is over.
    fn forget(&self) {
        self.limiters.all().iter().for_each(|limiter| limiter.forget());
        self.lockouts.all().iter().for_each(|lockout| lockout.forget());
    }

    /// What is known of each limiter, in the order of kinds and names. The bound of the process is `process`.
    pub fn facts(&self) -> Vec<LimitFacts> {
        let fact = |name: &RuleName, refused, held, evicted| {
            let RuleName { name, place, kind, .. } = name.clone();
            LimitFacts { name, place, kind, refused, held, evicted }
        };
        let crowd = LimitFacts {
            name: "process".into(),
            place: "[process]".into(),
            kind: "connections",
            refused: self.crowd.refused(),
            held: self.crowd.held(),
            evicted: 0,
        };
        let mut facts = vec![crowd];
        facts.extend(self.limiters.all().iter().map(|l| fact(l.name(), l.refused(), l.held(), l.evicted())));
        facts.extend(self.lockouts.all().iter().map(|l| fact(l.name(), l.refused(), l.held(), l.evicted())));
        facts.extend(self.tallies.all().iter().map(|n| fact(&n.name, n.tally.refused(), n.tally.held(), 0)));
        facts.sort_by(|a, b| (a.kind, &a.name, &a.place).cmp(&(b.kind, &b.name, &b.place)));
        facts
    }

    /// What is open of each site, by label.
    pub fn open_facts(&self) -> Vec<OpenFacts> {
        let sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts: Vec<OpenFacts> = sites
            .iter()
            .map(|(site, open)| OpenFacts {
                site: Arc::clone(site),
                connections: open.connections.open(),
                tunnels: open.tunnels.open(),
            })
            .collect();
        facts.sort_by(|a, b| a.site.cmp(&b.site));
        facts
    }
}

/// When a client is told to ask for a tunnel or connection again. 30 s, our choice: nobody knows when one ends, and
/// clients that follow it do not knock all the time.
const RETRY_TUNNEL: u32 = 30;

fn limited(name: &RuleName, what: Excess, retry_after: u32, quota: Option<Quota>) -> Refusal {
    let cause = format!("limit \"{}\" ({}): {}", name.name, name.place, name.terms).into();
    Refusal::Limited(Box::new(Limited { what, name: Arc::clone(&name.name), cause, retry_after, quota }))
}

/// Whole seconds, rounded up: who comes back a moment too early is refused again.
fn seconds(wait: Duration) -> u32 {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX).max(1)
}

/// The key of a peer for the bounds on connections: not of hops, which bring many clients, nor of this machine, where
/// tunnels and other proxies bring them.
pub fn key_of_connection(table: &SiteTable, peer: PeerAddr) -> Option<Key> {
    let is_client = !peer.ip()?.is_loopback() && !table.edge.trust.proxies.has_peer(peer);
    if is_client { Key::of_peer(peer) } else { None }
}

/// Keeps the live state small, for ever: forgets what is over, and what a reload has made useless.
pub async fn tidy(limits: Arc<Limits>, snapshot: Arc<Snapshot>) {
    // 5 s, our choice: memory that an attack has taken comes back soon, and a quiet process hardly wakes.
    const EVERY: Duration = Duration::from_secs(5);
    let mut changes = snapshot.changes();
    loop {
        // Either cause is the same work. A request of before a reload may have made a state anew, so it is looked at again.
        let _ = timeout(EVERY, changes.changed()).await;
        limits.forget();
        limits.retain(&snapshot.current().table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile_text;

    fn table(text: &str) -> SiteTable {
        compile_text("test", text).map_err(|report| report.to_text(false)).expect("no faults").table
    }

    const FILE: &str = "[limits.api]\nrequests = { rate = \"1/h\" }\nfailed_auth = { max = 1 }\n\
        [sites.\"a.test\"]\nrespond = { body = \"ok\" }\nlimits = \"api\"\n\
        [sites.\"b.test\"]\nrespond = { body = \"ok\" }\nlimits = { tunnels = { total = 1 }, connections = { total = 1 } }\n";

    fn rules(table: &SiteTable, host: &str) -> crate::site::limit::Limiters {
        let site = table.find(host).expect("a site").site;
        let route = site.routes.iter().next().expect("a route");
        (**route.limiters.as_ref().expect("limits")).clone()
    }

    /// What `tidegate status` and metrics show, and that a reload drops only what no rule needs.
    #[tokio::test]
    async fn facts_are_by_limiter_and_outlive_reloads() {
        let (limits, first) = (Limits::default(), table(FILE));
        let (api, other) = (rules(&first, "a.test"), rules(&first, "b.test"));
        let fields = HeaderMap::new();
        let asks = Asks { guest: Guest::Local, site: "a.test", fields: &fields };
        let take = |rules: &crate::site::limit::Limiters| {
            limits.take(rules.requests.as_ref().expect("a rate"), Excess::Requests, &asks)
        };
        assert_eq!(take(&api), Ok(()));
        let refusal = take(&api).expect_err("one an hour");
        assert_eq!((refusal.code(), refusal.limit()), ("E429-rate", Some("api")));
        limits.failed(api.failed_auth.as_ref().expect("a lockout"), Guest::Unknown);
        let place = limits.enter_tunnel(other.tunnels.as_ref().expect("a count"), Guest::Local).expect("a place");
        let site = Arc::from("b.test");
        let counted = limits.count_tunnel(&site);
        let seen = |limits: &Limits| {
            let fact = |f: LimitFacts| (f.kind, f.name.to_string(), f.place.to_string(), f.refused, f.held);
            limits.facts().into_iter().map(fact).collect::<Vec<_>>()
        };
        let of =
            |kind, name: &str, place: &str, refused, held| (kind, name.to_owned(), place.to_owned(), refused, held);
        let process = of("connections", "process", "[process]", 0, 0);
        let all = [
            process.clone(),
            of("failed_auth", "api", "[limits.api]", 0, 1),
            of("requests", "api", "[limits.api]", 1, 1),
            of("tunnels", "tunnels", "site \"b.test\"", 0, 1),
        ];
        assert_eq!(seen(&limits), all);
        assert_eq!(limits.open_facts(), [OpenFacts { site, connections: 0, tunnels: 1 }]);

        let again = table(&FILE.replace("body = \"ok\"", "body = \"other\""));
        limits.retain(&again);
        assert_eq!(seen(&limits), all, "the same rules");
        assert!(take(&rules(&again, "a.test")).is_err());
        // What is open is counted to its end, even if no rule is left.
        let none = table("[sites.\"a.test\"]\nrespond = { body = \"ok\" }\n");
        limits.retain(&none);
        assert_eq!(seen(&limits), [process.clone(), all[3].clone()]);
        drop((place, counted));
        limits.retain(&none);
        assert_eq!((seen(&limits), limits.open_facts()), (vec![process], vec![]));
    }

    #[test]
    fn a_time_to_come_back_is_whole_seconds() {
        for (millis, expected) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(seconds(Duration::from_millis(millis)), expected, "{millis}");
        }
    }
}
