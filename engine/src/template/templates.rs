//! The templates of an engine: each is loaded, or made, once, by a task of its own; all who want it wait for the same.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_schemas::environment::Omitted;
use sandbox_schemas::image::Digest;
use sandbox_schemas::limits::{MEMORY_MAX_MB, VM_OVERHEAD_MB};
use sandbox_schemas::status::{EnvironmentStatus, TemplateStatus};
use sandbox_store::CacheDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::Environment;
use crate::error::VmError;
use crate::host::Host;
use crate::pool::layer_of;
use crate::qemu::{LaunchSpec, OPENS_RAM_READ_ONLY, Qemu, StartKind, arguments_to};
use crate::template::Template;
use crate::template::build::{self, Built};
use crate::template::derive::{self, Derived, IMPORT_MEMORY_MB, Imported};
use crate::template::key::{TemplateInputs, host_cpu, host_kvm};
use crate::template::known::{Known, Look, Maker, Making, Waited};
use crate::template::rehearsal;
use crate::template::saved::Origin;
use crate::template::standing::Consequence;
use crate::template::supply::{Supply, TemplateError, Wanted};

/// The name of the template that has all languages and no packages.
const BASE: &str = "base";

/// Memory of a clone, in MiB. What a program may use of it is set for each run; what is never touched costs nothing.
const MEMORY_MB: u64 = MEMORY_MAX_MB + VM_OVERHEAD_MB;

/// What the making of an environment's template may take, in MiB: a VM that imports, and after it another one whose translated code is saved in
/// memory.
const DERIVING_MB: u64 = IMPORT_MEMORY_MB + VM_OVERHEAD_MB + SAVED_CODE_MB;

/// Translated code comes to 130 MiB, and what it is found by to some more.
const SAVED_CODE_MB: u64 = 256;

/// Templates of environments that stay loaded. A QEMU that must not have the file gets a copy of 150-400 MB in memory, which is made
/// anew in 0.1-0.2 s.
const ENVIRONMENTS_LOADED_MAX: usize = 4;

/// What an engine knows of its templates.
#[derive(Debug)]
pub(crate) struct Templates {
    host: Arc<Host>,
    supply: Supply,
    spec: LaunchSpec,
    inputs: TemplateInputs,
    base: Arc<Known>,
    /// By the key of the packages' layer.
    environments: Mutex<HashMap<Digest, Arc<Known>>>,
    /// Held by the one environment whose template is made.
    deriving: Semaphore,
    /// What makes templates, and ends with the engine alone.
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Templates {
    /// Templates in a folder of `cache`, of VMs like the host's.
    pub(crate) fn new(cache: CacheDir, host: Arc<Host>) -> Templates {
        let spec = LaunchSpec { memory_mb: MEMORY_MB, ..host.spec.clone() };
        let inputs = inputs(&host.qemu, &spec);
        let copies = host.qemu.version() < OPENS_RAM_READ_ONLY || !host.qemu.isolation().is_another_user();
        Templates {
            supply: Supply::new(cache, copies),
            base: Arc::new(Known::new(BASE.into(), origin(&inputs, &spec), None)),
            environments: Mutex::default(),
            host,
            spec,
            inputs,
            deriving: Semaphore::new(1),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        }
    }

    /// The template of an environment, or the base for none; `None` when there is none to be had, for now. Not waited for any longer
    /// than until `patience` after its making has begun.
    pub(crate) async fn of(
        self: &Arc<Self>,
        environment: Option<&Arc<Environment>>,
        patience: Duration,
    ) -> Option<Arc<Template>> {
        let making = match self.look(environment) {
            Ok(settled) => return settled,
            Err(making) => making,
        };
        match making.wait(patience).await {
            Waited::Done(template) => template,
            Waited::InVain => {
                tracing::warn!("a template was not there within {patience:?}; VMs boot until it is");
                None
            }
        }
    }

    /// The same if it is there now. If not, it is being made.
    pub(crate) fn at_hand(self: &Arc<Self>, environment: Option<&Arc<Environment>>) -> Option<Arc<Template>> {
        self.look(environment).ok().flatten()
    }

    fn look(self: &Arc<Self>, environment: Option<&Arc<Environment>>) -> Result<Option<Arc<Template>>, Making> {
        let known = environment.map_or_else(|| self.base.clone(), |environment| self.known(environment));
        match known.look() {
            Look::There(template) => Ok(Some(template)),
            Look::Resting => Ok(None),
            Look::Making(making) => Err(making),
            Look::ToBeMade(maker, making) => {
                let (this, environment) = (self.clone(), environment.cloned());
                let ending = self.ending.clone();
                self.tasks.spawn(async move { ending.run_until_cancelled(this.make(maker, environment)).await });
                Err(making)
            }
        }
    }

    /// What is known of the template of an environment. What was not used for longest is forgotten for it, if it is one too many.
    fn known(&self, environment: &Arc<Environment>) -> Arc<Known> {
        let mut environments = lock(&self.environments);
        if let Some(known) = environments.get(&environment.key) {
            return known.clone();
        }
        let inputs = TemplateInputs { layer: Some(environment.image_sha256), ..self.inputs.clone() };
        let (name, id) = (environment.id.to_string(), Some(environment.id.clone()));
        let known = Arc::new(Known::new(name, origin(&inputs, &self.spec), id));
        while environments.len() >= ENVIRONMENTS_LOADED_MAX {
            let Some(oldest) = environments.iter().min_by_key(|(_, known)| known.last_used()).map(|(key, _)| *key)
            else {
                break;
            };
            environments.remove(&oldest);
        }
        environments.insert(environment.key, known.clone());
        known
    }

    /// Loads the template, or builds it. What comes of it is told to all who wait.
    async fn make(self: Arc<Self>, maker: Maker, environment: Option<Arc<Environment>>) {
        let known = maker.known().clone();
        let wanted = Wanted {
            name: known.name.clone(),
            origin: known.origin.clone(),
            environment: environment.clone(),
            distrusted: known.distrusted(),
        };
        let build = Box::pin(self.build(environment.as_ref()));
        let made = self.supply.obtain(&self.host.qemu, &wanted, build).await;
        match maker.finish(made.map_err(|error| error.to_string())) {
            Ok(()) => self.host.pool.call_up(layer_of(environment.as_ref())),
            Err((reason, rest)) => {
                let name = known.name.as_str();
                tracing::warn!(
                    name,
                    reason,
                    "no template: VMs boot, which takes longer; it is tried again in {rest:?}"
                );
            }
        }
    }

    async fn build(self: &Arc<Self>, environment: Option<&Arc<Environment>>) -> Result<Built, TemplateError> {
        let Some(environment) = environment else { return Ok(build::build(&self.host.qemu, &self.spec).await?) };
        if let Some(part) = self.imported_part_of(environment) {
            match self.derive(Some(part), environment).await? {
                Derived::Built(built) => return Ok(*built),
                Derived::Stale(names) => {
                    let (environment, part) = (environment.id.to_string(), part.id.to_string());
                    tracing::info!(
                        environment,
                        part,
                        ?names,
                        "what was added had been looked for in vain: all is imported anew"
                    );
                }
            }
        }
        match self.derive(None, environment).await? {
            Derived::Built(built) => Ok(*built),
            Derived::Stale(names) => {
                Err(TemplateError::Internal(format!("nothing is imported, and {names:?} are missed")))
            }
        }
    }

    /// What the environment was added to, or what that was added to: the nearest that has a template. For the last of them one is made,
    /// which environments that grow in another way begin with as well.
    fn imported_part_of<'e>(&self, environment: &'e Environment) -> Option<&'e Arc<Environment>> {
        let parts = std::iter::successors(environment.parent.as_ref(), |part| part.parent.as_ref());
        let has_template = |part: &&Arc<Environment>| {
            let known = self.known(part);
            known.template().is_some() || self.supply.seems_to_have(&known.name, known.origin.key)
        };
        parts.clone().find(has_template).or_else(|| parts.last())
    }

    /// Makes the template of an environment of that of a part of it, or of the base.
    async fn derive(
        self: &Arc<Self>,
        part: Option<&Arc<Environment>>,
        environment: &Environment,
    ) -> Result<Derived, TemplateError> {
        let base = Box::pin(self.of(part, Duration::MAX)).await.ok_or(TemplateError::NoBase)?;
        // Two at once would only be slower.
        let _turn = self.deriving.acquire().await.map_err(|error| TemplateError::Internal(error.to_string()))?;
        let place = self.host.enter(DERIVING_MB).await.map_err(|error| TemplateError::NoRoom(error.to_string()))?;
        let imported = part.map(|part| Imported { environment: part, left_out: &base.left_out });
        let (qemu, spec) = (&self.host.qemu, self.clone_of(&base));
        Ok(derive::derive(qemu, &spec, imported, environment, Arc::new(place)).await?)
    }

    /// The packages of an environment that a VM restored from its template has not imported.
    pub(crate) fn left_out(&self, environment: &Environment) -> Vec<Omitted> {
        let known = lock(&self.environments).get(&environment.key).cloned();
        known.and_then(|known| known.template()).map_or(Vec::new(), |template| template.left_out.clone())
    }

    /// A clone came up.
    pub(crate) fn came_up(&self, template: &Template) {
        if let Some(known) = self.known_of(template) {
            known.came_up();
        }
    }

    /// A clone did not come up: by its template's fault, or by what the host did.
    pub(crate) fn did_not_come_up(self: &Arc<Self>, template: &Arc<Template>, error: &VmError) {
        let Some(known) = self.known_of(template) else { return };
        let name = known.name.as_str();
        match known.did_not_come_up(template, error.fault(), error.to_string()) {
            Consequence::Keep => {}
            Consequence::Replace => {
                tracing::warn!(name, %error, "VMs restored from a template do not come up: it is removed, and made anew");
                // Begun now, so that the next call has less to wait for.
                drop(self.at_hand(template.environment.as_ref()));
            }
            Consequence::Rest(rest) => tracing::warn!(
                name,
                %error,
                "VMs restored from a template that was made anew do not come up either: VMs boot, which takes longer; it is tried \
                 again in {rest:?}"
            ),
        }
    }

    fn known_of(&self, template: &Template) -> Option<Arc<Known>> {
        match &template.environment {
            None => Some(self.base.clone()),
            Some(environment) => lock(&self.environments).get(&environment.key).cloned(),
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
        self.base.status()
    }

    /// The same of those with packages, and of their VMs.
    pub(crate) fn environments(&self) -> Vec<EnvironmentStatus> {
        let environments = lock(&self.environments);
        let status = |(layer, known): (&Digest, &Arc<Known>)| {
            let (ready, calls) = self.host.pool.count(*layer);
            let environment_id = known.id.as_ref()?.to_string();
            let TemplateStatus { state, last_error, retry_in_seconds, .. } = known.status();
            let (ready, calls) = (ready as u64, calls as u64);
            Some(EnvironmentStatus { environment_id, state, last_error, retry_in_seconds, ready, calls })
        };
        let mut all: Vec<_> = environments.iter().filter_map(status).collect();
        all.sort_by(|one, other| one.environment_id.cmp(&other.environment_id));
        all
    }

    /// Ends what is being made, and waits for that.
    pub(crate) async fn shut_down(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
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
        kvm: host_kvm(spec.accelerator, Path::new("/")),
        arguments,
        rehearsals: rehearsal::sources().chain(derive::programs()).collect(),
        layer: None,
    }
}

fn origin(inputs: &TemplateInputs, spec: &LaunchSpec) -> Origin {
    Origin { key: inputs.key(), tsc_khz: spec.tsc_khz, accelerator: spec.accelerator, qemu: inputs.qemu.clone() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
