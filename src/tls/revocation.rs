//! The actor that takes lists of revoked client certificates anew when their files change.
//!
//! A policy with new lists gets new ticket keys too, so that no session of a certificate that is revoked now is resumed.
//! Connections that stand stay. A file that cannot be used changes nothing: the lists in force stay.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use super::files::content;
use super::policies::Policies;
use crate::site::SiteTable;
use crate::site::crl::{self, Crl, Doubt, Lists};
use crate::site::policy::TlsPolicy;
use crate::snapshot::Snapshot;

/// How often is looked. Our choice: whoever revokes a certificate wants it to be so at once, and a look costs nothing.
const EVERY: Duration = Duration::from_secs(2);

/// Follows the files of the snapshot. Never returns: whoever spawned it aborts it.
pub async fn watch(policies: Arc<Policies>, snapshot: Arc<Snapshot>) {
    let mut changes = snapshot.changes();
    let mut watcher = Watcher::default();
    loop {
        let generation = snapshot.keep();
        let mine = Arc::clone(&policies);
        let looking = tokio::task::spawn_blocking(move || {
            watcher.pass(&generation.table, &mine);
            watcher
        });
        watcher = looking.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the look for revocation lists failed and is repeated");
            Watcher::default()
        });
        let pause = async { if watcher.seen.is_empty() { std::future::pending().await } else { sleep(EVERY).await } };
        tokio::select! {
            () = pause => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// What was seen last of each file.
#[derive(Default)]
struct Watcher {
    seen: BTreeMap<PathBuf, Seen>,
}

struct Seen {
    sight: Option<(SystemTime, u64)>,
    /// What was in it, or why it cannot be used.
    lists: Result<Lists, String>,
    /// Doubts that were told.
    told: BTreeSet<String>,
}

impl Watcher {
    /// Looks at every file of a table once, and gives each policy the lists of its own.
    fn pass(&mut self, table: &SiteTable, policies: &Policies) {
        let all: Vec<(&Arc<TlsPolicy>, &Crl)> = table
            .sites()
            .iter()
            .filter_map(|site| {
                let policy = &site.tls.as_ref()?.policy;
                Some((policy, policy.client_cert.as_ref()?.crl.as_ref()?))
            })
            .collect();
        self.seen.retain(|file, _| all.iter().any(|(_, crl)| crl.file == *file));
        for (policy, crl) in all {
            self.look(&crl.file);
            let Some(Seen { lists: Ok(lists), told, .. }) = self.seen.get_mut(&crl.file) else { continue };
            let file = crl.file.display();
            match policies.renew_lists(policy, lists) {
                Ok(false) => {}
                Ok(true) => {
                    let count = lists.len();
                    tracing::info!(event = "crl_replaced", %file, count, "the revocation lists of {file} are in force");
                }
                Err(fault) => tracing::warn!(event = "crl_broken", %file, "{fault}: the lists in force stay"),
            }
            let authorities = policy.client_cert.as_ref().map_or(&[][..], |rule| &*rule.ca);
            for doubt in crl::doubts(lists, authorities) {
                let text = text(&doubt);
                if told.insert(text.clone()) {
                    tracing::warn!(event = "crl_doubt", %file, "{file}: {text}");
                }
            }
        }
    }

    /// Reads a file when it has changed since the last look.
    fn look(&mut self, file: &Path) {
        let facts = std::fs::metadata(file).ok();
        let sight = facts.and_then(|facts| Some((facts.modified().ok()?, facts.len())));
        let before = self.seen.get(file);
        if before.is_some_and(|seen| seen.sight == sight) {
            return;
        }
        let lists = match content(file, "cannot read the revocation lists in") {
            Ok(pem) => {
                crl::parse(&pem).map_err(|why| format!("cannot use the revocation lists in {}: {why}", file.display()))
            }
            Err(fault) => Err(fault.to_string()),
        };
        if let Err(why) = &lists {
            tracing::warn!(event = "crl_broken", file = %file.display(), "{why}; the lists in force stay");
        }
        let told = before.map(|seen| seen.told.clone()).unwrap_or_default();
        self.seen.insert(file.to_owned(), Seen { sight, lists, told });
    }
}

/// A doubt in words, and what to do.
fn text(doubt: &Doubt) -> String {
    match doubt {
        Doubt::Old { issuer, since } => {
            format!(
                "the list of \"{issuer}\" should have been replaced by {since}: fetch a new one; until then it holds"
            )
        }
        Doubt::Missing { authority } => {
            format!("there is no list of \"{authority}\": none of its clients is let in; add its list to the file")
        }
    }
}
