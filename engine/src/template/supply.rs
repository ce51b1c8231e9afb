//! Where a template comes from: the disk, another host, or its making. Whatever is there by then is on this disk.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandbox_schemas::image::Digest;
use sandbox_schemas::template::RamPart;
use sandbox_store::{BuildLock, CacheDir, EntryId, Fetched, FileError, Kind, Shelf, Workplace};

use crate::environment::Environment;
use crate::error::VmError;
use crate::opened::Unusable;
use crate::qemu::Qemu;
use crate::template::Template;
use crate::template::build::{Built, Saved};
use crate::template::code;
use crate::template::saved::{self, Origin};
use crate::turn::{TurnError, turn};

/// What building one takes under TCG: a tier that would take longer is of no use.
const TIER_PATIENCE: Duration = Duration::from_secs(15);

/// Why there is no template. Programs still run: in VMs that boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("building it: {0}")]
    Build(#[from] VmError),
    #[error("there is none to make it from")]
    NoBase,
    #[error("there is no room to make it: {0}")]
    NoRoom(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Turn(#[from] TurnError),
    #[error("what was just written is damaged: {0}")]
    Damaged(Unusable),
    #[error("it is there, and cannot be read: {0}")]
    Unreadable(String),
    #[error("{0}")]
    Internal(String),
}

/// Where templates come from.
#[derive(Debug)]
pub(crate) struct Supply {
    cache: CacheDir,
    shelf: Shelf,
    /// Whether QEMU must not have the memory's file itself.
    copies: bool,
}

/// Which template is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) environment: Option<Arc<Environment>>,
    /// The state of the one that is of no use.
    pub(crate) distrusted: Option<Digest>,
}

impl Wanted {
    fn id(&self) -> EntryId {
        EntryId { kind: Kind::Template, name: self.name.clone(), key: self.origin.key }
    }

    /// What lies in a folder, if it is what is wanted.
    fn load(&self, folder: &Path, copies: bool) -> Result<Template, Unusable> {
        let template = saved::load(folder, &self.origin, copies, self.environment.clone())?;
        if Some(template.state_sha256) == self.distrusted {
            return Err(Unusable::Damaged("VMs that are restored from it do not come up".into()));
        }
        Ok(template)
    }
}

impl Supply {
    pub(crate) fn new(cache: CacheDir, copies: bool) -> Supply {
        Supply { shelf: cache.shelf(Kind::Template), cache, copies }
    }

    /// Whether a template lies on the disk, without a look at what it is.
    pub(crate) fn seems_to_have(&self, name: &str, key: Digest) -> bool {
        self.shelf.entry(name, key).is_dir()
    }

    /// The template, which is built if there is none.
    pub(crate) async fn obtain<E: Into<TemplateError>>(
        &self,
        qemu: &Qemu,
        wanted: &Wanted,
        build: impl Future<Output = Result<Built, E>>,
    ) -> Result<Template, TemplateError> {
        let template = match self.load(wanted).await? {
            Ok(template) => template,
            // What this host cannot read now is as good as before.
            Err(Unusable::Unreadable(reason)) => return Err(TemplateError::Unreadable(reason)),
            Err(reason) => {
                if let Unusable::Damaged(reason) = reason {
                    tracing::warn!(name = wanted.name, reason, "a template cannot be used and is built anew");
                }
                self.make(qemu, wanted, build).await?
            }
        };
        self.cache.offer(&wanted.id());
        Ok(template)
    }

    async fn make<E: Into<TemplateError>>(
        &self,
        qemu: &Qemu,
        wanted: &Wanted,
        build: impl Future<Output = Result<Built, E>>,
    ) -> Result<Template, TemplateError> {
        let lock = turn(&self.shelf, &wanted.name).await?;
        // The other may have built it.
        match self.load(wanted).await? {
            Ok(template) => return Ok(template),
            Err(Unusable::Missing | Unusable::Damaged(_)) => {}
            Err(Unusable::Unreadable(reason)) => return Err(TemplateError::Unreadable(reason)),
        }
        let template = match self.fetch(lock, wanted).await? {
            Fetched::Entry(template, _lease) => template,
            Fetched::Nothing(lock) => self.build(qemu, lock, wanted, build).await?,
        };
        if let Err(error) = self.make_room(&wanted.name).await {
            tracing::warn!(%error, "no room was made in the cache");
        }
        Ok(template)
    }

    async fn build<E: Into<TemplateError>>(
        &self,
        qemu: &Qemu,
        lock: BuildLock,
        wanted: &Wanted,
        build: impl Future<Output = Result<Built, E>>,
    ) -> Result<Template, TemplateError> {
        // From now on whoever builds the same beside this one finds out that it is the second.
        let (shelf, key) = (self.shelf.clone(), wanted.origin.key);
        let place = in_background(move || shelf.begin(lock, key)).await??;
        tracing::info!(name = wanted.name, "building a template, which takes some seconds");
        let Built { saved, spec, languages, place: room, left_out } = build.await.map_err(Into::into)?;
        let Saved { ram, state } = saved;
        let (place, part, ram) = in_background(move || write_ram(place, &ram)).await??;
        let making = code::Making { ram: &ram, state: &state, spec: &spec, languages: &languages, place: room };
        let code = code::of(qemu, &making).await?;
        drop(making);
        let origin = wanted.origin.clone();
        let published = in_background(move || {
            saved::complete(place.made(), part, &state, code.as_ref(), &origin, left_out)?;
            place.publish()
        });
        // In use until the template is, so that nobody makes room with it meanwhile.
        let _lease = published.await??;
        self.load(wanted).await?.map_err(TemplateError::Damaged)
    }

    /// What another host has built.
    async fn fetch(&self, lock: BuildLock, wanted: &Wanted) -> Result<Fetched<Template>, TemplateError> {
        let (cache, copies, wanted) = (self.cache.clone(), self.copies, wanted.clone());
        let fetched = in_background(move || {
            let load = |folder: &Path| wanted.load(folder, copies).map_err(|reason| reason.to_string());
            cache.fetch(&wanted.id(), lock, TIER_PATIENCE, load)
        });
        Ok(fetched.await??)
    }

    /// Removes what is not needed any more, now that there is one template more.
    async fn make_room(&self, name: &str) -> Result<(), TemplateError> {
        let (shelf, cache, name) = (self.shelf.clone(), self.cache.clone(), name.to_owned());
        in_background(move || {
            shelf.prune(&name, SystemTime::now());
            for removed in cache.make_room() {
                tracing::info!(entry = %removed.path.display(), "removed, to make room in the cache");
            }
        })
        .await
    }

    async fn load(&self, wanted: &Wanted) -> Result<Result<Template, Unusable>, TemplateError> {
        let folder = self.shelf.entry(&wanted.name, wanted.origin.key);
        let (wanted, copies) = (wanted.clone(), self.copies);
        in_background(move || wanted.load(&folder, copies)).await
    }
}

/// Puts a memory where it will stay, and gives it up where it is: there is no room for it twice.
fn write_ram(place: Workplace, ram: &File) -> Result<(Workplace, RamPart, File), FileError> {
    let part = saved::write_ram(place.made(), ram)?;
    let written = saved::open_ram(place.made())?;
    Ok((place, part, written))
}

/// Files are read and hashed where it does not hold up the runtime.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TemplateError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| TemplateError::Internal(error.to_string()))
}
