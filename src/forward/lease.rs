//! A connection while it carries an exchange, and what becomes of it then: it serves again only when both sides have
//! said all that they had to say.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use super::gate::Place;
use super::link::Link;
use super::pool::{InFlight, Live};
use crate::body::{Meter, MeterState};
use crate::site::upstream::Endpoint;

/// A connection in use. Dropped, it closes; completed, it serves again.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) link: Link,
    pub(super) live: Rc<Live>,
    pub(super) endpoint: Arc<Endpoint>,
    /// Present when the endpoint has answered before all of the request was written.
    pub(super) rest: Option<Rest>,
    pub(super) in_flight: InFlight,
    /// Where the upstream's requests are bounded: given back when the response has ended.
    pub(super) place: Option<Place>,
}

/// The rest of a request, written by a task of its own. Dropped, it is cut off.
#[derive(Debug)]
pub(super) struct Rest {
    writing: Option<JoinHandle<bool>>,
    abort: AbortHandle,
    meter: Option<Rc<Meter>>,
}

impl Rest {
    /// The task that writes it, and the meter of the request's body.
    pub(super) fn new(writing: JoinHandle<bool>, meter: Option<Rc<Meter>>) -> Self {
        Self { abort: writing.abort_handle(), writing: Some(writing), meter }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl Lease {
    /// The connection, and the place in the endpoint's count.
    pub(super) fn into_parts(self) -> (Link, InFlight) {
        (self.link, self.in_flight)
    }

    /// The response has been read to its end. The connection is kept only if the request was sent
    /// to its end too: otherwise the endpoint would take the rest for the next request.
    pub(super) fn complete(self) {
        let Self { link, live, endpoint, rest, in_flight, place } = self;
        let Some(mut rest) = rest else { return live.give_back(link, endpoint.max_idle) };
        let is_all_here = rest.meter.as_ref().is_none_or(|meter| meter.state() == MeterState::Ended);
        let Some(writing) = rest.writing.take().filter(|_| is_all_here) else { return };
        // All of the request is here, but not all of it is sent. An endpoint that answers early mostly reads
        // the rest; whoever came next would have to wait until it has.
        tokio::task::spawn_local(async move {
            let _rest = rest;
            let _in_flight = (in_flight, place);
            if matches!(timeout(UNREAD, writing).await, Ok(Ok(true))) {
                live.give_back(link, endpoint.max_idle);
            }
        });
    }
}

/// How long an endpoint that has answered may take to read the rest of a request. Our choice: what is read
/// later than that costs more than a new connection.
const UNREAD: Duration = Duration::from_secs(1);
