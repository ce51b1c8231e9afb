//! What is run, and what it must come to.

use serde_json::{Value, json};

/// What must come of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// Its exit status and what it has printed, or the beginning of that.
    Ends(i64, &'static str),
    TimesOut,
    RunsOutOfMemory,
    /// An error with this code.
    Refused(&'static str),
    /// It is cancelled, at once or when others have ended meanwhile, and never answered.
    Cancelled {
        at_once: bool,
    },
}

use Expected::{Cancelled, Ends, Refused, RunsOutOfMemory, TimesOut};

/// One of a mix that repeats itself after 100.
pub(crate) fn program(index: usize) -> (Value, Expected) {
    let plain = |language: &str, code: &str| json!({"language": language, "code": code});
    match index % 100 {
        3 => (json!({"language": "shell", "code": "sleep 1000", "timeout_seconds": 1}), TimesOut),
        53 => (json!({"language": "python", "code": "while True: pass", "timeout_seconds": 1}), TimesOut),
        17 => {
            let code = "data = bytearray()\nwhile True: data += bytes(1 << 20)";
            (json!({"language": "python", "code": code, "memory_mb": 64}), RunsOutOfMemory)
        }
        29 => (plain("shell", "yes x | head -c 3000000"), Ends(0, "x\nx\n")),
        41 => (
            plain("python", "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\nprint('forked')"),
            Ends(0, "forked\n"),
        ),
        61 => (json!({"language": "python", "code": "print(1)", "timeout_seconds": 0}), Refused("invalid_input")),
        71 => (json!({"language": "shell", "code": "kill -9 $$"}), Ends(137, "")),
        83 => {
            (json!({"language": "javascript", "code": "console.log(process.env.A)", "env": {"A": "b"}}), Ends(0, "b\n"))
        }
        91 => (json!({"language": "python", "code": "print('large')", "memory_mb": 1024}), Ends(0, "large\n")),
        other => match other % 10 {
            0 => (plain("python", "raise SystemExit(3)"), Ends(3, "")),
            1 => (plain("javascript", "throw new Error('no')"), Ends(1, "")),
            2 => (plain("shell", "sleep 1000"), Cancelled { at_once: true }),
            4 => (plain("shell", "echo begun; while :; do :; done"), Cancelled { at_once: false }),
            5 | 6 => (plain("python", "open('file', 'w').write('x' * 1000)\nprint(6 * 7)"), Ends(0, "42\n")),
            7 => (plain("javascript", "console.log(6 * 7)"), Ends(0, "42\n")),
            8 => (json!({"language": "shell", "code": "cat", "stdin": "said\n"}), Ends(0, "said\n")),
            _ => (plain("shell", "echo hi > file; cat file"), Ends(0, "hi\n")),
        },
    }
}

/// Panics when it is not what was expected: what is wrong once in ten thousand times is wrong.
#[track_caller]
pub(crate) fn check(response: &Value, expected: Expected) {
    let result = &response["result"];
    let outcome = &result["structuredContent"];
    let is_right = match expected {
        Ends(status, stdout) => {
            let begins = outcome["stdout"].as_str().is_some_and(|text| text.starts_with(stdout));
            outcome["exit_code"] == status && begins && outcome["timed_out"] == false
        }
        TimesOut => outcome["timed_out"] == true && outcome["exit_code"] == -1,
        RunsOutOfMemory => outcome["out_of_memory"] == true && outcome["exit_code"] == 137,
        Refused(code) => result["isError"] == true && result["_meta"]["sandbox-mcp/error"]["code"] == code,
        Cancelled { .. } => false,
    };
    assert!(is_right, "{expected:?}: {response}");
}
