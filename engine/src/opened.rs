//! An entry of the cache as it is read: without trust.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_schemas::template::RamPart;
use sandbox_store::{At, FileError, Lease, Untrusted, check_owner, check_private, is_damage, limit_behind, open_own};
use serde::de::DeserializeOwned;

use crate::template::ram;

/// What every entry says of itself.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("there is none")]
    Missing,
    #[error("{0}")]
    Damaged(String),
    /// By the host's doing, which says nothing about the entry: it is neither removed nor built anew.
    #[error("{0}")]
    Unreadable(String),
}

impl Unusable {
    pub(crate) fn damaged(what: &str, reason: impl std::fmt::Display) -> Unusable {
        Unusable::Damaged(format!("{what}: {reason}"))
    }

    /// What an error of opening or reading `what` says about it.
    pub(crate) fn unread(what: &str, error: &io::Error) -> Unusable {
        let reason = format!("{what}: {error}{}", limit_behind(error));
        if is_damage(error) { Unusable::Damaged(reason) } else { Unusable::Unreadable(reason) }
    }

    fn untrusted(what: &str, reason: &Untrusted) -> Unusable {
        let text = format!("{what} {reason}");
        if reason.is_of_host() { Unusable::Unreadable(text) } else { Unusable::Damaged(text) }
    }
}

/// An entry that nobody can remove meanwhile, and that nobody else can have had a hand in.
pub(crate) struct Opened {
    folder: PathBuf,
    pub(crate) lease: Lease,
}

impl Opened {
    pub(crate) fn open(folder: &Path) -> Result<Opened, Unusable> {
        // In this order: what was looked at cannot be removed any more.
        let lease = match Lease::take(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Missing),
            lease => lease.map_err(|error| Unusable::unread("the entry", &error))?,
        };
        check_trust(folder)?;
        Ok(Opened { folder: folder.to_owned(), lease })
    }

    /// One of its files, and what is to be known of it before it is read.
    pub(crate) fn file(&self, name: &str) -> Result<(File, Metadata), Unusable> {
        open_own(&self.folder.join(name)).map_err(|reason| Unusable::untrusted(name, &reason))
    }

    pub(crate) fn manifest<T: DeserializeOwned>(&self) -> Result<T, Unusable> {
        let (mut manifest, _) = self.file(MANIFEST)?;
        let mut text = Vec::new();
        manifest.read_to_end(&mut text).map_err(|error| Unusable::unread(MANIFEST, &error))?;
        serde_json::from_slice(&text).map_err(|error| Unusable::damaged(MANIFEST, error))
    }
}

/// A file that QEMU maps or reads, and what the manifest says of it.
pub(crate) struct Mapped {
    name: &'static str,
    pub(crate) part: RamPart,
    file: File,
    pub(crate) metadata: Metadata,
}

impl Mapped {
    pub(crate) fn open(entry: &Opened, name: &'static str, part: RamPart) -> Result<Mapped, Unusable> {
        let (file, metadata) = entry.file(name)?;
        if metadata.len() != part.size_bytes {
            return Err(Unusable::damaged(name, format!("it has {} bytes", metadata.len())));
        }
        Ok(Mapped { name, part, file, metadata })
    }

    pub(crate) fn verify(&self) -> Result<(), Unusable> {
        match ram::hash(&self.file) {
            Ok(found) if found == self.part => Ok(()),
            Ok(_) => Err(Unusable::damaged(self.name, "its SHA-256 is not the manifest's")),
            Err(error) => Err(Unusable::unread(self.name, &error)),
        }
    }

    /// What QEMU is given: the file, or a copy of it.
    pub(crate) fn for_qemu(self, copies: bool) -> Result<Arc<OwnedFd>, Unusable> {
        if !copies {
            return Ok(Arc::new(self.file.into()));
        }
        // What fails is the copy, whatever is in the file.
        let uncopied = |error: io::Error| {
            Unusable::Unreadable(format!("{}: copying it to memory: {error}{}", self.name, limit_behind(&error)))
        };
        ram::sealed_copy(&self.file).map(Arc::new).map_err(uncopied)
    }
}

/// Writes a file that QEMU will map or read, without the pages that hold nothing.
pub(crate) fn write_mapped(path: &Path, content: &File) -> Result<RamPart, FileError> {
    let file = File::create_new(path).at("create", path)?;
    // QEMU may run as another user; that only its owner reaches it is the folder's doing.
    file.set_permissions(Permissions::from_mode(0o644)).at("set the mode of", path)?;
    let part = ram::save(content, &file).at("write", path)?;
    file.sync_all().at("sync", path)?;
    Ok(part)
}

/// A device state is trusted input to QEMU: nobody else may have had a hand in it. Nor may anybody look into a memory that
/// programs begin with.
fn check_trust(folder: &Path) -> Result<(), Unusable> {
    let untrusted = |(path, reason): (&Path, Untrusted)| Unusable::untrusted(&path.display().to_string(), &reason);
    let shelf = folder.parent().map_or(Ok(()), |shelf| check_owner(shelf).map_err(|reason| (shelf, reason)));
    shelf.and_then(|()| check_private(folder).map_err(|reason| (folder, reason))).map_err(untrusted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn what_the_host_lacks_says_nothing_about_an_entry() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EACCES, Errno::EIO] {
            let unread = Unusable::unread("ram", &errno.into());
            assert!(matches!(unread, Unusable::Unreadable(_)), "{unread:?}");
            let untrusted = Unusable::untrusted("ram", &Untrusted::Io(errno.into()));
            assert!(matches!(untrusted, Unusable::Unreadable(_)), "{untrusted:?}");
        }
        for errno in [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP] {
            assert!(matches!(Unusable::unread("ram", &errno.into()), Unusable::Damaged(_)), "{errno}");
        }
        let unread = Unusable::unread("ram", &Errno::EMFILE.into()).to_string();
        assert!(unread.contains("RLIMIT_NOFILE"), "{unread}");
    }
}
