//! The users of a file, as data: one `name:hash` a line, and what each hash costs.
//!
//! Two hashes are taken: argon2id (RFC 9106) as a PHC string, and bcrypt as `htpasswd -B` writes it. What a hash may
//! cost is bounded here, so that no line of a file can take memory or seconds with each login. Nothing is hashed
//! here: `policy/password.rs` does it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;

/// A users file and who was in it when it was read last. An actor looks for changes (`policy/user_files.rs`).
pub struct UserList {
    file: PathBuf,
    users: ArcSwap<Users>,
}

impl UserList {
    /// The users of a file that was just read.
    pub fn new(file: PathBuf, users: Users) -> Self {
        Self { file, users: ArcSwap::from_pointee(users) }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Who is in it.
    pub fn users(&self) -> Arc<Users> {
        self.users.load_full()
    }

    /// What a look has shown.
    pub fn set(&self, users: Arc<Users>) {
        self.users.store(users);
    }
}

impl fmt::Debug for UserList {
    /// The file alone: two configurations do not differ because a user was added.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UserList").field(&self.file).finish()
    }
}

/// The users of one reading of a file.
pub struct Users {
    /// Tells two readings apart.
    digest: [u8; 32],
    /// Sorted by name.
    entries: Vec<(Box<str>, PasswordHash)>,
}

/// The hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// argon2id (RFC 9106).
    Argon2(Argon2Hash),
    /// The whole string of bcrypt.
    Bcrypt(Box<str>),
}

/// argon2id with its parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct Argon2Hash {
    /// 16 or 19, for the versions 1.0 and 1.3.
    pub version: u32,
    /// Memory in KiB.
    pub memory: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
    /// The salt.
    pub salt: Box<[u8]>,
    /// What comes out for the right password.
    pub hash: Box<[u8]>,
}

impl fmt::Debug for PasswordHash {
    /// A hash is a secret: it can be guessed at without asking us.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argon2(_) => "Argon2(…)",
            Self::Bcrypt(_) => "Bcrypt(…)",
        })
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("count", &self.entries.len()).finish_non_exhaustive()
    }
}

/// What is wrong with one line of a users file. The line itself is never repeated: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineFault {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
    /// What to do.
    pub help: &'static str,
}

/// Why a hash cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashFault {
    /// What is wrong.
    pub what: &'static str,
    /// What to do.
    pub help: &'static str,
}

const MAKE_ANEW: &str = "make a new line: tidegate hash-password --user NAME";

/// RFC 7617 2 has no bound; a longer name would not fit into one record.
pub const MAX_NAME: usize = 255;

/// 256 MiB, our choice: what one hash may take of a small server's memory.
const MAX_MEMORY: u32 = 256 << 10;

/// Memory times passes, in KiB. Our choice: some two seconds of one core.
const MAX_WORK: u64 = 2 << 20;

impl Users {
    /// Reads the text of a users file: `name:hash` a line; empty lines and lines that begin with `#` say nothing.
    ///
    /// # Errors
    /// Every line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, Vec<LineFault>> {
        let (mut entries, mut faults) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((name, hash)) => entries.push((index + 1, name, hash)),
                Err(HashFault { what, help }) => faults.push(LineFault { line: index + 1, what, help }),
            }
        }
        // Stable: of two lines with one name the second is at fault.
        entries.sort_by(|(_, one, _), (_, other, _)| one.cmp(other));
        for pair in entries.windows(2).filter(|pair| pair[0].1 == pair[1].1) {
            let help = "one user has one line: remove one of the two";
            faults.push(LineFault { line: pair[1].0, what: "its user stands in an earlier line too", help });
        }
        faults.sort_by_key(|fault| fault.line);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        let entries = entries.into_iter().map(|(_, name, hash)| (name, hash)).collect();
        Ok(Self { digest: bytes, entries })
    }

    /// Differs for two texts that differ.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The hash of a user.
    pub fn find(&self, name: &str) -> Option<&PasswordHash> {
        let at = self.entries.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.entries[at].1)
    }

    /// Some hash, always the same for one number: what is worked on for a name that is not there, so that the answer
    /// takes as long as for one that is. `None` when there are no users at all.
    pub fn decoy(&self, number: usize) -> Option<&PasswordHash> {
        let at = number.checked_rem(self.entries.len())?;
        Some(&self.entries[at].1)
    }
}

/// One line: a name without a colon (RFC 7617 2), and a hash.
fn parse_line(line: &str) -> Result<(Box<str>, PasswordHash), HashFault> {
    let Some((name, rest)) = line.split_once(':') else {
        return Err(HashFault { what: "it has no colon between a name and a hash", help: MAKE_ANEW });
    };
    let is_name = (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control) && name.trim() == name;
    if !is_name {
        let help = "write it without blanks at its ends and without control characters, in at most 255 bytes";
        return Err(HashFault { what: "its name is empty, too long, or has blanks at its ends", help });
    }
    // What follows a second colon, as in a file of system users, would be passed over in silence.
    Ok((name.into(), PasswordHash::parse(rest.trim_end())?))
}

impl PasswordHash {
    /// Reads a hash.
    ///
    /// # Errors
    /// When it is of another kind, malformed, or too dear.
    pub fn parse(text: &str) -> Result<Self, HashFault> {
        if text.starts_with("$argon2id$") {
            return parse_argon2(text).map(Self::Argon2);
        }
        if text.starts_with("$2b$") || text.starts_with("$2y$") {
            return parse_bcrypt(text).map(Self::Bcrypt);
        }
        let what = match text {
            "" => "it has no hash",
            _ if text.starts_with("$argon2") => "its hash is not argon2id but another argon2",
            _ if text.starts_with("$2") => "its hash is bcrypt in a form that had faults: only $2b$ and $2y$ are taken",
            _ if text.starts_with("$apr1$") || text.starts_with("$1$") => {
                "its hash is MD5, as htpasswd makes without -B"
            }
            _ if text.starts_with("{SHA}") => "its hash is SHA-1 without a salt",
            _ if text.starts_with("$5$") || text.starts_with("$6$") => "its hash is SHA-2 of crypt",
            _ if text.starts_with('$') || text.starts_with('{') => "its hash is of a kind that is not known",
            _ => "what stands behind the name is no hash",
        };
        Err(HashFault { what, help: MAKE_ANEW })
    }
}

/// A PHC string: `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`, the parameters in this order.
fn parse_argon2(text: &str) -> Result<Argon2Hash, HashFault> {
    let malformed = HashFault { what: "its argon2id hash is malformed or cut off", help: MAKE_ANEW };
    let dear = |what| HashFault { what, help: "make it anew with less: tidegate hash-password --user NAME" };
    let mut parts = text.split('$').skip(2).peekable();
    // Without a version it is the older one (PHC string format of argon2).
    let version = match parts.next_if(|part| part.starts_with("v=")) {
        None | Some("v=16") => 16,
        Some("v=19") => 19,
        Some(_) => return Err(malformed),
    };
    let (Some(parameters), Some(salt), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed);
    };
    let mut numbers =
        parameters.split(',').zip(["m=", "t=", "p="]).map(|(text, name)| number(text.strip_prefix(name)?));
    let (Some(Some(memory)), Some(Some(passes)), Some(Some(lanes)), 2) =
        (numbers.next(), numbers.next(), numbers.next(), parameters.matches(',').count())
    else {
        return Err(malformed);
    };
    let decode = |text: &str| BASE64_STANDARD_NO_PAD.decode(text).ok().map(Vec::into_boxed_slice);
    let (Some(salt), Some(hash)) = (decode(salt), decode(hash)) else { return Err(malformed) };
    // RFC 9106 3.1; a hash below 16 bytes can be met by chance.
    let is_sound = (8..=64).contains(&salt.len())
        && (16..=64).contains(&hash.len())
        && (1..=16).contains(&lanes)
        && passes >= 1
        && memory >= 8 * lanes;
    if !is_sound {
        return Err(malformed);
    }
    if memory > MAX_MEMORY {
        return Err(dear("its hash needs more than 256 MiB of memory"));
    }
    if u64::from(memory) * u64::from(passes) > MAX_WORK {
        return Err(dear("its hash needs seconds for each login"));
    }
    Ok(Argon2Hash { version, memory, passes, lanes, salt, hash })
}

/// A number without sign or leading zero.
fn number(text: &str) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// `$2b$12$` and 53 characters of its own base64: 22 of salt, 31 of hash.
fn parse_bcrypt(text: &str) -> Result<Box<str>, HashFault> {
    let malformed = HashFault { what: "its bcrypt hash is malformed or cut off", help: MAKE_ANEW };
    let Some((cost, rest)) = text.get(4..).and_then(|rest| rest.split_once('$')) else { return Err(malformed) };
    let is_sound = rest.len() == 53
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'))
        && cost.len() == 2
        && cost.bytes().all(|byte| byte.is_ascii_digit());
    match cost.parse::<u32>() {
        Ok(4..=15) if is_sound => Ok(text.into()),
        Ok(16..=31) if is_sound => Err(HashFault {
            what: "its bcrypt hash needs seconds for each login",
            help: "make it anew with a cost of 12: tidegate hash-password --bcrypt --user NAME",
        }),
        _ => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGON2: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw";
    const BCRYPT: &str = "$2y$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";

    #[test]
    fn a_file_gives_its_users_or_every_fault() {
        let users = Users::parse(&format!("# staff\n\nbob:{BCRYPT}\r\nalice:{ARGON2}\n")).expect("a good file");
        assert_eq!(users.count(), 2);
        assert!(matches!(users.find("alice"), Some(PasswordHash::Argon2(hash)) if hash.memory == 19456));
        assert!(matches!(users.find("bob"), Some(PasswordHash::Bcrypt(_))));
        assert!(users.find("Alice").is_none() && users.find("").is_none());
        let text = format!("alice:{ARGON2}\nalice\nbob:secret\n:{ARGON2}\nalice:{ARGON2}\n");
        let faults = Users::parse(&text).expect_err("four faults");
        assert_eq!(faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [2, 3, 4, 5], "{faults:?}");
        assert!(!format!("{faults:?} {users:?}").contains("secret"));
    }

    #[test]
    fn two_texts_have_two_digests() {
        let digest = |text: &str| *Users::parse(text).expect("a good file").digest();
        assert_eq!(digest(""), digest(""));
        assert_ne!(digest(&format!("a:{ARGON2}")), digest(&format!("a:{BCRYPT}")));
    }

    #[test]
    fn a_name_that_is_not_there_works_on_a_hash_that_is() {
        let users = Users::parse(&format!("a:{ARGON2}\nb:{BCRYPT}\n")).expect("a good file");
        for number in [0, 1, 2, usize::MAX] {
            assert!(users.decoy(number).is_some());
        }
        assert_eq!(users.decoy(4), users.decoy(4));
        assert!(Users::parse("").expect("an empty file").decoy(7).is_none());
    }

    #[test]
    fn only_two_kinds_of_hash_are_taken_and_none_that_is_too_dear() {
        for good in [ARGON2, BCRYPT, "$argon2id$m=8,t=1,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw"] {
            assert!(PasswordHash::parse(good).is_ok(), "{good}");
        }
        for (bad, what) in [
            ("", "no hash"),
            ("secret", "is no hash"),
            ("$apr1$a$b", "MD5"),
            ("{SHA}x", "SHA-1"),
            ("$6$a$b", "SHA-2"),
            ("$y$j9T$x", "not known"),
            ("$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "another argon2"),
            ("$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", "had faults"),
            ("$2y$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhW", "malformed"),
            ("$2y$99$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", "malformed"),
            ("$2y$20$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", "seconds"),
            ("$2y$é$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", "malformed"),
            ("$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ", "malformed"),
            ("$argon2id$v=19$m=19456,t=2,p=1,x=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "malformed"),
            ("$argon2id$v=19$t=2,m=19456,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "malformed"),
            ("$argon2id$v=19$m=+8,t=1,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "malformed"),
            ("$argon2id$v=18$m=8,t=1,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "malformed"),
            ("$argon2id$v=19$m=8,t=1,p=2$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "malformed"),
            ("$argon2id$v=19$m=8,t=1,p=1$c2FsdA$AAECAwQFBgcICQoLDA0ODw", "malformed"),
            ("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAEC", "malformed"),
            ("$argon2id$v=19$m=999999,t=1,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "256 MiB"),
            ("$argon2id$v=19$m=200000,t=99,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "seconds"),
            ("$argon2id$v=19$m=19456,t=4294967295,p=1$c2FsdHNhbHQ$AAECAwQFBgcICQoLDA0ODw", "seconds"),
        ] {
            let fault = PasswordHash::parse(bad).expect_err(bad);
            assert!(fault.what.contains(what), "{bad}: {fault:?}");
        }
    }
}
