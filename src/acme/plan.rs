//! When: renewals, pauses between attempts, alerts. Pure; the clock and chance come from outside.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::fault::Blame;

/// When a CA wants a certificate to be renewed (RFC 9773 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From here on.
    #[serde(with = "time::serde::rfc3339")]
    pub start: OffsetDateTime,
    /// Until here.
    #[serde(with = "time::serde::rfc3339")]
    pub end: OffsetDateTime,
}

/// The renewal of a certificate whose CA says nothing: at two thirds of its lifetime, so that a third is left for a bad
/// day. `share` (0 to 1) moves it forward by up to a fiftieth of the lifetime: certificates that were issued together are
/// not renewed together.
pub fn renewal(not_before: OffsetDateTime, not_after: OffsetDateTime, share: f64) -> OffsetDateTime {
    let lifetime = not_after - not_before;
    not_before + lifetime * 2 / 3 - lifetime * (share / 50.0)
}

/// The renewal that a CA suggests: anywhere in its window (RFC 9773 4.2), but not so late that it expires.
pub fn suggested(window: Window, not_before: OffsetDateTime, not_after: OffsetDateTime, share: f64) -> OffsetDateTime {
    let wanted = window.start + (window.end - window.start).max(time::Duration::ZERO) * share;
    wanted.min(not_after - (not_after - not_before) / 20)
}

/// The pause after the `failures`-th failure in a row. `share` (0 to 1) spreads it by a fifth to either side.
///
/// Who is to blame says how fast it grows and where it ends: a CA that is away is looked for once a minute and found
/// soon after it is back; a name that a CA could not validate costs one of the few failures an hour that it allows.
pub fn pause(blame: Blame, failures: u32, share: f64) -> Duration {
    let (first, factor, longest) = match blame {
        Blame::Ca | Blame::Storage => (10, 2_u64, 60),
        Blame::Limit | Blame::Certificate => (10, 2, 3600),
        Blame::Names => (10, 2, 300),
        // Five in the first hour, the first attempt's two kinds of proof counted: what Let's Encrypt allows for a name.
        Blame::Validation => (60, 4, 6 * 3600),
        Blame::Setup => (10, 2, 6 * 3600),
    };
    let steps = failures.saturating_sub(1).min(16);
    let seconds = factor.saturating_pow(steps).saturating_mul(first).min(longest);
    Duration::from_secs(seconds).mul_f64(0.8 + 0.4 * share.clamp(0.0, 1.0))
}

/// Before this time a certificate that was issued is not replaced because its time has come: a CA that backdates, clips
/// lifetimes or always says "now", or a clock that is ahead, would have certificates ordered without a pause.
pub fn earliest(issued: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    let left: time::Duration = not_after - issued;
    issued + (left / 10_i32).clamp(time::Duration::seconds(10), time::Duration::HOUR)
}

/// When a certificate that is still in force is a matter for a person: `before` its end, but never in the first three
/// quarters of its lifetime: a renewal begins after two thirds, and is not late while it runs.
pub fn alert(not_before: OffsetDateTime, not_after: OffsetDateTime, before: Duration) -> OffsetDateTime {
    let most = (not_after - not_before) / 4;
    let before = time::Duration::try_from(before).unwrap_or(time::Duration::MAX);
    not_after - before.min(most)
}

/// A number from 0 to 1 by chance.
pub fn chance() -> f64 {
    (number() >> 11) as f64 / (u64::MAX >> 11) as f64
}

/// Any number by chance.
pub fn number() -> u64 {
    let mut bytes = [0; 8];
    // Without chance the middle is as good as any.
    aws_lc_rs::rand::fill(&mut bytes).map_or(u64::MAX / 2, |()| u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const START: OffsetDateTime = datetime!(2026-11-20 12:00 UTC);

    #[test]
    fn renewal_is_at_two_thirds_whatever_the_lifetime() {
        for (seconds, early, late) in [(90 * 86400, 58 * 86400, 60 * 86400), (60, 38, 40)] {
            let end = START + time::Duration::seconds(seconds);
            let range = (START + time::Duration::seconds(early))..=(START + time::Duration::seconds(late));
            for share in [0.0, 0.5, 1.0] {
                assert!(range.contains(&renewal(START, end, share)), "{seconds} {share}");
            }
        }
    }

    #[test]
    fn a_suggestion_is_followed_within_reason() {
        let end = START + time::Duration::days(90);
        let at = |days| START + time::Duration::days(days);
        let window = Window { start: at(20), end: at(22) };
        assert_eq!(suggested(window, START, end, 0.5), at(21));
        let never = Window { start: at(500), end: at(501) };
        assert!(suggested(never, START, end, 0.5) < end, "never after the end");
        let reversed = Window { start: at(20), end: at(10) };
        assert_eq!(suggested(reversed, START, end, 1.0), at(20));
    }

    #[test]
    fn orders_are_never_without_a_pause() {
        for (lifetime, expected) in [(90 * 86400, 3600), (600, 60), (60, 10)] {
            let end = START + time::Duration::seconds(lifetime);
            assert_eq!((earliest(START, end) - START).whole_seconds(), expected, "{lifetime}");
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_that_fits_the_cause() {
        for (blame, expected) in [
            (Blame::Ca, [10, 20, 40, 60, 60]),
            (Blame::Certificate, [10, 20, 40, 80, 160]),
            (Blame::Validation, [60, 240, 960, 3840, 15360]),
            (Blame::Names, [10, 20, 40, 80, 160]),
        ] {
            let middle: Vec<u64> = (1..=5).map(|n| pause(blame, n, 0.5).as_secs()).collect();
            assert_eq!(middle, expected, "{blame:?}");
        }
        assert_eq!(pause(Blame::Validation, u32::MAX, 0.5).as_secs(), 6 * 3600);
        assert!(pause(Blame::Ca, 1, 0.0) < pause(Blame::Ca, 1, 1.0));
        // A CA that is back is noticed within 90 s.
        assert!(pause(Blame::Ca, 1000, 1.0) < Duration::from_secs(75));
    }

    #[test]
    fn alerts_never_take_more_than_a_third_of_the_lifetime() {
        let fortnight = Duration::from_secs(14 * 86400);
        let end = START + time::Duration::days(90);
        assert_eq!(alert(START, end, fortnight), end - time::Duration::days(14));
        let end = START + time::Duration::days(6);
        let short = alert(START, end, fortnight);
        assert!(short >= end - time::Duration::days(2), "never more than a third");
        assert!(short > renewal(START, end, 0.0) + time::Duration::hours(8), "and not before a renewal had its time");
    }
}
