//! An error of the sandbox, as MCP has it: a result with `isError`, which models read.

use std::time::Duration;

use rmcp::model::{CallToolResult, ContentBlock, MetaObject};
use sandbox_schemas::outcome::ErrorCode;
use serde_json::{Value, json};

use crate::rpc::message::shortened;

/// An error of ours, for a model to read and for a program to branch on.
pub(crate) struct ToolError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// When the same call may succeed, as a guess.
    pub(crate) retry_after: Option<Duration>,
}

impl ToolError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> ToolError {
        ToolError { code, message: shortened(message.into()), retry_after: None }
    }

    /// For a program to branch on.
    pub(crate) fn to_json(&self) -> Value {
        let mut fields = json!({ "code": self.code.name(), "message": self.message, "retryable": self.is_retryable() });
        if let Some(after) = self.retry_after {
            fields["retry_after_ms"] = json!(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        }
        fields
    }

    /// A machine that can never have the memory that was asked for is short of it also the next time.
    fn is_retryable(&self) -> bool {
        self.code.is_retryable() && (self.code != ErrorCode::Capacity || self.retry_after.is_some())
    }
}

impl From<ToolError> for CallToolResult {
    fn from(error: ToolError) -> Self {
        let code = error.code.name();
        let mut meta = MetaObject::new();
        // Not as structured content: that is bound to the schema of a success.
        meta.insert("sandbox-mcp/error".into(), error.to_json());
        CallToolResult::error(vec![ContentBlock::text(format!("{code}: {}", error.message))]).with_meta(Some(meta))
    }
}
