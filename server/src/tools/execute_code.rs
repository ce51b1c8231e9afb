//! `execute_code`: one program, in a fresh VM or in a session.

use std::time::Duration;

use rmcp::model::CallToolResult;
use sandbox_engine::ExecuteError;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::outcome::{ErrorCode, ExecuteOutcome};
use schemars::schema_for;
use serde::Serialize;

use crate::mcp::progress::{self, Channel, Unheard};
use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, parse_arguments, reinstall};

/// When another call has probably ended, after one was refused for what all of them hold.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) async fn call(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: ExecuteInput = parse_arguments(call.arguments, || schema_for!(ExecuteInput))?;
    // Before the engine is asked for: bad input is bad input also where nothing is installed.
    input.validate().map_err(|error| ToolError::new(ErrorCode::InvalidInput, error.to_string()))?;
    let context = call.context;
    let _held = context.backend.hold(size_bytes(&input)).ok_or_else(|| ToolError {
        retry_after: Some(RETRY_AFTER),
        ..ToolError::new(
            ErrorCode::Capacity,
            "the calls that run and wait hold as much code, stdin and environment as they may",
        )
    })?;
    let engine = engine_for(&context).await?;

    let timeout_seconds = input.timeout_seconds();
    let cancel = context.cancel.clone();
    if input.background {
        // What it writes is for `get_run`; what is told here is of packages that are installed for it.
        let started = match call.progress_token {
            Some(token) => {
                let channel = Channel { token, era: &call.era, outbox: &context.outbox, cancel: &context.cancel };
                let starting = |mut sink| async move { engine.execute_in_background(input, &mut sink, cancel).await };
                progress::report(channel, starting).await
            }
            None => engine.execute_in_background(input, &mut Unheard, cancel).await,
        };
        return Ok(shown::result(call.results, started?));
    }
    let outcome = match call.progress_token {
        Some(token) => {
            let channel = Channel { token, era: &call.era, outbox: &context.outbox, cancel: &context.cancel };
            let execution = |mut sink| async move { engine.execute(input, &mut sink, cancel).await };
            progress::report(channel, execution).await
        }
        None => engine.execute(input, &mut Unheard, cancel).await,
    };
    Ok(shown::result(call.results, Executed { outcome: outcome?, timeout_seconds }))
}

/// What a call holds while it waits.
fn size_bytes(input: &ExecuteInput) -> usize {
    let env: usize = input.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    input.code.len() + input.stdin.len() + env
}

/// A program that ran, and for how long it might.
#[derive(Serialize)]
struct Executed {
    #[serde(flatten)]
    outcome: ExecuteOutcome,
    #[serde(skip)]
    timeout_seconds: u64,
}

impl Shown for Executed {
    fn blocks(&mut self) -> Vec<Block> {
        let ExecuteOutcome { stdout, stderr, .. } = &mut self.outcome;
        let mut blocks = shown::streams(std::mem::take(stdout), std::mem::take(stderr));
        let unusual = self.unusual();
        if !unusual.is_empty() {
            blocks.push(Block { field: None, text: unusual.join("; ") });
        } else if blocks.is_empty() {
            blocks.push(Block { field: None, text: "(no output)".into() });
        }
        blocks
    }
}

impl Executed {
    /// What a reader has to know who sees the output alone.
    fn unusual(&self) -> Vec<String> {
        let outcome = &self.outcome;
        let mut unusual = Vec::new();
        if outcome.timed_out {
            unusual.push(format!("timed out after {} s", self.timeout_seconds));
        } else if outcome.exit_code != 0 {
            unusual.push(format!("exit code {}", outcome.exit_code));
        }
        if outcome.state_lost {
            unusual.push("an interpreter has ended: its variables are lost, files are there".into());
        }
        if outcome.truncated {
            let (stdout, stderr) = (outcome.stdout_bytes, outcome.stderr_bytes);
            unusual.push(format!("output cut: only the beginning of {stdout} bytes of stdout and {stderr} of stderr"));
        }
        unusual
    }
}

impl From<ExecuteError> for ToolError {
    fn from(error: ExecuteError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, reinstall(code, error.to_string())) }
    }
}
