//! Tests of the checks before an order: loopback stands for the internet, one server for all of the DNS.

use hickory_proto::op::ResponseCode;

use super::*;
use crate::acme::dns::testing::{Call, FakeApi, FakeDns, name};

const ACCOUNT: &str = "https://ca.example/acct/1";

/// A public CA that has a name.
fn public() -> Directory {
    Directory { url: "https://ca.example/directory".into(), ..Directory::letsencrypt() }
}

fn rule(zone: &str, provider: DnsProvider) -> DnsRule {
    let zones = vec![HostName::parse(zone).expect("a name")];
    DnsRule { zones, provider, servers: Vec::new(), propagation: Duration::from_secs(1) }
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::from_config(text).expect("a pattern")
}

/// What is found for one name: certain or not, code, words, help.
async fn found(look: &Look<'_>, text: &str) -> Vec<(bool, &'static str, String, String)> {
    let name = pattern(text);
    let findings = look.at(std::slice::from_ref(&name)).await;
    assert!(findings.iter().all(|finding| finding.name == name), "{findings:?}");
    findings.into_iter().map(|finding| (finding.is_certain, finding.code, finding.why, finding.help)).collect()
}

/// Codes, each with `!` when certain.
async fn codes(look: &Look<'_>, text: &str) -> Vec<String> {
    let all = found(look, text).await;
    all.into_iter().map(|(is_certain, code, ..)| format!("{code}{}", if is_certain { "!" } else { "" })).collect()
}

/// What a look needs; loopback stands for the internet unless `is_near` says else.
struct Scene {
    dns: FakeDns,
    resolver: Resolver,
    policy: AcmePolicy,
    board: Arc<ProofBoard>,
    issuers: Vec<String>,
    world: World,
}

impl Scene {
    async fn new() -> Self {
        let dns = FakeDns::start().await;
        // CAA records are looked for up to the top.
        dns.zone("com").zone("example.com");
        // Nobody listens on port 1 of loopback.
        let world = World { http: 1, https: 1, is_near: |ip| !ip.is_loopback() && is_private(ip) };
        let resolver = Resolver::for_test(dns.address);
        let issuers = vec!["ca.example".to_owned()];
        Self { dns, resolver, policy: AcmePolicy::default(), board: Arc::default(), issuers, world }
    }

    fn look<'a>(&'a self, directory: &'a Directory) -> Look<'a> {
        Look {
            resolver: &self.resolver,
            policy: &self.policy,
            directory,
            board: &self.board,
            issuers: &self.issuers,
            account: Some(Identity { url: ACCOUNT, thumbprint: "thumb", hash_prefix: None }),
            world: self.world,
        }
    }

    /// A web server that everything far leads to.
    async fn web(&mut self, answer: impl Fn(&Call) -> (u16, String) + Send + 'static) -> FakeApi {
        let api = FakeApi::start(answer).await;
        self.world.http = api.address.port();
        api
    }
}

#[tokio::test]
async fn a_name_without_addresses_is_found() {
    let mut scene = Scene::new().await;
    scene.dns.txt("txt.example.com", "x").ip("half.example.com", "10.0.0.1");
    scene.dns.state().broken.push((name("broken.example.com"), ResponseCode::ServFail));
    let directory = public();
    let look = scene.look(&directory);
    let (is_certain, code, why, help) = found(&look, "txt.example.com").await.remove(0);
    assert_eq!((is_certain, code), (true, "no-address"));
    assert_eq!(why, "\"txt.example.com\" has no address record, neither A nor AAAA");
    assert!(help.contains("A or AAAA"));
    let (_, _, why, _) = found(&look, "none.example.com").await.remove(0);
    assert_eq!(why, "\"none.example.com\" does not exist in the DNS (NXDOMAIN)");
    // A resolver that fails says nothing of the name: three questions, and CAA is one of them.
    assert_eq!(codes(&look, "broken.example.com").await, ["lookup", "lookup", "lookup"]);
    // A private CA may see another DNS, unless the file says whom to ask.
    let private = Directory { is_public: false, ..public() };
    assert_eq!(codes(&scene.look(&private), "none.example.com").await, ["no-address"]);
    scene.policy.resolvers = vec![scene.dns.address];
    assert_eq!(codes(&scene.look(&private), "none.example.com").await, ["no-address!"]);
}

#[tokio::test]
async fn private_addresses_cannot_be_reached_by_a_public_ca() {
    let scene = Scene::new().await;
    scene.dns.ip("vpn.example.com", "100.64.0.1").ip("vpn.example.com", "fd00::1");
    scene.dns.ip("both.example.com", "192.168.1.1").ip("both.example.com", "127.0.0.1");
    let directory = public();
    let (is_certain, code, why, help) = found(&scene.look(&directory), "vpn.example.com").await.remove(0);
    assert_eq!((is_certain, code), (true, "private-address"));
    assert!(why.contains("100.64.0.1, fd00::1") && why.contains("HTTP-01 and TLS-ALPN-01 cannot work"), "{why}");
    assert!(help.contains("acme.dns") && help.contains("_validation-persist.vpn.example.com"), "{help}");
    // Beside one that may work it is a doubt; nobody listens at the other one.
    assert_eq!(codes(&scene.look(&directory), "both.example.com").await, ["private-address", "no-answer"]);
    assert_eq!(codes(&scene.look(&directory), "100.64.0.1").await, ["private-address!"]);
    // A private CA reaches them, for all we know.
    let private = Directory { is_public: false, ..public() };
    assert_eq!(codes(&scene.look(&private), "vpn.example.com").await, [""; 0]);
}

#[tokio::test]
async fn an_address_that_leads_to_nobody_is_none() {
    let mut scene = Scene::new().await;
    scene.dns.ip("zero.example.com", "0.0.0.0").ip("zero.example.com", "::").ip("zero.example.com", "::ffff:0.0.0.0");
    scene.dns.ip("many.example.com", "224.0.0.1").ip("many.example.com", "255.255.255.255");
    scene.dns.ip("half.example.com", "::").ip("half.example.com", "127.0.0.1");
    scene.dns.ip("mapped.example.com", "::ffff:127.0.0.1");
    // Whoever connects to an unspecified address gets an answer from the same machine.
    let board = Arc::clone(&scene.board);
    let api = scene
        .web(move |call| {
            let host = call.head.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap_or_default();
            let proof = board.http01(host, call.line.strip_prefix("GET ").unwrap_or_default());
            proof.map_or((404, String::new()), |proof| (200, String::from_utf8_lossy(&proof).into_owned()))
        })
        .await;
    let directory = public();
    let look = scene.look(&directory);
    let (is_certain, code, why, help) = found(&look, "zero.example.com").await.remove(0);
    assert_eq!((is_certain, code), (true, "no-address"));
    assert_eq!(why, "\"zero.example.com\" has no address that leads to a machine, only 0.0.0.0, ::");
    assert!(help.contains("A or AAAA"), "{help}");
    assert_eq!(codes(&look, "many.example.com").await, ["no-address!"]);
    assert_eq!(codes(&look, "0.0.0.0").await, ["no-address!"]);
    assert_eq!(api.lines(), [""; 0], "nobody is asked there");
    let (is_certain, code, why, _) = found(&look, "half.example.com").await.remove(0);
    assert_eq!((is_certain, code), (false, "no-address"));
    assert_eq!(why, "\"half.example.com\" has an address that leads to no machine: ::");
    assert_eq!(codes(&look, "mapped.example.com").await, [""; 0]);
    assert_eq!(api.lines().len(), 2);
}

#[tokio::test]
async fn what_another_view_of_the_dns_may_not_share_is_marked() {
    let mut scene = Scene::new().await;
    scene.dns.ip("in.example.com", "10.0.0.1").ip("web.example.com", "127.0.0.1");
    scene.dns.ip("caa.example.com", "127.0.0.1").caa("caa.example.com", "issue", "other.example");
    let _api = scene.web(|_| (404, "no".into())).await;
    scene.policy.challenges = vec![Challenge::Http01];
    let directory = public();
    for (text, code, is_world) in [
        ("in.example.com", "private-address", true),
        ("none.example.com", "no-address", true),
        ("web.example.com", "foreign-answer", true),
        ("caa.example.com", "caa", true),
        // The machine inside may be led elsewhere than the world.
        ("127.0.0.1", "foreign-answer", true),
        ("*.example.com", "wildcard", false),
        ("10.0.0.1", "private-address", false),
        ("0.0.0.0", "no-address", false),
    ] {
        let findings = scene.look(&directory).at(&[pattern(text)]).await;
        let finding = findings.iter().find(|finding| finding.code == code).expect(text);
        assert_eq!((finding.is_certain, finding.is_world), (true, is_world), "{finding:?}");
    }
    let findings = scene.look(&directory).at(&[pattern("in.example.com")]).await;
    assert!(findings[0].help.contains("set `resolvers` in [acme]"), "{}", findings[0].help);
}

#[test]
fn every_class_of_addresses_is_near_or_far() {
    for (ip, is_near) in [
        ("127.0.0.1", true),
        ("10.1.2.3", true),
        ("172.31.0.1", true),
        ("172.32.0.1", false),
        ("192.168.0.1", true),
        ("169.254.1.1", true),
        ("100.64.0.1", true),
        ("100.127.255.255", true),
        ("100.63.0.1", false),
        ("100.128.0.1", false),
        ("198.51.100.7", false),
        ("::1", true),
        ("fe80::1", true),
        ("fd12::1", true),
        ("::ffff:10.0.0.1", true),
        ("2001:db8::1", false),
    ] {
        assert_eq!(is_private(ip.parse().expect("an address")), is_near, "{ip}");
    }
}

#[tokio::test]
async fn an_address_is_asked_for_our_own_proof() {
    let mut scene = Scene::new().await;
    scene.dns.ip("a.example.com", "127.0.0.1");
    let board = Arc::clone(&scene.board);
    let api = scene
        .web(move |call| {
            let host = call.head.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap_or_default();
            let path = call.line.strip_prefix("GET ").unwrap_or_default();
            let proof = board.http01(host, path);
            proof.map_or((404, String::new()), |proof| (200, String::from_utf8_lossy(&proof).into_owned()))
        })
        .await;
    let directory = public();
    assert_eq!(codes(&scene.look(&directory), "a.example.com").await, [""; 0]);
    assert_eq!(codes(&scene.look(&directory), "127.0.0.1").await, [""; 0]);
    assert_eq!(api.lines().len(), 2);
    let path = api.lines()[0].trim_start_matches("GET ").to_owned();
    assert_eq!(scene.board.http01("a.example.com", &path), None, "the probe is taken down");
}

#[tokio::test]
async fn somebody_else_at_the_address_is_named_with_the_family() {
    let mut scene = Scene::new().await;
    scene.dns.ip("a.example.com", "127.0.0.1").ip("six.example.com", "::1");
    let _api = scene.web(|_| (404, "no".into())).await;
    let directory = public();
    let (is_certain, code, why, help) = found(&scene.look(&directory), "a.example.com").await.remove(0);
    assert_eq!((is_certain, code), (true, "foreign-answer"));
    assert_eq!(why, "127.0.0.1 (IPv4 record) answers, but not this tidegate (status 404, Server: fake)");
    assert!(help.contains("A record of \"a.example.com\""), "{help}");
    // Without HTTP-01, port 80 decides nothing.
    scene.policy.challenges = vec![Challenge::TlsAlpn01];
    assert_eq!(codes(&scene.look(&directory), "a.example.com").await, ["foreign-answer"]);
    scene.policy.challenges = vec![Challenge::Http01];
    assert_eq!(codes(&scene.look(&directory), "a.example.com").await, ["foreign-answer!"]);
    // Nobody listens there over IPv6.
    let (is_certain, code, why, _) = found(&scene.look(&directory), "six.example.com").await.remove(0);
    assert_eq!((is_certain, code), (false, "no-answer"));
    assert!(why.starts_with("port 80 of ::1 (IPv6) gives no answer here: "), "{why}");
    // It is certain for a private CA, too: whoever asks that address gets that answer.
    let private = Directory { is_public: false, ..public() };
    assert_eq!(codes(&scene.look(&private), "a.example.com").await, ["foreign-answer!"]);
}

#[tokio::test]
async fn a_redirect_or_a_fault_may_still_lead_to_us() {
    for status in [301, 308, 502] {
        let mut scene = Scene::new().await;
        scene.dns.ip("a.example.com", "127.0.0.1");
        let _api = scene.web(move |_| (status, String::new())).await;
        assert_eq!(codes(&scene.look(&public()), "a.example.com").await, ["unclear-answer"], "{status}");
    }
}

#[tokio::test]
async fn port_443_may_be_ours_while_port_80_is_not() {
    let mut scene = Scene::new().await;
    scene.dns.ip("a.example.com", "127.0.0.1");
    let _api = scene.web(|_| (404, String::new())).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    scene.world.https = listener.local_addr().expect("bound").port();
    let resolver = Arc::new(OnBoard(Arc::clone(&scene.board)));
    let mut config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![crate::tls::proofs::ACME_TLS.to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // The client sees the outcome.
            let _ = acceptor.accept(stream).await;
        }
    });
    assert_eq!(codes(&scene.look(&public()), "a.example.com").await, [""; 0]);
    // The same server without our proofs.
    scene.board = Arc::default();
    assert_eq!(codes(&scene.look(&public()), "a.example.com").await, ["foreign-answer!"]);
    server.abort();
}

/// Serves the proofs of a board.
#[derive(Debug)]
struct OnBoard(Arc<ProofBoard>);

impl rustls::server::ResolvesServerCert for OnBoard {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        // RFC 8737 3: for this protocol alone.
        hello.alpn()?.find(|protocol| *protocol == crate::tls::proofs::ACME_TLS)?;
        self.0.tls_alpn01(hello.server_name()?)
    }
}

#[test]
fn an_answer_of_one_address_is_weighed_with_the_others() {
    let policy = AcmePolicy { challenges: vec![Challenge::Http01], ..AcmePolicy::default() };
    let (resolver, directory, board) = (Resolver::new(&[]), public(), Arc::default());
    let world = World { http: 1, https: 1, is_near: is_private };
    let look = Look {
        resolver: &resolver,
        policy: &policy,
        directory: &directory,
        board: &board,
        issuers: &[],
        account: None,
        world,
    };
    let probed = |family, is_ours| {
        let ip = if family == Family::V4 { "198.51.100.9" } else { "2001:db8::9" };
        let seen = if is_ours { Seen::Ours } else { Seen::Foreign { what: "answers".into() } };
        Probed { family, ip: ip.parse().expect("an address"), seen, tls: None }
    };
    let (v4, v6) = (Family::V4, Family::V6);
    for (all, expected) in [
        (vec![(v4, false)], vec![true]),
        (vec![(v4, true)], vec![]),
        (vec![(v4, false), (v4, true)], vec![false]),
        // A stale AAAA record: CAs ask over IPv6 first.
        (vec![(v4, true), (v6, false)], vec![true]),
        (vec![(v4, false), (v6, true)], vec![false]),
        (vec![(v4, false), (v6, false)], vec![true, true]),
    ] {
        let all: Vec<Probed> = all.into_iter().map(|(family, is_ours)| probed(family, is_ours)).collect();
        let findings = look.probed(&pattern("a.example.com"), &all);
        assert_eq!(findings.iter().map(|finding| finding.is_certain).collect::<Vec<_>>(), expected);
    }
    let stale = look.probed(&pattern("a.example.com"), &[probed(v4, true), probed(v6, false)]).remove(0);
    assert_eq!(stale.why, "2001:db8::9 (IPv6 record) answers");
    assert!(stale.help.contains("AAAA record of \"a.example.com\""), "{}", stale.help);
}

#[tokio::test]
async fn caa_records_that_forbid_the_ca_are_named_with_their_domain() {
    let mut scene = Scene::new().await;
    scene.dns.ip("a.example.com", "10.0.0.1").caa("example.com", "issue", "other.example");
    scene.dns.caa("example.com", "issuewild", "ca.example; validationmethods=dns-01");
    scene.policy.dns = vec![rule(
        "example.com",
        DnsProvider::Exec(crate::site::acme::Program { program: "hook".into(), args: Vec::new() }),
    )];
    let directory = public();
    let look = scene.look(&directory);
    let (is_certain, code, why, help) = found(&look, "a.example.com").await.remove(0);
    assert_eq!((is_certain, code), (true, "caa"));
    assert_eq!(
        why,
        "the CAA records of \"example.com\" forbid it: `0 issue \"other.example\"` does not allow ca.example"
    );
    assert!(help.ends_with("example.com. CAA 0 issue \"ca.example\""), "{help}");
    // The wildcard has a record of its own, and is proved by DNS.
    assert_eq!(codes(&look, "*.example.com").await, [""; 0]);
    let private = Directory { is_public: false, ..public() };
    assert_eq!(codes(&scene.look(&private), "a.example.com").await, ["caa"]);
}

#[tokio::test]
async fn a_wildcard_needs_dns() {
    let scene = Scene::new().await;
    assert_eq!(codes(&scene.look(&public()), "*.example.com").await, ["wildcard!"]);
}

#[tokio::test]
async fn the_persistent_record_is_looked_for_and_printed() {
    let mut scene = Scene::new().await;
    scene.policy.dns = vec![rule("example.com", DnsProvider::Persist)];
    scene.dns.txt("_validation-persist.a.example.com", "ca.example; accounturi=https://ca.example/acct/1");
    scene.dns.txt("_validation-persist.b.example.com", "ca.example; accounturi=https://ca.example/acct/2");
    let directory = public();
    let look = scene.look(&directory);
    assert_eq!(codes(&look, "a.example.com").await, [""; 0]);
    assert_eq!(codes(&look, "*.a.example.com").await, ["persist-record!"]);
    let (is_certain, code, why, help) = found(&look, "b.example.com").await.remove(0);
    assert_eq!((is_certain, code), (true, "persist-record"));
    assert!(why.ends_with("acct/2\" is of another account"), "{why}");
    assert_eq!(
        help,
        "create this record, once and for all: _validation-persist.b.example.com. TXT \
         \"ca.example; accounturi=https://ca.example/acct/1\""
    );
    let (_, _, why, help) = found(&look, "*.c.example.com").await.remove(0);
    assert_eq!(why, "\"_validation-persist.c.example.com\" has no record of ca.example");
    assert!(help.ends_with("acct/1; policy=wildcard\""), "{help}");
    let unknown = Look { account: None, ..look };
    assert_eq!(codes(&unknown, "a.example.com").await, ["persist-record"]);
}

#[tokio::test(start_paused = true)]
async fn all_names_together_take_at_most_15_seconds() {
    let mut scene = Scene::new().await;
    scene.dns.ip("a.example.com", "127.0.0.1");
    let names: Vec<HostPattern> = (0..40).map(|number| pattern(&format!("n{number}.example.com"))).collect();
    for number in 0..40 {
        scene.dns.state().silent.push(name(&format!("n{number}.example.com")));
    }
    scene.resolver = Resolver::for_test(scene.dns.address);
    let begin = Instant::now();
    let findings = scene.look(&public()).at(&names).await;
    assert!(begin.elapsed() <= Duration::from_secs(15), "{:?}", begin.elapsed());
    assert!(findings.iter().all(|finding| !finding.is_certain));
    let named: std::collections::HashSet<String> = findings.iter().map(|finding| finding.name.to_string()).collect();
    assert_eq!(named.len(), 40, "each name is reported");
}
