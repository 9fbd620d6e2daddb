//! How much of a flood the edge takes on one connection: after every few units it is asked how far it has come.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncWriteExt as _, ReadHalf, split};
use tokio::time::{Instant, timeout};

use crate::Enemy;
use crate::frames::{Kind, Reader, Said, frame, sync};
use crate::meter::{Fault, Starter};
use crate::tls::Stream;

/// An edge that takes so many takes all.
const MOST: u32 = 20_000;

/// Units between two questions.
const STEP: u32 = 20;

/// What the edge said so far.
#[derive(Default)]
struct Answers {
    goaway: Option<(u32, u32)>,
    reset: Option<u32>,
    head: Option<u8>,
    resets: u32,
    heads: u32,
}

/// Probes with one kind.
pub(crate) async fn run(enemy: &Enemy, kind: Kind) -> Result<(), Fault> {
    let dialer = enemy.target.dialer("h2", false)?;
    let (mut reader, mut writer) = split(enemy.open(&dialer, 0).await?);
    let host = &enemy.target.host;
    let began = Instant::now();
    let mut frames = Reader::default();
    let mut answers = Answers::default();
    let mut sent = 0;
    let mut is_open = writer.write_all(&kind.start(host)).await.is_ok();
    while is_open && sent < MOST && answers.goaway.is_none() && began.elapsed() < Duration::from_secs(30) {
        let step = if kind.can_sync() { STEP } else { 1 };
        let mut batch: Vec<u8> = (sent..sent + step).flat_map(|count| kind.unit(host, count)).collect();
        if kind.can_sync() {
            batch.extend(sync());
        }
        is_open = writer.write_all(&batch).await.is_ok() && writer.flush().await.is_ok();
        sent += step;
        // Without an answer that is known to come, a while is enough to see the end.
        let patience = Duration::from_millis(if kind.can_sync() { 5000 } else { 3 });
        let mut asked = 0;
        let read = timeout(patience, read(&mut frames, &mut reader, &mut answers, &mut asked)).await;
        // Inside a block of fields nothing else may stand.
        for _ in 0..if kind.can_sync() { asked } else { 0 } {
            // SETTINGS is acknowledged; a PING of the edge's own comes too seldom to matter here.
            is_open &= writer.write_all(&frame(4, 1, 0, &[])).await.is_ok() && writer.flush().await.is_ok();
        }
        is_open &= !matches!(read, Ok(false)) && (read.is_ok() || !kind.can_sync());
    }
    // What is still on the way.
    let mut asked = 0;
    let patience = Duration::from_millis(300);
    while answers.goaway.is_none()
        && matches!(timeout(patience, read(&mut frames, &mut reader, &mut answers, &mut asked)).await, Ok(true))
    {}
    let is_cut = answers.goaway.is_some() || !is_open;
    Starter::new().tell(json!({
        "is_cut": is_cut, "units": sent, "ms": began.elapsed().as_secs_f64() * 1e3,
        "goaway": answers.goaway.map(|(code, _)| code), "last": answers.goaway.map(|(_, last)| last),
        "reset": answers.reset, "resets": answers.resets, "heads": answers.heads,
        // 0x88 is `:status: 200` in HPACK's table; whatever else begins a head is another status.
        "is_answered": answers.head.map(|first| first == 0x88),
    }));
    Ok(())
}

/// Reads until the edge has come as far as we, or to the end: then false.
async fn read(frames: &mut Reader, reader: &mut ReadHalf<Stream>, answers: &mut Answers, asked: &mut u32) -> bool {
    while let Some(said) = frames.next(reader).await {
        match said {
            Said::Synced => return true,
            Said::Goaway { code, last } => answers.goaway = Some((code, last)),
            Said::Reset(code) => {
                answers.reset = Some(code);
                answers.resets += 1;
            }
            Said::Head(first) => {
                answers.head = Some(first);
                answers.heads += 1;
            }
            Said::Asked => *asked += 1,
            Said::Other => {}
        }
    }
    false
}
