//! Components that other hosts have built, or can have from this one.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use sandbox_schemas::image::{Component, Manifest, oldest_made};
use sandbox_store::{Age, EntryId, Fetched, Kind, Replaces};

use crate::cache::{Cache, Standing};
use crate::entry;
use crate::error::BuildError;
use crate::recipe::Recipe;

/// Building a component takes minutes; a tier is given as long.
pub(crate) const TIER_PATIENCE: Duration = Duration::from_secs(180);

/// How long another process is waited for that may be fetching the same.
const PULL_WAITS: Duration = Duration::from_secs(30);

/// How old what is fetched may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// What is outdated is not taken.
    Young,
    /// What is outdated is better than nothing.
    Any,
}

impl Cache {
    /// The manifest of a sound entry, which is fetched if it is not here, or outdated here, and another host has built it. Nothing
    /// is built.
    pub(crate) fn pull(
        &self,
        recipe: &dyn Recipe,
        patience: Duration,
        takes: Takes,
    ) -> Result<Option<Manifest>, BuildError> {
        // What there is otherwise.
        let or_else = |is_here: bool| if is_here && takes == Takes::Any { self.sound(recipe) } else { Ok(None) };
        let is_here = match self.standing(recipe, false)? {
            Standing::Good(manifest) => return Ok(Some(manifest)),
            Standing::Outdated(_) => true,
            Standing::Corrupt | Standing::Missing => false,
        };
        let (component, key) = (recipe.component(), recipe.key());
        if !self.directory.has_tiers() || !is_shared(component) || (is_here && self.is_in_use(recipe)) {
            return or_else(is_here);
        }
        // Whoever holds it fetches it as well, or builds it, which is not waited for.
        let until = Instant::now() + PULL_WAITS;
        let wait = || if Instant::now() < until { Ok(()) } else { Err(BuildError::Stopped) };
        let lock = match self.shelf.lock(component.name(), wait) {
            Err(BuildError::Stopped) => return or_else(is_here),
            lock => lock?,
        };
        let (is_here, lock) = match self.standing(recipe, false)? {
            Standing::Good(manifest) => return Ok(Some(manifest)),
            Standing::Outdated(_) => (true, lock),
            // What cannot be used is in nobody's way.
            Standing::Corrupt | Standing::Missing => (false, self.shelf.begin(lock, key)?.give_up()),
        };
        let verify = |folder: &Path| entry::verify(folder, component, key).map_err(|reason| reason.to_string());
        let verify_young = |folder: &Path| match verify(folder) {
            Ok(manifest) if manifest.is_outdated(SystemTime::now()) => Err("it is older than was said of it".into()),
            verified => verified,
        };
        let since = Some(oldest_made(SystemTime::now()));
        let fetched = match self.directory.fetch_made_since(&id(recipe), since, lock, patience, verify_young)? {
            Fetched::Nothing(_) if is_here => return or_else(is_here),
            Fetched::Nothing(lock) if takes == Takes::Any => {
                self.directory.fetch(&id(recipe), lock, patience, verify)?
            }
            fetched => fetched,
        };
        match fetched {
            Fetched::Entry(manifest, lease) => {
                lease.keep_until_exit();
                self.make_room(component);
                Ok(Some(manifest))
            }
            Fetched::Nothing(_) => Ok(None),
        }
    }

    /// So that other hosts need not build it. What is outdated there is replaced by what is not; `is_fresh` replaces whatever is there.
    pub(crate) fn offer(&self, recipe: &dyn Recipe, manifest: &Manifest, is_fresh: bool) {
        if is_shared(recipe.component()) {
            let replaces = if is_fresh { Replaces::Any } else { Replaces::MadeBefore(oldest_made(SystemTime::now())) };
            self.directory.offer_of_age(&id(recipe), Some(Age { made: manifest.made(), replaces }));
        }
    }
}

fn id(recipe: &dyn Recipe) -> EntryId {
    EntryId { kind: Kind::Image, name: recipe.component().name().into(), key: recipe.key() }
}

/// The agent is part of every binary that could ask for it. QEMU is a program of the host's, outside of any VM: nobody gets one
/// from a bucket.
fn is_shared(component: Component) -> bool {
    match component {
        Component::Kernel | Component::Root => true,
        Component::Agent | Component::Qemu => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sandbox_store::Lease;

    use super::*;
    use crate::fake::{Elsewhere, Fake, cache_behind};

    /// How old what is used is, in days, where an entry of some days is here and another one elsewhere.
    #[track_caller]
    fn check(here: Option<u64>, elsewhere: Option<u64>, takes: Takes, expected: Option<u64>) {
        let (folder, fake) = (tempfile::tempdir().unwrap(), Fake::default());
        let cache = cache_behind(folder.path().to_owned(), Arc::new(Elsewhere::with(&fake, elsewhere)));
        if let Some(days) = here {
            fake.put(&cache, days);
        }
        let pulled = cache.pull(&fake, Duration::ZERO, takes).unwrap();
        assert_eq!(pulled.map(|manifest| manifest.age_days(SystemTime::now())), expected);
        assert_eq!(cache.is_in_use(&fake), expected.is_some(), "what is used stays, and what is to go is not held");
        assert_eq!(cache.artefact(&fake).exists(), here.is_some() || expected.is_some());
    }

    #[test]
    fn what_is_young_is_taken_wherever_it_is_and_what_is_old_only_if_there_is_nothing_else() {
        for takes in [Takes::Young, Takes::Any] {
            let any = |days| (takes == Takes::Any).then_some(days);
            check(None, None, takes, None);
            check(Some(3), Some(1), takes, Some(3));
            check(None, Some(3), takes, Some(3));
            check(Some(40), Some(3), takes, Some(3));
            check(Some(40), None, takes, any(40));
            check(None, Some(40), takes, any(40));
            check(Some(40), Some(35), takes, any(40));
        }
    }

    #[test]
    fn what_a_process_uses_is_not_replaced_and_what_lies_about_its_age_is_old() {
        let fake = Fake::default();
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_behind(folder.path().to_owned(), Arc::new(Elsewhere::with(&fake, Some(3))));
        fake.put(&cache, 40);
        let lease = Lease::take(cache.artefact(&fake).parent().unwrap()).unwrap();
        let days = |pulled: Option<Manifest>| pulled.map(|manifest| manifest.age_days(SystemTime::now()));
        assert_eq!(days(cache.pull(&fake, Duration::ZERO, Takes::Young).unwrap()), None);
        assert_eq!(days(cache.pull(&fake, Duration::ZERO, Takes::Any).unwrap()), Some(40));
        drop(lease);
        let folder = tempfile::tempdir().unwrap();
        let lies = Elsewhere { says_days: Some(0), ..Elsewhere::with(&fake, Some(40)) };
        let cache = cache_behind(folder.path().to_owned(), Arc::new(lies));
        assert_eq!(days(cache.pull(&fake, Duration::ZERO, Takes::Young).unwrap()), None);
    }

    #[test]
    fn what_is_offered_replaces_what_is_outdated_or_whatever_there_is() {
        let (folder, fake) = (tempfile::tempdir().unwrap(), Fake::default());
        let tier = Arc::new(Elsewhere::with(&fake, None));
        let cache = cache_behind(folder.path().to_owned(), tier.clone());
        let manifest = fake.obtain(&cache).unwrap();
        cache.offer(&fake, &manifest, false);
        cache.offer(&fake, &manifest, true);
        let offered = tier.offered.lock().unwrap();
        assert!(offered.iter().all(|age| age.made == manifest.made()));
        assert!(matches!(offered[0].replaces, Replaces::MadeBefore(since) if since < manifest.made()));
        assert_eq!((offered[1].replaces, offered.len()), (Replaces::Any, 2));
    }
}
