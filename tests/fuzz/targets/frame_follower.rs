//! The frame follower: cuts change nothing, and hyper finds exactly the messages that were found.
//!
//! The first byte is the number of cuts, up to 7; so many bytes follow that say where; the rest is the stream.
#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use libfuzzer_sys::fuzz_target;
use tidegate::framing::{Fault, Follower, Limits};

fuzz_target!(|data: &[u8]| {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(count % 8)) else { return };
    let mut cuts: Vec<_> = cuts.iter().map(|&cut| usize::from(cut) * stream.len() / 255).collect();
    cuts.sort_unstable();
    let (passed, messages, fault) = follow(stream, &[]);
    assert_eq!((passed, messages, fault), follow(stream, &cuts), "cuts changed the verdict");
    let text = stream.to_ascii_lowercase();
    let may_close = [&b"connection"[..], b"http/1.0"].iter().any(|word| text.windows(word.len()).any(|w| w == *word));
    let seen = hyper_reads(&stream[..passed]);
    assert!(seen == messages || (may_close && seen < messages), "hyper saw {seen}, the follower {messages}");
});

/// Bytes that passed, messages that were complete, and the fault, when a stream comes in pieces.
fn follow(stream: &[u8], cuts: &[usize]) -> (usize, usize, Option<Fault>) {
    let mut follower = Follower::new(Limits::default());
    let (mut begin, mut messages) = (0, 0);
    let mut read = BytesMut::new();
    for end in cuts.iter().copied().chain([stream.len()]) {
        read.extend_from_slice(&stream[begin..end.max(begin)]);
        begin = end.max(begin);
        if let Err(fault) = follow_on(&mut follower, &mut read, &mut messages) {
            // What was not read yet did not pass either.
            return (begin - read.len(), messages, Some(fault));
        }
    }
    (begin - read.len(), messages, None)
}

/// Takes all messages that are there.
fn follow_on(follower: &mut Follower, read: &mut BytesMut, messages: &mut usize) -> Result<(), Fault> {
    loop {
        let took_head = follower.head(read)?.is_some();
        let took_body = follower.body(read)?.is_some();
        if follower.is_complete() {
            *messages += 1;
            follower.next_message();
        } else if !took_head && !took_body {
            return Ok(());
        }
    }
}

/// How many complete requests hyper's server finds in a stream.
fn hyper_reads(stream: &[u8]) -> usize {
    let seen = Rc::new(RefCell::new(0));
    let count = Rc::clone(&seen);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let count = Rc::clone(&count);
        async move {
            let mut response = Response::new(Empty::<Bytes>::new());
            if request.method() == Method::CONNECT {
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED; // a 200 would end the HTTP
            }
            if request.into_body().collect().await.is_ok() {
                *count.borrow_mut() += 1;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.header_read_timeout(None);
    let connection = builder.serve_connection(Script(stream.to_vec()), service);
    let mut connection = std::pin::pin!(connection);
    let mut cx = Context::from_waker(Waker::noop());
    // hyper yields after sixteen messages; a stream of this size has fewer than so many rounds.
    for _ in 0..64 {
        if connection.as_mut().poll(&mut cx).is_ready() {
            break;
        }
    }
    let seen = *seen.borrow();
    seen
}

/// A client that sent all this and waits.
struct Script(Vec<u8>);

impl Read for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let length = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0[..length]);
        self.0.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl Write for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
