//! What the counts say of frames that are made up, without a connection.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A connection on which the preface has come.
fn meter(now: Instant) -> Meter {
    let mut meter = Meter::new(32 << 10, now);
    assert_eq!(meter.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now), Ok(false));
    meter
}

/// How many such frames pass before the first one that does not.
fn passed(mut meter: Meter, bytes: &[u8], now: Instant) -> (usize, Excess) {
    let cut = (0..20_000).find_map(|count| meter.came(bytes, now).err().map(|excess| (count, excess)));
    cut.expect("it is cut before 20,000")
}

/// SECURITY.md 5: each flood of control frames is cut before 10,000 of them, resets before 1,000.
#[test]
fn each_flood_ends() {
    let now = Instant::now();
    let zero = [0; 4];
    for (bytes, budget) in [
        (frame(SETTINGS, 0, 0, &[]), Budget::Settings),
        (frame(SETTINGS, 1, 0, &[]), Budget::Settings),
        (frame(PING, 0, 0, &[0; 8]), Budget::Ping),
        (frame(PRIORITY, 0, 3, &[0; 5]), Budget::Priority),
        (frame(PRIORITY_UPDATE, 0, 0, b"\0\0\0\x03u=1"), Budget::Priority),
        (frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), Budget::Window),
        (frame(DATA, 0, 1, &[]), Budget::Empty),
        (frame(DATA, PADDED, 1, &[2, 0, 0]), Budget::Empty),
        (frame(0xb, 0, 0, &[]), Budget::Other),
        (frame(0xfa, 0, 0, &[0; 5]), Budget::Other),
        (frame(GOAWAY, 0, 0, &[0; 8]), Budget::Other),
    ] {
        let (count, excess) = passed(meter(now), &bytes, now);
        assert_eq!(excess, Excess::Spent(budget));
        assert_eq!(count, usize::try_from(budget.rule().burst).expect("small"), "{budget:?}");
        assert!(count < 10_000);
    }
    let pair = |count: u32| {
        let stream = 2 * count + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82]), frame(RST_STREAM, 0, stream, &zero)].concat()
    };
    let mut rapid = meter(now);
    let cut = (0..1000).find_map(|count| rapid.came(&pair(count), now).err().map(|excess| (count, excess)));
    assert_eq!(cut, Some((400, Excess::Spent(Budget::Resets))));
    // At any speed at which 20,000 would be an attack.
    let mut slow = meter(now);
    let at = |count: u32| now + Duration::from_millis(25 * u64::from(count));
    assert!((0..1000).any(|count| slow.came(&pair(count), at(count)).is_err()), "40 a second for ever");
    // Again and again of one stream: as an answer to what was on the way.
    let (count, excess) = passed(meter(now), &pair(0)[10..], now);
    assert_eq!((count, excess), (4001, Excess::Spent(Budget::Window)));
}

/// CVE-2025-8671: what the client makes us reset counts; faults of ours and of endpoints do not.
#[test]
fn resets_that_a_client_provokes_are_counted() {
    let now = Instant::now();
    for (code, is_counted) in [(0, false), (1, true), (2, false), (3, true), (5, true), (7, true), (8, false)] {
        let reset = frame(RST_STREAM, 0, 1, &u32::to_be_bytes(code));
        let mut meter = meter(now);
        let cut = (0..1000).find(|_| meter.went(&reset, now).is_err());
        assert_eq!(cut, is_counted.then_some(200), "code {code}");
    }
}

/// What honest clients do for hours passes.
#[test]
fn honest_use_never_ends() {
    let now = Instant::now();
    let data = frame(DATA, 0, 1, &[0; 1000]);
    let last = frame(DATA, END_STREAM, 1, &[0; 10]);
    let head = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let window = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    // A download by a client that opens both windows for each frame of data, all at one instant.
    let mut download = meter(now);
    for _ in 0..100_000 {
        download.went(&data, now).expect("data");
        download.came(&[&window[..], &window].concat(), now).expect("two for each");
        download.came(&frame(PING, 0, 0, &[0; 8]), now).expect("it measures the line");
    }
    // A hop that carries many clients, a fifth of which go away.
    let mut hop = meter(now);
    for count in 0..100_000 {
        let stream = 2 * count + 1;
        hop.came(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82]), now).expect("a request");
        if count % 5 == 0 {
            hop.came(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]), now).expect("one of them is cancelled");
        } else {
            hop.went(&[&head[..], &last].concat(), now).expect("an answer");
        }
        hop.came(&frame(PRIORITY_UPDATE, 0, 0, b"\0\0\0\x03u=1"), now).expect("it is a browser");
    }
    // A day of keeping a connection awake, with an unknown frame now and then.
    let mut awake = meter(now);
    for second in 0..86_400 {
        let now = now + Duration::from_secs(second);
        awake.came(&frame(PING, 0, 0, &[0; 8]), now).expect("a ping a second");
        if second % 60 == 0 {
            awake.came(&frame(0x1a, 0, 0, &[0; 8]), now).expect("one a minute");
        }
    }
}

/// CVE-2024-27316: a block of fields is bounded by its frames and by its bytes.
#[test]
fn a_block_of_fields_is_bounded() {
    let now = Instant::now();
    let begun = || {
        let mut meter = meter(now);
        meter.came(&frame(HEADERS, END_STREAM, 1, &[0x82]), now).expect("it begins");
        meter
    };
    assert_eq!(passed(begun(), &frame(CONTINUATION, 0, 1, &[]), now), (5, Excess::Continuations));
    let large = frame(CONTINUATION, 0, 1, &[0; 16_384]);
    assert_eq!(passed(begun(), &large, now), (3, Excess::Fields));
    // A block in two frames, many times.
    let mut meter = meter(now);
    for _ in 0..1000 {
        meter.came(&frame(HEADERS, END_STREAM, 1, &[0x82]), now).expect("the first");
        assert_eq!(meter.waits_since(), Some(now));
        meter.came(&frame(CONTINUATION, END_HEADERS, 1, &[0x84]), now).expect("the last");
        assert_eq!(meter.waits_since(), None);
    }
}

/// The clock of a block of fields, and of any frame but DATA, runs from its start.
#[test]
fn a_frame_that_trickles_in_is_waited_for_since_its_start() {
    let begun = Instant::now();
    let after = |seconds| begun + Duration::from_secs(seconds);
    let mut meter = meter(begun);
    let headers = frame(HEADERS, 0, 1, &[0x82, 0x84]);
    for (second, byte) in headers.iter().enumerate() {
        meter.came(&[*byte], after(second as u64)).expect("a byte");
    }
    let since = meter.waits_since().expect("the block goes on");
    assert!(since <= after(9), "since its first frame");
    let rest = frame(CONTINUATION, END_HEADERS, 1, &[0x86]);
    meter.came(&rest[..9], after(30)).expect("the head");
    assert_eq!(meter.waits_since(), Some(since));
    meter.came(&rest[9..], after(31)).expect("the last byte");
    assert_eq!(meter.waits_since(), None);
    meter.came(&frame(DATA, 0, 1, &[0; 100])[..50], after(32)).expect("half of it");
    assert_eq!(meter.waits_since(), None, "a body has a limit of its own");
    meter.came(&[0; 59], after(33)).expect("the other half, and a head that is all zeros");
    let body = frame(DATA, 0, 1, &[0; 100]);
    meter.came(&body[..5], after(33)).expect("a part of a head");
    assert_eq!(meter.waits_since(), Some(after(33)));
    meter.came(&body[5..50], after(34)).expect("the body begins");
    assert_eq!(meter.waits_since(), None);
    meter.came(&body[50..], after(35)).expect("the rest");
    meter.came(&frame(PING, 0, 0, &[0; 8])[..12], after(36)).expect("a part");
    assert_eq!(meter.waits_since(), Some(after(36)));
}

/// The last word stands between two frames of ours, and names the last stream that was begun.
#[test]
fn a_goodbye_is_a_frame_of_its_own() {
    let now = Instant::now();
    let mut meter = meter(now);
    meter.came(&frame(HEADERS, END_HEADERS, 7, &[0x82]), now).expect("a request");
    let excess = Excess::Spent(Budget::Ping);
    let goodbye = meter.goodbye(excess);
    let expected = [&[0, 0, 0, 7, 0, 0, 0, 11][..], b"too many PING frames"].concat();
    assert_eq!(goodbye, frame(GOAWAY, 0, 0, &expected));
    meter.went(&frame(DATA, 0, 7, b"abc")[..10], now).expect("a part");
    assert!(meter.goodbye(excess).is_empty(), "inside a frame");
}

/// What went out behind the reset that was one too many went out all the same.
#[test]
fn a_goodbye_knows_what_went_out_behind_the_last_reset() {
    let now = Instant::now();
    let resets = frame(RST_STREAM, 0, 7, &[0, 0, 0, 5]).repeat(201);
    let data = frame(DATA, 0, 7, b"abc");
    let excess = Excess::Spent(Budget::Faults);
    let mut meter = meter(now);
    assert_eq!(meter.went(&[&resets[..], &data[..10]].concat(), now), Err(excess));
    assert!(meter.goodbye(excess).is_empty(), "inside a frame");
    assert_eq!(meter.went(&data[10..], now), Ok(false));
    assert!(!meter.goodbye(excess).is_empty(), "after it");
}

proptest! {
    /// However frames are split into reads and writes, the verdict, the clock and the last word are the same. The fuzz target
    /// `frame_meter` looks for the same with bytes that are no frames.
    #[test]
    fn no_split_changes_a_verdict(
        frames in vec((0_u8..20, any::<u8>(), 0_u32..50, vec(any::<u8>(), 0..40)), 0..400),
        last in 0_usize..60,
        size in 1_usize..50,
    ) {
        let mut bytes: Vec<u8> =
            frames.iter().flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
        bytes.truncate(bytes.len().saturating_sub(last));
        let now = Instant::now();
        let (mut whole, mut pieces) = (meter(now), meter(now));
        // All of it, whatever is found in between.
        let went: Vec<_> = bytes.chunks(size).map(|piece| pieces.went(piece, now)).collect();
        let went = went.into_iter().try_fold(false, |before, piece| piece.map(|fault| before | fault));
        assert_eq!(went, whole.went(&bytes, now));
        assert_eq!(pieces.goodbye(Excess::Late), whole.goodbye(Excess::Late));
        let mut has_reset = false;
        let came = bytes.chunks(size).try_for_each(|piece| pieces.came(piece, now).map(|reset| has_reset |= reset));
        match whole.came(&bytes, now) {
            Ok(reset) => assert_eq!((came, has_reset), (Ok(()), reset)),
            Err(excess) => assert_eq!(came, Err(excess)),
        }
        if came.is_ok() {
            assert_eq!(pieces.waits_since(), whole.waits_since());
            assert_eq!(pieces.goodbye(Excess::Late), whole.goodbye(Excess::Late));
        }
    }
}
