//! Environments: sets of packages that VMs have beside the image. Installed once, in a VM of their own, and read-only ever after.
//!
//! ```text
//! request -> requirements, allowed -> known? -> lock -> layer on disk? -> Environment
//!                                        '-> build, shared -> install in a VM <- tunnel <- gateway <- registry
//! ```

// In the order in which to read them.
mod environments;
pub(crate) use environments::{Environments, Obtained};

mod build;

mod install;
pub use install::Installation;
pub(crate) use install::run_installer;

mod layer;

mod resolution;

mod error;
pub use error::InstallError;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sandbox_schemas::environment::{EnvironmentId, Lock};
use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_store::Lease;

use crate::qemu::Slot;

/// A set of packages that can be put into a VM. As long as it is there, nobody else may remove it from the disk.
#[derive(Debug)]
pub(crate) struct Environment {
    /// What callers call it.
    pub(crate) id: EnvironmentId,
    /// What the packages are for.
    pub(crate) language: Language,
    /// Digest of all that decides what is in it.
    pub(crate) key: Digest,
    /// The exact packages.
    pub(crate) lock: Lock,
    /// Names of those that were asked for, without those that they need.
    pub(crate) requested: Vec<String>,
    /// What it takes on the disk, in bytes.
    pub(crate) size_bytes: u64,
    /// The file system that they are in.
    pub(crate) layer: Arc<OwnedFd>,
    _lease: Option<Lease>,
}

impl Environment {
    /// The disk of a VM that has these packages.
    pub(crate) fn slot(&self) -> Slot {
        Slot { file: self.layer.clone(), is_writable: false }
    }

    /// One of no packages, that tells itself from others.
    #[cfg(test)]
    pub(crate) fn for_tests(number: u8) -> Arc<Environment> {
        let (language, key) = (Language::Python, Digest([number; 32]));
        Arc::new(Environment {
            id: EnvironmentId::new(language, key),
            language,
            key,
            lock: Lock::new(language, Vec::new()),
            requested: Vec::new(),
            size_bytes: 0,
            layer: Arc::new(tempfile::tempfile().unwrap().into()),
            _lease: None,
        })
    }
}
