//! What may be written in a configuration file, and the doc of every key.
//!
//! Each key is described once, on its field: what, unit, default and its reason, danger. The
//! reader, `tidegate schema`, `config/reference.toml` and `tidegate show` all use this description.
//! Nothing here judges what a value means; `config/compile.rs` does.

mod access;
mod acme;
mod admin;
mod auth;
mod limits;
mod upstream;

pub(crate) use access::{DenyWith, Geo, Maintenance, OnUnknown};
pub(crate) use acme::{Acme, Algorithm, Challenge, Dns, Eab, Fallback, Pending, Provider};
pub(crate) use admin::Admin;
pub(crate) use auth::{Auth, AuthType, Hook, HookMode, OnError, SkipIf, Users};
pub(crate) use limits::{CountLimit, FailedAuth, LimitSet, Limits, LimitsText, Per, RateLimit};
pub(crate) use upstream::{Balance, Health, Upstream, UpstreamTls};

use super::kinds::{Certificate, HeaderText, Headers, Hsts, NetworkSource};
use super::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, choice, mirror};
use super::read::{At, Layer, Node, Reader, read_table};
use super::report::Span;
use super::values::{AnyText, Count, List, Map, Period, Timeout};

mirror! {
    /// A whole file. An included file takes the same keys.
    File, "the top level" {
        /// Version of this format. Only 1 exists.
        version: Count<0, 1_000_000> = default("1");
        /// Mail address of whoever looks after this edge: the contact of the account at a CA, which
        /// may write when something is wrong with certificates. Not needed.
        email: String = example("\"ops@example.com\"");
        /// Further files, relative to this one; `*` stands for any text in a file's name, and
        /// names that begin with a dot are passed over. They take the same keys; the same site or
        /// setting in two files is an error, so the order never matters.
        include: List<String> = default("[]");
        /// Directory of certificates and accounts, of the local certificate authority and of the
        /// kept configurations. Default: `/var/lib/tidegate` as root or as a service (the service
        /// manager's state directory, if it gives one), otherwise `tidegate` in the user's data
        /// directory. Holds private keys: 0700. Two processes may share it.
        storage: String = example("\"/var/lib/tidegate\"");
        /// Addresses that we accept on, and the deadlines of their connections.
        listen: Listen = parts;
        /// Whose word about the client is taken, and what is never taken from anybody else.
        trust: Trust = parts;
        /// Named lists of networks, for `proxies` of `[trust]`, `allow` and `deny`. Built in: `loopback`, `private`,
        /// `tailscale` (100.64.0.0/10 and fd7a:115c:a1e0::/48) and `unix` (peers of unix sockets).
        /// A file has one network a line; `#` begins a comment.
        networks: Map<NetworkSource> = example("office = [\"198.51.100.0/24\", \"2001:db8:7::/48\"]");
        /// TLS towards clients, for all sites.
        tls: Tls = parts;
        /// Certificates from a CA, for the sites with `certificate = "acme"`: ordered, renewed and
        /// kept under `storage` by the edge itself.
        acme: Acme = parts;
        /// What is logged, how, and where to.
        log: Log = parts;
        /// Status, metrics and health of the edge itself, for this machine.
        admin: Admin = parts;
        /// Limits of the process, and how it stops.
        process: Process = parts;
        /// Defaults for all sites: every key of a site that a route takes too. Lists replace,
        /// tables merge; nearest wins: built-in default, `[defaults]`, preset, site, route.
        defaults: Shared = example("timeouts.idle = \"10m\"");
        /// Named sets of limits: the keys of `limits`. Sites and routes name one in `limits`, and all that do
        /// share its budgets and counts.
        limits: Map<LimitSet> = example("api = { requests = { rate = \"20/s\", burst = 40 } }");
        /// Named groups of servers. A site or route names one in `upstream`.
        upstreams: Map<Upstream> = example("");
        /// Ways to say who asks. A site or route names those that it takes in `auth`.
        auth: Map<Auth> = example("");
        /// Services that are asked whether a request may pass. A site or route names them in `hooks`.
        hooks: Map<Hook> = example("");
        /// What each host name serves. A name is a host name, an IP address, or `*.name` (exactly
        /// one further label); it is compared in A-label lower case. An exact name wins over `*.`.
        sites: Map<Site> = example("");
    }
}

mirror! {
    /// `[listen]`.
    Listen, "[listen]" {
        /// Addresses that speak cleartext HTTP/1.1. A request there is redirected to https, unless
        /// its site says `tls = "off"`. `unix:/path` is an address too; `systemd:NAME` adopts the
        /// activated sockets with that `FileDescriptorName=`, and `systemd` alone those named
        /// `http`. An empty list closes the port.
        http: List<String> = default("[\"0.0.0.0:80\", \"[::]:80\"]");
        /// Addresses that speak TLS. As `http`; `systemd` alone adopts the sockets named `https`.
        https: List<String> = default("[\"0.0.0.0:443\", \"[::]:443\"]");
        /// Further listeners, which only the sites use that name one in `listen`. A `client_cert`
        /// here holds for all its sites that have none of their own.
        extra: List<Extra> = example("[{ name = \"admin\", https = [\"10.0.0.1:8443\"] }]");
        /// From accept to the end of the TLS handshake, absolute. Default `10s`, our choice: slower
        /// than any honest handshake, short enough to shed idle scanners.
        handshake_timeout: Timeout = default("\"10s\"");
        /// From the first byte of a request head to its last, absolute: a slow sender cannot
        /// extend it. Default `30s`, our choice: a bad mobile line still makes it.
        request_head_timeout: Timeout = default("\"30s\"");
        /// From the end of a response to the first byte of the next request. Default `75s`, our
        /// choice: longer than the minute that load balancers and browsers commonly keep.
        keep_alive_timeout: Timeout = default("\"75s\"");
        /// Exactly this path, asked for by GET or HEAD, is answered by the edge itself on every listener, whatever the
        /// `Host`: 200 while it serves, 503 while it drains, for load balancers that ask by address. Says nothing of
        /// upstreams. Default: off, because the path is taken from every site; the gateway has a `/healthz` of its own.
        health: String = example("\"/.well-known/tidegate/health\"");
    }
}

mirror! {
    /// One of `listen.extra`.
    Extra, "a listener" {
        /// What sites call it.
        name: String = required("\"admin\"");
        /// As in `[listen]`. Default: none.
        http: List<String> = example("[\"10.0.0.1:8080\"]");
        /// As in `[listen]`. Default: none.
        https: List<String> = example("[\"10.0.0.1:8443\"]");
        /// Mutual TLS for all its sites that say nothing else.
        client_cert: ClientCert = example("{ ca = \"clients.pem\" }");
    }
}

mirror! {
    /// `[trust]`.
    Trust, "[trust]" {
        /// Networks, or names of `[networks]`, whose `X-Forwarded-For`, `Forwarded`,
        /// `X-Forwarded-Proto` and `X-Request-Id` are believed. Default: nobody. Danger: whoever is
        /// in here chooses the client address that the upstream sees; list proxies of your own only.
        proxies: List<String> = default("[]");
        /// Networks, or names of `[networks]`, that must begin every connection, in cleartext and
        /// before TLS, with a preface of the PROXY protocol, version 1 or 2 (haproxy.org,
        /// proxy-protocol.txt). The address in it is then the peer: for `proxies`, for the upstream,
        /// in the log. It has to come within `handshake_timeout`; from everybody else it is refused.
        /// Default: nobody. Danger: whoever is in here chooses the client address that the upstream
        /// sees; list load balancers of your own only.
        proxy_protocol: List<String> = default("[]");
        /// Further request headers that are taken from `proxies` only and removed from everybody
        /// else's requests, such as identity headers that your upstream believes. A name that ends
        /// in `-` means all headers that begin so. The well-known ones are removed without it.
        strip: List<String> = default("[]");
        /// Identity headers that are taken from `proxies`, and from nobody else, such as those of an authenticating
        /// proxy or of Tailscale Serve in front: `tailscale-user-login`. Without this they are removed from everybody's
        /// requests. Danger: the upstream takes them for a sign-in; only a hop that replaces a client's own copies
        /// may be in `proxies` then.
        identity: List<String> = default("[]");
    }
}

mirror! {
    /// `[tls]`.
    Tls, "[tls]" {
        /// `intermediate`: TLS 1.2 with forward secrecy and TLS 1.3. `modern`: TLS 1.3 only.
        /// `nist-800-52r2`: AES-GCM and NIST curves only. Default `intermediate`: every client of
        /// the last ten years connects.
        profile: Profile = default("\"intermediate\"");
        /// A handshake for a name that no site has: `reject`, or the site whose certificate is
        /// shown (its Host is still judged). Without SNI the site named by the local address is
        /// meant, if there is one. Default `reject`: nobody learns our names from a scan.
        unknown_sni: String = default("\"reject\"");
    }
}

mirror! {
    /// `[log]`.
    Log, "[log]" {
        /// Least severe level that is written. A client's mistake is never above `debug`.
        level: Level = default("\"info\"");
        /// Form of lines and records. Default: `text` when the output is a terminal, else `json`.
        format: Format = example("\"json\"");
        /// Where the records of requests, tunnels and failed connections go: `stdout`, `off`, or a
        /// file, which SIGUSR1 reopens. A slow disk never slows a request: records are dropped and
        /// counted instead.
        access: String = default("\"stdout\"");
        /// What is masked in every output beside the built-in list, by a keyed hash: query
        /// parameters and request headers.
        redact: Redact = parts;
    }
}

mirror! {
    /// `log.redact`.
    Redact, "\"redact\"" {
        /// Names of query parameters.
        query: List<String> = default("[]");
        /// Names of request headers.
        headers: List<String> = default("[]");
    }
}

mirror! {
    /// `[process]`.
    Process, "[process]" {
        /// How long requests may take to finish at a stop. Default `30s`, our choice: longer than
        /// most answers, shorter than a service manager's patience.
        grace: Period = default("\"30s\"");
        /// How long tunnels may take after that, before each gets close 1001. Default `5s`: a
        /// WebSocket seldom ends by itself, so waiting longer only delays the stop.
        tunnel_grace: Period = default("\"5s\"");
        /// How many good configurations are kept under `storage` for `tidegate rollback`.
        history: Count<0, 1000> = default("20");
        /// Most connections and tunnels at once; those above it are reset. Default: half of what the limit of open files
        /// allows, less a reserve, because each needs one towards an upstream too. One client may hold a quarter of
        /// it, or what a site's `limits.connections.per_client` allows, if that is more.
        max_connections: Count<1, 10_000_000> = example("10000");
        /// Worker threads. Default: one a core. Read at start.
        workers: Count<1, 1024> = example("4");
    }
}

mirror! {
    /// One of `[sites]`.
    Site, "a site" {
        /// Other names of this site, redirected to it.
        aliases: List<String> = default("[]");
        /// Serve the aliases instead of redirecting them.
        serve_aliases: bool = default("false");
        /// `"acme"`: ordered from the CA of `[acme]`, the default for public names. `"local"`: issued
        /// by the local certificate authority, the default for names that no public authority
        /// can issue for (`localhost`, `.local`, `.internal`, `.home.arpa`, `.test`, names without
        /// a dot, private addresses). `{ cert = "…", key = { file = "…" } }`: PEM files, watched
        /// and swapped without a reload; `key` may also be `{ credential = "…" }`.
        certificate: Certificate = example("{ cert = \"/etc/tidegate/claw.pem\", key = { file = \"/etc/tidegate/claw.key\" } }");
        /// Keep the private key when a certificate of `"acme"` is renewed, for clients that pin it.
        /// Default `false`: a new key each time, so that a stolen one is of no use for long.
        reuse_key: bool = default("false");
        /// `"off"` serves the site in cleartext on the listener's `http` addresses. Allowed on
        /// loopback addresses only, unless `cleartext = "accepted"`.
        tls: Switch = default("\"on\"");
        /// `"accepted"` allows `tls = "off"` on other addresses too. Danger: passwords and tokens
        /// are readable on the way.
        cleartext: Cleartext = default("\"refused\"");
        /// Name of one of `listen.extra`, which then serves this site alone. Default: `[listen]`.
        listen: String = example("\"admin\"");
        /// What is offered by ALPN, in our order of preference.
        alpn: List<Alpn> = default("[\"h2\", \"http/1.1\"]");
        /// Mutual TLS with clients.
        client_cert: ClientCert = example("{ ca = \"clients.pem\", required = true, header = \"x-client-subject\" }");
        /// `"local"`: a request from this machine, for this name, without any forwarding header,
        /// goes upstream without forwarding headers, so that a person at this machine counts as
        /// local to the gateway. Allowed only for `localhost`, `*.localhost` and loopback
        /// addresses, on loopback listeners. Default `"client"`: the client's address is always
        /// forwarded.
        attribution: Attribution = default("\"client\"");
        /// What single path prefixes do. The longest prefix wins; the order never matters. A route
        /// inherits what it does not say, `upstream` included.
        routes: List<Route> = example("");
    }
    and shared: Shared
}

mirror! {
    /// One of `routes`.
    Route, "a route" {
        /// Prefix of whole segments: `/api` takes `/api` and `/api/x`, never `/apix`. A final `/`
        /// does not matter. The path is compared as it was sent, never decoded.
        path: String = required("\"/api\"");
        /// Only these methods. Default: all.
        methods: List<String> = default("[]");
        /// Only WebSockets (`true`), or only other requests (`false`). Default: both.
        upgrade: bool = example("true");
    }
    and shared: Shared
}

mirror! {
    /// What `[defaults]`, sites and routes share.
    Shared, "[defaults]" {
        /// Settings that suit one kind of upstream: `openclaw` (the gateway: Control UI, sockets,
        /// uploads), `openclaw-api` (its HTTP API alone), `websocket` (any WebSocket server),
        /// `none`. `tidegate show` prints what each sets and why.
        preset: Preset = example("\"openclaw\"");
        /// Where requests go: `127.0.0.1:18789`, `http://name:port` (`ws://` is the same),
        /// `https://name`, `unix:/path`, or a name of `[upstreams]`. Without a port, http means 80
        /// and https 443. A route's own `upstream`, `redirect` or `respond` replaces the site's.
        upstream: String = example("\"127.0.0.1:18789\"");
        /// Time limits. Above ten minutes, say `why`.
        timeouts: Timeouts = parts;
        /// Limits of size, rate and number; or the name of one of `[limits]`, as if its keys stood here.
        limits: LimitsText = parts;
        /// Networks, or names of `[networks]`, whose clients may enter; everybody else gets `deny_with`. Judged on the
        /// client, which behind a hop of `trust.proxies` is the one that it names, and before anything of the request
        /// is read but its head. Default: everybody. `unix` means processes at a unix listener that are no hop; a client
        /// whose address is not known is in no network.
        allow: List<String> = example("[\"office\", \"tailscale\"]");
        /// As `allow`: those who may not enter, even if `allow` names them.
        deny: List<String> = default("[]");
        /// Who may enter by country, of those that `allow` and `deny` let in. The client's address is judged, as there.
        geo: Geo = example("{ file = \"/var/lib/GeoIP/GeoLite2-Country.mmdb\", deny = [\"XX\"] }");
        /// What they get: 403; 404, which looks as if nothing were here; or `"drop"`: no answer, the connection is
        /// closed (over HTTP/2 the stream is reset). Default 403: honest people learn why. Behind a proxy `"drop"` becomes
        /// the proxy's own 502.
        deny_with: DenyWith = default("403");
        /// While a file exists, requests get 503, with the page for 503 in `errors`. Tunnels that stand stay.
        maintenance: Maintenance = example("{ file = \"/etc/tidegate/maintenance\", allow = [\"office\"] }");
        /// Names of `[auth]`, of which any one suffices; whoever has none of them gets 401, or is sent to log in.
        /// WebSockets are judged at their handshake, redirects and fixed answers too. An empty list in a route
        /// exempts it: for webhooks, whose senders prove themselves to the upstream. Default: nobody is asked.
        auth: List<String> = example("[\"staff\"]");
        /// Names of `[hooks]`, asked one after another whether a request may pass. Default: nobody is asked.
        hooks: List<String> = example("[\"scoring\"]");
        /// Which `Origin` may open a WebSocket or send an unsafe method (not GET, HEAD, OPTIONS,
        /// TRACE). Default: the upstream judges.
        origins: Origins = example("{ allow = [\"https://claw.example.com\"], missing = \"allow\" }");
        /// Edits of headers: `request` goes upstream, `response` to the client, in the order
        /// remove, set, add. Values may use `{client}`, `{host}`, `{request_id}`, `{tls.version}`,
        /// `{tls.cipher}`, or be `{ file = "…" }`, `{ env = "…" }`, `{ credential = "…" }`. In a
        /// route, any other name is a condition: the request must have that header with this value,
        /// or with any value for `true`. Forwarding headers are always the edge's own.
        headers: Headers = example("{ request.set = { x-edge = \"tidegate\" }, response.remove = [\"server\"] }");
        /// The `Host` that the upstream sees: `"preserve"` (the client's, port included),
        /// `"upstream"` (the server's address), or a literal. Default `preserve`: gateways compare
        /// it with `Origin`.
        host: String = default("\"preserve\"");
        /// Take the whole request body before the upstream is asked, in memory and then in an
        /// unlinked temporary file, within `limits.body`. For upstreams that give a body only
        /// seconds. Default `false`: bodies are streamed.
        collect_request: bool = default("false");
        /// As in `[upstreams]`, for an upstream without a name. A named one that says nothing of its own has this too.
        hold: Period = default("\"0s\"");
        /// As in `[upstreams]`, and as `hold` for a named one.
        health: Health = example("{ path = \"/startupz\" }");
        /// Take the route's prefix off, send it as `X-Forwarded-Prefix`, and map `Location` and
        /// cookie paths back. The upstream must know relative links only.
        strip: bool = default("false");
        /// With `strip`: what the upstream sees in place of the prefix.
        mount: String = default("\"/\"");
        /// Origins that may show this site in a frame. Removes `X-Frame-Options` and replaces
        /// `frame-ancestors` in the upstream's policy. Danger: a framed page can be clicked on
        /// unseen. Default: the upstream's own answer stands.
        embed: List<String> = default("[]");
        /// Answer with a redirect.
        redirect: Redirect = example("{ to = \"https://claw.example.com{uri}\", status = 308 }");
        /// Answer with a fixed response.
        respond: Respond = example("{ status = 200, body = \"ok\", headers = { content-type = \"text/plain\" } }");
        /// Pages in place of the edge's own answers, by status: `.html`, `.json` or `.txt` files,
        /// read when the configuration is loaded. The upstream's answers are never replaced.
        errors: Map<String> = example("{ 502 = \"pages/502.html\" }");
        /// `Strict-Transport-Security`: how long browsers must use https for this host, as a
        /// duration or `{ max_age = "365d", include_subdomains = true, preload = true }`. Default:
        /// not sent, for it cannot be taken back before it ends.
        hsts: Hsts = example("\"365d\"");
    }
}

mirror! {
    /// `timeouts`.
    Timeouts, "\"timeouts\"" {
        /// Longest pause between two pieces of a request body. Default `30s`, our choice: a phone
        /// that changes networks still makes it.
        request_body: Timeout = default("\"30s\"");
        /// Longest wait for a connection to the upstream, TLS included. Default `5s`, our choice:
        /// room for one lost SYN and its repetition.
        connect: Timeout = default("\"5s\"");
        /// Longest wait for the upstream's response head, the answer to an upgrade included. Does
        /// not bound body or tunnel. Default `120s`, our choice: a model may think for a minute.
        response_head: Timeout = default("\"120s\"");
        /// Longest silence in a tunnel or in a streaming response. Default `1h`: gateways ping
        /// every 30 s, so this only finds the dead.
        idle: Timeout = default("\"1h\"");
        /// Longest time in which the client takes nothing, or next to nothing (256 bytes for each second of it, at
        /// most 16 KiB), of what is ready for it. Default `60s`, our choice: a phone between two cells comes back in
        /// time, and a dead one frees what it holds.
        send: Timeout = default("\"60s\"");
    }
}

mirror! {
    /// `origins`.
    Origins, "\"origins\"" {
        /// Origins as browsers send them: `https://name` or `https://name:port`, no final slash.
        allow: List<String> = example("[\"https://claw.example.com\"]");
        /// Whether requests without `Origin` pass, as programs send them. `"deny"` keeps them out.
        missing: Missing = default("\"allow\"");
    }
}

mirror! {
    /// `headers.request` and `headers.response`.
    Edits, "header edits" {
        /// Fields that replace all fields of their name.
        set: Map<HeaderText> = example("{ x-edge = \"tidegate\" }");
        /// Fields that stand beside what is there.
        add: Map<HeaderText> = example("{ x-edge = \"tidegate\" }");
        /// Names to remove.
        remove: List<String> = example("[\"server\"]");
    }
}

mirror! {
    /// `redirect`.
    Redirect, "\"redirect\"" {
        /// `Location`. `{host}` is the host that was asked for, `{uri}` the path and query.
        to: String = example("\"https://claw.example.com{uri}\"");
        /// 301, 302, 303, 307 or 308. Default 308: permanent, and the method stays.
        status: Count<300, 399> = default("308");
    }
}

mirror! {
    /// `respond`.
    Respond, "\"respond\"" {
        /// Its status.
        status: Count<200, 599> = default("200");
        /// Its body.
        body: AnyText = default("\"\"");
        /// Its headers. A body without `content-type` is sent as plain text in UTF-8.
        headers: Map<String> = example("{ content-type = \"text/plain\" }");
    }
}

mirror! {
    /// `client_cert`.
    ClientCert, "\"client_cert\"" {
        /// PEM file with the authorities whose certificates are accepted.
        ca: String = required("\"clients.pem\"");
        /// PEM file with the revocation lists of those authorities, one for each, also of those between them and the
        /// clients: who is on one is refused, and who comes from an authority without one. Taken anew within seconds when
        /// the file changes; a list that is old still holds, with a warning. Connections that stand stay.
        crl: String = example("\"clients.crl.pem\"");
        /// Whether a handshake without a certificate fails.
        required: bool = default("true");
        /// Request header that carries the certificate's subject upstream. A client's own copy
        /// never passes.
        header: String = example("\"x-client-subject\"");
    }
}

choice! {
    /// `tls.profile`.
    Profile { "intermediate" => Intermediate, "modern" => Modern, "nist-800-52r2" => Nist80052r2, }
}

choice! {
    /// `log.level`.
    Level { "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug, }
}

choice! {
    /// `log.format`.
    Format { "json" => Json, "text" => Text, }
}

choice! {
    /// `tls` of a site.
    Switch { "on" => On, "off" => Off, }
}

choice! {
    /// `cleartext`.
    Cleartext { "refused" => Refused, "accepted" => Accepted, }
}

choice! {
    /// One of `alpn`.
    Alpn { "h2" => Http2, "http/1.1" => Http11, }
}

choice! {
    /// `attribution`.
    Attribution { "client" => Client, "local" => Local, }
}

choice! {
    /// `preset`.
    Preset { "openclaw" => Openclaw, "openclaw-api" => OpenclawApi, "websocket" => Websocket, "none" => None, }
}

choice! {
    /// `origins.missing`.
    Missing { "allow" => Allow, "deny" => Deny, }
}
