//! The command line and its exit statuses, from outside (CONFIG.md 1 and 4). Golden diagnostics are in `tests/cases`.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::run_in;

/// Writes a configuration into a directory of its own.
fn file(text: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    dir
}

/// The smallest file for this machine's storage.
fn good(dir: &Path) -> String {
    format!("storage = {:?}\n[sites.\"a.test\"]\nupstream = \"127.0.0.1:1\"\n", dir.join("storage"))
}

/// CONFIG.md 4: 0 is fine, 2 is wrong input, and a good file says so in few words.
#[test]
fn check_tells_by_its_exit_status() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("tidegate.toml"), good(dir.path())).unwrap();
    let run = run_in(dir.path(), &["check"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let run = run_in(dir.path(), &["check", "-c", "elsewhere.toml"]);
    assert!(
        matches!(run.code, Some(1 | 2)) && (run.stderr.clone() + &run.stdout).contains("elsewhere.toml"),
        "{run:?}"
    );
    let run = run_in(file("[sites.\"a.test\"]\nupstreem = \"x\"\n").path(), &["check"]);
    assert_eq!(run.code, Some(2), "{run:?}");
}

/// Issue 2, "must show": ten different mistakes are shown in one run, each with its line, column and help.
#[test]
fn ten_mistakes_are_shown_in_one_run() {
    let text = "\
[listen]
keep_alive_timeout = 75
handshake_timeout = \"10 parsecs\"
[trust]
proxies = [\"10.0.0.0/99\"]
[sites.\"a.test\"]
presett = \"openclaw\"
upstream = \"missing-name\"
[sites.\"b.test\"]
upstream = \"127.0.0.1:99999\"
limits = { body = 20 }
[sites.\"c.test\"]
preset = \"openclav\"
upstream = \"127.0.0.1:1\"
[sites.\"-bad-.test\"]
upstream = \"127.0.0.1:1\"
[sites.\"d.test\"]
upstream = \"127.0.0.1:1\"
attribution = \"local\"
[[sites.\"d.test\".routes]]
path = \"no-slash\"
[log]
level = \"loud\"
";
    let dir = file(text);
    let run = run_in(dir.path(), &["check"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    let all = run.stdout + &run.stderr;
    for line in [2, 3, 5, 7, 8, 10, 11, 13, 15, 19, 21, 23] {
        assert!(all.contains(&format!("tidegate.toml:{line}:")), "line {line} is not named:\n{all}");
    }
    assert!(all.matches("error[").count() >= 10, "{all}");
    assert!(all.contains("help"), "{all}");
    assert!(all.contains("\"preset\"") && all.contains("75s"), "did you mean, and the right spelling:\n{all}");
}

/// CONFIG.md 1: the same as JSON, for tools.
#[test]
fn diagnostics_are_also_json() {
    let dir = file("[sites.\"a.test\"]\npresett = \"openclaw\"\nupstream = \"127.0.0.1:1\"\n");
    let run = run_in(dir.path(), &["check", "--json"]);
    assert_eq!(run.code, Some(2));
    let value: serde_json::Value = serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {run:?}"));
    let text = value.to_string();
    assert!(text.contains("presett") && text.contains("\"line\":2") && text.contains("\"code\":\"C"), "{text}");
}

/// CONFIG.md 1, 5: `check --strict` counts warnings.
#[test]
fn strict_counts_warnings() {
    let dir = TempDir::new().unwrap();
    let text = good(dir.path()) + "timeouts = { response_head = \"1h\" }\n";
    std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    assert_eq!(run_in(dir.path(), &["check"]).code, Some(0), "N-13: a long timeout without a reason warns");
    assert_eq!(run_in(dir.path(), &["check", "--strict"]).code, Some(2));
    let text = good(dir.path()) + "timeouts = { response_head = \"1h\" }\nwhy = \"reports take long\"\n";
    std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    assert_eq!(run_in(dir.path(), &["check", "--strict"]).code, Some(0), "a reason is enough");
}

/// CONFIG.md 1: `show` prints each effective value and where it came from, secrets masked.
#[test]
fn show_prints_effective_values_and_their_origin() {
    let dir = TempDir::new().unwrap();
    let text = format!(
        "{}preset = \"openclaw\"\ntimeouts = {{ connect = \"7s\" }}\n[defaults]\ntimeouts = {{ send = \"9s\" }}\n",
        good(dir.path())
    );
    std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    let run = run_in(dir.path(), &["show", "a.test"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    for wanted in ["7s", "9s", "32MiB", "openclaw", "default"] {
        assert!(run.stdout.contains(wanted), "{wanted} is not in:\n{}", run.stdout);
    }
    assert_eq!(run_in(dir.path(), &["show", "z.test"]).code, Some(2));
}

/// CONFIG.md 1, 8: the schema is JSON and knows the keys.
#[test]
fn the_schema_is_json() {
    let run = run_in(TempDir::new().unwrap().path(), &["schema"]);
    assert_eq!(run.code, Some(0));
    let schema: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(schema["properties"]["sites"].is_object() && schema["properties"]["listen"].is_object());
}

/// Issue 2, 2: completions, manual page and version are printed.
#[test]
fn completions_manual_and_version_are_printed() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let run = run_in(dir.path(), &["completions", shell]);
        assert!(run.code == Some(0) && run.stdout.contains("tidegate"), "{shell}");
    }
    let run = run_in(dir.path(), &["man"]);
    assert!(run.code == Some(0) && run.stdout.contains(".TH"), "{run:?}");
    let run = run_in(dir.path(), &["--version"]);
    assert!(run.code == Some(0) && run.stdout.contains(env!("CARGO_PKG_VERSION")), "{run:?}");
    assert_eq!(run_in(dir.path(), &["no-such-command"]).code, Some(2));
}

/// CONFIG.md 1, 6: includes take the same keys, and a site in two files is an error that names both.
#[test]
fn includes_are_read_and_doubles_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("sites.d")).unwrap();
    std::fs::write(dir.path().join("tidegate.toml"), format!("include = [\"sites.d/*.toml\"]\n{}", good(dir.path())))
        .unwrap();
    std::fs::write(dir.path().join("sites.d/b.toml"), "[sites.\"b.test\"]\nupstream = \"127.0.0.1:2\"\n").unwrap();
    let run = run_in(dir.path(), &["show", "b.test"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    std::fs::write(dir.path().join("sites.d/a.toml"), "[sites.\"A.test\"]\nupstream = \"127.0.0.1:2\"\n").unwrap();
    let run = run_in(dir.path(), &["check"]);
    assert_eq!(run.code, Some(2));
    let all = run.stdout + &run.stderr;
    assert!(all.contains("tidegate.toml") && all.contains("a.toml"), "{all}");
}

/// A machine fault is status 1 and names the address.
#[test]
fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = TempDir::new().unwrap();
    let text = format!("{}[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"{address}\"]\n", good(dir.path()));
    std::fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    let run = run_in(dir.path(), &["run"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains(&address.to_string()), "{run:?}");
}

/// Issue 2, 2: what a later issue builds is unknown to `check` until then.
#[test]
fn keys_of_later_issues_are_unknown() {
    for line in ["[auth.x]\ntype = \"basic\"\n", "[process]\nupgrade_grace = \"24h\"\n"] {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("tidegate.toml"), good(dir.path()) + line).unwrap();
        assert_eq!(run_in(dir.path(), &["check"]).code, Some(2), "{line:?}");
    }
}
