//! Reading: a typed walk over a TOML document that goes on after each fault.
//!
//! `toml`'s own way into typed values stops at the first fault, and an operator wants all of them.
//! So the document is parsed with its spans and walked here. A value that cannot be used becomes
//! `None` and a diagnostic, and its key is remembered as broken, so that nothing complains later
//! about its absence. What may be written stands in `config/file.rs`.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::report::{Code, Diagnostic, Report, Source, Span};
use super::units::{self, ByteSize, UnitError};

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

/// What can stand as a value in the file.
pub(crate) trait Value: Sized + Clone {
    /// Reads it; a fault goes to the report.
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self>;

    /// What it looks like, for the schema and the reference.
    fn shape() -> Shape;

    /// Takes from a farther layer what this one does not say. Only tables have parts to take.
    fn fill(&mut self, _far: &Self) {}

    /// Lists the settings in it, for `show`.
    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" });
    }

    /// Lists what holds when it is not there.
    fn list_absent(path: &str, sample: Sample, out: &mut Vec<Listed>) {
        if let Sample::Default(default) = sample {
            out.push(Listed { path: path.to_owned(), said: None, default });
        }
    }
}

/// One effective setting, before it is made readable.
pub(crate) struct Listed {
    pub(crate) path: String,
    /// Where it was said; `None` for a built-in default.
    pub(crate) said: Option<(Span, Layer)>,
    /// The built-in default as TOML.
    pub(crate) default: &'static str,
}

/// What a value looks like.
pub(crate) enum Shape {
    Text,
    Duration,
    Size,
    Flag,
    Count {
        least: u64,
        most: u64,
    },
    Choice(&'static [&'static str]),
    List(Box<Shape>),
    /// Any names, all with values of one shape.
    Map(Box<Shape>),
    Table(Table),
    OneOf(Vec<Shape>),
}

/// A table with known keys.
pub(crate) struct Table {
    pub(crate) keys: Vec<Key>,
    /// What other names may hold, if any other name may stand here.
    pub(crate) others: Option<Box<Shape>>,
}

/// One key: described once, here used by reader, schema, reference and `show`.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static [&'static str],
    pub(crate) sample: Sample,
    pub(crate) shape: Shape,
}

/// What holds without the key.
#[derive(Clone, Copy)]
pub(crate) enum Sample {
    /// This default, as TOML.
    Default(&'static str),
    /// Nothing; this is an example.
    Example(&'static str),
    /// It must be there; this is an example.
    Required(&'static str),
    /// A table whose keys have their own defaults.
    Parts,
}

/// A table with known keys, made by `mirror!`.
pub(crate) trait Mirror: Default + Clone {
    /// `a site`: for messages.
    const WHAT: &'static str;

    /// All keys, in the order of the reference.
    fn keys() -> Vec<Key>;

    /// Reads one key; false when there is no such key.
    fn take(&mut self, key: &str, node: Node<'_>, reader: &mut Reader<'_>) -> bool;

    /// Remembers that a key was written, but not so that it can be used.
    fn mark_broken(&mut self, key: &'static str);

    /// Takes from a farther layer what this one does not say.
    fn inherit(&mut self, far: &Self);

    /// Lists the effective settings.
    fn settings(&self, path: &str, out: &mut Vec<Listed>);
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
            (Some(parent), Some(key)) => match parent.strip_prefix('"').and_then(|rest| rest.split_once("\" of ")) {
                Some((outer, owner)) => format!("\"{outer}.{}\" of {owner}", key.get_ref()),
                None => format!("\"{}\" of {parent}", key.get_ref()),
            },
            (Some("[listen]"), None) => {
                text("name").map_or_else(|| "a listener".to_owned(), |name| format!("listener \"{name}\""))
            }
            (Some(parent), None) => text("path")
                .map_or_else(|| format!("a route of {parent}"), |path| format!("route \"{path}\" of {parent}")),
        }
    }

    /// True inside a top-level table.
    fn is_top(&self, name: &str) -> bool {
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
    if let Some(near) = nearest(name, keys.iter().map(|key| key.name)) {
        diagnostic = diagnostic.help(format!("did you mean \"{near}\"?"));
        // What was meant is said, though misspelled: its absence is no further fault.
        seen.push(near);
        mirror.mark_broken(near);
    } else if let Some(parent) = keys.iter().find(|key| holds(&key.shape, name)) {
        diagnostic = diagnostic.help(format!("it is a key of \"{0}\": write {0}.{name}", parent.name));
    } else if let Some(advice) = elsewhere(name, &place) {
        diagnostic = diagnostic.help(advice);
    } else {
        let names: Vec<_> = keys.iter().map(|key| key.name).collect();
        diagnostic = diagnostic.help(format!("the keys are {}", names.join(", ")));
    }
    reader.report.push(diagnostic);
}

/// True when a table of this shape has the key.
fn holds(shape: &Shape, name: &str) -> bool {
    match shape {
        Shape::Table(table) => table.keys.iter().any(|key| key.name == name && name != "why"),
        Shape::OneOf(shapes) => shapes.iter().any(|shape| holds(shape, name)),
        Shape::Text
        | Shape::Duration
        | Shape::Size
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

impl Value for String {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) if text.is_empty() => {
                let message = match node.key {
                    Some(key) => format!("\"{}\" in {} is empty", key.get_ref(), reader.place()),
                    None => format!("\"{}\" in {} has an empty entry", reader.list, reader.place()),
                };
                let span = reader.span(node);
                reader.report.push(Diagnostic::at(Code::Empty, &span, message).help("say what is meant, or remove it"));
                None
            }
            DeValue::String(text) => Some(text.clone().into_owned()),
            DeValue::Integer(number) => reader.wrong_kind(node, "a text", &format!("\"{number}\"")),
            _ => reader.wrong_kind(node, "a text", ""),
        }
    }

    fn shape() -> Shape {
        Shape::Text
    }
}

impl Value for bool {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            DeValue::String(text) if matches!(&**text, "true" | "on" | "yes") => {
                reader.wrong_kind(node, "true or false", "true, without quotes")
            }
            DeValue::String(text) if matches!(&**text, "false" | "off" | "no") => {
                reader.wrong_kind(node, "true or false", "false, without quotes")
            }
            _ => reader.wrong_kind(node, "true or false", ""),
        }
    }

    fn shape() -> Shape {
        Shape::Flag
    }
}

/// A text that may be empty, such as a body.
#[derive(Clone, Debug)]
pub(crate) struct AnyText(pub(crate) String);

impl Value for AnyText {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) => Some(Self(text.clone().into_owned())),
            _ => reader.wrong_kind(node, "a text", ""),
        }
    }

    fn shape() -> Shape {
        Shape::Text
    }
}

/// A duration that may be zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Period(pub(crate) std::time::Duration);

impl Value for Period {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) => unit(units::parse_duration(text), node, reader).map(Self),
            DeValue::Integer(number) => unit(units::parse_duration(number.as_str()), node, reader).map(Self),
            _ => reader.wrong_kind(node, "a duration", "a number and a unit, such as \"30s\""),
        }
    }

    fn shape() -> Shape {
        Shape::Duration
    }
}

/// A duration above zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeout(pub(crate) std::time::Duration);

impl Value for Timeout {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Period(period) = Period::read(node, reader)?;
        if period.is_zero() {
            let span = reader.span(node);
            let message =
                format!("\"{}\" in {} is zero: everything would time out at once", node.name(), reader.place());
            reader.report.push(
                Diagnostic::at(Code::Zero, &span, message)
                    .help("write a duration above zero, or remove the line for the default"),
            );
            return None;
        }
        Some(Self(period))
    }

    fn shape() -> Shape {
        Shape::Duration
    }
}

impl Value for ByteSize {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) => unit(units::parse_size(text), node, reader),
            DeValue::Integer(number) => unit(units::parse_size(number.as_str()), node, reader),
            _ => reader.wrong_kind(node, "a size", "a number and a unit, such as \"20MiB\""),
        }
    }

    fn shape() -> Shape {
        Shape::Size
    }
}

/// Passes a parsed unit on, or reports it.
fn unit<T>(parsed: Result<T, UnitError>, node: Node<'_>, reader: &mut Reader<'_>) -> Option<T> {
    match parsed {
        Ok(value) => Some(value),
        Err(error) => {
            let code = match error {
                UnitError::NoUnit { .. } => Code::NoUnit,
                UnitError::Malformed { .. } | UnitError::TooLarge { .. } => Code::Unit,
            };
            let span = reader.span(node);
            let advice = format!("write {}", error.advice());
            reader.report.push(Diagnostic::at(code, &span, error.to_string()).label(advice));
            None
        }
    }
}

/// A whole number in a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count<const LEAST: u64, const MOST: u64>(pub(crate) usize);

impl<const LEAST: u64, const MOST: u64> Value for Count<LEAST, MOST> {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let DeValue::Integer(number) = node.value.get_ref() else {
            let example = match node.value.get_ref() {
                DeValue::String(text) if text.parse::<u64>().is_ok() => format!("{text}, without quotes"),
                _ => String::new(),
            };
            return reader.wrong_kind(node, "a whole number", &example);
        };
        let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
        match parsed.filter(|n| (LEAST..=MOST).contains(n)).and_then(|n| usize::try_from(n).ok()) {
            Some(number) => Some(Self(number)),
            None => {
                let span = reader.span(node);
                let message = format!("\"{}\" in {} is out of range", node.name(), reader.place());
                reader.report.push(
                    Diagnostic::at(Code::Range, &span, message).label(format!("write a number from {LEAST} to {MOST}")),
                );
                None
            }
        }
    }

    fn shape() -> Shape {
        Shape::Count { least: LEAST, most: MOST }
    }
}

/// A list: each entry is read on its own, so that each fault is found.
pub(crate) type List<T> = Vec<At<T>>;

impl<T: Value> Value for List<T> {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let DeValue::Array(array) = node.value.get_ref() else {
            let example = match node.value.get_ref() {
                DeValue::String(_) => format!("{} = [{}]", node.name(), reader.span(node).text()),
                DeValue::Table(_) => format!("{} = [{{ … }}], or a table header in double brackets", node.name()),
                _ => String::new(),
            };
            return reader.wrong_kind(node, "a list", &example);
        };
        let outer = std::mem::replace(&mut reader.list, node.name().to_owned());
        let list = array.iter().filter_map(|value| reader.at(Node { value, key: None })).collect();
        reader.list = outer;
        Some(list)
    }

    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        if !matches!(T::shape(), Shape::Table(_)) {
            out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" });
            return;
        }
        for (index, at) in self.iter().enumerate() {
            at.value.list(&format!("{path}[{index}]"), &at.span, at.layer, out);
        }
    }
}

/// Names of the operator's choice, all with values of one kind, in the order of the file.
#[derive(Clone, Debug)]
pub(crate) struct Map<T> {
    pub(crate) entries: Vec<(At<String>, At<T>)>,
    pub(crate) why: Option<At<String>>,
}

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), why: None }
    }
}

impl<T: Value> Value for Map<T> {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(nodes) = node.entries() else {
            return reader.wrong_kind(node, "a table", "");
        };
        let mut map = Self::default();
        // A text may be one of the values; then "why" is a name like others.
        let has_texts = matches!(T::shape(), Shape::Text | Shape::OneOf(_)) && !reader.is_top("networks");
        for entry in nodes {
            let Some(key) = entry.key else { continue };
            if entry.name() == "why" && !has_texts && entry.value.get_ref().is_str() {
                map.why = reader.at(entry);
                continue;
            }
            let span = reader.span_of(key.span());
            let name =
                At { value: key.get_ref().clone().into_owned(), span: span.clone(), key: span, layer: reader.layer };
            if let Some(value) = reader.at(entry) {
                map.entries.push((name, value));
            }
        }
        Some(map)
    }

    fn shape() -> Shape {
        Shape::Map(Box::new(T::shape()))
    }

    fn fill(&mut self, far: &Self) {
        for (name, value) in &far.entries {
            match self.entries.iter_mut().find(|(own, _)| own.value.eq_ignore_ascii_case(&name.value)) {
                Some((_, own)) => own.value.fill(&value.value),
                None => self.entries.push((name.clone(), value.clone())),
            }
        }
    }

    fn list(&self, path: &str, _span: &Span, _layer: Layer, out: &mut Vec<Listed>) {
        for (name, value) in &self.entries {
            let name = if name.value.contains('.') { format!("\"{}\"", name.value) } else { name.value.clone() };
            value.value.list(&format!("{path}.{name}"), &value.span, value.layer, out);
        }
    }
}

/// Makes a table of the file: its struct, and what reader, schema, reference and `show` need.
///
/// Each key has its doc, its kind, and a sample: `default`, `example`, `required` or `parts`.
macro_rules! mirror {
    (
        $(#[doc = $about:literal])+
        $name:ident, $what:literal {
            $($(#[doc = $doc:literal])+ $key:ident: $kind:ty = $sample:ident $(($text:literal))?;)*
        }
        $(and $rest:ident: $rest_kind:ty)?
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default)]
        pub(crate) struct $name {
            $($(#[doc = $doc])+ pub(crate) $key: Option<At<$kind>>,)*
            /// The operator's reason.
            pub(crate) why: Option<At<String>>,
            /// Keys that are written, but not so that they can be used.
            pub(crate) broken: Vec<&'static str>,
            $(/// Keys that other tables have too.
            pub(crate) $rest: $rest_kind,)?
        }

        impl Mirror for $name {
            const WHAT: &'static str = $what;

            fn keys() -> Vec<Key> {
                #[allow(unused_mut, reason = "only tables with shared keys add to it")]
                let mut keys = vec![$(Key {
                    name: stringify!($key),
                    doc: &[$($doc),+],
                    sample: mirror!(@sample $sample $(($text))?),
                    shape: <$kind as Value>::shape(),
                },)*];
                $(keys.extend(<$rest_kind as Mirror>::keys().into_iter().filter(|key| key.name != "why"));)?
                keys.push(Key {
                    name: "why",
                    doc: &[" The reason for what is unusual here. `tidegate show` prints it."],
                    sample: Sample::Example("\"reports take long\""),
                    shape: Shape::Text,
                });
                keys
            }

            fn take(&mut self, key: &str, node: Node<'_>, reader: &mut Reader<'_>) -> bool {
                match key {
                    $(stringify!($key) => self.$key = reader.at(node),)*
                    "why" => self.why = reader.at(node),
                    _ => {
                        $(return self.$rest.take(key, node, reader);)?
                        #[allow(unreachable_code, reason = "reached in tables without shared keys")]
                        return false;
                    }
                }
                true
            }

            fn mark_broken(&mut self, key: &'static str) {
                self.broken.push(key);
                $(self.$rest.mark_broken(key);)?
            }

            fn inherit(&mut self, far: &Self) {
                $(match (&mut self.$key, &far.$key) {
                    (Some(near), Some(far)) => Value::fill(&mut near.value, &far.value),
                    (near @ None, far) => near.clone_from(far),
                    (Some(_), None) => {}
                })*
                if self.why.is_none() {
                    self.why.clone_from(&far.why);
                }
                self.broken.extend(&far.broken);
                $(Mirror::inherit(&mut self.$rest, &far.$rest);)?
            }

            fn settings(&self, path: &str, out: &mut Vec<Listed>) {
                let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                $(match &self.$key {
                    Some(at) => at.value.list(&join(stringify!($key)), &at.span, at.layer, out),
                    None => <$kind as Value>::list_absent(&join(stringify!($key)), mirror!(@sample $sample $(($text))?), out),
                })*
                $(self.$rest.settings(path, out);)?
                if let Some(why) = &self.why {
                    out.push(Listed { path: join("why"), said: Some((why.span.clone(), why.layer)), default: "" });
                }
            }
        }

        impl Value for $name {
            fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
                read_table(node, reader)
            }

            fn shape() -> Shape {
                Shape::Table(Table { keys: <Self as Mirror>::keys(), others: None })
            }

            fn fill(&mut self, far: &Self) {
                Mirror::inherit(self, far);
            }

            fn list(&self, path: &str, _span: &Span, _layer: Layer, out: &mut Vec<Listed>) {
                Mirror::settings(self, path, out);
            }

            fn list_absent(path: &str, sample: Sample, out: &mut Vec<Listed>) {
                if matches!(sample, Sample::Parts) {
                    Mirror::settings(&Self::default(), path, out);
                }
            }
        }
    };
    (@sample default($text:literal)) => { Sample::Default($text) };
    (@sample example($text:literal)) => { Sample::Example($text) };
    (@sample required($text:literal)) => { Sample::Required($text) };
    (@sample parts) => { Sample::Parts };
}

/// Makes a list of words that a key may hold.
macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident { $($text:literal => $variant:ident,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $(#[doc = $text] $variant,)+ }

        impl $name {
            /// All words.
            pub(crate) const WORDS: &'static [&'static str] = &[$($text,)+];
        }

        impl Value for $name {
            fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
                match node.value.get_ref().as_str() {
                    $(Some($text) => Some(Self::$variant),)+
                    _ => crate::config::read::wrong_choice(node, Self::WORDS, reader),
                }
            }

            fn shape() -> Shape {
                Shape::Choice(Self::WORDS)
            }
        }
    };
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

pub(crate) use {choice, mirror};
