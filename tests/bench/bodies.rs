//! The bodies that the upstream gives and the load generator checks: a small one, and a pattern for large ones.
//!
//! The pattern repeats with a prime period, so that a lost, doubled or moved piece is seen at once, and
//! whoever checks it only compares memory with memory.

/// A small body: the size of a usual API answer.
pub(crate) const SMALL: &str = concat!(
    r#"{"id":"01977f6e-8a52-7d1c-9f0a-3c5b2e417d60","status":"completed","created":1767225600,"#,
    r#""owner":{"name":"Example Person","role":"operator"},"#,
    r#""items":[1,2,3,4,5,6,7,8],"text":"a short answer of two hundred bytes!"}"#
);

/// A prime: no buffer size divides it.
pub(crate) const PERIOD: usize = 65_521;

/// The pattern, `repeats` periods long.
pub(crate) fn periods(repeats: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let one: Vec<u8> = (0..PERIOD)
        .map(|_| {
            // xorshift64: bytes that no compression and no chance repeats.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect();
    one.repeat(repeats)
}

/// Follows a body and says whether it is the pattern so far.
pub(crate) struct Follower<'a> {
    pattern: &'a [u8],
    offset: u64,
}

impl<'a> Follower<'a> {
    /// At the start of a body. No piece may be longer than `pattern` without one period.
    pub(crate) fn new(pattern: &'a [u8]) -> Self {
        Self { pattern, offset: 0 }
    }

    /// The bytes so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next piece; false when it is not what it must be.
    pub(crate) fn take(&mut self, piece: &[u8]) -> bool {
        let at = usize::try_from(self.offset % PERIOD as u64).unwrap_or(0);
        self.offset += piece.len() as u64;
        self.pattern.get(at..at + piece.len()) == Some(piece)
    }
}
