//! A package layer on disk: `layer.erofs`, `manifest.json`, and `verified.json` beside them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_schemas::environment::{EnvironmentId, Omitted, PackageLock};
use sandbox_schemas::image::Digest;
use sandbox_schemas::layer::{LAYER_FORMAT, LayerManifest, LayerReference, LayerStamp};
use sandbox_schemas::limits::{LAYER_PARTS_MAX, LAYER_SLOT_BYTES};
use sandbox_store::{At, FileError, for_each_run, identity, verify_once, write_json};

use crate::environment::Environment;
use crate::opened::{MANIFEST, Mapped, Opened, Unusable, write_mapped};

const IMAGE: &str = "layer.erofs";

/// What came of an installation: a disk that nobody writes to any more.
pub(crate) struct Installed {
    pub(crate) image: File,
    pub(crate) lock: PackageLock,
    /// How many parts of the disk have packages.
    pub(crate) parts: u8,
    /// The layer that the disk begins with, if there was one.
    pub(crate) added_to: Option<LayerReference>,
    /// What its packages can do without, and does not have.
    pub(crate) skipped: Vec<Omitted>,
}

/// A disk that a VM can write a layer to, behind what is on the parent's. It has no name, and is gone with its last user.
pub(crate) fn blank(folder: &Path, parent: Option<&Environment>) -> Result<File, FileError> {
    let file = tempfile::tempfile_in(folder).at("create a file in", folder)?;
    file.set_len(LAYER_SLOT_BYTES).at("extend a file in", folder)?;
    // QEMU may run as another user, and opens it by its descriptor; by name nobody can.
    file.set_permissions(fs::Permissions::from_mode(0o666)).at("set the mode of a file in", folder)?;
    if let Some(parent) = parent {
        let image = File::from(parent.layer.try_clone().at("open a layer of", folder)?);
        for_each_run(&image, |at, pages| file.write_all_at(pages, at)).at("write to a file in", folder)?;
    }
    Ok(file)
}

/// Writes an entry's files into an empty directory. Nobody writes to `image` any more.
pub(crate) fn write(
    folder: &Path,
    key: Digest,
    requested: Vec<String>,
    Installed { image, lock, parts, added_to, skipped }: Installed,
) -> Result<(), FileError> {
    let image = write_mapped(&folder.join(IMAGE), &image)?;
    let created_unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    write_json(
        folder,
        MANIFEST,
        &LayerManifest {
            format: LAYER_FORMAT,
            key,
            lock,
            requested,
            parts,
            added_to,
            skipped,
            image,
            created_unix_seconds,
        },
    )
}

/// What an entry says of itself. That it is what it says is for [`load`] to find out.
pub(crate) fn look(folder: &Path) -> Option<LayerManifest> {
    let manifest: LayerManifest = Opened::open(folder).ok()?.manifest().ok()?;
    (manifest.format == LAYER_FORMAT).then_some(manifest)
}

/// Reads an entry of the shelf in `folder`, and what it was made of, layer by layer, as far as that is there as well.
pub(crate) fn load_with_parent(folder: &Path, id: &EnvironmentId) -> Result<Environment, Unusable> {
    let mut environment = load(&folder.join(id.to_string()), id)?;
    if let Some(LayerReference { key, image_sha256 }) = &environment.added_to {
        let id = EnvironmentId::new(environment.language, *key);
        let parent = load_with_parent(folder, &id).ok();
        let parts = environment.parts;
        let is_same =
            |parent: &Environment| parent.key == *key && parent.image_sha256 == *image_sha256 && parent.parts < parts;
        environment.parent = parent.filter(is_same).map(Arc::new);
    }
    Ok(environment)
}

/// Reads an entry, and believes nothing of it that it has not seen.
pub(crate) fn load(folder: &Path, id: &EnvironmentId) -> Result<Environment, Unusable> {
    let entry = Opened::open(folder)?;
    let manifest: LayerManifest = entry.manifest()?;
    let language = manifest.lock.language;
    if manifest.format != LAYER_FORMAT || EnvironmentId::new(language, manifest.key) != *id {
        return Err(Unusable::damaged(MANIFEST, "it is of another entry"));
    }
    if !(1..=LAYER_PARTS_MAX).contains(&usize::from(manifest.parts)) {
        return Err(Unusable::damaged(MANIFEST, format!("it has {} parts", manifest.parts)));
    }
    let image = Mapped::open(&entry, IMAGE, manifest.image)?;
    if manifest.image.size_bytes != LAYER_SLOT_BYTES {
        return Err(Unusable::damaged(IMAGE, format!("it has {} bytes", manifest.image.size_bytes)));
    }
    let stamp = LayerStamp { image: identity(&image.metadata, manifest.image.sha256) };
    verify_once(folder, &stamp, || image.verify())?;
    Ok(Environment {
        id: id.clone(),
        language,
        key: manifest.key,
        lock: manifest.lock,
        requested: manifest.requested,
        size_bytes: manifest.image.data_bytes,
        layer: image.for_qemu(false)?,
        image_sha256: manifest.image.sha256,
        parts: manifest.parts,
        added_to: manifest.added_to,
        skipped: manifest.skipped,
        parent: None,
        _lease: Some(entry.lease),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::language::Language;
    use std::path::PathBuf;

    const KEY: Digest = Digest([7; 32]);

    fn id() -> EnvironmentId {
        EnvironmentId::new(Language::Python, KEY)
    }

    fn entry() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entry");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let image = blank(folder.path(), None).unwrap();
        image.write_all_at(&[9; 10_000], 8192).unwrap();
        let lock = PackageLock::new(Language::Python, Vec::new());
        let installed = Installed { image, lock, parts: 1, added_to: None, skipped: Vec::new() };
        write(&path, KEY, vec!["numpy".into()], installed).unwrap();
        (folder, path)
    }

    #[track_caller]
    fn check(path: &Path, id: &EnvironmentId, expected: &str) {
        let found = load(path, id).map_or_else(|error| error.to_string(), |_| "loaded".into());
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn what_was_written_is_loaded() {
        let (_folder, path) = entry();
        let environment = load(&path, &id()).unwrap();
        assert_eq!(environment.requested, ["numpy"]);
        assert_eq!(environment.size_bytes, 3 * 4096);
        let mut bytes = [0; 10_000];
        File::from(environment.layer.try_clone().unwrap()).read_exact_at(&mut bytes, 8192).unwrap();
        assert_eq!(bytes, [9; 10_000]);
    }

    #[test]
    fn a_changed_byte_or_a_missing_file_is_found() {
        for name in [IMAGE, MANIFEST] {
            let (_folder, path) = entry();
            check(&path, &id(), "loaded");
            let file = File::options().read(true).write(true).open(path.join(name)).unwrap();
            let at = if name == IMAGE { 9000 } else { file.metadata().unwrap().len() / 2 };
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            check(&path, &id(), name);
            file.set_len(100).unwrap();
            check(&path, &id(), name);
            fs::remove_file(path.join(name)).unwrap();
            check(&path, &id(), name);
            fs::remove_dir_all(&path).unwrap();
            check(&path, &id(), "there is none");
        }
    }

    #[test]
    fn a_fifo_in_place_of_a_file_is_damage_and_holds_nothing_up() {
        for name in [IMAGE, MANIFEST] {
            let (_folder, path) = entry();
            fs::remove_file(path.join(name)).unwrap();
            nix::unistd::mkfifo(&path.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
            assert!(matches!(load(&path, &id()), Err(Unusable::Damaged(_))), "{name}");
            assert!(look(&path).is_none_or(|_| name == IMAGE));
        }
    }

    #[test]
    fn what_is_foreign_is_refused() {
        let (_folder, path) = entry();
        check(&path, &EnvironmentId::new(Language::Python, Digest([8; 32])), "of another entry");
        check(&path, &EnvironmentId::new(Language::Javascript, KEY), "of another entry");
        fs::set_permissions(path.join(IMAGE), fs::Permissions::from_mode(0o664)).unwrap();
        check(&path, &id(), "layer.erofs can be written by others than its owner");
        fs::set_permissions(path.join(IMAGE), fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        check(&path, &id(), "is open to others");
    }
}
