//! Configuration: from `tidegate.toml` to a site table, or to a report of every fault in it.
//!
//! A file is parsed and read (`config/read.rs`, by the description in `config/file.rs`), merged
//! with what it includes, and compiled. A table that comes out needs no further checks.

mod compile;
mod disk;
mod file;
mod include;
mod kinds;
mod preset;
mod read;
pub mod report;
mod schema;
pub mod show;
pub mod units;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use compile::default_storage;
pub use report::{Diagnostic, Report};
pub use schema::{json_schema, reference};
pub use show::Effective;

use crate::addr::HostName;
use crate::site::SiteTable;
use report::{Code, Source};

/// A configuration that can be put in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub table: SiteTable,
    /// Doubts that the operator should hear of.
    pub warnings: Vec<Diagnostic>,
    /// The files it was read from, with their text, for the history. Empty without a file.
    pub sources: Vec<(PathBuf, String)>,
    /// Each effective value and where it came from.
    pub effective: Effective,
}

/// Reads a file and all that it includes.
///
/// # Errors
/// When anything in them keeps them from being used: every fault, and every warning.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    match disk::read_text(path) {
        Ok(text) => compile(Source { name, path: Some(path.to_owned()), text }),
        Err(why) => {
            let mut report = Report::new();
            report.push(Diagnostic::nowhere(Code::Unreadable, format!("cannot read \"{name}\": {why}")));
            Err(report)
        }
    }
}

/// Compiles a text as if it were a file of this name in the current directory. Reads no files but
/// those that the text names.
///
/// # Errors
/// As `load`.
pub fn compile_text(name: &str, text: &str) -> Result<Loaded, Report> {
    compile(Source { name: name.to_owned(), path: None, text: text.to_owned() })
}

/// The configuration of `run --host NAME --upstream ADDR`, which needs no file: a gateway under
/// one name. A name of this machine is served as `config/local.toml` does, any other on the usual
/// ports.
///
/// # Errors
/// As `load`.
pub fn from_flags(host: &str, upstream: &str) -> Result<Loaded, Report> {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let is_local = HostName::from_config(host).is_ok_and(|name| name.is_loopback());
    let mut text = String::new();
    if is_local {
        text.push_str("[listen]\nhttp = [\"127.0.0.1:8080\"]\nhttps = [\"127.0.0.1:8443\"]\n\n");
    }
    text.push_str(&format!("[sites.{}]\npreset = \"openclaw\"\nupstream = {}\n", quote(host), quote(upstream)));
    if is_local {
        text.push_str("attribution = \"local\"\n");
    }
    let mut loaded = compile(Source { name: "command line".to_owned(), path: None, text })?;
    loaded.sources.clear();
    Ok(loaded)
}

/// Reads, merges and compiles a source.
fn compile(main: Source) -> Result<Loaded, Report> {
    let mut report = Report::new();
    let main = Arc::new(main);
    let (file, sources) = include::read_all(&main, &mut report);
    let compiled = file.as_ref().and_then(|file| compile::compile(file, &mut report));
    report.tidy(&sources);
    match compiled {
        Some((table, effective)) => {
            let sources = sources
                .iter()
                .map(|source| (source.path.clone().unwrap_or_else(|| PathBuf::from(&source.name)), source.text.clone()))
                .collect();
            Ok(Loaded { table, warnings: report.into_diagnostics(), sources, effective })
        }
        None => Err(report),
    }
}
