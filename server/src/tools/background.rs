//! `get_run`, `send_input` and `stop_run`: programs that `execute_code` has started in the background.

use std::time::Duration;

use rmcp::model::CallToolResult;
use sandbox_engine::ExecuteError;
use sandbox_schemas::background::{GetRunInput, InputSent, RunReport, RunStarted, SendInput, StopRunInput};
use sandbox_schemas::limits::BACKGROUND_OUTPUT_MAX_BYTES;
use schemars::schema_for;

use crate::mcp::tool_error::ToolError;
use crate::settings::Results;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, invalid};

pub(crate) async fn get_run(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: GetRunInput = call.input(|| schema_for!(GetRunInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let engine = engine_for(&call.context).await?;
    let wait = Duration::from_secs(input.wait_seconds.unwrap_or(0));
    let report = engine.background_run(&input.run_id, input.since, most_bytes(&call), wait);
    let report = call.context.cancel.run_until_cancelled(report).await.unwrap_or(Err(ExecuteError::Cancelled));
    Ok(shown::result(call.results, report?))
}

pub(crate) async fn send_input(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: SendInput = call.input(|| schema_for!(SendInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let engine = engine_for(&call.context).await?;
    let sending = async { engine.send_input(&input.run_id, &input.text, input.end) };
    Ok(shown::result(call.results, call.context.arrival.begin(sending).await?))
}

pub(crate) async fn stop_run(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let StopRunInput { run_id } = call.input(|| schema_for!(StopRunInput))?;
    let engine = engine_for(&call.context).await?;
    Ok(shown::result(call.results, engine.stop_run(&run_id, most_bytes(&call)).await?))
}

/// How much of a program's output one result has.
fn most_bytes(call: &ToolCall) -> usize {
    match call.results {
        Results::Model => call.context.backend.max_output_chars(),
        Results::Data => BACKGROUND_OUTPUT_MAX_BYTES,
    }
}

impl Shown for RunStarted {
    fn blocks(&mut self) -> Vec<Block> {
        vec![Block::text(format!("run_id: {}", self.run_id))]
    }
}

impl Shown for InputSent {
    fn blocks(&mut self) -> Vec<Block> {
        vec![Block::text("sent".into())]
    }
}

impl Shown for RunReport {
    fn blocks(&mut self) -> Vec<Block> {
        let mut blocks = shown::streams((&mut self.stdout, None), (&mut self.stderr, None));
        let mut words = Vec::new();
        if self.dropped_bytes > 0 {
            words.push(format!("{} bytes before that were dropped", self.dropped_bytes));
        }
        if self.unread_bytes > 0 {
            words.push(format!("{} bytes more: get_run reads on", self.unread_bytes));
        }
        match (&self.lost, self.exit_code) {
            (Some(reason), _) => words.push(reason.clone()),
            (None, _) if self.timed_out == Some(true) => words.push("timed out".into()),
            (None, Some(code)) => words.push(format!("exit code {code}")),
            (None, None) => words.push("running".into()),
        }
        blocks.push(Block::text(words.join("; ")));
        blocks
    }
}
