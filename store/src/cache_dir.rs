//! The directory that holds everything, and the bound on what it takes. Only its user may look into it.
//!
//! ```text
//! images/  templates/  layers/  resolutions/   shelves, whose entries are bounded together
//! downloads/  logs/                            what builders keep for the next time
//! packages/                                    what registries sent, bounded on its own
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::entry::Entry;
use crate::entry_id::Kind;
use crate::error::NotRemoved;
use crate::file::{allocated_bytes, remove_content};
use crate::prune::excess;
use crate::shelf::Shelf;
use crate::tier::Tier;

/// How much all entries together may take, in gigabytes, where nobody says otherwise.
pub const DEFAULT_LIMIT_GB: u64 = 10;

/// Bytes of a gigabyte, as disks are sold.
pub const GIGABYTE: u64 = 1_000_000_000;

/// Removals can be overtaken by a use; then somebody else goes. More rounds than this are somebody else's doing.
const ROUNDS: usize = 3;

/// The directory that holds everything.
#[derive(Debug, Clone)]
pub struct CacheDir {
    root: PathBuf,
    limit_bytes: u64,
    /// Asked for what is not here, in this order.
    pub(crate) tiers: Arc<[Arc<dyn Tier>]>,
}

/// What is in the cache beside entries.
#[derive(Debug)]
pub struct Beside {
    /// What it is called.
    pub name: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// What it takes on the disk.
    pub size_bytes: u64,
}

/// What was to be removed, and whether it was.
#[derive(Debug)]
pub struct Removal<T> {
    /// As it was found.
    pub what: T,
    /// Why it is still there.
    pub result: Result<(), NotRemoved>,
}

impl CacheDir {
    /// The cache in `root`, which need not exist yet, and how much all entries together may take after a build.
    pub fn new(root: PathBuf, limit_bytes: u64) -> CacheDir {
        // Tools run in directories of their own, where a relative path would lead elsewhere. It stays relative only
        // when there is no working directory, and then it leads nowhere.
        let root = std::path::absolute(&root).unwrap_or(root);
        CacheDir { root, limit_bytes, tiers: Arc::default() }
    }

    /// The same with other places behind it, the one that is asked first at the front.
    pub fn with_tiers(self, tiers: Vec<Arc<dyn Tier>>) -> CacheDir {
        CacheDir { tiers: tiers.into(), ..self }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How much all entries together may take, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Where entries of a kind lie.
    pub fn shelf(&self, kind: Kind) -> Shelf {
        Shelf::new(self.root.join(kind.folder()))
    }

    /// Where downloads are kept.
    pub fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// Where what came from package registries is kept.
    pub fn packages(&self) -> PathBuf {
        self.root.join("packages")
    }

    /// Where the output of tools is kept.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Every entry, by kind and name, the one that was last used first.
    pub fn entries(&self) -> Vec<(Kind, Entry)> {
        let of_kind = |kind| {
            let mut entries = self.shelf(kind).entries();
            entries.sort_by(|one, other| one.name.cmp(&other.name).then(other.last_used.cmp(&one.last_used)));
            entries.into_iter().map(move |entry| (kind, entry))
        };
        Kind::ALL.into_iter().flat_map(of_kind).collect()
    }

    /// What all entries take on the disk together. Opens and locks nothing.
    pub fn size_bytes(&self) -> u64 {
        Kind::ALL.map(|kind| self.shelf(kind).size_bytes()).into_iter().sum()
    }

    /// What takes space beside the entries: what is kept for the next build, and what is being built or was left half done.
    pub fn besides(&self) -> Vec<Beside> {
        let kept = [("downloads", self.downloads()), ("packages", self.packages()), ("logs", self.logs())]
            .map(|(name, path)| Beside { name, size_bytes: content_bytes(&path), path });
        let unfinished = Kind::ALL.map(|kind| {
            let shelf = self.shelf(kind);
            Beside { name: "unfinished", size_bytes: shelf.unfinished_bytes(), path: shelf.folder().to_owned() }
        });
        kept.into_iter().chain(unfinished).filter(|beside| beside.size_bytes > 0).collect()
    }

    /// Removes the entries that were not used for longest until the others take no more than the limit, and says
    /// which they were. What any process uses stays, and what it has built belongs to that. What cannot be removed now is
    /// for the next time: it is no reason to fail a build.
    pub fn make_room(&self) -> Vec<Entry> {
        let mut removed = Vec::new();
        for _ in 0..ROUNDS {
            let entries: Vec<_> = self.entries().into_iter().map(|(_, entry)| entry).collect();
            let excess = excess(&entries, self.limit_bytes);
            if excess.is_empty() {
                break;
            }
            removed.extend(excess.into_iter().filter(|entry| entry.remove().is_ok()).cloned());
        }
        removed
    }

    /// Removes every entry that is not in use.
    pub fn clear_entries(&self) -> Vec<Removal<(Kind, Entry)>> {
        let remove = |what: (Kind, Entry)| Removal { result: what.1.remove(), what };
        self.entries().into_iter().map(remove).collect()
    }

    /// Removes what is beside the entries, unless something is being built.
    pub fn clear_besides(&self) -> Vec<Removal<Beside>> {
        self.besides().into_iter().map(|what| Removal { result: self.clear_beside(&what), what }).collect()
    }

    fn clear_beside(&self, beside: &Beside) -> Result<(), NotRemoved> {
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| self.shelf(*kind).folder() == beside.path) {
            let shelf = self.shelf(kind);
            return Ok(shelf.remove_unfinished(&shelf.try_lock_all()?)?);
        }
        // Held until it is done, so that nobody begins to build meanwhile.
        let _locks =
            Kind::ALL.into_iter().map(|kind| self.shelf(kind).try_lock_all()).collect::<Result<Vec<_>, _>>()?;
        Ok(remove_content(&beside.path)?)
    }
}

fn content_bytes(folder: &Path) -> u64 {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|found| allocated_bytes(&found.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_lock::BuildLock;
    use crate::lease::Lease;
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    const MEGABYTE: u64 = 1_000_000;

    /// An entry of at least a megabyte that was used so many days ago.
    fn put(cache: &CacheDir, kind: Kind, name: &str, key: &str, days: u64) -> PathBuf {
        let path = cache.shelf(kind).folder().join(format!("{name}-{key}"));
        fs::create_dir_all(&path).unwrap();
        let file = path.join("file");
        fs::write(&file, vec![1; MEGABYTE as usize]).unwrap();
        // Blocks are counted when they are set aside, which some file systems do late.
        File::open(file).unwrap().sync_all().unwrap();
        let used = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        File::open(&path).unwrap().set_modified(used).unwrap();
        path
    }

    const KEYS: [&str; 4] = ["1111111111111111", "2222222222222222", "3333333333333333", "4444444444444444"];

    #[test]
    fn room_is_made_among_all_kinds_and_never_by_removing_what_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let within = |limit_bytes| CacheDir::new(folder.path().to_owned(), limit_bytes);
        let cache = within(0);
        let used = put(&cache, Kind::Image, "root", KEYS[0], 9);
        let oldest = put(&cache, Kind::Template, "base", KEYS[1], 8);
        let old = put(&cache, Kind::Image, "kernel", KEYS[2], 7);
        let lease = Lease::take(&used).unwrap();
        assert!((3 * MEGABYTE..4 * MEGABYTE).contains(&cache.size_bytes()));
        let new = put(&cache, Kind::Template, "base", KEYS[3], 1);
        assert!(within(5 * MEGABYTE).make_room().is_empty());
        let keys = |removed: Vec<Entry>| removed.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
        assert_eq!(keys(within(4 * MEGABYTE).make_room()), KEYS[1..2]);
        assert!(!oldest.exists() && old.exists());
        assert_eq!(keys(within(0).make_room()), KEYS[2..]);
        assert!(used.exists() && !old.exists() && !new.exists());
        drop(lease);
        within(0).make_room();
        assert!(cache.entries().is_empty());
    }

    #[test]
    fn a_relative_root_does_not_depend_on_where_a_tool_runs() {
        assert!(CacheDir::new("cache".into(), 0).root().is_absolute());
    }

    #[test]
    fn clearing_leaves_what_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path().to_owned(), 0);
        let lease = Lease::take(&put(&cache, Kind::Image, "root", KEYS[0], 9)).unwrap();
        let idle = put(&cache, Kind::Template, "base", KEYS[1], 1);
        let results: Vec<_> = cache.clear_entries().into_iter().map(|removal| removal.result.is_ok()).collect();
        assert_eq!(results, [false, true]);
        assert!(!idle.exists());
        drop(lease);
        assert!(cache.clear_entries().into_iter().all(|removal| removal.result.is_ok()));
        assert!(cache.entries().is_empty());
    }

    #[test]
    fn what_is_kept_for_builders_goes_only_when_nobody_builds() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path().to_owned(), 0);
        assert!(cache.besides().is_empty() && cache.clear_besides().is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "looking creates nothing");
        let lock: BuildLock = cache.shelf(Kind::Image).try_lock("root").unwrap().unwrap();
        let leftover = cache.shelf(Kind::Image).folder().join(".building-root-abcdef");
        for path in [&leftover, &cache.downloads(), &cache.logs()] {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("file"), "content").unwrap();
        }
        let clear = || -> Vec<_> {
            let removals = cache.clear_besides().into_iter();
            removals.map(|removal| (removal.what.name, removal.result.is_ok())).collect()
        };
        assert_eq!(clear(), [("downloads", false), ("logs", false), ("unfinished", false)]);
        drop(lock);
        assert_eq!(clear(), [("downloads", true), ("logs", true), ("unfinished", true)]);
        assert!(clear().is_empty() && cache.downloads().is_dir() && !leftover.exists());
    }
}
