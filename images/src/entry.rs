//! An entry of the cache: a component's file beside its manifest, and whether both are what was built.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use sandbox_schemas::image::{Component, Digest, MANIFEST_FORMAT, Manifest};
use sandbox_store::{Untrusted, check_owner, identity, open_own, verify_once};
use sha2::{Digest as _, Sha256};

/// What is known about the entry's file.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unverified {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Corrupt(String),
    /// By the host's doing, which says nothing about the entry.
    #[error("{0}")]
    Unreadable(String),
}

/// That a file cannot be looked at, as what it says about the file.
fn unusable(what: &str, reason: Untrusted) -> Unverified {
    let is_of_host = reason.is_of_host();
    let reason = format!("{what} {reason}");
    if is_of_host { Unverified::Unreadable(reason) } else { Unverified::Corrupt(reason) }
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
            Err(reason) => return Err(unusable(&directory.display().to_string(), reason)),
        }
    }
    let open = |name: &str| open_own(&entry.join(name)).map_err(|reason| unusable(name, reason));

    let (manifest, _) = open(MANIFEST)?;
    let manifest = read(manifest).map_err(|error| unusable(MANIFEST, error.into()))?;
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
    let stamp = identity(&metadata, manifest.sha256);
    verify_once(entry, &stamp, || match hash(&file) {
        Ok((sha256, _)) if sha256 == manifest.sha256 => Ok(()),
        Ok(_) => Err(corrupt(format!("{name} does not hash to what {MANIFEST} says"))),
        Err(error) => Err(unusable(name, error.into())),
    })?;
    Ok(manifest)
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
