//! The order in which the endpoints of an upstream are tried: a pure function of load and policy.
//!
//! Load is this worker's own: with connections spread evenly over workers by the kernel, the least
//! loaded endpoint of a worker is close to the least loaded of all, and no worker asks another.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::board::Standing;
use crate::addr::ClientAddr;
use crate::site::upstream::Balance;

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests and tunnels in flight.
    pub in_flight: usize,
    /// How good it is for this request.
    pub standing: Standing,
}

/// Indices of the endpoints, best first. All are there: a connection that fails is tried on the next.
pub fn order(balance: Balance, loads: &[Load], turn: usize, client: Option<ClientAddr>) -> Vec<usize> {
    let count = loads.len();
    let start = match (balance, client) {
        (Balance::HashClient, Some(client)) => {
            let mut hasher = DefaultHasher::new();
            client.hash(&mut hasher);
            // The remainder is below `count`, which is a usize.
            (hasher.finish() % count.max(1) as u64) as usize
        }
        (Balance::HashClient, None) => 0,
        (Balance::LeastConn | Balance::RoundRobin, _) => turn,
    };
    let mut order: Vec<usize> = (0..count).map(|step| (start + step) % count).collect();
    // The sort is stable: equals stay in turn.
    match balance {
        Balance::LeastConn => order.sort_by_key(|&at| (loads[at].standing, loads[at].in_flight)),
        Balance::RoundRobin => order.sort_by_key(|&at| loads[at].standing),
        // A client whose endpoint is back goes back to it: its share is who it always was.
        Balance::HashClient => order.sort_by_key(|&at| match loads[at].standing {
            Standing::Reserve => Standing::Usable,
            standing => standing,
        }),
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Load = Load { in_flight: 0, standing: Standing::Usable };

    #[test]
    fn the_least_loaded_comes_first_and_equals_take_turns() {
        let loads = [Load { in_flight: 2, ..FREE }, FREE, FREE];
        assert_eq!(order(Balance::LeastConn, &loads, 0, None), [1, 2, 0]);
        assert_eq!(order(Balance::LeastConn, &loads, 2, None), [2, 1, 0]);
        assert_eq!(order(Balance::RoundRobin, &loads, 1, None), [1, 2, 0]);
    }

    #[test]
    fn an_endpoint_that_failed_comes_last() {
        let loads = [Load { standing: Standing::Avoided, ..FREE }, Load { in_flight: 9, ..FREE }];
        assert_eq!(order(Balance::LeastConn, &loads, 0, None), [1, 0]);
        assert_eq!(order(Balance::RoundRobin, &loads, 0, None), [1, 0]);
    }

    #[test]
    fn the_better_comes_first_and_none_is_left_out() {
        use Standing::{Avoided, Ejected, NotReady, Reserve, Unhealthy, Usable};
        let loads = [NotReady, Unhealthy, Ejected, Avoided, Reserve, Usable].map(|standing| Load { standing, ..FREE });
        for balance in [Balance::LeastConn, Balance::RoundRobin] {
            for turn in 0..6 {
                assert_eq!(order(balance, &loads, turn, None), [5, 4, 3, 2, 1, 0]);
            }
        }
        assert_eq!(order(Balance::HashClient, &loads[3..], 0, None), [1, 2, 0], "a client goes back to its own");
    }

    #[test]
    fn a_client_keeps_its_endpoint() {
        let client = Some(ClientAddr::new([203, 0, 113, 10].into()));
        let first = order(Balance::HashClient, &[FREE; 4], 0, client);
        assert_eq!(order(Balance::HashClient, &[FREE; 4], 3, client), first);
    }
}
