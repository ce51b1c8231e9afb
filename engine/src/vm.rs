//! One VM's life. A type per phase, so that what is illegal does not compile; dropping any of them destroys the VM.
//!
//! ```text
//! Booting --ready--> Ready --rehearse--> Ready --into_waiting--> Waiting --open--> Open --> destroyed
//!    |                                                              |
//!    '---------------------------------start------------------------'--> Running --> destroyed
//! ```

mod rehearsing;

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use sandbox_schemas::image::BootImage;
use sandbox_schemas::language::Language;
use sandbox_schemas::wire::{Execute, GuestFrame, Hello, HostFrame, PROTOCOL_VERSION, Role, RunId};
use sandbox_store::{limits_behind_words, limits_too_low};

use crate::error::VmError;
use crate::id;
use crate::qemu::{LaunchSpec, Monitor, Qemu, QemuProcess, starved};
use crate::tunnel::{Tunnel, TunnelHandler};
use crate::wire::{Wire, encode, unexpected};

/// A process, its wire, and its tunnel and its monitor where it has one: what every phase holds.
#[derive(Debug)]
struct Machine {
    /// There is none only where a test plays the guest.
    process: Option<QemuProcess>,
    wire: Wire,
    tunnel: Option<Box<Tunnel>>,
    monitor: Option<Monitor>,
}

impl Machine {
    /// QEMU's own words make an unexpected end understandable.
    async fn explain(&mut self, error: VmError) -> VmError {
        match error {
            VmError::Ended(detail) => {
                let words = match &mut self.process {
                    Some(process) => process.last_words().await,
                    None => String::new(),
                };
                // It lives under the limits of this process. The loader, and the kernel, end it without a word.
                let limits = match limits_behind_words(&words) {
                    limits if limits.is_empty() => limits_too_low(),
                    limits => limits,
                };
                VmError::Ended(format!("{detail}{words}{limits}"))
            }
            other => other,
        }
    }

    fn monitor(&mut self) -> Result<&mut Monitor, VmError> {
        self.monitor.as_mut().ok_or_else(|| VmError::Spawn("the VM was started without a monitor".into()))
    }

    async fn send(&mut self, frames: &[u8]) -> Result<(), VmError> {
        match self.wire.send(frames).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// The next frame, or QEMU's word that none will come.
    async fn receive(&mut self) -> Result<GuestFrame, VmError> {
        match self.hear_all_is_well().await {
            Ok(frame) => Ok(frame),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// The next frame, if it is not that something failed. Cancel-safe.
    async fn hear_all_is_well(&mut self) -> Result<GuestFrame, VmError> {
        match self.hear().await? {
            GuestFrame::Failed { reason, .. } => Err(VmError::Guest(reason)),
            frame => Ok(frame),
        }
    }

    /// The same without the time that it takes to learn why a guest has ended. Cancel-safe.
    async fn hear(&mut self) -> Result<GuestFrame, VmError> {
        let failure = async {
            match &mut self.monitor {
                Some(monitor) => monitor.failure().await,
                None => std::future::pending().await,
            }
        };
        let frame = async {
            match &mut self.tunnel {
                Some(tunnel) => tunnel.receive(&mut self.wire).await,
                None => self.wire.receive().await,
            }
        };
        tokio::select! {
            frame = frame => frame,
            error = failure => Err(error),
        }
    }

    fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.id)
    }

    /// A guest is not to blame for a deadline if its QEMU has waited for a processor for much of that time.
    fn excuse(&self, error: VmError) -> VmError {
        match error {
            VmError::Deadline(deadline) if waited(self.process_id()) > deadline / 4 => VmError::Starved(deadline),
            other => other,
        }
    }

    async fn expect_ready(&mut self) -> Result<(), VmError> {
        match self.receive().await? {
            GuestFrame::Ready => Ok(()),
            other => Err(unexpected("ready", &other)),
        }
    }

    /// Writes `frames`, the last of which is a program; waits until the guest says that it has started.
    async fn start(mut self, frames: &[u8], says_ready: bool, deadline: Duration) -> Result<Running, VmError> {
        let hand_over = async {
            self.send(frames).await?;
            let mut ready = Instant::now();
            if says_ready {
                self.expect_ready().await?;
                ready = Instant::now();
            }
            match self.receive().await? {
                GuestFrame::Started(_) => Ok(ready),
                other => Err(unexpected("started", &other)),
            }
        };
        let handed_over = within(deadline, hand_over).await;
        let ready = handed_over.map_err(|error| self.excuse(error))?;
        Ok(Running { machine: self, ready, started: Instant::now() })
    }
}

/// Nothing that a guest does is waited for without end.
async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, VmError>>) -> Result<T, VmError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(VmError::Deadline(deadline)))
}

/// Opening a file takes QEMU a millisecond.
const DISK_DEADLINE: Duration = Duration::from_secs(10);

/// For how long a process was ready to run and did not.
fn waited(process: Option<u32>) -> Duration {
    process.map_or(Duration::ZERO, starved)
}

/// How often a guest that was kept from the processor is given its time again.
pub(crate) const PATIENCE: u32 = 10;

/// The same for what takes a guest long, of which no caller waits for the end: the time counts in which it could have done it. A busy
/// machine must not be a reason to make a template that has rehearsed less.
async fn within_time_of_its_own<T>(
    process: Option<u32>,
    deadline: Duration,
    work: impl Future<Output = Result<T, VmError>>,
) -> Result<T, VmError> {
    let mut work = std::pin::pin!(work);
    let mut before = waited(process);
    for _ in 0..PATIENCE {
        if let Ok(done) = tokio::time::timeout(deadline, work.as_mut()).await {
            return done;
        }
        let now = waited(process);
        if now.saturating_sub(before) < deadline / 4 {
            return Err(VmError::Deadline(deadline));
        }
        before = now;
    }
    Err(VmError::Starved(deadline * PATIENCE))
}

/// QEMU runs; the guest has not reported yet.
#[derive(Debug)]
pub(crate) struct Booting {
    machine: Machine,
}

/// The guest is up.
#[derive(Debug)]
pub(crate) struct Ready {
    machine: Machine,
}

/// The guest waits for a program. Its clock is late by the time since it was set, or by the boot.
#[derive(Debug)]
pub(crate) struct Waiting {
    machine: Machine,
}

/// The guest runs programs of one session, and none of another's. There is no way back.
#[derive(Debug)]
pub(crate) struct Open {
    machine: Machine,
    /// When it was ready for programs.
    pub(crate) opened: Instant,
}

/// The guest runs its program. There is no way back.
#[derive(Debug)]
pub(crate) struct Running {
    machine: Machine,
    /// When the guest was ready for the program.
    pub(crate) ready: Instant,
    /// When the guest said that the program had started.
    pub(crate) started: Instant,
}

impl Booting {
    /// Starts QEMU and says what the guest shall become. `keep` is dropped once the process is gone.
    pub(crate) async fn launch(
        qemu: &Qemu,
        spec: &LaunchSpec,
        hello: Hello,
        keep: impl Send + 'static,
    ) -> Result<Booting, VmError> {
        let spawn = || {
            let (wire, guest_end) = Wire::pair()?;
            let (monitor, monitor_end) =
                if spec.start.kind().has_monitor() { Some(Monitor::pair()?).unzip() } else { (None, None) };
            Ok((qemu.spawn(spec, guest_end, monitor_end, keep)?, wire, monitor))
        };
        let (process, wire, monitor) = spawn().map_err(|error| not_spawned(error, qemu, spec))?;
        let mut machine = Machine { process: Some(process), wire, tunnel: None, monitor };
        if let (Some(state), Some(monitor)) = (spec.start.state(), &mut machine.monitor) {
            monitor.begin_restore(state).await?;
        }
        // It lies in the socket until the guest reads it: for a restored one, when it wakes.
        machine.send(&encode(&HostFrame::Hello(hello))?).await?;
        Ok(Booting { machine })
    }

    /// A guest that is only a wire.
    #[cfg(test)]
    pub(crate) fn over(wire: Wire) -> Booting {
        Booting { machine: Machine { process: None, wire, tunnel: None, monitor: None } }
    }

    /// Serves the connections of a VM that installs. What the guest opens is served whenever the VM is listened to, in each
    /// of its phases.
    pub(crate) fn with_tunnel(mut self, handler: Arc<dyn TunnelHandler>) -> Booting {
        self.machine.tunnel = Some(Box::new(Tunnel::new(handler)));
        self
    }

    /// Waits until the guest is ready, but not for ever.
    pub(crate) async fn ready(mut self, deadline: Duration) -> Result<Ready, VmError> {
        let ready = within(deadline, self.machine.expect_ready()).await;
        ready.map_err(|error| self.machine.excuse(error))?;
        Ok(Ready { machine: self.machine })
    }

    /// Hands over the program before the guest is ready for it, so that it finds it there. Until [`Running`] is reached it
    /// has no effect outside the VM, and can be run in another.
    pub(crate) async fn start(self, program: &Program, deadline: Duration) -> Result<Running, VmError> {
        self.machine.start(&program.0, true, deadline).await
    }
}

impl Ready {
    /// Leaves it alone for a while. A guest that says something then, or ends, is of no use.
    pub(crate) async fn rest(mut self, time: Duration) -> Result<Ready, VmError> {
        match tokio::time::timeout(time, self.machine.receive()).await {
            Err(_) => Ok(self),
            Ok(Ok(frame)) => Err(unexpected("nothing", &frame)),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Stops the VM for a moment, which a QEMU that keeps code takes for the end of what most clones do.
    pub(crate) async fn pause(mut self, deadline: Duration) -> Result<Ready, VmError> {
        match within(deadline, self.machine.monitor()?.pause()).await {
            Ok(()) => Ok(self),
            Err(error) => Err(self.machine.explain(error).await),
        }
    }

    /// Stops the VM for good and takes its device state; its memory is in the file that it was started with.
    pub(crate) async fn save(mut self, deadline: Duration) -> Result<Vec<u8>, VmError> {
        match within(deadline, self.machine.monitor()?.save()).await {
            Ok(state) => Ok(state),
            Err(error) => Err(self.machine.explain(error).await),
        }
    }

    pub(crate) fn into_waiting(self) -> Waiting {
        Waiting { machine: self.machine }
    }
}

impl Waiting {
    /// Whether it still waits: a guest that says anything, or has ended, does not.
    pub(crate) fn is_sound(&mut self) -> bool {
        self.machine.receive().now_or_never().is_none()
    }

    /// Tells the guest the time, and hands over the program.
    pub(crate) async fn start(self, program: &Program, deadline: Duration) -> Result<Running, VmError> {
        let mut frames = encode(&HostFrame::Clock(realtime_ns()))?;
        frames.extend_from_slice(&program.0);
        self.machine.start(&frames, false, deadline).await
    }
}

impl Waiting {
    /// Gives it to a session, and tells the guest the time.
    pub(crate) fn open(mut self) -> Result<Open, VmError> {
        self.machine.wire.post(&encode(&HostFrame::Clock(realtime_ns()))?);
        Ok(Open { machine: self.machine, opened: Instant::now() })
    }
}

impl Open {
    /// The next thing that the guest says, of whichever program. Cancel-safe. Its end is for [`Open::explain`].
    pub(crate) async fn next(&mut self) -> Result<GuestFrame, VmError> {
        match self.machine.hear().await? {
            GuestFrame::Failed { run: None, reason } => Err(VmError::Protocol(reason)),
            frame => Ok(frame),
        }
    }

    /// Goes out while the guest is listened to.
    pub(crate) fn post(&mut self, frames: &[u8]) {
        self.machine.wire.post(frames);
    }

    /// Whether it has a monitor to tell so. One that boots has none.
    pub(crate) fn can_change_disk(&self) -> bool {
        self.machine.monitor.is_some()
    }

    /// Puts another disk into the slot for packages. What is mounted of the one before has to be on it as well.
    pub(crate) async fn change_disk(&mut self, disk: &OwnedFd, number: u32) -> Result<(), VmError> {
        within(DISK_DEADLINE, self.machine.monitor()?.change_disk(disk, number)).await
    }

    /// An unexpected end with what QEMU said of it.
    pub(crate) async fn explain(&mut self, error: VmError) -> VmError {
        self.machine.explain(error).await
    }

    /// QEMU's process.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.machine.process_id()
    }
}

impl Running {
    /// The next thing that the guest says. Cancel-safe. Its end is for [`Running::explain`].
    ///
    /// That something failed is no word to rely on any more: the program may have run.
    pub(crate) async fn next(&mut self) -> Result<GuestFrame, VmError> {
        self.machine.hear_all_is_well().await.map_err(|error| match error {
            VmError::Guest(reason) => VmError::Protocol(reason),
            other => other,
        })
    }

    /// What the guest has said and nobody has heard yet, if there is anything.
    pub(crate) fn next_at_hand(&mut self) -> Option<Result<GuestFrame, VmError>> {
        self.next().now_or_never()
    }

    /// An unexpected end with what QEMU said of it.
    pub(crate) async fn explain(&mut self, error: VmError) -> VmError {
        self.machine.explain(error).await
    }

    /// Ctrl-C for the program. Goes out while the guest is listened to.
    pub(crate) fn interrupt(&mut self, run: RunId) -> Result<(), VmError> {
        self.machine.wire.post(&encode(&HostFrame::Interrupt(run))?);
        Ok(())
    }

    /// The end of all the program's processes. Goes out while the guest is listened to.
    pub(crate) fn kill(&mut self, run: RunId) -> Result<(), VmError> {
        self.machine.wire.post(&encode(&HostFrame::Kill(run))?);
        Ok(())
    }

    /// Whether the guest has not read all that it was told.
    pub(crate) fn is_deaf(&self) -> bool {
        !self.machine.wire.is_idle()
    }
}

/// A program as it goes over the wire: encoded once, whichever VM takes it in the end.
#[derive(Debug)]
pub(crate) struct Program(Vec<u8>);

impl Program {
    pub(crate) fn new(program: Execute) -> Result<Program, VmError> {
        encode(&HostFrame::Execute(program)).map(Program)
    }

    pub(crate) fn into_frames(self) -> Vec<u8> {
        self.0
    }
}

/// Why QEMU did not start, where something can be done about it.
fn not_spawned(error: VmError, qemu: &Qemu, spec: &LaunchSpec) -> VmError {
    let BootImage { kernel, root, initrd, .. } = &spec.image;
    // What a clone needs of it first. Somebody has removed the cache, or a package, under this server.
    let gone = [root.as_path(), qemu.path(), kernel, initrd].into_iter().find(|path| is_gone(path));
    match (gone, error) {
        (Some(path), _) => VmError::Gone(path.to_owned()),
        (None, VmError::Spawn(reason)) => {
            let limits = limits_behind_words(&reason);
            VmError::Spawn(format!("{reason}{limits}"))
        }
        (None, other) => other,
    }
}

fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// What makes a VM itself: names and randomness of its own, and the time that it is now. It is for running programs, unless
/// its maker says otherwise.
pub(crate) fn hello(warm: Vec<Language>) -> Result<Hello, VmError> {
    let mut random = [0; 48];
    id::fill(&mut random).map_err(VmError::random)?;
    let (entropy, vm_id) = random.split_at(32);
    let mut hello = Hello {
        protocol: PROTOCOL_VERSION,
        realtime_ns: realtime_ns(),
        entropy: [0; 32],
        vm_id: id::digits(vm_id),
        warm,
        role: Role::Runs,
        parts: 0,
    };
    hello.entropy.copy_from_slice(entropy);
    Ok(hello)
}

fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
