//! Which host a request is for, and which site that is on this connection.

use http::header::HOST;
use http::uri::Scheme;
use http::{HeaderValue, request};

use super::Connection;
use crate::addr::{HostBuffer, split_authority};
use crate::refusal::Refusal;
use crate::site::{Found, SiteTable};

/// The host that a request is for.
pub(super) struct RequestHost {
    /// `Host` as the upstream will see it, port included.
    pub(super) value: HeaderValue,
    /// So many bytes of the value are the name.
    name_length: usize,
    /// The port, if it was named.
    pub(super) port: Option<u16>,
}

impl RequestHost {
    /// The one host of a request: `:authority`, an absolute target and `Host` must agree (RFC 9110 7.2,
    /// RFC 9112 3.2.2, RFC 9113 8.3.1), and there must be exactly one.
    pub(super) fn of(head: &request::Parts) -> Result<Self, Refusal> {
        let mut values = head.headers.get_all(HOST).iter();
        let header = values.next();
        if values.next().is_some() {
            return Err(Refusal::BadHost);
        }
        let value = match (head.uri.authority(), header) {
            (Some(authority), Some(header)) => {
                let text = header.to_str().map_err(|_| Refusal::BadHost)?;
                if !is_same_authority(authority.as_str(), text, head.uri.scheme()) {
                    return Err(Refusal::BadHost);
                }
                header.clone()
            }
            (Some(authority), None) => HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::BadHost)?,
            (None, Some(header)) => header.clone(),
            (None, None) => return Err(Refusal::BadHost),
        };
        let text = value.to_str().map_err(|_| Refusal::BadHost)?;
        let (name, port) = split_authority(text).map_err(|_| Refusal::BadHost)?;
        let name_length = name.len();
        Ok(Self { value, name_length, port })
    }

    /// The name as sent, without the port.
    pub(super) fn name(&self) -> &str {
        self.value.to_str().map_or("", |text| &text[..self.name_length])
    }

    /// The site of this host, if it may be reached on this connection.
    pub(super) fn place<'t>(&self, connection: &Connection, table: &'t SiteTable) -> Result<Found<'t>, Refusal> {
        let mut buffer = HostBuffer::new();
        let name = buffer.normalise(self.name()).map_err(|_| Refusal::BadHost)?;
        let found = table.find(name).ok_or(Refusal::UnknownHost)?;
        if table.listener_of(&connection.role) != Some(found.site.listener) {
            return Err(Refusal::UnknownHost);
        }
        if let Some(facts) = &connection.tls {
            // RFC 9110 15.5.20. The handshake proved one site's certificate and asked for one site's
            // client certificates; a request for another site must not profit from either.
            let is_same = found.site.host == facts.site_host
                && found.site.tls.as_ref().is_some_and(|tls| tls.policy == facts.policy);
            if !is_same {
                return Err(Refusal::WrongConnection);
            }
        }
        Ok(found)
    }
}

/// True when two authorities name one host and port; a port left out is the scheme's (RFC 9110 4.2.3).
fn is_same_authority(one: &str, other: &str, scheme: Option<&Scheme>) -> bool {
    if one.eq_ignore_ascii_case(other) {
        return true;
    }
    let default = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    match (split_authority(one), split_authority(other)) {
        (Ok((one, one_port)), Ok((other, other_port))) => {
            one.eq_ignore_ascii_case(other) && one_port.unwrap_or(default) == other_port.unwrap_or(default)
        }
        (Err(_), _) | (_, Err(_)) => false,
    }
}
