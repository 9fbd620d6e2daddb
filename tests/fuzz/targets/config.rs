//! The config compiler: any text gives a site table or a report that can be read, and always the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::config::report::{Report, Severity};
use tidegate::config::compile_text;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match (compile_text("fuzz.toml", text), compile_text("fuzz.toml", text)) {
        (Ok(first), Ok(second)) => {
            assert!(!first.table.sites().is_empty(), "a file that serves nothing is a fault");
            assert_eq!(first.effective.to_text(None), second.effective.to_text(None));
            assert_eq!(first.warnings.len(), second.warnings.len());
        }
        (Err(first), Err(second)) => {
            assert!(first.count(Severity::Error) > 0 && first.has_errors(), "refused without a reason");
            readable(&first, text);
            assert_eq!(first.to_text(false), second.to_text(false));
        }
        (Ok(_), Err(report)) | (Err(report), Ok(_)) => panic!("only once: {}", report.to_text(false)),
    }
});

/// Each diagnostic says something, at a place that exists.
fn readable(report: &Report, text: &str) {
    for diagnostic in report.diagnostics() {
        assert!(!diagnostic.message.is_empty() && !diagnostic.message.contains('\n'), "{:?}", diagnostic.message);
        let places = diagnostic.span.iter().chain(diagnostic.also.iter().map(|(span, _)| span));
        for span in places.filter(|span| span.source.name == "fuzz.toml") {
            assert!(text.get(span.range.clone()).is_some(), "{:?} is not in the text", span.range);
            let (line, column) = span.position();
            let at = text.split('\n').nth(line - 1).expect("a line of the text");
            assert!(column <= at.chars().count() + 1, "column {column} of {at:?}");
        }
    }
    // Terminals obey control characters; a file must not be able to speak to them. Those above ASCII
    // pass in a snippet: terminals that read UTF-8 ignore them, by default.
    let shown = report.to_text(false);
    assert!(!shown.chars().any(|c| c.is_ascii_control() && c != '\n' && c != '\t'), "{shown:?}");
    let listed = report.to_json()["diagnostics"].as_array().map(Vec::len);
    assert_eq!(listed, Some(report.diagnostics().len()));
}
