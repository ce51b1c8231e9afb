//! Everything that crosses a process or a disk: tool inputs and results, host-guest frames, manifests, and every limit
//! with its reason. No I/O and no async lives here, so that the server, the engine and the guest can all depend on it.

// In the order in which to read them.
pub mod language;
pub mod limits;

pub mod background;
pub mod execute;
pub mod files;
pub mod install;
pub mod invalid;
mod lenient;
pub mod outcome;
pub mod session;
pub mod status;

pub mod tunnel;
pub mod wire;

pub mod accelerator;
pub mod image;
pub mod remote;
pub mod template;

pub mod environment;
pub mod layer;

#[cfg(feature = "json-schema")]
pub mod tools;
