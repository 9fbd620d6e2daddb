//! Values that may be written in more than one way: a certificate, a secret, a list of networks.
//!
//! Part of what may be written (`config/file.rs`); apart from it because each is read by hand.

use toml::de::DeValue;

use super::file::Edits;
use super::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, mirror};
use super::read::{At, Layer, Node, Reader, quoted, read_table};
use super::report::{Code, Diagnostic, Span};
use super::values::{List, Map, Period};

mirror! {
    /// A secret by reference: exactly one of its keys.
    Secret, "a secret" {
        /// A file, relative to this one. Only its owner should be able to read it.
        file: String = example("\"/etc/tidegate/secret\"");
        /// A variable of the environment.
        env: String = example("\"TIDEGATE_SECRET\"");
        /// The name of a credential that the service manager hands over.
        credential: String = example("\"secret\"");
    }
}

impl Secret {
    /// How many sources are named; one is right.
    pub(crate) fn sources(&self) -> usize {
        usize::from(self.file.is_some()) + usize::from(self.env.is_some()) + usize::from(self.credential.is_some())
    }
}

/// A secret that is one line: a token, a password, a key in base64. By reference, and a text in its
/// place is never repeated in a report.
#[derive(Clone, Debug)]
pub(crate) struct Token(pub(crate) Secret);

impl Value for Token {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if node.value.get_ref().is_str() {
            let span = reader.span(node);
            reader.report.hide(&span);
            let name = node.name();
            let message = format!("\"{name}\" in {} is a secret, and stands in the file itself", reader.place());
            reader.report.push(
                Diagnostic::at(Code::Kind, &span, message)
                    .label("not here: files are copied, kept and shown")
                    .help(format!("put it into a file of mode 0600 and write {name} = {{ file = \"…\" }}"))
                    .help(format!("or write {name} = {{ env = \"…\" }} or {name} = {{ credential = \"…\" }}")),
            );
            return None;
        }
        Secret::read(node, reader).map(Self)
    }

    fn shape() -> Shape {
        Secret::shape()
    }

    fn fill(&mut self, far: &Self) {
        Value::fill(&mut self.0, &far.0);
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        Value::list(&self.0, path, span, layer, out);
    }
}

mirror! {
    /// PEM files of a certificate.
    CertificateFiles, "a certificate" {
        /// PEM file with the chain, leaf first.
        cert: String = required("\"/etc/tidegate/claw.pem\"");
        /// PEM file with the private key: `{ file = "…" }` or `{ credential = "…" }`.
        key: Secret = required("{ file = \"/etc/tidegate/claw.key\" }");
    }
}

/// `certificate` of a site.
#[derive(Clone, Debug)]
pub(crate) enum Certificate {
    /// A CA, by ACME.
    Acme,
    /// The local certificate authority.
    Local,
    /// PEM files.
    Files(Box<CertificateFiles>),
}

impl Value for Certificate {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        const ADVICE: &str = "write \"acme\", \"local\", or { cert = \"…\", key = { file = \"…\" } }";
        match node.value.get_ref() {
            DeValue::String(text) if text == "acme" => Some(Self::Acme),
            DeValue::String(text) if text == "local" => Some(Self::Local),
            DeValue::Table(_) => {
                let files: CertificateFiles = read_table(node, reader)?;
                if let Some(key) = &files.key
                    && let Some(env) = &key.value.env
                {
                    let diagnostic =
                        Diagnostic::at(Code::Conflict, &env.key, "a private key is not taken from the environment")
                            .label("other processes of this user can read it")
                            .help("write key = { file = \"…\" } or key = { credential = \"…\" }");
                    reader.report.push(diagnostic);
                }
                Some(Self::Files(Box::new(files)))
            }
            DeValue::String(text) => {
                let span = reader.span(node);
                let message = format!("\"certificate\" in {} cannot be \"{text}\"", reader.place());
                reader.report.push(Diagnostic::at(Code::Choice, &span, message).help(ADVICE));
                None
            }
            _ => reader.wrong_kind(node, "\"acme\", \"local\" or a table", ADVICE),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Choice(&["acme", "local"]), CertificateFiles::shape()])
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        match self {
            Self::Acme | Self::Local => {
                out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" })
            }
            Self::Files(files) => Mirror::settings(&**files, path, out),
        }
    }
}

mirror! {
    /// `hsts` as a table.
    HstsParts, "\"hsts\"" {
        /// How long.
        max_age: Period = required("\"365d\"");
        /// For all names below this one too.
        include_subdomains: bool = default("false");
        /// Agree to be built into browsers. Needs a year and `include_subdomains`.
        preload: bool = default("false");
    }
}

/// `hsts`.
#[derive(Clone, Debug)]
pub(crate) enum Hsts {
    /// A duration alone.
    MaxAge(Period),
    /// All parts.
    Parts(Box<HstsParts>),
}

impl Value for Hsts {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::Table(_) => read_table(node, reader).map(|parts| Self::Parts(Box::new(parts))),
            _ => Period::read(node, reader).map(Self::MaxAge),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Duration, HstsParts::shape()])
    }

    fn fill(&mut self, far: &Self) {
        if let (Self::Parts(near), Self::Parts(far)) = (self, far) {
            Mirror::inherit(&mut **near, far);
        }
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        match self {
            Self::MaxAge(_) => {
                out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" })
            }
            Self::Parts(parts) => Mirror::settings(&**parts, path, out),
        }
    }
}

mirror! {
    /// A file of networks.
    NetworkFile, "a list of networks" {
        /// One network a line; `#` begins a comment.
        file: String = required("\"networks/office.txt\"");
    }
}

/// One of `[networks]`.
#[derive(Clone, Debug)]
pub(crate) enum NetworkSource {
    /// Written here.
    Here(List<String>),
    /// In a file.
    File(Box<NetworkFile>),
}

impl Value for NetworkSource {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::Table(_) => read_table(node, reader).map(|file| Self::File(Box::new(file))),
            _ => List::<String>::read(node, reader).map(Self::Here),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![List::<String>::shape(), NetworkFile::shape()])
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        match self {
            Self::Here(_) => out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" }),
            Self::File(file) => Mirror::settings(&**file, path, out),
        }
    }
}

/// A header value: a text with placeholders, or a secret.
#[derive(Clone, Debug)]
pub(crate) enum HeaderText {
    /// A text.
    Text(String),
    /// A secret.
    Secret(Box<Secret>),
}

impl Value for HeaderText {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::Table(_) => read_table(node, reader).map(|secret| Self::Secret(Box::new(secret))),
            DeValue::String(text) => Some(Self::Text(text.clone().into_owned())),
            DeValue::Integer(number) => reader.wrong_kind(node, "a text", &format!("\"{number}\"")),
            _ => reader.wrong_kind(node, "a text", ""),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Text, Secret::shape()])
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        match self {
            Self::Text(_) => out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" }),
            Self::Secret(secret) => Mirror::settings(&**secret, path, out),
        }
    }
}

/// `headers`: edits, and in a route also conditions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers {
    /// On the request that goes upstream.
    pub(crate) request: Option<At<Edits>>,
    /// On the response that goes to the client.
    pub(crate) response: Option<At<Edits>>,
    /// Conditions of a route. They belong to the table that says them and are never inherited.
    pub(crate) wanted: Vec<(At<String>, At<Wanted>)>,
}

/// What a route wants of a header.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// This value.
    Value(String),
    /// Any value.
    Present,
}

impl Value for Wanted {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(text) => Some(Self::Value(text.clone().into_owned())),
            DeValue::Boolean(true) => Some(Self::Present),
            DeValue::Table(_) => {
                let span = reader.span(node);
                let message = format!("unknown key \"{}\" in {}", node.name(), reader.place());
                let mut diagnostic = Diagnostic::at(Code::UnknownKey, &span, message);
                if let Some(near) = super::read::nearest(node.name(), ["request", "response"]) {
                    diagnostic = diagnostic.help(format!("did you mean \"{near}\"?"));
                } else {
                    diagnostic = diagnostic.help(format!("the tables are {}", quoted(["request", "response"])));
                }
                reader.report.push(diagnostic);
                None
            }
            _ => reader.wrong_kind(node, "a text or true", "the value that the header must have, or true for any"),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Text, Shape::Flag])
    }
}

impl Value for Headers {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(entries) = node.entries() else {
            return reader.wrong_kind(node, "a table", "headers = { request.set = { … } }");
        };
        let mut headers = Self::default();
        for entry in entries {
            match (entry.name(), entry.key) {
                ("request", _) => headers.request = reader.at(entry),
                ("response", _) => headers.response = reader.at(entry),
                (name, Some(key)) => {
                    if let Some(wanted) = reader.at::<Wanted>(entry) {
                        let span = reader.span_of(key.span());
                        headers.wanted.push((
                            At { value: name.to_owned(), span: span.clone(), key: span, layer: reader.layer },
                            wanted,
                        ));
                    }
                }
                (_, None) => {}
            }
        }
        Some(headers)
    }

    fn shape() -> Shape {
        let edits = |name, doc| Key { name, doc, sample: Sample::Parts, shape: Edits::shape() };
        Shape::Table(Table {
            keys: vec![
                edits("request", &[" Edits of the request that goes upstream."]),
                edits("response", &[" Edits of the response that goes to the client."]),
            ],
            others: Some(Box::new(Wanted::shape())),
        })
    }

    fn fill(&mut self, far: &Self) {
        for (near, far) in [(&mut self.request, &far.request), (&mut self.response, &far.response)] {
            match (near, far) {
                (Some(near), Some(far)) => Value::fill(&mut near.value, &far.value),
                (near @ None, far) => near.clone_from(far),
                (Some(_), None) => {}
            }
        }
    }

    fn list(&self, path: &str, _span: &Span, _layer: Layer, out: &mut Vec<Listed>) {
        for (name, edits) in [("request", &self.request), ("response", &self.response)] {
            if let Some(edits) = edits {
                Mirror::settings(&edits.value, &format!("{path}.{name}"), out);
            }
        }
        for (name, wanted) in &self.wanted {
            let said = Some((wanted.span.clone(), wanted.layer));
            out.push(Listed { path: format!("{path}.{}", name.value), said, default: "" });
        }
    }
}

/// A map of texts and secrets, for `set` and `add`.
pub(crate) type HeaderMap = Map<HeaderText>;
