//! Presets: settings that suit one kind of upstream, written in the file's own language.
//!
//! A preset stands between `[defaults]` and the site. It is read by the same reader as a file, so
//! `tidegate show` prints it like any other layer, with its reasons.

use std::sync::Arc;

use toml::de::DeTable;

use super::file::{self, Shared};
use super::read::{Layer, Reader, entries, read_entries};
use super::report::{Report, Source, Span};

/// The OpenClaw gateway: Control UI, sockets, uploads. Reasons: measured behaviour of the gateway.
/// States only what differs from the built-in defaults, so that `[defaults]` decides the rest.
const OPENCLAW: &str = r#"
why = "the gateway gives a request body 30 s in all, takes uploads up to 32 MiB, is silent for seconds when it is busy, and restarts within 15 s"
collect_request = true
limits.body = "32MiB"
hold = "15s"
health = { path = "/startupz", timeout = "5s", failures = 3 }
"#;

/// The gateway's HTTP API alone (`/v1`, `/tools`): no sockets, long answers.
const OPENCLAW_API: &str = r#"
why = "a model may think for two minutes before its first byte, bodies are at most 20 MiB and have 30 s in all, and a stream is never silent for 10 minutes"
collect_request = true
limits.body = "20MiB"
timeouts.response_head = "120s"
timeouts.idle = "10m"
hold = "15s"
health = { path = "/startupz", timeout = "5s", failures = 3 }
"#;

/// Any server of WebSockets.
const WEBSOCKET: &str = r#"
why = "a socket may be silent for long, and its refusal should come soon"
timeouts.idle = "1h"
timeouts.response_head = "30s"
limits.body = "1MiB"
"#;

/// All presets, read once for one compilation.
pub(crate) struct Presets {
    openclaw: Shared,
    openclaw_api: Shared,
    websocket: Shared,
    none: Shared,
}

impl Presets {
    /// Reads them.
    pub(crate) fn new() -> Self {
        Self {
            openclaw: read("openclaw", OPENCLAW).0,
            openclaw_api: read("openclaw-api", OPENCLAW_API).0,
            websocket: read("websocket", WEBSOCKET).0,
            none: Shared::default(),
        }
    }

    /// The settings of one.
    pub(crate) fn settings(&self, preset: file::Preset) -> &Shared {
        match preset {
            file::Preset::Openclaw => &self.openclaw,
            file::Preset::OpenclawApi => &self.openclaw_api,
            file::Preset::Websocket => &self.websocket,
            file::Preset::None => &self.none,
        }
    }
}

/// Its name as the file spells it, for people; nothing for `none`.
pub(crate) fn label(preset: file::Preset) -> Option<&'static str> {
    match preset {
        file::Preset::Openclaw => Some("openclaw"),
        file::Preset::OpenclawApi => Some("openclaw-api"),
        file::Preset::Websocket => Some("websocket"),
        file::Preset::None => None,
    }
}

/// Reads a preset; the report is empty, as the test shows.
fn read(name: &str, text: &str) -> (Shared, Report) {
    let source = Arc::new(Source::new(format!("preset \"{name}\""), None, text));
    let mut report = Report::new();
    let (table, _) = DeTable::parse_recoverable(text);
    let span = Span { source: Arc::clone(&source), range: 0..0 };
    let mut reader =
        Reader { source, layer: Layer::Preset, report: &mut report, places: Vec::new(), list: String::new() };
    let shared = read_entries(&entries(table.get_ref()), span, &mut reader);
    (shared, report)
}

#[cfg(test)]
mod tests {
    use super::file::Preset;
    use super::*;

    #[test]
    fn presets_are_free_of_faults_and_say_why() {
        for (name, text) in [("openclaw", OPENCLAW), ("openclaw-api", OPENCLAW_API), ("websocket", WEBSOCKET)] {
            assert!(DeTable::parse(text).is_ok(), "{name}");
            let (shared, report) = read(name, text);
            assert!(
                [Preset::Openclaw, Preset::OpenclawApi, Preset::Websocket].map(label).contains(&Some(name)),
                "{name}"
            );
            assert_eq!(report.diagnostics().len(), 0, "{}", report.to_text(false));
            assert!(shared.why.is_some(), "{name}");
        }
    }
}
