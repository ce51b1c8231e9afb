//! How much of what a program has written a model is shown, and how it gets at the rest; what would help one that has failed.

use serde_json::{Value, json};

use crate::harness::request;
use crate::results::{OUTCOME, call, server, texts};

#[test]
fn much_output_has_a_beginning_and_an_end_and_all_of_it_can_be_had() {
    let mut server = server(&["--max-output-chars", "2000"]);
    let code = "import sys\nfor i in range(5000): print('line', i)\nfor i in range(500): print('warning', i, file=sys.stderr)\nsys.exit(4)";
    let arguments = json!({"language": "python", "code": code});
    let result = call(&mut server, arguments.clone());
    let [stdout, stderr, said] = texts(&result)[..] else { panic!("{result}") };
    assert!(stdout.starts_with("line 0\nline 1\n") && stdout.ends_with("\nline 4998\nline 4999\n"), "{stdout}");
    assert!(stderr.starts_with("stderr:\nwarning 0\n") && stderr.ends_with("\nwarning 499\n"), "{stderr}");
    let left_out = |text: &str| text.lines().filter(|line| line.ends_with(" lines left out ...]")).count();
    assert_eq!((left_out(stdout), left_out(stderr)), (1, 1));
    assert!(stdout.chars().count() + stderr.chars().count() < 2100);
    let all: String = (0..5000).map(|number| format!("line {number}\n")).collect();
    // A program that reads along has all of it.
    assert_eq!(result.pointer(OUTCOME).unwrap()["stdout"], all);

    // What the model is told to do gives it the rest, in parts.
    let (words, asking) = said.split_once("; stdout and stderr cut; get_run ").unwrap();
    assert_eq!(words, "exit code 4");
    let mut asked: Value = serde_json::from_str(asking.strip_suffix(" reads on").unwrap()).unwrap();
    let begin = asked["since"].as_u64().unwrap() as usize;
    assert!(stdout.starts_with(&all[..begin]) && all[..begin].ends_with('\n'), "{begin}");
    let mut seen = all[..begin].to_owned();
    while !seen.contains("warning 499\n") {
        server.send(&request(2, "tools/call", json!({"name": "get_run", "arguments": asked})));
        let part = server.receive()["result"].clone();
        let texts = texts(&part);
        assert!(texts.iter().map(|text| text.len()).sum::<usize>() < 2200, "{part}");
        for text in &texts[..texts.len() - 1] {
            seen += text.strip_prefix("stderr:\n").unwrap_or(text);
        }
        asked["since"] = part.pointer(OUTCOME).unwrap()["next"].clone();
    }
    let warnings: String = (0..500).map(|number| format!("warning {number}\n")).collect();
    assert!(seen == all.clone() + &warnings, "something is missing or twice");

    // In a session programs can search it.
    server.send(&request(3, "tools/call", json!({"name": "open_session", "arguments": {}})));
    let opened = server.receive();
    let session = opened["result"].pointer(OUTCOME).unwrap()["session_id"].clone();
    let mut in_session = arguments;
    in_session["session_id"] = session.clone();
    in_session["code"] = json!("for i in range(5000): print('line', i)");
    let result = call(&mut server, in_session);
    let (_, file) = texts(&result)[1].split_once("stdout cut; more of it: ").unwrap();
    let search = json!({"language": "shell", "code": format!("grep -c line {file}"), "session_id": session});
    assert_eq!(texts(&call(&mut server, search)), ["5000\n"]);
}

#[test]
fn output_over_all_limits_is_said_to_be_cut() {
    let code = "print('x' * 3_000_000); print('RESULT')";
    let result = call(&mut server(&[]), json!({"language": "python", "code": code}));
    let [stdout, said] = texts(&result)[..] else { panic!("{} blocks", texts(&result).len()) };
    assert!(stdout.chars().count() < 25_100 && stdout.ends_with("x\nRESULT\n"), "{}", stdout.len());
    assert!(said.contains("output cut: there were 3000008 bytes of stdout and 0 of stderr"), "{said}");
}

#[test]
fn progress_bars_and_colours_are_what_a_terminal_shows_in_the_end() {
    let mut server = server(&[]);
    let code = "import sys, time\nfor i in range(101): sys.stderr.write(f'\\r{i}%|' + '#' * (i // 10))\nprint('\\x1b[31mred\\x1b[0m')";
    let result = call(&mut server, json!({"language": "python", "code": code}));
    assert_eq!(texts(&result), ["red\n", "stderr:\n100%|##########"]);
    let outcome = result.pointer(OUTCOME).unwrap();
    assert_eq!(outcome["stdout"], "\u{1b}[31mred\u{1b}[0m\n");
    assert!(outcome["stderr"].as_str().unwrap().starts_with("\r0%|\r1%|"));
}

#[test]
fn what_would_help_is_said_where_it_is_certain() {
    let mut server = server(&[]);
    let (no_network, more_memory) = (
        "there is no network: name packages in packages, and give data as files",
        "memory_mb may be up to 2048; room for files grows with it",
    );
    for (language, code, hint) in [
        ("python", "import sklearn", "packages: [\"scikit-learn\"] has it"),
        ("javascript", "require('lodash/map')", "packages: [\"lodash\"] has it"),
        ("javascript", "import x from '@babel/core'", "packages: [\"@babel/core\"] has it"),
        ("python", "input('name? ')", "stdin was empty: give it what input() shall read"),
        ("python", "import os\n!pip install requests", "!pip is a notebook's command: name packages in packages"),
        ("python", "import urllib.request; urllib.request.urlopen('https://example.org')", no_network),
        ("shell", "curl -sS https://example.org", no_network),
        ("javascript", "await fetch('https://example.org')", no_network),
        ("python", "bytearray(1 << 40)", more_memory),
        ("shell", "head -c 3000000000 /dev/zero > f", more_memory),
    ] {
        let result = call(&mut server, json!({"language": language, "code": code}));
        let last = *texts(&result).last().unwrap();
        assert_eq!(last.split_once("\nhint: ").map(|(_, hint)| hint), Some(hint), "{code}: {result}");
    }
    let code = "raise SystemExit('MemoryError is what I looked for')";
    let fine = call(&mut server, json!({"language": "python", "code": code}));
    assert_eq!(texts(&fine).last(), Some(&"exit code 1"), "{fine}");
}

#[test]
fn only_the_tools_that_are_offered_are_there() {
    let mut server = server(&["--tools", "pool_status execute_code"]);
    server.send(&request(1, "tools/list", json!({})));
    let listed = server.receive();
    let names: Vec<&str> =
        listed["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["execute_code", "pool_status"]);
    server.send(&request(2, "tools/call", json!({"name": "open_session", "arguments": {}})));
    assert_eq!(server.receive()["error"]["message"], "Unknown tool: open_session");
    assert_eq!(texts(&call(&mut server, json!({"language": "shell", "code": "echo here"}))), ["here\n"]);
}

#[test]
fn a_conversation_does_not_pay_much_for_the_tools() {
    let mut server = server(&[]);
    server.send(&request(1, "tools/list", json!({})));
    let tools = server.receive()["result"]["tools"].to_string();
    assert!(tools.len() < 12_000, "{} characters", tools.len());
}
