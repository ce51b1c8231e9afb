//! The templates of an engine: each is loaded, or built, once; all who want it meanwhile wait for the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sandbox_schemas::limits::{MEMORY_MAX_MB, VM_OVERHEAD_MB};
use sandbox_schemas::status::{TemplateState, TemplateStatus};
use sandbox_store::{FileError, Shelf};
use tokio::sync::Mutex;

use crate::error::VmError;
use crate::qemu::{LaunchSpec, OPENS_RAM_READ_ONLY, Qemu, arguments};
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
    #[error("what was just written is damaged: {0}")]
    Damaged(Unusable),
    #[error("{0}")]
    Internal(String),
}

/// What an engine knows of its base template.
#[derive(Debug)]
pub(crate) struct Templates {
    shelf: Shelf,
    spec: LaunchSpec,
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
    /// Templates in a folder of `cache_dir`, of VMs like `spec`.
    pub(crate) fn new(cache_dir: &Path, spec: &LaunchSpec) -> Templates {
        Templates {
            shelf: Shelf::new(folder(cache_dir)),
            spec: LaunchSpec { memory_mb: MEMORY_MB, ..spec.clone() },
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
    pub(crate) fn status(&self, qemu: &Qemu) -> TemplateStatus {
        let state = match self.base.try_lock().as_deref() {
            Ok(Base::Loaded(_)) => TemplateState::Ready,
            Ok(Base::Failed) => TemplateState::Failed,
            // Whoever loads or builds it holds the lock.
            Ok(Base::Unknown) | Err(_) => TemplateState::Preparing,
        };
        TemplateStatus { state, key: Some(self.origin(qemu).key.to_string()) }
    }

    async fn obtain(&self, qemu: &Qemu) -> Result<Template, TemplateError> {
        let origin = self.origin(qemu);
        let copies = qemu.version() < OPENS_RAM_READ_ONLY;
        let found = self.load(&origin, copies).await?;
        match found {
            Ok(template) => return Ok(template),
            Err(Unusable::Missing) => {}
            Err(Unusable::Damaged(reason)) => tracing::warn!(reason, "a template is damaged and built anew"),
        }
        let shelf = self.shelf.clone();
        let lock = in_background(move || {
            shelf.lock(BASE, || tracing::info!("waiting for another server that builds the template"))
        })
        .await??;
        // The other may have built it.
        if let Ok(template) = self.load(&origin, copies).await? {
            return Ok(template);
        }
        tracing::info!("building the template, which takes some seconds");
        let saved = build::build(qemu, &self.spec).await?;
        let shelf = self.shelf.clone();
        let written = origin.clone();
        in_background(move || {
            let workplace = shelf.workplace(&lock)?;
            let made = workplace.path().join("made");
            entry::write(&made, &saved, &written)?;
            shelf.publish(&lock, written.key, &made, &workplace)
        })
        .await??;
        self.load(&origin, copies).await?.map_err(TemplateError::Damaged)
    }

    async fn load(&self, origin: &Origin, copies: bool) -> Result<Result<Template, Unusable>, TemplateError> {
        let folder = self.shelf.entry(BASE, origin.key);
        let origin = origin.clone();
        in_background(move || entry::load(&folder, &origin, copies)).await
    }

    fn origin(&self, qemu: &Qemu) -> Origin {
        // The frequency is compared, not hashed: no two measurements of it agree.
        let arguments = arguments(&LaunchSpec { tsc_khz: 0, ..self.spec.clone() }, qemu.version());
        let image = &self.spec.image;
        let inputs = TemplateInputs {
            kernel_sha256: image.kernel_sha256,
            root_sha256: image.root_sha256,
            initrd_sha256: image.initrd_sha256,
            qemu: qemu.words().to_string(),
            accelerator: self.spec.accelerator,
            cpu: host_cpu(),
            arguments,
            rehearsals: REHEARSALS.iter().map(|rehearsal| rehearsal.code.to_string()).collect(),
        };
        Origin { key: inputs.key(), tsc_khz: self.spec.tsc_khz, accelerator: self.spec.accelerator, qemu: inputs.qemu }
    }
}

/// Where templates lie.
fn folder(cache_dir: &Path) -> PathBuf {
    cache_dir.join("templates")
}

/// Files are read and hashed where it does not hold up the runtime.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TemplateError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| TemplateError::Internal(error.to_string()))
}
