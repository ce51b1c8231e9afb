//! One VM's life. A type per phase, so that what is illegal does not compile; dropping any of them destroys the VM.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sandbox_schemas::language::Language;
use sandbox_schemas::wire::{Execute, GuestFrame, Hello, HostFrame, PROTOCOL_VERSION};

use crate::error::VmError;
use crate::qemu::{LaunchSpec, Qemu, QemuProcess};
use crate::wire::Wire;

/// A process and its wire: what every phase holds.
#[derive(Debug)]
struct Machine {
    process: QemuProcess,
    wire: Wire,
}

impl Machine {
    /// QEMU's own words make an unexpected end understandable.
    async fn explain(&mut self, error: VmError) -> VmError {
        match error {
            VmError::Ended(detail) => VmError::Ended(format!("{detail}{}", self.process.last_words().await)),
            other => other,
        }
    }

    async fn receive(&mut self) -> Result<GuestFrame, VmError> {
        match self.wire.receive().await {
            Ok(GuestFrame::Failed { reason }) => Err(VmError::Guest(reason)),
            Ok(frame) => Ok(frame),
            Err(error) => Err(self.explain(error).await),
        }
    }
}

/// QEMU runs; the guest has not reported yet.
#[derive(Debug)]
pub(crate) struct Booting {
    machine: Machine,
}

/// The guest waits for a program.
#[derive(Debug)]
pub(crate) struct Ready {
    machine: Machine,
}

/// The guest runs its program. There is no way back.
#[derive(Debug)]
pub(crate) struct Running {
    machine: Machine,
    /// When the guest said that the program had started.
    pub(crate) started: Instant,
}

impl Booting {
    /// Starts QEMU and says what the guest shall become. `keep` is dropped once the process is gone.
    pub(crate) async fn launch(
        qemu: &Qemu,
        spec: &LaunchSpec,
        warm: Vec<Language>,
        keep: impl Send + 'static,
    ) -> Result<Booting, VmError> {
        let (wire, guest_end) = Wire::pair()?;
        let process = qemu.spawn(spec, guest_end, keep)?;
        let mut machine = Machine { process, wire };
        let hello = HostFrame::Hello(hello(warm)?);
        if let Err(error) = machine.wire.send(&hello).await {
            return Err(machine.explain(error).await);
        }
        Ok(Booting { machine })
    }

    /// Waits until the guest is ready, but not for ever.
    pub(crate) async fn ready(mut self, deadline: Duration) -> Result<Ready, VmError> {
        match tokio::time::timeout(deadline, self.machine.receive()).await {
            Err(_) => Err(VmError::Deadline(deadline)),
            Ok(Ok(GuestFrame::Ready)) => Ok(Ready { machine: self.machine }),
            Ok(Ok(other)) => Err(unexpected("ready", &other)),
            Ok(Err(error)) => Err(error),
        }
    }
}

impl Ready {
    /// Hands over the program. From the first byte of this on, it may have run.
    pub(crate) async fn start(mut self, program: Execute, deadline: Duration) -> Result<Running, VmError> {
        let hand_over = async {
            self.machine.wire.send(&HostFrame::Execute(program)).await?;
            self.machine.receive().await
        };
        match tokio::time::timeout(deadline, hand_over).await {
            Err(_) => Err(VmError::Deadline(deadline)),
            Ok(Ok(GuestFrame::Started)) => Ok(Running { machine: self.machine, started: Instant::now() }),
            Ok(Ok(other)) => Err(unexpected("started", &other)),
            Ok(Err(error)) => Err(error),
        }
    }
}

impl Running {
    /// The next thing that the guest says. Cancel-safe until the guest's end.
    ///
    /// That something failed is no word to rely on any more: the program may have run.
    pub(crate) async fn next(&mut self) -> Result<GuestFrame, VmError> {
        self.machine.receive().await.map_err(|error| match error {
            VmError::Guest(reason) => VmError::Protocol(reason),
            other => other,
        })
    }

    /// Ctrl-C for the program.
    pub(crate) async fn interrupt(&mut self) -> Result<(), VmError> {
        self.machine.wire.send(&HostFrame::Interrupt).await
    }

    /// The end of all the program's processes.
    pub(crate) async fn kill(&mut self) -> Result<(), VmError> {
        self.machine.wire.send(&HostFrame::Kill).await
    }
}

pub(crate) fn unexpected(expected: &str, found: &GuestFrame) -> VmError {
    let found = match found {
        GuestFrame::Ready => "ready",
        GuestFrame::Started => "started",
        GuestFrame::Output { .. } => "output",
        GuestFrame::Finished(_) => "finished",
        GuestFrame::Failed { .. } => "failed",
    };
    VmError::Protocol(format!("{expected} was expected, {found} came"))
}

fn hello(warm: Vec<Language>) -> Result<Hello, VmError> {
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|error| VmError::Spawn(format!("reading random bytes: {error}")))?;
    let (entropy, id) = random.split_at(32);
    let mut hello = Hello {
        protocol: PROTOCOL_VERSION,
        realtime_ns: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64),
        entropy: [0; 32],
        vm_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        warm,
    };
    hello.entropy.copy_from_slice(entropy);
    Ok(hello)
}
