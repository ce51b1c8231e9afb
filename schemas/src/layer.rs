//! What the cache says about a package layer on disk.

use serde::{Deserialize, Serialize};

use crate::environment::Lock;
use crate::image::{Digest, VerifiedStamp};
use crate::template::RamPart;

/// Version of [`LayerManifest`]'s layout. An entry that has another one is installed anew.
pub const LAYER_FORMAT: u32 = 1;

/// `manifest.json` of a layer: what its file is, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerManifest {
    /// Layout of this file, [`LAYER_FORMAT`].
    pub format: u32,
    /// Digest of all that decides what is in the layer.
    pub key: Digest,
    /// The exact packages.
    pub lock: Lock,
    /// Names of those that were asked for; the rest are what these need.
    pub requested: Vec<String>,
    /// The file system, a sparse file.
    pub image: RamPart,
    /// When it was installed, in seconds since 1970.
    pub created_unix_seconds: u64,
}

/// `verified.json` of a layer: the identity that its file had when it was last hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStamp {
    /// The file system.
    pub image: VerifiedStamp,
}
