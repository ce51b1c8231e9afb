//! The cgroup that all of a program's processes are in: its limits, its figures, its end.

use std::fs;
use std::path::Path;

use sandbox_schemas::limits;

use crate::error::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
const USER: &str = "/sys/fs/cgroup/user";

/// The file that a process writes `0` to in order to join.
pub(crate) const JOIN_FILE: &str = "/sys/fs/cgroup/user/cgroup.procs";

/// Makes the cgroup. The agent stays outside: what a program uses up is never the agent's.
pub(crate) fn set_up() -> Result<()> {
    write(ROOT, "cgroup.subtree_control", "+memory +pids +cpu")?;
    fs::create_dir(USER).context("creating the user's cgroup")?;
    write(USER, "pids.max", &limits::PROCESSES_MAX.to_string())
}

/// Bounds what the processes and the files they write take together.
pub(crate) fn limit_memory(bytes: u64) -> Result<()> {
    write(USER, "memory.max", &bytes.to_string())
}

/// Kills every process in it, however it has forked.
pub(crate) fn kill_all() -> Result<()> {
    write(USER, "cgroup.kill", "1")
}

/// CPU time of all its processes until now, in microseconds.
pub(crate) fn cpu_us() -> u64 {
    keyed("cpu.stat", "usage_usec")
}

/// Most memory used at once, in bytes.
pub(crate) fn memory_peak_bytes() -> u64 {
    read("memory.peak").trim().parse().unwrap_or(0)
}

/// Processes that the kernel killed for want of memory.
pub(crate) fn oom_kills() -> u64 {
    keyed("memory.events", "oom_kill")
}

fn keyed(file: &str, key: &str) -> u64 {
    let text = read(file);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// The figures inform; a kernel that lacks one must not fail a run.
fn read(file: &str) -> String {
    fs::read_to_string(Path::new(USER).join(file)).unwrap_or_default()
}

fn write(folder: &str, file: &str, value: &str) -> Result<()> {
    fs::write(Path::new(folder).join(file), value).context(format!("writing {value:?} to {folder}/{file}"))
}
