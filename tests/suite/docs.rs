//! What the documents show works: every TOML block and file goes through `tidegate check` (HOUSE.md B5).

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::harness::{Run, run_in};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        for entry in entries.map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The fenced blocks of a language in a Markdown text, with the line on which each begins.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, bool, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(info)) => open = Some((number + 2, info.trim() == language, String::new())),
            (Some(_), Some(_)) => {
                if let Some((start, true, block)) = open.take() {
                    found.push((start, block));
                }
            }
            (Some((_, _, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

/// True when nothing is wrong but files of the reader's own machine, such as a certificate (C071), that are not here.
fn is_fine(run: &Run) -> bool {
    let faults = run.stdout.matches("error[").count();
    run.code == Some(0) || (faults > 0 && faults == run.stdout.matches("error[C071]").count())
}

/// Each TOML file that we ship is accepted as it stands.
#[test]
fn every_toml_file_is_accepted() {
    let all: Vec<PathBuf> = [files("config", "toml"), files("examples", "toml")].concat();
    let names: Vec<_> = all.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    for needed in ["local.toml", "tidegate.toml", "reference.toml"] {
        assert!(names.contains(&needed), "config/{needed} is missing");
    }
    let dir = TempDir::new().unwrap();
    for path in all.iter().filter(|path| !path.ends_with("Cargo.toml")) {
        let run = run_in(dir.path(), &["check", "-c", path.to_str().unwrap()]);
        assert!(is_fine(&run), "{}: {run:?}", path.display());
    }
}

/// Each TOML block in the documents is accepted as a whole file.
#[test]
fn every_toml_block_is_accepted() {
    let mut count = 0;
    let mut documents: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md"].iter().map(|name| root().join(name)).collect();
    documents.extend(files("examples", "md"));
    documents.extend(files("docs", "md"));
    documents.extend(files("deploy", "md"));
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap_or_else(|e| panic!("{}: {e}", document.display()));
        for (line, block) in blocks(&text, "toml") {
            let dir = TempDir::new().unwrap();
            std::fs::write(dir.path().join("tidegate.toml"), &block).unwrap();
            let run = run_in(dir.path(), &["check"]);
            assert!(is_fine(&run), "{}:{line}: {run:?}\n{block}", document.display());
            count += 1;
        }
    }
    assert!(count > 0, "README.md shows no configuration");
}

/// What a reader is told to type names a command that exists.
#[test]
fn every_tidegate_command_in_the_readme_exists() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let dir = TempDir::new().unwrap();
    let mut commands: Vec<String> = Vec::new();
    for (_, block) in [blocks(&text, "sh"), blocks(&text, "console"), blocks(&text, "")].concat() {
        for line in block.lines() {
            let words: Vec<&str> = line.trim_start_matches("$ ").split_whitespace().collect();
            let at = words.iter().position(|word| *word == "tidegate" || word.ends_with("/tidegate") || *word == "--");
            if let Some(command) = at
                .and_then(|at| words.get(at + 1))
                .filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            {
                commands.push((*command).to_owned());
            }
        }
    }
    commands.sort();
    commands.dedup();
    assert!(commands.contains(&"run".to_owned()), "README.md does not say how to run it: {commands:?}");
    for command in commands.iter().filter(|command| !command.starts_with('-')) {
        let run = run_in(dir.path(), &[command, "--help"]);
        assert_eq!(run.code, Some(0), "README.md names \"tidegate {command}\": {run:?}");
    }
}

/// HOUSE.md: nothing in the project names the place where it was made.
#[test]
fn documents_use_example_names_only() {
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"));
        for never in ["/work/", "/tmp/"] {
            assert!(!text.contains(never), "{document} contains {never}");
        }
    }
}
