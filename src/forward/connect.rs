//! Opening a connection to an endpoint: TCP, TLS or a unix socket, then HTTP/1.1 on it.
//!
//! Names are resolved at each connection, so that a container with a new address is found.
//! Addresses of one name are tried in the resolver's order under one deadline, which they share.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::link::Link;
use crate::refusal::Failure;
use crate::site::upstream::{Endpoint, EndpointAddr};

/// A byte stream to an endpoint.
#[derive(Debug)]
pub enum EndpointStream {
    /// Cleartext.
    Tcp(TcpStream),
    /// TLS; boxed, because it is ten times as large and rare.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// A unix socket.
    Unix(UnixStream),
}

/// Why no connection was opened.
#[derive(Debug)]
pub struct DialError {
    /// The kind, for the answer.
    pub failure: Failure,
    /// In words, for the log and for near clients.
    pub detail: Box<str>,
}

/// Opens a connection within `limit`, TLS included.
///
/// # Errors
/// When the endpoint cannot be reached, or TLS with it fails.
pub async fn dial(
    endpoint: &Endpoint,
    tls: Option<Arc<rustls::ClientConfig>>,
    limit: Duration,
) -> Result<Link, DialError> {
    reach(endpoint, tls, limit).await.map(Link::new)
}

/// As `dial`, for whoever speaks on the stream itself.
///
/// # Errors
/// As those of `dial`.
pub async fn reach(
    endpoint: &Endpoint,
    tls: Option<Arc<rustls::ClientConfig>>,
    limit: Duration,
) -> Result<EndpointStream, DialError> {
    let deadline = Instant::now() + limit;
    timeout_at(deadline, open(endpoint, tls, deadline)).await.unwrap_or_else(|_| {
        let detail = format!("{} did not accept a connection within {} s", endpoint.label, limit.as_secs_f32());
        Err(DialError { failure: Failure::ConnectTimeout, detail: detail.into() })
    })
}

async fn open(
    endpoint: &Endpoint,
    tls: Option<Arc<rustls::ClientConfig>>,
    deadline: Instant,
) -> Result<EndpointStream, DialError> {
    let stream = match &endpoint.address {
        EndpointAddr::Ip(address) => connect(*address).await.map_err(|error| DialError::of(endpoint, &error))?,
        EndpointAddr::Name(name, port) => connect_name(endpoint, name, *port, deadline).await?,
        EndpointAddr::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| DialError::of(endpoint, &error))?;
            return Ok(EndpointStream::Unix(stream));
        }
    };
    let (Some(policy), Some(config)) = (&endpoint.tls, tls) else { return Ok(EndpointStream::Tcp(stream)) };
    let untrusted =
        |why: String| DialError { failure: Failure::Tls, detail: format!("TLS with {}: {why}", endpoint.label).into() };
    let name = ServerName::try_from(policy.server_name.to_string()).map_err(|error| untrusted(error.to_string()))?;
    let stream =
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| untrusted(error.to_string()))?;
    Ok(EndpointStream::Tls(Box::new(stream)))
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // The gateway's first frame after an upgrade must not wait for Nagle.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_name(endpoint: &Endpoint, name: &str, port: u16, deadline: Instant) -> Result<TcpStream, DialError> {
    let dns = |why: &str| DialError {
        failure: Failure::Dns,
        detail: format!("the name {name:?} has no address: {why}").into(),
    };
    let addresses: Vec<_> = lookup_host((name, port)).await.map_err(|error| dns(&error.to_string()))?.collect();
    let mut last = None;
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        // An address that says nothing takes its share of the time, and not that of the others.
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        match timeout_at(now + share, connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last.map_or_else(|| dns("the answer is empty"), |error| DialError::of(endpoint, &error)))
}

impl DialError {
    fn of(endpoint: &Endpoint, error: &io::Error) -> Self {
        let label = &endpoint.label;
        let (failure, detail) = match error.kind() {
            io::ErrorKind::ConnectionRefused => (Failure::Refused, format!("nothing listens on {label}")),
            io::ErrorKind::NotFound => (Failure::Refused, format!("there is no socket {label}")),
            io::ErrorKind::TimedOut => (Failure::ConnectTimeout, format!("{label} did not accept a connection")),
            io::ErrorKind::ConnectionReset => (Failure::Reset, format!("{label} reset the connection")),
            _ => (Failure::Unroutable, format!("{label} cannot be reached: {error}")),
        };
        Self { failure, detail: detail.into() }
    }
}

impl EndpointStream {
    /// Our source port.
    pub(super) fn local_port(&self) -> Option<u16> {
        let tcp = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
            Self::Unix(_) => return None,
        };
        tcp.local_addr().ok().map(|address| address.port())
    }
}

/// Calls the same method of whichever stream this is.
macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            EndpointStream::Tcp($inner) => $call,
            EndpointStream::Tls($inner) => $call,
            EndpointStream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for EndpointStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for EndpointStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // One slice is the usual case, and a plain write the cheaper call.
        if let [bytes] = slices {
            return self.poll_write(cx, bytes);
        }
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
