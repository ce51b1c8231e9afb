//! The engine behind the tools: started with the server, started again by a call when that failed, so that what the
//! user has installed meanwhile is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sandbox_engine::{Engine, StartError};
use sandbox_images::{ImageStore, LoadError};
use sandbox_schemas::outcome::ErrorCode;
use sandbox_store::limits_behind_words;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::settings::{Results, Settings};
use crate::share::Share;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendError {
    /// No image, or a damaged one; says which command to run.
    #[error(transparent)]
    Image(#[from] LoadError),
    /// No QEMU, or one that is too old.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// No cache directory.
    #[error("{0:#}")]
    Setting(anyhow::Error),
    /// A bug of ours.
    #[error("{0}")]
    Internal(String),
}

impl BackendError {
    /// Whether the user has to do something, or the host is short of something now.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            BackendError::Image(LoadError::Unreadable { .. }) => ErrorCode::FailedBeforeRun,
            BackendError::Image(_) | BackendError::Engine(_) | BackendError::Setting(_) | BackendError::Internal(_) => {
                ErrorCode::NotInstalled
            }
        }
    }

    /// With the limit of this process that is behind it, if one is.
    pub(crate) fn message(&self) -> String {
        let reason = self.to_string();
        let limits = limits_behind_words(&reason);
        format!("{reason}{limits}")
    }
}

/// How long ending an upload may take: two or three requests.
const TIERS_CLOSE: Duration = Duration::from_millis(500);

/// What the calls that run and wait may hold together, in KiB of code, stdin and environment. Each may be some 5 MiB, and a
/// client can send two thousand before it reads the first answer.
const INPUTS_MAX_KIB: usize = 256 * 1024;

/// At most one engine, made once.
#[derive(Debug)]
pub(crate) struct Backend {
    settings: Settings,
    engine: Mutex<Option<Engine>>,
    inputs: Arc<Semaphore>,
    /// Whether there will be no calls beside those that there are.
    expects_no_more: AtomicBool,
}

impl Backend {
    /// Who reads results, where somebody has set that.
    pub(crate) fn results(&self) -> Option<Results> {
        self.settings.results.value
    }

    /// Whether a tool is offered.
    pub(crate) fn has_tool(&self, name: &str) -> bool {
        self.settings.tools.value.has(name)
    }

    /// Characters of a program's output that a model is given at most.
    pub(crate) fn max_output_chars(&self) -> usize {
        self.settings.max_output_chars.value.get()
    }

    /// Folders of the host that files are taken from and put to.
    pub(crate) fn shares(&self) -> Vec<Share> {
        self.settings.share.value.0.clone()
    }

    pub(crate) fn new(settings: Settings) -> Self {
        let inputs = Arc::new(Semaphore::new(INPUTS_MAX_KIB));
        Backend { settings, engine: Mutex::new(None), inputs, expects_no_more: AtomicBool::new(false) }
    }

    /// The engine. Calls that come while it starts wait for it.
    pub(crate) async fn engine(&self) -> Result<Engine, BackendError> {
        let mut engine = self.engine.lock().await;
        if let Some(engine) = &*engine {
            return Ok(engine.clone());
        }
        let started = self.start().await?;
        *engine = Some(started.clone());
        if self.expects_no_more.load(Ordering::Acquire) {
            started.expect_no_more();
        }
        Ok(started)
    }

    /// Lets a call hold its input, until the permit is dropped; `None` when the others hold too much.
    pub(crate) fn hold(&self, input_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(input_bytes.div_ceil(1024)).ok()?;
        self.inputs.clone().try_acquire_many_owned(kib).ok()
    }

    /// Does what the first call would wait for, while the client still thinks.
    pub(crate) async fn prepare(&self) {
        match self.engine().await {
            Ok(engine) => drop(engine.prepare().await),
            Err(error) => tracing::warn!(error = error.message(), "no program can run yet"),
        }
    }

    /// No calls will come: VMs that wait for one are of no use.
    pub(crate) fn expect_no_more(&self) {
        self.expects_no_more.store(true, Ordering::Release);
        if let Ok(engine) = self.engine.try_lock()
            && let Some(engine) = &*engine
        {
            engine.expect_no_more();
        }
    }

    /// Waits until every VM is gone. An engine that is still starting is not waited for: its trial VM ends with us.
    pub(crate) async fn shut_down(&self) {
        let engine = self.engine.try_lock().ok().and_then(|mut engine| engine.take());
        if let Some(engine) = engine {
            engine.shut_down().await;
        }
        // What is half sent is given up: whoever uses it next sends it.
        if let Ok(cache) = self.settings.cache() {
            let _ = tokio::task::spawn_blocking(move || cache.close_tiers(TIERS_CLOSE)).await;
        }
    }

    async fn start(&self) -> Result<Engine, BackendError> {
        let store = ImageStore::new(self.settings.cache().map_err(BackendError::Setting)?);
        // Verifying reads some hundred megabytes, when they have changed since the last time.
        let is_named = self.settings.qemu.value.is_some();
        let load = move || Ok((store.load()?, if is_named { None } else { store.qemu()? }));
        let loaded: Result<_, LoadError> =
            tokio::task::spawn_blocking(load).await.map_err(|error| BackendError::Internal(error.to_string()))?;
        let (image, qemu) = loaded?;
        let config = self.settings.engine_config(image, qemu).map_err(BackendError::Setting)?;
        Ok(Engine::start(config).await?)
    }
}
