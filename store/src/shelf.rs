//! A directory of entries.
//!
//! ```text
//! <name>-<key>/             an entry: its files, its manifest
//! <name>.lock               held while an entry of that name is built
//! .building-<name>-XXXXXX   what a builder works in; swept by the next one if it was killed
//! ```

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use sandbox_schemas::image::Digest;
use tempfile::TempDir;

use crate::error::{At, FileError};
use crate::file::{create_private_directory, sync_directory};

/// Where entries of one kind lie.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
}

/// The right to build entries of one name, among all processes. Given back by its drop, or with the process.
#[derive(Debug)]
pub struct Lock {
    name: String,
    _file: File,
}

impl Shelf {
    /// A shelf in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Shelf {
        Shelf { folder }
    }

    /// Where an entry is, or would be.
    pub fn entry(&self, name: &str, key: Digest) -> PathBuf {
        self.folder.join(format!("{name}-{}", key.short()))
    }

    /// Waits for the right to build. `waits` is called when somebody else has it.
    pub fn lock(&self, name: &str, waits: impl FnOnce()) -> Result<Lock, FileError> {
        create_private_directory(&self.folder)?;
        let path = self.folder.join(format!("{name}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waits();
                file.lock().at("lock", &path)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).at("lock", &path),
        }
        Ok(Lock { name: name.to_string(), _file: file })
    }

    /// A directory to build in, gone with its drop. What killed builders have left is removed first: whoever holds the lock
    /// is the only one.
    pub fn workplace(&self, lock: &Lock) -> Result<TempDir, FileError> {
        let prefix = format!(".building-{}-", lock.name);
        for found in fs::read_dir(&self.folder).at("read", &self.folder)? {
            let found = found.at("read", &self.folder)?;
            if found.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(found.path()).at("remove", &found.path())?;
            }
        }
        tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.folder).at("create a directory in", &self.folder)
    }

    /// Moves what was made in a workplace into its place, and what was there before out of it.
    pub fn publish(&self, lock: &Lock, key: Digest, made: &Path, workplace: &TempDir) -> Result<(), FileError> {
        sync_directory(made)?;
        let (entry, replaced) = (self.entry(&lock.name, key), workplace.path().join("replaced"));
        match fs::rename(&entry, &replaced) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at("replace", &entry),
            _ => {}
        }
        fs::rename(made, &entry).at("create", &entry)?;
        sync_directory(&self.folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: Digest = Digest([7; 32]);

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn build(shelf: &Shelf, text: &str) {
        let lock = shelf.lock("thing", || ()).unwrap();
        let workplace = shelf.workplace(&lock).unwrap();
        let made = workplace.path().join("made");
        create_private_directory(&made).unwrap();
        fs::write(made.join("file"), text).unwrap();
        shelf.publish(&lock, KEY, &made, &workplace).unwrap();
    }

    #[test]
    fn an_entry_appears_whole_replaces_another_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("new"));
        for text in ["one", "two"] {
            build(&shelf, text);
            assert_eq!(fs::read_to_string(shelf.entry("thing", KEY).join("file")).unwrap(), text);
        }
        assert_eq!(names(&shelf.folder), ["thing-0707070707070707", "thing.lock"]);
        assert_eq!(fs::metadata(&shelf.folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_a_killed_builder_left_is_swept_by_the_next_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        for name in [".building-thing-abc", ".building-other-abc"] {
            create_private_directory(&folder.path().join(name)).unwrap();
        }
        build(&shelf, "x");
        assert_eq!(names(folder.path()), [".building-other-abc", "thing-0707070707070707", "thing.lock"]);
    }

    #[test]
    fn one_builds_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        let first = shelf.lock("thing", || panic!("nobody else is there")).unwrap();
        std::thread::scope(|scope| {
            let (told, tells) = std::sync::mpsc::channel();
            let second = scope.spawn({
                let shelf = &shelf;
                move || shelf.lock("thing", || told.send(()).unwrap()).map(drop)
            });
            tells.recv().unwrap();
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
