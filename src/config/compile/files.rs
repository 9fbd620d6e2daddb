//! Files that a configuration names: certificates, keys, secrets, pages.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Compiler;
use super::text;
use crate::config::disk;
use crate::config::file;
use crate::config::kinds::{CertificateFiles, Secret};
use crate::config::read::At;
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::values::Map;
use crate::site::crl::{self, Crl, Doubt};
use crate::site::policy::{CertificateSource, ClientCert, ErrorPage};

impl Compiler<'_> {
    /// Reads a file that must be there.
    fn must_read(&mut self, at: &At<String>, place: &str) -> Option<(PathBuf, Vec<u8>)> {
        let path = disk::resolve(&at.span, &at.value);
        match disk::read(&path) {
            Ok(bytes) => Some((path, bytes)),
            Err(why) => {
                self.cannot_read(&at.span, &path, place, &why);
                None
            }
        }
    }

    /// Reports a file that cannot be read.
    pub(super) fn cannot_read(&mut self, span: &Span, path: &std::path::Path, place: &str, why: &str) {
        let message = format!("cannot read the file in {place}: {why}");
        let mut diagnostic = Diagnostic::at(Code::File, span, message);
        // The text may be relative; say what it was taken for.
        if std::path::Path::new(span.text().trim_matches(['"', '\''])) != path {
            diagnostic = diagnostic.label("relative to this file");
        }
        let help = match why {
            "permission denied" => "let the user that runs tidegate read it",
            _ => "create it, or correct the path",
        };
        self.push(diagnostic.help(help));
    }

    /// The certificates (DER) in a PEM file.
    pub(super) fn certificates(&mut self, at: &At<String>, place: &str) -> Option<Vec<Vec<u8>>> {
        let (_, bytes) = self.must_read(at, place)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match found {
            Ok(found) if !found.is_empty() => Some(found.into_iter().map(|der| der.to_vec()).collect()),
            _ => {
                let message = format!("\"{}\" in {place} holds no certificate", at.value);
                self.push(
                    Diagnostic::at(Code::Content, &at.span, message).help("name a PEM file with \"BEGIN CERTIFICATE\""),
                );
                None
            }
        }
    }

    /// The file that a secret names, if it names one.
    fn secret_file(&mut self, at: &At<Secret>, place: &str) -> Option<(Span, PathBuf)> {
        if let Some(file) = &at.value.file {
            return Some((file.span.clone(), disk::resolve(&file.span, &file.value)));
        }
        let credential = at.value.credential.as_ref()?;
        if credential.value.contains('/') || credential.value == ".." {
            let message = format!("\"{}\" in {place} is not the name of a credential", credential.value);
            self.push(
                Diagnostic::at(Code::Secret, &credential.span, message)
                    .help("write the name that LoadCredential= gives it"),
            );
            return None;
        }
        let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|value| !value.is_empty()) else {
            let message = format!("no service manager handed over the credential \"{}\" in {place}", credential.value);
            self.push(
                Diagnostic::at(Code::Secret, &credential.span, message)
                    .label("$CREDENTIALS_DIRECTORY is not set")
                    .help("add LoadCredential= to the service, or write { file = \"…\" }"),
            );
            return None;
        };
        Some((credential.span.clone(), PathBuf::from(directory).join(&credential.value)))
    }

    /// The file that a secret must name.
    pub(super) fn secret_path(&mut self, at: &At<Secret>, place: &str) -> Option<(Span, PathBuf)> {
        self.one_source(at, place)?;
        self.secret_file(at, place)
    }

    /// Reports a secret that does not name exactly one source.
    fn one_source(&mut self, at: &At<Secret>, place: &str) -> Option<()> {
        let sources = at.value.sources();
        if sources != 1 && at.value.broken.is_empty() {
            let names = if sources == 0 { "no source" } else { "more than one source" };
            let message = format!("the secret in {place} names {names}");
            let help = "write one of { file = \"…\" }, { env = \"…\" }, { credential = \"…\" }";
            self.push(Diagnostic::at(Code::Conflict, &at.span, message).help(help));
        }
        (sources == 1).then_some(())
    }

    /// Reads a secret, and warns when others can read it too.
    fn secret(&mut self, at: &At<Secret>, place: &str) -> Option<Vec<u8>> {
        self.one_source(at, place)?;
        if let Some(env) = &at.value.env {
            return match std::env::var(&env.value) {
                Ok(value) => Some(value.into_bytes()),
                Err(_) => {
                    let message = format!("the variable \"{}\" in {place} is not set", env.value);
                    self.push(
                        Diagnostic::at(Code::Secret, &env.span, message)
                            .help("set it where tidegate is started, or write { file = \"…\" }"),
                    );
                    None
                }
            };
        }
        let (span, path) = self.secret_file(at, place)?;
        match disk::read(&path) {
            Ok(bytes) => {
                if disk::is_readable_by_others(&path) {
                    let message = format!("every user of this machine can read the secret in {place}");
                    let help = format!("chmod 0600 {}", path.display());
                    self.push(Diagnostic::at(Code::ReadableByOthers, &span, message).help(help));
                }
                Some(bytes)
            }
            Err(why) => {
                self.cannot_read(&span, &path, place, &why);
                None
            }
        }
    }

    /// Reads a private key (PEM).
    pub(super) fn private_key(&mut self, at: &At<Secret>, place: &str) -> Option<Vec<u8>> {
        let bytes = self.secret(at, place)?;
        if PrivateKeyDer::from_pem_slice(&bytes).is_err() {
            let message = format!("the secret in {place} holds no private key");
            self.push(
                Diagnostic::at(Code::Content, &at.span, message).help("name a PEM file with \"BEGIN PRIVATE KEY\""),
            );
            return None;
        }
        Some(bytes)
    }

    /// Reads a secret that is one line of visible ASCII characters; a line end at its end is not part of it.
    pub(super) fn secret_line(&mut self, at: &At<Secret>, place: &str) -> Option<String> {
        let bytes = self.secret(at, place)?;
        let line = String::from_utf8(bytes).ok().map(|text| text.trim_end().to_owned());
        let line = line.filter(|line| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_graphic()));
        if line.is_none() {
            let message = format!("the secret in {place} is not one line of visible characters");
            self.push(Diagnostic::at(Code::Content, &at.span, message).help("put the secret there, and nothing else"));
        }
        line
    }

    /// Reads a secret that becomes a header value; a line end at its end is not part of it.
    pub(super) fn secret_header(&mut self, at: &At<Secret>, place: &str) -> Option<HeaderValue> {
        let bytes = self.secret(at, place)?;
        let parsed = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text::header_value(text.trim_end_matches(['\r', '\n'])).ok());
        match parsed {
            Some(mut value) => {
                value.set_sensitive(true);
                Some(value)
            }
            None => {
                let message = format!("the secret in {place} cannot stand in a header");
                self.push(
                    Diagnostic::at(Code::Content, &at.span, message)
                        .help("it must be one line of visible ASCII characters"),
                );
                None
            }
        }
    }

    /// `certificate` as files. They are watched and loaded by others; here they must be there.
    pub(super) fn certificate_files(&mut self, files: &CertificateFiles, place: &str) -> Option<CertificateSource> {
        let place = format!("\"certificate\" of {place}");
        let (cert, key) = (files.cert.as_ref(), files.key.as_ref());
        let chain =
            cert.and_then(|cert| self.certificates(cert, &place).map(|_| disk::resolve(&cert.span, &cert.value)));
        let key = key.filter(|key| key.value.env.is_none()).and_then(|key| {
            self.private_key(key, &place)?;
            self.secret_file(key, &place).map(|(_, path)| path)
        });
        Some(CertificateSource::Files { cert: chain?, key: key? })
    }

    /// `client_cert`.
    pub(super) fn client_cert(&mut self, at: &At<file::ClientCert>, place: &str) -> Option<ClientCert> {
        let place = format!("\"client_cert\" of {place}");
        let ca = at.value.ca.as_ref()?;
        let header = match &at.value.header {
            Some(name) => Some(self.writable_header(name, &place)?),
            None => None,
        };
        let authorities = self.certificates(ca, &place)?;
        let required = at.value.required.as_ref().is_none_or(|at| at.value);
        let crl = match &at.value.crl {
            Some(crl) => Some(self.revocation_lists(crl, &authorities, &place)?),
            None => None,
        };
        let ca_file = disk::resolve(&ca.span, &ca.value);
        Some(ClientCert { ca_file, ca: Arc::from(authorities), crl, required, header })
    }

    /// `client_cert.crl`, and what is doubtful about it.
    fn revocation_lists(&mut self, at: &At<String>, authorities: &[Vec<u8>], place: &str) -> Option<Crl> {
        let (file, pem) = self.must_read(at, place)?;
        let lists = match crl::parse(&pem) {
            Ok(lists) => lists,
            Err(why) => {
                let message = format!("\"{}\" in {place} cannot be used: {why}", at.value);
                self.push(
                    Diagnostic::at(Code::Content, &at.span, message)
                        .help("name a PEM file with the revocation lists of the authorities in \"ca\""),
                );
                return None;
            }
        };
        for doubt in crl::doubts(&lists, authorities) {
            self.push(match doubt {
                Doubt::Old { issuer, since } => {
                    let message = format!("the list of \"{issuer}\" in {place} should have been replaced by {since}");
                    Diagnostic::at(Code::OldCrl, &at.span, message)
                        .label("it still holds, and knows of nothing newer")
                        .help("fetch a new list")
                }
                Doubt::Missing { authority } => {
                    let message = format!("\"{authority}\" has no revocation list in {place}");
                    Diagnostic::at(Code::NoCrl, &at.span, message)
                        .label("none of its clients is let in")
                        .help("add its list to the file, or remove the authority from \"ca\"")
                }
            });
        }
        Some(Crl { file, lists })
    }

    /// `errors`: reads each page.
    pub(super) fn error_pages(&mut self, map: &Map<String>, place: &str) -> Vec<ErrorPage> {
        let place = format!("\"errors\" of {place}");
        let mut pages = Vec::new();
        for (status, page) in map.entries.iter().filter(|(name, _)| name.value != "why") {
            let code = status
                .value
                .parse::<u16>()
                .ok()
                .filter(|code| (400..600).contains(code))
                .and_then(|code| StatusCode::from_u16(code).ok());
            let Some(code) = code else {
                let message = format!("\"{}\" in {place} is not the status of an error", status.value);
                self.push(
                    Diagnostic::at(Code::Status, &status.span, message)
                        .label("from 400 to 599")
                        .help("write 502 = \"page.html\""),
                );
                continue;
            };
            let content_type =
                match page.value.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).as_deref() {
                    Some("html" | "htm") => HeaderValue::from_static("text/html; charset=utf-8"),
                    Some("json") => HeaderValue::from_static("application/json"),
                    Some("txt") => HeaderValue::from_static("text/plain; charset=utf-8"),
                    _ => {
                        let message = format!("\"{}\" in {place} has no known kind", page.value);
                        self.push(
                            Diagnostic::at(Code::Content, &page.span, message).help("name a .html, .json or .txt file"),
                        );
                        continue;
                    }
                };
            if let Some((_, bytes)) = self.must_read(page, &place) {
                pages.push(ErrorPage { status: code, content_type, body: Bytes::from(bytes) });
            }
        }
        pages
    }
}
