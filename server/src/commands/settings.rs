//! `sandbox-mcp settings`.

use std::io::Write;

use crate::settings::{Origin, Settings};

/// Shows each setting as a line that a file could have, and whom it is from as a comment.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    let file = settings.file.as_ref().map(|file| {
        let note = if file.exists { "" } else { " (not there)" };
        format!("# {}{note}\n", file.path.display())
    });
    let mut text = file.unwrap_or_default();
    for (spec, value, origin) in settings.rows() {
        let line =
            value.map_or_else(|| format!("# {} is not set", spec.key), |value| format!("{} = {value}", spec.key));
        let from = match origin {
            Origin::Default => format!("default: {}", spec.default),
            from => from.to_string(),
        };
        text += &format!("{line:<32}  # {from}\n");
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
