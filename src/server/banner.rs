//! What a person sees when the edge has started on a terminal: where it listens, for whom, with what.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::{counted, diff};
use crate::addr::ListenAddr;
use crate::config::Input;
use crate::site::policy::CertificateSource;
use crate::site::{Site, SiteTable};

/// The whole banner.
pub(super) fn text(source: &Input, table: &SiteTable, took: Duration) -> String {
    let from = match source {
        Input::File(path) => path.display().to_string(),
        Input::Flags { .. } => "no file".into(),
    };
    let mut text =
        format!("tidegate {}  {from}  {}\n", env!("CARGO_PKG_VERSION"), counted(table.sites().len(), "site"));
    let rows: Vec<Row> = table.sites().iter().take(SHOWN).flat_map(|site| site_rows(site, table)).collect();
    let rows: Vec<Row> = rows.into_iter().chain(redirects(table)).collect();
    // The last cell of a row may be as long as it likes.
    let cells = |column| rows.iter().filter(move |row| column + 1 < row.len()).map(move |row: &Row| &row[column]);
    let widths: Vec<usize> = (0..4).map(|n| cells(n).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    // A String takes everything: no write below can fail.
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths).filter(|(cell, width)| **width > 0 || !cell.is_empty()) {
            let _ = write!(line, "  {cell:<width$} ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if table.sites().len() > SHOWN {
        let _ = writeln!(text, "  and {} more: `tidegate show` lists them", table.sites().len() - SHOWN);
    }
    if table.sites().iter().any(|site| is_local_ca(site)) {
        text.push_str("  note: your browser does not know the local CA yet: run `tidegate trust` once\n");
    }
    let _ = writeln!(text, "ready in {} ms", took.as_millis());
    text
}

/// A longer list than this is read with `show`, not at every start.
const SHOWN: usize = 10;

/// Where; the preset; where to; the certificate. Or where, and what happens there.
type Row = Vec<String>;

/// One row for each way to reach a site.
fn site_rows(site: &Site, table: &SiteTable) -> Vec<Row> {
    let listener = table.listener(site.listener);
    let (scheme, addresses) = if site.tls.is_some() { ("https", &listener.https) } else { ("http", &listener.http) };
    let to = site.routes.iter().last().map(|route| format!("-> {}", diff::destination(&route.action)));
    let certificate = site.tls.as_ref().map(|tls| match &tls.certificate {
        CertificateSource::Acme => {
            let first = table.edge.acme.directories.first();
            format!("certificate: {}", first.map_or("acme", |directory| &directory.name))
        }
        CertificateSource::Local => "certificate: local CA".to_owned(),
        CertificateSource::Files { cert, .. } => format!("certificate: {}", cert.display()),
    });
    let preset = site.preset.map(|preset| format!("preset {preset}"));
    let row = |place| {
        let facts = [&preset, &to, &certificate].map(|fact| fact.clone().unwrap_or_default());
        [url(scheme, &site.label, place)].into_iter().chain(facts).collect()
    };
    places(addresses).into_iter().map(row).collect()
}

/// One row for each cleartext port of the default listener.
fn redirects(table: &SiteTable) -> Vec<Row> {
    let Some(listener) = table.edge.listeners.first() else { return Vec::new() };
    let host = table.sites().iter().find(|site| site.tls.is_some()).map(|site| site.label.clone());
    let Some(host) = host else { return Vec::new() };
    let row = |place| vec![url("http", &host, place), "redirects to https".into()];
    places(&listener.http).into_iter().map(row).collect()
}

/// Where one can connect: IPv4 and IPv6 of one port are one place.
fn places(addresses: &[ListenAddr]) -> BTreeSet<Place<'_>> {
    addresses.iter().map(Place::of).collect()
}

/// A port, or a unix socket.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place<'a> {
    Port(u16),
    Other(&'a ListenAddr),
}

impl<'a> Place<'a> {
    /// The place of an address.
    fn of(address: &'a ListenAddr) -> Self {
        match address {
            ListenAddr::Tcp(tcp) => Self::Port(tcp.port()),
            ListenAddr::Unix(_) | ListenAddr::Systemd(_) => Self::Other(address),
        }
    }
}

/// A URL to click, or a name and a socket.
fn url(scheme: &str, host: &str, place: Place<'_>) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match place {
        Place::Port(443) if scheme == "https" => format!("https://{host}"),
        Place::Port(80) if scheme == "http" => format!("http://{host}"),
        Place::Port(port) => format!("{scheme}://{host}:{port}"),
        Place::Other(address) => format!("{host} on {address}"),
    }
}

/// True when the site's certificate is issued here.
fn is_local_ca(site: &Site) -> bool {
    site.tls.as_ref().is_some_and(|tls| tls.certificate == CertificateSource::Local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::table;

    #[test]
    fn the_first_minute_shows_where_to_click() {
        let table = table(&["127.0.0.1:8080"], &["127.0.0.1:8443", "[::1]:8443"]);
        let source = Input::File("config/local.toml".into());
        let expected = format!(
            "tidegate {}  config/local.toml  1 site\n\
             \x20 https://localhost:8443   preset openclaw   -> 127.0.0.1:18789   certificate: local CA\n\
             \x20 http://localhost:8080    redirects to https\n\
             \x20 note: your browser does not know the local CA yet: run `tidegate trust` once\n\
             ready in 41 ms\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text(&source, &table, Duration::from_millis(41)), expected);
    }

    #[test]
    fn a_certificate_from_a_ca_needs_no_note() {
        let mut site = crate::server::tests::site("claw.example.com");
        if let Some(tls) = &mut site.tls {
            tls.certificate = CertificateSource::Acme;
        }
        let table = crate::server::tests::table_of(vec![site]);
        let text = text(&Input::File("t.toml".into()), &table, Duration::ZERO);
        assert!(text.contains("https://claw.example.com ") && text.contains("certificate: letsencrypt\n"), "{text}");
        assert!(!text.contains("local CA"), "{text}");
    }

    #[test]
    fn a_url_leaves_out_the_usual_port() {
        assert_eq!(url("https", "a.test", Place::Port(443)), "https://a.test");
        assert_eq!(url("http", "::1", Place::Port(8080)), "http://[::1]:8080");
    }
}
