//! Forward auth: another service is asked about each request, as Authelia, Authentik and oauth2-proxy want it.
//!
//! It sees the client's head as an upstream would, cleaned of what only the edge may say, and never a body. 2xx lets
//! the request pass, with the listed headers of its answer and none of the client's own. What it says to a browser goes
//! to the browser; a WebSocket gets a plain status, for no script can follow a redirect there. No answer: no entry.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, RANGE, SET_COOKIE, TE, WWW_AUTHENTICATE,
};
use http::uri::Uri;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};

use super::{Admission, Denial, Outcome, subject};
use crate::addr::ClientAddr;
use crate::body::Body;
use crate::policy::{credentials, headers};
use crate::refusal::{PROXY_STATUS, Refusal, auth_status};
use crate::request::exchange::Exchange;
use crate::request::host::RequestHost;
use crate::request::reply::Reply;
use crate::request::service::{self, Trouble};
use crate::request::target;
use crate::site::auth::{Auth, ForwardAuth, SkipIf};

static X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Who is asked, about what.
pub(super) struct Asker<'a> {
    pub(super) auth: &'a Arc<Auth>,
    pub(super) way: &'a ForwardAuth,
    pub(super) host: &'a RequestHost,
    pub(super) is_tunnel: bool,
    /// Of another way of the same route.
    pub(super) challenge: Option<&'a HeaderValue>,
}

/// Asks the service about a request.
pub(super) async fn ask(exchange: &Exchange, head: &request::Parts, asker: &Asker<'_>) -> Outcome {
    let Asker { auth, way, .. } = asker;
    let is_skipped = way.skip_if.iter().any(|skip| match skip {
        SkipIf::Bearer => credentials::has_bearer(&head.headers),
        SkipIf::ClientCert => subject(exchange).is_some(),
    });
    if is_skipped {
        return Outcome::Admitted(Admission::by(auth));
    }
    // Whoever judges by addresses must not be given a false one.
    let Some(client) = exchange.client else { return refused(Refusal::ClientUnknown) };
    let question = question(exchange, head, client, asker);
    let answer = match service::ask(exchange, &way.service, question, Bytes::new()).await {
        Ok(answer) => answer,
        Err(Trouble::Late(detail)) => return refused(Refusal::AuthTimeout { detail }),
        Err(Trouble::Failed(detail)) => return refused(Refusal::AuthFailed { detail }),
    };
    let status = answer.status();
    if status.is_success() {
        return Outcome::Admitted(admission(asker, answer.headers()));
    }
    let is_denial = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    // Without credentials it is a visitor who has not logged in yet, and no guess.
    if is_denial && head.headers.contains_key(AUTHORIZATION) {
        exchange.auth_failed();
    }
    if !is_denial && !is_redirect(&answer) {
        let (label, status) = (&way.service.upstream.name, status.as_u16());
        let detail = format!("{label} answered {status}, which says neither yes nor no").into();
        return refused(Refusal::AuthFailed { detail });
    }
    denied(asker, answer)
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Denied(Denial::Refused(refusal))
}

/// A redirect that a browser can follow.
fn is_redirect(answer: &Response<Bytes>) -> bool {
    matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) && answer.headers().contains_key(LOCATION)
}

/// The question: the client's head without what speaks of its connection, its body or who it is, and in our words
/// what it asks for.
fn question(exchange: &Exchange, head: &request::Parts, client: ClientAddr, asker: &Asker<'_>) -> request::Parts {
    let Asker { way, host, is_tunnel, .. } = asker;
    let table = &exchange.generation.table;
    let mut question = Request::new(()).into_parts().0;
    question.uri = Uri::from(way.service.target.clone());
    let mut fields = head.headers.clone();
    headers::clean_request(&mut fields, &table.edge.trust, exchange.is_peer_trusted(), &table.identity_headers);
    headers::join_cookies(&mut fields);
    // A condition or a range could make its answer one without a yes or no.
    let is_of_content = |name: &&HeaderName| {
        let name = name.as_str();
        ["content-", "if-", "sec-websocket-"].iter().any(|begin| name.starts_with(begin))
    };
    let of_content: Vec<HeaderName> = fields.keys().filter(is_of_content).cloned().collect();
    for name in of_content.iter().chain([&RANGE, &TE, &CONNECTION]) {
        fields.remove(name);
    }
    fields.insert(HOST, way.service.host.clone());
    let edge = headers::Edge {
        client: Some(client),
        proto: exchange.scheme(),
        host: &host.value,
        port: host.port.unwrap_or_else(|| exchange.default_port()),
        request_id: &exchange.id,
        prefix: None,
    };
    headers::write_edge(&mut fields, &edge);
    let method = if *is_tunnel { &Method::GET } else { &head.method };
    for (name, text) in [(&X_FORWARDED_METHOD, method.as_str()), (&X_FORWARDED_URI, target(&head.uri))] {
        // Both came through the checks of a head: neither has a byte that a field may not have.
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            fields.insert(name, value);
        }
    }
    question.headers = fields;
    question
}

/// What the service said of who asks.
fn admission(asker: &Asker<'_>, answer: &HeaderMap) -> Box<Admission> {
    let mut admission = Admission::by(asker.auth);
    for name in &asker.way.copy_headers {
        // An empty one says nothing, and some readers take it for somebody.
        let values = answer.get_all(name).iter().filter(|value| !value.is_empty());
        admission.fields.extend(values.map(|value| (name.clone(), value.clone())));
    }
    admission.user = admission.fields.first().and_then(|(_, value)| value.to_str().ok()).map(Into::into);
    admission.cookies = answer.get_all(SET_COOKIE).iter().cloned().collect();
    admission
}

/// What the client gets when the service says no.
fn denied(asker: &Asker<'_>, answer: Response<Bytes>) -> Outcome {
    let Asker { auth, challenge, is_tunnel, .. } = asker;
    let status = answer.status();
    let (mut head, body) = answer.into_parts();
    if *is_tunnel {
        let cause = format!("auth \"{}\" answered {}", auth.name, status.as_u16()).into();
        let of_service = head.headers.remove(WWW_AUTHENTICATE);
        return refused(match status {
            StatusCode::FORBIDDEN => Refusal::NotAllowed { cause },
            _ => Refusal::NotLoggedIn { cause, challenge: challenge.cloned().or(of_service) },
        });
    }
    headers::clean_response(&mut head.headers);
    head.headers.remove(CONTENT_LENGTH);
    head.headers.append(PROXY_STATUS, auth_status(status, &auth.name));
    if let Some(challenge) = challenge.filter(|_| status == StatusCode::UNAUTHORIZED) {
        head.headers.append(WWW_AUTHENTICATE, (*challenge).clone());
    }
    // Its version and the words of its status line were for us.
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    *response.headers_mut() = head.headers;
    Outcome::Denied(Denial::Answered(Box::new(Reply::own(response)), Arc::clone(&auth.name)))
}
