//! Private files under the directory `storage`: whole or not there, readable by their owner only; and whether it can be
//! written at all. Only a real write tells: permissions, mounts, quotas and sandboxes each say no in their own place.
//!
//! What is kept there belongs to others (the local authority, ACME, the history).

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// Makes a directory and those above it, for the owner only: 0700, whatever the umask says.
///
/// # Errors
/// When the system refuses it.
pub fn private_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Writes a file that is there whole or not at all, also after a power cut: 0600.
///
/// # Errors
/// When the system refuses it; what was there before is still there.
pub fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Mode 0600 is what tempfile creates with.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name)).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Makes the directory if it is missing (0700), and writes, syncs and removes a small file in it.
///
/// # Errors
/// When any of that fails; `words` says it plainly.
pub fn probe(directory: &Path) -> io::Result<()> {
    private_directory(directory)?;
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
            probe(&directory).expect("it can be written");
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
            let error = probe(&directory).expect_err("a file is in its place");
            assert_eq!(words(&error).0, "part of its path is not a directory", "{error:?}");
        }
    }
}
