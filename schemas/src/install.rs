//! The input and the result of `install_packages`.

use serde::{Deserialize, Serialize};

use crate::environment::Omitted;
use crate::execute::check_packages;
use crate::invalid::InvalidInput;
use crate::language::Language;
use crate::lenient;

/// Arguments of the tool `install_packages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstallInput {
    /// Whose packages they are: `python` (from PyPI) or `javascript` (from npm).
    #[serde(deserialize_with = "lenient::language")]
    #[cfg_attr(feature = "json-schema", schemars(schema_with = "language_schema"))]
    pub language: Language,

    /// What to install, at most 50. No URLs, paths or options. Examples: `["requests", "httpx[http2]>=0.27"]`, `["lodash@4.17.21", "@types/node@^22"]`
    #[serde(deserialize_with = "lenient::texts")]
    pub packages: Vec<String>,

    /// An open session to add them to; what it has in memory stays. Else they are for other calls.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub session_id: Option<String>,
}

impl InstallInput {
    /// Checks what the types do not say. Whether each is a package, and may be installed, is its registry's side to tell.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_packages(&self.packages)
    }
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
    /// What packages can do without and is not allowed; absent if nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<Omitted>"))]
    pub skipped: Vec<Omitted>,
    /// Requested packages that are not imported beforehand; absent if all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<Omitted>"))]
    pub not_imported: Vec<Omitted>,
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
