//! The bodies that go upstream, and those of our own answers. What an endpoint sends is `forward/answer`'s.
//!
//! A streamed body is counted, bounded in size, in silence and in slowness, and tells its `Meter` how it ended,
//! so that a request that failed while its body was read gets the right answer. Nothing is held
//! back: a frame goes on in the poll in which it arrived.

pub mod collect;

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::alarm::Alarm;
use collect::Collected;

/// A request body on its way upstream, or the body of an answer of ours.
#[derive(Debug, Default)]
pub enum Body {
    /// No body.
    #[default]
    Empty,
    /// Bytes that are all here.
    Full(Bytes),
    /// Frames as they arrive.
    Stream(Box<Stream>),
    /// A request body that was collected before the upstream was asked.
    Collected(Box<Collected>),
}

impl Body {
    /// A body of text or bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(bytes.into())
    }
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is larger than the limit.
    #[error("the body is larger than the limit")]
    TooLarge,
    /// Nothing came for longer than the limit.
    #[error("the body made no progress in time")]
    Stalled,
    /// It came too slowly for too long.
    #[error("the body comes too slowly")]
    TooSlow,
    /// The sender went away or broke the framing.
    #[error("the body broke off")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// A collected body could not be read back.
    #[error("a collected body could not be read back")]
    Storage(#[source] io::Error),
}

impl BodyError {
    /// It is longer or shorter than it was announced.
    pub fn wrong_length() -> Self {
        Self::Broken("the body has another length than announced".into())
    }
}

/// How far a streamed body has come; shared by the body and whoever waits for it.
#[derive(Debug)]
pub struct Meter {
    bytes: Cell<u64>,
    progress: Cell<Instant>,
    state: Cell<MeterState>,
}

/// How a streamed body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterState {
    /// It still comes.
    Open,
    /// It came whole.
    Ended,
    /// It is larger than the limit.
    TooLarge,
    /// Nothing came in time.
    Stalled,
    /// It came too slowly for too long.
    TooSlow,
    /// The sender went away or broke the framing.
    Broken,
}

impl Meter {
    /// A meter at zero.
    pub fn new() -> Rc<Self> {
        Rc::new(Self { bytes: Cell::new(0), progress: Cell::new(Instant::now()), state: Cell::new(MeterState::Open) })
    }

    /// Bytes that came.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// When the last piece came.
    pub fn progress(&self) -> Instant {
        self.progress.get()
    }

    /// How the body stands.
    pub fn state(&self) -> MeterState {
        self.state.get()
    }

    /// Sets how the body stands.
    pub fn set_state(&self, state: MeterState) {
        self.state.set(state);
    }

    /// Counts a piece.
    pub fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
        self.progress.set(Instant::now());
    }
}

/// A request body as the client's protocol hands it on.
pub type Inbound = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>;

/// What a streamed body is bounded by.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Its size in bytes.
    pub bytes: u64,
    /// The longest pause between two pieces.
    pub silence: Duration,
    /// Bytes a second that it must come at, as soon as it has been `silence` behind; 0 for any.
    pub rate: u64,
}

/// A body that streams in under limits.
pub struct Stream {
    incoming: Inbound,
    bounds: Bounds,
    /// How long the sender may still keep us waiting. Each piece gives some of it back.
    slack: Duration,
    /// Since when it keeps us waiting: the time in which we did not ask is not its fault.
    waits_since: Option<Instant>,
    /// Trailers are fields too: what no sender may say there is taken out.
    clean_trailers: fn(&mut HeaderMap),
    alarm: Alarm,
    meter: Rc<Meter>,
}

impl Stream {
    /// Streams `incoming`.
    pub fn new(incoming: Inbound, bounds: Bounds, clean_trailers: fn(&mut HeaderMap), meter: Rc<Meter>) -> Self {
        let slack = bounds.silence;
        Self { incoming, bounds, slack, waits_since: None, clean_trailers, alarm: Alarm::default(), meter }
    }

    /// A piece has come.
    fn advance(&mut self, length: usize) {
        self.meter.add(length);
        let waited = self.waits_since.take().map_or(Duration::ZERO, |since| self.meter.progress() - since);
        let Bounds { silence, rate, .. } = self.bounds;
        let Some(worth) = (length as u64 * 1_000_000).checked_div(rate).map(Duration::from_micros) else { return };
        self.slack = (self.slack.saturating_sub(waited) + worth).min(silence);
    }

    fn fail(&self, state: MeterState, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.meter.set_state(state);
        Poll::Ready(Some(Err(error)))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        use http_body::Body as _;
        match self.incoming.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    (self.clean_trailers)(trailers);
                }
                if let Some(data) = frame.data_ref() {
                    let length = data.len();
                    self.advance(length);
                    if self.meter.bytes() > self.bounds.bytes {
                        return self.fail(MeterState::TooLarge, BodyError::TooLarge);
                    }
                }
                if self.incoming.is_end_stream() {
                    self.meter.set_state(MeterState::Ended);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(MeterState::Broken, error),
            Poll::Ready(None) => {
                self.meter.set_state(MeterState::Ended);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let since = *self.waits_since.get_or_insert_with(Instant::now);
                if !self.alarm.is_late(cx, since + self.slack) {
                    return Poll::Pending;
                }
                if self.slack < self.bounds.silence {
                    return self.fail(MeterState::TooSlow, BodyError::TooSlow);
                }
                self.fail(MeterState::Stalled, BodyError::Stalled)
            }
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("meter", &self.meter).finish_non_exhaustive()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            this @ Self::Full(_) => {
                let Self::Full(bytes) = std::mem::take(this) else { return Poll::Ready(None) };
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream(stream) => stream.poll_frame(cx),
            Self::Collected(collected) => collected.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.incoming.is_end_stream(),
            Self::Collected(collected) => collected.remaining() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.incoming.size_hint(),
            Self::Collected(collected) => SizeHint::with_exact(collected.remaining()),
        }
    }
}
