//! The sentence by which the DNS names a CA (RFC 8659 4.2): what is read says what stands there, or allows nobody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::acme::dns::issue::IssueValue;

fuzz_target!(|data: &[u8]| {
    let Some(value) = IssueValue::parse(data) else { return };
    // Written by the grammar it is read as the same again: nothing of it was a matter of taste.
    let mut text = value.issuer.clone().unwrap_or_default();
    for (tag, argument) in &value.parameters {
        text.push_str(&format!("; {tag}={argument}"));
    }
    assert_eq!(IssueValue::parse(text.as_bytes()).as_ref(), Some(&value), "{text:?}");
    // A CA is named by whole labels: no part of a name, and nothing when nobody is allowed.
    let named = value.issuer.clone().unwrap_or_default();
    assert_eq!(value.names_one_of(&[named.clone()]), value.issuer.is_some());
    assert!(!value.names_one_of(&[format!("a{named}")]));
    assert!(!value.names_one_of(&[]));
});
