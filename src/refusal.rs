//! Refusals: every answer that the edge makes itself.
//!
//! One table gives each its status, its stable code, the RFC 9209 error type and its words. What an endpoint answered is
//! never rewritten here.

mod answer;
mod limit;

use http::header::{ALLOW, SEC_WEBSOCKET_VERSION};
use http::{HeaderName, HeaderValue, StatusCode};

pub use answer::{Asker, Unanswered, auth_status, raw_answer, received_status, respond};
pub use limit::{Excess, Limited, Quota};

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// `X-Request-Id`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why the edge answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The head or the framing of a request is malformed or ambiguous; the code says how.
    Malformed {
        /// The status, 4xx or 501 or 505.
        status: StatusCode,
        /// A stable code of its own.
        code: &'static str,
        /// What is wrong, in plain words.
        why: &'static str,
    },
    /// `Host` is missing, malformed, or differs from the target.
    BadHost,
    /// A path that could mean another one to the endpoint, on a site with rules on paths.
    AmbiguousPath,
    /// `Sec-WebSocket-Key` is missing or malformed.
    BadWebSocketKey,
    /// `Sec-WebSocket-Version` is not 13.
    BadWebSocketVersion,
    /// The body broke its framing.
    BadBody,
    /// The origin is not one of the site's.
    Origin,
    /// The client may not enter here.
    Denied {
        /// By which rule; for the log alone.
        cause: Box<str>,
    },
    /// The same, and it is told that nothing is here: as `NoRoute` but for the log.
    Hidden {
        /// By which rule.
        cause: Box<str>,
    },
    /// The same, and it is told nothing.
    Dropped {
        /// By which rule.
        cause: Box<str>,
    },
    /// A name and a password are wanted, or were wrong.
    Login {
        /// `WWW-Authenticate`.
        challenge: HeaderValue,
    },
    /// Too many passwords are being judged.
    LoginBusy,
    /// A client certificate is wanted, or another one.
    NoCertificate,
    /// A WebSocket that the auth service did not let pass, and that cannot be sent to a page to log in.
    NotLoggedIn {
        /// What the service said; for the log alone.
        cause: Box<str>,
        /// `WWW-Authenticate`, where there is something to say.
        challenge: Option<HeaderValue>,
    },
    /// The same, for somebody who has logged in and may not enter here.
    NotAllowed {
        /// What the service said.
        cause: Box<str>,
    },
    /// The auth service gave no usable answer.
    AuthFailed {
        /// What happened.
        detail: Box<str>,
    },
    /// The auth service did not answer in time.
    AuthTimeout {
        /// What was waited for.
        detail: Box<str>,
    },
    /// A decision service refused the request.
    Hook {
        /// Which, and by which rule; for the log alone.
        cause: Box<str>,
    },
    /// A decision service whose word is needed gave none.
    HookFailed {
        /// What happened.
        detail: Box<str>,
    },
    /// No route takes the path.
    NoRoute,
    /// CONNECT or TRACE.
    Method,
    /// The body made no progress.
    BodyTimeout,
    /// The body came too slowly.
    BodyTooSlow,
    /// The body is larger than the route's limit.
    BodyTooLarge,
    /// No site has this name here.
    UnknownHost,
    /// The site has another TLS policy or name than the handshake.
    WrongConnection,
    /// Too many header fields, or too large.
    HeadTooLarge,
    /// Extended CONNECT for something else than `websocket`.
    UnknownProtocol,
    /// The client's address is not known, so nothing is forwarded.
    ClientUnknown,
    /// No room for another collected body.
    Busy,
    /// No endpoint could be reached.
    Unreachable {
        /// How it failed.
        failure: Failure,
        /// What was tried, for the log and for near clients.
        detail: Box<str>,
    },
    /// A limit is reached.
    Limited(Box<Limited>),
    /// The site is being worked on.
    Maintenance {
        /// When to come back, in seconds.
        retry_after: u32,
    },
    /// The upstream has as many requests in flight as it may, and as many wait as may.
    Overload {
        /// How many, and what the request waited for.
        detail: Box<str>,
    },
    /// Nothing answered for as long as requests are held.
    Held {
        /// What was tried.
        detail: Box<str>,
    },
    /// The endpoint took the connection but not the request.
    Failed {
        /// How it failed.
        failure: Failure,
        /// What happened.
        detail: Box<str>,
    },
}

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens there.
    Refused,
    /// No connection in time.
    ConnectTimeout,
    /// No route, or no permission.
    Unroutable,
    /// The name has no address.
    Dns,
    /// Its certificate was not accepted, or it refused ours.
    Tls,
    /// It closed the connection before its response.
    Closed,
    /// It reset the connection before its response: a process that died, or that did not read.
    Reset,
    /// Its response is malformed.
    Protocol,
    /// It agreed to an upgrade and did not prove it, or answered 2xx without one.
    Upgrade,
    /// No response head in time.
    ResponseTimeout,
    /// It says itself that it is not ready.
    NotReady,
    /// Nothing listens there, a moment after it has said that it goes away.
    Restarting,
}

/// The words of one refusal.
struct Words {
    status: StatusCode,
    code: &'static str,
    /// RFC 9209 2.3.
    proxy_error: &'static str,
    message: &'static str,
}

const fn words(status: StatusCode, code: &'static str, proxy_error: &'static str, message: &'static str) -> Words {
    Words { status, code, proxy_error, message }
}

const DENIED: &str = "http_request_denied";
const BAD_REQUEST: &str = "http_request_error";

impl Refusal {
    fn words(&self) -> Words {
        use StatusCode as S;
        match self {
            Self::Malformed { status, code, why } => words(*status, code, BAD_REQUEST, why),
            Self::BadHost => words(
                S::BAD_REQUEST,
                "E400-host",
                BAD_REQUEST,
                "the host name of this request is missing, malformed or contradictory",
            ),
            Self::AmbiguousPath => {
                words(S::BAD_REQUEST, "E400-path", BAD_REQUEST, "the path has an encoded separator or dot segment")
            }
            Self::BadWebSocketKey => words(
                S::BAD_REQUEST,
                "E400-websocket-key",
                BAD_REQUEST,
                "the WebSocket handshake has no valid Sec-WebSocket-Key",
            ),
            Self::BadWebSocketVersion => words(
                S::BAD_REQUEST,
                "E400-websocket-version",
                BAD_REQUEST,
                "only version 13 of WebSocket is spoken here",
            ),
            Self::BadBody => {
                words(S::BAD_REQUEST, "E400-body", BAD_REQUEST, "the body of this request is malformed or broke off")
            }
            Self::Origin => words(S::FORBIDDEN, "E403-origin", DENIED, "this origin may not use this address"),
            Self::Denied { .. } => words(S::FORBIDDEN, "E403-denied", DENIED, "this address is not open to you"),
            Self::Hidden { .. } => {
                words(S::NOT_FOUND, "E404-denied", DENIED, "the client was told that nothing is here")
            }
            Self::Dropped { .. } => words(unanswered(), "E444-denied", DENIED, "the client was not answered"),
            Self::Login { .. } => words(S::UNAUTHORIZED, "E401-login", DENIED, "a name and a password are needed here"),
            Self::LoginBusy => words(
                S::SERVICE_UNAVAILABLE,
                "E503-login",
                "connection_limit_reached",
                "too many logins are being checked",
            ),
            Self::NoCertificate => {
                words(S::FORBIDDEN, "E403-certificate", DENIED, "a client certificate is needed here")
            }
            Self::NotLoggedIn { .. } => words(S::UNAUTHORIZED, "E401-forward", DENIED, "a login is needed here"),
            Self::NotAllowed { .. } => {
                words(S::FORBIDDEN, "E403-forward", DENIED, "your login does not open this address")
            }
            Self::AuthFailed { .. } => words(
                S::BAD_GATEWAY,
                "E502-auth",
                "destination_unavailable",
                "the service that judges logins does not work",
            ),
            Self::AuthTimeout { .. } => words(
                S::GATEWAY_TIMEOUT,
                "E504-auth",
                "http_response_timeout",
                "the service that judges logins did not answer in time",
            ),
            Self::Hook { .. } => words(S::FORBIDDEN, "E403-hook", DENIED, "a rule of this site refuses this request"),
            Self::HookFailed { .. } => words(
                S::SERVICE_UNAVAILABLE,
                "E503-hook",
                "destination_unavailable",
                "the service that judges requests does not work",
            ),
            Self::NoRoute => {
                words(S::NOT_FOUND, "E404-route", "destination_not_found", "nothing is served at this path")
            }
            Self::Method => words(S::METHOD_NOT_ALLOWED, "E405-method", DENIED, "this method is not allowed here"),
            Self::BodyTimeout => words(
                S::REQUEST_TIMEOUT,
                "E408-body",
                "http_request_error",
                "the body of this request stopped arriving",
            ),
            Self::BodyTooSlow => words(
                S::REQUEST_TIMEOUT,
                "E408-body-rate",
                "http_request_error",
                "the body of this request arrives too slowly",
            ),
            Self::BodyTooLarge => {
                words(S::PAYLOAD_TOO_LARGE, "E413-body", DENIED, "the body of this request is larger than allowed here")
            }
            Self::UnknownHost => {
                words(S::MISDIRECTED_REQUEST, "E421-host", "destination_not_found", "no site has this name here")
            }
            Self::WrongConnection => {
                words(S::MISDIRECTED_REQUEST, "E421-connection", DENIED, "this name needs a connection of its own")
            }
            Self::HeadTooLarge => words(
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "E431-headers",
                DENIED,
                "the headers of this request are larger or more than allowed here",
            ),
            Self::UnknownProtocol => {
                words(S::NOT_IMPLEMENTED, "E501-protocol", BAD_REQUEST, "only the protocol websocket can be tunnelled")
            }
            Self::ClientUnknown => words(
                S::BAD_GATEWAY,
                "E502-client",
                "proxy_internal_error",
                "the address of the client is not known, so the request cannot be passed on",
            ),
            Self::Busy => {
                words(S::SERVICE_UNAVAILABLE, "E503-busy", "connection_limit_reached", "too many uploads at once")
            }
            Self::Limited(limited) => limited.what.words(),
            Self::Maintenance { .. } => words(
                S::SERVICE_UNAVAILABLE,
                "E503-maintenance",
                "destination_unavailable",
                "this address is being worked on and comes back soon",
            ),
            Self::Overload { .. } => words(
                S::SERVICE_UNAVAILABLE,
                "E503-overload",
                "connection_limit_reached",
                "the gateway behind this address has too much to do",
            ),
            Self::Held { .. } => words(
                S::SERVICE_UNAVAILABLE,
                "E503-held",
                "destination_unavailable",
                "the gateway behind this address is restarting or not running",
            ),
            Self::Unreachable { failure, .. } | Self::Failed { failure, .. } => failure.words(),
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.words().status
    }

    /// The stable code, for logs and for people who search.
    pub fn code(&self) -> &'static str {
        self.words().code
    }

    /// What the client is told.
    pub fn message(&self) -> &'static str {
        self.words().message
    }

    /// What only the log and near clients are told.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Unreachable { detail, .. } | Self::Failed { detail, .. } => Some(detail),
            Self::Held { detail } | Self::Overload { detail } => Some(detail),
            Self::AuthFailed { detail } | Self::AuthTimeout { detail } | Self::HookFailed { detail } => Some(detail),
            _ => None,
        }
    }

    /// How a login is asked for (RFC 9110 11.6.1).
    fn challenge(&self) -> Option<&HeaderValue> {
        match self {
            Self::Login { challenge } => Some(challenge),
            // An auth service that gave no challenge gets none from us: a browser would ask for a password that nobody takes.
            Self::NotLoggedIn { challenge, .. } => challenge.as_ref(),
            _ => None,
        }
    }

    /// Why, for the log.
    pub fn cause(&self) -> &str {
        match self {
            Self::Denied { cause } | Self::Hidden { cause } | Self::Dropped { cause } => cause,
            Self::Limited(limited) => &limited.cause,
            Self::NotLoggedIn { cause, .. } | Self::NotAllowed { cause } | Self::Hook { cause } => cause,
            _ => self.detail().unwrap_or(self.message()),
        }
    }

    /// The name of the limiter that refused, if one did.
    pub fn limit(&self) -> Option<&str> {
        match self {
            Self::Limited(limited) => Some(&limited.name),
            _ => None,
        }
    }

    /// Whether the client must not see that a route has refused it: nothing of the route may show in the answer.
    pub fn hides_route(&self) -> bool {
        matches!(self, Self::Hidden { .. } | Self::Dropped { .. })
    }

    /// What whoever looks after the machine can do about it; for near clients, beside the detail.
    fn help(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { failure: Failure::Refused, .. } | Self::Held { .. } => {
                Some("Start what should listen there; for the OpenClaw gateway: openclaw gateway run")
            }
            _ => None,
        }
    }

    /// Whether an HTTP/1.1 connection ends with this answer: after whatever casts doubt on the client
    /// or leaves a body unread. Refuse, then close: nothing that follows is taken for a request.
    fn closes(&self) -> bool {
        match self {
            Self::Origin | Self::NoRoute | Self::UnknownProtocol | Self::Busy | Self::ClientUnknown => false,
            // Behind a hop the next request on it may be another client's.
            Self::Denied { .. } | Self::Hidden { .. } | Self::Dropped { .. } | Self::Maintenance { .. } => false,
            Self::Login { .. } | Self::LoginBusy | Self::NoCertificate | Self::NotLoggedIn { .. } => false,
            Self::NotAllowed { .. } | Self::AuthFailed { .. } | Self::AuthTimeout { .. } => false,
            Self::Hook { .. } | Self::HookFailed { .. } => false,
            Self::Unreachable { .. } | Self::Held { .. } | Self::Overload { .. } | Self::Failed { .. } => false,
            Self::Limited(limited) => limited.what.is_of_connections(),
            Self::Malformed { .. }
            | Self::BadHost
            | Self::AmbiguousPath
            | Self::BadWebSocketKey
            | Self::BadWebSocketVersion
            | Self::BadBody
            | Self::Method
            | Self::BodyTimeout
            | Self::BodyTooSlow
            | Self::BodyTooLarge
            | Self::UnknownHost
            | Self::WrongConnection
            | Self::HeadTooLarge => true,
        }
    }

    /// The header that a refusal must carry to say what would have been taken.
    fn what_is_taken(&self) -> Option<(HeaderName, &'static str)> {
        match self {
            // RFC 9110 15.5.6. What each resource takes is the upstream's to say; these we pass on.
            Self::Method => Some((ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
            // RFC 6455 4.4.
            Self::BadWebSocketVersion => Some((SEC_WEBSOCKET_VERSION, "13")),
            _ => None,
        }
    }

    /// Whether asking again soon may help, and after how many seconds.
    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Maintenance { retry_after } => return Some(*retry_after),
            Self::Limited(limited) => return Some(limited.retry_after),
            _ => {}
        }
        (self.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(5)
    }
}

impl Failure {
    /// All of them, for those who count.
    pub const ALL: [Self; 12] = [
        Self::Refused,
        Self::ConnectTimeout,
        Self::Unroutable,
        Self::Dns,
        Self::Tls,
        Self::Closed,
        Self::Reset,
        Self::Protocol,
        Self::Upgrade,
        Self::ResponseTimeout,
        Self::NotReady,
        Self::Restarting,
    ];

    /// The stable code of the refusal that follows from it.
    pub fn code(self) -> &'static str {
        self.words().code
    }

    /// The word in metrics: the code without its status.
    pub fn kind(self) -> &'static str {
        let code = self.words().code;
        code.split_once('-').map_or(code, |(_, kind)| kind)
    }

    fn words(self) -> Words {
        use StatusCode as S;
        match self {
            Self::Refused => words(
                S::BAD_GATEWAY,
                "E502-refused",
                "connection_refused",
                "the gateway behind this address is not running",
            ),
            Self::ConnectTimeout => words(
                S::GATEWAY_TIMEOUT,
                "E504-connect",
                "connection_timeout",
                "the gateway behind this address cannot be reached",
            ),
            Self::Unroutable => words(
                S::BAD_GATEWAY,
                "E502-unreachable",
                "destination_ip_unroutable",
                "the gateway behind this address cannot be reached",
            ),
            Self::Dns => words(
                S::BAD_GATEWAY,
                "E502-dns",
                "dns_error",
                "the name of the gateway behind this address has no address",
            ),
            Self::Tls => words(
                S::BAD_GATEWAY,
                "E502-tls",
                "tls_certificate_error",
                "the gateway behind this address cannot be trusted",
            ),
            Self::Closed => words(
                S::BAD_GATEWAY,
                "E502-closed",
                "connection_terminated",
                "the gateway behind this address closed the connection before it answered",
            ),
            Self::Reset => words(
                S::BAD_GATEWAY,
                "E502-reset",
                "connection_terminated",
                "the gateway behind this address broke the connection off before it answered",
            ),
            Self::Protocol => words(
                S::BAD_GATEWAY,
                "E502-protocol",
                "http_protocol_error",
                "the gateway behind this address sent a malformed answer",
            ),
            Self::Upgrade => words(
                S::BAD_GATEWAY,
                "E502-upgrade",
                "http_upgrade_failed",
                "the gateway behind this address did not open the WebSocket",
            ),
            Self::ResponseTimeout => words(
                S::GATEWAY_TIMEOUT,
                "E504-response",
                "http_response_timeout",
                "the gateway behind this address did not answer in time",
            ),
            Self::NotReady => words(
                S::SERVICE_UNAVAILABLE,
                "E503-unhealthy",
                "destination_unavailable",
                "the gateway behind this address says that it is not ready",
            ),
            Self::Restarting => {
                words(S::SERVICE_UNAVAILABLE, "E503-restarting", "destination_unavailable", "the gateway is restarting")
            }
        }
    }
}

/// 444, as nginx has it: only records show it.
fn unanswered() -> StatusCode {
    StatusCode::from_u16(444).unwrap_or(StatusCode::FORBIDDEN)
}
