//! The actor that looks for the files of `maintenance`, and says once when one has come or gone.
//!
//! A request reads a flag and never touches a disk: one that hangs (a network file system) would stop a whole worker.
//! Looking once a second needs no watch of directories, which are replaced, or send no events.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::site::SiteTable;
use crate::site::access::Switch;
use crate::snapshot::Snapshot;

/// How often is looked. Our choice: a person who has just touched the file sees it at once, and it costs nothing.
const EVERY: Duration = Duration::from_secs(1);

/// Follows the switches of the snapshot. Never returns: whoever spawned it aborts it.
pub async fn watch(snapshot: Arc<Snapshot>) {
    let mut changes = snapshot.changes();
    let mut known = BTreeMap::new();
    loop {
        let generation = snapshot.keep();
        let looking = tokio::task::spawn_blocking(move || look(&generation.table));
        match looking.await {
            Ok(seen) => tell(&mut known, seen),
            Err(error) => tracing::error!(%error, "the look for the files of maintenance failed and is repeated"),
        }
        // Without a switch there is nothing to wake up for.
        let pause = async { if known.is_empty() { std::future::pending().await } else { sleep(EVERY).await } };
        tokio::select! {
            () = pause => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// What was seen of one file, and the sites and routes that it switches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    sight: Sight,
    places: Vec<String>,
}

/// What a look has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    There,
    Gone,
    /// It cannot be known: what held before goes on.
    Unknown(ErrorKind),
}

/// Looks for every switch of a table, and sets it. Blocks as long as the disk does.
pub fn look(table: &SiteTable) -> BTreeMap<PathBuf, Seen> {
    let mut switches: BTreeMap<PathBuf, (Vec<Arc<Switch>>, Vec<String>)> = BTreeMap::new();
    for site in table.sites() {
        for route in site.routes.iter() {
            let Some(maintenance) = route.access.as_ref().and_then(|access| access.maintenance.as_ref()) else {
                continue;
            };
            let (same, places) = switches.entry(maintenance.switch.file().to_owned()).or_default();
            if !same.iter().any(|other| Arc::ptr_eq(other, &maintenance.switch)) {
                same.push(Arc::clone(&maintenance.switch));
            }
            places.push(format!("{}{}", site.label, route.condition.prefix));
        }
    }
    let seen = switches.into_iter().map(|(file, (switches, mut places))| {
        let sight = match std::fs::metadata(&file) {
            Ok(_) => Sight::There,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Sight::Gone,
            Err(error) => Sight::Unknown(error.kind()),
        };
        match sight {
            Sight::There | Sight::Gone => switches.iter().for_each(|switch| switch.set(sight == Sight::There)),
            Sight::Unknown(_) => {}
        }
        places.sort();
        places.dedup();
        (file, Seen { sight, places })
    });
    seen.collect()
}

/// Says what has changed since the last look.
fn tell(known: &mut BTreeMap<PathBuf, Seen>, seen: BTreeMap<PathBuf, Seen>) {
    for (file, now) in &seen {
        let before = known.get(file).map_or(&Sight::Gone, |before| &before.sight);
        if *before == now.sight {
            continue;
        }
        let (file, places) = (file.display(), now.places.join(", "));
        match &now.sight {
            // A switch that somebody forgets keeps everybody out.
            Sight::There => tracing::warn!(
                event = "maintenance_on",
                %file,
                places,
                "maintenance of {places}: requests get 503 while {file} exists"
            ),
            Sight::Gone => tracing::info!(event = "maintenance_off", %file, places, "maintenance of {places} is over"),
            Sight::Unknown(why) => tracing::warn!(
                event = "maintenance_unknown",
                %file,
                places,
                why = %why,
                "cannot see whether {file} exists ({why}): maintenance of {places} stays as it was"
            ),
        }
    }
    for (file, before) in
        known.iter().filter(|(file, before)| before.sight == Sight::There && !seen.contains_key(*file))
    {
        let (file, places) = (file.display(), before.places.join(", "));
        tracing::info!(
            event = "maintenance_off",
            %file,
            places,
            "maintenance of {places} is over: the configuration names {file} no more"
        );
    }
    *known = seen;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::{site, table_of};
    use crate::site::access::{Access, DenyWith, Maintenance, NetworkList};
    use crate::site::route::RouteTable;

    #[test]
    fn a_look_sets_the_switch_and_names_what_it_is_for() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("switch");
        let switch = Arc::new(Switch::new(file.clone()));
        let mut one = site("a.test");
        let mut route = (**one.routes.iter().next().expect("one route")).clone();
        route.access = Some(Box::new(Access {
            allow: None,
            deny: NetworkList::default(),
            geo: None,
            deny_with: DenyWith::default(),
            maintenance: Some(Maintenance {
                switch: Arc::clone(&switch),
                allow: NetworkList::default(),
                retry_after: EVERY,
            }),
        }));
        one.routes = RouteTable::new(vec![Arc::new(route)]);
        let table = table_of(vec![one, site("b.test")]);
        let expected = |sight| BTreeMap::from([(file.clone(), Seen { sight, places: vec!["a.test".into()] })]);
        assert_eq!((look(&table), switch.is_on()), (expected(Sight::Gone), false));
        std::fs::write(&file, "").expect("written");
        assert_eq!((look(&table), switch.is_on()), (expected(Sight::There), true));
        std::fs::remove_file(&file).expect("removed");
        // What cannot be known changes nothing: here a loop of links.
        std::os::unix::fs::symlink(&file, &file).expect("a link");
        let unknown = look(&table);
        assert!(matches!(unknown[&file].sight, Sight::Unknown(_)) && switch.is_on(), "{unknown:?}");
        std::fs::remove_file(&file).expect("removed");
        assert_eq!((look(&table), switch.is_on()), (expected(Sight::Gone), false));
        assert!(look(&table_of(vec![site("b.test")])).is_empty());
    }
}
