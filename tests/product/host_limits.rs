//! What a host may deny this process: each limit is met with an answer that names it, or not noticed; never with a panic, a
//! signal, or a call that hangs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cache::run;
use sandbox_tests::program::program;

use crate::harness::{Server, command, execute_request, initialize_params, pipe_through, request};

/// Nobody else is this user, so that nobody else's processes count as its own.
const USER: u32 = 54_321;

/// The program's copy in a cache of a test.
const PRODUCT: &str = "product";

/// What may come of a call.
enum Expected<'t> {
    Works,
    /// An error that has this in it.
    Names(&'t str),
    Either(&'t str),
}
use Expected::{Either, Names, Works};

/// The program as a shell starts it that has been told to `limit` itself, as an ordinary user if root asks.
fn limited(limit: &str, is_ordinary: bool, cache: &Path) -> Command {
    let product = command();
    let mut command = if is_ordinary && Uid::effective().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--", "bash"]);
        command
    } else {
        Command::new("bash")
    };
    command.args(["-c", &format!("{limit}; exec \"$@\""), "bash"]);
    // Where another user can reach it, if it was put there.
    let reachable = cache.join(PRODUCT);
    command.arg(if reachable.exists() { reachable.as_os_str() } else { product.get_program() });
    for (name, value) in product.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("SANDBOX_MCP_CACHE_DIR", cache);
    command
}

/// One call, and what came of it: an answer, and only one, whatever has gone wrong.
#[track_caller]
fn check(command: &mut Command, what: &str, expected: &Expected<'_>) {
    let line = format!("{}\n", execute_request(1, json!({"language": "shell", "code": "echo hi"})));
    let (stdout, stderr, status) = pipe_through(command, line.as_bytes());
    let told = format!("{what}: {status}\n{stdout}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{told}");
    assert!(status.code().is_some(), "a signal ended it: {told}");
    assert_eq!(stdout.lines().count(), 1, "{told}");
    let answer: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("not JSON: {told}"));
    assert_eq!(answer["id"], 1, "{told}");
    let works = answer["result"]["structuredContent"]["stdout"] == "hi\n";
    let error = [&answer["error"]["message"], &answer["result"]["content"][0]["text"]];
    let names = |name: &str| error.iter().any(|text| text.as_str().is_some_and(|text| text.contains(name)));
    let is_right = match expected {
        Works => works,
        Names(name) => names(name),
        Either(name) => works || names(name),
    };
    assert!(is_right, "{told}");
}

/// A cache with all that the user's has of the image and the base template, for another user as well.
fn copy_of_cache(owner: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let home = PathBuf::from(std::env::var_os("HOME").unwrap());
    let users = std::env::var_os("SANDBOX_MCP_CACHE_DIR").map_or_else(
        || std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from).join("sandbox-mcp"),
        PathBuf::from,
    );
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).args([users.join("images"), users.join("templates")]).arg(folder.path());
    assert!(copy.status().unwrap().success());
    fs::copy(program(), folder.path().join(PRODUCT)).unwrap();
    if Uid::effective().is_root() {
        let chown = Command::new("chown").args(["-R", &owner.to_string()]).arg(folder.path()).status();
        assert!(chown.unwrap().success());
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    // With the agent of this build, and a template that has it.
    run(limited("true", owner == USER, folder.path()).args(["image", "build", "--without-qemu"]));
    folder
}

#[test]
fn each_limit_is_named_or_not_noticed() {
    let cache = copy_of_cache(USER);
    let cases = [
        ("ulimit -f 0", Names("RLIMIT_FSIZE")),
        ("ulimit -f 100", Names("RLIMIT_FSIZE")),
        ("ulimit -f 1000000", Names("RLIMIT_FSIZE")),
        ("ulimit -u 1", Names("RLIMIT_NPROC")),
        ("ulimit -u 4", Names("RLIMIT_NPROC")),
        ("ulimit -u 7", Names("RLIMIT_NPROC")),
        ("ulimit -u 8", Either("RLIMIT_NPROC")),
        ("ulimit -u 9", Either("RLIMIT_NPROC")),
        ("ulimit -u 10", Either("RLIMIT_NPROC")),
        ("ulimit -u 11", Either("RLIMIT_NPROC")),
        ("ulimit -u 12", Either("RLIMIT_NPROC")),
        ("ulimit -u 14", Either("RLIMIT_NPROC")),
        ("ulimit -u 64", Works),
        ("ulimit -n 20", Names("RLIMIT_NOFILE")),
        ("ulimit -n 63", Names("RLIMIT_NOFILE")),
        ("ulimit -n 64", Works),
        ("ulimit -Sn 20", Works),
        ("ulimit -v 100000", Names("RLIMIT_AS")),
        ("ulimit -v 1000000", Either("RLIMIT_AS")),
        ("ulimit -v 2000000", Either("RLIMIT_AS")),
        ("ulimit -d 50000", Names("RLIMIT_DATA")),
        ("ulimit -t 1", Either("RLIMIT_CPU")),
        ("ulimit -t 60", Works),
        ("ulimit -l 0", Works),
        ("ulimit -s 64", Names("RLIMIT_STACK")),
        ("ulimit -s 512", Works),
        ("ulimit -Ss 64", Works),
        ("ulimit -c 0; ulimit -e 0; ulimit -i 10; ulimit -q 0; ulimit -r 0", Works),
    ];
    for (limit, expected) in &cases {
        check(&mut limited(&format!("{limit} || exit 9"), true, cache.path()), limit, expected);
    }
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let cache = copy_of_cache(USER);
    let file = cache.path().join("a_file");
    fs::write(&file, "").unwrap();
    let mut home = limited("true", true, cache.path());
    home.env_remove("SANDBOX_MCP_CACHE_DIR").env_remove("XDG_CACHE_HOME").env("HOME", &file);
    check(&mut home, "HOME is a file", &Names(file.to_str().unwrap()));
    let mut homeless = limited("true", true, cache.path());
    homeless.env_remove("HOME");
    check(&mut homeless, "no HOME, but a cache", &Works);
    homeless.env_remove("SANDBOX_MCP_CACHE_DIR").env_remove("XDG_CACHE_HOME");
    check(&mut homeless, "no HOME", &Either("--cache-dir"));

    // All is there: nothing need be written.
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for folder in [cache.path().join("images"), cache.path().join("templates"), cache.path().to_owned()] {
        mode(&folder, 0o500);
    }
    check(&mut limited("true", true, cache.path()), "a cache that cannot be written", &Works);
    let empty = tempfile::tempdir().unwrap();
    mode(empty.path(), 0o555);
    check(&mut limited("true", true, empty.path()), "an empty cache that cannot be written", &Names("image build"));
    if Uid::effective().is_root() {
        mode(empty.path(), 0o755);
        check(&mut limited("true", false, cache.path()), "somebody else's cache", &Names("belongs to uid"));
        // Another one: the program is in this one, where its user can reach it.
        let closed = tempfile::tempdir().unwrap();
        mode(closed.path(), 0o000);
        let mut shut_out = limited("true", true, cache.path());
        shut_out.env("SANDBOX_MCP_CACHE_DIR", closed.path());
        check(&mut shut_out, "a cache that is closed to its user", &Names("Permission denied"));
    }
}

#[test]
fn no_shared_memory_is_needed() {
    let cache = copy_of_cache(USER);
    if Uid::effective().is_root() {
        let mut command = Command::new("unshare");
        let limited = limited("umount -l /dev/shm && ! test -w /dev/shm/.", false, cache.path());
        // A mount namespace of its own, in which it is gone.
        command.args(["--mount", "--"]).arg(limited.get_program()).args(limited.get_args());
        for (name, value) in limited.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let chown = Command::new("chown").args(["-R", "0"]).arg(cache.path()).status();
        assert!(chown.unwrap().success());
        check(&mut command, "no /dev/shm", &Works);
    }
}

/// A server that a client has introduced itself to.
fn server(cache: &Path, arguments: &[&str]) -> Server {
    let mut server = Server::start_as(command().env("SANDBOX_MCP_CACHE_DIR", cache).args(arguments));
    server.send(&request(0, "initialize", initialize_params("2025-11-25")));
    server.receive();
    server
}

fn owner() -> u32 {
    Uid::effective().as_raw()
}

#[track_caller]
fn call(server: &mut Server, id: u32) -> Value {
    server.send(&execute_request(id, json!({"language": "shell", "code": "echo hi"})));
    let answer = server.receive();
    assert_eq!(answer["id"], id, "{answer}");
    answer["result"].clone()
}

#[test]
fn a_cache_that_is_gone_is_built_again_and_not_tried_again() {
    let cache = copy_of_cache(owner());
    let kept = tempfile::tempdir().unwrap();
    let mut server = server(cache.path(), &[]);
    assert_eq!(call(&mut server, 1)["structuredContent"]["stdout"], "hi\n");
    let images = cache.path().join("images");
    fs::rename(&images, kept.path().join("images")).unwrap();
    for id in 2..=6 {
        let result = call(&mut server, id);
        let error = &result["_meta"]["sandbox-mcp/error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!("not_installed"), &json!(false)), "{result}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&format!("`{} image build`", program().display())), "{message}");
        assert!(message.contains(images.to_str().unwrap()), "{message}");
    }
    fs::rename(kept.path().join("images"), &images).unwrap();
    assert_eq!(call(&mut server, 7)["structuredContent"]["stdout"], "hi\n", "what is there again is used again");
}

/// Every file of a folder by its path, with what tells it from one that was written in its place.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.path().extension().is_none_or(|end| end != "lock") {
            found.push((entry.path(), metadata.ino()));
        }
    }
    found.sort();
    found
}

/// Sets what a running process may have open at most.
fn allow_descriptors(server: &Server, count: usize) {
    let limit = format!("--nofile={count}:");
    let set = Command::new("prlimit").args(["--pid", &server.child.id().to_string(), &limit]).status();
    assert!(set.unwrap().success());
}

fn open_descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count()
}

#[test]
fn a_host_that_is_short_of_descriptors_is_no_damage() {
    let cache = copy_of_cache(owner());
    {
        let mut server = server(cache.path(), &[]);
        assert_eq!(call(&mut server, 1)["structuredContent"]["stdout"], "hi\n");
    }
    let before = files(cache.path());
    // From the first look at the cache on, and at each moment after it.
    let mut server = server(cache.path(), &["--max-concurrent-vms", "2"]);
    let idle = open_descriptors(&server);
    let mut works = 0;
    for (index, more) in (0..30).enumerate() {
        allow_descriptors(&server, idle + more);
        let result = call(&mut server, 10 + index as u32);
        let text = result["content"][0]["text"].as_str().unwrap();
        if result["isError"] == true {
            assert!(text.contains("RLIMIT_NOFILE") || text.contains("Too many open files"), "{text}");
            assert!(!text.contains("corrupt") && !text.contains("image build"), "{text}");
        } else {
            works += 1;
        }
    }
    assert!(works > 0, "it never works");
    allow_descriptors(&server, 1000);
    assert_eq!(call(&mut server, 99)["structuredContent"]["stdout"], "hi\n");
    assert_eq!(files(cache.path()), before, "what was sound was built anew");
}

/// A FIFO in the place of a file, or where one would be.
fn put_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
}

#[test]
fn a_fifo_in_place_of_a_file_holds_nothing_up() {
    let cache = copy_of_cache(owner());
    let mut places: Vec<_> = files(&cache.path().join("images")).into_iter().map(|(path, _)| path).collect();
    let entries: Vec<_> = places.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
    places.extend(entries);
    places.dedup();
    for name in ["agent.lock", "kernel.lock"] {
        places.push(cache.path().join("images").join(name));
    }
    for name in ["qemu-version.json", "kvm-verdict.json"] {
        places.push(cache.path().join(name));
    }
    for place in places {
        let copy = tempfile::tempdir().unwrap();
        let images = cache.path().join("images");
        let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(images).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        put_fifo(&copy.path().join(place.strip_prefix(cache.path()).unwrap()));
        let mut command = limited("true", false, copy.path());
        command.args(["--no-templates", "--accel", "auto"]);
        let line = format!("{}\n", execute_request(1, json!({"language": "shell", "code": "echo hi"})));
        let (stdout, stderr, _) = pipe_through(&mut command, line.as_bytes());
        let is_right =
            ["hi\\n", "image build", "regular file", "Not a directory"].iter().any(|text| stdout.contains(text));
        assert!(is_right, "{}: {stdout}{stderr}", place.display());
        // What only looks does not wait either.
        run(limited("true", false, copy.path()).args(["cache", "status"]));
    }
}

#[test]
fn a_fifo_in_place_of_a_users_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    put_fifo(&fifo);
    let fifo = fifo.to_str().unwrap();
    let bucket = ["--s3-bucket", "bucket", "--s3-hmac-key-file", fifo, "image", "status"];
    for arguments in [&["--config", fifo, "settings"][..], &bucket, &["--pypi-allowlist", fifo]] {
        let (stdout, stderr, status) = pipe_through(command().args(arguments), b"");
        assert!(!status.success() && stderr.contains("regular file"), "{arguments:?}: {status} {stdout}{stderr}");
    }
}

fn send_signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// What came of a program that has said that it begins, after something was done to its server and its VM.
fn disturbed(code: &str, timeout_seconds: u32, disturb: impl FnOnce(&Server, u32)) -> Value {
    let mut server = Server::initialized();
    let arguments = json!({"language": "shell", "code": code, "timeout_seconds": timeout_seconds});
    let params = json!({"name": "execute_code", "arguments": arguments, "_meta": {"progressToken": 1}});
    server.send(&request(1, "tools/call", params));
    assert_eq!(server.receive()["params"]["progressToken"], 1);
    disturb(&server, server.virtual_machines()[0]);
    loop {
        let answer = server.receive();
        if answer["id"] == 1 {
            return answer["result"].clone();
        }
    }
}

#[test]
fn a_program_that_ended_in_time_did_so_whenever_its_server_looks() {
    let outcome = disturbed("echo begun; sleep 0.3; echo done; exit 3", 4, |server, _| {
        send_signal(server.child.id(), Signal::SIGSTOP);
        thread::sleep(Duration::from_secs(6));
        send_signal(server.child.id(), Signal::SIGCONT);
    });
    let outcome = &outcome["structuredContent"];
    assert_eq!((&outcome["timed_out"], &outcome["exit_code"]), (&json!(false), &json!(3)), "{outcome}");
    assert_eq!(outcome["stdout"], "begun\ndone\n");
    assert!(outcome["process_ms"].as_f64().unwrap() < 4000.0 && outcome["memory_peak_mb"].is_number(), "{outcome}");
}

#[test]
fn a_machine_that_was_stopped_as_a_whole_goes_on() {
    // The guest has half a second after the stop for what it had still to do; a busy machine may not give it that each time.
    let in_time = (0..4).any(|_| {
        let outcome = disturbed("echo begun; sleep 0.3; echo done", 2, |server, machine| {
            for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                send_signal(machine, signal);
                send_signal(server.child.id(), signal);
                if signal == Signal::SIGSTOP {
                    thread::sleep(Duration::from_secs(4));
                }
            }
        });
        outcome["structuredContent"]["stdout"] == "begun\ndone\n" && outcome["structuredContent"]["timed_out"] == false
    });
    assert!(in_time, "it is called timed out each time");
}

#[test]
fn what_a_stopped_vm_cannot_say_is_absent() {
    let outcome = disturbed("echo begun; sleep 100", 1, |_, machine| send_signal(machine, Signal::SIGSTOP));
    let outcome = &outcome["structuredContent"];
    assert_eq!((&outcome["timed_out"], &outcome["exit_code"]), (&json!(true), &json!(-1)), "{outcome}");
    assert_eq!((&outcome["stdout"], &outcome["stdout_bytes"]), (&json!("begun\n"), &json!(6)));
    for figure in ["spawn_ms", "process_ms", "cpu_time_ms", "memory_peak_mb"] {
        assert!(outcome.get(figure).is_none(), "{figure}: {outcome}");
    }
    assert!(outcome["execution_time_ms"].as_f64().unwrap() >= 1000.0);
    // One that only took too long does say.
    let outcome = disturbed("echo begun; sleep 100", 1, |_, _| ());
    assert!(outcome["structuredContent"]["cpu_time_ms"].is_number(), "{outcome}");
}
