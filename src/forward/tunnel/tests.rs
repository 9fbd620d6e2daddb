//! Tests of the tunnel with in-memory streams under a paused clock, and with sockets on loopback.

use super::*;

use std::io;
use std::pin::Pin;

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufStream, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The outcome of a tunnel under test, its client, its upstream and its drain.
struct Joined {
    task: JoinHandle<Outcome>,
    client: DuplexStream,
    upstream: DuplexStream,
    drain: Drain,
}

const HOUR: Duration = Duration::from_secs(3600);

/// Small pipes, so that a frame of any size has to wait somewhere.
const PIPE: usize = 4096;

fn end<S>(io: S) -> End<S> {
    End { io, early: Bytes::new() }
}

fn joined(idle: Duration) -> Joined {
    let (client, downstream) = duplex(PIPE);
    let (upstream, server) = duplex(PIPE);
    let drain = Drain::new();
    let task = tokio::spawn({
        let drain = drain.clone();
        async move { join(end(downstream), end(server), idle, &drain, |_, _| ()).await }
    });
    Joined { task, client, upstream, drain }
}

/// A frame without a mask whose payload is `size` bytes that differ along the way.
fn server_frame(size: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 127];
    frame.extend_from_slice(&(size as u64).to_be_bytes());
    frame.extend((0..size).map(|at| (at % 251) as u8));
    frame
}

/// The same with a mask of zeros.
fn client_frame(size: usize) -> Vec<u8> {
    let mut frame = server_frame(size);
    frame[1] |= 0x80;
    frame.splice(10..10, [0; 4]);
    frame
}

const RESTART: &[u8] = b"\x88\x11\x03\xf4service restart";
const CLIENT_ECHO: &[u8] = b"\x88\x82\0\0\0\0\x03\xe9";
const PING: &[u8] = b"\x89\x00";
const CLIENT_PING: &[u8] = b"\x89\x80\0\0\0\0";

async fn read(stream: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.expect("that many bytes come");
    bytes
}

async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("a clean end");
    bytes
}

#[tokio::test]
async fn early_bytes_of_both_sides_go_first() {
    let (mut client, downstream) = duplex(PIPE);
    let (mut upstream, server) = duplex(PIPE);
    client.write_all(b" behind").await.expect("room");
    upstream.write_all(b" behind").await.expect("room");
    let downstream = End { io: downstream, early: Bytes::from_static(CLIENT_PING) };
    let server = End { io: server, early: Bytes::from_static(PING) };
    let task = tokio::spawn(async move { join(downstream, server, HOUR, &Drain::new(), |_, _| ()).await });
    assert_eq!(read(&mut upstream, 13).await, [CLIENT_PING, b" behind"].concat());
    assert_eq!(read(&mut client, 9).await, [PING, b" behind"].concat());
    drop((client, upstream));
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.bytes_in, outcome.bytes_out, outcome.frames_in, outcome.frames_out), (13, 9, 1, 1));
}

#[tokio::test]
async fn one_direction_goes_on_after_the_other_has_ended() {
    let Joined { task, mut client, mut upstream, .. } = joined(HOUR);
    client.write_all(CLIENT_PING).await.expect("room");
    client.shutdown().await.expect("half closed");
    assert_eq!(read_to_end(&mut upstream).await, CLIENT_PING);
    assert!(!task.is_finished());
    upstream.write_all(PING).await.expect("the other direction is open");
    upstream.shutdown().await.expect("closed");
    assert_eq!(read_to_end(&mut client).await, PING);
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.ended_by, outcome.how.to_string()), (Side::Client, "fin".into()));
}

#[tokio::test]
async fn the_largest_frames_pass_both_ways_at_once_byte_for_byte() {
    const SIZE: usize = 25 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let pair = async || {
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connected"), far.expect("accepted").0)
    };
    let ((client, downstream), (server, upstream)) = (pair().await, pair().await);
    let task = tokio::spawn(async move { join(end(downstream), end(server), HOUR, &Drain::new(), |_, _| ()).await });
    // Each side writes all and reads all at once; a reader of 1 KiB a time is slower than its writer.
    let exchange = |stream: TcpStream, sent: Vec<u8>, expected: Vec<u8>| async move {
        let (mut reader, mut writer) = stream.into_split();
        let writing = async move {
            writer.write_all(&sent).await.expect("taken");
            writer.shutdown().await.expect("half closed");
        };
        let reading = async move {
            let (mut seen, mut piece) = (Vec::with_capacity(expected.len()), [0; 1024]);
            loop {
                match reader.read(&mut piece).await.expect("more") {
                    0 => break seen == expected,
                    count => seen.extend_from_slice(&piece[..count]),
                }
            }
        };
        tokio::join!(writing, reading).1
    };
    let (from_client, from_upstream) = (client_frame(SIZE), server_frame(SIZE));
    let (at_client, at_upstream) = tokio::join!(
        exchange(client, from_client.clone(), from_upstream.clone()),
        exchange(upstream, from_upstream, from_client)
    );
    assert!(at_client && at_upstream, "not what was sent");
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.frames_in, outcome.frames_out), (1, 1));
    assert_eq!((outcome.bytes_in, outcome.bytes_out), (SIZE as u64 + 14, SIZE as u64 + 10));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stops_the_upstream_and_only_it() {
    let Joined { task, mut client, mut upstream, .. } = joined(HOUR);
    let frame = server_frame(1 << 20);
    let mut taken = 0;
    // The clock only moves when nothing else can: then the upstream is stopped.
    while let Ok(count) = timeout(FAREWELL, upstream.write(&frame[taken..])).await {
        taken += count.expect("open");
    }
    assert!(taken <= 2 * PIPE + crate::scratch::SIZE, "{taken} bytes were taken for a client that reads none");
    client.write_all(CLIENT_PING).await.expect("room");
    assert_eq!(read(&mut upstream, CLIENT_PING.len()).await, CLIENT_PING, "the other direction goes on");
    // It reads again: nothing was lost, nothing is kept.
    let (seen, ()) = tokio::join!(read(&mut client, frame.len()), async {
        upstream.write_all(&frame[taken..]).await.expect("taken");
    });
    assert!(seen == frame);
    drop((client, upstream));
    assert_eq!(task.await.expect("no panic").frames_out, 1);
}

#[tokio::test]
async fn the_first_close_frame_and_its_sender_are_recorded() {
    let Joined { task, mut client, mut upstream, .. } = joined(HOUR);
    upstream.write_all(&[PING, RESTART].concat()).await.expect("room");
    assert_eq!(read(&mut client, 21).await, [PING, RESTART].concat());
    client.write_all(CLIENT_ECHO).await.expect("room");
    assert_eq!(read(&mut upstream, 8).await, CLIENT_ECHO);
    drop((client, upstream));
    let outcome = task.await.expect("no panic");
    assert_eq!(outcome.ended_by, Side::Upstream);
    assert_eq!(outcome.how.to_string(), "close 1012 \"service restart\"");
    assert_eq!((outcome.frames_in, outcome.frames_out), (1, 2));

    let Joined { task, mut client, mut upstream, .. } = joined(HOUR);
    client.write_all(b"\x88\x80\x01\x02\x03\x04").await.expect("room");
    client.shutdown().await.expect("half closed");
    assert_eq!(read_to_end(&mut upstream).await.len(), 6);
    drop(upstream);
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.ended_by, outcome.how.to_string()), (Side::Client, "close 1005".into()));
}

#[tokio::test(start_paused = true)]
async fn only_silence_in_both_directions_ends_a_tunnel() {
    let begin = Instant::now();
    let Joined { task, mut client, mut upstream, .. } = joined(Duration::from_secs(60));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(45)).await;
        client.write_all(CLIENT_PING).await.expect("open");
        read(&mut upstream, CLIENT_PING.len()).await;
        tokio::time::sleep(Duration::from_secs(45)).await;
        upstream.write_all(PING).await.expect("open");
        read(&mut client, PING.len()).await;
    }
    assert_eq!(read_to_end(&mut client).await, b"", "nothing is injected");
    assert_eq!(read_to_end(&mut upstream).await, b"");
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.ended_by, outcome.how.to_string()), (Side::Edge, "idle".into()));
    assert_eq!(begin.elapsed().as_secs(), 270 + 60);
    assert_eq!((outcome.idle.as_secs(), outcome.lasted.as_secs()), (60, 330));
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_1001_and_lets_the_client_answer() {
    let Joined { task, mut client, mut upstream, drain } = joined(HOUR);
    upstream.write_all(PING).await.expect("room");
    assert_eq!(read(&mut client, 2).await, PING);
    drain.advance(Phase::Draining);
    client.write_all(CLIENT_PING).await.expect("room");
    assert_eq!(read(&mut upstream, 6).await, CLIENT_PING, "draining alone does not touch a tunnel");
    let begin = Instant::now();
    drain.advance(Phase::CutTunnels);
    assert_eq!(read(&mut client, GOING_AWAY.len()).await, GOING_AWAY);
    upstream.write_all(PING).await.expect("still read"); // too late for the client
    client.write_all(&[CLIENT_PING, CLIENT_ECHO].concat()).await.expect("still read");
    assert_eq!(read_to_end(&mut upstream).await, [CLIENT_PING, CLIENT_ECHO].concat());
    assert_eq!(read_to_end(&mut client).await, b"");
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.ended_by, outcome.how.to_string()), (Side::Edge, "drain".into()));
    assert_eq!(begin.elapsed(), Duration::ZERO, "nobody was waited for in vain");
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_the_frame_in_flight_and_sends_no_other() {
    let Joined { task, mut client, mut upstream, drain } = joined(HOUR);
    let (first, second) = (server_frame(100_000), server_frame(90_000));
    upstream.write_all(&first[..1000]).await.expect("room");
    assert_eq!(read(&mut client, 1000).await, first[..1000]);
    drain.advance(Phase::CutTunnels);
    let ((), seen) = tokio::join!(
        async {
            upstream.write_all(&first[1000..]).await.expect("taken");
            upstream.write_all(&second).await.expect("taken, and dropped");
        },
        read_to_end(&mut client)
    );
    assert!(seen == [&first[1000..], GOING_AWAY].concat());
    assert_eq!(task.await.expect("no panic").how, How::Drain);
}

#[tokio::test(start_paused = true)]
async fn a_drain_speaks_for_a_client_that_does_not_answer() {
    let Joined { task, mut client, mut upstream, drain } = joined(HOUR);
    client.write_all(CLIENT_PING).await.expect("room");
    read(&mut upstream, 6).await;
    let begin = Instant::now();
    drain.advance(Phase::CutTunnels);
    let mut follower = frames::Follower::new(Sender::Client);
    follower.follow(&read_to_end(&mut upstream).await);
    assert_eq!(follower.close().map(ToString::to_string).as_deref(), Some("close 1001 \"going away\""));
    assert_eq!(read_to_end(&mut client).await, GOING_AWAY);
    assert_eq!(task.await.expect("no panic").how, How::Drain);
    assert_eq!(begin.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_never_writes_inside_a_frame_or_into_what_is_no_frame() {
    let cut_frame = server_frame(500)[..100].to_vec();
    for (sent, seconds) in [(&cut_frame[..], 1), (b"no frames at all", 0)] {
        let Joined { task, mut client, mut upstream, drain } = joined(HOUR);
        upstream.write_all(sent).await.expect("room");
        assert_eq!(read(&mut client, sent.len()).await, sent);
        client.write_all(b"\x82\xff").await.expect("room"); // a header that is never finished
        assert_eq!(read(&mut upstream, 2).await, b"\x82\xff");
        let begin = Instant::now();
        drain.advance(Phase::CutTunnels);
        assert_eq!(read_to_end(&mut client).await, b"");
        assert_eq!(read_to_end(&mut upstream).await, b"");
        assert_eq!(task.await.expect("no panic").how, How::Drain);
        assert_eq!(begin.elapsed().as_secs(), seconds + 1); // the upstream's frame, the client's frame
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_client_that_takes_nothing() {
    let Joined { task, client, mut upstream, drain } = joined(HOUR);
    let frame = server_frame(1 << 20);
    while timeout(FAREWELL, upstream.write(&frame)).await.is_ok() {}
    let begin = Instant::now();
    drain.advance(Phase::CutTunnels);
    assert_eq!(task.await.expect("no panic").how, How::Drain);
    assert!(begin.elapsed() <= 4 * FAREWELL);
    drop(client);
}

#[tokio::test]
async fn what_a_layer_below_holds_back_is_flushed() {
    let (mut client, downstream) = duplex(PIPE);
    let (mut upstream, server) = duplex(PIPE);
    // As a TLS session may: a write is done, and nothing is sent.
    let (downstream, server) = (BufStream::new(downstream), BufStream::new(server));
    let task = tokio::spawn(async move { join(end(downstream), end(server), HOUR, &Drain::new(), |_, _| ()).await });
    upstream.write_all(PING).await.expect("room");
    assert_eq!(read(&mut client, 2).await, PING);
    client.write_all(CLIENT_PING).await.expect("room");
    assert_eq!(read(&mut upstream, 6).await, CLIENT_PING);
    drop((client, upstream));
    assert_eq!(task.await.expect("no panic").how, How::Fin);
}

/// Reads are endless, or end with an error; writes vanish.
struct Source(Option<io::ErrorKind>, usize);

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.1 == 0 {
            return Poll::Ready(self.0.map_or(Ok(()), |kind| Err(kind.into())));
        }
        let count = buffer.remaining().min(self.1);
        buffer.initialize_unfilled_to(count);
        buffer.advance(count);
        self.1 -= count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Source {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_tunnel_that_never_waits_gives_way_to_others() {
    let drain = Drain::new();
    let mut busy = Box::pin(join(end(Source(None, 100 << 20)), end(Source(None, 0)), HOUR, &drain, |_, _| ()));
    assert_eq!((&mut busy).now_or_never(), None, "one poll moved 100 MiB");
    assert_eq!(busy.await.bytes_in, 100 << 20, "and it comes back by itself");
}

#[tokio::test]
async fn an_end_without_close_notify_is_a_fin_and_any_other_error_a_reset() {
    for (kind, how) in [
        (io::ErrorKind::UnexpectedEof, "fin"),
        (io::ErrorKind::ConnectionReset, "reset"),
        (io::ErrorKind::TimedOut, "reset"),
        (io::ErrorKind::InvalidData, "reset"),
    ] {
        let (mut client, downstream) = duplex(PIPE);
        let task = tokio::spawn(async move {
            join(end(downstream), end(Source(Some(kind), 10)), HOUR, &Drain::new(), |_, _| ()).await
        });
        assert_eq!(read_to_end(&mut client).await.len(), 10, "what came before passes");
        drop(client);
        let outcome = task.await.expect("no panic");
        assert_eq!((outcome.ended_by, outcome.how.to_string().as_str()), (Side::Upstream, how), "{kind:?}");
    }
}

#[tokio::test]
async fn a_reset_ends_both_sides_and_a_close_frame_before_it_arrives() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    for (by, last_words, how) in [
        (Side::Client, &CLIENT_PING[..1], "reset"),
        (Side::Upstream, &PING[..1], "reset"),
        (Side::Upstream, RESTART, "close 1012 \"service restart\""),
    ] {
        let (breaking, broken) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut breaking, broken) = (breaking.expect("connected"), broken.expect("accepted").0);
        let (mut other, inner) = duplex(PIPE);
        let task = tokio::spawn(async move {
            let drain = Drain::new();
            match by {
                Side::Client => join(end(broken), end(inner), HOUR, &drain, |_, _| ()).await,
                Side::Upstream | Side::Edge => join(end(inner), end(broken), HOUR, &drain, |_, _| ()).await,
            }
        });
        breaking.write_all(last_words).await.expect("sent");
        assert_eq!(read(&mut other, last_words.len()).await, last_words);
        breaking.set_zero_linger().expect("a socket option");
        drop(breaking);
        assert_eq!(read_to_end(&mut other).await, b"", "the other side ends too");
        drop(other);
        let outcome = task.await.expect("no panic");
        assert_eq!((outcome.ended_by, outcome.how.to_string().as_str()), (by, how));
    }
}

#[tokio::test]
async fn a_close_frame_is_found_behind_a_failed_write() {
    let (mut client, downstream) = duplex(PIPE);
    let (mut upstream, server) = duplex(PIPE);
    // The upstream refuses and goes at once, while the client is still talking to it.
    upstream.write_all(RESTART).await.expect("room");
    drop(upstream);
    client.write_all(CLIENT_PING).await.expect("room");
    let task = tokio::spawn(async move { join(end(downstream), end(server), HOUR, &Drain::new(), |_, _| ()).await });
    assert_eq!(read_to_end(&mut client).await, RESTART);
    drop(client);
    let outcome = task.await.expect("no panic");
    assert_eq!((outcome.ended_by, outcome.how.to_string()), (Side::Upstream, "close 1012 \"service restart\"".into()));
}

#[tokio::test]
async fn a_tunnel_is_small() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let drain = Drain::new();
    let future = join(end(near.expect("connected")), end(far.expect("accepted").0), HOUR, &drain, |_, _| ());
    let size = size_of_val(&future) - 2 * size_of::<TcpStream>();
    // Two directions, a timer, a place in the drain's list: each idle tunnel pays it.
    assert!(size <= 800, "{size} bytes beside the streams");
}
