//! A server that cannot serve, and says why to whoever asks: a client shows its user an answer, and seldom what is on stderr.

use std::io::{self, Read, Write};

use jsonrpsee::types::error::INTERNAL_ERROR_CODE;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder;

use crate::rpc::framing::{Frame, Framing, MessageDecoder};
use crate::rpc::message::{Incoming, Parsed, error, parse, respond};

/// Answers every request of stdin with `reason` until there are no more. Needs no thread but this one.
pub(crate) fn answer_all(reason: &str) -> io::Result<()> {
    answer(&mut io::stdin().lock(), &mut io::stdout().lock(), reason)
}

fn answer(input: &mut impl Read, output: &mut impl Write, reason: &str) -> io::Result<()> {
    let (mut decoder, mut buffer, mut bytes) = (MessageDecoder::default(), BytesMut::new(), vec![0; 64 * 1024]);
    loop {
        let count = match input.read(&mut bytes) {
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        buffer.extend_from_slice(&bytes[..count]);
        while let Some(frame) = if count == 0 { decoder.decode_eof(&mut buffer) } else { decoder.decode(&mut buffer) }?
        {
            let Frame::Message(message) = frame else { continue };
            if let Some(answer) = answer_to(&message, reason) {
                output.write_all(&decoder.framing().unwrap_or(Framing::Lines).frame(answer.as_bytes()))?;
                output.flush()?;
            }
        }
        if count == 0 {
            return Ok(());
        }
    }
}

fn answer_to(message: &[u8], reason: &str) -> Option<String> {
    let one = |incoming: &Incoming| match incoming {
        Incoming::Request { id, .. } => {
            let refused =
                Err(error(INTERNAL_ERROR_CODE, format!("Internal error: this server cannot run here: {reason}")));
            Some(respond(Some(id), &refused))
        }
        Incoming::Malformed { id, error } => Some(respond(id.as_ref(), &Err(error.clone()))),
        Incoming::Notification(_) | Incoming::Response => None,
    };
    match parse(message) {
        Parsed::One(incoming) => one(&incoming),
        Parsed::Batch(all) => {
            let answers: Vec<_> = all.iter().filter_map(one).collect();
            (!answers.is_empty()).then(|| format!("[{}]", answers.join(",")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_answered_once_in_the_framing_of_its_client() {
        let answers = |input: &str| {
            let mut output = Vec::new();
            answer(&mut input.as_bytes(), &mut output, "of a limit").unwrap();
            String::from_utf8(output).unwrap()
        };
        let ping = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
        let lines = answers(&format!("{ping}\n\n{}\nnonsense\n{ping}", ping.replace("\"id\":7,", "")));
        let lines: Vec<_> = lines.lines().collect();
        let [first, malformed, last] = lines[..] else { panic!("{lines:?}") };
        assert!(first.contains("this server cannot run here: of a limit") && first.contains("\"id\":7"), "{first}");
        assert!(malformed.contains("-32700") && last == first, "{lines:?}");
        let framed = answers(&format!("Content-Length: {}\r\n\r\n{ping}", ping.len()));
        assert!(framed.starts_with("Content-Length: ") && framed.ends_with(first), "{framed}");
        assert_eq!(answers(""), "");
    }
}
