//! The tasks extension: a long call of a client that knows of it is answered with a task.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, request};

const EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// A request of a client that knows tasks, or does not.
fn modern(id: u64, method: &str, mut params: Value, knows_tasks: bool) -> Value {
    let extensions = if knows_tasks { json!({EXTENSION: {}}) } else { json!({}) };
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
    });
    request(id, method, params)
}

fn run(id: u64, code: &str, knows_tasks: bool) -> Value {
    let arguments = json!({"language": "shell", "code": code});
    modern(id, "tools/call", json!({"name": "execute_code", "arguments": arguments}), knows_tasks)
}

fn ask(server: &mut Server, method: &str, task: &str) -> Value {
    server.send(&modern(9, method, json!({"taskId": task}), true));
    server.receive()
}

/// What has become of a task.
#[track_caller]
fn wait_for(server: &mut Server, task: &str) -> Value {
    let begun = Instant::now();
    loop {
        let got = ask(server, "tasks/get", task)["result"].clone();
        assert_eq!(got["resultType"], "complete", "{got}");
        if got["status"] != "working" {
            return got;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{got}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_long_call_becomes_a_task_for_who_knows_of_it() {
    let mut server = Server::start();
    server.send(&modern(1, "server/discover", json!({}), true));
    assert_eq!(server.receive()["result"]["capabilities"]["extensions"], json!({EXTENSION: {}}));
    // What is short needs none.
    server.send(&run(2, "echo short", true));
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "short\n");

    server.send(&run(3, "sleep 8; echo late", true));
    let created = server.receive()["result"].clone();
    assert_eq!((&created["resultType"], &created["status"]), (&json!("task"), &json!("working")), "{created}");
    assert!(created["pollIntervalMs"].is_u64() && created["ttlMs"].is_u64() && created["createdAt"].is_string());
    // Its request is over: the id can be used again, and a late cancel of it is ignored.
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}}));
    let got = wait_for(&mut server, created["taskId"].as_str().unwrap());
    assert_eq!(
        (&got["status"], &got["result"]["structuredContent"]["stdout"]),
        (&json!("completed"), &json!("late\n"))
    );
    assert_eq!((&got["result"]["resultType"], &got["result"]["isError"]), (&json!("complete"), &json!(false)), "{got}");

    // Who does not know of it waits.
    server.send(&run(4, "sleep 7; echo waited for", false));
    assert_eq!(server.receive()["result"]["structuredContent"]["stdout"], "waited for\n");
    server.send(&request(
        5,
        "tools/call",
        json!({"name": "execute_code", "arguments": {"language": "shell", "code": "sleep 6"}}),
    ));
    assert_eq!(server.receive()["result"]["structuredContent"]["exit_code"], 0);
}

#[test]
fn a_task_is_cancelled_and_an_unknown_one_is_an_error() {
    let mut server = Server::start();
    server.send(&run(1, "sleep 100", true));
    let created = server.receive()["result"].clone();
    let task = created["taskId"].as_str().unwrap();
    assert_eq!(ask(&mut server, "tasks/update", task)["result"]["resultType"], "complete");
    assert_eq!(ask(&mut server, "tasks/cancel", task)["result"]["resultType"], "complete");
    assert_eq!(wait_for(&mut server, task)["status"], "cancelled");
    server.send(&request(2, "tools/call", json!({"name": "pool_status", "arguments": {}})));
    assert_eq!(server.receive()["result"]["structuredContent"]["vms"]["running"], 0);
    for method in ["tasks/get", "tasks/cancel", "tasks/update"] {
        let fault = ask(&mut server, method, "t-00")["error"].clone();
        assert!(fault["code"] == -32602 && fault["message"].as_str().unwrap().contains("t-00"), "{method}: {fault}");
    }
    server.send(&request(2, "tasks/get", json!({"taskId": task})));
    assert!(server.receive()["error"]["message"].as_str().unwrap().contains("protocolVersion"));
    // One that runs ends with its client.
    server.send(&run(3, "sleep 100", true));
    assert_eq!(server.receive()["result"]["status"], "working");
    let begun = Instant::now();
    server.close_stdin();
    assert!(server.wait().success() && begun.elapsed() < Duration::from_secs(30));
}
