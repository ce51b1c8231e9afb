//! QEMU: the only place that knows its command line, its versions and its process.

// In the order in which to read them.
mod binary;
mod clock;
mod command;
mod process;

pub(crate) mod accelerate;

pub(crate) use binary::Qemu;
pub(crate) use clock::tsc_khz;
pub(crate) use command::LaunchSpec;
pub(crate) use process::QemuProcess;
