//! The parsers of what clients send, fed with anything: `cargo test` runs the corpus in `__fuzz__` and a thousand random
//! inputs each; `cargo bolero test fuzz::lines` goes on for as long as one likes.

use serde_json::Value;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder;

use crate::rpc::framing::{Frame, Framing, MessageDecoder};
use crate::rpc::message::{Incoming, Parsed, RequestKey, parse, respond};

/// What the input comes to when it is read in pieces: the frames, and the fault that ended it.
fn decode(input: &[u8], piece: usize) -> (Vec<Frame>, Option<String>) {
    let mut decoder = MessageDecoder::default();
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in input.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault.to_string())),
            }
        }
        assert!(buffer.len() <= input.len(), "the decoder makes bytes");
    }
    loop {
        match decoder.decode_eof(&mut buffer) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break,
            Err(fault) => return (frames, Some(fault.to_string())),
        }
    }
    assert!(buffer.is_empty(), "the end leaves {} bytes", buffer.len());
    (frames, None)
}

/// How the input is cut must not matter. A fault may be seen earlier or later, but not among other frames.
#[track_caller]
fn decode_in_any_pieces(input: &[u8]) -> (Vec<Frame>, Option<String>) {
    let whole = decode(input, input.len().max(1));
    for piece in [1, 2, 3, 7, 64] {
        assert_eq!(decode(input, piece), whole, "in pieces of {piece}");
    }
    whole
}

/// Whatever is in a frame, it is answered with one line of JSON, or there is nothing to answer.
fn check_message(bytes: &[u8]) {
    let check = |incoming: &Incoming| match incoming {
        Incoming::Request { id, .. } => {
            let answer: Value = serde_json::from_str(&respond(Some(id), &Ok(Box::default()))).unwrap();
            let echoed = serde_json::value::to_raw_value(&answer["id"]).unwrap();
            if let RequestKey::Text(_) = id.key() {
                assert_eq!(RequestKey::of(&echoed), Some(id.key()), "an id is echoed as another");
            } else {
                assert!(answer["id"].is_number(), "{answer}");
            }
        }
        Incoming::Malformed { id, error } => {
            let answer = respond(id.as_ref(), &Err(error.clone()));
            assert!(!answer.contains('\n'), "{answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert!([-32700, -32600].contains(&answer["error"]["code"].as_i64().unwrap()), "{answer}");
            // What is wrong is quoted, but not at any length.
            assert!(answer.to_string().len() < 4096, "{answer}");
        }
        Incoming::Notification(_) | Incoming::Response => {}
    };
    match parse(bytes) {
        Parsed::One(incoming) => check(&incoming),
        Parsed::Batch(all) => all.iter().for_each(check),
    }
}

fn check_messages(frames: &[Frame]) {
    for frame in frames {
        if let Frame::Message(bytes) = frame {
            check_message(bytes);
        }
    }
}

fn check_lines(input: &[u8]) {
    // So that no header block is recognised.
    let input = [b"{}\n", input].concat();
    let (frames, fault) = decode_in_any_pieces(&input);
    assert_eq!(fault, None, "lines cannot be wrong");
    // A line is what stands between two line feeds; blank ones are none.
    let expected = input.split(|&byte| byte == b'\n').filter(|line| {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        !line.trim_ascii().is_empty()
    });
    assert_eq!(frames.len(), expected.count());
    check_messages(&frames);
    // Whatever came before, the next line is read.
    let (frames, _) = decode(&[input.as_slice(), b"\n{\"next\":1}\n"].concat(), 64);
    assert_eq!(frames.last(), Some(&Frame::Message("{\"next\":1}".into())));
}

fn check_headers(input: &[u8]) {
    let input = [b"Content-Length: 2\r\n\r\n{}", input].concat();
    let (frames, _) = decode_in_any_pieces(&input);
    assert_eq!(frames.first(), Some(&Frame::Message("{}".into())));
    check_messages(&frames);
}

#[test]
fn lines() {
    bolero::check!().for_each(|input: &[u8]| check_lines(input));
}

#[test]
fn headers() {
    bolero::check!().for_each(|input: &[u8]| check_headers(input));
}

#[test]
fn messages() {
    bolero::check!().for_each(|input: &[u8]| check_message(input));
}

/// Random bytes seldom look like anything: half of them stand for what means something to one of the parsers.
#[test]
fn fragments() {
    const FRAGMENTS: [&[u8]; 20] = [
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\xef\xbb\xbf",
        b"Content-Length: ",
        b"content-type:",
        b"2",
        b"14",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"",
        b"\"jsonrpc\":\"2.0\"",
        b"\"id\":-1",
        b"\"method\":\"ping\"",
        b"\"params\":{}",
    ];
    bolero::check!().for_each(|input: &[u8]| {
        let fragment = |byte: &u8| match FRAGMENTS.get(usize::from(*byte) % (2 * FRAGMENTS.len())) {
            Some(fragment) => fragment.to_vec(),
            None => vec![*byte],
        };
        let input: Vec<u8> = input.iter().flat_map(fragment).collect();
        check_lines(&input);
        check_headers(&input);
        check_message(&input);
    });
}

#[test]
fn what_is_framed_is_read_as_it_was() {
    bolero::check!().for_each(|input: &[u8]| {
        // As all that we send: JSON without a line feed of its own.
        let message = serde_json::to_vec(&[String::from_utf8_lossy(input)]).unwrap();
        for framing in [Framing::Lines, Framing::Headers] {
            let (frames, fault) = decode_in_any_pieces(&framing.frame(&message).repeat(3));
            let expected = std::iter::repeat_with(|| Frame::Message(message.clone().into()));
            assert_eq!((frames, fault), (expected.take(3).collect(), None));
        }
    });
}
