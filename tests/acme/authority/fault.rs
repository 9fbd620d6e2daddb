//! The bad days: what the authority does wrong on purpose, and for which requests.

use serde::Deserialize;

/// One fault, as `PUT /fault` has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) fault: Kind,
    /// The kinds of requests that have it, as the log names them. Default: all, and `newOrder` for `429`.
    at: Option<Vec<String>>,
    /// Seconds, for the Retry-After of `429` (default 30) and `503` (default none).
    pub(crate) retry_after: Option<u64>,
    /// How late answers are when they are `slow`; default 5.
    pub(crate) seconds: Option<u64>,
    /// What is wrong with a `wrong-certificate`; default its name.
    #[serde(default)]
    pub(crate) wrong: Wrong,
    /// `down` closes the port; by default connections are accepted, noted and reset.
    #[serde(default)]
    pub(crate) closed: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// No connection.
    Down,
    /// Connections, and never an answer.
    Hang,
    /// rateLimited.
    #[serde(rename = "429")]
    RateLimited,
    /// serverInternal, with the status of a server that is away.
    #[serde(rename = "503")]
    Unavailable,
    /// Half of each JSON document.
    Malformed,
    /// A leaf for another name, or for another key.
    WrongCertificate,
    /// A chain that is the leaf alone.
    NoIssuer,
    /// No proof is good enough.
    RefuseValidation,
    /// A page for people.
    Html,
    /// Late answers.
    Slow,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wrong {
    #[default]
    Name,
    Key,
}

impl Kind {
    /// Its name in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Hang => "hang",
            Self::RateLimited => "429",
            Self::Unavailable => "503",
            Self::Malformed => "malformed",
            Self::WrongCertificate => "wrong-certificate",
            Self::NoIssuer => "no-issuer",
            Self::RefuseValidation => "refuse-validation",
            Self::Html => "html",
            Self::Slow => "slow",
        }
    }
}

impl Fault {
    /// True if requests of this kind have it.
    pub(crate) fn is_at(&self, request: &str) -> bool {
        match &self.at {
            Some(kinds) => kinds.iter().any(|kind| kind == request),
            None => self.fault != Kind::RateLimited || request == "newOrder",
        }
    }
}
