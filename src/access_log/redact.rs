//! What never reaches a log: secrets in queries, in paths, in a `Referer`, and control characters.
//!
//! A secret becomes `~` and six digits of a keyed hash, so that equal secrets are seen to be equal
//! within one run and nothing can be computed back. On by default, everywhere; operators add names.
//! Masked too much is our choice over masked too little: a name counts when it *ends* like a secret.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;

/// Masks what must not be logged. The key lives as long as the process, the lists until a reload.
#[derive(Debug)]
pub struct Redactor {
    key: hmac::Key,
    extra: ArcSwap<Extra>,
}

/// Names that the operator added, lower case.
#[derive(Debug, Default)]
pub struct Extra {
    /// Query parameters.
    pub query: Vec<Box<str>>,
    /// Request headers.
    pub headers: Vec<Box<str>>,
}

impl Redactor {
    /// A redactor with a fresh random key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new(extra: Extra) -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system has no random numbers for the log's keyed hash"))?;
        Ok(Self { key, extra: ArcSwap::from_pointee(extra) })
    }

    /// Takes new lists; hashes stay comparable with earlier ones.
    pub(super) fn replace(&self, extra: Extra) {
        self.extra.store(extra.into());
    }

    /// A request target, or any URL: user information, secret paths and parameters, and the fragment.
    pub fn target<'a>(&self, target: &'a str) -> Cow<'a, str> {
        if is_plain(target) {
            return Cow::Borrowed(target);
        }
        let (rest, fragment) = split_at_first(target, '#');
        let (path, query) = split_at_first(rest, '?');
        let mut out = String::with_capacity(target.len());
        self.write_path(path, &mut out);
        if let Some(query) = query {
            out.push('?');
            self.write_query(query, &mut out);
        }
        if let Some(fragment) = fragment {
            out.push('#');
            self.write_mask(fragment, &mut out);
        }
        Cow::Owned(out)
    }

    /// A URL of another page: as a target, and its query as a whole, whose names we cannot know.
    pub fn referer<'a>(&self, url: &'a str) -> Cow<'a, str> {
        let Some(end) = memchr::memchr2(b'?', b'#', url.as_bytes()) else { return self.target(url) };
        let mut out = String::with_capacity(end + 8);
        self.write_path(&url[..end], &mut out);
        out.push_str(&url[end..=end]);
        self.write_mask(&url[end + 1..], &mut out);
        Cow::Owned(out)
    }

    /// The hash in place of a header's value, when the operator listed the header.
    pub(super) fn header(&self, name: &str, value: &[u8]) -> Option<String> {
        let is_listed = self.extra.load().headers.iter().any(|listed| **listed == *name);
        is_listed.then(|| self.hash(value))
    }

    /// `~3fa9c1`; nothing for nothing.
    fn hash(&self, secret: &[u8]) -> String {
        if secret.is_empty() {
            return String::new();
        }
        let tag = hmac::sign(&self.key, secret);
        let mut text = String::from("~");
        // 24 bits tell the secrets of a log apart, and are too few to confirm a guess by.
        for byte in tag.as_ref().iter().take(3) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn write_mask(&self, secret: &str, out: &mut String) {
        out.push_str(&self.hash(secret.as_bytes()));
    }

    /// Path segments; `/__openclaw__/cap/<secret>/` and segments that hold a parameter are masked.
    fn write_path(&self, path: &str, out: &mut String) {
        let mut path = path;
        // RFC 3986 3.1: only what begins like a scheme is one; "://" may also stand inside a path.
        let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if let Some((scheme, rest)) = path.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
            let end = rest.find('/').unwrap_or(rest.len());
            if let Some(at) = rest[..end].rfind('@') {
                out.push_str(scheme);
                out.push_str("://");
                self.write_mask(&rest[..at], out);
                path = &rest[at..];
            }
        }
        let mut capability = Capability::Elsewhere;
        for (index, segment) in path.split('/').enumerate() {
            if index > 0 {
                out.push('/');
            }
            let name = decode(segment.as_bytes());
            let name = name.split(|byte| *byte == b';').next().unwrap_or_default();
            let is_secret = match capability {
                Capability::Secret => !matches!(name, b"" | b"."),
                Capability::Elsewhere | Capability::Root => self.holds_secret(segment),
            };
            if is_secret {
                self.write_mask(segment, out);
            } else {
                out.push_str(segment);
            }
            capability = capability.after(name);
        }
    }

    /// Parameters between `&`. A value is masked by its name, or by what it holds.
    fn write_query(&self, query: &str, out: &mut String) {
        for (index, pair) in query.split('&').enumerate() {
            if index > 0 {
                out.push('&');
            }
            match pair.split_once('=') {
                Some((name, value)) if self.is_secret_name(&decode(name.as_bytes())) || self.holds_secret(value) => {
                    // A name is shown only if it is one: it could hold a secret of its own.
                    if self.holds_secret(name) {
                        self.write_mask(name, out)
                    } else {
                        out.push_str(name)
                    }
                    out.push('=');
                    self.write_mask(value, out);
                }
                None if self.holds_secret(pair) => self.write_mask(pair, out),
                Some(_) | None => out.push_str(pair),
            }
        }
    }

    /// True when a text holds a secret by its looks: `…token=…` and `"token":…` under up to three
    /// encodings (a URL inside a parameter inside a parameter), a capability path, a JWT, a bearer.
    fn holds_secret(&self, text: &str) -> bool {
        if text.starts_with("eyJ") && text.contains('.') {
            return true;
        }
        if !text.contains(['=', '%', ':', '+']) && !text.contains("__") {
            return false;
        }
        let mut text = Cow::Borrowed(text.as_bytes());
        for _ in 0..4 {
            if self.names_secret(&text) {
                return true;
            }
            if memchr::memchr(b'%', &text).is_none() {
                return false;
            }
            text = Cow::Owned(decode(&text).into_owned());
        }
        false
    }

    /// True when decoded bytes hold `name=` of a secret, or another mark of one.
    fn names_secret(&self, text: &[u8]) -> bool {
        let lower = text.to_ascii_lowercase();
        if lower.starts_with(b"bearer ") || lower.starts_with(b"bearer+") || lower.starts_with(b"basic ") {
            return true;
        }
        if memchr::memmem::find(&lower, b"__openclaw__/cap/").is_some() {
            return true;
        }
        memchr::memchr2_iter(b'=', b':', &lower).any(|at| {
            let before = lower[..at].trim_ascii_end();
            let name = before.strip_suffix(b"\"").or_else(|| before.strip_suffix(b"'"));
            // A bare colon is in every URL and session key; only `"name":` is a name.
            let Some(name) = name.or((lower[at] == b'=').then_some(before)) else { return false };
            let begin = name.iter().rposition(|byte| !byte.is_ascii_alphanumeric() && !b"_-.[]".contains(byte));
            self.is_secret_name(&name[begin.map_or(0, |begin| begin + 1)..])
        })
    }

    /// True for the name of a secret parameter, decoded, in any case.
    fn is_secret_name(&self, name: &[u8]) -> bool {
        // `token[]`, `token.0`, `password1`, `user[token]`, `tokens`: the word is what counts.
        let is_noise = |byte: &u8| !byte.is_ascii_alphabetic();
        let base = name.split(|byte| *byte == b'[').next().unwrap_or_default();
        [name, base].into_iter().any(|name| {
            let end = name.iter().rposition(|byte| !is_noise(byte)).map_or(0, |last| last + 1);
            let lower = name[..end].to_ascii_lowercase();
            let singular = lower.strip_suffix(b"s").unwrap_or(&lower);
            let ends = |suffix: &[u8]| lower.ends_with(suffix) || singular.ends_with(suffix);
            EXACT.iter().any(|exact| lower == exact.as_bytes())
                || ENDINGS.iter().any(|ending| ends(ending.as_bytes()))
                || self
                    .extra
                    .load()
                    .query
                    .iter()
                    .any(|listed| ends(listed.as_bytes()) || name.ends_with(listed.as_bytes()))
        })
    }
}

/// Endings of the names of secrets.
const ENDINGS: [&str; 24] = [
    "token",
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "auth",
    "authorization",
    "code",
    "key",
    "secret",
    "ticket",
    "session",
    "sessionid",
    "session-id",
    "session_id",
    "sessid",
    "sig",
    "signature",
    "hmac",
    "jwt",
    "otp",
    "credential",
    "assertion",
];

/// Names that are secrets only as a whole: as endings they would mask common words.
const EXACT: [&str; 6] = ["pass", "pw", "sid", "cookie", "bearer", "samlresponse"];

/// Where in a path the segments are, seen from `/__openclaw__/cap/<secret>`.
#[derive(Clone, Copy)]
enum Capability {
    Elsewhere,
    Root,
    Secret,
}

impl Capability {
    /// The state after a decoded segment. Empty and `.` segments count for nothing, as in resolving.
    fn after(self, name: &[u8]) -> Self {
        match self {
            state if matches!(name, b"" | b".") => state,
            Self::Root if name.eq_ignore_ascii_case(b"cap") => Self::Secret,
            _ if name.eq_ignore_ascii_case(b"__openclaw__") => Self::Root,
            Self::Elsewhere | Self::Root | Self::Secret => Self::Elsewhere,
        }
    }
}

/// True when a target has nothing that could be or hide a secret: most have not.
fn is_plain(target: &str) -> bool {
    let bytes = target.as_bytes();
    memchr::memchr3(b'?', b'#', b'%', bytes).is_none()
        && memchr::memchr3(b'@', b'=', b';', bytes).is_none()
        // The rarest letters of `__` and `/eyJ` first: a search for one byte costs a tenth of one for two.
        && (memchr::memchr2(b'_', b'J', bytes).is_none()
            || (memchr::memmem::find(bytes, b"__").is_none() && memchr::memmem::find(bytes, b"/eyJ").is_none()))
}

/// What stands before a separator, and what after it, if it is there.
fn split_at_first(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Takes one layer of percent-encoding off; `+` is a blank. What is broken stays as it is.
fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', text).is_none() {
        return Cow::Borrowed(text);
    }
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        if *byte == b'%'
            && let (Some(high), Some(low)) = (digit(text.get(at + 1)), digit(text.get(at + 2)))
        {
            out.push(high << 4 | low);
            at += 3;
            continue;
        }
        out.push(if *byte == b'+' { b' ' } else { *byte });
        at += 1;
    }
    Cow::Owned(out)
}

/// A client's bytes as text of at most `max` bytes; what is longer ends in `…`.
pub(super) fn clip(bytes: &[u8], max: usize) -> Cow<'_, str> {
    let kept = &bytes[..bytes.len().min(max)];
    let text = match std::str::from_utf8(kept) {
        Ok(text) => Cow::Borrowed(text),
        // A cut inside a character is ours, not the client's.
        Err(error) if error.error_len().is_none() && kept.len() < bytes.len() => {
            String::from_utf8_lossy(&kept[..error.valid_up_to()])
        }
        Err(_) => String::from_utf8_lossy(kept),
    };
    if kept.len() == bytes.len() { text } else { Cow::Owned(text.into_owned() + "…") }
}

/// As `clip`, for a text that was masked before.
pub(super) fn clip_text(text: Cow<'_, str>, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return text;
    }
    Cow::Owned(clip(text.as_bytes(), max).into_owned())
}

/// True for characters that could steer a terminal or turn text around (Unicode TR 36, 3.2):
/// C0, DEL, C1, line and paragraph separators, and the bidirectional controls.
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor() -> Redactor {
        let extra = Extra { query: vec!["invite".into()], headers: vec!["user-agent".into()] };
        Redactor::new(extra).expect("random numbers")
    }

    /// Each `~` and six digits become `~`, so that outputs can be compared.
    fn shape(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('~') {
            out += before;
            out.push('~');
            let is_hash = after.len() >= 6 && after.bytes().take(6).all(|byte| byte.is_ascii_hexdigit());
            assert!(is_hash, "{text}");
            rest = &after[6..];
        }
        out + rest
    }

    #[test]
    fn secrets_in_a_target_are_masked() {
        let redactor = redactor();
        for (target, expected) in [
            ("/", "/"),
            ("*", "*"),
            ("/chat?session_list=1&x=y", "/chat?session_list=1&x=y"),
            ("/sessions/agent%3Amain%3Amain/history", "/sessions/agent%3Amain%3Amain/history"),
            ("/x?q=a:b&t=12:30&u=https://a.test/b", "/x?q=a:b&t=12:30&u=https://a.test/b"),
            ("/?token=abc", "/?token=~"),
            ("/?TOKEN=abc&a=1", "/?TOKEN=~&a=1"),
            ("/?%74oken=abc", "/?%74oken=~"),
            ("/?a=1&mediaTicket=abc#frag", "/?a=1&mediaTicket=~#~"),
            ("/?access_token=a&id_token=b&refresh-token=c", "/?access_token=~&id_token=~&refresh-token=~"),
            ("/?api_key=a&apikey=b&key=c&sig=d&jwt=e", "/?api_key=~&apikey=~&key=~&sig=~&jwt=~"),
            ("/?token[]=abc&token[0]=d&user[password]=e", "/?token[]=~&token[0]=~&user[password]=~"),
            ("/?tokens=a&password1=b&pass=c", "/?tokens=~&password1=~&pass=~"),
            ("/?token=ab;cd&x=1", "/?token=~&x=1"),
            ("/?token=a?b=c", "/?token=~"),
            ("/?token=", "/?token="),
            ("/?token", "/?token"),
            ("/?invite=abc&my_invite=d", "/?invite=~&my_invite=~"),
            ("/?a;token=b", "/?a;token=~"),
            ("/?a=b;token=c", "/?a=~"),
            ("/?next=/share?token=abc", "/?next=~"),
            ("/?next=%2Fshare%3Ftoken%3Dabc", "/?next=~"),
            ("/?next=%252Fshare%253Fcode%253Dabc", "/?next=~"),
            ("/?q=%7B%22token%22%3A%22abc%22%7D", "/?q=~"),
            ("/?x=eyJhbGciOiJI.eyJz.c2ln", "/?x=~"),
            ("/?x=Bearer+abc&y=bearer%20abc", "/?x=~&y=~"),
            ("/%3Ftoken%3Dabc/x", "/~/x"),
            ("/a;token=abc/x", "/~/x"),
            ("/__openclaw__/cap/abc/index.html?x=1", "/__openclaw__/cap/~/index.html?x=1"),
            ("/base/__openclaw__/cap/abc", "/base/__openclaw__/cap/~"),
            ("/__openclaw__//cap/./abc/d", "/__openclaw__//cap/./~/d"),
            ("/__OPENCLAW__/%63ap/abc/d", "/__OPENCLAW__/%63ap/~/d"),
            ("/__openclaw__/a2ui/abc", "/__openclaw__/a2ui/abc"),
            ("/?u=https%3A%2F%2Fh%2F__openclaw__%2Fcap%2Fabc", "/?u=~"),
            ("https://user:pw@a.test/x?token=b", "https://~@a.test/x?token=~"),
            ("/login/eyJhbGciOiJI.eyJz.c2ln", "/login/~"),
        ] {
            assert_eq!(shape(&redactor.target(target)), expected, "{target}");
        }
    }

    #[test]
    fn equal_secrets_look_equal_and_others_do_not() {
        let (one, two) = (redactor(), redactor());
        let mask = |redactor: &Redactor, secret: &str| redactor.target(&format!("/?token={secret}")).into_owned();
        assert_eq!(mask(&one, "abc"), mask(&one, "abc"));
        assert_ne!(mask(&one, "abc"), mask(&one, "abd"));
        assert_ne!(mask(&one, "abc"), mask(&two, "abc"), "each run has a key of its own");
    }

    #[test]
    fn a_referer_keeps_no_query() {
        let redactor = redactor();
        for (url, expected) in [
            ("https://a.test/b", "https://a.test/b"),
            ("https://a.test/b?c=d&e", "https://a.test/b?~"),
            ("https://a.test/b#c", "https://a.test/b#~"),
            ("https://a.test/__openclaw__/cap/abc/d?e", "https://a.test/__openclaw__/cap/~/d?~"),
            ("https://u:p@a.test/", "https://~@a.test/"),
        ] {
            assert_eq!(shape(&redactor.referer(url)), expected, "{url}");
        }
        assert!(redactor.header("user-agent", b"x").is_some_and(|hash| hash.len() == 7));
        assert_eq!(redactor.header("origin", b"x"), None);
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(clip(b"abc", 3), "abc");
        assert_eq!(clip(b"abcd", 3), "abc…");
        assert_eq!(clip("aäöü".as_bytes(), 4), "aä…");
        assert_eq!(clip(b"a\xff", 9), "a\u{fffd}");
    }

    proptest! {
        #[test]
        fn a_named_secret_never_shows(
            before in "[a-z]{1,6}=[a-z0-9]{0,6}&|",
            prefix in "[a-zA-Z_]{0,5}",
            index in 0..ENDINGS.len(),
            secret in "[A-Z0-9]{8}[ -%'-~]{0,20}",
        ) {
            let redactor = redactor();
            let target = format!("/p?{before}{prefix}{}={secret}", ENDINGS[index]);
            let shown = redactor.target(&target);
            prop_assert!(!shown.contains(&secret[..8]), "{}", shown);
        }

        #[test]
        fn any_text_is_masked_without_failing(target in "\\PC{0,80}") {
            let redactor = redactor();
            let masked = redactor.target(&target).into_owned();
            prop_assert!(redactor.referer(&target).len() <= target.len() + 16);
            prop_assert!(masked.matches('&').count() <= target.matches('&').count());
        }
    }
}
