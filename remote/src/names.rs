//! What things are called: objects of a bucket, and the mark of what came from one.

use sandbox_schemas::remote::REMOTE_FORMAT;
use sandbox_store::{EntryId, Kind};

/// What an entry's folder is marked with that came from a bucket and that nobody has vouched for: nor does this host, should it
/// be given a key.
pub(crate) const UNVOUCHED: &str = ".from-a-bucket-without-a-key";

/// What objects are called.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    pub(crate) key_id: Option<String>,
}

impl Names {
    /// Where entries of a kind are, with a slash at its end.
    pub(crate) fn kind(&self, kind: Kind) -> String {
        format!("{}{}/", self.prefix, kind.folder())
    }

    pub(crate) fn entry(&self, entry: &EntryId) -> String {
        format!("{}{}-{}", self.kind(entry.kind), entry.name, entry.key)
    }

    /// An entry's manifest. Hosts that share another key, or none, or whose program has another format, have another one, and do not
    /// stand in each other's way.
    pub(crate) fn manifest(&self, entry: &EntryId) -> String {
        let key_id = self.key_id.as_ref().map_or_else(String::new, |id| format!("-{id}"));
        format!("{}/manifest-v{REMOTE_FORMAT}{key_id}.json", self.entry(entry))
    }

    /// The object of one of its files.
    pub(crate) fn part(&self, entry: &EntryId, upload: &str, name: &str) -> String {
        format!("{}/{upload}/{name}.zst", self.entry(entry))
    }
}
