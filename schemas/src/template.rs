//! What the cache says about a template on disk.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::environment::Omitted;
use crate::image::{Digest, VerifiedStamp};

/// Version of [`TemplateManifest`]'s layout. An entry that has another one is built anew.
pub const TEMPLATE_FORMAT: u32 = 1;

/// `manifest.json` of a template: what its other files are, and where they came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateManifest {
    /// Layout of this file, [`TEMPLATE_FORMAT`].
    pub format: u32,
    /// Digest of all that the template depends on.
    pub key: Digest,
    /// The memory, a sparse file.
    pub ram: RamPart,
    /// SHA-256 of the devices' state.
    pub state_sha256: Digest,
    /// The translated code, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<RamPart>,
    /// Frequency of the time stamp counter that the guest counts by, in kHz.
    pub tsc_khz: u64,
    /// What executed the guest, and will execute its clones.
    pub accelerator: Accelerator,
    /// Packages that were asked for and are not imported in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Omitted>,
    /// What the QEMU that saved it said of its version.
    pub qemu: String,
    /// When it was built, in seconds since 1970.
    pub created_unix_seconds: u64,
}

/// The memory of a template, or another file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamPart {
    /// Length of the file, which is the memory of a clone, in bytes.
    pub size_bytes: u64,
    /// Bytes of pages that hold anything: what the file takes on disk.
    pub data_bytes: u64,
    /// SHA-256 over these pages, each with its offset before it.
    pub sha256: Digest,
}

/// `verified.json` of a template: the identities that its files had when they were last hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateStamp {
    /// The memory.
    pub ram: VerifiedStamp,
    /// The devices' state.
    pub state: VerifiedStamp,
    /// The translated code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<VerifiedStamp>,
}
