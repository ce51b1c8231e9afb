//! `sandbox-mcp image build|pull|status|remove`.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use sandbox_engine::{Engine, EngineConfig};
use sandbox_images::{ImageStore, Progress, TerminalProgress, Unit};
use sandbox_schemas::image::{Component, ComponentState, ComponentStatus};
use sandbox_store::CacheDir;

use crate::cli::{ImageAction, Part};
use crate::settings::Settings;

/// A template that is there is ready by then, usually; one that is not takes seconds.
const LOADED_WITHIN: Duration = Duration::from_millis(500);

/// A whole image over a slow line takes minutes.
const SENT_WITHIN: Duration = Duration::from_secs(1800);

pub(crate) fn run(action: ImageAction, settings: &Settings) -> anyhow::Result<()> {
    let cache = settings.cache()?;
    let store = ImageStore::new(cache.clone());
    match action {
        ImageAction::Build { with_qemu } => {
            build(&store, with_qemu, settings)?;
            send(&cache)
        }
        ImageAction::Pull => pull(&store, settings),
        ImageAction::Status => status(&store),
        ImageAction::Remove { part } => remove(&store, part),
    }
}

fn build(store: &ImageStore, with_qemu: bool, settings: &Settings) -> anyhow::Result<()> {
    let progress = TerminalProgress::new();
    let image = store.build(with_qemu, &progress).context("building the image")?;
    let qemu = store.qemu().context("building the image")?;
    for path in [&image.kernel, &image.root, &image.initrd].into_iter().chain(&qemu) {
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    if !settings.templates.value {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let config = EngineConfig { warm_pool_size: 0, ..settings.engine_config(image, qemu)? };
    let built = runtime.block_on(build_template(config, &progress));
    runtime.shutdown_background();
    built.context("the image is built; building the template")
}

/// Who builds by hand has time to wait until other hosts can have it.
fn send(cache: &CacheDir) -> anyhow::Result<()> {
    if cache.tier_status().iter().any(|tier| tier.uploads_pending > 0) {
        let progress = TerminalProgress::new();
        let stage = progress.stage("sending what was built to the bucket", None, Unit::None);
        let is_sent = cache.flush_tiers(SENT_WITHIN);
        let failed = cache.tier_status().into_iter().filter(|tier| !is_sent || tier.uploads_failed > 0);
        if let Some(reason) = failed.filter_map(|tier| tier.last_error).next() {
            tracing::warn!(reason, "not all that was built could be sent to the bucket");
        } else {
            stage.finish();
        }
    }
    Ok(())
}

fn pull(store: &ImageStore, settings: &Settings) -> anyhow::Result<()> {
    anyhow::ensure!(settings.s3_bucket.value.is_some(), "no bucket is set: name one with --s3-bucket");
    let is_complete = store.pull(&TerminalProgress::new()).context("fetching the image")?;
    anyhow::ensure!(is_complete, "the bucket does not have all of this image: `sandbox-mcp image build` builds it");
    status(store)
}

/// So that not even the first program waits for it.
async fn build_template(config: EngineConfig, progress: &dyn Progress) -> anyhow::Result<()> {
    let engine = Engine::start(config).await?;
    let mut preparing = std::pin::pin!(engine.prepare());
    let is_there = match tokio::time::timeout(LOADED_WITHIN, &mut preparing).await {
        Ok(is_there) => is_there,
        Err(_) => {
            let stage = progress.stage("template: building", None, Unit::None);
            let is_there = preparing.await;
            if is_there {
                stage.finish();
            }
            is_there
        }
    };
    engine.shut_down().await;
    anyhow::ensure!(is_there, "there is none: the log above says why. Programs run without it, in VMs that boot");
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

fn remove(store: &ImageStore, part: Part) -> anyhow::Result<()> {
    let component = match part {
        Part::Kernel => Component::Kernel,
        Part::Root => Component::Root,
        Part::Qemu => Component::Qemu,
    };
    let was_there = store.remove(component).with_context(|| format!("{component} was not removed"))?;
    writeln!(std::io::stdout(), "{component}: {}", if was_there { "removed" } else { "there was none" })?;
    Ok(())
}

fn line(status: &ComponentStatus) -> String {
    let state = match &status.state {
        ComponentState::Present { manifest } => {
            // The one part whose updates are the user's to ask for: which version it is tells whether it is time.
            let version = manifest.packages.get("qemu").map_or_else(String::new, |version| format!("  {version}"));
            format!("present  {:>6.1} MB{version}", manifest.size_bytes as f64 / 1e6)
        }
        ComponentState::Missing if !status.component.is_required() => "not built (image build --with-qemu)".into(),
        ComponentState::Missing => "missing".into(),
        ComponentState::Corrupt { reason } => format!("corrupt  {reason}"),
    };
    format!("{:<7} {state}  {}", status.component, status.path.display())
}
