//! `certificate`: where each site's certificate comes from, and whether it can.
//!
//! What a CA will refuse for certain is said here, at `check`, not in a log after a failed order.

use super::Compiler;
use super::listen::Listeners;
use super::site::Draft;
use crate::addr::{HostName, HostPattern};
use crate::config::file;
use crate::config::kinds::Certificate;
use crate::config::read::At;
use crate::config::report::{Code, Diagnostic};
use crate::site::acme::Challenge;
use crate::site::policy::CertificateSource;
use crate::site::{Listener, ListenerId};

impl Compiler<'_> {
    /// `certificate`, or its default.
    pub(super) fn certificate(
        &mut self,
        draft: &Draft<'_>,
        id: Option<ListenerId>,
        listeners: &Listeners<'_>,
    ) -> Option<CertificateSource> {
        let written = draft.written;
        let source = match written.certificate.as_ref().map(|at| &at.value) {
            Some(Certificate::Acme) => CertificateSource::Acme,
            Some(Certificate::Local) => CertificateSource::Local,
            Some(Certificate::Files(files)) => self.certificate_files(files, &draft.place)?,
            None if written.broken.contains(&"certificate") => return None,
            None => default_source(draft),
        };
        let is_acme = source == CertificateSource::Acme && !draft.is_cleartext();
        if let Some(at) = written.reuse_key.as_ref().filter(|at| at.value && !is_acme) {
            let message = format!("\"reuse_key\" of {} does nothing", draft.place);
            self.push(
                Diagnostic::at(Code::NoEffect, &at.span, message)
                    .label("its certificate is not renewed by \"acme\"")
                    .help("remove the line: whoever makes the certificate decides about its key"),
            );
        }
        if is_acme {
            self.ordered(draft);
            self.reachable(draft, id, listeners);
        }
        Some(source)
    }

    /// Reports the names that no order can have.
    fn ordered(&mut self, draft: &Draft<'_>) {
        for (pattern, at) in draft.names() {
            self.acme.names.push(pattern.clone());
            if self.acme.has_faults {
                continue;
            }
            let first = self.acme.policy.directories.first().filter(|directory| directory.is_public);
            let public = first.map(|directory| directory.name.clone());
            if let Some(ca) = public.filter(|_| is_internal(pattern)) {
                self.not_public(draft, pattern, at, &ca);
            } else if let HostPattern::Wildcard(zone) = pattern
                && self.acme.policy.dns_rule(pattern).is_none()
            {
                let message = format!("{} has no DNS provider for \"{pattern}\"", draft.place);
                self.push(
                    Diagnostic::at(Code::NeedsDns, &at.span, message)
                        .label("a CA issues wildcards by DNS-01 only")
                        .help(format!("add dns = [{{ zones = [\"{zone}\"], provider = \"…\" }}] to [acme]"))
                        .help("or write certificate = { cert = \"…\", key = { file = \"…\" } } in the site"),
                );
            }
        }
    }

    /// Reports a name that a public CA does not issue for.
    fn not_public(&mut self, draft: &Draft<'_>, pattern: &HostPattern, at: &At<String>, ca: &str) {
        let message = format!("\"{ca}\" issues no certificate for \"{pattern}\" of {}", draft.place);
        let label = "not a public name";
        let is_alias = *pattern != draft.host;
        let diagnostic = match &draft.written.certificate {
            _ if is_alias => Diagnostic::at(Code::NoCertificate, &at.span, message)
                .label(label)
                .help(format!("give it a site of its own: [sites.\"{pattern}\"]")),
            Some(said) => Diagnostic::at(Code::NoCertificate, &said.span, message)
                .label(label)
                .help("write certificate = \"local\", or remove the line")
                .help("or name a CA of your own: directory = \"https://…\" in [acme]"),
            None => {
                let diagnostic = Diagnostic::at(Code::NoCertificate, &at.span, message).label(label);
                let public = draft.names().find(|(pattern, _)| !is_internal(pattern));
                let diagnostic = match public {
                    Some((_, public)) => diagnostic.also(&public.span, "a public name, so \"acme\" is the default"),
                    None => diagnostic,
                };
                diagnostic
                    .help("give the public name a site of its own")
                    .help("or write certificate = \"local\", which only machines accept that trust the local authority")
            }
        };
        self.push(diagnostic);
    }

    /// Warns when the CA will find nobody who shows the proof. What stands between the CA and us is not known
    /// here; that no listener of ours has the port's protocol is.
    fn reachable(&mut self, draft: &Draft<'_>, id: Option<ListenerId>, listeners: &Listeners<'_>) {
        let Some(id) = id.filter(|_| !self.acme.has_faults && !listeners.has_faults) else { return };
        let policy = &self.acme.policy;
        let Some((pattern, at)) = draft.names().find(|(pattern, _)| policy.dns_rule(pattern).is_none()) else {
            return;
        };
        let ours = [listeners.listener(ListenerId(0)), listeners.listener(id)];
        let has_none = |of: fn(&Listener) -> bool| ours.iter().all(|listener| of(listener));
        let is_dead = |challenge: &Challenge| match challenge {
            Challenge::Http01 => has_none(|listener| listener.http.is_empty()),
            Challenge::TlsAlpn01 => has_none(|listener| listener.https.is_empty()),
        };
        if !policy.challenges.iter().all(is_dead) {
            return;
        }
        let (challenge, port, key) = match policy.challenges.first() {
            Some(Challenge::Http01) => ("http-01", 80, "http"),
            Some(Challenge::TlsAlpn01) | None => ("tls-alpn-01", 443, "https"),
        };
        let message = format!("no CA can prove \"{pattern}\" of {} by {challenge}", draft.place);
        self.push(
            Diagnostic::at(Code::NoProof, &at.span, message)
                .label(format!("it asks on port {port}, and [listen] has no {key} address"))
                .help(format!("add {key} = [\"0.0.0.0:{port}\", \"[::]:{port}\"] to [listen]"))
                .help("or another of \"challenges\", or a rule of \"dns\", to [acme]"),
        );
    }
}

/// Where the certificate comes from when the site does not say.
pub(super) fn default_source(draft: &Draft<'_>) -> CertificateSource {
    let is_public = draft.names().any(|(pattern, _)| !is_internal(pattern));
    if is_public { CertificateSource::Acme } else { CertificateSource::Local }
}

impl Draft<'_> {
    /// All its names, and where they stand.
    fn names(&self) -> impl Iterator<Item = (&HostPattern, &At<String>)> {
        std::iter::once((&self.host, self.name)).chain(self.aliases.iter().map(|(pattern, alias)| (pattern, *alias)))
    }

    /// True for `tls = "off"`.
    pub(super) fn is_cleartext(&self) -> bool {
        self.written.tls.as_ref().is_some_and(|at| at.value == file::Switch::Off)
    }
}

/// True when no public authority can issue for any name of the pattern.
fn is_internal(pattern: &HostPattern) -> bool {
    // A name without a dot means something else on every network.
    let is_bare = |name: &HostName| name.ip().is_none() && !name.as_str().contains('.');
    match pattern {
        HostPattern::Exact(name) => name.is_internal() || is_bare(name),
        // `*.internal` is about the names below: `internal` alone has no suffix to judge by.
        HostPattern::Wildcard(name) => HostName::parse(&format!("a.{name}")).is_ok_and(|name| name.is_internal()),
    }
}
