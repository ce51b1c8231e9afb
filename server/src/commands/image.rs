//! `sandbox-mcp image build|pull|status|remove`.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use sandbox_engine::{Engine, EngineConfig, StartError};
use sandbox_images::{ImageStore, Progress, TerminalProgress, Unit, program};
use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::image::{Component, ComponentState, ComponentStatus};
use sandbox_store::CacheDir;

use crate::cli::{ImageAction, OwnQemu, Part};
use crate::settings::Settings;
use crate::ulimits;

/// A template that is there is ready by then, usually; one that is not takes seconds.
const LOADED_WITHIN: Duration = Duration::from_millis(500);

/// After so many days it is worth looking whether Debian has a newer one.
const OLD_QEMU_DAYS: u64 = 30;

/// A whole image over a slow line takes minutes.
const SENT_WITHIN: Duration = Duration::from_secs(1800);

pub(crate) fn run(action: ImageAction, settings: &Settings) -> anyhow::Result<()> {
    let cache = settings.cache()?;
    let store = ImageStore::new(cache.clone());
    match action {
        ImageAction::Build { qemu } => {
            build(&store, qemu, settings)?;
            send(&cache)
        }
        ImageAction::Pull => pull(&store, settings),
        ImageAction::Status => status(&store),
        ImageAction::Remove { part } => remove(&store, part),
    }
}

fn build(store: &ImageStore, wanted: OwnQemu, settings: &Settings) -> anyhow::Result<()> {
    let progress = TerminalProgress::new();
    let image = store.build(wanted.with_qemu, &progress).context("building the image")?;
    let mut qemu = store.qemu().context("building the image")?;
    let runtime = ulimits::runtime()?;
    if qemu.is_none() && !wanted.without_qemu && settings.qemu.value.is_none() {
        qemu = build_qemu_without_kvm(store, &runtime, settings.engine_config(image.clone(), None)?, &progress);
    }
    if settings.qemu.value.is_none() {
        warn_of_an_old_qemu(store);
    }
    for path in [&image.kernel, &image.root, &image.initrd].into_iter().chain(&qemu) {
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    if settings.templates.value {
        let config = EngineConfig { warm_pool_size: 0, ..settings.engine_config(image, qemu)? };
        let built = runtime.block_on(build_template(config, &progress));
        // It does not wait for what a build that has failed has left to be done.
        runtime.shutdown_background();
        built.context("the image is built; building the template")?;
    }
    Ok(())
}

/// It gets no updates with the system's.
fn warn_of_an_old_qemu(store: &ImageStore) {
    for status in store.status().components {
        if let (Component::Qemu, ComponentState::Present { manifest }) = (status.component, status.state) {
            let days = days_since(manifest.created_unix_seconds);
            if days >= OLD_QEMU_DAYS {
                let program = program();
                tracing::warn!(
                    days,
                    "the VMs' QEMU has no security fixes since it was built: `{program} image remove qemu`, while no \
                     server runs, and `{program} image build --with-qemu` build it anew"
                );
            }
        }
    }
}

fn days_since(unix_seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    now.saturating_sub(unix_seconds) / 86_400
}

/// Without KVM, VMs are several times as quick in a QEMU of our own, and without any other they need it. Where it cannot be built
/// they run in the host's.
fn build_qemu_without_kvm(
    store: &ImageStore,
    runtime: &tokio::runtime::Runtime,
    config: EngineConfig,
    progress: &dyn Progress,
) -> Option<PathBuf> {
    let config = EngineConfig { warm_pool_size: 0, uses_templates: false, ..config };
    let accelerator = runtime.block_on(async {
        let engine = Engine::start(config).await?;
        let accelerator = engine.accelerator();
        engine.shut_down().await;
        Ok(accelerator)
    });
    match accelerator {
        Ok(Accelerator::Tcg) | Err(StartError::QemuMissing { .. } | StartError::QemuTooOld { .. }) => {}
        // Whoever needs what has failed says so.
        Ok(Accelerator::Kvm) | Err(_) => return None,
    }
    let built = store.build(true, progress).map_err(anyhow::Error::from).and_then(|_| Ok(store.qemu()?));
    built.unwrap_or_else(|error| {
        let reason = format!("{error:#}");
        tracing::warn!(
            reason,
            "no QEMU was built for the VMs, which are slower in the host's own; `{} image build --without-qemu` does not try",
            program()
        );
        None
    })
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
    anyhow::ensure!(is_complete, "the bucket does not have all of this image: `{} image build` builds it", program());
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
    anyhow::ensure!(status.is_complete(), "the image is not complete: run `{} image build`", program());
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
            // The one part whose updates are the user's to ask for: its version and age tell whether it is time.
            let age = days_since(manifest.created_unix_seconds);
            let version = manifest.packages.get("qemu");
            let version = version.map_or_else(String::new, |version| format!("  {version}, {age} days old"));
            format!("present  {:>6.1} MB{version}", manifest.size_bytes as f64 / 1e6)
        }
        ComponentState::Missing if !status.component.is_required() => {
            format!("not built (`{} image build --with-qemu`)", program())
        }
        ComponentState::Missing => "missing".into(),
        ComponentState::Corrupt { reason } => format!("corrupt  {reason}"),
        ComponentState::Unreadable { reason } => format!("unreadable  {reason}"),
    };
    format!("{:<7} {state}  {}", status.component, status.path.display())
}
