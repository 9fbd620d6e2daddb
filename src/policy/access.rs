//! Who may enter: the judgement of `allow`, `deny` and `maintenance`, on the client alone.
//!
//! Pure. It comes after the route is known and before anything else of the request counts, so that who is kept out
//! costs no body, no connection upstream, and learns nothing of what is behind.

use std::time::Duration;

use crate::refusal::Refusal;
use crate::site::access::{Access, DenyWith, Guest};
use crate::site::geo::Geo;

/// Lets a guest in, or says what it gets.
///
/// # Errors
/// When it may not enter, or not now.
pub fn admit(access: &Access, guest: Guest) -> Result<(), Refusal> {
    if let Some(cause) = objection(access, guest) {
        return Err(match access.deny_with {
            DenyWith::Forbidden => Refusal::Denied { cause },
            DenyWith::NotFound => Refusal::Hidden { cause },
            DenyWith::Drop => Refusal::Dropped { cause },
        });
    }
    match &access.maintenance {
        Some(maintenance) if maintenance.switch.is_on() && !maintenance.allow.has(guest) => {
            Err(Refusal::Maintenance { retry_after: seconds(maintenance.retry_after) })
        }
        _ => Ok(()),
    }
}

/// Why a guest may not enter, for the record: with the name of the rule (M-11).
fn objection(access: &Access, guest: Guest) -> Option<Box<str>> {
    let Access { allow, deny, .. } = access;
    if deny.has(guest) {
        let entry = deny.entry_of(guest).unwrap_or_default();
        return Some(format!("the client is in \"deny\", by \"{entry}\"").into());
    }
    let is_in = match allow {
        Some(allow) => allow.has(guest),
        None => deny.is_empty() || matches!(guest, Guest::Client(_)),
    };
    if !is_in {
        // It may be anybody, so also one of those who are kept out.
        let is_known = matches!(guest, Guest::Client(_));
        let why = if is_known { "the client is not in \"allow\"" } else { "the address of the client is not known" };
        return Some(why.into());
    }
    access.geo.as_ref().and_then(|geo| foreign(geo, guest))
}

/// Why a guest may not enter by its country: with the country and the rule (N-32). Who is in a network of `allow` is judged
/// all the same: both must let it in.
fn foreign(geo: &Geo, guest: Guest) -> Option<Box<str>> {
    let country = match guest {
        Guest::Client(client) => geo.countries.of(client.ip()),
        Guest::Local | Guest::Unknown => None,
    };
    match country {
        Some(country) if geo.deny.contains(&country) => {
            Some(format!("the client is in {country}, which is in \"geo.deny\"").into())
        }
        Some(country) => {
            let is_allowed = geo.allow.as_ref().is_none_or(|allow| allow.contains(&country));
            (!is_allowed).then(|| format!("the client is in {country}, which is not in \"geo.allow\"").into())
        }
        None if geo.admits_unknown => None,
        None => Some("the country of the client is not known: \"geo.on_unknown\"".into()),
    }
}

/// Whole seconds, rounded up: `Retry-After` knows no others, and 0 would mean at once (RFC 9110 10.2.3).
fn seconds(period: Duration) -> u32 {
    let whole = period.as_secs() + u64::from(period.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::addr::ClientAddr;
    use crate::site::access::{Maintenance, NetworkList, Switch};
    use crate::site::policy::Networks;

    fn list(texts: &[&str]) -> NetworkList {
        let entry = |text: &&str| {
            let networks = match *text {
                "unix" => Networks { nets: Vec::new(), unix: true },
                net => Networks { nets: vec![net.parse().expect("a network")], unix: false },
            };
            (Box::from(*text), networks)
        };
        NetworkList::new(texts.iter().map(entry).collect())
    }

    fn access(allow: Option<&[&str]>, deny: &[&str]) -> Access {
        Access {
            allow: allow.map(list),
            deny: list(deny),
            geo: None,
            deny_with: DenyWith::Forbidden,
            maintenance: None,
        }
    }

    fn guest(text: &str) -> Guest {
        match text {
            "local" => Guest::Local,
            "unknown" => Guest::Unknown,
            address => Guest::Client(ClientAddr::new(address.parse().expect("an address"))),
        }
    }

    #[test]
    fn the_lists_decide_on_the_client() {
        let office: Option<&[&str]> = Some(&["198.51.100.0/24", "2001:db8:7::/48"]);
        for (allow, deny, who, may) in [
            // Nobody is kept out by what is not said.
            (None, &[][..], "203.0.113.9", true),
            (None, &[], "unknown", true),
            (None, &[], "local", true),
            // Only those.
            (office, &[], "198.51.100.7", true),
            (office, &[], "::ffff:198.51.100.7", true),
            (office, &[], "2001:db8:7::1", true),
            (office, &[], "203.0.113.9", false),
            (office, &[], "2001:db8:8::1", false),
            (office, &[], "127.0.0.1", false),
            (office, &[], "local", false),
            (office, &[], "unknown", false),
            // All but those.
            (None, &["203.0.113.0/24"], "203.0.113.9", false),
            (None, &["203.0.113.0/24"], "::ffff:203.0.113.9", false),
            (None, &["203.0.113.0/24"], "198.51.100.7", true),
            (None, &["203.0.113.0/24"], "2001:db8::1", true),
            (None, &["203.0.113.0/24"], "local", false),
            (None, &["203.0.113.0/24"], "unknown", false),
            // What is denied stays so.
            (office, &["198.51.100.7/32"], "198.51.100.7", false),
            (office, &["198.51.100.7/32"], "198.51.100.8", true),
            (office, &["0.0.0.0/0"], "198.51.100.8", false),
            (office, &["0.0.0.0/0"], "2001:db8:7::1", true),
            // A process at a unix socket is somebody of its own.
            (Some(&["unix"]), &[], "local", true),
            (Some(&["unix"]), &[], "unknown", false),
            (Some(&["unix"]), &[], "127.0.0.1", false),
            (Some(&["unix"]), &["unix"], "local", false),
            (Some(&["0.0.0.0/0", "::/0"]), &[], "local", false),
            (Some(&["0.0.0.0/0", "::/0"]), &[], "unknown", false),
        ] {
            let verdict = admit(&access(allow, deny), guest(who));
            assert_eq!(verdict.is_ok(), may, "allow {allow:?}, deny {deny:?}: {who}");
        }
    }

    #[test]
    fn the_record_names_the_rule() {
        let both = access(Some(&["198.51.100.0/24"]), &["10.0.0.0/8", "198.51.100.7/32"]);
        for (who, cause) in [
            ("198.51.100.7", "the client is in \"deny\", by \"198.51.100.7/32\""),
            ("10.1.1.1", "the client is in \"deny\", by \"10.0.0.0/8\""),
            ("203.0.113.9", "the client is not in \"allow\""),
            ("unknown", "the address of the client is not known"),
        ] {
            let refusal = Refusal::Denied { cause: cause.into() };
            assert_eq!(admit(&both, guest(who)), Err(refusal), "{who}");
        }
        for (deny_with, code) in
            [(DenyWith::Forbidden, "E403-denied"), (DenyWith::NotFound, "E404-denied"), (DenyWith::Drop, "E444-denied")]
        {
            let access = Access { deny_with, ..both.clone() };
            assert_eq!(admit(&access, guest("10.1.1.1")).map_err(|refusal| refusal.code()), Err(code));
        }
    }

    #[test]
    fn maintenance_is_for_those_who_may_enter() {
        let switch = Arc::new(Switch::new(PathBuf::from("/run/tidegate/switch")));
        let maintenance = |allow: &[&str]| {
            let retry_after = Duration::from_millis(1500);
            Some(Maintenance { switch: Arc::clone(&switch), allow: list(allow), retry_after })
        };
        let open = Access { maintenance: maintenance(&["198.51.100.7/32"]), ..access(None, &[]) };
        assert_eq!(admit(&open, guest("203.0.113.9")), Ok(()), "the file is not there");
        switch.set(true);
        for who in ["203.0.113.9", "2001:db8::1", "unknown", "local"] {
            assert_eq!(admit(&open, guest(who)), Err(Refusal::Maintenance { retry_after: 2 }), "{who}");
        }
        assert_eq!(admit(&open, guest("198.51.100.7")), Ok(()));
        // Who is kept out learns nothing of it, and is not let in by it.
        let closed =
            Access { maintenance: maintenance(&["203.0.113.9/32"]), ..access(Some(&["198.51.100.0/24"]), &[]) };
        assert_eq!(admit(&closed, guest("203.0.113.9")).map_err(|refusal| refusal.code()), Err("E403-denied"));
        assert_eq!(admit(&closed, guest("198.51.100.9")).map_err(|refusal| refusal.code()), Err("E503-maintenance"));
    }

    #[test]
    fn a_time_to_come_back_is_whole_seconds() {
        for (period, expected) in [
            (Duration::ZERO, 1),
            (Duration::from_millis(1), 1),
            (Duration::from_secs(120), 120),
            (Duration::from_millis(1001), 2),
            (Duration::MAX - Duration::from_secs(1), u32::MAX),
        ] {
            assert_eq!(seconds(period), expected, "{period:?}");
        }
    }
}
