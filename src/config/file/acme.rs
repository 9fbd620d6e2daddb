//! What may be written in `[acme]`, and the doc of every key.
//!
//! Part of `config/file.rs`, apart from it because a certificate from a CA has many keys that most
//! files never need. What the values mean is judged in `config/compile/acme.rs`.

use toml::de::DeValue;

use crate::config::kinds::Token;
use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, choice, mirror};
use crate::config::read::{At, Layer, Node, Reader, read_table};
use crate::config::report::Span;
use crate::config::values::{List, Timeout};

mirror! {
    /// `[acme]`.
    Acme, "[acme]" {
        /// The CA that certificates are ordered from (RFC 8555): `letsencrypt`,
        /// `letsencrypt-staging` (for trials: no browser trusts it), `zerossl` (needs `eab`), or
        /// the URL of a directory: `https`, or `http` on a loopback host. Default `letsencrypt`:
        /// free, without registration, and known to every browser.
        directory: String = default("\"letsencrypt\"");
        /// PEM file with further authorities that are accepted for the directory's own TLS, beside
        /// the system's. For a CA of your own. It says nothing about the certificates ordered.
        root: String = example("\"ca.pem\"");
        /// The account at the CA that ours is bound to, for CAs that want one (RFC 8555 7.3.4).
        eab: Eab = example("{ kid = \"kid-1\", hmac = { file = \"/etc/tidegate/eab.key\" } }");
        /// CAs that stand in, in this order, when the one before cannot be reached or refuses: as
        /// `directory`, or `{ directory = "…", eab = { … }, root = "…" }`. Default: none, because
        /// another CA means another account, and names with a CAA record may forbid it.
        fallback: List<Fallback> = default("[]");
        /// How control of a name is proved where no rule of `dns` has the name, best first:
        /// `tls-alpn-01` (RFC 8737; the CA connects to port 443) and `http-01` (RFC 8555 8.3; to
        /// port 80). Default: both, 443 first: it is open wherever the site itself works.
        challenges: List<Challenge> = default("[\"tls-alpn-01\", \"http-01\"]");
        /// The kind of certificate: `auto` (`shortlived` for IP addresses, for which public CAs
        /// issue no other; else the CA's default), `default` (the CA's default), or a name that
        /// the CA's directory lists. Default `auto`.
        profile: String = default("\"auto\"");
        /// DNS resolvers that are asked before an order whether it can work: addresses, with port
        /// 53 unless they say another. Default: the system's. Where the system's give inside
        /// answers (split horizon), name one that sees what the CA sees.
        resolvers: List<String> = example("[\"192.0.2.53\", \"[2001:db8::53]:53\"]");
        /// What handshakes get until the first certificate is there: `local`, a certificate of the
        /// local authority, or `refuse`, an alert. Default `local`: whoever trusts the local
        /// authority is served from the first moment, and nobody else is worse off.
        pending: Pending = default("\"local\"");
        /// How long before its end a certificate in use is reported. Default `14d`, our choice: two
        /// weeks to act. Never more than a third of the lifetime, so that no healthy one is reported.
        alert_before: Timeout = default("\"14d\"");
        /// A program that is told of events (issued, failed, expiring, expired): one JSON object
        /// on its standard input. Default: none; the log has the same.
        on_event: OnEvent = example("{ exec = [\"/usr/local/bin/notify\", \"edge\"] }");
        /// DNS providers, by zone: names at or below a zone are proved by a TXT record (DNS-01, RFC
        /// 8555 8.4), in place of `challenges`. The only way for wildcards, and for names that the CA
        /// cannot reach. The rule with the longest zone has the name. Each rule is a table with
        /// `zones`, `provider` and the keys of that provider.
        dns: List<Dns> = default("[]");
    }
}

mirror! {
    /// `eab`.
    Eab, "\"eab\"" {
        /// The key identifier that the CA gave.
        kid: String = required("\"kid-1\"");
        /// The MAC key that the CA gave, in base64url, by reference. Danger: whoever has it opens
        /// accounts in your name.
        hmac: Token = required("{ file = \"/etc/tidegate/eab.key\" }");
    }
}

mirror! {
    /// One of `fallback`, as a table.
    FallbackTable, "a fallback" {
        /// As in `[acme]`.
        directory: String = required("\"https://ca.example.com/acme/directory\"");
        /// As in `[acme]`, for this directory.
        eab: Eab = example("{ kid = \"kid-1\", hmac = { file = \"/etc/tidegate/eab.key\" } }");
        /// As in `[acme]`, for this directory.
        root: String = example("\"ca.pem\"");
    }
}

mirror! {
    /// `on_event`.
    OnEvent, "\"on_event\"" {
        /// The program and its arguments. Without a slash it is looked for on `PATH`.
        exec: List<String> = required("[\"/usr/local/bin/notify\"]");
    }
}

mirror! {
    /// One of `dns`.
    Dns, "a rule of \"dns\"" {
        /// The zones, without `*.`: `example.com` has `example.com` and every name below it.
        zones: List<String> = required("[\"example.com\"]");
        /// How a record gets there: `exec` (a program of yours), `rfc2136` (dynamic updates with a
        /// TSIG key), `acme-dns` (a CNAME points to such a server), `cloudflare` (its API), `persist`
        /// (dns-persist-01: a record that you put there once).
        provider: Provider = required("\"rfc2136\"");
        /// `exec`: the program and its first arguments. It is called with `present FQDN VALUE` and
        /// `cleanup FQDN VALUE` behind them, must add and remove by value, and has 60 s.
        exec: List<String> = example("[\"/usr/local/bin/dns-hook\"]");
        /// `rfc2136`: the address of the primary server, with port 53 unless it says another.
        server: String = example("\"192.0.2.1:53\"");
        /// `rfc2136`: the key that signs updates (TSIG, RFC 8945). Danger: let it write the names
        /// `_acme-challenge` only.
        key: TsigKey = example("{ name = \"tidegate\", algorithm = \"hmac-sha256\", secret = { file = \"/etc/tidegate/tsig.key\" } }");
        /// `acme-dns`: the server's URL. `cloudflare`: the API's, if it is not the usual one
        /// (`https://api.cloudflare.com/client/v4`). `https`, or `http` on a loopback host.
        url: String = example("\"https://acme-dns.example.com\"");
        /// `acme-dns`: the account's user, as the server gave it.
        username: String = example("\"c36f50e8-4632-44f0-83fe-e070fef28a10\"");
        /// `acme-dns`: the account's password, by reference.
        password: Token = example("{ file = \"/etc/tidegate/acme-dns.key\" }");
        /// `acme-dns`: the account's subdomain.
        subdomain: String = example("\"8e5700ea-a4bf-41c7-8a77-e990661dcc6a\"");
        /// `cloudflare`: an API token that may read zones and edit DNS, by reference. Danger: give it
        /// these zones only.
        token: Token = example("{ file = \"/etc/tidegate/cloudflare.key\" }");
        /// Servers that are asked whether the record is there, before the CA is asked: addresses, with
        /// port 53 unless they say another. Default: those that the zone itself names.
        servers: List<String> = example("[\"192.0.2.1\"]");
        /// How long the record may take to be on all of them. Default `2m`, our choice: slow
        /// secondaries need a minute.
        propagation: Timeout = default("\"2m\"");
    }
}

mirror! {
    /// `key` of `rfc2136`.
    TsigKey, "\"key\"" {
        /// The name of the key, as the server knows it.
        name: String = required("\"tidegate\"");
        /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`. Default `hmac-sha256`: what servers make.
        algorithm: Algorithm = default("\"hmac-sha256\"");
        /// The key itself, in base64, by reference.
        secret: Token = required("{ file = \"/etc/tidegate/tsig.key\" }");
    }
}

choice! {
    /// One of `challenges`.
    Challenge { "tls-alpn-01" => TlsAlpn01, "http-01" => Http01, }
}

choice! {
    /// `pending`.
    Pending { "local" => Local, "refuse" => Refuse, }
}

choice! {
    /// `provider`.
    Provider {
        "exec" => Exec,
        "rfc2136" => Rfc2136,
        "acme-dns" => AcmeDns,
        "cloudflare" => Cloudflare,
        "persist" => Persist,
    }
}

choice! {
    /// `algorithm` of a TSIG key.
    Algorithm { "hmac-sha256" => Sha256, "hmac-sha384" => Sha384, "hmac-sha512" => Sha512, }
}

/// One of `fallback`.
#[derive(Clone, Debug)]
pub(crate) enum Fallback {
    /// A word or a URL.
    Text(String),
    /// With an account or authorities of its own.
    Table(Box<FallbackTable>),
}

impl Value for Fallback {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::String(_) => String::read(node, reader).map(Self::Text),
            DeValue::Table(_) => read_table(node, reader).map(|table| Self::Table(Box::new(table))),
            _ => reader.wrong_kind(node, "a text or a table", "\"letsencrypt-staging\", or { directory = \"…\" }"),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Text, FallbackTable::shape()])
    }
}
