//! One probe of one endpoint: a GET, or a WebSocket up to its first frame, on a connection of its own.
//!
//! It carries nothing of any client and no forwarding field. A gateway that trusts this machine answers such a request in
//! full, so nothing of the answer but its status leaves this file.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use http::header::{SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::forward::answer;
use crate::forward::connect::{self, EndpointStream};
use crate::forward::handshake;
use crate::forward::tunnel::frames::{Follower, Sender, masked_going_away};
use crate::site::upstream::{Endpoint, EndpointAddr, Probe};
use crate::tls::client::client_config;

/// What one probe has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The endpoint takes requests.
    Well,
    /// No answer, or one that says nothing of that; in words.
    Silent(String),
    /// It says that it takes none now; in words.
    NotReady(String),
}

/// Asks one endpoint again and again.
#[derive(Debug, Default)]
pub(super) struct Prober {
    /// TLS towards it, built at the first probe, so that sessions are resumed.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Prober {
    /// Asks once, within the probe's time.
    pub(super) async fn ask(&mut self, endpoint: &Endpoint, probe: &Probe) -> Verdict {
        timeout(probe.timeout, self.exchange(endpoint, probe)).await.unwrap_or_else(|_| {
            Verdict::Silent(format!("no answer to {} within {} s", name(probe), probe.timeout.as_secs_f32()))
        })
    }

    async fn exchange(&mut self, endpoint: &Endpoint, probe: &Probe) -> Verdict {
        if let (Some(policy), None) = (&endpoint.tls, &self.tls) {
            match client_config(policy) {
                Ok(config) => self.tls = Some(config),
                Err(error) => return Verdict::Silent(error.to_string()),
            }
        }
        let mut stream = match connect::reach(endpoint, self.tls.clone(), probe.timeout).await {
            Ok(stream) => stream,
            Err(error) => return Verdict::Silent(error.detail.into()),
        };
        let Some(key) = handshake::fresh_key() else { return Verdict::Silent("no randomness".into()) };
        if let Err(error) = stream.write_all(&request(endpoint, probe, &key)).await {
            return Verdict::Silent(format!("it takes no request: {error}"));
        }
        let mut read = BytesMut::new();
        let head = match head(&mut stream, &mut read).await {
            Ok(head) => head,
            Err(why) => return Verdict::Silent(why),
        };
        if !probe.is_websocket {
            return judge(probe, head.status());
        }
        if head.status() != StatusCode::SWITCHING_PROTOCOLS {
            return match judge(probe, head.status()) {
                Verdict::Well => {
                    Verdict::Silent(format!("{} is answered with {}", name(probe), head.status().as_u16()))
                }
                verdict @ (Verdict::Silent(_) | Verdict::NotReady(_)) => verdict,
            };
        }
        if !is_proven(head.headers(), &key) {
            return Verdict::Silent(format!("the 101 to {} is no WebSocket", name(probe)));
        }
        first_frame(&mut stream, &read).await
    }
}

/// What is asked for, for people.
fn name(probe: &Probe) -> String {
    if probe.is_websocket { format!("a WebSocket at {}", probe.target) } else { format!("GET {}", probe.target) }
}

fn request(endpoint: &Endpoint, probe: &Probe, key: &str) -> Vec<u8> {
    let own = if matches!(endpoint.address, EndpointAddr::Unix(_)) { "localhost" } else { &endpoint.label };
    let (target, host) = (&probe.target, probe.host.as_deref().unwrap_or(own));
    let rest = if probe.is_websocket {
        format!(
            "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n"
        )
    } else {
        // The answer's body is not read, so the connection serves no other request.
        "accept: */*\r\nconnection: close\r\n".to_owned()
    };
    format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nuser-agent: tidegate-health\r\n{rest}\r\n").into_bytes()
}

/// The head of the response, judged as strictly as any; interim ones are passed over.
async fn head(stream: &mut EndpointStream, read: &mut BytesMut) -> Result<Response<()>, String> {
    // One head is bounded by `judge`; of interim ones there is no honest reason for more.
    const INTERIM: usize = 8;
    for _ in 0..INTERIM {
        let head = loop {
            match answer::judge(read, false) {
                Ok(Some((head, _))) => break head,
                Ok(None) => {}
                Err(why) => return Err(format!("it sent a malformed answer: {why}")),
            }
            more(stream, read).await.map_err(|error| format!("it closed the connection without an answer: {error}"))?;
        };
        if !head.status().is_informational() || head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(head);
        }
    }
    Err("it sent too many interim answers".into())
}

async fn more(stream: &mut EndpointStream, read: &mut BytesMut) -> io::Result<()> {
    match stream.read_buf(read).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// What a status says. Only 5xx is a word about requests: by 401 or 404 the endpoint says that it serves, and that this
/// probe is a wrong one.
fn judge(probe: &Probe, status: StatusCode) -> Verdict {
    let told = || format!("{} is answered with {}", name(probe), status.as_u16());
    match status.as_u16() {
        200..400 => Verdict::Well,
        500.. => Verdict::NotReady(told()),
        _ => Verdict::Silent(told()),
    }
}

fn is_proven(fields: &HeaderMap, key: &str) -> bool {
    let is_websocket = fields.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let proof = fields.get(SEC_WEBSOCKET_ACCEPT).map(|proof| proof.as_bytes());
    is_websocket && proof == Some(handshake::proof_of(key.as_bytes()).as_bytes())
}

/// Waits for the first frame, says goodbye, and judges by it: a gateway that has no room says so in a close frame.
async fn first_frame(stream: &mut EndpointStream, early: &[u8]) -> Verdict {
    /// A first message that is longer has begun, which is enough.
    const ENOUGH: usize = 16 << 10;
    let mut follower = Follower::new(Sender::Server);
    let mut seen = early.len();
    follower.follow(early);
    let mut piece = BytesMut::new();
    while follower.frames() == 0 && seen < ENOUGH && follower.missing().is_some() {
        piece.clear();
        if let Err(error) = more(stream, &mut piece).await {
            return Verdict::Silent(format!("it closed the WebSocket before its first frame: {error}"));
        }
        seen += piece.len();
        follower.follow(&piece);
    }
    if let Some(close) = follower.close() {
        return Verdict::NotReady(format!("it opens a WebSocket and ends it with {close}"));
    }
    if follower.missing().is_none() {
        return Verdict::Silent("what it sends on a WebSocket is no frame".into());
    }
    let mut mask = [0; 4];
    if aws_lc_rs::rand::fill(&mut mask).is_ok() {
        // Whether it hears it changes nothing.
        let _ = stream.write_all(&masked_going_away(mask)).await;
    }
    Verdict::Well
}
