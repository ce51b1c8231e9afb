//! What desktop clients and the MCP registry install from.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Server, command, initialize_params, request};
use crate::sdks::{Clients, NODE};

const URL: &str = "https://example.org/sandbox-mcp.mcpb";

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_bundle_is_valid_and_what_is_in_it_serves() {
    let Some(clients) = Clients::installed("node") else { return };
    let (node, mcpb) = (clients.installed.join(NODE), clients.installed.join("node_modules/.bin/mcpb"));
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/pack.mjs");
    let folder = clients.folder.path();
    let run = |arguments: &mut Command| {
        let output = arguments.stdin(Stdio::null()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{shown}");
    };
    let program = command().get_program().to_owned();
    run(Command::new(&node).arg(pack).arg(&mcpb).arg(program).arg(folder).arg(URL));

    let unpacked = clients.path("unpacked");
    run(Command::new(&node).arg(&mcpb).arg("unpack").arg(clients.path("sandbox-mcp.mcpb")).arg(&unpacked));
    let manifest = read(&unpacked.join("manifest.json"));
    assert_eq!((&manifest["manifest_version"], &manifest["server"]["type"]), (&json!("0.3"), &json!("binary")));
    let entry_point = unpacked.join(manifest["server"]["entry_point"].as_str().unwrap());
    let mut server = Server::start_as(
        Command::new(entry_point).envs(command().get_envs().filter_map(|(name, value)| Some((name, value?)))),
    );
    server.send(&request(1, "initialize", initialize_params("2025-11-25")));
    assert_eq!(server.receive()["result"]["serverInfo"]["version"], manifest["version"]);
    server.send(&request(2, "tools/list", json!({})));
    let listed = server.receive()["result"]["tools"].clone();
    let names = |tools: &Value| tools.as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&manifest["tools"]), names(&listed));

    // What the registry refuses most often.
    let entry = read(&clients.path("server.json"));
    assert_eq!(entry["$schema"], "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json");
    assert_eq!(entry["version"], manifest["version"]);
    assert!(entry["description"].as_str().unwrap().len() <= 100 && entry["title"].as_str().unwrap().len() <= 100);
    assert_eq!(entry["name"].as_str().unwrap().matches('/').count(), 1);
    let package = &entry["packages"][0];
    assert_eq!((&package["identifier"], &package["transport"]), (&json!(URL), &json!({"type": "stdio"})));
    let digest = package["fileSha256"].as_str().unwrap();
    let listed = Command::new("sha256sum").arg(clients.path("sandbox-mcp.mcpb")).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().starts_with(digest), "{digest}");
}
