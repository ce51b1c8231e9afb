//! For tests: a component that is built in no time, and a place that has it as other hosts have built it.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_schemas::image::{Component, Digest, MANIFEST_FORMAT, Manifest};
use sandbox_schemas::status::TierStatus;
use sandbox_store::{Age, CacheDir, EntryId, ShelfError, Tier, write_json};

use crate::cache::Cache;
use crate::entry::{self, MANIFEST};
use crate::error::BuildError;
use crate::host_tool::HostTool;
use crate::progress::Silent;
use crate::recipe::{Ingredients, Recipe, Workshop};

const CONTENT: &str = "the kernel";

/// Builds a small file and counts how often.
pub(crate) struct Fake {
    pub(crate) component: Component,
    pub(crate) key: u8,
    pub(crate) tools: &'static [HostTool],
    pub(crate) built: AtomicUsize,
    pub(crate) takes: Duration,
    pub(crate) fails: bool,
    /// Must not be there while it builds.
    pub(crate) replaces: Option<PathBuf>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            component: Component::Kernel,
            key: 7,
            tools: &[],
            built: AtomicUsize::new(0),
            takes: Duration::ZERO,
            fails: false,
            replaces: None,
        }
    }
}

impl Recipe for Fake {
    fn component(&self) -> Component {
        self.component
    }
    fn key(&self) -> Digest {
        Digest([self.key; 32])
    }
    fn tools(&self) -> &'static [HostTool] {
        self.tools
    }
    fn make(&self, work: &Path, artefact: &Path, _: &Workshop<'_>) -> Result<Ingredients, BuildError> {
        self.built.fetch_add(1, Ordering::Relaxed);
        assert!(!self.replaces.as_ref().is_some_and(|entry| entry.exists()));
        thread::sleep(self.takes);
        fs::write(work.join("scratch"), "x").unwrap();
        fs::write(artefact, CONTENT).unwrap();
        if self.fails { Err(BuildError::LostOptions(Vec::new())) } else { Ok(Ingredients::default()) }
    }
}

impl Fake {
    pub(crate) fn obtain(&self, cache: &Cache) -> Result<Manifest, BuildError> {
        with_workshop(cache, |workshop| cache.obtain(self, workshop))
    }

    pub(crate) fn renew(&self, cache: &Cache) -> Result<Manifest, BuildError> {
        with_workshop(cache, |workshop| cache.renew(self, false, workshop))
    }

    /// An entry that was built so many days ago, and that nobody uses.
    pub(crate) fn put(&self, cache: &Cache, days: u64) {
        let lock = cache.shelf.lock::<ShelfError>(self.component.name(), || Ok(())).unwrap();
        let place = cache.shelf.begin(lock, self.key()).unwrap();
        self.write(place.made(), days);
        drop(place.publish().unwrap());
    }

    /// The files of an entry.
    fn write(&self, folder: &Path, days: u64) {
        let artefact = folder.join(self.component.file_name());
        fs::write(&artefact, CONTENT).unwrap();
        let (sha256, size_bytes) = entry::hash(&File::open(&artefact).unwrap()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            component: self.component,
            key: self.key(),
            sha256,
            size_bytes,
            created_unix_seconds: now - days * 24 * 3600,
            packages: [].into(),
            tools: [].into(),
        };
        write_json(folder, MANIFEST, &manifest).unwrap();
    }
}

fn with_workshop<T>(cache: &Cache, work: impl FnOnce(&Workshop<'_>) -> T) -> T {
    let (downloads, logs, stop) = (cache.downloads(), cache.logs(), AtomicBool::new(false));
    work(&Workshop { progress: &Silent, downloads: &downloads, logs: &logs, stop: &stop })
}

pub(crate) fn cache_in(root: PathBuf) -> Cache {
    Cache::new(CacheDir::new(root, u64::MAX))
}

pub(crate) fn cache_behind(root: PathBuf, tier: Arc<dyn Tier>) -> Cache {
    Cache::new(CacheDir::new(root, u64::MAX).with_tiers(vec![tier]))
}

/// A tier that has one component, if any, of so many days, and may say that it is younger.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(crate) key: u8,
    pub(crate) days: Option<u64>,
    pub(crate) says_days: Option<u64>,
    pub(crate) offered: Mutex<Vec<Age>>,
}

impl Elsewhere {
    pub(crate) fn with(fake: &Fake, days: Option<u64>) -> Elsewhere {
        Elsewhere { key: fake.key, days, says_days: days, offered: Mutex::default() }
    }
}

impl Tier for Elsewhere {
    fn fetch(&self, _: &EntryId, since: Option<SystemTime>, folder: &Path, _: Duration) -> bool {
        let (Some(days), Some(says_days)) = (self.days, self.says_days) else { return false };
        let made = SystemTime::now() - Duration::from_secs(says_days * 24 * 3600);
        if since.is_some_and(|since| made < since) {
            return false;
        }
        Fake { key: self.key, ..Fake::default() }.write(folder, days);
        true
    }
    fn reject(&self, _: &EntryId, _: &str) {}
    fn offer(&self, _: &EntryId, _: &Path, age: Option<Age>) {
        self.offered.lock().unwrap().extend(age);
    }
    fn status(&self) -> TierStatus {
        TierStatus::new("elsewhere")
    }
    fn flush(&self, _: Duration) -> bool {
        true
    }
    fn close(&self, _: Duration) {}
}
