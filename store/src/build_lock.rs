//! The right to build, as it is held: a lock on a file, and a sign of life every second.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::error::{At, FileError};
use crate::open::open_lock;

/// How often a builder says that it is not stopped.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// Builders of one name at the same time, at most: the first, and those who build beside others that were stopped.
pub(crate) const GENERATIONS_MAX: usize = 8;

/// The right to build entries of one name, among all processes. Given back by its drop, or with the process. As long as its
/// process is not stopped, the file's time of change is never far from now.
#[derive(Debug)]
pub struct BuildLock {
    name: String,
    generation: usize,
    file: Arc<File>,
    /// Dropped to end the beating.
    _beating: Sender<()>,
}

/// Somebody has it: when that one last said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) beat: SystemTime,
}

impl BuildLock {
    pub(crate) fn try_take(path: &Path, name: &str, generation: usize) -> Result<Result<BuildLock, Taken>, FileError> {
        let file = open_lock(path, true).at("open", path)?;
        match file.try_lock() {
            Ok(()) => Ok(Ok(BuildLock::new(name, generation, file))),
            Err(TryLockError::WouldBlock) => {
                let beat = file.metadata().and_then(|metadata| metadata.modified()).at("look at", path)?;
                Ok(Err(Taken { beat }))
            }
            Err(TryLockError::Error(error)) => Err(error).at("lock", path),
        }
    }

    fn new(name: &str, generation: usize, file: File) -> BuildLock {
        let file = Arc::new(file);
        beat(&file);
        let (beating, ended) = mpsc::channel();
        let beaten = file.clone();
        // A thread, so that it beats whatever its owner does. Without one, somebody else may build beside it.
        let _ = thread::Builder::new().name("builder".into()).spawn(move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                beat(&beaten);
            }
        });
        BuildLock { name: name.to_owned(), generation, file, _beating: beating }
    }

    /// What entries it is for.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many builders of the name were stopped when it was taken.
    pub(crate) fn generation(&self) -> usize {
        self.generation
    }

    /// What tells its files from those of other builders of the name.
    pub(crate) fn label(&self) -> String {
        BuildLock::label_of(&self.name, self.generation)
    }

    pub(crate) fn label_of(name: &str, generation: usize) -> String {
        if generation == 0 { name.to_owned() } else { format!("{name}.{generation}") }
    }
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        // Its thread may have the file for a moment longer.
        let _ = self.file.unlock();
    }
}

fn beat(file: &File) {
    // On a disk that takes none, somebody else may build beside it, which costs time and nothing else.
    let _ = file.set_modified(SystemTime::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_builds_says_so_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("thing.lock");
        let take = || BuildLock::try_take(&path, "thing", 0).unwrap();
        let lock = take().unwrap();
        let first = take().unwrap_err();
        let until = std::time::Instant::now() + BEAT * 60;
        while take().unwrap_err() == first {
            assert!(std::time::Instant::now() < until, "it says nothing");
            thread::sleep(BEAT / 10);
        }
        drop(lock);
        assert!(take().is_ok(), "it is free at once");
    }
}
