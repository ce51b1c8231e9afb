//! What may be installed, and where it comes from. Knows registries, names and allowlists, and nothing of VMs or MCP: an
//! installer that runs somewhere without a network is given a stream, at whose other end is the gateway.
//!
//! ```text
//! specifiers -> requirements -> allowlist -> gateway <-> installer
//! ```

// In the order in which to read them.
mod requirement;
pub use requirement::{Reason, Requirement, RequirementError, Specifier, parse};

mod javascript;
mod python;

mod name;
pub use name::{InvalidName, normalise};

mod allowlist;
pub use allowlist::{Allowlist, ListError, Refused};

mod lock;
pub use lock::{environment_id, lock_key};
