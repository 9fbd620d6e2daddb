//! Requests that the edge makes for itself: to a CA, to the API of a DNS provider.
//!
//! One client for all of them: rustls with the system's authorities and those that the operator adds,
//! one deadline for a whole exchange, answers of bounded size, no redirects. Not on any request path.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use crate::tls::{TlsError, service_config};

/// A client; cheap to clone. Its idle connections are shared.
#[derive(Clone, Debug)]
pub struct HttpsClient {
    inner: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Why there is no answer. The text names the host and has all causes.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection: no address, refused, no handshake.
    #[error("cannot connect to {host}: {why}")]
    Connect {
        /// Whom.
        host: String,
        /// All causes in words.
        why: String,
    },
    /// The exchange broke off.
    #[error("no whole answer from {host}: {why}")]
    Broken {
        /// Whom.
        host: String,
        /// All causes in words.
        why: String,
    },
    /// It took too long.
    #[error("no answer from {host} within {} s", DEADLINE.as_secs())]
    Timeout {
        /// Whom.
        host: String,
    },
}

/// From the first packet to the last byte of the answer. Our choice: CAs have been seen to take 20 s on a bad day.
const DEADLINE: Duration = Duration::from_secs(30);
/// To one address, so that a dead one of two families leaves time for the other.
const CONNECT: Duration = Duration::from_secs(10);
/// The largest answer: a chain or a list of records has some kilobytes.
const LARGEST: usize = 128 << 10;

impl HttpsClient {
    /// A client that trusts the system's authorities and these certificates (DER).
    ///
    /// # Errors
    /// When a certificate cannot be used, or there is no authority at all.
    pub fn new(roots: &[Vec<u8>]) -> Result<Self, TlsError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        // http is left to the callers' URLs: only a directory on loopback may have one.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(service_config(roots)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let inner = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Ok(Self { inner })
    }

    /// Sends one request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no whole answer within 30 s.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let host = request.uri().authority().map_or_else(String::new, ToString::to_string);
        let exchange = async {
            let response = self.inner.request(request.map(Full::new)).await.map_err(|error| {
                let why = causes(&error);
                let host = host.clone();
                if error.is_connect() { FetchError::Connect { host, why } } else { FetchError::Broken { host, why } }
            })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LARGEST).collect().await;
            let body = body.map_err(|error| FetchError::Broken { host: host.clone(), why: causes(&*error) })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        timeout(DEADLINE, exchange).await.unwrap_or_else(|_| Err(FetchError::Timeout { host: host.clone() }))
    }
}

/// The words of an error and of all that caused it, each once: the first alone often says nothing.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(because) = cause {
        let words = because.to_string();
        if !text.contains(&words) {
            // A String takes everything.
            let _ = write!(text, ": {words}");
        }
        cause = because.source();
    }
    text
}
