//! Eight sessions at once, each doing all that a session can do, for a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, command};
use crate::sessions::{fields, open, tool};

/// How long they work.
const TIME: Duration = Duration::from_secs(60);

const SESSIONS: usize = 8;

/// One of the sessions: what it has done, and what it waits for.
struct Worker {
    id: String,
    /// How often each interpreter was told to count.
    counts: HashMap<&'static str, u64>,
    /// Steps begun so far.
    step: u64,
    waits_for: Waiting,
}

enum Waiting {
    /// A call whose fields have to be these.
    Fields(Vec<(&'static str, Value)>),
    /// That a program has started in the background, which writes this.
    Started(String),
    /// Its output, and what of it has come.
    Output {
        run: Value,
        expected: String,
        heard: String,
    },
    /// That a file was written, which has to be read as this.
    Written {
        path: String,
        text: String,
    },
    Nothing,
}

impl Worker {
    fn call(&self, name: &'static str, mut arguments: Value) -> (&'static str, Value) {
        arguments["session_id"] = json!(self.id);
        (name, arguments)
    }

    fn execute(&self, language: &str, code: &str) -> (&'static str, Value) {
        self.call("execute_code", json!({"language": language, "code": code}))
    }

    fn count(&mut self, language: &'static str) -> (&'static str, Value) {
        let count = self.counts.entry(language).or_default();
        *count += 1;
        let shown = format!("{count}\n");
        self.waits_for =
            Waiting::Fields(vec![("stdout", json!(shown)), ("exit_code", json!(0)), ("state_lost", Value::Null)]);
        let code = match language {
            "python" => "n = globals().get('n', 0) + 1; n",
            "javascript" => "globalThis.n = (globalThis.n ?? 0) + 1; n",
            _ => "n=$((n + 1)); echo $n",
        };
        self.execute(language, code)
    }

    /// What it does next: one request; `true` if that is cancelled at once, and has no answer.
    fn next(&mut self) -> ((&'static str, Value), bool) {
        self.step += 1;
        let step = self.step;
        let languages = ["python", "shell", "javascript"];
        let language = languages[(step / 7) as usize % 3];
        match step % 7 {
            1 => {
                let text = format!("{step} \u{e9}\u{1f389}\n").repeat(2000);
                let path = format!("{language}/f\u{e9} {}", step % 5);
                self.waits_for = Waiting::Written { path: path.clone(), text: text.clone() };
                (self.call("write_file", json!({"path": path, "text": text})), false)
            }
            2 => {
                let text = format!("out of {step}");
                self.waits_for = Waiting::Started(text.clone());
                let code = format!(
                    "import time\nfor part in {text:?}.split():\n    print(part, end=' ', flush=True)\n    time.sleep(0.05)"
                );
                (self.call("execute_code", json!({"language": "python", "code": code, "background": true})), false)
            }
            3 => {
                self.waits_for = Waiting::Nothing;
                let code = match language {
                    "python" => "import time\ntime.sleep(60)",
                    "javascript" => "for (;;);",
                    _ => "sleep 60",
                };
                (self.execute(language, code), true)
            }
            5 => {
                let text = format!("{step}");
                let file = json!([{"path": "out/copy", "size_bytes": text.len(), "text": text}]);
                self.waits_for = Waiting::Fields(vec![("files", file), ("exit_code", json!(0))]);
                let arguments = json!({
                    "language": "shell", "code": "mkdir -p out; cp given out/copy",
                    "files": [{"path": "given", "text": text}], "outputs": ["out/*"],
                });
                (self.call("execute_code", arguments), false)
            }
            _ => (self.count(language), false),
        }
    }

    /// Looks at an answer; a request that belongs to the same step, if there is one.
    fn take(&mut self, answer: &Value) -> Option<(&'static str, Value)> {
        let found = fields(answer);
        match std::mem::replace(&mut self.waits_for, Waiting::Nothing) {
            Waiting::Fields(expected) => {
                for (name, value) in expected {
                    assert_eq!(
                        found.get(name).unwrap_or(&Value::Null),
                        &value,
                        "{name} in step {}: {found}",
                        self.step
                    );
                }
                None
            }
            Waiting::Started(expected) => {
                let run = found["run_id"].clone();
                let request = ("get_run", json!({"run_id": run, "wait_seconds": 5}));
                self.waits_for = Waiting::Output { run, expected, heard: String::new() };
                Some(request)
            }
            Waiting::Output { run, expected, mut heard } => {
                heard.push_str(found["stdout"].as_str().unwrap());
                if found["running"] == false {
                    assert_eq!((heard.trim_end(), &found["exit_code"]), (expected.as_str(), &json!(0)), "{found}");
                    return None;
                }
                let request = ("get_run", json!({"run_id": run, "wait_seconds": 5}));
                self.waits_for = Waiting::Output { run, expected, heard };
                Some(request)
            }
            Waiting::Written { path, text } => {
                assert_eq!(found["size_bytes"], text.len());
                self.waits_for = Waiting::Fields(vec![("text", json!(text)), ("size_bytes", json!(text.len()))]);
                Some(self.call("read_file", json!({"path": path, "length": text.len()})))
            }
            Waiting::Nothing => panic!("an answer to what was cancelled: {answer}"),
        }
    }
}

#[test]
fn eight_sessions_do_everything_at_once_for_a_minute() {
    let mut server = Server::start_as(command().args(["--max-concurrent-vms", "9", "--warm-pool-size", "0"]));
    let worker = |server: &mut Server| Worker {
        id: open(server, json!({})),
        counts: HashMap::new(),
        step: 0,
        waits_for: Waiting::Nothing,
    };
    let mut workers: Vec<Worker> = (0..SESSIONS).map(|_| worker(&mut server)).collect();
    let (begun, mut pending, mut last_id, mut steps) = (Instant::now(), HashMap::new(), 1_u64, 0);
    let mut send = |server: &mut Server, worker: usize, (name, arguments): (&str, Value)| {
        last_id += 1;
        server.send(&tool(last_id, name, arguments));
        (last_id, worker)
    };
    let mut ready: Vec<usize> = (0..SESSIONS).collect();
    while !ready.is_empty() || !pending.is_empty() {
        for index in std::mem::take(&mut ready) {
            if begun.elapsed() > TIME {
                continue;
            }
            let (request, is_cancelled) = workers[index].next();
            let (id, _) = send(&mut server, index, request);
            if is_cancelled {
                let params = json!({"requestId": id});
                server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}));
                ready.push(index);
            } else {
                pending.insert(id, index);
            }
        }
        if pending.is_empty() {
            continue;
        }
        let answer = server.receive();
        let index = pending.remove(&answer["id"].as_u64().unwrap()).expect("an answer to nothing");
        match workers[index].take(&answer) {
            Some(request) => pending.extend([send(&mut server, index, request)]),
            None => {
                steps += 1;
                ready.push(index);
            }
        }
    }
    assert!(steps > 10 * SESSIONS, "{steps} steps");
    for worker in &workers {
        server.send(&tool(1, "close_session", json!({"session_id": worker.id})));
        assert_eq!(fields(&server.receive())["ended_runs"], 0);
    }
    server.wait_for_machines(0, Duration::from_secs(10));
}
