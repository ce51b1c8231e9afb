//! Single files and directories, written so that they are whole whenever they are seen.

use std::fs::{DirBuilder, File, Metadata};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use sandbox_schemas::image::{Digest, VerifiedStamp};

use crate::error::{At, FileError};

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
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

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
