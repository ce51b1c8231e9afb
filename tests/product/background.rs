//! Programs in the background: in a session and in a VM of their own.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, execute_request};
use crate::sessions::{Session, fault, fields, tool};

/// Starts a program; its id.
#[track_caller]
fn start(session: &mut Session, language: &str, code: &str) -> String {
    let arguments = json!({"language": language, "code": code, "background": true});
    run_id(&session.call("execute_code", arguments))
}

#[track_caller]
fn run_id(response: &Value) -> String {
    fields(response)["run_id"].as_str().unwrap().into()
}

fn call(server: &mut Server, name: &str, arguments: Value) -> Value {
    server.send(&tool(1, name, arguments));
    server.receive()
}

/// What has become of a run, when it has ended or said so much.
#[track_caller]
fn wait_for(server: &mut Server, run: &str, is_there: impl Fn(&str, &Value) -> bool) -> (String, Value) {
    let (begun, mut stdout) = (Instant::now(), String::new());
    loop {
        let report = fields(&call(server, "get_run", json!({"run_id": run, "wait_seconds": 5})));
        stdout.push_str(report["stdout"].as_str().unwrap());
        if is_there(&stdout, &report) {
            return (stdout, report);
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{stdout}: {report}");
    }
}

fn has_ended(_: &str, report: &Value) -> bool {
    report["running"] == false
}

#[test]
fn a_run_goes_on_beside_calls_and_its_output_is_fetched_once() {
    let mut session = Session::open();
    let code = "import time\nfor i in range(3):\n    print(i)\n    time.sleep(0.3)\nimport sys; sys.exit(4)";
    let run = start(&mut session, "python", code);
    assert_eq!(session.run("python", "print('beside')")["stdout"], "beside\n");
    let (stdout, report) = wait_for(&mut session.server, &run, has_ended);
    assert_eq!((stdout.as_str(), &report["exit_code"], &report["timed_out"]), ("0\n1\n2\n", &json!(4), &json!(false)));
    let again = fields(&call(&mut session.server, "get_run", json!({"run_id": run, "since": 0})));
    assert_eq!((&again["stdout"], &again["next"]), (&json!("0\n1\n2\n"), &json!(6)));
    assert_eq!(fields(&call(&mut session.server, "get_run", json!({"run_id": run})))["stdout"], "");
}

#[test]
fn a_server_in_the_background_serves_calls() {
    let mut session = Session::open();
    assert_eq!(session.run("shell", "echo from a file > page.txt")["exit_code"], 0);
    let code = "import http.server\nprint('up', flush=True)\n\
        http.server.ThreadingHTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()";
    let run = start(&mut session, "python", code);
    wait_for(&mut session.server, &run, |stdout, _| stdout == "up\n");
    let page =
        session.run("shell", "curl -sS --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8000/page.txt");
    assert_eq!(page["stdout"], "from a file\n", "{page}");
    let report = fields(&call(&mut session.server, "stop_run", json!({"run_id": run})));
    assert_eq!((&report["running"], &report["timed_out"]), (&json!(false), &json!(false)), "{report}");
    assert!(report["stderr"].as_str().unwrap().contains("GET /page.txt"), "{report}");
    assert_eq!(session.run("shell", "curl -sS http://127.0.0.1:8000/")["exit_code"], 7);
}

#[test]
fn a_program_that_asks_is_answered() {
    let mut session = Session::open();
    let run = start(
        &mut session,
        "python",
        "name = input('name? ')\nprint('hello', name)\nimport sys\nprint(len(sys.stdin.read()))",
    );
    wait_for(&mut session.server, &run, |stdout, _| stdout.contains("name? "));
    let sent = fields(&call(&mut session.server, "send_input", json!({"run_id": run, "text": "Zoë\n"})));
    assert!(sent["unread_bytes"].as_u64().unwrap() <= 5, "{sent}");
    wait_for(&mut session.server, &run, |stdout, _| stdout.contains("hello Zoë\n"));
    let much = "x".repeat(3_000_000);
    fields(&call(&mut session.server, "send_input", json!({"run_id": run, "text": much, "end": true})));
    let (stdout, report) = wait_for(&mut session.server, &run, has_ended);
    assert_eq!((stdout.as_str(), &report["exit_code"]), ("3000000\n", &json!(0)));
    let (code, message) = fault(&call(&mut session.server, "send_input", json!({"run_id": run, "text": "x"})));
    assert!(code == "not_found" && message.contains("has ended"), "{message}");
}

#[test]
fn who_does_not_read_is_not_sent_more_than_may_wait() {
    let mut session = Session::open();
    let run = start(&mut session, "shell", "sleep 1000");
    let text = "x".repeat(3_000_000);
    fields(&call(&mut session.server, "send_input", json!({"run_id": run, "text": text})));
    let (code, message) = fault(&call(&mut session.server, "send_input", json!({"run_id": run, "text": text})));
    assert!(code == "capacity" && message.starts_with("text: the program has not read"), "{code}: {message}");
    assert_eq!(session.run("shell", "echo beside")["stdout"], "beside\n");
}

#[test]
fn output_that_nobody_fetches_is_dropped_from_its_beginning() {
    let mut session = Session::open();
    let run = start(&mut session, "shell", "yes 123456789 | head -c 4000000; echo; echo the end");
    let begun = Instant::now();
    loop {
        session.server.send(&tool(1, "pool_status", json!({})));
        let status = fields(&session.server.receive());
        if status["sessions"][0]["running"] == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let report = fields(&call(&mut session.server, "get_run", json!({"run_id": run})));
    let stdout = report["stdout"].as_str().unwrap();
    assert!(stdout.ends_with("\nthe end\n") && (900_000..=1_000_000).contains(&stdout.len()), "{}", stdout.len());
    assert_eq!(report["dropped_bytes"].as_u64().unwrap() + stdout.len() as u64, 4_000_009);
}

#[test]
fn a_flood_in_the_background_keeps_nobody_waiting() {
    let mut session = Session::open();
    let run = start(&mut session, "shell", "yes");
    for n in 0..5 {
        assert_eq!(session.run("python", &format!("print({n})"))["stdout"], format!("{n}\n"));
    }
    let report = fields(&call(&mut session.server, "stop_run", json!({"run_id": run})));
    assert_eq!(report["running"], false);
    assert!(session.server.resident_mb() < 200, "{} MiB", session.server.resident_mb());
}

#[test]
fn a_run_without_a_session_has_a_vm_until_it_ends() {
    let mut server = Server::start();
    let code = "import time; print('begun', flush=True); time.sleep(1); print('done')";
    server.send(&execute_request(1, json!({"language": "python", "code": code, "background": true})));
    let run = run_id(&server.receive());
    assert_eq!(server.virtual_machines().len(), 1);
    let (stdout, report) = wait_for(&mut server, &run, has_ended);
    assert_eq!((stdout.as_str(), &report["exit_code"]), ("begun\ndone\n", &json!(0)));
    server.wait_for_machines(0, Duration::from_secs(10));
    assert_eq!(fields(&call(&mut server, "get_run", json!({"run_id": run, "since": 6})))["stdout"], "done\n");
}

#[test]
fn limits_hold_in_the_background() {
    let mut session = Session::open();
    let arguments = json!({"language": "shell", "code": "sleep 1000", "background": true, "timeout_seconds": 1});
    let run = run_id(&session.call("execute_code", arguments));
    let (_, report) = wait_for(&mut session.server, &run, has_ended);
    assert_eq!(report["timed_out"], true, "{report}");
    for (arguments, words) in [
        (json!({"background": true, "timeout_seconds": 86_401}), "must be between 1 and 86400"),
        (json!({"timeout_seconds": 301}), "must be between 1 and 300"),
    ] {
        let mut arguments = session.named(arguments);
        arguments["language"] = json!("shell");
        arguments["code"] = json!("true");
        let (code, message) = fault(&call(&mut session.server, "execute_code", arguments));
        assert!(code == "invalid_input" && message.contains(words), "{code}: {message}");
    }
    for (name, arguments, expected) in [
        ("get_run", json!({"run_id": "r-0"}), "not_found"),
        ("stop_run", json!({"run_id": "r-0"}), "not_found"),
        ("send_input", json!({"run_id": "r-0", "text": "x"}), "not_found"),
        ("send_input", json!({"run_id": run}), "invalid_input"),
        ("get_run", json!({"run_id": run, "wait_seconds": 51}), "invalid_input"),
        ("get_run", json!({}), "invalid_input"),
    ] {
        assert_eq!(fault(&call(&mut session.server, name, arguments.clone())).0, expected, "{name} {arguments}");
    }
    // As many as may.
    for _ in 0..16 {
        start(&mut session, "shell", "sleep 1000");
    }
    let arguments = json!({"language": "shell", "code": "true", "background": true});
    let (code, message) = fault(&session.call("execute_code", arguments));
    assert!(
        code == "failed_before_run" && message.contains("as many programs are running as may"),
        "{code}: {message}"
    );
    let run = fields(&session.call("close_session", json!({})));
    assert_eq!(run["ended_runs"], 16, "{run}");
}
