//! What MCP adds to JSON-RPC: its eras and their shapes, errors of tools, progress, and what is logged for a client.

// In the order in which to read them.
pub(crate) mod protocol;
pub(crate) mod tasks;
pub(crate) mod tool_error;

pub(crate) mod progress;

pub(crate) mod log;
