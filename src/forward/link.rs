//! An open connection to an endpoint: its stream, what was read from it and not yet used, and one
//! timer for every wait on it. HTTP is spoken by `upload` (requests) and `answer` (responses).

use std::cell::RefCell;
use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};
use tokio::time::Instant;

use super::connect::EndpointStream;
use crate::alarm::Alarm;

/// The stream of a link. Shared, because an endpoint may answer before it has read the whole request:
/// then the request is written by one task while another reads the response.
pub type Wire = Rc<RefCell<EndpointStream>>;

/// An open connection to an endpoint, with at most one exchange on it.
#[derive(Debug)]
pub struct Link {
    wire: Wire,
    /// Our source port: it stands in the gateway's own log lines.
    pub via_port: Option<u16>,
    /// Read and not yet used.
    pub(super) read: BytesMut,
    /// How much the next read asks for.
    step: usize,
    alarm: Alarm,
}

/// The first read: most answers of an API fit whole, and an idle link may keep it.
const FIRST_STEP: usize = 8 << 10;

/// The largest read, our choice: beyond it fewer calls no longer pay for the memory.
const LAST_STEP: usize = 64 << 10;

impl Link {
    /// A link that was just opened.
    pub fn new(stream: EndpointStream) -> Self {
        let via_port = stream.local_port();
        let wire = Rc::new(RefCell::new(stream));
        Self { wire, via_port, read: BytesMut::new(), step: FIRST_STEP, alarm: Alarm::default() }
    }

    /// The stream, for whoever writes the request.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// True while the endpoint holds an idle link open and has said nothing that nobody asked for.
    pub fn is_alive(&self) -> bool {
        let mut byte = [0];
        let mut nobody = Context::from_waker(Waker::noop());
        let mut wire = self.wire.borrow_mut();
        self.read.is_empty() && Pin::new(&mut *wire).poll_read(&mut nobody, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// The exchange is over: nothing is kept for the next one but a small buffer.
    pub fn rest(&mut self) {
        if self.step > FIRST_STEP {
            self.step = FIRST_STEP;
            self.read = BytesMut::new();
        }
    }

    /// Reads more. 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = self.read.capacity() - self.read.len();
        if room < self.step / 2 {
            // Memory that was handed on and is free again is taken back.
            self.read.reserve(self.step);
        }
        let asked = self.read.capacity() - self.read.len();
        let mut wire = self.wire.borrow_mut();
        let filled = pin!(wire.read_buf(&mut self.read)).poll(cx);
        if matches!(filled, Poll::Ready(Ok(length)) if length == asked) {
            self.step = (self.step * 2).min(LAST_STEP);
        }
        filled
    }

    /// True when the deadline has passed; else the task is woken then.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        self.alarm.is_late(cx, deadline)
    }

    /// The stream, and what was read from it beyond the response. `None` while somebody still writes to it.
    pub fn into_stream(self) -> Option<(EndpointStream, BytesMut)> {
        Some((Rc::into_inner(self.wire)?.into_inner(), self.read))
    }
}
