//! JSON-RPC and MCP as clients speak them, well and badly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, command, execute_request, initialize_params, pipe_through, request};

const SHELL: &str = r#"{"language":"shell","code":"echo hi"}"#;

fn shell() -> Value {
    serde_json::from_str(SHELL).unwrap()
}

/// The error code that a line is answered with, and the id.
#[track_caller]
fn check_error(server: &mut Server, line: &str, id: Value, code: i64) {
    server.send_text(&format!("{line}\n"));
    let response = server.receive();
    assert_eq!((&response["id"], &response["error"]["code"]), (&id, &json!(code)), "{line}: {response}");
}

#[test]
fn one_piped_request_is_one_line_and_a_success() {
    for input in [format!("{}\n", execute_request("x", shell())), execute_request("x", shell()).to_string()] {
        let (stdout, stderr, status) = pipe_through(&mut command(), input.as_bytes());
        assert!(status.success(), "{stderr}");
        assert_eq!(stdout.matches('\n').count(), 1, "{stdout}");
        let response: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            (&response["id"], &response["result"]["structuredContent"]["stdout"]),
            (&json!("x"), &json!("hi\n"))
        );
        assert!(response["result"].get("resultType").is_none());
    }
}

#[test]
fn an_empty_input_is_no_error() {
    for input in ["", "\n", "\r\n\n"] {
        let (stdout, _, status) = pipe_through(&mut command(), input.as_bytes());
        assert!(status.success() && stdout.is_empty(), "{stdout}");
    }
}

#[test]
fn content_length_headers_are_answered_in_kind() {
    let message = execute_request(1, shell()).to_string();
    let input = format!("Content-Length: {}\r\n\r\n{message}", message.len());
    let (stdout, _, status) = pipe_through(&mut command(), input.as_bytes());
    let (headers, body) = stdout.split_once("\r\n\r\n").unwrap();
    assert!(status.success());
    assert_eq!(headers, format!("Content-Length: {}", body.len()));
    let response: Value = serde_json::from_str(body).unwrap();
    assert_eq!(response["result"]["structuredContent"]["stdout"], "hi\n");
}

#[test]
fn what_is_malformed_is_answered_and_the_server_goes_on() {
    let mut server = Server::start();
    check_error(&mut server, "{", Value::Null, -32700);
    check_error(&mut server, r#"{"jsonrpc":"1.0","id":3,"method":"ping"}"#, json!(3), -32600);
    check_error(&mut server, r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, Value::Null, -32600);
    check_error(&mut server, r#"{"jsonrpc":"2.0","id":-4,"method":"no/such"}"#, json!(-4), -32601);
    check_error(
        &mut server,
        r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"no_such"}}"#,
        json!(5),
        -32602,
    );
    check_error(&mut server, r#"{"jsonrpc":"2.0","id":6,"method":"tools/call"}"#, json!(6), -32602);
    check_error(&mut server, r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":[]}"#, json!(7), -32602);
    check_error(
        &mut server,
        r#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"execute_code","_meta":{"progressToken":{}}}}"#,
        json!(8),
        -32602,
    );
    check_error(&mut server, &"[".repeat(100_000), Value::Null, -32700);
    check_error(&mut server, "[]", Value::Null, -32600);
    // Neither notifications nor answers are answered.
    server.send_text("{\"jsonrpc\":\"2.0\",\"method\":\"no/such\"}\n{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{}}\n");
    server.send(&request(10, "ping", json!({})));
    assert_eq!(server.receive(), json!({"jsonrpc": "2.0", "id": 10, "result": {}}));
}

#[test]
fn a_message_that_is_too_long_is_answered_by_its_id() {
    let mut server = Server::start();
    let code = "#".repeat(sandbox_schemas::limits::MESSAGE_MAX_BYTES);
    check_error(&mut server, &execute_request("long", json!({"code": code})).to_string(), json!("long"), -32600);
    check_error(&mut server, &code, Value::Null, -32600);
    server.send(&request(2, "ping", json!({})));
    assert_eq!(server.receive()["id"], 2);
}

#[test]
fn input_may_come_byte_by_byte() {
    let mut server = Server::start();
    for byte in format!("\u{feff}{}\r\n", request("é", "ping", json!({}))).chars() {
        server.send_text(&byte.to_string());
    }
    assert_eq!(server.receive(), json!({"jsonrpc": "2.0", "id": "é", "result": {}}));
}

#[test]
fn ids_that_differ_by_type_are_two_and_a_live_id_is_not_taken_twice() {
    let mut server = Server::initialized();
    let sleep = json!({"language": "shell", "code": "sleep 1"});
    server.send(&execute_request(1, sleep.clone()));
    server.send(&execute_request("1", sleep.clone()));
    server.send(&execute_request(1, sleep));
    let refused = server.receive();
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(1), &json!(-32600)));
    let mut ids = [server.receive(), server.receive()].map(|response| response["id"].to_string());
    ids.sort();
    assert_eq!(ids, ["\"1\"", "1"]);
}

#[test]
fn an_id_can_be_used_again_as_soon_as_it_is_answered() {
    let mut server = Server::start();
    for _ in 0..500 {
        server.send(&request(1, "ping", json!({})));
        assert_eq!(server.receive(), json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    }
}

/// What `schemas/tools` has of each tool, by its name.
fn golden_tools() -> BTreeMap<String, Value> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/tools")).unwrap().flatten();
    let tools = files.map(|file| serde_json::from_str::<Value>(&fs::read_to_string(file.path()).unwrap()).unwrap());
    tools.map(|tool| (tool["name"].as_str().unwrap().to_string(), tool)).collect()
}

fn by_name(tools: &Value) -> BTreeMap<String, Value> {
    let tools = tools.as_array().unwrap().iter();
    tools.map(|tool| (tool["name"].as_str().unwrap().to_string(), tool.clone())).collect()
}

#[test]
fn the_tools_are_those_of_the_golden_files_and_of_the_command() {
    let mut server = Server::start_as(command().args(["--share", "/tmp:rw"]));
    server.send(&request(1, "tools/list", json!({})));
    assert_eq!(by_name(&server.receive()["result"]["tools"]), golden_tools());

    let (stdout, _, status) = pipe_through(command().arg("schema"), b"");
    assert!(status.success());
    let printed: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(by_name(&printed["tools"]), golden_tools());
    server.send(&request(2, "initialize", initialize_params("2025-11-25")));
    assert_eq!(server.receive()["result"]["instructions"], printed["instructions"]);
}

#[test]
fn results_satisfy_the_advertised_schemas() {
    let mut server = Server::initialized();
    let run = |arguments: Value| json!({"name": "execute_code", "arguments": arguments});
    for params in [
        run(shell()),
        run(json!({"language": "shell", "code": "echo -e '\\xff'; echo no >&2; kill -9 $$"})),
        run(json!({"language": "python", "code": "print('x' * 2_000_000)\nwhile True: pass", "timeout_seconds": 1})),
        json!({"name": "pool_status"}),
    ] {
        server.send(&request(1, "tools/call", params.clone()));
        let result = server.receive()["result"].clone();
        let schema = &golden_tools()[params["name"].as_str().unwrap()]["outputSchema"];
        jsonschema::meta::validate(schema).unwrap();
        let faults: Vec<String> = jsonschema::validator_for(schema)
            .unwrap()
            .iter_errors(&result["structuredContent"])
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{params}: {faults:?}");
        // Nothing that the schema does not tell of.
        let forms = schema["anyOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
        for name in result["structuredContent"].as_object().unwrap().keys() {
            let is_known = forms.iter().any(|form| form["properties"].get(name).is_some());
            assert!(is_known, "{params}: {name} is in no schema");
        }
    }
}

#[test]
fn both_eras_are_spoken_on_one_connection() {
    let modern = |version: &str| {
        json!({"_meta": {"io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {}, "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"}}})
    };
    let mut server = Server::start();
    server.send(&request(1, "server/discover", modern("2026-07-28")));
    let discovered = server.receive()["result"].clone();
    assert_eq!(
        (&discovered["resultType"], &discovered["supportedVersions"][0]),
        (&json!("complete"), &json!("2026-07-28"))
    );
    assert_eq!(discovered["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "sandbox-mcp");

    server.send(&request(2, "tools/list", modern("2026-07-28")));
    let listed = server.receive()["result"].clone();
    assert_eq!((&listed["resultType"], &listed["cacheScope"]), (&json!("complete"), &json!("public")));

    server.send(&request(3, "tools/list", modern("2031-01-01")));
    let refused = server.receive()["error"].clone();
    assert_eq!((&refused["code"], &refused["data"]["requested"]), (&json!(-32022), &json!("2031-01-01")));

    server.send(&request(4, "initialize", initialize_params("2024-11-05")));
    assert_eq!(server.receive()["result"]["protocolVersion"], "2024-11-05");
    server.send(&request(5, "tools/list", json!({})));
    let tool = server.receive()["result"]["tools"][0].clone();
    assert!(tool.get("outputSchema").is_none() && tool.get("title").is_none() && tool.get("annotations").is_none());
}

#[test]
fn batches_are_for_those_who_may_send_them() {
    let batch =
        json!([request(1, "ping", json!({})), {"jsonrpc": "2.0", "method": "x"}, 5, request(2, "no/such", json!({}))]);
    let mut server = Server::start();
    server.send(&batch);
    let answers = server.receive();
    let codes: Vec<String> =
        answers.as_array().unwrap().iter().map(|a| format!("{} {}", a["id"], a["error"]["code"])).collect();
    assert_eq!(codes, ["1 null", "null -32600", "2 -32601"]);

    let mut server = Server::initialized();
    server.send(&batch);
    assert_eq!(server.receive()["error"]["code"], -32600);
    server.expect_silence(Duration::from_millis(100));
}

#[test]
fn what_is_agreed_on_holds_for_what_comes_behind_it_and_for_nothing_before() {
    let batch = json!([request(3, "ping", json!({}))]);
    let list = |id: u32| request(id, "tools/list", json!({}));
    // At once, many times: an order that is luck would show.
    for _ in 0..20 {
        let messages = [list(1), request(2, "initialize", initialize_params("2024-11-05")), batch.clone(), list(4)]
            .map(|m| m.to_string());
        let (stdout, _, status) = pipe_through(&mut command(), messages.join("\n").as_bytes());
        assert!(status.success());
        let answers: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let answer = |id: Value| answers.iter().find(|answer| answer["id"] == id).unwrap_or_else(|| panic!("{stdout}"));
        assert_eq!(answers.len(), 4, "{stdout}");
        assert!(answer(json!(1))["result"]["tools"][0].get("outputSchema").is_some(), "before the handshake");
        assert_eq!(answer(Value::Null)["error"]["code"], -32600, "a batch is not of this version");
        assert!(answer(json!(4))["result"]["tools"][0].get("outputSchema").is_none(), "behind the handshake");
    }
}

#[test]
fn a_batch_that_is_too_long_is_one_error() {
    let batch = format!("[{}]\n", vec![request(1, "ping", json!({})).to_string(); 10_000].join(","));
    let (stdout, _, status) = pipe_through(&mut command(), batch.as_bytes());
    assert!(status.success());
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32600)));
}

#[test]
fn each_era_has_its_methods() {
    let mut server = Server::start();
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}});
    for method in ["ping", "initialize"] {
        let mut params = initialize_params("2025-11-25");
        params["_meta"] = meta.clone();
        server.send(&request(1, method, params));
        assert_eq!(server.receive()["error"]["code"], -32601, "{method}");
    }
    for params in [json!({}), json!({"_meta": {}}), json!({"_meta": null})] {
        server.send(&request(2, "server/discover", params));
        let error = server.receive()["error"].clone();
        assert_eq!(error["code"], -32602, "{error}");
        assert!(error["message"].as_str().unwrap().contains("io.modelcontextprotocol/protocolVersion"), "{error}");
    }
    server.send(&request(3, "server/discover", json!({"_meta": meta})));
    let discovered = server.receive()["result"].clone();
    assert_eq!((&discovered["ttlMs"], &discovered["cacheScope"]), (&json!(3_600_000), &json!("public")));
}

#[test]
fn a_token_that_is_null_is_none() {
    let mut server = Server::start();
    // The arguments are wrong, so that no VM is needed to see how far it came.
    let params = json!({"name": "execute_code", "arguments": {}, "_meta": {"progressToken": null}});
    server.send(&request(1, "tools/call", params));
    assert_eq!(server.receive()["result"]["isError"], true);
    let params = json!({"name": "execute_code", "arguments": {}, "_meta": {"progressToken": "x".repeat(2000)}});
    server.send(&request(2, "tools/call", params));
    assert_eq!(server.receive()["error"]["code"], -32602);
}
