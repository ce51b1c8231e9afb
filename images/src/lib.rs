//! Builds what a VM boots (a kernel, a root file system, an initial RAM file system with the guest agent) and, for who
//! wants it, the QEMU that it runs in; and keeps them in the user's cache, each by the digest of its inputs.

// In the order in which to read them: what callers see, the recipes, then what all of them are built with.
mod store;
pub use store::ImageStore;

mod progress;
pub use progress::{Progress, Stage, TerminalProgress, Unit};

mod error;
pub use error::{
    BuildError, DownloadError, Forbidden, Full, LoadError, MissingTools, NoRoom, PinsError, ToolError, program,
};

mod agent;
mod kernel;
mod qemu;
mod root;

mod cache;
mod entry;
mod plan;
pub use plan::BuildOptions;
mod recipe;
mod shared;

mod debian;
mod download;
mod pins;
mod room;
mod tool;

mod failure;
mod host_tool;

#[cfg(test)]
mod fake;
