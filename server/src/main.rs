//! `sandbox-mcp`: without arguments an MCP server on stdio; with `image` the builder of what its VMs boot, with `cache` what
//! shows and removes what was built, with `settings` what shows how it is set.

// In the order in which to read them.
mod cli;
mod settings;

mod cache_command;
mod image_command;
mod settings_command;
mod tier_command;

mod serve;

mod calls;
mod framing;
mod message;
mod outbox;

mod methods;
mod protocol;

mod backend;
mod progress;
mod tools;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{CacheAction, Cli, Command};
use crate::settings::Settings;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = match Settings::resolve(&cli.flags) {
        Ok(settings) => settings,
        // As clap ends on a flag that it does not know.
        Err(error) => return fail(&error.into(), 2),
    };
    start_logging(&settings);
    let is_local = matches!(
        cli.command,
        Some(Command::Settings | Command::Cache { action: CacheAction::Status { .. } | CacheAction::Clear })
    );
    if !is_local && let Err(error) = settings.open_tier() {
        return fail(&error, 2);
    }
    let result = match cli.command {
        Some(Command::Image { action }) => image_command::run(action, &settings),
        Some(Command::Cache { action }) => cache_command::run(action, &settings),
        Some(Command::Settings) => settings_command::run(&settings),
        None => serve::run(settings),
    };
    result.map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS)
}

/// On stderr and unformatted: the one line that a person reads when nothing else works.
fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("sandbox-mcp: {error:#}\n"));
    ExitCode::from(status)
}

/// Logs go to stderr: stdout belongs to the protocol.
fn start_logging(settings: &Settings) {
    tracing_subscriber::fmt()
        .with_env_filter(settings.log.value.to_filter())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    for name in &settings.unknown_variables {
        tracing::warn!("{name} is set, but there is no such setting: `sandbox-mcp settings` shows all");
    }
}
