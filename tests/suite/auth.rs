//! Who asks: basic auth, client certificates, identity headers, users files, `hash-password` (G-07, G-12, N-26, O-20).

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Request;
use tidegate::policy::password::new_argon2;

use crate::harness::{
    ClientTls, Edge, Outcome, TestCa, Upstream, WebSocketUpstream, Wire, connect_request, read_h2, site, site_with,
    within,
};

/// A header line with a name and a password.
pub(crate) fn basic(name: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

/// Writes a users file that only its owner can read.
fn write_users(file: &Path, lines: &[(&str, String)]) {
    use std::os::unix::fs::PermissionsExt as _;
    let text: String = lines.iter().map(|(name, hash)| format!("{name}:{hash}\n")).collect();
    // Replaced whole, as editors and `install` do.
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

/// A folder with a users file, in which alice's password is "secret".
fn users() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    write_users(&file, &[("alice", new_argon2("secret").unwrap())]);
    let config = format!(
        "[auth.staff]\ntype = \"basic\"\nusers = {file:?}\nrealm = \"the house\"\nheader = \"x-forwarded-user\"\n"
    );
    (dir, config)
}

/// G-12: without a login 401 in every protocol, with one the name goes upstream and the password does not.
#[tokio::test]
async fn a_login_is_asked_for_and_its_name_goes_upstream() {
    let upstream = WebSocketUpstream::start().await;
    let (_dir, auth) = users();
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, "auth = [\"staff\"]"))).await;
    for lines in [
        String::new(),
        basic("alice", "wrong"),
        basic("nobody", "secret"),
        basic("alice", ""),
        basic("Alice", "secret"),
        format!("{}{}", basic("alice", "secret"), basic("alice", "secret")),
        "Authorization: Basic ***\r\n".to_owned(),
        "Authorization: Bearer YWxpY2U6c2VjcmV0\r\n".to_owned(),
        "X-Forwarded-User: alice\r\n".to_owned(),
        "Cookie: user=alice\r\n".to_owned(),
    ] {
        let reply = edge.get_with("a.test", "/", &format!("Accept: application/json\r\n{lines}")).await;
        assert_eq!(reply.status, 401, "{lines}");
        assert_eq!(reply.headers.all("www-authenticate"), ["Basic realm=\"the house\", charset=\"UTF-8\""]);
        assert_eq!(reply.json()["error"]["code"], "E401-login");
        let socket = edge.upgrade("a.test", "/", &lines).await.0;
        assert_eq!((socket.status, socket.headers.has("www-authenticate")), (401, true), "{lines}");
    }
    let mut h2 = edge.h2("a.test").await;
    assert_eq!(h2.get("a.test", "/").await.status, 401);
    let (response, _send) = h2.open(connect_request("a.test", "/"), false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 401);
    assert_eq!(upstream.seen().len(), 0, "nothing reaches the upstream");

    let login = basic("alice", "secret");
    let mut wire = edge.h1("a.test").await;
    // One connection for all: a refused login leaves it open.
    for (lines, status) in [("", 401), (&*login, 200), ("", 401), (&*login, 200)] {
        wire.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")).await;
        assert_eq!(wire.reply().await.status, status);
    }
    assert_eq!(edge.upgrade("a.test", "/", &login).await.0.status, 101);
    let value = login.trim_end().split_once(' ').unwrap().1.to_owned();
    let request = Request::get("https://a.test/").header("authorization", &value).body(()).unwrap();
    assert_eq!(h2.exchange(request, None).await.unwrap().status, 200);
    let mut connect = connect_request("a.test", "/");
    connect.headers_mut().insert("authorization", value.parse().unwrap());
    let (response, _send) = h2.open(connect, false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 200);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 5);
    for seen in seen {
        assert_eq!(seen.headers.all("x-forwarded-user"), ["alice"]);
        assert!(!seen.headers.has("authorization"), "a password is not for the upstream");
    }
    let record = edge.record_where("a login", |record| record["user"] == "alice").await;
    assert_eq!((&record["auth"], &record["by"]), (&"staff".into(), &"upstream".into()), "{record}");
    assert!(!edge.stdout().contains("secret") && !edge.stderr().contains("secret"));
}

/// N-26: whoever has not logged in is answered before a byte of a body is asked for, and its size is not judged by us.
#[tokio::test]
async fn a_login_is_judged_before_the_body() {
    let upstream = Upstream::echo().await;
    let (_dir, auth) = users();
    let lines = "auth = [\"staff\"]\ncollect_request = true";
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, lines))).await;
    let mut wire = edge.h1("a.test").await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 401, "and no 100 before it");
    assert!(wire.rest().await.is_empty(), "the connection ends with a body that nobody reads");
    let mut wire = edge.h1("a.test").await;
    let login = basic("alice", "secret");
    wire.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{login}Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"))
        .await;
    assert_eq!(wire.head().await.unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
    wire.send("abc").await;
    assert_eq!(wire.reply().await.text(), "abc");
}

/// O-20: an empty list exempts a route; what the edge answers itself is behind auth all the same.
#[tokio::test]
async fn every_action_is_behind_auth_but_where_a_route_is_exempt() {
    let upstream = Upstream::echo().await;
    let (_dir, auth) = users();
    let lines = "auth = [\"staff\"]\n\
        [[sites.\"a.test\".routes]]\npath = \"/moved\"\nredirect = { to = \"/new\" }\n\
        [[sites.\"a.test\".routes]]\npath = \"/fixed\"\nrespond = { body = \"inside\" }\n\
        [[sites.\"a.test\".routes]]\npath = \"/mount\"\nstrip = true\n\
        [[sites.\"a.test\".routes]]\npath = \"/hooks\"\nauth = []\n";
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, lines))).await;
    let login = basic("alice", "secret");
    for (target, inside) in
        [("/moved", 308), ("/fixed", 200), ("/mount", 308), ("/mount/", 200), ("/", 200), ("/hooksx", 200)]
    {
        let reply = edge.get("a.test", target).await;
        assert_eq!(reply.status, 401, "{target}");
        assert!(!reply.headers.has("location") && !reply.text().contains("inside"), "{target}");
        assert_eq!(edge.get_with("a.test", target, &login).await.status, inside, "{target}");
    }
    let before = upstream.seen().len();
    // The sender of a webhook proves itself to the upstream, in a field that is not ours there.
    let reply = edge.get_with("a.test", "/hooks/x", "Authorization: Basic eDp5\r\nX-Forwarded-User: root\r\n").await;
    assert_eq!(reply.status, 200);
    let seen = &upstream.seen()[before];
    assert_eq!(seen.header("authorization"), Some("Basic eDp5"));
    assert!(!seen.headers.has("x-forwarded-user"));
    // A path that could mean another one passes by no rule.
    for target in ["/hooks/../", "/hooks/%2e%2e/x", "/hooks%2f..%2fx", "//hooks", "/%68ooks"] {
        let reply = edge.get("a.test", target).await;
        assert!(matches!(reply.status, 400 | 401), "{target}: {}", reply.status);
    }
}

/// Spellings of an identity header that some server would read as `x-staff-name`, and how each is sent.
const SPELLINGS: [&str; 5] = ["x-staff-name", "X-Staff-Name", "X_Staff_Name", "x-staff_name", "X_STAFF-NAME"];

/// SECURITY.md 1, G-12: a forged identity header passes in no spelling, no protocol, no place, from nobody: on routes with
/// auth and without, on other sites, in upgrades, listed in Connection, in trailers, from a trusted hop.
#[tokio::test]
async fn a_forged_identity_passes_nowhere() {
    let (upstream, sockets) = (Upstream::echo().await, WebSocketUpstream::start().await);
    let (_dir, auth) = users();
    let auth = auth.replace("x-forwarded-user", "X-Staff-Name");
    let lines = "auth = [\"staff\"]\n[[sites.\"a.test\".routes]]\npath = \"/open\"\nauth = []\n";
    let config = format!(
        "[trust]\nproxies = [\"127.0.0.0/8\"]\n{auth}{}{}{}",
        site_with("a.test", &upstream, lines),
        site("b.test", &upstream),
        site_with("s.test", &sockets, "auth = [\"staff\"]"),
    );
    let edge = Edge::start(&config).await;
    let login = basic("alice", "secret");
    let value = login.trim_end().split_once(' ').unwrap().1.to_owned();
    let places = [("a.test", "/", &["alice"][..]), ("a.test", "/open", &[]), ("b.test", "/", &[])];
    let mut count = 0;
    for (host, target, expected) in places {
        let mut h2 = edge.h2(host).await;
        for name in SPELLINGS {
            for more in
                ["", "Connection: x-staff-name\r\n", "Connection: close, X_Staff_Name\r\n", "X-Staff-Name: other\r\n"]
            {
                let lines = format!("{login}{name}: root\r\n{name}: admin\r\n{more}");
                assert_eq!(edge.get_with(host, target, &lines).await.status, 200, "{host}{target} {lines}");
                count += 1;
            }
            let mut request = Request::get(format!("https://{host}{target}")).header("authorization", &value);
            request = request.header(name.to_ascii_lowercase(), "root").header(name.to_ascii_lowercase(), "admin");
            assert_eq!(h2.exchange(request.body(()).unwrap(), None).await.unwrap().status, 200);
            count += 1;
            let trailers = format!(
                "POST {target} HTTP/1.1\r\nHost: {host}\r\n{login}Transfer-Encoding: chunked\r\nTrailer: {name}\r\n\r\n\
                 1\r\nx\r\n0\r\n{name}: root\r\nX-Other: y\r\n\r\n"
            );
            assert_eq!(edge.exchange(host, trailers).await.status, 200);
            count += 1;
        }
        for seen in upstream.seen().split_off(upstream.seen().len() - SPELLINGS.len() * 6) {
            assert_eq!(seen.fault, None);
            let told: Vec<_> = seen
                .headers
                .0
                .iter()
                .filter(|(name, _)| name.to_ascii_lowercase().replace('_', "-") == "x-staff-name")
                .collect();
            assert_eq!(told.iter().map(|(_, value)| &**value).collect::<Vec<_>>(), expected, "{host}{target}");
            assert!(seen.trailers.0.is_empty(), "{:?}", seen.trailers);
        }
    }
    assert_eq!(upstream.seen().len(), count);
    for name in SPELLINGS {
        let lines = format!("{login}{name}: root\r\nConnection: {name}\r\n");
        assert_eq!(edge.upgrade("s.test", "/", &lines).await.0.status, 101, "{name}");
    }
    for seen in sockets.seen() {
        assert_eq!(seen.headers.all("x-staff-name"), ["alice"]);
        assert!(!seen.headers.0.iter().any(|(name, value)| name.contains('_') || value == "root"));
    }
}

/// G-07: `trust.identity` takes named identity headers from a trusted hop, in one spelling, and from nobody else.
#[tokio::test]
async fn identity_headers_of_a_trusted_hop_are_taken_where_they_are_named() {
    let upstream = Upstream::echo().await;
    let trust = |proxies: &str| {
        format!("[trust]\nproxies = [{proxies}]\nidentity = [\"Tailscale-User-Login\"]\n{}", site("a.test", &upstream))
    };
    let lines = "Tailscale-User-Login: alice@example.com\r\nTailscale_User_Login: root\r\nTailscale-User-Name: Alice\r\n\
        X-Forwarded-For: 203.0.113.7\r\n";
    let hop = Edge::start(&trust("\"127.0.0.0/8\"")).await;
    hop.get_with("a.test", "/", lines).await;
    let seen = upstream.request(0).await;
    assert_eq!(seen.headers.all("tailscale-user-login"), ["alice@example.com"]);
    assert!(!seen.headers.has("tailscale-user-name") && !seen.headers.has("tailscale_user_login"));
    let stranger = Edge::start(&trust("\"192.0.2.1\"")).await;
    stranger.get_with("a.test", "/", lines).await;
    assert!(!upstream.request(1).await.headers.has("tailscale-user-login"));
}

/// A users file is read again when it changes; a broken one changes nothing.
#[tokio::test]
async fn a_users_file_is_read_again_when_it_changes() {
    let upstream = Upstream::saying("inside").await;
    let (dir, auth) = users();
    let file = dir.path().join("users");
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, "auth = [\"staff\"]"))).await;
    let (alice, bob) = (basic("alice", "secret"), basic("bob", "other"));
    let status = async |lines: &str| edge.get_with("a.test", "/", lines).await.status;
    assert_eq!((status(&alice).await, status(&bob).await), (200, 401));
    std::fs::write(&file, "alice:secret\n").unwrap();
    let kept = edge.log_where("the file is refused", |line| line["event"] == "users_kept").await;
    assert!(kept["message"].as_str().is_some_and(|text| text.contains("line 1")), "{kept}");
    assert_eq!(status(&alice).await, 200);
    write_users(&file, &[("bob", new_argon2("other").unwrap())]);
    edge.log_where("the file is taken", |line| line["event"] == "users_read").await;
    assert_eq!((status(&alice).await, status(&bob).await), (401, 200), "what was remembered is forgotten");
    assert!(!edge.stderr().contains("secret"));
}

/// A flood of wrong passwords fills a short queue and gets 503; who is remembered is served at once, throughout.
#[tokio::test]
async fn a_flood_of_wrong_passwords_keeps_nobody_out_who_is_in() {
    let upstream = Upstream::saying("inside").await;
    let (_dir, auth) = users();
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, "auth = [\"staff\"]"))).await;
    let login = basic("alice", "secret");
    let mut honest = edge.h1("a.test").await;
    let mut is_served = async || {
        honest.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{login}\r\n")).await;
        honest.reply().await.status == 200
    };
    assert!(is_served().await);
    let mut flood = edge.h2("a.test").await;
    let mut answers = Vec::new();
    for number in 0..60 {
        let line = basic("alice", &number.to_string());
        let value = line.trim_end().split_once(' ').unwrap().1;
        let request = Request::get("https://a.test/").header("authorization", value).body(()).unwrap();
        answers.push(flood.open(request, true).await.unwrap().0);
        assert!(is_served().await, "{number}");
    }
    let mut codes = Vec::new();
    for answer in answers {
        let reply = read_h2(within("an answer", answer).await.unwrap()).await;
        codes.push(reply.status);
        assert_eq!(reply.header("retry-after").is_some(), reply.status == 503);
    }
    assert!(codes.contains(&401) && codes.iter().all(|code| matches!(code, 401 | 503)), "{codes:?}");
    assert!(codes.contains(&503), "one client has few places in the queue: {codes:?}");
    let busy = edge.record_where("a full queue", |record| record["code"] == "E503-login").await;
    assert_eq!(busy["status"], 503);
}

/// G-12: a client certificate, optional in the handshake, is one way among others; its subject goes upstream.
#[tokio::test]
async fn a_client_certificate_is_a_way_to_log_in() {
    let upstream = Upstream::echo().await;
    let (dir, auth) = users();
    let ca = TestCa::new("clients");
    let ca_path = dir.path().join("ca.pem");
    ca.write(&ca_path);
    let config = format!(
        "{auth}[auth.mtls]\ntype = \"client_cert\"\nheader = \"x-cert-subject\"\n\
         [auth.one]\ntype = \"client_cert\"\nsubjects = [\"CN=alice.example.com\"]\n{}client_cert = {{ ca = {ca_path:?}, required = false }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/only\"\nauth = [\"one\"]\n{}",
        site_with("a.test", &upstream, "auth = [\"staff\", \"mtls\"]"),
        site("b.test", &upstream),
    );
    let edge = Edge::start(&config).await;
    let with = |identity| ClientTls { identity, ..ClientTls::alpn(&["http/1.1"]) }.config(&edge);
    let ask = async |config, target: &str, lines: &str| {
        let stream = edge.handshake("a.test", config).await.unwrap();
        let mut wire = Wire::new(stream);
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: a.test\r\nX-Cert-Subject: CN=root\r\n{lines}\r\n")).await;
        wire.reply().await
    };
    let login = basic("alice", "secret");
    let reply = ask(with(Some(ca.issue("bob.example.com"))), "/", "").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let subject = upstream.request(0).await.headers.all("x-cert-subject").join("|");
    assert!(subject.contains("bob.example.com") && !subject.contains("root"), "{subject}");
    assert_eq!(ask(with(None), "/", "").await.status, 401);
    assert_eq!(ask(with(None), "/", &login).await.status, 200);
    let seen = upstream.request(1).await;
    assert!(!seen.headers.has("x-cert-subject") && seen.header("x-forwarded-user") == Some("alice"));
    // Nobody is asked for a password where none is taken.
    let strange = ask(with(Some(ca.issue("bob.example.com"))), "/only", &login).await;
    assert_eq!((strange.status, strange.headers.has("www-authenticate")), (403, false));
    assert_eq!(ask(with(None), "/only", "").await.status, 403);
    edge.record_where("no certificate", |record| record["code"] == "E403-certificate").await;
}

/// `hash-password` reads standard input and prints what a users file takes; a wrong input is told apart.
#[tokio::test]
async fn what_hash_password_prints_lets_its_user_in() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str], input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("hash-password").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A refused name is said before anything is read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, alice, err) = run(&["--user", "alice"], "correct horse\n");
    assert_eq!((code, &*err), (Some(0), ""));
    assert!(alice.starts_with("alice:$argon2id$v=19$m=19456,t=2,p=1$"), "{alice}");
    let (_, bob, _) = run(&["--bcrypt"], "battery\u{e4}");
    assert!(bob.starts_with("$2b$12$"), "{bob}");
    for (args, input, why) in [
        (&["--user", "a:b"][..], "x\n", "a name has no colon"),
        (&[], "\n", "empty"),
        (&["--bcrypt"], &*"x".repeat(73), "72 bytes"),
        (&[], "a\u{7}b\n", "control character"),
    ] {
        let (code, out, err) = run(args, input);
        assert!(code == Some(2) && out.is_empty() && err.contains(why), "{args:?}: {code:?} {out} {err}");
    }
    let file = dir.path().join("users");
    write_users(
        &file,
        &[("alice", alice.trim_end().split_once(':').unwrap().1.to_owned()), ("bob", bob.trim_end().to_owned())],
    );
    let upstream = Upstream::saying("inside").await;
    let auth = format!("[auth.staff]\ntype = \"basic\"\nusers = {{ file = {file:?} }}\n");
    let edge = Edge::start(&format!("{auth}{}", site_with("a.test", &upstream, "auth = [\"staff\"]"))).await;
    for (lines, status) in [
        (basic("alice", "correct horse"), 200),
        (basic("bob", "battery\u{e4}"), 200),
        (basic("bob", "correct horse"), 401),
    ] {
        assert_eq!(edge.get_with("a.test", "/", &lines).await.status, status, "{lines}");
    }
    let mut raw = edge.raw_h2("a.test").await;
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")];
    assert_eq!(raw.request(1, &fields).await, Outcome::Status(401));
}

/// Wrong passwords feed the lockout, missing ones do not; the right password is refused while it lasts, from there.
#[tokio::test]
async fn wrong_passwords_lock_a_client_out() {
    let upstream = Upstream::saying("inside").await;
    let (_dir, auth) = users();
    let lines = "auth = [\"staff\"]\nlimits.failed_auth = { max = 3 }";
    let config = format!("[trust]\nproxies = [\"127.0.0.0/8\"]\n{auth}{}", site_with("a.test", &upstream, lines));
    let edge = Edge::start(&config).await;
    let status = async |client: &str, lines: &str| {
        edge.get_with("a.test", "/", &format!("X-Forwarded-For: {client}\r\n{lines}")).await.status
    };
    let (right, wrong) = (basic("alice", "secret"), basic("alice", "wrong"));
    for _ in 0..5 {
        assert_eq!(status("203.0.113.9", "").await, 401);
    }
    assert_eq!(status("203.0.113.9", &right).await, 200);
    for _ in 0..3 {
        assert_eq!(status("203.0.113.9", &wrong).await, 401);
    }
    assert_eq!(status("203.0.113.9", &right).await, 429);
    assert_eq!(status("203.0.113.10", &right).await, 200);
    let record = edge.record_where("the lockout", |record| record["status"] == 429).await;
    assert!(record["auth"].is_null() && record["user"].is_null(), "{record}");
}
