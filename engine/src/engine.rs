//! The engine: everything that a machine needs is checked once at its start; then it executes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_packages::GatewayConfig;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::image::BootImage;
use sandbox_schemas::install::InstallOutcome;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{LAYER_SLOT_BYTES, MEMORY_DEFAULT_MB, MEMORY_MIN_MB, VM_OVERHEAD_MB};
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::status::{
    CacheSize, ImageDigests, LimitsInForce, PoolStatus, TemplateState, TemplateStatus, VmCounts,
};
use sandbox_schemas::wire::{Hello, Stream};
use sandbox_store::CacheDir;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accelerate::{self, AcceleratorChoice};
use crate::admission::{Admission, Limits, Place};
use crate::environment::{Environment, Environments, InstallError, Installation, run_installer};
use crate::error::{ExecuteError, StartError, VmError};
use crate::host::Host;
use crate::pool::{Pool, Wish, layer_of};
use crate::qemu::{LaunchSpec, Qemu, Slot, Start, tsc_khz};
use crate::run::{OutputSink, Preparation, program, run};
use crate::stats::{Counted, Stats};
use crate::template::{REHEARSALS, Templates};
use crate::vm::{Booting, Program, Running, Waiting, hello};

/// What an engine is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// QEMU's binary; found in PATH and the usual places when `None`.
    pub qemu: Option<PathBuf>,
    /// Which accelerator may be used.
    pub accelerator: AcceleratorChoice,
    /// How much runs at once.
    pub limits: Limits,
    /// VMs that wait for a program, started in advance.
    pub warm_pool_size: usize,
    /// Whether VMs are restored from a template; else each boots.
    pub uses_templates: bool,
    /// What VMs boot.
    pub image: BootImage,
    /// Where templates, and verdicts on this machine, are kept.
    pub cache: CacheDir,
    /// Which packages may be installed, and where they come from.
    pub packages: GatewayConfig,
    /// Sets of packages that a VM waits with, from the start on.
    pub warm_sets: Vec<PackageSet>,
}

/// Packages that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageSet {
    /// Whose packages they are.
    pub language: Language,
    /// As `install_packages` takes them.
    pub packages: Vec<String>,
}

/// Runs programs, each in a VM of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Arc<Host>,
    cache: CacheDir,
    templates: Option<Templates>,
    environments: Arc<Environments>,
    stats: Stats,
    runs: TaskTracker,
    /// Cancelled when nothing more is to be prepared.
    closing: CancellationToken,
}

/// Memory of a VM that waits, in MiB: what most programs ask for.
const WAITING_MEMORY_MB: u64 = MEMORY_DEFAULT_MB + VM_OVERHEAD_MB;

/// How long a guest that was ready may take to lay a program out and say that it starts: milliseconds, if it is not hung.
/// What waits may be lost by a hang of the whole machine, and is not waited for as long.
const START_DEADLINE: Duration = Duration::from_secs(30);
const WAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How often a VM of the pool rehearses each language. Under TCG each time translates what the last one has not met, and that
/// is what the first run of a clone waits for.
const REHEARSED_TIMES: usize = 3;

/// How long the pool is not filled after that has failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a program waits for the template to be loaded or built, which takes 0.1 s or 5-10 s, before its VM boots.
const TEMPLATE_DEADLINE: Duration = Duration::from_secs(60);

/// A restored guest takes 0.1-0.2 s under TCG to do all that; one that is not there by then will not come.
const RESTORE_DEADLINE: Duration = Duration::from_secs(20);

impl Engine {
    /// Finds QEMU and decides on the accelerator. A template, and the pool, come after that, in the background.
    pub async fn start(config: EngineConfig) -> Result<Engine, StartError> {
        let measuring = tokio::task::spawn_blocking(tsc_khz);
        let qemu = Qemu::find(config.qemu.as_deref(), config.cache.root()).await?;
        let tsc_khz = measuring.await.map_err(|error| StartError::Internal { reason: error.to_string() })?;
        let no_slot = |error: std::io::Error| StartError::Internal { reason: format!("a disk in memory: {error}") };
        // Nothing is ever in it, so that it takes nothing.
        let slot = Arc::new(crate::template::ram::create(LAYER_SLOT_BYTES).map_err(no_slot)?.into());
        let boot = |accelerator| LaunchSpec {
            accelerator,
            memory_mb: MEMORY_MIN_MB + VM_OVERHEAD_MB,
            start: Start::Boot,
            tsc_khz,
            image: config.image.clone(),
            slot: Slot { file: Arc::clone(&slot), is_writable: false },
        };
        let accelerator = accelerate::decide(&qemu, config.accelerator, config.cache.root(), boot).await?;
        tracing::info!(qemu = %qemu.version(), %accelerator, "engine started");
        let spec = boot(accelerator);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let root_sha256 = spec.image.root_sha256;
        let environments = Environments::new(root_sha256, config.packages);
        let inner = Arc::new(Inner {
            templates: config.uses_templates.then(|| Templates::new(config.cache.clone(), &qemu, &spec)),
            cache: config.cache,
            environments: Arc::new(environments),
            host: Arc::new(Host {
                pool: Pool::new(if config.uses_templates { config.warm_pool_size } else { 0 }, cores),
                qemu,
                spec,
                admission: Admission::new(config.limits),
            }),
            stats: Stats::default(),
            runs: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        // What is half done when it is not wanted any more is dropped, and its VM with it.
        let closing = inner.closing.clone();
        let filling = fill(inner.clone());
        let warming = keep_warm(inner.clone(), config.warm_sets);
        let closing_too = closing.clone();
        inner.runs.spawn(async move { closing_too.run_until_cancelled(warming).await });
        inner.runs.spawn(async move { closing.run_until_cancelled(filling).await });
        Ok(Engine(inner))
    }

    /// What executes the guests.
    pub fn accelerator(&self) -> Accelerator {
        self.0.host.spec.accelerator
    }

    /// Makes the template that VMs are restored from, unless it is there. `false` when there is none to be had.
    pub async fn prepare(&self) -> bool {
        match &self.0.templates {
            Some(templates) => templates.base(&self.0.host.qemu).await.is_some(),
            None => false,
        }
    }

    /// How it is doing. Cheap enough to be asked every second.
    pub fn status(&self) -> PoolStatus {
        let Inner { host, cache, templates, stats, .. } = &*self.0;
        let Host { qemu, spec, admission, pool } = &**host;
        let (limits, count) = (admission.limits(), |counter: &AtomicU64| counter.load(Ordering::Relaxed));
        let off = TemplateStatus { state: TemplateState::Off, key: None };
        PoolStatus {
            accelerator: spec.accelerator,
            qemu: qemu.words().to_string(),
            image: ImageDigests {
                kernel: spec.image.kernel_sha256.to_string(),
                root: spec.image.root_sha256.to_string(),
                agent: spec.image.initrd_sha256.to_string(),
            },
            template: templates.as_ref().map_or(off, Templates::status),
            vms: VmCounts {
                ready: pool.len() as u64,
                restoring: count(&stats.restoring),
                running: count(&stats.running),
            },
            queued: admission.waiting() as u64,
            runs: stats.run_counts(),
            hit_rates: stats.run_counts().into(),
            restore_ms: stats.restores.percentiles(),
            run_ms: stats.runs.percentiles(),
            private_memory_mb: qemu.private_memory_bytes() as f64 / (1024.0 * 1024.0),
            cache: CacheSize { size_mb: cache.size_bytes() as f64 / 1e6, limit_mb: cache.limit_bytes() as f64 / 1e6 },
            tiers: cache.tier_status(),
            limits: LimitsInForce {
                max_concurrent_vms: limits.vms as u64,
                warm_pool_size: pool.size() as u64,
                memory_mb: limits.memory_mb,
                max_queued: limits.waiting as u64,
                queue_deadline_seconds: limits.wait.as_secs(),
            },
        }
    }

    /// Runs a program in a fresh VM. Whatever comes of it, its VM is being killed when this returns, and its place is free
    /// once the process is gone; [`Engine::shut_down`] waits for that. A cancel, or a drop, does the same at once.
    pub async fn execute(
        &self,
        request: ExecuteInput,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let _token = self.0.runs.token();
        request.validate()?;
        let accepted = Instant::now();
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ExecuteError::Cancelled),
            outcome = self.0.execute(accepted, request, sink) => outcome,
        };
        match &outcome {
            Ok(_) => self.0.stats.runs.add(accepted.elapsed()),
            Err(_) => drop(self.0.stats.failed.fetch_add(1, Ordering::Relaxed)),
        }
        outcome
    }

    /// Installs packages, and makes the template that has them. What is installed already is only looked up.
    pub async fn install(
        &self,
        set: &PackageSet,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<InstallOutcome, InstallError> {
        let _token = self.0.runs.token();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(InstallError::Cancelled),
            outcome = self.0.install(set, sink) => outcome,
        }
    }

    /// Runs a program as an installer: in a VM that boots for it, and has what `installation` gives it. What `install` is made of.
    pub async fn run_installer(
        &self,
        installation: Installation,
        request: ExecuteInput,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let _token = self.0.runs.token();
        request.validate()?;
        let host = &self.0.host;
        let run = async {
            let place = host.enter(request.memory_mb + VM_OVERHEAD_MB).await?;
            run_installer(host, installation, request, place, sink).await.map_err(before_run)
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ExecuteError::Cancelled),
            outcome = run => outcome,
        }
    }

    /// No program will come after those that run: VMs need not be kept for any.
    pub fn expect_no_more(&self) {
        self.0.closing.cancel();
        self.0.host.pool.close();
    }

    /// Waits until every run has ended and its VM is gone.
    pub async fn shut_down(&self) {
        self.expect_no_more();
        self.0.runs.close();
        self.0.runs.wait().await;
        self.0.host.qemu.wait_for_all().await;
    }
}

/// What a program needs of a VM.
struct Wanted {
    accepted: Instant,
    language: Language,
    environment: Option<Arc<Environment>>,
    memory_mb: u64,
    program: Program,
}

/// A program that has started.
struct Started {
    vm: Running,
    preparation: Preparation,
    /// What its VM takes beyond what it was admitted with.
    _more: Option<OwnedSemaphorePermit>,
}

impl Inner {
    async fn execute(
        &self,
        accepted: Instant,
        request: ExecuteInput,
        sink: &mut dyn OutputSink,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let environment = self.environment(&request, sink).await?;
        let _activity = self.host.pool.begin(request.language);
        let timeout = Duration::from_secs(request.timeout_seconds);
        let (language, memory_mb) = (request.language, request.memory_mb + VM_OVERHEAD_MB);
        let program = program(request).map_err(before_run)?;
        let wanted = Wanted { accepted, language, environment, memory_mb, program };
        let started = match self.wake(&wanted).await {
            Some(started) => started,
            None => match self.restore(&wanted).await? {
                Some(started) => started,
                None => self.boot(&wanted).await?,
            },
        };
        drop(wanted);
        let origin = match started.preparation {
            Preparation { warm_pool_hit: true, .. } => &self.stats.from_pool,
            Preparation { template_hit: true, .. } => &self.stats.from_template,
            _ => &self.stats.booted,
        };
        origin.fetch_add(1, Ordering::Relaxed);
        let _running = Counted::new(&self.stats.running);
        let ended = run(started.vm, timeout, started.preparation, sink).await;
        ended.map_err(|error| ExecuteError::OutcomeUnknown { reason: error.to_string() })
    }

    async fn install(&self, set: &PackageSet, sink: &mut dyn OutputSink) -> Result<InstallOutcome, InstallError> {
        let accepted = Instant::now();
        let PackageSet { language, packages } = set;
        let obtained = self.environments.obtain(&self.host, &self.runs, *language, packages, sink).await?;
        let installed = Instant::now();
        let environment = &obtained.environment;
        let has_template = match &self.templates {
            Some(templates) => templates.of(&self.host.qemu, Some(environment)).await.is_some(),
            None => false,
        };
        self.host.pool.keep(environment, false);
        Ok(obtained.outcome(has_template, accepted, installed))
    }

    /// The packages that a program asks for.
    async fn environment(
        &self,
        request: &ExecuteInput,
        sink: &mut dyn OutputSink,
    ) -> Result<Option<Arc<Environment>>, InstallError> {
        let environment = if let Some(id) = &request.environment_id {
            let id = id.parse().map_err(|_| InstallError::Unknown { id: id.clone() })?;
            self.environments.find(id).await?
        } else if request.packages.is_empty() {
            return Ok(None);
        } else {
            let (language, packages) = (request.language, &request.packages);
            self.environments.obtain(&self.host, &self.runs, language, packages, sink).await?.environment
        };
        self.host.pool.keep(&environment, false);
        Ok(Some(environment))
    }

    /// In a VM of the pool; `None` when there is none that serves.
    async fn wake(&self, wanted: &Wanted) -> Option<Started> {
        let more = match wanted.memory_mb.saturating_sub(WAITING_MEMORY_MB) {
            0 => None,
            more_mb => Some(self.host.admission.try_grow(more_mb)?),
        };
        let vm = self.host.pool.take(layer_of(wanted.environment.as_ref()))?;
        let handed_over = Instant::now();
        match vm.start(&wanted.program, WAKE_DEADLINE).await {
            Ok(vm) => {
                let connect = vm.started - handed_over;
                let preparation = Preparation { connect, warm_pool_hit: true, ..self.preparation(wanted, true) };
                Some(Started { vm, preparation, _more: more })
            }
            Err(error) => {
                tracing::warn!(%error, "a VM of the pool did not start its program; another one will");
                None
            }
        }
    }

    /// In a clone of the template; `None` when there is none, or it does not serve.
    async fn restore(&self, wanted: &Wanted) -> Result<Option<Started>, ExecuteError> {
        let Some(templates) = &self.templates else { return Ok(None) };
        // Another server may be building it, and be stopped for good.
        let Ok(template) = tokio::time::timeout(TEMPLATE_DEADLINE, templates.of(&self.host.qemu, wanted.environment.as_ref())).await else {
            tracing::warn!("the template was not there within {TEMPLATE_DEADLINE:?}; the VM boots");
            return Ok(None);
        };
        let Some(template) = template else { return Ok(None) };
        let place = self.host.enter(wanted.memory_mb).await?;
        let _restoring = Counted::new(&self.stats.restoring);
        let launched = Instant::now();
        let started = async {
            let vm = Booting::launch(&self.host.qemu, &templates.clone_of(&template), hello(Vec::new())?, place).await?;
            // The program lies there when the guest wakes.
            vm.start(&wanted.program, RESTORE_DEADLINE).await
        };
        match started.await {
            Ok(vm) => {
                template.note_success();
                self.stats.restores.add(vm.ready - launched);
                Ok(Some(Started { preparation: self.timed(wanted, launched, &vm, true), vm, _more: None }))
            }
            Err(error) => {
                tracing::warn!(%error, "a clone of the template did not start its program; a VM that boots will");
                templates.note_failure(&template).await;
                Ok(None)
            }
        }
    }

    /// In a VM that boots.
    async fn boot(&self, wanted: &Wanted) -> Result<Started, ExecuteError> {
        let place = self.host.enter(wanted.memory_mb).await?;
        let _restoring = Counted::new(&self.stats.restoring);
        let launched = Instant::now();
        // No larger than it must be: it bounds the VM on the host too.
        let mut spec = LaunchSpec { memory_mb: wanted.memory_mb, ..self.host.spec.clone() };
        if let Some(environment) = &wanted.environment {
            spec.slot = environment.slot();
        }
        let deadline = boot_deadline(self.host.spec.accelerator);
        let started = async {
            let hello = Hello { has_packages: wanted.environment.is_some(), ..hello(vec![wanted.language])? };
            let vm = Booting::launch(&self.host.qemu, &spec, hello, place).await?.ready(deadline).await?;
            // Its clock was set before it had booted.
            vm.into_waiting().start(&wanted.program, START_DEADLINE).await
        };
        let vm = started.await.map_err(before_run)?;
        Ok(Started { preparation: self.timed(wanted, launched, &vm, false), vm, _more: None })
    }

    /// A VM for the pool, as far as it can be had without anybody waiting for it.
    async fn make_waiting(&self, wish: &Wish) -> Result<Option<Waiting>, VmError> {
        let Some(templates) = &self.templates else { return Ok(None) };
        let Some(template) = templates.of(&self.host.qemu, wish.environment.as_ref()).await else { return Ok(None) };
        let Some(place) = self.host.admission.try_enter(WAITING_MEMORY_MB) else { return Ok(None) };
        let _restoring = Counted::new(&self.stats.restoring);
        match self.rehearsed(&templates.clone_of(&template), &wish.languages, place).await {
            Ok(vm) => {
                template.note_success();
                Ok(Some(vm))
            }
            Err(error) => {
                templates.note_failure(&template).await;
                Err(error)
            }
        }
    }

    /// A clone that has rehearsed these languages.
    async fn rehearsed(
        &self,
        spec: &LaunchSpec,
        languages: &[Language],
        place: Place,
    ) -> Result<Waiting, VmError> {
        let vm = Booting::launch(&self.host.qemu, spec, hello(Vec::new())?, place).await?;
        let mut vm = vm.ready(RESTORE_DEADLINE).await?;
        for round in 1..=REHEARSED_TIMES {
            for rehearsal in REHEARSALS.iter().filter(|rehearsal| languages.contains(&rehearsal.language)) {
                vm = vm.rehearse(&rehearsal.program(round)?, RESTORE_DEADLINE).await?;
            }
        }
        Ok(vm.into_waiting())
    }

    fn timed(&self, wanted: &Wanted, launched: Instant, vm: &Running, template_hit: bool) -> Preparation {
        Preparation {
            setup: launched - wanted.accepted,
            boot: vm.ready - launched,
            connect: vm.started - vm.ready,
            ..self.preparation(wanted, template_hit)
        }
    }

    fn preparation(&self, wanted: &Wanted, template_hit: bool) -> Preparation {
        Preparation {
            accepted: wanted.accepted,
            setup: Duration::ZERO,
            boot: Duration::ZERO,
            connect: Duration::ZERO,
            accelerator: self.host.spec.accelerator,
            warm_pool_hit: false,
            template_hit,
        }
    }
}

fn before_run(error: VmError) -> ExecuteError {
    ExecuteError::FailedBeforeRun { reason: error.to_string() }
}

/// Keeps the pool full until it is closed.
async fn fill(engine: Arc<Inner>) {
    while let Some(wish) = engine.host.pool.wish().await {
        let made = tokio::select! {
            made = engine.make_waiting(&wish) => made,
            // What is half done is dropped, and its VM with it.
            () = engine.host.pool.is_disturbed() => continue,
        };
        match made {
            Ok(Some(vm)) => engine.host.pool.put(&wish, vm),
            // No template, or no room: what runs comes first.
            Ok(None) => tokio::time::sleep(RETRY_AFTER).await,
            Err(error) => {
                tracing::warn!(%error, "a VM for the pool did not come up");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Has a VM wait with each of these sets.
async fn keep_warm(engine: Arc<Inner>, sets: Vec<PackageSet>) {
    for PackageSet { language, packages } in sets {
        let obtained = engine.environments.obtain(&engine.host, &engine.runs, language, &packages, &mut Unheard).await;
        match obtained {
            Ok(obtained) => engine.host.pool.keep(&obtained.environment, true),
            Err(error) => tracing::warn!(%error, ?packages, "a set that shall be warm cannot be had"),
        }
    }
}

/// Nobody listens.
struct Unheard;

impl OutputSink for Unheard {
    fn output(&mut self, _: Stream, _: &str) {}
}

/// A boot takes 3-6 s under TCG on two idle cores, well under 1 s on hardware; a machine that is busy with other things
/// must not make it fail.
pub(crate) fn boot_deadline(accelerator: Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_secs(20),
        Accelerator::Tcg => Duration::from_secs(120),
    }
}
