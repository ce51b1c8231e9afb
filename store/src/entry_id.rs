//! What an entry is, on this disk and beyond it.

use sandbox_schemas::image::Digest;

/// What an entry is, wherever it lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// What it is an entry of.
    pub kind: Kind,
    /// What it is called; entries of one name replace one another in time.
    pub name: String,
    /// Digest of all that it was made from.
    pub key: Digest,
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}-{}", self.kind.folder(), self.name, self.key.short())
    }
}

/// What an entry is of. Everybody's are known here, because whoever makes room makes it among all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What a VM boots.
    Image,
    /// A VM that was saved.
    Template,
    /// Packages, installed.
    Layer,
    /// Which exact packages a request became.
    Resolution,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Image, Kind::Template, Kind::Layer, Kind::Resolution];

    /// What the folder of its entries is called, here and in every tier.
    pub const fn folder(self) -> &'static str {
        match self {
            Kind::Image => "images",
            Kind::Template => "templates",
            Kind::Layer => "layers",
            Kind::Resolution => "resolutions",
        }
    }

    /// Whether QEMU, on the host, takes it for its own: then one that somebody else could have made is never used.
    pub const fn is_trusted_by_host(self) -> bool {
        match self {
            // A guest's programs and data. A guest may be hostile, and is held as one.
            Kind::Image | Kind::Layer | Kind::Resolution => false,
            // The state of devices, which QEMU does not promise to withstand.
            Kind::Template => true,
        }
    }
}
