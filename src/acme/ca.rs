//! One CA: its directory, its answers, when it wants to be asked again.
//!
//! The ACME library speaks through `Line`, which remembers what it has no words for: the status and the
//! `Retry-After` of the last answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, CertificateIdentifier, Error, HttpClient, Problem};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use time::OffsetDateTime;

use super::fault::{AcmeFault, Blame, clean};
use super::plan::Window;
use crate::https::HttpsClient;
use crate::site::acme::Directory;

/// A CA that has just answered with its directory.
#[derive(Clone)]
pub struct Ca {
    /// Which.
    pub directory: Directory,
    /// What it says of itself.
    pub meta: Meta,
    renewal_info: Option<String>,
    line: Line,
}

/// What a CA says of itself (RFC 8555 7.1.1 and the profiles extension).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// What CAA records call it.
    pub caa_identities: Vec<String>,
    /// What it puts before the hashed URIs of accounts (draft-ietf-acme-dns-persist-02).
    pub account_hash_prefix: Option<String>,
    /// Names of its profiles.
    pub profiles: serde_json::Map<String, serde_json::Value>,
    /// Whether an account must be bound to an external one.
    pub external_account_required: bool,
}

/// The part of a directory that tells one from a maintenance page, and what the library does not show.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    #[expect(dead_code, reason = "it must be there")]
    new_nonce: String,
    #[expect(dead_code, reason = "it must be there")]
    new_order: String,
    renewal_info: Option<String>,
    #[serde(default)]
    meta: Meta,
}

/// RFC 9773 4.2.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: SuggestedWindow,
    #[serde(rename = "explanationURL")]
    explanation_url: Option<String>,
}

#[derive(Deserialize)]
struct SuggestedWindow {
    #[serde(with = "time::serde::rfc3339")]
    start: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    end: OffsetDateTime,
}

/// What a CA says about the renewal of one certificate.
#[derive(Clone, Debug)]
pub struct Suggestion {
    /// When.
    pub window: Window,
    /// A page that says why, when there is something to say.
    pub explanation: Option<String>,
    /// When to ask again.
    pub again: Duration,
}

/// RFC 9773 4.3.2: asked again after six hours where the CA says nothing …
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// … and never more often than this, nor less often than daily, whatever it says.
const ASK_RANGE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

impl Ca {
    /// Asks a CA for its directory. This is also how a CA that was away is looked for: one plain request.
    ///
    /// # Errors
    /// When there is no answer, or it is no directory.
    pub async fn reach(directory: &Directory) -> Result<Self, AcmeFault> {
        let roots = directory.root.as_ref().map_or(&[][..], |root| &root.certificates);
        let https = HttpsClient::new(roots)
            .map_err(|error| AcmeFault::new(Blame::Setup, "trust", error.to_string(), error.help()))?;
        let line = Line { https, last: Arc::default(), listing: None };
        let answer = line.get(&directory.url).await?;
        let listing: Listing = serde_json::from_slice(answer.body()).map_err(|error| {
            let text = format!("{} answered, but not with an ACME directory: {error}", directory.url);
            AcmeFault::new(Blame::Ca, "malformed-answer", text, "check `directory` in [acme] if this stays")
        })?;
        let Listing { renewal_info, meta, .. } = listing;
        let line = Line { listing: Some((directory.url.clone(), answer.into_body())), ..line };
        Ok(Self { directory: directory.clone(), meta, renewal_info, line })
    }

    /// The same CA for another conversation, with memory of its own.
    #[must_use]
    pub fn afresh(&self) -> Self {
        let line = Line { last: Arc::default(), ..self.line.clone() };
        Self { line, ..self.clone() }
    }

    /// What the ACME library sends its requests by.
    pub fn http(&self) -> Box<dyn HttpClient> {
        Box::new(self.line.clone())
    }

    /// An error of the ACME library in our words.
    pub fn fault(&self, error: &Error) -> AcmeFault {
        let last = self.line.last();
        AcmeFault::of_error(error, last.status, last.not_before)
    }

    /// How long the last answer asked us to wait.
    pub fn wanted_pause(&self) -> Option<Duration> {
        let until = self.line.last().not_before?;
        Some(Duration::try_from(until - OffsetDateTime::now_utc()).unwrap_or_default())
    }

    /// True when the CA has renewal information (RFC 9773).
    pub fn has_renewal_info(&self) -> bool {
        self.renewal_info.is_some()
    }

    /// When the CA wants a certificate to be renewed; `None` when it has no opinion.
    ///
    /// # Errors
    /// When it does not answer, or not with what the RFC says.
    pub async fn suggestion(&self, leaf: &CertificateDer<'_>) -> Result<Option<Suggestion>, AcmeFault> {
        let (Some(url), Ok(id)) = (&self.renewal_info, CertificateIdentifier::try_from(leaf)) else { return Ok(None) };
        let answer = self.line.get(&format!("{}/{id}", url.trim_end_matches('/'))).await?;
        let info: RenewalInfo = serde_json::from_slice(answer.body()).map_err(|error| {
            AcmeFault::new(
                Blame::Ca,
                "malformed-answer",
                format!("the CA's renewal information is malformed: {error}"),
                "",
            )
        })?;
        let again = self.wanted_pause().unwrap_or(ASK_AGAIN).clamp(ASK_RANGE.0, ASK_RANGE.1);
        let SuggestedWindow { start, end } = info.suggested_window;
        let explanation = info.explanation_url.map(|url| clean(&url, 300));
        Ok(Some(Suggestion { window: Window { start, end }, explanation, again }))
    }
}

/// The way to a CA.
#[derive(Clone)]
struct Line {
    https: HttpsClient,
    last: Arc<Mutex<Last>>,
    /// The directory and its URL: the library asks for it whenever an account is opened.
    listing: Option<(Box<str>, Bytes)>,
}

/// What the last answer said.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    status: Option<u16>,
    not_before: Option<OffsetDateTime>,
}

impl Line {
    fn last(&self) -> Last {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        // RFC 8555 6.1 wants the client and its library; the library names itself.
        let library = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
        let agent = format!("tidegate/{} {library}", env!("CARGO_PKG_VERSION"));
        if let Ok(agent) = HeaderValue::from_str(agent.trim_end()) {
            request.headers_mut().insert(USER_AGENT, agent);
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Last::default();
        let answer = self.https.send(request).await.map_err(|error| Error::Other(error.into()))?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Last { status: Some(answer.status().as_u16()), not_before: not_before(answer.headers()) };
        Ok(answer)
    }

    /// A plain GET that must succeed.
    async fn get(&self, url: &str) -> Result<Response<Bytes>, AcmeFault> {
        let wrong = |why: String| AcmeFault::new(Blame::Setup, "url", format!("{url} cannot be asked: {why}"), "");
        let request = Request::get(url).body(Bytes::new()).map_err(|error| wrong(error.to_string()))?;
        let answer = self.send(request).await;
        let last = self.last();
        let answer = answer.map_err(|error| AcmeFault::of_error(&error, last.status, last.not_before))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => Err(match serde_json::from_slice::<Problem>(answer.body()) {
                Ok(problem) => {
                    let problem = Problem { status: Some(status.as_u16()), ..problem };
                    AcmeFault::of_problem(&problem, last.not_before)
                }
                Err(_) => {
                    let blame = if status == StatusCode::TOO_MANY_REQUESTS { Blame::Limit } else { Blame::Ca };
                    let text = format!("{url} answered {status}");
                    AcmeFault { not_before: last.not_before, ..AcmeFault::new(blame, "http", text, "") }
                }
            }),
        }
    }
}

impl HttpClient for Line {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let line = self.clone();
        Box::pin(async move {
            if let Some((url, body)) = &line.listing
                && request.method() == Method::GET
                && *request.uri() == **url
            {
                let (parts, body) = Response::new(body.clone()).into_parts();
                return Ok(BytesResponse { parts, body: Box::new(body) });
            }
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_or_else(|never| match never {}, http_body_util::Collected::to_bytes);
            let (parts, body) = line.send(Request::from_parts(head, body)).await?.into_parts();
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

/// `Retry-After` as a time (RFC 9110 10.2.3); a CA that says nothing sensible says nothing.
fn not_before(headers: &HeaderMap) -> Option<OffsetDateTime> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let time = match text.parse::<u32>() {
        Ok(seconds) => OffsetDateTime::now_utc() + Duration::from_secs(seconds.into()),
        Err(_) => OffsetDateTime::from(httpdate::parse_http_date(text).ok()?),
    };
    // Our choice: a day. A CA that was set up wrongly must not put us off for ever.
    Some(time.min(OffsetDateTime::now_utc() + time::Duration::DAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_day() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).expect("a value"))]);
            not_before(&headers).map(|time| (time - OffsetDateTime::now_utc()).whole_seconds())
        };
        assert!(of("120").is_some_and(|seconds| (118..=120).contains(&seconds)));
        assert!(of("99999999").is_some_and(|seconds| seconds <= 86_400));
        assert!(of("Fri, 31 Dec 1999 23:59:59 GMT").is_some_and(|seconds| seconds < 0));
        assert_eq!(of("soon"), None);
    }
}
