//! The tools: a row each in the table of `schemas`, and a function each here.

mod execute_code;
mod install_packages;
mod pool_status;

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{CallToolResult, ContentBlock, JsonObject, MetaObject, ProgressToken, Tool, ToolAnnotations};
use sandbox_engine::{Engine, ExecuteError};
use sandbox_schemas::outcome::ErrorCode;
use sandbox_schemas::tools::{EXECUTE_CODE, INSTALL_PACKAGES, POOL_STATUS, TOOLS, ToolSpec};
use schemars::Schema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::message::shortened;
use crate::methods::CallContext;
use crate::protocol::Era;

/// A call of a tool.
pub(crate) struct ToolCall {
    pub(crate) arguments: JsonObject,
    pub(crate) progress_token: Option<ProgressToken>,
    pub(crate) era: Era,
    pub(crate) context: CallContext,
}

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

/// Every tool, as clients see it.
pub(crate) fn list() -> Vec<Tool> {
    TOOLS.iter().map(describe).collect()
}

/// Calls a tool; `None` when there is none of that name.
pub(crate) async fn call(name: &str, call: ToolCall) -> Option<Result<CallToolResult, ToolError>> {
    Some(match name {
        EXECUTE_CODE => execute_code::call(call).await,
        INSTALL_PACKAGES => install_packages::call(call).await,
        POOL_STATUS => pool_status::call(call).await,
        _ => return None,
    })
}

fn describe(spec: &ToolSpec) -> Tool {
    let annotations = ToolAnnotations::from_raw(
        Some(spec.title.to_string()),
        Some(spec.hints.read_only),
        Some(spec.hints.destructive),
        Some(spec.hints.idempotent),
        Some(spec.hints.open_world),
    );
    Tool::new_with_raw(spec.name, Some(spec.description.into()), Arc::new(object((spec.input)())))
        .with_title(spec.title)
        .with_raw_output_schema(Arc::new(object((spec.output)())))
        .with_annotations(annotations)
}

fn object(schema: Schema) -> JsonObject {
    match schema.to_value() {
        Value::Object(fields) => fields,
        // `true` and `false` are schemas too; no tool has them.
        _ => JsonObject::new(),
    }
}

/// The engine. One that is still starting is not waited for by a call that nobody wants any more.
async fn engine_for(context: &CallContext) -> Result<Engine, ToolError> {
    let engine = tokio::select! {
        biased;
        () = context.cancel.cancelled() => return Err(ExecuteError::Cancelled.into()),
        engine = context.backend.engine() => engine,
    };
    engine.map_err(|error| ToolError::new(ErrorCode::NotInstalled, error.to_string()))
}

/// The arguments as the tool's input, or an error that names the field and its limit.
fn parse_arguments<T: DeserializeOwned>(arguments: JsonObject, schema: fn() -> Schema) -> Result<T, ToolError> {
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|fault| {
        let field = fault.path().to_string();
        let reason = fault.inner().to_string();
        let message = match field.as_str() {
            // About the object as a whole, such as a missing field; serde names the field itself.
            "." => reason,
            field => format!("{field}: {reason}{}", allowed(schema().to_value(), field)),
        };
        ToolError::new(ErrorCode::InvalidInput, message)
    })
}

/// What a field's schema allows, as the end of a sentence.
fn allowed(schema: Value, field: &str) -> String {
    let name = field.split(['.', '[']).next().unwrap_or(field);
    let property = &schema["properties"][name];
    let bounds = [&property["minimum"], &property["maximum"]];
    if let [Value::Number(minimum), Value::Number(maximum)] = bounds {
        return format!("; must be an integer between {minimum} and {maximum}");
    }
    match &property["enum"] {
        Value::Array(names) => format!("; must be one of {}", json!(names)),
        _ => property["type"].as_str().map_or(String::new(), |kind| format!("; must be of type {kind}")),
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
