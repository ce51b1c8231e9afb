//! The agent's one loop. What can wake it: the port, the end of a child, a warming runner, the streams of a run, the end
//! of a stream's rest, and the tunnel where there is one.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits;
use sandbox_schemas::wire::{Execute, Exit, GuestFrame, Hello, HostFrame, Kind, PROTOCOL_VERSION, Role, RunId};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::port::Port;
use crate::program::Folder;
use crate::run::{End, Run, is_in_session};
use crate::runner::{Runner, needs_own_start};
use crate::transfer::Transfer;
use crate::tunnel::Tunnel;
use crate::{boot, cgroup, identity};

/// The agent: its port, what it keeps warm, and the programs that it runs.
pub(crate) struct Agent {
    port: Port,
    children: SignalFd,
    runners: Vec<Runner>,
    /// Languages that [`Hello`] asked for and that are not warm yet.
    warming: Vec<Language>,
    runs: Vec<Run>,
    /// Files that come or go.
    transfers: Vec<Transfer>,
    /// Only in a VM that is a session.
    session: Option<Session>,
    /// Parts of the second disk that are mounted.
    parts: usize,
    role: Role,
    /// Size of the writable space, in MiB.
    writable_mb: u64,
    /// Only in a VM that installs.
    tunnel: Option<Tunnel>,
}

/// What a session adds.
#[derive(Default)]
struct Session {
    /// Languages whose interpreter has run a call.
    used: Vec<Language>,
    /// Those of which an interpreter has ended that had, and which no call has been told yet.
    lost: Vec<Language>,
    /// What programs that have ended were in, until their last process is gone.
    left: Vec<Cgroup>,
}

impl Session {
    /// A call begins in this language: whether what earlier ones had left is lost, and whether its interpreter has run any.
    fn begin(&mut self, language: Language) -> (bool, bool) {
        let (was_lost, was_used) = (self.lost.contains(&language), self.used.contains(&language));
        self.lost.retain(|lost| *lost != language);
        if !was_used {
            self.used.push(language);
        }
        (was_lost, was_used)
    }

    /// An interpreter has ended.
    fn lose(&mut self, language: Language) {
        if self.used.contains(&language) {
            self.used.retain(|used| *used != language);
            self.lost.push(language);
        }
    }
}

/// What woke the loop.
struct Woken {
    descriptors: Vec<RawFd>,
}

impl Woken {
    fn by(&self, descriptor: impl AsFd) -> bool {
        self.descriptors.contains(&descriptor.as_fd().as_raw_fd())
    }
}

impl Agent {
    pub(crate) fn new(port: Port) -> Result<Agent> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().context("blocking SIGCHLD")?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("watching for children's ends")?;
        Ok(Agent {
            port,
            children,
            runners: Vec::new(),
            warming: Vec::new(),
            runs: Vec::new(),
            transfers: Vec::new(),
            session: None,
            parts: 0,
            role: Role::Runs,
            writable_mb: boot::WRITABLE_DEFAULT_MB,
            tunnel: None,
        })
    }

    /// Serves until the host is gone.
    pub(crate) fn serve(&mut self) -> Result<()> {
        loop {
            let woken = self.wait()?;
            if woken.by(&self.port) {
                if !self.port.fill()? {
                    return Ok(());
                }
                while let Some(frame) = self.port.next_frame()? {
                    let run = match &frame {
                        HostFrame::Execute(request) => Some(request.run),
                        HostFrame::File { run, .. } | HostFrame::Packages { run, .. } => Some(*run),
                        _ => None,
                    };
                    if let Err(error) = self.obey(frame) {
                        self.port.send(&GuestFrame::Failed { run, reason: error.to_string() })?;
                    }
                }
            }
            self.hear_runners(&woken)?;
            self.serve_runs(&woken)?;
            self.serve_transfers()?;
            self.serve_tunnel(&woken)?;
            if woken.by(&self.children) {
                self.reap()?;
            }
        }
    }

    /// Sleeps until something happens.
    fn wait(&mut self) -> Result<Woken> {
        let now = Instant::now();
        // A tunnel that holds all it may lets the host wait. It does so only while its process is not scheduled: what the
        // host may send ahead is bounded by what that process has granted.
        let is_full = self.tunnel.as_ref().is_some_and(Tunnel::is_full);
        let mut fds = vec![
            PollFd::new(self.port.as_fd(), if is_full { PollFlags::empty() } else { PollFlags::POLLIN }),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
        ];
        let controls = self.runners.iter().filter_map(|runner| runner.control.as_ref());
        fds.extend(controls.map(|control| PollFd::new(control.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.tunnel.as_ref().map(|tunnel| PollFd::new(tunnel.as_fd(), tunnel.interest())));
        let mut until: Option<Instant> = None;
        for run in &self.runs {
            until = until.into_iter().chain(run.rest_end(now)).chain(run.interrupt_due()).min();
            fds.extend(run.outputs(now).map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
            fds.extend(run.control().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            fds.extend(run.stdin().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        }
        if self.transfers.iter().any(Transfer::is_ready) {
            until = Some(now);
        }
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up: waking early would only mean to wait again.
            let milliseconds = until.saturating_duration_since(now).as_millis() + u128::from(until > now);
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::new("waiting", error)),
        }
        let is_woken = |fd: &&PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        let descriptors = fds.iter().filter(is_woken).map(|fd| fd.as_fd().as_raw_fd()).collect();
        Ok(Woken { descriptors })
    }

    fn obey(&mut self, frame: HostFrame) -> Result<()> {
        match frame {
            HostFrame::Hello(hello) => self.greet(&hello),
            HostFrame::Clock(realtime_ns) => identity::set_clock(realtime_ns),
            HostFrame::Execute(request) => self.execute(request),
            HostFrame::File { run, memory_bytes, wish } => {
                self.fit_writable(memory_bytes);
                self.transfers.extend(Transfer::begin(run, wish, &mut self.port)?);
                Ok(())
            }
            HostFrame::Packages { run, parts } => {
                self.mount_packages(parts)?;
                self.port.send(&GuestFrame::Transferred { run, size: 0 })
            }
            HostFrame::Input { run, bytes, is_last } if self.transfers.iter().any(|known| known.id == run) => {
                self.transfer(run, |transfer, port| transfer.give(&bytes, is_last, port))
            }
            HostFrame::Input { run, bytes, is_last } => match self.runs.iter_mut().find(|known| known.id == run) {
                Some(run) => run.give(&bytes, is_last, &mut self.port),
                // It has ended meanwhile, as with the next three.
                None => Ok(()),
            },
            HostFrame::Credit { run, bytes } => {
                self.runs.iter_mut().filter(|known| known.id == run).for_each(|run| run.credit(bytes));
                self.transfers.iter_mut().filter(|known| known.id == run).for_each(|known| known.credit(bytes));
                Ok(())
            }
            HostFrame::Interrupt(run) => {
                self.runs.iter_mut().filter(|known| known.id == run).for_each(Run::interrupt);
                Ok(())
            }
            HostFrame::Kill(run) => {
                // A file that nobody wants any more.
                self.transfer(run, |_, _| Err(Error::new("a file", "it was given up")))?;
                self.runs.iter().filter(|known| known.id == run).try_for_each(|run| run.runner.cgroup.kill_all())
            }
            HostFrame::Tunnel(bytes) => match &mut self.tunnel {
                Some(tunnel) => tunnel.push(&bytes),
                None => Err(Error::new("the tunnel", "this VM has none")),
            },
        }
    }

    fn greet(&mut self, hello: &Hello) -> Result<()> {
        if hello.protocol != PROTOCOL_VERSION {
            let message = format!("the host speaks version {}, this agent {PROTOCOL_VERSION}", hello.protocol);
            return Err(Error::new("greeting", message));
        }
        identity::apply(hello)?;
        self.runners.iter_mut().for_each(Runner::was_restored);
        for &language in &hello.warm {
            self.runners.push(Runner::spawn(language, &[], Cgroup::of(language)?, &Folder::shared()?)?);
            self.warming.push(language);
        }
        self.mount_packages(hello.parts)?;
        self.role = hello.role;
        if let Role::Installs { writable_mb, has_disk } = hello.role {
            self.equip(writable_mb, has_disk)?;
        }
        self.say_ready()
    }

    fn mount_packages(&mut self, parts: u8) -> Result<()> {
        let parts = usize::from(parts);
        boot::mount_packages(self.parts, parts)?;
        self.parts = self.parts.max(parts);
        Ok(())
    }

    /// What an installer needs beyond what a program has.
    fn equip(&mut self, writable_mb: u64, has_disk: bool) -> Result<()> {
        boot::resize_writable(writable_mb)?;
        if has_disk {
            boot::give_disk(self.parts)?;
        }
        // It is there before the host hears that the VM is ready, so that no program comes too early for it.
        self.tunnel = Some(Tunnel::open()?);
        Ok(())
    }

    fn say_ready(&mut self) -> Result<()> {
        if self.warming.is_empty() { self.port.send(&GuestFrame::Ready) } else { Ok(()) }
    }

    fn execute(&mut self, request: Execute) -> Result<()> {
        self.allow(&request)?;
        if self.role == Role::Runs && request.kind != Kind::Rehearsal {
            self.fit_writable(request.memory_bytes);
        }
        let mut warm = None;
        if request.kind != Kind::Beside {
            let index = self.runners.iter().position(|runner| runner.language == request.language);
            warm = index.map(|index| self.runners.swap_remove(index));
        }
        let (mut state_lost, mut is_used) = (false, false);
        if let (Kind::Call { .. }, Some(session)) = (request.kind, &mut self.session) {
            (state_lost, is_used) = session.begin(request.language);
        }
        // One that stays with what it has is told what it would have read at its start: that is all that can be done.
        if !is_used
            && needs_own_start(request.language, &request.env)
            && let Some(runner) = warm.take()
        {
            // It has read its environment.
            runner.retire();
        }
        let run = Run::start(&mut warm, request, (state_lost, is_used), &mut self.port);
        self.runners.extend(warm);
        self.runs.push(run?);
        Ok(())
    }

    /// Whether a program may run beside those that do. The first one of a session makes this VM one.
    fn allow(&mut self, request: &Execute) -> Result<()> {
        let refuse = |why: &str| Err(Error::new("executing", why));
        if !is_in_session(request.kind) {
            let is_free = self.runs.is_empty() && self.session.is_none();
            return if is_free { Ok(()) } else { refuse("a program is running already") };
        }
        let runs_call = |run: &Run| matches!(run.kind, Kind::Call { .. }) && run.runner.language == request.language;
        if self.runs.iter().any(|run| run.id == request.run) {
            return refuse("a run has this number already");
        }
        if matches!(request.kind, Kind::Call { .. }) && self.runs.iter().any(runs_call) {
            return refuse("a call in this language is running already");
        }
        if self.runs.len() >= limits::SESSION_RUNS_MAX {
            return refuse("as many programs are running as may");
        }
        if self.session.is_none() {
            cgroup::bound_all(request.memory_bytes)?;
            self.session = Some(Session::default());
        }
        Ok(())
    }

    /// Gives the writable space the size that goes with a program's memory, if it is not the usual.
    fn fit_writable(&mut self, memory_bytes: u64) {
        let wanted_mb = limits::writable_mb(memory_bytes / (1024 * 1024));
        // What packages have left there when they were imported can be more than a small one holds: then it stays as it is.
        if wanted_mb != self.writable_mb && boot::resize_writable(wanted_mb).is_ok() {
            self.writable_mb = wanted_mb;
        }
    }

    /// Takes in which runners have become warm.
    fn hear_runners(&mut self, woken: &Woken) -> Result<()> {
        let mut warmed = false;
        for runner in &mut self.runners {
            let Some(control) = runner.control.as_ref().filter(|control| woken.by(control)) else { continue };
            let mut byte = [0];
            match read(control, &mut byte) {
                Ok(1) if byte == *b"R" => {
                    runner.is_warm_now();
                    let before = self.warming.len();
                    self.warming.retain(|&language| language != runner.language);
                    warmed |= self.warming.len() < before;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // It has closed the pipe, or says what no runner says: of no use, and its end is reported as such. A closed
                // pipe wakes whoever still waits for it, again and again, and an agent that is always awake comes before
                // the process that is about to end.
                _ => {
                    runner.control = None;
                    runner.signal(Signal::SIGKILL);
                }
            }
        }
        if warmed { self.say_ready() } else { Ok(()) }
    }

    fn serve_runs(&mut self, woken: &Woken) -> Result<()> {
        let (mut ended, now) = (Vec::new(), Instant::now());
        for run in &mut self.runs {
            run.interrupt_again(now);
            run.pump(|pipe| woken.by(pipe), &mut self.port)?;
            if run.stdin().is_some_and(|pipe| woken.by(pipe)) {
                run.feed_stdin();
                run.tell_taken(&mut self.port)?;
            }
            if run.control().is_some_and(|pipe| woken.by(pipe))
                && let Some(end) = run.read_control()
            {
                ended.push((run.id, end));
            }
        }
        ended.into_iter().try_for_each(|(run, end)| self.finish(run, end))
    }

    /// Sends a chunk of each file that is wanted.
    fn serve_transfers(&mut self) -> Result<()> {
        let ready: Vec<_> = self.transfers.iter().filter(|known| known.is_ready()).map(|known| known.id).collect();
        ready.into_iter().try_for_each(|run| self.transfer(run, Transfer::pump))
    }

    /// Goes on with a file; one that fails, or is whole, is done with.
    fn transfer(&mut self, run: RunId, go_on: impl FnOnce(&mut Transfer, &mut Port) -> Result<bool>) -> Result<()> {
        let Some(index) = self.transfers.iter().position(|known| known.id == run) else { return Ok(()) };
        let done = go_on(&mut self.transfers[index], &mut self.port);
        if !matches!(done, Ok(false)) {
            self.transfers.swap_remove(index);
        }
        match done {
            Ok(_) => Ok(()),
            Err(error) => self.port.send(&GuestFrame::Failed { run: Some(run), reason: error.to_string() }),
        }
    }

    fn serve_tunnel(&mut self, woken: &Woken) -> Result<()> {
        let Some(tunnel) = &mut self.tunnel else { return Ok(()) };
        if !woken.by(&*tunnel) {
            return Ok(());
        }
        tunnel.flush()?;
        if tunnel.pump(&mut self.port)? {
            return Ok(());
        }
        let reason = tunnel.last_words();
        self.tunnel = None;
        self.port.send(&GuestFrame::Failed { run: None, reason })
    }

    fn finish(&mut self, id: RunId, end: End) -> Result<()> {
        let Some(index) = self.runs.iter().position(|run| run.id == id) else { return Ok(()) };
        let run = self.runs.swap_remove(index);
        let (kind, language) = (run.kind, run.runner.language);
        self.runners.extend(run.finish(end, &mut self.port)?);
        let Some(session) = &mut self.session else { return Ok(()) };
        match kind {
            Kind::Call { .. } if end.is_interpreters => {
                session.lose(language);
                // Who reads the result will want another.
                self.runners.push(Runner::spawn(language, &[], Cgroup::of(language)?, &Folder::shared()?)?);
            }
            Kind::Beside => session.left.push(Cgroup::of_run(id)?),
            _ => {}
        }
        Ok(())
    }

    /// Reaps every child that has ended: runners, and orphans that PID 1 inherits.
    fn reap(&mut self) -> Result<()> {
        // The signals only say that there is something to reap.
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code as u8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as u8)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(Error::new("reaping", error)),
            };
            self.note_end(pid, exit)?;
        }
        if let Some(session) = &mut self.session {
            session.left.retain(|cgroup| !cgroup.remove());
        }
        Ok(())
    }

    fn note_end(&mut self, pid: Pid, exit: Exit) -> Result<()> {
        if let Some(run) = self.runs.iter_mut().find(|run| run.runner.pid == pid) {
            // What the runner said before it ended counts more than how it ended.
            let end = End { is_interpreters: true, ..run.read_control().unwrap_or(End::of_process(exit)) };
            let id = run.id;
            self.finish(id, end)?;
            // A rehearsal has no use for an interpreter that is gone.
            self.runners.retain(|runner| runner.pid != pid);
            return Ok(());
        }
        let Some(index) = self.runners.iter().position(|runner| runner.pid == pid) else { return Ok(()) };
        let runner = self.runners.swap_remove(index);
        if let Some(session) = &mut self.session {
            // By what its last call has left in it, or another program has done to it: the next call is told.
            session.lose(runner.language);
        }
        if self.session.is_some() || !self.runs.is_empty() {
            // A program may kill all that is its user's; what it does not use itself is not missed.
            return Ok(());
        }
        let mut words = vec![0; 4096];
        let length = read(runner.stderr.as_fd(), &mut words).unwrap_or(0);
        let reason = format!(
            "the {} interpreter ended before it was ready ({exit:?}): {}",
            runner.language,
            String::from_utf8_lossy(&words[..length]).trim()
        );
        self.port.send(&GuestFrame::Failed { run: None, reason })
    }
}
