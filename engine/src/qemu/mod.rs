//! QEMU: the only place that knows its command line, its versions and its process.

// In the order in which to read them.
mod binary;
mod clock;
mod command;
mod monitor;
mod process;
mod version;

pub(crate) use binary::Qemu;
pub(crate) use clock::tsc_khz;
pub(crate) use command::{Code, LaunchSpec, OPENS_RAM_READ_ONLY, Slot, Start, StartKind, arguments_to};
pub(crate) use monitor::{Monitor, STATE_MAX_BYTES};
pub(crate) use process::{KVM_DEVICE, QemuProcess, runs_as_another_user, starved};
