//! `geo`: who may enter by country (N-32), with a database of the test's own making.

use std::path::Path;

use crate::harness::{Edge, Upstream, mmdb, run_in, site};

const NETWORKS: [(&str, &str); 4] =
    [("203.0.113.0/24", "DE"), ("198.51.100.0/24", "FR"), ("2001:db8:7::/48", "DE"), ("192.0.2.128/25", "XX")];

/// Puts a database there as update programs do: whole, under its name.
fn write(dir: &Path, networks: &[(&str, &str)]) -> String {
    let (new, file) = (dir.join("new.mmdb"), dir.join("countries.mmdb"));
    std::fs::write(&new, mmdb("Test-Country", networks)).unwrap();
    std::fs::rename(&new, &file).unwrap();
    file.to_string_lossy().into_owned()
}

async fn status(edge: &Edge, client: &str, path: &str) -> u16 {
    edge.get_with("a.test", path, &format!("X-Forwarded-For: {client}\r\n")).await.status
}

/// N-32: countries decide, `deny` over `allow`, on the client and not on the hop; the record says country and rule.
#[tokio::test]
async fn countries_decide_who_may_enter() {
    let upstream = Upstream::saying("in").await;
    let dir = tempfile::TempDir::new().unwrap();
    let file = write(dir.path(), &NETWORKS);
    let fragment = format!(
        "[trust]\nproxies = [\"loopback\"]\n{}geo = {{ file = {file:?}, allow = [\"DE\", \"FR\"], deny = [\"FR\"] }}\n\
         [[sites.\"a.test\".routes]]\npath = \"/strict\"\ngeo.on_unknown = \"deny\"\n\
         [[sites.\"a.test\".routes]]\npath = \"/hidden\"\ndeny_with = 404\n\
         [[sites.\"a.test\".routes]]\npath = \"/france\"\ngeo.deny = []\n",
        site("a.test", &upstream)
    );
    let edge = Edge::start(&fragment).await;
    for (client, path, expected) in [
        ("203.0.113.7", "/", 200),
        ("2001:db8:7::1", "/", 200),
        ("198.51.100.7", "/", 403),
        ("192.0.2.200", "/", 403),
        ("198.51.100.7", "/france", 200),
        ("198.51.100.7", "/hidden", 404),
        // No country has these.
        ("192.0.2.1", "/", 200),
        ("192.168.7.9", "/", 200),
        ("2001:db8:8::1", "/", 200),
        ("192.0.2.1", "/strict", 403),
        ("192.168.7.9", "/strict", 403),
        ("203.0.113.7", "/strict", 200),
    ] {
        assert_eq!(status(&edge, client, path).await, expected, "{client} {path}");
    }
    for (client, cause) in [
        ("198.51.100.7", "the client is in FR, which is in \"geo.deny\""),
        ("192.0.2.200", "the client is in XX, which is not in \"geo.allow\""),
        ("192.0.2.1", "the country of the client is not known: \"geo.on_unknown\""),
    ] {
        let is_it = |record: &serde_json::Value| record["client"] == client && record["code"] == "E403-denied";
        assert_eq!(edge.record_where(client, is_it).await["cause"], cause);
    }
    let refused = edge.get_with("a.test", "/", "X-Forwarded-For: 198.51.100.7\r\n").await;
    assert!(!refused.text().contains("FR"), "which country it was taken for is none of its business");
    assert!(upstream.seen().iter().all(|seen| seen.header("x-forwarded-for") != Some("192.0.2.200")));
}

/// A new file is taken without a reload; one that cannot be used changes nothing, and is said once.
#[tokio::test]
async fn a_database_is_taken_anew_when_its_file_changes() {
    let upstream = Upstream::saying("in").await;
    let dir = tempfile::TempDir::new().unwrap();
    let file = write(dir.path(), &NETWORKS);
    let geo = format!("geo = {{ file = {file:?}, allow = [\"DE\"] }}\n");
    let edge = Edge::start(&format!("[trust]\nproxies = [\"loopback\"]\n{}{geo}", site("a.test", &upstream))).await;
    assert_eq!(status(&edge, "198.51.100.7", "/").await, 403);
    write(dir.path(), &[("198.51.100.0/24", "DE"), ("203.0.113.0/24", "FR")]);
    edge.event("geo_replaced").await;
    assert_eq!(status(&edge, "198.51.100.7", "/").await, 200);
    assert_eq!(status(&edge, "203.0.113.7", "/").await, 403);
    std::fs::write(&file, "half a file").unwrap();
    let told = edge.event("geo_broken").await;
    assert!(told["why"].as_str().unwrap().contains("no database"), "{told}");
    assert_eq!(status(&edge, "203.0.113.7", "/").await, 403, "the old one stays");
    assert!(!edge.reload().await, "a load with it is refused");
    assert_eq!(status(&edge, "203.0.113.7", "/").await, 403);
}

/// A database that is missing or wrong is a fault of the configuration; one without countries is a doubt.
#[test]
fn a_database_that_cannot_be_used_is_reported() {
    let dir = tempfile::TempDir::new().unwrap();
    let check = |geo: &str| {
        let config = format!("[sites.\"a.internal\"]\nupstream = \"127.0.0.1:1\"\ngeo = {{ {geo} }}\n");
        std::fs::write(dir.path().join("tidegate.toml"), config).unwrap();
        run_in(dir.path(), &["check"])
    };
    std::fs::write(dir.path().join("asn.mmdb"), mmdb("Test-ASN", &NETWORKS)).unwrap();
    write(dir.path(), &NETWORKS);
    std::fs::write(dir.path().join("text.mmdb"), "text").unwrap();
    for (geo, code, words) in [
        ("file = \"countries.mmdb\", deny = [\"XX\"]", 0, "0 errors, 0 warnings"),
        ("file = \"none.mmdb\", deny = [\"XX\"]", 2, "there is no such file"),
        ("file = \"text.mmdb\", deny = [\"XX\"]", 2, "it is no database of addresses"),
        ("file = \"asn.mmdb\", deny = [\"XX\"]", 0, "warning[C141]"),
    ] {
        let run = check(geo);
        let all = format!("{}{}", run.stdout, run.stderr);
        assert!(run.code == Some(code) && all.contains(words), "{geo}: {all}");
    }
}
