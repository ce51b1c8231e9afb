//! The templates of an engine: each is loaded, or built, once; all who want it meanwhile wait for the same.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sandbox_schemas::environment::EnvironmentId;
use sandbox_schemas::image::Digest;
use sandbox_schemas::limits::{MEMORY_MAX_MB, VM_OVERHEAD_MB};
use sandbox_schemas::status::{EnvironmentStatus, TemplateState, TemplateStatus};
use sandbox_store::{CacheDir, EntryId, Fetched, FileError, Kind, LOCK_POLL, Lock, Shelf, ShelfError};

use crate::entry::Unusable;
use crate::environment::Environment;
use crate::error::VmError;
use crate::pool::Pool;
use crate::qemu::{LaunchSpec, OPENS_RAM_READ_ONLY, Qemu, StartKind, arguments_to, runs_as_another_user};
use crate::template::Template;
use crate::template::build;
use crate::template::derive;
use crate::template::entry::{self, Origin};
use crate::template::key::{TemplateInputs, host_cpu};
use crate::template::rehearsal;

/// The name of the template that has all languages and no packages.
const BASE: &str = "base";

/// Memory of a clone, in MiB. What a program may use of it is set for each run; what is never touched costs nothing.
const MEMORY_MB: u64 = MEMORY_MAX_MB + VM_OVERHEAD_MB;

/// Clones of one template that may fail before it is given up.
const FAILURES_MAX: u32 = 3;

/// Templates of package sets that stay loaded. A QEMU that must not have the file gets a copy of 150-400 MB in memory, which is made
/// anew in 0.1-0.2 s.
const SETS_LOADED_MAX: usize = 4;

/// What building one takes under TCG: a tier that would take longer is of no use.
const TIER_PATIENCE: Duration = Duration::from_secs(15);

/// Why there is no template. Programs still run: in VMs that boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("building it: {0}")]
    Build(#[from] VmError),
    #[error("there is none to make it from")]
    NoBase,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("what was just written is damaged: {0}")]
    Damaged(Unusable),
    #[error("{0}")]
    Internal(String),
}

/// What an engine knows of its templates.
#[derive(Debug)]
pub(crate) struct Templates {
    cache: CacheDir,
    shelf: Shelf,
    spec: LaunchSpec,
    inputs: TemplateInputs,
    /// Whether QEMU must not have the memory's file itself.
    copies: bool,
    base: Arc<Known>,
    /// By the key of the packages' layer.
    sets: Mutex<HashMap<Digest, Arc<Known>>>,
}

/// What is known of one template. Whoever loads or builds it holds the lock.
#[derive(Debug)]
struct Known {
    origin: Origin,
    /// The set's; the base has none.
    id: Option<EnvironmentId>,
    state: tokio::sync::Mutex<State>,
    last_used: Mutex<Instant>,
}

#[derive(Debug)]
enum State {
    Unknown,
    Loaded(Arc<Template>),
    /// Not tried again: a failure takes long, and every run would wait for it.
    Failed,
}

impl Templates {
    /// Templates in a folder of `cache`, of VMs like `spec`.
    pub(crate) fn new(cache: CacheDir, qemu: &Qemu, spec: &LaunchSpec) -> Templates {
        let spec = LaunchSpec { memory_mb: MEMORY_MB, ..spec.clone() };
        let inputs = inputs(qemu, &spec);
        Templates {
            shelf: cache.shelf(Kind::Template),
            cache,
            base: Arc::new(Known::new(origin(&inputs, &spec), None)),
            sets: Mutex::default(),
            spec,
            inputs,
            copies: qemu.version() < OPENS_RAM_READ_ONLY || !runs_as_another_user(),
        }
    }

    /// The template without packages; `None` when there is none to be had.
    pub(crate) async fn base(&self, qemu: &Qemu) -> Option<Arc<Template>> {
        let known = &self.base;
        let mut state = known.state.lock().await;
        if matches!(*state, State::Unknown) {
            *state = self.obtain(BASE, &known.origin, None, build::build(qemu, &self.spec)).await.into();
        }
        state.template()
    }

    /// The template of a set of packages, or the base for none.
    pub(crate) async fn of(&self, qemu: &Qemu, environment: Option<&Arc<Environment>>) -> Option<Arc<Template>> {
        let Some(environment) = environment else { return self.base(qemu).await };
        let known = self.known(environment);
        let mut state = known.state.lock().await;
        if matches!(*state, State::Unknown) {
            let build = async {
                let parent = environment.parent.as_ref();
                // One level deep: a layer that others are added to was added to none.
                let base = Box::pin(self.of(qemu, parent)).await.ok_or(TemplateError::NoBase)?;
                let parent = parent.map(|parent| &**parent);
                Ok::<_, TemplateError>(derive::derive(qemu, &self.clone_of(&base), parent, environment).await?)
            };
            *state = self.obtain(&environment.id.to_string(), &known.origin, Some(environment), build).await.into();
        }
        state.template()
    }

    /// What is known of the template of a set. What was not used for longest is forgotten for it, if it is one too many.
    fn known(&self, environment: &Arc<Environment>) -> Arc<Known> {
        let mut sets = lock(&self.sets);
        let known = sets.entry(environment.key).or_insert_with(|| {
            let inputs = TemplateInputs { layer: Some(environment.image_sha256), ..self.inputs.clone() };
            Arc::new(Known::new(origin(&inputs, &self.spec), Some(environment.id.clone())))
        });
        let known = known.clone();
        *lock(&known.last_used) = Instant::now();
        while sets.len() > SETS_LOADED_MAX {
            let Some(oldest) = sets.iter().min_by_key(|(_, known)| *lock(&known.last_used)).map(|(key, _)| *key) else {
                break;
            };
            sets.remove(&oldest);
        }
        known
    }

    /// A clone did not come up. A busy host can do that; a template that does it again and again is of no use.
    pub(crate) async fn note_failure(&self, template: &Template) {
        if template.failures.fetch_add(1, Ordering::Relaxed) + 1 < FAILURES_MAX {
            return;
        }
        let known = match &template.environment {
            None => Some(self.base.clone()),
            Some(environment) => lock(&self.sets).get(&environment.key).cloned(),
        };
        if let Some(known) = known {
            *known.state.lock().await = State::Failed;
        }
    }

    /// What a clone is launched with.
    pub(crate) fn clone_of(&self, template: &Template) -> LaunchSpec {
        LaunchSpec {
            start: template.start(),
            code: template.code(),
            memory_mb: template.memory_mb,
            tsc_khz: template.tsc_khz,
            slot: template.environment.as_ref().map_or(self.spec.slot.clone(), |environment| environment.slot()),
            ..self.spec.clone()
        }
    }

    /// What is known of the base template now, without waiting for it.
    pub(crate) fn status(&self) -> TemplateStatus {
        TemplateStatus { state: self.base.status(), key: Some(self.base.origin.key.to_string()) }
    }

    /// The same of those with packages, and of their VMs.
    pub(crate) fn environments(&self, pool: &Pool) -> Vec<EnvironmentStatus> {
        let sets = lock(&self.sets);
        let status = |(layer, known): (&Digest, &Arc<Known>)| {
            let (ready, calls) = pool.count(*layer);
            let environment_id = known.id.as_ref()?.to_string();
            let state = known.status();
            Some(EnvironmentStatus { environment_id, state, ready: ready as u64, calls: calls as u64 })
        };
        let mut all: Vec<_> = sets.iter().filter_map(status).collect();
        all.sort_by(|one, other| one.environment_id.cmp(&other.environment_id));
        all
    }

    async fn obtain<E: Into<TemplateError>>(
        &self,
        name: &str,
        origin: &Origin,
        environment: Option<&Arc<Environment>>,
        build: impl Future<Output = Result<build::Saved, E>>,
    ) -> Result<Template, TemplateError> {
        let template = self.load_or_make(name, origin, environment, build).await?;
        self.cache.offer(&id(name, origin));
        Ok(template)
    }

    async fn load_or_make<E: Into<TemplateError>>(
        &self,
        name: &str,
        origin: &Origin,
        environment: Option<&Arc<Environment>>,
        build: impl Future<Output = Result<build::Saved, E>>,
    ) -> Result<Template, TemplateError> {
        match self.load(name, origin, environment).await? {
            Ok(template) => return Ok(template),
            Err(Unusable::Missing) => {}
            Err(Unusable::Damaged(reason)) => tracing::warn!(name, reason, "a template is damaged and built anew"),
        }
        let lock = self.lock(name).await?;
        // The other may have built it.
        if let Ok(template) = self.load(name, origin, environment).await? {
            return Ok(template);
        }
        let lock = match self.fetch(lock, name, origin, environment).await? {
            Fetched::Entry(template, _lease) => return Ok(template),
            Fetched::Nothing(lock) => lock,
        };
        tracing::info!(name, "building a template, which takes some seconds");
        let saved = build.await.map_err(Into::into)?;
        let (shelf, owned) = (self.shelf.clone(), origin.clone());
        let published = in_background(move || {
            let place = shelf.begin(lock, owned.key)?;
            entry::write(place.made(), &saved, &owned)?;
            place.publish()
        });
        // In use until the template is, so that nobody makes room with it meanwhile.
        let _lease = published.await??;
        let template = self.load(name, origin, environment).await?.map_err(TemplateError::Damaged)?;
        if let Err(error) = self.make_room(name).await {
            tracing::warn!(%error, "no room was made in the cache");
        }
        Ok(template)
    }

    /// What another host has built.
    async fn fetch(
        &self,
        lock: Lock,
        name: &str,
        origin: &Origin,
        environment: Option<&Arc<Environment>>,
    ) -> Result<Fetched<Template>, TemplateError> {
        let (cache, wanted) = (self.cache.clone(), id(name, origin));
        let (origin, copies, environment) = (origin.clone(), self.copies, environment.cloned());
        let fetched = in_background(move || {
            let load = |folder: &Path| {
                entry::load(folder, &origin, copies, environment.clone()).map_err(|reason| reason.to_string())
            };
            cache.fetch(&wanted, lock, TIER_PATIENCE, load)
        });
        let fetched = fetched.await??;
        if matches!(fetched, Fetched::Entry(..))
            && let Err(error) = self.make_room(name).await
        {
            tracing::warn!(%error, "no room was made in the cache");
        }
        Ok(fetched)
    }

    /// Waits for the right to build; who does not want the template any more drops this.
    async fn lock(&self, name: &str) -> Result<Lock, TemplateError> {
        let mut waits = false;
        loop {
            let (shelf, owned) = (self.shelf.clone(), name.to_owned());
            if let Some(lock) = in_background(move || shelf.try_lock(&owned)).await?? {
                return Ok(lock);
            }
            if !waits {
                tracing::info!(name, "waiting for another server that builds the template");
                waits = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Removes what is not needed any more, now that there is one template more.
    async fn make_room(&self, name: &str) -> Result<(), TemplateError> {
        let (shelf, cache, name) = (self.shelf.clone(), self.cache.clone(), name.to_owned());
        in_background(move || {
            shelf.prune(&name, SystemTime::now());
            for removed in cache.make_room() {
                tracing::info!(entry = %removed.path.display(), "removed, to make room in the cache");
            }
        })
        .await
    }

    async fn load(
        &self,
        name: &str,
        origin: &Origin,
        environment: Option<&Arc<Environment>>,
    ) -> Result<Result<Template, Unusable>, TemplateError> {
        let folder = self.shelf.entry(name, origin.key);
        let (origin, copies, environment) = (origin.clone(), self.copies, environment.cloned());
        in_background(move || entry::load(&folder, &origin, copies, environment)).await
    }
}

impl Known {
    fn new(origin: Origin, id: Option<EnvironmentId>) -> Known {
        Known { origin, id, state: tokio::sync::Mutex::new(State::Unknown), last_used: Mutex::new(Instant::now()) }
    }
}

impl Known {
    /// Without waiting for who loads or builds it.
    fn status(&self) -> TemplateState {
        match self.state.try_lock().as_deref() {
            Ok(State::Loaded(_)) => TemplateState::Ready,
            Ok(State::Failed) => TemplateState::Failed,
            Ok(State::Unknown) | Err(_) => TemplateState::Preparing,
        }
    }
}

impl State {
    fn template(&self) -> Option<Arc<Template>> {
        match self {
            State::Loaded(template) => Some(template.clone()),
            State::Unknown | State::Failed => None,
        }
    }
}

impl From<Result<Template, TemplateError>> for State {
    fn from(obtained: Result<Template, TemplateError>) -> State {
        match obtained {
            Ok(template) => State::Loaded(Arc::new(template)),
            Err(error) => {
                tracing::warn!(%error, "no template: VMs boot, which takes longer");
                State::Failed
            }
        }
    }
}

fn id(name: &str, origin: &Origin) -> EntryId {
    EntryId { kind: Kind::Template, name: name.into(), key: origin.key }
}

fn inputs(qemu: &Qemu, spec: &LaunchSpec) -> TemplateInputs {
    // What makes a template and what uses it. The frequency is compared, not hashed: no two measurements of it agree.
    let spec_without = LaunchSpec { tsc_khz: 0, ..spec.clone() };
    let starts = [StartKind::BootIn, StartKind::Restore];
    let arguments = starts.iter().flat_map(|start| arguments_to(*start, &spec_without, qemu.version())).collect();
    let image = &spec.image;
    TemplateInputs {
        kernel_sha256: image.kernel_sha256,
        root_sha256: image.root_sha256,
        initrd_sha256: image.initrd_sha256,
        qemu: qemu.words().to_string(),
        accelerator: spec.accelerator,
        cpu: host_cpu(),
        arguments,
        rehearsals: rehearsal::sources().chain(derive::programs()).collect(),
        layer: None,
    }
}

fn origin(inputs: &TemplateInputs, spec: &LaunchSpec) -> Origin {
    Origin { key: inputs.key(), tsc_khz: spec.tsc_khz, accelerator: spec.accelerator, qemu: inputs.qemu.clone() }
}

/// Files are read and hashed where it does not hold up the runtime.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TemplateError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| TemplateError::Internal(error.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
