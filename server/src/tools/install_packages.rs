//! `install_packages`: packages, installed once, for all runs that name them.

use rmcp::model::CallToolResult;
use sandbox_engine::{InstallError, PackageSet};
use sandbox_schemas::install::InstallInput;
use sandbox_schemas::outcome::ErrorCode;
use schemars::schema_for;

use crate::progress::{self, Gathered};
use crate::tools::{ToolCall, ToolError, engine_for, parse_arguments};

pub(crate) async fn call(call: ToolCall) -> Result<CallToolResult, ToolError> {
    let InstallInput { language, packages } = parse_arguments(call.arguments, || schema_for!(InstallInput))?;
    let context = call.context;
    let engine = engine_for(&context).await?;
    let set = PackageSet { language, packages };
    let gathered = Gathered::default();
    let mut sink = gathered.clone();
    let installation = engine.install(&set, &mut sink, context.cancel.clone());
    let outcome = match call.progress_token {
        Some(token) => progress::report(installation, gathered, token, &context.outbox, &context.cancel).await,
        None => installation.await,
    };
    // Numbers, text and flags: nothing of it can fail to serialize.
    Ok(CallToolResult::structured(serde_json::to_value(outcome?).unwrap_or_default()))
}

impl From<InstallError> for ToolError {
    fn from(error: InstallError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, error.to_string()) }
    }
}
