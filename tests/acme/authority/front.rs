//! From a request to an answer: what each URL is, whose signature it needs, and what is said there.

use std::sync::Arc;

use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::book::random;
use super::jws::{Envelope, Jwk};
use super::problem::Problem;
use super::settings::World;
use super::{accounts, orders, renewal};

/// What a URL is.
#[derive(Debug)]
pub(crate) enum Route {
    Directory,
    NewNonce,
    NewAccount,
    Account(usize),
    KeyChange,
    NewOrder,
    Order(usize),
    Finalize(usize),
    Authorization(usize),
    Challenge(usize, String),
    Certificate(usize),
    RevokeCert,
    RenewalInfo(String),
    Unknown,
}

/// A request, whole.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) is_jose: bool,
    pub(crate) body: &'a [u8],
}

/// What is said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Body,
    pub(crate) location: Option<String>,
    /// Seconds.
    pub(crate) retry_after: Option<u64>,
}

pub(crate) enum Body {
    Empty,
    Json(Value),
    Pem(String),
}

/// Who signed.
enum Signer {
    Key(Jwk),
    Account(usize),
}

impl Route {
    pub(crate) fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let number = |text: &str| text.parse().ok();
        let found = match parts[..] {
            ["directory"] => Some(Self::Directory),
            ["nonce"] => Some(Self::NewNonce),
            ["account"] => Some(Self::NewAccount),
            ["account", id] => number(id).map(Self::Account),
            ["key-change"] => Some(Self::KeyChange),
            ["order"] => Some(Self::NewOrder),
            ["order", id] => number(id).map(Self::Order),
            ["order", id, "finalize"] => number(id).map(Self::Finalize),
            ["authorization", id] => number(id).map(Self::Authorization),
            ["challenge", id, kind] => number(id).map(|id| Self::Challenge(id, kind.to_owned())),
            ["certificate", id] => number(id).map(Self::Certificate),
            ["revoke"] => Some(Self::RevokeCert),
            ["renewal-info", id] => Some(Self::RenewalInfo(id.to_owned())),
            _ => None,
        };
        found.unwrap_or(Self::Unknown)
    }

    /// Its name in the log: the directory's, where it has one.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::NewNonce => "newNonce",
            Self::NewAccount => "newAccount",
            Self::Account(_) => "account",
            Self::KeyChange => "keyChange",
            Self::NewOrder => "newOrder",
            Self::Order(_) => "order",
            Self::Finalize(_) => "finalize",
            Self::Authorization(_) => "authorization",
            Self::Challenge(..) => "challenge",
            Self::Certificate(_) => "certificate",
            Self::RevokeCert => "revokeCert",
            Self::RenewalInfo(_) => "renewalInfo",
            Self::Unknown => "unknown",
        }
    }
}

impl Answer {
    pub(crate) fn json(status: u16, value: Value) -> Self {
        Self { status, body: Body::Json(value), location: None, retry_after: None }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, body: Body::Empty, location: None, retry_after: None }
    }

    pub(crate) fn at(mut self, location: String) -> Self {
        self.location = Some(location);
        self
    }

    pub(crate) fn retry_after(mut self, seconds: Option<u64>) -> Self {
        self.retry_after = seconds;
        self
    }
}

/// Answers one request; what is new about it for the log goes into `note`.
pub(crate) fn answer(world: &Arc<World>, route: &Route, ask: &Ask<'_>, note: &mut Value) -> Result<Answer, Problem> {
    let is_read = matches!(*ask.method, Method::GET | Method::HEAD);
    match route {
        Route::Directory if is_read => return Ok(Answer::json(200, directory(world))),
        Route::NewNonce if is_read => {
            return Ok(Answer::empty(if ask.method == Method::HEAD { 200 } else { 204 }));
        }
        Route::RenewalInfo(id) if is_read && !world.options.no_ari => return renewal::info(world, id, note),
        Route::Unknown => return Err(Problem::not_found()),
        _ if ask.method != Method::POST => {
            return Err(Problem::new(405, "malformed", "this URL takes signed POST requests"));
        }
        _ => {}
    }
    if !ask.is_jose {
        return Err(Problem::new(415, "malformed", "the Content-Type must be application/jose+json"));
    }
    let envelope = Envelope::parse(ask.body)?;
    let signer = authenticate(world, ask.path, &envelope)?;
    let account = match (route, signer) {
        (Route::NewAccount, Signer::Key(key)) => return accounts::create(world, key, &envelope, note),
        (Route::RevokeCert, Signer::Key(key)) => return renewal::revoke(world, None, Some(&key), &envelope, note),
        (_, Signer::Key(_)) => return Err(Problem::malformed("this URL wants \"kid\", not \"jwk\"")),
        (Route::NewAccount, Signer::Account(_)) => {
            return Err(Problem::malformed("this URL wants \"jwk\", not \"kid\""));
        }
        (_, Signer::Account(account)) => account,
    };
    note["account"] = account.into();
    match route {
        Route::Account(id) if *id == account => accounts::update(world, account, &envelope),
        Route::Account(_) => Err(Problem::unauthorized("another account's URL")),
        Route::KeyChange => accounts::change_key(world, account, &envelope, &world.url(ask.path)),
        Route::NewOrder => orders::create(world, account, &envelope, note),
        Route::Order(id) => orders::show(world, account, *id, &envelope),
        Route::Finalize(id) => orders::finalize(world, account, *id, &envelope, note),
        Route::Authorization(id) => orders::authorization(world, account, *id, &envelope),
        Route::Challenge(id, kind) => orders::challenge(world, account, *id, kind, &envelope, note),
        Route::Certificate(id) => orders::certificate(world, account, *id, &envelope),
        Route::RevokeCert => renewal::revoke(world, Some(account), None, &envelope, note),
        Route::Directory | Route::NewNonce | Route::NewAccount | Route::RenewalInfo(_) | Route::Unknown => {
            Err(Problem::new(405, "malformed", "this URL is read with GET"))
        }
    }
}

/// Who sent this (RFC 8555 6.2 to 6.5): URL, nonce and signature are checked.
fn authenticate(world: &World, path: &str, envelope: &Envelope) -> Result<Signer, Problem> {
    let head = &envelope.head;
    if head.url.as_deref() != Some(&world.url(path)) {
        return Err(Problem::unauthorized("the \"url\" that was signed is not the one that was asked"));
    }
    let nonce = head.nonce.as_deref().ok_or_else(|| Problem::new(400, "badNonce", "no nonce"))?;
    let is_good = world.book().spend_nonce(nonce);
    let [lot] = random::<1>();
    if !is_good {
        return Err(Problem::new(400, "badNonce", "this nonce was not given out, or was used"));
    }
    if u32::from(lot) * 100 < u32::from(world.options.nonce_reject) * 256 {
        return Err(Problem::new(400, "badNonce", "this nonce was good and is rejected all the same"));
    }
    match (&head.jwk, &head.kid) {
        (Some(key), None) => {
            envelope.verify(key)?;
            Ok(Signer::Key(key.clone()))
        }
        (None, Some(kid)) => {
            let id = kid.strip_prefix(&world.url("/account/")).and_then(|id| id.parse::<usize>().ok());
            let book = world.book();
            let unknown = || Problem::new(400, "accountDoesNotExist", format!("there is no account {kid}"));
            let id = id.ok_or_else(unknown)?;
            let account = book.accounts.get(id).ok_or_else(unknown)?;
            if !account.is_active {
                return Err(Problem::unauthorized("the account is deactivated"));
            }
            envelope.verify(&account.key)?;
            Ok(Signer::Account(id))
        }
        _ => Err(Problem::malformed("one of \"jwk\" and \"kid\" is needed")),
    }
}

fn directory(world: &World) -> Value {
    let options = &world.options;
    let mut meta = json!({
        "termsOfService": world.url("/terms"),
        "caaIdentities": options.caa_identity,
        "externalAccountRequired": options.eab.is_some(),
    });
    if !options.profile.is_empty() {
        let profiles = options.profile.iter();
        meta["profiles"] = profiles
            .map(|(name, lifetime)| (name.clone(), format!("lives for {} s", lifetime.as_secs()).into()))
            .collect::<serde_json::Map<_, _>>()
            .into();
    }
    let mut directory = json!({
        "newNonce": world.url("/nonce"),
        "newAccount": world.url("/account"),
        "newOrder": world.url("/order"),
        "revokeCert": world.url("/revoke"),
        "keyChange": world.url("/key-change"),
        "meta": meta,
    });
    if !options.no_ari {
        directory["renewalInfo"] = world.url("/renewal-info").into();
    }
    directory
}

/// The payload of a request that has one.
pub(crate) fn payload<T: DeserializeOwned>(envelope: &Envelope) -> Result<T, Problem> {
    serde_json::from_slice(&envelope.payload).map_err(|error| Problem::malformed(format!("the payload: {error}")))
}

/// A POST-as-GET has an empty payload (RFC 8555 6.3).
pub(crate) fn reads_only(envelope: &Envelope) -> Result<(), Problem> {
    if envelope.payload.is_empty() { Ok(()) } else { Err(Problem::malformed("a POST-as-GET has no payload")) }
}
