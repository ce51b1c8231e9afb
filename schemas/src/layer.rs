//! What the cache says about a package layer on disk.

use serde::{Deserialize, Serialize};

use crate::environment::{Omitted, PackageLock};
use crate::image::{Digest, VerifiedStamp};
use crate::template::RamPart;

/// Version of [`LayerManifest`]'s layout. An entry that has another one is installed anew.
pub const LAYER_FORMAT: u32 = 3;

/// `manifest.json` of a layer: what its file is, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerManifest {
    /// Layout of this file, [`LAYER_FORMAT`].
    pub format: u32,
    /// Digest of all that decides what is in the layer.
    pub key: Digest,
    /// The exact packages.
    pub lock: PackageLock,
    /// Names of those that were asked for; the rest are what these need.
    pub requested: Vec<String>,
    /// How many parts of its disk have packages, from 1 to [`LAYER_PARTS_MAX`](crate::limits::LAYER_PARTS_MAX).
    pub parts: u8,
    /// The layer that it begins with, where its packages were added to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_to: Option<LayerReference>,
    /// What its packages can do without, and does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Omitted>,
    /// The file systems, a sparse file.
    pub image: RamPart,
    /// When it was installed, in seconds since 1970.
    pub created_unix_seconds: u64,
}

/// A layer as another one names it: what is in it, and to the byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReference {
    /// Its key.
    pub key: Digest,
    /// SHA-256 of its image, as its manifest has it.
    pub image_sha256: Digest,
}

/// `verified.json` of a layer: the identity that its file had when it was last hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStamp {
    /// The file system.
    pub image: VerifiedStamp,
}
