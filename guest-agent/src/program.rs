//! A program as it lies where its runner finds it, with its environment and its input beside it.
//!
//! Most folders belong to the user, who may have put anything in its place: the agent writes to no file that is there already, and
//! follows no link.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, fchown, unlinkat};
use sandbox_schemas::language::Language;
use sandbox_schemas::wire::{Execute, Kind};

use crate::boot::{CALL_DIR, PROGRAM_DIR};
use crate::confine::{USER_GID, USER_UID};
use crate::error::{Context, Result};

/// What a shell program is called that names another interpreter than a shell in its first line: the kernel starts that.
const SCRIPT: &str = "main";

/// What a runner is told of a program beside that it may go.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct LaidOut {
    pub(crate) has_environment: bool,
    pub(crate) has_input: bool,
}

/// A folder of programs.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    opened: File,
}

impl Folder {
    /// The one that warm interpreters were told of.
    pub(crate) fn shared() -> Result<Folder> {
        Folder::at(PROGRAM_DIR)
    }

    /// The one of a session's calls.
    pub(crate) fn of_calls() -> Result<Folder> {
        Folder::at(CALL_DIR)
    }

    fn at(path: &str) -> Result<Folder> {
        Ok(Folder { path: path.into(), opened: File::open(path).context(format!("opening {path}"))? })
    }

    /// A new one for one program.
    pub(crate) fn new(name: &str) -> Result<Folder> {
        let shared = Folder::shared()?;
        let path = shared.path.join(name);
        let doing = || format!("creating {}", path.display());
        mkdirat(&shared.opened, name, Mode::from_bits_truncate(0o755)).context(doing())?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(&shared.opened, name, flags, Mode::empty()).context(doing())?;
        fchown(&opened, Some(USER_UID.into()), Some(USER_GID.into())).context(doing())?;
        Ok(Folder { path, opened: opened.into() })
    }

    /// Where a program of this language lies in it.
    pub(crate) fn program(&self, language: Language) -> PathBuf {
        self.path.join(file_name(language))
    }

    /// Writes a new file in the place of whatever has its name.
    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let doing = || format!("writing {}", self.path.join(name).display());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let create = || openat(&self.opened, name, flags, Mode::from_bits_truncate(mode));
        let file = match create() {
            Err(Errno::EEXIST) => {
                unlinkat(&self.opened, name, UnlinkatFlags::NoRemoveDir).context(doing())?;
                create()
            }
            created => created,
        };
        File::from(file.context(doing())?).write_all(bytes).context(doing())
    }
}

/// Lays out a program where its runner finds it. An interpreter of its own was started with the environment already, but for what
/// would have taken the place of its runner.
pub(crate) fn lay_out(folder: &Folder, request: &Execute, has_own_start: bool) -> Result<LaidOut> {
    let language = request.language;
    let program = match request.kind {
        // Bash says this name in what goes wrong.
        Kind::Call { number } if language == Language::Shell => name_of_call(number),
        _ => file_name(language).to_owned(),
    };
    // The other interpreters skip it themselves.
    let code = match language {
        Language::Shell => request.code.strip_prefix('\u{feff}').unwrap_or(&request.code),
        _ => &request.code,
    };
    if language == Language::Shell && is_of_another_interpreter(code) {
        folder.write(SCRIPT, code.as_bytes(), 0o755)?;
        let go = if matches!(request.kind, Kind::Call { .. }) { "" } else { "exec " };
        let path = folder.path.join(SCRIPT);
        folder.write(&program, format!("{go}{}\n", path.display()).as_bytes(), 0o644)?;
    } else {
        folder.write(&program, code.as_bytes(), 0o644)?;
    }
    let is_left = |name: &str| !has_own_start || (language == Language::Shell && name == BASH_ENV);
    let mut variables = Vec::new();
    for (name, value) in request.env.iter().filter(|(name, _)| is_left(name)) {
        variables.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    let has_environment = !variables.is_empty();
    if has_environment {
        folder.write(&format!("{}.env", file_name(language)), &variables, 0o644)?;
    }
    // All others read theirs from the pipe that they were started with, which has one end.
    let has_input = matches!(request.kind, Kind::Call { .. }) && !request.stdin.is_empty();
    if has_input {
        folder.write(&format!("{}.stdin", file_name(language)), request.stdin.as_bytes(), 0o644)?;
    }
    Ok(LaidOut { has_environment, has_input })
}

fn name_of_call(number: u32) -> String {
    format!("<call {number}>")
}

/// Removes a call that has a name of its own.
pub(crate) fn clear_call_away(number: u32) {
    // Those of most languages have not.
    let _ = fs::remove_file(format!("{CALL_DIR}/{}", name_of_call(number)));
}

/// Removes all that was laid out, whatever it was renamed to.
pub(crate) fn clear_away() -> Result<()> {
    let files = fs::read_dir(PROGRAM_DIR).context(format!("reading {PROGRAM_DIR}"))?;
    for file in files.flatten() {
        fs::remove_file(file.path()).context(format!("removing {}", file.path().display()))?;
    }
    Ok(())
}

/// The variable by which bash is told of its runner: what a program means by it, its runner sees to.
pub(crate) const BASH_ENV: &str = "BASH_ENV";

fn file_name(language: Language) -> &'static str {
    match language {
        Language::Python => "main.py",
        Language::Javascript => "main.js",
        Language::Shell => "main.sh",
    }
}

/// Whether the first line of a shell program says that it is none: `#!/usr/bin/env python3`.
fn is_of_another_interpreter(code: &str) -> bool {
    let Some(line) = code.lines().next().and_then(|line| line.strip_prefix("#!")) else { return false };
    let mut words = line.split_whitespace().map(|word| word.rsplit('/').next().unwrap_or_default());
    let first = words.next();
    let name = if first == Some("env") { words.find(|word| !word.starts_with('-')) } else { first };
    name.is_some_and(|name| !matches!(name, "bash" | "sh" | "dash" | ""))
}

#[cfg(test)]
mod tests {
    use super::*;

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
