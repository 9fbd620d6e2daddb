//! The tunnels that are open now on one worker, for `tidegate status`: who, since when, how much.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use crate::addr::{ClientAddr, PeerAddr};

/// What is known of an open tunnel. Its record has the rest, when it has ended.
#[derive(Debug)]
pub struct OpenTunnel {
    /// The ID of the request that opened it.
    pub id: Box<str>,
    /// The site's label.
    pub site: Arc<str>,
    /// Whom we believe is asking.
    pub client: Option<ClientAddr>,
    /// Who opened the connection.
    pub peer: PeerAddr,
    /// The endpoint's label.
    pub upstream: Arc<str>,
    /// `h1` or `h2`.
    pub over: &'static str,
    /// When the 101 or 200 was sent.
    pub opened: SystemTime,
    /// The generation of the configuration that it began with.
    pub generation: u64,
    /// Bytes so far: in, out.
    pub bytes: Cell<(u64, u64)>,
}

/// The same as plain values, for another thread.
#[derive(Clone, Debug)]
pub struct TunnelFacts {
    /// The ID of the request that opened it.
    pub id: Box<str>,
    /// The site's label.
    pub site: Arc<str>,
    /// The client, or the peer where none is known.
    pub client: String,
    /// The endpoint's label.
    pub upstream: Arc<str>,
    /// `h1` or `h2`.
    pub over: &'static str,
    /// When it was opened.
    pub opened: SystemTime,
    /// The generation that it began with.
    pub generation: u64,
    /// Bytes so far: in, out.
    pub bytes: (u64, u64),
}

/// Open tunnels by their number. A clone is the same list.
#[derive(Clone, Debug, Default)]
pub struct Tunnels(Rc<List>);

/// See `Tunnels`.
#[derive(Debug, Default)]
struct List {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<OpenTunnel>>>,
}

/// Keeps a tunnel in the list until it is dropped.
#[derive(Debug)]
#[must_use = "the tunnel is listed only as long as this lives"]
pub struct Entry {
    list: Tunnels,
    number: u64,
}

impl Tunnels {
    /// Lists a tunnel.
    pub fn enter(&self, tunnel: Rc<OpenTunnel>) -> Entry {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        self.0.open.borrow_mut().insert(number, tunnel);
        Entry { list: self.clone(), number }
    }

    /// What is open now, the oldest first.
    pub fn facts(&self) -> Vec<TunnelFacts> {
        self.0.open.borrow().values().map(|tunnel| tunnel.facts()).collect()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.list.0.open.borrow_mut().remove(&self.number);
    }
}

impl OpenTunnel {
    fn facts(&self) -> TunnelFacts {
        let client = self.client.map_or_else(|| self.peer.to_string(), |client| client.to_string());
        TunnelFacts {
            id: self.id.clone(),
            site: Arc::clone(&self.site),
            client,
            upstream: Arc::clone(&self.upstream),
            over: self.over,
            opened: self.opened,
            generation: self.generation,
            bytes: self.bytes.get(),
        }
    }
}
