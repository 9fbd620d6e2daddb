//! An endpoint's answer: the head of its response (RFC 9112 4), judged as strictly as a request's, and
//! the body under the framing that it announces (RFC 9112 6.3).
//!
//! What two readers could understand differently is refused, never repaired: the response that follows
//! on the same connection is another client's.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::connect::EndpointStream;
use super::lease::Lease;
use super::link::Link;
use super::pool::InFlight;
use crate::body::BodyError;
use crate::framing::rest::{Piece, Rest, trailer_fields};
use crate::framing::{Chunks, Phrase};
use crate::refusal::Failure;
use crate::site::upstream::Endpoint;

/// A response head, and the connection that its body comes from.
#[derive(Debug)]
pub struct Answer {
    /// How long the request was held before anything took it.
    pub held: Option<Duration>,
    /// The response; its framing is sound.
    pub response: Response<AnswerBody>,
    /// Who answered.
    pub endpoint: Arc<Endpoint>,
    /// Our source port.
    pub via_port: Option<u16>,
}

impl Answer {
    /// Notes that what it says is a failure of the endpoint's all the same.
    pub fn note(&self, failure: Failure) {
        if let Some(lease) = &self.response.body().lease {
            lease.live.failed(failure, "it did not open the WebSocket", false);
        }
    }

    /// The stream after a 101 with what came early on it, and the place in the endpoint's count.
    pub fn into_tunnel(self) -> Option<(EndpointStream, Bytes, InFlight)> {
        let (link, in_flight) = self.response.into_body().lease?.into_parts();
        let (stream, early) = link.into_stream()?;
        // Copied, because a view of the buffer, even an empty one, keeps all of it in memory for days.
        Some((stream, Bytes::copy_from_slice(&early), in_flight))
    }
}

/// A response head, and what it says about the bytes after it.
pub(super) struct Head {
    response: Response<()>,
    rest: Rest,
    /// Whether the connection may serve again.
    is_persistent: bool,
}

impl Head {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The connection serves no other request, whatever the head says.
    pub(super) fn close(&mut self) {
        self.is_persistent = false;
    }
}

/// Why there is no response head.
pub(super) enum NoHead {
    /// The connection ended or broke; the endpoint may have begun to answer.
    Lost(Option<io::Error>),
    /// What came is no response.
    Malformed(&'static str),
}

/// Bytes of one response head, and of all interim ones before it, our choice: twice what the edge takes from clients by default.
const MAX_HEAD: usize = 64 << 10;

/// Fields of one response head, our choice: as many as the edge takes from clients by default.
const MAX_FIELDS: usize = 100;

/// Reads until a head is complete. Interim responses (RFC 9110 15.2) are read and not passed on; `interim` counts
/// their bytes.
pub(super) fn poll_head(
    link: &mut Link,
    cx: &mut Context<'_>,
    is_head: bool,
    interim: &mut usize,
) -> Poll<Result<Head, NoHead>> {
    loop {
        let here = link.intake.read.len();
        if here > 0
            && let Some(head) = parse(&mut link.intake.read, is_head).map_err(NoHead::Malformed)?
        {
            if head.status().is_informational() && head.status() != StatusCode::SWITCHING_PROTOCOLS {
                *interim += here - link.intake.read.len();
                // Without a bound, one that sends them faster than we read holds this task for ever.
                if *interim > MAX_HEAD {
                    return Poll::Ready(Err(NoHead::Malformed("it has too many interim responses")));
                }
                continue;
            }
            return Poll::Ready(Ok(head));
        }
        match ready!(link.poll_fill(cx)) {
            Ok(0) => return Poll::Ready(Err(NoHead::Lost(None))),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(NoHead::Lost(Some(error)))),
        }
    }
}

/// Takes the response head at the front of `read` off it when it is complete, and says how the body after it ends:
/// the judgement that every answer of an endpoint passes, for whoever tests it from outside.
///
/// # Errors
/// Why it is no response.
pub fn judge(read: &mut BytesMut, is_head: bool) -> Result<Option<(Response<()>, Rest)>, &'static str> {
    Ok(parse(read, is_head)?.map(|head| (head.response, head.rest)))
}

/// The head at the front of `read`, which is taken off when it is complete.
fn parse(read: &mut BytesMut, is_head: bool) -> Result<Option<Head>, &'static str> {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let length =
        match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, read, &mut fields) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if read.len() < MAX_HEAD => return Ok(None),
            Ok(_) => return Err("its head is too large"),
            Err(error) => return Err(reason(error)),
        };
    if has_bare_lf(&read[..length]) {
        return Err("a line of its head does not end in CRLF");
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("its status is not a number")?;
    let is_old = parsed.version == Some(0);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if is_old { Version::HTTP_10 } else { Version::HTTP_11 };
    if let Some(phrase) = parsed.reason.filter(|phrase| status.canonical_reason() != Some(*phrase)) {
        response.extensions_mut().insert(Phrase(phrase.into()));
    }
    // Where each value stands, so that it can share the memory of the head.
    let start = read.as_ptr() as usize;
    let mut lines = Vec::with_capacity(parsed.headers.len());
    for field in &*parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "a field name is not a token")?;
        let at = field.value.as_ptr() as usize - start;
        lines.push((name, at..at + field.value.len()));
    }
    let head = read.split_to(length).freeze();
    let map = response.headers_mut();
    map.reserve(lines.len() + ROOM);
    for (name, place) in lines {
        let value = HeaderValue::from_maybe_shared(head.slice(place));
        map.append(name, value.map_err(|_| "a field value has a control character")?);
    }
    let rest = rest(status, map, is_old, is_head)?;
    let is_persistent = !is_old && !matches!(rest, Rest::Close) && !says_close(map);
    Ok(Some(Head { response, rest, is_persistent }))
}

/// What the edge adds to a response, so that the map does not grow.
const ROOM: usize = 4;

fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a field name is not a token",
        httparse::Error::HeaderValue => "a field value has a control character",
        httparse::Error::NewLine => "a line of its head does not end in CRLF",
        httparse::Error::Status => "its status line is malformed",
        httparse::Error::Token => "its head has a byte that is not allowed",
        httparse::Error::TooManyHeaders => "its head has too many fields",
        httparse::Error::Version => "it is not HTTP/1.1",
    }
}

/// RFC 9112 2.2 lets a recipient take a bare LF; hops that differ in this can be played against each other.
fn has_bare_lf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

/// How the body ends (RFC 9112 6.3).
fn rest(status: StatusCode, fields: &HeaderMap, is_old: bool, is_head: bool) -> Result<Rest, &'static str> {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let rest = match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => return Err("it has a length and a transfer coding"),
        (Some(_), None) if is_old => return Err("it has a transfer coding in HTTP/1.0"),
        (Some(coding), None) => {
            if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err("its transfer coding is not chunked");
            }
            Rest::Chunked(Chunks::default())
        }
        (None, Some(length)) => {
            // 19 digits always fit 64 bits.
            let digits = Some(length.as_bytes()).filter(|digits| digits.iter().all(u8::is_ascii_digit));
            let digits = digits.filter(|digits| (1..=19).contains(&digits.len()) && lengths.next().is_none());
            let digits = digits.ok_or("its length is repeated or not a number")?;
            match digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')) {
                0 => Rest::Over,
                length => Rest::Length(length),
            }
        }
        (None, None) => Rest::Close,
    };
    let is_bodiless =
        is_head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    Ok(if is_bodiless { Rest::Over } else { rest })
}

fn says_close(fields: &HeaderMap) -> bool {
    fields.get_all(CONNECTION).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// A response body as it comes. When it has ended, its connection serves again; dropped before, it closes.
pub struct AnswerBody {
    lease: Option<Lease>,
    rest: Rest,
    is_persistent: bool,
    silence: Duration,
    /// Since when nothing comes. The clock is only read if the body has to wait.
    silent_since: Option<Instant>,
    /// Why it broke off, to be told next.
    failure: Option<BodyError>,
}

impl AnswerBody {
    /// The body after a head, with at most `silence` between two pieces.
    pub(super) fn new(head: Head, lease: Lease, silence: Duration) -> Response<Self> {
        let Head { response, rest, is_persistent } = head;
        let is_tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        response.map(|()| {
            let mut body = Self { lease: Some(lease), rest, is_persistent, silence, silent_since: None, failure: None };
            if body.rest.is_over() && !is_tunnel {
                body.end();
            }
            body
        })
    }

    /// Limits how much is read at once, for a client that is slow to take it.
    pub fn limit_read(&mut self, most: Option<usize>) {
        if let Some(lease) = &mut self.lease {
            lease.link.intake.limit(most);
        }
    }

    /// The last byte is here: the connection serves again, if both sides agree.
    fn end(&mut self) {
        self.rest = Rest::Over;
        if let Some(lease) = self.lease.take()
            && self.is_persistent
        {
            lease.complete();
        }
    }

    /// The next piece that is here already.
    fn take(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        let Some(lease) = &mut self.lease else { return Ok(None) };
        // What may not trail is taken out later; it is no reason to break off a whole answer.
        let piece = self.rest.take(&mut lease.link.intake.read, |_| true);
        let piece = piece.map_err(|fault| BodyError::Broken(Box::new(fault)))?;
        if self.rest.is_over() {
            self.end();
        }
        Ok(match piece {
            Some(Piece::Data(data)) => Some(Frame::data(data)),
            Some(Piece::Trailers(section)) => {
                Some(trailer_fields(&section)).filter(|fields| !fields.is_empty()).map(Frame::trailers)
            }
            None => None,
        })
    }

    /// The body broke off. It is told in a poll of its own: what came before must be written first, so that
    /// the client sees a response that is cut, and not none at all.
    fn fail(&mut self, cx: &mut Context<'_>, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.lease = None;
        self.failure = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(error) = this.failure.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match this.take() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(error) => return this.fail(cx, error),
            }
            let Some(lease) = this.lease.as_mut().filter(|_| !this.rest.is_over()) else {
                return Poll::Ready(None);
            };
            match lease.link.poll_fill(cx) {
                Poll::Ready(Ok(0)) if matches!(this.rest, Rest::Close) => {
                    this.end();
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return this.fail(cx, BodyError::Broken(Box::new(error)));
                }
                Poll::Ready(Ok(_)) => this.silent_since = None,
                Poll::Ready(Err(error)) => return this.fail(cx, BodyError::Broken(Box::new(error))),
                Poll::Pending => {
                    let since = *this.silent_since.get_or_insert_with(Instant::now);
                    if !lease.link.is_late(cx, since + this.silence) {
                        return Poll::Pending;
                    }
                    return this.fail(cx, BodyError::Stalled);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerBody").field("rest", &self.rest).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a head is taken for.
    #[derive(Debug, PartialEq)]
    enum Verdict {
        Length(u64),
        Chunked,
        Close,
        Bad,
        Partial,
    }
    use Verdict::{Bad, Chunked, Close, Length, Partial};

    fn verdict(text: &str, is_head: bool) -> Verdict {
        match judge(&mut BytesMut::from(text), is_head) {
            Ok(Some((_, Rest::Over))) => Length(0),
            Ok(Some((_, Rest::Length(length)))) => Length(length),
            Ok(Some((_, Rest::Chunked(_)))) => Chunked,
            Ok(Some((_, Rest::Close))) => Close,
            Ok(None) => Partial,
            // A head is never followed by trailers at once.
            Ok(Some((_, Rest::Trailers(_)))) | Err(_) => Bad,
        }
    }

    #[test]
    fn each_head_has_its_verdict() {
        for (head, expected) in [
            // The length (RFC 9112 6.3).
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Length(5)),
            ("HTTP/1.1 200 OK\r\ncontent-length:\t005 \r\n\r\n", Length(5)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n", Length(9_999_999_999_999_999_999)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\n\r\n", Close),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n", Close),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Length(5)),
            // The transfer coding (RFC 9112 6.1).
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Chunked),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n", Chunked),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked;a=b\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", Bad),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Bad),
            // Statuses without content (RFC 9110 6.4.1), whatever the head claims.
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Length(0)),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Length(0)),
            ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", Length(0)),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", Length(0)),
            ("HTTP/1.1 100 Continue\r\n\r\n", Length(0)),
            ("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", Length(0)),
            // The status line (RFC 9112 4).
            ("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", Length(5)),
            ("HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", Length(5)),
            ("HTTP/1.1 999 Own words\r\nContent-Length: 5\r\n\r\n", Length(5)),
            ("HTTP/1.1 099 Low\r\n\r\n", Bad),
            ("HTTP/1.1 20 Short\r\n\r\n", Bad),
            ("HTTP/1.1 2000 Long\r\n\r\n", Bad),
            ("HTTP/1.1  200 OK\r\n\r\n", Bad),
            ("HTTP/2.0 200 OK\r\n\r\n", Bad),
            ("HTTP/1.2 200 OK\r\n\r\n", Bad),
            ("http/1.1 200 OK\r\n\r\n", Bad),
            (" HTTP/1.1 200 OK\r\n\r\n", Bad),
            ("ICY 200 OK\r\n\r\n", Bad),
            ("<html>", Bad),
            // Lines and fields.
            ("HTTP/1.1 200 OK\nContent-Length: 5\n\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\n", Bad),
            ("HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nX: a\x7fb\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\n X: a\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\n: a\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nX\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nX(: a\r\n\r\n", Bad),
            ("HTTP/1.1 200 OK\r\nX:\r\nContent-Length: 5\r\n\r\n", Length(5)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", Partial),
            ("HTTP/1.1 2", Partial),
            ("", Partial),
        ] {
            assert_eq!(verdict(head, false), expected, "{head:?}");
            if !matches!(expected, Bad | Partial) {
                assert_eq!(verdict(head, true), Length(0), "{head:?} after HEAD");
            }
        }
        let many = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: a\r\n".repeat(count));
        assert_eq!((verdict(&many(MAX_FIELDS), false), verdict(&many(MAX_FIELDS + 1), false)), (Close, Bad));
        let large = |length: usize| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(length - 24));
        assert_eq!((verdict(&large(MAX_HEAD), false), verdict(&large(MAX_HEAD + 1), false)), (Close, Bad));
        assert_eq!(verdict(&large(MAX_HEAD + 9)[..MAX_HEAD], false), Bad, "it can become no head any more");
    }

    #[test]
    fn a_connection_serves_again_only_if_both_sides_know_where_the_body_ends() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x\r\nConnection: y ,close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: closed\r\n\r\n", true),
        ] {
            let head = (parse(&mut BytesMut::from(head), false).ok().flatten()).expect("a good head");
            assert_eq!(head.is_persistent, expected, "{:?}", head.response);
        }
    }

    /// Head, content and trailers of a response.
    type Read = (Response<()>, Vec<u8>, HeaderMap);

    /// Responses as they are taken off a stream that is cut so: heads, content and trailers of each, what is left,
    /// and whether something was wrong.
    fn read_all(stream: &[u8], cuts: &[usize]) -> (Vec<Read>, usize, bool) {
        let mut responses: Vec<Read> = Vec::new();
        let (mut read, mut rest, mut begin) = (BytesMut::new(), Rest::Over, 0);
        for end in cuts.iter().copied().chain([stream.len()]) {
            read.extend_from_slice(&stream[begin..end.max(begin)]);
            begin = end.max(begin);
            loop {
                if rest.is_over() {
                    match judge(&mut read, false) {
                        Ok(Some((response, body))) => {
                            responses.push((response, Vec::new(), HeaderMap::new()));
                            rest = body;
                        }
                        Ok(None) => break,
                        Err(_) => return (responses, 0, true),
                    }
                }
                let (_, content, trailers) = responses.last_mut().expect("a head came first");
                match rest.take(&mut read, |_| true) {
                    Ok(Some(Piece::Data(data))) => content.extend_from_slice(&data),
                    Ok(Some(Piece::Trailers(section))) => *trailers = trailer_fields(&section),
                    Ok(None) if rest.is_over() => {}
                    Ok(None) => break,
                    Err(_) => return (responses, 0, true),
                }
            }
        }
        (responses, read.len(), false)
    }

    fn words() -> impl Strategy<Value = Vec<u8>> {
        let words: Vec<&'static [u8]> = vec![
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 204 No Content\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.0 404 Nothing\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"X: \xe9\r\n",
            b"\r\n",
            b"\r\n",
            b"hello",
            b"5\r\nhello\r\n",
            b"5;a=b\r\nhello\r\n",
            b"0\r\n\r\n",
            b"0\r\nX: b\r\n\r\n",
            b"\r",
            b"\n",
        ];
        let word = prop_oneof![
            9 => proptest::sample::select(words).prop_map(<[u8]>::to_vec),
            1 => proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(word, 0..14).prop_map(|words| words.concat())
    }

    /// Responses that are sound, one after another.
    fn sound() -> impl Strategy<Value = Vec<u8>> {
        let whole: Vec<&'static [u8]> = vec![
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nX: b\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
            b"HTTP/1.0 404 Nothing\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nto the end",
        ];
        proptest::collection::vec(proptest::sample::select(whole), 1..5).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn cuts_change_nothing(
            stream in prop_oneof![words(), sound()],
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let told = |(responses, left, is_bad): (Vec<_>, usize, bool)| format!("{responses:?} {left} {is_bad}");
            prop_assert_eq!(told(read_all(&stream, &cuts)), told(read_all(&stream, &[])));
        }
    }
}
