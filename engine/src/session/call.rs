//! One program of a session, from its turn to its end. Whoever drops it before that leaves it to be ended: by an interrupt, so that
//! what earlier calls have left survives, or by a kill; and if the guest does not heed that either, with its session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::wire::{GuestFrame, HostFrame, RunId};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use crate::acquire::START_DEADLINE;
use crate::error::VmError;
use crate::qemu::starved;
use crate::run::{OutputSink, Preparation, Started, Terms, Unheard, run};
use crate::session::owner::{Command, Commands, listening};
use crate::session::queue::Turn;
use crate::session::state::{Ended, InUse, State};
use crate::vm::Program;
use crate::wire::{encode, unexpected};

/// So much output is taken in before the guest is granted as much again.
const GRANT_BYTES: u64 = 64 * 1024;

/// A program that was handed over.
#[derive(Debug)]
pub(crate) struct Call {
    link: Link,
    run: RunId,
    started: Instant,
    preparation: Preparation,
    frames: Receiver<GuestFrame>,
    /// Bytes of output that were taken in since the last grant.
    ungranted: u64,
    /// Bytes of input that the program has taken.
    input_taken: Arc<AtomicU64>,
    is_finished: bool,
    /// Whether its caller has left it already.
    is_left: bool,
}

/// What ties a call to its session.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: Arc<State>,
    pub(super) commands: Commands,
    /// QEMU's.
    pub(super) process: Option<u32>,
    /// Keeps it from being idle.
    pub(super) _in_use: InUse,
    /// None for a program that has an interpreter of its own.
    pub(super) turn: Option<Turn>,
}

impl Link {
    fn tell(&self, command: Command) {
        // A session that has ended is noticed by the end of what it says.
        let _ = self.commands.send(command);
    }
}

impl Call {
    /// Hands a program over, and waits until the guest says that it has started.
    pub(super) async fn start(
        link: Link,
        run: RunId,
        program: Program,
        preparation: Preparation,
    ) -> Result<Call, VmError> {
        let handed_over = Instant::now();
        let (listener, frames) = listening();
        link.tell(Command::Begin { run, frames: program.into_frames(), listener });
        let mut call = Call {
            link,
            run,
            started: handed_over,
            preparation,
            frames,
            ungranted: 0,
            input_taken: Arc::default(),
            is_finished: false,
            is_left: false,
        };
        let said = tokio::time::timeout(START_DEADLINE, Started::next(&mut call)).await;
        match said.unwrap_or(Err(VmError::Deadline(START_DEADLINE)))? {
            GuestFrame::Started(_) => {}
            other => return Err(unexpected("started", &other)),
        }
        call.started = Instant::now();
        call.preparation.connect = call.started - handed_over;
        Ok(call)
    }

    /// Stays with it to its end.
    pub(crate) async fn run(self, terms: Terms, sink: &mut dyn OutputSink) -> Result<ExecuteOutcome, VmError> {
        let preparation = self.preparation;
        run(self, terms, preparation, sink).await
    }

    /// Its turn, for who has something to do when it has ended, and before another begins.
    pub(crate) fn turn(&self) -> impl Sized + Send + use<> {
        self.link.turn.clone()
    }

    /// How the program's input is written to.
    pub(super) fn input(&self) -> Input {
        Input {
            run: self.run,
            commands: self.link.commands.clone(),
            sent: AtomicU64::new(0),
            taken: self.input_taken.clone(),
        }
    }

    /// Takes a frame in; `None` for one that is of no interest to whoever stays with the program.
    fn take(&mut self, frame: Option<GuestFrame>) -> Result<Option<GuestFrame>, VmError> {
        let Some(frame) = frame else {
            self.is_finished = true;
            let why = self.link.state.ended().map_or_else(String::new, |why| format!(": its session {why}"));
            return Err(VmError::Ended(why));
        };
        match &frame {
            GuestFrame::Output { bytes, .. } => {
                self.ungranted += bytes.len() as u64;
                if self.ungranted >= GRANT_BYTES {
                    let (run, bytes) = (self.run, std::mem::take(&mut self.ungranted));
                    let frames = encode(&HostFrame::Credit { run, bytes })?;
                    self.link.tell(Command::Grant { run, bytes, frames });
                }
            }
            GuestFrame::Taken { bytes, .. } => {
                self.input_taken.fetch_add(*bytes, Ordering::Relaxed);
                return Ok(None);
            }
            // Its caller has left before it heard of that.
            GuestFrame::Started(_) if self.is_left => return Ok(None),
            GuestFrame::Finished(_) => self.is_finished = true,
            GuestFrame::Failed { reason, .. } => {
                self.is_finished = true;
                return Err(VmError::Guest(reason.clone()));
            }
            _ => {}
        }
        Ok(Some(frame))
    }

    fn post(&self, frame: &HostFrame) -> Result<(), VmError> {
        self.link.tell(Command::Post(encode(frame)?));
        Ok(())
    }
}

impl Started for Call {
    fn started(&self) -> Instant {
        self.started
    }

    async fn next(&mut self) -> Result<GuestFrame, VmError> {
        loop {
            let frame = self.frames.recv().await;
            if let Some(frame) = self.take(frame)? {
                return Ok(frame);
            }
        }
    }

    fn next_at_hand(&mut self) -> Option<Result<GuestFrame, VmError>> {
        self.next().now_or_never()
    }

    async fn explain(&mut self, error: VmError) -> VmError {
        error
    }

    fn interrupt(&mut self) -> Result<(), VmError> {
        self.post(&HostFrame::Interrupt(self.run))
    }

    fn kill(&mut self) -> Result<(), VmError> {
        self.post(&HostFrame::Kill(self.run))
    }

    fn is_deaf(&self) -> bool {
        false
    }

    /// A session whose host is busy does not lose what it has for that.
    fn waited(&self) -> Duration {
        self.link.process.map_or(Duration::ZERO, starved)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        if self.is_left {
            let reason = "a program could neither be interrupted nor killed";
            self.link.state.ask_to_end(Ended::Failed(reason.into()));
            return;
        }
        // Outside of a runtime the session ends with the server.
        let Ok(runtime) = Handle::try_current() else { return };
        let (_, nothing) = listening();
        let left = Call {
            link: Link {
                state: self.link.state.clone(),
                commands: self.link.commands.clone(),
                process: self.link.process,
                _in_use: self.link.state.begin_use(),
                turn: self.link.turn.take(),
            },
            frames: std::mem::replace(&mut self.frames, nothing),
            input_taken: self.input_taken.clone(),
            is_left: true,
            ..*self
        };
        runtime.spawn(async move { left.run(Terms::of_call(Duration::ZERO), &mut Unheard).await });
    }
}

/// The standard input of a program that runs beside others.
#[derive(Debug)]
pub(super) struct Input {
    run: RunId,
    commands: Commands,
    sent: AtomicU64,
    taken: Arc<AtomicU64>,
}

impl Input {
    /// Bytes that were sent and that the program has not read.
    pub(super) fn unread(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// Sends more, in pieces that no other frame waits long for.
    pub(super) fn send(&self, bytes: &[u8], is_last: bool) -> Result<(), VmError> {
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut chunks = bytes.chunks(sandbox_schemas::limits::INPUT_CHUNK_MAX_BYTES).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let is_last_chunk = chunks.peek().is_none();
            let frame = HostFrame::Input { run: self.run, bytes: chunk.to_vec(), is_last: is_last && is_last_chunk };
            // A session that has ended has no program that would read it.
            let _ = self.commands.send(Command::Post(encode(&frame)?));
            if is_last_chunk {
                return Ok(());
            }
        }
    }
}
