//! Tests of proofs by DNS: what was written is taken down again, however the order ends.

use std::time::Duration;

use super::*;
use crate::acme::dns::resolver::Resolver;
use crate::acme::dns::testing::{FakeDns, host};
use crate::site::acme::Program;

/// Adds, then says that it failed.
const HOOK: &str = r#"
case $1 in
present) echo "$2 $3" >>"$0"; exit 1 ;;
cleanup) grep -vx -e "$2 $3" "$0" >"$0.new" || :; mv "$0.new" "$0" ;;
esac
"#;

#[tokio::test]
async fn a_record_that_was_written_by_a_program_that_fails_is_taken_down() {
    let server = FakeDns::start().await;
    server.zone("example.test").cname("_acme-challenge.bad.example.test", "-x.example.test");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let args = ["-c".into(), HOOK.into(), log.to_string_lossy().as_ref().into()];
    let rule = DnsRule {
        zones: vec![host("example.test")],
        provider: DnsProvider::Exec(Program { program: "sh".into(), args: args.to_vec() }),
        servers: Vec::new(),
        propagation: Duration::from_secs(1),
    };
    let dns = Dns::for_test(Resolver::for_test(server.address));
    let board = Arc::default();
    let means = Means { board: &board, dns: &dns, stage: &|_| {}, drain: &crate::drain::Drain::new() };
    let value = |name: &str| (&rule, HostPattern::from_config(name).expect("a name"), "value".to_owned());
    let written = || std::fs::read_to_string(&log).unwrap_or_default();

    let mut up = Up::default();
    let values = vec![value("a.example.test"), value("b.example.test")];
    put_into_dns(values, &means, &mut up).await.expect_err("the program fails");
    assert_eq!(written(), "_acme-challenge.a.example.test. value\n", "the second was not tried");
    up.take_down(&dns).await;
    assert_eq!(written(), "");

    // Where one has no place, nothing is written.
    let mut up = Up::default();
    let values = vec![value("a.example.test"), value("bad.example.test")];
    put_into_dns(values, &means, &mut up).await.expect_err("it looks like an option");
    assert_eq!(written(), "");
    up.take_down(&dns).await;
}
