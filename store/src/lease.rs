//! The use of an entry: a shared lock on its directory. As long as anybody has one, nobody removes the entry.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::open::open_directory;

/// An entry that is used. Ends with its drop, or with the process.
#[derive(Debug)]
pub struct Lease {
    entry: PathBuf,
    directory: File,
}

impl Lease {
    /// Marks an entry as used now, and as in use from now on. To be had before the entry is verified: then what was verified
    /// cannot be removed any more.
    pub fn take(entry: &Path) -> io::Result<Lease> {
        loop {
            let directory = open_directory(entry)?;
            // Waits for who is about to move it away; that takes no time.
            match directory.lock_shared() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                locked => locked?,
            }
            // It may have been moved away before it was locked; what is there now is another one, which has no lock yet.
            if is_same(&directory.metadata()?, &fs::metadata(entry)?) {
                // The mark decides who goes first, and nothing else.
                let _ = directory.set_modified(SystemTime::now());
                return Ok(Lease { entry: entry.to_owned(), directory });
            }
        }
    }

    /// For an entry whose files are opened by their paths again and again, so that there is no earlier moment at which this
    /// process is done with it.
    pub fn keep_until_exit(self) {
        static KEPT: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(self.entry, self.directory);
    }

    /// The entry is now found at another path.
    pub(crate) fn moved_to(self, entry: PathBuf) -> Lease {
        Lease { entry, ..self }
    }
}

/// Whether both are of one file.
pub(crate) fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn is_free(entry: &Path) -> bool {
        File::open(entry).unwrap().try_lock().is_ok()
    }

    #[test]
    fn an_entry_is_in_use_until_its_last_lease_ends() {
        let folder = tempfile::tempdir().unwrap();
        let leases = [(); 2].map(|()| Lease::take(folder.path()).unwrap());
        for lease in leases {
            assert!(!is_free(folder.path()));
            drop(lease);
        }
        assert!(is_free(folder.path()));
        Lease::take(folder.path()).unwrap().keep_until_exit();
        assert!(!is_free(folder.path()));
    }

    #[test]
    fn use_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let age = || fs::metadata(folder.path()).unwrap().modified().unwrap().elapsed().unwrap_or_default();
        let year = Duration::from_secs(365 * 24 * 3600);
        File::open(folder.path()).unwrap().set_modified(SystemTime::now() - year).unwrap();
        let _lease = Lease::take(folder.path()).unwrap();
        assert!(age() < year / 2);
    }

    #[test]
    fn what_is_moved_away_while_it_is_waited_for_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (entry, away) = (folder.path().join("entry"), folder.path().join("away"));
        for is_replaced in [false, true] {
            fs::create_dir(&entry).unwrap();
            let remover = File::open(&entry).unwrap();
            remover.lock().unwrap();
            std::thread::scope(|scope| {
                let lease = scope.spawn(|| Lease::take(&entry));
                std::thread::sleep(Duration::from_millis(50));
                fs::rename(&entry, &away).unwrap();
                if is_replaced {
                    fs::create_dir(&entry).unwrap();
                }
                drop(remover);
                match lease.join().unwrap() {
                    Ok(_lease) => assert!(is_replaced && !is_free(&entry)),
                    Err(error) => assert!(!is_replaced && error.kind() == ErrorKind::NotFound, "{error}"),
                }
            });
            fs::remove_dir(&away).unwrap();
        }
    }
}
