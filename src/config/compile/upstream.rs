//! `[upstreams]` and single upstreams: servers, TLS towards them, who uses them.

use std::sync::Arc;
use std::time::Duration;

use super::text::{self, Fault, Target};
use super::{Compiler, defined_twice, list, period, timeout};
use crate::config::file;
use crate::config::read::{At, nearest, quoted};
use crate::config::report::{Code, Diagnostic};
use crate::config::values::Map;
use crate::site::upstream::{Balance, Bound, ClientIdentity, Endpoint, EndpointAddr, EndpointTls, Probe, Upstream};

/// Idle connections are kept this long; below Node's 5 s.
const KEEP_ALIVE: u64 = 4;

/// Idle connections that each worker keeps.
const MAX_IDLE: usize = 64;

/// Node's own limit, and so the gateway's.
const GATEWAY_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// All named upstreams, and the upstreams that sites made so far.
pub(super) struct Upstreams<'f> {
    defined: Vec<Defined<'f>>,
    /// Routes with equal upstreams share one, so that its load is counted in one place.
    made: Vec<(String, Arc<Upstream>)>,
}

/// What the users of an upstream say of it that says nothing of its own.
pub(super) struct Inherited {
    /// How long requests wait while nothing answers.
    pub(super) hold: Duration,
    /// How its servers are checked.
    pub(super) probe: Option<Arc<Probe>>,
    /// True with preset `openclaw`.
    pub(super) is_gateway: bool,
}

impl Upstreams<'_> {
    /// The upstream of this key, which is made when it is new.
    fn shared(&mut self, key: &str, new: Upstream) -> Arc<Upstream> {
        let same = |(made, upstream): &&(String, Arc<Upstream>)| {
            made == key && upstream.hold == new.hold && upstream.probe == new.probe
        };
        if let Some((_, made)) = self.made.iter().find(same) {
            return Arc::clone(made);
        }
        let made = Arc::new(new);
        self.made.push((key.to_owned(), Arc::clone(&made)));
        made
    }
}

/// One of `[upstreams]`.
struct Defined<'f> {
    name: &'f At<String>,
    /// `None` when it had faults.
    endpoints: Option<Vec<Arc<Endpoint>>>,
    balance: Balance,
    /// Its own, if it says one.
    hold: Option<Duration>,
    /// Its own, if it says one; inside, `None` when it says that there are none.
    probe: Option<Option<Arc<Probe>>>,
    bound: Option<Bound>,
    keep_alive: Option<&'f At<crate::config::values::Period>>,
    is_used: bool,
}

impl<'f> Upstreams<'f> {
    /// Names that nothing uses.
    pub(super) fn unused(&self) -> impl Iterator<Item = &'f At<String>> {
        self.defined.iter().filter(|defined| !defined.is_used).map(|defined| defined.name)
    }
}

impl Compiler<'_> {
    /// `[upstreams]`.
    pub(super) fn upstreams<'f>(&mut self, map: Option<&'f Map<file::Upstream>>) -> Upstreams<'f> {
        let mut defined: Vec<Defined<'f>> = Vec::new();
        for (name, at) in map.map_or(&[][..], |map| &map.entries) {
            if let Some(first) = defined.iter().find(|first| first.name.value == name.value) {
                self.push(defined_twice("upstream", first.name, name));
                continue;
            }
            if !matches!(text::upstream(&name.value), Ok(Target::Name(_))) {
                let message = format!("\"{}\" cannot be the name of an upstream", name.value);
                self.push(
                    Diagnostic::at(Code::Upstream, &name.span, message)
                        .label("it reads like an address")
                        .help("use letters, digits, \"-\" and \"_\""),
                );
                continue;
            }
            let table = &at.value;
            self.reason(
                table.hold.as_ref().map(|at| at.with(at.value.0)),
                "hold",
                &format!("upstream \"{}\"", name.value),
                &[&table.why],
            );
            let endpoints = self.endpoints(name, table);
            let balance = match table.balance.as_ref().map(|at| at.value) {
                None | Some(file::Balance::LeastConn) => Balance::LeastConn,
                Some(file::Balance::RoundRobin) => Balance::RoundRobin,
                Some(file::Balance::HashClient) => Balance::HashClient,
            };
            let hold = table.hold.as_ref().map(|at| at.value.0);
            let place = format!("upstream \"{}\"", name.value);
            let probe = table.health.as_ref().map(|at| self.probe(&at.value, &place));
            let bound = self.bound(table, &place);
            defined.push(Defined {
                name,
                endpoints,
                balance,
                hold,
                probe,
                bound,
                keep_alive: table.keep_alive.as_ref(),
                is_used: false,
            });
        }
        Upstreams { defined, made: Vec::new() }
    }

    /// `health`. `None` when nothing is checked, or when it has faults.
    pub(super) fn probe(&mut self, health: &file::Health, place: &str) -> Option<Arc<Probe>> {
        let place = format!("\"health\" of {place}");
        let target = match &health.path {
            Some(path) => {
                let is_target = path.value.starts_with('/') && path.value.bytes().all(|byte| byte.is_ascii_graphic());
                let parsed = path.value.parse::<http::uri::PathAndQuery>().ok().filter(|_| is_target);
                let parsed = parsed.filter(|parsed| parsed.as_str() == path.value).ok_or_else(|| Fault {
                    what: "not a path".to_owned(),
                    help: Some(
                        "write a path that begins with \"/\", percent-encoded, such as \"/startupz\"".to_owned(),
                    ),
                });
                self.take(parsed, Code::HealthPath, path, &place)?.as_str().into()
            }
            None => Arc::from("/"),
        };
        let host = match &health.host {
            Some(host) => {
                let parsed = crate::addr::split_authority(&host.value)
                    .and_then(|(name, _)| crate::addr::HostName::from_config(name))
                    .map_err(|error| Fault { what: error.to_string(), help: None });
                self.take(parsed, Code::Host, host, &place)?;
                Some(Arc::from(host.value.as_str()))
            }
            None => None,
        };
        let every = period(health.every.as_ref(), 5);
        let probe = Probe {
            target,
            host,
            every,
            timeout: timeout(health.timeout.as_ref(), Duration::from_secs(5)),
            failures: health.failures.as_ref().map_or(3, |at| at.value.0),
            successes: health.successes.as_ref().map_or(1, |at| at.value.0),
            is_websocket: health.ws.as_ref().is_some_and(|at| at.value),
        };
        (!every.is_zero()).then(|| Arc::new(probe))
    }

    /// `max_in_flight` and `queue`.
    fn bound(&mut self, table: &file::Upstream, place: &str) -> Option<Bound> {
        let queue = table.queue.as_ref().map(|at| &at.value);
        let Some(in_flight) = &table.max_in_flight else {
            if let Some(at) = table.queue.as_ref().filter(|_| !table.broken.contains(&"max_in_flight")) {
                let message = format!("{place} has \"queue\" without \"max_in_flight\"");
                self.push(
                    Diagnostic::at(Code::NoEffect, &at.key, message)
                        .label("nothing ever waits")
                        .help("add max_in_flight = 200, or remove \"queue\""),
                );
            }
            return None;
        };
        Some(Bound {
            in_flight: in_flight.value.0,
            queue: queue.and_then(|queue| queue.size.as_ref()).map_or(100, |at| at.value.0),
            patience: timeout(queue.and_then(|queue| queue.timeout.as_ref()), Duration::from_secs(5)),
        })
    }

    /// The servers of a named upstream.
    fn endpoints(&mut self, name: &At<String>, table: &file::Upstream) -> Option<Vec<Arc<Endpoint>>> {
        let place = format!("upstream \"{}\"", name.value);
        let servers = table.servers.as_ref()?;
        if servers.value.is_empty() && !table.broken.contains(&"servers") {
            self.push(
                Diagnostic::at(Code::Empty, &servers.span, format!("{place} has no servers"))
                    .help("write servers = [\"127.0.0.1:18789\"]"),
            );
        }
        let material = match &table.tls {
            Some(tls) => Some(self.upstream_tls(tls, &place)?),
            None => None,
        };
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        let mut is_whole = true;
        for entry in list(Some(servers)) {
            let parsed = text::upstream(&entry.value).and_then(|target| match target {
                Target::Name(_) => Err(Fault {
                    what: "a server needs its port or scheme".to_owned(),
                    help: Some(format!("write \"{0}:18789\" with its port, or \"https://{0}\"", entry.value)),
                }),
                Target::Server { address, tls, name } => Ok((address, tls, name)),
            });
            let Some((address, tls, host)) =
                self.take(parsed, Code::Upstream, entry, &format!("\"servers\" of {place}"))
            else {
                is_whole = false;
                continue;
            };
            let tls = match (&material, tls) {
                (Some(_), Some(false)) => {
                    let message = format!("\"{}\" is cleartext, but {place} has \"tls\"", entry.value);
                    self.push(
                        Diagnostic::at(Code::Conflict, &entry.span, message).help("write https://, or remove \"tls\""),
                    );
                    is_whole = false;
                    continue;
                }
                (Some(material), _) => {
                    let Some(server_name) = material.server_name.clone().or(host) else {
                        let message =
                            format!("{place} has no name to check the certificate of \"{}\" against", entry.value);
                        self.push(
                            Diagnostic::at(Code::Missing, &entry.span, message)
                                .help("add server_name = \"…\" to its \"tls\""),
                        );
                        is_whole = false;
                        continue;
                    };
                    Some(EndpointTls { server_name, ..material.tls.clone() })
                }
                (None, Some(true)) => host.map(|server_name| EndpointTls { server_name, ca: None, client: None }),
                (None, _) => None,
            };
            self.warn_of_cleartext(&address, tls.is_some(), entry);
            let keep_alive = period(table.keep_alive.as_ref(), KEEP_ALIVE);
            let max_idle = table.max_idle.as_ref().map_or(MAX_IDLE, |at| at.value.0);
            let endpoint = Endpoint::new(address, tls, keep_alive, max_idle);
            if endpoints.iter().any(|other| other.address == endpoint.address) {
                self.push(
                    Diagnostic::at(Code::DuplicateKey, &entry.span, format!("\"{}\" is twice in {place}", entry.value))
                        .help("remove one of the two"),
                );
                is_whole = false;
            }
            endpoints.push(Arc::new(endpoint));
        }
        (is_whole && !endpoints.is_empty()).then_some(endpoints)
    }

    /// Reads the files of `tls`.
    fn upstream_tls(&mut self, at: &At<file::UpstreamTls>, place: &str) -> Option<Material> {
        let tls = &at.value;
        let place = format!("\"tls\" of {place}");
        let ca = match &tls.ca {
            Some(ca) => Some(Arc::from(self.certificates(ca, &place)?)),
            None => None,
        };
        let server_name = match &tls.server_name {
            Some(name) => {
                let parsed = crate::addr::HostName::from_config(&name.value)
                    .map_err(|error| Fault { what: error.to_string(), help: None });
                Some(Arc::from(self.take(parsed, Code::Host, name, &place)?.as_str()))
            }
            None => None,
        };
        let client = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                let (chain, key_pem) = (self.certificates(cert, &place), self.private_key(key, &place));
                Some(Arc::new(ClientIdentity { chain: chain?, key_pem: key_pem? }))
            }
            (None, None) => None,
            (cert, key) => {
                let (has, lacks) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
                let span = cert.as_ref().map(|at| &at.key).or(key.as_ref().map(|at| &at.key)).unwrap_or(&at.span);
                if !tls.broken.contains(&lacks) {
                    let message = format!("{place} has \"{has}\" without \"{lacks}\"");
                    self.push(
                        Diagnostic::at(Code::Conflict, span, message)
                            .help(format!("add \"{lacks}\", or remove \"{has}\"")),
                    );
                }
                return None;
            }
        };
        let tls = EndpointTls { server_name: Arc::from(""), ca, client };
        Some(Material { server_name, tls })
    }

    /// The upstream of a site or route. What a named upstream says itself wins over what it inherits.
    pub(super) fn upstream(
        &mut self,
        at: &At<String>,
        inherited: Inherited,
        place: &str,
        upstreams: &mut Upstreams<'_>,
    ) -> Option<Arc<Upstream>> {
        let target = self.take(text::upstream(&at.value), Code::Upstream, at, &format!("\"upstream\" of {place}"))?;
        let (address, tls, host) = match target {
            Target::Name(name) => return self.named_upstream(at, &name, inherited, place, upstreams),
            Target::Server { address, tls, name } => (address, tls, name),
        };
        let key = format!("{address} {tls:?}");
        let tls = if tls == Some(true) {
            host.map(|server_name| EndpointTls { server_name, ca: None, client: None })
        } else {
            None
        };
        if upstreams.made.iter().all(|(made, _)| *made != key) {
            self.warn_of_cleartext(&address, tls.is_some(), at);
        }
        let endpoint = Endpoint::new(address, tls, Duration::from_secs(KEEP_ALIVE), MAX_IDLE);
        let new = Upstream {
            name: Arc::clone(&endpoint.label),
            endpoints: vec![Arc::new(endpoint)],
            balance: Balance::LeastConn,
            hold: inherited.hold,
            probe: inherited.probe,
            bound: None,
        };
        Some(upstreams.shared(&key, new))
    }

    /// An upstream by its name.
    fn named_upstream(
        &mut self,
        at: &At<String>,
        name: &str,
        inherited: Inherited,
        place: &str,
        upstreams: &mut Upstreams<'_>,
    ) -> Option<Arc<Upstream>> {
        let Some(defined) = upstreams.defined.iter_mut().find(|defined| defined.name.value == name) else {
            let names: Vec<&str> = upstreams.defined.iter().map(|defined| defined.name.value.as_str()).collect();
            let message = format!("{place} sends to upstream \"{name}\", which is not defined");
            let mut diagnostic = Diagnostic::at(Code::Undefined, &at.span, message);
            if let Some(near) = nearest(name, names.iter().copied()) {
                diagnostic = diagnostic.help(format!("did you mean \"{near}\"?"));
            } else if names.is_empty() {
                diagnostic = diagnostic
                    .help(format!("add [upstreams.{name}], or write \"{name}:18789\" with its port if it is a host"));
            } else {
                diagnostic = diagnostic.help(format!("add [upstreams.{name}], or use one of: {}", quoted(names)));
            }
            self.push(diagnostic);
            return None;
        };
        defined.is_used = true;
        let endpoints = defined.endpoints.clone()?;
        let Inherited { hold, probe, is_gateway } = inherited;
        let (balance, bound) = (defined.balance, defined.bound);
        let (hold, probe) = (defined.hold.unwrap_or(hold), defined.probe.clone().unwrap_or(probe));
        if is_gateway && endpoints.len() > 1 && balance != Balance::HashClient {
            let message = format!("{place} puts {} gateways behind one name", endpoints.len());
            let diagnostic = Diagnostic::at(Code::TwoGateways, &at.span, message)
                .label("each gateway knows its own sessions only")
                .also(&defined.name.span, "this upstream has several servers")
                .help("give each gateway a name of its own, or write balance = \"hash:client\" in the upstream");
            self.push(diagnostic);
        }
        if let Some(keep_alive) = defined.keep_alive
            && is_gateway
            && keep_alive.value.0 >= GATEWAY_KEEP_ALIVE
        {
            let message =
                format!("upstream \"{name}\" keeps connections longer than the gateway, which closes them at 5s");
            let diagnostic = Diagnostic::at(Code::KeepAlive, &keep_alive.span, message)
                .label("requests would race the close")
                .help("write \"4s\", or remove the line");
            if !self
                .report
                .diagnostics()
                .iter()
                .any(|other| other.code == Code::KeepAlive && other.message == diagnostic.message)
            {
                self.push(diagnostic);
            }
        }
        let key = format!("name {name}");
        let new = Upstream { name: Arc::from(name), endpoints, balance, hold, probe, bound };
        Some(upstreams.shared(&key, new))
    }

    /// Warns when requests leave this machine unencrypted.
    pub(super) fn warn_of_cleartext(&mut self, address: &EndpointAddr, is_tls: bool, at: &At<String>) {
        if is_tls || address.is_local() {
            return;
        }
        let message = format!("requests go to \"{}\" in cleartext", at.value);
        self.push(
            Diagnostic::at(Code::CleartextUpstream, &at.span, message)
                .label("not this machine: passwords and tokens are readable on the way")
                .help("write https://, or reach it through an encrypted tunnel (SSH, WireGuard)"),
        );
    }
}

/// What `tls` of an upstream holds for all its servers.
struct Material {
    server_name: Option<Arc<str>>,
    tls: EndpointTls,
}
