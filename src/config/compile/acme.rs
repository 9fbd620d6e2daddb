//! `[acme]`: directories and their accounts, challenges, who is told.
//!
//! Every fault is found here, secrets and programs included, so that an order which begins months
//! later does not find it first. Which sites use it is decided in `config/compile/certificate.rs`;
//! DNS providers are in `config/compile/dns.rs`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::text::{Fault, fault, fault_help};
use super::{Compiler, timeout};
use crate::addr::{HostName, HostPattern};
use crate::config::disk;
use crate::config::file::{self, File};
use crate::config::kinds::Token;
use crate::config::read::{At, nearest, quoted};
use crate::config::report::{Code, Diagnostic, Severity, Span};
use crate::config::values::List;
use crate::site::acme::{AcmePolicy, AcmeRoot, Challenge, Directory, Eab, Pending, Profile, Program, Secret};

/// What the file says of certificates from a CA, and what is known of it beyond the data.
#[derive(Default)]
pub(super) struct Acme {
    /// The data.
    pub(super) policy: AcmePolicy,
    /// True when `[acme]` had faults, so that what is missing in it means nothing.
    pub(super) has_faults: bool,
    /// Names whose certificates come from the CA.
    pub(super) names: Vec<HostPattern>,
    /// All zones of `dns`, and where they stand.
    zones: Vec<(HostName, Span)>,
    /// The key `[acme]`, if it stands in the file.
    key: Option<Span>,
}

/// The CAs that have a word of their own.
const KNOWN: [(&str, &str); 3] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
    (ZEROSSL, "https://acme.zerossl.com/v2/DV90"),
];

/// Domains of CAs that validate from the internet: they issue for public names only.
const PUBLIC: [&str; 2] = ["letsencrypt.org", "zerossl.com"];

/// Messages call it so.
const FALLBACK: &str = "a fallback of [acme]";

/// The word of a CA that takes no account without `eab`.
const ZEROSSL: &str = "zerossl";

/// What may stand beside a directory.
#[derive(Default)]
struct Account<'f> {
    eab: Option<&'f At<file::Eab>>,
    root: Option<&'f At<String>>,
    broken: &'f [&'static str],
}

impl Compiler<'_> {
    /// `[acme]` and `email`.
    pub(super) fn acme(&mut self, file: &File) -> Acme {
        let email = file.email.as_ref();
        let email = email.and_then(|at| self.take(email_address(&at.value), Code::Email, at, "\"email\""));
        let before = self.report.count(Severity::Error);
        let empty = file::Acme::default();
        let written = file.acme.as_ref().map_or(&empty, |at| &at.value);
        let mut acme = Acme { key: file.acme.as_ref().map(|at| at.key.clone()), ..Acme::default() };
        let defaults = AcmePolicy::default();
        let directories = self.directories(written);
        let challenges = self.challenges(written, defaults.challenges);
        let resolvers = self.dns_servers(written.resolvers.as_ref(), "\"resolvers\" of [acme]");
        let on_event = written.on_event.as_ref().and_then(|at| at.value.exec.as_ref());
        let on_event = on_event.and_then(|exec| self.program(exec, "\"on_event\" of [acme]"));
        let dns = self.dns_rules(list_of(written.dns.as_ref()), &mut acme.zones);
        acme.policy = AcmePolicy {
            email,
            // After a fault only; never empty.
            directories: if directories.is_empty() { defaults.directories } else { directories },
            challenges,
            profile: match written.profile.as_ref().map(|at| at.value.as_str()) {
                None | Some("auto") => Profile::Auto,
                Some("default") => Profile::Default,
                Some(name) => Profile::Named(name.into()),
            },
            dns,
            resolvers,
            pending: match written.pending.as_ref().map(|at| at.value) {
                None | Some(file::Pending::Local) => Pending::Local,
                Some(file::Pending::Refuse) => Pending::Refuse,
            },
            alert_before: timeout(written.alert_before.as_ref(), defaults.alert_before),
            on_event,
        };
        acme.has_faults = self.report.count(Severity::Error) > before || file.broken.contains(&"acme");
        acme
    }

    /// Warns of what `[acme]` says and no site uses.
    pub(super) fn unused_acme(&mut self) {
        if self.report.has_errors() {
            return;
        }
        let Acme { policy, names, zones, key, .. } = &self.acme;
        if names.is_empty() {
            // A default that is written out is no intention.
            let says_nothing = AcmePolicy { email: None, ..policy.clone() } == AcmePolicy::default();
            if let Some(key) = key.as_ref().filter(|_| !says_nothing) {
                let message = "no site has a certificate from a CA, so [acme] is never used";
                let help = "write certificate = \"acme\" in a site, or remove the table";
                self.report.push(Diagnostic::at(Code::Unused, key, message).help(help));
            }
            return;
        }
        for (zone, span) in zones {
            let is_used = names.iter().filter_map(|name| policy.dns_zone(name)).any(|used| used == zone);
            if !is_used {
                let message = format!("no site has a name for which the zone \"{zone}\" is used");
                let help = "correct it, or remove it: only sites with certificate = \"acme\" count";
                self.report.push(Diagnostic::at(Code::Unused, span, message).help(help));
            }
        }
    }

    /// `directory`, with `eab` and `root`, and `fallback`. Those with faults are left out.
    fn directories(&mut self, written: &file::Acme) -> Vec<Directory> {
        let own = Account { eab: written.eab.as_ref(), root: written.root.as_ref(), broken: &written.broken };
        let first = match &written.directory {
            Some(at) => self.directory(at, &own, "[acme]"),
            None => Some(self.with_account(Directory::letsencrypt(), &own, "[acme]")),
        };
        let span = written.directory.as_ref().map(|at| &at.span);
        let mut found: Vec<_> = first.into_iter().map(|first| (first, span)).collect();
        for at in list_of(written.fallback.as_ref()) {
            let directory = match &at.value {
                file::Fallback::Text(text) => self.directory(&at.with(text.clone()), &Account::default(), FALLBACK),
                file::Fallback::Table(table) => {
                    let own = Account { eab: table.eab.as_ref(), root: table.root.as_ref(), broken: &table.broken };
                    table.directory.as_ref().and_then(|at| self.directory(at, &own, FALLBACK))
                }
            };
            let Some(directory) = directory else { continue };
            if let Some((_, first)) = found.iter().find(|(other, _)| other.url == directory.url) {
                let message = format!("\"{}\" stands twice among the directories of [acme]", directory.name);
                let mut diagnostic = Diagnostic::at(Code::DuplicateKey, &at.span, message);
                diagnostic = match first {
                    Some(first) => diagnostic.label("here again").also(first, "first here"),
                    None => diagnostic.label("the default of \"directory\" already"),
                };
                self.push(diagnostic.help("remove it: what has failed there fails there again"));
                continue;
            }
            found.push((directory, Some(&at.span)));
        }
        found.into_iter().map(|(directory, _)| directory).collect()
    }

    /// One directory.
    fn directory(&mut self, at: &At<String>, account: &Account<'_>, place: &str) -> Option<Directory> {
        let directory = self.take(directory(&at.value), Code::Url, at, &format!("\"directory\" of {place}"));
        let directory = self.with_account(directory?, account, place);
        if &*directory.name == ZEROSSL && account.eab.is_none() && !account.broken.contains(&"eab") {
            let message = format!("{place} has the directory \"{}\", and no \"eab\"", at.value);
            let eab = "eab = { kid = \"…\", hmac = { file = \"…\" } }";
            let help = match place {
                FALLBACK => format!("write {{ directory = \"{}\", {eab} }}", at.value),
                _ => format!("add {eab}"),
            };
            self.push(
                Diagnostic::at(Code::Missing, &at.span, message)
                    .label("it wants an account that is bound to one of its own (EAB)")
                    .help(help),
            );
        }
        Some(directory)
    }

    /// A directory with what the file says beside it.
    fn with_account(&mut self, directory: Directory, account: &Account<'_>, place: &str) -> Directory {
        let eab = account.eab.and_then(|at| self.eab(at, place));
        let root = account.root.and_then(|at| self.acme_root(at, place));
        Directory { eab, root, ..directory }
    }

    /// `eab`.
    fn eab(&mut self, at: &At<file::Eab>, place: &str) -> Option<Eab> {
        let hmac = at.value.hmac.as_ref()?;
        let place = format!("\"eab.hmac\" of {place}");
        let help = "it must be one line of base64url, as the CA shows it";
        // RFC 8555 7.3.4 has base64url; some CAs show it in the other alphabet.
        let hmac = self.base64(hmac, &place, help, |text| text.replace('+', "-").replace('/', "_"), &URL_SAFE)?;
        Some(Eab { kid: at.value.kid.as_ref()?.value.as_str().into(), hmac })
    }

    /// `root`.
    fn acme_root(&mut self, at: &At<String>, place: &str) -> Option<AcmeRoot> {
        let certificates = self.certificates(at, &format!("\"root\" of {place}"))?;
        Some(AcmeRoot { file: disk::resolve(&at.span, &at.value), certificates: certificates.into() })
    }

    /// `challenges`.
    fn challenges(&mut self, written: &file::Acme, default: Vec<Challenge>) -> Vec<Challenge> {
        let Some(at) = &written.challenges else { return default };
        if at.value.is_empty() && !written.broken.contains(&"challenges") {
            self.push(
                Diagnostic::at(Code::Empty, &at.span, "\"challenges\" of [acme] is empty")
                    .help("write [\"tls-alpn-01\", \"http-01\"], or remove the line; names of \"dns\" need neither"),
            );
        }
        let mut found = Vec::new();
        for entry in &at.value {
            let challenge = match entry.value {
                file::Challenge::TlsAlpn01 => Challenge::TlsAlpn01,
                file::Challenge::Http01 => Challenge::Http01,
            };
            if !found.contains(&challenge) {
                found.push(challenge);
            }
        }
        found
    }

    /// A program that must be there.
    pub(super) fn program(&mut self, at: &At<List<String>>, place: &str) -> Option<Program> {
        let Some((first, args)) = at.value.split_first() else {
            self.push(
                Diagnostic::at(Code::Empty, &at.span, format!("{place} is empty"))
                    .help("write [\"/path/of/the/program\", \"its\", \"arguments\"]"),
            );
            return None;
        };
        let (program, is_there) = if first.value.contains('/') {
            let path = disk::resolve(&first.span, &first.value);
            let is_there = is_program(&path);
            (path, is_there)
        } else {
            let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
            let is_there = std::env::split_paths(&path).any(|folder| is_program(&folder.join(&first.value)));
            (PathBuf::from(&first.value), is_there)
        };
        if !is_there {
            let message = format!("\"{}\" in {place} is no program that can be run", first.value);
            let help = if first.value.contains([' ', '\t']) {
                "write each argument as a text of its own: [\"program\", \"argument\"]".to_owned()
            } else if first.value.contains('/') {
                format!("create {}, and make it executable", program.display())
            } else {
                "write its whole path: it is not on PATH".to_owned()
            };
            self.push(Diagnostic::at(Code::File, &first.span, message).help(help));
            return None;
        }
        Some(Program { program, args: args.iter().map(|at| at.value.as_str().into()).collect() })
    }

    /// A secret in base64.
    pub(super) fn base64(
        &mut self,
        at: &At<Token>,
        place: &str,
        help: &str,
        spell: impl Fn(&str) -> String,
        engine: &GeneralPurpose,
    ) -> Option<Secret> {
        let line = self.secret_line(&at.with(at.value.0.clone()), place)?;
        match engine.decode(spell(&line)) {
            Ok(bytes) => Some(Secret(bytes.into())),
            Err(_) => {
                let message = format!("the secret in {place} is not base64");
                self.push(Diagnostic::at(Code::Content, &at.span, message).help(help));
                None
            }
        }
    }
}

/// Padding is a matter of taste: CAs and key generators differ.
const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
/// RFC 4648 5, as ACME writes everything.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
/// RFC 4648 4, as TSIG keys are written.
pub(super) const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);

/// The entries of an optional list of other things than texts.
fn list_of<T>(at: Option<&At<List<T>>>) -> &[At<T>] {
    at.map_or(&[], |at| &at.value)
}

/// True for a file that somebody may execute.
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

/// Reads a word for a CA, or the URL of a directory.
fn directory(text: &str) -> Result<Directory, Fault> {
    let make = |name: &str, url: &str, host: &str| Directory {
        name: name.into(),
        url: url.into(),
        is_public: PUBLIC
            .iter()
            .any(|domain| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))),
        eab: None,
        root: None,
    };
    let known = KNOWN.iter().find(|(word, url)| *word == text || *url == text);
    if known.is_none() && !text.contains("://") {
        let words = || KNOWN.iter().map(|(word, _)| *word);
        return Err(match nearest(text, words()) {
            Some(near) => fault_help("not a CA that has a word", format!("did you mean \"{near}\"?")),
            None if text.contains('.') => fault_help("not a CA that has a word", format!("write \"https://{text}\"")),
            None => fault_help(
                "not a CA that has a word",
                format!("write one of {}, or the URL of a directory", quoted(words())),
            ),
        });
    }
    let url = known.map_or(text, |(_, url)| url);
    let service = service_url(url)?;
    let name = known.map_or(service.authority.as_str(), |(word, _)| word);
    Ok(make(name, url, service.host.as_str()))
}

/// A URL that the edge may ask.
struct ServiceUrl {
    authority: String,
    host: HostName,
    has_query: bool,
}

/// Reads the URL of a service: `https`, or `http` on this machine.
fn service_url(text: &str) -> Result<ServiceUrl, Fault> {
    const HELP: &str = "write \"https://name/path\"";
    let uri: http::Uri = text.parse().map_err(|_| fault_help("not a URL", HELP))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(fault_help("not a URL", HELP));
    };
    if authority.as_str().contains('@') {
        return Err(fault_help(
            "a URL here has no user name or password",
            format!("write \"{scheme}://{}\"", authority.host()),
        ));
    }
    if text.contains('#') {
        return Err(fault("a URL here has no fragment"));
    }
    let host = HostName::from_config(authority.host()).map_err(|error| fault_help(error.to_string(), HELP))?;
    match scheme {
        "https" => {}
        "http" if host.is_loopback() => {}
        "http" => {
            let right = format!("https{}", text.get("http".len()..).unwrap_or_default());
            return Err(fault_help("cleartext is for this machine only", format!("write \"{right}\"")));
        }
        _ => return Err(fault_help(format!("\"{scheme}\" is not a scheme of a service"), HELP)),
    }
    Ok(ServiceUrl { authority: authority.as_str().to_ascii_lowercase(), host, has_query: uri.query().is_some() })
}

/// Reads a URL to which paths are added.
pub(super) fn base_url(text: &str) -> Result<Box<str>, Fault> {
    if service_url(text)?.has_query {
        return Err(fault("paths are added to this URL, so it has no query"));
    }
    Ok(text.trim_end_matches('/').into())
}

/// Reads a mail address (RFC 8555 7.3: one, without headers).
fn email_address(text: &str) -> Result<Box<str>, Fault> {
    let bare = text.strip_prefix("mailto:").unwrap_or(text);
    let is_good = bare.rsplit_once('@').is_some_and(|(user, host)| {
        let is_plain = |b: u8| b.is_ascii_graphic() && !b"@,;:<>()[]\"\\?%#".contains(&b);
        !user.is_empty() && user.bytes().all(is_plain) && HostName::from_config(host).is_ok()
    });
    match (is_good, bare == text) {
        (true, true) => Ok(text.into()),
        (true, false) => Err(fault_help("not a mail address", format!("write \"{bare}\""))),
        (false, _) => Err(fault_help("not a mail address", "write one address, such as \"ops@example.com\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_a_word_or_a_url() {
        for (text, expected) in [
            ("letsencrypt", Ok(("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory", true))),
            ("https://acme.zerossl.com/v2/DV90", Ok((ZEROSSL, "https://acme.zerossl.com/v2/DV90", true))),
            (
                "https://new.api.letsencrypt.org/x",
                Ok(("new.api.letsencrypt.org", "https://new.api.letsencrypt.org/x", true)),
            ),
            ("https://notletsencrypt.org/x", Ok(("notletsencrypt.org", "https://notletsencrypt.org/x", false))),
            ("http://localhost:14000/dir", Ok(("localhost:14000", "http://localhost:14000/dir", false))),
            ("http://[::1]:14000/dir", Ok(("[::1]:14000", "http://[::1]:14000/dir", false))),
            ("letsencript", Err(Some("did you mean \"letsencrypt\"?"))),
            ("ca.example.com/dir", Err(Some("write \"https://ca.example.com/dir\""))),
            ("http://ca.example.com/dir", Err(Some("write \"https://ca.example.com/dir\""))),
            ("https://user:word@ca.example.com", Err(Some("write \"https://ca.example.com\""))),
            ("ftp://ca.example.com/dir", Err(Some("write \"https://name/path\""))),
        ] {
            let found = directory(text);
            let found = found.as_ref().map(|d| (&*d.name, &*d.url, d.is_public)).map_err(|f| f.help.as_deref());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_mail_address_is_one_without_a_name() {
        for (text, is_good) in [
            ("ops@example.com", true),
            ("ops+edge@example.com", true),
            ("ops", false),
            ("@example.com", false),
            ("mailto:ops@example.com", false),
            ("a@example.com,b@example.com", false),
            ("Ops <ops@example.com>", false),
        ] {
            assert_eq!(email_address(text).is_ok(), is_good, "{text}");
        }
    }

    #[test]
    fn a_base_url_has_no_end() {
        assert_eq!(base_url("https://a.example.com/x/").as_deref(), Ok("https://a.example.com/x"));
        assert!(base_url("https://a.example.com/?x").is_err());
    }
}
