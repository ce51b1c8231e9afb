//! An interpreter that waits for its program: spawned as the user, warmed, told once to go.
//!
//! What the agent and a runner say to each other travels on two pipes of their own, never on the program's streams:
//! the agent writes a line on the request pipe: what it is about (`G`: go, the only program; `P`: a rehearsal, stay for another; `C` and a
//! number: that call of a session, stay with what it leaves), and a letter for each thing to know (`e`: there is an environment; `i`:
//! there is input; `+`: there is much memory). The runner writes `R` on the control pipe when it is warm, and when the program has ended
//! `D`, exit code, newline; `X` instead where a call ends its interpreter. What ends in any other way is seen by its exit. `B` comes before
//! the first call of an interpreter: from then on an interrupt ends a call, and no more.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, fchown, pipe2};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits;
use sandbox_schemas::wire::{Execute, Kind};

use crate::boot::{RUNNER_DIR, WORKSPACE_DIR};
use crate::cgroup::Cgroup;
use crate::confine::{self, USER_GID, USER_UID};
use crate::error::{Context, Result};
use crate::program::{BASH_ENV, Folder, LaidOut};

/// The descriptors in a runner. Far above those that programs open, or close by the dozen.
const REQUEST_FD: RawFd = 1000;
const CONTROL_FD: RawFd = 1001;

/// From here on, in bytes, an interpreter need not be careful with its memory: its own limit is no larger.
const ROOMY_BYTES: u64 = limits::MEMORY_MAX_MB * 1024 * 1024;

/// What differs from language to language.
struct Recipe {
    /// File name and source of the runner.
    runner: (&'static str, &'static str),
    /// Interpreter and its arguments before the runner's, if it takes one, and the program's.
    command: &'static [&'static str],
    /// The variable by which the interpreter is told of its runner; as an argument where there is none.
    runner_variable: Option<&'static str>,
    /// Environment variables that an interpreter reads only while it starts: a program that sets one gets an interpreter
    /// of its own instead of the warm one. `X*` stands for all that begin with X.
    startup_variables: &'static [&'static str],
    /// Exceptions from those.
    runtime_variables: &'static [&'static str],
}

const STARTUP_VARIABLES_OF_ALL: &[&str] = &["LD_*", "LC_*", "LANG", "LANGUAGE", "TZ", "TZDIR", "MALLOC_*", "GLIBC_*"];

fn recipe(language: Language) -> Recipe {
    match language {
        Language::Python => Recipe {
            runner: ("python.py", include_str!("../runners/python.py")),
            command: &["/usr/bin/python3", "/usr/local/lib/sandbox/start.pyc"],
            runner_variable: None,
            startup_variables: &["PYTHON*", "OPENSSL_*"],
            runtime_variables: &[],
        },
        Language::Javascript => Recipe {
            runner: ("node.cjs", include_str!("../runners/node.cjs")),
            command: &[
                "/usr/local/bin/node",
                "--disable-warning=ExperimentalWarning",
                "--experimental-vm-modules",
                "--experimental-transform-types",
                // It is the cgroup that ends a program which needs more than memory_mb: V8's own limit is a fraction of what a
                // template's VM has, and is met by a minute of collecting garbage.
                "--max-old-space-size=2048",
            ],
            runner_variable: None,
            startup_variables: &["NODE_*", "UV_*", "OPENSSL_*", "SSL_*", "NO_COLOR", "FORCE_COLOR"],
            runtime_variables: &["NODE_ENV"],
        },
        Language::Shell => Recipe {
            runner: ("bash.sh", include_str!("../runners/bash.sh")),
            command: &["/bin/bash"],
            runner_variable: Some(BASH_ENV),
            // The last ones cannot be set by a running bash, or mean something else there.
            startup_variables: &[
                "BASHOPTS",
                "SHELLOPTS",
                "POSIXLY_CORRECT",
                "BASH_COMPAT",
                "EUID",
                "IFS",
                "OPTIND",
                "PPID",
                "UID",
            ],
            runtime_variables: &[],
        },
    }
}

/// Whether a warm interpreter would miss one of these variables.
pub(crate) fn needs_own_start(language: Language, env: &[(String, String)]) -> bool {
    let recipe = recipe(language);
    let matches = |pattern: &&str, name: &str| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    };
    let is_startup = |name: &str| {
        let patterns = recipe.startup_variables.iter().chain(STARTUP_VARIABLES_OF_ALL);
        !recipe.runtime_variables.contains(&name) && patterns.into_iter().any(|pattern| matches(pattern, name))
    };
    // Bash hands a name that is none of its own on to its children, but cannot be told of one later.
    let is_foreign = |name: &str| language == Language::Shell && !is_identifier(name);
    env.iter().any(|(name, _)| is_startup(name) || is_foreign(name))
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// A spawned interpreter.
pub(crate) struct Runner {
    pub(crate) language: Language,
    pub(crate) cgroup: Cgroup,
    pub(crate) pid: Pid,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Gone once the runner has closed its end.
    pub(crate) control: Option<OwnedFd>,
    request: OwnedFd,
    spawned: Instant,
    /// How long it took to be warm; `None` until it says so.
    pub(crate) spawn_us: Option<u64>,
}

impl Runner {
    /// Its program will lie in `folder`; all its processes are in `cgroup`.
    pub(crate) fn spawn(
        language: Language,
        env: &[(String, String)],
        cgroup: Cgroup,
        folder: &Folder,
    ) -> Result<Runner> {
        let recipe = recipe(language);
        let (name, source) = recipe.runner;
        let runner_path = format!("{RUNNER_DIR}/{name}");
        fs::write(&runner_path, source).context(format!("writing {runner_path}"))?;

        let (stdin_read, stdin_write) = user_pipe()?;
        let (stdout_read, stdout_write) = user_pipe()?;
        let (stderr_read, stderr_write) = user_pipe()?;
        let (request_read, request_write) = user_pipe()?;
        let (control_read, control_write) = user_pipe()?;
        for end in [&stdin_write, &stdout_read, &stderr_read, &control_read] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("making a pipe non-blocking")?;
        }

        let filter = confine::filter()?;
        let join_file = cgroup.join_file();
        let spawned = Instant::now();
        #[allow(clippy::disallowed_methods, reason = "the agent's one place that starts a program")]
        let mut command = Command::new(recipe.command[0]);
        command
            // As it is called by those who look for it.
            .arg0(recipe.command[0].rsplit('/').next().unwrap_or_default())
            .args(&recipe.command[1..])
            .args(recipe.runner_variable.is_none().then_some(&runner_path))
            .arg(folder.program(language))
            .env_clear()
            .envs(base_environment())
            .envs(env.iter().map(|(name, value)| (name, value)))
            .envs(recipe.runner_variable.map(|name| (name, &runner_path)))
            .current_dir(WORKSPACE_DIR)
            .stdin(Stdio::from(stdin_read))
            .stdout(Stdio::from(stdout_write))
            .stderr(Stdio::from(stderr_write));
        let mark = confine::mark(language);
        let prepare = move || {
            // dup2 leaves close-on-exec off at the target, on at the source.
            place(&request_read, REQUEST_FD)?;
            place(&control_write, CONTROL_FD)?;
            confine::become_user(USER_UID, mark, &filter, &join_file)
        };
        #[allow(unsafe_code, reason = "rights are given up between fork and exec")]
        // SAFETY: the agent has one thread, so that nothing in the child can wait for a lock that another thread held.
        unsafe {
            command.pre_exec(prepare)
        };
        let child = command.spawn().context(format!("starting {}", recipe.command[0]))?;
        Ok(Runner {
            language,
            cgroup,
            // The agent reaps every child itself, orphans included; the handle is of no use.
            pid: Pid::from_raw(child.id() as i32),
            stdin: Some(stdin_write),
            stdout: stdout_read,
            stderr: stderr_read,
            control: Some(control_read),
            request: request_write,
            spawned,
            spawn_us: None,
        })
    }

    /// The runner has said `R`.
    pub(crate) fn is_warm_now(&mut self) {
        self.spawn_us.get_or_insert(self.spawned.elapsed().as_micros() as u64);
    }

    /// It was warm when this VM was saved: nobody waited for that.
    pub(crate) fn was_restored(&mut self) {
        self.spawn_us = Some(0);
    }

    /// Lets it run the program that was laid out.
    pub(crate) fn go(&mut self, request: &Execute, laid_out: LaidOut) {
        let mut line = match request.kind {
            Kind::Only | Kind::Beside => String::from("G"),
            Kind::Rehearsal => String::from("P"),
            Kind::Call { number } => format!("C{number}"),
        };
        let is_roomy = self.language == Language::Javascript && request.memory_bytes >= ROOMY_BYTES;
        let known = [(laid_out.has_environment, 'e'), (laid_out.has_input, 'i'), (is_roomy, '+')];
        line.extend(known.iter().filter(|(is_so, _)| *is_so).map(|(_, letter)| letter));
        line.push('\n');
        // A runner that died meanwhile is noticed by its exit.
        let _ = nix::unistd::write(&self.request, line.as_bytes());
    }

    /// Ends an interpreter that is of no use; its memory is free afterwards.
    pub(crate) fn retire(self) {
        self.signal(Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }

    /// Signals the interpreter's process group.
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended already; that is reported by its exit.
        let _ = killpg(self.pid, signal);
    }
}

fn base_environment() -> [(&'static str, &'static str); 8] {
    [
        // What is in front of Node.js, npm and uv passes on to them what is theirs (images/root/bin). The commands of packages come
        // last: none of them shall take the place of one that programs expect.
        (
            "PATH",
            "/home/user/.local/bin:/usr/local/lib/sandbox/bin:/usr/local/bin:/usr/bin:/bin:/run/commands:/packages/javascript/node_modules/.bin",
        ),
        ("HOME", "/home/user"),
        ("USER", "sandbox"),
        ("LOGNAME", "sandbox"),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
        ("PWD", WORKSPACE_DIR),
        ("TERM", "dumb"),
    ]
}

/// A pipe that the user can open anew through /dev/stdout and the like, which asks for rights on the pipe itself.
fn user_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("creating a pipe")?;
    fchown(&read, Some(USER_UID.into()), Some(USER_GID.into())).context("giving a pipe to the user")?;
    // A smaller pipe only means more switches.
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(limits::PIPE_BYTES as i32));
    Ok((read, write))
}

/// Gives a descriptor a number, in a child that is about to exec.
pub(crate) fn place(source: &impl AsFd, target: RawFd) -> std::io::Result<()> {
    #[allow(unsafe_code, reason = "a descriptor by number is what the child is promised")]
    // SAFETY: both are plain descriptors in a child that is about to exec; nothing owns `target` there.
    let result = unsafe { nix::libc::dup2(source.as_fd().as_raw_fd(), target) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v8_may_use_the_largest_memory_of_a_program() {
        let wanted = format!("--max-old-space-size={}", limits::MEMORY_MAX_MB);
        assert!(recipe(Language::Javascript).command.contains(&wanted.as_str()), "{wanted}");
    }
}
