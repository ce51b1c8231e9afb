//! `execute_code`: one program in one fresh VM.

use rmcp::model::CallToolResult;
use sandbox_engine::ExecuteError;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::outcome::{ErrorCode, ExecuteOutcome};
use schemars::schema_for;

use crate::progress::{self, Gathered};
use crate::tools::{ToolCall, ToolError, engine_for, parse_arguments};

pub(crate) async fn call(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: ExecuteInput = parse_arguments(call.arguments, || schema_for!(ExecuteInput))?;
    // Before the engine is asked for: bad input is bad input also where nothing is installed.
    input.validate().map_err(|error| ToolError::new(ErrorCode::InvalidInput, error.to_string()))?;
    let context = call.context;
    let engine = engine_for(&context).await?;

    let gathered = Gathered::default();
    let mut sink = gathered.clone();
    let execution = engine.execute(input, &mut sink, context.cancel.clone());
    let outcome = match call.progress_token {
        Some(token) => progress::report(execution, gathered, token, &context.outbox, &context.cancel).await,
        None => execution.await,
    };
    Ok(result(&outcome?))
}

fn result(outcome: &ExecuteOutcome) -> CallToolResult {
    // Numbers, text and flags: nothing of it can fail to serialize.
    CallToolResult::structured(serde_json::to_value(outcome).unwrap_or_default())
}

impl From<ExecuteError> for ToolError {
    fn from(error: ExecuteError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, error.to_string()) }
    }
}
