//! A place beyond this disk, where an entry may come from and where it is offered. A new tier is a new implementation of [`Tier`];
//! who keeps entries knows only that there are some.

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sandbox_schemas::status::TierStatus;

use crate::entry_id::EntryId;

/// When an entry was made, and what of the same name and key it is to take the place of. For what becomes too old, because it is made
/// of something that its key does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// When it was made.
    pub made: SystemTime,
    /// What it replaces.
    pub replaces: Replaces,
}

/// Which entry of a tier makes room for another one of the same name and key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaces {
    /// One that was made before this time.
    MadeBefore(SystemTime),
    /// Whichever is there.
    Any,
}

/// A place beyond this disk. What goes wrong there is its own to tell, in its status and in the log: to its users it has an
/// entry, or it has none.
pub trait Tier: Debug + Send + Sync {
    /// Writes an entry's files into `folder`, which is empty, and syncs them. `false` when there is no entry that can be
    /// believed, or none that can be had within `patience`, or it is known to have been made before `since`; what is in the folder
    /// then is rubbish. Blocks.
    fn fetch(&self, wanted: &EntryId, since: Option<SystemTime>, folder: &Path, patience: Duration) -> bool;

    /// What was fetched is not what its user took it for: it is not to be fetched again.
    fn reject(&self, fetched: &EntryId, reason: &str);

    /// Takes a copy of an entry of this disk, in its own time, unless it has one that `age` does not say is to be replaced. Returns
    /// at once.
    fn offer(&self, entry: &EntryId, folder: &Path, age: Option<Age>);

    /// How it is doing.
    fn status(&self) -> TierStatus;

    /// Waits until what it was offered is taken over or given up, as long as `patience` lasts. `true` when nothing is left.
    fn flush(&self, patience: Duration) -> bool;

    /// Gives up what it does in the background, and leaves nothing half done behind, as far as `patience` lasts.
    fn close(&self, patience: Duration);
}
