//! The cache on disk: immutable entries that appear at once or not at all, and that are verified before they are used.
//!
//! ```text
//! images/kernel-0123456789abcdef/{vmlinux,manifest.json,verified.json}
//! images/kernel.lock                held while a kernel is built and while old ones are removed
//! images/.building-kernel-XXXXXX    what a builder works in; swept by the next one if it was killed
//! downloads/<hash>   logs/kernel.log
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_schemas::image::{Component, ComponentState, MANIFEST_FORMAT, Manifest};

use crate::entry::{self, MANIFEST, Unverified};
use crate::error::{At, BuildError};
use crate::progress::Unit;
use crate::prune::prune;
use crate::recipe::{Recipe, Workshop};

/// How often a builder that waits for another one looks whether it is done.
const LOCK_POLL: Duration = Duration::from_millis(100);

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
        match entry::verify(&self.entry(recipe), recipe.component(), recipe.key()) {
            Ok(manifest) => ComponentState::Present { manifest },
            Err(Unverified::Missing) => ComponentState::Missing,
            Err(Unverified::Corrupt(reason)) => ComponentState::Corrupt { reason },
        }
    }

    /// Looks at an entry that is to be booted: if it is there, it stays until this process ends.
    pub(crate) fn load(&self, recipe: &dyn Recipe) -> ComponentState {
        // In this order: what was verified cannot be removed any more.
        entry::use_until_exit(&self.entry(recipe));
        self.inspect(recipe)
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
        entry::check_owner(&images)
            .map_err(|reason| BuildError::Untrusted { path: images.clone(), reason: reason.to_string() })?;
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
        let manifest = entry::verify(&self.entry(recipe), component, recipe.key())
            .map_err(|reason| BuildError::Unverified { path: self.artefact(recipe), reason: reason.to_string() })?;
        prune(&images, component, &entry_name(recipe), work.path(), SystemTime::now());
        Ok(manifest)
    }

    /// Builds an entry in `work`, then moves it into its place.
    fn build(&self, recipe: &dyn Recipe, work: &Path, workshop: &Workshop<'_>) -> Result<(), BuildError> {
        let (made, replaced, inner) = (work.join("entry"), work.join("replaced"), work.join("work"));
        create_private_directory(&made)?;
        create_private_directory(&inner)?;
        // What is there cannot be used. That it cannot be moved away either is to be known before minutes of building.
        let entry = self.entry(recipe);
        match fs::rename(&entry, &replaced) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at("replace", &entry),
            _ => {}
        }
        let artefact = made.join(recipe.component().file_name());
        let ingredients = recipe.make(&inner, &artefact, workshop)?;

        let file = File::open(&artefact).at("open", &artefact)?;
        file.set_permissions(fs::Permissions::from_mode(0o644)).at("set the mode of", &artefact)?;
        file.sync_all().at("sync", &artefact)?;
        let (sha256, size_bytes) = entry::hash(&file).at("read", &artefact)?;
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
        entry::write_json(&made, MANIFEST, &manifest)?;
        sync_directory(&made)?;
        fs::rename(&made, &entry).at("create", &entry)?;
        sync_directory(&self.images())
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn entry(&self, recipe: &dyn Recipe) -> PathBuf {
        self.images().join(entry_name(recipe))
    }
}

fn entry_name(recipe: &dyn Recipe) -> String {
    format!("{}-{}", recipe.component(), recipe.key().short())
}

fn create_private_directory(path: &Path) -> Result<(), BuildError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at("create", path)
}

fn sync_directory(path: &Path) -> Result<(), BuildError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

/// Waits for whoever builds the component, but no longer than the rest of this build goes on.
fn lock(path: &Path, component: Component, workshop: &Workshop<'_>) -> Result<File, BuildError> {
    let file = File::options().create(true).truncate(false).write(true).open(path).at("open", path)?;
    let mut waiting = None;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                let name = || format!("{component}: waiting for another process that builds it");
                waiting.get_or_insert_with(|| workshop.progress.stage(&name(), None, Unit::None));
                workshop.check()?;
                thread::sleep(LOCK_POLL);
            }
            Err(TryLockError::Error(error)) => return Err(error).at("lock", path),
        }
    }
    if let Some(stage) = waiting {
        stage.finish();
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
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, UNIX_EPOCH};

    use sandbox_schemas::image::{Component, ComponentState, Digest, Manifest};

    use super::{Cache, create_private_directory};
    use crate::error::BuildError;
    use crate::progress::Silent;
    use crate::recipe::{Ingredients, Recipe, Workshop};
    use crate::tool::HostTool;

    /// Builds a small file and counts how often.
    struct Fake {
        key: u8,
        built: AtomicUsize,
        takes: Duration,
        /// Must not be there while it builds.
        replaces: Option<PathBuf>,
    }

    impl Default for Fake {
        fn default() -> Fake {
            Fake { key: 7, built: AtomicUsize::new(0), takes: Duration::ZERO, replaces: None }
        }
    }

    impl Recipe for Fake {
        fn component(&self) -> Component {
            Component::Kernel
        }
        fn key(&self) -> Digest {
            Digest([self.key; 32])
        }
        fn tools(&self) -> &'static [HostTool] {
            &[]
        }
        fn make(&self, work: &Path, artefact: &Path, _: &Workshop<'_>) -> Result<Ingredients, BuildError> {
            self.built.fetch_add(1, Ordering::Relaxed);
            assert!(!self.replaces.as_ref().is_some_and(|entry| entry.exists()));
            thread::sleep(self.takes);
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
        let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let changes: [(&str, &dyn Fn()); 9] = [
            ("flipped byte", &|| fs::write(&artefact, "the kernex").unwrap()),
            ("truncated file", &|| fs::write(&artefact, "the").unwrap()),
            ("lost file", &|| fs::remove_file(&artefact).unwrap()),
            ("changed digest", &|| fs::write(&manifest, other_digest(fs::read_to_string(&manifest).unwrap())).unwrap()),
            ("torn manifest", &|| fs::write(&manifest, "{").unwrap()),
            ("lost manifest", &|| fs::remove_file(&manifest).unwrap()),
            ("entry that others can write to", &|| set_mode(&cache.entry(&fake), 0o770)),
            ("manifest that others can write to", &|| set_mode(&manifest, 0o664)),
            ("file that others can write to", &|| set_mode(&artefact, 0o646)),
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
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| fake.obtain(&cache).unwrap());
            }
        });
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn builder_does_not_wait_for_another_when_its_build_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        create_private_directory(&cache.images()).unwrap();
        let other = fs::File::create(cache.images().join("kernel.lock")).unwrap();
        other.lock().unwrap();
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let stop = AtomicBool::new(true);
            let (downloads, logs) = (cache.downloads(), cache.logs());
            let workshop = Workshop { progress: &Silent, downloads: &downloads, logs: &logs, stop: &stop };
            send.send(cache.obtain(&Fake::default(), &workshop)).unwrap();
        });
        let result = receive.recv_timeout(Duration::from_secs(30)).expect("it waits for the lock");
        assert!(matches!(result, Err(BuildError::Stopped)));
    }

    #[test]
    fn stamp_that_others_can_write_to_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        fake.obtain(&cache).unwrap();
        let stamp = cache.entry(&fake).join("verified.json");
        fs::set_permissions(&stamp, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(cache.inspect(&fake), ComponentState::Present { .. }));
        assert_eq!(fs::metadata(stamp).unwrap().permissions().mode() & 0o777, 0o600, "it was hashed and stamped again");
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_called_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        // A file where a directory is expected fails for root as well, for whom no mode is too strict.
        fs::write(cache.images(), "").unwrap();
        fs::set_permissions(cache.images(), fs::Permissions::from_mode(0o600)).unwrap();
        let ComponentState::Corrupt { reason } = cache.inspect(&fake) else { panic!("{:?}", cache.inspect(&fake)) };
        assert!(reason.contains("kernel-0707070707070707 cannot be read: Not a directory"), "{reason}");
    }

    #[test]
    fn directory_of_entries_that_others_can_write_to_is_refused_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        fake.obtain(&cache).unwrap();
        fs::set_permissions(cache.images(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(cache.inspect(&fake), ComponentState::Corrupt { .. }));
        let error = fake.obtain(&cache).unwrap_err();
        assert!(matches!(error, BuildError::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains("(mode 777); give it to"), "{error}");
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn entry_that_is_replaced_is_moved_away_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        Fake::default().obtain(&cache).unwrap();
        fs::write(cache.artefact(&Fake::default()), "the kernex").unwrap();
        let fake = Fake { replaces: Some(cache.entry(&Fake::default())), ..Fake::default() };
        fake.obtain(&cache).unwrap();
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn entries_of_other_keys_go_when_nobody_has_used_them_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        let [unused, loaded, recent, new] = [1, 2, 3, 4].map(|key| Fake { key, ..Fake::default() });
        for old in [&unused, &loaded, &recent] {
            old.obtain(&cache).unwrap();
        }
        for old in [&unused, &loaded] {
            fs::File::open(cache.entry(old)).unwrap().set_modified(UNIX_EPOCH).unwrap();
        }
        assert!(matches!(cache.load(&loaded), ComponentState::Present { .. }));
        new.obtain(&cache).unwrap();
        let kept = ["kernel-0202020202020202", "kernel-0303030303030303", "kernel-0404040404040404", "kernel.lock"];
        assert_eq!(names(&cache.images()), kept);
    }

    #[test]
    fn leftovers_of_a_killed_builder_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (Cache::new(dir.path().to_owned()), Fake::default());
        let leftover = cache.images().join(".building-kernel-abcdef/entry");
        let of_another = cache.images().join(".building-root-abcdef");
        create_private_directory(&cache.images()).unwrap();
        fs::create_dir_all(&leftover).unwrap();
        fs::create_dir_all(&of_another).unwrap();
        fs::write(leftover.join("vmlinux"), "half").unwrap();
        fake.obtain(&cache).unwrap();
        assert!(!leftover.exists() && of_another.exists());
    }
}
