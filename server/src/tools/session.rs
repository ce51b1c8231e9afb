//! `open_session` and `close_session`: a VM that stays for several calls.

use rmcp::model::CallToolResult;
use sandbox_schemas::outcome::ErrorCode;
use sandbox_schemas::session::{CloseInput, CloseOutcome, OpenInput, OpenOutcome};
use schemars::schema_for;

use crate::mcp::progress::{self, Channel, Unheard};
use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, parse_arguments};

pub(crate) async fn open(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: OpenInput = parse_arguments(call.arguments, || schema_for!(OpenInput))?;
    input.validate().map_err(|error| ToolError::new(ErrorCode::InvalidInput, error.to_string()))?;
    let context = call.context;
    let engine = engine_for(&context).await?;
    let cancel = context.cancel.clone();
    let outcome = match call.progress_token {
        Some(token) => {
            let channel = Channel { token, era: &call.era, outbox: &context.outbox, cancel: &context.cancel };
            let opening = |mut sink| async move { engine.open_session(input, &mut sink, cancel).await };
            progress::report(channel, opening).await
        }
        None => engine.open_session(input, &mut Unheard, cancel).await,
    };
    Ok(shown::result(call.results, outcome?))
}

pub(crate) async fn close(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let CloseInput { session_id } = parse_arguments(call.arguments, || schema_for!(CloseInput))?;
    let engine = engine_for(&call.context).await?;
    Ok(shown::result(call.results, engine.close_session(&session_id).await?))
}

impl Shown for OpenOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        vec![Block { field: None, text: format!("session_id: {}", self.session_id) }]
    }
}

impl Shown for CloseOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        let text = match self.ended_runs {
            0 => "closed".into(),
            ended => format!("closed; {ended} running programs were ended"),
        };
        vec![Block { field: None, text }]
    }
}
