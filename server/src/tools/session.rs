//! `open_session` and `close_session`: a VM that stays for several calls.

use rmcp::model::CallToolResult;
use sandbox_schemas::session::{CloseInput, CloseOutcome, OpenInput, OpenOutcome};
use schemars::schema_for;

use crate::mcp::progress;
use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, invalid};

pub(crate) async fn open(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: OpenInput = call.input(|| schema_for!(OpenInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let engine = engine_for(&call.context).await?;
    let cancel = call.context.cancel.clone();
    let opening = |mut sink| async move { engine.open_session(input, &mut sink, cancel).await };
    Ok(shown::result(call.results, progress::report(call.channel(), opening).await?))
}

pub(crate) async fn close(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let CloseInput { session_id } = call.input(|| schema_for!(CloseInput))?;
    let engine = engine_for(&call.context).await?;
    let closing = engine.close_session(&session_id);
    Ok(shown::result(call.results, call.context.arrival.begin(closing).await?))
}

impl Shown for OpenOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        vec![Block::text(format!("session_id: {}", self.session_id))]
    }
}

impl Shown for CloseOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        let text = match self.ended_runs {
            0 => "closed".into(),
            ended => format!("closed; {ended} running programs were ended"),
        };
        vec![Block::text(text)]
    }
}
