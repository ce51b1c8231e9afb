//! `install_packages`: packages, installed once, for all runs that name them.

use rmcp::model::CallToolResult;
use sandbox_engine::{InstallError, PackageSet};
use sandbox_schemas::install::InstallInput;
use sandbox_schemas::outcome::ErrorCode;
use schemars::schema_for;

use crate::mcp::progress::{self, Channel, Unheard};
use crate::mcp::tool_error::ToolError;
use crate::tools::{ToolCall, engine_for, parse_arguments, reinstall};

pub(crate) async fn call(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: InstallInput = parse_arguments(call.arguments, || schema_for!(InstallInput))?;
    input.validate().map_err(|error| ToolError::new(ErrorCode::InvalidInput, error.to_string()))?;
    let InstallInput { language, packages } = input;
    let context = call.context;
    let engine = engine_for(&context).await?;
    let set = PackageSet { language, packages };
    let cancel = context.cancel.clone();
    let outcome = match call.progress_token {
        Some(token) => {
            let channel = Channel { token, era: &call.era, outbox: &context.outbox, cancel: &context.cancel };
            let installation = |mut sink| async move { engine.install(&set, &mut sink, cancel).await };
            progress::report(channel, installation).await
        }
        None => engine.install(&set, &mut Unheard, cancel).await,
    };
    // Numbers, text and flags: nothing of it can fail to serialize.
    Ok(CallToolResult::structured(serde_json::to_value(outcome?).unwrap_or_default()))
}

impl From<InstallError> for ToolError {
    fn from(error: InstallError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, reinstall(code, error.to_string())) }
    }
}
