//! Log lines of the process itself, on standard error: JSON for machines, text for people. Records
//! of requests are `access_log`'s.
//!
//! A line is handed to a thread over a bounded channel: a log that nobody reads never holds up a
//! worker. What does not fit is dropped and counted.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{Registry, reload};

use crate::access_log::is_unsafe;
use crate::site::{LogFormat, LogLevel, LogPolicy};

/// The log of the process. It ends with `finish`.
#[derive(Debug)]
pub struct Log {
    threshold: Option<reload::Handle<Threshold, Registry>>,
    sink: Arc<Sink>,
    written: Receiver<()>,
    panics: Arc<AtomicU64>,
}

impl Log {
    /// Makes this the log of the process, with level `info` until `configure` is called.
    pub fn start() -> Self {
        let (lines, inbox) = sync_channel(LINES);
        let sink = Arc::new(Sink {
            lines: std::sync::Mutex::new(Some(lines)),
            is_text: AtomicBool::new(io::stderr().is_terminal()),
            dropped: AtomicU64::new(0),
        });
        let (done, written) = sync_channel(1);
        let outlet = sink.clone();
        let writing = thread::Builder::new().name("log".into()).spawn(move || {
            write_lines(&inbox, &outlet);
            drop(done);
        });
        if let Err(error) = writing {
            say(&format!("warning: there is no thread for the log, so nothing is logged: {error}\n"));
        }
        let (filter, threshold) = reload::Layer::new(Threshold(LevelFilter::INFO));
        let subscriber = tracing_subscriber::registry().with(filter).with(Lines(sink.clone()));
        // Only a second log in one process (tests) finds the place taken; its lines go to the first.
        let threshold = tracing::subscriber::set_global_default(subscriber).is_ok().then_some(threshold);
        // Every panic passes here: of a connection, of a stream over HTTP/2, of a tunnel.
        let panics = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&panics);
        std::panic::set_hook(Box::new(move |panic| {
            counted.fetch_add(1, Ordering::Relaxed);
            let location = panic.location().map(ToString::to_string);
            let why = panic.payload_as_str().unwrap_or("no message");
            let thread = thread::current();
            let thread = thread.name().unwrap_or("unnamed");
            tracing::error!(event = "panic", why, location, thread, "a fault of ours; please report it");
        }));
        Self { threshold, sink, written, panics }
    }

    /// How many faults of ours ended a connection, a stream or a tunnel.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// The same, for somebody who looks later.
    pub fn panic_count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.panics)
    }

    /// Tells how many lines were lost, to somebody who looks later.
    pub fn lost_lines(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let sink = Arc::clone(&self.sink);
        move || sink.dropped.load(Ordering::Relaxed)
    }

    /// Sets level and form.
    pub fn configure(&self, policy: &LogPolicy) {
        let level = match policy.level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
        };
        if let Some(threshold) = &self.threshold {
            // An error means that the subscriber is gone, and with it the log.
            let _ = threshold.modify(|threshold| threshold.0 = level);
        }
        let is_text = match policy.format {
            Some(format) => format == LogFormat::Text,
            None => io::stderr().is_terminal(),
        };
        self.sink.is_text.store(is_text, Ordering::Relaxed);
    }

    /// True when a person reads along: text, and standard error is a terminal.
    pub fn is_for_people(&self) -> bool {
        self.sink.is_text.load(Ordering::Relaxed) && io::stderr().is_terminal()
    }

    /// Writes what is still waiting and ends the log.
    pub fn finish(mut self) {
        self.end();
    }

    /// See `finish`.
    fn end(&mut self) {
        let lines = self.sink.lines.lock().ok().and_then(|mut lines| lines.take());
        drop(lines);
        // Its end of the channel goes when all is written. A reader that is stuck delays the exit
        // by this much and no more.
        let _ = self.written.recv_timeout(Duration::from_secs(1));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.end();
    }
}

/// Lines that may wait: some 200 KiB, our choice.
const LINES: usize = 1024;

/// The field with a report of faults, as `check` prints it.
const REPORT: &str = "report";

/// Writes to standard error as it stands: for a terminal, where the colours are taken off if need be.
pub(crate) fn say(text: &str) {
    let mut error = anstream::stderr().lock();
    // Nobody is left to be told that standard error is closed.
    let _ = error.write_all(text.as_bytes()).and_then(|()| error.flush());
}

/// A text of anybody's as a terminal may show it: what could steer it or begin a line of its own is an escape.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let shown = |c: char| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect::<String>().into()
}

/// Where lines go. The lock is held for one `try_send`; log lines are rare.
#[derive(Debug)]
struct Sink {
    lines: std::sync::Mutex<Option<SyncSender<String>>>,
    is_text: AtomicBool,
    dropped: AtomicU64,
}

impl Sink {
    /// Hands a line over, or drops it.
    fn send(&self, line: String) {
        let Ok(lines) = self.lines.lock() else { return };
        match lines.as_ref().map(|lines| lines.try_send(line)) {
            Some(Err(TrySendError::Full(_))) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            // After `finish` only a thread on its way out can still log.
            Some(Ok(()) | Err(TrySendError::Disconnected(_))) | None => {}
        }
    }
}

/// The thread that may block on standard error.
fn write_lines(inbox: &Receiver<String>, sink: &Sink) {
    for line in inbox {
        say(&line);
        let dropped = sink.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let mut entry =
                Entry { message: "log lines were dropped: the log is not read fast enough".into(), ..Entry::default() };
            entry.fields.insert("event".into(), "log_dropped".into());
            entry.fields.insert("lines".into(), dropped.into());
            say(&entry.line(Level::WARN, sink.is_text.load(Ordering::Relaxed)));
        }
    }
}

/// Least severe level that passes. Of other crates only warnings do: their `debug` is for their authors. And of HTTP/2
/// not even those: what it warns of, any client can do at will.
#[derive(Debug)]
struct Threshold(LevelFilter);

impl<S: Subscriber> Layer<S> for Threshold {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let of = |name: &str| metadata.target().starts_with(name);
        let least = if of("h2::") || of("hyper::") { Level::ERROR } else { Level::WARN };
        *metadata.level() <= self.0 && (of(env!("CARGO_PKG_NAME")) || *metadata.level() <= least)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}

/// Turns events into lines.
struct Lines(Arc<Sink>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let is_text = self.0.is_text.load(Ordering::Relaxed);
        self.0.send(entry.line(*event.metadata().level(), is_text));
    }
}

/// What one event says.
#[derive(Default)]
struct Entry {
    message: String,
    fields: Map<String, Value>,
}

impl Entry {
    /// The whole line.
    fn line(self, level: Level, is_text: bool) -> String {
        if is_text { self.text(level) } else { self.json(level) }
    }

    /// One JSON object and a line end.
    fn json(self, level: Level) -> String {
        let mut line = Map::new();
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        line.insert("t".into(), OffsetDateTime::now_utc().format(form).unwrap_or_default().into());
        line.insert("level".into(), level_name(level).into());
        line.extend(self.fields);
        if !self.message.is_empty() {
            line.insert("message".into(), self.message.into());
        }
        format!("{}\n", Value::Object(line))
    }

    /// `warn   message  key=value`; a report follows below, and a number that the message tells is not told
    /// again. A message may quote a CA or a client: its lines are kept, indented, so that none looks like one of ours.
    fn text(self, level: Level) -> String {
        let colour = match level {
            Level::ERROR => "\u{1b}[1;31m",
            Level::WARN => "\u{1b}[33m",
            _ => "",
        };
        let reset = if colour.is_empty() { "" } else { "\u{1b}[0m" };
        let mut line = format!("{colour}{:<5}{reset}", level_name(level));
        let mut below = String::new();
        // A String takes everything: no write below can fail.
        let message: Vec<_> = self.message.split('\n').map(printable).collect();
        let _ = write!(line, "  {}", message.join("\n       "));
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != "event") {
            match value {
                // It is ours, colours and all; what it quotes was made harmless where it was quoted.
                Value::String(text) if name == REPORT => {
                    let _ = writeln!(below, "{}", text.trim_end());
                }
                Value::String(text) => {
                    let _ = write!(line, "  {name}={}", printable(text));
                }
                other if self.says(name, other) => {}
                other => {
                    let _ = write!(line, "  {name}={other}");
                }
            }
        }
        format!("{line}\n{below}")
    }
}

impl Entry {
    /// True when the message has this number of these: `2 listeners`, `1 site`, `generation 7`.
    fn says(&self, name: &str, number: &Value) -> bool {
        let singular = name.strip_suffix('s').unwrap_or(name);
        let mut words = self.message.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let mut last = words.next().unwrap_or_default();
        let number = number.to_string();
        words.any(|word| {
            let before = std::mem::replace(&mut last, word);
            let is_name = |word: &str| word == name || word == singular;
            (before == number && is_name(word)) || (is_name(before) && word == number)
        })
    }
}

/// The level as the configuration spells it.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}

impl Entry {
    /// Keeps one value.
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => {
                self.fields.insert(name.into(), value);
            }
        }
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let mut entry = Entry { message: "cannot read \"a\"".into(), ..Entry::default() };
        entry.fields.insert("event".into(), "listening".into());
        entry.fields.insert("generation".into(), 7.into());
        entry
    }

    #[test]
    fn a_json_line_is_one_object() {
        let line = entry().line(Level::INFO, false);
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
        let value: Value = serde_json::from_str(&line).expect("one JSON object");
        assert_eq!(
            (&value["level"], &value["event"], &value["generation"]),
            (&"info".into(), &"listening".into(), &7.into())
        );
        assert_eq!(value["message"], "cannot read \"a\"");
        assert!(value["t"].as_str().is_some_and(|t| t.ends_with('Z')));
    }

    #[test]
    fn a_text_line_leaves_out_what_only_machines_need() {
        assert_eq!(entry().line(Level::INFO, true), "info   cannot read \"a\"  generation=7\n");
        let mut entry = Entry { message: "generation 8: no change\nkept: 1 listener".into(), ..entry() };
        for (name, number) in [("generation", 8), ("listeners", 1), ("tunnels", 8)] {
            entry.fields.insert(name.into(), number.into());
        }
        let expected = "info   generation 8: no change\n       kept: 1 listener  tunnels=8\n";
        assert_eq!(entry.line(Level::INFO, true), expected);
    }

    #[test]
    fn a_report_stands_below_its_line() {
        let mut entry = entry();
        entry.fields.insert("report".into(), "error: x\n --> y\n".into());
        assert_eq!(entry.line(Level::INFO, true), "info   cannot read \"a\"  generation=7\nerror: x\n --> y\n");
    }

    #[test]
    fn nobody_steers_the_terminal_or_forges_a_line() {
        let hostile = "no\u{1b}]0;x\u{7}\r\u{9b}2J\u{202e}\nerror  all is lost";
        let mut entry = Entry { message: format!("the CA says {hostile}"), ..Entry::default() };
        entry.fields.insert("help".into(), hostile.into());
        let shown = "no\\u{1b}]0;x\\u{7}\\r\\u{9b}2J\\u{202e}";
        let expected =
            format!("info   the CA says {shown}\n       error  all is lost  help={shown}\\nerror  all is lost\n");
        assert_eq!(entry.line(Level::INFO, true), expected);
    }

    #[test]
    fn what_is_not_read_is_dropped_and_counted() {
        let (lines, inbox) = sync_channel(1);
        let sink = Sink {
            lines: std::sync::Mutex::new(Some(lines)),
            is_text: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        };
        for n in 0..3 {
            sink.send(n.to_string());
        }
        assert_eq!(sink.dropped.load(Ordering::Relaxed), 2);
        assert_eq!(inbox.try_recv().as_deref(), Ok("0"));
    }
}
