//! Whether a password is right, without giving the processor away: hashes run on threads of their own, few at a
//! time, in a short queue; what was right is remembered for a while.
//!
//! Remembered is a keyed digest of users file, name and password, never a password. A flood of wrong ones fills the
//! queue and gets 503; who is remembered goes on, for he needs no hash. One for the process, behind a lock that is held
//! for a look only: with one a worker each login would cost a hash a core.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::credentials::Login;
use super::store::Key;
use crate::addr::ClientAddr;
use crate::site::access::Guest;
use crate::site::users::{Argon2Hash, PasswordHash, Users};

/// How long a right password is remembered. Our choice: a page with its sockets and calls costs one hash, and a
/// memory that was read out is of use for minutes only. A file that changes forgets at once.
const MEMORY: Duration = Duration::from_secs(15 * 60);

/// How many are remembered; the oldest makes room. Our choice: more users than an edge with a file of them has.
const REMEMBERED: usize = 4096;

/// Hashes that run or wait. Our choice: the last of them still has its turn within seconds.
const QUEUE: usize = 32;

/// Of these, how many one client may have, so that no single one fills the queue.
const OF_ONE_CLIENT: usize = 4;

/// The longest wait for a turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The user is there, and the password is the user's.
    Right,
    /// One of the two is wrong; nobody is told which.
    Wrong,
    /// Too many hashes run or wait.
    Busy,
}

/// Judges passwords. Shared by all workers.
pub struct Passwords {
    key: hmac::Key,
    turns: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

/// A keyed digest of what is judged.
type Digest = [u8; 32];

#[derive(Default)]
struct State {
    known: Known,
    /// At most `QUEUE`.
    jobs: Vec<Job>,
}

/// A hash that runs or waits.
struct Job {
    digest: Digest,
    client: Option<Key>,
    /// Where those learn the outcome who ask the same meanwhile.
    outcome: watch::Receiver<Option<bool>>,
}

/// What was right, and since when.
#[derive(Default)]
struct Known {
    since: HashMap<Digest, Instant>,
    /// The oldest first. One that was judged again stands here twice; the older place says nothing.
    order: VecDeque<(Digest, Instant)>,
}

impl Known {
    fn has(&self, digest: &Digest, now: Instant) -> bool {
        self.since.get(digest).is_some_and(|since| now.saturating_duration_since(*since) < MEMORY)
    }

    fn add(&mut self, digest: Digest, now: Instant) {
        self.since.insert(digest, now);
        self.order.push_back((digest, now));
        while let Some((oldest, since)) = self.order.front() {
            let is_over = now.saturating_duration_since(*since) >= MEMORY || self.order.len() > REMEMBERED;
            if !is_over {
                return;
            }
            if self.since.get(oldest) == Some(since) {
                self.since.remove(oldest);
            }
            self.order.pop_front();
        }
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

/// What is to be done about a login.
enum Step {
    Remembered,
    /// Somebody asks the same already.
    Join(watch::Receiver<Option<bool>>),
    Lead(Turn),
    Full,
}

/// A place in the queue, until it is dropped.
struct Turn {
    digest: Digest,
    state: Arc<Mutex<State>>,
    tell: watch::Sender<Option<bool>>,
}

impl Turn {
    /// The hash is done: what is right is remembered before anybody can ask again.
    fn end(self, is_right: bool) {
        if is_right {
            lock(&self.state).known.add(self.digest, Instant::now());
        }
        // Nobody may be waiting.
        let _ = self.tell.send(Some(is_right));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.state).jobs.retain(|job| job.digest != self.digest);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Passwords {
    /// Nobody is remembered.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new() -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        // Half of the cores at most, so that workers always have some; four, because each hash takes 19 MiB.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new((cores / 2).clamp(1, 4)));
        Ok(Self { key, turns, state: Arc::default() })
    }

    /// Judges a login of a client. Costs a hash only when it is not remembered.
    pub async fn judge(&self, users: &Arc<Users>, login: &Login, client: Option<ClientAddr>) -> Verdict {
        // For those who wait for one another too.
        timeout(2 * PATIENCE, self.judged(users, login, client)).await.unwrap_or(Verdict::Busy)
    }

    async fn judged(&self, users: &Arc<Users>, login: &Login, client: Option<ClientAddr>) -> Verdict {
        let digest = self.digest(users, login);
        loop {
            match self.step(digest, client.map(|client| Key::of_guest(Guest::Client(client)))) {
                Step::Remembered => return Verdict::Right,
                Step::Full => return Verdict::Busy,
                Step::Lead(turn) => return self.hash(turn, Arc::clone(users), login.clone()).await,
                Step::Join(mut outcome) => match outcome.wait_for(Option::is_some).await.map(|told| *told) {
                    Ok(Some(true)) => return Verdict::Right,
                    Ok(Some(false) | None) => return Verdict::Wrong,
                    // Who led has gone away: somebody else does it now.
                    Err(_) => {}
                },
            }
        }
    }

    /// One look at what is known.
    fn step(&self, digest: Digest, client: Option<Key>) -> Step {
        let mut state = lock(&self.state);
        if state.known.has(&digest, Instant::now()) {
            return Step::Remembered;
        }
        if let Some(job) = state.jobs.iter().find(|job| job.digest == digest) {
            return Step::Join(job.outcome.clone());
        }
        let of_client = state.jobs.iter().filter(|job| job.client == client).count();
        if state.jobs.len() >= QUEUE || of_client >= OF_ONE_CLIENT {
            return Step::Full;
        }
        let (tell, outcome) = watch::channel(None);
        state.jobs.push(Job { digest, client, outcome });
        Step::Lead(Turn { digest, state: Arc::clone(&self.state), tell })
    }

    /// Waits for a turn and hashes on a thread for blocking work. Who goes away while he waits leaves the queue.
    async fn hash(&self, turn: Turn, users: Arc<Users>, login: Login) -> Verdict {
        let Ok(Ok(permit)) = timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await else {
            return Verdict::Busy;
        };
        // A name that is not there is worked on like one that is, always the same: time tells nobody who has a login.
        let number = usize::from_be_bytes(first_bytes(hmac::sign(&self.key, login.name().as_bytes()).as_ref()));
        let hashing = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let known = users.find(login.name());
            let hash = known.or_else(|| users.decoy(number));
            let is_right = hash.is_some_and(|hash| verify(hash, login.password())) && known.is_some();
            turn.end(is_right);
            is_right
        });
        match hashing.await {
            Ok(true) => Verdict::Right,
            Ok(false) => Verdict::Wrong,
            Err(error) => {
                tracing::error!(%error, "a password could not be judged");
                Verdict::Busy
            }
        }
    }

    /// What a login is remembered by. The key is random and the process's own: no comparison of digests tells
    /// anything of a password.
    fn digest(&self, users: &Users, login: &Login) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(users.digest());
        context.update(login.as_bytes());
        first_bytes(context.sign().as_ref())
    }
}

/// The first bytes of a digest, which has more.
fn first_bytes<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest[..N]);
    bytes
}

/// Whether a password is the one of a hash. Takes as long as the hash was made to take.
pub fn verify(hash: &PasswordHash, password: &str) -> bool {
    match hash {
        PasswordHash::Argon2(hash) => {
            let mut found = vec![0; hash.hash.len()];
            // Bounds were judged when the file was read; what cannot be hashed is not right.
            argon2(hash, password, &mut found).is_some() && verify_slices_are_equal(&found, &hash.hash).is_ok()
        }
        // As htpasswd makes them: bytes beyond 72 say nothing (OpenBSD's bcrypt). Compared in constant time there.
        PasswordHash::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
    }
}

fn argon2(hash: &Argon2Hash, password: &str, out: &mut [u8]) -> Option<()> {
    let params = Params::new(hash.memory, hash.passes, hash.lanes, Some(out.len())).ok()?;
    let version = if hash.version == 16 { Version::V0x10 } else { Version::V0x13 };
    let hasher = Argon2::new(Algorithm::Argon2id, version, params);
    hasher.hash_password_into(password.as_bytes(), &hash.salt, out).ok()
}

/// A new hash of a password, as it stands in a users file: argon2id with 19 MiB and two passes, the first choice of
/// OWASP's sheet on the storage of passwords for one lane. More memory would serve a flood of wrong passwords.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_argon2(password: &str) -> io::Result<String> {
    let mut salt = [0; 16];
    SystemRandom::new().fill(&mut salt).map_err(|_| io::Error::other("the system has no random numbers"))?;
    let (memory, passes, lanes) = (19 << 10, 2, 1);
    let hash = Argon2Hash { version: 19, memory, passes, lanes, salt: salt.into(), hash: [].into() };
    let mut out = [0; 32];
    argon2(&hash, password, &mut out).ok_or_else(|| io::Error::other("this password cannot be hashed"))?;
    let (salt, out) = (BASE64_STANDARD_NO_PAD.encode(salt), BASE64_STANDARD_NO_PAD.encode(out));
    Ok(format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${out}"))
}

/// A new hash of bcrypt with cost 12, for files that other programs read too.
///
/// # Errors
/// When the password is longer than bcrypt reads, or the system gives no random numbers.
pub fn new_bcrypt(password: &str) -> io::Result<String> {
    bcrypt::non_truncating_hash(password, 12).map_err(|error| io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::policy::credentials::basic;

    /// A cheap hash of `password`.
    fn cheap(password: &str) -> String {
        let salt = *b"saltsalt";
        let hash = Argon2Hash { version: 19, memory: 8, passes: 1, lanes: 1, salt: salt.into(), hash: [].into() };
        let mut out = [0; 16];
        argon2(&hash, password, &mut out).expect("a hash");
        let (salt, out) = (BASE64_STANDARD_NO_PAD.encode(salt), BASE64_STANDARD_NO_PAD.encode(out));
        format!("$argon2id$v=19$m=8,t=1,p=1${salt}${out}")
    }

    fn login(text: &str) -> Login {
        let value = format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(text));
        let value = HeaderValue::from_str(&value).expect("a value");
        basic(&HeaderMap::from_iter([(AUTHORIZATION, value)])).expect("a login")
    }

    fn key(client: &str) -> Key {
        Key::of_guest(Guest::Client(ClientAddr::new(client.parse().expect("an address"))))
    }

    fn users(text: &str) -> Arc<Users> {
        Arc::new(Users::parse(text).expect("a good file"))
    }

    fn remembered(passwords: &Passwords) -> usize {
        lock(&passwords.state).known.since.len()
    }

    #[test]
    fn both_kinds_of_hash_know_their_password() {
        for text in [
            new_argon2("correct horse").expect("a hash"),
            bcrypt::hash("correct horse", 4).expect("a hash").replacen("$2b$", "$2y$", 1),
        ] {
            let hash = PasswordHash::parse(&text).expect("a hash");
            assert!(verify(&hash, "correct horse"), "{text}");
            assert!(!verify(&hash, "correct hors") && !verify(&hash, ""), "{text}");
        }
        assert!(new_bcrypt(&"x".repeat(73)).is_err(), "the 73rd byte would count for nothing");
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_until_the_file_changes() {
        let passwords = Passwords::new().expect("random numbers");
        let first = users(&format!("alice:{}\n", cheap("secret")));
        for (text, expected) in [
            ("alice:wrong", Verdict::Wrong),
            ("nobody:secret", Verdict::Wrong),
            ("alice:secret", Verdict::Right),
            ("alice:secret", Verdict::Right),
            ("alice:", Verdict::Wrong),
        ] {
            assert_eq!(passwords.judge(&first, &login(text), None).await, expected, "{text}");
        }
        assert_eq!(remembered(&passwords), 1);
        assert!(lock(&passwords.state).jobs.is_empty());
        let second = users(&format!("alice:{}\n", cheap("other")));
        assert_eq!(passwords.judge(&second, &login("alice:secret"), None).await, Verdict::Wrong);
        assert_eq!(passwords.judge(&users(""), &login("alice:secret"), None).await, Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_full_queue_turns_away_all_but_those_who_are_remembered() {
        let passwords = Passwords::new().expect("random numbers");
        let users = users(&format!("alice:{}\n", cheap("secret")));
        assert_eq!(passwords.judge(&users, &login("alice:secret"), None).await, Verdict::Right);
        let held: Vec<Step> = (0..QUEUE)
            .map(|number| {
                let client = key(&format!("203.0.113.{}", number / OF_ONE_CLIENT));
                passwords.step(passwords.digest(&users, &login(&format!("alice:{number}"))), Some(client))
            })
            .collect();
        assert!(held.iter().all(|step| matches!(step, Step::Lead(_))));
        assert_eq!(passwords.judge(&users, &login("alice:wrong"), None).await, Verdict::Busy);
        assert_eq!(passwords.judge(&users, &login("alice:secret"), None).await, Verdict::Right);
        drop(held);
        assert_eq!(passwords.judge(&users, &login("alice:wrong"), None).await, Verdict::Wrong);
    }

    #[test]
    fn one_client_has_a_part_of_the_queue() {
        let passwords = Passwords::new().expect("random numbers");
        let users = users("");
        let step = |number: usize, client: &str| {
            passwords.step(passwords.digest(&users, &login(&format!("a:{number}"))), Some(key(client)))
        };
        let held: Vec<Step> = (0..OF_ONE_CLIENT).map(|number| step(number, "2001:db8::1")).collect();
        assert!(matches!(step(9, "2001:db8::2"), Step::Full), "a neighbour in the same /64");
        assert!(matches!(step(9, "2001:db8:0:1::2"), Step::Lead(_)));
        assert!(matches!(step(0, "2001:db8::1"), Step::Join(_)), "the same question waits for the same answer");
        drop(held);
        assert!(matches!(step(9, "2001:db8::2"), Step::Lead(_)));
    }

    #[tokio::test]
    async fn who_asks_the_same_meanwhile_shares_the_hash() {
        let passwords = Arc::new(Passwords::new().expect("random numbers"));
        let users = users(&format!("alice:{}\n", cheap("secret")));
        let digest = passwords.digest(&users, &login("alice:secret"));
        let Step::Lead(turn) = passwords.step(digest, None) else { unreachable!("nobody else asks") };
        let joined = {
            let (passwords, users) = (Arc::clone(&passwords), Arc::clone(&users));
            tokio::spawn(async move { passwords.judge(&users, &login("alice:secret"), None).await })
        };
        tokio::task::yield_now().await;
        // Who leads goes away: the other one leads.
        drop(turn);
        assert_eq!(joined.await.expect("no panic"), Verdict::Right);
        assert_eq!(remembered(&passwords), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_has_an_end_and_a_bound() {
        let mut known = Known::default();
        let digest = |number: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            digest
        };
        for number in 0..2 * REMEMBERED {
            known.add(digest(number), Instant::now());
        }
        assert_eq!((known.since.len(), known.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!known.has(&digest(0), Instant::now()) && known.has(&digest(2 * REMEMBERED - 1), Instant::now()));
        tokio::time::advance(MEMORY).await;
        assert!(!known.has(&digest(2 * REMEMBERED - 1), Instant::now()));
        known.add(digest(1), Instant::now());
        assert_eq!((known.since.len(), known.order.len()), (1, 1));
    }
}
