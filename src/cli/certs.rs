//! `tidegate certs`: what certificates there are, when they are renewed, and what an operator may ask of a CA.
//!
//! It reads the configuration and the store, and asks the running edge for nothing but a handshake. A renewal is asked for
//! through the store: the process that serves makes it, because only that one can show proofs.

mod account;
mod facts;
mod renew;
mod served;

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Exit, FileArg, print_report};
use crate::acme::alert::remaining;
use crate::acme::event::timestamp;
use crate::acme::store::Store;
use crate::addr::HostPattern;
use crate::config;
use crate::server::printable;
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};
use crate::tls::local_ca;
use facts::{Facts, Shown};

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Every certificate: issuer, end, next renewal, source, last error
    List {
        #[command(flatten)]
        file: FileArg,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask the running tidegate to renew what is due, or to try again what failed
    Renew {
        /// Only these sites
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Also what is not due
        #[arg(long)]
        force: bool,
        /// All sites, without a question
        #[arg(long, conflicts_with = "names")]
        all: bool,
        #[command(flatten)]
        file: FileArg,
    },
    /// Revoke the certificate of a site at its CA, and have a new one ordered
    Revoke {
        /// The site
        name: String,
        /// Why (RFC 5280 5.3.1)
        #[arg(long, value_enum, default_value = "unspecified")]
        reason: renew::Reason,
        #[command(flatten)]
        file: FileArg,
    },
    /// Print fingerprints as clients pin them, and when they change
    Fingerprint {
        /// Only this site
        name: Option<String>,
        #[command(flatten)]
        file: FileArg,
    },
    /// Print our accounts at the CAs, and the DNS records that dns-persist-01 wants
    Account {
        /// Give the account at the first directory a new key
        #[arg(long)]
        new_key: bool,
        #[command(flatten)]
        file: FileArg,
    },
}

/// Does what one command says.
pub(super) fn certs(command: &Command) -> io::Result<Exit> {
    let (Command::List { file, .. }
    | Command::Renew { file, .. }
    | Command::Revoke { file, .. }
    | Command::Fingerprint { file, .. }
    | Command::Account { file, .. }) = command;
    let table = match config::load(&super::path(file)?) {
        Ok(loaded) => loaded.table,
        Err(report) => {
            print_report(&report)?;
            return Ok(Exit::WrongInput);
        }
    };
    let store = Store::new(&table.edge.storage);
    match command {
        Command::List { json, .. } => list(&table, &store, *json),
        Command::Renew { names, force, all, .. } => {
            let Some(sites) = sites(&table, names, true)? else { return Ok(Exit::WrongInput) };
            if *force
                && names.is_empty()
                && !all
                && let Some(exit) = renew::not_for_all(&sites)?
            {
                return Ok(exit);
            }
            renew::renew(&table, &store, &sites, *force)
        }
        Command::Revoke { name, reason, .. } => match sites(&table, std::slice::from_ref(name), true)?.as_deref() {
            Some([site, ..]) => renew::revoke(&table, &store, site, *reason),
            Some([]) | None => Ok(Exit::WrongInput),
        },
        Command::Fingerprint { name, .. } => match sites(&table, name.as_slice(), false)? {
            Some(sites) => fingerprint(&table, &store, &sites),
            None => Ok(Exit::WrongInput),
        },
        Command::Account { new_key, .. } => account::account(&table, &store, *new_key),
    }
}

/// The sites that are meant: those with these names, or without any all that have a certificate; with `from_ca` only those
/// that a CA issues for. `None` when a name is wrong or there is no site, which has been said.
fn sites<'t>(table: &'t SiteTable, names: &[String], from_ca: bool) -> io::Result<Option<Vec<&'t Site>>> {
    let is_meant =
        |site: &&Site| site.tls.as_ref().is_some_and(|tls| !from_ca || tls.certificate == CertificateSource::Acme);
    let all: Vec<&Site> = table.sites().iter().map(|site| &**site).filter(is_meant).collect();
    let what = if from_ca { "whose certificate comes from a CA" } else { "with a certificate" };
    let mut err = anstream::stderr();
    if all.is_empty() {
        writeln!(err, "error: there is no site {what}")?;
        return Ok(None);
    }
    if names.is_empty() {
        return Ok(Some(all));
    }
    let mut found: Vec<&Site> = Vec::new();
    for name in names {
        let pattern = HostPattern::from_config(name).ok();
        let has = |site: &&&Site| {
            pattern.as_ref().is_some_and(|pattern| site.host == *pattern || site.aliases.contains(pattern))
        };
        let Some(site) = all.iter().find(has) else {
            let there: Vec<String> = all.iter().map(|site| format!("\"{}\"", site.label)).collect();
            say(&mut err, &format!("error: there is no site \"{name}\" {what}"))?;
            writeln!(err, "help: there are {}", there.join(", "))?;
            return Ok(None);
        };
        if !found.iter().any(|known| known.host == site.host) {
            found.push(site);
        }
    }
    Ok(Some(found))
}

/// Writes a line. Much of what is told here was said by a CA, by DNS, or in a certificate: no byte of it steers a terminal.
fn say(out: &mut impl Write, line: &str) -> io::Result<()> {
    writeln!(out, "{}", printable(line))
}

/// `tidegate certs list`.
fn list(table: &SiteTable, store: &Store, is_json: bool) -> io::Result<Exit> {
    let gathered = |site: &'_ _| Facts::gather(table, store, site);
    let all: Vec<(&Site, Facts)> = table.sites().iter().filter_map(|site| Some((&**site, gathered(site)?))).collect();
    let now = OffsetDateTime::now_utc();
    let mut out = io::stdout().lock();
    if is_json {
        let values: Vec<Value> = all.iter().map(|(site, facts)| facts.to_json(site, now)).collect();
        serde_json::to_writer_pretty(&mut out, &values)?;
        writeln!(out)?;
        return Ok(Exit::Fine);
    }
    let head = ["name", "issuer", "expires", "renews", "source"].map(str::to_owned);
    let rows: Vec<[String; 5]> =
        std::iter::once(head).chain(all.iter().map(|(site, facts)| facts.row(site, now))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        say(&mut out, cells.join("  ").trim_end())?;
        let Some((_, facts)) = index.checked_sub(1).and_then(|index| all.get(index)) else { continue };
        for remark in facts.remarks(now) {
            say(&mut out, &format!("  {remark}"))?;
        }
    }
    Ok(Exit::Fine)
}

/// `tidegate certs fingerprint`.
fn fingerprint(table: &SiteTable, store: &Store, sites: &[&Site]) -> io::Result<Exit> {
    let mut out = io::stdout().lock();
    let mut exit = Exit::Fine;
    for site in sites {
        let Some(facts) = Facts::gather(table, store, site) else { continue };
        let Some(certificate) = &facts.certificate else {
            exit = Exit::CouldNotRun;
            let mut err = anstream::stderr();
            say(&mut err, &format!("error: {}: no certificate is served or kept", site.label))?;
            for remark in facts.remarks.iter().cloned().chain(facts.unseen.map(|unseen| unseen.to_string())) {
                say(&mut err, &format!("  {remark}"))?;
            }
            continue;
        };
        let how = match &facts.unseen {
            None => "as it is served now".to_owned(),
            Some(unseen) => format!("as it is kept; {unseen}"),
        };
        say(&mut out, &format!("{}  ({how})", site.label))?;
        writeln!(out, "  certificate  sha256 {}", certificate.facts.fingerprint_text())?;
        writeln!(out, "  public key   sha256 {}", certificate.key_fingerprint())?;
        writeln!(out, "  {}", pins(site, &facts, certificate))?;
    }
    Ok(exit)
}

/// When pins break, and what to do about it.
fn pins(site: &Site, facts: &Facts, certificate: &Shown) -> String {
    let end = timestamp(certificate.facts.not_after);
    let Some(tls) = &site.tls else { return String::new() };
    match &tls.certificate {
        CertificateSource::Acme => {
            let date = facts
                .ledger
                .next_renewal
                .map_or_else(|| format!("before {end}"), |time| format!("on {}", timestamp(time)));
            if tls.reuse_key {
                format!("the certificate changes {date}, at its renewal; the key stays (reuse_key): pin the public key")
            } else {
                format!("both change {date}, at the renewal: pins break then; reuse_key = true keeps the key")
            }
        }
        CertificateSource::Local => format!(
            "both change at each start, when the site gets another name, and at the latest on {}: pin the local authority \
             instead (`tidegate trust --export FILE`)",
            timestamp(local_ca::renewal(&certificate.facts))
        ),
        CertificateSource::Files { .. } => format!("both change when the files are replaced, before {end}"),
    }
}

impl Facts {
    /// As one object.
    fn to_json(&self, site: &Site, now: OffsetDateTime) -> Value {
        let names: Vec<String> = std::iter::once(&site.host).chain(&site.aliases).map(ToString::to_string).collect();
        let certificate = self.certificate.as_ref();
        let time = |time: Option<OffsetDateTime>| time.map(timestamp);
        json!({
            "site": &*site.label,
            "names": names,
            "source": self.source,
            "is_served": self.unseen.is_none(),
            "unseen": self.unseen.as_ref().map(ToString::to_string),
            "is_pending": self.is_pending,
            "issuer": certificate.map(|one| &*one.facts.issuer),
            "certificate_names": certificate.map(|one| one.facts.names.iter().map(|name| &**name).collect::<Vec<_>>()),
            "not_before": certificate.map(|one| timestamp(one.facts.not_before)),
            "not_after": certificate.map(|one| timestamp(one.facts.not_after)),
            "seconds_left": certificate.map(|one| (one.facts.not_after - now).whole_seconds()),
            "sha256": certificate.map(|one| one.facts.fingerprint_text()),
            "spki_sha256": certificate.map(|one| one.key_fingerprint()),
            "next_renewal": time(self.ledger.next_renewal),
            "failures": self.ledger.failures,
            "next_attempt": time(self.ledger.next_attempt),
            "stage": self.stage,
            "remarks": self.remarks,
            "error": self.ledger.trouble.as_ref().map(|trouble| json!({ "kind": trouble.kind, "text": trouble.text, "help": trouble.help })),
        })
    }

    /// As one row of the table.
    fn row(&self, site: &Site, now: OffsetDateTime) -> [String; 5] {
        let more = match site.aliases.len() {
            0 => String::new(),
            count => format!(" +{count}"),
        };
        let (issuer, expires) = match &self.certificate {
            None if self.is_pending.is_none() => ("unknown".to_owned(), "-".to_owned()),
            None => ("none".to_owned(), "-".to_owned()),
            Some(one) => {
                let left = one.facts.not_after - now;
                let left = if left.is_positive() { format!("in {}", remaining(left)) } else { "EXPIRED".into() };
                (common_name(&one.facts.issuer), format!("{} ({left})", one.facts.not_after.date()))
            }
        };
        let renews = match self.ledger.next_renewal {
            Some(time) if self.source == "acme" && self.is_pending == Some(false) => time.date().to_string(),
            _ => "-".into(),
        };
        let source =
            if self.is_pending == Some(true) { format!("{}, pending", self.source) } else { self.source.clone() };
        [format!("{}{more}", site.label), issuer, expires, renews, source]
    }

    /// What stands below the row.
    fn remarks(&self, now: OffsetDateTime) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(stage) = &self.stage {
            remarks.push(format!("now: {stage}"));
        }
        if let Some(trouble) = &self.ledger.trouble {
            remarks.push(format!("{} ({} failed): {}", trouble.kind, self.ledger.failures, trouble.text));
            if !trouble.help.is_empty() {
                remarks.push(format!("help: {}", trouble.help));
            }
            if let Some(next) = self.ledger.next_attempt.filter(|next| *next > now) {
                remarks.push(format!("next attempt: {}", timestamp(next)));
            }
        }
        remarks.extend(self.remarks.iter().cloned());
        remarks.extend(self.unseen.as_ref().map(|unseen| format!("not seen in a handshake: {unseen}")));
        remarks
    }
}

/// The common name of an issuer, which is what people know it by.
fn common_name(issuer: &str) -> String {
    let name = issuer.split(',').find_map(|part| part.trim().strip_prefix("CN="));
    name.unwrap_or(issuer).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_are_shown_as_people_know_them() {
        assert_eq!(common_name("CN=R11,O=Let's Encrypt,C=US"), "R11");
        assert_eq!(common_name("O=Example CA"), "O=Example CA");
    }
}
