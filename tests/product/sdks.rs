//! The clients that people use, against the built server: the Python and TypeScript SDKs in all their modes, the MCP
//! Inspector, and adapters that hand the tools to models. `tests/clients` has what they do; `tests/clients/install.sh`
//! installs them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sandbox_tests::skip::skip;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::command;

/// What a client does, in this order; each says so.
const STEPS: &str = "listing call session stream cancel error parallel warning end";

/// The adapters, in this order; each says so once it has passed.
const ADAPTERS: &str = "openai_agents google_genai mcpadapt langchain pydantic_ai";

/// The Node.js of the set `node`, which brings its own: the Inspector needs a newer one than Debian 12 has.
pub const NODE: &str = "node_modules/.bin/node";

/// A set of installed clients, and a place for what a test has beside it.
pub struct Clients {
    pub installed: PathBuf,
    pub folder: TempDir,
}

/// The folder of `tests/clients`.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

impl Clients {
    /// `None` when they could not be had, because a registry cannot be reached. Nothing else is a reason.
    pub fn installed(name: &str) -> Option<Clients> {
        const UNREACHABLE: i32 = 75;
        let install = Command::new("sh").arg(sources().join("install.sh")).arg(name).output().unwrap();
        let errors = String::from_utf8_lossy(&install.stderr);
        if install.status.code() == Some(UNREACHABLE) {
            skip(&format!("a registry cannot be reached, so nothing with '{name}': {errors}"));
            return None;
        }
        assert!(install.status.success(), "'{name}' was not installed: {errors}");
        let installed = PathBuf::from(String::from_utf8(install.stdout).unwrap().trim());
        Some(Clients { installed, folder: tempfile::tempdir().unwrap() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server as a command of one word, set up as in other tests, that leaves its exit status behind.
    fn server(&self) -> PathBuf {
        let server = command();
        let mut script = "#!/bin/sh\n".to_string();
        for (name, value) in server.get_envs() {
            let name = name.to_str().unwrap();
            script += &match value {
                Some(value) => format!("export {name}='{}'\n", value.to_str().unwrap()),
                None => format!("unset {name}\n"),
            };
        }
        // Clients pass on little of their environment.
        for name in ["HOME", "SANDBOX_MCP_CACHE_DIR", "SANDBOX_MCP_QEMU"] {
            if let Ok(value) = std::env::var(name) {
                script += &format!("export {name}='{value}'\n");
            }
        }
        // What is no setting is warned of: see the step `warning`.
        script += "export SANDBOX_MCP_NO_SUCH=1\n";
        let (program, status) = (server.get_program().to_str().unwrap(), self.path("status"));
        script += &format!("'{program}'\necho $? >>'{}'\n", status.display());
        let path = self.path("server");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Runs one of the scripts of a language. Those of npm look for their packages beside themselves.
    fn script(&self, interpreter: &str, folder: &str, name: &str) -> Command {
        for entry in fs::read_dir(sources().join(folder)).unwrap().flatten() {
            if entry.path().is_file() {
                fs::copy(entry.path(), self.path(entry.file_name().to_str().unwrap())).unwrap();
            }
        }
        if folder == "node" {
            symlink(self.installed.join("node_modules"), self.path("node_modules")).unwrap();
        }
        let mut command = Command::new(self.installed.join(interpreter));
        command.current_dir(self.folder.path()).arg(self.path(name));
        command
    }
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the client starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a script that goes through all the steps, on a server of its own.
#[track_caller]
fn check(set: &str, script: &str, mode: Option<&str>) {
    check_steps(set, script, mode, STEPS);
}

#[track_caller]
fn check_steps(set: &str, script: &str, mode: Option<&str>, expected: &str) {
    let Some(clients) = Clients::installed(set) else { return };
    let server = clients.server();
    let (interpreter, folder) = if set == "node" { (NODE, "node") } else { ("bin/python", "python") };
    let output = run(clients.script(interpreter, folder, script).args(mode).arg(server));
    let (steps, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "after {steps:?}: {errors}");
    assert_eq!(steps.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{errors}");
    // Nobody had to end it. A client that probes with a process of its own may have started more than one.
    let statuses = fs::read_to_string(clients.path("status")).expect("the server ends by itself");
    assert!(statuses.lines().all(|status| status == "0"), "{statuses}");
}

#[test]
fn the_python_sdk_2_in_the_legacy_era() {
    check("mcp-2.3.0", "v2.py", Some("legacy"));
}

#[test]
fn the_python_sdk_2_finds_out_the_era() {
    check("mcp-2.3.0", "v2.py", Some("auto"));
}

#[test]
fn the_python_sdk_2_in_the_modern_era() {
    check("mcp-2.3.0", "v2.py", Some("2026-07-28"));
}

#[test]
fn the_python_sdk_1() {
    check("mcp-1.30.0", "v1.py", None);
}

#[test]
fn the_typescript_sdk_1() {
    check("node", "sdk.js", None);
}

#[test]
fn the_typescript_client_2_in_the_legacy_era() {
    check("node", "client.js", Some("legacy"));
}

#[test]
fn the_typescript_client_2_finds_out_the_era() {
    check("node", "client.js", Some("auto"));
}

#[test]
fn the_typescript_client_2_in_the_modern_era() {
    check("node", "client.js", Some("2026-07-28"));
}

#[test]
fn adapters_keep_all_that_is_said_of_the_tools_and_nulls_are_understood() {
    check_steps("adapters", "adapters.py", None, ADAPTERS);
}

#[test]
fn the_inspector_finds_nothing_to_object_to_in_any_era() {
    let Some(clients) = Clients::installed("node") else { return };
    let server = clients.server();
    for era in ["legacy", "auto", "modern"] {
        let mut inspector = Command::new(clients.installed.join(NODE));
        inspector.arg(clients.installed.join("node_modules/.bin/mcp-inspector")).arg("--cli").arg(&server);
        // It keeps a catalogue of servers in the home directory, which is not ours to write to.
        inspector.env("HOME", clients.folder.path());
        inspector.args(["--protocol-era", era, "--method", "tools/list", "--strict", "--format", "json"]);
        let output = run(&mut inspector);
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{era}: {errors}");
        // Advice is not an error, and is taken all the same.
        assert!(!errors.contains("Warning: tool"), "{era}: {errors}");
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(listed["result"]["tools"].as_array().is_some_and(|tools| tools.len() >= 2), "{era}: {listed}");
    }
}
