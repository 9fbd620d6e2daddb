//! The harness: the real program, upstream doubles and clients that show every byte.
//!
//! Nothing here sleeps, and nothing has a fixed port or a shared file. A time limit is only the bound
//! after which a test has failed; waiting is always for an event of the edge or of a peer.

mod edge;
mod http2;
mod mmdb;
mod tls;
mod upstream;
mod websocket;
mod wire;

use std::future::Future;
use std::time::Duration;

pub(crate) use edge::{Edge, Run, run_in};
pub(crate) use http2::{Frame, H2, H2Reply, Outcome, RawH2, field, read as read_h2};
pub(crate) use mmdb::mmdb;
pub(crate) use tls::{ClientTls, SelfSigned, TestCa, handshake_at};
pub(crate) use upstream::{Answer, Scripted, Seen, Upstream, UpstreamWire};
pub(crate) use websocket::{
    Socket, WebSocketUpstream, accept_key, connect_request, frame, masked_frame, upgrade_request,
};
pub(crate) use wire::{Headers as WireHeaders, Io, Reply, Wire, split_lines, text as wire_text};

/// After this long an expectation has failed. Far above what any step here takes on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(10);

/// Waits for `future`, or fails the test, naming what did not happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(BOUND, future).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen within {BOUND:?}: {what}"),
    }
}

/// A configuration of one site with this host and upstream.
pub(crate) fn site(host: &str, upstream: impl std::fmt::Display) -> String {
    format!("[sites.\"{host}\"]\nupstream = \"{upstream}\"\n")
}

/// A configuration of one site with further lines of its table.
pub(crate) fn site_with(host: &str, upstream: impl std::fmt::Display, lines: &str) -> String {
    format!("{}{lines}\n", site(host, upstream))
}

/// Bytes that repeat in no short period, so that a lost or doubled piece shows.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
