//! Output on its way to the client while the program runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{DEADLINE, Server, request};

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

#[test]
fn a_client_that_does_not_read_gets_everything_later() {
    const CALLS: usize = 4;
    let mut server = Server::initialized();
    let code = "import time; print('x' * 450_000); time.sleep(0.5); print('y' * 449_999)";
    for id in 0..CALLS {
        let params = json!({"name": "execute_code", "arguments": {"language": "python", "code": code}, "_meta": {"progressToken": id}});
        server.send(&request(id, "tools/call", params));
    }
    // The programs do not wait for the client: their VMs come and go while the pipe is full.
    let begun = Instant::now();
    while server.virtual_machines().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "no VM was started");
        std::thread::sleep(Duration::from_millis(2));
    }
    server.wait_for_machines(0, DEADLINE);
    let resident = server.resident_mb();
    assert!(resident < RESIDENT_MAX_MB, "{resident} MiB are held for a client that does not read");
    let mut answered = 0;
    while answered < CALLS {
        let message = server.receive();
        if message.get("id").is_some() {
            assert_eq!(message["result"]["structuredContent"]["stdout_bytes"], 900_001);
            answered += 1;
        }
    }
}
