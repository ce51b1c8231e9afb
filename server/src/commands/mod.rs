//! What a person does at a terminal, a command each: `sandbox-mcp image|cache|settings|schema`.

pub(crate) mod cache;
pub(crate) mod image;
pub(crate) mod schema;
pub(crate) mod settings;

mod tier;
