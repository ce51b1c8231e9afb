//! The cgroup that all of a program's processes are in: its limits, its figures, its end.
//!
//! Each interpreter that is kept warm has one of its own, so that those which the program does not use count for nothing. All of
//! them are in one, which bounds the programs of a session together.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits;
use sandbox_schemas::wire::RunId;

use crate::error::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// What the cgroups of all programs are in.
const PROGRAMS: &str = "/sys/fs/cgroup/programs";

const CONTROLLERS: &str = "+memory +pids +cpu";

/// Lets cgroups have limits. The agent stays in the root: what a program uses up is never the agent's.
pub(crate) fn set_up() -> Result<()> {
    write(Path::new(ROOT), "cgroup.subtree_control", CONTROLLERS)?;
    fs::create_dir(PROGRAMS).context(format!("creating {PROGRAMS}"))?;
    write(Path::new(PROGRAMS), "cgroup.subtree_control", CONTROLLERS)
}

/// Bounds what all programs take together, in bytes, beyond what the interpreters that wait have taken so far.
pub(crate) fn bound_all(memory_max: u64) -> Result<()> {
    let programs = Cgroup { folder: PROGRAMS.into() };
    let now = fs::read_to_string(programs.folder.join("memory.current")).unwrap_or_default();
    let now: u64 = now.trim().parse().unwrap_or(0);
    write(&programs.folder, "memory.max", &memory_max.saturating_add(now).to_string())
}

/// A cgroup. It stays when this is dropped, as its processes do.
pub(crate) struct Cgroup {
    folder: PathBuf,
}

impl Cgroup {
    /// The one of a language, made if it is not there.
    pub(crate) fn of(language: Language) -> Result<Cgroup> {
        Cgroup::at(Path::new(PROGRAMS).join(language.name()))
    }

    /// The one of a program that has its own.
    pub(crate) fn of_run(run: RunId) -> Result<Cgroup> {
        Cgroup::at(Path::new(PROGRAMS).join(format!("run-{run}")))
    }

    /// One for what is no program, made if it is not there.
    pub(crate) fn named(name: &str) -> Result<Cgroup> {
        Cgroup::at(Path::new(ROOT).join(name))
    }

    fn at(folder: PathBuf) -> Result<Cgroup> {
        if !folder.exists() {
            fs::create_dir(&folder).context(format!("creating {}", folder.display()))?;
            write(&folder, "pids.max", &limits::PROCESSES_MAX.to_string())?;
        }
        Ok(Cgroup { folder })
    }

    /// The file that a process writes `0` to in order to join.
    pub(crate) fn join_file(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Asks every process to end, by the signal that it is most likely to hear.
    pub(crate) fn interrupt(&self) {
        for pid in self.processes() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), signal_for(pid));
        }
    }

    /// The same of an interpreter, which gets SIGINT, and of the processes that were started since. Those that it had started before
    /// are no part of what shall end.
    pub(crate) fn interrupt_since(&self, interpreter: Pid, since: ClockTicks) {
        for pid in self.processes() {
            if pid == interpreter.as_raw() {
                let _ = kill(interpreter, Signal::SIGINT);
            } else if started(pid).is_some_and(|started| started >= since) {
                let _ = kill(Pid::from_raw(pid), signal_for(pid));
            }
        }
    }

    fn processes(&self) -> Vec<i32> {
        let processes = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        processes.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes it, if no process is left in it.
    pub(crate) fn remove(&self) -> bool {
        fs::remove_dir(&self.folder).is_ok()
    }

    /// Kills every process in it, however it has forked.
    pub(crate) fn kill_all(&self) -> Result<()> {
        write(&self.folder, "cgroup.kill", "1")
    }

    /// Bounds what the processes and the files they write take together, in bytes, unless all programs are bounded together, and
    /// begins to measure.
    pub(crate) fn meter(&self, memory_max: Option<u64>) -> Result<Meter> {
        // It can be too small for the interpreter already, which is then killed for it: that counts.
        let (cpu_before_us, oom_kills_before) = (self.cpu_us(), self.oom_kills());
        if let Some(memory_max) = memory_max {
            write(&self.folder, "memory.max", &memory_max.to_string())?;
        }
        // What was used for warming does not count, nor what the limit has just pushed out: pages of files that rehearsals read
        // can be more than a program is allowed. A write resets the peak for those who read through this descriptor.
        let mut peak = File::options().read(true).write(true).open(self.folder.join("memory.peak")).ok();
        if let Some(peak) = &mut peak {
            let _ = peak.write(b"reset");
        }
        Ok(Meter { cpu_before_us, oom_kills_before, peak })
    }

    fn cpu_us(&self) -> u64 {
        self.keyed("cpu.stat", "usage_usec")
    }

    fn oom_kills(&self) -> u64 {
        self.keyed("memory.events", "oom_kill")
    }

    fn keyed(&self, file: &str, key: &str) -> u64 {
        // The figures inform; a kernel that lacks one must not fail a run.
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }
}

/// SIGINT, as from a terminal. SIGTERM for a process that takes no notice of the other, as those that a shell has put into the
/// background, or that has prepared for SIGTERM: what Python and bash do on SIGINT they do unasked. So does Node.js on both.
fn signal_for(pid: i32) -> Signal {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let has = |set: &str, signal: Signal| {
        let bits = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(set)?.trim(), 16).ok());
        bits.is_some_and(|bits| bits >> (signal as i32 - 1) & 1 == 1)
    };
    let is_node = || fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.ends_with("node"));
    if has("SigIgn:", Signal::SIGINT) || (has("SigCgt:", Signal::SIGTERM) && !is_node()) {
        Signal::SIGTERM
    } else {
        Signal::SIGINT
    }
}

/// A time since the machine has started, as the kernel tells it of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClockTicks(u64);

impl ClockTicks {
    /// What the kernel counts in, whatever it ticks at.
    const PER_SECOND: u64 = 100;

    pub(crate) fn now() -> ClockTicks {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from).unwrap_or_default();
        ClockTicks((now.as_millis() as u64) * ClockTicks::PER_SECOND / 1000)
    }
}

/// When a process was started, if it is there.
fn started(pid: i32) -> Option<ClockTicks> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind its name, which can hold anything, it is the 20th.
    let rest = stat.rsplit_once(") ")?.1;
    rest.split(' ').nth(19)?.parse().ok().map(ClockTicks)
}

/// What a program has used since its start.
pub(crate) struct Meter {
    cpu_before_us: u64,
    oom_kills_before: u64,
    peak: Option<File>,
}

impl Meter {
    /// CPU time of all processes, in microseconds.
    pub(crate) fn cpu_us(&self, cgroup: &Cgroup) -> u64 {
        cgroup.cpu_us().saturating_sub(self.cpu_before_us)
    }

    /// Processes that the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self, cgroup: &Cgroup) -> u64 {
        cgroup.oom_kills().saturating_sub(self.oom_kills_before)
    }

    /// Most memory used at once, in bytes.
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        let mut digits = [0; 32];
        // From the file's beginning: the reset has moved the descriptor on.
        let length = self.peak.as_ref().and_then(|peak| peak.read_at(&mut digits, 0).ok()).unwrap_or(0);
        std::str::from_utf8(&digits[..length]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }
}

fn write(folder: &Path, file: &str, value: &str) -> Result<()> {
    fs::write(folder.join(file), value).context(format!("writing {value:?} to {}/{file}", folder.display()))
}
