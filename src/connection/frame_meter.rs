//! HTTP/2 frames (RFC 9113 4.1), counted between TLS and h2: what costs us work and carries nothing has a budget.
//!
//! Only the heads of frames are read, in both directions; nothing is copied or held back. What an honest client sends a
//! lot of is judged against what it goes with: window updates against the data that we sent, resets against the
//! responses that were finished. How a split into reads falls changes no verdict. Over a budget no more frames
//! reach h2; `http2` says GOAWAY and closes.

mod wire;

use std::fmt;
use std::time::Instant;

use bytes::{BufMut as _, Bytes, BytesMut};

pub use wire::{Metered, Wire};

/// What a client may have too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// SETTINGS, acknowledgements included (CVE-2019-9515).
    Settings,
    /// PING, answers included (CVE-2019-9512).
    Ping,
    /// PRIORITY and PRIORITY_UPDATE (CVE-2019-9513).
    Priority,
    /// WINDOW_UPDATE.
    Window,
    /// DATA with nothing in it, on a stream that goes on (CVE-2019-9518).
    Empty,
    /// Frames that mean nothing here, by number and by size.
    Other,
    /// RST_STREAM (CVE-2023-44487).
    Resets,
    /// RST_STREAM that we send because of what the client did (CVE-2025-8671).
    Faults,
}

/// How much of it: so many at once, and so many a second in the long run.
struct Rule {
    burst: u32,
    per_second: u32,
}

const fn rule(burst: u32, per_second: u32) -> Rule {
    Rule { burst, per_second }
}

impl Budget {
    const COUNT: usize = 8;

    /// All numbers are our choice, far above what clients were seen to send and below what an attack needs.
    const fn rule(self) -> Rule {
        match self {
            // A client has a few in its life.
            Self::Settings => rule(100, 1),
            // One a second keeps a connection awake; more go with data, to measure the line.
            Self::Ping => rule(500, 10),
            // Browsers send some with each request, and more while a page is scrolled.
            Self::Priority => rule(1000, 10),
            // Careful clients send two for each frame of data. All that are on the way at once fit.
            Self::Window => rule(4000, 10),
            // h2 itself takes no more than a hundred.
            Self::Empty => rule(64, 1),
            // Clients send unknown frames now and then to see that they are ignored (RFC 8701).
            Self::Other => rule(200, 2),
            // A page that is left or scrolled away cancels a hundred at once.
            Self::Resets => rule(400, 20),
            // A race or two at the start of a connection.
            Self::Faults => rule(200, 5),
        }
    }

    const fn why(self) -> &'static str {
        match self {
            Self::Settings => "too many SETTINGS frames",
            Self::Ping => "too many PING frames",
            Self::Priority => "too many PRIORITY frames",
            Self::Window => "too many WINDOW_UPDATE frames",
            Self::Empty => "too many empty DATA frames",
            Self::Other => "too many frames without a meaning",
            Self::Resets => "too many streams reset by the client",
            Self::Faults => "too many streams reset for faults of the client",
        }
    }
}

/// Why a connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// A budget is spent.
    Spent(Budget),
    /// A block of fields is too large, before it is decoded.
    Fields,
    /// A block of fields comes in too many pieces (CVE-2024-27316).
    Continuations,
    /// A frame, or a block of fields, was begun and not ended in time.
    Late,
}

impl Excess {
    /// The stable kind, for the record.
    pub fn kind(self) -> &'static str {
        if self == Self::Late { "timeout" } else { "flood" }
    }

    /// In words, for the record and for the client's GOAWAY.
    pub fn why(self) -> &'static str {
        match self {
            Self::Spent(budget) => budget.why(),
            Self::Fields => "a block of header fields is too large",
            Self::Continuations => "too many CONTINUATION frames",
            Self::Late => "a frame was begun and not ended in time",
        }
    }
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl std::error::Error for Excess {}

/// Kinds, flags and codes of RFC 9113 6 and 7, and RFC 9218 7.1.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const PRIORITY_UPDATE: u8 = 0x10;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Codes of RST_STREAM that say that the client broke a rule: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED,
/// FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR. Not those for a fault of ours or of an endpoint.
const FAULTS: [u32; 6] = [1, 3, 5, 6, 7, 9];

/// The counts of one connection. It knows no clock and no stream of bytes, so that it can be tested without.
#[derive(Debug)]
pub struct Meter {
    begun: Instant,
    buckets: [Bucket; Budget::COUNT],
    inbound: Follower,
    outbound: Follower,
    /// The present block of fields, until it is here whole.
    block: Option<Block>,
    most_block: u32,
    /// Since when another frame that is no DATA, or a head, is here in part.
    part_since: Option<Instant>,
    /// The streams that the client has reset last. Our choice: more than it resets in one time around the world.
    reset: [u32; 16],
    /// The highest stream that the client has opened, and the one that h2 knows of.
    opened: u32,
    given: u32,
    /// HEADERS frames that went out: responses and trailers.
    sent: u64,
    /// Bytes of frames other than DATA since the last turn: what they cost is work, not copying.
    work: usize,
}

/// A block of fields that comes in several frames.
#[derive(Debug)]
struct Block {
    since: Instant,
    bytes: u32,
    continuations: u32,
    /// Its last frame has begun.
    ends: bool,
}

/// CONTINUATION frames of one block, our choice: as many as h2 takes for the largest head that is set by default. A
/// block within the limits needs two.
const MOST_CONTINUATIONS: u32 = 5;

impl Meter {
    /// The counts of a connection on which a head has at most so many bytes.
    pub fn new(head_bytes: usize, now: Instant) -> Self {
        let full = |budget: Budget| Bucket { points: budget.rule().burst * Bucket::POINTS, at: 0 };
        Self {
            begun: now,
            buckets: [
                full(Budget::Settings),
                full(Budget::Ping),
                full(Budget::Priority),
                full(Budget::Window),
                full(Budget::Empty),
                full(Budget::Other),
                full(Budget::Resets),
                full(Budget::Faults),
            ],
            inbound: Follower::new(PREFACE),
            outbound: Follower::new(0),
            block: None,
            // Twice: who is somewhat above the limit gets an answer that says so.
            most_block: u32::try_from(head_bytes.saturating_mul(2)).unwrap_or(u32::MAX),
            part_since: None,
            reset: [0; 16],
            opened: 0,
            given: 0,
            sent: 0,
            work: 0,
        }
    }

    /// Counts what the client has sent. True when a stream was reset by it.
    ///
    /// # Errors
    /// What it has too much of. Nothing of these bytes may be acted on.
    pub fn came(&mut self, mut bytes: &[u8], now: Instant) -> Result<bool, Excess> {
        let mut has_reset = false;
        let finished = self.inbound.finished;
        while let Some(frame) = self.inbound.next(&mut bytes) {
            has_reset |= frame.kind == RST_STREAM;
            if frame.kind != DATA {
                self.work += Follower::HEAD + usize::try_from(frame.length).unwrap_or(0);
            }
            self.judge(&frame, now)?;
        }
        if self.inbound.left == 0 {
            self.block.take_if(|block| block.ends);
        }
        let is_in_control = self.inbound.is_in_control();
        if self.inbound.finished != finished || !is_in_control {
            self.part_since = None;
        }
        if is_in_control {
            self.part_since.get_or_insert(now);
        }
        self.given = self.opened;
        Ok(has_reset)
    }

    /// Counts what we have sent, all of it, whatever is found in between: the last word has to stand between two frames.
    /// True when a stream was reset for a fault of the client.
    ///
    /// # Errors
    /// What the client has made us send too much of.
    pub fn went(&mut self, mut bytes: &[u8], now: Instant) -> Result<bool, Excess> {
        let mut judged = Ok(false);
        while let Some(frame) = self.outbound.next(&mut bytes) {
            self.sent += u64::from(frame.kind == HEADERS);
            match frame.kind {
                DATA | HEADERS => {
                    self.credit(Budget::Window, 2 * Bucket::POINTS);
                    self.credit(Budget::Ping, Bucket::POINTS);
                    if frame.flags & END_STREAM != 0 {
                        // A hop that carries many clients has resets in proportion to what it carries.
                        self.credit(Budget::Resets, Bucket::POINTS / 4);
                        self.credit(Budget::Faults, Bucket::POINTS / 4);
                    }
                }
                RST_STREAM if FAULTS.contains(&frame.word) => {
                    let taken = self.take(Budget::Faults, 1, now);
                    judged = judged.and_then(|_| taken.map(|()| true));
                }
                _ => {}
            }
        }
        judged
    }

    /// Since when the client owes the rest of a frame or of a block of fields.
    pub fn waits_since(&self) -> Option<Instant> {
        self.block.as_ref().map(|block| block.since).or(self.part_since)
    }

    /// GOAWAY for a client that has too much of something. Empty when a frame of ours is half written, because the
    /// client takes nothing: nothing can be said any more then.
    pub fn goodbye(&self, excess: Excess) -> Bytes {
        if !self.outbound.is_at_boundary() {
            return Bytes::new();
        }
        let why = excess.why();
        let mut frame = BytesMut::with_capacity(17 + why.len());
        frame.put_uint(8 + why.len() as u64, 3);
        frame.put_slice(&[GOAWAY, 0, 0, 0, 0, 0]);
        // What is above was not begun, and may be asked for again elsewhere (RFC 9113 6.8).
        frame.put_u32(self.given);
        frame.put_u32(ENHANCE_YOUR_CALM);
        frame.put_slice(why.as_bytes());
        frame.freeze()
    }

    fn judge(&mut self, frame: &Frame, now: Instant) -> Result<(), Excess> {
        self.block.take_if(|block| block.ends);
        match frame.kind {
            DATA => {
                let padding = if frame.flags & PADDED == 0 { 0 } else { 1 + frame.word };
                // The last one of a stream may be empty; of those there is one a stream.
                let is_empty = frame.length <= padding && frame.flags & END_STREAM == 0;
                if is_empty { self.take(Budget::Empty, 1, now) } else { Ok(()) }
            }
            HEADERS => {
                self.credit(Budget::Priority, 4 * Bucket::POINTS);
                self.credit(Budget::Other, Bucket::POINTS);
                self.block = Some(Block { since: now, bytes: 0, continuations: 0, ends: false });
                self.extend(frame)
            }
            CONTINUATION => self.extend(frame),
            PRIORITY | PRIORITY_UPDATE => self.take(Budget::Priority, 1 + frame.length / 256, now),
            // Some clients answer each frame that was on the way to a stream that they have reset with another one.
            RST_STREAM if self.reset.contains(&frame.stream) => self.take(Budget::Window, 1, now),
            RST_STREAM => {
                self.reset.rotate_right(1);
                self.reset[0] = frame.stream;
                self.take(Budget::Resets, 1, now)
            }
            SETTINGS => self.take(Budget::Settings, 1, now),
            PING => self.take(Budget::Ping, 1, now),
            WINDOW_UPDATE => self.take(Budget::Window, 1, now),
            _ => self.take(Budget::Other, 1 + frame.length / 1024, now),
        }
    }

    /// Adds a frame to the present block of fields.
    fn extend(&mut self, frame: &Frame) -> Result<(), Excess> {
        // One that continues nothing is h2's to refuse.
        let Some(block) = &mut self.block else { return Ok(()) };
        block.bytes = block.bytes.saturating_add(frame.length);
        block.continuations += u32::from(frame.kind == CONTINUATION);
        if block.bytes > self.most_block {
            return Err(Excess::Fields);
        }
        if block.continuations > MOST_CONTINUATIONS.max(self.most_block >> 14) {
            return Err(Excess::Continuations);
        }
        block.ends = frame.flags & END_HEADERS != 0;
        if block.ends {
            self.opened = self.opened.max(frame.stream);
        }
        Ok(())
    }

    fn take(&mut self, budget: Budget, count: u32, now: Instant) -> Result<(), Excess> {
        let millis = now.saturating_duration_since(self.begun).as_millis();
        let now = u32::try_from(millis).unwrap_or(u32::MAX);
        let has_enough = self.buckets[budget as usize].take(count, &budget.rule(), now);
        has_enough.then_some(()).ok_or(Excess::Spent(budget))
    }

    fn credit(&mut self, budget: Budget, points: u32) {
        let bucket = &mut self.buckets[budget as usize];
        bucket.points = (bucket.points + points).min(budget.rule().burst * Bucket::POINTS);
    }
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    points: u32,
    /// When it was last filled up, in milliseconds of the connection.
    at: u32,
}

impl Bucket {
    /// Points of one frame: what earns one may be worth less than one.
    const POINTS: u32 = 4;

    fn take(&mut self, count: u32, rule: &Rule, now: u32) -> bool {
        let gained = u64::from(now.saturating_sub(self.at)) * u64::from(rule.per_second * Self::POINTS) / 1000;
        if gained > 0 {
            let most = rule.burst * Self::POINTS;
            self.points = u32::try_from(gained).unwrap_or(most).saturating_add(self.points).min(most);
            self.at = now;
        }
        match self.points.checked_sub(count.saturating_mul(Self::POINTS)) {
            Some(left) => {
                self.points = left;
                true
            }
            None => false,
        }
    }
}

/// The head of a frame (RFC 9113 4.1), and the start of its payload where that is looked at.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    length: u32,
    /// The code of RST_STREAM; the length of the padding of DATA.
    word: u32,
}

/// RFC 9113 3.4.
const PREFACE: u32 = 24;

/// From frame to frame in one direction.
#[derive(Debug)]
struct Follower {
    /// The head that is being read.
    head: [u8; 13],
    have: usize,
    /// What is to be passed over before the next head.
    left: u32,
    /// The kind of the frame that is being passed over.
    kind: u8,
    /// How many have ended; only whether it changes is of interest.
    finished: u32,
}

impl Follower {
    const HEAD: usize = 9;

    fn new(left: u32) -> Self {
        Self { head: [0; 13], have: 0, left, kind: SETTINGS, finished: 0 }
    }

    /// The next frame whose head is complete. `None` when all bytes are used.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let passed = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        *bytes = &bytes[passed..];
        // No more than what was left.
        self.left -= u32::try_from(passed).unwrap_or(0);
        if self.left > 0 {
            return None;
        }
        if passed > 0 {
            self.finished = self.finished.wrapping_add(1);
        }
        self.take_head(bytes)?;
        let head = self.head;
        let extra = self.have - Self::HEAD;
        let word = head[Self::HEAD..self.have].iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        let length = self.length();
        self.have = 0;
        // Not less than what was looked at.
        self.left = length - u32::try_from(extra).unwrap_or(0);
        self.kind = head[3];
        if self.left == 0 {
            self.finished = self.finished.wrapping_add(1);
        }
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, length, word })
    }

    /// Takes the rest of a head. `None` when there is not enough yet.
    fn take_head(&mut self, bytes: &mut &[u8]) -> Option<()> {
        if self.have == 0
            && let Some(head) = bytes.first_chunk()
        {
            // Whole, as nearly all are.
            self.head = *head;
            self.have = Self::HEAD;
            self.have = self.wanted();
            *bytes = &bytes[self.have..];
            return Some(());
        }
        loop {
            let wanted = self.wanted();
            if self.have == wanted && wanted >= Self::HEAD {
                return Some(());
            }
            if bytes.is_empty() {
                return None;
            }
            let taken = (wanted - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            *bytes = &bytes[taken..];
        }
    }

    fn length(&self) -> u32 {
        u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]])
    }

    /// How many bytes are looked at: the head, and more where its kind says so.
    fn wanted(&self) -> usize {
        if self.have < Self::HEAD {
            return Self::HEAD;
        }
        let extra = match (self.head[3], self.head[4] & PADDED) {
            (RST_STREAM, _) => 4,
            (DATA, PADDED) => 1,
            _ => 0,
        };
        Self::HEAD + extra.min(usize::try_from(self.length()).unwrap_or(0))
    }

    /// True inside a frame that is no DATA, or inside a head.
    fn is_in_control(&self) -> bool {
        self.have > 0 || (self.left > 0 && self.kind != DATA)
    }

    fn is_at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

#[cfg(test)]
mod tests;
