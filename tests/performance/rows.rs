//! What is measured: the promises of SPECIFICATION.md, a row each.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::subject::{Subject, milliseconds, result};

/// Takes one sample.
pub(crate) type Sampler = Box<dyn FnMut() -> f64>;

/// A line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Samples at most: some take long.
    pub(crate) most: usize,
    pub(crate) prepare: fn(&Subject) -> Sampler,
}

impl Row {
    /// A row that is measured in milliseconds, as most are.
    pub(crate) const fn time(name: &'static str, most: usize, prepare: fn(&Subject) -> Sampler) -> Row {
        Row { name, unit: "ms", most, prepare }
    }
}

const PYTHON: (&str, &str) = ("python", "print(6*7)");
const JAVASCRIPT: (&str, &str) = ("javascript", "console.log(6*7)");
const SHELL: (&str, &str) = ("shell", "echo $((6*7))");
const LONG: (&str, &str) = ("python", "print('x' * 900_000)");

// Programs that do more than print.
const MODULE: (&str, &str) =
    ("javascript", "import fs from 'node:fs'; console.log(await fs.promises.readdir('/workspace'))");
const TYPESCRIPT: (&str, &str) = ("javascript", "interface A { x: number } const a: A = { x: 42 }; console.log(a.x)");
const ASYNCIO: (&str, &str) =
    ("python", "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print(1)\nasyncio.run(main())");
const SUBPROCESS: (&str, &str) =
    ("python", "import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout)");
const PIPES: (&str, &str) = ("shell", "for i in 1 2 3; do echo $i | cat; done; ls /workspace | wc -l");

pub(crate) const ALL: &[Row] = &[
    Row::time("pool hit, Python print", 200, |subject| pooled(subject, PYTHON)),
    Row::time("pool hit, JavaScript console.log", 200, |subject| pooled(subject, JAVASCRIPT)),
    Row::time("pool hit, shell echo", 200, |subject| pooled(subject, SHELL)),
    Row::time("pool hit, 900 KB of stdout", 200, |subject| pooled(subject, LONG)),
    Row::time("pool hit, an ES module", 200, |subject| pooled(subject, MODULE)),
    Row::time("pool hit, TypeScript", 200, |subject| pooled(subject, TYPESCRIPT)),
    Row::time("pool hit, Python asyncio.run", 200, |subject| pooled(subject, ASYNCIO)),
    Row::time("pool hit, Python subprocess.run", 200, |subject| pooled(subject, SUBPROCESS)),
    Row::time("pool hit, shell with four pipes", 200, |subject| pooled(subject, PIPES)),
    Row::time("session, a call, Python print", 200, |subject| in_session(subject, PYTHON)),
    Row::time("session, a call, JavaScript console.log", 200, |subject| in_session(subject, JAVASCRIPT)),
    Row::time("session, a call, shell echo", 200, |subject| in_session(subject, SHELL)),
    Row::time("session, opened from the pool, and its first call", 200, opened),
    Row::time("session, 20 MB from the host", 20, |subject| moved(subject, "write_file")),
    Row::time("session, 20 MB to the host", 20, |subject| moved(subject, "read_file")),
    Row { name: "session, 1,000 calls: the last 100 against the first", unit: "x", most: 1, prepare: long_session },
    Row { name: "private memory of a session that has printed", unit: "MB", most: 3, prepare: session_memory },
    Row::time("template, Python print", 200, |subject| unpooled(subject, &[], PYTHON)),
    Row::time("template, JavaScript console.log", 200, |subject| unpooled(subject, &[], JAVASCRIPT)),
    Row::time("template, shell echo", 200, |subject| unpooled(subject, &[], SHELL)),
    Row::time("process start to exit, echo ... | sandbox-mcp", 200, |subject| one_shot(subject, false)),
    Row::time("the same, files not in the page cache", 5, |subject| one_shot(subject, true)),
    Row::time("boot, Python print", 5, |subject| unpooled(subject, &["--no-templates"], PYTHON)),
    Row::time("boot, JavaScript console.log", 5, |subject| unpooled(subject, &["--no-templates"], JAVASCRIPT)),
    Row::time("boot, shell echo", 5, |subject| unpooled(subject, &["--no-templates"], SHELL)),
    Row { name: "fresh VMs a second, 2 at a time, Python", unit: "1/s", most: 3, prepare: throughput },
    Row { name: "private memory of a QEMU that waits", unit: "MB", most: 4, prepare: private_memory },
    Row { name: "CPU of a VM that waits", unit: "% of a processor", most: 1, prepare: idle_cpu },
    Row::time("building the template", 1, template_build),
];

/// From a pool that is full, on a server that does nothing else.
fn pooled(subject: &Subject, (language, code): (&'static str, &'static str)) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "1"]);
    // A VM that waits has rehearsed what the server was used for until then.
    server.run(language, code);
    server.wait_for_pool(1);
    server.run(language, code);
    Box::new(move || {
        server.wait_for_pool(1);
        let (outcome, waited) = server.run(language, code);
        assert_eq!(outcome["warm_pool_hit"], true, "{outcome}");
        waited
    })
}

/// In a session that has run the same before.
fn in_session(subject: &Subject, (language, code): (&'static str, &'static str)) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "0"]);
    let session = server.open();
    (0..10).for_each(|_| drop(server.run_in(&session, language, code)));
    Box::new(move || server.run_in(&session, language, code).1)
}

fn opened(subject: &Subject) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "1"]);
    server.run(PYTHON.0, PYTHON.1);
    Box::new(move || {
        server.wait_for_pool(1);
        let begun = Instant::now();
        let session = server.open();
        server.run_in(&session, PYTHON.0, PYTHON.1);
        let took = milliseconds(begun.elapsed());
        server.call("close_session", &json!({"session_id": session}));
        took
    })
}

/// A file of the host into a session, or back.
fn moved(subject: &Subject, tool: &'static str) -> Sampler {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, vec![7; 20_000_000]).unwrap();
    let mut server = subject.start(&["--warm-pool-size", "0", "--share", &format!("{}:rw", folder.path().display())]);
    let arguments = json!({"session_id": server.open(), "path": "file", "host_path": path});
    server.call("write_file", &arguments);
    Box::new(move || {
        // It is there until nobody measures any more.
        let _folder = &folder;
        let begun = Instant::now();
        let result = server.call(tool, &arguments);
        assert_eq!(result["size_bytes"], 20_000_000, "{result}");
        milliseconds(begun.elapsed())
    })
}

fn long_session(subject: &Subject) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "0"]);
    Box::new(move || {
        let session = server.open();
        let times: Vec<f64> = (0..1000).map(|_| server.run_in(&session, PYTHON.0, PYTHON.1).1).collect();
        let median = |times: &[f64]| {
            let mut times = times.to_vec();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        // The first ones wait for what is translated then.
        median(&times[900..]) / median(&times[20..120])
    })
}

fn session_memory(subject: &Subject) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "0"]);
    Box::new(move || {
        let session = server.open();
        (0..5).for_each(|_| drop(server.run_in(&session, PYTHON.0, PYTHON.1)));
        let status = server.call("pool_status", &json!({}));
        let mebibytes = status["sessions"][0]["private_memory_mb"].as_f64().unwrap();
        server.call("close_session", &json!({"session_id": session}));
        mebibytes * 1024.0 * 1024.0 / 1e6
    })
}

fn unpooled(subject: &Subject, arguments: &[&str], (language, code): (&'static str, &'static str)) -> Sampler {
    let arguments = [&["--warm-pool-size", "0"], arguments].concat();
    let mut server = subject.start(&arguments);
    // Whatever is done once at the start is not what a call costs.
    server.run("shell", "true");
    Box::new(move || server.run(language, code).1)
}

/// What `echo ... | sandbox-mcp` takes.
fn one_shot(subject: &Subject, is_cold: bool) -> Sampler {
    let subject = subject.clone();
    let params = json!({"name": "execute_code", "arguments": {"language": "python", "code": "print(6*7)"}});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    Box::new(move || {
        if is_cold {
            forget_files(&cache_dir());
        }
        let begun = Instant::now();
        let mut child = subject.command(&[]).spawn().expect("the server starts");
        child.stdin.take().unwrap().write_all(format!("{request}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let took = begun.elapsed();
        assert_eq!(result(&String::from_utf8(output.stdout).unwrap())["stdout"], "42\n");
        milliseconds(took)
    })
}

fn throughput(subject: &Subject) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "0"]);
    server.run("shell", "true");
    Box::new(move || server.throughput(PYTHON.0, PYTHON.1, 40, 2))
}

fn private_memory(subject: &Subject) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "1"]);
    Box::new(move || {
        server.wait_for_pool(1);
        let [machine] = server.machines()[..] else { panic!("one VM waits") };
        let text = fs::read_to_string(format!("/proc/{machine}/smaps_rollup")).unwrap();
        // What is its own whatever else there is: pages of the template that no second VM has mapped yet would count as private.
        let anonymous =
            text.lines().find_map(|line| line.strip_prefix("Anonymous:")?.split_whitespace().next()?.parse().ok());
        let kibibytes: f64 = anonymous.unwrap();
        // The next sample is of another VM.
        server.run("python", "pass");
        kibibytes * 1024.0 / 1e6
    })
}

fn idle_cpu(subject: &Subject) -> Sampler {
    const SIZE: u64 = 2;
    let mut server = subject.start(&["--warm-pool-size", "2"]);
    Box::new(move || {
        server.wait_for_pool(SIZE);
        let machines = server.machines();
        let nanoseconds = || -> u64 {
            // The first field of each thread's is what it has run.
            let tasks = machines.iter().flat_map(|id| fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten());
            let of = |path: &Path| fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            tasks
                .map(|task| of(&task.path()).split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0))
                .sum()
        };
        let (before, begun) = (nanoseconds(), Instant::now());
        std::thread::sleep(Duration::from_secs(20));
        let share = (nanoseconds() - before) as f64 / begun.elapsed().as_nanos() as f64;
        share * 100.0 / SIZE as f64
    })
}

/// From a server's start without a template until it has answered.
fn template_build(subject: &Subject) -> Sampler {
    let subject = subject.clone();
    Box::new(move || {
        let cache = new_cache();
        let begun = Instant::now();
        let mut server = subject.start(&["--warm-pool-size", "0", "--cache-dir", cache.path().to_str().unwrap()]);
        server.run("shell", "true");
        milliseconds(begun.elapsed())
    })
}

/// A cache that has the image and nothing else.
pub(crate) fn new_cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(cache_dir().join("images"), cache.path().join("images")).unwrap();
    cache
}

fn cache_dir() -> std::path::PathBuf {
    let named = std::env::var_os("SANDBOX_MCP_CACHE_DIR").map(Into::into);
    named.unwrap_or_else(|| directories::ProjectDirs::from("", "", "sandbox-mcp").unwrap().cache_dir().to_path_buf())
}

/// Has the kernel drop what it keeps of all files in a folder.
fn forget_files(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget_files(&path);
        } else if let Ok(file) = fs::File::open(&path) {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
        }
    }
}
