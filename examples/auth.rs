//! A small auth service in the shape of oauth2-proxy: a page to log in, a cookie, and `/auth`, which says with 202 and
//! `X-Auth-Request-User` and `-Email` who asks, or with 302 or 401 that nobody has logged in.
//!
//! `cargo run --example auth`, `cargo run --example events`, then `tidegate run -c examples/auth.toml`: log in as alice
//! with "wonderland". Sessions are in memory, and there is one password for all: to show how it fits, not to be used.
//! Tests include this file as a module.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// How the service behaves.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The password of everybody
    #[arg(long, default_value = "wonderland")]
    pub(crate) password: String,
    /// Behind the name: alice@example.com
    #[arg(long, default_value = "example.com")]
    pub(crate) domain: String,
}

/// A small auth service
#[derive(clap::Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:4180")]
    listen: SocketAddr,
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "a test that includes this file has its own main; others wait for the line"
)]
async fn main() -> io::Result<()> {
    let Arguments { listen, options } = Arguments::parse();
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, options).await
}

/// Serves until accepting fails. Dropping it stops accepting; open connections go on.
pub(crate) async fn serve(listener: TcpListener, options: Options) -> io::Result<()> {
    let service = Arc::new(Service { options, sessions: Mutex::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            drop(served); // how a connection ends is the peer's business
        });
    }
}

/// Who has logged in, by the value of the cookie.
struct Service {
    options: Options,
    sessions: Mutex<HashMap<String, String>>,
}

type Answer = Response<Full<Bytes>>;

const COOKIE: &str = "example_session";

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match (request.method(), request.uri().path()) {
            (_, "/auth") => self.judge(request.headers()),
            (&Method::GET | &Method::HEAD, "/login") => {
                page(StatusCode::OK, &parameter(request.uri().query().unwrap_or_default(), "rd"), "")
            }
            (&Method::POST, "/login") => self.log_in(request.into_body()).await,
            (_, "/logout") => {
                self.sessions().retain(|value, _| Some(value.as_str()) != cookie(request.headers()));
                let mut answer = redirect(StatusCode::SEE_OTHER, "/login");
                set_cookie(&mut answer, "", "; Max-Age=0");
                answer
            }
            _ => text(StatusCode::NOT_FOUND, "no such path\n"),
        }
    }

    /// Says who asks, in the headers that the edge copies, or where to log in.
    fn judge(&self, headers: &HeaderMap) -> Answer {
        let user = cookie(headers).and_then(|value| self.sessions().get(value).cloned());
        if let Some(user) = user {
            let mut answer = text(StatusCode::ACCEPTED, "");
            let email = format!("{user}@{}", self.options.domain);
            for (name, value) in [("x-auth-request-user", &user), ("x-auth-request-email", &email)] {
                if let Ok(value) = HeaderValue::from_str(value) {
                    answer.headers_mut().insert(name, value);
                }
            }
            return answer;
        }
        let has = |name: &str, wanted: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(wanted))
        };
        if !has("accept", "text/html") {
            return text(StatusCode::UNAUTHORIZED, "log in first\n");
        }
        // Where the browser wanted to go, in the words of the edge.
        let asked = headers.get("x-forwarded-uri").and_then(|value| value.to_str().ok()).unwrap_or("/");
        redirect(StatusCode::FOUND, &format!("/login?rd={}", encoded(asked)))
    }

    /// Takes the form.
    async fn log_in(&self, body: Incoming) -> Answer {
        let Ok(body) = Limited::new(body, 4096).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the form is too large\n");
        };
        let body = body.to_bytes();
        let form = String::from_utf8_lossy(&body);
        let (user, password, back) = (parameter(&form, "user"), parameter(&form, "password"), parameter(&form, "rd"));
        let is_name = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut value = [0; 24];
        if !is_name || password != self.options.password || SystemRandom::new().fill(&mut value).is_err() {
            return page(StatusCode::UNAUTHORIZED, &back, "<p>That is not right.</p>");
        }
        let value = BASE64_URL_SAFE_NO_PAD.encode(value);
        self.sessions().insert(value.clone(), user);
        // A path of this host only: anything else would send people who log in here to somebody else's page.
        let is_ours = back.starts_with('/') && !back.starts_with("//") && !back.contains(['\\', '\r', '\n']);
        let mut answer = redirect(StatusCode::SEE_OTHER, if is_ours { &back } else { "/" });
        set_cookie(&mut answer, &value, "");
        answer
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let crumbs = headers.get(header::COOKIE)?.to_str().ok()?.split(';');
    crumbs.filter_map(|crumb| crumb.trim().strip_prefix(COOKIE)?.strip_prefix('=')).next()
}

fn set_cookie(answer: &mut Answer, value: &str, more: &str) {
    let cookie = format!("{COOKIE}={value}; Path=/; HttpOnly; Secure; SameSite=Lax{more}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().append(header::SET_COOKIE, cookie);
    }
}

/// One value of a form or a query, decoded.
fn parameter(form: &str, name: &str) -> String {
    let found = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    let mut bytes = Vec::new();
    let mut rest = found.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        rest = after;
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            (byte, ..) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text as the value of a parameter.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The page to log in.
fn page(status: StatusCode, back: &str, message: &str) -> Answer {
    let back = back.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    let html = format!(
        "<!doctype html><title>Log in</title>{message}<form method=post action=/login>\
         <input type=hidden name=rd value=\"{back}\"><input name=user autofocus placeholder=name>\
         <input name=password type=password placeholder=password><button>Log in</button></form>\n"
    );
    let mut answer = text(status, &html);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer
}

fn redirect(status: StatusCode, to: &str) -> Answer {
    let mut answer = text(status, "");
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/")));
    answer
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
