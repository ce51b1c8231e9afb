//! One error enum per operation, each branching on whether the program can have run.

use std::path::PathBuf;
use std::time::Duration;

use sandbox_schemas::invalid::InvalidInput;
use sandbox_schemas::outcome::ErrorCode;

use crate::environment::InstallError;

/// Why an engine cannot start on this machine. Each says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// No QEMU in PATH nor in the usual places.
    #[error(
        "QEMU is not installed: no `{name}` in PATH or in {searched}. Install it (Debian: apt-get install \
         qemu-system-x86) or name it with --qemu"
    )]
    QemuMissing {
        /// Name of the binary.
        name: &'static str,
        /// Directories that were searched besides PATH.
        searched: String,
    },
    /// A QEMU that cannot be run, or does not say its version.
    #[error("{path}: cannot be used as QEMU: {reason}")]
    QemuUnusable {
        /// The binary.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// Older than what templates and the sandbox flags need.
    #[error("{path} is QEMU {found}; {needed} or later is needed. Upgrade it, or name another one with --qemu")]
    QemuTooOld {
        /// The binary.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest that works.
        needed: String,
    },
    /// A step that every VM's process takes is not allowed.
    #[error("no VM can be confined on this host: {reason}")]
    NoConfinement {
        /// Which step, and why.
        reason: String,
    },
    /// A bug of ours.
    #[error("the engine does not start: {reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
    /// KVM was asked for, and does not work here.
    #[error("KVM cannot be used: {reason}. Use --accel auto or tcg to run without it (slower)")]
    KvmUnusable {
        /// What is missing.
        reason: String,
    },
}

/// Why a program has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// An argument is wrong; nothing ran.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// No VM could be had in time; nothing ran.
    #[error("no free VM: {reason}{}", advice(*retry_after))]
    Capacity {
        /// What was full.
        reason: String,
        /// When it may be otherwise, as a guess; `None` when the same call can never be served here.
        retry_after: Option<Duration>,
    },
    /// More was sent to a program than may wait for it; nothing was sent.
    #[error("{reason}")]
    Unread {
        /// How much waits.
        reason: String,
    },
    /// A file could not be put where it should be, or taken from where it is.
    #[error("{reason}")]
    File {
        /// Which, and why.
        reason: String,
    },
    /// What an id names is not there, or not any more; nothing ran.
    #[error("{reason}")]
    NotFound {
        /// Which, and why.
        reason: String,
    },
    /// The packages that the program needs are not there; nothing ran.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// What VMs are started from is not there any more; nothing ran.
    #[error("{} is gone, which VMs are started from", path.display())]
    NotInstalled {
        /// What is missing.
        path: PathBuf,
    },
    /// The VM failed before the program started.
    #[error("the VM failed before the program ran: {reason}. It is safe to try again")]
    FailedBeforeRun {
        /// What happened, QEMU's own words among it.
        reason: String,
    },
    /// The VM failed after the program was handed over.
    #[error("the VM failed while the program ran: {reason}. It may have run in part or in full")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// When a program may have read what was sent to it.
const UNREAD_RETRY_AFTER: Duration = Duration::from_secs(1);

impl ExecuteError {
    /// No random bytes could be had, without which nothing has a name.
    pub(crate) fn random(error: std::io::Error) -> ExecuteError {
        ExecuteError::before_run(VmError::random(error))
    }

    /// What has failed before the program can have run.
    pub(crate) fn before_run(error: VmError) -> ExecuteError {
        match error {
            VmError::Gone(path) => ExecuteError::NotInstalled { path },
            error => ExecuteError::FailedBeforeRun { reason: error.to_string() },
        }
    }

    /// When the same call may succeed, as a guess.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ExecuteError::Capacity { retry_after, .. } => *retry_after,
            ExecuteError::Install(error) => error.retry_after(),
            ExecuteError::Unread { .. } => Some(UNREAD_RETRY_AFTER),
            _ => None,
        }
    }

    /// The stable code that clients branch on; a cancelled call has no answer, and so none.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ExecuteError::Invalid(_) | ExecuteError::File { .. } => Some(ErrorCode::InvalidInput),
            ExecuteError::Capacity { .. } | ExecuteError::Unread { .. } => Some(ErrorCode::Capacity),
            ExecuteError::NotFound { .. } => Some(ErrorCode::NotFound),
            ExecuteError::Install(error) => error.code(),
            ExecuteError::NotInstalled { .. } => Some(ErrorCode::NotInstalled),
            ExecuteError::FailedBeforeRun { .. } => Some(ErrorCode::FailedBeforeRun),
            ExecuteError::OutcomeUnknown { .. } => Some(ErrorCode::OutcomeUnknown),
            ExecuteError::Cancelled => None,
        }
    }
}

/// The end of a sentence for who reads no fields.
fn advice(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |after| format!(". Try again in {} s", after.as_secs()))
}

/// Why a VM is of no more use. Whether the program can have run depends on the phase, which the caller knows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error("cannot start QEMU: {0}")]
    Spawn(String),
    #[error("it cannot be restored: {0}")]
    Restore(String),
    #[error("{} is gone, which VMs are started from", .0.display())]
    Gone(PathBuf),
    #[error("the guest was not ready within {0:?}")]
    Deadline(Duration),
    #[error("the guest was not ready within {0:?}, for much of which it waited for a processor of a busy machine")]
    Starved(Duration),
    #[error("the VM ended unexpectedly{0}")]
    Ended(String),
    #[error("the guest broke the protocol: {0}")]
    Protocol(String),
    #[error("{0}")]
    Guest(String),
}

/// Whose fault it is that a VM is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its own, or of what it was made from.
    Vm,
    /// The host's, which had no memory, processes or time for it, or has ended it.
    Host,
    /// It cannot be told.
    Unclear,
}

/// What a QEMU says, or what is said of how it ended, if the host has not given it what it needs.
const WANTS: [&str; 6] = [
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "Too many open files",
    "No space left on device",
    "killed by signal 9",
    "killed by signal 15",
];

/// What we say ourselves of how its end was seen. QEMU's own words come behind it.
const SILENT: [&str; 3] = [" (writing to it", " (reading from it", " (its monitor)"];

impl VmError {
    /// No random bytes could be had, without which no VM is started.
    pub(crate) fn random(error: std::io::Error) -> VmError {
        VmError::Spawn(error.to_string())
    }

    pub(crate) fn fault(&self) -> Fault {
        match self {
            VmError::Spawn(_) | VmError::Gone(_) | VmError::Starved(_) => Fault::Host,
            VmError::Ended(words) if WANTS.iter().any(|want| words.contains(want)) => Fault::Host,
            // Whoever ends it from outside leaves it no time to say anything; nor has one that crashes.
            VmError::Ended(words) if words.is_empty() || SILENT.iter().any(|begin| words.starts_with(begin)) => {
                if words.contains("): ") || words.contains("signal") { Fault::Vm } else { Fault::Unclear }
            }
            VmError::Ended(_)
            | VmError::Restore(_)
            | VmError::Deadline(_)
            | VmError::Protocol(_)
            | VmError::Guest(_) => Fault::Vm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_did_is_told_from_what_the_vm_did() {
        let (text, second) = (String::from, Duration::from_secs(1));
        for (error, fault) in [
            (VmError::Spawn(text("Resource temporarily unavailable (os error 11)")), Fault::Host),
            (VmError::Starved(second), Fault::Host),
            (VmError::Ended(text(": cannot set up guest memory 'ram': Cannot allocate memory")), Fault::Host),
            (VmError::Ended(text(" (killed by signal 9, for want of memory)")), Fault::Host),
            (VmError::Ended(text("")), Fault::Unclear),
            (VmError::Ended(text(" (writing to it: Broken pipe (os error 32))")), Fault::Unclear),
            (VmError::Ended(text(" (its monitor): Unknown savevm section")), Fault::Vm),
            (VmError::Ended(text(": Unknown savevm section")), Fault::Vm),
            (VmError::Ended(text(" (killed by signal 11)")), Fault::Vm),
            (VmError::Restore(text("the migration failed")), Fault::Vm),
            (VmError::Deadline(second), Fault::Vm),
            (VmError::Protocol(text("ready was expected")), Fault::Vm),
            (VmError::Guest(text("no interpreter")), Fault::Vm),
        ] {
            assert_eq!(error.fault(), fault, "{error}");
        }
    }
}
