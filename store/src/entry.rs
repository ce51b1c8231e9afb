//! An entry as it is found, whatever is in it, and its removal.

use std::fs::{self, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{At, FileError, NotRemoved};
use crate::file::allocated_bytes;
use crate::file::remove_directory;
use crate::lease::is_same;
use crate::open::open_directory;
use crate::stamp::STAMP;

/// What entries on their way out are called.
pub(crate) const REMOVING: &str = ".removing-";

/// As many digits of an entry's key are in its directory's name.
const KEY_DIGITS: usize = 16;

/// What was found of an entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its directory.
    pub path: PathBuf,
    /// What it is an entry of.
    pub name: String,
    /// The first digits of its key.
    pub key: String,
    /// What it takes on the disk.
    pub size_bytes: u64,
    /// When it was last used.
    pub last_used: SystemTime,
    /// Whether a process uses it. One that cannot be locked counts as used.
    pub is_in_use: bool,
}

impl Entry {
    /// What is to be known of the entry at `path`, if there is one.
    pub(crate) fn look(path: PathBuf) -> Option<Entry> {
        let (name, key) = parse(path.file_name()?.to_str()?)?;
        let (name, key) = (name.to_owned(), key.to_owned());
        let directory = open_directory(&path).ok()?;
        let metadata = directory.metadata().ok().filter(|metadata| metadata.is_dir())?;
        Some(Entry {
            name,
            key,
            size_bytes: allocated_bytes(&path),
            last_used: metadata.modified().ok()?,
            is_in_use: directory.try_lock().is_err(),
            path,
        })
    }

    /// Removes the entry at once, so that there is never half an entry; unless a process uses it, or has used it since it was
    /// looked at. That it is gone already is as good.
    pub fn remove(&self) -> Result<(), NotRemoved> {
        let directory = match open_directory(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            directory => directory.at("open", &self.path)?,
        };
        // The lock is held until the entry is out of the way: whoever wants to use it meanwhile waits, and finds none. Who has
        // used it just before has left a mark.
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(NotRemoved::InUse),
            Err(TryLockError::Error(error)) => return Err(error).at("lock", &self.path)?,
        }
        let metadata = directory.metadata().at("look at", &self.path)?;
        let is_there = fs::metadata(&self.path).is_ok_and(|found| is_same(&found, &metadata));
        if !is_there || metadata.modified().ok() != Some(self.last_used) {
            return Err(NotRemoved::InUse);
        }
        // No other directory has this number as long as this one is there.
        let away = format!("{REMOVING}{}-{}-{}", self.name, self.key, metadata.ino());
        let away = self.path.with_file_name(away);
        fs::rename(&self.path, &away).at("move", &self.path)?;
        drop(directory);
        Ok(remove_directory(&away)?)
    }
}

/// Whether a file of this name is part of an entry. Others say something about this host's copy of it: that it was verified, or
/// whatever begins with a dot.
pub fn is_part_name(name: &str) -> bool {
    name != STAMP && !name.starts_with('.')
}

/// What the parts of an entry are called, in their order. One with anything but files in it is refused.
pub fn part_names(folder: &Path) -> Result<Vec<String>, FileError> {
    let refuse = |path: &Path, reason| Err(std::io::Error::other(reason)).at("read", path);
    let mut names = Vec::new();
    for found in fs::read_dir(folder).at("read", folder)? {
        let found = found.at("read", folder)?;
        let path = found.path();
        match found.file_name().into_string() {
            Ok(name) if !is_part_name(&name) => {}
            Ok(name) if found.file_type().at("look at", &path)?.is_file() => names.push(name),
            Ok(_) => return refuse(&path, "it is no file"),
            Err(_) => return refuse(&path, "its name is no text"),
        }
    }
    names.sort();
    Ok(names)
}

/// Name and key, if `directory` is what an entry's is called.
fn parse(directory: &str) -> Option<(&str, &str)> {
    let (name, key) = directory.rsplit_once('-')?;
    let is_key = key.len() == KEY_DIGITS && key.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    (is_key && !name.is_empty() && !name.starts_with('.')).then_some((name, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;

    fn entry(folder: &Path) -> Entry {
        let path = folder.join("thing-0123456789abcdef");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        Entry::look(path).unwrap()
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn only_entries_are_taken_for_entries() {
        assert_eq!(parse("kernel-0808080808080808"), Some(("kernel", "0808080808080808")));
        assert_eq!(parse("my-tools-0808080808080808"), Some(("my-tools", "0808080808080808")));
        for other in [
            "kernel.lock",
            ".building-kernel-abcdef",
            ".building-kernel-0808080808080808",
            ".removing-kernel-0808080808080808-12",
            "-0808080808080808",
            "kernel-mine",
            "kernel-0808080808080808.bak",
            "kernel-080808080808080G",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernel-0808080808080808");
        fs::write(&file, "").unwrap();
        assert!(Entry::look(file).is_none());
    }

    #[test]
    fn parts_are_all_files_but_those_about_this_copy() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ram", "manifest.json", STAMP, ".tmp123", ".sent-0123"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(part_names(folder.path()).unwrap(), ["manifest.json", "ram"]);
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        assert!(part_names(folder.path()).unwrap_err().to_string().ends_with("/link: it is no file"));
    }

    #[test]
    fn an_entry_is_removed_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let entry = entry(folder.path());
        assert!(!entry.is_in_use && entry.size_bytes > 0);
        assert!(entry.remove().is_ok());
        assert_eq!(count(folder.path()), 0);
        assert!(entry.remove().is_ok(), "it is gone, which is what was wanted");
    }

    #[test]
    fn what_is_or_was_just_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let old = entry(folder.path());
        let lease = Lease::take(&old.path).unwrap();
        let used = Entry::look(old.path.clone()).unwrap();
        assert!(used.is_in_use);
        assert!(matches!(used.remove(), Err(NotRemoved::InUse)));
        drop(lease);
        assert!(matches!(old.remove(), Err(NotRemoved::InUse)), "it was used after it was looked at");
        assert!(used.remove().is_ok());
    }

    #[test]
    fn what_cannot_be_moved_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let entry = entry(folder.path());
        // A directory that is not empty stands where the entry would go to: it fails for root as well.
        let number = fs::metadata(&entry.path).unwrap().ino();
        let away = folder.path().join(format!("{REMOVING}thing-0123456789abcdef-{number}/x"));
        fs::create_dir_all(away).unwrap();
        let error = entry.remove().unwrap_err().to_string();
        assert!(error.starts_with("cannot move") && error.contains("thing-0123456789abcdef"), "{error}");
        assert!(entry.path.join("file").is_file());
    }
}
