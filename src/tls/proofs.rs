//! The proofs of control that a CA may ask for now: HTTP-01 answers and TLS-ALPN-01 certificates.
//!
//! Orders put them here, requests and handshakes read them without a lock. A proof is taken down when
//! its `Posted` is dropped, so that none outlives its order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rustls::sign::CertifiedKey;

use crate::addr::HostName;

/// All proofs. Lives as long as the process.
#[derive(Debug, Default)]
pub struct ProofBoard {
    current: ArcSwap<Proofs>,
    writing: Mutex<u64>,
}

/// A proof that is up. Dropping it takes the proof down.
#[derive(Debug)]
#[must_use = "dropping it takes the proof down"]
pub struct Posted {
    board: Arc<ProofBoard>,
    id: u64,
}

/// Where the CA asks for HTTP-01 answers (RFC 8555 8.3).
pub const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
/// The protocol of TLS-ALPN-01 (RFC 8737 6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

#[derive(Clone, Debug, Default)]
struct Proofs {
    /// By token: who chose it cannot be guessed.
    http: HashMap<Box<str>, HttpProof>,
    /// By SNI.
    tls: HashMap<Box<str>, TlsProof>,
}

#[derive(Clone, Debug)]
struct HttpProof {
    id: u64,
    name: HostName,
    answer: Bytes,
}

#[derive(Clone, Debug)]
struct TlsProof {
    id: u64,
    key: Arc<CertifiedKey>,
}

impl ProofBoard {
    /// Puts up the answer to an HTTP-01 request for a name.
    pub fn post_http(self: &Arc<Self>, name: HostName, token: &str, answer: impl Into<Bytes>) -> Posted {
        let answer = answer.into();
        self.post(|proofs, id| {
            proofs.http.insert(token.into(), HttpProof { id, name, answer });
        })
    }

    /// Puts up the certificate for a TLS-ALPN-01 handshake with this SNI.
    pub fn post_tls(self: &Arc<Self>, sni: &str, key: Arc<CertifiedKey>) -> Posted {
        self.post(|proofs, id| {
            proofs.tls.insert(sni.into(), TlsProof { id, key });
        })
    }

    /// The answer to a request, if its path asks for a proof that is up for its (normalised) host.
    pub fn http01(&self, host: &str, path: &str) -> Option<Bytes> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        let proofs = self.current.load();
        proofs.http.get(token).filter(|proof| proof.name.as_str() == host).map(|proof| proof.answer.clone())
    }

    /// The certificate for a TLS-ALPN-01 handshake.
    pub fn tls_alpn01(&self, sni: &str) -> Option<Arc<CertifiedKey>> {
        let proofs = self.current.load();
        proofs.tls.get(&*sni.to_ascii_lowercase()).map(|proof| Arc::clone(&proof.key))
    }

    fn post(self: &Arc<Self>, edit: impl FnOnce(&mut Proofs, u64)) -> Posted {
        let mut last = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let mut next = Proofs::clone(&self.current.load());
        edit(&mut next, *last);
        self.current.store(Arc::new(next));
        Posted { board: Arc::clone(self), id: *last }
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        let _one_writer = self.board.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Proofs::clone(&self.board.current.load());
        // By number, not by token or name: a later proof may stand in its place already.
        next.http.retain(|_, proof| proof.id != self.id);
        next.tls.retain(|_, proof| proof.id != self.id);
        self.board.current.store(Arc::new(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_up_for_its_name_until_it_is_dropped() {
        let board = Arc::new(ProofBoard::default());
        let name = HostName::parse("a.test").expect("a name");
        let path = format!("{WELL_KNOWN}token");
        let posted = board.post_http(name.clone(), "token", "token.thumb");
        assert_eq!(board.http01("a.test", &path).as_deref(), Some(&b"token.thumb"[..]));
        assert_eq!(board.http01("b.test", &path), None, "for another name");
        assert_eq!(board.http01("a.test", "/token"), None, "at another place");
        // A second order of the same name takes over, and the end of the first changes nothing.
        let second = board.post_http(name, "token", "other");
        drop(posted);
        assert_eq!(board.http01("a.test", &path).as_deref(), Some(&b"other"[..]));
        drop(second);
        assert_eq!(board.http01("a.test", &path), None);
    }
}
