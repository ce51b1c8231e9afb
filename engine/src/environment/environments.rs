//! The environments of an engine: known, on the disk, or to be installed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sandbox_packages::{Gateway, GatewayConfig, Requirement, Session, SessionReport, package_lock_key, parse};
use sandbox_schemas::environment::{EnvironmentId, PackageLock};
use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_store::{CacheDir, EntryId, Fetched, KeyHasher, Kind, Shelf};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use crate::environment::build::{Builds, Words};
use crate::environment::extension;
use crate::environment::install::{self, install};
use crate::environment::layer::Installed;
use crate::environment::obtained::Obtained;
use crate::environment::{Environment, InstallError, layer, parent, resolution};
use crate::host::Host;
use crate::opened::Unusable;
use crate::run::OutputSink;
use crate::turn::turn;

/// Raised with each change of how a layer is made that nothing else in its key shows.
const RECIPE_VERSION: u32 = 1;

/// Environments that are at hand without a look at the disk, and so cannot be removed from it.
const RECENT_MAX: usize = 16;

/// How long an answer from there is good: what is resolved anew after a day must not be hidden for long.
const RECENT_FOR: Duration = Duration::from_secs(600);

/// Installing takes longer: a tier is given as long.
const TIER_PATIENCE: Duration = Duration::from_secs(15);

/// What an engine knows of environments.
#[derive(Debug)]
pub(crate) struct Environments {
    cache: CacheDir,
    shelf: Shelf,
    root_sha256: Digest,
    packages: GatewayConfig,
    /// Made when it is first needed: reading the host's certificates takes longer than a run.
    gateway: OnceCell<Gateway>,
    builds: Builds,
    recent: Mutex<Vec<Recent>>,
}

/// An answer that was given lately.
#[derive(Debug)]
struct Recent {
    request: Digest,
    environment: Arc<Environment>,
    since: Instant,
}

impl Environments {
    /// Environments in a folder of the cache, with this root file system below them.
    pub(crate) fn new(root_sha256: Digest, packages: GatewayConfig) -> Environments {
        let cache = packages.cache.clone();
        Environments {
            shelf: cache.shelf(Kind::Layer),
            cache,
            root_sha256,
            packages,
            gateway: OnceCell::new(),
            builds: Builds::default(),
            recent: Mutex::default(),
        }
    }

    /// The environment that has these packages. What nobody has installed yet is installed, as a task of `tasks`; who waits for
    /// the same waits for that.
    pub(crate) async fn obtain(
        self: &Arc<Self>,
        host: &Arc<Host>,
        tasks: &TaskTracker,
        language: Language,
        specifiers: &[String],
        sink: &mut dyn OutputSink,
    ) -> Result<Obtained, InstallError> {
        let requirements = self.requirements(language, specifiers)?;
        let request = request_key(language, &requirements);
        if let Some(environment) = self.recall(request) {
            return Ok(Obtained::cached(environment));
        }
        let gateway = self.gateway().await?;
        if let Some(lock) = self.resolved(&gateway, language, &requirements).await
            && let Some(environment) = self.load_or_fetch(&lock).await?
        {
            self.note(request, &environment);
            return Ok(Obtained::cached(environment));
        }
        let (this, host) = (self.clone(), host.clone());
        let work = |words| async move {
            let obtained = this.install(&host, &gateway, language, requirements, words).await?;
            this.note(request, &obtained.environment);
            Ok(obtained)
        };
        self.builds.join(request, sink, work, |task| drop(tasks.spawn(task))).await
    }

    /// The environment that has these packages as well, on a disk that begins with that of `base`.
    pub(crate) async fn extend(
        self: &Arc<Self>,
        host: &Arc<Host>,
        tasks: &TaskTracker,
        base: &Arc<Environment>,
        (language, specifiers): (Language, &[String]),
        sink: &mut dyn OutputSink,
    ) -> Result<Obtained, InstallError> {
        let new = self.requirements(language, specifiers)?;
        let Some(requirements) = extension::requirements(base, language, &new)? else {
            return Ok(Obtained::cached(base.clone()));
        };
        let asked = request_key(language, &requirements);
        let request = KeyHasher::new("extension").field("base", &base.key.0).field("request", &asked.0).finish();
        if let Some(environment) = self.recall(request) {
            return Ok(Obtained::cached(environment));
        }
        let gateway = self.gateway().await?;
        if let Some(lock) = self.resolved(&gateway, language, &requirements).await {
            // It may have been added to that disk for somebody who has opened no session, or for another session.
            for key in [self.layer_key(&lock), self.extension_key(base, &lock)] {
                let environment = self.load(EnvironmentId::new(language, key)).await?;
                if let Some(environment) = environment.filter(|environment| environment.begins_with(base)) {
                    self.note(request, &environment);
                    return Ok(Obtained::cached(environment));
                }
            }
        }
        let (this, host, base) = (self.clone(), host.clone(), base.clone());
        let work = |mut words: Words| async move {
            let folder = this.folder()?;
            let session = Session::new(gateway.clone(), language, requirements.clone(), None);
            let installed = install(&host, &folder, language, &requirements, Some(&base), &session, &mut words).await?;
            let installed = installed.ok_or_else(|| extension::misfit(&base))?;
            let report = session.report();
            let key = match installed.added_to {
                Some(_) => this.extension_key(&base, &installed.lock),
                // All was there, as what others need.
                None => {
                    this.note(request, &base);
                    return Ok(Obtained::cached(base));
                }
            };
            this.remember(&gateway, &requirements, &installed.lock).await?;
            let id = EnvironmentId::new(language, key);
            let mut requested = base.requested.clone();
            requested.extend(names_of(&new));
            requested.sort_unstable();
            let environment = this.publish(id, key, installed, requested).await?;
            this.note(request, &environment);
            Ok(Obtained::installed(environment, &report))
        };
        self.builds.join(request, sink, work, |task| drop(tasks.spawn(task))).await
    }

    /// Whether an environment has these packages already.
    pub(crate) fn has_all(
        &self,
        base: &Environment,
        language: Language,
        specifiers: &[String],
    ) -> Result<bool, InstallError> {
        let new = self.requirements(language, specifiers)?;
        Ok(extension::requirements(base, language, &new)?.is_none())
    }

    /// The environment that is called so.
    pub(crate) async fn find(&self, id: EnvironmentId) -> Result<Arc<Environment>, InstallError> {
        let request = KeyHasher::new("environment").field("id", id.to_string().as_bytes()).finish();
        let environment = match self.recall(request) {
            Some(environment) => environment,
            None => {
                let unknown = || InstallError::Unknown { id: id.to_string() };
                let environment = self.load(id.clone()).await?.ok_or_else(unknown)?;
                self.note(request, &environment);
                environment
            }
        };
        // It may have been installed when more was allowed.
        for package in &environment.lock.packages {
            let checked = self.packages.allowlist.check(environment.language, package.answers_for_it());
            let refused =
                |refused| InstallError::Refused { reason: format!("{id} was made when more was allowed: {refused}") };
            checked.map_err(refused)?;
        }
        Ok(environment)
    }

    /// What is asked for, as far as it is allowed.
    fn requirements(&self, language: Language, specifiers: &[String]) -> Result<Vec<Requirement>, InstallError> {
        let requirements = parse(language, specifiers)?;
        for requirement in &requirements {
            let checked = self.packages.allowlist.check(language, requirement.name());
            checked.map_err(|refused| InstallError::Refused { reason: refused.to_string() })?;
        }
        Ok(requirements)
    }

    /// Nobody will come back for what nobody waits for.
    pub(crate) fn end(&self) {
        self.builds.end();
    }

    async fn gateway(&self) -> Result<Gateway, InstallError> {
        let make = || async {
            let config = self.packages.clone();
            let made = tokio::task::spawn_blocking(move || Gateway::new(config)).await;
            made.map_err(InstallError::internal)?.map_err(InstallError::internal)
        };
        self.gateway.get_or_try_init(make).await.cloned()
    }

    async fn resolved(
        &self,
        gateway: &Gateway,
        language: Language,
        requirements: &[Requirement],
    ) -> Option<PackageLock> {
        let (gateway, cache, requirements) = (gateway.clone(), self.cache.clone(), requirements.to_owned());
        let recalled = tokio::task::spawn_blocking(move || {
            let known = gateway.resolved(language, &requirements);
            known.or_else(|| {
                let fetched = resolution::fetch(&cache, &gateway, language, &requirements)?;
                gateway.remember(&requirements, &fetched);
                Some(fetched)
            })
        });
        let lock = recalled.await.ok()??;
        // Who had no key to vouch for it can have written anything.
        self.is_allowed(&lock).then_some(lock)
    }

    fn is_allowed(&self, lock: &PackageLock) -> bool {
        let is_allowed = |name: &str| self.packages.allowlist.allows(lock.language, name);
        lock.packages.iter().all(|package| is_allowed(package.answers_for_it()))
    }

    async fn install(
        self: &Arc<Self>,
        host: &Host,
        gateway: &Gateway,
        language: Language,
        requirements: Vec<Requirement>,
        mut words: Words,
    ) -> Result<Obtained, InstallError> {
        let (installed, report) = self.install_packages(host, gateway, language, &requirements, &mut words).await?;
        self.remember(gateway, &requirements, &installed.lock).await?;
        let key = self.layer_key(&installed.lock);
        let id = EnvironmentId::new(language, key);
        let environment = match self.load(id.clone()).await? {
            // Another request has become the same.
            Some(environment) => environment,
            None => self.publish(id, key, installed, names_of(&requirements)).await?,
        };
        Ok(Obtained::installed(environment, &report))
    }

    /// Keeps what some requirements were found to mean.
    async fn remember(
        &self,
        gateway: &Gateway,
        requirements: &[Requirement],
        lock: &PackageLock,
    ) -> Result<(), InstallError> {
        let (sharing, cache, asked, resolved) =
            (gateway.clone(), self.cache.clone(), requirements.to_owned(), lock.clone());
        let remembered = tokio::task::spawn_blocking(move || {
            sharing.remember(&asked, &resolved);
            resolution::offer(&cache, &sharing, &asked, &resolved);
        });
        remembered.await.map_err(InstallError::internal)
    }

    /// Behind a layer that has some of them if there is one, so that only the rest is installed, and imported.
    async fn install_packages(
        self: &Arc<Self>,
        host: &Host,
        gateway: &Gateway,
        language: Language,
        requirements: &[Requirement],
        words: &mut Words,
    ) -> Result<(Installed, SessionReport), InstallError> {
        let folder = self.folder()?;
        if let Some(parent) = self.parent(language, requirements).await {
            let session = Session::new(gateway.clone(), language, requirements.to_owned(), None);
            let installed = install(host, &folder, language, requirements, Some(&parent), &session, words).await?;
            if let Some(installed) = installed {
                return Ok((installed, session.report()));
            }
            tracing::info!(parent = %parent.id, "packages cannot be added to another environment; all are installed anew");
        }
        let session = Session::new(gateway.clone(), language, requirements.to_owned(), None);
        let installed = install(host, &folder, language, requirements, None, &session, words).await?;
        let installed = installed.ok_or_else(|| InstallError::internal("the installer has installed nothing"))?;
        Ok((installed, session.report()))
    }

    /// What some of `requirements` are in already, as far as more can be added to it.
    async fn parent(self: &Arc<Self>, language: Language, requirements: &[Requirement]) -> Option<Arc<Environment>> {
        if !install::can_add(language) {
            return None;
        }
        let (this, requirements) = (self.clone(), requirements.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let fits = |lock: &PackageLock, key| this.layer_key(lock) == key && this.is_allowed(lock);
            parent::find(&this.shelf, language, &requirements, fits).map(Arc::new)
        });
        found.await.ok()?
    }

    async fn publish(
        &self,
        id: EnvironmentId,
        key: Digest,
        installed: Installed,
        mut requested: Vec<String>,
    ) -> Result<Arc<Environment>, InstallError> {
        let (shelf, cache) = (self.shelf.clone(), self.cache.clone());
        // Behind a session's disk it is of use on this host alone.
        let is_for_all = self.layer_key(&installed.lock) == key;
        requested.dedup();
        // Whoever publishes another environment is done in a moment.
        let lock = turn(&shelf, id.language().name()).await.map_err(InstallError::internal)?;
        if let Some(environment) = self.load(id.clone()).await? {
            // Another server was first; it is in use already.
            return Ok(environment);
        }
        let published = tokio::task::spawn_blocking(move || {
            let name = id.language().name();
            let place = shelf.begin(lock, key).map_err(InstallError::internal)?;
            layer::write(place.made(), key, requested, installed).map_err(InstallError::internal)?;
            let _lease = place.publish().map_err(InstallError::internal)?;
            let environment = layer::load_with_parent(shelf.folder(), &id).map_err(InstallError::internal)?;
            cache.make_room();
            if is_for_all {
                cache.offer(&EntryId { kind: Kind::Layer, name: name.into(), key });
            }
            Ok(Arc::new(environment))
        });
        published.await.map_err(InstallError::internal)?
    }

    /// An environment that is on the disk, or that another host has installed.
    async fn load_or_fetch(self: &Arc<Self>, lock: &PackageLock) -> Result<Option<Arc<Environment>>, InstallError> {
        let (id, key) = (self.id(lock), self.layer_key(lock));
        let entry = EntryId { kind: Kind::Layer, name: id.language().name().into(), key };
        if let Some(environment) = self.load(id.clone()).await? {
            self.cache.offer(&entry);
            return Ok(Some(environment));
        }
        if !self.cache.has_tiers() {
            return Ok(None);
        }
        // Whoever has it may be fetching this very layer.
        let right = match turn(&self.shelf, &entry.name).await {
            Ok(right) => right,
            Err(error) => {
                tracing::warn!(%error, "a package layer cannot be fetched");
                return Ok(None);
            }
        };
        if let Some(environment) = self.load(id.clone()).await? {
            return Ok(Some(environment));
        }
        let this = self.clone();
        let fetched = tokio::task::spawn_blocking(move || {
            let check = |folder: &Path| match layer::load(folder, &id) {
                // Who had no key to vouch for it can have written anything into its manifest.
                Ok(environment) if this.layer_key(&environment.lock) == key => Ok(environment),
                Ok(_) => Err("its packages are not those that its key is of".into()),
                Err(reason) => Err(reason.to_string()),
            };
            match this.cache.fetch(&entry, right, TIER_PATIENCE, check) {
                Ok(Fetched::Entry(environment, _lease)) => {
                    this.cache.make_room();
                    Some(Arc::new(environment))
                }
                Ok(Fetched::Nothing(_)) => None,
                Err(error) => {
                    tracing::warn!(%error, "a package layer cannot be fetched");
                    None
                }
            }
        });
        fetched.await.map_err(InstallError::internal)
    }

    /// An environment that is on the disk, and sound. One that this host cannot read now is not installed anew.
    async fn load(&self, id: EnvironmentId) -> Result<Option<Arc<Environment>>, InstallError> {
        let folder = self.shelf.folder().to_owned();
        let loaded = tokio::task::spawn_blocking(move || layer::load_with_parent(&folder, &id)).await;
        Ok(match loaded.map_err(InstallError::internal)? {
            Ok(environment) => Some(Arc::new(environment)),
            Err(Unusable::Missing) => None,
            Err(Unusable::Damaged(reason)) => {
                tracing::warn!(reason, "a package layer is damaged and installed anew");
                None
            }
            Err(Unusable::Unreadable(reason)) => {
                let reason = format!("a package layer is there, and cannot be read: {reason}");
                return Err(InstallError::internal(reason));
            }
        })
    }

    fn id(&self, lock: &PackageLock) -> EnvironmentId {
        EnvironmentId::new(lock.language, self.layer_key(lock))
    }

    /// All that decides what is in a layer.
    fn layer_key(&self, lock: &PackageLock) -> Digest {
        let hasher =
            KeyHasher::new("layer").field("recipe", &RECIPE_VERSION.to_le_bytes()).field("root", &self.root_sha256.0);
        let scripts = install::scripts(lock.language);
        let hasher = scripts.fold(hasher, |hasher, script| hasher.field("script", script.as_bytes()));
        // Two registries can have something else by one name.
        let hasher = hasher.field("registry", self.packages.registry(lock.language).as_bytes());
        hasher.field("lock", &package_lock_key(lock).0).finish()
    }

    /// The same of one that begins with the disk of `base`, whatever disk another of these packages begins with.
    fn extension_key(&self, base: &Environment, lock: &PackageLock) -> Digest {
        let hasher = KeyHasher::new("extension").field("base", &base.image_sha256.0);
        hasher.field("layer", &self.layer_key(lock).0).finish()
    }

    fn recall(&self, request: Digest) -> Option<Arc<Environment>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|known| known.since.elapsed() < RECENT_FOR);
        recent.iter().find(|known| known.request == request).map(|known| known.environment.clone())
    }

    fn note(&self, request: Digest, environment: &Arc<Environment>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|known| known.request != request);
        if recent.len() == RECENT_MAX {
            recent.remove(0);
        }
        recent.push(Recent { request, environment: environment.clone(), since: Instant::now() });
    }

    fn folder(&self) -> Result<PathBuf, InstallError> {
        let folder = self.shelf.folder();
        sandbox_store::create_private_directory(folder).map_err(InstallError::internal)?;
        Ok(folder.to_owned())
    }
}

fn names_of(requirements: &[Requirement]) -> Vec<String> {
    requirements.iter().map(|requirement| requirement.name().to_owned()).collect()
}

/// What tells the requests of one engine apart.
fn request_key(language: Language, requirements: &[Requirement]) -> Digest {
    let hasher = KeyHasher::new("request").field("language", language.name().as_bytes());
    let each = requirements.iter();
    each.fold(hasher, |hasher, requirement| hasher.field("requirement", requirement.text().as_bytes())).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::status::TierStatus;
    use sandbox_store::{Age, Tier};
    use std::time::SystemTime;

    /// Must not be asked.
    #[derive(Debug)]
    struct Unasked;

    impl Tier for Unasked {
        fn fetch(&self, _: &EntryId, _: Option<SystemTime>, _: &Path, _: Duration) -> bool {
            panic!("what is here by now is fetched")
        }
        fn reject(&self, _: &EntryId, _: &str) {}
        fn offer(&self, _: &EntryId, _: &Path, _: Option<Age>) {}
        fn status(&self) -> TierStatus {
            TierStatus::new("unasked")
        }
        fn flush(&self, _: Duration) -> bool {
            true
        }
        fn close(&self, _: Duration) {}
    }

    #[tokio::test]
    async fn a_layer_that_was_installed_while_it_was_waited_for_is_not_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path().join("cache"), u64::MAX).with_tiers(vec![Arc::new(Unasked)]);
        let environments = Arc::new(Environments::new(Digest([1; 32]), GatewayConfig::new(cache.clone())));
        let lock = PackageLock::new(Language::Python, Vec::new());
        let (key, shelf) = (environments.layer_key(&lock), cache.shelf(Kind::Layer));
        let right = shelf.try_lock(Language::Python.name()).unwrap().unwrap();
        let waiting = {
            let (environments, lock) = (environments.clone(), lock.clone());
            tokio::spawn(async move { environments.load_or_fetch(&lock).await })
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        let place = shelf.begin(right, key).unwrap();
        let image = layer::blank(folder.path(), None).unwrap();
        let installed = Installed { image, lock, parts: 1, added_to: None, skipped: Vec::new() };
        layer::write(place.made(), key, Vec::new(), installed).unwrap();
        drop(place.publish().unwrap());
        assert_eq!(waiting.await.unwrap().unwrap().unwrap().key, key);
    }
}
