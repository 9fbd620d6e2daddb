//! Conversations with a service of the test's own, over in-memory streams and with a paused clock.

use std::cell::{Cell, RefCell};

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::line::MAX_AHEAD;
use super::*;
use crate::body::Body as OwnBody;
use crate::connection::farewell::{LINGER, LINGER_BYTES};
use crate::framing::tests::corpus;

const HEAD: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// The answer to a bad head.
fn answer(fault: Fault) -> (Box<str>, Bytes) {
    let code = fault.code();
    let status = fault.status().as_u16();
    let bytes =
        format!("HTTP/1.1 {status} Refused\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{code}", code.len());
    ("r1".into(), bytes.into())
}

fn terms() -> Terms {
    Terms {
        limits: Limits::default(),
        head: HEAD,
        keep_alive: KEEP_ALIVE,
        first: Instant::now() + HEAD,
        answer,
        socket: SocketHandle::default(),
    }
}

/// What the service saw, and what it answers.
#[derive(Default)]
struct Upstream {
    /// Target, body and trailers of each complete request.
    seen: RefCell<Vec<(String, Bytes, usize)>>,
    response: Bytes,
}

impl Upstream {
    async fn serve(&self, talk: &Talk, request: Request<Option<Inbound>>) -> Response<OwnBody> {
        let target = request.uri().to_string();
        let collected = match request.into_body() {
            Some(body) => body.collect().await,
            None => http_body_util::Empty::new().map_err(|never| match never {}).collect().await,
        };
        let (status, body) = match collected {
            Ok(collected) => {
                let trailers = collected.trailers().map_or(0, HeaderMap::len);
                self.seen.borrow_mut().push((target, collected.to_bytes(), trailers));
                (StatusCode::OK, self.response.clone())
            }
            Err(error) => {
                let inner = std::error::Error::source(&error).and_then(|inner| inner.downcast_ref::<Fault>()).copied();
                assert_eq!(inner, talk.body_fault.get(), "the body's error tells the fault");
                (inner.map_or(StatusCode::BAD_REQUEST, Fault::status), Bytes::new())
            }
        };
        let mut response = Response::new(OwnBody::full(body));
        *response.status_mut() = status;
        response
    }

    fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

/// How a conversation ended: the fault of the client, if there was one.
type Ended = JoinHandle<Result<Option<Fault>, &'static str>>;

/// Serves one connection, and returns its other end.
fn start(upstream: &Rc<Upstream>, room: usize) -> (DuplexStream, Ended) {
    let upstream = Rc::clone(upstream);
    start_with(room, move |talk, request| {
        let upstream = Rc::clone(&upstream);
        Box::pin(async move { upstream.serve(&talk, request).await })
    })
}

type Work = Pin<Box<dyn Future<Output = Response<OwnBody>>>>;

fn start_with(
    room: usize,
    mut service: impl FnMut(Rc<Talk>, Request<Option<Inbound>>) -> Work + 'static,
) -> (DuplexStream, Ended) {
    let (client, server) = duplex(room);
    let task = spawn_local(async move {
        let talk = Rc::new(Talk::default());
        let (line, told) = (Line::new(server, terms(), Rc::clone(&talk)), Rc::clone(&talk));
        match converse(Rc::new(line), Drain::new(), move |request| service(Rc::clone(&told), request)).await {
            Over::Tunnel(stream, early) => {
                let tunnel = talk.tunnel.take().expect("the service opened one");
                assert!(tunnel.send(End { io: Box::new(stream), early }).is_ok());
                Ok(None)
            }
            Over::Gone(why) => Err(why),
            Over::Fault(fault, _) => Ok(Some(fault)),
        }
    });
    (client, task)
}

/// Runs a test on one thread whose clock stands still and jumps when all wait.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), test);
}

/// The statuses of the responses in what a client received, without 100.
fn statuses(received: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(received);
    let statuses = text.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().expect("a status"));
    statuses.filter(|&status| status != 100).collect()
}

/// Lets the other tasks run until all of them wait.
async fn settle_down() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn read_all(client: &mut DuplexStream) -> Vec<u8> {
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("a duplex stream");
    received
}

const CLOSED: &str = "it was closed after a response";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

#[test]
fn the_service_sees_what_the_corpus_says() {
    run(async {
        for case in corpus::cases() {
            for room in [1 << 20, 7] {
                if case.raw.len() > 20_000 && room == 7 {
                    continue; // the same machinery, slowly
                }
                let upstream = Rc::new(Upstream::default());
                let (client, task) = start(&upstream, room);
                let (mut reader, mut writer) = tokio::io::split(client);
                let raw = case.raw.clone();
                // Errors are fine: the edge may close before it has read all.
                let sender = spawn_local(async move {
                    let _ = writer.write_all(&raw).await;
                    writer
                });
                let mut received = Vec::new();
                let _ = reader.read_to_end(&mut received).await;
                let mut expected = vec![200; case.requests];
                expected.extend(case.refusal.map(|(status, _)| status));
                assert_eq!(statuses(&received), expected, "{} by {room}", case.name);
                assert_eq!(upstream.count(), case.requests, "{} by {room}", case.name);
                drop((reader, sender.await));
                let code = task.await.expect("no panic").map(|fault| fault.map(Fault::code));
                let expected = case.refusal.map_or("E408-idle", |(_, code)| code);
                // A fault in a body is the service's to answer.
                assert!(code == Ok(Some(expected)) || code == Err(CLOSED), "{}: {code:?}", case.name);
            }
        }
    });
}

#[test]
fn a_head_larger_than_the_buffer_is_handed_on_in_pieces() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let (mut client, _task) = start(&upstream, 1 << 16);
        let head =
            format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-A: {}\r\nConnection: close\r\n\r\n", "a".repeat(30_000));
        client.write_all(head.as_bytes()).await.expect("room");
        assert_eq!(statuses(&read_all(&mut client).await), [200]);
    });
}

#[test]
fn bodies_pass_whole_and_keep_the_connection() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let (client, _task) = start(&upstream, 10_007);
        let (mut reader, mut writer) = tokio::io::split(client);
        let body: Vec<u8> = (0..8_u32 << 20).map(|i| (i % 251) as u8).collect();
        let mut raw =
            format!("POST /length HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        raw.extend_from_slice(&body);
        raw.extend_from_slice(b"POST /chunks HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        for (index, chunk) in body.chunks(65_537).enumerate() {
            raw.extend_from_slice(format!("{:x};n={index}\r\n", chunk.len()).as_bytes());
            raw.extend_from_slice(chunk);
            raw.extend_from_slice(b"\r\n");
        }
        raw.extend_from_slice(
            b"0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\nGET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        );
        let sender = spawn_local(async move { writer.write_all(&raw).await.map(|()| writer) });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.expect("responses");
        assert_eq!(statuses(&received), [200, 200, 200]);
        let seen = upstream.seen.take();
        let short: Vec<_> = seen.iter().map(|(target, _, trailers)| (&target[..], *trailers)).collect();
        assert_eq!(short, [("/length", 0), ("/chunks", 2), ("/last", 0)]);
        assert!(seen[0].1 == body && seen[1].1 == body, "a body was changed");
        sender.await.expect("no panic").expect("all was sent");
    });
}

#[test]
fn expect_is_answered_when_the_body_is_read() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let (mut client, _task) = start(&upstream, 1 << 16);
        let head = b"POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
        client.write_all(head).await.expect("room");
        let mut interim = [0; 25];
        client.read_exact(&mut interim).await.expect("an interim response");
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"hello").await.expect("room");
        assert_eq!(statuses(&read_all(&mut client).await), [200]);
        assert_eq!(upstream.seen.borrow()[0].1, "hello");
    });
}

/// Serves a connection whose service never answers, and tells when its future is dropped.
fn start_stuck() -> (DuplexStream, Rc<Cell<u32>>, Ended) {
    struct Count(Rc<Cell<u32>>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 100);
        }
    }
    let calls = Rc::new(Cell::new(0));
    let shared = Rc::clone(&calls);
    let (client, task) = start_with(1 << 20, move |_, request| {
        shared.set(shared.get() + 1);
        let count = Count(Rc::clone(&shared));
        Box::pin(async move {
            let _held = (count, request);
            std::future::pending().await
        })
    });
    (client, calls, task)
}

#[test]
fn a_client_that_leaves_ends_the_work_for_it() {
    run(async {
        // Alone, with a good request sent ahead, and with garbage sent ahead.
        for ahead in [&b""[..], GET, b"\x00garbage"] {
            let (mut client, calls, task) = start_stuck();
            client.write_all(&[GET, ahead].concat()).await.expect("room");
            settle_down().await;
            assert_eq!(calls.get(), 1, "one request is in work, and the garbage waits");
            drop(client);
            let started = Instant::now();
            assert!(task.await.expect("no panic").is_err());
            assert_eq!((calls.get(), started.elapsed()), (101, Duration::ZERO));
        }
    });
}

#[test]
fn what_is_sent_ahead_is_bounded() {
    run(async {
        let (client, calls, _task) = start_stuck();
        let (_reader, mut writer) = tokio::io::split(client);
        let flood = spawn_local(async move {
            let mut sent = GET.len();
            writer.write_all(GET).await.expect("room");
            // The stream itself takes 1 MiB, we 64 KiB and one read.
            while tokio::time::timeout(HEAD, writer.write_all(&[b'a'; 1024])).await.is_ok() {
                sent += 1024;
            }
            sent
        });
        let sent = flood.await.expect("no panic");
        assert!(sent > (1 << 20) + MAX_AHEAD && sent < (1 << 20) + MAX_AHEAD + (512 << 10), "{sent}");
        assert_eq!(calls.get(), 1);
    });
}

#[test]
fn a_fault_behind_a_response_does_not_cut_it() {
    run(async {
        let upstream = Rc::new(Upstream { response: vec![b'x'; 1 << 20].into(), ..Upstream::default() });
        for (behind, last) in [(&b"\x00"[..], Some(400)), (b"GET / HTTP/1.1\r\n\r\n", Some(400)), (b"", None)] {
            // 1 KiB of room: the response waits for the reader, long after the service is done.
            let (client, _task) = start(&upstream, 1024);
            let (mut reader, mut writer) = tokio::io::split(client);
            writer.write_all(&[GET, behind].concat()).await.expect("room");
            if last.is_none() {
                settle_down().await;
                writer.shutdown().await.expect("a duplex stream"); // the end of the stream counts as such a fault
            }
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await.expect("responses");
            let expected: Vec<_> = [200].into_iter().chain(last).collect();
            assert_eq!(statuses(&received), expected, "{behind:?}");
            assert!(received.iter().filter(|&&b| b == b'x').count() >= 1 << 20, "{behind:?}: the response was cut");
        }
    });
}

#[test]
fn a_head_that_trickles_ends_at_its_deadline() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        for rounds in [0, 1, 2] {
            let (client, task) = start(&upstream, 1 << 16);
            let (mut reader, mut writer) = tokio::io::split(client);
            for _ in 0..rounds {
                writer.write_all(GET).await.expect("room");
                tokio::time::sleep(Duration::from_secs(50)).await; // longer than a head may take
            }
            let begun = Instant::now();
            let trickle = spawn_local(async move {
                let slow = b"GET / HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a'));
                for byte in slow {
                    if writer.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await.expect("an answer");
            let mut expected = vec![200; rounds];
            expected.push(408);
            assert_eq!(statuses(&received), expected);
            assert_eq!(begun.elapsed(), HEAD);
            drop(reader);
            trickle.abort();
            assert_eq!(task.await.expect("no panic"), Ok(Some(Fault::HeadTimeout)));
        }
    });
}

#[test]
fn an_idle_connection_is_closed_in_silence() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let begun = Instant::now();
        let (mut client, task) = start(&upstream, 1 << 16);
        assert_eq!(read_all(&mut client).await, b"");
        assert_eq!(begun.elapsed(), HEAD);
        assert_eq!(task.await.expect("no panic"), Ok(Some(Fault::Silent)));

        let (mut client, task) = start(&upstream, 1 << 16);
        for pause in [1, 74, 74, 29] {
            client.write_all(GET).await.expect("room");
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        client.write_all(GET).await.expect("room");
        settle_down().await;
        let begun = Instant::now();
        assert_eq!(statuses(&read_all(&mut client).await), [200; 5]);
        assert_eq!(begun.elapsed() + Duration::from_millis(1), KEEP_ALIVE);
        assert_eq!(task.await.expect("no panic"), Ok(Some(Fault::Idle)));
    });
}

#[test]
fn a_head_cut_off_is_answered() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let (mut client, task) = start(&upstream, 1 << 16);
        client.write_all(&GET[..20]).await.expect("room");
        client.shutdown().await.expect("a duplex stream");
        assert_eq!(statuses(&read_all(&mut client).await), [400]);
        assert_eq!(task.await.expect("no panic"), Ok(Some(Fault::Incomplete)));

        let (mut client, task) = start(&upstream, 1 << 16);
        client.write_all(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\ncut").await.expect("room");
        client.shutdown().await.expect("a duplex stream");
        assert_eq!(statuses(&read_all(&mut client).await), [400], "the service answers a body cut off");
        assert_eq!((task.await.expect("no panic"), upstream.count()), (Err(CLOSED), 0));
    });
}

#[test]
fn after_a_refusal_the_rest_is_read_for_a_while() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let (client, task) = start(&upstream, 4096);
        let (mut reader, mut writer) = tokio::io::split(client);
        writer.write_all(b"get / HTTP/1.1\r\n").await.expect("room");
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.expect("an answer");
        assert_eq!(statuses(&received), [400]);
        let begun = Instant::now();
        writer.write_all(&[b'a'; 100_000]).await.expect("it is read and discarded");
        assert_eq!(task.await.expect("no panic"), Ok(Some(Fault::Method)));
        assert_eq!(begun.elapsed(), LINGER);
        assert!(writer.write_all(b"a").await.is_err(), "then it is closed");

        // A client that closes is not waited for, and a flood is cut off.
        for flood in [0, LINGER_BYTES + 8192] {
            let (client, task) = start(&upstream, 4096);
            let (mut reader, mut writer) = tokio::io::split(client);
            writer.write_all(b"get / HTTP/1.1\r\n").await.expect("room");
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await.expect("an answer");
            let begun = Instant::now();
            let is_cut = writer.write_all(&vec![b'a'; flood]).await.is_err();
            drop((reader, writer));
            task.await.expect("no panic").expect("a peaceful end");
            assert_eq!((begun.elapsed(), is_cut), (Duration::ZERO, flood > 0));
        }
    });
}

#[test]
fn a_client_that_does_not_read_cannot_delay_the_close() {
    run(async {
        let upstream = Rc::new(Upstream::default());
        let (mut client, task) = start(&upstream, 16); // less than the answer
        client.write_all(b"get / HTTP/1.1\r\n").await.expect("room");
        let begun = Instant::now();
        task.await.expect("no panic").expect("a peaceful end");
        assert_eq!(begun.elapsed(), LINGER);
        drop(client);
    });
}

#[test]
fn a_body_may_end_after_its_response() {
    run(async {
        let (mut client, _task) = start_with(1 << 16, |_, request| {
            spawn_local(request.into_body().expect("a body").collect());
            Box::pin(async { Response::new(OwnBody::full("early")) })
        });
        for _ in 0..2 {
            let head = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n";
            client.write_all(head).await.expect("room");
            let mut received = Vec::new();
            while !received.ends_with(b"early") {
                assert!(client.read_buf(&mut received).await.expect("a response") > 0);
            }
            assert_eq!(statuses(&received), [200]);
            client.write_all(b"body").await.expect("room");
        }
    });
}

#[test]
fn a_body_that_nobody_reads_ends_the_connection_unless_it_is_here() {
    run(async {
        for (sent, answers) in [("body", 2), ("bo", 1)] {
            let (mut client, _task) = start_with(1 << 16, |_, _| Box::pin(async { Response::new(OwnBody::Empty) }));
            let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n";
            client.write_all(format!("{head}{sent}").as_bytes()).await.expect("room");
            settle_down().await;
            // Behind a whole body it is a request; behind a part it is thrown away with the rest.
            client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.expect("room");
            assert_eq!(statuses(&read_all(&mut client).await).len(), answers, "{sent:?}");
        }
    });
}

/// Serves a connection whose service upgrades `/yes` and refuses all else.
fn start_upgrading() -> (DuplexStream, JoinHandle<End<Box<dyn Duplex>>>) {
    let (sender, receiver) = oneshot::channel();
    let mut sender = Some(sender);
    let (client, _task) = start_with(1 << 16, move |talk, request| {
        let is_yes = request.uri().path() == "/yes";
        let sender = sender.take().filter(|_| is_yes);
        Box::pin(async move {
            settle_down().await; // the upstream takes its time; early bytes arrive meanwhile
            let mut response = Response::new(OwnBody::Empty);
            if let Some(sender) = sender {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                talk.tunnel.set(Some(sender));
            }
            response
        })
    });
    let tunnel = spawn_local(async move { receiver.await.expect("an upgrade") });
    (client, tunnel)
}

const UPGRADE: &[u8] = b"GET /yes HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn early_bytes_of_a_tunnel_are_kept() {
    run(async {
        for early in [&b""[..], b"\x81\x85early", GET] {
            let (mut client, tunnel) = start_upgrading();
            client.write_all(&[UPGRADE, early].concat()).await.expect("room");
            let End { io: mut stream, early: kept } = tunnel.await.expect("no panic");
            assert_eq!(kept, early);
            client.write_all(b"more").await.expect("room");
            stream.write_all(b"back").await.expect("room");
            drop(stream.shutdown().await);
            let mut more = [0; 4];
            stream.read_exact(&mut more).await.expect("the rest");
            assert_eq!(&more, b"more");
            let received = read_all(&mut client).await;
            assert_eq!(statuses(&received), [101]);
            assert!(received.ends_with(b"back"));
        }
    });
}

#[test]
fn a_refused_upgrade_stays_http() {
    run(async {
        let no = String::from_utf8_lossy(UPGRADE).replace("/yes", "/no");
        let next = b"GET /no HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        for (early, expected) in [(&next[..], [200, 200]), (b"\x81\x85early", [200, 400])] {
            let (mut client, _tunnel) = start_upgrading();
            client.write_all(&[no.as_bytes(), early].concat()).await.expect("room");
            assert_eq!(statuses(&read_all(&mut client).await), expected);
        }
    });
}

/// Who still holds a body that has ended has no hold on the message after it.
#[test]
fn a_body_that_was_read_does_not_touch_the_next_one() {
    run(async {
        let first: Rc<RefCell<Option<Inbound>>> = Rc::default();
        let second: Rc<RefCell<Option<Inbound>>> = Rc::default();
        let (kept, asked) = (Rc::clone(&first), Rc::clone(&second));
        let (mut client, _task) = start_with(1 << 16, move |_, request| {
            let (kept, asked) = (Rc::clone(&kept), Rc::clone(&asked));
            Box::pin(async move {
                let is_first = request.uri().path() == "/1";
                let mut body = request.into_body().expect("a body");
                if is_first {
                    while poll_fn(|cx| body.as_mut().poll_frame(cx)).await.is_some() {}
                    *kept.borrow_mut() = Some(body);
                } else {
                    // Answered early; the body is read on beside the response.
                    drop(kept.borrow_mut().take());
                    *asked.borrow_mut() = Some(body);
                }
                Response::new(OwnBody::Empty)
            })
        });
        client.write_all(b"POST /1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc").await.expect("room");
        settle_down().await;
        let next = b"POST /2 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n";
        client.write_all(next).await.expect("room");
        settle_down().await;
        client.write_all(b"0\r\n\r\nGET /3 HTTP/1.1\r\n\r\n").await.expect("room");
        let body = second.borrow_mut().take().expect("the second request");
        assert_eq!(body.collect().await.expect("a sound body").to_bytes(), "more");
        assert_eq!(statuses(&read_all(&mut client).await), [200, 200, 400]);
    });
}

/// A body that has ended does not keep the stream from becoming a tunnel.
#[test]
fn a_body_that_was_read_does_not_keep_the_stream() {
    run(async {
        let kept: Rc<RefCell<Option<Inbound>>> = Rc::default();
        let held = Rc::clone(&kept);
        let (sender, receiver) = oneshot::channel();
        let mut sender = Some(sender);
        let (mut client, task) = start_with(1 << 16, move |talk, request| {
            let (held, sender) = (Rc::clone(&held), sender.take_if(|_| request.uri().path() == "/yes"));
            Box::pin(async move {
                let mut response = Response::new(OwnBody::Empty);
                if let Some(mut body) = request.into_body() {
                    while poll_fn(|cx| body.as_mut().poll_frame(cx)).await.is_some() {}
                    *held.borrow_mut() = Some(body);
                } else {
                    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    talk.tunnel.set(sender);
                }
                response
            })
        });
        client.write_all(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc").await.expect("room");
        client.write_all(UPGRADE).await.expect("room");
        assert_eq!(task.await.expect("no panic"), Ok(None));
        assert!(receiver.await.is_ok() && kept.borrow().is_some());
    });
}
