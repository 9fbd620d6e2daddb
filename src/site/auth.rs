//! Who has logged in, as data: the ways of `[auth]`, and the decision services of `[hooks]`.
//!
//! `request/auth.rs` and `request/hook.rs` act on it. A route that says nothing of either has two empty lists, so that
//! its requests pay one look at each.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::policy::Timeouts;
use super::upstream::Upstream;
use super::users::UserList;

/// One of `[auth]`: a way to say who asks.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Its name, for the record.
    pub name: Arc<str>,
    /// What it takes.
    pub means: Means,
}

/// What a way of `[auth]` takes.
#[derive(Clone, Debug)]
pub enum Means {
    /// A client certificate of the handshake.
    ClientCert(CertAuth),
    /// A name and a password (RFC 7617).
    Basic(BasicAuth),
    /// The word of another service.
    Forward(ForwardAuth),
}

/// A client certificate that was verified in the handshake.
#[derive(Clone, Debug)]
pub struct CertAuth {
    /// Subjects that are let in; empty for all.
    pub subjects: Vec<Box<str>>,
    /// The request header that carries the subject upstream.
    pub header: Option<HeaderName>,
}

/// A name and a password.
#[derive(Clone, Debug)]
pub struct BasicAuth {
    /// Who they are for.
    pub users: Arc<UserList>,
    /// `WWW-Authenticate` of the 401.
    pub challenge: HeaderValue,
    /// The request header that carries the user's name upstream.
    pub header: Option<HeaderName>,
}

/// The word of another service, asked with each request.
#[derive(Clone, Debug)]
pub struct ForwardAuth {
    /// The service.
    pub service: Service,
    /// Fields of its answer that go upstream, in place of the client's.
    pub copy_headers: Vec<HeaderName>,
    /// Requests that pass without it.
    pub skip_if: Vec<SkipIf>,
}

/// Requests that the service is not asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipIf {
    /// With a bearer token, which the upstream judges.
    Bearer,
    /// With a client certificate, which the handshake has judged.
    ClientCert,
}

/// A service that the edge asks about a request.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it is: one endpoint.
    pub upstream: Arc<Upstream>,
    /// Its `Host`.
    pub host: HeaderValue,
    /// What is asked for there.
    pub target: PathAndQuery,
    /// The deadlines of its connection, none longer than `patience`.
    pub timeouts: Timeouts,
    /// How long the whole answer may take.
    pub patience: Duration,
}

/// One of `[hooks]`: a service that is asked for a decision.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its name, for the record.
    pub name: Arc<str>,
    /// The service.
    pub service: Service,
    /// Whether a refusal of its refuses the request; otherwise it is only recorded.
    pub is_enforced: bool,
    /// Whether requests pass that it does not decide.
    pub passes_on_error: bool,
    /// Request headers that it is told.
    pub headers: Vec<HeaderName>,
}

impl Auth {
    /// The request headers that tell the upstream who asks: nobody but this edge may write them.
    pub fn identity_headers(&self) -> &[HeaderName] {
        match &self.means {
            Means::ClientCert(cert) => cert.header.as_slice(),
            Means::Basic(basic) => basic.header.as_slice(),
            Means::Forward(forward) => &forward.copy_headers,
        }
    }

    /// The service that it asks, if it does.
    pub fn service(&self) -> Option<&Service> {
        match &self.means {
            Means::ClientCert(_) | Means::Basic(_) => None,
            Means::Forward(forward) => Some(&forward.service),
        }
    }
}
