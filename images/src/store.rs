//! The image of this binary in a cache: what is there, loading it, building it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, SystemTime};

use sandbox_schemas::image::{BootImage, Component, ComponentState, ComponentStatus, Digest, ImageStatus, Manifest};
use sandbox_store::{CacheDir, NotRemoved};

use crate::agent::Agent;
use crate::cache::{Cache, Standing};
use crate::debian::{Mode, place_of_trees};
use crate::error::{BuildError, LoadError};
use crate::host_tool;
use crate::kernel::Kernel;
use crate::plan::{BuildOptions, Making, Work, tell_it_is_old};
use crate::progress::{Progress, Silent, Unit};
use crate::qemu::Qemu;
use crate::recipe::{Recipe, Workshop};
use crate::room::{self, Place};
use crate::root::Root;
use crate::shared::{TIER_PATIENCE, Takes};

/// Who fetches by hand can also end that: a whole image over a slow line takes long.
const BY_HAND_PATIENCE: Duration = Duration::from_secs(3600);

/// How long a server that has an image waits for a younger one: runs wait for it meanwhile.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);

/// The images of one cache directory.
pub struct ImageStore {
    cache: Cache,
    kernel: Kernel,
    root: Root,
    agent: Agent,
    qemu: Qemu,
}

impl ImageStore {
    /// Images in a cache.
    pub fn new(cache: CacheDir) -> ImageStore {
        ImageStore { cache: Cache::new(cache), kernel: Kernel::new(), root: Root, agent: Agent, qemu: Qemu }
    }

    /// What is there. Nothing is built.
    pub fn status(&self) -> ImageStatus {
        let status = |component| {
            let recipe = self.recipe(component);
            ComponentStatus { component, path: self.cache.artefact(recipe), state: self.cache.inspect(recipe) }
        };
        ImageStatus { components: Component::ALL.map(status).into() }
    }

    /// The image, verified; it stays where it is until this process ends. A file is read again only when it is not the
    /// very one that was verified before. The agent is part of this binary and is written if it is not there; the rest comes
    /// from where other hosts have put it, if there is such a place, and is not here or outdated here. What is outdated everywhere is
    /// used, and told of.
    pub fn load(&self) -> Result<BootImage, LoadError> {
        let digest = |component| {
            let recipe = self.recipe(component);
            // What went wrong with fetching it is told by who fetched, and what is wrong here below.
            let is_here = matches!(self.cache.inspect(recipe), ComponentState::Present { .. });
            let patience = if is_here { RENEWAL_PATIENCE } else { TIER_PATIENCE };
            let pulled = self.cache.pull(recipe, patience, Takes::Any).ok().flatten();
            let manifest = match pulled {
                Some(manifest) => {
                    self.cache.offer(recipe, &manifest, false);
                    manifest
                }
                None => self.load_component(component)?.ok_or(LoadError::Missing { component })?,
            };
            if manifest.is_outdated(SystemTime::now()) {
                tell_it_is_old(&manifest, None);
            }
            Ok::<_, LoadError>(manifest.sha256)
        };
        let (kernel, root) = (digest(Component::Kernel)?, digest(Component::Root)?);
        self.with_workshop(&Silent, |workshop| self.cache.obtain(&self.agent, workshop))?;
        Ok(self.boot_image(kernel, root, digest(Component::Agent)?))
    }

    /// The QEMU that was built for the VMs, if one was; verified, and it stays likewise.
    pub fn qemu(&self) -> Result<Option<PathBuf>, LoadError> {
        Ok(self.load_component(Component::Qemu)?.map(|_| self.cache.artefact(&self.qemu)))
    }

    /// Builds what is missing, corrupt or outdated, and other hosts have not, or all that has Debian's packages in it; QEMU only where
    /// it is asked for, or was. What is outdated and cannot be built now is used as it is, and told of. Of several processes
    /// that build into one cache, one does and the others wait.
    pub fn build(&self, options: BuildOptions, progress: &dyn Progress) -> Result<BootImage, BuildError> {
        let may_pull = self.cache.has_tiers() && !options.fresh;
        if may_pull {
            self.pull_if(Takes::Young, TIER_PATIENCE, progress)?;
        }
        let mut works = self.works(options)?;
        if let (Err(missing), true) = (self.require_for(&works), may_pull) {
            // Who cannot build takes what is old.
            tracing::warn!(reason = %missing, "what other hosts have built is used, however old it is");
            self.pull_if(Takes::Any, TIER_PATIENCE, progress)?;
            works = self.works(options)?;
        }
        self.require_for(&works)?;
        let [kernel, agent, root, qemu] = &works;
        self.with_workshop(progress, |workshop| {
            let making = Making { cache: &self.cache, options, may_pull, workshop };
            let make = |component, work| making.make(self.recipe(component), work);
            // The kernel keeps all processors busy, the root the network and the disk; QEMU does both, in this order.
            let (kernel, root, qemu, agent) = thread::scope(|scope| {
                let beside = |component, work| Beside::begin(scope, move || make(component, work));
                let (kernel, root) = (beside(Component::Kernel, kernel), beside(Component::Root, root));
                let qemu = (*qemu != Work::Nothing).then(|| beside(Component::Qemu, qemu));
                let agent = make(Component::Agent, agent);
                (kernel.end(), root.end(), qemu.map(Beside::end), agent)
            });
            let [kernel, root, agent] = match qemu {
                None => all_or_failure([kernel, root, agent])?,
                Some(qemu) => {
                    let [kernel, root, agent, _] = all_or_failure([kernel, root, agent, qemu])?;
                    [kernel, root, agent]
                }
            };
            for manifest in [&kernel, &root, &agent] {
                self.cache.offer(self.recipe(manifest.component), manifest, options.fresh);
            }
            Ok(self.boot_image(kernel.sha256, root.sha256, agent.sha256))
        })
    }

    /// The QEMU for the VMs, which is built if there is none.
    pub fn build_qemu(&self, progress: &dyn Progress) -> Result<PathBuf, BuildError> {
        if self.cache.standing(&self.qemu, false)? == Standing::Missing {
            self.require(&[Component::Qemu])?;
        }
        self.with_workshop(progress, |workshop| self.cache.obtain(&self.qemu, workshop))?;
        Ok(self.cache.artefact(&self.qemu))
    }

    /// What there is to do for each component, in the order of [`Component::ALL`]. What is there and stays is in use from here on:
    /// whoever makes room for a component must not remove another one.
    fn works(&self, options: BuildOptions) -> Result<[Work; 4], BuildError> {
        let of = |component| Work::of(&self.cache, self.recipe(component), options);
        let [kernel, agent, root, qemu] = Component::ALL.map(of);
        Ok([kernel?, agent?, root?, qemu?])
    }

    /// That the host has what the building of what is not there takes.
    fn require_for(&self, works: &[Work; 4]) -> Result<(), BuildError> {
        let to_build = Component::ALL.into_iter().zip(works).filter(|(_, work)| **work == Work::Build);
        self.require(&to_build.map(|(component, _)| component).collect::<Vec<_>>())
    }

    /// Checks what can be known before, so that a build does not fail after minutes.
    fn require(&self, absent: &[Component]) -> Result<(), BuildError> {
        let recipes = || absent.iter().map(|component| self.recipe(*component));
        host_tool::require(recipes().flat_map(Recipe::tools))?;
        let rooms = || recipes().map(Recipe::room);
        let tree_bytes = rooms().map(|room| room.tree_bytes).sum();
        if tree_bytes > 0 {
            Mode::find()?;
        }
        let cache = self.cache.root();
        let cache_bytes = rooms().map(|room| room.cache_bytes).sum();
        Ok(room::require([(place_of_trees(cache), tree_bytes), (Place::cache(cache), cache_bytes)])?)
    }

    /// Removes a component, so that it is built again of what Debian has by then, or not used any more. Answers whether it
    /// was there.
    pub fn remove(&self, component: Component) -> Result<bool, NotRemoved> {
        self.cache.remove(self.recipe(component))
    }

    /// What is known about a component, if it is there.
    fn load_component(&self, component: Component) -> Result<Option<Manifest>, LoadError> {
        let recipe = self.recipe(component);
        match self.cache.load(recipe) {
            ComponentState::Present { manifest } => Ok(Some(manifest)),
            ComponentState::Missing => Ok(None),
            ComponentState::Corrupt { reason } => {
                Err(LoadError::Corrupt { component, path: self.cache.artefact(recipe), reason })
            }
            ComponentState::Unreadable { reason } => {
                Err(LoadError::Unreadable { component, path: self.cache.artefact(recipe), reason })
            }
        }
    }

    /// Fetches what is missing, corrupt or outdated from where other hosts have put it. What they have not is left as it is: the answer
    /// is whether all is there. What is outdated there as well is taken where there is nothing, and told of.
    pub fn pull(&self, progress: &dyn Progress) -> Result<bool, BuildError> {
        self.pull_if(Takes::Any, BY_HAND_PATIENCE, progress)
    }

    fn pull_if(&self, takes: Takes, patience: Duration, progress: &dyn Progress) -> Result<bool, BuildError> {
        let mut is_complete = true;
        for component in [Component::Kernel, Component::Root] {
            let recipe = self.recipe(component);
            if matches!(self.cache.standing(recipe, false)?, Standing::Good(_)) {
                continue;
            }
            let stage = progress.stage(&format!("{component}: fetching"), None, Unit::None);
            let pulled = self.cache.pull(recipe, patience, takes)?;
            is_complete &= pulled.is_some();
            if let Some(manifest) = pulled {
                stage.finish();
                if manifest.is_outdated(SystemTime::now()) {
                    tell_it_is_old(&manifest, None);
                }
            }
        }
        self.with_workshop(progress, |workshop| self.cache.obtain(&self.agent, workshop))?;
        Ok(is_complete)
    }

    fn with_workshop<T>(&self, progress: &dyn Progress, work: impl FnOnce(&Workshop<'_>) -> T) -> T {
        let (downloads, logs, stop) = (self.cache.downloads(), self.cache.logs(), AtomicBool::new(false));
        work(&Workshop { progress, downloads: &downloads, logs: &logs, stop: &stop })
    }

    fn boot_image(&self, kernel_sha256: Digest, root_sha256: Digest, initrd_sha256: Digest) -> BootImage {
        BootImage {
            kernel: self.cache.artefact(&self.kernel),
            kernel_sha256,
            root: self.cache.artefact(&self.root),
            root_sha256,
            initrd: self.cache.artefact(&self.agent),
            initrd_sha256,
        }
    }

    fn recipe(&self, component: Component) -> &dyn Recipe {
        match component {
            Component::Kernel => &self.kernel,
            Component::Root => &self.root,
            Component::Agent => &self.agent,
            Component::Qemu => &self.qemu,
        }
    }
}

/// Of a component that failed and those that were given up for it, the failure is what the caller wants to know.
fn all_or_failure<const N: usize>(results: [Result<Manifest, BuildError>; N]) -> Result<[Manifest; N], BuildError> {
    let mut manifests = Vec::with_capacity(N);
    let mut given_up = None;
    for result in results {
        match result {
            Ok(manifest) => manifests.push(manifest),
            Err(BuildError::Stopped) => given_up = Some(BuildError::Stopped),
            Err(cause) => return Err(cause),
        }
    }
    // As many as there were, unless one was given up.
    manifests.try_into().map_err(|_| given_up.unwrap_or(BuildError::Stopped))
}

/// Work that goes on beside other work, or is done already.
enum Beside<'scope, T> {
    Running(thread::ScopedJoinHandle<'scope, T>),
    Done(T),
}

impl<'scope, T: Send + 'scope> Beside<'scope, T> {
    /// A host that allows no more threads has one thing done after the other.
    fn begin<'env>(
        scope: &'scope thread::Scope<'scope, 'env>,
        work: impl Fn() -> T + Copy + Send + 'scope,
    ) -> Beside<'scope, T> {
        thread::Builder::new().spawn_scoped(scope, work).map_or_else(|_| Beside::Done(work()), Beside::Running)
    }

    fn end(self) -> T {
        match self {
            Beside::Running(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Beside::Done(result) => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use sandbox_schemas::image::{Component, ComponentState};
    use sandbox_store::CacheDir;

    use super::{ImageStore, all_or_failure};
    use crate::error::{BuildError, LoadError};
    use crate::progress::Silent;

    #[test]
    fn empty_cache_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(CacheDir::new(dir.path().join("cache"), 0));
        let error = store.load().unwrap_err();
        assert!(matches!(error, LoadError::Missing { component: Component::Kernel }));
        let expected = format!("no VM image: run `{} image build`", crate::error::program());
        assert_eq!(error.to_string(), expected);
        assert!(!store.status().is_complete());
        assert!(!dir.path().join("cache").exists(), "looking creates nothing");
    }

    #[test]
    fn failure_is_reported_and_not_what_was_given_up_for_it() {
        let failed = |name: &str| BuildError::LostOptions(vec![name.to_owned()]);
        let report = |results| all_or_failure(results).unwrap_err().to_string();
        let stopped = || Err(BuildError::Stopped);
        for place in 0..3 {
            let mut results = [stopped(), stopped(), stopped()];
            results[place] = Err(failed("the cause"));
            assert!(report(results).ends_with("the cause"), "{place}");
        }
        assert!(report([stopped(), Err(failed("first")), Err(failed("second"))]).ends_with("first"));
        assert_eq!(report([stopped(), stopped(), stopped()]), BuildError::Stopped.to_string());
    }

    #[test]
    fn qemu_of_our_own_is_no_part_that_vms_need() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(CacheDir::new(dir.path().join("cache"), 0));
        assert_eq!(store.qemu().unwrap(), None);
        assert!(!store.remove(Component::Qemu).unwrap());
        assert!(!dir.path().join("cache").exists(), "looking creates nothing");
        // One that is damaged is not passed over in silence, since the user has asked for it.
        let status = store.status().components.into_iter().find(|status| status.component == Component::Qemu).unwrap();
        std::fs::create_dir_all(status.path.parent().unwrap()).unwrap();
        let error = store.qemu().unwrap_err().to_string();
        assert!(error.contains("/qemu-system-x86_64: ") && error.ends_with(" image build`"), "{error}");
    }

    #[test]
    fn agent_is_there_whenever_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(CacheDir::new(dir.path().to_owned(), 0));
        let manifest = store.with_workshop(&Silent, |workshop| store.cache.obtain(&store.agent, workshop)).unwrap();
        let status = store.status().components.into_iter().find(|status| status.component == Component::Agent).unwrap();
        assert!(status.path.is_file());
        assert_eq!(status.state, ComponentState::Present { manifest });
    }
}
