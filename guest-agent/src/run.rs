//! One program from its start to its end.

use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::{read, write};
use sandbox_schemas::wire::{Execute, Exit, Finished, GuestFrame, Stream};

use crate::cgroup::{Cgroup, Meter};
use crate::error::{Context, Result};
use crate::output::Output;
use crate::port::Port;
use crate::runner::{self, Runner};

/// A program that has been handed to its runner.
pub(crate) struct Run {
    pub(crate) runner: Runner,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    stdin: Vec<u8>,
    stdin_written: usize,
    started: Instant,
    meter: Meter,
    /// Closed by some runners before the program starts, and by programs that close all they find.
    control: Option<OwnedFd>,
    said: Vec<u8>,
    is_rehearsal: bool,
}

impl Run {
    /// Lays the program out, tells the host, then lets the program go: what is reported as not started cannot have run.
    /// Without a warm runner the interpreter is started as part of the run: what a program's environment makes of it is the
    /// program's doing.
    pub(crate) fn start(warm: Option<Runner>, request: Execute, port: &mut Port) -> Result<Run> {
        let has_own_start = warm.is_none();
        let meter = Cgroup::of(request.language)?.meter(request.memory_bytes)?;
        let has_environment = runner::lay_out(request.language, &request.code, &request.env, has_own_start)?;
        port.send(&GuestFrame::Started)?;
        let started = Instant::now();
        let mut runner = match warm {
            Some(runner) => runner,
            None => Runner::spawn(request.language, &request.env)?,
        };
        runner.go(request.is_rehearsal, has_environment, request.memory_bytes);
        let mut run = Run {
            stdout: Output::new(Stream::Stdout, runner.stdout.try_clone().context("stdout")?, request.stdout_max),
            stderr: Output::new(Stream::Stderr, runner.stderr.try_clone().context("stderr")?, request.stderr_max),
            control: runner.control.take(),
            stdin: request.stdin.into_bytes(),
            stdin_written: 0,
            runner,
            started,
            meter,
            said: Vec::new(),
            is_rehearsal: request.is_rehearsal,
        };
        run.feed_stdin();
        Ok(run)
    }

    /// The pipe that wants more input, if there is more.
    pub(crate) fn stdin(&self) -> Option<&OwnedFd> {
        // It belongs to the program that comes after the rehearsals.
        self.runner.stdin.as_ref().filter(|_| !self.is_rehearsal)
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

    /// The pipe on which the runner reports, while it is open.
    pub(crate) fn control(&self) -> Option<&OwnedFd> {
        self.control.as_ref()
    }

    /// The exit code, once the runner has said so.
    pub(crate) fn read_control(&mut self) -> Option<Exit> {
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
        let end = self.said.iter().position(|&byte| byte == b'\n')?;
        let code = std::str::from_utf8(&self.said[..end]).ok()?.strip_prefix('D')?.parse().ok()?;
        Some(Exit::Code(code))
    }

    /// Sends what the program had still written, and how it ended. The runner comes back from a rehearsal.
    pub(crate) fn finish(mut self, exit: Exit, port: &mut Port) -> Result<Option<Runner>> {
        let process_us = self.started.elapsed().as_micros() as u64;
        self.stdout.drain(port)?;
        self.stderr.drain(port)?;
        port.send(&GuestFrame::Finished(Finished {
            exit,
            stdout_bytes: self.stdout.bytes,
            stderr_bytes: self.stderr.bytes,
            spawn_us: self.runner.spawn_us.unwrap_or(process_us),
            process_us,
            cpu_us: self.meter.cpu_us(&self.runner.cgroup),
            memory_peak_bytes: self.meter.memory_peak_bytes(),
            oom_kills: self.meter.oom_kills(&self.runner.cgroup),
        }))?;
        if !self.is_rehearsal {
            return Ok(None);
        }
        runner::clear_away()?;
        self.runner.control = self.control;
        Ok(Some(self.runner))
    }
}
