//! What may be written in `[admin]`.

use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, mirror};
use crate::config::read::{At, Layer, Node, Reader, read_table};
use crate::config::report::Span;
use crate::config::values::List;

mirror! {
    /// `[admin]`.
    Admin, "[admin]" {
        /// Where `tidegate status` asks, and `/status`, `/metrics`, `/healthz` and `/readyz` are served: a unix socket
        /// (0660: the service's user and group), a loopback address, or `"off"`. Never an address that others reach:
        /// it names clients. Default: `admin.sock` in the service manager's runtime directory or in `/run/tidegate`,
        /// where there is one that can be written, else in `storage`; a start never fails because of the default.
        listen: String = example("\"unix:/run/tidegate/admin.sock\"");
        /// Further addresses that serve `/metrics` alone, for a Prometheus elsewhere: IP address and port. It names
        /// sites, routes and upstreams, and no clients. Default: none.
        metrics: List<String> = example("[\"10.0.0.1:9464\"]");
    }
}
