//! One program that has started: streams, deadlines, the outcome. The same for the only one of its VM and for those of a session.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::limits::{STDERR_MAX_BYTES, STDOUT_MAX_BYTES};
use sandbox_schemas::outcome::{ExecuteOutcome, Timing};
use sandbox_schemas::wire::{Execute, Finished, GuestFrame, Kind, RunId, Stream};
use tokio_util::sync::CancellationToken;

use crate::capture::Capture;
use crate::error::VmError;
use crate::vm::{PATIENCE, Program, Running};
use crate::wire::unexpected;

/// How long a program whose deadline has come while its sink wanted nothing, or while this process was stopped, may still be
/// heard out: it may have ended long ago. All that its stream can hold took 0.1 s under TCG.
const HEARING: Duration = Duration::from_millis(500);

/// A deadline that is noticed so late was slept through: this process was stopped, or the whole machine.
const LATE: Duration = Duration::from_millis(200);

/// Frames that are read at a deadline at most because they lie there. A wire holds no more than a handful of them; a guest that
/// goes on sending is not heard out for that.
const FRAMES_AT_DEADLINE: usize = 64;

/// From an interrupt to the kill: time for an exception to be printed, not more. Printing Python's first traceback, which
/// imports what prints it, took 0.45-0.55 s under TCG.
fn interrupt_grace(accelerator: Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_millis(500),
        Accelerator::Tcg => Duration::from_secs(2),
    }
}

/// From the kill to the VM's end.
const KILL_GRACE: Duration = Duration::from_millis(500);

/// Takes a program's output while it runs. Called from the run's task, so it must not block.
pub trait OutputSink: Send {
    /// Text as it came, in order within a stream; up to the stream's cap in all.
    fn output(&mut self, stream: Stream, text: &str);

    /// Whether more is wanted now. While it is not, nothing is read from the VM, so that the program waits when it writes:
    /// who reads slowly throttles it instead of filling memory. Its deadline goes on, and ends the waiting too.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Nobody listens.
pub(crate) struct Unheard;

impl OutputSink for Unheard {
    fn output(&mut self, _: Stream, _: &str) {}
}

/// A program that has started, as whoever stays with it sees it.
pub(crate) trait Started: Send {
    /// When the guest said so.
    fn started(&self) -> Instant;

    /// The next thing that the guest says of it. Cancel-safe. Its end is for [`Started::explain`].
    fn next(&mut self) -> impl Future<Output = Result<GuestFrame, VmError>> + Send;

    /// What the guest has said and nobody has heard yet, if there is anything.
    fn next_at_hand(&mut self) -> Option<Result<GuestFrame, VmError>>;

    /// An unexpected end with what is known of it.
    fn explain(&mut self, error: VmError) -> impl Future<Output = VmError> + Send;

    /// Ctrl-C for the program.
    fn interrupt(&mut self) -> Result<(), VmError>;

    /// The end of all the program's processes.
    fn kill(&mut self) -> Result<(), VmError>;

    /// Whether the guest has not read all that it was told.
    fn is_deaf(&self) -> bool;

    /// For how long its VM was kept from the processor so far, where what it has is worth some patience.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}

impl Started for Running {
    fn started(&self) -> Instant {
        self.started
    }

    fn next(&mut self) -> impl Future<Output = Result<GuestFrame, VmError>> + Send {
        Running::next(self)
    }

    fn next_at_hand(&mut self) -> Option<Result<GuestFrame, VmError>> {
        Running::next_at_hand(self)
    }

    fn explain(&mut self, error: VmError) -> impl Future<Output = VmError> + Send {
        Running::explain(self, error)
    }

    fn interrupt(&mut self) -> Result<(), VmError> {
        Running::interrupt(self, ONLY_RUN)
    }

    fn kill(&mut self) -> Result<(), VmError> {
        Running::kill(self, ONLY_RUN)
    }

    fn is_deaf(&self) -> bool {
        Running::is_deaf(self)
    }
}

/// The name of a program that is the only one of its VM.
pub(crate) const ONLY_RUN: RunId = 1;

/// Where the VM came from, and where the time went until it ran the program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preparation {
    pub(crate) accepted: Instant,
    pub(crate) setup: Duration,
    pub(crate) boot: Duration,
    pub(crate) connect: Duration,
    pub(crate) accelerator: Accelerator,
    pub(crate) warm_pool_hit: bool,
    pub(crate) template_hit: bool,
}

/// How far a program has been persuaded to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Persuasion {
    None,
    /// Not at all yet, but what it has to say is read whether the sink wants it or not.
    HeardOut,
    Interrupted,
    Killed,
}

/// How long a program may run, and what of its output is kept.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) timeout: Duration,
    /// Cancelled when it shall end before.
    pub(crate) stop: Option<CancellationToken>,
    /// Whether the outcome shall have its output, up to the limits; else only the sink gets it, all of it.
    pub(crate) keeps_output: bool,
}

impl Terms {
    /// Those of a call.
    pub(crate) fn of_call(timeout: Duration) -> Terms {
        Terms { timeout, stop: None, keeps_output: true }
    }
}

/// Stays with a program that has started to its end. Where it was the only one of its VM, that is spent then, whatever came of it.
pub(crate) async fn run(
    mut vm: impl Started,
    Terms { timeout, stop, keeps_output }: Terms,
    preparation: Preparation,
    sink: &mut dyn OutputSink,
) -> Result<ExecuteOutcome, VmError> {
    let mut heard = Heard::new(keeps_output);
    let mut persuasion = Persuasion::None;
    let (mut waited, mut extended) = (Duration::ZERO, 0);
    let mut is_stopped = false;
    let mut deadline = vm.started() + timeout;
    let finished = loop {
        let asked_to_stop = async {
            match &stop {
                Some(stop) => stop.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            frame = next_wanted(&mut vm, sink, persuasion) => frame,
            () = asked_to_stop, if persuasion == Persuasion::None => {
                is_stopped = true;
                waited = vm.waited();
                vm.interrupt()?;
                persuasion = Persuasion::Interrupted;
                deadline = Instant::now() + interrupt_grace(preparation.accelerator);
                continue;
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                let is_late = deadline.elapsed() > LATE;
                let is_throttled = sink.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending();
                // What lies there was said in time, whoever looks at it late.
                if let Some(finished) = heard.what_lies_there(&mut vm, sink).await? {
                    break Some(finished);
                }
                if persuasion == Persuasion::None && (is_throttled || is_late) {
                    persuasion = Persuasion::HeardOut;
                    deadline = Instant::now() + HEARING;
                    continue;
                }
                let grace = |persuasion| match persuasion {
                    Persuasion::Killed => KILL_GRACE,
                    _ => interrupt_grace(preparation.accelerator),
                };
                let waited_before = std::mem::replace(&mut waited, vm.waited());
                let was_starved = waited.saturating_sub(waited_before) > grace(persuasion) / 4;
                if persuasion >= Persuasion::Interrupted && was_starved && extended < PATIENCE {
                    extended += 1;
                    deadline = Instant::now() + grace(persuasion);
                    continue;
                }
                match persuade(&mut vm, persuasion)? {
                    Some(next) => persuasion = next,
                    // Neither an interrupt nor a kill was answered: the VM goes, and its output until then is kept.
                    None => break None,
                }
                deadline = Instant::now() + grace(persuasion);
                continue;
            }
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Err(vm.explain(error).await),
        };
        if let Some(finished) = heard.take(frame, sink)? {
            break Some(finished);
        }
    };
    let execute = vm.started().elapsed();
    let timed_out = persuasion >= Persuasion::Interrupted && !is_stopped;
    let timing = Timing {
        setup_ms: milliseconds(preparation.setup),
        boot_ms: milliseconds(preparation.boot),
        connect_ms: milliseconds(preparation.connect),
        execute_ms: milliseconds(execute),
        total_ms: milliseconds(preparation.accepted.elapsed()),
    };
    Ok(outcome(finished, timed_out, heard, timing, preparation))
}

/// What a program has written so far.
struct Heard {
    stdout: Capture,
    stderr: Capture,
}

impl Heard {
    fn new(keeps_output: bool) -> Heard {
        match keeps_output {
            true => Heard { stdout: Capture::new(STDOUT_MAX_BYTES), stderr: Capture::new(STDERR_MAX_BYTES) },
            false => Heard { stdout: Capture::passing(), stderr: Capture::passing() },
        }
    }

    /// Takes in a frame: output, or how the program has ended.
    fn take(&mut self, frame: GuestFrame, sink: &mut dyn OutputSink) -> Result<Option<Finished>, VmError> {
        match frame {
            GuestFrame::Output { stream, bytes, .. } => {
                let capture = match stream {
                    Stream::Stdout => &mut self.stdout,
                    Stream::Stderr => &mut self.stderr,
                };
                sink.output(stream, capture.push(&bytes));
                Ok(None)
            }
            GuestFrame::Finished(finished) => Ok(Some(finished)),
            other => Err(unexpected("output", &other)),
        }
    }

    /// Takes in what can be had without waiting, whether the sink wants it or not.
    async fn what_lies_there(
        &mut self,
        vm: &mut impl Started,
        sink: &mut dyn OutputSink,
    ) -> Result<Option<Finished>, VmError> {
        for _ in 0..FRAMES_AT_DEADLINE {
            let finished = match vm.next_at_hand() {
                None => return Ok(None),
                Some(Ok(frame)) => self.take(frame, sink)?,
                Some(Err(error)) => return Err(vm.explain(error).await),
            };
            if finished.is_some() {
                return Ok(finished);
            }
        }
        Ok(None)
    }
}

/// The next frame, once the sink wants one. A program that is to end is not kept from it by a sink that wants none.
async fn next_wanted(
    vm: &mut impl Started,
    sink: &mut dyn OutputSink,
    persuasion: Persuasion,
) -> Result<GuestFrame, VmError> {
    if persuasion == Persuasion::None {
        std::future::poll_fn(|context| sink.poll_ready(context)).await;
    }
    vm.next().await
}

/// The next step, or `None` when there is none left.
fn persuade(vm: &mut impl Started, persuasion: Persuasion) -> Result<Option<Persuasion>, VmError> {
    if vm.is_deaf() {
        tracing::warn!("a guest does not read its wire");
    }
    Ok(match persuasion {
        Persuasion::None | Persuasion::HeardOut => {
            vm.interrupt()?;
            Some(Persuasion::Interrupted)
        }
        Persuasion::Interrupted => {
            vm.kill()?;
            Some(Persuasion::Killed)
        }
        Persuasion::Killed => None,
    })
}

/// A request as the guest gets it, for a VM of its own.
pub(crate) fn program(request: ExecuteInput) -> Result<Program, VmError> {
    Program::new(Execute {
        run: ONLY_RUN,
        language: request.language,
        kind: Kind::Only,
        code: request.code,
        stdin: request.stdin,
        env: request.env.into_iter().collect(),
        memory_bytes: request.memory_mb * 1024 * 1024,
        stdout_max: STDOUT_MAX_BYTES as u64,
        stderr_max: STDERR_MAX_BYTES as u64,
        window: u64::MAX,
    })
}

fn outcome(
    finished: Option<Finished>,
    timed_out: bool,
    Heard { stdout, stderr }: Heard,
    timing: Timing,
    preparation: Preparation,
) -> ExecuteOutcome {
    let stdout = stdout.finish(finished.map_or(0, |finished| finished.stdout_bytes));
    let stderr = stderr.finish(finished.map_or(0, |finished| finished.stderr_bytes));
    let exit_code = finished.filter(|_| !timed_out).map_or(-1, |finished| finished.exit.code());
    ExecuteOutcome {
        exit_code,
        truncated: stdout.truncated || stderr.truncated,
        invalid_utf8: stdout.invalid_utf8 || stderr.invalid_utf8,
        stdout: stdout.text,
        stderr: stderr.text,
        stdout_bytes: stdout.total_bytes,
        stderr_bytes: stderr.total_bytes,
        timed_out,
        out_of_memory: finished.is_some_and(|finished| finished.oom_kills > 0),
        state_lost: finished.is_some_and(|finished| finished.state_lost),
        timing,
        execution_time_ms: timing.execute_ms,
        // What nobody has said is not known, and is not 0.
        spawn_ms: finished.map(|finished| milliseconds(Duration::from_micros(finished.spawn_us))),
        process_ms: finished.map(|finished| milliseconds(Duration::from_micros(finished.process_us))),
        cpu_time_ms: finished.map(|finished| milliseconds(Duration::from_micros(finished.cpu_us))),
        // No interpreter does without memory: the guest says 0 where its kernel does not tell.
        memory_peak_mb: finished
            .map(|finished| finished.memory_peak_bytes)
            .filter(|&bytes| bytes > 0)
            .map(|bytes| bytes as f64 / (1024.0 * 1024.0)),
        warm_pool_hit: preparation.warm_pool_hit,
        template_hit: preparation.template_hit,
        not_imported: Vec::new(),
        files: Vec::new(),
        unmatched: Vec::new(),
        files_note: None,
        accelerator: preparation.accelerator,
    }
}

/// Milliseconds with microsecond digits: more would be noise in a document.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
