//! The input and the result of `install_packages`.

use serde::{Deserialize, Serialize};

use crate::language::Language;
#[cfg(feature = "json-schema")]
use crate::limits;

/// Arguments of the tool `install_packages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstallInput {
    /// Whose packages they are: `python` (from PyPI) or `javascript` (from npm).
    #[cfg_attr(feature = "json-schema", schemars(schema_with = "language_schema"))]
    pub language: Language,

    /// What to install, at most 50: for Python a name with optional extras and versions (`requests`, `requests==2.32.3`,
    /// `httpx[http2]>=0.27`), for JavaScript a name with an optional version, range or tag (`lodash`, `lodash@4.17.21`,
    /// `@types/node@^22`). URLs, paths, repositories and options are refused.
    #[cfg_attr(feature = "json-schema", schemars(length(min = 1, max = limits::PACKAGES_MAX)))]
    pub packages: Vec<String>,
}

/// Result of the tool `install_packages`: the packages are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct InstallOutcome {
    /// What to give to `execute_code` as `environment_id`. Stays the same as long as the packages do.
    pub environment_id: String,
    /// Whose packages they are.
    pub language: Language,
    /// Every package that is there, those that were asked for and those that they need, by name.
    pub packages: Vec<InstalledPackage>,
    /// Whether the set had been installed before, so that nothing was downloaded or installed now.
    pub cached: bool,
    /// Bytes that were downloaded from the registry.
    pub downloaded_bytes: u64,
    /// Bytes of packages that had been downloaded before.
    pub download_cache_bytes: u64,
    /// What the set takes on the disk, in bytes.
    pub size_bytes: u64,
    /// Whether a VM with the packages is restored from a template, with its packages imported where that is safe.
    pub template: bool,
    /// Where the time went, in milliseconds.
    pub timing: InstallTiming,
}

/// A package in an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct InstalledPackage {
    /// Its name, normalised.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// Whether it was asked for, rather than needed by one that was.
    pub requested: bool,
}

/// Where an installation's time went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct InstallTiming {
    /// Resolving, downloading, installing and packing; 0 when the set was cached.
    pub install_ms: f64,
    /// Making the template of the set, its packages' import included; little when it was there.
    pub template_ms: f64,
    /// From the accepted call to the result.
    pub total_ms: f64,
}

#[cfg(feature = "json-schema")]
fn language_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names = [Language::Python, Language::Javascript].map(Language::name);
    schemars::json_schema!({ "type": "string", "enum": names })
}
