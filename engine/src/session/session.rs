//! One session: its VM, its calls in their order, and what they have in common.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{FILE_MAX_BYTES, OUTPUT_WINDOW_BYTES, STDERR_MAX_BYTES, STDOUT_MAX_BYTES};
use sandbox_schemas::session::SessionStatus;
use sandbox_schemas::wire::{Entry, Execute, FileWish, HostFrame, Kind, RunId, Stream};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::environment::Environment;
use crate::error::{ExecuteError, VmError};
use crate::id::Id;
use crate::qemu::private_memory_bytes;
use crate::request::{FileSource, Request};
use crate::run::Preparation;
use crate::session::call::{Call, Link};
use crate::session::files::Transfer;
use crate::session::kept::{DROPPED, Kept};
use crate::session::owner::{self, Command, Commands};
use crate::session::queue::{Queue, Queued};
use crate::session::state::{Ended, InUse, State, lock};
use crate::vm::{Open, Program};

/// A result waits for no longer than this for a file that it could do without.
const KEEPING_DEADLINE: Duration = Duration::from_secs(5);

/// What a session is opened with.
pub(crate) struct Opening {
    pub(crate) environment: Option<Arc<Environment>>,
    pub(crate) memory_mb: u64,
    pub(crate) idle_timeout: Duration,
    pub(crate) preparation: Preparation,
    /// Whether its VM is for one program alone, as a script runs.
    pub(crate) is_for_one: bool,
}

/// The right to add packages. Who has it, or waits for it, uses the session.
pub(crate) struct Growth {
    /// How many disks were put into the slot.
    disks: tokio::sync::OwnedMutexGuard<u32>,
    _in_use: InUse,
}

/// A session. It ends with the last who holds it, or before.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: Id,
    environment: Mutex<Option<Arc<Environment>>>,
    /// Disks that have been put into its slot, for whoever puts the next one there.
    growth: Arc<tokio::sync::Mutex<u32>>,
    pub(crate) memory_mb: u64,
    /// How its VM was come by.
    pub(crate) preparation: Preparation,
    is_for_one: bool,
    opened: Instant,
    process: Option<u32>,
    /// Whether another disk can be put into its slot.
    can_grow: bool,
    state: Arc<State>,
    commands: Commands,
    queue: Queue,
    book: Mutex<Book>,
    kept: Mutex<Kept>,
    runs: AtomicU64,
}

/// What is counted, and what calls have set for those after them.
#[derive(Debug, Default)]
struct Book {
    next_run: RunId,
    calls: u32,
    /// All environment variables that calls have brought.
    env: BTreeMap<String, String>,
    /// Those that the interpreter of a language has not been told yet.
    untold: HashMap<Language, BTreeMap<String, String>>,
}

impl Session {
    /// Takes over a VM. `keep` is dropped when the session ends.
    pub(crate) fn open(id: Id, vm: Open, opening: Opening, tasks: &TaskTracker, keep: impl Send + 'static) -> Session {
        let state = Arc::new(State::new(opening.idle_timeout));
        let (process, can_grow) = (vm.process_id(), vm.can_change_disk());
        Session {
            id,
            environment: Mutex::new(opening.environment),
            growth: Arc::default(),
            opened: Instant::now(),
            memory_mb: opening.memory_mb,
            preparation: opening.preparation,
            is_for_one: opening.is_for_one,
            process,
            can_grow,
            commands: owner::spawn(vm, state.clone(), tasks, keep),
            state,
            queue: Queue::new(),
            book: Mutex::default(),
            kept: Mutex::default(),
            runs: AtomicU64::new(0),
        }
    }

    /// A program's place among those that come to this session.
    pub(crate) fn line_up(&self, request: &ExecuteInput) -> Queued {
        self.queue.line_up((!request.background).then_some(request.language))
    }

    /// Hands a program over when its turn has come.
    pub(crate) async fn start(
        &self,
        accepted: Instant,
        queued: Queued,
        request: Request,
    ) -> Result<Call, ExecuteError> {
        let Request { input: request, files } = request;
        let in_use = self.state.begin_use();
        let turn = tokio::select! {
            turn = queued.reached() => turn,
            // No turn will come.
            _ = self.state.has_ended() => None,
        };
        // All of them come before what is sent from now on, and wait for nothing that was sent meanwhile.
        let arriving = self.queue.arriving();
        for file in files {
            self.store_now(file).await?;
        }
        drop(arriving);
        if let Some(why) = self.state.ended() {
            return Err(self.gone(&why));
        }
        let (state, commands, process) = (self.state.clone(), self.commands.clone(), self.process);
        let link = Link { state, commands, process, _in_use: in_use, turn };
        let execute = self.enter(request);
        let run = execute.run;
        let program = Program::new(execute).map_err(ExecuteError::before_run)?;
        // Its VM was there: a call waits for its turn alone.
        let preparation = match self.is_for_one {
            true => self.preparation,
            false => Preparation { accepted, setup: accepted.elapsed(), boot: Duration::ZERO, ..self.preparation },
        };
        self.runs.fetch_add(1, Ordering::Relaxed);
        Call::start(link, run, program, preparation).await.map_err(|error| match (error, self.state.ended()) {
            // It was handed over, and nobody knows how far it came.
            (VmError::Ended(reason), Some(_)) => {
                ExecuteError::OutcomeUnknown { reason: format!("the VM ended{reason}") }
            }
            (error, _) => ExecuteError::before_run(error),
        })
    }

    /// A request as the guest gets it.
    fn enter(&self, request: ExecuteInput) -> Execute {
        let mut book = lock(&self.book);
        book.next_run += 1;
        let run = book.next_run;
        for (name, value) in request.env {
            for language in Language::ALL {
                book.untold.entry(language).or_default().insert(name.clone(), value.clone());
            }
            book.env.insert(name, value);
        }
        let is_call = !request.background;
        let (kind, env) = match is_call {
            true if self.is_for_one => (Kind::Only, book.env.clone()),
            true => {
                book.calls += 1;
                (Kind::Call { number: book.calls }, book.untold.remove(&request.language).unwrap_or_default())
            }
            false => (Kind::Beside, book.env.clone()),
        };
        Execute {
            run,
            language: request.language,
            kind,
            code: request.code,
            stdin: request.stdin,
            env: env.into_iter().collect(),
            memory_bytes: self.memory_bytes(),
            stdout_max: if is_call { STDOUT_MAX_BYTES as u64 } else { u64::MAX },
            stderr_max: if is_call { STDERR_MAX_BYTES as u64 } else { u64::MAX },
            window: OUTPUT_WINDOW_BYTES,
        }
    }

    /// Puts a file into the VM behind those that were sent before; its size. It appears when it is whole.
    pub(crate) async fn store(&self, file: FileSource) -> Result<u64, ExecuteError> {
        let (before, _arriving) = (self.queue.line_up(None), self.queue.arriving());
        before.reached().await;
        self.store_now(file).await
    }

    /// The same without waiting for others.
    pub(super) async fn store_now(&self, file: FileSource) -> Result<u64, ExecuteError> {
        let FileSource { path, executable, contents } = file;
        self.transfer(FileWish::Store { path, executable })?.store(contents).await
    }

    /// Takes a file out of the VM, or `length` bytes of it from `offset` on; its whole size.
    pub(crate) async fn fetch(
        &self,
        path: String,
        offset: u64,
        length: u64,
        to: impl AsyncWrite + Unpin,
    ) -> Result<u64, ExecuteError> {
        self.queue.line_up(None).reached().await;
        self.fetch_now(path, offset, length, to).await
    }

    /// The same without waiting for others.
    pub(super) async fn fetch_now(
        &self,
        path: String,
        offset: u64,
        length: u64,
        to: impl AsyncWrite + Unpin,
    ) -> Result<u64, ExecuteError> {
        let length = length.min(FILE_MAX_BYTES);
        let wish = FileWish::Fetch { path, offset, length, window: OUTPUT_WINDOW_BYTES };
        self.transfer(wish)?.fetch(offset, length, to).await
    }

    /// What is in a folder, and whether there is more than is told.
    pub(crate) async fn list(&self, path: String, recursive: bool) -> Result<(Vec<Entry>, bool), ExecuteError> {
        self.queue.line_up(None).reached().await;
        self.list_now(path, recursive).await
    }

    /// The same without waiting for others.
    pub(super) async fn list_now(&self, path: String, recursive: bool) -> Result<(Vec<Entry>, bool), ExecuteError> {
        self.transfer(FileWish::List { path, recursive })?.list().await
    }

    /// Keeps what a program has written in a file, as one of the last few; its path.
    pub(crate) async fn keep_output(&self, stream: Stream, text: &str) -> Result<String, ExecuteError> {
        let (path, oldest) = lock(&self.kept).next(stream);
        let parts = [oldest.map(|oldest| (oldest, DROPPED)), Some((path.clone(), text))];
        for (path, text) in parts.into_iter().flatten() {
            let file = FileSource { path, executable: false, contents: Box::new(Cursor::new(text.to_owned())) };
            let stored = tokio::time::timeout(KEEPING_DEADLINE, self.store_now(file)).await;
            stored.unwrap_or(Err(ExecuteError::before_run(VmError::Deadline(KEEPING_DEADLINE))))?;
        }
        Ok(path)
    }

    /// What it was opened with, and what was added since.
    pub(crate) fn environment(&self) -> Option<Arc<Environment>> {
        lock(&self.environment).clone()
    }

    /// Whether packages can be added.
    pub(crate) fn can_grow(&self) -> bool {
        self.can_grow
    }

    /// Keeps others from adding packages meanwhile.
    pub(crate) async fn begin_growth(&self) -> Growth {
        let in_use = self.state.begin_use();
        Growth { disks: self.growth.clone().lock_owned().await, _in_use: in_use }
    }

    /// Gives it an environment that begins with the one that it has, whether its caller waits for that or not: what lies half way has no
    /// way back.
    pub(crate) async fn grow(
        self: &Arc<Self>,
        environment: Arc<Environment>,
        growth: Growth,
    ) -> Result<(), ExecuteError> {
        let this = self.clone();
        let grown = tokio::spawn(async move { this.put(environment, growth).await }).await;
        grown.unwrap_or_else(|error| Err(ExecuteError::before_run(VmError::Protocol(error.to_string()))))
    }

    async fn put(&self, environment: Arc<Environment>, mut growth: Growth) -> Result<(), ExecuteError> {
        *growth.disks += 1;
        let (done, is_done) = oneshot::channel();
        // A session that has ended drops it.
        let _ =
            self.commands.send(Command::ChangeDisk { disk: environment.layer.clone(), number: *growth.disks, done });
        match is_done.await {
            Ok(changed) => changed.map_err(ExecuteError::before_run)?,
            Err(_) => return Err(self.gone(&self.state.has_ended().await)),
        }
        let parts = environment.parts;
        if let Err(error) = self.wish(|run| HostFrame::Packages { run, parts })?.done().await {
            // What is mounted of it by now nobody knows.
            self.ask_to_end(Ended::Failed(format!("packages could not be mounted: {error}")));
            return Err(error);
        }
        *lock(&self.environment) = Some(environment);
        Ok(())
    }

    fn transfer(&self, wish: FileWish) -> Result<Transfer, ExecuteError> {
        self.wish(|run| HostFrame::File { run, memory_bytes: self.memory_bytes(), wish })
    }

    fn wish(&self, wish: impl FnOnce(RunId) -> HostFrame) -> Result<Transfer, ExecuteError> {
        if let Some(why) = self.state.ended() {
            return Err(self.gone(&why));
        }
        let run = {
            let mut book = lock(&self.book);
            book.next_run += 1;
            book.next_run
        };
        Transfer::begin(run, &wish(run), self.state.clone(), self.commands.clone(), self.state.begin_use())
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_mb * 1024 * 1024
    }

    /// The interpreter of a language is another, which has been told nothing.
    pub(crate) fn forget_told(&self, language: Language) {
        let mut book = lock(&self.book);
        let env = book.env.clone();
        book.untold.insert(language, env);
    }

    /// Ends it. What runs in it ends with it.
    pub(crate) async fn close(&self, why: Ended) {
        self.state.ask_to_end(why);
        self.state.has_ended().await;
    }

    /// The same, without waiting.
    pub(crate) fn ask_to_end(&self, why: Ended) {
        self.state.ask_to_end(why);
    }

    /// Waits for its end.
    pub(super) async fn has_ended(&self) -> Ended {
        self.state.has_ended().await
    }

    /// Programs that it has run, and those that run now.
    pub(crate) fn runs(&self) -> (u64, u64) {
        (self.runs.load(Ordering::Relaxed), self.state.in_use().0)
    }

    pub(crate) fn status(&self) -> SessionStatus {
        let (running, idle) = self.state.in_use();
        SessionStatus {
            session_id: self.id.to_string(),
            age_seconds: seconds(self.opened.elapsed()),
            idle_seconds: seconds(idle),
            runs: self.runs.load(Ordering::Relaxed),
            running,
            memory_limit_mb: self.memory_mb,
            private_memory_mb: self
                .process
                .map(private_memory_bytes)
                .filter(|&bytes| bytes > 0)
                .map(|bytes| bytes as f64 / (1024.0 * 1024.0)),
        }
    }

    pub(super) fn gone(&self, why: &Ended) -> ExecuteError {
        ExecuteError::NotFound { reason: format!("session_id: {} {why}", self.id) }
    }
}

/// With milliseconds: more would be noise in a document.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}
