//! Immutable entries on disk, named by what they were made of. They appear whole or not at all, once, whoever else builds
//! them; they belong to their user alone; they are read again whenever they could have changed.
//!
//! Knows nothing of what is in an entry.

// In the order in which to read them.
mod shelf;
pub use shelf::{Lock, Shelf};

mod key;
pub use key::KeyHasher;

mod file;
pub use file::{create_private_directory, identity, sync_directory, write_json};

mod error;
pub use error::{At, FileError};
