//! What may be written about who asks: `[auth]` and `[hooks]`.

use toml::de::DeValue;

use crate::config::kinds::Secret;
use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, choice, mirror};
use crate::config::read::{At, Layer, Node, Reader, read_table};
use crate::config::report::Span;
use crate::config::values::{List, Timeout};

mirror! {
    /// One of `[auth]`.
    Auth, "a way of [auth]" {
        /// `"basic"`: a name and a password (RFC 7617) of `users`. `"forward"`: the word of another service at `url`,
        /// such as Authelia, Authentik or oauth2-proxy. `"client_cert"`: a client certificate of the handshake, for
        /// sites with `client_cert`, whose `required` may then be `false`.
        r#type: AuthType = required("\"basic\"");
        /// Of `basic`: a file with one `name:hash` a line, as `tidegate hash-password --user NAME` prints them:
        /// argon2id (`$argon2id$`) or bcrypt (`$2b$`, `$2y$`; `htpasswd -B`). `{ credential = "…" }` names one that
        /// the service manager hands over. It is read again when it changes; a broken one changes nothing.
        users: Users = example("\"/etc/tidegate/users\"");
        /// Of `basic`: what a browser calls this place when it asks for the password. Default: `tidegate`.
        realm: String = default("\"tidegate\"");
        /// Of `basic` and `client_cert`: request header that carries the user's name, or the certificate's subject,
        /// upstream. No client's own copy passes, on any site. Default: none.
        header: String = example("\"x-forwarded-user\"");
        /// Of `client_cert`: the subjects that are let in, as records show them. Default: every certificate that the
        /// site's authorities have issued.
        subjects: List<String> = example("[\"CN=alice,O=Example\"]");
        /// Of `forward`: where the service is asked, with a GET that has the client's headers and
        /// `X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri`, `-For` in the edge's words: `http://…`, `https://…`, or
        /// `unix:/path:/path-of-the-url`. 2xx lets the request pass; 401, 403 and redirects go to the client, but to a
        /// WebSocket 401 or 403 alone; anything else, or nothing, keeps it out.
        url: String = example("\"http://127.0.0.1:9091/api/authz/forward-auth\"");
        /// Of `forward`: how long the answer may take. Default `5s`, our choice: a service that needs longer
        /// keeps every request waiting.
        timeout: Timeout = default("\"5s\"");
        /// Of `forward`: headers of the service's answer that go upstream. No client's own copy passes, on any
        /// site, and what the answer lacks is absent. Default: none.
        copy_headers: List<String> = example("[\"Remote-User\", \"Remote-Email\", \"Remote-Groups\"]");
        /// Of `forward`: requests that pass without it: `"bearer"`, with a bearer token; `"client_cert"`, with a
        /// client certificate. Danger: with `"bearer"` any token passes here, and the upstream must judge it.
        skip_if: List<SkipIf> = default("[]");
    }
}

choice! {
    /// `type` of one of `[auth]`.
    AuthType { "basic" => Basic, "forward" => Forward, "client_cert" => ClientCert, }
}

choice! {
    /// One of `skip_if`.
    SkipIf { "bearer" => Bearer, "client_cert" => ClientCert, }
}

mirror! {
    /// One of `[hooks]`.
    Hook, "a hook" {
        /// The service: `http://…`, `https://…`, or `unix:/path:/path-of-the-url`. It gets a POST with a JSON object:
        /// `id`, `method`, `host`, `path` (secrets masked as in records), `client`, `site`, `route`, `auth` and `user`
        /// (who has logged in, and how), `upgrade` and `headers`. It answers 200 with `{ "allow": false, "rule": "…", "id": "…" }`; `rule` and `id` are for the
        /// record. It never gets a body of a request.
        url: String = required("\"http://127.0.0.1:9100/decide\"");
        /// `"monitor"`: what it decides is recorded and never refuses. `"enforce"`: `allow = false` is a 403.
        /// Default `"monitor"`: rules are watched before they keep anybody out.
        mode: HookMode = default("\"monitor\"");
        /// How long the answer may take; in both modes the request waits for it. Default `1s`, our choice: nobody
        /// notices it, and a service that fails does not stop the site.
        timeout: Timeout = default("\"1s\"");
        /// What happens with `mode = "enforce"` when the service gives no decision: `"deny"` answers 503. Default
        /// `"deny"`: what is enforced is not passed by a fault.
        on_error: OnError = default("\"deny\"");
        /// Request headers that it is told. Cookies, credentials and what only the edge may say (forwarding and identity
        /// headers) never are; what records mask is told masked.
        headers: List<String> = example("[\"user-agent\", \"accept-language\"]");
    }
}

choice! {
    /// `mode` of a hook.
    HookMode { "monitor" => Monitor, "enforce" => Enforce, }
}

choice! {
    /// `on_error` of a hook.
    OnError { "allow" => Allow, "deny" => Deny, }
}

/// `users`.
#[derive(Clone, Debug)]
pub(crate) enum Users {
    /// A path.
    Path(String),
    /// By reference, as secrets are.
    Secret(Box<Secret>),
}

impl Value for Users {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::Table(_) => read_table(node, reader).map(|secret| Self::Secret(Box::new(secret))),
            _ => String::read(node, reader).map(Self::Path),
        }
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Text, Secret::shape()])
    }

    fn list(&self, path: &str, span: &Span, layer: Layer, out: &mut Vec<Listed>) {
        match self {
            Self::Path(_) => out.push(Listed { path: path.to_owned(), said: Some((span.clone(), layer)), default: "" }),
            Self::Secret(secret) => Mirror::settings(&**secret, path, out),
        }
    }
}
