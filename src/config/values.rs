//! Plain values: texts, numbers with their units, lists, maps. Each is read on its own, so that
//! each fault is found.

use toml::de::DeValue;

use super::mirror::{Listed, Shape, Value};
use super::read::{At, Layer, Node, Reader};
use super::report::{Code, Diagnostic, Span};
use super::units::{self, ByteRate, ByteSize, Rate, UnitError};

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

impl Value for Rate {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) => unit(units::parse_rate(text), node, reader),
            DeValue::Integer(number) => unit(units::parse_rate(number.as_str()), node, reader),
            _ => reader.wrong_kind(node, "a rate", "a number and a period, such as \"20/s\""),
        }
    }

    fn shape() -> Shape {
        Shape::Rate
    }
}

impl Value for ByteRate {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) => unit(units::parse_byte_rate(text), node, reader),
            DeValue::Integer(number) => unit(units::parse_byte_rate(number.as_str()), node, reader),
            _ => reader.wrong_kind(node, "a size in a second", "a number and a unit, such as \"1KiB/s\""),
        }
    }

    fn shape() -> Shape {
        Shape::ByteRate
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
