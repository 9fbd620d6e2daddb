//! The keys of a WebSocket handshake (RFC 6455 4): one of ours, and the proof that belongs to a key.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// A key that nobody foresees; `None` when the system has no randomness.
pub fn fresh_key() -> Option<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(BASE64_STANDARD.encode(bytes))
}

/// RFC 6455 4.2.1: sixteen bytes in base64.
pub fn is_key(key: &[u8]) -> bool {
    BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// RFC 6455 4.2.2 (5.4): the proof for a key.
pub fn proof_of(key: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(context.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        let key = b"dGhlIHNhbXBsZSBub25jZQ=="; // RFC 6455 1.3
        assert!(is_key(key) && !is_key(b"c2hvcnQ=") && fresh_key().is_some_and(|key| is_key(key.as_bytes())));
        assert_eq!(proof_of(key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
