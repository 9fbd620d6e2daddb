//! Who may enter a route, as data: lists of networks, what the others get, and the switch of maintenance.
//!
//! Judged on the client, never on the peer; `policy/access.rs` does it. A route that says nothing of this has none of
//! it, so that its requests pay one look at a pointer.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;

use super::geo::Geo;
use super::policy::Networks;
use crate::addr::ClientAddr;

/// Who may enter. At least one of its parts says something.
#[derive(Clone, Debug)]
pub struct Access {
    /// Who may; `None` for everybody.
    pub allow: Option<NetworkList>,
    /// Who may not, whatever `allow` says.
    pub deny: NetworkList,
    /// Who may and may not, by country; `None` for everybody.
    pub geo: Option<Geo>,
    /// What those get who may not.
    pub deny_with: DenyWith,
    /// When nobody may but a few.
    pub maintenance: Option<Maintenance>,
}

/// What a client gets that may not enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenyWith {
    /// 403, in our words.
    #[default]
    Forbidden,
    /// The 404 of a path that no route takes.
    NotFound,
    /// Nothing: the connection is closed, the stream reset.
    Drop,
}

/// While its file is there, requests are answered with 503.
#[derive(Clone, Debug)]
pub struct Maintenance {
    /// The file.
    pub switch: Arc<Switch>,
    /// Who is served all the same.
    pub allow: NetworkList,
    /// What the others are told of the time to come back.
    pub retry_after: Duration,
}

/// Who asks, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A client with an address.
    Client(ClientAddr),
    /// A process at the other end of a unix socket, which is no hop: it has no address.
    Local,
    /// Somebody behind a hop that does not say who.
    Unknown,
}

/// Networks for a look-up on each request, and what they are called for the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkList {
    /// All of them, disjoint and sorted, so that a file of thousands costs a dozen steps.
    nets: Vec<IpNet>,
    /// Whether processes at unix sockets belong to it.
    has_local: bool,
    /// Each entry as it was written.
    entries: Vec<(Box<str>, Networks)>,
}

impl NetworkList {
    /// A list of these entries.
    pub fn new(entries: Vec<(Box<str>, Networks)>) -> Self {
        let all: Vec<IpNet> = entries.iter().flat_map(|(_, networks)| networks.nets.iter().copied()).collect();
        let mut nets = IpNet::aggregate(&all);
        nets.sort();
        let has_local = entries.iter().any(|(_, networks)| networks.unix);
        Self { nets, has_local, entries }
    }

    /// True when it says nothing.
    pub fn is_empty(&self) -> bool {
        self.nets.is_empty() && !self.has_local
    }

    /// True when somebody is in it. Who is not known is in no list.
    pub fn has(&self, guest: Guest) -> bool {
        match guest {
            Guest::Client(client) => self.has_address(client.ip()),
            Guest::Local => self.has_local,
            Guest::Unknown => false,
        }
    }

    fn has_address(&self, ip: IpAddr) -> bool {
        let after = self.nets.partition_point(|net| net.network() <= ip);
        after.checked_sub(1).is_some_and(|at| self.nets[at].contains(&ip))
    }

    /// The first entry that somebody is in, as it was written. For the record: slower than `has`.
    pub fn entry_of(&self, guest: Guest) -> Option<&str> {
        let is_in = |networks: &Networks| match guest {
            Guest::Client(client) => networks.contains(client.ip()),
            Guest::Local => networks.unix,
            Guest::Unknown => false,
        };
        self.entries.iter().find(|(_, networks)| is_in(networks)).map(|(name, _)| &**name)
    }

    /// True when everybody of `other` is in this one too.
    pub fn covers(&self, other: &Self) -> bool {
        // Both are aggregated: what is covered at all is covered by one network.
        let is_covered = |net: &IpNet| self.nets.iter().any(|own| own.contains(net));
        other.nets.iter().all(is_covered) && (self.has_local || !other.has_local)
    }

    /// True when an address of a family is in it.
    pub fn has_some(&self, is_v4: bool) -> bool {
        self.nets.iter().any(|net| net.addr().is_ipv4() == is_v4)
    }

    /// True when every address of a family is in it.
    pub fn has_all(&self, is_v4: bool) -> bool {
        self.nets.iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == is_v4)
    }
}

/// A file that switches something on by being there. An actor looks for it (`policy/switch.rs`); requests read what it
/// saw last.
pub struct Switch {
    file: PathBuf,
    is_on: AtomicBool,
}

impl Switch {
    /// A switch that is off until somebody has looked.
    pub fn new(file: PathBuf) -> Self {
        Self { file, is_on: AtomicBool::new(false) }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the file was there at the last look.
    pub fn is_on(&self) -> bool {
        // One flag alone, that says nothing of other memory.
        self.is_on.load(Ordering::Relaxed)
    }

    /// What a look has shown.
    pub fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
    }
}

impl fmt::Debug for Switch {
    /// The setting alone: two configurations do not differ because a file has come.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Switch").field(&self.file).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list of one entry for each text.
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

    fn client(text: &str) -> Guest {
        Guest::Client(ClientAddr::new(text.parse().expect("an address")))
    }

    #[test]
    fn a_list_has_who_is_in_one_of_its_networks() {
        let texts = ["198.51.100.0/25", "198.51.100.128/25", "10.0.0.0/8", "10.1.0.0/16", "2001:db8:7::/48"];
        let ours = list(&texts);
        for (address, entry) in [
            ("198.51.100.0", Some("198.51.100.0/25")),
            ("198.51.100.255", Some("198.51.100.128/25")),
            ("198.51.101.0", None),
            ("198.51.99.255", None),
            ("10.1.2.3", Some("10.0.0.0/8")),
            ("::ffff:10.1.2.3", Some("10.0.0.0/8")),
            ("11.0.0.0", None),
            ("9.255.255.255", None),
            ("0.0.0.0", None),
            ("2001:db8:7::1", Some("2001:db8:7::/48")),
            ("2001:db8:8::", None),
            ("2001:db8:6:ffff::", None),
            ("::1", None),
            ("::a01:203", None),
        ] {
            assert_eq!(ours.entry_of(client(address)), entry, "{address}");
            assert_eq!(ours.has(client(address)), entry.is_some(), "{address}");
        }
        assert!(!ours.has(Guest::Local) && !ours.has(Guest::Unknown));
    }

    #[test]
    fn who_has_no_address_is_in_no_network() {
        let everybody = list(&["0.0.0.0/0", "::/0"]);
        assert!(everybody.has(client("192.0.2.1")) && everybody.has(client("2001:db8::1")));
        assert!(!everybody.has(Guest::Local) && !everybody.has(Guest::Unknown));
        let unix = list(&["unix"]);
        assert_eq!((unix.has(Guest::Local), unix.has(Guest::Unknown)), (true, false));
        assert_eq!(unix.entry_of(Guest::Local), Some("unix"));
        assert!(!unix.is_empty() && list(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_look_up_finds_what_a_search_finds(
            nets in proptest::collection::vec((any::<[u8; 2]>(), any::<bool>(), 0_u8..=16), 0..40),
            asked in proptest::collection::vec((any::<[u8; 2]>(), any::<bool>()), 1..40),
        ) {
            // Few bits, so that networks touch and overlap.
            let address = |[a, b]: [u8; 2], is_v4| -> IpAddr {
                if is_v4 { [a, b, 0, 0].into() } else { [u16::from_be_bytes([a, b]), 0, 0, 0, 0, 0, 0, 1].into() }
            };
            let net = |(bytes, is_v4, length)| IpNet::new_assert(address(bytes, is_v4), length).trunc();
            let ours = Networks { nets: nets.into_iter().map(net).collect(), unix: false };
            let list = NetworkList::new(vec![("all".into(), ours.clone())]);
            for (bytes, is_v4) in asked {
                let ip = address(bytes, is_v4);
                prop_assert_eq!(list.has(Guest::Client(ClientAddr::new(ip))), ours.contains(ip), "{} in {:?}", ip, ours);
            }
        }
    }

    #[test]
    fn a_list_covers_what_its_parts_make_up_together() {
        let halves = list(&["198.51.100.0/25", "198.51.100.128/25"]);
        for (other, expected) in [
            (&["198.51.100.0/24"][..], true),
            (&["198.51.100.7/32", "198.51.100.200/32"], true),
            (&["198.51.100.0/23"], false),
            (&["198.51.100.0/24", "2001:db8::/32"], false),
            (&["unix"], false),
            (&[], true),
        ] {
            assert_eq!(halves.covers(&list(other)), expected, "{other:?}");
        }
        let whole = list(&["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!((whole.has_all(true), whole.has_all(false)), (true, false));
    }
}
