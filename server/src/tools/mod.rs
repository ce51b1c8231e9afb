//! The tools: a row each in the table of `schemas`, and a function each here.

mod background;
mod execute_code;
mod install_packages;
mod pool_status;
mod session;

mod shown;

use std::sync::Arc;

use rmcp::model::{CallToolResult, JsonObject, ProgressToken, Tool, ToolAnnotations};
use sandbox_engine::{Engine, ExecuteError};
use sandbox_schemas::outcome::ErrorCode;
use sandbox_schemas::tools::{
    CLOSE_SESSION, EXECUTE_CODE, GET_RUN, INSTALL_PACKAGES, OPEN_SESSION, POOL_STATUS, SEND_INPUT, STOP_RUN, TOOLS,
    ToolSpec,
};
use schemars::Schema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::CallContext;
use crate::mcp::protocol::Era;
use crate::mcp::tool_error::ToolError;
use crate::settings::Results;

/// A call of a tool.
pub(crate) struct ToolCall {
    pub(crate) arguments: JsonObject,
    /// Who reads its result.
    pub(crate) results: Results,
    pub(crate) progress_token: Option<ProgressToken>,
    pub(crate) era: Era,
    pub(crate) context: CallContext,
}

/// Every tool, as clients see it.
pub(crate) fn list(results: Results) -> Vec<Tool> {
    TOOLS.iter().map(|spec| describe(spec, results)).collect()
}

/// Whether a tool runs something. What there is no tool for is answered at once.
pub(crate) fn takes_time(name: &str) -> bool {
    matches!(name, EXECUTE_CODE | OPEN_SESSION | GET_RUN | STOP_RUN | INSTALL_PACKAGES)
}

/// Calls a tool; `None` when there is none of that name.
pub(crate) async fn call(name: &str, call: ToolCall) -> Option<Result<CallToolResult, ToolError>> {
    Some(match name {
        EXECUTE_CODE => execute_code::call(call).await,
        OPEN_SESSION => session::open(call).await,
        CLOSE_SESSION => session::close(call).await,
        GET_RUN => background::get_run(call).await,
        SEND_INPUT => background::send_input(call).await,
        STOP_RUN => background::stop_run(call).await,
        INSTALL_PACKAGES => install_packages::call(call).await,
        POOL_STATUS => pool_status::call(call).await,
        _ => return None,
    })
}

fn describe(spec: &ToolSpec, results: Results) -> Tool {
    let annotations = ToolAnnotations::from_raw(
        Some(spec.title.to_string()),
        Some(spec.hints.read_only),
        Some(spec.hints.destructive),
        Some(spec.hints.idempotent),
        Some(spec.hints.open_world),
    );
    let tool = Tool::new_with_raw(spec.name, Some(spec.description.into()), Arc::new(object((spec.input)())))
        .with_title(spec.title)
        .with_annotations(annotations);
    match results {
        Results::Data => tool.with_raw_output_schema(Arc::new(object((spec.output)()))),
        // What a model reads has no fields, and each schema is paid for with every conversation.
        Results::Model => tool,
    }
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
    engine.map_err(|error| ToolError::new(error.code(), error.message()))
}

/// What the engine found to be gone, and what to do: it does not know how it is made.
fn reinstall(code: ErrorCode, message: String) -> String {
    match code {
        ErrorCode::NotInstalled => format!("{message}: run `{} image build`", sandbox_images::program()),
        _ => message,
    }
}

/// The arguments as the tool's input, or an error that names the field and its limit.
fn parse_arguments<T: DeserializeOwned>(mut arguments: JsonObject, schema: fn() -> Schema) -> Result<T, ToolError> {
    if arguments.values().any(Value::is_null) {
        drop_absent(&mut arguments, &schema().to_value());
    }
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

/// Adapters that write out every argument write null for an optional one that was not given.
fn drop_absent(arguments: &mut JsonObject, schema: &Value) {
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|required| required == name));
    let is_known = |name: &str| schema["properties"].get(name).is_some();
    arguments.retain(|name, value| !value.is_null() || is_required(name) || !is_known(name));
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
