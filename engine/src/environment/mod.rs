//! Environments: sets of packages that VMs have beside the image. Installed once, in a VM of their own, and read-only ever after.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_store::Lease;

use crate::qemu::Slot;

/// A set of packages that can be put into a VM. As long as it is there, nobody else may remove it from the disk.
#[derive(Debug)]
pub(crate) struct Environment {
    /// What callers call it: the language and the beginning of the key.
    pub(crate) id: String,
    /// What the packages are for.
    pub(crate) language: Language,
    /// Digest of all that decides what is in it.
    pub(crate) key: Digest,
    /// Names of the packages that were asked for, without those that they need.
    pub(crate) packages: Vec<String>,
    /// The file system that they are in.
    pub(crate) layer: Arc<OwnedFd>,
    _lease: Lease,
}

impl Environment {
    /// The disk of a VM that has these packages.
    pub(crate) fn slot(&self) -> Slot {
        Slot { file: self.layer.clone(), is_writable: false }
    }
}
