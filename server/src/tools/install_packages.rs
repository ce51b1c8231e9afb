//! `install_packages`: packages, installed once, for all runs that name them.

use rmcp::model::CallToolResult;
use sandbox_engine::{InstallError, PackageSet};
use sandbox_schemas::environment::Omitted;
use sandbox_schemas::install::{InstallInput, InstallOutcome};
use sandbox_schemas::outcome::ErrorCode;
use schemars::schema_for;

use crate::mcp::progress;
use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, invalid, reinstall};

pub(crate) async fn call(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: InstallInput = call.input(|| schema_for!(InstallInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let InstallInput { language, packages, session_id } = input;
    let engine = engine_for(&call.context).await?;
    let set = PackageSet { language, packages };
    let cancel = call.context.cancel.clone();
    let installation = |mut sink| async move {
        match session_id {
            Some(id) => engine.install_into(&id, &set, &mut sink, cancel).await.map_err(ToolError::from),
            None => engine.install(&set, &mut sink, cancel).await.map_err(ToolError::from),
        }
    };
    Ok(shown::result(call.results, progress::report(call.channel(), installation).await?))
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
        vec![Block::text(text)]
    }
}

impl From<InstallError> for ToolError {
    fn from(error: InstallError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, reinstall(code, error.to_string())) }
    }
}
