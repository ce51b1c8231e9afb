//! How the server ends: nothing that is ready is lost, its exit status tells the truth, and it does not take long.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    QEMU, Server, command, execute_request, initialize_params, pipe_through, promptly, request, slow_qemu,
};

fn lines(messages: &[Value]) -> String {
    messages.iter().map(|message| format!("{message}\n")).collect()
}

/// Sends a signal to the server alone.
fn send_signal(server: &Server, signal: Signal) {
    kill(Pid::from_raw(server.child.id() as i32), signal).unwrap();
}

#[test]
fn an_end_of_input_after_a_handshake_swallows_no_answer() {
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let mut messages = vec![request(0, "initialize", initialize_params("2025-11-25")), initialized];
    messages.extend((1..=50).map(|id| request(id, "tools/list", json!({}))));
    let (stdout, stderr, status) = pipe_through(&mut command(), lines(&messages).as_bytes());
    assert!(status.success(), "{stderr}");
    let mut ids: Vec<u64> = stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .inspect(|answer| assert!(answer["result"].is_object(), "{answer}"))
        .map(|answer| answer["id"].as_u64().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..=50).collect::<Vec<_>>());
}

#[test]
fn an_end_of_input_after_a_handshake_ends_runs_and_nothing_else() {
    let sleep = json!({"language": "shell", "code": "sleep 1000", "timeout_seconds": 300});
    let messages = [
        request(0, "initialize", initialize_params("2025-11-25")),
        execute_request(1, sleep),
        request(2, "tools/list", json!({})),
        request(3, "tools/call", json!({"name": "pool_status"})),
        request(4, "tools/call", json!({"name": "no_such_tool"})),
    ];
    let (stdout, stderr, status) = pipe_through(&mut command(), lines(&messages).as_bytes());
    assert!(status.success(), "{stderr}");
    let mut ids: Vec<u64> =
        stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 2, 3, 4], "{stdout}");
}

#[test]
fn a_call_that_waits_for_the_engine_is_ended_like_any_other() {
    let slow = slow_qemu();
    promptly(Duration::from_secs(2), || {
        let mut server = Server::start_as(command().arg("--qemu").arg(slow.path().join(QEMU)));
        server.send(&request(0, "initialize", initialize_params("2025-11-25")));
        server.receive();
        server.send(&execute_request(1, json!({"language": "shell", "code": "true"})));
        server.send(&request(2, "ping", json!({})));
        assert_eq!(server.receive()["id"], 2);
        let closed = Instant::now();
        server.close_stdin();
        assert!(server.wait().success());
        closed.elapsed()
    });
}

/// The exit status of a server that answers one ping into `stdout`.
fn status_when_writing_to(stdout: File) -> (bool, String) {
    let mut child = command().stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", request(1, "ping", json!({}))).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn answers_that_cannot_be_written_are_a_failure() {
    let (success, stderr) = status_when_writing_to(File::options().write(true).open("/dev/full").unwrap());
    assert!(!success && stderr.contains("writing answers"), "{stderr}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (success, stderr) = status_when_writing_to(File::from(OwnedFd::from(writer)));
    assert!(success && stderr.is_empty(), "{stderr}");
}

#[test]
fn a_broken_framing_is_answered_and_a_failure() {
    let ping = request(1, "ping", json!({})).to_string();
    let input = format!("Content-Length: {}\r\n\r\n{ping}Content-Length: many\r\n\r\n{ping}", ping.len());
    let (stdout, stderr, status) = pipe_through(&mut command(), input.as_bytes());
    assert_eq!(status.code(), Some(1));
    assert!(stdout.contains(r#""id":1,"result":{}"#) && stdout.contains(r#""code":-32600"#), "{stdout}");
    assert!(stderr.contains("valid Content-Length"), "{stderr}");
}

/// A server whose answers are stuck, since nobody reads them.
fn stuck_server() -> Server {
    let mut server = Server::start();
    let mut stdin = server.take_stdin();
    // More answers than pipes and queues hold. The server stops reading as well, so a thread has to wait for it.
    std::thread::spawn(move || {
        for id in 0..100_000 {
            if writeln!(stdin, "{}", request(id, "tools/list", json!({}))).is_err() {
                return;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(500));
    server
}

#[test]
fn a_client_that_does_not_read_cannot_keep_a_server_that_is_asked_to_end() {
    promptly(Duration::from_millis(1800), || {
        let mut server = stuck_server();
        assert!(server.resident_mb() < 200, "{} MiB", server.resident_mb());
        let asked = Instant::now();
        send_signal(&server, Signal::SIGTERM);
        assert!(server.wait().success());
        // What was ready got its second to be read, and no more.
        assert!(asked.elapsed() > Duration::from_millis(900), "{:?}", asked.elapsed());
        asked.elapsed()
    });
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    promptly(Duration::from_millis(900), || {
        let mut server = stuck_server();
        send_signal(&server, Signal::SIGTERM);
        let asked = Instant::now();
        std::thread::sleep(Duration::from_millis(200));
        send_signal(&server, Signal::SIGINT);
        server.wait();
        asked.elapsed()
    });
}
