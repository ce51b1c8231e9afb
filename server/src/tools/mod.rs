//! The tools: a row each in the table of `schemas`, and a function each here.

mod background;
mod execute_code;
mod files;
mod install_packages;
mod pool_status;
mod session;

mod shown;

mod advice;

mod output;

mod excerpt;
mod terminal;

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{CallToolResult, JsonObject, ProgressToken, Tool, ToolAnnotations};
use sandbox_engine::{CancellationToken, Engine, ExecuteError};
use sandbox_schemas::outcome::ErrorCode;
use sandbox_schemas::tools::{
    CLOSE_SESSION, EXECUTE_CODE, GET_RUN, INSTALL_PACKAGES, LIST_FILES, OPEN_SESSION, POOL_STATUS, READ_FILE,
    SEND_INPUT, STOP_RUN, TOOLS, ToolSpec, WRITE_FILE,
};
use schemars::Schema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Backend;
use crate::context::CallContext;
use crate::mcp::progress::Channel;
use crate::mcp::protocol::Era;
use crate::mcp::tool_error::ToolError;
use crate::settings::Results;
use crate::share::Share;

/// When another call has probably ended, after one was refused for what all of them hold.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A call of a tool.
pub(crate) struct ToolCall {
    pub(crate) arguments: JsonObject,
    /// Who reads its result.
    pub(crate) results: Results,
    pub(crate) progress_token: Option<ProgressToken>,
    pub(crate) era: Era,
    /// Cancelled when no progress is to be told any more.
    pub(crate) hushed: CancellationToken,
    pub(crate) context: CallContext,
}

impl ToolCall {
    /// Where its client wants to hear how far it is.
    fn channel(&self) -> Option<Channel<'_>> {
        let (token, context) = (self.progress_token.clone()?, &self.context);
        Some(Channel { token, era: &self.era, outbox: &context.outbox, hushed: &self.hushed })
    }

    /// Its arguments as the tool's input, or an error that names the field and its limit.
    fn input<T: DeserializeOwned>(&mut self, schema: fn() -> Schema) -> Result<T, ToolError> {
        parse_arguments(std::mem::take(&mut self.arguments), schema)
    }
}

/// Every tool that is offered, as clients see it.
pub(crate) fn list(results: Results, backend: &Backend) -> Vec<Tool> {
    let offered = TOOLS.iter().filter(|spec| backend.has_tool(spec.name));
    offered.map(|spec| describe(spec, results, &backend.shares())).collect()
}

/// Whether a tool runs something. What there is no tool for is answered at once.
pub(crate) fn takes_time(name: &str) -> bool {
    matches!(name, EXECUTE_CODE | OPEN_SESSION | GET_RUN | STOP_RUN | WRITE_FILE | READ_FILE | INSTALL_PACKAGES)
}

/// Whether calls of a tool are about something that stays, so that one can be about what the one before it did.
fn is_about_what_stays(name: &str) -> bool {
    matches!(name, EXECUTE_CODE | CLOSE_SESSION | SEND_INPUT | WRITE_FILE | READ_FILE | LIST_FILES)
}

/// Calls a tool; `None` when none of that name is offered.
pub(crate) async fn call(name: &str, call: ToolCall) -> Option<Result<CallToolResult, ToolError>> {
    if !call.context.backend.has_tool(name) {
        return None;
    }
    if !is_about_what_stays(name) {
        call.context.arrival.let_pass();
    }
    Some(match name {
        EXECUTE_CODE => execute_code::call(call).await,
        OPEN_SESSION => session::open(call).await,
        CLOSE_SESSION => session::close(call).await,
        GET_RUN => background::get_run(call).await,
        SEND_INPUT => background::send_input(call).await,
        STOP_RUN => background::stop_run(call).await,
        WRITE_FILE => files::write(call).await,
        READ_FILE => files::read(call).await,
        LIST_FILES => files::list(call).await,
        INSTALL_PACKAGES => install_packages::call(call).await,
        POOL_STATUS => pool_status::call(call).await,
        _ => return None,
    })
}

fn describe(spec: &ToolSpec, results: Results, shares: &[Share]) -> Tool {
    let mut input = object((spec.input)());
    if shares.is_empty() {
        drop_host_path(&mut input);
    }
    let only_reads = spec.name == READ_FILE && !shares.iter().any(|share| share.is_writable);
    let annotations = ToolAnnotations::from_raw(
        Some(spec.title.to_string()),
        Some(spec.hints.read_only || only_reads),
        Some(spec.hints.destructive && !only_reads),
        Some(spec.hints.idempotent),
        Some(spec.hints.open_world),
    );
    let tool = Tool::new_with_raw(spec.name, Some(spec.description.into()), Arc::new(input))
        .with_title(spec.title)
        .with_annotations(annotations);
    match results {
        Results::Data => tool.with_raw_output_schema(Arc::new(object((spec.output)()))),
        // What a model reads has no fields, and each schema is paid for with every conversation.
        Results::Model => tool,
    }
}

/// Takes what names a file of the host out of a schema, where no such name can be given.
fn drop_host_path(schema: &mut JsonObject) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    properties.remove("host_path");
    for property in properties.values_mut() {
        if let Some(Value::Object(items)) = property.get_mut("items") {
            drop_host_path(items);
        }
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

/// Lets a call hold its input, until the permit is dropped.
fn hold(context: &CallContext, input_bytes: usize) -> Result<OwnedSemaphorePermit, ToolError> {
    context.backend.hold(input_bytes).ok_or_else(|| ToolError {
        retry_after: Some(RETRY_AFTER),
        ..ToolError::new(
            ErrorCode::Capacity,
            "the calls that run and wait hold as much code, stdin, environment and files as they may",
        )
    })
}

fn invalid(message: impl Into<String>) -> ToolError {
    ToolError::new(ErrorCode::InvalidInput, message)
}

/// What the engine found to be gone, and what to do: it does not know how it is made.
fn reinstall(code: ErrorCode, message: String) -> String {
    match code {
        ErrorCode::NotInstalled => format!("{message}: run `{} image build`", sandbox_images::program()),
        _ => message,
    }
}

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
