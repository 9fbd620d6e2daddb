//! The sentence that names a CA in the DNS: `issue-value` of RFC 8659 4.2, used by CAA records and by the
//! records of dns-persist-01.

/// A CA and conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueValue {
    /// The CA's domain in lower case; `None` allows nobody.
    pub issuer: Option<String>,
    /// Conditions: tag in lower case, and value. A tag may come twice.
    pub parameters: Vec<(String, String)>,
}

impl IssueValue {
    /// Reads a value. `None` when it breaks the grammar: such a record allows nobody.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (issuer, rest) = text.split_once(';').unwrap_or((text, ""));
        let issuer = match issuer.trim_matches(BLANK) {
            "" => None,
            name if name.split('.').all(is_label) => Some(name.to_ascii_lowercase()),
            _ => return None,
        };
        let mut parameters = Vec::new();
        if !rest.trim_matches(BLANK).is_empty() {
            // An empty parameter, as after a final semicolon, is outside the grammar; CAs do refuse it.
            for parameter in rest.split(';') {
                let (tag, value) = parameter.split_once('=')?;
                let (tag, value) = (tag.trim_matches(BLANK), value.trim_matches(BLANK));
                if !is_label(tag) || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return None;
                }
                parameters.push((tag.to_ascii_lowercase(), value.to_owned()));
            }
        }
        Some(Self { issuer, parameters })
    }

    /// The values of a parameter.
    pub fn all<'a>(&'a self, tag: &'a str) -> impl Iterator<Item = &'a str> {
        self.parameters.iter().filter(move |(name, _)| name == tag).map(|(_, value)| value.as_str())
    }

    /// True when it names one of these CAs.
    pub fn names_one_of(&self, issuers: &[String]) -> bool {
        let issuer = self.issuer.as_deref();
        issuers.iter().any(|name| issuer.is_some_and(|own| name.trim_end_matches('.').eq_ignore_ascii_case(own)))
    }
}

/// WSP of RFC 5234.
const BLANK: [char; 2] = [' ', '\t'];

/// Letters and digits, and hyphens between them.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_by_the_grammar() {
        let value = |issuer: Option<&str>, parameters: &[(&str, &str)]| {
            let parameters = parameters.iter().map(|(tag, value)| ((*tag).into(), (*value).into())).collect();
            Some(IssueValue { issuer: issuer.map(str::to_owned), parameters })
        };
        for (text, expected) in [
            ("ca.example.net", value(Some("ca.example.net"), &[])),
            (" CA.Example.NET ; ", value(Some("ca.example.net"), &[])),
            (";", value(None, &[])),
            ("", value(None, &[])),
            ("ca.example.net; account=230123", value(Some("ca.example.net"), &[("account", "230123")])),
            (
                "ca.example.net;\taccountURI = https://ca.example.net/a=1 ; policy=",
                value(Some("ca.example.net"), &[("accounturi", "https://ca.example.net/a=1"), ("policy", "")]),
            ),
            ("ca.example.net; a=1; a=2", value(Some("ca.example.net"), &[("a", "1"), ("a", "2")])),
            ("%%%%%", None),
            ("ca.example.net.", None),
            ("-ca.example.net", None),
            ("ca.example.net; account", None),
            ("ca.example.net; a=1;", None),
            ("ca.example.net; a=1;;b=2", None),
            ("ca.example.net; a=1 2", None),
            ("ca.example.net; a_b=1", None),
        ] {
            assert_eq!(IssueValue::parse(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(IssueValue::parse(b"ca.example.net\xff"), None);
    }
}
