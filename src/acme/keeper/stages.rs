//! What an attempt is doing right now, written down for whoever runs `tidegate certs`.

use tokio::sync::mpsc;

use crate::acme::off_thread;
use crate::acme::store::{Ledger, Store};
use crate::addr::HostPattern;

/// Writes down what an attempt is doing, in order and without holding it up, for `tidegate certs`.
pub(super) struct Stages {
    steps: mpsc::UnboundedSender<String>,
    writer: tokio::task::JoinHandle<()>,
}

impl Stages {
    pub(super) fn new(store: &Store, host: &HostPattern, ledger: &Ledger) -> Self {
        // An order has a dozen steps: the queue needs no bound.
        let (steps, mut inbox) = mpsc::unbounded_channel::<String>();
        let (store, host, ledger) = (store.clone(), host.clone(), ledger.clone());
        let writer = tokio::spawn(async move {
            while let Some(stage) = inbox.recv().await {
                let (store, host, ledger) =
                    (store.clone(), host.clone(), Ledger { stage: Some(stage), ..ledger.clone() });
                // Only for people: a disk that does not take it is found elsewhere.
                let _ = off_thread(move || store.keep_ledger(&host, &ledger)).await;
            }
        });
        Self { steps, writer }
    }

    /// Told of a step.
    pub(super) fn tell(&self, stage: String) {
        tracing::debug!(event = "certificate_stage", "{stage}");
        let _ = self.steps.send(stage);
    }

    /// All is written when this returns, so that nothing comes after the outcome.
    pub(super) async fn end(self) {
        drop(self.steps);
        let _ = self.writer.await;
    }
}
