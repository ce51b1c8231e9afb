//! Output on its way to the client while the program runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{DEADLINE, Server, execute_request, request};

const CODE: &str = "import time\nfor n in range(6):\n    print(n, 'é'); time.sleep(0.2)";

fn call(token: Option<Value>) -> Value {
    let mut params = json!({"name": "execute_code", "arguments": {"language": "python", "code": CODE}});
    if let Some(token) = token {
        params["_meta"] = json!({"progressToken": token});
    }
    request(1, "tools/call", params)
}

#[test]
fn output_streams_as_progress_and_is_whole_in_the_result() {
    for token in [json!("token"), json!(7)] {
        let mut server = Server::initialized();
        server.send(&call(Some(token.clone())));
        let (mut text, mut last, mut count) = (String::new(), -1.0, 0);
        let result = loop {
            let message = server.receive();
            if message.get("id").is_some() {
                break message;
            }
            assert_eq!(message["method"], "notifications/progress");
            let params = &message["params"];
            assert_eq!(params["progressToken"], token, "the token is echoed with its type");
            let progress = params["progress"].as_f64().unwrap();
            assert!(progress > last, "progress does not rise");
            (last, count) = (progress, count + 1);
            text += params["message"].as_str().unwrap();
        };
        let stdout = result["result"]["structuredContent"]["stdout"].as_str().unwrap().to_string();
        assert_eq!(stdout, "0 é\n1 é\n2 é\n3 é\n4 é\n5 é\n");
        assert!(stdout.starts_with(&text), "{text:?} is not the beginning of {stdout:?}");
        // A line goes out at once or with the next; how many are on their way together depends on how busy the machine is.
        assert!((2..=6).contains(&count), "{count} notifications");
        server.expect_silence(Duration::from_millis(100));
    }
}

#[test]
fn without_a_token_there_is_no_progress() {
    let mut server = Server::initialized();
    server.send(&call(None));
    assert_eq!(server.receive()["id"], 1);
}

/// What the server may use while a client does not read: four results of 0.9 MB are held, in a few forms.
/// 28 MiB were measured.
const RESIDENT_MAX_MB: u64 = 100;

/// Reads until so many calls are answered; returns the progress and the result of each.
fn receive_all(server: &mut Server, calls: usize) -> Vec<(String, Value)> {
    let mut all = vec![(String::new(), Value::Null); calls];
    let mut answered = 0;
    while answered < calls {
        let message = server.receive();
        if let Some(id) = message["id"].as_u64() {
            let result = &mut all[id as usize].1;
            assert!(result.is_null(), "{id} is answered twice");
            *result = message["result"]["structuredContent"].clone();
            answered += 1;
        } else {
            let params = &message["params"];
            let (text, result) = &mut all[params["progressToken"].as_u64().unwrap() as usize];
            assert!(result.is_null(), "progress after the result");
            *text += params["message"].as_str().unwrap();
        }
    }
    all
}

#[test]
fn a_client_that_does_not_read_gets_everything_later() {
    const CALLS: usize = 4;
    let mut server = Server::initialized();
    let code = "import time; print('x' * 450_000); time.sleep(0.5); print('y' * 449_999)";
    for id in 0..CALLS {
        server.send(&execute_request(id, json!({"language": "python", "code": code})));
    }
    // Without progress the programs do not wait for the client: their VMs come and go while the pipe is full.
    let begun = Instant::now();
    while server.virtual_machines().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "no VM was started");
        std::thread::sleep(Duration::from_millis(2));
    }
    server.wait_for_machines(0, DEADLINE);
    let resident = server.resident_mb();
    assert!(resident < RESIDENT_MAX_MB, "{resident} MiB are held for a client that does not read");
    for (_, result) in receive_all(&mut server, CALLS) {
        assert_eq!(result["stdout_bytes"], 900_001);
    }
}

/// A program that prints 900,000 bytes, each 1000 of them with their number. It takes a second or two, if it is heard.
const TALKATIVE: &str = "
import time
for n in range(900):
    print(f'{n:06}', end='x' * 994, flush=True)
    if n % 10 == 0: time.sleep(0.01)
";

fn talk(server: &mut Server, id: usize, language: &str, code: &str, timeout_seconds: u64) {
    let arguments = json!({"language": language, "code": code, "timeout_seconds": timeout_seconds});
    let params = json!({"name": "execute_code", "arguments": arguments, "_meta": {"progressToken": id}});
    server.send(&request(id, "tools/call", params));
}

#[test]
fn a_client_that_stops_reading_for_10_s_throttles_its_runs_and_loses_nothing() {
    const CALLS: usize = 2;
    let mut server = Server::initialized();
    for id in 0..CALLS {
        talk(&mut server, id, "python", TALKATIVE, 120);
    }
    server.wait_for_machines(CALLS, DEADLINE);
    std::thread::sleep(Duration::from_secs(3));
    let before = server.resident_mb();
    std::thread::sleep(Duration::from_secs(7));
    let after = server.resident_mb();
    assert!(after < before + 4, "{before} MiB became {after} MiB");
    assert_eq!(server.virtual_machines().len(), CALLS, "a run did not wait for its client");
    for (text, result) in receive_all(&mut server, CALLS) {
        let expected: String = (0..900).map(|n| format!("{n:06}{}", "x".repeat(994))).collect();
        assert_eq!((&result["exit_code"], &result["truncated"]), (&json!(0), &json!(false)));
        assert!(result["stdout"] == expected, "the result is not whole");
        assert!(!text.is_empty() && expected.starts_with(&text), "{} bytes of progress are not as printed", text.len());
    }
}

/// The progress and the result of a program that runs into its deadline, or seems to, while its client does not read.
fn unheard(language: &str, code: &str) -> (String, Value) {
    let mut server = Server::initialized();
    // Long enough for a program of a second or two on a machine that is busy with other tests.
    talk(&mut server, 0, language, code, 20);
    server.wait_for_machines(1, DEADLINE);
    server.wait_for_machines(0, DEADLINE);
    receive_all(&mut server, 1).remove(0)
}

#[test]
fn a_throttled_program_has_its_deadline() {
    let (text, result) = unheard("shell", "yes");
    assert_eq!((&result["timed_out"], &result["exit_code"]), (&json!(true), &json!(-1)));
    let stdout = result["stdout"].as_str().unwrap();
    assert!(!stdout.is_empty() && stdout.starts_with(&text), "{} bytes", stdout.len());
}

#[test]
fn a_program_that_had_ended_before_its_deadline_is_not_timed_out_by_its_client() {
    let (text, result) = unheard("python", TALKATIVE);
    assert_eq!((&result["timed_out"], &result["exit_code"]), (&json!(false), &json!(0)));
    let stdout = result["stdout"].as_str().unwrap();
    assert!(stdout.len() == 900_000 && stdout.starts_with(&text), "{} bytes", stdout.len());
}

#[test]
fn two_hundred_calls_at_once_have_their_own_answers() {
    const CALLS: usize = 200;
    const REPLY_BYTES: usize = 64 * 1024;
    let mut server = Server::initialized();
    let call = |id: usize| {
        let code = format!("yes {id} | head -c {REPLY_BYTES}");
        let params = json!({"name": "execute_code", "arguments": {"language": "shell", "code": code}, "_meta": {"progressToken": id}});
        request(id, "tools/call", params)
    };
    (0..CALLS).for_each(|id| server.send(&call(id)));
    let mut answers = vec![0; CALLS];
    while answers.contains(&0) {
        let message = server.receive();
        let Some(id) = message["id"].as_u64() else { continue };
        let result = &message["result"];
        if result["isError"] == true {
            // A machine that is slow turns away who has waited for a minute, and says when to come again.
            let error = &result["_meta"]["sandbox-mcp/error"];
            assert_eq!((&error["code"], &error["retryable"]), (&json!("capacity"), &json!(true)), "{message}");
            server.send(&call(id as usize));
            continue;
        }
        answers[id as usize] += 1;
        let expected: String = format!("{id}\n").repeat(REPLY_BYTES).chars().take(REPLY_BYTES).collect();
        assert!(result["structuredContent"]["stdout"] == expected, "the answer to {id} is another's");
    }
    server.expect_silence(Duration::from_millis(300));
    assert!(answers.iter().all(|count| *count == 1), "{answers:?}");
}
