//! Why a certificate could not be had: who is to blame, in whose words, what to do.
//!
//! The CA's own message is passed on in full (RFC 8555 6.7); ours says what it means.

use std::fmt;

use instant_acme::{Error, Identifier, Problem};
use time::OffsetDateTime;

/// One reason.
#[derive(Clone, Debug)]
pub struct AcmeFault {
    /// Whose fault it is; decides when it is tried again.
    pub blame: Blame,
    /// A short word that never changes: an ACME error type, or one of ours.
    pub kind: Box<str>,
    /// What happened, with the CA's message in full.
    pub text: String,
    /// What to do; empty when nothing has to be done.
    pub help: String,
    /// Not before this time, when the CA said so.
    pub not_before: Option<OffsetDateTime>,
    /// Whether the CA said it, in its protocol: then it is there.
    pub is_said: bool,
}

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The CA: away, slow, or talking nonsense, before it has done anything.
    Ca,
    /// The CA's limits.
    Limit,
    /// The CA issued something that cannot be used.
    Certificate,
    /// The CA looked for a proof and did not find it.
    Validation,
    /// The names cannot work; found before the CA was asked.
    Names,
    /// The configuration, the account, a DNS provider.
    Setup,
    /// The disk.
    Storage,
}

impl AcmeFault {
    /// A reason.
    pub fn new(blame: Blame, kind: impl Into<Box<str>>, text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { blame, kind: kind.into(), text: text.into(), help: help.into(), not_before: None, is_said: false }
    }

    /// From a problem document.
    pub fn of_problem(problem: &Problem, not_before: Option<OffsetDateTime>) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or("about:blank");
        let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
        let (blame, help) = meaning(kind, problem.status);
        // Longer than any registered type: whoever sends more wants something else.
        let kind = clean(kind, 64).into();
        Self { blame, kind, text: full_text(problem), help: help.into(), not_before, is_said: blame != Blame::Ca }
    }

    /// From what the ACME library says, and what the last answer of the CA was.
    pub fn of_error(error: &Error, answer: Option<u16>, not_before: Option<OffsetDateTime>) -> Self {
        let fault = |blame, kind, text: String, help| Self { not_before, ..Self::new(blame, kind, text, help) };
        let said = |what: &str| match answer {
            Some(status) => format!("the CA answered {status} with {what}"),
            None => format!("the CA answered with {what}"),
        };
        match error {
            Error::Api(problem) => Self::of_problem(problem, not_before),
            // RFC 8555 6.7 wants a problem document with every error, but what stands before a CA on a bad day has none.
            Error::Json(json) => {
                fault(Blame::Ca, "malformed-answer", format!("{}: {json}", said("what is not its protocol")), "")
            }
            Error::Timeout(_) => fault(Blame::Ca, "timeout", "the CA did not finish the order in time".into(), ""),
            Error::Unsupported(what) => {
                fault(Blame::Setup, "unsupported", format!("the CA does not support {what}"), "")
            }
            Error::Crypto | Error::KeyRejected => fault(
                Blame::Setup,
                "account-key",
                error.to_string(),
                "move the account file away: a new account is made then",
            ),
            Error::Other(other) => {
                let kind = if answer.is_some() { "malformed-answer" } else { "unreachable" };
                fault(Blame::Ca, kind, crate::https::causes(&**other), "")
            }
            Error::Str(what) => fault(Blame::Ca, "malformed-answer", said(&format!("no {what}")), ""),
            other => fault(Blame::Ca, "malformed-answer", other.to_string(), ""),
        }
    }

    /// True when this was about the proofs of control, so that another kind of proof may do.
    pub fn is_validation(&self) -> bool {
        self.blame == Blame::Validation
    }
}

impl fmt::Display for AcmeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for AcmeFault {}

/// True for the one error that only wants the same again: a nonce that was too old (RFC 8555 6.5).
pub fn is_bad_nonce(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:badNonce"))
}

/// True when the CA does not know our account (any more).
pub fn is_unknown_account(fault: &AcmeFault) -> bool {
    &*fault.kind == "accountDoesNotExist"
}

/// A problem with its subproblems, in the CA's words.
pub fn full_text(problem: &Problem) -> String {
    let mut text = problem.detail.clone().unwrap_or_else(|| "no detail given".into());
    for sub in &problem.subproblems {
        let name = sub.identifier.as_ref().map_or_else(|| "?".into(), identifier_text);
        let detail = sub.detail.as_deref().or(sub.r#type.as_deref()).unwrap_or("no detail given");
        text.push_str(&format!("; {name}: {detail}"));
    }
    if let Some(kind) = &problem.r#type {
        text.push_str(&format!(" ({kind})"));
    }
    clean(&text, MOST)
}

/// Somebody else's text in our log and on our terminal: one line, and not without end.
pub fn clean(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
}

/// Longer than any message seen, short enough for one line of a log.
const MOST: usize = 4000;

/// An identifier as people write it.
pub fn identifier_text(identifier: &Identifier) -> String {
    match identifier {
        Identifier::Dns(name) => name.clone(),
        Identifier::Ip(ip) => ip.to_string(),
        other => clean(&format!("{other:?}"), 300),
    }
}

/// Whose fault an ACME error type is, and plain words for what to do (RFC 8555 6.7 and its registry).
fn meaning(kind: &str, status: Option<u16>) -> (Blame, &'static str) {
    match kind {
        "rateLimited" => (Blame::Limit, "nothing to do: it is tried again when the CA allows it"),
        "connection" => (
            Blame::Validation,
            "the CA could not connect: open port 80 (http-01) and 443 (tls-alpn-01) to the internet, over IPv4 and IPv6 alike if both are in DNS",
        ),
        "tls" => (
            Blame::Validation,
            "something else than tidegate answers on port 443 of that name: check what stands in front",
        ),
        "unauthorized" | "incorrectResponse" => (
            Blame::Validation,
            "something else than this tidegate answered for that name: check DNS, and what stands in front",
        ),
        "dns" => (Blame::Validation, "the CA found no usable DNS record: check A, AAAA and DNSSEC of the name"),
        "caa" => {
            (Blame::Validation, "a CAA record of the domain forbids this CA: allow it there, or use another directory")
        }
        "rejectedIdentifier" | "unsupportedIdentifier" => {
            (Blame::Setup, "this CA does not issue for that name: use another directory, or certificate = \"local\"")
        }
        "externalAccountRequired" => {
            (Blame::Setup, "this CA wants an account of its own: set eab = { kid, hmac } in [acme]")
        }
        "userActionRequired" => {
            (Blame::Setup, "the CA wants its new terms to be accepted: follow the link in its message")
        }
        "accountDoesNotExist" => (Blame::Setup, ""),
        "invalidContact" | "unsupportedContact" => (Blame::Setup, "correct `email`"),
        "invalidProfile" => (Blame::Setup, "correct `profile` in [acme]"),
        "badCSR" | "badPublicKey" | "badSignatureAlgorithm" | "badRevocationReason" | "alreadyRevoked" => {
            (Blame::Setup, "")
        }
        "serverInternal" => (Blame::Ca, ""),
        _ => match status {
            Some(429) => (Blame::Limit, "nothing to do: it is tried again when the CA allows it"),
            Some(500..) => (Blame::Ca, ""),
            Some(_) | None => (Blame::Setup, ""),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).expect("a problem")
    }

    #[test]
    fn the_message_of_a_ca_is_passed_on_in_full_with_its_meaning() {
        let fault = AcmeFault::of_problem(
            &problem(
                r#"{"type":"urn:ietf:params:acme:error:caa","detail":"CAA says\nno","status":403,"subproblems":[
                {"type":"urn:ietf:params:acme:error:caa","detail":"issue \"other.example\"","identifier":{"type":"dns","value":"a.example.com"}}]}"#,
            ),
            None,
        );
        assert_eq!(fault.text, "CAA says no; a.example.com: issue \"other.example\" (urn:ietf:params:acme:error:caa)");
        assert_eq!((&*fault.kind, fault.blame), ("caa", Blame::Validation));
        assert!(fault.help.contains("CAA"));
    }

    #[test]
    fn who_is_to_blame_follows_the_type_then_the_status() {
        for (json, expected) in [
            (r#"{"type":"urn:ietf:params:acme:error:rateLimited","status":429}"#, Blame::Limit),
            (r#"{"type":"urn:ietf:params:acme:error:serverInternal","status":500}"#, Blame::Ca),
            (r#"{"status":503,"detail":"maintenance"}"#, Blame::Ca),
            (r#"{"status":429}"#, Blame::Limit),
            (r#"{"type":"urn:ietf:params:acme:error:malformed","status":400}"#, Blame::Setup),
        ] {
            assert_eq!(AcmeFault::of_problem(&problem(json), None).blame, expected, "{json}");
        }
    }
}
