//! Reads `h1.txt`, whose format is told at its top. Shared by unit tests and black box tests.

/// One case.
pub(crate) struct Case {
    /// What is special.
    pub(crate) name: &'static str,
    /// What the client sends.
    pub(crate) raw: Vec<u8>,
    /// How many requests the upstream sees.
    pub(crate) requests: usize,
    /// Status and code of the refusal that ends the connection, if one does.
    pub(crate) refusal: Option<(u16, &'static str)>,
}

/// All cases of the file, in their order.
pub(crate) fn cases() -> Vec<Case> {
    let text = include_str!("h1.txt");
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut cases = Vec::new();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("name: ").unwrap_or_else(|| panic!("no name: {line:?}"));
        let mut field = |key: &str| {
            let line = lines.next().unwrap_or_default();
            line.strip_prefix(key).unwrap_or_else(|| panic!("{name}: no {key:?}: {line:?}"))
        };
        let raw = unescape(field("raw: "));
        let expect = field("expect: ");
        let words: Vec<_> = expect.split(' ').collect();
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{name}: no number: {expect:?}"));
        let (requests, rest) = match &words[..] {
            ["refused", rest @ ..] => (0, rest),
            ["one", "then", rest @ ..] => (1, rest),
            ["many", n, "then", rest @ ..] => (number(n), rest),
            ["one"] => (1, &[] as &[&str]),
            ["many", n] => (number(n), &[] as &[&str]),
            _ => panic!("{name}: what is {expect:?}"),
        };
        let refusal = match rest {
            [] => None,
            [status, code] => Some((u16::try_from(number(status)).expect("a status"), *code)),
            _ => panic!("{name}: what is {expect:?}"),
        };
        cases.push(Case { name, raw, requests, refusal });
    }
    cases
}

/// The bytes behind the escapes.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let (kind, after) = rest[at + 1..].split_at(1);
        rest = after;
        match kind {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "\\" => bytes.push(b'\\'),
            "x" => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hexadecimal digits"));
                rest = &rest[2..];
            }
            "(" => {
                let (inner, after) = rest.split_once(')').expect("a closed repetition");
                let (count, inner) = inner.split_once(',').expect("a count and a text");
                bytes.extend(unescape(inner).repeat(count.parse().expect("a count")));
                rest = after;
            }
            _ => panic!("unknown escape \\{kind}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}
