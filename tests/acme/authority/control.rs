//! The control port, for the test that started the authority:
//! `PUT` and `DELETE /fault`, `PUT /lifetime {"lifetime":"60s"}`, `PUT /clock {"ahead":"3d"}`,
//! `PUT /ari {"serial":"…","start":UNIX,"end":UNIX}`, `GET /log` and `GET /issued` (one JSON document a line).
//! `GET /log?after=N` gives the entries after the first N, and waits a while if there is none yet.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::net::TcpListener;

use super::book::Issued;
use super::fault::Fault;
use super::settings::{World, duration};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifetime {
    lifetime: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    ahead: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    serial: String,
    start: i64,
    end: i64,
}

/// How long a request for news waits.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn accept(world: Arc<World>, listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.expect("descriptors for a test's clients");
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let service = service_fn(|request| exchange(&world, request));
            // The test may leave at any time.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn exchange(world: &World, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let after = head.uri.query().and_then(|query| query.strip_prefix("after=")).and_then(|after| after.parse().ok());
    if let Some(after) = after {
        let mut entries = world.entries.subscribe();
        // Nothing new is an answer too: whoever waits has a bound of his own.
        let _ = tokio::time::timeout(PATIENCE, entries.wait_for(|count| *count > after)).await;
        let text = lines(world.book().log.iter().skip(after).cloned());
        return Ok(Response::new(Full::from(text)));
    }
    let answer = match body.collect().await {
        Ok(body) => control(world, &head.method, head.uri.path(), &body.to_bytes()),
        Err(error) => Err(error.to_string()),
    };
    let mut response = Response::default();
    match answer {
        Ok(text) => *response.body_mut() = Full::from(text),
        Err(why) => {
            *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
            *response.body_mut() = Full::from(why);
        }
    }
    Ok(response)
}

fn control(world: &World, method: &Method, path: &str, body: &[u8]) -> Result<String, String> {
    match (method.as_str(), path) {
        ("PUT", "/fault") => {
            let fault: Fault = serde_json::from_slice(body).map_err(|error| error.to_string())?;
            world.fault.send_replace(Some(fault));
        }
        ("DELETE", "/fault") => {
            world.fault.send_replace(None);
        }
        ("PUT", "/lifetime") => {
            let asked: Lifetime = serde_json::from_slice(body).map_err(|error| error.to_string())?;
            world.book().lifetime = duration(&asked.lifetime)?;
        }
        ("PUT", "/clock") => {
            let asked: Clock = serde_json::from_slice(body).map_err(|error| error.to_string())?;
            world.book().ahead = duration(&asked.ahead)?;
        }
        ("PUT", "/ari") => move_window(world, body)?,
        ("GET", "/log") => return Ok(lines(world.book().log.iter().cloned())),
        ("GET", "/issued") => return Ok(lines(world.book().issued.iter().map(Issued::json))),
        _ => return Err(format!("no {method} {path} here")),
    }
    Ok(String::new())
}

fn move_window(world: &World, body: &[u8]) -> Result<(), String> {
    let asked: Window = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let time = |unix| OffsetDateTime::from_unix_timestamp(unix).map_err(|error| error.to_string());
    let window = (time(asked.start)?, time(asked.end)?);
    let mut book = world.book();
    if !book.issued.iter().any(|issued| issued.serial == asked.serial) {
        return Err(format!("no certificate has the serial {}", asked.serial));
    }
    book.windows.insert(asked.serial, window);
    Ok(())
}

fn lines(values: impl Iterator<Item = Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}
