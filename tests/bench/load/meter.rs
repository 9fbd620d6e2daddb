//! What a run is told and what it tells: the gate between opening and work, the amount that is left, and
//! how long each unit took.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin, stdin};
use tokio::task::spawn_local;

/// Anything that went wrong, as text.
pub(crate) type Fault = Box<dyn Error>;

/// How many connections are opened at once: no queue of a subject overflows by it.
const AT_ONCE: usize = 64;

/// Opens many things, some at a time.
pub(crate) async fn many<T, F>(count: u64, make: impl Fn(u64) -> F) -> Result<Vec<T>, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    stream::iter(0..count).map(make).buffer_unordered(AT_ONCE).try_collect().await
}

/// Whoever started this program.
pub(crate) struct Starter(Lines<BufReader<Stdin>>);

impl Starter {
    pub(crate) fn new() -> Self {
        Self(BufReader::new(stdin()).lines())
    }

    /// The next line of stdin; nothing at its end.
    pub(crate) async fn line(&mut self) -> Result<Option<String>, Fault> {
        Ok(self.0.next_line().await?)
    }

    /// One line on stdout. The standard library flushes it at its end.
    #[allow(clippy::print_stdout, reason = "the answer to whoever started this program")]
    pub(crate) fn tell(&self, line: impl std::fmt::Display) {
        println!("{line}");
    }

    /// Waits for the end of stdin.
    pub(crate) async fn end(&mut self) -> Result<(), Fault> {
        while self.line().await?.is_some() {}
        Ok(())
    }
}

/// The amount of work, and what became of it.
pub(crate) struct Meter {
    left: Cell<u64>,
    nanoseconds: RefCell<Vec<u64>>,
    faults: RefCell<BTreeMap<String, u64>>,
}

impl Meter {
    /// True as long as there is a unit left; it is the caller's then.
    pub(crate) fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    /// A unit is done that began at `began`.
    pub(crate) fn done(&self, began: Instant) {
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.borrow_mut().push(took);
    }

    fn report(&self, seconds: f64) -> Value {
        let mut all = self.nanoseconds.borrow_mut();
        all.sort_unstable();
        // Nearest rank: the value that this share of all units did not exceed.
        let at = |percent: usize| {
            let rank = (all.len() * percent).div_ceil(100).max(1) - 1;
            all.get(rank).map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1000.0)
        };
        let faults = self.faults.borrow();
        json!({
            "units": all.len(), "seconds": seconds, "errors": faults.values().sum::<u64>(), "faults": *faults,
            "latency_us": { "p50": at(50), "p90": at(90), "p99": at(99), "max": at(100) },
        })
    }
}

/// The gate, then the work of all workers at once, then the report; ends with stdin. A worker takes units
/// from the meter until none is left. What it returns is kept until the end, so that nothing closes before.
pub(crate) async fn work<W, T, F>(count: u64, workers: Vec<W>, run: impl Fn(W, Rc<Meter>) -> F) -> Result<(), Fault>
where
    T: 'static,
    F: Future<Output = Result<T, Fault>> + 'static,
{
    let mut starter = Starter::new();
    let meter = Rc::new(Meter {
        left: Cell::new(count),
        nanoseconds: RefCell::new(Vec::with_capacity(usize::try_from(count)?)),
        faults: RefCell::default(),
    });
    starter.tell("ready");
    if starter.line().await?.is_none() {
        return Err("stdin ended before the work began".into());
    }
    let began = Instant::now();
    let tasks: Vec<_> = workers
        .into_iter()
        .map(|worker| {
            let (task, meter) = (run(worker, Rc::clone(&meter)), Rc::clone(&meter));
            spawn_local(async move {
                let outcome = task.await;
                outcome.inspect_err(|fault| *meter.faults.borrow_mut().entry(fault.to_string()).or_default() += 1).ok()
            })
        })
        .collect();
    let kept = join_all(tasks).await;
    starter.tell(meter.report(began.elapsed().as_secs_f64()));
    starter.end().await?;
    drop(kept);
    Ok(())
}
