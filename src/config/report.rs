//! Diagnostics: what is wrong in the operator's file, where, and what to do; as text and JSON.
//!
//! A `Report` holds every fault of one reading, never only the first. Codes are stable: once
//! released, a code keeps its meaning and is never reused.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Makes the list of codes; each is described once.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal $severity:ident;)*) => {
        /// The kind of a diagnostic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])+ $name,)* }

        impl Code {
            /// All codes, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable code.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Whether the file can be used all the same.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

codes! {
    /// The text is not TOML.
    Syntax = "C001" Error;
    /// A configuration file cannot be read.
    Unreadable = "C002" Error;
    /// No site: the file serves nothing.
    ServesNothing = "C003" Error;
    /// A version of the format that this program does not know.
    Version = "C004" Error;
    /// An `include` that cannot be followed.
    Include = "C005" Error;
    /// A key or an entry stands twice where it may stand once.
    DuplicateKey = "C010" Error;
    /// Two sites claim one name.
    DuplicateSite = "C011" Error;
    /// Two routes take the same requests, or one hides the site's own settings.
    DuplicateRoute = "C012" Error;
    /// One address or name for two listeners.
    DuplicateListener = "C013" Error;
    /// A key or a name is set in two places.
    SetTwice = "C014" Error;
    /// A value of the wrong kind.
    Kind = "C020" Error;
    /// A key that does not exist here.
    UnknownKey = "C021" Error;
    /// A word that is not one of the choices.
    Choice = "C022" Error;
    /// A key that must be there.
    Missing = "C023" Error;
    /// A number outside its range.
    Range = "C024" Error;
    /// A list or text that must not be empty.
    Empty = "C025" Error;
    /// A malformed duration or size.
    Unit = "C033" Error;
    /// A number without its unit.
    NoUnit = "C034" Error;
    /// A limit of zero where zero would stop all work.
    Zero = "C035" Error;
    /// A malformed host name.
    Host = "C040" Error;
    /// A malformed listener address.
    Listen = "C041" Error;
    /// A malformed upstream address.
    Upstream = "C042" Error;
    /// A malformed network.
    Network = "C043" Error;
    /// A malformed path prefix.
    Path = "C044" Error;
    /// A malformed header name, or one that the edge alone writes.
    HeaderName = "C045" Error;
    /// A malformed header value or placeholder.
    HeaderValue = "C046" Error;
    /// A status that is not possible here.
    Status = "C047" Error;
    /// A malformed origin.
    Origin = "C048" Error;
    /// A malformed method.
    Method = "C049" Error;
    /// A malformed redirect target.
    RedirectTarget = "C050" Error;
    /// A malformed mail address.
    Email = "C051" Error;
    /// A malformed URL of a service that the edge asks, or one without TLS.
    Url = "C052" Error;
    /// A malformed address of a DNS server.
    DnsServer = "C053" Error;
    /// A name that nothing defines.
    Undefined = "C060" Error;
    /// A name that the site's certificate cannot have: its source issues none for it.
    NoCertificate = "C070" Error;
    /// A file that is missing or cannot be read.
    File = "C071" Error;
    /// A file whose content is not what the key needs.
    Content = "C072" Error;
    /// A secret that cannot be found.
    Secret = "C073" Error;
    /// A wildcard whose certificate comes from a CA, without a DNS provider for it.
    NeedsDns = "C074" Error;
    /// The directory `storage` cannot be written.
    Storage = "C075" Error;
    /// Cleartext towards clients that are not on this machine.
    Cleartext = "C080" Error;
    /// `attribution = "local"` where other people could use it.
    Attribution = "C081" Error;
    /// Two gateways behind one name.
    TwoGateways = "C082" Error;
    /// Nothing says what to do with requests.
    NoAction = "C083" Error;
    /// Keys that exclude or need each other.
    Conflict = "C084" Error;
    /// A listener lacks the address that a site needs.
    NoAddress = "C085" Error;
    /// A long timeout without its reason.
    NoWhy = "C090" Warning;
    /// Cleartext towards an upstream on another machine.
    CleartextUpstream = "C091" Warning;
    /// A secret file that other users can read.
    ReadableByOthers = "C092" Warning;
    /// A secret in the file itself.
    InlineSecret = "C093" Warning;
    /// A stripping mount in front of a gateway that cannot work behind one.
    StrippedGateway = "C094" Warning;
    /// Cleartext towards clients, accepted by the operator.
    CleartextAccepted = "C095" Warning;
    /// Something is defined and never used.
    Unused = "C096" Warning;
    /// Everybody's word is believed.
    TrustsEverybody = "C097" Warning;
    /// An upstream connection is kept longer than the gateway keeps it.
    KeepAlive = "C098" Warning;
    /// HSTS that browsers' preload lists will not take.
    HstsPreload = "C099" Warning;
    /// No address for the proofs that a CA will ask for.
    NoProof = "C100" Warning;
    /// A key that does nothing here.
    NoEffect = "C101" Warning;
    /// Lists of networks that keep everybody out.
    NobodyEnters = "C110" Warning;
    /// A name that a set of limits cannot have.
    LimitName = "C111" Error;
    /// A limit that another one beside it makes useless.
    NeverReached = "C112" Warning;
    /// A name of `[auth]` or `[hooks]` that cannot be one.
    AuthName = "C120" Error;
    /// A site takes client certificates, and asks no client for one.
    NoClientCert = "C121" Error;
    /// A users file with nobody in it.
    NobodyLogsIn = "C122" Warning;
    /// Status and metrics where others could reach them.
    AdminReachable = "C130" Error;
    /// Metrics on an address that is not private.
    MetricsReachable = "C131" Warning;
    /// A malformed path of a health check.
    HealthPath = "C135" Error;
    /// A malformed code of a country.
    Country = "C140" Error;
    /// A database that seems to know no countries.
    NoCountries = "C141" Warning;
    /// A revocation list whose time is over.
    OldCrl = "C142" Warning;
    /// An authority without a revocation list, beside others that have one.
    NoCrl = "C143" Warning;
}

/// Whether the file can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can.
    Warning,
}

impl Severity {
    /// The word in texts and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One text that was read: a file, a preset, or the command line.
#[derive(Debug)]
pub struct Source {
    /// How messages call it.
    pub name: String,
    /// The file, if it is one.
    pub path: Option<PathBuf>,
    /// Its content.
    pub text: String,
    /// Where its lines begin, so that a place in a large file is found at once.
    lines: Vec<usize>,
}

impl Source {
    /// A text and what it is called.
    pub fn new(name: impl Into<String>, path: Option<PathBuf>, text: impl Into<String>) -> Self {
        let text = text.into();
        let lines = std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1)).collect();
        Self { name: name.into(), path, text, lines }
    }

    /// Line and column of a byte offset, both from 1; columns count characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| self.lines.get(line)).copied().unwrap_or(0);
        (line, self.text[start..offset].chars().count() + 1)
    }
}

/// A place in a source: a byte range.
#[derive(Clone, Debug)]
pub struct Span {
    /// Which text.
    pub source: Arc<Source>,
    /// Which bytes of it.
    pub range: Range<usize>,
}

impl Span {
    /// Line and column of the beginning, both from 1; columns count characters.
    pub fn position(&self) -> (usize, usize) {
        self.source.position(self.range.start)
    }

    /// The text at this place, as it was written.
    pub fn text(&self) -> &str {
        self.source.text.get(self.range.clone()).unwrap_or_default()
    }

    /// `tidegate.toml:12`.
    pub fn file_and_line(&self) -> String {
        format!("{}:{}", self.source.name, self.position().0)
    }
}

/// One fault or one doubt.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Its kind.
    pub code: Code,
    /// Where and what, in one line.
    pub message: String,
    /// The place; none for what has none, such as a missing file.
    pub span: Option<Span>,
    /// A few words at the place.
    pub label: String,
    /// Another place that belongs to it, and a few words for it.
    pub also: Option<(Span, String)>,
    /// What to do.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// A diagnostic at a place.
    pub fn at(code: Code, span: &Span, message: impl Into<String>) -> Self {
        let span = Some(span.clone());
        Self { code, message: plain(message), span, label: String::new(), also: None, help: Vec::new() }
    }

    /// A diagnostic without a place.
    pub fn nowhere(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: plain(message), span: None, label: String::new(), also: None, help: Vec::new() }
    }

    /// A few words at the place.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = plain(text);
        self
    }

    /// What to do.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(plain(text));
        self
    }

    /// Another place that belongs to it.
    #[must_use]
    pub fn also(mut self, span: &Span, label: impl Into<String>) -> Self {
        self.also = Some((span.clone(), plain(label)));
        self
    }

    /// As text, the way compilers show it.
    fn render(&self, renderer: &Renderer) -> String {
        let level = match self.code.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str()).id(self.code.as_str());
        let mut group = Group::with_title(title);
        if let Some(span) = &self.span {
            let mut annotation = AnnotationKind::Primary.span(visible(span));
            if !self.label.is_empty() {
                annotation = annotation.label(self.label.as_str());
            }
            let mut snippet =
                Snippet::source(span.source.text.as_str()).path(span.source.name.as_str()).annotation(annotation);
            let mut other = None;
            if let Some((also, label)) = &self.also {
                let annotation = AnnotationKind::Context.span(visible(also)).label(label.as_str());
                if Arc::ptr_eq(&also.source, &span.source) {
                    snippet = snippet.annotation(annotation);
                } else {
                    let path = also.source.name.as_str();
                    other = Some(Snippet::source(also.source.text.as_str()).path(path).annotation(annotation));
                }
            }
            group = group.element(snippet).elements(other);
        }
        let mut groups = vec![group];
        groups.extend(self.help.iter().map(|text| Group::with_title(Level::HELP.secondary_title(text.as_str()))));
        renderer.render(&groups)
    }

    /// As a JSON object.
    fn to_json(&self) -> serde_json::Value {
        let place = |span: &Span, label: &str| {
            let (line, column) = span.position();
            let (end_line, end_column) = span.source.position(span.range.end);
            serde_json::json!({ "file": span.source.name, "line": line, "column": column,
                "end_line": end_line, "end_column": end_column, "label": label })
        };
        serde_json::json!({
            "code": self.code.as_str(),
            "severity": self.code.severity().as_str(),
            "message": self.message,
            "place": self.span.as_ref().map(|span| place(span, &self.label)),
            "also": self.also.as_ref().map(|(span, label)| place(span, label)),
            "help": self.help,
        })
    }
}

/// The part of a span that a snippet can show: at least one character, at most its first line.
fn visible(span: &Span) -> Range<usize> {
    let text = &span.source.text;
    let start = span.range.start.min(text.len());
    let end = span.range.end.clamp(start, text.len());
    let line_end = text.get(start..end).and_then(|part| part.find(['\n', '\r'])).map_or(end, |at| start + at);
    start..line_end.max(start)
}

/// All diagnostics of one reading.
#[derive(Clone, Debug, Default)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
    /// Values that no snippet may show.
    secrets: Vec<Span>,
}

impl Report {
    /// An empty report.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a diagnostic.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// All diagnostics.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// How many of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.code.severity() == severity).count()
    }

    /// True when the file cannot be used.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// Keeps a value out of every snippet: reports end up in journals and tickets.
    pub(crate) fn hide(&mut self, span: &Span) {
        self.secrets.push(span.clone());
    }

    /// Puts other texts, with asterisks for the secrets, under the snippets.
    fn mask(&mut self, sources: &[Arc<Source>]) {
        for source in sources {
            let secrets: Vec<_> = self.secrets.iter().filter(|span| Arc::ptr_eq(&span.source, source)).collect();
            if secrets.is_empty() {
                continue;
            }
            let mut bytes = source.text.clone().into_bytes();
            for span in secrets {
                for byte in bytes.get_mut(span.range.clone()).unwrap_or_default() {
                    // Line ends stay, so that all other places keep their lines.
                    if !matches!(byte, b'\n' | b'\r' | b'"' | b'\'') {
                        *byte = b'*';
                    }
                }
            }
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let masked = Arc::new(Source::new(source.name.clone(), source.path.clone(), text));
            for diagnostic in &mut self.diagnostics {
                let spans = diagnostic.span.iter_mut().chain(diagnostic.also.as_mut().map(|(span, _)| span));
                for span in spans.filter(|span| Arc::ptr_eq(&span.source, source)) {
                    span.source = Arc::clone(&masked);
                }
            }
        }
    }

    /// Puts the diagnostics in the order of the files, those without a place first, and keeps one
    /// of those that say the same of one place: a value that many routes inherit is one fault.
    pub(crate) fn tidy(&mut self, sources: &[Arc<Source>]) {
        let file = |span: &Span| sources.iter().position(|source| Arc::ptr_eq(source, &span.source));
        self.diagnostics.sort_by_key(|d| d.span.as_ref().map(|span| (file(span), span.range.start)));
        let mut seen = std::collections::HashSet::new();
        self.diagnostics.retain(|d| match &d.span {
            Some(span) => seen.insert((d.code, file(span), span.range.clone())),
            None => true,
        });
        self.mask(sources);
    }

    /// The diagnostics themselves.
    pub fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    /// The whole report as text, with colours when asked; empty when there is nothing to say.
    pub fn to_text(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for diagnostic in &self.diagnostics {
            // Infallible: a String takes everything.
            let _ = writeln!(text, "{}\n", diagnostic.render(&renderer));
        }
        text
    }

    /// `2 errors, 0 warnings.`
    pub fn summary(&self) -> String {
        let count = |severity: Severity| match self.count(severity) {
            1 => format!("1 {}", severity.as_str()),
            n => format!("{n} {}s", severity.as_str()),
        };
        format!("{}, {}.", count(Severity::Error), count(Severity::Warning))
    }

    /// The whole report as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "ok": !self.has_errors(),
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "diagnostics": self.diagnostics.iter().map(Diagnostic::to_json).collect::<Vec<_>>(),
        })
    }
}

impl From<Vec<Diagnostic>> for Report {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Self { diagnostics, secrets: Vec::new() }
    }
}

/// What the file's author wrote may stand in a text, and a terminal obeys control characters: they
/// are shown as escapes.
fn plain(text: impl Into<String>) -> String {
    let text = text.into();
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let source = Source::new("test", None, "a\nü = 1");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(1), (1, 2), "a line's own end");
        assert_eq!(source.position(5), (2, 3));
        assert_eq!(source.position(3), (2, 1), "inside a character");
        assert_eq!(Source::new("test", None, "").position(9), (1, 1));
    }

    #[test]
    fn codes_are_unique() {
        let mut seen = std::collections::HashSet::new();
        assert!(Code::ALL.iter().all(|code| seen.insert(code.as_str())));
    }
}
