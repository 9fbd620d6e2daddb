//! Why a byte stream is no acceptable HTTP/1.1: one variant for each rule that can be broken.
//!
//! Each fault has a status, a stable code for the log, and plain words. The codes are never reused.

use std::fmt;

use http::StatusCode;

/// What was wrong with a message, or with the wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A TLS record on a plaintext listener.
    TlsOnPlaintext,
    /// The first byte cannot begin a method.
    NotHttp,
    /// More than one empty line before the request line.
    EmptyLine,
    /// A line feed without a carriage return.
    BareLf,
    /// A carriage return without a line feed.
    BareCr,
    /// Not exactly `method SP target SP version`.
    RequestLine,
    /// A method that is no token, or a standard method in the wrong case.
    Method,
    /// A method longer than any that exists.
    MethodTooLong,
    /// A byte that a target may not have.
    TargetByte,
    /// A target in none of the four forms, or in a form that the method does not have.
    TargetForm,
    /// A target longer than the head may be.
    TargetTooLong,
    /// Something that is no HTTP version.
    Version,
    /// A version that is neither 1.0 nor 1.1.
    VersionUnsupported,
    /// The preface of HTTP/2 where HTTP/1.1 is spoken.
    Http2Preface,
    /// A field name that is empty, not a token, or not followed by the colon at once.
    FieldName,
    /// A field line that begins with white space.
    Fold,
    /// A control character in a field value.
    FieldValue,
    /// More bytes than a head may have.
    HeadTooLarge,
    /// More fields than a head may have.
    TooManyFields,
    /// HTTP/1.1 without `Host`.
    HostMissing,
    /// More than one `Host`.
    HostRepeated,
    /// A `Host` or an authority that is not `host[:port]`.
    HostInvalid,
    /// A target that names another host than `Host` does.
    HostMismatch,
    /// A `Content-Length` that is no number of at most 19 digits.
    ContentLength,
    /// More than one `Content-Length`.
    ContentLengthRepeated,
    /// A `Transfer-Encoding` that is no list, or whose last coding is not `chunked`.
    TransferEncoding,
    /// More than one `Transfer-Encoding`.
    TransferEncodingRepeated,
    /// A `Transfer-Encoding` in HTTP/1.0.
    TransferEncodingOld,
    /// A transfer coding other than `chunked`.
    TransferCoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    BothLengths,
    /// A body announced with CONNECT.
    ConnectBody,
    /// A body announced with an upgrade to WebSocket.
    UpgradeBody,
    /// An upgrade to WebSocket in HTTP/1.0.
    UpgradeOld,
    /// An expectation other than `100-continue`.
    Expectation,
    /// The client ended the stream inside a head.
    Incomplete,
    /// A head was not complete in time.
    HeadTimeout,
    /// No first byte of a first head in time.
    Silent,
    /// No first byte of a further head in time.
    Idle,
    /// A chunk size that is no hexadecimal number of at most 16 digits.
    ChunkSize,
    /// A chunk extension out of its grammar.
    ChunkExtension,
    /// More bytes of chunk extensions than a message may have.
    ChunkExtensionsTooLong,
    /// Chunk data that does not end where its size says.
    ChunkEnd,
    /// A trailer field that decides framing, routing or trust.
    TrailerName,
    /// More trailer bytes or fields than a message may have.
    TrailersTooLarge,
}

impl Fault {
    /// The status of the answer. `Silent` and `Idle` are not answered.
    pub fn status(self) -> StatusCode {
        self.facts().0
    }

    /// The stable code for the log.
    pub fn code(self) -> &'static str {
        self.facts().1
    }

    /// What is wrong, in words.
    pub fn words(self) -> &'static str {
        self.facts().2
    }

    /// True when the client is told: it had begun a request.
    pub fn is_answered(self) -> bool {
        !matches!(self, Self::Silent | Self::Idle)
    }

    /// Status, code and words, in one place so that they cannot drift apart.
    fn facts(self) -> (StatusCode, &'static str, &'static str) {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        const LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        const LATE: StatusCode = StatusCode::REQUEST_TIMEOUT;
        const UNKNOWN: StatusCode = StatusCode::NOT_IMPLEMENTED;
        const VERSION: StatusCode = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        match self {
            Self::TlsOnPlaintext => (BAD, "E400-tls-on-plaintext", "TLS was spoken where plain HTTP is expected"),
            Self::NotHttp => (BAD, "E400-not-http", "the first byte cannot begin an HTTP request"),
            Self::EmptyLine => (BAD, "E400-empty-line", "more than one empty line before the request line"),
            Self::BareLf => (BAD, "E400-bare-lf", "a line feed without a carriage return"),
            Self::BareCr => (BAD, "E400-bare-cr", "a carriage return without a line feed"),
            Self::RequestLine => (BAD, "E400-request-line", "the request line is not method, target and version"),
            Self::Method => (BAD, "E400-method", "the method is not a token, or has the wrong case"),
            Self::MethodTooLong => (UNKNOWN, "E501-method", "the method is too long"),
            Self::TargetByte => (BAD, "E400-target-byte", "the request target has a byte that is not allowed"),
            Self::TargetForm => (BAD, "E400-target-form", "the request target has a form that is not allowed here"),
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "E414-target", "the request target is too long"),
            Self::Version => (BAD, "E400-version", "the request line does not end with an HTTP version"),
            Self::VersionUnsupported => (VERSION, "E505-version", "the HTTP version is neither 1.0 nor 1.1"),
            Self::Http2Preface => (VERSION, "E505-http2-preface", "HTTP/2 was spoken where HTTP/1.1 is expected"),
            Self::FieldName => (BAD, "E400-field-name", "a field name is not a token followed by a colon"),
            Self::Fold => (BAD, "E400-obs-fold", "a field line begins with white space"),
            Self::FieldValue => (BAD, "E400-field-value", "a field value has a control character"),
            Self::HeadTooLarge => (LARGE, "E431-head-bytes", "the request head is too large"),
            Self::TooManyFields => (LARGE, "E431-head-fields", "the request head has too many fields"),
            Self::HostMissing => (BAD, "E400-host-missing", "the request has no Host field"),
            Self::HostRepeated => (BAD, "E400-host-repeated", "the request has more than one Host field"),
            Self::HostInvalid => (BAD, "E400-host-invalid", "the host of the request is not a host and port"),
            Self::HostMismatch => (BAD, "E400-host-mismatch", "the request target names another host than Host"),
            Self::ContentLength => (BAD, "E400-content-length", "Content-Length is not a plain number"),
            Self::ContentLengthRepeated => {
                (BAD, "E400-content-length-repeated", "the request has more than one Content-Length")
            }
            Self::TransferEncoding => (BAD, "E400-transfer-encoding", "Transfer-Encoding does not end with chunked"),
            Self::TransferEncodingRepeated => {
                (BAD, "E400-transfer-encoding-repeated", "the request has more than one Transfer-Encoding")
            }
            Self::TransferEncodingOld => {
                (BAD, "E400-transfer-encoding-http10", "HTTP/1.0 cannot have Transfer-Encoding")
            }
            Self::TransferCoding => (UNKNOWN, "E501-transfer-coding", "a transfer coding other than chunked"),
            Self::BothLengths => (BAD, "E400-both-lengths", "both Content-Length and Transfer-Encoding"),
            Self::ConnectBody => (BAD, "E400-connect-body", "CONNECT announces a body"),
            Self::UpgradeBody => (BAD, "E400-upgrade-body", "an upgrade announces a body"),
            Self::UpgradeOld => (BAD, "E400-upgrade-http10", "HTTP/1.0 cannot upgrade"),
            Self::Expectation => {
                (StatusCode::EXPECTATION_FAILED, "E417-expectation", "an expectation other than 100-continue")
            }
            Self::Incomplete => (BAD, "E400-incomplete-head", "the client ended the stream inside a request head"),
            Self::HeadTimeout => (LATE, "E408-head-timeout", "the request head was not complete in time"),
            Self::Silent => (LATE, "E408-silent", "no request began in time"),
            Self::Idle => (LATE, "E408-idle", "no further request began in time"),
            Self::ChunkSize => (BAD, "E400-chunk-size", "a chunk size is not a plain hexadecimal number"),
            Self::ChunkExtension => (BAD, "E400-chunk-extension", "a chunk extension is malformed"),
            Self::ChunkExtensionsTooLong => (BAD, "E400-chunk-extension-bytes", "the chunk extensions are too long"),
            Self::ChunkEnd => (BAD, "E400-chunk-end", "a chunk does not end where its size says"),
            Self::TrailerName => (BAD, "E400-trailer-name", "a trailer field that may only be a header field"),
            Self::TrailersTooLarge => (LARGE, "E431-trailers", "the trailer section is too large"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl std::error::Error for Fault {}
