//! Where an entry is built: beside the others, so that one rename puts it into its place.

use std::fs::{self, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::build_lock::BuildLock;
use crate::error::{At, FileError};
use crate::file::{create_private_directory, sync_directory};
use crate::lease::{Lease, is_same};
use crate::open::open_directory;

/// What the directories of builders are called.
pub(crate) const BUILDING: &str = ".building-";

/// A place for one build. Its drop removes what is in it, and gives the right to build back.
#[derive(Debug)]
pub struct Workplace {
    entry: PathBuf,
    made: PathBuf,
    scratch: PathBuf,
    replaced: PathBuf,
    // In this order: as long as something is here, nobody else may sweep it away.
    directory: TempDir,
    lock: BuildLock,
}

impl Workplace {
    pub(crate) fn new(folder: &Path, entry: PathBuf, lock: BuildLock) -> Result<Workplace, FileError> {
        let prefix = format!("{BUILDING}{}-", lock.label());
        let directory =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(folder).at("create a directory in", folder)?;
        let [made, scratch, replaced] = ["made", "scratch", "replaced"].map(|name| directory.path().join(name));
        create_private_directory(&made)?;
        create_private_directory(&scratch)?;
        Ok(Workplace { entry, made, scratch, replaced, directory, lock })
    }

    /// Moves away what cannot be used. That this fails is to be known before minutes of building.
    pub(crate) fn clear(self) -> Result<Workplace, FileError> {
        match fs::rename(&self.entry, &self.replaced) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at("replace", &self.entry),
            _ => Ok(self),
        }
    }

    /// An empty directory that becomes the entry.
    pub fn made(&self) -> &Path {
        &self.made
    }

    /// An empty directory that is removed afterwards.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Nothing was made: what is here goes, and the right to build stays.
    pub fn give_up(self) -> BuildLock {
        self.lock
    }

    /// Moves what was made into its place. It is in use from the first moment: nobody removes it before its builder has
    /// looked at it. The files in it must have been synced. If somebody who has built beside this one was first, it is that
    /// entry which is used, and what was made here goes.
    pub fn publish(self) -> Result<Lease, FileError> {
        let lease = Lease::take(&self.made).at("lock", &self.made)?;
        sync_directory(&self.made)?;
        match fs::rename(&self.made, &self.entry) {
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                return Lease::take(&self.entry).at("lock", &self.entry);
            }
            renamed => renamed.at("create", &self.entry)?,
        }
        if let Some(folder) = self.directory.path().parent() {
            sync_directory(folder)?;
        }
        Ok(lease.moved_to(self.entry))
    }

    /// The same, in the place of what is there and could be used until now. Fails if a process uses it: the files that it opens by
    /// their paths must not become others.
    pub fn publish_anew(self) -> Result<Lease, FileError> {
        let old = match open_directory(&self.entry) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.publish(),
            old => old.at("open", &self.entry)?,
        };
        // Held until the other one is there: whoever wants to use it meanwhile waits for that.
        let locked = match old.try_lock() {
            Err(TryLockError::WouldBlock) => Err(io::Error::new(ErrorKind::ResourceBusy, "a process uses it")),
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        locked.at("replace", &self.entry)?;
        let found = old.metadata().and_then(|old| Ok(is_same(&old, &fs::metadata(&self.entry)?)));
        if found.at("look at", &self.entry)? {
            fs::rename(&self.entry, &self.replaced).at("replace", &self.entry)?;
        }
        self.publish()
    }
}
