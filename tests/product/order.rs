//! Requests that are sent without waiting for answers: what is about the same session begins in the order in which it came.

use serde_json::{Value, json};

use crate::harness::execute_request;
use crate::sessions::{Session, answers, fields, tool};

/// Sends all of them at once; the answers, in that order.
fn at_once(session: &mut Session, calls: Vec<(&str, Value)>) -> Vec<Value> {
    let count = calls.len();
    let lines: Vec<String> = (100..)
        .zip(calls)
        .map(|(id, (name, arguments))| tool(id, name, session.named(arguments)).to_string() + "\n")
        .collect();
    session.server.send_text(&lines.concat());
    let mut answers = answers(&mut session.server, count);
    (100..).take(count).map(|id| answers.remove(&id).unwrap()).collect()
}

fn python(code: impl Into<String>) -> (&'static str, Value) {
    ("execute_code", json!({"language": "python", "code": code.into()}))
}

#[test]
fn calls_of_a_session_begin_in_the_order_in_which_they_came() {
    let mut session = Session::open();
    session.run("python", "all = []");
    for round in 0..5 {
        let calls = (0..12).map(|number| python(format!("all.append({number})"))).collect();
        at_once(&mut session, calls).iter().for_each(|answer| drop(fields(answer)));
        let seen = session.run("python", "print(all); all.clear()");
        assert_eq!(seen["stdout"], "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]\n", "round {round}");
    }
}

#[test]
fn a_call_finds_the_files_that_were_sent_before_it() {
    let mut session = Session::open();
    for round in 0..5 {
        let text = format!("{round}").repeat(2_000_000);
        let answers = at_once(
            &mut session,
            vec![
                ("write_file", json!({"path": "large", "text": text})),
                ("write_file", json!({"path": "small", "text": format!("{round}")})),
                python("print(len(open('large').read()), open('large').read(1), open('small').read())"),
                ("execute_code", json!({"language": "shell", "code": "wc -c < large; cat small"})),
            ],
        );
        assert_eq!(fields(&answers[2])["stdout"], format!("2000000 {round} {round}\n"));
        assert_eq!(fields(&answers[3])["stdout"], format!("2000000\n{round}"));
    }
}

#[test]
fn what_is_sent_later_waits_for_no_program_and_input_comes_in_order() {
    let mut session = Session::open();
    let lasting = session.named(json!({"language": "python", "code": "import time; time.sleep(1000)"}));
    session.server.send(&execute_request(99, lasting));
    let answers = at_once(
        &mut session,
        vec![
            ("write_file", json!({"path": "a", "text": "here"})),
            ("execute_code", json!({"language": "shell", "code": "cat a"})),
            ("read_file", json!({"path": "a"})),
        ],
    );
    assert_eq!(fields(&answers[1])["stdout"], "here");
    assert_eq!(fields(&answers[2])["text"], "here");

    let background = json!({"language": "shell", "code": "cat", "background": true});
    let run = fields(&session.call("execute_code", background))["run_id"].as_str().unwrap().to_owned();
    let lines: Vec<String> = (0..20)
        .map(|number| {
            let input = json!({"run_id": run, "text": format!("{number} "), "end": number == 19});
            tool(200 + number, "send_input", input).to_string() + "\n"
        })
        .collect();
    session.server.send_text(&lines.concat());
    answers_of(&mut session, 20);
    session.server.send(&tool(2, "get_run", json!({"run_id": run, "wait_seconds": 20})));
    let expected: String = (0..20).map(|number| format!("{number} ")).collect();
    let mut seen = String::new();
    let mut report = fields(&session.server.receive());
    loop {
        seen += report["stdout"].as_str().unwrap();
        if report["running"] == false {
            break;
        }
        let asked = json!({"run_id": run, "wait_seconds": 20, "since": report["next"]});
        session.server.send(&tool(2, "get_run", asked));
        report = fields(&session.server.receive());
    }
    assert_eq!(seen, expected);
}

fn answers_of(session: &mut Session, count: usize) {
    answers(&mut session.server, count).values().for_each(|answer| drop(fields(answer)));
}
