//! The follower of WebSocket frames: cuts change nothing, and `missing` leads to the next boundary.
//!
//! The first byte says who sends and how many cuts there are, up to 7; so many bytes follow that say
//! where; the rest is the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::forward::tunnel::frames::{Follower, Sender};

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(first & 7)) else { return };
    let sender = if first & 8 == 0 { Sender::Client } else { Sender::Server };
    let mut whole = Follower::new(sender);
    whole.follow(stream);

    let mut cuts: Vec<_> = cuts.iter().map(|&cut| usize::from(cut) * stream.len() / 255).collect();
    cuts.sort_unstable();
    let mut pieces = Follower::new(sender);
    let mut from = 0;
    for to in cuts.into_iter().chain([stream.len()]) {
        pieces.follow(&stream[from..to]);
        from = to;
    }
    assert_eq!(whole, pieces, "cuts changed the verdict");

    let mut bytes = Follower::new(sender);
    for byte in stream {
        bytes.follow(std::slice::from_ref(byte));
    }
    assert_eq!(whole, bytes, "single bytes changed the verdict");

    let (frames, close) = read(sender, stream);
    assert_eq!(whole.frames(), frames, "another reader counts otherwise");
    assert_eq!(whole.close().map(|close| close.code), close);
    to_the_boundary(sender, stream);
});

/// From the first byte of a frame, as the drain reads: no more than `missing`, again and again.
fn to_the_boundary(sender: Sender, stream: &[u8]) {
    let mut follower = Follower::new(sender);
    let mut at = 0;
    while at < stream.len() {
        assert_eq!(follower.missing(), Some(0), "this is a boundary");
        let before = follower.frames();
        follower.follow(&stream[at..=at]);
        at += 1;
        loop {
            match follower.missing() {
                None => return,
                Some(0) => break,
                Some(missing) => {
                    assert_eq!(follower.frames(), before, "a frame ended, and yet bytes of it are missing");
                    let step = usize::try_from(missing).unwrap_or(usize::MAX).min(stream.len() - at);
                    if step == 0 {
                        return;
                    }
                    follower.follow(&stream[at..at + step]);
                    at += step;
                }
            }
        }
        assert_eq!(follower.frames(), before + 1, "the boundary is not the end of one frame");
    }
}

/// A plain reader of RFC 6455 5.2: whole frames, and the code of the first close frame among them.
fn read(sender: Sender, mut stream: &[u8]) -> (u64, Option<u16>) {
    let (mut frames, mut close) = (0, None);
    while let [first, second, rest @ ..] = stream {
        let is_control = first & 8 != 0;
        let is_masked = second & 0x80 != 0;
        let is_odd = matches!(first & 15, 3..=7 | 11..=15);
        if is_masked != (sender == Sender::Client) || is_odd || is_control && (first & 0x80 == 0 || second & 0x7f > 125) {
            break;
        }
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => break,
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => break,
            },
            short => (u64::from(short), rest),
        };
        let Some((mask, rest)) = rest.split_at_checked(if is_masked { 4 } else { 0 }) else { break };
        let Some((payload, rest)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
            break;
        };
        if first & 15 == 8 && close.is_none() {
            let byte = |at: usize| payload.get(at).map(|byte| byte ^ mask.get(at).unwrap_or(&0));
            close = Some(match (byte(0), byte(1)) {
                (Some(high), Some(low)) => u16::from_be_bytes([high, low]),
                _ => 1005,
            });
        }
        frames += 1;
        stream = rest;
    }
    (frames, close)
}
