//! QEMU: the only place that knows its command line, its versions and its process.

// In the order in which to read them.
mod binary;
mod clock;
mod command;
mod monitor;
mod process;
mod version;

mod isolation;

mod confine;

mod child;
mod group;
mod namespace;
mod privileges;
mod user;

mod program;

mod calls;
mod filter;
#[cfg(test)]
mod held;
mod landlock;

mod confinement;

pub(crate) use binary::Qemu;
pub(crate) use clock::tsc_khz;
pub(crate) use command::{Code, KVM_DEVICE, LaunchSpec, OPENS_RAM_READ_ONLY, Slot, Start, StartKind, arguments_to};
pub(crate) use confinement::{confinement, tell};
pub(crate) use monitor::{Monitor, STATE_MAX_BYTES};
pub(crate) use process::{QemuProcess, private_memory_bytes, starved};
