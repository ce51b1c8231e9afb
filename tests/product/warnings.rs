//! What the server warns of, told to who asks.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, command, initialize_params, request};

/// A server that has something to warn of: a variable that is no setting.
fn server() -> Server {
    Server::start_as(command().env("SANDBOX_MCP_NO_SUCH", "1"))
}

#[track_caller]
fn check_warning(message: &Value) {
    assert_eq!(message["method"], "notifications/message", "{message}");
    let params = &message["params"];
    assert_eq!((&params["level"], &params["logger"]), (&json!("warning"), &json!("sandbox_mcp")));
    assert!(params["data"].as_str().unwrap().starts_with("SANDBOX_MCP_NO_SUCH is set"), "{message}");
}

#[test]
fn a_legacy_client_is_told_once_it_has_set_a_level() {
    let mut server = server();
    server.send(&request(0, "initialize", initialize_params("2025-11-25")));
    assert_eq!(server.receive()["id"], 0);
    server.expect_silence(Duration::from_millis(300));
    for level in [json!("loud"), json!(null), json!(3)] {
        server.send(&request(1, "logging/setLevel", json!({"level": level})));
        assert_eq!(server.receive()["error"]["code"], -32602);
    }
    server.send(&request(2, "logging/setLevel", json!({"level": "error"})));
    assert_eq!(server.receive(), json!({"jsonrpc": "2.0", "id": 2, "result": {}}));
    server.send(&request(3, "logging/setLevel", json!({"level": "warning"})));
    check_warning(&server.receive());
    assert_eq!(server.receive(), json!({"jsonrpc": "2.0", "id": 3, "result": {}}));
    // Once is enough.
    server.send(&request(4, "logging/setLevel", json!({"level": "warning"})));
    assert_eq!(server.receive()["id"], 4);
}

#[test]
fn a_modern_request_is_told_before_its_answer_if_it_names_a_level() {
    let mut server = server();
    let list = |id: u32, more: Value| {
        let mut meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {}});
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request(id, "tools/list", json!({"_meta": meta}))
    };
    for (id, more) in [(1, json!({})), (2, json!({"io.modelcontextprotocol/logLevel": "emergency"}))] {
        server.send(&list(id, more));
        assert_eq!(server.receive()["id"], id);
    }
    server.send(&list(3, json!({"io.modelcontextprotocol/logLevel": "debug"})));
    // What the engine has to tell by then comes with it.
    let mut told = vec![server.receive()];
    while told.last().unwrap()["id"] != 3 {
        told.push(server.receive());
    }
    check_warning(told.iter().find(|message| message["params"]["level"] == "warning").expect("a warning"));
}
