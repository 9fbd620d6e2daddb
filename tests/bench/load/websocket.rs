//! WebSockets (RFC 6455): a handshake that is checked, masked frames, and one frame back for each.

use std::time::Instant;

use bytes::Buf as _;
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Amount;
use crate::bodies::{PERIOD, periods};
use crate::http1::{Http1, head};
use crate::meter::{self, Fault};
use crate::tls::{Dialer, Target};

/// One open socket.
pub(crate) struct WebSocket(Http1);

/// A message as it is sent, and as it must come back.
#[derive(Clone)]
pub(crate) struct Message {
    sent: Vec<u8>,
    expected: Vec<u8>,
}

impl Message {
    /// A binary message of this size. The mask is made once: it costs the subject nothing, for a proxy never
    /// takes it off.
    pub(crate) fn new(size: usize) -> Self {
        const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
        let mut payload = periods(size.div_ceil(PERIOD));
        payload.truncate(size);
        let (short, extended) = match size {
            0..126 => (size as u8, Vec::new()),
            126..0x1_0000 => (126, (size as u16).to_be_bytes().to_vec()),
            _ => (127, (size as u64).to_be_bytes().to_vec()),
        };
        let expected = [&[0x82, short][..], &extended, &payload].concat();
        let masked: Vec<u8> = payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        let sent = [&[0x82, 0x80 | short][..], &extended, &MASK, &masked].concat();
        Self { sent, expected }
    }
}

impl WebSocket {
    /// A connection and its upgrade.
    pub(crate) async fn open(dialer: &Dialer, host: &str) -> Result<Self, Fault> {
        let mut http = Http1::new(dialer.open().await?);
        let key = generate_key();
        let fields = format!(
            "Origin: https://{host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        );
        http.send(&head(host, "GET", "/socket", &fields)).await?;
        let answer = http.answer().await?;
        if answer.status != 101 || answer.accept != Some(derive_accept_key(key.as_bytes())) {
            return Err(format!("status {} and not an upgrade", answer.status).into());
        }
        Ok(Self(http))
    }

    /// Sends a message and takes its echo.
    pub(crate) async fn echo(&mut self, message: &Message) -> Result<(), Fault> {
        self.0.send(&message.sent).await?;
        let Http1 { stream, buffer } = &mut self.0;
        let size = message.expected.len();
        while buffer.len() < size {
            // At once what the whole message needs: a growing buffer would be copied.
            buffer.reserve(size - buffer.len());
            if stream.read_buf(buffer).await? == 0 {
                return Err("the socket was closed".into());
            }
        }
        let is_right = buffer[..size] == message.expected[..];
        buffer.advance(size);
        if is_right && buffer.is_empty() { Ok(()) } else { Err("another message came back".into()) }
    }
}

/// Echoes, one at a time on each socket.
pub(crate) async fn echo(target: Target, amount: Amount, bytes: usize) -> Result<(), Fault> {
    let dialer = target.dialer("http/1.1", false)?;
    let message = Message::new(bytes);
    let workers = meter::many(amount.connections, async |_| {
        let mut socket = WebSocket::open(&dialer, &target.host).await?;
        socket.echo(&message).await?;
        Ok(socket)
    })
    .await?;
    meter::work(amount.count, workers, |mut socket, meter| {
        let message = message.clone();
        async move {
            while meter.take() {
                let began = Instant::now();
                socket.echo(&message).await?;
                meter.done(began);
            }
            Ok(socket)
        }
    })
    .await
}
