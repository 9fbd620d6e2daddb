//! Site tables for the tests of the layers above the site, and how a drain waits.

use super::*;
use crate::addr::{HostPattern, ListenAddr};
use crate::site::policy::{
    Alpn, Attribution, CertificateSource, HeaderOps, HostPolicy, Limits, Timeouts, TlsPolicy, TlsProfile,
};
use crate::site::route::{Action, Condition, Forward, Route, RouteTable};
use crate::site::upstream::{Balance, Endpoint, EndpointAddr, Upstream};
use crate::site::{AccessOutput, EdgeSettings, Listener, ListenerId, LogLevel, LogPolicy, Site, SiteTls, UnknownSni};

/// What sends everything to 127.0.0.1:18789.
pub(crate) fn forward() -> Forward {
    let address = EndpointAddr::Ip(([127, 0, 0, 1], 18789).into());
    let endpoint = Endpoint::new(address, None, Duration::from_secs(4), 8);
    let upstream = Upstream {
        name: endpoint.label.clone(),
        endpoints: vec![Arc::new(endpoint)],
        balance: Balance::LeastConn,
        hold: Duration::ZERO,
        probe: None,
        bound: None,
    };
    Forward {
        upstream: Arc::new(upstream),
        host: HostPolicy::Preserve,
        collect_request: false,
        strip: None,
        embed: None,
    }
}

/// A site that does so.
pub(crate) fn site(host: &str) -> Site {
    let route = Route {
        condition: Condition::default(),
        access: None,
        auth: Vec::new(),
        hooks: Vec::new(),
        action: Action::Forward(forward()),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        limiters: None,
        headers: HeaderOps::default(),
        origins: None,
        hsts: None,
        errors: Vec::new(),
    };
    let policy =
        TlsPolicy { profile: TlsProfile::Intermediate, alpn: vec![Alpn::Http2, Alpn::Http11], client_cert: None };
    Site {
        host: HostPattern::from_config(host).expect("a host name"),
        label: Arc::from(host),
        aliases: Vec::new(),
        serve_aliases: false,
        listener: ListenerId(0),
        tls: Some(SiteTls { policy: Arc::new(policy), certificate: CertificateSource::Local, reuse_key: false }),
        preset: Some("openclaw"),
        attribution: Attribution::Client,
        connections: None,
        routes: RouteTable::new(vec![Arc::new(route)]),
        why: None,
    }
}

/// A table with one listener.
fn build(http: &[&str], https: &[&str], sites: Vec<Site>) -> SiteTable {
    let parsed = |texts: &[&str]| {
        texts.iter().map(|text| ListenAddr::Tcp(text.parse().expect("a socket address"))).collect::<Vec<_>>()
    };
    let listener = Listener {
        name: None,
        http: parsed(http),
        https: parsed(https),
        handshake_timeout: Duration::from_secs(10),
        request_head_timeout: Duration::from_secs(30),
        keep_alive_timeout: Duration::from_secs(75),
    };
    let edge = EdgeSettings {
        listeners: vec![listener],
        trust: crate::site::policy::Trust::default(),
        unknown_sni: UnknownSni::Reject,
        log: LogPolicy {
            level: LogLevel::Info,
            format: None,
            access: AccessOutput::Off,
            redact_query: Vec::new(),
            redact_headers: Vec::new(),
        },
        admin: crate::site::policy::AdminPolicy::default(),
        process: ProcessPolicy {
            grace: Duration::from_secs(30),
            tunnel_grace: Duration::from_secs(5),
            history: 20,
            max_connections: None,
            workers: None,
        },
        acme: Arc::default(),
        storage: std::path::PathBuf::from("/var/lib/tidegate"),
        identity_headers: Vec::new(),
    };
    SiteTable::new(edge, sites.into_iter().map(Arc::new).collect()).expect("no name twice")
}

/// A table with these addresses and the site `localhost`.
pub(crate) fn table(http: &[&str], https: &[&str]) -> SiteTable {
    build(http, https, vec![site("localhost")])
}

/// A table with these sites.
pub(crate) fn table_of(sites: Vec<Site>) -> SiteTable {
    build(&["127.0.0.1:80"], &["127.0.0.1:443"], sites)
}

#[tokio::test]
async fn a_drain_waits_for_requests_until_its_deadline() {
    const FAR: Duration = Duration::from_secs(3600);
    let drain = Drain::new();
    // Without work it ends at once, however far the deadline is.
    requests_ended(&drain, Instant::now() + FAR).await;
    // With a request it ends with the request.
    let request = drain.guard(Work::Request);
    let ended = tokio::spawn({
        let drain = drain.clone();
        async move { requests_ended(&drain, Instant::now() + FAR).await }
    });
    tokio::task::yield_now().await;
    assert!(!ended.is_finished());
    drop(request);
    ended.await.expect("it ends");
    // A request that does not end is left at the deadline.
    let _stuck = drain.guard(Work::Request);
    let until = Instant::now() + Duration::from_millis(20);
    requests_ended(&drain, until).await;
    assert!(Instant::now() >= until);
}

#[tokio::test]
async fn a_silent_connection_holds_a_drain_up_for_a_moment_only() {
    let drain = Drain::new();
    let _silent = drain.guard(Work::Connection);
    requests_ended(&drain, Instant::now() + Duration::from_secs(3600)).await;
}
