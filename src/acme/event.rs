//! What happens to certificates, told to the program of `on_event`: one JSON object on its standard input.
//!
//! Whoever has something to tell never waits: events are queued, and dropped with a log line when the program is slower
//! than they come.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Mutex, mpsc};

use super::fault::AcmeFault;
use super::program;
use crate::snapshot::Snapshot;
use crate::tls::certs::Certificate;

/// One event, as JSON.
#[derive(Clone, Debug)]
pub struct Event(Map<String, Value>);

/// Where events go.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Event>);

/// What waits to be told.
pub type Inbox = Arc<Mutex<mpsc::Receiver<Event>>>;

/// More than an edge has in an hour; a bound all the same.
const QUEUE: usize = 256;

/// A queue of events.
pub fn queue() -> (Events, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Events(sender), Arc::new(Mutex::new(receiver)))
}

impl Events {
    /// Tells of something, as soon as the program is free.
    pub fn tell(&self, event: Event) {
        if let Err(error) = self.0.try_send(event) {
            tracing::warn!(event = "on_event", "an event is not told to the program of `on_event`: {error}");
        }
    }
}

impl Event {
    /// An event of a site.
    pub fn new(kind: &str, site: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("event".into(), kind.into());
        fields.insert("time".into(), timestamp(OffsetDateTime::now_utc()).into());
        fields.insert("site".into(), site.into());
        Self(fields)
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Adds what is known about a certificate.
    #[must_use]
    pub fn of(self, certificate: &Certificate) -> Self {
        let facts = &certificate.facts;
        let names: Vec<&str> = facts.names.iter().map(|name| &**name).collect();
        self.with("names", names)
            .with("issuer", &*facts.issuer)
            .with("not_before", timestamp(facts.not_before))
            .with("not_after", timestamp(facts.not_after))
            .with("sha256", facts.fingerprint_text())
            .with("spki_sha256", certificate.key_fingerprint())
    }

    /// Adds why something failed.
    #[must_use]
    pub fn because(self, fault: &AcmeFault) -> Self {
        self.with("error", json!({ "kind": &*fault.kind, "text": &fault.text, "help": &fault.help }))
    }
}

/// Tells the program of the configuration in force, one event after the other. Never returns.
pub async fn tell_all(inbox: Inbox, snapshot: Arc<Snapshot>) {
    // One at a time: the lock is held by the one actor that runs.
    let mut inbox = inbox.lock().await;
    while let Some(event) = inbox.recv().await {
        let program = snapshot.keep().table.edge.acme.on_event.clone();
        let Some(program) = program else { continue };
        let text = Value::Object(event.0).to_string();
        if let Err(error) = program::run(&program, &[], text.as_bytes()).await {
            tracing::warn!(event = "on_event", "{error}");
        }
    }
}

/// RFC 3339 in whole seconds.
pub fn timestamp(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_default()
}
