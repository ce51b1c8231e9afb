//! Running the host's build tools. The only place that starts processes.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{self, Pid};

use crate::error::BuildError;
use crate::failure::ToolError;
use crate::host_tool::search_path;
use crate::recipe::Workshop;
use crate::room::{self, Full, Place, Places};

/// How many lines of a failed tool's output stand in the error.
const TAIL_LINES: usize = 20;

/// What tools see of this program's environment beside `PATH`: how the network is reached (by apt). All else could change what is built without changing its key: KCFLAGS, LLVM, MAKEFLAGS, TAR_OPTIONS,
/// XZ_OPT, NODE_OPTIONS, SOURCE_DATE_EPOCH, and what other tools and versions will think of.
const PASSED_ON: [&str; 9] = [
    "HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// A program of the host that decides nothing by the environment, the input or the language of who builds.
#[allow(clippy::disallowed_methods, reason = "the build tools are started here and nowhere else")]
fn command(name: &str) -> Command {
    let passed_on = PASSED_ON.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
    let mut command = Command::new(name);
    command.env_clear().envs(passed_on).env("PATH", search_path()).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// A run of a tool whose output goes to a log.
pub(crate) struct Tool {
    name: &'static str,
    command: Command,
    /// Where it works.
    directory: PathBuf,
    /// Where it keeps what it needs for a while.
    temporary: Place,
}

impl Tool {
    /// A program of the host, found in `PATH`, working in `directory`, temporary files included: `/tmp` may be small.
    pub(crate) fn new(name: &'static str, directory: &Path) -> Tool {
        let mut command = command(name);
        command.current_dir(directory);
        Tool { name, command, directory: directory.to_owned(), temporary: Place::cache(directory) }
    }

    /// Has it keep temporary files elsewhere.
    pub(crate) fn temporary(mut self, place: Place) -> Tool {
        self.temporary = place;
        self
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
        self.command.stdout(input.try_clone().map_err(start)?).stderr(input).env("TMPDIR", self.temporary.path());
        die_with_this_thread(&mut self.command);
        let mut child = self.command.spawn().map_err(start)?;
        let pid = Pid::from_raw(child.id().cast_signed());
        // The command holds the pipe's writing end; as long as it does, the output does not end.
        drop(self.command);

        let mut tail = VecDeque::with_capacity(TAIL_LINES);
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        // A tool that is given up is listened to until it has ended, since its directory is removed next.
        let mut given_up = None;
        let mut is_full = false;
        loop {
            line.clear();
            if output.read_until(b'\n', &mut line).map_err(start)? == 0 {
                break;
            }
            let logged = log_file.write_all(&line).map_err(log_error);
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            on_line(text);
            is_full |= room::is_full(text);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text.to_owned());
            if given_up.is_none() {
                given_up = logged.map_err(BuildError::from).and_then(|()| workshop.check()).err();
                if given_up.is_some() {
                    // It may have ended by itself meanwhile.
                    let _ = signal::kill(pid, Signal::SIGTERM);
                }
            }
        }
        let status = child.wait().map_err(start)?;
        if let Some(error) = given_up {
            return Err(error);
        }
        if status.success() {
            return Ok(());
        }
        if is_full {
            let places = Places::new(vec![Place::cache(&self.directory), self.temporary]);
            return Err(ToolError::Full(Full { name, places, log: log.to_owned() }).into());
        }
        Err(ToolError::Failed { name, status, tail: Vec::from(tail).join("\n"), log: log.to_owned() }.into())
    }
}

/// Whether a program of the host can do what it is asked for; what it says, if not.
pub(crate) fn attempt(name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(), String> {
    let mut command = command(name);
    die_with_this_thread(&mut command);
    let output = command.args(args).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// The first line that a program prints about its version; empty when it prints none.
pub(crate) fn version(name: &str) -> String {
    let output = command(name).arg("--version").stderr(Stdio::null()).output();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::{PASSED_ON, Tool};
    use crate::error::{BuildError, ToolError};
    use crate::progress::Silent;
    use crate::recipe::Workshop;
    use crate::room::Place;

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
    fn tool_that_finds_no_space_says_where_and_what_moves_it() {
        let dir = tempfile::tempdir().unwrap();
        let workshop =
            Workshop { progress: &Silent, downloads: dir.path(), logs: dir.path(), stop: &AtomicBool::new(false) };
        let script = "test -w \"$TMPDIR\" || exit; echo 'write error: No space left on device'; seq 100; exit 2";
        let fails = |tool: Tool| {
            tool.args(["-c", script]).run(&dir.path().join("log"), &workshop, |_| ()).unwrap_err().to_string()
        };
        let work = dir.path().display();
        let error = fails(Tool::new("sh", dir.path()));
        let expected = format!("sh found no space left in {work}: make room there, or name another folder with ");
        assert!(error.starts_with(&format!("{expected}--cache-dir; ")), "{error}");
        let error = fails(Tool::new("sh", dir.path()).temporary(Place::temporary("/tmp".into())));
        assert!(
            error.contains(&format!(" in {work} and /tmp: ")) && error.contains("--cache-dir and TMPDIR;"),
            "{error}"
        );
    }

    #[test]
    fn running_tool_is_ended_when_another_component_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let workshop = Workshop { progress: &Silent, downloads: dir.path(), logs: dir.path(), stop: &stop };
        let endless = Tool::new("sh", dir.path()).args(["-c", "while :; do echo on; sleep 0.01; done"]);
        let set = |_: &str| stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = endless.run(&dir.path().join("log"), &workshop, set).unwrap_err();
        assert!(matches!(error, BuildError::Stopped));
    }

    #[test]
    fn tool_whose_output_cannot_be_kept_has_ended_when_that_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let workshop =
            Workshop { progress: &Silent, downloads: dir.path(), logs: dir.path(), stop: &AtomicBool::new(false) };
        let script = "trap 'sleep 0.3; >ended; exit 1' TERM; echo on; while :; do sleep 0.01; done";
        let error = Tool::new("sh", dir.path()).args(["-c", script]).run("/dev/full".as_ref(), &workshop, |_| ());
        assert!(matches!(error, Err(BuildError::Tool(ToolError::Log { .. }))));
        assert!(dir.path().join("ended").exists());
    }

    #[test]
    fn environment_is_not_passed_on() {
        // There is something to keep back: cargo gives a test many variables of its own.
        let dir = tempfile::tempdir().unwrap();
        let workshop =
            Workshop { progress: &Silent, downloads: dir.path(), logs: dir.path(), stop: &AtomicBool::new(false) };
        let mut seen = Vec::new();
        let env = Tool::new("env", dir.path()).env("GIVEN", "value");
        env.run(&dir.path().join("log"), &workshop, |line| seen.push(line.to_owned())).unwrap();
        assert!(seen.contains(&"LC_ALL=C".to_owned()) && seen.contains(&"GIVEN=value".to_owned()), "{seen:?}");
        let allowed = |name| PASSED_ON.contains(&name) || ["PATH", "LC_ALL", "TMPDIR", "GIVEN"].contains(&name);
        for line in seen.iter().filter_map(|line| line.split_once('=')) {
            assert!(allowed(line.0), "{line:?}");
        }
    }
}
