//! One question to one server of the DNS, by UDP and where that is too small by TCP (RFC 1035 4.2, RFC 7766).
//!
//! What a stranger's zone says decides how many servers are asked and how much they answer. So the sockets that are
//! open at once are counted for the whole process, and of an answer no more is kept than anybody needs.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// One question to one server. Our choice: a server on the other side of the world that has to ask others first.
const DEADLINE: Duration = Duration::from_secs(3);
/// Sockets of this process that are open at once. Our choice: many systems allow a process 1024 descriptors, which are
/// for clients, and a zone of a stranger can name more servers than that. Four zones at once find room among these.
const SOCKETS: usize = 16;
/// Records that are kept of each section of an answer. Our choice: more than an order has names, each with a value.
pub(super) const MOST_RECORDS: usize = 256;
/// A datagram may be lost: it is sent again after this while.
const RESEND: Duration = Duration::from_secs(1);

/// Why one server is of no use for one question.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It was not asked: too many others were.
    #[error("not asked within {} s, because too many servers were asked at once", DEADLINE.as_secs())]
    Busy,
    /// It does not answer.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Silent,
    /// It cannot be reached, or breaks off.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// It answers with an error.
    #[error("it answers {}", code_name(*.0))]
    Code(ResponseCode),
    /// The question cannot be written.
    #[error("{0}")]
    Unspeakable(#[from] hickory_proto::ProtoError),
    /// What it says is not DNS.
    #[error("its answer cannot be read: {0}")]
    Garbled(#[from] hickory_proto::serialize::binary::DecodeError),
}

/// One permit for each socket, for the whole process.
#[cfg(not(test))]
fn sockets() -> &'static Semaphore {
    static OPEN: Semaphore = Semaphore::const_new(SOCKETS);
    &OPEN
}

/// As in the program, but each test has its own: they must not wait for one another.
#[cfg(test)]
fn sockets() -> &'static Semaphore {
    thread_local! { static OPEN: &'static Semaphore = Box::leak(Box::new(Semaphore::new(SOCKETS))); }
    OPEN.with(|open| *open)
}

/// Waits until a socket may be opened.
async fn turn() -> io::Result<SemaphorePermit<'static>> {
    sockets().acquire().await.map_err(io::Error::other)
}

/// Asks one server one question. That there is no such name or record is an answer. Of each section no more than
/// 256 records are kept, and none of the additional ones, which nobody reads.
///
/// # Errors
/// When there is no answer within 3 s, be it because others are asked, or one that is an error.
pub async fn ask(server: SocketAddr, name: &Name, kind: RecordType, recurse: bool) -> Result<Message, Fault> {
    let mut query = Message::query();
    query.metadata.recursion_desired = recurse;
    query.add_query(Query::query(name.clone(), kind));
    let bytes = query.to_vec()?;
    let end = Instant::now() + DEADLINE;
    // For the sockets of both protocols: there is one at a time.
    let Ok(Ok(_turn)) = timeout_at(end, turn()).await else { return Err(Fault::Busy) };
    // Those who give up at the end make way for others, whose end it is, too.
    if Instant::now() >= end {
        return Err(Fault::Busy);
    }
    let exchange = async {
        let answer = by_udp(server, &bytes, &query).await?;
        // Without EDNS, our choice: what we ask for is small, old servers stumble over it, and what is cut off
        // comes whole over TCP.
        if answer.truncation { Ok(Message::from_vec(&exchange_by_tcp(server, &bytes).await?)?) } else { Ok(answer) }
    };
    let mut answer = timeout_at(end, exchange).await.unwrap_or(Err(Fault::Silent))?;
    answer.answers.truncate(MOST_RECORDS);
    answer.authorities.truncate(MOST_RECORDS);
    answer.additionals = Vec::new();
    answer.answers.shrink_to_fit();
    answer.authorities.shrink_to_fit();
    match answer.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
        code => Err(Fault::Code(code)),
    }
}

async fn by_udp(server: SocketAddr, bytes: &[u8], query: &Message) -> Result<Message, Fault> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port of its own for each question, chosen by the system: a forger would have to guess it (RFC 5452 9.2).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut room = vec![0; 4096];
    loop {
        socket.send(bytes).await?;
        let again = Instant::now() + RESEND;
        while let Ok(length) = timeout_at(again, socket.recv(&mut room)).await {
            match Message::from_vec(&room[..length?]) {
                Ok(answer) if is_answer(&answer, query) => return Ok(answer),
                // RFC 5452 9.1: not to our question. The true answer may still come.
                _ => {}
            }
        }
    }
}

/// One message there and one back over TCP, as soon as a socket may be opened. The caller has a deadline.
pub(super) async fn by_tcp(server: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let _turn = turn().await?;
    exchange_by_tcp(server, bytes).await
}

/// RFC 7766. An answer has at most 64 KiB, by the protocol.
async fn exchange_by_tcp(server: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // RFC 7766 8: length and message in one segment.
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// RFC 5452 9.1: the same number and the same question.
fn is_answer(answer: &Message, query: &Message) -> bool {
    answer.id == query.id && answer.message_type == MessageType::Response && answer.queries == query.queries
}

/// The mnemonic of a response code, as `dig` prints it (RFC 6895 2.3).
pub fn code_name(code: ResponseCode) -> String {
    match code {
        ResponseCode::Unknown(number) => format!("RCODE{number}"),
        code => format!("{code:?}").to_uppercase(),
    }
}
