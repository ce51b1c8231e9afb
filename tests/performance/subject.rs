//! A binary that is measured, and a running server of it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Until a pool is full, whatever the machine is.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) binary: PathBuf,
}

impl Subject {
    pub(crate) fn new(binary: PathBuf) -> Subject {
        Subject { binary }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).args(["--log", "error"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Server {
        let mut child = self.command(arguments).spawn().expect("the server starts");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Server { child, stdin, stdout, next_id: 0 }
    }
}

/// Killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    next_id: u64,
}

impl Server {
    fn send(&mut self, name: &str, arguments: &Value) {
        self.next_id += 1;
        let params = json!({"name": name, "arguments": arguments});
        let request = json!({"jsonrpc": "2.0", "id": self.next_id, "method": "tools/call", "params": params});
        self.stdin.write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    fn receive(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// The result of a tool.
    pub(crate) fn call(&mut self, name: &str, arguments: &Value) -> Value {
        self.send(name, arguments);
        result(&self.receive())
    }

    /// A new session; its id.
    pub(crate) fn open(&mut self) -> String {
        self.call("open_session", &json!({}))["session_id"].as_str().expect("a session").into()
    }

    /// A run's result, and how long a client has waited for it in milliseconds: from the request's last byte to the result's.
    pub(crate) fn run(&mut self, language: &str, code: &str) -> (Value, f64) {
        self.execute(&json!({"language": language, "code": code}))
    }

    /// The same in a session.
    pub(crate) fn run_in(&mut self, session: &str, language: &str, code: &str) -> (Value, f64) {
        self.execute(&json!({"language": language, "code": code, "session_id": session}))
    }

    fn execute(&mut self, arguments: &Value) -> (Value, f64) {
        self.send("execute_code", arguments);
        let sent = Instant::now();
        let line = self.receive();
        let waited = sent.elapsed();
        let outcome = result(&line);
        assert_eq!(outcome["exit_code"], 0, "{outcome}");
        (outcome, milliseconds(waited))
    }

    /// So many runs, `at_once` of them at the same time; programs a second.
    pub(crate) fn throughput(&mut self, language: &str, code: &str, count: usize, at_once: usize) -> f64 {
        let arguments = json!({"language": language, "code": code});
        let begun = Instant::now();
        (0..at_once).for_each(|_| self.send("execute_code", &arguments));
        for answered in 1..=count {
            let outcome = result(&self.receive());
            assert_eq!(outcome["exit_code"], 0, "{outcome}");
            if answered + at_once <= count {
                self.send("execute_code", &arguments);
            }
        }
        count as f64 / begun.elapsed().as_secs_f64()
    }

    /// Waits until so many VMs wait, and nothing else goes on.
    pub(crate) fn wait_for_pool(&mut self, size: u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.call("pool_status", &json!({}));
            if status["vms"] == json!({"ready": size, "restoring": 0, "running": 0}) {
                return;
            }
            assert!(Instant::now() < until, "the pool does not fill: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The processes of its VMs.
    pub(crate) fn machines(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let of_main = std::fs::read_to_string(path).unwrap_or_default();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let of_tasks = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let all: String = of_tasks.chain([of_main]).collect::<Vec<_>>().join(" ");
        let mut ids: Vec<u32> = all.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The structured result in a response.
pub(crate) fn result(line: &str) -> Value {
    let response: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not a response: {line}"));
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["structuredContent"].clone()
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
