//! The agent's one loop. What can wake it: the port, the end of a child, a warming runner, the streams of the run, the end
//! of a stream's rest, and the tunnel where there is one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits;
use sandbox_schemas::wire::{Execute, Exit, GuestFrame, Hello, HostFrame, PROTOCOL_VERSION, Role};

use crate::error::{Context, Error, Result};
use crate::port::Port;
use crate::run::Run;
use crate::runner::{Runner, needs_own_start};
use crate::tunnel::Tunnel;
use crate::{boot, identity};

/// The agent: its port, what it keeps warm, and the program that it runs.
pub(crate) struct Agent {
    port: Port,
    children: SignalFd,
    runners: Vec<Runner>,
    /// Languages that [`Hello`] asked for and that are not warm yet.
    warming: Vec<Language>,
    run: Option<Run>,
    /// Parts of the second disk that are mounted.
    parts: usize,
    role: Role,
    /// Size of the writable space, in MiB.
    writable_mb: u64,
    /// Only in a VM that installs.
    tunnel: Option<Tunnel>,
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
            run: None,
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
                    if let Err(error) = self.obey(frame) {
                        self.port.send(&GuestFrame::Failed { reason: error.to_string() })?;
                    }
                }
            }
            self.hear_runners(&woken)?;
            self.serve_run(&woken)?;
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
        if let Some(run) = &self.run {
            for output in [&run.stdout, &run.stderr] {
                until = until.into_iter().chain(output.rest_end(now)).min();
                fds.extend(output.interest(now).map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
            }
            fds.extend(run.control().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            fds.extend(run.stdin().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        }
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up: waking early would only mean to wait again.
            let milliseconds = until.saturating_duration_since(now).as_millis() + 1;
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
            HostFrame::Interrupt => {
                if let Some(run) = &self.run {
                    run.runner.cgroup.interrupt();
                }
                Ok(())
            }
            HostFrame::Kill => self.run.as_ref().map_or(Ok(()), |run| run.runner.cgroup.kill_all()),
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
            self.runners.push(Runner::spawn(language, &[])?);
            self.warming.push(language);
        }
        let parts = usize::from(hello.parts);
        boot::mount_packages(self.parts, parts)?;
        self.parts = self.parts.max(parts);
        self.role = hello.role;
        if let Role::Installs { writable_mb, has_disk } = hello.role {
            self.equip(writable_mb, has_disk)?;
        }
        self.say_ready()
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
        if self.run.is_some() {
            return Err(Error::new("executing", "a program is running already"));
        }
        if self.role == Role::Runs && !request.is_rehearsal {
            self.fit_writable(request.memory_bytes);
        }
        let index = self.runners.iter().position(|runner| runner.language == request.language);
        let mut warm = index.map(|index| self.runners.swap_remove(index));
        if needs_own_start(request.language, &request.env)
            && let Some(runner) = warm.take()
        {
            // It has read its environment.
            runner.retire();
        }
        self.run = Some(Run::start(warm, request, &mut self.port)?);
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

    fn serve_run(&mut self, woken: &Woken) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let now = Instant::now();
        for output in [&mut run.stdout, &mut run.stderr] {
            let is_woken = output.interest(now).is_some_and(|pipe: BorrowedFd<'_>| woken.by(pipe));
            if is_woken {
                output.pump(&mut self.port)?;
            }
        }
        if run.stdin().is_some_and(|pipe| woken.by(pipe)) {
            run.feed_stdin();
        }
        if run.control().is_some_and(|pipe| woken.by(pipe))
            && let Some(exit) = run.read_control()
        {
            return self.finish(exit);
        }
        Ok(())
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
        self.port.send(&GuestFrame::Failed { reason })
    }

    fn finish(&mut self, exit: Exit) -> Result<()> {
        if let Some(run) = self.run.take() {
            self.runners.extend(run.finish(exit, &mut self.port)?);
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
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(Error::new("reaping", error)),
            };
            self.note_end(pid, exit)?;
        }
    }

    fn note_end(&mut self, pid: Pid, exit: Exit) -> Result<()> {
        if let Some(run) = &mut self.run
            && run.runner.pid == pid
        {
            // What the runner said before it ended counts more than how it ended.
            let exit = run.read_control().unwrap_or(exit);
            self.finish(exit)?;
            // A rehearsal has no use for an interpreter that is gone.
            self.runners.retain(|runner| runner.pid != pid);
            return Ok(());
        }
        let Some(index) = self.runners.iter().position(|runner| runner.pid == pid) else { return Ok(()) };
        let runner = self.runners.swap_remove(index);
        if self.run.is_some() {
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
        self.port.send(&GuestFrame::Failed { reason })
    }
}
