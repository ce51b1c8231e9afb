//! What travels in the tunnel: streams, each of which begins by saying where it leads.
//!
//! The tunnel is one pipe of bytes in each direction, cut into `Tunnel` frames. On it runs yamux, whose client is the guest:
//! it opens a stream for each connection that a program makes. A stream begins with a [`Target`], framed like all else on the
//! wire; what follows are the connection's own bytes.

use serde::{Deserialize, Serialize};

/// Where in the guest, on 127.0.0.1, the registry is to be found: plain HTTP, which the host serves.
pub const REGISTRY_PORT: u16 = 3141;

/// Where a stream leads. The guest can only ask; the host decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The host's gateway to the package registries.
    Registry,
}
