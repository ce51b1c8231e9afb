//! Templates: a VM that was booted once, warmed and saved. A fresh VM is QEMU started with its memory, copy on write, and
//! its devices' state: no boot. One of an environment is made of the base: restored, given the packages, saved again.

// In the order in which to read them.
mod templates;
pub(crate) use templates::Templates;

mod known;
mod standing;

mod supply;

mod build;
pub(crate) mod rehearsal;

mod code;
mod derive;
mod key;
pub(crate) mod ram;
mod saved;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sandbox_schemas::environment::Omitted;
use sandbox_schemas::image::Digest;
use sandbox_store::Lease;

use crate::environment::Environment;
use crate::qemu::{Code, Start};

/// A template that can be restored. As long as it is there, nobody else may remove it from the disk.
#[derive(Debug)]
pub(crate) struct Template {
    ram: Arc<OwnedFd>,
    state: Arc<[u8]>,
    /// What tells it from others of its key.
    state_sha256: Digest,
    /// What its QEMU has translated, if that keeps code.
    code: Option<Arc<OwnedFd>>,
    /// Size of a clone's memory, in MiB.
    pub(crate) memory_mb: u64,
    /// The time stamp counter that clones count by, in kHz.
    pub(crate) tsc_khz: u64,
    /// The packages that it has.
    pub(crate) environment: Option<Arc<Environment>>,
    /// Those of them that were asked for and are not imported.
    pub(crate) left_out: Vec<Omitted>,
    _lease: Option<Lease>,
}

impl Template {
    /// What a clone begins with.
    pub(crate) fn start(&self) -> Start {
        Start::Restore { ram: self.ram.clone(), state: self.state.clone() }
    }

    /// The code that a clone need not translate.
    pub(crate) fn code(&self) -> Code {
        Code { load: self.code.clone(), save: None }
    }

    /// One that tells itself from others, and is no good.
    #[cfg(test)]
    pub(crate) fn for_tests(number: u8) -> Template {
        Template {
            ram: Arc::new(tempfile::tempfile().unwrap().into()),
            state: Arc::new([]),
            state_sha256: Digest([number; 32]),
            code: None,
            memory_mb: 1,
            tsc_khz: 1,
            environment: None,
            left_out: Vec::new(),
            _lease: None,
        }
    }
}
