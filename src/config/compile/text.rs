//! Small grammars of single values: addresses, networks, paths, header names, templates, origins.
//!
//! Pure functions. Each fault says what is wrong and, where it can be known, the right spelling.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::addr::{HostName, ListenAddr, split_authority};
use crate::site::policy::{Template, TemplatePart};
use crate::site::upstream::EndpointAddr;

use super::super::read::{nearest, quoted};

/// Why a value cannot be used, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: String,
    pub(crate) help: Option<String>,
}

/// A fault without advice.
pub(crate) fn fault(what: impl Into<String>) -> Fault {
    Fault { what: what.into(), help: None }
}

/// A fault with advice.
pub(crate) fn fault_help(what: impl Into<String>, help: impl Into<String>) -> Fault {
    Fault { what: what.into(), help: Some(help.into()) }
}

/// An address to accept on. `socket` is the name of the activated sockets that `systemd` means.
pub(crate) fn listen(text: &str, socket: &str) -> Result<ListenAddr, Fault> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(ListenAddr::Unix);
    }
    if text == "systemd" {
        return Ok(ListenAddr::Systemd(socket.into()));
    }
    if let Some(name) = text.strip_prefix("systemd:") {
        // systemd.socket(5): FileDescriptorName= has no control characters and no colon.
        if name.is_empty() || name.len() > 255 || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return Err(fault_help(
                "a socket's name has printable characters and no colon",
                "write \"systemd:NAME\" with the FileDescriptorName= of the socket unit",
            ));
        }
        return Ok(ListenAddr::Systemd(name.into()));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(ListenAddr::Tcp(address));
    }
    // What others must not reach by default is not advised for all addresses.
    let is_private = matches!(socket, "admin" | "metrics");
    let help = if let Some(port) = port_alone(text).filter(|_| is_private) {
        format!("write \"127.0.0.1:{port}\"")
    } else if let Some(port) = port_alone(text) {
        format!("write \"127.0.0.1:{port}\" for this machine, or \"0.0.0.0:{port}\" and \"[::]:{port}\" for all")
    } else if let Some(port) = text.strip_prefix("localhost:") {
        format!("write \"127.0.0.1:{port}\", and \"[::1]:{port}\" beside it")
    } else if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        format!("write \"{}\"", SocketAddr::new(ip, if socket == "http" { 80 } else { 443 }))
    } else if text.starts_with('/') {
        format!("write \"unix:{text}\"")
    } else {
        "write an IP address and a port, such as \"127.0.0.1:8443\" or \"[::]:443\", or \"unix:/path\"".to_owned()
    };
    Err(fault_help("not an address to listen on", help))
}

/// `443`, `:443`, `*:443`.
fn port_alone(text: &str) -> Option<u16> {
    text.trim_start_matches('*').trim_start_matches(':').parse().ok()
}

/// The path of a unix socket.
fn unix_path(path: &str) -> Result<PathBuf, Fault> {
    if !path.starts_with('/') {
        return Err(fault_help(
            "the path of a unix socket must be absolute",
            format!("write \"unix:/run/{path}\" or wherever it is"),
        ));
    }
    // sun_path holds 108 bytes with its end (unix(7)).
    if path.len() > 107 || path.contains('\0') {
        return Err(fault("the path of a unix socket has at most 107 bytes"));
    }
    Ok(PathBuf::from(path))
}

/// What an upstream text means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The name of one of `[upstreams]`.
    Name(String),
    /// A server.
    Server {
        address: EndpointAddr,
        /// The scheme, if one was written: true for TLS.
        tls: Option<bool>,
        /// The name for the certificate: the host as it was written.
        name: Option<Arc<str>>,
    },
}

/// Reads an upstream or one of its servers.
pub(crate) fn upstream(text: &str) -> Result<Target, Fault> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Target::Server { address: EndpointAddr::Unix(unix_path(path)?), tls: None, name: None });
    }
    let (tls, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("http" | "ws", rest)) => (Some(false), rest),
        Some(("https" | "wss", rest)) => (Some(true), rest),
        Some((scheme, _)) => {
            return Err(fault_help(
                format!("\"{scheme}\" is not a scheme of an upstream"),
                "write http://, https://, or unix:/path",
            ));
        }
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if let Some((before, _)) = authority.split_once(['/', '?', '#']) {
        let scheme = text.find("://").map_or("", |at| &text[..at + 3]);
        return Err(fault_help(
            "an upstream is a server, without a path",
            format!("write \"{scheme}{before}\"; paths pass unchanged, and \"strip\" with \"mount\" changes a prefix"),
        ));
    }
    if authority.contains('@') {
        return Err(fault_help(
            "an upstream has no user name or password",
            "send credentials with headers.request.set and { file = \"…\" }",
        ));
    }
    if authority.starts_with('/') {
        return Err(fault_help("not an upstream", format!("write \"unix:{authority}\" for a unix socket")));
    }
    // An IPv6 address without brackets would be cut at its first colon.
    if tls.is_none() && authority.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(fault_help(
            "an IPv6 address needs brackets and a port",
            format!("write \"[{authority}]:18789\" with its port"),
        ));
    }
    let bad = |error: crate::addr::HostError| {
        fault_help(
            error.to_string(),
            "write \"127.0.0.1:18789\", \"http://name:port\", \"https://name\" or \"unix:/path\"",
        )
    };
    let (host, port) = split_authority(authority).map_err(bad)?;
    let name = HostName::from_config(host).map_err(bad)?;
    let port = match (port, tls) {
        (Some(port), _) => port,
        (None, Some(true)) => 443,
        (None, Some(false)) => 80,
        (None, None) if name.ip().is_some() => {
            return Err(fault_help(
                "an address needs its port",
                format!("write \"{host}:18789\" with the upstream's port"),
            ));
        }
        (None, None) => return Ok(Target::Name(text.to_owned())),
    };
    let address = match name.ip() {
        Some(ip) => EndpointAddr::Ip(SocketAddr::new(ip, port)),
        None => EndpointAddr::Name(Arc::from(name.as_str()), port),
    };
    Ok(Target::Server { address, tls, name: Some(Arc::from(name.as_str())) })
}

/// Reads a network: `10.0.0.0/8`, or one address.
pub(crate) fn network(text: &str) -> Result<IpNet, Fault> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(fault_help(
            "not a network",
            "write an address and a prefix length, such as \"10.0.0.0/8\" or \"2001:db8::/32\"",
        ));
    };
    if net.trunc() != net {
        let right = net.trunc();
        return Err(fault_help(
            "the address has bits outside its prefix",
            format!("write \"{right}\", or \"{}\" for the one address", net.addr()),
        ));
    }
    // Peers are compared in canonical form, so a mapped network would never match.
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        return Err(fault_help("an IPv4 network in IPv6 form", format!("write \"{v4}/{}\"", v6.prefix_len() - 96)));
    }
    Ok(net)
}

/// Reads the path of a route: begins with `/`; stored without a final `/`, empty for all paths.
pub(crate) fn prefix(text: &str) -> Result<Box<str>, Fault> {
    let cut = text.find(['?', '#', '*']).unwrap_or(text.len());
    let right = format!("/{}", text[..cut].trim_matches('/'));
    if !text.starts_with('/') {
        return Err(fault_help("a path begins with \"/\"", format!("write \"{right}\"")));
    }
    if cut < text.len() {
        let what = if text[cut..].starts_with('*') {
            "a path is a prefix already, without \"*\""
        } else {
            "a path has no query or fragment"
        };
        return Err(fault_help(what, format!("write \"{right}\"")));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(fault_help(
            "a path has visible ASCII characters only, as it is sent",
            "write other characters percent-encoded, as the client sends them",
        ));
    }
    let plain = text.to_ascii_lowercase();
    let dots = |segment: &str| matches!(segment.replace("%2e", ".").as_str(), "." | "..");
    if plain.contains("%2f")
        || plain.contains("%5c")
        || plain.contains("%00")
        || plain.contains('\\')
        || plain.split('/').any(dots)
    {
        return Err(fault("such a path never matches: requests with encoded separators or dot segments are refused"));
    }
    if text.contains("//") {
        let mut right = text.to_owned();
        while right.contains("//") {
            right = right.replace("//", "/");
        }
        return Err(fault_help("a path has no empty segment", format!("write \"{right}\"")));
    }
    Ok(text.trim_end_matches('/').into())
}

/// Reads a header's name.
pub(crate) fn header_name(text: &str) -> Result<HeaderName, Fault> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        let right = text.trim().trim_end_matches(':').replace([' ', '_'], "-").to_ascii_lowercase();
        match HeaderName::from_bytes(right.as_bytes()) {
            Ok(right) => fault_help("not a header name", format!("write \"{right}\"")),
            Err(_) => fault("not a header name"),
        }
    })
}

/// Reads a header's value without placeholders.
pub(crate) fn header_value(text: &str) -> Result<HeaderValue, Fault> {
    let is_clean = text.trim() == text;
    HeaderValue::from_str(text).ok().filter(|_| is_clean).ok_or_else(|| {
        fault_help(
            "a header value has visible ASCII characters, and no blanks at its ends",
            "encode other characters as the header's own rules say",
        )
    })
}

/// True for a header whose value usually is a secret.
pub(crate) fn is_secret_header(name: &str) -> bool {
    const NAMES: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
    const ENDS: [&str; 6] = ["-token", "-key", "-secret", "-password", "-apikey", "-signature"];
    let name = name.to_ascii_lowercase().replace('_', "-");
    NAMES.contains(&name.as_str()) || ENDS.iter().any(|end| name.ends_with(end))
}

/// The placeholders of header edits.
pub(crate) const EDIT_WORDS: &[&str] = &["client", "host", "request_id", "tls.version", "tls.cipher"];

/// The placeholders of redirects.
pub(crate) const REDIRECT_WORDS: &[&str] = &["host", "uri"];

/// Reads a value with placeholders. A brace that encloses no word is text, for JSON values.
pub(crate) fn template(text: &str, words: &[&str]) -> Result<Template, Fault> {
    header_value(text)?;
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        literal.push_str(before);
        let word = after[1..].split_once('}').map(|(word, _)| word);
        let Some(word) =
            word.filter(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'.')))
        else {
            literal.push('{');
            rest = &after[1..];
            continue;
        };
        let part = match word {
            _ if !words.contains(&word) => {
                let what = format!("\"{{{word}}}\" is not a placeholder here");
                let help = nearest(word, words.iter().copied()).map_or_else(
                    || {
                        format!(
                            "the placeholders are {}",
                            quoted(
                                words.iter().map(|w| format!("{{{w}}}")).collect::<Vec<_>>().iter().map(String::as_str)
                            )
                        )
                    },
                    |near| format!("did you mean \"{{{near}}}\"?"),
                );
                return Err(fault_help(what, help));
            }
            "client" => TemplatePart::Client,
            "host" => TemplatePart::Host,
            "request_id" => TemplatePart::RequestId,
            "tls.version" => TemplatePart::TlsVersion,
            "tls.cipher" => TemplatePart::TlsCipher,
            _ => TemplatePart::Uri,
        };
        if !literal.is_empty() {
            parts.push(TemplatePart::Text(std::mem::take(&mut literal).into()));
        }
        parts.push(part);
        rest = &after[word.len() + 2..];
    }
    literal.push_str(rest);
    if parts.is_empty() {
        return header_value(text).map(Template::Literal);
    }
    if !literal.is_empty() {
        parts.push(TemplatePart::Text(literal.into()));
    }
    Ok(Template::Parts(parts))
}

/// Reads an origin (RFC 6454 6.2) in the form in which browsers send it.
pub(crate) fn origin(text: &str) -> Result<Box<str>, Fault> {
    let Some((scheme, rest)) = text.split_once("://") else {
        let host = text.split(['/', '?', '#']).next().unwrap_or(text).to_ascii_lowercase();
        return Err(match split_authority(&host).map(|(name, _)| HostName::from_config(name)) {
            Ok(Ok(_)) => fault_help("an origin has a scheme", format!("write \"https://{host}\"")),
            _ => fault_help("not an origin", "write \"https://name\" or \"https://name:port\""),
        });
    };
    let scheme = scheme.to_ascii_lowercase();
    let good_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.'));
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    let parsed = split_authority(authority).and_then(|(host, port)| Ok((HostName::from_config(host)?, port)));
    let (Ok((name, port)), true) = (parsed, good_scheme) else {
        return Err(fault_help("not an origin", "write \"https://name\" or \"https://name:port\""));
    };
    // Browsers leave a scheme's own port out, so an entry with it would never match.
    let usual = matches!((scheme.as_str(), port), ("https" | "wss", Some(443)) | ("http" | "ws", Some(80)));
    let host = match name.ip() {
        Some(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => name.to_string(),
    };
    let right = match port {
        Some(port) if !usual => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    };
    if path.is_empty() && !usual {
        return Ok(right.into());
    }
    let what = match path {
        "" => "browsers leave the usual port out of an origin",
        "/" => "an origin has no final slash: this would never match",
        _ => "an origin has no path: this would never match",
    };
    Err(fault_help(what, format!("write \"{right}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_server_or_a_name() {
        let server = |text: &str| match upstream(text) {
            Ok(Target::Server { address, tls, .. }) => format!("{address} {tls:?}"),
            Ok(Target::Name(name)) => format!("name {name}"),
            Err(fault) => format!("error {}", fault.what),
        };
        for (text, expected) in [
            ("127.0.0.1:18789", "127.0.0.1:18789 None"),
            ("[::1]:18789", "[::1]:18789 None"),
            ("http://gateway:3000/", "gateway:3000 Some(false)"),
            ("ws://gateway", "gateway:80 Some(false)"),
            ("wss://gateway", "gateway:443 Some(true)"),
            ("https://gateway.example.com:8443", "gateway.example.com:8443 Some(true)"),
            ("unix:/run/x.sock", "unix:/run/x.sock None"),
            ("unix:x.sock", "error the path of a unix socket must be absolute"),
            ("gateway", "name gateway"),
            ("127.0.0.1", "error an address needs its port"),
            ("::1", "error an IPv6 address needs brackets and a port"),
            ("http://a/b", "error an upstream is a server, without a path"),
            ("http://u:p@a", "error an upstream has no user name or password"),
            ("ftp://a", "error \"ftp\" is not a scheme of an upstream"),
            ("a:70000", "error the port is not a number from 1 to 65535"),
            ("http://", "error the host name is empty"),
        ] {
            assert_eq!(server(text), expected, "{text}");
        }
    }

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for (text, expected) in [
            ("https://App.example.com", Ok("https://app.example.com")),
            ("https://app.example.com:8443", Ok("https://app.example.com:8443")),
            ("http://[::1]:8080", Ok("http://[::1]:8080")),
            ("capacitor://localhost", Ok("capacitor://localhost")),
            ("https://app.example.com/", Err(Some("write \"https://app.example.com\""))),
            ("https://app.example.com:443", Err(Some("write \"https://app.example.com\""))),
            ("https://app.example.com/chat", Err(Some("write \"https://app.example.com\""))),
            ("app.example.com", Err(Some("write \"https://app.example.com\""))),
            ("https://", Err(Some("write \"https://name\" or \"https://name:port\""))),
            ("*", Err(Some("write \"https://name\" or \"https://name:port\""))),
        ] {
            let found = origin(text);
            let found = found.as_ref().map(|o| &**o).map_err(|f| f.help.as_deref());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_template_knows_its_words_and_leaves_json_alone() {
        assert_eq!(
            template("https://{host}{uri}", REDIRECT_WORDS),
            Ok(Template::Parts(vec![TemplatePart::Text("https://".into()), TemplatePart::Host, TemplatePart::Uri]))
        );
        assert!(matches!(template("{\"group\":\"x\"}", EDIT_WORDS), Ok(Template::Literal(_))));
        assert_eq!(
            template("{clint}", EDIT_WORDS).err().and_then(|f| f.help),
            Some("did you mean \"{client}\"?".to_owned())
        );
        assert!(template("{uri}", EDIT_WORDS).is_err());
        assert!(template("a\r\nb", EDIT_WORDS).is_err());
        assert!(template(" a", EDIT_WORDS).is_err());
    }

    #[test]
    fn a_path_prefix_is_whole_segments() {
        for (text, expected) in [("/", ""), ("/api", "/api"), ("/api/", "/api"), ("/a%20b", "/a%20b")] {
            assert_eq!(prefix(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["api", "/a/*", "/a?b", "/a//b", "/a/../b", "/%2e%2E", "/a%2Fb", "/é"] {
            assert!(prefix(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_has_no_stray_bits() {
        assert_eq!(network("10.0.0.0/8").map(|n| n.to_string()), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(network("10.0.0.1").map(|n| n.to_string()), Ok("10.0.0.1/32".to_owned()));
        for text in ["10.0.0.1/8", "10.0.0.0/33", "::ffff:10.0.0.0/104", "private", ""] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
