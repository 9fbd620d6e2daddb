//! The upstream of the speed comparison: lean, one thread, and the same for every subject.
//!
//! HTTP/1.1 with keep-alive and no limit of idleness. `GET /` gives a small JSON body, `/bytes/N` a body of
//! N bytes, `/head` the request head as it came, `/stats` what was counted; a POST is read whole and
//! answered with its size; an upgrade becomes a WebSocket (RFC 6455) that sends each message back as one
//! frame, after the whole of it has come.
//!
//! It prints `listening on ADDRESS` and runs until it is killed.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bytes::{Buf as _, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

mod bodies;

use bodies::{Follower, PERIOD, SMALL};

/// The usual fields of an answer.
const FIELDS: &str = "Content-Type: application/json; charset=utf-8\r\n\
    Cache-Control: no-store\r\n\
    Vary: Accept-Encoding\r\n\
    ETag: \"33a64df5514\"\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
/// Largest head and largest frame: above it the peer is broken.
const MOST_HEAD: usize = 64 << 10;
const MOST_FRAME: u64 = 64 << 20;
/// How much of a large body is written or read at once: whole periods, so that each piece begins where the
/// last one ended.
const PIECE: usize = 4 * PERIOD;

/// Counts of the whole process.
#[derive(Default)]
struct Counts {
    accepted: Cell<u64>,
    open: Cell<u64>,
    requests: Cell<u64>,
}

/// What all connections share.
struct Shared {
    counts: Counts,
    small: Vec<u8>,
    pattern: Vec<u8>,
}

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout, reason = "whoever starts it waits for the line")]
async fn main() -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    // Room for thousands of tunnels that are opened at once.
    let listener = socket.listen(16 << 10)?;
    println!("listening on {}", listener.local_addr()?);
    let small = answer(SMALL, FIELDS);
    let shared = Rc::new(Shared { counts: Counts::default(), small, pattern: bodies::periods(PIECE / PERIOD + 1) });
    LocalSet::new().run_until(accept(listener, shared)).await
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let shared = Rc::clone(&shared);
        spawn_local(async move {
            let counts = &shared.counts;
            counts.accepted.set(counts.accepted.get() + 1);
            counts.open.set(counts.open.get() + 1);
            let mut connection = Connection { stream, buffer: BytesMut::new(), shared: Rc::clone(&shared) };
            // A proxy may drop a connection at any time: nothing to tell anybody.
            let _ = connection.serve().await;
            counts.open.set(counts.open.get() - 1);
        });
    }
}

/// A whole answer with a body.
fn answer(body: &str, fields: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a request asks for.
enum Ask {
    Small,
    Bytes(u64),
    Head,
    Stats,
    Sink(u64),
    Upgrade(String),
    Wrong(&'static str),
}

struct Connection {
    stream: TcpStream,
    /// What came and was not looked at yet.
    buffer: BytesMut,
    shared: Rc<Shared>,
}

impl Connection {
    async fn serve(&mut self) -> io::Result<()> {
        while let Some(length) = self.head().await? {
            self.shared.counts.requests.set(self.shared.counts.requests.get() + 1);
            let head = self.buffer.split_to(length);
            match ask(&head) {
                Ask::Small => self.stream.write_all(&self.shared.small).await?,
                Ask::Bytes(count) => self.give(count).await?,
                Ask::Head => self.say(&String::from_utf8_lossy(&head)).await?,
                Ask::Stats => self.say(&self.stats()).await?,
                Ask::Sink(count) => self.sink(count).await?,
                Ask::Upgrade(key) => return self.echo(&key).await,
                Ask::Wrong(why) => {
                    let text = format!("HTTP/1.1 400 {why}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    return self.stream.write_all(text.as_bytes()).await;
                }
            }
        }
        Ok(())
    }

    /// Waits for a whole head; its length, or nothing at the end of the connection.
    async fn head(&mut self) -> io::Result<Option<usize>> {
        let mut seen = 0_usize;
        loop {
            let from = seen.saturating_sub(3);
            if let Some(at) = memmem::find(&self.buffer[from..], b"\r\n\r\n") {
                return Ok(Some(from + at + 4));
            }
            seen = self.buffer.len();
            if seen > MOST_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.buffer.capacity() - seen < 1024 {
                self.buffer.reserve(4096);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(&answer(text, FIELDS)).await
    }

    fn stats(&self) -> String {
        let Counts { accepted, open, requests } = &self.shared.counts;
        format!(r#"{{"accepted":{},"open":{},"requests":{}}}"#, accepted.get(), open.get(), requests.get())
    }

    /// A large body.
    async fn give(&mut self, count: u64) -> io::Result<()> {
        let fields = format!("Content-Type: application/octet-stream\r\nContent-Length: {count}\r\n\r\n");
        self.stream.write_all(format!("HTTP/1.1 200 OK\r\n{fields}").as_bytes()).await?;
        let mut left = count;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            self.stream.write_all(&self.shared.pattern[..piece]).await?;
            left -= piece as u64;
        }
        Ok(())
    }

    /// Reads a body; says its size, and whether it was the pattern.
    async fn sink(&mut self, count: u64) -> io::Result<()> {
        let shared = Rc::clone(&self.shared);
        let mut follower = Follower::new(&shared.pattern);
        let mut is_whole = true;
        let mut piece = vec![0; PIECE];
        while follower.offset() < count {
            let left = usize::try_from(count - follower.offset()).unwrap_or(usize::MAX);
            if self.buffer.is_empty() {
                let room = left.min(PIECE);
                let size = self.stream.read(&mut piece[..room]).await?;
                if size == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                is_whole &= follower.take(&piece[..size]);
            } else {
                // What came with the head.
                let size = left.min(self.buffer.len()).min(PIECE);
                is_whole &= follower.take(&self.buffer[..size]);
                self.buffer.advance(size);
            }
        }
        self.say(&format!(r#"{{"bytes":{count},"is_pattern":{is_whole}}}"#)).await
    }

    async fn echo(&mut self, key: &str) -> io::Result<()> {
        let accept = derive_accept_key(key.as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes()).await?;
        while let Some(is_last) = self.frame().await? {
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Takes one frame and sends it back without its mask; true after a close frame, nothing at the end.
    async fn frame(&mut self) -> io::Result<Option<bool>> {
        if !self.fill(2).await? {
            return Ok(None);
        }
        let short = self.buffer[1] & 0x7F;
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        // RFC 6455 5.1: a frame without a mask ends the connection; 5.2: so does a reserved bit.
        if self.buffer[1] & 0x80 == 0 || self.buffer[0] & 0x70 != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let head = 2 + extended + 4;
        if !self.fill(head).await? {
            return Ok(None);
        }
        let length = self.buffer[2..2 + extended].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let length = if extended == 0 { u64::from(short) } else { length };
        if length > MOST_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let whole = head + usize::try_from(length).unwrap_or(usize::MAX);
        if !self.fill(whole).await? {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(whole);
        let mut mask = [0; 4];
        mask.copy_from_slice(&frame[head - 4..head]);
        unmask(&mut frame[head..], mask);
        // The answer's head is four bytes shorter and stands right before the payload.
        frame.copy_within(..head - 4, 4);
        frame[5] &= 0x7F;
        let opcode = frame[4] & 0x0F;
        if opcode == 9 {
            frame[4] = frame[4] & 0xF0 | 10;
        }
        // A pong needs no answer.
        if opcode != 10 {
            self.stream.write_all(&frame[4..]).await?;
        }
        Ok(Some(opcode == 8))
    }

    /// Reads until `size` bytes are there; false when the connection ends before.
    async fn fill(&mut self, size: usize) -> io::Result<bool> {
        while self.buffer.len() < size {
            let missing = size - self.buffer.len();
            self.buffer.reserve(missing.max(1024));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Applies a mask (RFC 6455 5.3), eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Reads a head.
fn ask(head: &[u8]) -> Ask {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    if !matches!(request.parse(head), Ok(httparse::Status::Complete(_))) {
        return Ask::Wrong("not a head");
    }
    let field = |name: &str| {
        let found = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    if field("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return field("sec-websocket-key").map_or(Ask::Wrong("no key"), |key| Ask::Upgrade(key.to_owned()));
    }
    if request.method == Some("POST") {
        let length = field("content-length").and_then(|value| value.parse().ok());
        return length.map_or(Ask::Wrong("no length"), Ask::Sink);
    }
    match request.path.unwrap_or("") {
        "/head" => Ask::Head,
        "/stats" => Ask::Stats,
        path => match path.strip_prefix("/bytes/") {
            Some(count) => count.parse().map_or(Ask::Wrong("not a number"), Ask::Bytes),
            None => Ask::Small,
        },
    }
}
