//! The npm registry, and what speaks as it does.

mod packument;
pub(crate) use packument::{ACCEPT, Dependency, Packument, version_of};
