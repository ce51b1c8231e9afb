//! A file that is coming: it lies beside the others under a name of its own, and stays for whoever wants it next when its transfer
//! ends early.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sandbox_download::{Checksum, Hasher};
use sandbox_store::open_growing;

/// What such files' names begin with.
pub(crate) const PART: &str = ".part-";

/// What is shorter is soon sent again.
const WORTH_KEEPING_BYTES: u64 = 1_000_000;

/// An unfinished file, which this process alone writes to.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    /// Whether somebody else looks for it by this name.
    is_named: bool,
    /// Whether it has come into its place, or is known not to be what it was to become.
    is_settled: bool,
}

impl Part {
    /// That of a file, with what is there of it already; an empty one if another server has that file sent.
    pub(crate) fn open(folder: &Path, checksum: &Checksum) -> io::Result<Part> {
        let path = folder.join(format!("{PART}{checksum}"));
        let (file, opened) = open_growing(&path)?;
        // Whoever had the lock may have put it into its place meanwhile.
        let is_still_there = || {
            fs::symlink_metadata(&path).is_ok_and(|named| (opened.dev(), opened.ino()) == (named.dev(), named.ino()))
        };
        if file.try_lock().is_ok() && is_still_there() {
            return Ok(Part { path, file, is_named: true, is_settled: false });
        }
        let (file, path) =
            tempfile::Builder::new().prefix(PART).tempfile_in(folder)?.keep().map_err(|kept| kept.error)?;
        file.try_lock()?;
        Ok(Part { path, file, is_named: false, is_settled: false })
    }

    /// The same file once more, with an offset of its own and without the lock.
    pub(crate) fn reopen(&self) -> io::Result<File> {
        OpenOptions::new().read(true).append(true).open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// What is there already, hashed, and how much that is in bytes. Reads all of it.
    pub(crate) fn hash(&self, checksum: &Checksum) -> io::Result<(Hasher, u64)> {
        checksum.hasher().read_all(&mut self.reopen()?)
    }

    /// Moves the whole file into its place. How long it is, in bytes.
    pub(crate) fn persist(mut self, path: &Path) -> io::Result<u64> {
        fs::rename(&self.path, path)?;
        self.is_settled = true;
        Ok(self.file.metadata()?.len())
    }

    /// Removes it: it is not what it was to become.
    pub(crate) fn discard(mut self) {
        self.is_settled = true;
        let _ = fs::remove_file(&self.path);
    }

    /// Whether a server is at an unfinished file.
    pub(crate) fn is_in_use(path: &Path) -> bool {
        File::open(path).is_ok_and(|file| file.try_lock_shared().is_err())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let is_worth_keeping = || self.file.metadata().is_ok_and(|metadata| metadata.len() >= WORTH_KEEPING_BYTES);
        let stays = self.is_settled || (self.is_named && is_worth_keeping());
        if !stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|found| found.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_long_enough_is_there_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let checksum = Checksum::from_hex("sha256", &"a".repeat(64)).unwrap();
        for (length, kept) in [(10, 0), (2_000_000, 2_000_000), (1, 2_000_001)] {
            let part = Part::open(folder.path(), &checksum).unwrap();
            part.reopen().unwrap().write_all(&vec![b'x'; length]).unwrap();
            drop(part);
            let part = Part::open(folder.path(), &checksum).unwrap();
            let (hasher, length) = part.hash(&checksum).unwrap();
            assert_eq!(length, kept);
            let mut expected = checksum.hasher();
            expected.update(&vec![b'x'; kept as usize]);
            assert_eq!(checksum.compare(hasher), checksum.compare(expected));
        }
        Part::open(folder.path(), &checksum).unwrap().discard();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn of_two_servers_one_has_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let checksum = Checksum::from_hex("sha256", &"b".repeat(64)).unwrap();
        let one = Part::open(folder.path(), &checksum).unwrap();
        one.reopen().unwrap().write_all(b"one").unwrap();
        let other = Part::open(folder.path(), &checksum).unwrap();
        assert_eq!((one.hash(&checksum).unwrap().1, other.hash(&checksum).unwrap().1), (3, 0));
        assert!(Part::is_in_use(&one.path) && Part::is_in_use(&other.path));
        assert_eq!(one.persist(&folder.path().join("done")).unwrap(), 3);
        drop(other);
        assert_eq!(names(folder.path()), ["done"]);
    }
}
