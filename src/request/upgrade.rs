//! Upgrades: a WebSocket handshake over HTTP/1.1 (RFC 6455) or extended CONNECT over HTTP/2
//! (RFC 8441), always as a fresh HTTP/1.1 upgrade upstream.
//!
//! A tunnel begins only after a 101 with the matching `Upgrade` and the right
//! `Sec-WebSocket-Accept`. Until then every byte is HTTP. Any other upgrade is dropped and the
//! request served as an ordinary one (RFC 9110 7.8 allows it).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, request};
use hyper::ext::Protocol;

use super::exchange::Exchange;
use super::reply::{self, Reply};
use super::{ClientSide, Parts, Places, target};
use crate::access_log::{Amounts, TunnelRecord};
use crate::addr::PeerAddr;
use crate::body::Body;
use crate::drain::{Guard, Work};
use crate::forward::Answer;
use crate::forward::connect::EndpointStream;
use crate::forward::handshake;
use crate::forward::pool::InFlight;
use crate::forward::tunnel::{self, End, How, Outcome, Side};
use crate::metrics::EndedTunnel;
use crate::metrics::sheet::SiteSheet;
use crate::metrics::tunnels::OpenTunnel;
use crate::policy::count::Hold;
use crate::refusal::{Failure, Refusal};
use crate::site::access::Guest;
use crate::site::limit::LockoutRule;
use crate::site::route::Forward;

/// A request for a tunnel.
#[derive(Debug)]
pub struct Upgrade {
    /// The key that the endpoint must prove: the client's, or ours over HTTP/2.
    key: HeaderValue,
    /// HTTP/2 says CONNECT and 200 where HTTP/1.1 says GET and 101.
    is_extended_connect: bool,
}

impl Upgrade {
    /// The tunnel that a head asks for, if it does.
    ///
    /// # Errors
    /// When it asks for one that is not offered, or in a way that cannot be verified.
    pub fn wanted(head: &request::Parts) -> Result<Option<Self>, Refusal> {
        if head.method == Method::TRACE {
            return Err(Refusal::Method);
        }
        if head.method == Method::CONNECT {
            let Some(protocol) = head.extensions.get::<Protocol>() else { return Err(Refusal::Method) };
            if protocol.as_str() != "websocket" {
                return Err(Refusal::UnknownProtocol);
            }
            return Ok(Some(Self { key: fresh_key()?, is_extended_connect: true }));
        }
        if head.version != Version::HTTP_11 || head.method != Method::GET || !asks_for_websocket(&head.headers) {
            return Ok(None);
        }
        let mut keys = head.headers.get_all(SEC_WEBSOCKET_KEY).iter();
        let key =
            keys.next().filter(|key| handshake::is_key(key.as_bytes())).cloned().ok_or(Refusal::BadWebSocketKey)?;
        if keys.next().is_some() {
            return Err(Refusal::BadWebSocketKey);
        }
        if head.headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            // The only version that there is (RFC 6455 4.1); about any other, edge and endpoint could disagree.
            return Err(Refusal::BadWebSocketVersion);
        }
        Ok(Some(Self { key, is_extended_connect: false }))
    }

    /// Writes the handshake into a request head that was cleaned of the client's.
    pub fn write(&self, fields: &mut HeaderMap) {
        // In place of what was there: `Connection: te` would contradict.
        fields.remove(TE);
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        fields.insert(SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// Why a 101 is no proof that the endpoint speaks WebSocket (RFC 6455 4.1).
    fn doubt(&self, fields: &HeaderMap) -> Option<&'static str> {
        if !has_token(fields, &UPGRADE, "websocket") || !has_token(fields, &CONNECTION, "upgrade") {
            return Some("its 101 does not upgrade to websocket");
        }
        let mut proofs = fields.get_all(SEC_WEBSOCKET_ACCEPT).iter();
        let is_proven =
            proofs.next().is_some_and(|proof| proof.as_bytes() == handshake::proof_of(self.key.as_bytes()).as_bytes());
        (!is_proven || proofs.next().is_some()).then_some("its Sec-WebSocket-Accept is wrong")
    }
}

fn asks_for_websocket(fields: &HeaderMap) -> bool {
    has_token(fields, &UPGRADE, "websocket") && has_token(fields, &CONNECTION, "upgrade")
}

/// True when a comma-separated field has the token, in any case (RFC 9110 5.6.1).
fn has_token(fields: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    fields.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

fn fresh_key() -> Result<HeaderValue, Refusal> {
    let key = handshake::fresh_key().ok_or(Refusal::Busy)?;
    HeaderValue::from_str(&key).map_err(|_| Refusal::Busy)
}

/// The endpoint has answered a request for a tunnel.
///
/// # Errors
/// When it agreed without proof, or answered as if there had been no upgrade.
pub fn conclude(
    exchange: &mut Exchange,
    answer: Answer,
    upgrade: Upgrade,
    forward: &Forward,
) -> Result<Reply, Refusal> {
    let status = answer.response.status();
    let doubt = match status {
        StatusCode::SWITCHING_PROTOCOLS => upgrade.doubt(answer.response.headers()),
        // Over HTTP/2 a 2xx would open the tunnel; over HTTP/1.1 clients hang on it.
        status if status.is_success() => Some("it answered as if no upgrade had been asked for"),
        _ => return Ok(reply::from_endpoint(exchange, answer, forward)),
    };
    if let Some(doubt) = doubt {
        answer.note(Failure::Upgrade);
        let label = &answer.endpoint.label;
        let detail = format!("{label}: {doubt} (status {})", status.as_u16()).into();
        return Err(Refusal::Failed { failure: Failure::Upgrade, detail });
    }
    let mut answer = answer;
    let mut fields = std::mem::take(answer.response.headers_mut());
    reply::prepare(status, &mut fields, forward, exchange.notes.host.as_ref());
    let status = if upgrade.is_extended_connect {
        fields.remove(SEC_WEBSOCKET_ACCEPT);
        StatusCode::OK
    } else {
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        status
    };
    let (endpoint, via_port) = (Arc::clone(&answer.endpoint.label), answer.via_port);
    let broken = || Refusal::Failed { failure: Failure::Upgrade, detail: format!("{endpoint}: no tunnel").into() };
    let (io, early, in_flight) = answer.into_tunnel().ok_or_else(broken)?;
    let ticket = Ticket::of(exchange, endpoint, via_port, in_flight).ok_or(Refusal::NoRoute)?;
    let client_side = exchange.carrier.tunnel();
    exchange.upgraded();
    // The tunnel is a task of its own, so that the request's state is freed.
    tokio::task::spawn_local(ticket.run(client_side, End { io, early }));
    let mut opened = Response::new(Body::Empty);
    *opened.status_mut() = status;
    *opened.headers_mut() = fields;
    Ok(Reply::own(opened))
}

/// "Service restart" (the registry of RFC 6455 11.7): what the gateway says before it goes.
const RESTARTS: u16 = 1012;

/// What a tunnel keeps of the request that opened it: small, and in buffers of its own, because a
/// header value would keep the whole head in memory for days.
struct Ticket {
    parts: Rc<Parts>,
    idle: Duration,
    /// What `tidegate status` shows of it.
    open: Rc<OpenTunnel>,
    sheet: Arc<SiteSheet>,
    texts: Box<Texts>,
    /// Where a login that fails is counted.
    lockout: Option<(Arc<LockoutRule>, Guest)>,
    /// Taken before the 101 is sent: a drain that begins in between does not lose the tunnel.
    _guard: Guard,
    in_flight: InFlight,
    /// What it takes of what is counted: its own places, and those of the connection that it was.
    places: (Option<Hold>, Option<Hold>, Option<Rc<Places>>),
}

/// Texts for the record.
struct Texts {
    host: Option<HeaderValue>,
    target: Box<str>,
    agent: Option<HeaderValue>,
    origin: Option<HeaderValue>,
    via_port: Option<u16>,
    via: Option<PeerAddr>,
}

impl Ticket {
    fn of(exchange: &mut Exchange, upstream: Arc<str>, via_port: Option<u16>, in_flight: InFlight) -> Option<Self> {
        let place = exchange.tunnel_place.take();
        let owned = |value: Option<&HeaderValue>| HeaderValue::from_bytes(value?.as_bytes()).ok();
        let notes = &exchange.notes;
        let texts = Texts {
            host: owned(notes.host.as_ref()),
            target: target(&notes.uri).into(),
            agent: owned(notes.agent.as_ref()),
            origin: owned(notes.origin.as_ref()),
            via_port,
            via: exchange.connection.via,
        };
        let open = OpenTunnel {
            id: exchange.id.to_str().unwrap_or_default().into(),
            site: Arc::clone(&exchange.site.as_ref()?.label),
            client: exchange.client,
            peer: exchange.connection.peer,
            upstream,
            over: if exchange.carrier.version() == Version::HTTP_2 { "h2" } else { "h1" },
            opened: SystemTime::now(),
            // Its number alone: a tunnel of days must not keep a whole old configuration in memory.
            generation: exchange.generation.number,
            bytes: Cell::default(),
        };
        Some(Self {
            parts: Rc::clone(&exchange.parts),
            idle: exchange.route.as_ref()?.timeouts.idle,
            open: Rc::new(open),
            sheet: exchange.parts.metrics.site(exchange.site.as_ref()),
            lockout: exchange.lockout().map(|rule| (Arc::clone(rule), exchange.guest())),
            texts: Box::new(texts),
            _guard: exchange.parts.drain.guard(Work::Tunnel),
            places: (
                place,
                exchange.parts.limits.count_tunnel(&exchange.site.as_ref()?.label),
                Some(Rc::clone(&exchange.connection.places)),
            ),
            in_flight,
        })
    }

    /// Joins the two sides when the client's has switched too, and writes the record when they have ended.
    async fn run(mut self, client_side: ClientSide, endpoint_side: End<EndpointStream>) {
        // It may have gone away with the 101 on its way; the request's record says so.
        let Some(client_side) = client_side.await else { return };
        self.sheet.tunnels.add(1);
        let listed = self.parts.metrics.tunnels.enter(Rc::clone(&self.open));
        let watch = |inbound, outbound| self.open.bytes.set((inbound, outbound));
        let outcome = tunnel::join(client_side, endpoint_side, self.idle, &self.parts.drain, watch).await;
        if outcome.ended_by == Side::Upstream && matches!(&outcome.how, How::Close(close) if close.code == RESTARTS) {
            self.in_flight.note_departure();
        }
        if let Some((rule, guest)) = self.lockout.as_ref().filter(|_| is_failed_login(&outcome)) {
            self.parts.limits.failed(rule, *guest);
        }
        // Whoever reads the record may rely on them.
        self.places = (None, None, None);
        drop(listed);
        self.count(&outcome);
        self.write_record(&outcome);
    }

    fn count(&self, outcome: &Outcome) {
        self.sheet.tunnel(&EndedTunnel {
            ended_by: outcome.ended_by.as_str(),
            how: outcome.how.kind(),
            lasted: outcome.lasted,
            idle: outcome.idle,
            bytes_in: outcome.bytes_in,
            bytes_out: outcome.bytes_out,
        });
    }

    fn write_record(&self, outcome: &Outcome) {
        if !self.parts.log.is_on() {
            return;
        }
        let (texts, open) = (&self.texts, &self.open);
        self.parts.log.tunnel(&TunnelRecord {
            id: &open.id,
            site: Some(&open.site),
            client: open.client,
            peer: open.peer,
            via: texts.via,
            over: open.over,
            host: texts.host.as_ref(),
            target: &texts.target,
            ua: texts.agent.as_ref(),
            origin: texts.origin.as_ref(),
            upstream: Some(&open.upstream),
            via_port: texts.via_port,
            opened: open.opened,
            lasted: outcome.lasted,
            frames: Amounts { inbound: outcome.frames_in, outbound: outcome.frames_out },
            bytes: Amounts { inbound: outcome.bytes_in, outbound: outcome.bytes_out },
            ended_by: outcome.ended_by.as_str(),
            how: &outcome.how.to_string(),
            idle: outcome.idle,
            generation: open.generation,
        });
    }
}

/// True when the upstream let nobody in: close 1008 (RFC 6455 7.4.1) soon after the upgrade. Not when it says that a device
/// waits to be paired, whose secret was right, or that the origin is not allowed, which is judged before any secret.
fn is_failed_login(outcome: &Outcome) -> bool {
    // 15 s, our choice: a slow phone has sent its secret by then; what comes later is another policy.
    const SOON: Duration = Duration::from_secs(15);
    let How::Close(close) = &outcome.how else { return false };
    let is_other = ["pairing required", "origin not allowed"].iter().any(|reason| close.reason.starts_with(reason));
    outcome.ended_by == Side::Upstream && close.code == 1008 && outcome.lasted <= SOON && !is_other
}
