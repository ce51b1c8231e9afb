//! Single files and directories, written so that they are whole whenever they are seen.

use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use crate::error::{At, FileError};
use crate::open::open_directory;

/// What `stat` counts a file's blocks in, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// Writes a file that appears at once.
pub fn write_json(directory: &Path, name: &str, value: &impl serde::Serialize) -> Result<(), FileError> {
    let path = directory.join(name);
    let mut file = tempfile::NamedTempFile::new_in(directory).at("create a file in", directory)?;
    serde_json::to_writer_pretty(&mut file, value).map_err(std::io::Error::from).at("write", &path)?;
    file.write_all(b"\n").at("write", &path)?;
    file.as_file().sync_all().at("sync", &path)?;
    file.persist(&path).map_err(|error| error.error).at("create", &path)?;
    Ok(())
}

/// A directory, and what is missing above it, that only its user may look into.
pub fn create_private_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at("create", path)
}

/// Makes what was renamed in a directory outlast a crash.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    open_directory(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

/// Somebody else may be about it as well.
pub(crate) fn remove_directory(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

/// The folder itself stays: who is about to build may have made sure of it already.
pub(crate) fn remove_content(folder: &Path) -> Result<(), FileError> {
    for found in fs::read_dir(folder).at("read", folder)? {
        let found = found.at("read", folder)?;
        let path = found.path();
        if found.file_type().at("look at", &path)?.is_dir() {
            remove_directory(&path)?;
        } else {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// What a file, or a directory with all that is in it, takes on the disk: less than its length when it is sparse. What
/// cannot be looked at, or goes meanwhile, takes nothing.
pub(crate) fn allocated_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let found = metadata.is_dir().then(|| fs::read_dir(path).ok()).flatten();
    let inside = found.into_iter().flatten().flatten().map(|found| allocated_bytes(&found.path()));
    metadata.blocks() * BLOCK_BYTES + inside.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn holes_take_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let empty = allocated_bytes(folder.path());
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let file = File::create(inner.join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(allocated_bytes(folder.path()) < 1 << 20);
        fs::write(inner.join("full"), vec![1; 3 << 20]).unwrap();
        file.sync_all().unwrap();
        File::open(inner.join("full")).unwrap().sync_all().unwrap();
        let size = allocated_bytes(folder.path()) - empty;
        assert!((3 << 20..4 << 20).contains(&size), "{size}");
        assert_eq!(allocated_bytes(&folder.path().join("nothing")), 0);
    }
}
