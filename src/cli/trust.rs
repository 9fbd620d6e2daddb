//! `tidegate trust`: make the clients of this machine believe the local authority, or say how.
//!
//! It does what the present user may do, and prints the exact command for the rest. Running it again
//! does no harm. Nothing is ever removed from a trust store.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tls::TlsError;
use crate::tls::local_ca::LocalCa;

/// Why `trust` could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The authority cannot be opened or made.
    #[error(transparent)]
    Authority(#[from] TlsError),
    /// The file of `--export` cannot be written.
    #[error("cannot write \"{}\": {source}", file.display())]
    Export {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Report(#[source] io::Error),
}

/// Installs the root of the authority under `storage` in the trust stores of this machine, or with
/// `export` writes it to a file. Creates the authority if there is none. What was done and what is
/// left to do is written to `out`.
///
/// # Errors
/// When the authority cannot be opened, or a file or `out` cannot be written. A trust store that
/// cannot be changed is no error: `out` says what to do by hand.
pub fn trust(storage: &Path, export: Option<&Path>, out: &mut dyn Write) -> Result<(), TrustError> {
    let ca = LocalCa::open(storage)?;
    trust_in(&Machine::this(), &ca, export, out)
}

/// The parts of a machine that matter here; tests make their own.
struct Machine {
    is_mac: bool,
    is_root: bool,
    /// The user's directory, for the stores of browsers.
    home: Option<PathBuf>,
    /// The root of the file system, for the store of the system.
    root: PathBuf,
    /// Where programs are looked for.
    path: OsString,
}

/// A system trust store: where it takes certificates from, and what makes it read them.
struct SystemStore {
    directory: &'static str,
    update: &'static [&'static str],
}

/// Debian and its kin, Fedora and its kin, Arch and SUSE.
const SYSTEM_STORES: [SystemStore; 4] = [
    SystemStore { directory: "usr/local/share/ca-certificates", update: &["update-ca-certificates"] },
    SystemStore { directory: "etc/pki/ca-trust/source/anchors", update: &["update-ca-trust", "extract"] },
    SystemStore { directory: "etc/ca-certificates/trust-source/anchors", update: &["update-ca-trust", "extract"] },
    SystemStore { directory: "etc/pki/trust/anchors", update: &["update-ca-certificates"] },
];

/// The file's name in a system store. Debian takes only names that end in `.crt`.
const FILE: &str = "tidegate-local-ca.crt";

fn trust_in(machine: &Machine, ca: &LocalCa, export: Option<&Path>, out: &mut dyn Write) -> Result<(), TrustError> {
    let mut report = Report { out, machine, ca, public_copy: None };
    report.authority().map_err(TrustError::Report)?;
    match export {
        Some(file) => {
            fs::write(file, ca.root_pem()).map_err(|source| TrustError::Export { file: file.to_owned(), source })?;
            report.public_copy = Some(std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
            report.exported(file).map_err(TrustError::Report)?;
        }
        None => {
            report.system().map_err(TrustError::Report)?;
            if !machine.is_mac {
                report.browsers().map_err(TrustError::Report)?;
            }
        }
    }
    report.node_and_others(export.is_some()).map_err(TrustError::Report)
}

/// One run: does a step, writes a line.
struct Report<'a> {
    out: &'a mut dyn Write,
    machine: &'a Machine,
    ca: &'a LocalCa,
    /// A copy of the root that other users can read, once there is one.
    public_copy: Option<PathBuf>,
}

impl Report<'_> {
    fn authority(&mut self) -> io::Result<()> {
        writeln!(self.out, "local authority  {}", self.ca.name())?;
        writeln!(self.out, "root certificate {}", self.ca.root_path().display())?;
        writeln!(self.out, "SHA-256          {}", self.ca.fingerprint_text())
    }

    fn exported(&mut self, file: &Path) -> io::Result<()> {
        writeln!(self.out, "done: the root certificate is in {}", file.display())?;
        writeln!(self.out, "      it is no secret: copy it to the clients and install it there as an authority")
    }

    /// The store that curl, Python, Go and most programs read.
    fn system(&mut self) -> io::Result<()> {
        if self.machine.is_mac {
            return self.keychain();
        }
        let present = |store: &&SystemStore| self.machine.root.join(store.directory).is_dir();
        let Some(store) = SYSTEM_STORES.iter().find(present) else {
            return writeln!(
                self.out,
                "to do: no trust store of the system found: install the root certificate by hand"
            );
        };
        let target = self.machine.root.join(store.directory).join(FILE);
        if fs::read(&target).is_ok_and(|there| there == self.ca.root_pem().as_bytes()) {
            writeln!(self.out, "done: the system trusts it already ({})", target.display())?;
            self.public_copy = Some(target);
            return Ok(());
        }
        let update = store.update.join(" ");
        if !self.machine.is_root {
            writeln!(self.out, "to do: the system's trust store needs root:")?;
            let root = quoted(self.ca.root_path());
            return writeln!(self.out, "      sudo install -m 644 {root} {} && sudo {update}", quoted(&target));
        }
        let written = write_public(&target, self.ca.root_pem()).and_then(|()| {
            self.run(store.update[0], |command| {
                command.args(&store.update[1..]);
            })
        });
        match written {
            Ok(()) => {
                writeln!(self.out, "done: the system trusts it ({})", target.display())?;
                self.public_copy = Some(target);
                Ok(())
            }
            Err(error) => writeln!(self.out, "to do: {update} failed ({error}): run it by hand"),
        }
    }

    fn keychain(&mut self) -> io::Result<()> {
        let Some(home) = &self.machine.home else {
            return writeln!(self.out, "to do: no home directory: open the root certificate in Keychain Access");
        };
        let keychain = home.join("Library/Keychains/login.keychain-db");
        let root = self.ca.root_path();
        let added = self.run("security", |command| {
            command.args(["add-trusted-cert", "-r", "trustRoot", "-k"]).arg(&keychain).arg(root);
        });
        match added {
            Ok(()) => writeln!(self.out, "done: your login keychain trusts it (Safari, Chrome, curl)"),
            Err(error) => {
                writeln!(self.out, "to do: the keychain refused ({error}); run")?;
                let (keychain, root) = (quoted(&keychain), quoted(root));
                writeln!(self.out, "      security add-trusted-cert -r trustRoot -k {keychain} {root}")
            }
        }
    }

    /// Chromium and Firefox on Linux have stores of their own (NSS), one for each profile.
    fn browsers(&mut self) -> io::Result<()> {
        let Some(home) = self.machine.home.clone() else {
            return writeln!(self.out, "to do: no home directory: run this again as the user of the browser");
        };
        let Some(certutil) = self.find("certutil") else {
            writeln!(
                self.out,
                "to do: Chromium and Firefox have stores of their own; install certutil, run this again:"
            )?;
            return writeln!(
                self.out,
                "      Debian: sudo apt install libnss3-tools   Fedora: sudo dnf install nss-tools"
            );
        };
        let shared = home.join(".pki/nssdb");
        if !shared.join("cert9.db").is_file() {
            // Chromium would make it at its first start; made now, it trusts from the first page on.
            let made = fs::create_dir_all(&shared).and_then(|()| {
                run(&certutil, |command| {
                    command.args(["-N", "--empty-password", "-d"]).arg(database(&shared));
                })
            });
            if let Err(error) = made {
                writeln!(self.out, "to do: cannot make {} ({error})", shared.display())?;
            }
        }
        for profile in profiles(&home) {
            let added = run(&certutil, |command| {
                let (name, root) = (self.ca.name(), self.ca.root_path());
                command.args(["-A", "-t", "C,,", "-n", name, "-i"]).arg(root).arg("-d").arg(database(&profile));
            });
            match added {
                Ok(()) => writeln!(self.out, "done: the browser store {} trusts it", profile.display())?,
                Err(error) => writeln!(self.out, "to do: the browser store {} refused ({error})", profile.display())?,
            }
        }
        writeln!(self.out, "      restart the browser if it is running")
    }

    /// Node has a list of its own, and other machines are not reached from here.
    fn node_and_others(&mut self, is_export: bool) -> io::Result<()> {
        let file = self.public_copy.as_deref().unwrap_or(self.ca.root_path());
        writeln!(self.out, "for Node programs, set in their environment:")?;
        writeln!(self.out, "      NODE_EXTRA_CA_CERTS={}", quoted(file))?;
        if is_export {
            return Ok(());
        }
        writeln!(self.out, "for phones, other machines and other users:")?;
        writeln!(self.out, "      tidegate trust --export tidegate-ca.crt, and install that file there as an authority")
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.machine.path).map(|directory| directory.join(program)).find(|file| file.is_file())
    }

    fn run(&self, program: &str, arguments: impl FnOnce(&mut Command)) -> io::Result<()> {
        let found = self.find(program).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not installed"))?;
        run(&found, arguments)
    }
}

impl Machine {
    fn this() -> Self {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        // Debian's users have no sbin in their path, and sudo may have been told to keep it so.
        path.push(":/usr/sbin:/sbin");
        Self {
            is_mac: cfg!(target_os = "macos"),
            is_root: nix::unistd::geteuid().is_root(),
            home: std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from),
            root: PathBuf::from("/"),
            path,
        }
    }
}

/// Runs a program quietly; its last line of complaint becomes the error.
fn run(program: &Path, arguments: impl FnOnce(&mut Command)) -> io::Result<()> {
    let mut command = Command::new(program);
    arguments(&mut command);
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let last = complaint.lines().rev().find(|line| !line.trim().is_empty());
    Err(io::Error::other(last.map_or_else(|| output.status.to_string(), ToOwned::to_owned)))
}

/// The stores of the user's browsers: packaged ones and snaps.
fn profiles(home: &Path) -> Vec<PathBuf> {
    let mut found = vec![home.join(".pki/nssdb"), home.join("snap/chromium/current/.pki/nssdb")];
    for parent in [".mozilla/firefox", ".config/mozilla/firefox", "snap/firefox/common/.mozilla/firefox"] {
        let entries = fs::read_dir(home.join(parent)).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path()));
    }
    found.retain(|profile| profile.join("cert9.db").is_file());
    found.sort();
    found
}

/// certutil's name for a store in the present format.
fn database(profile: &Path) -> OsString {
    let mut name = OsString::from("sql:");
    name.push(profile);
    name
}

/// Writes a certificate that everybody may read, whole or not at all.
fn write_public(file: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut whole = tempfile::NamedTempFile::new_in(directory)?;
    whole.write_all(text.as_bytes())?;
    whole.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    whole.persist(file).map_err(|error| error.error)?;
    Ok(())
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@".contains(&byte);
    if text.bytes().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A machine in a directory. Its `certutil` and `update-ca-certificates` write what they were
    /// asked into a file.
    fn machine(at: &Path, is_root: bool, programs: &[&str]) -> Machine {
        fs::create_dir_all(at.join("usr/local/share/ca-certificates")).expect("a store");
        fs::create_dir_all(at.join("home/.mozilla/firefox/abc.default")).expect("a profile");
        fs::write(at.join("home/.mozilla/firefox/abc.default/cert9.db"), "").expect("a profile");
        fs::create_dir_all(at.join("bin")).expect("a directory");
        for program in programs {
            let file = at.join("bin").join(program);
            let log = at.join("asked");
            // What certutil -N does for us: the database is there afterwards.
            let script = format!(
                "#!/bin/sh\necho {program} \"$@\" >> {log}\ncase $1 in -N) : > {nss}/cert9.db;; esac\n",
                log = log.display(),
                nss = at.join("home/.pki/nssdb").display()
            );
            // Copied by another process: a program that this one has open for writing while another
            // test forks cannot be started (ETXTBSY).
            fs::write(at.join("script"), script).expect("a script");
            let copied = Command::new("/bin/cp").arg(at.join("script")).arg(&file).status();
            assert!(copied.is_ok_and(|status| status.success()));
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a program");
        }
        Machine {
            is_mac: false,
            is_root,
            home: Some(at.join("home")),
            root: at.to_owned(),
            path: at.join("bin").into(),
        }
    }

    fn run_on(machine: &Machine, at: &Path, export: Option<&Path>) -> String {
        let ca = LocalCa::open(&at.join("storage")).expect("an authority");
        let mut out = Vec::new();
        trust_in(machine, &ca, export, &mut out).expect("it runs");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn root_installs_everywhere_and_again_without_harm() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let machine = machine(at, true, &["certutil", "update-ca-certificates"]);
        let text = run_on(&machine, at, None);
        let installed = at.join("usr/local/share/ca-certificates/tidegate-local-ca.crt");
        let ca = LocalCa::open(&at.join("storage")).expect("an authority");
        assert_eq!(fs::read_to_string(&installed).expect("installed"), ca.root_pem());
        assert_eq!(fs::metadata(&installed).expect("installed").permissions().mode() & 0o777, 0o644);
        let asked = fs::read_to_string(at.join("asked")).expect("programs were run");
        assert!(asked.contains("update-ca-certificates"), "{asked}");
        assert!(asked.contains("abc.default"), "{asked}");
        assert!(asked.contains(".pki/nssdb"), "{asked}");
        assert!(text.contains(&ca.fingerprint_text()), "{text}");
        assert!(text.contains(&format!("NODE_EXTRA_CA_CERTS={}", installed.display())), "{text}");
        assert!(!text.contains("to do"), "{text}");
        assert!(run_on(&machine, at, None).contains("trusts it already"));
    }

    #[test]
    fn a_user_is_told_the_exact_commands() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let text = run_on(&machine(at, false, &[]), at, None);
        assert!(text.contains("sudo install -m 644"), "{text}");
        assert!(text.contains("sudo update-ca-certificates"), "{text}");
        assert!(text.contains("libnss3-tools"), "{text}");
        assert!(!at.join("usr/local/share/ca-certificates/tidegate-local-ca.crt").exists());
    }

    #[test]
    fn an_export_is_the_root_and_nothing_is_installed() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let machine = machine(at, true, &["certutil", "update-ca-certificates"]);
        let file = at.join("it's mine.crt");
        let text = run_on(&machine, at, Some(&file));
        let ca = LocalCa::open(&at.join("storage")).expect("an authority");
        assert_eq!(fs::read_to_string(&file).expect("exported"), ca.root_pem());
        assert!(text.contains(r"it'\''s mine.crt'"), "{text}");
        assert!(!at.join("asked").exists());
    }
}
