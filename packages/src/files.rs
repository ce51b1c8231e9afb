//! The download cache: files named by what they hash to, bounded, shared by all servers of a user. What is in it is hashed
//! again whenever it is used, so that it need not be trusted.
//!
//! ```text
//! <algorithm>-<hash>   a file
//! .part-<name>         one that is coming; it is moved into its place when it has been verified
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use sandbox_download::{Checksum, FetchError, Wanted};
use sandbox_store::{check_owner, create_private_directory, open_own};

use crate::blocking::{blocking, unusable};
use crate::found::Found;
use crate::part::{PART, Part};
use crate::transfer::Transfer;
use crate::upstream::Upstream;

/// For so long an unfinished file waits for somebody who wants the rest.
const PART_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// When room is made, it is made for this much of the limit, so that it is not made again for the next file.
const ROOM_FRACTION: u64 = 10;

/// The download cache.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    limit_bytes: u64,
    /// What is believed to be in the folder, in bytes; not known before something was put into it.
    used_bytes: Mutex<Option<u64>>,
    running: Mutex<Running>,
}

/// What is coming, as long as anybody waits for it.
type Running = HashMap<Checksum, Weak<Transfer>>;

impl Files {
    /// The cache in `folder`, which is made.
    pub(crate) fn open(folder: PathBuf, limit_bytes: u64) -> Result<Files, FetchError> {
        create_private_directory(&folder).map_err(|error| unusable(&error))?;
        // Whoever can write here can put another file into the place of one that was verified.
        check_owner(&folder)
            .map_err(|reason| FetchError::Cache { reason: format!("{} {reason}", folder.display()) })?;
        sweep(&folder);
        Ok(Files { folder, limit_bytes, used_bytes: Mutex::default(), running: Mutex::default() })
    }

    /// The file, from the cache or its registry. Of those who want it at the same time one has it sent.
    pub(crate) async fn get(self: &Arc<Files>, upstream: &Arc<Upstream>, wanted: Wanted) -> Result<Found, FetchError> {
        if let Some(transfer) = running(&self.running(), &wanted.checksum) {
            return Ok(Found::Coming(transfer));
        }
        let (files, checksum) = (self.clone(), wanted.checksum.clone());
        if let Some((file, size_bytes)) = blocking(move || files.kept(&checksum)).await? {
            return Ok(Found::Cached { file: Arc::new(file), size_bytes });
        }
        // Somebody else may have begun, or even have finished, while we looked. The former is seen here; the latter costs a
        // download.
        let mut all = self.running();
        if let Some(transfer) = running(&all, &wanted.checksum) {
            return Ok(Found::Coming(transfer));
        }
        all.retain(|_, transfer| transfer.strong_count() > 0);
        let part = Part::open(&self.folder, &wanted.checksum).map_err(|error| unusable(&error))?;
        let checksum = wanted.checksum.clone();
        let files = self.clone();
        let publish = move |part, checksum: &Checksum| files.publish(part, checksum);
        let transfer = Transfer::start(upstream.clone(), wanted, part, publish)?;
        all.insert(checksum, Arc::downgrade(&transfer));
        Ok(Found::Coming(transfer))
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file if it is in the cache and still what it was. One that is not is removed, and will be fetched again.
    fn kept(&self, checksum: &Checksum) -> Option<(File, u64)> {
        let path = self.path(checksum);
        let (mut file, metadata) = match open_own(&path) {
            Ok(opened) => opened,
            Err(reason) if reason.is_of_host() => return None,
            Err(sandbox_store::Untrusted::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(reason) => {
                tracing::warn!("removed from the download cache: {} {reason}", path.display());
                let _ = fs::remove_file(&path);
                return None;
            }
        };
        // A disk that cannot be read now says nothing about the file, which is fetched all the same.
        let (hasher, _) = checksum.hasher().read_all(&mut file).ok()?;
        let is_right = checksum.compare(hasher).is_ok() && file.rewind().is_ok();
        if !is_right {
            tracing::warn!("removed from the download cache: {} was changed", path.display());
            let _ = fs::remove_file(&path);
            return None;
        }
        // The mark decides what goes first, and nothing else.
        let _ = file.set_modified(SystemTime::now());
        Some((file, metadata.len()))
    }

    /// Puts a verified file into its place, and removes others if it is one too many.
    fn publish(&self, part: Part, checksum: &Checksum) -> Result<(), FetchError> {
        let size_bytes = part.persist(&self.path(checksum)).map_err(|error| unusable(&error))?;
        let mut used = self.used_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        // What other servers put in is seen when the whole is counted again.
        let total = used.map_or_else(|| self.count(), |bytes| bytes + size_bytes);
        *used = Some(if total > self.limit_bytes { self.make_room() } else { total });
        Ok(())
    }

    fn path(&self, checksum: &Checksum) -> PathBuf {
        self.folder.join(checksum.to_string())
    }

    fn count(&self) -> u64 {
        self.kept_files().iter().map(|kept| kept.size_bytes).sum()
    }

    /// Removes what was not used for longest. What is being read stays readable. What is left, in bytes.
    fn make_room(&self) -> u64 {
        let mut files = self.kept_files();
        let total = files.iter().map(|kept| kept.size_bytes).sum();
        if total <= self.limit_bytes {
            return total;
        }
        files.sort_by(|one, other| (one.used, &one.path).cmp(&(other.used, &other.path)));
        let goal = self.limit_bytes - self.limit_bytes / ROOM_FRACTION;
        files.into_iter().fold(total, |left, kept| {
            let is_removed =
                left > goal && !(kept.is_part && Part::is_in_use(&kept.path)) && fs::remove_file(&kept.path).is_ok();
            if is_removed { left - kept.size_bytes } else { left }
        })
    }

    fn kept_files(&self) -> Vec<Kept> {
        let found = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        found
            .filter_map(|found| {
                let metadata = found.metadata().ok().filter(|metadata| metadata.is_file())?;
                let is_part = found.file_name().to_string_lossy().starts_with(PART);
                Some(Kept { path: found.path(), is_part, size_bytes: metadata.len(), used: metadata.modified().ok()? })
            })
            .collect()
    }
}

/// One that has failed may still be told so; who asks now begins another.
fn running(all: &Running, checksum: &Checksum) -> Option<Arc<Transfer>> {
    all.get(checksum)?.upgrade().filter(|transfer| !transfer.has_failed())
}

struct Kept {
    path: PathBuf,
    is_part: bool,
    size_bytes: u64,
    used: SystemTime,
}

/// Removes what nobody has come back for.
fn sweep(folder: &Path) {
    for found in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_part = found.file_name().to_string_lossy().starts_with(PART);
        let modified = found.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if is_part && age.is_some_and(|age| age > PART_KEPT) {
            let _ = fs::remove_file(found.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn checksum(text: &[u8]) -> Checksum {
        let zero = Checksum::from_hex("sha256", &"0".repeat(64)).unwrap();
        let mut hasher = zero.hasher();
        hasher.update(text);
        zero.compare(hasher).unwrap_err()
    }

    fn put(files: &Files, text: &[u8], hours: u64) -> Checksum {
        let checksum = checksum(text);
        let part = Part::open(&files.folder, &checksum).unwrap();
        let mut writer = part.reopen().unwrap();
        writer.write_all(text).unwrap();
        writer.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        files.publish(part, &checksum).unwrap();
        checksum
    }

    #[test]
    fn what_was_changed_or_could_have_been_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path().join("files"), 1000).unwrap();
        let right = put(&files, b"text", 0);
        assert!(files.kept(&right).is_some_and(|(_, size_bytes)| size_bytes == 4));
        fs::write(files.path(&right), "next").unwrap();
        assert!(files.kept(&right).is_none() && !files.path(&right).exists());
        put(&files, b"text", 0);
        fs::set_permissions(files.path(&right), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(files.kept(&right).is_none() && !files.path(&right).exists());
        fs::set_permissions(&files.folder, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Files::open(files.folder.clone(), 1000).unwrap_err().to_string();
        assert!(error.contains("can be written by others"), "{error}");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path().to_owned(), 1000).unwrap();
        let old = put(&files, &[1; 400], 3);
        let older = put(&files, &[2; 400], 4);
        assert!(files.kept(&older).is_some(), "it is used now");
        let new = put(&files, &[3; 400], 0);
        assert_eq!([&old, &older, &new].map(|file| files.path(file).exists()), [false, true, true]);
        assert_eq!(*files.used_bytes.lock().unwrap(), Some(800));
        put(&files, &[4; 5000], 0);
        assert_eq!(files.count(), 0, "what is larger than the limit is for this once");
    }

    #[test]
    fn what_was_left_half_done_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let [left, coming, other] = [".part-left", ".part-coming", "other"].map(|name| folder.path().join(name));
        for path in [&left, &coming, &other] {
            fs::write(path, "x").unwrap();
        }
        let long_ago = SystemTime::now() - 2 * PART_KEPT;
        for path in [&left, &other] {
            File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        }
        Files::open(folder.path().to_owned(), 1000).unwrap();
        assert_eq!([left, coming, other].map(|path| path.exists()), [false, true, true]);
    }
}
