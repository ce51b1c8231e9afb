//! Templates in the making, and those that do not restore: who waits, for how long, and what comes of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{DEADLINE, QEMU, Server, command, execute_request, execute_with, new_cache, request};

fn in_cache(cache: &Path) -> Command {
    let mut command = command();
    command.args(["--cache-dir", cache.to_str().unwrap()]).env("SANDBOX_MCP_LOG", "info");
    command
}

/// A server whose log is kept, and where.
fn logged(mut command: Command) -> (Server, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    command.stderr(Stdio::from(fs::File::create(&log).unwrap()));
    (Server::start_as(&mut command), log, folder)
}

fn shell(id: u32) -> Value {
    execute_request(id, json!({"language": "shell", "code": "echo hi"}))
}

#[track_caller]
fn run(server: &mut Server, id: u32) -> Value {
    server.send(&shell(id));
    let response = server.receive();
    assert_eq!(response["result"]["structuredContent"]["stdout"], "hi\n", "{response}");
    response["result"]["structuredContent"].clone()
}

fn status(server: &mut Server) -> Value {
    server.send(&request("status", "tools/call", json!({"name": "pool_status"})));
    server.receive()["result"]["structuredContent"].clone()
}

/// Runs until a VM is restored. Returns how many booted before.
#[track_caller]
pub(crate) fn run_until_restored(server: &mut Server) -> u32 {
    let until = Instant::now() + DEADLINE;
    for number in 0.. {
        if run(server, number)["template_hit"] == true {
            return number;
        }
        assert!(Instant::now() < until, "no VM is restored");
    }
    unreachable!()
}

fn count(log: &Path, words: &str) -> usize {
    fs::read_to_string(log).unwrap().matches(words).count()
}

#[track_caller]
fn wait_for(log: &Path, words: &str) {
    let until = Instant::now() + DEADLINE;
    while count(log, words) == 0 {
        assert!(Instant::now() < until, "{words:?} is not in {}", fs::read_to_string(log).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is on the shelf but for locks.
fn shelf(cache: &Path) -> Vec<String> {
    let found = fs::read_dir(cache.join("templates")).unwrap().flatten();
    let names = found.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".lock")).collect()
}

#[test]
fn a_cancelled_call_ends_no_making() {
    let cache = new_cache();
    let (mut server, log, _folder) = logged(in_cache(cache.path()));
    for id in 1..=3 {
        server.send(&shell(id));
    }
    wait_for(&log, "building a template");
    server.wait_for_machines(1, DEADLINE);
    let builder = server.virtual_machines();
    for id in 1..=3 {
        let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        server.send(&cancelled);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.virtual_machines(), builder, "the VM that becomes the template is gone");
    assert_eq!(run(&mut server, 4)["template_hit"], true, "it was waited for in vain");
    assert_eq!(count(&log, "building a template"), 1);
    // What nobody waits for ends with the server, and leaves nothing.
    let cache = new_cache();
    let (mut server, log, _folder) = logged(in_cache(cache.path()));
    wait_for(&log, "building a template");
    server.wait_for_machines(1, DEADLINE);
    let machines = server.virtual_machines();
    server.send(&request(0, "initialize", crate::harness::initialize_params("2025-11-25")));
    server.receive();
    let closed = Instant::now();
    server.close_stdin();
    assert!(server.wait().success());
    assert!(closed.elapsed() < Duration::from_secs(10), "{:?}", closed.elapsed());
    assert!(machines.into_iter().all(|pid| !crate::harness::is_alive(pid)));
    assert_eq!(shelf(cache.path()), [""; 0]);
}

#[test]
fn a_builder_that_is_stopped_loses_its_turn() {
    let cache = new_cache();
    let (mut stopped, log, _folder) = logged(in_cache(cache.path()));
    wait_for(&log, "building a template");
    stopped.wait_for_machines(1, DEADLINE);
    kill(Pid::from_raw(stopped.child.id() as i32), Signal::SIGSTOP).unwrap();

    let (mut other, other_log, _other_folder) = logged(in_cache(cache.path()));
    run_until_restored(&mut other);
    assert_eq!(count(&other_log, "waiting for another server that builds the same"), 1);
    assert_eq!(count(&other_log, "building a template"), 1);
    // It is remembered: nobody waits again.
    assert_eq!(run(&mut other, 1000)["template_hit"], true);
    let before = shelf(cache.path());
    assert_eq!(before.iter().filter(|name| name.starts_with("base-")).count(), 1, "{before:?}");

    // The first goes on, finds that it is the second, and uses what is there.
    let entry = cache.path().join("templates").join(before.iter().find(|name| name.starts_with("base-")).unwrap());
    let inode = fs::metadata(&entry).unwrap().ino();
    kill(Pid::from_raw(stopped.child.id() as i32), Signal::SIGCONT).unwrap();
    run_until_restored(&mut stopped);
    assert_eq!(fs::metadata(&entry).unwrap().ino(), inode, "what is in use was replaced");
    assert_eq!(run(&mut other, 1001)["template_hit"], true);
    assert_eq!(shelf(cache.path()).len(), 1, "{:?}", shelf(cache.path()));
}

/// Makes of a sound template one that its checks find nothing wrong with, and that no VM comes up from.
fn spoil(entry: &Path) {
    let state = vec![0x5a; 100_000];
    fs::write(entry.join("state"), &state).unwrap();
    let manifest = fs::read_to_string(entry.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
    let sum: String = Sha256::digest(&state).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(manifest["state_sha256"].is_string());
    manifest["state_sha256"] = json!(sum);
    fs::write(entry.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn a_template_that_does_not_restore_is_removed_and_made_anew() {
    let cache = new_cache();
    let (mut builder, _, _folder) = logged(in_cache(cache.path()));
    run_until_restored(&mut builder);
    drop(builder);
    let entry = cache.path().join("templates").join(&shelf(cache.path())[0]);
    let inode = fs::metadata(&entry).unwrap().ino();
    spoil(&entry);

    let (mut server, log, _folder) = logged(in_cache(cache.path()));
    assert_eq!(run(&mut server, 100)["template_hit"], false);
    let told = status(&mut server)["template"].clone();
    assert_eq!(told["state"], "ready", "one is no proof: {told}");
    assert!(told["last_error"].is_string(), "{told}");
    assert!(run_until_restored(&mut server) <= 3, "it is given up after three");
    assert_eq!(count(&log, "do not come up: it is removed, and made anew"), 1);
    assert_ne!(fs::metadata(&entry).unwrap().ino(), inode);
    let told = status(&mut server)["template"].clone();
    assert_eq!((&told["state"], &told["last_error"]), (&json!("ready"), &Value::Null), "{told}");
    // The next one finds it whole.
    assert_eq!(
        execute_with(&mut in_cache(cache.path()), json!({"language": "shell", "code": "echo"}))["template_hit"],
        true
    );
    assert_eq!(shelf(cache.path()).len(), 1);
}

/// A QEMU that starts as long as the host lets it, by a file's being there.
fn moody_qemu(folder: &Path) -> PathBuf {
    let named = std::env::var_os("SANDBOX_MCP_QEMU").map(PathBuf::from);
    let in_path = || {
        std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|path| path.join(QEMU))
            .find(|qemu| qemu.is_file())
    };
    let qemu = named.or_else(in_path).expect("the tests need a QEMU");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let (path, flag) = (folder.join(QEMU), folder.join("short-of-memory"));
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" != --version ] && [ -e {} ]; then echo 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1; fi\n\
         exec {} \"$@\"\n",
        flag.display(),
        qemu.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn what_the_host_does_to_vms_is_not_their_templates_fault() {
    let (cache, folder) = (new_cache(), tempfile::tempdir().unwrap());
    let qemu = moody_qemu(folder.path());
    let mut command = in_cache(cache.path());
    command.args(["--qemu", qemu.to_str().unwrap()]);
    let (mut server, log, _folder) = logged(command);
    run_until_restored(&mut server);
    let inode = fs::metadata(cache.path().join("templates").join(&shelf(cache.path())[0])).unwrap().ino();
    let flag = folder.path().join("short-of-memory");
    fs::write(&flag, "").unwrap();
    for id in 0..8 {
        server.send(&shell(id));
        let text = server.receive().to_string();
        assert!(text.contains("Cannot allocate memory") && text.contains("failed_before_run"), "{text}");
    }
    fs::remove_file(&flag).unwrap();
    assert_eq!(run(&mut server, 9)["template_hit"], true, "the template is as good as before");
    assert_eq!(count(&log, "made anew"), 0);
    assert_eq!(fs::metadata(cache.path().join("templates").join(&shelf(cache.path())[0])).unwrap().ino(), inode);
    server.close_stdin();
    assert!(server.wait().success());

    // One that cannot be made for want of memory is tried again, and none is made that does less.
    let cache = new_cache();
    fs::write(&flag, "").unwrap();
    let mut command = in_cache(cache.path());
    command.args(["--qemu", qemu.to_str().unwrap()]);
    let (mut server, log, _folder) = logged(command);
    wait_for(&log, "it is tried again in 60s");
    let told = status(&mut server)["template"].clone();
    assert_eq!(told["state"], "failed", "{told}");
    assert!(told["last_error"].as_str().unwrap().contains("Cannot allocate memory"), "{told}");
    assert!((1..=60).contains(&told["retry_in_seconds"].as_u64().unwrap()), "{told}");
    assert_eq!(count(&log, "fewer rehearsals"), 0);
    fs::remove_file(&flag).unwrap();
    assert_eq!(run(&mut server, 1)["template_hit"], false, "nobody waits for it meanwhile");
    std::thread::sleep(Duration::from_secs(61));
    run_until_restored(&mut server);
}
