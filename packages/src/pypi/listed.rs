//! What an index says of a file, in whatever form.

use sandbox_download::Checksum;
use url::Url;

/// A file as an index lists it.
pub(crate) struct Listed {
    pub(crate) file: String,
    pub(crate) url: Url,
    pub(crate) checksum: Option<Checksum>,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) requires_python: Option<String>,
    pub(crate) yanked: Option<String>,
    pub(crate) metadata: Metadata,
}

/// Whether a wheel's metadata lies beside it (PEP 658).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Metadata {
    /// It does not: it is taken from the wheel itself.
    Within,
    /// It does, and hashes to this, if the index says so.
    Beside(Option<Checksum>),
}
