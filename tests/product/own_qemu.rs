//! The QEMU that `image build --with-qemu` builds: where it is there, VMs run in it. It is not built for the tests, since that
//! takes minutes; where it is not there, they say that they were skipped.

use std::io::Write;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Server, command, execute_request, request};

/// A server whose VMs run in the QEMU of the image, if there is one.
fn own() -> Option<Command> {
    let mut status = command();
    let output = status.args(["image", "status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("qemu ")).expect("the status tells of QEMU");
    if !line.contains(" present ") {
        // Not by `eprintln!`, whose words are kept back when a test passes.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no QEMU of our own: `sandbox-mcp image build --with-qemu` builds it ({line})"
        );
        return None;
    }
    let mut command = command();
    command.env_remove("SANDBOX_MCP_QEMU");
    Some(command)
}

fn pool_status(server: &mut Server) -> Value {
    server.send(&request(9, "tools/call", json!({"name": "pool_status", "arguments": {}})));
    server.receive()["result"]["structuredContent"].clone()
}

#[test]
fn every_language_runs_in_it_restored_and_booted() {
    for arguments in [&[][..], &["--no-templates"]] {
        let Some(mut command) = own() else { return };
        let mut server = Server::start_as(command.args(arguments));
        for (language, code) in [
            ("python", "import json, sqlite3; print(json.dumps(6 * 7))"),
            ("javascript", "console.log(await Promise.resolve(6 * 7))"),
            ("shell", "echo $((6 * 7)) | cat"),
        ] {
            server.send(&execute_request(1, json!({"language": language, "code": code})));
            let answer = server.receive();
            let outcome = &answer["result"]["structuredContent"];
            assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("42\n"), &json!(0)), "{answer}");
            assert_eq!(outcome["template_hit"], arguments.is_empty(), "{answer}");
        }
        let status = pool_status(&mut server);
        let words = status["qemu"].as_str().unwrap();
        assert!(words.contains("built by sandbox-mcp as "), "{words}");
    }
}

#[test]
fn its_process_is_hardened() {
    let Some(mut command) = own() else { return };
    let mut server = Server::start_as(&mut command);
    for id in 1..=2 {
        let program = json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout_seconds": 300});
        let params = json!({"name": "execute_code", "arguments": program, "_meta": {"progressToken": id}});
        server.send(&request(id, "tools/call", params));
        assert_eq!(server.receive()["params"]["progressToken"], id);
    }
    let machines = server.virtual_machines();
    let places = machines.iter().map(|id| {
        let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
        assert!(!maps.contains(".so"), "it is static: {maps}");
        let code =
            maps.lines().find(|line| line.contains("r-xp") && line.contains("qemu")).expect("its code is mapped");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        assert!(status.contains("Name:\tqemu-system-x86\n"), "{status}");
        assert!(status.contains("Seccomp:\t2\n"), "its system calls are filtered: {status}");
        code.split('-').next().unwrap().to_owned()
    });
    let places: Vec<_> = places.collect();
    assert_ne!(places[0], places[1], "each is loaded at another address");
}

#[test]
fn whoever_names_another_gets_that() {
    let Some(mut command) = own() else { return };
    let mut server = Server::start_as(command.args(["--qemu", "/nowhere/qemu"]));
    server.send(&execute_request(1, json!({"language": "shell", "code": "true"})));
    let answer = server.receive();
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("/nowhere/qemu"), "{answer}");
}
