//! Which addresses are to be open, and what a reload changes: keep, open, close, or change the role.
//!
//! Pure. An address keeps its sockets as long as it stays in the file, whatever it is used for.

use std::collections::BTreeMap;

use crate::addr::ListenAddr;
use crate::site::{Role, SiteTable};

/// What makes an address the same one across reloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// As configured.
    pub(crate) address: ListenAddr,
    /// With port 0 the address alone names nothing: which listener asked, for what, and the
    /// how-manieth time.
    nameless: Option<(Option<Box<str>>, bool, usize)>,
}

/// An address as the configuration wants it. The role's address is the configured one.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Which.
    pub(crate) key: Key,
    /// What for.
    pub(crate) role: Role,
}

/// What a reload does to the listeners.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// New addresses.
    pub(crate) open: Vec<Wanted>,
    /// Addresses that stay and serve something else from now on.
    pub(crate) change: Vec<Wanted>,
    /// Addresses that stay as they are.
    pub(crate) keep: Vec<Key>,
    /// Addresses that are no longer wanted.
    pub(crate) close: Vec<Key>,
}

/// All addresses of a configuration, in its order.
pub(crate) fn wanted(table: &SiteTable) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    for listener in &table.edge.listeners {
        for (addresses, is_tls) in [(&listener.http, false), (&listener.https, true)] {
            for (nth, address) in addresses.iter().enumerate() {
                let nth = addresses[..nth].iter().filter(|earlier| *earlier == address).count();
                let key = Key::new(address, listener.name.as_deref(), is_tls, nth);
                if all.iter().all(|known| known.key != key) {
                    all.push(Wanted {
                        key,
                        role: Role { address: address.clone(), listener: listener.name.clone(), is_tls },
                    });
                }
            }
        }
    }
    all
}

/// Writes the addresses that are really open into the table: a redirect to https, a log line and
/// the status must name the port that the system chose.
/// One name of the service manager may have become several addresses.
pub(crate) fn settle(table: &mut SiteTable, real: impl Fn(&Key) -> Vec<ListenAddr>) {
    for listener in &mut table.edge.listeners {
        let name = listener.name.clone();
        for (addresses, is_tls) in [(&mut listener.http, false), (&mut listener.https, true)] {
            let configured = std::mem::take(addresses);
            for (nth, address) in configured.iter().enumerate() {
                let nth = configured[..nth].iter().filter(|earlier| *earlier == address).count();
                let found = real(&Key::new(address, name.as_deref(), is_tls, nth));
                // Nothing is open where a machine without IPv6 was told to listen on it.
                addresses.extend(if found.is_empty() { vec![address.clone()] } else { found });
            }
        }
    }
}

/// Compares what is open with what is wanted.
pub(crate) fn plan<'a>(open: impl IntoIterator<Item = (&'a Key, &'a Role)>, wanted: Vec<Wanted>) -> Plan {
    let mut open: BTreeMap<&Key, &Role> = open.into_iter().collect();
    let mut plan = Plan::default();
    for want in wanted {
        match open.remove(&want.key) {
            None => plan.open.push(want),
            Some(role) if role.is_tls == want.role.is_tls && role.listener == want.role.listener => {
                plan.keep.push(want.key);
            }
            Some(_) => plan.change.push(want),
        }
    }
    plan.close = open.into_keys().cloned().collect();
    plan
}

impl Key {
    /// The key of an address of one listener.
    fn new(address: &ListenAddr, listener: Option<&str>, is_tls: bool, nth: usize) -> Self {
        let is_nameless = matches!(address, ListenAddr::Tcp(address) if address.port() == 0);
        let nameless = is_nameless.then(|| (listener.map(Box::from), is_tls, nth));
        Self { address: address.clone(), nameless }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::table;

    fn roles(wanted: &[Wanted]) -> Vec<(&Key, &Role)> {
        wanted.iter().map(|want| (&want.key, &want.role)).collect()
    }

    #[test]
    fn an_address_that_stays_is_kept() {
        let before = wanted(&table(&["127.0.0.1:80"], &["127.0.0.1:443"]));
        let plan = plan(roles(&before), wanted(&table(&["127.0.0.1:80"], &["127.0.0.1:443"])));
        assert_eq!((plan.keep.len(), plan.open.len(), plan.change.len(), plan.close.len()), (2, 0, 0, 0));
    }

    #[test]
    fn addresses_are_opened_and_closed_as_the_file_says() {
        let before = wanted(&table(&["127.0.0.1:80"], &["127.0.0.1:443"]));
        let plan = plan(roles(&before), wanted(&table(&[], &["127.0.0.1:443", "127.0.0.1:8443"])));
        assert_eq!(plan.open[0].key.address.to_string(), "127.0.0.1:8443");
        assert_eq!(plan.close[0].address.to_string(), "127.0.0.1:80");
        assert_eq!((plan.keep.len(), plan.open.len(), plan.change.len(), plan.close.len()), (1, 1, 0, 1));
    }

    #[test]
    fn a_role_changes_in_place() {
        let before = wanted(&table(&["127.0.0.1:8080"], &[]));
        let plan = plan(roles(&before), wanted(&table(&[], &["127.0.0.1:8080"])));
        assert_eq!((plan.keep.len(), plan.open.len(), plan.change.len(), plan.close.len()), (0, 0, 1, 0));
        assert!(plan.change[0].role.is_tls);
    }

    #[test]
    fn port_0_is_a_listener_for_each_use() {
        let texts: [&[&str]; 2] = [&["127.0.0.1:0"], &["127.0.0.1:0", "127.0.0.1:0"]];
        let before = wanted(&table(texts[0], texts[1]));
        assert_eq!(before.len(), 3);
        let same = plan(roles(&before), wanted(&table(texts[0], texts[1])));
        assert_eq!((same.keep.len(), same.open.len(), same.change.len(), same.close.len()), (3, 0, 0, 0));
        let fewer = plan(roles(&before), wanted(&table(texts[0], texts[0])));
        assert_eq!((fewer.keep.len(), fewer.close.len()), (2, 1));
    }

    #[test]
    fn the_table_names_the_ports_that_are_open() {
        let mut settled = table(&["127.0.0.1:0"], &["127.0.0.1:0", "127.0.0.1:443"]);
        settle(&mut settled, |key| {
            let Some((_, is_tls, _)) = key.nameless else { return Vec::new() };
            let port = if is_tls { "127.0.0.1:2" } else { "127.0.0.1:1" };
            vec![ListenAddr::Tcp(port.parse().expect("a socket address"))]
        });
        let shown = |addresses: &[ListenAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(&settled.edge.listeners[0].http), ["127.0.0.1:1"]);
        assert_eq!(shown(&settled.edge.listeners[0].https), ["127.0.0.1:2", "127.0.0.1:443"]);
    }
}
