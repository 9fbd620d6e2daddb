//! Asking a service about a request: one question, one answer of bounded size, one deadline for both.
//!
//! It goes through this worker's pool, as a request to any endpoint. What the answer means is for `auth` and `hook`.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::{Response, request};
use http_body::Body as _;
use tokio::time::{Instant, timeout_at};

use super::exchange::Exchange;
use crate::body::Body;
use crate::forward::Plan;
use crate::forward::answer::AnswerBody;
use crate::forward::upload::Upload;
use crate::refusal::{Failure, Refusal};
use crate::site::auth::Service;
use crate::site::policy::HostPolicy;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// None came in time.
    Late(Box<str>),
    /// There was none, or it was malformed.
    Failed(Box<str>),
}

/// The most bytes of an answer. Our choice: a page to log in fits, a memory that grows does not.
const MAX_ANSWER: usize = 64 << 10;

/// Asks.
///
/// # Errors
/// When no whole answer comes in time.
pub(super) async fn ask(
    exchange: &Exchange,
    service: &Service,
    head: request::Parts,
    body: Bytes,
) -> Result<Response<Bytes>, Trouble> {
    let deadline = Instant::now() + service.patience;
    let asking = async {
        match once(exchange, service, head.clone(), body.clone()).await {
            // An idle connection that the service gave up just now. What is asked changes nothing there: it is asked again.
            Err(Refusal::Failed { failure: Failure::Closed | Failure::Reset, .. }) => {
                once(exchange, service, head, body).await
            }
            answered => answered,
        }
    };
    match timeout_at(deadline, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(refusal)) => Err(trouble(&refusal)),
        Err(_) => {
            let (label, seconds) = (&service.upstream.name, service.patience.as_secs_f32());
            Err(Trouble::Late(format!("{label} did not answer within {seconds} s").into()))
        }
    }
}

/// One attempt.
async fn once(
    exchange: &Exchange,
    service: &Service,
    head: request::Parts,
    body: Bytes,
) -> Result<Response<Bytes>, Refusal> {
    let plan = Plan {
        upstream: &service.upstream,
        timeouts: &service.timeouts,
        // It stands in the head already.
        host: &HostPolicy::Preserve,
        client: exchange.client,
        is_tunnel: false,
        meter: None,
    };
    let body = if body.is_empty() { Body::Empty } else { Body::full(body) };
    let mut upload = Some(Upload::new(head, body));
    let answer = exchange.parts.upstreams.send(&mut upload, &plan).await?;
    let (head, body) = answer.response.into_parts();
    let broken = |why: &str| {
        let detail = format!("{}: {why}", service.upstream.name).into();
        Refusal::Failed { failure: Failure::Protocol, detail }
    };
    Ok(Response::from_parts(head, collect(body).await.map_err(broken)?))
}

/// The whole body.
async fn collect(mut body: AnswerBody) -> Result<Bytes, &'static str> {
    let mut whole = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|_| "its answer broke off")?.into_data() else { continue };
        if whole.len() + data.len() > MAX_ANSWER {
            return Err("its answer is larger than 64 KiB");
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn trouble(refusal: &Refusal) -> Trouble {
    let words: Box<str> = refusal.cause().into();
    match refusal {
        Refusal::Unreachable { failure, .. } | Refusal::Failed { failure, .. } => match failure {
            Failure::ConnectTimeout | Failure::ResponseTimeout => Trouble::Late(words),
            Failure::Refused
            | Failure::Unroutable
            | Failure::Dns
            | Failure::Tls
            | Failure::Closed
            | Failure::Reset
            | Failure::Protocol
            | Failure::Upgrade
            | Failure::NotReady
            | Failure::Restarting => Trouble::Failed(words),
        },
        _ => Trouble::Failed(words),
    }
}
