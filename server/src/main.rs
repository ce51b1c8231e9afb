//! `sandbox-mcp`: without arguments an MCP server on stdio; with `image` the builder of what its VMs boot, with `cache` what
//! shows and removes what was built.

// In the order in which to read them.
mod cache_command;
mod cli;
mod image_command;

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
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    sandbox_store::set_limit_gb(cli.cache_max_gb);
    let result = match &cli.command {
        Some(Command::Image { action }) => image_command::run(*action, &cli),
        Some(Command::Cache { action }) => cli.cache_dir().and_then(|folder| cache_command::run(*action, folder)),
        None => serve::run(&cli),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On stderr and unformatted: the one line that a person reads when nothing else works.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("sandbox-mcp: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Logs go to stderr: stdout belongs to the protocol. `SANDBOX_MCP_LOG` takes tracing's filters (`debug`,
/// `sandbox_engine=trace`).
fn start_logging() {
    let filter = EnvFilter::try_from_env("SANDBOX_MCP_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
