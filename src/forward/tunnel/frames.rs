//! The frame follower: reads WebSocket frame headers (RFC 6455 5.2) as the bytes of one direction
//! pass, so that the record knows how a tunnel ended and the drain knows where a frame ends.
//!
//! It changes no byte and keeps none but a started header and the payload of the close frame. Work
//! is constant per frame; payloads are skipped by their length. What is no frame ends the
//! following, never the tunnel: judging the protocol is the business of the two ends.

use std::fmt;

/// Follows the frames of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    sender: Sender,
    place: Place,
    frames: u64,
    close: Option<Close>,
}

/// Who sends the frames: a client masks each of them, a server none (RFC 6455 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The side that opened the tunnel.
    Client,
    /// The side that answered.
    Server,
}

/// What a close frame said (RFC 6455 5.5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The status code; 1005 when the frame had none (RFC 6455 7.1.5).
    pub code: u16,
    /// The reason, at most 123 bytes; empty when there was none.
    pub reason: Box<str>,
}

impl Follower {
    /// At the beginning of a stream, which is a frame boundary.
    pub fn new(sender: Sender) -> Self {
        Self { sender, place: Place::BOUNDARY, frames: 0, close: None }
    }

    /// Takes note of bytes that pass. Where the stream is cut into pieces makes no difference.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(frame) = self.short_frame(bytes) {
                self.frames += 1;
                bytes = &bytes[frame..];
                continue;
            }
            bytes = match &mut self.place {
                Place::Payload { left } => {
                    let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= skipped as u64;
                    &bytes[skipped..]
                }
                Place::Header(header) => header.take(bytes),
                Place::Close(closing) => closing.take(bytes),
                Place::Lost => return,
            };
            self.step();
        }
    }

    /// The length of a short data frame that is here from its first byte to its last. Most frames are
    /// such, and pass without a step of their own for header and payload.
    fn short_frame(&self, bytes: &[u8]) -> Option<usize> {
        let (Place::Header(Header { have: 0, .. }), [first, second, ..]) = (&self.place, bytes) else { return None };
        let is_masked = second & 0x80 != 0;
        let payload = usize::from(second & 0x7f);
        let frame = 2 + payload + if is_masked { 4 } else { 0 };
        let is_short_data = first & 0x0f <= 2 && payload <= 125 && is_masked == (self.sender == Sender::Client);
        (is_short_data && frame <= bytes.len()).then_some(frame)
    }

    /// How many frames have passed from their first byte to their last.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// How many of the next bytes surely belong to the frame in flight: 0 on a frame boundary.
    /// `None` when the bytes are no frames.
    ///
    /// Reading no more than this, again and again, ends exactly on the next boundary.
    pub fn missing(&self) -> Option<u64> {
        match &self.place {
            Place::Header(header) if header.have == 0 => Some(0),
            Place::Header(header) => Some(u64::from(header.wanted() - header.have)),
            Place::Payload { left } => Some(*left),
            Place::Close(closing) => Some(u64::from(closing.left())),
            Place::Lost => None,
        }
    }

    /// The first close frame that passed.
    pub fn close(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    /// Goes on to the next place when the present one is complete.
    fn step(&mut self) {
        match &self.place {
            Place::Header(header) if header.have >= 2 && !header.is_plausible(self.sender) => self.place = Place::Lost,
            Place::Header(header) if header.have < header.wanted() => {}
            Place::Header(header) => {
                let Some(length) = header.payload_length() else {
                    self.place = Place::Lost;
                    return;
                };
                if header.is_close() && self.close.is_none() {
                    self.place = Place::Close(Closing::new(header));
                } else {
                    self.place = Place::Payload { left: length };
                }
                // A frame without payload is complete with its header.
                self.step();
            }
            Place::Payload { left: 0 } => self.complete(),
            Place::Payload { .. } => {}
            Place::Close(closing) if closing.left() == 0 => {
                self.close = Some(closing.close());
                self.complete();
            }
            Place::Close(_) | Place::Lost => {}
        }
    }

    /// Counts a frame that passed whole.
    fn complete(&mut self) {
        self.frames += 1;
        self.place = Place::BOUNDARY;
    }
}

/// Where in a frame the stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In a header; before the first byte of one, on a boundary.
    Header(Header),
    /// In a payload that nobody reads.
    Payload { left: u64 },
    /// In the payload of the first close frame.
    Close(Closing),
    /// Not following: what came is no frame.
    Lost,
}

impl Place {
    /// Between two frames.
    const BOUNDARY: Self = Self::Header(Header { bytes: [0; 14], have: 0 });
}

/// A header as far as it has come: two bytes, up to eight of length, four of masking key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    bytes: [u8; 14],
    have: u8,
}

impl Header {
    /// Copies what belongs to the header; returns the bytes behind it.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let have = usize::from(self.have);
        let count = bytes.len().min(usize::from(self.wanted()) - have);
        self.bytes[have..have + count].copy_from_slice(&bytes[..count]);
        self.have += count as u8; // at most 14
        &bytes[count..]
    }

    /// The length of the header as far as it is known: the second byte tells the whole.
    fn wanted(&self) -> u8 {
        if self.have < 2 {
            return 2;
        }
        let length = match self.bytes[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.is_masked() { 4 } else { 0 }
    }

    /// False when the first two bytes cannot begin a frame of this sender. Reserved bits pass:
    /// extensions use them (RFC 6455 5.2, RFC 7692) and they do not change where a frame ends.
    fn is_plausible(&self, sender: Sender) -> bool {
        let is_final = self.bytes[0] & 0x80 != 0;
        let opcode_fits = match self.bytes[0] & 0x0f {
            0..=2 => true,
            // RFC 6455 5.5: a control frame is never fragmented and has at most 125 bytes.
            8..=10 => is_final && self.bytes[1] & 0x7f <= 125,
            _ => false,
        };
        opcode_fits && self.is_masked() == (sender == Sender::Client)
    }

    /// The length of the payload; `None` when its first bit is set (RFC 6455 5.2).
    fn payload_length(&self) -> Option<u64> {
        let extended = |bytes: &[u8]| bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        let length = match self.bytes[1] & 0x7f {
            126 => extended(&self.bytes[2..4]),
            127 => extended(&self.bytes[2..10]),
            short => u64::from(short),
        };
        (length >> 63 == 0).then_some(length)
    }

    fn is_masked(&self) -> bool {
        self.bytes[1] & 0x80 != 0
    }

    fn is_close(&self) -> bool {
        self.bytes[0] & 0x0f == 8
    }
}

/// The payload of a close frame while it arrives. On the heap, for a tunnel has only one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Closing {
    /// At most 125 bytes, unmasked.
    payload: Vec<u8>,
    wanted: u8,
    mask: [u8; 4],
}

impl Closing {
    /// Before the payload of a complete, plausible header.
    fn new(header: &Header) -> Self {
        let mut mask = [0; 4];
        if header.is_masked() {
            mask.copy_from_slice(&header.bytes[2..6]); // a control frame has no extended length
        }
        let wanted = header.bytes[1] & 0x7f;
        Self { payload: Vec::with_capacity(usize::from(wanted)), wanted, mask }
    }

    /// Unmasks what belongs to the payload (RFC 6455 5.3); returns the bytes behind it.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (own, behind) = bytes.split_at(bytes.len().min(usize::from(self.left())));
        for byte in own {
            self.payload.push(byte ^ self.mask[self.payload.len() % 4]);
        }
        behind
    }

    fn left(&self) -> u8 {
        self.wanted - self.payload.len() as u8 // at most 125
    }

    fn close(&self) -> Close {
        match self.payload.split_first_chunk::<2>() {
            Some((code, reason)) => {
                Close { code: u16::from_be_bytes(*code), reason: String::from_utf8_lossy(reason).into() }
            }
            None => Close { code: 1005, reason: Box::default() },
        }
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "close {}", self.code)?;
        if self.reason.is_empty() {
            return Ok(());
        }
        // Quoted and escaped: a peer chose these bytes, and they go to a log.
        write!(f, " {:?}", &*self.reason)
    }
}

/// The frame that says "going away" to a client: close 1001 with a reason, not masked.
pub const GOING_AWAY: &[u8] = b"\x88\x0c\x03\xe9going away";

/// The same for a server: masked with a key that its reader cannot foresee (RFC 6455 5.3).
pub fn masked_going_away(key: [u8; 4]) -> Vec<u8> {
    let (header, payload) = GOING_AWAY.split_at(2);
    let mut frame = vec![header[0], header[1] | 0x80];
    frame.extend_from_slice(&key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// A frame as an honest sender writes it.
    fn frame(sender: Sender, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..=125 => bytes.push(short as u8),
            medium @ 126..=0xffff => {
                bytes.push(126);
                bytes.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                bytes.push(127);
                bytes.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        match sender {
            Sender::Server => bytes.extend_from_slice(payload),
            Sender::Client => {
                let key = [0x37, 0xfa, 0x21, 0x3d];
                bytes[1] |= 0x80;
                bytes.extend_from_slice(&key);
                bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            }
        }
        bytes
    }

    fn followed(sender: Sender, bytes: &[u8]) -> Follower {
        let mut follower = Follower::new(sender);
        follower.follow(bytes);
        follower
    }

    #[test]
    fn a_close_frame_tells_its_code_and_reason() {
        for (payload, text) in [
            (&b"\x03\xf4service restart"[..], "close 1012 \"service restart\""),
            (b"\x03\xe8", "close 1000"),
            (b"", "close 1005"),
            (b"\x03", "close 1005"),
            (b"\x0f\xa1a\"b\nc\xff", "close 4001 \"a\\\"b\\nc\u{fffd}\""),
        ] {
            for sender in [Sender::Client, Sender::Server] {
                let follower = followed(sender, &frame(sender, 8, payload));
                assert_eq!(follower.close().map(ToString::to_string).as_deref(), Some(text));
                assert_eq!((follower.frames(), follower.missing()), (1, Some(0)));
            }
        }
        let longest = [b"\x03\xf0".as_slice(), &[b'x'; 123]].concat();
        let follower = followed(Sender::Server, &frame(Sender::Server, 8, &longest));
        assert_eq!(follower.close().map(|close| close.reason.len()), Some(123));
    }

    #[test]
    fn only_the_first_close_frame_counts_and_following_goes_on() {
        let stream = [
            frame(Sender::Server, 8, b"\x03\xf4one"),
            frame(Sender::Server, 8, b"\x03\xe8two"),
            frame(Sender::Server, 1, b"late"),
        ]
        .concat();
        let follower = followed(Sender::Server, &stream);
        assert_eq!(follower.close().map(|close| close.code), Some(1012));
        assert_eq!(follower.frames(), 3);
    }

    #[test]
    fn what_is_no_frame_ends_the_following() {
        for (sender, bytes) in [
            (Sender::Server, &b"HTTP/1.1 200 OK\r\n"[..]),
            (Sender::Server, b"\x83\x00"),         // reserved opcode
            (Sender::Server, b"\x09\x00"),         // fragmented ping
            (Sender::Server, b"\x88\x7e\x00\x7e"), // close longer than 125
            (Sender::Server, b"\x81\x81mask"),     // a server never masks
            (Sender::Client, b"\x81\x01a"),        // a client always does
            (Sender::Server, b"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00"), // first bit of the length
        ] {
            let mut follower = followed(sender, bytes);
            assert_eq!(follower.missing(), None, "{bytes:02x?}");
            follower.follow(&frame(sender, 8, b"\x03\xe8"));
            assert_eq!((follower.close(), follower.frames()), (None, 0), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_compressed_message_is_followed() {
        assert_eq!(followed(Sender::Server, b"\xc1\x03abc").frames(), 1); // RSV1, RFC 7692
    }

    #[test]
    fn our_own_goodbye_is_a_close_frame() {
        let expected = Close { code: 1001, reason: "going away".into() };
        assert_eq!(followed(Sender::Server, GOING_AWAY).close(), Some(&expected));
        assert_eq!(followed(Sender::Client, &masked_going_away([1, 0x80, 0xff, 7])).close(), Some(&expected));
    }

    fn a_frame(sender: Sender) -> impl Strategy<Value = Vec<u8>> {
        let control = (8..=10_u8, prop::collection::vec(any::<u8>(), 0..=125));
        let sizes = prop_oneof![0..300_usize, Just(65_535), Just(65_536), Just(70_000)];
        let data = (0..=2_u8, sizes.prop_map(|size| vec![0x55; size]));
        prop_oneof![control, data].prop_map(move |(opcode, payload)| frame(sender, opcode, &payload))
    }

    fn a_stream() -> impl Strategy<Value = (Sender, Vec<Vec<u8>>)> {
        prop_oneof![Just(Sender::Client), Just(Sender::Server)]
            .prop_flat_map(|sender| (Just(sender), prop::collection::vec(a_frame(sender), 1..8)))
    }

    proptest! {
        #[test]
        fn honest_frames_are_counted_wherever_the_stream_is_cut(
            (sender, frames) in a_stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let stream = frames.concat();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut follower = Follower::new(sender);
            for piece in cuts.windows(2) {
                follower.follow(&stream[piece[0]..piece[1]]);
            }
            prop_assert_eq!(follower.frames(), frames.len() as u64);
            prop_assert_eq!(follower.missing(), Some(0));
            prop_assert_eq!(follower, followed(sender, &stream));
        }

        #[test]
        fn any_bytes_give_the_same_result_one_by_one(
            is_client in any::<bool>(),
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let sender = if is_client { Sender::Client } else { Sender::Server };
            let mut follower = Follower::new(sender);
            for byte in &bytes {
                follower.follow(std::slice::from_ref(byte));
            }
            prop_assert_eq!(follower, followed(sender, &bytes));
        }

        #[test]
        fn reading_what_is_missing_ends_on_the_boundary(
            (sender, frames) in a_stream(),
            begun in any::<prop::sample::Index>(),
        ) {
            let (first, behind) = (&frames[0], frames[1..].concat());
            let stream = [first.as_slice(), &behind].concat();
            let mut at = begun.index(first.len() - 1) + 1; // inside the first frame, or at its end
            let mut follower = followed(sender, &stream[..at]);
            while let Some(missing @ 1..) = follower.missing() {
                let next = at + missing as usize;
                follower.follow(&stream[at..next]);
                at = next;
            }
            prop_assert_eq!(at, first.len());
        }
    }
}
