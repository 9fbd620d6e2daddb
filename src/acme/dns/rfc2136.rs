//! Provider `rfc2136`: dynamic updates (RFC 2136) over TCP, signed with TSIG (RFC 8945).
//!
//! Questions and updates are signed, and so must be every answer that says yes. An answer that says no is taken
//! without a signature: servers that do not know the key cannot sign (RFC 8945 5.3.2).

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm as Algorithm, TsigError};
use hickory_proto::rr::{DNSClass, Name, RData, Record as Rr, RecordType, TSigner};
use tokio::time::timeout;

use crate::acme::dns::ask::{by_tcp, code_name};
use crate::acme::dns::{DnsError, Record};
use crate::site::acme::{Rfc2136, TsigAlgorithm};

/// For one message and its answer. Our choice: the server is ours, but it may have to reach a disk.
const DEADLINE: Duration = Duration::from_secs(10);
/// How far the clocks may be apart (RFC 8945 10: 300 s is recommended).
const FUDGE: u16 = 300;
/// Seconds. Short, so that a resolver which saw the value of a failed attempt has forgotten it at the next one;
/// not 0, because some servers refuse or raise that.
const TTL: u32 = 60;

/// Adds a record beside those that are there (RFC 2136 2.5.1).
///
/// # Errors
/// When the server does not say yes with a valid signature.
pub(super) async fn add(server: &Rfc2136, record: &Record) -> Result<(), DnsError> {
    update(server, record, DNSClass::IN, TTL).await
}

/// Removes the record of this value and no other (RFC 2136 2.5.4).
///
/// # Errors
/// As `add`.
pub(super) async fn delete(server: &Rfc2136, record: &Record) -> Result<(), DnsError> {
    update(server, record, DNSClass::NONE, 0).await
}

async fn update(server: &Rfc2136, record: &Record, class: DNSClass, ttl: u32) -> Result<(), DnsError> {
    let zone = zone(server, &record.name).await?;
    record.mark(true);
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Update;
    // RFC 2136 2: the sections of an update are those of a query under other names: zone, prerequisites, changes.
    message.add_query(Query::query(zone, RecordType::SOA));
    // RFC 1035 3.3.14: one string has up to 255 octets.
    let strings = record.value.as_bytes().chunks(255).collect();
    let mut rr = Rr::from_rdata(record.name.clone(), ttl, RData::TXT(TXT::from_bytes(strings)));
    rr.dns_class = class;
    message.add_authority(rr);
    exchange(server, message).await.map(|_| ())
}

/// The zone that holds a name, by the word of the server.
async fn zone(server: &Rfc2136, name: &Name) -> Result<Name, DnsError> {
    let mut current = name.clone();
    while !current.is_root() {
        let mut query = Message::query();
        query.add_query(Query::query(current.clone(), RecordType::SOA));
        let answer = exchange(server, query).await?;
        let all = answer.answers.iter().chain(&answer.authorities);
        let mut soa = all.filter(|rr| rr.record_type() == RecordType::SOA).map(|rr| &rr.name);
        if let Some(zone) = soa.find(|zone| zone.zone_of(name)) {
            return Ok(zone.clone());
        }
        current = current.base_name();
    }
    let what = format!("server {} has no zone for the name", server.server);
    Err(DnsError::new(what, "`server` must be the primary of the zone"))
}

/// Sends a signed message and judges the answer.
async fn exchange(server: &Rfc2136, mut message: Message) -> Result<Message, DnsError> {
    let address = server.server;
    let unspeakable = |error: &dyn std::error::Error| {
        DnsError::new(format!("the question to server {address} cannot be written: {error}"), "correct `key`")
    };
    let signer = signer(server)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let verifier = message.finalize(&signer, now).map_err(|error| unspeakable(&error))?;
    let bytes = message.to_vec().map_err(|error| unspeakable(&error))?;
    let answer = match timeout(DEADLINE, by_tcp(address, &bytes)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let help = "`server` must take connections over TCP from this machine";
            return Err(DnsError::new(format!("no answer from server {address}"), help).because(error));
        }
        Err(_) => {
            let what = format!("no answer from server {address} within {} s", DEADLINE.as_secs());
            return Err(DnsError::new(what, "`server` must take connections over TCP from this machine"));
        }
    };
    let read = Message::from_vec(&answer).map_err(|error| {
        DnsError::new(format!("the answer of server {address} cannot be read"), "`server` must be a DNS server")
            .because(error)
    })?;
    let is_ours = read.id == message.id && read.op_code == message.op_code;
    let is_update = message.op_code == OpCode::Update;
    // A question may be about a name that is not there yet.
    if !matches!(read.response_code, ResponseCode::NoError)
        && (is_update || read.response_code != ResponseCode::NXDomain)
    {
        return Err(refusal(server, &read, is_update));
    }
    let is_signed = verifier.is_some_and(|mut verifier| verifier.verify(&answer).is_ok());
    if !is_ours || !is_signed {
        let what = format!("server {address} says yes without a valid signature of the key, which is not believed");
        return Err(DnsError::new(what, "somebody may stand between this machine and the server, or its key differs"));
    }
    Ok(read)
}

fn signer(server: &Rfc2136) -> Result<TSigner, DnsError> {
    let algorithm = match server.algorithm {
        TsigAlgorithm::Sha256 => Algorithm::HmacSha256,
        TsigAlgorithm::Sha384 => Algorithm::HmacSha384,
        TsigAlgorithm::Sha512 => Algorithm::HmacSha512,
    };
    let bad = |error: &dyn std::error::Error| {
        DnsError::new(format!("key \"{}\" cannot be used: {error}", server.key_name), "correct `key`")
    };
    let name = Name::from_ascii(&*server.key_name).map_err(|error| bad(&error))?;
    TSigner::new(server.secret.0.to_vec(), algorithm, name, FUDGE).map_err(|error| bad(&error))
}

/// What the server said no to, in words.
fn refusal(server: &Rfc2136, answer: &Message, is_update: bool) -> DnsError {
    let key = &server.key_name;
    let (word, why, help) = match (answer.signature().and_then(|rr| rr.data.error), answer.response_code) {
        (Some(TsigError::BadKey), _) => (
            "BADKEY".to_owned(),
            format!("it does not know key \"{key}\" with this algorithm"),
            "name and algorithm of `key` must be those of the server",
        ),
        (Some(TsigError::BadSig), _) => (
            "BADSIG".to_owned(),
            format!("its secret of key \"{key}\" is another one"),
            "`secret` must be that of the server: the base64 text of its key",
        ),
        (Some(TsigError::BadTime), _) => (
            "BADTIME".to_owned(),
            "its clock and the one of this machine are more than five minutes apart".to_owned(),
            "set the clocks of both by NTP",
        ),
        (_, ResponseCode::NotAuth) => (
            "NOTAUTH".to_owned(),
            "it is not the primary of the zone, or does not take this key".to_owned(),
            "`server` must be the primary of the zone and know the key",
        ),
        (_, ResponseCode::Refused) if is_update => (
            "REFUSED".to_owned(),
            format!("it does not let key \"{key}\" change this name"),
            "the update policy of the zone must grant the key TXT records at this name",
        ),
        (_, ResponseCode::Refused) => (
            "REFUSED".to_owned(),
            "it has no zone for the name, or does not answer questions about it".to_owned(),
            "`server` must be the primary of the zone and answer this machine",
        ),
        (_, code) => (code_name(code), "it gives no reason".to_owned(), "the log of the server says more"),
    };
    let what = if is_update { "the update" } else { "a question about the zone" };
    DnsError::new(format!("server {} refuses {what} ({word}): {why}", server.server), help)
}
