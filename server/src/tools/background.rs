//! `get_run`, `send_input` and `stop_run`: programs that `execute_code` has started in the background.

use std::time::Duration;

use rmcp::model::CallToolResult;
use sandbox_engine::ExecuteError;
use sandbox_schemas::background::{GetRunInput, InputSent, RunReport, RunStarted, SendInput, StopRunInput};
use schemars::schema_for;

use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, invalid};

pub(crate) async fn get_run(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: GetRunInput = call.input(|| schema_for!(GetRunInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let engine = engine_for(&call.context).await?;
    let wait = Duration::from_secs(input.wait_seconds.unwrap_or(0));
    let report = engine.background_run(&input.run_id, input.since, wait);
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
    Ok(shown::result(call.results, engine.stop_run(&run_id).await?))
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
        let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
        let mut blocks = shown::streams(stdout, stderr);
        let mut words = Vec::new();
        if self.dropped_bytes > 0 {
            words.push(format!("{} bytes before that were dropped", self.dropped_bytes));
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
