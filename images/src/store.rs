//! The image of this binary in a cache: what is there, loading it, building it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use directories::ProjectDirs;
use sandbox_schemas::image::{BootImage, Component, ComponentState, ComponentStatus, Digest, ImageStatus, Manifest};

use crate::agent::Agent;
use crate::cache::Cache;
use crate::error::{BuildError, LoadError};
use crate::kernel::Kernel;
use crate::progress::{Progress, Silent};
use crate::recipe::{Recipe, Workshop};
use crate::root::Root;
use crate::tool;

/// The images of one cache directory.
pub struct ImageStore {
    cache: Cache,
    kernel: Kernel,
    root: Root,
    agent: Agent,
}

impl ImageStore {
    /// Images under `cache_root`, which need not exist yet.
    pub fn new(cache_root: PathBuf) -> ImageStore {
        ImageStore { cache: Cache::new(cache_root), kernel: Kernel::new(), root: Root, agent: Agent }
    }

    /// The user's cache directory; nothing when the user has no home.
    pub fn default_cache_root() -> Option<PathBuf> {
        ProjectDirs::from("", "", "sandbox-mcp").map(|directories| directories.cache_dir().to_owned())
    }

    /// What is there. Nothing is built.
    pub fn status(&self) -> ImageStatus {
        let status = |component| {
            let recipe = self.recipe(component);
            ComponentStatus { component, path: self.cache.artefact(recipe), state: self.cache.inspect(recipe) }
        };
        ImageStatus { components: Component::ALL.map(status).into() }
    }

    /// The image, verified. A file is read again only when it is not the very one that was verified before. The agent
    /// is part of this binary and is written if it is not there.
    pub fn load(&self) -> Result<BootImage, LoadError> {
        let digest = |component| {
            let recipe = self.recipe(component);
            match self.cache.inspect(recipe) {
                ComponentState::Present { manifest } => Ok(manifest.sha256),
                ComponentState::Missing => Err(LoadError::Missing { component }),
                ComponentState::Corrupt { reason } => {
                    Err(LoadError::Corrupt { component, path: self.cache.artefact(recipe), reason })
                }
            }
        };
        let (kernel, root) = (digest(Component::Kernel)?, digest(Component::Root)?);
        let agent = self.with_workshop(&Silent, |workshop| self.cache.obtain(&self.agent, workshop))?;
        Ok(self.boot_image(kernel, root, agent.sha256))
    }

    /// Builds what is missing or corrupt. Of several processes that build into one cache, one does and the others wait.
    pub fn build(&self, progress: &dyn Progress) -> Result<BootImage, BuildError> {
        let absent = |component: &Component| {
            !matches!(self.cache.inspect(self.recipe(*component)), ComponentState::Present { .. })
        };
        let absent = Component::ALL.into_iter().filter(absent);
        tool::require(absent.flat_map(|component| self.recipe(component).tools()))?;
        self.with_workshop(progress, |workshop| {
            // The kernel keeps all processors busy, the root the network and the disk.
            let (kernel, root, agent) = thread::scope(|scope| {
                let kernel = scope.spawn(|| self.obtain(Component::Kernel, workshop));
                let root = scope.spawn(|| self.obtain(Component::Root, workshop));
                let agent = self.obtain(Component::Agent, workshop);
                (join(kernel), join(root), agent)
            });
            // Of a failed component and one that was given up for it, the failure is what the caller wants to know.
            match (kernel, root) {
                (Ok(kernel), Ok(root)) => Ok(self.boot_image(kernel.sha256, root.sha256, agent?.sha256)),
                (Err(BuildError::Stopped), Err(error)) | (Err(error), _) | (_, Err(error)) => Err(error),
            }
        })
    }

    fn obtain(&self, component: Component, workshop: &Workshop<'_>) -> Result<Manifest, BuildError> {
        let result = self.cache.obtain(self.recipe(component), workshop);
        if result.is_err() {
            workshop.stop.store(true, Ordering::Relaxed);
        }
        result
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
        }
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use sandbox_schemas::image::{Component, ComponentState};

    use super::ImageStore;
    use crate::error::LoadError;
    use crate::progress::Silent;

    #[test]
    fn empty_cache_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path().join("cache"));
        let error = store.load().unwrap_err();
        assert!(matches!(error, LoadError::Missing { component: Component::Kernel }));
        assert_eq!(error.to_string(), "no VM image: run `sandbox-mcp image build`");
        assert!(!store.status().is_complete());
        assert!(!dir.path().join("cache").exists(), "looking creates nothing");
    }

    #[test]
    fn agent_is_there_whenever_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path().to_owned());
        let manifest = store.with_workshop(&Silent, |workshop| store.obtain(Component::Agent, workshop)).unwrap();
        let status = store.status().components.into_iter().find(|status| status.component == Component::Agent).unwrap();
        assert!(status.path.is_file());
        assert_eq!(status.state, ComponentState::Present { manifest });
    }
}
