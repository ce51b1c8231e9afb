//! Immutable entries on disk, named by what they were made of. They appear whole or not at all, once, whoever else builds
//! them; they belong to their user alone; they are read again whenever they could have changed; they stay while they are
//! used, and are removed when there are too many.
//!
//! Knows nothing of what is in an entry.
//!
//! ```text
//! lock -> begin -> (build) -> publish -> verify, in use -> prune, make_room
//! ```

// In the order in which to read them: the places, then the rules for what is there, then what all are made with.
mod cache_dir;
pub use cache_dir::{Beside, CacheDir, DEFAULT_LIMIT_GB, GIGABYTE, Removal};

mod shelf;
pub use shelf::{LOCK_POLL, Shelf};

mod build_lock;
pub use build_lock::BuildLock;

mod turn;
pub use turn::Turn;

mod workplace;
pub use workplace::Workplace;

mod tiers;
pub use tiers::Fetched;

mod tier;
pub use tier::{Age, Replaces, Tier};

mod entry_id;
pub use entry_id::{EntryId, Kind};

mod entry;
pub use entry::{Entry, is_part_name, part_names};

mod lease;
pub use lease::Lease;

mod prune;

mod stamp;
pub use stamp::{identity, verify_once};

mod open;
pub use open::{create_anew, is_damage, open_growing, open_regular, read_regular};

mod trust;
pub use trust::{Untrusted, check_owner, check_private, open_own, open_private};

mod key;
pub use key::KeyHasher;

mod file;
pub use file::{create_private_directory, write_json};

mod sparse;
pub use sparse::{PAGE_BYTES, RUN_MAX_BYTES, for_each_extent, for_each_run};

mod ulimit;
pub use ulimit::{limit_behind, limit_in_force, limits_behind_words, limits_too_low};

mod error;
pub use error::{At, FileError, NotRemoved, ShelfError};
