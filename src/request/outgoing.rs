//! The request head as it goes upstream: the gateway behind believes every word of it.

use http::header::{CONTENT_LENGTH, HOST};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, request};

use super::exchange::Exchange;
use super::host::RequestHost;
use super::target;
use super::upgrade::Upgrade;
use crate::addr::ClientAddr;
use crate::policy::{headers, trust};
use crate::refusal::Refusal;
use crate::site::policy::Attribution;
use crate::site::route::{Forward, Route, Strip};

/// The head as it goes upstream, in the name of `client`.
///
/// Order matters: what the client's `Connection` lists goes first, then what only the edge may
/// say, then the operator's edits, and the edge's own headers last, so that nothing replaces them.
pub(super) fn outgoing_head(
    exchange: &Exchange,
    head: &mut request::Parts,
    host: &RequestHost,
    client: ClientAddr,
    route: &Route,
    forward: &Forward,
    upgrade: Option<&Upgrade>,
) -> Result<request::Parts, Refusal> {
    let table = &exchange.generation.table;
    let is_local = is_local_person(exchange, head);

    let mut outgoing = Request::new(()).into_parts().0;
    outgoing.method = head.method.clone();
    outgoing.uri = upstream_uri(&head.uri, forward.strip.as_ref())?;
    outgoing.headers = std::mem::take(&mut head.headers);
    let fields = &mut outgoing.headers;
    headers::clean_request(fields, &table.edge.trust, exchange.is_peer_trusted(), &table.identity_headers);
    fields.remove(CONTENT_LENGTH);
    headers::join_cookies(fields);
    fields.insert(HOST, host.value.clone());
    headers::edit(fields, &route.headers.request, &exchange.values());
    if let Some(upgrade) = upgrade {
        outgoing.method = Method::GET;
        upgrade.write(fields);
    }
    exchange.write_client_certificate(fields);
    if let Some(admission) = &exchange.admission {
        admission.write(fields);
    }
    let edge = headers::Edge {
        client: (!is_local).then_some(client),
        proto: exchange.scheme(),
        host: &host.value,
        port: host.port.unwrap_or_else(|| exchange.default_port()),
        request_id: &exchange.id,
        prefix: forward.strip.as_ref().map(|strip| &*strip.prefix),
    };
    headers::write_edge(fields, &edge);
    Ok(outgoing)
}

/// The one exception (`attribution = "local"`): a person at this machine, on a local name, who
/// sends no forwarding header and comes through no proxy. Anything else is told to the gateway as it is.
fn is_local_person(exchange: &Exchange, head: &request::Parts) -> bool {
    exchange.site.as_ref().is_some_and(|site| site.attribution == Attribution::Local)
        // Who comes with a preface came through a proxy, whatever address it names, our own included.
        && exchange.connection.via.is_none()
        && exchange.connection.peer.ip().is_some_and(|ip| ip.is_loopback())
        && exchange.connection.role.address.is_loopback()
        && !trust::has_forwarding_header(&head.headers)
}

/// The target in origin-form, byte for byte; with `strip`, the mount in place of the prefix.
fn upstream_uri(uri: &Uri, strip: Option<&Strip>) -> Result<Uri, Refusal> {
    let target = target(uri);
    let Some(strip) = strip else {
        let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        return Ok(Uri::from(target));
    };
    let rest = target.strip_prefix(&*strip.prefix).unwrap_or(target);
    let slash = if rest.starts_with('/') { "" } else { "/" };
    format!("{}{slash}{rest}", strip.mount).parse().map_err(|_| Refusal::AmbiguousPath)
}
