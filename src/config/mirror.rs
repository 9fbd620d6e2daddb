//! The language in which `config/file.rs` describes the file: tables, keys, shapes, samples.
//!
//! One description of a key serves reader, schema, reference and `show`. `mirror!` makes a table
//! of it, `choice!` a list of words.

use super::read::{Layer, Node, Reader};
use super::report::Span;

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
    Rate,
    /// A size in a second.
    ByteRate,
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

/// The name of a key as it is written in the file.
pub(crate) fn plain(key: &'static str) -> &'static str {
    key.strip_prefix("r#").unwrap_or(key)
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
                    name: $crate::config::mirror::plain(stringify!($key)),
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
                // A word of the language stands as `r#type` in the description.
                let key = if key == "type" { "r#type" } else { key };
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
                let join = |key: &'static str| {
                    let key = $crate::config::mirror::plain(key);
                    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
                };
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

pub(crate) use {choice, mirror};
