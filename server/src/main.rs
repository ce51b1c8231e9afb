//! `sandbox-mcp`: without arguments an MCP server on stdio; with `image` the builder of what its VMs boot, with `cache` what
//! shows and removes what was built, with `settings` what shows how it is set, with `schema` what clients are told.

// In the order in which to read them; dependencies point down.
mod cli;
mod commands;

mod serve;

mod refusal;

mod methods;
mod tools;

mod context;

mod backend;

mod mcp;
mod rpc;

mod settings;
mod share;
mod steady;

mod ulimits;

#[cfg(test)]
mod fuzz;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::{CacheAction, Cli, Command};
use crate::mcp::log::{Log, Tellable};
use crate::settings::Settings;

fn main() -> ExitCode {
    // First: what it raises may be needed for all else.
    let refused = ulimits::prepare();
    let cli = Cli::parse();
    if let Err(refused) = refused {
        return refuse(&refused, cli.command.is_none());
    }
    let settings = match Settings::resolve(&cli.flags) {
        Ok(settings) => settings,
        // As clap ends on a flag that it does not know.
        Err(error) => return fail(&error.into(), 2),
    };
    let log = Log::default();
    start_logging(&settings, &log);
    let runs_programs = matches!(cli.command, None | Some(Command::Image { .. }));
    if runs_programs && let Err(error) = settings.check() {
        return fail(&error, 2);
    }
    let uses_tier = match &cli.command {
        None | Some(Command::Image { .. }) => true,
        Some(Command::Cache { action }) => matches!(action, CacheAction::Push { .. } | CacheAction::Pull { .. }),
        Some(Command::Settings | Command::Schema) => false,
    };
    if uses_tier && settings.s3_bucket.value.is_some() {
        if let Err(refused) = ulimits::try_threads(ulimits::BUCKET_THREADS) {
            return refuse(&refused, cli.command.is_none());
        }
        if let Err(error) = settings.open_tier() {
            return fail(&error, 2);
        }
    }
    let result = match cli.command {
        Some(Command::Image { action }) => commands::image::run(action, &settings),
        Some(Command::Cache { action }) => commands::cache::run(action, &settings),
        Some(Command::Settings) => commands::settings::run(&settings),
        Some(Command::Schema) => commands::schema::run(),
        None => {
            if let Some(warning) = ulimits::warning() {
                tracing::warn!("{warning}");
            }
            match ulimits::runtime() {
                Ok(runtime) => serve::run(runtime, settings, log),
                Err(refused) => return refuse(&refused, true),
            }
        }
    };
    result.map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS)
}

/// For who reads stderr; and, of a server, for its client.
fn refuse(refused: &ulimits::Refused, is_server: bool) -> ExitCode {
    let reason = refused.to_string();
    let status = fail(&anyhow::Error::msg(reason.clone()), 1);
    if is_server {
        // A client that is gone needs no answer.
        let _ = refusal::answer_all(&reason);
    }
    status
}

/// On stderr and unformatted: the one line that a person reads when nothing else works.
fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("sandbox-mcp: {error:#}\n"));
    ExitCode::from(status)
}

/// Logs go to stderr: stdout belongs to the protocol, whose clients are told what they ask for.
fn start_logging(settings: &Settings, log: &Log) {
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(settings.log.value.to_filter());
    tracing_subscriber::registry().with(stderr).with(log.clone().with_filter(Tellable)).init();
    for name in &settings.unknown_variables {
        tracing::warn!(
            "{name} is set, but there is no such setting: `{} settings` shows all",
            sandbox_images::program()
        );
    }
}
