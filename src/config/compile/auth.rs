//! `[auth]` and `[hooks]`, and the lists that name them: ways to say who asks, services that decide.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::text::{self, Fault, Target, fault, fault_help};
use super::{Compiler, defined_twice, list, timeout};
use crate::config::disk;
use crate::config::file::{self, AuthType, File, Shared};
use crate::config::read::{At, nearest, quoted};
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::values::{List, Map, Timeout};
use crate::site::SiteTls;
use crate::site::auth::{Auth, BasicAuth, CertAuth, ForwardAuth, Hook, Means, Service, SkipIf};
use crate::site::policy::Timeouts;
use crate::site::route::RouteTable;
use crate::site::upstream::{Balance, Endpoint, EndpointAddr, EndpointTls, Upstream};
use crate::site::users::{UserList, Users};

/// All of `[auth]` and `[hooks]`.
#[derive(Default)]
pub(super) struct Ways {
    auths: Vec<Defined<Auth>>,
    hooks: Vec<Defined<Hook>>,
}

/// One of them.
struct Defined<T> {
    name: At<String>,
    /// `None` when it had faults.
    made: Option<Arc<T>>,
    is_used: bool,
}

/// Idle connections to a service that each worker keeps.
const MAX_IDLE: usize = 16;

/// They are kept this long: below the 5 s of Node and of Go's small services.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

impl Ways {
    /// The identity headers of all, used or not.
    pub(super) fn identity_headers(&self) -> Vec<HeaderName> {
        let made = self.auths.iter().filter_map(|defined| defined.made.as_ref());
        made.flat_map(|auth| auth.identity_headers()).cloned().collect()
    }

    /// Names that nothing uses, and what they are names of.
    pub(super) fn unused(&self) -> impl Iterator<Item = (&'static str, &At<String>)> {
        let auths = self.auths.iter().filter(|defined| !defined.is_used).map(|defined| ("auth", &defined.name));
        auths.chain(self.hooks.iter().filter(|defined| !defined.is_used).map(|defined| ("hook", &defined.name)))
    }
}

impl Compiler<'_> {
    /// `[auth]` and `[hooks]`.
    pub(super) fn ways(&mut self, file: &File) -> Ways {
        let auths = self.defined("auth", file.auth.as_ref().map(|at| &at.value), Self::auth);
        let hooks = self.defined("hook", file.hooks.as_ref().map(|at| &at.value), Self::hook);
        Ways { auths, hooks }
    }

    /// The tables of one kind.
    fn defined<F, T>(
        &mut self,
        kind: &str,
        map: Option<&Map<F>>,
        make: impl Fn(&mut Self, &At<String>, &At<F>) -> Option<T>,
    ) -> Vec<Defined<T>> {
        let mut found: Vec<Defined<T>> = Vec::new();
        for (name, at) in map.map_or(&[][..], |map| &map.entries) {
            if let Some(first) = found.iter().find(|first| first.name.value == name.value) {
                self.push(defined_twice(kind, &first.name, name));
                continue;
            }
            // It stands in records and in answers.
            let is_name = (1..=64).contains(&name.value.len())
                && name.value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            if !is_name {
                let message = format!("\"{}\" cannot be the name of {kind}", name.value);
                self.push(
                    Diagnostic::at(Code::AuthName, &name.span, message)
                        .help("use at most 64 letters, digits, \"-\" and \"_\""),
                );
                continue;
            }
            let made = make(self, name, at).map(Arc::new);
            found.push(Defined { name: name.clone(), made, is_used: false });
        }
        found
    }

    /// One of `[auth]`.
    fn auth(&mut self, name: &At<String>, at: &At<file::Auth>) -> Option<Auth> {
        let place = format!("auth \"{}\"", name.value);
        let kind = at.value.r#type.as_ref()?.value;
        self.keys_of_type(at, kind, &place)?;
        let means = match kind {
            AuthType::Basic => Means::Basic(self.basic_auth(&at.value, &place)?),
            AuthType::Forward => Means::Forward(self.forward_auth(&at.value, &place)?),
            AuthType::ClientCert => {
                let header = self.optional_identity(at.value.header.as_ref(), &place)?;
                let subjects = list(at.value.subjects.as_ref()).iter().map(|at| at.value.as_str().into()).collect();
                Means::ClientCert(CertAuth { subjects, header })
            }
        };
        Some(Auth { name: name.value.as_str().into(), means })
    }

    /// Reports keys of other types and missing ones; `None` when one is missing.
    fn keys_of_type(&mut self, at: &At<file::Auth>, kind: AuthType, place: &str) -> Option<()> {
        let auth = &at.value;
        let written: [(&str, Option<&Span>, &str); 8] = [
            ("users", auth.users.as_ref().map(|at| &at.key), "\"/etc/tidegate/users\""),
            ("realm", auth.realm.as_ref().map(|at| &at.key), ""),
            ("header", auth.header.as_ref().map(|at| &at.key), ""),
            ("subjects", auth.subjects.as_ref().map(|at| &at.key), ""),
            ("url", auth.url.as_ref().map(|at| &at.key), "\"http://127.0.0.1:9091/api/authz/forward-auth\""),
            ("timeout", auth.timeout.as_ref().map(|at| &at.key), ""),
            ("copy_headers", auth.copy_headers.as_ref().map(|at| &at.key), ""),
            ("skip_if", auth.skip_if.as_ref().map(|at| &at.key), ""),
        ];
        let (word, needed, allowed): (&str, &[&str], &[&str]) = match kind {
            AuthType::Basic => ("basic", &["users"], &["realm", "header"]),
            AuthType::Forward => ("forward", &["url"], &["timeout", "copy_headers", "skip_if"]),
            AuthType::ClientCert => ("client_cert", &[], &["subjects", "header"]),
        };
        let mut is_whole = true;
        for (key, span, example) in written {
            match span {
                Some(span) if !needed.contains(&key) && !allowed.contains(&key) => {
                    let message = format!("\"{key}\" of {place} does not belong to the type \"{word}\"");
                    let keys = quoted(needed.iter().chain(allowed).copied());
                    self.push(
                        Diagnostic::at(Code::Conflict, span, message)
                            .help(format!("remove it; this type takes {keys}")),
                    );
                }
                None if needed.contains(&key) => {
                    is_whole = false;
                    if !auth.broken.contains(&key) {
                        self.push(
                            Diagnostic::at(Code::Missing, &at.span, format!("{place} has no \"{key}\""))
                                .label(format!("the type \"{word}\" needs \"{key}\""))
                                .help(format!("add {key} = {example}")),
                        );
                    }
                }
                _ => {}
            }
        }
        is_whole.then_some(())
    }

    /// `type = "basic"`.
    fn basic_auth(&mut self, auth: &file::Auth, place: &str) -> Option<BasicAuth> {
        let challenge = match &auth.realm {
            Some(realm) => {
                self.take(challenge(&realm.value), Code::HeaderValue, realm, &format!("\"realm\" of {place}"))
            }
            None => challenge("tidegate").ok(),
        };
        let header = self.optional_identity(auth.header.as_ref(), place);
        let users = self.user_list(auth.users.as_ref()?, &format!("\"users\" of {place}"));
        Some(BasicAuth { users: users?, challenge: challenge?, header: header? })
    }

    /// Reads a users file.
    fn user_list(&mut self, at: &At<file::Users>, place: &str) -> Option<Arc<UserList>> {
        let (span, path) = match &at.value {
            file::Users::Path(path) => (at.span.clone(), disk::resolve(&at.span, path)),
            file::Users::Secret(secret) => {
                if let Some(env) = &secret.env {
                    let message = format!("{place} is a file, which is read again when it changes");
                    let help = "write the path of a file, or { credential = \"…\" }";
                    self.push(Diagnostic::at(Code::Conflict, &env.key, message).help(help));
                    return None;
                }
                self.secret_path(&at.with((**secret).clone()), place)?
            }
        };
        let text = match disk::read_text(&path) {
            Ok(text) => text,
            Err(why) => {
                self.cannot_read(&span, &path, place, &why);
                return None;
            }
        };
        if disk::is_readable_by_others(&path) {
            let message = format!("every user of this machine can read {place}");
            let help = format!("chmod 0600 {}: hashes of weak passwords can be guessed", path.display());
            self.push(Diagnostic::at(Code::ReadableByOthers, &span, message).help(help));
        }
        match Users::parse(&text) {
            Ok(users) => {
                if users.count() == 0 {
                    let message = format!("{place} holds nobody: no login succeeds");
                    self.push(
                        Diagnostic::at(Code::NobodyLogsIn, &span, message)
                            .help("add a line: tidegate hash-password --user NAME"),
                    );
                }
                Some(Arc::new(UserList::new(path, users)))
            }
            Err(faults) => {
                let message = format!("{} of the file in {place} cannot be used", counted_lines(faults.len()));
                let mut diagnostic = Diagnostic::at(Code::Content, &span, message);
                for fault in faults.iter().take(10) {
                    diagnostic = diagnostic.help(format!("line {}: {}; {}", fault.line, fault.what, fault.help));
                }
                self.push(diagnostic);
                None
            }
        }
    }

    /// `type = "forward"`.
    fn forward_auth(&mut self, auth: &file::Auth, place: &str) -> Option<ForwardAuth> {
        let service = self.service(auth.url.as_ref()?, auth.timeout.as_ref(), 5, place, &[&auth.why]);
        let place = format!("\"copy_headers\" of {place}");
        // In their order: the first one names the user in records.
        let mut copy_headers: Vec<HeaderName> = Vec::new();
        for entry in list(auth.copy_headers.as_ref()) {
            let name = self.identity_header(entry, &place);
            copy_headers.extend(name.filter(|name| !copy_headers.contains(name)));
        }
        let skip_if = auth.skip_if.as_ref().map_or(&[][..], |at| &at.value);
        let skip_if = skip_if.iter().map(|at| match at.value {
            file::SkipIf::Bearer => SkipIf::Bearer,
            file::SkipIf::ClientCert => SkipIf::ClientCert,
        });
        Some(ForwardAuth { service: service?, copy_headers, skip_if: skip_if.collect() })
    }

    /// One of `[hooks]`.
    fn hook(&mut self, name: &At<String>, at: &At<file::Hook>) -> Option<Hook> {
        let place = format!("hook \"{}\"", name.value);
        let hook = &at.value;
        let service = self.service(hook.url.as_ref()?, hook.timeout.as_ref(), 1, &place, &[&hook.why]);
        let mut headers = Vec::new();
        for entry in list(hook.headers.as_ref()) {
            let place = format!("\"headers\" of {place}");
            let Some(header) = self.take(text::header_name(&entry.value), Code::HeaderName, entry, &place) else {
                continue;
            };
            if text::is_secret_header(header.as_str()) {
                let message = format!("\"{header}\" in {place} is a secret, and is not told");
                self.push(
                    Diagnostic::at(Code::HeaderName, &entry.span, message)
                        .help("remove it: a service that decides about requests needs no credentials"),
                );
                continue;
            }
            headers.push(header);
        }
        Some(Hook {
            name: name.value.as_str().into(),
            service: service?,
            is_enforced: hook.mode.as_ref().is_some_and(|at| at.value == file::HookMode::Enforce),
            passes_on_error: hook.on_error.as_ref().is_some_and(|at| at.value == file::OnError::Allow),
            headers,
        })
    }

    /// A service that is asked about requests, for at most `seconds` where it says nothing else.
    fn service(
        &mut self,
        url: &At<String>,
        limit: Option<&At<Timeout>>,
        seconds: u64,
        place: &str,
        reasons: &[&Option<At<String>>],
    ) -> Option<Service> {
        self.reason(limit.map(|at| at.with(at.value.0)), "timeout", place, reasons);
        let patience = timeout(limit, Duration::from_secs(seconds));
        let parsed = service_url(&url.value);
        let Url { address, server_name, host, target } =
            self.take(parsed, Code::Url, url, &format!("\"url\" of {place}"))?;
        self.warn_of_cleartext(&address, server_name.is_some(), url);
        let tls = server_name.map(|server_name| EndpointTls { server_name, ca: None, client: None });
        let endpoint = Endpoint::new(address, tls, KEEP_ALIVE, MAX_IDLE);
        let upstream = Upstream {
            name: Arc::clone(&endpoint.label),
            endpoints: vec![Arc::new(endpoint)],
            balance: Balance::LeastConn,
            hold: Duration::ZERO,
            probe: None,
            bound: None,
        };
        let usual = Timeouts::default();
        let timeouts =
            Timeouts { connect: usual.connect.min(patience), response_head: patience, idle: patience, ..usual };
        Some(Service { upstream: Arc::new(upstream), host, target, timeouts, patience })
    }

    /// A header by which the upstream learns who asks. The outer `None` means a fault.
    fn optional_identity(&mut self, at: Option<&At<String>>, place: &str) -> Option<Option<HeaderName>> {
        at.map_or(Some(None), |at| self.identity_header(at, &format!("\"header\" of {place}")).map(Some))
    }

    /// The same, when it is there.
    pub(super) fn identity_header(&mut self, at: &At<String>, place: &str) -> Option<HeaderName> {
        let name = self.writable_header(at, place)?;
        let text = name.as_str();
        if text.contains('_') {
            let message = format!("\"{name}\" in {place} has a \"_\", and such a header passes from nobody");
            let help = format!("write \"{}\"", text.replace('_', "-"));
            self.push(Diagnostic::at(Code::HeaderName, &at.span, message).help(help));
            return None;
        }
        if NOT_IDENTITY.contains(&text) || ["content-", "sec-", "accept"].iter().any(|begin| text.starts_with(begin)) {
            let message = format!("\"{name}\" in {place} cannot say who asks");
            self.push(
                Diagnostic::at(Code::HeaderName, &at.span, message)
                    .label("it would be taken from every client, on every site")
                    .help("use a header of its own, such as \"x-forwarded-user\""),
            );
            return None;
        }
        Some(name)
    }

    /// `auth` of a site or route: those that ask nobody come first.
    pub(super) fn auths(&mut self, shared: &Shared, place: &str) -> Vec<Arc<Auth>> {
        let mut found = named(self.report, &mut self.ways.auths, shared.auth.as_ref(), "auth", place);
        found.sort_by_key(|auth| match auth.means {
            Means::ClientCert(_) => 0,
            Means::Basic(_) => 1,
            Means::Forward(_) => 2,
        });
        found
    }

    /// `hooks` of a site or route.
    pub(super) fn hooks(&mut self, shared: &Shared, place: &str) -> Vec<Arc<Hook>> {
        named(self.report, &mut self.ways.hooks, shared.hooks.as_ref(), "hooks", place)
    }

    /// Reports a site that takes client certificates, and asks nobody for one.
    pub(super) fn certificates_are_asked_for(
        &mut self,
        place: &str,
        span: &Span,
        tls: Option<&SiteTls>,
        routes: &RouteTable,
    ) {
        let is_asked = tls.is_some_and(|tls| tls.policy.client_cert.is_some());
        let taker = routes.iter().flat_map(|route| &route.auth).find(|auth| matches!(auth.means, Means::ClientCert(_)));
        if let Some(auth) = taker.filter(|_| !is_asked) {
            let message =
                format!("{place} takes client certificates by auth \"{}\", and asks no client for one", auth.name);
            self.push(
                Diagnostic::at(Code::NoClientCert, span, message)
                    .help("add client_cert = { ca = \"clients.pem\", required = false } to the site"),
            );
        }
    }
}

/// The entries of a list of names.
fn named<T>(
    report: &mut crate::config::report::Report,
    defined: &mut [Defined<T>],
    names: Option<&At<List<String>>>,
    key: &str,
    place: &str,
) -> Vec<Arc<T>> {
    let mut found: Vec<Arc<T>> = Vec::new();
    for entry in list(names) {
        if let Some(one) = defined.iter_mut().find(|defined| defined.name.value == entry.value) {
            one.is_used = true;
            found.extend(one.made.clone().filter(|made| !found.iter().any(|other| Arc::ptr_eq(other, made))));
            continue;
        }
        let table = if key == "auth" { "auth" } else { "hooks" };
        let place = super::in_layer(&format!("\"{key}\" of {place}"), entry.layer);
        let message = format!("{place} names \"{}\", which is not defined", entry.value);
        let names = || defined.iter().map(|defined| defined.name.value.as_str());
        let help = match nearest(&entry.value, names()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if defined.is_empty() => format!("add [{table}.{}]", entry.value),
            None => format!("add [{table}.{}], or use one of: {}", entry.value, quoted(names())),
        };
        report.push(Diagnostic::at(Code::Undefined, &entry.span, message).help(help));
    }
    found
}

fn counted_lines(number: usize) -> String {
    if number == 1 { "a line".to_owned() } else { format!("{number} lines") }
}

/// Headers that clients need for something else.
const NOT_IDENTITY: &[&str] = &[
    "authorization",
    "cookie",
    "set-cookie",
    "origin",
    "referer",
    "user-agent",
    "range",
    "cache-control",
    "date",
    "via",
    "x-openclaw-token",
];

/// `WWW-Authenticate` (RFC 7617 2, 2.1): names and passwords are UTF-8.
fn challenge(realm: &str) -> Result<HeaderValue, Fault> {
    let is_plain = realm.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    if !is_plain || realm.len() > 100 {
        return Err(fault("a realm has at most 100 visible ASCII characters, without quotes"));
    }
    HeaderValue::from_str(&format!("Basic realm=\"{realm}\", charset=\"UTF-8\""))
        .map_err(|error| fault(error.to_string()))
}

/// The URL of a service, in its parts.
struct Url {
    address: EndpointAddr,
    /// With TLS: the name for the certificate.
    server_name: Option<Arc<str>>,
    host: HeaderValue,
    target: PathAndQuery,
}

/// Reads `http://name:port/path?query`, `https://…`, or `unix:/path:/path-of-the-url`.
fn service_url(text: &str) -> Result<Url, Fault> {
    const HELP: &str = "write \"http://127.0.0.1:9091/path\", \"https://name/path\", or \"unix:/run/x.sock:/path\"";
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains('#');
    if !is_plain {
        return Err(fault_help("not the URL of a service", HELP));
    }
    if text.contains('@') {
        return Err(fault_help("a URL here has no user name or password", HELP));
    }
    let (server, target) = match text.strip_prefix("unix:") {
        Some(path) => {
            let at = path.find(":/").unwrap_or(path.len());
            (&text[.."unix:".len() + at], path.get(at + 1..).unwrap_or("/"))
        }
        None => {
            let begin = text.find("://").ok_or_else(|| fault_help("not the URL of a service", HELP))? + 3;
            let at = text[begin..].find(['/', '?']).map_or(text.len(), |at| begin + at);
            text.split_at(at)
        }
    };
    let target = match target {
        "" => "/".to_owned(),
        query if query.starts_with('?') => format!("/{query}"),
        path => path.to_owned(),
    };
    let target = target.parse().map_err(|_| fault_help("the path of the URL is malformed", HELP))?;
    let Target::Server { address, tls, name } = text::upstream(server)? else {
        return Err(fault_help("not the URL of a service", HELP));
    };
    // Servers at a unix socket expect this name.
    let authority = server.split_once("://").map_or("localhost", |(_, authority)| authority);
    let host = HeaderValue::from_str(authority).map_err(|_| fault_help("not the URL of a service", HELP))?;
    let server_name = name.filter(|_| tls == Some(true));
    Ok(Url { address, server_name, host, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_a_service_has_a_server_and_a_path() {
        for (text, expected) in [
            ("http://127.0.0.1:9091", Some(("127.0.0.1:9091", "127.0.0.1:9091", "/", false))),
            ("http://auth:9091/a/b?c=d", Some(("auth:9091", "auth:9091", "/a/b?c=d", false))),
            ("https://auth.example.com/x", Some(("auth.example.com:443", "auth.example.com", "/x", true))),
            ("https://auth.example.com?x", Some(("auth.example.com:443", "auth.example.com", "/?x", true))),
            ("unix:/run/a.sock", Some(("unix:/run/a.sock", "localhost", "/", false))),
            ("unix:/run/a.sock:/x?y", Some(("unix:/run/a.sock", "localhost", "/x?y", false))),
            ("127.0.0.1:9091", None),
            ("auth", None),
            ("http://user:pass@auth/", None),
            ("http://auth/#x", None),
            ("http://auth/a b", None),
            ("ftp://auth/", None),
        ] {
            let url = service_url(text).ok();
            let found = url.as_ref().map(|url| {
                let host = url.host.to_str().expect("text");
                (url.address.to_string(), host, url.target.as_str(), url.server_name.is_some())
            });
            let expected = expected.map(|(address, host, target, tls)| (address.to_owned(), host, target, tls));
            assert_eq!(found, expected, "{text}");
        }
    }
}
