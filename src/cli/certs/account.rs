//! `tidegate certs account`: who we are at each CA, and the DNS records that stand for it.

use std::io::{self, Write};

use super::renew::failed;
use super::say;
use crate::acme::account::{self, Opened};
use crate::acme::ca::Ca;
use crate::acme::dns::persist;
use crate::acme::fault::AcmeFault;
use crate::acme::keeper::is_from_ca;
use crate::acme::store::Store;
use crate::addr::HostPattern;
use crate::cli::Exit;
use crate::site::SiteTable;
use crate::site::acme::{Directory, DnsProvider};
use crate::tls;

/// Prints the accounts; with `new_key` the first one gets a new key before.
pub(super) fn account(table: &SiteTable, store: &Store, new_key: bool) -> io::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut exit = Exit::Fine;
    for (index, directory) in table.edge.acme.directories.iter().enumerate() {
        let is_first = index == 0;
        match runtime.block_on(open(directory, table, store, new_key && is_first, is_first)) {
            Ok(Some((ca, opened))) => print(table, &ca, &opened, new_key && is_first)?,
            Ok(None) => writeln!(
                io::stdout().lock(),
                "{}  {}\n  no account yet: it is made when this directory is needed",
                directory.name,
                directory.url
            )?,
            Err(fault) => {
                writeln!(anstream::stderr(), "{}  {}", directory.name, directory.url)?;
                exit = failed(&fault)?;
            }
        }
    }
    Ok(exit)
}

/// Opens the account, and makes it where it is certainly needed: DNS records want its URL before the first order.
async fn open(
    directory: &Directory,
    table: &SiteTable,
    store: &Store,
    new_key: bool,
    is_needed: bool,
) -> Result<Option<(Ca, Opened)>, AcmeFault> {
    if !is_needed && store.account(directory)?.is_none() {
        return Ok(None);
    }
    let ca = Ca::reach(directory).await?;
    let opened = if new_key {
        account::change_key(&ca, store).await?
    } else {
        account::open(&ca, &table.edge.acme, store).await?
    };
    Ok(Some((ca, opened)))
}

fn print(table: &SiteTable, ca: &Ca, opened: &Opened, is_key_new: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let policy = &table.edge.acme;
    writeln!(out, "{}  {}", ca.directory.name, ca.directory.url)?;
    say(&mut out, &format!("  account  {}", opened.url))?;
    writeln!(out, "  contact  {}", policy.email.as_deref().unwrap_or("none (set `email`)"))?;
    if is_key_new {
        writeln!(out, "  the account has a new key")?;
    }
    let Some(issuer) = ca.meta.caa_identities.first() else { return Ok(()) };
    let sites = table.sites().iter().filter(|site| is_from_ca(site));
    let names: Vec<HostPattern> = sites.flat_map(|site| tls::patterns(site)).collect();
    let is_persist =
        |name: &&HostPattern| policy.dns_rule(name).is_some_and(|rule| rule.provider == DnsProvider::Persist);
    let mut seen = Vec::new();
    for name in names.iter().filter(is_persist) {
        let host = name.name();
        if seen.contains(&host) {
            continue;
        }
        seen.push(host);
        let is_wildcard = names.contains(&HostPattern::Wildcard(host.clone()));
        let value = persist::record(issuer, &opened.identity(ca).uri(host), is_wildcard);
        say(&mut out, &format!("  dns      {}. TXT \"{value}\"", persist::record_name(host)))?;
    }
    Ok(())
}
