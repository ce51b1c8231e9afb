//! The cache on disk: immutable entries that appear at once or not at all, and that are verified before they are used.
//!
//! ```text
//! images/kernel-0123456789abcdef/{vmlinux,manifest.json,verified.json}
//! images/kernel.lock                held while a kernel is built
//! images/.building-kernel-XXXXXX    what a builder works in; swept by the next one if it was killed
//! downloads/<hash>   logs/kernel.log
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_schemas::image::{Component, ComponentState, Digest, MANIFEST_FORMAT, Manifest, VerifiedStamp};
use sha2::{Digest as _, Sha256};

use crate::error::{At, BuildError};
use crate::progress::Unit;
use crate::recipe::{Recipe, Workshop};

/// The directory that holds everything. Only its user may look into it.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache in `root`, which need not exist yet.
    pub(crate) fn new(root: PathBuf) -> Cache {
        Cache { root }
    }

    /// Where the file of a recipe is, or would be.
    pub(crate) fn artefact(&self, recipe: &dyn Recipe) -> PathBuf {
        self.entry(recipe).join(recipe.component().file_name())
    }

    /// Where downloads are kept.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// Where the output of tools is kept.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Looks at an entry. Its file is hashed unless it is the very one that was hashed before.
    pub(crate) fn inspect(&self, recipe: &dyn Recipe) -> ComponentState {
        let entry = self.entry(recipe);
        match verify(&entry, recipe.component(), recipe.key()) {
            Ok(manifest) => ComponentState::Present { manifest },
            Err(Unverified::Missing) => ComponentState::Missing,
            Err(Unverified::Corrupt(reason)) => ComponentState::Corrupt { reason },
        }
    }

    /// The manifest of a sound entry, which is built first if there is none. Whoever comes second waits and uses what
    /// the first one has built.
    pub(crate) fn obtain(&self, recipe: &dyn Recipe, workshop: &Workshop<'_>) -> Result<Manifest, BuildError> {
        if let ComponentState::Present { manifest } = self.inspect(recipe) {
            return Ok(manifest);
        }
        let images = self.images();
        for directory in [&images, &self.downloads(), &self.logs()] {
            create_private_directory(directory)?;
        }
        let component = recipe.component();
        let _lock = lock(&images.join(format!("{component}.lock")), component, workshop)?;
        if let ComponentState::Present { manifest } = self.inspect(recipe) {
            return Ok(manifest);
        }
        workshop.check()?;
        let prefix = format!(".building-{component}-");
        sweep(&images, &prefix)?;
        let work = tempfile::Builder::new().prefix(&prefix).tempdir_in(&images).at("create a directory in", &images)?;
        self.build(recipe, work.path(), workshop)?;
        match verify(&self.entry(recipe), component, recipe.key()) {
            Ok(manifest) => Ok(manifest),
            Err(reason) => Err(BuildError::Unverified { path: self.artefact(recipe), reason: reason.to_string() }),
        }
    }

    /// Builds an entry in `work`, then moves it into its place, and what was there before out of it.
    fn build(&self, recipe: &dyn Recipe, work: &Path, workshop: &Workshop<'_>) -> Result<(), BuildError> {
        let (made, replaced, inner) = (work.join("entry"), work.join("replaced"), work.join("work"));
        create_private_directory(&made)?;
        create_private_directory(&inner)?;
        let artefact = made.join(recipe.component().file_name());
        let ingredients = recipe.make(&inner, &artefact, workshop)?;

        let file = File::open(&artefact).at("open", &artefact)?;
        file.set_permissions(fs::Permissions::from_mode(0o644)).at("set the mode of", &artefact)?;
        file.sync_all().at("sync", &artefact)?;
        let (sha256, size_bytes) = hash(&file).at("read", &artefact)?;
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            component: recipe.component(),
            key: recipe.key(),
            sha256,
            size_bytes,
            created_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            packages: ingredients.packages,
            tools: ingredients.tools,
        };
        write_json(&made, "manifest.json", &manifest)?;
        sync_directory(&made)?;

        let entry = self.entry(recipe);
        match fs::rename(&entry, &replaced) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at("replace", &entry),
            _ => {}
        }
        fs::rename(&made, &entry).at("create", &entry)?;
        sync_directory(&self.images())
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn entry(&self, recipe: &dyn Recipe) -> PathBuf {
        self.images().join(format!("{}-{}", recipe.component(), recipe.key().short()))
    }
}

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unverified {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Corrupt(String),
}

fn verify(entry: &Path, component: Component, key: Digest) -> Result<Manifest, Unverified> {
    let corrupt = |reason: &dyn std::fmt::Display| Unverified::Corrupt(reason.to_string());
    if !entry.exists() {
        return Err(Unverified::Missing);
    }
    let manifest =
        fs::read(entry.join("manifest.json")).map_err(|error| corrupt(&format!("manifest.json: {error}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&manifest).map_err(|error| corrupt(&format!("manifest.json: {error}")))?;
    if (manifest.format, manifest.component, manifest.key) != (MANIFEST_FORMAT, component, key) {
        return Err(corrupt(&"manifest.json is of another entry"));
    }
    let file = File::open(entry.join(component.file_name())).map_err(|error| corrupt(&error))?;
    let metadata = file.metadata().map_err(|error| corrupt(&error))?;
    if metadata.len() != manifest.size_bytes {
        return Err(corrupt(&format!("it has {} bytes, not {}", metadata.len(), manifest.size_bytes)));
    }
    let identity = VerifiedStamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size_bytes: metadata.len(),
        modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        changed_ns: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
        sha256: manifest.sha256,
    };
    let stamp = fs::read(entry.join("verified.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if stamp.as_ref() != Some(&identity) {
        let (sha256, _) = hash(&file).map_err(|error| corrupt(&error))?;
        if sha256 != manifest.sha256 {
            return Err(corrupt(&"its SHA-256 is not the manifest's"));
        }
        // Without a stamp it is hashed again the next time, which costs time and nothing else.
        let _ = write_json(entry, "verified.json", &identity);
    }
    Ok(manifest)
}

fn hash(mut file: &File) -> std::io::Result<(Digest, u64)> {
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

/// Writes a file so that it is whole whenever it is seen.
fn write_json(directory: &Path, name: &str, value: &impl serde::Serialize) -> Result<(), BuildError> {
    let path = directory.join(name);
    let mut file = tempfile::NamedTempFile::new_in(directory).at("create a file in", directory)?;
    serde_json::to_writer_pretty(&mut file, value).map_err(std::io::Error::from).at("write", &path)?;
    file.write_all(b"\n").at("write", &path)?;
    file.as_file().sync_all().at("sync", &path)?;
    file.persist(&path).map_err(|error| error.error).at("create", &path)?;
    Ok(())
}

fn create_private_directory(path: &Path) -> Result<(), BuildError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at("create", path)
}

fn sync_directory(path: &Path) -> Result<(), BuildError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

fn lock(path: &Path, component: Component, workshop: &Workshop<'_>) -> Result<File, BuildError> {
    let file = File::options().create(true).truncate(false).write(true).open(path).at("open", path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let name = format!("{component}: waiting for another process that builds it");
            let stage = workshop.progress.stage(&name, None, Unit::None);
            file.lock().at("lock", path)?;
            stage.finish();
        }
        Err(TryLockError::Error(error)) => return Err(error).at("lock", path),
    }
    Ok(file)
}

/// Removes what killed builders have left. Whoever calls this holds the lock, so no builder is at work.
fn sweep(images: &Path, prefix: &str) -> Result<(), BuildError> {
    for found in fs::read_dir(images).at("read", images)? {
        let found = found.at("read", images)?;
        if found.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_dir_all(found.path()).at("remove", &found.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use sandbox_schemas::image::{Component, ComponentState, Digest, Manifest};

    use super::Cache;
    use crate::error::BuildError;
    use crate::progress::Silent;
    use crate::recipe::{Ingredients, Recipe, Workshop};
    use crate::tool::HostTool;

    /// Builds a small file and counts how often.
    #[derive(Default)]
    struct Fake {
        built: AtomicUsize,
        takes: Duration,
    }

    impl Recipe for Fake {
        fn component(&self) -> Component {
            Component::Kernel
        }
        fn key(&self) -> Digest {
            Digest([7; 32])
        }
        fn tools(&self) -> &'static [HostTool] {
            &[]
        }
        fn make(&self, work: &Path, artefact: &Path, _: &Workshop<'_>) -> Result<Ingredients, BuildError> {
            self.built.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.takes);
            fs::write(work.join("scratch"), "x").unwrap();
            fs::write(artefact, "the kernel").unwrap();
            Ok(Ingredients::default())
        }
    }

    impl Fake {
        fn obtain(&self, cache: &Cache) -> Result<Manifest, BuildError> {
            let (downloads, logs) = (cache.downloads(), cache.logs());
            let stop = AtomicBool::new(false);
            cache.obtain(self, &Workshop { progress: &Silent, downloads: &downloads, logs: &logs, stop: &stop })
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn entry_is_built_once_and_belongs_to_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().join("cache")), Fake::default());
        assert_eq!(cache.inspect(&fake), ComponentState::Missing);
        let manifest = fake.obtain(&cache).unwrap();
        assert_eq!(manifest.size_bytes, 10);
        assert_eq!(fake.obtain(&cache).unwrap(), manifest);
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let artefact = cache.artefact(&fake);
        assert_eq!(mode(&artefact), 0o644);
        for directory in artefact.ancestors().skip(1).take(3) {
            assert_eq!(mode(directory), 0o700, "{}", directory.display());
        }
        assert_eq!(names(&cache.images()), ["kernel-0707070707070707", "kernel.lock"]);
        assert_eq!(names(&cache.entry(&fake)), ["manifest.json", "verified.json", "vmlinux"]);
    }

    #[test]
    fn whatever_is_changed_is_found_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        let sound = fake.obtain(&cache).unwrap();
        let (artefact, manifest) = (cache.artefact(&fake), cache.entry(&fake).join("manifest.json"));
        let other_digest = |text: String| text.replace(&sound.sha256.to_string(), &"0".repeat(64));
        let changes: [(&str, &dyn Fn()); 6] = [
            ("flipped byte", &|| fs::write(&artefact, "the kernex").unwrap()),
            ("truncated file", &|| fs::write(&artefact, "the").unwrap()),
            ("lost file", &|| fs::remove_file(&artefact).unwrap()),
            ("changed digest", &|| fs::write(&manifest, other_digest(fs::read_to_string(&manifest).unwrap())).unwrap()),
            ("torn manifest", &|| fs::write(&manifest, "{").unwrap()),
            ("lost manifest", &|| fs::remove_file(&manifest).unwrap()),
        ];
        for (count, (what, change)) in changes.iter().enumerate() {
            change();
            assert!(matches!(cache.inspect(&fake), ComponentState::Corrupt { .. }), "{what}");
            assert_eq!(fake.obtain(&cache).unwrap().sha256, sound.sha256, "{what}");
            assert!(matches!(cache.inspect(&fake), ComponentState::Present { .. }), "{what}");
            assert_eq!(fake.built.load(Ordering::Relaxed), count + 2, "{what}");
        }
    }

    #[test]
    fn file_is_hashed_again_when_its_identity_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        fake.obtain(&cache).unwrap();
        let artefact = cache.artefact(&fake);
        let modified = fs::metadata(&artefact).unwrap().modified().unwrap();
        // Same length, same modification time: the change time gives it away.
        fs::write(&artefact, "the kernex").unwrap();
        fs::File::options().write(true).open(&artefact).unwrap().set_modified(modified).unwrap();
        assert!(matches!(cache.inspect(&fake), ComponentState::Corrupt { .. }));
    }

    #[test]
    fn of_two_builders_one_builds() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        let fake = Fake { takes: Duration::from_millis(200), ..Fake::default() };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| fake.obtain(&cache).unwrap());
            }
        });
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn leftovers_of_a_killed_builder_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        let leftover = cache.images().join(".building-kernel-abcdef/entry");
        let of_another = cache.images().join(".building-root-abcdef");
        fs::create_dir_all(&leftover).unwrap();
        fs::create_dir_all(&of_another).unwrap();
        fs::write(leftover.join("vmlinux"), "half").unwrap();
        fake.obtain(&cache).unwrap();
        assert!(!leftover.exists() && of_another.exists());
    }
}
