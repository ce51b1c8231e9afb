//! `images.lock`: the downloads that the root is made of beside Debian's packages, each pinned by its hash.

use sandbox_download::{Algorithm, Checksum, Wanted};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use url::Url;

/// The lock file, as it was when this binary was built.
pub(crate) const TEXT: &str = include_str!("../images.lock");

/// Reads a lock file and checks each entry.
pub(crate) fn parse(text: &str) -> Result<Vec<Download>, PinsError> {
    let file: LockFile = toml::from_str(text).map_err(|error| PinsError::Syntax(error.to_string()))?;
    for download in &file.download {
        if download.url.scheme() != "https" {
            return Err(PinsError::Url { name: download.name.clone(), url: download.url.clone() });
        }
    }
    Ok(file.download)
}

/// One pinned file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Download {
    /// What it is, for messages and manifests.
    pub(crate) name: String,
    /// Its version, for manifests. The hash decides.
    pub(crate) version: String,
    /// The name under which the root's script expects it.
    pub(crate) file: String,
    /// Where it is fetched from, over TLS.
    pub(crate) url: Url,
    /// Its length: what progress is measured against, and where a server that does not stop is cut off.
    pub(crate) size_bytes: u64,
    /// What it must hash to.
    #[serde(deserialize_with = "pinned")]
    pub(crate) hash: Checksum,
}

impl Download {
    /// What is asked for.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted { url: self.url.clone(), checksum: self.hash.clone(), size_bytes: Some(self.size_bytes) }
    }
}

/// An expected hash, written `sha256:` or `sha512:` and hexadecimal digits.
fn pinned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Checksum, D::Error> {
    let text = String::deserialize(deserializer)?;
    let checksum = text.split_once(':').and_then(|(algorithm, digits)| Checksum::from_hex(algorithm, digits));
    // A file that hashes to the same by SHA-1 can be made.
    checksum
        .filter(|checksum| checksum.algorithm() != Algorithm::Sha1)
        .ok_or_else(|| D::Error::custom(format!("malformed hash `{text}`")))
}

/// What is wrong with a lock file.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// It is not the TOML that is expected, or a field is missing or malformed.
    #[error("images.lock: {0}")]
    Syntax(String),
    /// A file would be fetched without TLS.
    #[error("images.lock: {name}: `{url}` is not an https URL")]
    Url {
        /// The download's name.
        name: String,
        /// Its URL.
        url: Url,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LockFile {
    download: Vec<Download>,
}

#[cfg(test)]
mod tests {
    use super::{TEXT, parse};

    #[test]
    fn lock_file_pins_every_download() {
        let downloads = parse(TEXT).unwrap();
        let names: Vec<_> = downloads.iter().map(|download| download.name.as_str()).collect();
        assert_eq!(names, ["node", "npm", "esbuild", "uv"]);
        for download in downloads {
            assert!(download.url.scheme() == "https" && download.url.as_str().contains(&download.version));
            assert!(download.size_bytes > 1_000_000);
        }
    }

    #[test]
    fn what_is_not_pinned_or_not_fetched_over_tls_is_refused() {
        let sha1 = format!("hash = \"sha1:{}\"\n", "0".repeat(40));
        let (_, uv) = TEXT.rsplit_once("hash = ").unwrap();
        for (from, to) in [
            ("https://", "http://"),
            ("https://", ""),
            ("sha512:de", "sha512:"),
            ("sha256:", "md5:"),
            (&format!("hash = {uv}"), &sha1),
        ] {
            assert!(parse(&TEXT.replace(from, to)).is_err(), "{to}");
        }
    }
}
