//! `sandbox-mcp cache push|pull`: an entry, by its key.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use sandbox_remote::{Pushed, S3};
use sandbox_schemas::image::{Digest, oldest_made};
use sandbox_store::{Age, CacheDir, EntryId, Fetched, Kind, Replaces, ShelfError, Tier, read_regular};
use serde::Deserialize;

use crate::settings::Settings;

/// Fewer digits of a key than this are a slip of the hand.
const DIGITS_MIN: usize = 4;

/// Largest manifest that is read, in bytes: they have some kilobytes.
const MANIFEST_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A whole image over a slow line. Whoever asks for it by hand can also end it.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What every manifest of an entry has in it.
#[derive(Deserialize)]
struct Keyed {
    key: Digest,
    created_unix_seconds: u64,
}

impl Keyed {
    /// Of what becomes too old. Anything else is there or not.
    fn age(&self, kind: Kind) -> Option<Age> {
        let made = UNIX_EPOCH.checked_add(Duration::from_secs(self.created_unix_seconds)).unwrap_or(UNIX_EPOCH);
        let replaces = Replaces::MadeBefore(oldest_made(SystemTime::now()));
        (kind == Kind::Image).then_some(Age { made, replaces })
    }
}

/// Sends an entry, and says what it was.
pub(crate) fn push(settings: &Settings, digits: &str) -> anyhow::Result<()> {
    let (s3, cache) = open(settings, digits)?;
    let mut found = Vec::new();
    for (kind, entry) in cache.entries() {
        // The folder's name has some digits only.
        if entry.key.starts_with(digits) || digits.starts_with(&entry.key) {
            let path = entry.path.join("manifest.json");
            let text =
                read_regular(&path, MANIFEST_MAX_BYTES).with_context(|| format!("cannot read {}", path.display()))?;
            let keyed: Keyed = serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
            if keyed.key.to_string().starts_with(digits) {
                let id = EntryId { kind, name: entry.name, key: keyed.key };
                found.push((id, entry.path, keyed.age(kind)));
            }
        }
    }
    ensure!(
        !found.is_empty(),
        "no entry here has a key that begins with {digits}: see `{} cache status`",
        sandbox_images::program()
    );
    let ids: Vec<_> = found.iter().map(|(id, ..)| id.clone()).collect();
    only(&ids)?;
    for (id, path, age) in found {
        let what = match s3.push(&id, &path, age).with_context(|| format!("{id} was not sent"))? {
            Pushed::Sent => "sent",
            Pushed::WasThere => "was there",
        };
        writeln!(std::io::stdout(), "{what}  {id}")?;
    }
    Ok(())
}

/// Fetches an entry, and says where it is.
pub(crate) fn pull(settings: &Settings, digits: &str) -> anyhow::Result<()> {
    let (s3, cache) = open(settings, digits)?;
    let found = s3.find(digits).context("the bucket cannot be searched")?;
    ensure!(!found.is_empty(), "no entry in the bucket has a key that begins with {digits}");
    let id = only(&found)?;
    if !is_here_or_fetched(&cache, id)? {
        let status = s3.status();
        let needs_key = id.kind.is_trusted_by_host() && status.hmac_key_id.is_none();
        let reason = match status.last_error {
            _ if needs_key => "QEMU trusts what is in it, so it is taken only with s3_hmac_key_file".into(),
            Some(reason) => reason,
            None if status.hmac_key_id.is_some() => "no host with the key of s3_hmac_key_file has sent it".into(),
            None => "no host without a key has sent it".into(),
        };
        bail!("{id} was not fetched: {reason}");
    }
    writeln!(std::io::stdout(), "{}", cache.shelf(id.kind).entry(&id.name, id.key).display())?;
    Ok(())
}

fn is_here_or_fetched(cache: &CacheDir, id: &EntryId) -> anyhow::Result<bool> {
    let shelf = cache.shelf(id.kind);
    let path = shelf.entry(&id.name, id.key);
    if path.exists() {
        return Ok(true);
    }
    let lock = shelf.lock::<ShelfError>(&id.name, || Ok(()))?;
    // Whoever had the lock may have built or fetched this very entry, and may use it by now.
    if path.exists() {
        return Ok(true);
    }
    // What is in it is looked at by who uses it; that it is what was sent is the tier's to see to.
    Ok(matches!(cache.fetch(id, lock, PATIENCE, |_| Ok(()))?, Fetched::Entry(..)))
}

fn open(settings: &Settings, digits: &str) -> anyhow::Result<(Arc<S3>, CacheDir)> {
    let s3 = settings.open_tier()?.context("no bucket is set: name one with --s3-bucket")?;
    let is_key = digits.len() >= DIGITS_MIN && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    ensure!(is_key, "`{digits}` is no key: it must be {DIGITS_MIN} to 64 digits of 0-9 and a-f");
    Ok((s3, settings.cache()?))
}

fn only(found: &[EntryId]) -> anyhow::Result<&EntryId> {
    match found {
        [id] => Ok(id),
        several => {
            let names: Vec<_> = several.iter().map(ToString::to_string).collect();
            bail!("several keys begin so: {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::status::TierStatus;

    /// Must not be asked.
    #[derive(Debug)]
    struct Unasked;

    impl Tier for Unasked {
        fn fetch(&self, _: &EntryId, _: Option<SystemTime>, _: &std::path::Path, _: Duration) -> bool {
            panic!("what is here by now is fetched")
        }
        fn reject(&self, _: &EntryId, _: &str) {}
        fn offer(&self, _: &EntryId, _: &std::path::Path, _: Option<Age>) {}
        fn status(&self) -> TierStatus {
            TierStatus::new("unasked")
        }
        fn flush(&self, _: Duration) -> bool {
            true
        }
        fn close(&self, _: Duration) {}
    }

    #[test]
    fn what_was_built_while_it_was_waited_for_is_not_fetched_over_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path().to_owned(), u64::MAX).with_tiers(vec![Arc::new(Unasked)]);
        let id = EntryId { kind: Kind::Image, name: "root".into(), key: Digest([7; 32]) };
        let shelf = cache.shelf(id.kind);
        let place = shelf.begin(shelf.try_lock("root").unwrap().unwrap(), id.key).unwrap();
        std::fs::write(place.made().join("file"), "built").unwrap();
        std::thread::scope(|scope| {
            let pulling = scope.spawn(|| is_here_or_fetched(&cache, &id));
            // It waits for the lock by then; if not, it finds what is there at once.
            std::thread::sleep(Duration::from_millis(300));
            assert!(!pulling.is_finished());
            let _lease = place.publish().unwrap();
            assert!(pulling.join().unwrap().unwrap());
        });
        assert_eq!(std::fs::read_to_string(shelf.entry("root", id.key).join("file")).unwrap(), "built");
    }
}
