//! OCSP stapling (RFC 6066 8, RFC 8446 4.4.2.1): asks the CA about each certificate in force that names a responder, and
//! hands what it says to the handshakes.
//!
//! An actor that speaks only by `CertStore::staple`. Nothing to configure: the certificate says whether there is somebody
//! to ask. A handshake never waits for it, and one without a staple is as good as it was before there was stapling.

pub mod answer;
pub mod der;
pub mod question;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, StatusCode, Uri};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::https::HttpsClient;
use crate::tls::certs::{CertStore, Certificate};
use answer::{Status, Verdict, judge};
use question::{Question, Unaskable, must_staple};

/// How many requests are under way at once: hundreds of names of one CA must not look like an attack on it.
const AT_ONCE: usize = 4;
/// Look at least so often: a timer does not run while the machine sleeps, and clocks are set.
const LOOK: Duration = Duration::from_secs(60);
/// Between two requests for one certificate, whatever the answers say.
const SHORTEST: time::Duration = time::Duration::MINUTE;
/// Ask again after this time at the latest: answers of a week are made anew every few days.
const LONGEST: time::Duration = time::Duration::DAY;
/// The longest pause after failures.
const LONGEST_PAUSE: time::Duration = time::Duration::HOUR;
/// How often the same thing is said again.
const AGAIN: time::Duration = time::Duration::DAY;

/// Which leaf: SHA-256 of it.
type Fingerprint = [u8; 32];
/// What became of a request: the answer and what it says, or why there is none.
type Outcome = Result<(Verdict, Bytes), String>;

/// Keeps staples fresh, for ever.
pub async fn watch(certs: Arc<CertStore>) {
    let mut changed = certs.changes();
    let mut board = Board::default();
    let mut client = None;
    let mut asking = FuturesUnordered::new();
    loop {
        // Before looking: a change while we look, also one of our own, makes another look, which then finds nothing to do.
        changed.mark_unchanged();
        let now = OffsetDateTime::now_utc();
        board.look(&certs, now);
        for (fingerprint, question) in board.take_due(now, AT_ONCE - asking.len()) {
            let client = match &client {
                Some(client) => HttpsClient::clone(client),
                // Not before somebody is to be asked: few certificates name a responder.
                None => match HttpsClient::new(&[]) {
                    Ok(made) => client.insert(made).clone(),
                    Err(error) => {
                        board.hear(&fingerprint, Err(format!("{error} ({})", error.help())), now);
                        continue;
                    }
                },
            };
            asking.push(async move { (fingerprint, ask(&client, &question).await) });
        }
        let wait = Duration::try_from(board.next(now) - now).unwrap_or_default().min(LOOK);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = changed.changed() => {}
            Some((fingerprint, outcome)) = asking.next() => {
                board.hear(&fingerprint, outcome, OffsetDateTime::now_utc());
            }
        }
    }
}

/// What is known of the certificates in force.
#[derive(Debug, Default)]
struct Board(HashMap<Fingerprint, Entry>);

/// What is known of one.
#[derive(Debug)]
struct Entry {
    /// A name that has it, for the log.
    site: String,
    not_after: OffsetDateTime,
    must_staple: bool,
    question: Result<Arc<Question>, Unaskable>,
    staple: Option<Staple>,
    /// The staple follows none, and that was not told yet.
    is_first: bool,
    is_asking: bool,
    ask_at: OffsetDateTime,
    /// How many requests in a row gave no answer that counts.
    failures: u32,
    /// Why the last one gave none.
    trouble: Option<String>,
    is_revoked: bool,
    warned_at: Option<OffsetDateTime>,
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Staple {
    der: Bytes,
    until: OffsetDateTime,
}

impl Board {
    /// Learns which certificates are in force, and brings their staples to what is known.
    fn look(&mut self, certs: &CertStore, now: OffsetDateTime) {
        let mut in_force: HashMap<Fingerprint, Vec<(String, Arc<Certificate>)>> = HashMap::new();
        for (pattern, certificate) in certs.all() {
            in_force.entry(certificate.facts.fingerprint).or_default().push((pattern.to_string(), certificate));
        }
        self.0.retain(|fingerprint, _| in_force.contains_key(fingerprint));
        for (fingerprint, all) in &in_force {
            let Some((site, first)) = all.first() else { continue };
            let entry = self.0.entry(*fingerprint).or_insert_with(|| Entry::new(site, first, now));
            if entry.question == Err(Unaskable::NoIssuer) {
                // A new file may bring the same leaf with its chain.
                entry.question = ask_about(first);
            }
            entry.expire(now);
            let wanted = entry.staple.as_ref().map(|staple| &staple.der[..]);
            if all.iter().any(|(_, one)| one.key.ocsp.as_deref() != wanted) {
                certs.staple(fingerprint, wanted);
            }
            entry.tell(now);
        }
    }

    /// What is to be asked now; it is marked as asked.
    fn take_due(&mut self, now: OffsetDateTime, room: usize) -> Vec<(Fingerprint, Arc<Question>)> {
        let due = self.0.iter_mut().filter(|(_, entry)| entry.ask_at <= now && entry.may_ask(now)).take(room);
        due.filter_map(|(fingerprint, entry)| {
            let question = entry.question.as_ref().ok()?;
            entry.is_asking = true;
            Some((*fingerprint, Arc::clone(question)))
        })
        .collect()
    }

    /// When there is something to do next. What is due already waits for an answer to another question.
    fn next(&self, now: OffsetDateTime) -> OffsetDateTime {
        let asks = self.0.values().filter(|entry| entry.may_ask(now)).map(|entry| entry.ask_at);
        let ends = self.0.values().filter_map(|entry| entry.staple.as_ref()).map(|staple| staple.until);
        asks.chain(ends).filter(|time| *time > now).min().unwrap_or(now + LONGEST)
    }

    /// Takes over what became of a request.
    fn hear(&mut self, fingerprint: &Fingerprint, outcome: Outcome, now: OffsetDateTime) {
        // The certificate may have been replaced meanwhile.
        let Some(entry) = self.0.get_mut(fingerprint) else { return };
        entry.is_asking = false;
        match outcome {
            Ok((verdict, der)) => entry.believe(verdict, der, now),
            Err(why) => entry.fail(why, now),
        }
    }
}

impl Entry {
    fn new(site: &str, certificate: &Certificate, now: OffsetDateTime) -> Self {
        let question = ask_about(certificate);
        // After a failure of ours the actor begins anew, and what it stapled is still there.
        let staple = certificate.key.ocsp.as_ref().and_then(|der| {
            let verdict = judge(der, question.as_ref().ok()?, now).ok()?;
            (verdict.status == Status::Good).then(|| Staple { der: Bytes::copy_from_slice(der), until: verdict.until })
        });
        Self {
            site: site.to_owned(),
            not_after: certificate.facts.not_after,
            must_staple: certificate.key.cert.first().is_some_and(|leaf| must_staple(leaf)),
            question,
            staple,
            is_first: false,
            is_asking: false,
            ask_at: now,
            failures: 0,
            trouble: None,
            is_revoked: false,
            warned_at: None,
        }
    }

    /// Nobody has to answer for a certificate that has expired.
    fn may_ask(&self, now: OffsetDateTime) -> bool {
        !self.is_asking && self.question.is_ok() && now < self.not_after
    }

    /// An expired staple is worse than none: some clients refuse it.
    fn expire(&mut self, now: OffsetDateTime) {
        if self.staple.take_if(|staple| staple.until <= now).is_some() {
            tracing::warn!(
                event = "staple_expired",
                site = self.site,
                why = self.trouble,
                "the OCSP response of {} has expired and there is no newer one: none is stapled until its CA answers",
                self.site
            );
        }
    }

    fn believe(&mut self, verdict: Verdict, der: Bytes, now: OffsetDateTime) {
        self.failures = 0;
        self.trouble = None;
        // Half of what is left and not of the whole: a cache may give the same answer again.
        let half: time::Duration = (verdict.until - now) / 2;
        self.ask_at = now + half.clamp(SHORTEST, LONGEST);
        match verdict.status {
            Status::Good => {
                self.is_first = self.staple.is_none();
                self.is_revoked = false;
                self.staple = Some(Staple { der, until: verdict.until });
            }
            Status::Revoked { since } => {
                self.staple = None;
                if !self.is_revoked {
                    self.is_revoked = true;
                    let site = &self.site;
                    tracing::error!(
                        event = "certificate_revoked",
                        site,
                        since = timestamp(since),
                        help = "find out why, then replace it: `tidegate certs renew NAME --force` for one from `acme`, new files for one from files",
                        "the CA has revoked the certificate of {site}: clients that ask the CA refuse it"
                    );
                }
            }
        }
    }

    fn fail(&mut self, why: String, now: OffsetDateTime) {
        let pause = SHORTEST * 2_i32.pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.ask_at = now + pause.min(LONGEST_PAUSE);
        let (site, next) = (&self.site, timestamp(self.ask_at));
        tracing::debug!(
            event = "staple_failed",
            site,
            why,
            next,
            "no OCSP response of {site}: {why}; asks again at {next}"
        );
        self.trouble = Some(why);
    }

    /// Tells of the first staple, when it is in force; and of a certificate that some clients do not take as it is.
    fn tell(&mut self, now: OffsetDateTime) {
        let site = &self.site;
        if let Some(staple) = self.staple.as_ref().filter(|_| self.is_first) {
            let until = timestamp(staple.until);
            tracing::info!(
                event = "stapled",
                site,
                until,
                "the OCSP response of {site} is stapled: it counts until {until}"
            );
            self.is_first = false;
        }
        let why = match (&self.question, &self.trouble) {
            _ if !self.must_staple || self.staple.is_some() => return,
            _ if self.warned_at.is_some_and(|last| now - last < AGAIN) => return,
            (Err(unaskable), _) => unaskable.to_string(),
            (Ok(_), Some(trouble)) => trouble.clone(),
            (Ok(_), None) if self.is_revoked => "its CA has revoked it".to_owned(),
            // It has not been asked for yet.
            (Ok(_), None) => return,
        };
        self.warned_at = Some(now);
        tracing::warn!(
            event = "staple_missing",
            site,
            why,
            help =
                "give the whole chain, let the edge reach the responder, or order a certificate without that extension",
            "the certificate of {site} demands a stapled OCSP response (must-staple) and there is none: some clients refuse it"
        );
    }
}

fn ask_about(certificate: &Certificate) -> Result<Arc<Question>, Unaskable> {
    Question::read(&certificate.key.cert).map(Arc::new)
}

/// Asks the responders of a certificate, one after the other, until one has an answer that counts.
async fn ask(client: &HttpsClient, question: &Question) -> Outcome {
    let mut outcome = Err(String::new());
    for url in &question.urls {
        outcome = ask_one(client, url, question).await.map_err(|why| format!("{url}: {why}"));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

async fn ask_one(client: &HttpsClient, url: &Uri, question: &Question) -> Outcome {
    // RFC 6960 A.1.
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(CONTENT_TYPE, "application/ocsp-request")
        .header(ACCEPT, "application/ocsp-response")
        .body(question.request())
        .map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered with status {}", response.status().as_u16()));
    }
    let der = response.into_body();
    let verdict = judge(&der, question, OffsetDateTime::now_utc()).map_err(|fault| fault.to_string())?;
    Ok((verdict, der))
}

/// A time, as the log writes it.
fn timestamp(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
