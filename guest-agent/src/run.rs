//! One program from its start to its end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{read, write};
use sandbox_schemas::limits::STDIN_MAX_BYTES;
use sandbox_schemas::wire::{Execute, Exit, Finished, GuestFrame, Kind, RunId, Stream};

use crate::cgroup::{Cgroup, ClockTicks, Meter};
use crate::error::{Context, Error, Result};
use crate::output::Output;
use crate::port::Port;
use crate::program::{self, Folder};
use crate::runner::Runner;

/// How long a call is taken not to have begun, whatever the machine does beside it.
const BEGINNING: Duration = Duration::from_millis(200);

/// When a call that was interrupted in its beginning is interrupted again, if it is still there; then after twice the time.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
const AGAIN_TIMES: u32 = 3;

/// A program that has been handed to its runner.
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) kind: Kind,
    pub(crate) runner: Runner,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// Bytes of output that may be sent.
    window: u64,
    stdin: Vec<u8>,
    stdin_written: usize,
    /// Of a program beside others: whether more input may come.
    is_input_open: bool,
    /// What was given as input later than with the program, and has not been taken.
    given: u64,
    started: Instant,
    started_ticks: Option<ClockTicks>,
    meter: Meter,
    /// Closed by some runners before the program starts, and by programs that close all they find.
    control: Option<OwnedFd>,
    said: Vec<u8>,
    state_lost: bool,
    /// Whether its interpreter heeds an interrupt by ending a call, and no more. Before its first one would end it.
    has_begun: bool,
    is_interrupted: bool,
    /// When it is interrupted once more, and how often it was.
    again: Option<(Instant, u32)>,
}

/// How a program has ended, and its interpreter with it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) exit: Exit,
    pub(crate) is_interpreters: bool,
}

impl End {
    /// The process has ended.
    pub(crate) fn of_process(exit: Exit) -> End {
        End { exit, is_interpreters: true }
    }
}

impl Run {
    /// Lays the program out, tells the host, then lets the program go: what is reported as not started cannot have run.
    /// Without a warm runner the interpreter is started as part of the run: what a program's environment makes of it is the
    /// program's doing. `state_lost`: what an earlier call had left is gone already; `is_used`: there is what one has left. What fails leaves the runner where it was.
    pub(crate) fn start(
        warm: &mut Option<Runner>,
        mut request: Execute,
        (state_lost, is_used): (bool, bool),
        port: &mut Port,
    ) -> Result<Run> {
        let has_own_start = warm.is_none();
        let (cgroup, folder) = match request.kind {
            Kind::Beside => (Cgroup::of_run(request.run)?, Folder::new(&format!("run-{}", request.run))?),
            Kind::Call { .. } => (Cgroup::of(request.language)?, Folder::of_calls()?),
            _ => (Cgroup::of(request.language)?, Folder::shared()?),
        };
        let is_in_session = is_in_session(request.kind);
        let meter = cgroup.meter((!is_in_session).then_some(request.memory_bytes))?;
        let laid_out = program::lay_out(&folder, &request, has_own_start)?;
        port.send(&GuestFrame::Started(request.run))?;
        let started = Instant::now();
        let started_ticks = is_in_session.then(ClockTicks::now);
        let mut runner = match warm.take() {
            Some(runner) => runner,
            None => Runner::spawn(request.language, &request.env, cgroup, &folder)?,
        };
        runner.go(&request, laid_out);
        let (id, stdout, stderr) = (request.run, runner.stdout.try_clone(), runner.stderr.try_clone());
        let mut run = Run {
            id,
            kind: request.kind,
            stdout: Output::new(id, Stream::Stdout, stdout.context("stdout")?, request.stdout_max),
            stderr: Output::new(id, Stream::Stderr, stderr.context("stderr")?, request.stderr_max),
            window: request.window,
            control: runner.control.take(),
            // A call has its own laid out beside it: the interpreter is to read that of the next one, too.
            stdin: if laid_out.has_input { Vec::new() } else { std::mem::take(&mut request.stdin).into_bytes() },
            stdin_written: 0,
            is_input_open: request.kind == Kind::Beside,
            given: 0,
            runner,
            started,
            started_ticks,
            meter,
            said: Vec::new(),
            state_lost,
            has_begun: is_used || !matches!(request.kind, Kind::Call { .. }),
            is_interrupted: false,
            again: None,
        };
        run.feed_stdin();
        Ok(run)
    }

    /// The pipes whose output can be sent.
    pub(crate) fn outputs(&self, now: Instant) -> impl Iterator<Item = BorrowedFd<'_>> {
        let window = self.window;
        [&self.stdout, &self.stderr]
            .into_iter()
            .filter(move |output| window > 0 || output.is_full())
            .filter_map(move |output| output.interest(now))
    }

    /// When output that rests is to be looked at again.
    pub(crate) fn rest_end(&self, now: Instant) -> Option<Instant> {
        [&self.stdout, &self.stderr].iter().filter_map(|output| output.rest_end(now)).min()
    }

    /// Takes in the output of the pipes that have some.
    pub(crate) fn pump(&mut self, is_woken: impl Fn(BorrowedFd<'_>) -> bool, port: &mut Port) -> Result<()> {
        let now = Instant::now();
        for output in [&mut self.stdout, &mut self.stderr] {
            if (self.window > 0 || output.is_full()) && output.interest(now).is_some_and(&is_woken) {
                output.pump(&mut self.window, port)?;
            }
        }
        Ok(())
    }

    /// So much more output may be sent.
    pub(crate) fn credit(&mut self, bytes: u64) {
        self.window = self.window.saturating_add(bytes);
    }

    /// The pipe that wants more input, if there is more.
    pub(crate) fn stdin(&self) -> Option<&OwnedFd> {
        let is_waiting = self.stdin_written < self.stdin.len() || !self.is_input_open;
        // That of a rehearsal belongs to the program that comes after it.
        self.runner.stdin.as_ref().filter(|_| self.kind != Kind::Rehearsal && is_waiting)
    }

    /// More input for a program beside others.
    pub(crate) fn give(&mut self, bytes: &[u8], is_last: bool, port: &mut Port) -> Result<()> {
        if self.kind != Kind::Beside || self.stdin.len() - self.stdin_written + bytes.len() > STDIN_MAX_BYTES {
            return Err(Error::new("input", "this program takes none, or has not read what there is"));
        }
        self.stdin.drain(..self.stdin_written);
        self.stdin_written = 0;
        self.stdin.extend_from_slice(bytes);
        self.given += bytes.len() as u64;
        self.is_input_open &= !is_last;
        self.feed_stdin();
        self.tell_taken(port)
    }

    /// Writes what fits; closes the pipe behind the last byte.
    pub(crate) fn feed_stdin(&mut self) {
        while let Some(pipe) = self.stdin() {
            let rest = &self.stdin[self.stdin_written..];
            match if rest.is_empty() { Ok(0) } else { write(pipe, rest) } {
                Ok(0) => self.runner.stdin = None,
                Ok(length) => self.stdin_written += length,
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // The program does not read: that is its right.
                Err(_) => self.runner.stdin = None,
            }
        }
    }

    /// Tells the host what has become of the input that it gave.
    pub(crate) fn tell_taken(&mut self, port: &mut Port) -> Result<()> {
        let left = if self.runner.stdin.is_some() { (self.stdin.len() - self.stdin_written) as u64 } else { 0 };
        let bytes = self.given.saturating_sub(left);
        if bytes == 0 {
            return Ok(());
        }
        self.given -= bytes;
        port.send(&GuestFrame::Taken { run: self.id, bytes })
    }

    /// The pipe on which the runner reports, while it is open.
    pub(crate) fn control(&self) -> Option<&OwnedFd> {
        self.control.as_ref()
    }

    /// How the program has ended, once the runner has said so.
    pub(crate) fn read_control(&mut self) -> Option<End> {
        let mut chunk = [0; 64];
        while let Some(pipe) = &self.control {
            match read(pipe, &mut chunk) {
                Ok(0) => self.control = None,
                // A program that finds the pipe can flood it; what a runner says fits many times over.
                Ok(length) if self.said.len() < 1024 => self.said.extend_from_slice(&chunk[..length]),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => self.control = None,
            }
        }
        if self.runner.spawn_us.is_none() && self.said.first() == Some(&b'R') {
            self.said.remove(0);
            self.runner.is_warm_now();
        }
        if !self.has_begun && self.said.first() == Some(&b'B') {
            self.said.remove(0);
            self.has_begun = true;
            if self.is_interrupted {
                self.interrupt_in(true);
            }
        }
        let end = self.said.iter().position(|&byte| byte == b'\n')?;
        let line = std::str::from_utf8(&self.said[..end]).ok()?;
        let is_interpreters = line.starts_with('X');
        let code = line.strip_prefix(['D', 'X'])?.parse().ok()?;
        Some(End { exit: Exit::Code(code), is_interpreters })
    }

    /// Ctrl-C. A call may not have begun yet in an interpreter that stays, which heeds none between two: then that is done again.
    pub(crate) fn interrupt(&mut self) {
        self.is_interrupted = true;
        if self.has_begun {
            self.interrupt_in(self.started.elapsed() < BEGINNING);
        }
    }

    fn interrupt_in(&mut self, beginning: bool) {
        if beginning && matches!(self.kind, Kind::Call { .. }) {
            self.again = Some((Instant::now() + AGAIN_AFTER, 1));
        }
        self.signal_interrupt();
    }

    /// When [`Run::interrupt_again`] has something to do.
    pub(crate) fn interrupt_due(&self) -> Option<Instant> {
        self.again.map(|(when, _)| when)
    }

    pub(crate) fn interrupt_again(&mut self, now: Instant) {
        let Some((_, times)) = self.again.filter(|(when, _)| *when <= now) else { return };
        self.again = (times < AGAIN_TIMES).then(|| (now + AGAIN_AFTER * 2_u32.pow(times), times + 1));
        self.signal_interrupt();
    }

    fn signal_interrupt(&self) {
        match (self.kind, self.started_ticks) {
            // What earlier calls have started goes on.
            (Kind::Call { .. }, Some(since)) => self.runner.cgroup.interrupt_since(self.runner.pid, since),
            _ => self.runner.cgroup.interrupt(),
        }
    }

    /// Sends what the program had still written, and how it ended. The runner comes back from a rehearsal, and from a call that it has
    /// outlived.
    pub(crate) fn finish(mut self, end: End, port: &mut Port) -> Result<Option<Runner>> {
        let process_us = self.started.elapsed().as_micros() as u64;
        self.stdout.drain(port)?;
        self.stderr.drain(port)?;
        let is_call = matches!(self.kind, Kind::Call { .. });
        port.send(&GuestFrame::Finished(Finished {
            run: self.id,
            exit: end.exit,
            state_lost: is_call && (self.state_lost || end.is_interpreters),
            stdout_bytes: self.stdout.bytes,
            stderr_bytes: self.stderr.bytes,
            spawn_us: self.runner.spawn_us.unwrap_or(process_us),
            process_us,
            cpu_us: self.meter.cpu_us(&self.runner.cgroup),
            memory_peak_bytes: self.meter.memory_peak_bytes(),
            oom_kills: self.meter.oom_kills(&self.runner.cgroup),
        }))?;
        match self.kind {
            Kind::Rehearsal => program::clear_away()?,
            Kind::Call { number } => {
                program::clear_call_away(number);
                if end.is_interpreters {
                    return Ok(None);
                }
                self.runner.was_restored();
            }
            Kind::Beside => {
                // What it has started was its own alone.
                self.runner.cgroup.kill_all()?;
                return Ok(None);
            }
            _ => return Ok(None),
        }
        self.runner.control = self.control;
        Ok(Some(self.runner))
    }
}

/// Whether all programs are bounded together.
pub(crate) fn is_in_session(kind: Kind) -> bool {
    matches!(kind, Kind::Call { .. } | Kind::Beside)
}
