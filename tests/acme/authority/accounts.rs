//! Accounts: new ones, with or without an external account behind them, their contacts, their end, new keys.

use serde::Deserialize;
use serde_json::{Value, json};

use super::book::Account;
use super::front::{Answer, payload};
use super::jws::{Envelope, Jwk, decode};
use super::problem::Problem;
use super::settings::World;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewAccount {
    #[serde(default)]
    contact: Vec<String>,
    #[serde(default)]
    terms_of_service_agreed: bool,
    #[serde(default)]
    only_return_existing: bool,
    external_account_binding: Option<Value>,
}

#[derive(Deserialize)]
struct Update {
    contact: Option<Vec<String>>,
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyChange {
    account: String,
    old_key: Jwk,
}

/// RFC 8555 7.3: a new account, or the one that the key has.
pub(crate) fn create(world: &World, key: Jwk, envelope: &Envelope, note: &mut Value) -> Result<Answer, Problem> {
    let new: NewAccount = payload(envelope)?;
    let found = world.book().account_of(&key);
    if let Some(id) = found {
        note["account"] = id.into();
        return Ok(Answer::json(200, show(world, id)).at(world.url(&format!("/account/{id}"))));
    }
    if new.only_return_existing {
        return Err(Problem::new(400, "accountDoesNotExist", "no account has this key"));
    }
    if !new.terms_of_service_agreed {
        return Err(Problem::new(403, "userActionRequired", "the terms of service must be agreed to"));
    }
    check_contacts(&new.contact)?;
    if let Some(external) = &world.options.eab {
        let binding = new
            .external_account_binding
            .ok_or_else(|| Problem::new(403, "externalAccountRequired", "an account needs an external account here"))?;
        check_binding(world, external, binding, &key)?;
    }
    let mut book = world.book();
    let thumbprint = key.thumbprint();
    book.accounts.push(Account { key, thumbprint, contact: new.contact, is_active: true });
    let id = book.accounts.len() - 1;
    drop(book);
    note["account"] = id.into();
    Ok(Answer::json(201, show(world, id)).at(world.url(&format!("/account/{id}"))))
}

/// RFC 8555 7.3.4.
fn check_binding(world: &World, external: &str, binding: Value, key: &Jwk) -> Result<(), Problem> {
    let (kid, mac_key) = external.split_once(':').ok_or_else(|| Problem::new(500, "serverInternal", "no KID:KEY"))?;
    let binding = Envelope::from_value(binding)?;
    let head = &binding.head;
    if head.nonce.is_some() || head.url.as_deref() != Some(&world.url("/account")) {
        return Err(Problem::malformed("the binding has no nonce, and the URL of newAccount"));
    }
    if head.kid.as_deref() != Some(kid) {
        return Err(Problem::unauthorized("there is no such external account"));
    }
    binding.verify_mac(&decode(mac_key)?)?;
    let bound: Jwk = payload(&binding)?;
    if bound.thumbprint() != key.thumbprint() {
        return Err(Problem::malformed("the binding is for another key"));
    }
    Ok(())
}

/// RFC 8555 7.3.2 and 7.3.6: contacts, and the end.
pub(crate) fn update(world: &World, id: usize, envelope: &Envelope) -> Result<Answer, Problem> {
    if !envelope.payload.is_empty() {
        let update: Update = payload(envelope)?;
        let mut book = world.book();
        let account = &mut book.accounts[id];
        match update.status.as_deref() {
            Some("deactivated") => account.is_active = false,
            None | Some("valid") => {}
            Some(other) => return Err(Problem::malformed(format!("an account cannot become \"{other}\""))),
        }
        if let Some(contact) = update.contact {
            check_contacts(&contact)?;
            account.contact = contact;
        }
    }
    Ok(Answer::json(200, show(world, id)))
}

/// RFC 8555 7.3.5: the old key signed the outside, the new one the inside.
pub(crate) fn change_key(world: &World, id: usize, envelope: &Envelope, url: &str) -> Result<Answer, Problem> {
    let inner = Envelope::from_value(payload(envelope)?)?;
    let new = inner.head.jwk.clone().ok_or_else(|| Problem::malformed("the inside has no \"jwk\""))?;
    inner.verify(&new)?;
    if inner.head.nonce.is_some() || inner.head.url.as_deref() != Some(url) {
        return Err(Problem::malformed("the inside has no nonce, and the URL of the outside"));
    }
    let change: KeyChange = payload(&inner)?;
    let mut book = world.book();
    if change.account != world.url(&format!("/account/{id}")) {
        return Err(Problem::malformed("the inside names another account"));
    }
    if change.old_key.thumbprint() != book.accounts[id].thumbprint {
        return Err(Problem::malformed("\"oldKey\" is not the key of the account"));
    }
    if book.account_of(&new).is_some() {
        return Err(Problem::new(409, "malformed", "an account has the new key already"));
    }
    let account = &mut book.accounts[id];
    account.thumbprint = new.thumbprint();
    account.key = new;
    drop(book);
    Ok(Answer::json(200, show(world, id)))
}

fn check_contacts(contacts: &[String]) -> Result<(), Problem> {
    match contacts.iter().find(|contact| !contact.starts_with("mailto:") || !contact.contains('@')) {
        Some(contact) => Err(Problem::new(400, "unsupportedContact", format!("\"{contact}\" is no mailto: URL"))),
        None => Ok(()),
    }
}

fn show(world: &World, id: usize) -> Value {
    let book = world.book();
    let account = &book.accounts[id];
    json!({
        "status": if account.is_active { "valid" } else { "deactivated" },
        "contact": account.contact,
        "orders": world.url(&format!("/account/{id}/orders")),
    })
}
