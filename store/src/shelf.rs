//! A directory of entries of one kind.
//!
//! ```text
//! <name>-<key>/                  an entry: its files, its manifest
//! <name>.lock                    held while an entry of that name is built, and touched every second
//! <name>.<number>.lock           the same, of who builds beside a builder that was stopped
//! .building-<name>-XXXXXX/       what a builder works in; swept by the next one if it was killed
//! .removing-<name>-<key>-XXXX/   an entry that is being removed; swept by the next one who removes if that was killed
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use sandbox_schemas::image::Digest;

use crate::build_lock::{BuildLock, GENERATIONS_MAX};
use crate::entry::{Entry, REMOVING};
use crate::error::{At, FileError, NotRemoved, ShelfError};
use crate::file::{allocated_bytes, create_private_directory, remove_directory};
use crate::prune::is_outdated;
use crate::trust::check_owner;
use crate::workplace::{BUILDING, Workplace};

/// How often a builder that waits for another one should look whether it is done.
pub const LOCK_POLL: Duration = Duration::from_millis(100);

const LOCK_SUFFIX: &str = ".lock";

/// Where entries of one kind lie.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// A shelf in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Shelf {
        Shelf { folder }
    }

    /// Where the entries are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where an entry is, or would be.
    pub fn entry(&self, name: &str, key: Digest) -> PathBuf {
        self.folder.join(format!("{name}-{}", key.short()))
    }

    /// The right to build, unless somebody else has it.
    pub fn try_lock(&self, name: &str) -> Result<Option<BuildLock>, ShelfError> {
        self.make()?;
        Ok(BuildLock::try_take(&self.lock_path(name, 0), name, 0)?.ok())
    }

    /// Makes sure that it is there, and this user's alone.
    pub(crate) fn make(&self) -> Result<(), ShelfError> {
        create_private_directory(&self.folder)?;
        // Whoever can write here can put another entry into the place of one that was verified.
        check_owner(&self.folder).map_err(|reason| ShelfError::Untrusted { path: self.folder.clone(), reason })
    }

    /// What is locked by who builds, and by who builds beside that one.
    pub(crate) fn lock_path(&self, name: &str, generation: usize) -> PathBuf {
        self.folder.join(format!("{}{LOCK_SUFFIX}", BuildLock::label_of(name, generation)))
    }

    /// Waits for the right to build. `waits` is called again and again meanwhile; its error ends that.
    pub fn lock<E: From<ShelfError>>(
        &self,
        name: &str,
        mut waits: impl FnMut() -> Result<(), E>,
    ) -> Result<BuildLock, E> {
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            waits()?;
            thread::sleep(LOCK_POLL);
        }
    }

    /// A place to build an entry in. What killed builders have left is removed first: whoever has the lock is the only one who
    /// builds under its label.
    pub fn begin(&self, lock: BuildLock, key: Digest) -> Result<Workplace, FileError> {
        self.begin_beside(lock, key)?.clear()
    }

    /// The same beside an entry that can be used, and stays until [`Workplace::publish_anew`] puts another one into its place.
    pub fn begin_beside(&self, lock: BuildLock, key: Digest) -> Result<Workplace, FileError> {
        self.sweep(&format!("{BUILDING}{}-", lock.label()))?;
        for generation in (0..GENERATIONS_MAX).filter(|generation| *generation != lock.generation()) {
            let path = self.lock_path(lock.name(), generation);
            if path.exists()
                && let Ok(Ok(other)) = BuildLock::try_take(&path, lock.name(), generation)
            {
                self.sweep(&format!("{BUILDING}{}-", other.label()))?;
            }
        }
        Workplace::new(&self.folder, self.entry(lock.name(), key), lock)
    }

    /// Whether a process uses an entry, this one included.
    pub fn is_in_use(&self, name: &str, key: Digest) -> bool {
        Entry::look(self.entry(name, key)).is_some_and(|entry| entry.is_in_use)
    }

    /// What is there, in no order. Nothing when there is no shelf.
    pub fn entries(&self) -> Vec<Entry> {
        self.paths().filter_map(Entry::look).collect()
    }

    /// What all entries take on the disk together.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.paths().filter(|path| !is_unfinished(path)).map(|path| allocated_bytes(&path)).sum()
    }

    /// Removes entries of `name` that nobody has used for long. What cannot be removed now is for the next time: it is no
    /// reason to fail a build.
    pub fn prune(&self, name: &str, now: SystemTime) {
        let outdated = |entry: &Entry| entry.name == name && !entry.is_in_use && is_outdated(entry.last_used, now);
        for entry in self.entries().into_iter().filter(outdated) {
            let _ = entry.remove();
        }
        let _ = self.sweep(REMOVING);
    }

    /// What is left of builds and removals that were killed, or is in the works, takes so much on the disk.
    pub(crate) fn unfinished_bytes(&self) -> u64 {
        self.paths().filter(|path| is_unfinished(path)).map(|path| allocated_bytes(&path)).sum()
    }

    /// Removes what is left of builds and removals that were killed. `locks` are those of all names.
    pub(crate) fn remove_unfinished(&self, locks: &[BuildLock]) -> Result<(), FileError> {
        for lock in locks {
            self.sweep(&format!("{BUILDING}{}-", lock.label()))?;
        }
        self.sweep(REMOVING)
    }

    /// The right to build whatever was ever built here, unless somebody is building. Creates nothing.
    pub(crate) fn try_lock_all(&self) -> Result<Vec<BuildLock>, NotRemoved> {
        let mut locks = Vec::new();
        for path in self.paths() {
            let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(LOCK_SUFFIX)) else {
                continue;
            };
            // The label of one who builds beside another is a name as good as any here.
            match BuildLock::try_take(&path, name, 0)? {
                Ok(lock) => locks.push(lock),
                Err(_) => return Err(NotRemoved::Building),
            }
        }
        Ok(locks)
    }

    /// Removes whatever has a name that begins with `prefix`.
    fn sweep(&self, prefix: &str) -> Result<(), FileError> {
        let found = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => found.at("read", &self.folder)?,
        };
        for found in found {
            let found = found.at("read", &self.folder)?;
            if found.file_name().to_string_lossy().starts_with(prefix) {
                remove_directory(&found.path())?;
            }
        }
        Ok(())
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|found| found.path())
    }
}

fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(BUILDING) || name.starts_with(REMOVING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;
    use crate::prune::KEPT_UNUSED;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    const KEY: Digest = Digest([7; 32]);

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn nobody_waits() -> Result<(), ShelfError> {
        panic!("nobody else is there")
    }

    fn build(shelf: &Shelf, key: Digest, text: &str) -> Lease {
        let workplace = shelf.begin(shelf.lock("thing", nobody_waits).unwrap(), key).unwrap();
        fs::write(workplace.made().join("file"), text).unwrap();
        fs::write(workplace.scratch().join("scratch"), text).unwrap();
        workplace.publish().unwrap()
    }

    #[test]
    fn an_entry_appears_whole_replaces_another_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("new"));
        for text in ["one", "two"] {
            build(&shelf, KEY, text);
            assert_eq!(fs::read_to_string(shelf.entry("thing", KEY).join("file")).unwrap(), text);
        }
        assert_eq!(names(&shelf.folder), ["thing-0707070707070707", "thing.lock"]);
        assert_eq!(names(&shelf.entry("thing", KEY)), ["file"]);
        for private in [&shelf.folder, &shelf.entry("thing", KEY)] {
            assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn what_is_replaced_is_gone_before_the_building_and_what_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        build(&shelf, KEY, "one");
        let workplace = shelf.begin(shelf.lock("thing", nobody_waits).unwrap(), KEY).unwrap();
        assert!(!shelf.entry("thing", KEY).exists());
        drop(workplace);
        assert_eq!(names(folder.path()), ["thing.lock"]);
    }

    #[test]
    fn what_is_made_anew_leaves_the_old_until_it_is_there_and_as_long_as_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        drop(build(&shelf, KEY, "one"));
        let anew = |text: &str| {
            let place = shelf.begin_beside(shelf.lock("thing", nobody_waits).unwrap(), KEY).unwrap();
            fs::write(place.made().join("file"), text).unwrap();
            place
        };
        let content = || fs::read_to_string(shelf.entry("thing", KEY).join("file")).unwrap();
        drop(anew("failed"));
        assert_eq!(content(), "one");
        let user = Lease::take(&shelf.entry("thing", KEY)).unwrap();
        assert!(shelf.is_in_use("thing", KEY));
        let error = anew("two").publish_anew().unwrap_err().to_string();
        assert!(error.starts_with("cannot replace ") && error.ends_with("/thing-0707070707070707: a process uses it"));
        assert_eq!(content(), "one");
        drop(user);
        assert!(!shelf.is_in_use("thing", KEY));
        let lease = anew("two").publish_anew().unwrap();
        assert_eq!((content().as_str(), shelf.is_in_use("thing", KEY)), ("two", true));
        drop(lease);
        fs::remove_dir_all(shelf.entry("thing", KEY)).unwrap();
        drop(anew("three").publish_anew().unwrap());
        assert_eq!(content(), "three");
        assert_eq!(names(folder.path()), ["thing-0707070707070707", "thing.lock"]);
    }

    #[test]
    fn of_two_who_build_the_same_the_first_wins() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        let place_of = |generation| {
            let lock =
                BuildLock::try_take(&shelf.lock_path("thing", generation), "thing", generation).unwrap().unwrap();
            shelf.begin(lock, KEY).unwrap()
        };
        let (stopped, beside) = (place_of(0), place_of(1));
        for (place, text) in [(&stopped, "late"), (&beside, "first")] {
            fs::write(place.made().join("file"), text).unwrap();
        }
        let lease = beside.publish().unwrap();
        let late = stopped.publish().unwrap();
        assert_eq!(fs::read_to_string(shelf.entry("thing", KEY).join("file")).unwrap(), "first");
        assert_eq!(names(folder.path()), ["thing-0707070707070707", "thing.1.lock", "thing.lock"]);
        // Both use what is there.
        drop(lease);
        let entries = shelf.entries();
        assert!(entries[0].is_in_use && entries[0].remove().is_err());
        drop(late);
        assert!(!shelf.entries()[0].is_in_use);
    }

    #[test]
    fn what_a_killed_builder_left_is_swept_by_the_next_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        let beside = BuildLock::try_take(&shelf.lock_path("thing", 1), "thing", 1).unwrap().unwrap();
        for name in
            [".building-thing-abc/made", ".building-other-abc", ".building-thing.1-abc", ".building-thing.2-abc"]
        {
            create_private_directory(&folder.path().join(name)).unwrap();
        }
        fs::write(shelf.lock_path("thing", 2), "").unwrap();
        build(&shelf, KEY, "x");
        let left =
            [".building-other-abc", ".building-thing.1-abc", "thing-0707070707070707", "thing.1.lock", "thing.2.lock"];
        assert_eq!(names(folder.path()), [&left[..], &["thing.lock"]].concat(), "only what is locked stays");
        drop(beside);
        build(&shelf, KEY, "x");
        assert_eq!(names(folder.path()).iter().filter(|name| name.starts_with(".building")).count(), 1);
    }

    #[test]
    fn one_builds_at_a_time_and_who_waits_can_give_up() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        let first = shelf.lock("thing", nobody_waits).unwrap();
        assert!(shelf.try_lock("thing").unwrap().is_none());
        assert!(shelf.try_lock("other").unwrap().is_some());
        let mut asked = 0;
        let given_up: Result<BuildLock, NotRemoved> = shelf
            .lock("thing", || {
                asked += 1;
                if asked == 2 { Err(ShelfOrStop::Stop) } else { Ok(()) }
            })
            .map_err(|error| match error {
                ShelfOrStop::Stop => NotRemoved::Building,
                ShelfOrStop::Shelf(error) => panic!("{error}"),
            });
        assert!(matches!(given_up, Err(NotRemoved::Building)));
        std::thread::scope(|scope| {
            let (told, tells) = std::sync::mpsc::channel();
            let second = scope.spawn({
                let shelf = &shelf;
                move || {
                    let waits = || {
                        let _ = told.send(());
                        Ok::<_, ShelfError>(())
                    };
                    shelf.lock("thing", waits).map(drop)
                }
            });
            tells.recv().unwrap();
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap().unwrap();
        });
    }

    enum ShelfOrStop {
        Shelf(ShelfError),
        Stop,
    }

    impl From<ShelfError> for ShelfOrStop {
        fn from(error: ShelfError) -> ShelfOrStop {
            ShelfOrStop::Shelf(error)
        }
    }

    #[test]
    fn a_shelf_that_others_can_write_to_is_not_built_on() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Shelf::new(folder.path().to_owned()).try_lock("thing").unwrap_err();
        assert!(error.to_string().ends_with("can be written by others than its owner (mode 777)"), "{error}");
    }

    #[test]
    fn outdated_entries_go_unless_they_are_in_use_or_of_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        let [unused, used, recent] = [1, 2, 3].map(|key| Digest([key; 32]));
        drop(build(&shelf, unused, "x"));
        let lease = build(&shelf, used, "x");
        drop(build(&shelf, recent, "x"));
        fs::create_dir(folder.path().join("other-0101010101010101")).unwrap();
        fs::create_dir_all(folder.path().join(".removing-thing-0909090909090909-1/x")).unwrap();
        let long_ago = SystemTime::now() - KEPT_UNUSED * 2;
        for old in [shelf.entry("thing", unused), shelf.entry("thing", used), shelf.entry("other", unused)] {
            File::open(old).unwrap().set_modified(long_ago).unwrap();
        }
        shelf.prune("thing", SystemTime::now());
        drop(lease);
        let kept = ["other-0101010101010101", "thing-0202020202020202", "thing-0303030303030303", "thing.lock"];
        assert_eq!(names(folder.path()), kept);
    }
}
