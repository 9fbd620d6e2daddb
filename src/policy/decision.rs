//! What a decision service answers: `{ "allow": false, "rule": "…", "id": "…" }`.
//!
//! Pure. What else stands in the object says nothing; what is not such an object is no decision. Both texts are for
//! the record and for nothing else, so they are cut and cleaned here.

use serde::Deserialize;
use serde_json::Value;

/// A decision about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may pass.
    pub allow: bool,
    /// By which rule, in the service's words.
    pub rule: Option<Box<str>>,
    /// The service's own ID of the decision.
    pub id: Option<Box<str>>,
}

/// The most characters of each text. Our choice: longer than any rule is called.
pub const MAX_TEXT: usize = 128;

#[derive(Deserialize)]
struct Written {
    allow: bool,
    #[serde(default)]
    rule: Value,
    #[serde(default)]
    id: Value,
}

impl Decision {
    /// Reads an answer; `None` when it is no decision.
    pub fn parse(answer: &[u8]) -> Option<Self> {
        let Written { allow, rule, id } = serde_json::from_slice(answer).ok()?;
        Some(Self { allow, rule: text(&rule), id: text(&id) })
    }
}

/// A text or a number, cut and without what could act on whoever reads it.
fn text(value: &Value) -> Option<Box<str>> {
    let number;
    let text = match value {
        Value::String(text) => text,
        Value::Number(written) => {
            number = written.to_string();
            &number
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let plain = |character: char| if character.is_control() { '?' } else { character };
    let text: String = text.chars().take(MAX_TEXT).map(plain).collect();
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_an_object_that_says_yes_or_no() {
        let decision = |allow, rule: Option<&str>, id: Option<&str>| {
            Some(Decision { allow, rule: rule.map(Into::into), id: id.map(Into::into) })
        };
        for (answer, expected) in [
            (r#"{"allow":true}"#, decision(true, None, None)),
            (r#"{"allow":false,"rule":"bots-7","id":42,"score":0.9}"#, decision(false, Some("bots-7"), Some("42"))),
            (r#"{"allow":false,"rule":"a\nb","id":""}"#, decision(false, Some("a?b"), None)),
            (r#"{"allow":true,"rule":null,"id":["x"]}"#, decision(true, None, None)),
            (r#"{"allow":"true"}"#, None),
            (r#"{"allow":1}"#, None),
            (r#"{"rule":"x"}"#, None),
            (r#"{"allow":true,"allow":false}"#, None),
            (r#"{"allow":true} x"#, None),
            ("true", None),
            ("", None),
        ] {
            assert_eq!(Decision::parse(answer.as_bytes()), expected, "{answer}");
        }
        let long = format!(r#"{{"allow":true,"rule":"{}"}}"#, "\u{e4}".repeat(500));
        let rule = Decision::parse(long.as_bytes()).and_then(|decision| decision.rule).expect("a rule");
        assert_eq!(rule.chars().count(), MAX_TEXT);
    }
}
