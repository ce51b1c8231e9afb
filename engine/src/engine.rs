//! The engine: everything that a machine needs is checked once at its start; then it executes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandbox_packages::GatewayConfig;
use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::background::{InputSent, RunReport, RunStarted};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::files::{ListInput, ListOutcome, ListedFile, ReadInput, ReadOutcome, WriteOutcome};
use sandbox_schemas::image::BootImage;
use sandbox_schemas::install::InstallOutcome;
use sandbox_schemas::limits::{FILE_INLINE_MAX_BYTES, FILE_MAX_BYTES, MEMORY_MIN_MB, TOLD_FILES_MAX, VM_OVERHEAD_MB};
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::session::{CloseOutcome, OpenInput, OpenOutcome};
use sandbox_schemas::status::{
    CacheSize, ImageDigests, LimitsInForce, PoolStatus, TemplateState, TemplateStatus, VmCounts,
};
use sandbox_schemas::wire::{Entry, Stream};
use sandbox_store::CacheDir;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accelerate::{self, AcceleratorChoice};
use crate::acquire::Vms;
use crate::admission::{Admission, Limits};
use crate::environment::{Environments, InstallError, Installation, run_installer};
use crate::error::{ExecuteError, StartError};
use crate::host::Host;
use crate::pool::Pool;
use crate::qemu::{Code, LaunchSpec, Qemu, Slot, Start, confinement, tell, tsc_khz};
use crate::request::{FileSource, Request};
use crate::run::{OutputSink, Unheard};
use crate::service::{PackageSet, Service};
use crate::session::{Backgrounds, Ended, Sessions, contents_of_part, is_picture};
use crate::stats::Stats;
use crate::template::Templates;

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

/// Runs programs, each in a VM of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Service>);

impl Engine {
    /// Finds QEMU and decides on the accelerator. A template, and the pool, come after that, in the background.
    pub async fn start(config: EngineConfig) -> Result<Engine, StartError> {
        let measuring = tokio::task::spawn_blocking(tsc_khz);
        let qemu = Qemu::find(config.qemu.as_deref(), config.cache.root()).await?;
        let tsc_khz = measuring.await.map_err(|error| StartError::Internal { reason: error.to_string() })?;
        let boot = |accelerator| LaunchSpec {
            accelerator,
            memory_mb: MEMORY_MIN_MB + VM_OVERHEAD_MB,
            start: Start::Boot,
            tsc_khz,
            image: config.image.clone(),
            slot: Slot::default(),
            code: Code::default(),
        };
        let accelerator = accelerate::decide(&qemu, config.accelerator, config.cache.root(), boot).await?;
        tracing::info!(qemu = qemu.words(), path = %qemu.path().display(), %accelerator, "engine started");
        let facts = &qemu.isolation().facts;
        let confinement = confinement(qemu.path(), facts);
        tell(qemu.path(), &confinement, facts);
        let spec = boot(accelerator);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let root_sha256 = spec.image.root_sha256;
        let environments = Environments::new(root_sha256, config.packages);
        let host = Arc::new(Host {
            pool: Pool::new(if config.uses_templates { config.warm_pool_size } else { 0 }, cores),
            qemu,
            confinement,
            spec,
            admission: Admission::new(config.limits),
        });
        let templates = || Arc::new(Templates::new(config.cache.clone(), host.clone()));
        let inner = Arc::new(Service {
            vms: Vms {
                templates: config.uses_templates.then(templates),
                cache: config.cache,
                host,
                stats: Stats::default(),
            },
            environments: Arc::new(environments),
            sessions: Sessions::new(config.limits.sessions),
            backgrounds: Backgrounds::default(),
            runs: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        // What is half done when it is not wanted any more is dropped, and its VM with it.
        let (closing, filled, warmed) = (inner.closing.clone(), inner.clone(), inner.clone());
        let preparing = async move { tokio::join!(filled.vms.fill_pool(), keep_warm(warmed, config.warm_sets)) };
        inner.runs.spawn(async move { closing.run_until_cancelled(preparing).await });
        Ok(Engine(inner))
    }

    /// What executes the guests.
    pub fn accelerator(&self) -> Accelerator {
        self.0.vms.host.spec.accelerator
    }

    /// Makes the template that VMs are restored from, unless it is there. `false` when there is none to be had.
    pub async fn prepare(&self) -> bool {
        match &self.0.vms.templates {
            Some(templates) => templates.of(None, Duration::MAX).await.is_some(),
            None => false,
        }
    }

    /// How it is doing. Cheap enough to be asked every second.
    pub fn status(&self) -> PoolStatus {
        let Vms { host, cache, templates, stats } = &self.0.vms;
        let Host { qemu, confinement, spec, admission, pool } = &**host;
        let (limits, count) = (admission.limits(), |counter: &AtomicU64| counter.load(Ordering::Relaxed));
        let off = TemplateStatus { state: TemplateState::Off, key: None, last_error: None, retry_in_seconds: None };
        PoolStatus {
            accelerator: spec.accelerator,
            qemu: qemu.words().to_string(),
            confinement: confinement.clone(),
            image: ImageDigests {
                kernel: spec.image.kernel_sha256.to_string(),
                root: spec.image.root_sha256.to_string(),
                agent: spec.image.initrd_sha256.to_string(),
            },
            template: templates.as_ref().map_or(off, |templates| templates.status()),
            environments: templates.as_ref().map_or(Vec::new(), |templates| templates.environments()),
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
            sessions: self.0.sessions.status(),
            limits: LimitsInForce {
                max_concurrent_vms: limits.vms as u64,
                warm_pool_size: pool.size() as u64,
                memory_mb: limits.memory_mb,
                max_queued: limits.waiting as u64,
                queue_deadline_seconds: limits.wait.as_secs(),
                max_sessions: self.0.sessions.most() as u64,
            },
        }
    }

    /// Runs a program in a fresh VM. Whatever comes of it, its VM is being killed when this returns, and its place is free
    /// once the process is gone; [`Engine::shut_down`] waits for that. A cancel, or a drop, does the same at once.
    pub async fn execute(
        &self,
        request: impl Into<Request>,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let _token = self.0.runs.token();
        let request = request.into();
        request.input.validate()?;
        let accepted = Instant::now();
        let outcome = unless(&cancel, self.0.execute(accepted, request, sink), ExecuteError::Cancelled).await;
        match &outcome {
            Ok(_) => self.0.vms.stats.runs.add(accepted.elapsed()),
            Err(_) => drop(self.0.vms.stats.failed.fetch_add(1, Ordering::Relaxed)),
        }
        outcome
    }

    /// Opens a session: a VM that stays for several programs. It ends when it is closed, when nobody uses it, and with the engine.
    pub async fn open_session(
        &self,
        request: OpenInput,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<OpenOutcome, ExecuteError> {
        let _token = self.0.runs.token();
        request.validate()?;
        let accepted = Instant::now();
        let opened = async {
            let session = self.0.open_session(accepted, &request, sink).await?;
            Ok(OpenOutcome {
                session_id: session.id.to_string(),
                memory_mb: request.memory_mb(),
                idle_timeout_seconds: request.idle_timeout_seconds(),
                total_ms: accepted.elapsed().as_micros() as f64 / 1000.0,
                warm_pool_hit: session.preparation.warm_pool_hit,
                template_hit: session.preparation.template_hit,
            })
        };
        unless(&cancel, opened, ExecuteError::Cancelled).await
    }

    /// Ends a session and all that runs in it.
    pub async fn close_session(&self, id: &str) -> Result<CloseOutcome, ExecuteError> {
        let session = self.0.sessions.find(id)?;
        let (runs, ended_runs) = session.runs();
        session.close(Ended::Closed).await;
        Ok(CloseOutcome { runs, ended_runs })
    }

    /// Puts a file into a session. It appears when it is whole.
    pub async fn write_file(
        &self,
        session: &str,
        file: FileSource,
        cancel: CancellationToken,
    ) -> Result<WriteOutcome, ExecuteError> {
        let session = self.0.sessions.find(session)?;
        let size_bytes = unless(&cancel, session.store(file), ExecuteError::Cancelled).await?;
        Ok(WriteOutcome { size_bytes })
    }

    /// Takes a file out of a session, or a part of it, to where bytes can be written; how much there is of it.
    pub async fn fetch_file(
        &self,
        request: &ReadInput,
        to: impl AsyncWrite + Unpin,
        cancel: CancellationToken,
    ) -> Result<ReadOutcome, ExecuteError> {
        let (offset, length) = (request.offset.unwrap_or(0), request.length.unwrap_or(u64::MAX));
        let session = self.0.sessions.find(&request.session_id)?;
        let fetching = session.fetch(request.path.clone(), offset, length, to);
        let size_bytes = unless(&cancel, fetching, ExecuteError::Cancelled).await?;
        let next = size_bytes.min(offset.saturating_add(length.min(FILE_MAX_BYTES)));
        Ok(ReadOutcome { size_bytes, next, ..ReadOutcome::default() })
    }

    /// Reads a file of a session, or a part of it.
    pub async fn read_file(&self, request: &ReadInput, cancel: CancellationToken) -> Result<ReadOutcome, ExecuteError> {
        let (offset, length, mut bytes) = (request.offset.unwrap_or(0), request.length(), Vec::new());
        let session = self.0.sessions.find(&request.session_id)?;
        let fetching = session.fetch(request.path.clone(), offset, length, &mut bytes);
        let mut size_bytes = unless(&cancel, fetching, ExecuteError::Cancelled).await?;
        if request.length.is_none() && offset == 0 && size_bytes > length && is_picture(&bytes) {
            // A part of one is of no use to anybody.
            bytes.clear();
            let path = request.path.clone();
            let fetching = session.fetch(path, 0, FILE_INLINE_MAX_BYTES as u64, &mut bytes);
            size_bytes = unless(&cancel, fetching, ExecuteError::Cancelled).await?;
        }
        Ok(contents_of_part(bytes, offset, size_bytes))
    }

    /// What is in a folder of a session.
    pub async fn list_files(
        &self,
        request: &ListInput,
        cancel: CancellationToken,
    ) -> Result<ListOutcome, ExecuteError> {
        let path = request.path.clone().unwrap_or_else(|| ".".into());
        let session = self.0.sessions.find(&request.session_id)?;
        let listing = session.list(path, request.recursive);
        let (mut entries, is_cut) = unless(&cancel, listing, ExecuteError::Cancelled).await?;
        let truncated = is_cut || entries.len() > TOLD_FILES_MAX;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        entries.truncate(TOLD_FILES_MAX);
        let told =
            |Entry { name, kind, size }: Entry| ListedFile { path: name, kind: kind.name().into(), size_bytes: size };
        Ok(ListOutcome { files: entries.into_iter().map(told).collect(), truncated })
    }

    /// Starts a program that runs on in the background, in its session or in a VM of its own. What it is named by.
    pub async fn execute_in_background(
        &self,
        request: impl Into<Request>,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<RunStarted, ExecuteError> {
        let _token = self.0.runs.token();
        let request = request.into();
        request.input.validate()?;
        unless(&cancel, self.0.execute_in_background(request, sink), ExecuteError::Cancelled).await
    }

    /// What has become of a program in the background, with up to `most` bytes of its output. Waits for news, if there are none.
    pub async fn background_run(
        &self,
        id: &str,
        since: Option<u64>,
        most: usize,
        wait: Duration,
    ) -> Result<RunReport, ExecuteError> {
        Ok(self.0.backgrounds.find(id)?.report(since, most, wait).await)
    }

    /// Writes to the standard input of a program in the background.
    pub fn send_input(&self, id: &str, text: &str, is_last: bool) -> Result<InputSent, ExecuteError> {
        self.0.backgrounds.find(id)?.send_input(text, is_last)
    }

    /// Keeps the output of a program that has ended for some minutes, as that of one in the background. What it is named by.
    pub fn keep_output(&self, outcome: &ExecuteOutcome) -> Result<String, ExecuteError> {
        self.0.backgrounds.keep(outcome)
    }

    /// Keeps what a program of a session has written in a file there, as one of the last few; its path.
    pub async fn keep_output_in(&self, session: &str, stream: Stream, text: &str) -> Result<String, ExecuteError> {
        self.0.sessions.find(session)?.keep_output(stream, text).await
    }

    /// Ends a program in the background.
    pub async fn stop_run(&self, id: &str, most: usize) -> Result<RunReport, ExecuteError> {
        Ok(self.0.backgrounds.find(id)?.stop(most).await)
    }

    /// Installs packages, and makes the template that has them. What is installed already is only looked up.
    pub async fn install(
        &self,
        set: &PackageSet,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<InstallOutcome, InstallError> {
        let _token = self.0.runs.token();
        unless(&cancel, self.0.install(set, sink), InstallError::Cancelled).await
    }

    /// The same in an open session, whose interpreters go on and have the packages then. No template is made.
    pub async fn install_into(
        &self,
        session: &str,
        set: &PackageSet,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<InstallOutcome, ExecuteError> {
        let _token = self.0.runs.token();
        unless(&cancel, self.0.install_into(session, set, sink), ExecuteError::Cancelled).await
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
        let host = &self.0.vms.host;
        let run = async {
            let place = host.enter(request.memory_mb + VM_OVERHEAD_MB).await?;
            run_installer(host, installation, request, place, sink).await.map_err(ExecuteError::before_run)
        };
        unless(&cancel, run, ExecuteError::Cancelled).await
    }

    /// No program will come after those that run: VMs need not be kept for any.
    pub fn expect_no_more(&self) {
        self.0.closing.cancel();
        self.0.environments.end();
        self.0.vms.host.pool.close();
    }

    /// Waits until every run has ended and its VM is gone.
    pub async fn shut_down(&self) {
        self.expect_no_more();
        self.0.sessions.end_all();
        self.0.runs.close();
        self.0.runs.wait().await;
        // What nobody waits for any more.
        if let Some(templates) = &self.0.vms.templates {
            templates.shut_down().await;
        }
        self.0.vms.host.qemu.wait_for_all().await;
    }
}

/// What comes of some work, unless it is cancelled first; then it is dropped at once, and its VM with it.
async fn unless<T, E>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
    cancelled: E,
) -> Result<T, E> {
    cancel.run_until_cancelled(work).await.unwrap_or(Err(cancelled))
}

/// Has a VM wait with each of these sets.
async fn keep_warm(engine: Arc<Service>, sets: Vec<PackageSet>) {
    for PackageSet { language, packages } in sets {
        let obtained =
            engine.environments.obtain(&engine.vms.host, &engine.runs, language, &packages, &mut Unheard).await;
        match obtained {
            Ok(obtained) => engine.vms.host.pool.keep(&obtained.environment, true),
            Err(error) => tracing::warn!(%error, ?packages, "a set that shall be warm cannot be had"),
        }
    }
}
