//! Programs that run in the background: the inputs and results of `get_run`, `send_input` and `stop_run`.

use serde::{Deserialize, Serialize};

use crate::invalid::{InvalidInput, check_range, too_large};
use crate::lenient;
use crate::limits;

/// What `execute_code` answers at once for a program in the background.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct RunStarted {
    /// What `get_run`, `send_input` and `stop_run` name it by.
    pub run_id: String,
}

/// Arguments of the tool `get_run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetRunInput {
    /// What `execute_code` has returned.
    pub run_id: String,

    /// Seconds to wait for new output or the end, 0 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(feature = "json-schema", schemars(with = "u64", range(min = 0, max = limits::WAIT_MAX_SECONDS)))]
    pub wait_seconds: Option<u64>,

    /// The `next` of an earlier result, for all output since; what no `get_run` has returned yet, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(feature = "json-schema", schemars(with = "u64"))]
    pub since: Option<u64>,
}

impl GetRunInput {
    /// Checks every field and names the first that is wrong.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_range("wait_seconds", self.wait_seconds.unwrap_or(0), 0, limits::WAIT_MAX_SECONDS)
    }
}

/// Arguments of the tool `send_input`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SendInput {
    /// What `execute_code` has returned.
    pub run_id: String,

    /// What the program reads next, at most 4 MiB; with its line break, where it reads lines. Example: `yes\n`
    #[serde(default)]
    pub text: String,

    /// Whether its standard input ends behind that.
    #[serde(default)]
    pub end: bool,
}

impl SendInput {
    /// Checks every field and names the first that is wrong.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        if self.text.len() > limits::STDIN_MAX_BYTES {
            return Err(too_large("text", self.text.len(), limits::STDIN_MAX_BYTES));
        }
        if self.text.is_empty() && !self.end {
            return Err(InvalidInput { field: "text".into(), message: "is empty; give some, or end: true".into() });
        }
        Ok(())
    }
}

/// Result of the tool `send_input`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct InputSent {
    /// Bytes that were sent and that the program has not read yet, earlier ones included.
    pub unread_bytes: u64,
}

/// Arguments of the tool `stop_run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StopRunInput {
    /// What `execute_code` has returned.
    pub run_id: String,
}

/// Result of the tools `get_run` and `stop_run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct RunReport {
    /// Whether the program still runs.
    pub running: bool,
    /// Output that is new, or since `since`.
    pub stdout: String,
    /// The same of standard error.
    pub stderr: String,
    /// Bytes of it that were dropped since nobody had fetched them; the last 1,000,000 are kept.
    pub dropped_bytes: u64,
    /// What to give as `since` for what comes after this.
    pub next: u64,
    /// Bytes of output that come after this and are there already.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread_bytes: u64,
    /// Exit status of the program, as in `execute_code`; absent, as the rest, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "i32"))]
    pub exit_code: Option<i32>,
    /// Whether it was ended because `timeout_seconds` had passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "bool"))]
    pub timed_out: Option<bool>,
    /// Whether a process was killed because `memory_mb` was used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "bool"))]
    pub out_of_memory: Option<bool>,
    /// Why there is no exit status, where its VM or its session ended first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub lost: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
