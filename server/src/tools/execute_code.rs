//! `execute_code`: one program in one fresh VM.

use std::time::Duration;

use rmcp::model::CallToolResult;
use sandbox_engine::ExecuteError;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::outcome::{ErrorCode, ExecuteOutcome};
use schemars::schema_for;

use crate::mcp::progress::{self, Channel, Unheard};
use crate::mcp::tool_error::ToolError;
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

    let cancel = context.cancel.clone();
    let outcome = match call.progress_token {
        Some(token) => {
            let channel = Channel { token, era: &call.era, outbox: &context.outbox, cancel: &context.cancel };
            let execution = |mut sink| async move { engine.execute(input, &mut sink, cancel).await };
            progress::report(channel, execution).await
        }
        None => engine.execute(input, &mut Unheard, cancel).await,
    };
    Ok(result(&outcome?))
}

/// What a call holds while it waits.
fn size_bytes(input: &ExecuteInput) -> usize {
    let env: usize = input.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    input.code.len() + input.stdin.len() + env
}

fn result(outcome: &ExecuteOutcome) -> CallToolResult {
    // Numbers, text and flags: nothing of it can fail to serialize.
    CallToolResult::structured(serde_json::to_value(outcome).unwrap_or_default())
}

impl From<ExecuteError> for ToolError {
    fn from(error: ExecuteError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, reinstall(code, error.to_string())) }
    }
}
