//! What SIGKILL leaves of sessions, whatever they were doing.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Server, command, is_alive};
use crate::sessions::{fault, fields, open, tool};

fn slay(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

/// What a session is asked to do, by what it then does: each goes on for longer than the test waits.
fn phases(shared: &str) -> Vec<(&'static str, &'static str, Value)> {
    let run = |code: &str| json!({"language": "shell", "code": code});
    vec![
        ("nothing", "list_files", json!({})),
        ("a call", "execute_code", run("sleep 100")),
        ("a flood", "execute_code", run("yes")),
        (
            "a program in the background",
            "execute_code",
            json!({"language": "shell", "code": "yes", "background": true}),
        ),
        (
            "files before a call",
            "execute_code",
            json!({"language": "shell", "code": "sleep 100", "files": [{"path": "f", "text": "x"}]}),
        ),
        ("a file that comes", "write_file", json!({"path": "large", "host_path": format!("{shared}/large")})),
        ("a file that goes", "read_file", json!({"path": "sparse", "host_path": format!("{shared}/out")})),
    ]
}

fn shared_folder() -> tempfile::TempDir {
    let shared = tempfile::tempdir().unwrap();
    std::fs::File::create(shared.path().join("large")).unwrap().set_len(1_000_000_000).unwrap();
    shared
}

fn start(shared: &str) -> Server {
    let share = format!("{shared}:rw");
    Server::start_as(command().args(["--warm-pool-size", "0", "--share", &share]))
}

fn open_large(server: &mut Server) -> String {
    let session = open(server, json!({"memory_mb": 2048}));
    let sparse = json!({"session_id": session, "language": "shell", "code": "truncate -s 1000M sparse"});
    server.send(&tool(1, "execute_code", sparse));
    assert_eq!(fields(&server.receive())["exit_code"], 0);
    session
}

#[test]
fn a_vm_that_is_killed_takes_its_session_and_nothing_else() {
    let folder = shared_folder();
    let shared = folder.path().to_str().unwrap();
    let mut server = start(shared);
    let other = open(&mut server, json!({}));
    let count = |server: &mut Server, expected: &str| {
        let code = "n = globals().get('n', 0) + 1; n";
        server.send(&tool(5, "execute_code", json!({"session_id": other, "language": "python", "code": code})));
        let outcome = fields(&server.receive());
        assert_eq!((&outcome["stdout"], outcome.get("state_lost")), (&json!(expected), None), "{outcome}");
    };
    count(&mut server, "1\n");
    let before = server.virtual_machines();
    for (number, (phase, name, mut arguments)) in phases(shared).into_iter().enumerate() {
        let session = open_large(&mut server);
        let machines = server.virtual_machines();
        let machine = *machines.iter().find(|machine| !before.contains(machine)).unwrap();
        arguments["session_id"] = json!(session);
        let is_answered_at_once = phase == "nothing" || arguments["background"] == true;
        server.send(&tool(2, name, arguments));
        let mut run = None;
        if is_answered_at_once {
            run = fields(&server.receive()).get("run_id").cloned();
        }
        std::thread::sleep(Duration::from_millis(200));
        slay(machine);
        if !is_answered_at_once {
            let (code, message) = fault(&server.receive());
            assert!(
                ["outcome_unknown", "failed_before_run", "not_found"].contains(&code.as_str()),
                "{phase}: {code}: {message}"
            );
        }
        if let Some(run) = run {
            server.send(&tool(3, "get_run", json!({"run_id": run, "wait_seconds": 20})));
            let mut report = fields(&server.receive());
            while report["running"] == true {
                server.send(&tool(3, "get_run", json!({"run_id": run, "wait_seconds": 20})));
                report = fields(&server.receive());
            }
            assert!(report["lost"].is_string(), "{phase}: {report}");
        }
        // Who asks before its end was noticed is told that it is not known.
        let words = loop {
            server.send(&tool(4, "execute_code", json!({"session_id": session, "language": "shell", "code": "echo"})));
            let (code, message) = fault(&server.receive());
            if code == "not_found" {
                break message;
            }
            assert!(["outcome_unknown", "failed_before_run"].contains(&code.as_str()), "{phase}: {code}: {message}");
        };
        assert!(words.contains("has ended"), "{phase}: {words}");
        count(&mut server, &format!("{}\n", number + 2));
    }
    server.wait_for_machines(1, Duration::from_secs(10));
    let mut left: Vec<_> = std::fs::read_dir(shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["large"], "half a file is there");
}

#[test]
fn a_server_that_is_killed_leaves_no_vm() {
    let folder = shared_folder();
    let shared = folder.path().to_str().unwrap();
    for (phase, name, mut arguments) in phases(shared) {
        let mut server = start(shared);
        arguments["session_id"] = json!(open_large(&mut server));
        let machines = server.virtual_machines();
        assert!(!machines.is_empty());
        server.send(&tool(2, name, arguments));
        std::thread::sleep(Duration::from_millis(200));
        server.child.kill().unwrap();
        server.wait();
        let begun = Instant::now();
        while machines.iter().any(|machine| is_alive(*machine)) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{phase}: a VM goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
