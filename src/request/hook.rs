//! Decision services: each hook of a route is told of a request and may refuse it, or only have its word recorded.
//!
//! It is told what a record says, never a body (N-07). A hook in monitor mode never refuses; any hook delays a
//! request by its timeout at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::uri::Uri;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, request};
use serde::Serialize;

use super::exchange::Exchange;
use super::service::{self, Trouble};
use super::target;
use crate::access_log::{HookRecord, HookVerdict};
use crate::policy::decision::Decision;
use crate::policy::headers::X_REQUEST_ID;
use crate::policy::names;
use crate::refusal::Refusal;
use crate::site::auth::Hook;
use crate::site::route::Route;

/// Asks the hooks of a route, one after another.
///
/// # Errors
/// When one that is enforced refuses the request, or gives no decision and that counts as one.
pub(super) async fn ask_all(
    exchange: &mut Exchange,
    head: &request::Parts,
    route: &Route,
    is_tunnel: bool,
) -> Result<(), Refusal> {
    for hook in &route.hooks {
        let begun = Instant::now();
        let decided = decide(exchange, head, hook, is_tunnel).await;
        let (verdict, rule, id) = match &decided {
            Ok(Decision { allow, rule, id }) => {
                (if *allow { HookVerdict::Allow } else { HookVerdict::Deny }, rule.clone(), id.clone())
            }
            Err(_) => (HookVerdict::Error, None, None),
        };
        let name = Arc::clone(&hook.name);
        let is_enforced = hook.is_enforced;
        exchange.notes.hooks.push(HookRecord { name, is_enforced, verdict, rule, id, took: begun.elapsed() });
        match decided {
            Ok(decision) if is_enforced && !decision.allow => {
                let rule = decision.rule.map_or(String::new(), |rule| format!(", by \"{rule}\""));
                return Err(Refusal::Hook { cause: format!("hook \"{}\" refuses it{rule}", hook.name).into() });
            }
            Err(detail) if is_enforced && !hook.passes_on_error => return Err(Refusal::HookFailed { detail }),
            Ok(_) => {}
            Err(why) => tracing::debug!(event = "hook_failed", hook = %hook.name, why, "a hook gave no decision"),
        }
    }
    Ok(())
}

/// What a hook is told of a request.
#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    client: Option<String>,
    site: Option<&'a str>,
    route: &'a str,
    auth: Option<&'a str>,
    user: Option<&'a str>,
    upgrade: bool,
    headers: BTreeMap<&'a str, String>,
}

/// The decision of one hook, or why there is none.
async fn decide(
    exchange: &Exchange,
    head: &request::Parts,
    hook: &Hook,
    is_tunnel: bool,
) -> Result<Decision, Box<str>> {
    let mut question = Request::new(()).into_parts().0;
    question.method = Method::POST;
    question.uri = Uri::from(hook.service.target.clone());
    let fields = &mut question.headers;
    fields.insert(HOST, hook.service.host.clone());
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(X_REQUEST_ID.clone(), exchange.id.clone());
    let body = told(exchange, head, hook, is_tunnel).ok_or("the request cannot be told as JSON")?;
    let answer = service::ask(exchange, &hook.service, question, body).await;
    let answer = answer.map_err(|(Trouble::Late(why) | Trouble::Failed(why))| why)?;
    let label = &hook.service.upstream.name;
    if answer.status() != StatusCode::OK {
        return Err(format!("{label} answered {}", answer.status().as_u16()).into());
    }
    Decision::parse(answer.body()).ok_or_else(|| format!("{label} answered with no decision").into())
}

/// The question as JSON.
fn told(exchange: &Exchange, head: &request::Parts, hook: &Hook, is_tunnel: bool) -> Option<Bytes> {
    let log = &exchange.parts.log;
    let text = |value: Option<&HeaderValue>| value.map_or(String::new(), |value| lossy(value.as_bytes()));
    let admission = exchange.admission.as_deref();
    let headers = hook.headers.iter().filter_map(|name| Some((name.as_str(), field(exchange, head, name)?)));
    let told = Told {
        id: exchange.id.to_str().ok()?,
        method: if is_tunnel { "GET" } else { head.method.as_str() },
        host: &text(exchange.notes.host.as_ref()),
        // Secrets in it are nobody else's business either.
        path: &log.mask_target(target(&head.uri)),
        client: exchange.client.map(|client| client.to_string()),
        site: exchange.site.as_ref().map(|site| &*site.label),
        route: exchange.route.as_ref().map_or("", |route| &route.condition.prefix),
        auth: admission.map(|admission| &*admission.auth.name),
        user: admission.and_then(|admission| admission.user.as_deref()),
        upgrade: is_tunnel,
        headers: headers.collect(),
    };
    serde_json::to_vec(&told).ok().map(Bytes::from)
}

/// A header of the request as the hook is told of it: masked where records mask it. What a client says of who it is
/// is not told: `user` says what is true of that.
fn field(exchange: &Exchange, head: &request::Parts, name: &HeaderName) -> Option<String> {
    let is_forged = exchange.generation.table.identity_headers.contains(name)
        || names::meaning(name.as_str()) != names::Meaning::EndToEnd;
    if is_forged {
        return None;
    }
    let mut lines = head.headers.get_all(name).iter().peekable();
    lines.peek()?;
    let shown = |value: &HeaderValue| {
        exchange.parts.log.mask_header(name.as_str(), value.as_bytes()).unwrap_or_else(|| lossy(value.as_bytes()))
    };
    Some(lines.map(shown).collect::<Vec<_>>().join(", "))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
