//! `[sites]`: names, TLS, certificates, and the table of routes.

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;

use super::certificate::default_source;
use super::limits::Written;
use super::listen::Listeners;
use super::route::{Parts, has_action, has_broken_action, layered};
use super::text::{self, Fault};
use super::upstream::Upstreams;
use super::{Compiler, list};
use crate::addr::{HostPattern, ListenAddr};
use crate::config::file::{self, File, Shared};
use crate::config::kinds::Wanted;
use crate::config::preset;
use crate::config::read::{At, nearest};
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::show::Effective;
use crate::site::policy::{Alpn, Attribution, CertificateSource, TlsPolicy};
use crate::site::route::{Condition, Route, RouteTable};
use crate::site::{ListenerId, Site, SiteTls};

/// One site while it is compiled.
pub(super) struct Draft<'f> {
    pub(super) name: &'f At<String>,
    pub(super) written: &'f file::Site,
    pub(super) host: HostPattern,
    /// Without those that have faults.
    pub(super) aliases: Vec<(HostPattern, &'f At<String>)>,
    pub(super) place: String,
}

impl Compiler<'_> {
    /// `[sites]`.
    pub(super) fn sites<'f>(
        &mut self,
        file: &'f File,
        listeners: &mut Listeners<'f>,
        upstreams: &mut Upstreams<'f>,
        effective: &mut Effective,
    ) -> Vec<Arc<Site>> {
        let entries = file.sites.as_ref().map_or(&[][..], |at| &at.value.entries);
        if entries.is_empty() && !file.broken.contains(&"sites") {
            self.push(
                Diagnostic::at(
                    Code::ServesNothing,
                    &Span { source: Arc::clone(self.main), range: 0..0 },
                    "no site is defined: nothing would be served",
                )
                .help("add [sites.\"claw.example.com\"] with upstream = \"127.0.0.1:18789\""),
            );
        }
        let empty = Shared::default();
        let defaults = file.defaults.as_ref().map_or(&empty, |at| &at.value);
        let defaults = &self.with_named_limits(defaults, "[defaults]");
        if let Some((name, wanted)) = wanted(defaults) {
            self.not_a_route(name, &wanted.span, "[defaults]");
        }
        self.one_action(defaults, "[defaults]");
        let mut claimed: HashMap<HostPattern, Span> = HashMap::new();
        let mut sites = Vec::new();
        for (name, at) in entries {
            let place = format!("site \"{}\"", name.value);
            let parsed = HostPattern::from_config(&name.value).map_err(|error| {
                // The likeliest slips: a URL, or a name with a port.
                let bare =
                    name.value.rsplit("://").next().unwrap_or_default().split(['/', ':']).next().unwrap_or_default();
                let right = HostPattern::from_config(bare).map_or_else(
                    |_| "write a host name, an IP address, or \"*.name\"".to_owned(),
                    |right| format!("write \"{right}\"; schemes and ports belong to [listen]"),
                );
                Fault { what: error.to_string(), help: Some(right) }
            });
            let Some(host) = self.take(parsed, Code::Host, name, "[sites]") else { continue };
            self.claim(&mut claimed, &host, name);
            let mut aliases = Vec::new();
            for alias in list(at.value.aliases.as_ref()) {
                let parsed = HostPattern::from_config(&alias.value)
                    .map_err(|error| Fault { what: error.to_string(), help: None });
                if let Some(pattern) = self.take(parsed, Code::Host, alias, &format!("\"aliases\" of {place}")) {
                    self.claim(&mut claimed, &pattern, alias);
                    aliases.push((pattern, alias));
                }
            }
            let draft = Draft { name, written: &at.value, host, aliases, place };
            sites.extend(self.site(&draft, defaults, listeners, upstreams, effective).map(Arc::new));
        }
        sites
    }

    /// Notes a name, or reports that another site has it.
    fn claim(&mut self, claimed: &mut HashMap<HostPattern, Span>, host: &HostPattern, at: &At<String>) {
        if let Some(first) = claimed.get(host) {
            let message = if Arc::ptr_eq(&first.source, &at.span.source) {
                format!("two sites claim \"{host}\"")
            } else {
                format!("two files have the site \"{host}\": \"{}\" and \"{}\"", first.source.name, at.span.source.name)
            };
            self.push(
                Diagnostic::at(Code::DuplicateSite, &at.span, message)
                    .label("here again")
                    .also(first, "first here")
                    .help("merge the two, or remove one"),
            );
        } else {
            claimed.insert(host.clone(), at.span.clone());
        }
    }

    /// One site.
    fn site(
        &mut self,
        draft: &Draft<'_>,
        defaults: &Shared,
        listeners: &mut Listeners<'_>,
        upstreams: &mut Upstreams<'_>,
        effective: &mut Effective,
    ) -> Option<Site> {
        let Draft { written, host, aliases, place, .. } = draft;
        let listener = self.site_listener(draft, listeners);
        let attribution = self.attribution(draft, listener, listeners);
        let tls = self.site_tls(draft, listener, listeners);
        let shared = self.with_named_limits(&written.shared, place);
        let routes = self.routes(draft, &shared, defaults, upstreams, effective);
        let merged = layered(&[&shared, self.presets.settings(chosen_preset(None, &shared, defaults)), defaults]);
        let connections = self.connections(&merged, Written { host, route: None });
        if let Some((name, at)) = wanted(&written.shared) {
            self.not_a_route(name, &at.span, place);
        }
        if let (Some(tls), Some(routes)) = (&tls, &routes) {
            self.certificates_are_asked_for(place, &draft.name.span, tls.as_ref(), routes);
        }
        Some(Site {
            host: host.clone(),
            label: Arc::from(host.to_string()),
            aliases: aliases.iter().map(|(pattern, _)| pattern.clone()).collect(),
            serve_aliases: written.serve_aliases.as_ref().is_some_and(|at| at.value),
            listener: listener?,
            tls: tls?,
            preset: preset::label(chosen_preset(None, &written.shared, defaults)),
            attribution,
            connections,
            routes: routes?,
            why: written.why.as_ref().map(|at| at.value.clone().into()),
        })
    }

    /// Reports a condition on headers where no route is.
    fn not_a_route(&mut self, name: &str, span: &Span, place: &str) {
        let message = format!("unknown key \"{name}\" in \"headers\" of {place}");
        self.push(
            Diagnostic::at(Code::UnknownKey, span, message)
                .label("only a route can want a header")
                .help(format!("write headers.request.set.{name} to send it upstream, or headers.response.set.{name} to send it to the client")),
        );
    }

    /// `listen`.
    fn site_listener(&mut self, draft: &Draft<'_>, listeners: &mut Listeners<'_>) -> Option<ListenerId> {
        let Some(at) = &draft.written.listen else {
            return Some(ListenerId(0));
        };
        let found = listeners.named(&at.value);
        if found.is_none() && !listeners.has_faults {
            let message = format!("{} names the listener \"{}\", which is not defined", draft.place, at.value);
            self.push(Diagnostic::at(Code::Undefined, &at.span, message).help(listeners.advice(&at.value)));
        }
        found
    }

    /// `attribution`: local only where nobody else can come in.
    fn attribution(
        &mut self,
        draft: &Draft<'_>,
        listener: Option<ListenerId>,
        listeners: &Listeners<'_>,
    ) -> Attribution {
        let Some(at) = draft.written.attribution.as_ref().filter(|at| at.value == file::Attribution::Local) else {
            return Attribution::Client;
        };
        let message = format!("{} cannot have attribution = \"local\"", draft.place);
        let diagnostic = Diagnostic::at(Code::Attribution, &at.span, message);
        let strange = draft.aliases.iter().find(|(pattern, _)| !pattern.name().is_loopback());
        let far = listener.and_then(|id| {
            let listener = listeners.listener(id);
            listener
                .http
                .iter()
                .chain(&listener.https)
                .find(|address| !address.is_loopback())
                .map(ListenAddr::to_string)
        });
        if !draft.host.name().is_loopback() {
            self.push(
                diagnostic
                    .label("only localhost, *.localhost and loopback addresses can")
                    .help("remove the line: clients of other names are never local to the gateway"),
            );
        } else if let Some((pattern, alias)) = strange {
            self.push(
                diagnostic
                    .label("not with an alias that others can use")
                    .also(&alias.span, format!("\"{pattern}\" is not a local name"))
                    .help("remove the alias, or give it a site of its own"),
            );
        } else if let Some(address) = far.filter(|_| !listeners.has_faults) {
            self.push(
                diagnostic
                    .label(format!("its listener has the address {address}"))
                    .help("listen on loopback addresses only: http = [\"127.0.0.1:8080\"] and https = [\"127.0.0.1:8443\"] in [listen]"),
            );
        }
        Attribution::Local
    }

    /// `tls`, `certificate`, `alpn`, `client_cert`. The outer `None` means a fault.
    fn site_tls(
        &mut self,
        draft: &Draft<'_>,
        id: Option<ListenerId>,
        listeners: &Listeners<'_>,
    ) -> Option<Option<SiteTls>> {
        let Draft { name, written, place, .. } = draft;
        let client_cert = match &written.client_cert {
            Some(at) => Some(self.client_cert(at, place)?),
            None => id.and_then(|id| listeners.client_cert(id).cloned()),
        };
        let certificate = self.certificate(draft, id, listeners);
        let alpn = self.alpn(written, place);
        let id = id?;
        let listener = listeners.listener(id);
        let which = listener.name.as_ref().map_or_else(|| "[listen]".to_owned(), |name| format!("listener \"{name}\""));
        if draft.is_cleartext() {
            self.cleartext(draft, listener, &which, listeners.has_faults);
            return Some(None);
        }
        if listener.https.is_empty() && !listeners.has_faults {
            let message = format!("{place} needs an https address, and {which} has none");
            self.push(
                Diagnostic::at(Code::NoAddress, &name.span, message)
                    .help("add https = [\"127.0.0.1:8443\"] there, or write tls = \"off\" in the site"),
            );
        }
        let policy = TlsPolicy { profile: self.profile, alpn, client_cert };
        let policy = match self.policies.iter().find(|other| ***other == policy) {
            Some(other) => Arc::clone(other),
            None => {
                let policy = Arc::new(policy);
                self.policies.push(Arc::clone(&policy));
                policy
            }
        };
        let reuse_key = written.reuse_key.as_ref().is_some_and(|at| at.value);
        Some(Some(SiteTls { policy, certificate: certificate?, reuse_key }))
    }

    /// `tls = "off"`.
    fn cleartext(&mut self, draft: &Draft<'_>, listener: &crate::site::Listener, which: &str, has_faults: bool) {
        let Some(at) = &draft.written.tls else { return };
        let place = &draft.place;
        if listener.http.is_empty() && !has_faults {
            let message = format!("{place} needs an http address, and {which} has none");
            self.push(Diagnostic::at(Code::NoAddress, &at.span, message).help("add http = [\"127.0.0.1:8080\"] there"));
        }
        let Some(far) = listener.http.iter().find(|address| !address.is_loopback()) else {
            return;
        };
        let is_accepted = draft.written.cleartext.as_ref().is_some_and(|at| at.value == file::Cleartext::Accepted);
        if is_accepted {
            let message = format!("{place} is served in cleartext on {far}");
            self.push(
                Diagnostic::at(Code::CleartextAccepted, &at.span, message)
                    .label("passwords and tokens are readable on the way"),
            );
        } else if !has_faults {
            let message = format!("{place} would be served in cleartext on {far}");
            self.push(Diagnostic::at(Code::Cleartext, &at.span, message).label("not a loopback address").help(
                "remove the line, or listen on 127.0.0.1 only, or accept the danger with cleartext = \"accepted\"",
            ));
        }
    }

    /// `alpn`.
    fn alpn(&mut self, written: &file::Site, place: &str) -> Vec<Alpn> {
        let Some(at) = &written.alpn else {
            return vec![Alpn::Http2, Alpn::Http11];
        };
        if at.value.is_empty() && !written.broken.contains(&"alpn") {
            self.push(
                Diagnostic::at(Code::Empty, &at.span, format!("\"alpn\" of {place} is empty"))
                    .help("write [\"h2\", \"http/1.1\"], or remove the line"),
            );
        }
        let mut alpn = Vec::new();
        for entry in &at.value {
            let protocol = match entry.value {
                file::Alpn::Http2 => Alpn::Http2,
                file::Alpn::Http11 => Alpn::Http11,
            };
            if !alpn.contains(&protocol) {
                alpn.push(protocol);
            }
        }
        alpn
    }

    /// The routes of a site; the last one has the site's own settings.
    fn routes(
        &mut self,
        draft: &Draft<'_>,
        own: &Shared,
        defaults: &Shared,
        upstreams: &mut Upstreams<'_>,
        effective: &mut Effective,
    ) -> Option<RouteTable> {
        let Draft { written, place, host, .. } = draft;
        self.one_action(own, place);
        self.reasons_of_shared(own, place, &[&written.why]);
        let chosen = |route: Option<&Shared>| chosen_preset(route, own, defaults);
        let preset = chosen(None);
        let merged = layered(&[own, self.presets.settings(preset), defaults]);
        effective.site(host, &merged, written, default_source(draft) == CertificateSource::Acme);
        let is_gateway = preset == file::Preset::Openclaw;
        let parts = Parts { shared: &merged, prefix: "", place, is_gateway, written: Written { host, route: None } };
        let site_route = self.route(Condition::default(), &parts, upstreams);
        let mut is_whole = site_route.is_some() || !has_action(&merged);
        let mut routes: Vec<Arc<Route>> = Vec::new();
        let mut seen: Vec<(Condition, Span)> = Vec::new();
        let written_routes = written.routes.as_ref().map_or(&[][..], |at| &at.value);
        for at in written_routes {
            let path = at.value.path.as_ref();
            let place = format!("route \"{}\" of {place}", path.map_or("?", |path| &path.value));
            let shared = &self.with_named_limits(&at.value.shared, &place);
            self.not_for_a_route(&at.value.shared, &place);
            self.one_action(shared, &place);
            self.reasons_of_shared(shared, &place, &[&at.value.why]);
            let preset = chosen(Some(shared));
            let merged = layered(&[shared, own, self.presets.settings(preset), defaults]);
            let condition = self.condition(&at.value, &place);
            let parts = Parts {
                shared: &merged,
                prefix: &condition.as_ref().map_or_else(Box::default, |condition| condition.prefix.clone()),
                place: &place,
                is_gateway: preset == file::Preset::Openclaw,
                written: Written { host, route: Some((shared, &place)) },
            };
            if let (Some(condition), Some(path)) = (&condition, path) {
                self.unique(condition, &path.span, &place, site_route.is_some(), draft, &mut seen);
                effective.route(host, &path.value, &at.value.shared, at.value.why.as_ref());
            }
            if !has_action(&merged) && !has_broken_action(&merged) {
                let message = format!("nothing says what to do with the requests of {place}");
                self.push(
                    Diagnostic::at(Code::NoAction, &at.span, message).help(
                        "add upstream = \"127.0.0.1:18789\" to it or to its site, or \"redirect\", or \"respond\"",
                    ),
                );
            }
            let faulty = condition.is_none();
            match self.route(condition.unwrap_or_default(), &parts, upstreams).filter(|_| !faulty) {
                Some(route) => routes.push(Arc::new(route)),
                None => is_whole = false,
            }
        }
        if written_routes.is_empty()
            && !has_action(&merged)
            && !has_broken_action(&merged)
            && !written.broken.contains(&"routes")
        {
            let message = format!("nothing says what to do with the requests of {place}");
            self.push(
                Diagnostic::at(Code::NoAction, &draft.name.span, message).help("add upstream = \"127.0.0.1:18789\" with the address of what it serves, or \"redirect\", or \"respond\""),
            );
        }
        routes.extend(site_route.map(Arc::new));
        is_whole.then(|| RouteTable::new(routes))
    }

    /// Reports a route that takes what another one takes, or all that the site's own settings would.
    fn unique(
        &mut self,
        condition: &Condition,
        span: &Span,
        place: &str,
        site_answers: bool,
        draft: &Draft<'_>,
        seen: &mut Vec<(Condition, Span)>,
    ) {
        if let Some((_, first)) = seen.iter().find(|(other, _)| is_same(other, condition)) {
            let message = format!("{place} takes the same requests as another route");
            self.push(
                Diagnostic::at(Code::DuplicateRoute, span, message)
                    .label("here again")
                    .also(first, "first here")
                    .help("merge the two, or tell them apart by \"methods\", \"headers\" or \"upgrade\""),
            );
        } else if is_same(condition, &Condition::default()) && site_answers && has_action(&draft.written.shared) {
            let message = format!("{place} takes every request, so the site's own settings never apply");
            self.push(
                Diagnostic::at(Code::DuplicateRoute, span, message)
                    .label("all paths")
                    .help("put its keys into the site, and remove the route"),
            );
        }
        seen.push((condition.clone(), span.clone()));
    }

    /// Which requests a route takes.
    fn condition(&mut self, route: &file::Route, place: &str) -> Option<Condition> {
        let path = route.path.as_ref()?;
        let prefix = self.take(text::prefix(&path.value), Code::Path, path, &format!("\"path\" of {place}"))?;
        let mut methods = Vec::new();
        for at in list(route.methods.as_ref()) {
            let right = at.value.to_ascii_uppercase();
            let parsed = match Method::from_bytes(at.value.as_bytes()) {
                Ok(Method::CONNECT) => Err(Fault {
                    what: "CONNECT is never forwarded".to_owned(),
                    help: Some("write upgrade = true for WebSockets".to_owned()),
                }),
                Ok(method) if at.value == right => Ok(method),
                _ => Err(Fault {
                    what: "not a method as clients send it".to_owned(),
                    help: nearest(&right, METHODS).map(|near| format!("write \"{near}\"")),
                }),
            };
            methods.extend(self.take(parsed, Code::Method, at, &format!("\"methods\" of {place}")));
        }
        methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        methods.dedup();
        let mut headers = Vec::new();
        for (name, at) in route.shared.headers.as_ref().map_or(&[][..], |at| &at.value.wanted) {
            let place = format!("\"headers\" of {place}");
            let Some(parsed) = self.take(text::header_name(&name.value), Code::HeaderName, name, &place) else {
                continue;
            };
            let value = match &at.value {
                Wanted::Present => None,
                Wanted::Value(value) => {
                    Some(self.take(text::header_value(value), Code::HeaderValue, &at.with(value.clone()), &place)?)
                }
            };
            headers.push((parsed, value));
        }
        headers.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        Some(Condition { prefix, methods, headers, upgrade: route.upgrade.as_ref().map(|at| at.value) })
    }
}

/// The preset in force: the nearest one.
fn chosen_preset(route: Option<&Shared>, own: &Shared, defaults: &Shared) -> file::Preset {
    let near = route.and_then(|route| route.preset.as_ref()).or(own.preset.as_ref()).or(defaults.preset.as_ref());
    near.map_or(file::Preset::None, |at| at.value)
}

/// The methods that a slip is compared with.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// The first condition on headers.
fn wanted(shared: &Shared) -> Option<(&str, &At<Wanted>)> {
    shared.headers.as_ref()?.value.wanted.first().map(|(name, at)| (name.value.as_str(), at))
}

/// True when two routes take the same requests.
fn is_same(a: &Condition, b: &Condition) -> bool {
    a.prefix == b.prefix && a.methods == b.methods && a.headers == b.headers && a.upgrade == b.upgrade
}
