//! What a head alone decides: over HTTP/2 as `framing` does over HTTP/1.1, and the announced length.

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode, Version, request};
use http_body::Body as _;

use super::target;
use crate::body::Inbound;
use crate::refusal::Refusal;
use crate::site::policy::Limits;

/// Judges what `framing` has not judged: a head that came over HTTP/2.
pub(super) fn check_http2(head: &request::Parts) -> Result<(), Refusal> {
    if head.version != Version::HTTP_2 {
        return Ok(());
    }
    check_method(&head.method)?;
    check_target(head)?;
    check_values(&head.headers)
}

/// As over HTTP/1.1 (`framing`): `get` is another method than GET here, and the same to lax endpoints.
fn check_method(method: &Method) -> Result<(), Refusal> {
    const STANDARD: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let is_lax = |known: &Method| method != known && method.as_str().eq_ignore_ascii_case(known.as_str());
    if STANDARD.iter().any(is_lax) {
        let why = "the method is not a token, or has the wrong case";
        return Err(Refusal::Malformed { status: StatusCode::BAD_REQUEST, code: "E400-method", why });
    }
    Ok(())
}

/// As over HTTP/1.1 (`framing`): a target that endpoints read differently is refused, and `*` is
/// a target of OPTIONS alone (RFC 9112 3.2.4).
fn check_target(head: &request::Parts) -> Result<(), Refusal> {
    let target = target(&head.uri);
    let path = head.uri.path();
    if target == "*" && head.method != Method::OPTIONS {
        let why = "the request target has a form that is not allowed here";
        return Err(Refusal::Malformed { status: StatusCode::BAD_REQUEST, code: "E400-target-form", why });
    }
    let is_odd = |byte: u8| matches!(byte, b'"' | b'<' | b'>' | b'#' | 0..=b' ' | 0x7f..);
    if target.bytes().any(is_odd) || path.bytes().any(|byte| matches!(byte, b'\\' | b'`')) {
        let why = "the request target has a byte that is not allowed";
        return Err(Refusal::Malformed { status: StatusCode::BAD_REQUEST, code: "E400-target-byte", why });
    }
    Ok(())
}

/// RFC 9113 8.2.1: a value with blanks around it is malformed. In HTTP/1.1 they are no part of it.
fn check_values(fields: &HeaderMap) -> Result<(), Refusal> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if fields.values().any(|value| is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last())) {
        return Err(Refusal::Malformed {
            status: StatusCode::BAD_REQUEST,
            code: "E400-field-value",
            why: "a field value begins or ends with a blank",
        });
    }
    Ok(())
}

/// RFC 9110 15.5.14: a body that is announced too large is refused before it is read.
pub(super) fn check_length(head: &request::Parts, incoming: Option<&Inbound>, limits: &Limits) -> Result<(), Refusal> {
    let Some(incoming) = incoming else { return Ok(()) };
    let announced =
        incoming.size_hint().exact().or_else(|| head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| length > limits.body) { Err(Refusal::BodyTooLarge) } else { Ok(()) }
}
