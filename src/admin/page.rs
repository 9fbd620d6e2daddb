//! What the admin endpoint says to which path.

use http::StatusCode;

use super::facts::{EndpointState, Facts};
use super::status;
use crate::drain::Phase;
use crate::metrics::text;

/// One answer.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Page {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    /// Nothing but why.
    pub(super) fn refusal(status: StatusCode, why: &str) -> Self {
        Self::text(status, format!("{}: {why}\n", status.as_u16()))
    }
}

/// The answer to a path.
pub(super) async fn answer(path: &str, is_metrics_only: bool, facts: &Facts) -> Page {
    match path {
        "/metrics" => metrics(facts).await,
        _ if is_metrics_only => Page::refusal(StatusCode::NOT_FOUND, "only /metrics is served here"),
        "/status" => {
            let body = status::json(facts).await;
            Page { status: StatusCode::OK, content_type: "application/json", body: format!("{body:#}\n") }
        }
        "/healthz" => health(facts),
        "/readyz" => readiness(facts).await,
        _ => Page::refusal(StatusCode::NOT_FOUND, "there are /status, /metrics, /healthz and /readyz"),
    }
}

async fn metrics(facts: &Facts) -> Page {
    match facts.scrape().await.into_text() {
        Ok(body) => Page { status: StatusCode::OK, content_type: text::CONTENT_TYPE, body },
        Err(_) => Page::refusal(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"),
    }
}

/// Liveness: whether the edge takes requests. Upstreams have no part in it: an edge that is started anew because a
/// gateway is down helps nobody.
fn health(facts: &Facts) -> Page {
    if facts.drain.phase() == Phase::Serving {
        Page::text(StatusCode::OK, "ok\n")
    } else {
        Page::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

/// Readiness: whether every upstream has an endpoint that takes requests, as far as requests have shown.
async fn readiness(facts: &Facts) -> Page {
    if facts.drain.phase() != Phase::Serving {
        return Page::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    let endpoints = facts.endpoints(&facts.ask_workers(false).await);
    let is_down = |one: &&EndpointState| !endpoints.iter().any(|other| other.upstream == one.upstream && other.is_up());
    let down: Vec<String> = endpoints
        .iter()
        .filter(is_down)
        .map(|one| format!("{}: {}\n", one.upstream, one.error.as_deref().unwrap_or("it does not answer")))
        .collect();
    if down.is_empty() {
        Page::text(StatusCode::OK, "ok\n")
    } else {
        Page::text(StatusCode::SERVICE_UNAVAILABLE, down.concat())
    }
}
