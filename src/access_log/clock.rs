//! Time stamps of records: RFC 3339 in UTC with milliseconds, the second formatted once.

use std::time::SystemTime;

use time::OffsetDateTime;

/// `2026-11-20T13:02:31.114Z`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp([u8; LENGTH]);

const LENGTH: usize = 24;

impl Stamp {
    /// The whole stamp.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits and signs only")
    }

    /// Its bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `13:02:31.114`.
    pub(super) fn time_of_day(&self) -> &str {
        &self.as_str()[11..23]
    }
}

/// Formats stamps and remembers the last second: records come many a second.
#[derive(Debug)]
pub(super) struct Clock {
    second: i64,
    text: [u8; LENGTH],
}

impl Clock {
    /// A clock that remembers nothing.
    pub(super) fn new() -> Self {
        Self { second: i64::MIN, text: *b"0000-00-00T00:00:00.000Z" }
    }

    /// The stamp of now.
    pub(super) fn now(&mut self) -> Stamp {
        self.stamp(SystemTime::now())
    }

    /// The stamp of a moment between the years 0 and 9999.
    pub(super) fn stamp(&mut self, at: SystemTime) -> Stamp {
        let at = OffsetDateTime::from(at);
        if at.unix_timestamp() != self.second {
            let (date, time) = (at.date(), at.time());
            let year = u32::try_from(date.year()).unwrap_or(0);
            self.put(0, 4, year);
            self.put(5, 2, u32::from(u8::from(date.month())));
            self.put(8, 2, u32::from(date.day()));
            self.put(11, 2, u32::from(time.hour()));
            self.put(14, 2, u32::from(time.minute()));
            self.put(17, 2, u32::from(time.second()));
            self.second = at.unix_timestamp();
        }
        self.put(20, 3, u32::from(at.millisecond()));
        Stamp(self.text)
    }

    /// Writes a number in `width` decimal digits.
    fn put(&mut self, at: usize, width: usize, number: u32) {
        let mut rest = number;
        for digit in self.text[at..at + width].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).expect("below ten");
            rest /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stamp_is_rfc_3339_with_milliseconds() {
        let mut clock = Clock::new();
        for (millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (7, "1970-01-01T00:00:00.007Z"),
            (1_795_179_751_114, "2026-11-20T13:02:31.114Z"),
            (1_795_179_751_999, "2026-11-20T13:02:31.999Z"),
            (951_782_400_500, "2000-02-29T00:00:00.500Z"),
        ] {
            let stamp = clock.stamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(stamp.as_str(), expected);
            assert_eq!(stamp.time_of_day(), &expected[11..23]);
        }
    }
}
