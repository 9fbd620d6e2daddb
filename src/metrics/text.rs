//! Metrics as text: OpenMetrics 1.0, which Prometheus reads. Names end in their unit; a histogram's
//! bounds are seconds.

mod page;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::{Registry, Unit};

use super::cell::Spread;
use super::sums::{Limiter, SiteSums, Sums};
use page::{Family, Page};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that a scrape says.
#[derive(Debug, Default)]
pub struct Scrape {
    /// What the workers counted.
    pub sums: Sums,
    /// How things stand.
    pub state: State,
    /// Endpoints of upstreams.
    pub endpoints: Vec<Endpoint>,
    /// Queues before upstreams.
    pub queues: Vec<Queue>,
    /// Certificates of sites.
    pub certificates: Vec<Certificate>,
}

/// How the process stands now.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Connections that are open.
    pub connections: u64,
    /// Requests in flight.
    pub requests: u64,
    /// Connections closed for lack of room.
    pub refused_connections: u64,
    /// Faults of ours.
    pub panics: u64,
    /// Records that were lost.
    pub lost_records: u64,
    /// Lines of the process's own log that were lost.
    pub lost_lines: u64,
    /// Reloads that succeeded, and those that failed.
    pub reloads: (u64, u64),
    /// Whether the last one succeeded.
    pub is_last_reload_fine: bool,
    /// The generation in force.
    pub generation: u64,
    /// Whether the edge is on its way to its end.
    pub is_draining: bool,
    /// When the process began, in seconds since 1970.
    pub started: f64,
    /// Resident memory, where the system says it.
    pub memory: Option<u64>,
    /// Open descriptors, where the system says it.
    pub descriptors: Option<u64>,
    /// How many there may be.
    pub most_descriptors: u64,
    /// Threads that serve.
    pub workers: u64,
}

/// One endpoint of an upstream, over all workers.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The endpoint's label.
    pub endpoint: Arc<str>,
    /// Whether it took what was last sent there.
    pub is_up: bool,
    /// Requests and tunnels there.
    pub in_flight: u64,
    /// Connections kept for the next request.
    pub idle: u64,
    /// Requests that wait for its return.
    pub held: u64,
    /// Failures by kind.
    pub failures: Vec<(&'static str, u64)>,
}

/// The bound on requests in flight at an upstream, and the queue before it.
#[derive(Clone, Debug)]
pub struct Queue {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// Requests in flight.
    pub in_flight: u64,
    /// How many may be.
    pub size: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Requests that found no place since the start.
    pub refused: u64,
}

/// The certificate of a site.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The site's label.
    pub site: Arc<str>,
    /// `acme`, `local` or `files`.
    pub source: &'static str,
    /// Its end, in seconds since 1970; `None` where there is none.
    pub not_after: Option<f64>,
    /// Whether a person should look at it.
    pub is_alarming: bool,
}

impl Scrape {
    /// The whole text.
    ///
    /// # Errors
    /// Never for a text in memory.
    pub fn into_text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.requests(&mut page)?;
        self.refusals(&mut page)?;
        self.tunnels(&mut page)?;
        self.connections(&mut page)?;
        self.upstreams(&mut page)?;
        self.queues(&mut page)?;
        self.certificates(&mut page)?;
        self.configuration(&mut page)?;
        self.process(&mut page)
    }
}

/// By whom, in the order of the counters.
const BY: [&str; 2] = ["edge", "upstream"];
/// Classes of statuses, in the order of the counters.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Scrape {
    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let routes = &self.sums.routes;
        page.counters("requests", "Requests that have ended, by class of the status and by who answered", |family| {
            for ((site, route), sums) in routes {
                for (class, counts) in CLASSES.iter().zip(&sums.requests) {
                    for (by, count) in BY.iter().zip(counts) {
                        family
                            .add(&[("site", &**site), ("route", &**route), ("class", *class), ("by", *by)], *count)?;
                    }
                }
            }
            Ok(())
        })?;
        for (at, (name, help)) in BODIES.into_iter().enumerate() {
            page.counters_in(name, help, &Unit::Bytes, |family| {
                for ((site, route), sums) in routes {
                    family.add(&[("site", &**site), ("route", &**route)], sums.bytes[at])?;
                }
                Ok(())
            })?;
        }
        self.each(
            "too_many_requests",
            "Answers with 429, by who gave them: a limiter here, or the upstream",
            page,
            |family, site, sums| {
                BY.iter()
                    .zip(sums.too_many)
                    .try_for_each(|(by, count)| family.add(&[("site", site), ("by", *by)], count))
            },
        )?;
        self.each("requests_aborted", "Responses that broke off, by who broke them", page, |family, site, sums| {
            sums.aborted.iter().try_for_each(|(by, count)| family.add(&[("site", site), ("by", *by)], *count))
        })?;
        page.histograms(
            "request_duration",
            "Time of requests: head (its first byte to its last), upstream (sent to response head), total",
            |family| {
                for (site, sums) in &self.sums.sites {
                    for (phase, spread) in [("head", &sums.head), ("upstream", &sums.upstream), ("total", &sums.total)]
                    {
                        family.add(&[("site", &**site), ("phase", phase)], spread)?;
                    }
                }
                Ok(())
            },
        )?;
        page.gauge("requests_open", "Requests in flight", self.state.requests)
    }

    fn refusals(&self, page: &mut Page<'_>) -> fmt::Result {
        self.each("refusals", "Answers of the edge that refuse, by their code", page, |family, site, sums| {
            sums.refusals.iter().try_for_each(|(code, count)| family.add(&[("site", site), ("code", *code)], *count))
        })?;
        let limits = &self.sums.limits;
        page.counters(
            "limit_refusals",
            "Refusals of limiters, by name, by what they limit and by where they stand",
            |family| limits.iter().try_for_each(|(one, sums)| family.add(&limiter(one), sums.refused)),
        )?;
        page.gauges("limit_keys", "Clients that a limiter knows", |family| {
            limits.iter().try_for_each(|(one, sums)| family.add(&limiter(one), sums.held))
        })?;
        page.counters("limit_evictions", "Clients that a limiter has forgotten because others came", |family| {
            limits.iter().try_for_each(|(one, sums)| family.add(&limiter(one), sums.evicted))
        })
    }

    fn tunnels(&self, page: &mut Page<'_>) -> fmt::Result {
        let named = |site: &&str| !site.is_empty();
        self.each("tunnels_opened", "WebSockets that were opened", page, |family, site, sums| {
            Some(site).filter(named).map_or(Ok(()), |site| family.add(&[("site", site)], sums.tunnels))
        })?;
        self.each(
            "tunnels_ended",
            "WebSockets that have ended, by who ended them and how",
            page,
            |family, site, sums| {
                sums.tunnel_ends.iter().try_for_each(|((by, how), count)| {
                    family.add(&[("site", site), ("ended_by", *by), ("how", *how)], *count)
                })
            },
        )?;
        page.gauges("tunnels_open", "WebSockets that are open", |family| {
            let mut sites = self.sums.sites.iter().filter(|(site, _)| !site.is_empty());
            sites.try_for_each(|(site, sums)| family.add(&[("site", &**site)], sums.open_tunnels()))
        })?;
        for (at, (name, help)) in TUNNELLED.into_iter().enumerate() {
            page.counters_in(name, help, &Unit::Bytes, |family| {
                let mut sites = self.sums.sites.iter().filter(|(site, _)| !site.is_empty());
                sites.try_for_each(|(site, sums)| family.add(&[("site", &**site)], sums.tunnel_bytes[at]))
            })?;
        }
        page.histograms("tunnel_duration", "How long WebSockets lasted that have ended", |family| {
            self.each_life(|site, by, (lasted, _)| family.add(&[("site", site), ("ended_by", by)], lasted))
        })?;
        page.histograms(
            "tunnel_silence",
            "Silence before the end of WebSockets: a step at 60 s or 350 s is somebody's idle limit",
            |family| self.each_life(|site, by, (_, idle)| family.add(&[("site", site), ("ended_by", by)], idle)),
        )
    }

    fn each_life(&self, mut write: impl FnMut(&str, &str, &(Spread, Spread)) -> fmt::Result) -> fmt::Result {
        for (site, sums) in &self.sums.sites {
            for (by, lives) in &sums.tunnel_lives {
                write(site, by, lives)?;
            }
        }
        Ok(())
    }

    fn connections(&self, page: &mut Page<'_>) -> fmt::Result {
        let (sums, state) = (&self.sums, &self.state);
        page.gauge(
            "connections_open",
            "Connections that are open, without those that became tunnels",
            state.connections,
        )?;
        page.counters("connections", "Connections that have ended, by address and how", |family| {
            let mut all = sums.connections.iter();
            all.try_for_each(|((listener, how), count)| {
                family.add(&[("listener", &**listener), ("ended", *how)], *count)
            })
        })?;
        page.counter(
            "connections_refused",
            "Connections closed at once: the limit, or no descriptor",
            state.refused_connections,
        )?;
        page.counters("tls_handshakes", "Handshakes that were finished, by what was agreed", |family| {
            let mut all = sums.agreed.iter();
            all.try_for_each(|(agreed, count)| {
                let resumed = if agreed.is_resumed { "yes" } else { "no" };
                let labels = [
                    ("version", agreed.version),
                    ("cipher", agreed.cipher),
                    ("group", agreed.group),
                    ("resumed", resumed),
                ];
                family.add(&labels, *count)
            })
        })?;
        page.counters("tls_handshakes_failed", "Handshakes that failed, by kind", |family| {
            let mut all = sums.handshakes_failed.iter();
            all.try_for_each(|(kind, count)| family.add(&[("kind", *kind)], *count))
        })?;
        page.histogram(
            "tls_handshake_duration",
            "From accept, or the PROXY preface, to the end of the handshake",
            &sums.handshakes,
        )
    }

    fn upstreams(&self, page: &mut Page<'_>) -> fmt::Result {
        let gauges: [EndpointGauge; 4] = [
            ("upstream_up", "1 where the endpoint took what was last sent there", |one| u64::from(one.is_up)),
            ("upstream_in_flight", "Requests and tunnels at the endpoint", |one| one.in_flight),
            ("upstream_idle_connections", "Connections kept for the next request", |one| one.idle),
            ("requests_held", "Requests that wait for the endpoint's return", |one| one.held),
        ];
        for (name, help, value) in gauges {
            page.gauges(name, help, |family| {
                self.endpoints.iter().try_for_each(|one| {
                    family.add(&[("upstream", &*one.upstream), ("endpoint", &*one.endpoint)], value(one))
                })
            })?;
        }
        page.counters("upstream_failures", "Attempts at the endpoint that failed, by how", |family| {
            for one in &self.endpoints {
                for (failure, count) in &one.failures {
                    let labels = [("upstream", &*one.upstream), ("endpoint", &*one.endpoint), ("failure", *failure)];
                    family.add(&labels, *count)?;
                }
            }
            Ok(())
        })
    }

    fn queues(&self, page: &mut Page<'_>) -> fmt::Result {
        let gauges: [QueueNumber; 3] = [
            ("upstream_max_in_flight", "Requests that may be in flight at the upstream", |one| one.size),
            ("upstream_requests_in_flight", "Requests in flight at an upstream that has a bound", |one| one.in_flight),
            ("upstream_queue_length", "Requests that wait until one in flight has ended", |one| one.waiting),
        ];
        for (name, help, value) in gauges {
            page.gauges(name, help, |family| self.each_queue(family, value))?;
        }
        let help = "Requests that found no place at the upstream, or not in time";
        page.counters("upstream_queue_refusals", help, |family| self.each_queue(family, |one| one.refused))
    }

    fn each_queue(&self, family: &mut Family<'_, '_>, value: fn(&Queue) -> u64) -> fmt::Result {
        self.queues.iter().try_for_each(|one| family.add(&[("upstream", &*one.upstream)], value(one)))
    }

    fn certificates(&self, page: &mut Page<'_>) -> fmt::Result {
        page.numbers(
            "certificate_not_after",
            "End of the certificate that is served, in seconds since 1970",
            &Unit::Seconds,
            |family| {
                for one in &self.certificates {
                    if let Some(end) = one.not_after {
                        family.add_number(&[("site", &*one.site), ("source", one.source)], end)?;
                    }
                }
                Ok(())
            },
        )?;
        page.gauges("certificate_alert", "1 where a person should look: missing, made up, or near its end", |family| {
            self.certificates.iter().try_for_each(|one| {
                family.add(&[("site", &*one.site), ("source", one.source)], u64::from(one.is_alarming))
            })
        })
    }

    fn configuration(&self, page: &mut Page<'_>) -> fmt::Result {
        let state = &self.state;
        page.counters("config_reloads", "Reloads since the start, by result", |family| {
            family.add(&[("result", "ok")], state.reloads.0)?;
            family.add(&[("result", "failed")], state.reloads.1)
        })?;
        page.gauge(
            "config_last_reload_ok",
            "0 when the last reload failed and changed nothing",
            u64::from(state.is_last_reload_fine),
        )?;
        page.gauge("config_generation", "The generation of the configuration in force", state.generation)
    }

    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let state = &self.state;
        page.counter(
            "log_records_dropped",
            "Records that were lost: the writer or the disk was too slow",
            state.lost_records,
        )?;
        page.counter("log_lines_dropped", "Lines of the process's log that were lost", state.lost_lines)?;
        page.counter("panics", "Faults of ours, each of which ended one connection or stream", state.panics)?;
        page.gauge("draining", "1 while the edge is on its way to its end", u64::from(state.is_draining))?;
        page.gauge("workers", "Threads that serve", state.workers)?;
        page.number(
            "process_start_time",
            "When the process began, in seconds since 1970",
            &Unit::Seconds,
            state.started,
        )?;
        if let Some(memory) = state.memory {
            page.number("process_resident_memory", "Resident memory", &Unit::Bytes, memory as f64)?;
        }
        if let Some(descriptors) = state.descriptors {
            page.gauge("process_open_fds", "Open descriptors", descriptors)?;
        }
        page.gauge("process_max_fds", "How many descriptors there may be", state.most_descriptors)?;
        page.gauges("build_info", "Always 1; the labels say what runs", |family| {
            family.add(&[("version", env!("CARGO_PKG_VERSION"))], 1)
        })
    }

    /// One counter of every site.
    fn each(
        &self,
        name: &str,
        help: &str,
        page: &mut Page<'_>,
        write: impl Fn(&mut Family<'_, '_>, &str, &SiteSums) -> fmt::Result,
    ) -> fmt::Result {
        page.counters(name, help, |family| {
            self.sums.sites.iter().try_for_each(|(site, sums)| write(family, site, sums))
        })
    }
}

/// The labels of a limiter.
fn limiter(one: &Limiter) -> [(&'static str, &str); 3] {
    [("limit", &one.name), ("kind", one.kind), ("place", &one.place)]
}

/// Name, help, and how it is read.
type EndpointGauge = (&'static str, &'static str, fn(&Endpoint) -> u64);
type QueueNumber = (&'static str, &'static str, fn(&Queue) -> u64);

/// Body bytes: in, out.
const BODIES: [(&str, &str); 2] =
    [("request_body", "Body bytes from clients"), ("response_body", "Body bytes to clients")];
/// Bytes of tunnels: in, out.
const TUNNELLED: [(&str, &str); 2] = [
    ("tunnel_received", "Bytes from clients in WebSockets that have ended"),
    ("tunnel_sent", "Bytes to clients in WebSockets that have ended"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_of_the_configuration_is_escaped() {
        let mut scrape = Scrape::default();
        scrape.sums.sites.entry("a\"b\\c".into()).or_default().refusals.insert("E404-route", 3);
        let text = scrape.into_text().expect("a text in memory");
        assert!(text.contains("tidegate_refusals_total{site=\"a\\\"b\\\\c\",code=\"E404-route\"} 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
