//! `images.lock`: the downloads that the root is made of beside Debian's packages, each pinned by its hash.

use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

/// The lock file, as it was when this binary was built.
pub(crate) const TEXT: &str = include_str!("../images.lock");

/// Reads a lock file and checks each entry.
pub(crate) fn parse(text: &str) -> Result<Vec<Download>, LockError> {
    let file: LockFile = toml::from_str(text).map_err(|error| LockError::Syntax(error.to_string()))?;
    for download in &file.download {
        if !download.url.starts_with("https://") {
            return Err(LockError::Url { name: download.name.clone(), url: download.url.clone() });
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
    pub(crate) url: String,
    /// Its length: what progress is measured against, and where a server that does not stop is cut off.
    pub(crate) size_bytes: u64,
    /// What it must hash to.
    pub(crate) hash: Hash,
}

/// An expected hash, written `sha256:` or `sha512:` and lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Hash {
    /// Which function.
    pub(crate) algorithm: Algorithm,
    /// The digest in hexadecimal digits.
    pub(crate) hex: String,
}

/// The hash functions by which the registries name their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// PyPI's.
    Sha256,
    /// The npm registry's.
    Sha512,
}

impl TryFrom<String> for Hash {
    type Error = LockError;

    fn try_from(text: String) -> Result<Hash, LockError> {
        let malformed = || LockError::Hash(text.clone());
        let (name, hex) = text.split_once(':').ok_or_else(malformed)?;
        let (algorithm, digits) = match name {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(malformed()),
        };
        if hex.len() != digits || !hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(malformed());
        }
        Ok(Hash { algorithm, hex: hex.to_owned() })
    }
}

/// Computes a [`Hash`] while the bytes pass by.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher for what `algorithm` names.
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest in hexadecimal digits.
    pub(crate) fn hex(self) -> String {
        let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hasher::Sha256(hasher) => digits(&hasher.finalize()),
            Hasher::Sha512(hasher) => digits(&hasher.finalize()),
        }
    }
}

/// What is wrong with a lock file.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It is not the TOML that is expected, or a field is missing or malformed.
    #[error("images.lock: {0}")]
    Syntax(String),
    /// A hash is not `sha256:` or `sha512:` and that many digits.
    #[error("malformed hash `{0}`")]
    Hash(String),
    /// A file would be fetched without TLS.
    #[error("images.lock: {name}: `{url}` is not an https URL")]
    Url {
        /// The download's name.
        name: String,
        /// Its URL.
        url: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LockFile {
    download: Vec<Download>,
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, Hasher, TEXT, parse};

    #[test]
    fn lock_file_pins_every_download() {
        let downloads = parse(TEXT).unwrap();
        let names: Vec<_> = downloads.iter().map(|download| download.name.as_str()).collect();
        assert_eq!(names, ["node", "npm", "esbuild", "uv"]);
        for download in downloads {
            assert!(download.url.starts_with("https://") && download.url.contains(&download.version));
            assert!(download.size_bytes > 1_000_000);
        }
    }

    #[test]
    fn what_is_not_pinned_or_not_fetched_over_tls_is_refused() {
        for (from, to) in
            [("https://", "http://"), ("sha512:de", "sha512:"), ("sha512:de", "sha512:DE"), ("sha256:", "md5:")]
        {
            assert!(parse(&TEXT.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn hashers_compute_what_they_are_named_after() {
        for (algorithm, start) in [(Algorithm::Sha256, "ba7816bf8f01cfea"), (Algorithm::Sha512, "ddaf35a193617aba")] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"a");
            hasher.update(b"bc");
            assert!(hasher.hex().starts_with(start));
        }
    }
}
