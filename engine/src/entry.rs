//! An entry of the cache as it is read: without trust.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use sandbox_store::{Lease, Untrusted, check_owner, check_private, open_own};
use serde::de::DeserializeOwned;

/// What every entry says of itself.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("there is none")]
    Missing,
    #[error("{0}")]
    Damaged(String),
}

impl Unusable {
    pub(crate) fn damaged(what: &str, reason: impl std::fmt::Display) -> Unusable {
        Unusable::Damaged(format!("{what}: {reason}"))
    }
}

/// An entry that nobody can remove meanwhile, and that nobody else can have had a hand in.
pub(crate) struct Opened {
    folder: PathBuf,
    pub(crate) lease: Lease,
}

impl Opened {
    pub(crate) fn open(folder: &Path) -> Result<Opened, Unusable> {
        // In this order: what was looked at cannot be removed any more.
        let lease = match Lease::take(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Missing),
            lease => lease.map_err(|error| Unusable::damaged("the entry", error))?,
        };
        check_trust(folder)?;
        Ok(Opened { folder: folder.to_owned(), lease })
    }

    /// One of its files, and what is to be known of it before it is read.
    pub(crate) fn file(&self, name: &str) -> Result<(File, Metadata), Unusable> {
        open_own(&self.folder.join(name)).map_err(|reason| Unusable::Damaged(format!("{name} {reason}")))
    }

    pub(crate) fn manifest<T: DeserializeOwned>(&self) -> Result<T, Unusable> {
        let (manifest, _) = self.file(MANIFEST)?;
        serde_json::from_reader(manifest).map_err(|error| Unusable::damaged(MANIFEST, error))
    }
}

/// A device state is trusted input to QEMU: nobody else may have had a hand in it. Nor may anybody look into a memory that
/// programs begin with.
fn check_trust(folder: &Path) -> Result<(), Unusable> {
    let untrusted = |(path, reason): (&Path, Untrusted)| Unusable::Damaged(format!("{} {reason}", path.display()));
    let shelf = folder.parent().map_or(Ok(()), |shelf| check_owner(shelf).map_err(|reason| (shelf, reason)));
    shelf.and_then(|()| check_private(folder).map_err(|reason| (folder, reason))).map_err(untrusted)
}
