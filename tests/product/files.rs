//! Files that go into a VM and come out of it, and folders of the host that they may come from and go to.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, command, request};
use crate::sessions::{Session, answers, fault, fields, tool};

const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

impl Session {
    #[track_caller]
    fn write(&mut self, path: &str, text: &str) {
        let written = fields(&self.call("write_file", json!({"path": path, "text": text})));
        assert_eq!(written["size_bytes"], text.len());
    }

    #[track_caller]
    fn read(&mut self, path: &str) -> Value {
        fields(&self.call("read_file", json!({"path": path})))
    }

    #[track_caller]
    fn list(&mut self, path: &str, recursive: bool) -> Vec<String> {
        let listed = fields(&self.call("list_files", json!({"path": path, "recursive": recursive})));
        let told = |file: &Value| format!("{} {}", file["kind"].as_str().unwrap(), file["path"].as_str().unwrap());
        listed["files"].as_array().unwrap().iter().map(told).collect()
    }

    /// An error that names what was wrong, and what it says.
    #[track_caller]
    fn refuse(&mut self, name: &str, arguments: Value, words: &str) {
        let (code, message) = fault(&self.call(name, arguments.clone()));
        assert!(code == "invalid_input" && message.contains(words), "{arguments}: {code}: {message}");
    }
}

/// One program, in a VM of its own.
#[track_caller]
fn once(server: &mut Server, arguments: Value) -> Value {
    server.send(&tool(1, "execute_code", arguments));
    fields(&server.receive())
}

#[test]
fn files_arrive_as_they_were_under_any_name() {
    let mut session = Session::open();
    let long = format!("{}/{}", "d".repeat(250), "é".repeat(127));
    for path in ["a", "Größe 1/日本語 🎉.txt", "--help", "a'b\"c\\d\n", " ", "/tmp/x/y", &long] {
        let text = format!("of {path:?}\r\n\u{feff}end");
        session.write(path, &text);
        let read = session.read(path);
        assert_eq!((read["text"].as_str(), &read["next"]), (Some(text.as_str()), &json!(text.len())), "{path}");
    }
    let bytes = "/wD+/f8A";
    let written = session.call("write_file", json!({"path": "bytes", "base64": bytes}));
    assert_eq!(fields(&written)["size_bytes"], 6);
    assert_eq!(session.read("bytes")["base64"], bytes);
    fields(&session.call("write_file", json!({"path": "empty", "text": ""})));
    assert_eq!((&session.read("empty")["text"], &session.read("empty")["size_bytes"]), (&json!(""), &json!(0)));
    fields(&session.call("write_file", json!({"path": "p.png", "base64": format!("{}\n{}", &PNG[..60], &PNG[60..])})));
    let picture = session.read("p.png");
    assert_eq!((&picture["mime_type"], &picture["base64"]), (&json!("image/png"), &json!(PNG)));

    // One is seen as a whole or not at all.
    session.run("shell", "cp p.png large.png; head -c 300000 /dev/zero >> large.png");
    let large = session.read("large.png");
    assert_eq!((&large["mime_type"], &large["next"]), (&json!("image/png"), &json!(300_070)));
    let part = fields(&session.call("read_file", json!({"path": "large.png", "length": 1000})));
    assert_eq!((part.get("mime_type"), &part["next"]), (None, &json!(1000)));

    fields(&session.call("write_file", json!({"path": "bin/tool", "text": "#!/bin/sh\necho ran", "executable": true})));
    assert_eq!(
        session.run("shell", "bin/tool; stat -c '%U %a' bin/tool a")["stdout"],
        "ran\nsandbox 755\nsandbox 644\n"
    );
    assert_eq!(session.run("python", "len(open('Größe 1/日本語 🎉.txt', newline='').read())")["exit_code"], 0);
}

#[test]
fn a_file_takes_the_place_of_another_and_is_read_in_parts() {
    let mut session = Session::open();
    assert_eq!(session.run("shell", "echo old > f; ln -s f link; ln f hard; exec 3< f")["exit_code"], 0);
    session.write("link", "new");
    let seen = session.run("shell", "cat f hard link; test -L link || echo a file; cat <&3");
    assert_eq!(seen["stdout"], "old\nold\nnewa file\nold\n");

    session.write("text", &"é".repeat(100_000));
    let part = session.read("text");
    assert_eq!((&part["size_bytes"], &part["next"]), (&json!(200_000), &json!(100_000)));
    let arguments = json!({"path": "text", "offset": "199998", "length": 1});
    let part = fields(&session.call("read_file", arguments));
    assert_eq!(part["base64"], "ww==", "half of a character is no text");
    let part = fields(&session.call("read_file", json!({"path": "text", "offset": 199_995, "length": 4})));
    assert_eq!(part["base64"], "qcOpww==", "{part}");
    let part = fields(&session.call("read_file", json!({"path": "text", "offset": 199_996, "length": 3})));
    assert_eq!((&part["text"], &part["next"]), (&json!("é"), &json!(199_998)));
    let part = fields(&session.call("read_file", json!({"path": "text", "offset": 300_000})));
    assert_eq!((&part["text"], &part["size_bytes"]), (&json!(""), &json!(200_000)));
}

#[test]
fn folders_are_listed() {
    let mut session = Session::open();
    assert_eq!(session.list(".", true), Vec::<String>::new());
    assert_eq!(
        session.run("shell", "mkdir -p a/b; echo 12345 > a/b/f; mkfifo a/p; ln -s /etc/passwd l; touch z")["exit_code"],
        0
    );
    assert_eq!(session.list("", false), ["folder a", "link l", "file z"]);
    assert_eq!(
        session.list("/workspace", true),
        ["folder a", "folder a/b", "file a/b/f", "other a/p", "link l", "file z"]
    );
    let listed = fields(&session.call("list_files", json!({"path": "a/b"})));
    assert_eq!(listed, json!({"files": [{"path": "f", "kind": "file", "size_bytes": 6}], "truncated": false}));
    session.run("shell", "mkdir many; cd many; seq 30000 | xargs touch");
    let listed = fields(&session.call("list_files", json!({"path": "many"})));
    assert_eq!((listed["files"].as_array().unwrap().len(), &listed["truncated"]), (1000, &json!(true)));
    // What cannot be looked into is told, and hides nothing else.
    session.run("shell", "cd /workspace; rm -r many; mkdir shut; touch shut/x; chmod 0 shut");
    assert_eq!(
        session.list(".", true),
        ["folder a", "folder a/b", "file a/b/f", "other a/p", "link l", "folder shut", "file z"]
    );
    session.refuse("list_files", json!({"path": "shut"}), "Permission denied");
    session.refuse("list_files", json!({"path": "none"}), "No such file or directory");
    session.refuse("list_files", json!({"path": "z"}), "Not a directory");
}

#[test]
fn what_is_no_file_of_the_users_is_refused_at_once() {
    let mut session = Session::open();
    session.run(
        "shell",
        "mkfifo p; mkdir d; ln -s /dev/zero zero; ln -s loop loop; ln -s /root/.bashrc secret; ln -s /etc out; touch f",
    );
    let begun = Instant::now();
    for (path, words) in [
        ("../x", "path: has `..`"),
        ("a/../../x", "path: has `..`"),
        ("/etc/passwd", "path: is outside /workspace, /tmp"),
        ("/workspacex", "path: is outside"),
        ("a\0b", "path: has a NUL byte"),
        ("", "path: is empty"),
        (&"x/".repeat(2049), "path: is 4098 bytes"),
        (&"x".repeat(256), "File name too long"),
        ("none", "No such file"),
        ("p", "it is no regular file"),
        ("d", "it is a directory"),
        ("zero", "it is no regular file"),
        ("loop", "Too many symbolic links"),
        ("secret", "Permission denied"),
    ] {
        session.refuse("read_file", json!({"path": path}), words);
    }
    for (path, words) in [
        ("../x", "path: has `..`"),
        ("/usr/bin/python3", "path: is outside"),
        ("x/", "path: ends with `/`"),
        ("d", "it is a directory"),
        ("p", "it is no regular file"),
        ("f/x", "Not a directory"),
        ("out/x", "Read-only file system"),
        ("/tmp/../etc/x", "path: has `..`"),
    ] {
        session.refuse("write_file", json!({"path": path, "text": "x"}), words);
    }
    session.refuse("write_file", json!({"path": "x"}), "give one of text, base64 and host_path");
    session.refuse("write_file", json!({"path": "x", "text": "x", "base64": "eA=="}), "give one of");
    session.refuse("write_file", json!({"path": "x", "base64": "e"}), "base64: ");
    session.refuse("write_file", json!({"path": "x", "text": "x".repeat(5_000_000)}), "text: is 5000000 bytes");
    session.refuse("write_file", json!({"path": "x", "host_path": "/etc/passwd"}), "--share DIR");
    session.refuse("read_file", json!({"path": "f", "host_path": "/tmp/x"}), "--share DIR");
    session.refuse("read_file", json!({"path": "f", "length": 0}), "length: is 0");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // Adapters fill in what they may leave out.
    let arguments = json!({"path": "x", "text": "", "base64": "eA==", "host_path": null, "executable": null});
    assert_eq!(fields(&session.call("write_file", arguments))["size_bytes"], 1);
    assert_eq!(session.list(".", false).len(), 8, "nothing was left behind");
    session.server.send(&tool(1, "read_file", json!({"session_id": "s-0", "path": "x"})));
    assert_eq!(fault(&session.server.receive()).0, "not_found");
}

#[test]
fn a_file_that_does_not_fit_leaves_nothing() {
    let mut session = Session::open_with(&[], json!({"memory_mb": 64}));
    session.write("x", "kept");
    let half = "y".repeat(3_000_000);
    let mut refused = None;
    for n in 0..30 {
        let response = session
            .call("write_file", json!({"path": if n < 29 { format!("f{n}") } else { "x".into() }, "text": half}));
        if response["result"]["isError"] == true {
            refused.get_or_insert((n, fault(&response)));
        }
    }
    let (n, (code, message)) = refused.expect("no quota");
    assert!(code == "invalid_input" && message.contains("No space left on device"), "{code}: {message}");
    assert_eq!(session.read("x")["text"], "kept");
    assert!(session.list(".", false).iter().all(|file| !file.contains(".sandbox-mcp")), "half a file is there");
    assert_eq!(session.list(".", false).len(), n + 1);
    assert_eq!(session.run("shell", "rm f*; echo more > y")["exit_code"], 0);
}

#[test]
fn a_large_file_goes_from_a_shared_folder_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("in"), dir.path().join("out"));
    [&from, &to].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(from.join("data"), &bytes).unwrap();
    let (reads, writes) = (from.display().to_string(), format!("{}:rw", to.display()));
    let mut session = Session::open_with(&["--share", &reads, "--share", &writes], json!({}));
    let at = |path: &Path| path.to_str().unwrap().to_owned();

    let written = session.call("write_file", json!({"path": "data", "host_path": at(&from.join("data"))}));
    assert_eq!(fields(&written)["size_bytes"], bytes.len());
    let code = "import hashlib; d = open('data', 'rb').read(); open('back', 'wb').write(d[::-1]); hashlib.sha256(d).hexdigest()";
    let digest = session.run("python", code)["stdout"].as_str().unwrap().trim_matches(['\'', '\n']).to_owned();
    assert_eq!(digest, sha256(&bytes));

    let back = session.call("read_file", json!({"path": "back", "host_path": at(&to.join("back"))}));
    let back = fields(&back);
    assert_eq!(
        (&back["size_bytes"], &back["next"], back.get("base64")),
        (&json!(bytes.len()), &json!(bytes.len()), None)
    );
    let mut reversed = fs::read(to.join("back")).unwrap();
    reversed.reverse();
    assert!(reversed == bytes, "the bytes are others");
    fields(
        &session
            .call("read_file", json!({"path": "back", "host_path": at(&to.join("back")), "offset": 5, "length": 3})),
    );
    assert_eq!(
        fs::read(to.join("back")).unwrap(),
        bytes[bytes.len() - 8..bytes.len() - 5].iter().rev().copied().collect::<Vec<_>>()
    );

    // What is not shared, or not for that.
    fs::write(dir.path().join("secret"), "s").unwrap();
    symlink(dir.path().join("secret"), from.join("link")).unwrap();
    for (path, words) in [
        (at(&dir.path().join("secret")), "is in no shared folder"),
        (at(&from.join("link")), "leads out of the shared folder"),
        (at(&from.join("../secret")), "leads out of the shared folder"),
        (at(&from), "is no regular file"),
        (at(&from.join("none")), "No such file"),
    ] {
        session.refuse("write_file", json!({"path": "x", "host_path": path}), words);
    }
    session.refuse("read_file", json!({"path": "back", "host_path": at(&from.join("data"))}), ":rw");
    session.refuse("read_file", json!({"path": "none", "host_path": at(&to.join("none"))}), "No such file");
    session.refuse("read_file", json!({"path": "back", "host_path": at(&to.join("no/folder"))}), "No such file");
    let names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["back"], "half a file is there");
    let mode = fs::metadata(to.join("back")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0, "{mode:o}");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_cancel_in_the_middle_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    fs::File::create(&large).unwrap().set_len(600_000_000).unwrap();
    let shares = format!("{}:rw", dir.path().display());
    let mut session = Session::open_with(&["--share", &shares], json!({"memory_mb": 2048}));
    let into = session.named(json!({"path": "large", "host_path": large}));
    session.server.send(&tool(7, "write_file", into));
    std::thread::sleep(Duration::from_millis(300));
    session.server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}));
    assert_eq!(session.run("shell", "ls -A /workspace")["stdout"], "", "half a file is there");

    assert_eq!(session.run("shell", "truncate -s 600M out")["exit_code"], 0);
    let out = session.named(json!({"path": "out", "host_path": dir.path().join("out")}));
    session.server.send(&tool(8, "read_file", out));
    std::thread::sleep(Duration::from_millis(300));
    session.server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 8}}));
    assert_eq!(session.run("shell", "echo goes on")["stdout"], "goes on\n");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["large"], "half a file is there");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let shares = format!("{}:rw", dir.path().display());
    let mut session = Session::open_with(&["--share", &shares], json!({"memory_mb": 1024}));
    assert_eq!(
        session.run("shell", "truncate -s 300M out; (sleep 0.2; while :; do echo x >> out; done) &")["exit_code"],
        0
    );
    let out = json!({"path": "out", "host_path": dir.path().join("out")});
    session.refuse("read_file", out, "it was changed meanwhile");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "half a file is there");

    let log = dir.path().join("log");
    fs::File::create(&log).unwrap().set_len(150_000_000).unwrap();
    session.server.send(&tool(1, "write_file", session.named(json!({"path": "log", "host_path": log}))));
    let mut writer = fs::OpenOptions::new().append(true).open(&log).unwrap();
    let (ended, is_ended) = std::sync::mpsc::channel::<()>();
    // For as long as it is read, whenever that begins.
    let appending = std::thread::spawn(move || {
        while is_ended.recv_timeout(Duration::from_millis(20)).is_err_and(|why| why == RecvTimeoutError::Timeout) {
            writer.write_all(b"more\n").unwrap();
        }
    });
    let (code, message) = fault(&session.server.receive());
    drop(ended);
    appending.join().unwrap();
    assert_eq!((code.as_str(), message.as_str()), ("invalid_input", "host_path: it was changed while it was read"));
    assert_eq!(session.run("shell", "ls log")["exit_code"], 2, "half a file is there");
}

#[test]
fn a_program_finds_its_files_and_leaves_others() {
    let mut server = Server::start();
    let code = "import os\ntext = open('in/a.txt').read()\nos.makedirs('out/deep')\nopen('out/b.txt', 'w').write(text * 2)\n\
        open('out/deep/c.bin', 'wb').write(b'\\xff\\x00')\nopen('a[1].txt', 'w').write('odd')\n\
        open('/tmp/t', 'w').write('t')\nos.mkfifo('out/p')\nprint(__name__)\n5\nraise SystemExit(3)";
    let outcome = once(
        &mut server,
        json!({
            "language": "python",
            "code": code,
            "files": [{"path": "in/a.txt", "text": "abc"}, {"path": "p.png", "base64": PNG}],
            "outputs": ["out/**", "*.png", "a[1].txt", "/tmp/t", "none/*.csv", "out/b.txt"],
        }),
    );
    assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("__main__\n"), &json!(3)), "{outcome}");
    assert_eq!(
        outcome["files"],
        json!([
            {"path": "/tmp/t", "size_bytes": 1, "text": "t"},
            {"path": "a[1].txt", "size_bytes": 3, "text": "odd"},
            {"path": "out/b.txt", "size_bytes": 6, "text": "abcabc"},
            {"path": "out/deep/c.bin", "size_bytes": 2, "base64": "/wA="},
            {"path": "p.png", "size_bytes": 70, "base64": PNG, "mime_type": "image/png"},
        ])
    );
    assert_eq!(outcome["unmatched"], json!(["none/*.csv"]));
    // Nothing of it is there for the next one.
    assert_eq!(once(&mut server, json!({"language": "shell", "code": "ls -A . /tmp"}))["stdout"], ".:\n\n/tmp:\n");
    // One that is killed leaves what it had written.
    let outcome = once(
        &mut server,
        json!({"language": "shell", "code": "echo x > x; sleep 100", "timeout_seconds": 1, "outputs": ["x"]}),
    );
    assert_eq!((&outcome["timed_out"], &outcome["files"][0]["text"]), (&json!(true), &json!("x\n")), "{outcome}");
}

#[test]
fn what_comes_back_is_bounded() {
    let mut server = Server::start();
    let code = "for i in range(150): open(f'f{i:03}', 'w').write('x')\nopen('a', 'wb').write(b'x' * 5_000_000)";
    let outcome = once(&mut server, json!({"language": "python", "code": code, "outputs": ["*"]}));
    let files = outcome["files"].as_array().unwrap();
    assert_eq!((files.len(), &files[0]["path"], &files[0]["size_bytes"]), (100, &json!("a"), &json!(5_000_000)));
    assert!(files[0]["omitted"].as_str().unwrap().contains("4194304 bytes"), "{}", files[0]);
    assert_eq!(files.iter().filter(|file| file.get("omitted").is_none()).count(), 99);
    assert!(outcome["files_note"].as_str().unwrap().starts_with("51 more files match"), "{}", outcome["files_note"]);
}

#[test]
fn files_of_a_call_are_there_when_its_turn_comes() {
    let mut session = Session::open();
    let calls = [
        json!({"code": "import time; time.sleep(1); print(open('f').read())", "files": [{"path": "f", "text": "one"}]}),
        json!({
            "code": "print(open('f').read()); open('g', 'w').write('2');",
            "files": [{"path": "f", "text": "two"}], "outputs": ["g"],
        }),
        json!({"code": "open('g', 'w').write('3');"}),
    ];
    for (id, mut arguments) in (1_u64..).zip(calls) {
        arguments["language"] = json!("python");
        let call = tool(id, "execute_code", session.named(arguments));
        session.server.send(&call);
    }
    let answers = answers(&mut session.server, 3);
    assert_eq!(fields(&answers[&1])["stdout"], "one\n");
    let second = fields(&answers[&2]);
    assert_eq!((&second["stdout"], &second["files"][0]["text"]), (&json!("two\n"), &json!("2")), "{second}");
    let run = session.call(
        "execute_code",
        json!({"language": "shell", "code": "cat f", "background": true, "files": [{"path": "f", "text": "b"}]}),
    );
    session.server.send(&tool(1, "get_run", json!({"run_id": fields(&run)["run_id"], "wait_seconds": 20})));
    assert_eq!(fields(&session.server.receive())["stdout"], "b");
}

#[test]
fn wrong_files_and_patterns_are_named_before_anything_runs() {
    let mut server = Server::start();
    let mut refuse = |mut arguments: Value, words: &str| {
        (arguments["language"], arguments["code"]) = (json!("shell"), json!("echo ran"));
        server.send(&tool(1, "execute_code", arguments.clone()));
        let (code, message) = fault(&server.receive());
        assert!(code == "invalid_input" && message.contains(words), "{arguments}: {code}: {message}");
    };
    refuse(json!({"files": [{"path": "a", "text": "x"}, {"path": "../b", "text": "x"}]}), "files[1].path: has `..`");
    refuse(json!({"files": [{"path": "a"}]}), "files[0].text: give one of text, base64 and host_path");
    refuse(json!({"files": [{"path": "a", "txt": "x"}]}), "files[0].txt: unknown field `txt`");
    refuse(json!({"files": [{"path": "a", "base64": "?"}]}), "files[0].base64: ");
    refuse(json!({"files": [{"path": "a", "host_path": "/etc/passwd"}]}), "files[0].host_path: no folder is shared");
    refuse(json!({"files": [{"path": "d", "text": "x"}, {"path": "d/e", "text": "x"}]}), "Not a directory");
    let many: Vec<_> = (0..101).map(|n| json!({"path": format!("f{n}"), "text": "x"})).collect();
    refuse(json!({"files": many}), "files: are 101; at most 100");
    let large = "x".repeat(2_500_000);
    refuse(json!({"files": [{"path": "a", "text": large}, {"path": "b", "text": large}]}), "files: is 5000000 bytes");
    refuse(json!({"outputs": ["a["]}), "outputs: \"a[\" is no pattern: unclosed character class");
    refuse(json!({"outputs": ["/etc/*"]}), "outputs: \"/etc/*\" is outside /workspace");
    refuse(json!({"outputs": ["*"], "background": true}), "outputs: cannot be given together with background");
}

#[test]
fn a_model_sees_text_and_pictures() {
    let mut server = Server::start_as(command().env("SANDBOX_MCP_RESULTS", "model"));
    let code = "import base64\nprint('done')\nopen('a.csv', 'w').write('1,2')\nopen('b.bin', 'wb').write(b'\\xff')";
    let arguments = json!({
        "language": "python", "code": code, "files": [{"path": "p.png", "base64": PNG}], "outputs": ["*", "none"],
    });
    server.send(&tool(1, "execute_code", arguments));
    let result = server.receive()["result"].clone();
    assert_eq!(
        result["content"],
        json!([
            {"type": "text", "text": "done\n"},
            {"type": "text", "text": "a.csv:\n1,2"},
            {"type": "text", "text": "b.bin: 1 bytes"},
            {"type": "text", "text": "p.png:"},
            {"type": "image", "data": PNG, "mimeType": "image/png"},
            {"type": "text", "text": "no file matches none"},
        ])
    );
    assert_eq!(result["_meta"]["sandbox-mcp/outcome"]["files"][1]["base64"], "/w==");
    assert_eq!(result.get("structuredContent"), None);

    server.send(&tool(1, "open_session", json!({})));
    let opened = server.receive()["result"]["_meta"]["sandbox-mcp/outcome"].clone();
    let mut see = |name: &str, mut arguments: Value| {
        arguments["session_id"] = opened["session_id"].clone();
        server.send(&tool(1, name, arguments));
        server.receive()["result"]["content"].clone()
    };
    see("write_file", json!({"path": "p.png", "base64": PNG}));
    assert_eq!(see("write_file", json!({"path": "t", "text": "0123"})), json!([{"type": "text", "text": "4 bytes"}]));
    assert_eq!(
        see("read_file", json!({"path": "p.png"})),
        json!([{"type": "image", "data": PNG, "mimeType": "image/png"}])
    );
    assert_eq!(
        see("read_file", json!({"path": "t", "length": 2})),
        json!([{"type": "text", "text": "01"}, {"type": "text", "text": "to byte 2 of 4; offset: 2 reads on"}])
    );
    assert_eq!(see("list_files", json!({})), json!([{"type": "text", "text": "70 p.png\n4 t"}]));
    see("write_file", json!({"path": "none", "text": ""}));
    assert_eq!(see("read_file", json!({"path": "none"})), json!([{"type": "text", "text": "(empty)"}]));
    see("write_file", json!({"path": "b", "base64": "/wD/"}));
    assert_eq!(
        see("read_file", json!({"path": "b"})),
        json!([{"type": "text", "text": "some 3 bytes that are no text, of 3"}])
    );
}

#[test]
fn a_folder_that_cannot_be_shared_is_told_at_the_start() {
    for (share, words) in
        [("~/data", "`~` is not expanded"), ("/no/such/folder", "/no/such/folder"), ("", "folders such as")]
    {
        let output = command().args(["--share", "/tmp", "--share", share]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(words), "{share}: {stderr}");
    }
}

#[test]
fn tools_name_no_file_of_the_host_where_none_is_shared() {
    let tools = |settings: &[&str]| {
        let mut server = Server::start_as(command().args(settings));
        server.send(&request(1, "tools/list", json!({})));
        let tools = server.receive()["result"]["tools"].clone();
        let read_file = tools.as_array().unwrap().iter().find(|tool| tool["name"] == "read_file").unwrap();
        let hints =
            (read_file["annotations"]["readOnlyHint"].clone(), read_file["annotations"]["destructiveHint"].clone());
        (tools.to_string().matches("host_path\":").count(), hints)
    };
    assert_eq!(tools(&[]), (0, (json!(true), json!(false))));
    assert_eq!(tools(&["--share", "/tmp"]), (3, (json!(true), json!(false))));
    assert_eq!(tools(&["--share", "/tmp:rw"]), (3, (json!(false), json!(true))));
}
