//! An interpreter that waits for its program: spawned as the user, warmed, told once to go.
//!
//! What the agent and a runner say to each other travels on two pipes of their own, never on the program's streams:
//! the agent writes a line on the request pipe (`G`: go, the only program; `E`: the same, with an environment; `P`: a rehearsal,
//! stay for another; at its end `+` instead of a newline: there is much memory); the runner writes `R` on the control pipe when
//! it is warm and `D`, exit code, newline when the program has ended. A program that ends in any other way is seen by its exit.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, fchown, pipe2};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits;

use crate::boot::{PROGRAM_DIR, RUNNER_DIR, WORKSPACE_DIR};
use crate::cgroup::Cgroup;
use crate::confine::{self, USER_GID, USER_UID};
use crate::error::{Context, Result};

/// The descriptors in a runner. Far above those that programs open, or close by the dozen.
const REQUEST_FD: RawFd = 1000;
const CONTROL_FD: RawFd = 1001;

/// A pipe's capacity, in bytes: what a program can write before the agent must read. Linux allows root more than the
/// usual 64 KiB, and fewer switches between program and agent are what counts under TCG.
pub(crate) const PIPE_BYTES: i32 = 1024 * 1024;

/// From here on, in bytes, an interpreter need not be careful with its memory: its own limit is no larger.
const ROOMY_BYTES: u64 = limits::MEMORY_MAX_MB * 1024 * 1024;

/// What differs from language to language.
struct Recipe {
    /// File name of the program.
    program: &'static str,
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
            program: "main.py",
            runner: ("python.py", include_str!("../runners/python.py")),
            command: &["/usr/bin/python3", "/usr/local/lib/sandbox/start.pyc"],
            runner_variable: None,
            startup_variables: &["PYTHON*", "OPENSSL_*"],
            runtime_variables: &[],
        },
        Language::Javascript => Recipe {
            program: "main.js",
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
            program: "main.sh",
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

/// The runner sources a program's own, since bash was told of the runner by it.
const BASH_ENV: &str = "BASH_ENV";

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

/// Lays out a program where its runner finds it. `env` is what an interpreter of its own was not started with. Whether there is
/// an environment.
pub(crate) fn lay_out(language: Language, code: &str, env: &[(String, String)], has_own_start: bool) -> Result<bool> {
    let program = recipe(language).program;
    // The other interpreters skip it themselves.
    let code = if language == Language::Shell { code.strip_prefix('\u{feff}').unwrap_or(code) } else { code };
    if language == Language::Shell && is_of_another_interpreter(code) {
        write_for_user(SCRIPT, code.as_bytes())?;
        let path = format!("{PROGRAM_DIR}/{SCRIPT}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context(format!("making {path} a program"))?;
        write_for_user(program, format!("exec {path}\n").as_bytes())?;
    } else {
        write_for_user(program, code.as_bytes())?;
    }
    let mut variables = Vec::new();
    for (name, value) in env.iter().filter(|(name, _)| !has_own_start || is_runners(language, name)) {
        variables.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    if !variables.is_empty() {
        write_for_user("env", &variables)?;
    }
    Ok(!variables.is_empty())
}

/// What a shell program is called that names another interpreter than a shell in its first line: the kernel starts that.
const SCRIPT: &str = "main";

/// Whether the first line of a shell program says that it is none: `#!/usr/bin/env python3`.
fn is_of_another_interpreter(code: &str) -> bool {
    let Some(line) = code.lines().next().and_then(|line| line.strip_prefix("#!")) else { return false };
    let mut words = line.split_whitespace().map(|word| word.rsplit('/').next().unwrap_or_default());
    let first = words.next();
    let name = if first == Some("env") { words.find(|word| !word.starts_with('-')) } else { first };
    name.is_some_and(|name| !matches!(name, "bash" | "sh" | "dash" | ""))
}

/// Removes a program that was laid out, whatever it was renamed to.
pub(crate) fn clear_away() -> Result<()> {
    let files = fs::read_dir(PROGRAM_DIR).context(format!("reading {PROGRAM_DIR}"))?;
    for file in files.flatten() {
        fs::remove_file(file.path()).context(format!("removing {}", file.path().display()))?;
    }
    Ok(())
}

/// Whether an interpreter is told of its runner by this variable.
fn is_runners(language: Language, name: &str) -> bool {
    recipe(language).runner_variable == Some(name)
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
    pub(crate) fn spawn(language: Language, env: &[(String, String)]) -> Result<Runner> {
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
        let cgroup = Cgroup::of(language)?;
        let join_file = cgroup.join_file();
        let spawned = Instant::now();
        #[allow(clippy::disallowed_methods, reason = "the agent's one place that starts a program")]
        let mut command = Command::new(recipe.command[0]);
        command
            // As it is called by those who look for it.
            .arg0(recipe.command[0].rsplit('/').next().unwrap_or_default())
            .args(&recipe.command[1..])
            .args(recipe.runner_variable.is_none().then_some(&runner_path))
            .arg(format!("{PROGRAM_DIR}/{}", recipe.program))
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
    pub(crate) fn go(&mut self, is_rehearsal: bool, has_environment: bool, memory_bytes: u64) {
        let word = match (is_rehearsal, has_environment) {
            (true, _) => b'P',
            (false, true) => b'E',
            (false, false) => b'G',
        };
        // Bash wants a line.
        let is_told = self.language == Language::Javascript && memory_bytes >= ROOMY_BYTES;
        let word = [word, if is_told { b'+' } else { b'\n' }];
        // A runner that died meanwhile is noticed by its exit.
        let _ = nix::unistd::write(&self.request, &word);
    }

    /// Ends an interpreter that is of no use; its memory is free afterwards.
    pub(crate) fn retire(self) {
        self.signal(Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }

    /// Signals the program's process group.
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
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok((read, write))
}

fn write_for_user(name: &str, bytes: &[u8]) -> Result<()> {
    let path = format!("{PROGRAM_DIR}/{name}");
    fs::write(&path, bytes).context(format!("writing {path}"))
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

    #[test]
    fn a_first_line_may_name_another_interpreter() {
        for code in [
            "#!/usr/bin/env python3\nprint(1)",
            "#!/usr/bin/awk -f",
            "#! /usr/bin/node\n",
            "#!/usr/bin/env -S perl -w\n",
        ] {
            assert!(is_of_another_interpreter(code), "{code}");
        }
        for code in [
            "",
            "echo",
            "#!/bin/bash -e\n",
            "#!/usr/bin/env bash\n",
            "#!/bin/sh",
            "#!\n",
            " #!/usr/bin/python3",
            "# !/x",
        ] {
            assert!(!is_of_another_interpreter(code), "{code}");
        }
    }
}
