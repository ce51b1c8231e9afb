//! What the versions of MCP differ in, as their clients see it.

use serde_json::{Value, json};

use crate::harness::{Server, execute_request, initialize_params, request};

const LEGACY: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

/// Parameters of the modern era, with what a request has beside.
fn modern(mut params: Value, meta: Value) -> Value {
    params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"}});
    params["_meta"].as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
    params
}

#[test]
fn each_legacy_version_gets_what_it_knows() {
    for version in LEGACY {
        let mut server = Server::start();
        server.send(&request(0, "initialize", initialize_params(version)));
        let greeting = server.receive()["result"].clone();
        assert_eq!(greeting["protocolVersion"], version);
        assert_eq!(greeting["capabilities"], json!({"tools": {}, "logging": {}}));
        assert_eq!(greeting["serverInfo"].get("title").is_some(), version >= "2025-06-18", "{version}");
        assert!(greeting.get("resultType").is_none() && greeting["instructions"].is_string());

        let arguments = json!({"language": "shell", "code": "echo a; sleep 0.3; echo b; sleep 0.3"});
        let params = json!({"name": "execute_code", "arguments": arguments, "_meta": {"progressToken": "t"}});
        server.send(&request(1, "tools/call", params));
        let progress = server.receive()["params"].clone();
        assert_eq!(progress.get("message").is_some(), version >= "2025-03-26", "{version}: {progress}");
        let result = loop {
            let message = server.receive();
            if message["id"] == 1 {
                break message["result"].clone();
            }
        };
        assert_eq!(result.get("structuredContent").is_some(), version >= "2025-06-18", "{version}");
        assert!(result["content"][0]["text"].as_str().unwrap().contains(r#""stdout":"a\nb\n""#), "{result}");

        server.send(&execute_request(2, json!({"language": "cobol", "code": "1"})));
        let answer = server.receive();
        let (error, code) = (&answer["error"], "/result/_meta/sandbox-mcp~1error/code");
        if version >= "2025-11-25" {
            assert_eq!(answer.pointer(code), Some(&json!("invalid_input")), "{answer}");
        } else {
            assert_eq!((&error["code"], &error["data"]["code"]), (&json!(-32602), &json!("invalid_input")), "{answer}");
            assert!(error["message"].as_str().unwrap().contains("language"), "{answer}");
        }

        server.send(&json!([request(3, "ping", json!({}))]));
        let answer = server.receive();
        assert_eq!(answer.is_array(), version == "2025-03-26", "{version}: {answer}");
    }
}

#[test]
fn a_modern_request_is_modern_whatever_was_agreed_on() {
    for agreed in [None, Some("2024-11-05"), Some("2025-03-26")] {
        let mut server = Server::start();
        if let Some(version) = agreed {
            server.send(&request(0, "initialize", initialize_params(version)));
            server.receive();
        }
        let call = json!({"name": "execute_code", "arguments": {"language": "shell", "code": "echo hi"}});
        server.send(&request(1, "tools/call", modern(call, json!({}))));
        let result = server.receive()["result"].clone();
        assert_eq!(
            (&result["resultType"], &result["structuredContent"]["stdout"]),
            (&json!("complete"), &json!("hi\n"))
        );
        assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "sandbox-mcp");

        let bad = json!({"name": "execute_code", "arguments": {"language": "cobol", "code": "1"}});
        server.send(&request(2, "tools/call", modern(bad, json!({}))));
        let result = server.receive()["result"].clone();
        assert_eq!((&result["resultType"], &result["isError"]), (&json!("complete"), &json!(true)));
        let meta = result["_meta"].as_object().unwrap();
        assert_eq!(meta.keys().collect::<Vec<_>>(), ["io.modelcontextprotocol/serverInfo", "sandbox-mcp/error"]);

        server.send(&json!([request(3, "tools/list", modern(json!({}), json!({})))]));
        let answer = server.receive();
        let error = if answer.is_array() { &answer[0]["error"] } else { &answer["error"] };
        assert_eq!(error["code"], -32600, "{answer}");
    }
}

#[test]
fn a_modern_request_is_checked() {
    let mut server = Server::start();
    let mut check = |method: &str, meta: Value, code: i64, named: &str| {
        server.send(&request(1, method, modern(json!({"level": "info"}), meta)));
        let error = server.receive()["error"].clone();
        assert!(error["code"] == code && error.to_string().contains(named), "{method}: {error}");
    };
    let (version, capabilities) =
        ("io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities");
    check("tools/list", json!({version: "2026-07-29"}), -32022, "2026-07-28");
    // It does not list what it refuses.
    check("tools/list", json!({version: "2025-11-25"}), -32022, r#""supported":["2026-07-28"]"#);
    check("tools/list", json!({version: 20260728}), -32602, version);
    check("tools/list", json!({version: null}), -32602, version);
    check("tools/list", json!({capabilities: null}), -32602, capabilities);
    check("tools/list", json!({capabilities: []}), -32602, capabilities);
    check("tools/list", json!({"io.modelcontextprotocol/logLevel": "loud"}), -32602, "logLevel");
    check("tools/list", json!({"io.modelcontextprotocol/logLevel": 5}), -32602, "logLevel");
    for method in ["initialize", "ping", "logging/setLevel", "resources/list", "tools/nonsense"] {
        check(method, json!({}), -32601, "Method not found");
    }
}
