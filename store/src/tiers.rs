//! Where an entry comes from when it is not on this disk: tiers, asked in their order before anything is built, and offered
//! what was built.

use std::path::Path;
use std::time::{Duration, SystemTime};

use sandbox_schemas::status::TierStatus;

use crate::build_lock::BuildLock;
use crate::cache_dir::CacheDir;
use crate::entry_id::EntryId;
use crate::error::FileError;
use crate::file::remove_content;
use crate::lease::Lease;
use crate::tier::Age;

/// What came of asking the tiers.
#[derive(Debug)]
pub enum Fetched<T> {
    /// The entry is on this disk now, in use; and what its check has made of it.
    Entry(T, Lease),
    /// No tier has it: here is the right to build it back.
    Nothing(BuildLock),
}

impl CacheDir {
    /// Asks the tiers for an entry that is not on this disk, or is damaged there. `check` looks at its files before anybody
    /// else can see them, in a folder that is moved into its place if it is content. To be had in less than `patience`, which
    /// is what building it would take. Blocks.
    pub fn fetch<T>(
        &self,
        wanted: &EntryId,
        lock: BuildLock,
        patience: Duration,
        check: impl FnMut(&Path) -> Result<T, String>,
    ) -> Result<Fetched<T>, FileError> {
        self.fetch_made_since(wanted, None, lock, patience, check)
    }

    /// The same for an entry that is of no use if it was made before `since`. What this disk has stays until another one is there.
    pub fn fetch_made_since<T>(
        &self,
        wanted: &EntryId,
        since: Option<SystemTime>,
        lock: BuildLock,
        patience: Duration,
        mut check: impl FnMut(&Path) -> Result<T, String>,
    ) -> Result<Fetched<T>, FileError> {
        if self.tiers.is_empty() {
            return Ok(Fetched::Nothing(lock));
        }
        let shelf = self.shelf(wanted.kind);
        let place =
            if since.is_some() { shelf.begin_beside(lock, wanted.key)? } else { shelf.begin(lock, wanted.key)? };
        for tier in self.tiers.iter() {
            if tier.fetch(wanted, since, place.made(), patience) {
                match check(place.made()) {
                    Ok(checked) if since.is_some() => return Ok(Fetched::Entry(checked, place.publish_anew()?)),
                    Ok(checked) => return Ok(Fetched::Entry(checked, place.publish()?)),
                    Err(reason) => tier.reject(wanted, &reason),
                }
            }
            remove_content(place.made())?;
        }
        Ok(Fetched::Nothing(place.give_up()))
    }

    /// Tells the tiers of an entry that is on this disk and sound, so that other hosts can have it.
    pub fn offer(&self, entry: &EntryId) {
        self.offer_of_age(entry, None);
    }

    /// The same for an entry that may take the place of another.
    pub fn offer_of_age(&self, entry: &EntryId, age: Option<Age>) {
        for tier in self.tiers.iter() {
            tier.offer(entry, &self.shelf(entry.kind).entry(&entry.name, entry.key), age);
        }
    }

    /// Whether there is any place beyond this disk.
    pub fn has_tiers(&self) -> bool {
        !self.tiers.is_empty()
    }

    /// How the tiers beyond this disk are doing, in the order in which they are asked.
    pub fn tier_status(&self) -> Vec<TierStatus> {
        self.tiers.iter().map(|tier| tier.status()).collect()
    }

    /// Waits for what the tiers were offered. `true` when nothing is left.
    pub fn flush_tiers(&self, patience: Duration) -> bool {
        self.tiers.iter().all(|tier| tier.flush(patience))
    }

    /// Ends what the tiers do in the background.
    pub fn close_tiers(&self, patience: Duration) {
        self.tiers.iter().for_each(|tier| tier.close(patience));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry_id::Kind;
    use crate::tier::Tier;
    use sandbox_schemas::image::Digest;
    use std::fs;
    use std::sync::{Arc, Mutex};

    /// Has one file for every entry, or leaves rubbish.
    #[derive(Debug, Default)]
    struct Fake {
        content: Option<&'static str>,
        rejected: Mutex<Vec<String>>,
        offered: Mutex<Vec<EntryId>>,
    }

    impl Tier for Fake {
        fn fetch(&self, _: &EntryId, _: Option<SystemTime>, folder: &Path, _: Duration) -> bool {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
            fs::write(folder.join("file"), self.content.unwrap_or("rubbish")).unwrap();
            self.content.is_some()
        }
        fn reject(&self, _: &EntryId, reason: &str) {
            self.rejected.lock().unwrap().push(reason.into());
        }
        fn offer(&self, entry: &EntryId, folder: &Path, age: Option<Age>) {
            assert_eq!(age, None);
            assert!(folder.ends_with("images/root-0707070707070707"));
            self.offered.lock().unwrap().push(entry.clone());
        }
        fn status(&self) -> TierStatus {
            TierStatus::new("fake")
        }
        fn flush(&self, _: Duration) -> bool {
            true
        }
        fn close(&self, _: Duration) {}
    }

    fn id() -> EntryId {
        EntryId { kind: Kind::Image, name: "root".into(), key: Digest([7; 32]) }
    }

    /// What is asked of tiers with these contents, and which of them are told that theirs is wrong.
    #[track_caller]
    fn check(contents: &[Option<&'static str>], expected: Option<&str>, rejected: &[usize]) {
        let folder = tempfile::tempdir().unwrap();
        let tiers: Vec<_> = contents.iter().map(|&content| Arc::new(Fake { content, ..Fake::default() })).collect();
        let cache = CacheDir::new(folder.path().to_owned(), 0)
            .with_tiers(tiers.iter().map(|tier| tier.clone() as Arc<dyn Tier>).collect());
        let shelf = cache.shelf(Kind::Image);
        let lock = shelf.try_lock("root").unwrap().unwrap();
        let read = |made: &Path| match fs::read_to_string(made.join("file")).unwrap() {
            text if text == "wrong" => Err(text),
            text => Ok(text),
        };
        let entry = shelf.entry("root", id().key);
        match cache.fetch(&id(), lock, Duration::ZERO, read).unwrap() {
            Fetched::Entry(text, _lease) => {
                assert_eq!(Some(text.as_str()), expected);
                assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), text);
                assert!(shelf.try_lock("root").unwrap().is_some(), "it is there: nobody need wait");
            }
            Fetched::Nothing(_lock) => {
                assert!(expected.is_none() && !entry.exists());
                assert!(shelf.try_lock("root").unwrap().is_none(), "the right to build is still ours");
            }
        }
        let told: Vec<_> = (0..tiers.len()).filter(|&at| !tiers[at].rejected.lock().unwrap().is_empty()).collect();
        assert_eq!(told, rejected);
        let left = fs::read_dir(shelf.folder()).unwrap().map(|found| found.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(".building")));
    }

    #[test]
    fn tiers_are_asked_in_order_and_what_is_wrong_is_rejected_and_gone() {
        check(&[], None, &[]);
        check(&[None], None, &[]);
        check(&[Some("right")], Some("right"), &[]);
        check(&[None, Some("right")], Some("right"), &[]);
        check(&[Some("first"), Some("second")], Some("first"), &[]);
        check(&[Some("wrong"), Some("right")], Some("right"), &[0]);
        check(&[None, Some("wrong")], None, &[1]);
    }

    #[test]
    fn every_tier_is_offered_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let tiers = [(); 2].map(|()| Arc::new(Fake::default()));
        let cache = CacheDir::new(folder.path().to_owned(), 0)
            .with_tiers(tiers.iter().map(|tier| tier.clone() as Arc<dyn Tier>).collect());
        cache.offer(&id());
        assert!(tiers.iter().all(|tier| *tier.offered.lock().unwrap() == [id()]));
        assert_eq!(cache.tier_status().len(), 2);
    }
}
