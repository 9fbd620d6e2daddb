//! The command line: arguments, what each command prints, exit status.
//!
//! Exit: 0 fine, 1 could not run, 2 wrong input. What a command is asked for goes to standard
//! output, complaints to standard error; colours only where a terminal is.

mod certs;
mod password;
mod status;
pub mod trust;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::addr::HostPattern;
use crate::config::report::{Report, Severity};
use crate::config::{self, Input};
use crate::control;
use crate::server::history::{self, HistoryError};

/// Where a configuration is looked for when none is named.
const PLACES: [&str; 2] = ["tidegate.toml", "/etc/tidegate/tidegate.toml"];

/// HTTPS in front of a gateway, with sockets that live for days.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve
    Run(RunArgs),
    /// Check a configuration and report every fault in it
    Check {
        #[command(flatten)]
        file: FileArg,
        /// Report as JSON
        #[arg(long)]
        json: bool,
        /// Count warnings as faults
        #[arg(long)]
        strict: bool,
    },
    /// Print each effective value and where it came from
    Show {
        /// Only this site
        site: Option<String>,
        #[command(flatten)]
        file: FileArg,
    },
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Certificates: list, renew, revoke, fingerprints, accounts
    Certs {
        #[command(subcommand)]
        command: certs::Command,
    },
    /// Show how the running edge does: sites, upstreams, tunnels, limits, reloads
    Status(status::StatusArgs),
    /// Make this machine trust the local certificate authority
    Trust {
        #[command(flatten)]
        file: FileArg,
        /// Only write the authority's certificate to this file
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
    /// Hash a password for a users file of `[auth]`
    HashPassword(password::HashArgs),
    /// Restore a configuration that was in force: the one before, or the Nth of the list
    Rollback {
        /// Only list those that are kept
        #[arg(long, conflicts_with = "choice")]
        list: bool,
        /// Which, as listed
        #[arg(value_name = "N")]
        choice: Option<usize>,
        #[command(flatten)]
        file: FileArg,
        /// The directory that keeps them [default: the configuration's `storage`]
        #[arg(long, value_name = "DIR")]
        storage: Option<PathBuf>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// The page of one command
        command: Option<String>,
    },
}

/// Which configuration.
#[derive(Debug, Args)]
struct FileArg {
    /// The configuration [default: ./tidegate.toml, then /etc/tidegate/tidegate.toml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    file: FileArg,
    /// Serve this name without a configuration file
    #[arg(long, value_name = "NAME", requires = "upstream", conflicts_with = "config")]
    host: Option<String>,
    /// The gateway that is served under that name
    #[arg(long, value_name = "ADDR", requires = "host")]
    upstream: Option<String>,
}

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing else can be done when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::WrongInput.into() } else { Exit::Fine.into() };
        }
    };
    match execute(cli.command) {
        Ok(exit) => exit.into(),
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Fine.into(),
        Err(error) => {
            let _ = writeln!(anstream::stderr(), "error: {error}");
            Exit::CouldNotRun.into()
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Fine,
    CouldNotRun,
    WrongInput,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Fine => Self::from(0),
            Exit::CouldNotRun => Self::from(1),
            Exit::WrongInput => Self::from(2),
        }
    }
}

/// Does what one command says.
fn execute(command: Command) -> io::Result<Exit> {
    match command {
        Command::Run(args) => run(&args),
        Command::Check { file, json, strict } => check(&file, json, strict),
        Command::Show { site, file } => show(site.as_deref(), &file),
        Command::Schema => {
            let mut out = io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, &config::json_schema())?;
            writeln!(out)?;
            Ok(Exit::Fine)
        }
        Command::Completions { shell } => {
            // Into memory first: the generator panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut script);
            io::stdout().lock().write_all(&script)?;
            Ok(Exit::Fine)
        }
        Command::Certs { command } => certs::certs(&command),
        Command::Status(args) => status::status(&args),
        Command::Trust { file, export } => trust(&file, export.as_deref()),
        Command::HashPassword(args) => password::hash_password(&args),
        Command::Rollback { list, choice, file, storage } => rollback(&file, storage.as_deref(), list, choice),
        Command::Man { command } => man(command.as_deref()),
    }
}

/// `tidegate run`: serves until it is told to stop.
fn run(args: &RunArgs) -> io::Result<Exit> {
    let input = match (&args.host, &args.upstream) {
        (Some(host), Some(upstream)) => Input::Flags { host: host.clone(), upstream: upstream.clone() },
        _ => Input::File(path(&args.file)?),
    };
    let Err(fault) = control::run(input) else { return Ok(Exit::Fine) };
    write!(anstream::stderr(), "{}", fault.to_text(true))?;
    Ok(if fault.exit_status() == 2 { Exit::WrongInput } else { Exit::CouldNotRun })
}

/// `tidegate trust`.
fn trust(file: &FileArg, export: Option<&Path>) -> io::Result<Exit> {
    // Without a file `run --host localhost` serves, and its authority is meant.
    let storage = match path(file) {
        Ok(path) => match config::load(&path) {
            Ok(loaded) => loaded.table.edge.storage,
            Err(report) => {
                print_report(&report)?;
                return Ok(Exit::WrongInput);
            }
        },
        Err(_) => config::default_storage(),
    };
    match trust::trust(&storage, export, &mut anstream::stdout()) {
        Ok(()) => Ok(Exit::Fine),
        Err(error) => {
            writeln!(anstream::stderr(), "error: {error}")?;
            Ok(Exit::CouldNotRun)
        }
    }
}

/// `tidegate rollback`.
fn rollback(file: &FileArg, storage: Option<&Path>, is_list: bool, choice: Option<usize>) -> io::Result<Exit> {
    let path = path(file)?;
    // The file may be the broken one that is to be replaced: then what it says of `storage` is enough.
    let storage = storage.map(Path::to_owned).unwrap_or_else(|| match config::load(&path) {
        Ok(loaded) => loaded.table.edge.storage,
        Err(_) => config::storage_named_in(&path).unwrap_or_else(config::default_storage),
    });
    let mut out = anstream::stdout();
    let done = if is_list {
        history::write_list(&path, &storage, &mut out)
    } else {
        history::rollback(&path, &storage, choice, &mut out)
    };
    match done {
        Ok(()) => Ok(Exit::Fine),
        Err(error) => {
            let mut err = anstream::stderr();
            writeln!(err, "error: {error}")?;
            match &error {
                HistoryError::Invalid(faults) => write!(err, "{}", faults.0.to_text(true))?,
                HistoryError::NoEntry { kept: 0, .. } => {
                    let storage = storage.display();
                    writeln!(err, "help: this is about {storage}; name another directory with --storage DIR")?;
                }
                HistoryError::Io { .. } | HistoryError::NoEntry { .. } | HistoryError::Included(_) => {}
            }
            Ok(Exit::CouldNotRun)
        }
    }
}

/// The file that is meant.
fn path(file: &FileArg) -> io::Result<PathBuf> {
    if let Some(path) = &file.config {
        return Ok(path.clone());
    }
    let found = PLACES.iter().map(Path::new).find(|path| path.exists());
    found.map(Path::to_owned).ok_or_else(|| {
        let message = format!("there is no {}\nhelp: name one with -c FILE, or try: tidegate run --host localhost --upstream 127.0.0.1:18789", PLACES.join(" and no "));
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

/// `tidegate check`.
fn check(file: &FileArg, json: bool, strict: bool) -> io::Result<Exit> {
    let path = path(file)?;
    let (report, is_usable) = match config::load(&path) {
        Ok(loaded) => {
            let fault = loaded.storage_fault();
            let is_usable = fault.is_none();
            (Report::from(fault.into_iter().chain(loaded.warnings).collect::<Vec<_>>()), is_usable)
        }
        Err(report) => (report, false),
    };
    let is_fine = is_usable && !(strict && report.count(Severity::Warning) > 0);
    if json {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &report.to_json())?;
        writeln!(out)?;
    } else {
        let mut out = anstream::stdout();
        write!(out, "{}", report.to_text(true))?;
        writeln!(out, "{}", report.summary())?;
    }
    Ok(if is_fine { Exit::Fine } else { Exit::WrongInput })
}

/// `tidegate show`.
fn show(site: Option<&str>, file: &FileArg) -> io::Result<Exit> {
    let loaded = match config::load(&path(file)?) {
        Ok(loaded) => loaded,
        Err(report) => {
            print_report(&report)?;
            return Ok(Exit::WrongInput);
        }
    };
    let Some(name) = site else {
        io::stdout().lock().write_all(loaded.effective.to_text(None).as_bytes())?;
        return Ok(Exit::Fine);
    };
    let pattern = HostPattern::from_config(name).ok();
    let Some(pattern) = pattern.filter(|pattern| loaded.effective.groups(Some(pattern)).next().is_some()) else {
        let names: Vec<String> = loaded.table.sites().iter().map(|site| format!("\"{}\"", site.label)).collect();
        writeln!(anstream::stderr(), "error: there is no site \"{name}\"\nhelp: the sites are {}", names.join(", "))?;
        return Ok(Exit::WrongInput);
    };
    io::stdout().lock().write_all(loaded.effective.to_text(Some(&pattern)).as_bytes())?;
    Ok(Exit::Fine)
}

/// `tidegate man`.
fn man(command: Option<&str>) -> io::Result<Exit> {
    let mut root = Cli::command();
    root.build();
    let page = match command {
        None => Some(root.clone()),
        Some(name) => root.find_subcommand(name).cloned(),
    };
    let Some(page) = page else {
        writeln!(
            anstream::stderr(),
            "error: there is no command \"{}\"\nhelp: `tidegate help` lists them",
            command.unwrap_or_default()
        )?;
        return Ok(Exit::WrongInput);
    };
    clap_mangen::Man::new(page).render(&mut io::stdout().lock())?;
    Ok(Exit::Fine)
}

/// Prints a report on standard error.
fn print_report(report: &Report) -> io::Result<()> {
    let mut err = anstream::stderr();
    write!(err, "{}", report.to_text(true))?;
    writeln!(err, "{}", report.summary())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_need_each_other() {
        assert!(Cli::try_parse_from(["tidegate", "run", "--host", "localhost"]).is_err());
        assert!(
            Cli::try_parse_from(["tidegate", "run", "--host", "localhost", "--upstream", "127.0.0.1:1", "-c", "x"])
                .is_err()
        );
        assert!(Cli::try_parse_from(["tidegate", "run", "--host", "localhost", "--upstream", "127.0.0.1:1"]).is_ok());
    }
}
