//! From a file's text to one merged description: parse, read, follow `include`, merge.
//!
//! Included files take the same keys. Nothing wins by order: a setting, a site or a name that
//! stands in two files is an error that names both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::disk;
use super::file::File;
use super::mirror::{Listed, Mirror};
use super::read::{At, Layer, Reader, entries, read_entries};
use super::report::{Code, Diagnostic, Report, Source, Span};
use super::values::Map;

/// Reads a source and all that it includes. The sources are returned in the order of reading.
pub(crate) fn read_all(main: &Arc<Source>, report: &mut Report) -> (Option<File>, Vec<Arc<Source>>) {
    let mut sources = vec![Arc::clone(main)];
    let Some(mut file) = read(main, report) else {
        return (None, sources);
    };
    for pattern in file.include.as_ref().map_or(&[][..], |include| &include.value).to_vec() {
        for (name, path) in matching(&pattern, report) {
            if sources.iter().any(|source| source.path.as_deref() == Some(&path)) {
                let message = format!("\"{name}\" is included twice");
                report.push(Diagnostic::at(Code::Include, &pattern.span, message).help("name each file once"));
                continue;
            }
            let text = match disk::read_text(&path) {
                Ok(text) => text,
                Err(why) => {
                    let message = format!("cannot read the included file \"{name}\": {why}");
                    report.push(
                        Diagnostic::at(Code::Include, &pattern.span, message).help("create it, or correct the path"),
                    );
                    continue;
                }
            };
            let source = Arc::new(Source::new(name, Some(path), text));
            sources.push(Arc::clone(&source));
            if let Some(included) = read(&source, report) {
                combine(&mut file, included, report);
            }
        }
    }
    (Some(file), sources)
}

/// Parses and reads one source. A text that is not TOML is one diagnostic: what follows the first
/// such fault cannot be told apart from its consequences.
pub(crate) fn read(source: &Arc<Source>, report: &mut Report) -> Option<File> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let span =
        |range: Option<std::ops::Range<usize>>| Span { source: Arc::clone(source), range: range.unwrap_or(0..0) };
    let (twice, broken): (Vec<_>, Vec<_>) =
        errors.into_iter().partition(|error| error.message().starts_with("duplicate key"));
    if let Some(error) = broken.iter().min_by_key(|error| error.span().map_or(0, |span| span.start)) {
        let (what, wanted) = error.message().split_once(", expected ").unwrap_or((error.message(), ""));
        let place = span(error.span());
        let mut diagnostic = Diagnostic::at(Code::Syntax, &place, format!("this is not TOML: {what}"));
        if !wanted.is_empty() && wanted != "nothing" {
            diagnostic = diagnostic.label(format!("expected {}", wanted.replace('`', "\"")));
        }
        if let Some(text) = unquoted(&place) {
            diagnostic = diagnostic.help(format!("a text needs quotes: write \"{text}\""));
        }
        report.push(diagnostic.help("nothing else in this file was checked"));
        return None;
    }
    for error in twice {
        let span = span(error.span());
        let message = format!("\"{}\" is written twice", span.text().trim_matches(['"', '\'']));
        report.push(
            Diagnostic::at(Code::DuplicateKey, &span, message).label("the second one").help("keep one of the two"),
        );
    }
    let mut reader =
        Reader { source: Arc::clone(source), layer: Layer::Own, report, places: Vec::new(), list: String::new() };
    Some(read_entries(&entries(table.get_ref()), span(None), &mut reader))
}

/// The value on the line of a fault, when it looks like a text that lacks its quotes.
fn unquoted(place: &Span) -> Option<&str> {
    let text = &place.source.text;
    let at = place.range.start.min(text.len());
    let start = text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(start..)?.lines().next()?;
    let value = line.split_once('=')?.1.split('#').next()?.trim();
    let is_plain = !value.is_empty() && !value.contains(['"', '\'', '[', ']', '{', '}', ',', '=', '\\']);
    is_plain.then_some(value).filter(|value| toml::de::DeValue::parse(value).is_err())
}

/// The files that an entry of `include` means, in the order of their names.
fn matching(pattern: &At<String>, report: &mut Report) -> Vec<(String, PathBuf)> {
    let text = pattern.value.as_str();
    let (folder, file) = text.rsplit_once('/').map_or(("", text), |(folder, file)| (folder, file));
    let shown = |name: &str| {
        let base = Path::new(&pattern.span.source.name).parent().unwrap_or_else(|| Path::new(""));
        base.join(folder).join(name).display().to_string()
    };
    let prefix = if text.starts_with('/') && folder.is_empty() { "/" } else { folder };
    let directory = disk::resolve(&pattern.span, prefix);
    if folder.contains('*') {
        let message = format!("\"{text}\" has a \"*\" in the name of a directory");
        report
            .push(Diagnostic::at(Code::Include, &pattern.span, message).help("only the name of a file may have \"*\""));
        return Vec::new();
    }
    if !file.contains('*') {
        return vec![(shown(file), directory.join(file))];
    }
    let listing = match std::fs::read_dir(&directory) {
        Ok(listing) => listing,
        Err(error) => {
            let why = disk::words(&error).replace("no such file", "no such directory");
            let message = format!("cannot read the directory of \"{text}\": {why}");
            report.push(Diagnostic::at(Code::Include, &pattern.span, message).help("create it, or remove the entry"));
            return Vec::new();
        }
    };
    let mut names: Vec<String> = listing
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && is_match(name, file))
        .collect();
    names.sort();
    names.into_iter().map(|name| (shown(&name), directory.join(&name))).collect()
}

/// True when `name` is `pattern` with some text for each `*`.
fn is_match(name: &str, pattern: &str) -> bool {
    let mut pieces = pattern.split('*');
    let (Some(head), last) = (pieces.next(), pieces.next_back()) else {
        return false;
    };
    let Some(last) = last else {
        return name == pattern;
    };
    let Some(mut rest) = name.strip_prefix(head) else {
        return false;
    };
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// Adds an included file. What two files call by one name is found when it is compiled.
fn combine(main: &mut File, mut other: File, report: &mut Report) {
    if let Some(include) = other.include.take() {
        let message = "an included file cannot include others";
        report.push(
            Diagnostic::at(Code::Include, &include.key, message).help("name all files in the main file's \"include\""),
        );
    }
    append(&mut main.sites, other.sites.take());
    append(&mut main.upstreams, other.upstreams.take());
    append(&mut main.networks, other.networks.take());
    append(&mut main.limits, other.limits.take());
    append(&mut main.auth, other.auth.take());
    append(&mut main.hooks, other.hooks.take());
    // Each file may say its version and its reason.
    other.version = None;
    other.why = None;
    let list = |file: &File| {
        let mut list: Vec<Listed> = Vec::new();
        // Maps are compared by name when they are compiled.
        let file = File {
            sites: None,
            upstreams: None,
            networks: None,
            limits: None,
            auth: None,
            hooks: None,
            ..file.clone()
        };
        file.settings("", &mut list);
        list
    };
    let ours = list(main);
    for Listed { path, said, .. } in list(&other) {
        let first = ours.iter().find(|own| own.path == path && own.said.is_some());
        if let (Some((span, _)), Some(Listed { said: Some((first, _)), .. })) = (said, first) {
            let message = format!("\"{path}\" is set in two files");
            report.push(
                Diagnostic::at(Code::SetTwice, &span, message)
                    .label("here again")
                    .also(first, "first here")
                    .help("keep one of the two"),
            );
        }
    }
    main.inherit(&other);
}

/// Puts the entries of one map behind those of another.
fn append<T>(main: &mut Option<At<Map<T>>>, other: Option<At<Map<T>>>) {
    match (main, other) {
        (Some(main), Some(other)) => main.value.entries.extend(other.value.entries),
        (main @ None, other) => *main = other,
        (Some(_), None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (name, pattern, expected) in [
            ("a.toml", "*.toml", true),
            ("a.toml.bak", "*.toml", false),
            (".toml", "*.toml", true),
            ("site-a.toml", "site-*.t*l", true),
            ("ü.toml", "*", true),
            ("", "**", true),
            ("a", "b*", false),
        ] {
            assert_eq!(is_match(name, pattern), expected, "{name} {pattern}");
        }
    }
}
