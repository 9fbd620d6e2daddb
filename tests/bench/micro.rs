//! The hot pure functions of a request, one benchmark each, for counting instructions.
//!
//! `tests/bench/instructions` runs each benchmark in a process of its own under callgrind and compares the
//! counts with a committed baseline. Only what happens inside `counted` is counted: inputs are made and
//! dropped outside of it, and so is the first round, which shows that the function does its work and
//! lets threads and libraries make what they make once. No time is taken here.
//!
//!     micro              the names, one a line; every benchmark is run once
//!     micro NAME N       N counted rounds of one benchmark

#[path = "micro/inputs.rs"]
mod inputs;

use std::cell::Cell;
use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use http::header::{CONNECTION, COOKIE, FORWARDED, HOST, ORIGIN, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, request};
use tidegate::access_log::{AccessLog, Amounts, RequestRecord, Responder, Timings, TlsRecord, TunnelRecord};
use tidegate::addr::{ClientAddr, HostBuffer, HostName, split_authority};
use tidegate::forward::tunnel::frames::{self, Sender};
use tidegate::framing::rest::Piece;
use tidegate::framing::{self, Body, Follower};
use tidegate::metrics::sums::Sums;
use tidegate::metrics::{Ended, Metrics};
use tidegate::policy::headers::{self, Edge};
use tidegate::policy::{self, trust};
use tidegate::refusal::{self, Asker, Failure, Refusal};
use tidegate::site::{AccessOutput, LogFormat, LogPolicy, Site, SiteTable};

use inputs::{
    BROWSER_ACCEPT, BROWSER_HEAD, FIVE_ELEMENTS, FIVE_HOPS, GATEWAY, ID, ODD_HEAD, OTHER_SITES, PAGE_HEAD,
    X_FORWARDED_FOR, browser_fields, fields_of, gateway, gateway_route, peer_of, request_parts, table, values,
};

/// Every benchmark by its name: the function's place first, then its input.
const BENCHMARKS: &[Benchmark] = &[
    ("host.parse", host_parse),
    ("host.normalise", host_normalise),
    ("site.exact", site_exact),
    ("site.wildcard", site_wildcard),
    ("route.first", |rounds| route(rounds, "/v1/chat/completions", "/v1/chat")),
    ("route.last", |rounds| route(rounds, "/assets/index-4f2a9c.js?v=3", "")),
    ("route.encoded", |rounds| route(rounds, "/files/a%20b;v=1//c", "/files")),
    ("admission.head", admission_head),
    ("client.direct", |rounds| client(rounds, "198.51.100.7:50122", None, 0)),
    ("client.one-hop", |rounds| client(rounds, "127.0.0.1:50122", Some((X_FORWARDED_FOR, "203.0.113.9")), 1)),
    ("client.five-hops", |rounds| client(rounds, "127.0.0.1:50122", Some((X_FORWARDED_FOR, FIVE_HOPS)), 5)),
    ("client.forwarded", |rounds| client(rounds, "127.0.0.1:50122", Some((FORWARDED, FIVE_ELEMENTS)), 5)),
    ("request-id.fresh", request_id_fresh),
    ("request-id.taken", request_id_taken),
    ("request-head.browser", |rounds| request_head(rounds, "")),
    ("request-head.odd", |rounds| request_head(rounds, ODD_HEAD)),
    ("response-head.page", response_head),
    ("framing.head", framing_head),
    ("framing.chunks", framing_chunks),
    ("frames.small", frames_small),
    ("metrics.request", metrics_request),
    ("metrics.refusal", metrics_refusal),
    ("record.request", |rounds| record_request(rounds, "/assets/index-4f2a9c.js", "/assets/index-4f2a9c.js\"")),
    ("record.secret", |rounds| record_request(rounds, "/chat?session=main&token=4f1e8a77c2", "/chat?session=~")),
    ("record.tunnel", record_tunnel),
    ("refusal.html", |rounds| refusal_answer(rounds, BROWSER_ACCEPT, "<!doctype html>")),
    ("refusal.json", |rounds| refusal_answer(rounds, "application/json", "{\"error\":{")),
    ("refusal.text", |rounds| refusal_answer(rounds, "*/*", "502: ")),
];

/// A name, and what runs under it.
type Benchmark = (&'static str, fn(Rounds));

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(name) = arguments.next() else {
        let mut out = io::stdout();
        for (name, benchmark) in BENCHMARKS {
            benchmark(Rounds(1));
            // Whoever closed the pipe has seen enough.
            let _ = writeln!(out, "{name}");
        }
        return ExitCode::SUCCESS;
    };
    let benchmark = BENCHMARKS.iter().find(|(known, _)| *known == name);
    let rounds = arguments.next().and_then(|rounds| rounds.parse().ok());
    match (benchmark, rounds) {
        (Some((_, benchmark)), Some(rounds)) => benchmark(Rounds(rounds)),
        (None, _) | (_, None) => {
            let _ = writeln!(io::stderr(), "usage: micro [NAME ROUNDS]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// How many rounds are counted.
#[derive(Clone, Copy)]
struct Rounds(u32);

impl Rounds {
    /// Runs `work` on fresh inputs. `check` sees the first one afterwards, and fails when the work was not done.
    fn count<I, O>(self, prepare: impl Fn() -> I, work: impl Fn(&mut I) -> O, check: impl FnOnce(&I, &O)) {
        let mut first = prepare();
        let output = work(&mut first);
        check(&first, &output);
        for _ in 0..self.0 {
            let mut input = black_box(prepare());
            let mut output = None;
            counted(&mut || output = Some(work(&mut input)));
            black_box((&input, &output));
        }
    }
}

/// callgrind counts from its entry to its return; the driver knows it by its name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    // Something to do after the call, or it would become a jump out of this function.
    black_box(work);
}

// Host names and sites.

fn host_parse(rounds: Rounds) {
    let check = |_: &&str, name: &Option<HostName>| {
        assert_eq!(name.as_ref().map(HostName::as_str), Some("claw.example.test"), "a name in its normal form");
    };
    rounds.count(|| "Claw.Example.test", |text| HostName::parse(text).ok(), check);
}

fn host_normalise(rounds: Rounds) {
    let work = |text: &mut &str| {
        let (name, port) = split_authority(text).ok()?;
        let mut buffer = HostBuffer::new();
        black_box(buffer.normalise(name).ok()?);
        port
    };
    rounds.count(|| "Claw.Example.test:8443", work, |_, port| assert_eq!(*port, Some(8443), "a name with a port"));
}

/// Each look-up asks for another name, because the seed of the table's hashes is random: what one name meets by
/// chance is lost in the mean.
fn site_exact(rounds: Rounds) {
    let table = table();
    let names: Vec<String> = (0..OTHER_SITES).map(|number| format!("shop-{number}.example.test")).collect();
    let next = in_turn(&names);
    rounds.count(
        next,
        |name| found(&table, name),
        |name, site| {
            assert_eq!(site.map(|site| &*site.label), Some(&***name), "the site of this name");
        },
    );
}

fn site_wildcard(rounds: Rounds) {
    let table = table();
    let names: Vec<String> = (0..OTHER_SITES).map(|number| format!("tenant-{number}.apps.example.test")).collect();
    let next = in_turn(&names);
    rounds.count(
        next,
        |name| found(&table, name),
        |_, site| {
            assert_eq!(site.map(|site| &*site.label), Some("*.apps.example.test"), "the wildcard's site");
        },
    );
}

fn found<'t>(table: &'t SiteTable, name: &str) -> Option<&'t Site> {
    table.find(name).map(|found| &**found.site)
}

fn in_turn<'n>(names: &'n [String]) -> impl Fn() -> &'n String {
    let next = Cell::new(0);
    move || {
        let at = next.replace((next.get() + 1) % names.len());
        &names[at]
    }
}

// What a head decides.

/// Takes a target through the routes of the gateway's site; `prefix` is that of the route it must find.
fn route(rounds: Rounds, target: &str, prefix: &str) {
    let table = table();
    let site = gateway(&table);
    let head = request_parts(target);
    rounds.count(
        || &head,
        |head| site.routes.find(head, false).ok(),
        |_, route| {
            assert_eq!(route.map(|route| &*route.condition.prefix), Some(prefix), "the route of {target}");
        },
    );
}

fn admission_head(rounds: Rounds) {
    let table = table();
    let route = gateway_route(&table);
    let mut head = request_parts("/rpc");
    head.method = Method::POST;
    head.headers = browser_fields();
    head.headers.insert(ORIGIN, HeaderValue::from_static("https://claw.example.test"));
    let origins = route.origins.as_ref().expect("set in the table's text");
    let work = |head: &mut &request::Parts| {
        policy::check_head(head, &route.limits).is_ok() && policy::origin_allowed(origins, head, false)
    };
    rounds.count(|| &head, work, |_, is_admitted| assert!(is_admitted, "a small head of an allowed origin"));
}

/// Resolves a client from the peer and the fields of a browser, and perhaps a chain.
fn client(rounds: Rounds, peer: &str, chain: Option<(HeaderName, &str)>, hops: u32) {
    let table = table();
    let peer = peer_of(peer);
    let mut fields = browser_fields();
    if let Some((name, value)) = chain {
        fields.insert(name, value.parse().expect("a value"));
    }
    rounds.count(
        || &fields,
        |fields| trust::resolve(&table.edge.trust, peer, fields),
        |_, client| {
            assert_eq!(client.map(|client| client.hops), Some(hops), "how many hops are believed");
        },
    );
}

fn request_id_fresh(rounds: Rounds) {
    let fields = browser_fields();
    rounds.count(
        || &fields,
        |fields| headers::request_id(fields, false),
        |_, id| {
            assert_eq!(id.as_bytes().get(14), Some(&b'7'), "a UUID of version 7");
        },
    );
}

fn request_id_taken(rounds: Rounds) {
    let mut fields = browser_fields();
    fields.insert(&headers::X_REQUEST_ID, HeaderValue::from_static(ID));
    rounds.count(|| &fields, |fields| headers::request_id(fields, true), |_, id| assert_eq!(id, ID, "the hop's own"));
}

// Heads on their way.

/// From the head that a client sent to the one that goes upstream, as `request/outgoing.rs` does it.
fn request_head(rounds: Rounds, more: &'static str) {
    let table = table();
    let route = gateway_route(&table);
    let trust = &table.edge.trust;
    let (id, host) = (HeaderValue::from_static(ID), HeaderValue::from_static(GATEWAY));
    let peer = peer_of("198.51.100.7:50122");
    let client = peer.ip().map(ClientAddr::new);
    let prepare = || {
        let mut fields = browser_fields();
        for (name, value) in &fields_of(more) {
            fields.append(name, value.clone());
        }
        fields
    };
    let work = |fields: &mut HeaderMap| {
        let client = trust::resolve(trust, peer, fields).map(|client| client.addr);
        headers::clean_request(fields, trust, false, &table.identity_headers);
        headers::join_cookies(fields);
        fields.insert(HOST, host.clone());
        headers::edit(fields, &route.headers.request, &values(client, &host, &id));
        let edge = Edge { client, proto: "https", host: &host, port: 443, request_id: &id, prefix: None };
        headers::write_edge(fields, &edge);
    };
    rounds.count(prepare, work, |fields, ()| {
        let is_refused = |name: &HeaderName| matches!(name.as_str(), "connection" | "x-trace" | "x-auth-request-user");
        assert!(!fields.keys().any(is_refused), "what does not pass is removed");
        assert_eq!(fields.get_all(COOKIE).iter().count(), 1, "crumbs are joined");
        assert_eq!(fields["x-edge"], "tidegate for 198.51.100.7", "the operator's edit");
        let forwarded = fields.get(X_FORWARDED_FOR).and_then(|value| value.to_str().ok());
        assert_eq!(forwarded, client.map(|client| client.to_string()).as_deref(), "our word alone");
    });
}

/// From an endpoint's response head to the one that the client gets.
fn response_head(rounds: Rounds) {
    let table = table();
    let edits = &gateway_route(&table).headers.response;
    let (id, host) = (HeaderValue::from_static(ID), HeaderValue::from_static(GATEWAY));
    let work = |fields: &mut HeaderMap| {
        headers::clean_response(fields);
        headers::edit(fields, edits, &values(None, &host, &id));
    };
    rounds.count(
        || fields_of(PAGE_HEAD),
        work,
        |fields, ()| {
            assert!(!fields.contains_key(CONNECTION) && !fields.contains_key("keep-alive"), "of the connection only");
            assert!(!fields.contains_key("server"), "the operator's edit");
            assert_eq!(fields.get_all("set-cookie").iter().count(), 2, "cookies stay several");
        },
    );
}

// Framing.

fn framing_head(rounds: Rounds) {
    rounds.count(
        || (Follower::new(framing::Limits::default()), BytesMut::from(BROWSER_HEAD)),
        |(follower, read)| {
            let (head, text) = follower.head(black_box(read)).ok().flatten().expect("the whole head passes");
            framing::to_request(&head, &text).expect("it is a request")
        },
        |(follower, read), request| {
            assert!(follower.is_complete() && read.is_empty(), "it has no body");
            assert!(request.headers().len() >= 8 && request.headers().contains_key(COOKIE), "its fields are there");
        },
    );
}

/// 32 chunks of 512 bytes, the last chunk and a trailer section, after their head.
fn framing_chunks(rounds: Rounds) {
    let head = "POST /rpc HTTP/1.1\r\nHost: claw.example.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = format!("200\r\n{}\r\n", "d".repeat(512)).repeat(32) + "0\r\nX-Checksum: 4f2a9c\r\n\r\n";
    let follower = || {
        let mut follower = Follower::new(framing::Limits::default());
        let head = follower.head(&mut BytesMut::from(head)).ok().flatten();
        assert_eq!(head.map(|(head, _)| head.body), Some(Body::Chunked), "the head announces chunks");
        (follower, BytesMut::from(&*body))
    };
    rounds.count(
        follower,
        |(follower, read)| {
            let mut data = 0;
            while let Ok(Some(piece)) = follower.body(black_box(read)) {
                data += if let Piece::Data(piece) = piece { piece.len() } else { 0 };
            }
            data
        },
        |(follower, read), data| {
            assert_eq!((*data, read.len()), (32 * 512, 0), "the whole body passes");
            assert!(follower.is_complete(), "the body has ended");
        },
    );
}

/// 64 small masked frames, as they lie in one read.
fn frames_small(rounds: Rounds) {
    let mut stream = Vec::new();
    for number in 0..64_u8 {
        let length = 20 + number;
        stream.extend_from_slice(&[0x81, 0x80 | length, 1, 2, 3, 4]);
        stream.resize(stream.len() + usize::from(length), b'p');
    }
    rounds.count(
        || frames::Follower::new(Sender::Client),
        |follower| follower.follow(black_box(&stream)),
        |follower, ()| assert_eq!((follower.frames(), follower.missing()), (64, Some(0)), "all frames passed"),
    );
}

// Records and refusals.

/// Makes records of a request; `shown` is what its target looks like in them.
/// What every request pays for being counted, times included.
fn metrics_request(rounds: Rounds) {
    let ended = ended(200, None);
    count_metrics(rounds, &ended, |sums| sums.requests_of(GATEWAY)[1]);
}

/// The same for a refusal, whose code is looked up.
fn metrics_refusal(rounds: Rounds) {
    let ended = ended(404, Some("E404-route"));
    count_metrics(rounds, &ended, |sums| sums.requests_of(GATEWAY)[3]);
}

fn ended(status: u16, code: Option<&'static str>) -> Ended {
    Ended {
        status,
        is_by_upstream: code.is_none(),
        code,
        aborted: None,
        head: Duration::from_micros(40),
        upstream: Some(Duration::from_micros(1_840)),
        total: Some(Duration::from_micros(2_310)),
        bytes_in: 0,
        bytes_out: 18_344,
    }
}

fn count_metrics(rounds: Rounds, ended: &Ended, counted: impl Fn(&Sums) -> u64) {
    let table = table();
    let metrics = Metrics::new();
    let meters = metrics.worker();
    meters.follow(&table);
    let site = table.sites().iter().find(|site| *site.label == *GATEWAY).expect("in the table's text");
    let route = site.routes.iter().last().expect("every site has a route");
    let work = |(): &mut ()| meters.request(Some(site), Some(route), black_box(ended));
    rounds.count(|| (), work, |_, ()| assert_eq!(counted(&metrics.sums()), 1, "the first request"));
}

fn record_request(rounds: Rounds, target: &str, shown: &str) {
    let fields = browser_fields();
    let peer = peer_of("198.51.100.7:50122");
    let record = RequestRecord {
        id: ID,
        site: Some(GATEWAY),
        route: None,
        client: peer.ip().map(ClientAddr::new),
        peer,
        via: None,
        hops: 0,
        forwarded_in: None,
        method: &Method::GET,
        target,
        host: fields.get(HOST),
        ua: fields.get(USER_AGENT),
        origin: None,
        referer: fields.get(REFERER),
        http: Version::HTTP_11,
        alpn: Some("http/1.1"),
        tls: Some(TlsRecord { version: "1.3", cipher: "AES_128_GCM", group: Some("X25519MLKEM768") }),
        sni: Some(GATEWAY),
        status: StatusCode::OK,
        by: Responder::Upstream,
        auth: None,
        user: None,
        hooks: &[],
        code: None,
        cause: None,
        limit: None,
        upstream: Some("127.0.0.1:18789"),
        via_port: Some(41_522),
        upgrade: false,
        websocket: &[],
        ms: Timings {
            head: Duration::ZERO,
            held: None,
            upstream: Some(Duration::from_micros(1_840)),
            total: Duration::from_micros(2_310),
        },
        bytes: Amounts { inbound: 0, outbound: 18_344 },
        aborted: None,
        generation: 3,
    };
    count_records(rounds, |log| log.request(black_box(&record)), &format!("\"path\":\"{shown}"));
}

fn record_tunnel(rounds: Rounds) {
    let fields = browser_fields();
    let peer = peer_of("198.51.100.7:50122");
    let record = TunnelRecord {
        id: ID,
        site: Some(GATEWAY),
        client: peer.ip().map(ClientAddr::new),
        peer,
        via: None,
        over: "h1",
        host: fields.get(HOST),
        target: "/",
        ua: fields.get(USER_AGENT),
        origin: None,
        upstream: Some("127.0.0.1:18789"),
        via_port: Some(41_522),
        opened: SystemTime::now(),
        lasted: Duration::from_millis(84_412),
        frames: Amounts { inbound: 412, outbound: 1_904 },
        bytes: Amounts { inbound: 28_120, outbound: 918_022 },
        ended_by: "client",
        how: "close 1001",
        idle: Duration::from_millis(12),
        generation: 3,
    };
    count_records(rounds, |log| log.tunnel(black_box(&record)), "\"kind\":\"tunnel\"");
}

/// Counts how lines are made and queued. The thread that writes them is another one, and not counted: it
/// works by the clock.
fn count_records(rounds: Rounds, record: impl Fn(&AccessLog), expected: &str) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("access.log");
    let policy = LogPolicy {
        access: AccessOutput::File(file.clone()),
        format: Some(LogFormat::Json),
        ..table().edge.log.clone()
    };
    let (log, writer) = AccessLog::start(&policy).expect("a log in an own directory");
    rounds.count(|| &log, |log| record(log), |_, ()| {});
    writer.finish();
    let lines = fs::read_to_string(&file).expect("written above");
    let whole = lines.lines().filter(|line| line.contains(expected) && line.ends_with('}')).count();
    assert_eq!((whole, log.dropped()), (rounds.0 as usize + 1, 0), "each record is a line with {expected}");
}

/// Renders a refusal in the form that `accept` asks for.
fn refusal_answer(rounds: Rounds, accept: &str, begin: &str) {
    let (accept, id) = (HeaderValue::from_str(accept).expect("a value"), HeaderValue::from_static(ID));
    let refusal = Refusal::Unreachable {
        failure: Failure::Refused,
        detail: "127.0.0.1:18789: connection refused (os error 111)".into(),
    };
    let asker = Asker { accept: Some(&accept), version: Version::HTTP_11, request_id: &id, is_near: true };
    rounds.count(
        || &refusal,
        |refusal| refusal::respond(refusal, &asker),
        |_, response| {
            assert_eq!((response.status(), &response.headers()["x-request-id"]), (StatusCode::BAD_GATEWAY, &id));
            let tidegate::body::Body::Full(body) = response.body() else { unreachable!("a refusal is one piece") };
            assert!(body.starts_with(begin.as_bytes()) && body.len() > 150, "{body:?}");
        },
    );
}
