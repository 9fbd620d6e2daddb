//! Problem documents (RFC 8555 6.7): why the authority does not do what it was asked.

use serde_json::{Value, json};

use super::book::Identifier;

/// A problem document.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    /// The last part of the type's URN.
    pub(crate) kind: &'static str,
    pub(crate) detail: String,
    pub(crate) subproblems: Vec<(Identifier, Problem)>,
    /// Seconds, for the answer's Retry-After.
    pub(crate) retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(status: u16, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), subproblems: Vec::new(), retry_after: None }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(400, "malformed", detail)
    }

    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(403, "unauthorized", detail)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(404, "malformed", "there is nothing at this URL")
    }

    /// The document itself.
    pub(crate) fn json(&self) -> Value {
        let mut document = json!({
            "type": format!("urn:ietf:params:acme:error:{}", self.kind),
            "detail": self.detail,
            "status": self.status,
        });
        if !self.subproblems.is_empty() {
            let part = |(identifier, problem): &(Identifier, Self)| {
                let mut part = problem.json();
                part["identifier"] = identifier.json();
                part
            };
            document["subproblems"] = self.subproblems.iter().map(part).collect();
        }
        document
    }
}
