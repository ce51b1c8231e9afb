//! Cancels, ends and deaths: one answer or none, and nothing left behind.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Server, command, execute_request, is_alive, promptly, request};

fn sleep() -> Value {
    json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout_seconds": 300})
}

/// Waits until a call's program runs, as its progress shows.
pub fn start_sleeping(server: &mut Server, id: u32) {
    let params = json!({"name": "execute_code", "arguments": sleep(), "_meta": {"progressToken": id}});
    server.send(&request(id, "tools/call", params));
    assert_eq!(server.receive()["params"]["progressToken"], id);
}

fn send_signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

#[track_caller]
pub fn check_gone(pids: &[u32], deadline: Duration) {
    let until = Instant::now() + deadline;
    while pids.iter().any(|&pid| is_alive(pid)) {
        assert!(Instant::now() < until, "a VM is still there after {deadline:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_vm_lives_as_long_as_its_run() {
    let mut server = Server::initialized();
    server.send(&execute_request(1, json!({"language": "shell", "code": "echo hi"})));
    server.wait_for_machines(1, DEADLINE);
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "hi\n");
    server.wait_for_machines(0, Duration::from_millis(500));
}

#[test]
fn calls_run_at_once() {
    let mut server = Server::initialized();
    for id in 1..=2 {
        start_sleeping(&mut server, id);
    }
    assert_eq!(server.virtual_machines().len(), 2);
}

#[test]
fn a_cancelled_call_is_not_answered_and_its_vm_is_gone_within_100_ms() {
    let mut server = Server::initialized();
    let cancel = |id: u32| {
        let params = json!({"requestId": id, "reason": "test"});
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
    };
    let mut took = Vec::new();
    // The promise is the server's; a machine that is busy with other tests may break it for one of three.
    for id in 1..=3 {
        start_sleeping(&mut server, id);
        let machines = server.virtual_machines();
        assert_eq!(machines.len(), 1);
        let begun = Instant::now();
        server.send(&cancel(id));
        check_gone(&machines, Duration::from_secs(2));
        took.push(begun.elapsed());
    }
    assert!(took.iter().any(|took| *took < Duration::from_millis(100)), "{took:?}");
    // Twice, unknown, malformed: all ignored.
    server.send(&cancel(1));
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "unknown"}}));
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled"}));
    server.expect_silence(Duration::from_millis(300));
    server.send(&request(4, "ping", json!({})));
    assert_eq!(server.receive()["id"], 4);
}

#[test]
fn a_cancel_while_booting_or_waiting_leaves_nothing() {
    let mut server = Server::initialized();
    for id in 1..=12 {
        server.send(&execute_request(id, sleep()));
    }
    std::thread::sleep(Duration::from_millis(300));
    for id in 1..=12 {
        server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}));
    }
    server.wait_for_machines(0, Duration::from_secs(2));
    server.send(&execute_request(13, json!({"language": "shell", "code": "echo next"})));
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "next\n");
}

#[test]
fn a_client_that_closes_its_end_is_gone_with_its_calls() {
    promptly(Duration::from_secs(1), || {
        let mut server = Server::initialized();
        start_sleeping(&mut server, 1);
        let machines = server.virtual_machines();
        let closed = Instant::now();
        server.close_stdin();
        assert!(server.wait().success());
        let took = closed.elapsed();
        check_gone(&machines, Duration::from_millis(1));
        took
    });
}

#[test]
fn sigterm_and_sigint_end_the_server_and_its_vms() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = Server::initialized();
        start_sleeping(&mut server, 1);
        let machines = server.virtual_machines();
        send_signal(server.child.id(), signal);
        assert!(server.wait().success());
        check_gone(&machines, Duration::from_millis(1));
    }
}

#[test]
fn a_piped_call_can_be_interrupted() {
    let mut server = Server::start();
    server.send(&execute_request(1, sleep()));
    server.close_stdin();
    server.wait_for_machines(1, DEADLINE);
    let machines = server.virtual_machines();
    send_signal(server.child.id(), Signal::SIGINT);
    assert!(server.wait().success());
    check_gone(&machines, Duration::from_millis(1));
}

#[test]
fn a_killed_server_takes_its_vms_along() {
    let mut server = Server::initialized();
    start_sleeping(&mut server, 1);
    let machines = server.virtual_machines();
    assert_eq!(machines.len(), 1);
    send_signal(server.child.id(), Signal::SIGKILL);
    server.wait();
    check_gone(&machines, Duration::from_secs(1));
}

#[test]
fn a_killed_vm_is_an_unknown_outcome_and_the_server_goes_on() {
    let mut server = Server::initialized();
    start_sleeping(&mut server, 1);
    send_signal(server.virtual_machines()[0], Signal::SIGKILL);
    let response = server.receive();
    assert_eq!(response["result"]["isError"], true, "{response}");
    assert_eq!(response["result"]["_meta"]["sandbox-mcp/error"]["code"], "outcome_unknown");
    let text = response["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("killed by signal 9") && text.contains("no memory left"), "{text}");
    server.send(&execute_request(2, json!({"language": "shell", "code": "echo next"})));
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "next\n");
}

#[test]
fn a_vm_is_confined_on_the_host() {
    let mut server = Server::initialized();
    start_sleeping(&mut server, 1);
    let pid = server.virtual_machines()[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_string();
    assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), ("2".into(), "1".into()));
    assert_eq!(field("CapEff:"), "0000000000000000");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    if let Ok(theirs) = fs::read_link(format!("/proc/{pid}/ns/net")) {
        assert_ne!(own, theirs, "QEMU is in the host's network");
    }
    if let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) {
        for entry in entries.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let is_known =
                ["socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:"].iter().any(|kind| target.starts_with(kind))
                    || ["vmlinux", "root.erofs", "agent.cpio", "qemu-system-x86_64", "/ram", "/code"]
                        .iter()
                        .any(|name| target.ends_with(name));
            assert!(is_known, "QEMU holds {target}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")), "{limits}");
}

#[test]
fn five_hundred_runs_leave_nothing() {
    const RUNS: u32 = 500;
    let mut server = Server::start_as(command().args(["--warm-pool-size", "1"]));
    let send = |server: &mut Server, id: u32| {
        server.send(&execute_request(id, json!({"language": "shell", "code": "echo hi > file"})));
    };
    let receive = |server: &mut Server| {
        let response = server.receive();
        assert_eq!(response["result"]["structuredContent"]["exit_code"], 0, "{response}");
    };
    // The first ones open what stays open, and fill the caches of the allocator.
    for id in 0..20 {
        send(&mut server, id);
        receive(&mut server);
    }
    let before = settle(&server, None);
    send(&mut server, 20);
    for id in 21..20 + RUNS {
        send(&mut server, id);
        receive(&mut server);
    }
    receive(&mut server);
    let after = settle(&server, Some(&before));
    assert!(after.memory_mb < before.memory_mb + 16, "{before:?} became {after:?}");
    assert_eq!(after.memory_files, before.memory_files);
}

/// What a server holds while one VM waits.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    memory_mb: u64,
    /// Files in memory, which guests' memory is.
    memory_files: usize,
}

/// Waits until a server does nothing: answers do not wait for the end of their VM, nor for its being reaped.
fn settle(server: &Server, no_more_than: Option<&Holdings>) -> Holdings {
    let pid = server.child.id();
    let count = |path: String| fs::read_dir(path).unwrap().count();
    let until = Instant::now() + DEADLINE;
    let mut last = usize::MAX;
    loop {
        server.wait_for_machines(1, DEADLINE);
        let descriptors = count(format!("/proc/{pid}/fd"));
        let enough = no_more_than.is_none_or(|most| descriptors <= most.descriptors);
        if descriptors == last && enough {
            let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let is_memory = |link: &fs::DirEntry| fs::read_link(link.path()).is_ok_and(|to| to.starts_with("/memfd:"));
            let memory_files = links.filter(is_memory).count();
            return Holdings { descriptors, memory_mb: server.resident_mb(), memory_files };
        }
        assert!(Instant::now() < until, "{descriptors} descriptors are open; before it was {no_more_than:?}");
        last = descriptors;
        std::thread::sleep(Duration::from_millis(500));
    }
}
