//! What a program reaches within its VM: itself, and nothing of what waits for other programs or serves them all.

use serde_json::{Value, json};

use crate::harness::{Server, command, execute_request, execute_with};

/// Tries all ways into other processes of the user's. They can be found, since they can be signalled. One of its own
/// is tried as well, which shows that the ways are ways.
const ATTACK: &str = r#"
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)

def tasks(pid):
    return {int(task) for task in os.listdir(f'/proc/{pid}/task')}

def parent(pid):
    return int(open(f'/proc/{pid}/stat').read().rpartition(') ')[2].split()[1])

def is_alive(pid):
    try: os.kill(pid, 0)
    except OSError: return False
    return True

def others():
    own, pid = set(), os.getpid()
    while pid > 1:
        own |= tasks(pid)
        pid = parent(pid)
    last = int(open('/proc/loadavg').read().split()[-1])
    return [pid for pid in range(2, last + 1) if pid not in own and is_alive(pid)]

def must(result):
    if result < 0: raise OSError(ctypes.get_errno(), 'refused')
    return result

def read(path):
    with open(path, 'rb') as file: return file.read(1)

def tell(pid):
    with open(f'/proc/{pid}/fd/1000', 'wb') as pipe: pipe.write(b'P\n')

WAYS = {
    'seen': lambda pid: os.stat(f'/proc/{pid}'),
    'pipe': tell,
    'memory': lambda pid: open(f'/proc/{pid}/mem', 'rb+', 0).close(),
    'map': lambda pid: read(f'/proc/{pid}/maps'),
    'environment': lambda pid: read(f'/proc/{pid}/environ'),
    'command': lambda pid: read(f'/proc/{pid}/cmdline'),
    'files': lambda pid: os.listdir(f'/proc/{pid}/fd'),
    'root': lambda pid: os.listdir(f'/proc/{pid}/root'),
    'descriptor': lambda pid: must(libc.syscall(438, os.pidfd_open(pid), 1000, 0)),
    'robust list': lambda pid: must(libc.syscall(274, pid, ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t()))),
    'trace': lambda pid: must(libc.ptrace(0x4206, pid, None, None)),
}

def reached(pid):
    ways = []
    for name, way in WAYS.items():
        try: way(pid)
        except OSError: continue
        ways.append(name)
    return ways

# Whichever interpreter is told, it would run this.
for name, code in (('sh', 'mkdir /tmp/ran'), ('py', 'import os; os.mkdir("/tmp/ran")'), ('js', 'fs.mkdirSync("/tmp/ran")')):
    path = f'/run/program/main.{name}'
    if os.path.exists(path): os.remove(path)
    open(path, 'w').write(code)

end, pipe = os.pipe()
os.dup2(pipe, 1000)
child = os.fork()
if child == 0: signal.pause()
print('own:', sorted(set(WAYS) - set(reached(child))))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
os.close(1000)
victims = others()
print('found:', len(victims) >= 2)
print('reached:', {pid: ways for pid in victims if (ways := reached(pid))})
import time
time.sleep(0.5)
print('ran:', os.path.exists('/tmp/ran'))
"#;

const HELD: &str = "own: []\nfound: True\nreached: {}\nran: False\n";

/// The same by a language's own means, as far as it has any.
const NODE_ATTACK: &str = r"
const fs = require('fs');
const own = new Set(fs.readdirSync('/proc/self/task'));
let found = 0;
const reached = [];
for (let pid = 2; pid <= Number(fs.readFileSync('/proc/loadavg', 'utf8').split(' ').pop()); pid++) {
  if (own.has(String(pid))) continue;
  try { process.kill(pid, 0); } catch { continue; }
  found++;
  for (const [name, mode] of [['fd/1000', 'w'], ['mem', 'r+'], ['environ', 'r']]) {
    try { fs.closeSync(fs.openSync(`/proc/${pid}/${name}`, mode)); reached.push(`${pid} ${name}`); } catch {}
  }
}
console.log(found >= 2, reached);
";

const SHELL_ATTACK: &str = r"
found=0
read -r _ _ _ _ last </proc/loadavg
for ((pid = 2; pid <= last; pid++)); do
  [[ $pid != $$ ]] && kill -0 $pid || continue
  ((found++))
  for name in fd/1000 mem environ; do
    [[ -e /proc/$pid/$name ]] && echo reached $pid $name
  done
  echo P >/proc/$pid/fd/1000 && echo told $pid
done 2>/dev/null
((found >= 2)) && echo found
";

fn as_child_of(language: &str) -> String {
    match language {
        "python" => ATTACK.to_string(),
        "javascript" => format!(
            "require('fs').writeFileSync('attack.py', {}); \
             require('child_process').execFileSync('python3', ['attack.py'], {{stdio: 'inherit'}})",
            json!(ATTACK)
        ),
        _ => format!("cat >attack.py <<'EOF'\n{ATTACK}\nEOF\npython3 attack.py"),
    }
}

fn run(server: &mut Server, mut arguments: Value) -> Value {
    arguments["timeout_seconds"] = json!(120);
    server.send(&execute_request(1, arguments));
    let response = server.receive();
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["structuredContent"].clone()
}

fn unpooled(arguments: Value) -> Value {
    execute_with(&mut command(), arguments)
}

const LANGUAGES: [&str; 3] = ["python", "javascript", "shell"];

#[test]
fn what_waits_for_other_programs_is_out_of_reach() {
    let mut pooled = Server::start_as(command().args(["--warm-pool-size", "1"]));
    for language in LANGUAGES {
        let arguments = json!({"language": language, "code": as_child_of(language), "memory_mb": 64});
        pooled.wait_for_pool(1);
        for outcome in [run(&mut pooled, arguments.clone()), {
            let mut fresh = Server::start();
            run(&mut fresh, arguments)
        }] {
            assert_eq!(outcome["stdout"], HELD, "{outcome}");
            assert!(outcome["memory_peak_mb"].as_f64().unwrap() < 64.5, "{outcome}");
        }
    }
    for (language, code, stdout) in [("javascript", NODE_ATTACK, "true []\n"), ("shell", SHELL_ATTACK, "found\n")] {
        let outcome = unpooled(json!({"language": language, "code": code}));
        assert_eq!(outcome["stdout"], stdout, "{outcome}");
    }
}

/// Kills all that the user may kill, and prints what PID 1 has used of the processor since, in seconds. Its clock is one that all may
/// read.
const KILL_ALL: [(&str, &str); 3] = [
    (
        "python",
        "
import os, time
before = time.clock_gettime(-14)
os.kill(-1, 9)
time.sleep(1.5)
print(time.clock_gettime(-14) - before)",
    ),
    (
        "javascript",
        "
const { execFileSync } = require('child_process');
const used = () => Number(execFileSync('python3', ['-c', 'import time; print(time.clock_gettime(-14))']));
const before = used();
process.kill(-1, 9);
setTimeout(() => console.log(used() - before), 1500);",
    ),
    (
        "shell",
        "
used() { python3 -c 'import sys, time; print(time.clock_gettime(-14) - float(sys.argv[1]))' $1; }
before=$(used 0)
kill -9 -1
sleep 1.5
used $before",
    ),
];

#[test]
fn the_end_of_what_waits_is_no_more_than_noted() {
    let mut server = Server::start_as(command().args(["--warm-pool-size", "1"]));
    for (language, code) in KILL_ALL {
        server.wait_for_pool(1);
        let outcome = run(&mut server, json!({"language": language, "code": code}));
        assert_eq!(outcome["exit_code"], 0, "{outcome}");
        let seconds: f64 = outcome["stdout"].as_str().unwrap().trim().parse().unwrap();
        // An agent that is woken all the time uses what real-time processes may have of a second: 0.95 s.
        assert!((0.0..0.5).contains(&seconds), "{language}: {seconds} s");
        assert_eq!(run(&mut server, json!({"language": "shell", "code": "echo next"}))["stdout"], "next\n");
    }
}

#[test]
fn a_limit_holds_from_the_first_moment_and_figures_are_within_it() {
    let programs = [("python", "print(1)"), ("javascript", "console.log(1)"), ("shell", "echo 1")];
    let mut pooled = Server::start_as(command().args(["--warm-pool-size", "1"]));
    for (language, code) in programs {
        for memory_mb in [64, 512] {
            let arguments = json!({"language": language, "code": code, "memory_mb": memory_mb});
            pooled.wait_for_pool(1);
            let booted = execute_with(command().arg("--no-templates"), arguments.clone());
            for outcome in [run(&mut pooled, arguments.clone()), unpooled(arguments.clone()), booted] {
                assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("1\n"), &json!(0)), "{outcome}");
                let peak = outcome["memory_peak_mb"].as_f64().unwrap();
                assert!((1.0..f64::from(memory_mb) + 0.5).contains(&peak), "{peak} of {memory_mb} MiB: {outcome}");
                assert!(outcome["cpu_time_ms"].as_f64().unwrap() > 0.0, "{outcome}");
            }
        }
    }
}

#[test]
fn the_guest_keeps_its_own_to_itself() {
    let code = r"
cat /dev/kmsg 2>&1
echo >/dev/kmsg
dmesg 2>&1
for name in kernel/dmesg_restrict kernel/kptr_restrict kernel/perf_event_paranoid fs/protected_fifos fs/protected_hardlinks \
    fs/protected_regular fs/protected_symlinks kernel/randomize_va_space fs/suid_dumpable; do
  echo $name $(cat /proc/sys/$name)
done
for file in /dev/* /dev/*/*; do
  [[ -d $file || $file -ef /proc/self/fd/0 || $file -ef /proc/self/fd/1 || $file -ef /proc/self/fd/2 || $file == /dev/fd/* ]] && continue
  [[ -r $file || -w $file ]] && echo may use $file
done
";
    let outcome = unpooled(json!({"language": "shell", "code": code}));
    let expected = "\
cat: /dev/kmsg: Permission denied
dmesg: read kernel buffer failed: Operation not permitted
kernel/dmesg_restrict 1
kernel/kptr_restrict 2
kernel/perf_event_paranoid 3
fs/protected_fifos 2
fs/protected_hardlinks 1
fs/protected_regular 2
fs/protected_symlinks 1
kernel/randomize_va_space 2
fs/suid_dumpable 0
may use /dev/full
may use /dev/null
may use /dev/ptmx
may use /dev/random
may use /dev/tty
may use /dev/urandom
may use /dev/zero
may use /dev/pts/ptmx
";
    assert_eq!(outcome["stdout"], expected, "{outcome}");
}

#[test]
fn processes_of_others_are_not_there_and_ones_own_are() {
    let code = "sleep 100 & sleep 0.2; ps -e -o user=,comm= >list; sort list; pgrep sleep | wc -l; ps -p 1 | wc -l; id; jobs; \
                set -- /proc/[0-9]*; echo $#; kill %1; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let outcome = unpooled(json!({"language": "shell", "code": code}));
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().map(str::trim).collect();
    let expected = [
        "sandbox  bash",
        "sandbox  ps",
        "sandbox  sleep",
        "1",
        "1",
        "uid=1000(sandbox) gid=1000(sandbox) groups=1000(sandbox)",
        "[1]+  Running                 sleep 100 &",
        "2",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ];
    assert_eq!(lines, expected, "{outcome}");
    // What tells languages apart is a capability that permits nothing: there is no auditing.
    let code = "import errno, socket\ntry: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)\nexcept OSError as error: print(error.errno == errno.EPROTONOSUPPORT)";
    let outcome = unpooled(json!({"language": "python", "code": code}));
    assert_eq!(outcome["stdout"], "True\n", "{outcome}");
}
