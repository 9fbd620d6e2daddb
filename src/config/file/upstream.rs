//! What may be written about upstreams: servers, checks, the queue before them, TLS towards them.

use crate::config::kinds::Secret;
use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, choice, mirror};
use crate::config::read::{At, Layer, Node, Reader, read_table};
use crate::config::report::Span;
use crate::config::values::{Count, List, Period, Timeout};

mirror! {
    /// One of `[upstreams]`.
    Upstream, "an upstream" {
        /// Its servers: `127.0.0.1:18789`, `http://name:port`, `https://name`, `unix:/path`. Names
        /// are resolved again for each new connection.
        servers: List<String> = required("[\"127.0.0.1:18789\"]");
        /// How a server is chosen: `least-conn`, `round-robin`, or `hash:client`, which keeps a
        /// client at its server. Default `least-conn`: tunnels live for days, and turns ignore it. Each
        /// worker counts for itself.
        balance: Balance = default("\"least-conn\"");
        /// How long requests without a body, and upgrades, wait while no server answers, instead
        /// of failing at once. Default `0s`: off.
        hold: Period = default("\"0s\"");
        /// How its servers are checked. Without it they are not: requests alone find out. A server that fails again and
        /// again is passed over for a while all the same, when there are others.
        health: Health = example("{ path = \"/startupz\" }");
        /// Most requests in flight at all servers together, for the whole process; more wait in `queue`. WebSockets are
        /// not counted once they stand, because they live for days. Default: no bound, for a number that is too low refuses
        /// what the server could do, and only you can know it.
        max_in_flight: Count<1, 1_000_000> = example("200");
        /// Where requests wait that are above `max_in_flight`.
        queue: Queue = example("{ size = 50, timeout = \"2s\" }");
        /// How long an idle connection is kept for the next request. Must be below the server's
        /// own limit, or requests race its close. Default `4s`: Node closes at 5 s.
        keep_alive: Period = default("\"4s\"");
        /// How many idle connections each worker keeps. Default 64, our choice: enough for a busy
        /// page, few enough for a small server's file limit.
        max_idle: Count<0, 100_000> = default("64");
        /// TLS towards the servers, when the system's authorities are not enough. Servers without
        /// a scheme then speak TLS.
        tls: UpstreamTls = example("{ ca = \"upstream-ca.pem\" }");
    }
}

mirror! {
    /// `tls` of an upstream.
    UpstreamTls, "\"tls\" of an upstream" {
        /// PEM file with the authorities that are accepted in place of the system's.
        ca: String = example("\"upstream-ca.pem\"");
        /// PEM file with our own certificate chain, for mutual TLS. Needs `key`.
        cert: String = example("\"edge.pem\"");
        /// The private key of `cert`, by reference.
        key: Secret = example("{ file = \"edge.key\" }");
        /// The name that the server's certificate must have. Default: the name in `servers`.
        server_name: String = example("\"gateway.internal\"");
    }
}

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

choice! {
    /// `balance`.
    Balance { "least-conn" => LeastConn, "round-robin" => RoundRobin, "hash:client" => HashClient, }
}
