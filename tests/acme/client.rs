//! The authority of the tests, judged by a client that knows nothing of it: instant-acme, through every way of
//! proof, renewal information, external accounts, new keys, revocation, and each fault.
//!
//! No edge takes part here. A test that trusts the authority is worth what this file shows.

#[allow(dead_code, reason = "its main is the example's")]
#[path = "authority.rs"]
mod authority;
#[path = "client/world.rs"]
mod world;

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use http::Method;
use instant_acme::{Account, CertificateIdentifier, ChallengeType, ExternalAccountKey, Identifier, NewOrder};
use instant_acme::{OrderStatus, RevocationRequest};
use serde_json::{Value, json};

use world::{World, bounded, dns, problem, request};

#[tokio::test]
async fn each_way_of_proof_leads_to_a_chain_that_verifies() {
    let world = World::new(&["--lifetime", "60s"]).await;
    let account = world.account().await;
    for kind in [ChallengeType::Http01, ChallengeType::TlsAlpn01, ChallengeType::Dns01] {
        let chain = world.issue(&account, &["a.example.test"], kind).await;
        assert_eq!(chain.len(), 2, "leaf and intermediate");
        world.judge(&chain, "a.example.test").expect("a good chain");
        assert!(world.judge(&chain, "b.example.test").is_err(), "for this name only");
    }
    let chain = world.issue(&account, &["*.example.test", "example.test"], ChallengeType::Dns01).await;
    world.judge(&chain, "any.example.test").expect("a wildcard");
    world.judge(&chain, "example.test").expect("and its parent");
    let issued = world.lines("/issued").await;
    let lived = issued[0]["not_after_unix"].as_i64().expect("a time") - issued[0]["time"].as_i64().expect("ms") / 1000;
    assert!((57..=60).contains(&lived), "{lived} s of 60 s are left");
}

#[tokio::test]
async fn addresses_are_proved_by_http_and_tls() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = [Identifier::Ip(Ipv4Addr::new(198, 51, 100, 20).into())];
    for kind in [ChallengeType::Http01, ChallengeType::TlsAlpn01] {
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        assert_eq!(world.work(&mut order, &kind, false).await, OrderStatus::Ready, "{kind:?}");
        let chain = world.finish(&mut order).await.expect("a chain");
        world.judge(&chain, "198.51.100.20").expect("a good chain");
    }
}

#[tokio::test]
async fn a_wrong_proof_leads_nowhere() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    for kind in [ChallengeType::Http01, ChallengeType::TlsAlpn01, ChallengeType::Dns01] {
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        assert_eq!(world.work(&mut order, &kind, true).await, OrderStatus::Invalid, "{kind:?}");
        let error = order.state().error.as_ref().expect("a reason");
        assert!(
            error.subproblems[0].detail.as_ref().is_some_and(|detail| detail.contains("a.example.test")),
            "{error}"
        );
    }
    let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
    assert_eq!(problem(bounded(order.finalize_csr(&request(&["a.example.test".to_owned()]))).await), "orderNotReady");
    assert!(world.lines("/issued").await.is_empty());
}

#[tokio::test]
async fn one_record_proves_for_ever_but_only_its_account_and_what_it_allows() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let stranger = world.account().await;
    let kind = ChallengeType::Unknown("dns-persist-01".to_owned());
    let status = async |account: &Account, names: &[&str]| {
        let identifiers = dns(names);
        let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
        world.work(&mut order, &kind, false).await
    };
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Invalid, "no record");
    let place = "_validation-persist.a.example.test".to_owned();
    let record = format!("ca.example.test; accounturi={}", account.id());
    world.texts.lock().expect("lives").push((place.clone(), record.clone()));
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Ready);
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Ready, "again");
    assert_eq!(status(&account, &["*.a.example.test"]).await, OrderStatus::Invalid, "not for wildcards");
    assert_eq!(status(&stranger, &["a.example.test"]).await, OrderStatus::Invalid, "not for another account");
    world.texts.lock().expect("lives").push((place.clone(), format!("{record}; policy=wildcard")));
    assert_eq!(status(&account, &["*.a.example.test", "b.a.example.test"]).await, OrderStatus::Ready);
    *world.texts.lock().expect("lives") = vec![(place, format!("{record}; persistUntil=1700000000"))];
    assert_eq!(status(&account, &["a.example.test"]).await, OrderStatus::Invalid, "past its end");
}

#[tokio::test]
async fn requests_for_other_names_and_other_accounts_are_refused() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    let mut order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
    world.work(&mut order, &ChallengeType::Http01, false).await;
    assert_eq!(problem(bounded(order.finalize_csr(&request(&["b.example.test".to_owned()]))).await), "badCSR");
    let url = order.url().to_owned();
    assert_eq!(problem(bounded(world.account().await.order(url)).await), "unauthorized");
    for bad in ["under_score.example.test", "localhost", "Upper.example.test", "198.51.100.20"] {
        let identifiers = dns(&[bad]);
        let result = bounded(account.new_order(&NewOrder::new(&identifiers))).await;
        assert_eq!(problem(result), "rejectedIdentifier", "{bad}");
    }
}

#[tokio::test]
async fn an_external_account_is_checked_by_its_key() {
    let world = World::new(&["--eab", "kid-1:c2VjcmV0LXNlY3JldC1zZWNyZXQ"]).await;
    assert_eq!(problem(world.try_account(None).await), "externalAccountRequired");
    for (kid, key, expected) in [
        ("kid-1", &b"secret-secret-secret"[..], "no problem"),
        ("kid-1", b"another-key", "unauthorized"),
        ("kid-2", b"secret-secret-secret", "unauthorized"),
    ] {
        let external = ExternalAccountKey::new(kid.to_owned(), key);
        assert_eq!(problem(world.try_account(Some(&external)).await), expected, "{kid}");
    }
}

#[tokio::test]
async fn an_account_keeps_its_orders_when_its_key_changes() {
    let world = World::new(&[]).await;
    let mut account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    let order = bounded(account.new_order(&NewOrder::new(&identifiers))).await.expect("an order");
    let url = order.url().to_owned();
    let old = account.clone();
    let credentials = bounded(account.update_key()).await.expect("a new key");
    assert!(!credentials.private_key().secret_pkcs8_der().is_empty());
    assert_eq!(problem(bounded(old.order(url.clone())).await), "malformed", "the old key signs nothing any more");
    bounded(account.order(url.clone())).await.expect("the same account");
    let copy = account.clone();
    bounded(account.deactivate()).await.expect("an end");
    assert_eq!(problem(bounded(copy.order(url)).await), "unauthorized");
}

#[tokio::test]
async fn a_certificate_is_revoked_once_and_is_then_to_be_renewed() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    let id = CertificateIdentifier::try_from(&chain[0]).expect("an identifier");
    let (before, wait) = bounded(account.renewal_info(&id)).await.expect("information");
    assert!(before.suggested_window.start > time::OffsetDateTime::now_utc());
    assert!(wait > Duration::from_secs(6 * 3600 - 60), "{wait:?}");
    let revocation = RevocationRequest { certificate: &chain[0], reason: None };
    let stranger = world.account().await;
    assert_eq!(problem(bounded(stranger.revoke(&revocation)).await), "unauthorized");
    bounded(account.revoke(&revocation)).await.expect("revoked");
    assert_eq!(problem(bounded(account.revoke(&revocation)).await), "alreadyRevoked");
    let (after, _) = bounded(account.renewal_info(&id)).await.expect("information");
    assert!(after.suggested_window.end < time::OffsetDateTime::now_utc());
    assert_eq!(world.lines("/issued").await[0]["revoked"], 0);
}

#[tokio::test]
async fn an_order_replaces_a_certificate_once_and_windows_move() {
    let world = World::new(&["--profile", "shortlived=6d"]).await;
    let account = world.account().await;
    let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    let id = CertificateIdentifier::try_from(&chain[0]).expect("an identifier");
    let serial = world.lines("/issued").await[0]["serial"].clone();
    world.control(Method::PUT, "/ari", json!({"serial": serial, "start": 1_700_000_000, "end": 1_700_000_600})).await;
    let (info, _) = bounded(account.renewal_info(&id)).await.expect("information");
    assert_eq!(info.suggested_window.start.unix_timestamp(), 1_700_000_000);
    let identifiers = dns(&["a.example.test"]);
    let new = || NewOrder::new(&identifiers).replaces(id.clone()).profile("shortlived");
    let mut order = bounded(account.new_order(&new())).await.expect("an order");
    world.work(&mut order, &ChallengeType::Http01, false).await;
    world.finish(&mut order).await.expect("a chain");
    assert_eq!(problem(bounded(account.new_order(&new())).await), "alreadyReplaced");
    let unknown = NewOrder::new(&identifiers).profile("longlived");
    assert_eq!(problem(bounded(account.new_order(&unknown)).await), "invalidProfile");
    let issued = world.lines("/issued").await;
    assert_eq!((&issued[1]["profile"], &issued[1]["replaces"]), (&json!("shortlived"), &json!(id.to_string())));
    let lived = issued[1]["not_after_unix"].as_i64().expect("a time") - issued[1]["time"].as_i64().expect("ms") / 1000;
    assert!((6 * 86400 - 3..=6 * 86400).contains(&lived), "{lived} s of six days");
}

#[tokio::test]
async fn a_nonce_is_good_once_and_may_be_rejected_all_the_same() {
    let world = World::new(&["--nonce-reject", "100"]).await;
    assert_eq!(problem(world.try_account(None).await), "badNonce");
    let log = world.lines("/log").await;
    let tries = log.iter().filter(|entry| entry["kind"] == "newAccount").count();
    assert!(tries > 1, "the client tried again with a new nonce: {tries}");
    assert!(log.iter().all(|entry| entry["time"].as_u64().is_some_and(|time| time > 1_700_000_000_000)));
}

#[tokio::test]
async fn each_fault_is_seen_by_the_client_and_ends() {
    let world = World::new(&[]).await;
    let account = world.account().await;
    let identifiers = dns(&["a.example.test"]);
    let order = async || bounded(account.new_order(&NewOrder::new(&identifiers))).await;

    world.fault(json!({"fault": "429", "retry_after": 7})).await;
    assert_eq!(problem(order().await), "rateLimited");
    assert_eq!(world.directory().await.expect("an answer").status(), 200, "only new orders");
    world.fault(json!({"fault": "503", "retry_after": 9})).await;
    let answer = world.directory().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"9".parse().expect("a value")));
    world.fault(json!({"fault": "malformed"})).await;
    let answer = world.directory().await.expect("an answer");
    assert!(serde_json::from_slice::<Value>(answer.body()).is_err(), "{:?}", answer.body());
    world.fault(json!({"fault": "html"})).await;
    assert_eq!(world.directory().await.expect("an answer").headers()["content-type"], "text/html; charset=utf-8");
    for closed in [false, true] {
        world.fault(json!({"fault": "down", "closed": closed})).await;
        assert!(world.directory().await.is_err(), "closed: {closed}");
    }
    let began = SystemTime::now();
    world.fault(json!({"fault": "slow", "seconds": 1, "at": ["directory"]})).await;
    assert_eq!(world.directory().await.expect("an answer").status(), 200);
    assert!(began.elapsed().is_ok_and(|time| time >= Duration::from_secs(1)));
    world.fault(json!({"fault": "hang"})).await;
    // A lower bound is all that can be shown of "never".
    assert!(tokio::time::timeout(Duration::from_secs(2), order()).await.is_err());

    world.fault(json!({"fault": "refuse-validation"})).await;
    let mut refused = order().await.expect("an order");
    assert_eq!(world.work(&mut refused, &ChallengeType::Http01, false).await, OrderStatus::Invalid);
    for (fault, name, length) in [
        (json!({"fault": "wrong-certificate"}), "wrong.example.test", 2),
        (json!({"fault": "wrong-certificate", "wrong": "key"}), "a.example.test", 2),
        (json!({"fault": "no-issuer"}), "a.example.test", 1),
    ] {
        world.fault(fault).await;
        let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
        assert_eq!(chain.len(), length);
        assert_eq!(world.judge(&chain, name).is_ok(), length == 2, "{name}");
    }

    world.control(Method::DELETE, "/fault", Value::Null).await;
    let chain = world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    world.judge(&chain, "a.example.test").expect("all is well again");
    let log = world.lines("/log").await;
    for fault in ["429", "503", "malformed", "html", "down", "slow", "hang"] {
        assert!(log.iter().any(|entry| entry["fault"] == fault), "{fault} is in the log");
    }
    let limited = log.iter().find(|entry| entry["fault"] == "429").expect("above");
    assert_eq!(limited["names"], json!(["a.example.test"]));
}

#[tokio::test]
async fn the_clock_and_the_lifetime_can_be_moved() {
    let world = World::new(&["--lifetime", "24h"]).await;
    let account = world.account().await;
    world.control(Method::PUT, "/clock", json!({"ahead": "10d"})).await;
    world.control(Method::PUT, "/lifetime", json!({"lifetime": "2h"})).await;
    world.issue(&account, &["a.example.test"], ChallengeType::Http01).await;
    let issued = &world.lines("/issued").await[0];
    let left = issued["not_after_unix"].as_i64().expect("a time") - issued["time"].as_i64().expect("ms") / 1000;
    let expected = 10 * 86400 + 2 * 3600;
    assert!((expected - 3..=expected).contains(&left), "{left} s from the machine's now");
}
