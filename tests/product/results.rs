//! What a model is shown, and what a program finds.

use sandbox_tests::skip::has_registries;
use serde_json::{Value, json};

use crate::harness::{Server, command, execute_request, initialize_params, new_cache, request};

pub(crate) const OUTCOME: &str = "/_meta/sandbox-mcp~1outcome";

/// A server as its users start it, behind which is a model.
pub(crate) fn server(arguments: &[&str]) -> Server {
    let mut server = Server::start_as(command().env_remove("SANDBOX_MCP_RESULTS").args(arguments));
    server.send(&request(0, "initialize", initialize_params("2025-11-25")));
    server.receive();
    server
}

pub(crate) fn call(server: &mut Server, arguments: Value) -> Value {
    server.send(&execute_request(1, arguments));
    let response = server.receive();
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"].clone()
}

pub(crate) fn texts(result: &Value) -> Vec<&str> {
    let blocks = result["content"].as_array().unwrap();
    blocks.iter().map(|block| block["text"].as_str().unwrap()).collect()
}

#[test]
fn a_model_sees_what_a_terminal_shows_and_no_more() {
    let mut server = server(&[]);
    for (arguments, expected, blocks) in [
        (json!({"language": "python", "code": "print(6*7)"}), vec!["42\n"], json!({"stdout": 0})),
        (json!({"language": "shell", "code": "true"}), vec!["(no output)"], json!({})),
        (json!({"language": "javascript", "code": "process.stdout.write('é')"}), vec!["é"], json!({"stdout": 0})),
        (
            json!({"language": "shell", "code": "echo out; echo err >&2; exit 3"}),
            vec!["out\n", "stderr:\nerr\n", "exit code 3"],
            json!({"stdout": 0, "stderr": 1}),
        ),
        (json!({"language": "shell", "code": "echo warned >&2"}), vec!["stderr:\nwarned\n"], json!({"stderr": 0})),
        (json!({"language": "shell", "code": "exit 7"}), vec!["exit code 7"], json!({})),
        (
            json!({"language": "shell", "code": "echo begun; exec sleep 100", "timeout_seconds": 1}),
            vec!["begun\n", "timed out after 1 s"],
            json!({"stdout": 0}),
        ),
    ] {
        let result = call(&mut server, arguments);
        assert_eq!(texts(&result), expected, "{result}");
        assert!(result.get("structuredContent").is_none(), "{result}");
        assert_eq!(result.pointer(OUTCOME).unwrap()["blocks"], blocks, "{result}");
    }
}

#[test]
fn a_program_that_reads_along_loses_nothing() {
    let code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)";
    let arguments = json!({"language": "python", "code": code});
    let shown = call(&mut server(&[]), arguments.clone());
    let fields = call(&mut Server::start(), arguments)["structuredContent"].clone();
    let outcome = shown.pointer(OUTCOME).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        match name.as_str() {
            "stdout" | "stderr" => {
                let place = outcome["blocks"][name].as_u64().unwrap() as usize;
                let text = texts(&shown)[place];
                let text = if name == "stderr" { text.strip_prefix("stderr:\n").unwrap() } else { text };
                assert_eq!(text, value);
            }
            // They are of another run.
            name if name.ends_with("_ms") || name.ends_with("_mb") || name == "timing" => {
                assert!(outcome[name].is_number() || outcome[name].is_object(), "{name}: {outcome}");
            }
            name => assert_eq!(&outcome[name], value, "{name}"),
        }
    }
}

#[test]
fn progress_tells_the_streams_apart() {
    let mut server = server(&[]);
    let code =
        "import sys, time\nprint('out', flush=True)\nprint('oops', file=sys.stderr, flush=True)\ntime.sleep(0.6)";
    let mut call = execute_request(1, json!({"language": "python", "code": code}));
    call["params"]["_meta"] = json!({"progressToken": "p"});
    server.send(&call);
    let (mut seen, mut count) = (String::new(), 0);
    loop {
        let message = server.receive();
        if message.get("id").is_some() {
            break;
        }
        let text = message["params"]["message"].as_str().unwrap();
        match message["params"]["_meta"]["sandbox-mcp/streams"].as_array() {
            Some(streams) => {
                let mut at = 0;
                for part in streams {
                    let (name, length) = (part[0].as_str().unwrap(), part[1].as_u64().unwrap() as usize);
                    seen += &format!("{name}: {}", &text[at..at + length]);
                    at += length;
                }
                assert_eq!(at, text.len());
            }
            None => seen += &format!("stdout: {text}"),
        }
        count += 1;
    }
    // Of what was written at once either can be read first.
    let orders = ["stdout: out\nstderr: oops\n", "stderr: oops\nstdout: out\n"];
    assert!(count > 0 && orders.contains(&seen.as_str()), "{seen:?}");
}

/// Whether tools have output schemas, and results fields.
#[track_caller]
fn check_form(server: &mut Server, has_fields: bool) {
    server.send(&request(1, "tools/list", json!({})));
    let list = server.receive()["result"]["tools"].clone();
    let with_schema = |tool: &Value| tool.get("outputSchema").is_some();
    assert!(list.as_array().unwrap().iter().all(|tool| with_schema(tool) == has_fields), "{list}");
    // In tokens it is a fourth of that.
    assert!(has_fields || list.to_string().len() < 12_000, "{} characters", list.to_string().len());
    server.send(&request(2, "tools/call", json!({"name": "pool_status"})));
    let status = server.receive()["result"].clone();
    assert_eq!(status.get("structuredContent").is_some(), has_fields, "{status}");
    assert_eq!(status.pointer(OUTCOME).is_some(), !has_fields, "{status}");
    let text: Value = serde_json::from_str(texts(&status)[0]).unwrap();
    assert!(text["vms"]["running"].is_number(), "{status}");
}

#[test]
fn who_introduces_itself_is_a_model_unless_a_setting_says_otherwise() {
    check_form(&mut server(&[]), false);
    check_form(&mut server(&["--results", "data"]), true);
    let bare = |arguments: &[&str]| Server::start_as(command().env_remove("SANDBOX_MCP_RESULTS").args(arguments));
    check_form(&mut bare(&[]), true);
    check_form(&mut bare(&["--results", "model"]), false);
}

#[test]
fn an_installation_is_told_in_two_lines() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = server(&["--cache-dir", cache.path().to_str().unwrap()]);
    let arguments = json!({"language": "python", "packages": ["idna==3.10"]});
    server.send(&request(1, "tools/call", json!({"name": "install_packages", "arguments": arguments})));
    let result = server.receive()["result"].clone();
    let outcome = result.pointer(OUTCOME).unwrap();
    let id = outcome["environment_id"].as_str().unwrap();
    assert_eq!(texts(&result), [format!("environment_id: {id}\ninstalled: idna 3.10")], "{result}");
    let code = "import idna; print(idna.__version__)";
    let result = call(&mut server, json!({"language": "python", "code": code, "environment_id": id}));
    assert_eq!(texts(&result), ["3.10\n"]);
}
