//! The JSON Schema of the format, and the reference file, both from the description of the keys.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::file::File;
use super::mirror::Value as _;
use super::mirror::{Key, Mirror, Sample, Shape, Table};

/// The JSON Schema (draft 2020-12) of the format, for editors.
pub fn json_schema() -> Json {
    let mut schema = match of(&File::shape()) {
        Json::Object(schema) => schema,
        _ => Map::new(),
    };
    let mut whole = Map::new();
    whole.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".to_owned(), json!("tidegate configuration"));
    whole.append(&mut schema);
    Json::Object(whole)
}

/// The schema of a shape.
fn of(shape: &Shape) -> Json {
    match shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::Duration => json!({ "type": "string", "pattern": "^\\s*[0-9]+\\s*(ms|s|m|h|d)\\s*$" }),
        Shape::ByteRate => {
            json!({ "type": "string", "pattern": "^\\s*[0-9]+\\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)/s\\s*$" })
        }
        Shape::Size => json!({ "type": "string", "pattern": "^\\s*[0-9]+\\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)\\s*$" }),
        Shape::Rate => json!({ "type": "string", "pattern": "^\\s*[0-9]+\\s*/\\s*[0-9]*\\s*(s|m|h|d)\\s*$" }),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Count { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::List(inner) => json!({ "type": "array", "items": of(inner) }),
        Shape::Map(inner) => {
            json!({ "type": "object", "properties": { "why": { "type": "string" } }, "additionalProperties": of(inner) })
        }
        Shape::OneOf(shapes) => json!({ "anyOf": shapes.iter().map(of).collect::<Vec<_>>() }),
        Shape::Table(Table { keys, others }) => {
            let mut properties = Map::new();
            for key in keys {
                let mut schema = of(&key.shape);
                if let Json::Object(schema) = &mut schema {
                    schema.insert("description".to_owned(), json!(prose(key)));
                    if let Sample::Default(text) = key.sample
                        && let Some(default) = to_json(text)
                    {
                        schema.insert("default".to_owned(), default);
                    }
                }
                properties.insert(key.name.to_owned(), schema);
            }
            let required: Vec<&str> =
                keys.iter().filter(|key| matches!(key.sample, Sample::Required(_))).map(|key| key.name).collect();
            let others = others.as_ref().map_or(json!(false), |shape| of(shape));
            let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": others });
            if !required.is_empty() {
                schema["required"] = json!(required);
            }
            schema
        }
    }
}

/// A default as JSON.
fn to_json(text: &str) -> Option<Json> {
    let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    serde_json::to_value(table.get("value")?).ok()
}

/// The doc of a key as one paragraph.
fn prose(key: &Key) -> String {
    key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// The text of `config/reference.toml`: every key at its default, with its doc.
pub fn reference() -> String {
    let mut out = String::from(
        "# Every key of a tidegate configuration at its default, with its doc.\n\
         #\n\
         # A line without \"#\" states what holds without it. A key that stands in a comment has no default,\n\
         # or one that depends on the machine; what it shows is an example. This file is made from the\n\
         # program's own description of the keys: `tidegate check -c config/reference.toml` accepts it.\n",
    );
    let keys = File::keys();
    let (tables, values): (Vec<&Key>, Vec<&Key>) =
        keys.iter().partition(|key| matches!(key.shape, Shape::Table(_) | Shape::Map(_)));
    for key in values {
        entry(&mut out, key, "");
    }
    for key in tables {
        out.push('\n');
        doc(&mut out, key);
        match (&key.shape, key.name) {
            (Shape::Map(inner), "upstreams") => section(&mut out, "[upstreams.gateway]", inner),
            (Shape::Map(inner), "sites") => {
                section(&mut out, "[sites.\"gateway.internal\"]", inner);
                let Shape::Table(site) = &**inner else { continue };
                let routes = site.keys.iter().find(|key| key.name == "routes");
                if let Some(Key { shape: Shape::List(route), .. }) = routes
                    && let Some(key) = routes
                {
                    out.push('\n');
                    doc(&mut out, key);
                    out.push_str("#\n# Beside all keys of a site from \"preset\" on, a route has:\n");
                    let Shape::Table(route) = &**route else { continue };
                    let own = route.keys.iter().take_while(|key| key.name != "preset");
                    out.push_str("[[sites.\"gateway.internal\".routes]]\n");
                    for key in own {
                        entry(&mut out, key, "");
                    }
                }
            }
            // As comments: which keys belong together depends on the type.
            (Shape::Map(inner), name) if matches!(key.sample, Sample::Example("")) => {
                let _ = writeln!(out, "#\n# [{name}.NAME]\n# Its keys:");
                if let Some(table) = table_in(inner) {
                    inner_keys(&mut out, table, "  ");
                }
            }
            (Shape::Table(_), name) if matches!(key.sample, Sample::Parts) => {
                section(&mut out, &format!("[{name}]"), &key.shape)
            }
            (_, name) => {
                let Sample::Example(example) = key.sample else { continue };
                // Infallible here and below: a String takes everything.
                let _ = writeln!(out, "[{name}]\n# {example}");
            }
        }
    }
    out
}

/// A table header and its keys.
fn section(out: &mut String, header: &str, shape: &Shape) {
    let Shape::Table(table) = shape else { return };
    let _ = writeln!(out, "{header}");
    for key in table.keys.iter().filter(|key| key.name != "routes") {
        entry(out, key, "");
    }
}

/// One key with its doc.
fn entry(out: &mut String, key: &Key, parent: &str) {
    let name = format!("{parent}{}", key.name);
    if let (Sample::Parts, Some(table)) = (key.sample, parts(&key.shape)) {
        out.push('\n');
        doc(out, key);
        for inner in table.keys.iter().filter(|inner| inner.name != "why") {
            entry(out, inner, &format!("{name}."));
        }
        return;
    }
    // The same words a dozen times would hide the keys that differ.
    if key.name == "why" {
        let _ = writeln!(out, "\n# why = \"…\"");
        return;
    }
    out.push('\n');
    doc(out, key);
    let _ = match (key.sample, key.name) {
        (Sample::Default(text) | Sample::Required(text), _) => writeln!(out, "{name} = {text}"),
        (Sample::Example(_), "upstream") => writeln!(out, "{name} = \"gateway\""),
        (Sample::Example(text), _) => writeln!(out, "# {name} = {text}"),
        (Sample::Parts, _) => Ok(()),
    };
    if let Some(table) = table_in(&key.shape) {
        let _ = writeln!(out, "# Its keys:");
        inner_keys(out, table, "  ");
    }
}

/// The table of a key that has parts, even if something else may stand in its place.
fn parts(shape: &Shape) -> Option<&Table> {
    match shape {
        Shape::Table(table) => Some(table),
        Shape::OneOf(shapes) => shapes.iter().find_map(parts),
        Shape::Text
        | Shape::Duration
        | Shape::Size
        | Shape::Rate
        | Shape::ByteRate
        | Shape::Flag
        | Shape::Count { .. }
        | Shape::Choice(_)
        | Shape::List(_)
        | Shape::Map(_) => None,
    }
}

/// The table that a key may hold, alone or in a list, if its keys are documented nowhere else.
fn table_in(shape: &Shape) -> Option<&Table> {
    match shape {
        // A secret is the same everywhere; the example shows it.
        Shape::Table(table) => Some(table).filter(|table| table.keys.iter().all(|key| key.name != "credential")),
        Shape::List(inner) => table_in(inner),
        Shape::OneOf(shapes) => shapes.iter().find_map(table_in),
        Shape::Text
        | Shape::Duration
        | Shape::Size
        | Shape::Rate
        | Shape::ByteRate
        | Shape::Flag
        | Shape::Count { .. }
        | Shape::Choice(_)
        | Shape::Map(_) => None,
    }
}

/// The keys of a table that the file does not show as such, as comments.
fn inner_keys(out: &mut String, table: &Table, indent: &str) {
    for (index, key) in table.keys.iter().filter(|key| key.name != "why").enumerate() {
        out.push_str(if index == 0 { "" } else { "#\n" });
        // Infallible: a String takes everything.
        for line in key.doc {
            let _ = writeln!(out, "#{indent}{line}");
        }
        let _ = match key.sample {
            Sample::Default(text) | Sample::Required(text) | Sample::Example(text) => {
                writeln!(out, "#{indent} {} = {text}", key.name)
            }
            Sample::Parts => writeln!(out, "#{indent} {}:", key.name),
        };
        if let Some(table) = table_in(&key.shape) {
            inner_keys(out, table, &format!("{indent}  "));
        }
    }
}

/// The doc of a key as comment lines.
fn doc(out: &mut String, key: &Key) {
    for line in key.doc {
        let _ = writeln!(out, "#{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_default_is_valid_toml() {
        fn walk(shape: &Shape) {
            match shape {
                Shape::Table(table) => {
                    for key in &table.keys {
                        if let Sample::Default(text) | Sample::Required(text) | Sample::Example(text) = key.sample
                            && !text.is_empty()
                            && !matches!((&key.shape, key.name), (Shape::Map(_), "networks" | "limits"))
                            && !text.contains("idle = ")
                        {
                            assert!(to_json(text).is_some(), "{}: {text}", key.name);
                        }
                        walk(&key.shape);
                    }
                }
                Shape::List(inner) | Shape::Map(inner) => walk(inner),
                Shape::OneOf(shapes) => shapes.iter().for_each(walk),
                Shape::Text
                | Shape::Duration
                | Shape::Size
                | Shape::Rate
                | Shape::ByteRate
                | Shape::Flag
                | Shape::Count { .. }
                | Shape::Choice(_) => {}
            }
        }
        walk(&File::shape());
    }
}
