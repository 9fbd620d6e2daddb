//! The last good configurations, kept with their dates under `storage`, and the way back to one.
//!
//! One directory for each: the files as they were, and `entry.json`, which says where they stood.
//! An entry appears whole or not at all (it is renamed into place); 0700 and 0600, because a
//! configuration may hold what only its operator should read.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, fchown,
};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::config;
use crate::config::report::Report;

/// A file and its text.
pub type Source = (PathBuf, String);

/// Why an entry is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It was taken into service.
    InForce,
    /// A rollback wrote over it.
    Replaced,
}

/// One kept configuration.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it was kept, in UTC: `2026-11-20T09:12:03Z`.
    pub date: String,
    /// Why it was kept.
    pub reason: Reason,
    /// The files; the configuration file itself first.
    pub sources: Vec<Source>,
    directory: PathBuf,
}

/// Why the history cannot be read, or an entry not be restored.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file or directory.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No such entry.
    #[error("there is no entry {wanted}: {}", if *kept == 0 { "nothing is kept yet".into() } else { format!("1 to {kept} are kept") })]
    NoEntry {
        /// The number that was asked for.
        wanted: usize,
        /// How many there are.
        kept: usize,
    },
    /// The entry is no longer valid on this machine; nothing was changed.
    #[error("that configuration is not valid here any more, so nothing was changed")]
    Invalid(#[source] Box<Faults>),
    /// Files are included now that were no part of the entry; nothing was changed.
    #[error("nothing was changed: these files are included now and were no part of it: {0}; move them away first")]
    Included(String),
}

/// A configuration's faults, as an error's source.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.to_text(false))]
pub struct Faults(pub Report);

/// What is written beside the files of an entry.
#[derive(Serialize, Deserialize)]
struct Manifest {
    date: String,
    reason: Reason,
    files: Vec<Kept>,
}

/// One file of an entry.
#[derive(Serialize, Deserialize)]
struct Kept {
    path: PathBuf,
    file: String,
}

/// The name of an entry's manifest.
const MANIFEST: &str = "entry.json";

/// Keeps a configuration that was taken into service, unless it is the newest entry already, and
/// forgets all but the newest `keep`. The first source is the configuration file itself.
///
/// # Errors
/// When the storage cannot be written; whoever calls warns and goes on.
pub fn keep(storage: &Path, sources: &[Source], keep: usize) -> Result<(), HistoryError> {
    let Some((main, _)) = sources.first() else { return Ok(()) };
    if keep == 0 {
        return Ok(());
    }
    let entries = list(storage, main)?;
    let newest = entries.iter().find(|entry| entry.reason == Reason::InForce);
    if newest.is_none_or(|newest| newest.sources != absolute_all(sources)) {
        write(storage, sources, Reason::InForce)?;
        forget(storage, main, keep)?;
    }
    Ok(())
}

/// The entries of one configuration file, newest first.
///
/// # Errors
/// When the history cannot be read. No history at all is an empty list.
pub fn list(storage: &Path, main: &Path) -> Result<Vec<Entry>, HistoryError> {
    let main = absolute(main);
    let directory = directory(storage);
    let found = match fs::read_dir(&directory) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(HistoryError::Io { doing: "read", path: directory, source }),
    };
    let mut names: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Names begin with the date and end with a running number.
    names.sort_unstable_by(|a, b| b.cmp(a));
    // Something half written or foreign is no entry; it must not hide those that are whole.
    let entries = names.iter().filter_map(|path| read(path).ok());
    Ok(entries.filter(|entry| entry.sources.first().is_some_and(|(path, _)| *path == main)).collect())
}

/// Writes the entries of a configuration file, newest first, as `rollback` counts them.
///
/// # Errors
/// When the history cannot be read, or `out` not written.
pub fn write_list(main: &Path, storage: &Path, out: &mut dyn Write) -> Result<(), HistoryError> {
    let entries = list(storage, main)?;
    show(&entries, main, out).map_err(|source| io_error("write", Path::new("the list"), source))
}

/// Restores an entry: `choice` counts from 1, the newest; `None` is the newest that was in force and
/// differs from what stands there now.
///
/// Restoring replaces the files one by one (each by a rename), reads the result as a reload would,
/// and puts everything back if it is not valid or not the kept configuration. What is replaced is
/// kept as an entry of its own first. The running process is not told: `tidegate reload` does that.
///
/// # Errors
/// When there is no such entry, when it is not valid any more, or when a file cannot be written.
pub fn rollback(main: &Path, storage: &Path, choice: Option<usize>, out: &mut dyn Write) -> Result<(), HistoryError> {
    let entries = list(storage, main)?;
    let is_other = |entry: &Entry| present(entry).is_ok_and(|before| !is_same(entry, &before));
    // What a rollback replaced may have been broken: only what was in force is known to be good.
    let was_good = |entry: &Entry| entry.reason == Reason::InForce && is_other(entry);
    let newest_other = || entries.iter().position(was_good).or_else(|| entries.iter().position(is_other));
    let wanted = choice.unwrap_or_else(|| newest_other().map_or(entries.len() + 1, |index| index + 1));
    let entry = wanted.checked_sub(1).and_then(|index| entries.get(index));
    let entry = entry.ok_or(HistoryError::NoEntry { wanted, kept: entries.len() })?;
    let before = present(entry)?;
    if is_same(entry, &before) {
        let said = writeln!(out, "{} already is the configuration of {}", main.display(), entry.date);
        return said.map_err(|source| io_error("write", Path::new("the answer"), source));
    }
    let kept = |(path, text): &Present| Some((path.clone(), String::from_utf8_lossy(text.as_deref()?).into_owned()));
    let replaced: Vec<Source> = before.iter().filter_map(kept).collect();
    if replaced.first().is_some_and(|(path, _)| *path == absolute(main)) {
        write(storage, &replaced, Reason::Replaced)?;
    }
    if let Err(error) = replace(entry).and_then(|()| check(entry)) {
        restore(&before)?;
        return Err(error);
    }
    writeln!(out, "restored {} as of {}", main.display(), entry.date)
        .and_then(|()| writeln!(out, "reload to put it in force: `systemctl reload tidegate`, or SIGHUP"))
        .map_err(|source| io_error("write", Path::new("the answer"), source))
}

/// True when the files hold what the entry has.
fn is_same(entry: &Entry, before: &[Present]) -> bool {
    before.iter().all(|(path, text)| text.as_deref() == text_of(entry, path).map(str::as_bytes))
}

/// The list for a person.
fn show(entries: &[Entry], main: &Path, out: &mut dyn Write) -> io::Result<()> {
    if entries.is_empty() {
        return writeln!(out, "no configuration of {} is kept yet", main.display());
    }
    for (index, entry) in entries.iter().enumerate() {
        let files = match entry.sources.len() {
            1 => "1 file".into(),
            n => format!("{n} files"),
        };
        let is_present =
            entry.sources.iter().all(|(path, text)| fs::read_to_string(path).is_ok_and(|now| now == *text));
        let note = match (is_present, entry.reason) {
            (true, _) => "  the files now",
            (false, Reason::Replaced) => "  replaced by a rollback",
            (false, Reason::InForce) => "",
        };
        writeln!(out, "{:>4}  {}  {files}{note}", index + 1, entry.date)?;
    }
    writeln!(out, "`tidegate rollback N` restores one")
}

/// A file as it is now; `None` where there is none.
type Present = (PathBuf, Option<Vec<u8>>);

/// The files of an entry as they are now.
fn present(entry: &Entry) -> Result<Vec<Present>, HistoryError> {
    let read = |(path, _): &Source| match fs::read(path) {
        Ok(text) => Ok((path.clone(), Some(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path.clone(), None)),
        Err(source) => Err(io_error("read", path, source)),
    };
    entry.sources.iter().map(read).collect()
}

/// The text that an entry has for a file.
fn text_of<'a>(entry: &'a Entry, path: &Path) -> Option<&'a str> {
    entry.sources.iter().find(|(known, _)| known == path).map(|(_, text)| &**text)
}

/// Writes the files of an entry to where they stood: all are ready beside their places before the
/// first is renamed.
fn replace(entry: &Entry) -> Result<(), HistoryError> {
    let ready = entry.sources.iter().map(|(path, text)| Ready::new(path, text.as_bytes()));
    ready.collect::<Result<Vec<_>, _>>()?.into_iter().try_for_each(Ready::put)
}

/// Undoes `replace`.
fn restore(before: &[Present]) -> Result<(), HistoryError> {
    for (path, text) in before {
        match text {
            Some(text) => Ready::new(path, text)?.put()?,
            None => match fs::remove_file(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", path, source));
                }
                Ok(()) | Err(_) => {}
            },
        }
    }
    Ok(())
}

/// A file that is written and stands beside the one that it will replace.
struct Ready {
    file: NamedTempFile,
    place: PathBuf,
}

impl Ready {
    /// Writes the file, with the owner and mode of the one that it will replace (else 0600): the
    /// service must still be able to read it when an administrator restored it.
    fn new(path: &Path, text: &[u8]) -> Result<Self, HistoryError> {
        // Behind a symbolic link the file itself is replaced, not the link.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let written = || {
            let mut file = NamedTempFile::new_in(place.parent().unwrap_or(Path::new("/")))?;
            file.write_all(text)?;
            if let Ok(found) = fs::metadata(&place) {
                // Only root may give files away; anybody else owns the old one already.
                let _ = fchown(file.as_file(), Some(found.uid()), Some(found.gid()));
                file.as_file().set_permissions(fs::Permissions::from_mode(found.permissions().mode() & 0o777))?;
            }
            file.as_file().sync_all()?;
            Ok(file)
        };
        match written() {
            Ok(file) => Ok(Self { file, place }),
            Err(source) => Err(io_error("write beside", &place, source)),
        }
    }

    /// Puts it in its place.
    fn put(self) -> Result<(), HistoryError> {
        let Self { file, place } = self;
        file.persist(&place).map(drop).map_err(|error| io_error("replace", &place, error.error))
    }
}

/// Reads what stands there now as a reload would: it must be valid, and it must be the entry.
fn check(entry: &Entry) -> Result<(), HistoryError> {
    let Some((main, _)) = entry.sources.first() else { return Ok(()) };
    let loaded = config::load(main).map_err(|report| HistoryError::Invalid(Box::new(Faults(report))))?;
    let foreign: Vec<String> = absolute_all(&loaded.sources)
        .into_iter()
        .filter(|(path, _)| text_of(entry, path).is_none())
        .map(|(path, _)| path.display().to_string())
        .collect();
    if foreign.is_empty() { Ok(()) } else { Err(HistoryError::Included(foreign.join(", "))) }
}

/// Writes an entry: into a directory of another name first, then renamed.
fn write(storage: &Path, sources: &[Source], reason: Reason) -> Result<(), HistoryError> {
    let directory = directory(storage);
    let now = OffsetDateTime::now_utc();
    let date = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    let files = absolute_all(sources).into_iter().enumerate().map(|(nth, (path, text))| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        (Kept { path, file: format!("{nth}-{name}") }, text)
    });
    let (files, texts): (Vec<Kept>, Vec<String>) = files.unzip();
    let manifest = Manifest { date, reason, files };
    let written = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let only_owner = fs::Permissions::from_mode(0o700);
        let staged = tempfile::Builder::new().prefix(".new-").permissions(only_owner).tempdir_in(&directory)?;
        for (kept, text) in manifest.files.iter().zip(&texts) {
            private_file(&staged.path().join(&kept.file), text.as_bytes())?;
        }
        private_file(&staged.path().join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
        // What an administrator's rollback keeps, the service must be able to read and to forget.
        let owner = fs::metadata(storage)?;
        for path in [&directory, staged.path()].into_iter().map(Path::to_owned).chain(
            manifest.files.iter().map(|kept| staged.path().join(&kept.file)).chain([staged.path().join(MANIFEST)]),
        ) {
            // Only root can, and only root has to.
            let _ = chown(path, Some(owner.uid()), Some(owner.gid()));
        }
        // The number keeps the order of entries of one second, and lets no rename hit an entry.
        let stamp = now.format(format_description!("[year][month][day]T[hour][minute][second]Z"));
        let stamp = stamp.unwrap_or_default();
        let free = (0..1000_u32).map(|nth| directory.join(format!("{stamp}-{nth:03}"))).find(|path| !path.exists());
        let free = free.ok_or(io::ErrorKind::AlreadyExists)?;
        fs::rename(staged.path(), &free)?;
        // It was moved away: there is nothing left to remove.
        let _ = staged.keep();
        fs::File::open(&directory)?.sync_all()
    };
    written().map_err(|source| io_error("keep a configuration in", &directory, source))
}

/// Writes a new file that only its owner may read.
fn private_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads one entry.
fn read(directory: &Path) -> io::Result<Entry> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(directory.join(MANIFEST))?)?;
    let source = |kept: Kept| Ok((kept.path, fs::read_to_string(directory.join(kept.file))?));
    let sources = manifest.files.into_iter().map(source).collect::<io::Result<_>>()?;
    Ok(Entry { date: manifest.date, reason: manifest.reason, sources, directory: directory.to_owned() })
}

/// Removes all but the newest `keep` entries of a configuration file.
fn forget(storage: &Path, main: &Path, keep: usize) -> Result<(), HistoryError> {
    for entry in list(storage, main)?.into_iter().skip(keep) {
        fs::remove_dir_all(&entry.directory).map_err(|source| io_error("remove", &entry.directory, source))?;
    }
    Ok(())
}

/// Where entries stand.
fn directory(storage: &Path) -> PathBuf {
    storage.join("history")
}

/// The path from the root, so that an entry means the same from every working directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// See `absolute`.
fn absolute_all(sources: &[Source]) -> Vec<Source> {
    sources.iter().map(|(path, text)| (absolute(path), text.clone())).collect()
}

/// An error with its place.
fn io_error(doing: &'static str, path: &Path, source: io::Error) -> HistoryError {
    HistoryError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration that is valid on every machine.
    const GOOD: &str =
        "[listen]\nhttp = []\nhttps = [\"127.0.0.1:8443\"]\n\n[sites.\"localhost\"]\nupstream = \"127.0.0.1:18789\"\n";

    /// Another one.
    fn other() -> String {
        GOOD.replace("18789", "18790")
    }

    /// A directory with a configuration file and a storage.
    struct House {
        dir: tempfile::TempDir,
    }

    impl House {
        fn new(text: &str) -> Self {
            let house = Self { dir: tempfile::tempdir().expect("a temporary directory") };
            fs::write(house.main(), text).expect("a writable directory");
            house
        }

        fn main(&self) -> PathBuf {
            self.dir.path().join("tidegate.toml")
        }

        fn storage(&self) -> PathBuf {
            self.dir.path().join("storage")
        }

        fn keep(&self, text: &str, most: usize) {
            keep(&self.storage(), &[(self.main(), text.to_owned())], most).expect("a writable storage");
        }

        fn list(&self) -> Vec<Entry> {
            list(&self.storage(), &self.main()).expect("a readable storage")
        }

        fn rollback(&self, choice: Option<usize>) -> Result<String, HistoryError> {
            let mut out = Vec::new();
            rollback(&self.main(), &self.storage(), choice, &mut out)?;
            Ok(String::from_utf8(out).expect("text"))
        }

        fn shown(&self) -> String {
            let mut out = Vec::new();
            write_list(&self.main(), &self.storage(), &mut out).expect("a readable storage");
            String::from_utf8(out).expect("text")
        }

        fn text(&self) -> String {
            fs::read_to_string(self.main()).expect("the file stays")
        }
    }

    #[test]
    fn only_changes_are_kept_and_only_the_newest() {
        let house = House::new(GOOD);
        house.keep(GOOD, 2);
        house.keep(GOOD, 2);
        assert_eq!(house.list().len(), 1, "the same configuration is kept once");
        house.keep(&other(), 2);
        house.keep(GOOD, 2);
        let kept = house.list();
        let texts: Vec<&str> = kept.iter().map(|entry| &*entry.sources[0].1).collect();
        assert_eq!(texts, [GOOD, &other()], "newest first, the oldest forgotten");
        house.keep(&other(), 0);
        assert_eq!(house.list().len(), 2, "a history of 0 is left alone");
    }

    #[test]
    fn the_history_is_its_owners_only() {
        let house = House::new(GOOD);
        house.keep(GOOD, 5);
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        let entry = &house.list()[0];
        assert_eq!(mode(&house.storage().join("history")), 0o700);
        assert_eq!(mode(&entry.directory), 0o700);
        for file in fs::read_dir(&entry.directory).expect("a directory") {
            assert_eq!(mode(&file.expect("an entry").path()), 0o600);
        }
        let strays = fs::read_dir(house.storage().join("history")).expect("a directory").count();
        assert_eq!(strays, 1, "nothing half written is left");
    }

    #[test]
    fn rollback_lists_and_restores() {
        let house = House::new(&other());
        assert!(house.shown().contains("no configuration"));
        assert!(matches!(house.rollback(None), Err(HistoryError::NoEntry { kept: 0, .. })));
        house.keep(GOOD, 5);
        house.keep(&other(), 5);
        let shown = house.shown();
        assert!(
            shown.lines().next().is_some_and(|line| line.contains("1  ") && line.ends_with("the files now")),
            "{shown}"
        );
        assert!(matches!(house.rollback(Some(3)), Err(HistoryError::NoEntry { wanted: 3, kept: 2 })));
        assert!(matches!(house.rollback(Some(0)), Err(HistoryError::NoEntry { .. })));
        fs::write(house.main(), "nonsense = [\n").expect("a writable file");
        fs::set_permissions(house.main(), fs::Permissions::from_mode(0o640)).expect("our own file");
        assert!(house.rollback(Some(2)).expect("it is valid").contains("restored"));
        assert_eq!(house.text(), GOOD);
        assert_eq!(fs::metadata(house.main()).expect("it exists").permissions().mode() & 0o777, 0o640);
        let newest = &house.list()[0];
        assert_eq!((newest.reason, &*newest.sources[0].1), (Reason::Replaced, "nonsense = [\n"));
        assert!(house.rollback(Some(3)).expect("nothing to do").contains("already is"));
    }

    #[test]
    fn rollback_to_what_is_not_valid_changes_nothing() {
        let house = House::new(GOOD);
        house.keep("nonsense = [\n", 5);
        let error = house.rollback(Some(1)).expect_err("it is no configuration");
        assert!(matches!(error, HistoryError::Invalid(_)), "{error}");
        assert_eq!(house.text(), GOOD);
        let strays = fs::read_dir(house.dir.path()).expect("a directory").count();
        assert_eq!(strays, 2, "no temporary file is left");
    }

    #[test]
    fn rollback_goes_through_a_link() {
        let house = House::new(GOOD);
        let real = house.dir.path().join("real.toml");
        fs::rename(house.main(), &real).expect("a writable directory");
        std::os::unix::fs::symlink(&real, house.main()).expect("a writable directory");
        house.keep(&other(), 5);
        house.rollback(Some(1)).expect("it is valid");
        assert!(fs::symlink_metadata(house.main()).expect("it exists").is_symlink());
        assert_eq!(fs::read_to_string(real).expect("it exists"), other());
    }
}
