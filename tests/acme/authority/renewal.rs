//! Certificates after they were issued: renewal information (RFC 9773), what an order replaces, revocation.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::book::{Book, Identifier, Issued, rfc3339};
use super::front::{Answer, payload};
use super::jws::{Envelope, Jwk, decode};
use super::orders::names;
use super::pki::hex;
use super::problem::Problem;
use super::settings::World;

#[derive(Deserialize)]
struct Revocation {
    certificate: String,
    #[serde(default)]
    reason: u64,
}

/// RFC 9773 4.2: when to renew.
pub(crate) fn info(world: &World, id: &str, note: &mut Value) -> Result<Answer, Problem> {
    let now = world.now();
    let book = world.book();
    let issued = find(world, &book, id)?;
    note["names"] = json!(issued.names);
    let (start, end) = window(world, &book, issued, now);
    let document = json!({
        "suggestedWindow": {"start": rfc3339(start), "end": rfc3339(end)},
        "explanationURL": world.url("/why"),
    });
    Ok(Answer::json(200, document).retry_after(Some(world.options.ari_retry_after.as_secs())))
}

/// The window: as it was moved, past for a revoked certificate, else a share of the lifetime.
fn window(world: &World, book: &Book, issued: &Issued, now: OffsetDateTime) -> (OffsetDateTime, OffsetDateTime) {
    if let Some(moved) = book.windows.get(&issued.serial) {
        return *moved;
    }
    if issued.revoked.is_some() {
        return (now - Duration::from_secs(120), now - Duration::from_secs(60));
    }
    let lifetime = issued.not_after - issued.not_before;
    let (start, end) = world.options.window;
    (issued.not_before + lifetime * start, issued.not_before + lifetime * end)
}

/// RFC 9773 5: the certificate is the account's, has a name of the order, and was not replaced before.
pub(crate) fn check_replaces(
    world: &World,
    book: &Book,
    account: usize,
    id: &str,
    identifiers: &[Identifier],
) -> Result<(), Problem> {
    if world.options.no_ari {
        return Err(Problem::malformed("there is no renewal information here, so nothing can be replaced"));
    }
    let issued = find(world, book, id)?;
    if issued.account != account {
        return Err(Problem::unauthorized("another account's certificate is replaced"));
    }
    if !names(identifiers).iter().any(|name| issued.names.contains(name)) {
        return Err(Problem::malformed("the replaced certificate has no name of the order"));
    }
    if book.issued.iter().any(|other| other.replaces.as_deref() == Some(id)) {
        return Err(Problem::new(409, "alreadyReplaced", "the certificate was replaced before"));
    }
    Ok(())
}

/// RFC 9773 4.1: key identifier and serial, both in base64url, with a dot between.
fn find<'a>(world: &World, book: &'a Book, id: &str) -> Result<&'a Issued, Problem> {
    let (key_id, serial) = id.split_once('.').ok_or_else(|| Problem::malformed("not a certificate identifier"))?;
    if decode(key_id)? != world.pki.intermediate_key_id() {
        return Err(Problem::new(404, "malformed", "the identifier names another issuer"));
    }
    let serial = hex(&decode(serial)?);
    let missing = || Problem::new(404, "malformed", "there is no certificate of this identifier");
    book.issued.iter().find(|issued| issued.serial == serial).ok_or_else(missing)
}

/// RFC 8555 7.6, by the account that has it or by the certificate's own key.
pub(crate) fn revoke(
    world: &World,
    account: Option<usize>,
    key: Option<&Jwk>,
    envelope: &Envelope,
    note: &mut Value,
) -> Result<Answer, Problem> {
    let revocation: Revocation = payload(envelope)?;
    let der = decode(&revocation.certificate)?;
    let point = key.map(Jwk::point).transpose()?;
    let mut book = world.book();
    let issued = book.issued.iter_mut().find(|issued| issued.leaf == der).ok_or_else(Problem::not_found)?;
    note["names"] = json!(issued.names);
    note["reason"] = revocation.reason.into();
    let is_keys = point.is_some_and(|point| has_key(&der, &point));
    if account != Some(issued.account) && !is_keys {
        return Err(Problem::unauthorized("neither the account nor the key of the certificate"));
    }
    // RFC 5280 5.3.1: 7 is not used, 8 undoes a hold; 2, 6 and 10 are for other certificates than these.
    if ![0, 1, 3, 4, 5, 9].contains(&revocation.reason) {
        return Err(Problem::new(400, "badRevocationReason", format!("no reason {}", revocation.reason)));
    }
    if issued.revoked.is_some() {
        return Err(Problem::new(400, "alreadyRevoked", "the certificate is revoked already"));
    }
    issued.revoked = Some(revocation.reason);
    Ok(Answer::empty(200))
}

fn has_key(der: &[u8], point: &[u8]) -> bool {
    let (_, leaf) = x509_parser::parse_x509_certificate(der).expect("made here");
    &*leaf.public_key().subject_public_key.data == point
}
