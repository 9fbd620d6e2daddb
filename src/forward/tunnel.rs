//! The tunnel: two byte streams joined after a verified upgrade (RFC 6455 over HTTP/1.1, RFC 8441).
//!
//! Bytes pass as they are, whatever their size; nothing is injected but the close frame of a drain.
//! An idle tunnel holds no buffer: a worker's tunnels read into one scratch buffer, and only what
//! the other side does not take at once is kept. `frames` looks on for the record and the drain.

pub mod frames;
mod lane;

use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use crate::drain::{Drain, Phase};

use frames::{Close, GOING_AWAY, Sender, masked_going_away};
use lane::{Fault, Flow, Lane, poll_discard};

/// One side of a tunnel.
pub struct End<S> {
    /// Its stream.
    pub io: S,
    /// What was read from it before the tunnel began; it is passed on first.
    pub early: Bytes,
}

/// A byte stream in both directions, whatever carries it.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

/// What a tunnel was, for its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes that came from the client.
    pub bytes_in: u64,
    /// Bytes that came from the upstream.
    pub bytes_out: u64,
    /// Whole WebSocket frames that came from the client, as far as they could be followed.
    pub frames_in: u64,
    /// Whole WebSocket frames that came from the upstream, as far as they could be followed.
    pub frames_out: u64,
    /// Who ended it first.
    pub ended_by: Side,
    /// How that one did.
    pub how: How,
    /// From the beginning to the end.
    pub lasted: Duration,
    /// From the last byte of either side to the end.
    pub idle: Duration,
}

/// Who ended a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The endpoint.
    Upstream,
    /// We.
    Edge,
}

/// How a tunnel ended. Its `Display` is the text of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// With a close frame; the first one counts.
    Close(Close),
    /// The stream ended without a close frame.
    Fin,
    /// The connection broke.
    Reset,
    /// Both sides were silent for too long.
    Idle,
    /// The edge stops.
    Drain,
}

/// Joins two streams until both directions have ended, one of them breaks, both are silent for
/// `idle`, or the drain cuts the tunnels. Both streams are closed when it resolves. `watch` hears how many
/// bytes have come from the client and from the upstream, whenever that has changed.
///
/// It wants a task of its own, so that nothing of the connection which it came from stays in
/// memory. Dropping it closes both streams at once.
pub fn join<D, U>(
    downstream: End<D>,
    upstream: End<U>,
    idle: Duration,
    drain: &Drain,
    watch: impl Fn(u64, u64),
) -> impl Future<Output = Outcome>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    // Built outside the async block: an async function keeps its arguments beside what it moves
    // them into, which would double the streams in every tunnel's memory.
    let mut tunnel = Tunnel::new(downstream, upstream);
    async move {
        match tunnel.relay(idle, drain, watch).await {
            Stop::Ended => {}
            Stop::Broken(side) => tunnel.finish_after_break(side).await,
            Stop::Idle => {
                tunnel.note(Side::Edge, How::Idle);
                tunnel.shut_down().await;
            }
            Stop::Drain => {
                tunnel.note(Side::Edge, How::Drain);
                let goodbye = async {
                    tunnel.say_goodbye().await;
                    tunnel.shut_down().await;
                };
                // A stop at once waits for nobody, but the record is still written.
                tokio::select! {
                    () = goodbye => {}
                    () = drain.reached(Phase::Stopped) => {}
                }
            }
        }
        tunnel.outcome()
    }
}

/// Longest wait for each of the last steps: the frame in flight, the answer to a close frame, the
/// end of a side whose other side broke. 1 s, our choice: a live peer needs a round trip, and a
/// stop must not hang on dead ones.
const FAREWELL: Duration = Duration::from_secs(1);

/// Longest silence of one side after the other has ended. 5 s, our choice: a side that ended is mostly
/// gone for good, and the other may finish what it is saying; the idle limit would keep it for an hour.
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// Why relaying stopped.
enum Stop {
    /// Both directions ended, and their ends were passed on.
    Ended,
    /// The connection of this side broke.
    Broken(Side),
    /// Nobody said anything for too long.
    Idle,
    /// The drain cuts tunnels.
    Drain,
}

/// Two streams and the state of both directions.
struct Tunnel<D, U> {
    client: D,
    upstream: U,
    to_upstream: Lane,
    to_client: Lane,
    opened: Instant,
    active: Instant,
    is_half_closed: bool,
    end: Option<(Side, How)>,
}

impl<D, U> Tunnel<D, U>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    fn new(downstream: End<D>, upstream: End<U>) -> Self {
        let now = Instant::now();
        Self {
            to_upstream: Lane::new(Sender::Client, downstream.early),
            to_client: Lane::new(Sender::Server, upstream.early),
            client: downstream.io,
            upstream: upstream.io,
            opened: now,
            active: now,
            is_half_closed: false,
            end: None,
        }
    }

    /// Relays until something ends it.
    async fn relay(&mut self, idle: Duration, drain: &Drain, watch: impl Fn(u64, u64)) -> Stop {
        // A century: so that no configured duration overflows the clock.
        let idle = idle.min(Duration::from_secs(100 * 365 * 86_400));
        let mut cut = pin!(drain.reached(Phase::CutTunnels));
        let mut silence = pin!(sleep(idle));
        let mut limit = idle;
        poll_fn(|cx| {
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Stop::Drain);
            }
            let polled = self.poll_lanes(cx);
            if self.has_moved() {
                self.active = Instant::now();
                watch(self.to_upstream.bytes, self.to_client.bytes);
            }
            if polled.is_ready() {
                return polled;
            }
            if self.is_half_closed && limit > HALF_CLOSED {
                limit = HALF_CLOSED;
                silence.as_mut().reset(self.active + limit);
            }
            // Traffic does not touch the timer; when it fires, it is set to what is left.
            while silence.as_mut().poll(cx).is_ready() {
                let end = self.active + limit;
                if end <= Instant::now() {
                    return Poll::Ready(if self.is_half_closed { Stop::Ended } else { Stop::Idle });
                }
                silence.as_mut().reset(end);
            }
            Poll::Pending
        })
        .await
    }

    /// Moves what can be moved in both directions. Ready when both have ended, or one side broke.
    fn poll_lanes(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        // What the upstream said goes first: its close frame explains why writing to it fails.
        let outward = self.to_client.poll_pump(cx, &mut self.upstream, &mut self.client);
        self.observe(Side::Upstream);
        let inward = self.to_upstream.poll_pump(cx, &mut self.client, &mut self.upstream);
        self.observe(Side::Client);
        match (outward, inward) {
            (Poll::Ready(Err(Fault::Reading)), _) | (_, Poll::Ready(Err(Fault::Writing))) => {
                Poll::Ready(Stop::Broken(Side::Upstream))
            }
            (Poll::Ready(Err(Fault::Writing)), _) | (_, Poll::Ready(Err(Fault::Reading))) => {
                Poll::Ready(Stop::Broken(Side::Client))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Stop::Ended),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            (Poll::Pending, Poll::Ready(Ok(()))) | (Poll::Ready(Ok(())), Poll::Pending) => {
                if !mem::replace(&mut self.is_half_closed, true) {
                    self.active = Instant::now();
                }
                Poll::Pending
            }
        }
    }

    /// True when a byte has moved since the last call.
    fn has_moved(&mut self) -> bool {
        // Not `||`: both notes must be taken back.
        mem::take(&mut self.to_client.has_moved) | mem::take(&mut self.to_upstream.has_moved)
    }

    /// Notes that a side ended the tunnel, when it just did.
    fn observe(&mut self, side: Side) {
        if self.end.is_some() {
            return;
        }
        let lane = if side == Side::Upstream { &self.to_client } else { &self.to_upstream };
        if let Some(close) = lane.follower.close() {
            self.end = Some((side, How::Close(close.clone())));
        } else if matches!(lane.flow, Flow::Ended | Flow::Shut) {
            self.end = Some((side, How::Fin));
        }
    }

    /// Notes who ended the tunnel, unless that is known already: the first end is the cause.
    fn note(&mut self, side: Side, how: How) {
        self.end.get_or_insert((side, how));
    }

    /// After a connection broke: the other side gets what the broken one still said, for a close
    /// frame sent before a reset is often still there to be read.
    ///
    /// With a close frame, the other side is shut down as at any end. Without one it is dropped, so
    /// that no TLS close_notify calls a break a clean end.
    async fn finish_after_break(&mut self, broken: Side) {
        let Self { client, upstream, to_upstream, to_client, .. } = self;
        let close = match broken {
            Side::Upstream => finish(to_client, upstream, client).await,
            Side::Client | Side::Edge => finish(to_upstream, client, upstream).await,
        };
        self.note(broken, close.map_or(How::Reset, How::Close));
    }

    /// Tells both sides that the edge goes away (RFC 6455 7.4.1), each on a frame boundary.
    ///
    /// The client is told first. What it still sends passes on, its answer too, so the upstream
    /// loses no message; only for a client that does not answer the edge speaks itself.
    async fn say_goodbye(&mut self) {
        let Self { client, upstream, to_upstream, to_client, .. } = self;
        let mut goodbye = Bytes::from_static(GOING_AWAY);
        let told = poll_fn(|cx| {
            // A fault there shows in the lane, and the client is told all the same.
            let _ = to_upstream.poll_pump(cx, client, upstream);
            to_client.poll_last(cx, upstream, client, &mut goodbye)
        });
        let told = timeout(FAREWELL, told).await;
        // Still there: the stream is over, or is no stream of frames. Nobody will answer then.
        let is_told = goodbye.is_empty() || to_client.has_said_close();
        if is_told && matches!(told, Ok(Ok(()))) {
            let answered = poll_fn(|cx| {
                // The upstream may be waiting until somebody reads what it writes.
                let _ = poll_discard(cx, upstream);
                let pumped = to_upstream.poll_pump(cx, client, upstream);
                if pumped.is_ready() || to_upstream.has_said_close() { Poll::Ready(()) } else { Poll::Pending }
            });
            // Answered or not: the upstream is told next, unless it was.
            let _ = timeout(FAREWELL, answered).await;
        }
        let mut key = [0; 4];
        if aws_lc_rs::rand::fill(&mut key).is_err() {
            return; // without a mask that nobody foresees, the end of the stream has to do
        }
        let mut goodbye = Bytes::from(masked_going_away(key));
        let told = poll_fn(|cx| to_upstream.poll_last(cx, client, upstream, &mut goodbye));
        // Told or not: both sides are shut down next.
        let _ = timeout(FAREWELL, told).await;
    }

    /// Ends both streams in good order.
    async fn shut_down(&mut self) {
        let Self { client, upstream, to_upstream, to_client, .. } = self;
        let shut = poll_fn(|cx| match (to_client.poll_shut(cx, client), to_upstream.poll_shut(cx, upstream)) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(()),
            (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
        });
        // Whoever does not take the end in time is dropped.
        let _ = timeout(FAREWELL, shut).await;
    }

    /// What the record says.
    fn outcome(&mut self) -> Outcome {
        let now = Instant::now();
        // Every way out of `relay` has noted its cause; should one not, nobody but us ended it.
        let (ended_by, how) = self.end.take().unwrap_or((Side::Edge, How::Fin));
        Outcome {
            bytes_in: self.to_upstream.bytes,
            bytes_out: self.to_client.bytes,
            frames_in: self.to_upstream.follower.frames(),
            frames_out: self.to_client.follower.frames(),
            ended_by,
            how,
            lasted: now - self.opened,
            idle: now - self.active,
        }
    }
}

/// Passes on what a broken side still said; returns its close frame.
async fn finish<R, W>(lane: &mut Lane, broken: &mut R, other: &mut W) -> Option<Close>
where
    R: AsyncRead + Unpin,
    W: AsyncRead + AsyncWrite + Unpin,
{
    // Whether all of it arrives changes nothing: the tunnel is over.
    let _ = timeout(FAREWELL, poll_fn(|cx| lane.poll_pump(cx, broken, other))).await;
    let close = lane.follower.close().cloned()?;
    // Closing a socket with unread bytes resets it, and a reset may overtake the close frame
    // (RFC 9112 9.6 says it of HTTP): so read on until the other side has read it and closed.
    let left = poll_fn(|cx| {
        ready!(lane.poll_shut(cx, other));
        poll_discard(cx, other)
    });
    let _ = timeout(FAREWELL, left).await;
    Some(close)
}

impl Side {
    /// The word in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Edge => "edge",
        }
    }
}

impl How {
    /// The word in metrics: the kind alone, because a close frame says whatever its sender likes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Close(_) => "close",
            Self::Fin => "fin",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Drain => "drain",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close(close) => close.fmt(f),
            Self::Fin | Self::Reset | Self::Idle | Self::Drain => f.write_str(self.kind()),
        }
    }
}

#[cfg(test)]
mod tests;
