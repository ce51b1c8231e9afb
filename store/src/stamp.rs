//! That files were verified, so that hundreds of megabytes are not hashed at each start.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sandbox_schemas::image::{Digest, VerifiedStamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::file::write_json;
use crate::trust::open_own;

/// Beside the files of an entry.
pub(crate) const STAMP: &str = "verified.json";

/// What a file is, so that a later look can tell whether it is still the one that hashed to `sha256`.
pub fn identity(metadata: &Metadata, sha256: Digest) -> VerifiedStamp {
    VerifiedStamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size_bytes: metadata.len(),
        modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        changed_ns: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
        sha256,
    }
}

/// Calls `verify` unless it has succeeded before for the very files that `stamp` describes: by one [`identity`], or by
/// several. They are to be looked at before they are read, so that what changes meanwhile has another stamp.
pub fn verify_once<S, E>(entry: &Path, stamp: &S, verify: impl FnOnce() -> Result<(), E>) -> Result<(), E>
where
    S: Serialize + DeserializeOwned + PartialEq,
{
    // A stamp that cannot be read or trusted costs time and nothing else: the files are verified, and stamped again.
    if read(entry).as_ref() != Some(stamp) {
        verify()?;
        let _ = write_json(entry, STAMP, stamp);
    }
    Ok(())
}

fn read<S: DeserializeOwned>(entry: &Path) -> Option<S> {
    let (mut file, _) = open_own(&entry.join(STAMP)).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_verified_is_not_verified_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let stamp = |digest| [identity(&fs::metadata(&file).unwrap(), Digest([digest; 32])); 1];
        let is_verified = |stamp: &[VerifiedStamp; 1]| {
            let mut verified = false;
            let verify = || {
                verified = true;
                Ok::<_, ()>(())
            };
            verify_once(folder.path(), stamp, verify).unwrap();
            verified
        };
        fs::write(&file, "text").unwrap();
        let first = stamp(1);
        assert!(is_verified(&first) && !is_verified(&first));
        assert!(is_verified(&stamp(2)), "another digest is expected");
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "next").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert!(is_verified(&stamp(2)), "only the change time tells");
        let text = folder.path().join(STAMP);
        fs::set_permissions(&text, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(is_verified(&stamp(2)), "others could have written the stamp");
        fs::write(&text, "{").unwrap();
        assert!(is_verified(&stamp(2)) && !is_verified(&stamp(2)));
    }

    #[test]
    fn what_fails_is_not_stamped() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = identity(&fs::metadata(folder.path()).unwrap(), Digest([1; 32]));
        assert_eq!(verify_once(folder.path(), &stamp, || Err("changed")), Err("changed"));
        assert_eq!(verify_once(folder.path(), &stamp, || Err("still changed")), Err("still changed"));
    }
}
