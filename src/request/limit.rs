//! The limits of a route on one request, and the places that a connection takes among those that are counted.
//!
//! Judged on the client, never on the peer, but for connections: those are counted before a header is read.

use std::cell::OnceCell;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, Method, Uri};

use super::exchange::Exchange;
use crate::addr::PeerAddr;
use crate::policy::count::Hold;
use crate::policy::limits::{Asks, Limits, key_of_connection};
use crate::refusal::{Excess, Refusal};
use crate::site::limit::Limiters;
use crate::site::{Site, SiteTable};

/// Lets a request pass, or says which limit it has reached. A tunnel takes its place here.
///
/// # Errors
/// With the limit.
pub(super) fn admit(
    exchange: &mut Exchange,
    limiters: &Limiters,
    fields: &HeaderMap,
    is_tunnel: bool,
) -> Result<(), Refusal> {
    let limits = Arc::clone(&exchange.parts.limits);
    let guest = exchange.guest();
    // First, so that who is locked out uses up no budget that it shares with others.
    if let Some(rule) = &limiters.failed_auth {
        limits.admit(rule, guest)?;
        exchange.may_guess = may_guess(&exchange.notes.method, &exchange.notes.uri, fields);
    }
    let site = exchange.site.as_ref().map_or("", |site| &*site.label);
    let asks = Asks { guest, site, fields };
    if let Some(rule) = &limiters.requests {
        limits.take(rule, Excess::Requests, &asks)?;
    }
    if !is_tunnel {
        return Ok(());
    }
    if let Some(rule) = &limiters.handshakes {
        limits.take(rule, Excess::Handshakes, &asks)?;
    }
    if let Some(rule) = &limiters.tunnels {
        exchange.tunnel_place = Some(limits.enter_tunnel(rule, guest)?);
    }
    Ok(())
}

/// Whether a 401 could mean that a credential was wrong. A page that asks for its parts before anybody has signed in
/// shows none, and gets a dozen of them.
fn may_guess(method: &Method, uri: &Uri, fields: &HeaderMap) -> bool {
    let shows_one = [AUTHORIZATION, COOKIE, X_OPENCLAW_TOKEN].iter().any(|name| fields.contains_key(name));
    // Others come in the query, or in a body.
    shows_one || uri.query().is_some() || !matches!(*method, Method::GET | Method::HEAD)
}

/// A credential of the gateway's hooks.
const X_OPENCLAW_TOKEN: HeaderName = HeaderName::from_static("x-openclaw-token");

/// The places of one connection. A tunnel that it became keeps them.
#[derive(Debug, Default)]
pub struct Places {
    _client: Option<Hold>,
    site: OnceCell<SitePlaces>,
}

/// Among those of its rule, and of its site in all.
type SitePlaces = (Option<Hold>, Option<Hold>);

impl Places {
    /// With the place that its client has taken for it, if it had to.
    pub fn new(client: Option<Hold>) -> Self {
        Self { _client: client, site: OnceCell::new() }
    }

    /// Takes the places of a site, once: a connection belongs to the first one that is known of it.
    ///
    /// # Errors
    /// When the site has none left.
    pub fn enter_site(&self, limits: &Limits, table: &SiteTable, site: &Site, peer: PeerAddr) -> Result<(), Refusal> {
        if self.site.get().is_some() {
            return Ok(());
        }
        let place = match &site.connections {
            Some(rule) => Some(limits.enter_connection(rule, key_of_connection(table, peer))?),
            None => None,
        };
        // It was empty above, and nothing else runs in between.
        let _ = self.site.set((place, limits.count_connection(&site.label)));
        Ok(())
    }
}
