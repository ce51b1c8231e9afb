//! A cancel at each stage of a call: the work ends, no message for it comes any more, and the next call is served.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{DEADLINE, QEMU, Server, command, execute_request, initialize_params, request, slow_qemu};

fn sleep(id: u32) -> Value {
    execute_request(id, json!({"language": "shell", "code": "sleep 1000", "timeout_seconds": 300}))
}

fn cancel(id: u32) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id, "reason": "test"}})
}

/// A server that a client has introduced itself to, with settings.
fn server(arguments: &[&str]) -> Server {
    let mut server = Server::start_as(command().args(arguments));
    server.send(&request(0, "initialize", initialize_params("2025-11-25")));
    server.receive();
    server
}

/// Asks until `pool_status` has this value at this place.
fn wait_for_status(server: &mut Server, pointer: &str, value: u64) {
    let until = Instant::now() + DEADLINE;
    loop {
        server.send(&request("status", "tools/call", json!({"name": "pool_status"})));
        let status = server.receive();
        assert_eq!(status["id"], "status", "a cancelled call was answered");
        if status.pointer(&format!("/result/structuredContent{pointer}")) == Some(&json!(value)) {
            return;
        }
        assert!(Instant::now() < until, "{pointer} does not become {value}: {status}");
    }
}

/// Cancels a call and asserts that its VM goes and that nothing comes for it. Returns how long the VM took.
#[track_caller]
fn check_cancel(server: &mut Server, id: u32, machines_left: usize) -> Duration {
    let cancelled = Instant::now();
    server.send(&cancel(id));
    server.wait_for_machines(machines_left, Duration::from_secs(5));
    let took = cancelled.elapsed();
    // What the server writes after it has read the cancel comes behind this answer.
    server.send(&request("after", "ping", json!({})));
    while server.receive()["id"] != "after" {}
    server.expect_silence(Duration::from_millis(200));
    took
}

/// The promise is the server's; a machine that is busy with other tests may break it for some of the times.
#[track_caller]
fn check_promise(took: &[Duration]) {
    assert!(took.iter().any(|took| *took < Duration::from_millis(100)), "{took:?}");
}

#[track_caller]
fn check_next(server: &mut Server) {
    server.send(&execute_request("next", json!({"language": "shell", "code": "echo next"})));
    let answer = server.receive();
    assert_eq!((&answer["id"], &answer["result"]["structuredContent"]["stdout"]), (&json!("next"), &json!("next\n")));
}

#[test]
fn while_the_engine_starts() {
    let slow = slow_qemu();
    let mut server = server(&["--qemu", slow.path().join(QEMU).to_str().unwrap()]);
    server.send(&sleep(1));
    check_cancel(&mut server, 1, 0);
    // The id is free: the call is gone, although the engine still starts.
    server.send(&sleep(1));
    server.expect_silence(Duration::from_millis(200));
}

#[test]
fn while_it_waits_for_a_place() {
    let mut server = server(&["--max-concurrent-vms", "1"]);
    server.send(&sleep(1));
    wait_for_status(&mut server, "/vms/running", 1);
    server.send(&sleep(2));
    wait_for_status(&mut server, "/queued", 1);
    check_cancel(&mut server, 2, 1);
    wait_for_status(&mut server, "/queued", 0);
    // The one before it is not touched, and its end lets the next one in.
    wait_for_status(&mut server, "/vms/running", 1);
    check_cancel(&mut server, 1, 0);
    check_next(&mut server);
}

#[test]
fn while_its_vm_boots_or_is_restored() {
    for templates in ["--no-templates", "--templates"] {
        let mut server = server(&[templates]);
        let took: Vec<Duration> = (1..=4)
            .map(|id| {
                server.send(&sleep(id));
                server.wait_for_machines(1, DEADLINE);
                check_cancel(&mut server, id, 0)
            })
            .collect();
        check_promise(&took);
        check_next(&mut server);
    }
}

#[test]
fn while_its_program_runs_or_prints() {
    let mut server = server(&[]);
    for code in ["echo begun; sleep 1000", "while :; do echo more; sleep 0.01; done", "yes"] {
        let took: Vec<Duration> = (1..=4)
            .map(|id| {
                let arguments = json!({"language": "shell", "code": code, "timeout_seconds": 300});
                let params = json!({"name": "execute_code", "arguments": arguments, "_meta": {"progressToken": id}});
                server.send(&request(id, "tools/call", params));
                assert_eq!(server.receive()["params"]["progressToken"], id);
                check_cancel(&mut server, id, 0)
            })
            .collect();
        check_promise(&took);
    }
    check_next(&mut server);
}

#[test]
fn while_nobody_reads_its_output() {
    let mut server = server(&[]);
    let arguments = json!({"language": "shell", "code": "yes", "timeout_seconds": 300});
    server.send(&request(
        1,
        "tools/call",
        json!({"name": "execute_code", "arguments": arguments, "_meta": {"progressToken": 1}}),
    ));
    server.wait_for_machines(1, DEADLINE);
    std::thread::sleep(Duration::from_secs(2));
    // Its id is free again although nobody has read yet: the next call of that id is no second one.
    server.send(&cancel(1));
    server.wait_for_machines(0, Duration::from_secs(5));
    server.send(&sleep(1));
    server.wait_for_machines(1, DEADLINE);
    check_cancel(&mut server, 1, 0);
    check_next(&mut server);
}

#[test]
fn when_it_is_done_and_for_what_never_was() {
    let mut server = server(&[]);
    server.send(&execute_request(1, json!({"language": "shell", "code": "echo hi"})));
    assert_eq!(server.receive()["id"], 1);
    for id in [1, 1, 7] {
        check_cancel(&mut server, id, 0);
    }
    // As soon as it is on its way: answered or not, but not twice, and nothing else is hit.
    for id in 2..=10 {
        server.send(&execute_request(id, json!({"language": "shell", "code": "echo hi"})));
        std::thread::sleep(Duration::from_millis(u64::from(id) * 30));
        server.send(&cancel(id));
        server.send(&cancel(id));
    }
    server.send(&request("after", "ping", json!({})));
    let mut answered = Vec::new();
    loop {
        let id = server.receive()["id"].clone();
        if id == "after" {
            break;
        }
        assert!(!answered.contains(&id), "{id} is answered twice");
        answered.push(id);
    }
    check_next(&mut server);
}
