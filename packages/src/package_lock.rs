//! What a lock is called.

use sandbox_schemas::environment::PackageLock;
use sandbox_schemas::image::Digest;
use sandbox_store::KeyHasher;

/// The key of a lock: of two that have the same, the same was installed. It belongs into the key of whatever holds it.
pub fn package_lock_key(lock: &PackageLock) -> Digest {
    let mut hasher = KeyHasher::new("packages").field("language", lock.language.name().as_bytes());
    for package in &lock.packages {
        // The hash is left out: it is not known of every package, and a version is published once.
        hasher = hasher.field("name", package.name.as_bytes()).field("version", package.version.as_bytes());
        if let Some(place) = &package.place {
            hasher = hasher.field("place", place.as_bytes());
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::environment::LockedPackage;
    use sandbox_schemas::language::Language;

    fn package(name: &str, version: &str, place: Option<&str>) -> LockedPackage {
        LockedPackage {
            name: name.into(),
            version: version.into(),
            place: place.map(Into::into),
            hash: None,
            comes_with: None,
        }
    }

    #[test]
    fn whatever_is_installed_otherwise_has_another_key() {
        let locks = [
            PackageLock::new(Language::Python, vec![]),
            PackageLock::new(Language::Javascript, vec![]),
            PackageLock::new(Language::Python, vec![package("a", "1", None)]),
            PackageLock::new(Language::Python, vec![package("a", "11", None)]),
            PackageLock::new(Language::Python, vec![package("a1", "1", None)]),
            PackageLock::new(Language::Python, vec![package("a", "1", Some("x"))]),
            PackageLock::new(Language::Python, vec![package("a", "1", None), package("b", "1", None)]),
        ];
        let keys = locks.each_ref().map(package_lock_key);
        assert!((1..keys.len()).all(|index| !keys[..index].contains(&keys[index])), "{keys:?}");
        let hashed = LockedPackage { hash: Some("sha256:00".into()), ..package("a", "1", None) };
        assert_eq!(package_lock_key(&PackageLock::new(Language::Python, vec![hashed])), keys[2]);
    }
}
