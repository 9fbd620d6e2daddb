//! Files that a configuration names: read whole, with plain words for what goes wrong.
//!
//! Only regular files of a sane size are read, so that a name of a pipe or a device in the file
//! cannot stop a reload.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::report::Span;

/// 16 MiB, our choice: far above any certificate bundle, page or list of networks.
const LARGEST: u64 = 16 << 20;

/// Reads a file whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let words = |error: std::io::Error| words(&error);
    if !std::fs::metadata(path).map_err(words)?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(words)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(words)?;
    if bytes.len() as u64 > LARGEST { Err("it is larger than 16MiB".to_owned()) } else { Ok(bytes) }
}

/// Reads a text file whole.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let text = String::from_utf8(read(path)?).map_err(|_| "it is not UTF-8 text".to_owned())?;
    // A byte order mark is no text: it would count as a column.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Plain words for an error of the file system.
pub(crate) fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::NotADirectory => "part of its path is not a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// The file that a text means: relative to the file in which the text stands.
pub(crate) fn resolve(span: &Span, text: &str) -> PathBuf {
    resolve_in(span.source.path.as_deref().unwrap_or_else(|| Path::new("")), text)
}

/// The file that a text of `file` means.
pub(crate) fn resolve_in(file: &Path, text: &str) -> PathBuf {
    let base = file.parent().unwrap_or_else(|| Path::new(""));
    let joined = base.join(text);
    std::path::absolute(&joined).unwrap_or(joined)
}

/// True when users other than the owner and the group can read it.
pub(crate) fn is_readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.mode() & 0o004 != 0)
}
