//! An entry of the cache: a component's file beside its manifest, and whether both are what was built.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use nix::unistd::geteuid;
use sandbox_schemas::image::{Component, Digest, MANIFEST_FORMAT, Manifest, VerifiedStamp};
use sha2::{Digest as _, Sha256};

use crate::error::{At, BuildError};

/// What is known about the entry's file.
pub(crate) const MANIFEST: &str = "manifest.json";
const STAMP: &str = "verified.json";

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unverified {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Corrupt(String),
}

/// The manifest of `entry`, if the entry is this user's own and its file is what the manifest says. The file is hashed
/// unless it is the very one that was hashed before.
pub(crate) fn verify(entry: &Path, component: Component, key: Digest) -> Result<Manifest, Unverified> {
    let corrupt = |reason: String| Unverified::Corrupt(reason);
    // Whoever can write to the directory of all entries can put another entry here after this one was looked at.
    for directory in entry.parent().into_iter().chain([entry]) {
        match check_owner(directory) {
            Ok(()) => {}
            Err(Untrusted::Io(error)) if error.kind() == ErrorKind::NotFound => return Err(Unverified::Missing),
            Err(reason) => return Err(corrupt(format!("{} {reason}", directory.display()))),
        }
    }
    let open = |name: &str| open_own(&entry.join(name)).map_err(|reason| corrupt(format!("{name} {reason}")));

    let (manifest, _) = open(MANIFEST)?;
    let manifest = read(manifest).map_err(|error| corrupt(format!("{MANIFEST} cannot be read: {error}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&manifest).map_err(|error| corrupt(format!("{MANIFEST}: {error}")))?;
    if (manifest.format, manifest.component, manifest.key) != (MANIFEST_FORMAT, component, key) {
        return Err(corrupt(format!("{MANIFEST} is of another entry")));
    }
    let name = component.file_name();
    let (file, metadata) = open(name)?;
    if metadata.len() != manifest.size_bytes {
        return Err(corrupt(format!("{name} has {} bytes, not {}", metadata.len(), manifest.size_bytes)));
    }
    let identity = identity(&metadata, manifest.sha256);
    // A stamp that cannot be read or trusted costs time and nothing else: the file is hashed, and stamped again.
    let stamp = open(STAMP).ok().and_then(|(stamp, _)| serde_json::from_slice(&read(stamp).ok()?).ok());
    if stamp.as_ref() != Some(&identity) {
        let (sha256, _) = hash(&file).map_err(|error| corrupt(format!("{name} cannot be read: {error}")))?;
        if sha256 != manifest.sha256 {
            return Err(corrupt(format!("{name} does not hash to what {MANIFEST} says")));
        }
        let _ = write_json(entry, STAMP, &identity);
    }
    Ok(manifest)
}

/// Why a file or directory is not taken for this user's own. The text stands after its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untrusted {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("belongs to uid {owner}, while this program runs as uid {user}")]
    Owner { owner: u32, user: u32 },
    #[error("can be written by others than its owner (mode {mode:03o})")]
    Mode { mode: u32 },
}

/// Checks that nobody but this user can have written to `directory`.
pub(crate) fn check_owner(directory: &Path) -> Result<(), Untrusted> {
    let metadata = directory.metadata()?;
    trust(metadata.uid(), metadata.mode(), geteuid().as_raw())
}

/// Opens a file that nobody but this user can have written to.
fn open_own(path: &Path) -> Result<(File, Metadata), Untrusted> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    trust(metadata.uid(), metadata.mode(), geteuid().as_raw())?;
    Ok((file, metadata))
}

/// A digest shows what a file is only if whoever could change the file could not change the digest with it.
fn trust(owner: u32, mode: u32, user: u32) -> Result<(), Untrusted> {
    if owner != user {
        return Err(Untrusted::Owner { owner, user });
    }
    if mode & 0o022 != 0 {
        return Err(Untrusted::Mode { mode: mode & 0o7777 });
    }
    Ok(())
}

/// Marks an entry as used now, and as in use for as long as this process lives, so that no build removes it. A server
/// opens the entry's file by its path for each VM, so there is no earlier moment at which it is done with it.
pub(crate) fn use_until_exit(entry: &Path) {
    static IN_USE: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
    // What cannot be locked (not every file system has locks) cannot be locked by who would remove it either; and a
    // directory that is not there, or not ours, is not loaded.
    let Ok(directory) = File::open(entry) else { return };
    if directory.lock_shared().is_ok() {
        let _ = directory.set_modified(SystemTime::now());
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.to_owned(), directory);
    }
}

fn identity(metadata: &Metadata, sha256: Digest) -> VerifiedStamp {
    VerifiedStamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size_bytes: metadata.len(),
        modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        changed_ns: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
        sha256,
    }
}

fn read(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.read_to_end(&mut content).map(|_| content)
}

/// What a file hashes to, from where it is read next, and how many bytes that were.
pub(crate) fn hash(mut file: &File) -> std::io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size_bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest(hasher.finalize().into()), size_bytes)),
            count => {
                hasher.update(&buffer[..count]);
                size_bytes += count as u64;
            }
        }
    }
}

/// Writes a file so that it is whole whenever it is seen.
pub(crate) fn write_json(directory: &Path, name: &str, value: &impl serde::Serialize) -> Result<(), BuildError> {
    let path = directory.join(name);
    let mut file = tempfile::NamedTempFile::new_in(directory).at("create a file in", directory)?;
    serde_json::to_writer_pretty(&mut file, value).map_err(std::io::Error::from).at("write", &path)?;
    file.write_all(b"\n").at("write", &path)?;
    file.as_file().sync_all().at("sync", &path)?;
    file.persist(&path).map_err(|error| error.error).at("create", &path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::trust;

    #[test]
    fn only_what_its_user_alone_can_write_is_trusted() {
        for mode in [0o700, 0o755, 0o100_644, 0o100_400] {
            assert!(trust(1000, mode, 1000).is_ok(), "{mode:o}");
        }
        let reason = |owner, mode| trust(owner, mode, 1000).unwrap_err().to_string();
        assert_eq!(reason(1001, 0o700), "belongs to uid 1001, while this program runs as uid 1000");
        assert_eq!(reason(0, 0o700), "belongs to uid 0, while this program runs as uid 1000");
        assert_eq!(reason(1000, 0o100_664), "can be written by others than its owner (mode 664)");
        assert_eq!(reason(1000, 0o040_702), "can be written by others than its owner (mode 702)");
    }
}
