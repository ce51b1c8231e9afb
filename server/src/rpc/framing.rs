//! Where one message ends and the next begins. Two framings, recognised by the first bytes of the input and answered in
//! kind: one message a line (MCP), or `Content-Length` headers (what editor plugins of the LSP kind send).

use std::io;

use sandbox_schemas::limits::MESSAGE_MAX_BYTES;
use tokio_util::bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::Decoder;

/// How messages are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One message a line.
    Lines,
    /// `Content-Length: N`, an empty line, N bytes.
    Headers,
}

impl Framing {
    /// A message as it goes out.
    pub(crate) fn frame(self, message: &[u8]) -> Bytes {
        let mut framed = BytesMut::with_capacity(message.len() + 32);
        if self == Framing::Headers {
            framed.put_slice(format!("Content-Length: {}\r\n\r\n", message.len()).as_bytes());
        }
        framed.put_slice(message);
        if self == Framing::Lines {
            framed.put_u8(b'\n');
        }
        framed.freeze()
    }
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The bytes of a message, whatever they hold.
    Message(Bytes),
    /// A message over the limit. It was discarded as it came, but for its beginning, where its id may be; the next one is read
    /// as usual.
    TooLong { head: Bytes },
}

/// What is kept of a message over the limit, in bytes. Clients write the id near the beginning, if not in front.
const HEAD_MAX_BYTES: usize = 4096;

/// A header block is a few dozen bytes.
const HEADERS_MAX_BYTES: usize = 4096;

/// Cuts the input into frames.
#[derive(Debug, Default)]
pub(crate) struct MessageDecoder {
    framing: Option<Framing>,
    /// Bytes of the line or block that are known to hold no end.
    scanned: usize,
    state: State,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Start,
    /// A line over the limit is dropped until its end.
    DiscardLine,
    /// A body of so many bytes follows.
    Body(usize),
    /// A body over the limit, of so many bytes, begins.
    LongBody(usize),
    /// It is dropped; so many bytes are left of it.
    DiscardBody(usize),
}

impl MessageDecoder {
    /// Which framing the client uses, once it is known.
    pub(crate) fn framing(&self) -> Option<Framing> {
        self.framing
    }

    fn decode_line(&mut self, input: &mut BytesMut) -> Option<Frame> {
        loop {
            let end = input[self.scanned..].iter().position(|&byte| byte == b'\n').map(|at| self.scanned + at);
            match (self.state, end) {
                (State::DiscardLine, Some(end)) => {
                    input.advance(end + 1);
                    (self.scanned, self.state) = (0, State::Start);
                }
                (State::DiscardLine, None) => {
                    input.clear();
                    self.scanned = 0;
                    return None;
                }
                (_, Some(end)) => {
                    let line = input.split_to(end + 1).freeze();
                    self.scanned = 0;
                    if line.len() > MESSAGE_MAX_BYTES {
                        return Some(too_long(&line));
                    }
                    if let Some(frame) = message(line) {
                        return Some(frame);
                    }
                }
                (_, None) if input.len() > MESSAGE_MAX_BYTES => {
                    let frame = too_long(input);
                    input.clear();
                    (self.scanned, self.state) = (0, State::DiscardLine);
                    return Some(frame);
                }
                (_, None) => {
                    self.scanned = input.len();
                    return None;
                }
            }
        }
    }

    fn decode_block(&mut self, input: &mut BytesMut) -> io::Result<Option<Frame>> {
        loop {
            match self.state {
                State::Body(length) if input.len() < length => return Ok(None),
                State::Body(length) => {
                    self.state = State::Start;
                    if let Some(frame) = message(input.split_to(length).freeze()) {
                        return Ok(Some(frame));
                    }
                }
                State::LongBody(_) if input.len() < HEAD_MAX_BYTES => return Ok(None),
                State::LongBody(length) => {
                    self.state = State::DiscardBody(length);
                    return Ok(Some(too_long(input)));
                }
                State::DiscardBody(left) => {
                    let dropped = left.min(input.len());
                    input.advance(dropped);
                    if dropped < left {
                        self.state = State::DiscardBody(left - dropped);
                        return Ok(None);
                    }
                    self.state = State::Start;
                }
                State::Start | State::DiscardLine => {
                    skip_blank(input);
                    let Some((length, header_bytes)) = headers(input)? else { return Ok(None) };
                    input.advance(header_bytes);
                    if length > MESSAGE_MAX_BYTES {
                        self.state = State::LongBody(length);
                    } else {
                        self.state = State::Body(length);
                    }
                }
            }
        }
    }
}

impl Decoder for MessageDecoder {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Frame>> {
        if self.framing.is_none() {
            // What is skipped is gone: it is neither kept nor looked at again.
            skip_blank(input);
            self.framing = recognise(input);
        }
        match self.framing {
            None => Ok(None),
            Some(Framing::Lines) => Ok(self.decode_line(input)),
            Some(Framing::Headers) => self.decode_block(input),
        }
    }

    /// A last line may lack its end: `printf %s "$request" | sandbox-mcp`.
    fn decode_eof(&mut self, input: &mut BytesMut) -> io::Result<Option<Frame>> {
        if let Some(frame) = self.decode(input)? {
            return Ok(Some(frame));
        }
        let rest = input.split().freeze();
        self.scanned = 0;
        Ok(message(rest).filter(|_| matches!(self.state, State::Start | State::Body(_))))
    }
}

/// Drops the blank lines that may stand before anything.
fn skip_blank(input: &mut BytesMut) {
    let blank = input.len() - input.trim_ascii_start().len();
    input.advance(blank);
}

/// Which framing the first bytes show; `None` while they could still be either.
fn recognise(input: &[u8]) -> Option<Framing> {
    const HEADER: &[u8] = b"content-";
    let start = &input[..input.len().min(HEADER.len())];
    if start.eq_ignore_ascii_case(HEADER) {
        Some(Framing::Headers)
    } else if start.is_empty() || HEADER[..start.len()].eq_ignore_ascii_case(start) {
        None
    } else {
        Some(Framing::Lines)
    }
}

/// The length that a header block announces, and the block's own; `None` while it is not whole.
fn headers(input: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message);
    // Only so far: what follows a block may be many others, and is looked at when it is its turn.
    let head = &input[..input.len().min(HEADERS_MAX_BYTES)];
    let end = |pattern: &[u8]| {
        head.windows(pattern.len()).position(|window| window == pattern).map(|at| (at, at + pattern.len()))
    };
    let Some((end, block_bytes)) = end(b"\r\n\r\n").into_iter().chain(end(b"\n\n")).min() else {
        let is_endless = input.len() >= HEADERS_MAX_BYTES;
        return if is_endless { Err(invalid("a header block without an end")) } else { Ok(None) };
    };
    let block = std::str::from_utf8(&input[..end]).map_err(|_| invalid("a header block that is not text"))?;
    let fields = block.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|(_, value)| value.trim().parse().ok());
    length
        .map(|length| Some((length, block_bytes)))
        .ok_or_else(|| invalid("a header block without a valid Content-Length"))
}

/// A message over the limit. A copy, so that its memory is free.
fn too_long(message: &[u8]) -> Frame {
    Frame::TooLong { head: Bytes::copy_from_slice(&message[..message.len().min(HEAD_MAX_BYTES)]) }
}

/// The message without what is around it; `None` for a blank line.
fn message(bytes: Bytes) -> Option<Frame> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let trimmed = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes).trim_ascii();
    (!trimmed.is_empty()).then(|| Frame::Message(bytes.slice_ref(trimmed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the input in pieces of `step` bytes, then its end.
    fn decode(input: &[u8], step: usize) -> Result<Vec<Frame>, String> {
        let mut decoder = MessageDecoder::default();
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for piece in input.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut buffer).map_err(|error| error.to_string())? {
                frames.push(frame);
            }
        }
        while let Some(frame) = decoder.decode_eof(&mut buffer).map_err(|error| error.to_string())? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[track_caller]
    fn check(input: &[u8], expected: &[&str]) {
        for step in [1, 2, 3, 7, input.len().max(1)] {
            let expected: Vec<_> = expected.iter().map(|text| Frame::Message(Bytes::from(text.to_string()))).collect();
            assert_eq!(decode(input, step), Ok(expected), "in pieces of {step}");
        }
    }

    #[test]
    fn lines_end_as_clients_end_them() {
        check(b"{\"a\":1}\n{\"b\":2}\n", &["{\"a\":1}", "{\"b\":2}"]);
        check(b"\xef\xbb\xbf{}\r\n\n \r\n[]", &["{}", "[]"]);
        check(b"", &[]);
        check(b"content", &["content"]);
        check(b"nonsense\n", &["nonsense"]);
    }

    #[test]
    fn headers_are_recognised_and_followed() {
        check(b"Content-Length: 2\r\n\r\n{}content-length:3\r\nContent-Type: x\r\n\r\n[1]", &["{}", "[1]"]);
        check(b"Content-Length: 2\n\n{}", &["{}"]);
    }

    #[test]
    fn blank_lines_between_header_blocks_are_skipped() {
        check(b"\r\n \nContent-Length: 2\r\n\r\n{}\r\n\n \r\nContent-Length: 3\n\n[1]\n\n", &["{}", "[1]"]);
    }

    /// Feeds pieces; returns the frames and the most bytes that were held.
    fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
        let mut decoder = MessageDecoder::default();
        let (mut buffer, mut frames, mut most) = (BytesMut::new(), 0, 0);
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while decoder.decode(&mut buffer).unwrap().is_some() {
                frames += 1;
            }
            most = most.max(buffer.len());
        }
        (frames, most)
    }

    #[test]
    fn endless_blank_lines_are_neither_kept_nor_read_twice() {
        // In small pieces, so that work which grows with what came before would take minutes.
        let blank = b"\n \r\n".repeat(256);
        for start in ["", "Content-Length: 2\r\n\r\n{}", "{}\n"] {
            let pieces = std::iter::repeat_n(blank.as_slice(), 100_000);
            let (frames, most) = feed([start.as_bytes()].into_iter().chain(pieces));
            assert_eq!((frames, most), (usize::from(!start.is_empty()), 0), "after {start:?}");
        }
    }

    #[test]
    fn many_small_frames_at_once_take_linear_time() {
        const COUNT: usize = 100_000;
        for frame in ["Content-Length: 2\r\n\r\n{}", "{}\n"] {
            let all = frame.repeat(COUNT);
            assert_eq!(feed([all.as_bytes()].into_iter()), (COUNT, 0));
        }
    }

    #[test]
    fn a_broken_header_block_is_an_error() {
        assert!(decode(b"Content-Length: x\r\n\r\n{}", 1).unwrap_err().contains("Content-Length"));
        let endless = [b"Content-Length: 2 ".as_slice(), &[b'x'; HEADERS_MAX_BYTES]].concat();
        assert!(decode(&endless, 100).unwrap_err().contains("without an end"));
    }

    #[test]
    fn what_is_too_long_is_discarded_in_bounded_memory() {
        let mut decoder = MessageDecoder::default();
        let mut buffer = BytesMut::new();
        let (mut too_long, mut most) = (0, 0);
        for _ in 0..(2 * MESSAGE_MAX_BYTES / 65536) {
            buffer.extend_from_slice(&[b'x'; 65536]);
            most = most.max(buffer.len());
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                assert_eq!(frame, Frame::TooLong { head: Bytes::from(vec![b'x'; HEAD_MAX_BYTES]) });
                too_long += 1;
            }
        }
        assert_eq!(too_long, 1);
        assert!(most <= MESSAGE_MAX_BYTES + 65536, "{most} bytes were held");
        buffer.extend_from_slice(b"\n{}\n");
        assert_eq!(decoder.decode(&mut buffer).unwrap(), Some(Frame::Message(Bytes::from("{}"))));
    }

    #[test]
    fn a_body_that_is_too_long_is_skipped() {
        let length = MESSAGE_MAX_BYTES + 1;
        let mut input = format!("Content-Length: {length}\r\n\r\n").into_bytes();
        input.resize(input.len() + length, b'x');
        input.extend_from_slice(b"Content-Length: 2\r\n\r\n{}");
        let head = Bytes::from(vec![b'x'; HEAD_MAX_BYTES]);
        for step in [1000, 65536] {
            let frames = decode(&input, step).unwrap();
            assert_eq!(frames, [Frame::TooLong { head: head.clone() }, Frame::Message(Bytes::from("{}"))]);
        }
    }

    #[test]
    fn answers_go_out_in_kind() {
        assert_eq!(Framing::Lines.frame(b"{}").as_ref(), b"{}\n");
        assert_eq!(Framing::Headers.frame(b"{}").as_ref(), b"Content-Length: 2\r\n\r\n{}");
    }
}
