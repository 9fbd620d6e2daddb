//! `limits` and `[limits]`: sizes, and the rules that remember who came before.
//!
//! A name is replaced by what it names before layers become one, so that a set merges like keys written in its place.
//! Which table a rule belongs to, and with it who shares its budget, is known by where its key stands.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::networks::in_layer;
use super::{Compiler, defined_twice};
use crate::addr::HostPattern;
use crate::config::file::{self, LimitsText, Shared};
use crate::config::read::{At, nearest, quoted};
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::units::{ByteSize, Rate, display_duration};
use crate::config::values::{Count, Map, Period};
use crate::site::limit::{CountRule, Limiters, LockoutRule, Per, RateRule, RuleId, RuleName};
use crate::site::policy::Limits;
use crate::site::route::Condition;

/// One of `[limits]`.
pub(super) struct LimitSet {
    name: At<String>,
    written: file::Limits,
    is_used: bool,
}

/// Where the limits of a route may have been written, beside `[limits]` and `[defaults]`.
#[derive(Clone, Copy)]
pub(super) struct Written<'a> {
    /// The site.
    pub(super) host: &'a HostPattern,
    /// The route's own keys, and how messages call it; `None` for the site's own settings.
    pub(super) route: Option<(&'a Shared, &'a str)>,
}

/// What the rules of one route have in common.
#[derive(Clone, Copy)]
struct Place<'a> {
    written: Written<'a>,
    condition: &'a Condition,
}

/// What a rule of one kind is made of.
struct Rule<'a, T> {
    kind: &'static str,
    at: &'a At<T>,
    place: Place<'a>,
}

impl<'a> Place<'a> {
    fn rule<T>(self, kind: &'static str, at: &'a At<T>) -> Rule<'a, T> {
        Rule { kind, at, place: self }
    }
}

impl Compiler<'_> {
    /// `[limits]`.
    pub(super) fn limit_sets(&mut self, map: Option<&Map<file::LimitSet>>) {
        for (name, at) in map.map_or(&[][..], |map| &map.entries) {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            if !name.value.bytes().all(is_plain) || name.value.len() > 64 || name.value.is_empty() {
                let message = format!("\"{}\" cannot be the name of limits", name.value);
                self.push(
                    Diagnostic::at(Code::LimitName, &name.span, message)
                        .label("clients and metrics are shown it")
                        .help("use up to 64 letters, digits, \"-\", \"_\" and \".\""),
                );
            }
            if let Some(first) = self.limits.iter().find(|first| first.name.value == name.value) {
                let diagnostic = defined_twice("limits", &first.name, name);
                self.push(diagnostic);
                continue;
            }
            let written = at.value.0.clone();
            self.limits.push(LimitSet { name: name.clone(), written, is_used: false });
        }
    }

    /// Warns of sets that nothing names.
    pub(super) fn unused_limits(&mut self) {
        if self.report.has_errors() {
            return;
        }
        for set in self.limits.iter().filter(|set| !set.is_used) {
            let message = format!("[limits.{}] is never used", set.name.value);
            let help = format!("write limits = \"{}\" in a site or route, or remove it", set.name.value);
            self.report.push(Diagnostic::at(Code::Unused, &set.name.span, message).help(help));
        }
    }

    /// The keys of one layer, with those of a set in place of its name.
    pub(super) fn with_named_limits(&mut self, shared: &Shared, place: &str) -> Shared {
        let mut shared = shared.clone();
        let Some(At { value: LimitsText::Name(name), span, .. }) = &shared.limits else { return shared };
        let found = self.limits.iter_mut().find(|set| set.name.value == *name);
        let limits = match found {
            Some(set) => {
                set.is_used = true;
                set.written.clone()
            }
            None => {
                let names: Vec<&str> = self.limits.iter().map(|set| set.name.value.as_str()).collect();
                let message = format!("{place} names the limits \"{name}\", which are not defined");
                let help = match nearest(name, names.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None if names.is_empty() => format!("add [limits.{name}] with requests = {{ rate = \"20/s\" }}"),
                    None => format!("add [limits.{name}], or use one of: {}", quoted(names)),
                };
                let diagnostic = Diagnostic::at(Code::Undefined, span, message).help(help);
                self.push(diagnostic);
                file::Limits::default()
            }
        };
        shared.limits = shared.limits.as_ref().map(|at| at.with(LimitsText::Here(Box::new(limits))));
        shared
    }

    /// The sizes in `limits`.
    pub(super) fn sizes(&mut self, shared: &Shared, place: &str) -> Limits {
        let usual = Limits::default();
        let Some(limits) = written(shared) else { return usual };
        // 8 KiB: the smallest buffer of the HTTP library; below it honest browsers fail anyway.
        let header_bytes = match &limits.header_bytes {
            Some(at) if !((8 << 10)..=(1 << 20)).contains(&at.value.0) => {
                let message = format!("\"header_bytes\" in \"limits\" of {place} is {}", at.value);
                self.push(
                    Diagnostic::at(Code::Range, &at.span, message).label("write a size from \"8KiB\" to \"1MiB\""),
                );
                usual.header_bytes
            }
            Some(At { value: ByteSize(bytes), .. }) => usize::try_from(*bytes).unwrap_or(usual.header_bytes),
            None => usual.header_bytes,
        };
        Limits {
            body: limits.body.as_ref().map_or(usual.body, |at| at.value.0),
            body_rate: limits.body_rate.as_ref().map_or(usual.body_rate, |at| at.value.0),
            header_bytes,
            headers: limits.headers.as_ref().map_or(usual.headers, |at| at.value.0),
        }
    }

    /// The rules of a route. `None` when it has none.
    pub(super) fn limiters(
        &mut self,
        shared: &Shared,
        written_in: Written<'_>,
        condition: &Condition,
    ) -> Option<Box<Limiters>> {
        let limits = written(shared)?;
        let place = Place { written: written_in, condition };
        let requests = limits.requests.as_ref().and_then(|at| self.rate(&place.rule("requests", at)));
        let handshakes = limits.handshakes.as_ref().and_then(|at| self.rate(&place.rule("handshakes", at)));
        let tunnels = limits.tunnels.as_ref().and_then(|at| self.count(&place.rule("tunnels", at)));
        let failed_auth = limits.failed_auth.as_ref().and_then(|at| self.failed_auth(&place.rule("failed_auth", at)));
        let says_something = requests.is_some() || handshakes.is_some() || tunnels.is_some() || failed_auth.is_some();
        says_something.then(|| Box::new(Limiters { requests, handshakes, tunnels, failed_auth }))
    }

    /// The rule on connections of a site.
    pub(super) fn connections(&mut self, shared: &Shared, written_in: Written<'_>) -> Option<Arc<CountRule>> {
        let at = written(shared)?.connections.as_ref()?;
        self.count(&Place { written: written_in, condition: &Condition::default() }.rule("connections", at))
    }

    /// Warns of `connections` in a route: a connection has no path.
    pub(super) fn not_for_a_route(&mut self, shared: &Shared, place: &str) {
        let Some(At { value: LimitsText::Here(limits), .. }) = &shared.limits else { return };
        if let Some(at) = &limits.connections {
            let message = format!("\"connections\" in \"limits\" of {place} does nothing");
            self.push(
                Diagnostic::at(Code::NoEffect, &at.key, message)
                    .label("a connection is counted before it has a path")
                    .help("put it into the site's own \"limits\""),
            );
        }
    }

    /// `requests` or `handshakes`.
    fn rate(&mut self, rule: &Rule<'_, file::RateLimit>) -> Option<Arc<RateRule>> {
        let limit = &rule.at.value;
        let Some(At { value: Rate { count, period }, .. }) = limit.rate else {
            self.missing(rule, "rate", limit.broken.contains(&"rate"), "rate = \"20/s\"");
            return None;
        };
        let burst = limit.burst.as_ref().map_or(Some(count), |at| number(at.value.0))?;
        // A year, our choice: what takes longer to come back was not meant, and the arithmetic stays far from its end.
        let full = period.as_secs_f64() * f64::from(burst.get()) / f64::from(count.get());
        if full > 365.0 * 86_400.0 {
            let span = limit.burst.as_ref().map_or(&rule.at.span, |at| &at.span);
            let message = format!("\"burst\" in {} would take more than a year to come back", self.place_of(rule));
            self.push(
                Diagnostic::at(Code::Range, span, message).help("write a smaller \"burst\", or a higher \"rate\""),
            );
            return None;
        }
        let per = match limit.per.as_ref().map(|at| &at.value) {
            None | Some(file::Per::Client) => Per::Client,
            Some(file::Per::Header(name)) => Per::Header(name.clone()),
            Some(file::Per::Site) => Per::Site,
        };
        let whose = match &per {
            Per::Client => "client".to_owned(),
            Per::Header(name) => format!("value of \"{name}\""),
            Per::Site => "site".to_owned(),
        };
        let terms = format!("{} per {whose}, at most {burst} at once", Rate { count, period });
        let name = self.rule_name(rule, &terms, true);
        Some(Arc::new(RateRule { name, count, period, burst, per }))
    }

    /// `tunnels` or `connections`.
    fn count(&mut self, rule: &Rule<'_, file::CountLimit>) -> Option<Arc<CountRule>> {
        let limit = &rule.at.value;
        let of = |at: &Option<At<Count<1, 10_000_000>>>| at.as_ref().and_then(|at| number(at.value.0));
        let (per_client, total) = (of(&limit.per_client), of(&limit.total));
        let mut words = Vec::new();
        words.extend(per_client.map(|most| format!("{most} of one client")));
        words.extend(total.map(|most| format!("{most} in all")));
        if words.is_empty() {
            let is_broken = limit.broken.contains(&"per_client") || limit.broken.contains(&"total");
            self.missing(rule, "per_client", is_broken, "per_client = 20, total = 2000");
            return None;
        }
        if let (Some(one), Some(all), Some(at)) = (per_client, total, &limit.per_client)
            && one > all
        {
            let message = format!("\"per_client\" in {} is never reached", self.place_of(rule));
            let diagnostic =
                Diagnostic::at(Code::NeverReached, &at.span, message).label(format!("more than {all} in all"));
            self.push(diagnostic.help("lower it, or raise \"total\""));
        }
        // Its terms are no part of what it is: what is open goes on counting when they change.
        let name = RuleName { terms: words.join(", ").into(), ..self.rule_name(rule, "", false) };
        Some(Arc::new(CountRule { name, per_client, total }))
    }

    /// `failed_auth`.
    fn failed_auth(&mut self, rule: &Rule<'_, file::FailedAuth>) -> Option<Arc<LockoutRule>> {
        let limit = &rule.at.value;
        let max = limit.max.as_ref().map_or(NonZeroU32::new(10), |at| number(at.value.0))?;
        let window = self.span_of_time(rule, limit.window.as_ref(), "window", 10)?;
        let lockout = self.span_of_time(rule, limit.lockout.as_ref(), "lockout", 15)?;
        let global_max = limit.global_max.as_ref().and_then(|at| number(at.value.0));
        if let (Some(all), Some(at)) = (global_max, &limit.global_max)
            && all < max
        {
            let message = format!("\"max\" in {} is never reached", self.place_of(rule));
            let diagnostic = Diagnostic::at(Code::NeverReached, &at.span, message);
            let diagnostic = diagnostic.label(format!("less than the {max} of one client: one client is an alarm"));
            self.push(diagnostic.help("write a number many times as large as \"max\""));
        }
        let mut terms =
            format!("{max} failures in {} lock out for {}", display_duration(window), display_duration(lockout));
        if let Some(all) = global_max {
            terms.push_str(&format!(", one does after {all} in all"));
        }
        let name = self.rule_name(rule, &terms, true);
        Some(Arc::new(LockoutRule { name, max, window, lockout, global_max }))
    }

    /// A duration above zero and up to 30 days, our choice; or its default in minutes.
    fn span_of_time<T>(
        &mut self,
        rule: &Rule<'_, T>,
        at: Option<&At<Period>>,
        key: &str,
        usual: u64,
    ) -> Option<Duration> {
        let Some(at) = at else { return Some(Duration::from_secs(usual * 60)) };
        let limit = Duration::from_secs(30 * 86_400);
        if (Duration::from_secs(1)..=limit).contains(&at.value.0) {
            return Some(at.value.0);
        }
        let message = format!("\"{key}\" in {} is {}", self.place_of(rule), display_duration(at.value.0));
        self.push(Diagnostic::at(Code::Range, &at.span, message).label("write a duration from \"1s\" to \"30d\""));
        None
    }

    /// Reports a rule without what it is about.
    fn missing<T>(&mut self, rule: &Rule<'_, T>, key: &str, is_broken: bool, example: &str) {
        if !is_broken {
            let message = format!("{} has no \"{key}\"", self.place_of(rule));
            self.push(Diagnostic::at(Code::Missing, &rule.at.span, message).help(format!("add {example}")));
        }
    }

    /// The table that a rule belongs to: a set of `[limits]`, the route, or the site, which has a copy of its own of what
    /// `[defaults]` says.
    fn owner<T>(&self, rule: &Rule<'_, T>) -> Owner<'_> {
        let is_here = |limits: &file::Limits| keys_of(limits).any(|key| is_same(key, &rule.at.key));
        if let Some(set) = self.limits.iter().find(|set| is_here(&set.written)) {
            return Owner::Set(&set.name.value);
        }
        let own = rule.place.written.route.and_then(|(shared, _)| written(shared));
        if own.is_some_and(is_here) { Owner::Route } else { Owner::Site }
    }

    /// How messages call a rule.
    fn place_of<T>(&self, rule: &Rule<'_, T>) -> String {
        match (self.owner(rule), rule.place.written.route) {
            (Owner::Set(name), _) => format!("\"{}\" of [limits.{name}]", rule.kind),
            (Owner::Route, Some((_, place))) => format!("\"limits.{}\" of {place}", rule.kind),
            (Owner::Route | Owner::Site, _) => {
                in_layer(&format!("\"limits.{}\" of site \"{}\"", rule.kind, rule.place.written.host), rule.at.layer)
            }
        }
    }

    /// What a rule is called, and which one it is.
    fn rule_name<T>(&self, rule: &Rule<'_, T>, terms: &str, by_terms: bool) -> RuleName {
        let kind = rule.kind;
        let site = || format!("site \"{}\"", rule.place.written.host);
        let (name, place, identity): (Arc<str>, String, String) = match (self.owner(rule), rule.place.written.route) {
            (Owner::Set(name), _) => {
                let place = format!("[limits.{name}]");
                (name.into(), place.clone(), place)
            }
            // Two routes may have one path and tell requests apart by other means.
            (Owner::Route, Some((_, place))) => {
                (kind.into(), place.to_owned(), format!("{} of {}", shown(rule.place.condition), site()))
            }
            (Owner::Route | Owner::Site, _) => (kind.into(), site(), site()),
        };
        let id = RuleId::new(kind, &identity, if by_terms { terms } else { "" });
        RuleName { name, place: place.into(), kind, terms: terms.into(), id }
    }
}

/// See `Compiler::owner`.
enum Owner<'a> {
    Set(&'a str),
    Route,
    Site,
}

/// The keys that one layer, or all of them, wrote.
fn written(shared: &Shared) -> Option<&file::Limits> {
    match &shared.limits.as_ref()?.value {
        LimitsText::Here(limits) => Some(limits),
        LimitsText::Name(_) => None,
    }
}

/// Where the rules of a table stand.
fn keys_of(limits: &file::Limits) -> impl Iterator<Item = &Span> {
    let rates = limits.requests.iter().chain(&limits.handshakes).map(|at| &at.key);
    let counts = limits.tunnels.iter().chain(&limits.connections).map(|at| &at.key);
    rates.chain(counts).chain(limits.failed_auth.iter().map(|at| &at.key))
}

/// True for one place.
fn is_same(a: &Span, b: &Span) -> bool {
    Arc::ptr_eq(&a.source, &b.source) && a.range == b.range
}

/// A condition as text: equal for equal ones, also after a reload.
fn shown(condition: &Condition) -> String {
    let Condition { prefix, methods, headers, upgrade } = condition;
    format!("{prefix:?} {methods:?} {headers:?} {upgrade:?}")
}

/// A number above zero, as the reader has made sure.
fn number(number: usize) -> Option<NonZeroU32> {
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}
