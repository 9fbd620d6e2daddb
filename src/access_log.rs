//! The access log: one line for each request, each tunnel, and each connection that got no further.
//!
//! Recording never waits: lines go to a bounded queue, one thread writes them (`writer`), and what
//! finds no room is dropped and counted. Secrets are masked here and nowhere else (`redact`).
//! It is written to and never asked: nothing in the edge depends on it.

mod clock;
mod encode;
mod record;
pub mod redact;
mod writer;

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use record::{
    Amounts, ConnectionRecord, HookRecord, HookVerdict, RequestRecord, Responder, Timings, TlsRecord, TunnelRecord,
};
pub use redact::is_unsafe;
pub use writer::Writer;

use clock::Clock;
use encode::Line;
use record::{ConnectionLine, RequestLine, TunnelLine};
use redact::{Extra, Redactor};
use writer::{Output, Queue};

use crate::site::{AccessOutput, LogFormat, LogPolicy};

/// Where records go. Cheap to clone; shared by all threads.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

/// What all clones share.
#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    is_on: AtomicBool,
    redactor: Redactor,
    /// The output in use, so that a reload that does not change it does not touch it.
    place: Mutex<AccessOutput>,
}

impl AccessLog {
    /// Opens the output and starts the thread that writes to it.
    ///
    /// # Errors
    /// When the output cannot be opened or the thread not started.
    pub fn start(policy: &LogPolicy) -> io::Result<(Self, Writer)> {
        let output = Output::open(&policy.access)?;
        let queue = Arc::new(Queue::new(is_text(policy)));
        let shared = Shared {
            queue: Arc::clone(&queue),
            is_on: AtomicBool::new(policy.access != AccessOutput::Off),
            redactor: Redactor::new(extra(policy))?,
            place: Mutex::new(policy.access.clone()),
        };
        let writer = Writer::start(queue, output)?;
        Ok((Self(Arc::new(shared)), writer))
    }

    /// Takes what a reload changed: output, format, names to mask.
    ///
    /// # Errors
    /// When a new output cannot be opened; nothing is changed then.
    pub fn reconfigure(&self, policy: &LogPolicy) -> io::Result<()> {
        let shared = &*self.0;
        let mut place = shared.place.lock().unwrap_or_else(PoisonError::into_inner);
        if *place != policy.access || shared.queue.is_text() != is_text(policy) {
            shared.queue.replace(Output::open(&policy.access)?, is_text(policy));
            place.clone_from(&policy.access);
            shared.is_on.store(policy.access != AccessOutput::Off, Ordering::Relaxed);
        }
        shared.redactor.replace(extra(policy));
        Ok(())
    }

    /// Has the file opened by its name again, after it was moved away.
    pub fn reopen(&self) {
        self.0.queue.reopen();
    }

    /// How many records were lost since the start: queue full, or disk.
    pub fn dropped(&self) -> u64 {
        self.0.queue.lost()
    }

    /// False when nobody reads records, so that they need not be made.
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Records a request when its response has ended.
    pub fn request(&self, record: &RequestRecord<'_>) {
        self.record(|clock| RequestLine::new(clock.now(), record, &self.0.redactor));
    }

    /// Records a tunnel when it has ended.
    pub fn tunnel(&self, record: &TunnelRecord<'_>) {
        self.record(|clock| {
            let opened = clock.stamp(record.opened);
            TunnelLine::new(clock.now(), opened, record, &self.0.redactor)
        });
    }

    /// Records a connection that ended before a request.
    pub fn connection(&self, record: &ConnectionRecord<'_>) {
        self.record(|clock| ConnectionLine::new(clock.now(), record, &self.0.redactor));
    }

    /// A target without its secrets, for other log lines.
    pub fn mask_target<'a>(&self, target: &'a str) -> Cow<'a, str> {
        self.0.redactor.target(target)
    }

    /// What stands in place of a header's value when the operator listed the header, for other readers than the log.
    pub fn mask_header(&self, name: &str, value: &[u8]) -> Option<String> {
        self.0.redactor.header(name, value)
    }

    /// Makes a line in this thread's buffer and hands it over.
    fn record<L: Line>(&self, line: impl FnOnce(&mut Clock) -> L) {
        if !self.is_on() {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.line.clear();
            let line = line(&mut scratch.clock);
            if encode::line(&mut scratch.line, &line, self.0.queue.is_text()) {
                self.0.queue.push(&scratch.line);
            } else {
                self.0.queue.lose(1);
            }
        });
    }
}

/// What a thread needs to make a line.
struct Scratch {
    line: Vec<u8>,
    clock: Clock,
}

thread_local! {
    // Kept, so that a record costs no allocation but for what must be masked.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch { line: Vec::with_capacity(2048), clock: Clock::new() });
}

/// Text on a terminal, JSON elsewhere, unless the configuration chooses.
fn is_text(policy: &LogPolicy) -> bool {
    match policy.format {
        Some(format) => format == LogFormat::Text,
        None => policy.access == AccessOutput::Stdout && io::stdout().is_terminal(),
    }
}

/// The names that the operator added.
fn extra(policy: &LogPolicy) -> Extra {
    Extra { query: policy.redact_query.clone(), headers: policy.redact_headers.clone() }
}

#[cfg(test)]
mod tests;
