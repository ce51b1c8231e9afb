//! The components in the cache: each is an entry of its own, verified before it is used.
//!
//! ```text
//! images/kernel-0123456789abcdef/{vmlinux,manifest.json,verified.json}
//! downloads/<hash>   logs/kernel.log
//! ```

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_schemas::image::{Component, ComponentState, MANIFEST_FORMAT, Manifest};
use sandbox_store::{
    At, BuildLock, CacheDir, Kind, Lease, NotRemoved, Shelf, Workplace, create_private_directory, write_json,
};

use crate::entry::{self, MANIFEST, Unverified};
use crate::error::BuildError;
use crate::progress::Unit;
use crate::recipe::{Recipe, Workshop};

/// What the cache has of a component.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is sound, and stays until this process ends.
    Good(Manifest),
    /// It is sound, but to be built anew. It stays only while nobody does that.
    Outdated(Manifest),
    /// It is there, but is not what was built.
    Corrupt,
    /// It is not there.
    Missing,
}

/// The components of one cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    pub(crate) directory: CacheDir,
    pub(crate) shelf: Shelf,
}

impl Cache {
    pub(crate) fn new(directory: CacheDir) -> Cache {
        Cache { shelf: directory.shelf(Kind::Image), directory }
    }

    /// Where the file of a recipe is, or would be.
    pub(crate) fn artefact(&self, recipe: &dyn Recipe) -> PathBuf {
        self.entry(recipe).join(recipe.component().file_name())
    }

    /// Whether anything can be fetched that other hosts have built.
    pub(crate) fn has_tiers(&self) -> bool {
        self.directory.has_tiers()
    }

    /// Where all of it is.
    pub(crate) fn root(&self) -> &Path {
        self.directory.root()
    }

    /// Where downloads are kept.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.directory.downloads()
    }

    /// Where the output of tools is kept.
    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.logs()
    }

    /// Looks at an entry. Its file is hashed unless it is the very one that was hashed before.
    pub(crate) fn inspect(&self, recipe: &dyn Recipe) -> ComponentState {
        match entry::verify(&self.entry(recipe), recipe.component(), recipe.key()) {
            Ok(manifest) => ComponentState::Present { manifest },
            Err(Unverified::Missing) => ComponentState::Missing,
            Err(Unverified::Corrupt(reason)) => ComponentState::Corrupt { reason },
            Err(Unverified::Unreadable(reason)) => ComponentState::Unreadable { reason },
        }
    }

    /// Looks at an entry that is to be booted: if it is there, it stays until this process ends.
    pub(crate) fn load(&self, recipe: &dyn Recipe) -> ComponentState {
        // In this order: what was verified cannot be removed any more. What cannot be opened says so below. What cannot be locked (not every file system has
        // locks) cannot be locked by who would remove it either; and what is not there, or not ours, is not loaded.
        if let Ok(lease) = Lease::take(&self.entry(recipe)) {
            lease.keep_until_exit();
        }
        self.inspect(recipe)
    }

    /// The manifest of an entry that is sound. What this host cannot look at now is an error: it must not be built anew for that.
    pub(crate) fn sound(&self, recipe: &dyn Recipe) -> Result<Option<Manifest>, BuildError> {
        match self.load(recipe) {
            ComponentState::Present { manifest } => Ok(Some(manifest)),
            ComponentState::Missing | ComponentState::Corrupt { .. } => Ok(None),
            ComponentState::Unreadable { reason } => {
                Err(BuildError::Unreadable { path: self.artefact(recipe), reason })
            }
        }
    }

    /// What is there. `is_fresh` wants all anew that can be.
    pub(crate) fn standing(&self, recipe: &dyn Recipe, is_fresh: bool) -> Result<Standing, BuildError> {
        // What is to be replaced must not be in use, by this process either.
        if let ComponentState::Present { manifest } = self.inspect(recipe)
            && (manifest.is_outdated(SystemTime::now()) || (is_fresh && recipe.component().becomes_outdated()))
        {
            return Ok(Standing::Outdated(manifest));
        }
        Ok(match self.load(recipe) {
            ComponentState::Present { manifest } => Standing::Good(manifest),
            ComponentState::Missing => Standing::Missing,
            ComponentState::Corrupt { .. } => Standing::Corrupt,
            ComponentState::Unreadable { reason } => {
                return Err(BuildError::Unreadable { path: self.artefact(recipe), reason });
            }
        })
    }

    /// Whether a process uses the entry, this one included.
    pub(crate) fn is_in_use(&self, recipe: &dyn Recipe) -> bool {
        self.shelf.is_in_use(recipe.component().name(), recipe.key())
    }

    /// The manifest of a sound entry, which is built first if there is none. Whoever comes second waits and uses what
    /// the first one has built. The entry stays until this process ends: to make room for one component, the build of
    /// another must not remove it.
    pub(crate) fn obtain(&self, recipe: &dyn Recipe, workshop: &Workshop<'_>) -> Result<Manifest, BuildError> {
        if let Some(manifest) = self.sound(recipe)? {
            return Ok(manifest);
        }
        for directory in [self.downloads(), self.logs()] {
            create_private_directory(&directory)?;
        }
        let component = recipe.component();
        let lock = self.lock(component, workshop)?;
        if let Some(manifest) = self.sound(recipe)? {
            return Ok(manifest);
        }
        workshop.check()?;
        let place = self.build(recipe, self.shelf.begin(lock, recipe.key())?, workshop)?;
        self.built(recipe, place.publish()?)
    }

    /// Builds an entry anew beside the one that is there, which stays if that fails. What another process has built meanwhile is
    /// used, unless it shall be built whatever there is.
    pub(crate) fn renew(
        &self,
        recipe: &dyn Recipe,
        is_fresh: bool,
        workshop: &Workshop<'_>,
    ) -> Result<Manifest, BuildError> {
        for directory in [self.downloads(), self.logs()] {
            create_private_directory(&directory)?;
        }
        let lock = self.lock(recipe.component(), workshop)?;
        if let Standing::Good(manifest) = self.standing(recipe, is_fresh)? {
            return Ok(manifest);
        }
        workshop.check()?;
        let place = self.build(recipe, self.shelf.begin_beside(lock, recipe.key())?, workshop)?;
        self.built(recipe, place.publish_anew()?)
    }

    fn built(&self, recipe: &dyn Recipe, lease: Lease) -> Result<Manifest, BuildError> {
        lease.keep_until_exit();
        let manifest = entry::verify(&self.entry(recipe), recipe.component(), recipe.key())
            .map_err(|reason| BuildError::Unverified { path: self.artefact(recipe), reason: reason.to_string() })?;
        self.make_room(recipe.component());
        Ok(manifest)
    }

    pub(crate) fn make_room(&self, component: Component) {
        self.shelf.prune(component.name(), SystemTime::now());
        self.directory.make_room();
    }

    /// Removes the entry, unless a process uses it. Answers whether there was one.
    pub(crate) fn remove(&self, recipe: &dyn Recipe) -> Result<bool, NotRemoved> {
        let path = self.entry(recipe);
        let entry = self.shelf.entries().into_iter().find(|entry| entry.path == path);
        entry.map_or(Ok(false), |entry| entry.remove().map(|()| true))
    }

    /// Waits for whoever builds the component, but no longer than the rest of this build goes on.
    fn lock(&self, component: Component, workshop: &Workshop<'_>) -> Result<BuildLock, BuildError> {
        let mut waiting = None;
        let lock = self.shelf.lock(component.name(), || {
            let name = || format!("{component}: waiting for another process that builds it");
            waiting.get_or_insert_with(|| workshop.progress.stage(&name(), None, Unit::None));
            workshop.check()
        })?;
        if let Some(stage) = waiting {
            stage.finish();
        }
        Ok(lock)
    }

    /// Builds an entry, which then is to be moved into its place.
    fn build(&self, recipe: &dyn Recipe, place: Workplace, workshop: &Workshop<'_>) -> Result<Workplace, BuildError> {
        let artefact = place.made().join(recipe.component().file_name());
        let ingredients = recipe.make(place.scratch(), &artefact, workshop)?;

        let file = File::open(&artefact).at("open", &artefact)?;
        let mode = if recipe.component().is_program() { 0o755 } else { 0o644 };
        file.set_permissions(fs::Permissions::from_mode(mode)).at("set the mode of", &artefact)?;
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
        write_json(place.made(), MANIFEST, &manifest)?;
        Ok(place)
    }

    fn entry(&self, recipe: &dyn Recipe) -> PathBuf {
        self.shelf.entry(recipe.component().name(), recipe.key())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, UNIX_EPOCH};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use sandbox_schemas::image::ComponentState;
    use sandbox_store::{NotRemoved, create_private_directory};

    use super::Standing;
    use crate::error::BuildError;
    use crate::fake::{Fake, cache_in};
    use crate::progress::Silent;
    use crate::recipe::Workshop;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn entry_is_built_once_and_belongs_to_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (cache_in(dir.path().join("cache")), Fake::default());
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
        assert_eq!(names(cache.shelf.folder()), ["kernel-0707070707070707", "kernel.lock"]);
        assert_eq!(names(&cache.entry(&fake)), ["manifest.json", "verified.json", "vmlinux"]);
    }

    #[test]
    fn entry_that_is_removed_is_built_again_and_one_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
        assert!(!cache.remove(&fake).unwrap());
        // As a killed build or another process leaves it: what this process has built it uses until it ends.
        create_private_directory(&cache.entry(&fake)).unwrap();
        assert!(cache.remove(&fake).unwrap());
        assert_eq!(cache.inspect(&fake), ComponentState::Missing);
        fake.obtain(&cache).unwrap();
        assert!(matches!(cache.remove(&fake), Err(NotRemoved::InUse)));
        assert!(matches!(cache.inspect(&fake), ComponentState::Present { .. }));
    }

    #[test]
    fn whatever_is_changed_is_found_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
        let sound = fake.obtain(&cache).unwrap();
        let (artefact, manifest) = (cache.artefact(&fake), cache.entry(&fake).join("manifest.json"));
        let other_digest = |text: String| text.replace(&sound.sha256.to_string(), &"0".repeat(64));
        let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let fifo = |path: &Path| {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 12] = [
            ("flipped byte", &|| fs::write(&artefact, "the kernex").unwrap()),
            ("truncated file", &|| fs::write(&artefact, "the").unwrap()),
            ("lost file", &|| fs::remove_file(&artefact).unwrap()),
            ("changed digest", &|| fs::write(&manifest, other_digest(fs::read_to_string(&manifest).unwrap())).unwrap()),
            ("torn manifest", &|| fs::write(&manifest, "{").unwrap()),
            ("lost manifest", &|| fs::remove_file(&manifest).unwrap()),
            ("entry that others can write to", &|| set_mode(&cache.entry(&fake), 0o770)),
            ("manifest that others can write to", &|| set_mode(&manifest, 0o664)),
            ("file that others can write to", &|| set_mode(&artefact, 0o646)),
            ("FIFO for a file", &|| fifo(&artefact)),
            ("FIFO for a manifest", &|| fifo(&manifest)),
            ("FIFO for all", &|| fifo(&cache.entry(&fake))),
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
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
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
        let cache = cache_in(dir.path().to_owned());
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
        let cache = cache_in(dir.path().to_owned());
        create_private_directory(cache.shelf.folder()).unwrap();
        let other = fs::File::create(cache.shelf.folder().join("kernel.lock")).unwrap();
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
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
        fake.obtain(&cache).unwrap();
        let stamp = cache.entry(&fake).join("verified.json");
        fs::set_permissions(&stamp, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(cache.inspect(&fake), ComponentState::Present { .. }));
        assert_eq!(fs::metadata(stamp).unwrap().permissions().mode() & 0o777, 0o600, "it was hashed and stamped again");
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_called_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
        // A file where a directory is expected fails for root as well, for whom no mode is too strict.
        fs::write(cache.shelf.folder(), "").unwrap();
        fs::set_permissions(cache.shelf.folder(), fs::Permissions::from_mode(0o600)).unwrap();
        let ComponentState::Corrupt { reason } = cache.inspect(&fake) else { panic!("{:?}", cache.inspect(&fake)) };
        assert!(reason.contains("kernel-0707070707070707 cannot be read: Not a directory"), "{reason}");
    }

    #[test]
    fn directory_of_entries_that_others_can_write_to_is_refused_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
        fake.obtain(&cache).unwrap();
        fs::set_permissions(cache.shelf.folder(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(cache.inspect(&fake), ComponentState::Corrupt { .. }));
        let error = fake.obtain(&cache).unwrap_err();
        assert!(matches!(error, BuildError::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains("(mode 777); give it to"), "{error}");
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn entry_that_is_replaced_is_moved_away_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache_in(dir.path().to_owned());
        Fake::default().obtain(&cache).unwrap();
        fs::write(cache.artefact(&Fake::default()), "the kernex").unwrap();
        let fake = Fake { replaces: Some(cache.entry(&Fake::default())), ..Fake::default() };
        fake.obtain(&cache).unwrap();
        assert_eq!(fake.built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn entries_of_other_keys_go_when_nobody_has_used_them_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache_in(dir.path().to_owned());
        let [unused, loaded, recent, new] = [1, 2, 3, 4].map(|key| Fake { key, ..Fake::default() });
        loaded.obtain(&cache).unwrap();
        for of_other_processes in [&unused, &recent] {
            fs::create_dir(cache.entry(of_other_processes)).unwrap();
        }
        for old in [&unused, &loaded] {
            fs::File::open(cache.entry(old)).unwrap().set_modified(UNIX_EPOCH).unwrap();
        }
        new.obtain(&cache).unwrap();
        let kept = ["kernel-0202020202020202", "kernel-0303030303030303", "kernel-0404040404040404", "kernel.lock"];
        assert_eq!(names(cache.shelf.folder()), kept);
    }

    #[test]
    fn leftovers_of_a_killed_builder_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, fake) = (cache_in(dir.path().to_owned()), Fake::default());
        let leftover = cache.shelf.folder().join(".building-kernel-abcdef/entry");
        let of_another = cache.shelf.folder().join(".building-root-abcdef");
        create_private_directory(cache.shelf.folder()).unwrap();
        fs::create_dir_all(&leftover).unwrap();
        fs::create_dir_all(&of_another).unwrap();
        fs::write(leftover.join("vmlinux"), "half").unwrap();
        fake.obtain(&cache).unwrap();
        assert!(!leftover.exists() && of_another.exists());
    }

    #[test]
    fn what_is_renewed_takes_the_place_of_what_is_there_once_it_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache_in(dir.path().to_owned());
        let fake = Fake { fails: true, ..Fake::default() };
        fake.put(&cache, 40);
        assert!(matches!(cache.standing(&fake, false).unwrap(), Standing::Outdated(_)));
        assert!(!cache.is_in_use(&fake), "what is to go must not be held by who looks at it");
        assert!(fake.renew(&cache).is_err());
        assert!(matches!(cache.standing(&fake, false).unwrap(), Standing::Outdated(_)));
        let fake = Fake::default();
        let manifest = fake.renew(&cache).unwrap();
        assert_eq!(cache.standing(&fake, false).unwrap(), Standing::Good(manifest.clone()));
        assert!(cache.is_in_use(&fake), "what is used stays");
        // Another process was first.
        assert_eq!((fake.renew(&cache).unwrap(), fake.built.load(Ordering::Relaxed)), (manifest, 1));
        assert_eq!(names(cache.shelf.folder()), ["kernel-0707070707070707", "kernel.lock"]);
    }
}
