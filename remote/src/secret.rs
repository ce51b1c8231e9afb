//! The key that hosts share, and with which they vouch for what they send.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sandbox_schemas::image::Digest;
use sandbox_store::{Untrusted, open_private};
use sha2::Sha256;

/// As many bytes as HMAC-SHA-256 has use for.
const MIN_BYTES: usize = 32;

/// A file that is longer is no key, but a mistake.
const MAX_BYTES: usize = 4096;

/// Digits of a key's id: enough that two keys of a fleet do not have the same.
const ID_DIGITS: usize = 16;

/// Why a file is not used as a key.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read, or others can.
    #[error("{path} {reason}; it must be a file that its user alone can read (chmod 600)")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Untrusted,
    },
    /// Too little or too much.
    #[error(
        "{path} has {bytes} bytes besides white space at its end, and must have {MIN_BYTES} to {MAX_BYTES}: \
         `head -c 32 /dev/urandom | base64` makes some"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// What is in it.
        bytes: usize,
    },
}

/// A key.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// Reads a key from a file, without the white space at its end: editors and `echo` add some.
    pub fn read(path: &Path) -> Result<Secret, SecretError> {
        let untrusted = |reason| SecretError::Untrusted { path: path.to_owned(), reason };
        let (file, _) = open_private(path).map_err(untrusted)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES as u64 + 64).read_to_end(&mut bytes).map_err(|error| untrusted(error.into()))?;
        let bytes = bytes.trim_ascii_end();
        Secret::new(bytes).ok_or_else(|| SecretError::Length { path: path.to_owned(), bytes: bytes.len() })
    }

    /// A key of these bytes; `None` when they are too few or too many.
    pub fn new(bytes: &[u8]) -> Option<Secret> {
        let is_long_enough = (MIN_BYTES..=MAX_BYTES).contains(&bytes.len());
        Hmac::new_from_slice(bytes).ok().filter(|_| is_long_enough).map(Secret)
    }

    /// What tells this key from others, and nothing of the key.
    pub fn id(&self) -> String {
        let mut id = self.authenticate(b"sandbox-mcp: id of this key").to_string();
        id.truncate(ID_DIGITS);
        id
    }

    pub(crate) fn authenticate(&self, bytes: &[u8]) -> Digest {
        Digest(self.0.clone().chain_update(bytes).finalize().into_bytes().into())
    }

    /// In a time that says nothing about how much of it is right.
    pub(crate) fn is_authentic(&self, bytes: &[u8], hmac_sha256: Digest) -> bool {
        self.0.clone().chain_update(bytes).verify_slice(&hmac_sha256.0).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_read_from_a_file_that_nobody_else_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read = |content: &str, mode| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Secret::read(&path).map(|secret| secret.id()).map_err(|error| error.to_string())
        };
        let key = "k".repeat(32);
        let id = read(&key, 0o600).unwrap();
        assert_eq!(id.len(), 16);
        assert_eq!(read(&format!("{key}\n"), 0o400).unwrap(), id, "an editor's line end is no other key");
        assert_ne!(read(&"l".repeat(32), 0o600).unwrap(), id);
        assert!(read(&key, 0o640).unwrap_err().contains("key is open to others than its owner (mode 640); it must"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read("short\n", 0o600).unwrap_err().contains("key has 5 bytes besides white space"));
        assert!(read(&"k".repeat(5000), 0o600).unwrap_err().contains("must have 32 to 4096"));
        let missing = Secret::read(&folder.path().join("nothing")).unwrap_err().to_string();
        assert!(missing.contains("nothing cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn only_the_same_key_and_bytes_are_authentic() {
        let [one, other] = ["a", "b"].map(|text| Secret::new(text.repeat(32).as_bytes()).unwrap());
        let mac = one.authenticate(b"bytes");
        assert!(one.is_authentic(b"bytes", mac));
        assert!(!one.is_authentic(b"byte", mac) && !other.is_authentic(b"bytes", mac));
        assert!(!format!("{one:?}").contains("aaaa"));
    }

    /// RFC 4231, test case 6: a key that is longer than a block.
    #[test]
    fn it_is_hmac_sha_256() {
        let secret = Secret::new(&[0xaa; 131]).unwrap();
        let mac = secret.authenticate(b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(mac.to_string(), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }
}
