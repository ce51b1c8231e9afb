//! What users expect of a Python script.

use serde_json::json;

use crate::harness::{Case, check as check_case, check_with, execute};

#[track_caller]
fn check(code: &str, exit_code: i64, stdout: &str, stderr: &str) {
    check_case(Case { language: "python", code, exit_code, stdout, stderr });
}

#[test]
fn a_result_has_its_figures() {
    let outcome = execute(json!({"language": "python", "code": "print(6*7)"}));
    assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("42\n"), &json!(0)));
    for flag in ["timed_out", "truncated", "invalid_utf8", "out_of_memory", "warm_pool_hit"] {
        assert_eq!(outcome[flag], false, "{flag}");
    }
    assert_eq!((&outcome["accelerator"], &outcome["template_hit"]), (&json!("tcg"), &json!(true)));
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    for figure in ["execution_time_ms", "process_ms", "cpu_time_ms", "memory_peak_mb"] {
        assert!(number(&outcome[figure]) > 0.0, "{figure} in {outcome}");
    }
    assert_eq!(outcome["spawn_ms"], 0.0, "the interpreter came with the template");
    let timing = &outcome["timing"];
    let parts = ["setup_ms", "boot_ms", "connect_ms", "execute_ms"].map(|part| number(&timing[part]));
    let (sum, total) = (parts.iter().sum::<f64>(), number(&timing["total_ms"]));
    assert!(sum <= total + 1.0 && sum > 0.8 * total, "{timing}");
    assert!(parts[0] > 0.0 && parts[1] > 0.0, "no VM is restored in no time: {timing}");
}

#[test]
fn exit_codes_are_a_scripts() {
    check("import sys\nprint('x', end='')\nsys.exit(42)", 42, "x", "");
    check("raise SystemExit('why')", 1, "", "why\n");
    check("import os; os._exit(9)", 9, "", "");
    check("import sys; sys.exit(2**70)", 255, "", "");
    check("import os; os.kill(os.getpid(), 11)", 139, "", "");
}

#[test]
fn an_uncaught_exception_is_a_traceback_of_the_program_alone() {
    let code = "def f():\n    raise ValueError('no')\nprint(1)\nf()";
    let outcome = execute(json!({"language": "python", "code": code}));
    assert_eq!((&outcome["exit_code"], &outcome["stdout"]), (&json!(1), &json!("1\n")));
    let stderr = outcome["stderr"].as_str().unwrap();
    assert!(
        stderr.starts_with("Traceback (most recent call last):\n  File \"/run/program/main.py\", line 4"),
        "{stderr}"
    );
    assert!(stderr.ends_with("ValueError: no\n") && !stderr.contains("runners"), "{stderr}");
    check("print(1", 1, "", "SyntaxError");
    check("def f(): f()\nf()", 1, "", "RecursionError");
}

#[test]
fn output_of_subprocesses_and_of_c_comes_in_order() {
    let code = "
import ctypes, os, subprocess, sys
print('a', end='')
subprocess.run(['echo', 'b'])
os.system('echo c')
ctypes.CDLL(None).printf(b'd\\n')
ctypes.CDLL(None).fflush(None)
open('/dev/stdout', 'w').write('e\\n')
print('f', file=sys.stderr)
ctypes.CDLL(None).printf(b'unflushed\\n')
";
    check(code, 0, "ab\nc\nd\ne\nunflushed\n", "f\n");
}

#[test]
fn standard_input_and_environment_arrive() {
    let code = "import os, sys\nprint(input('? '), repr(sys.stdin.read()), os.environ['A'])";
    let arguments = json!({"language": "python", "code": code, "stdin": "one\ntwo é\n", "env": {"A": "ü=1"}});
    check_with(arguments, 0, "? one 'two é\\n' ü=1\n", "");
    check("input()", 1, "", "EOFError");
}

#[test]
fn a_variable_that_the_interpreter_reads_at_its_start_takes_effect() {
    let code = "import sys, time; print(sys.flags.optimize, time.tzname[0], sys.path[1])";
    let env = json!({"PYTHONOPTIMIZE": "2", "TZ": "XYZ3", "PYTHONPATH": "/workspace/lib"});
    check_with(json!({"language": "python", "code": code, "env": env}), 0, "2 XYZ /workspace/lib\n", "");
}

#[test]
fn the_usual_modules_work() {
    let code = "
import asyncio, multiprocessing, os, socket, sqlite3, tempfile, threading, uuid
from concurrent.futures import ProcessPoolExecutor
def double(x): return 2 * x
queue = multiprocessing.Queue()
process = multiprocessing.Process(target=queue.put, args=(1,))
process.start(); print(queue.get()); process.join()
with ProcessPoolExecutor(2) as pool: print(list(pool.map(double, [1, 2])))
context = multiprocessing.get_context('spawn')
if __name__ == '__main__':
    results = []
    thread = threading.Thread(target=lambda: results.append(3)); thread.start(); thread.join(); print(results)
    async def answer(): await asyncio.sleep(0.01); return 4
    print(asyncio.run(answer()))
    base = sqlite3.connect('base.db'); base.execute('create table t(a)'); base.execute('insert into t values(5)')
    print(base.execute('select a from t').fetchone())
    server = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(server.getsockname())
    server.accept()[0].sendall(b'6'); print(client.recv(1))
    open('file.txt', 'w').write('7'); print(open('file.txt').read(), os.getcwd(), os.listdir())
    print(tempfile.NamedTemporaryFile().name.startswith('/tmp/'), uuid.uuid4().version, os.getuid())
";
    let expected =
        "1\n[2, 4]\n[3]\n4\n(5,)\nb'6'\n7 /workspace ['file.txt', 'base.db-journal', 'base.db']\nTrue 4 1000\n";
    check(code, 0, expected, "");
}

#[test]
fn what_happens_at_the_end_of_an_interpreter_happens() {
    let code = "
import atexit, threading, time
atexit.register(print, 'atexit')
threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
class Held:
    def __del__(self): print('deleted')
held = Held()
print('main')
";
    check(code, 0, "main\nthread\natexit\ndeleted\n", "");
}

#[test]
fn destructors_still_have_their_modules() {
    let code = "
import contextlib, os, sys
class Held:
    def __del__(self): print('deleted', os.getpid() > 0, helper())
def helper(): return sys.version_info.major
@contextlib.contextmanager
def context():
    try: yield
    finally: print('left', helper())
held = Held()
entered = context(); entered.__enter__()
print('main')
";
    let outcome = execute(json!({"language": "python", "code": code}));
    let mut lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!((lines, &outcome["stderr"]), (vec!["deleted True 3", "left 3", "main"], &json!("")));
}

#[test]
fn daemon_threads_do_not_complain_at_the_end() {
    let code = "
import threading
def helper(): return sum(range(10))
def work():
    while True: helper()
for _ in range(3): threading.Thread(target=work, daemon=True).start()
print('done')
";
    check(code, 0, "done\n", "");
}

#[test]
fn signals_of_children_arrive_and_a_fork_server_works() {
    let code = "
import multiprocessing, signal, subprocess
if __name__ == '__main__':
    signal.signal(signal.SIGCHLD, lambda *_: print('child ended'))
    subprocess.run(['true'])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    multiprocessing.set_start_method('forkserver')
    with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, -2]))
";
    check(code, 0, "child ended\n[1, 2]\n", "");
}

#[test]
fn lines_of_threads_stay_whole() {
    let code = "
import threading
def work(n):
    for i in range(100): print('thread', n, 'line', i)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
    let outcome = execute(json!({"language": "python", "code": code}));
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(lines.len(), 400);
    assert!(lines.iter().all(|line| line.starts_with("thread ") && line.split(' ').count() == 4), "{lines:?}");
}

#[test]
fn an_interpreter_that_the_environment_breaks_is_a_result() {
    let arguments = json!({"language": "python", "code": "print(1)", "env": {"PYTHONHOME": "/nowhere"}});
    check_with(arguments, 1, "", "encodings");
    let arguments = json!({"language": "javascript", "code": "console.log(1)", "env": {"NODE_OPTIONS": "--nope"}});
    check_with(arguments, 9, "", "--nope is not allowed");
}

#[test]
fn a_program_cannot_trip_over_the_runner() {
    let code = "
import sys
REQUEST = CONTROL = program = module = code = known = main = finish = run = None
print(sorted(name for name in globals() if not name.startswith('__')))
os = gc = types = builtins = sys = None
";
    let names = "['CONTROL', 'REQUEST', 'code', 'finish', 'known', 'main', 'module', 'program', 'run', 'sys']\n";
    check(code, 0, names, "");
    check("import sys, io\nprint('seen')\nsys.stdout = io.StringIO()\nprint('unseen')", 0, "seen\n", "");
    check("import os\nprint('x')\nos.closerange(3, 2000)", 0, "x\n", "");
    check("import os; os.closerange(0, 10)", 0, "", "");
    check("import sys, builtins\nsys.modules.clear(); del builtins.print", 0, "", "");
}

#[test]
fn a_forked_child_that_falls_off_the_end_does_not_end_the_run() {
    let code = "
import os, sys, time
if os.fork() == 0:
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.wait()[1]))
";
    check(code, 0, "5\n", "");
}

#[test]
fn a_child_that_holds_the_output_does_not_hold_the_result() {
    let code = "import subprocess; subprocess.Popen(['sleep', '1000']); print('done')";
    let outcome = execute(json!({"language": "python", "code": code}));
    assert_eq!(outcome["stdout"], "done\n");
    assert!(outcome["execution_time_ms"].as_f64().unwrap() < 10_000.0, "{outcome}");
}

#[test]
fn every_vm_is_another() {
    let code = "
import os, random, socket, time, uuid
print(os.urandom(8).hex(), uuid.uuid4(), random.random(), socket.gethostname(), open('/etc/machine-id').read().strip())
print(time.time())
";
    let [first, second] = [0, 1].map(|_| execute(json!({"language": "python", "code": code})));
    let words = |outcome: &serde_json::Value| -> Vec<String> {
        outcome["stdout"].as_str().unwrap().split_whitespace().map(String::from).collect()
    };
    let (first, second) = (words(&first), words(&second));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert_eq!(first.len(), 6);
    for (one, other) in first.iter().zip(&second) {
        assert_ne!(one, other);
    }
    let clock: f64 = second[5].parse().unwrap();
    assert!((now - clock).abs() < 5.0, "the guest's clock is {} s off", now - clock);
}
