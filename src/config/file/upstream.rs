//! What may be written about the checks of an upstream and the queue before it.

use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, mirror};
use crate::config::read::{At, Layer, Node, Reader, read_table};
use crate::config::report::Span;
use crate::config::values::{Count, Period, Timeout};

mirror! {
    /// `health`.
    Health, "\"health\"" {
        /// Path that is asked for with GET, and a query if need be. 200 to 399 is healthy. 5xx means that the server wants no
        /// requests now: when all servers say so, requests get 503 at once, or wait for `hold`. Anything else, and silence,
        /// makes requests prefer other servers; where there are none, they are tried. WebSockets that stand are never touched.
        path: String = default("\"/\"");
        /// From one check to the next, give or take a fifth. Default `5s`, our choice: requests find a dead server by
        /// themselves, so this is for those that hang. `0s` switches off what a preset says.
        every: Period = default("\"5s\"");
        /// Longest wait for the answer. Default `5s`: a gateway that loads a large message was seen to be silent for so long.
        timeout: Timeout = default("\"5s\"");
        /// So many checks in a row that fail make a server unhealthy. Default 3: one may be chance.
        failures: Count<1, 100> = default("3");
        /// So many in a row that succeed make it healthy again. Default 1: it is needed.
        successes: Count<1, 100> = default("1");
        /// Open a WebSocket at `path`, wait for the server's first frame, and close. For servers that speak first.
        ws: bool = default("false");
        /// `Host` of the check. Default: the server's address.
        host: String = example("\"claw.example.com\"");
    }
}

mirror! {
    /// `queue`.
    Queue, "\"queue\"" {
        /// Most requests that wait; 503 above it. 0: none waits. Default 100, our choice: more would wait too long anyway.
        size: Count<0, 100_000> = default("100");
        /// Longest wait; 503 after it. Default `5s`, our choice: then people have reloaded the page.
        timeout: Timeout = default("\"5s\"");
    }
}
