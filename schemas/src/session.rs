//! Sessions: the inputs and results of `open_session` and `close_session`, and what `pool_status` tells of them.

use serde::{Deserialize, Serialize};

use crate::execute::{check_environment, check_packages};
use crate::invalid::{InvalidInput, check_range};
use crate::language::Language;
use crate::lenient;
use crate::limits;

/// Arguments of the tool `open_session`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OpenInput {
    /// Whose `packages` they are, and which interpreter shall be ready; `python` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_language")]
    #[cfg_attr(feature = "json-schema", schemars(schema_with = "crate::execute::language_schema"))]
    pub language: Option<Language>,

    /// Packages that its programs need, as for `execute_code`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::texts")]
    pub packages: Vec<String>,

    /// Instead of `packages`: what `install_packages` has returned.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub environment_id: Option<String>,

    /// Memory for all its programs and files together, in MiB, 512 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(
        feature = "json-schema",
        schemars(with = "u64", range(min = limits::MEMORY_MIN_MB, max = limits::MEMORY_MAX_MB))
    )]
    pub memory_mb: Option<u64>,

    /// Seconds without a call or a running program after which it ends by itself, 900 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(feature = "json-schema", schemars(with = "u64", range(min = 1, max = limits::IDLE_MAX_SECONDS)))]
    pub idle_timeout_seconds: Option<u64>,
}

impl OpenInput {
    /// Checks every field and names the first that is wrong.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_packages(&self.packages)?;
        check_environment(&self.packages, self.environment_id.as_deref())?;
        check_range("memory_mb", self.memory_mb(), limits::MEMORY_MIN_MB, limits::MEMORY_MAX_MB)?;
        check_range("idle_timeout_seconds", self.idle_timeout_seconds(), 1, limits::IDLE_MAX_SECONDS)
    }

    /// Memory of all its programs, in MiB.
    pub fn memory_mb(&self) -> u64 {
        self.memory_mb.unwrap_or(limits::MEMORY_DEFAULT_MB)
    }

    /// How long it may be idle, in seconds.
    pub fn idle_timeout_seconds(&self) -> u64 {
        self.idle_timeout_seconds.unwrap_or(limits::IDLE_DEFAULT_SECONDS)
    }
}

/// Result of the tool `open_session`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct OpenOutcome {
    /// What other calls name it by.
    pub session_id: String,
    /// Memory of all its programs and files together, in MiB.
    pub memory_mb: u64,
    /// Seconds without a call or a running program after which it ends by itself.
    pub idle_timeout_seconds: u64,
    /// From the accepted call to the result, in milliseconds.
    pub total_ms: f64,
    /// Whether its VM came from the pool.
    pub warm_pool_hit: bool,
    /// Whether its VM, now or when it was put into the pool, was restored from a template instead of booted.
    pub template_hit: bool,
}

/// Arguments of the tool `close_session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloseInput {
    /// What `open_session` has returned.
    pub session_id: String,
}

/// Result of the tool `close_session`: its VM is gone, and all that was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct CloseOutcome {
    /// Programs that it has run.
    pub runs: u64,
    /// Those that were ended with it.
    pub ended_runs: u64,
}

/// A session that is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct SessionStatus {
    /// What calls name it by.
    pub session_id: String,
    /// Since it was opened, in seconds.
    pub age_seconds: f64,
    /// Since its last program has ended, in seconds; 0 while one runs.
    pub idle_seconds: f64,
    /// Programs that it has run, those that run now included.
    pub runs: u64,
    /// Programs that run now, those in the background included.
    pub running: u64,
    /// What its programs and files may take together, in MiB.
    pub memory_limit_mb: u64,
    /// Memory of the host that its VM has to itself, in MiB; absent where the host does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "f64"))]
    pub private_memory_mb: Option<f64>,
}
