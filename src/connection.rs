//! The story of one connection: accept → PROXY preface → TLS → HTTP/1.1 or HTTP/2 → requests → close.
//!
//! ALPN picks the protocol; cleartext speaks HTTP/1.1; nothing is sniffed. Each phase has its own
//! deadline, held outside the protocol's code. A connection that never became a request leaves a
//! record of its own that says why.

pub mod farewell;
pub mod frame_meter;
pub mod http1;
pub mod http2;
pub mod proxy_protocol;
pub mod socket;

use std::cell::Cell;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::access_log::ConnectionRecord;
use crate::addr::PeerAddr;
use crate::drain::Guard;
use crate::metrics::sheet::Agreed;
use crate::policy::count::Hold;
use crate::policy::limits::key_of_connection;
use crate::request::{Connection, Parts, Places};
use crate::site::policy::{Alpn, Timeouts};
use crate::site::{Listener, Role, SiteTable};
use crate::tls::{self, Handshake, HandshakeError, Policies, TlsFacts};
use proxy_protocol::Preface;
use socket::{Patient, Socket, SocketHandle};

/// What all connections of a worker share.
#[derive(Debug)]
pub struct Shared {
    /// What their requests use.
    pub parts: Rc<Parts>,
    /// What their handshakes use.
    pub policies: Arc<Policies>,
}

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub socket: Socket,
    /// Who opened it.
    pub peer: PeerAddr,
    /// Our end of it.
    pub local: Option<SocketAddr>,
    /// What the address is for.
    pub role: Arc<Role>,
    /// When it was accepted: all deadlines before the first request begin here.
    pub at: Instant,
    /// Counts it until it has ended.
    pub guard: Guard,
    /// Its place among those of its client, unless that is not known yet, or no client.
    pub client: Option<Hold>,
}

/// The deadlines of a listener, and the largest head that any route takes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    handshake: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// From the end of an exchange to the next head.
    pub keep_alive: Duration,
    /// In bytes.
    pub head_bytes: usize,
    /// Fields of one head.
    pub head_fields: usize,
}

/// How a connection ended, for its record.
#[derive(Debug)]
pub struct Ending {
    /// The stable kind.
    pub kind: &'static str,
    /// In plain words.
    pub why: String,
    /// The answer that the gate gave itself.
    pub answer: Option<Answered>,
    /// Whether it is worth a record although requests were answered.
    pub is_fault: bool,
}

/// An answer to what never became a request.
#[derive(Debug)]
pub struct Answered {
    /// The request ID that it names.
    pub id: Box<str>,
    /// Its status.
    pub status: StatusCode,
    /// Its stable code.
    pub code: &'static str,
}

impl Ending {
    /// An end that is nobody's fault.
    pub fn quiet(kind: &'static str, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), answer: None, is_fault: false }
    }
}

/// Serves one connection to its end.
pub async fn serve(shared: Rc<Shared>, accepted: Accepted) {
    let _counted = accepted.guard;
    let (socket, handle) = Patient::new(accepted.socket, Timeouts::default().send);
    let (peer, local, role, at) = (accepted.peer, accepted.local, accepted.role, accepted.at);
    let arrival = Arrival { shared, peer, via: None, local, role, at, handle, client: accepted.client };
    // Boxed, each in its time: a connection that is open for days has room for neither handshake nor another protocol.
    let Some(serving) = Box::pin(arrival.open(socket)).await else { return };
    serving.await;
}

/// The work for a connection once its protocol is known.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// A connection before its protocol is known.
struct Arrival {
    shared: Rc<Shared>,
    peer: PeerAddr,
    /// Who sent the preface that names `peer`.
    via: Option<PeerAddr>,
    local: Option<SocketAddr>,
    role: Arc<Role>,
    at: Instant,
    handle: SocketHandle,
    client: Option<Hold>,
}

/// The place of a client's connection; `None` for whoever is no client: hops, and this machine.
///
/// # Errors
/// When the client has as many as one may have.
pub fn client_place(parts: &Parts, table: &SiteTable, peer: PeerAddr) -> Result<Option<Hold>, NonZeroU32> {
    key_of_connection(table, peer).map(|key| parts.limits.enter_crowd(key)).transpose()
}

/// Why a connection is refused, for its record.
pub fn more_than(most: NonZeroU32) -> String {
    format!("more than {most} connections of one client (limit \"process\")")
}

impl Arrival {
    /// Opens it: the handshake, and what is to be served then. `None` when there is nothing to serve.
    async fn open(mut self, mut socket: Patient) -> Option<Serving> {
        let generation = self.shared.parts.snapshot.keep();
        let table = &generation.table;
        let Some(id) = table.listener_of(&self.role) else {
            // Accepted from the queue of a listener that a reload has just taken away.
            self.record(&Ending::quiet("closed", "its listener is no longer configured"), None, None);
            return None;
        };
        let bounds = Bounds::of(table.listener(id), table);
        let deadline = (self.at + bounds.handshake).into();
        if table.edge.trust.proxy_protocol.has_peer(self.peer) {
            // Boxed: the few that send one need room for it, and only until it is read.
            match Box::pin(proxy_protocol::read(&mut socket, deadline)).await {
                Ok(preface) => {
                    self.introduce(preface);
                    // A proxy that speaks for itself is a hop, not a client.
                    let place = |arrival: &Self| client_place(&arrival.shared.parts, table, arrival.peer);
                    match if self.is_of_proxy() { Ok(None) } else { place(&self) } {
                        Ok(place) => self.client = place,
                        Err(most) => return self.refuse(&more_than(most), None),
                    }
                }
                Err(fault) => {
                    self.record(&Ending::quiet("proxy", fault.to_string()), None, None);
                    return None;
                }
            }
        }
        if !self.role.is_tls {
            let places = Places::new(self.client.take());
            return Some(self.http1(socket, None, places, bounds));
        }
        let ip = self.local.map(|local| local.ip());
        let began = Instant::now();
        match tls::accept(socket, &self.shared.policies, table, id, ip, deadline).await {
            Err(HandshakeError::Closed { .. }) if self.is_of_proxy() => {
                self.record(&Ending::quiet("closed", HEALTH_CHECK), None, None);
                None
            }
            Err(error) => {
                self.shared.parts.metrics.handshake_failed(error.kind());
                self.record(&Ending::quiet("tls", error.to_string()), error.sni(), None);
                None
            }
            Ok(Handshake { stream, facts }) => {
                self.shared.parts.metrics.handshake(&agreed(&facts), began.elapsed());
                let places = Places::new(self.client.take());
                if let Some(site) = table.site_of(&facts.site_host)
                    && let Err(full) = places.enter_site(&self.shared.parts.limits, table, site, self.peer)
                {
                    return self.refuse(full.cause(), facts.sni.as_ref().map(|name| name.as_str()));
                }
                Some(match facts.alpn {
                    Alpn::Http11 => self.http1(stream, Some(facts), places, bounds),
                    Alpn::Http2 => self.http2(stream, facts, places, bounds),
                })
            }
        }
    }

    /// Closes it at once, by a reset, as it would have been when it was accepted.
    fn refuse(&self, why: &str, sni: Option<&str>) -> Option<Serving> {
        self.handle.resets();
        self.record(&Ending::quiet("refused", why), sni, None);
        None
    }

    /// Takes the word of a preface for who connected, and where to.
    fn introduce(&mut self, preface: Preface) {
        self.via = Some(self.peer);
        match preface {
            Preface::Client { source, destination } => {
                self.peer = PeerAddr::from_socket(source);
                self.local = Some(destination);
            }
            Preface::Sender => {}
        }
    }

    /// True when a proxy speaks for itself.
    fn is_of_proxy(&self) -> bool {
        self.via == Some(self.peer)
    }

    fn http1<S>(self, stream: S, tls: Option<Rc<TlsFacts>>, places: Places, bounds: Bounds) -> Serving
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let connection = self.connection(tls, places);
        let parts = Rc::clone(&self.shared.parts);
        let serving = http1::serve(parts, Rc::clone(&connection), stream, bounds, self.at, self.handle.clone());
        Box::pin(async move { self.conclude(&connection, &serving.await) })
    }

    fn http2<S>(self, stream: S, tls: Rc<TlsFacts>, places: Places, bounds: Bounds) -> Serving
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connection = self.connection(Some(tls), places);
        let parts = Rc::clone(&self.shared.parts);
        let serving = http2::serve(parts, Rc::clone(&connection), stream, bounds, self.handle.clone());
        Box::pin(async move { self.conclude(&connection, &serving.await) })
    }

    fn connection(&self, tls: Option<Rc<TlsFacts>>, places: Places) -> Rc<Connection> {
        let Self { peer, via, local, ref role, .. } = *self;
        let (requests, places) = (Cell::new(0), Rc::new(places));
        Rc::new(Connection { peer, via, local, role: Arc::clone(role), tls, requests, places })
    }

    /// Requests have their own records; what ended before one, or broke the protocol, gets one here.
    fn conclude(&self, connection: &Connection, ending: &Ending) {
        let requests = connection.requests.get();
        tracing::debug!(event = "connection", peer = %self.peer, requests, ended = ending.kind, "a connection has ended");
        if requests == 0 || ending.is_fault {
            let tls = connection.tls.as_deref();
            let sni = tls.and_then(|tls| tls.sni.as_ref()).map(|name| name.as_str());
            let alpn = tls.map(|tls| tls.alpn.as_str());
            if self.is_of_proxy() && ending.kind == "closed" {
                return self.record(&Ending::quiet("closed", HEALTH_CHECK), sni, alpn);
            }
            return self.record(ending, sni, alpn);
        }
        self.shared.parts.metrics.connection(&self.role, ending.kind);
    }

    /// Counts the end of a connection, and writes its record.
    fn record(&self, ending: &Ending, sni: Option<&str>, alpn: Option<&str>) {
        let (log, metrics) = (&self.shared.parts.log, &self.shared.parts.metrics);
        metrics.connection(&self.role, ending.kind);
        if let Some(answer) = &ending.answer {
            metrics.refused_early(answer.code);
        }
        if log.is_on() {
            log.connection(&ConnectionRecord {
                peer: self.peer,
                via: self.via,
                listener: &self.role.address.to_string(),
                answer: ending.answer.as_ref().map(|answer| (&*answer.id, answer.status, answer.code)),
                ended: ending.kind,
                why: &ending.why,
                sni,
                alpn,
                lasted: self.at.elapsed(),
                bytes_in: self.handle.bytes_read(),
            });
        }
    }
}

/// What a handshake agreed on, for the metrics.
fn agreed(facts: &TlsFacts) -> Agreed {
    let TlsFacts { version, cipher, group, is_resumed, .. } = *facts;
    Agreed { version, cipher, group: group.unwrap_or_default(), is_resumed }
}

/// Why a connection ended that a proxy opened in its own name, and on which it asked nothing.
const HEALTH_CHECK: &str = "a health check: the proxy closed it without a request";

impl Bounds {
    fn of(listener: &Listener, table: &SiteTable) -> Self {
        Self {
            handshake: listener.handshake_timeout,
            head: listener.request_head_timeout,
            keep_alive: listener.keep_alive_timeout,
            head_bytes: table.largest_head.bytes,
            head_fields: table.largest_head.fields,
        }
    }
}
