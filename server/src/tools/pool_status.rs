//! `pool_status`: how the sandbox is doing.

use rmcp::model::CallToolResult;
use sandbox_schemas::outcome::ErrorCode;
use sandbox_schemas::status::{PoolStatus, StatusInput};
use schemars::schema_for;

use crate::mcp::tool_error::ToolError;
use crate::tools::ToolCall;
use crate::tools::shown::{self, Block, Shown};

pub(crate) async fn call(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let StatusInput {} = call.input(|| schema_for!(StatusInput))?;
    let engine = call
        .context
        .backend
        .engine()
        .await
        .map_err(|error| ToolError::new(ErrorCode::NotInstalled, error.to_string()))?;
    Ok(shown::result(call.results, engine.status()))
}

impl Shown for PoolStatus {
    fn blocks(&mut self) -> Vec<Block> {
        // Nobody asks for it but to see all of it.
        let text = serde_json::to_string(self).unwrap_or_default();
        vec![Block::text(text)]
    }
}
