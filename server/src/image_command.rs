//! `sandbox-mcp image build|status`.

use std::io::Write;

use anyhow::Context;
use sandbox_images::{ImageStore, TerminalProgress};
use sandbox_schemas::image::{ComponentState, ComponentStatus};

use crate::cli::ImageAction;
use crate::settings::Settings;

pub(crate) fn run(action: ImageAction, settings: &Settings) -> anyhow::Result<()> {
    let store = ImageStore::new(settings.cache_dir()?);
    match action {
        ImageAction::Build => build(&store),
        ImageAction::Status => status(&store),
    }
}

fn build(store: &ImageStore) -> anyhow::Result<()> {
    let image = store.build(&TerminalProgress::new()).context("building the image")?;
    for path in [&image.kernel, &image.root, &image.initrd] {
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(())
}

fn status(store: &ImageStore) -> anyhow::Result<()> {
    let status = store.status();
    for component in &status.components {
        writeln!(std::io::stdout(), "{}", line(component))?;
    }
    anyhow::ensure!(status.is_complete(), "the image is not complete: run `sandbox-mcp image build`");
    Ok(())
}

fn line(status: &ComponentStatus) -> String {
    let state = match &status.state {
        ComponentState::Present { manifest } => format!("present  {:>6.1} MB", manifest.size_bytes as f64 / 1e6),
        ComponentState::Missing => "missing".into(),
        ComponentState::Corrupt { reason } => format!("corrupt  {reason}"),
    };
    format!("{:<7} {state}  {}", status.component, status.path.display())
}
