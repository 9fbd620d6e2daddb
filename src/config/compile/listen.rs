//! `[listen]`: addresses, their deadlines, and who uses them.

use std::collections::HashMap;
use std::time::Duration;

use super::text;
use super::{Compiler, list, timeout};
use crate::addr::ListenAddr;
use crate::config::file;
use crate::config::read::{At, nearest, quoted};
use crate::config::report::{Code, Diagnostic, Span};
use crate::site::policy::ClientCert;
use crate::site::{Listener, ListenerId};

/// All listeners, and what is known of them beyond their data.
pub(super) struct Listeners<'f> {
    list: Vec<Listener>,
    extra: Vec<Extra<'f>>,
    /// True when a list of addresses had faults, so that its being empty means nothing.
    pub(super) has_faults: bool,
}

/// What is known of an extra listener.
struct Extra<'f> {
    name: &'f At<String>,
    client_cert: Option<ClientCert>,
    is_used: bool,
}

impl<'f> Listeners<'f> {
    /// The listener of an index.
    pub(super) fn listener(&self, id: ListenerId) -> &Listener {
        &self.list[id.0]
    }

    /// The client certificates that a listener asks for by itself.
    pub(super) fn client_cert(&self, id: ListenerId) -> Option<&ClientCert> {
        self.extra.get(id.0.checked_sub(1)?)?.client_cert.as_ref()
    }

    /// The listener of a name; from now on it is used.
    pub(super) fn named(&mut self, name: &str) -> Option<ListenerId> {
        let index = self.extra.iter().position(|extra| extra.name.value == name)?;
        self.extra[index].is_used = true;
        Some(ListenerId(index + 1))
    }

    /// What to say to somebody who used an unknown name.
    pub(super) fn advice(&self, name: &str) -> String {
        let names: Vec<&str> = self.extra.iter().map(|extra| extra.name.value.as_str()).collect();
        if names.is_empty() {
            return format!("add it: extra = [{{ name = \"{name}\", https = [\"…\"] }}] in [listen]");
        }
        nearest(name, names.iter().copied()).map_or_else(
            || format!("add it to \"extra\" in [listen], or use one of: {}", quoted(names)),
            |near| format!("did you mean \"{near}\"?"),
        )
    }

    /// Names that no site uses.
    pub(super) fn unused(&self) -> impl Iterator<Item = &'f At<String>> {
        self.extra.iter().filter(|extra| !extra.is_used).map(|extra| extra.name)
    }

    /// The data.
    pub(super) fn into_list(self) -> Vec<Listener> {
        self.list
    }
}

impl Compiler<'_> {
    /// `[listen]`.
    pub(super) fn listeners<'f>(&mut self, listen: &'f file::Listen) -> Listeners<'f> {
        let before = self.report.diagnostics().len();
        let mut seen = HashMap::new();
        let handshake_timeout = timeout(listen.handshake_timeout.as_ref(), Duration::from_secs(10));
        let request_head_timeout = timeout(listen.request_head_timeout.as_ref(), Duration::from_secs(30));
        let keep_alive_timeout = timeout(listen.keep_alive_timeout.as_ref(), Duration::from_secs(75));
        for (key, at) in [
            ("handshake_timeout", &listen.handshake_timeout),
            ("request_head_timeout", &listen.request_head_timeout),
            ("keep_alive_timeout", &listen.keep_alive_timeout),
        ] {
            self.reason(at.as_ref().map(|at| at.with(at.value.0)), key, "[listen]", &[&listen.why]);
        }
        let usual = |port: u16| {
            vec![
                ListenAddr::Tcp((std::net::Ipv4Addr::UNSPECIFIED, port).into()),
                ListenAddr::Tcp((std::net::Ipv6Addr::UNSPECIFIED, port).into()),
            ]
        };
        let mut addresses = |compiler: &mut Self,
                             at: Option<&'f At<Vec<At<String>>>>,
                             key: &str,
                             place: &str,
                             default: Vec<ListenAddr>| match at {
            None => default,
            Some(at) => compiler.addresses(list(Some(at)), key, place, &mut seen),
        };
        let make = |name: Option<Box<str>>, http, https| Listener {
            name,
            http,
            https,
            handshake_timeout,
            request_head_timeout,
            keep_alive_timeout,
        };
        let http = addresses(self, listen.http.as_ref(), "http", "[listen]", usual(80));
        let https = addresses(self, listen.https.as_ref(), "https", "[listen]", usual(443));
        let mut listeners = vec![make(None, http, https)];
        let mut extras: Vec<Extra<'f>> = Vec::new();
        for at in listen.extra.as_ref().map_or(&[][..], |at| &at.value) {
            let Some(name) = &at.value.name else { continue };
            let place = format!("listener \"{}\"", name.value);
            if let Some(first) = extras.iter().find(|extra| extra.name.value == name.value) {
                let message = format!("two listeners have the name \"{}\"", name.value);
                self.push(
                    Diagnostic::at(Code::DuplicateListener, &name.span, message)
                        .also(&first.name.span, "first here")
                        .help("give each a name of its own"),
                );
                continue;
            }
            let http = addresses(self, at.value.http.as_ref(), "http", &place, Vec::new());
            let https = addresses(self, at.value.https.as_ref(), "https", &place, Vec::new());
            if http.is_empty()
                && https.is_empty()
                && at.value.broken.is_empty()
                && self.report.diagnostics().len() == before
            {
                let message = format!("{place} has no address");
                self.push(
                    Diagnostic::at(Code::Missing, &at.span, message)
                        .help("add https = [\"10.0.0.1:8443\"] or http = […]"),
                );
            }
            let client_cert = at.value.client_cert.as_ref().and_then(|cert| self.client_cert(cert, &place));
            listeners.push(make(Some(name.value.clone().into()), http, https));
            extras.push(Extra { name, client_cert, is_used: false });
        }
        let has_faults = self.report.diagnostics().len() > before || !listen.broken.is_empty();
        Listeners { list: listeners, extra: extras, has_faults }
    }

    /// One list of addresses; an address may stand in one list only.
    fn addresses(
        &mut self,
        entries: &[At<String>],
        key: &str,
        place: &str,
        seen: &mut HashMap<ListenAddr, Span>,
    ) -> Vec<ListenAddr> {
        let mut found = Vec::new();
        for entry in entries {
            let Some(address) =
                self.take(text::listen(&entry.value, key), Code::Listen, entry, &format!("\"{key}\" of {place}"))
            else {
                continue;
            };
            // Port 0 is another port each time.
            let is_any_port = matches!(&address, ListenAddr::Tcp(tcp) if tcp.port() == 0);
            match seen.get(&address) {
                Some(first) if !is_any_port => {
                    let message = format!("\"{address}\" is listened on twice");
                    self.push(
                        Diagnostic::at(Code::DuplicateListener, &entry.span, message)
                            .also(first, "first here")
                            .help("remove one of the two"),
                    );
                }
                _ => {
                    seen.insert(address.clone(), entry.span.clone());
                    found.push(address);
                }
            }
        }
        found
    }
}
