//! What CAA records say (RFC 8659, with the parameters of RFC 8657), as a CA would read them.

use hickory_proto::rr::rdata::CAA;

use crate::acme::dns::issue::IssueValue;

/// What is going to be asked for, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A wildcard.
    pub is_wildcard: bool,
    /// The CA, by any of its names; empty when it tells none.
    pub issuers: &'a [String],
    /// The URL of our account, when there is one yet.
    pub account: Option<&'a str>,
    /// The challenges that may be used.
    pub methods: &'a [&'a str],
}

/// What the records mean for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The CA may issue.
    Allowed,
    /// It may, if our account is the one that a record names.
    Unsure(String),
    /// It must not; why.
    Forbidden(String),
}

/// The tags that CAs know (RFC 8659 7, and the registry of properties). Others stop a CA when they are critical.
const KNOWN: [&str; 7] = ["issue", "issuewild", "iodef", "contactemail", "contactphone", "issuevmc", "issuemail"];

/// Records that are shown.
const MOST_WORDS: usize = 4;

/// Reads the records that count for a name.
pub fn judge(records: &[CAA], wanted: Wanted<'_>) -> Verdict {
    let known = |caa: &CAA| KNOWN.iter().any(|tag| caa.tag.eq_ignore_ascii_case(tag));
    if let Some(caa) = records.iter().find(|caa| caa.issuer_critical && !known(caa)) {
        // RFC 8659 4.1.
        return Verdict::Forbidden(format!("{} is critical, and no CA knows what it means", text(caa)));
    }
    // RFC 8659 4.3: `issuewild` alone counts for wildcards, where it is there.
    let of = |tag: &str| -> Vec<&CAA> { records.iter().filter(|caa| caa.tag.eq_ignore_ascii_case(tag)).collect() };
    let wild = if wanted.is_wildcard { of("issuewild") } else { Vec::new() };
    let relevant = if wild.is_empty() { of("issue") } else { wild };
    if relevant.is_empty() {
        return Verdict::Allowed;
    }
    let mut unsure = None;
    let mut faults = Vec::new();
    for caa in &relevant {
        let value = IssueValue::parse(&caa.value);
        // RFC 8659 4.2: what breaks the grammar allows nobody.
        let Some(value) = value.filter(|value| value.issuer.is_some()) else { continue };
        if wanted.issuers.is_empty() {
            // Whom the record allows is known, but not who we will ask.
            return Verdict::Allowed;
        }
        if !value.names_one_of(wanted.issuers) {
            continue;
        }
        match conditions(&value, wanted) {
            Verdict::Allowed => return Verdict::Allowed,
            Verdict::Unsure(why) => unsure = Some(format!("{} {why}", text(caa))),
            Verdict::Forbidden(why) => faults.push(format!("{} {why}", text(caa))),
        }
    }
    match unsure {
        Some(why) => Verdict::Unsure(why),
        None if faults.is_empty() => {
            let all = relevant.iter().map(|caa| text(caa)).collect();
            let them = if relevant.len() == 1 { "does" } else { "do" };
            let ca = wanted.issuers.first().map_or("any CA", String::as_str);
            Verdict::Forbidden(format!("{} {them} not allow {ca}", joined(all)))
        }
        None => Verdict::Forbidden(joined(faults)),
    }
}

/// The parameters of RFC 8657. Others mean something to the CA alone.
fn conditions(value: &IssueValue, wanted: Wanted<'_>) -> Verdict {
    let methods: Vec<&str> = value.all("validationmethods").collect();
    let is_allowed = |list: &&str| list.split(',').any(|method| wanted.methods.contains(&method.trim()));
    // RFC 8657 3 and 4: each at most once; a record that has one twice cannot be fulfilled.
    match methods.as_slice() {
        [] => {}
        [one] if is_allowed(one) => {}
        [_] => return Verdict::Forbidden(format!("does not allow {}", wanted.methods.join(" or "))),
        _ => return Verdict::Forbidden("has validationmethods twice".into()),
    }
    let accounts: Vec<&str> = value.all("accounturi").collect();
    match (accounts.as_slice(), wanted.account) {
        ([], _) => Verdict::Allowed,
        ([one], Some(own)) if *one == own => Verdict::Allowed,
        ([_], Some(own)) => Verdict::Forbidden(format!("allows another account than ours, which is {own}")),
        ([_], None) => Verdict::Unsure("allows one account only, and ours is not made yet".into()),
        _ => Verdict::Forbidden("has accounturi twice".into()),
    }
}

/// The first few: what a stranger wrote must not fill the log.
fn joined(mut texts: Vec<String>) -> String {
    if let more @ 1.. = texts.len().saturating_sub(MOST_WORDS) {
        texts.truncate(MOST_WORDS);
        texts.push(format!("{more} more"));
    }
    texts.join(" and ")
}

/// A record as in a zone file.
fn text(caa: &CAA) -> String {
    let value: String = String::from_utf8_lossy(&caa.value).chars().take(200).collect();
    format!("`{} {} {value:?}`", caa.flags(), caa.tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `0 issue ca.example.net`: flags, tag, the rest is the value.
    fn caa(line: &str) -> CAA {
        let mut words = line.splitn(3, ' ');
        let mut next = || words.next().expect("three words");
        let is_critical = next() == "128";
        let (tag, value) = (next(), next());
        let mut caa = CAA::new_issue(is_critical, None, Vec::new());
        caa.tag = tag.into();
        caa.value = value.into();
        caa
    }

    #[test]
    fn records_are_read_as_a_ca_reads_them() {
        use Verdict::{Allowed, Unsure};
        const OURS: &str = "0 issue ca.example.net; accounturi=https://ca.example.net/acct/1";
        const OTHER: &str = "0 issue ca.example.net; accounturi=https://ca.example.net/acct/2";
        let forbidden = |why: &str| Verdict::Forbidden(why.to_owned());
        let issuers = ["ca.example.net".to_owned()];
        let table: Vec<(&[&str], bool, Option<&str>, Verdict)> = vec![
            (&["0 iodef mailto:a@example.com"], false, None, Allowed),
            (&["0 issue ca.example.net"], false, None, Allowed),
            (&["0 ISSUE CA.Example.NET"], true, None, Allowed),
            (&["0 issue other.example", "128 issue ca.example.net; x=1"], false, None, Allowed),
            (&["0 issue other.example"], false, None, {
                forbidden("`0 issue \"other.example\"` does not allow ca.example.net")
            }),
            (&["0 issue ;", "0 issue other.example"], false, None, {
                forbidden("`0 issue \";\"` and `0 issue \"other.example\"` do not allow ca.example.net")
            }),
            (&["0 issue %%%"], false, None, forbidden("`0 issue \"%%%\"` does not allow ca.example.net")),
            // Wildcards: `issuewild` alone, where it is there.
            (&["0 issue other.example", "0 issuewild ca.example.net"], true, None, Allowed),
            (&["0 issue ca.example.net", "0 issuewild ;"], true, None, {
                forbidden("`0 issuewild \";\"` does not allow ca.example.net")
            }),
            (&["0 issuewild ;"], false, None, Allowed),
            // Critical properties.
            (&["128 tbs unknown", "0 issue ca.example.net"], false, None, {
                forbidden("`128 tbs \"unknown\"` is critical, and no CA knows what it means")
            }),
            (&["0 tbs unknown", "0 issue ca.example.net"], false, None, Allowed),
            (&["128 issuemail ;"], false, None, Allowed),
            // RFC 8657.
            (&[OURS], false, Some("https://ca.example.net/acct/1"), Allowed),
            (&[OTHER, OURS], false, Some("https://ca.example.net/acct/1"), Allowed),
            (&[OTHER], false, Some("https://ca.example.net/acct/1"), {
                forbidden(
                    "`0 issue \"ca.example.net; accounturi=https://ca.example.net/acct/2\"` allows another account \
                     than ours, which is https://ca.example.net/acct/1",
                )
            }),
            (&[OURS], false, None, {
                Unsure(
                    "`0 issue \"ca.example.net; accounturi=https://ca.example.net/acct/1\"` allows one account only, \
                     and ours is not made yet"
                        .into(),
                )
            }),
            (&["0 issue ca.example.net; validationmethods=dns-01,http-01"], false, None, Allowed),
            (&["0 issue ca.example.net; validationmethods=dns-01"], false, None, {
                forbidden(
                    "`0 issue \"ca.example.net; validationmethods=dns-01\"` does not allow tls-alpn-01 or http-01",
                )
            }),
            (&["0 issue ca.example.net; accounturi=a; accounturi=a"], false, Some("a"), {
                forbidden("`0 issue \"ca.example.net; accounturi=a; accounturi=a\"` has accounturi twice")
            }),
        ];
        for (lines, is_wildcard, account, expected) in table {
            let records: Vec<CAA> = lines.iter().map(|line| caa(line)).collect();
            let methods = ["tls-alpn-01", "http-01"];
            let wanted = Wanted { is_wildcard, issuers: &issuers, account, methods: &methods };
            assert_eq!(judge(&records, wanted), expected, "{lines:?}");
        }
    }

    #[test]
    fn records_without_number_do_not_fill_the_log() {
        let records: Vec<CAA> = (0..200).map(|number| caa(&format!("0 issue ca{number}.example"))).collect();
        let issuers = ["ca.example.net".to_owned()];
        let wanted = Wanted { is_wildcard: false, issuers: &issuers, account: None, methods: &["http-01"] };
        let Verdict::Forbidden(why) = judge(&records, wanted) else { unreachable!("none of them is ours") };
        let four = "`0 issue \"ca0.example\"` and `0 issue \"ca1.example\"` and `0 issue \"ca2.example\"` and \
                    `0 issue \"ca3.example\"` and 196 more do not allow ca.example.net";
        assert_eq!(why, four);
    }

    #[test]
    fn a_ca_that_does_not_tell_its_name_may_be_any() {
        let wanted = Wanted { is_wildcard: false, issuers: &[], account: None, methods: &["http-01"] };
        assert_eq!(judge(&[caa("0 issue other.example")], wanted), Verdict::Allowed);
        let nobody = Verdict::Forbidden("`0 issue \";\"` does not allow any CA".into());
        assert_eq!(judge(&[caa("0 issue ;")], wanted), nobody);
    }
}
