//! `sandbox-mcp image build|pull|status|remove`.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use sandbox_engine::{Engine, EngineConfig, StartError};
use sandbox_images::{BuildOptions, ImageStore, Progress, TerminalProgress, Unit, program};
use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::image::{Component, ComponentState, ComponentStatus, Manifest};
use sandbox_store::CacheDir;

use crate::cli::{ImageAction, OwnQemu, Part};
use crate::settings::Settings;
use crate::ulimits;

/// A template that is there is ready by then, usually; one that is not takes seconds.
const LOADED_WITHIN: Duration = Duration::from_millis(500);

/// How long is waited for what is being sent while nothing of it moves: longer than a request that is stuck, and than the bucket is
/// left alone after a failure.
const SENDING_STALLS: Duration = Duration::from_secs(120);

/// How often it is looked whether anything moves.
const SENDING_POLL: Duration = Duration::from_secs(1);

pub(crate) fn run(action: ImageAction, settings: &Settings) -> anyhow::Result<()> {
    let cache = settings.cache()?;
    let store = ImageStore::new(cache.clone());
    match action {
        ImageAction::Build { qemu, fresh } => {
            build(&store, qemu, fresh, settings)?;
            send(&cache)
        }
        ImageAction::Pull => pull(&store, settings),
        ImageAction::Status => status(&store),
        ImageAction::Remove { part } => remove(&store, part),
    }
}

fn build(store: &ImageStore, wanted: OwnQemu, fresh: bool, settings: &Settings) -> anyhow::Result<()> {
    let progress = TerminalProgress::new();
    let options = BuildOptions { with_qemu: wanted.with_qemu, fresh };
    let image = store.build(options, &progress).context("building the image")?;
    let mut qemu = store.qemu().context("building the image")?;
    let runtime = ulimits::runtime()?;
    if qemu.is_none() && !wanted.without_qemu && settings.qemu.value.is_none() {
        qemu = build_qemu_without_kvm(store, &runtime, settings.engine_config(image.clone(), None)?, &progress);
    }
    tell_ages(store, settings.qemu.value.is_none())?;
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

/// Says how old each part is that Debian's packages are in, wherever it came from: none gets updates with the system's. A QEMU is
/// built anew only when that is asked for, so whoever uses ours is told when it is time.
fn tell_ages(store: &ImageStore, uses_qemu: bool) -> anyhow::Result<()> {
    let now = SystemTime::now();
    for status in store.status().components {
        let ComponentState::Present { manifest } = status.state else { continue };
        if status.component.becomes_outdated() {
            writeln!(std::io::stderr(), "{}: built {}", status.component, age(&manifest, now))?;
        }
        if status.component == Component::Qemu && uses_qemu && manifest.is_outdated(now) {
            let program = program();
            tracing::warn!(
                days = manifest.age_days(now),
                "the VMs' QEMU has no security fixes since it was built: `{program} image build --fresh`, while no server runs, \
                 builds it anew"
            );
        }
    }
    Ok(())
}

fn age(manifest: &Manifest, now: SystemTime) -> String {
    match manifest.age_days(now) {
        0 => "today".into(),
        1 => "1 day ago".into(),
        days => format!("{days} days ago"),
    }
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
    store.build_qemu(progress).map(Some).unwrap_or_else(|error| {
        let reason = error.to_string();
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
        let is_sent = flush_while_it_moves(cache);
        let failed = cache.tier_status().into_iter().filter(|tier| !is_sent || tier.uploads_failed > 0);
        if let Some(reason) = failed.filter_map(|tier| tier.last_error).next() {
            tracing::warn!(reason, "not all that was built could be sent to the bucket");
        } else {
            stage.finish();
        }
    }
    Ok(())
}

/// A line takes the time that it takes.
fn flush_while_it_moves(cache: &CacheDir) -> bool {
    let now = || -> Vec<_> {
        cache.tier_status().iter().map(|tier| (tier.uploaded_mb, tier.uploads_done, tier.uploads_pending)).collect()
    };
    let (mut last, mut last_change) = (now(), Instant::now());
    while !cache.flush_tiers(SENDING_POLL) {
        let now = now();
        if now != last {
            (last, last_change) = (now, Instant::now());
        } else if last_change.elapsed() > SENDING_STALLS {
            return false;
        }
    }
    true
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
            // What has Debian's packages in it has the updates of the day on which it was built.
            let now = SystemTime::now();
            let package =
                manifest.packages.iter().find(|(name, _)| *name == "qemu" || name.starts_with("linux-source"));
            let version = package.map_or_else(String::new, |(_, version)| format!("{version}, "));
            let told = match manifest.is_outdated(now) {
                _ if !status.component.becomes_outdated() => String::new(),
                false => format!("  {version}built {}", age(manifest, now)),
                true => format!("  {version}built {}: too old", age(manifest, now)),
            };
            format!("present  {:>6.1} MB{told}", manifest.size_bytes as f64 / 1e6)
        }
        ComponentState::Missing if !status.component.is_required() => {
            format!("not built (`{} image build --with-qemu`)", program())
        }
        ComponentState::Missing => "missing".into(),
        ComponentState::Corrupt { reason } => format!("corrupt  {reason}"),
        ComponentState::Unreadable { reason } => format!("unreadable  {reason}"),
    };
    format!("{:<7} {state}  {}", status.component.name(), status.path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::image::{Digest, MANIFEST_FORMAT};
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_part_says_its_age_and_whether_it_is_too_old() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let line = |component, days: u64, package: &str| {
            let manifest = Manifest {
                format: MANIFEST_FORMAT,
                component,
                key: Digest([7; 32]),
                sha256: Digest([7; 32]),
                size_bytes: 12_300_000,
                created_unix_seconds: now - days * 86_400,
                packages: [(package.to_owned(), "1:2-3".to_owned())].into(),
                tools: [].into(),
            };
            line(&ComponentStatus { component, path: "/f".into(), state: ComponentState::Present { manifest } })
        };
        assert_eq!(line(Component::Root, 0, "bash"), "root    present    12.3 MB  built today  /f");
        assert_eq!(line(Component::Root, 1, "bash"), "root    present    12.3 MB  built 1 day ago  /f");
        let kernel = "kernel  present    12.3 MB  1:2-3, built 40 days ago: too old  /f";
        assert_eq!(line(Component::Kernel, 40, "linux-source-6.12"), kernel);
        assert_eq!(line(Component::Qemu, 29, "qemu"), "qemu    present    12.3 MB  1:2-3, built 29 days ago  /f");
        assert_eq!(line(Component::Agent, 400, "agent"), "agent   present    12.3 MB  /f");
    }
}
