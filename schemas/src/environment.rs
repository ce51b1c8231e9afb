//! A set of packages that was resolved: which exact ones, and what the set is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::Digest;
use crate::language::Language;

/// The exact packages that a request became. Two requests that became the same have the same environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageLock {
    /// Whose packages they are.
    pub language: Language,
    /// Each of them, sorted.
    pub packages: Vec<LockedPackage>,
}

impl PackageLock {
    /// A lock of these, in whatever order they were found.
    pub fn new(language: Language, mut packages: Vec<LockedPackage>) -> PackageLock {
        packages.sort();
        packages.dedup();
        PackageLock { language, packages }
    }
}

/// One package of a [`PackageLock`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockedPackage {
    /// Its name, normalised.
    pub name: String,
    /// Its exact version, as the registry writes it.
    pub version: String,
    /// Where it lies, if that is not decided by its name: npm may install several versions of a package, and which one a
    /// program gets depends on where they are. A path from the environment's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What its file hashed to, where that is known: `sha256:` and hexadecimal digits, or npm's `sha512-` and base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// The package that brings it along, in its own file or as its part for this machine: it may come wherever that may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comes_with: Option<String>,
}

impl LockedPackage {
    /// The package whose permission it needs.
    pub fn answers_for_it(&self) -> &str {
        self.comes_with.as_deref().unwrap_or(&self.name)
    }
}

/// A package that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Omitted {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What an environment is called: its language, and the first 16 digits of its lock's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EnvironmentId {
    language: Language,
    key: String,
}

impl EnvironmentId {
    /// The name of the environment whose lock has this key.
    pub fn new(language: Language, key: Digest) -> EnvironmentId {
        EnvironmentId { language, key: key.short() }
    }

    /// Whose packages are in it.
    pub fn language(&self) -> Language {
        self.language
    }
}

impl fmt::Display for EnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.language, self.key)
    }
}

impl From<EnvironmentId> for String {
    fn from(id: EnvironmentId) -> String {
        id.to_string()
    }
}

impl FromStr for EnvironmentId {
    type Err = InvalidEnvironmentId;

    fn from_str(text: &str) -> Result<EnvironmentId, InvalidEnvironmentId> {
        let (language, key) = text.split_once('-').ok_or(InvalidEnvironmentId)?;
        let language = Language::ALL.into_iter().find(|known| known.name() == language).ok_or(InvalidEnvironmentId)?;
        let is_key = key.len() == 16 && key.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        is_key.then(|| EnvironmentId { language, key: key.to_owned() }).ok_or(InvalidEnvironmentId)
    }
}

impl TryFrom<String> for EnvironmentId {
    type Error = InvalidEnvironmentId;

    fn try_from(text: String) -> Result<EnvironmentId, InvalidEnvironmentId> {
        text.parse()
    }
}

/// A text that names no environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an environment is called by a language, '-' and 16 lower-case hexadecimal digits, as install_packages says it"
)]
pub struct InvalidEnvironmentId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_reads_what_it_writes_and_nothing_else() {
        let id = EnvironmentId::new(Language::Python, Digest([0xa5; 32]));
        assert_eq!(id.to_string(), "python-a5a5a5a5a5a5a5a5");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "python", "python-", "raw-a5a5a5a5a5a5a5a5", "python-A5A5A5A5A5A5A5A5", "../a5a5a5a5a5a5a5a5"]
        {
            assert_eq!(wrong.parse::<EnvironmentId>(), Err(InvalidEnvironmentId), "{wrong}");
        }
    }

    #[test]
    fn order_makes_no_difference() {
        let package = |name: &str| LockedPackage {
            name: name.into(),
            version: "1".into(),
            place: None,
            hash: None,
            comes_with: None,
        };
        let one = PackageLock::new(Language::Python, vec![package("b"), package("a"), package("b")]);
        assert_eq!(one, PackageLock::new(Language::Python, vec![package("a"), package("b")]));
    }
}
