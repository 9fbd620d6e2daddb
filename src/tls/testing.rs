//! What the tests of `tls` share: an authority, site tables, clients, and a handshake in memory.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certs::CertStore;
use super::local_ca::LocalCa;
use super::{Handshake, HandshakeError, Policies, TlsFacts, accept, provider};
use crate::addr::{HostName, HostPattern};
use crate::site::policy::{Alpn, Attribution, CertificateSource, TlsPolicy, TlsProfile, Trust};
use crate::site::route::RouteTable;
use crate::site::{
    AccessOutput, EdgeSettings, Listener, ListenerId, LogLevel, LogPolicy, ProcessPolicy, Site, SiteTable, SiteTls,
    UnknownSni,
};

/// An authority whose files are gone already.
pub(super) fn authority() -> LocalCa {
    LocalCa::open(tempfile::tempdir().expect("a directory").path()).expect("an authority")
}

/// A pattern as the file writes it.
pub(super) fn pattern(text: &str) -> HostPattern {
    HostPattern::from_config(text).expect("a pattern")
}

/// The policy that a file without any TLS key gives.
pub(super) fn policy() -> TlsPolicy {
    TlsPolicy { profile: TlsProfile::Intermediate, alpn: vec![Alpn::Http2, Alpn::Http11], client_cert: None }
}

/// A site on the default listener.
pub(super) fn site(host: &str, policy: &TlsPolicy, certificate: CertificateSource) -> Site {
    Site {
        host: pattern(host),
        label: host.into(),
        aliases: Vec::new(),
        serve_aliases: false,
        listener: ListenerId(0),
        tls: Some(SiteTls { policy: Arc::new(policy.clone()), certificate, reuse_key: false }),
        preset: None,
        attribution: Attribution::Client,
        connections: None,
        routes: RouteTable::default(),
        why: None,
    }
}

/// A table of sites.
pub(super) fn table(storage: &Path, unknown_sni: UnknownSni, sites: Vec<Site>) -> SiteTable {
    let listener = Listener {
        name: None,
        http: Vec::new(),
        https: Vec::new(),
        handshake_timeout: Duration::from_secs(10),
        request_head_timeout: Duration::from_secs(30),
        keep_alive_timeout: Duration::from_secs(75),
    };
    let log = LogPolicy {
        level: LogLevel::Info,
        format: None,
        access: AccessOutput::Off,
        redact_query: Vec::new(),
        redact_headers: Vec::new(),
    };
    let process = ProcessPolicy {
        grace: Duration::from_secs(30),
        tunnel_grace: Duration::from_secs(5),
        history: 20,
        max_connections: None,
        workers: None,
    };
    let edge = EdgeSettings {
        listeners: vec![listener.clone(), Listener { name: Some("vpn".into()), ..listener }],
        trust: Trust::default(),
        unknown_sni,
        log,
        admin: crate::site::policy::AdminPolicy::default(),
        process,
        acme: std::sync::Arc::default(),
        storage: storage.to_owned(),
        identity_headers: Vec::new(),
    };
    SiteTable::new(edge, sites.into_iter().map(Arc::new).collect()).expect("a table")
}

/// Sites with local certificates, in force.
pub(super) struct Edge {
    pub(super) storage: tempfile::TempDir,
    pub(super) table: SiteTable,
    pub(super) policies: Policies,
    pub(super) local: Option<IpAddr>,
    pub(super) listener: ListenerId,
}

impl Edge {
    pub(super) fn new(unknown_sni: UnknownSni, sites: Vec<Site>) -> Self {
        let storage = tempfile::tempdir().expect("a directory");
        let table = table(storage.path(), unknown_sni, sites);
        let certs = Arc::new(CertStore::new());
        super::publish_all(&table, &certs).expect("certificates");
        let policies = Policies::new(certs, Arc::default());
        policies.prepare(&table).expect("policies");
        Self { storage, table, policies, local: None, listener: ListenerId(0) }
    }

    /// Sites of one policy.
    pub(super) fn plain(hosts: &[&str]) -> Self {
        let sites = hosts.iter().map(|host| site(host, &policy(), CertificateSource::Local)).collect();
        Self::new(UnknownSni::Reject, sites)
    }

    pub(super) fn root(&self) -> CertificateDer<'static> {
        root_of(&LocalCa::open(self.storage.path()).expect("the authority"))
    }

    /// A client that trusts the edge, and keeps its sessions for as long as the value lives.
    pub(super) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).expect("a root");
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// Runs one handshake, and one message each way so that tickets arrive.
    pub(super) async fn meet(&self, client: &ClientConfig, name: &str) -> (Server, Client) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = async {
            let accepted = self.accept(far).await?;
            let Handshake { mut stream, facts } = accepted;
            let session = stream.get_ref().1.handshake_kind();
            let mut byte = [0];
            // The client may have refused us after we were done; then there is nothing to answer.
            if stream.read_exact(&mut byte).await.is_ok() {
                stream.write_all(b"b").await.expect("the client reads");
                stream.flush().await.expect("the client reads");
            }
            Ok(Met { facts: TlsFacts::clone(&facts), kind: session.expect("finished") })
        };
        tokio::join!(server, connect(near, client.clone(), name))
    }

    pub(super) async fn accept(&self, stream: DuplexStream) -> Result<Handshake<DuplexStream>, HandshakeError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        accept(stream, &self.policies, &self.table, self.listener, self.local, deadline).await
    }
}

/// A handshake from the edge's side.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) facts: TlsFacts,
    pub(super) kind: rustls::HandshakeKind,
}

pub(super) type Server = Result<Met, HandshakeError>;
pub(super) type Client = Result<TlsStream<DuplexStream>, std::io::Error>;

async fn connect(stream: DuplexStream, config: ClientConfig, name: &str) -> Client {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"a").await?;
    stream.flush().await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(stream)
}

/// A client that resumes by session ID where it may (TLS 1.2).
pub(super) fn by_session_id(mut client: ClientConfig) -> ClientConfig {
    client.resumption =
        Resumption::in_memory_sessions(16).tls12_resumption(rustls::client::Tls12Resumption::SessionIdOnly);
    client
}

/// An authority's root.
pub(super) fn root_of(ca: &LocalCa) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).expect("a root")
}

/// A host name.
pub(super) fn host(text: &str) -> HostName {
    HostName::parse(text).expect("a name")
}

/// A ClientHello of TLS 1.0 without extensions.
pub(super) fn old_hello() -> Vec<u8> {
    let mut body = vec![3, 1];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut hello = vec![22, 3, 1, 0, (body.len() + 4) as u8, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    hello
}
