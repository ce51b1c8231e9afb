//! `sandbox-mcp schema`: what clients are told, for people and programs that do not want to speak the protocol to see it.

use std::io::{self, Write};

use anyhow::Context;
use sandbox_schemas::tools::{INSTRUCTIONS, TOOLS, ToolSpec};
use serde_json::json;

pub(crate) fn run() -> anyhow::Result<()> {
    let tools: Vec<_> = TOOLS.iter().map(ToolSpec::to_json).collect();
    let text = serde_json::to_string_pretty(&json!({ "instructions": INSTRUCTIONS, "tools": tools }));
    match writeln!(io::stdout(), "{}", text.context("writing the schemas as JSON")?) {
        // Whoever reads, such as `head`, may leave when it has seen enough.
        Err(fault) if fault.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing the schemas"),
    }
}
