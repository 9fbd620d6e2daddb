//! `tidegate certs` as far as it goes without a CA: what is told, to whom, and what root leaves behind.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Edge, Run, SelfSigned, Upstream, run_in, site, site_with};
use crate::terminal::on_a_terminal;

/// A CA that is away, and resolvers that are.
const NO_CA: &str =
    "email = \"ops@example.com\"\n[acme]\ndirectory = \"http://127.0.0.1:1/\"\nresolvers = [\"127.0.0.1:1\"]\n";
/// A user who is neither root nor anybody else.
const SOMEBODY: u32 = 12345;

/// A configuration that stands in a directory of its own, with its storage.
fn house(listen: &str, sites: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let storage = dir.path().join("storage");
    fs::create_dir(&storage).unwrap();
    let top = format!("storage = {:?}\n{NO_CA}[listen]\nhttps = [\"{listen}\"]\nhttp = []\n{sites}", storage);
    fs::write(dir.path().join("tidegate.toml"), top).unwrap();
    (dir, storage)
}

/// What `certs list --json` says of the only site.
fn listed(dir: &Path) -> Value {
    let run = run_in(dir, &["certs", "list", "--json"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let all: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(all.len(), 1, "{run:?}");
    all[0].clone()
}

/// Writes the ledger of `a.example.com`.
fn write_ledger(storage: &Path, text: &str) -> PathBuf {
    let directory = storage.join("acme/certificates/a.example.com");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("ledger.json"), text).unwrap();
    directory
}

fn acme_site() -> String {
    site_with("a.example.com", "127.0.0.1:1", "certificate = \"acme\"")
}

/// All files and directories below one, itself included.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    let mut next = 0;
    while next < all.len() {
        if all[next].is_dir() {
            let found: Vec<PathBuf> = fs::read_dir(&all[next]).unwrap().map(|entry| entry.unwrap().path()).collect();
            all.extend(found);
        }
        next += 1;
    }
    all
}

/// What an administrator runs as root does not lock the service out of its own files.
#[test]
fn what_root_makes_below_storage_belongs_to_the_service() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (dir, storage) = house("127.0.0.1:1", &(acme_site() + &site("b.test", "127.0.0.1:1")));
    write_ledger(&storage, r#"{"stage":"asking"}"#);
    for path in below(&storage) {
        chown(path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
    let before = below(&storage).len();
    let root = dir.path().join("root.pem");
    for arguments in [&["check"][..], &["trust", "--export", root.to_str().unwrap()], &["certs", "list"]] {
        let run = run_in(dir.path(), arguments);
        assert_eq!(run.code, Some(0), "{arguments:?}: {run:?}");
    }
    let all = below(&storage);
    assert!(storage.join("local-ca/root.key").exists() && all.len() > before + 3, "{all:?}");
    for path in all {
        let found = path.symlink_metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (SOMEBODY, SOMEBODY), "{}", path.display());
    }
}

/// Whether the local authority stands in is seen in the handshake, not guessed from the files.
#[tokio::test]
async fn pending_is_judged_by_what_is_served() {
    let upstream = Upstream::echo().await;
    let edge =
        Edge::start(&(NO_CA.to_owned() + &site_with("a.example.com", &upstream, "certificate = \"acme\""))).await;
    let (dir, storage) = house(&edge.https_addr().to_string(), &acme_site());
    let first = listed(dir.path());
    assert_eq!((&first["is_served"], &first["is_pending"]), (&true.into(), &true.into()), "{first}");
    // A certificate is kept, and the stand-in is served all the same.
    let directory = write_ledger(&storage, "{}");
    let own = SelfSigned::new(&["a.example.com"]);
    let pair = own.write_pair(dir.path(), "own");
    let pem = ["own.key", "own.crt"].map(|name| fs::read_to_string(dir.path().join(name)).unwrap()).concat();
    fs::write(directory.join("certificate.pem"), pem).unwrap();
    let kept = listed(dir.path());
    assert_eq!(kept["is_pending"], true, "{kept}");
    assert!(kept["remarks"][0].as_str().unwrap().contains("another certificate is kept"), "{kept}");
    drop(edge);
    let silent = listed(dir.path());
    assert_eq!((&silent["is_served"], &silent["is_pending"]), (&false.into(), &false.into()), "{silent}");
    assert!(silent["unseen"].as_str().unwrap().starts_with("nothing answers at 127.0.0.1:"), "{silent}");
    // Something is served that is not the local authority's, although nothing is kept.
    let edge = Edge::start(&site_with("a.example.com", &upstream, &format!("certificate = {pair}"))).await;
    let (dir, _storage) = house(&edge.https_addr().to_string(), &acme_site());
    let other = listed(dir.path());
    assert_eq!((&other["is_served"], &other["is_pending"]), (&true.into(), &false.into()), "{other}");
    assert!(other["remarks"][0].as_str().unwrap().starts_with("what is served is not kept"), "{other}");
}

/// RFC 6066 3: a site that is an address has no SNI, so it is asked at its address.
#[tokio::test]
async fn a_site_that_is_an_address_is_found() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&format!("[listen]\nhttps = [\"0.0.0.0:0\"]\n{}", site("127.0.0.2", &upstream))).await;
    let (dir, _storage) = house(&edge.https_addr().to_string(), &site("127.0.0.2", "127.0.0.1:1"));
    let found = listed(dir.path());
    assert_eq!(found["is_served"], true, "{found}");
    let run = run_in(dir.path(), &["certs", "fingerprint"]);
    assert!(run.stdout.contains("when the site gets another name, and at the latest on 20"), "{run:?}");
}

/// Sockets of systemd are somewhere, but not where this command could ask.
#[test]
fn what_cannot_be_asked_is_not_called_silent() {
    let (dir, _storage) = house("systemd:https", &site("a.test", "127.0.0.1:1"));
    let run = run_in(dir.path(), &["certs", "list"]);
    assert!(run.stdout.contains("cannot be asked from here (systemd socket)"), "{run:?}");
    assert!(!run.stdout.contains("nothing answers"), "{run:?}");
}

/// Whoever may not read the store is told so, instead of that there is nothing in it.
#[test]
fn another_user_is_told_who_may_look() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (dir, storage) = house("127.0.0.1:1", &acme_site());
    let ledger = write_ledger(&storage, "{}").join("ledger.json");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_tidegate"), &program).unwrap();
    let somebody = |arguments: &[&str]| -> Run {
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(dir.path()).uid(SOMEBODY).gid(SOMEBODY).output().unwrap().into()
    };
    let told = "permission denied: run it as the user that tidegate runs as";
    // Only the ledger, then all.
    fs::set_permissions(&ledger, fs::Permissions::from_mode(0o600)).unwrap();
    let run = somebody(&["certs", "list"]);
    assert!(run.stdout.contains(&format!("cannot read {}: {told}", ledger.display())), "{run:?}");
    fs::set_permissions(&storage, fs::Permissions::from_mode(0o700)).unwrap();
    let run = somebody(&["certs", "list"]);
    assert_eq!(run.stdout.matches(told).count(), 1, "{run:?}");
    assert!(run.stdout.contains("unknown") && !run.stdout.contains("pending"), "{run:?}");
    let run = somebody(&["certs", "renew"]);
    assert!(run.code == Some(1) && run.stderr.contains("permission denied"), "{run:?}");
    let run = somebody(&["certs", "list", "--json"]);
    let all: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(all[0]["is_pending"], Value::Null, "{run:?}");
}

/// CAs count orders: none is made for all sites by a slip.
#[test]
fn an_order_for_every_site_is_asked_about() {
    let (dir, _storage) = house("127.0.0.1:1", &(acme_site() + &site("b.example.com", "127.0.0.1:1")));
    let run = run_in(dir.path(), &["certs", "renew", "--force"]);
    assert!(run.code == Some(2) && run.stderr.contains("help: name the sites, or add --all"), "{run:?}");
    for arguments in [&["--all"][..], &["a.example.com", "b.example.com"], &["b.example.com"]] {
        let run = run_in(dir.path(), &[&["certs", "renew", "--force"], arguments].concat());
        assert!(run.code == Some(1) && run.stderr.contains("no tidegate serves"), "{arguments:?}: {run:?}");
    }
    let run = run_in(dir.path(), &["certs", "renew", "a.example.com", "c.example.com"]);
    assert!(run.code == Some(2) && run.stderr.contains("there is no site \"c.example.com\""), "{run:?}");
    for (answer, said) in [("n\n", "nothing is ordered"), ("y\n", "no tidegate serves")] {
        let Some(mut child) = on_a_terminal(dir.path(), "certs renew --force") else { return };
        child.stdin.as_mut().unwrap().write_all(answer.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("order 2 new certificates now (a.example.com, b.example.com)?"), "{text}");
        assert!(text.contains(said) && output.status.code() == Some(1), "{text} {:?}", output.status);
    }
}

/// What a process was at when it was killed is not told as the present.
#[test]
fn a_stage_is_shown_while_somebody_orders() {
    let (dir, storage) = house("127.0.0.1:1", &acme_site());
    let directory = write_ledger(&storage, r#"{"stage":"asking the CA"}"#);
    let shown = || run_in(dir.path(), &["certs", "list"]).stdout.contains("now: asking the CA");
    assert!(!shown() && listed(dir.path())["stage"].is_null());
    let lock = fs::File::options().create(true).append(true).open(directory.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(shown() && listed(dir.path())["stage"] == "asking the CA");
    drop(lock);
    assert!(!shown());
}

/// The words of a CA steer no terminal, and a ledger that is broken is told of.
#[test]
fn words_of_others_are_shown_and_not_obeyed() {
    let (dir, storage) = house("127.0.0.1:1", &acme_site());
    let text =
        r#"{"failures":1,"trouble":{"kind":"caa","text":"no\u001b]0;x\u0007\r\u009b2J\nforged","help":"\u001bc"}}"#;
    write_ledger(&storage, text);
    let run = run_in(dir.path(), &["certs", "list"]);
    assert!(run.stdout.contains(r"caa (1 failed): no\u{1b}]0;x\u{7}\r\u{9b}2J\nforged"), "{run:?}");
    assert!(run.stdout.chars().all(|c| c == '\n' || !c.is_control()), "{run:?}");
    write_ledger(&storage, "{");
    let run = run_in(dir.path(), &["certs", "list"]);
    assert!(run.stdout.contains("ledger.json: ") && run.stdout.contains("written anew"), "{run:?}");
}
