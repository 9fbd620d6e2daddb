//! Units: `250ms`, `30s`, `5m`, `1h`, `14d`, `64KiB`, `20MiB`, `20MB`, and rates: `20/s`, `10/m`, `500/h`.
//!
//! A number never stands without its unit, so that nobody has to know whether a key counts
//! seconds or milliseconds. One number, one unit, no fraction: each value has few spellings.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// Why a text is no duration, size or rate. `advice` of the error holds the right spelling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A number alone.
    #[error("\"{number}\" has no unit")]
    NoUnit {
        /// What was written.
        number: String,
        /// The right spelling.
        advice: String,
    },
    /// Anything else.
    #[error("\"{text}\" is not a {what}")]
    Malformed {
        /// What was written.
        text: String,
        /// `duration`, `size` or `rate`.
        what: &'static str,
        /// The right spelling.
        advice: String,
    },
    /// More than can be counted.
    #[error("\"{text}\" is more than the largest {what}")]
    TooLarge {
        /// What was written.
        text: String,
        /// `duration`, `size` or `rate`.
        what: &'static str,
        /// The limit.
        advice: String,
    },
}

impl UnitError {
    /// What to write instead, as the end of a sentence that begins with "write".
    pub fn advice(&self) -> &str {
        match self {
            Self::NoUnit { advice, .. } | Self::Malformed { advice, .. } | Self::TooLarge { advice, .. } => advice,
        }
    }
}

/// Milliseconds in each unit of time, largest first, so that display finds the shortest spelling.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes in each unit of size: powers of 1024 first, which display uses.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
];

/// Ten years, our choice: above any useful limit, and far from where clocks overflow.
const LONGEST: u64 = 3650 * 86_400_000;

/// 1 PiB, our choice: above any body, and within what every integer type here can count.
const LARGEST: u64 = 1 << 50;

/// Parses a duration.
///
/// # Errors
/// When the text is not a whole number and a unit, or more than ten years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, "duration", &TIMES, LONGEST, "s", "\"3650d\" or less").map(Duration::from_millis)
}

/// Parses a size in bytes.
///
/// # Errors
/// When the text is not a whole number and a unit, or more than 1 PiB.
pub fn parse_size(text: &str) -> Result<ByteSize, UnitError> {
    parse(text, "size", &SIZES, LARGEST, "MiB", "\"1024TiB\" or less").map(ByteSize)
}

/// Parses a rate.
///
/// # Errors
/// When the text is not a whole number, a slash and a period, or a rate that nothing could count.
pub fn parse_rate(text: &str) -> Result<Rate, UnitError> {
    let malformed = |advice: String| UnitError::Malformed { text: text.to_owned(), what: "rate", advice };
    let usual = || malformed("a number and a period, such as \"20/s\", \"10/m\" or \"500/h\"".to_owned());
    let trimmed = text.trim();
    if !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UnitError::NoUnit { number: trimmed.to_owned(), advice: format!("\"{trimmed}/s\"") });
    }
    let Some((number, period)) = trimmed.split_once('/') else { return Err(usual()) };
    let (number, period) = (number.trim(), period.trim());
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(usual());
    }
    if number.bytes().all(|digit| digit == b'0') {
        return Err(malformed("a number above zero; who may not enter at all stands in \"deny\"".to_owned()));
    }
    let too_many = || UnitError::TooLarge {
        text: text.to_owned(),
        what: "rate",
        advice: format!("\"{MOST_IN_PERIOD}/s\" or less"),
    };
    let count = number.parse().ok().and_then(NonZeroU32::new).filter(|count| count.get() <= MOST_IN_PERIOD);
    let count = count.ok_or_else(too_many)?;
    // `/m` is one minute, `/10m` are ten.
    let spelled =
        if period.starts_with(|c: char| c.is_ascii_digit()) { period.to_owned() } else { format!("1{period}") };
    let period = parse_duration(&spelled).map_err(|error| match error {
        // A period spelled out is the likeliest slip: `20/sec`, `10/min`.
        UnitError::Malformed { advice, .. } if advice.starts_with("\"1") && !advice.ends_with("d\"") => {
            malformed(format!("\"{number}/{}\"", advice.trim_matches('"').trim_start_matches('1')))
        }
        _ => usual(),
    })?;
    // Below a second, what clients are told in whole seconds would be wrong; above a day, nobody waits for it.
    if period < Duration::from_secs(1) || period > Duration::from_secs(86_400) || period.subsec_nanos() != 0 {
        return Err(malformed("a period from \"1s\" to \"1d\", in whole seconds".to_owned()));
    }
    Ok(Rate { count, period })
}

/// Our choice: above what one machine could answer, and within what the arithmetic can count.
const MOST_IN_PERIOD: u32 = 1_000_000;

/// So many in so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In how long: whole seconds, from one to those of a day.
    pub period: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = display_duration(self.period);
        let shown = period.strip_prefix('1').filter(|unit| unit.starts_with(|c: char| c.is_ascii_alphabetic()));
        write!(f, "{}/{}", self.count, shown.unwrap_or(&period))
    }
}

/// Parses a size in a second: `1KiB/s`.
///
/// # Errors
/// When the text is not a size and `/s`, or more than 1 PiB.
pub fn parse_byte_rate(text: &str) -> Result<ByteRate, UnitError> {
    const WHAT: &str = "size in a second";
    let Some(size) = text.trim().strip_suffix("/s") else {
        let right = parse_size(text).unwrap_or(ByteSize(1 << 10));
        let is_number = text.trim().parse::<u64>().is_ok();
        return Err(if is_number {
            UnitError::NoUnit { number: text.trim().to_owned(), advice: format!("\"{}B/s\"", text.trim()) }
        } else {
            UnitError::Malformed { text: text.to_owned(), what: WHAT, advice: format!("\"{right}/s\"") }
        });
    };
    let ByteSize(bytes) = parse_size(size).map_err(|_| UnitError::Malformed {
        text: text.to_owned(),
        what: WHAT,
        advice: "a size and \"/s\", such as \"1KiB/s\"".to_owned(),
    })?;
    Ok(ByteRate(bytes))
}

/// A number of bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRate(pub u64);

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = shortest(self.0, &SIZES[..4]).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// Writes a duration as the configuration would spell it.
pub fn display_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, factor) = shortest(millis, &TIMES).unwrap_or(("ms", 1));
    format!("{}{unit}", millis / factor)
}

/// The largest unit that divides the number.
fn shortest(number: u64, units: &[(&'static str, u64)]) -> Option<(&'static str, u64)> {
    units.iter().copied().find(|(_, factor)| number != 0 && number.is_multiple_of(*factor))
}

/// One whole number and one unit of the table.
fn parse(
    text: &str,
    what: &'static str,
    units: &[(&str, u64)],
    most: u64,
    usual: &str,
    limit: &str,
) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    if number.is_empty() {
        let advice = if what == "duration" {
            "a number and a unit, such as \"30s\""
        } else {
            "a number and a unit, such as \"20MiB\""
        };
        return Err(UnitError::Malformed { text: text.to_owned(), what, advice: advice.to_owned() });
    }
    if unit.is_empty() {
        // Somebody who writes 20971520 counts bytes; somebody who writes 20 does not.
        let bytes = number.parse().ok().filter(|bytes| what == "size" && *bytes > 1024);
        let right = bytes.map_or_else(|| format!("{number}{usual}"), |bytes| ByteSize(bytes).to_string());
        return Err(UnitError::NoUnit { number: number.to_owned(), advice: format!("\"{right}\"") });
    }
    let unit = unit.trim();
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        // A unit in the wrong case or spelled out is the likeliest slip.
        let near = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).or_else(|| {
            let first = unit.chars().next()?.to_ascii_lowercase();
            units.iter().filter(|_| unit.len() > 2).find(|(name, _)| name.to_ascii_lowercase().starts_with(first))
        });
        let advice = match near {
            Some((name, _)) => format!("\"{number}{name}\""),
            None => {
                let mut names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
                names.reverse();
                format!("one number with one of the units {}, such as \"{number}{usual}\"", names.join(", "))
            }
        };
        return Err(UnitError::Malformed { text: text.to_owned(), what, advice });
    };
    let too_large = || UnitError::TooLarge { text: text.to_owned(), what, advice: limit.to_owned() };
    let total = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).ok_or_else(too_large)?;
    if total > most { Err(too_large()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_one_number_and_one_unit() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("14d", 1_209_600_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(display_duration(Duration::from_millis(millis)), text);
        }
        for (text, advice) in [
            ("75", "\"75s\""),
            ("5 min", "\"5m\""),
            ("5M", "\"5m\""),
            ("10sec", "\"10s\""),
            ("", "a number and a unit, such as \"30s\""),
            ("-1s", "a number and a unit, such as \"30s\""),
            ("99999999999999999999s", "\"3650d\" or less"),
            ("3651d", "\"3650d\" or less"),
            ("1h30m", "\"1h\""),
        ] {
            assert_eq!(parse_duration(text).map_err(|e| e.advice().to_owned()), Err(advice.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_size_is_binary_or_decimal_as_written() {
        for (text, bytes) in
            [("0B", 0), ("64KiB", 65_536), ("20MiB", 20 << 20), ("20MB", 20_000_000), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse_size(text), Ok(ByteSize(bytes)), "{text}");
        }
        assert_eq!(ByteSize(20 << 20).to_string(), "20MiB");
        assert_eq!(ByteSize(0).to_string(), "0B");
        assert_eq!(ByteSize(1001).to_string(), "1001B");
        assert_eq!(parse_size("20").map_err(|e| e.to_string()), Err("\"20\" has no unit".to_owned()));
        assert_eq!(parse_size("20mib").map_err(|e| e.advice().to_owned()), Err("\"20MiB\"".to_owned()));
        assert!(parse_size("9999999999TiB").is_err());
    }

    #[test]
    fn a_rate_is_a_number_in_a_period() {
        for (text, count, seconds) in
            [("20/s", 20, 1), ("10/m", 10, 60), ("500/h", 500, 3600), ("100/10m", 100, 600), ("1/d", 1, 86_400)]
        {
            let rate = parse_rate(text).expect(text);
            assert_eq!((rate.count.get(), rate.period), (count, Duration::from_secs(seconds)), "{text}");
            assert_eq!(rate.to_string(), text);
        }
        assert_eq!(parse_rate("100/1m").map(|rate| rate.to_string()), Ok("100/m".to_owned()));
        for (text, advice) in [
            ("20", "\"20/s\""),
            ("20/sec", "\"20/s\""),
            ("10/min", "\"10/m\""),
            ("5/hours", "\"5/h\""),
            ("20 per second", "a number and a period, such as \"20/s\", \"10/m\" or \"500/h\""),
            ("20/", "a number and a period, such as \"20/s\", \"10/m\" or \"500/h\""),
            ("", "a number and a period, such as \"20/s\", \"10/m\" or \"500/h\""),
            ("0/s", "a number above zero; who may not enter at all stands in \"deny\""),
            ("20/250ms", "a period from \"1s\" to \"1d\", in whole seconds"),
            ("20/2d", "a period from \"1s\" to \"1d\", in whole seconds"),
            ("2000000/s", "\"1000000/s\" or less"),
        ] {
            assert_eq!(parse_rate(text).map_err(|e| e.advice().to_owned()), Err(advice.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_byte_rate_is_a_size_in_a_second() {
        for (text, bytes) in [("256B/s", 256), ("1KiB/s", 1024), ("2 MB/s", 2_000_000), ("0B/s", 0)] {
            assert_eq!(parse_byte_rate(text), Ok(ByteRate(bytes)), "{text}");
        }
        assert_eq!(ByteRate(1 << 20).to_string(), "1MiB/s");
        for (text, advice) in [
            ("256", "\"256B/s\""),
            ("1KiB", "\"1KiB/s\""),
            ("fast", "\"1KiB/s\""),
            ("1/s", "a size and \"/s\", such as \"1KiB/s\""),
        ] {
            assert_eq!(parse_byte_rate(text).map_err(|e| e.advice().to_owned()), Err(advice.to_owned()), "{text}");
        }
    }
}
