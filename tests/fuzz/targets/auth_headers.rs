//! What logins and decisions are read from: `Authorization`, users files, the answers of decision services.
//!
//! The first byte chooses which.
#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tidegate::policy::credentials::{MAX_PASSWORD, basic, has_bearer};
use tidegate::policy::decision::{Decision, MAX_TEXT};
use tidegate::site::users::{MAX_NAME, PasswordHash, Users};

fuzz_target!(|data: &[u8]| {
    let [kind, rest @ ..] = data else { return };
    match kind % 3 {
        0 => authorization(rest),
        1 => users(rest),
        _ => decision(rest),
    }
});

fn headers(value: &[u8]) -> Option<HeaderMap> {
    HeaderValue::from_bytes(value).ok().map(|value| HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

fn authorization(value: &[u8]) {
    let Some(fields) = headers(value) else { return };
    let login = basic(&fields);
    assert!(login.is_none() || !has_bearer(&fields), "two schemes at once");
    let mut twice = fields.clone();
    twice.append(AUTHORIZATION, fields[AUTHORIZATION].clone());
    assert!(basic(&twice).is_none() && !has_bearer(&twice));
    let Some(login) = login else { return };
    let (name, password) = (login.name(), login.password());
    assert!(!name.is_empty() && !name.contains(':') && name.len() <= MAX_NAME && password.len() <= MAX_PASSWORD);
    assert!(!name.chars().chain(password.chars()).any(char::is_control));
    let again = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
    let again = headers(again.as_bytes()).and_then(|fields| basic(&fields)).expect("what was read can be written");
    assert_eq!((again.name(), again.password()), (name, password));
}

fn users(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let lines = || text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    match Users::parse(text) {
        Ok(users) => {
            assert_eq!(users.count(), lines().count());
            for line in lines() {
                let (name, _) = line.split_once(':').expect("a name");
                match users.find(name).expect("a user for each line") {
                    PasswordHash::Argon2(hash) => {
                        assert!(hash.memory <= 256 << 10 && u64::from(hash.memory) * u64::from(hash.passes) <= 2 << 20);
                    }
                    PasswordHash::Bcrypt(text) => assert!(text.len() == 60 && text.is_ascii()),
                }
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty() && faults.len() <= lines().count());
            assert!(faults.iter().all(|fault| (1..=text.lines().count()).contains(&fault.line)));
        }
    }
}

fn decision(answer: &[u8]) {
    let Some(decision) = Decision::parse(answer) else { return };
    for text in [&decision.rule, &decision.id].into_iter().flatten() {
        assert!(!text.is_empty() && text.chars().count() <= MAX_TEXT && !text.contains(char::is_control));
    }
}
