//! The status as JSON: a promise to whoever reads it. `tidegate status` is made of it.
//!
//! Numbers are plain, with their unit in the key; times are RFC 3339. "5 minutes" are the last five, or
//! all since the start where that is later. Whom it names and what they do is for this machine only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::facts::{EndpointState, Facts, source_word, upstreams_of};
use crate::acme::alert;
use crate::acme::event::timestamp;
use crate::acme::store::{Ledger, Store};
use crate::drain::{Phase, Work};
use crate::metrics::sums::{LimitSums, Limiter, SiteSums, Sums};
use crate::metrics::text::Queue;
use crate::metrics::tunnels::TunnelFacts;
use crate::metrics::window::SPAN;
use crate::site::policy::{AdminPolicy, CertificateSource};
use crate::site::{Site, SiteTable};
use crate::tls::certs::{CertStore, Standing};
use crate::tls::local_ca;

/// Everything, as it is now.
pub(super) async fn json(facts: &Facts) -> Value {
    let workers = facts.ask_workers(true).await;
    let endpoints = facts.endpoints(&workers);
    let mut tunnels: Vec<TunnelFacts> = workers.into_iter().flat_map(|worker| worker.tunnels).collect();
    tunnels.sort_by_key(|tunnel| tunnel.opened);
    let current = facts.snapshot.keep();
    let certificates = certificates(&current.table, &facts.certs).await;
    let rates = Rates::now(facts);
    let sites: Vec<Value> = current
        .table
        .sites()
        .iter()
        .zip(certificates)
        .map(|(site, certificate)| site_json(site, certificate, &endpoints, &rates))
        .collect();
    let state = facts.state();
    let problems = problems(facts, &endpoints, &sites);
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "source": facts.source,
        "started": timestamp(facts.started),
        "uptime_seconds": facts.uptime().as_secs(),
        "phase": phase_word(facts.drain.phase()),
        "generation": current.number,
        "is_fine": problems.is_empty(),
        "problems": problems,
        "checks": checks(facts, &endpoints, &sites),
        "connections": state.connections,
        "requests": state.requests,
        "tunnels": facts.drain.count(Work::Tunnel),
        "requests_per_minute": rates.per_minute(None),
        "refused_connections": state.refused_connections,
    });
    let more = json!({
        "sites": sites,
        "upstreams": endpoints.iter().map(endpoint_json).collect::<Vec<_>>(),
        "queues": facts.queues().iter().map(queue_json).collect::<Vec<_>>(),
        "limits": limits(&rates),
        "refusals": refusals(&rates),
        "tls": tls(&rates),
        "log": { "dropped_records": state.lost_records, "dropped_lines": state.lost_lines },
        "panics": state.panics,
        "process": {
            "resident_bytes": state.memory,
            "open_descriptors": state.descriptors,
            "most_descriptors": state.most_descriptors,
            "workers": state.workers,
        },
        "health_path": health_path(&current.table.edge.admin),
        "reloads": reloads(facts),
        "open_tunnels": tunnels.iter().map(tunnel_json).collect::<Vec<_>>(),
    });
    if let (Some(status), Value::Object(more)) = (status.as_object_mut(), more) {
        status.extend(more);
    }
    status
}

fn health_path(policy: &AdminPolicy) -> Option<&str> {
    policy.health.as_deref()
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Draining | Phase::CutTunnels | Phase::Stopped => "draining",
    }
}

/// Sums as they are, and as they were.
struct Rates {
    now: Sums,
    minute: (Duration, Arc<Sums>),
    span: (Duration, Arc<Sums>),
}

impl Rates {
    fn now(facts: &Facts) -> Self {
        let minute = facts.window.ago(Duration::from_secs(60));
        Self { now: facts.sums(), minute, span: facts.window.ago(SPAN) }
    }

    /// Requests in the last minute: of a site, or of all.
    fn per_minute(&self, site: Option<&str>) -> u64 {
        let (ago, before) = &self.minute;
        let labels = self.now.sites.keys().filter(|label| site.is_none_or(|site| ***label == *site));
        let count = |sums: &Sums, label: &str| sums.requests_of(label).iter().sum::<u64>();
        let more: u64 = labels.map(|label| count(&self.now, label).saturating_sub(count(before, label))).sum();
        // Less than a minute after the start it is what there was so far.
        let minutes = ago.as_secs_f64().max(60.0) / 60.0;
        (more as f64 / minutes).round() as u64
    }

    /// Counts by a key, over all sites: since the start, and in the last five minutes.
    fn tallied<K: Ord + Clone>(&self, of: impl Fn(&SiteSums) -> &BTreeMap<K, u64>) -> BTreeMap<K, (u64, u64)> {
        let add = |sums: &Sums| {
            let mut all: BTreeMap<K, u64> = BTreeMap::new();
            for (key, count) in sums.sites.values().flat_map(&of) {
                *all.entry(key.clone()).or_default() += count;
            }
            all
        };
        let before = add(&self.span.1);
        let earlier = |key: &K| before.get(key).copied().unwrap_or(0);
        let now = add(&self.now);
        now.into_iter().map(|(key, count)| (key.clone(), (count, count.saturating_sub(earlier(&key))))).collect()
    }
}

fn site_json(site: &Site, certificate: Option<Value>, endpoints: &[EndpointState], rates: &Rates) -> Value {
    let names: Vec<Arc<str>> = upstreams_of(site).iter().map(|upstream| Arc::clone(&upstream.name)).collect();
    let mine = || endpoints.iter().filter(|one| names.contains(&one.upstream));
    let error = mine().find_map(|one| one.error.as_deref());
    // An upstream is up with one endpoint of its own.
    let is_up = names.iter().all(|name| mine().any(|one| one.upstream == *name && one.is_up()));
    let now = rates.now.requests_of(&site.label);
    let before = rates.span.1.requests_of(&site.label);
    let recent: Vec<u64> = now.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
    let none = SiteSums::default();
    let sums = rates.now.sites.get(&site.label).unwrap_or(&none);
    let earlier = rates.span.1.sites.get(&site.label).unwrap_or(&none);
    let waits = sums.upstream.since(&earlier.upstream);
    let quantile = |share| waits.quantile(share).map(millis);
    json!({
        "site": &*site.label,
        "certificate": certificate,
        "upstreams": names.iter().map(|name| &**name).collect::<Vec<_>>(),
        "is_up": is_up,
        "is_known": mine().any(|one| one.is_known),
        "error": error,
        "tunnels": sums.open_tunnels(),
        "requests_per_minute": rates.per_minute(Some(&site.label)),
        "last_5_minutes": {
            "status": classes(&recent),
            "upstream_p50_ms": quantile(0.5),
            "upstream_p99_ms": quantile(0.99),
        },
        "since_start": { "status": classes(&now) },
    })
}

fn classes(counts: &[u64]) -> Value {
    let words = ["1xx", "2xx", "3xx", "4xx", "5xx"];
    Value::Object(words.iter().zip(counts).map(|(word, count)| ((*word).to_owned(), json!(count))).collect())
}

/// Milliseconds with one decimal.
fn millis(wait: Duration) -> f64 {
    (wait.as_secs_f64() * 10_000.0).round() / 10.0
}

/// As people and scripts ask for it (M-26): connected, or why not.
fn endpoint_json(one: &EndpointState) -> Value {
    let failures: Map<String, Value> =
        one.failures.iter().map(|(failure, count)| ((*failure).to_owned(), json!(count))).collect();
    json!({
        "upstream": &*one.upstream,
        "endpoint": &*one.endpoint,
        "connected": one.is_known.then_some(one.is_up()),
        "error": one.error,
        "in_flight": one.in_flight,
        "idle_connections": one.idle,
        "held": one.held,
        "failures": failures,
    })
}

fn queue_json(one: &Queue) -> Value {
    json!({
        "upstream": &*one.upstream,
        "in_flight": one.in_flight,
        "max_in_flight": one.size,
        "waiting": one.waiting,
        "refused": one.refused,
    })
}

fn limits(rates: &Rates) -> Value {
    let before = &rates.span.1.limits;
    let one = |(limiter, sums): (&Limiter, &LimitSums)| {
        let earlier = before.get(limiter).map_or(0, |sums| sums.refused);
        json!({
            "limit": &*limiter.name,
            "kind": limiter.kind,
            "place": &*limiter.place,
            "refused": sums.refused,
            "last_5_minutes": sums.refused.saturating_sub(earlier),
            "keys": sums.held,
            "evicted": sums.evicted,
        })
    };
    rates.now.limits.iter().map(one).collect()
}

fn refusals(rates: &Rates) -> Value {
    let all = rates.tallied(|sums| &sums.refusals);
    all.iter().map(|(code, (all, recent))| json!({ "code": code, "count": all, "last_5_minutes": recent })).collect()
}

/// Handshakes of the last minutes. N-17: its p95 belongs below 300 ms.
fn tls(rates: &Rates) -> Value {
    let took = rates.now.handshakes.since(&rates.span.1.handshakes);
    let failed = |sums: &Sums| sums.handshakes_failed.values().sum::<u64>();
    let agreed: Vec<Value> = rates
        .now
        .agreed
        .iter()
        .map(|(agreed, count)| {
            json!({
                "version": agreed.version, "cipher": agreed.cipher, "group": agreed.group,
                "is_resumed": agreed.is_resumed, "count": count,
            })
        })
        .collect();
    json!({
        "last_5_minutes": {
            "handshakes": took.count(),
            "failed": failed(&rates.now).saturating_sub(failed(&rates.span.1)),
            "p50_ms": took.quantile(0.5).map(millis),
            "p95_ms": took.quantile(0.95).map(millis),
        },
        "handshakes": agreed,
        "failed": rates.now.handshakes_failed,
    })
}

fn reloads(facts: &Facts) -> Value {
    let all = facts.reloads.all();
    let one = |reload: &super::reloads::Reload| {
        json!({
            "at": timestamp(reload.at),
            "is_fine": reload.is_fine,
            "generation": reload.generation,
            "report": reload.report,
        })
    };
    all.iter().map(one).collect()
}

fn tunnel_json(tunnel: &TunnelFacts) -> Value {
    let age = SystemTime::now().duration_since(tunnel.opened).unwrap_or_default();
    json!({
        "id": &*tunnel.id,
        "site": &*tunnel.site,
        "client": tunnel.client,
        "upstream": &*tunnel.upstream,
        "over": tunnel.over,
        "opened": timestamp(tunnel.opened.into()),
        "age_seconds": age.as_secs(),
        "bytes_in": tunnel.bytes.0,
        "bytes_out": tunnel.bytes.1,
        "generation": tunnel.generation,
    })
}

/// The named checks (F-22): each true, or a matter for `problems`.
fn checks(facts: &Facts, endpoints: &[EndpointState], sites: &[Value]) -> Value {
    let mut checks = Map::new();
    checks.insert("serving".into(), json!(facts.drain.phase() == Phase::Serving));
    checks.insert("configuration".into(), json!(facts.reloads.last_failure().is_none()));
    checks.insert("certificates".into(), json!(sites.iter().all(|site| site["certificate"]["is_alarming"] != true)));
    checks.insert("log".into(), json!(facts.log.dropped() == 0));
    for one in endpoints {
        let name = format!("upstream {}", one.upstream);
        let is_up = checks.get(&name).is_some_and(|known| *known == true) || one.is_up();
        checks.insert(name, json!(is_up));
    }
    Value::Object(checks)
}

/// What a person should look at, in sentences.
fn problems(facts: &Facts, endpoints: &[EndpointState], sites: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(reload) = facts.reloads.last_failure() {
        let generation = reload.generation;
        problems.push(format!(
            "the last reload failed ({}): generation {generation} is still in force",
            timestamp(reload.at)
        ));
    }
    for site in sites {
        let certificate = &site["certificate"];
        if certificate["is_alarming"] == true {
            let why = certificate["problem"].as_str().unwrap_or("it ends soon");
            problems.push(format!("the certificate of {}: {why}", site["site"].as_str().unwrap_or_default()));
        }
    }
    let down = endpoints.iter().filter_map(|one| Some(format!("upstream {}: {}", one.upstream, one.error.as_deref()?)));
    problems.extend(down);
    let dropped = facts.log.dropped();
    if dropped > 0 {
        problems.push(format!(
            "{dropped} records were lost since the start: the disk or the reader of the log is too slow"
        ));
    }
    problems
}

/// The certificates of all sites, in their order. Ledgers lie on disk, so not on this thread.
async fn certificates(table: &SiteTable, certs: &Arc<CertStore>) -> Vec<Option<Value>> {
    let (table, certs) = (table.clone(), Arc::clone(certs));
    let count = table.sites().len();
    let read = move || {
        let now = OffsetDateTime::now_utc();
        table.sites().iter().map(|site| certificate(site, &table, &certs, now)).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| vec![None; count])
}

/// What is served for a site, until when, and what happens next. `None` for a site in cleartext.
fn certificate(site: &Site, table: &SiteTable, certs: &CertStore, now: OffsetDateTime) -> Option<Value> {
    let source = &site.tls.as_ref()?.certificate;
    let is_acme = *source == CertificateSource::Acme;
    let ledger = if is_acme { Store::new(&table.edge.storage).ledger(&site.host) } else { Ledger::default() };
    let found = certs.of(&site.host);
    let facts = found.as_ref().map(|one| &one.facts);
    let standing = facts.map(|facts| facts.standing);
    let is_ending = facts.is_some_and(|facts| alert::is_alarming(facts, table.edge.acme.alert_before, now));
    let is_missing = facts.is_none() || standing == Some(Standing::StandIn);
    let renewal = match source {
        CertificateSource::Acme => ledger.next_renewal,
        CertificateSource::Local => facts.map(local_ca::renewal),
        CertificateSource::Files { .. } => None,
    };
    let trouble = ledger.trouble.as_ref();
    let problem = trouble.map(|trouble| trouble.text.clone()).or_else(|| match () {
        () if is_missing => Some("there is none yet".to_owned()),
        () if is_ending => Some("it ends soon and has not been renewed".to_owned()),
        () => None,
    });
    let time = |time: Option<OffsetDateTime>| time.map(timestamp);
    Some(json!({
        "source": source_word(source),
        "issuer": facts.map(|facts| &*facts.issuer),
        "not_after": time(facts.map(|facts| facts.not_after)),
        "seconds_left": facts.map(|facts| (facts.not_after - now).whole_seconds()),
        "standing": standing.map(standing_word),
        "is_alarming": is_missing || is_ending,
        "next_renewal": time(renewal),
        "next_attempt": time(ledger.next_attempt),
        "failures": ledger.failures,
        "stage": ledger.stage,
        "problem": problem,
        "help": trouble.map(|trouble| &trouble.help),
    }))
}

fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Own => "own",
        Standing::Borrowed => "borrowed",
        Standing::StandIn => "stand-in",
    }
}
