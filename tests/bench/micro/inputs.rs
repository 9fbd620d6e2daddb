//! What the benchmarks work on: a configuration, heads as browsers and endpoints send them, chains of hops.
//!
//! Names and addresses are those that are set aside for examples.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, request};
use tidegate::addr::{ClientAddr, PeerAddr};
use tidegate::config;
use tidegate::policy::headers::Values;
use tidegate::site::route::Route;
use tidegate::site::{Site, SiteTable};

pub(super) const GATEWAY: &str = "claw.example.test";
pub(super) const OTHER_SITES: usize = 128;
pub(super) const ID: &str = "01935f7a-64c2-7d3e-9b0a-5f2c1e8d4a67";
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const FIVE_HOPS: &str = "203.0.113.9, 10.0.0.4, 10.0.7.5:4711, fd00::7, 192.168.7.1";
pub(super) const FIVE_ELEMENTS: &str = "for=203.0.113.9;proto=https, for=10.0.0.4, for=\"10.0.7.5:4711\", for=\"[fd00::7]\", \
                             for=192.168.7.1;proto=http;by=10.0.0.1";
pub(super) const BROWSER_ACCEPT: &str =
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

/// A configuration as they are: one gateway with routes and edits, and other sites beside it.
pub(super) fn table() -> SiteTable {
    let mut text = String::from(
        r#"
        [trust]
        proxies = ["loopback", "private"]
        strip = ["x-auth-", "x-scope"]
        [sites."claw.example.test"]
        upstream = "127.0.0.1:18789"
        origins = { allow = ["https://dash.example.test", "https://claw.example.test"], missing = "deny" }
        headers.request.set = { x-edge = "tidegate for {client}" }
        headers.response = { remove = ["server"], set = { x-frame-options = "DENY" } }
        [sites."*.apps.example.test"]
        upstream = "127.0.0.1:3001"
        "#,
    );
    for path in ["/v1/chat", "/v1", "/api", "/hooks", "/files", "/media", "/admin", "/metrics", "/docs", "/old"] {
        // Writing to a string cannot fail.
        let _ = write!(text, "[[sites.\"{GATEWAY}\".routes]]\npath = \"{path}\"\nupstream = \"127.0.0.1:3000\"\n");
    }
    for number in 0..OTHER_SITES {
        let _ = write!(text, "[sites.\"shop-{number}.example.test\"]\nupstream = \"127.0.0.1:3002\"\n");
    }
    config::compile_text("micro.toml", &text).map_err(|report| report.to_text(false)).expect("no faults").table
}

pub(super) fn gateway(table: &SiteTable) -> &Site {
    table.find(GATEWAY).map(|found| &**found.site).expect("in the table's text")
}

/// The site's own settings, which stand last.
pub(super) fn gateway_route(table: &SiteTable) -> &Route {
    gateway(table).routes.iter().last().expect("every site has a route")
}

pub(super) fn values<'a>(client: Option<ClientAddr>, host: &'a HeaderValue, request_id: &'a HeaderValue) -> Values<'a> {
    Values { client, host, request_id, tls_version: "1.3", tls_cipher: "AES_128_GCM", uri: "/chat?session=main" }
}

pub(super) fn peer_of(text: &str) -> PeerAddr {
    PeerAddr::from_socket(text.parse::<SocketAddr>().expect("an address"))
}

pub(super) fn request_parts(target: &str) -> request::Parts {
    Request::builder().uri(target).body(()).expect("a request").into_parts().0
}

pub(super) fn browser_fields() -> HeaderMap {
    fields_of(BROWSER_HEAD)
}

/// The fields of a head as hyper makes them: values are parts of one buffer.
pub(super) fn fields_of(head: &'static str) -> HeaderMap {
    let buffer = Bytes::copy_from_slice(head.as_bytes());
    let mut fields = HeaderMap::new();
    for line in head.lines().skip(1).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").expect("a field line");
        let value = HeaderValue::from_maybe_shared(buffer.slice_ref(&buffer[offset(head, value)..][..value.len()]));
        fields.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.expect("a value"));
    }
    fields
}

fn offset(whole: &str, part: &str) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// A head as browsers send it over HTTP/1.1, some 900 bytes.
pub(super) const BROWSER_HEAD: &str = "GET /chat?session=main HTTP/1.1\r\n\
    Host: claw.example.test\r\n\
    Connection: keep-alive\r\n\
    Cache-Control: max-age=0\r\n\
    Sec-CH-UA: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n\
    Sec-CH-UA-Mobile: ?0\r\n\
    Sec-CH-UA-Platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-User: ?1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Referer: https://claw.example.test/sessions\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: theme=dark; session=8f1f5a0c9f2e4b7d8c3a6e5d4b2c1a09\r\n\
    \r\n";

/// What a proxy has to remove: a chain that nobody believes, an identity, a named hop-by-hop field, crumbs.
pub(super) const ODD_HEAD: &str = "GET / HTTP/1.1\r\n\
    Connection: x-trace, te\r\n\
    X-Trace: 1\r\n\
    TE: gzip\r\n\
    X-Forwarded-For: 127.0.0.1\r\n\
    X-Real-IP: 127.0.0.1\r\n\
    Forwarded: for=127.0.0.1;proto=https\r\n\
    X-Auth-Request-User: admin\r\n\
    X_Forwarded_For: 127.0.0.1\r\n\
    Cookie: lang=en\r\n\
    Cookie: tz=utc\r\n\
    \r\n";

/// A page's response head as an endpoint sends it.
pub(super) const PAGE_HEAD: &str = "HTTP/1.1 200 OK\r\n\
    Date: Fri, 20 Nov 2026 13:02:31 GMT\r\n\
    Server: example\r\n\
    Connection: keep-alive\r\n\
    Keep-Alive: timeout=5\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 18344\r\n\
    Cache-Control: no-cache\r\n\
    ETag: \"4f2a9c\"\r\n\
    Vary: Accept-Encoding\r\n\
    Content-Security-Policy: default-src 'self'; img-src 'self' data:; connect-src 'self' wss:\r\n\
    Referrer-Policy: no-referrer\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Set-Cookie: session=8f1f5a0c; Path=/; HttpOnly; Secure\r\n\
    Set-Cookie: theme=dark; Path=/\r\n\
    \r\n";
