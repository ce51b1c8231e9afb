//! What a tier beyond this disk says about an entry that it keeps: which files it has, and what they hash to.

use serde::{Deserialize, Serialize};

use crate::image::Digest;

/// Version of [`RemoteManifest`]'s layout, of the frames it speaks of, and of what is authenticated. Another one is no entry. It is in
/// the manifest's name, so that programs of different versions do not take what the other has written for damage.
pub const REMOTE_FORMAT: u32 = 2;

/// Bytes of a file that a frame holds at most: small enough that several are in memory at once, large enough that as many
/// requests as a disk or a network needs do not count, and that compression finds what there is to find.
pub const FRAME_DATA_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Extents of a frame at most: one for each page, as if every second one were empty.
pub const FRAME_EXTENTS_MAX: usize = FRAME_DATA_MAX_BYTES / 4096;

/// Bytes of a frame before it is compressed: the number of its extents, where each begins and how long it is, what is in them.
pub const FRAME_PLAIN_MAX_BYTES: usize = 4 + 16 * FRAME_EXTENTS_MAX + FRAME_DATA_MAX_BYTES;

/// Bytes of a compressed frame: zstd adds less than a part in two hundred to what cannot be compressed.
pub const FRAME_STORED_MAX_BYTES: usize = FRAME_PLAIN_MAX_BYTES + FRAME_PLAIN_MAX_BYTES / 128 + 1024;

/// Files of an entry. A template has three, the image's components two each.
pub const REMOTE_PARTS_MAX: usize = 64;

/// Frames of all files of an entry together: 32 GiB of content, more than a cache has.
pub const REMOTE_FRAMES_MAX: usize = 4096;

/// Length of a file, holes included: 1 TiB.
pub const REMOTE_PART_MAX_BYTES: u64 = 1 << 40;

/// Length of a manifest: as many parts and frames as there may be, each in its hundred or so bytes of JSON.
pub const REMOTE_MANIFEST_MAX_BYTES: usize = 2 * 1024 * 1024;

/// An entry in a tier. Written when all that it speaks of is there; replaced when it is damaged, or has become too old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteManifest {
    /// Layout of this file, [`REMOTE_FORMAT`].
    pub format: u32,
    /// Folder of the entry's kind: `images`, `templates`.
    pub kind: String,
    /// What the entry is called.
    pub name: String,
    /// Digest of all that it was made from: the QEMU, its machine, the processor and the accelerator among it.
    pub key: Digest,
    /// Folder of this upload's files, so that no two uploads write to the same object.
    pub upload: String,
    /// When the entry was made, in seconds since 1970, if it is of a kind that becomes too old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_unix_seconds: Option<u64>,
    /// The files.
    pub parts: Vec<RemotePart>,
    /// HMAC-SHA-256 over all of the above, in the encoding of `sandbox-remote`, by the key that the hosts share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac_sha256: Option<Digest>,
}

/// A file of an entry. Its object is its frames, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemotePart {
    /// The file's name; its object's is the same with `.zst` behind it.
    pub name: String,
    /// Length of the file in bytes, holes included.
    pub size_bytes: u64,
    /// Bytes of the pages that hold anything.
    pub data_bytes: u64,
    /// Permissions of the file.
    pub mode: u32,
    /// SHA-256 over the above and what the frames hash to.
    pub sha256: Digest,
    /// What the object consists of.
    pub frames: Vec<RemoteFrame>,
}

/// A piece of a file, compressed on its own so that several are worked on at once. No two of a file overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteFrame {
    /// Its length in the object.
    pub stored_bytes: u32,
    /// Its length before it was compressed.
    pub plain_bytes: u32,
    /// SHA-256 of what it was before it was compressed, which has the places of its bytes in it.
    pub sha256: Digest,
}
