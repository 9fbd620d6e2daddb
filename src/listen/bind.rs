//! Sockets to listen on: bound here, or adopted from the service manager (systemd socket units).
//!
//! Nothing is accepted here. Options that accepted connections need are set on the listening
//! socket, because they are inherited (tcp(7)): no system call is spent on them for each connection.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::addr::ListenAddr;

/// An address with its sockets, one for each worker.
#[derive(Debug)]
pub struct Opened {
    /// Where it really listens: port 0 has become the port that the system chose.
    pub address: ListenAddr,
    /// One for each worker.
    pub sockets: Vec<Bound>,
    /// True when the service manager keeps the socket open beside us.
    pub is_adopted: bool,
    /// The file of our own unix socket; removed when this is dropped.
    pub file: Option<SocketFile>,
}

/// A listening socket that no runtime knows yet. Non-blocking.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// Another descriptor of the same socket.
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", in_words(source))]
pub struct BindError {
    /// The address, as configured.
    pub address: ListenAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl BindError {
    /// What to do about it.
    pub fn help(&self) -> String {
        match (&self.address, self.source.kind()) {
            (ListenAddr::Tcp(address), io::ErrorKind::PermissionDenied) if address.port() < 1024 => String::from(
                "start it from deploy/tidegate.socket, or grant CAP_NET_BIND_SERVICE as deploy/tidegate.service does; \
                 ports above 1023 need neither",
            ),
            (ListenAddr::Tcp(address), io::ErrorKind::AddrInUse) => format!(
                "another program listens there: `ss -ltnp 'sport = :{}'` names it; stop it, or choose another address in the configuration",
                address.port()
            ),
            (ListenAddr::Tcp(_), io::ErrorKind::AddrNotAvailable) => {
                String::from("no interface of this machine has this address: `ip address` lists those that exist")
            }
            (ListenAddr::Tcp(_), _) => String::from("check the address in the configuration"),
            (ListenAddr::Unix(path), io::ErrorKind::AddrInUse) => {
                format!(
                    "a program answers on {}, or it is no socket: stop the program, or remove the file",
                    path.display()
                )
            }
            (ListenAddr::Unix(path), io::ErrorKind::NotFound) => {
                format!("create its directory: {}", path.parent().unwrap_or(path).display())
            }
            (ListenAddr::Unix(path), _) => {
                format!("this user must be able to write to {}", path.parent().unwrap_or(path).display())
            }
            (ListenAddr::Systemd(name), _) => {
                format!("start it from a socket unit that says FileDescriptorName={name}")
            }
        }
    }
}

/// What the system said, without its error number.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::AddrInUse => "the address is in use".into(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::NotFound => "there is no such directory or socket".into(),
        _ => error.to_string(),
    }
}

/// Listens on an address: with the service manager's sockets where there are some for it, else
/// with our own, one for each worker. Only a name of the service manager can mean several.
///
/// `shared_ports` are ports on which this process listens already: there a second address may
/// overlap one that is about to be closed (`0.0.0.0:443` and `127.0.0.1:443`).
///
/// # Errors
/// When the system refuses.
pub fn open(
    address: &ListenAddr,
    workers: usize,
    adopted: &Adopted,
    shared_ports: &[u16],
) -> Result<Vec<Opened>, BindError> {
    let share = |found: &AdoptedSocket| {
        let sockets = (0..workers).map(|_| found.socket.try_clone()).collect::<io::Result<_>>()?;
        Ok(Opened { address: found.local.clone(), sockets, is_adopted: true, file: None })
    };
    let found = adopted.find(address);
    let opened = match address {
        _ if !found.is_empty() => found.into_iter().map(share).collect(),
        ListenAddr::Tcp(wanted) => {
            open_tcp(*wanted, workers, shared_ports.contains(&wanted.port())).map(|opened| vec![opened])
        }
        ListenAddr::Unix(path) => open_unix(path, workers).map(|opened| vec![opened]),
        ListenAddr::Systemd(_) => Err(io::ErrorKind::NotFound.into()),
    };
    opened.map_err(|source| BindError { address: address.clone(), source })
}

/// True when a wildcard IPv6 address failed only because this machine has no IPv6 at all.
pub fn is_for_lack_of_ipv6(error: &BindError) -> bool {
    let ListenAddr::Tcp(SocketAddr::V6(address)) = &error.address else { return false };
    address.ip().is_unspecified()
        && matches!(
            error.source.raw_os_error().map(Errno::from_raw),
            Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT)
        )
}

/// Binds a TCP address once for each worker.
fn open_tcp(wanted: SocketAddr, workers: usize, is_shared: bool) -> io::Result<Opened> {
    if wanted.port() != 0 && !is_shared {
        // With SO_REUSEPORT a second process of the same user would share the port in silence. A
        // socket without it is refused where anybody listens, and that is the error to show.
        let probe = tcp_socket(wanted, false)?;
        probe.bind(&wanted.into())?;
    }
    let first = tcp_socket(wanted, true)?;
    first.bind(&wanted.into())?;
    // Port 0: the system chose one, and every worker must share it.
    let local = first.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    let mut sockets = vec![first];
    while sockets.len() < workers {
        // Only Linux spreads connections over the sockets of a port; elsewhere all share one.
        if cfg!(any(target_os = "linux", target_os = "android")) {
            let next = tcp_socket(local, true)?;
            next.bind(&local.into())?;
            sockets.push(next);
        } else {
            sockets.push(sockets[0].try_clone()?);
        }
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    let sockets = sockets.into_iter().map(|socket| Bound::Tcp(socket.into())).collect();
    Ok(Opened { address: ListenAddr::Tcp(local), sockets, is_adopted: false, file: None })
}

/// Connections that wait to be accepted; the system cuts it to `net.core.somaxconn` (4096).
const BACKLOG: i32 = 4096;

/// A TCP socket with all options, not bound.
fn tcp_socket(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two addresses here, on every system, whatever its default.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    set_stream_options(&socket)?;
    Ok(socket)
}

/// What every accepted connection inherits.
fn set_stream_options(socket: &Socket) -> io::Result<()> {
    // Small frames of a tunnel must not wait for an acknowledgement (Nagle).
    socket.set_tcp_nodelay(true)?;
    // A peer that went away without a word is noticed after five minutes; a mobile carrier's NAT
    // keeps its entry, because it sees a probe each minute.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(60));
    socket.set_tcp_keepalive(&keepalive.with_retries(4))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        socket.set_tcp_notsent_lowat(UNSENT)?;
    }
    Ok(())
}

/// How much may wait in the kernel beyond what is on its way. 128 KiB, our choice: a slow client's
/// queue would grow to megabytes, and what is said last (a tunnel's 1001) would come seconds late.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 128 << 10;

/// How long sent bytes may stay unacknowledged: as long as the keep-alive probes need to give up,
/// so that a busy dead peer and an idle dead peer are noticed alike (RFC 5482).
#[cfg(any(target_os = "linux", target_os = "android"))]
const USER_TIMEOUT: Duration = Duration::from_secs(300);

/// Binds a unix socket; all workers share it.
fn open_unix(path: &Path, workers: usize) -> io::Result<Opened> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let name = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&name) {
        if error.kind() != io::ErrorKind::AddrInUse || !is_stale(path, &name) {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        socket.bind(&name)?;
    }
    let file = SocketFile::of(path)?;
    socket.listen(BACKLOG)?;
    let first: std::os::unix::net::UnixListener = socket.into();
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(Bound::Unix(first.try_clone()?));
    }
    sockets.push(Bound::Unix(first));
    Ok(Opened { address: ListenAddr::Unix(path.to_owned()), sockets, is_adopted: false, file: Some(file) })
}

/// True when the file is a socket on which nobody listens: a process ended without removing it.
fn is_stale(path: &Path, name: &SockAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = || {
        let asked = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| socket.connect(name));
        asked.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    is_socket && refused()
}

/// The file of a unix socket that we bound. Removed on drop, unless another process has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Remembers which file is ours.
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = identity(&self.path).is_ok_and(|found| found == self.identity);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket's file");
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Sockets that the service manager opened for us. Kept to the end of the process, so that a
/// reload can give an address up and take it again.
#[derive(Debug, Default)]
pub struct Adopted(Vec<AdoptedSocket>);

/// One of them.
#[derive(Debug)]
struct AdoptedSocket {
    name: Option<String>,
    local: ListenAddr,
    socket: Bound,
}

impl Adopted {
    /// Takes what the environment offers (sd_listen_fds(3)) and removes the offer from it. Call it
    /// before any thread exists.
    ///
    /// # Errors
    /// When a descriptor is offered that is no listening stream socket.
    pub fn from_env() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(|name| Some(name.to_owned()).filter(|name| !name.is_empty()));
        let mut offered = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..offered.len() {
            let name = names.next().flatten();
            let socket = match offered.take_tcp_listener(index) {
                Ok(Some(listener)) => Bound::Tcp(listener),
                Ok(None) => continue,
                Err(_) => match offered.take_unix_listener(index)? {
                    Some(listener) => Bound::Unix(listener),
                    None => continue,
                },
            };
            sockets.push(AdoptedSocket::new(name, socket)?);
        }
        Ok(Self(sockets))
    }

    /// The sockets that serve an address: by name, or by where they listen.
    fn find(&self, address: &ListenAddr) -> Vec<&AdoptedSocket> {
        match address {
            // systemd.socket(5): all sockets of one unit have one name.
            ListenAddr::Systemd(wanted) => {
                self.0.iter().filter(|socket| socket.name.as_deref() == Some(&**wanted)).collect()
            }
            ListenAddr::Tcp(_) | ListenAddr::Unix(_) => {
                let exact = self.0.iter().find(|socket| socket.local == *address);
                exact.or_else(|| self.dual_stack(address)).into_iter().collect()
            }
        }
    }

    /// A `[::]` socket that takes IPv4 too, which is what a socket unit makes by default: it also
    /// serves `0.0.0.0` with its port.
    fn dual_stack(&self, address: &ListenAddr) -> Option<&AdoptedSocket> {
        let ListenAddr::Tcp(SocketAddr::V4(wanted)) = address else { return None };
        if !wanted.ip().is_unspecified() {
            return None;
        }
        self.0.iter().find(|socket| match (&socket.local, &socket.socket) {
            (ListenAddr::Tcp(SocketAddr::V6(local)), Bound::Tcp(listener)) => {
                local.ip().is_unspecified()
                    && local.port() == wanted.port()
                    && SockRef::from(listener).only_v6().is_ok_and(|only| !only)
            }
            (ListenAddr::Tcp(_) | ListenAddr::Unix(_) | ListenAddr::Systemd(_), _) => false,
        })
    }

    /// What was offered and serves none of these addresses.
    pub fn unused(&self, wanted: &[ListenAddr]) -> Vec<String> {
        let used: Vec<_> = wanted.iter().flat_map(|address| self.find(address)).map(|socket| &socket.local).collect();
        let unused = self.0.iter().filter(|socket| !used.contains(&&socket.local));
        unused.map(|socket| socket.local.to_string()).collect()
    }
}

impl AdoptedSocket {
    /// Prepares a socket that somebody else has bound.
    fn new(name: Option<String>, socket: Bound) -> io::Result<Self> {
        let local = match &socket {
            Bound::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                set_stream_options(&SockRef::from(listener))?;
                ListenAddr::Tcp(listener.local_addr()?)
            }
            Bound::Unix(listener) => {
                listener.set_nonblocking(true)?;
                let local = listener.local_addr()?;
                ListenAddr::Unix(local.as_pathname().map(Path::to_owned).unwrap_or_default())
            }
        };
        Ok(Self { name, local, socket })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    fn loopback() -> ListenAddr {
        ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    fn tcp(address: &ListenAddr) -> SocketAddr {
        let ListenAddr::Tcp(address) = address else { unreachable!("no TCP address: {address}") };
        *address
    }

    /// What opens as exactly one.
    fn open_one(address: &ListenAddr, workers: usize, adopted: &Adopted, shared: &[u16]) -> Result<Opened, BindError> {
        let mut all = open(address, workers, adopted, shared)?;
        assert_eq!(all.len(), 1);
        Ok(all.remove(0))
    }

    #[test]
    fn workers_share_the_port_that_the_system_chose() {
        let opened = open_one(&loopback(), 3, &Adopted::default(), &[]).expect("loopback can be bound");
        assert_eq!(opened.sockets.len(), 3);
        assert_ne!(tcp(&opened.address).port(), 0);
        for socket in &opened.sockets {
            let Bound::Tcp(listener) = socket else { unreachable!("a TCP address") };
            assert_eq!(listener.local_addr().expect("bound"), tcp(&opened.address));
        }
    }

    #[test]
    fn a_port_in_use_is_an_error_with_its_remedy() {
        let taken = open_one(&loopback(), 2, &Adopted::default(), &[]).expect("loopback can be bound");
        let error = open_one(&taken.address, 2, &Adopted::default(), &[]).expect_err("it is in use");
        let port = tcp(&taken.address).port();
        assert_eq!(error.to_string(), format!("cannot listen on 127.0.0.1:{port}: the address is in use"));
        assert!(error.help().contains(&format!("ss -ltnp 'sport = :{port}'")), "{}", error.help());
        let any = ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        assert!(open_one(&any, 2, &Adopted::default(), &[]).is_err());
        open_one(&any, 2, &Adopted::default(), &[port]).expect("our own port may be overlapped while it is replaced");
    }

    #[test]
    fn accepted_connections_inherit_their_options() {
        let opened = open_one(&loopback(), 1, &Adopted::default(), &[]).expect("loopback can be bound");
        let Some(Bound::Tcp(listener)) = opened.sockets.first() else { unreachable!("a TCP address") };
        listener.set_nonblocking(false).expect("an open socket");
        let _client = TcpStream::connect(tcp(&opened.address)).expect("it listens");
        let (stream, _) = listener.accept().expect("one connection waits");
        let stream = SockRef::from(&stream);
        assert!(stream.tcp_nodelay().expect("a socket option"));
        assert!(stream.keepalive().expect("a socket option"));
        #[cfg(target_os = "linux")]
        assert_eq!(stream.tcp_user_timeout().expect("a socket option"), Some(USER_TIMEOUT));
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("edge.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a new path"));
        assert!(path.exists(), "the file outlives its socket");
        let address = ListenAddr::Unix(path.clone());
        let opened = open_one(&address, 2, &Adopted::default(), &[]).expect("nobody answers there");
        let error = open_one(&address, 1, &Adopted::default(), &[]).expect_err("we answer there");
        assert!(error.help().contains("a program answers"), "{}", error.help());
        drop(opened);
        assert!(!path.exists(), "our own file goes with the socket");
        std::fs::write(&path, "not a socket").expect("a writable directory");
        open_one(&address, 1, &Adopted::default(), &[]).expect_err("a file is not ours to remove");
        assert!(path.exists());
    }

    #[test]
    fn an_adopted_socket_serves_its_address_and_its_name() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback can be bound");
        let local = ListenAddr::Tcp(listener.local_addr().expect("bound"));
        let socket = AdoptedSocket::new(Some("https".into()), Bound::Tcp(listener)).expect("a listening socket");
        let adopted = Adopted(vec![socket]);
        assert_eq!(adopted.unused(&[]), [local.to_string()]);
        for address in [local.clone(), ListenAddr::Systemd("https".into())] {
            let opened = open_one(&address, 2, &adopted, &[]).expect("it was adopted");
            assert!(opened.is_adopted);
            assert_eq!((&opened.address, opened.sockets.len()), (&local, 2));
            assert!(adopted.unused(&[address]).is_empty());
        }
        let error = open_one(&ListenAddr::Systemd("http".into()), 1, &adopted, &[]).expect_err("no such name");
        assert!(error.help().contains("FileDescriptorName=http"), "{}", error.help());
        let mut client = TcpStream::connect(tcp(&local)).expect("it listens");
        drop(adopted);
        assert!(client.read(&mut [0]).is_err(), "the last descriptor is closed, so the queue is reset");
    }

    #[test]
    fn a_low_port_without_permission_names_the_ways_out() {
        let error = BindError {
            address: ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 443))),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert_eq!(error.to_string(), "cannot listen on 0.0.0.0:443: permission denied");
        assert!(error.help().contains("CAP_NET_BIND_SERVICE"));
    }
}
