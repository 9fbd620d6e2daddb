//! Countries as data: which may enter, and a database that says where an address is (`geo`, in the form of MaxMind's
//! files). It is held in memory whole, so that no request waits for a disk; an actor replaces it when its file changes
//! (`policy/geo.rs`).

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use maxminddb::{PathElement, Reader};

/// Who may enter, by country.
#[derive(Clone, Debug)]
pub struct Geo {
    /// Where addresses are.
    pub countries: Arc<Countries>,
    /// Which may; `None` for all.
    pub allow: Option<Vec<Country>>,
    /// Which may not, whatever `allow` says.
    pub deny: Vec<Country>,
    /// Whether an address may that is in no country: private ones, and those that the database lacks.
    pub admits_unknown: bool,
}

/// Two letters of ISO 3166-1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Country([u8; 2]);

impl FromStr for Country {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let letters: [u8; 2] = text.as_bytes().try_into().map_err(|_| ())?;
        if letters.iter().all(u8::is_ascii_uppercase) { Ok(Self(letters)) } else { Err(()) }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| fmt::Write::write_char(f, char::from(*letter)))
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database and the file that it comes from.
pub struct Countries {
    file: PathBuf,
    database: ArcSwap<Database>,
    /// The file as it was when it was read last, good or bad.
    seen: Mutex<Sight>,
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sight {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// What a look at the file has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing new.
    Same,
    /// A new database, which is in force from now on.
    Replaced,
    /// A new file that cannot be used, in words; what was in force stays.
    Broken(String),
}

impl Countries {
    /// Reads a database.
    ///
    /// # Errors
    /// When there is none, or it cannot be used: in words.
    pub fn open(file: PathBuf) -> Result<Self, String> {
        let (sight, database) = read(&file).map_err(|error| words(&error))?;
        let database = ArcSwap::from_pointee(database.map_err(|why| why.to_string())?);
        Ok(Self { file, database, seen: Mutex::new(sight) })
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What kind of database it is, as its maker calls it.
    pub fn kind(&self) -> String {
        self.database.load().0.metadata().database_type.clone()
    }

    /// The country of an address, if it is in one.
    pub fn of(&self, address: IpAddr) -> Option<Country> {
        self.database.load().country_of(address)
    }

    /// Takes the file anew when it has changed. Blocks as long as the disk does.
    pub fn look(&self) -> Look {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::metadata(&self.file) {
            Ok(facts) if Sight::of(&facts) == *seen => return Look::Same,
            Ok(_) => {}
            // Between its removal and its return there is nothing to say; whoever loads next is told.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Look::Same,
            Err(error) => return Look::Broken(words(&error)),
        }
        match read(&self.file) {
            Ok((sight, database)) => {
                *seen = sight;
                match database {
                    Ok(database) => {
                        self.database.store(Arc::new(database));
                        Look::Replaced
                    }
                    Err(why) => Look::Broken(why.to_owned()),
                }
            }
            Err(error) => Look::Broken(words(&error)),
        }
    }
}

impl fmt::Debug for Countries {
    /// The setting alone: two configurations do not differ because a file has changed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Countries").field(&self.file).finish()
    }
}

/// Our choice: four times the largest that knows cities too. A wrong path must not fill the memory.
const LARGEST: u64 = 256 << 20;

/// Reads a file, and what is in it.
fn read(file: &Path) -> io::Result<(Sight, Result<Database, &'static str>)> {
    let mut open = File::open(file)?;
    let facts = open.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(facts.len().min(LARGEST)).unwrap_or_default());
    open.by_ref().take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 256MiB"));
    }
    Ok((Sight::of(&facts), Database::parse(bytes)))
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

impl Sight {
    fn of(facts: &Metadata) -> Self {
        Self { modified: facts.modified().ok(), length: facts.len(), inode: facts.ino() }
    }
}

/// A database in memory.
struct Database(Reader<Vec<u8>>);

impl Database {
    fn parse(bytes: Vec<u8>) -> Result<Self, &'static str> {
        Reader::from_source(bytes).map(Self).map_err(|_| "it is no database of addresses (.mmdb), or not a whole one")
    }

    fn country_of(&self, address: IpAddr) -> Option<Country> {
        // What the file does not say, or says wrongly, is not known.
        let found = self.0.lookup(address.to_canonical()).ok()?;
        let path = [PathElement::Key("country"), PathElement::Key("iso_code")];
        found.decode_path::<&str>(&path).ok()??.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_country_is_two_capital_letters() {
        assert_eq!("DE".parse::<Country>().map(|country| country.to_string()), Ok("DE".to_owned()));
        for text in ["de", "D", "DEU", "D1", "", "Ä"] {
            assert!(text.parse::<Country>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_database_is_said_and_kept_out() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("countries.mmdb");
        let fault = |file: &Path| Countries::open(file.to_owned()).map(|_| ());
        assert_eq!(fault(&file), Err("there is no such file".to_owned()));
        assert_eq!(fault(dir.path()), Err("it is not a file".to_owned()));
        for bytes in [&b""[..], b"nothing", b"\xab\xcd\xefMaxMind.com", &[0; 4096]] {
            std::fs::write(&file, bytes).expect("written");
            assert!(fault(&file).is_err_and(|why| why.contains(".mmdb")), "{bytes:?}");
        }
    }
}
