//! How many connections the process takes: what the file limit allows, what the file says, and how many of one client.

use crate::site::{ProcessPolicy, SiteTable};

/// What is taken at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Connections and tunnels in all.
    pub(super) connections: usize,
    /// Connections of one client.
    pub(super) of_one: usize,
}

/// Each connection needs a descriptor for the client and one for the endpoint. 64 more are for listeners, files, event
/// queues and reloads, our choice: some 25 are in use with two workers.
const RESERVED: usize = 64;

impl Capacity {
    /// What a table asks for, as far as the machine allows it.
    pub(super) fn of(table: &SiteTable, descriptors: usize) -> Self {
        let connections = connections(&table.edge.process, descriptors);
        let said = table.sites().iter().filter_map(|site| site.connections.as_ref()?.per_client);
        let said = said.max().map_or(0, |most| most.get() as usize);
        // A quarter, our choice: one address can never take all, nor two; and far more than a browser, an office or a
        // load test needs. Whoever allows one client more on a site means it.
        Self { connections, of_one: (connections / 4).max(said).max(1) }
    }

    /// Says at start what is taken, and which line of the unit file changes it.
    pub(super) fn announce(self, descriptors: usize) {
        let Self { connections, of_one } = self;
        tracing::info!(
            event = "capacity",
            descriptors,
            connections,
            of_one,
            "up to {connections} connections, {of_one} of one client: {descriptors} files may be open \
             (LimitNOFILE= in the unit file, ulimit -n in a shell)"
        );
    }
}

/// See `Capacity::connections`.
fn connections(process: &ProcessPolicy, descriptors: usize) -> usize {
    let possible = (descriptors.saturating_sub(RESERVED) / 2).max(1);
    match process.max_connections {
        Some(wanted) if wanted > possible => {
            let needed = wanted.saturating_mul(2).saturating_add(RESERVED);
            tracing::warn!(
                event = "file_limit",
                wanted,
                possible,
                descriptors,
                "process.max_connections is more than the file limit allows: write LimitNOFILE={needed} in the unit file"
            );
            possible
        }
        Some(wanted) => wanted,
        None => possible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::table;

    /// N-21, G-14: no address can take all, and each connection has room for one upstream.
    #[test]
    fn one_client_has_a_quarter() {
        let mut table = table(&["127.0.0.1:0"], &[]);
        for (descriptors, wanted, connections, of_one) in [
            (262_144, None, 131_040, 32_760),
            (1024, None, 480, 120),
            (1024, Some(100), 100, 25),
            (1024, Some(10_000), 480, 120),
            (1024, Some(1), 1, 1),
            (10, None, 1, 1),
        ] {
            table.edge.process.max_connections = wanted;
            let expected = Capacity { connections, of_one };
            assert_eq!(Capacity::of(&table, descriptors), expected, "{descriptors} {wanted:?}");
        }
    }
}
