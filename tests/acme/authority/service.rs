//! The sockets: HTTPS for ACME with the faults that are set, plain HTTP for control, and an entry for each request.

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LINK, LOCATION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::book::unix_millis;
use super::control;
use super::fault::{Fault, Kind};
use super::front::{Answer, Ask, Body, Route, answer};
use super::jws::Envelope;
use super::pki::Pki;
use super::problem::Problem;
use super::settings::{Options, World};

/// An authority that listens.
pub(crate) struct Authority {
    pub(crate) acme: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) directory: String,
    tasks: JoinSet<()>,
}

/// The largest request: a certificate request has a kilobyte or two.
const LARGEST: usize = 256 << 10;

pub(crate) async fn start(options: Options) -> Result<Authority, Box<dyn Error + Send + Sync>> {
    let pki = Pki::new()?;
    if let Some(file) = &options.root_out {
        std::fs::write(file, pki.root_pem())?;
    }
    let listener = TcpListener::bind(options.listen).await?;
    let acme = listener.local_addr()?;
    let control_listener = TcpListener::bind(options.control).await?;
    let control = control_listener.local_addr()?;
    let (certificate, key) = pki.server(acme.ip())?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let resolver = options.dns_server.map(resolver).transpose()?;
    let base = format!("https://{acme}");
    let directory = format!("{base}/directory");
    let world = Arc::new(World::new(options, base, pki, resolver));
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(Arc::clone(&world), listener, acme, TlsAcceptor::from(Arc::new(tls))));
    tasks.spawn(control::accept(Arc::clone(&world), control_listener));
    Ok(Authority { acme, control, directory, tasks })
}

impl Authority {
    /// Never, unless a part of the authority is broken.
    pub(crate) async fn ended(mut self) {
        self.tasks.join_next().await;
    }
}

/// Asks this one server each time: nothing is remembered, no file of hosts is read.
fn resolver(server: SocketAddr) -> Result<TokioResolver, Box<dyn Error + Send + Sync>> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let servers = vec![NameServerConfig::new(server.ip(), true, connections.into())];
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = Duration::from_secs(2);
    Ok(builder.build()?)
}

/// Accepts for ever; while a fault closes the port there is no listener.
async fn accept(world: Arc<World>, listener: TcpListener, address: SocketAddr, tls: TlsAcceptor) {
    let mut listener = Some(listener);
    let mut faults = world.fault.subscribe();
    loop {
        let is_closed = faults.borrow_and_update().as_ref().is_some_and(|f| f.fault == Kind::Down && f.closed);
        match (&listener, is_closed) {
            (Some(_), true) => listener = None,
            (None, false) => listener = Some(TcpListener::bind(address).await.expect("the port was ours")),
            (None, true) => faults.changed().await.expect("the world has the sender"),
            (Some(open), false) => tokio::select! {
                accepted = open.accept() => {
                    let (stream, peer) = accepted.expect("descriptors for a test's clients");
                    tokio::spawn(serve(Arc::clone(&world), stream, peer, tls.clone()));
                }
                changed = faults.changed() => changed.expect("the world has the sender"),
            },
        }
    }
}

/// One connection.
async fn serve(world: Arc<World>, stream: TcpStream, peer: SocketAddr, tls: TlsAcceptor) {
    if world.fault().is_some_and(|fault| fault.fault == Kind::Down) {
        let entry = json!({"time": unix_millis(), "peer": peer, "method": null, "kind": "connection", "fault": "down"});
        world.note(entry);
        // The RST of a port that nobody listens on, as near as an open port comes to it.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return;
    }
    // A client that does not like us may leave at any time; what it asked for is in the log.
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(move |request| {
        let world = Arc::clone(&world);
        async move { exchange(&world, peer, request).await }
    });
    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// One request: fault, answer, log. An error drops the connection.
async fn exchange(
    world: &Arc<World>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let began = Instant::now();
    let time = unix_millis();
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let route = Route::parse(&path);
    let body = Limited::new(body, LARGEST).collect().await.map_err(io::Error::other)?.to_bytes();
    let kind = route.kind();
    let mut note = json!({"time": time, "peer": peer, "method": head.method.as_str(), "kind": kind});
    note["names"] = mentioned(world, &route, &body);
    let fault = world.fault().filter(|fault| fault.is_at(kind));
    let early = match &fault {
        Some(fault) => instead(fault).await,
        None => Early::Nothing,
    };
    if let Some(fault) = &fault {
        note["fault"] = fault.fault.as_str().into();
    }
    let (answer, retry_after_problem) = match early {
        Early::Drop | Early::Never => {
            world.note(note);
            if matches!(early, Early::Never) {
                pending::<Infallible>().await;
            }
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Early::Page => {
            note["status"] = 200.into();
            world.note(note);
            let page = "<!doctype html><title>Maintenance</title><p>We will be back soon.";
            let mut response = Response::new(Full::from(page));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            return Ok(response);
        }
        Early::Refuse(problem) => (Err(problem), true),
        Early::Nothing => {
            let is_jose = head.headers.get(CONTENT_TYPE).is_some_and(|value| value == "application/jose+json");
            let ask = Ask { method: &head.method, path: &path, is_jose, body: &body };
            (answer(world, &route, &ask, &mut note), false)
        }
    };
    let is_cut = fault.as_ref().is_some_and(|fault| fault.fault == Kind::Malformed);
    let mut response = respond(world, answer, is_cut, &mut note);
    // RFC 8555 6.5: with each answer to a POST, and where a nonce is asked for. A front that is away knows none.
    if !retry_after_problem && (head.method == Method::POST || matches!(route, Route::NewNonce)) {
        let nonce = world.book().new_nonce();
        response.headers_mut().insert("Replay-Nonce", header(&nonce));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    note["status"] = response.status().as_u16().into();
    note["seconds"] = began.elapsed().as_secs_f64().into();
    world.note(note);
    Ok(response)
}

/// What a fault puts in the place of an answer.
enum Early {
    Nothing,
    Drop,
    Never,
    Page,
    Refuse(Problem),
}

async fn instead(fault: &Fault) -> Early {
    match fault.fault {
        Kind::Down => Early::Drop,
        Kind::Hang => Early::Never,
        Kind::Html => Early::Page,
        Kind::RateLimited => {
            let mut problem = Problem::new(429, "rateLimited", "too many new orders; this one was not looked at");
            problem.retry_after = Some(fault.retry_after.unwrap_or(30));
            Early::Refuse(problem)
        }
        Kind::Unavailable => {
            let mut problem = Problem::new(503, "serverInternal", "the service is down for maintenance");
            problem.retry_after = fault.retry_after;
            Early::Refuse(problem)
        }
        Kind::Slow => {
            tokio::time::sleep(Duration::from_secs(fault.seconds.unwrap_or(5))).await;
            Early::Nothing
        }
        Kind::Malformed | Kind::WrongCertificate | Kind::NoIssuer | Kind::RefuseValidation => Early::Nothing,
    }
}

fn respond(world: &World, answer: Result<Answer, Problem>, is_cut: bool, note: &mut Value) -> Response<Full<Bytes>> {
    let (status, body, media, location, retry_after) = match answer {
        Ok(answer) => {
            let (media, body) = match answer.body {
                Body::Empty => ("", String::new()),
                Body::Json(value) => ("application/json", value.to_string()),
                Body::Pem(chain) => ("application/pem-certificate-chain", chain),
            };
            (answer.status, body, media, answer.location, answer.retry_after)
        }
        Err(problem) => {
            note["problem"] = json!({"type": problem.kind, "detail": problem.detail});
            (problem.status, problem.json().to_string(), "application/problem+json", None, problem.retry_after)
        }
    };
    let body = if is_cut && media.ends_with("json") { body[..body.len() / 2].to_owned() } else { body };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status.try_into().expect("a status of ours");
    let headers = response.headers_mut();
    headers.insert(LINK, header(&format!("<{}>;rel=\"index\"", world.url("/directory"))));
    if !media.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    }
    if let Some(location) = location {
        headers.insert(LOCATION, header(&location));
    }
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The names that a request is about, for the log; of a new order also when a fault refuses it unread.
fn mentioned(world: &World, route: &Route, body: &[u8]) -> Value {
    let book = world.book();
    let order = match route {
        Route::NewOrder => {
            let payload = Envelope::parse(body).ok().and_then(|e| serde_json::from_slice::<Value>(&e.payload).ok());
            let identifiers = payload.and_then(|payload| payload["identifiers"].as_array().cloned());
            let names = identifiers.map(|all| all.iter().map(|one| one["value"].clone()).collect::<Vec<_>>());
            return json!(names.unwrap_or_default());
        }
        Route::Order(id) | Route::Finalize(id) => Some(*id),
        Route::Authorization(id) | Route::Challenge(id, _) => book.authorizations.get(*id).map(|it| it.order),
        Route::Certificate(id) => return json!(book.issued.get(*id).map(|issued| &issued.names)),
        _ => None,
    };
    let order = order.and_then(|id| book.orders.get(id));
    json!(order.map(|order| super::orders::names(&order.identifiers)).unwrap_or_default())
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("made of URLs and base64url")
}
