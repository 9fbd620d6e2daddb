//! dns-persist-01 (draft-ietf-acme-dns-persist): one TXT record that the operator puts there once, bound to a CA
//! and to our account. Nothing is written here: this makes the record's text, and sees whether it is there.
//!
//! Revisions 00 and 01 name the account by its URL, revision 02 by a hash of it; a CA takes one of the two.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::acme::dns::issue::IssueValue;
use crate::acme::dns::resolver::{self, LookupError, Resolver, a_few_at_once};
use crate::addr::HostName;
use crate::site::acme::DnsRule;

/// The label of the records.
const LABEL: &str = "_validation-persist";
/// Records that are shown when none does.
const MOST_FAULTS: usize = 4;
/// The length of a SHA-256 digest in base64url without padding.
const DIGEST_TEXT: usize = 43;

/// Where the record for a name (without `*.`) stands.
pub fn record_name(name: &HostName) -> String {
    format!("{LABEL}.{name}")
}

/// The value of the record. `account_uri` is the URL of the account, or for CAs of revision 02 its hashed form.
pub fn record(issuer_domain: &str, account_uri: &str, wildcard: bool) -> String {
    // No final semicolon: it would break the grammar (RFC 8659 4.2).
    let policy = if wildcard { "; policy=wildcard" } else { "" };
    format!("{issuer_domain}; accounturi={account_uri}{policy}")
}

/// Who we are at a CA.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The URL of our account.
    pub url: &'a str,
    /// The thumbprint of its key (RFC 7638) in base64url.
    pub thumbprint: &'a str,
    /// What the CA puts before hashed account URIs, if it is one of revision 02.
    pub hash_prefix: Option<&'a str>,
}

impl Identity<'_> {
    /// The account's URI as the record for a name has it.
    pub fn uri(&self, name: &HostName) -> String {
        match self.hash_prefix {
            Some(prefix) => hashed_account_uri(prefix, name, self.url, self.thumbprint),
            None => self.url.to_owned(),
        }
    }
}

/// The hashed account URI of revision 02 (4.1): `prefix` is `accountHashPrefix` of the directory, `thumbprint` that
/// of the account's key (RFC 7638) in base64url, as in a key authorization.
pub fn hashed_account_uri(prefix: &str, name: &HostName, account_url: &str, thumbprint: &str) -> String {
    let name = name.as_str();
    // A name has up to 253 octets. Its length keeps it apart from what follows.
    let length = [u8::try_from(name.len()).unwrap_or(u8::MAX)];
    let input = [&length, name.as_bytes(), thumbprint.as_bytes(), account_url.as_bytes()].concat();
    format!("{prefix}sha-256/{}", URL_SAFE_NO_PAD.encode(digest(&SHA256, &input)))
}

/// The record that a CA would look for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// For this name, without `*.`.
    pub name: &'a HostName,
    /// Also for the wildcard below it.
    pub wildcard: bool,
    /// The CA, by any of its names.
    pub issuers: &'a [String],
    /// The account's URI.
    pub account_uri: &'a str,
}

/// Whether the record is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    There,
    /// There is one with a hashed account URI, which may be ours.
    Unclear,
    /// It is not; the records of the same CA that are there, and why each does not do.
    Missing(Vec<String>),
}

/// Looks whether a matching record is served, by the word of the zone's own servers.
///
/// # Errors
/// When nobody can tell.
pub async fn is_there(
    resolver: &Resolver,
    rule: &DnsRule,
    wanted: Wanted<'_>,
    now: u64,
) -> Result<Standing, LookupError> {
    let start = resolver::below(LABEL, wanted.name)?;
    let (name, authority) = resolver.end_of_chain(&start, &rule.servers).await?;
    let all = authority.servers.iter().flat_map(|server| server.addresses.iter().map(|at| (*at, server.is_given)));
    let views = a_few_at_once(all.map(|(address, recurse)| resolver::shown(address, &name, recurse)).collect()).await;
    // The best view: CAs may come again when another server has been slow.
    let standings = views.into_iter().filter_map(Result::ok).map(|values| judge(&values, wanted, now));
    let best = standings.min_by_key(|standing| match standing {
        Standing::There => 0,
        Standing::Unclear => 1,
        Standing::Missing(_) => 2,
    });
    best.ok_or_else(|| LookupError::silent(&name))
}

/// What a CA would make of these TXT values.
fn judge(values: &[String], wanted: Wanted<'_>, now: u64) -> Standing {
    let mut faults = Vec::new();
    let mut is_unclear = false;
    for text in values {
        let Some(value) = IssueValue::parse(text.as_bytes()) else {
            // Nobody knows whose it is; the text is shown only if it seems to be this CA's.
            if wanted.issuers.iter().any(|issuer| text.contains(issuer.as_str())) {
                faults.push(format!("{} breaks the grammar of RFC 8659 4.2", shown(text)));
            }
            continue;
        };
        if !value.names_one_of(wanted.issuers) {
            continue;
        }
        match fault(&value, wanted, now) {
            None => return Standing::There,
            Some(Fault::OtherHash) => is_unclear = true,
            Some(Fault::Because(why)) => faults.push(format!("{} {why}", shown(text))),
        }
    }
    faults.truncate(MOST_FAULTS);
    if is_unclear { Standing::Unclear } else { Standing::Missing(faults) }
}

/// In quotes, shortened: what a stranger wrote must not fill the log.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(200).collect::<String>())
}

/// Why a record of the CA does not do.
enum Fault {
    /// It has a hash that cannot be compared with a URL.
    OtherHash,
    /// Of this.
    Because(&'static str),
}

fn fault(value: &IssueValue, wanted: Wanted<'_>, now: u64) -> Option<Fault> {
    let once = |tag| {
        let mut values = value.all(tag);
        let first = values.next();
        if values.next().is_some() { Err(Fault::Because("has a parameter twice")) } else { Ok(first) }
    };
    let (account, policy, until) = match (once("accounturi"), once("policy"), once("persistuntil")) {
        (Ok(account), Ok(policy), Ok(until)) => (account, policy, until),
        (Err(fault), ..) | (_, Err(fault), _) | (.., Err(fault)) => return Some(fault),
    };
    let is_over = match until.map(str::parse::<u64>) {
        None => false,
        Some(Ok(until)) => now > until,
        Some(Err(_)) => return Some(Fault::Because("has a `persistUntil` that is no number of seconds")),
    };
    if is_over {
        return Some(Fault::Because("is over by its `persistUntil`"));
    }
    if wanted.wildcard && !policy.is_some_and(|policy| policy.eq_ignore_ascii_case("wildcard")) {
        return Some(Fault::Because("has no `policy=wildcard`"));
    }
    match account {
        Some(uri) if uri == wanted.account_uri => None,
        Some(uri) if is_hashed(uri) && !is_hashed(wanted.account_uri) => Some(Fault::OtherHash),
        Some(_) => Some(Fault::Because("is of another account")),
        None => Some(Fault::Because("has no `accounturi`")),
    }
}

/// True for the form of revision 02 with the hash that all must know.
fn is_hashed(uri: &str) -> bool {
    uri.rsplit_once("sha-256/").is_some_and(|(_, hash)| hash.len() == DIGEST_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_draft() {
        let name = HostName::parse("example.com").expect("a name");
        let thumbprint = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
        let uri =
            hashed_account_uri("https://ca.example/account-hash/", &name, "https://ca.example/acct/123", thumbprint);
        // The example of revision 02, section 10.2.
        assert_eq!(uri, "https://ca.example/account-hash/sha-256/5SQm7n6tPh2-PlLbCKGnViTXX5z19SCN4cPGQHSk-kw");
    }

    #[test]
    fn faults_without_number_do_not_fill_the_log() {
        let name = HostName::parse("a.example.com").expect("a name");
        let issuers = ["ca.example.net".to_owned()];
        let wanted =
            Wanted { name: &name, wildcard: false, issuers: &issuers, account_uri: "https://ca.example.net/1" };
        let long = "x".repeat(60_000);
        let values: Vec<String> = (0..200).map(|at| format!("ca.example.net; accounturi={at}{long}")).collect();
        let Standing::Missing(faults) = judge(&values, wanted, 1000) else { unreachable!("none of them is ours") };
        assert_eq!(faults.len(), 4);
        assert!(faults.iter().all(|fault| fault.len() < 300 && fault.ends_with("is of another account")), "{faults:?}");
        // A good one after them counts.
        let good = [values, vec![record("ca.example.net", "https://ca.example.net/1", false)]].concat();
        assert_eq!(judge(&good, wanted, 1000), Standing::There);
    }

    #[test]
    fn a_record_does_if_a_ca_would_take_it() {
        const ACCOUNT: &str = "https://ca.example.net/acct/1";
        let name = HostName::parse("a.example.com").expect("a name");
        let issuers = ["ca.example.net".to_owned(), "ca.example.org".to_owned()];
        let plain = record("ca.example.net", ACCOUNT, false);
        let wild = record("ca.example.org", ACCOUNT, true);
        assert_eq!(plain, "ca.example.net; accounturi=https://ca.example.net/acct/1");
        assert_eq!(wild, "ca.example.org; accounturi=https://ca.example.net/acct/1; policy=wildcard");
        assert_eq!(record_name(&name), "_validation-persist.a.example.com");
        let hash = "a".repeat(DIGEST_TEXT);
        let missing = |why: &str| Standing::Missing(vec![why.to_owned()]);
        for (wildcard, values, expected) in [
            (false, vec![plain.clone()], Standing::There),
            (false, vec![wild.clone()], Standing::There),
            (true, vec![plain.clone(), wild.clone()], Standing::There),
            (true, vec![plain.clone()], missing(&format!("{plain:?} has no `policy=wildcard`"))),
            (false, vec![format!("{plain}; persistUntil=1000; new=1; new=2")], Standing::There),
            (false, vec![format!("{plain}; persistUntil=999")], {
                missing(&format!("\"{plain}; persistUntil=999\" is over by its `persistUntil`"))
            }),
            (false, vec![format!("{plain}; persistUntil=soon")], {
                missing(&format!("\"{plain}; persistUntil=soon\" has a `persistUntil` that is no number of seconds"))
            }),
            (false, vec![format!("{plain}; accounturi={ACCOUNT}")], {
                missing(&format!("\"{plain}; accounturi={ACCOUNT}\" has a parameter twice"))
            }),
            (false, vec![format!("{plain};")], missing(&format!("\"{plain};\" breaks the grammar of RFC 8659 4.2"))),
            (false, vec![format!("{plain}2")], missing(&format!("\"{plain}2\" is of another account"))),
            (false, vec!["ca.example.net".into()], missing("\"ca.example.net\" has no `accounturi`")),
            (false, vec![format!("ca.example.net; accounturi=https://ca.example.net/h/sha-256/{hash}")], {
                Standing::Unclear
            }),
            (false, vec![record("other.example", ACCOUNT, true), "v=spf1 -all".into()], Standing::Missing(vec![])),
            (false, vec![], Standing::Missing(vec![])),
        ] {
            let wanted = Wanted { name: &name, wildcard, issuers: &issuers, account_uri: ACCOUNT };
            assert_eq!(judge(&values, wanted, 1000), expected, "{values:?}");
        }
    }
}
