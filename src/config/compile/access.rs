//! `allow`, `deny`, `geo`, `deny_with`, `maintenance`: who may enter, and lists that surely mean something else.

use std::sync::Arc;

use super::networks::in_layer;
use super::text::Fault;
use super::{Compiler, disk, list, period};
use crate::config::file::{self, Shared};
use crate::config::read::At;
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::values::List;
use crate::site::access::{Access, DenyWith, Maintenance, NetworkList, Switch};
use crate::site::geo::{Countries, Country, Geo};

impl Compiler<'_> {
    /// Who may enter. `None` when everybody may, at all times.
    pub(super) fn access(&mut self, shared: &Shared, place: &str) -> Option<Box<Access>> {
        let allow = shared.allow.as_ref().map(|at| self.allow(at, shared, place));
        let deny = self.guests(shared.deny.as_ref(), &format!("\"deny\" of {place}"));
        let deny_with = match shared.deny_with.as_ref().map(|at| at.value) {
            None | Some(file::DenyWith::Forbidden) => DenyWith::Forbidden,
            Some(file::DenyWith::NotFound) => DenyWith::NotFound,
            Some(file::DenyWith::Drop) => DenyWith::Drop,
        };
        self.nobody_enters(shared, allow.as_ref(), &deny, place);
        let maintenance = shared.maintenance.as_ref().and_then(|at| self.maintenance(at, place));
        let geo = shared.geo.as_ref().and_then(|at| self.geo(at, place));
        let says_something = allow.is_some() || !deny.is_empty() || geo.is_some() || maintenance.is_some();
        says_something.then(|| Box::new(Access { allow, deny, geo, deny_with, maintenance }))
    }

    /// `geo`. `None` when it has faults, or lets everybody in.
    fn geo(&mut self, at: &At<file::Geo>, place: &str) -> Option<Geo> {
        let geo = &at.value;
        let place = format!("\"geo\" of {place}");
        let allow = geo.allow.as_ref().map(|at| self.countries(&at.value, &place));
        let deny = self.countries(list(geo.deny.as_ref()), &place);
        let admits_unknown = match geo.on_unknown.as_ref().map(|at| at.value) {
            None | Some(file::OnUnknown::Allow) => true,
            Some(file::OnUnknown::Deny) => false,
        };
        let Some(file) = &geo.file else {
            if !geo.broken.contains(&"file") {
                let message = format!("{} has no \"file\"", in_layer(&place, at.layer));
                self.push(
                    Diagnostic::at(Code::Missing, &at.span, message)
                        .help("add file = \"/var/lib/GeoIP/GeoLite2-Country.mmdb\""),
                );
            }
            return None;
        };
        let is_idle = allow.is_none() && deny.is_empty() && admits_unknown;
        if is_idle && geo.broken.is_empty() && list(geo.deny.as_ref()).is_empty() {
            let message = format!("{} lets everybody in", in_layer(&place, at.layer));
            self.push(
                Diagnostic::at(Code::NoEffect, &at.span, message).help("add \"allow\" or \"deny\", or remove it"),
            );
        }
        let countries = self.database(file, &place)?;
        Some(Geo { countries, allow, deny, admits_unknown })
    }

    /// A list of countries.
    fn countries(&mut self, entries: &[At<String>], place: &str) -> Vec<Country> {
        let country = |compiler: &mut Self, entry: &At<String>| {
            let parsed = entry.value.parse().map_err(|()| Fault {
                what: "not a country".to_owned(),
                help: Some(match entry.value.to_ascii_uppercase() {
                    upper if upper.parse::<Country>().is_ok() => format!("write \"{upper}\""),
                    _ => "write two letters of ISO 3166-1, such as \"DE\"".to_owned(),
                }),
            });
            compiler.take(parsed, Code::Country, entry, place)
        };
        entries.iter().filter_map(|entry| country(self, entry)).collect()
    }

    /// The database in a file: one, however many routes inherit it.
    fn database(&mut self, file: &At<String>, place: &str) -> Option<Arc<Countries>> {
        let path = disk::resolve(&file.span, &file.value);
        if let Some(known) = self.countries.iter().find(|known| known.file() == path) {
            return Some(Arc::clone(known));
        }
        let countries = match Countries::open(path) {
            Ok(countries) => Arc::new(countries),
            Err(why) => {
                let message = format!("cannot use \"{}\" in {place}: {why}", file.value);
                self.push(
                    Diagnostic::at(Code::File, &file.span, message)
                        .help("name a database of countries (.mmdb) that the service can read"),
                );
                return None;
            }
        };
        let kind = countries.kind();
        if !["country", "city", "enterprise", "location"].iter().any(|word| kind.to_ascii_lowercase().contains(word)) {
            let message = format!("\"{}\" in {place} seems to know no countries", file.value);
            self.push(
                Diagnostic::at(Code::NoCountries, &file.span, message)
                    .label(format!("its kind is \"{kind}\""))
                    .help("name a database of countries, or of cities"),
            );
        }
        self.countries.push(Arc::clone(&countries));
        Some(countries)
    }

    /// `allow`.
    fn allow(&mut self, at: &At<List<String>>, shared: &Shared, place: &str) -> NetworkList {
        let place = format!("\"allow\" of {place}");
        if at.value.is_empty() && !shared.broken.contains(&"allow") {
            // It could mean nobody as well as everybody; a template that filled in nothing must not open the site.
            let message = format!("{} is empty", in_layer(&place, at.layer));
            self.push(
                Diagnostic::at(Code::Empty, &at.span, message)
                    .help("name who may enter, or remove the line; everybody is [\"0.0.0.0/0\", \"::/0\"]"),
            );
        }
        self.guests(Some(at), &place)
    }

    /// A list of networks as it is looked up.
    fn guests(&mut self, at: Option<&At<List<String>>>, place: &str) -> NetworkList {
        let entries = self.network_list(list(at), place, place);
        NetworkList::new(entries.into_iter().map(|(entry, networks)| (entry.value.as_str().into(), networks)).collect())
    }

    /// Warns of lists that keep everybody out.
    fn nobody_enters(&mut self, shared: &Shared, allow: Option<&NetworkList>, deny: &NetworkList, place: &str) {
        // What could not be read is not in the lists.
        if self.report.has_errors() {
            return;
        }
        let place = |key: &str, at: &At<List<String>>| in_layer(&format!("\"{key}\" of {place}"), at.layer);
        let warning = |span: &Span, message| Diagnostic::at(Code::NobodyEnters, span, message);
        let remove_deny = "remove \"deny\": with \"allow\" everybody else is refused already";
        let diagnostic = match (allow, &shared.allow, &shared.deny) {
            (Some(allow), Some(at), _) if allow.is_empty() => {
                warning(&at.span, format!("{} lets nobody in", place("allow", at)))
                    .label("its networks are empty")
                    .help("add networks to [networks], or to their file")
            }
            (Some(allow), Some(at), Some(other)) if deny.covers(allow) => {
                let message = format!("{} lets nobody in", place("allow", at));
                let diagnostic = warning(&at.span, message).label("each of them is denied");
                let is_all = deny.has_all(true) || deny.has_all(false);
                let help = if is_all { remove_deny } else { "\"deny\" wins over \"allow\": take one of the two away" };
                diagnostic.also(&other.span, "here").help(help)
            }
            (None, _, Some(at)) if deny.has_all(true) && deny.has_all(false) => {
                warning(&at.span, format!("{} lets nobody in", place("deny", at)))
                    .label("every address is denied")
                    .help("name who may enter in \"allow\", and nobody in \"deny\"")
            }
            (None, _, Some(at)) if deny.has_all(true) => {
                warning(&at.span, format!("{} lets no IPv4 client in", place("deny", at)))
                    .label("every one of them is denied")
                    .help("name who may enter in \"allow\", and nobody in \"deny\"")
            }
            (Some(allow), _, Some(at)) if deny.has_all(true) && allow.has_some(true) => {
                warning(&at.span, format!("{} lets no IPv4 client in", place("deny", at)))
                    .label("\"deny\" wins over \"allow\"")
                    .help(remove_deny)
            }
            _ => return,
        };
        self.push(diagnostic);
    }

    /// `maintenance`.
    fn maintenance(&mut self, at: &At<file::Maintenance>, place: &str) -> Option<Maintenance> {
        let maintenance = &at.value;
        let place = format!("\"maintenance\" of {place}");
        let allow = self.guests(maintenance.allow.as_ref(), &place);
        let Some(file) = &maintenance.file else {
            if !maintenance.broken.contains(&"file") {
                let message = format!("{} has no \"file\"", in_layer(&place, at.layer));
                self.push(
                    Diagnostic::at(Code::Missing, &at.span, message).help("add file = \"/etc/tidegate/maintenance\""),
                );
            }
            return None;
        };
        if let Some(at) = maintenance.retry_after.as_ref().filter(|at| at.value.0.is_zero()) {
            let message = format!("\"retry_after\" in {} is zero", in_layer(&place, at.layer));
            self.push(
                Diagnostic::at(Code::Zero, &at.span, message)
                    .label("clients would come back at once, and again")
                    .help("write a duration above zero, or remove the line for the default"),
            );
        }
        let retry_after = period(maintenance.retry_after.as_ref(), 120);
        let path = disk::resolve(&file.span, &file.value);
        // One file is one switch, however many routes inherit it.
        let switch = match self.switches.iter().find(|switch| switch.file() == path) {
            Some(switch) => Arc::clone(switch),
            None => {
                let switch = Arc::new(Switch::new(path));
                self.switches.push(Arc::clone(&switch));
                switch
            }
        };
        Some(Maintenance { switch, allow, retry_after })
    }
}
