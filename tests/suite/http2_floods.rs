//! Floods over HTTP/2 (SECURITY.md 2 and 5): each is cut early, says so in GOAWAY and in a record, and harms no
//! neighbour; and what honest clients do a lot of is never taken for one.

use bytes::Bytes;
use http::Request;

use crate::harness::{
    Answer, Edge, Frame, H2, Outcome, RawH2, Scripted, Upstream, field, noise, read_h2, site, within,
};

/// RFC 9113 7.
const ENHANCE_YOUR_CALM: u32 = 11;

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];

/// GET as a block of fields.
fn get_block() -> Vec<u8> {
    GET.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

/// A frame as bytes.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// What a GOAWAY says: last stream, code, words.
type Goodbye = (u32, u32, String);

/// Sends as much of `flood` as the edge takes, reads to the end, and says which GOAWAY came.
async fn goaway(raw: &mut RawH2, flood: &[u8]) -> Goodbye {
    raw.send(flood).await;
    let mut last = None;
    while let Some(frame) = raw.next().await {
        last = goodbye(&frame).or(last);
    }
    last.expect("GOAWAY comes before the end")
}

/// What it says, if it is a GOAWAY.
fn goodbye(frame: &Frame) -> Option<Goodbye> {
    let word = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().expect("four bytes"));
    (frame.kind == 7).then(|| (word(0), word(4), String::from_utf8_lossy(&frame.payload[8..]).into_owned()))
}

/// The connection was cut for this reason, its record says so, and others are served.
async fn assert_cut(edge: &Edge, goaway: Goodbye, why: &str) {
    assert_eq!((goaway.1, goaway.2.as_str()), (ENHANCE_YOUR_CALM, why));
    let record = edge.record_where(why, |record| record["why"] == format!("HTTP/2: {why}")).await;
    assert_eq!((record["kind"].as_str(), record["ended"].as_str()), (Some("connection"), Some("flood")), "{record}");
    assert_eq!(edge.h2("a.test").await.get("a.test", "/").await.status, 200, "a neighbour");
}

/// SECURITY.md 5: each control-frame flood is cut before 10,000 frames (CVE-2019-9511 to 9518).
#[tokio::test]
async fn each_flood_of_control_frames_is_cut() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let window = [0, 0, 0, 1];
    for (count, frame, why) in [
        (101, frame(4, 0, 0, &[]), "too many SETTINGS frames"),
        (501, frame(6, 0, 0, &[0; 8]), "too many PING frames"),
        (1001, frame(2, 0, 9, &[0; 5]), "too many PRIORITY frames"),
        (1001, frame(0x10, 0, 0, b"\0\0\0\x01u=1"), "too many PRIORITY frames"),
        (4001, frame(8, 0, 0, &window), "too many WINDOW_UPDATE frames"),
        (201, frame(0xbb, 0, 0, &[]), "too many frames without a meaning"),
    ] {
        let mut raw = edge.raw_h2("a.test").await;
        // Refilled while it is sent: some more are allowed then, and never 10,000.
        let said = goaway(&mut raw, &frame.repeat(count * 5 / 4)).await;
        assert_cut(&edge, said, why).await;
    }
    let mut raw = edge.raw_h2("a.test").await;
    raw.headers(1, &[(":method", "POST"), GET[1], GET[2], GET[3]], false).await;
    let said = goaway(&mut raw, &frame(0, 0, 1, &[]).repeat(90)).await;
    assert_cut(&edge, said, "too many empty DATA frames").await;
}

/// CVE-2023-44487, SECURITY.md 5: 20,000 rapid resets are cut before 1,000.
#[tokio::test]
async fn rapid_resets_are_cut() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let block = get_block();
    for at_once in [1, 50] {
        let mut raw = edge.raw_h2("a.test").await;
        let mut sent = 0;
        for pair in 0..20_000 / at_once {
            let burst: Vec<u8> = (0..at_once)
                .flat_map(|each| {
                    let stream = 2 * (pair * at_once + each) + 1;
                    [frame(1, 0x5, stream, &block), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
                })
                .collect();
            if !raw.send(&burst).await {
                break;
            }
            sent += at_once;
        }
        let said = goaway(&mut raw, b"").await;
        assert!(said.0 < 2 * 1000, "stream {}", said.0);
        assert!(sent < 20_000, "the edge closes");
        assert_eq!(said.1, ENHANCE_YOUR_CALM);
        let record = edge.record_where("a flood", |record| record["ended"] == "flood").await;
        assert_eq!(record["kind"], "connection");
        assert_eq!(edge.h2("a.test").await.get("a.test", "/").await.status, 200, "a neighbour");
    }
    // One at a time, as fast as they are answered: not even h2 has an objection.
    let mut raw = edge.raw_h2("a.test").await;
    let mut said = None;
    for count in 0..900 {
        let stream = 2 * count + 1;
        let pair = [frame(1, 0x5, stream, &block), frame(3, 0, stream, &[0, 0, 0, 8])].concat();
        raw.send(&[&pair[..], &frame(6, 0, 0, &[0; 8])].concat()).await;
        while let Some(frame) = raw.next().await {
            said = goodbye(&frame);
            if said.is_some() || (frame.kind, frame.flags) == (6, 1) {
                break;
            }
        }
        if said.is_some() {
            break;
        }
    }
    let said = said.expect("cut before 1,000");
    assert_cut(&edge, said, "too many streams reset by the client").await;
}

/// The frames by which a client makes us reset a stream.
type Provocation = Box<dyn Fn(u32) -> Vec<u8>>;

/// CVE-2025-8671 (MadeYouReset): resets that the client makes us send count as its own.
#[tokio::test]
async fn resets_that_a_client_provokes_are_cut() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let fields = |fields: &[(&str, &str)]| -> Vec<u8> {
        fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
    };
    let post = fields(&[(":method", "POST"), GET[1], GET[2], GET[3], ("content-length", "5")]);
    let twice = fields(&[GET[0], GET[0], GET[1], GET[2], GET[3]]);
    let mut ways: Vec<(&str, Provocation)> = Vec::new();
    ways.push(("a window that overflows", {
        let block = get_block();
        Box::new(move |stream| [frame(1, 0x5, stream, &block), frame(8, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat())
    }));
    ways.push(("a body that is too short", {
        Box::new(move |stream| [frame(1, 0x4, stream, &post), frame(0, 1, stream, b"abc")].concat())
    }));
    ways.push(("a method twice", Box::new(move |stream| frame(1, 0x5, stream, &twice))));
    for (way, provocation) in ways {
        let mut raw = edge.raw_h2("a.test").await;
        let flood: Vec<u8> = (0..1000).flat_map(|count| provocation(2 * count + 1)).collect();
        let said = goaway(&mut raw, &flood).await;
        assert_eq!(
            (said.1, said.2.as_str()),
            (ENHANCE_YOUR_CALM, "too many streams reset for faults of the client"),
            "{way}"
        );
        assert!(said.0 < 2 * 1000, "{way}: stream {}", said.0);
    }
}

/// CVE-2024-27316, SECURITY.md 2: a block of fields is bounded by frames and bytes, before it is decoded.
#[tokio::test]
async fn a_flood_of_continuations_is_cut() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let begin = frame(1, 0x1, 1, &get_block());
    for (pieces, why) in [
        (frame(9, 0, 1, &[]).repeat(50), "too many CONTINUATION frames"),
        (frame(9, 0, 1, &field(b"x", &[b'y'; 16_000])).repeat(5), "a block of header fields is too large"),
    ] {
        let mut raw = edge.raw_h2("a.test").await;
        let said = goaway(&mut raw, &[&begin[..], &pieces].concat()).await;
        assert_eq!(said.0, 0, "no stream was begun");
        assert_cut(&edge, said, why).await;
    }
    assert!(upstream.seen().iter().all(|seen| seen.target == "/" && seen.header("x").is_none()));
}

/// SECURITY.md 2: a block of fields has the deadline of a head, from its first frame, although other streams are open.
#[tokio::test]
async fn a_block_of_fields_that_does_not_end_is_late() {
    let upstream = Scripted::bind().await;
    let edge =
        Edge::start(&format!("listen = {{ request_head_timeout = \"500ms\" }}\n{}", site("a.test", &upstream))).await;
    let mut raw = edge.raw_h2("a.test").await;
    raw.headers(1, &GET, true).await;
    let (mut far, _) = upstream.request().await;
    let rest = frame(1, 0x5, 3, &get_block());
    raw.send(&rest[..20]).await;
    let (_, code, why) = goaway(&mut raw, b"").await;
    assert_eq!((code, why.as_str()), (ENHANCE_YOUR_CALM, "a frame was begun and not ended in time"));
    let record = edge.record_where("a late frame", |record| record["ended"] == "timeout").await;
    assert_eq!(record["kind"], "connection");
    within("the work for it ends", async { while far.wire.fill().await {} }).await;
}

/// SECURITY.md 5: header bombs are refused by count (100) and size (32 KiB), HPACK's indexed ones too
/// (CVE-2026-47774 and its like), and nothing of them reaches an endpoint.
#[tokio::test]
async fn header_bombs_are_refused() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let many: Vec<u8> = (0..101).flat_map(|count| field(format!("x-{count}").as_bytes(), b"1")).collect();
    let large = field(b"x", &[b'y'; 16_000]);
    // `a: b` put into HPACK's table (RFC 7541 6.2.1), then named again by one byte each.
    let indexed = |count: usize| [&b"\x40\x01a\x01b"[..], &vec![0xbe; count]].concat();
    let block = get_block();
    let cookies: Vec<u8> = (0..101).flat_map(|_| field(b"cookie", b"a=1")).collect();
    let mut raw = edge.raw_h2("a.test").await;
    let mut stream = 1;
    for (what, fields) in [("by count", &many), ("indexed", &indexed(900)), ("by cookie", &cookies)] {
        raw.frame(1, 0x5, stream, &[&block[..], fields].concat()).await;
        assert_eq!(raw.outcome(stream).await, Outcome::Status(431), "{what}");
        stream += 2;
    }
    raw.send(
        &[
            frame(1, 0x1, stream, &[&block[..], &large[..]].concat()[..16_000]),
            frame(9, 0, stream, &[&[&block[..], &large[..]].concat()[16_000..], &large[..15_000]].concat()),
            frame(9, 0x4, stream, &[&large[15_000..], &field(b"z", &[b'y'; 1000])].concat()),
        ]
        .concat(),
    )
    .await;
    assert_eq!(raw.outcome(stream).await, Outcome::Status(431), "by size");
    stream += 2;
    raw.frame(1, 0x5, stream, &[&block[..], &indexed(10_000)].concat()).await;
    assert!(raw.outcome(stream).await.is_refused(), "a large one");
    assert!(upstream.seen().is_empty());
    assert_eq!(edge.h2("a.test").await.get("a.test", "/").await.status, 200, "a neighbour");
}

/// A burst of one connection waits for its own answers, and not everybody else behind it.
#[tokio::test]
async fn a_burst_does_not_stand_before_other_clients() {
    let server = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &server)).await;
    let mut neighbour = edge.h2("a.test").await;
    let mut burst = edge.h2("a.test").await;
    let mut answers = Vec::new();
    for number in 0..100 {
        let request = Request::get(format!("https://a.test/{number}")).body(()).unwrap();
        answers.push(burst.open(request, true).await.expect("a stream").0);
    }
    let mut far = vec![server.request().await];
    assert_eq!(far[0].1.target, "/0");
    let request = Request::get("https://a.test/neighbour").body(()).unwrap();
    let answer = neighbour.open(request, true).await.expect("a stream").0;
    while far.last().is_some_and(|(_, seen)| seen.target != "/neighbour") {
        far.push(server.request().await);
    }
    assert!(far.len() < 100, "all of the burst came first");
    // None of them is lost, though the server answers none for a while.
    while far.len() < 101 {
        far.push(server.request().await);
    }
    for (wire, _) in &mut far {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    }
    for answer in answers.into_iter().chain([answer]) {
        assert_eq!(within("an answer", answer).await.expect("an answer").status(), 200);
    }
}

/// Many streams at once, again and again: what load generators and busy pages do.
#[tokio::test]
async fn a_hundred_streams_at_once_are_served_again_and_again() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2 = edge.h2("a.test").await;
    for _ in 0..10 {
        let mut open = Vec::new();
        for _ in 0..100 {
            let request = Request::get("https://a.test/").body(()).unwrap();
            open.push(h2.open(request, true).await.expect("a stream").0);
        }
        for response in open {
            let reply = read_h2(within("an answer", response).await.expect("an answer")).await;
            assert_eq!((reply.status, &reply.body[..]), (200, &b"ok"[..]));
        }
    }
}

/// A page that is scrolled cancels what it no longer shows, as many as are open at once, some times over.
#[tokio::test]
async fn a_page_may_cancel_many_images() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    let block = get_block();
    for round in 0..3 {
        let streams = || (0..100).map(|each| 2 * (round * 100 + each) + 1);
        raw.send(&streams().flat_map(|stream| frame(1, 0x5, stream, &block)).collect::<Vec<_>>()).await;
        let mut far = Vec::new();
        for _ in 0..100 {
            far.push(upstream.request().await.0);
        }
        raw.send(&streams().flat_map(|stream| frame(3, 0, stream, &[0, 0, 0, 8])).collect::<Vec<_>>()).await;
        for mut far in far {
            // N-33: work for nobody ends at once.
            within("the edge lets go", async { while far.wire.fill().await {} }).await;
        }
    }
    raw.headers(999, &GET, true).await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(raw.outcome(999).await, Outcome::Status(200));
}

/// A line that was stuck brings requests together with their own resets: the connection lives, and endpoints see nothing.
#[tokio::test]
async fn a_request_that_comes_with_its_reset_does_nothing() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&format!("process = {{ workers = 1 }}\n{}", site("a.test", &upstream))).await;
    let mut raw = edge.raw_h2("a.test").await;
    let block = get_block();
    let burst: Vec<u8> = (0..90_u32)
        .flat_map(|each| [frame(1, 0x5, 2 * each + 1, &block), frame(3, 0, 2 * each + 1, &[0, 0, 0, 8])].concat())
        .collect();
    raw.send(&burst).await;
    raw.headers(999, &GET, true).await;
    let (mut far, _) = upstream.request().await;
    far.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(raw.outcome(999).await, Outcome::Status(200));
    assert!(!upstream.has_waiting().await, "nothing was opened for the others");
}

/// SECURITY.md 2: streams count until the work for them has ended. However it resets, a client has no more than a hundred
/// requests with an endpoint.
#[tokio::test]
async fn resets_do_not_add_to_the_work_upstream() {
    let upstream = Scripted::bind().await;
    let edge = Edge::start(&format!("process = {{ workers = 1 }}\n{}", site("a.test", &upstream))).await;
    let mut raw = edge.raw_h2("a.test").await;
    let block = get_block();
    let mut open: Vec<crate::harness::UpstreamWire> = Vec::new();
    let opening = |round: u32| (0..100).flat_map(move |each| frame(1, 0x5, 2 * (round * 100 + each) + 1, &get_block()));
    raw.send(&opening(0).collect::<Vec<_>>()).await;
    for _ in 0..100 {
        open.push(upstream.request().await.0);
    }
    // In one piece: a hundred resets, a hundred new requests.
    let resets = (0..100_u32).flat_map(|each| frame(3, 0, 2 * each + 1, &[0, 0, 0, 8]));
    raw.send(&resets.chain(opening(1)).collect::<Vec<_>>()).await;
    let mut next = Vec::new();
    for _ in 0..100 {
        next.push(upstream.request().await.0);
        // One that is over was closed by the edge before the next one began.
        let mut gone = open.pop().expect("a hundred");
        within("the edge lets go", async { while gone.wire.fill().await {} }).await;
    }
    assert!(!upstream.has_waiting().await);
    // One more than a hundred is refused.
    raw.frame(1, 0x5, 1001, &block).await;
    assert!(matches!(raw.outcome(1001).await, Outcome::Reset(_)));
}

/// Downloads are full of window updates, from careful clients two for each frame.
#[tokio::test]
async fn a_download_may_have_many_window_updates() {
    let body = noise(8 << 20);
    let answer = body.clone();
    let upstream = Upstream::answering(move |_| Answer::ok("", &answer)).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    raw.headers(1, &GET, true).await;
    let mut got = Vec::new();
    while got.len() < body.len() {
        let next = raw.next().await.expect("the connection is open");
        assert_ne!(next.kind, 7, "no GOAWAY");
        if next.kind == 0 && !next.payload.is_empty() {
            got.extend_from_slice(&next.payload);
            // Every byte is given back in two steps, to the stream and to the connection, with a ping to measure the line.
            let half = u32::try_from(next.payload.len()).expect("a frame");
            for stream in [0, 1] {
                raw.frame(8, 0, stream, &half.to_be_bytes()).await;
            }
            raw.frame(6, 0, 0, &[7; 8]).await;
        }
    }
    assert!(got == body);
}

/// Streams that a client lets wait, as a paused film does, hold up no other stream of the connection.
#[tokio::test]
async fn streams_that_wait_hold_up_no_other() {
    let body = noise(4 << 20);
    let answer = body.clone();
    let upstream = Upstream::answering(move |_| Answer::ok("", &answer)).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let stream = edge.tls("a.test", &["h2"]).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(40_000).initial_connection_window_size(16 << 20);
    let (mut send, connection) = builder.handshake::<_, Bytes>(stream).await.expect("HTTP/2 starts");
    tokio::spawn(connection);
    let mut paused = Vec::new();
    for _ in 0..80 {
        send = send.ready().await.expect("a stream");
        let request = Request::get("https://a.test/paused").body(()).unwrap();
        let response = send.send_request(request, true).expect("a request").0;
        let mut waiting = within("a head", response).await.expect("an answer").into_body();
        // The first piece is taken and not given back, and nothing is read from then on.
        let first = within("a piece", waiting.data()).await.expect("more").expect("data");
        assert!(first == body[..first.len()]);
        paused.push((waiting, first.len()));
    }
    for _ in 0..3 {
        send = send.ready().await.expect("a stream");
        let request = Request::get("https://a.test/").body(()).unwrap();
        let response = send.send_request(request, true).expect("a request").0;
        let reply = read_h2(within("an answer", response).await.expect("an answer")).await;
        assert!(reply.body == body, "{} bytes", reply.body.len());
    }
    // One of them goes on where it stood.
    let (mut waiting, first) = paused.pop().expect("eighty");
    let mut flow = waiting.flow_control().clone();
    flow.release_capacity(first).expect("what we were given");
    let mut length = first;
    while let Some(piece) = within("the rest", waiting.data()).await {
        let piece = piece.expect("data");
        assert!(piece == body[length..length + piece.len()], "at {length}");
        length += piece.len();
        flow.release_capacity(piece.len()).expect("what we were given");
    }
    assert_eq!(length, body.len());
}

/// A connection that keeps itself awake, measures the line and tells priorities as browsers and gRPC do is never cut.
#[tokio::test]
async fn a_talkative_client_is_served() {
    let upstream = Upstream::saying("ok").await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut raw = edge.raw_h2("a.test").await;
    for request in 0..300_u32 {
        let stream = 2 * request + 1;
        let update = [&stream.to_be_bytes()[..], b"u=3, i"].concat();
        raw.send(&[frame(0x10, 0, 0, &update), frame(2, 0, stream, &[0, 0, 0, 0, 15])].concat()).await;
        raw.headers(stream, &GET, true).await;
        raw.send(&[frame(6, 0, 0, &[1; 8]), frame(0x10, 0, 0, &update), frame(0xaa, 0, 0, b"grease")].concat()).await;
        assert_eq!(raw.outcome(stream).await, Outcome::Status(200), "request {request}");
    }
}

/// The whole library as a client: uploads in small pieces, and answers that are given up half way.
#[tokio::test]
async fn small_pieces_and_answers_given_up_are_no_flood() {
    let body = noise(1 << 20);
    let upstream =
        Upstream::answering(move |seen| Answer::ok("", if seen.method == "GET" { &body[..] } else { b"ok" })).await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    let mut h2: H2 = edge.h2("a.test").await;
    for round in 0..150 {
        let request = Request::post("https://a.test/").body(()).unwrap();
        let (response, mut body) = h2.open(request, false).await.expect("a stream");
        for _ in 0..20 {
            body.send_data(Bytes::from_static(b"small"), false).expect("room");
        }
        body.send_data(Bytes::new(), true).expect("room");
        assert_eq!(within("an answer", response).await.expect("an answer").status(), 200, "round {round}");
        let request = Request::get("https://a.test/").body(()).unwrap();
        let (response, _) = h2.open(request, true).await.expect("a stream");
        // Dropped with its body: a reset.
        drop(within("a head", response).await.expect("an answer"));
    }
    assert_eq!(h2.get("a.test", "/").await.status, 200);
}
