//! A guest that lies in the tunnel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_engine::{CancellationToken, ExecuteError, Installation, Target, TunnelStream};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::TUNNEL_STREAMS_LIMIT;
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::wire::{self, GuestFrame};

use crate::guest::{PLAY, Text, bytes, check, engine, finished, output, started};

/// The same as [`execute`], in a VM with a tunnel whose handler reads nothing.
async fn install(script: &str, frames: &[u8]) -> Result<ExecuteOutcome, ExecuteError> {
    let (engine, _folder) = engine(script, frames).await;
    let mut request = ExecuteInput::new(Language::Shell, "true");
    request.timeout_seconds = Some(1);
    let handler = |_: Target, stream: TunnelStream| async move {
        let _stream = stream;
        std::future::pending().await
    };
    let installation = Installation { writable_mb: 1024, parts: 0, disk: None, handler: Arc::new(handler) };
    let result = engine.run_installer(installation, request, &mut Text::default(), CancellationToken::new()).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), engine.shut_down()).await;
    assert!(ended.is_ok(), "a process was left behind");
    result
}

/// A frame of yamux, whose header this is by its specification: version, type, flags, stream, length.
fn yamux(kind: u8, flags: u8, stream: u32, length: u32, body: &[u8]) -> Vec<u8> {
    [&[0, kind, 0, flags], &stream.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
}

const DATA: u8 = 0;
const PING: u8 = 2;
const SYN: u8 = 1;
const ACK: u8 = 2;

/// A stream that says properly where it leads.
fn opened(stream: u32) -> Vec<u8> {
    let target = wire::encode(&Target::Registry).unwrap();
    yamux(DATA, SYN, stream, target.len() as u32, &target)
}

fn tunnel(bytes: Vec<u8>) -> Vec<GuestFrame> {
    bytes.chunks(60_000).map(|chunk| GuestFrame::Tunnel(chunk.into())).collect()
}

#[tokio::test]
async fn a_guest_that_lies_in_the_tunnel_ends_its_vm() {
    let too_many = (0..=TUNNEL_STREAMS_LIMIT as u32).flat_map(|stream| opened(2 * stream + 1)).collect();
    let body = vec![7; 60_000];
    let more_than_the_window = (0..5).flat_map(|_| yamux(DATA, 0, 1, 60_000, &body));
    let window = [opened(1), more_than_the_window.collect()].concat();
    let begins = |bytes: &[u8]| yamux(DATA, SYN, 1, bytes.len() as u32, bytes);
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "in the tunnel: decode error"),
        (yamux(DATA, SYN, 1, u32::MAX, b""), "in the tunnel: decode error: frame body is too large"),
        (yamux(3, 0, 0, 0, b""), "the tunnel was closed"),
        (yamux(PING, ACK, 0, 99, b""), "it broke the rules"),
        (opened(2), "it broke the rules"),
        ([opened(1), opened(1)].concat(), "it broke the rules"),
        (too_many, "it broke the rules"),
        (window, "it broke the rules"),
        (begins(&[255; 4]), "a stream of the tunnel begins with a frame of 4294967295 bytes"),
        (begins(&[1, 0, 0, 0, 200]), "a stream of the tunnel begins with a malformed frame"),
    ] {
        let result = install(PLAY, &crate::guest::bytes(&[started(), tunnel(bytes)].concat())).await;
        let found = result.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"));
        assert!(found.contains("the guest broke the protocol: "), "{found}");
        assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
    }
    let empty = install(PLAY, &bytes(&[started(), vec![GuestFrame::Tunnel(Vec::new())]].concat())).await;
    assert!(empty.unwrap_err().to_string().contains("an empty frame"));
}

#[tokio::test]
async fn a_tunnel_is_there_only_where_the_host_wants_one() {
    let frames = [started(), tunnel(opened(1))].concat();
    check(PLAY, &bytes(&frames), "output was expected, a tunnel's bytes came").await;
}

#[tokio::test]
async fn what_is_honest_in_the_tunnel_does_not_disturb_the_program() {
    let many = (0..TUNNEL_STREAMS_LIMIT as u32).flat_map(|stream| opened(2 * stream + 1)).collect();
    let frames = [started(), tunnel(many), vec![output("hi"), finished()]].concat();
    let outcome = install(PLAY, &bytes(&frames)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (3, "hi"));
}

/// It asks without end and reads no answer. The host then stops to read, and the deadline ends it.
#[tokio::test]
async fn a_flood_in_the_tunnel_lasts_until_the_timeout() {
    let head = bytes(&started());
    let pings = (0..4000).flat_map(|number| yamux(PING, SYN, 0, number, b"")).collect();
    let frames = [head.clone(), bytes(&tunnel(pings))].concat();
    let script =
        format!("head -c {} $frames >&3; while :; do tail -c +{} $frames >&3; done", head.len(), head.len() + 1);
    let begun = Instant::now();
    let outcome = install(&script, &frames).await.unwrap();
    assert!(outcome.timed_out, "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
