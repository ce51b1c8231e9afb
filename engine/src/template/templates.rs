//! The templates of an engine: each is loaded, or built, once; all who want it meanwhile wait for the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use sandbox_schemas::limits::{MEMORY_MAX_MB, VM_OVERHEAD_MB};
use sandbox_schemas::status::{TemplateState, TemplateStatus};
use sandbox_store::{CacheDir, FileError, Kind, LOCK_POLL, Lock, Shelf, ShelfError};
use tokio::sync::Mutex;

use crate::error::VmError;
use crate::qemu::{LaunchSpec, OPENS_RAM_READ_ONLY, Qemu, StartKind, arguments_to, runs_as_another_user};
use crate::template::Template;
use crate::template::build::{self, REHEARSALS};
use crate::template::entry::{self, Origin, Unusable};
use crate::template::key::{TemplateInputs, host_cpu};

/// The name of the template that has all languages and no packages.
const BASE: &str = "base";

/// Memory of a clone, in MiB. What a program may use of it is set for each run; what is never touched costs nothing.
const MEMORY_MB: u64 = MEMORY_MAX_MB + VM_OVERHEAD_MB;

/// Clones of one template that may fail before it is given up.
const FAILURES_MAX: u32 = 3;

/// Why there is no template. Programs still run: in VMs that boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("building it: {0}")]
    Build(#[from] VmError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("what was just written is damaged: {0}")]
    Damaged(Unusable),
    #[error("{0}")]
    Internal(String),
}

/// What an engine knows of its base template.
#[derive(Debug)]
pub(crate) struct Templates {
    cache: CacheDir,
    shelf: Shelf,
    spec: LaunchSpec,
    origin: Origin,
    /// Whether QEMU must not have the memory's file itself.
    copies: bool,
    base: Mutex<Base>,
}

#[derive(Debug)]
enum Base {
    Unknown,
    Loaded(Arc<Template>),
    /// Not tried again: a failure takes long, and every run would wait for it.
    Failed,
}

impl Templates {
    /// Templates in a folder of `cache`, of VMs like `spec`.
    pub(crate) fn new(cache: CacheDir, qemu: &Qemu, spec: &LaunchSpec) -> Templates {
        let spec = LaunchSpec { memory_mb: MEMORY_MB, ..spec.clone() };
        Templates {
            shelf: cache.shelf(Kind::Template),
            cache,
            origin: origin(qemu, &spec),
            spec,
            copies: qemu.version() < OPENS_RAM_READ_ONLY || !runs_as_another_user(),
            base: Mutex::new(Base::Unknown),
        }
    }

    /// The base template; `None` when there is none to be had.
    pub(crate) async fn base(&self, qemu: &Qemu) -> Option<Arc<Template>> {
        let mut base = self.base.lock().await;
        if matches!(*base, Base::Unknown) {
            *base = match self.obtain(qemu).await {
                Ok(template) => Base::Loaded(Arc::new(template)),
                Err(error) => {
                    tracing::warn!(%error, "no template: every VM boots, which takes longer");
                    Base::Failed
                }
            };
        }
        match &*base {
            Base::Loaded(template) => Some(template.clone()),
            Base::Unknown | Base::Failed => None,
        }
    }

    /// A clone did not come up. A busy host can do that; a template that does it again and again is of no use.
    pub(crate) async fn note_failure(&self, template: &Template) {
        if template.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            *self.base.lock().await = Base::Failed;
        }
    }

    /// What a clone is launched with.
    pub(crate) fn spec(&self, template: &Template) -> LaunchSpec {
        LaunchSpec {
            start: template.start(),
            memory_mb: template.memory_mb,
            tsc_khz: template.tsc_khz,
            ..self.spec.clone()
        }
    }

    /// What is known of it now, without waiting for it.
    pub(crate) fn status(&self) -> TemplateStatus {
        let state = match self.base.try_lock().as_deref() {
            Ok(Base::Loaded(_)) => TemplateState::Ready,
            Ok(Base::Failed) => TemplateState::Failed,
            // Whoever loads or builds it holds the lock.
            Ok(Base::Unknown) | Err(_) => TemplateState::Preparing,
        };
        TemplateStatus { state, key: Some(self.origin.key.to_string()) }
    }

    async fn obtain(&self, qemu: &Qemu) -> Result<Template, TemplateError> {
        let found = self.load().await?;
        match found {
            Ok(template) => return Ok(template),
            Err(Unusable::Missing) => {}
            Err(Unusable::Damaged(reason)) => tracing::warn!(reason, "a template is damaged and built anew"),
        }
        let lock = self.lock().await?;
        // The other may have built it.
        if let Ok(template) = self.load().await? {
            return Ok(template);
        }
        tracing::info!("building the template, which takes some seconds");
        let saved = build::build(qemu, &self.spec).await?;
        let shelf = self.shelf.clone();
        let origin = self.origin.clone();
        let published = in_background(move || {
            let place = shelf.begin(lock, origin.key)?;
            entry::write(place.made(), &saved, &origin)?;
            place.publish()
        });
        // In use until the template is, so that nobody makes room with it meanwhile.
        let _lease = published.await??;
        let template = self.load().await?.map_err(TemplateError::Damaged)?;
        if let Err(error) = self.make_room().await {
            tracing::warn!(%error, "no room was made in the cache");
        }
        Ok(template)
    }

    /// Waits for the right to build; who does not want the template any more drops this.
    async fn lock(&self) -> Result<Lock, TemplateError> {
        let mut waits = false;
        loop {
            let shelf = self.shelf.clone();
            if let Some(lock) = in_background(move || shelf.try_lock(BASE)).await?? {
                return Ok(lock);
            }
            if !waits {
                tracing::info!("waiting for another server that builds the template");
                waits = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Removes what is not needed any more, now that there is one template more.
    async fn make_room(&self) -> Result<(), TemplateError> {
        let (shelf, cache) = (self.shelf.clone(), self.cache.clone());
        in_background(move || {
            shelf.prune(BASE, SystemTime::now());
            for removed in cache.make_room() {
                tracing::info!(entry = %removed.path.display(), "removed, to make room in the cache");
            }
        })
        .await
    }

    async fn load(&self) -> Result<Result<Template, Unusable>, TemplateError> {
        let folder = self.shelf.entry(BASE, self.origin.key);
        let (origin, copies) = (self.origin.clone(), self.copies);
        in_background(move || entry::load(&folder, &origin, copies)).await
    }
}

fn origin(qemu: &Qemu, spec: &LaunchSpec) -> Origin {
    // What makes a template and what uses it. The frequency is compared, not hashed: no two measurements of it agree.
    let spec_without = LaunchSpec { tsc_khz: 0, ..spec.clone() };
    let starts = [StartKind::BootIn, StartKind::Restore];
    let arguments = starts.iter().flat_map(|start| arguments_to(*start, &spec_without, qemu.version())).collect();
    let image = &spec.image;
    let inputs = TemplateInputs {
        kernel_sha256: image.kernel_sha256,
        root_sha256: image.root_sha256,
        initrd_sha256: image.initrd_sha256,
        qemu: qemu.words().to_string(),
        accelerator: spec.accelerator,
        cpu: host_cpu(),
        arguments,
        rehearsals: REHEARSALS.iter().map(|rehearsal| rehearsal.code.to_string()).collect(),
    };
    Origin { key: inputs.key(), tsc_khz: spec.tsc_khz, accelerator: spec.accelerator, qemu: inputs.qemu }
}

/// Files are read and hashed where it does not hold up the runtime.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TemplateError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| TemplateError::Internal(error.to_string()))
}
