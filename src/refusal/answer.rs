//! How a refusal is said: as a page, as JSON or as plain text, by `Accept`; and which layer an answer came from.
//!
//! The client gets status, code, words and request ID. Causes go to the log, and to clients on this machine or a private
//! network only.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode, Version};
use serde::Serialize;

use super::{BAD_REQUEST, PROXY_STATUS, Refusal, Words, X_REQUEST_ID, unanswered};
use crate::body::Body;

/// What an answer is made for.
#[derive(Debug)]
pub struct Asker<'a> {
    /// The request's `Accept`.
    pub accept: Option<&'a HeaderValue>,
    /// The version of the request.
    pub version: Version,
    /// The request ID.
    pub request_id: &'a HeaderValue,
    /// Whether details of this machine may be shown.
    pub is_near: bool,
}

/// Marks a response that is never sent: its connection is closed instead, or its stream reset.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered;

/// The answer to a refused request.
pub fn respond(refusal: &Refusal, asker: &Asker<'_>) -> Response<Body> {
    match refusal {
        Refusal::Hidden { .. } => return respond(&Refusal::NoRoute, asker),
        Refusal::Dropped { .. } => {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = unanswered();
            response.extensions_mut().insert(Unanswered);
            return response;
        }
        _ => {}
    }
    let Words { status, code, proxy_error, message } = refusal.words();
    let detail = refusal.detail().filter(|_| asker.is_near);
    let near = detail.map(|detail| match refusal.help() {
        Some(help) => Cow::Owned(format!("{detail}. {help}")),
        None => Cow::Borrowed(detail),
    });
    // Of a limiter everybody is told the name: users pass it on, and programs tell limiters apart by it.
    let limit = refusal.limit().map(|name| format!("Limit {name}"));
    let near = limit.as_deref().or(near.as_deref());
    let id = asker.request_id.to_str().unwrap_or_default();
    let (content_type, body) = match Form::wanted(asker.accept) {
        Form::Html => ("text/html; charset=utf-8", html(status, code, message, near, id)),
        Form::Json => ("application/json", json(code, message, refusal.limit(), near, id)),
        Form::Text => ("text/plain; charset=utf-8", text(status, code, message, near, id)),
    };
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, asker.request_id.clone());
    let details = match refusal {
        Refusal::Limited(limited) => {
            limited.write(headers);
            Cow::Owned(limited.details())
        }
        _ => Cow::Borrowed(detail.unwrap_or(code)),
    };
    if let Some(value) = proxy_status(proxy_error, &details) {
        headers.insert(PROXY_STATUS, value);
    }
    if content_type.starts_with("text/html") {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    }
    if let Some((name, value)) = refusal.what_is_taken() {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(challenge) = refusal.challenge() {
        headers.insert(WWW_AUTHENTICATE, challenge.clone());
    }
    if let Some(seconds) = refusal.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    // RFC 9113 8.2.2: HTTP/2 has no such field.
    if refusal.closes() && asker.version != Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The whole HTTP/1.1 answer to a head that never became a request, as bytes on the wire.
pub fn raw_answer(status: StatusCode, code: &str, message: &str, request_id: &str) -> Bytes {
    let body = text(status, code, message, None, request_id);
    let reason = status.canonical_reason().unwrap_or_default();
    Bytes::from(format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         proxy-status: tidegate;error={BAD_REQUEST};details=\"{code}\"\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len(),
    ))
}

/// `Proxy-Status` of an answer of ours.
fn proxy_status(error: &str, details: &str) -> Option<HeaderValue> {
    let is_printable = |c: char| matches!(c, ' '..='~');
    let printable = if details.bytes().all(|byte| is_printable(byte.into())) {
        Cow::Borrowed(details)
    } else {
        details.chars().map(|c| if is_printable(c) { c } else { '?' }).collect()
    };
    let details = sfv::StringRef::from_str(&printable).ok()?;
    let mut serializer = sfv::ListSerializer::new();
    serializer
        .bare_item(sfv::token_ref("tidegate"))
        .parameter(sfv::key_ref("error"), sfv::TokenRef::from_str(error).ok()?)
        .parameter(sfv::key_ref("details"), details);
    HeaderValue::from_str(&serializer.finish()?).ok()
}

/// `Proxy-Status` of an answer that came from the endpoint: nobody shall take it for ours.
pub fn received_status(status: StatusCode) -> HeaderValue {
    let mut value = String::with_capacity(32);
    // Writing into a String cannot fail.
    let _ = write!(value, "tidegate;received-status={}", status.as_u16());
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("tidegate"))
}

/// `Proxy-Status` of an answer that came from an auth service: nobody shall take it for ours, nor for the endpoint's.
pub fn auth_status(status: StatusCode, name: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("tidegate;received-status={};details=\"auth {name}\"", status.as_u16()))
        .unwrap_or(HeaderValue::from_static("tidegate"))
}

/// The form in which a client reads best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
}

impl Form {
    /// The form with the highest weight in `Accept`, the first among equals (RFC 9110 12.5.1). A
    /// range with a `*` does not ask for a form: plain text suits it, and curl.
    fn wanted(accept: Option<&HeaderValue>) -> Self {
        let accept = accept.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut best = (0.0, Self::Text);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let form = match parts.next().unwrap_or_default() {
                "text/html" | "application/xhtml+xml" => Self::Html,
                "text/plain" => Self::Text,
                kind if kind == "application/json" || kind.ends_with("+json") => Self::Json,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            if weight > best.0 {
                best = (weight, form);
            }
        }
        best.1
    }
}

const BY_EDGE: &str = "This answer comes from the edge (tidegate), not from the gateway.";

fn text(status: StatusCode, code: &str, message: &str, detail: Option<&str>, id: &str) -> String {
    let mut text = format!("{}: {message}. Request {id}.\n", status.as_u16());
    if let Some(detail) = detail {
        let _ = writeln!(text, "{detail}.");
    }
    let _ = writeln!(text, "{BY_EDGE} Code {code}.");
    text
}

fn json(code: &str, message: &str, limit: Option<&str>, detail: Option<&str>, id: &str) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        error: Error<'a>,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        code: &'a str,
        by: &'static str,
        message: &'a str,
        request_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a str>,
    }
    let detail = detail.filter(|_| limit.is_none());
    let error = Error { code, by: "edge", message, request_id: id, limit, detail };
    serde_json::to_string(&Answer { error }).expect("texts only") + "\n"
}

/// The page needs its own style and the few lines that try again; nothing else may run in it.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

fn html(status: StatusCode, code: &str, message: &str, detail: Option<&str>, id: &str) -> String {
    let (message, id) = (escape(message), escape(id));
    let detail = detail.map_or(String::new(), |detail| format!("<p>{}.</p>", escape(detail)));
    let retry = if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED { RETRY_SCRIPT } else { "" };
    let value = |name: &str| match name {
        "status" => Some(status.as_str()),
        "message" => Some(&*message),
        "detail" => Some(&*detail),
        "retry" => Some(retry),
        "by" => Some(BY_EDGE),
        "code" => Some(code),
        "id" => Some(&*id),
        // A rule of the style.
        _ => None,
    };
    let mut rest = include_str!("page.html");
    let mut page = String::with_capacity(rest.len() + retry.len() + detail.len() + 256);
    while let Some(open) = memchr::memchr(b'{', rest.as_bytes()) {
        page.push_str(&rest[..open]);
        rest = &rest[open + 1..];
        if let Some(close) = memchr::memchr(b'}', rest.as_bytes())
            && let Some(value) = value(&rest[..close])
        {
            page.push_str(value);
            rest = &rest[close + 1..];
        } else {
            page.push('{');
        }
    }
    page + rest
}

/// Tries again after 2, 4, 8 … 60 s, and forgets the count when the page is left for another answer.
const RETRY_SCRIPT: &str = "<p id=\"again\"></p><script>\
const k='tidegate-retry',n=Math.min(+(sessionStorage.getItem(k)||0)+1,6),s=Math.min(2**n,60);\
sessionStorage.setItem(k,n);document.getElementById('again').textContent='Trying again in '+s+' s.';\
setTimeout(()=>location.reload(),s*1000)</script>";

fn escape(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'&' | b'<' | b'>' | b'"' | b'\'')) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;

    fn answer(refusal: &Refusal, accept: &'static str, is_near: bool) -> Response<Body> {
        respond(
            refusal,
            &Asker {
                accept: Some(&HeaderValue::from_static(accept)),
                version: Version::HTTP_11,
                request_id: &HeaderValue::from_static("r1"),
                is_near,
            },
        )
    }

    fn body(response: Response<Body>) -> String {
        match response.into_body() {
            Body::Full(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn details_are_for_near_clients_only() {
        let refusal =
            Refusal::Unreachable { failure: Failure::Refused, detail: "nothing listens on 127.0.0.1:1".into() };
        for accept in ["text/html", "application/json", "*/*"] {
            let (near, far) = (body(answer(&refusal, accept, true)), body(answer(&refusal, accept, false)));
            assert!(near.contains("127.0.0.1:1") && near.contains("openclaw gateway run"), "{accept}: {near}");
            assert!(!far.contains("127.0.0.1:1") && !far.contains("Start"), "{accept}: {far}");
        }
        let far = answer(&refusal, "*/*", false);
        assert_eq!(far.headers()[PROXY_STATUS], "tidegate;error=connection_refused;details=\"E502-refused\"");
        assert_eq!(far.status(), StatusCode::BAD_GATEWAY);
    }

    #[test]
    fn each_failure_is_told_apart() {
        for (place, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, place, "the order of the list is that of the type");
            let same = Failure::ALL.iter().filter(|other| other.code() == failure.code()).count();
            assert_eq!(same, 1, "{}", failure.code());
            let refusal = Refusal::Unreachable { failure, detail: "x".into() };
            let answer = answer(&refusal, "*/*", false);
            assert_eq!(answer.headers().contains_key(RETRY_AFTER), failure.code().starts_with("E503"), "{failure:?}");
        }
    }

    #[test]
    fn the_form_follows_accept() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
            ("application/json", "application/json"),
            ("application/problem+json, text/html", "application/json"),
            ("text/html;q=0.1, application/json", "application/json"),
            ("*/*", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(answer(&Refusal::NoRoute, accept, false).headers()[CONTENT_TYPE], expected, "{accept}");
        }
    }

    #[test]
    fn an_answer_as_json_has_stable_names() {
        let refusal = Refusal::Failed { failure: Failure::Closed, detail: "\"x\" \u{e4}\n".into() };
        let near = answer(&refusal, "application/json", true);
        let status = "tidegate;error=connection_terminated;details=\"\\\"x\\\" ??\"";
        assert_eq!(near.headers()[PROXY_STATUS], status, "printable ASCII only");
        let words = "the gateway behind this address closed the connection before it answered";
        let begin = format!(
            "{{\"error\":{{\"code\":\"E502-closed\",\"by\":\"edge\",\"message\":\"{words}\",\"request_id\":\"r1\""
        );
        assert_eq!(body(near), format!("{begin},\"detail\":\"\\\"x\\\" \u{e4}\\n\"}}}}\n"));
        assert_eq!(body(answer(&refusal, "application/json", false)), format!("{begin}}}}}\n"));
    }

    #[test]
    fn a_page_escapes_what_it_shows() {
        let refusal = Refusal::Failed { failure: Failure::Protocol, detail: "<script>& {code}".into() };
        let page = body(answer(&refusal, "text/html", true));
        assert!(page.contains("&lt;script&gt;&amp; {code}"), "{page}");
        assert!(page.contains("<title>502</title>") && page.contains("<h1>502: the gateway behind"), "{page}");
        assert!(page.contains("<br>Code E502-protocol. Request r1.</small>"), "{page}");
        assert!(
            page.contains("body { font") && page.contains("</script>\n<p>") && page.ends_with("</html>\n"),
            "{page}"
        );
    }
}
