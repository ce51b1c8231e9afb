//! Environments: sets of packages that VMs have beside the image. Installed once, in a VM of their own, and read-only ever after.
//!
//! ```text
//! request -> requirements, allowed -> known? -> lock -> layer on disk? -> Environment
//!                                        '-> build, shared -> install in a VM <- tunnel <- gateway <- registry
//! ```

// In the order in which to read them.
mod environments;
pub(crate) use environments::Environments;

mod obtained;
pub(crate) use obtained::Obtained;

mod build;

mod install;
pub use install::Installation;
pub(crate) use install::run_installer;

mod layer;

mod extension;
mod parent;

mod resolution;

mod error;
pub use error::InstallError;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sandbox_schemas::environment::{EnvironmentId, Omitted, PackageLock};
use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_schemas::layer::LayerReference;
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
    pub(crate) lock: PackageLock,
    /// Names of those that were asked for, without those that they need.
    pub(crate) requested: Vec<String>,
    /// What it takes on the disk, in bytes.
    pub(crate) size_bytes: u64,
    /// The disk that they are on.
    pub(crate) layer: Arc<OwnedFd>,
    /// SHA-256 of that disk: what was installed twice need not be the same to the byte.
    pub(crate) image_sha256: Digest,
    /// How many parts of its disk have packages.
    pub(crate) parts: u8,
    /// The layer that it begins with, where its packages were added to one.
    pub(crate) added_to: Option<LayerReference>,
    /// What its packages can do without, and does not have.
    pub(crate) skipped: Vec<Omitted>,
    /// That one, as long as it is here as well.
    pub(crate) parent: Option<Arc<Environment>>,
    _lease: Option<Lease>,
}

impl Environment {
    /// As a layer that begins with it names it.
    pub(crate) fn reference(&self) -> LayerReference {
        LayerReference { key: self.key, image_sha256: self.image_sha256 }
    }

    /// Whether its disk begins with all that is on another's.
    pub(crate) fn begins_with(&self, other: &Environment) -> bool {
        self.image_sha256 == other.image_sha256 || self.parent.as_ref().is_some_and(|parent| parent.begins_with(other))
    }

    /// Whether it, or one whose packages were added to, has this id.
    pub(crate) fn is_known_as(&self, id: &str) -> bool {
        self.id.to_string() == id || self.parent.as_ref().is_some_and(|parent| parent.is_known_as(id))
    }

    /// The disk of a VM that has these packages.
    pub(crate) fn slot(&self) -> Slot {
        Slot { file: Some(self.layer.clone()), is_writable: false }
    }

    /// One of no packages, that tells itself from others.
    #[cfg(test)]
    pub(crate) fn for_tests(number: u8) -> Arc<Environment> {
        let (language, key) = (Language::Python, Digest([number; 32]));
        Arc::new(Environment {
            id: EnvironmentId::new(language, key),
            language,
            key,
            lock: PackageLock::new(language, Vec::new()),
            requested: Vec::new(),
            size_bytes: 0,
            layer: Arc::new(tempfile::tempfile().unwrap().into()),
            image_sha256: Digest([number; 32]),
            parts: 1,
            added_to: None,
            skipped: Vec::new(),
            parent: None,
            _lease: None,
        })
    }
}
