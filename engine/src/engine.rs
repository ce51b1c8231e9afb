//! The engine: everything that a machine needs is checked once at its start; then it executes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::image::BootImage;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{MEMORY_MIN_MB, VM_OVERHEAD_MB};
use sandbox_schemas::outcome::ExecuteOutcome;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Limits, Place};
use crate::error::{ExecuteError, StartError, VmError};
use crate::qemu::{LaunchSpec, Qemu, accelerate, tsc_khz};
use crate::run::{OutputSink, Preparation, run};
use crate::vm::{Booting, Ready};

/// Which accelerator a user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where a trial VM works on it, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG, also where KVM would work.
    Tcg,
}

/// What an engine is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// QEMU's binary; found in PATH and the usual places when `None`.
    pub qemu: Option<PathBuf>,
    /// Which accelerator may be used.
    pub accelerator: AcceleratorChoice,
    /// How much runs at once.
    pub limits: Limits,
    /// What VMs boot.
    pub image: BootImage,
    /// Where verdicts on this machine are remembered.
    pub cache_dir: PathBuf,
}

/// Runs programs, each in a VM of its own.
#[derive(Debug)]
pub struct Engine {
    qemu: Qemu,
    spec: LaunchSpec,
    admission: Admission,
    runs: TaskTracker,
}

impl Engine {
    /// Finds QEMU and decides on the accelerator.
    pub async fn start(config: EngineConfig) -> Result<Engine, StartError> {
        let qemu = Qemu::find(config.qemu.as_deref()).await?;
        let tsc_khz = tsc_khz();
        let boot = |accelerator| LaunchSpec {
            accelerator,
            memory_mb: MEMORY_MIN_MB + VM_OVERHEAD_MB,
            tsc_khz,
            image: config.image.clone(),
        };
        let accelerator = accelerate::decide(&qemu, config.accelerator, &config.cache_dir, boot).await?;
        tracing::info!(qemu = %qemu.version(), %accelerator, "engine started");
        Ok(Engine { qemu, spec: boot(accelerator), admission: Admission::new(config.limits), runs: TaskTracker::new() })
    }

    /// What executes the guests.
    pub fn accelerator(&self) -> Accelerator {
        self.spec.accelerator
    }

    /// Runs a program in a fresh VM. Whatever comes of it, its VM is being killed when this returns, and its place is free
    /// once the process is gone; [`Engine::shut_down`] waits for that. A cancel, or a drop, does the same at once.
    pub async fn execute(
        &self,
        request: ExecuteInput,
        sink: &mut dyn OutputSink,
        cancel: CancellationToken,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let _token = self.runs.token();
        request.validate()?;
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ExecuteError::Cancelled),
            outcome = self.execute_uncancelled(request, sink) => outcome,
        }
    }

    /// Waits until every run has ended and its VM is gone.
    pub async fn shut_down(&self) {
        self.runs.close();
        self.runs.wait().await;
        self.qemu.wait_for_all().await;
    }

    async fn execute_uncancelled(
        &self,
        request: ExecuteInput,
        sink: &mut dyn OutputSink,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let accepted = Instant::now();
        let memory_mb = request.memory_mb + VM_OVERHEAD_MB;
        let place = self.admission.enter(memory_mb).await?;
        let setup = accepted.elapsed();
        let before_run = |error: VmError| ExecuteError::FailedBeforeRun { reason: error.to_string() };
        let vm = self.boot(memory_mb, request.language, place).await.map_err(before_run)?;
        let boot = accepted.elapsed() - setup;
        let preparation = Preparation { accepted, setup, boot, accelerator: self.accelerator() };
        run(vm, request, preparation, sink).await.map_err(|error| match error {
            VmError::Guest(reason) => ExecuteError::FailedBeforeRun { reason },
            other => ExecuteError::OutcomeUnknown { reason: other.to_string() },
        })
    }

    async fn boot(&self, memory_mb: u64, language: Language, place: Place) -> Result<Ready, VmError> {
        // No larger than it must be: it bounds the VM on the host too.
        let spec = LaunchSpec { memory_mb, ..self.spec.clone() };
        let booting = Booting::launch(&self.qemu, &spec, vec![language], place).await?;
        booting.ready(boot_deadline(self.accelerator())).await
    }
}

/// A boot takes 3-6 s under TCG on two idle cores, well under 1 s on hardware; a machine that is busy with other things
/// must not make it fail.
pub(crate) fn boot_deadline(accelerator: Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_secs(20),
        Accelerator::Tcg => Duration::from_secs(120),
    }
}
