//! Templates: a VM that was booted once, warmed and saved. A fresh VM is QEMU started with its memory, copy on write, and
//! its devices' state: no boot. One of a set of packages is made of the base: restored, given the packages, saved again.

// In the order in which to read them.
mod templates;
pub(crate) use templates::Templates;

mod build;
pub(crate) mod rehearsal;

mod code;
mod derive;
mod entry;
mod key;
pub(crate) mod ram;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sandbox_store::Lease;

use crate::environment::Environment;
use crate::qemu::{Code, Start};

/// A template that can be restored. As long as it is there, nobody else may remove it from the disk.
#[derive(Debug)]
pub(crate) struct Template {
    ram: Arc<OwnedFd>,
    state: Arc<[u8]>,
    /// What its QEMU has translated, if that keeps code.
    code: Option<Arc<OwnedFd>>,
    /// Size of a clone's memory, in MiB.
    pub(crate) memory_mb: u64,
    /// The time stamp counter that clones count by, in kHz.
    pub(crate) tsc_khz: u64,
    /// Clones that did not come up since the last one that did.
    failures: AtomicU32,
    /// The packages that it has.
    pub(crate) environment: Option<Arc<Environment>>,
    _lease: Lease,
}

impl Template {
    /// A clone came up.
    pub(crate) fn note_success(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// What a clone begins with.
    pub(crate) fn start(&self) -> Start {
        Start::Restore { ram: self.ram.clone(), state: self.state.clone() }
    }

    /// The code that a clone need not translate.
    pub(crate) fn code(&self) -> Code {
        Code { load: self.code.clone(), save: None }
    }
}
