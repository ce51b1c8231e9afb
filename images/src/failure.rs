//! Why a tool or a download failed, or was not to be had.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use sandbox_download::{FetchError, TlsError};

use crate::room::Full;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started or waited for.
    #[error("cannot run {name}: {source}")]
    Start {
        /// The program.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Its output could not be kept.
    #[error("cannot write the output of {name} to {path}: {source}")]
    Log {
        /// The program.
        name: &'static str,
        /// The log.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It failed for want of room.
    #[error(transparent)]
    Full(#[from] Full),
    /// It failed.
    #[error("{name} failed ({status}); all of its output is in {log}, the last lines are:\n{tail}")]
    Failed {
        /// The program.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its output.
        tail: String,
        /// Where all of it is.
        log: PathBuf,
    },
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// There is no way to any server.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// This host allows no thread to fetch it with.
    #[error("cannot begin to fetch: {source}{}", sandbox_store::limit_behind(source))]
    Thread {
        /// What the system said.
        source: io::Error,
    },
    /// The server could not be reached or did not send it.
    #[error("cannot fetch what images.lock pins (attempt {attempt} of {attempts}): {reason}")]
    Fetch {
        /// Which attempt was the last.
        attempt: u32,
        /// How many there could be.
        attempts: u32,
        /// What went wrong then.
        reason: FetchError,
    },
    /// What came is not what was pinned.
    #[error("{url} is not what images.lock pins: its hash is {actual}, not {expected}")]
    Hash {
        /// Its URL.
        url: String,
        /// The pinned hash.
        expected: String,
        /// The hash of what came.
        actual: String,
    },
    /// It could not be written.
    #[error("cannot write {path}: {source}{}", sandbox_store::limit_behind(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// That an ordinary user cannot build here.
#[derive(Debug, thiserror::Error)]
#[error(
    "building a VM image as an ordinary user needs a user namespace, which this host forbids or is not set up for. mmdebstrap says:\n\
     {said}\n\
     Build as root, or see to it that there is newuidmap (Debian's package uidmap), that /etc/subuid and /etc/subgid have a line for the \
     user (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`), and that nothing else forbids it (`sysctl \
     user.max_user_namespaces kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns`; a container's seccomp profile)"
)]
pub struct Forbidden {
    /// What mmdebstrap has said.
    pub(crate) said: String,
}
