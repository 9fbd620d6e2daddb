//! Configuration: from `tidegate.toml` to a site table, or to a report of every fault in it.
//!
//! A file is parsed and read (`config/read.rs`, by the description in `config/file.rs`), merged
//! with what it includes, and compiled. A table that comes out needs no further checks.

mod compile;
mod disk;
mod file;
mod include;
mod kinds;
mod mirror;
mod preset;
mod read;
pub mod report;
mod schema;
pub mod show;
pub mod units;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

pub use compile::default_storage;
pub use report::{Diagnostic, Report};
pub use schema::{json_schema, reference};
pub use show::Effective;

use crate::addr::HostName;
use crate::site::SiteTable;
use crate::site::policy::CertificateSource;
use crate::storage;
use report::{Code, Source, Span};

/// A configuration that can be put in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub table: SiteTable,
    /// Doubts that the operator should hear of.
    pub warnings: Vec<Diagnostic>,
    /// The files it was read from, with their text, for the history. Empty without a file.
    pub sources: Vec<(PathBuf, String)>,
    /// Each effective value and where it came from.
    pub effective: Effective,
    /// Where the file names `storage`, if it does.
    storage: Option<Span>,
}

impl Loaded {
    /// Tries a write into `storage`, when certificates from a CA are to be kept there. For `check` only: a
    /// server serves on without it, and warns.
    pub fn storage_fault(&self) -> Option<Diagnostic> {
        let is_acme =
            |site: &crate::site::Site| site.tls.as_ref().is_some_and(|tls| tls.certificate == CertificateSource::Acme);
        if !self.table.sites().iter().any(|site| is_acme(site)) {
            return None;
        }
        let directory = &self.table.edge.storage;
        let was_there = directory.exists();
        let probed = storage::probe(directory, directory);
        if !was_there {
            // Made by whoever checks, it would be in the way of the user that serves. What is not empty stays.
            let _ = std::fs::remove_dir(directory);
        }
        let (why, remedy) = storage::words(&probed.err()?);
        let message = format!("certificates cannot be kept in \"{}\": {why}", directory.display());
        let diagnostic = match &self.storage {
            Some(span) => Diagnostic::at(Code::Storage, span, message),
            None => Diagnostic::nowhere(Code::Storage, message),
        };
        Some(diagnostic.help(format!("{remedy}, or name another directory: storage = \"…\"")))
    }
}

/// What a configuration is loaded from, at the start and at each reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// `run --host NAME --upstream ADDR`.
    Flags {
        /// The name that is served.
        host: String,
        /// What it is served by.
        upstream: String,
    },
}

impl Input {
    /// Loads it.
    ///
    /// # Errors
    /// As `load`.
    pub fn load(&self) -> Result<Loaded, Report> {
        match self {
            Self::File(path) => load(path),
            Self::Flags { host, upstream } => from_flags(host, upstream),
        }
    }
}

impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Flags { .. } => f.write_str("command line"),
        }
    }
}

/// Reads a file and all that it includes.
///
/// # Errors
/// When anything in them keeps them from being used: every fault, and every warning.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    match disk::read_text(path) {
        Ok(text) => compile(Source::new(name, Some(path.to_owned()), text)),
        Err(why) => {
            let mut report = Report::new();
            report.push(Diagnostic::nowhere(Code::Unreadable, format!("cannot read \"{name}\": {why}")));
            Err(report)
        }
    }
}

/// The `storage` that a file names, whatever else is wrong with it: a rollback is wanted when the
/// file is broken. `None` when it names none in itself, or cannot be read at all.
pub fn storage_named_in(path: &Path) -> Option<PathBuf> {
    let text = disk::read_text(path).ok()?;
    // Not TOML as a whole, perhaps; what stands before its first table still is.
    let (table, _) = DeTable::parse_recoverable(&text);
    let (_, value) = table.get_ref().iter().find(|(key, _)| key.get_ref() == "storage")?;
    let named = value.get_ref().as_str().filter(|named| !named.is_empty())?;
    Some(disk::resolve_in(path, named))
}

/// Compiles a text as if it were a file of this name in the current directory. Reads no files but
/// those that the text names.
///
/// # Errors
/// As `load`.
pub fn compile_text(name: &str, text: &str) -> Result<Loaded, Report> {
    compile(Source::new(name, None, text))
}

/// The configuration of `run --host NAME --upstream ADDR`, which needs no file: a gateway under
/// one name. A name of this machine is served as `config/local.toml` does, any other on the usual
/// ports.
///
/// # Errors
/// As `load`.
pub fn from_flags(host: &str, upstream: &str) -> Result<Loaded, Report> {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let is_local = HostName::from_config(host).is_ok_and(|name| name.is_loopback());
    let mut text = String::new();
    if is_local {
        text.push_str("[listen]\nhttp = [\"127.0.0.1:8080\"]\nhttps = [\"127.0.0.1:8443\"]\n\n");
    }
    text.push_str(&format!("[sites.{}]\npreset = \"openclaw\"\nupstream = {}\n", quote(host), quote(upstream)));
    if is_local {
        text.push_str("attribution = \"local\"\n");
    }
    let mut loaded = compile(Source::new("command line", None, text))?;
    loaded.sources.clear();
    Ok(loaded)
}

/// Reads, merges and compiles a source.
fn compile(main: Source) -> Result<Loaded, Report> {
    let mut report = Report::new();
    let main = Arc::new(main);
    let (file, sources) = include::read_all(&main, &mut report);
    let compiled = file.as_ref().and_then(|file| compile::compile(&main, file, &mut report));
    report.tidy(&sources);
    match compiled {
        Some((table, effective)) => {
            let sources = sources
                .iter()
                .map(|source| (source.path.clone().unwrap_or_else(|| PathBuf::from(&source.name)), source.text.clone()))
                .collect();
            let storage = file.and_then(|file| file.storage).map(|at| at.span);
            Ok(Loaded { table, warnings: report.into_diagnostics(), sources, effective, storage })
        }
        None => Err(report),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::addr::ListenAddr;
    use crate::site::acme::AcmePolicy;
    use crate::site::policy::{Attribution, HostPolicy};
    use crate::site::route::{Action, Route};
    use crate::site::upstream::{Balance, EndpointAddr};
    use crate::site::{Found, Site};

    /// Compiles a text that must be free of errors.
    fn table(text: &str) -> SiteTable {
        compile_text("test.toml", text).map_err(|report| report.to_text(false)).expect("no faults").table
    }

    /// The site of a name.
    fn site<'a>(table: &'a SiteTable, host: &str) -> &'a Arc<Site> {
        let Found { site, .. } = table.find(host).expect("a site");
        site
    }

    /// The route of a path.
    fn route<'a>(site: &'a Site, path: &str) -> &'a Arc<Route> {
        let (head, ()) = http::Request::builder().uri(path).body(()).expect("a request").into_parts();
        site.routes.find(&head, false).expect("a route")
    }

    /// The name of the upstream of a route.
    fn upstream_of(route: &Route) -> String {
        match &route.action {
            Action::Forward(forward) => forward.upstream.name.to_string(),
            Action::Redirect(_) => "redirect".to_owned(),
            Action::Respond(_) => "respond".to_owned(),
        }
    }

    #[test]
    fn nearest_layer_wins_and_tables_merge() {
        let table = table(
            r#"
            [defaults]
            preset = "openclaw"
            timeouts = { idle = "30m", connect = "1s" }
            limits.body = "1MiB"
            hold = "1s"
            headers.response.set = { x-a = "defaults", x-b = "defaults" }
            [sites."a.internal"]
            upstream = "127.0.0.1:1"
            timeouts.connect = "2s"
            headers.response.set = { x-b = "site" }
            [[sites."a.internal".routes]]
            path = "/r"
            timeouts.connect = "3s"
            [[sites."a.internal".routes]]
            path = "/v1"
            preset = "openclaw-api"
            [sites."b.internal"]
            preset = "none"
            upstream = "127.0.0.1:1"
            "#,
        );
        let a = site(&table, "a.internal");
        let own = route(a, "/");
        assert_eq!(own.timeouts.idle, Duration::from_secs(1800), "[defaults]: the preset says nothing");
        assert_eq!(own.timeouts.connect, Duration::from_secs(2), "the site");
        assert_eq!(own.timeouts.send, Duration::from_secs(60), "built in");
        assert_eq!(own.limits.body, 32 << 20, "the preset wins over [defaults]");
        assert_eq!(route(a, "/r/x").timeouts.connect, Duration::from_secs(3), "the route");
        assert_eq!(route(a, "/v1").timeouts.idle, Duration::from_secs(600), "the route's own preset");
        assert_eq!(own.headers.response.set.len(), 2, "tables merge");
        let Action::Forward(forward) = &own.action else { unreachable!("it forwards") };
        assert!(forward.collect_request);
        assert_eq!(forward.upstream.hold, Duration::from_secs(15));
        let b = route(site(&table, "b.internal"), "/");
        assert_eq!(b.limits.body, 1 << 20, "preset none undoes that of [defaults]");
    }

    #[test]
    fn a_route_inherits_the_action_unless_it_has_its_own() {
        let table = table(
            r#"
            [upstreams.api]
            servers = ["127.0.0.1:3", "127.0.0.1:4"]
            balance = "round-robin"
            hold = "7s"
            [sites."a.internal"]
            upstream = "127.0.0.1:1"
            [[sites."a.internal".routes]]
            path = "/same/"
            [[sites."a.internal".routes]]
            path = "/api"
            upstream = "api"
            strip = true
            mount = "/v2/"
            [[sites."a.internal".routes]]
            path = "/old"
            redirect = { to = "/new" }
            [[sites."a.internal".routes]]
            path = "/ok"
            respond = { body = "ok" }
            [sites."b.internal"]
            [[sites."b.internal".routes]]
            path = "/only"
            upstream = "127.0.0.1:2"
            "#,
        );
        let a = site(&table, "a.internal");
        for (path, expected) in [
            ("/x", "127.0.0.1:1"),
            ("/same", "127.0.0.1:1"),
            ("/api/y", "api"),
            ("/old", "redirect"),
            ("/ok", "respond"),
        ] {
            assert_eq!(upstream_of(route(a, path)), expected, "{path}");
        }
        let Action::Forward(forward) = &route(a, "/api").action else { unreachable!("it forwards") };
        assert_eq!((forward.upstream.balance, forward.upstream.hold), (Balance::RoundRobin, Duration::from_secs(7)));
        let strip = forward.strip.as_ref().expect("a prefix is taken off");
        assert_eq!((&*strip.prefix, &*strip.mount), ("/api", "/v2"));
        let last = a.routes.iter().last().expect("a route");
        assert_eq!(&*last.condition.prefix, "", "the site's own settings come last");
        assert_eq!(site(&table, "b.internal").routes.iter().count(), 1, "no action of its own, no route of its own");
    }

    #[test]
    fn listeners_sites_and_policies_fit_together() {
        let table = table(
            r#"
            [listen]
            http = ["127.0.0.1:80", "systemd", "systemd:web", "unix:/run/h.sock"]
            https = ["127.0.0.1:443", "systemd"]
            extra = [{ name = "admin", https = ["127.0.0.1:9443"] }]
            [tls]
            profile = "modern"
            unknown_sni = "A.internal"
            [trust]
            proxies = ["tailscale", "unix", "192.0.2.1"]
            proxy_protocol = ["loopback", "unix"]
            strip = ["X_Auth_", "x-scope"]
            [sites."a.internal"]
            aliases = ["B.internal"]
            upstream = "https://up.example.com"
            host = "up.example.com:8443"
            [sites."*.internal"]
            upstream = "unix:/run/x.sock"
            [sites."admin.internal"]
            listen = "admin"
            alpn = ["http/1.1"]
            upstream = "127.0.0.1:1"
            [sites."localhost"]
            tls = "off"
            cleartext = "accepted"
            upstream = "127.0.0.1:1"
            "#,
        );
        let http: Vec<String> = table.edge.listeners[0].http.iter().map(ListenAddr::to_string).collect();
        assert_eq!(http, ["127.0.0.1:80", "systemd:http", "systemd:web", "unix:/run/h.sock"]);
        assert_eq!(table.edge.listeners[0].https[1], ListenAddr::Systemd("https".into()));
        assert_eq!(table.listener(site(&table, "admin.internal").listener).name.as_deref(), Some("admin"));
        let (a, star) = (site(&table, "a.internal"), site(&table, "z.internal"));
        let policy = |site: &Site| site.tls.as_ref().map(|tls| Arc::clone(&tls.policy)).expect("TLS");
        assert!(Arc::ptr_eq(&policy(a), &policy(star)), "equal policies are one");
        assert!(!Arc::ptr_eq(&policy(a), &policy(site(&table, "admin.internal"))));
        assert_eq!(a.tls.as_ref().map(|tls| &tls.certificate), Some(&CertificateSource::Local));
        assert!(site(&table, "localhost").tls.is_none());
        assert!(table.find("b.internal").expect("the alias").is_redirected_alias);
        assert!(table.edge.trust.proxies.unix);
        let balancers = &table.edge.trust.proxy_protocol;
        assert!(balancers.unix && balancers.nets.len() == 2, "{balancers:?}");
        assert_eq!(table.edge.trust.strip, ["x-auth-".into(), "x-scope".into()] as [Box<str>; 2]);
        let Action::Forward(forward) = &route(a, "/").action else { unreachable!("it forwards") };
        assert_eq!(forward.upstream.endpoints[0].address, EndpointAddr::Name("up.example.com".into(), 443));
        assert_eq!(forward.upstream.endpoints[0].tls.as_ref().map(|tls| &*tls.server_name), Some("up.example.com"));
        assert!(matches!(&forward.host, HostPolicy::Literal(host) if host == "up.example.com:8443"));
    }

    #[test]
    fn flags_serve_local_names_as_local_only() {
        let local = from_flags("claw.localhost", "127.0.0.1:1").map_err(|r| r.to_text(false)).expect("no faults").table;
        assert_eq!(local.sites()[0].attribution, Attribution::Local);
        assert!(local.edge.listeners[0].http.iter().chain(&local.edge.listeners[0].https).all(ListenAddr::is_loopback));
        let internal =
            from_flags("claw.internal", "127.0.0.1:1").map_err(|r| r.to_text(false)).expect("no faults").table;
        assert_eq!(internal.sites()[0].attribution, Attribution::Client);
        let public =
            from_flags("claw.example.com", "127.0.0.1:1").map_err(|r| r.to_text(false)).expect("no faults").table;
        let tls = public.sites()[0].tls.as_ref().expect("TLS");
        assert_eq!(tls.certificate, CertificateSource::Acme, "three words are enough for a public name");
    }

    #[test]
    fn a_name_chooses_its_certificate_unless_the_site_does() {
        for (name, line, expected) in [
            ("claw.example.com", "", CertificateSource::Acme),
            ("198.51.100.7", "", CertificateSource::Acme),
            ("2001:db8::7", "", CertificateSource::Acme),
            ("claw.example.com", "certificate = \"local\"", CertificateSource::Local),
            ("claw.internal", "", CertificateSource::Local),
            ("*.internal", "", CertificateSource::Local),
            ("gateway", "", CertificateSource::Local),
            ("10.0.0.1", "", CertificateSource::Local),
            ("fd00::1", "", CertificateSource::Local),
        ] {
            let table = table(&format!("[sites.\"{name}\"]\nupstream = \"127.0.0.1:1\"\n{line}"));
            let tls = table.sites()[0].tls.as_ref().expect("TLS");
            assert_eq!((&tls.certificate, tls.reuse_key), (&expected, false), "{name} {line}");
        }
        // A CA of one's own issues for internal names too, and may be asked for wildcards by DNS.
        let table = table(
            r#"
            email = "ops@example.com"
            [acme]
            directory = "https://ca.internal:9000/acme/directory"
            dns = [{ zones = ["internal"], provider = "persist", servers = ["192.0.2.1"] }]
            [sites."*.internal"]
            certificate = "acme"
            reuse_key = true
            upstream = "127.0.0.1:1"
            "#,
        );
        let tls = table.sites()[0].tls.as_ref().expect("TLS");
        assert_eq!((&tls.certificate, tls.reuse_key), (&CertificateSource::Acme, true));
        let acme = &table.edge.acme;
        assert_eq!((&*acme.directories[0].name, acme.directories[0].is_public), ("ca.internal:9000", false));
        assert_eq!(acme.email.as_deref(), Some("ops@example.com"));
        assert_eq!(acme.dns[0].servers[0].to_string(), "192.0.2.1:53");
    }

    #[test]
    fn defaults_are_those_of_the_docs() {
        let written = table(&reference());
        let minimal = table("[sites.\"gateway.internal\"]\nupstream = \"127.0.0.1:1\"");
        assert_eq!(*minimal.edge.acme, AcmePolicy::default());
        assert_eq!(*written.edge.acme, AcmePolicy::default());
        assert_eq!(written.edge.process, minimal.edge.process);
        let rule = "[acme]\ndns = [{ zones = [\"example.com\"], provider = \"persist\" }]";
        let rule = table(&format!("{rule}\n[sites.\"a.example.com\"]\nupstream = \"127.0.0.1:1\""));
        let documented = json_schema()["properties"]["acme"]["properties"]["dns"]["items"]["properties"]["propagation"]
            ["default"]
            .clone();
        let propagation = units::display_duration(rule.edge.acme.dns[0].propagation);
        assert_eq!(documented, propagation);
    }
}
