//! What requests became, remembered for a day: the same words then mean the same packages, and nobody asks a registry.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_schemas::environment::PackageLock;
use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_store::{FileError, create_private_directory, open_own, write_json};
use serde::{Deserialize, Serialize};

use crate::name::normalise;

/// Version of [`Resolution`]'s layout. What has another one is not read.
const FORMAT: u32 = 1;

/// For how long a request means the same packages.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Most resolutions that are kept; each takes some 10 KB.
const RESOLUTIONS_MAX: usize = 1000;

/// Largest resolution that is read, in bytes. The largest trees of npm have some thousand packages.
const RESOLUTION_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Where resolutions are.
#[derive(Debug)]
pub(crate) struct Resolutions {
    folder: PathBuf,
}

/// A resolution on disk.
#[derive(Serialize, Deserialize)]
struct Resolution {
    format: u32,
    /// What was asked, of whom, under which allowlist.
    key: Digest,
    resolved_unix_seconds: u64,
    lock: PackageLock,
}

impl Resolutions {
    pub(crate) fn open(folder: PathBuf) -> Result<Resolutions, FileError> {
        create_private_directory(&folder)?;
        Ok(Resolutions { folder })
    }

    /// What is remembered under `key`, unless it is old, is not ours, or makes no sense.
    pub(crate) fn get(&self, key: Digest, language: Language) -> Option<PackageLock> {
        self.get_at(key, language, SystemTime::now())
    }

    fn get_at(&self, key: Digest, language: Language, now: SystemTime) -> Option<PackageLock> {
        let (file, _) = open_own(&self.folder.join(file_name(key))).ok()?;
        let mut text = Vec::new();
        file.take(RESOLUTION_MAX_BYTES).read_to_end(&mut text).ok()?;
        let Resolution { format, key: found, resolved_unix_seconds, lock } = serde_json::from_slice(&text).ok()?;
        // One from the future is of a clock that was wrong.
        let age = now.duration_since(UNIX_EPOCH + Duration::from_secs(resolved_unix_seconds)).ok()?;
        let is_right = format == FORMAT && found == key && lock.language == language && age < KEPT;
        (is_right && is_sound(&lock)).then_some(lock)
    }

    pub(crate) fn put(&self, key: Digest, lock: &PackageLock) -> Result<(), FileError> {
        self.put_at(key, lock, SystemTime::now())
    }

    fn put_at(&self, key: Digest, lock: &PackageLock, now: SystemTime) -> Result<(), FileError> {
        let resolved_unix_seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let resolution = Resolution { format: FORMAT, key, resolved_unix_seconds, lock: lock.clone() };
        create_private_directory(&self.folder)?;
        write_json(&self.folder, &file_name(key), &resolution)?;
        self.forget(now);
        Ok(())
    }

    /// Removes those that are too old, and the oldest if there are too many.
    fn forget(&self, now: SystemTime) {
        let found = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut found: Vec<_> =
            found.filter_map(|found| Some((found.metadata().ok()?.modified().ok()?, found.path()))).collect();
        found.sort();
        let surplus = found.len().saturating_sub(RESOLUTIONS_MAX);
        for (index, (modified, path)) in found.into_iter().enumerate() {
            if index < surplus || now.duration_since(modified).is_ok_and(|age| age > KEPT) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn file_name(key: Digest) -> String {
    format!("{key}.json")
}

/// Whether a lock has packages in it and nothing else: a part of it may come to stand in a command.
fn is_sound(lock: &PackageLock) -> bool {
    let is_text = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic());
    let sorted = PackageLock::new(lock.language, lock.packages.clone());
    let is_package = |name: &str| normalise(lock.language, name).is_ok_and(|normal| normal == name);
    sorted == *lock && lock.packages.iter().all(|one| is_package(&one.name) && is_text(&one.version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::environment::LockedPackage;
    use std::os::unix::fs::PermissionsExt;

    const KEY: Digest = Digest([1; 32]);

    fn lock(version: &str) -> PackageLock {
        let package = |name: &str| LockedPackage {
            name: name.into(),
            version: version.into(),
            place: None,
            hash: None,
            comes_with: None,
        };
        PackageLock::new(Language::Python, vec![package("flask"), package("click")])
    }

    #[test]
    fn a_request_means_the_same_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let resolutions = Resolutions::open(folder.path().join("resolutions")).unwrap();
        let now = SystemTime::now();
        assert_eq!(resolutions.get(KEY, Language::Python), None);
        resolutions.put_at(KEY, &lock("1"), now).unwrap();
        let after = |hours: u64| resolutions.get_at(KEY, Language::Python, now + Duration::from_secs(hours * 3600));
        assert_eq!([after(0), after(23), after(24)], [Some(lock("1")), Some(lock("1")), None]);
        assert_eq!(resolutions.get_at(KEY, Language::Python, now - KEPT), None);
        assert_eq!(resolutions.get(KEY, Language::Javascript), None);
        assert_eq!(resolutions.get(Digest([2; 32]), Language::Python), None);
        resolutions.put_at(KEY, &lock("2"), now).unwrap();
        assert_eq!(after(0), Some(lock("2")));
    }

    #[test]
    fn what_makes_no_sense_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let resolutions = Resolutions::open(folder.path().to_owned()).unwrap();
        let path = folder.path().join(file_name(KEY));
        let get = || resolutions.get(KEY, Language::Python);
        resolutions.put(KEY, &lock("1")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"flask\"", "\"Flask\""),
            ("\"flask\"", "\"--index-url=x\""),
            ("\"flask\"", "\"a\""),
            ("\"version\": \"1\"", "\"version\": \"1 --x\""),
            ("\"format\": 1", "\"format\": 2"),
            ("{", "["),
        ] {
            assert!(text.contains(from));
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            assert_eq!(get(), None, "{to}");
        }
        fs::write(&path, &text).unwrap();
        assert_eq!(get(), Some(lock("1")));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(get(), None);
    }

    #[test]
    fn old_ones_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let resolutions = Resolutions::open(folder.path().to_owned()).unwrap();
        let now = SystemTime::now();
        resolutions.put(KEY, &lock("1")).unwrap();
        let old = folder.path().join(file_name(KEY));
        fs::File::options().write(true).open(&old).unwrap().set_modified(now - 2 * KEPT).unwrap();
        resolutions.put(Digest([2; 32]), &lock("1")).unwrap();
        assert!(!old.exists() && fs::read_dir(folder.path()).unwrap().count() == 1);
    }
}
