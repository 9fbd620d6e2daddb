//! The real program as a child process with its own directory, killed and reaped when dropped.
//!
//! It is told to bind port 0 and says on stderr where it listens; its access log goes to stdout.
//! Every wait is for one of those lines.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::wire::{Reply, Wire};
use super::within;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// A running edge.
pub(crate) struct Edge {
    child: Child,
    out: Lines,
    err: Lines,
    dir: TempDir,
}

impl Edge {
    /// Starts the program on a configuration and waits until it serves. What a test does not say is
    /// filled in: loopback listeners on free ports, storage of its own, the access log on stdout.
    pub(crate) async fn start(fragment: &str) -> Self {
        Self::start_with(fragment, &[]).await
    }

    /// As `start`, with further environment variables.
    pub(crate) async fn start_with(fragment: &str, env: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().expect("a directory for the test");
        let file = dir.path().join("tidegate.toml");
        std::fs::write(&file, compose(fragment, dir.path())).expect("the configuration is written");
        let mut command = command(dir.path());
        command.args(["run", "-c"]).arg(&file).envs(env.iter().copied());
        Self::spawn(command, dir).await
    }

    /// As `start`, by another program that ends in ours: it gets our path and arguments after its own.
    /// `None` when it is not installed; in CI that is a failure (HOUSE.md B6).
    pub(crate) async fn start_under(launcher: &str, args: &[&str], fragment: &str) -> Option<Self> {
        let dir = TempDir::new().expect("a directory for the test");
        let file = dir.path().join("tidegate.toml");
        std::fs::write(&file, compose(fragment, dir.path())).expect("the configuration is written");
        if Command::new(launcher).arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "{launcher} is missing; run tests/setup.sh");
            return None;
        }
        let mut command = prepare(Command::new(launcher), dir.path());
        command.args(args).arg(PROGRAM).args(["run", "-c"]).arg(&file);
        Some(Self::spawn(command, dir).await)
    }

    /// Starts a prepared command and waits until it serves.
    async fn spawn(mut command: Command, dir: TempDir) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let out = Lines::follow(child.stdout.take().expect("stdout is piped"));
        let err = Lines::follow(child.stderr.take().expect("stderr is piped"));
        let edge = Self { child, out, err, dir };
        edge.event("ready").await;
        edge
    }

    /// The directory of the configuration; `storage` stands below it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The first address with this role.
    fn listening(&self, role: &str) -> SocketAddr {
        self.listeners(role).first().copied().unwrap_or_else(|| panic!("no {role} listener\n{}", self.stderr()))
    }

    /// All addresses with this role, in the order in which they were announced.
    pub(crate) fn listeners(&self, role: &str) -> Vec<SocketAddr> {
        let lines = self.err.json();
        let mine = lines.iter().filter(|line| line["event"] == "listening" && line["role"] == role);
        mine.filter_map(|line| line["address"].as_str()?.parse().ok()).collect()
    }

    /// Where it speaks TLS.
    pub(crate) fn https_addr(&self) -> SocketAddr {
        self.listening("https")
    }

    /// Where it speaks cleartext.
    pub(crate) fn http_addr(&self) -> SocketAddr {
        self.listening("http")
    }

    /// A cleartext connection to the http listener.
    pub(crate) async fn plain(&self) -> Wire {
        Wire::new(self.plain_tcp().await)
    }

    /// As `plain`, before anything is made of it.
    pub(crate) async fn plain_tcp(&self) -> TcpStream {
        connect(self.http_addr()).await
    }

    /// A TCP connection to the https listener on which nothing was said.
    pub(crate) async fn tcp(&self) -> TcpStream {
        connect(self.https_addr()).await
    }

    /// An HTTP/1.1 connection over TLS for this site.
    pub(crate) async fn h1(&self, host: &str) -> Wire {
        Wire::new(self.tls(host, &["http/1.1"]).await)
    }

    /// Sends one request as it stands, over HTTP/1.1 and TLS, and reads the answer.
    pub(crate) async fn exchange(&self, host: &str, request: impl AsRef<[u8]>) -> Reply {
        let mut wire = self.h1(host).await;
        wire.send(request.as_ref()).await;
        let method = request.as_ref().split(|byte| *byte == b' ').next().unwrap_or_default();
        wire.reply_to(&super::wire::text(method)).await
    }

    /// A GET over HTTP/1.1 and TLS, with further header lines, each ended by CRLF.
    pub(crate) async fn get_with(&self, host: &str, target: &str, headers: &str) -> Reply {
        self.exchange(host, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")).await
    }

    /// A GET over HTTP/1.1 and TLS.
    pub(crate) async fn get(&self, host: &str, target: &str) -> Reply {
        self.get_with(host, target, "").await
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("the process lives");
    }

    /// Writes a new configuration, completed as `start` does, and does not reload.
    pub(crate) fn rewrite(&self, fragment: &str) {
        self.rewrite_raw(&compose(fragment, self.dir.path()));
    }

    /// Writes a new configuration file as it stands, and does not reload.
    pub(crate) fn rewrite_raw(&self, text: &str) {
        std::fs::write(self.config_path(), text).expect("the configuration is written");
    }

    /// The configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("tidegate.toml")
    }

    /// SIGHUP; true when the new file is in force, false when it was refused.
    pub(crate) async fn reload(&self) -> bool {
        let from = self.err.len();
        self.signal(Signal::SIGHUP);
        let line = self.err.find_from(from, "reloaded or reload_failed", |line| {
            line["event"] == "reloaded" || line["event"] == "reload_failed"
        });
        line.await["event"] == "reloaded"
    }

    /// Writes a configuration, completed as `start` does, and reloads.
    pub(crate) async fn reload_with(&self, fragment: &str) -> bool {
        self.rewrite(fragment);
        self.reload().await
    }

    /// The first event of this name.
    pub(crate) async fn event(&self, name: &str) -> Value {
        self.err.find_from(0, name, |line| line["event"] == name).await
    }

    /// The first line on stderr for which `wanted` holds.
    pub(crate) async fn log_where(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.err.find_from(0, what, wanted).await
    }

    /// All records so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        self.out.json()
    }

    /// The first record for which `wanted` holds, as soon as it is written.
    pub(crate) async fn record_where(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.record_after(0, what, wanted).await
    }

    /// The same behind the first `seen` records. Where the client's port alone tells whose a record is: the system may give
    /// a port again as soon as its connection has ended.
    pub(crate) async fn record_after(&self, seen: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.out.find_from(seen, &format!("a record: {what}"), wanted).await
    }

    /// The first record of this kind.
    pub(crate) async fn record(&self, kind: &str) -> Value {
        self.record_where(kind, |record| record["kind"] == kind).await
    }

    /// Everything on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.err.text()
    }

    /// Everything on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        self.out.text()
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.exit().await
    }

    /// Waits until the process has ended; both outputs are then whole.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        within("the process closes its outputs", async {
            self.out.ended().await;
            self.err.ended().await;
        })
        .await;
        self.child.wait().expect("the process is ours")
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let mut report = String::from("--- the edge's output in this test ---\n");
            writeln!(report, "{}{}", self.err.text(), self.out.text()).ok();
            // Through the test's own capture, so that only a failed test shows it.
            #[allow(clippy::print_stderr, reason = "the test harness captures it and shows it for a failed test")]
            {
                eprintln!("{report}");
            }
        }
    }
}

/// What a finished command said.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its exit status.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs the program to its end in this directory.
pub(crate) fn run_in(dir: &Path, args: &[&str]) -> Run {
    command(dir).args(args).stdin(Stdio::null()).output().expect("the program starts").into()
}

/// The program with an environment of its own, so that nothing of the developer's leaks in.
fn command(dir: &Path) -> Command {
    prepare(Command::new(PROGRAM), dir)
}

/// The directory and the environment of a command of ours.
fn prepare(mut command: Command, dir: &Path) -> Command {
    command.current_dir(dir).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env("HOME", dir).env("NO_COLOR", "1");
    command.env("XDG_DATA_HOME", dir.join("data"));
    command
}

/// Fills in what a test's fragment leaves open.
fn compose(fragment: &str, dir: &Path) -> String {
    let mut file: toml::Table =
        fragment.parse().unwrap_or_else(|e| panic!("a test's fragment is TOML: {e}\n{fragment}"));
    let mut fill = |table: &str, key: &str, value: toml::Value| {
        let entry = file.entry(table).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        entry.as_table_mut().expect("a table").entry(key).or_insert(value);
    };
    let any_port = || toml::Value::from(vec!["127.0.0.1:0"]);
    fill("listen", "http", any_port());
    fill("listen", "https", any_port());
    fill("log", "access", "stdout".into());
    fill("log", "format", "json".into());
    let storage = dir.join("storage");
    file.entry("storage").or_insert_with(|| storage.to_string_lossy().into_owned().into());
    file.to_string()
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = within("the edge accepts", TcpStream::connect(address)).await.expect("the edge accepts");
    stream.set_nodelay(true).ok();
    stream
}

/// The lines of one output, as they come.
#[derive(Clone)]
struct Lines {
    text: Arc<Mutex<Vec<String>>>,
    /// How many lines there are, and whether the output has ended.
    state: Arc<watch::Sender<(usize, bool)>>,
}

impl Lines {
    /// Reads in a thread of its own: the test's runtime may be busy, and the pipe must not fill.
    fn follow(source: impl Read + Send + 'static) -> Self {
        let lines = Self { text: Arc::default(), state: Arc::new(watch::Sender::new((0, false))) };
        let mine = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                let mut text = mine.text.lock().expect("no thread panics while it holds this");
                text.push(line);
                mine.state.send_replace((text.len(), false));
            }
            mine.state.send_modify(|state| state.1 = true);
        });
        lines
    }

    fn len(&self) -> usize {
        self.state.borrow().0
    }

    fn text(&self) -> String {
        self.text.lock().expect("no thread panics while it holds this").iter().map(|line| format!("{line}\n")).collect()
    }

    /// The lines that are JSON.
    fn json(&self) -> Vec<Value> {
        let text = self.text.lock().expect("no thread panics while it holds this");
        text.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first line from number `from` on for which `wanted` holds.
    async fn find_from(&self, from: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut state = self.state.subscribe();
        let mut next = from;
        let search = async {
            loop {
                let (count, ended) = *state.borrow_and_update();
                while next < count {
                    let line = self.text.lock().expect("no thread panics while it holds this")[next].clone();
                    next += 1;
                    if let Some(value) = serde_json::from_str(&line).ok().filter(|value| wanted(value)) {
                        return value;
                    }
                }
                assert!(!ended, "the program ended before: {what}\n{}", self.text());
                state.changed().await.expect("the reader lives until the end");
            }
        };
        match tokio::time::timeout(super::BOUND, search).await {
            Ok(value) => value,
            Err(_) => panic!("not seen within {:?}: {what}", super::BOUND),
        }
    }

    async fn ended(&self) {
        self.state.subscribe().wait_for(|(_, ended)| *ended).await.expect("the reader lives until the end");
    }
}
