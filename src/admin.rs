//! The admin endpoint: status, metrics and health of the edge, for this machine.
//!
//! Served on the runtime of control, never by a worker: nobody who looks slows a request. It only
//! says, it changes nothing. Where it is open is decided here; what it says in `page` and `status`.

pub mod facts;
mod page;
pub mod reloads;
mod serve;
mod status;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::addr::ListenAddr;
use crate::listen::bind::{self, Adopted, BindError, Opened, SocketFile};
use crate::site::SiteTable;
use crate::site::policy::{AdminListen, AdminPolicy};
use crate::storage;
use facts::Facts;
use serve::Scope;

/// The open addresses.
#[derive(Debug, Default)]
pub struct Admin(Vec<Open>);

/// What a configuration wants.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    policy: AdminPolicy,
    /// Where the usual place may be.
    storage: PathBuf,
}

/// An address on which it is served. Dropped, it is closed.
#[derive(Debug)]
struct Open {
    key: Key,
    serving: JoinHandle<()>,
    /// Removes the socket's file.
    _file: Option<SocketFile>,
}

/// What makes an address the same one across reloads.
type Key = (Place, Scope);

/// Where something is served.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In the usual place, below this storage.
    Usual(PathBuf),
    /// There.
    At(ListenAddr),
}

impl Drop for Open {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Addresses that were opened for a configuration, and are not served yet.
#[derive(Debug)]
pub struct Prepared {
    wanted: Wanted,
    new: Vec<(Key, Opened)>,
}

impl Admin {
    /// Opens what a configuration wants and is not open yet. Nothing is in force. The usual place is no reason to
    /// fail: without it there is a warning.
    ///
    /// # Errors
    /// When an address of the configuration cannot be opened.
    pub fn prepare(&self, table: &SiteTable) -> Result<Prepared, Vec<BindError>> {
        let wanted = Wanted { policy: table.edge.admin.clone(), storage: table.edge.storage.clone() };
        let (mut new, mut faults) = (Vec::new(), Vec::new());
        for key in wanted.keys() {
            if self.0.iter().any(|open| open.key == key) {
                continue;
            }
            match &key.0 {
                Place::Usual(storage) => match open_usual(storage) {
                    Some(opened) => new.push((key, opened)),
                    None => tracing::warn!(
                        event = "admin",
                        storage = %storage.display(),
                        "no place for the admin socket: `tidegate status` will find nothing; name one in admin.listen"
                    ),
                },
                Place::At(address) => match open(address) {
                    Ok(opened) => new.push((key, opened)),
                    Err(fault) => faults.push(fault),
                },
            }
        }
        if faults.is_empty() { Ok(Prepared { wanted, new }) } else { Err(faults) }
    }

    /// Serves what was prepared, and closes what is wanted no more.
    pub fn put_in_force(&mut self, prepared: Prepared, facts: &Arc<Facts>, is_quiet: bool) {
        let Prepared { wanted, new } = prepared;
        let keys = wanted.keys();
        self.0.retain(|open| keys.contains(&open.key));
        for (key, Opened { address, mut sockets, file, .. }) in new {
            // One socket is opened for an address here.
            let Some(socket) = sockets.pop() else { continue };
            match serve::start(socket, key.1, &address, Arc::clone(facts)) {
                Ok(serving) => {
                    if !is_quiet {
                        tracing::info!(event = "listening", %address, role = key.1.word(), "listening");
                    }
                    self.0.push(Open { key, serving, _file: file });
                }
                Err(error) => tracing::error!(event = "admin", %address, %error, "cannot serve the admin endpoint"),
            }
        }
        facts.metrics.set_timed(!self.0.is_empty());
    }
}

impl Wanted {
    fn keys(&self) -> Vec<Key> {
        let listen = match &self.policy.listen {
            AdminListen::Usual => Some(Place::Usual(self.storage.clone())),
            AdminListen::At(address) => Some(Place::At(address.clone())),
            AdminListen::Off => None,
        };
        let metrics = self.policy.metrics.iter().map(|address| (Place::At(ListenAddr::Tcp(*address)), Scope::Metrics));
        listen.map(|place| (place, Scope::All)).into_iter().chain(metrics).collect()
    }
}

/// Opens one address.
fn open(address: &ListenAddr) -> Result<Opened, BindError> {
    let mut opened = bind::open(address, 1, &Adopted::default(), &[])?;
    let fault = |source| BindError { address: address.clone(), source };
    let opened = opened.pop().ok_or_else(|| fault(io::ErrorKind::NotFound.into()))?;
    if let ListenAddr::Unix(path) = &opened.address {
        share(path).map_err(fault)?;
    }
    Ok(opened)
}

/// For the service's user and group: who may ask is who may write to the file (unix(7)).
fn share(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
}

/// The name of the socket in its directory.
const SOCKET: &str = "admin.sock";
/// Where services keep what lives as long as they do.
const RUNTIME: &str = "/run/tidegate";

/// Opens the first of the usual places that can be opened: not where another tidegate answers.
fn open_usual(storage: &Path) -> Option<Opened> {
    let runtime = runtime_directory().filter(|directory| directory.is_dir()).map(|directory| directory.join(SOCKET));
    if let Some(opened) = runtime.and_then(|path| open(&ListenAddr::Unix(path)).ok()) {
        return Some(opened);
    }
    storage::private_directory(storage, storage).ok()?;
    open(&ListenAddr::Unix(storage.join(SOCKET))).ok()
}

/// The service manager's directory for us, else the one that is usual.
fn runtime_directory() -> Option<PathBuf> {
    let given = std::env::var_os("RUNTIME_DIRECTORY").filter(|value| !value.is_empty());
    // systemd may give several directories, separated by colons; the first is ours.
    let first = given.map(|value| PathBuf::from(value.to_string_lossy().split(':').next().unwrap_or_default()));
    first.or_else(|| Some(PathBuf::from(RUNTIME)))
}

/// Where somebody who asks should look, best first. The own storage before the service's directory: whoever names
/// a configuration means the edge that runs with it.
pub fn places(policy: &AdminPolicy, storage: &Path) -> Vec<ListenAddr> {
    match &policy.listen {
        AdminListen::Usual => {
            vec![ListenAddr::Unix(storage.join(SOCKET)), ListenAddr::Unix(Path::new(RUNTIME).join(SOCKET))]
        }
        AdminListen::At(address) => vec![address.clone()],
        AdminListen::Off => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_a_configuration_means_its_own_edge() {
        let usual = places(&AdminPolicy::default(), Path::new("/home/ops/tidegate"));
        let shown: Vec<String> = usual.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["unix:/home/ops/tidegate/admin.sock", "unix:/run/tidegate/admin.sock"]);
        let off = AdminPolicy { listen: AdminListen::Off, ..AdminPolicy::default() };
        assert!(places(&off, Path::new("/")).is_empty());
    }
}
