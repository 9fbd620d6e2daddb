//! A steady pace over HTTP/1.1, HTTP/2 and WebSockets while something happens to the subject: what fails?
//!
//! A request has failed when no whole answer came on the connection that it was sent on. It has not when the
//! protocol says that it was not begun: the connection was seen to be closed before the request was sent, or
//! HTTP/2's GOAWAY excluded its stream (RFC 9113 6.8); then it is sent again on another connection.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::SendRequest;
use http::Request;
use serde_json::json;
use tokio::task::spawn_local;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::http1::{self, Http1, PATH};
use crate::http2;
use crate::meter::{self, Fault, Starter};
use crate::tls::{Dialer, Target};
use crate::websocket::{Message, WebSocket};

/// How much at once, and how often
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Options {
    /// HTTP/1.1 connections
    #[arg(long, default_value_t = 16)]
    http1: u64,
    /// HTTP/2 connections
    #[arg(long, default_value_t = 8)]
    http2: u64,
    /// WebSockets
    #[arg(long, default_value_t = 16)]
    sockets: u64,
    /// Milliseconds from one request or message to the next, on each
    #[arg(long, default_value_t = 5)]
    pace_ms: u64,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    is_over: Cell<bool>,
    requests: Cell<u64>,
    retried: Cell<u64>,
    reopened: Cell<u64>,
    messages: Cell<u64>,
    dropped: Cell<u64>,
    failed: RefCell<BTreeMap<String, u64>>,
}

impl Seen {
    fn fail(&self, how: &str, fault: impl std::fmt::Display) {
        *self.failed.borrow_mut().entry(format!("{how}: {fault}")).or_default() += 1;
    }
}

fn add(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

pub(crate) async fn run(target: Target, options: Options) -> Result<(), Fault> {
    let (one, two) = (target.dialer("http/1.1", false)?, target.dialer("h2", false)?);
    let request = http1::head(&target.host, "GET", PATH, "");
    let request2 = http2::head(&target.host, PATH)?;
    let seen = Rc::new(Seen::default());
    let mut starter = Starter::new();
    let http1 = meter::many(options.http1, async |_| Ok(Http1::new(one.open().await?))).await?;
    let http2 = meter::many(options.http2, |_| http2::open(&two)).await?;
    let sockets = meter::many(options.sockets, |_| WebSocket::open(&one, &target.host)).await?;
    let pace = || {
        let mut pace = interval(Duration::from_millis(options.pace_ms));
        // After a stall no burst: the pace goes on from there.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    };
    let mut tasks = Vec::new();
    for http in http1 {
        tasks.push(spawn_local(over_http1(http, one.clone(), request.clone(), pace(), Rc::clone(&seen))));
    }
    for sender in http2 {
        tasks.push(spawn_local(over_http2(sender, two.clone(), request2.clone(), pace(), Rc::clone(&seen))));
    }
    for socket in sockets {
        tasks.push(spawn_local(over_socket(socket, pace(), Rc::clone(&seen))));
    }
    starter.tell("ready");
    starter.end().await?;
    seen.is_over.set(true);
    join_all(tasks).await;
    let failed = seen.failed.borrow();
    starter.tell(json!({
        "requests": seen.requests.get(), "failed": failed.values().sum::<u64>(), "faults": *failed,
        "retried": seen.retried.get(), "reopened": seen.reopened.get(),
        "sockets": options.sockets, "dropped": seen.dropped.get(), "messages": seen.messages.get(),
    }));
    Ok(())
}

async fn over_http1(first: Http1, dialer: Dialer, request: Vec<u8>, mut pace: Interval, seen: Rc<Seen>) {
    let mut open = Some(first);
    while !seen.is_over.get() {
        pace.tick().await;
        let mut usable = None;
        if let Some(mut http) = open.take()
            && !http.is_over().await
        {
            usable = Some(http);
        }
        let mut http = match usable {
            Some(http) => http,
            None => {
                add(&seen.reopened);
                match dialer.open().await {
                    Ok(stream) => Http1::new(stream),
                    Err(fault) => {
                        seen.fail("HTTP/1.1, connect", fault);
                        continue;
                    }
                }
            }
        };
        add(&seen.requests);
        match http.small(&request).await {
            Ok(false) => open = Some(http),
            Ok(true) => {}
            Err(fault) => seen.fail("HTTP/1.1", fault),
        }
    }
}

async fn over_http2(
    first: SendRequest<Bytes>,
    dialer: Dialer,
    request: Request<()>,
    mut pace: Interval,
    seen: Rc<Seen>,
) {
    let mut open = Some(first);
    while !seen.is_over.get() {
        pace.tick().await;
        let ready = match open.take() {
            Some(sender) => sender.ready().await.ok(),
            None => None,
        };
        let mut sender = match ready {
            Some(sender) => sender,
            None => {
                add(&seen.reopened);
                let opened = async { Ok::<_, Fault>(http2::open(&dialer).await?.ready().await?) };
                match opened.await {
                    Ok(sender) => sender,
                    Err(fault) => {
                        seen.fail("HTTP/2, connect", fault);
                        continue;
                    }
                }
            }
        };
        add(&seen.requests);
        match http2::ask_small(&mut sender, request.clone()).await {
            Ok(true) => open = Some(sender),
            Ok(false) => seen.fail("HTTP/2", "another answer"),
            Err(fault) if fault.is_go_away() && fault.reason() == Some(h2::Reason::NO_ERROR) => add(&seen.retried),
            Err(fault) if fault.reason() == Some(h2::Reason::REFUSED_STREAM) => add(&seen.retried),
            Err(fault) => seen.fail("HTTP/2", fault),
        }
    }
}

async fn over_socket(mut socket: WebSocket, mut pace: Interval, seen: Rc<Seen>) {
    let message = Message::new(128);
    while !seen.is_over.get() {
        pace.tick().await;
        if socket.echo(&message).await.is_err() {
            add(&seen.dropped);
            return;
        }
        add(&seen.messages);
    }
}
