//! What a request became, shared with other hosts: what they would have to ask a registry for, and install to find out.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sandbox_packages::{Gateway, Requirement};
use sandbox_schemas::environment::PackageLock;
use sandbox_schemas::language::Language;
use sandbox_store::{
    BuildLock, CacheDir, EntryId, Fetched, FileError, KeyHasher, Kind, Shelf, ShelfError, open_own, write_json,
};

/// The one file of an entry.
const LOCK: &str = "lock.json";

/// A request means the same packages for a day, here as on one host. An entry is never replaced, so the day is in its key.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A few kilobytes, beside an installation of many seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest file that is read, in bytes: the largest trees of npm have some thousand packages.
const LOCK_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// What another host has resolved today. Blocks.
pub(crate) fn fetch(
    cache: &CacheDir,
    gateway: &Gateway,
    language: Language,
    requirements: &[Requirement],
) -> Option<PackageLock> {
    if !cache.has_tiers() {
        return None;
    }
    let entry = entry(gateway, language, requirements);
    let shelf = cache.shelf(entry.kind);
    if let Ok(lock) = read(&path(&shelf, &entry), language) {
        return Some(lock);
    }
    // Whoever has it may be fetching this very resolution.
    let right = right(&shelf, &entry.name)?;
    if let Ok(lock) = read(&path(&shelf, &entry), language) {
        return Some(lock);
    }
    match cache.fetch(&entry, right, PATIENCE, |folder| read(folder, language)) {
        Ok(Fetched::Entry(lock, _lease)) => Some(lock),
        Ok(Fetched::Nothing(_)) => None,
        Err(error) => {
            tracing::warn!(%error, "a resolution cannot be fetched");
            None
        }
    }
}

/// Tells other hosts what a request has become. Blocks.
pub(crate) fn offer(cache: &CacheDir, gateway: &Gateway, requirements: &[Requirement], lock: &PackageLock) {
    if !cache.has_tiers() {
        return;
    }
    let entry = entry(gateway, lock.language, requirements);
    let shelf = cache.shelf(entry.kind);
    let written = || -> Result<(), FileError> {
        let Some(right) = right(&shelf, &entry.name) else { return Ok(()) };
        let place = shelf.begin(right, entry.key)?;
        write_json(place.made(), LOCK, lock)?;
        place.publish().map(drop)
    };
    match written() {
        Ok(()) => cache.offer(&entry),
        Err(error) => tracing::warn!(%error, "a resolution is not shared"),
    }
}

/// The right to put a resolution on the shelf, if it is to be had in time. Who has it is done in a moment, or fetches.
fn right(shelf: &Shelf, name: &str) -> Option<BuildLock> {
    let until = Instant::now() + PATIENCE;
    let waits = || if Instant::now() < until { Ok(()) } else { Err(NoRight) };
    shelf.lock(name, waits).ok()
}

/// It was not to be had.
struct NoRight;

impl From<ShelfError> for NoRight {
    fn from(error: ShelfError) -> NoRight {
        tracing::warn!(%error, "no resolution can be kept");
        NoRight
    }
}

fn entry(gateway: &Gateway, language: Language, requirements: &[Requirement]) -> EntryId {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs();
    let key = KeyHasher::new("resolution of a day")
        .field("request", &gateway.resolution_key(language, requirements).0)
        .field("day", &today.to_le_bytes());
    EntryId { kind: Kind::Resolution, name: language.name().into(), key: key.finish() }
}

fn path(shelf: &Shelf, entry: &EntryId) -> std::path::PathBuf {
    shelf.entry(&entry.name, entry.key)
}

/// What is in an entry. Whether its packages are allowed is for who uses it to ask.
fn read(folder: &Path, language: Language) -> Result<PackageLock, String> {
    let (file, metadata): (File, _) = open_own(&folder.join(LOCK)).map_err(|reason| format!("{LOCK} {reason}"))?;
    if metadata.len() > LOCK_MAX_BYTES {
        return Err(format!("{LOCK} has {} bytes", metadata.len()));
    }
    let lock: PackageLock = serde_json::from_reader(file).map_err(|error| format!("{LOCK}: {error}"))?;
    if lock.language == language { Ok(lock) } else { Err(format!("{LOCK} is of {} packages", lock.language)) }
}
