//! From what is written to what it means: builds the site table and finds all faults.
//!
//! Runs on even after a fault, so that one run reports everything. A key that was written but
//! could not be read is already reported; its absence is no further fault.

mod access;
mod acme;
mod admin;
mod auth;
mod certificate;
mod dns;
mod files;
mod limits;
mod listen;
mod networks;
mod route;
mod site;
pub(crate) mod text;
mod upstream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disk;
use super::file::{self, File};
use super::preset::Presets;
use super::read::{At, Layer, nearest, quoted};
use super::report::{Code, Diagnostic, Report, Source};
use super::show::Effective;
use super::units::display_duration;
use super::values::{List, Period, Timeout};
use crate::addr::{HostName, HostPattern};
use crate::site::access::Switch;
use crate::site::geo::Countries;
use crate::site::policy::{Networks, TlsPolicy, TlsProfile, Trust};
use crate::site::{AccessOutput, EdgeSettings, LogFormat, LogLevel, LogPolicy, ProcessPolicy, SiteTable, UnknownSni};
use acme::Acme;
use auth::Ways;
use limits::LimitSet;
use listen::Listeners;
use networks::{Defined, in_layer};
use text::Fault;
use upstream::Upstreams;

/// Above this a timeout wants its reason.
const LONG: Duration = Duration::from_secs(600);

/// Compiles a file. `None` when the report has errors.
pub(crate) fn compile(main: &Arc<Source>, file: &File, report: &mut Report) -> Option<(SiteTable, Effective)> {
    let mut compiler = Compiler {
        main,
        presets: Presets::new(),
        report,
        policies: Vec::new(),
        profile: TlsProfile::default(),
        acme: Acme::default(),
        networks: Vec::new(),
        switches: Vec::new(),
        countries: Vec::new(),
        limits: Vec::new(),
        ways: Ways::default(),
    };
    let (edge, sites, effective) = compiler.file(file);
    if compiler.report.has_errors() {
        return None;
    }
    match SiteTable::new(edge, sites) {
        Ok(table) => Some((table, effective)),
        Err(duplicate) => {
            // Found with its places above; this is the last line of defence.
            report.push(Diagnostic::nowhere(Code::DuplicateSite, format!("two sites claim \"{}\"", duplicate.host)));
            None
        }
    }
}

/// What the parts of a compilation share.
struct Compiler<'r> {
    /// The main file, for what is missing from it as a whole.
    main: &'r Arc<Source>,
    presets: Presets,
    report: &'r mut Report,
    /// Equal policies are one, so that their sites can share sessions.
    policies: Vec<Arc<TlsPolicy>>,
    profile: TlsProfile,
    acme: Acme,
    /// `[networks]`, for every list that names one.
    networks: Vec<Defined>,
    /// One for each file of `maintenance`.
    switches: Vec<Arc<Switch>>,
    /// One for each file of `geo`.
    countries: Vec<Arc<Countries>>,
    /// `[limits]`.
    limits: Vec<LimitSet>,
    /// `[auth]` and `[hooks]`.
    ways: Ways,
}

impl Compiler<'_> {
    /// The whole file.
    fn file(&mut self, file: &File) -> (EdgeSettings, Vec<Arc<crate::site::Site>>, Effective) {
        if let Some(version) = &file.version
            && version.value.0 != 1
        {
            let message = format!("version {} of the format is not known", version.value.0);
            self.push(Diagnostic::at(Code::Version, &version.span, message).label("only 1 exists"));
        }
        let empty = file::Listen::default();
        let listen = file.listen.as_ref().map_or(&empty, |at| &at.value);
        let mut listeners = self.listeners(listen);
        let admin = self.admin(file.admin.as_ref().map(|at| &at.value), listen);
        self.networks(file.networks.as_ref().map(|at| &at.value));
        let trust = self.trust(file);
        let tls = file.tls.as_ref().map(|at| &at.value);
        self.profile = match tls.and_then(|tls| tls.profile.as_ref()).map(|at| at.value) {
            None | Some(file::Profile::Intermediate) => TlsProfile::Intermediate,
            Some(file::Profile::Modern) => TlsProfile::Modern,
            Some(file::Profile::Nist80052r2) => TlsProfile::Nist80052r2,
        };
        self.acme = self.acme(file);
        let log = self.log(file.log.as_ref().map(|at| &at.value));
        let process = self.process(file.process.as_ref().map(|at| &at.value));
        if let Some(defaults) = &file.defaults {
            self.reasons_of_shared(&defaults.value, "[defaults]", &[]);
        }
        self.limit_sets(file.limits.as_ref().map(|at| &at.value));
        self.ways = self.ways(file);
        self.identities(file, &trust);
        let mut upstreams = self.upstreams(file.upstreams.as_ref().map(|at| &at.value));
        let mut effective = Effective::new(file);
        let sites = self.sites(file, &mut listeners, &mut upstreams, &mut effective);
        self.unused(&listeners, &upstreams);
        self.unused_networks();
        self.unused_limits();
        self.unused_acme();
        let unknown_sni = self.unknown_sni(tls, file);
        let storage = storage(file.storage.as_ref());
        if file.storage.is_none() {
            effective.storage(&storage);
        }
        let listeners = listeners.into_list();
        let acme = Arc::new(std::mem::take(&mut self.acme.policy));
        let identity_headers = self.ways.identity_headers();
        let edge = EdgeSettings { listeners, trust, unknown_sni, log, admin, process, acme, storage, identity_headers };
        (edge, sites, effective)
    }

    /// Adds a diagnostic.
    fn push(&mut self, diagnostic: Diagnostic) {
        self.report.push(diagnostic);
    }

    /// Reports the fault of a value, or passes the value on.
    fn take<T>(&mut self, parsed: Result<T, Fault>, code: Code, at: &At<String>, place: &str) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(Fault { what, help }) => {
                let place = in_layer(place, at.layer);
                // A password in a URL is not repeated.
                let shown = match at.value.rsplit_once('@').filter(|_| matches!(code, Code::Upstream | Code::Url)) {
                    Some((_, host)) => {
                        self.report.hide(&at.span);
                        format!("…@{host}")
                    }
                    None => at.value.clone(),
                };
                let mut diagnostic = Diagnostic::at(code, &at.span, format!("\"{shown}\" in {place}: {what}"));
                if let Some(help) = help {
                    diagnostic = diagnostic.help(help);
                }
                self.push(diagnostic);
                None
            }
        }
    }

    /// `[trust]`.
    fn trust(&mut self, file: &File) -> Trust {
        let trust = file.trust.as_ref().map(|at| &at.value);
        let proxies = self.trusted("proxies", list(trust.and_then(|trust| trust.proxies.as_ref())));
        let proxy_protocol =
            self.trusted("proxy_protocol", list(trust.and_then(|trust| trust.proxy_protocol.as_ref())));
        let strip = list(trust.and_then(|trust| trust.strip.as_ref()))
            .iter()
            .filter_map(|entry| {
                // A name may end in "-" for all that begin so; alone it would mean everything.
                let name = self.take(text::header_name(&entry.value), Code::HeaderName, entry, "\"strip\"")?;
                let name = name.as_str().replace('_', "-");
                if name.trim_matches('-').is_empty() || KEPT.contains(&name.as_str()) {
                    let message = format!("\"{}\" in \"strip\" cannot be removed", entry.value);
                    self.push(
                        Diagnostic::at(Code::HeaderName, &entry.span, message).label("requests cannot do without it"),
                    );
                    return None;
                }
                Some(name.into_boxed_str())
            })
            .collect();
        let identity = list(trust.and_then(|trust| trust.identity.as_ref()))
            .iter()
            .filter_map(|entry| self.identity_header(entry, "\"identity\" of [trust]"))
            .collect();
        Trust { proxies, proxy_protocol, strip, identity }
    }

    /// Reports identity headers that a hop and the edge itself would write.
    fn identities(&mut self, file: &File, trust: &Trust) {
        let ours = self.ways.identity_headers();
        let written = list(file.trust.as_ref().and_then(|at| at.value.identity.as_ref()));
        for entry in
            written.iter().filter(|entry| ours.iter().any(|name| entry.value.eq_ignore_ascii_case(name.as_str())))
        {
            let message = format!("\"{}\" in \"identity\" of [trust] is written by [auth]", entry.value);
            self.push(
                Diagnostic::at(Code::Conflict, &entry.span, message)
                    .label("nobody else's word is taken then")
                    .help("remove it here, or from [auth]"),
            );
        }
        if let Some(entry) = written.first().filter(|_| trust.proxies.nets.is_empty() && !trust.proxies.unix) {
            let message = "\"identity\" of [trust] names headers, and \"proxies\" nobody who may send them";
            self.push(
                Diagnostic::at(Code::NoEffect, &entry.span, message)
                    .help("name the hop that writes them in \"proxies\", or remove the line"),
            );
        }
    }

    /// One list of those whose word about the client is taken.
    fn trusted(&mut self, key: &str, entries: &[At<String>]) -> Networks {
        let place = format!("\"{key}\"");
        let mut found = Networks::default();
        for (entry, networks) in self.network_list(entries, "[trust]", &place) {
            if networks.nets.iter().any(|net| net.prefix_len() == 0) {
                let message = format!("\"{}\" in {place} believes everybody", entry.value);
                self.push(
                    Diagnostic::at(Code::TrustsEverybody, &entry.span, message)
                        .label("any client chooses the address that the upstream sees")
                        .help("list the addresses of your own proxies"),
                );
            }
            found.nets.extend(networks.nets);
            found.unix |= networks.unix;
        }
        found
    }

    /// `[log]`.
    fn log(&mut self, log: Option<&file::Log>) -> LogPolicy {
        let level = match log.and_then(|log| log.level.as_ref()).map(|at| at.value) {
            None | Some(file::Level::Info) => LogLevel::Info,
            Some(file::Level::Error) => LogLevel::Error,
            Some(file::Level::Warn) => LogLevel::Warn,
            Some(file::Level::Debug) => LogLevel::Debug,
        };
        let format = log.and_then(|log| log.format.as_ref()).map(|at| match at.value {
            file::Format::Json => LogFormat::Json,
            file::Format::Text => LogFormat::Text,
        });
        let access = match log.and_then(|log| log.access.as_ref()) {
            None => AccessOutput::Stdout,
            Some(at) => match at.value.as_str() {
                "stdout" => AccessOutput::Stdout,
                "off" => AccessOutput::Off,
                word if !word.contains(['/', '.']) => {
                    let message = format!("\"access\" in [log] cannot be \"{word}\"");
                    let help = nearest(word, ["stdout", "off"]).map_or_else(
                        || format!("write \"./{word}\" if it is a file"),
                        |near| format!("did you mean \"{near}\"? a file is written \"./{word}\""),
                    );
                    self.push(
                        Diagnostic::at(Code::Choice, &at.span, message)
                            .label("\"stdout\", \"off\", or a file")
                            .help(help),
                    );
                    AccessOutput::Stdout
                }
                path => AccessOutput::File(disk::resolve(&at.span, path)),
            },
        };
        let redact = log.and_then(|log| log.redact.as_ref()).map(|at| &at.value);
        let redact_query = list(redact.and_then(|redact| redact.query.as_ref()))
            .iter()
            .map(|at| at.value.to_ascii_lowercase().into())
            .collect();
        let redact_headers = list(redact.and_then(|redact| redact.headers.as_ref()))
            .iter()
            .filter_map(|at| self.take(text::header_name(&at.value), Code::HeaderName, at, "\"redact\""))
            .map(|name| name.as_str().into())
            .collect();
        LogPolicy { level, format, access, redact_query, redact_headers }
    }

    /// `[process]`.
    fn process(&mut self, process: Option<&file::Process>) -> ProcessPolicy {
        let empty = file::Process::default();
        let process = process.unwrap_or(&empty);
        self.reason(process.grace.as_ref().map(|at| at.with(at.value.0)), "grace", "[process]", &[&process.why]);
        self.reason(
            process.tunnel_grace.as_ref().map(|at| at.with(at.value.0)),
            "tunnel_grace",
            "[process]",
            &[&process.why],
        );
        ProcessPolicy {
            grace: period(process.grace.as_ref(), 30),
            tunnel_grace: period(process.tunnel_grace.as_ref(), 5),
            history: process.history.as_ref().map_or(20, |at| at.value.0),
            max_connections: process.max_connections.as_ref().map(|at| at.value.0),
            workers: process.workers.as_ref().map(|at| at.value.0),
        }
    }

    /// `tls.unknown_sni`.
    fn unknown_sni(&mut self, tls: Option<&file::Tls>, file: &File) -> UnknownSni {
        let Some(at) = tls.and_then(|tls| tls.unknown_sni.as_ref()) else {
            return UnknownSni::Reject;
        };
        if at.value == "reject" {
            return UnknownSni::Reject;
        }
        let sites = file.sites.as_ref().map_or(&[][..], |at| &at.value.entries);
        let patterns: Vec<HostPattern> =
            sites.iter().filter_map(|(name, _)| HostPattern::from_config(&name.value).ok()).collect();
        let named = HostName::from_config(&at.value).ok();
        if let Some(name) = named.filter(|name| patterns.contains(&HostPattern::Exact(name.clone()))) {
            return UnknownSni::Site(name);
        }
        let labels: Vec<&str> = patterns
            .iter()
            .filter(|pattern| matches!(pattern, HostPattern::Exact(_)))
            .map(|pattern| pattern.name().as_str())
            .collect();
        let message = format!("\"unknown_sni\" in [tls] names the site \"{}\", which is not defined", at.value);
        let help = nearest(&at.value, labels.iter().copied().chain(["reject"])).map_or_else(
            || format!("write \"reject\", or one of: {}", quoted(labels.iter().copied())),
            |near| format!("did you mean \"{near}\"?"),
        );
        self.push(Diagnostic::at(Code::Undefined, &at.span, message).help(help));
        UnknownSni::Reject
    }

    /// Warns of what is defined and never used: usually a name that was misspelled elsewhere.
    fn unused(&mut self, listeners: &Listeners<'_>, upstreams: &Upstreams<'_>) {
        // With a fault elsewhere it may be used there.
        if self.report.has_errors() {
            return;
        }
        let names = listeners.unused().map(|name| ("listener", name));
        let names = names.chain(upstreams.unused().map(|name| ("upstream", name))).chain(self.ways.unused());
        for (kind, name) in names {
            let message = format!("{kind} \"{}\" is never used", name.value);
            self.report.push(Diagnostic::at(Code::Unused, &name.span, message).help("name it in a site, or remove it"));
        }
    }

    /// Warns of a long timeout without a reason beside it.
    fn reason(&mut self, at: Option<At<Duration>>, key: &str, place: &str, reasons: &[&Option<At<String>>]) {
        let Some(at) = at else { return };
        if at.value > LONG && at.layer != Layer::Preset && reasons.iter().all(|why| why.is_none()) {
            let message = format!("\"{key}\" in {place} is {} and has no reason", display_duration(at.value));
            self.push(
                Diagnostic::at(Code::NoWhy, &at.span, message)
                    .label("longer than 10m")
                    .help("say why for the next reader: add why = \"…\" to the same table"),
            );
        }
    }

    /// The same for what sites, routes and defaults share.
    fn reasons_of_shared(&mut self, shared: &file::Shared, place: &str, outer: &[&Option<At<String>>]) {
        let mut reasons = vec![&shared.why];
        reasons.extend(outer);
        self.reason(shared.hold.as_ref().map(|at| at.with(at.value.0)), "hold", place, &reasons);
        let Some(timeouts) = &shared.timeouts else { return };
        let place = format!("\"timeouts\" of {place}");
        let t = &timeouts.value;
        reasons.push(&t.why);
        for (key, at) in [
            ("request_body", &t.request_body),
            ("connect", &t.connect),
            ("response_head", &t.response_head),
            ("idle", &t.idle),
            ("send", &t.send),
        ] {
            // Up to the built-in default the reason is the default's own.
            let at =
                at.as_ref().filter(|at| key != "idle" || at.value.0 > crate::site::policy::Timeouts::default().idle);
            self.reason(at.map(|at| at.with(at.value.0)), key, &place, &reasons);
        }
    }
}

/// Headers that a request cannot do without; nothing may remove or write them.
const KEPT: &[&str] =
    &["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"];

/// A name that another file, or a later table, defines again.
fn defined_twice(what: &str, first: &At<String>, again: &At<String>) -> Diagnostic {
    Diagnostic::at(Code::SetTwice, &again.span, format!("{what} \"{}\" is defined twice", again.value))
        .label("here again")
        .also(&first.span, "first here")
        .help("keep one of the two")
}

/// The entries of an optional list.
fn list(at: Option<&At<List<String>>>) -> &[At<String>] {
    at.map_or(&[], |at| &at.value)
}

/// A period, or its default in seconds. The test `defaults_are_those_of_the_docs` compares them.
fn period(at: Option<&At<Period>>, default: u64) -> Duration {
    at.map_or(Duration::from_secs(default), |at| at.value.0)
}

/// A timeout, or its default in seconds.
fn timeout(at: Option<&At<Timeout>>, default: Duration) -> Duration {
    at.map_or(default, |at| at.value.0)
}

/// Where local state is kept.
fn storage(at: Option<&At<String>>) -> PathBuf {
    at.map_or_else(default_storage, |at| disk::resolve(&at.span, &at.value))
}

/// Where local state is kept when nothing says otherwise.
pub fn default_storage() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // systemd may give several directories, separated by colons; the first is ours.
    if let Some(state) = variable("STATE_DIRECTORY") {
        let first = state.to_string_lossy().split(':').next().map(PathBuf::from);
        return first.unwrap_or(state);
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/tidegate");
    }
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map_or_else(|| PathBuf::from("/var/lib/tidegate"), |data| data.join("tidegate"))
}
