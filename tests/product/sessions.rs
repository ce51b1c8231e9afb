//! Sessions: what stays from call to call, what does not, and how they end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sandbox_tests::skip::has_registries;
use serde_json::{Value, json};

use crate::harness::{Server, command, execute_request, is_alive, request};

/// A server with one session.
pub(crate) struct Session {
    pub(crate) server: Server,
    pub(crate) id: String,
}

pub(crate) fn tool(id: impl Into<Value>, name: &str, arguments: Value) -> Value {
    request(id, "tools/call", json!({"name": name, "arguments": arguments}))
}

/// The fields of a call's result.
#[track_caller]
pub(crate) fn fields(response: &Value) -> Value {
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["structuredContent"].clone()
}

/// The code and the words of an error of ours.
#[track_caller]
pub(crate) fn fault(response: &Value) -> (String, String) {
    assert_eq!(response["result"]["isError"], true, "{response}");
    let error = &response["result"]["_meta"]["sandbox-mcp/error"];
    (error["code"].as_str().unwrap().into(), error["message"].as_str().unwrap().into())
}

/// The answers to so many requests, by id, in whatever order they come.
pub(crate) fn answers(server: &mut Server, count: usize) -> HashMap<u64, Value> {
    let answer = |server: &mut Server| {
        let message = server.receive();
        (message["id"].as_u64().unwrap(), message)
    };
    (0..count).map(|_| answer(server)).collect()
}

impl Session {
    pub(crate) fn open() -> Session {
        Session::open_with(&[], json!({}))
    }

    pub(crate) fn open_with(settings: &[&str], arguments: Value) -> Session {
        let mut server = Server::start_as(command().args(settings));
        let id = open(&mut server, arguments);
        Session { server, id }
    }

    /// What comes of a tool's call that this session is named in.
    pub(crate) fn call(&mut self, name: &str, arguments: Value) -> Value {
        self.server.send(&tool(1, name, self.named(arguments)));
        self.server.receive()
    }

    fn status(&mut self) -> Value {
        self.server.send(&tool(1, "pool_status", json!({})));
        self.server.receive()
    }

    pub(crate) fn named(&self, mut arguments: Value) -> Value {
        arguments["session_id"] = json!(self.id);
        arguments
    }

    #[track_caller]
    pub(crate) fn run(&mut self, language: &str, code: &str) -> Value {
        fields(&self.call("execute_code", json!({"language": language, "code": code})))
    }

    /// A call that does what is expected of it, in an interpreter that has lost nothing.
    #[track_caller]
    fn check(&mut self, language: &str, code: &str, stdout: &str) {
        let outcome = self.run(language, code);
        assert_eq!((&outcome["stdout"], &outcome["stderr"]), (&json!(stdout), &json!("")), "{code}: {outcome}");
        assert_eq!((&outcome["exit_code"], outcome.get("state_lost")), (&json!(0), None), "{code}: {outcome}");
    }
}

pub(crate) fn open(server: &mut Server, arguments: Value) -> String {
    server.send(&tool(1, "open_session", arguments));
    fields(&server.receive())["session_id"].as_str().unwrap().into()
}

#[test]
fn what_a_call_leaves_the_next_one_has() {
    let mut session = Session::open();
    session.check("python", "import json\nx = 5\ndef f(y):\n    return x * y", "");
    session.check("python", "x += 1\nf(7)", "42\n");
    session.check("python", "json.dumps({'a': f(1)})", "'{\"a\": 6}'\n");
    session.check("python", "import dataclasses\n@dataclasses.dataclass\nclass P:\n    a: int\nP(1)", "P(a=1)\n");
    session.check("python", "None\nx;", "");
    session.check("python", "for i in range(2):\n    i", "");
    session.check("python", "import inspect\nprint(inspect.getsource(f))", "def f(y):\n    return x * y\n");

    session.check(
        "javascript",
        "const a = 1; let b = [2]; class C { m() { return 3 } }; function f() { return a }",
        "",
    );
    session.check("javascript", "b.push(a); b", "[ 2, 1 ]\n");
    session.check("javascript", "const a = 10; class C { m() { return 4 } }\n[f(), new C().m()]", "[ 10, 4 ]\n");
    session.check("javascript", "const late = await new Promise((go) => setTimeout(() => go('late'), 5))", "");
    session.check("javascript", "late", "'late'\n");
    session.check(
        "javascript",
        "import fs, { readFileSync as read } from 'node:fs'\nimport * as path from 'node:path'",
        "",
    );
    session.check(
        "javascript",
        "[typeof fs.statSync, typeof read, path.sep, require('node:os').EOL]",
        "[ 'function', 'function', '/', '\\n' ]\n",
    );
    session.check("javascript", "const os = await import('node:os'); typeof os.cpus", "'function'\n");
    session.check("javascript", "interface P { n: number }\nconst p: P = { n: 4 }\np.n as number", "4\n");
    session.check("javascript", "{ n: 1 }", "{ n: 1 }\n");
    session.check("javascript", "async function main() { await null; console.log('in main') }\nmain()", "in main\n");

    session.check("shell", "X=4; cd /tmp; shopt -s nullglob; f() { echo \"f $X $1\"; }", "");
    session.check("shell", "f a; pwd; echo no*such; shopt -q nullglob && echo set", "f 4 a\n/tmp\n\nset\n");
    session.check("shell", "set -u; read() { echo mine; }; printf() { echo mine; }", "");
    session.check("shell", "echo ${X}; unset -f read printf; set +u", "4\n");
}

#[test]
fn languages_share_files_and_environment() {
    let mut session = Session::open();
    session.check("python", "print(open('a b é.txt', 'w').write('from python'))", "11\n");
    session.check("shell", "cat 'a b é.txt'; echo more > b", "from python");
    session.check("javascript", "require('fs').readFileSync('b', 'utf8')", "'more\\n'\n");
    let arguments = json!({"language": "python", "code": "import os; os.environ['MODE']", "env": ["MODE=test 1"]});
    assert_eq!(fields(&session.call("execute_code", arguments))["stdout"], "'test 1'\n");
    session.check("shell", "echo $MODE", "test 1\n");
    session.check("javascript", "process.env.MODE", "'test 1'\n");
    session.check("python", "del os.environ['MODE']", "");
    session.check("python", "os.environ.get('MODE')", "");
}

#[test]
fn a_call_that_fails_is_named_and_changes_nothing() {
    let mut session = Session::open();
    session.check("python", "x = 1\ndef f():\n    return 1 / 0", "");
    let failed = session.run("python", "x = 2\nf()");
    let trace = "Traceback (most recent call last):\n  File \"<call 2>\", line 2, in <module>\n    f()\n    ~^^\n  \
        File \"<call 1>\", line 3, in f\n    return 1 / 0\n           ~~^~~\nZeroDivisionError: division by zero\n";
    assert_eq!((&failed["stderr"], &failed["exit_code"]), (&json!(trace), &json!(1)), "{failed}");
    let failed = session.run("python", "x = 3\ny = = 1");
    assert!(failed["stderr"].as_str().unwrap().contains("File \"<call 3>\", line 2\n    y = = 1\n"), "{failed}");
    session.check("python", "x", "2\n");

    session.check("javascript", "let n = 1\nfunction fail() {\n  throw new TypeError('bad')\n}", "");
    let failed = session.run("javascript", "n = 2\nfail()");
    let trace = "<call 5>:3\n  throw new TypeError('bad')\n        ^\n\nTypeError: bad\n    at fail (<call 5>:3:9)\n    \
        at <call 6>:2:1\n";
    assert_eq!((&failed["stderr"], &failed["exit_code"]), (&json!(trace), &json!(1)), "{failed}");
    let failed = session.run("javascript", "n = 3\nlet q = ;");
    assert!(
        failed["stderr"].as_str().unwrap().starts_with("<call 7>:2\nlet q = ;\n        ^\n\nSyntaxError: "),
        "{failed}"
    );
    assert_eq!(session.run("javascript", "throw { n }")["stderr"], "Uncaught { n: 2 }\n");
    session.check("javascript", "setTimeout(() => { throw new Error('from a timer') }, 1); n", "2\n");
    let late = session.run("javascript", "await new Promise((go) => setTimeout(go, 100)); n");
    assert_eq!(late["stdout"], "2\n", "{late}");
    assert!(late["stderr"].as_str().unwrap().contains("Error: from a timer\n"), "{late}");

    let failed = session.run("shell", "N=2\nnosuch");
    let words = "/run/calls/<call 11>: line 2: nosuch: command not found\n";
    assert_eq!((&failed["stderr"], &failed["exit_code"]), (&json!(words), &json!(127)), "{failed}");
    assert_eq!(session.run("shell", "if true; then")["exit_code"], 2);
    assert_eq!(session.run("shell", "return 7")["exit_code"], 7);
    session.check("shell", "echo $N", "2\n");
}

#[test]
fn a_deadline_interrupts_and_state_survives_it() {
    let mut session = Session::open();
    let cases = [
        ("python", "x = 1", vec!["x = 2\nimport time\ntime.sleep(100)", "x = 3\nwhile True: pass"], "x", "3\n"),
        ("javascript", "let x = 1", vec!["x = 2; while (true) {}", "x = 3; await new Promise(() => {})"], "x", "3\n"),
        (
            "shell",
            "x=1",
            vec!["x=2; sleep 100; x=0", "f() { while :; do :; done; x=0; }; g() { f; x=0; }; x=3; g; x=0"],
            "echo $x",
            "3\n",
        ),
    ];
    for (language, before, endless, after, expected) in cases {
        session.check(language, before, "");
        for code in endless {
            let arguments = json!({"language": language, "code": code, "timeout_seconds": 1});
            let outcome = fields(&session.call("execute_code", arguments));
            assert_eq!((&outcome["timed_out"], outcome.get("state_lost")), (&json!(true), None), "{code}: {outcome}");
        }
        session.check(language, after, expected);
    }
    // What does not heed an interrupt is killed.
    let deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let outcome = session.call("execute_code", json!({"language": "python", "code": deaf, "timeout_seconds": 1}));
    assert_eq!(fields(&outcome)["state_lost"], true, "{outcome}");
    let next = session.run("python", "'x' in globals()");
    assert_eq!((&next["stdout"], &next["state_lost"]), (&json!("False\n"), &json!(true)), "{next}");
    session.check("python", "1", "1\n");
}

#[test]
fn an_interpreter_that_ends_is_replaced_and_files_stay() {
    let mut session = Session::open();
    let cases = [
        ("python", "x = 1", "import sys; sys.exit(3)", 3, "'x' in globals()", "False\n"),
        ("python", "x = 1", "exit()", 0, "'x' in globals()", "False\n"),
        ("python", "x = 1", "import os; os.kill(os.getpid(), 9)", 137, "'x' in globals()", "False\n"),
        ("javascript", "let x = 1", "process.exit(4)", 4, "typeof x", "'undefined'\n"),
        (
            "javascript",
            "let x = 1",
            "process.kill(process.pid, 'SIGSEGV'); await new Promise(() => {})",
            139,
            "typeof x",
            "'undefined'\n",
        ),
        ("shell", "x=1; echo kept > kept", "exit 5", 5, "echo [$x]", "[]\n"),
    ];
    for (language, before, end, exit_code, after, expected) in cases {
        assert_eq!(session.run(language, before)["exit_code"], 0);
        let ended = session.run(language, end);
        assert_eq!((&ended["exit_code"], &ended["state_lost"]), (&json!(exit_code), &json!(true)), "{end}: {ended}");
        let next = session.run(language, after);
        assert_eq!((&next["stdout"], &next["state_lost"]), (&json!(expected), &json!(true)), "{end}: {next}");
        let later = session.run(language, after);
        assert_eq!((&later["stdout"], later.get("state_lost")), (&json!(expected), None), "{end}: {later}");
    }
    session.check("shell", "cat kept", "kept\n");
    // Of what a call has forked nobody takes its place.
    session.check("python", "import os\nx = 1\nif os.fork() == 0:\n    x = 2", "");
    session.check("python", "os.wait()[1], x", "(0, 1)\n");
    let hungry = session.run("python", "x = bytearray(900 << 20)");
    assert!(hungry["out_of_memory"] == true && hungry["state_lost"] == true, "{hungry}");
    session.check("javascript", "1 + 1", "2\n");
}

#[test]
fn what_a_call_has_started_goes_on() {
    let mut session = Session::open();
    let thread = "import threading, time, subprocess\ndef go():\n    time.sleep(0.3)\n    print('from a thread')\n\
        threading.Thread(target=go).start()\nchild = subprocess.Popen(['sleep', '1000'])";
    session.check("python", thread, "");
    session.check("python", "time.sleep(1)", "from a thread\n");
    // An interrupt is for what its call has started.
    let arguments = json!({"language": "python", "code": "subprocess.run(['sleep', '1000'])", "timeout_seconds": 1});
    assert_eq!(fields(&session.call("execute_code", arguments))["timed_out"], true);
    session.check("python", "child.poll() is None", "True\n");
    session.check("javascript", "let n = 0; setInterval(() => n++, 10); n", "0\n");
    session.check("shell", "sleep 1 & sleep 0.2; jobs | wc -l", "1\n");
    session.check("javascript", "n > 3", "true\n");
}

#[test]
fn each_call_reads_its_own_input() {
    let mut session = Session::open();
    let cases = [
        ("python", "input(), input()", "a\nb\nrest\n", "('a', 'b')\n"),
        ("python", "import sys; sys.stdin.read()", "", "''\n"),
        ("python", "sys.stdin.read()", "c", "'c'\n"),
        ("javascript", "require('fs').readFileSync(0, 'utf8')", "d", "'d'\n"),
        ("javascript", "let t = ''; for await (const c of process.stdin) t += c; t", "e", "'e'\n"),
        ("javascript", "t = ''; for await (const c of process.stdin) t += c; t", "", "''\n"),
        ("shell", "read a; echo [$a]; cat", "f\ng", "[f]\ng"),
        ("shell", "cat; echo end", "", "end\n"),
    ];
    for (language, code, stdin, expected) in cases {
        let outcome =
            fields(&session.call("execute_code", json!({"language": language, "code": code, "stdin": stdin})));
        assert_eq!(outcome["stdout"], expected, "{code}: {outcome}");
    }
}

#[test]
fn a_full_disk_keeps_no_call_from_making_room() {
    let mut session = Session::open();
    session.check("python", "x = 1", "");
    let fill = "head -c 2G /dev/zero > big; for n in $(seq 9); do head -c 1M /dev/zero >> small; done";
    assert_ne!(session.run("shell", fill)["exit_code"], 0);
    let full = session.run("python", "open('f', 'w').write('x' * 100_000)");
    assert!(full["stderr"].as_str().unwrap().contains("No space left on device"), "{full}");
    session.check("shell", "rm big small", "");
    session.check("python", "open('f', 'w').write('x' * 100_000), x", "(100000, 1)\n");
    session.check("shell", "ls /run/calls | grep -c call; ls /run/program | wc -l", "1\n0\n");
}

#[test]
fn one_call_a_language_at_a_time_and_others_beside_it() {
    let mut session = Session::open();
    session.check("python", "import time; x = []", "");
    session.check("shell", ":", "");
    let calls = [
        (11, "python", "time.sleep(4); x.append(1)", 30),
        // It waits for longer than it may run.
        (12, "python", "x.append(2); x", 1),
        (13, "shell", "echo beside", 30),
    ];
    for (id, language, code, timeout) in calls {
        let arguments = json!({"language": language, "code": code, "timeout_seconds": timeout});
        session.server.send(&execute_request(id, session.named(arguments)));
    }
    let first = session.server.receive();
    assert_eq!((&first["id"], &fields(&first)["stdout"]), (&json!(13), &json!("beside\n")));
    let both = answers(&mut session.server, 2);
    let second = fields(&both[&12]);
    assert_eq!(second["stdout"], "[1, 2]\n");
    // What it has waited for is its turn, and no VM.
    let timing = |name: &str| second["timing"][name].as_f64().unwrap();
    assert!(timing("setup_ms") > 1000.0 && timing("boot_ms") == 0.0, "{second}");
    assert!(timing("total_ms") >= timing("setup_ms") + timing("execute_ms"), "{second}");
}

#[test]
fn a_cancelled_call_is_interrupted_and_leaves_the_session_as_it_was() {
    let mut session = Session::open();
    session.check("python", "import time; x = 1", "");
    session.server.send(&execute_request(21, session.named(json!({"language": "python", "code": "time.sleep(1000)"}))));
    // Of two that come at once either may be first.
    while fields(&session.status())["sessions"][0]["running"] != 1 {}
    session.server.send(&execute_request(22, session.named(json!({"language": "python", "code": "x = 2"}))));
    std::thread::sleep(Duration::from_millis(500));
    for id in [22, 21] {
        session
            .server
            .send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}));
    }
    session.check("python", "x", "1\n");
}

#[test]
fn much_output_is_cut_and_counted_as_in_a_run_of_its_own() {
    let mut session = Session::open();
    let outcome = session.run("shell", "head -c 5000000 /dev/zero | tr '\\0' x; echo y | tr y z >&2");
    let stdout = outcome["stdout"].as_str().unwrap();
    assert!(
        stdout.starts_with("xxx") && stdout.ends_with("xxx") && stdout.contains("\n[... 40000"),
        "{}",
        stdout.len()
    );
    assert_eq!((&outcome["stdout_bytes"], &outcome["truncated"]), (&json!(5_000_000), &json!(true)));
    assert_eq!(outcome["stderr"], "z\n");
    session.check("shell", "echo after", "after\n");
}

#[test]
fn a_session_ends_when_asked_and_when_idle_and_says_so() {
    let mut session = Session::open_with(&[], json!({"idle_timeout_seconds": 3}));
    let other = open(&mut session.server, json!({}));
    session.check("shell", "sleep 4; echo not idle", "not idle\n");
    assert_eq!(session.server.virtual_machines().len(), 2);
    session.server.send(&tool(1, "close_session", json!({"session_id": other})));
    assert_eq!(fields(&session.server.receive()), json!({"runs": 0, "ended_runs": 0}));
    session.server.wait_for_machines(0, Duration::from_secs(10));
    for (id, words) in [(other, "was closed"), (session.id.clone(), "was not used for 3 s")] {
        session.server.send(&execute_request(1, json!({"language": "python", "code": "1", "session_id": id})));
        let (code, message) = fault(&session.server.receive());
        assert!(code == "not_found" && message.contains(&id) && message.contains(words), "{code}: {message}");
    }
    session.server.send(&tool(1, "close_session", json!({"session_id": "s-0"})));
    assert_eq!(fault(&session.server.receive()).0, "not_found");
}

#[test]
fn close_ends_what_runs() {
    let mut session = Session::open();
    session.server.send(&execute_request(5, session.named(json!({"language": "shell", "code": "sleep 1000"}))));
    std::thread::sleep(Duration::from_millis(500));
    session.server.send(&tool(6, "close_session", json!({"session_id": session.id})));
    let both = answers(&mut session.server, 2);
    assert_eq!(fields(&both[&6]), json!({"runs": 1, "ended_runs": 1}));
    let (code, message) = fault(&both[&5]);
    assert!(code == "outcome_unknown" && message.contains("its session was closed"), "{code}: {message}");
    session.server.wait_for_machines(0, Duration::from_secs(5));
}

#[test]
fn places_are_bounded_and_who_waits_in_vain_is_told() {
    let mut session = Session::open_with(&["--max-concurrent-vms", "1"], json!({}));
    session.server.send(&tool(1, "open_session", json!({})));
    let (code, message) = fault(&session.server.receive());
    assert!(code == "capacity" && message.contains("close_session"), "{code}: {message}");
    session.server.send(&execute_request(1, json!({"language": "python", "code": "1"})));
    let (code, message) = fault(&session.server.receive());
    assert!(code == "capacity" && message.contains("all 1 VMs are sessions"), "{code}: {message}");
    session.check("python", "1", "1\n");
    let status = session.call("pool_status", json!({}));
    assert_eq!(fault(&status).0, "invalid_input");
    session.server.send(&tool(1, "pool_status", json!({})));
    let status = fields(&session.server.receive());
    let shown = &status["sessions"][0];
    assert_eq!((&shown["session_id"], &shown["runs"], &shown["running"]), (&json!(session.id), &json!(1), &json!(0)));
    assert!(shown["private_memory_mb"].as_f64().unwrap() > 1.0 && shown["memory_limit_mb"] == 512, "{shown}");
    assert_eq!(status["limits"]["max_sessions"], 1);
    assert!(session.call("close_session", json!({}))["result"]["isError"] == false);
    session.server.send(&execute_request(1, json!({"language": "python", "code": "print(2)"})));
    assert_eq!(fields(&session.server.receive())["stdout"], "2\n");
}

#[test]
fn a_session_whose_vm_is_gone_says_so() {
    let mut session = Session::open();
    session.check("shell", "echo here", "here\n");
    session.server.send(&execute_request(7, session.named(json!({"language": "shell", "code": "sleep 1000"}))));
    std::thread::sleep(Duration::from_millis(300));
    let machines = session.server.virtual_machines();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(machines[0] as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(fault(&session.server.receive()).0, "outcome_unknown");
    let (code, message) = fault(&session.call("execute_code", json!({"language": "shell", "code": "echo"})));
    assert!(code == "not_found" && message.contains("the VM ended unexpectedly"), "{code}: {message}");
}

#[test]
fn sessions_end_with_their_client_and_their_server() {
    let mut session = Session::open();
    session.check("shell", "sleep 1000 &", "");
    let machines = session.server.virtual_machines();
    assert_eq!(machines.len(), 1);
    session.server.close_stdin();
    assert!(session.server.wait().success());
    assert!(!is_alive(machines[0]));
    let mut session = Session::open();
    let machines = session.server.virtual_machines();
    session.server.child.kill().unwrap();
    session.server.wait();
    let until = Instant::now() + Duration::from_secs(10);
    while is_alive(machines[0]) {
        assert!(Instant::now() < until, "a VM has outlived its server");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_session_has_the_packages_that_it_was_opened_with() {
    if !has_registries() {
        return;
    }
    let mut session = Session::open_with(&[], json!({"packages": ["six"]}));
    session.check("python", "import six; six.PY3", "True\n");
    let arguments = json!({"language": "python", "code": "1", "environment_id": "python-0123456789abcdef"});
    let (code, message) = fault(&session.call("execute_code", arguments));
    assert!(
        code == "invalid_input" && message.starts_with("environment_id: ") && message.contains("open_session"),
        "{message}"
    );
}

#[test]
fn eight_sessions_at_once_keep_apart() {
    let mut server = Server::start_as(command().args(["--max-concurrent-vms", "9"]));
    let ids: Vec<String> = (0..8).map(|_| open(&mut server, json!({}))).collect();
    let mut expected = HashMap::new();
    for round in 0..6_u64 {
        for (place, id) in ids.iter().enumerate() {
            let request = 100 * (round + 1) + place as u64;
            let (language, code, stdout) = match (round + place as u64) % 3 {
                0 => (
                    "python",
                    format!("n = globals().get('n', []) + [{round}]\nprint({place}, 'ok')"),
                    format!("{place} ok\n"),
                ),
                1 => (
                    "javascript",
                    format!("globalThis.n = [...(globalThis.n ?? []), {place}]; new Set(n).size"),
                    "1\n".into(),
                ),
                _ => ("shell", format!("n+={place}; echo ${{n//{place}/}}."), ".\n".into()),
            };
            server.send(&execute_request(request, json!({"language": language, "code": code, "session_id": id})));
            expected.insert(request, stdout);
        }
        let found = answers(&mut server, ids.len());
        for (request, answer) in found {
            assert_eq!(fields(&answer)["stdout"], expected[&request], "{request}");
        }
    }
    for id in &ids {
        server.send(&tool(1, "close_session", json!({"session_id": id})));
        assert_eq!(fields(&server.receive())["runs"], 6);
    }
    server.wait_for_machines(0, Duration::from_secs(10));
}
