//! A message of HTTP/1.1 on its way out, request or response: its head as bytes, then its body under a
//! length, in chunks (RFC 9112 7.1), or as long as the connection.
//!
//! Head and first piece go out in one write. Nothing is held back: a piece is written before the next
//! one is asked for, so that a slow reader slows its sender down.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use tokio::io::AsyncWrite;

use crate::body::BodyError;

/// A message that is being written.
#[derive(Debug)]
pub struct Sending<B> {
    /// The head, kept for a second attempt.
    head: Vec<u8>,
    /// So many bytes of it are out.
    sent: usize,
    body: B,
    framing: Framing,
    /// Framing that goes before `data`.
    frame: BytesMut,
    /// The present piece of the body.
    data: Bytes,
    /// Framing that goes after `data`.
    tail: &'static [u8],
    /// Something was handed to a stream.
    has_begun: bool,
}

/// How the reader knows where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes are still to be read from the body.
    Length(u64),
    /// In chunks; `true` with the trailer section.
    Chunked(bool),
    /// With the connection.
    Close,
    /// All of the body was read, or there is none.
    Over,
}

/// Why a message was not written to its end.
#[derive(Debug)]
pub enum SendError {
    /// Its body broke off.
    Body(BodyError),
    /// The reader takes no more.
    Wire(io::Error),
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Sending<B> {
    /// A message that nothing was written of.
    pub fn new(head: Vec<u8>, body: B, framing: Framing) -> Self {
        let (frame, data) = (BytesMut::new(), Bytes::new());
        Self { head, sent: 0, body, framing, frame, data, tail: &[], has_begun: false }
    }

    /// Another head for the same body, before anything was written.
    pub fn set_head(&mut self, head: Vec<u8>) {
        self.head = head;
    }

    /// The body.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// True while no byte was handed to a stream.
    pub fn is_unsent(&self) -> bool {
        !self.has_begun
    }

    /// True when nothing more is asked of the body: the rest waits for the stream alone.
    pub fn is_body_read(&self) -> bool {
        self.framing == Framing::Over
    }

    /// Begins again with the head. Only where nothing of a body was written.
    pub fn rewind(&mut self) {
        self.sent = 0;
        self.has_begun = false;
    }

    /// Writes on. Ready when all of it is out.
    ///
    /// # Errors
    /// What broke: the body, or the stream.
    pub fn poll_send<W>(&mut self, cx: &mut Context<'_>, wire: &RefCell<W>) -> Poll<Result<(), SendError>>
    where
        W: AsyncWrite + Unpin,
    {
        loop {
            let is_body_waiting = self.poll_body(cx).map_err(SendError::Body)?.is_pending();
            let wire = &mut *wire.borrow_mut();
            let head = &self.head[self.sent..];
            let is_piece_out = self.is_piece_out();
            if head.is_empty() && is_piece_out {
                // What TLS reports as written may still sit in the session.
                ready!(Pin::new(wire).poll_flush(cx)).map_err(SendError::Wire)?;
                return if is_body_waiting { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            let written = if is_piece_out {
                ready!(Pin::new(wire).poll_write(cx, head))
            } else if head.is_empty() && self.frame.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(wire).poll_write(cx, &self.data))
            } else {
                let slices = [head, &self.frame, &self.data, self.tail].map(IoSlice::new);
                ready!(Pin::new(wire).poll_write_vectored(cx, &slices))
            };
            let written = written.map_err(SendError::Wire)?;
            if written == 0 {
                return Poll::Ready(Err(SendError::Wire(io::ErrorKind::WriteZero.into())));
            }
            self.has_begun = true;
            self.advance(written);
        }
    }

    /// Takes off what was written.
    fn advance(&mut self, mut written: usize) {
        let head = written.min(self.head.len() - self.sent);
        self.sent += head;
        written -= head;
        let frame = written.min(self.frame.len());
        self.frame.advance(frame);
        written -= frame;
        let data = written.min(self.data.len());
        self.data.advance(data);
        if self.data.is_empty() {
            // Even an empty view keeps its memory from whoever reads into it next.
            self.data = Bytes::new();
        }
        self.tail = &self.tail[written - data..];
    }

    /// True when nothing of the present piece is left to write.
    fn is_piece_out(&self) -> bool {
        self.frame.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Reads the next piece of the body, if the last one is out.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        // Before the head has gone the first piece is taken too: both then need one write.
        while self.is_piece_out() && self.framing != Framing::Over {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()? {
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.take_data(data)?,
                    Err(other) => self.end(&other.into_trailers().unwrap_or_default())?,
                },
                None => self.end(&HeaderMap::new())?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take_data(&mut self, data: Bytes) -> Result<(), BodyError> {
        match &mut self.framing {
            // An empty chunk would be the last one.
            _ if data.is_empty() => return Ok(()),
            Framing::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or_else(BodyError::wrong_length)?,
            Framing::Chunked(_) => {
                // A size in hexadecimal digits; a vector in memory cannot fail.
                let mut size = [0; 18];
                let mut rest = &mut size[..];
                let _ = write!(rest, "{:x}\r\n", data.len());
                let unused = rest.len();
                self.frame.extend_from_slice(&size[..18 - unused]);
                self.tail = b"\r\n";
            }
            Framing::Close | Framing::Over => {}
        }
        self.data = data;
        if self.framing == Framing::Length(0) {
            self.framing = Framing::Over;
        }
        Ok(())
    }

    fn end(&mut self, trailers: &HeaderMap) -> Result<(), BodyError> {
        match self.framing {
            Framing::Length(left) if left > 0 => return Err(BodyError::wrong_length()),
            Framing::Length(_) | Framing::Close | Framing::Over => {}
            Framing::Chunked(may_trail) => {
                self.frame.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().filter(|_| may_trail) {
                    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                        self.frame.extend_from_slice(part);
                    }
                }
                self.frame.extend_from_slice(b"\r\n");
            }
        }
        self.framing = Framing::Over;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use http_body::Frame;
    use proptest::prelude::*;

    use super::*;
    use crate::framing::Chunks;
    use crate::framing::rest::{Piece, Rest, trailer_fields};

    /// A body of these pieces, which says at every other poll that it is not ready.
    struct Pieces {
        frames: VecDeque<Frame<Bytes>>,
        is_ready: bool,
    }

    impl Pieces {
        fn new(pieces: Vec<Vec<u8>>, trailers: Option<HeaderMap>) -> Self {
            let pieces = pieces.into_iter().map(|piece| Frame::data(Bytes::from(piece)));
            Self { frames: pieces.chain(trailers.map(Frame::trailers)).collect(), is_ready: false }
        }
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.is_ready = !self.is_ready;
            if !self.is_ready {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(self.frames.pop_front().map(Ok))
        }
    }

    /// A stream that takes so many bytes at each write, in turn; 0 stands for one that has to wait.
    struct Narrow {
        taken: Vec<u8>,
        room: Vec<usize>,
        turn: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let room = self.room[self.turn % self.room.len()];
            self.turn += 1;
            if room == 0 {
                return Poll::Pending;
            }
            let all = slices.iter().flat_map(|slice| slice.iter().copied());
            let before = self.taken.len();
            self.taken.extend(all.take(room));
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// All that is written, when each write takes so many bytes; or what was written before it broke.
    fn written(mut sending: Sending<Pieces>, room: &[usize]) -> Result<Vec<u8>, Vec<u8>> {
        let wire = RefCell::new(Narrow { taken: Vec::new(), room: room.to_vec(), turn: 0 });
        let mut cx = Context::from_waker(Waker::noop());
        let sent = (0..100_000).find_map(|_| match sending.poll_send(&mut cx, &wire) {
            Poll::Ready(sent) => Some(sent),
            Poll::Pending => None,
        });
        let taken = wire.into_inner().taken;
        if sent.expect("it ends").is_ok() { Ok(taken) } else { Err(taken) }
    }

    fn framing() -> impl Strategy<Value = Framing> {
        prop_oneof![
            (0_u64..100).prop_map(Framing::Length),
            any::<bool>().prop_map(Framing::Chunked),
            Just(Framing::Close),
        ]
    }

    /// What the bytes must be, said plainly.
    fn expected(pieces: &[Vec<u8>], trailers: &HeaderMap, framing: Framing) -> Vec<u8> {
        let mut bytes = b"head\r\n\r\n".to_vec();
        let Framing::Chunked(may_trail) = framing else { return [bytes, pieces.concat()].concat() };
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.iter().filter(|_| may_trail) {
            bytes.extend_from_slice(format!("{name}: {}\r\n", value.to_str().expect("text")).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    proptest! {
        #[test]
        fn how_much_a_write_takes_changes_nothing(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..6),
            has_trailers: bool,
            framing in framing(),
            fits: bool,
            room in proptest::collection::vec(0_usize..40, 0..5),
        ) {
            let room = [&room[..], &[3]].concat();
            let length = pieces.concat().len() as u64;
            let framing = match framing {
                Framing::Length(_) if fits => Framing::Length(length),
                other => other,
            };
            // A message of length 0 has no body that anybody would ask.
            prop_assume!(framing != Framing::Length(0));
            let mut trailers = HeaderMap::new();
            if has_trailers {
                trailers.append("x-a", http::HeaderValue::from_static("1"));
                trailers.append("x-a", http::HeaderValue::from_static("2"));
            }
            let send = |room: &[usize]| {
                let body = Pieces::new(pieces.clone(), has_trailers.then(|| trailers.clone()));
                written(Sending::new(b"head\r\n\r\n".to_vec(), body, framing), room)
            };
            let sent = send(&room);
            match framing {
                // Longer or shorter than announced: what ends well is as long as announced, and all else breaks off.
                Framing::Length(announced) if announced != length => {
                    let is_good = sent.is_ok();
                    let (Ok(bytes) | Err(bytes)) = sent;
                    let most = 8 + announced;
                    let written = bytes.len() as u64;
                    prop_assert!(written <= most);
                    prop_assert_eq!(written == most && is_good, is_good);
                    prop_assert!(expected(&pieces, &trailers, framing).starts_with(&bytes));
                }
                Framing::Length(_) | Framing::Chunked(_) | Framing::Close | Framing::Over => {
                    prop_assert_eq!(sent.expect("sound"), expected(&pieces, &trailers, framing));
                }
            }
        }

        /// What is written in chunks is read back, wherever reads are cut.
        #[test]
        fn chunks_are_read_back(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            trailers in proptest::option::of(proptest::collection::vec(("x-[a-z]{1,8}", "[!-~]{0,9}"), 0..4)),
            steps in proptest::collection::vec(1_usize..30, 1..4),
        ) {
            let trailers = trailers.map(|fields| {
                let pair = |(name, value): (String, String)| Some((name.parse().ok()?, value.parse().ok()?));
                fields.into_iter().filter_map(pair).collect::<HeaderMap>()
            });
            let content = pieces.concat();
            let body = Pieces::new(pieces, trailers.clone());
            let bytes = written(Sending::new(Vec::new(), body, Framing::Chunked(true)), &[1 << 20]).expect("sound");
            let mut rest = Rest::Chunked(Chunks::default());
            let (mut read, mut data, mut fields) = (BytesMut::new(), Vec::new(), HeaderMap::new());
            let mut steps = steps.into_iter().cycle();
            let mut left = &bytes[..];
            while !left.is_empty() {
                let (here, later) = left.split_at(steps.next().expect("endless").min(left.len()));
                read.extend_from_slice(here);
                left = later;
                while let Some(piece) = rest.take(&mut read, |_| true).expect("sound") {
                    match piece {
                        Piece::Data(piece) => data.extend_from_slice(&piece),
                        Piece::Trailers(section) => fields = trailer_fields(&section),
                    }
                }
            }
            prop_assert!(rest.is_over() && read.is_empty());
            prop_assert_eq!(data, content);
            prop_assert_eq!(fields, trailers.unwrap_or_default());
        }
    }
}
