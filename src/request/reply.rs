//! The endpoint's response on its way to the client.
//!
//! Status, body and headers stay as they are, but for hop-by-hop headers, what the route says
//! (prefix, framing, HSTS, edits), and what helps streams and readers of error answers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};

use super::exchange::{Clue, Exchange};
use crate::body::{Body, BodyError};
use crate::forward::Answer;
use crate::forward::answer::AnswerBody;
use crate::policy::headers;
use crate::refusal::{PROXY_STATUS, received_status};
use crate::site::policy::Embed;
use crate::site::route::{Forward, Route, Strip};

/// nginx and others in front of us take it as the word not to hold a stream back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A response that is ready for the client.
pub struct Reply {
    /// What the client gets.
    pub response: Response<Source>,
    /// What may have to be recognised in the body.
    pub clue: Option<Clue>,
}

/// Where the bytes of a response come from.
#[derive(Debug)]
pub enum Source {
    /// From us.
    Own(Body),
    /// From an endpoint.
    Endpoint(AnswerBody),
}

impl Reply {
    /// An answer of ours.
    pub fn own(response: Response<Body>) -> Self {
        Self { response: response.map(Source::Own), clue: None }
    }
}

impl Source {
    /// Whether an endpoint answers.
    pub fn is_from_endpoint(&self) -> bool {
        matches!(self, Self::Endpoint(_))
    }
}

/// Makes an endpoint's response ready: head changed where it must be, body streamed.
pub fn from_endpoint(exchange: &Exchange, answer: Answer, forward: &Forward) -> Reply {
    let (mut head, body) = answer.response.into_parts();
    prepare(head.status, &mut head.headers, forward, exchange.notes.host.as_ref());
    let clue = wants_clue(head.status, &head.headers).then(Clue::default);
    // A 403 with a clue is judged by its body.
    if head.status == StatusCode::UNAUTHORIZED || (head.status == StatusCode::FORBIDDEN && clue.is_none()) {
        exchange.auth_failed();
    }
    Reply { response: Response::from_parts(head, Source::Endpoint(body)), clue }
}

/// A response body on its way to the client, followed to its last byte. With it ends the exchange.
pub struct ReplyBody {
    source: Source,
    exchange: Box<Exchange>,
    clue: Option<Clue>,
}

impl ReplyBody {
    /// Follows `source` for an exchange.
    pub fn new(source: Source, exchange: Box<Exchange>, clue: Option<Clue>) -> Self {
        Self { source, exchange, clue }
    }

    /// Limits how much is read from an endpoint at once, or no more.
    pub fn limit_read(&mut self, most: Option<usize>) {
        if let Source::Endpoint(body) = &mut self.source {
            body.limit_read(most);
        }
    }

    fn end(&mut self) {
        self.exchange.completed();
        if let Some(clue) = self.clue.take() {
            clue.judge(&self.exchange);
        }
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut frame = ready!(match &mut this.source {
            Source::Own(body) => Pin::new(body).poll_frame(cx),
            Source::Endpoint(body) => Pin::new(body).poll_frame(cx),
        });
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.exchange.passed(data.len());
                    if let Some(clue) = &mut this.clue {
                        clue.saw(data);
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
            }
            Some(Err(error)) => this.exchange.aborted(error),
            None => this.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Endpoint(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Endpoint(body) => body.size_hint(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // Nobody polls a body again whose length has been reached, nor at all one that a HEAD does not get.
        let is_for_head = self.exchange.notes.method == Method::HEAD && !self.source.is_from_endpoint();
        if self.is_end_stream() || is_for_head {
            self.end();
        } else if let Some(clue) = self.clue.take() {
            // Whoever hangs up early must not thereby guess without end.
            clue.judge(&self.exchange);
        }
    }
}

/// Changes a response head where it must be changed.
pub fn prepare(status: StatusCode, fields: &mut HeaderMap, forward: &Forward, host: Option<&HeaderValue>) {
    headers::clean_response(fields);
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // RFC 9110 8.6: these never have a length. To a client over HTTP/2 one would be a malformed answer.
        fields.remove(CONTENT_LENGTH);
    }
    if status.is_client_error() || status.is_server_error() {
        // RFC 9209 2: a list, to which each hop adds. What hops behind us said stays.
        fields.append(PROXY_STATUS, received_status(status));
    }
    if is_event_stream(fields) {
        fields.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    }
    if let Some(strip) = &forward.strip {
        map_back(fields, strip, host);
    }
    if let Some(embed) = &forward.embed {
        allow_framing(fields, embed);
    }
}

fn is_event_stream(fields: &HeaderMap) -> bool {
    fields.get(CONTENT_TYPE).is_some_and(|value| {
        let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

fn wants_clue(status: StatusCode, fields: &HeaderMap) -> bool {
    status == StatusCode::FORBIDDEN
        && fields.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

/// `strip`: `Location` and cookie paths speak of the upstream's paths; the client knows ours.
fn map_back(fields: &mut HeaderMap, strip: &Strip, host: Option<&HeaderValue>) {
    if let Some(location) = fields.get(LOCATION).and_then(|value| value.to_str().ok())
        && let Some(mapped) = map_location(location, strip, host)
        && let Ok(value) = HeaderValue::from_str(&mapped)
    {
        fields.insert(LOCATION, value);
    }
    if !fields.contains_key(SET_COOKIE) {
        return;
    }
    let cookies: Vec<HeaderValue> = fields.get_all(SET_COOKIE).iter().map(|cookie| map_cookie(cookie, strip)).collect();
    fields.remove(SET_COOKIE);
    for cookie in cookies {
        fields.append(SET_COOKIE, cookie);
    }
}

/// `Location` is a path, or a URL on the host that was asked for.
fn map_location(location: &str, strip: &Strip, host: Option<&HeaderValue>) -> Option<String> {
    let Some((scheme, rest)) = location.split_once("://") else { return map_path(location, strip) };
    let (authority, path) = rest.split_at(rest.find('/')?);
    let is_ours = host.is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()));
    is_ours.then(|| map_path(path, strip).map(|path| format!("{scheme}://{authority}{path}")))?
}

/// An absolute path below the mount becomes one below the prefix. `//host/x` is another host's.
fn map_path(path: &str, strip: &Strip) -> Option<String> {
    if !path.starts_with('/') || path.starts_with("//") {
        return None;
    }
    let rest = path.strip_prefix(&*strip.mount)?;
    (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then(|| format!("{}{rest}", strip.prefix))
}

fn map_cookie(cookie: &HeaderValue, strip: &Strip) -> HeaderValue {
    let Ok(text) = cookie.to_str() else { return cookie.clone() };
    let mapped: Vec<String> = text
        .split(';')
        .map(|part| match part.split_once('=') {
            Some((name, path)) if name.trim().eq_ignore_ascii_case("path") => {
                map_path(path.trim(), strip).map_or(part.to_owned(), |path| format!("{name}={path}"))
            }
            _ => part.to_owned(),
        })
        .collect();
    HeaderValue::from_str(&mapped.join(";")).unwrap_or_else(|_| cookie.clone())
}

/// `embed`: the listed pages may frame this one. Only the one directive changes; the rest of a
/// policy stays byte for byte.
fn allow_framing(fields: &mut HeaderMap, embed: &Embed) {
    fields.remove(X_FRAME_OPTIONS);
    let policies: Vec<HeaderValue> = fields
        .get_all(CONTENT_SECURITY_POLICY)
        .iter()
        .map(|policy| match policy.to_str() {
            Ok(text) => HeaderValue::from_str(&replace_directive(text, embed)).unwrap_or_else(|_| policy.clone()),
            Err(_) => policy.clone(),
        })
        .collect();
    fields.remove(CONTENT_SECURITY_POLICY);
    if policies.is_empty() {
        if let Ok(policy) = HeaderValue::from_str(&embed.directive) {
            fields.insert(CONTENT_SECURITY_POLICY, policy);
        }
        return;
    }
    for policy in policies {
        fields.append(CONTENT_SECURITY_POLICY, policy);
    }
}

fn replace_directive(policy: &str, embed: &Embed) -> String {
    let is_framing =
        |part: &str| part.trim_start().get(..15).is_some_and(|name| name.eq_ignore_ascii_case("frame-ancestors"));
    if !policy.split(';').any(is_framing) {
        return format!("{}; {}", policy.trim_end().trim_end_matches(';'), embed.directive);
    }
    let parts = policy.split(';').map(|part| {
        if !is_framing(part) {
            return part.to_owned();
        }
        let blank = &part[..part.len() - part.trim_start().len()];
        format!("{blank}{}", embed.directive)
    });
    parts.collect::<Vec<_>>().join(";")
}

/// What the route says about every response, ours included.
pub fn write_policy(fields: &mut HeaderMap, route: &Route, exchange: &Exchange) {
    if let Some(hsts) = &route.hsts
        && exchange.scheme() == "https"
    {
        // RFC 6797 7.2: only over a secure transport. The gateway's own value stays.
        fields.entry(STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.0.clone());
    }
    headers::edit(fields, &route.headers.response, &exchange.values());
}

/// The operator's page in place of ours; status and headers that explain it stay.
pub fn replace_page(response: &mut Response<Body>, route: &Route) {
    let status = response.status();
    let Some(page) = route.errors.iter().find(|page| page.status == status) else { return };
    *response.body_mut() = Body::full(page.body.clone());
    let fields = response.headers_mut();
    fields.remove(CONTENT_SECURITY_POLICY);
    fields.remove(CONTENT_LENGTH);
    fields.insert(CONTENT_TYPE, page.content_type.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::forward;

    #[test]
    fn paths_are_mapped_back_below_the_prefix() {
        let strip = Strip { prefix: "/claw".into(), mount: "/app".into() };
        for (path, expected) in [
            ("/app/x", Some("/claw/x")),
            ("/app", Some("/claw")),
            ("/app?x=1", Some("/claw?x=1")),
            ("/apple", None),
            ("/other", None),
            ("//evil.example.com/app", None),
            ("https://a.test/app", None),
        ] {
            assert_eq!(map_path(path, &strip).as_deref(), expected, "{path}");
        }
        let root = Strip { prefix: "/claw".into(), mount: "".into() };
        assert_eq!(map_path("/x", &root).as_deref(), Some("/claw/x"));
        let host = HeaderValue::from_static("a.test:8443");
        let url = |url| map_location(url, &strip, Some(&host));
        assert_eq!(url("https://a.test:8443/app/x").as_deref(), Some("https://a.test:8443/claw/x"));
        assert_eq!(url("https://b.test/app/x"), None);
        let cookie = HeaderValue::from_static("a=1; Path=/app/; Secure");
        assert_eq!(map_cookie(&cookie, &strip), "a=1; Path=/claw/; Secure");
    }

    #[test]
    fn what_a_hop_behind_us_said_of_an_error_stays() {
        let mut fields = HeaderMap::new();
        fields.insert(PROXY_STATUS, HeaderValue::from_static("inner;error=connection_refused"));
        prepare(StatusCode::BAD_GATEWAY, &mut fields, &forward(), None);
        let told: Vec<_> = fields.get_all(PROXY_STATUS).iter().collect();
        assert_eq!(told, ["inner;error=connection_refused", "tidegate;received-status=502"]);
    }

    #[test]
    fn only_the_framing_directive_changes() {
        let embed = Embed { directive: "frame-ancestors https://dash.example.com".into() };
        for (policy, expected) in [
            (
                "default-src 'self'; frame-ancestors 'none'; img-src *",
                "default-src 'self'; frame-ancestors https://dash.example.com; img-src *",
            ),
            ("default-src 'self';", "default-src 'self'; frame-ancestors https://dash.example.com"),
            ("FRAME-ANCESTORS 'none'", "frame-ancestors https://dash.example.com"),
        ] {
            assert_eq!(replace_directive(policy, &embed), expected);
        }
    }
}
