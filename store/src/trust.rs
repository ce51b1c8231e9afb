//! Whether a file or directory is this user's own. A digest shows what a file is only if whoever could change the file could
//! not change the digest with it.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

use crate::open::{is_damage, open_entry_file, open_regular};
use crate::ulimit::limit_behind;

/// Why a file or directory is not taken for this user's own. The text stands after its name.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It cannot be looked at.
    #[error("cannot be read: {0}{limit}", limit = limit_behind(.0))]
    Io(#[from] std::io::Error),
    /// It is somebody else's.
    #[error("belongs to uid {owner}, while this program runs as uid {user}")]
    Owner {
        /// Whose it is.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// Others could have changed it.
    #[error("can be written by others than its owner (mode {mode:03o})")]
    Writable {
        /// Its permissions.
        mode: u32,
    },
    /// Others could have looked into it.
    #[error("is open to others than its owner (mode {mode:03o})")]
    Open {
        /// Its permissions.
        mode: u32,
    },
}

impl Untrusted {
    /// Whether it is the host that does not let it be looked at, so that nothing is known of it.
    pub fn is_of_host(&self) -> bool {
        matches!(self, Untrusted::Io(error) if !is_damage(error))
    }
}

/// What others than the owner must not be able to do.
#[derive(Debug, Clone, Copy)]
enum Forbidden {
    Writing,
    Everything,
}

/// Checks that nobody but this user can have written to `directory`.
pub fn check_owner(directory: &Path) -> Result<(), Untrusted> {
    check(&directory.metadata()?, Forbidden::Writing)
}

/// Checks that nobody but this user can have written to `directory`, or looked into it.
pub fn check_private(directory: &Path) -> Result<(), Untrusted> {
    check(&directory.metadata()?, Forbidden::Everything)
}

/// Opens a file of the cache that nobody but this user can have written to.
pub fn open_own(path: &Path) -> Result<(File, Metadata), Untrusted> {
    let (file, metadata) = open_entry_file(path)?;
    check(&metadata, Forbidden::Writing)?;
    Ok((file, metadata))
}

/// Opens a file that nobody but this user can have written to, or looked into. It may lie behind a link, as secrets do that are
/// mounted into a container.
pub fn open_private(path: &Path) -> Result<(File, Metadata), Untrusted> {
    let (file, metadata) = open_regular(path)?;
    check(&metadata, Forbidden::Everything)?;
    Ok((file, metadata))
}

fn check(metadata: &Metadata, forbidden: Forbidden) -> Result<(), Untrusted> {
    trust(metadata.uid(), metadata.mode() & 0o7777, forbidden, geteuid().as_raw())
}

fn trust(owner: u32, mode: u32, forbidden: Forbidden, user: u32) -> Result<(), Untrusted> {
    match forbidden {
        _ if owner != user => Err(Untrusted::Owner { owner, user }),
        _ if mode & 0o022 != 0 => Err(Untrusted::Writable { mode }),
        Forbidden::Everything if mode & 0o077 != 0 => Err(Untrusted::Open { mode }),
        Forbidden::Writing | Forbidden::Everything => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Forbidden, trust};

    #[test]
    fn only_what_its_user_alone_can_write_is_trusted() {
        for mode in [0o700, 0o755, 0o644, 0o400] {
            assert!(trust(1000, mode, Forbidden::Writing, 1000).is_ok(), "{mode:o}");
        }
        let reason = |owner, mode| trust(owner, mode, Forbidden::Writing, 1000).unwrap_err().to_string();
        assert_eq!(reason(1001, 0o700), "belongs to uid 1001, while this program runs as uid 1000");
        assert_eq!(reason(0, 0o700), "belongs to uid 0, while this program runs as uid 1000");
        assert_eq!(reason(1000, 0o664), "can be written by others than its owner (mode 664)");
        assert_eq!(reason(1000, 0o702), "can be written by others than its owner (mode 702)");
    }

    #[test]
    fn what_is_private_is_closed_to_others() {
        let trust = |mode| trust(1000, mode, Forbidden::Everything, 1000);
        assert!(trust(0o700).is_ok() && trust(0o400).is_ok());
        for mode in [0o755, 0o740, 0o701, 0o722] {
            assert!(trust(mode).is_err(), "{mode:o}");
        }
        assert_eq!(trust(0o711).unwrap_err().to_string(), "is open to others than its owner (mode 711)");
    }
}
