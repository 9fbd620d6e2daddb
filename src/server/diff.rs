//! What a reload changed, in one sentence for the operator: sites by name, values where they are short.
//!
//! Pure. Every difference is named somehow: what has no words of its own is "other settings".

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};

use crate::config::units::{ByteSize, display_duration};
use crate::site::access::{DenyWith, Maintenance, NetworkList};
use crate::site::route::{Action, Route};
use crate::site::{Site, SiteTable};

/// `+1 site (b.test), ~1 site (a.test: idle 1h -> 30m), -1 site (c.test), ~ trust`, or `no change`.
pub(crate) fn summary(old: &SiteTable, new: &SiteTable) -> String {
    let before: BTreeMap<&str, &Site> = old.sites().iter().map(|site| (&*site.label, &**site)).collect();
    let after: BTreeMap<&str, &Site> = new.sites().iter().map(|site| (&*site.label, &**site)).collect();
    let added = after.keys().filter(|label| !before.contains_key(*label)).map(|label| (*label).to_owned());
    let removed = before.keys().filter(|label| !after.contains_key(*label)).map(|label| (*label).to_owned());
    let changed = after.iter().filter_map(|(label, site)| {
        let changes = site_changes(before.get(label)?, site);
        (!changes.is_empty()).then(|| format!("{label}: {}", listed(&changes, ", ")))
    });
    let mut parts = Vec::new();
    for (sign, names) in [("+", added.collect::<Vec<_>>()), ("~", changed.collect()), ("-", removed.collect())] {
        if !names.is_empty() {
            let noun = if names.len() == 1 { "site" } else { "sites" };
            parts.push(format!("{sign}{} {noun} ({})", names.len(), listed(&names, "; ")));
        }
    }
    parts.extend(process_changes(old, new));
    if parts.is_empty() { "no change".into() } else { parts.join(", ") }
}

/// The first few, and how many more there are.
fn listed(names: &[String], between: &str) -> String {
    const SHOWN: usize = 4;
    let mut text = names[..names.len().min(SHOWN)].join(between);
    if names.len() > SHOWN {
        // A String takes everything.
        let _ = write!(text, "{between}and {} more", names.len() - SHOWN);
    }
    text
}

/// Differences outside the sites.
fn process_changes(old: &SiteTable, new: &SiteTable) -> Vec<String> {
    let deadlines = |table: &SiteTable| {
        let of =
            table.edge.listeners.iter().map(|l| (l.handshake_timeout, l.request_head_timeout, l.keep_alive_timeout));
        of.collect::<Vec<_>>()
    };
    let parts = [
        ("trust", differ(&old.edge.trust, &new.edge.trust)),
        ("unknown_sni", differ(&old.edge.unknown_sni, &new.edge.unknown_sni)),
        ("acme", old.edge.acme != new.edge.acme),
        ("log", old.edge.log != new.edge.log),
        ("process", old.edge.process != new.edge.process),
        ("storage", old.edge.storage != new.edge.storage),
        ("connection deadlines", deadlines(old) != deadlines(new)),
    ];
    parts.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| format!("~ {name}")).collect()
}

/// True when two values are written differently. Exact for data whose `Debug` is derived; secrets
/// show in the identity of their endpoint.
fn differ(old: &impl Debug, new: &impl Debug) -> bool {
    format!("{old:?}") != format!("{new:?}")
}

/// What changed in one site.
fn site_changes(old: &Site, new: &Site) -> Vec<String> {
    let tls = |site: &Site| site.tls.as_ref().map(|tls| tls.policy.clone());
    let certificate = |site: &Site| site.tls.as_ref().map(|tls| tls.certificate.clone());
    let reuse_key = |site: &Site| site.tls.as_ref().is_some_and(|tls| tls.reuse_key);
    let mut changes: Vec<String> = [
        ("aliases", differ(&(&old.aliases, old.serve_aliases), &(&new.aliases, new.serve_aliases))),
        ("listen", old.listener != new.listener),
        ("tls", tls(old) != tls(new)),
        ("certificate", certificate(old) != certificate(new)),
        ("reuse_key", reuse_key(old) != reuse_key(new)),
        ("attribution", old.attribution != new.attribution),
        ("connections", differ(&old.connections, &new.connections)),
    ]
    .into_iter()
    .filter(|(_, changed)| *changed)
    .map(|(name, _)| name.to_owned())
    .collect();
    changes.extend(route_changes(old, new));
    if changes.is_empty() && differ(old, new) {
        changes.push("other settings".into());
    }
    changes
}

/// What changed in the routes of one site.
fn route_changes(old: &Site, new: &Site) -> Vec<String> {
    let by_condition = |site: &Site| {
        let routes = site.routes.iter().map(|route| (format!("{:?}", route.condition), route.clone()));
        routes.collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (by_condition(old), by_condition(new));
    let mut changes = Vec::new();
    for (condition, route) in &after {
        match before.get(condition) {
            None => changes.push(format!("+route {}", shown(route))),
            Some(previous) => changes.extend(value_changes(previous, route)),
        }
    }
    let gone = before.iter().filter(|(condition, _)| !after.contains_key(*condition));
    changes.extend(gone.map(|(_, route)| format!("-route {}", shown(route))));
    changes
}

/// A route's prefix.
fn shown(route: &Route) -> &str {
    if route.condition.prefix.is_empty() { "/" } else { &route.condition.prefix }
}

/// What changed in one route.
fn value_changes(old: &Route, new: &Route) -> Vec<String> {
    let place = if new.condition.prefix.is_empty() { String::new() } else { format!("{} ", new.condition.prefix) };
    let pairs = values(old).into_iter().zip(values(new));
    let mut changes: Vec<String> = pairs
        .filter(|((_, before), (_, after))| before != after)
        .map(|((name, before), (_, after))| format!("{place}{name} {before} -> {after}"))
        .collect();
    for (name, changed) in [
        ("allow", access(old).0 != access(new).0),
        ("deny", access(old).1 != access(new).1),
        ("deny_with", access(old).2 != access(new).2),
        ("maintenance", differ(&access(old).3, &access(new).3)),
        ("auth", differ(&old.auth, &new.auth)),
        ("hooks", differ(&old.hooks, &new.hooks)),
        ("limits", differ(&old.limiters, &new.limiters)),
        ("headers", differ(&old.headers, &new.headers)),
        ("origins", old.origins != new.origins),
        ("hsts", old.hsts != new.hsts),
        ("errors", old.errors != new.errors),
    ] {
        if changed {
            changes.push(format!("{place}{name}"));
        }
    }
    if changes.is_empty() && differ(&old.action, &new.action) {
        changes.push(format!("{place}upstream settings"));
    }
    changes
}

/// Who may enter a route: `allow`, `deny`, `deny_with`, `maintenance`.
fn access(route: &Route) -> (Option<&NetworkList>, Option<&NetworkList>, DenyWith, Option<&Maintenance>) {
    let Some(access) = &route.access else { return (None, None, DenyWith::default(), None) };
    let deny = Some(&access.deny).filter(|deny| !deny.is_empty());
    (access.allow.as_ref(), deny, access.deny_with, access.maintenance.as_ref())
}

/// The short values of a route, in a fixed order.
fn values(route: &Route) -> [(&'static str, String); 9] {
    let (timeouts, limits) = (&route.timeouts, &route.limits);
    let size = |bytes: usize| ByteSize(u64::try_from(bytes).unwrap_or(u64::MAX)).to_string();
    [
        ("upstream", destination(&route.action)),
        ("request_body", display_duration(timeouts.request_body)),
        ("connect", display_duration(timeouts.connect)),
        ("response_head", display_duration(timeouts.response_head)),
        ("idle", display_duration(timeouts.idle)),
        ("send", display_duration(timeouts.send)),
        ("body", ByteSize(limits.body).to_string()),
        ("header_bytes", size(limits.header_bytes)),
        ("headers", limits.headers.to_string()),
    ]
}

/// Where an action leads.
pub(crate) fn destination(action: &Action) -> String {
    match action {
        Action::Forward(forward) => match &forward.upstream.endpoints[..] {
            [only] if *only.label == *forward.upstream.name => only.label.to_string(),
            all => {
                let labels: Vec<String> = all.iter().map(|endpoint| endpoint.label.to_string()).collect();
                listed(&labels, ", ")
            }
        },
        Action::Redirect(_) => "a redirect".into(),
        Action::Respond(respond) => format!("answer {}", respond.status.as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::server::tests::{site, table_of};
    use crate::site::acme::AcmePolicy;

    #[test]
    fn a_reload_says_what_it_changed() {
        let a = site("a.test");
        let mut shorter = a.clone();
        let mut route = (**a.routes.iter().next().expect("one route")).clone();
        route.timeouts.idle = Duration::from_secs(1800);
        route.limits.body = 1 << 20;
        shorter.routes = crate::site::route::RouteTable::new(vec![Arc::new(route)]);
        let mut renamed = a.clone();
        renamed.why = Some("because".into());
        for (old, new, expected) in [
            (vec![a.clone()], vec![a.clone()], "no change"),
            (vec![a.clone()], vec![a.clone(), site("b.test")], "+1 site (b.test)"),
            (vec![a.clone(), site("b.test")], vec![a.clone()], "-1 site (b.test)"),
            (vec![a.clone()], vec![shorter], "~1 site (a.test: idle 1h -> 30m, body 20MiB -> 1MiB)"),
            (vec![a.clone()], vec![renamed], "~1 site (a.test: other settings)"),
            (vec![a.clone()], vec![site("b.test"), site("c.test")], "+2 sites (b.test; c.test), -1 site (a.test)"),
        ] {
            assert_eq!(summary(&table_of(old), &table_of(new)), expected);
        }
    }

    #[test]
    fn what_is_outside_the_sites_is_named_too() {
        let old = table_of(vec![site("a.test")]);
        let mut new = old.clone();
        new.edge.process.grace = Duration::from_secs(1);
        new.edge.trust.proxies.unix = true;
        let acme = AcmePolicy { email: Some("ops@example.com".into()), ..AcmePolicy::default() };
        new.edge.acme = Arc::new(acme);
        assert_eq!(summary(&old, &new), "~ trust, ~ acme, ~ process");
        let mut new = old.clone();
        new.edge.trust.proxy_protocol.unix = true;
        assert_eq!(summary(&old, &new), "~ trust");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (1..=6).map(|n| n.to_string()).collect();
        assert_eq!(listed(&names, ", "), "1, 2, 3, 4, and 2 more");
    }
}
