//! `install_packages`: packages, installed once, for all runs that name them.

use rmcp::model::CallToolResult;
use sandbox_engine::{InstallError, PackageSet};
use sandbox_schemas::environment::Omitted;
use sandbox_schemas::install::{InstallInput, InstallOutcome};
use sandbox_schemas::outcome::ErrorCode;
use schemars::schema_for;

use crate::mcp::progress::{self, Channel, Unheard};
use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
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
    Ok(shown::result(call.results, outcome?))
}

impl Shown for InstallOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        let requested: Vec<_> = self.packages.iter().filter(|package| package.requested).collect();
        let names: Vec<_> = requested.iter().map(|package| format!("{} {}", package.name, package.version)).collect();
        let mut text = format!("environment_id: {}\ninstalled: {}", self.environment_id, names.join(", "));
        match self.packages.len() - requested.len() {
            0 => {}
            1 => text.push_str(", and a package that they need"),
            others => text.push_str(&format!(", and {others} packages that they need")),
        }
        for Omitted { name, reason } in &self.skipped {
            text.push_str(&format!("\nleft out: {name}: {reason}"));
        }
        vec![Block { field: None, text }]
    }
}

impl From<InstallError> for ToolError {
    fn from(error: InstallError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, reinstall(code, error.to_string())) }
    }
}
