//! The frame meter of HTTP/2: no split into reads changes a verdict, and a plain reader of whole frames comes to the
//! same counts.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tidegate::connection::frame_meter::{Budget, Excess, Meter};

/// The largest head that is allowed, and what a block of fields may have of it.
const HEAD: usize = 8 << 10;

// The first byte says how the rest is cut, the second which part of it goes the other way.
fuzz_target!(|data: &[u8]| {
    let [cut, turn, bytes @ ..] = data else { return };
    let bytes = &bytes[..bytes.len().min(64 << 10)];
    let (sent, taken) = bytes.split_at(bytes.len() * usize::from(*turn) / 255);
    let now = Instant::now();
    let mut whole = Meter::new(HEAD, now);
    let went = whole.went(sent, now);
    let came = whole.came(taken, now);

    let mut pieces = Meter::new(HEAD, now);
    let size = usize::from(*cut) % 31 + 1;
    // All of it, whatever is found in between.
    let cut_went: Vec<_> = sent.chunks(size).map(|piece| pieces.went(piece, now)).collect();
    let cut_went = cut_went.into_iter().try_fold(false, |before, piece| piece.map(|fault| before | fault));
    assert_eq!(cut_went, went, "a cut changed it");
    let mut has_reset = false;
    let cut_came = taken.chunks(size).try_for_each(|piece| pieces.came(piece, now).map(|reset| has_reset |= reset));
    match came {
        Ok(reset) => {
            assert_eq!((cut_came, has_reset), (Ok(()), reset));
            // Nothing is not cut into pieces: only one of the two has begun to wait for the preface then.
            assert!(taken.is_empty() || pieces.waits_since() == whole.waits_since());
            assert_eq!(pieces.goodbye(Excess::Late), whole.goodbye(Excess::Late));
        }
        Err(excess) => assert_eq!(cut_came, Err(excess), "a cut changed it"),
    }
    let goodbye = whole.goodbye(Excess::Late);
    assert_eq!(goodbye.is_empty(), !ends_at_a_boundary(sent), "the last word stands between two frames");

    // Never stricter than one frame at a time, each a second after the last: what is refused then is so by itself.
    let mut calm = Meter::new(HEAD, now);
    let excess = taken.chunks(1).enumerate().find_map(|(second, byte)| {
        let now = now + Duration::from_secs(second as u64);
        calm.came(byte, now).err()
    });
    match excess {
        None | Some(Excess::Fields | Excess::Continuations) => {}
        // Those are paid for by their size.
        Some(Excess::Spent(budget)) => assert!(matches!(budget, Budget::Other | Budget::Priority), "{budget:?}"),
        Some(Excess::Late) => unreachable!("the meter has no clock"),
    }
});

/// A plain reader: whole frames from the start.
fn ends_at_a_boundary(mut bytes: &[u8]) -> bool {
    while let [a, b, c, _, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(after) = rest.get(length..) else { return false };
        bytes = after;
    }
    bytes.is_empty()
}
