//! The status for a person: what stands first is what one looks for first.
//!
//! Made of the JSON alone. Names and errors in it were said by others: no byte of them steers a terminal.

use std::fmt::Write as _;

use serde_json::Value;

use crate::server::printable;

/// So many tunnels are shown; the JSON has all.
const TUNNELS: usize = 10;
/// So many lines of a report are shown.
const REPORT: usize = 30;

/// The whole page. Writing to a String cannot fail, so that results of `write!` are not looked at here.
pub(super) fn page(status: &Value) -> String {
    let mut page = String::new();
    let phase = if status["phase"] == "draining" { "   DRAINING" } else { "" };
    let _ = writeln!(
        page,
        "tidegate {}   up {}   generation {}   {} connections   {} tunnels   {} req/min{phase}",
        text(&status["version"]),
        age(number(&status["uptime_seconds"])),
        number(&status["generation"]),
        grouped(number(&status["connections"])),
        grouped(number(&status["tunnels"])),
        grouped(number(&status["requests_per_minute"])),
    );
    sites(status, &mut page);
    footer(status, &mut page);
    refusals(status, &mut page);
    tunnels(status, &mut page);
    problems(status, &mut page);
    page
}

/// One row a site, and below it what is wrong there.
fn sites(status: &Value, page: &mut String) {
    let head = ["site", "certificate", "upstream", "health", "req/min", "4xx", "5xx", "p99"].map(str::to_owned);
    let all = list(&status["sites"]);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            // Numbers end where their heads end.
            if column < 4 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(page, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        let Some(site) = index.checked_sub(1).and_then(|index| all.get(index)) else { continue };
        for remark in remarks(site) {
            let _ = writeln!(page, "    {}", printable(&remark));
        }
    }
}

fn row(site: &Value) -> [String; 8] {
    let recent = &site["last_5_minutes"];
    let health = match (site["is_known"] == true, site["is_up"] == true) {
        _ if list(&site["upstreams"]).is_empty() => "-",
        (_, false) => "DOWN",
        (true, true) => "ok",
        (false, true) => "unused",
    };
    let upstreams: Vec<String> = list(&site["upstreams"]).iter().map(text).collect();
    let upstream = match upstreams.as_slice() {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, more @ ..] => format!("{first} +{}", more.len()),
    };
    let wait = recent["upstream_p99_ms"].as_f64().map_or("-".to_owned(), milliseconds);
    [
        text(&site["site"]),
        certificate(&site["certificate"]),
        upstream,
        health.to_owned(),
        grouped(number(&site["requests_per_minute"])),
        grouped(number(&recent["status"]["4xx"])),
        grouped(number(&recent["status"]["5xx"])),
        wait,
    ]
}

/// `61 d  (renews 02-11)`, `local, pending`, `EXPIRED`.
fn certificate(certificate: &Value) -> String {
    if certificate.is_null() {
        return "none (cleartext)".to_owned();
    }
    let source = text(&certificate["source"]);
    let Some(left) = certificate["seconds_left"].as_i64() else { return format!("{source}, MISSING") };
    if certificate["standing"] == "stand-in" {
        return "local, pending".to_owned();
    }
    let left = if left <= 0 { "EXPIRED".to_owned() } else { age(left.unsigned_abs()) };
    // `2026-02-11T…`: the year says nothing to somebody who reads it now.
    let renews = certificate["next_renewal"].as_str().and_then(|time| time.get(5..10));
    match renews {
        Some(date) if source == "acme" => format!("{left}  (renews {date})"),
        _ => format!("{left}  ({source})"),
    }
}

/// What a person should know of a site beyond its row.
fn remarks(site: &Value) -> Vec<String> {
    let mut remarks = Vec::new();
    let certificate = &site["certificate"];
    let next = certificate["next_attempt"].as_str().and_then(|time| time.get(11..16));
    let next = next.map(|time| format!(", next try {time}")).unwrap_or_default();
    if let Some(stage) = certificate["stage"].as_str() {
        remarks.push(format!("ordering: {stage}"));
    } else if let Some(problem) = certificate["problem"].as_str() {
        remarks.push(format!("certificate: {problem}{next}"));
    }
    if let Some(error) = site["error"].as_str() {
        remarks.push(format!("upstream: {error}"));
    }
    remarks
}

/// Limiters, losses, handshakes, the last reload.
fn footer(status: &Value, page: &mut String) {
    let recent = |one: &&Value| number(&one["last_5_minutes"]) > 0;
    let limits: Vec<String> = list(&status["limits"])
        .iter()
        .filter(recent)
        .map(|one| format!("{} {} refused in 5 min", text(&one["limit"]), grouped(number(&one["last_5_minutes"]))))
        .collect();
    let limits = if limits.is_empty() { "none refused in 5 min".to_owned() } else { limits.join(", ") };
    let dropped = number(&status["log"]["dropped_records"]);
    let drops = if dropped == 0 { "none".to_owned() } else { format!("{} records", grouped(dropped)) };
    let wait = status["tls"]["last_5_minutes"]["p95_ms"].as_f64();
    let wait = wait.map(|ms| format!("     handshakes p95 {}", milliseconds(ms))).unwrap_or_default();
    let _ = writeln!(page, "limits  {limits}     drops {drops}{wait}     {}", last_reload(status));
}

fn last_reload(status: &Value) -> String {
    let Some(last) = list(&status["reloads"]).first() else { return "no reload since the start".to_owned() };
    let result = if last["is_fine"] == true { "ok" } else { "FAILED" };
    let at = last["at"].as_str().and_then(|time| time.get(11..16)).unwrap_or_default();
    format!("last reload {result} {at}")
}

/// The codes of the last minutes, the most frequent first.
fn refusals(status: &Value, page: &mut String) {
    let mut recent: Vec<(u64, String)> = list(&status["refusals"])
        .iter()
        .map(|one| (number(&one["last_5_minutes"]), text(&one["code"])))
        .filter(|(count, _)| *count > 0)
        .collect();
    recent.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    if recent.is_empty() {
        return;
    }
    let shown: Vec<String> = recent.iter().take(6).map(|(count, code)| format!("{code} {}", grouped(*count))).collect();
    let _ = writeln!(page, "refused in 5 min  {}", shown.join(", "));
}

/// The oldest tunnels.
fn tunnels(status: &Value, page: &mut String) {
    let all = list(&status["open_tunnels"]);
    if all.is_empty() {
        return;
    }
    let which = if all.len() > TUNNELS {
        format!("the {TUNNELS} oldest of {}", grouped(all.len() as u64))
    } else {
        "oldest first".into()
    };
    let _ = writeln!(page, "tunnels ({which})");
    let rows: Vec<[String; 6]> = all
        .iter()
        .take(TUNNELS)
        .map(|one| {
            [
                text(&one["client"]),
                text(&one["site"]),
                age(number(&one["age_seconds"])),
                format!("{} in", size(number(&one["bytes_in"]))),
                format!("{} out", size(number(&one["bytes_out"]))),
                format!("gen {}", number(&one["generation"])),
            ]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(page, "  {}", cells.join("  ").trim_end());
    }
}

/// What must not be overlooked stands last, where the eye is.
fn problems(status: &Value, page: &mut String) {
    for problem in list(&status["problems"]) {
        let _ = writeln!(page, "warn  {}", text(problem));
    }
    let Some(last) = list(&status["reloads"]).first().filter(|last| last["is_fine"] == false) else { return };
    let report = last["report"].as_str().unwrap_or_default();
    for line in report.lines().take(REPORT) {
        let _ = writeln!(page, "      {}", printable(line).trim_end());
    }
    if report.lines().count() > REPORT {
        let _ = writeln!(page, "      … `tidegate status --json` has all of it");
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default()).into_owned()
}

/// `1,204`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12 d`, `5 h`, `3 min`, `40 s`.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `38 ms`, `1.2 s`.
fn milliseconds(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

/// `812 B`, `40 KiB`, `1.2 GiB`.
fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" || size >= 10.0 { format!("{size:.0} {unit}") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    /// The page of EXPERIENCE: two sites, one of which waits for its certificate.
    #[test]
    fn a_person_finds_everything_on_one_page() {
        let status = json!({
            "version": "0.1.0", "uptime_seconds": 1_040_000, "generation": 8, "connections": 412, "tunnels": 1097,
            "requests_per_minute": 1204, "phase": "serving",
            "sites": [
                {
                    "site": "claw.example.com", "upstreams": ["127.0.0.1:18789"], "is_up": true, "is_known": true,
                    "certificate": {
                        "source": "acme", "seconds_left": 61 * 86_400 + 7, "standing": "own",
                        "next_renewal": "2026-02-11T00:00:00Z",
                    },
                    "requests_per_minute": 1180,
                    "last_5_minutes": { "status": { "4xx": 2, "5xx": 0 }, "upstream_p99_ms": 38.2 },
                },
                {
                    "site": "api.example.com", "upstreams": ["api", "other"], "is_up": false, "is_known": true,
                    "error": "127.0.0.1:9: connection refused\u{1b}[31m",
                    "certificate": {
                        "source": "acme", "seconds_left": 86_400, "standing": "stand-in",
                        "problem": "http-01 refused (port 80 closed?)", "next_attempt": "2026-01-01T13:20:00Z",
                    },
                    "requests_per_minute": 24, "last_5_minutes": { "status": { "4xx": 0, "5xx": 1200 } },
                },
            ],
            "limits": [{ "limit": "handshakes", "last_5_minutes": 3 }, { "limit": "other", "last_5_minutes": 0 }],
            "refusals": [{ "code": "E404-route", "last_5_minutes": 1 }, { "code": "E421-host", "last_5_minutes": 1500 }],
            "log": { "dropped_records": 0 },
            "tls": { "last_5_minutes": { "p95_ms": 41.0 } },
            "reloads": [{ "at": "2026-01-01T09:12:03Z", "is_fine": true, "report": "" }],
            "open_tunnels": [{
                "client": "198.51.100.7", "site": "claw.example.com", "age_seconds": 86_211, "bytes_in": 812_331,
                "bytes_out": 40_211_922_u64, "generation": 5,
            }],
            "problems": ["upstream api: 127.0.0.1:9: connection refused"],
        });
        let expected = "\
tidegate 0.1.0   up 12 d   generation 8   412 connections   1,097 tunnels   1,204 req/min
site              certificate           upstream         health  req/min  4xx    5xx    p99
claw.example.com  61 d  (renews 02-11)  127.0.0.1:18789  ok        1,180    2      0  38 ms
api.example.com   local, pending        api +1           DOWN         24    0  1,200      -
    certificate: http-01 refused (port 80 closed?), next try 13:20
    upstream: 127.0.0.1:9: connection refused\\u{1b}[31m
limits  handshakes 3 refused in 5 min     drops none     handshakes p95 41 ms     last reload ok 09:12
refused in 5 min  E421-host 1,500, E404-route 1
tunnels (oldest first)
  198.51.100.7  claw.example.com  23 h  793 KiB in  38 MiB out  gen 5
warn  upstream api: 127.0.0.1:9: connection refused
";
        assert_eq!(page(&status), expected);
    }

    #[test]
    fn an_answer_without_everything_is_shown_all_the_same() {
        assert!(page(&json!({})).starts_with("tidegate "));
    }
}
