//! VMs that are restored: each another, all of them right, whatever happened to the template or to the pool.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Server, command, execute_request, execute_with, new_cache, promptly, request};

fn run(server: &mut Server, id: u32, language: &str, code: &str) -> Value {
    server.send(&execute_request(id, json!({"language": language, "code": code})));
    let response = server.receive();
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["structuredContent"].clone()
}

fn with(arguments: &[&str]) -> Command {
    let mut command = command();
    command.args(arguments);
    command
}

fn in_cache(cache: &Path) -> Command {
    with(&["--warm-pool-size", "0", "--cache-dir", cache.to_str().unwrap()])
}

/// The one entry in a cache.
fn template(cache: &Path) -> PathBuf {
    let entries = fs::read_dir(cache.join("templates")).unwrap().flatten().map(|entry| entry.path());
    let mut entries: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

const PROGRAMS: [(&str, &str); 3] =
    [("python", "print(6*7)"), ("javascript", "console.log(6*7)"), ("shell", "echo $((6*7))")];

#[test]
fn without_templates_every_vm_boots() {
    for (language, code) in PROGRAMS {
        let arguments = json!({"language": language, "code": code});
        let outcome = execute_with(&mut with(&["--no-templates"]), arguments);
        assert_eq!((&outcome["stdout"], &outcome["template_hit"]), (&json!("42\n"), &json!(false)));
    }
}

#[test]
fn a_vm_that_waits_runs_whatever_comes() {
    let mut server = Server::start_as(&mut with(&["--warm-pool-size", "2"]));
    for (id, (language, code)) in (0..).zip(PROGRAMS) {
        server.wait_for_pool(2);
        let outcome = run(&mut server, id, language, code);
        assert_eq!((&outcome["stdout"], &outcome["warm_pool_hit"]), (&json!("42\n"), &json!(true)), "{outcome}");
        assert_eq!((&outcome["timing"]["setup_ms"], &outcome["timing"]["boot_ms"]), (&json!(0.0), &json!(0.0)));
        assert!(outcome["memory_peak_mb"].as_f64().unwrap() > 1.0, "{outcome}");
    }
}

#[test]
fn a_call_comes_before_the_pool_where_there_is_room_for_one_vm() {
    let mut server = Server::start_as(&mut with(&["--warm-pool-size", "1", "--max-concurrent-vms", "1"]));
    for id in 0..4 {
        // At another moment of the pool's filling each time.
        std::thread::sleep(Duration::from_millis(u64::from(id) * 350));
        let asked = Instant::now();
        assert_eq!(run(&mut server, id, "shell", "echo hi")["stdout"], "hi\n");
        assert!(asked.elapsed() < Duration::from_secs(40), "{:?} for what takes a second", asked.elapsed());
    }
}

#[test]
fn a_program_begins_when_it_begins_whatever_its_template_went_through() {
    let code = "echo $SECONDS; printf '%(%F)T\\n' -1; date +%F; ls /run/program";
    let outcome = execute_with(&mut with(&[]), json!({"language": "shell", "code": code}));
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    assert!(lines[0] == "0" || lines[0] == "1", "{lines:?}");
    assert_eq!(lines[1], lines[2], "{lines:?}");
    assert_eq!(lines[3..], ["main.sh"], "{lines:?}");
    let code = "console.log(Math.abs(performance.timeOrigin + performance.now() - Date.now()) < 1000)";
    assert_eq!(execute_with(&mut with(&[]), json!({"language": "javascript", "code": code}))["stdout"], "true\n");
}

#[test]
fn a_vm_that_booted_knows_the_time_too() {
    let outcome = execute_with(&mut with(&["--no-templates"]), json!({"language": "shell", "code": "date +%s.%N"}));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let then: f64 = outcome["stdout"].as_str().unwrap().trim().parse().unwrap();
    assert!((now - then).abs() < 1.0, "{} s off", now - then);
}

#[test]
fn vms_that_died_while_they_waited_are_not_missed() {
    let mut server = Server::start_as(&mut with(&["--warm-pool-size", "2"]));
    server.wait_for_pool(2);
    for pid in server.virtual_machines() {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    }
    assert_eq!(run(&mut server, 1, "shell", "echo alive")["stdout"], "alive\n");
}

/// Everything in a VM that must not be the same in another, a line each.
const SECRETS: [(&str, &str); 4] = [
    (
        "python",
        "import multiprocessing, os, random, secrets, sqlite3, ssl, uuid, socket, tempfile\n\
         print(sqlite3.connect(':memory:').execute('select hex(randomblob(8))').fetchone()[0], ssl.RAND_bytes(8).hex(), \
         multiprocessing.current_process().authkey.hex(), sep='\\n')\n\
         print(os.urandom(8).hex(), random.random(), secrets.token_hex(8), uuid.uuid4(), uuid.uuid1(), socket.gethostname(), \
         open('/etc/machine-id').read().strip(), os.getrandom(8).hex(), tempfile.mktemp(), sep='\\n')",
    ),
    (
        "javascript",
        "const c = require('crypto'); console.log([c.randomUUID(), c.randomBytes(8).toString('hex'), c.randomInt(2**47), \
         Math.random(), c.webcrypto.getRandomValues(new Uint32Array(2)).join()].join('\\n'))",
    ),
    (
        "javascript",
        "import crypto from 'node:crypto'; import fs from 'node:fs'; console.log(await Promise.resolve(Math.random())); \
         console.log(crypto.randomUUID()); console.log(fs.mkdtempSync('/tmp/x-')); console.log(crypto.randomBytes(8).toString('hex'))",
    ),
    (
        "shell",
        "echo $RANDOM$RANDOM$RANDOM; echo $SRANDOM$SRANDOM; hostname; cat /etc/machine-id; head -c8 /dev/urandom | xxd -p || head -c8 /dev/urandom | od -An -tx1",
    ),
];

#[test]
fn no_two_clones_share_a_secret() {
    let mut pooled = Server::start_as(&mut with(&["--warm-pool-size", "2"]));
    for (language, code) in SECRETS {
        let mut seen = HashSet::new();
        let mut lines = 0;
        for id in 0..4 {
            let fresh =
                execute_with(&mut with(&["--warm-pool-size", "0"]), json!({"language": language, "code": code}));
            for outcome in [fresh, run(&mut pooled, id, language, code)] {
                assert_eq!(outcome["exit_code"], 0, "{outcome}");
                for line in outcome["stdout"].as_str().unwrap().lines() {
                    lines += 1;
                    assert!(seen.insert(line.to_string()), "{language}: {line:?} came twice");
                }
            }
        }
        assert!(lines >= 8 * 4, "{lines} lines of {language}");
    }
}

/// What a program would find changed if a rehearsal had left a trace, and what it finds.
const TRACES: [(&str, &str, &str); 4] = [
    (
        "python",
        "import asyncio, logging, os, signal, sys, threading\n\
         from concurrent.futures import ThreadPoolExecutor\n\
         async def name(): return asyncio.current_task().get_name()\n\
         with ThreadPoolExecutor() as pool: pooled = pool.submit(lambda: threading.current_thread().name).result()\n\
         print(threading.Thread().name, pooled, asyncio.run(name()), logging.getLogger().handlers, os.listdir(), os.listdir('/tmp'))\n\
         print(signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, 'ctypes' in sys.modules, 'multiprocessing' in sys.modules, \
         len(threading.enumerate()), 0 <= logging.makeLogRecord({}).relativeCreated < 60000, sorted(k for k in globals() if k[0] != '_')[:3])",
        "Thread-1 ThreadPoolExecutor-0_0 Task-1 [] [] []\nTrue False False 1 True ['ThreadPoolExecutor', 'asyncio', 'logging']\n",
    ),
    (
        "javascript",
        "const fs = require('fs'); console.log(fs.readdirSync('.'), fs.readdirSync('/tmp'), process.listenerCount('exit'), \
         process.listenerCount('beforeExit'), Object.keys(require.cache).length, Object.keys(globalThis).includes('require'), \
         process.getActiveResourcesInfo(), process.argv.length, typeof gc)",
        "[] [] 0 0 1 false [ 'PipeWrap', 'PipeWrap' ] 2 undefined\n",
    ),
    (
        "javascript",
        "import fs from 'node:fs'; console.log(import.meta.url, fs.readdirSync('/run/program'), require.main === module, \
         Object.keys(require.cache).length)",
        "file:///run/program/main.mjs [ 'main.mjs' ] true 0\n",
    ),
    (
        "shell",
        "ls -A . /tmp; jobs; trap; set +o | grep -E 'errexit|nounset|pipefail'; declare -F; echo ${sum-unset} $SHLVL",
        ".:\n\n/tmp:\nset +o errexit\nset +o nounset\nset +o pipefail\nunset 1\n",
    ),
];

#[test]
fn rehearsals_leave_no_trace() {
    let mut pooled = Server::start_as(&mut with(&["--warm-pool-size", "1"]));
    for (language, code, stdout) in TRACES {
        // A VM that waits has rehearsed what was asked for before.
        run(&mut pooled, 0, language, code);
        pooled.wait_for_pool(1);
        let fresh = execute_with(&mut with(&["--warm-pool-size", "0"]), json!({"language": language, "code": code}));
        for outcome in [fresh, run(&mut pooled, 1, language, code)] {
            assert_eq!(outcome["stdout"], stdout, "{outcome}");
        }
    }
}

#[test]
fn a_clone_knows_what_time_it_is() {
    let mut server = Server::start_as(&mut with(&["--warm-pool-size", "1"]));
    server.wait_for_pool(1);
    std::thread::sleep(Duration::from_secs(5));
    let code = "import time; a = time.monotonic(); time.sleep(0.2); b = time.monotonic(); print(time.time(), b - a)";
    for id in 0..2 {
        let outcome = run(&mut server, id, "python", code);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let text = outcome["stdout"].as_str().unwrap();
        let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        // The answer is on its way for some time.
        assert!((now - numbers[0]).abs() < 1.0, "{} s off", now - numbers[0]);
        assert!((0.19..2.0).contains(&numbers[1]), "0.2 s took {} s", numbers[1]);
    }
}

#[test]
fn a_program_has_the_memory_that_it_asks_for_and_no_more() {
    let code = "b = bytearray(100 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('had it')";
    for (memory_mb, had_it) in [(64, false), (256, true)] {
        let arguments = json!({"language": "python", "code": code, "memory_mb": memory_mb});
        let outcome = execute_with(&mut with(&[]), arguments);
        assert_eq!(outcome["stdout"] == "had it\n", had_it, "{outcome}");
        assert_eq!(outcome["out_of_memory"], !had_it, "{outcome}");
    }
}

#[test]
fn a_program_may_kill_all_that_is_its_users() {
    let outcome =
        execute_with(&mut with(&[]), json!({"language": "shell", "code": "kill -9 -1; sleep 0.2; echo still here"}));
    assert_eq!(outcome["stdout"], "still here\n", "{outcome}");
}

#[test]
fn a_damaged_template_is_found_and_built_anew_and_the_run_is_answered() {
    let cache = new_cache();
    let arguments = || json!({"language": "shell", "code": "echo hi"});
    assert_eq!(execute_with(&mut in_cache(cache.path()), arguments())["template_hit"], true);
    let entry = template(cache.path());
    let mut inode = fs::metadata(&entry).unwrap().ino();
    for name in ["ram", "state", "code", "manifest.json"] {
        if name == "code" && !entry.join(name).exists() {
            // Only a QEMU of our own leaves any.
            continue;
        }
        let file = fs::File::options().read(true).write(true).open(entry.join(name)).unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
        let outcome = execute_with(&mut in_cache(cache.path()), arguments());
        assert_eq!((&outcome["stdout"], &outcome["template_hit"]), (&json!("hi\n"), &json!(true)), "{name}");
        let rebuilt = fs::metadata(&entry).unwrap().ino();
        assert_ne!(rebuilt, inode, "{name} was not noticed");
        inode = rebuilt;
    }
}

#[test]
fn of_two_servers_one_builds_and_a_killed_builder_leaves_nothing() {
    let cache = new_cache();
    let start = || {
        let mut command = in_cache(cache.path());
        command.env("SANDBOX_MCP_LOG", "info").stderr(std::process::Stdio::piped());
        command
    };
    // The first is killed in the middle.
    let mut server = Server::start_as(&mut start());
    server.wait_for_machines(1, DEADLINE);
    std::thread::sleep(Duration::from_millis(500));
    kill(Pid::from_raw(server.child.id() as i32), Signal::SIGKILL).unwrap();
    server.wait();

    let mut servers = [Server::start_as(&mut start()), Server::start_as(&mut start())];
    for server in &mut servers {
        assert_eq!(run(server, 1, "shell", "echo hi")["template_hit"], true);
        server.close_stdin();
    }
    let mut built = 0;
    for server in &mut servers {
        server.wait();
        let mut log = String::new();
        std::io::Read::read_to_string(&mut server.child.stderr.take().unwrap(), &mut log).unwrap();
        built += log.matches("building a template").count();
    }
    assert_eq!(built, 1);
    template(cache.path());
    let left: Vec<_> = fs::read_dir(cache.path().join("templates")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "an entry and its lock: {left:?}");
}

#[test]
fn a_server_that_nobody_uses_costs_no_cpu() {
    let mut server = Server::start_as(&mut with(&["--warm-pool-size", "2"]));
    server.wait_for_pool(2);
    std::thread::sleep(Duration::from_secs(1));
    let machines = server.virtual_machines();
    let ticks = |pid: u32| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let all = |machines: &[u32]| machines.iter().map(|&pid| ticks(pid)).sum::<u64>() + ticks(server.child.id());
    let (before, begun) = (all(&machines), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    // A tick is 10 ms. Loose, since this is about spinning, not about tenths of a percent.
    let share = (all(&machines) - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    assert!(share < 0.1, "{:.1} % of a processor", share * 100.0);
}

#[test]
fn the_status_tells_what_has_happened() {
    let mut server = Server::start_as(&mut with(&["--warm-pool-size", "1", "--max-concurrent-vms", "3"]));
    let status = |server: &mut Server| {
        let asked = Instant::now();
        server.send(&request(99, "tools/call", json!({"name": "pool_status"})));
        let response = server.receive();
        assert_eq!(response["result"]["isError"], false, "{response}");
        (response["result"]["structuredContent"].clone(), asked.elapsed())
    };
    server.wait_for_pool(1);
    let (first, _) = status(&mut server);
    assert_eq!((&first["accelerator"], &first["template"]["state"]), (&json!("tcg"), &json!("ready")), "{first}");
    assert_eq!(first["runs"], json!({"from_pool": 0, "from_template": 0, "booted": 0, "failed": 0}));
    assert_eq!((&first["limits"]["max_concurrent_vms"], &first["limits"]["warm_pool_size"]), (&json!(3), &json!(1)));
    let private = first["private_memory_mb"].as_f64().unwrap();
    assert!((1.0..200.0).contains(&private), "{private} MiB for a VM that waits");

    run(&mut server, 1, "shell", "echo from the pool");
    run(&mut server, 2, "shell", "echo before it is filled again");
    let (after, _) = status(&mut server);
    assert_eq!(after["runs"], json!({"from_pool": 1, "from_template": 1, "booted": 0, "failed": 0}), "{after}");
    assert_eq!(after["hit_rates"], json!({"pool": 0.5, "template": 1.0}));
    assert!(after["cache"]["size_mb"].as_f64().unwrap() > 100.0, "an image and a template: {after}");
    assert_eq!(after["cache"]["limit_mb"], 10_000.0);
    assert_eq!(after["run_ms"]["count"], 2);
    assert!(after["restore_ms"]["p50"].as_f64().unwrap() > 0.0, "{after}");
    promptly(Duration::from_secs(1), || status(&mut server).1);
}
