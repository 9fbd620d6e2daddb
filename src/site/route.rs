//! Routes: what a path prefix selects, and what is done there.
//!
//! A prefix matches whole segments of the raw path: `/api` takes `/api` and `/api/x`, never
//! `/apix`. The longest prefix wins; among equal prefixes the one with more conditions. The order
//! in the file never matters. The path is never decoded or rewritten for matching; a path whose
//! encoding could dodge a rule is refused where rules exist (`RouteTable::find`).

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, request};

use super::access::Access;
use super::auth::{Auth, Hook, Service};
use super::limit::Limiters;
use super::policy::{Embed, ErrorPage, HeaderOps, HostPolicy, Hsts, Limits, Origins, Redirect, Respond, Timeouts};
use super::upstream::Upstream;

/// What a path prefix of a site selects. Every value is already the effective one.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which requests it takes.
    pub condition: Condition,
    /// Who may enter; `None` for everybody, at all times.
    pub access: Option<Box<Access>>,
    /// Ways to say who asks, one of which is needed; empty for none. Those that ask nobody come first.
    pub auth: Vec<Arc<Auth>>,
    /// Who is asked whether a request may pass.
    pub hooks: Vec<Arc<Hook>>,
    /// What is done with them.
    pub action: Action,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Size limits.
    pub limits: Limits,
    /// Limits that remember who came before; `None` without any.
    pub limiters: Option<Box<Limiters>>,
    /// Header edits.
    pub headers: HeaderOps,
    /// Origin policy; `None` leaves it to the upstream.
    pub origins: Option<Origins>,
    /// `Strict-Transport-Security`, if it is sent.
    pub hsts: Option<Hsts>,
    /// Pages in place of our own answers.
    pub errors: Vec<ErrorPage>,
}

impl Route {
    /// The services that are asked about its requests.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.auth.iter().filter_map(|auth| auth.service()).chain(self.hooks.iter().map(|hook| &hook.service))
    }
}

/// Which requests a route takes.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// The mount: begins with `/`, no `/` at its end; empty for all paths.
    pub prefix: Box<str>,
    /// Methods; empty for all.
    pub methods: Vec<Method>,
    /// Header fields that must be present with this value; `None` for any value.
    pub headers: Vec<(HeaderName, Option<HeaderValue>)>,
    /// Only tunnels (`true`), only other requests (`false`), or both.
    pub upgrade: Option<bool>,
}

/// What a route does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send it upstream.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a fixed response.
    Respond(Respond),
}

/// How a request is sent upstream.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where to.
    pub upstream: Arc<Upstream>,
    /// Which `Host` it carries.
    pub host: HostPolicy,
    /// Whether the body is collected before the upstream is asked.
    pub collect_request: bool,
    /// The path is changed only where `strip` says so.
    pub strip: Option<Strip>,
    /// Who may frame the pages.
    pub embed: Option<Embed>,
}

/// The matched prefix is taken off, and another put in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strip {
    /// What the client sees: the route's prefix.
    pub prefix: Box<str>,
    /// What the upstream sees in its place: `mount`, empty for the root.
    pub mount: Box<str>,
}

/// The routes of one site, most specific first.
#[derive(Clone, Debug, Default)]
pub struct RouteTable(Vec<Arc<Route>>);

/// Why no route was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// Nothing matches the path.
    NotFound,
    /// The path holds an encoded separator or dot segment, which could mean another path upstream.
    AmbiguousPath,
}

impl RouteTable {
    /// Sorts the routes by specificity.
    pub fn new(mut routes: Vec<Arc<Route>>) -> Self {
        routes.sort_by_key(|route| {
            let c = &route.condition;
            let conditions = usize::from(!c.methods.is_empty()) + c.headers.len() + usize::from(c.upgrade.is_some());
            (std::cmp::Reverse(c.prefix.len()), std::cmp::Reverse(conditions))
        });
        Self(routes)
    }

    /// All routes, most specific first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.iter()
    }

    /// The route of a request.
    ///
    /// # Errors
    /// When no route takes it, or when its path could be read as another one and this site has
    /// rules on paths.
    pub fn find(&self, head: &request::Parts, is_tunnel: bool) -> Result<&Arc<Route>, NoRoute> {
        let path = head.uri.path();
        let pick = |path: &str| self.0.iter().find(|route| route.condition.takes(path, head, is_tunnel));
        let route = pick(path);
        if self.0.iter().any(|route| !route.condition.prefix.is_empty()) {
            // A rule is dodged that the raw path passes by, and the path as a lax endpoint reads it does not.
            let is_dodging = |plain: String| pick(&plain).map(Arc::as_ptr) != route.map(Arc::as_ptr);
            if is_ambiguous(path) || plain(path).is_some_and(is_dodging) {
                return Err(NoRoute::AmbiguousPath);
            }
        }
        route.ok_or(NoRoute::NotFound)
    }
}

impl Condition {
    /// True when the request is this route's.
    fn takes(&self, path: &str, head: &request::Parts, is_tunnel: bool) -> bool {
        has_prefix(path, &self.prefix)
            && self.upgrade.is_none_or(|wanted| wanted == is_tunnel)
            && (self.methods.is_empty() || self.methods.contains(&head.method))
            && self.headers.iter().all(|(name, value)| match value {
                Some(value) => head.headers.get_all(name).iter().any(|found| found == value),
                None => head.headers.contains_key(name),
            })
    }
}

/// True when `prefix` is `path` or ends at one of its segment boundaries.
pub fn has_prefix(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
}

/// The path as lax endpoints read it: encoded letters, digits and `-._~` plain (RFC 3986 6.2.2.2 calls
/// both forms one), slashes merged, segments without `;` parameters. `None` when it is so already.
fn plain(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    if memchr::memchr2(b'%', b';', bytes).is_none() && memchr::memmem::find(bytes, b"//").is_none() {
        return None;
    }
    let mut plain = String::with_capacity(path.len());
    let (mut rest, mut is_parameter) = (path, false);
    while let Some(next) = rest.chars().next() {
        let encoded = rest.get(..3).and_then(|text| u8::from_str_radix(text.strip_prefix('%')?, 16).ok());
        let encoded = encoded.map(char::from).filter(|c| c.is_ascii_alphanumeric() || "-._~".contains(*c));
        rest = &rest[if encoded.is_some() { 3 } else { next.len_utf8() }..];
        is_parameter = next == ';' || (is_parameter && next != '/');
        let is_repeated = next == '/' && plain.ends_with('/');
        if !is_parameter && !is_repeated {
            plain.push(encoded.unwrap_or(next));
        }
    }
    Some(plain)
}

/// True for what one server reads as a separator, a dot segment or an end, and another does not:
/// `%2f`, `%5c`, `%00`, `\`, and `.` or `..` as a segment in any spelling.
fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    if memchr::memchr3(b'%', b'\\', b'.', bytes).is_none() {
        return false;
    }
    let is_encoded = |at: usize| {
        matches!(
            &bytes[at..],
            [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] | [b'%', b'0', b'0', ..] | [b'\\', ..]
        )
    };
    if memchr::memchr2_iter(b'%', b'\\', bytes).any(is_encoded) {
        return true;
    }
    const DOTS: [&[u8]; 6] = [b".", b"..", b"%2e", b".%2e", b"%2e.", b"%2e%2e"];
    bytes.split(|byte| *byte == b'/').filter(|segment| matches!(segment, [b'.' | b'%', ..])).any(|segment| {
        let plain = segment.split(|byte| *byte == b';').next().unwrap_or(segment);
        DOTS.iter().any(|dots| plain.eq_ignore_ascii_case(dots))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_takes_whole_segments() {
        for (path, prefix, expected) in [
            ("/api", "/api", true),
            ("/api/x", "/api", true),
            ("/apix", "/api", false),
            ("/", "", true),
            ("/x", "", true),
            ("*", "", true),
            ("/API", "/api", false),
        ] {
            assert_eq!(has_prefix(path, prefix), expected, "{path} {prefix}");
        }
    }

    #[test]
    fn a_path_has_one_plain_form() {
        for (path, expected) in [
            ("/admin", None),
            ("/%61dmin", Some("/admin")),
            ("/%7Euser/%2D", Some("/~user/-")),
            ("//admin", Some("/admin")),
            ("/a;x=1/b;y", Some("/a/b")),
            ("/a%3Ab%20c", Some("/a%3Ab%20c")),
            ("/%2561", Some("/%2561")),
            ("/%+1%6", Some("/%+1%6")),
            ("/%\u{e9}%41", Some("/%\u{e9}A")),
        ] {
            assert_eq!(plain(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_path_that_could_dodge_a_rule_is_ambiguous() {
        for path in ["/a%2fb", "/a%5Cb", "/a%00", "/a\\b", "/a/../b", "/a/%2e%2E/b", "/./a", "/a/..;x/b", "/.%2e"] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in ["/", "/a.b/c", "/agent%3Amain%3Ax", "/...", "/a..b", "/.well-known/x", "/100%25"] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }
}
