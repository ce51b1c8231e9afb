//! `pool_status`: how the sandbox is doing.

use rmcp::model::CallToolResult;
use sandbox_schemas::outcome::ErrorCode;
use sandbox_schemas::status::StatusInput;
use schemars::schema_for;

use crate::mcp::tool_error::ToolError;
use crate::tools::{ToolCall, parse_arguments};

pub(crate) async fn call(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let StatusInput {} = parse_arguments(call.arguments, || schema_for!(StatusInput))?;
    let engine = call
        .context
        .backend
        .engine()
        .await
        .map_err(|error| ToolError::new(ErrorCode::NotInstalled, error.to_string()))?;
    // Numbers, text and names: nothing of it can fail to serialize.
    Ok(CallToolResult::structured(serde_json::to_value(engine.status()).unwrap_or_default()))
}
