//! What may be written in `limits` and in `[limits.NAME]`: sizes, rates, counts, and the lockout after failed logins.

use http::HeaderName;
use toml::de::DeValue;

use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, mirror};
use crate::config::read::{At, Layer, Node, Reader, quoted, read_table};
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::units::{ByteRate, ByteSize, Rate};
use crate::config::values::{Count, Period};

mirror! {
    /// `limits`.
    Limits, "\"limits\"" {
        /// Largest request body; 413 above it. Default `20MiB`: the largest body that common
        /// gateways take.
        body: ByteSize = default("\"20MiB\"");
        /// Slowest request body, as bytes a second in the long run; 408 below it. It may be behind by
        /// `timeouts.request_body` in all: a pause is paid back by what comes faster. Holds for bodies whose
        /// length is announced, and where `collect_request` is on; others may have little to say for hours.
        /// Default `256B/s`, our choice: a tenth of the slowest line in use, and whoever sends a byte now and
        /// then to keep a place is gone after half a minute. `0B/s` for any.
        body_rate: ByteRate = default("\"256B/s\"");
        /// Largest request head: target, names and values; 431 above it. Default `32KiB`: twice
        /// what Node takes, so that the upstream's own limit is the one that is met.
        header_bytes: ByteSize = default("\"32KiB\"");
        /// Most request header fields, each piece of a cookie counted; 431 above it. Default 100:
        /// no honest client comes near.
        headers: Count<1, 1000> = default("100");
        /// How often clients may ask; 429 above it, before a byte of the body is read and before the
        /// upstream is asked. Default: no limit, for only you know your clients. In `[limits.NAME]` all that
        /// name it share one budget; written in a site or route it is that table's own, and in `[defaults]`
        /// each site that inherits it has its own. A reload keeps what was counted as long as place and
        /// terms stay. 100,000 keys at least are remembered; above that the one used longest ago is forgotten,
        /// which gives it its whole budget back and takes nothing from anybody else.
        requests: RateLimit = example("{ rate = \"20/s\", burst = 40 }");
        /// As `requests`, for new tunnels (WebSockets) alone, before the upstream is asked.
        handshakes: RateLimit = example("{ rate = \"10/m\", burst = 20 }");
        /// How many tunnels may be open, from the request for one until it has ended: of one client (429
        /// above it), and in all (503). Default: as many as connections. Shared as `requests` are; a reload
        /// that changes the numbers goes on counting.
        tunnels: CountLimit = example("{ per_client = 20, total = 2000 }");
        /// How many connections may be open to a site: of one client, and in all. Counted by the peer, before any
        /// header is read, once the name in the handshake has told the site (in cleartext with the first
        /// request); those above it are reset. Hops of `trust.proxies` bring many clients and are no client;
        /// nor are loopback and unix peers. Default: for the whole process, one address may hold a quarter of
        /// `process.max_connections`, so that no single one takes all; a site that allows more raises that.
        connections: CountLimit = example("{ per_client = 100, total = 5000 }");
        /// Who fails to log in too often gets 429 for a while, on all routes that share the rule. A failure is an answer
        /// 401 or 403 of the upstream to a request that shows a credential (`Authorization`, a cookie, `X-OpenClaw-Token`) or
        /// could have one in its query or body, wrong credentials at the edge's own `auth`, and a WebSocket that the upstream closes
        /// with 1008 within 15 s, unless it says that the device waits to be paired or that the origin is not allowed.
        /// A success erases nothing: between guesses, an attacker could log in to an account of its own. The gateway's
        /// `proxy_attribution_required` is no failure of the client. Default: off.
        failed_auth: FailedAuth = example("{ max = 10, window = \"10m\", lockout = \"15m\", global_max = 200 }");
    }
}

mirror! {
    /// `requests` and `handshakes`.
    RateLimit, "a rate" {
        /// How many in how long: `"20/s"`, `"10/m"`, `"500/h"`, `"100/10m"`.
        rate: Rate = example("\"20/s\"");
        /// How many at once, before they have to come evenly spread. Default: as many as `rate` names, so that
        /// whoever reads `"10/m"` finds that ten in a minute pass, however they come. Less spreads them; a page that
        /// loads forty files at once needs forty.
        burst: Count<1, 1_000_000> = example("40");
        /// Who has a budget of its own: `"client"` (an IPv4 address, or an IPv6 network of 64 bits, as one customer
        /// has), `"header:NAME"` (each value of that header, kept as a keyed hash; a request without it counts
        /// as its client) or `"site"`. Clients whose address is not known share one budget. Danger: who may send any
        /// value of a header has a fresh budget for each; name only headers that something before the limit vouches for.
        per: Per = default("\"client\"");
    }
}

mirror! {
    /// `tunnels` and `connections`.
    CountLimit, "a count" {
        /// Most of one client: an IPv4 address, or an IPv6 network of 64 bits.
        per_client: Count<1, 10_000_000> = example("20");
        /// Most in all.
        total: Count<1, 10_000_000> = example("2000");
    }
}

mirror! {
    /// `failed_auth`.
    FailedAuth, "\"failed_auth\"" {
        /// As many failures of one client lock it out. Default 10, our choice: a person with an old password in three
        /// places stays below it, and ten guesses in a quarter of an hour find no password worth the name.
        max: Count<1, 100_000> = default("10");
        /// Within this time from the first of them. Then the count begins anew.
        window: Period = default("\"10m\"");
        /// For how long. Asking while locked out does not make it longer. Default `15m`, our choice: a thousand guesses
        /// a day at most, and a person who erred can wait for it.
        lockout: Period = default("\"15m\"");
        /// After more failures than these within the window, of all clients together, somebody guesses from many
        /// addresses: until it calms, the first failure of a client locks it out. Clients that do not fail notice nothing.
        /// Default: off.
        global_max: Count<1, 10_000_000> = example("200");
    }
}

/// `limits` of `[defaults]`, a site or a route: its own keys, or the name of a set.
#[derive(Clone, Debug)]
pub(crate) enum LimitsText {
    /// `[limits.NAME]`.
    Name(String),
    /// Written here.
    Here(Box<Limits>),
}

impl Value for LimitsText {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(_) => String::read(node, reader).map(Self::Name),
            DeValue::Table(_) => read_table(node, reader).map(|limits| Self::Here(Box::new(limits))),
            _ => reader.wrong_kind(
                node,
                "a table, or the name of one of [limits]",
                "limits = { requests = { rate = \"20/s\" } }",
            ),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Text, Limits::shape()])
    }

    fn fill(&mut self, far: &Self) {
        // Names are replaced by what they name before layers become one (`compile/limits.rs`).
        if let (Self::Here(near), Self::Here(far)) = (self, far) {
            Mirror::inherit(&mut **near, far);
        }
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        match self {
            Self::Name(_) => out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" }),
            Self::Here(limits) => Mirror::settings(&**limits, path, out),
        }
    }

    fn list_absent(path: &str, _sample: Sample, out: &mut Vec<Listed>) {
        Mirror::settings(&Limits::default(), path, out);
    }
}

/// One of `[limits]`. What it does not say comes from farther layers, as if its keys stood where it is named.
#[derive(Clone, Debug)]
pub(crate) struct LimitSet(pub(crate) Limits);

impl Value for LimitSet {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        read_table(node, reader).map(Self)
    }

    fn shape() -> Shape {
        Limits::shape()
    }

    fn list(&self, path: &str, _span: &Span, _layer: Layer, out: &mut Vec<Listed>) {
        let mut listed = Vec::new();
        Mirror::settings(&self.0, path, &mut listed);
        out.extend(listed.into_iter().filter(|setting| setting.said.is_some()));
    }
}

/// `per`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Per {
    /// `client`.
    Client,
    /// `header:NAME`.
    Header(HeaderName),
    /// `site`.
    Site,
}

impl Value for Per {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        const CHOICES: &str = "write \"client\", \"header:NAME\" or \"site\"";
        let text = match node.value.get_ref() {
            DeValue::String(text) => text,
            _ => return reader.wrong_kind(node, "a text", "\"client\", \"header:NAME\" or \"site\""),
        };
        let name = match &**text {
            "client" => return Some(Self::Client),
            "site" => return Some(Self::Site),
            other => other.strip_prefix("header:"),
        };
        // Names are compared without case (RFC 9110 5.1).
        if let Some(name) = name.and_then(|name| name.trim().to_ascii_lowercase().parse().ok()) {
            return Some(Self::Header(name));
        }
        let span = reader.span(node);
        let message = format!("\"per\" in {} cannot be {}", reader.place(), quoted([&**text]));
        let label = if name.is_some() { "not the name of a header" } else { "" };
        let mut diagnostic = Diagnostic::at(Code::Choice, &span, message).label(label).help(CHOICES);
        if text.parse::<HeaderName>().is_ok() && text.contains('-') {
            diagnostic = diagnostic.help(format!("for that header: \"header:{text}\""));
        }
        reader.report.push(diagnostic);
        None
    }

    fn shape() -> Shape {
        Shape::Text
    }
}
