//! Provider `acme-dns`: a small DNS server for nothing but these records, which a CNAME of the operator points to.
//!
//! It keeps the last two values of an account, so that a name and its wildcard fit, and nothing is taken down.

use bytes::Bytes;
use hickory_proto::rr::Name;
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde_json::{Value, json};

use crate::acme::dns::{DnsError, Record, resolver};
use crate::https::HttpsClient;
use crate::site::acme::AcmeDns;

/// Sets the value of the account.
///
/// # Errors
/// When the CNAME to the account is missing or another one, or the server refuses.
pub(super) async fn update(https: &HttpsClient, account: &AcmeDns, record: &Record) -> Result<(), DnsError> {
    check_alias(account, record)?;
    let header = |bytes: &[u8], what: &str| {
        HeaderValue::from_bytes(bytes).map_err(|error| {
            let help = "take it from the answer of the server to the registration of the account";
            DnsError::new(format!("the {what} has a character that no header can carry"), help).because(error)
        })
    };
    let mut key = header(&account.password.0, "password")?;
    key.set_sensitive(true);
    let body = json!({ "subdomain": &*account.subdomain, "txt": record.value() }).to_string();
    let url = format!("{}/update", account.url.trim_end_matches('/'));
    let request = Request::builder()
        .method(Method::POST)
        .uri(&url)
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-api-user", header(account.username.as_bytes(), "username")?)
        .header("x-api-key", key)
        .body(Bytes::from(body))
        .map_err(|error| DnsError::new(format!("\"{url}\" is no URL"), "correct `url`").because(error))?;
    let response = https.send(request).await.map_err(|error| {
        DnsError::new("the acme-dns server cannot be asked", "see that `url` is reachable from here").because(error)
    })?;
    match response.status() {
        StatusCode::OK => Ok(()),
        status => {
            let help = match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    "username, password and subdomain must be those of one account, and the account must allow the \
                     address of this machine (`allowfrom`)"
                }
                StatusCode::BAD_REQUEST => "see that `subdomain` is the one of the registration",
                StatusCode::NOT_FOUND => "`url` is the base URL of the server, without /update",
                _ => "the log of the acme-dns server says more",
            };
            Err(DnsError::new(format!("the acme-dns server answers {status}{}", reason(response.body())), help))
        }
    }
}

/// The record of the account is only asked for if a CNAME leads to it.
fn check_alias(account: &AcmeDns, record: &Record) -> Result<(), DnsError> {
    let is_ours =
        |name: &Name| name.iter().next().is_some_and(|label| label.eq_ignore_ascii_case(account.subdomain.as_bytes()));
    if record.name != record.start && is_ours(&record.name) {
        return Ok(());
    }
    let host = account.url.parse::<http::Uri>().ok();
    let host = host.as_ref().and_then(http::Uri::host).unwrap_or("acme-dns.example.com");
    let start = resolver::text(&record.start);
    let what = if record.text() == start {
        "it is no CNAME, so that no CA would ask the acme-dns server".to_owned()
    } else {
        format!("it is a CNAME to \"{}\", which is not of this account", record.text())
    };
    let help = format!(
        "create this record in your zone (the target is the `fulldomain` of the registration): {start}. CNAME {}.{host}.",
        account.subdomain
    );
    Err(DnsError::new(what, help))
}

/// What the server says, in its own word.
fn reason(body: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    let word = value.as_ref().and_then(|value| value.get("error")).and_then(Value::as_str);
    word.map(|word| format!(": {:?}", word.chars().take(200).collect::<String>())).unwrap_or_default()
}
