//! Orders from newOrder to the chain (RFC 8555 7.4 and 7.5), with profiles and `replaces`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::book::{Authorization, Book, Challenge, Identifier, Issued, Order, Status, random, rfc3339, unix_millis};
use super::checks;
use super::fault::{Kind, Wrong};
use super::front::{Answer, Body, payload, reads_only};
use super::jws::{Envelope, decode, encode};
use super::pki::Request;
use super::problem::Problem;
use super::renewal;
use super::settings::World;

#[derive(Deserialize)]
struct NewOrder {
    identifiers: Vec<Written>,
    profile: Option<String>,
    replaces: Option<String>,
}

#[derive(Deserialize)]
struct Written {
    r#type: String,
    value: String,
}

#[derive(Deserialize)]
struct Finalize {
    csr: String,
}

/// How long a client is told to wait while something is under way.
const SOON: u64 = 1;
/// How long orders and authorizations may be worked on.
const OPEN: Duration = Duration::from_secs(3600);

/// newOrder.
pub(crate) fn create(
    world: &Arc<World>,
    account: usize,
    envelope: &Envelope,
    note: &mut Value,
) -> Result<Answer, Problem> {
    let new: NewOrder = payload(envelope)?;
    note["profile"] = json!(new.profile);
    note["replaces"] = json!(new.replaces);
    let identifiers = identifiers(&new.identifiers)?;
    if let Some(profile) = &new.profile
        && !world.options.profile.iter().any(|(name, _)| name == profile)
    {
        return Err(Problem::new(400, "invalidProfile", format!("there is no profile \"{profile}\"")));
    }
    let mut book = world.book();
    if let Some(id) = &new.replaces {
        renewal::check_replaces(world, &book, account, id, &identifiers)?;
    }
    let order = book.orders.len();
    let mut authorizations = Vec::new();
    for identifier in &identifiers {
        authorizations.push(book.authorizations.len());
        let authorization = authorization_for(world, order, account, identifier);
        book.authorizations.push(authorization);
    }
    book.orders.push(Order {
        account,
        identifiers,
        authorizations,
        status: Status::Pending,
        error: None,
        profile: new.profile,
        replaces: new.replaces,
        certificate: None,
    });
    drop(book);
    note["order"] = order.into();
    Ok(Answer::json(201, view(world, order)).at(world.url(&format!("/order/{order}"))))
}

/// What was written, if certificates can be had for it.
fn identifiers(written: &[Written]) -> Result<Vec<Identifier>, Problem> {
    let mut good = BTreeSet::new();
    let mut bad = Vec::new();
    for one in written {
        let parsed = match one.r#type.as_str() {
            "dns" => Some(Identifier::Dns(one.value.clone())).filter(|_| is_host(&one.value)),
            "ip" => one.value.parse::<IpAddr>().ok().map(Identifier::Ip),
            other => return Err(Problem::new(400, "unsupportedIdentifier", format!("no identifiers of type {other}"))),
        };
        match parsed {
            Some(identifier) => {
                good.insert(identifier);
            }
            None => {
                let why = Problem::new(400, "rejectedIdentifier", format!("\"{}\" is no name for this", one.value));
                bad.push((Identifier::Dns(one.value.clone()), why));
            }
        }
    }
    if !bad.is_empty() {
        let mut problem = Problem::new(400, "rejectedIdentifier", "some names cannot have certificates");
        problem.subproblems = bad;
        return Err(problem);
    }
    if good.is_empty() {
        return Err(Problem::malformed("an order is for one name at least"));
    }
    Ok(good.into_iter().collect())
}

/// A host name in lower case with two labels at least; the first may be `*`.
fn is_host(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.len() < 64 && label.bytes().all(is_good) && !label.starts_with('-')
    };
    name.contains('.') && name.split('.').all(is_label) && name.parse::<IpAddr>().is_err()
}

fn authorization_for(world: &World, order: usize, account: usize, identifier: &Identifier) -> Authorization {
    let (identifier, is_wildcard) = match identifier {
        Identifier::Dns(name) => match name.strip_prefix("*.") {
            Some(parent) => (Identifier::Dns(parent.to_owned()), true),
            None => (identifier.clone(), false),
        },
        Identifier::Ip(_) => (identifier.clone(), false),
    };
    let has_dns = matches!(identifier, Identifier::Dns(_)) && world.options.dns_server.is_some();
    let mut kinds = Vec::new();
    if !is_wildcard {
        kinds.extend([checks::HTTP_01, checks::TLS_ALPN_01]);
    }
    if has_dns {
        kinds.extend([checks::DNS_01, checks::DNS_PERSIST_01]);
    }
    if let Some((_, only)) = world.options.offer.iter().find(|(name, _)| *name == identifier.text()) {
        kinds.retain(|kind| kind == only);
    }
    let challenge = |kind| {
        // All of an authorization's challenges could share a token; each having its own finds clients that mix them up.
        let token = if kind == checks::DNS_PERSIST_01 { String::new() } else { encode(&random::<24>()) };
        Challenge { kind, token, status: Status::Pending, error: None }
    };
    let challenges = kinds.into_iter().map(challenge).collect();
    Authorization { order, account, identifier, is_wildcard, status: Status::Pending, challenges }
}

/// POST-as-GET of an order.
pub(crate) fn show(world: &World, account: usize, id: usize, envelope: &Envelope) -> Result<Answer, Problem> {
    reads_only(envelope)?;
    let status = own_order(&world.book(), account, id)?.status;
    let later = (status == Status::Processing).then_some(SOON);
    Ok(Answer::json(200, view(world, id)).retry_after(later))
}

/// POST-as-GET of an authorization.
pub(crate) fn authorization(world: &World, account: usize, id: usize, envelope: &Envelope) -> Result<Answer, Problem> {
    reads_only(envelope)?;
    let book = world.book();
    let it = own_authorization(&book, account, id)?;
    let mut document = json!({
        "identifier": it.identifier.json(),
        "status": it.status.as_str(),
        "expires": rfc3339(time::OffsetDateTime::now_utc() + book.ahead + OPEN),
        "challenges": it.challenges.iter().map(|one| challenge_view(world, it, id, one)).collect::<Vec<_>>(),
    });
    if it.is_wildcard {
        document["wildcard"] = true.into();
    }
    let is_busy = it.challenges.iter().any(|one| one.status == Status::Processing);
    Ok(Answer::json(200, document).retry_after(is_busy.then_some(SOON)))
}

/// A challenge: `{}` says that the proof is there.
pub(crate) fn challenge(
    world: &Arc<World>,
    account: usize,
    id: usize,
    kind: &str,
    envelope: &Envelope,
    note: &mut Value,
) -> Result<Answer, Problem> {
    note["challenge"] = kind.into();
    let is_ready = !envelope.payload.is_empty();
    if is_ready {
        payload::<serde_json::Map<String, Value>>(envelope)?;
    }
    let mut book = world.book();
    let it = own_authorization(&book, account, id)?;
    let index = it.challenges.iter().position(|one| one.kind == kind).ok_or_else(Problem::not_found)?;
    let starts = is_ready && it.status == Status::Pending && it.challenges[index].status == Status::Pending;
    if starts {
        book.authorizations[id].challenges[index].status = Status::Processing;
        tokio::spawn(checks::run(Arc::clone(world), id, index));
    }
    let it = &book.authorizations[id];
    let document = challenge_view(world, it, id, &it.challenges[index]);
    Ok(Answer::json(200, document).retry_after(starts.then_some(SOON)))
}

/// The end of a check: what it means for authorization and order.
pub(crate) fn conclude(world: &World, id: usize, index: usize, result: Result<(), Problem>) {
    let mut book = world.book();
    let it = &mut book.authorizations[id];
    let challenge = &mut it.challenges[index];
    let status = if result.is_ok() { Status::Valid } else { Status::Invalid };
    challenge.status = status;
    challenge.error = result.err();
    it.status = status;
    let order = it.order;
    let errors = book.orders[order].authorizations.iter().flat_map(|id| {
        let it = &book.authorizations[*id];
        it.challenges.iter().filter_map(|one| Some((it.identifier.clone(), one.error.clone()?)))
    });
    // RFC 8555 6.7.1: subproblems have none of their own.
    let failures: Vec<_> = errors
        .flat_map(
            |(identifier, error)| {
                if error.subproblems.is_empty() { vec![(identifier, error)] } else { error.subproblems }
            },
        )
        .collect();
    let all_valid = book.orders[order].authorizations.iter().all(|id| book.authorizations[*id].status == Status::Valid);
    let order = &mut book.orders[order];
    if !failures.is_empty() {
        order.status = Status::Invalid;
        let mut problem = Problem::unauthorized("control of some names was not proved");
        problem.subproblems = failures;
        order.error = Some(problem);
    } else if all_valid {
        order.status = Status::Ready;
    }
}

/// finalize: the request is checked now, the certificate follows.
pub(crate) fn finalize(
    world: &Arc<World>,
    account: usize,
    id: usize,
    envelope: &Envelope,
    note: &mut Value,
) -> Result<Answer, Problem> {
    let finalize: Finalize = payload(envelope)?;
    let mut book = world.book();
    let order = own_order(&book, account, id)?;
    note["names"] = names(&order.identifiers).into();
    if order.status != Status::Ready {
        return Err(Problem::new(403, "orderNotReady", format!("the order is {}", order.status.as_str())));
    }
    let request = Request::parse(decode(&finalize.csr)?, &order.identifiers, &book.accounts[account].key.point()?)?;
    book.orders[id].status = Status::Processing;
    drop(book);
    tokio::spawn(issue(Arc::clone(world), id, request));
    Ok(Answer::json(200, view(world, id)).at(world.url(&format!("/order/{id}"))).retry_after(Some(SOON)))
}

async fn issue(world: Arc<World>, id: usize, request: Request) {
    let fault = world.fault();
    let is = |kind| fault.as_ref().is_some_and(|fault| fault.fault == kind);
    let wrong: Option<Wrong> = is(Kind::WrongCertificate).then(|| fault.as_ref().map_or(Wrong::Name, |f| f.wrong));
    let now = world.now();
    let mut book = world.book();
    let order = &book.orders[id];
    let profiles = &world.options.profile;
    let lifetime =
        profiles.iter().find(|(name, _)| order.profile.as_ref() == Some(name)).map(|(_, lifetime)| *lifetime);
    let leaf = world.pki.sign(&request, now, lifetime.unwrap_or(book.lifetime), wrong);
    let chain = if is(Kind::NoIssuer) { leaf.pem } else { format!("{}{}", leaf.pem, world.pki.intermediate_pem()) };
    let issued = Issued {
        account: order.account,
        serial: leaf.serial,
        names: names(&order.identifiers),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        profile: order.profile.clone(),
        replaces: order.replaces.clone(),
        leaf: leaf.der,
        chain,
        sha256: leaf.sha256,
        at: unix_millis(),
        revoked: None,
    };
    book.issued.push(issued);
    let certificate = book.issued.len() - 1;
    let order = &mut book.orders[id];
    order.certificate = Some(certificate);
    order.status = Status::Valid;
}

/// POST-as-GET of a chain.
pub(crate) fn certificate(world: &World, account: usize, id: usize, envelope: &Envelope) -> Result<Answer, Problem> {
    reads_only(envelope)?;
    let book = world.book();
    let issued = book.issued.get(id).ok_or_else(Problem::not_found)?;
    if issued.account != account {
        return Err(Problem::unauthorized("another account's certificate"));
    }
    Ok(Answer { body: Body::Pem(issued.chain.clone()), ..Answer::empty(200) })
}

fn view(world: &World, id: usize) -> Value {
    let book = world.book();
    let order = &book.orders[id];
    let urls = order.authorizations.iter().map(|id| world.url(&format!("/authorization/{id}")));
    let mut document = json!({
        "status": order.status.as_str(),
        "expires": rfc3339(time::OffsetDateTime::now_utc() + book.ahead + OPEN),
        "identifiers": order.identifiers.iter().map(Identifier::json).collect::<Vec<_>>(),
        "authorizations": urls.collect::<Vec<_>>(),
        "finalize": world.url(&format!("/order/{id}/finalize")),
    });
    if let Some(profile) = &order.profile {
        document["profile"] = profile.as_str().into();
    }
    if let Some(replaces) = &order.replaces {
        document["replaces"] = replaces.as_str().into();
    }
    if let Some(error) = &order.error {
        document["error"] = error.json();
    }
    if let Some(certificate) = order.certificate {
        document["certificate"] = world.url(&format!("/certificate/{certificate}")).into();
    }
    document
}

fn challenge_view(world: &World, it: &Authorization, id: usize, challenge: &Challenge) -> Value {
    let mut document = json!({
        "type": challenge.kind,
        "url": world.url(&format!("/challenge/{id}/{}", challenge.kind)),
        "status": challenge.status.as_str(),
    });
    if challenge.kind == checks::DNS_PERSIST_01 {
        document["issuer-domain-names"] = json!(world.options.caa_identity);
        document["accounturi"] = world.url(&format!("/account/{}", it.account)).into();
    } else {
        document["token"] = challenge.token.as_str().into();
    }
    if let Some(error) = &challenge.error {
        document["error"] = error.json();
    }
    document
}

pub(crate) fn names(identifiers: &[Identifier]) -> Vec<String> {
    identifiers.iter().map(Identifier::text).collect()
}

fn own_order(book: &Book, account: usize, id: usize) -> Result<&Order, Problem> {
    let order = book.orders.get(id).ok_or_else(Problem::not_found)?;
    if order.account == account { Ok(order) } else { Err(Problem::unauthorized("another account's order")) }
}

fn own_authorization(book: &Book, account: usize, id: usize) -> Result<&Authorization, Problem> {
    let it = book.authorizations.get(id).ok_or_else(Problem::not_found)?;
    if it.account == account { Ok(it) } else { Err(Problem::unauthorized("another account's authorization")) }
}
