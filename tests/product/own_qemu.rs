//! The QEMU that `image build` builds where there is no KVM: VMs run in it, all those of the other tests. Where it is not there,
//! these tests say that they were skipped, and the others have run in the host's.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Server, command, execute_request, execute_with, new_cache, request};
use crate::making::run_until_restored;

/// A server whose VMs run in the QEMU of the image, if there is one.
pub(crate) fn own() -> Option<Command> {
    let mut status = command();
    let output = status.args(["image", "status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("qemu ")).expect("the status tells of QEMU");
    if !line.contains(" present ") {
        let outcome = execute_with(&mut command(), json!({"language": "shell", "code": "true"}));
        assert_eq!(outcome["accelerator"], "kvm", "without KVM `image build` builds it");
        // Not by `eprintln!`, whose words are kept back when a test passes.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no QEMU of our own: with KVM, only `sandbox-mcp image build --with-qemu` builds it ({line})"
        );
        return None;
    }
    let mut command = command();
    command.env_remove("SANDBOX_MCP_QEMU");
    Some(command)
}

fn pool_status(server: &mut Server) -> Value {
    server.send(&request(9, "tools/call", json!({"name": "pool_status", "arguments": {}})));
    server.receive()["result"]["structuredContent"].clone()
}

#[test]
fn every_language_runs_in_it_restored_and_booted() {
    for arguments in [&[][..], &["--no-templates"]] {
        let Some(mut command) = own() else { return };
        let mut server = Server::start_as(command.args(arguments));
        for (language, code) in [
            ("python", "import json, sqlite3; print(json.dumps(6 * 7))"),
            ("javascript", "console.log(await Promise.resolve(6 * 7))"),
            ("shell", "echo $((6 * 7)) | cat"),
        ] {
            server.send(&execute_request(1, json!({"language": language, "code": code})));
            let answer = server.receive();
            let outcome = &answer["result"]["structuredContent"];
            assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("42\n"), &json!(0)), "{answer}");
            assert_eq!(outcome["template_hit"], arguments.is_empty(), "{answer}");
        }
        let status = pool_status(&mut server);
        let words = status["qemu"].as_str().unwrap();
        assert!(words.contains("built by sandbox-mcp as "), "{words}");
    }
}

#[test]
fn every_language_runs_in_the_hosts_qemu_too() {
    let path = std::env::var_os("PATH").unwrap();
    let places = std::env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64"));
    let hosts = places.into_iter().find(|place| place.is_file()).expect("the set-up has installed QEMU");
    let hosts = ["--qemu", hosts.to_str().unwrap()];
    for (arguments, from) in [
        (&["--warm-pool-size", "1"][..], Origin::Pool),
        (&["--warm-pool-size", "0"], Origin::Template),
        (&["--no-templates", "--warm-pool-size", "0"], Origin::Boot),
    ] {
        let mut server = Server::start_as(command().env_remove("SANDBOX_MCP_QEMU").args(hosts).args(arguments));
        check_programs(&mut server, from);
        let status = pool_status(&mut server);
        assert!(!status["qemu"].as_str().unwrap().contains("sandbox-mcp"), "{status}");
    }
}

#[test]
fn its_process_is_hardened() {
    let Some(mut command) = own() else { return };
    let mut server = Server::start_as(&mut command);
    for id in 1..=2 {
        let program = json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout_seconds": 300});
        let params = json!({"name": "execute_code", "arguments": program, "_meta": {"progressToken": id}});
        server.send(&request(id, "tools/call", params));
        assert_eq!(server.receive()["params"]["progressToken"], id);
    }
    let machines = server.virtual_machines();
    let places = machines.iter().map(|id| {
        let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
        assert!(!maps.contains(".so"), "it is static: {maps}");
        let code =
            maps.lines().find(|line| line.contains("r-xp") && line.contains("qemu")).expect("its code is mapped");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        assert!(status.contains("Name:\tqemu-system-x86\n"), "{status}");
        assert!(status.contains("Seccomp:\t2\n"), "its system calls are filtered: {status}");
        code.split('-').next().unwrap().to_owned()
    });
    let places: Vec<_> = places.collect();
    assert_ne!(places[0], places[1], "each is loaded at another address");
}

#[test]
fn whoever_names_another_gets_that() {
    let Some(mut command) = own() else { return };
    let mut server = Server::start_as(command.args(["--qemu", "/nowhere/qemu"]));
    server.send(&execute_request(1, json!({"language": "shell", "code": "true"})));
    let answer = server.receive();
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("/nowhere/qemu"), "{answer}");
}

/// The same with a cache that has no templates.
pub(crate) fn own_in(cache: &Path) -> Option<Command> {
    let mut command = own()?;
    command.args(["--cache-dir", cache.to_str().unwrap()]);
    Some(command)
}

/// The one template in a cache, built if it is not there.
pub(crate) fn template(cache: &Path) -> Option<PathBuf> {
    let mut server = Server::start_as(&mut own_in(cache)?);
    // On a busy machine a run waits for it in vain, and the server goes on making it.
    run_until_restored(&mut server);
    drop(server);
    let entries = fs::read_dir(cache.join("templates")).unwrap().flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.is_dir())
}

/// What a translator can get wrong, if it keeps what it has translated: code that the guest writes, again and again at the same
/// place, across two pages too; a compiler within the guest; processes that come and go.
const PROGRAMS: [(&str, &str, &str); 3] = [
    (
        "python",
        r"
import ctypes, json, mmap, re
page = mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
base = ctypes.addressof(ctypes.c_char.from_buffer(page))
for at in (0, 100, 4093):
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(base + at)
    for value in range(300):
        page[at:at + 6] = b'\xb8' + value.to_bytes(4, 'little') + b'\xc3'
        assert answer() == value, (at, value)
print(json.dumps(re.findall('b+', 'abba')))
",
        "[\"bb\"]\n",
    ),
    (
        "javascript",
        r"
let sum = 0;
for (let k = 0; k < 40; k++) {
  const f = new Function('a', 'b', `let s = ${k}; for (let i = 0; i < 300; i++) s += (a * i) % (b + ${k}); return s;`);
  for (let j = 0; j < 30; j++) sum = (sum + f(j, 7)) % 1000003;
}
const add = (o) => o.x + o.y;
for (let i = 0; i < 20000; i++) add({ x: i, y: 1 });
console.log(sum, add({ y: 'q', x: 'p' }));
",
        "191115 pq\n",
    ),
    ("shell", "for i in $(seq 9); do echo $i | sed s/1/x/ | tr 2-9 a; done | sort | uniq -c | tr -d ' '", "8a\n1x\n"),
];

/// Where a VM comes from.
#[derive(Clone, Copy, PartialEq)]
enum Origin {
    Pool,
    Template,
    Boot,
}

#[track_caller]
fn check_programs(server: &mut Server, from: Origin) {
    for (language, code, stdout) in PROGRAMS {
        if from == Origin::Pool {
            server.wait_for_pool(1);
        }
        server.send(&execute_request(1, json!({"language": language, "code": code, "timeout_seconds": 120})));
        let answer = server.receive();
        let outcome = &answer["result"]["structuredContent"];
        assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!(stdout), &json!(0)), "{answer}");
        let hits = (&json!(from != Origin::Boot), &json!(from == Origin::Pool));
        assert_eq!((&outcome["template_hit"], &outcome["warm_pool_hit"]), hits, "{answer}");
    }
}

#[test]
fn what_a_program_writes_and_executes_is_what_runs() {
    for (pool_size, from) in [("0", Origin::Template), ("1", Origin::Pool)] {
        let Some(mut command) = own() else { return };
        let mut server = Server::start_as(command.args(["--warm-pool-size", pool_size]));
        check_programs(&mut server, from);
    }
}

#[test]
fn code_that_was_translated_from_another_memory_is_not_used() {
    let caches = [new_cache(), new_cache()];
    let Some(one) = template(caches[0].path()) else { return };
    let Some(other) = template(caches[1].path()) else { return };
    // As if it belonged there: the guests' kernels lie elsewhere, and so does all else.
    let manifest = |folder: &Path| fs::read_to_string(folder.join("manifest.json")).unwrap();
    let parsed = |folder: &Path| serde_json::from_str::<Value>(&manifest(folder)).unwrap();
    let (before, foreign) = (parsed(&one), parsed(&other)["code"].clone());
    assert_ne!(before["code"], foreign, "two boots are alike");
    fs::copy(other.join("code"), one.join("code")).unwrap();
    let mut changed = before;
    changed["code"] = foreign;
    fs::write(one.join("manifest.json"), changed.to_string()).unwrap();

    let mut server = Server::start_as(&mut own_in(caches[0].path()).unwrap());
    check_programs(&mut server, Origin::Template);
    assert_eq!(parsed(&one), changed, "it was not built anew");
}

#[test]
fn damaged_code_is_found_and_built_anew() {
    let cache = new_cache();
    let Some(entry) = template(cache.path()) else { return };
    let inode = fs::metadata(&entry).unwrap().ino();
    let file = fs::File::options().read(true).write(true).open(entry.join("code")).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    assert_ne!(fs::metadata(template(cache.path()).unwrap()).unwrap().ino(), inode);
}
