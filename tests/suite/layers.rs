//! Who may know whom: the table of the house (ARCHITECTURE.md), checked against every `crate::` path in `src`.
//!
//! Each file has a row, but for modules of unit tests (`tests.rs`, `testing.rs`), which may reach for
//! whatever they need. A row lists what its file may import, by module; `words` stands for layer 0.
//! A name matches itself and, where it ends in `/`, all modules below it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Layer 0: what everything may speak of.
const WORDS: [&str; 6] = ["addr", "alarm", "body", "refusal", "drain", "scratch"];

/// One row: layer, file below `src` without `.rs`, what it may import.
type Row = (u8, &'static str, &'static [&'static str]);

/// The table. Lower layers first; a file imports lower layers, or a child or sibling that its row lists.
const TABLE: &[Row] = &[
    (0, "addr", &[]),
    (0, "alarm", &[]),
    (0, "body", &["alarm", "body/"]),
    (0, "body/collect", &["body"]),
    (0, "refusal", &["refusal/"]),
    (0, "refusal/answer", &["body", "refusal"]),
    (0, "refusal/limit", &["refusal"]),
    (0, "drain", &[]),
    (0, "scratch", &[]),
    (1, "framing", &["framing/"]),
    (1, "framing/fault", &[]),
    (1, "framing/head", &["words", "framing/fault"]),
    (1, "framing/intake", &["words"]),
    (1, "framing/rest", &["framing"]),
    (1, "framing/sending", &["words"]),
    (1, "site", &["words", "site/"]),
    (1, "site/access", &["words", "site/geo", "site/policy"]),
    (1, "site/crl", &[]),
    (1, "site/geo", &[]),
    (1, "site/acme", &["words"]),
    (1, "site/auth", &["site/policy", "site/upstream", "site/users"]),
    (1, "site/limit", &[]),
    (1, "site/route", &["words", "site/access", "site/auth", "site/limit", "site/policy", "site/upstream"]),
    (1, "site/policy", &["words", "site/crl"]),
    (1, "site/upstream", &["words"]),
    (1, "site/users", &[]),
    (1, "snapshot", &["site"]),
    (1, "storage", &[]),
    (2, "config", &["words", "config/", "site", "site/policy", "storage"]),
    (2, "config/units", &[]),
    (2, "config/report", &[]),
    // Reading a file: one group, whose parts know one another as types and their readers do.
    (2, "config/mirror", &["config/read", "config/report"]),
    (2, "config/read", &["config/file", "config/mirror", "config/report", "config/units"]),
    (2, "config/values", &["config/mirror", "config/read", "config/report", "config/units"]),
    (2, "config/kinds", &["config/file", "config/mirror", "config/read", "config/report", "config/values"]),
    (
        2,
        "config/file",
        &[
            "config/file/",
            "config/kinds",
            "config/mirror",
            "config/read",
            "config/report",
            "config/units",
            "config/values",
        ],
    ),
    (2, "config/file/access", &["config/mirror", "config/read", "config/report", "config/values"]),
    (2, "config/file/upstream", &["config/kinds", "config/mirror", "config/read", "config/report", "config/values"]),
    (2, "config/file/admin", &["config/mirror", "config/read", "config/report", "config/values"]),
    (2, "config/file/limits", &["config/mirror", "config/read", "config/report", "config/units", "config/values"]),
    (2, "config/file/auth", &["config/kinds", "config/mirror", "config/read", "config/report", "config/values"]),
    (2, "config/file/acme", &["config/kinds", "config/mirror", "config/read", "config/report", "config/values"]),
    (2, "config/disk", &["config/report"]),
    (
        2,
        "config/include",
        &["config/disk", "config/file", "config/mirror", "config/read", "config/report", "config/values"],
    ),
    (2, "config/preset", &["config/file", "config/read", "config/report"]),
    (2, "config/schema", &["config/file", "config/mirror", "config/read"]),
    (2, "config/show", &["words", "config/compile/text", "config/file", "config/mirror", "config/read"]),
    (2, "config/compile", &["words", "config/", "site", "site/"]),
    (2, "config/compile/access", &["words", "config/", "site", "site/"]),
    (2, "config/compile/acme", &["words", "config/", "site", "site/"]),
    (2, "config/compile/auth", &["words", "config/", "site", "site/"]),
    (2, "config/compile/admin", &["words", "config/", "site", "site/"]),
    (2, "config/compile/certificate", &["words", "config/", "site", "site/"]),
    (2, "config/compile/dns", &["words", "config/", "site", "site/"]),
    (2, "config/compile/files", &["words", "config/", "site", "site/"]),
    (2, "config/compile/limits", &["words", "config/", "site", "site/"]),
    (2, "config/compile/listen", &["words", "config/", "site", "site/"]),
    (2, "config/compile/networks", &["words", "config/", "site", "site/"]),
    (2, "config/compile/route", &["words", "config/", "site", "site/"]),
    (2, "config/compile/site", &["words", "config/", "site", "site/"]),
    (2, "config/compile/text", &["words", "config/compile", "site", "site/"]),
    (2, "config/compile/upstream", &["words", "config/", "site", "site/"]),
    (2, "policy", &["words", "policy/", "site", "site/"]),
    (2, "policy/access", &["words", "site/access", "site/geo"]),
    (2, "policy/geo", &["site", "site/geo", "snapshot"]),
    (2, "policy/count", &["policy/store", "site/access"]),
    (
        2,
        "policy/limits",
        &[
            "words",
            "policy/count",
            "policy/lockout",
            "policy/rate",
            "policy/store",
            "site",
            "site/access",
            "site/limit",
            "snapshot",
        ],
    ),
    (2, "policy/lockout", &["words", "policy/store", "site/access", "site/limit"]),
    (2, "policy/rate", &["words", "policy/store", "site/access", "site/limit"]),
    (2, "policy/store", &["words", "site/access"]),
    (2, "policy/credentials", &["site/users"]),
    (2, "policy/decision", &[]),
    (2, "policy/password", &["words", "policy/credentials", "policy/store", "site/access", "site/users"]),
    (2, "policy/user_files", &["site", "site/", "snapshot"]),
    (2, "policy/switch", &["site", "site/access", "snapshot"]),
    (2, "policy/trust", &["words", "policy/names", "site", "site/"]),
    (2, "policy/headers", &["words", "policy/names", "site", "site/"]),
    (2, "policy/names", &[]),
    (2, "tls", &["words", "tls/", "site", "site/"]),
    (2, "tls/certs", &["words", "tls/subject", "site", "site/"]),
    (2, "tls/client", &["tls/fault", "tls/policies", "site/upstream"]),
    (2, "tls/fault", &["words"]),
    (2, "tls/files", &["words", "tls/", "snapshot", "site", "site/"]),
    (2, "tls/hello", &["tls/fault"]),
    (2, "tls/holding", &[]),
    (2, "tls/kept", &["words", "tls/certs", "tls/fault", "tls/files", "tls/policies", "site/policy"]),
    (2, "tls/load", &["words", "tls/", "site", "site/"]),
    (2, "tls/local_ca", &["words", "tls/", "snapshot", "storage", "site", "site/"]),
    (2, "tls/policies", &["tls/certs", "tls/fault", "tls/proofs", "site", "site/"]),
    (2, "tls/proofs", &["words"]),
    (2, "tls/revocation", &["tls/files", "tls/policies", "site", "site/", "snapshot"]),
    (2, "tls/subject", &[]),
    (2, "https", &["tls"]),
    (3, "acme", &["words", "acme/", "snapshot", "storage", "tls/certs", "tls/proofs"]),
    (3, "acme/account", &["acme", "acme/ca", "acme/dns/persist", "acme/fault", "acme/store", "site/acme"]),
    (3, "acme/alert", &["words", "acme/event", "acme/plan", "snapshot", "tls/certs"]),
    (3, "acme/ca", &["acme/fault", "acme/plan", "https", "site/acme"]),
    (3, "acme/dns", &["words", "acme/dns/", "https", "site/acme"]),
    // Each provider and its error, as the parts of a group know one another.
    (3, "acme/dns/ask", &[]),
    (3, "acme/dns/acme_dns", &["acme/dns", "acme/dns/resolver", "https", "site/acme"]),
    (3, "acme/dns/cloudflare", &["acme/dns", "https", "site/acme"]),
    (3, "acme/dns/exec", &["acme/dns", "acme/program", "site/acme"]),
    (3, "acme/dns/issue", &[]),
    (3, "acme/dns/persist", &["words", "acme/dns/issue", "acme/dns/resolver", "site/acme"]),
    (3, "acme/dns/resolver", &["words", "acme/dns/ask"]),
    (3, "acme/dns/rfc2136", &["acme/dns", "acme/dns/ask", "site/acme"]),
    (3, "acme/check", &["words", "acme/check/", "acme/dns/persist", "acme/dns/resolver", "site/acme", "tls/proofs"]),
    (3, "acme/check/caa", &["acme/dns/issue"]),
    (3, "acme/check/probe", &["words", "site/acme", "tls", "tls/proofs"]),
    (3, "acme/event", &["acme/fault", "acme/program", "snapshot", "tls/certs"]),
    (3, "acme/fault", &["https"]),
    (3, "acme/health", &["acme/ca", "acme/fault", "acme/plan", "site/acme"]),
    (3, "acme/keeper", &["words", "acme", "acme/", "acme/keeper/", "site", "site/", "tls", "tls/certs"]),
    (
        3,
        "acme/keeper/outcome",
        &["words", "acme/", "acme/keeper", "acme/keeper/pursuit", "site", "site/", "tls", "tls/certs"],
    ),
    (
        3,
        "acme/keeper/pursuit",
        &["words", "acme", "acme/", "acme/dns/persist", "acme/keeper", "acme/keeper/stages", "site", "site/", "tls"],
    ),
    (3, "acme/keeper/stages", &["words", "acme", "acme/"]),
    (3, "acme/keeper/timing", &["acme", "acme/", "acme/keeper", "site/", "tls/certs"]),
    (
        3,
        "acme/order",
        &[
            "words",
            "acme/ca",
            "acme/dns",
            "acme/fault",
            "acme/order/",
            "site/acme",
            "tls/certs",
            "tls/kept",
            "tls/proofs",
        ],
    ),
    (
        3,
        "acme/order/proof",
        &["words", "acme/ca", "acme/dns", "acme/fault", "acme/order", "site/acme", "tls", "tls/proofs"],
    ),
    (3, "acme/plan", &["acme/fault"]),
    (3, "acme/program", &["site/acme"]),
    (3, "acme/store", &["words", "acme/fault", "acme/plan", "site/acme", "storage", "tls", "tls/certs", "tls/kept"]),
    (3, "ocsp", &["https", "ocsp/", "tls/certs"]),
    (3, "ocsp/answer", &["ocsp/der", "ocsp/question", "tls"]),
    (3, "ocsp/der", &[]),
    (3, "ocsp/question", &["ocsp/der"]),
    (2, "access_log", &["words", "access_log/", "site"]),
    (2, "access_log/clock", &[]),
    (2, "access_log/encode", &["access_log/redact"]),
    (2, "access_log/record", &["words", "access_log/clock", "access_log/encode", "access_log/redact"]),
    (2, "access_log/redact", &[]),
    (2, "access_log/writer", &["access_log/clock", "access_log/encode", "access_log/record", "site"]),
    (2, "metrics", &["words", "metrics/", "site", "site/route"]),
    (2, "metrics/cell", &[]),
    (2, "metrics/sheet", &["metrics/cell"]),
    (2, "metrics/sums", &["metrics", "metrics/cell", "metrics/sheet"]),
    (2, "metrics/text", &["metrics/cell", "metrics/sums", "metrics/text/"]),
    (2, "metrics/text/page", &["metrics/cell"]),
    (2, "metrics/tunnels", &["words"]),
    (2, "metrics/window", &["metrics/sums"]),
    (3, "forward", &["words", "forward/", "framing/sending", "site", "site/", "tls/client"]),
    (3, "forward/balance", &["words", "forward/board", "site", "site/"]),
    (3, "forward/board", &["words", "forward/gate", "site", "site/"]),
    (3, "forward/gate", &["site/upstream"]),
    (3, "forward/handshake", &[]),
    (3, "forward/health", &["forward/board", "forward/health/", "snapshot", "site", "site/"]),
    (
        3,
        "forward/health/probe",
        &[
            "forward/answer",
            "forward/connect",
            "forward/handshake",
            "forward/tunnel/frames",
            "site/upstream",
            "tls/client",
        ],
    ),
    (3, "forward/answer", &["words", "forward", "forward/", "framing", "framing/rest", "site/upstream"]),
    (3, "forward/connect", &["words", "forward/link", "site", "site/", "tls/client"]),
    (3, "forward/lease", &["words", "forward/gate", "forward/link", "forward/pool", "site/upstream"]),
    (3, "forward/link", &["words", "forward/connect", "framing/intake"]),
    (3, "forward/pool", &["words", "forward/board", "forward/link", "site", "site/"]),
    (3, "forward/upload", &["words", "forward/link", "framing/sending"]),
    (3, "forward/tunnel", &["words", "forward/tunnel/"]),
    (3, "forward/tunnel/frames", &[]),
    (3, "forward/tunnel/lane", &["words", "forward/tunnel/frames"]),
    (
        4,
        "request",
        &[
            "words",
            "body/",
            "request/",
            "snapshot",
            "site",
            "site/",
            "policy",
            "policy/",
            "forward",
            "forward/",
            "tls",
            "tls/proofs",
            "access_log",
            "metrics",
        ],
    ),
    (
        4,
        "request/exchange",
        &[
            "words",
            "request",
            "request/auth",
            "request/reply",
            "snapshot",
            "site",
            "site/",
            "policy/",
            "forward",
            "access_log",
            "metrics",
        ],
    ),
    (
        4,
        "request/auth",
        &["words", "request/auth/", "request/exchange", "request/host", "request/reply", "policy/", "site/"],
    ),
    (
        4,
        "request/auth/forward",
        &[
            "words",
            "request",
            "request/auth",
            "request/exchange",
            "request/host",
            "request/reply",
            "request/service",
            "policy/",
            "site/",
        ],
    ),
    (4, "request/hook", &["words", "request", "request/exchange", "request/service", "policy/", "site/", "access_log"]),
    (4, "request/host", &["words", "request", "site"]),
    (4, "request/judge", &["words", "request", "site/policy"]),
    (
        4,
        "request/limit",
        &["words", "request", "request/exchange", "policy/count", "policy/limits", "site", "site/limit"],
    ),
    (
        4,
        "request/outgoing",
        &["words", "request", "request/exchange", "request/host", "request/upgrade", "policy/", "site/"],
    ),
    (4, "request/reply", &["words", "request/exchange", "site/", "policy/", "forward", "forward/answer"]),
    (4, "request/service", &["words", "request/exchange", "forward", "forward/", "site/"]),
    (
        4,
        "request/upgrade",
        &[
            "words",
            "request",
            "request/",
            "snapshot",
            "site",
            "site/",
            "policy/count",
            "forward",
            "forward/",
            "access_log",
            "metrics",
            "metrics/",
        ],
    ),
    (
        5,
        "connection",
        &[
            "words",
            "connection/",
            "request",
            "tls",
            "site",
            "site/",
            "policy/count",
            "policy/limits",
            "access_log",
            "metrics/sheet",
        ],
    ),
    (
        5,
        "connection/http1",
        &[
            "words",
            "connection",
            "connection/farewell",
            "connection/http1/",
            "connection/socket",
            "framing",
            "framing/",
            "request",
            "policy/headers",
            "forward/tunnel",
        ],
    ),
    (5, "connection/http1/line", &["words", "connection/http1", "connection/socket", "framing", "framing/"]),
    (5, "connection/http1/outbound", &["framing", "framing/sending"]),
    (5, "connection/farewell", &["words", "connection/socket"]),
    (5, "connection/frame_meter", &["connection/frame_meter/wire"]),
    (5, "connection/frame_meter/wire", &["words", "connection/frame_meter"]),
    (
        5,
        "connection/http2",
        &[
            "words",
            "connection",
            "connection/farewell",
            "connection/frame_meter",
            "connection/http2/",
            "connection/socket",
            "request",
            "request/reply",
            "forward/tunnel",
        ],
    ),
    (5, "connection/http2/pace", &["words", "request/reply", "site/policy"]),
    (5, "connection/http2/starts", &[]),
    (5, "connection/proxy_protocol", &[]),
    (5, "connection/socket", &["words"]),
    (6, "listen", &["words", "listen/", "connection", "connection/socket", "policy/count", "site", "access_log"]),
    (6, "listen/bind", &["words"]),
    (
        6,
        "worker",
        &[
            "words",
            "listen",
            "listen/",
            "connection",
            "policy/limits",
            "policy/password",
            "request",
            "forward",
            "forward/board",
            "forward/pool",
            "snapshot",
            "site",
            "tls",
            "access_log",
            "metrics",
            "metrics/",
        ],
    ),
    (6, "admin", &["words", "admin/", "listen/bind", "site", "site/policy", "storage"]),
    (
        6,
        "admin/facts",
        &[
            "words",
            "admin/reloads",
            "worker",
            "listen",
            "snapshot",
            "site",
            "site/",
            "tls/certs",
            "acme/alert",
            "policy/limits",
            "forward/board",
            "forward/pool",
            "access_log",
            "metrics",
            "metrics/",
        ],
    ),
    (6, "admin/page", &["words", "admin/", "metrics/text"]),
    (6, "admin/reloads", &[]),
    (6, "admin/serve", &["words", "admin/", "listen/bind"]),
    (6, "admin/status", &["words", "admin/", "site", "site/policy", "tls/", "acme/", "metrics/"]),
    (
        7,
        "server",
        &[
            "words",
            "server/",
            "admin",
            "admin/",
            "metrics",
            "metrics/",
            "worker",
            "listen",
            "listen/",
            "forward/board",
            "forward/health",
            "ocsp",
            "policy/geo",
            "policy/limits",
            "policy/password",
            "policy/switch",
            "policy/user_files",
            "config",
            "config/",
            "snapshot",
            "site",
            "site/",
            "tls",
            "tls/",
            "acme",
            "acme/",
            "storage",
            "access_log",
        ],
    ),
    (7, "server/addresses", &["words", "site"]),
    (7, "server/banner", &["words", "server", "server/diff", "config", "site", "site/"]),
    (7, "server/capacity", &["server", "site"]),
    (7, "server/diff", &["config/units", "site", "site/"]),
    (7, "server/doors", &["words", "server/", "worker", "listen/", "site"]),
    (7, "server/fault", &["server", "config/report", "listen/bind", "tls"]),
    (7, "server/history", &["config", "config/"]),
    (7, "server/log", &["access_log", "site"]),
    (8, "control", &["words", "server", "listen/bind", "config"]),
    (9, "cli", &["words", "cli/", "server", "server/", "control", "config", "config/", "site", "site/", "tls", "tls/"]),
    (
        9,
        "cli/certs",
        &["words", "cli", "cli/certs/", "acme/", "config", "server", "site", "site/", "tls/certs", "tls/local_ca"],
    ),
    (
        9,
        "cli/certs/account",
        &["words", "cli", "cli/certs", "cli/certs/renew", "acme/", "acme/dns/persist", "site", "site/", "tls"],
    ),
    (9, "cli/certs/facts", &["words", "cli/certs", "cli/certs/served", "acme/store", "site", "site/", "tls", "tls/"]),
    (9, "cli/certs/renew", &["cli", "cli/certs", "cli/certs/served", "acme/", "site", "site/"]),
    (9, "cli/certs/served", &["words", "tls"]),
    (9, "cli/password", &["cli", "policy/credentials", "policy/password", "site/users"]),
    (9, "cli/status", &["words", "cli", "cli/status/", "admin", "config", "site/policy"]),
    (9, "cli/status/text", &["server"]),
    (9, "cli/trust", &["tls", "tls/local_ca"]),
    (9, "lib", &[]),
    (9, "main", &["cli"]),
];

/// Every file has a row, and imports nothing that its row does not list.
#[test]
fn every_file_imports_only_what_its_row_lists() {
    let rows: BTreeMap<&str, (u8, &[&str])> = TABLE.iter().map(|(layer, file, may)| (*file, (*layer, *may))).collect();
    assert_eq!(rows.len(), TABLE.len(), "a file has two rows");
    let files = sources();
    let mut faults = Vec::new();
    for (file, path) in &files {
        let Some((layer, may)) = rows.get(file.as_str()) else {
            faults.push(format!("src/{file}.rs has no row in tests/suite/layers.rs"));
            continue;
        };
        let text = std::fs::read_to_string(path).expect("a readable source");
        for (line, used) in uses(&text, file, &files) {
            if &used == file || may.iter().any(|allowed| allows(allowed, &used)) {
                continue;
            }
            let other = rows.get(used.as_str()).map_or("no layer".to_owned(), |(other, _)| format!("layer {other}"));
            faults.push(format!(
                "src/{file}.rs:{line} (layer {layer}) imports {used} ({other}), which its row does not list"
            ));
        }
    }
    for file in rows.keys() {
        if !files.contains_key(*file) {
            faults.push(format!("tests/suite/layers.rs has a row for src/{file}.rs, which does not exist"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The table itself keeps the rule: a row lists lower layers, or its own layer's children and siblings.
#[test]
fn no_row_lists_a_higher_layer() {
    let layer = |name: &str| TABLE.iter().find(|(_, file, _)| *file == name).map(|(layer, ..)| *layer);
    for (own, file, may) in TABLE {
        for name in may.iter().filter(|name| **name != "words") {
            let below: Vec<u8> = match name.strip_suffix('/') {
                Some(folder) => {
                    TABLE.iter().filter(|row| row.1.starts_with(&format!("{folder}/"))).map(|row| row.0).collect()
                }
                None => layer(name).into_iter().collect(),
            };
            assert!(!below.is_empty(), "the row of {file} lists {name}, which has no row");
            assert!(
                below.iter().all(|layer| layer <= own),
                "the row of {file} (layer {own}) lists {name}, which is higher"
            );
        }
    }
}

fn allows(allowed: &str, used: &str) -> bool {
    match allowed.strip_suffix('/') {
        Some(folder) => used.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')),
        None if allowed == "words" => WORDS.contains(&used),
        None => allowed == used,
    }
}

/// The files of `src` by name: `site/route` for `src/site/route.rs`.
fn sources() -> BTreeMap<String, PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut open = vec![root.clone()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("src is readable").map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(&path) {
                let name = path.strip_prefix(&root).expect("below src").with_extension("");
                found.insert(name.to_string_lossy().into_owned(), path);
            }
        }
    }
    found
}

/// True for a module of unit tests.
fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|name| name == "tests" || name == "testing")
}

/// The modules that a file names by `crate::`, `tidegate::`, `super::` or `self::`, with the line of each.
fn uses(text: &str, file: &str, files: &BTreeMap<String, PathBuf>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // Comments and test modules are not part of the house: a test may reach for whatever it needs.
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let code: String = shipped.lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or(line))).collect();
    for (keyword, base) in [("crate::", ""), ("tidegate::", ""), ("super::", parent(file)), ("self::", file)] {
        for (at, _) in code.match_indices(keyword) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            for path in expand(&code[at + keyword.len()..]) {
                let full: Vec<&str> =
                    base.split('/').filter(|part| !part.is_empty()).chain(path.iter().map(String::as_str)).collect();
                // The longest beginning that is a file is the module; the rest are items in it.
                let module =
                    (1..=full.len()).rev().map(|length| full[..length].join("/")).find(|name| files.contains_key(name));
                if let Some(module) = module {
                    found.push((line, module));
                }
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn parent(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The paths of a use tree that begins here: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(text: &str) -> Vec<Vec<String>> {
    let text = text.trim_start();
    if let Some(inner) = text.strip_prefix('{') {
        let mut depth = 1;
        let mut start = 0;
        let mut paths = Vec::new();
        for (at, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (c == ',' && depth == 1) || depth == 0 {
                paths.extend(expand(&inner[start..at]));
                start = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
        return paths;
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    if word.is_empty() {
        return vec![Vec::new()];
    }
    match rest.strip_prefix("::") {
        Some(rest) if word != "super" => {
            let tails = expand(rest);
            tails.into_iter().map(|tail| [vec![word.to_owned()], tail].concat()).collect()
        }
        _ => vec![vec![word.to_owned()]],
    }
}

/// The reader of use trees reads what it must.
#[test]
fn use_trees_are_expanded() {
    let files: BTreeMap<String, PathBuf> = ["site", "site/route", "addr", "policy/trust"]
        .iter()
        .map(|name| ((*name).to_owned(), PathBuf::new()))
        .collect();
    let found =
        |text: &str, file: &str| uses(text, file, &files).into_iter().map(|(_, module)| module).collect::<Vec<_>>();
    assert_eq!(found("use crate::site::{Site, route::{Route, Mount}};\n", "x"), ["site", "site/route"]);
    assert_eq!(found("use super::route::Route;\n", "site/policy"), ["site/route"]);
    assert_eq!(found("fn f(a: &crate::addr::HostName) {} // crate::site\n", "x"), ["addr"]);
    assert_eq!(
        found("use crate::policy::trust;\n#[cfg(test)]\nmod tests { use crate::site; }\n", "x"),
        ["policy/trust"]
    );
}
