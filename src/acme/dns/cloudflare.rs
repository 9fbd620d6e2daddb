//! Provider `cloudflare`: its API, version 4, with a token that may read zones and edit their DNS.
//!
//! The token is in no error and in no log. A record that is there already, left over from a run that was ended,
//! is taken over, so that it is removed this time.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::acme::dns::{DnsError, Record};
use crate::https::HttpsClient;
use crate::site::acme::Cloudflare;

/// What the API calls a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    zone: String,
    record: String,
}

/// Seconds; as for dynamic updates, and the least that every plan allows.
const TTL: u32 = 60;
/// The codes of "an identical record already exists".
const IDENTICAL: [i64; 2] = [81057, 81058];
/// The code of "record does not exist".
const GONE: i64 = 81044;

/// Adds a record beside those that are there, and notes what the API calls it.
///
/// # Errors
/// When no zone is found, or the API refuses.
pub(super) async fn add(https: &HttpsClient, api: &Cloudflare, record: &Record) -> Result<(), DnsError> {
    let zone = zone(https, api, record).await?;
    let body = json!({ "type": "TXT", "name": record.text(), "content": quoted(record.value()), "ttl": TTL });
    let path = format!("/zones/{zone}/dns_records");
    record.mark(true);
    let created = match call(https, api, Method::POST, &path, Some(body)).await? {
        Ok(created) => id(&created).ok_or_else(unreadable)?,
        Err(refusal) if refusal.errors.iter().any(|error| IDENTICAL.contains(&error.code)) => {
            find(https, api, &zone, record).await?.ok_or_else(|| refusal.into_error("the record"))?
        }
        Err(refusal) => return Err(refusal.into_error("the record")),
    };
    record.handle.get_or_init(|| Handle { zone, record: created });
    Ok(())
}

/// Removes a record. One whose addition brought no answer is looked for by its value.
///
/// # Errors
/// When the API refuses.
pub(super) async fn delete(https: &HttpsClient, api: &Cloudflare, record: &Record) -> Result<(), DnsError> {
    let handle = match record.handle.get() {
        Some(handle) => handle.clone(),
        None => {
            let zone = zone(https, api, record).await?;
            let Some(record) = find(https, api, &zone, record).await? else { return Ok(()) };
            Handle { zone, record }
        }
    };
    let path = format!("/zones/{}/dns_records/{}", handle.zone, handle.record);
    match call(https, api, Method::DELETE, &path, None).await? {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.errors.iter().any(|error| error.code == GONE) => Ok(()),
        Err(refusal) => Err(refusal.into_error("the removal")),
    }
}

/// The zone that holds a name: the longest one of the account that it is in.
async fn zone(https: &HttpsClient, api: &Cloudflare, record: &Record) -> Result<String, DnsError> {
    let name = record.text();
    let mut rest = name.as_str();
    // A top-level domain is nobody's zone here.
    while rest.contains('.') {
        let found = call(https, api, Method::GET, &format!("/zones?name={rest}"), None).await?;
        let zones = found.map_err(|refusal| refusal.into_error("the list of zones"))?;
        if let Some(zone) = zones.as_array().and_then(|zones| zones.first()) {
            return id(zone).ok_or_else(unreadable);
        }
        rest = rest.split_once('.').map_or("", |(_, rest)| rest);
    }
    let what = "the token sees no zone that holds the name";
    Err(DnsError::new(what, "give the token the permission to read this zone and to edit its DNS"))
}

/// The identifier of a record that is there.
async fn find(https: &HttpsClient, api: &Cloudflare, zone: &str, record: &Record) -> Result<Option<String>, DnsError> {
    let path = format!("/zones/{zone}/dns_records?type=TXT&name={}", record.text());
    let found = call(https, api, Method::GET, &path, None).await?;
    let records = found.map_err(|refusal| refusal.into_error("the list of records"))?;
    let is_it = |found: &&Value| {
        found.get("content").and_then(Value::as_str).is_some_and(|text| text.trim_matches('"') == record.value())
    };
    Ok(records.as_array().and_then(|records| records.iter().find(is_it)).and_then(id))
}

/// One call: the `result`, or what the API has against it.
async fn call(
    https: &HttpsClient,
    api: &Cloudflare,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Result<Value, Refusal>, DnsError> {
    let bad = |what: &str| DnsError::new(format!("the {what} of the API cannot be used"), format!("correct `{what}`"));
    let mut token = HeaderValue::from_bytes(&[b"Bearer ", &*api.token.0].concat()).map_err(|_| bad("token"))?;
    token.set_sensitive(true);
    let request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", api.url.trim_end_matches('/')))
        .header(header::AUTHORIZATION, token)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.map_or_else(Bytes::new, |body| body.to_string().into()))
        .map_err(|_| bad("url"))?;
    let response = https.send(request).await.map_err(|error| {
        DnsError::new("the API cannot be asked", "see that `url` is reachable from here").because(error)
    })?;
    let status = response.status().as_u16();
    match serde_json::from_slice::<Envelope>(response.body()) {
        Ok(answer) if answer.success => Ok(Ok(answer.result)),
        Ok(answer) => Ok(Err(Refusal { status, errors: answer.errors })),
        Err(_) if !response.status().is_success() => Ok(Err(Refusal { status, errors: Vec::new() })),
        Err(_) => Err(unreadable()),
    }
}

/// Around every answer of the API.
#[derive(Deserialize)]
struct Envelope {
    success: bool,
    #[serde(default)]
    errors: Vec<ApiError>,
    #[serde(default)]
    result: Value,
}

#[derive(Deserialize)]
struct ApiError {
    code: i64,
    message: String,
}

/// A no of the API.
struct Refusal {
    status: u16,
    errors: Vec<ApiError>,
}

impl Refusal {
    fn into_error(self, what: &str) -> DnsError {
        let words: Vec<String> = self
            .errors
            .iter()
            .map(|error| format!("{:?} (code {})", error.message.chars().take(200).collect::<String>(), error.code))
            .collect();
        let words = if words.is_empty() { "no reason".to_owned() } else { words.join(", ") };
        let help = match self.status {
            // 400 with code 6003 or 6111 is a token of the wrong form.
            400 | 401 | 403 => "the token must be an API token that may read the zone and edit its DNS",
            429 => "the API limits how often it is asked; the next attempt comes by itself",
            500.. => "the API has a fault of its own; the next attempt comes by itself",
            _ => "the words of the API say what to change",
        };
        DnsError::new(format!("the API refuses {what} with status {}: {words}", self.status), help)
    }
}

fn id(value: &Value) -> Option<String> {
    let id = value.get("id")?.as_str()?;
    // It becomes part of a path.
    id.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| id.to_owned())
}

fn unreadable() -> DnsError {
    DnsError::new("the answer of the API cannot be read", "see that `url` is the base URL of the API")
}

/// The API wants the text of a TXT record as in a zone file.
fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}
