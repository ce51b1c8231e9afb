//! How long a user waits: `cargo bench`. Prints medians; never fails on a time.
//!
//! `RUNS=20 cargo bench` changes the number of runs per row (default 5).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark is a program of its own that prints, and starts the product as its users do"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

const ROWS: [(&str, &str); 3] =
    [("python", "print(6*7)"), ("javascript", "console.log(6*7)"), ("shell", "echo $((6*7))")];

fn main() {
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5);
    println!("medians of {runs} runs, milliseconds; one call at a time, a fresh VM each, a server that is up");
    println!("{:<12}{:>10}{:>10}{:>12}{:>12}", "language", "call", "boot", "execute", "process RSS");
    let mut client = Client::start();
    for (language, code) in ROWS {
        let mut rows: Vec<[f64; 4]> = (0..runs).map(|_| client.measure(language, code)).collect();
        let median = |column: usize, rows: &mut Vec<[f64; 4]>| {
            rows.sort_by(|one, other| one[column].total_cmp(&other[column]));
            rows[rows.len() / 2][column]
        };
        let [call, boot, execute, memory] = [0, 1, 2, 3].map(|column| median(column, &mut rows));
        println!("{language:<12}{call:>10.0}{boot:>10.0}{execute:>12.1}{memory:>9.0} MB");
    }
}

struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    fn start() -> Client {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sandbox-mcp"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut client = Client { child, stdin, stdout };
        // Whatever is done once at the start is not what a call costs.
        client.measure("shell", "true");
        client
    }

    /// Call, boot and execution in milliseconds, and the guest's figure of the program's memory in MiB.
    fn measure(&mut self, language: &str, code: &str) -> [f64; 4] {
        let params = json!({"name": "execute_code", "arguments": {"language": language, "code": code}});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let begun = Instant::now();
        writeln!(self.stdin, "{request}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let call = begun.elapsed().as_secs_f64() * 1000.0;
        let response: Value = serde_json::from_str(&line).unwrap();
        let outcome = &response["result"]["structuredContent"];
        assert_eq!(outcome["exit_code"], 0, "{response}");
        let number = |value: &Value| value.as_f64().unwrap();
        [
            call,
            number(&outcome["timing"]["boot_ms"]),
            number(&outcome["timing"]["execute_ms"]),
            number(&outcome["memory_peak_mb"]),
        ]
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
