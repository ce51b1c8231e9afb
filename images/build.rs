//! Builds the guest agent: a static program that this crate carries within itself.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is how a build script talks to cargo")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "x86_64-unknown-linux-gnu";

const NO_LIBC: &str = "The agent is a static program, which needs a static C library (libc.a): libc6-dev has it on Debian, \
                       glibc-static on Fedora, glibc-devel-static on openSUSE.\n";

/// What the outer cargo says about the outer build. The agent is built for another target with other flags, and is not
/// to be wrapped by clippy.
const FOREIGN: [&str; 10] = [
    "CARGO_BUILD_",
    "CARGO_CFG_",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_FEATURE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "RUSTC_",
    "RUSTFLAGS",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the guest agent was not built: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let variable = |name| env::var_os(name).map(PathBuf::from).ok_or(format!("cargo sets no {name}"));
    let manifest = variable("CARGO_MANIFEST_DIR")?;
    let workspace = manifest.parent().ok_or("the crate is not in a workspace")?;
    let out = variable("OUT_DIR")?;
    for input in ["guest-agent", "schemas", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }

    let target_dir = out.join("guest-agent-target");
    let mut cargo = cargo(&variable("CARGO")?, workspace);
    cargo.args(["build", "--package", "sandbox-guest-agent", "--profile", "guest", "--target", TARGET, "--target-dir"]);
    cargo.arg(&target_dir);
    // The agent's dependencies are those that the rest was resolved with.
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    let output = cargo.output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // As linkers say that there is no libc.a, where a program with libraries would be linked.
        let needs_libc = ["cannot find -lc", "unable to find library -lc"].iter().any(|words| said.contains(words));
        let hint = if needs_libc { NO_LIBC } else { "" };
        return Err(format!("cargo failed ({})\n{said}{hint}", output.status));
    }
    let name = "sandbox-guest-agent";
    let built = target_dir.join(TARGET).join("guest").join(name);
    std::fs::copy(&built, out.join(name)).map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a build script is not part of the program")]
fn cargo(program: &Path, workspace: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace);
    for (name, _) in env::vars_os() {
        if FOREIGN.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // Static, since the initial RAM file system holds nothing else.
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command
}
