//! Connections that are opened, used once and then left alone: what idleness costs.
//!
//! stdin says what to do, one line each, and each is answered by a line: `open N` opens further ones and tells
//! how many are open, `check` uses all of them once more, drops those that are lost, and tells how many are left.
//! The end of stdin closes everything.

use crate::http1::{Http1, PATH, head};
use crate::meter::{self, Fault, Starter};
use crate::tls::{Dialer, Target};
use crate::websocket::{Message, WebSocket};

/// Either kind.
enum Held {
    Http(Http1),
    Socket(WebSocket),
}

/// What all of them are asked.
struct Probe {
    host: String,
    request: Vec<u8>,
    message: Message,
}

impl Held {
    async fn open(dialer: &Dialer, is_socket: bool, probe: &Probe) -> Result<Self, Fault> {
        let mut held = if is_socket {
            Self::Socket(WebSocket::open(dialer, &probe.host).await?)
        } else {
            Self::Http(Http1::new(dialer.open().await?))
        };
        held.ask(probe).await?;
        Ok(held)
    }

    async fn ask(&mut self, probe: &Probe) -> Result<(), Fault> {
        match self {
            Self::Http(http) => http.small(&probe.request).await.map(drop),
            Self::Socket(socket) => socket.echo(&probe.message).await,
        }
    }
}

pub(crate) async fn hold(target: Target, is_socket: bool) -> Result<(), Fault> {
    let dialer = target.dialer("http/1.1", false)?;
    let probe = Probe { request: head(&target.host, "GET", PATH, ""), message: Message::new(128), host: target.host };
    let mut starter = Starter::new();
    let mut all = Vec::new();
    starter.tell("ready");
    while let Some(line) = starter.line().await? {
        match line.split_once(' ') {
            Some(("open", count)) => {
                all.extend(meter::many(count.parse()?, |_| Held::open(&dialer, is_socket, &probe)).await?);
            }
            None if line == "check" => {
                let mut left = Vec::with_capacity(all.len());
                for mut held in all {
                    if held.ask(&probe).await.is_ok() {
                        left.push(held);
                    }
                }
                all = left;
            }
            _ => return Err(format!("unknown: {line}").into()),
        }
        starter.tell(all.len());
    }
    Ok(())
}
