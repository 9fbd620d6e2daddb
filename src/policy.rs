//! Admission: whether a request's head is small enough and its origin allowed.
//!
//! Pure functions over one request head; nothing here reads configuration or keeps state. What a
//! header name means stands in `policy/names.rs`, who asks in `policy/trust.rs`, who may enter in
//! `policy/access.rs`, and what is removed and written in `policy/headers.rs`.

pub mod access;
pub mod count;
pub mod credentials;
pub mod decision;
pub mod geo;
pub mod headers;
pub mod limits;
pub mod lockout;
pub mod names;
pub mod password;
pub mod rate;
pub mod store;
pub mod switch;
pub mod trust;
pub mod user_files;

use http::header::ORIGIN;
use http::{Method, request};

use crate::site::policy::{Limits, Origins};

/// Which limit a request head exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// The target alone is larger than a whole head may be.
    #[error("the request target has {found} bytes, more than {limit}")]
    Target {
        /// What was sent.
        found: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Too many header fields; over HTTP/2 each cookie crumb is one.
    #[error("the request has {found} header fields, more than {limit}")]
    Fields {
        /// What was sent.
        found: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Target, names and values are larger than allowed.
    #[error("the request head has {found} bytes or more, more than {limit}")]
    Bytes {
        /// What was counted before the count ended.
        found: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// Judges the size of a request head, for HTTP/1.1 and HTTP/2 alike.
///
/// # Errors
/// When it has too many fields or too many bytes.
pub fn check_head(parts: &request::Parts, limits: &Limits) -> Result<(), TooLarge> {
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.header_bytes {
        return Err(TooLarge::Target { found: target, limit: limits.header_bytes });
    }
    // `len` counts values, not names: a thousand fields of one name are a thousand fields.
    let fields = parts.headers.len();
    if fields > limits.headers {
        return Err(TooLarge::Fields { found: fields, limit: limits.headers });
    }
    let mut bytes = target;
    for (name, value) in &parts.headers {
        bytes += name.as_str().len() + value.len();
        if bytes > limits.header_bytes {
            return Err(TooLarge::Bytes { found: bytes, limit: limits.header_bytes });
        }
    }
    Ok(())
}

/// True when the origin policy lets a request pass. It speaks only about tunnels and unsafe methods.
pub fn origin_allowed(origins: &Origins, parts: &request::Parts, is_tunnel: bool) -> bool {
    if !is_tunnel && is_safe(&parts.method) {
        return true;
    }
    let mut values = parts.headers.get_all(ORIGIN).iter();
    match (values.next(), values.next()) {
        (None, _) => origins.missing_allowed,
        // RFC 6454 7.3: at most one field. Two are an attempt to have each reader see another one.
        (Some(_), Some(_)) => false,
        // Scheme and host compare without case (RFC 6454 4); a serialised origin has no path.
        (Some(origin), None) => {
            let origin = origin.as_bytes();
            origins.allow.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))
        }
    }
}

/// True for the methods that change nothing (RFC 9110 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn head(method: &str, target: &str, fields: &[(&'static str, &str)]) -> request::Parts {
        let mut builder = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a valid head").into_parts().0
    }

    #[test]
    fn a_head_is_measured_by_fields_and_bytes() {
        let limits = Limits { body: 0, body_rate: 0, header_bytes: 40, headers: 3 };
        let fits = head("GET", "/12345", &[("a", "1"), ("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(check_head(&fits, &limits), Ok(()));
        let exact = head("GET", "/12345", &[("abcd", &"v".repeat(30))]);
        assert_eq!(check_head(&exact, &limits), Ok(()));
        let one_more = head("GET", "/123456", &[("abcd", &"v".repeat(30))]);
        assert_eq!(check_head(&one_more, &limits), Err(TooLarge::Bytes { found: 41, limit: 40 }));
        let crumbs = head("GET", "/", &[("cookie", "a"), ("cookie", "b"), ("cookie", "c"), ("cookie", "d")]);
        assert_eq!(check_head(&crumbs, &limits), Err(TooLarge::Fields { found: 4, limit: 3 }));
        let long = head("GET", &format!("/{}", "x".repeat(40)), &[]);
        assert_eq!(check_head(&long, &limits), Err(TooLarge::Target { found: 41, limit: 40 }));
    }

    #[test]
    fn an_origin_counts_for_tunnels_and_unsafe_methods() {
        let origins = Origins { allow: vec!["https://app.example.com".into()], missing_allowed: false };
        for (method, origin, is_tunnel, expected) in [
            ("GET", Some("https://evil.example"), false, true),
            ("HEAD", None, false, true),
            ("OPTIONS", Some("null"), false, true),
            ("POST", Some("https://app.example.com"), false, true),
            ("POST", Some("HTTPS://App.Example.com"), false, true),
            ("POST", Some("http://app.example.com"), false, false),
            ("POST", Some("https://app.example.com:8443"), false, false),
            ("POST", Some("https://app.example.com.evil.example"), false, false),
            ("POST", Some("https://app.example.com/"), false, false),
            ("POST", Some("null"), false, false),
            ("POST", None, false, false),
            ("PURGE", None, false, false),
            ("GET", Some("https://evil.example"), true, false),
            ("GET", Some("https://app.example.com"), true, true),
            ("GET", None, true, false),
            ("CONNECT", Some("https://evil.example"), true, false),
        ] {
            let mut parts = head("GET", "/", &[]);
            parts.method = method.parse().expect("a method");
            if let Some(origin) = origin {
                parts.headers.insert(ORIGIN, HeaderValue::from_str(origin).expect("a value"));
            }
            assert_eq!(origin_allowed(&origins, &parts, is_tunnel), expected, "{method} {origin:?} {is_tunnel}");
        }
        let lenient = Origins { missing_allowed: true, ..origins };
        assert!(origin_allowed(&lenient, &head("POST", "/", &[]), false));
        let twice = head("POST", "/", &[("origin", "https://app.example.com"), ("origin", "https://app.example.com")]);
        assert!(!origin_allowed(&lenient, &twice, false));
    }
}
