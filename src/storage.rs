//! Private files under the directory `storage`: whole or not there, readable by their owner only; and whether it can be
//! written at all. Only a real write tells: permissions, mounts, quotas and sandboxes each say no in their own place.
//!
//! What root makes there for a service with a user of its own belongs to that user: the one who owns the nearest directory
//! that was there already. Links that such a user may have laid are not followed then, or root could be led anywhere.
//! What is kept there belongs to others (the local authority, ACME, the history).

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Component, Path};

use aws_lc_rs::rand;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// Makes a directory and those between it and `storage`, for the owner only: 0700, whatever the umask says.
///
/// # Errors
/// When the system refuses it.
pub fn private_directory(storage: &Path, directory: &Path) -> io::Result<()> {
    Place::enter(storage, directory).map(drop)
}

/// Writes a file that is there whole or not at all, also after a power cut: 0600. Its directory is made if it is missing.
///
/// # Errors
/// When the system refuses it; what was there before is still there.
pub fn write_whole(storage: &Path, directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let place = Place::enter(storage, directory)?;
    let mut mark = [0; 8];
    rand::fill(&mut mark).map_err(io::Error::other)?;
    let temporary = format!(".new-{:016x}", u64::from_be_bytes(mark));
    let mut file = place.create(&temporary)?;
    let mut put = || {
        file.write_all(bytes)?;
        file.sync_all()?;
        renameat(&place.directory, &*temporary, &place.directory, name)?;
        place.directory.sync_all()
    };
    put().inspect_err(|_| {
        // The first fault is the one that matters.
        let _ = unlinkat(&place.directory, &*temporary, UnlinkatFlags::NoRemoveDir);
    })
}

/// Opens a file for appending, and makes it (0600) and its directory if they are missing: for locks.
///
/// # Errors
/// When the system refuses it.
pub fn private_file(storage: &Path, directory: &Path, name: &str) -> io::Result<File> {
    let place = Place::enter(storage, directory)?;
    // Without a reader a pipe that somebody put there would block for ever.
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | place.links();
    let open = || openat(&place.directory, name, flags, Mode::empty()).map(File::from);
    match open() {
        Err(Errno::ENOENT) => {}
        found => return Ok(found?),
    }
    match place.create(name) {
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(open()?),
        made => made,
    }
}

/// An open directory below `storage`, and whom new things in it are given to.
struct Place {
    directory: File,
    heir: Option<(u32, u32)>,
}

impl Place {
    /// Opens a directory, and makes what is missing of the way to it.
    fn enter(storage: &Path, directory: &Path) -> io::Result<Self> {
        if !geteuid().is_root() {
            make(directory)?;
            return Ok(Self { directory: File::open(directory)?, heir: None });
        }
        let foreign = || io::Error::new(ErrorKind::InvalidInput, "it is not below `storage`");
        let way = directory.strip_prefix(storage).map_err(|_| foreign())?;
        // A `storage` that root makes is root's, whoever owns the directory above: it is to hold keys.
        make(storage)?;
        let mut place = Self::of(File::open(storage)?)?;
        for part in way.components() {
            let Component::Normal(name) = part else { return Err(foreign()) };
            place = place.step(name)?;
        }
        Ok(place)
    }

    /// A directory that root has opened.
    fn of(directory: File) -> io::Result<Self> {
        let owner = directory.metadata()?;
        let heir = (owner.uid() != 0).then(|| (owner.uid(), owner.gid()));
        Ok(Self { directory, heir })
    }

    /// A directory in this one.
    fn step(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(&self.directory, name, flags | self.links(), Mode::empty()) {
            Err(Errno::ENOENT) => {}
            found => return Self::of(found?.into()),
        }
        let is_made = match mkdirat(&self.directory, name, Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let found = File::from(openat(&self.directory, name, flags | OFlag::O_NOFOLLOW, Mode::empty())?);
        if is_made {
            found.set_permissions(Permissions::from_mode(0o700))?;
            self.give(&found)?;
        }
        Self::of(found)
    }

    /// Makes a file that is not there yet.
    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        match self.give(&file) {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir);
                Err(error)
            }
        }
    }

    /// Gives what has just been made to whom it is for.
    fn give(&self, made: &File) -> io::Result<()> {
        let Some((user, group)) = self.heir else { return Ok(()) };
        match fchown(made, Some(user), Some(group)) {
            // A root that may not give files away (in a container) keeps them, as it is the one that serves there.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => Ok(()),
            given => given,
        }
    }

    /// Whether links in it are followed: not those of somebody who is less than we are.
    fn links(&self) -> OFlag {
        if self.heir.is_some() { OFlag::O_NOFOLLOW } else { OFlag::empty() }
    }
}

/// Makes a directory and those above it, by their path.
fn make(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Makes the directory if it is missing (0700), and writes, syncs and removes a small file in it.
///
/// # Errors
/// When any of that fails; `words` says it plainly.
pub fn probe(storage: &Path, directory: &Path) -> io::Result<()> {
    private_directory(storage, directory)?;
    let mut file = tempfile::Builder::new().prefix(".probe-").tempfile_in(directory)?;
    // As large as a certificate with its chain: an empty file fits on a full disk.
    file.write_all(&[b'\n'; 8192])?;
    file.as_file().sync_all()?;
    file.close()
}

/// Why a directory cannot be written, and what to do, in plain words.
pub fn words(error: &io::Error) -> (String, &'static str) {
    let (why, remedy) = match error.kind() {
        ErrorKind::PermissionDenied => ("permission denied", "let the user that runs tidegate write it"),
        ErrorKind::ReadOnlyFilesystem => {
            ("the file system is read-only", "let it be mounted so that it can be written")
        }
        ErrorKind::StorageFull => ("the file system is full", "make room there"),
        ErrorKind::QuotaExceeded => ("the quota of the user is used up", "make room there"),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            ("part of its path is not a directory", "remove the file that is in its place")
        }
        _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            ("a symbolic link is in its place, and root follows none of another user", "remove the link")
        }
        _ => return (error.to_string(), "look at the disk"),
    };
    (why.to_owned(), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_makes_the_directory_and_leaves_it_empty() {
        let house = tempfile::tempdir().expect("a temporary directory");
        let directory = house.path().join("a/storage");
        for _ in 0..2 {
            probe(&directory, &directory).expect("it can be written");
        }
        let mode = directory.metadata().expect("it exists").permissions().mode() & 0o777;
        assert_eq!((mode, directory.read_dir().expect("readable").count()), (0o700, 0));
    }

    #[test]
    fn what_is_no_directory_is_said_so() {
        let house = tempfile::tempdir().expect("a temporary directory");
        let file = house.path().join("file");
        std::fs::write(&file, "").expect("written");
        for directory in [file.clone(), file.join("storage")] {
            let error = probe(&directory, &directory).expect_err("a file is in its place");
            assert_eq!(words(&error).0, "part of its path is not a directory", "{error:?}");
        }
    }

    /// A directory of a user who is not root; `None` when these tests are not root's.
    fn of_another() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
        if !geteuid().is_root() {
            return None;
        }
        let house = tempfile::tempdir().expect("a temporary directory");
        let storage = house.path().join("storage");
        std::fs::create_dir(&storage).expect("made");
        std::os::unix::fs::chown(&storage, Some(12345), Some(12346)).expect("root may");
        Some((house, storage))
    }

    #[test]
    fn what_root_makes_belongs_to_the_owner_of_what_was_there() {
        let Some((house, storage)) = of_another() else { return };
        let directory = storage.join("a/b");
        write_whole(&storage, &directory, "file", b"old").expect("written");
        write_whole(&storage, &directory, "file", b"new").expect("written");
        for _ in 0..2 {
            private_file(&storage, &directory, "lock").expect("opened");
        }
        probe(&storage, &storage.join("c")).expect("it can be written");
        assert_eq!(fs::read(directory.join("file")).expect("there"), b"new");
        for (made, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/file", 0o600), ("a/b/lock", 0o600), ("c", 0o700)] {
            let found = storage.join(made).metadata().expect("there");
            let facts = (found.uid(), found.gid(), found.mode() & 0o777);
            assert_eq!(facts, (12345, 12346, mode), "{made}");
        }
        assert_eq!(directory.read_dir().expect("readable").count(), 2, "nothing else is left");
        // One that is not there yet is root's: whoever owns the directory above must not get at its keys.
        std::os::unix::fs::chown(house.path(), Some(12345), Some(12346)).expect("root may");
        let new = house.path().join("new");
        write_whole(&new, &new.join("a"), "file", b"").expect("written");
        for made in ["", "a", "a/file"] {
            assert_eq!(new.join(made).metadata().expect("there").uid(), 0, "{made}");
        }
    }

    #[test]
    fn root_follows_no_links_of_another_user() {
        let Some((house, storage)) = of_another() else { return };
        let (victim, file) = (house.path().join("victim"), house.path().join("file"));
        std::fs::create_dir(&victim).expect("made");
        std::fs::write(&file, "root's").expect("written");
        std::os::unix::fs::symlink(&victim, storage.join("a")).expect("a link");
        std::os::unix::fs::symlink(&file, storage.join("lock")).expect("a link");
        std::os::unix::fs::symlink(&file, storage.join("whole")).expect("a link");
        let error = write_whole(&storage, &storage.join("a/b"), "file", b"x").expect_err("a link on the way");
        assert_eq!(words(&error).0, "part of its path is not a directory", "{error:?}");
        let error = private_file(&storage, &storage, "lock").expect_err("a link");
        assert!(words(&error).0.contains("symbolic link"), "{error:?}");
        write_whole(&storage, &storage, "whole", b"x").expect("it takes the place of the link");
        assert!(storage.join("whole").symlink_metadata().expect("there").is_file());
        assert_eq!(victim.read_dir().expect("readable").count(), 0);
        assert_eq!((fs::read(&file).expect("there"), file.metadata().expect("there").uid()), (b"root's".to_vec(), 0));
        assert!(write_whole(&storage, house.path(), "x", b"").is_err(), "that is not below it");
        assert!(write_whole(&storage, &storage.join("../x"), "x", b"").is_err(), "nor is that");
    }
}
