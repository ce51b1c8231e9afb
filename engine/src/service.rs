//! What an engine does for its callers: runs, sessions, installations.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sandbox_schemas::background::RunStarted;
use sandbox_schemas::environment::Omitted;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::install::InstallOutcome;
use sandbox_schemas::invalid::InvalidInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{IDLE_DEFAULT_SECONDS, MEMORY_MAX_MB, VM_OVERHEAD_MB};
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::session::OpenInput;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acquire::{Acquired, ENVIRONMENT_DEADLINE, ForSession, Vms, Wanted};
use crate::environment::{Environment, Environments, InstallError, Obtained};
use crate::error::{ExecuteError, VmError};
use crate::id::Id;
use crate::pool::layer_of;
use crate::request::Request;
use crate::run::{OutputSink, Preparation, Terms, program, run};
use crate::session::{Backgrounds, Ended, Opening, Outputs, Queued, Session, Sessions};
use crate::stats::Counted;
use crate::vm::Open;

/// Packages that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageSet {
    /// Whose packages they are.
    pub language: Language,
    /// As `install_packages` takes them.
    pub packages: Vec<String>,
}

/// Where VMs and packages come from, and what of them is in use.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) vms: Vms,
    pub(crate) environments: Arc<Environments>,
    pub(crate) sessions: Sessions,
    pub(crate) backgrounds: Backgrounds,
    pub(crate) runs: TaskTracker,
    /// Cancelled when nothing more is to be prepared.
    pub(crate) closing: CancellationToken,
}

impl Service {
    pub(crate) async fn execute(
        &self,
        accepted: Instant,
        request: Request,
        sink: &mut dyn OutputSink,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        // Before a VM is had for it.
        let outputs = Outputs::new(&request.input.outputs)?;
        if let Some(id) = &request.input.session_id {
            let session = self.sessions.find(id)?;
            let queued = session.line_up(&request.input);
            self.extend_for(&session, &request.input, sink).await?;
            return self.call(&session, (accepted, queued), request, outputs, sink).await;
        }
        if !(request.files.is_empty() && outputs.is_empty()) {
            return self.execute_with_files(accepted, request, outputs, sink).await;
        }
        let request = request.input;
        let (packages, id) = (&request.packages, request.environment_id.as_deref());
        let environment = self.environment(request.language, packages, id, sink).await?;
        let _activity = self.vms.host.pool.begin(request.language, layer_of(environment.as_ref()));
        let timeout = Duration::from_secs(request.timeout_seconds());
        let (language, memory_mb) = (request.language, request.memory_mb + VM_OVERHEAD_MB);
        let begin = program(request).map_err(ExecuteError::before_run)?;
        let wanted = Wanted { accepted, language, environment, memory_mb, begin };
        let started = self.vms.acquire(&wanted).await?;
        let not_imported = self.not_imported(&wanted.environment, &started.preparation);
        drop(wanted);
        self.count_origin(&started.preparation);
        let _running = Counted::new(&self.vms.stats.running);
        let ended = run(started.vm, Terms::of_call(timeout), started.preparation, sink).await;
        let mut outcome = told_of_memory(ended, memory_mb - VM_OVERHEAD_MB)?;
        outcome.not_imported = not_imported;
        Ok(outcome)
    }

    /// A program in a VM that stays until the files that it leaves are taken out.
    async fn execute_with_files(
        &self,
        accepted: Instant,
        request: Request,
        outputs: Outputs,
        sink: &mut dyn OutputSink,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let input = &request.input;
        let acquired = self.acquire_open(accepted, &opening_for(input), sink).await?;
        let (environment, preparation) = (acquired.environment, acquired.preparation);
        let not_imported = self.not_imported(&environment, &preparation);
        let opening = Opening {
            environment,
            memory_mb: input.memory_mb,
            idle_timeout: Duration::from_secs(IDLE_DEFAULT_SECONDS),
            preparation,
            is_for_one: true,
        };
        let id = Id::new("v").map_err(ExecuteError::random)?;
        let session = Arc::new(Session::open(id, acquired.vm, opening, &self.runs, ()));
        let _own = EndWith(session.clone());
        let queued = session.line_up(&request.input);
        let mut outcome = self.call(&session, (accepted, queued), request, outputs, sink).await?;
        outcome.not_imported = not_imported;
        Ok(outcome)
    }

    /// A program in a VM that stays, with the files that it finds and those that it leaves.
    async fn call(
        &self,
        session: &Arc<Session>,
        (accepted, queued): (Instant, Queued),
        request: Request,
        outputs: Outputs,
        sink: &mut dyn OutputSink,
    ) -> Result<ExecuteOutcome, ExecuteError> {
        let input = &request.input;
        let _activity = self.vms.host.pool.begin(input.language, layer_of(session.environment().as_ref()));
        let (timeout, language) = (Duration::from_secs(input.timeout_seconds()), input.language);
        let call = session.start(accepted, queued, request).await?;
        let _turn = call.turn();
        let _running = Counted::new(&self.vms.stats.running);
        let mut outcome = told_of_memory(call.run(Terms::of_call(timeout), sink).await, session.memory_mb)?;
        if outcome.state_lost {
            session.forget_told(language);
        }
        if !outputs.is_empty() {
            outputs.gather(session, &mut outcome).await;
        }
        Ok(outcome)
    }

    pub(crate) async fn open_session(
        &self,
        accepted: Instant,
        request: &OpenInput,
        sink: &mut dyn OutputSink,
    ) -> Result<Arc<Session>, ExecuteError> {
        let taken = self.sessions.take_place()?;
        let ForStay { vm, preparation, environment } = self.acquire_open(accepted, request, sink).await?;
        let opening = Opening {
            environment,
            memory_mb: request.memory_mb(),
            idle_timeout: Duration::from_secs(request.idle_timeout_seconds()),
            preparation,
            is_for_one: false,
        };
        self.sessions.open(vm, opening, &self.runs, (taken, self.vms.host.admission.hold()))
    }

    /// A VM that stays.
    async fn acquire_open(
        &self,
        accepted: Instant,
        request: &OpenInput,
        sink: &mut dyn OutputSink,
    ) -> Result<ForStay, ExecuteError> {
        let language = request.language.unwrap_or(Language::Python);
        let (packages, id) = (&request.packages, request.environment_id.as_deref());
        let environment = self.environment(language, packages, id, sink).await?;
        let _activity = self.vms.host.pool.begin(language, layer_of(environment.as_ref()));
        let memory_mb = request.memory_mb() + VM_OVERHEAD_MB;
        let wanted = Wanted { accepted, language, environment, memory_mb, begin: ForSession };
        let Acquired { vm, preparation } = self.vms.acquire(&wanted).await?;
        self.count_origin(&preparation);
        Ok(ForStay { vm, preparation, environment: wanted.environment })
    }

    pub(crate) async fn execute_in_background(
        &self,
        request: Request,
        sink: &mut dyn OutputSink,
    ) -> Result<RunStarted, ExecuteError> {
        let accepted = Instant::now();
        let input = &request.input;
        let (session, queued, own) = match &input.session_id {
            Some(id) => {
                let session = self.sessions.find(id)?;
                let queued = session.line_up(input);
                self.extend_for(&session, input, sink).await?;
                (session, queued, None)
            }
            None => {
                let session = self.open_session(accepted, &opening_for(input), sink).await?;
                (session.clone(), session.line_up(input), Some(EndWith(session)))
            }
        };
        let timeout = Duration::from_secs(input.timeout_seconds());
        let call = session.start(accepted, queued, request).await?;
        let run_id = self.backgrounds.begin(call, timeout, move || drop(own))?;
        Ok(RunStarted { run_id })
    }

    /// Adds the packages that a call in a session names, if it has not all of them.
    async fn extend_for(
        &self,
        session: &Arc<Session>,
        input: &ExecuteInput,
        sink: &mut dyn OutputSink,
    ) -> Result<(), ExecuteError> {
        check_environment_of(session, input)?;
        if !input.packages.is_empty() {
            self.extend(session, input.language, &input.packages, sink).await?;
        }
        Ok(())
    }

    /// Adds packages to a session. What its interpreters have already stays as it is.
    async fn extend(
        &self,
        session: &Arc<Session>,
        language: Language,
        packages: &[String],
        sink: &mut dyn OutputSink,
    ) -> Result<Obtained, ExecuteError> {
        let growth = session.begin_growth().await;
        let (host, base) = (&self.vms.host, session.environment());
        if !session.can_grow() {
            if let Some(base) = base
                && self.environments.has_all(&base, language, packages)?
            {
                return Ok(Obtained::cached(base));
            }
            let reason = "the session's VM was booted, not restored from a template, and takes none later".into();
            return Err(InstallError::Unfit { reason }.into());
        }
        let obtained = match &base {
            None => self.environments.obtain(host, &self.runs, language, packages, sink).await?,
            Some(base) => self.environments.extend(host, &self.runs, base, (language, packages), sink).await?,
        };
        let environment = &obtained.environment;
        if base.is_none_or(|base| base.key != environment.key) {
            session.grow(environment.clone(), growth).await?;
        }
        Ok(obtained)
    }

    fn count_origin(&self, preparation: &Preparation) {
        let origin = match preparation {
            Preparation { warm_pool_hit: true, .. } => &self.vms.stats.from_pool,
            Preparation { template_hit: true, .. } => &self.vms.stats.from_template,
            _ => &self.vms.stats.booted,
        };
        origin.fetch_add(1, Ordering::Relaxed);
    }

    /// The packages that a program finds, and has to import itself although templates have their packages imported.
    fn not_imported(&self, environment: &Option<Arc<Environment>>, preparation: &Preparation) -> Vec<Omitted> {
        match (environment, &self.vms.templates) {
            (Some(environment), Some(templates)) if preparation.template_hit => templates.left_out(environment),
            _ => Vec::new(),
        }
    }

    pub(crate) async fn install(
        &self,
        set: &PackageSet,
        sink: &mut dyn OutputSink,
    ) -> Result<InstallOutcome, InstallError> {
        let accepted = Instant::now();
        let PackageSet { language, packages } = set;
        let obtained = self.environments.obtain(&self.vms.host, &self.runs, *language, packages, sink).await?;
        let installed = Instant::now();
        let environment = &obtained.environment;
        let template = match &self.vms.templates {
            Some(templates) => templates.of(Some(environment), ENVIRONMENT_DEADLINE).await,
            None => None,
        };
        self.vms.host.pool.keep(environment, false);
        Ok(obtained.outcome(template.as_deref(), accepted, installed))
    }

    /// The same in an open session.
    pub(crate) async fn install_into(
        &self,
        session: &str,
        set: &PackageSet,
        sink: &mut dyn OutputSink,
    ) -> Result<InstallOutcome, ExecuteError> {
        let (accepted, session) = (Instant::now(), self.sessions.find(session)?);
        let obtained = self.extend(&session, set.language, &set.packages, sink).await?;
        Ok(obtained.outcome(None, accepted, Instant::now()))
    }

    /// The packages that a program asks for.
    async fn environment(
        &self,
        language: Language,
        packages: &[String],
        environment_id: Option<&str>,
        sink: &mut dyn OutputSink,
    ) -> Result<Option<Arc<Environment>>, InstallError> {
        let environment = if let Some(id) = environment_id {
            let id = id.parse().map_err(|_| InstallError::Unknown { id: id.to_owned() })?;
            self.environments.find(id).await?
        } else if packages.is_empty() {
            return Ok(None);
        } else {
            self.environments.obtain(&self.vms.host, &self.runs, language, packages, sink).await?.environment
        };
        self.vms.host.pool.keep(&environment, false);
        Ok(Some(environment))
    }
}

/// A VM that stays, and what it has.
struct ForStay {
    vm: Open,
    preparation: Preparation,
    environment: Option<Arc<Environment>>,
}

/// What a program needs of a VM that stays for it.
fn opening_for(input: &ExecuteInput) -> OpenInput {
    OpenInput {
        language: Some(input.language),
        packages: input.packages.clone(),
        environment_id: input.environment_id.clone(),
        memory_mb: Some(input.memory_mb),
        idle_timeout_seconds: None,
    }
}

/// A session that is of no use to anybody else.
struct EndWith(Arc<Session>);

impl Drop for EndWith {
    fn drop(&mut self) {
        self.0.ask_to_end(Ended::Closed);
    }
}

/// An environment is given to a session when it is opened.
fn check_environment_of(session: &Session, request: &ExecuteInput) -> Result<(), ExecuteError> {
    let Some(id) = &request.environment_id else { return Ok(()) };
    // What it was opened with is in what it has by now.
    if session.environment().is_some_and(|environment| environment.is_known_as(id)) {
        return Ok(());
    }
    let message = "is given when the session is opened: open_session takes it; what else is needed, name in packages";
    Err(InvalidInput { field: "environment_id".into(), message: message.into() }.into())
}

/// The result of a program that was seen to start; one that was killed for its memory says so.
fn told_of_memory(ended: Result<ExecuteOutcome, VmError>, memory_mb: u64) -> Result<ExecuteOutcome, ExecuteError> {
    let mut outcome = ended.map_err(|error| ExecuteError::OutcomeUnknown { reason: error.to_string() })?;
    if outcome.out_of_memory {
        outcome.stderr.push_str(&out_of_memory(&outcome.stderr, memory_mb));
    }
    Ok(outcome)
}

/// A line for who reads what a program has said before the kernel ended it, which says nothing of that.
fn out_of_memory(said: &str, memory_mb: u64) -> String {
    let begin = if said.is_empty() || said.ends_with('\n') { "" } else { "\n" };
    let advice = match memory_mb < MEMORY_MAX_MB {
        true => format!("memory_mb may be up to {MEMORY_MAX_MB}"),
        false => "no more can be had".into(),
    };
    format!("{begin}sandbox: out of memory: a process was killed at the limit of {memory_mb} MiB; {advice}\n")
}
