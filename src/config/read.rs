//! Reading: a typed walk over a TOML document that goes on after each fault.
//!
//! `toml`'s own way into typed values stops at the first fault, and an operator wants all of them.
//! So the document is parsed with its spans and walked here. A value that cannot be used becomes
//! `None` and a diagnostic, and its key is remembered as broken, so that nothing complains later
//! about its absence. What may be written stands in `config/file.rs`.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::mirror::{Key, Mirror, Sample, Shape, Value};
use super::report::{Code, Diagnostic, Report, Source, Span};

/// A value, where it stands, where its key stands, and which layer it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
    pub(crate) key: Span,
    pub(crate) layer: Layer,
}

impl<T> At<T> {
    /// Another value at the same place.
    pub(crate) fn with<U>(&self, value: U) -> At<U> {
        At { value, span: self.span.clone(), key: self.key.clone(), layer: self.layer }
    }
}

/// Where a value was said. Nearer layers win; see `Mirror::inherit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// In `[defaults]`.
    Defaults,
    /// In a preset.
    Preset,
    /// At its own place.
    Own,
}

/// One value of the document, and its key if it has one.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) value: &'a Spanned<DeValue<'a>>,
    pub(crate) key: Option<&'a Spanned<DeString<'a>>>,
}

impl<'a> Node<'a> {
    /// The entries of a table, in the order of the file.
    pub(crate) fn entries(self) -> Option<Vec<Node<'a>>> {
        self.value.get_ref().as_table().map(entries)
    }

    /// The name of its key.
    pub(crate) fn name(self) -> &'a str {
        self.key.map_or("", |key| key.get_ref())
    }
}

/// The entries of a table, in the order of the file.
pub(crate) fn entries<'a>(table: &'a DeTable<'a>) -> Vec<Node<'a>> {
    let mut list: Vec<_> = table.iter().map(|(key, value)| Node { value, key: Some(key) }).collect();
    list.sort_by_key(|node| node.key.map_or(0, |key| key.span().start));
    list
}

/// Reads one source and collects its faults.
pub(crate) struct Reader<'r> {
    pub(crate) source: Arc<Source>,
    pub(crate) layer: Layer,
    pub(crate) report: &'r mut Report,
    /// Names of the tables that we are in: `[listen]`, `site "a.test"`.
    pub(crate) places: Vec<String>,
    /// The key of the list that we are in.
    pub(crate) list: String,
}

impl Reader<'_> {
    /// A value with its places.
    pub(crate) fn at<T: Value>(&mut self, node: Node<'_>) -> Option<At<T>> {
        let is_table = matches!(node.value.get_ref(), DeValue::Table(_));
        let layer = self.layer;
        if is_table {
            self.places.push(self.place_of(node));
        }
        if self.places.len() == 1 && node.name() == "defaults" {
            self.layer = Layer::Defaults;
        }
        let value = T::read(node, self);
        self.layer = layer;
        if is_table {
            self.places.pop();
        }
        let span = self.span(node);
        let key = node.key.map_or_else(|| span.clone(), |key| self.span_of(key.span()));
        value.map(|value| At { value, span, key, layer })
    }

    /// How messages call the table of a node.
    fn place_of(&self, node: Node<'_>) -> String {
        let text = |key: &str| node.value.get_ref().get(key).and_then(|v| v.get_ref().as_str());
        match (self.places.last().map(String::as_str), node.key) {
            (None, _) => format!("[{}]", node.name()),
            (Some("[sites]"), Some(key)) => format!("site \"{}\"", key.get_ref()),
            (Some("[upstreams]"), Some(key)) => format!("upstream \"{}\"", key.get_ref()),
            (Some("[limits]"), Some(key)) => format!("[limits.{}]", key.get_ref()),
            (Some(parent), Some(key)) => match parent.strip_prefix('"').and_then(|rest| rest.split_once("\" of ")) {
                Some((outer, owner)) => format!("\"{outer}.{}\" of {owner}", key.get_ref()),
                None => format!("\"{}\" of {parent}", key.get_ref()),
            },
            (Some("[listen]"), None) => {
                text("name").map_or_else(|| "a listener".to_owned(), |name| format!("listener \"{name}\""))
            }
            (Some("[acme]"), None) if self.list == "dns" => {
                let zones = node.value.get_ref().get("zones").and_then(|zones| zones.get_ref().as_array());
                let first = zones.and_then(|zones| zones.first()?.get_ref().as_str());
                first.map_or_else(|| "a rule of \"dns\"".to_owned(), |zone| format!("the dns rule of \"{zone}\""))
            }
            (Some("[acme]"), None) => "a fallback of [acme]".to_owned(),
            (Some(parent), None) => text("path")
                .map_or_else(|| format!("a route of {parent}"), |path| format!("route \"{path}\" of {parent}")),
        }
    }

    /// True inside a top-level table.
    pub(crate) fn is_top(&self, name: &str) -> bool {
        self.places.first().is_some_and(|place| place.strip_prefix('[').and_then(|p| p.strip_suffix(']')) == Some(name))
    }

    /// The table that we are in, for messages.
    pub(crate) fn place(&self) -> String {
        self.places.last().map_or_else(|| "the file".to_owned(), Clone::clone)
    }

    /// Where a node stands.
    pub(crate) fn span(&self, node: Node<'_>) -> Span {
        self.span_of(node.value.span())
    }

    /// A span of this source.
    pub(crate) fn span_of(&self, range: std::ops::Range<usize>) -> Span {
        Span { source: Arc::clone(&self.source), range }
    }

    /// Reports a value of the wrong kind.
    pub(crate) fn wrong_kind<T>(&mut self, node: Node<'_>, wanted: &str, example: &str) -> Option<T> {
        let subject = match node.key {
            Some(key) => format!("\"{}\" in {}", key.get_ref(), self.place()),
            None => format!("an entry of \"{}\" in {}", self.list, self.place()),
        };
        let span = self.span(node);
        let message = format!("{subject} must be {wanted}");
        let mut diagnostic =
            Diagnostic::at(Code::Kind, &span, message).label(format!("this is {}", kind(node.value.get_ref())));
        if !example.is_empty() {
            diagnostic = diagnostic.help(format!("write {example}"));
        }
        self.report.push(diagnostic);
        None
    }
}

/// Plain words for a kind of value.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Reads a table with known keys.
pub(crate) fn read_table<M: Mirror>(node: Node<'_>, reader: &mut Reader<'_>) -> Option<M> {
    let Some(entries) = node.entries() else {
        // A path where a reference belongs; a key itself is not repeated in a message.
        let wants_file = M::keys().iter().any(|key| key.name == "file");
        if node.value.get_ref().as_str().is_some_and(|text| text.contains("-----BEGIN")) {
            let span = reader.span(node);
            reader.report.hide(&span);
        }
        let example = match node.value.get_ref() {
            DeValue::String(text) if wants_file && !text.contains('\n') => {
                format!("{} = {{ file = \"{text}\" }}", node.name())
            }
            _ if wants_file => format!("{} = {{ file = \"…\" }}", node.name()),
            _ => format!("{} = {{ … }}", node.name()),
        };
        return reader.wrong_kind(node, "a table", &example);
    };
    Some(read_entries(&entries, reader.span(node), reader))
}

/// Reads the entries of a table with known keys.
pub(crate) fn read_entries<M: Mirror>(entries: &[Node<'_>], table: Span, reader: &mut Reader<'_>) -> M {
    let mut mirror = M::default();
    let keys = M::keys();
    let mut seen = Vec::new();
    for entry in entries {
        let faults = reader.report.diagnostics().len();
        if !mirror.take(entry.name(), *entry, reader) {
            unknown_key(&mut mirror, &keys, &mut seen, *entry, reader);
        } else if let Some(key) = keys.iter().find(|key| key.name == entry.name()) {
            seen.push(key.name);
            if reader.report.diagnostics().len() > faults {
                mirror.mark_broken(key.name);
            }
        }
    }
    for key in &keys {
        if let Sample::Required(example) = key.sample
            && !seen.contains(&key.name)
        {
            let message = format!("{} has no \"{}\"", reader.place(), key.name);
            reader.report.push(
                Diagnostic::at(Code::Missing, &table, message)
                    .label(format!("{} needs \"{}\"", M::WHAT, key.name))
                    .help(format!("add {} = {example}", key.name)),
            );
            mirror.mark_broken(key.name);
        }
    }
    mirror
}

/// Reports a key that does not exist here, with the nearest one that does.
fn unknown_key<M: Mirror>(
    mirror: &mut M,
    keys: &[Key],
    seen: &mut Vec<&'static str>,
    entry: Node<'_>,
    reader: &mut Reader<'_>,
) {
    let name = entry.name();
    let Some(key) = entry.key else { return };
    let span = reader.span_of(key.span());
    let place = reader.place();
    let mut diagnostic = Diagnostic::at(Code::UnknownKey, &span, format!("unknown key \"{name}\" in {place}"))
        .label(format!("not a key of {}", M::WHAT));
    if LATER.contains(&name) {
        diagnostic = diagnostic.help("this version does not have it: remove it, for nothing would act on it");
    } else if let Some(near) = nearest(name, keys.iter().map(|key| key.name)) {
        diagnostic = diagnostic.help(format!("did you mean \"{near}\"?"));
        // What was meant is said, though misspelled: its absence is no further fault.
        seen.push(near);
        mirror.mark_broken(near);
    } else if let Some(parent) = keys.iter().find(|key| key.name != "defaults" && holds(&key.shape, name)) {
        diagnostic = diagnostic.help(format!("it is a key of \"{0}\": write {0}.{name}", parent.name));
    } else if let Some(advice) = elsewhere(name, &place) {
        diagnostic = diagnostic.help(advice);
    } else {
        let names: Vec<_> = keys.iter().map(|key| key.name).collect();
        diagnostic = diagnostic.help(format!("the keys are {}", names.join(", ")));
    }
    reader.report.push(diagnostic);
}

/// Keys of the format that this version does not have. Without them some would be taken for
/// misspellings of others.
const LATER: &[&str] = &["compress", "environment", "proxy_protocol", "upgrade_grace"];

/// True when a table of this shape has the key.
fn holds(shape: &Shape, name: &str) -> bool {
    match shape {
        Shape::Table(table) => table.keys.iter().any(|key| key.name == name && name != "why"),
        Shape::OneOf(shapes) => shapes.iter().any(|shape| holds(shape, name)),
        Shape::Text
        | Shape::Duration
        | Shape::Size
        | Shape::Rate
        | Shape::ByteRate
        | Shape::Flag
        | Shape::Count { .. }
        | Shape::Choice(_)
        | Shape::List(_)
        | Shape::Map(_) => false,
    }
}

/// Where a key belongs that stands in the wrong table, as far as one can tell.
fn elsewhere(name: &str, place: &str) -> Option<String> {
    let file = super::file::File::keys();
    let is_top = place == "the file";
    for key in &file {
        match &key.shape {
            _ if !is_top && key.name == name => {
                let how = match key.shape {
                    Shape::Table(_) | Shape::Map(_) => format!("it is a table of its own: [{name}]"),
                    _ => "it belongs above the first [table] of the file".to_owned(),
                };
                return Some(how);
            }
            Shape::Table(table) if key.name != "defaults" && table.keys.iter().any(|inner| inner.name == name) => {
                return Some(format!("it is a key of [{}]", key.name));
            }
            Shape::Map(inner) if holds(inner, name) => {
                return Some(format!("it is a key of [{}.\"NAME\"]", key.name));
            }
            _ => {}
        }
    }
    None
}

/// The name that was probably meant.
pub(crate) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    let allowed = (written.chars().count() / 3).clamp(1, 3);
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&written, &name.to_ascii_lowercase().replace('-', "_")), name))
        .filter(|(distance, name)| *distance <= allowed && *distance < name.len())
        // Of two that are as near, the one of which the writer left the end out.
        .min_by_key(|(distance, name)| (*distance, !name.starts_with(&written)))
        .map(|(_, name)| name)
}

/// Names for a message: `"a", "b"`.
pub(crate) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// Reports a word that is not one of the choices.
pub(crate) fn wrong_choice<T>(node: Node<'_>, words: &[&str], reader: &mut Reader<'_>) -> Option<T> {
    let choices = quoted(words.iter().copied());
    let DeValue::String(text) = node.value.get_ref() else {
        return reader.wrong_kind(node, "a text", &format!("one of {choices}"));
    };
    let subject = match node.key {
        Some(key) => format!("\"{}\" in {} cannot be \"{text}\"", key.get_ref(), reader.place()),
        None => format!("\"{}\" in {} cannot have \"{text}\"", reader.list, reader.place()),
    };
    let span = reader.span(node);
    let mut diagnostic = Diagnostic::at(Code::Choice, &span, subject).label(format!("one of {choices}"));
    if let Some(near) = nearest(text, words.iter().copied()) {
        diagnostic = diagnostic.help(format!("did you mean \"{near}\"?"));
    }
    reader.report.push(diagnostic);
    None
}
