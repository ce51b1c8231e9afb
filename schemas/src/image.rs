//! What a VM boots, and what the cache says about it on disk: digests, manifests, and the state of each component.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::limits::IMAGE_MAX_AGE_DAYS;

/// Everything a cold boot needs: three files and what they hash to. The digests belong into a template's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootImage {
    /// The guest kernel, an ELF file that is booted through PVH.
    pub kernel: PathBuf,
    /// SHA-256 of the kernel.
    pub kernel_sha256: Digest,
    /// The read-only root file system, an erofs image.
    pub root: PathBuf,
    /// SHA-256 of the root file system.
    pub root_sha256: Digest,
    /// The initial RAM file system that holds the guest agent as `/init`, an uncompressed cpio archive.
    pub initrd: PathBuf,
    /// SHA-256 of the initial RAM file system.
    pub initrd_sha256: Digest,
}

/// One of the files that a VM is made of. Each is built, cached and verified on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// The guest kernel.
    Kernel,
    /// The root file system.
    Root,
    /// The initial RAM file system with the guest agent.
    Agent,
    /// A QEMU for these VMs and nothing else. Whoever has not asked for it runs them with the host's.
    Qemu,
}

impl Component {
    /// All of them, in the order in which a VM meets them.
    pub const ALL: [Component; 4] = [Component::Kernel, Component::Agent, Component::Root, Component::Qemu];

    /// Whether there is no VM without it.
    pub const fn is_required(self) -> bool {
        !matches!(self, Component::Qemu)
    }

    /// Whether the host executes it.
    pub const fn is_program(self) -> bool {
        matches!(self, Component::Qemu)
    }

    /// Whether Debian's packages are in it, whose newer versions it has only when it is built anew.
    pub const fn becomes_outdated(self) -> bool {
        !matches!(self, Component::Agent)
    }

    /// The name that stands in manifests, in directory names and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Component::Kernel => "kernel",
            Component::Root => "root",
            Component::Agent => "agent",
            Component::Qemu => "qemu",
        }
    }

    /// Name of the component's file within its cache entry.
    pub const fn file_name(self) -> &'static str {
        match self {
            Component::Kernel => "vmlinux",
            Component::Root => "root.erofs",
            Component::Agent => "agent.cpio",
            Component::Qemu => "qemu-system-x86_64",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Version of [`Manifest`]'s layout. An entry that has another one counts as corrupt and is built anew.
pub const MANIFEST_FORMAT: u32 = 1;

/// `manifest.json` of a cache entry: what the entry's file is, so that it can be verified, and what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this file, [`MANIFEST_FORMAT`].
    pub format: u32,
    /// Which component the entry holds.
    pub component: Component,
    /// Digest of the inputs that it was built from.
    pub key: Digest,
    /// SHA-256 of the file.
    pub sha256: Digest,
    /// Length of the file in bytes.
    pub size_bytes: u64,
    /// When it was built, in seconds since 1970.
    pub created_unix_seconds: u64,
    /// What is in it, name to version: Debian packages and what was added to them.
    pub packages: BTreeMap<String, String>,
    /// What it was built with, name to the version that the program printed.
    pub tools: BTreeMap<String, String>,
}

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

impl Manifest {
    /// When it was built. A time that no clock can have is as long ago as can be.
    pub fn made(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.created_unix_seconds)).unwrap_or(UNIX_EPOCH)
    }

    /// How old it is, in whole days; none if the clock was set back since.
    pub fn age_days(&self, now: SystemTime) -> u64 {
        now.duration_since(self.made()).map_or(0, |age| age.as_secs() / DAY)
    }

    /// Whether it is to be built anew for the updates that Debian has had since.
    pub fn is_outdated(&self, now: SystemTime) -> bool {
        self.component.becomes_outdated() && self.made() < oldest_made(now)
    }
}

/// What was made before is outdated.
pub fn oldest_made(now: SystemTime) -> SystemTime {
    now.checked_sub(Duration::from_secs(IMAGE_MAX_AGE_DAYS * DAY)).unwrap_or(UNIX_EPOCH)
}

/// `verified.json` of a cache entry: the identity that the file had when it was last hashed. As long as it still has
/// it, its content is not read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedStamp {
    /// Device that the file is on.
    pub device: u64,
    /// Inode number of the file.
    pub inode: u64,
    /// Length of the file in bytes.
    pub size_bytes: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Last change of the inode, in nanoseconds since 1970.
    pub changed_ns: i64,
    /// What the file hashed to.
    pub sha256: Digest,
}

/// What the cache holds of the image that this binary boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageStatus {
    /// Each component, in the order of [`Component::ALL`].
    pub components: Vec<ComponentStatus>,
}

impl ImageStatus {
    /// Whether a VM can boot without anything being built.
    pub fn is_complete(&self) -> bool {
        self.components.iter().all(|status| match status.state {
            ComponentState::Present { .. } => true,
            ComponentState::Missing => !status.component.is_required(),
            ComponentState::Corrupt { .. } | ComponentState::Unreadable { .. } => false,
        })
    }
}

/// What the cache holds of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentStatus {
    /// Which component.
    pub component: Component,
    /// Where its file is, or would be.
    pub path: PathBuf,
    /// Whether it is there.
    #[serde(flatten)]
    pub state: ComponentState,
}

/// Whether a component can be booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ComponentState {
    /// It is there and is what its manifest says.
    Present {
        /// What is known about it.
        manifest: Manifest,
    },
    /// It was never built from today's inputs.
    Missing,
    /// It is there but is not what was built, or may have been changed by another user.
    Corrupt {
        /// What is wrong with it.
        reason: String,
    },
    /// This host cannot look at it now: what it lacks for that says nothing about the component.
    Unreadable {
        /// What went wrong.
        reason: String,
    },
}

/// A SHA-256 digest. It is written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The first 16 digits: enough to tell cache entries apart in a directory's name.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(16);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Digest, InvalidDigest> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidDigest);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let value = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 };
            *byte = value(digits[0]) << 4 | value(digits[1]);
        }
        Ok(Digest(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Digest, InvalidDigest> {
        text.parse()
    }
}

/// A text that is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 digest is 64 lower-case hexadecimal digits")]
pub struct InvalidDigest;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_debians_packages_is_outdated_after_a_month() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let manifest = |component, days: u64| Manifest {
            format: MANIFEST_FORMAT,
            component,
            key: Digest([7; 32]),
            sha256: Digest([7; 32]),
            size_bytes: 1,
            created_unix_seconds: 1_800_000_000 - days * DAY,
            packages: BTreeMap::new(),
            tools: BTreeMap::new(),
        };
        for (component, days, expected) in [
            (Component::Root, 0, false),
            (Component::Root, 30, false),
            (Component::Root, 31, true),
            (Component::Kernel, 31, true),
            (Component::Qemu, 31, true),
            (Component::Agent, 3000, false),
        ] {
            let manifest = manifest(component, days);
            assert_eq!((manifest.is_outdated(now), manifest.age_days(now)), (expected, days), "{component}");
        }
        let of_tomorrow = Manifest { created_unix_seconds: 1_800_000_000 + DAY, ..manifest(Component::Root, 0) };
        assert_eq!((of_tomorrow.is_outdated(now), of_tomorrow.age_days(now)), (false, 0));
        let of_no_clock = Manifest { created_unix_seconds: u64::MAX, ..of_tomorrow };
        assert!(of_no_clock.is_outdated(now));
    }

    #[test]
    fn digest_reads_what_it_writes_and_nothing_else() {
        let digest = Digest(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.short(), digest.to_string()[..16]);
        for wrong in ["", "00", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
