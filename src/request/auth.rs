//! Who asks: the ways of `[auth]` that a route takes, any one of which suffices.
//!
//! By the head alone, before a byte of the body is read (N-26), and before any action of the route: its redirects and
//! fixed answers are behind it too. Ways that ask nobody come first. Whatever fails keeps the request out.

mod forward;

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, request};

use super::exchange::Exchange;
use super::host::RequestHost;
use super::reply::Reply;
use crate::policy::credentials;
use crate::policy::password::Verdict;
use crate::refusal::Refusal;
use crate::site::auth::{Auth, BasicAuth, CertAuth, Means};
use crate::site::route::Route;

/// What the edge has found out about who asks.
#[derive(Debug)]
pub struct Admission {
    /// The way by which it did.
    pub auth: Arc<Auth>,
    /// Who it is, for the record.
    pub user: Option<Box<str>>,
    /// What the upstream is told.
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Whether `Authorization` was for the edge. A password is not for the upstream, which may log it.
    takes_authorization: bool,
    /// Cookies for the client, of an auth service.
    pub cookies: Vec<HeaderValue>,
}

impl Admission {
    fn by(auth: &Arc<Auth>) -> Box<Self> {
        let auth = Arc::clone(auth);
        Box::new(Self { auth, user: None, fields: Vec::new(), takes_authorization: false, cookies: Vec::new() })
    }

    /// Writes who asks into a head that was cleaned of what the client said of it.
    pub fn write(&self, fields: &mut HeaderMap) {
        if self.takes_authorization {
            fields.remove(AUTHORIZATION);
        }
        for name in self.auth.identity_headers() {
            fields.remove(name);
        }
        for (name, value) in &self.fields {
            fields.append(name, value.clone());
        }
    }
}

/// What came of one way.
enum Outcome {
    Admitted(Box<Admission>),
    Denied(Denial),
}

/// What the client gets when no way lets it in.
enum Denial {
    Refused(Refusal),
    /// The answer of the service of this way.
    Answered(Box<Reply>, Arc<str>),
}

/// Lets a request in, or makes the answer to it: that of an auth service, or a refusal.
///
/// # Errors
/// When no way lets it in and no service has answered.
pub(super) async fn admit(
    exchange: &mut Exchange,
    head: &request::Parts,
    host: &RequestHost,
    route: &Route,
    is_tunnel: bool,
) -> Result<Option<Reply>, Refusal> {
    let challenge = route.auth.iter().find_map(|auth| match &auth.means {
        Means::Basic(basic) => Some(&basic.challenge),
        Means::ClientCert(_) | Means::Forward(_) => None,
    });
    // The last word counts: a service can say where to log in, a missing certificate cannot.
    let mut denial = None;
    for auth in &route.auth {
        let outcome = match &auth.means {
            Means::ClientCert(cert) => by_certificate(exchange, auth, cert),
            Means::Basic(basic) => by_password(exchange, head, auth, basic).await,
            Means::Forward(way) => {
                let asker = forward::Asker { auth, way, host, is_tunnel, challenge };
                forward::ask(exchange, head, &asker).await
            }
        };
        match outcome {
            Outcome::Admitted(admission) => {
                exchange.admission = Some(admission);
                return Ok(None);
            }
            Outcome::Denied(why) => denial = Some(why),
        }
    }
    match denial {
        Some(Denial::Refused(refusal)) => Err(refusal),
        Some(Denial::Answered(reply, name)) => {
            exchange.answered_by_auth(name);
            Ok(Some(*reply))
        }
        // Only for a route without a way, which is not asked here.
        None => Ok(None),
    }
}

/// A verified certificate of the handshake. That it was verified for this site is judged with its host (`host.rs`).
fn by_certificate(exchange: &Exchange, auth: &Arc<Auth>, cert: &CertAuth) -> Outcome {
    let subject = subject(exchange);
    let subject =
        subject.filter(|subject| cert.subjects.is_empty() || cert.subjects.iter().any(|known| **known == **subject));
    let Some(subject) = subject else { return Outcome::Denied(Denial::Refused(Refusal::NoCertificate)) };
    let mut admission = Admission::by(auth);
    admission.user = Some(subject.into());
    admission.tell(cert.header.as_ref(), subject);
    Outcome::Admitted(admission)
}

/// The subject of the client's certificate. One that is empty is no identity.
fn subject(exchange: &Exchange) -> Option<&str> {
    exchange.connection.tls.as_ref()?.client_subject.as_deref().filter(|subject| !subject.is_empty())
}

impl Admission {
    /// Tells the upstream who asks, where the configuration has a header for it.
    fn tell(&mut self, header: Option<&HeaderName>, who: &str) {
        if let Some(name) = header
            // A name may have bytes beyond ASCII, as UTF-8; control characters it has not.
            && let Ok(value) = HeaderValue::from_bytes(who.as_bytes())
        {
            self.fields.push((name.clone(), value));
        }
    }
}

/// A name and a password (RFC 7617).
async fn by_password(exchange: &Exchange, head: &request::Parts, auth: &Arc<Auth>, basic: &BasicAuth) -> Outcome {
    let denied = || Outcome::Denied(Denial::Refused(Refusal::Login { challenge: basic.challenge.clone() }));
    let Some(login) = credentials::basic(&head.headers) else { return denied() };
    match exchange.parts.auth.judge(&basic.users.users(), &login, exchange.client).await {
        Verdict::Right => {
            let mut admission = Admission::by(auth);
            admission.takes_authorization = true;
            admission.user = Some(login.name().into());
            admission.tell(basic.header.as_ref(), login.name());
            Outcome::Admitted(admission)
        }
        Verdict::Wrong => {
            exchange.auth_failed();
            denied()
        }
        Verdict::Busy => Outcome::Denied(Denial::Refused(Refusal::LoginBusy)),
    }
}
