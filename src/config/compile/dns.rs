//! `dns` in `[acme]`: zones, providers and the keys of each, DNS servers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::acme::{STANDARD, base_url};
use super::text::{self, Fault, fault_help};
use super::{Compiler, list, timeout};
use crate::addr::HostName;
use crate::config::file;
use crate::config::kinds::Token;
use crate::config::read::{At, quoted};
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::values::List;
use crate::site::acme::{AcmeDns, Cloudflare, DnsProvider, DnsRule, Rfc2136, Secret, TsigAlgorithm};

/// Where the API of Cloudflare is.
const CLOUDFLARE: &str = "https://api.cloudflare.com/client/v4";

impl Compiler<'_> {
    /// `dns`; a zone belongs to one rule.
    pub(super) fn dns_rules(&mut self, rules: &[At<file::Dns>], seen: &mut Vec<(HostName, Span)>) -> Vec<DnsRule> {
        let mut found = Vec::new();
        for at in rules {
            let rule = &at.value;
            let Some(written) = &rule.zones else { continue };
            let first = written.value.first().map(|zone| format!("the dns rule of \"{}\"", zone.value));
            let place = first.unwrap_or_else(|| "a rule of \"dns\"".to_owned());
            if written.value.is_empty() && !rule.broken.contains(&"zones") {
                self.push(
                    Diagnostic::at(Code::Empty, &written.span, format!("\"zones\" of {place} is empty"))
                        .help("write zones = [\"example.com\"] with the zones that the provider has"),
                );
            }
            let mut zones = Vec::new();
            for entry in &written.value {
                let Some(zone) = self.take(zone(&entry.value), Code::Host, entry, &format!("\"zones\" of {place}"))
                else {
                    continue;
                };
                if let Some((_, first)) = seen.iter().find(|(other, _)| *other == zone) {
                    self.push(
                        Diagnostic::at(Code::DuplicateKey, &entry.span, format!("the zone \"{zone}\" stands twice"))
                            .label("here again")
                            .also(first, "first here")
                            .help("one provider has a zone: remove one of the two"),
                    );
                    continue;
                }
                seen.push((zone.clone(), entry.span.clone()));
                zones.push(zone);
            }
            let servers = self.dns_servers(rule.servers.as_ref(), &format!("\"servers\" of {place}"));
            let propagation = rule.propagation.as_ref();
            self.reason(propagation.map(|at| at.with(at.value.0)), "propagation", &place, &[&rule.why]);
            let propagation = timeout(propagation, Duration::from_secs(120));
            if let Some(provider) = self.dns_provider(at, &place) {
                found.push(DnsRule { zones, provider, servers, propagation });
            }
        }
        found
    }

    /// `provider` and its keys.
    fn dns_provider(&mut self, at: &At<file::Dns>, place: &str) -> Option<DnsProvider> {
        let rule = &at.value;
        let provider = rule.provider.as_ref()?.value;
        self.keys_of_provider(at, provider, place)?;
        let place_of = |key: &str| format!("\"{key}\" of {place}");
        Some(match provider {
            file::Provider::Exec => DnsProvider::Exec(self.program(rule.exec.as_ref()?, &place_of("exec"))?),
            file::Provider::Rfc2136 => {
                let (server, key) = (rule.server.as_ref()?, &rule.key.as_ref()?.value);
                let server = self.take(dns_server(&server.value), Code::DnsServer, server, &place_of("server"));
                let key_name = key.name.as_ref()?;
                let name = HostName::parse(&key_name.value)
                    .map(|name| name.as_str().into())
                    .map_err(|_| fault_help("not the name of a key", "write it as the server's configuration has it"));
                let key_name = self.take(name, Code::Host, key_name, &place_of("key.name"));
                let help = "it must be one line of base64: of a file made by tsig-keygen, the text behind \"secret\"";
                let place = place_of("key.secret");
                let secret = self.base64(key.secret.as_ref()?, &place, help, str::to_owned, &STANDARD);
                let algorithm = match key.algorithm.as_ref().map(|at| at.value) {
                    None | Some(file::Algorithm::Sha256) => TsigAlgorithm::Sha256,
                    Some(file::Algorithm::Sha384) => TsigAlgorithm::Sha384,
                    Some(file::Algorithm::Sha512) => TsigAlgorithm::Sha512,
                };
                let rfc2136 = Rfc2136 { server: server?, key_name: key_name?, algorithm, secret: secret? };
                DnsProvider::Rfc2136(Box::new(rfc2136))
            }
            file::Provider::AcmeDns => {
                let (url, user, subdomain) = (rule.url.as_ref()?, rule.username.as_ref()?, rule.subdomain.as_ref()?);
                let url = self.take(base_url(&url.value), Code::Url, url, &place_of("url"));
                // It travels in a header.
                let username = text::header_value(&user.value).map(|_| user.value.as_str().into());
                let username = self.take(username, Code::HeaderValue, user, &place_of("username"));
                let label = HostName::parse(&subdomain.value)
                    .map(|name| name.as_str().into())
                    .map_err(|error| Fault { what: error.to_string(), help: None });
                let subdomain = self.take(label, Code::Host, subdomain, &place_of("subdomain"));
                let password = self.token(rule.password.as_ref()?, &place_of("password"));
                let account = AcmeDns { url: url?, username: username?, password: password?, subdomain: subdomain? };
                DnsProvider::AcmeDns(Box::new(account))
            }
            file::Provider::Cloudflare => {
                let url = match &rule.url {
                    Some(url) => self.take(base_url(&url.value), Code::Url, url, &place_of("url")),
                    None => Some(CLOUDFLARE.into()),
                };
                let token = self.token(rule.token.as_ref()?, &place_of("token"));
                DnsProvider::Cloudflare(Box::new(Cloudflare { url: url?, token: token? }))
            }
            file::Provider::Persist => DnsProvider::Persist,
        })
    }

    /// Reports keys of other providers and missing ones; `None` when one is missing.
    fn keys_of_provider(&mut self, at: &At<file::Dns>, provider: file::Provider, place: &str) -> Option<()> {
        let rule = &at.value;
        let written = [
            ("exec", rule.exec.as_ref().map(|at| &at.key), "[\"/usr/local/bin/dns-hook\"]"),
            ("server", rule.server.as_ref().map(|at| &at.key), "\"192.0.2.1:53\""),
            ("key", rule.key.as_ref().map(|at| &at.key), "{ name = \"tidegate\", secret = { file = \"…\" } }"),
            ("url", rule.url.as_ref().map(|at| &at.key), "\"https://acme-dns.example.com\""),
            ("username", rule.username.as_ref().map(|at| &at.key), "\"…\""),
            ("password", rule.password.as_ref().map(|at| &at.key), "{ file = \"…\" }"),
            ("subdomain", rule.subdomain.as_ref().map(|at| &at.key), "\"…\""),
            ("token", rule.token.as_ref().map(|at| &at.key), "{ file = \"…\" }"),
        ];
        let (word, needed, allowed): (&str, &[&str], &[&str]) = match provider {
            file::Provider::Exec => ("exec", &["exec"], &[]),
            file::Provider::Rfc2136 => ("rfc2136", &["server", "key"], &[]),
            file::Provider::AcmeDns => ("acme-dns", &["url", "username", "password", "subdomain"], &[]),
            file::Provider::Cloudflare => ("cloudflare", &["token"], &["url"]),
            file::Provider::Persist => ("persist", &[], &[]),
        };
        let mut is_whole = true;
        for (key, span, example) in written {
            match span {
                Some(span) if !needed.contains(&key) && !allowed.contains(&key) => {
                    let message = format!("\"{key}\" of {place} does not belong to the provider \"{word}\"");
                    let keys = quoted(needed.iter().chain(allowed).copied().chain(["servers", "propagation"]));
                    self.push(
                        Diagnostic::at(Code::Conflict, span, message)
                            .help(format!("remove it; beside \"zones\" and \"provider\" this provider takes {keys}")),
                    );
                }
                None if needed.contains(&key) => {
                    is_whole = false;
                    if !rule.broken.contains(&key) {
                        self.push(
                            Diagnostic::at(Code::Missing, &at.span, format!("{place} has no \"{key}\""))
                                .label(format!("the provider \"{word}\" needs \"{key}\""))
                                .help(format!("add {key} = {example}")),
                        );
                    }
                }
                _ => {}
            }
        }
        is_whole.then_some(())
    }

    /// A list of DNS servers.
    pub(super) fn dns_servers(&mut self, at: Option<&At<List<String>>>, place: &str) -> Vec<SocketAddr> {
        list(at).iter().filter_map(|at| self.take(dns_server(&at.value), Code::DnsServer, at, place)).collect()
    }

    /// A secret that is sent as it is.
    fn token(&mut self, at: &At<Token>, place: &str) -> Option<Secret> {
        self.secret_line(&at.with(at.value.0.clone()), place).map(|line| Secret(line.into_bytes().into()))
    }
}

/// Reads the address of a DNS server.
fn dns_server(text: &str) -> Result<SocketAddr, Fault> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = text.parse().ok().or_else(|| Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, 53)));
    address.filter(|address| address.port() != 0).ok_or_else(|| {
        fault_help("not the address of a DNS server", "write an address, such as \"192.0.2.1\" or \"[2001:db8::1]:53\"")
    })
}

/// Reads a zone.
fn zone(text: &str) -> Result<HostName, Fault> {
    if let Some(right) = text.strip_prefix("*.").or_else(|| text.strip_prefix("_acme-challenge.")) {
        return Err(fault_help("a zone is a plain name, and has all names below it", format!("write \"{right}\"")));
    }
    let name = HostName::from_config(text).map_err(|error| Fault { what: error.to_string(), help: None })?;
    if name.ip().is_some() {
        return Err(fault_help("an address is in no zone", "prove addresses by \"challenges\""));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_server_is_an_address() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1:53")),
            ("[2001:db8::1]", Some("[2001:db8::1]:53")),
            ("2001:db8::1", Some("[2001:db8::1]:53")),
            ("[2001:db8::1]:5353", Some("[2001:db8::1]:5353")),
            ("ns.example.com", None),
            ("192.0.2.1:0", None),
        ] {
            let found = dns_server(text).map(|found| found.to_string()).ok();
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_zone_is_a_plain_name() {
        for (text, is_good) in [
            ("Example.com", true),
            ("*.example.com", false),
            ("_acme-challenge.example.com", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(zone(text).is_ok(), is_good, "{text}");
        }
    }
}
