//! One buffer a worker to read into, for streams that are idle most of the time: while they wait they
//! hold no memory for what has not come yet.

use std::cell::Cell;

/// Two TLS records: the largest piece that is read at once.
pub const SIZE: usize = 32 << 10;

thread_local! {
    /// Taken out while in use.
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Lends the buffer. What stands in it is left over from others: only what was read may be looked at.
/// Taken out of its cell, so that work which polls another stream meanwhile gets one too.
pub fn with<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
    let done = work(&mut buffer);
    BUFFER.set(Some(buffer));
    done
}
