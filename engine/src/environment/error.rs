//! Why packages are not there.

use std::path::PathBuf;
use std::time::Duration;

use sandbox_packages::RequirementError;
use sandbox_schemas::outcome::ErrorCode;

use crate::error::{ExecuteError, VmError};

/// Why packages are not there. Nothing of them is kept. Told to all who wait for the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InstallError {
    /// What was asked for is not a list of packages.
    #[error("packages: {0}")]
    Invalid(#[from] RequirementError),
    /// A package is not on the allowlist.
    #[error("{reason}")]
    Refused {
        /// Which one, what pulled it in, and what may have been meant.
        reason: String,
    },
    /// There is no such environment, or not any more.
    #[error(
        "environment_id: there is no environment {id} here (any more); install its packages again with install_packages"
    )]
    Unknown {
        /// What was asked for.
        id: String,
    },
    /// They cannot be added to what a session has, of which nothing is changed under running interpreters.
    #[error("packages: {reason}; another session can be opened with them")]
    Unfit {
        /// What stands against it.
        reason: String,
    },
    /// No VM could be had to install them in.
    #[error("{reason}")]
    Capacity {
        /// What was full.
        reason: String,
        /// When it may be otherwise.
        retry_after: Option<Duration>,
    },
    /// The installer could not do it.
    #[error("{reason}{}", tail(log))]
    Failed {
        /// What is wrong, in short.
        reason: String,
        /// The end of what the installer said.
        log: String,
    },
    /// What VMs are started from is not there any more.
    #[error("{} is gone, which VMs are started from", path.display())]
    NotInstalled {
        /// What is missing.
        path: PathBuf,
    },
    /// The VM, or the disk, failed.
    #[error("installing packages failed: {reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
    /// Nobody waits for it any more.
    #[error("cancelled")]
    Cancelled,
}

impl InstallError {
    pub(crate) fn internal(reason: impl std::fmt::Display) -> InstallError {
        InstallError::Internal { reason: reason.to_string() }
    }

    /// The stable code that clients branch on; a cancelled call has no answer, and so none.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            InstallError::Invalid(_) | InstallError::Unknown { .. } | InstallError::Unfit { .. } => {
                Some(ErrorCode::InvalidInput)
            }
            InstallError::Refused { .. } => Some(ErrorCode::Refused),
            InstallError::Capacity { .. } => Some(ErrorCode::Capacity),
            InstallError::Failed { .. } => Some(ErrorCode::InstallFailed),
            InstallError::NotInstalled { .. } => Some(ErrorCode::NotInstalled),
            InstallError::Internal { .. } => Some(ErrorCode::FailedBeforeRun),
            InstallError::Cancelled => None,
        }
    }

    /// When the same call may succeed, as a guess.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            InstallError::Capacity { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// No place in time is all that can go wrong before anything runs.
impl From<ExecuteError> for InstallError {
    fn from(error: ExecuteError) -> InstallError {
        match error {
            ExecuteError::Capacity { reason, retry_after } => InstallError::Capacity { reason, retry_after },
            ExecuteError::NotInstalled { path } => InstallError::NotInstalled { path },
            ExecuteError::Cancelled => InstallError::Cancelled,
            other => InstallError::internal(other),
        }
    }
}

impl From<VmError> for InstallError {
    fn from(error: VmError) -> InstallError {
        match error {
            VmError::Gone(path) => InstallError::NotInstalled { path },
            other => InstallError::internal(other),
        }
    }
}

fn tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n{log}") }
}
