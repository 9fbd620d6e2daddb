//! Golden diagnostics: each `tests/cases/NAME.toml` is checked by the real program, and its whole
//! output is compared with `NAME.txt`. `BLESS=1 cargo test --test cases` writes what came out; look
//! at the difference before you keep it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "suite/harness/mmdb.rs"]
mod mmdb;

use tidegate::config;
use tidegate::site::acme::{Challenge, DnsProvider, Pending, Profile, TsigAlgorithm};

/// The folder of the cases.
fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

/// True when what comes out is to be kept.
fn is_blessing() -> bool {
    std::env::var_os("BLESS").is_some()
}

/// A users file.
const USERS: &str = "alice:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw\n";

/// A copy of the cases with certificates, keys and secrets, which are better not kept in a repository.
fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&cases(), folder.path());
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["claw.example.com".to_owned()]).expect("a name");
    let chain = params.self_signed(&key).expect("a certificate").pem();
    let (authorities, lists) = clients();
    for (name, content, mode) in [
        ("chain.pem", chain.as_str(), 0o644),
        ("private.key", key.serialize_pem().as_str(), 0o600),
        ("open.key", key.serialize_pem().as_str(), 0o644),
        ("token.txt", "Bearer abc\n", 0o600),
        ("hmac.txt", "c2VjcmV0LXdpdGgt__7_\n", 0o600),
        ("tsig.txt", "c2VjcmV0LXdpdGgt//7/+w==\n", 0o600),
        ("plain.txt", "not*base64\n", 0o600),
        ("hook", "#!/bin/sh\n", 0o755),
        ("clients.pem", authorities.as_str(), 0o644),
        ("clients.crl.pem", lists.as_str(), 0o644),
        ("users", USERS, 0o600),
        ("users.open", USERS, 0o644),
        ("users.none", "# nobody yet\n", 0o600),
        ("users.bad", "alice\nbob:secret\ncarol:{SHA}x\ndave:$apr1$x$y\n", 0o600),
    ] {
        let path = folder.path().join("pem").join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions set");
    }
    for (name, kind) in [("countries.mmdb", "Test-Country"), ("networks.mmdb", "Test-ASN")] {
        let database = mmdb::mmdb(kind, &[("203.0.113.0/24", "DE")]);
        fs::write(folder.path().join("pem").join(name), database).expect("written");
    }
    folder
}

/// Two authorities of clients; a revocation list of the first, which is old.
fn clients() -> (String, String) {
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        (rcgen::Issuer::new(params, key), pem)
    };
    let ((first, first_pem), (_, second_pem)) = (authority("first"), authority("second"));
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2026, 1, 8),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    (first_pem + &second_pem, list.signed_by(&first).expect("a list").pem().expect("as text"))
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a listing") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Runs the program in a folder, with an environment that is the same everywhere.
fn tidegate(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", "/home/ops")
        .output()
        .expect("the program starts")
}

/// What the program said and how it ended, without what differs from machine to machine.
fn transcript(folder: &Path, args: &[&str]) -> String {
    let output = tidegate(folder, args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let all = format!("{}{}exit {}\n", text(output.stdout), text(output.stderr), output.status.code().unwrap_or(-1));
    let folder = fs::canonicalize(folder).expect("a path");
    all.replace(folder.to_str().expect("text"), "/etc/tidegate")
}

/// Compares with the kept text, or keeps the new one.
fn compare(file: &Path, found: &str, faults: &mut Vec<String>) {
    if is_blessing() {
        fs::write(file, found).expect("written");
        return;
    }
    let kept = fs::read_to_string(file).unwrap_or_default();
    if kept != found {
        faults.push(format!("{}\n--- kept\n{kept}\n--- found\n{found}", file.display()));
    }
}

/// The names of the cases.
fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(cases())
        .expect("the cases")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn each_fault_is_reported_as_kept() {
    let folder = workshop();
    let mut faults = Vec::new();
    for name in names() {
        let found = transcript(folder.path(), &["check", "-c", &format!("{name}.toml")]);
        compare(&cases().join(format!("{name}.txt")), &found, &mut faults);
        let (code, marker) = match name.split('-').next() {
            Some("good") => ("exit 0\n", "0 errors, 0 warnings."),
            Some("warn") => ("exit 0\n", "warning[C"),
            _ => ("exit 2\n", "error[C"),
        };
        if !found.ends_with(code) || !found.contains(marker) {
            faults.push(format!("{name} should end with {code} and say {marker}:\n{found}"));
        }
    }
    assert!(faults.is_empty(), "{} cases differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn json_has_the_same_facts() {
    let folder = workshop();
    let mut faults = Vec::new();
    let found = transcript(folder.path(), &["check", "--json", "-c", "include-same-site.toml"]);
    compare(&cases().join("json.txt"), &found, &mut faults);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_code_has_a_case() {
    let all: String = names()
        .iter()
        .map(|name| fs::read_to_string(cases().join(format!("{name}.txt"))).unwrap_or_default())
        .collect();
    let missing: Vec<&str> = config::report::Code::ALL
        .iter()
        .map(|code| code.as_str())
        // C002 is a missing main file, which no case can be; see `a_missing_file_is_one_diagnostic`.
        .filter(|code| *code != "C002" && !all.contains(&format!("[{code}]")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn ten_mistakes_are_ten_diagnostics_with_place_and_remedy() {
    let folder = workshop();
    let output = tidegate(folder.path(), &["check", "--json", "-c", "ten.toml"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(2));
    let diagnostics = report["diagnostics"].as_array().expect("a list");
    assert!(diagnostics.len() >= 10, "{report}");
    assert_eq!(report["errors"], diagnostics.len());
    let mut codes = std::collections::BTreeSet::new();
    for diagnostic in diagnostics {
        codes.insert(diagnostic["code"].to_string());
        assert!(diagnostic["place"]["line"].as_u64() > Some(0), "{diagnostic}");
        assert!(diagnostic["place"]["column"].as_u64() > Some(0), "{diagnostic}");
        let has_help = !diagnostic["help"].as_array().expect("a list").is_empty();
        assert!(
            has_help || diagnostic["place"]["label"].as_str().is_some_and(|label| label.starts_with("write")),
            "{diagnostic}"
        );
    }
    assert!(codes.len() >= 10, "{codes:?}");
}

#[test]
fn strict_counts_warnings() {
    let folder = workshop();
    assert_eq!(tidegate(folder.path(), &["check", "-c", "warn-hsts.toml"]).status.code(), Some(0));
    assert_eq!(tidegate(folder.path(), &["check", "--strict", "-c", "warn-hsts.toml"]).status.code(), Some(2));
    assert_eq!(tidegate(folder.path(), &["check", "--strict", "-c", "good-everything.toml"]).status.code(), Some(0));
}

#[test]
fn a_missing_file_is_one_diagnostic() {
    let folder = workshop();
    let found = transcript(folder.path(), &["check", "-c", "nothing.toml"]);
    assert_eq!(
        found,
        "error[C002]: cannot read \"nothing.toml\": there is no such file\n\n1 error, 0 warnings.\nexit 2\n"
    );
    let found = transcript(&folder.path().join("pem"), &["check"]);
    assert!(found.contains("run --host localhost") && found.ends_with("exit 1\n"), "{found}");
}

#[test]
fn show_tells_each_value_and_its_origin() {
    let folder = workshop();
    let mut faults = Vec::new();
    let found = transcript(folder.path(), &["show", "-c", "good-everything.toml"]);
    assert!(!found.contains("Bearer"), "a secret is shown");
    compare(&cases().join("show.txt"), &found, &mut faults);
    let one = transcript(folder.path(), &["show", "admin.internal", "-c", "good-everything.toml"]);
    assert!(one.starts_with("site \"admin.internal\"\n") && !one.contains("claw"), "{one}");
    let unknown = transcript(folder.path(), &["show", "x.internal", "-c", "good-everything.toml"]);
    assert!(unknown.contains("there is no site \"x.internal\"") && unknown.ends_with("exit 2\n"), "{unknown}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_report_shows_a_secret() {
    let all: String =
        names().iter().filter_map(|name| fs::read_to_string(cases().join(format!("{name}.txt"))).ok()).collect();
    assert!(!all.contains("Bearer") && !all.contains("user:pass") && !all.contains("MIGH"));
    assert!(!all.contains("an-inline-secret"));
    assert!(all.contains("authorization = \"*"), "the line itself is shown");
}

#[test]
fn state_is_kept_where_the_service_manager_says() {
    let folder = workshop();
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["show", "-c", "warn-hsts.toml"])
        .current_dir(folder.path())
        .env_clear()
        .env("STATE_DIRECTORY", "/var/lib/private/edge:/var/lib/other")
        .output()
        .expect("the program starts");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("storage  \"/var/lib/private/edge\"  default for this machine"), "{text}");
}

#[test]
fn completions_and_manual_are_printed() {
    let folder = workshop();
    for (args, marker) in [
        (&["completions", "bash"][..], "_tidegate"),
        (&["man"][..], ".TH tidegate 1"),
        (&["man", "check"][..], "\\-\\-strict"),
    ] {
        let found = transcript(folder.path(), args);
        assert!(found.contains(marker) && found.ends_with("exit 0\n"), "{args:?}: {found}");
    }
    assert!(transcript(folder.path(), &["man", "fly"]).ends_with("exit 2\n"));
    assert!(transcript(folder.path(), &["fly"]).ends_with("exit 2\n"));
}

#[test]
fn what_acme_says_arrives_decoded() {
    let folder = workshop();
    let loaded = config::load(&folder.path().join("good-acme.toml")).map_err(|report| report.to_text(false));
    let acme = loaded.expect("no faults").table.edge.acme;
    let names: Vec<(&str, bool)> = acme.directories.iter().map(|one| (&*one.name, one.is_public)).collect();
    assert_eq!(names, [("ca.internal:9000", false), ("letsencrypt", true), ("zerossl", true)]);
    let root = acme.directories[0].root.as_ref().expect("authorities");
    assert_eq!((root.certificates.len(), root.file.is_absolute()), (1, true));
    for (index, kid, hmac) in
        [(0, "kid-1", &b"secret-with-\xff\xfe\xff\xfb"[..]), (2, "kid-2", b"secret-with-\xff\xfe\xff")]
    {
        let eab = acme.directories[index].eab.as_ref().expect("an account");
        assert_eq!((&*eab.kid, &*eab.hmac.0), (kid, hmac), "either alphabet");
    }
    assert_eq!(acme.challenges, [Challenge::Http01]);
    assert_eq!((&acme.profile, acme.pending), (&Profile::Named("shortlived".into()), Pending::Refuse));
    let resolvers: Vec<String> = acme.resolvers.iter().map(ToString::to_string).collect();
    assert_eq!(resolvers, ["192.0.2.53:53", "[2001:db8::53]:5353"]);
    let hook = acme.on_event.as_ref().expect("a program");
    assert_eq!((hook.program.clone(), &*hook.args[0]), (folder.path().join("pem/hook"), "event"));
    let providers: Vec<&DnsProvider> = acme.dns.iter().map(|rule| &rule.provider).collect();
    let [
        DnsProvider::Exec(hook),
        DnsProvider::Rfc2136(update),
        DnsProvider::AcmeDns(account),
        DnsProvider::Cloudflare(api),
        DnsProvider::Persist,
    ] = providers[..]
    else {
        unreachable!("one rule of each kind: {providers:?}");
    };
    assert_eq!(&*hook.args[0], "dns");
    assert_eq!((&*update.key_name, update.algorithm), ("tidegate", TsigAlgorithm::Sha512));
    assert_eq!(
        (update.server.to_string().as_str(), &*update.secret.0),
        ("192.0.2.1:53", &b"secret-with-\xff\xfe\xff\xfb"[..])
    );
    assert_eq!((&*account.url, &*account.password.0), ("http://127.0.0.1:8053", &b"c2VjcmV0LXdpdGgt__7_"[..]));
    assert_eq!(&*api.url, "https://api.cloudflare.com/client/v4");
    assert!(!format!("{acme:?}").contains("c2Vj"), "a secret is shown");
    assert_eq!((acme.dns[0].propagation.as_secs(), acme.dns[4].propagation.as_secs()), (30, 120));
}

#[test]
fn a_check_leaves_nothing_in_the_storage_that_it_tried() {
    let folder = workshop();
    let storage = folder.path().join("storage");
    let check = || transcript(folder.path(), &["check", "-c", "good-acme.toml"]);
    assert!(check().ends_with("exit 0\n") && !storage.exists(), "{}", check());
    fs::create_dir(&storage).expect("a folder");
    assert!(check().ends_with("exit 0\n"), "{}", check());
    assert_eq!(fs::read_dir(&storage).expect("still there").count(), 0);
    fs::remove_dir(&storage).expect("empty");
    fs::write(&storage, "").expect("written");
    let found = check();
    assert!(found.contains("error[C075]") && found.ends_with("exit 2\n"), "{found}");
    // Only `check` tries: a server with a full disk reloads all the same.
    assert!(config::load(&folder.path().join("good-acme.toml")).is_ok());
}

#[test]
fn show_masks_a_secret_in_the_file() {
    let folder = workshop();
    let found = transcript(folder.path(), &["show", "-c", "warn-inline-secret.toml"]);
    assert!(
        found.contains("headers.request.set.authorization") && found.contains("***") && !found.contains("Bearer"),
        "{found}"
    );
}

#[test]
fn the_reference_is_made_of_the_docs_and_states_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/reference.toml");
    let mut faults = Vec::new();
    compare(&file, &config::reference(), &mut faults);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let short = "[upstreams.gateway]\nservers = [\"127.0.0.1:18789\"]\n\
        [sites.\"gateway.internal\"]\nupstream = \"gateway\"\n\
        [[sites.\"gateway.internal\".routes]]\npath = \"/api\"\n";
    let load = |text: &str| {
        config::compile_text("reference.toml", text).map_err(|report| report.to_text(false)).expect("no faults")
    };
    let (long, short) = (load(&config::reference()), load(short));
    assert_eq!(Report::text(&long), "", "the reference is free of warnings");
    assert_eq!(format!("{:#?}", long.table), format!("{:#?}", short.table), "a written default changes nothing");
}

/// The warnings of a loaded configuration as text.
struct Report;

impl Report {
    fn text(loaded: &config::Loaded) -> String {
        config::Report::from(loaded.warnings.clone()).to_text(false)
    }
}

#[test]
fn the_schema_knows_every_key_and_forbids_others() {
    let schema = config::json_schema();
    assert_eq!(schema["properties"]["listen"]["properties"]["keep_alive_timeout"]["default"], "75s");
    assert_eq!(schema["properties"]["listen"]["additionalProperties"], false);
    let site = &schema["properties"]["sites"]["additionalProperties"]["properties"];
    assert_eq!(site["preset"]["enum"][0], "openclaw");
    assert_eq!(site["routes"]["items"]["required"][0], "path");
    let folder = workshop();
    let printed: serde_json::Value =
        serde_json::from_slice(&tidegate(folder.path(), &["schema"]).stdout).expect("JSON");
    assert_eq!(printed, schema);
}

#[test]
fn the_shipped_files_are_free_of_faults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = transcript(root, &["check", "--strict", "-c", "config/local.toml"]);
    assert_eq!(found, "0 errors, 0 warnings.\nexit 0\n");
    // `check` would try the directory of this machine's own certificates.
    let public = config::load(&root.join("config/tidegate.toml")).map_err(|report| report.to_text(false));
    assert_eq!(Report::text(&public.expect("no faults")), "");
}

#[test]
fn flags_make_a_local_gateway_without_a_file() {
    let loaded =
        config::from_flags("localhost", "127.0.0.1:18789").map_err(|report| report.to_text(false)).expect("no faults");
    let local = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/local.toml")).expect("the file");
    let same = config::compile_text("local.toml", &local).map_err(|report| report.to_text(false)).expect("no faults");
    assert_eq!(format!("{:?}", loaded.table), format!("{:?}", same.table));
    assert!(loaded.sources.is_empty());
    assert!(config::from_flags("localhost", "no port").is_err());
    assert!(config::from_flags("a\"b", "127.0.0.1:1").is_err());
    let other = config::from_flags("claw.internal", "127.0.0.1:18789")
        .map_err(|report| report.to_text(false))
        .expect("no faults");
    assert_eq!(other.table.edge.listeners[0].https.len(), 2);
}

#[test]
fn a_damaged_file_is_reported_and_never_a_panic() {
    for name in names() {
        let text = fs::read_to_string(cases().join(format!("{name}.toml"))).expect("a case");
        let cuts = (0..text.len()).step_by(5).filter(|at| text.is_char_boundary(*at));
        for at in cuts {
            let without_line: String = text
                .lines()
                .enumerate()
                .filter(|(line, _)| *line != at / 5)
                .map(|(_, line)| format!("{line}\n"))
                .collect();
            for damaged in [&text[..at], &text[at..], &without_line] {
                if let Err(report) = config::compile_text("damaged.toml", damaged) {
                    assert!(report.has_errors());
                    assert!(!report.to_text(false).is_empty());
                    assert_eq!(report.to_json()["ok"], false);
                }
            }
        }
    }
}
