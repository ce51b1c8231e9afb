//! What may be installed, and where it comes from. Knows registries, names and allowlists, and nothing of VMs or MCP: an
//! installer that runs somewhere without a network is given a stream, at whose other end is the gateway.
//!
//! ```text
//! specifiers -> requirements -> allowlist -> gateway <-> installer
//! ```

pub use sandbox_download::{FetchError, Patience, ShownUrl, TlsError, without_credentials};

// In the order in which to read them: what is asked for, who serves it, where that comes from, and what remains of it.
mod requirement;
pub use requirement::{Quoted, Requirement, RequirementError, Specifier, parse};

mod reason;
pub use reason::Reason;

mod meant;
pub use meant::{Meant, project_of};

mod python;

mod javascript;
pub use javascript::Wanted;

mod name;
pub use name::{InvalidName, normalise};

mod allowlist;
pub use allowlist::{Allowlist, ListError, Refused};

mod source;
pub use source::SourceError;

mod credentials;
pub use credentials::CredentialFiles;

mod gpu;

mod gateway;
pub use gateway::{Gateway, GatewayConfig, GatewayError};

mod session;
pub use session::{Event, Observer, Refusal, SentFile, Session, SessionReport};

mod unavailable;
pub use unavailable::{Unavailable, UnavailableReason};

mod serve;

mod route;

mod pypi;
pub use pypi::PythonTarget;

mod npm;

mod upstream;

mod files;

mod found;

mod transfer;

mod part;

mod blocking;

mod resolution;

mod package_lock;
pub use package_lock::package_lock_key;
