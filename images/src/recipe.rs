//! What the cache asks of a component, and what a component gets to be built with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox_schemas::image::{Component, Digest};

use crate::error::BuildError;
use crate::host_tool::HostTool;
use crate::progress::Progress;
use crate::room::Room;

/// How a component is built.
pub(crate) trait Recipe: Sync {
    /// Which component.
    fn component(&self) -> Component;
    /// Digest of everything that decides what comes out.
    fn key(&self) -> Digest;
    /// What the host must have.
    fn tools(&self) -> &'static [HostTool];
    /// What building it takes for a while.
    fn room(&self) -> Room {
        Room::default()
    }
    /// Writes the component's file to `artefact`. `work` is an empty directory that is removed afterwards.
    fn make(&self, work: &Path, artefact: &Path, workshop: &Workshop<'_>) -> Result<Ingredients, BuildError>;
}

/// What a component turned out to be made of: for the manifest.
#[derive(Debug, Default)]
pub(crate) struct Ingredients {
    /// Name to version.
    pub(crate) packages: BTreeMap<String, String>,
    /// Program to what it printed as its version.
    pub(crate) tools: BTreeMap<String, String>,
}

/// What all components of one build share.
pub(crate) struct Workshop<'a> {
    /// Where to report to.
    pub(crate) progress: &'a dyn Progress,
    /// Where downloads are kept.
    pub(crate) downloads: &'a Path,
    /// Where the output of tools is kept, for after a failure.
    pub(crate) logs: &'a Path,
    /// Set when a component has failed, so that the others need not go on.
    pub(crate) stop: &'a AtomicBool,
}

impl Workshop<'_> {
    /// Fails when another component has.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        if self.stop.load(Ordering::Relaxed) { Err(BuildError::Stopped) } else { Ok(()) }
    }
}
