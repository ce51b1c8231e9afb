//! The one way from an installer to the registries.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use sandbox_download::{Checksum, FetchError, Patience, ShownUrl, TlsError, Wanted};
use sandbox_schemas::environment::PackageLock;
use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_store::{CacheDir, GIGABYTE, KeyHasher};
use url::Url;

use crate::allowlist::Allowlist;
use crate::blocking::{blocking, unusable};
use crate::credentials::CredentialFiles;
use crate::files::Files;
use crate::found::Found;
use crate::npm::{self, Packument};
use crate::pypi::{self, PythonTarget, Wheel};
use crate::requirement::Requirement;
use crate::resolution::Resolutions;
use crate::source::{Pattern, Source, SourceError, base_url};
use crate::upstream::Upstream;

/// How long a page of an index is good for. Within an install each is asked for once or twice; what is published meanwhile can
/// wait.
const PAGES_KEPT: Duration = Duration::from_secs(5 * 60);

/// What pages of each registry may take in memory, in bytes. A hundred large packages have some 50 MB.
const PAGES_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What metadata of wheels may take in memory, in bytes.
const METADATA_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// How much downloads may take on the disk where nobody says otherwise: what some ten sets with numpy and its like need.
const DOWNLOADS_DEFAULT_BYTES: u64 = 2 * GIGABYTE;

/// What a gateway is made of.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where downloads and resolutions are kept.
    pub cache: CacheDir,
    /// How much downloads may take there, in bytes.
    pub downloads_max_bytes: u64,
    /// Where Python's packages come from: a simple index.
    pub pypi_index_url: String,
    /// Where npm's packages come from.
    pub npm_registry_url: String,
    /// Which packages may come.
    pub allowlist: Allowlist,
    /// What opens registries that are not for everybody.
    pub credentials: CredentialFiles,
    /// Registries that have names of their own.
    pub(crate) sources: Vec<Source>,
    /// Which wheels can be installed.
    pub python: PythonTarget,
    /// How long registries are waited for.
    pub patience: Patience,
}

impl GatewayConfig {
    /// The public registries, and the names that come with this program.
    pub fn new(cache: CacheDir) -> GatewayConfig {
        GatewayConfig {
            cache,
            downloads_max_bytes: DOWNLOADS_DEFAULT_BYTES,
            pypi_index_url: "https://pypi.org/simple/".into(),
            npm_registry_url: "https://registry.npmjs.org/".into(),
            allowlist: Allowlist::builtin(),
            credentials: CredentialFiles::default(),
            sources: Vec::new(),
            python: PythonTarget::default(),
            patience: Patience::default(),
        }
    }

    /// Has packages of these names come from a registry of their own and from nowhere else, and allows them. A name may be the
    /// beginning of several, with `*` at its end, or a scope of npm.
    pub fn with_source<'n>(
        mut self,
        language: Language,
        names: impl IntoIterator<Item = &'n str>,
        url: &str,
    ) -> Result<GatewayConfig, SourceError> {
        let pattern = |name: &'n str| {
            let invalid = |reason| SourceError::Name { name: name.to_owned(), language, reason };
            Pattern::parse(language, name).map_err(invalid)
        };
        let patterns = names.into_iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
        self.allowlist = self.allowlist.with_patterns(language, &patterns);
        self.sources.push(Source { language, patterns, url: base_url(url)? });
        Ok(self)
    }

    /// Whether a gateway can be made of it, as far as that is seen without one.
    pub fn check(&self) -> Result<(), GatewayError> {
        self.registries().map(drop)
    }

    /// Those that have all names but the sources'.
    fn registries(&self) -> Result<[Url; 2], GatewayError> {
        let registry = |setting, text| base_url(text).map_err(|source| GatewayError::Registry { setting, source });
        Ok([registry("pypi_index_url", &self.pypi_index_url)?, registry("npm_registry_url", &self.npm_registry_url)?])
    }

    /// Where a language's packages come from, as a text that differs where that does; what opens it is not in it.
    pub fn registry(&self, language: Language) -> String {
        let default = match language {
            Language::Javascript => &self.npm_registry_url,
            Language::Python | Language::Shell => &self.pypi_index_url,
        };
        let own = self.sources.iter().filter(|source| source.language == language).map(|source| {
            let names: Vec<_> = source.patterns.iter().map(Pattern::text).collect();
            format!(" {}={}", names.join(","), ShownUrl::from(&source.url))
        });
        // What is no URL is told when the gateway is made.
        let default = base_url(default).map_or_else(|_| default.clone(), |url| ShownUrl::from(&url).to_string());
        default + &own.collect::<String>()
    }
}

/// The registries, an allowlist before them and a cache behind. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    pypi_index: Url,
    npm_registry: Url,
    sources: Vec<Source>,
    /// What of the above decides what requirements become.
    registries: [String; 2],
    allowlist: Allowlist,
    python: PythonTarget,
    upstream: Arc<Upstream>,
    files: Arc<Files>,
    resolutions: Resolutions,
    projects: Cache<String, Arc<pypi::Page>>,
    packuments: Cache<String, Arc<Packument>>,
    metadata: Cache<Checksum, Bytes>,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A registry's URL is none.
    #[error("{setting}: {source}")]
    Registry {
        /// Whose it is.
        setting: &'static str,
        /// What is wrong with it.
        source: SourceError,
    },
    /// There is no TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] FetchError),
}

impl Gateway {
    /// A gateway. Asks no registry.
    pub fn new(config: GatewayConfig) -> Result<Gateway, GatewayError> {
        let folder = config.cache.packages();
        let weigh = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let registries = [Language::Python, Language::Javascript].map(|language| config.registry(language));
        let [mut pypi_index, mut npm_registry] = config.registries()?;
        let mut sources = config.sources;
        let of_sources = sources.iter_mut().map(|source| &mut source.url);
        let credentials = config.credentials.open([&mut pypi_index, &mut npm_registry].into_iter().chain(of_sources));
        Ok(Gateway(Arc::new(Inner {
            pypi_index,
            npm_registry,
            sources,
            registries,
            allowlist: config.allowlist,
            python: config.python,
            upstream: Arc::new(Upstream::new(config.patience, credentials)?),
            files: Arc::new(Files::open(folder.join("files"), config.downloads_max_bytes)?),
            resolutions: Resolutions::open(folder.join("resolutions")).map_err(|error| unusable(&error))?,
            projects: Cache::builder()
                .time_to_live(PAGES_KEPT)
                .max_capacity(PAGES_MAX_BYTES)
                .weigher(move |_, page: &Arc<pypi::Page>| weigh(page.weight()))
                .build(),
            packuments: Cache::builder()
                .time_to_live(PAGES_KEPT)
                .max_capacity(PAGES_MAX_BYTES)
                .weigher(move |_, packument: &Arc<Packument>| weigh(packument.weight()))
                .build(),
            metadata: Cache::builder()
                .max_capacity(METADATA_MAX_BYTES)
                .weigher(move |_, text: &Bytes| weigh(text.len()))
                .build(),
        })))
    }

    /// Which packages may come.
    pub fn allowlist(&self) -> &Allowlist {
        &self.0.allowlist
    }

    /// What these requirements became when they were last resolved, within a day, by the same registry and allowlist.
    /// Reads the disk.
    pub fn resolved(&self, language: Language, requirements: &[Requirement]) -> Option<PackageLock> {
        self.0.resolutions.get(self.resolution_key(language, requirements), language)
    }

    /// Remembers what they became. That it cannot is no reason to fail: they will be resolved again. Writes to the disk.
    pub fn remember(&self, requirements: &[Requirement], lock: &PackageLock) {
        let key = self.resolution_key(lock.language, requirements);
        if let Err(error) = self.0.resolutions.put(key, lock) {
            tracing::warn!("a resolution is not remembered: {error}");
        }
    }

    /// All that decides what these requirements become, but for what the registry has.
    pub fn resolution_key(&self, language: Language, requirements: &[Requirement]) -> Digest {
        let PythonTarget { python_minor, glibc_minor } = self.0.python;
        let hasher = KeyHasher::new("resolution")
            .field("language", language.name().as_bytes())
            .field("pypi", self.0.registries[0].as_bytes())
            .field("npm", self.0.registries[1].as_bytes())
            .field("allowlist", &self.0.allowlist.digest().0)
            .field("python", &python_minor.to_le_bytes())
            .field("glibc", &glibc_minor.to_le_bytes());
        let add =
            |hasher: KeyHasher, requirement: &Requirement| hasher.field("requirement", requirement.text().as_bytes());
        requirements.iter().fold(hasher, add).finish()
    }

    /// The one registry that is asked for a name.
    fn registry(&self, language: Language, name: &str) -> &Url {
        let default = if language == Language::Javascript { &self.0.npm_registry } else { &self.0.pypi_index };
        self.0.sources.iter().find(|source| source.has(language, name)).map_or(default, |source| &source.url)
    }

    /// The page of a project, whose name is normalised and allowed.
    pub(crate) async fn project(&self, name: &str) -> Result<Arc<pypi::Page>, Arc<FetchError>> {
        let fetch = async {
            let url = join(self.registry(Language::Python, name), &format!("{name}/"))?;
            let raw = self.0.upstream.page(&url, pypi::ACCEPT).await?;
            let (name, target) = (name.to_owned(), self.0.python);
            blocking(move || pypi::Page::parse(&name, &raw, target)).await?.map(Arc::new)
        };
        self.0.projects.try_get_with_by_ref(name, fetch).await
    }

    /// A package of npm, whose name is allowed.
    pub(crate) async fn packument(&self, name: &str) -> Result<Arc<Packument>, Arc<FetchError>> {
        let fetch = async {
            let url = join(self.registry(Language::Javascript, name), &name.replace('/', "%2f"))?;
            let raw = self.0.upstream.page(&url, npm::ACCEPT).await?;
            let name = name.to_owned();
            blocking(move || Packument::parse(&name, &raw)).await?.map(Arc::new)
        };
        self.0.packuments.try_get_with_by_ref(name, fetch).await
    }

    /// A file that an index names.
    pub(crate) async fn file(&self, wanted: Wanted) -> Result<Found, FetchError> {
        self.0.files.get(&self.0.upstream, wanted).await
    }

    /// What a wheel says of itself. Where it lies beside the wheel it comes from there, else from the wheel itself, which is
    /// likely to be wanted next. `arrived` is told then how long it is, and whether it was cached.
    pub(crate) async fn metadata(
        &self,
        wheel: &Wheel,
        arrived: impl FnOnce(u64, bool),
    ) -> Result<Bytes, Arc<FetchError>> {
        let fetch = async {
            if let pypi::Metadata::Beside(checksum) = &wheel.metadata {
                match self.metadata_beside(wheel, checksum.as_ref()).await {
                    // Some indexes promise what their file host does not have.
                    Err(FetchError::NotFound { .. }) => {}
                    result => return result,
                }
            }
            let found = self.file(wheel.wanted()).await?;
            let (file, size_bytes) = found.complete().await?;
            arrived(size_bytes, found.is_cached());
            let name = wheel.file.clone();
            let extracted = blocking(move || {
                // It has an offset of its own, which other readers of the file do not share.
                let file = std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*file)));
                file.map_err(|error| error.to_string()).and_then(|file| pypi::extract(file, &name))
            });
            extracted.await?.map_err(|reason| FetchError::malformed(&wheel.url, reason))
        };
        self.0.metadata.try_get_with_by_ref(&wheel.checksum, fetch).await
    }

    async fn metadata_beside(&self, wheel: &Wheel, checksum: Option<&Checksum>) -> Result<Bytes, FetchError> {
        let url = wheel.metadata_url();
        let raw = self.0.upstream.page(&url, "*/*").await?;
        if let Some(checksum) = checksum {
            let mut hasher = checksum.hasher();
            hasher.update(&raw.body);
            checksum.compare(hasher).map_err(|actual| FetchError::hash(&url, checksum, &actual))?;
        }
        Ok(raw.body)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

impl Wheel {
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted { url: self.url.clone(), checksum: self.checksum.clone(), size_bytes: self.size_bytes }
    }
}

fn join(base: &Url, path: &str) -> Result<Url, FetchError> {
    // `./` keeps a name from being taken for a scheme.
    base.join(&format!("./{path}")).map_err(|error| FetchError::malformed(base, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_behind_a_registry() {
        let base = base_url("https://example.com/simple").unwrap();
        assert_eq!(join(&base, "@a%2fb").unwrap().as_str(), "https://example.com/simple/@a%2fb");
    }
}
