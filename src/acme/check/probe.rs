//! Does this process answer at an address? Puts a proof of its own up and asks for it there, as a CA would.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::addr::HostName;
use crate::site::acme::reverse_name;
use crate::tls::proofs::{ACME_TLS, ProofBoard, WELL_KNOWN};
use crate::tls::provider;

/// What came from port 80.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The proof.
    Ours,
    /// A well-formed answer of somebody else.
    Foreign {
        /// Its status and who says so, in words.
        what: String,
    },
    /// An answer that may lead to us, or may come from something before us.
    Unclear {
        /// In words.
        what: String,
    },
    /// No HTTP.
    Silent {
        /// In words.
        why: String,
    },
}

/// What came from port 443.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenTls {
    /// The proof.
    Ours,
    /// Nobody listens there, or somebody who does not have the proof.
    NotOurs,
    /// Nothing in time.
    Silent,
}

/// For one address. Our choice: slower than any honest answer, a third of what all checks may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// What is read of an answer: any head, and a proof has some hundred bytes.
const LARGEST: usize = 8 << 10;

/// Asks for an HTTP-01 proof (RFC 8555 8.3) at an address.
pub async fn http(board: &Arc<ProofBoard>, name: &HostName, address: SocketAddr) -> Seen {
    let (Some(token), Some(answer)) = (random(), random()) else {
        return Seen::Silent { why: "this system has no random numbers".into() };
    };
    let posted = board.post_http(name.clone(), &token, answer.clone());
    let mut read = Vec::new();
    let outcome = timeout(DEADLINE, fetch(name, &token, address, &answer, &mut read)).await;
    drop(posted);
    let why = match outcome {
        Ok(Ok(())) => "the connection was closed before an answer".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
    };
    judge(&read, &answer, why)
}

async fn fetch(
    name: &HostName,
    token: &str,
    address: SocketAddr,
    answer: &str,
    read: &mut Vec<u8>,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let host = match name.ip() {
        Some(IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(IpAddr::V4(_)) | None => name.to_string(),
    };
    let head = format!(
        "GET {WELL_KNOWN}{token} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut room = [0; 1024];
    while read.len() < LARGEST && memchr::memmem::find(read, answer.as_bytes()).is_none() {
        match stream.read(&mut room).await? {
            0 => break,
            length => read.extend_from_slice(&room[..length]),
        }
    }
    Ok(())
}

/// What the bytes mean that came; `why` there are no more.
fn judge(read: &[u8], answer: &str, why: String) -> Seen {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(read) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Seen::Silent { why },
        Err(_) => return Seen::Unclear { what: "answers, but does not speak HTTP".into() },
    };
    let status = head.code.unwrap_or_default();
    if status == 200 && memchr::memmem::find(&read[length..], answer.as_bytes()).is_some() {
        return Seen::Ours;
    }
    let field = |name: &str| {
        let field = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        // Whatever a stranger writes there must not fill the log or end the line.
        field.map(|header| String::from_utf8_lossy(header.value).chars().take(100).collect::<String>())
    };
    let server = field("server").map_or_else(String::new, |server| format!(", Server: {}", server.escape_debug()));
    match status {
        300..400 => {
            let place = field("location").unwrap_or_default();
            Seen::Unclear { what: format!("answers, but redirects to {place:?} (status {status}{server})") }
        }
        // A proxy before us that has no connection to us, or not yet.
        500.. => Seen::Unclear { what: format!("answers, but with a fault (status {status}{server})") },
        _ => Seen::Foreign { what: format!("answers, but not this tidegate (status {status}{server})") },
    }
}

/// Asks for a TLS-ALPN-01 proof (RFC 8737 3) at an address.
pub async fn tls(board: &Arc<ProofBoard>, name: &HostName, address: SocketAddr) -> SeenTls {
    // RFC 8738 6: an address is asked for by its reverse name.
    let sni = name.ip().map_or_else(|| name.to_string(), reverse_name);
    let Some((key, connector)) = proof(&sni) else { return SeenTls::Silent };
    let Ok(server) = ServerName::try_from(sni.clone()) else { return SeenTls::Silent };
    let posted = board.post_tls(&sni, Arc::new(key));
    let handshake = async {
        let stream = TcpStream::connect(address).await?;
        connector.connect(server, stream).await
    };
    let outcome = timeout(DEADLINE, handshake).await;
    drop(posted);
    match outcome {
        Ok(Ok(_)) => SeenTls::Ours,
        // Refused, no such name there, another certificate: all the same to a CA.
        Ok(Err(_)) => SeenTls::NotOurs,
        Err(_) => SeenTls::Silent,
    }
}

/// A certificate that nobody else has, and a client that takes no other.
fn proof(sni: &str) -> Option<(CertifiedKey, TlsConnector)> {
    let key = KeyPair::generate().ok()?;
    let certificate = CertificateParams::new([sni.to_owned()]).ok()?.self_signed(&key).ok()?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).ok()?;
    let signer = provider().key_provider.load_private_key(private).ok()?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).ok()?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Some((CertifiedKey::new(vec![certificate.der().clone()], signer), TlsConnector::from(Arc::new(config))))
}

/// 128 bits that nobody can guess, as a token (RFC 8555 8.3).
fn random() -> Option<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_ours_foreign_or_unclear() {
        let foreign = |what: &str| Seen::Foreign { what: what.to_owned() };
        let unclear = |what: &str| Seen::Unclear { what: what.to_owned() };
        let silent = Seen::Silent { why: "why".into() };
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproof", Seen::Ours),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nproof\r\n0\r\n\r\n", Seen::Ours),
            ("HTTP/1.1 404 Not Found\r\nserver: nginx\r\n\r\n", {
                foreign("answers, but not this tidegate (status 404, Server: nginx)")
            }),
            ("HTTP/1.1 200 OK\r\n\r\nhello", foreign("answers, but not this tidegate (status 200)")),
            // In an error that repeats the request it proves nothing.
            ("HTTP/1.1 404 Not Found\r\n\r\nproof", foreign("answers, but not this tidegate (status 404)")),
            ("HTTP/1.1 200 OK\r\nx: proof\r\n\r\n", foreign("answers, but not this tidegate (status 200)")),
            ("HTTP/1.0 301 Moved\r\nlocation: https://a.example.com/\r\n\r\n", {
                unclear("answers, but redirects to \"https://a.example.com/\" (status 301)")
            }),
            ("HTTP/1.1 502 Bad Gateway\r\nserver: x\x1b\r\n\r\n", unclear("answers, but does not speak HTTP")),
            ("HTTP/1.1 502 Bad Gateway\r\nserver: x\r\n\r\n", {
                unclear("answers, but with a fault (status 502, Server: x)")
            }),
            ("SSH-2.0-x\r\n", unclear("answers, but does not speak HTTP")),
            ("", silent.clone()),
            ("HTTP/1.1 200 OK\r\nx: y", silent),
        ] {
            assert_eq!(judge(bytes.as_bytes(), "proof", "why".into()), expected, "{bytes:?}");
        }
    }
}
