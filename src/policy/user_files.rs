//! The actor that rereads users files when they change, so that a user is added or locked out without a reload.
//!
//! A request never touches a disk: it reads what the last look found. A file that cannot be read, or has a line that
//! cannot be used, changes nothing: who could log in before still can.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::site::SiteTable;
use crate::site::auth::Means;
use crate::site::users::{UserList, Users};
use crate::snapshot::Snapshot;

/// How often is looked. Our choice: who locks a user out need not wait, and a look at two numbers costs nothing.
const EVERY: Duration = Duration::from_secs(1);

/// Larger than a file of a hundred thousand users; a wrong path (a log, a device) must not fill the memory.
const MAX_FILE: u64 = 16 << 20;

/// Follows the users files of the snapshot. Never returns: whoever spawned it aborts it.
pub async fn watch(snapshot: Arc<Snapshot>) {
    let mut changes = snapshot.changes();
    let mut known = Known::default();
    loop {
        let generation = snapshot.keep();
        let looking = tokio::task::spawn_blocking(move || {
            known.renew(generation.number);
            known.look(&generation.table);
            known
        });
        known = match looking.await {
            Ok(known) => known,
            Err(error) => {
                tracing::error!(%error, "the watch of users files failed and begins anew");
                Known::default()
            }
        };
        // Without a file there is nothing to wake up for.
        let pause = async { if known.files.is_empty() { std::future::pending().await } else { sleep(EVERY).await } };
        tokio::select! {
            () = pause => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// What was seen of each file.
#[derive(Debug, Default)]
struct Known {
    generation: u64,
    files: BTreeMap<PathBuf, Seen>,
}

/// What was seen of one file.
#[derive(Debug)]
struct Seen {
    /// At the last look.
    facts: Result<Facts, String>,
    /// The change that was told last: it is judged, and logged, once.
    judged: Option<Result<Facts, String>>,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    device: u64,
    inode: u64,
    size: u64,
    /// In nanoseconds.
    modified: i128,
    changed: i128,
}

impl Facts {
    fn of(file: &Metadata) -> Self {
        let moment = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: moment(file.mtime(), file.mtime_nsec()),
            changed: moment(file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Known {
    /// A load may have read a file before its last change was judged: all are judged again.
    fn renew(&mut self, generation: u64) {
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.files.values_mut().for_each(|seen| seen.judged = None);
        }
    }

    /// Looks at every users file of a table once. Blocks as long as the disk does.
    fn look(&mut self, table: &SiteTable) {
        let lists = lists(table);
        self.files.retain(|file, _| lists.contains_key(file));
        for (file, lists) in lists {
            let facts = std::fs::metadata(&file).map(|file| Facts::of(&file)).map_err(|error| error.to_string());
            let Some(seen) = self.files.get_mut(&file) else {
                // What the load read may be older than this look: the first change is always judged.
                self.files.insert(file, Seen { facts, judged: None });
                continue;
            };
            // A writer may not be through: only what two looks have seen is taken.
            let is_settled = seen.facts == facts;
            seen.facts = facts.clone();
            if is_settled && seen.judged.as_ref() != Some(&facts) {
                seen.judged = Some(facts);
                take(&file, &lists);
            }
        }
    }
}

/// The users files of a table, each with the lists that were made of it.
fn lists(table: &SiteTable) -> BTreeMap<PathBuf, Vec<Arc<UserList>>> {
    let mut found: BTreeMap<PathBuf, Vec<Arc<UserList>>> = BTreeMap::new();
    let auths = table.sites().iter().flat_map(|site| site.routes.iter()).flat_map(|route| &route.auth);
    for auth in auths {
        if let Means::Basic(basic) = &auth.means {
            let same = found.entry(basic.users.file().to_owned()).or_default();
            if !same.iter().any(|other| Arc::ptr_eq(other, &basic.users)) {
                same.push(Arc::clone(&basic.users));
            }
        }
    }
    found
}

/// Takes over what a file says now, if it says something else and nothing wrong.
fn take(file: &Path, lists: &[Arc<UserList>]) {
    let shown = file.display();
    let read = read(file).map_err(|error| format!("cannot read {shown}: {error}"));
    let users = read.and_then(|text| {
        Users::parse(&text).map_err(|faults| {
            let first = faults.first().map_or(String::new(), |fault| {
                format!("line {} of {shown} cannot be used: {}", fault.line, fault.what)
            });
            let more = if faults.len() > 1 { format!(", and {} more", faults.len() - 1) } else { String::new() };
            format!("{first}{more}")
        })
    });
    match users {
        Ok(users) => {
            let is_new = |list: &&Arc<UserList>| list.users().digest() != users.digest();
            if !lists.iter().any(|list| is_new(&list)) {
                return;
            }
            let count = users.count();
            let users = Arc::new(users);
            lists.iter().for_each(|list| list.set(Arc::clone(&users)));
            tracing::info!(event = "users_read", file = %shown, users = count, "users of {shown} read anew: {count}");
        }
        Err(why) => tracing::warn!(event = "users_kept", file = %shown, "{why}: who could log in before still can"),
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(io::Error::other("it is larger than 16 MiB")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::server::tests::{site, table_of};
    use crate::site::auth::{Auth, BasicAuth};
    use crate::site::route::RouteTable;

    const LINE: &str = "alice:$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw\n";

    #[test]
    fn a_changed_file_is_taken_when_it_has_settled_and_is_good() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("users");
        std::fs::write(&file, "").expect("written");
        let list = Arc::new(UserList::new(file.clone(), Users::parse("").expect("good")));
        let basic = BasicAuth { users: Arc::clone(&list), challenge: HeaderValue::from_static("Basic"), header: None };
        let auth = Auth { name: "staff".into(), means: Means::Basic(basic) };
        let mut one = site("a.test");
        let mut route = (**one.routes.iter().next().expect("one route")).clone();
        route.auth = vec![Arc::new(auth)];
        one.routes = RouteTable::new(vec![Arc::new(route)]);
        let table = table_of(vec![one, site("b.test")]);
        let mut known = Known::default();
        let mut count = |looks: usize| {
            (0..looks).for_each(|_| known.look(&table));
            list.users().count()
        };
        assert_eq!(count(3), 0);
        std::fs::write(&file, LINE).expect("written");
        assert_eq!(count(1), 0, "a writer may not be through");
        assert_eq!(count(1), 1);
        for bad in ["alice", &format!("{LINE}bob:secret\n"), "\u{0}"] {
            std::fs::write(&file, bad).expect("written");
            assert_eq!(count(2), 1, "{bad:?}");
        }
        std::fs::remove_file(&file).expect("removed");
        assert_eq!(count(2), 1);
        std::fs::write(&file, format!("{LINE}{}", LINE.replace("alice", "bob"))).expect("written");
        assert_eq!(count(2), 2);
    }
}
