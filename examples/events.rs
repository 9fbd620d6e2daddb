//! A small upstream with Server-Sent Events: a clock on `/events`, and an API in the shape of
//! OpenAI's on `/v1/chat/completions` that streams its answer word by word.
//!
//! `cargo run --example events`, then `tidegate run -c examples/events.toml`. It notices at once
//! when a client goes away, as a model run must. Tests include this file as a module.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// How the server behaves.
#[derive(Clone)]
pub(crate) struct Options {
    /// Between two events.
    pub(crate) every: Duration,
    /// Told of each stream's end.
    pub(crate) notice: Arc<dyn Fn(Notice) + Send + Sync>,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The last of so many events was taken.
    Finished(u64),
    /// The client went away after so many events.
    ClientGone(u64),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(events) => write!(f, "stream finished after {events} events"),
            Self::ClientGone(events) => write!(f, "client went away after {events} events"),
        }
    }
}

/// A small upstream with Server-Sent Events
#[derive(clap::Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Milliseconds between two events
    #[arg(long, default_value_t = 1000)]
    every_ms: u64,
}

#[tokio::main]
#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "a test that includes this file has its own main; others wait for the line"
)]
async fn main() -> io::Result<()> {
    let Arguments { listen, every_ms } = Arguments::parse();
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let notice = Arc::new(|notice| println!("{notice}"));
    serve(listener, Options { every: Duration::from_millis(every_ms), notice }).await
}

/// Serves until accepting fails. Dropping it stops accepting; open connections go on.
pub(crate) async fn serve(listener: TcpListener, options: Options) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let options = options.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let options = options.clone();
                async move { Ok::<_, Infallible>(answer(options, request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            drop(served); // how a connection ends is the peer's business
        });
    }
}

/// Answers one request.
async fn answer(options: Options, request: Request<Incoming>) -> Response<Pieces> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/events") => {
            // `?count=3` ends the stream after three events.
            let count = request.uri().query().and_then(|query| query.strip_prefix("count=")?.parse().ok());
            let events =
                (1..=count.unwrap_or(u64::MAX)).map(|number| format!("id: {number}\nevent: clock\ndata: {number}\n\n"));
            event_stream(options, events)
        }
        (&Method::POST, "/v1/chat/completions") => complete(options, request.into_body()).await,
        (&Method::GET | &Method::HEAD, "/health") => reply(StatusCode::OK, &json!({"ok": true})),
        _ => reply(StatusCode::NOT_FOUND, &json!({"error": {"message": "no such path", "type": "not_found"}})),
    }
}

/// Says the last message back, at once or word by word.
async fn complete(options: Options, body: Incoming) -> Response<Pieces> {
    let refuse =
        |status, message: &str| reply(status, &json!({"error": {"message": message, "type": "invalid_request_error"}}));
    let Ok(body) = Limited::new(body, 20 << 20).collect().await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 20 MiB, or was cut short");
    };
    let Ok(question) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return refuse(StatusCode::BAD_REQUEST, "the body is not JSON");
    };
    let said =
        question["messages"].as_array().and_then(|messages| messages.last()?["content"].as_str()).unwrap_or_default();
    if question["stream"] != true {
        let message = json!({"role": "assistant", "content": said});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        return reply(StatusCode::OK, &json!({"id": "example", "object": "chat.completion", "choices": [choice]}));
    }
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        format!("data: {}\n\n", json!({"id": "example", "object": "chat.completion.chunk", "choices": [choice]}))
    };
    let mut events: Vec<_> =
        said.split_inclusive(' ').map(|word| chunk(json!({"content": word}), Value::Null)).collect();
    events.push(chunk(json!({}), json!("stop")));
    events.push("data: [DONE]\n\n".into());
    event_stream(options, events.into_iter())
}

/// Sends one event at once and one more each time the clock allows, for as long as somebody listens.
fn event_stream(options: Options, events: impl Iterator<Item = String> + Send + 'static) -> Response<Pieces> {
    // Room for one: an event is made when the one before it was taken.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut taken = 0;
        for event in events {
            if taken > 0 {
                tokio::select! {
                    () = tokio::time::sleep(options.every) => {}
                    () = sender.closed() => {}
                }
            }
            if sender.send(Bytes::from(event)).await.is_err() {
                return (options.notice)(Notice::ClientGone(taken));
            }
            taken += 1;
        }
        (options.notice)(Notice::Finished(taken));
    });
    let mut answer = Response::new(Pieces(receiver));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn reply(status: StatusCode, body: &Value) -> Response<Pieces> {
    let (sender, receiver) = mpsc::channel(1);
    let sent = sender.try_send(Bytes::from(body.to_string()));
    debug_assert!(sent.is_ok(), "a new channel has room for one");
    let mut answer = Response::new(Pieces(receiver));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// A body whose pieces come from a channel. Dropping it tells the sender that the client is gone.
struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
