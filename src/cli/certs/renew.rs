//! `tidegate certs renew` and `revoke`.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use instant_acme::{RevocationReason, RevocationRequest};
use rustls::pki_types::CertificateDer;

use super::{say, served};
use crate::acme::account;
use crate::acme::ca::Ca;
use crate::acme::event::timestamp;
use crate::acme::fault::AcmeFault;
use crate::acme::plan;
use crate::acme::store::{Request, Store, StoreError};
use crate::cli::Exit;
use crate::site::acme::Directory;
use crate::site::{Site, SiteTable};

/// Why a certificate is revoked.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Reason {
    /// Nothing is said
    Unspecified,
    /// Somebody else has the key: the next certificate gets a new one
    KeyCompromise,
    /// There is a newer one
    Superseded,
    /// The names are given up
    CessationOfOperation,
}

/// Longer than the slowest order takes that is worth waiting for.
const PATIENCE: Duration = Duration::from_secs(600);
/// Fast enough for a person; each look is two small files.
const LOOK: Duration = Duration::from_millis(200);

/// A new certificate for every site at once is seldom meant, and CAs count: asks the person at the terminal. `Some` when it
/// is not wanted.
pub(super) fn not_for_all(sites: &[&Site]) -> io::Result<Option<Exit>> {
    let mut err = anstream::stderr();
    let (input, count) = (io::stdin(), sites.len());
    if !(input.is_terminal() && io::stderr().is_terminal()) {
        writeln!(err, "error: --force without a name orders a new certificate for every site ({count})")?;
        writeln!(err, "help: name the sites, or add --all")?;
        return Ok(Some(Exit::WrongInput));
    }
    let names: Vec<&str> = sites.iter().map(|site| &*site.label).collect();
    write!(err, "order {count} new certificates now ({})? CAs allow few of them a week [y/N] ", names.join(", "))?;
    err.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(None);
    }
    writeln!(err, "nothing is ordered")?;
    Ok(Some(Exit::CouldNotRun))
}

/// Asks the process that serves, and follows what it does.
pub(super) fn renew(table: &SiteTable, store: &Store, sites: &[&Site], force: bool) -> io::Result<Exit> {
    let mut err = anstream::stderr();
    let certificates = store.certificates();
    if let Err(error) = certificates.metadata()
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        return refused(&StoreError { what: "read", file: certificates, source: error });
    }
    if !store.is_served() {
        writeln!(err, "error: no tidegate serves from {}", table.edge.storage.display())?;
        writeln!(err, "help: start it: it orders what is due by itself")?;
        return Ok(Exit::CouldNotRun);
    }
    let mut waiting = Vec::new();
    for site in sites {
        // What a process that was killed was at is no news.
        let stage = store.ledger(&site.host).stage;
        let request = Request { id: plan::number(), force };
        if let Err(error) = store.ask(&site.host, request) {
            return refused(&error);
        }
        waiting.push(Waiting { site, id: request.id, stage });
    }
    let until = Instant::now() + PATIENCE;
    let mut exit = Exit::Fine;
    while !waiting.is_empty() {
        if Instant::now() > until {
            writeln!(err, "error: not finished within 10 min; it goes on: see `tidegate certs list`")?;
            return Ok(Exit::CouldNotRun);
        }
        let mut rest = Vec::new();
        for mut one in waiting {
            match one.look(store)? {
                Some(outcome) => exit = if outcome { exit } else { Exit::CouldNotRun },
                None => rest.push(one),
            }
        }
        waiting = rest;
        if !waiting.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
    Ok(exit)
}

/// One site whose renewal was asked for.
struct Waiting<'t> {
    site: &'t Site,
    id: u64,
    stage: Option<String>,
}

impl Waiting<'_> {
    /// Tells what is new; `Some` with the outcome when it is over.
    fn look(&mut self, store: &Store) -> io::Result<Option<bool>> {
        let label = &self.site.label;
        let ledger = store.ledger(&self.site.host);
        let Some(answer) = store.answer(&self.site.host, self.id) else {
            if let Some(stage) = ledger.stage.filter(|stage| self.stage.as_ref() != Some(stage)) {
                let mut out = io::stdout().lock();
                say(&mut out, &format!("{label}: {stage}"))?;
                out.flush()?;
                self.stage = Some(stage);
            }
            return Ok(None);
        };
        if answer.is_fine {
            say(&mut io::stdout().lock(), &format!("{label}: {}", answer.text))?;
            return Ok(Some(true));
        }
        let mut err = anstream::stderr();
        say(&mut err, &format!("error: {label}: {}", answer.text))?;
        if !answer.help.is_empty() {
            say(&mut err, &format!("help: {}", answer.help))?;
        }
        if let Some(next) = ledger.next_attempt {
            writeln!(err, "the next attempt is at {}", timestamp(next))?;
        }
        Ok(Some(false))
    }
}

/// Revokes at the CA that issued, then has a new certificate ordered.
pub(super) fn revoke(table: &SiteTable, store: &Store, site: &Site, reason: Reason) -> io::Result<Exit> {
    let mut err = anstream::stderr();
    let kept = match store.certificate(&site.host) {
        Ok(Some(kept)) => kept,
        Ok(None) => {
            writeln!(err, "error: {}: no certificate of a CA is kept", site.label)?;
            return Ok(Exit::CouldNotRun);
        }
        Err(error) => {
            say(&mut err, &format!("error: {error}"))?;
            say(&mut err, &format!("help: {}", error.help()))?;
            return Ok(Exit::CouldNotRun);
        }
    };
    let issuer = store.ledger(&site.host).directory;
    let all = &table.edge.acme.directories;
    let directory = all.iter().find(|directory| issuer.as_deref().is_none_or(|url| *directory.url == *url));
    let (Some(directory), Some(leaf)) = (directory, kept.key.cert.first()) else {
        let url = issuer.unwrap_or_default();
        writeln!(err, "error: {}: it was issued by {url}, which is not configured any more", site.label)?;
        writeln!(err, "help: put that directory into `fallback` of [acme], and try again")?;
        return Ok(Exit::CouldNotRun);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = RevocationRequest { certificate: leaf, reason: Some(reason.into()) };
    if let Err(fault) = runtime.block_on(revoke_at(directory, table, store, &request)) {
        return failed(&fault);
    }
    println(&format!("{}: revoked at {}", site.label, directory.name))?;
    // The key as well: where somebody else has it, reuse_key must not keep it.
    if let Err(error) = store.set_aside(&site.host) {
        return refused(&error);
    }
    if !store.is_served() {
        let storage = table.edge.storage.display();
        println(&format!("no tidegate serves from {storage}: a new certificate is ordered when it starts"))?;
        return Ok(Exit::Fine);
    }
    println(&format!("{}: the revoked certificate is served until a new one is there", site.label))?;
    let exit = renew(table, store, &[site], true)?;
    if exit != Exit::Fine {
        say(&mut err, &format!("{}: {}", site.label, what_is_left(table, site, leaf)))?;
    }
    Ok(exit)
}

/// What is served after a certificate was revoked and no new one came.
fn what_is_left(table: &SiteTable, site: &Site, revoked: &CertificateDer<'_>) -> String {
    match served::chain(&site.host, &table.listener(site.listener).https) {
        Ok(chain) if chain.first() == Some(revoked) => {
            "the revoked certificate is still served, until an order succeeds \
            or tidegate is started anew: clients that ask about revocation refuse it"
                .into()
        }
        Ok(_) => "the revoked certificate is not served any more; see `tidegate certs list`".into(),
        Err(silence) => format!(
            "the revoked certificate is served until an order succeeds, as far as can be told from here: {silence}"
        ),
    }
}

async fn revoke_at(
    directory: &Directory,
    table: &SiteTable,
    store: &Store,
    request: &RevocationRequest<'_>,
) -> Result<(), AcmeFault> {
    let ca = Ca::reach(directory).await?;
    let opened = account::open(&ca, &table.edge.acme, store).await?;
    let mut tries = 0;
    loop {
        match opened.account.revoke(request).await {
            Ok(()) => return Ok(()),
            Err(error) if crate::acme::fault::is_bad_nonce(&error) && tries < 10 => tries += 1,
            Err(error) => {
                let fault = ca.fault(&error);
                // Then it is as it should be.
                return if &*fault.kind == "alreadyRevoked" { Ok(()) } else { Err(fault) };
            }
        }
    }
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
        }
    }
}

pub(super) fn failed(fault: &AcmeFault) -> io::Result<Exit> {
    let mut err = anstream::stderr();
    say(&mut err, &format!("error: {fault}"))?;
    if !fault.help.is_empty() {
        say(&mut err, &format!("help: {}", fault.help))?;
    }
    Ok(Exit::CouldNotRun)
}

fn refused(error: &StoreError) -> io::Result<Exit> {
    writeln!(anstream::stderr(), "error: {error}\nhelp: run this as the user that tidegate runs as, or as root")?;
    Ok(Exit::CouldNotRun)
}

fn println(text: &str) -> io::Result<()> {
    say(&mut io::stdout().lock(), text)
}
