//! A program does what it does when its interpreter is started for it, to the byte: nothing of the interpreter's being warm, of the
//! programs that it has rehearsed, or of the runner can be seen.

use serde_json::{Value, json};

use crate::harness::{Server, execute_request};

/// A language, the program's place, how its interpreter is started, and many programs, each below a line of its name.
struct Suite {
    language: &'static str,
    file: &'static str,
    command: &'static str,
    mark: &'static str,
    programs: &'static str,
}

const PYTHON: Suite = Suite {
    language: "python",
    file: "main.py",
    command: "python3",
    mark: "# ==== ",
    programs: include_str!("plain/python.py"),
};

const JAVASCRIPT: Suite = Suite {
    language: "javascript",
    file: "main.js",
    // Node.js itself, and not the script in front of it, which cannot hand on the name that it was called by.
    command: "-a node /usr/local/bin/node",
    mark: "// ==== ",
    programs: include_str!("plain/javascript.js"),
};

const SHELL: Suite = Suite {
    language: "shell",
    file: "main.sh",
    command: "bash",
    mark: "# ==== ",
    programs: include_str!("plain/shell.sh"),
};

/// Exit code and output, without what is another each time it runs, and what is known to differ.
fn run(server: &mut Server, arguments: Value) -> Value {
    server.send(&execute_request(1, arguments));
    let response = server.receive();
    assert_eq!(response["result"]["isError"], false, "{response}");
    let outcome = &response["result"]["structuredContent"];
    let text = |stream: &str| {
        let lines = outcome[stream].as_str().unwrap().lines();
        // Node.js's own part of a stack: what has called the program.
        let kept = lines.filter(|line| !(line.trim_start().starts_with("at ") && line.contains("node:internal")));
        // Python counts the runner's frames in how deep a recursion goes.
        let kept = kept.filter(|line| !line.contains("[Previous line repeated "));
        kept.map(|line| without_numbers(line, &["0x", "(node:", "pid: ", "main.sh: line 3: "])).collect::<Vec<_>>()
    };
    json!({"exit_code": outcome["exit_code"], "stdout": text("stdout"), "stderr": text("stderr")})
}

/// A line without the numbers behind these words: addresses, and processes'.
fn without_numbers(line: &str, words: &[&str]) -> String {
    words.iter().fold(line.to_owned(), |line, word| {
        let mut parts = line.split(word);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |all, part| all + word + part.trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == ' '))
    })
}

/// Runs each program of a suite in both ways, in fresh VMs, and tells all that differ.
#[track_caller]
fn compare(Suite { language, file, command, mark, programs }: Suite) {
    let mut server = Server::start();
    // In the place, the directory and the environment that a program has, and by an interpreter of another kind.
    let plainly = |program: &str| match language {
        "shell" => {
            let code = format!(
                "import os, signal, sys\nopen('/run/program/{file}', 'w').write(sys.stdin.read())\n\
                 os.dup2(os.open('/dev/null', 0), 0)\n\
                 for one in (signal.SIGPIPE, signal.SIGXFSZ): signal.signal(one, signal.SIG_DFL)\n\
                 os.execvp('{command}', ['{command}', '/run/program/{file}'])"
            );
            json!({"language": "python", "code": code, "stdin": program})
        }
        _ => {
            let code = format!("cat >/run/program/{file}\nexec {command} /run/program/{file} </dev/null");
            json!({"language": "shell", "code": code, "stdin": program})
        }
    };
    let mut different = Vec::new();
    let (mut count, only) = (0, std::env::var("TEST_PROGRAM").unwrap_or_default());
    for named in programs.split(mark).filter(|named| !named.trim().is_empty()) {
        let (name, program) = named.split_once('\n').unwrap();
        if !name.contains(&only) {
            continue;
        }
        count += 1;
        let plain = run(&mut server, plainly(program));
        let ours = run(&mut server, json!({"language": language, "code": program}));
        for what in ["exit_code", "stdout", "stderr"] {
            if plain[what] != ours[what] {
                different.push(format!("{name}: {what}\n--- alone\n{:#}\n--- here\n{:#}", plain[what], ours[what]));
            }
        }
    }
    let text = different.join("\n");
    assert!(different.is_empty(), "{} of {count} programs in {language} differ:\n{text}", different.len());
    assert!(count > 20 || !only.is_empty(), "{count} programs");
}

#[test]
fn a_python_program_is_as_it_is_alone() {
    compare(PYTHON);
}

#[test]
fn a_javascript_program_is_as_it_is_alone() {
    compare(JAVASCRIPT);
}

#[test]
fn a_shell_program_is_as_it_is_alone() {
    compare(SHELL);
}
