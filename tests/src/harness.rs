//! A server as a client sees it: lines in, lines out, a deadline on everything.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::program;

/// Above anything that is right, on a machine that is busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(600);

/// A running server. Killed when dropped.
pub struct Server {
    pub child: Child,
    stdin: Option<ChildStdin>,
    /// Lines as they are asked for: one is read ahead, the others stay in the pipe, so that a test which does not receive is
    /// a client that does not read.
    lines: Receiver<String>,
}

/// The command with what every test wants: TCG, since a trial of KVM is not what is tested; no VMs but those that the test asks
/// for; no stray settings.
pub fn command() -> Command {
    let mut command = Command::new(program());
    // Where things are on this machine is no stray setting.
    let kept = ["SANDBOX_MCP_CACHE_DIR", "SANDBOX_MCP_QEMU"];
    for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
        if name.starts_with("SANDBOX_MCP_") && !kept.contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command.env("SANDBOX_MCP_ACCEL", "tcg").env("SANDBOX_MCP_WARM_POOL_SIZE", "0");
    // Most tests read fields; what a model reads is `results.rs`'s.
    command.env("SANDBOX_MCP_RESULTS", "data");
    command
}

impl Server {
    pub fn start() -> Server {
        Server::start_as(&mut command())
    }

    pub fn start_as(command: &mut Command) -> Server {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the server starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (sender, lines) = mpsc::sync_channel(0);
        thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Server { child, stdin, lines }
    }

    /// A server that a client has introduced itself to.
    pub fn initialized() -> Server {
        let mut server = Server::start();
        server.send(&request(0, "initialize", initialize_params("2025-11-25")));
        assert_eq!(server.receive()["result"]["protocolVersion"], "2025-11-25");
        server.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        server
    }

    pub fn send(&mut self, message: &Value) {
        self.send_text(&format!("{message}\n"));
    }

    pub fn send_text(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(text.as_bytes()).expect("the server reads");
        stdin.flush().expect("the server reads");
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The end that the server reads from, for a test that writes more than the server takes.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("stdin is open")
    }

    /// Memory of the server's own that is in use, in MiB.
    pub fn resident_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the server lives");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
    }

    /// The next message.
    pub fn receive(&mut self) -> Value {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}")),
            Err(error) => panic!("no message: {error}"),
        }
    }

    /// Asserts that nothing comes for a while, from a server that lives.
    #[track_caller]
    pub fn expect_silence(&mut self, duration: Duration) {
        match self.lines.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("the server has closed its output"),
            Ok(line) => panic!("unexpected: {line}"),
        }
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.child)
    }

    /// The VMs that the server has started and that are still there.
    pub fn virtual_machines(&self) -> Vec<u32> {
        virtual_machines(self.child.id())
    }

    /// Waits until there are so many VMs.
    #[track_caller]
    pub fn wait_for_machines(&self, count: usize, deadline: Duration) {
        let until = Instant::now() + deadline;
        while self.virtual_machines().len() != count {
            assert!(Instant::now() < until, "{} VMs instead of {count}", self.virtual_machines().len());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until so many VMs wait for a program, and nothing else goes on.
    #[track_caller]
    pub fn wait_for_pool(&mut self, size: u64) {
        let until = Instant::now() + DEADLINE;
        loop {
            self.send(&request("status", "tools/call", json!({"name": "pool_status"})));
            let vms = self.receive()["result"]["structuredContent"]["vms"].clone();
            if vms == json!({"ready": size, "restoring": 0, "running": 0}) {
                return;
            }
            assert!(Instant::now() < until, "the pool is not filled: {vms}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Holds a promise of how long something takes: one of a few attempts has to keep it, since a machine that is busy with other
/// things can be late at any of them.
#[track_caller]
pub fn promptly(promise: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 5 {
        took.push(attempt());
        if took.iter().any(|took| *took < promise) {
            return;
        }
    }
    panic!("{took:?}, never within {promise:?}");
}

/// Waits for a process, and kills it when it does not end.
fn wait_for(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().expect("the server can be waited for") {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("the server does not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The VMs that the server of this id has started and that are still there.
pub fn virtual_machines(server: u32) -> Vec<u32> {
    let is_machine = |pid: &u32| {
        // Not a QEMU that is asked for its version, nor one whose end is only to be reaped.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("microvm")
    };
    children(server).into_iter().filter(is_machine).collect()
}

/// Processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The command's name is in parentheses and may hold anything; state and parent follow.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1) == Some(pid.to_string().as_str())
    })
    .collect()
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub fn request(id: impl Into<Value>, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params})
}

pub fn initialize_params(version: &str) -> Value {
    json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}})
}

pub fn execute_request(id: impl Into<Value>, arguments: Value) -> Value {
    request(id, "tools/call", json!({"name": "execute_code", "arguments": arguments}))
}

pub const QEMU: &str = "qemu-system-x86_64";

/// A folder with a QEMU that does not say which one it is: calls wait for the engine's start.
pub fn slow_qemu() -> TempDir {
    fake_qemu("sleep 9")
}

/// A folder with a QEMU that is a shell script.
pub fn fake_qemu(script: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(QEMU);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs the binary as `echo '<request>' | sandbox-mcp` does: all of stdout, all of stderr, and the status.
pub fn pipe_through(command: &mut Command, input: &[u8]) -> (String, String, ExitStatus) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server starts");
    let mut stdin = child.stdin.take().unwrap();
    let (input, is_empty) = (input.to_vec(), input.is_empty());
    // Each pipe has a thread, so that none is waited for while another is full.
    let writing = thread::spawn(move || stdin.write_all(&input));
    let output = read_all(child.stdout.take().unwrap());
    let errors = read_all(child.stderr.take().unwrap());
    let status = wait_for(&mut child);
    let written = writing.join().unwrap();
    assert!(is_empty || written.is_ok(), "the server did not read its input: {written:?}");
    (output.join().unwrap(), errors.join().unwrap(), status)
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("output is UTF-8");
        text
    })
}

/// The structured result of one call on a server of its own.
#[track_caller]
pub fn execute(arguments: Value) -> Value {
    execute_with(&mut command(), arguments)
}

/// The same, with settings.
#[track_caller]
pub fn execute_with(command: &mut Command, arguments: Value) -> Value {
    let (stdout, stderr, status) = pipe_through(command, format!("{}\n", execute_request(1, arguments)).as_bytes());
    assert!(status.success(), "{status}: {stderr}");
    let response: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("not one line of JSON: {stdout}"));
    let result = &response["result"];
    assert_eq!(result["isError"], false, "{response}");
    assert_eq!(
        serde_json::from_str::<Value>(result["content"][0]["text"].as_str().unwrap()).unwrap(),
        result["structuredContent"],
        "text and structured content differ"
    );
    result["structuredContent"].clone()
}

/// A program, and what it must come to.
pub struct Case<'a> {
    pub language: &'a str,
    pub code: &'a str,
    pub exit_code: i64,
    pub stdout: &'a str,
    /// What stderr must contain; empty means that stderr must be empty.
    pub stderr: &'a str,
}

#[track_caller]
pub fn check(case: Case) {
    check_with(json!({"language": case.language, "code": case.code}), case.exit_code, case.stdout, case.stderr);
}

#[track_caller]
pub fn check_with(arguments: Value, exit_code: i64, stdout: &str, stderr: &str) {
    let outcome = execute(arguments);
    assert_eq!(outcome["stdout"], stdout, "{outcome}");
    assert_eq!(outcome["exit_code"], exit_code, "{outcome}");
    let found = outcome["stderr"].as_str().unwrap();
    assert!(if stderr.is_empty() { found.is_empty() } else { found.contains(stderr) }, "stderr: {found}");
}

/// A cache that shares the image with the user's and has no templates.
pub fn new_cache() -> TempDir {
    let cache = tempfile::tempdir().unwrap();
    let home = std::path::PathBuf::from(std::env::var_os("HOME").unwrap());
    let users = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), std::path::PathBuf::from);
    std::os::unix::fs::symlink(users.join("sandbox-mcp/images"), cache.path().join("images")).unwrap();
    cache
}
