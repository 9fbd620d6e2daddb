//! `tidegate hash-password`: a line, or a hash, for a users file. The password comes from the terminal, unseen and
//! twice, or from standard input; never from the arguments, which everybody on the machine can see.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;

use nix::sys::termios::{self, LocalFlags, SetArg, Termios};

use super::Exit;
use crate::policy::credentials::MAX_PASSWORD;
use crate::policy::password::{new_argon2, new_bcrypt};
use crate::site::users::{MAX_NAME, PasswordHash};

/// What to make.
#[derive(Debug, clap::Args)]
pub(super) struct HashArgs {
    /// Print a whole line of a users file, for this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Use bcrypt instead of argon2id, for files that other programs read too
    #[arg(long)]
    bcrypt: bool,
}

/// Reads a password and prints its hash.
pub(super) fn hash_password(args: &HashArgs) -> io::Result<Exit> {
    let name = args.user.as_deref();
    if let Some(why) = name.and_then(fault_of_name) {
        return wrong(why, "users files have one name:hash a line");
    }
    let password = match read()? {
        Ok(password) => password,
        Err(why) => return wrong(why, "tidegate hash-password < FILE reads the first line of a file"),
    };
    if let Some(why) = fault_of(&password, args.bcrypt) {
        return wrong(why, "choose another password");
    }
    let hash = if args.bcrypt { new_bcrypt(&password)? } else { new_argon2(&password)? };
    debug_assert!(PasswordHash::parse(&hash).is_ok(), "a users file takes what is printed");
    let mut out = io::stdout().lock();
    match name {
        Some(name) => writeln!(out, "{name}:{hash}")?,
        None => writeln!(out, "{hash}")?,
    }
    Ok(Exit::Fine)
}

fn wrong(why: &str, help: &str) -> io::Result<Exit> {
    writeln!(anstream::stderr(), "error: {why}\nhelp: {help}")?;
    Ok(Exit::WrongInput)
}

/// What keeps a name from being one (RFC 7617 2).
fn fault_of_name(name: &str) -> Option<&'static str> {
    let is_name = (1..=MAX_NAME).contains(&name.len())
        && !name.contains(|character: char| character.is_control() || character == ':')
        && name.trim() == name
        && !name.starts_with('#');
    (!is_name).then_some("a name has no colon, no \"#\" or blank at its beginning, and at most 255 bytes")
}

/// What keeps a password from being one.
fn fault_of(password: &str, is_bcrypt: bool) -> Option<&'static str> {
    match password {
        "" => Some("the password is empty"),
        _ if password.contains(char::is_control) => Some("the password has a control character"),
        _ if password.len() > MAX_PASSWORD => Some("the password is longer than 1024 bytes"),
        _ if is_bcrypt && password.len() > 72 => Some("bcrypt reads only 72 bytes of a password"),
        _ => None,
    }
}

/// The password, or why there is none.
fn read() -> io::Result<Result<String, &'static str>> {
    let input = io::stdin().lock();
    if !input.is_terminal() {
        let mut line = String::new();
        // One byte more than a password may have, and its line end.
        input.take(MAX_PASSWORD as u64 + 3).read_line(&mut line)?;
        return Ok(Ok(line.trim_end_matches(['\r', '\n']).to_owned()));
    }
    drop(input);
    let first = ask("Password: ")?;
    let second = ask("Again: ")?;
    Ok(if first == second { Ok(first) } else { Err("the two passwords differ") })
}

/// One line from the terminal, unseen.
fn ask(prompt: &str) -> io::Result<String> {
    // First of all: what is typed before is discarded, and who sees the prompt may type.
    let unseen = Unseen::begin()?;
    let mut shown = io::stderr();
    write!(shown, "{prompt}")?;
    shown.flush()?;
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    drop(unseen);
    writeln!(shown)?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// While it lives, the terminal does not show what is typed.
struct Unseen(Termios);

impl Unseen {
    fn begin() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut unseen = before.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &unseen)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // Nothing else can be done when the terminal is gone.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_users_file_cannot_hold_is_refused() {
        for (name, is_good) in
            [("alice", true), ("a b", true), ("", false), ("a:b", false), (" a", false), ("#a", false)]
        {
            assert_eq!(fault_of_name(name).is_none(), is_good, "{name:?}");
        }
        let long = "x".repeat(73);
        for (password, is_bcrypt, is_good) in [
            ("secret", false, true),
            ("", false, false),
            ("a\tb", false, false),
            (&long, false, true),
            (&long, true, false),
        ] {
            assert_eq!(fault_of(password, is_bcrypt).is_none(), is_good, "{password:?}");
        }
    }
}
