//! `[networks]`, and lists that name them: `trust.proxies`, `allow`, `deny`.

use super::text::{self, Fault};
use super::{Compiler, defined_twice, disk};
use crate::config::kinds::NetworkSource;
use crate::config::read::{At, Layer, nearest, quoted};
use crate::config::report::{Code, Diagnostic};
use crate::config::values::Map;
use crate::site::built_in_networks;
use crate::site::policy::Networks;

/// One of `[networks]`.
pub(super) struct Defined {
    name: At<String>,
    networks: Networks,
    is_used: bool,
}

impl Compiler<'_> {
    /// `[networks]`.
    pub(super) fn networks(&mut self, map: Option<&Map<NetworkSource>>) {
        for (name, source) in map.map_or(&[][..], |map| &map.entries) {
            if built_in_networks().contains_key(name.value.as_str()) {
                let message = format!("the network \"{}\" is built in", name.value);
                self.push(Diagnostic::at(Code::SetTwice, &name.span, message).help("give yours another name"));
                continue;
            }
            if let Some(first) = self.networks.iter().find(|first| first.name.value == name.value) {
                let diagnostic = defined_twice("the network", &first.name, name);
                self.push(diagnostic);
                continue;
            }
            let place = format!("network \"{}\"", name.value);
            let nets = match &source.value {
                NetworkSource::Here(entries) => entries
                    .iter()
                    .filter_map(|entry| self.take(text::network(&entry.value), Code::Network, entry, &place))
                    .collect(),
                NetworkSource::File(file) => self.network_file(file.file.as_ref(), &place),
            };
            self.networks.push(Defined {
                name: name.clone(),
                networks: Networks { nets, unix: false },
                is_used: false,
            });
        }
    }

    /// A file with one network a line.
    fn network_file(&mut self, file: Option<&At<String>>, place: &str) -> Vec<ipnet::IpNet> {
        let Some(file) = file else { return Vec::new() };
        let path = disk::resolve(&file.span, &file.value);
        let content = match disk::read_text(&path) {
            Ok(content) => content,
            Err(why) => {
                self.push(Diagnostic::at(Code::File, &file.span, format!("cannot read \"{}\": {why}", file.value)));
                return Vec::new();
            }
        };
        let mut nets = Vec::new();
        for (index, line) in content.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or(line).trim();
            if entry.is_empty() {
                continue;
            }
            match text::network(entry) {
                Ok(net) => nets.push(net),
                Err(Fault { what, help }) => {
                    let message = format!("line {} of \"{}\" in {place} cannot be used: {what}", index + 1, file.value);
                    let mut diagnostic =
                        Diagnostic::at(Code::Content, &file.span, message).label(format!("it says \"{entry}\""));
                    if let Some(help) = help {
                        diagnostic = diagnostic.help(help);
                    }
                    self.push(diagnostic);
                }
            }
        }
        nets
    }

    /// A list of networks and of names of networks: each entry that can be used, and what it means. `who` names it
    /// where it lacks a name, `place` where a text in it is malformed.
    pub(super) fn network_list<'e>(
        &mut self,
        entries: &'e [At<String>],
        who: &str,
        place: &str,
    ) -> Vec<(&'e At<String>, Networks)> {
        let mut list = Vec::new();
        for entry in entries {
            if let Some(defined) = self.networks.iter_mut().find(|defined| defined.name.value == entry.value) {
                defined.is_used = true;
                list.push((entry, defined.networks.clone()));
            } else if let Some(networks) = built_in_networks().remove(entry.value.as_str()) {
                list.push((entry, networks));
            } else if entry.value.starts_with(|c: char| c.is_ascii_alphabetic()) && !entry.value.contains([':', '/']) {
                self.undefined_network(entry, who);
            } else if let Some(net) = self.take(text::network(&entry.value), Code::Network, entry, place) {
                list.push((entry, Networks { nets: vec![net], unix: false }));
            }
        }
        list
    }

    /// Reports a name that no network has.
    fn undefined_network(&mut self, entry: &At<String>, who: &str) {
        let built_in = built_in_networks();
        let defined = self.networks.iter().map(|defined| defined.name.value.as_str());
        let names: Vec<&str> = defined.chain(built_in.keys().copied()).collect();
        let who = in_layer(who, entry.layer);
        let message = format!("{who} names the network \"{}\", which is not defined", entry.value);
        let help = nearest(&entry.value, names.iter().copied()).map_or_else(
            || format!("add it to [networks], or use one of: {}", quoted(names.iter().copied())),
            |near| format!("did you mean \"{near}\"?"),
        );
        self.push(Diagnostic::at(Code::Undefined, &entry.span, message).help(help));
    }

    /// Warns of networks that nothing names.
    pub(super) fn unused_networks(&mut self) {
        // With a fault elsewhere they may be used there.
        if self.report.has_errors() {
            return;
        }
        for defined in self.networks.iter().filter(|defined| !defined.is_used) {
            let message = format!("network \"{}\" is never used", defined.name.value);
            self.report.push(Diagnostic::at(Code::Unused, &defined.name.span, message));
        }
    }
}

/// How messages call a key where it was said: what many sites inherit stands in `[defaults]`.
pub(super) fn in_layer(place: &str, layer: Layer) -> String {
    let of_defaults = place.split_once("\" of ").filter(|_| layer == Layer::Defaults);
    of_defaults.map_or_else(|| place.to_owned(), |(key, _)| format!("{key}\" of [defaults]"))
}
