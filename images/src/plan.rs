//! What a build has to do, component by component, and what becomes of it where that cannot be done.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use sandbox_schemas::image::{Component, Manifest};

use crate::cache::{Cache, Standing};
use crate::error::{BuildError, program};
use crate::host_tool;
use crate::recipe::{Recipe, Workshop};
use crate::shared::{TIER_PATIENCE, Takes};

/// What is to be built beside what is missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuildOptions {
    /// A QEMU too.
    pub with_qemu: bool,
    /// All that has Debian's packages in it, though it is there or other hosts have it; a QEMU only where there is one.
    pub fresh: bool,
}

/// What is to be done for a component.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// It is built if it is not there.
    Build,
    /// It is there, and is built anew.
    Renew(Manifest),
    /// Nobody wants it, or it is as it should be.
    Nothing,
}

impl Work {
    /// What there is to do for a component, as it stands. What is outdated is to be renewed only where it can be, unless
    /// `options` want it.
    pub(crate) fn of(cache: &Cache, recipe: &dyn Recipe, options: BuildOptions) -> Result<Work, BuildError> {
        let component = recipe.component();
        let old = match cache.standing(recipe, options.fresh)? {
            Standing::Good(_) => return Ok(Work::Nothing),
            Standing::Corrupt => return Ok(Work::Build),
            Standing::Missing if component.is_required() || options.with_qemu => return Ok(Work::Build),
            Standing::Missing => return Ok(Work::Nothing),
            Standing::Outdated(old) => old,
        };
        let in_the_way = if cache.is_in_use(recipe) {
            Some(BuildError::InUse { component })
        } else {
            host_tool::require(recipe.tools().iter()).err().map(BuildError::from)
        };
        match in_the_way {
            // Minutes of compiling that nobody has asked for; who runs it is told that it is old.
            _ if component == Component::Qemu && !options.fresh => {}
            None => return Ok(Work::Renew(old)),
            Some(reason) if options.fresh => return Err(reason),
            Some(reason) => tell_it_is_old(&old, Some(&reason)),
        }
        // From here on it is in use as it is.
        cache.load(recipe);
        Ok(Work::Nothing)
    }
}

/// A build that goes on.
#[derive(Clone, Copy)]
pub(crate) struct Making<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) options: BuildOptions,
    /// Whether what other hosts have is asked for.
    pub(crate) may_pull: bool,
    pub(crate) workshop: &'a Workshop<'a>,
}

impl Making<'_> {
    /// A component, as it is planned. Where it cannot be built, what is old does, here or elsewhere: a host that is offline goes on
    /// with what it has. Who wants it fresh is told instead.
    pub(crate) fn make(&self, recipe: &dyn Recipe, work: &Work) -> Result<Manifest, BuildError> {
        let Making { cache, options, may_pull, workshop } = *self;
        let (reason, old) = match work {
            Work::Renew(_) => match cache.renew(recipe, options.fresh, workshop) {
                Err(reason) if !options.fresh && !matches!(reason, BuildError::Stopped) => {
                    (reason, cache.sound(recipe))
                }
                renewed => return self.ended(renewed),
            },
            Work::Build | Work::Nothing => match cache.obtain(recipe, workshop) {
                Err(reason) if may_pull && !matches!(reason, BuildError::Stopped) => {
                    (reason, cache.pull(recipe, TIER_PATIENCE, Takes::Any))
                }
                obtained => return self.ended(obtained),
            },
        };
        let Some(old) = old.ok().flatten() else { return self.ended(Err(reason)) };
        tell_it_is_old(&old, Some(&reason));
        Ok(old)
    }

    /// The others need not go on for what has failed.
    fn ended(&self, result: Result<Manifest, BuildError>) -> Result<Manifest, BuildError> {
        if result.is_err() {
            self.workshop.stop.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// Says that a component is used though it is outdated, and why.
pub(crate) fn tell_it_is_old(manifest: &Manifest, reason: Option<&BuildError>) {
    let (component, days) = (manifest.component, manifest.age_days(SystemTime::now()));
    match reason {
        Some(reason) => tracing::warn!(
            %component, days, %reason,
            "this part of the VMs' image is used though it has none of Debian's security updates since it was built: it could not be \
             built anew"
        ),
        None => tracing::warn!(
            %component, days,
            "this part of the VMs' image has none of Debian's security updates since it was built: `{} image build`, while no server \
             runs, builds it anew",
            program()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use sandbox_store::Lease;

    use super::*;
    use crate::fake::{Elsewhere, Fake, cache_behind, cache_in};
    use crate::host_tool::HostTool;
    use crate::progress::Silent;

    const NO_SUCH_TOOL: &[HostTool] = &[HostTool { name: "no-such-tool", package: "none" }];
    const PLAIN: BuildOptions = BuildOptions { with_qemu: false, fresh: false };
    const FRESH: BuildOptions = BuildOptions { with_qemu: false, fresh: true };

    /// What is planned for one entry, which is so many days old if there is any.
    fn planned(fake: &Fake, days: Option<u64>, options: BuildOptions, is_used: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path().to_owned());
        if let Some(days) = days {
            fake.put(&cache, days);
        }
        let _lease = is_used.then(|| Lease::take(cache.artefact(fake).parent().unwrap()).unwrap());
        match Work::of(&cache, fake, options) {
            Ok(Work::Build) => "build".into(),
            Ok(Work::Renew(_)) => "renew".into(),
            Ok(Work::Nothing) => "nothing".into(),
            Err(reason) => reason.to_string(),
        }
    }

    #[test]
    fn what_is_outdated_is_renewed_where_it_can_be_and_what_shall_be_fresh_in_any_case() {
        let (fake, no_tools) = (Fake::default(), Fake { tools: NO_SUCH_TOOL, ..Fake::default() });
        assert_eq!(planned(&fake, None, PLAIN, false), "build");
        assert_eq!(planned(&fake, Some(29), PLAIN, false), "nothing");
        assert_eq!(planned(&fake, Some(31), PLAIN, false), "renew");
        assert_eq!(planned(&fake, Some(31), PLAIN, true), "nothing");
        assert_eq!(planned(&no_tools, Some(31), PLAIN, false), "nothing");
        assert_eq!(planned(&fake, Some(0), FRESH, false), "renew");
        assert!(
            planned(&fake, Some(0), FRESH, true).starts_with("kernel cannot be built anew while a process uses it")
        );
        assert!(planned(&no_tools, Some(0), FRESH, false).contains("no-such-tool"));
        let qemu = Fake { component: Component::Qemu, ..Fake::default() };
        assert_eq!(planned(&qemu, None, FRESH, false), "nothing");
        assert_eq!(planned(&qemu, Some(31), PLAIN, false), "nothing", "minutes that nobody has asked for");
        assert_eq!(planned(&qemu, Some(0), FRESH, false), "renew");
        let agent = Fake { component: Component::Agent, ..Fake::default() };
        assert_eq!(planned(&agent, Some(400), FRESH, false), "nothing");
    }

    /// How old what is used is in the end, in days, or why nothing is.
    fn made(cache: &Cache, fake: &Fake, options: BuildOptions, may_pull: bool) -> Result<u64, String> {
        let (downloads, logs, stop) = (cache.downloads(), cache.logs(), AtomicBool::new(false));
        let workshop = Workshop { progress: &Silent, downloads: &downloads, logs: &logs, stop: &stop };
        let work = Work::of(cache, fake, options).unwrap();
        let made = Making { cache, options, may_pull, workshop: &workshop }.make(fake, &work);
        assert_eq!(stop.load(Ordering::Relaxed), made.is_err(), "the others go on, or do not");
        made.map(|manifest| manifest.age_days(SystemTime::now())).map_err(|reason| reason.to_string())
    }

    #[test]
    fn a_host_that_cannot_build_goes_on_with_what_is_old() {
        let works = Fake::default();
        let fails = Fake { fails: true, ..Fake::default() };
        let here = |fake: &Fake, days, options| {
            let folder = tempfile::tempdir().unwrap();
            let cache = cache_in(folder.path().to_owned());
            fake.put(&cache, days);
            let made = made(&cache, fake, options, false);
            let is_there = |artefact: &Path| artefact.is_file();
            assert!(is_there(&cache.artefact(fake)), "whatever comes of it, there is one");
            made
        };
        assert_eq!(here(&works, 40, PLAIN), Ok(0));
        assert_eq!(here(&fails, 40, PLAIN), Ok(40));
        assert_eq!(here(&works, 3, FRESH), Ok(0));
        assert!(here(&fails, 3, FRESH).is_err());
        let elsewhere = |fake: &Fake, days| {
            let folder = tempfile::tempdir().unwrap();
            let tier = Arc::new(Elsewhere::with(fake, days));
            made(&cache_behind(folder.path().to_owned(), tier), fake, PLAIN, true)
        };
        assert_eq!(elsewhere(&works, Some(40)), Ok(0));
        assert_eq!(elsewhere(&fails, Some(40)), Ok(40));
        assert!(elsewhere(&fails, None).is_err());
    }
}
