//! What sites and routes share: the action, its limits, headers, and how layers become one.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::limits::Written;
use super::text::{self, Fault};
use super::upstream::{Inherited, Upstreams};
use super::{Compiler, KEPT, list, period, timeout};
use crate::config::file::{self, Shared};
use crate::config::kinds::{HeaderMap, HeaderText, Hsts as HstsText};
use crate::config::read::{At, nearest};
use crate::config::report::{Code, Diagnostic};
use crate::config::values::{List, Period};
use crate::site::policy::{
    Embed, HeaderEdits, HeaderOps, HostPolicy, Hsts, Origins, Redirect, Respond, Template, Timeouts,
};
use crate::site::route::{Action, Condition, Forward, Route, Strip};

/// Headers that the edge writes itself on every request (GATEWAY.md of the design notes): an edit
/// could make a stranger look local to the gateway.
const OURS: &[&str] = &[
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-real-ip",
    "x-request-id",
];

/// Which action a layer states.
pub(super) fn has_action(shared: &Shared) -> bool {
    shared.upstream.is_some() || shared.redirect.is_some() || shared.respond.is_some()
}

/// True when an action was written, but not so that it can be used.
pub(super) fn has_broken_action(shared: &Shared) -> bool {
    ["upstream", "redirect", "respond"].iter().any(|key| shared.broken.contains(key))
}

/// Makes one layer of several, nearest first. Lists replace, tables merge; an action replaces a
/// farther action of another kind.
pub(super) fn layered(layers: &[&Shared]) -> Shared {
    let mut merged = Shared::default();
    for layer in layers {
        let mut far = (*layer).clone();
        if has_action(&merged) || has_broken_action(&merged) {
            far.upstream = far.upstream.filter(|_| merged.upstream.is_some());
            far.redirect = far.redirect.filter(|_| merged.redirect.is_some());
            far.respond = far.respond.filter(|_| merged.respond.is_some());
        }
        crate::config::mirror::Mirror::inherit(&mut merged, &far);
    }
    merged
}

/// What a route is made of beside its condition.
pub(super) struct Parts<'a> {
    /// All layers in one.
    pub(super) shared: &'a Shared,
    /// The route's prefix.
    pub(super) prefix: &'a str,
    /// How messages call it.
    pub(super) place: &'a str,
    /// True with preset `openclaw`.
    pub(super) is_gateway: bool,
    /// Where its limits may have been written.
    pub(super) written: Written<'a>,
}

impl Compiler<'_> {
    /// Compiles the parts of a route. `None` without an action, or when the action has faults.
    pub(super) fn route(
        &mut self,
        condition: Condition,
        parts: &Parts<'_>,
        upstreams: &mut Upstreams<'_>,
    ) -> Option<Route> {
        let Parts { shared, place, .. } = parts;
        let access = self.access(shared, place);
        let (auth, hooks) = (self.auths(shared, place), self.hooks(shared, place));
        let action = self.action(parts, upstreams);
        let timeouts = timeouts(shared);
        let limits = self.sizes(shared, place);
        let limiters = self.limiters(shared, parts.written, &condition);
        let headers = self.header_ops(shared, place);
        let origins = self.origins(shared, place);
        let hsts = self.hsts(shared, place);
        let errors = shared.errors.as_ref().map_or_else(Vec::new, |map| self.error_pages(&map.value, place));
        let action = action?;
        Some(Route {
            condition,
            access,
            auth,
            hooks,
            action,
            timeouts,
            limits,
            limiters,
            headers,
            origins,
            hsts,
            errors,
        })
    }

    /// Reports two actions in one table.
    pub(super) fn one_action(&mut self, shared: &Shared, place: &str) {
        let keys = [
            shared.upstream.as_ref().map(|at| &at.key),
            shared.redirect.as_ref().map(|at| &at.key),
            shared.respond.as_ref().map(|at| &at.key),
        ];
        let mut stated = keys.into_iter().flatten();
        if let (Some(first), Some(second)) = (stated.next(), stated.next()) {
            let message = format!("{place} has \"{}\" and \"{}\"", first.text(), second.text());
            self.push(
                Diagnostic::at(Code::Conflict, second, message)
                    .label("one request has one answer")
                    .also(first, "and this")
                    .help("keep one of the two, or put one in a route of its own"),
            );
        }
    }

    /// What is done with the requests.
    fn action(&mut self, parts: &Parts<'_>, upstreams: &mut Upstreams<'_>) -> Option<Action> {
        let Parts { shared, prefix, place, is_gateway, .. } = *parts;
        let embed = self.embed(shared, place);
        let host = self.host(shared, place);
        let strip = self.strip(shared, prefix, place);
        if shared.strip.as_ref().is_some_and(|at| at.value) && is_gateway {
            let at = shared.strip.as_ref()?;
            self.push(
                Diagnostic::at(
                    Code::StrippedGateway,
                    &at.key,
                    format!("{place} strips its prefix in front of a gateway"),
                )
                .label("the gateway's pages carry absolute links")
                .help("set the gateway's own base path to the prefix, and remove \"strip\""),
            );
        }
        if let Some(redirect) = &shared.redirect {
            return self.redirect(&redirect.value, redirect, place).map(Action::Redirect);
        }
        if let Some(respond) = &shared.respond {
            return self.respond(&respond.value, place).map(Action::Respond);
        }
        let at = shared.upstream.as_ref()?;
        let probe = shared.health.as_ref().and_then(|health| self.probe(&health.value, place));
        let inherited = Inherited { hold: period(shared.hold.as_ref(), 0), probe, is_gateway };
        let upstream = self.upstream(at, inherited, place, upstreams)?;
        let collect_request = shared.collect_request.as_ref().is_some_and(|at| at.value);
        Some(Action::Forward(Forward { upstream, host: host?, collect_request, strip, embed }))
    }

    /// `redirect`.
    fn redirect(&mut self, redirect: &file::Redirect, at: &At<file::Redirect>, place: &str) -> Option<Redirect> {
        let place = format!("\"redirect\" of {place}");
        let status = match redirect.status.as_ref().map(|at| (at.value.0, at)) {
            None => StatusCode::PERMANENT_REDIRECT,
            Some((301, _)) => StatusCode::MOVED_PERMANENTLY,
            Some((302, _)) => StatusCode::FOUND,
            Some((303, _)) => StatusCode::SEE_OTHER,
            Some((307, _)) => StatusCode::TEMPORARY_REDIRECT,
            Some((308, _)) => StatusCode::PERMANENT_REDIRECT,
            Some((other, at)) => {
                self.push(
                    Diagnostic::at(Code::Status, &at.span, format!("{other} in {place} is no redirect"))
                        .help("write 301, 302, 303, 307 or 308"),
                );
                return None;
            }
        };
        let Some(to) = &redirect.to else {
            if !redirect.broken.contains(&"to") {
                let message = format!("{place} has no \"to\"");
                self.push(
                    Diagnostic::at(Code::Missing, &at.span, message).help("add to = \"https://claw.example.com{uri}\""),
                );
            }
            return None;
        };
        let template = self.take(text::template(&to.value, text::REDIRECT_WORDS), Code::RedirectTarget, to, &place)?;
        // "//name" would leave the site in a way that is easily overlooked.
        let is_target = to.value.starts_with("https://")
            || to.value.starts_with("http://")
            || (to.value.starts_with('/') && !to.value.starts_with("//"));
        if !is_target && to.value != "{uri}" {
            let right = to.value.trim_start_matches('/');
            let fault =
                Fault { what: "not a URL or a path".to_owned(), help: Some(format!("write \"https://{right}\"")) };
            return self.take(Err(fault), Code::RedirectTarget, to, &place);
        }
        Some(Redirect { status, to: template })
    }

    /// `respond`.
    fn respond(&mut self, respond: &file::Respond, place: &str) -> Option<Respond> {
        let place = format!("\"respond\" of {place}");
        let number = respond.status.as_ref().map_or(200, |at| at.value.0);
        let status = u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok())?;
        let body = respond.body.as_ref().map_or_else(Bytes::new, |at| Bytes::from(at.value.0.clone()));
        let has_no_body =
            matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
        if has_no_body && !body.is_empty() {
            let span = respond.body.as_ref().map(|at| at.span.clone())?;
            self.push(
                Diagnostic::at(Code::Conflict, &span, format!("an answer {number} has no body, but {place} has one"))
                    .help("remove \"body\", or change the status"),
            );
        }
        let mut headers = Vec::new();
        for (name, value) in respond.headers.as_ref().map_or(&[][..], |map| &map.value.entries) {
            let Some(parsed) = self.writable_header(name, &place) else { continue };
            if let Some(value) = self.take(text::header_value(&value.value), Code::HeaderValue, value, &place) {
                headers.push((parsed, value));
            }
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == http::header::CONTENT_TYPE) {
            headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")));
        }
        Some(Respond { status, headers, body })
    }

    /// `host`.
    fn host(&mut self, shared: &Shared, place: &str) -> Option<HostPolicy> {
        let Some(at) = &shared.host else {
            return Some(HostPolicy::Preserve);
        };
        match at.value.as_str() {
            "preserve" => Some(HostPolicy::Preserve),
            "upstream" => Some(HostPolicy::Upstream),
            literal => {
                let parsed = crate::addr::split_authority(literal)
                    .and_then(|(host, _)| crate::addr::HostName::from_config(host))
                    .map_err(|error| error.to_string())
                    .and_then(|_| HeaderValue::from_str(literal).map_err(|error| error.to_string()))
                    .map_err(|what| Fault {
                        what,
                        help: Some("write \"preserve\", \"upstream\", or a name, with a port if need be".to_owned()),
                    });
                // A slip in a word would otherwise become a name that the upstream never heard of.
                let near = nearest(literal, ["preserve", "upstream"]).filter(|_| !literal.contains('.'));
                let parsed = match near {
                    Some(near) => Err(Fault {
                        what: "probably not a host".to_owned(),
                        help: Some(format!("did you mean \"{near}\"?")),
                    }),
                    None => parsed,
                };
                self.take(parsed, Code::Host, at, &format!("\"host\" of {place}")).map(HostPolicy::Literal)
            }
        }
    }

    /// `strip` and `mount`.
    fn strip(&mut self, shared: &Shared, prefix: &str, place: &str) -> Option<Strip> {
        let is_stripped = shared.strip.as_ref().is_some_and(|at| at.value);
        let mount = match &shared.mount {
            Some(at) => self.take(text::prefix(&at.value), Code::Path, at, &format!("\"mount\" of {place}"))?,
            None => "".into(),
        };
        if let Some(at) = &shared.mount
            && !is_stripped
            && !mount.is_empty()
        {
            let message = format!("{place} has \"mount\" without \"strip\"");
            self.push(
                Diagnostic::at(Code::Conflict, &at.key, message)
                    .label("nothing is taken off that it could replace")
                    .help("add strip = true, or remove \"mount\""),
            );
        }
        // The site's own settings have no prefix to take off.
        (is_stripped && !prefix.is_empty()).then(|| Strip { prefix: prefix.into(), mount })
    }

    /// `embed`.
    fn embed(&mut self, shared: &Shared, place: &str) -> Option<Embed> {
        let entries = list(shared.embed.as_ref());
        let sources = self.origin_list(entries, &format!("\"embed\" of {place}"));
        (!sources.is_empty()).then(|| Embed { directive: format!("frame-ancestors {}", sources.join(" ")).into() })
    }

    /// A list of origins.
    fn origin_list(&mut self, entries: &[At<String>], place: &str) -> Vec<Box<str>> {
        entries.iter().filter_map(|entry| self.take(text::origin(&entry.value), Code::Origin, entry, place)).collect()
    }

    /// `origins`.
    fn origins(&mut self, shared: &Shared, place: &str) -> Option<Origins> {
        let at = shared.origins.as_ref()?;
        let place = format!("\"origins\" of {place}");
        let Some(allow) = &at.value.allow else {
            if !at.value.broken.contains(&"allow") {
                let message = format!("{place} has no \"allow\"");
                self.push(
                    Diagnostic::at(Code::Missing, &at.span, message).help("add allow = [\"https://claw.example.com\"]"),
                );
            }
            return None;
        };
        let missing_allowed = at.value.missing.as_ref().is_none_or(|at| at.value == file::Missing::Allow);
        Some(Origins { allow: self.origin_list(list(Some(allow)), &place), missing_allowed })
    }

    /// `hsts` (RFC 6797).
    fn hsts(&mut self, shared: &Shared, place: &str) -> Option<Hsts> {
        const YEAR: Duration = Duration::from_secs(31_536_000);
        let at = shared.hsts.as_ref()?;
        let mut text = String::from("max-age=");
        match &at.value {
            HstsText::MaxAge(Period(age)) => text.push_str(&age.as_secs().to_string()),
            HstsText::Parts(parts) => {
                let age = parts.max_age.as_ref()?.value.0;
                let says = |at: &Option<At<bool>>| at.as_ref().is_some_and(|at| at.value);
                text.push_str(&age.as_secs().to_string());
                if says(&parts.include_subdomains) {
                    text.push_str("; includeSubDomains");
                }
                if says(&parts.preload) {
                    text.push_str("; preload");
                    if let Some(preload) = &parts.preload
                        && (age < YEAR || !says(&parts.include_subdomains))
                    {
                        let message = format!("\"preload\" in \"hsts\" of {place} has no effect");
                        self.push(
                            Diagnostic::at(Code::HstsPreload, &preload.span, message)
                                .label("browsers take such names only for a year and all subdomains")
                                .help("add max_age = \"365d\" and include_subdomains = true, or remove \"preload\""),
                        );
                    }
                }
            }
        }
        HeaderValue::from_str(&text).ok().map(Hsts)
    }

    /// `headers`.
    fn header_ops(&mut self, shared: &Shared, place: &str) -> HeaderOps {
        let Some(headers) = shared.headers.as_ref().map(|at| &at.value) else {
            return HeaderOps::default();
        };
        let request =
            headers.request.as_ref().map_or_else(HeaderEdits::default, |at| self.edits(&at.value, true, place));
        let response =
            headers.response.as_ref().map_or_else(HeaderEdits::default, |at| self.edits(&at.value, false, place));
        HeaderOps { request, response }
    }

    /// The edits of one side.
    fn edits(&mut self, edits: &file::Edits, is_request: bool, place: &str) -> HeaderEdits {
        let key =
            |key: &str| format!("\"headers.{}.{key}\" of {place}", if is_request { "request" } else { "response" });
        let remove = self.removals(edits.remove.as_ref(), is_request, &key("remove"));
        let set = edits.set.as_ref().map_or_else(Vec::new, |map| self.fields(&map.value, is_request, &key("set")));
        let add = edits.add.as_ref().map_or_else(Vec::new, |map| self.fields(&map.value, is_request, &key("add")));
        HeaderEdits { remove, set, add }
    }

    /// Names to remove.
    fn removals(&mut self, names: Option<&At<List<String>>>, is_request: bool, place: &str) -> Vec<HeaderName> {
        list(names)
            .iter()
            .filter_map(
                |name| if is_request { self.writable_header(name, place) } else { self.framing_safe(name, place) },
            )
            .collect()
    }

    /// Fields to set or add.
    fn fields(&mut self, map: &HeaderMap, is_request: bool, place: &str) -> Vec<(HeaderName, Template)> {
        let mut fields = Vec::new();
        for (name, at) in &map.entries {
            let parsed = if is_request { self.writable_header(name, place) } else { self.framing_safe(name, place) };
            let Some(parsed) = parsed else { continue };
            let value = match &at.value {
                HeaderText::Secret(secret) => {
                    self.secret_header(&at.with((**secret).clone()), place).map(Template::Literal)
                }
                HeaderText::Text(value) => {
                    let value = at.with(value.clone());
                    if text::is_secret_header(parsed.as_str()) {
                        self.report.hide(&at.span);
                    }
                    if is_request && text::is_secret_header(parsed.as_str()) && !value.value.contains('{') {
                        let message = format!("\"{parsed}\" in {place} is a secret in the file itself");
                        self.push(
                            Diagnostic::at(Code::InlineSecret, &at.span, message)
                                .label("copies of the file carry it")
                                .help("write { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }"),
                        );
                    }
                    self.take_unless_secret(
                        text::template(&value.value, text::EDIT_WORDS),
                        &value,
                        parsed.as_str(),
                        place,
                    )
                }
            };
            if let Some(value) = value {
                fields.push((parsed, value));
            }
        }
        fields
    }

    /// As `take`, but the message does not repeat the value of a secret.
    fn take_unless_secret(
        &mut self,
        parsed: Result<Template, Fault>,
        at: &At<String>,
        name: &str,
        place: &str,
    ) -> Option<Template> {
        let shown = if text::is_secret_header(name) { at.with(name.to_owned()) } else { at.clone() };
        self.take(parsed, Code::HeaderValue, &shown, place)
    }

    /// A header that may be written on a request.
    pub(super) fn writable_header(&mut self, name: &At<String>, place: &str) -> Option<HeaderName> {
        let parsed = self.framing_safe(name, place)?;
        // Many programs read "_" as "-", so the other spelling would forge the same header.
        let plain = parsed.as_str().replace('_', "-");
        if OURS.contains(&plain.as_str()) {
            let message = format!("\"{parsed}\" in {place} is always written by the edge");
            let help = "remove it; whose word is taken for the client's address stands in \"proxies\" of [trust]";
            self.push(
                Diagnostic::at(Code::HeaderName, &name.span, message).label("the upstream relies on it").help(help),
            );
            return None;
        }
        Some(parsed)
    }

    /// A header whose change cannot break a message.
    fn framing_safe(&mut self, name: &At<String>, place: &str) -> Option<HeaderName> {
        let parsed = self.take(text::header_name(&name.value), Code::HeaderName, name, place)?;
        if KEPT.contains(&parsed.as_str()) {
            let message = format!("\"{parsed}\" in {place} cannot be edited");
            let help = if parsed == "host" { "use the key \"host\"" } else { "remove it" };
            self.push(Diagnostic::at(Code::HeaderName, &name.span, message).label("it frames the message").help(help));
            return None;
        }
        Some(parsed)
    }
}

/// `timeouts`.
fn timeouts(shared: &Shared) -> Timeouts {
    let usual = Timeouts::default();
    let Some(t) = shared.timeouts.as_ref().map(|at| &at.value) else {
        return usual;
    };
    Timeouts {
        request_body: timeout(t.request_body.as_ref(), usual.request_body),
        connect: timeout(t.connect.as_ref(), usual.connect),
        response_head: timeout(t.response_head.as_ref(), usual.response_head),
        idle: timeout(t.idle.as_ref(), usual.idle),
        send: timeout(t.send.as_ref(), usual.send),
    }
}
