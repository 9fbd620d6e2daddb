//! The actor that takes country databases anew when their files change, and says so once.
//!
//! It looks every two seconds, as `switch.rs` does and for the same reasons. A file that cannot be used changes nothing:
//! the database in force stays.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::site::SiteTable;
use crate::site::geo::{Countries, Look};
use crate::snapshot::Snapshot;

/// How often is looked. Our choice: whoever puts a file there wants to see it taken, and a look costs nothing.
const EVERY: Duration = Duration::from_secs(2);

/// Follows the databases of the snapshot. Never returns: whoever spawned it aborts it.
pub async fn watch(snapshot: Arc<Snapshot>) {
    let mut changes = snapshot.changes();
    let mut told = BTreeMap::new();
    loop {
        let generation = snapshot.keep();
        let databases = databases(&generation.table);
        drop(generation);
        // Without one there is nothing to wake up for.
        let is_idle = databases.is_empty();
        let looking = tokio::task::spawn_blocking(move || {
            databases.into_iter().map(|countries| (countries.file().to_owned(), countries.look())).collect()
        });
        match looking.await {
            Ok(seen) => tell(&mut told, seen),
            Err(error) => tracing::error!(%error, "the look for country databases failed and is repeated"),
        }
        let pause = async { if is_idle { std::future::pending().await } else { sleep(EVERY).await } };
        tokio::select! {
            () = pause => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// Each database of a table once.
fn databases(table: &SiteTable) -> Vec<Arc<Countries>> {
    let routes = table.sites().iter().flat_map(|site| site.routes.iter());
    let all = routes.filter_map(|route| route.access.as_ref()?.geo.as_ref());
    let mut found: Vec<Arc<Countries>> = Vec::new();
    for geo in all {
        if !found.iter().any(|known| Arc::ptr_eq(known, &geo.countries)) {
            found.push(Arc::clone(&geo.countries));
        }
    }
    found
}

/// Says what has changed. `told`: the fault of each file that was said last.
fn tell(told: &mut BTreeMap<PathBuf, String>, seen: Vec<(PathBuf, Look)>) {
    for (path, look) in seen {
        let file = path.display();
        match look {
            Look::Same => {}
            Look::Replaced => {
                tracing::info!(event = "geo_replaced", %file, "the country database {file} was taken anew");
                told.remove(&path);
            }
            Look::Broken(why) => {
                if told.get(&path) != Some(&why) {
                    tracing::warn!(
                        event = "geo_broken",
                        %file,
                        why,
                        "cannot take {file} anew: {why}; the country database in force stays"
                    );
                    told.insert(path, why);
                }
            }
        }
    }
}
