//! What a program meets when it wants too much, and that the host does not notice.

use serde_json::{Value, json};

use crate::harness::{check_with, execute};

fn run(language: &str, code: &str, more: Value) -> Value {
    let mut arguments = json!({"language": language, "code": code});
    arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    execute(arguments)
}

#[track_caller]
fn check_timeout(language: &str, code: &str, stdout: &str) {
    let outcome = run(language, code, json!({"timeout_seconds": 1}));
    assert_eq!((&outcome["timed_out"], &outcome["exit_code"]), (&json!(true), &json!(-1)), "{outcome}");
    assert_eq!(outcome["stdout"], stdout);
    let milliseconds = outcome["execution_time_ms"].as_f64().unwrap();
    assert!((1000.0..10_000.0).contains(&milliseconds), "{milliseconds} ms");
}

#[test]
fn a_timeout_keeps_what_was_printed() {
    check_timeout("python", "print('so far', end='')\nwhile True: pass", "so far");
    check_timeout("javascript", "console.log('so far'); for (;;);", "so far\n");
    check_timeout("shell", "echo so far; sleep 1000", "so far\n");
}

#[test]
fn a_timeout_interrupts_first_and_then_kills() {
    let code = "import time\ntry:\n    time.sleep(1000)\nfinally:\n    print('cleaned up')";
    check_timeout("python", code, "cleaned up\n");
    let code = "trap '' INT TERM HUP; echo stubborn; while :; do :; done";
    check_timeout("shell", code, "stubborn\n");
    let code = "
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
if os.fork() == 0: os.setsid()
os.write(1, b'x')
while True: time.sleep(1)
";
    let outcome = run("python", code, json!({"timeout_seconds": 1}));
    assert_eq!((&outcome["timed_out"], &outcome["stdout"]), (&json!(true), &json!("xx")));
}

#[test]
fn a_timeout_reaches_every_process_by_a_signal_that_it_hears() {
    // In a session of its own, and deaf to SIGINT, as what a shell has put into the background.
    let code = "
import os, signal, time
def bye(*_):
    os.write(1, b'bye ')
    os._exit(0)
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, bye)
    while True: time.sleep(1)
try:
    while True: time.sleep(1)
except KeyboardInterrupt:
    time.sleep(0.3)
";
    let outcome = run("python", code, json!({"timeout_seconds": 1}));
    assert_eq!((&outcome["timed_out"], &outcome["stdout"]), (&json!(true), &json!("bye ")), "{outcome}");
    check_timeout(
        "shell",
        "trap 'echo at the end; exit' TERM\necho begun\nwhile :; do sleep 0.1; done",
        "begun\nat the end\n",
    );
}

#[test]
fn a_timeout_shows_where_the_program_was() {
    let code = "import time\ndef wait(): time.sleep(100)\nwait()";
    let outcome = run("python", code, json!({"timeout_seconds": 1}));
    let stderr = outcome["stderr"].as_str().unwrap();
    assert!(stderr.contains("in wait") && stderr.ends_with("KeyboardInterrupt\n"), "{outcome}");
}

#[test]
fn output_over_the_cap_is_cut_and_the_run_goes_on() {
    let code = "
import sys
for _ in range(30): sys.stdout.write('é' * 25_000)
sys.stdout.write('ab' * 1_000_000)
sys.stderr.write('y' * 150_000)
open('/workspace/end', 'w').write('reached')
sys.exit(len(open('/workspace/end').read()))
";
    let outcome = run("python", code, json!({}));
    assert_eq!((&outcome["exit_code"], &outcome["truncated"]), (&json!(7), &json!(true)));
    assert_eq!((&outcome["stdout_bytes"], &outcome["stderr_bytes"]), (&json!(3_500_000), &json!(150_000)));
    let stdout = outcome["stdout"].as_str().unwrap();
    let (head, tail) = stdout.split_once("\n[... 2500002 bytes left out ...]\n").unwrap();
    assert!(head.chars().all(|c| c == 'é') && head.len() == 499_998 && tail == "ab".repeat(250_000), "{}", head.len());
    let (head, tail) = outcome["stderr"].as_str().unwrap().split_once("\n[... 50003 bytes left out ...]\n").unwrap();
    assert!((head.len(), tail.len()) == (49_997, 50_000));
    assert_eq!(outcome["invalid_utf8"], false, "a character was split");
}

#[test]
fn a_gigabyte_on_one_line_is_counted() {
    let outcome = run("shell", "head -c 300000000 /dev/zero; echo RESULT", json!({"timeout_seconds": 120}));
    assert_eq!((&outcome["exit_code"], &outcome["stdout_bytes"]), (&json!(0), &json!(300_000_007)));
    let stdout = outcome["stdout"].as_str().unwrap();
    assert!((999_990..1_000_050).contains(&stdout.len()), "{}", stdout.len());
    assert!(stdout.ends_with("\0RESULT\n"), "its last words are lost");
}

#[test]
fn bytes_that_are_not_text_are_replaced_and_said() {
    let code = "import sys, time\nfor part in (b'\\xe2\\x82', b'\\xac', b'\\xff', b'ok\\n'):\n    sys.stdout.buffer.write(part); time.sleep(0.05)";
    let outcome = run("python", code, json!({}));
    assert_eq!((&outcome["stdout"], &outcome["invalid_utf8"]), (&json!("€\u{fffd}ok\n"), &json!(true)));
}

#[test]
fn programs_are_told_the_memory_that_they_may_use() {
    let code = "free -m | awk '/^Mem/ { print $2 }'; node -p 'os.totalmem() / 2 ** 20'
python3 -c 'import os; print(os.sysconf(\"SC_PHYS_PAGES\") * os.sysconf(\"SC_PAGESIZE\") >> 20)'
awk '/MemAvailable/ { print ($2 > 100 * 1024 && $2 <= 192 * 1024) }' /proc/meminfo";
    for (memory_mb, expected) in [(192, "192\n192\n192\n1\n"), (2048, "2048\n2048\n2048\n0\n")] {
        check_with(json!({"language": "shell", "code": code, "memory_mb": memory_mb}), 0, expected, "");
    }
}

#[test]
fn memory_is_limited_for_the_program_alone() {
    let code = "data = bytearray()\nwhile True: data += b'x' * 10_000_000";
    let outcome = run("python", code, json!({"memory_mb": 128, "timeout_seconds": 60}));
    assert_eq!((&outcome["exit_code"], &outcome["out_of_memory"]), (&json!(137), &json!(true)), "{outcome}");
    let said = "sandbox: out of memory: a process was killed at the limit of 128 MiB; memory_mb may be up to 2048\n";
    assert_eq!(outcome["stderr"], said);
    let peak = outcome["memory_peak_mb"].as_f64().unwrap();
    assert!((100.0..=128.5).contains(&peak), "{peak} MiB");
    // All of the largest limit can be had.
    let code = "data = bytearray(1900 * 1024 * 1024)\nprint(len(data))";
    check_with(
        json!({"language": "python", "code": code, "memory_mb": 2048, "timeout_seconds": 120}),
        0,
        "1992294400\n",
        "",
    );
}

#[test]
fn javascript_may_use_the_memory_of_its_program_and_is_told_when_that_is_not_enough() {
    // A template's VM has more memory than a program, and V8 a limit of its own, which has to do with neither.
    let fill = |mb| {
        format!(
            "const all = [];\nfor (let i = 0; i < {mb}; i++) all.push(new Array(131072).fill(0.5 + i));\nconsole.log(all.length);"
        )
    };
    for (memory_mb, mb) in [(512, 300), (2048, 1600)] {
        let arguments =
            json!({"language": "javascript", "code": fill(mb), "memory_mb": memory_mb, "timeout_seconds": 240});
        check_with(arguments, 0, &format!("{mb}\n"), "");
    }
    for (memory_mb, advice) in [(512, "memory_mb may be up to 2048"), (2048, "")] {
        let outcome = run("javascript", &fill(4000), json!({"memory_mb": memory_mb, "timeout_seconds": 240}));
        assert_eq!((&outcome["exit_code"], &outcome["out_of_memory"]), (&json!(137), &json!(true)), "{outcome}");
        let said = format!("sandbox: out of memory: a process was killed at the limit of {memory_mb} MiB; {advice}");
        assert!(outcome["stderr"].as_str().unwrap().starts_with(&said), "{outcome}");
    }
    // What is garbage is no reason to be killed.
    let code = "let kept = [];\nfor (let i = 0; i < 400; i++) { kept.push(Array.from({ length: 20000 }, (_, j) => ({ i, j }))); if (kept.length > 60) kept = kept.slice(40); }\nconsole.log('done');";
    for memory_mb in [512, 1536] {
        check_with(
            json!({"language": "javascript", "code": code, "memory_mb": memory_mb, "timeout_seconds": 240}),
            0,
            "done\n",
            "",
        );
    }
}

#[test]
fn bombs_fizzle() {
    let outcome = run(
        "shell",
        "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 2; echo survived",
        json!({"timeout_seconds": 20}),
    );
    assert!(outcome["exit_code"].is_number(), "{outcome}");
    let code = "
import threading, time
started = 0
try:
    for _ in range(10_000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); started += 1
except RuntimeError:
    print(300 < started < 600)
";
    check_with(json!({"language": "python", "code": code}), 0, "True\n", "");
}

/// Fills the writable space with one file.
const FILL: &str = "
import os
try:
    with open('/workspace/full', 'wb', 0) as file:
        while True: file.write(b'x' * (1 << 20))
except OSError as error: print(error.errno, os.stat('/workspace/full').st_size >> 20)
for place in ('/tmp', '/dev/shm', '/home/user', '/var/tmp'):
    try:
        with open(f'{place}/more', 'wb', 0) as file: print(file.write(b'x' * 4096))
    except OSError as error: print(place, error.errno)
";

/// And then, which takes the kernel's memory, with empty ones.
const FILL_WITH_NAMES: &str = "
made = 0
try:
    while True: open(f'/tmp/{made}', 'w').close(); made += 1
except OSError as error: print(error.errno, made > 1000)
";

const NODE_FILL: &str = "
const fs = require('fs');
const data = Buffer.alloc(1 << 20);
for (const place of ['/workspace', '/tmp', '/dev/shm']) {
  const file = fs.openSync(`${place}/full`, 'w');
  try { for (;;) fs.writeSync(file, data); } catch (error) { console.log(error.code, fs.fstatSync(file).size >> 20); }
  fs.unlinkSync(`${place}/full`);
  fs.closeSync(file);
}";

#[test]
fn a_full_disk_is_an_error_and_no_kill() {
    let fill_whole = format!("{FILL}{FILL_WITH_NAMES}");
    let from_shell = format!("cat >/tmp/fill.py <<'EOF'\n{fill_whole}\nEOF\npython3 /tmp/fill.py");
    for (language, code, memory_mb, size_mb) in [
        ("python", fill_whole.as_str(), 64, 12),
        ("shell", from_shell.as_str(), 64, 12),
        ("javascript", NODE_FILL, 64, 12),
        ("python", FILL, 512, 348),
        ("python", FILL, 2048, 1024),
    ] {
        let outcome = run(language, code, json!({"memory_mb": memory_mb, "timeout_seconds": 300}));
        // The program itself takes a page.
        let last_mb = size_mb - 1;
        let names = if memory_mb == 64 { "28 True\n" } else { "" };
        let expected = match language {
            "javascript" => format!("ENOSPC {last_mb}\n").repeat(3),
            _ => format!("28 {last_mb}\n/tmp 28\n/dev/shm 28\n/home/user 28\n/var/tmp 28\n{names}"),
        };
        assert_eq!(outcome["stdout"], expected, "{language} with {memory_mb} MiB: {outcome}");
        assert_eq!((&outcome["exit_code"], &outcome["out_of_memory"]), (&json!(0), &json!(false)), "{outcome}");
    }
}

#[test]
fn a_file_is_no_larger_than_what_is_in_it() {
    let code = "
import os
with open('sparse', 'wb') as file: file.truncate(1 << 40)
print(os.stat('sparse').st_blocks)
";
    check_with(json!({"language": "python", "code": code}), 0, "0\n", "");
}

#[test]
fn code_and_stdin_may_be_as_large_as_said() {
    let padded = |code: &str| format!("{code}\n{}", "#".repeat(1024 * 1024 - code.len() - 1));
    let stdin = "y".repeat(4 * 1024 * 1024);
    for (language, code) in [("python", "import sys; print(len(sys.stdin.read()))"), ("shell", "wc -c")] {
        check_with(json!({"language": language, "code": padded(code), "stdin": stdin}), 0, "4194304\n", "");
    }
}
