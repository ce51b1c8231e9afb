//! The key of a cache entry: one digest over everything that decides what is built.

use sandbox_schemas::image::Digest;
use sha2::{Digest as _, Sha256};

/// Hashes named fields. Names and values go in with their lengths, so that no two lists of fields look the same.
pub struct KeyHasher(Sha256);

impl KeyHasher {
    /// A key for one kind of thing; `kind` keeps the keys of different kinds apart.
    pub fn new(kind: &str) -> KeyHasher {
        KeyHasher(Sha256::new()).field("kind", kind.as_bytes())
    }

    /// Adds a field.
    pub fn field(mut self, name: &str, value: &[u8]) -> KeyHasher {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::KeyHasher;

    #[test]
    fn bytes_cannot_move_from_one_field_to_the_next() {
        let one = KeyHasher::new("k").field("ab", b"c").finish();
        let other = KeyHasher::new("k").field("a", b"bc").finish();
        assert_ne!(one, other);
        assert_ne!(one, KeyHasher::new("l").field("ab", b"c").finish());
        assert_ne!(one, KeyHasher::new("k").field("ab", b"c").field("", b"").finish());
        assert_eq!(one, KeyHasher::new("k").field("ab", b"c").finish());
    }
}
