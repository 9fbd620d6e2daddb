//! What a request says about who sends it: the `Authorization` field, read for the Basic scheme (RFC 7617).
//!
//! Pure. What does not follow the grammar is no login; nothing is repaired, and nothing of it reaches a log.

use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::site::users::MAX_NAME;

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// `name:password`.
    text: String,
    name_length: usize,
}

impl Login {
    /// Who they say they are.
    pub fn name(&self) -> &str {
        &self.text[..self.name_length]
    }

    /// How they want to prove it.
    pub fn password(&self) -> &str {
        &self.text[self.name_length + 1..]
    }

    /// Both, in one text that no other pair has: a name has no colon.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl fmt::Debug for Login {
    /// The name may be a password that was typed into the wrong field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// The most bytes of a password. Our choice: more than any manager of passwords makes, and nothing to hash for long.
pub const MAX_PASSWORD: usize = 1024;

/// Clients leave the padding out (RFC 4648 3.2 allows it where a specification says so); it hides nothing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The login of a request with the Basic scheme. `None` when there is none, or when it is malformed.
pub fn basic(headers: &HeaderMap) -> Option<Login> {
    let encoded = scheme(headers, b"basic")?;
    // A limit before anything is decoded; the head itself is bounded far above it.
    if encoded.len() > (MAX_NAME + 1 + MAX_PASSWORD) * 4 / 3 + 4 {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(encoded).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    // RFC 7617 2: neither has control characters.
    let is_sound = (1..=MAX_NAME).contains(&name.len())
        && password.len() <= MAX_PASSWORD
        && !text.contains(|character: char| character.is_control());
    let name_length = name.len();
    is_sound.then_some(Login { text, name_length })
}

/// True for a request with a bearer token (RFC 6750 2.1).
pub fn has_bearer(headers: &HeaderMap) -> bool {
    scheme(headers, b"bearer").is_some_and(|token| !token.is_empty())
}

/// What follows a scheme in the one `Authorization` field (RFC 9110 11.4: the scheme in any case, then blanks). Two
/// fields are none: edge and upstream could read another one of them.
fn scheme<'h>(headers: &'h HeaderMap, wanted: &[u8]) -> Option<&'h [u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = value.as_bytes();
    let end = memchr::memchr(b' ', value)?;
    value[..end].eq_ignore_ascii_case(wanted).then(|| value[end..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).expect("a value"));
        }
        headers
    }

    fn encoded(text: impl AsRef<[u8]>) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    #[test]
    fn a_login_is_a_name_and_a_password() {
        for (value, expected) in [
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned(), Some(("Aladdin", "open sesame"))),
            ("bAsIc   QWxhZGRpbjpvcGVuIHNlc2FtZQ".to_owned(), Some(("Aladdin", "open sesame"))),
            (encoded("test:123\u{a3}"), Some(("test", "123\u{a3}"))),
            (encoded("a:"), Some(("a", ""))),
            (encoded("a:b:c"), Some(("a", "b:c"))),
            (encoded(":b"), None),
            (encoded("ab"), None),
            (encoded("a:b\n"), None),
            (encoded("a\0:b"), None),
            (encoded(b"a:\xff"), None),
            (encoded("a".repeat(256) + ":b"), None),
            (encoded("a:".to_owned() + &"b".repeat(1024)), Some(("a", &*"b".repeat(1024)))),
            (encoded("a:".to_owned() + &"b".repeat(1025)), None),
            ("Basic".to_owned(), None),
            ("Basic ".to_owned(), None),
            ("Basic a:b".to_owned(), None),
            ("BasicQWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned(), None),
            ("Basic QWxhZGRpbjpvcGVu IHNlc2FtZQ==".to_owned(), None),
            ("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned(), None),
        ] {
            let login = basic(&headers(&[value.as_bytes()]));
            assert_eq!(login.as_ref().map(|login| (login.name(), login.password())), expected, "{value}");
        }
    }

    #[test]
    fn two_fields_are_no_login() {
        let good = encoded("a:b");
        assert!(basic(&headers(&[good.as_bytes(), good.as_bytes()])).is_none());
        assert!(!has_bearer(&headers(&[b"Bearer x", good.as_bytes()])));
        assert!(basic(&headers(&[])).is_none());
    }

    #[test]
    fn a_bearer_has_a_token() {
        for (value, expected) in
            [("Bearer x", true), ("bearer  x", true), ("Bearer", false), ("Bearer ", false), ("Basic x", false)]
        {
            assert_eq!(has_bearer(&headers(&[value.as_bytes()])), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_was_said_is_read_and_nothing_else(name in "[^:\\pC]{1,40}", password in "[^\\pC]{0,60}", any in any::<Vec<u8>>()) {
            let login = basic(&headers(&[encoded(format!("{name}:{password}")).as_bytes()])).expect("a login");
            prop_assert_eq!((login.name(), login.password()), (&*name, &*password));
            if let Ok(value) = HeaderValue::from_bytes(&any) {
                let _ = basic(&HeaderMap::from_iter([(AUTHORIZATION, value)]));
            }
        }
    }
}
