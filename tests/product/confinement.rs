//! What holds a QEMU that its guest has conquered: tried by a program in its place; and that what holds it refuses nothing to a
//! QEMU which is not, seen in a trace of all its system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox_tests::skip::{has_registries, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{QEMU, Server, command, execute_request, execute_with, new_cache, request};

fn pool_status(server: &mut Server) -> Value {
    server.send(&request(9, "tools/call", json!({"name": "pool_status", "arguments": {}})));
    server.receive()["result"]["structuredContent"].clone()
}

/// A folder that anybody can look into, for QEMU may be somebody else.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// A QEMU that does this, and says what came of it.
fn conqueror(folder: &TempDir, attack: &str) -> PathBuf {
    let path = folder.path().join(QEMU);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("product/conqueror.c");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Werror", "-pthread", &format!("-DATTACK={attack}"), "-o"]).arg(&path).arg(source);
    let output = cc.output().expect("the set-up has installed a compiler");
    assert!(output.status.success(), "{attack}: {}", String::from_utf8_lossy(&output.stderr));
    path
}

/// What came of an attack, as the error of the call tells it; and what the server says to hold QEMU.
fn attack(attack: &str) -> (String, Value) {
    let folder = open_folder();
    let qemu = conqueror(&folder, attack);
    let mut server = Server::start_as(command().args(["--no-templates", "--qemu", qemu.to_str().unwrap()]));
    server.send(&execute_request(1, json!({"language": "shell", "code": "true"})));
    let answer = server.receive();
    let result = &answer["result"];
    assert_eq!(result["isError"], true, "{answer}");
    let confinement = pool_status(&mut server)["confinement"].clone();
    (result["content"][0]["text"].as_str().unwrap().to_string(), confinement)
}

#[test]
fn a_conquered_qemu_reaches_nothing() {
    let folder = open_folder();
    let secret = folder.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    // Anybody may, for all that permissions say.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o666)).unwrap();
    let open = |flags: &str| format!("open(\"{}\", {flags}, 0600)", secret.display());
    let create = format!("open(\"{}/new\", O_WRONLY | O_CREAT, 0600)", folder.path().display());

    for (act, expected) in [
        // That the others fail by what is asked.
        ("thread()", "pass"),
        ("syscall(SYS_tgkill, getpid(), gettid(), 0)", "pass"),
        ("open(\"/proc/self/fd/6\", O_RDONLY)", "pass"),
        // By the list.
        ("socket(AF_INET, SOCK_STREAM, 0)", "ENOSYS"),
        ("socket(AF_UNIX, SOCK_STREAM, 0)", "ENOSYS"),
        ("fork()", "ENOSYS"),
        ("syscall(SYS_io_uring_setup, 1, 0)", "ENOSYS"),
        ("syscall(SYS_memfd_create, \"\", 0)", "ENOSYS"),
        ("syscall(SYS_userfaultfd, 0)", "ENOSYS"),
        ("prctl(PR_SET_PDEATHSIG, 0)", "ENOSYS"),
        (&create, "ENOSYS"),
    ] {
        let (error, confinement) = attack(act);
        assert!(error.contains(&format!("tries. came to {expected}.")), "{act}: {error}");
        assert_eq!(confinement["seccomp"], "allowlist", "{confinement}");
    }
    // Whoever tries these is not heard of again.
    for act in [
        "ptrace(PTRACE_SEIZE, 1, 0, 0)",
        "syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0)",
        "syscall(SYS_pidfd_open, 1, 0)",
        "kill(1, 0)",
        "unshare(CLONE_NEWUSER)",
        "setuid(0)",
        "syscall(SYS_mount, 0, 0, 0, 0, 0)",
        "syscall(SYS_bpf, 0, 0, 0)",
        "syscall(SYS_keyctl, 0, 0, 0, 0, 0)",
    ] {
        let (error, _) = attack(act);
        assert!(error.contains("tries.") && !error.contains("came to"), "{act}: {error}");
    }
    // By Landlock.
    for (act, expected) in [
        (open("O_RDONLY").as_str(), "EACCES"),
        (&open("O_WRONLY"), "EACCES"),
        ("open(\"/etc/passwd\", O_RDONLY)", "EACCES"),
        ("open(\"/proc/self/fd/6\", O_RDWR)", "EACCES"),
        ("execute(\"/bin/true\")", "EACCES"),
    ] {
        let (error, confinement) = attack(act);
        if confinement.get("landlock").is_none() {
            return skip("this kernel has no Landlock");
        }
        assert!(error.contains(&format!("tries. came to {expected}.")), "{act}: {error}");
    }
}

#[test]
fn what_is_said_to_hold_a_vm_does() {
    let mut server = Server::start();
    let program = json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout_seconds": 300});
    server.send(&request(
        1,
        "tools/call",
        json!({"name": "execute_code", "arguments": program, "_meta": {"progressToken": 1}}),
    ));
    assert_eq!(server.receive()["params"]["progressToken"], 1);
    let machine = server.virtual_machines()[0];
    let status = fs::read_to_string(format!("/proc/{machine}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).trim().to_string()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    // Two of ours, and QEMU's. Kernels before 5.9 do not count them.
    if status.contains("Seccomp_filters:") {
        assert!(field("Seccomp_filters").parse::<u32>().unwrap() >= 3, "{status}");
    }
    let confinement = pool_status(&mut server)["confinement"].clone();
    assert_eq!(confinement["seccomp"], "allowlist");
    let uid = field("Uid").split_whitespace().next().unwrap().parse::<u32>().unwrap();
    let is_servers = uid == nix::unistd::Uid::current().as_raw();
    assert_eq!(confinement["user"] == "server", is_servers, "{confinement}");
}

#[test]
fn a_guests_processor_has_what_programs_use_and_no_more() {
    let flags = execute_with(
        &mut command(),
        json!({"language": "shell", "code": "grep -m1 ^flags /proc/cpuinfo | cut -d: -f2"}),
    );
    let flags: BTreeSet<&str> = flags["stdout"].as_str().unwrap().split_whitespace().collect();
    for absent in ["svm", "vmx", "npt", "arch_perfmon", "rtm", "hle", "mpx", "3dnow", "monitor", "la57"] {
        assert!(!flags.contains(absent), "{absent} in {flags:?}");
    }
    for present in ["sse4_2", "aes", "rdrand", "xsave"] {
        assert!(flags.contains(present), "{present} not in {flags:?}");
    }
}

/// What QEMU tries to see whether it is there, and does without, or in another way.
const PROBES: [&str; 5] = ["clone3", "get_mempolicy", "io_uring_setup", "memfd_create", "set_mempolicy"];

/// Traces a server's processes into a folder, a file for each thread, where that is allowed here.
fn traced(folder: &Path) -> Option<Command> {
    let strace = |trace: &Path| {
        let mut strace = Command::new("strace");
        // As a process beside the server, which so stays a child of the test.
        strace.args(["-D", "-ff", "-qq", "-s", "64", "-o"]).arg(trace);
        strace
    };
    let trial = strace(&folder.join("trial")).arg("true").stderr(Stdio::null()).status();
    if !trial.is_ok_and(|status| status.success()) || !folder.read_dir().unwrap().any(|_| true) {
        skip("there is no `strace`, or it is not allowed: what QEMU asks for");
        return None;
    }
    let untraced = command();
    let mut traced = strace(&folder.join("trace"));
    traced.arg(untraced.get_program());
    for (name, value) in untraced.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    Some(traced)
}

/// The refused calls of the QEMUs in a trace by their names, with an example of each; and how many QEMUs there were.
fn refused(folder: &Path) -> (BTreeMap<String, String>, usize) {
    const BEGINS: &str = "execve(\"/proc/self/fd/10\"";
    let files = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let mut texts: BTreeMap<String, String> = files
        .filter_map(|path| {
            let id = path.file_name()?.to_str()?.strip_prefix("trace.")?.to_string();
            Some((id, String::from_utf8_lossy(&fs::read(path).ok()?).into_owned()))
        })
        .collect();
    // A thread's file does not say whose it is, and in a PID namespace ids are others. So all that the server has made is told apart
    // first, as far as it has not become QEMU.
    let first = texts.iter().find(|(_, text)| text.starts_with("execve(")).expect("the server is traced").0.clone();
    let (mut servers, mut qemus) = (vec![first], Vec::new());
    while let Some(id) = servers.pop() {
        let Some(text) = texts.remove(&id) else { continue };
        let (before, after) = text.split_at(text.find(BEGINS).unwrap_or(text.len()));
        servers.extend(before.lines().filter(|line| line.contains("clone") || line.contains("fork")).filter_map(
            |line| {
                let id = line.rsplit_once(" = ")?.1.split_whitespace().next()?;
                id.parse::<u32>().ok().map(|id| id.to_string())
            },
        ));
        if !after.is_empty() {
            qemus.push(after.to_string());
        }
    }
    let count = qemus.len();
    qemus.extend(texts.into_values());
    let mut refused = BTreeMap::new();
    for line in qemus.iter().flat_map(|text| text.lines()) {
        if line.contains(" = -1 ENOSYS") || line.contains("killed by SIGSYS") {
            refused.entry(line.split('(').next().unwrap_or_default().to_string()).or_insert_with(|| line.to_string());
        }
    }
    (refused, count)
}

/// Everything that VMs are there for: one that boots, a template in the making, its code saved, one that is restored, one that waits, a
/// pause, one that installs, its template, a great output.
#[track_caller]
fn do_everything(mut traced: Command, cache: &Path, qemu: Option<&Path>) {
    traced.args(["--cache-dir", cache.to_str().unwrap(), "--warm-pool-size", "1"]);
    if let Some(qemu) = qemu {
        traced.env_remove("SANDBOX_MCP_QEMU").arg("--qemu").arg(qemu);
    }
    let mut server = Server::start_as(&mut traced);
    let run = |server: &mut Server, arguments: Value, stdout: &str| {
        server.send(&execute_request(1, arguments));
        let answer = server.receive();
        assert_eq!(answer["result"]["structuredContent"]["stdout"], stdout, "{answer}");
    };
    run(&mut server, json!({"language": "python", "code": "print(6 * 7)", "timeout_seconds": 120}), "42\n");
    run(&mut server, json!({"language": "javascript", "code": "console.log(6 * 7)", "timeout_seconds": 120}), "42\n");
    let great = "x".repeat(900_000);
    run(
        &mut server,
        json!({"language": "shell", "code": "head -c 900000 /dev/zero | tr '\\0' x", "timeout_seconds": 120}),
        &great,
    );
    let mut waiting = 1;
    if has_registries() {
        // Of a set that was used, one waits as well.
        waiting += 1;
        let code = "import six; print(six.moves.range(2))";
        let arguments = json!({"language": "python", "packages": ["six"], "code": code, "timeout_seconds": 120});
        run(&mut server, arguments, "range(0, 2)\n");
    }
    server.wait_for_pool(waiting);
    run(&mut server, json!({"language": "python", "code": "print(6 * 7)"}), "42\n");
}

#[test]
#[ignore = "traces every system call of several QEMUs, which takes minutes: `make test-filter`"]
fn nothing_is_refused_to_a_qemu_that_works() {
    let path = std::env::var_os("PATH").unwrap();
    let hosts = std::env::split_paths(&path).map(|folder| folder.join(QEMU)).find(|place| place.is_file());
    // The image's own, or what there is in its place; and the host's.
    for qemu in [None, hosts.as_deref()] {
        let (trace, cache) = (tempfile::tempdir().unwrap(), new_cache());
        let Some(traced) = traced(trace.path()) else { return };
        do_everything(traced, cache.path(), qemu);
        let (refused, count) = refused(trace.path());
        assert!(count >= 3, "{count} QEMUs were traced");
        let unknown: Vec<&String> =
            refused.iter().filter(|(name, _)| !PROBES.contains(&name.as_str())).map(|(_, line)| line).collect();
        assert!(unknown.is_empty(), "add what QEMU needs to engine/src/qemu/calls.rs: {unknown:#?}");
    }
}

#[test]
fn what_is_refused_is_seen_in_a_trace() {
    for (act, name) in [("socket(AF_UNIX, SOCK_STREAM, 0)", "socket"), ("kill(1, 0)", "+++ killed by SIGSYS +++")] {
        let (trace, folder) = (tempfile::tempdir().unwrap(), open_folder());
        let Some(mut traced) = traced(trace.path()) else { return };
        let qemu = conqueror(&folder, act);
        let mut server = Server::start_as(traced.arg("--no-templates").arg("--qemu").arg(qemu));
        server.send(&execute_request(1, json!({"language": "shell", "code": "true"})));
        assert_eq!(server.receive()["result"]["isError"], true);
        drop(server);
        let (refused, count) = refused(trace.path());
        assert!(count > 0 && refused.keys().any(|refused| refused == name), "{act}: {refused:?}");
    }
}
