//! An open connection to an endpoint: its stream, what was read from it and not yet used, and one
//! timer for every wait on it. HTTP is spoken by `upload` (requests) and `answer` (responses).

use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::connect::EndpointStream;
use crate::alarm::Alarm;
use crate::framing::intake::Intake;

/// The stream of a link. Shared, because an endpoint may answer before it has read the whole request:
/// then the request is written by one task while another reads the response.
pub type Wire = Rc<RefCell<EndpointStream>>;

/// An open connection to an endpoint, with at most one exchange on it.
#[derive(Debug)]
pub struct Link {
    wire: Wire,
    /// Our source port: it stands in the gateway's own log lines.
    pub via_port: Option<u16>,
    /// What was read from it and not yet used.
    pub(super) intake: Intake,
    alarm: Alarm,
}

impl Link {
    /// A link that was just opened.
    pub fn new(stream: EndpointStream) -> Self {
        let via_port = stream.local_port();
        let wire = Rc::new(RefCell::new(stream));
        Self { wire, via_port, intake: Intake::new(), alarm: Alarm::default() }
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
        let reading = poll_fn(|cx| Pin::new(&mut *wire).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        // Whatever the task has done in this turn: who is told to wait for its next turn has not looked.
        self.intake.read.is_empty() && pin!(unconstrained(reading)).poll(&mut nobody).is_pending()
    }

    /// Reads more. 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.intake.poll_fill(cx, &mut *self.wire.borrow_mut())
    }

    /// The exchange is over: the link waits for the next one.
    pub fn rest(&mut self) {
        self.intake.shrink();
    }

    /// True when the deadline has passed; else the task is woken then.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        self.alarm.is_late(cx, deadline)
    }

    /// The stream, and what was read from it beyond the response. `None` while somebody still writes to it.
    pub fn into_stream(self) -> Option<(EndpointStream, BytesMut)> {
        Some((Rc::into_inner(self.wire)?.into_inner(), self.intake.read))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;

    /// A task that has done much in one turn must still see what came on an idle link: it would be taken for
    /// the answer to the next request.
    #[tokio::test]
    #[allow(clippy::await_holding_refcell_ref, reason = "nobody else has the stream")]
    async fn a_busy_task_sees_what_nobody_asked_for() {
        for said in [&b""[..], b"HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            let (ours, mut theirs) = UnixStream::pair().expect("sockets");
            theirs.write_all(said).await.expect("room");
            theirs.shutdown().await.expect("an open socket");
            ours.readable().await.expect("an open socket");
            let link = Link::new(EndpointStream::Unix(ours));
            let is_alive = poll_fn(|cx| {
                while tokio::task::coop::poll_proceed(cx).map(|spent| spent.made_progress()).is_ready() {}
                Poll::Ready(link.is_alive())
            });
            assert!(!is_alive.await, "{said:?}");
        }
    }
}
