//! Room on the disk for what a build takes for a while: known before, so that it does not fail after minutes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// A folder that a build writes much into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    path: PathBuf,
    /// What names another one.
    setting: &'static str,
}

impl Place {
    /// The cache, or a folder within it.
    pub(crate) fn cache(path: &Path) -> Place {
        Place { path: path.to_owned(), setting: "--cache-dir" }
    }

    /// Where temporary files go.
    pub(crate) fn temporary(path: PathBuf) -> Place {
        Place { path, setting: "TMPDIR" }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Folders, as they stand in a sentence: where they are, and what can be done when they are full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places(Vec<Place>);

impl Places {
    pub(crate) fn new(mut places: Vec<Place>) -> Places {
        places.dedup();
        Places(places)
    }

    fn remedy(&self) -> String {
        let mut settings: Vec<_> = self.0.iter().map(|place| place.setting).collect();
        settings.dedup();
        format!("make room there, or name another folder with {}", settings.join(" and "))
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|place| place.path.display().to_string()).collect();
        f.write_str(&paths.join(" and "))
    }
}

/// What a component takes while it is built, in bytes, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// Where mmdebstrap works.
    pub(crate) tree_bytes: u64,
    /// In the cache, downloads and what is built included.
    pub(crate) cache_bytes: u64,
}

/// That a disk has too little.
#[derive(Debug, thiserror::Error)]
#[error(
    "building what is missing of the VM image takes up to {:.1} GB in {places}, where {:.1} GB are free: {}",
    *needed_bytes as f64 / 1e9, *free_bytes as f64 / 1e9, places.remedy()
)]
pub struct NoRoom {
    places: Places,
    needed_bytes: u64,
    free_bytes: u64,
}

/// Whether all that goes on at the same time fits. What is not known of a file system does not stop a build.
pub(crate) fn require(needs: impl IntoIterator<Item = (Place, u64)>) -> Result<(), NoRoom> {
    let mut disks: BTreeMap<u64, (u64, u64, Vec<Place>)> = BTreeMap::new();
    for (place, bytes) in needs.into_iter().filter(|(_, bytes)| *bytes > 0) {
        if let Some((device, free_bytes)) = disk_of(&place.path) {
            let (_, needed_bytes, places) = disks.entry(device).or_insert((free_bytes, 0, Vec::new()));
            *needed_bytes += bytes;
            places.push(place);
        }
    }
    let short = disks.into_values().find(|(free_bytes, needed_bytes, _)| free_bytes < needed_bytes);
    short.map_or(Ok(()), |(free_bytes, needed_bytes, places)| {
        Err(NoRoom { places: Places::new(places), needed_bytes, free_bytes })
    })
}

/// The device that a path is on, or will be, and what is free there, in bytes.
fn disk_of(path: &Path) -> Option<(u64, u64)> {
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    let disk = statvfs(there).ok()?;
    Some((fs::metadata(there).ok()?.dev(), disk.blocks_available() as u64 * disk.fragment_size() as u64))
}

/// Whether a tool says that a disk is full.
pub(crate) fn is_full(line: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|words| line.contains(words))
}

/// That a tool has filled a disk.
#[derive(Debug, thiserror::Error)]
#[error("{name} found no space left in {places}: {}; all of its output is in {log}", places.remedy())]
pub struct Full {
    /// The program.
    pub(crate) name: &'static str,
    /// Where it has written.
    pub(crate) places: Places,
    /// The log.
    pub(crate) log: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_its_place_and_what_moves_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Place::cache(&folder.path().join("not/there/yet"));
        let temporary = Place::temporary(folder.path().to_owned());
        let (_, free) = disk_of(folder.path()).unwrap();
        assert!(require([(cache.clone(), 1000), (temporary.clone(), 1000)]).is_ok());
        // Each alone would fit; what others write meanwhile does not count.
        let half = free / 2 + free / 8;
        let error = require([(cache.clone(), half), (temporary.clone(), half)]).unwrap_err().to_string();
        let both = format!("{} and {}", cache.path.display(), temporary.path.display());
        assert!(error.contains(&format!(" GB in {both}, where ")), "{error}");
        assert!(error.ends_with(" GB are free: make room there, or name another folder with --cache-dir and TMPDIR"));
        let error = require([(cache.clone(), u64::MAX / 4), (cache, 1), (temporary, 0)]).unwrap_err().to_string();
        assert!(error.contains("/not/there/yet, where ") && error.ends_with("folder with --cache-dir"), "{error}");
    }

    #[test]
    fn nothing_is_asked_of_what_is_not_known() {
        assert!(require([(Place::temporary(PathBuf::new()), u64::MAX)]).is_ok());
    }
}
