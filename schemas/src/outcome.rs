//! What came of a run: the result of `execute_code`, and the codes of our own errors.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::environment::Omitted;
use crate::files::OutputFile;

/// Result of the tool `execute_code`: the program ran, whatever came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct ExecuteOutcome {
    /// Exit status of the program: 0-255, 128+N when signal N ended it, -1 after a timeout.
    pub exit_code: i32,
    /// Standard output as UTF-8, up to 1,000,000 bytes: of more, the beginning, a line `[... N bytes left out ...]`, and the end.
    pub stdout: String,
    /// The same of standard error, up to 100,000 bytes.
    pub stderr: String,
    /// Whether the program was stopped because `timeout_seconds` had passed; the output until then is kept.
    pub timed_out: bool,
    /// Whether stdout or stderr was cut at its limit. The program ran on.
    pub truncated: bool,
    /// Bytes that the program wrote to stdout, those that were cut included; at least those that came, where the guest did not
    /// live to count them.
    pub stdout_bytes: u64,
    /// The same of stderr.
    pub stderr_bytes: u64,
    /// Whether the output had bytes that are not UTF-8; each such sequence stands as U+FFFD.
    pub invalid_utf8: bool,
    /// Whether a process of the program was killed because `memory_mb` was used up.
    pub out_of_memory: bool,
    /// In a session: whether an interpreter has ended, with this call or since the one before, and with it all variables of its language.
    #[serde(default, skip_serializing_if = "is_false")]
    #[cfg_attr(feature = "json-schema", schemars(with = "bool"))]
    pub state_lost: bool,
    /// The files that `outputs` named, by path; absent where it named none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<OutputFile>"))]
    pub files: Vec<OutputFile>,
    /// Of `outputs`, those that no file matches; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<String>"))]
    pub unmatched: Vec<String>,
    /// What else is to be said of them; absent where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub files_note: Option<String>,
    /// Where the time went, as the host saw it, in milliseconds.
    pub timing: Timing,
    /// From the program's start to its end, as the host saw it, in milliseconds. The same as `timing.execute_ms`.
    pub execution_time_ms: f64,
    /// Starting the interpreter that ran the program, as the guest saw it, in milliseconds: part of `boot_ms` where the VM
    /// booted, 0 where it was restored with its interpreters. Absent, as the next three, where the guest did not live to say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "f64"))]
    pub spawn_ms: Option<f64>,
    /// From the program's start to its end, as the guest saw it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "f64"))]
    pub process_ms: Option<f64>,
    /// CPU time of the program and its children in the guest, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "f64"))]
    pub cpu_time_ms: Option<f64>,
    /// Most memory that the program, its interpreter and its files used at once, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "f64"))]
    pub memory_peak_mb: Option<f64>,
    /// Whether the VM came from a pool of started ones; then `setup_ms` and `boot_ms` are 0.
    pub warm_pool_hit: bool,
    /// Whether the VM, now or when it was put into the pool, was restored from a template instead of booted.
    pub template_hit: bool,
    /// Requested packages that were not imported beforehand; absent if all were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<Omitted>"))]
    pub not_imported: Vec<Omitted>,
    /// What executed the guest: `kvm` (hardware) or `tcg` (translation: slower, and a weaker boundary).
    pub accelerator: Accelerator,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Where a run's time went, in milliseconds. Monotonic, measured by the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Timing {
    /// From the accepted call until QEMU was started: waiting for a free place, and preparing. 0 when a VM was waiting.
    pub setup_ms: f64,
    /// From QEMU's start until the guest was ready, its interpreter warmed. 0 when a VM was waiting.
    pub boot_ms: f64,
    /// From handing over the program until the guest said that it had started.
    pub connect_ms: f64,
    /// From the program's start until its end.
    pub execute_ms: f64,
    /// From the accepted call to the result.
    pub total_ms: f64,
}

/// What kind of failure of ours an error is. It says whether the program can have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An argument is wrong; nothing ran. The message names the field and the limit.
    InvalidInput,
    /// A policy forbids it; nothing ran.
    Refused,
    /// No VM can be had now; nothing ran. Try again later.
    Capacity,
    /// The host lacks something (QEMU, the image, a permission); nothing ran. The message says what to do.
    NotInstalled,
    /// What an id names is not there, or not any more; nothing ran. The message says which.
    NotFound,
    /// Packages could not be installed; nothing ran, and nothing of them is kept. The message has the installer's reason.
    InstallFailed,
    /// The VM failed before the program started. Safe to try again.
    FailedBeforeRun,
    /// The VM failed while the program ran, or after. It may have run in part or in full.
    OutcomeUnknown,
}

impl ErrorCode {
    /// Whether the same call may succeed later with nothing changed, and cannot have run before.
    pub const fn is_retryable(self) -> bool {
        matches!(self, ErrorCode::Capacity | ErrorCode::FailedBeforeRun)
    }

    /// The stable name that clients branch on.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorCode::InvalidInput => "invalid_input",
            ErrorCode::Refused => "refused",
            ErrorCode::Capacity => "capacity",
            ErrorCode::NotInstalled => "not_installed",
            ErrorCode::NotFound => "not_found",
            ErrorCode::InstallFailed => "install_failed",
            ErrorCode::FailedBeforeRun => "failed_before_run",
            ErrorCode::OutcomeUnknown => "outcome_unknown",
        }
    }
}
