//! The host's build tools: whether they are there, and running them. The only place that starts processes.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{self, Pid};

use crate::error::BuildError;
use crate::recipe::Workshop;

/// How many lines of a failed tool's output stand in the error.
const TAIL_LINES: usize = 20;

/// Something that a recipe needs on the host.
#[derive(Debug)]
pub(crate) struct HostTool {
    /// A program that is looked for in `PATH`, or the absolute path of a file.
    pub(crate) name: &'static str,
    /// Debian's package that has it.
    pub(crate) package: &'static str,
}

/// Checks that the host has `tools`, so that a build does not fail after minutes.
pub(crate) fn require(tools: impl Iterator<Item = &'static HostTool>) -> Result<(), MissingTools> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing = MissingTools { names: Vec::new(), packages: Vec::new() };
    for tool in tools {
        // An absolute name replaces the directory that it is joined to.
        let found =
            std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|dir| dir.join(tool.name).is_file());
        if !found && !missing.names.contains(&tool.name) {
            missing.names.push(tool.name);
            missing.packages.push(tool.package);
        }
    }
    missing.packages.sort_unstable();
    missing.packages.dedup();
    if missing.names.is_empty() { Ok(()) } else { Err(missing) }
}

/// A run of a tool whose output goes to a log.
pub(crate) struct Tool {
    name: &'static str,
    command: Command,
}

impl Tool {
    /// A program of the host, found in `PATH`, working in `directory`.
    #[allow(clippy::disallowed_methods, reason = "the build tools are started here and nowhere else")]
    pub(crate) fn new(name: &'static str, directory: &Path) -> Tool {
        let mut command = Command::new(name);
        command.current_dir(directory).stdin(Stdio::null()).env("LC_ALL", "C");
        // A `make` above this program, or the caller's compiler settings, must not decide what is built.
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARCH", "CROSS_COMPILE", "KBUILD_OUTPUT"]
        {
            command.env_remove(variable);
        }
        Tool { name, command }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Tool {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Tool {
        self.command.args(args);
        self
    }

    /// Sets a variable of the tool's environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.command.env(name, value);
        self
    }

    /// Runs it. Each line of its output goes to the end of `log` and to `on_line`.
    pub(crate) fn run(
        mut self,
        log: &Path,
        workshop: &Workshop<'_>,
        mut on_line: impl FnMut(&str),
    ) -> Result<(), BuildError> {
        workshop.check()?;
        let name = self.name;
        let start = |source| ToolError::Start { name, source };
        let log_error = |source| ToolError::Log { name, path: log.to_owned(), source };
        let mut log_file = File::options().append(true).create(true).open(log).map_err(log_error)?;
        let (output, input) = std::io::pipe().map_err(start)?;
        self.command.stdout(input.try_clone().map_err(start)?).stderr(input);
        die_with_this_thread(&mut self.command);
        let mut child = self.command.spawn().map_err(start)?;
        // The command holds the pipe's writing end; as long as it does, the output does not end.
        drop(self.command);

        let mut tail = VecDeque::with_capacity(TAIL_LINES);
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        let mut stopped = false;
        loop {
            line.clear();
            if output.read_until(b'\n', &mut line).map_err(start)? == 0 {
                break;
            }
            log_file.write_all(&line).map_err(log_error)?;
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            on_line(text);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text.to_owned());
            if !stopped && workshop.check().is_err() {
                stopped = true;
                // It may have ended by itself meanwhile.
                let _ = signal::kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            }
        }
        let status = child.wait().map_err(start)?;
        if stopped {
            return Err(BuildError::Stopped);
        }
        if status.success() {
            return Ok(());
        }
        Err(ToolError::Failed { name, status, tail: Vec::from(tail).join("\n"), log: log.to_owned() }.into())
    }
}

/// The first line that a program prints about its version; empty when it prints none.
#[allow(clippy::disallowed_methods, reason = "the build tools are started here and nowhere else")]
pub(crate) fn version(name: &str) -> String {
    let output = Command::new(name).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Has the kernel end the child when the thread that waits for it is gone, however this program ends. It is asked to
/// end, not killed: make and mmdebstrap then end what they have started themselves.
#[allow(unsafe_code, reason = "pre_exec is unsafe, and there is no other way to set a parent-death signal")]
fn die_with_this_thread(command: &mut Command) {
    let parent = unistd::getpid();
    // SAFETY: between fork and exec the closure makes system calls only: it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            // The parent may have gone before the signal was set.
            if unistd::getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
}

/// What the host lacks.
#[derive(Debug, thiserror::Error)]
#[error(
    "building a VM image needs {}, which this host does not have.\n\
     Run `make setup` in the project's directory, or: apt-get install --no-install-recommends {}",
    .names.join(", "), .packages.join(" ")
)]
pub struct MissingTools {
    /// Programs and files.
    names: Vec<&'static str>,
    /// Debian's packages that have them.
    packages: Vec<&'static str>,
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started or waited for.
    #[error("cannot run {name}: {source}")]
    Start {
        /// The program.
        name: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its output could not be kept.
    #[error("cannot write the output of {name} to {path}: {source}")]
    Log {
        /// The program.
        name: &'static str,
        /// The log.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It failed.
    #[error("{name} failed ({status}); all of its output is in {log}, the last lines are:\n{tail}")]
    Failed {
        /// The program.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its output.
        tail: String,
        /// Where all of it is.
        log: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::{HostTool, Tool, require};
    use crate::progress::Silent;
    use crate::recipe::Workshop;

    #[test]
    fn missing_tools_are_all_named_with_their_packages() {
        static TOOLS: [HostTool; 4] = [
            HostTool { name: "sh", package: "dash" },
            HostTool { name: "no-such-tool", package: "b" },
            HostTool { name: "/no/such/header.h", package: "a" },
            HostTool { name: "nor-this", package: "b" },
        ];
        let message = require(TOOLS.iter()).unwrap_err().to_string();
        assert!(message.contains("needs no-such-tool, /no/such/header.h, nor-this, which"), "{message}");
        assert!(message.ends_with("recommends a b"), "{message}");
        assert!(require(TOOLS[..1].iter()).is_ok());
    }

    #[test]
    fn failure_shows_the_last_lines_and_names_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let workshop =
            Workshop { progress: &Silent, downloads: dir.path(), logs: dir.path(), stop: &AtomicBool::new(false) };
        let mut lines = 0;
        let error = Tool::new("sh", dir.path())
            .args(["-c", "seq 100; echo broken >&2; exit 3"])
            .run(&log, &workshop, |_| lines += 1)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("sh failed (exit status: 3)") && error.contains(&log.display().to_string()),
            "{error}"
        );
        assert!(error.ends_with("99\n100\nbroken") && !error.contains("\n81\n"), "{error}");
        assert_eq!(lines, 101);
        assert!(std::fs::read_to_string(&log).unwrap().starts_with("1\n2\n"));
    }

    #[test]
    fn running_tool_is_ended_when_another_component_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let workshop = Workshop { progress: &Silent, downloads: dir.path(), logs: dir.path(), stop: &stop };
        let endless = Tool::new("sh", dir.path()).args(["-c", "while :; do echo on; sleep 0.01; done"]);
        let set = |_: &str| stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = endless.run(&dir.path().join("log"), &workshop, set).unwrap_err();
        assert!(matches!(error, crate::error::BuildError::Stopped));
    }
}
